//! One command or job, run on whichever device takes it, and its answer.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::app::App;
use super::audit::what;
use super::extract::{Body, duration};
use super::guard::{Caller, allow};
use super::jobs::{not_too_long, seen, unnamed};
use super::problem::{Document, Kind, Problem};
use super::servers::{Turn, forward, turns};
use super::site::Note;
use super::stream::{Waited, wait_for};
use crate::client::change;
use crate::client::drop::{Object, Order, drop_new, must_be_known, name_of_program, tags};
use crate::client::find::find;
use crate::client::jobs::overview::tags_of_jobs;
use crate::client::runs::{self, Attempts};
use crate::client::{Client, Code, Failure, view};
use crate::model::access::Right;
use crate::model::ids::{DeviceId, JobName, RunId};
use crate::model::lease::Lease;
use crate::model::result::{Cause, Outcome, Status};
use crate::model::time::{rfc3339, show_duration};
use crate::model::trigger::Json as AsWritten;
use crate::volume::os::read_from;
use crate::volume::{Context as _, found};

/// How long an answer is waited for unless said.
const USUAL_WAIT: Duration = Duration::from_secs(60);
/// How much later than by who asked for it a command is ended by the device that has it.
const LATER: Duration = Duration::from_secs(5);
/// The word for this volume where a server may stand.
const HERE: &str = "here";
/// How much of what a command printed is answered, bytes.
const TAIL: u64 = 64 << 10;

/// What is to run: `command`, or `job`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CommandBody {
    /// A program and its arguments, run in `Programs/`.
    #[serde(default)]
    command: Vec<String>,
    /// A job of `Programs/`.
    #[serde(default)]
    job: Option<String>,
    /// With `job`: positional arguments, in the place of the job's.
    #[serde(default)]
    #[schema(value_type = Vec<Value>)]
    args: Vec<AsWritten>,
    /// With `job`: keyword arguments, merged over the job's.
    #[serde(default)]
    #[schema(value_type = Object)]
    kwargs: Object,
    /// With `command`: the container it runs in, as in a trigger.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    docker: Option<Value>,
    /// What the device must have; a device's id pins it there.
    #[serde(default)]
    tags: Vec<String>,
    /// After how long it is cancelled: `30s`; at most `10m`. 60 s unless said.
    #[serde(default, deserialize_with = "duration", serialize_with = "shown_duration")]
    #[schema(value_type = Option<String>, example = "30s", pattern = "^[0-9]{1,4}(ms|s|m|h|d)$")]
    timeout: Option<Duration>,
    /// Where: `here`, or the id of a server; wherever it is well unless said.
    #[serde(default)]
    server: Option<String>,
}

fn shown_duration<S: serde::Serializer>(span: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    match span {
        Some(span) => to.serialize_str(&show_duration(*span)),
        None => to.serialize_none(),
    }
}

/// What became of it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CommandAnswer {
    /// Its run.
    #[schema(value_type = String)]
    run_id: RunId,
    /// How it ended.
    #[schema(value_type = String)]
    status: Status,
    /// Its exit code.
    exit_code: Option<i32>,
    /// The signal that ended it.
    signal: Option<i32>,
    /// Why it did not succeed.
    error: Option<String>,
    /// The end of what it printed, at most 64 KiB.
    output: String,
    /// Whether it printed more.
    output_truncated: bool,
    /// What it reported.
    #[schema(value_type = Value)]
    result: Option<AsWritten>,
    /// Where it ran.
    #[schema(value_type = String)]
    device: DeviceId,
    /// Which attempt this is the end of.
    attempt: u32,
    /// How long it took, milliseconds.
    duration_ms: Option<f64>,
}

