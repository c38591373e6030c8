//! What a run's end causes: runs of the jobs that `on_success` and `on_failure` name.
//!
//! Each such run is a file of its own, made before the one that caused it is taken out of `.running`: whoever heals what a
//! crash left behind makes it again, under the same id, and finds that it is there.

use chrono::{DateTime, Utc};

use super::catalog::Catalog;
use super::due::hash;
use super::plan::Move;
use crate::model::ids::{JobName, RunId};
use crate::model::lease::Lease;
use crate::model::result::{Cause, Status, result_name};
use crate::model::trigger::{CausedBy, Origin, Trigger};

/// The moves that make what follows from the end of a run of `job`: none if the job is unknown by now.
#[must_use]
pub fn follow(catalog: &Catalog, job: &JobName, lease: &Lease, status: Status, at: DateTime<Utc>) -> Vec<Move> {
    let Some(definition) = catalog.jobs.get(job) else { return Vec::new() };
    let next = match status {
        Status::Succeeded => &definition.on_success,
        Status::Failed | Status::TimedOut | Status::Lost => &definition.on_failure,
        Status::Cancelled | Status::Expired | Status::Skipped | Status::Superseded => return Vec::new(),
    };
    next.iter().map(|next| one(next, job, lease, at)).collect()
}

fn one(next: &JobName, job: &JobName, lease: &Lease, at: DateTime<Utc>) -> Move {
    let by = CausedBy { run: lease.run.clone(), result: result_name(job, lease) };
    let trigger = Trigger::own(next, Origin { cause: Cause::Job, by: Some(by) }, None);
    // The run that caused it tells this volume's from another's.
    let run = RunId::new(at, hash("", next, lease.run.as_str()));
    Move::Chain { run, job: next.clone(), text: trigger.own_text() }
}
