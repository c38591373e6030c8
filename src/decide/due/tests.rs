//! What is due when: rules by example. `laws` holds every schedule to its laws, and `tests/it/due.rs` to tables
//! over 20 years.

use super::*;
use crate::model::job::{self, JobType};

mod laws;

const VOLUME: &str = "5f0c1d";

fn name() -> JobName {
    JobName::new("demo").unwrap()
}

/// The timing of a job file; `None` if it is refused.
fn read(keys: &str) -> Option<Timing> {
    let job = job::parse(&name(), "demo.toml", &format!("file = \"a\"\n{}", keys.replace("; ", "\n"))).ok()?;
    match job.kind {
        JobType::Timed(timing) => Some(timing),
        JobType::Trigger | JobType::Always(_) | JobType::Idle(_) => None,
    }
}

fn timing(keys: &str) -> Timing {
    read(keys).unwrap_or_else(|| panic!("{keys}"))
}

fn at(text: &str) -> DateTime<Utc> {
    let full = format!("{text}{}Z", &"2000-01-01T00:00:00"[text.len().min(19)..]);
    DateTime::parse_from_rfc3339(&full).unwrap_or_else(|e| panic!("{full}: {e}")).to_utc()
}

/// A job that was first seen at `since` and ran its due time `last`.
fn mark(since: &str, last: Option<&str>) -> JobMark {
    JobMark { since: Some(at(since)), last_due_at: last.map(at), ..JobMark::default() }
}

/// The first of the due times behind `from`, one after the other, and the same backwards.
#[track_caller]
fn check_grid(keys: &str, from: &str, expected: &[&str]) {
    let (timing, job) = (timing(keys), name());
    let of = Clockwork { volume: VOLUME, job: &job, timing: &timing };
    let mut last = at(from);
    let mut before = newest(of, last);
    for due in expected {
        let found = next(of, last);
        assert_eq!(found, Some(at(due)), "{keys}: next behind {last}");
        last = at(due);
        assert_eq!(newest(of, last), Some(last), "{keys}: newest at {last}");
        assert_eq!(newest(of, last - MS), before, "{keys}: newest shortly before {last}");
        before = Some(last);
    }
}

/// Rows of (mark, now, what is due, when that changes).
#[track_caller]
fn check_due(keys: &str, rows: &[(JobMark, &str, Option<&str>, Option<&str>)]) {
    let (timing, job) = (timing(keys), name());
    let of = Clockwork { volume: VOLUME, job: &job, timing: &timing };
    for (mark, now, due, change) in rows {
        let what = format!("{keys}, {now}, {mark:?}");
        assert_eq!(due_now(of, mark, at(now)), due.map(at), "{what}");
        assert_eq!(next_change(of, mark, at(now)), change.map(at), "{what}");
    }
}

#[test]
fn a_local_time_is_its_first_moment_or_the_end_of_the_gap() {
    for (zone, local, expected) in [
        ("Europe/Berlin", "2026-03-29T02:30:00", "2026-03-29T01:00"),
        ("Europe/Berlin", "2026-10-25T02:30:00", "2026-10-25T00:30"),
        ("Europe/Berlin", "2026-10-25T03:00:00", "2026-10-25T02:00"),
        ("Africa/Cairo", "2026-04-24T00:00:00", "2026-04-23T22:00"),
        ("Australia/Lord_Howe", "2026-10-04T02:15:00", "2026-10-03T15:30"),
        ("Australia/Lord_Howe", "2026-04-05T01:45:00", "2026-04-04T14:45"),
        // Whole days that never were.
        ("Pacific/Apia", "2011-12-30T09:00:00", "2011-12-30T10:00"),
        ("Pacific/Kwajalein", "1993-08-21T09:00:00", "1993-08-21T12:00"),
        // The gap ends on the next day.
        ("America/Nuuk", "2026-03-28T23:30:00", "2026-03-29T01:00"),
        ("UTC", "2026-03-29T02:30:00", "2026-03-29T02:30"),
    ] {
        let found = first_moment(zone.parse().unwrap(), local.parse().unwrap());
        assert_eq!(found, Some(at(expected)), "{local} in {zone}");
    }
}

