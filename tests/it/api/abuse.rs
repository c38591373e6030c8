//! What is sent to hurt: slow, large, many, and words that are more than words.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::json;

use super::super::volume::{PATIENCE, Volume};
use super::Api;

fn connect(api: &Api) -> TcpStream {
    let stream = TcpStream::connect(api.base.strip_prefix("http://").unwrap()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The head of a request with a body, and one more header.
fn head(api: &Api, more: &str) -> String {
    let key = &api.key;
    format!(
        "POST /api/v1/command HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n{more}\r\n\r\n"
    )
}

/// All that is answered until the other side closes; a reset is a close too, and patience that is over is none.
fn answered(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "it stays open: {error}");
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn headers_and_bodies_that_do_not_come_are_not_waited_for() {
    let mut volume = Volume::new();
    let api = volume.serve("a", &[]);
    let mut slow = connect(&api);
    slow.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ").unwrap();
    let mut body = connect(&api);
    let head = format!(
        "POST /api/v1/command HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{{",
        api.key
    );
    body.write_all(head.as_bytes()).unwrap();
    // Both end; others are served meanwhile.
    api.get("/health").is(200);
    let slow = answered(slow);
    assert!(slow.is_empty() || slow.starts_with("HTTP/1.1 408"), "{slow}");
    let body = answered(body);
    assert!(body.starts_with("HTTP/1.1 4") || body.starts_with("HTTP/1.1 5"), "{body}");
}

#[test]
fn who_has_no_key_and_asks_slowly_locks_nobody_out() {
    let mut volume = Volume::new();
    let api = volume.serve("a", &[]);
    let form = "POST /token HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\n\r\nu";
    let mut slow = Vec::new();
    // More than one address may have, and each of them with a request that is not answered yet.
    for _ in 0..500 {
        let mut stream = connect(&api);
        if stream.write_all(form.as_bytes()).is_ok() {
            slow.push(stream);
        }
    }
    for _ in 0..10 {
        api.send("GET", "/jobs", &[("connection", "close")], b"").is(200);
    }
    // Whoever has shown a key keeps the connection.
    volume.job("slow", "command = [\"sleep\", \"600\"]\n");
    let run = api.post("/trigger/slow", &json!({})).is(202).json()["run_id"].as_str().unwrap().to_owned();
    volume.wait("it runs", |volume| volume.holder("slow").is_some());
    let stream = api.listen(&format!("/runs/{run}/log?follow"), None);
    for _ in 0..500 {
        let mut stream = connect(&api);
        if stream.write_all(form.as_bytes()).is_ok() {
            slow.push(stream);
        }
    }
    api.send("POST", &format!("/runs/{run}/cancel"), &[("connection", "close")], b"").is(202);
    assert_eq!(stream.last().unwrap().name, "end");
}

#[test]
fn ten_thousand_idle_connections_lock_nobody_out() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let most = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, most).unwrap();
    let count = usize::try_from(limit.maximum.unwrap_or(20_000)).unwrap().min(20_000) / 2;
    let mut volume = Volume::new();
    let api = volume.serve("a", &[]);
    // On a connection of its own: one that was kept may be closed while it is asked, and a client tries again.
    let newcomer = |path: &str| api.send("GET", path, &[("connection", "close")], b"").is(200);
    let mut idle = Vec::new();
    for number in 0..count.min(10_000) {
        idle.push(connect(&api));
        if number % 1_000 == 999 {
            newcomer("/health");
            newcomer("/jobs");
        }
    }
    newcomer("/jobs");
    let pid = volume.devices["a"].id();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    assert!(open < 700, "{open} descriptors are open");
    drop(idle);
    newcomer("/jobs");
}

#[test]
fn a_body_of_a_gigabyte_is_refused_before_it_is_read() {
    let mut volume = Volume::new();
    let api = volume.serve("a", &[]);
    let mut announced = connect(&api);
    announced.write_all(head(&api, "Content-Length: 1073741824").as_bytes()).unwrap();
    let said = {
        let mut first = [0; 512];
        let read = announced.read(&mut first).unwrap();
        String::from_utf8_lossy(&first[..read]).into_owned()
    };
    assert!(said.starts_with("HTTP/1.1 413"), "{said}");
    let mut chunked = connect(&api);
    chunked.write_all(head(&api, "Transfer-Encoding: chunked").as_bytes()).unwrap();
    let piece = [b"10000\r\n".as_slice(), &[b' '; 65_536], b"\r\n"].concat();
    // 1 GiB, unless the other side has had enough.
    for _ in 0..16_384 {
        if chunked.write_all(&piece).is_err() {
            break;
        }
    }
    let said = answered(chunked);
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 413"), "{said}");
    let pid = volume.devices["a"].id();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim().trim_end_matches(" kB").to_owned();
    assert!(peak.parse::<u64>().unwrap() < 200_000, "{peak} kB were used");
    api.get("/health").is(200);
}

