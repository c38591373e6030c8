//! Jobs that run by themselves because time has come: exactly when due, once, through restarts, edits and dead devices.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use super::volume::{Volume, files};

/// The due instants of a job's runs, in order.
fn due_times(volume: &Volume, job: &str) -> Vec<DateTime<Utc>> {
    let finals =
        volume.results(job).into_iter().filter(|result| result["final"] == true && result["cause"] == "schedule");
    let mut times: Vec<_> = finals.map(|result| result["created_at"].as_str().unwrap().parse().unwrap()).collect();
    times.sort();
    times
}

fn mark(volume: &Volume, job: &str) -> Value {
    volume.state().map_or(Value::Null, |state| state["jobs"][job].clone())
}

/// Sets what a job remembers, while no device runs.
fn set_mark(volume: &Volume, job: &str, since: DateTime<Utc>, last_due: DateTime<Utc>) {
    let mut state = volume.state().unwrap();
    state["jobs"][job] = json!({"since": since.to_rfc3339(), "last_due_at": last_due.to_rfc3339()});
    std::fs::write(volume.common("state.json"), state.to_string()).unwrap();
}

fn leave(volume: &mut Volume, id: &str) {
    volume.signal(id, rustix::process::Signal::TERM);
    assert_eq!(volume.ended(id), Some(0));
}

