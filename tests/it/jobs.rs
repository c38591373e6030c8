//! Jobs on a running device: what a program is given, and what becomes of what it does.

use std::process::Command;

use serde_json::{Value, json};

use super::volume::{Volume, files, processes_of};

fn run(volume: &Volume, job: &str, more: &str) -> Value {
    volume.drop_trigger(&format!("{job}.json"), &format!("{{\"job\": \"{job}\"{more}}}"));
    volume.outcome(job)
}

#[test]
fn a_program_is_given_exactly_what_the_contract_says() {
    let mut volume = Volume::new();
    std::fs::write(
        volume.path("Programs/tell.py"),
        "import json, os, sys\n\
         told = {'argv': sys.argv[1:], 'env': dict(os.environ), 'dir': os.getcwd(), 'group': os.getpgrp() == os.getpid(),\n\
         'stdin': os.readlink('/proc/self/fd/0'), 'trigger': open(os.environ['AIOS_TRIGGER']).read()}\n\
         json.dump(told, open(os.environ['AIOS_RESULT'], 'w'))\n",
    )
    .unwrap();
    volume.job(
        "tell",
        "file = \"tell.py\"\nargs = [\"from the job\"]\nkwargs = { a = 1, b = 2 }\npass_env = [\"WANTED\"]\n\
         env = { LANG = \"xx\", MINE = \"m\" }\n",
    );
    let child = {
        let mut command =
            volume.command(&["run", "--device-id", "a", "--heartbeat", "200ms", "--lease", "1500ms", "-q"]);
        command
            .env("WANTED", "w")
            .env("SECRET", "s")
            .env("LC_ALL", "C")
            .env("LANG", "yy")
            .env("TZ", "UTC")
            .spawn()
            .unwrap()
    };
    volume.devices.insert("a".into(), child);
    volume.wait("a beats", |volume| volume.beat("a").is_some());
    let text = "{\"job\": \"tell\", \"args\": [\"x y\", 1.50, 1e3, 12345678901234567890, null, {\"k\": [true]}], \"kwargs\": {\"b\": 0.10}}";
    volume.drop_trigger("tell.json", text);
    let result = volume.outcome("tell");
    let told = &result["result"];
    assert_eq!(told["argv"], json!(["x y", "1.50", "1e3", "12345678901234567890", "null", "{\"k\": [true]}"]));
    let env = &told["env"];
    let run = result["run_id"].as_str().unwrap();
    for (name, value) in [
        ("AIOS_JOB", "tell"),
        ("AIOS_ATTEMPT", "1"),
        ("AIOS_DEVICE_ID", "a"),
        ("AIOS_RUN_ID", run),
        ("AIOS_ARGS", "[\"x y\",1.50,1e3,12345678901234567890,null,{\"k\": [true]}]"),
        ("AIOS_KWARGS", "{\"a\":1,\"b\":0.10}"),
        ("WANTED", "w"),
        ("MINE", "m"),
        ("LANG", "xx"),
        ("LC_ALL", "C"),
        ("TZ", "UTC"),
    ] {
        assert_eq!(env[name], value, "{name}");
    }
    assert_eq!(env.get("SECRET"), None);
    assert_eq!(env.get("CARGO_MANIFEST_DIR"), None);
    assert_eq!((&told["group"], &told["stdin"]), (&json!(true), &json!("/dev/null")));
    assert_eq!(told["trigger"], text);
    let programs = volume.path("Programs").canonicalize().unwrap();
    assert_eq!(told["dir"].as_str().unwrap(), programs.to_str().unwrap());
    let raw = files(&volume.common("Results"));
    let raw = std::fs::read_to_string(&raw[0]).unwrap();
    assert!(raw.contains("1.50,1e3,12345678901234567890"), "{raw}");
    for key in ["cpu_user_ms", "cpu_system_ms", "max_rss_bytes"] {
        assert!(result["usage"][key].is_number(), "{result}");
    }
}

