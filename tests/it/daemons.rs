//! Jobs that last: daemons that run all the time, and what fills idle time.

use serde_json::{Value, json};

use super::volume::{Volume, processes_of};

/// The runs of a job that are held: run, attempt and device.
fn active(volume: &Volume, job: &str) -> Vec<(String, u64, String)> {
    let state = volume.state().unwrap_or_default();
    let runs = state["runs"].as_object().cloned().unwrap_or_default();
    let held = runs.into_iter().filter(|(_, held)| held["job"] == job && held["device"].is_string());
    held.map(|(run, held)| (run, held["attempt"].as_u64().unwrap(), held["device"].as_str().unwrap().to_owned()))
        .collect()
}

/// Waits until so many runs of a job are held and their processes are there.
fn up(volume: &Volume, job: &str, count: usize) -> Vec<(String, u64, String)> {
    volume.wait(&format!("{count} of {job}"), |volume| {
        let active = active(volume, job);
        active.len() == count && active.iter().all(|(run, ..)| !processes_of(run).is_empty())
    });
    active(volume, job)
}

const LASTS: &str = "type = \"always\"\ncommand = [\"sleep\", \"1000\"]\n";

#[test]
fn a_daemon_goes_on_elsewhere_when_its_device_dies_and_is_spread_over_devices() {
    let mut volume = Volume::new();
    volume.start("a", &[]);
    volume.start("b", &[]);
    volume.wait("both to know both", |volume| volume.beat("b").is_some_and(|beat| beat["beat"].as_u64() > Some(5)));
    // A device that stands still for a while loses its share: not each time.
    let (job, before) = ["web1", "web2", "web3"]
        .into_iter()
        .find_map(|job| {
            volume.job(job, &format!("{LASTS}instances = 4\n"));
            let all = up(&volume, job, 4);
            let are_even = ["a", "b"].iter().all(|id| all.iter().filter(|(.., device)| device == id).count() == 2);
            if !are_even {
                volume.job(job, &format!("{LASTS}instances = 4\nenabled = false\n"));
                volume.wait("none of it to be left", |volume| active(volume, job).is_empty());
            }
            are_even.then_some((job, all))
        })
        .expect("two on each");
    volume.kill("a");
    volume.wait("all to be on b", |volume| {
        let active = active(volume, job);
        active.len() == 4 && active.iter().all(|(.., device)| device == "b")
    });
    let after = up(&volume, job, 4);
    let runs = |of: &[(String, u64, String)]| of.iter().map(|(run, ..)| run.clone()).collect::<Vec<_>>();
    assert_eq!(runs(&before), runs(&after), "the same runs, with another attempt");
    let lost = volume.results(job).into_iter().filter(|result| result["status"] == "lost").count();
    assert_eq!(lost, 2);
    // The first device comes back: nothing moves, and nothing runs twice.
    volume.start("a", &[]);
    assert_eq!(up(&volume, job, 4), after);
}

#[test]
fn every_device_has_its_own() {
    let mut volume = Volume::new();
    volume.job("agent", &format!("{LASTS}instances = \"every\"\ntags = [\"x\"]\n"));
    volume.start("a", &["--tags", "x"]);
    volume.start("b", &["--tags", "x"]);
    volume.start("c", &[]);
    let mut devices: Vec<String> = up(&volume, "agent", 2).into_iter().map(|(.., device)| device).collect();
    devices.sort();
    assert_eq!(devices, ["a", "b"]);
    volume.kill("b");
    volume.wait("b's to be lost", |volume| active(volume, "agent").len() == 1);
    assert_eq!(active(&volume, "agent")[0].2, "a");
    volume.start("b", &["--tags", "x"]);
    up(&volume, "agent", 2);
}

#[test]
fn a_daemon_that_ends_is_started_again_later_and_later() {
    let mut volume = Volume::new();
    volume.script("short.sh", "exit $(( AIOS_ATTEMPT % 2 ))");
    volume.job("short", "type = \"always\"\nfile = \"short.sh\"\nbackoff = \"20ms\"\n");
    volume.start("a", &[]);
    volume.wait("some attempts", |volume| volume.results("short").len() >= 5);
    let results = volume.results("short");
    let time =
        |result: &Value, key: &str| -> chrono::DateTime<chrono::Utc> { result[key].as_str().unwrap().parse().unwrap() };
    let waits: Vec<i64> = results
        .windows(2)
        .map(|pair| (time(&pair[1], "started_at") - time(&pair[0], "finished_at")).num_milliseconds())
        .collect();
    // Whatever the machine adds, nothing starts before its backoff: 20, 40, 80 … less a tenth.
    for (at, wait) in waits.iter().enumerate() {
        assert!(*wait >= 17 * (1 << at), "{waits:?}");
    }
    assert!(results.iter().all(|result| result["final"] == false && result["cause"] == "always"));
    assert_eq!(volume.state().unwrap()["runs"].as_object().unwrap().len(), 1);
}

