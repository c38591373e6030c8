//! Rules between runs, jobs and devices: who passes whom, what is unknown to all, and who is forgotten.

use serde_json::Value;

use super::volume::Volume;

/// What waits, each with its reason.
fn waiting(volume: &Volume) -> Vec<(String, String)> {
    let (_, status) = volume.ask(&["status"]);
    let waiting = status["waiting"].as_array().unwrap().clone();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    waiting.iter().map(|waiting| (text(&waiting["job"]), text(&waiting["reason"]))).collect()
}

fn problems(volume: &Volume) -> String {
    volume.ask(&["status"]).1["problems"].to_string()
}

#[test]
fn small_runs_pass_a_large_one_and_it_starts_once_it_can() {
    let mut volume = Volume::new();
    volume.job("daemon", "type = \"always\"\ncommand = [\"sleep\", \"1000\"]\nslots = 1\n");
    volume.job("large", "command = [\"true\"]\nslots = 2\n");
    volume.job("small", "command = [\"true\"]\n");
    volume.start("a", &["--slots", "2"]);
    volume.wait("the daemon is up", |volume| volume.holder("daemon").is_some());
    volume.drop_trigger("large.json", "{\"job\": \"large\"}");
    let reason = "it takes 2 slots, and daemons leave fewer on every device that could take it: a 1/2";
    volume
        .wait("it says why the large one waits", |volume| waiting(volume) == [("large".to_owned(), reason.to_owned())]);
    volume.drop_trigger("small.json", "{\"job\": \"small\"}");
    volume.wait("a small one passes", |volume| volume.finals("small") == 1);
    assert_eq!(volume.finals("large"), 0);
    std::fs::remove_file(volume.path("Programs/daemon.toml")).unwrap();
    volume.check("large", 1);
}

#[test]
fn it_says_which_run_waits_for_which() {
    let mut volume = Volume::new();
    volume.job("long", "command = [\"sleep\", \"1000\"]\n");
    volume.job("large", "command = [\"true\"]\nslots = 2\n");
    volume.job("small", "command = [\"true\"]\n");
    volume.start("a", &["--slots", "2"]);
    volume.drop_trigger("long.json", "{\"job\": \"long\"}");
    volume.wait("the long one runs", |volume| volume.holder("long").is_some());
    volume.drop_trigger("large.json", "{\"job\": \"large\"}");
    volume.wait("the large one waits", |volume| waiting(volume).len() == 1);
    volume.drop_trigger("small.json", "{\"job\": \"small\"}");
    volume.wait("both say so", |volume| {
        let waiting = waiting(volume);
        let says = |job: &str, what: &str| waiting.iter().any(|(of, reason)| of == job && reason.contains(what));
        says("large", "a reserves what is free for it until")
            && says("small", "of large needs more slots than are free")
    });
    volume.wait("the small one passes when the turn is over", |volume| volume.finals("small") == 1);
}

#[test]
fn a_trigger_is_rejected_only_if_no_living_device_knows_its_job() {
    let mut volume = Volume::new();
    let others = volume.path("Others");
    std::fs::create_dir(&others).unwrap();
    std::fs::write(others.join("other.toml"), "command = [\"true\"]\n").unwrap();
    volume.job("only_a", "command = [\"true\"]\n");
    volume.start("a", &[]);
    volume.start("b", &["--programs", others.to_str().unwrap()]);
    // `a` knows the job and takes nothing, so that its trigger lies there for as long as one of an unknown job.
    volume.ask(&["devices", "drain", "a"]);
    volume.wait("a is drained", |volume| volume.beat("a").is_some_and(|beat| beat["drained"] == true));
    volume.drop_trigger("known.json", "{\"job\": \"only_a\"}");
    volume.drop_trigger("unknown.json", "{\"job\": \"nobodys\"}");
    let is_rejected = |volume: &Volume, stem: &str| {
        let folders = std::fs::read_dir(volume.common("TriggersProcessed/rejected")).into_iter().flatten().flatten();
        let mut names = folders.flat_map(|day| std::fs::read_dir(day.path()).into_iter().flatten().flatten());
        names.any(|entry| entry.file_name().to_string_lossy().starts_with(stem))
    };
    volume.wait("the trigger of the unknown job is rejected", |volume| is_rejected(volume, "unknown."));
    assert!(!is_rejected(&volume, "known."));
    volume.ask(&["devices", "resume", "a"]);
    volume.check("only_a", 1);
}

