//! Triggers on a running device: how they may be written, when they run, in which order, and why not.

use serde_json::{Value, json};

use super::volume::{Volume, files, read};

/// What `status` says of each trigger that waits, by the name it was dropped under.
fn reason(volume: &Volume, trigger: &str) -> Option<String> {
    let (_, screen) = volume.ask(&["status"]);
    let waiting = screen["waiting"].as_array().unwrap();
    let found = waiting.iter().find(|waiting| waiting["trigger"] == trigger)?;
    Some(found["reason"].as_str().unwrap().to_owned())
}

fn waits_because(volume: &Volume, trigger: &str, word: &str) {
    volume.wait(&format!("{trigger} waits because of {word:?}"), |volume| {
        reason(volume, trigger).is_some_and(|reason| reason.contains(word))
    });
}

fn rejections(volume: &Volume) -> Vec<Value> {
    let notes = files(&volume.common("TriggersProcessed/rejected")).into_iter();
    notes.filter(|path| path.to_string_lossy().ends_with(".error.json")).map(|path| read(&path).unwrap()).collect()
}

#[test]
fn a_slow_writer_is_waited_for() {
    let mut volume = Volume::new();
    volume.job("t", "command = [\"true\"]\n");
    volume.start("a", &[]);
    let text = "{\"job\": \"t\", \"args\": [1, 2, 3]}";
    for end in 1..text.len() {
        // Each piece makes the file younger again.
        volume.drop_copy("slow.json", &text[..end]);
    }
    volume.wait("it may still be written", |volume| {
        volume.drop_copy("slow.json", &text[..text.len() - 1]);
        reason(volume, "slow.json").is_some_and(|reason| reason.contains("may still be written"))
    });
    volume.drop_copy("slow.json", text);
    assert_eq!(volume.outcome("t")["args"], json!([1, 2, 3]));
    volume.drop_copy("never.json", &text[..9]);
    volume.wait("what stays broken is rejected", |volume| {
        rejections(volume).iter().any(|rejection| rejection["name"] == "never.json")
    });
}

#[test]
fn a_time_is_waited_for_and_an_expired_one_never_runs() {
    let mut volume = Volume::new();
    volume.script("note.sh", "");
    volume.job("note", "file = \"note.sh\"\n");
    volume.job("gone", "file = \"note.sh\"\n");
    volume.start("a", &[]);
    let at = |seconds: i64| (chrono::Utc::now() + chrono::TimeDelta::seconds(seconds)).to_rfc3339();
    volume.drop_trigger("late.json", &format!("{{\"job\": \"gone\", \"expires\": \"{}\"}}", at(-1)));
    assert_eq!((&volume.outcome("gone")["status"], &volume.outcome("gone")["attempt"]), (&json!("expired"), &json!(0)));
    volume.drop_trigger("soon.json", &format!("{{\"job\": \"note\", \"time\": \"{}\"}}", at(6)));
    waits_because(&volume, "soon.json", "its time is");
    assert_eq!(volume.ledger().len(), 0);
    let result = volume.outcome("note");
    assert_eq!(volume.ledger().len(), 1);
    let when = |key: &str| chrono::DateTime::parse_from_rfc3339(result[key].as_str().unwrap()).unwrap();
    assert!(when("started_at") - when("created_at") > chrono::TimeDelta::seconds(1), "{result}");
}

#[test]
fn an_idempotency_key_makes_one_run_of_many_triggers() {
    let mut volume = Volume::new();
    volume.script("note.sh", "");
    volume.job("note", "file = \"note.sh\"\n");
    volume.start("a", &[]);
    volume.start("b", &[]);
    for number in 0..20 {
        volume.drop_trigger(&format!("k{number}.json"), "{\"job\": \"note\", \"id\": \"once a day\"}");
    }
    volume.wait("all are put away", |volume| files(&volume.common("TriggersProcessed")).len() == 20);
    volume.wait("it is over", |volume| volume.finals("note") == 1);
    assert_eq!(volume.ledger().len(), 1);
    let first = volume.results("note")[0]["run_id"].as_str().unwrap().to_owned();
    let duplicates = files(&volume.common("TriggersProcessed"));
    let named =
        duplicates.iter().filter(|path| path.to_string_lossy().ends_with(&format!("duplicate-of.{first}.json")));
    assert_eq!(named.count(), 19);
    // Whatever name it was dropped under, asking for it shows the one run.
    for name in ["k0.json", "k19.json"] {
        assert_eq!(volume.ask(&["runs", "show", name]).1["run_id"], first.as_str(), "{name}");
    }
}