/// Run a command or a job on a device that can take it, wait for its end, and answer with exit code, output and result. If its device
/// dies, it goes on elsewhere.
#[utoipa::path(post, path = "/command", tag = "runs", request_body = CommandBody, responses(
    (status = 200, description = "How it ended", body = CommandAnswer),
    (status = 400, description = "It cannot be meant", body = Document),
    (status = 403, description = "A command takes the role operator and no scopes", body = Document),
    (status = 404, description = "Nobody knows the job, or it is not yours", body = Document),
    (status = 504, description = "It took longer than `timeout`, and is cancelled", body = Document),
))]
pub(super) async fn command(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Extension(note): Extension<Arc<Note>>,
    headers: HeaderMap,
    Body(wanted): Body<CommandBody>,
) -> Result<Response, Problem> {
    let timeout = not_too_long(wanted.timeout.unwrap_or(USUAL_WAIT))?;
    check(&wanted)?;
    if !wanted.command.is_empty() {
        allow(&caller, Right::Operate)?;
        caller.must_see_all("a command could do anything", "run a job, or ask for a key without scopes")?;
    }
    if !may_go_elsewhere(&caller, &headers, &wanted)? {
        return Ok(here(&app, caller, &note, wanted, timeout).await?.into_response());
    }
    let asked = wanted.clone();
    let has_device = app.ask(move |client| has_device(client, &asked)).await?;
    // Tags mean devices of this volume where there are such: names of devices are not the same elsewhere.
    if has_device && !wanted.tags.is_empty() && wanted.server.is_none() {
        return Ok(here(&app, caller, &note, wanted, timeout).await?.into_response());
    }
    let body = serde_json::to_vec(&CommandBody { server: None, ..wanted.clone() }).unwrap_or_default();
    let server = wanted.server.clone();
    for turn in turns(&app, has_device, server.as_deref()).await? {
        match turn {
            Turn::Here => return Ok(here(&app, caller, &note, wanted, timeout).await?.into_response()),
            Turn::There(record) => {
                note.asks(&caller, format!("asked of the server {} {}", record.id, record.url)).await;
                if let Some(answer) = forward(&app, &record, body.clone(), timeout).await? {
                    return Ok((what(format!("answered by the server {}", record.id)), answer).into_response());
                }
            }
        }
    }
    if let Some(server) = server {
        let detail = format!("the server {server} cannot take it now");
        return Err(Problem::new(Kind::Server, detail, "`GET /servers` shows how the servers are"));
    }
    Ok(here(&app, caller, &note, wanted, timeout).await?.into_response())
}

/// Whether a command may go to another server: not one that came from another, nor one of somebody whom scopes limit here.
fn may_go_elsewhere(caller: &Caller, headers: &HeaderMap, wanted: &CommandBody) -> Result<bool, Problem> {
    let is_sent_on = headers.contains_key("x-aios-forwarded");
    let may = caller.sees_all() && !is_sent_on && wanted.server.as_deref() != Some(HERE);
    if !may && wanted.server.as_deref().is_some_and(|server| server != HERE) {
        let detail = "a command of a key with scopes, or one that another server sent on, stays here";
        return Err(Problem::new(Kind::Forbidden, detail, "leave `server` out"));
    }
    Ok(may)
}

/// Whether a device that lives and takes work has what is needed.
fn has_device(client: &Client, wanted: &CommandBody) -> Result<bool, Failure> {
    let mut needed = wanted.tags.clone();
    needed.extend(wanted.docker.iter().map(|_| "docker".to_owned()));
    if let Some(job) = &wanted.job {
        let tags = tags_of_jobs(client)?;
        let Some((_, tags)) = tags.iter().find(|(name, _)| name.as_str() == job) else { return Ok(false) };
        needed.extend(tags.iter().map(ToString::to_string));
    }
    let devices = view::devices(client)?;
    let can = |device: &view::Device| {
        let beat = &device.beat;
        device.alive
            && !beat.drained
            && beat.low_on.is_none()
            && needed.iter().all(|tag| beat.tags.iter().any(|has| has.as_str() == tag))
    };
    Ok(devices.iter().any(can))
}

