//! Jobs: what there is, what becomes of it, start, stop and change it.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use super::app::{App, Question, answer};
use super::audit::{What, what};
use super::extract::{Asked, Body, Named, duration};
use super::guard::Caller;
use super::page::{Page, PageQuery};
use super::problem::{Document, Problem};
use super::site::Note;
use super::stream::{Waited, wait_for};
use crate::client::drop::{Object, Order, drop_new, must_be_known, tags};
use crate::client::jobs::edit::{self, Deleted};
use crate::client::jobs::overview::{Overview, overview};
use crate::client::jobs::show::Definition;
use crate::client::jobs::{body, file, mark};
use crate::client::restart::{self, Asked as Restarted};
use crate::client::{Client, Code, Failure, view};
use crate::model::access::Right;
use crate::model::ids::{JobName, RunId};
use crate::model::result::Cause;
use crate::model::trigger::Json as AsWritten;
use crate::notify;

/// Which jobs are wanted.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct JobsQuery {
    /// Only of this type.
    #[serde(default, rename = "type")]
    kind: Option<String>,
    /// Only those that need this tag.
    #[serde(default)]
    tag: Option<String>,
    /// Only those that may run, or may not.
    #[serde(default)]
    enabled: Option<bool>,
    /// Only those whose name begins so.
    #[serde(default)]
    prefix: Option<String>,
}

/// All jobs, with what runs and waits of them, when they run next, and why they do not.
#[utoipa::path(get, path = "/jobs", tag = "jobs", params(PageQuery, JobsQuery), responses(
    (status = 200, description = "A page of jobs", body = Page<Object>),
    (status = 304, description = "As the `If-None-Match` says"),
))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    Asked(page): Asked<PageQuery>,
    Asked(query): Asked<JobsQuery>,
) -> Result<Response, Problem> {
    let question = Question::new("jobs", &(&page, &query), &caller);
    app.look(question, &headers, move |client| {
        let takes = |job: &Overview| {
            caller.sees(&job.row.job, &mut job.tags())
                && query.kind.as_deref().is_none_or(|kind| job.row.kind == Some(kind))
                && query.tag.as_deref().is_none_or(|tag| job.tags().any(|has| has.as_str() == tag))
                && query.enabled.is_none_or(|enabled| job.row.enabled == Some(enabled))
                && query.prefix.as_deref().is_none_or(|prefix| job.row.job.as_str().starts_with(prefix))
        };
        let jobs: Vec<Overview> = overview(client, &caller.view(client)?)?.into_iter().filter(takes).collect();
        Ok(Page::of(jobs, &page, |job| job.row.job.to_string()))
    })
    .await
}

/// One job: its definition, every default filled in, and what becomes of it.
#[utoipa::path(get, path = "/jobs/{name}", tag = "jobs", params(("name" = String, Path, description = "The job")), responses(
    (status = 200, description = "The job", body = Object),
    (status = 304, description = "As the `If-None-Match` says"),
    (status = 404, description = "Nobody knows it, or it is not yours", body = Document),
))]
pub(super) async fn show(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    Named(name): Named<String>,
) -> Result<Response, Problem> {
    let shown = app.ask(move |client| detail(client, &caller, &name)).await?;
    answer(&headers, &shown)
}

/// A job as one document.
fn detail(client: &Client, caller: &Caller, name: &str) -> Result<Value, Failure> {
    let name = seen(client, caller, name)?;
    let found = overview(client, &caller.view(client)?)?.into_iter().find(|job| job.row.job == name);
    let Some(job) = found else {
        let failure = view::no_such_job(name.as_str(), view::programs(client)?.catalog());
        return Err(unnamed(caller, name.as_str(), failure));
    };
    let mut shown = value(&job)?;
    let mut definition = match &file(client, name.as_str())?.read {
        Ok(good) => value(&Definition::new(good, &mark(client, &name)?))?,
        Err(_) => Value::Null,
    };
    // Whoever has the address of a webhook may post there.
    if let Some(hook) = definition.get_mut("notify").filter(|_| !caller.role.may(Right::Administer))
        && let Some(url) = hook.as_str()
    {
        *hook = notify::shown(url).into();
    }
    if let Some(shown) = shown.as_object_mut() {
        shown.insert("definition".to_owned(), definition);
    }
    Ok(shown)
}

/// A value as JSON.
pub(super) fn value(of: &impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(of).map_err(|error| Failure::new(Code::Failed, format!("cannot write JSON: {error}"), ""))
}

