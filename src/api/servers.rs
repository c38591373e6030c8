//! Orchestrators on other volumes: whether they are well, and commands that go to them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Extension;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use utoipa::{IntoParams, ToSchema};

use super::app::{App, answer};
use super::audit::what;
use super::extract::{Asked, Body, Named, one_of};
use super::guard::Caller;
use super::page::{Page, PageQuery};
use super::problem::{Document, Kind, Problem};
use crate::client::servers::{self, Record};
use crate::client::{Code, Failure};
use crate::model::time::utc_opt;
use crate::notify::peer::{NoAnswer, Question, ask};

/// How often each is asked whether it is well.
const EVERY: Duration = Duration::from_secs(5);
/// How long an answer counts for who asks now.
const FRESH: Duration = Duration::from_secs(2);
/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How much longer than its command an answer may take.
const ON_THE_WAY: Duration = Duration::from_secs(10);
/// So many servers are asked at once whether they are well: also where all are silent, each of them within 15 s.
const CHECKS: usize = 32;
/// How old what is known of a server may be for it to get commands.
const KNOWN: Duration = Duration::from_secs(15);
/// So many commands are on their way at once.
const AT_ONCE: usize = 32;

/// What is known of the servers.
pub(super) struct Servers {
    seen: Mutex<BTreeMap<String, Seen>>,
    turn: AtomicUsize,
    /// Commands that are on their way.
    asking: Arc<Semaphore>,
    /// Questions whether one is well.
    checking: Arc<Semaphore>,
}

#[derive(Clone)]
struct Seen {
    asked: Duration,
    at: DateTime<Utc>,
    status: &'static str,
    version: Option<String>,
    error: Option<String>,
    milliseconds: f64,
}

/// A server, as lists show it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Server)]
pub(super) struct Shown {
    /// Its id here.
    id: String,
    /// Where its API is.
    url: String,
    /// `ok`, `degraded`, `unreachable`, or `refused`: it does not take the key; `unknown`: it was not asked yet.
    status: &'static str,
    /// Its version.
    version: Option<String>,
    /// Why it is unreachable.
    error: Option<String>,
    /// When it was asked.
    #[serde(with = "utc_opt")]
    #[schema(value_type = Option<String>)]
    checked_at: Option<DateTime<Utc>>,
    /// How long its answer took.
    latency_ms: Option<f64>,
}

