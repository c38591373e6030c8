//! What lies in the inbox, seen and read: the noun that claims are made of.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::ids::{DeviceId, RunId, parse_stamp, stamp};
use super::lease::Lease;
use super::result::{Cause, Status};
use super::trigger::{Target, Trigger};

/// The longest stem, bytes.
pub const STEM_LIMIT: usize = 120;

/// Which folder an entry lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// `Triggers/`: dropped and not yet taken.
    Inbox,
    /// `Triggers/.waiting/`: waits for another attempt.
    Waiting,
    /// Nowhere yet: it is due, and its claim makes the file in `Triggers/.running/`.
    Due,
}

/// Which file: its folder and its name, exactly.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileKey {
    /// The folder.
    pub source: Source,
    /// The name in it, as bytes.
    pub name: Arc<OsStr>,
}

/// What tells one file from another of the same name, and one content from the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    /// The inode.
    pub inode: u64,
    /// The size, bytes.
    pub size: u64,
    /// The last change of the content, nanoseconds since 1970; a time that does not fit is the nearest that does.
    pub modified_ns: i64,
}

/// What is known of the idempotency key of a trigger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySeen {
    /// Nobody has used it.
    Free,
    /// A file names this run, which cannot be found, or no run at all: it no longer counts.
    Stale(Option<RunId>),
    /// This run has it: the trigger is a duplicate, unless it is that run itself.
    Names(RunId),
}

/// A trigger that waits to be claimed.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its file.
    pub key: FileKey,
    /// The content that was read.
    pub id: FileId,
    /// The run it is, or will be.
    pub run: RunId,
    /// The attempt that comes next.
    pub attempt: u32,
    /// The part of the run that is over; `None`: it was never held.
    pub past: Option<Box<Past>>,
    /// What it asks for.
    pub trigger: Arc<Trigger>,
    /// The arguments of `trigger` are not held: they stand in the file.
    pub is_outline: bool,
    /// What is known of its `id`, if it has one.
    pub key_seen: Option<Box<KeySeen>>,
    /// By which devices agree whose it is, where several could take it.
    pub lot: u64,
}

/// What a run that waits for another attempt has behind it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Past {
    /// An attempt of it has left a result: the run is open.
    pub was_started: bool,
    /// How many attempts were tried again for a failure.
    pub retried: u32,
    /// How many attempts in a row ended as `lost`.
    pub losses: u32,
    /// The name it was dropped under, as text; `None`: that of its file.
    pub dropped: Option<Arc<str>>,
    /// Not before this instant, whatever the trigger itself says.
    pub not_before: Option<DateTime<Utc>>,
    /// The attempt before this one, if there was one: where it ran, and how it ended.
    pub last: Option<(DeviceId, Status)>,
}

impl Entry {
    /// The first attempt of a run that nobody dropped.
    #[must_use]
    pub fn due(run: RunId, lot: u64, trigger: Trigger) -> Self {
        Self {
            key: FileKey { source: Source::Due, name: OsStr::new(run.as_str()).into() },
            id: FileId { inode: 0, size: 0, modified_ns: 0 },
            run,
            attempt: 1,
            past: None,
            trigger: Arc::new(trigger),
            is_outline: false,
            key_seen: None,
            lot,
        }
    }

    /// Returns whether an attempt of it has left a result: the run is open.
    #[must_use]
    pub fn was_started(&self) -> bool {
        self.past.as_ref().is_some_and(|past| past.was_started)
    }

    /// Returns how many attempts were tried again for a failure.
    #[must_use]
    pub fn retried(&self) -> u32 {
        self.past.as_ref().map_or(0, |past| past.retried)
    }

    /// Returns how many attempts in a row ended as `lost`.
    #[must_use]
    pub fn losses(&self) -> u32 {
        self.past.as_ref().map_or(0, |past| past.losses)
    }

    /// Returns the instant before which it is not tried again, whatever the trigger itself says.
    #[must_use]
    pub fn not_before(&self) -> Option<DateTime<Utc>> {
        self.past.as_ref()?.not_before
    }

    /// Returns the attempt that comes next.
    #[must_use]
    pub fn lease(&self) -> Lease {
        Lease { run: self.run.clone(), attempt: self.attempt }
    }

    /// What made the run.
    #[must_use]
    pub fn cause(&self) -> Cause {
        self.trigger.origin.as_ref().map_or(Cause::Trigger, |origin| origin.cause)
    }

    /// Returns the name it was dropped under, or would have been.
    #[must_use]
    pub fn dropped(&self) -> Cow<'_, str> {
        let dropped = self.past.as_ref().and_then(|past| past.dropped.as_deref());
        dropped.map_or_else(|| self.key.name.to_string_lossy(), Cow::Borrowed)
    }

    /// The name it was dropped under; `None`: nobody dropped it.
    #[must_use]
    pub fn dropped_name(&self) -> Option<String> {
        self.cause().is_dropped().then(|| self.dropped().into_owned())
    }

    /// What its files are named after.
    #[must_use]
    pub fn stem(&self) -> String {
        match self.key.source {
            Source::Inbox => split_dropped(&self.key.name).0,
            Source::Waiting => Waiting::parse(&self.key.name).map_or_else(|| stem_of(&self.key.name), |name| name.stem),
            Source::Due => match &self.trigger.target {
                Target::Job(job) => job.to_string(),
                Target::Command(_) => stem_of(&self.key.name),
            },
        }
    }
}

