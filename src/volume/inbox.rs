//! The inbox: `Triggers/` and `.waiting/`, read file by file, remembered, and put right by a scan.
//!
//! Any program may write here, at any speed. A JSON object that parses is complete; one that does not is left alone until
//! it has been still for [`SETTLE`]. Nothing here blocks on a FIFO or follows a link.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

use super::disk::{Disk, Kind, Meta};
use super::layout::Layout;
use super::{Context, Error, found, keys, results};
use crate::decide::agenda::lot_of;
use crate::decide::lost::Accepted;
use crate::decide::queue::{Queue, job_name};
use crate::model::config::{SETTLE, TRIGGER_LIMIT};
use crate::model::entry::{Entry, FileId, FileKey, Past, Source, Waiting, parse_running, split_dropped};
use crate::model::ids::RunId;
use crate::model::time::Moment;
use crate::model::trigger::{Refusal, Trigger, parse, parse_own};

/// The longest content of which a copy is kept, bytes.
const SHORT: usize = 4 << 10;
/// The age that the last change of a folder must have when it is listed, so that a later one gives it another date. File systems date
/// by their clock's ticks, and some by whole seconds.
const QUIET: chrono::TimeDelta = chrono::TimeDelta::seconds(3);

/// Whether a name is one of a trigger: it ends in `.json` and does not start with a dot.
#[must_use]
pub fn is_trigger_name(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    bytes.ends_with(b".json") && !bytes.starts_with(b".")
}

/// Returns whether a file in `.waiting` or `.running` is named after a run, whether it can be read or not.
///
/// # Errors
/// What the system said.
pub fn has_file(disk: &dyn Disk, layout: &Layout, run: &RunId) -> Result<bool, Error> {
    let runs = |name: &OsString| parse_running(name).is_some_and(|(lease, _)| lease.run == *run);
    Ok(waiting_attempt(disk, layout, run)?.is_some() || names(disk, &layout.running())?.iter().any(runs))
}

/// Returns the attempt that a file in `.waiting` is for, if one is named after this run.
///
/// # Errors
/// What the system said.
pub fn waiting_attempt(disk: &dyn Disk, layout: &Layout, run: &RunId) -> Result<Option<u32>, Error> {
    let attempt = |name: &OsString| Waiting::parse(name).filter(|waiting| waiting.run == *run).map(|it| it.attempt);
    Ok(names(disk, &layout.waiting())?.iter().find_map(attempt))
}

fn names(disk: &dyn Disk, folder: &Path) -> Result<Vec<OsString>, Error> {
    Ok(found(disk.list(folder)).on("list", folder)?.unwrap_or_default())
}

/// What a look at one name came to.
#[derive(Debug)]
pub enum Look {
    /// A trigger that can be taken.
    Entry(Arc<Entry>),
    /// Nothing is there (any more).
    Gone,
    /// What was known of it still holds.
    Same,
    /// Not yet: it may still be written, or cannot be read now.
    NotYet,
    /// It cannot be taken; as which run it would have been known.
    Refused(RunId, Refusal),
}

/// What one device remembers of the inbox beside the entries that it has read, which its [`Queue`] holds.
#[derive(Debug, Default)]
pub struct Inbox {
    /// What did not parse, and since when it has stood still.
    unsettled: BTreeMap<FileKey, (FileId, Duration)>,
    /// What cannot be read, and why.
    unreadable: BTreeMap<FileKey, String>,
    /// Triggers whose run id another run has: how often they were given another one.
    salts: BTreeMap<FileKey, u32>,
    ignored: BTreeMap<OsString, Duration>,
    /// The folders as they were when they were listed last, if nothing had come or gone shortly before.
    listed: BTreeMap<Source, (FileId, DateTime<Utc>)>,
    /// The newest content, if it is short: of a burst of equal files one copy is kept.
    newest: Option<(Vec<u8>, Arc<Trigger>)>,
}

