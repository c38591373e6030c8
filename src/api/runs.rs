//! Runs: history, one run with its attempts, its log, and what may be asked of it.

use std::sync::Arc;

use axum::Extension;
use axum::Json;
use axum::body::{Body as HttpBody, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::app::{App, Question, answer};
use super::audit::what;
use super::extract::{Asked, Named, one_of, switch, time};
use super::guard::{Caller, allow};
use super::jobs::Started;
use super::page::{Page, PageQuery};
use super::problem::{Document, Kind, Problem};
use super::stream::{follow, resumed};
use crate::client::change::{self, Cancelled, Retried};
use crate::client::find::{Run, find};
use crate::client::runs::{self, Attempts, Filter, STATUSES, attempt_with_log, newest_log};
use crate::client::{Client, Code, Failure};
use crate::model::access::Right;
use crate::model::ids::{DeviceId, JobName, RunId};
use crate::model::lease::Lease;
use crate::model::message::quoted;
use crate::volume::logs::earlier_part;
use crate::volume::os::read_from;
use crate::volume::{Context as _, found};

/// So many runs that are over are looked at for one page.
const LOOKS: usize = 5_000;
/// How much of a log is read at once, bytes.
const PIECE: u64 = 256 << 10;

/// Which runs are wanted.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct RunsQuery {
    /// Only of this job.
    #[serde(default)]
    #[param(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    job: Option<String>,
    /// Only with this status.
    #[serde(default)]
    #[param(pattern = "^(waiting|active|succeeded|failed|timed_out|cancelled|expired|skipped|lost|superseded)$")]
    status: Option<String>,
    /// Only on this device.
    #[serde(default)]
    #[param(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    device: Option<String>,
    /// Only dropped or due since this time, RFC 3339.
    #[serde(default, deserialize_with = "time")]
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<DateTime<Utc>>,
}

impl RunsQuery {
    fn filter(&self, page: &PageQuery) -> Result<Filter, Problem> {
        let name = |error: crate::model::ids::BadName| Problem::invalid(error.to_string(), "give a whole name");
        one_of("status", self.status.as_deref(), &STATUSES)?;
        Ok(Filter {
            job: self.job.as_deref().map(JobName::new).transpose().map_err(name)?,
            status: self.status.clone(),
            device: self.device.as_deref().map(DeviceId::new).transpose().map_err(name)?,
            since: self.since,
            before: page.begins(RunId::parse)?,
            jobs_only: false,
            looks: None,
            limit: page.limit,
        })
    }
}

/// Waiting, active and past runs, newest first.
#[utoipa::path(get, path = "/runs", tag = "runs", params(PageQuery, RunsQuery), responses(
    (status = 200, description = "A page of runs", body = Page<Object>),
    (status = 304, description = "As the `If-None-Match` says"),
    (status = 400, description = "It cannot be meant", body = Document),
))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    Asked(page): Asked<PageQuery>,
    Asked(query): Asked<RunsQuery>,
) -> Result<Response, Problem> {
    let filter = query.filter(&page)?;
    let question = Question::new("runs", &filter, &caller);
    app.look(question, &headers, move |client| {
        let limit = filter.limit;
        let filter = Filter { limit: limit + 1, jobs_only: !caller.sees_all(), looks: Some(LOOKS), ..filter };
        let (mut items, cut) = runs::page(client, &filter, &*caller.view(client)?)?;
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| more).map(|row| row.run_id.to_string());
        let next = next.or(cut.map(|cut| cut.to_string()));
        Ok(Page { items, next })
    })
    .await
}

