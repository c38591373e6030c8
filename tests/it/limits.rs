//! Limits of jobs and devices: what a run may use, where that is said, and how people change it.

use std::path::{Path, PathBuf};

use aios::exec::cgroup::Cgroups;
use rustix::process::Signal;
use serde_json::json;

use super::volume::Volume;

/// The shell itself holds what it reads.
const HOG: &str = "command = [\"sh\", \"-c\", \"x=$(head -c 60000000 /dev/zero | tr '\\\\0' x); echo ${#x}\"]\n";

/// Whether the device may make cgroups. Where they can be made, it must.
fn makes_cgroups(volume: &Volume, id: &str) -> bool {
    let tags = volume.beat(id).unwrap()["tags"].clone();
    let makes = tags.as_array().unwrap().contains(&json!("cgroup"));
    match Cgroups::look() {
        Ok(cgroups) => assert!(makes, "{} can be used, and {id} has the tags {tags}", cgroups.show()),
        Err(why) if !makes => println!("SKIPPED: no cgroups: {why}"),
        Err(_) => {}
    }
    makes
}

/// The groups of this volume's attempts.
fn groups(volume: &Volume) -> Vec<PathBuf> {
    let own = std::fs::read_to_string(volume.common(".volume")).unwrap();
    let begins = format!("aios:{}:", own.trim());
    let (mut found, mut open) = (Vec::new(), vec![Path::new("/sys/fs/cgroup").to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.extend(entry.file_name().to_string_lossy().starts_with(&begins).then(|| entry.path()));
                open.push(entry.path());
            }
        }
    }
    found
}

/// Ends the device as its own will, so that nothing of it stays.
fn leave(volume: &mut Volume, id: &str) {
    volume.signal(id, Signal::TERM);
    assert_eq!(volume.ended(id), Some(0));
    assert_eq!(groups(volume), [""; 0].map(PathBuf::from));
}

#[test]
fn a_run_that_takes_more_memory_than_its_job_allows_fails_and_says_so() {
    let mut volume = Volume::new();
    volume.job("hog", &format!("{HOG}limits.memory = \"24m\"\n"));
    volume.job("fine", &format!("{HOG}limits.memory = \"512m\"\n"));
    volume.start("a", &[]);
    volume.drop_trigger("hog.json", "{\"job\": \"hog\"}");
    volume.drop_trigger("fine.json", "{\"job\": \"fine\"}");
    assert_eq!(volume.outcome("fine")["status"], "succeeded");
    let result = volume.outcome("hog");
    assert_eq!((&result["status"], &result["executor"]), (&json!("failed"), &json!("native")), "{result}");
    if makes_cgroups(&volume, "a") {
        assert_eq!(result["error"], "killed because its memory limit of 24 MiB was used up");
    }
    leave(&mut volume, "a");
}

#[test]
fn default_limits_hold_are_changed_while_the_device_runs_and_stay_over_its_restart() {
    let mut volume = Volume::new();
    volume.job("hog", HOG);
    volume.start("a", &["--default-memory", "40m", "--slots", "3"]);
    let status = |volume: &Volume, number: usize| {
        volume.drop_trigger(&format!("hog{number}.json"), "{\"job\": \"hog\"}");
        volume.check("hog", number);
        volume.results("hog").last().unwrap()["status"].clone()
    };
    assert_eq!(status(&volume, 1), "failed");
    assert_eq!(volume.beat("a").unwrap()["limits"], json!({"memory": 40 << 20, "cpus": null, "pids": null}));
    let (code, answer) = volume.ask(&["devices", "limits", "a", "--memory", "none", "--slots", "2"]);
    assert_eq!((code, &answer["slots"], &answer["limits"]["memory"]), (Some(0), &json!(2), &json!(null)), "{answer}");
    let taken = |volume: &Volume| {
        let (beat, state) = (volume.beat("a").unwrap(), volume.state().unwrap());
        beat["slots"] == 2 && beat["limits"]["memory"].is_null() && state.get("settings").is_none()
    };
    volume.wait("it has taken that", taken);
    assert_eq!(status(&volume, 2), "succeeded");
    volume.kill("a");
    volume.start("a", &["--default-memory", "40m", "--slots", "3"]);
    assert!(taken(&volume), "{}", volume.beat("a").unwrap());
    assert_eq!(status(&volume, 3), "succeeded");
    // What is asked of a device that is away waits for it.
    leave(&mut volume, "a");
    assert_eq!(volume.ask(&["devices", "limits", "a", "--memory", "41m"]).0, Some(0));
    let (_, rows) = volume.ask(&["devices", "list"]);
    assert_eq!((&rows[0]["asked_limits"], &rows[0]["limits"]["memory"]), (&json!({"memory": 41 << 20}), &json!(null)));
    volume.start("a", &[]);
    volume.wait("it has taken that too", |volume| volume.beat("a").unwrap()["limits"]["memory"] == 41 << 20);
    assert_eq!(status(&volume, 4), "failed");
    let (_, rows) = volume.ask(&["devices", "list"]);
    assert_eq!((&rows[0]["slots"], &rows[0]["asked_limits"]), (&json!(2), &json!({})));
    leave(&mut volume, "a");
}

