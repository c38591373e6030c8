//! What holds the limits of processes must do: they bite, it is told, and nothing stays.

use super::*;

/// The shell itself holds what it reads.
const HOG: &str = "x=$(head -c 60000000 /dev/zero | tr '\\0' x); echo ${#x}";

fn limited(spec: Spec, limits: Limits) -> Spec {
    Spec { limits, ..spec }
}

/// The groups that this process is in, as the kernel says it: one for each hierarchy.
fn own_groups(lines: &str) -> Vec<&str> {
    lines.lines().filter_map(|line| line.splitn(3, ':').nth(2)).filter(|group| group.contains("aios:")).collect()
}

pub(super) async fn who_takes_more_memory_than_it_may_is_killed_and_it_is_told(rig: &mut Rig) {
    let memory = Limits { memory: Some(24 << 20), ..Limits::default() };
    let exit = rig.run(limited(rig.sh(1, HOG), memory)).await;
    assert!(exit.oom_killed && exit.started && exit.ending != Ending::Code(0), "{exit:?}");
    assert_eq!(rig.log(1), "");
    let enough = Limits { memory: Some(512 << 20), ..Limits::default() };
    let exit = rig.run(limited(rig.sh(2, HOG), enough)).await;
    assert!(!exit.oom_killed && exit.ending == Ending::Code(0), "{exit:?}");
    assert_eq!(rig.log(2), "60000000\n");
}

pub(super) async fn nobody_has_more_processes_than_it_may(rig: &mut Rig) {
    let storm = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1000 & done; echo all";
    let pids = Limits { pids: Some(8), ..Limits::default() };
    let exit = rig.run(limited(rig.sh(1, storm), pids)).await;
    assert!(exit.ending != Ending::Code(0) && rig.log(1).contains("fork"), "{exit:?} {}", rig.log(1));
    let enough = Limits { pids: Some(32), ..Limits::default() };
    let exit = rig.run(limited(rig.sh(2, storm), enough)).await;
    assert_eq!((exit.ending, rig.log(2).as_str()), (Ending::Code(0), "all\n"));
}

pub(super) async fn processor_time_is_counted_and_its_group_goes_with_it(rig: &mut Rig) {
    let cpus = Limits { cpu_millis: Some(250), ..Limits::default() };
    rig.executor.start(limited(rig.sh(1, "cat /proc/self/cgroup > own; echo > up; sleep 1000"), cpus));
    rig.line("up").await;
    let text = fs::read_to_string(rig.path("own")).unwrap();
    let groups = own_groups(&text);
    assert_eq!(groups.len(), 1, "{text}");
    let name = groups[0].rsplit('/').next().unwrap();
    assert_eq!(name, format!("aios:{}", rig.marker(&lease(1)).replace('/', ":")));
    let at = find_groups(name);
    let [group] = at.as_slice() else { panic!("one group, not {at:?}") };
    let read = |file: &str| fs::read_to_string(group.join(file)).map(|text| text.trim().to_owned()).ok();
    let one =
        read("cpu.cfs_quota_us").zip(read("cpu.cfs_period_us")).map(|(quota, period)| format!("{quota} {period}"));
    assert_eq!(read("cpu.max").or(one).as_deref(), Some("25000 100000"));
    rig.executor.stop(&lease(1), StopCause::Cancelled, LONG);
    assert_eq!(rig.exit(1).await.ending, Ending::Signal(15));
    assert_eq!(find_groups(name), [""; 0].map(PathBuf::from), "it is gone with its attempt");
}

/// Where groups of this name are.
fn find_groups(name: &str) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![PathBuf::from("/sys/fs/cgroup")]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
                found.extend((entry.file_name() == name).then(|| entry.path()));
            }
        }
    }
    found
}

pub(super) async fn who_hides_from_the_hunt_is_found_in_its_group(rig: &mut Rig) {
    // Another attempt that may be its own, no environment, a session and a parent of its own, and no log: nothing tells whose it is
    // but its group.
    rig.executor.start(rig.spec(2, &["sleep", "1000"]));
    let hide = "env -i setsid sh -c 'trap \"\" TERM; sleep 1000 & echo $! > hidden; wait' >/dev/null 2>&1 & \
        until [ -s hidden ]; do :; done";
    let exit = rig.run(rig.sh(1, hide)).await;
    assert_eq!(exit.ending, Ending::Code(0));
    let hidden = rig.pid("hidden").await;
    assert!(!is_alive(hidden), "the exit came before its end");
    rig.executor.stop(&lease(2), StopCause::Cancelled, Duration::ZERO);
    rig.exit(2).await;
}

pub(super) async fn groups_of_an_earlier_life_are_emptied_and_removed(rig: &mut Rig) {
    rig.executor.start(rig.sh(1, "echo $$ > up; exec sleep 1000"));
    let pid = rig.pid("up").await;
    let name = format!("aios:{}", rig.marker(&lease(1)).replace('/', ":"));
    assert!(!find_groups(&name).is_empty());
    // Another life looks from beside the first one.
    let cgroups = Cgroups::open().unwrap();
    assert_eq!(cgroups.clear(&format!("{}x", rig.session)).await, 0, "not those of others");
    assert!(is_alive(pid));
    assert!(cgroups.clear(&rig.session).await >= 1);
    assert!(find_groups(&name).is_empty());
    assert_eq!(rig.exit(1).await.ending, Ending::Signal(9));
}

pub(super) async fn more_address_space_than_allowed_is_not_given(rig: &mut Rig) {
    let memory = Limits { memory: Some(40 << 20), ..Limits::default() };
    let exit = rig.run(limited(rig.sh(1, HOG), memory)).await;
    assert!(exit.started && exit.ending != Ending::Code(0) && !exit.oom_killed, "{exit:?} {}", rig.log(1));
    let exit = rig.run(limited(rig.spec(2, &["sh", "-c", "ulimit -v; ulimit -Hv"]), memory)).await;
    assert_eq!((exit.ending, rig.log(2).as_str()), (Ending::Code(0), "40960\n40960\n"));
}

pub(super) async fn what_cannot_be_held_does_not_start(rig: &mut Rig) {
    let cpus = Limits { cpu_millis: Some(500), ..Limits::default() };
    let pids = Limits { pids: Some(9), memory: Some(1 << 30), ..Limits::default() };
    for (limits, words) in [(cpus, "cpus 0.5"), (pids, "pids 9")] {
        let exit = rig.run(limited(rig.sh(1, "echo no"), limits)).await;
        let error = error_of(&exit);
        for part in ["cannot start \"sh\"", words, "no cgroups", "the tag cgroup"] {
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        }
    }
    assert_eq!(rig.log(1), "");
}
