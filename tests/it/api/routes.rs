//! Every route of the router's own list: what it answers to who may, to who may not, and to nonsense.

use serde_json::{Value, json};

use super::super::volume::Volume;
use super::{Answer, Api};

/// Every operation of the description: method, path, the role it takes.
fn operations(api: &Api) -> Vec<(String, String, Option<String>)> {
    let document = api.get("/api/openapi.json").is(200).json();
    assert_eq!(document["openapi"], "3.1.0");
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap().iter().filter(|(_, it)| it.get("responses").is_some()) {
            let role = operation.get("x-role").and_then(Value::as_str).map(str::to_owned);
            all.push((method.to_uppercase(), path.clone(), role));
        }
    }
    assert!(all.len() >= 45, "only {} operations are described", all.len());
    all
}

/// A path whose names are filled in with what is not there.
fn nowhere(path: &str) -> String {
    let mut filled = String::new();
    for piece in path.split('/').skip(1) {
        filled += "/";
        filled += if piece.starts_with('{') { "no-such-thing" } else { piece };
    }
    filled
}

#[test]
fn nobody_gets_anywhere_without_a_key_and_nobody_beyond_his_role() {
    let mut volume = Volume::new();
    volume.job("quiet", "command = [\"true\"]\n");
    let admin = volume.serve("a", &[]);
    let roles = ["viewer", "agent", "operator", "admin"];
    let keys: Vec<Api> = roles.iter().map(|role| admin.make_key(role, &[])).collect();
    let operations = operations(&admin);
    for (method, path, needed) in &operations {
        // A stream does not end.
        if path.ends_with("/events") {
            continue;
        }
        let path = nowhere(path);
        let ask = |api: &Api| api.send(method, &path, &[("content-type", "application/json")], b"");
        let Some(needed) = needed else {
            assert!(ask(&admin.by("")).status < 500, "{method} {path}");
            continue;
        };
        for bad in ["", "nonsense", "aios_0123456789ab_0123456789012345678901234567890123456789012345678901"] {
            ask(&admin.by(bad)).is(401);
        }
        let least = roles.iter().position(|role| role == needed).unwrap();
        for (at, api) in keys.iter().enumerate() {
            let answer = ask(api);
            if at < least {
                answer.is(403);
            } else {
                assert!(
                    ![401, 403].contains(&answer.status) && answer.status < 500,
                    "{method} {path} as {}: {answer:?}",
                    roles[at]
                );
            }
        }
    }
    // The names without a version lead to the same rights.
    for path in [
        "/jobs",
        "/runs",
        "/triggers",
        "/logs",
        "/devices",
        "/api/nodes",
        "/metrics",
        "/system/monitor_resources",
        "/servers",
    ] {
        admin.by("").get(path).is(401);
        keys[0].get(path).is(200);
    }
    for path in ["/restart/all", "/register_server", "/command", "/trigger/quiet"] {
        admin.by("").post(path, &json!({})).is(401);
        keys[0].post(path, &json!({})).is(403);
    }
    let listed = admin.by("").get("/").is(200).json();
    for (method, path, _) in &operations {
        assert!(
            listed["endpoints"].as_array().unwrap().contains(&json!(format!("{method} {path}"))),
            "{method} {path}"
        );
    }
}

/// A question of the table: method, path, body, the status to expect.
type Asked<'a> = (&'a str, String, Value, u16);

