//! `doctor` as whoever calls it sees it: on a volume that is well, and on volumes that are not.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::volume::{Volume, mount_small, pause};

const CHECKS: [&str; 18] = [
    "file system",
    "rights",
    "space",
    "locks",
    "renames",
    "events",
    "clock",
    "state.json",
    "devices",
    "Programs",
    "job files",
    "secrets",
    "audit log",
    "device ids",
    "python3",
    "engine",
    "limits",
    "inotify",
];

/// A volume that a device has worked on and left.
fn left_volume() -> Volume {
    let mut volume = Volume::new();
    volume.job("t", "command = [\"true\"]\n");
    volume.start("a", &[]);
    volume.drop_trigger("t.json", "{\"job\": \"t\"}");
    volume.check("t", 1);
    volume.signal("a", rustix::process::Signal::TERM);
    assert_eq!(volume.ended("a"), Some(0));
    volume
}

/// The exit code, and what was found by each check.
fn doctor(volume: &Volume) -> (Option<i32>, BTreeMap<String, Value>) {
    let (code, answer) = volume.ask(&["doctor"]);
    let checks = answer["checks"].as_array().unwrap().clone();
    let names: Vec<&str> = checks.iter().map(|check| check["check"].as_str().unwrap()).collect();
    assert_eq!(names, CHECKS);
    for check in &checks {
        let is_ok = check["verdict"] == "ok";
        assert!(is_ok || ["warning", "error"].contains(&check["verdict"].as_str().unwrap()), "{check}");
        assert_eq!(check["mend"].is_null(), is_ok, "what is not ok can be mended: {check}");
    }
    let errors = checks.iter().filter(|check| check["verdict"] == "error").count();
    assert_eq!(code, Some(i32::from(errors > 0)), "{answer}");
    let by_name = checks.iter().map(|check| (check["check"].as_str().unwrap().to_owned(), check.clone()));
    (code, by_name.collect())
}

/// Everything in Common, hidden or not, with what is in it.
fn everything(volume: &Volume) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut all, mut open) = (BTreeMap::new(), vec![volume.path("Common")]);
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path.clone());
            }
            all.insert(path.clone(), std::fs::read(&path).unwrap_or_default());
        }
    }
    all
}

#[track_caller]
fn expect(checks: &BTreeMap<String, Value>, check: &str, verdict: &str, words: &[&str]) {
    let found = &checks[check];
    assert_eq!(found["verdict"], verdict, "{found}");
    let text = format!("{} {}", found["found"], found["mend"]);
    for word in words {
        assert!(text.contains(word), "{word:?} in {text}");
    }
}

#[test]
fn a_volume_that_is_well_is_said_to_be_and_left_as_it_was() {
    let volume = left_volume();
    let before = everything(&volume);
    let (code, checks) = doctor(&volume);
    assert_eq!(code, Some(0), "{checks:?}");
    assert_eq!(everything(&volume), before);
    for check in ["rights", "space", "locks", "renames", "events", "clock", "python3"] {
        expect(&checks, check, "ok", &[]);
    }
    expect(&checks, "state.json", "ok", &["schema 1"]);
    expect(&checks, "devices", "ok", &["0 of 1 alive"]);
    expect(&checks, "device ids", "ok", &["no device beats"]);
    expect(&checks, "job files", "ok", &["1"]);
    // People get a line each, aligned, and a sum; colours only if they are wanted.
    let said = String::from_utf8(volume.command(&["doctor"]).output().unwrap().stdout).unwrap();
    for check in CHECKS {
        assert!(
            said.lines().any(|line| line.get(9..).is_some_and(|rest| rest.starts_with(check))),
            "{check} in {said}"
        );
    }
    assert!(said.contains(&format!("{} checks: ", CHECKS.len())) && !said.contains('\x1b'), "{said}");
    let coloured = volume.command(&["doctor", "--color", "always"]).output().unwrap();
    assert!(String::from_utf8_lossy(&coloured.stdout).contains("\x1b[32mok     \x1b[0m  rights"));
}

