//! What happens while somebody waits and listens: logs that grow, devices that die, many callers at once.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::super::volume::Volume;
use super::Event;

/// The text of all `log` events of an attempt.
fn told(events: &[Event], attempt: u64) -> String {
    let of = events.iter().filter(|event| event.name == "log" && event.data["attempt"] == attempt);
    of.map(|event| event.data["text"].as_str().unwrap()).collect()
}

#[test]
fn a_log_is_followed_across_the_death_of_its_device() {
    let mut volume = Volume::new();
    let go = volume.path("go");
    volume.script(
        "count.sh",
        &format!("echo attempt $AIOS_ATTEMPT begins; while [ ! -e {} ]; do sleep 0.02; done; echo done", go.display()),
    );
    volume.job("count", "file = \"count.sh\"\ntags = [\"worker\"]\n");
    let api = volume.serve("a", &[]);
    volume.start("b", &["--tags", "worker"]);
    let run = api.post("/trigger/count", &json!({})).is(202).json()["run_id"].as_str().unwrap().to_owned();
    volume.wait("b to run it", |volume| volume.holder("count").as_deref() == Some("b"));
    let mut stream = api.listen(&format!("/runs/{run}/log?follow"), None);
    let mut events = Vec::new();
    while !told(&events, 1).contains("attempt 1 begins\n") {
        events.push(stream.next().expect("the log goes on"));
    }
    volume.kill("b");
    volume.start("c", &["--tags", "worker"]);
    while !told(&events, 2).contains("attempt 2 begins\n") {
        events.push(stream.next().expect("the log goes on"));
    }
    let lost = events.iter().find(|event| event.name == "attempt").expect("the first attempt's end is told");
    assert_eq!((lost.data["status"].as_str(), lost.data["attempt"].as_u64()), (Some("lost"), Some(1)));
    std::fs::write(go, "").unwrap();
    events.extend(stream);
    let end = events.last().unwrap();
    assert_eq!((end.name.as_str(), end.data["status"].as_str()), ("end", Some("succeeded")));
    assert_eq!(told(&events, 2), "attempt 2 begins\ndone\n");
}

#[test]
fn a_stream_that_was_cut_goes_on_where_it_was() {
    let mut volume = Volume::new();
    volume.script(
        "words.sh",
        "i=0; while [ $i -lt 2000 ]; do echo \"line $i of a log – not all of it ASCII\"; i=$((i+1)); done",
    );
    volume.job("words", "file = \"words.sh\"\n");
    let api = volume.serve("a", &[]);
    let ended = api.post("/trigger/words?wait=30s", &json!({})).is(200).json();
    let run = ended["run_id"].as_str().unwrap().to_owned();
    assert_eq!((&ended["cause"], &ended["trigger"]), (&json!("api"), &json!(format!("words.{run}.json"))));
    let path = format!("/runs/{run}/log");
    let whole = api.get(&path).is(200);
    assert!(
        whole.header("content-type").starts_with("text/plain")
            && whole.header("content-disposition").starts_with("attachment")
    );
    assert_eq!(whole.text.lines().count(), 2_000);
    // Each piece by a connection of its own.
    let (mut pieces, mut last) = (String::new(), None::<String>);
    loop {
        let event = api.listen(&format!("{path}?follow"), last.as_deref()).next().unwrap();
        if event.name != "log" {
            assert_eq!(event.name, "end");
            break;
        }
        pieces += event.data["text"].as_str().unwrap();
        last = Some(event.id);
    }
    assert_eq!(pieces, whole.text);
    let piece = api.send("GET", &path, &[("range", "bytes=5-9")], b"");
    assert_eq!((piece.status, piece.text.as_bytes()), (206, &whole.text.as_bytes()[5..10]));
    assert_eq!(piece.header("content-range"), format!("bytes 5-9/{}", whole.text.len()));
    api.send("GET", &path, &[("range", "bytes=99999999-")], b"").is(416);
}

#[test]
fn two_hundred_callers_get_each_their_own_answer() {
    let mut volume = Volume::new();
    let a = volume.serve("a", &["--slots", "16"]);
    let b = volume.serve("b", &["--slots", "16"]).by(&a.key);
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..200)
            .map(|number| {
                let api = if number % 2 == 0 { &a } else { &b };
                let command =
                    json!({"command": ["sh", "-c", format!("echo {number}; exit {}", number % 7)], "timeout": "50s"});
                scope.spawn(move || api.post("/command", &command).is(200).json())
            })
            .collect();
        callers.into_iter().map(|caller| caller.join().unwrap()).collect()
    });
    for (number, answer) in answers.iter().enumerate() {
        assert_eq!(answer["output"], format!("{number}\n"), "{answer}");
        assert_eq!(answer["exit_code"], number % 7, "{answer}");
    }
    let runs: BTreeSet<&str> = answers.iter().map(|answer| answer["run_id"].as_str().unwrap()).collect();
    assert_eq!(runs.len(), 200, "each ran once");
    let devices: BTreeSet<&str> = answers.iter().map(|answer| answer["device"].as_str().unwrap()).collect();
    assert_eq!(devices.len(), 2, "both worked");
    volume.check("sh", 200);
}