#[test]
fn names_lead_nowhere_else() {
    let mut volume = Volume::new();
    volume.job("quiet", "command = [\"true\"]\n");
    let api = volume.serve("a", &[]);
    std::fs::write(volume.path("secret.toml"), "command = [\"true\"]\n").unwrap();
    let long = "a".repeat(5_000);
    let names = [
        "..",
        "%2e%2e",
        "..%2fsecret",
        "%2e%2e%2fsecret",
        "..%5csecret",
        "%00",
        "quiet%00",
        "%c3%28",
        "%ff",
        "%0d%0aX:1",
        "%1b[31m",
        "%E2%80%AE",
        "quiet%2f..%2fquiet",
        "%2fetc%2fpasswd",
        ".hidden",
        "con",
        "~root",
        "$(id)",
        "%3Cimg%20src%3Dx%3E",
        &long,
    ];
    for name in names {
        for (method, path) in [
            ("GET", format!("/jobs/{name}")),
            ("PATCH", format!("/jobs/{name}")),
            ("DELETE", format!("/jobs/{name}")),
            ("POST", format!("/trigger/{name}")),
            ("POST", format!("/restart/{name}")),
            ("GET", format!("/runs/{name}")),
            ("GET", format!("/runs/{name}/log")),
            ("DELETE", format!("/triggers/{name}")),
            ("DELETE", format!("/api/v1/keys/{name}")),
            ("DELETE", format!("/api/v1/users/{name}")),
            ("DELETE", format!("/api/v1/servers/{name}")),
            ("POST", format!("/devices/{name}/drain")),
        ] {
            let answer = api.send(method, &path, &[("content-type", "application/json")], b"{}");
            assert!([400, 404, 405].contains(&answer.status), "{method} {path}: {answer:?}");
            assert!(answer.header("x").is_empty(), "{answer:?}");
            assert!(!answer.text.contains('\u{1b}') && !answer.text.contains('\u{202e}'), "{answer:?}");
        }
    }
    assert!(volume.path("secret.toml").exists());
    api.post("/jobs", &json!({"name": "../secret", "command": ["true"]})).is(400);
    api.get("/jobs/quiet").is(200);
}

#[test]
fn words_in_names_and_output_stay_words() {
    let mut volume = Volume::new();
    volume.job("evil", "command = [\"printf\", '<img src=x onerror=alert(1)>\\033[31m\\r\\nSet-Cookie: a=b\\n']\n");
    let api = volume.serve("a", &[]);
    let run =
        api.post("/trigger/evil?wait=30s", &json!({"args": []})).is(200).json()["run_id"].as_str().unwrap().to_owned();
    for path in [
        "/jobs",
        "/jobs/evil",
        "/runs",
        &format!("/runs/{run}"),
        &format!("/runs/{run}/log"),
        "/logs",
        "/api/docs",
        "/nowhere%3Cb%3E",
    ] {
        let answer = api.get(path);
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert!(answer.header("content-security-policy").starts_with("default-src 'none'"), "{path}");
        assert!(answer.header("set-cookie").is_empty(), "{path}");
        assert!(answer.header("access-control-allow-origin").is_empty(), "{path}");
        let is_page = answer.header("content-type").starts_with("text/html");
        assert_eq!(is_page, path == "/api/docs", "{path}: {}", answer.header("content-type"));
    }
    let log = api.get(&format!("/runs/{run}/log"));
    assert!(log.text.contains("<img src=x onerror=alert(1)>\u{1b}[31m\r\nSet-Cookie"), "as it was printed");
    let docs = api.get("/api/docs").text;
    for word in ["<script", "src=", "<link", "@import", "url("] {
        assert!(!docs.contains(word), "nothing is fetched or run: {word}");
    }
    // A name of a file is whatever its writer makes of it.
    volume.drop_trigger("<b>\u{1b}[31m\r\n.json", "{\"job\": \"evil\", \"time\": \"2999-01-01T00:00:00Z\"}");
    let shown = volume.wait_for("it is told", |_| {
        let answer = api.get("/triggers").is(200);
        (!answer.items().is_empty()).then_some(answer)
    });
    assert_eq!(shown.items()[0]["trigger"], "<b>\u{1b}[31m\r\n.json");
    assert!(!shown.text.contains('\u{1b}') && !shown.text.contains('\r'), "{}", shown.text);
    assert_eq!(shown.header("content-type"), "application/json");
}

