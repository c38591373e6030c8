//! What is remembered of a job beside its file: since when it counts, which due time was last, how its runs ended.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::model::ids::{JobName, RunId};
use crate::model::job::{Job, JobType};
use crate::model::marks::Marks;
use crate::model::result::{Cause, Outcome, Status};
use crate::model::state::{Held, JobMark, State, Success};

use super::catalog::Catalog;
use super::notify::{self, Telling};
use super::plan::{Observation, Plan};

#[cfg(test)]
mod tests;

/// One thing to remember.
#[derive(Debug, Clone, PartialEq)]
pub enum Note {
    /// First seen, enabled again or scheduled otherwise: due times count from here on.
    Seen(DateTime<Utc>, String),
    /// Its definition changed: no rest keeps it from its next run.
    Changed,
    /// No living device knows it any more.
    Gone(DateTime<Utc>),
    /// A device knows it again.
    Back,
    /// Disabled or gone: until it is seen again no due time counts.
    Paused,
    /// This due time became a run, or needs none any more.
    Due(DateTime<Utc>),
    /// This due time found another run open.
    Skipped(DateTime<Utc>),
    /// A lost state knew this of it.
    Known(Box<JobMark>),
    /// A run was claimed whose own time this is.
    Claimed(DateTime<Utc>),
    /// A run is over.
    Over(Over),
    /// What its webhook is to be told.
    Tell(Telling),
}

/// The end of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Over {
    /// The run.
    pub run: RunId,
    /// The cause of the run.
    pub cause: Cause,
    /// The attempt that ended it.
    pub attempt: u32,
    /// How it ended.
    pub status: Status,
    /// When.
    pub at: DateTime<Utc>,
}

/// Takes a note into a job's mark.
pub fn take(mark: &mut JobMark, note: &Note) {
    match note {
        Note::Seen(at, schedule) => {
            (mark.since, mark.paused) = (Some(*at), false);
            // A clock that was ahead left it in the future, where it would keep the job silent until then.
            mark.last_due_at = mark.last_due_at.map(|last| last.min(*at));
            mark.schedule.clone_from(schedule);
        }
        Note::Changed => mark.rests = false,
        Note::Gone(at) => mark.gone_at = Some(*at),
        Note::Back => mark.gone_at = None,
        Note::Paused => mark.paused = true,
        Note::Known(known) => restore(mark, known),
        Note::Due(at) => mark.last_due_at = mark.last_due_at.max(Some(*at)),
        Note::Skipped(at) => {
            mark.last_due_at = mark.last_due_at.max(Some(*at));
            mark.skipped += 1;
        }
        Note::Claimed(at) => mark.last_run_at = mark.last_run_at.max(Some(*at)),
        Note::Over(over) => take_end(mark, over),
        Note::Tell(telling) => notify::take(mark, telling),
    }
}

fn take_end(mark: &mut JobMark, over: &Over) {
    // Healed after the death of its device, an end may come behind one that is newer.
    if mark.last_ended_at.is_some_and(|newest| newest > over.at) {
        return;
    }
    match over.status {
        Status::Skipped => mark.skipped += 1,
        Status::Succeeded => {
            mark.failures = 0;
            mark.last_success = Some(Success { run_id: over.run.clone(), attempt: over.attempt, at: over.at });
        }
        Status::Failed | Status::TimedOut | Status::Lost | Status::Expired => mark.failures += 1,
        Status::Cancelled | Status::Superseded => {}
    }
    if over.status != Status::Skipped {
        mark.last_run_id = Some(over.run.clone());
        mark.last_status = Some(over.status);
        mark.last_ended_at = Some(over.at);
        mark.rests = over.cause.is_lasting();
    }
}

/// What a job remembers of this end: nothing, unless the run is over and the job has a file.
#[must_use]
pub fn over(held: &Held, outcome: &Outcome) -> Option<(JobName, Note)> {
    (outcome.is_final && !held.command).then(|| (held.job.clone(), ended(outcome)))
}

/// The note of a run that ended with this result.
#[must_use]
pub fn ended(outcome: &Outcome) -> Note {
    let Outcome { cause, attempt, status, finished_at, .. } = *outcome;
    Note::Over(Over { run: outcome.run_id.clone(), cause, attempt, status, at: whole_ms(finished_at) })
}

/// An instant as files carry it: who reads it from one and who remembers it agree.
fn whole_ms(at: DateTime<Utc>) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(at.timestamp_millis()).unwrap_or(at)
}

/// The jobs that the state remembers, this device does not know, and something is to be done about by now: they are noted as gone, or
/// have been gone for long enough to be forgotten.
pub fn gone_jobs<'a>(
    state: &'a State,
    catalog: &Catalog,
    keep: Duration,
    now: DateTime<Utc>,
) -> impl Iterator<Item = (&'a JobName, &'a JobMark)> {
    let keep = TimeDelta::from_std(keep).unwrap_or(TimeDelta::MAX);
    let is_due = move |mark: &JobMark| mark.gone_at.is_none_or(|at| now - at >= keep);
    state.jobs.iter().filter(move |(name, mark)| catalog.lacks(name) && is_due(mark))
}

