//! `orchestrator restart`: another attempt of what runs, wherever it runs.

use clap::Args;
use serde::Serialize;

use super::change::request;
use super::{Code, Context, Failure, view};
use crate::model::entry::{Source, Waiting};
use crate::model::ids::{DeviceId, JobName, RunId};
use crate::model::lease::Lease;
use crate::model::state::{Ask, Request, State};
use crate::volume::atomic::in_folder;
use crate::volume::{Context as _, is_absent};

/// Options of `restart`.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub(super) struct RestartArgs {
    /// The active runs of this job.
    job: Option<String>,
    /// The active runs of every job.
    #[arg(long)]
    all: bool,
}

/// A run that was asked to start anew.
#[derive(Serialize)]
struct Asked {
    run_id: RunId,
    job: JobName,
    attempt: u32,
    device: Option<DeviceId>,
}

pub(super) fn restart(args: &RestartArgs, context: &Context) -> Result<Code, Failure> {
    context.need_volume()?;
    let job = args.job.as_deref().map(|name| known(context, name)).transpose()?;
    let mut store = view::store(context);
    let mut asked = Vec::new();
    view::patiently(context, |now| {
        store.change(now, &mut |state| {
            asked.clear();
            let new = requests(context, state, job.as_ref(), &mut asked);
            state.requests.extend(new);
            !asked.is_empty()
        })
    })?;
    due_now(context, job.as_ref(), &mut asked)?;
    if context.out.json {
        context.out.document(&asked)?;
    } else if asked.is_empty() {
        context.out.note("nothing of it is active");
    }
    for Asked { run_id, job, attempt, device } in asked.iter().filter(|_| !context.out.json) {
        let where_to = device.as_ref().map_or_else(|| "due now".to_owned(), |device| format!("on {device}"));
        context.out.line(&format!("{run_id} {job} attempt {attempt} {where_to}"))?;
    }
    Ok(Code::Done)
}

/// A job that has a file, or a run.
fn known(context: &Context, name: &str) -> Result<JobName, Failure> {
    let job = view::job_name(name)?;
    let programs = view::programs(context)?;
    let catalog = programs.catalog();
    let has_file = catalog.jobs.contains_key(&job) || catalog.broken.contains(&job);
    let has_run = view::state(context)?.is_some_and(|state| state.runs.values().any(|held| held.job == job));
    if has_file || has_run { Ok(job) } else { Err(view::no_such_job(name, catalog)) }
}

/// One request for each attempt that is held; those that were asked for already stay as they are.
fn requests(context: &Context, state: &State, job: Option<&JobName>, asked: &mut Vec<Asked>) -> Vec<Request> {
    let mut new = Vec::new();
    for (run, held) in &state.runs {
        let Some(device) = held.device.as_ref().filter(|_| job.is_none_or(|job| *job == held.job)) else { continue };
        let lease = Lease { run: run.clone(), attempt: held.attempt };
        if !state.restart_asked(&lease) && !state.cancel_asked(run) {
            new.push(Request { attempt: Some(held.attempt), ..request(context, Ask::Restart, Some(run), device) });
        }
        let (run_id, job, device) = (run.clone(), held.job.clone(), Some(device.clone()));
        asked.push(Asked { run_id, job, attempt: held.attempt, device });
    }
    new
}

/// A daemon that rests between two attempts starts at once too.
fn due_now(context: &Context, job: Option<&JobName>, asked: &mut Vec<Asked>) -> Result<(), Failure> {
    let now = context.now().wall;
    for (key, lies) in view::waiting(context)? {
        let view::Lies::Waits(entry) = lies else { continue };
        let name = crate::decide::queue::job_name(&entry);
        let rests = key.source == Source::Waiting && entry.not_before.is_some_and(|at| at > now);
        if !rests || !entry.cause().is_lasting() || job.is_some_and(|job| *job != name) {
            continue;
        }
        let to = Waiting { not_before: now, run: entry.run.clone(), attempt: entry.attempt, stem: entry.stem() };
        let (from, to) = (context.layout.entry(&key), context.layout.waiting_file(&to));
        match in_folder(&*context.disk, &to, || context.disk.rename_new(&from, &to)) {
            // A device has just taken it.
            Err(error) if is_absent(&error) => continue,
            other => other.on("move", &from)?,
        }
        asked.push(Asked { run_id: entry.run.clone(), job: name, attempt: entry.attempt, device: None });
    }
    Ok(())
}