#[test]
fn who_asks_too_often_is_told_when_to_come_again() {
    let mut volume = Volume::new();
    let api = volume.serve("a", &["--http-rate", "5"]);
    let other = api.make_key("viewer", &[]);
    let statuses: Vec<u16> = (0..30).map(|_| other.get("/jobs").status).collect();
    assert!(statuses.contains(&200) && statuses.contains(&429), "{statuses:?}");
    let refused = volume.wait_for("another refusal", |_| {
        let answer = other.get("/jobs");
        (answer.status == 429).then(|| answer.is(429))
    });
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!((1..=5).contains(&wait), "{wait}");
    // Each key is counted for itself.
    api.get("/jobs").is(200);
    std::thread::sleep(Duration::from_secs(wait));
    other.get("/jobs").is(200);
    // Who shows no good key is counted by where he comes from.
    let nobody = api.by("aios_0123456789ab_0123456789012345678901234567890123456789012345678901");
    let statuses: Vec<u16> = (0..30).map(|_| nobody.get("/jobs").status).collect();
    assert!(statuses.contains(&401) && statuses.contains(&429), "{statuses:?}");
    api.get("/jobs").is(200);
}

#[test]
fn passwords_that_are_tried_at_once_are_counted_too() {
    let mut volume = Volume::new();
    let api = volume.serve("a", &[]);
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..60)
            .map(|_| scope.spawn(|| api.by("").send("POST", "/token", &form, b"username=ada&password=guess").status))
            .collect();
        tries.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let judged = statuses.iter().filter(|status| **status == 401).count();
    let told = statuses.iter().filter(|status| **status == 429).count();
    // A few more may come in as time goes by, one each three seconds.
    assert!((20..40).contains(&judged) && told == 60 - judged, "{statuses:?}");
}

#[test]
fn bodies_waits_and_streams_have_their_bounds() {
    let mut volume = Volume::new();
    let api = volume.serve("a", &[]);
    let body = format!("{{\"command\": [\"true\"]{}}}", " ".repeat((1 << 20) - 21));
    assert_eq!(body.len(), 1 << 20);
    api.send("POST", "/command", &[("content-type", "application/json")], body.as_bytes()).is(200);
    // One byte more is refused before it is sent.
    let mut larger = connect(&api);
    larger.write_all(head(&api, "Content-Length: 1048577").as_bytes()).unwrap();
    let said = answered(larger);
    assert!(said.starts_with("HTTP/1.1 413") && said.contains("problem"), "{said}");
    let mut streams: Vec<_> = (0..20).map(|_| api.listen("/api/v1/events", None)).collect();
    let refused = api.get("/api/v1/events").is(429);
    assert!(!refused.header("retry-after").is_empty());
    // Each caller has his own, and one that has ended makes room.
    drop(api.make_key("viewer", &[]).listen("/api/v1/events", None));
    streams.pop();
    volume.wait("there is room again", |_| api.try_listen("/api/v1/events").is_some());
    drop(streams);
    // So many may wait for ends of runs.
    let body = "{\"command\": [\"sleep\", \"600\"]}";
    let head = head(&api, &format!("Content-Length: {}", body.len()));
    let ask = || {
        let mut stream = connect(&api);
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        stream
    };
    let mut waiting: Vec<_> = (0..256).map(|_| ask()).collect();
    let short = json!({"command": ["true"], "timeout": "10ms"});
    let refused = loop {
        let answer = api.post("/command", &short);
        if answer.status == 429 {
            break answer;
        }
        // It came before the last of them, who was refused in its place.
        assert!(waiting.len() < 1_000, "{answer:?}");
        waiting.push(ask());
    };
    assert!(refused.text.contains("256 waits"), "{refused:?}");
    assert_ne!(api.make_key("operator", &[]).post("/command", &short).status, 429);
    drop(waiting);
}
