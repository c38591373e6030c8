//! Keys, users, tokens, scopes: who comes in, how far, and what is written down of it.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use super::super::volume::{Volume, files};
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
    volume.wait("it has expired", |_| short.get("/jobs").status == 401);
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
    assert_eq!(volume.ask(&["users", "delete", "eve"]).0, Some(0));
    volume.wait("eve is gone", |_| token(&admin, "username=eve&password=a+long+enough+password").status == 401);
    admin.patch("/api/v1/users/ada", &json!({"active": false})).is(200);
    ada.get("/jobs").is(401);
    token(&admin, &form).is(401);
    token(&admin, "username=ada&password=correct+horse+battery").is(401);
    // Who tries on is told to wait, whatever the password.
    let statuses: Vec<u16> = (0..40).map(|_| token(&admin, "username=ada&password=guess").status).collect();
    assert!(statuses.contains(&429), "{statuses:?}");
    assert!(!token(&admin, "username=ada&password=guess").header("retry-after").is_empty());
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
            ("POST", "/trigger/quiet", 200),
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