impl Inbox {
    /// Lists both folders, and returns in order the names that must be looked at: those that came, those that have gone, and those that
    /// could not be taken yet. `known`: what was read and waits. `deep`: all names, where no event would tell of a change.
    ///
    /// A folder in which nothing came or went since it was listed is not listed again, if dates can be trusted: a network file system may
    /// show old ones for a minute.
    ///
    /// # Errors
    /// What the system said.
    pub fn scan(
        &mut self,
        disk: &dyn Disk,
        layout: &Layout,
        known: &Queue,
        now: Moment,
        deep: bool,
        trusts_dates: bool,
    ) -> Result<Vec<FileKey>, Error> {
        let mut to_look: Vec<FileKey> = self.unsettled.keys().chain(self.unreadable.keys()).cloned().collect();
        for source in [Source::Inbox, Source::Waiting] {
            let folder = layout.source(source);
            let dated = disk.stat(&folder).on("look at", &folder)?;
            if !deep && trusts_dates && self.listed.get(&source) == Some(&(dated.id, dated.changed)) {
                continue;
            }
            let names = disk.list(&folder).on("list", &folder)?;
            if source == Source::Inbox {
                self.note_ignored(disk, &folder, &names, now);
            }
            differences(names, known, source, deep, &mut to_look);
            if is_quiet(&dated, now) {
                self.listed.insert(source, (dated.id, dated.changed));
            } else {
                self.listed.remove(&source);
            }
        }
        to_look.sort_unstable();
        to_look.dedup();
        Ok(to_look)
    }

    /// Notes since when there are files that are no triggers.
    fn note_ignored(&mut self, disk: &dyn Disk, folder: &Path, names: &[OsString], now: Moment) {
        let is_ignored = |name: &&OsString| !is_trigger_name(name) && !name.as_bytes().starts_with(b".");
        for name in names.iter().filter(is_ignored) {
            self.ignored.entry(name.clone()).or_insert(now.boot);
        }
        self.ignored.retain(|name, _| disk.stat(&folder.join(name)).is_ok());
    }

    /// Looks at one name. `known`: the content that was read of it and waits.
    ///
    /// # Errors
    /// What the system said, unless it concerns this file alone: then it is [`Look::NotYet`].
    pub fn look(
        &mut self,
        disk: &dyn Disk,
        layout: &Layout,
        key: &FileKey,
        known: Option<FileId>,
        now: Moment,
    ) -> Result<Look, Error> {
        let path = layout.entry(key);
        if known.is_some() && disk.stat(&path).is_ok_and(|meta| known == Some(meta.id)) {
            return Ok(Look::Same);
        }
        let (bytes, meta) = match found(disk.read(&path, TRIGGER_LIMIT)) {
            Ok(Some(read)) => read,
            Ok(None) => {
                self.forget(key);
                return Ok(Look::Gone);
            }
            Err(error) => return Ok(self.not_now(key, &Error { doing: "read", path, source: error })),
        };
        let run = self.run_id(key, &bytes, &meta);
        if let Some(refusal) = wrong_kind(&meta) {
            return Ok(Look::Refused(run, refusal));
        }
        match self.parse(bytes, &meta, key.source == Source::Waiting) {
            Ok(trigger) => {
                let entry = match entry(disk, layout, key, run, meta.id, trigger, now) {
                    Ok(entry) => entry,
                    Err(error) => return Ok(self.not_now(key, &error)),
                };
                self.unsettled.remove(key);
                self.unreadable.remove(key);
                Ok(Look::Entry(Arc::new(entry)))
            }
            Err(refusal) if refusal.unfinished && !self.is_settled(key, meta.id, now.boot) => Ok(Look::NotYet),
            Err(refusal) => Ok(Look::Refused(run, refusal)),
        }
    }

    /// Something that is needed for this file cannot be read: the next scan tries again, and the other files wait for nothing.
    fn not_now(&mut self, key: &FileKey, error: &Error) -> Look {
        self.doubt(key);
        self.unreadable.insert(key.clone(), format!("{error}; hint: {}", error.hint()));
        Look::NotYet
    }

