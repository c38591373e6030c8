//! Every route of the router's own list: what it answers to who may, to who may not, and to nonsense.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::super::volume::Volume;
use super::{Answer, Api};

/// An operation of the description.
struct Operation {
    method: String,
    path: String,
    /// The role it takes.
    role: Option<String>,
    /// Whether there is anything in it that could not be meant.
    takes_input: bool,
}

/// Every operation of the description.
fn operations(api: &Api) -> Vec<Operation> {
    let document = api.get("/api/openapi.json").is(200).json();
    assert_eq!(document["openapi"], "3.1.0");
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap().iter().filter(|(_, it)| it.get("responses").is_some()) {
            all.push(Operation {
                method: method.to_uppercase(),
                path: path.clone(),
                role: operation.get("x-role").and_then(Value::as_str).map(str::to_owned),
                takes_input: ["parameters", "requestBody"].iter().any(|key| operation.get(key).is_some()),
            });
        }
    }
    assert!(all.len() >= 45, "only {} operations are described", all.len());
    all
}

/// Every path that is served, with its method and the role it takes, whichever of its names it is.
fn served(api: &Api) -> Vec<(String, String, Option<String>)> {
    let operations = operations(api);
    let listed = api.by("").get("/").is(200).json();
    let listed = listed["endpoints"].as_array().unwrap().iter().map(|it| it.as_str().unwrap().to_owned());
    let listed: BTreeSet<String> = listed.collect();
    for Operation { method, path, .. } in &operations {
        assert!(listed.contains(&format!("{method} {path}")), "{method} {path}");
    }
    let role = |method: &str, path: &str| {
        let versioned = format!("/api/v1{}", path.replace("/api/nodes", "/devices"));
        let of = |path: &str| operations.iter().find(|it| it.method == method && it.path == path);
        of(path).or_else(|| of(&versioned)).unwrap_or_else(|| panic!("{method} {path} is not described")).role.clone()
    };
    let pair = |line: &String| {
        let (method, path) = line.split_once(' ').unwrap();
        (method.to_owned(), path.to_owned(), role(method, path))
    };
    let all: Vec<_> = listed.iter().map(pair).collect();
    assert!(all.len() > operations.len() + 20, "names without a version are served too: {listed:?}");
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
    for (method, path, needed) in &served(&admin) {
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
            // A stream does not end.
            if at >= least && path.ends_with("/events") {
                continue;
            }
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
        ("GET", v1("/jobs?enabeld=true"), none.clone(), 400),
        ("GET", "/api/nodes?tag=a&alive=true".into(), none.clone(), 200),
        ("GET", "/api/nodes?tags=a".into(), none.clone(), 400),
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
        ("GET", v1("/runs?cursor=there"), none.clone(), 400),
        ("GET", v1(&format!("/runs/{done}")), none.clone(), 200),
        ("GET", v1("/runs/nowhere"), none.clone(), 404),
        ("GET", v1(&format!("/runs/{done}?cursor=there")), none.clone(), 400),
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
        ("GET", v1("/logs?cursor=there"), none.clone(), 400),
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
        ("GET", v1("/servers?status=lazy"), none.clone(), 400),
        ("POST", v1("/register_server"), json!({"url": "ftp://x", "key": "k"}), 400),
        ("POST", v1("/register_server"), json!({"url": "http://127.0.0.1:1", "key": "k"}), 201),
        ("POST", v1("/register_server"), json!({"url": "http://127.0.0.1:1", "key": "k"}), 409),
        ("DELETE", v1("/servers/nobody"), none.clone(), 404),
        ("GET", v1("/keys?limit=1"), none.clone(), 200),
        ("GET", v1("/keys?limit=501"), none.clone(), 400),
        ("GET", v1("/keys?role=root"), none.clone(), 400),
        ("GET", v1("/keys?role=viewer&active=true"), none.clone(), 200),
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
        ("GET", v1("/users?active=often"), none.clone(), 400),
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
        ("GET", v1("/backups?since=yesterday"), none.clone(), 400),
    ];
    // What was wrong is named.
    for (answer, words) in [
        (api.get("/jobs?enabeld=true"), &["enabeld", "did you mean `enabled`?"][..]),
        (api.get("/runs?since=1h"), &["since", "1h", "2026-11-21T09:00:00Z"]),
        (api.get("/runs?limit=many"), &["limit", "many", "1 to 500"]),
        (api.post("/command", &json!({"command": "uname -a"})), &["`command`", "a sequence"]),
        (api.post("/command", &json!({"command": ["true"], "timeout": 2})), &["`timeout`", "2"]),
        (api.post("/trigger/quiet", &json!({"kwargs": {}, "tags": ["a", 5]})), &["`tags[1]`", "a string"]),
        (api.post("/trigger/quiet", &json!({"timeout": "0s"})), &["`timeout`", "0s"]),
        (
            api.post("/command", &json!({"command": ["true"], "tags": ["gpu"], "timeout": "1s"})),
            &["the tag gpu", "1 s"],
        ),
    ] {
        assert!(answer.status >= 400 && words.iter().all(|word| answer.text.contains(word)), "{words:?}: {answer:?}");
    }
    api.send("PATCH", "/jobs/quiet", &[("content-type", "application/merge-patch+json")], b"{}").is(200);
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

/// No route is forgotten: each is asked for something that it does, and for something that cannot be meant.
fn every_operation_stands_in(table: &[Asked<'_>], api: &Api) {
    let elsewhere =
        ["POST /api/v1/token", "GET /api/v1/events", "POST /api/v1/trigger/{job}", "DELETE /api/v1/servers/{id}"];
    for Operation { method, path, takes_input, .. } in operations(api) {
        let pieces: Vec<&str> = path.split('/').collect();
        let is_it = |(asked, at, _, _): &&Asked<'_>| {
            let at: Vec<&str> = at.split('?').next().unwrap().split('/').collect();
            let fits = |(piece, at): (&&str, &&str)| piece.starts_with('{') || piece == at;
            *asked == method && at.len() == pieces.len() && pieces.iter().zip(&at).all(fits)
        };
        let rows: Vec<&Asked<'_>> = table.iter().filter(is_it).collect();
        let is_tested = |refused: bool| rows.iter().any(|(.., status)| (*status >= 400) == refused);
        let is_elsewhere = elsewhere.contains(&format!("{method} {path}").as_str());
        assert!(is_tested(false) || is_elsewhere, "{method} {path} is asked for nothing that it does");
        assert!(
            is_tested(true) || !takes_input || path == "/api/v1/token",
            "{method} {path} is asked for nothing that cannot be meant"
        );
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
    b.post("/api/v1/users", &json!({"name": "ada", "password": "correct horse battery", "role": "viewer"})).is(201);
    a.post("/api/v1/backup", &json!({})).is(201);
    let run = a.get("/runs?status=succeeded").items().remove(0)["run_id"].as_str().unwrap().to_owned();
    // What comes after a cursor does not change any more.
    let older = a.get("/logs?limit=5").is(200).json()["next"].as_str().unwrap().replace(' ', "%20");
    for (path, is_there) in [
        ("/jobs", "/items/0"),
        ("/jobs/quiet", "/job"),
        ("/runs?limit=500", "/items/0"),
        (&format!("/runs/{run}"), "/run_id"),
        ("/triggers", "/items/0"),
        (&format!("/logs?limit=5&cursor={older}"), "/items/0"),
        ("/api/v1/keys", "/items/0"),
        ("/api/v1/users", "/items/0"),
        ("/api/v1/backups", "/items/0"),
    ] {
        assert!(!a.get(path).is(200).json().pointer(is_there).unwrap().is_null(), "{path}");
        let same = || {
            let [mut of_a, mut of_b] = [&a, &b].map(|api| api.get(path).is(200).json());
            // When a key was used each device says for itself, and writes it down later.
            for key in [&mut of_a, &mut of_b].into_iter().filter_map(|it| it["items"].as_array_mut()).flatten() {
                key.as_object_mut().unwrap().remove("last_used_at");
            }
            of_a == of_b
        };
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
    // Some of which sort otherwise by the names of their files.
    for name in ["job", "job-1", "job.1", "job3", "job4", "job5", "job_6"] {
        volume.job(name, "command = [\"true\"]\n");
    }
    let api = volume.serve("a", &[]);
    for _ in 0..11 {
        api.post("/trigger/job3?wait=30s", &json!({})).is(200);
    }
    for name in ["eve", "eve-1", "eve.1", "eve2"] {
        let user = json!({"name": name, "password": "correct horse battery", "role": "viewer"});
        api.post("/api/v1/users", &user).is(201);
        api.post("/api/v1/keys", &json!({"name": name, "role": "viewer"})).is(201);
        api.post("/register_server", &json!({"url": format!("http://127.0.0.1:{}", name.len()), "key": "k"}));
    }
    let waits = json!({"time": "2999-01-01T00:00:00Z"});
    (0..5).for_each(|_| drop(api.post("/trigger/job", &waits).is(202)));
    for (path, name, count) in [
        ("/jobs", "job", 7),
        ("/runs", "run_id", 16),
        ("/triggers", "run_id", 5),
        ("/api/v1/users", "name", 4),
        ("/api/v1/keys", "id", 5),
        ("/servers", "id", 3),
    ] {
        for limit in [1, 3] {
            let pages = api.pages(&format!("{path}?limit={limit}"), "items");
            assert!(pages.iter().all(|page| page.len() <= limit), "{pages:?}");
            let seen: Vec<&str> = pages.iter().flatten().map(|item| item[name].as_str().unwrap()).collect();
            let mut distinct = seen.clone();
            distinct.sort();
            distinct.dedup();
            assert_eq!((seen.len(), distinct.len()), (count, count), "{path}: {seen:?}");
        }
    }
    assert_eq!(api.get("/api/v1/users?role=admin").items().len(), 0);
    assert_eq!(api.get("/api/v1/keys?role=admin&active=true").items().len(), 1);
    assert_eq!(api.get("/servers?status=ok").items().len(), 0);
    assert_eq!(api.get("/api/v1/backups?since=2999-01-01T00:00:00Z").items().len(), 0);
    let first = api.get("/runs").is(200);
    let tag = first.header("etag").to_owned();
    let again = api.send("GET", "/runs", &[("if-none-match", &tag)], b"");
    assert_eq!((again.status, again.text.as_str()), (304, ""));
    // Who sees less gets no other's answer.
    let narrow = api.make_key("viewer", &["job:job5"]);
    narrow.get("/servers").is(403);
    assert_eq!(narrow.get("/jobs").items().len(), 1);
    assert_eq!(narrow.send("GET", "/runs", &[("if-none-match", &tag)], b"").items().len(), 0);
    assert_eq!(api.get("/jobs").items().len(), 7);
}

#[test]
fn what_is_asked_is_done() {
    let mut volume = Volume::new();
    volume.job("slow", "command = [\"sleep\", \"600\"]\n");
    volume.job("other", "command = [\"true\"]\n");
    volume.script(
        "tell.sh",
        "printf '%s|' \"$@\"; cat \"$AIOS_TRIGGER\"; i=0; while [ $i -lt 2000 ]; do echo a line of fifty characters, more or less, $i; i=$((i+1)); done; echo '{\"sum\": 7}' > \"$AIOS_RESULT\"",
    );
    volume.job("tell", "file = \"tell.sh\"\ntags = [\"a\"]\n");
    let api = volume.serve("a", &[]);
    let order = json!({"args": ["one", "two three"], "priority": 5, "tags": ["a"], "kwargs": {"k": 1.50}, "id": "x"});
    let started = api.post("/trigger/tell", &order).is(202).json();
    let run = started["run_id"].as_str().unwrap().to_owned();
    for link in ["run", "log", "cancel"] {
        assert!(started["links"][link].as_str().unwrap().starts_with(&format!("/api/v1/runs/{run}")), "{started}");
    }
    let result = volume.outcome("tell");
    assert_eq!((&result["priority"], &result["cause"]), (&json!(5), &json!("api")), "{result}");
    assert_eq!((&result["args"], &result["kwargs"]), (&json!(["one", "two three"]), &json!({"k": 1.50})));
    let log = api.get(started["links"]["log"].as_str().unwrap()).is(200).text;
    assert!(log.starts_with("one|two three|") && log.contains("\"tags\":[\"a\"]"), "{log:.200}");
    // The same key leads to the same run.
    assert_eq!(api.post("/trigger/tell?wait=30s", &order).is(200).json()["run_id"], run);

    let told = api.post("/command", &json!({"job": "tell", "args": ["x"]})).is(200).json();
    assert_eq!((&told["result"], &told["output_truncated"]), (&json!({"sum": 7}), &json!(true)));
    let output = told["output"].as_str().unwrap();
    assert!(output.len() == 64 << 10 && output.ends_with(", 1999\n"), "{}", output.len());

    let slow = api.post("/trigger/slow", &json!({})).is(202).json()["run_id"].clone();
    volume.wait("slow to run", |volume| volume.holder("slow").is_some());
    assert_eq!(api.post("/restart/slow", &json!({})).is(200).json()[0]["run_id"], slow);
    let attempt = |api: &Api| api.get("/jobs/slow").json()["active"][0]["attempt"].clone();
    volume.wait("its second attempt", |_| attempt(&api) == 2);
    assert_eq!(api.post("/restart/all", &json!({})).is(200).json().as_array().unwrap().len(), 1);
    volume.wait("its third attempt", |_| attempt(&api) == 3);

    for path in ["/devices/a", "/api/nodes/a"] {
        api.post(&format!("{path}/drain"), &json!({})).is(200);
        volume.wait("it is drained", |_| api.get("/devices").items()[0]["drained"] == true);
        api.post(&format!("{path}/resume"), &json!({})).is(200);
        volume.wait("it is not", |_| api.get("/devices").items()[0]["drained"] == false);
    }
    let machine = api.get("/devices").items()[0]["machine"].clone();
    for key in ["os", "arch", "cpus", "memory_bytes"] {
        assert!(!machine[key].is_null(), "{machine}");
    }

    let file = || std::fs::read_to_string(volume.path("Programs/other.toml")).unwrap();
    let reads = || volume.said("a").matches("job files are read anew").count();
    api.patch("/jobs/other", &json!({"timeout": "7s"})).is(200);
    volume.wait("it is read", |_| reads() == 2);
    assert!(file().contains("timeout = \"7s\""), "{}", file());
    assert_eq!(api.post("/jobs/other/disable", &json!({})).is(200).json()["enabled"], false);
    assert!(file().contains("enabled = false"), "{}", file());
    volume.wait("that is read", |_| reads() == 3);
    let waits = api.post("/trigger/other", &json!({})).is(202).json();
    assert!(waits["note"].as_str().unwrap().contains("disabled"), "{waits}");
    api.post("/trigger/slow", &json!({"time": "2999-01-01T00:00:00Z"})).is(202);
    let waiting = api.get("/triggers?job=other").items();
    assert_eq!(waiting.len(), 1, "{waiting:?}");
    assert!(waiting[0]["run_id"] == waits["run_id"] && waiting[0]["reason"].to_string().contains("disabled"));
    assert_eq!(api.post("/jobs/other/enable", &json!({})).is(200).json()["enabled"], true);
    assert_eq!(volume.outcome("other")["run_id"], waits["run_id"]);
}

#[test]
fn of_many_attempts_the_newest_are_shown_and_the_others_by_a_cursor() {
    let mut volume = Volume::new();
    volume.job("again", "command = [\"false\"]\ntype = \"always\"\nbackoff = \"10ms\"\nbackoff_max = \"10ms\"\n");
    let api = volume.serve("a", &[]);
    volume.wait("it has failed often", |volume| volume.results("again").len() >= 12);
    api.post("/jobs/again/disable", &json!({})).is(200);
    // Between two attempts nobody holds it either.
    volume.wait("it does no more", |volume| volume.state().unwrap()["runs"].as_object().unwrap().is_empty());
    let run = volume.results("again")[0]["run_id"].as_str().unwrap().to_owned();
    let count = volume.results("again").iter().filter(|result| result["run_id"] == run.as_str()).count() as u64;
    let pages = api.pages(&format!("/runs/{run}?limit=5"), "attempts");
    let seen: Vec<u64> = pages.iter().rev().flatten().map(|it| it["attempt"].as_u64().unwrap()).collect();
    assert_eq!(seen.len() as u64, count, "{seen:?}");
    assert!(seen.is_sorted_by(|a, b| a < b), "{seen:?}");
}

#[test]
fn job_files_that_cannot_be_written_are_left_to_others() {
    let mut volume = Volume::new();
    volume.job("quiet", "command = [\"true\"]\n");
    let api = volume.serve("a", &[]);
    let folder = volume.path("Programs");
    std::fs::rename(&folder, volume.path("Elsewhere")).unwrap();
    std::os::unix::fs::symlink(volume.path("Elsewhere"), &folder).unwrap();
    let problem = api.post("/jobs", &json!({"name": "new", "command": ["true"]})).is(503).json();
    assert!(problem["hint"].as_str().unwrap().contains("--programs"), "{problem}");
    api.patch("/jobs/quiet", &json!({"timeout": "7s"})).is(503);
    api.post("/jobs/quiet/disable", &json!({})).is(503);
    api.delete("/jobs/quiet").is(503);
    assert!(!volume.path("Elsewhere/new.toml").exists() && volume.path("Elsewhere/quiet.toml").exists());
}
