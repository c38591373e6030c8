//! What holds for every schedule, in every zone, at every time.

use std::ops::Range;

use chrono::{NaiveDateTime, TimeZone};
use chrono_tz::Tz;
use croner::Cron;
use proptest::prelude::*;

use super::*;

/// Zones, and an instant near a change of their clocks: the usual two, half an hour, at midnight, over midnight, two and three
/// hours, a day, none; and far from any.
const PLACES: [(&str, &str); 16] = [
    ("Europe/Berlin", "2026-03-29T01:00"),
    ("Europe/Berlin", "2026-10-25T01:00"),
    ("Australia/Lord_Howe", "2026-04-04T15:00"),
    ("Australia/Lord_Howe", "2026-10-03T15:30"),
    ("Africa/Cairo", "2026-04-23T22:00"),
    ("Africa/Cairo", "2026-10-29T21:00"),
    ("America/Sao_Paulo", "2018-02-18T02:00"),
    ("America/Nuuk", "2026-03-29T01:00"),
    ("Asia/Pyongyang", "2018-05-04T15:00"),
    ("Antarctica/Troll", "2026-03-29T01:00"),
    ("Antarctica/Casey", "2011-10-27T18:00"),
    ("Antarctica/Casey", "2012-02-21T17:00"),
    ("Pacific/Apia", "2011-12-30T10:00"),
    ("Pacific/Kwajalein", "1993-08-21T12:00"),
    ("Asia/Kathmandu", "2026-03-29T01:00"),
    ("America/New_York", "2026-07-01T00:00"),
];

const CLOCK_TIMES: [&str; 10] =
    ["00:00", "00:30", "01:00", "01:30", "02:00", "02:15", "02:30", "03:00", "12:00", "23:59:59"];

/// A cron expression, of which some never occur and are refused.
fn crons() -> impl Strategy<Value = String> {
    (
        prop::sample::select(&["", "0 ", "59 ", "*/20 ", "5,50 "][..]),
        prop::sample::select(&["*", "*/15", "0", "30", "15,45", "0-10/5", "59", "0-59"][..]),
        prop::sample::select(&["*", "*/6", "2", "1-3", "0", "23", "1,2", "0-23", "2-2/1"][..]),
        prop::sample::select(&["*", "*", "*", "*/2", "L", "29-31", "1-7", "15W"][..]),
        prop::sample::select(&["*", "*", "*", "2", "12", "3,10"][..]),
        prop::sample::select(&["*", "*", "*", "0", "+1", "6#1", "5L", "1-5"][..]),
    )
        .prop_map(|(second, minute, hour, day, month, weekday)| {
            format!("{second}{minute} {hour} {day} {month} {weekday}")
        })
}

fn kinds() -> impl Strategy<Value = String> {
    let times = || prop::sample::select(&CLOCK_TIMES[..]);
    prop_oneof![
        times().prop_map(|time| format!("type = \"daily\"; time = \"{time}\"")),
        (times(), times()).prop_map(|(after, before)| format!(
            "type = \"random_daily\"; after_time = \"{after}\"; before_time = \"{before}\""
        )),
        prop_oneof![1_000_u64..100_000, 1_000_u64..1_000_000_000]
            .prop_map(|ms| format!("type = \"interval\"; interval = \"{ms}ms\"")),
        crons().prop_map(|cron| format!("type = \"cron\"; cron = \"{cron}\"")),
    ]
}

/// A timing, and an instant within some days of the change of its zone's clocks.
fn timings() -> impl Strategy<Value = (String, Timing, DateTime<Utc>)> {
    let jitters = prop::sample::select(&["0ms", "1ms", "10s", "15m", "1h", "1d", "40d"][..]);
    let missed = prop::sample::select(&["once", "all", "skip"][..]);
    let near = prop_oneof![-7_200_000_i64..7_200_000, -300_000_000_i64..300_000_000];
    (kinds(), jitters, missed, prop::sample::select(&PLACES[..]), near).prop_filter_map(
        "refused",
        |(kind, jitter, missed, (zone, change), near)| {
            let mut keys = format!("{kind}; missed = \"{missed}\"");
            if !kind.contains("interval") {
                keys += &format!("; timezone = \"{zone}\"");
            }
            if !kind.contains("random_daily") {
                keys += &format!("; jitter = \"{jitter}\"");
            }
            Some((keys.clone(), read(&keys)?, at(change) + TimeDelta::milliseconds(near)))
        },
    )
}

