//! Devices as processes of the real binary on one volume: killed, stopped, hurt, and held to an outside ledger.
//!
//! Each job appends a line to a file that the orchestrator does not know. What was done is judged by that ledger and by the
//! files of the volume, read as plain JSON. Nothing sleeps to let something happen: everything is waited for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use aios::volume::disk::Disk;
use aios::volume::os::OsDisk;
use serde_json::Value;

use super::volume::{PATIENCE, Volume, files, mount_small, pause, processes_of, read};

#[test]
fn three_devices_share_the_work_and_do_each_thing_once() {
    let mut volume = Volume::new();
    volume.script("note.sh", "");
    volume.job("note", "file = \"note.sh\"\n");
    for id in ["a", "b", "c"] {
        volume.start(id, &[]);
    }
    for number in 0..300 {
        volume.drop_trigger(&format!("n{number}.json"), &format!("{{\"job\": \"note\", \"args\": [{number}]}}"));
    }
    volume.check("note", 300);
    assert_eq!(volume.ledger().len(), 300, "each ran once");
    let devices: std::collections::BTreeSet<String> =
        volume.results("note").iter().map(|result| result["device"].to_string()).collect();
    assert!(devices.len() > 1, "only {devices:?} worked");
}

#[test]
fn devices_are_killed_again_and_again_and_nothing_is_lost_or_doubled() {
    let mut volume = Volume::new();
    volume.script("work.sh", "sleep 0.05");
    // A device may die under one run more than three times in a row here: each failure to finish counts once.
    volume.job("work", "file = \"work.sh\"\n");
    for id in ["a", "b", "c"] {
        volume.start(id, &["--slots", "8"]);
    }
    let mut chance: u64 = 0x5eed;
    for number in 0..120 {
        volume.drop_trigger(&format!("w{number}.json"), "{\"job\": \"work\"}");
        if number % 10 == 9 {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let id = ["a", "b", "c"][usize::try_from((chance >> 33) % 3).unwrap()];
            volume.kill(id);
            volume.start(id, &["--slots", "8"]);
        }
    }
    volume.check("work", 120);
    for result in volume.results("work").iter().filter(|result| result["final"] == true) {
        let status = result["status"].as_str().unwrap();
        assert!(["succeeded", "lost"].contains(&status), "{result}");
    }
}

#[test]
fn a_device_that_stood_still_past_its_lease_is_fenced() {
    let mut volume = Volume::new();
    volume.script("slow.sh", "test \"$AIOS_ATTEMPT\" -ge 2 || sleep 300");
    volume.job("slow", "file = \"slow.sh\"\n");
    volume.start("a", &[]);
    volume.drop_trigger("s.json", "{\"job\": \"slow\"}");
    volume.wait("a holds it", |volume| volume.holder("slow").as_deref() == Some("a") && !volume.ledger().is_empty());
    volume.start("b", &[]);
    volume.signal("a", rustix::process::Signal::STOP);
    volume.wait("b has run it again", |volume| volume.finals("slow") == 1);
    volume.signal("a", rustix::process::Signal::CONT);
    volume.wait("what a reports is kept as superseded", |volume| {
        volume.results("slow").iter().any(|result| result["status"] == "superseded")
    });
    let results = volume.results("slow");
    let of = |status: &str| results.iter().find(|result| result["status"] == status).unwrap();
    assert_eq!(
        (&of("lost")["attempt"], &of("lost")["device"], &of("lost")["final"]),
        (&1.into(), &"a".into(), &false.into())
    );
    assert_eq!((&of("succeeded")["attempt"], &of("succeeded")["device"]), (&2.into(), &"b".into()));
    assert_eq!(of("superseded")["final"], false);
    let run = of("lost")["run_id"].as_str().unwrap().to_owned();
    volume.wait("the late process is gone", |_| processes_of(&run).is_empty());
    volume.check("slow", 1);
}

