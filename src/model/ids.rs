//! Names and ids, each a type of its own, each checked where it enters.

use std::borrow::Borrow;
use std::fmt::{self, Write as _};
use std::sync::Arc;

use chrono::{DateTime, Datelike, NaiveDate, Timelike, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The rule that names of jobs, devices, tags, pools and secrets follow, as messages quote it.
pub const NAME_RULE: &str = "1 to 64 characters of A-Z a-z 0-9 . _ -, the first a letter or a digit";

/// The same as a regular expression.
pub const NAME_PATTERN: &str = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$";

/// A name that breaks [`NAME_RULE`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} name {found:?} is not valid: expected {NAME_RULE}")]
pub struct BadName {
    /// What the name was for: "job", "device", "tag".
    pub what: &'static str,
    /// The name as it was found.
    pub found: String,
}

/// Whether `text` follows [`NAME_RULE`].
#[must_use]
pub fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=64).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks `text` against [`NAME_RULE`].
            ///
            /// # Errors
            /// [`BadName`] with what was found.
            pub fn new(text: &str) -> Result<Self, BadName> {
                if is_name(text) {
                    Ok(Self(Arc::from(text)))
                } else {
                    Err(BadName { what: $what, found: text.chars().take(200).collect() })
                }
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = String::deserialize(from)?;
                Self::new(&text).map_err(serde::de::Error::custom)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                Self::new(text)
            }
        }
    };
}

name_type!(
    /// The name of a job: the stem of its file in `Programs/`, or made from a command trigger's file name.
    JobName,
    "job"
);
name_type!(
    /// The id of a device, unique on a volume; also one of its tags.
    DeviceId,
    "device"
);
name_type!(
    /// Something a device has and a job can require.
    Tag,
    "tag"
);
name_type!(
    /// A pool of `pools.toml`: so many runs over all devices share it.
    PoolName,
    "pool"
);
name_type!(
    /// A secret: the name of the file that holds its value.
    SecretName,
    "secret"
);

/// One life of one device: random, new at every start.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Session(Arc<str>);

impl Session {
    /// A session from 64 random bits.
    #[must_use]
    pub fn from_random(bits: u64) -> Self {
        Self(format!("{bits:016x}").into())
    }

    /// The session as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The id of a run: `20261121T034156123Z-k3f9q2`. It sorts by time and can be read.
///
/// The time is that of the drop (or the due instant) in UTC with milliseconds; the six base-32 characters behind it
/// come from a hash of what every device can see, so that all devices give one trigger one id.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId([u8; RUN_ID_LEN]);

const STAMP_LEN: usize = 19;
const RUN_ID_LEN: usize = STAMP_LEN + 1 + 6;
/// Crockford's base 32: no letter that can be taken for a digit.
const BASE32: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

impl RunId {
    /// The id for an instant and a hash, of which the low 30 bits are used.
    #[must_use]
    pub fn new(at: DateTime<Utc>, hash: u64) -> Self {
        let mut text = [b'-'; RUN_ID_LEN];
        // A year of more than four digits does not fit: it is shown by its first ones.
        for (to, byte) in text.iter_mut().zip(stamp(at).bytes().take(STAMP_LEN)) {
            *to = byte;
        }
        for (to, place) in text[STAMP_LEN + 1..].iter_mut().zip((0..6).rev()) {
            *to = BASE32[(hash >> (place * 5)) as usize & 31];
        }
        Self(text)
    }

    /// Reads an id; `None` if `text` is not exactly one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (at, tail) = text.split_at_checked(STAMP_LEN)?;
        let tail = tail.strip_prefix('-')?;
        let bytes = text.as_bytes().try_into().ok()?;
        (tail.bytes().all(|b| BASE32.contains(&b)) && parse_stamp(at).is_some()).then_some(Self(bytes))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // It holds ASCII alone.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// When the trigger was dropped, or the run was due.
    #[must_use]
    pub fn time(&self) -> DateTime<Utc> {
        parse_stamp(&self.as_str()[..STAMP_LEN]).unwrap_or_default()
    }

