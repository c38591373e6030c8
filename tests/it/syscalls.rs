//! How many system calls a trigger costs its device from the drop to the last move, by kind, against a fixed budget.
//!
//! A budget that is passed is a cost that every run pays. Raise one only for something that is worth it.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};

use super::volume::Volume;

/// How many triggers are counted, one after the other.
const TRIGGERS: usize = 20;

/// A kind: its name, the calls that count for it, and how many of them a trigger may cost.
const BUDGET: [(&str, &[&str], usize); 11] = [
    ("opens", &["open", "openat"], 14),
    ("looks at files", &["stat", "lstat", "newfstatat", "statx", "fstat"], 13),
    ("listings", &["getdents64"], 4),
    ("reads", &["read", "pread64"], 15),
    ("writes", &["write", "pwrite64", "writev"], 8),
    ("moves and names", &["rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat"], 9),
    ("locks", &["flock"], 4),
    ("syncs", &["fsync", "fdatasync", "sync_file_range", "syncfs", "sync"], 0),
    ("new processes and threads", &["clone", "clone3", "fork", "vfork"], 1),
    ("new memory", &["mmap", "munmap", "brk", "mremap", "madvise"], 6),
    ("limits", &["prlimit64", "setrlimit"], 10),
];

/// Whether system calls can be traced here. Where the checks run, they can.
fn has_strace() -> bool {
    let tried = Command::new("strace").arg("-V").stdout(Stdio::null()).status();
    let has_it = tried.is_ok_and(|done| done.success()) || std::env::var_os("CI").is_some();
    if !has_it {
        println!("SKIPPED: there is no strace");
    }
    has_it
}

/// The calls of each thread that has not become another program, by name.
fn count(trace: &str) -> BTreeMap<String, usize> {
    let calls = || {
        trace.lines().filter_map(|line| {
            let (thread, call) = line.split_once(' ')?;
            let name = call.trim_start().split_once('(')?.0;
            let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            // A device on a busy machine looks for processes that are slow to end.
            let is_look = line.contains("\"/proc") || line.contains("</proc");
            (is_name && !is_look).then_some((thread, name))
        })
    };
    // Between the two a new process is still a copy of the device.
    let programs: BTreeSet<&str> = calls().filter(|(_, call)| *call == "execve").map(|(thread, _)| thread).collect();
    let mut counted = BTreeMap::new();
    for (_, call) in calls().filter(|(thread, _)| !programs.contains(thread)) {
        *counted.entry(call.to_owned()).or_default() += 1;
    }
    counted
}

#[test]
fn a_trigger_costs_no_more_system_calls_than_its_budget() {
    if !has_strace() {
        return;
    }
    let mut volume = Volume::new();
    volume.job("nop", "command = [\"/bin/true\"]\n");
    // No beat, no look at everything and no message in between.
    volume.start(
        "a",
        &["--heartbeat", "1h", "--lease", "10h", "--scan", "1h", "--log-level", "error", "--durability", "fast"],
    );
    let run = |volume: &Volume, number: usize| {
        volume.drop_trigger(&format!("n{number}.json"), "{\"job\": \"nop\"}");
        volume.wait("it has run, and its trigger is put away", |volume| {
            volume.finals("nop") == number && volume.state().is_some_and(|state| state["runs"] == serde_json::json!({}))
        });
    };
    // What is made once, at the first.
    (1..=3).for_each(|number| run(&volume, number));
    let pid = volume.beat("a").unwrap()["pid"].to_string();
    let trace = volume.path("trace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-y", "-qq", "-p", &pid, "-o"]).arg(&trace).stderr(Stdio::null());
    let mut strace = strace.spawn().unwrap();
    let status = format!("/proc/{pid}/status");
    volume.wait("it is traced", |_| {
        std::fs::read_to_string(&status).is_ok_and(|status| !status.contains("TracerPid:\t0\n"))
    });
    (4..4 + TRIGGERS).for_each(|number| run(&volume, number));
    rustix::process::kill_process(rustix::process::Pid::from_child(&strace), rustix::process::Signal::INT).unwrap();
    strace.wait().unwrap();
    let counted = count(&std::fs::read_to_string(&trace).unwrap());
    let mut over = Vec::new();
    for (kind, calls, most) in BUDGET {
        let found: usize = calls.iter().filter_map(|call| counted.get(*call)).sum();
        println!("{kind}: {:.1} a trigger, at most {most}", found as f64 / TRIGGERS as f64);
        if found > most * TRIGGERS {
            over.push(format!("{kind}: {found} for {TRIGGERS} triggers, at most {most} for each"));
        }
    }
    assert!(counted.get("renameat2").is_some_and(|moves| *moves >= TRIGGERS), "nothing was traced: {counted:?}");
    assert!(over.is_empty(), "{over:?}: {counted:?}");
}

#[test]
fn what_the_command_line_acknowledges_is_synced() {
    if !has_strace() {
        return;
    }
    let volume = Volume::new();
    volume.job("nop", "command = [\"true\"]\n");
    assert!(volume.command(&["init"]).status().unwrap().success());
    let (command, trace) = (volume.command(&["trigger", "nop"]), volume.path("trace"));
    let mut strace = Command::new("strace");
    strace.args(["-f", "-y", "-qq", "-e", "trace=fsync,syncfs", "-o"]).arg(&trace);
    strace.arg(command.get_program()).args(command.get_args()).stdout(Stdio::null());
    strace.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    assert!(strace.status().unwrap().success());
    let synced = std::fs::read_to_string(&trace).unwrap();
    assert!(synced.contains("Triggers/nop.") && synced.contains("Triggers>"), "the file and its folder: {synced}");
}
