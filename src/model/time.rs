//! Time as an argument, and durations as people write them.

use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, SecondsFormat, Utc};
use serde::{Deserialize, Deserializer, Serializer};

/// The two clocks of one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Time since the machine booted, suspend included (`CLOCK_BOOTTIME`): what leases are judged by.
    pub boot: Duration,
    /// Wall time: for people, for names and for what is due. It may jump.
    pub wall: DateTime<Utc>,
}

/// How durations are written, as messages quote it.
pub const DURATION_RULE: &str = "a number with a unit: 250ms, 30s, 5m, 2h or 1d";
/// How sizes are written, as messages quote it.
pub const SIZE_RULE: &str = "a number of bytes, or one with a unit: 64k, 512m or 2g";

/// Reads a duration such as `250ms`, `30s`, `5m`, `2h`, `1d`; at most 10,000 days. `None` for anything else.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    let unit_ms = match &text[digits..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    let ms = number.checked_mul(unit_ms)?;
    (ms <= 10_000 * 86_400_000).then(|| Duration::from_millis(ms))
}

/// Writes a duration in the largest unit that keeps it whole, so that it reads back.
#[must_use]
pub fn show_duration(span: Duration) -> String {
    let ms = span.as_millis();
    for (unit_ms, unit) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")] {
        if ms >= unit_ms && ms.is_multiple_of(unit_ms) {
            return format!("{}{unit}", ms / unit_ms);
        }
    }
    format!("{ms}ms")
}

/// Reads a size such as `64k`, `512m`, `2g` or a plain number of bytes. `None` for anything else.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let factor = match &text[digits..] {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(factor)
}

/// A time as it stands in names of files that are made seconds apart: `20261121T034156Z`.
#[must_use]
pub fn second_stamp(at: DateTime<Utc>) -> String {
    at.format(SECOND_STAMP).to_string()
}

/// Reads [`second_stamp`]; `None` if it is not exactly one.
#[must_use]
pub fn parse_second_stamp(text: &str) -> Option<DateTime<Utc>> {
    let at = NaiveDateTime::parse_from_str(text, SECOND_STAMP).ok()?.and_utc();
    (second_stamp(at) == text).then_some(at)
}

const SECOND_STAMP: &str = "%Y%m%dT%H%M%SZ";

/// An instant as files carry it: RFC 3339, UTC, milliseconds.
#[must_use]
pub fn rfc3339(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Serde for [`rfc3339`] times.
pub mod utc {
    use super::{DateTime, Deserialize, Deserializer, Serializer, Utc, rfc3339};

    /// Writes an instant as [`rfc3339`] text.
    pub fn serialize<S: Serializer>(at: &DateTime<Utc>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&rfc3339(*at))
    }

    /// Reads any RFC 3339 time.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<DateTime<Utc>, D::Error> {
        DateTime::<Utc>::deserialize(from)
    }
}

/// Serde for optional [`rfc3339`] times; nothing is `null`.
pub mod utc_opt {
    use super::{DateTime, Deserialize, Deserializer, Serializer, Utc, rfc3339};

    /// Writes an instant as [`rfc3339`] text, or `null`.
    pub fn serialize<S: Serializer>(at: &Option<DateTime<Utc>>, to: S) -> Result<S::Ok, S::Error> {
        match at {
            Some(at) => to.serialize_str(&rfc3339(*at)),
            None => to.serialize_none(),
        }
    }

    /// Reads any RFC 3339 time, or `null`.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<DateTime<Utc>>, D::Error> {
        Option::<DateTime<Utc>>::deserialize(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_and_sizes_read_as_people_write_them() {
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("2h"), Some(Duration::from_secs(7_200)));
        for bad in ["", "5", "m", "-1s", "1.5s", "1 s", "1w", "99999999999999999999s", "10001d"] {
            assert_eq!(parse_duration(bad), None, "{bad:?}");
        }
        assert_eq!((parse_size("64k"), parse_size("2g"), parse_size("7")), (Some(65_536), Some(2 << 30), Some(7)));
        for bad in ["", "k", "1t", "1 k", "18446744073709551615g"] {
            assert_eq!(parse_size(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn a_shown_duration_reads_back(ms in 0_u64..=864_000_000_000) {
            let span = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&show_duration(span)), Some(span));
        }
    }
}