/// The job of this name, if the caller sees it: what is not his does not exist for him.
pub(super) fn seen(client: &Client, caller: &Caller, name: &str) -> Result<JobName, Failure> {
    // What breaks the rule names nothing.
    let job = JobName::new(name).map_err(|_| nobody_knows(name))?;
    if caller.view(client)?(&job) { Ok(job) } else { Err(nobody_knows(name)) }
}

/// The failure for a job that is not there for this caller.
fn nobody_knows(name: &str) -> Failure {
    let error = format!("there is no job {}", crate::model::message::quoted(name));
    Failure::new(Code::NotFound, error, "`GET /jobs` lists the jobs")
}

/// What a trigger is given.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TriggerBody {
    /// Positional arguments, in the place of the job's.
    #[serde(default)]
    #[schema(value_type = Vec<Value>)]
    args: Vec<AsWritten>,
    /// Keyword arguments, merged over the job's.
    #[serde(default)]
    #[schema(value_type = Object)]
    kwargs: Object,
    /// -999 to 999; higher is claimed first.
    #[serde(default)]
    #[schema(minimum = -999, maximum = 999)]
    priority: Option<i16>,
    /// What the device must have, beside the job's own tags.
    #[serde(default)]
    tags: Vec<String>,
    /// Not before this time: RFC 3339 with an offset, or `immediate`.
    #[serde(default)]
    #[schema(example = "immediate")]
    time: Option<String>,
    /// Not started by then, it ends as `expired`.
    #[serde(default)]
    expires: Option<String>,
    /// How long an attempt may take, if that is less than what the job gives it: `30s`.
    #[serde(default)]
    #[schema(example = "30s")]
    timeout: Option<String>,
    /// Idempotency key: a run with it that exists, or ended within the last day, is the one that counts.
    #[serde(default)]
    id: Option<String>,
}

/// How long an answer is waited for.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WaitQuery {
    /// Wait for the end of the run, at most so long: `30s`. At most `10m`.
    #[serde(default, deserialize_with = "duration")]
    #[param(value_type = Option<String>, pattern = "^[0-9]{1,4}(ms|s|m|h|d)$")]
    wait: Option<Duration>,
}

/// The longest time that an answer is waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// Refuses to wait for longer than anybody may.
pub(super) fn not_too_long(wait: Duration) -> Result<Duration, Problem> {
    if wait <= LONGEST_WAIT {
        return Ok(wait);
    }
    let detail = format!("found a wait of {} s, expected at most {} s", wait.as_secs(), LONGEST_WAIT.as_secs());
    Err(Problem::invalid(detail, "start it with POST /trigger, and look later"))
}

/// A run that was asked for.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Started {
    /// The run.
    #[schema(value_type = String)]
    run_id: RunId,
    /// Its job.
    #[schema(value_type = String)]
    job: JobName,
    /// The name of its trigger.
    trigger: String,
    /// Where to look.
    #[schema(value_type = Object)]
    links: Value,
    /// What is worth knowing about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

impl Started {
    pub(super) fn new(run_id: RunId, job: JobName, trigger: String, note: Option<String>) -> Self {
        let links = json!({
            "run": format!("/api/v1/runs/{run_id}"),
            "log": format!("/api/v1/runs/{run_id}/log"),
            "cancel": format!("/api/v1/runs/{run_id}/cancel"),
        });
        Self { run_id, job, trigger, links, note }
    }
}

/// Start a job.
#[utoipa::path(post, path = "/trigger/{job}", tag = "jobs",
    params(("job" = String, Path, description = "The job"), WaitQuery), request_body = Option<TriggerBody>, responses(
    (status = 202, description = "It was asked for; with `wait`: it has not ended yet", body = Started),
    (status = 200, description = "With `wait`: its result", body = Object),
    (status = 400, description = "It cannot be meant", body = Document),
    (status = 404, description = "Nobody knows the job, or it is not yours", body = Document),
))]
pub(super) async fn trigger(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Extension(note): Extension<Arc<Note>>,
    Named(name): Named<String>,
    Asked(query): Asked<WaitQuery>,
    Body(wanted): Body<TriggerBody>,
) -> Result<Response, Problem> {
    let who = caller.clone();
    let wait = query.wait.map(not_too_long).transpose()?;
    let _place = query.wait.map(|_| app.wait(&caller.id)).transpose()?;
    let started = app.change(move |client| start(client, &caller, &name, wanted)).await?;
    note.done(&who, format!("run {}", started.run_id)).await;
    let Some(wait) = wait else { return Ok((StatusCode::ACCEPTED, Json(started)).into_response()) };
    match wait_for(&app, &who, started.run_id.clone(), started.job.clone(), wait).await? {
        Waited::Ended(outcome) => Ok(Json(outcome).into_response()),
        Waited::TimeUp | Waited::Stopping => Ok((StatusCode::ACCEPTED, Json(started)).into_response()),
    }
}

