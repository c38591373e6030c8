//! What happens while somebody waits and listens: logs that grow, devices that die, many callers at once.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::super::volume::Volume;
use super::{Api, Event};

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
    let late = api.post("/command", &json!({"command": ["sleep", "600"], "timeout": "2s"})).is(504).json();
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
    // Who may come in is told to admins.
    let made = api.make_key("viewer", &[]).key;
    let made = made.split('_').nth(1).unwrap();
    let key = stream.find(|event| event.name == "key" && event.data["id"] == made).unwrap();
    assert_eq!(key.data["role"], "viewer");
    api.delete(&format!("/api/v1/keys/{made}")).is(204);
    let gone = stream.find(|event| event.name == "gone").unwrap();
    assert_eq!((&gone.data["kind"], &gone.data["name"]), (&json!("key"), &json!(made)));
    api.post("/register_server", &json!({"url": "http://127.0.0.1:1", "key": "k"})).is(201);
    let server = stream.find(|event| event.name == "server").unwrap();
    assert_eq!(server.data["url"], "http://127.0.0.1:1");
    // What cannot be looked at keeps nothing else from being told.
    std::os::unix::fs::symlink("Backups", volume.common("Backups")).unwrap();
    let run = api.post("/trigger/quiet?wait=30s", &json!({})).is(200).json()["run_id"].clone();
    stream.find(|event| event.name == "run" && event.data["run_id"] == run).unwrap();
    let made = api.make_key("viewer", &[]).key;
    let key = stream.find(|event| event.name == "key").unwrap();
    assert_eq!(key.data["id"], made.split('_').nth(1).unwrap());
    let mut late = api.listen("/api/v1/events", None);
    assert_eq!(late.next().unwrap().name, "hello");
    volume.job("other", "command = [\"false\"]\ntimeout = \"7s\"\n");
    let next = hidden.find(|event| event.name != "device").unwrap();
    assert_eq!((next.name.as_str(), &next.data["job"]), ("job", &json!("other")), "nothing of keys and servers");
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

#[test]
fn a_command_ends_at_its_timeout_although_who_was_asked_is_no_more() {
    let mut volume = Volume::new();
    let api = volume.serve("a", &[]);
    volume.start("b", &["--tags", "worker"]);
    std::thread::scope(|scope| {
        let command = json!({"command": ["sleep", "600"], "tags": ["worker"], "timeout": "8s"});
        // Nobody answers any more.
        let api = &api;
        scope.spawn(move || std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| api.post("/command", &command))));
        volume.wait("b to run it", |volume| volume.holder("sleep").as_deref() == Some("b"));
        volume.kill("a");
        let result = volume.outcome("sleep");
        assert_eq!((&result["status"], &result["device"]), (&json!("timed_out"), &json!("b")), "{result}");
    });
}

#[test]
fn the_devices_logs_are_merged_paged_filtered_and_followed() {
    let mut volume = Volume::new();
    volume.job("quiet", "command = [\"true\"]\n");
    let api = volume.serve("a", &[]);
    volume.start("b", &[]);
    // One ends here, one there, and neither is alone in the log.
    for number in 0..10 {
        let device = ["a", "b"][number % 2];
        api.post("/trigger/quiet?wait=30s", &json!({"tags": [device]})).is(200);
    }
    volume.drop_trigger("bad.json", "{\"jub\": 1}");
    volume.wait("it is rejected", |volume| volume.common("TriggersProcessed/rejected").exists());
    let at = |line: &Value| line["timestamp"].as_str().unwrap_or_default().to_owned();
    // Lines reach the log a little later than their devices go on.
    let is_end = |line: &&Value| line["message"] == "attempt ended";
    volume.wait("all ends are said", |_| api.get("/logs?limit=500").items().iter().filter(is_end).count() >= 10);
    let newest = api.get("/logs?limit=500").items();
    assert!(newest.iter().map(at).is_sorted(), "merged by time");
    let devices: BTreeSet<&str> = newest.iter().map(|line| line["device"].as_str().unwrap()).collect();
    assert_eq!(devices.len(), 2);
    assert_eq!(newest.iter().filter(is_end).count(), 10);
    let of_b = api.get("/logs?limit=500&device=b").items();
    assert!(!of_b.is_empty() && of_b.iter().all(|line| line["device"] == "b"));
    let infos = api.get("/logs?limit=500&level=info").items();
    assert!(infos.len() < newest.len() && infos.iter().all(|line| line["level"] != "DEBUG"));
    assert!(infos.iter().filter(is_end).count() == 10);
    // Page by page, each before the one before, all ends are met once.
    for filter in ["", "&level=info"] {
        let met = pages_of_logs(&api, &format!("/logs?limit=7{filter}"), 7);
        assert!(met.iter().map(at).is_sorted());
        assert_eq!(met.iter().filter(is_end).count(), 10, "{filter}");
    }
    // What is written from now on.
    let mut lines = api.listen("/logs?follow&level=info", None);
    let (told, newer) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let ended = lines.find(|line| line.name == "line" && line.data["message"] == "attempt ended");
        told.send(ended)
    });
    let ended = volume.wait_for("an end is told", |_| {
        api.post("/trigger/quiet?wait=30s", &json!({"tags": ["b"]})).is(200);
        newer.try_recv().ok()
    });
    let ended = ended.expect("the stream goes on");
    assert_eq!(ended.data["device"], "b");
}