#[test]
fn a_daemon_follows_its_definition() {
    let mut volume = Volume::new();
    volume.job("web", LASTS);
    volume.start("a", &[]);
    let first = up(&volume, "web", 1);
    // A comment changes nothing that runs.
    volume.job("web", &format!("# more words\n{LASTS}"));
    volume.job("mark", "command = [\"true\"]\n");
    volume.drop_trigger("mark.json", "{\"job\": \"mark\"}");
    volume.outcome("mark");
    assert_eq!(active(&volume, "web"), first);
    volume.job("web", &LASTS.replace("1000", "2000"));
    volume.wait("another attempt", |volume| active(volume, "web").iter().any(|(.., attempt, _)| *attempt == 2));
    assert_eq!(active(&volume, "web")[0].0, first[0].0);
    let ended = &volume.results("web")[0];
    assert_eq!((&ended["status"], &ended["final"]), (&json!("cancelled"), &json!(false)));
    volume.job("web", &format!("{LASTS}instances = 3\n"));
    up(&volume, "web", 3);
    volume.job("web", LASTS);
    volume.wait("two to go", |volume| active(volume, "web").len() == 1);
    volume.job("web", &format!("{LASTS}enabled = false\n"));
    volume.wait("the last to go", |volume| volume.state().unwrap()["runs"].as_object().unwrap().is_empty());
    let finals: Vec<Value> = volume.results("web").into_iter().filter(|result| result["final"] == true).collect();
    assert_eq!(finals.len(), 3);
    assert!(finals.iter().all(|result| result["status"] == "cancelled"), "{finals:?}");
    assert!(finals.iter().any(|result| result["error"].as_str().unwrap().contains("was disabled")), "{finals:?}");
    volume.job("web", LASTS);
    up(&volume, "web", 1);
    std::fs::remove_file(volume.path("Programs/web.toml")).unwrap();
    volume.wait("it to end with its file", |volume| volume.state().unwrap()["runs"].as_object().unwrap().is_empty());
    assert!(super::volume::files(&volume.common("Triggers")).is_empty());
}

