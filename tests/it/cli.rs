//! The verbs that need no device, as whoever calls the binary sees them: words, JSON shapes, exit codes, files.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

/// A volume made by hand.
struct Volume {
    home: tempfile::TempDir,
}

const A: &str = "20261121T034156123Z-k3f9q2";
const B: &str = "20261121T034156124Z-k3f9z9";
const C: &str = "20261120T235959000Z-aaaaq2";

impl Volume {
    fn new() -> Self {
        let volume = Self { home: tempfile::tempdir().unwrap() };
        volume.write("Common/.volume", "0123456789abcdef\n");
        volume.write("Programs/hello.toml", "command = [\"true\"]\nargs = [1.50]\n");
        for folder in ["Triggers/.running", "Triggers/.waiting", "Triggers/.ids", "Devices", "Logs"] {
            std::fs::create_dir_all(volume.path("Common").join(folder)).unwrap();
        }
        volume
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn result(&self, run: &str, job: &str, attempt: u32, status: &str, more: &Value) {
        let date = format!("{}-{}-{}", &run[..4], &run[4..6], &run[6..8]);
        let mut result = json!({
            "schema": 1, "run_id": run, "job": job, "attempt": attempt, "device": "d1", "executor": "native", "cause": "trigger",
            "trigger": format!("{job}.json"), "args": [], "kwargs": {}, "priority": 0, "status": status, "final": true,
            "exit_code": 0, "signal": null, "error": null, "result": null, "result_error": null,
            "created_at": "2026-11-21T03:41:56.123Z", "claimed_at": "2026-11-21T03:41:56.200Z",
            "started_at": "2026-11-21T03:41:56.300Z", "finished_at": "2026-11-21T03:41:57.300Z", "duration_ms": 1000.0,
            "usage": null, "log": null, "log_truncated": false
        });
        for (key, value) in more.as_object().unwrap() {
            result[key] = value.clone();
        }
        self.write(&format!("Common/Results/{date}/{job}.{run}.{attempt}.json"), &result.to_string());
        self.write(&format!("Common/TriggersProcessed/{date}/{job}.{run}.json"), &format!("{{\"job\": \"{job}\"}}"));
    }

    fn run(&self, words: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_orchestrator"))
            .args(words)
            .current_dir(self.home.path())
            .env_remove("AIOS_COMMON")
            .env_remove("AIOS_PROGRAMS")
            .output()
            .unwrap()
    }

    fn code(&self, words: &[&str]) -> i32 {
        self.run(words).status.code().unwrap()
    }

    fn json(&self, words: &[&str]) -> Value {
        let output = self.run(&[&["--json"], words].concat());
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{words:?}: {error}: {text:?} {output:?}"))
    }

    /// The exit code and the error document.
    fn failure(&self, words: &[&str]) -> (i32, Value) {
        let output = self.run(&[&["--json"], words].concat());
        let error: Value = serde_json::from_slice(&output.stderr).unwrap_or_else(|error| panic!("{words:?}: {error}"));
        assert_eq!(error["exit_code"], json!(output.status.code()), "{error}");
        assert!(output.stdout.is_empty(), "{words:?} answered beside its error");
        (output.status.code().unwrap(), error)
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    names
}

#[test]
fn a_folder_that_is_no_volume_is_refused_and_left_alone() {
    let home = tempfile::tempdir().unwrap();
    let volume = Volume { home };
    for words in [&["status"][..], &["runs", "list"], &["jobs", "list"], &["devices", "list"], &["logs"], &["doctor"]] {
        assert_eq!(volume.failure(words).0, 4, "{words:?}");
    }
    assert_eq!(names(volume.home.path()), Vec::<String>::new());
}

#[test]
fn a_trigger_is_written_as_a_device_reads_it() {
    let volume = Volume::new();
    let words = [
        "trigger",
        "hello",
        "a b",
        "-5",
        "--kwargs",
        r#"{"n": 1.50}"#,
        "--kwarg",
        "k=v",
        "--priority",
        "-3",
        "--tag",
        "gpu",
    ];
    let answer = volume.json(&words);
    let (run, name) = (answer["run_id"].as_str().unwrap(), answer["trigger"].as_str().unwrap());
    assert_eq!(name, format!("hello.{run}.json"));
    assert_eq!(names(&volume.path("Common/Triggers")), [name]);
    let text = std::fs::read_to_string(volume.path("Common/Triggers").join(name)).unwrap();
    let expected = r#"{"job":"hello","args":["a b","-5"],"kwargs":{"n":1.50,"k":"v"},"priority":-3,"tags":["gpu"],"cause":"manual"}"#;
    assert_eq!(text.trim_end(), expected);
    let shown = volume.json(&["runs", "show", run]);
    assert_eq!((&shown["status"], &shown["job"], &shown["attempts"]), (&json!("waiting"), &json!("hello"), &json!([])));
    assert_eq!(volume.json(&["runs", "show", name])["run_id"], json!(run));
}

#[test]
fn what_cannot_be_a_trigger_is_refused_and_nothing_is_written() {
    let volume = Volume::new();
    let (code, error) = volume.failure(&["trigger", "helo"]);
    assert_eq!(code, 3);
    assert!(error["hint"].as_str().unwrap().contains("hello"), "{error}");
    for words in [
        &["trigger", "a b"][..],
        &["trigger", "hello", "--kwargs", "[]"],
        &["trigger", "hello", "--kwarg", "novalue"],
        &["trigger", "hello", "--priority", "1000"],
        &["trigger", "hello", "--at", "tomorrow"],
        &["trigger", "hello", "--tag", "a b"],
        &["trigger", "hello", "--timeout", "3s"],
        &["exec"],
    ] {
        assert_eq!(volume.failure(words).0, 2, "{words:?}");
    }
    assert_eq!(names(&volume.path("Common/Triggers")), Vec::<String>::new());
}

#[test]
fn a_wait_ends_when_its_time_is_up_and_the_trigger_stays() {
    let volume = Volume::new();
    let (code, error) = volume.failure(&["exec", "--wait", "--timeout", "50ms", "--", "/bin/true"]);
    assert_eq!(code, 124, "{error}");
    let left = names(&volume.path("Common/Triggers"));
    assert!(left.len() == 1 && left[0].starts_with("true."), "{left:?}");
}

#[test]
fn runs_are_named_by_id_prefix_suffix_or_trigger() {
    let volume = Volume::new();
    volume.result(A, "hello", 1, "succeeded", &json!({}));
    volume.result(B, "hello", 1, "failed", &json!({"exit_code": 3}));
    volume.result(C, "other", 1, "succeeded", &json!({}));
    let named = |name: &str| volume.json(&["runs", "show", name])["run_id"].as_str().unwrap().to_owned();
    assert_eq!((named(A), named("z9"), named("20261120"), named("9q2")), (A.into(), B.into(), C.into(), A.into()));
    assert_eq!((named("hello.json"), named("other.json")), (B.to_owned(), C.to_owned()));
    let (code, error) = volume.failure(&["runs", "show", "q2"]);
    let said = error["error"].as_str().unwrap();
    assert!(code == 2 && said.contains(A) && said.contains(C) && !said.contains(B), "{error}");
    for unknown in ["zzz", "20261121T034156123Z-000000", "hallo.json"] {
        assert_eq!(volume.failure(&["runs", "show", unknown]).0, 3, "{unknown}");
    }
}

#[test]
fn runs_are_listed_newest_first_and_filtered() {
    let volume = Volume::new();
    volume.result(A, "hello", 1, "failed", &json!({"final": false}));
    volume.result(A, "hello", 2, "succeeded", &json!({}));
    volume.result(B, "hello", 1, "failed", &json!({"device": "d2"}));
    volume.result(C, "other", 0, "cancelled", &json!({}));
    volume.write(&format!("Common/Triggers/hello.{B}x.json"), "half");
    let listed = |words: &[&str]| -> Vec<String> {
        let rows = volume.json(&[&["runs", "list"], words].concat());
        rows.as_array().unwrap().iter().map(|row| row["run_id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(listed(&[]), [B, A, C]);
    assert_eq!(listed(&["--limit", "2"]), [B, A]);
    assert_eq!(listed(&["--job", "other"]), [C]);
    assert_eq!(listed(&["--status", "succeeded"]), [A]);
    assert_eq!(listed(&["--device", "d2"]), [B]);
    assert_eq!(listed(&["--since", "2026-11-21T00:00:00Z"]), [B, A]);
    let shown = volume.json(&["runs", "show", A]);
    assert_eq!((&shown["attempt"], shown["attempts"].as_array().unwrap().len()), (&json!(2), 2));
}

#[test]
fn waiting_for_what_is_over_exits_as_it_did() {
    let volume = Volume::new();
    volume.result(A, "hello", 1, "failed", &json!({"exit_code": 3}));
    volume.result(B, "hello", 1, "failed", &json!({"exit_code": null, "signal": 9}));
    volume.result(C, "other", 0, "cancelled", &json!({"exit_code": null}));
    assert_eq!([A, B, C].map(|run| volume.code(&["runs", "wait", run])), [3, 137, 1]);
    assert_eq!(volume.json(&["runs", "wait", A])["exit_code"], json!(3));
}

#[test]
fn what_waits_is_cancelled_at_once_and_what_is_over_is_not() {
    let volume = Volume::new();
    let run = volume.json(&["trigger", "hello", "--at", "1h"])["run_id"].as_str().unwrap().to_owned();
    assert_eq!(volume.code(&["runs", "cancel", &run]), 0);
    assert_eq!(names(&volume.path("Common/Triggers")), Vec::<String>::new());
    let shown = volume.json(&["runs", "show", &run]);
    assert_eq!((&shown["status"], &shown["attempt"]), (&json!("cancelled"), &json!(0)));
    assert_eq!(shown["attempts"][0]["args"].to_string(), "[1.5]");
    assert_eq!(volume.failure(&["runs", "cancel", &run]).0, 1);
    // Its trigger, byte for byte, as a new run.
    let again = volume.json(&["runs", "retry", &run])["run_id"].as_str().unwrap().to_owned();
    assert_ne!(again, run);
    assert_eq!(volume.json(&["runs", "show", &again])["status"], json!("waiting"));
}

#[test]
fn what_waits_for_its_time_is_made_due() {
    let volume = Volume::new();
    let run = volume.json(&["trigger", "hello", "--at", "1h"])["run_id"].as_str().unwrap().to_owned();
    let reason = |run: &str| volume.json(&["runs", "show", run])["reason"].as_str().unwrap().to_owned();
    assert!(reason(&run).starts_with("its time is "), "{}", reason(&run));
    assert_eq!(volume.json(&["runs", "retry", &run])["run_id"], json!(run));
    assert!(reason(&run).starts_with("no device is alive"), "{}", reason(&run));
}

#[test]
fn a_key_is_not_dropped_again() {
    let volume = Volume::new();
    volume.result(A, "hello", 1, "succeeded", &json!({}));
    volume.write(&format!("Common/TriggersProcessed/2026-11-21/hello.{A}.json"), r#"{"job": "hello", "id": "k"}"#);
    let (code, error) = volume.failure(&["runs", "retry", A]);
    assert!(code == 1 && error["error"].as_str().unwrap().contains("\"k\""), "{error}");
    assert_eq!(names(&volume.path("Common/Triggers")), Vec::<String>::new());
}

#[test]
fn a_rejected_trigger_says_why() {
    let volume = Volume::new();
    let note =
        json!({"name": "x.json", "error": "found 7", "hint": "h", "at": "", "device": "d", "line": 1, "column": 2});
    volume.write(&format!("Common/TriggersProcessed/rejected/2026-11-21/x.{A}.error.json"), &note.to_string());
    for name in [A, "x.json"] {
        let (code, error) = volume.failure(&["runs", "wait", name]);
        assert_eq!((code, &error["error"]), (2, &json!("the trigger \"x.json\":1:2 was rejected: found 7")), "{name}");
    }
}

#[test]
fn job_files_are_checked_with_their_places() {
    let volume = Volume::new();
    assert_eq!(volume.code(&["jobs", "validate"]), 0);
    volume.write("Programs/bad.toml", "command = [\"x\"]\nretrys = 1\n");
    assert_eq!((volume.code(&["jobs", "validate"]), volume.code(&["jobs", "validate", "hello"])), (1, 0));
    let found = volume.json(&["jobs", "validate"]);
    let error = &found["errors"][0];
    assert_eq!(
        (&error["file"], &error["line"], &error["column"]),
        (&json!("bad.toml"), &json!(2), &json!(1)),
        "{found}"
    );
    assert_eq!(volume.failure(&["jobs", "show", "helo"]).0, 3);
    let rows = volume.json(&["jobs", "list"]);
    assert_eq!((&rows[0]["valid"], &rows[1]["type"]), (&json!(false), &json!("trigger")), "{rows}");
    let shown = volume.run(&["--json", "jobs", "show", "hello"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("\"args\":[1.50]"), "numbers stay as written: {shown:?}");
}

#[test]
fn a_dead_device_can_be_asked_and_forgotten() {
    let volume = Volume::new();
    let beat = json!({
        "schema": 1, "device": "d1", "session": "0123456789abcdef", "beat": 7, "at": "2026-11-21T03:41:56.123Z", "revision": 3,
        "host": "h", "pid": 1, "version": "0", "started_at": "2026-11-21T03:41:56.123Z", "tags": ["d1"], "slots": 4, "busy": 0,
        "load": 0.5, "drained": false, "holds": []
    });
    volume.write("Common/Devices/d1.json", &beat.to_string());
    assert_eq!(volume.json(&["devices", "list"])[0]["alive"], json!(false));
    assert_eq!((volume.code(&["devices", "drain", "d1"]), volume.code(&["devices", "drain", "d2"])), (0, 3));
    assert_eq!(volume.json(&["devices", "list"])[0]["asked"], json!("drain"));
    // What was asked last counts: nothing is left of the drain.
    assert_eq!(volume.code(&["devices", "resume", "d1"]), 0);
    let state: Value = serde_json::from_slice(&std::fs::read(volume.path("Common/state.json")).unwrap()).unwrap();
    let asked: Vec<&Value> = state["requests"].as_array().unwrap().iter().map(|request| &request["do"]).collect();
    assert_eq!(asked, [&json!("resume")]);
    assert_eq!((volume.code(&["devices", "forget", "d1"]), volume.json(&["devices", "list"])), (0, json!([])));
}

#[test]
fn the_status_names_what_waits_and_what_hinders() {
    let volume = Volume::new();
    volume.write("Programs/bad.toml", "x");
    volume.write("Common/Triggers/a.json", r#"{"job": "hello"}"#);
    volume.write("Common/Triggers/b.json", r#"{"job": 7}"#);
    let status = volume.json(&["status"]);
    let keys: Vec<&String> = status.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["active", "devices", "failed", "ignored", "next", "problems", "rejected", "waiting"]);
    let waiting = status["waiting"].as_array().unwrap();
    let of = |name: &str| waiting.iter().find(|it| it["trigger"] == name).unwrap()["reason"].as_str().unwrap();
    assert!(
        of("a.json").starts_with("no device is alive") && of("b.json").contains("about to be rejected"),
        "{status}"
    );
    let problems = status["problems"].to_string();
    assert!(problems.contains("Programs/bad.toml:1:") && problems.contains("no device is alive"), "{problems}");
}

#[test]
fn the_orchestrators_logs_are_merged_by_time() {
    let volume = Volume::new();
    let line =
        |at: &str, message: &str| json!({"timestamp": at, "level": "INFO", "message": message}).to_string() + "\n";
    let (early, late) =
        (line("2026-11-21T08:00:00.000001Z", "one"), line("2026-11-21T08:00:00.000003Z", "three\u{1b}"));
    volume.write("Common/Logs/orchestrator.a.2026-11-21.log", &(early.clone() + &late));
    volume.write("Common/Logs/orchestrator.b.2026-11-21.log", &line("2026-11-21T08:00:00.000002Z", "two"));
    let text = |words: &[&str]| String::from_utf8(volume.run(words).stdout).unwrap();
    let lines = text(&["logs"]);
    let order: Vec<&str> = lines.lines().map(|line| line.rsplit(' ').next().unwrap()).collect();
    assert_eq!(order, ["one", "two", "three\\u{1b}"]);
    let of_a = text(&["logs", "--json", "--device", "a"]);
    let of_a: Vec<Value> = of_a.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        of_a[1],
        json!({"timestamp": "2026-11-21T08:00:00.000003Z", "level": "INFO", "message": "three\u{1b}", "device": "a"})
    );
    assert_eq!(of_a.len(), 2);
    assert_eq!(text(&["logs", "--limit", "2"]).lines().count(), 2);
    assert_eq!(volume.code(&["logs", "--device", "c"]), 3);
}
