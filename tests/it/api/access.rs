//! Keys, users, tokens, scopes: who comes in, how far, and what is written down of it.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use super::super::volume::{PATIENCE, Volume, files};
use super::Api;

fn token(api: &Api, form: &str) -> super::Answer {
    api.by("").send("POST", "/token", &[("content-type", "application/x-www-form-urlencoded")], form.as_bytes())
}

#[test]
fn a_key_opens_until_it_is_revoked_on_every_device() {
    let mut volume = Volume::new();
    let a = volume.serve("a", &[]);
    let b = volume.serve("b", &[]).by(&a.key);
    assert!(a.key.starts_with("aios_"), "the first device shows a key");
    assert_eq!(super::said_keys(&volume).len(), 1, "and shows it once");
    let made = a.post("/api/v1/keys", &json!({"name": "ci", "role": "viewer"})).is(201).json();
    let (id, key) = (made["id"].as_str().unwrap(), made["key"].as_str().unwrap());
    volume.wait("the other device to know it", |_| b.by(key).get("/jobs").status == 200);
    a.post(&format!("/api/v1/keys/{id}/revoke"), &json!({})).is(200);
    a.by(key).get("/jobs").is(401);
    volume.wait("the other device to know it no more", |_| b.by(key).get("/jobs").status == 401);
    b.post(&format!("/api/v1/keys/{id}/activate"), &json!({})).is(200);
    b.by(key).get("/jobs").is(200);
    // Rotated, both secrets are good for a while; without an overlap only the new one is.
    let newer = b.post(&format!("/api/v1/keys/{id}/rotate"), &json!({"overlap": "1h"})).is(200).json();
    let newer = newer["key"].as_str().unwrap();
    assert_ne!(newer, key);
    b.by(newer).get("/jobs").is(200);
    b.by(key).get("/jobs").is(200);
    let newest = b.post(&format!("/api/v1/keys/{id}/rotate"), &json!({"overlap": "0s"})).is(200).json();
    b.by(newest["key"].as_str().unwrap()).get("/jobs").is(200);
    b.by(newer).get("/jobs").is(401);
    // The verbs do the same.
    let (code, listed) = volume.ask(&["keys", "list"]);
    assert_eq!(code, Some(0));
    assert!(listed.as_array().unwrap().iter().any(|row| row["id"] == id && row["name"] == "ci"), "{listed}");
    assert_eq!(volume.ask(&["keys", "delete", id]).0, Some(0));
    volume.wait("it is gone", |_| b.by(newest["key"].as_str().unwrap()).get("/jobs").status == 401);
    let made = volume.ask(&["keys", "create", "--name", "short", "--expires", "1s"]).1;
    let short = b.by(made["key"].as_str().unwrap());
    let names = |filter: &str| {
        let keys = b.get(&format!("/api/v1/keys?{filter}")).items();
        keys.iter().map(|key| key["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    volume.wait("it has expired", |_| names("active=false").contains(&"short".to_owned()));
    assert!(!names("active=true").contains(&"short".to_owned()));
    short.get("/jobs").is(401);
    // Who has been asked a moment ago knows a key that was made since.
    for _ in 0..5 {
        b.get("/jobs").is(200);
        let fresh = a.make_key("viewer", &[]);
        std::thread::sleep(std::time::Duration::from_millis(120));
        b.by(&fresh.key).get("/jobs").is(200);
    }
    nobody_reads_the_secrets(&volume, &[&a.key, key, newer]);
}

fn nobody_reads_the_secrets(volume: &Volume, keys: &[&str]) {
    let security = volume.common("Security");
    for path in files(&security).into_iter().chain([security.clone(), security.join("keys"), security.join("users")]) {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
    }
    for path in files(&volume.path("Common")) {
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        for key in keys {
            let secret = key.rsplit('_').next().unwrap();
            assert!(!text.contains(secret), "{} holds a key", path.display());
        }
    }
}

#[test]
fn a_user_gets_tokens_for_a_password_until_something_changes() {
    let mut volume = Volume::new();
    let admin = volume.serve("a", &[]);
    let user = json!({"name": "ada", "password": "correct horse battery", "role": "operator"});
    admin.post("/api/v1/users", &user).is(201);
    let given = token(&admin, "grant_type=password&username=ada&password=correct+horse+battery").is(200).json();
    assert_eq!((given["token_type"].as_str(), given["expires_in"].as_i64()), (Some("bearer"), Some(900)));
    let ada = admin.by(given["access_token"].as_str().unwrap());
    let me = ada.get("/api/v1/me").is(200).json();
    assert_eq!((me["id"].as_str(), me["role"].as_str()), (Some("user:ada"), Some("operator")));
    ada.get("/api/v1/keys").is(403);
    let refresh = given["refresh_token"].as_str().unwrap();
    admin.by(refresh).get("/jobs").is(401);
    let form = format!("grant_type=refresh_token&refresh_token={refresh}");
    let again = token(&admin, &form).is(200).json();
    admin.by(again["access_token"].as_str().unwrap()).get("/jobs").is(200);
    // An access token gets no other one.
    let wrong = format!("grant_type=refresh_token&refresh_token={}", given["access_token"].as_str().unwrap());
    token(&admin, &wrong).is(401);
    for bad in ["username=ada&password=wrong", "username=bob&password=correct+horse+battery"] {
        token(&admin, bad).is(401);
    }
    for bad in ["", "username=ada", "grant_type=magic", "username=ada&password=x&more=1"] {
        token(&admin, bad).is(400);
    }
    // Made by a verb, a user comes in at once, whoever has asked before.
    let (mut child, password) = (volume.command(&["users", "create", "eve"]), b"a long enough password\n");
    let mut child = child.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), password).unwrap();
    assert!(child.wait().unwrap().success());
    volume.wait("eve comes in", |_| token(&admin, "username=eve&password=a+long+enough+password").status == 200);
    // However many are refused meanwhile, who signs in is written down.
    for _ in 0..130 {
        admin.by("").post("/jobs", &json!({})).is(401);
    }
    token(&admin, "username=eve&password=a+long+enough+password").is(200);
    let audit = std::fs::read_to_string(volume.common("Logs/audit.a.jsonl")).unwrap();
    assert!(audit.lines().last().unwrap().contains("token for user:eve"), "{audit}");
    assert!(audit.matches("\"/jobs\"").count() < 130, "not all of nobody's are");
    assert_eq!(volume.ask(&["users", "delete", "eve"]).0, Some(0));
    volume.wait("eve is gone", |_| token(&admin, "username=eve&password=a+long+enough+password").status == 401);
    admin.patch("/api/v1/users/ada", &json!({"active": false})).is(200);
    ada.get("/jobs").is(401);
    token(&admin, &form).is(401);
    token(&admin, "username=ada&password=correct+horse+battery").is(401);
    // Who tries on is told to wait, whatever the password.
    let answers: Vec<_> = (0..40).map(|_| token(&admin, "username=ada&password=guess")).collect();
    let refused = answers.iter().find(|answer| answer.status == 429).unwrap_or_else(|| panic!("{answers:?}"));
    assert!(!refused.header("retry-after").is_empty());
}

#[test]
fn scopes_hide_everything_else() {
    let mut volume = Volume::new();
    volume.job("mine-a", "command = [\"echo\", \"a\"]\n");
    volume.job("theirs", "command = [\"echo\", \"b\"]\ntags = [\"gpu\"]\n");
    let admin = volume.serve("a", &["--tags", "gpu"]);
    let run = |job: &str| {
        let answer = admin.post(&format!("/trigger/{job}?wait=30s"), &json!({})).is(200);
        answer.json()["run_id"].as_str().unwrap().to_owned()
    };
    let (mine, theirs) = (run("mine-a"), run("theirs"));
    let late = admin.post("/trigger/theirs", &json!({"time": "2999-01-01T00:00:00Z"})).is(202).json();
    let trigger = late["trigger"].as_str().unwrap().to_owned();
    let narrow = admin.make_key("operator", &["job:mine"]);
    let by_tag = admin.make_key("operator", &["tag:gpu"]);
    let jobs = |api: &Api| api.get("/jobs").items().iter().map(|job| job["job"].clone()).collect::<Vec<Value>>();
    assert_eq!(jobs(&narrow), ["mine-a"]);
    assert_eq!(jobs(&by_tag), ["theirs"]);
    narrow.get(&format!("/runs/{mine}")).is(200);
    by_tag.get(&format!("/runs/{theirs}")).is(200);
    by_tag.get(&format!("/runs/{mine}")).is(404);
    for path in ["", "/log", "/log?follow"] {
        let hidden = narrow.get(&format!("/runs/{theirs}{path}")).is(404);
        let missing = narrow.get(&format!("/runs/20000101T000000000Z-000000{path}")).is(404);
        let word =
            |answer: &super::Answer| answer.json()["detail"].as_str().unwrap().split('"').next().unwrap().to_owned();
        assert_eq!(word(&hidden), word(&missing), "what is hidden and what is not there look the same");
    }
    for (path, body) in [
        (format!("/runs/{theirs}/cancel"), json!({})),
        (format!("/runs/{theirs}/retry"), json!({})),
        ("/trigger/theirs".to_owned(), json!({})),
        ("/restart/theirs".to_owned(), json!({})),
        ("/command".to_owned(), json!({"job": "theirs"})),
    ] {
        narrow.post(&path, &body).is(404);
    }
    narrow.delete(&format!("/triggers/{trigger}")).is(404);
    narrow.post("/command", &json!({"command": ["true"]})).is(403);
    narrow.get("/logs").is(403);
    narrow.get("/metrics").is(403);
    assert_eq!(narrow.get("/triggers").items().len(), 0);
    assert_eq!(by_tag.get("/triggers").items().len(), 1);
    assert_eq!(narrow.get("/runs").items().len(), 1);
    assert_eq!(narrow.post("/command", &json!({"job": "mine-a"})).is(200).json()["output"], "a\n");
    assert_eq!(narrow.get("/runs/theirs").status, narrow.get("/runs/nothing").status);
}

#[test]
fn every_change_is_in_the_audit_log_and_a_line_that_was_changed_is_found() {
    let mut volume = Volume::new();
    volume.job("quiet", "command = [\"true\"]\n");
    let api = volume.serve("a", &[]);
    let viewer = api.make_key("viewer", &[]);
    api.post("/trigger/quiet?wait=30s", &json!({})).is(200);
    viewer.post("/trigger/quiet", &json!({})).is(403);
    api.by("").post("/trigger/quiet", &json!({})).is(401);
    api.get("/jobs").is(200);
    volume.kill("a");
    let api = volume.serve("a", &[]);
    api.delete("/api/v1/keys/nobody").is(404);
    let text = std::fs::read_to_string(volume.common("Logs/audit.a.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said: Vec<(&str, &str, u64)> = lines
        .iter()
        .map(|line| {
            (line["method"].as_str().unwrap(), line["path"].as_str().unwrap(), line["status"].as_u64().unwrap())
        })
        .collect();
    assert_eq!(
        said,
        [
            ("POST", "/api/v1/keys", 201),
            ("POST", "/trigger/quiet", 202),
            ("POST", "/trigger/quiet", 403),
            ("POST", "/trigger/quiet", 401),
            ("DELETE", "/api/v1/keys/nobody", 404),
        ]
    );
    assert!(lines[0]["who"].as_str().unwrap().starts_with("key:") && lines[0]["from"] == "127.0.0.1", "{}", lines[0]);
    assert!(lines[0]["what"].as_str().unwrap().starts_with("key:"), "{}", lines[0]);
    assert!(lines[1]["what"].as_str().unwrap().starts_with("run "), "{}", lines[1]);
    assert_eq!(lines[3]["who"], "nobody");
    let look = || {
        let (_, answer) = volume.ask(&["doctor"]);
        let checks = answer["checks"].as_array().unwrap();
        checks.iter().find(|check| check["check"] == "audit log").unwrap().to_string()
    };
    let whole = look();
    assert!(whole.contains("5 changes") && whole.contains("\"ok\""), "over a crash too: {whole}");
    std::fs::write(volume.common("Logs/audit.a.jsonl"), text.replacen("/trigger/quiet", "/trigger/other", 1)).unwrap();
    let forged = look();
    assert!(
        forged.contains("audit.a.jsonl:3") && forged.contains("\"error\""),
        "the line behind the changed one: {forged}"
    );
}

#[test]
fn commands_are_no_jobs_and_belong_to_operators() {
    let mut volume = Volume::new();
    volume.job("sh", "command = [\"echo\", \"the job\"]\n");
    let admin = volume.serve("a", &[]);
    let command = json!({"command": ["sh", "-c", "echo the command"]});
    let run = admin.post("/command", &command).is(200).json()["run_id"].as_str().unwrap().to_owned();
    let agent = admin.make_key("agent", &[]);
    agent.post("/command", &command).is(403);
    agent.post(&format!("/runs/{run}/retry"), &json!({})).is(403);
    // A job of the same name gives no right over it.
    let narrow = admin.make_key("operator", &["job:sh"]);
    for path in [format!("/runs/{run}"), format!("/runs/{run}/log"), "/runs/sh".to_owned()] {
        narrow.get(&path).is(404);
    }
    narrow.post(&format!("/runs/{run}/retry"), &json!({})).is(404);
    assert_eq!(narrow.get("/runs").items().len(), 0);
    narrow.post("/trigger/sh?wait=30s", &json!({})).is(200);
    assert_eq!(narrow.get("/runs").items().len(), 1);
    admin.post("/trigger/sh", &json!({"time": "2999-01-01T00:00:00Z"})).is(202);
    volume.wait("nothing to run", |volume| volume.holder("sh").is_none());
    let sleeper = json!({"command": ["sh", "-c", "sleep 600"], "timeout": "50s"});
    std::thread::scope(|scope| {
        let (caller, sleeper) = (&admin, &sleeper);
        let asked = scope.spawn(move || caller.post("/command", sleeper));
        volume.wait("it to run", |volume| volume.holder("sh").is_some());
        assert_eq!(
            narrow.post("/restart/all", &json!({})).is(200).json(),
            json!([]),
            "a command is not his to restart"
        );
        let active = admin.get("/runs?status=active").items().remove(0)["run_id"].as_str().unwrap().to_owned();
        narrow.post(&format!("/runs/{active}/cancel"), &json!({})).is(404);
        admin.post(&format!("/runs/{active}/cancel"), &json!({})).is(202);
        assert_eq!(asked.join().unwrap().is(200).json()["status"], "cancelled");
    });
    narrow.post("/devices/a/drain", &json!({})).is(403);
}

#[test]
fn an_idempotency_key_leads_to_nobody_elses_run() {
    let mut volume = Volume::new();
    volume.job("payroll", "command = [\"echo\", \"secret\"]\n");
    volume.job("mine", "command = [\"echo\", \"mine\"]\n");
    let admin = volume.serve("a", &[]);
    let paid = admin.post("/trigger/payroll?wait=30s", &json!({"id": "nightly"})).is(200).json();
    let narrow = admin.make_key("agent", &["job:mine"]);
    let first = narrow.post("/trigger/mine?wait=30s", &json!({"id": "nightly"})).is(200).json();
    assert_eq!(first["job"], "mine", "{first}");
    // His own key counts among his own runs; everybody's among everybody's.
    let again = narrow.post("/trigger/mine?wait=30s", &json!({"id": "nightly"})).is(200).json();
    assert_eq!(again["run_id"], first["run_id"]);
    let twice = admin.post("/trigger/payroll?wait=30s", &json!({"id": "nightly"})).is(200).json();
    assert_eq!(twice["run_id"], paid["run_id"]);
}

#[test]
fn what_waits_without_a_name_is_taken_out_by_its_run() {
    let mut volume = Volume::new();
    volume.job(
        "first",
        "command = [\"false\"]\nretries = 5\nbackoff = \"1h\"\ntype = \"interval\"\ninterval = \"365d\"\n",
    );
    volume.job(
        "second",
        "command = [\"false\"]\nretries = 5\nbackoff = \"1h\"\ntype = \"interval\"\ninterval = \"365d\"\n",
    );
    let api = volume.serve("a", &[]);
    volume.wait("both to wait", |_| {
        api.get("/triggers").items().iter().filter(|waiting| waiting["trigger"] == "-").count() == 2
    });
    api.delete("/triggers/-").is(404);
    let waiting = api.get("/triggers").items();
    let second = waiting.iter().find(|waiting| waiting["job"] == "second").unwrap();
    api.delete(&format!("/triggers/{}", second["run_id"].as_str().unwrap())).is(200);
    let left = api.get("/triggers").items();
    assert_eq!((left.len(), &left[0]["job"]), (1, &json!("first")));
}

#[test]
fn an_old_token_is_none_of_a_new_user_of_the_same_name() {
    let mut volume = Volume::new();
    let admin = volume.serve("a", &[]);
    let user = |role: &str| json!({"name": "ada", "password": "correct horse battery", "role": role});
    admin.post("/api/v1/users", &user("viewer")).is(201);
    let given = token(&admin, "username=ada&password=correct+horse+battery").is(200).json();
    admin.delete("/api/v1/users/ada").is(204);
    volume.next_instant();
    admin.post("/api/v1/users", &user("admin")).is(201);
    admin.by(given["access_token"].as_str().unwrap()).get("/jobs").is(401);
    let form = format!("grant_type=refresh_token&refresh_token={}", given["refresh_token"].as_str().unwrap());
    token(&admin, &form).is(401);
}

#[test]
fn a_change_is_written_down_before_its_end_is_waited_for_and_says_what_it_was() {
    let mut volume = Volume::new();
    volume.job("slow", "command = [\"sleep\", \"600\"]\n");
    let api = volume.serve("a", &[]);
    let log = volume.common("Logs/audit.a.jsonl");
    let said = |_: &Volume| -> Vec<Value> {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        // The last may still be written.
        text.split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    std::thread::scope(|scope| {
        let one = &api;
        let orders = [("/command", json!({"command": ["sleep", "601"]})), ("/trigger/slow?wait=10m", json!({}))];
        for (path, body) in orders {
            // Nobody answers.
            scope.spawn(move || std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| one.post(path, &body))));
        }
        volume.wait("both are written down", |volume| said(volume).len() == 2);
        volume.wait("both run", |volume| volume.holder("slow").is_some() && volume.holder("sleep").is_some());
        let runs = volume.state().unwrap()["runs"].as_object().unwrap().clone();
        for line in said(&volume) {
            let run = line["what"].as_str().unwrap().strip_prefix("run ").unwrap();
            assert!(runs.contains_key(run), "{line}");
            assert_eq!(line["status"], 202);
        }
        volume.kill("a");
    });
    let api = volume.serve("a", &[]);
    let before = said(&volume).len();
    api.post("/jobs", &json!({"name": "new", "command": ["true"]})).is(201);
    api.patch("/jobs/new", &json!({"timeout": "7s", "retries": 2})).is(200);
    api.post("/register_server", &json!({"url": "http://127.0.0.1:1", "key": "k"})).is(201);
    api.post("/system/set_resource_limits", &json!({"slots": 3, "memory": "256m"})).is(200);
    let user = json!({"name": "ada", "password": "correct horse battery", "role": "viewer", "scopes": ["job:new"]});
    api.post("/api/v1/users", &user).is(201);
    api.patch("/api/v1/users/ada", &json!({"role": "agent", "password": "another horse battery"})).is(200);
    api.post("/api/v1/backup", &json!({})).is(201);
    let what: Vec<String> =
        said(&volume)[before..].iter().map(|line| line["what"].as_str().unwrap_or_default().to_owned()).collect();
    for (what, words) in what.iter().zip([
        &["job new"][..],
        &["job new", "timeout", "retries"],
        &["server ", "http://127.0.0.1:1"],
        &["device a", "\"slots\":3", "256m"],
        &["user:ada viewer job:new"],
        &["user:ada", "role agent", "password"],
        &["backup Backups/"],
    ]) {
        assert!(words.iter().all(|word| what.contains(word)), "{what:?}: {words:?}");
        assert!(!what.contains("horse"), "{what}");
    }
    assert_eq!(what.len(), 7, "{what:?}");
}

#[test]
fn a_revoked_key_opens_nothing_on_a_device_that_nobody_has_asked_for_long() {
    let mut volume = Volume::new();
    volume.job("slow", "command = [\"sleep\", \"600\"]\n");
    let a = volume.serve("a", &[]);
    let b = volume.serve("b", &[]).by(&a.key);
    let narrow = a.make_key("operator", &[]);
    let id = narrow.key.split('_').nth(1).unwrap().to_owned();
    let b = b.by(&narrow.key);
    volume.wait("the other device to know it", |_| b.get("/jobs").status == 200);
    let run = b.post("/trigger/slow", &json!({})).is(202).json()["run_id"].as_str().unwrap().to_owned();
    let listened = b.listen(&format!("/runs/{run}/log?follow"), None);
    assert_eq!(volume.ask(&["keys", "revoke", &id]).0, Some(0));
    // Who listens is cut off, although nobody else asks.
    assert!(listened.map(|event| event.name).all(|name| name != "end"));
    // Both at once: neither is judged by what was known before.
    assert_eq!(volume.ask(&["keys", "activate", &id]).0, Some(0));
    volume.wait("the other device to know it", |_| b.get("/jobs").status == 200);
    assert_eq!(volume.ask(&["keys", "revoke", &id]).0, Some(0));
    // Nor if it could once not look.
    let (keys, aside) = (volume.common("Security/keys"), volume.common("Security/aside"));
    std::fs::rename(&keys, &aside).unwrap();
    std::os::unix::fs::symlink("keys", &keys).unwrap();
    volume.wait("it cannot look", |volume| {
        b.get("/jobs");
        volume.said("b").contains("Security/keys")
    });
    std::fs::remove_file(&keys).unwrap();
    std::fs::rename(&aside, &keys).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(11));
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..16).map(|_| scope.spawn(|| b.get("/jobs").status)).collect();
        asked.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert_eq!(statuses, [401; 16]);
}