    /// Gives a trigger another run id: its own belongs to another run.
    pub fn salt(&mut self, key: &FileKey) {
        *self.salts.entry(key.clone()).or_default() += 1;
    }

    /// Forgets what was known of a file, so that the next look reads it again.
    pub fn forget(&mut self, key: &FileKey) {
        self.doubt(key);
        self.salts.remove(key);
    }

    /// Has the next scan list the folder of a file whose entry is not held any more, as if it had just come.
    pub fn doubt(&mut self, key: &FileKey) {
        self.listed.remove(&key.source);
        self.unsettled.remove(key);
        self.unreadable.remove(key);
    }

    /// Files that must be looked at again by this time, and when.
    #[must_use]
    pub fn unsettled(&self, now: Duration) -> (Vec<FileKey>, Option<Duration>) {
        let mut due = Vec::new();
        let mut next: Option<Duration> = None;
        for (key, (_, since)) in &self.unsettled {
            let at = *since + SETTLE;
            if at <= now {
                due.push(key.clone());
            } else {
                next = Some(next.map_or(at, |next| next.min(at)));
            }
        }
        (due, next)
    }

    /// Files in the inbox that are not triggers and have lain there for `age`.
    pub fn ignored(&self, now: Duration, age: Duration) -> impl Iterator<Item = &OsStr> {
        let old = self.ignored.iter().filter(move |(_, since)| now.saturating_sub(**since) >= age);
        old.map(|(name, _)| name.as_os_str())
    }

    /// Files that cannot be read, and why.
    pub fn unreadable(&self) -> impl Iterator<Item = (&FileKey, &str)> {
        self.unreadable.iter().map(|(key, why)| (key, why.as_str()))
    }

    fn is_settled(&mut self, key: &FileKey, id: FileId, now: Duration) -> bool {
        match self.unsettled.get(key) {
            Some((known, since)) if *known == id => now.saturating_sub(*since) >= SETTLE,
            Some(_) | None => {
                self.doubt(key);
                self.unsettled.insert(key.clone(), (id, now));
                false
            }
        }
    }

    fn parse(&mut self, bytes: Vec<u8>, meta: &Meta, own: bool) -> Result<Arc<Trigger>, Refusal> {
        if meta.id.size > TRIGGER_LIMIT {
            return Err(too_large(meta.id.size));
        }
        if let Some((newest, trigger)) = &self.newest
            && *newest == bytes
            && (own || trigger.origin.is_none())
        {
            return Ok(Arc::clone(trigger));
        }
        let read = if own { parse_own } else { parse };
        let trigger = Arc::new(read(&bytes)?);
        if bytes.len() <= SHORT {
            self.newest = Some((bytes, Arc::clone(&trigger)));
        }
        Ok(trigger)
    }

    fn run_id(&self, key: &FileKey, bytes: &[u8], meta: &Meta) -> RunId {
        if key.source == Source::Waiting
            && let Some(waiting) = Waiting::parse(&key.name)
        {
            return waiting.run;
        }
        let salt = self.salts.get(key).copied().unwrap_or(0);
        match split_dropped(&key.name).1 {
            Some(carried) if salt == 0 => carried,
            Some(_) | None => derived_id(&key.name, bytes, meta.id.inode, salt, meta.changed),
        }
    }
}

