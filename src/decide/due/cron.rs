//! When a cron expression is due in a time zone.
//!
//! The expression is only asked for local times, as if there were no zone: which instants they are is said here, because
//! croner takes a list of times for an interval, gives up in a gap of more than two hours, and drops a time whose gap
//! ends on another day.

use chrono::{DateTime, NaiveDateTime, TimeDelta, Timelike, Utc};
use chrono_tz::Tz;
use croner::Cron;

use super::clock::{change, first_moment, offset, reached};

/// Further than this, a change of the clocks does not reach: no two zones are further apart.
const REACH: TimeDelta = TimeDelta::days(2);

/// The newest occurrence at or before `at`.
pub(super) fn newest(cron: &Cron, zone: Tz, at: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let mut from = at.with_nanosecond(0)?;
    if !follows_elapsed_time(cron) {
        return first_moment(zone, before(cron, reached(zone, from)?)?);
    }
    loop {
        let offset = offset(zone, from);
        let local = before(cron, from.naive_utc().checked_add_offset(offset)?)?;
        // So it is if the clocks do not change in between.
        let found = local.checked_sub_offset(offset)?.and_utc();
        let near = found.max(from - REACH);
        from = match change(zone, near, from) {
            Some(change) => change - TimeDelta::seconds(1),
            None if near == found => return Some(found),
            // Until shortly behind `local`, clocks show only what lies between: nothing occurs there.
            None => near.min(found + REACH),
        };
    }
}

/// The first occurrence behind `after`.
pub(super) fn next(cron: &Cron, zone: Tz, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let mut from = after.with_nanosecond(0)?;
    if !follows_elapsed_time(cron) {
        return first_moment(zone, behind(cron, reached(zone, from)?, false)?);
    }
    let mut inclusive = false;
    loop {
        let offset = offset(zone, from);
        let local = behind(cron, from.naive_utc().checked_add_offset(offset)?, inclusive)?;
        let found = local.checked_sub_offset(offset)?.and_utc();
        let near = found.min(from + REACH);
        from = match change(zone, from, near) {
            Some(change) => change,
            None if near == found => return Some(found),
            None => near.max(found - REACH),
        };
        inclusive = true;
    }
}

/// Whether it has `*` or a step in its minute or hour: then each time that clocks show counts, in both passes, and a time that
/// they skip does not. Otherwise each of its times is a fixed one.
fn follows_elapsed_time(cron: &Cron) -> bool {
    let text = cron.pattern.as_str();
    // Minute and hour are followed by day, month and weekday.
    let seconds = text.split_whitespace().count().saturating_sub(5);
    text.split_whitespace().skip(seconds).take(2).any(|field| field.contains(['*', '/']))
}

fn before(cron: &Cron, local: NaiveDateTime) -> Option<NaiveDateTime> {
    cron.find_previous_occurrence(&local, true).ok()
}

fn behind(cron: &Cron, local: NaiveDateTime, inclusive: bool) -> Option<NaiveDateTime> {
    cron.find_next_occurrence(&local, inclusive).ok()
}