#[test]
fn every_route_does_what_it_says_and_refuses_what_cannot_be_meant() {
    let mut volume = Volume::new();
    volume.job("quiet", "command = [\"echo\", \"hello\"]\n");
    volume.job("slow", "command = [\"sleep\", \"600\"]\n");
    let api = volume.serve("a", &[]);
    let started = |answer: Answer| answer.json()["run_id"].as_str().unwrap().to_owned();
    let done = started(api.post("/api/v1/trigger/quiet?wait=30s", &json!({"args": ["there"]})).is(200));
    let active = started(api.post("/api/v1/trigger/slow", &json!({})).is(202));
    volume.wait("slow to run", |volume| volume.holder("slow").is_some());
    let late = started(api.post("/api/v1/trigger/quiet", &json!({"time": "2999-01-01T00:00:00Z"})).is(202));
    let other = started(api.post("/api/v1/trigger/quiet", &json!({"time": "2999-01-01T00:00:00Z"})).is(202));
    let key = api.post("/api/v1/keys", &json!({"name": "k", "role": "viewer"})).is(201).json();
    let key = key["id"].as_str().unwrap();
    let user = json!({"name": "ada", "password": "correct horse battery", "role": "viewer"});
    api.post("/api/v1/users", &user).is(201);
    let v1 = |path: &str| format!("/api/v1{path}");
    let none = Value::Null;
    let table: Vec<Asked<'_>> = vec![
        ("GET", "/".into(), none.clone(), 200),
        ("GET", "/health".into(), none.clone(), 200),
        ("GET", "/api/docs".into(), none.clone(), 200),
        ("GET", "/api/openapi.json".into(), none.clone(), 200),
        ("GET", v1("/health"), none.clone(), 200),
        ("GET", v1("/me"), none.clone(), 200),
        ("GET", v1("/metrics"), none.clone(), 200),
        ("GET", v1("/jobs?type=trigger&enabled=true&prefix=q"), none.clone(), 200),
        ("GET", v1("/jobs?limit=0"), none.clone(), 400),
        ("GET", v1("/jobs?enabled=perhaps"), none.clone(), 400),
        ("GET", v1("/jobs/quiet"), none.clone(), 200),
        ("GET", v1("/jobs/nobody"), none.clone(), 404),
        ("POST", v1("/jobs"), json!({"name": "new", "file": "new.sh", "interval": "1h"}), 201),
        ("POST", v1("/jobs"), json!({"name": "new", "file": "new.sh"}), 409),
        ("POST", v1("/jobs"), json!({"file": "new.sh"}), 400),
        ("POST", v1("/jobs"), json!({"name": "newer", "flie": "new.sh"}), 400),
        ("PATCH", v1("/jobs/new"), json!({"interval": "2h", "jitter": "1m"}), 200),
        ("PATCH", v1("/jobs/new"), json!({"jitter": null}), 200),
        ("PATCH", v1("/jobs/new"), json!({"interval": "never"}), 400),
        ("PATCH", v1("/jobs/nobody"), json!({"interval": "2h"}), 404),
        ("POST", v1("/jobs/new/disable"), none.clone(), 200),
        ("POST", v1("/jobs/nobody/disable"), none.clone(), 404),
        ("POST", v1("/jobs/new/enable"), none.clone(), 200),
        ("POST", v1("/jobs/nobody/enable"), none.clone(), 404),
        ("DELETE", v1("/jobs/new"), none.clone(), 200),
        ("DELETE", v1("/jobs/new"), none.clone(), 404),
        ("POST", v1("/trigger/nobody"), json!({}), 404),
        ("POST", v1("/trigger/quiet"), json!({"prioriti": 1}), 400),
        ("POST", v1("/trigger/quiet"), json!({"priority": 1000}), 400),
        ("POST", v1("/trigger/quiet?wait=soon"), json!({}), 400),
        ("POST", v1("/trigger/quiet"), json!([]), 400),
        ("POST", v1("/command"), json!({"command": ["true"]}), 200),
        ("POST", v1("/command"), json!({"command": ["true"], "job": "quiet"}), 400),
        ("POST", v1("/command"), json!({}), 400),
        ("POST", v1("/command"), json!({"job": "nobody"}), 404),
        ("GET", v1("/runs?status=succeeded&job=quiet&device=a&limit=1"), none.clone(), 200),
        ("GET", v1("/runs?status=happy"), none.clone(), 400),
        ("GET", v1("/runs?since=yesterday"), none.clone(), 400),
        ("GET", v1(&format!("/runs/{done}")), none.clone(), 200),
        ("GET", v1("/runs/nowhere"), none.clone(), 404),
        ("GET", v1(&format!("/runs/{done}/log")), none.clone(), 200),
        ("GET", v1(&format!("/runs/{done}/log?attempt=7")), none.clone(), 404),
        ("GET", v1(&format!("/runs/{late}/log")), none.clone(), 409),
        ("POST", v1(&format!("/runs/{done}/cancel")), none.clone(), 409),
        ("POST", v1("/runs/nowhere/cancel"), none.clone(), 404),
        ("POST", v1(&format!("/runs/{late}/cancel")), none.clone(), 202),
        ("POST", v1(&format!("/runs/{active}/retry")), none.clone(), 409),
        ("POST", v1("/runs/nowhere/retry"), none.clone(), 404),
        ("POST", v1(&format!("/runs/{done}/retry")), none.clone(), 202),
        ("GET", v1("/triggers?job=quiet"), none.clone(), 200),
        ("GET", v1("/triggers?limit=many"), none.clone(), 400),
        ("DELETE", v1(&format!("/triggers/quiet.{other}.json")), none.clone(), 200),
        ("DELETE", v1("/triggers/nothing.json"), none.clone(), 404),
        ("POST", v1("/restart/slow"), none.clone(), 200),
        ("POST", v1("/restart/nobody"), none.clone(), 404),
        ("POST", v1("/restart/all"), none.clone(), 200),
        ("GET", v1("/logs?limit=5&level=info&device=a"), none.clone(), 200),
        ("GET", v1("/logs?level=loud"), none.clone(), 400),
        ("GET", v1("/devices?alive=true&tag=a"), none.clone(), 200),
        ("GET", v1("/devices?limit=-1"), none.clone(), 400),
        ("POST", v1("/devices/a/drain"), none.clone(), 200),
        ("POST", v1("/devices/b/drain"), none.clone(), 404),
        ("POST", v1("/devices/a/resume"), none.clone(), 200),
        ("POST", v1("/devices/b/resume"), none.clone(), 404),
        ("GET", v1("/system/monitor_resources?device=a"), none.clone(), 200),
        ("GET", v1("/system/monitor_resources?follow=perhaps"), none.clone(), 400),
        ("POST", v1("/system/set_resource_limits"), json!({"device": "a", "slots": 7, "memory": "512m"}), 200),
        ("POST", v1("/system/set_resource_limits"), json!({"memory": "little"}), 400),
        ("POST", v1("/system/set_resource_limits"), json!({"device": "b", "slots": 7}), 404),
        ("GET", v1("/servers"), none.clone(), 200),
        ("POST", v1("/register_server"), json!({"url": "ftp://x", "key": "k"}), 400),
        ("POST", v1("/register_server"), json!({"url": "http://127.0.0.1:1", "key": "k"}), 201),
        ("POST", v1("/register_server"), json!({"url": "http://127.0.0.1:1", "key": "k"}), 409),
        ("DELETE", v1("/servers/nobody"), none.clone(), 404),
        ("GET", v1("/keys?limit=1"), none.clone(), 200),
        ("GET", v1("/keys?limit=501"), none.clone(), 400),
        ("POST", v1("/keys"), json!({"name": "more", "role": "viewer"}), 201),
        ("POST", v1("/users"), json!({"name": "eve", "password": "correct horse battery", "role": "viewer"}), 201),
        ("POST", v1("/keys"), json!({"name": "", "role": "viewer"}), 400),
        ("POST", v1("/keys"), json!({"name": "x", "role": "root"}), 400),
        ("POST", v1("/keys"), json!({"name": "x", "role": "admin", "scopes": ["job:a"]}), 400),
        ("POST", v1(&format!("/keys/{key}/revoke")), none.clone(), 200),
        ("POST", v1("/keys/nobody/revoke"), none.clone(), 404),
        ("POST", v1(&format!("/keys/{key}/activate")), none.clone(), 200),
        ("POST", v1("/keys/nobody/activate"), none.clone(), 404),
        ("POST", v1(&format!("/keys/{key}/rotate")), json!({"overlap": "1h"}), 200),
        ("POST", v1("/keys/nobody/rotate"), json!({}), 404),
        ("POST", v1(&format!("/keys/{key}/rotate")), json!({"overlap": 5}), 400),
        ("DELETE", v1(&format!("/keys/{key}")), none.clone(), 204),
        ("DELETE", v1(&format!("/keys/{key}")), none.clone(), 404),
        ("GET", v1("/users"), none.clone(), 200),
        ("GET", v1("/users?limit=x"), none.clone(), 400),
        ("POST", v1("/users"), user.clone(), 409),
        ("POST", v1("/users"), json!({"name": "bob", "password": "short", "role": "viewer"}), 400),
        ("PATCH", v1("/users/ada"), json!({"role": "agent"}), 200),
        ("PATCH", v1("/users/ada"), json!({"rule": "agent"}), 400),
        ("PATCH", v1("/users/bob"), json!({"role": "agent"}), 404),
        ("DELETE", v1("/users/ada"), none.clone(), 204),
        ("DELETE", v1("/users/ada"), none.clone(), 404),
        ("POST", v1("/backup"), json!({"keep": 2}), 201),
        ("POST", v1("/backup"), json!({"keep": 0}), 400),
        ("GET", v1("/backups"), none.clone(), 200),
        ("GET", v1("/backups?limit=0"), none.clone(), 400),
    ];
    for (method, path, body, status) in &table {
        let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let answer = api.send(method, path, &[("content-type", "application/json")], &bytes);
        assert_eq!(answer.status, *status, "{method} {path} {body}: {answer:?}");
        if *status >= 400 {
            answer.is(*status);
        }
    }
    let server = api.get("/servers").items().remove(0);
    assert_eq!(server["status"], "unreachable", "{server}");
    api.delete(&format!("/servers/{}", server["id"].as_str().unwrap())).is(204);
    every_operation_stands_in(&table, &api);
}