#[test]
fn fixed_times_of_cron_are_due_once_a_day_whatever_the_clocks_do() {
    for (zone, cron, from, expected) in [
        // Lists and ranges are fixed times; those that fall together are one.
        ("America/New_York", "15,45 1-3 * * *", "2026-03-08T06:45", &["2026-03-08T07:00", "2026-03-08T07:15"][..]),
        ("America/New_York", "15,45 1-3 * * *", "2026-11-01T05:15", &["2026-11-01T05:45", "2026-11-01T07:15"]),
        // In the second pass, what came in the first is over.
        ("America/New_York", "15,45 1 * * *", "2026-11-01T06:10", &["2026-11-02T06:15"]),
        // Any second of a fixed minute is fixed too.
        (
            "Europe/Berlin",
            "*/20 30 2 * * *",
            "2026-10-24T23:00",
            &["2026-10-25T00:30", "2026-10-25T00:30:20", "2026-10-25T00:30:40", "2026-10-26T01:30"],
        ),
        ("Europe/Berlin", "*/20 30 2 * * *", "2026-03-28T12:00", &["2026-03-29T01:00", "2026-03-30T00:30"]),
        // Gaps of more than two hours.
        ("Pacific/Apia", "30 2 * * *", "2011-12-29T12:30", &["2011-12-30T10:00", "2011-12-30T12:30"]),
        ("Pacific/Apia", "0 0 30 12 *", "2010-12-30T11:00", &["2011-12-30T10:00", "2012-12-29T10:00"]),
        ("Antarctica/Casey", "30 2 * * *", "2011-10-26T18:30", &["2011-10-27T18:00", "2011-10-28T15:30"]),
        // A gap that ends on a day of another name.
        ("America/Nuuk", "30 23 * * 6", "2026-03-22T01:30", &["2026-03-29T01:00", "2026-04-05T00:30"]),
    ] {
        check_grid(&format!("type = \"cron\"; cron = \"{cron}\"; timezone = \"{zone}\""), from, expected);
    }
}

#[test]
fn stars_and_steps_of_cron_follow_what_clocks_show() {
    for (zone, cron, from, expected) in [
        ("America/New_York", "0 * * * *", "2026-03-08T06:00", &["2026-03-08T07:00", "2026-03-08T08:00"][..]),
        ("America/New_York", "30 * * * *", "2026-11-01T05:30", &["2026-11-01T06:30", "2026-11-01T07:30"]),
        // Nothing in a gap.
        ("America/New_York", "*/30 2 * * *", "2026-03-07T07:30", &["2026-03-09T06:00"]),
        // Both passes.
        ("America/New_York", "*/40 1 * * *", "2026-11-01T05:00", &["2026-11-01T05:40", "2026-11-01T06:00"]),
        // A step in a list, and one of 1.
        ("America/New_York", "0-30/30,40-41/1 1 * * *", "2026-11-01T05:40", &["2026-11-01T05:41", "2026-11-01T06:00"]),
        ("America/New_York", "15 1-1/1 * * *", "2026-11-01T05:15", &["2026-11-01T06:15", "2026-11-02T06:15"]),
        ("Pacific/Apia", "0 */6 * * *", "2011-12-30T04:00", &["2011-12-30T10:00", "2011-12-30T16:00"]),
        ("UTC", "* * 29 2 *", "2096-02-29T23:59", &["2104-02-29T00:00"]),
    ] {
        check_grid(&format!("type = \"cron\"; cron = \"{cron}\"; timezone = \"{zone}\""), from, expected);
    }
}

#[test]
fn an_interval_is_a_grid_since_1970_that_does_not_drift() {
    check_grid("type = \"interval\"; interval = \"7s\"", "1970-01-01", &["1970-01-01T00:00:07", "1970-01-01T00:00:14"]);
    check_grid(
        "type = \"interval\"; interval = \"90m\"",
        "2026-11-21T00:00:01",
        &["2026-11-21T01:30", "2026-11-21T03:00"],
    );
    check_grid(
        "type = \"interval\"; interval = \"1500ms\"",
        "1969-12-31T23:59:59",
        &["1970-01-01", "1970-01-01T00:00:01.500"],
    );
    let ran_late = mark("2026-11-21", Some("2026-11-21T09:00"));
    let rows = [(ran_late, "2026-11-21T09:59:59.999", None, Some("2026-11-21T10:00"))];
    check_due("type = \"interval\"; interval = \"1h\"", &rows);
}

