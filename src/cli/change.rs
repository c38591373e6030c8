//! `orchestrator runs cancel` and `retry`: what people change about a run, wherever it is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use super::find::{Place, Run, find, read};
use super::trigger::{drop_new, tell_run};
use super::{Code, Context, Failure, view};
use crate::decide::bystander::Bystander;
use crate::decide::claim::cancel_waiting;
use crate::decide::plan::Plan;
use crate::model::config::TRIGGER_LIMIT;
use crate::model::entry::{Entry, Source, Waiting};
use crate::model::ids::{DeviceId, JobName, RunId};
use crate::model::message::quoted;
use crate::model::result::{Outcome, pairs};
use crate::model::state::{Ask, Request};
use crate::model::time::rfc3339;
use crate::model::trigger::{Json, parse};
use crate::store;
use crate::volume::atomic::in_folder;
use crate::volume::{Context as _, is_absent, processed};

/// How often a run is looked for again that moved while it was to be changed.
const TRIES: u32 = 5;

/// What became of a change.
enum Done {
    /// It is done.
    Yes,
    /// The run has moved meanwhile.
    Moved,
}

pub(super) fn cancel(name: &str, context: &Context) -> Result<Code, Failure> {
    for _ in 0..TRIES {
        let run = find(context, name)?;
        let done = match run.place(context)? {
            Place::Past(outcome) => {
                let error = format!("the run {} is over: it {}", run.id, ended(outcome.status.as_str()));
                return Err(Failure::new(Code::Failed, error, "there is nothing left to cancel"));
            }
            Place::Active(held) => ask_to_cancel(context, &run.id, held.device.as_ref())?,
            Place::Waiting => match &run.entry {
                Some(entry) => end_waiting(context, entry)?,
                None => Done::Moved,
            },
            Place::Nowhere => Done::Moved,
        };
        match done {
            Done::Yes => return Ok(Code::Done),
            Done::Moved => context.pause(Duration::from_millis(50)),
        }
    }
    Err(keeps_moving(name))
}

fn keeps_moving(name: &str) -> Failure {
    let error = format!("the run {} is between two places each time it is looked at", quoted(name));
    Failure::new(Code::Failed, error, "try again; `orchestrator status` shows whether the volume works")
}

/// A status as the end of a sentence about a run.
fn ended(status: &str) -> String {
    match status {
        "succeeded" | "failed" | "expired" => status.to_owned(),
        other => format!("was {}", other.replace('_', " ")),
    }
}

/// Asks the device that holds the run to end it.
fn ask_to_cancel(context: &Context, id: &RunId, device: Option<&DeviceId>) -> Result<Done, Failure> {
    let Some(device) = device else { return Ok(Done::Moved) };
    let mut store = view::store(context);
    let mut is_held = false;
    view::patiently(context, |now| {
        store.change(now, &mut |state| {
            is_held = state.runs.get(id).is_some_and(|held| held.device.as_ref() == Some(device));
            let is_new = is_held && !state.cancel_asked(id);
            if is_new {
                state.requests.push(request(context, Ask::Cancel, Some(id), device));
            }
            is_new
        })
    })?;
    if !is_held {
        return Ok(Done::Moved);
    }
    let said = format!("{device} is asked to end {id}; `orchestrator runs wait {id}` shows when it has");
    tell(context, id, "asked", Some(device), &said)?;
    Ok(Done::Yes)
}

/// What people ask of a device.
pub(super) fn request(context: &Context, ask: Ask, run: Option<&RunId>, device: &DeviceId) -> Request {
    Request {
        id: context.new_run_id().to_string(),
        ask,
        run: run.cloned(),
        attempt: None,
        device: device.clone(),
        at: context.now().wall,
        extra: BTreeMap::new(),
    }
}

/// Ends what waits, at once: nobody holds it.
fn end_waiting(context: &Context, entry: &Arc<Entry>) -> Result<Done, Failure> {
    let programs = view::programs(context)?;
    let me = view::me(context);
    let mut store = view::store(context);
    let bystander = Bystander::default();
    let committed = view::patiently(context, |now| {
        let seen = bystander.observation(now, &me, programs.catalog());
        store.transact(now, &mut |state| {
            let is_held = state.runs.get(&entry.run).is_some_and(|held| held.device.is_some());
            let changes = if is_held { Vec::new() } else { vec![cancel_waiting(&seen, entry)] };
            Plan { changes, ..Plan::default() }
        })
    })?;
    match committed.failed.into_iter().next() {
        // Nothing was planned: a device was faster.
        None => Ok(Done::Moved),
        Some(None) => {
            tell(context, &entry.run, "cancelled", None, &format!("cancelled {}, which waited", entry.run))?;
            Ok(Done::Yes)
        }
        Some(Some(store::Failure::Volume(error))) => Err(error.into()),
        Some(Some(
            store::Failure::Gone
            | store::Failure::Changed
            | store::Failure::Taken
            | store::Failure::KeyTaken
            | store::Failure::Deferred,
        )) => Ok(Done::Moved),
    }
}

fn tell(context: &Context, id: &RunId, what: &str, device: Option<&DeviceId>, said: &str) -> Result<(), Failure> {
    if context.out.json {
        return context.out.document(&json!({"run_id": id, "cancel": what, "device": device}));
    }
    if context.out.quiet { Ok(()) } else { context.out.line(said) }
}