#[test]
fn a_command_goes_on_elsewhere_when_its_device_dies_and_ends_at_its_timeout() {
    let mut volume = Volume::new();
    let api = volume.serve("a", &[]);
    volume.start("b", &["--tags", "worker"]);
    let go = volume.path("go");
    let wait = format!("[ $AIOS_DEVICE_ID = c ] && echo from c && exit 3; touch {}; sleep 600", go.display());
    let answer = std::thread::scope(|scope| {
        let command = json!({"command": ["sh", "-c", wait], "tags": ["worker"], "timeout": "50s"});
        let caller = scope.spawn({
            let api = &api;
            move || api.post("/command", &command).is(200).json()
        });
        volume.wait("b to run it", |_| go.exists());
        volume.kill("b");
        volume.start("c", &["--tags", "worker"]);
        caller.join().unwrap()
    });
    assert_eq!(
        (&answer["device"], &answer["exit_code"], &answer["attempt"]),
        (&json!("c"), &json!(3), &json!(2)),
        "{answer}"
    );
    assert_eq!(answer["output"], "from c\n");
    let late = api.post("/command", &json!({"command": ["sleep", "600"], "timeout": "300ms"})).is(504).json();
    assert!(late["detail"].as_str().unwrap().contains("cancelled"), "{late}");
    volume
        .wait("it is cancelled", |volume| volume.results("sleep").iter().any(|result| result["status"] == "cancelled"));
}

#[test]
fn what_changes_is_told_and_what_was_missed_is_told_later() {
    let mut volume = Volume::new();
    volume.job("quiet", "command = [\"true\"]\n");
    let api = volume.serve("a", &[]);
    let narrow = api.make_key("viewer", &["job:other"]);
    let mut stream = api.listen("/api/v1/events", None);
    assert_eq!(stream.next().unwrap().name, "hello");
    let mut hidden = narrow.listen("/api/v1/events", None);
    assert_eq!(hidden.next().unwrap().name, "hello");
    let mut ended = BTreeSet::new();
    let mut started = Vec::new();
    let mut last = String::new();
    for _ in 0..5 {
        started.push(
            api.post("/trigger/quiet?wait=30s", &json!({})).is(200).json()["run_id"].as_str().unwrap().to_owned(),
        );
    }
    while !started.iter().all(|run| ended.contains(run)) {
        let event = stream.next().unwrap();
        if event.name == "run" && event.data["status"] == "succeeded" {
            ended.insert(event.data["run_id"].as_str().unwrap().to_owned());
        }
        last = event.id;
    }
    drop(stream);
    volume.job("other", "command = [\"true\"]\n");
    let mut stream = api.listen("/api/v1/events", Some(&last));
    assert_eq!(stream.next().unwrap().name, "hello", "it goes on");
    let new = stream.find(|event| event.name == "job" && event.data["job"] == "other").unwrap();
    assert_eq!(new.data["type"], "trigger");
    // Whoever sees one job alone hears of that alone.
    let first = hidden.find(|event| event.name != "device").unwrap();
    assert_eq!((first.name.as_str(), &first.data["job"]), ("job", &json!("other")), "{first:?}");
    let mut late = api.listen("/api/v1/events", Some("another-life-7"));
    assert_eq!(late.next().unwrap().name, "reset");
}

#[test]
fn commands_take_turns_between_volumes() {
    let (mut here, mut there) = (Volume::new(), Volume::new());
    let api = here.serve("a", &[]);
    let other = there.serve("b", &[]);
    let key = other.make_key("operator", &[]);
    let viewer = other.make_key("viewer", &[]);
    api.post("/register_server", &json!({"url": other.base, "key": viewer.key})).is(400);
    let server = api.post("/register_server", &json!({"url": other.base, "key": key.key})).is(201).json();
    assert_eq!(server["status"], "ok", "{server}");
    let command = json!({"command": ["sh", "-c", "echo $AIOS_DEVICE_ID"]});
    let devices: Vec<String> =
        (0..6).map(|_| api.post("/command", &command).is(200).json()["device"].as_str().unwrap().to_owned()).collect();
    assert_eq!(devices.iter().filter(|device| *device == "a").count(), 3, "{devices:?}");
    assert_eq!(devices.iter().filter(|device| *device == "b").count(), 3, "{devices:?}");
    let one = json!({"command": ["true"], "server": server["id"]});
    let answer = api.post("/command", &one).is(200).json();
    assert_eq!((&answer["device"], &answer["server"]), (&json!("b"), &server["id"]));
    // What is meant for a device here goes to no other volume, and one volume is not two servers.
    for _ in 0..3 {
        let pinned = json!({"command": ["sh", "-c", "echo $AIOS_DEVICE_ID"], "tags": ["a"]});
        assert_eq!(api.post("/command", &pinned).is(200).json()["device"], "a");
    }
    let itself = api.make_key("operator", &[]);
    api.post("/register_server", &json!({"url": api.base, "key": itself.key})).is(400);
    let id = key.key.split('_').nth(1).unwrap();
    other.post(&format!("/api/v1/keys/{id}/revoke"), &json!({})).is(200);
    here.wait("its refusal is known", |_| api.get("/servers").items()[0]["status"] == "refused");
    other.post(&format!("/api/v1/keys/{id}/activate"), &json!({})).is(200);
    there.kill("b");
    here.wait("it is known to be away", |_| api.get("/servers").items()[0]["status"] == "unreachable");
    for _ in 0..4 {
        assert_eq!(api.post("/command", &command).is(200).json()["device"], "a");
    }
    api.delete(&format!("/servers/{}", server["id"].as_str().unwrap())).is(204);
    assert_eq!(api.get("/servers").items().len(), 0);
}