#[test]
fn fewer_slots_than_are_taken_stop_nothing_and_nothing_new_begins() {
    let mut volume = Volume::new();
    volume.script("slow.sh", &format!("until test -e {}; do sleep 0.05; done", volume.path("go").display()));
    volume.job("slow", "file = \"slow.sh\"\n");
    volume.start("a", &["--slots", "2"]);
    for number in 0..2 {
        volume.drop_trigger(&format!("s{number}.json"), "{\"job\": \"slow\"}");
    }
    volume.wait("both run", |volume| volume.ledger().len() == 2);
    assert_eq!(volume.ask(&["devices", "limits", "a", "--slots", "1"]).0, Some(0));
    volume.wait("it says so", |volume| volume.beat("a").unwrap()["slots"] == 1);
    volume.drop_trigger("s2.json", "{\"job\": \"slow\"}");
    volume.wait("it waits for a slot", |volume| {
        let (_, screen) = volume.ask(&["status"]);
        screen["waiting"][0]["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("every slot it could have is taken: a 2/1"))
    });
    assert_eq!(volume.ledger().len(), 2);
    std::fs::write(volume.path("go"), "").unwrap();
    volume.check("slow", 3);
    assert!(volume.results("slow").iter().all(|result| result["status"] == "succeeded" && result["attempt"] == 1));
}

#[test]
fn what_cannot_be_a_limit_or_a_device_is_refused() {
    let mut volume = Volume::new();
    volume.start("a", &[]);
    for (words, code) in [
        (&["a", "--memory", "5m"][..], 2),
        (&["a", "--cpus", "0"], 2),
        (&["a", "--pids", "many"], 2),
        (&["a", "--slots", "none"], 2),
        (&["b", "--slots", "1"], 3),
    ] {
        let said = volume.command(&["devices", "limits"]).args(words).output().unwrap();
        assert_eq!(said.status.code(), Some(code), "{words:?}: {said:?}");
        assert!(!said.stderr.is_empty());
    }
    let (code, answer) = volume.ask(&["devices", "limits", "a"]);
    assert_eq!((code, &answer["asked"]), (Some(0), &json!({})));
    assert_eq!(answer["limits"], json!({"memory": null, "cpus": null, "pids": null}));
}

#[test]
fn the_groups_that_a_killed_device_leaves_go_when_it_starts_again() {
    let mut volume = Volume::new();
    volume.script("slow.sh", "test \"$AIOS_ATTEMPT\" -ge 2 || sleep 300");
    volume.job("slow", "file = \"slow.sh\"\nlimits = {memory = \"1g\", cpus = 2, pids = 50}\n");
    volume.start("a", &[]);
    if !makes_cgroups(&volume, "a") {
        return;
    }
    volume.drop_trigger("slow.json", "{\"job\": \"slow\"}");
    volume.wait("it runs", |volume| volume.ledger().len() == 1);
    volume.kill("a");
    assert!(!groups(&volume).is_empty());
    volume.start("a", &[]);
    volume.check("slow", 1);
    leave(&mut volume, "a");
}