#[test]
fn a_key_that_no_longer_counts_is_taken_over_by_one_trigger_only() {
    let mut volume = Volume::new();
    volume.script("note.sh", "");
    volume.job("note", "file = \"note.sh\"\n");
    volume.start("a", &[]);
    volume.drop_trigger("first.json", "{\"job\": \"note\", \"id\": \"k\"}");
    volume.wait("the first is over", |volume| volume.finals("note") == 1);
    let key = std::fs::read_dir(volume.common("Triggers/.ids")).unwrap().next().unwrap().unwrap().path();
    volume.kill("a");
    std::fs::write(&key, "no JSON").unwrap();
    for number in 0..5 {
        volume.drop_trigger(&format!("k{number}.json"), "{\"job\": \"note\", \"id\": \"k\"}");
    }
    volume.start("a", &["--slots", "8"]);
    volume.wait("all are put away", |volume| files(&volume.common("TriggersProcessed")).len() == 6);
    volume.wait("it is over", |volume| volume.finals("note") == 2);
    assert_eq!(volume.ledger().len(), 2);
}

#[test]
fn what_was_taken_and_never_started_still_waits_for_its_time_and_may_expire() {
    let mut volume = Volume::new();
    volume.script("note.sh", "");
    volume.job("note", "file = \"note.sh\"\n");
    volume.job("gone", "file = \"note.sh\"\n");
    volume.start("a", &[]);
    // As a crash between the rename and the commit leaves them.
    let at = |seconds: i64| (chrono::Utc::now() + chrono::TimeDelta::seconds(seconds)).to_rfc3339();
    let running = |name: &str| volume.common("Triggers/.running").join(name);
    let later = format!("{{\"job\": \"note\", \"time\": \"{}\"}}", at(3_600));
    volume.place(&running("20261121T034156123Z-k3f9q2.1.later.json"), &later);
    let late = format!("{{\"job\": \"gone\", \"expires\": \"{}\"}}", at(-3_600));
    volume.place(&running("20261121T034156123Z-k3f9q3.1.late.json"), &late);
    assert_eq!(volume.outcome("gone")["status"], "expired");
    let waits = |volume: &Volume| std::fs::read_dir(volume.common("Triggers/.waiting")).unwrap().count();
    volume.wait("the other waits", |volume| waits(volume) == 1);
    assert_eq!((volume.ledger().len(), volume.finals("note")), (0, 0));
}

#[test]
fn a_name_means_its_own_newest_run_and_not_that_of_a_duplicate_of_another() {
    let mut volume = Volume::new();
    volume.job("t", "command = [\"true\"]\n");
    volume.start("a", &[]);
    volume.drop_trigger("t.json", "{\"job\": \"t\"}");
    let mine = volume.outcome("t")["run_id"].clone();
    for _ in 0..2 {
        assert_eq!(
            volume.command(&["trigger", "t", "--id", "x", "--wait", "-q"]).output().unwrap().status.code(),
            Some(0)
        );
    }
    assert_eq!(volume.ask(&["runs", "show", "t.json"]).1["run_id"], mine);
}

#[test]
fn with_one_slot_the_higher_priority_is_first_and_then_the_older() {
    let mut volume = Volume::new();
    volume.script("order.sh", "echo $1 >> order");
    volume.script("block.sh", "while [ ! -e go ]; do sleep 0.02; done");
    volume.job("order", "file = \"order.sh\"\n");
    volume.job("block", "file = \"block.sh\"\n");
    volume.start("a", &["--slots", "1"]);
    volume.drop_trigger("block.json", "{\"job\": \"block\"}");
    volume.wait("the slot is taken", |volume| volume.holder("block").is_some());
    for (name, priority) in [("low", -5), ("old", 0), ("new", 0), ("high", 999)] {
        volume.drop_trigger(
            &format!("{name}.json"),
            &format!("{{\"job\": \"order\", \"args\": [\"{name}\"], \"priority\": {priority}}}"),
        );
        waits_because(&volume, &format!("{name}.json"), "every slot");
        volume.next_instant();
    }
    std::fs::write(volume.path("Programs/go"), "").unwrap();
    volume.wait("all ran", |volume| volume.finals("order") == 4);
    assert_eq!(std::fs::read_to_string(volume.path("Programs/order")).unwrap(), "high\nold\nnew\nlow\n");
}

