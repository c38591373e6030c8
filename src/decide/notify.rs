//! What webhooks are told: a job's first failure once, and its recovery once.
//!
//! What is to be told stands in the job's mark, put there by the commit that accepts the end, and is taken out by another
//! once it is told or given up. The device that committed the end tells it; where that one dies, another takes it over. So
//! what was told and not yet taken out when a device died is told twice, and nothing is told never.

use super::marks::{Note, Over};
use super::plan::{Change, Matter, Observation, Plan};
use super::settle::retried_before;
use crate::decide::liveness::Verdict;
use crate::model::device::Me;
use crate::model::ids::{DeviceId, JobName, Session};
use crate::model::lease::Lease;
use crate::model::news::{Event, News};
use crate::model::result::{Cause, Status};
use crate::model::state::{JobMark, State};

/// How much is still to be told of one job at most: what may be on its way already, and how it is by now.
const MOST: usize = 2;

/// A change of what a job's webhook is to be told.
#[derive(Debug, Clone, PartialEq)]
pub enum Telling {
    /// A run came to an end that counts.
    Ended {
        /// What is told if it is new.
        news: News,
        /// It had been well for so long that a failure counts as the first.
        anew: bool,
    },
    /// It is told, or given up.
    Done(News),
    /// Who was to tell it is dead.
    TakenOver {
        /// The life that is over.
        from: Session,
        /// Who tells it now.
        device: DeviceId,
        /// The life of that device.
        by: Session,
    },
    /// The job has no webhook any more.
    Withdrawn,
}

/// Takes a change into a job's mark.
pub fn take(mark: &mut JobMark, telling: &Telling) {
    match telling {
        Telling::Ended { news, anew } => {
            if *anew && mark.news.is_empty() {
                mark.told_failed = false;
            }
            let failed = news.event == Event::Failed;
            if std::mem::replace(&mut mark.told_failed, failed) == failed {
                return;
            }
            // The first may be on its way and cannot be taken back; what came and went behind it nobody needs to hear.
            if mark.news.len() < MOST {
                mark.news.push(news.clone());
            } else {
                mark.news.pop();
            }
        }
        Telling::Done(news) => mark.news.retain(|other| !other.is_of(news)),
        Telling::TakenOver { from, device, by } => {
            for news in mark.news.iter_mut().filter(|news| news.by == *from) {
                (news.device, news.by) = (device.clone(), by.clone());
            }
        }
        Telling::Withdrawn => {
            mark.told_failed = false;
            mark.news.clear();
        }
    }
}

/// What this life of this device is to tell now, what happened first first: one at a time of each job, so that nobody hears
/// of a recovery before the failure.
#[must_use]
pub fn to_tell<'a>(state: &'a State, me: &Me) -> Vec<(&'a JobName, &'a News)> {
    let firsts = state.jobs.telling().filter_map(|(job, mark)| Some((job, mark.news.first()?)));
    let mut mine: Vec<_> = firsts.filter(|(_, news)| news.by == me.session).collect();
    mine.sort_by_key(|(_, news)| &news.run_id);
    mine
}

/// Attempts whose result another device is to tell: who has the lease of one is judged as who holds a run.
pub fn told_by_others<'a>(state: &'a State, me: &'a Me) -> impl Iterator<Item = Lease> {
    let firsts = state.jobs.telling().filter_map(|(_, mark)| mark.news.first());
    firsts.filter(|news| news.device != me.device).map(News::lease)
}

/// Adds to each change what it gives to tell, and takes out what is told or has nobody to tell it.
pub fn tell(state: &State, seen: &Observation, plan: &mut Plan) {
    plan.changes.add_notes(|change| {
        let told = end_of(state, seen, change).filter(|(job, _)| has_hook(seen, job));
        told.map(|(job, telling)| (job, Note::Tell(telling)))
    });
    if state.rebuilt.is_some() {
        return;
    }
    for (job, mark) in state.jobs.telling() {
        let telling = carry_on(seen, job, mark);
        plan.marks.extend(telling.map(|telling| (job.clone(), Note::Tell(telling))));
    }
}