#[test]
fn a_device_that_has_left_is_forgotten_with_what_waits_for_it_alone() {
    let mut volume = Volume::new();
    volume.job("agent", "type = \"always\"\ninstances = \"every\"\ncommand = [\"sleep\", \"1000\"]\n");
    volume.start("gone", &[]);
    volume.wait("its agent is up", |volume| volume.holder("agent").is_some());
    volume.signal("gone", rustix::process::Signal::TERM);
    assert_eq!(volume.ended("gone"), Some(0));
    volume.start("stays", &["--forget-after", "6s"]);
    volume.wait("nothing is left of it", |volume| {
        let state = volume.state().unwrap_or_default();
        let runs = state["runs"].as_object().cloned().unwrap_or_default();
        volume.beat("gone").is_none()
            && runs.len() == 1
            && runs.values().all(|held| held["device"] == "stays")
            && std::fs::read_dir(volume.common("Triggers/.waiting")).unwrap().count() == 0
    });
}

#[test]
fn a_drained_device_stays_drained_unless_it_was_forgotten() {
    let mut volume = Volume::new();
    volume.start("a", &["--forget-after", "6s"]);
    volume.start("b", &[]);
    volume.ask(&["devices", "drain", "b"]);
    volume.wait("b is drained", |volume| volume.beat("b").is_some_and(|beat| beat["drained"] == true));
    volume.signal("b", rustix::process::Signal::TERM);
    assert_eq!(volume.ended("b"), Some(0));
    volume.start("b", &[]);
    assert_eq!(volume.beat("b").unwrap()["drained"], true);
    volume.kill("b");
    volume.wait("b is forgotten", |volume| volume.beat("b").is_none());
    volume.start("b", &[]);
    assert_eq!(volume.beat("b").unwrap()["drained"], false, "it begins anew");
}

#[test]
fn a_daemon_that_is_absent_or_ends_again_and_again_is_a_problem() {
    let mut volume = Volume::new();
    volume.job("nowhere", "type = \"always\"\ncommand = [\"sleep\", \"1000\"]\ntags = [\"gpu\"]\n");
    volume.job("crashing", "type = \"always\"\ncommand = [\"false\"]\nbackoff = \"100ms\"\n");
    volume.start("a", &["--slots", "1"]);
    volume.wait("both are named", |volume| {
        let problems = problems(volume);
        problems.contains("the daemon nowhere is wanted and not there (0 of 1): no living device has the tag gpu")
            && problems.contains("the daemon crashing ends again and again")
    });
    // Without slots it takes nothing, and says so.
    volume.ask(&["devices", "limits", "a", "--slots", "0"]);
    volume.wait("the crashing one is absent", |volume| {
        problems(volume).contains(
            "the daemon crashing is wanted and not there (0 of 1): every living device that could take it has 0 slots",
        )
    });
}

#[test]
fn a_device_that_died_with_work_is_a_problem() {
    let mut volume = Volume::new();
    volume.job("long", "command = [\"sleep\", \"1000\"]\n");
    volume.start("a", &[]);
    volume.drop_trigger("long.json", "{\"job\": \"long\"}");
    volume.wait("it holds a run", |volume| {
        volume.beat("a").is_some_and(|beat| beat["holds"].as_array().is_some_and(|holds| holds.len() == 1))
    });
    volume.kill("a");
    volume.start("b", &[]);
    volume.wait("b has it", |volume| volume.holder("long").as_deref() == Some("b"));
    assert!(problems(&volume).contains("a died with work at about"), "{}", problems(&volume));
}

#[test]
fn a_job_that_failed_before_it_became_a_daemon_starts_at_once() {
    let mut volume = Volume::new();
    volume.job("agent", "command = [\"false\"]\n");
    volume.start("a", &[]);
    volume.drop_trigger("agent.json", "{\"job\": \"agent\"}");
    volume.check("agent", 1);
    volume.job("agent", "type = \"always\"\ncommand = [\"false\"]\nretries = 0\nbackoff_max = \"1h\"\n");
    volume.wait("it runs, fails for good, and rests", |volume| volume.finals("agent") == 2);
    // Any change ends the rest.
    volume.job("agent", "type = \"always\"\ncommand = [\"sleep\", \"1000\"]\nretries = 0\nbackoff_max = \"1h\"\n");
    volume.wait("it is up", |volume| volume.holder("agent").is_some());
}