#[test]
fn a_result_that_is_no_json_or_too_large_is_left_out_and_told() {
    let mut volume = Volume::new();
    volume.job("word", "command = [\"sh\", \"-c\", \"printf word > $AIOS_RESULT\"]\n");
    volume.job("huge", "command = [\"sh\", \"-c\", \"head -c 2000000 /dev/zero > $AIOS_RESULT\"]\n");
    volume.job("list", "command = [\"sh\", \"-c\", \"printf '[1, 2.50]' > $AIOS_RESULT\"]\n");
    volume.start("a", &[]);
    for (job, why) in [("word", "JSON"), ("huge", "2000000")] {
        let result = run(&volume, job, "");
        assert_eq!((&result["status"], &result["result"]), (&json!("succeeded"), &Value::Null));
        assert!(result["result_error"].as_str().unwrap().contains(why), "{result}");
    }
    assert_eq!(run(&volume, "list", "")["result"], json!([1, 2.50]));
    let hidden = std::fs::read_dir(files(&volume.common("Results"))[0].parent().unwrap()).unwrap();
    let hidden = hidden.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with('.'));
    assert_eq!(hidden.count(), 0, "nothing is left behind");
}

#[test]
fn python_functions_are_called_awaited_and_explained() {
    let mut volume = Volume::new();
    std::fs::write(
        volume.path("Programs/work.py"),
        "import asyncio\n\
         def add(a, b=0):\n    return a + b\n\
         async def later(x):\n    await asyncio.sleep(0)\n    return {'x': x}\n\
         def odd():\n    return {1, }\n\
         def bad():\n    raise ValueError('no such thing')\n",
    )
    .unwrap();
    for function in ["add", "later", "odd", "bad", "missing"] {
        volume.job(function, &format!("file = \"work.py\"\nfunction = \"{function}\"\n"));
    }
    volume.start("a", &[]);
    assert_eq!(run(&volume, "add", ", \"args\": [40], \"kwargs\": {\"b\": 2}")["result"], 42);
    assert_eq!(run(&volume, "later", ", \"args\": [null]")["result"], json!({"x": null}));
    assert_eq!(run(&volume, "odd", "")["result"], "{1}");
    let bad = run(&volume, "bad", "");
    assert_eq!(
        (&bad["status"], &bad["exit_code"], &bad["error"]),
        (&json!("failed"), &json!(1), &json!("ValueError: no such thing"))
    );
    let missing = run(&volume, "missing", "");
    assert!(missing["error"].as_str().unwrap().contains("missing"), "{missing}");
}

#[test]
fn arguments_too_large_for_a_variable_reach_a_function_with_the_jobs_own() {
    let mut volume = Volume::new();
    std::fs::write(
        volume.path("Programs/large.py"),
        "import os\ndef large(first, *, text, own):\n    return [first, len(text), own, 'AIOS_KWARGS' in os.environ]\n",
    )
    .unwrap();
    volume.job(
        "large",
        "file = \"large.py\"\nfunction = \"large\"\nargs = [7]\nkwargs = { own = \"mine\", text = \"short\" }\n",
    );
    volume.start("a", &[]);
    let result = run(&volume, "large", &format!(", \"kwargs\": {{\"text\": \"{}\"}}", "x".repeat(100_000)));
    assert_eq!(result["result"], json!([7, 100_000, "mine", false]), "{}", result["error"]);
}

