//! What is written into cgroups and read from them.

use super::*;

#[test]
fn each_limit_is_written_in_the_words_of_its_version() {
    let lines = |version, limits| -> Vec<String> {
        let all = settings(version, limits);
        all.iter().map(|setting| format!("{}={}", setting.file, setting.value)).collect()
    };
    let all = Limits { memory: Some(64 << 20), cpu_millis: Some(1_500), pids: Some(9) };
    assert_eq!(
        lines(Version::Two, all),
        ["memory.max=67108864", "memory.swap.max=0", "memory.oom.group=1", "pids.max=9", "cpu.max=150000 100000"]
    );
    assert_eq!(
        lines(Version::One, all),
        [
            "memory.limit_in_bytes=67108864",
            "memory.memsw.limit_in_bytes=67108864",
            "pids.max=9",
            "cpu.cfs_period_us=100000",
            "cpu.cfs_quota_us=150000"
        ]
    );
    let least = Limits { cpu_millis: Some(10), ..Limits::default() };
    assert_eq!(lines(Version::Two, least), ["cpu.max=1000 100000"], "the least that the kernel takes");
    for version in [Version::One, Version::Two] {
        assert_eq!(settings(version, Limits::default()), []);
    }
}

#[test]
fn counts_are_read_by_their_whole_word() {
    let events = "low 0\nhigh 0\nmax 12\noom 1\noom_kill 3\noom_group_kill 2\n";
    assert_eq!((count_of(events, "oom"), count_of(events, "oom_kill"), count_of(events, "oom_")), (1, 3, 0));
    assert_eq!(count_of("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", "oom_kill"), 2);
    assert_eq!(count_of("", "oom"), 0);
}