#[test]
fn what_runs_is_restarted_where_it_is() {
    let mut volume = Volume::new();
    volume.job("web", &format!("{LASTS}instances = 2\n"));
    volume.job("long", "command = [\"sleep\", \"1000\"]\n");
    volume.start("a", &[]);
    volume.start("b", &[]);
    let before = up(&volume, "web", 2);
    volume.drop_trigger("long.json", "{\"job\": \"long\"}");
    let long = up(&volume, "long", 1);
    let (code, asked) = volume.ask(&["restart", "web"]);
    assert_eq!((code, asked.as_array().unwrap().len()), (Some(0), 2), "{asked}");
    let again = |volume: &Volume, job: &str, attempt: u64| {
        let active = active(volume, job);
        !active.is_empty() && active.iter().all(|(.., number, _)| *number == attempt)
    };
    volume.wait("second attempts", |volume| again(volume, "web", 2));
    let after = up(&volume, "web", 2);
    let places =
        |of: &[(String, u64, String)]| of.iter().map(|(run, _, on)| (run.clone(), on.clone())).collect::<Vec<_>>();
    assert_eq!(places(&before), places(&after));
    assert_eq!(active(&volume, "long"), long);
    assert_eq!(volume.ask(&["restart", "--all"]).1.as_array().unwrap().len(), 3);
    volume.wait("third attempts", |volume| again(volume, "web", 3) && again(volume, "long", 2));
    volume.wait("requests to be answered", |volume| volume.state().unwrap()["requests"] == json!([]));
    // Nothing active is no error, and a job that nobody knows is one.
    volume.job("none", "command = [\"true\"]\n");
    assert_eq!(volume.ask(&["restart", "none"]), (Some(0), json!([])));
    let output = volume.command(&["restart", "wbe"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("did you mean web?"));
}

#[test]
fn idle_time_is_given_back_the_moment_there_is_work() {
    let mut volume = Volume::new();
    volume.job("fill", "type = \"idle\"\ncommand = [\"sleep\", \"1000\"]\n");
    volume.job("web", LASTS);
    volume.job("work", "command = [\"sh\", \"-c\", \"exit 0\"]\n");
    volume.start("a", &["--slots", "1"]);
    // A daemon that takes no slot is no work that keeps it away.
    let first = up(&volume, "fill", 1);
    volume.drop_trigger("work.json", "{\"job\": \"work\"}");
    let work = volume.outcome("work");
    assert_eq!(work["status"], "succeeded");
    volume.wait("the idle run to end", |volume| volume.finals("fill") == 1);
    let ended = volume.outcome("fill");
    assert_eq!(
        (&ended["run_id"], &ended["status"], &ended["cause"]),
        (&json!(first[0].0), &json!("cancelled"), &json!("idle"))
    );
    assert!(ended["error"].as_str().unwrap().contains("preempted"), "{ended}");
    let is_noted =
        |volume: &Volume| volume.state().is_some_and(|it| it["jobs"]["fill"]["last_run_id"] == ended["run_id"]);
    volume.wait("it is noted", is_noted);
    assert_eq!(volume.state().unwrap()["jobs"]["fill"]["failures"], 0);
    let second = up(&volume, "fill", 1);
    assert_ne!(first[0].0, second[0].0);
}

#[test]
fn an_idle_job_keeps_off_devices_that_have_work() {
    let mut volume = Volume::new();
    volume.job("long", "command = [\"sleep\", \"1000\"]\ntags = [\"a\"]\n");
    volume.start("a", &[]);
    volume.drop_trigger("long.json", "{\"job\": \"long\"}");
    up(&volume, "long", 1);
    volume.job("fill", "type = \"idle\"\ninstances = \"every\"\ncommand = [\"sleep\", \"1000\"]\n");
    volume.start("b", &[]);
    let filled = up(&volume, "fill", 1);
    assert_eq!(filled[0].2, "b");
    assert_eq!(active(&volume, "fill").len(), 1);
}

#[test]
fn a_device_that_leaves_hands_its_daemons_over_without_waiting_for_their_end() {
    let mut volume = Volume::new();
    volume.job("web", LASTS);
    volume.start("a", &["--stop-grace", "10m"]);
    let before = up(&volume, "web", 1);
    volume.start("b", &[]);
    volume.signal("a", rustix::process::Signal::TERM);
    assert_eq!(volume.ended("a"), Some(0));
    let after = up(&volume, "web", 1);
    assert_eq!((&after[0].0, after[0].1, after[0].2.as_str()), (&before[0].0, 2, "b"));
    let handed = &volume.results("web")[0];
    assert_eq!((&handed["status"], &handed["final"]), (&json!("cancelled"), &json!(false)));
}

#[test]
fn what_is_asked_on_a_new_volume_is_heard_at_once() {
    let mut volume = Volume::new();
    volume.job("web", LASTS);
    // What no event tells would be heard of in ten minutes.
    volume.start("a", &["--heartbeat", "10m", "--lease", "1h", "--scan", "10m"]);
    up(&volume, "web", 1);
    assert!(volume.command(&["restart", "web"]).output().unwrap().status.success());
    volume.wait("another attempt", |volume| active(volume, "web").iter().any(|(_, attempt, _)| *attempt == 2));
}

#[test]
fn a_daemon_ends_with_the_last_job_file_and_starts_where_no_slot_is_free() {
    let mut volume = Volume::new();
    volume.script("beside.sh", "");
    volume.job("long", "command = [\"sleep\", \"1000\"]\n");
    volume.start("a", &["--slots", "1"]);
    for n in 0..2 {
        volume.drop_trigger(&format!("long{n}.json"), "{\"job\": \"long\"}");
    }
    up(&volume, "long", 1);
    // It takes no slot: what waits for one does not hold it up.
    volume.job("web", LASTS);
    up(&volume, "web", 1);
    std::fs::remove_file(volume.path("Programs/long.toml")).unwrap();
    std::fs::remove_file(volume.path("Programs/web.toml")).unwrap();
    volume.wait("the daemon to end", |volume| active(volume, "web").is_empty() && volume.finals("web") == 1);
}

#[test]
fn a_trigger_that_waits_for_a_daemon_keeps_no_instance_from_starting() {
    let mut volume = Volume::new();
    let text = format!("{LASTS}overlap = \"queue\"\n");
    volume.job("web", &text);
    volume.start("a", &[]);
    up(&volume, "web", 1);
    volume.drop_trigger("web.json", "{\"job\": \"web\"}");
    volume.job("web", &format!("{text}instances = 3\n"));
    up(&volume, "web", 3);
}