/// The run of this name, if the caller sees it: what is not his does not exist for him. Whoever does not see all names runs by their
/// whole ids: what else a name could mean would tell of others.
pub(super) fn seen(client: &Client, caller: &Caller, name: &str) -> Result<Run, Failure> {
    if caller.sees_all() {
        return find(client, name);
    }
    let missing = || {
        let hint = "a key with scopes names runs by their whole ids: `GET /runs` lists them";
        Failure::new(Code::NotFound, format!("there is no run {}", quoted(name)), hint)
    };
    if RunId::parse(name).is_none() {
        return Err(missing());
    }
    let run = find(client, name).map_err(|failure| if failure.code == Code::Volume { failure } else { missing() })?;
    let is_seen = caller.view(client)?(&run.job);
    if is_seen && run.id.as_str() == name && !is_command(client, &run)? { Ok(run) } else { Err(missing()) }
}

/// Whether a run is a command without a job file.
fn is_command(client: &Client, run: &Run) -> Result<bool, Failure> {
    match runs::row(client, run) {
        Ok(row) => runs::is_command(client, &row),
        Err(failure) if failure.code == Code::Volume => Err(failure),
        Err(_) => Ok(true),
    }
}

/// One run with its attempts, of many the newest; `next` is the cursor for those before. It is named by its id, an unambiguous
/// beginning or end of it, or its trigger's file name.
#[utoipa::path(get, path = "/runs/{id}", tag = "runs", params(("id" = String, Path, description = "The run"), PageQuery), responses(
    (status = 200, description = "The run", body = Object),
    (status = 400, description = "It cannot be meant", body = Document),
    (status = 304, description = "As the `If-None-Match` says"),
    (status = 404, description = "There is none, or it is not yours", body = Document),
))]
pub(super) async fn show(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    Named(id): Named<String>,
    Asked(page): Asked<PageQuery>,
) -> Result<Response, Problem> {
    let wanted = Attempts { before: page.begins(|cursor| cursor.parse().ok())?, limit: page.limit };
    let shown = app.ask(move |client| {
        let run = seen(client, &caller, &id)?;
        runs::shown(client, &run, wanted, &caller.view(client)?)
    });
    let shown = shown.await?;
    answer(&headers, &shown)
}

/// What became of a cancel.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CancelAnswer {
    /// The run.
    #[schema(value_type = String)]
    run_id: RunId,
    /// `asked`: its device is to end it; `cancelled`: it waited, and is over.
    cancel: &'static str,
    /// Who was asked.
    #[schema(value_type = Option<String>)]
    device: Option<DeviceId>,
}

/// End a run: at once if it waits, else its device is asked to.
#[utoipa::path(post, path = "/runs/{id}/cancel", tag = "runs", params(("id" = String, Path, description = "The run")), responses(
    (status = 202, description = "It is over, or its device is asked to end it", body = CancelAnswer),
    (status = 404, description = "There is none, or it is not yours", body = Document),
    (status = 409, description = "It is over", body = Document),
))]
pub(super) async fn cancel(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Named(id): Named<String>,
) -> Result<Response, Problem> {
    let Cancelled { run, device } = app
        .change(move |client| {
            let run = seen(client, &caller, &id)?;
            change::cancel(client, run.id.as_str())
        })
        .await?;
    let cancel = if device.is_some() { "asked" } else { "cancelled" };
    Ok((StatusCode::ACCEPTED, Json(CancelAnswer { run_id: run, cancel, device })).into_response())
}

/// Drop the trigger of a past run again, as a new run; make a waiting one due now.
#[utoipa::path(post, path = "/runs/{id}/retry", tag = "runs", params(("id" = String, Path, description = "The run")), responses(
    (status = 202, description = "The run that was asked for", body = Started),
    (status = 404, description = "There is none, or it is not yours", body = Document),
    (status = 409, description = "It is active, or its trigger cannot be dropped again", body = Document),
))]
pub(super) async fn retry(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Named(id): Named<String>,
) -> Result<Response, Problem> {
    let done = app
        .change(move |client| {
            let run = seen(client, &caller, &id)?;
            // To run a command again is to run a command.
            if is_command(client, &run)?
                && let Err(refused) = allow(&caller, Right::Operate)
            {
                return Ok(Err(refused));
            }
            let retried = change::retry(client, run.id.as_str())?;
            Ok(Ok((run.job, retried)))
        })
        .await?;
    let (job, retried) = done?;
    let (run, trigger, note) = match retried {
        Retried::DueAlready(run, trigger) => (run, trigger, Some("it is due already".to_owned())),
        Retried::DueNow(run, trigger) => (run, trigger, Some("it is due now".to_owned())),
        Retried::Anew { before, run, trigger, .. } => {
            (run, trigger, Some(format!("{before} is tried again as a new run")))
        }
    };
    let asked = what(format!("run {run}"));
    Ok((StatusCode::ACCEPTED, asked, Json(Started::new(run, job, trigger, note))).into_response())
}