#[test]
fn keys_that_cannot_be_read_stay_known_and_that_is_said_seldom() {
    let mut volume = Volume::new();
    let api = volume.serve("a", &[]);
    let (keys, aside) = (volume.common("Security/keys"), volume.common("Security/aside"));
    std::fs::rename(&keys, &aside).unwrap();
    std::os::unix::fs::symlink("keys", &keys).unwrap();
    let begun = std::time::Instant::now();
    let warned = |volume: &Volume| volume.said("a").matches("Security/keys").count();
    volume.wait("it is said", |volume| {
        api.get("/jobs").is(200);
        warned(volume) > 0
    });
    // Those who ask at once too.
    std::thread::scope(|scope| {
        (0..32).for_each(|_| drop(scope.spawn(|| api.send("GET", "/jobs", &[("connection", "close")], b"").is(200))));
    });
    for _ in 0..500 {
        api.get("/jobs").is(200);
        api.by("").get("/health").is(200);
        api.by("aios_0123456789ab_none").get("/jobs").is(401);
    }
    let most = begun.elapsed().as_secs() + 2;
    assert!(warned(&volume) as u64 <= most, "{} times in {most} s", warned(&volume));
    std::fs::remove_file(&keys).unwrap();
    std::fs::rename(&aside, &keys).unwrap();
    let id = api.key.split('_').nth(1).unwrap();
    assert_eq!(volume.ask(&["keys", "revoke", id]).0, Some(0));
    volume.wait("they are read again", |_| api.get("/jobs").status == 401);
}