#[test]
fn failures_are_tried_again_only_as_often_and_for_what_the_job_says() {
    let mut volume = Volume::new();
    volume.script("third.sh", "test \"$AIOS_ATTEMPT\" -ge 3 || exit 75");
    volume.job("third", "file = \"third.sh\"\nretries = 3\nbackoff = \"50ms\"\nretry_on = [75]\n");
    volume.job("other", "command = [\"sh\", \"-c\", \"exit 2\"]\nretries = 3\nbackoff = \"50ms\"\nretry_on = [75]\n");
    volume.job(
        "spent",
        "command = [\"sh\", \"-c\", \"kill -9 $$\"]\nretries = 1\nbackoff = \"50ms\"\nretry_on = [137]\n",
    );
    volume.job("program", "command = [\"no-such-program\"]\n");
    volume.start("a", &[]);
    let third = run(&volume, "third", "");
    assert_eq!((&third["status"], &third["attempt"]), (&json!("succeeded"), &json!(3)));
    let exits: Vec<Value> = volume.results("third").iter().map(|result| result["exit_code"].clone()).collect();
    assert_eq!(exits, [json!(75), json!(75), json!(0)]);
    assert_eq!(run(&volume, "other", "")["attempt"], 1);
    let spent = run(&volume, "spent", "");
    assert_eq!((&spent["attempt"], &spent["exit_code"], &spent["signal"]), (&json!(2), &Value::Null, &json!(9)));
    let program = run(&volume, "program", "");
    assert_eq!((&program["status"], &program["started_at"]), (&json!("failed"), &Value::Null));
    assert!(program["error"].as_str().unwrap().contains("not found in PATH"), "{program}");
}

#[test]
fn a_timeout_ends_the_whole_tree_also_what_ignores_it_or_left_its_session() {
    let mut volume = Volume::new();
    volume.job(
        "deaf",
        "command = [\"sh\", \"-c\", \"trap '' TERM; setsid sleep 300 & sleep 300 & while :; do sleep 0.05; done\"]\ntimeout = \"3s\"\nstop_grace = \"200ms\"\n",
    );
    volume.job("left", "command = [\"sh\", \"-c\", \"setsid sleep 300 & exit 0\"]\nstop_grace = \"200ms\"\n");
    volume.start("a", &[]);
    let deaf = run(&volume, "deaf", "");
    assert_eq!((&deaf["status"], &deaf["signal"]), (&json!("timed_out"), &json!(9)));
    let left = run(&volume, "left", "");
    assert_eq!((&left["status"], &left["exit_code"]), (&json!("succeeded"), &json!(0)));
    for result in [deaf, left] {
        let run = result["run_id"].as_str().unwrap().to_owned();
        volume.wait("nothing of it is left", |_| processes_of(&run).is_empty());
    }
    let device = volume.devices["a"].id();
    let states = Command::new("ps").args(["-o", "state=", "--ppid", &device.to_string()]).output().unwrap();
    assert!(!String::from_utf8_lossy(&states.stdout).contains('Z'), "a zombie is left: {states:?}");
}

#[test]
fn a_log_keeps_its_beginning_and_says_how_much_is_left_out() {
    let mut volume = Volume::new();
    volume.job("loud", "command = [\"sh\", \"-c\", \"echo first; head -c 100000 /dev/zero | tr '\\\\0' x\"]\n");
    volume.start("a", &["--log-limit", "4k"]);
    let result = run(&volume, "loud", "");
    assert_eq!((&result["status"], &result["log_truncated"]), (&json!("succeeded"), &json!(true)));
    let log = std::fs::read(volume.common(result["log"].as_str().unwrap())).unwrap();
    assert!(log.starts_with(b"first\nxxx") && log.len() < 4_096 + 200, "{} bytes", log.len());
    let last = String::from_utf8_lossy(&log).lines().last().unwrap().to_owned();
    assert!(last.contains(&(100_006 - 4_096).to_string()), "{last}");
}

#[test]
fn overlap_queues_skips_or_allows_over_all_devices() {
    let mut volume = Volume::new();
    volume.script("wait.sh", "while [ ! -e go ]; do sleep 0.02; done");
    for overlap in ["allow", "skip", "queue"] {
        volume.job(overlap, &format!("file = \"wait.sh\"\noverlap = \"{overlap}\"\n"));
    }
    volume.start("a", &[]);
    volume.start("b", &[]);
    for overlap in ["allow", "skip", "queue"] {
        volume.drop_trigger(&format!("{overlap}1.json"), &format!("{{\"job\": \"{overlap}\"}}"));
        volume.wait("the first is open", |volume| volume.holder(overlap).is_some());
        volume.drop_trigger(&format!("{overlap}2.json"), &format!("{{\"job\": \"{overlap}\"}}"));
    }
    volume.wait("the second of skip has ended", |volume| volume.finals("skip") == 1);
    volume.wait("both of allow run, one of skip and one of queue", |volume| volume.ledger().len() == 4);
    assert_eq!(volume.outcome("skip")["status"], "skipped");
    let open = volume.state().unwrap()["runs"].as_object().unwrap().len();
    assert_eq!(open, 4, "the second of queue waits in the inbox");
    std::fs::write(volume.path("Programs/go"), "").unwrap();
    volume.wait("all are over", |volume| ["allow", "skip", "queue"].iter().all(|job| volume.finals(job) == 2));
    assert_eq!(volume.ledger().len(), 5);
}