    /// The day folder that results, log and processed trigger of this run go to: `yyyy-mm-dd`.
    #[must_use]
    pub fn date(&self) -> String {
        let text = self.as_str();
        format!("{}-{}-{}", &text[..4], &text[4..6], &text[6..8])
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for RunId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for RunId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Self::parse(&text).ok_or_else(|| {
            serde::de::Error::custom(format!("{text:?} is not a run id such as 20261121T034156123Z-k3f9q2"))
        })
    }
}

/// A number from text that is the same on every device, to spread things by; never to keep a secret (FNV-1a, 64 bits).
#[must_use]
pub fn mix(seed: u64, text: &str) -> u64 {
    text.bytes()
        .fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// An instant as file names carry it: `20261121T034156123Z`. It sorts as text, for the years 0 to 9999.
#[must_use]
pub fn stamp(at: DateTime<Utc>) -> String {
    // A leap second is shown by chrono as 1,000 ms and more, which would not read back.
    let at = if at.nanosecond() >= 1_000_000_000 { at.with_nanosecond(999_000_000).unwrap_or(at) } else { at };
    let (date, time) = (at.date_naive(), at.time());
    let mut text = String::with_capacity(STAMP_LEN);
    // Writing to a String cannot fail.
    let _ = write!(text, "{:04}{:02}{:02}", date.year(), date.month(), date.day());
    let _ = write!(text, "T{:02}{:02}{:02}", time.hour(), time.minute(), time.second());
    let _ = write!(text, "{:03}Z", time.nanosecond() / 1_000_000);
    text
}

/// Reads what [`stamp`] wrote; `None` for anything else.
#[must_use]
pub fn parse_stamp(text: &str) -> Option<DateTime<Utc>> {
    let is_shaped = text.len() == STAMP_LEN
        && text.bytes().enumerate().all(|(at, b)| match at {
            8 => b == b'T',
            18 => b == b'Z',
            _ => b.is_ascii_digit(),
        });
    if !is_shaped {
        return None;
    }
    let number = |from: usize, to: usize| text[from..to].parse::<u32>().ok();
    let date = NaiveDate::from_ymd_opt(i32::try_from(number(0, 4)?).ok()?, number(4, 6)?, number(6, 8)?)?;
    date.and_hms_milli_opt(number(9, 11)?, number(11, 13)?, number(13, 15)?, number(15, 18)?).map(|at| at.and_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_id_reads_back_and_sorts_by_time() {
        let early = DateTime::parse_from_rfc3339("2026-11-21T03:41:56.123Z").unwrap().to_utc();
        let late = early + chrono::TimeDelta::milliseconds(1);
        let (a, b) = (RunId::new(early, u64::MAX), RunId::new(late, 0));
        assert_eq!(a.as_str(), "20261121T034156123Z-zzzzzz");
        assert_eq!(RunId::parse(a.as_str()), Some(a.clone()));
        assert_eq!((a.time(), a.date().as_str()), (early, "2026-11-21"));
        assert!(a < b);
    }

    #[test]
    fn what_is_not_a_run_id_is_refused() {
        for text in [
            "",
            "20261121T034156123Z-k3f9q",
            "20261121T034156123Z-k3f9q22",
            "20261321T034156123Z-k3f9q2",
            "20261121T034156123Z-K3F9Q2",
            "20261121t034156123Z-k3f9q2",
            "2026112éT034156123Z-k3f9q2",
        ] {
            assert_eq!(RunId::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn names_follow_the_rule() {
        assert!(is_name("a") && is_name("9.x_-") && is_name(&"a".repeat(64)));
        for bad in ["", "-a", ".a", "a b", "ä", "a/b", &"a".repeat(65)] {
            assert!(!is_name(bad), "{bad:?}");
        }
        let message = JobName::new("a b").unwrap_err().to_string();
        assert!(message.contains("\"a b\"") && message.contains(NAME_RULE));
    }
}
