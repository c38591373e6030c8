//! Backup and restore, the pure part: when a backup is due, which ones go, and what becomes of an open run that an archive brings
//! to a volume that may know more of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::marks::{self, Note};
use crate::model::backup::BackupName;
use crate::model::ids::RunId;
use crate::model::state::{Held, REBUILD_STEP, State};

/// How long it is until a backup is due; `None`: it is. One that seems to be of a later time was named by another clock, and
/// counts as long as it is not later by a whole interval.
#[must_use]
pub fn due_in(newest: Option<DateTime<Utc>>, every: Duration, now: DateTime<Utc>) -> Option<Duration> {
    let every = TimeDelta::from_std(every).unwrap_or(TimeDelta::MAX);
    let passed = now - newest?;
    if passed.abs() >= every {
        return None;
    }
    (every - passed.max(TimeDelta::zero())).to_std().ok()
}

/// The backups of `volume` that go so that its newest `keep` stay. Those of other volumes stay.
#[must_use]
pub fn surplus(all: &BTreeSet<BackupName>, volume: &str, keep: usize) -> Vec<BackupName> {
    let own: Vec<&BackupName> = all.iter().filter(|name| name.volume == volume).collect();
    own[..own.len().saturating_sub(keep)].iter().map(|name| (*name).clone()).collect()
}

/// Where an open run's file lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lies {
    /// In the inbox.
    Inbox,
    /// In `.waiting`, for this attempt.
    Waiting(u32),
    /// In `.running`, as this attempt.
    Running(u32),
}

/// What files of a volume tell of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traces {
    /// Where its file lies, if it is open.
    pub lies: Option<Lies>,
    /// Its trigger lies in `TriggersProcessed`.
    pub put_away: bool,
    /// The largest attempt of which there is a result.
    pub result: Option<u32>,
    /// The largest attempt of which there is a log.
    pub log: Option<u32>,
    /// One of the results is final.
    pub over: bool,
}

impl Traces {
    /// Whether the run has been there: then another trigger with its id is another run.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.put_away || self.result.is_some() || self.log.is_some()
    }

    /// Returns the attempt that the run has come to, as far as they tell: at least 1.
    #[must_use]
    pub fn newest(&self) -> u32 {
        let newest = if self.over { self.result } else { self.result.max(self.log) };
        newest.unwrap_or(1).max(1)
    }

    /// Whether they tell of an end of this attempt, or of one behind it. A log begins with its attempt, a result is its end.
    fn pass(&self, attempt: u32) -> bool {
        self.over || self.result.is_some_and(|last| last >= attempt) || self.log.is_some_and(|last| last > attempt)
    }

    /// Whether they tell of anything from this attempt on.
    fn reach(&self, attempt: u32) -> bool {
        self.pass(attempt) || self.log.is_some_and(|last| last >= attempt)
    }
}

/// What becomes of an open run's file in an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It comes back to where it lay.
    Returns,
    /// It comes into `.running` as the newest attempt that its run left anything of, held by nobody: that says more than the archive.
    /// The device that finds it there ends the run if it has a final result, and else makes it wait for the attempt after that.
    Reconciled,
    /// It stays away: the volume has the run, or had it.
    StaysAway,
}

/// Decides on an open run's file.
#[must_use]
pub fn fate(lies: Lies, traces: &Traces) -> Fate {
    if traces.lies.is_some() || traces.put_away {
        return Fate::StaysAway;
    }
    let is_newer = match lies {
        Lies::Inbox => traces.reach(1),
        Lies::Waiting(next) => traces.reach(next),
        Lies::Running(attempt) => traces.pass(attempt),
    };
    if is_newer { Fate::Reconciled } else { Fate::Returns }
}

/// Whether an entry of the archive's state still holds once the files are in place. `lies`: where its run's file lies then.
fn still_holds(held: &Held, lies: Option<Lies>, traces: &Traces) -> bool {
    match (lies, &held.device) {
        (Some(Lies::Running(attempt)), Some(_)) => attempt == held.attempt && !traces.pass(attempt),
        (Some(Lies::Waiting(next)), None) => next == held.attempt,
        // Its file had vanished before: whoever meets it says so.
        (None, _) => !traces.put_away && !traces.reach(held.attempt),
        (Some(Lies::Inbox), _) | (Some(Lies::Running(_)), None) | (Some(Lies::Waiting(_)), Some(_)) => false,
    }
}

/// The state of a restored volume. `own`: the volume's own state, if it has one that can be read; what it knows is newer and stays.
/// `seen`: the largest revision that anything of the volume tells of. `runs`: of each open run of the archive's state where its
/// file lies once the files are in place, and what else the volume has of it.
///
/// It counts as a state that was lost and made anew: nothing is claimed until whoever lives has worked through it, what every job
/// remembers is held against the results that are there.
#[must_use]
pub fn restored(
    archived: State,
    own: Option<&State>,
    seen: u64,
    runs: &BTreeMap<RunId, (Option<Lies>, Traces)>,
) -> State {
    let is_there = |run: &RunId| own.is_some_and(|own| own.runs.contains_key(run));
    let mut next = archived;
    let stays = |(run, held): &(&RunId, &Arc<Held>)| {
        let found = runs.get(*run).copied().unwrap_or_default();
        !is_there(run) && still_holds(held, found.0, &found.1)
    };
    let own_runs = own.iter().flat_map(|own| own.runs.iter());
    let open = next.runs.iter().filter(stays).chain(own_runs);
    next.runs = open.map(|(run, held)| (run.clone(), Arc::clone(held))).collect();
    next.revision = next.revision.max(seen);
    if let Some(own) = own {
        let archived = std::mem::replace(&mut next.jobs, own.jobs.clone());
        for (job, known) in archived.iter() {
            next.jobs.update(job, |mark| marks::take(mark, &Note::Known(Box::new(known.clone()))));
        }
        next.requests.clone_from(&own.requests);
        next.revision = next.revision.max(own.revision);
    }
    next.revision += REBUILD_STEP;
    // Its own commit counts up once more.
    next.rebuilt = Some(next.revision + 1);
    // No chain of commits leads here: that of the archive ends.
    next.last_commits.clear();
    next
}

#[cfg(test)]
mod tests;