pub(super) fn retry(name: &str, context: &mut Context) -> Result<Code, Failure> {
    for _ in 0..TRIES {
        let run = find(context, name)?;
        match run.place(context)? {
            Place::Past(_) => return drop_again(context, &run),
            Place::Active(held) => {
                let device = held.device.as_ref().map_or("nobody", DeviceId::as_str);
                let error = format!("the run {} is active: attempt {} runs on {device}", run.id, held.attempt);
                let hint = format!("`orchestrator runs cancel {}` ends it; then retry", run.id);
                return Err(Failure::new(Code::Failed, error, hint));
            }
            Place::Waiting => {
                if let Some(entry) = &run.entry
                    && let Done::Yes = make_due(context, entry)?
                {
                    return Ok(Code::Done);
                }
            }
            Place::Nowhere => {}
        }
        context.pause(Duration::from_millis(50));
    }
    Err(keeps_moving(name))
}

/// Lets what waits for its time or a backoff wait no longer.
fn make_due(context: &Context, entry: &Entry) -> Result<Done, Failure> {
    let now = context.now().wall;
    let due = match entry.key.source {
        Source::Inbox => entry.trigger.not_before,
        Source::Waiting | Source::Due => entry.not_before,
    };
    if due.is_none_or(|due| due <= now) {
        context.out.note(&format!("it is due already; `orchestrator runs show {}` says what it waits for", entry.run));
    } else {
        // In `.waiting` the time in the name is the one that counts.
        let name = Waiting { not_before: now, run: entry.run.clone(), attempt: entry.attempt, stem: entry.stem() };
        let (from, to) = (context.layout.entry(&entry.key), context.layout.waiting_file(&name));
        match in_folder(&*context.disk, &to, || context.disk.rename_new(&from, &to)) {
            Err(error) if is_absent(&error) => return Ok(Done::Moved),
            other => other.on("move", &from)?,
        }
        context.out.note("due now");
    }
    tell_run(context, &entry.run, &entry.dropped)?;
    Ok(Done::Yes)
}

/// Triggers what ran by itself once more, with what it was given.
fn trigger_again(context: &mut Context, run: &Run, before: &Outcome) -> Result<Code, Failure> {
    #[derive(Serialize)]
    struct Again<'a> {
        job: &'a JobName,
        args: &'a [Json],
        #[serde(with = "pairs")]
        kwargs: &'a [(String, Json)],
    }
    let Outcome { job, args, kwargs, .. } = before;
    let bytes = serde_json::to_vec(&Again { job, args, kwargs })
        .map_err(|error| Failure::new(Code::Failed, format!("cannot write JSON: {error}"), ""))?;
    let (fresh, name) = drop_new(context, job.as_str(), &bytes)?;
    context.out.note(&format!("{} ({}) is tried again as a new run", run.id, before.status.as_str()));
    tell_run(context, &fresh, &name)?;
    Ok(Code::Done)
}

/// Drops the trigger of a run that is over once more.
fn drop_again(context: &mut Context, run: &Run) -> Result<Code, Failure> {
    let last = run.results.last().map(|named| read(context, named)).transpose()?.flatten();
    if let Some(before) = last.filter(|outcome| !outcome.cause.is_dropped()) {
        return trigger_again(context, run, &before);
    }
    let of_day = processed::of_day(&*context.disk, &context.layout, &run.id.date())?;
    let Some(kept) = of_day.into_iter().find(|it| it.run == run.id && it.first.is_none()) else {
        let folder = context.layout.processed().join(run.id.date());
        let error = format!("the trigger of the run {} is not in {}", run.id, context.shown(&folder));
        let hint = "if it has just ended, try again; else it was removed (--keep): trigger the job anew";
        return Err(Failure::new(Code::Failed, error, hint));
    };
    let path = context.layout.processed().join(run.id.date()).join(&kept.name);
    let (bytes, _) = context.disk.read(&path, TRIGGER_LIMIT).on("read", &path)?;
    let shown = context.shown(&path);
    let trigger = parse(&bytes).map_err(|refusal| {
        Failure::new(Code::Failed, format!("{shown} cannot be taken any more: {}", refusal.error), refusal.hint)
    })?;
    if let Some(id) = &trigger.id {
        let error = format!(
            "the trigger of the run {} has the id {}: dropped again it would be a duplicate of that run",
            run.id,
            quoted(id)
        );
        let hint = format!("copy {shown}, take the \"id\" out or give it another, and drop it in Triggers/");
        return Err(Failure::new(Code::Failed, error, hint));
    }
    if let Some(at) = trigger.expires.filter(|at| *at <= context.now().wall) {
        let error =
            format!("the trigger of the run {} expired at {}: dropped again it would end at once", run.id, rfc3339(at));
        let hint = format!("copy {shown}, give it another \"expires\", and drop it in Triggers/");
        return Err(Failure::new(Code::Failed, error, hint));
    }
    let (fresh, name) = drop_new(context, &kept.stem, &bytes)?;
    if let Some(named) = run.results.last()
        && let Some(before) = read(context, named)?
    {
        context.out.note(&format!("{} ({}) is tried again as a new run", run.id, before.status.as_str()));
    }
    tell_run(context, &fresh, &name)?;
    Ok(Code::Done)
}
