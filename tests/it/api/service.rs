//! The service itself: where it listens, its health, its figures, its description, its backups.

use serde_json::json;

use super::super::volume::Volume;

#[test]
fn it_listens_where_it_is_told_and_nowhere_without_need() {
    let mut volume = Volume::new();
    let api = volume.serve("a", &[]);
    let taken = api.base.strip_prefix("http://").unwrap().to_owned();
    let refused = |more: &[&str]| {
        let output = volume.command(&["run", "--device-id", "z"]).args(more).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = refused(&["--http", &taken]);
    assert!(code == Some(2) && said.contains("cannot listen") && said.contains("hint:"), "{code:?} {said}");
    let (code, said) = refused(&["--http", "0.0.0.0:0"]);
    assert!(code == Some(2) && said.contains("no TLS") && said.contains("--insecure-http"), "{code:?} {said}");
    let (code, said) = refused(&["--http", "127.0.0.1:0", "--tls-cert", "/nowhere", "--tls-key", "/nowhere"]);
    assert!(code == Some(2) && said.contains("/nowhere"), "{code:?} {said}");
    let (code, said) = refused(&["--http", "everywhere"]);
    assert!(code == Some(2) && said.contains("everywhere"), "{code:?} {said}");
    volume.start("b", &["--http", "0.0.0.0:0", "--insecure-http"]);
    volume.wait("b serves", |volume| volume.said("b").contains("HTTP API url=http://0.0.0.0:"));
}

#[test]
fn the_usual_port_is_asked_for_and_not_insisted_on() {
    let mut volume = Volume::new();
    // This test takes it, unless somebody has it already.
    let taken = std::net::TcpListener::bind("127.0.0.1:8080");
    let spawn = |id: &str, more: &[&str]| {
        let said = std::fs::File::create(volume.path(&format!("{id}.said"))).unwrap();
        let mut command = volume.command(&["run", "--device-id", id]);
        command.args(more).env_remove("AIOS_HTTP").stdout(said.try_clone().unwrap()).stderr(said);
        command.spawn().unwrap()
    };
    let (a, b) = (spawn("a", &[]), spawn("b", &["--http", "none"]));
    volume.devices.extend([("a".to_owned(), a), ("b".to_owned(), b)]);
    volume.wait("both work", |volume| volume.beat("a").is_some() && volume.beat("b").is_some());
    volume.wait("it is said", |volume| volume.said("a").contains("127.0.0.1:8080"));
    assert!(volume.said("a").contains("WARN") && !volume.said("a").contains("HTTP API url="), "{}", volume.said("a"));
    assert!(!volume.said("b").contains("HTTP") && !volume.said("b").contains("8080"), "{}", volume.said("b"));
    drop(taken);
}

#[test]
fn health_needs_no_key_and_tells_no_reason() {
    let mut volume = Volume::new();
    let api = volume.serve("a", &[]);
    assert_eq!(api.by("").get("/health").is(200).json(), json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")}));
    let whole = api.get("/api/v1/health").is(200).json();
    assert_eq!((&whole["status"], &whole["devices_alive"], &whole["problems"]), (&json!("ok"), &json!(1), &json!([])));
    std::fs::rename(volume.path("Programs"), volume.path("Elsewhere")).unwrap();
    volume.wait("it is degraded", |_| api.by("").get("/health").json()["status"] == "degraded");
    // Each answer is kept for a moment of its own.
    volume.wait("the reason is told", |_| {
        api.get("/api/v1/health").json()["problems"]
            .as_array()
            .unwrap()
            .iter()
            .any(|it| it.as_str().unwrap().contains("Programs"))
    });
    std::fs::rename(volume.path("Elsewhere"), volume.path("Programs")).unwrap();
    volume.wait("it is well again", |_| api.by("").get("/health").json()["status"] == "ok");
}

#[test]
fn figures_count_what_happened() {
    let mut volume = Volume::new();
    volume.job("quiet", "command = [\"true\"]\n");
    volume.job("bad", "command = [\"false\"]\n");
    let api = volume.serve("a", &[]);
    for _ in 0..3 {
        api.post("/trigger/quiet?wait=30s", &json!({})).is(200);
    }
    api.post("/trigger/bad?wait=30s", &json!({})).is(200);
    api.post("/trigger/quiet", &json!({"time": "2999-01-01T00:00:00Z"})).is(202);
    for line in [
        "aios_runs_ended_total{status=\"succeeded\"} 3",
        "aios_runs_ended_total{status=\"failed\"} 1",
        "aios_queue_depth 1",
        "aios_runs_active 0",
        "aios_devices_alive 1",
        "aios_trigger_to_start_seconds_count 4",
    ] {
        // They count what stands in the state, behind the result.
        volume.wait(line, |_| api.get("/metrics").is(200).text.lines().any(|found| found == line));
    }
    let text = api.get("/metrics").is(200).text;
    for name in [
        "aios_commit_seconds_bucket",
        "aios_lock_wait_seconds_sum",
        "aios_volume_free_bytes",
        "aios_process_resident_bytes",
    ] {
        assert!(text.contains(name), "{name} in\n{text}");
    }
}

#[test]
fn a_browser_is_led_to_the_description() {
    let mut volume = Volume::new();
    let api = volume.serve("a", &[]);
    let answer = api.by("").send("GET", "/", &[("accept", "text/html,application/xhtml+xml")], b"");
    assert_eq!((answer.status, answer.header("location")), (303, "/api/docs"));
    let page = api.by("").get("/api/docs").is(200).text;
    for word in ["POST", "/api/v1/command", "problem documents", "GET"] {
        assert!(page.contains(word), "{word}");
    }
    api.get("/nowhere").is(404);
    api.send("PUT", "/jobs", &[], b"").is(405);
    api.send("POST", "/trigger/x", &[("content-type", "text/plain")], b"{}").is(415);
    api.send("POST", "/trigger/x", &[("content-type", "application/json")], b"{").is(400);
}

#[test]
fn a_backup_that_was_made_over_http_can_be_restored() {
    let mut volume = Volume::new();
    volume.job("quiet", "command = [\"true\"]\n");
    let api = volume.serve("a", &[]);
    let run = api.post("/trigger/quiet?wait=30s", &json!({})).is(200).json()["run_id"].clone();
    let made = api.post("/api/v1/backup", &json!({})).is(201).json();
    let file = made["file"].as_str().unwrap().to_owned();
    assert_eq!(api.get("/api/v1/backups").items()[0]["file"], file);
    let mut other = Volume::new();
    let archive = volume.common(&file);
    let output = other.command(&["restore"]).arg(&archive).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    // The keys come along.
    let restored = other.serve("b", &[]).by(&api.key);
    assert_eq!(restored.get("/runs").items()[0]["run_id"], run);
}

#[test]
fn pages_of_listed_origins_may_ask_and_no_others() {
    let mut volume = Volume::new();
    let api = volume.serve("a", &["--http-origins", "https://panel.lan"]);
    let ask = |origin: &str| api.send("GET", "/jobs", &[("origin", origin)], b"");
    assert_eq!(ask("https://panel.lan").header("access-control-allow-origin"), "https://panel.lan");
    assert_eq!(ask("https://evil.lan").header("access-control-allow-origin"), "");
    let question = [("origin", "https://panel.lan"), ("access-control-request-method", "POST")];
    let answer = api.by("").send("OPTIONS", "/command", &question, b"");
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (204, "https://panel.lan"));
    let evil = [("origin", "https://evil.lan"), ("access-control-request-method", "POST")];
    assert_eq!(api.by("").send("OPTIONS", "/command", &evil, b"").header("access-control-allow-origin"), "");
}

#[test]
fn resources_are_set_while_a_device_runs_and_told() {
    let mut volume = Volume::new();
    volume.job("slow", "command = [\"sleep\", \"600\"]\n");
    let api = volume.serve("a", &[]);
    api.post("/system/set_resource_limits", &json!({"slots": 3, "memory": "256m"})).is(200);
    volume.wait("it has them", |_| {
        let device = &api.get("/devices").items()[0];
        device["slots"] == 3 && device["limits"]["memory"] == 268_435_456
    });
    api.post("/system/set_resource_limits", &json!({"slots": 4, "memory": null, "pids": 500})).is(200);
    volume.wait("it has those", |_| {
        let device = &api.get("/devices").items()[0];
        device["slots"] == 4 && device["limits"]["memory"].is_null()
    });
    let run = api.post("/trigger/slow", &json!({})).is(202).json()["run_id"].clone();
    volume.wait("what it uses is told", |_| {
        let told = api.get("/system/monitor_resources").is(200).json();
        let machine = &told["devices"][0]["machine"];
        machine["runs"].as_array().is_some_and(|runs| runs.iter().any(|it| it["run_id"] == run && it["processes"] == 1))
            && machine["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 0)
    });
    let job = api.get("/jobs/slow").is(200).json();
    let pid = job["active"][0]["pid"].as_u64().unwrap();
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    assert_eq!(name.trim(), "sleep", "{job}");
    let event = api.listen("/system/monitor_resources?follow", None).next().unwrap();
    assert_eq!(event.name, "resources");
    assert!(event.data["disk"]["total_bytes"].as_u64().unwrap() > 0);
}

#[test]
fn a_backup_that_was_just_made_is_the_newest() {
    let mut volume = Volume::new();
    let api = volume.serve("a", &[]);
    let make = |body: serde_json::Value| api.post("/api/v1/backup", &body).is(201).json()["file"].clone();
    for _ in 0..4 {
        make(json!({}));
    }
    let files = || api.get("/api/v1/backups").items().iter().map(|it| it["file"].clone()).collect::<Vec<_>>();
    assert_eq!(files().len(), 4);
    for _ in 0..3 {
        assert_eq!(make(json!({"keep": 1})), files()[0]);
        assert_eq!(files().len(), 1);
    }
    // Also where one was named while the clock was wrong.
    let later = volume.common(files()[0].as_str().unwrap());
    let name = later.file_name().unwrap().to_str().unwrap().replacen("202", "298", 1);
    std::fs::copy(&later, later.with_file_name(name)).unwrap();
    let made = make(json!({"keep": 2}));
    assert!(files().contains(&made), "{made} {:?}", files());
}
