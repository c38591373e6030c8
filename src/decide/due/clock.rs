//! What clocks in a time zone show, and when: local time to instants and back, through every change of the clocks.
//!
//! Changes lie on whole seconds. Since 1970 no zone has changed its offset twice within six days.

use chrono::{DateTime, FixedOffset, MappedLocalTime, NaiveDateTime, Offset, TimeDelta, TimeZone, Utc};
use chrono_tz::{GapInfo, Tz};

const SECOND: TimeDelta = TimeDelta::seconds(1);

/// How far `zone` is from UTC at `at`.
pub(super) fn offset(zone: Tz, at: DateTime<Utc>) -> FixedOffset {
    zone.offset_from_utc_datetime(&at.naive_utc()).fix()
}

/// What clocks in `zone` show at `at`.
pub(super) fn shown(zone: Tz, at: DateTime<Utc>) -> Option<NaiveDateTime> {
    at.naive_utc().checked_add_offset(offset(zone, at))
}

/// The first instant at which clocks in `zone` show `local`; where they never do, the first one behind the gap.
#[must_use]
pub fn first_moment(zone: Tz, local: NaiveDateTime) -> Option<DateTime<Utc>> {
    match zone.from_local_datetime(&local) {
        MappedLocalTime::Single(at) | MappedLocalTime::Ambiguous(at, _) => Some(at.to_utc()),
        MappedLocalTime::None => {
            let (begin, before) = GapInfo::new(&local, &zone)?.begin?;
            Some(begin.checked_sub_offset(before.fix())?.and_utc())
        }
    }
}

/// The latest local time, in whole seconds, that clocks in `zone` have shown by `at`: while they show times for the second
/// time, the last one before they were set back. So [`first_moment`] of a local time has come when that time is reached.
pub(super) fn reached(zone: Tz, at: DateTime<Utc>) -> Option<NaiveDateTime> {
    let clock = shown(zone, at)?;
    match zone.from_local_datetime(&clock) {
        MappedLocalTime::Ambiguous(first, _) if first.to_utc() < at => {
            shown(zone, change(zone, first.to_utc(), at)? - SECOND)
        }
        MappedLocalTime::Single(_) | MappedLocalTime::Ambiguous(..) | MappedLocalTime::None => Some(clock),
    }
}

/// The change of the clocks behind `from` and not behind `to`, which are at most some days apart: so there is one, or none.
pub(super) fn change(zone: Tz, from: DateTime<Utc>, to: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let before = offset(zone, from);
    if offset(zone, to) == before {
        return None;
    }
    let (mut low, mut high) = (from, to);
    while high - low > SECOND {
        let middle = low + TimeDelta::seconds((high - low).num_seconds() / 2);
        if offset(zone, middle) == before { low = middle } else { high = middle }
    }
    Some(high)
}