/// All lines of all pages, the oldest first.
fn pages_of_logs(api: &Api, path: &str, limit: usize) -> Vec<Value> {
    let pages = api.pages(path, "items");
    assert!(pages.iter().all(|page| page.len() <= limit));
    pages.into_iter().rev().flatten().collect()
}

#[test]
fn pages_of_logs_go_on_in_the_days_before() {
    let mut volume = Volume::new();
    let api = volume.serve("a", &[]);
    let mut all = Vec::new();
    for device in ["x", "y"] {
        for day in 1..=3 {
            let mut times: Vec<String> =
                (0..60).map(|second| format!("2020-01-0{day}T12:00:{second:02}.500000Z")).collect();
            // What was said at midnight may stand in the log of the next day, and behind it in time what stands in this one's.
            if day > 1 {
                times.insert(0, format!("2020-01-0{}T23:59:59.900000Z", day - 1));
            }
            times.push(format!("2020-01-0{day}T23:59:59.950000Z"));
            let mut text = String::new();
            for (number, at) in times.into_iter().enumerate() {
                let message = format!("{device} {day} {number}");
                text += &format!("{}\n", json!({"timestamp": at, "level": "INFO", "message": message}));
                all.push((at, message));
            }
            std::fs::write(volume.common(&format!("Logs/orchestrator.{device}.2020-01-0{day}.log")), text).unwrap();
        }
    }
    all.sort();
    for limit in [1, 7, 61, 500] {
        let met = pages_of_logs(&api, &format!("/logs?limit={limit}"), limit);
        let met = met.iter().filter(|line| line["device"] != "a");
        let met: Vec<_> = met.map(|line| line["message"].as_str().unwrap()).collect();
        assert_eq!(met, all.iter().map(|(_, message)| message).collect::<Vec<_>>(), "{limit}");
    }
}

#[test]
fn servers_are_looked_after_by_themselves_and_not_at_every_question() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    // Another orchestrator, as far as it can be seen.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if !matches!(stream.read(&mut byte), Ok(1)) {
                    break;
                }
                head.push(byte[0]);
            }
            let is_health = head.starts_with(b"GET /api/v1/health ");
            counted.fetch_add(usize::from(is_health), Ordering::AcqRel);
            let body = if is_health {
                json!({"status": "ok", "version": "7.7"})
            } else {
                json!({"volume": "another", "role": "operator"})
            }
            .to_string();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    let mut volume = Volume::new();
    let api = volume.serve("a", &[]);
    let server = api.post("/register_server", &json!({"url": url, "key": "k"})).is(201).json();
    assert_eq!((&server["status"], &server["version"]), (&json!("ok"), &json!("7.7")));
    // Nobody asks for the list.
    volume.wait("it is asked again and again", |_| asked.load(Ordering::Acquire) >= 3);
    let before = asked.load(Ordering::Acquire);
    for _ in 0..50 {
        assert_eq!(api.get("/servers").items()[0]["status"], "ok");
    }
    let questions = asked.load(Ordering::Acquire) - before;
    assert!(questions < 25, "{questions} questions for 50 answers");
}

#[test]
fn of_two_who_register_a_server_at_once_one_has_done_it() {
    let mut volume = Volume::new();
    let a = volume.serve("a", &[]);
    let b = volume.serve("b", &[]).by(&a.key);
    for port in 1..=5 {
        let body = json!({"url": format!("http://127.0.0.1:{port}"), "key": "k"});
        let mut statuses: Vec<u16> = std::thread::scope(|scope| {
            let asked: Vec<_> =
                [&a, &b].map(|api| scope.spawn(|| api.post("/register_server", &body).status)).into_iter().collect();
            asked.into_iter().map(|one| one.join().unwrap()).collect()
        });
        statuses.sort_unstable();
        assert_eq!(statuses, [201, 409]);
    }
    assert_eq!(a.get("/servers").items().len(), 5);
}

#[test]
fn a_page_of_a_large_log_is_found_without_reading_all_of_it() {
    let mut volume = Volume::new();
    let api = volume.serve("a", &[]);
    // Another device's log of a day, 60 MB.
    let line = |number: usize| {
        let at = format!("2020-01-01T{:02}:{:02}:{:02}.000000Z", number / 36_000, number / 600 % 60, number / 10 % 60);
        format!("{{\"timestamp\":\"{at}\",\"level\":\"INFO\",\"message\":\"{number} {}\"}}\n", "x".repeat(200))
    };
    let text: String = (0..200_000).map(line).collect();
    std::fs::write(volume.common("Logs/orchestrator.old.2020-01-01.log"), text).unwrap();
    let peak = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", volume.devices["a"].id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim().trim_end_matches(" kB");
        peak.parse::<u64>().unwrap()
    };
    let before = peak();
    for (time, last) in [("02:00:00", 71_999), ("00:00:10", 99)] {
        let cursor = format!("2020-01-01T{time}.000000Z%202020-01-01%200%20a");
        let page = api.get(&format!("/logs?limit=50&cursor={cursor}")).is(200).json();
        let items = page["items"].as_array().unwrap();
        let numbers: Vec<usize> = items
            .iter()
            .map(|item| item["message"].as_str().unwrap().split(' ').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(numbers, (last - 49..=last).collect::<Vec<_>>());
        // And on from there, in the same log.
        let next = page["next"].as_str().unwrap().replace(' ', "%20");
        let next = api.get(&format!("/logs?limit=50&cursor={next}")).is(200).items();
        assert!(next[49]["message"].as_str().unwrap().starts_with(&format!("{} ", last - 50)), "{next:?}");
    }
    assert!(peak() < before + 30_000, "{} kB, {before} before", peak());
}