fn start(client: &mut Client, caller: &Caller, name: &str, wanted: TriggerBody) -> Result<Started, Failure> {
    let job = seen(client, caller, name)?;
    let TriggerBody { args, kwargs, priority, tags: wanted_tags, time, expires, timeout, id } = wanted;
    let order = Order {
        job: Some(job.clone()),
        args,
        kwargs: kwargs.0,
        priority,
        tags: tags(&wanted_tags)?,
        time,
        expires,
        timeout,
        id: id.map(|id| own_id(caller, id)),
        ..Order::by(Cause::Api)
    };
    let bytes = order.bytes()?;
    let note = must_be_known(client, &job).map_err(|failure| unnamed(caller, name, failure))?;
    let (run, trigger) = drop_new(client, job.as_str(), &bytes)?;
    Ok(Started::new(run, job, trigger, note))
}

/// An idempotency key of somebody with scopes counts among his own runs: nobody takes a key of others, or meets their runs by one.
fn own_id(caller: &Caller, id: String) -> String {
    if caller.sees_all() { id } else { format!("{}:{id}", caller.id) }
}

/// Stop and start the active runs of a job, wherever they are.
#[utoipa::path(post, path = "/restart/{job}", tag = "jobs", params(("job" = String, Path, description = "The job")), responses(
    (status = 200, description = "What was asked to start anew", body = Vec<Object>),
    (status = 404, description = "Nobody knows the job, or it is not yours", body = Document),
))]
pub(super) async fn restart_one(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Named(name): Named<String>,
) -> Result<Json<Vec<Restarted>>, Problem> {
    let asked = app.change(move |client| {
        let job = seen(client, &caller, &name)?;
        restart::known(client, job.as_str()).map_err(|failure| unnamed(&caller, &name, failure))?;
        restart::restart(client, &|name, command| *name == job && (!command || caller.sees_all()))
    });
    Ok(Json(asked.await?))
}

/// Stop and start the active runs of every job that you see, wherever they are.
#[utoipa::path(post, path = "/restart/all", tag = "jobs", responses(
    (status = 200, description = "What was asked to start anew", body = Vec<Object>),
))]
pub(super) async fn restart_all(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Vec<Restarted>>, Problem> {
    let asked = app.change(move |client| {
        let sees = caller.view(client)?;
        restart::restart(client, &|job, command| sees(job) && (!command || caller.sees_all()))
    });
    Ok(Json(asked.await?))
}

/// Write a job file. Nothing is written that a device would refuse.
#[utoipa::path(post, path = "/jobs", tag = "jobs", request_body(content = Object, description = "`name`, and the keys of a job file: see `orchestrator schema job`",
    example = json!({"name": "report", "file": "report.py", "type": "daily", "time": "09:00"})), responses(
    (status = 201, description = "The job as it is now", body = Object),
    (status = 400, description = "It cannot be meant", body = Document),
    (status = 409, description = "A job of this name is there already", body = Document),
    (status = 503, description = "Programs cannot be written", body = Document),
))]
pub(super) async fn add(State(app): State<App>, Body(wanted): Body<Object>) -> Result<Response, Problem> {
    let shown = app.change(move |client| {
        let Object(mut members) = wanted;
        let place = members.iter().position(|(key, _)| key == "name");
        let missing = || Failure::new(Code::Usage, "the job has no name", "give \"name\" as a string");
        let (_, name) = members.remove(place.ok_or_else(missing)?);
        let name: String = serde_json::from_str(name.text()).map_err(|_| missing())?;
        let job = edit::add(client, &name, &body::change(&Object(members))?)?;
        Ok((value(&Definition::new(&job, &mark(client, &job.name)?))?, job.name.clone()))
    });
    let (shown, name) = shown.await?;
    Ok((StatusCode::CREATED, what(format!("job {name}")), Json(shown)).into_response())
}

