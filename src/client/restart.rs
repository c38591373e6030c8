//! Restart: another attempt of what runs, wherever it runs.

use serde::Serialize;

use super::change::{request, wait_no_longer};
use super::view::Lies;
use super::{Client, Failure, view};
use crate::decide::queue::job_name;
use crate::model::entry::Source;
use crate::model::ids::{DeviceId, JobName, RunId};
use crate::model::lease::Lease;
use crate::model::state::{Ask, Request, State};

/// A run that was asked to start anew.
#[derive(Debug, Serialize)]
pub struct Asked {
    /// The run.
    pub run_id: RunId,
    /// Its job.
    pub job: JobName,
    /// Which attempt.
    pub attempt: u32,
    /// Who was asked; `None`: it rested between two attempts, and is due now.
    pub device: Option<DeviceId>,
}

/// Asks for another attempt of every active run that `wanted` takes, by its job and whether it is a command without a job file, and lets daemons that rest start at once.
///
/// # Errors
/// Exit code 4.
pub fn restart(client: &Client, wanted: &dyn Fn(&JobName, bool) -> bool) -> Result<Vec<Asked>, Failure> {
    let mut store = view::store(client);
    let mut asked = Vec::new();
    view::commit(client, |now| {
        store.change(now, &mut |state| {
            asked.clear();
            let new = requests(client, state, wanted, &mut asked);
            state.requests.extend(new);
            let resting = state.jobs.iter().filter(|(name, mark)| mark.rests && wanted(name, false));
            let resting: Vec<JobName> = resting.map(|(name, _)| name.clone()).collect();
            for name in &resting {
                state.jobs.update(name, |mark| mark.rests = false);
            }
            !asked.is_empty() || !resting.is_empty()
        })
    })?;
    due_now(client, wanted, &mut asked)?;
    Ok(asked)
}

/// A job that has a file, or a run.
///
/// # Errors
/// Exit code 2 or 3: it breaks the rule, or nobody knows it.
pub fn known(client: &Client, name: &str) -> Result<JobName, Failure> {
    let job = view::job_name(name)?;
    let programs = view::programs(client)?;
    let catalog = programs.catalog();
    let has_file = catalog.jobs.contains_key(&job) || catalog.broken.contains(&job);
    let has_run = view::state(client)?.is_some_and(|state| state.runs.of_job(&job).next().is_some());
    if has_file || has_run { Ok(job) } else { Err(view::no_such_job(name, catalog)) }
}

/// One request for each attempt that is held; those that were asked for already stay as they are.
fn requests(
    client: &Client,
    state: &State,
    wanted: &dyn Fn(&JobName, bool) -> bool,
    asked: &mut Vec<Asked>,
) -> Vec<Request> {
    let mut new = Vec::new();
    for (run, held) in state.runs.iter() {
        let Some(device) = held.device.as_ref().filter(|_| wanted(&held.job, held.command)) else { continue };
        let lease = Lease { run: run.clone(), attempt: held.attempt };
        if !state.restart_asked(&lease) && !state.cancel_asked(run) {
            new.push(Request { attempt: Some(held.attempt), ..request(client, Ask::Restart, Some(run), device) });
        }
        let (run_id, job, device) = (run.clone(), held.job.clone(), Some(device.clone()));
        asked.push(Asked { run_id, job, attempt: held.attempt, device });
    }
    new
}

/// A daemon that rests between two attempts starts at once too.
fn due_now(client: &Client, wanted: &dyn Fn(&JobName, bool) -> bool, asked: &mut Vec<Asked>) -> Result<(), Failure> {
    let now = client.now().wall;
    for (key, lies) in view::waiting(client)? {
        let Lies::Waits(entry) = lies else { continue };
        let name = job_name(&entry);
        let rests = key.source == Source::Waiting && entry.not_before().is_some_and(|at| at > now);
        if !rests || !entry.cause().is_lasting() || !wanted(&name, false) {
            continue;
        }
        // Otherwise a device has just taken it.
        if wait_no_longer(client, &entry)? {
            asked.push(Asked { run_id: entry.run.clone(), job: name, attempt: entry.attempt, device: None });
        }
    }
    Ok(())
}