/// Returns what becomes of news that waits: it was told, its device is dead, or its job has no webhook any more.
fn carry_on(seen: &Observation, job: &JobName, mark: &JobMark) -> Option<Telling> {
    let first = mark.news.first();
    if let Some(done) = seen.told.get(job).filter(|done| first.is_some_and(|first| first.is_of(done))) {
        return Some(Telling::Done(done.clone()));
    }
    let is_dead = |news: &News| is_dead(seen, news);
    if has_hook(seen, job) {
        let orphaned = first.filter(|news| seen.may_tell && is_dead(news))?;
        let (device, by) = (seen.me.device.clone(), seen.me.session.clone());
        return Some(Telling::TakenOver { from: orphaned.by.clone(), device, by });
    }
    // Devices read files at different moments: they must not contradict each other at every turn.
    let is_sure = seen.upkeep && (seen.catalog.lacks(job) || seen.catalog.jobs.contains_key(job));
    let is_mine = |news: &News| news.by == seen.me.session;
    (is_sure && first.is_none_or(|news| is_mine(news) || is_dead(news))).then_some(Telling::Withdrawn)
}

/// Whoever has a device's lock knows that its earlier life is over.
fn is_dead(seen: &Observation, news: &News) -> bool {
    if news.device == seen.me.device {
        return news.by != seen.me.session;
    }
    seen.devices.verdict(&news.lease(), &news.device, &news.by, seen.now.boot) == Verdict::Dead
}

fn has_hook(seen: &Observation, job: &JobName) -> bool {
    seen.catalog.jobs.get(job).is_some_and(|job| job.notify.is_some())
}

/// The end that a change is about, if it counts. A run that goes on has none, but a daemon's: each of its attempts counts,
/// because it never ends.
fn end_of(state: &State, seen: &Observation, change: &Change) -> Option<(JobName, Telling)> {
    let over = change.notes.iter().find_map(|(job, note)| match note {
        Note::Over(Over { attempt, status, .. }) => Some((job, *attempt, *status)),
        Note::Seen(..)
        | Note::Paused
        | Note::Known(_)
        | Note::Due(_)
        | Note::Skipped(_)
        | Note::Claimed(_)
        | Note::Changed
        | Note::Gone(_)
        | Note::Back
        | Note::Tell(_) => None,
    });
    let mut anew = false;
    let (job, attempt, status) = match &change.matter {
        Matter::Settled(lease) => {
            let outcome = seen.attempts.ended(lease).map(|ended| &ended.outcome);
            let daemon = outcome.filter(|outcome| outcome.cause == Cause::Always);
            let lived = daemon.and_then(|outcome| outcome.duration_ms).unwrap_or(0.0).max(0.0) / 1_000.0;
            anew = retried_before(Cause::Always, 1, std::time::Duration::from_secs_f64(lived)) == 0;
            over.or_else(|| daemon.map(|outcome| (&outcome.job, outcome.attempt, outcome.status)))
        }
        Matter::Lost(lease, job) => {
            let daemon = state.runs.get(&lease.run).filter(|held| held.cause == Cause::Always);
            let accepted = seen.evidence.get(lease).and_then(|evidence| evidence.accepted.as_ref());
            over.or_else(|| daemon.and(accepted).map(|accepted| (job, accepted.attempt, accepted.status)))
        }
        Matter::Kept(_)
        | Matter::Adopted(_)
        | Matter::Freed(_)
        | Matter::Listed(_)
        | Matter::Vanished(_)
        | Matter::Claimed(_)
        | Matter::Ended(_)
        | Matter::Passed(_) => over,
    }?;
    let event = match status {
        Status::Failed | Status::TimedOut | Status::Lost | Status::Expired => Event::Failed,
        Status::Succeeded => Event::Recovered,
        Status::Cancelled | Status::Skipped | Status::Superseded => return None,
    };
    let (device, by) = (seen.me.device.clone(), seen.me.session.clone());
    let news = News { event, run_id: change.run.clone(), attempt, device, by };
    Some((job.clone(), Telling::Ended { news, anew }))
}

#[cfg(test)]
mod tests;
