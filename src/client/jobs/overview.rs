//! Jobs as somebody watches them: what each is, what of it runs and waits, when it runs next, and why it does not.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{File, row};
use crate::client::view::{self, Lies};
use crate::client::{Client, Failure};
use crate::decide::explain::{Reserved, Scene, why_job};
use crate::decide::queue::job_name;
use crate::model::ids::{DeviceId, JobName, RunId, Tag};
use crate::model::time::utc;
use crate::model::trigger::Target;

/// So many waiting runs of a job are named.
const NAMED: usize = 100;

/// A job and what becomes of it.
#[derive(Debug, Serialize)]
pub struct Overview {
    /// The job as lists show it.
    #[serde(flatten)]
    pub row: super::Row,
    /// The newest run that is over or was due.
    pub last_run_id: Option<RunId>,
    /// How many of its runs failed, one after the other.
    pub failures: u32,
    /// How many due times and triggers its `overlap` left out.
    pub skipped: u64,
    /// What of it runs.
    pub active: Vec<Active>,
    /// How much of it waits.
    pub waiting: usize,
    /// The first of what waits.
    pub waiting_runs: Vec<RunId>,
    /// Why it does not run, or not when one would expect it.
    pub reasons: Vec<String>,
}

/// An attempt that runs.
#[derive(Debug, Serialize)]
pub struct Active {
    /// Its run.
    pub run_id: RunId,
    /// Which attempt.
    pub attempt: u32,
    /// Where.
    pub device: Option<DeviceId>,
    /// When it was taken.
    #[serde(with = "utc")]
    pub claimed_at: DateTime<Utc>,
    /// Its process, as its device said last; none for a container, and for the first seconds.
    pub pid: Option<u32>,
    /// Its container, if the job runs in one of its own.
    pub container: Option<String>,
}

/// Every job with what becomes of it; in reasons runs are named of jobs that `sees` lets be seen.
///
/// # Errors
/// Exit code 4.
pub fn overview(client: &Client, sees: &dyn Fn(&JobName) -> bool) -> Result<Vec<Overview>, Failure> {
    let programs = view::programs(client)?;
    // Before the state: what is claimed in between is then active rather than nowhere.
    let mut waiting: BTreeMap<JobName, Vec<RunId>> = BTreeMap::new();
    for (_, lies) in view::waiting(client)? {
        match lies {
            // A command is no job's, whatever its name.
            Lies::Waits(entry) if matches!(entry.trigger.target, Target::Job(_)) => {
                waiting.entry(job_name(&entry)).or_default().push(entry.run.clone());
            }
            Lies::Waits(_) | Lies::Refused(..) | Lies::Unfinished => {}
        }
    }
    let state = view::state(client)?.unwrap_or_default();
    let devices = view::devices(client)?;
    let seen = view::seen(&devices, &state);
    let pids: BTreeMap<(&RunId, u32), u32> = devices
        .iter()
        .flat_map(|device| device.beat.pids.iter().map(|(run, attempt, pid)| ((run, *attempt), *pid)))
        .collect();
    let mut all = Vec::new();
    for (job, read) in programs.newest() {
        let file = File { job, read };
        let active = state.runs.of_job(&file.job).filter(|(_, held)| held.device.is_some() && !held.command);
        let good = file.read.as_ref().ok();
        let in_container = good.is_some_and(|job| job.container.is_some());
        let active: Vec<Active> = active
            .map(|(run, held)| Active {
                run_id: run.clone(),
                attempt: held.attempt,
                device: held.device.clone(),
                claimed_at: held.claimed_at,
                pid: pids.get(&(run, held.attempt)).copied(),
                container: in_container.then(|| format!("aios-{run}-{}", held.attempt)),
            })
            .collect();
        let mut runs = waiting.remove(&file.job).unwrap_or_default();
        runs.retain(|run| state.runs.get(run).is_none_or(|held| held.device.is_none()));
        runs.sort();
        let count = runs.len();
        runs.truncate(NAMED);
        let reasons = match &file.read {
            Ok(job) => {
                let (catalog, now) = (programs.catalog(), client.now());
                let reserved = Reserved::new();
                why_job(job, Scene { catalog, state: &state, devices: &seen, now, reserved: &reserved, sees })
            }
            Err(errors) => errors.iter().map(|error| format!("Programs/{error} (hint: {})", error.hint)).collect(),
        };
        let mark = state.jobs.get(&file.job);
        all.push(Overview {
            row: row(client, &file, &state)?,
            last_run_id: mark.and_then(|mark| mark.last_run_id.clone()),
            failures: mark.map_or(0, |mark| mark.failures),
            skipped: mark.map_or(0, |mark| mark.skipped),
            active,
            waiting: count,
            waiting_runs: runs,
            reasons,
        });
    }
    Ok(all)
}

impl Overview {
    /// What a job needs, as scopes are judged by it.
    pub fn tags(&self) -> impl Iterator<Item = &Tag> {
        self.row.tags.iter()
    }
}

/// The tags that each job needs: what scopes are judged by. Of a job that has no file (any more) nothing is known.
///
/// # Errors
/// Exit code 4.
pub fn tags_of_jobs(client: &Client) -> Result<BTreeMap<JobName, Vec<Tag>>, Failure> {
    let programs = view::programs(client)?;
    let of = |(name, read): (JobName, Result<std::sync::Arc<crate::model::job::Job>, _>)| {
        (name, read.map(|job| job.tags.iter().cloned().collect()).unwrap_or_default())
    };
    Ok(programs.newest().map(of).collect())
}
