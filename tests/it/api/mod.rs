//! The HTTP API of the real binary, asked as anybody may ask it.

use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, Instant};

use serde_json::Value;
use ureq::http::{Method, Request};

use super::volume::{PATIENCE, Volume, pause};

mod abuse;
mod access;
mod live;
mod routes;
mod service;
mod tls;

/// One device's API.
pub(crate) struct Api {
    pub(crate) base: String,
    agent: ureq::Agent,
    pub(crate) key: String,
}

/// What was answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: ureq::http::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The items of a page.
    pub(crate) fn items(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{self:?}");
        self.json()["items"].as_array().unwrap_or_else(|| panic!("{self:?}")).clone()
    }

    #[track_caller]
    pub(crate) fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        if status >= 400 {
            assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
            let problem = self.json();
            assert!(problem["type"].as_str().unwrap().starts_with("urn:aios:problem:"), "{problem}");
            assert_eq!(problem["status"], status, "{problem}");
            assert!(!problem["detail"].as_str().unwrap().is_empty(), "{problem}");
        }
        self
    }
}

impl Api {
    pub(crate) fn at(base: String, key: String) -> Self {
        // A connection that was idle for 10 s is closed, perhaps just when it would be used again.
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE));
        let config = config.max_idle_age(Duration::from_secs(5));
        Self { base, agent: config.max_redirects(0).max_redirects_will_error(false).build().into(), key }
    }

    /// The same API, asked by another.
    pub(crate) fn by(&self, key: &str) -> Self {
        Self { base: self.base.clone(), agent: self.agent.clone(), key: key.to_owned() }
    }

    pub(crate) fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap());
        request = request.uri(format!("{}{path}", self.base));
        if !self.key.is_empty() {
            request = request.header("authorization", format!("Bearer {}", self.key));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answered = if body.is_empty() && !["POST", "PATCH"].contains(&method) {
            self.agent.run(request.body(()).unwrap())
        } else {
            self.agent.run(request.body(body.to_vec()).unwrap())
        };
        let response = answered.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        let (parts, mut body) = response.into_parts();
        let mut bytes = Vec::new();
        body.as_reader().read_to_end(&mut bytes).unwrap();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            text: String::from_utf8_lossy(&bytes).into_owned(),
        }
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"")
    }

    /// What stands under `key` of all pages, as they come.
    pub(crate) fn pages(&self, path: &str, key: &str) -> Vec<Vec<Value>> {
        let (mut pages, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = self.get(&format!("{path}{cursor}")).is(200).json();
            pages.push(page[key].as_array().unwrap_or_else(|| panic!("{page}")).clone());
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={}", next.replace(' ', "%20")),
                None => return pages,
            }
        }
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    pub(crate) fn patch(&self, path: &str, body: &Value) -> Answer {
        self.send("PATCH", path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    pub(crate) fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, &[], b"")
    }

    /// A key of this role, made over the API.
    pub(crate) fn make_key(&self, role: &str, scopes: &[&str]) -> Self {
        let made =
            self.post("/api/v1/keys", &serde_json::json!({"name": "test", "role": role, "scopes": scopes})).is(201);
        self.by(made.json()["key"].as_str().unwrap())
    }

    /// A stream of events, if there is one to be had.
    pub(crate) fn try_listen(&self, path: &str) -> Option<Events> {
        let request = Request::get(format!("{}{path}", self.base));
        let request = request.header("authorization", format!("Bearer {}", self.key));
        let response = self.agent.run(request.body(()).unwrap()).unwrap();
        let reader: Option<Box<dyn Read + Send>> =
            (response.status() == 200).then(|| Box::new(response.into_body().into_reader()) as _);
        Some(Events { lines: BufReader::new(reader?) })
    }

    /// A stream of events.
    pub(crate) fn listen(&self, path: &str, last: Option<&str>) -> Events {
        let mut request = Request::get(format!("{}{path}", self.base));
        request = request.header("authorization", format!("Bearer {}", self.key));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = self.agent.run(request.body(()).unwrap()).unwrap();
        assert_eq!(response.status(), 200);
        let reader: Box<dyn Read + Send> = Box::new(response.into_body().into_reader());
        Events { lines: BufReader::new(reader) }
    }
}

/// One event.
#[derive(Debug, Clone, Default)]
pub(crate) struct Event {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) data: Value,
}

/// A stream of events, read as it comes.
pub(crate) struct Events {
    lines: BufReader<Box<dyn Read + Send>>,
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let mut event = Event::default();
        loop {
            let mut line = String::new();
            let read = self.lines.read_line(&mut line).unwrap_or_else(|error| panic!("the stream broke: {error}"));
            if read == 0 {
                return None;
            }
            let line = line.trim_end_matches('\n');
            match line.split_once(": ") {
                None if line.is_empty() && !event.name.is_empty() => return Some(event),
                Some(("id", id)) => event.id = id.to_owned(),
                Some(("event", name)) => event.name = name.to_owned(),
                Some(("data", data)) => event.data = serde_json::from_str(data).unwrap(),
                // What only keeps the connection alive.
                _ => {}
            }
        }
    }
}

impl Volume {
    /// Starts a device with an API of its own, and finds out where it is.
    pub(crate) fn serve(&mut self, id: &str, more: &[&str]) -> Api {
        let limits = if more.contains(&"--http-rate") { &[][..] } else { &["--http-rate", "0"] };
        let options: Vec<&str> = ["--http", "127.0.0.1:0"].iter().chain(limits).chain(more).copied().collect();
        let before = self.said(id).matches("HTTP API url=").count();
        self.start(id, &options);
        self.wait(&format!("{id} serves its API"), |volume| volume.said(id).matches("HTTP API url=").count() > before);
        let said = self.said(id);
        let url = said.rsplit("HTTP API url=").next().unwrap().split_whitespace().next().unwrap().to_owned();
        // The first device of a volume shows a key.
        let until = Instant::now() + Duration::from_secs(20);
        let key = loop {
            let found = said_keys(self).pop();
            if found.is_some() || Instant::now() > until {
                break found.unwrap_or_default();
            }
            pause();
        };
        Api::at(url, key)
    }

    pub(crate) fn said(&self, id: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{id}.said"))).unwrap_or_default()
    }
}

/// The keys that devices of a volume have shown.
fn said_keys(volume: &Volume) -> Vec<String> {
    let said = std::fs::read_dir(volume.home.path()).unwrap().flatten().map(|entry| entry.path());
    let said = said.filter(|path| path.extension().is_some_and(|ending| ending == "said"));
    let lines = said.flat_map(|path| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>()
    });
    lines.filter(|line| line.starts_with("aios_")).collect()
}