impl Servers {
    pub(super) fn new() -> Self {
        Self {
            seen: Mutex::default(),
            turn: AtomicUsize::new(0),
            asking: Arc::new(Semaphore::new(AT_ONCE)),
            checking: Arc::new(Semaphore::new(CHECKS)),
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shown(&self, record: &Record) -> Shown {
        let seen = self.seen().get(&record.id).cloned();
        Shown {
            id: record.id.clone(),
            url: record.url.clone(),
            status: seen.as_ref().map_or("unknown", |seen| seen.status),
            checked_at: seen.as_ref().map(|seen| seen.at),
            latency_ms: seen.as_ref().map(|seen| seen.milliseconds),
            version: seen.as_ref().and_then(|seen| seen.version.clone()),
            error: seen.and_then(|seen| seen.error),
        }
    }
}

/// Asks every server again and again whether it is well.
pub(super) async fn watch(app: App) {
    loop {
        let begun = app.now().boot;
        // A folder that cannot be read now is read the next time.
        if let Ok(records) = app.ask(|client| servers::list(client)).await {
            app.servers.seen().retain(|id, _| records.iter().any(|record| record.id == *id));
            // One round after the other, however many are silent.
            check_all(&app, &records, Duration::ZERO).await;
        }
        sleep(EVERY.saturating_sub(app.now().boot.saturating_sub(begun))).await;
    }
}

/// Asks these servers at once whether they are well. One that could not be asked stays as it was seen.
async fn check_all(app: &App, records: &[Record], fresh: Duration) {
    let asked: Vec<_> = records.iter().map(|record| tokio::spawn(check(app.clone(), record.clone(), fresh))).collect();
    for one in asked {
        let _ = one.await;
    }
}

/// Asks a server whether it is well, unless it was asked within `fresh`.
async fn check(app: App, record: Record, fresh: Duration) {
    let is_fresh = |now: Duration| {
        let seen = app.servers.seen().get(&record.id).map(|seen| seen.asked);
        seen.is_some_and(|asked| now.saturating_sub(asked) < fresh)
    };
    if is_fresh(app.now().boot) {
        return;
    }
    let Ok(one) = Arc::clone(&app.servers.checking).acquire_owned().await else { return };
    // It may have been asked by another while this one waited.
    let now = app.now();
    if is_fresh(now.boot) {
        return;
    }
    let (url, key) = (format!("{}/api/v1/health", record.url), record.key.clone());
    let answer = tokio::task::spawn_blocking(move || {
        let _one = one;
        ask(&Question { url, key: Some(&key), body: None, through: None, timeout: PATIENCE })
    });
    let answer = answer.await.unwrap_or_else(|error| Err(NoAnswer { why: error.to_string(), may_be_read: true }));
    let (status, version, error) = match answer {
        Ok((200, body)) => match serde_json::from_slice::<Value>(&body) {
            Ok(said) => {
                let status = if said["status"] == "ok" { "ok" } else { "degraded" };
                (status, said["version"].as_str().map(str::to_owned), None)
            }
            Err(error) => ("unreachable", None, Some(format!("it answers, and not as an orchestrator: {error}"))),
        },
        Ok((401 | 403, _)) => ("refused", None, Some("it does not take the key any more".to_owned())),
        Ok((status, _)) => ("unreachable", None, Some(format!("it answers with the status {status}"))),
        Err(NoAnswer { why, .. }) => ("unreachable", None, Some(why)),
    };
    let took = app.now().boot.saturating_sub(now.boot);
    let seen =
        Seen { asked: now.boot, at: now.wall, status, version, error, milliseconds: took.as_secs_f64() * 1_000.0 };
    app.servers.seen().insert(record.id, seen);
}

/// Which servers are wanted.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ServersQuery {
    /// Only those with this status.
    #[serde(default)]
    #[param(pattern = "^(ok|degraded|unreachable|refused|unknown)$")]
    status: Option<String>,
}

/// What a server's status can be.
const STATUSES: [&str; 5] = ["ok", "degraded", "unreachable", "refused", "unknown"];

/// The other orchestrators, and whether they are well.
#[utoipa::path(get, path = "/servers", tag = "servers", params(PageQuery, ServersQuery), responses(
    (status = 200, description = "A page of servers", body = Page<Shown>),
    (status = 304, description = "As the `If-None-Match` says"),
    (status = 400, description = "It cannot be meant", body = Document),
    (status = 403, description = "With scopes they cannot be seen", body = Document),
))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    Asked(page): Asked<PageQuery>,
    Asked(query): Asked<ServersQuery>,
) -> Result<Response, Problem> {
    caller.must_see_all("other servers work for all jobs", "ask for a key without scopes")?;
    one_of("status", query.status.as_deref(), &STATUSES)?;
    let records = app.ask(|client| servers::list(client)).await?;
    check_all(&app, &records, FRESH).await;
    let mut items: Vec<Shown> = records.iter().map(|record| app.servers.shown(record)).collect();
    items.retain(|shown| query.status.as_deref().is_none_or(|status| shown.status == status));
    answer(&headers, &Page::of(items, &page, |shown| shown.id.clone()))
}

/// An orchestrator on another volume.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ServerBody {
    /// Where its API is: `https://host:port`.
    #[schema(
        example = "https://other-host:8080",
        pattern = "^https?://[A-Za-z0-9][A-Za-z0-9.-]*(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?$"
    )]
    url: String,
    /// A key that it has made, with the role operator.
    #[schema(format = Password, pattern = "^[!-~]{1,200}$")]
    key: String,
}

/// Note an orchestrator on another volume: `POST /command` goes to it as well, while it is well.
#[utoipa::path(post, path = "/register_server", tag = "servers", request_body = ServerBody, responses(
    (status = 201, description = "It is noted", body = Shown),
    (status = 400, description = "It cannot be meant, or does not take the key", body = Document),
    (status = 409, description = "It is noted already", body = Document),
))]
pub(super) async fn register(State(app): State<App>, Body(wanted): Body<ServerBody>) -> Result<Response, Problem> {
    let url = servers::read_url(&wanted.url)?;
    if url.starts_with("http:") && !app.insecure && !servers::is_loopback(&url) {
        let error = format!("{url} has no TLS: its key could be read on the way");
        return Err(
            Failure::new(Code::Usage, error, "serve it by TLS, or start this device with --insecure-http").into()
        );
    }
    let (me, key) = (format!("{url}/api/v1/me"), wanted.key.clone());
    let answer = tokio::task::spawn_blocking(move || {
        ask(&Question { url: me, key: Some(&key), body: None, through: None, timeout: PATIENCE })
    });
    // One that does not answer now may do so later.
    if let Ok(Ok((status, body))) = answer.await {
        let me = serde_json::from_slice::<Value>(&body).unwrap_or_default();
        let role = me["role"].as_str().map(str::to_owned);
        if me["volume"] == app.volume.as_str() {
            let error = format!("{url} serves this volume itself");
            return Err(Failure::new(Code::Usage, error, "name an orchestrator on another volume").into());
        }
        if status != 200 || !matches!(role.as_deref(), Some("operator" | "admin")) {
            let found = role.map_or_else(|| format!("the status {status}"), |role| format!("the role {role}"));
            let error = format!("{url} answers to the key with {found}, expected the role operator");
            return Err(
                Failure::new(Code::Usage, error, "make one there: orchestrator keys create --role operator").into()
            );
        }
    }
    let record = app.change(move |client| servers::register(client, &wanted.url, &wanted.key)).await?;
    check(app.clone(), record.clone(), Duration::ZERO).await;
    let noted = what(format!("server {} {}", record.id, record.url));
    Ok((StatusCode::CREATED, noted, Json(app.servers.shown(&record))).into_response())
}