/// Which log is wanted, and how.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LogQuery {
    /// Of this attempt; the newest unless said.
    #[serde(default)]
    attempt: Option<u32>,
    /// As it grows, as server-sent events, until the run is over; goes on where `Last-Event-ID` says.
    #[serde(default, deserialize_with = "switch")]
    #[param(value_type = Option<bool>)]
    follow: bool,
}

/// What the run printed, as it lies in the folder; with `Range`, a piece of it. With `follow`: events `log` (attempt, offset, text),
/// `attempt` (one is over and the run goes on), `waiting` (why nothing happens), `end` (its result).
#[utoipa::path(get, path = "/runs/{id}/log", tag = "runs", params(("id" = String, Path, description = "The run"), LogQuery), responses(
    (status = 200, description = "The log", content((String = "text/plain"), (String = "text/event-stream"))),
    (status = 206, description = "A piece of it", body = String, content_type = "text/plain"),
    (status = 404, description = "There is none, or it is not yours", body = Document),
    (status = 409, description = "No attempt of it was started", body = Document),
    (status = 416, description = "It has no such piece", body = Document),
))]
pub(super) async fn log(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    Named(id): Named<String>,
    Asked(query): Asked<LogQuery>,
) -> Result<Response, Problem> {
    let who = caller.clone();
    let run = app.ask(move |client| seen(client, &who, &id)).await?;
    if query.follow {
        let (run, newest) = app
            .ask(move |client| {
                let newest = newest_log(client, &run)?;
                Ok((run, newest))
            })
            .await?;
        let from = resumed(&headers).unwrap_or((query.attempt.or(newest).unwrap_or(1), 0));
        if from.0 > newest.unwrap_or(1).saturating_add(1) {
            let detail = format!("attempt {} is far ahead: the newest is {}", from.0, newest.unwrap_or(0));
            return Err(Problem::new(Kind::NotFound, detail, "leave `attempt` out for the newest"));
        }
        return follow(&app, &caller, headers, run, from);
    }
    let parts = app.ask(move |client| Parts::of(client, &run, query.attempt)).await?;
    parts.send(app, &headers)
}

/// The files of a log, one behind the other: an earlier part, where it was rotated, and the log.
struct Parts {
    name: String,
    files: Vec<(std::path::PathBuf, u64)>,
}

impl Parts {
    fn of(client: &Client, run: &Run, attempt: Option<u32>) -> Result<Self, Failure> {
        let attempt = attempt_with_log(client, run, attempt)?;
        let path = client.layout.log(&run.job, &Lease { run: run.id.clone(), attempt });
        let mut files = Vec::new();
        for file in [earlier_part(&path), path] {
            if let Some(meta) = found(client.disk.stat(&file)).on("look at", &file)? {
                files.push((file, meta.id.size));
            }
        }
        Ok(Self { name: format!("{}.{}.{attempt}.log", run.job, run.id), files })
    }

    fn size(&self) -> u64 {
        self.files.iter().map(|(_, size)| size).sum()
    }

