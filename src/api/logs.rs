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
use super::extract::{Asked, one_of, switch};
use super::guard::Caller;
use super::page::{Page, PageQuery};
use super::problem::{Document, Problem};
use super::stream::{Events, WAITING, sse};
use crate::client::logs::{Line, Name, Place, Read, names, newest, path, take_new, with_device};
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

/// So many times as many lines as are wanted are looked at for one page.
const DEEPEST: usize = 64;
/// The levels, from the least to the worst.
const LEVELS: [&str; 5] = ["trace", "debug", "info", "warn", "error"];

fn rank(level: &str) -> Option<usize> {
    LEVELS.iter().position(|known| known.eq_ignore_ascii_case(level))
}

/// The devices' own logs, merged by time: the newest `limit` lines, the oldest of them first; `next` is the cursor for those before.
#[utoipa::path(get, path = "/logs", tag = "devices", params(PageQuery, LogsQuery), responses(
    (status = 200, description = "Lines; with `follow`, events", content((Page<Object> = "application/json"), (String = "text/event-stream"))),
    (status = 400, description = "It cannot be meant", body = Document),
    (status = 403, description = "With scopes they cannot be read: they speak of all jobs", body = Document),
))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    Asked(page): Asked<PageQuery>,
    Asked(query): Asked<LogsQuery>,
) -> Result<Response, Problem> {
    let hint = "ask for a key without scopes; a run's own log is at /runs/ID/log";
    caller.must_see_all("the devices' logs speak of all jobs", hint)?;
    one_of("level", query.level.as_deref(), &LEVELS)?;
    let least = query.level.as_deref().and_then(rank).unwrap_or(0);
    let device = query.device.as_deref().map(DeviceId::new).transpose();
    let device = device.map_err(|error| Problem::invalid(error.to_string(), "give a device's whole id"))?;
    if query.follow {
        if page.cursor.is_some() {
            let detail = "found `cursor` and `follow` together, expected one of them";
            return Err(Problem::invalid(detail, "`follow` tells what is written from now on"));
        }
        let (to, events) = channel(WAITING);
        let sender = Events::new(&app, &caller, headers, to)?;
        tokio::spawn(follow(app, sender, device, least));
        return Ok(sse(events));
    }
    let before = page.begins(Place::parse)?;
    let lines = app.ask(move |client| read(client, device.as_ref(), least, page.limit, before.as_ref()));
    Ok(answer(&headers, &lines.await?)?.into_response())
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
    before: Option<&Place>,
) -> Result<Page<Map<String, Value>>, Failure> {
    let names = names(client, device)?;
    let mut depth = limit;
    loop {
        let lines = newest(client, &names, depth, before, &mut BTreeMap::new())?;
        let is_all = lines.len() < depth;
        let all = lines.iter().map(|line| (line, with_device(line)));
        let mut wanted: Vec<_> = all.filter(|(_, line)| is_wanted(line, least)).collect();
        if wanted.len() < limit && !is_all && depth < DEEPEST * limit {
            depth *= 8;
            continue;
        }
        let more = wanted.len() > limit;
        wanted.drain(..wanted.len().saturating_sub(limit));
        // What comes before the first that is shown, or before all that was looked at.
        let first = if more { wanted.first().map(|(line, _)| *line) } else { lines.first().filter(|_| !is_all) };
        let next = first.map(|line| line.place.to_string());
        return Ok(Page { items: wanted.into_iter().map(|(_, line)| line).collect(), next });
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
        let lines = match looked.await {
            Ok((back, lines)) => {
                reads = back;
                lines
            }
            Err(problem) => return events.fail(problem).await,
        };
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
