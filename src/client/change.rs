//! Cancel and retry: what people change about a run, wherever it is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::drop::drop_new;
use super::find::{Place, Run, find, read};
use super::{Client, Code, Failure, view};
use crate::decide::claim::cancel_waiting;
use crate::decide::plan::{Observation, Plan};
use crate::model::config::TRIGGER_LIMIT;
use crate::model::entry::{Entry, Source, Waiting};
use crate::model::ids::{DeviceId, JobName, RunId};
use crate::model::message::quoted;
use crate::model::result::{Outcome, Status, pairs};
use crate::model::state::{Ask, Request};
use crate::model::time::rfc3339;
use crate::model::trigger::{Json, parse};
use crate::store;
use crate::volume::atomic::in_folder;
use crate::volume::{Context as _, is_absent, processed};

/// How often a run is looked for again that moved while it was to be changed.
const TRIES: u32 = 5;

/// What became of a cancel.
#[derive(Debug)]
pub struct Cancelled {
    /// The run.
    pub run: RunId,
    /// Who was asked to end it; `None`: it waited, and has ended.
    pub device: Option<DeviceId>,
}

/// What became of a retry: the run, and the name of its trigger.
#[derive(Debug)]
pub enum Retried {
    /// It was due already, and waits for something else.
    DueAlready(RunId, String),
    /// It waited for its time, and is due now.
    DueNow(RunId, String),
    /// It was over: its trigger was dropped again.
    Anew {
        /// The run that was over.
        before: RunId,
        /// How it had ended, as far as its result is still there.
        status: Option<Status>,
        /// The new run.
        run: RunId,
        /// The new trigger.
        trigger: String,
    },
}

