//! When a timed job is due: pure rules over local time, the same on every device.
//!
//! A schedule is a grid of instants; [`newest`] and [`next`] walk on it. Local times that a change of the clocks skips are
//! due at the first moment after the gap; those that come twice are due once, the first time (after Vixie cron).

use std::time::Duration;

use chrono::{DateTime, Days, NaiveDate, TimeDelta, Utc};
use sha2::{Digest, Sha256};

use crate::model::ids::{JobName, RunId};
use crate::model::schedule::{MISSED_AGE, MISSED_MOST, Missed, Schedule, Timing};
use crate::model::state::JobMark;

mod clock;
mod cron;
#[cfg(test)]
mod tests;

pub use clock::first_moment;
use clock::shown;

const MS: TimeDelta = TimeDelta::milliseconds(1);
/// The most by which the volume's time is late on a device that stood still while it read it; a clock that differs by more was set.
const LATE: TimeDelta = TimeDelta::minutes(1);

/// A job's timing on one volume: everything its due times follow from.
#[derive(Debug, Clone, Copy)]
pub struct Clockwork<'a> {
    /// The volume's random id.
    pub volume: &'a str,
    /// The job.
    pub job: &'a JobName,
    /// What its file says.
    pub timing: &'a Timing,
}

/// The newest due time at or before `at`.
#[must_use]
pub fn newest(of: Clockwork<'_>, at: DateTime<Utc>) -> Option<DateTime<Utc>> {
    // A nominal time may lie before `at` and its moved one behind it: then the one before it counts.
    let mut nominal = of.nominal_before(at)?;
    for _ in 0..2 {
        let due = of.moved(nominal);
        if due <= at {
            return Some(due);
        }
        nominal = of.nominal_before(nominal.checked_sub_signed(MS)?)?;
    }
    None
}

/// The first due time behind `after`.
#[must_use]
pub fn next(of: Clockwork<'_>, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
    // The nominal time before `after` may have been moved behind it.
    let before = if of.timing.jitter.is_zero() { None } else { of.nominal_before(after) };
    let before = before.map(|nominal| of.moved(nominal)).filter(|due| *due > after);
    before.or_else(|| of.nominal_after(after).map(|nominal| of.moved(nominal)))
}

/// The due time that is to be made a run of now, if there is one: what `missed` says of those since `mark` was made.
///
/// A job that was never seen (no `since`) is not due; one of an interval that never ran is due at once. Nothing is due at or
/// before `last_due_at`, also while that lies in the future ([`ahead_until`]).
#[must_use]
pub fn due_now(of: Clockwork<'_>, mark: &JobMark, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let from = counted_from(mark)?;
    // A device whose time is a little late goes by the moment at which another one has first seen the job.
    let is_late = at_once(of, mark) && from > now && from - now <= LATE;
    let latest = newest(of, if is_late { from } else { now })?;
    if at_once(of, mark) {
        // The newest multiple when it was first seen counts too, and with `all` each one since.
        let from = newest(of, from).and_then(|first| first.checked_sub_signed(MS)).filter(|from| *from < latest);
        let all = from.filter(|_| of.timing.missed == Missed::All);
        return Some(all.map_or(latest, |from| oldest(of, latest, from)));
    }
    if latest <= from {
        return None;
    }
    match of.timing.missed {
        Missed::Once => Some(latest),
        Missed::Skip => (now - latest <= span(MISSED_AGE)).then_some(latest),
        Missed::All => Some(oldest(of, latest, from)),
    }
}

/// The first instant behind `now` at which [`due_now`] may give another answer by time alone.
#[must_use]
pub fn next_change(of: Clockwork<'_>, mark: &JobMark, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let from = counted_from(mark)?;
    if at_once(of, mark) {
        return next(of, now);
    }
    // Up to `from` nothing is due, whatever the time is.
    let next = next(of, from.max(now));
    match of.timing.missed {
        Missed::Once | Missed::All => next,
        // What is due is so for a while only.
        Missed::Skip => {
            let too_old = due_now(of, mark, now).and_then(|due| due.checked_add_signed(span(MISSED_AGE) + MS));
            next.into_iter().chain(too_old).min()
        }
    }
}

/// Until when nothing is due because `mark` lies in the future: the volume's clock was ahead when it was made, and was set
/// back since. `None` where that is not so.
#[must_use]
pub fn ahead_until(of: Clockwork<'_>, mark: &JobMark, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    counted_from(mark).filter(|from| *from > now && !at_once(of, mark))
}

/// The instant behind which due times count. `None`: none counts.
fn counted_from(mark: &JobMark) -> Option<DateTime<Utc>> {
    let since = mark.since.filter(|_| !mark.paused)?;
    Some(mark.last_due_at.map_or(since, |last| last.max(since)))
}

/// Whether the newest due time counts, whenever it was.
fn at_once(of: Clockwork<'_>, mark: &JobMark) -> bool {
    mark.last_due_at.is_none() && matches!(of.timing.schedule, Schedule::Interval(_))
}

