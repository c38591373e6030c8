//! What is decided about cgroups, for machines that this one is not.

use super::*;

fn set(words: &str) -> BTreeSet<String> {
    words.split_ascii_whitespace().map(str::to_owned).collect()
}

#[test]
fn where_groups_are_made_goes_by_what_is_seen() {
    let dir = PathBuf::from("/g");
    let unified = Unified { dir: dir.clone(), has: set("cpu io memory pids"), may_write: true, ..Unified::default() };
    let two = |unified: Unified| choose(&Seen { unified: Some(unified), ..Seen::default() });
    let home = |moves| Ok(Home::Unified { dir: dir.clone(), moves });
    let rows = [
        ("a service alone in its group", Unified { is_alone: true, ..unified.clone() }, home(true)),
        ("a container's root", Unified { is_whole: true, ..unified.clone() }, home(true)),
        ("the machine's root", Unified { is_root: true, ..unified.clone() }, home(false)),
        ("a device that has moved", Unified { gives: set("pids memory cpu"), ..unified.clone() }, home(false)),
        ("a shell's group", unified.clone(), Err(Why::Shared(dir.clone()))),
        (
            "a container as engines make it",
            Unified { is_whole: true, may_write: false, ..unified.clone() },
            Err(Why::NotWritable(dir.clone())),
        ),
        (
            "a user's session without cpu",
            Unified { is_alone: true, has: set("memory pids"), ..unified.clone() },
            Err(Why::Missing("cpu".to_owned())),
        ),
    ];
    for (what, unified, expected) in rows {
        assert_eq!(two(unified), expected, "{what}");
    }
    let legacy = |may_write| {
        let place = |name: &str, may_write| Some((PathBuf::from(name), may_write));
        [place("/m", true), place("/c", may_write), place("/p", true)]
    };
    let none = Unified { has: set("hugetlb"), ..unified };
    let one = |legacy| choose(&Seen { unified: Some(none.clone()), legacy });
    assert_eq!(one(legacy(true)), Ok(Home::Legacy(["/m", "/c", "/p"].map(PathBuf::from))), "an old host");
    assert_eq!(one(legacy(false)), Err(Why::NotWritable(PathBuf::from("/c"))));
    assert_eq!(one([legacy(true)[0].clone(), None, None]), Err(Why::Missing("cpu, pids".to_owned())));
    assert_eq!(choose(&Seen::default()), Err(Why::Missing("memory, cpu, pids".to_owned())));
}

#[test]
fn the_own_groups_are_found_below_their_mounts() {
    let unified = |dir: &str, is_whole| Places { unified: Some((dir.into(), is_whole)), ..Places::default() };
    let host = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    assert_eq!(places(host, "0::/system.slice/a.service\n"), unified("/sys/fs/cgroup/system.slice/a.service", false));
    assert_eq!(places(host, "0::/\n"), unified("/sys/fs/cgroup", true));
    assert_eq!(
        places(host, "0::/a.service/aios-devices\n"),
        unified("/sys/fs/cgroup/a.service", false),
        "it has moved"
    );
    assert_eq!(places(host, "0::/aios-devices\n"), unified("/sys/fs/cgroup", true), "it has moved in a container");
    assert_eq!(places(host, "0::/../other\n"), Places::default(), "outside what this container sees");
    assert_eq!(places("", "0::/x\n"), Places::default());
    // A container on an old host: its own part of each hierarchy is mounted, and named by its path on the host.
    let old = "\
        40 30 0:30 /docker/abc /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory\n\
        41 30 0:31 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n\
        42 30 0:32 /docker/abc /sys/fs/cgroup/my\\040pids ro - cgroup cgroup rw,pids\n\
        43 30 0:33 / /sys/fs/cgroup/unified ro - cgroup2 cgroup2 rw\n";
    let groups = "9:name=systemd:/x\n8:pids:/docker/abc\n4:memory:/docker/abc/x\n2:cpu,cpuacct:/docker/abc\n0::/\n";
    let dirs = ["/sys/fs/cgroup/memory/x", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/my pids"];
    let expected = Places {
        unified: Some(("/sys/fs/cgroup/unified".into(), true)),
        legacy: dirs.map(|dir| Some(PathBuf::from(dir))),
    };
    assert_eq!(places(old, groups), expected);
    assert_eq!(places(old, "4:memory:/elsewhere\n"), Places::default());
}
