//! Times as people write and read them: a duration ago or ahead, and how long something is past.

use std::time::Duration;

use chrono::{DateTime, Local, TimeDelta, Utc};

use crate::model::message::quoted;
use crate::model::time::{DURATION_RULE, parse_duration};

/// How instants are written on the command line, as messages quote it.
const TIME_RULE: &str = "an RFC 3339 time with an offset or Z such as 2026-11-21T09:00:00Z, or a duration";

/// An instant, or one told by its distance from now, as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// This instant.
    At(DateTime<Utc>),
    /// This far from now: ago where the past is asked for, ahead where the future is.
    Away(Duration),
}

impl When {
    /// The instant, looking back from `now`.
    pub(super) fn ago(self, now: DateTime<Utc>) -> DateTime<Utc> {
        match self {
            Self::At(at) => at,
            Self::Away(span) => now - delta(span),
        }
    }

    /// The instant, looking ahead from `now`.
    pub(super) fn ahead(self, now: DateTime<Utc>) -> DateTime<Utc> {
        match self {
            Self::At(at) => at,
            Self::Away(span) => now + delta(span),
        }
    }
}

/// Durations that can be written end within chrono's range.
fn delta(span: Duration) -> TimeDelta {
    TimeDelta::from_std(span).unwrap_or(TimeDelta::MAX)
}

/// Reads a [`When`], for the parser of the command line.
pub(super) fn when(text: &str) -> Result<When, String> {
    let at = DateTime::parse_from_rfc3339(text).ok().map(|at| When::At(at.to_utc()));
    let away = || parse_duration(text).map(When::Away);
    at.or_else(away).ok_or_else(|| format!("found {}, expected {TIME_RULE} ({DURATION_RULE})", quoted(text)))
}

/// Reads a duration, for the parser of the command line.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| format!("found {}, expected {DURATION_RULE}", quoted(text)))
}

/// How far an instant is from now: `2 min ago`, `in 3 h`.
pub(super) fn relative(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let seconds = (now - at).num_seconds();
    let (number, unit) = match seconds.unsigned_abs() {
        0 => return "now".to_owned(),
        n @ 1..60 => (n, "s"),
        n @ 60..3_600 => (n / 60, "min"),
        n @ 3_600..86_400 => (n / 3_600, "h"),
        n => (n / 86_400, "d"),
    };
    if seconds > 0 { format!("{number} {unit} ago") } else { format!("in {number} {unit}") }
}

/// An instant in this machine's time zone, and how far it is from now.
pub(super) fn local(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    format!("{} ({})", at.with_timezone(&Local).format("%Y-%m-%d %H:%M:%S"), relative(at, now))
}

/// The same for tables: the time alone where it is of today.
pub(super) fn short(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let (there, here) = (at.with_timezone(&Local), now.with_timezone(&Local));
    let format = if there.date_naive() == here.date_naive() { "%H:%M:%S" } else { "%Y-%m-%d %H:%M" };
    format!("{} ({})", there.format(format), relative(at, now))
}

/// How long something took: `12 ms`, `1.2 s`, `3 min 5 s`, `2 h 4 min`, `3 d 1 h`.
pub(super) fn took(ms: f64) -> String {
    let seconds = (ms / 1_000.0).max(0.0);
    if seconds < 1.0 {
        return format!("{ms:.0} ms");
    }
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative, and a cast of what is too large saturates"
    )]
    let whole = seconds as u64;
    let (large, small, units) = match whole {
        0..3_600 => (whole / 60, whole % 60, ("min", "s")),
        3_600..86_400 => (whole / 3_600, whole % 3_600 / 60, ("h", "min")),
        _ => (whole / 86_400, whole % 86_400 / 3_600, ("d", "h")),
    };
    format!("{large} {} {small} {}", units.0, units.1)
}

/// A span between two instants, as [`took`] shows it.
pub(super) fn between(from: DateTime<Utc>, to: DateTime<Utc>) -> String {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    took((to - from).num_milliseconds() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    #[test]
    fn a_when_is_a_time_or_a_distance() {
        assert_eq!(when("2h").map(|it| it.ago(at(7_200))), Ok(at(0)));
        assert_eq!(when("2h").map(|it| it.ahead(at(0))), Ok(at(7_200)));
        assert_eq!(when("2027-01-15T10:00:00+02:00").map(|it| it.ago(at(0))), Ok(at(0)));
        for bad in ["", "yesterday", "2027-01-15T10:00:00", "2027-01-15", "5", "-1h", "1.5h"] {
            let said = when(bad).unwrap_err();
            assert!(said.contains("expected an RFC 3339 time") && said.contains("30s"), "{bad:?}: {said}");
        }
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert!(duration("90").unwrap_err().contains("\"90\""));
    }

    #[test]
    fn distances_are_told_in_their_largest_unit() {
        for (seconds, text) in [
            (0, "now"),
            (-1, "1 s ago"),
            (-59, "59 s ago"),
            (-60, "1 min ago"),
            (-3_599, "59 min ago"),
            (-3_600, "1 h ago"),
            (-86_400, "1 d ago"),
            (30, "in 30 s"),
            (7_300, "in 2 h"),
        ] {
            assert_eq!(relative(at(seconds), at(0)), text, "{seconds}");
        }
        assert!(local(at(-60), at(0)).ends_with(" (1 min ago)"));
        assert_eq!(short(at(0), at(0)).len(), "10:00:00 (now)".len());
        assert_eq!(short(at(-172_800), at(0)).len(), "2027-01-13 10:00 (2 d ago)".len());
    }

    #[test]
    fn spans_are_told_in_two_units() {
        for (ms, text) in [
            (-5.0, "-5 ms"),
            (12.4, "12 ms"),
            (1_249.0, "1.2 s"),
            (30_000.0, "30.0 s"),
            (185_000.0, "3 min 5 s"),
            (7_440_000.0, "2 h 4 min"),
            (262_800_000.0, "3 d 1 h"),
        ] {
            assert_eq!(took(ms), text, "{ms}");
        }
        assert_eq!(between(at(0), at(65)), "1 min 5 s");
    }
}