#[test]
fn what_was_never_seen_or_is_paused_is_not_due() {
    let paused = JobMark { paused: true, ..mark("2026-11-01", Some("2026-11-20T09:00")) };
    for keys in ["type = \"daily\"; time = \"09:00\"", "type = \"interval\"; interval = \"1h\""] {
        let rows =
            [(JobMark::default(), "2026-11-21T12:00", None, None), (paused.clone(), "2026-11-21T12:00", None, None)];
        check_due(keys, &rows);
    }
    // Enabled again at noon: what was due before is not missed.
    let again = mark("2026-11-21T12:00", Some("2026-11-20T09:00"));
    check_due(
        "type = \"daily\"; time = \"09:00\"; missed = \"all\"",
        &[
            (again.clone(), "2026-11-21T12:00", None, Some("2026-11-22T09:00")),
            (again, "2026-11-22T10:00", Some("2026-11-22T09:00"), Some("2026-11-23T09:00")),
        ],
    );
    let new = mark("2026-11-21T12:00", None);
    check_due(
        "type = \"daily\"; time = \"09:00\"",
        &[
            (new.clone(), "2026-11-22T08:59:59.999", None, Some("2026-11-22T09:00")),
            (new, "2026-11-22T09:00", Some("2026-11-22T09:00"), Some("2026-11-23T09:00")),
        ],
    );
}

#[test]
fn an_interval_that_never_ran_is_due_at_once() {
    for missed in ["once", "all", "skip"] {
        check_due(
            &format!("type = \"interval\"; interval = \"1d\"; missed = \"{missed}\""),
            &[
                (mark("2026-11-21T12:00", None), "2026-11-21T12:00", Some("2026-11-21"), Some("2026-11-22")),
                // Another device, whose time is ahead of this one's by seconds, has first seen it.
                (mark("2026-11-22T00:00:05", None), "2026-11-21T23:59:59", Some("2026-11-22"), Some("2026-11-22")),
                // Also where the clock was set back since it was first seen.
                (mark("2031-11-21", None), "2026-11-21T12:00", Some("2026-11-21"), Some("2026-11-22")),
                (mark("2026-11-21T12:00", Some("2026-11-21")), "2026-11-21T12:01", None, Some("2026-11-22")),
            ],
        );
    }
}

#[test]
fn after_days_of_suspend_what_was_missed_follows_its_rule() {
    let daily = "type = \"daily\"; time = \"09:00\"";
    let last = || mark("2026-11-01", Some("2026-11-10T09:00"));
    check_due(daily, &[(last(), "2026-11-20T12:00", Some("2026-11-20T09:00"), Some("2026-11-21T09:00"))]);
    check_due(
        &format!("{daily}; missed = \"all\""),
        &[
            (last(), "2026-11-20T12:00", Some("2026-11-11T09:00"), Some("2026-11-21T09:00")),
            (
                mark("2026-11-01", Some("2026-11-19T09:00")),
                "2026-11-20T12:00",
                Some("2026-11-20T09:00"),
                Some("2026-11-21T09:00"),
            ),
            (mark("2026-11-01", Some("2026-11-20T09:00")), "2026-11-20T12:00", None, Some("2026-11-21T09:00")),
            // 100 at most: the oldest of them.
            (mark("2020-01-01", None), "2026-11-20T12:00", Some("2026-08-13T09:00"), Some("2026-11-21T09:00")),
        ],
    );
    check_due(
        &format!("{daily}; missed = \"skip\""),
        &[
            (last(), "2026-11-20T12:00", None, Some("2026-11-21T09:00")),
            (last(), "2026-11-20T09:00", Some("2026-11-20T09:00"), Some("2026-11-20T09:01:00.001")),
            (last(), "2026-11-20T09:01", Some("2026-11-20T09:00"), Some("2026-11-20T09:01:00.001")),
            (last(), "2026-11-20T09:01:00.001", None, Some("2026-11-21T09:00")),
            (mark("2026-11-01", Some("2026-11-20T09:00")), "2026-11-20T09:00:30", None, Some("2026-11-21T09:00")),
        ],
    );
}