/// Change a job file; its comments, order and formatting stay. `null` takes a key out.
#[utoipa::path(patch, path = "/jobs/{name}", tag = "jobs", params(("name" = String, Path, description = "The job")),
    request_body(content = Object, description = "Keys of a job file and their new values", example = json!({"interval": "30m", "timeout": null})), responses(
    (status = 200, description = "The job as it is now", body = Object),
    (status = 400, description = "It cannot be meant", body = Document),
    (status = 404, description = "Nobody knows the job", body = Document),
))]
pub(super) async fn update(
    State(app): State<App>,
    Named(name): Named<String>,
    Body(wanted): Body<Object>,
) -> Result<(Extension<What>, Json<Value>), Problem> {
    let keys: Vec<&str> = wanted.0.iter().map(|(key, _)| key.as_str()).collect();
    let changed = what(format!("job {name}: {}", keys.join(", ")));
    let shown = app.change(move |client| {
        named(&name)?;
        let change = body::change(&wanted)?;
        if change.is_empty() {
            // Nothing is to be another: the job stays as it is.
            let job = file(client, &name)?.read;
            let job = job.map_err(|errors| {
                Failure::new(Code::Failed, format!("the job {name} has {} errors", errors.len()), "see `GET /jobs`")
            })?;
            return value(&Definition::new(&job, &mark(client, &job.name)?));
        }
        let (job, _) = edit::update(client, &name, &change)?;
        value(&Definition::new(&job, &mark(client, &job.name)?))
    });
    Ok((changed, Json(shown.await?)))
}

/// The name of a job, as an admin gives it: one that breaks the rule names nothing.
fn named(name: &str) -> Result<(), Failure> {
    JobName::new(name).map(|_| ()).map_err(|_| nobody_knows(name))
}

/// What somebody with scopes is told of a job that is not there: nothing of others.
pub(super) fn unnamed(caller: &Caller, name: &str, failure: Failure) -> Failure {
    if failure.code == Code::NotFound && !caller.sees_all() { nobody_knows(name) } else { failure }
}

/// What became of a job that was deleted.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DeletedJob)]
pub(super) struct Removed {
    /// The job.
    #[schema(value_type = String)]
    job: JobName,
    /// Its runs that are active.
    #[schema(value_type = Vec<String>)]
    active: Vec<RunId>,
    /// Its runs that wait.
    #[schema(value_type = Vec<String>)]
    waiting: Vec<RunId>,
}

/// Remove a job file.
#[utoipa::path(delete, path = "/jobs/{name}", tag = "jobs", params(("name" = String, Path, description = "The job")), responses(
    (status = 200, description = "What of it is not over", body = Removed),
    (status = 404, description = "Nobody knows the job", body = Document),
))]
pub(super) async fn delete(State(app): State<App>, Named(name): Named<String>) -> Result<Json<Removed>, Problem> {
    let Deleted { job, open, .. } = app
        .change(move |client| {
            named(&name)?;
            edit::delete(client, &name)
        })
        .await?;
    let waiting = open.again.into_iter().chain(open.triggers).collect();
    Ok(Json(Removed { job, active: open.active, waiting }))
}

/// Let a job run again.
#[utoipa::path(post, path = "/jobs/{name}/enable", tag = "jobs", params(("name" = String, Path, description = "The job")), responses(
    (status = 200, description = "The job as it is now", body = Object),
    (status = 404, description = "Nobody knows the job", body = Document),
))]
pub(super) async fn enable(State(app): State<App>, Named(name): Named<String>) -> Result<Json<Value>, Problem> {
    set_enabled(app, name, true).await
}

/// Let a job run no more until it is enabled; its triggers wait.
#[utoipa::path(post, path = "/jobs/{name}/disable", tag = "jobs", params(("name" = String, Path, description = "The job")), responses(
    (status = 200, description = "The job as it is now", body = Object),
    (status = 404, description = "Nobody knows the job", body = Document),
))]
pub(super) async fn disable(State(app): State<App>, Named(name): Named<String>) -> Result<Json<Value>, Problem> {
    set_enabled(app, name, false).await
}

async fn set_enabled(app: App, name: String, enabled: bool) -> Result<Json<Value>, Problem> {
    let shown = app.change(move |client| {
        named(&name)?;
        let (job, _) = edit::enable(client, &name, enabled)?;
        value(&Definition::new(&job, &mark(client, &job.name)?))
    });
    Ok(Json(shown.await?))
}