#[test]
fn an_interval_is_due_at_its_multiples_and_leaves_nothing_behind() {
    let mut volume = Volume::new();
    volume.job("tick", "type = \"interval\"\ninterval = \"1s\"\ncommand = [\"true\"]\n");
    volume.start("a", &[]);
    volume.start("b", &[]);
    volume.wait("four runs", |volume| volume.finals("tick") >= 4);
    let times = due_times(&volume, "tick");
    assert!(times.iter().all(|at| at.timestamp_millis() % 1_000 == 0), "{times:?}");
    assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "a due time ran twice: {times:?}");
    let result = &volume.results("tick")[0];
    assert_eq!(
        (&result["cause"], &result["trigger"], &result["status"]),
        (&json!("schedule"), &Value::Null, &json!("succeeded"))
    );
    leave(&mut volume, "a");
    leave(&mut volume, "b");
    assert_eq!(files(&volume.common("TriggersProcessed")), Vec::<std::path::PathBuf>::new());
    assert_eq!(files(&volume.common("Triggers/.running")), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_new_interval_is_due_at_once_and_not_again_after_a_restart() {
    let mut volume = Volume::new();
    volume.job("hourly", "type = \"interval\"\ninterval = \"1d\"\ncommand = [\"true\"]\n");
    volume.start("a", &[]);
    volume.wait("its first run", |volume| volume.finals("hourly") == 1);
    assert_eq!(due_times(&volume, "hourly")[0].timestamp() % 86_400, 0);
    leave(&mut volume, "a");
    volume.start("a", &[]);
    volume.job("after", "type = \"interval\"\ninterval = \"1d\"\ncommand = [\"true\"]\n");
    volume.wait("another job's first run", |volume| volume.finals("after") == 1);
    assert_eq!(volume.finals("hourly"), 1);
}

#[test]
fn what_was_missed_while_nobody_was_up_is_made_up_for_as_the_job_says() {
    let mut volume = Volume::new();
    let every = TimeDelta::hours(1);
    for (job, missed) in [("once", "once"), ("each", "all"), ("skip", "skip")] {
        let text = format!(
            "type = \"interval\"\ninterval = \"1h\"\nmissed = \"{missed}\"\nenabled = false\ncommand = [\"true\"]\n"
        );
        volume.job(job, &text);
    }
    volume.start("a", &[]);
    leave(&mut volume, "a");
    let now = Utc::now().timestamp() / 3_600 * 3_600;
    let newest = DateTime::from_timestamp(now, 0).unwrap();
    for job in ["once", "each", "skip"] {
        set_mark(&volume, job, newest - every * 100, newest - every * 4);
        let path = volume.path("Programs").join(format!("{job}.toml"));
        let text = std::fs::read_to_string(&path).unwrap().replace("enabled = false\n", "");
        std::fs::write(path, text).unwrap();
    }
    volume.start("a", &[]);
    volume.wait("all to be made up for", |volume| volume.finals("each") == 4 && volume.finals("once") == 1);
    assert_eq!(due_times(&volume, "once"), [newest]);
    assert_eq!(due_times(&volume, "each"), [newest - every * 3, newest - every * 2, newest - every, newest]);
    // Unless this very minute was due.
    let is_young = Utc::now() - newest < TimeDelta::seconds(90);
    assert!(is_young || volume.finals("skip") == 0, "{:?}", due_times(&volume, "skip"));
}

#[test]
fn every_second_has_its_run_whichever_device_is_killed() {
    let mut volume = Volume::new();
    volume.script("work.sh", "exit 0");
    volume.job(
        "second",
        "type = \"cron\"\ncron = \"* * * * * *\"\nmissed = \"all\"\noverlap = \"queue\"\nfile = \"work.sh\"\n",
    );
    for id in ["a", "b", "c"] {
        volume.start(id, &[]);
    }
    for round in 0..3 {
        let enough = 2 * (round + 1);
        volume.wait("some runs", |volume| volume.finals("second") >= enough);
        let id = ["b", "a", "b"][round];
        volume.kill(id);
        volume.start(id, &[]);
    }
    volume.wait("more runs", |volume| volume.finals("second") >= 12);
    volume.job("second", "type = \"cron\"\ncron = \"* * * * * *\"\nenabled = false\nfile = \"work.sh\"\n");
    volume.wait("it to be paused", |volume| mark(volume, "second")["paused"] == true);
    volume.wait("nothing to be open", |volume| volume.state().unwrap()["runs"].as_object().unwrap().is_empty());
    let times = due_times(&volume, "second");
    let gaps: Vec<_> = times.windows(2).filter(|pair| pair[1] - pair[0] != TimeDelta::seconds(1)).collect();
    assert_eq!(gaps, Vec::<&[DateTime<Utc>]>::new(), "each second once, and none forgotten");
    let starts = volume.ledger();
    let unique: BTreeSet<String> = starts.iter().map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect();
    assert_eq!(unique.len(), starts.len(), "an attempt was started twice");
}

#[test]
fn what_is_due_while_a_job_is_disabled_is_not_missed() {
    let mut volume = Volume::new();
    let text = |enabled: bool| {
        format!("type = \"interval\"\ninterval = \"1s\"\nmissed = \"all\"\nenabled = {enabled}\ncommand = [\"true\"]\n")
    };
    volume.job("tick", &text(true));
    volume.start("a", &[]);
    volume.wait("a run", |volume| volume.finals("tick") >= 1);
    volume.job("tick", &text(false));
    volume.wait("it to be paused", |volume| mark(volume, "tick")["paused"] == true);
    volume.wait("the last run to end", |volume| volume.holder("tick").is_none());
    let before = due_times(&volume, "tick").len();
    // Another job's runs show how time passes.
    volume.job("clock", "type = \"interval\"\ninterval = \"1s\"\ncommand = [\"true\"]\n");
    volume.wait("some seconds", |volume| volume.finals("clock") >= 4);
    assert_eq!(due_times(&volume, "tick").len(), before);
    volume.job("tick", &text(true));
    volume.wait("it to run again", |volume| due_times(volume, "tick").len() > before);
    let times = due_times(&volume, "tick");
    let since: DateTime<Utc> = mark(&volume, "tick")["since"].as_str().unwrap().parse().unwrap();
    assert!(times[before] > since, "{times:?} {since}");
}

#[test]
fn a_daily_job_runs_at_its_local_time_and_a_random_one_in_its_window() {
    let mut volume = Volume::new();
    let zone = chrono_tz::Asia::Kathmandu;
    let soon = (Utc::now() + TimeDelta::seconds(10)).with_timezone(&zone);
    let at = soon.format("%H:%M:%S");
    volume.job(
        "daily",
        &format!("type = \"daily\"\ntime = \"{at}\"\ntimezone = \"Asia/Kathmandu\"\ncommand = [\"true\"]\n"),
    );
    let before = (soon + TimeDelta::seconds(1)).format("%H:%M:%S");
    volume.job(
        "random",
        &format!("type = \"random_daily\"\nafter_time = \"{at}\"\nbefore_time = \"{before}\"\ntimezone = \"Asia/Kathmandu\"\ncommand = [\"true\"]\n"),
    );
    volume.start("a", &[]);
    let (code, answer) = volume.ask(&["jobs", "explain", "daily"]);
    assert_eq!((code, answer["next"].as_array().unwrap().len(), &answer["enabled"]), (Some(0), 5, &json!(true)));
    assert_eq!(answer["next"][0]["timezone"], "Asia/Kathmandu");
    assert!(answer["next"][0]["local"].as_str().unwrap().contains(&format!("{at}.000+05:45")), "{answer}");
    volume.wait("both", |volume| volume.finals("daily") == 1 && volume.finals("random") == 1);
    assert_eq!(due_times(&volume, "daily")[0].timestamp(), soon.timestamp());
    assert_eq!(due_times(&volume, "random")[0].timestamp(), soon.timestamp());
    let (_, list) = volume.ask(&["jobs", "list"]);
    let next: DateTime<Utc> = list[0]["next_due_at"].as_str().unwrap().parse().unwrap();
    assert!(next > Utc::now() + TimeDelta::hours(22), "{list}");
    let (_, status) = volume.ask(&["status"]);
    assert_eq!(status["next"].as_array().unwrap().len(), 2, "{status}");
}

#[test]
fn a_due_time_that_finds_a_run_open_is_skipped_and_counted_or_waits() {
    let mut volume = Volume::new();
    let go = volume.path("go");
    for (job, overlap) in [("skips", "skip"), ("queues", "queue")] {
        volume.job(
            job,
            &format!(
                "type = \"interval\"\ninterval = \"1s\"\noverlap = \"{overlap}\"\n\
                 command = [\"sh\", \"-c\", \"while [ ! -e {} ]; do sleep 0.02; done\"]\n",
                go.display()
            ),
        );
    }
    volume.start("a", &[]);
    volume.wait("due times to be skipped", |volume| mark(volume, "skips")["skipped"].as_u64() >= Some(2));
    assert_eq!((volume.finals("skips"), volume.finals("queues")), (0, 0));
    assert_eq!(mark(&volume, "queues")["skipped"], 0);
    // A run that somebody asks for meanwhile is told that it was skipped.
    volume.drop_trigger("skips.json", "{\"job\": \"skips\"}");
    let skipped = volume.outcome("skips");
    assert_eq!((&skipped["status"], &skipped["attempt"]), (&json!("skipped"), &json!(0)));
    std::fs::write(&go, "").unwrap();
    volume.wait("both to go on", |volume| volume.finals("queues") >= 2 && due_times(volume, "skips").len() >= 2);
}

#[test]
fn due_times_share_a_pool_and_its_size_holds_over_all_devices() {
    let mut volume = Volume::new();
    std::fs::write(volume.path("Programs/pools.toml"), "one = 1\n").unwrap();
    let inside = volume.path("inside");
    let text = format!("mkdir {0} || exit 9; sleep 0.05; rmdir {0}", inside.display());
    volume.script("work.sh", &text);
    for job in ["x", "y"] {
        volume.job(job, "pool = \"one\"\nfile = \"work.sh\"\n");
    }
    volume.start("a", &[]);
    volume.start("b", &[]);
    for n in 0..8 {
        for job in ["x", "y"] {
            volume.drop_trigger(&format!("{job}{n}.json"), &format!("{{\"job\": \"{job}\"}}"));
        }
    }
    volume.check("x", 8);
    volume.check("y", 8);
    let all = volume.results("x").into_iter().chain(volume.results("y"));
    assert!(all.into_iter().all(|result| result["status"] == "succeeded"), "two runs of the pool met");
    // A pool that nobody gave a size is an error with its place.
    volume.job("z", "pool = \"won\"\nfile = \"work.sh\"\n");
    let (code, errors) = volume.ask(&["jobs", "validate", "z"]);
    assert_eq!(
        (code, &errors["errors"][0]["line"], &errors["errors"][0]["column"]),
        (Some(1), &json!(1), &json!(8)),
        "{errors}"
    );
}

#[test]
fn an_end_starts_what_follows_it_and_tells_it_its_result() {
    let mut volume = Volume::new();
    std::fs::write(
        volume.path("Programs/tell.sh"),
        "printf '{\"run\": \"%s\", \"result\": %s}' \"$AIOS_CAUSE_RUN_ID\" \"$(cat \"$AIOS_CAUSE_RESULT\")\" > \"$AIOS_RESULT\"\n",
    )
    .unwrap();
    volume.job("good", "command = [\"true\"]\non_success = [\"then\"]\non_failure = [\"never\"]\n");
    volume.job(
        "bad",
        "command = [\"false\"]\non_success = [\"never\"]\non_failure = [\"repair\"]\nretries = 1\nbackoff = \"1ms\"\n",
    );
    volume.job("never", "command = [\"true\"]\n");
    volume.job("then", "file = \"tell.sh\"\n");
    volume.job("repair", "file = \"tell.sh\"\n");
    volume.job("both", "file = \"tell.sh\"\nafter = [\"then\", \"repair\"]\n");
    volume.start("a", &[]);
    volume.drop_trigger("good.json", "{\"job\": \"good\"}");
    volume.drop_trigger("bad.json", "{\"job\": \"bad\"}");
    volume.wait("what follows", |volume| volume.finals("both") == 1);
    for (job, cause, status) in [("then", "good", "succeeded"), ("repair", "bad", "failed")] {
        let caused = volume.outcome(job);
        let by = volume.outcome(cause);
        assert_eq!(
            (&caused["cause"], &caused["trigger"], &caused["status"]),
            (&json!("job"), &Value::Null, &json!("succeeded"))
        );
        assert_eq!(caused["result"]["run"], by["run_id"]);
        assert_eq!(
            (&caused["result"]["result"]["status"], &caused["result"]["result"]["final"]),
            (&json!(status), &json!(true))
        );
    }
    let last = volume.outcome("both");
    let caused_by = last["result"]["run"].clone();
    assert!(["then", "repair"].iter().any(|job| volume.outcome(job)["run_id"] == caused_by), "{last}");
    assert_eq!((volume.finals("never"), volume.finals("both"), volume.finals("repair")), (0, 1, 1));
    // Both must succeed again before it runs again.
    volume.drop_trigger("good2.json", "{\"job\": \"good\"}");
    volume.wait("one of the two", |volume| volume.finals("then") == 2);
    let (_, answer) = volume.ask(&["jobs", "explain", "both"]);
    assert!(answer["reasons"].to_string().contains("repair has not succeeded since its own newest run"), "{answer}");
    volume.drop_trigger("bad2.json", "{\"job\": \"bad\"}");
    volume.wait("both again", |volume| volume.finals("both") == 2);
}

#[test]
fn a_circle_of_jobs_is_an_error_and_the_good_definition_stays() {
    let mut volume = Volume::new();
    volume.job("a", "command = [\"true\"]\n");
    volume.job("b", "command = [\"true\"]\nafter = [\"a\"]\n");
    volume.start("x", &[]);
    volume.job("a", "command = [\"true\"]\nafter = [\"b\"]\n");
    volume.wait("the error to be seen", |volume| {
        volume.ask(&["jobs", "validate"]).1.to_string().contains("`after` closes a circle")
    });
    volume.drop_trigger("a.json", "{\"job\": \"a\"}");
    volume.wait("the chain by the good definitions", |volume| volume.finals("b") == 1);
}

#[test]
fn another_attempt_is_made_elsewhere_if_the_job_prefers_that() {
    let mut volume = Volume::new();
    volume.script("work.sh", "exit 3");
    volume.job("picky", "file = \"work.sh\"\nretries = 3\nbackoff = \"10ms\"\nretry_elsewhere = true\n");
    volume.start("a", &[]);
    volume.start("b", &[]);
    volume.wait("a to know b", |volume| volume.beat("b").is_some_and(|beat| beat["beat"].as_u64() > Some(5)));
    volume.drop_trigger("picky.json", "{\"job\": \"picky\"}");
    volume.outcome("picky");
    let devices: Vec<String> = volume.results("picky").iter().map(|result| result["device"].to_string()).collect();
    assert_eq!(devices.len(), 4);
    assert!(devices.windows(2).all(|pair| pair[0] != pair[1]), "{devices:?}");
}

#[test]
fn of_equal_devices_none_starves() {
    let mut volume = Volume::new();
    volume.job("quick", "command = [\"true\"]\n");
    for id in ["a", "b", "c"] {
        volume.start(id, &[]);
    }
    volume.wait("all to know all", |volume| volume.beat("c").is_some_and(|beat| beat["beat"].as_u64() > Some(5)));
    // Lots are drawn: that one of three has less than three of sixty happens once in some twenty million times.
    for n in 1..=60 {
        volume.drop_trigger(&format!("quick{n}.json"), "{\"job\": \"quick\"}");
        volume.wait("its run", |volume| volume.finals("quick") == n);
    }
    let results = volume.results("quick");
    for id in ["a", "b", "c"] {
        let share = results.iter().filter(|result| result["device"] == id).count();
        assert!(share >= 3, "{id} had {share} of 60");
    }
}

#[test]
fn what_a_job_waits_for_is_not_forgotten_with_the_state_and_nothing_runs_twice() {
    let mut volume = Volume::new();
    volume.job("first", "command = [\"true\"]\n");
    volume.job("second", "command = [\"true\"]\n");
    volume.job("join", "command = [\"true\"]\nafter = [\"first\", \"second\"]\n");
    volume.start("a", &[]);
    volume.drop_trigger("first.json", "{\"job\": \"first\"}");
    volume.drop_trigger("second.json", "{\"job\": \"second\"}");
    volume.wait("both to be joined", |volume| volume.finals("join") == 1);
    volume.drop_trigger("first2.json", "{\"job\": \"first\"}");
    volume.wait("one more", |volume| volume.finals("first") == 2);
    volume.lose_state();
    volume.wait("the state to be made anew", |volume| {
        volume
            .state()
            .is_some_and(|state| state["jobs"]["join"]["last_run_at"].is_string() && state.get("rebuilt").is_none())
    });
    // The success that was not used yet counts still.
    volume.drop_trigger("second2.json", "{\"job\": \"second\"}");
    volume.wait("both to be joined again", |volume| volume.finals("join") == 2);
    let before = volume.state().unwrap()["revision"].as_u64().unwrap();
    volume.drop_trigger("first3.json", "{\"job\": \"first\"}");
    volume.wait("another run", |volume| volume.finals("first") == 3);
    let after = volume.state().unwrap()["revision"].as_u64().unwrap();
    assert!(after - before < 20, "{before} to {after}: something is committed again and again");
    assert_eq!(volume.finals("join"), 2);
}