#[test]
fn a_device_that_wakes_up_works_at_once_and_is_not_taken_for_dead() {
    let mut volume = Volume::new();
    volume.script("note.sh", "sleep 0.3");
    volume.job("note", "file = \"note.sh\"\n");
    volume.start("a", &[]);
    volume.start("b", &[]);
    volume.signal("a", rustix::process::Signal::STOP);
    volume.wait("a counts as dead", |volume| {
        let (_, devices) = volume.ask(&["devices", "list"]);
        devices.as_array().unwrap().iter().any(|device| device["device"] == "a" && device["alive"] == false)
    });
    volume.drop_trigger("n.json", "{\"job\": \"note\", \"tags\": [\"a\"]}");
    volume.signal("a", rustix::process::Signal::CONT);
    volume.check("note", 1);
    let results = volume.results("note");
    assert_eq!((results.len(), &results[0]["status"]), (1, &"succeeded".into()), "{results:?}");
}

#[test]
fn an_empty_folder_in_the_place_of_the_volume_is_left_alone() {
    let mut volume = Volume::new();
    volume.script("slow.sh", "while [ ! -e \"$AIOS_PROGRAMS/go\" ]; do sleep 0.02; done");
    volume.job("slow", "file = \"slow.sh\"\n");
    volume.start("a", &[]);
    volume.drop_trigger("s.json", "{\"job\": \"slow\"}");
    volume.wait("it runs", |volume| volume.ledger().len() == 1);
    std::fs::rename(volume.path("Common"), volume.path("Away")).unwrap();
    std::fs::create_dir(volume.path("Common")).unwrap();
    volume.wait("it says so", |volume| volume.tell().contains("holds no .volume"));
    assert_eq!(files(&volume.path("Common")), Vec::<PathBuf>::new());
    assert_eq!(std::fs::read_dir(volume.path("Common")).unwrap().count(), 0);
    std::fs::remove_dir(volume.path("Common")).unwrap();
    std::fs::rename(volume.path("Away"), volume.path("Common")).unwrap();
    std::fs::write(volume.path("Programs/go"), "").unwrap();
    volume.check("slow", 1);
    assert_eq!(volume.ledger().len(), 1);
}

#[test]
fn a_device_that_comes_back_ends_what_it_left_running_and_goes_on_at_once() {
    let mut volume = Volume::new();
    volume.script("long.sh", "test \"$AIOS_ATTEMPT\" -ge 2 || setsid sleep 300");
    volume.job("long", "file = \"long.sh\"\n");
    volume.start("a", &["--lease", "60s"]);
    volume.drop_trigger("l.json", "{\"job\": \"long\"}");
    volume.wait("it runs", |volume| volume.ledger().len() == 1);
    volume.kill("a");
    let run = volume.state().unwrap()["runs"].as_object().unwrap().keys().next().unwrap().clone();
    assert!(!processes_of(&run).is_empty(), "the orphan should have outlived its device");
    // With a lease of a minute nobody else would have it so soon.
    volume.start("a", &["--lease", "60s"]);
    volume.check("long", 1);
    assert_eq!(processes_of(&run), Vec::<String>::new());
    assert_eq!(volume.results("long").len(), 2);
}