#[test]
fn tags_bring_a_run_to_the_device_that_has_them() {
    let mut volume = Volume::new();
    volume.job("t", "command = [\"true\"]\ntags = [\"gpu\"]\n");
    volume.start("plain", &[]);
    volume.drop_trigger("t.json", "{\"job\": \"t\", \"tags\": [\"large\"]}");
    waits_because(&volume, "t.json", "no living device has the tag gpu, large");
    volume.start("gpu-only", &["--tags", "gpu"]);
    waits_because(&volume, "t.json", "no living device has the tag large");
    volume.start("both", &["--tags", "gpu,large"]);
    assert_eq!(volume.outcome("t")["device"], "both");
}

#[test]
fn a_job_that_cannot_run_is_waited_for_and_one_that_nobody_knows_is_rejected_in_time() {
    let mut volume = Volume::new();
    volume.job("off", "command = [\"true\"]\nenabled = false\n");
    volume.job("broken", "comand = [\"true\"]\n");
    volume.start("a", &[]);
    volume.drop_trigger("off.json", "{\"job\": \"off\"}");
    volume.drop_trigger("broken.json", "{\"job\": \"broken\"}");
    volume.drop_trigger("later.json", "{\"job\": \"later\"}");
    volume.drop_trigger("typo.json", "{\"job\": \"brokn\"}");
    // Made, enabled and mended while they wait; for what nobody knows not for long.
    waits_because(&volume, "later.json", "there is no job later");
    volume.job("later", "command = [\"true\"]\n");
    waits_because(&volume, "off.json", "disabled");
    waits_because(&volume, "broken.json", "has an error");
    volume.job("off", "command = [\"true\"]\n");
    volume.job("broken", "command = [\"true\"]\n");
    for job in ["off", "broken", "later"] {
        assert_eq!(volume.outcome(job)["status"], "succeeded", "{job}");
    }
    volume.wait("the unknown one is rejected", |volume| rejections(volume).len() == 1);
    let note = &rejections(&volume)[0];
    assert_eq!(note["name"], "typo.json");
    assert!(note["hint"].as_str().unwrap().contains("broken"), "{note}");
    let (_, screen) = volume.ask(&["status"]);
    assert_eq!(screen["rejected"][0]["trigger"], "typo.json");
}

#[test]
fn a_definition_that_breaks_leaves_the_good_one_in_force_and_the_next_run_takes_the_new_one() {
    let mut volume = Volume::new();
    volume.job("t", "command = [\"echo\", \"one\"]\n");
    volume.start("a", &[]);
    volume.job("t", "command = [\"echo\"\n");
    volume.wait("the error is told", |volume| volume.tell().contains("t.toml"));
    let log = |volume: &Volume, name: &str| {
        volume.drop_trigger(name, "{\"job\": \"t\"}");
        let output = volume.command(&["runs", "wait", name]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(volume.command(&["runs", "logs", name]).output().unwrap().stdout).unwrap()
    };
    assert_eq!(log(&volume, "1.json"), "one\n");
    let read = |volume: &Volume| volume.tell().matches("job files are read anew").count();
    let before = read(&volume);
    volume.job("t", "command = [\"echo\", \"two\"]\n");
    volume.wait("the new one is taken", |volume| read(volume) > before);
    assert_eq!(log(&volume, "2.json"), "two\n");
}

#[test]
fn one_trigger_is_cancelled_while_it_waits_another_while_it_runs_and_both_can_be_tried_again() {
    let mut volume = Volume::new();
    volume.script("slow.sh", "test -e go || sleep 300");
    volume.job("slow", "file = \"slow.sh\"\n");
    volume.start("a", &["--slots", "1"]);
    volume.drop_trigger("runs.json", "{\"job\": \"slow\"}");
    volume.wait("it runs", |volume| volume.ledger().len() == 1);
    volume.drop_trigger("waits.json", "{\"job\": \"slow\"}");
    waits_because(&volume, "waits.json", "every slot");
    for (name, attempt) in [("waits.json", 0), ("runs.json", 1)] {
        assert_eq!(volume.ask(&["runs", "cancel", name]).0, Some(0));
        let (code, result) = volume.ask(&["runs", "wait", name]);
        assert_eq!((&result["status"], &result["attempt"]), (&json!("cancelled"), &json!(attempt)), "{name}");
        assert_ne!(code, Some(0));
    }
    std::fs::write(volume.path("Programs/go"), "").unwrap();
    for name in ["waits.json", "runs.json"] {
        let (_, again) = volume.ask(&["runs", "retry", name]);
        let (code, result) = volume.ask(&["runs", "wait", again["run_id"].as_str().unwrap()]);
        assert_eq!((code, &result["status"]), (Some(0), &json!("succeeded")));
    }
    volume.check("slow", 4);
}