/// Forgets jobs that no living device has known for as long as results are kept.
fn forget(state: &State, seen: &Observation, plan: &mut Plan) {
    if seen.catalog.is_empty() {
        return;
    }
    let is_back = |(name, mark): &(&JobName, &JobMark)| mark.gone_at.is_some() && seen.catalog.jobs.contains_key(*name);
    plan.marks.extend(state.jobs.iter().filter(is_back).map(|(name, _)| (name.clone(), Note::Back)));
    for (name, mark) in gone_jobs(state, &seen.catalog, seen.keep, seen.now.wall) {
        let is_open = || state.runs.of_job(name).next().is_some();
        if !seen.devices.none_knows(name, &seen.me.device, Duration::ZERO, seen.now.boot) || is_open() {
            continue;
        }
        match mark.gone_at {
            None => plan.marks.push((name.clone(), Note::Gone(seen.now.wall))),
            Some(_) => plan.forgotten.push(name.clone()),
        }
    }
}

/// Notes which jobs there are: those that run by themselves and were never seen, and of those whose file has come, changed or
/// gone here, which are scheduled otherwise, enabled again, disabled or gone.
///
/// Only a change that this device saw itself counts: devices whose folders differ would contradict each other for ever.
pub fn mind(state: &State, seen: &Observation, plan: &mut Plan) {
    if state.rebuilt.is_some() {
        return remember(state, seen, plan);
    }
    // A folder with nothing in it is one that is not mounted rather than one whose jobs were all taken out.
    if seen.catalog.is_bare {
        return;
    }
    if seen.upkeep && crate::planted!(NoteAgain) {
        let again =
            |(name, mark): (&JobName, &JobMark)| (name.clone(), Note::Seen(seen.now.wall, mark.schedule.clone()));
        plan.marks.extend(state.jobs.iter().map(again));
    }
    if seen.upkeep {
        forget(state, seen, plan);
    }
    if seen.upkeep || !seen.fresh.is_empty() {
        let is_new = |name: &JobName| state.jobs.get(name).is_none_or(|mark| mark.since.is_none());
        for (name, job) in seen.catalog.jobs.iter().filter(|(name, job)| job.enabled && is_new(name)) {
            plan.marks.extend(schedule_of(job).map(|text| (name.clone(), Note::Seen(seen.now.wall, text))));
        }
    }
    let rests = |name: &&JobName| state.jobs.get(name).is_some_and(|mark| mark.rests);
    plan.marks.extend(seen.changed.iter().filter(rests).map(|name| (name.clone(), Note::Changed)));
    for name in &seen.fresh {
        let Some(mark) = state.jobs.get(name).filter(|mark| mark.since.is_some()) else { continue };
        let job = seen.catalog.jobs.get(name).filter(|job| job.enabled);
        let is_other = |text: &String| !mark.schedule.is_empty() && mark.schedule != *text;
        let note = match job.and_then(|job| schedule_of(job)) {
            Some(text) if mark.paused || is_other(&text) => Note::Seen(seen.now.wall, text),
            None if !mark.paused && !seen.catalog.broken.contains(name) => Note::Paused,
            Some(_) | None => continue,
        };
        plan.marks.push((name.clone(), note));
    }
}

fn schedule_of(job: &Job) -> Option<String> {
    match &job.kind {
        JobType::Timed(timing) => Some(timing.text()),
        JobType::Trigger | JobType::Always(_) | JobType::Idle(_) => None,
    }
}

/// What is known of jobs when the state is lost: what was known before, and the last due times that left traces.
#[must_use]
pub fn recall(known: &Marks, last: BTreeMap<JobName, DateTime<Utc>>, catalog: &Catalog) -> BTreeMap<JobName, JobMark> {
    let mut marks: BTreeMap<_, _> = known.iter().map(|(job, mark)| (job.clone(), mark.clone())).collect();
    for (name, at) in last {
        let schedule = catalog.jobs.get(&name).and_then(|job| schedule_of(job));
        let mark = marks.entry(name).or_default();
        mark.since.get_or_insert(at);
        if let Some(schedule) = schedule {
            mark.schedule = schedule;
        }
        mark.last_due_at = mark.last_due_at.max(Some(at));
    }
    marks
}

/// Gives a state that was made anew what the lost one knew of jobs, as far as this device knows it.
fn remember(state: &State, seen: &Observation, plan: &mut Plan) {
    for (name, known) in seen.marks.iter().filter(|_| seen.remembered == state.rebuilt) {
        let default = JobMark::default();
        let mark = state.jobs.get(name).unwrap_or(&default);
        let success = |mark: &JobMark| mark.last_success.as_ref().map(|success| success.at);
        let is_behind = (mark.since.is_none() && known.since.is_some())
            || mark.last_due_at < known.last_due_at
            || mark.last_run_at < known.last_run_at
            || success(mark) < success(known);
        if is_behind {
            plan.marks.push((name.clone(), Note::Known(Box::new(known.clone()))));
        }
    }
}

/// What was noted since the state was lost is newer than what was known before.
fn restore(mark: &mut JobMark, known: &JobMark) {
    let before = std::mem::replace(mark, known.clone());
    mark.last_due_at = mark.last_due_at.max(before.last_due_at);
    mark.last_run_at = mark.last_run_at.max(before.last_run_at);
    mark.skipped = mark.skipped.max(before.skipped);
    mark.since = mark.since.or(before.since);
    if !before.news.is_empty() {
        (mark.news, mark.told_failed) = (before.news, before.told_failed);
    }
    if before.last_run_id.is_some() {
        mark.last_run_id = before.last_run_id;
        mark.last_status = before.last_status;
        mark.last_ended_at = before.last_ended_at;
        mark.failures = before.failures;
        mark.rests = before.rests;
    }
    let at = |success: &Option<Success>| success.as_ref().map(|success| success.at);
    if at(&before.last_success) > at(&mark.last_success) {
        mark.last_success = before.last_success;
    }
}