#[test]
fn a_second_device_of_one_id_is_refused_and_force_takes_over() {
    let mut volume = Volume::new();
    volume.start("a", &[]);
    let first = volume.beat("a").unwrap();
    let refused = volume.command(&["run", "--device-id", "a", "--quiet"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(5));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    for word in ["the device id a is in use", &first["pid"].to_string(), first["host"].as_str().unwrap(), "hint:"] {
        assert!(said.contains(word), "{word:?} in {said}");
    }
    let mut old = volume.devices.remove("a").unwrap();
    let child = volume.spawn("a", &["--force"]);
    volume.devices.insert("a".into(), child);
    let until = Instant::now() + PATIENCE;
    while old.try_wait().unwrap().is_none() {
        assert!(Instant::now() < until, "the first device stays\n{}", volume.tell());
        pause();
    }
    assert_eq!(old.wait().unwrap().code(), Some(5));
    volume.job("t", "command = [\"true\"]\n");
    volume.drop_trigger("t.json", "{\"job\": \"t\"}");
    volume.check("t", 1);
}

#[test]
fn force_ends_the_attempts_of_the_other_life_and_runs_them_again() {
    let mut volume = Volume::new();
    volume.script("slow.sh", "test \"$AIOS_ATTEMPT\" -ge 2 || sleep 300");
    volume.job("slow", "file = \"slow.sh\"\n");
    volume.start("a", &[]);
    volume.drop_trigger("s.json", "{\"job\": \"slow\"}");
    volume.wait("it runs", |volume| volume.ledger().len() == 1);
    let old = volume.devices.remove("a").unwrap();
    let child = volume.spawn("a", &["--force"]);
    volume.devices.insert("a".into(), child);
    volume.devices.insert("old".into(), old);
    assert_eq!(volume.ended("old"), Some(5));
    volume.check("slow", 1);
    let ends: Vec<(Value, Value)> =
        volume.results("slow").iter().map(|result| (result["status"].clone(), result["attempt"].clone())).collect();
    assert_eq!(ends, [("lost".into(), 1.into()), ("succeeded".into(), 2.into())]);
}

#[test]
fn a_damaged_file_in_running_is_put_aside_and_holds_nothing_up() {
    let mut volume = Volume::new();
    volume.job("t", "command = [\"true\"]\n");
    volume.start("a", &[]);
    volume.drop_trigger("t.json", "{\"job\": \"t\"}");
    volume.check("t", 1);
    volume.kill("a");
    volume.lose_state();
    std::fs::write(volume.common("Triggers/.running/20261121T034156123Z-k3f9q2.1.torn.json"), "{\"job\": ").unwrap();
    volume.drop_trigger("u.json", "{\"job\": \"t\"}");
    volume.start("a", &[]);
    volume.check("t", 2);
    let rejected: Vec<PathBuf> = files(&volume.common("TriggersProcessed/rejected"));
    let note = rejected.iter().find(|path| path.to_string_lossy().ends_with(".error.json")).unwrap();
    assert_eq!(read(note).unwrap()["name"], "torn.json");
}

#[test]
fn a_device_that_is_asked_to_leave_hands_its_run_back() {
    let mut volume = Volume::new();
    volume.script("slow.sh", "test \"$AIOS_ATTEMPT\" -ge 2 || sleep 300");
    volume.job("slow", "file = \"slow.sh\"\n");
    volume.start("a", &["--stop-grace", "100ms"]);
    volume.drop_trigger("s.json", "{\"job\": \"slow\"}");
    volume.wait("it runs", |volume| volume.ledger().len() == 1);
    volume.signal("a", rustix::process::Signal::TERM);
    assert_eq!(volume.ended("a"), Some(0));
    let handed_back = &volume.results("slow")[0];
    assert_eq!((&handed_back["status"], &handed_back["final"]), (&"cancelled".into(), &false.into()));
    volume.start("b", &[]);
    volume.check("slow", 1);
}

#[test]
fn a_state_that_is_lost_or_damaged_is_made_again_around_what_runs() {
    for damage in [None, Some("{\"schema\":1,\"rev"), Some("")] {
        let mut volume = Volume::new();
        volume.script("slow.sh", "while [ ! -e \"$AIOS_COMMON/go\" ]; do sleep 0.02; done");
        volume.job("slow", "file = \"slow.sh\"\noverlap = \"queue\"\n");
        volume.start("a", &[]);
        volume.start("b", &[]);
        volume.drop_trigger("one.json", "{\"job\": \"slow\"}");
        volume.wait("it runs", |volume| volume.ledger().len() == 1);
        let before = volume.state().unwrap()["revision"].as_u64().unwrap();
        match damage {
            None => volume.lose_state(),
            Some(text) => std::fs::write(volume.common("state.json"), text).unwrap(),
        }
        volume.drop_trigger("two.json", "{\"job\": \"slow\"}");
        volume.wait("the run is named again", |volume| {
            volume.state().is_some_and(|state| state["runs"].as_object().is_some_and(|runs| runs.len() == 1))
        });
        assert!(volume.state().unwrap()["revision"].as_u64().unwrap() > before);
        assert_eq!(volume.ledger().len(), 1, "nothing was started a second time");
        std::fs::write(volume.common("go"), "").unwrap();
        volume.check("slow", 2);
        let kept = files(&volume.common("")).iter().any(|path| path.to_string_lossy().contains("state.json.corrupt-"));
        assert_eq!(kept, damage.is_some(), "a damaged state is kept");
    }
}

#[test]
fn a_state_of_which_only_the_copy_is_lost_is_there_again_as_it_was() {
    for damage in [None, Some("{\"schema\":1,\"rev")] {
        let mut volume = Volume::new();
        volume.job("t", "command = [\"true\"]\n");
        volume.start("a", &[]);
        volume.drop_trigger("one.json", "{\"job\": \"t\"}");
        volume.check("t", 1);
        let before = volume.state().unwrap()["revision"].as_u64().unwrap();
        std::fs::remove_file(volume.common("state.json")).unwrap();
        if let Some(text) = damage {
            volume.place(&volume.common("state.json"), text);
        }
        volume.drop_trigger("two.json", "{\"job\": \"t\"}");
        volume.check("t", 2);
        let after = volume.state().unwrap();
        assert!(after["revision"].as_u64().unwrap() < before + 100 && after.get("rebuilt").is_none(), "{after}");
        let kept = files(&volume.common("")).iter().any(|path| path.to_string_lossy().contains("state.json.corrupt-"));
        assert_eq!(kept, damage.is_some(), "a damaged copy is kept");
    }
}

#[test]
fn a_lock_whose_holder_stands_still_is_passed_by() {
    let mut volume = Volume::new();
    volume.job("t", "command = [\"true\"]\n");
    volume.start("a", &["--heartbeat", "500ms", "--lease", "2s"]);
    volume.drop_trigger("one.json", "{\"job\": \"t\"}");
    volume.check("t", 1);
    let path = volume.common(".state.lock");
    // The device holds it now and then.
    let guard = std::cell::RefCell::new(None);
    volume.wait("the lock is free", |_| {
        *guard.borrow_mut() = OsDisk::new().lock(&path).unwrap();
        guard.borrow().is_some()
    });
    volume.drop_trigger("two.json", "{\"job\": \"t\"}");
    volume.check("t", 2);
    assert!(volume.tell().contains("its holder stands still"), "{}", volume.tell());
    drop(guard);
    volume.drop_trigger("three.json", "{\"job\": \"t\"}");
    volume.check("t", 3);
}

#[test]
fn a_newer_state_ends_a_device_once_its_runs_are_over() {
    let mut volume = Volume::new();
    volume.script("slow.sh", "while [ ! -e \"$AIOS_COMMON/go\" ]; do sleep 0.02; done");
    volume.job("slow", "file = \"slow.sh\"\n");
    volume.start("a", &[]);
    volume.drop_trigger("one.json", "{\"job\": \"slow\"}");
    volume.wait("it runs", |volume| volume.ledger().len() == 1);
    let newer = std::fs::read_to_string(volume.common("state.json")).unwrap().replace("\"schema\":1", "\"schema\":2");
    std::fs::write(volume.path("newer"), &newer).unwrap();
    std::fs::rename(volume.path("newer"), volume.common("state.json")).unwrap();
    volume.wait("it says so", |volume| volume.tell().contains("install the newer program"));
    std::fs::write(volume.common("go"), "").unwrap();
    assert_eq!(volume.ended("a"), Some(4));
    assert_eq!(volume.finals("slow"), 1, "what ran is recorded");
    assert_eq!(std::fs::read_to_string(volume.common("state.json")).unwrap(), newer, "the state is left alone");
    let status = volume.command(&["status"]).output().unwrap();
    assert_eq!(status.status.code(), Some(4));
    let said = String::from_utf8_lossy(&status.stderr).into_owned();
    assert!(said.contains("schema 2") && said.contains("knows 1"), "{said}");
}

#[test]
fn a_full_disk_stops_nothing_for_good() {
    let mut volume = Volume::new();
    let common = volume.path("Common");
    let Some(_mounted) = mount_small(&common, "size=1m") else { return };
    volume.script("slow.sh", "while [ ! -e \"$AIOS_PROGRAMS/go\" ]; do sleep 0.02; done");
    volume.job("slow", "file = \"slow.sh\"\n");
    volume.start("a", &["--slots", "1"]);
    volume.drop_copy("one.json", "{\"job\": \"slow\"}");
    volume.wait("it runs", |volume| volume.ledger().len() == 1);
    volume.drop_copy("two.json", "{\"job\": \"slow\"}");
    fill(&common.join("ballast"));
    std::fs::write(volume.path("Programs/go"), "").unwrap();
    volume.wait("it says that the disk is full", |volume| volume.tell().contains("no space left"));
    assert_eq!(volume.ledger().len(), 1, "nothing new is claimed on a full disk");
    std::fs::remove_file(common.join("ballast")).unwrap();
    volume.check("slow", 2);
    volume.kill("a");
    // Started on a full disk it waits, and says so.
    fill(&common.join("ballast"));
    let child = volume.spawn("a", &[]);
    volume.devices.insert("a".into(), child);
    volume.wait("it says so", |volume| volume.tell().matches("no space left").count() > 1);
    std::fs::remove_file(common.join("ballast")).unwrap();
    volume.drop_copy("three.json", "{\"job\": \"slow\"}");
    volume.check("slow", 3);
}

/// Writes until nothing more fits.
fn fill(path: &Path) {
    use std::io::Write as _;
    let mut file = std::fs::File::create(path).unwrap();
    for size in [65_536, 4_096] {
        while file.write_all(&vec![b'x'; size]).is_ok() {}
    }
}

#[test]
fn odd_files_are_put_aside_whole_with_the_reason() {
    use std::os::unix::ffi::OsStrExt as _;
    let mut volume = Volume::new();
    volume.job("known", "command = [\"true\"]\n");
    volume.start("a", &[]);
    let inbox = volume.common("Triggers");
    std::fs::create_dir(inbox.join("folder.json")).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", inbox.join("link.json")).unwrap();
    Command::new("mkfifo").arg(inbox.join("fifo.json")).status().unwrap();
    std::fs::write(inbox.join("huge.json"), vec![b' '; (1 << 20) + 1]).unwrap();
    std::fs::write(inbox.join("empty.json"), "").unwrap();
    std::fs::write(inbox.join("typo.json"), "{\"job\": \"known\",\n \"arsg\": []}").unwrap();
    std::fs::write(inbox.join("two\nlines.json"), "{").unwrap();
    std::fs::write(inbox.join(std::ffi::OsStr::from_bytes(b"not\xffutf8.json")), "[]").unwrap();
    std::fs::write(inbox.join(format!("{}.json", "x".repeat(250))), "{\"job\": \"known\"}").unwrap();
    std::fs::write(inbox.join("bom.json"), b"\xef\xbb\xbf{\"job\": \"known\"}").unwrap();
    std::fs::write(inbox.join("not-a-trigger.txt"), "left alone").unwrap();
    let rejected = volume.common("TriggersProcessed/rejected");
    volume.wait("eight are rejected", |_| {
        files(&rejected).iter().filter(|path| path.to_string_lossy().ends_with(".error.json")).count() == 8
    });
    let notes: BTreeMap<String, Value> = files(&rejected)
        .iter()
        .filter(|path| path.to_string_lossy().ends_with(".error.json"))
        .map(|path| read(path).unwrap())
        .map(|note| (note["name"].as_str().unwrap().to_owned(), note))
        .collect();
    let typo = &notes["typo.json"];
    assert_eq!((&typo["line"], &typo["column"], &typo["device"]), (&2.into(), &2.into(), &"a".into()));
    assert!(typo["hint"].as_str().unwrap().contains("args"), "{typo}");
    for (name, word) in
        [("folder.json", "folder"), ("link.json", "link"), ("fifo.json", "FIFO"), ("huge.json", "1048577")]
    {
        assert!(notes[name]["error"].as_str().unwrap().contains(word), "{}", notes[name]);
    }
    let kept = files(&rejected)
        .into_iter()
        .find(|path| path.to_string_lossy().contains("/typo.") && !path.to_string_lossy().contains("error"));
    assert_eq!(std::fs::read_to_string(kept.unwrap()).unwrap(), "{\"job\": \"known\",\n \"arsg\": []}");
    volume.wait("the two good ones ran", |volume| volume.finals("known") == 2);
    assert!(inbox.join("not-a-trigger.txt").exists());
}

#[test]
fn what_disappears_is_made_again_and_seen_again() {
    let mut volume = Volume::new();
    volume.job("t", "command = [\"true\"]\n");
    volume.start("a", &[]);
    // In one step: a device makes it again as soon as it misses it.
    std::fs::rename(volume.common("Triggers"), volume.path("Gone")).unwrap();
    volume.wait("the folder is there again", |volume| volume.common("Triggers/.running").is_dir());
    volume.drop_trigger("t.json", "{\"job\": \"t\"}");
    volume.check("t", 1);
    std::fs::rename(volume.path("Programs"), volume.path("Away")).unwrap();
    volume.wait("it says that Programs is gone", |volume| volume.tell().contains("cannot list"));
    volume.drop_trigger("v.json", "{\"job\": \"t\"}");
    volume.drop_trigger("w.json", "{\"command\": [\"true\"]}");
    std::fs::rename(volume.path("Away"), volume.path("Programs")).unwrap();
    volume.check("t", 2);
    assert!(volume.results("t").iter().all(|result| result["status"] == "succeeded"));
    assert_eq!(volume.outcome("w")["status"], "succeeded");
}

#[test]
fn without_file_events_the_scan_finds_everything() {
    let mut volume = Volume::new();
    volume.job("t", "command = [\"true\"]\n");
    volume.start("a", &["--watch", "poll"]);
    for number in 0..20 {
        volume.drop_trigger(&format!("p{number}.json"), "{\"job\": \"t\"}");
    }
    volume.check("t", 20);
}

#[test]
fn a_burst_of_twenty_thousand_is_done_once_each() {
    let mut volume = Volume::new();
    volume.start("a", &["--slots", "16", "--log-level", "warn"]);
    // More than the kernel's queue of file events holds.
    let aside = volume.path("many");
    std::fs::create_dir(&aside).unwrap();
    for number in 0..20_000 {
        std::fs::write(aside.join(format!("b{number}.json")), "{\"command\": [\"/bin/true\"]}").unwrap();
    }
    for number in 0..20_000 {
        let name = format!("b{number}.json");
        std::fs::rename(aside.join(&name), volume.common("Triggers").join(&name)).unwrap();
    }
    let until = Instant::now() + PATIENCE * 5;
    let mut done = 0;
    while done < 20_000 {
        assert!(Instant::now() < until, "{done} of 20,000 are done\n{}", volume.tell());
        std::thread::sleep(Duration::from_millis(200));
        done = files(&volume.common("TriggersProcessed")).len();
    }
    let results = files(&volume.common("Results"));
    assert_eq!(results.len(), 20_000, "one result each");
}