/// Forget an orchestrator on another volume.
#[utoipa::path(delete, path = "/servers/{id}", tag = "servers", params(("id" = String, Path, description = "The server's id")), responses(
    (status = 204, description = "It is forgotten"),
    (status = 404, description = "There is none", body = Document),
))]
pub(super) async fn delete(State(app): State<App>, Named(id): Named<String>) -> Result<StatusCode, Problem> {
    app.change(move |client| servers::forget(client, &id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Where a command goes next: to this volume, or to another server.
pub(super) enum Turn {
    Here,
    There(Box<Record>),
}

/// Where a command may go, whose turn it is first: this volume if it has a device for it, and every server that is well.
pub(super) async fn turns(app: &App, here: bool, wanted: Option<&str>) -> Result<Vec<Turn>, Problem> {
    let records = app.ask(|client| servers::list(client)).await?;
    if let Some(wanted) = wanted {
        let one = records.into_iter().find(|record| record.id == wanted);
        let missing = || {
            Problem::new(Kind::NotFound, format!("there is no server {wanted:?}"), "`GET /servers` lists the servers")
        };
        return Ok(vec![Turn::There(Box::new(one.ok_or_else(missing)?))]);
    }
    let now = app.now().boot;
    let is_well = |record: &Record| {
        let seen = app.servers.seen().get(&record.id).cloned();
        seen.is_some_and(|seen| seen.status == "ok" && now.saturating_sub(seen.asked) < KNOWN)
    };
    let mut turns: Vec<Turn> =
        records.into_iter().filter(is_well).map(|record| Turn::There(Box::new(record))).collect();
    // What nobody has a device for waits here, where it is seen.
    if here || turns.is_empty() {
        turns.insert(0, Turn::Here);
    }
    let first = app.servers.turn.fetch_add(1, Ordering::AcqRel) % turns.len();
    turns.rotate_left(first);
    Ok(turns)
}

/// What another server said to a command; `None`: it cannot take it, and another one can be asked.
pub(super) async fn forward(
    app: &App,
    record: &Record,
    body: Vec<u8>,
    timeout: Duration,
) -> Result<Option<Response>, Problem> {
    let Ok(Ok(one)) = tokio::time::timeout(timeout, Arc::clone(&app.servers.asking).acquire_owned()).await else {
        return Ok(None);
    };
    let (url, key, through) = (format!("{}/api/v1/command", record.url), record.key.clone(), app.device.to_string());
    let answer = tokio::task::spawn_blocking(move || {
        let _one = one;
        let (key, through) = (Some(key.as_str()), Some(through.as_str()));
        ask(&Question { url, key, body: Some(&body), through, timeout: timeout + ON_THE_WAY })
    });
    let answer = answer.await.unwrap_or_else(|error| Err(NoAnswer { why: error.to_string(), may_be_read: true }));
    match answer {
        // It has no such job, or no key, or too much to do.
        Ok((401 | 403 | 404 | 429 | 503, _)) => Ok(None),
        Ok((status, body)) => {
            let mut said: Value = serde_json::from_slice(&body).unwrap_or_default();
            if let Some(said) = said.as_object_mut() {
                said.insert("server".to_owned(), record.id.clone().into());
            }
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
            let mut response = (status, Json(said)).into_response();
            if !status.is_success() {
                let kind = axum::http::HeaderValue::from_static("application/problem+json");
                response.headers_mut().insert(axum::http::header::CONTENT_TYPE, kind);
            }
            Ok(Some(response))
        }
        Err(NoAnswer { may_be_read: false, .. }) => Ok(None),
        Err(NoAnswer { why, .. }) => {
            let detail = format!("{} has not answered, and may be running the command: {why}", record.url);
            Err(Problem::new(Kind::Server, detail, "see there what became of it"))
        }
    }
}