#[test]
fn what_is_wrong_in_the_files_is_an_error_with_its_mend() {
    let volume = left_volume();
    volume.job("bad", "x");
    volume.job("py", "file = \"a.py\"\nfunction = \"f\"\n");
    std::fs::write(volume.common("state.json"), "{\"schema\":1,").unwrap();
    let (code, checks) = doctor(&volume);
    assert_eq!(code, Some(1));
    expect(&checks, "job files", "error", &["Programs/bad.toml:1:", "jobs validate"]);
    expect(&checks, "state.json", "error", &["does not parse"]);
    std::fs::write(volume.common("state.json"), "{\"schema\":2}").unwrap();
    expect(&doctor(&volume).1, "state.json", "error", &["schema 2", "knows 1", "newer program"]);
    volume.lose_state();
    expect(&doctor(&volume).1, "state.json", "warning", &["missing"]);
    let output = volume.command(&["doctor", "--json"]).env("PATH", "").output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let python = answer["checks"].as_array().unwrap().iter().find(|check| check["check"] == "python3").unwrap();
    assert_eq!((&python["verdict"], output.status.code()), (&json!("error"), Some(1)));
    assert!(python["found"].as_str().unwrap().contains("1 job runs under it"), "{python}");
    std::fs::remove_dir_all(volume.path("Programs")).unwrap();
    let (_, checks) = doctor(&volume);
    expect(&checks, "Programs", "error", &["cannot list", "--programs"]);
    expect(&checks, "job files", "error", &["cannot list"]);
}

#[test]
fn a_volume_that_cannot_be_written_is_an_error_and_what_needs_it_is_not_tried() {
    let volume = Volume::new();
    let common = volume.path("Common");
    let Some(_mounted) = mount_small(&common, "size=1m") else { return };
    std::fs::write(common.join(".volume"), "0123456789abcdef\n").unwrap();
    let (code, checks) = doctor(&volume);
    expect(&checks, "rights", "ok", &["8 are missing"]);
    expect(&checks, "file system", "warning", &["tmpfs", "in memory"]);
    expect(&checks, "state.json", "ok", &["none yet"]);
    expect(&checks, "job files", "warning", &["no job"]);
    assert_eq!(code, Some(0));
    let remounted = Command::new("mount").args(["-o", "remount,ro"]).arg(&common).status().unwrap();
    assert!(remounted.success());
    let (code, checks) = doctor(&volume);
    assert_eq!(code, Some(1));
    expect(&checks, "rights", "error", &["cannot write into", "read-only"]);
    expect(&checks, "file system", "warning", &["mounted read-only on"]);
    for check in ["locks", "renames", "events", "clock"] {
        expect(&checks, check, "warning", &["not tried"]);
    }
}

#[test]
fn two_devices_with_one_id_are_told_and_so_is_one_without_its_lock() {
    let mut volume = left_volume();
    volume.start("good", &[]);
    let beat = volume.beat("good").unwrap();
    let is_over = AtomicBool::new(false);
    let write = |id: &str, session: &str, count: u64| {
        let mut beat = beat.clone();
        (beat["device"], beat["session"], beat["beat"]) = (json!(id), json!(session), json!(count));
        let aside = volume.path(&format!("{id}.aside"));
        std::fs::write(&aside, beat.to_string()).unwrap();
        std::fs::rename(&aside, volume.common(&format!("Devices/{id}.json"))).unwrap();
    };
    let (code, checks) = std::thread::scope(|threads| {
        threads.spawn(|| {
            let mut count = 0;
            while !is_over.load(Ordering::Acquire) {
                count += 1;
                write("twin", ["00000000000000aa", "00000000000000bb"][usize::from(count % 2 == 1)], count);
                write("bare", "00000000000000cc", count);
                // Longer than a look takes to come round.
                (0..40).for_each(|_| pause());
            }
        });
        volume.wait("both beat", |volume| volume.beat("twin").is_some() && volume.beat("bare").is_some());
        let looked = doctor(&volume);
        is_over.store(true, Ordering::Release);
        looked
    });
    assert_eq!(code, Some(1));
    let words = ["two devices go by the id twin", "bare beats", "nobody holds Devices/bare.lock", "--device-id"];
    expect(&checks, "device ids", "error", &words);
    assert!(!checks["device ids"]["found"].as_str().unwrap().contains("good"), "{checks:?}");
    assert!(!volume.common("Devices/bare.lock").exists(), "it is not made either");
}

#[test]
fn the_self_test_passes_and_leaves_the_volume_as_it_was() {
    let volume = left_volume();
    let before = everything(&volume);
    let (code, answer) = volume.ask(&["--test"]);
    assert_eq!((code, &answer["failed"]), (Some(0), &json!(0)), "{answer}");
    assert_eq!(everything(&volume), before);
}