/// Runs it on this volume.
async fn here(
    app: &App,
    caller: Caller,
    note: &Note,
    wanted: CommandBody,
    timeout: Duration,
) -> Result<Json<CommandAnswer>, Problem> {
    let _place = app.wait(&caller.id)?;
    let who = caller.clone();
    let (run, job) = app.change(move |client| start(client, &caller, wanted, timeout)).await?;
    note.done(&who, format!("run {run}")).await;
    // From here on it may be running: whatever goes wrong is no reason to ask somebody else.
    let begun = |problem: Problem| {
        let detail = format!("the run {run} was asked for, and its end cannot be told: {}", problem.detail());
        Problem::new(Kind::Internal, detail, "GET /runs/ID shows what became of it")
    };
    match wait_for(app, &who, run.clone(), job.clone(), timeout).await.map_err(begun)? {
        Waited::Ended(outcome) => {
            return app.ask(move |client| answer(client, *outcome)).await.map(Json).map_err(begun);
        }
        Waited::TimeUp => {}
        Waited::Stopping => {
            let detail = format!("this device leaves; the run {run} goes on");
            return Err(Problem::new(Kind::TimedOut, detail, "ask another device for GET /runs/ID"));
        }
    }
    let id = run.to_string();
    let (name, sees) = (id.clone(), who.clone());
    let reason = app.ask(move |client| {
        let found = find(client, &name)?;
        Ok(runs::shown(client, &found, Attempts { before: None, limit: 1 }, &sees.view(client)?)?.reason)
    });
    // One that moves just now has none.
    let reason = reason.await.ok().flatten().map(|reason| format!(" ({reason})")).unwrap_or_default();
    let cancelled = app.change(move |client| change::cancel(client, &id)).await;
    // One that has ended meanwhile has an answer.
    if cancelled.is_err()
        && let Waited::Ended(outcome) = wait_for(app, &who, run.clone(), job, Duration::ZERO).await.map_err(begun)?
    {
        return app.ask(move |client| answer(client, *outcome)).await.map(Json).map_err(begun);
    }
    let what = if cancelled.is_ok() { "it is cancelled" } else { "its run shows how it ended" };
    let detail = format!("the run {run} has not ended within {} s{reason}: {what}", timeout.as_secs_f64());
    Err(Problem::new(Kind::TimedOut, detail, "give a longer timeout, or start it with POST /trigger and look later"))
}

/// Refuses what is a command and a job at once.
fn check(wanted: &CommandBody) -> Result<(), Failure> {
    let CommandBody { command, job, args, kwargs, docker, .. } = wanted;
    let is_both = job.is_some() && (!command.is_empty() || docker.is_some());
    let is_args_of_command = job.is_none() && (!args.is_empty() || !kwargs.0.is_empty());
    if is_both || is_args_of_command {
        let hint = "`command` (with `docker`), or `job` (with `args` and `kwargs`)";
        return Err(Failure::new(Code::Usage, "found keys of a command and of a job together", hint));
    }
    Ok(())
}

fn start(
    client: &mut Client,
    caller: &Caller,
    wanted: CommandBody,
    timeout: Duration,
) -> Result<(RunId, JobName), Failure> {
    let CommandBody { command, job, args, kwargs, docker, tags: wanted_tags, .. } = wanted;
    let job = job.map(|name| seen(client, caller, &name)).transpose()?;
    let stem = job.clone().unwrap_or_else(|| name_of_program(&command));
    let tags = tags(&wanted_tags)?;
    // Nobody waits for it any longer than that: what has not begun by then does not begin, and what has begun ends, also when this
    // device is no more.
    let timeout = timeout + LATER;
    let expires = TimeDelta::from_std(timeout).ok().map(|timeout| rfc3339(client.now().wall + timeout));
    let timeout = Some(show_duration(timeout));
    let order = Order {
        job: job.clone(),
        command,
        docker,
        args,
        kwargs: kwargs.0,
        tags,
        expires,
        timeout,
        ..Order::by(Cause::Api)
    };
    let bytes = order.bytes()?;
    if let Some(job) = &job {
        must_be_known(client, job).map_err(|failure| unnamed(caller, job.as_str(), failure))?;
    }
    Ok((drop_new(client, stem.as_str(), &bytes)?.0, stem))
}

fn answer(client: &Client, outcome: Outcome) -> Result<CommandAnswer, Failure> {
    let (output, output_truncated) = tail(client, &outcome.job, &outcome.run_id, outcome.attempt)?;
    Ok(CommandAnswer {
        run_id: outcome.run_id,
        status: outcome.status,
        exit_code: outcome.exit_code,
        signal: outcome.signal,
        error: outcome.error,
        output,
        output_truncated,
        result: outcome.result,
        device: outcome.device,
        attempt: outcome.attempt,
        duration_ms: outcome.duration_ms,
    })
}

/// The end of an attempt's log, and whether there is more before it.
fn tail(client: &Client, job: &JobName, run: &RunId, attempt: u32) -> Result<(String, bool), Failure> {
    let path = client.layout.log(job, &Lease { run: run.clone(), attempt });
    let Some(meta) = found(client.disk.stat(&path)).on("look at", &path)? else { return Ok((String::new(), false)) };
    let from = meta.id.size.saturating_sub(TAIL);
    let bytes = found(read_from(&path, from, TAIL)).on("read", &path)?.unwrap_or_default();
    Ok((String::from_utf8_lossy(&bytes).into_owned(), from > 0))
}
