//! The orchestrators' own logs, of all devices, merged by time.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::mpsc::channel;
use tokio::time::sleep;
use utoipa::IntoParams;

use super::app::{App, answer};
use super::extract::{Asked, switch};
use super::guard::Caller;
use super::page::{Page, limit, usual};
use super::problem::{Document, Kind, Problem};
use super::stream::{Events, WAITING, sse};
use crate::client::logs::{Line, Name, Read, names, newest, path, take_new, with_device};
use crate::client::{Client, Failure};
use crate::model::ids::DeviceId;
use crate::volume::{Context as _, found};

/// How often followed logs are looked at.
const LOOK: Duration = Duration::from_millis(250);
/// At every so many looks it is looked for new logs: at midnight, or when a device comes.
const NEW_LOGS: u32 = 8;

/// Which lines are wanted, and how.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LogsQuery {
    /// The newest so many, 1 to 500.
    #[serde(default = "usual", deserialize_with = "limit")]
    #[param(value_type = Option<usize>, minimum = 1, maximum = 500, default = 100)]
    limit: usize,
    /// Only of this device.
    #[serde(default)]
    #[param(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    device: Option<String>,
    /// Only of this level or worse: trace, debug, info, warn, error.
    #[serde(default)]
    #[param(pattern = "^(trace|debug|info|warn|error)$")]
    level: Option<String>,
    /// As they are written, as server-sent events `line`.
    #[serde(default, deserialize_with = "switch")]
    #[param(value_type = Option<bool>)]
    follow: bool,
}

/// The levels, from the least to the worst.
const LEVELS: [&str; 5] = ["trace", "debug", "info", "warn", "error"];

fn rank(level: &str) -> Option<usize> {
    LEVELS.iter().position(|known| known.eq_ignore_ascii_case(level))
}

/// The devices' own logs, merged by time, the oldest of the newest `limit` first.
#[utoipa::path(get, path = "/logs", tag = "devices", params(LogsQuery), responses(
    (status = 200, description = "Lines; with `follow`, events", content((Page<Object> = "application/json"), (String = "text/event-stream"))),
    (status = 400, description = "It cannot be meant", body = Document),
    (status = 403, description = "With scopes they cannot be read: they speak of all jobs", body = Document),
))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    Asked(query): Asked<LogsQuery>,
) -> Result<Response, Problem> {
    if !caller.sees_all() {
        let detail = "this key has scopes, and the devices' logs speak of all jobs";
        return Err(Problem::new(
            Kind::Forbidden,
            detail,
            "ask for a key without scopes; a run's own log is at /runs/ID/log",
        ));
    }
    let least = match query.level.as_deref() {
        None => 0,
        Some(level) => rank(level).ok_or_else(|| {
            Problem::invalid(
                format!("found the level {level:?}, expected one of {}", LEVELS.join(", ")),
                "leave it out for all",
            )
        })?,
    };
    let device = query.device.as_deref().map(DeviceId::new).transpose();
    let device = device.map_err(|error| Problem::invalid(error.to_string(), "give a device's whole id"))?;
    if query.follow {
        let (to, events) = channel(WAITING);
        let sender = Events::new(&app, &caller, headers, to)?;
        tokio::spawn(follow(app, sender, device, least));
        return Ok(sse(events));
    }
    let items = app.ask(move |client| read(client, device.as_ref(), least, query.limit)).await?;
    Ok(answer(&headers, &Page { items, next: None })?.into_response())
}

fn is_wanted(line: &Map<String, Value>, least: usize) -> bool {
    least == 0 || line.get("level").and_then(Value::as_str).and_then(rank).is_some_and(|level| level >= least)
}

/// The newest lines that are bad enough. Where few are, it is looked further back, within limits.
fn read(
    client: &Client,
    device: Option<&DeviceId>,
    least: usize,
    limit: usize,
) -> Result<Vec<Map<String, Value>>, Failure> {
    let names = names(client, device)?;
    let mut depth = limit;
    loop {
        let mut lines = newest(client, &names, depth, &mut BTreeMap::new())?;
        lines.sort();
        let there = lines.len();
        let mut wanted: Vec<_> = lines.iter().map(with_device).filter(|line| is_wanted(line, least)).collect();
        let is_all = there < depth || depth >= 64 * limit;
        if wanted.len() >= limit || is_all {
            let skip = wanted.len().saturating_sub(limit);
            return Ok(wanted.split_off(skip));
        }
        depth *= 8;
    }
}

async fn follow(app: App, mut events: Events, device: Option<DeviceId>, least: usize) {
    let mut reads: BTreeMap<Name, Read> = BTreeMap::new();
    let mut round = 0;
    loop {
        let device = device.clone();
        let looked = app.ask(move |client| {
            let lines = look(client, &mut reads, device.as_ref(), round)?;
            Ok((reads, lines))
        });
        let Ok((back, lines)) = looked.await else { return };
        reads = back;
        for line in lines.iter().map(with_device).filter(|line| is_wanted(line, least)) {
            if !events.send(None, "line", &Value::Object(line)).await {
                return;
            }
        }
        round += 1;
        tokio::select! {
            () = sleep(LOOK) => {}
            () = events.closed() => return,
        }
    }
}

/// What was written since the last look. At the first, everything there is lies behind.
fn look(
    client: &Client,
    reads: &mut BTreeMap<Name, Read>,
    device: Option<&DeviceId>,
    round: u32,
) -> Result<Vec<Line>, Failure> {
    if round.is_multiple_of(NEW_LOGS) {
        for name in names(client, device)? {
            if round == 0 {
                let path = path(client, &name);
                let size = found(client.disk.stat(&path)).on("look at", &path)?.map_or(0, |meta| meta.id.size);
                reads.insert(name, Read::from(size));
            } else {
                reads.entry(name).or_default();
            }
        }
    }
    let mut lines = Vec::new();
    for (name, read) in reads {
        take_new(client, name, read, &mut lines)?;
    }
    lines.sort();
    Ok(lines)
}