#[test]
fn keys_and_users_are_changed_by_verbs_as_over_http() {
    let mut volume = Volume::new();
    let api = volume.serve("a", &[]);
    let made = api.post("/api/v1/keys", &json!({"name": "ci", "role": "viewer", "expires_at": "2999-01-01T00:00:00Z"}));
    let made = made.is(201).json();
    assert_eq!(made["expires_at"], "2999-01-01T00:00:00.000Z");
    let id = made["id"].as_str().unwrap();
    let past = json!({"name": "ci", "role": "viewer", "expires_at": "2001-01-01T00:00:00Z"});
    api.post("/api/v1/keys", &past).is(400);
    let row = || {
        let listed = volume.ask(&["keys", "list"]).1;
        listed.as_array().unwrap().iter().find(|row| row["id"] == id).unwrap().clone()
    };
    assert_eq!((&row()["last_used_at"], &row()["active"]), (&Value::Null, &json!(true)));
    let by = api.by(made["key"].as_str().unwrap());
    by.get("/jobs").is(200);
    // Once a minute.
    volume.wait_within(2 * PATIENCE, "its use is written down", |_| (!row()["last_used_at"].is_null()).then_some(()));
    assert_eq!(volume.ask(&["keys", "revoke", id]).0, Some(0));
    assert_eq!(row()["active"], false);
    volume.wait("it opens nothing", |_| by.get("/jobs").status == 401);
    assert_eq!(volume.ask(&["keys", "activate", id]).0, Some(0));
    volume.wait("it opens again", |_| by.get("/jobs").status == 200);
    let newer = volume.ask(&["keys", "rotate", id, "--overlap", "0s"]).1;
    volume.wait("the new secret opens", |_| api.by(newer["key"].as_str().unwrap()).get("/jobs").status == 200);
    by.get("/jobs").is(401);

    let user = json!({"name": "ada", "password": "correct horse battery", "role": "viewer"});
    api.post("/api/v1/users", &user).is(201);
    let form = "username=ada&password=correct+horse+battery";
    let ada = api.by(token(&api, form).is(200).json()["access_token"].as_str().unwrap());
    ada.get("/api/v1/keys").is(403);
    assert_eq!(volume.ask(&["users", "update", "ada", "--role", "admin"]).0, Some(0));
    let listed = volume.ask(&["users", "list"]).1;
    assert_eq!((&listed[0]["name"], &listed[0]["role"]), (&json!("ada"), &json!("admin")));
    // What was given before says something that is not true any more.
    volume.wait("the old token is not good", |_| ada.get("/api/v1/keys").status == 401);
    let ada = api.by(token(&api, form).is(200).json()["access_token"].as_str().unwrap());
    ada.get("/api/v1/keys").is(200);
}