/// Ends a run: at once if it waits, else by asking the device that holds it.
///
/// # Errors
/// Exit code 3 if there is no such run, 1 if it is over.
pub fn cancel(client: &Client, name: &str) -> Result<Cancelled, Failure> {
    for _ in 0..TRIES {
        let run = find(client, name)?;
        match run.place(client)? {
            Place::Past(outcome) => {
                let error = format!("the run {} is over: it {}", run.id, ended(outcome.status.as_str()));
                return Err(Failure::new(Code::Failed, error, "there is nothing left to cancel"));
            }
            Place::Active(held) => {
                if let Some(device) = &held.device
                    && ask_to_cancel(client, &run.id, device)?
                {
                    return Ok(Cancelled { run: run.id, device: Some(device.clone()) });
                }
            }
            Place::Waiting => {
                if let Some(entry) = &run.entry
                    && end_waiting(client, entry)?
                {
                    return Ok(Cancelled { run: run.id, device: None });
                }
            }
            Place::Nowhere => {}
        }
        client.pause(Duration::from_millis(50));
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

/// Asks the device that holds the run to end it; `false`: the run has moved meanwhile.
fn ask_to_cancel(client: &Client, id: &RunId, device: &DeviceId) -> Result<bool, Failure> {
    let mut store = view::store(client);
    let mut is_held = false;
    view::commit(client, |now| {
        store.change(now, &mut |state| {
            is_held = state.runs.get(id).is_some_and(|held| held.device.as_ref() == Some(device));
            let is_new = is_held && !state.cancel_asked(id);
            if is_new {
                state.requests.push(request(client, Ask::Cancel, Some(id), device));
            }
            is_new
        })
    })?;
    Ok(is_held)
}

/// What people ask of a device.
#[must_use]
pub fn request(client: &Client, ask: Ask, run: Option<&RunId>, device: &DeviceId) -> Request {
    Request {
        id: client.new_run_id().to_string(),
        ask,
        run: run.cloned(),
        attempt: None,
        device: device.clone(),
        at: client.now().wall,
        extra: BTreeMap::new(),
    }
}

/// Ends what waits, at once: nobody holds it. `false`: the run has moved meanwhile.
pub(super) fn end_waiting(client: &Client, entry: &Arc<Entry>) -> Result<bool, Failure> {
    let programs = view::programs(client)?;
    let mut store = view::store(client);
    let committed = view::commit(client, |now| {
        let catalog = Arc::clone(programs.catalog());
        let seen = Observation { catalog, ..Observation::new(view::me(client), String::new(), Duration::ZERO, now) };
        store.transact(now, &mut |state| {
            let is_held = state.runs.get(&entry.run).is_some_and(|held| held.device.is_some());
            let changes = if is_held { Vec::new() } else { vec![cancel_waiting(&seen, entry)] };
            Plan { changes: changes.into(), ..Plan::default() }
        })
    })?;
    match committed.failed.into_iter().next() {
        // Nothing was planned: a device was faster.
        None => Ok(false),
        Some(None) => Ok(true),
        Some(Some(store::Failure::Volume(error))) => Err(error.into()),
        Some(Some(
            store::Failure::Gone
            | store::Failure::Changed
            | store::Failure::Taken
            | store::Failure::KeyTaken
            | store::Failure::Deferred,
        )) => Ok(false),
    }
}

/// Makes a waiting run due now; drops the trigger of one that is over again, as a new run.
///
/// # Errors
/// Exit code 3 if there is no such run, 1 if it is active or its trigger cannot be dropped again.
pub fn retry(client: &mut Client, name: &str) -> Result<Retried, Failure> {
    for _ in 0..TRIES {
        let run = find(client, name)?;
        match run.place(client)? {
            Place::Past(_) => return drop_again(client, &run),
            Place::Active(held) => {
                let device = held.device.as_ref().map_or("nobody", DeviceId::as_str);
                let error = format!("the run {} is active: attempt {} runs on {device}", run.id, held.attempt);
                let hint = format!("`orchestrator runs cancel {}` ends it; then retry", run.id);
                return Err(Failure::new(Code::Failed, error, hint));
            }
            Place::Waiting => {
                if let Some(entry) = &run.entry
                    && let Some(done) = make_due(client, entry)?
                {
                    return Ok(done);
                }
            }
            Place::Nowhere => {}
        }
        client.pause(Duration::from_millis(50));
    }
    Err(keeps_moving(name))
}

/// Lets what waits for its time or a backoff wait no longer; `None`: the run has moved meanwhile.
fn make_due(client: &Client, entry: &Entry) -> Result<Option<Retried>, Failure> {
    let now = client.now().wall;
    let due = match entry.key.source {
        Source::Inbox => entry.trigger.not_before,
        Source::Waiting | Source::Due => entry.not_before(),
    };
    let (run, trigger) = (entry.run.clone(), entry.dropped().into_owned());
    if due.is_none_or(|due| due <= now) {
        return Ok(Some(Retried::DueAlready(run, trigger)));
    }
    Ok(wait_no_longer(client, entry)?.then_some(Retried::DueNow(run, trigger)))
}

/// Makes what waits due now: in `.waiting` the time in the name is the one that counts. `false`: it has moved meanwhile.
pub(super) fn wait_no_longer(client: &Client, entry: &Entry) -> Result<bool, Failure> {
    let now = client.now().wall;
    let name = Waiting { not_before: now, run: entry.run.clone(), attempt: entry.attempt, stem: entry.stem() };
    let (from, to) = (client.layout.entry(&entry.key), client.layout.waiting_file(&name));
    match in_folder(&*client.disk, &to, || client.disk.rename_new(&from, &to)) {
        Err(error) if is_absent(&error) => Ok(false),
        other => Ok(other.map(|()| true).on("move", &from)?),
    }
}

/// Triggers what ran by itself once more, with what it was given.
fn trigger_again(client: &mut Client, run: &Run, before: &Outcome) -> Result<Retried, Failure> {
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
    let (fresh, trigger) = drop_new(client, job.as_str(), &bytes)?;
    Ok(Retried::Anew { before: run.id.clone(), status: Some(before.status), run: fresh, trigger })
}

/// Drops the trigger of a run that is over once more.
fn drop_again(client: &mut Client, run: &Run) -> Result<Retried, Failure> {
    let last = run.results.last().map(|named| read(client, named)).transpose()?.flatten();
    if let Some(before) = last.filter(|outcome| !outcome.cause.is_dropped()) {
        return trigger_again(client, run, &before);
    }
    let of_day = processed::of_day(&*client.disk, &client.layout, &run.id.date())?;
    let Some(kept) = of_day.into_iter().find(|it| it.run == run.id && it.first.is_none()) else {
        let folder = client.layout.processed().join(run.id.date());
        let error = format!("the trigger of the run {} is not in {}", run.id, client.shown(&folder));
        let hint = "if it has just ended, try again; else it was removed (--keep): trigger the job anew";
        return Err(Failure::new(Code::Failed, error, hint));
    };
    let path = client.layout.processed().join(run.id.date()).join(&kept.name);
    let (bytes, _) = client.disk.read(&path, TRIGGER_LIMIT).on("read", &path)?;
    let shown = client.shown(&path);
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
    if let Some(at) = trigger.expires.filter(|at| *at <= client.now().wall) {
        let error =
            format!("the trigger of the run {} expired at {}: dropped again it would end at once", run.id, rfc3339(at));
        let hint = format!("copy {shown}, give it another \"expires\", and drop it in Triggers/");
        return Err(Failure::new(Code::Failed, error, hint));
    }
    let before = run.results.last().map(|named| read(client, named)).transpose()?.flatten();
    let (fresh, trigger) = drop_new(client, &kept.stem, &bytes)?;
    Ok(Retried::Anew { before: run.id.clone(), status: before.map(|before| before.status), run: fresh, trigger })
}
