//! One bad file holds up its own run at most.

use std::process::Command;

use super::volume::{Volume, files, read};

const FAST: [&str; 4] = ["--heartbeat", "500ms", "--lease", "2s"];

#[test]
fn an_empty_result_of_a_device_that_died_is_set_aside_and_its_run_goes_on() {
    let mut volume = Volume::new();
    volume.script("slow.sh", "test \"$AIOS_ATTEMPT\" -ge 2 || sleep 300");
    volume.job("slow", "file = \"slow.sh\"\n");
    volume.job("hello", "command = [\"true\"]\n");
    volume.start("a", &FAST);
    volume.drop_trigger("s.json", "{\"job\": \"slow\"}");
    volume.wait("it runs", |volume| volume.ledger().len() == 1);
    let state = volume.state().unwrap();
    let run = state["runs"].as_object().unwrap().keys().next().unwrap().clone();
    let day = format!("{}-{}-{}", &run[..4], &run[4..6], &run[6..8]);
    let result = volume.common(&format!("Results/{day}/slow.{run}.1.json"));
    std::fs::create_dir_all(result.parent().unwrap()).unwrap();
    volume.place(&result, "");
    volume.start("b", &FAST);
    volume.kill("a");
    volume.drop_trigger("h.json", "{\"job\": \"hello\"}");
    volume.wait("both runs have ended", |volume| volume.open_triggers().is_empty());
    volume.check("hello", 1);
    volume.check("slow", 1);
    assert_eq!(read(&result).unwrap()["status"], "lost");
    let kept = files(&volume.common("Results")).iter().any(|path| path.to_string_lossy().contains(".1.json.damaged-"));
    assert!(kept, "the damaged file is kept");
    // A beat and more in which nothing happens: nothing is committed.
    let before = volume.state().unwrap()["revision"].as_u64().unwrap();
    let beat = read(&volume.common("Devices/b.json")).unwrap()["beat"].as_u64().unwrap();
    volume.wait("four beats", |volume| {
        read(&volume.common("Devices/b.json")).is_some_and(|now| now["beat"].as_u64().unwrap() > beat + 4)
    });
    let after = volume.state().unwrap()["revision"].as_u64().unwrap();
    assert!(after - before < 4, "{before} to {after}: something is committed again and again");
}

#[test]
fn a_trigger_that_may_not_be_moved_waits_and_what_is_behind_it_runs() {
    let mut volume = Volume::on_disk();
    volume.job("hello", "command = [\"true\"]\n");
    let fixed = volume.common("Triggers/a0.json");
    std::fs::create_dir_all(volume.common("Triggers")).unwrap();
    volume.place(&fixed, "{\"job\": \"hello\"}");
    let chattr =
        |flag: &str| Command::new("chattr").arg(flag).arg(&fixed).output().is_ok_and(|done| done.status.success());
    if !chattr("+i") {
        eprintln!("skipped: no file can be made immutable here (chattr +i needs root and ext4, xfs or btrfs)");
        return;
    }
    volume.start("a", &["--slots", "1"]);
    volume.drop_trigger("b.json", "{\"job\": \"hello\"}");
    volume.wait("the other runs", |volume| volume.finals("hello") == 1);
    let status = String::from_utf8_lossy(&volume.command(&["status"]).output().unwrap().stdout).into_owned();
    let is_said = |volume: &Volume| {
        let status = volume.command(&["status"]).output().unwrap();
        let status = String::from_utf8_lossy(&status.stdout).into_owned();
        status.contains("a0.json") && status.contains("everything else goes on")
    };
    volume.wait(&format!("status names it: {status}"), is_said);
    assert!(chattr("-i"));
    volume.wait("it runs as well", |volume| volume.finals("hello") == 2);
}