    /// The bytes from `at` on, some of them: never beyond the end of a file.
    fn read(&self, at: u64, most: u64) -> Result<Vec<u8>, Failure> {
        let mut before = 0;
        for (path, size) in &self.files {
            if at < before + size {
                let most = most.min(before + size - at).min(PIECE);
                return Ok(found(read_from(path, at - before, most)).on("read", path)?.unwrap_or_default());
            }
            before += size;
        }
        Ok(Vec::new())
    }

    fn send(self, app: App, headers: &HeaderMap) -> Result<Response, Problem> {
        let size = self.size();
        let range =
            headers.get(header::RANGE).and_then(|range| range.to_str().ok()).and_then(|range| piece(range, size));
        if range == Some(None) {
            let detail = format!("the log has {size} bytes, and the range begins behind them");
            let hint = "ask for `bytes=-1000` for its end";
            let mut response = Problem::new(Kind::RangeNotSatisfiable, detail, hint).into_response();
            response.headers_mut().insert(header::CONTENT_RANGE, number(&format!("bytes */{size}")));
            return Ok(response);
        }
        let (from, to) = range.flatten().unwrap_or((0, size));
        let disposition = number(&format!("attachment; filename=\"{}\"", self.name));
        let body = stream::unfold((Arc::new(self), from), move |(parts, at)| {
            let app = app.clone();
            async move {
                if at >= to {
                    return None;
                }
                let reader = Arc::clone(&parts);
                match app.ask(move |_| reader.read(at, to - at)).await {
                    Ok(bytes) if bytes.is_empty() => None,
                    Ok(bytes) => {
                        let next = at + bytes.len() as u64;
                        Some((Ok(Bytes::from(bytes)), (parts, next)))
                    }
                    Err(problem) => Some((Err(std::io::Error::other(problem.detail().to_owned())), (parts, to))),
                }
            }
        });
        let mut response = HttpBody::from_stream(body).into_response();
        let set = response.headers_mut();
        set.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        set.insert(header::CONTENT_DISPOSITION, disposition);
        // Who counts the bytes finds out if it is cut meanwhile.
        set.insert(header::CONTENT_LENGTH, HeaderValue::from(to.saturating_sub(from)));
        set.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        set.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
        if range.is_some() {
            set.insert(header::CONTENT_RANGE, number(&format!("bytes {from}-{}/{size}", to.saturating_sub(1))));
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        Ok(response)
    }
}

/// A header of names and numbers.
fn number(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// From where to where one range goes, the end not included; `Some(None)`: there is nothing there; `None`: it is no range that is
/// understood, and the whole is sent.
fn piece(range: &str, size: u64) -> Option<Option<(u64, u64)>> {
    // A number that is too large for any log is behind its end.
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse().unwrap_or(u64::MAX))
    };
    let (from, to) = match range.strip_prefix("bytes=")?.split_once('-')? {
        ("", last) => (size.saturating_sub(number(last)?), size),
        (from, "") => (number(from)?, size),
        (from, to) => {
            let (from, to) = (number(from)?, number(to)?);
            if to < from {
                return None;
            }
            (from, to.saturating_add(1).min(size))
        }
    };
    Some((from < to).then_some((from, to)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        for (range, size, expected) in [
            ("bytes=0-9", 100, Some(Some((0, 10)))),
            ("bytes=90-", 100, Some(Some((90, 100)))),
            ("bytes=90-1000", 100, Some(Some((90, 100)))),
            ("bytes=-10", 100, Some(Some((90, 100)))),
            ("bytes=-1000", 100, Some(Some((0, 100)))),
            ("bytes=100-", 100, Some(None)),
            ("bytes=0-", 0, Some(None)),
            ("bytes=-0", 100, Some(None)),
            ("bytes=5-4", 100, None),
            ("bytes=0-1,3-4", 100, None),
            ("lines=0-1", 100, None),
            ("bytes=a-b", 100, None),
            ("bytes=0-18446744073709551616", 100, Some(Some((0, 100)))),
        ] {
            assert_eq!(piece(range, size), expected, "{range}");
        }
    }
}
