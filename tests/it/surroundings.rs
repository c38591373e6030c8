//! A device in bad surroundings: a pipe that nobody reads, signals that are not for it, bytes that are no text, results too deep.

use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::json;

use super::volume::{Volume, read};

#[test]
fn a_device_whose_output_nobody_reads_goes_on() {
    let mut volume = Volume::new();
    volume.job("nop", "command = [\"true\"]\n");
    let mut command =
        volume.command(&["run", "--device-id", "a", "--http", "none", "--scan", "300ms", "--log-level", "trace"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut unread = child.stderr.take().unwrap();
    volume.devices.insert("a".to_owned(), child);
    volume.wait("a beats", |volume| volume.beat("a").is_some());
    // Far more than a pipe holds.
    for number in 0..600 {
        volume.drop_trigger(&format!("n{number}.json"), "{\"job\": \"nop\"}");
    }
    volume.wait("all have run", |volume| volume.finals("nop") == 600);
    let beat = volume.beat("a").unwrap()["beat"].as_u64();
    volume.wait("it still beats", |volume| volume.beat("a").unwrap()["beat"].as_u64() > beat);
    volume.signal("a", Signal::TERM);
    assert_eq!(volume.ended("a"), Some(0));
    let mut first = vec![0; 60_000];
    unread.read_exact(&mut first).unwrap();
}

#[test]
fn signals_that_are_not_for_it_lose_no_run() {
    let mut volume = Volume::new();
    volume.script("slow.sh", "while [ ! -e \"$AIOS_PROGRAMS/go\" ]; do sleep 0.02; done");
    volume.job("slow", "file = \"slow.sh\"\n");
    volume.start("a", &[]);
    volume.drop_trigger("s.json", "{\"job\": \"slow\"}");
    volume.wait("it runs", |volume| volume.ledger().len() == 1);
    for signal in [Signal::HUP, Signal::USR1, Signal::USR2, Signal::ALARM] {
        let beat = volume.beat("a").unwrap()["beat"].as_u64();
        volume.signal("a", signal);
        volume.wait("it beats on", |volume| volume.beat("a").unwrap()["beat"].as_u64() > beat);
    }
    volume
        .wait("it says that it looks again", |volume| volume.tell().contains("SIGHUP: everything is looked at again"));
    std::fs::write(volume.path("Programs/go"), "").unwrap();
    volume.check("slow", 1);
    assert_eq!(volume.results("slow")[0]["attempt"], 1);
    volume.signal("a", Signal::QUIT);
    assert_eq!(volume.ended("a"), Some(0), "SIGQUIT drains, as SIGTERM does");
}

#[test]
fn words_that_are_no_text_are_wrong_usage() {
    let volume = Volume::new();
    volume.job("nop", "command = [\"true\"]\n");
    let word = || std::ffi::OsString::from_vec(b"caf\xe9.json".to_vec());
    for verb in [&["trigger", "nop"][..], &["runs", "show"], &["--json", "runs", "show"], &["exec", "--"]] {
        let done = volume.command(&[]).args(verb).arg(word()).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(2), "{verb:?}: {said}");
        assert!(said.contains("UTF-8"), "{verb:?}: {said}");
    }
}

#[test]
fn a_result_too_deep_is_left_out_with_the_reason() {
    let mut volume = Volume::new();
    volume.place(&volume.path("Programs/deep.sh"), "awk \"BEGIN { for (i = 0; i < $1; i++) printf \\\"[\\\"; for (i = 0; i < $1; i++) printf \\\"]\\\" }\" >\"$AIOS_RESULT\"\n");
    volume.job("deep", "file = \"deep.sh\"\nargs = [101]\n");
    volume.job("fair", "file = \"deep.sh\"\nargs = [100]\n");
    volume.start("a", &[]);
    volume.drop_trigger("d.json", "{\"job\": \"deep\"}");
    volume.drop_trigger("f.json", "{\"job\": \"fair\"}");
    let (deep, fair) = (volume.outcome("deep"), volume.outcome("fair"));
    assert_eq!((&deep["status"], &deep["result"]), (&json!("succeeded"), &json!(null)), "{deep}");
    assert_eq!(deep["result_error"], "AIOS_RESULT has 101 levels, at most 100 are taken");
    assert!(fair["result"].is_array() && fair["result_error"].is_null(), "{fair}");
}

#[test]
fn no_job_is_called_all() {
    let volume = Volume::new();
    volume.job("all", "command = [\"true\"]\n");
    assert!(volume.command(&["init"]).status().unwrap().success());
    let done = volume.command(&["jobs", "validate"]).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.code() == Some(1) && said.contains("this stands for every job"), "{said}");
    let done = volume.command(&["jobs", "add", "--name", "all", "--command", "true"]).output().unwrap();
    assert_eq!(done.status.code(), Some(2), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn a_device_that_was_killed_is_waited_for_as_long_as_it_announced() {
    let mut volume = Volume::new();
    volume.script("slow.sh", "test \"$AIOS_ATTEMPT\" -ge 2 || sleep 300");
    volume.job("slow", "file = \"slow.sh\"\n");
    volume.start("a", &["--lease", "1h"]);
    volume.drop_trigger("s.json", "{\"job\": \"slow\"}");
    volume.wait("a holds it", |volume| volume.holder("slow").as_deref() == Some("a") && !volume.ledger().is_empty());
    volume.start("b", &["--lease", "600ms"]);
    volume.signal("a", Signal::STOP);
    // Five of b's leases.
    let beat = volume.beat("b").unwrap()["beat"].as_u64().unwrap();
    volume.wait("b beats on", |volume| volume.beat("b").unwrap()["beat"].as_u64() > Some(beat + 15));
    assert_eq!(volume.holder("slow").as_deref(), Some("a"), "b takes nothing away");
    let (_, status) = volume.ask(&["status"]);
    let problems = status["problems"].to_string();
    assert!(problems.contains("different leases: b has 600ms, a has 1h"), "{problems}");
    volume.signal("a", Signal::CONT);
    let state: Option<serde_json::Value> = read(&volume.common("state.json"));
    assert!(state.is_some());
}