#[test]
fn after_the_clock_was_set_back_nothing_is_due_twice_and_it_says_until_when() {
    let keys = "type = \"daily\"; time = \"09:00\"";
    let (timing, job) = (timing(keys), name());
    let of = Clockwork { volume: VOLUME, job: &job, timing: &timing };
    // An hour back, over a due time.
    let ran = mark("2026-11-01", Some("2026-11-20T09:00"));
    check_due(
        keys,
        &[
            (ran.clone(), "2026-11-20T08:30", None, Some("2026-11-21T09:00")),
            (ran.clone(), "2026-11-20T09:10", None, Some("2026-11-21T09:00")),
            (ran.clone(), "2026-11-21T09:00", Some("2026-11-21T09:00"), Some("2026-11-22T09:00")),
        ],
    );
    assert_eq!(ahead_until(of, &ran, at("2026-11-20T08:30")), Some(at("2026-11-20T09:00")));
    assert_eq!(ahead_until(of, &ran, at("2026-11-20T09:00")), None);
    // By years: silent until then, and every answer says so.
    let (far, seen_far) = (mark("2026-11-01", Some("2099-06-01T09:00")), mark("2099-06-01", None));
    for missed in ["once", "all", "skip"] {
        let keys = format!("{keys}; missed = \"{missed}\"");
        check_due(&keys, &[(far.clone(), "2026-11-20T12:00", None, Some("2099-06-02T09:00"))]);
        check_due(&keys, &[(seen_far.clone(), "2026-11-20T12:00", None, Some("2099-06-01T09:00"))]);
    }
    assert_eq!(ahead_until(of, &far, at("2026-11-20T12:00")), Some(at("2099-06-01T09:00")));
    assert_eq!(ahead_until(of, &seen_far, at("2026-11-20T12:00")), Some(at("2099-06-01")));
    let told = |mark: &JobMark, now| upcoming(of, mark, at(now)).take(2).collect::<Vec<_>>();
    assert_eq!(told(&far, "2026-11-20T12:00"), [at("2099-06-02T09:00"), at("2099-06-03T09:00")]);
    assert_eq!(told(&seen_far, "2026-11-20T12:00"), [at("2099-06-01T09:00"), at("2099-06-02T09:00")]);
    assert_eq!(told(&ran, "2026-11-20T08:30"), [at("2026-11-21T09:00"), at("2026-11-22T09:00")]);
    assert_eq!(
        told(&ran, "2026-11-23T10:00"),
        [at("2026-11-23T09:00"), at("2026-11-24T09:00")],
        "what is due now first"
    );
    assert_eq!(told(&JobMark::default(), "2026-11-20T12:00"), [at("2026-11-21T09:00"), at("2026-11-22T09:00")]);
    assert_eq!(ahead_until(of, &JobMark { paused: true, ..far }, at("2026-11-20T12:00")), None);
    let interval = self::timing("type = \"interval\"; interval = \"1h\"");
    let of = Clockwork { timing: &interval, ..of };
    assert_eq!(ahead_until(of, &seen_far, at("2026-11-20T12:00")), None, "it is due at once");
}

#[test]
fn a_window_may_cross_midnight_or_lie_in_a_gap() {
    let job = name();
    let moment = |keys: &str, day_begin: &str, day_end: &str| {
        let timing = timing(&format!("type = \"random_daily\"; {keys}"));
        let of = Clockwork { volume: VOLUME, job: &job, timing: &timing };
        let due = next(of, at(day_begin) - MS).unwrap();
        assert!((at(day_begin)..at(day_end)).contains(&due), "{keys}: {due}");
        assert_eq!(newest(of, at(day_end) - MS), Some(due), "{keys}");
        assert_eq!(newest(of, due - MS).map(|before| before < at(day_begin)), Some(true), "{keys}: two in one window");
    };
    let midnight = "after_time = \"22:00\"; before_time = \"02:00\"; timezone = \"Europe/Berlin\"";
    moment(midnight, "2026-11-20T21:00", "2026-11-21T01:00");
    // An hour shorter, and an hour longer: to the first time that clocks show 02:00 ...
    let longer = "after_time = \"22:00\"; before_time = \"03:30\"; timezone = \"Europe/Berlin\"";
    moment(longer, "2026-03-28T21:00", "2026-03-29T01:30");
    moment(longer, "2026-10-24T20:00", "2026-10-25T02:30");
    moment(midnight, "2026-10-24T20:00", "2026-10-25T00:00");
    // ... nearly a whole day ...
    moment("after_time = \"00:00\"; before_time = \"23:59:59\"", "2026-11-20", "2026-11-20T23:59:59");
    moment("after_time = \"12:00\"; before_time = \"11:59:59\"", "2026-11-20T12:00", "2026-11-21T11:59:59");
    // ... and no length at all: at the first moment behind the gap.
    check_grid(
        "type = \"random_daily\"; after_time = \"02:10\"; before_time = \"02:50\"; timezone = \"Europe/Berlin\"",
        "2026-03-28T12:00",
        &["2026-03-29T01:00"],
    );
}