/// No route is forgotten: each is asked for something that it does.
fn every_operation_stands_in(table: &[Asked<'_>], api: &Api) {
    let elsewhere =
        ["POST /api/v1/token", "GET /api/v1/events", "POST /api/v1/trigger/{job}", "DELETE /api/v1/servers/{id}"];
    for (method, path, _) in operations(api) {
        let pieces: Vec<&str> = path.split('/').collect();
        let is_it = |(asked, at, _, status): &Asked<'_>| {
            let at: Vec<&str> = at.split('?').next().unwrap().split('/').collect();
            let fits = |(piece, at): (&&str, &&str)| piece.starts_with('{') || piece == at;
            *asked == method && *status < 400 && at.len() == pieces.len() && pieces.iter().zip(&at).all(fits)
        };
        let is_tested = table.iter().any(is_it) || elsewhere.contains(&format!("{method} {path}").as_str());
        assert!(is_tested, "{method} {path} is asked for nothing that it does");
    }
}

#[test]
fn two_devices_give_the_same_answers() {
    let mut volume = Volume::new();
    volume.job("quiet", "command = [\"echo\", \"hello\"]\n");
    volume.job("timed", "type = \"daily\"\ntime = \"09:00\"\ncommand = [\"true\"]\n");
    let a = volume.serve("a", &[]);
    let b = volume.serve("b", &[]);
    let b = b.by(&a.key);
    for number in 0..20 {
        let api = if number % 2 == 0 { &a } else { &b };
        api.post("/trigger/quiet?wait=30s", &json!({"args": [number]})).is(200);
    }
    a.post("/trigger/quiet", &json!({"time": "2999-01-01T00:00:00Z"})).is(202);
    for path in ["/jobs", "/runs?limit=500", "/triggers", "/api/v1/keys", "/api/v1/users", "/api/v1/backups"] {
        let same = || a.get(path).is(200).json() == b.get(path).is(200).json();
        // A look counts for a second.
        volume.wait(&format!("{path} to be the same"), |_| same());
    }
    let ids = |api: &Api| api.get("/devices").items().iter().map(|device| device["device"].clone()).collect::<Vec<_>>();
    volume.wait("both to see both", |_| ids(&a) == ["a", "b"] && ids(&b) == ["a", "b"]);
    let runs = a.get("/runs?limit=500").items();
    assert_eq!(runs.iter().filter(|run| run["status"] == "succeeded").count(), 20);
}