#[test]
fn a_run_whose_job_says_so_is_not_tried_again_when_its_device_dies() {
    let mut volume = Volume::new();
    volume.script("slow.sh", "sleep 300");
    volume.job("slow", "file = \"slow.sh\"\non_lost = \"fail\"\n");
    volume.start("a", &[]);
    volume.start("b", &[]);
    volume.drop_trigger("slow.json", "{\"job\": \"slow\", \"tags\": [\"a\"]}");
    volume.wait("it runs", |volume| volume.ledger().len() == 1);
    volume.kill("a");
    let result = volume.outcome("slow");
    assert_eq!((&result["status"], &result["attempt"]), (&json!("lost"), &json!(1)));
    assert!(result["error"].as_str().unwrap().contains("on_lost"), "{result}");
    volume.check("slow", 1);
}

#[test]
fn a_poisonous_run_ends_with_its_third_device() {
    let mut volume = Volume::new();
    volume.script("poison.sh", "sleep 300");
    volume.job("poison", "file = \"poison.sh\"\n");
    volume.start("a", &[]);
    volume.drop_trigger("poison.json", "{\"job\": \"poison\"}");
    for life in 1..=3 {
        volume.wait("it runs", |volume| volume.ledger().len() == life);
        volume.kill("a");
        volume.start("a", &[]);
    }
    let result = volume.outcome("poison");
    assert_eq!((&result["status"], &result["attempt"]), (&json!("lost"), &json!(3)));
    assert!(result["error"].as_str().unwrap().contains("three times"), "{result}");
}

#[test]
fn a_second_request_to_leave_stops_what_runs_at_once() {
    let mut volume = Volume::new();
    volume.script("slow.sh", "test \"$AIOS_ATTEMPT\" -ge 2 || sleep 300");
    volume.job("slow", "file = \"slow.sh\"\n");
    volume.start("a", &["--stop-grace", "300s"]);
    volume.drop_trigger("slow.json", "{\"job\": \"slow\"}");
    volume.wait("it runs", |volume| volume.ledger().len() == 1);
    volume.signal("a", rustix::process::Signal::TERM);
    volume.wait("it drains", |volume| volume.tell().contains("draining"));
    volume.signal("a", rustix::process::Signal::TERM);
    assert_eq!(volume.ended("a"), Some(0));
    volume.start("a", &[]);
    volume.check("slow", 1);
}

#[test]
fn a_device_that_was_drained_by_a_person_takes_nothing_and_stays_so_after_a_restart() {
    let mut volume = Volume::new();
    volume.job("t", "command = [\"true\"]\n");
    volume.start("a", &[]);
    assert_eq!(volume.ask(&["devices", "drain", "a"]).0, Some(0));
    volume.wait("it is drained", |volume| volume.beat("a").unwrap()["drained"] == true);
    volume.kill("a");
    volume.start("a", &[]);
    volume.drop_trigger("t.json", "{\"job\": \"t\"}");
    volume.wait("it says why", |volume| {
        let (_, screen) = volume.ask(&["status"]);
        screen["waiting"][0]["reason"].as_str().is_some_and(|reason| reason.contains("drained: a"))
    });
    assert_eq!(volume.ask(&["devices", "resume", "a"]).0, Some(0));
    assert_eq!(volume.outcome("t")["status"], "succeeded");
}