#[test]
fn reasons_and_definitions_tell_nobody_more_than_he_may_know() {
    let mut volume = Volume::new();
    std::fs::write(volume.path("Programs/pools.toml"), "narrow = 1\n").unwrap();
    let pool = "pool = \"narrow\"\ncommand = [\"sleep\", \"600\"]\n";
    volume.job("theirs", pool);
    volume.job("mine", &format!("{pool}notify = \"https://hooks.lan/T0/secret-path?x=1\"\n"));
    let admin = volume.serve("a", &[]);
    let theirs = admin.post("/trigger/theirs", &json!({})).is(202).json()["run_id"].as_str().unwrap().to_owned();
    volume.wait("it has the pool", |volume| volume.holder("theirs").is_some());
    let mine = admin.post("/trigger/mine", &json!({})).is(202).json()["run_id"].as_str().unwrap().to_owned();
    let narrow = admin.make_key("operator", &["job:mine"]);
    let full = "its pool narrow is full: 1 of 1";
    for (path, place) in [
        (format!("/runs/{mine}"), "/reason"),
        ("/triggers".to_owned(), "/items/0/reason"),
        ("/jobs".to_owned(), "/items/0/reasons/1"),
        ("/jobs/mine".to_owned(), "/reasons/1"),
    ] {
        let told = narrow.get(&path).is(200);
        assert_eq!(told.json().pointer(place).unwrap(), full, "{path}: {told:?}");
        assert!(!told.text.contains(&theirs), "{path}: {told:?}");
        let whole = admin.get(&path).is(200).text;
        assert!(whole.contains(&format!("{full} ({theirs})")), "{path}: {whole}");
    }
    let mut stream = narrow.listen(&format!("/runs/{mine}/log?follow"), None);
    assert_eq!(stream.find(|event| event.name == "waiting").unwrap().data["reason"], full);
    // Whoever has a webhook's address may post there.
    let hook = |api: &Api| api.get("/jobs/mine").json()["definition"]["notify"].clone();
    assert_eq!(hook(&admin), "https://hooks.lan/T0/secret-path?x=1");
    assert_eq!(hook(&narrow), "https://hooks.lan/…");
    assert_eq!(hook(&admin.make_key("operator", &[])), "https://hooks.lan/…");
    // What a command is called makes it no job's.
    let late = json!({"command": ["mine"], "tags": ["nowhere"], "timeout": "1m"});
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| admin.post("/command", &late));
        volume.wait("it waits", |_| admin.get("/triggers").items().len() == 2);
        assert_eq!(admin.get("/jobs/mine").json()["waiting"], 1);
        let run = admin.get("/triggers").items().iter().find(|it| it["run_id"] != mine.as_str()).unwrap().clone();
        admin.post(&format!("/runs/{}/cancel", run["run_id"].as_str().unwrap()), &json!({})).is(202);
        assert_eq!(asked.join().unwrap().is(200).json()["status"], "cancelled");
    });
}