#[test]
fn lists_come_in_pages_without_gap_or_overlap_and_are_not_sent_twice() {
    let mut volume = Volume::new();
    for number in 0..7 {
        volume.job(&format!("job{number}"), "command = [\"true\"]\n");
    }
    let api = volume.serve("a", &[]);
    for _ in 0..11 {
        api.post("/trigger/job3?wait=30s", &json!({})).is(200);
    }
    for (path, name, count) in [("/jobs", "job", 7), ("/runs", "run_id", 11)] {
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = api.get(&format!("{path}?limit=3{cursor}")).is(200).json();
            seen.extend(page["items"].as_array().unwrap().iter().map(|item| item[name].as_str().unwrap().to_owned()));
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        let mut distinct = seen.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!((seen.len(), distinct.len()), (count, count), "{path}: {seen:?}");
    }
    let first = api.get("/runs").is(200);
    let tag = first.header("etag").to_owned();
    let again = api.send("GET", "/runs", &[("if-none-match", &tag)], b"");
    assert_eq!((again.status, again.text.as_str()), (304, ""));
    // Who sees less gets no other's answer.
    let narrow = api.make_key("viewer", &["job:job5"]);
    assert_eq!(narrow.get("/jobs").items().len(), 1);
    assert_eq!(narrow.send("GET", "/runs", &[("if-none-match", &tag)], b"").items().len(), 0);
    assert_eq!(api.get("/jobs").items().len(), 7);
}