/// The stem of a dropped name, and the run id that the name carries, if it carries one.
#[must_use]
pub fn split_dropped(name: &OsStr) -> (String, Option<RunId>) {
    let base = name.as_bytes().strip_suffix(b".json").unwrap_or(name.as_bytes());
    let carried = std::str::from_utf8(base).ok().and_then(|text| {
        let (front, id) = text.rsplit_once('.')?;
        (!front.is_empty()).then(|| RunId::parse(id).map(|id| (front, id)))?
    });
    match carried {
        Some((front, id)) => (stem_of(OsStr::new(front)), Some(id)),
        None => (stem_of(name), None),
    }
}

/// A dropped name without `.json`, safe in any file name: control characters and bytes that are not UTF-8 as `_`, cut at a
/// character boundary to [`STEM_LIMIT`] bytes.
#[must_use]
pub fn stem_of(name: &OsStr) -> String {
    let base = name.as_bytes().strip_suffix(b".json").unwrap_or(name.as_bytes());
    let mut stem = String::new();
    let mut push = |c: char| {
        let c = if c.is_control() || c == '/' { '_' } else { c };
        let fits = stem.len() + c.len_utf8() <= STEM_LIMIT;
        if fits {
            stem.push(c);
        }
        fits
    };
    'chunks: for chunk in base.utf8_chunks() {
        for c in chunk.valid().chars().chain(chunk.invalid().iter().map(|_| '_')) {
            if !push(c) {
                break 'chunks;
            }
        }
    }
    if stem.is_empty() { "_".to_owned() } else { stem }
}

/// Returns the name in `.running/` of the file of a held attempt: `<run_id>.<attempt>.<stem>.json`. The name is the fencing token:
/// freeing the run renames the file, so that a holder that was taken for dead no longer finds it.
#[must_use]
pub fn running_name(lease: &Lease, stem: &str) -> String {
    format!("{}.{}.{stem}.json", lease.run, lease.attempt)
}

/// Reads [`running_name`]: the attempt and the stem. Returns `None` if the name is not exactly one.
#[must_use]
pub fn parse_running(name: &OsStr) -> Option<(Lease, String)> {
    let mut parts = name.to_str()?.strip_suffix(".json")?.splitn(3, '.');
    let run = RunId::parse(parts.next()?)?;
    let attempt = parts.next()?.parse().ok().filter(|&n| n > 0)?;
    Some((Lease { run, attempt }, parts.next()?.to_owned()))
}

/// A name in `.waiting/`: `<not_before>.<run_id>.<attempt>.<stem>.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Not before this instant.
    pub not_before: DateTime<Utc>,
    /// The run.
    pub run: RunId,
    /// The attempt that comes next.
    pub attempt: u32,
    /// What its files are named after.
    pub stem: String,
}

impl Waiting {
    /// The file name.
    #[must_use]
    pub fn name(&self) -> String {
        let mut name = stamp(self.not_before);
        // Writing to a String cannot fail.
        let _ = write!(name, ".{}.{}.{}.json", self.run, self.attempt, self.stem);
        name
    }

    /// Reads a file name; `None` if it is not exactly one.
    #[must_use]
    pub fn parse(name: &OsStr) -> Option<Self> {
        let mut parts = name.to_str()?.strip_suffix(".json")?.splitn(4, '.');
        Some(Self {
            not_before: parse_stamp(parts.next()?)?,
            run: RunId::parse(parts.next()?)?,
            attempt: parts.next()?.parse().ok().filter(|&n| n > 0)?,
            stem: parts.next()?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn os(bytes: &[u8]) -> std::ffi::OsString {
        OsStr::from_bytes(bytes).to_owned()
    }

    #[test]
    fn stems_are_safe_and_short() {
        assert_eq!(stem_of(&os(b"hello.json")), "hello");
        assert_eq!(stem_of(&os(b"a\nb\x1b\xff.json")), "a_b__");
        assert_eq!(stem_of(&os(b".json")), "_");
        let long = format!("{}.json", "é".repeat(124));
        assert_eq!(stem_of(OsStr::new(&long)), "é".repeat(60));
    }

    #[test]
    fn a_name_carries_an_id_only_behind_something() {
        let id = "20261121T034156123Z-k3f9q2";
        assert_eq!(split_dropped(OsStr::new(&format!("a.b.{id}.json"))), ("a.b".into(), RunId::parse(id)));
        assert_eq!(split_dropped(OsStr::new(&format!("{id}.json"))), (id.into(), None));
        assert_eq!(split_dropped(OsStr::new("a.b.json")), ("a.b".into(), None));
    }

    #[test]
    fn names_of_what_runs_and_waits_read_back() {
        let run = RunId::parse("20261121T034156123Z-k3f9q2").unwrap();
        let stem = "a.1.b".to_owned();
        let lease = Lease { run: run.clone(), attempt: 3 };
        let name = running_name(&lease, &stem);
        assert_eq!(parse_running(OsStr::new(&name)), Some((lease, stem.clone())));
        for other in ["a.json", "20261121T034156123Z-k3f9q2.a.1.json", "20261121T034156123Z-k3f9q2.0.a.json"] {
            assert_eq!(parse_running(OsStr::new(other)), None, "{other}");
        }
        let waiting = Waiting { not_before: run.time(), run, attempt: 12, stem };
        assert_eq!(Waiting::parse(OsStr::new(&waiting.name())), Some(waiting));
        assert_eq!(Waiting::parse(OsStr::new("20261121T034156123Z.x.1.a.json")), None);
    }
}