#[test]
fn jitter_is_spread_over_its_bound_or_over_the_gap_and_each_job_has_its_own() {
    let (job, other) = (name(), JobName::new("other").unwrap());
    for (keys, room) in [
        ("type = \"interval\"; interval = \"1h\"; jitter = \"10m\"", 600_000),
        // Longer than the minute between two due times.
        ("type = \"cron\"; cron = \"* * * * *\"; jitter = \"40d\"", 60_000),
    ] {
        let timing = timing(keys);
        let of = Clockwork { volume: VOLUME, job: &job, timing: &timing };
        let mut shares = [0_u32; 8];
        let (mut due, mut same) = (at("2026-11-21") - MS, 0);
        for _ in 0..8_000 {
            due = next(of, due).unwrap();
            shares[usize::try_from(due.timestamp_millis() % room * 8 / room).unwrap()] += 1;
            same += u32::from(newest(Clockwork { job: &other, ..of }, due) == Some(due));
        }
        // 1,000 each; one part strays by 150 once in a million.
        assert!(shares.iter().all(|share| (850..1_150).contains(share)), "{keys}: {shares:?}");
        assert!(same < 10, "{keys}: {same} due times of another job are the same");
    }
}

#[test]
fn a_run_is_named_by_volume_job_and_due_time() {
    let (job, other, due) = (name(), JobName::new("other").unwrap(), at("2026-11-21T09:00"));
    let run = run_of(VOLUME, &job, due);
    assert_eq!((run.time(), run.as_str()), (due, "20261121T090000000Z-54x07k"), "devices of all versions agree on it");
    for another in [run_of("other", &job, due), run_of(VOLUME, &other, due), run_of(VOLUME, &job, due + MS)] {
        assert_ne!(run, another);
    }
    assert_ne!(hash("ab", &job, "c"), hash("a", &job, "bc"));
}

#[test]
fn the_ends_of_time_are_no_due_times_and_no_panic() {
    let job = name();
    for keys in [
        "type = \"daily\"; time = \"09:00\"; timezone = \"Pacific/Apia\"; jitter = \"1d\"",
        "type = \"random_daily\"; after_time = \"22:00\"; before_time = \"02:00\"; timezone = \"America/New_York\"",
        "type = \"interval\"; interval = \"9999d\"; jitter = \"1d\"",
        "type = \"cron\"; cron = \"*/5 * * * *\"; timezone = \"Europe/Berlin\"; jitter = \"1d\"",
        "type = \"cron\"; cron = \"0 0 29 2 *\"; timezone = \"Asia/Tokyo\"; jitter = \"9999d\"",
    ] {
        for missed in ["once", "all", "skip"] {
            let timing = timing(&format!("{keys}; missed = \"{missed}\""));
            let of = Clockwork { volume: VOLUME, job: &job, timing: &timing };
            let ends = [DateTime::<Utc>::MIN_UTC, DateTime::UNIX_EPOCH, at("5000-01-01"), DateTime::<Utc>::MAX_UTC];
            for now in ends {
                for near in [TimeDelta::zero(), MS, TimeDelta::days(1), TimeDelta::days(5)] {
                    for now in [now.checked_sub_signed(near), now.checked_add_signed(near)].into_iter().flatten() {
                        let _ = (newest(of, now), next(of, now));
                        for since in ends {
                            let mark = JobMark { since: Some(since), ..JobMark::default() };
                            let _ = (due_now(of, &mark, now), next_change(of, &mark, now));
                        }
                    }
                }
            }
        }
    }
}