/// The due times to come of a job that was last due, or first seen, as its mark says.
pub fn upcoming<'a>(
    of: Clockwork<'a>,
    mark: &JobMark,
    now: DateTime<Utc>,
) -> impl Iterator<Item = DateTime<Utc>> + use<'a> {
    // Nothing comes before a mark that lies in the future.
    let first = due_now(of, mark, now).or_else(|| next(of, ahead_until(of, mark, now).unwrap_or(now)));
    std::iter::successors(first, move |at| next(of, (*at).max(now)))
}

/// The oldest due time behind `from` that is made up for, `latest` being the newest.
fn oldest(of: Clockwork<'_>, latest: DateTime<Utc>, from: DateTime<Utc>) -> DateTime<Utc> {
    let mut found = latest;
    for _ in 1..MISSED_MOST {
        match found.checked_sub_signed(MS).and_then(|at| newest(of, at)) {
            Some(before) if before > from => found = before,
            Some(_) | None => break,
        }
    }
    found
}

/// The run of a due time: the same on every device.
#[must_use]
pub fn run_of(volume: &str, job: &JobName, due: DateTime<Utc>) -> RunId {
    RunId::new(due, hash(volume, job, &due.timestamp_millis().to_string()))
}

/// A number that all devices of a volume agree on without asking.
#[must_use]
pub fn hash(volume: &str, job: &JobName, of: &str) -> u64 {
    let mut hash = Sha256::new();
    for part in [volume, job.as_str(), of] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.finalize().iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

impl Clockwork<'_> {
    /// The nominal time, moved by the job's jitter: never as far as the next one.
    fn moved(self, nominal: DateTime<Utc>) -> DateTime<Utc> {
        let most = span(self.timing.jitter);
        if most.is_zero() {
            return nominal;
        }
        let room = self.nominal_after(nominal).map_or(most, |next| most.min(next - nominal));
        let room = u64::try_from(room.num_milliseconds()).unwrap_or(0).max(1);
        let moved = hash(self.volume, self.job, &nominal.timestamp_millis().to_string()) % room;
        nominal.checked_add_signed(TimeDelta::milliseconds(moved.cast_signed())).unwrap_or(nominal)
    }

    /// The newest nominal time at or before `at`.
    fn nominal_before(self, at: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match &self.timing.schedule {
            Schedule::Interval(every) => multiple(*every, at, 0),
            Schedule::Cron { cron, zone } => cron::newest(&cron.cron, *zone, at),
            Schedule::Daily { zone, .. } | Schedule::RandomDaily { zone, .. } => {
                let today = shown(*zone, at)?.date();
                // A window may have begun the day before yesterday, where a day was skipped.
                let days = (0..=3).filter_map(|back| today.succ_opt()?.checked_sub_days(Days::new(back)));
                days.filter_map(|day| self.on(day)).filter(|due| *due <= at).max()
            }
        }
    }

    /// The first nominal time behind `after`.
    fn nominal_after(self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match &self.timing.schedule {
            Schedule::Interval(every) => multiple(*every, after, 1),
            Schedule::Cron { cron, zone } => cron::next(&cron.cron, *zone, after),
            Schedule::Daily { zone, .. } | Schedule::RandomDaily { zone, .. } => {
                let today = shown(*zone, after)?.date();
                let days = (0..=4).filter_map(|ahead| today.pred_opt()?.checked_add_days(Days::new(ahead)));
                days.filter_map(|day| self.on(day)).filter(|due| *due > after).min()
            }
        }
    }

    /// The nominal time of a local day.
    fn on(self, day: NaiveDate) -> Option<DateTime<Utc>> {
        match &self.timing.schedule {
            Schedule::Daily { time, zone } => first_moment(*zone, day.and_time(*time)),
            Schedule::RandomDaily { after, before, zone } => {
                let last_day = if before > after { day } else { day.succ_opt()? };
                let begin = first_moment(*zone, day.and_time(*after))?;
                let end = first_moment(*zone, last_day.and_time(*before))?;
                let seconds = u64::try_from((end - begin).num_seconds()).unwrap_or(0).max(1);
                let drawn = hash(self.volume, self.job, &day.to_string()) % seconds;
                begin.checked_add_signed(TimeDelta::seconds(drawn.cast_signed()))
            }
            Schedule::Interval(_) | Schedule::Cron { .. } => None,
        }
    }
}

/// The multiple of `every` since 1970 at or before `at`, `steps` further on.
fn multiple(every: Duration, at: DateTime<Utc>, steps: i64) -> Option<DateTime<Utc>> {
    let every = i64::try_from(every.as_millis()).ok().filter(|every| *every > 0)?;
    let number = at.timestamp_millis().div_euclid(every).checked_add(steps)?;
    DateTime::from_timestamp_millis(number.checked_mul(every)?)
}

fn span(span: Duration) -> TimeDelta {
    TimeDelta::from_std(span).unwrap_or(TimeDelta::MAX)
}