/// The run id of a file whose name carries none. `salt` counts up where an id was met before.
pub(super) fn derived_id(name: &OsStr, bytes: &[u8], inode: u64, salt: u32, at: DateTime<Utc>) -> RunId {
    let mut hash = Sha256::new();
    hash.update(name.as_bytes());
    hash.update([0]);
    hash.update(bytes);
    hash.update(inode.to_le_bytes());
    hash.update(salt.to_le_bytes());
    let hash = hash.finalize();
    RunId::new(at, hash.iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}

/// The run that a file of the inbox is, or will be. `None`: it is gone.
///
/// # Errors
/// What the system said.
pub(super) fn run_in(disk: &dyn Disk, path: &Path, name: &OsStr) -> Result<Option<RunId>, Error> {
    if let Some(carried) = split_dropped(name).1 {
        return Ok(Some(carried));
    }
    let read = found(disk.read(path, TRIGGER_LIMIT)).on("read", path)?;
    Ok(read.map(|(bytes, meta)| derived_id(name, &bytes, meta.id.inode, 0, meta.changed)))
}

/// Returns whether a later change of a folder will give it another date: its last change is some time ago. A folder without a date says nothing.
fn is_quiet(folder: &Meta, now: Moment) -> bool {
    folder.id.modified_ns != 0 && now.wall - folder.changed >= QUIET
}

/// Adds what came to a folder and what has gone from it, or, if `deep`, all that is there and all that has gone.
fn differences(mut names: Vec<OsString>, known: &Queue, source: Source, deep: bool, to_look: &mut Vec<FileKey>) {
    names.retain(|name| is_trigger_name(name));
    names.sort_unstable();
    let mut known = known.files().filter(|key| key.source == source).peekable();
    for name in names {
        while let Some(gone) = known.next_if(|key| *key.name < *name) {
            to_look.push(gone.clone());
        }
        let is_known = known.next_if(|key| *key.name == *name).is_some();
        if deep || !is_known {
            to_look.push(FileKey { source, name: name.into() });
        }
    }
    to_look.extend(known.cloned());
}

fn entry(
    disk: &dyn Disk,
    layout: &Layout,
    key: &FileKey,
    run: RunId,
    id: FileId,
    trigger: Arc<Trigger>,
    now: Moment,
) -> Result<Entry, Error> {
    let lot = lot_of(&run);
    let mut entry =
        Entry { key: key.clone(), id, run, attempt: 1, past: None, trigger, is_outline: false, key_seen: None, lot };
    if let Some(waiting) = Waiting::parse(&key.name).filter(|_| key.source == Source::Waiting) {
        entry.attempt = waiting.attempt;
        entry.past = Some(Box::new(past(disk, layout, &entry, &waiting)?));
        if entry.was_started() {
            return Ok(entry);
        }
    }
    if let Some(id) = &entry.trigger.id {
        entry.key_seen = Some(Box::new(keys::seen(disk, layout, id, &entry.run, now.wall)?));
    }
    Ok(entry)
}

/// Reads what a run has behind it: counts and the dropped name stand in the newest earlier result.
fn past(disk: &dyn Disk, layout: &Layout, entry: &Entry, waiting: &Waiting) -> Result<Past, Error> {
    let not_before = Some(waiting.not_before);
    let Some(outcome) = results::last_before(disk, layout, &job_name(entry), &entry.lease())? else {
        let dropped = Some(format!("{}.json", waiting.stem).into());
        return Ok(Past { dropped, not_before, ..Past::default() });
    };
    let (retried, losses) = Accepted::from(&outcome).counts_after();
    let dropped = outcome.trigger.unwrap_or_else(|| format!("{}.json", waiting.stem));
    let last = Some((outcome.device, outcome.status));
    Ok(Past { was_started: true, retried, losses, dropped: Some(dropped.into()), not_before, last })
}

fn wrong_kind(meta: &Meta) -> Option<Refusal> {
    let hint = match meta.kind {
        Kind::File => return None,
        Kind::Folder => "drop each trigger as a file of its own",
        Kind::Link => "links are never followed: copy the file itself",
        Kind::Other => "write the trigger into a regular file",
    };
    Some(Refusal {
        error: format!("found {}, expected a regular file", meta.kind),
        hint: hint.to_owned(),
        line: None,
        column: None,
        unfinished: false,
    })
}

fn too_large(size: u64) -> Refusal {
    Refusal {
        error: format!("found {size} bytes, expected at most {TRIGGER_LIMIT}"),
        hint: "pass large input as a file that the trigger names".to_owned(),
        line: None,
        column: None,
        // It may still be written: moved once it is still, so that all of it is kept in one place.
        unfinished: true,
    }
}