/// Marks of jobs that were seen, and may have run, some time before or behind an instant; in milliseconds.
fn marks() -> impl Strategy<Value = (i64, Option<i64>)> {
    let near = || prop_oneof![-100_000_i64..10_000, -400_000_000_i64..10_000_000];
    (near(), prop::option::weighted(0.8, near()))
}

fn mark_at(now: DateTime<Utc>, (since, last): (i64, Option<i64>)) -> JobMark {
    let moved = |ms| now + TimeDelta::milliseconds(ms);
    JobMark { since: Some(moved(since)), last_due_at: last.map(moved), ..JobMark::default() }
}

/// All that is due in a span of whole seconds, by the definition: a clock is watched, second by second.
fn watched(cron: &Cron, zone: Tz, span: Range<i64>, elapsed: bool) -> Vec<i64> {
    let clock = |at: i64| zone.timestamp_opt(at, 0).unwrap().naive_local();
    let occurs = |local: &NaiveDateTime| cron.is_time_matching(local).unwrap();
    let mut found = Vec::new();
    // Long enough before, so that no clock was set back across the beginning.
    let mut reached = (span.start - 90_000..span.start).map(clock).max().unwrap();
    for at in span {
        let shows = clock(at);
        let mut due = elapsed && occurs(&shows);
        while !elapsed && reached < shows {
            reached += TimeDelta::seconds(1);
            due |= occurs(&reached);
        }
        if due {
            found.push(at);
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn next_and_newest_are_two_ways_on_one_grid((keys, timing, now) in timings()) {
        let job = name();
        let of = Clockwork { volume: VOLUME, job: &job, timing: &timing };
        let mut last = newest(of, now);
        prop_assert!(last.is_some_and(|last| last <= now), "{keys} {now} {last:?}");
        let mut at = now;
        for _ in 0..20 {
            let due = next(of, at).unwrap();
            prop_assert!(due > at, "{keys}: {due} is not behind {at}");
            prop_assert_eq!(newest(of, due), Some(due), "{}", keys);
            // Nothing lies in between.
            prop_assert_eq!(newest(of, due - MS), last, "{}: before {}", keys, due);
            let middle = at + (due - at) / 2;
            prop_assert_eq!(newest(of, middle), last, "{}: at {}", keys, middle);
            prop_assert_eq!(next(of, middle), Some(due), "{}: behind {}", keys, middle);
            prop_assert_eq!(last.and_then(|last| next(of, last)), Some(due), "{}", keys);
            (at, last) = (due, Some(due));
        }
    }

    #[test]
    fn jitter_moves_each_due_time_by_less_than_its_bound_and_never_to_the_next((keys, timing, now) in timings()) {
        let job = name();
        let still = Timing { jitter: Duration::ZERO, ..timing.clone() };
        let (of, still) = (
            Clockwork { volume: VOLUME, job: &job, timing: &timing },
            Clockwork { volume: VOLUME, job: &job, timing: &still },
        );
        let mut nominal = next(still, now).unwrap();
        let mut due = next(of, nominal - MS).filter(|due| next(still, nominal).is_none_or(|next| *due < next)).unwrap();
        for _ in 0..20 {
            let following = next(still, nominal).unwrap();
            prop_assert!(nominal <= due && due < following, "{keys}: {nominal}, moved to {due}, then {following}");
            let bound = span(timing.jitter);
            prop_assert!(due - nominal < bound || (bound.is_zero() && due == nominal), "{keys}: {due} of {nominal}");
            nominal = following;
            due = next(of, due).unwrap();
        }
    }

    #[test]
    fn what_is_due_stays_until_the_next_change((keys, timing, now) in timings(), given in marks(), part in 0.0..1.0) {
        let job = name();
        let of = Clockwork { volume: VOLUME, job: &job, timing: &timing };
        let mark = mark_at(now, given);
        let due = due_now(of, &mark, now);
        let change = next_change(of, &mark, now).unwrap();
        prop_assert!(change > now, "{keys} {mark:?}: {change} at {now}");
        let share = ((change - now).num_milliseconds() as f64 * part) as i64;
        for at in [now + TimeDelta::milliseconds(share), change - MS] {
            prop_assert_eq!(due_now(of, &mark, at.max(now)), due, "{} {:?}: from {} to {}", keys, mark, now, at);
        }
        // Of all that were missed, the oldest stays.
        if due.is_none() || timing.missed != Missed::All {
            prop_assert_ne!(due_now(of, &mark, change), due, "{} {:?}: from {} to {}", keys, mark, now, change);
        }
        if ahead_until(of, &mark, now).is_some() {
            prop_assert_eq!(due, None);
        }
    }

    #[test]
    fn each_missed_due_time_is_made_up_for_as_its_rule_says((keys, timing, now) in timings(), given in marks()) {
        let job = name();
        let of = Clockwork { volume: VOLUME, job: &job, timing: &timing };
        let mut mark = mark_at(now, given);
        let mut from = mark.last_due_at.max(mark.since).unwrap();
        if mark.last_due_at.is_none() && matches!(timing.schedule, Schedule::Interval(_)) {
            // The newest multiple when it was first seen counts too.
            from = newest(of, from).unwrap().min(newest(of, now).unwrap()) - MS;
        }
        let mut missed = Vec::new();
        let mut at = newest(of, now);
        while let Some(due) = at.filter(|due| *due > from && missed.len() < MISSED_MOST) {
            missed.push(due);
            at = newest(of, due - MS);
        }
        missed.reverse();
        let newest_alone: Vec<_> = missed.last().copied().into_iter().collect();
        let expected = match (mark.last_due_at, &timing.schedule, timing.missed) {
            (None, Schedule::Interval(_), Missed::Once | Missed::Skip) => newest(of, now).into_iter().collect(),
            (_, _, Missed::Once) => newest_alone,
            (_, _, Missed::All) => missed,
            (_, _, Missed::Skip) => {
                newest_alone.into_iter().filter(|due| now - due <= TimeDelta::seconds(60)).collect()
            }
        };
        let mut ran = Vec::new();
        while let Some(due) = due_now(of, &mark, now) {
            ran.push(due);
            mark.last_due_at = Some(due);
            prop_assert!(ran.len() <= MISSED_MOST, "{keys}: no end of it");
        }
        prop_assert_eq!(ran, expected, "{} {:?} at {}", keys, mark, now);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn cron_is_due_when_somebody_who_watches_the_clock_says_so(
        cron in crons(),
        (zone, change) in prop::sample::select(&PLACES[..]),
        days in 0..3_i64,
    ) {
        let Some(timing) = read(&format!("type = \"cron\"; cron = \"{cron}\"; timezone = \"{zone}\"")) else {
            return Ok(());
        };
        let Schedule::Cron { cron: understood, zone } = &timing.schedule else { panic!("{timing:?}") };
        let job = name();
        let of = Clockwork { volume: VOLUME, job: &job, timing: &timing };
        let begin = (at(change) - TimeDelta::days(days)).timestamp();
        let span = begin..begin + 86_400;
        let fields: Vec<&str> = cron.split(' ').collect();
        let elapsed = fields[fields.len() - 5..fields.len() - 3].iter().any(|field| field.contains(['*', '/']));
        let expected = watched(&understood.cron, *zone, span.clone(), elapsed);
        let instant = |at| DateTime::from_timestamp_secs(at).unwrap();
        let mut found = Vec::new();
        let mut last = instant(span.start) - MS;
        while let Some(due) = next(of, last).filter(|due| due.timestamp() < span.end) {
            prop_assert!(due > last, "{cron} in {zone}: {due} is not behind {last}");
            found.push(due.timestamp());
            last = due;
        }
        prop_assert_eq!(&found, &expected, "{} in {}, from {}", cron, zone, instant(span.start));
        let mut last = instant(span.end) - MS;
        for due in expected.iter().rev() {
            prop_assert_eq!(newest(of, last), Some(instant(*due)), "{} in {}, at {}", cron, zone, last);
            last = instant(*due) - MS;
        }
    }
}
