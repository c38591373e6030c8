//! Looks whether a folder can be what the product needs: locks that exclude, renames that are atomic, events that arrive.
//!
//! Everything is tried with what the product itself does there, in a scratch folder that no device looks into. It promises to remove
//! what it makes, also when a look fails; what a probe that was killed has left, the next one removes.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::Notify;

use super::atomic::{Temporary, temporary_session, write_new, write_over};
use super::disk::{Disk, Kind};
use super::layout::Layout;
use super::os::{OsDisk, inode_of, remove_tree, renames_at_once};
use super::watch::{Mailbox, Watch};
use super::{Context, Error};
use crate::model::ids::Session;

/// How often a lock changes hands.
const HANDS: u32 = 20;
/// How often a document is replaced, and at least looked at meanwhile.
const REPLACED: u32 = 200;
/// How long that may take: a slow disk replaces it less often.
const REPLACING: Duration = Duration::from_secs(1);
/// How large the document is, bytes.
const DOCUMENT: usize = 8_192;
/// How old a scratch folder is whose probe is surely over.
const OLD: TimeDelta = TimeDelta::hours(1);

/// A folder for probes, hidden in `Common/`. It is removed with everything in it when it is dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    is_there: bool,
}

impl Scratch {
    /// Makes it, and removes those that were left behind.
    ///
    /// # Errors
    /// What the system said.
    pub fn new(disk: &dyn Disk, layout: &Layout, session: &Session) -> Result<Self, Error> {
        Self::sweeping(disk, layout, session, OLD)
    }

    fn sweeping(disk: &dyn Disk, layout: &Layout, session: &Session, old: TimeDelta) -> Result<Self, Error> {
        let path = layout.common.join(format!(".{session}.0.tmp.d"));
        disk.make_folders(&path).on("make the folder", &path)?;
        let made = Self { path, is_there: true };
        let now = disk.stat(&made.path).on("look at", &made.path)?.changed;
        for name in disk.list(&layout.common).unwrap_or_default() {
            let is_scratch = name
                .to_str()
                .and_then(|name| name.strip_suffix(".d"))
                .is_some_and(|it| temporary_session(it).is_some());
            let path = layout.common.join(&name);
            let is_old = disk
                .stat(&path)
                .is_ok_and(|meta| meta.kind == Kind::Folder && path != made.path && now - meta.changed > old);
            if is_scratch && is_old {
                // Whoever can removes it; it is in nobody's way.
                let _ = remove_tree(&path);
            }
        }
        Ok(made)
    }

    /// A place in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Removes it.
    ///
    /// # Errors
    /// What the system said.
    pub fn remove(mut self) -> Result<(), Error> {
        self.is_there = false;
        remove_tree(&self.path).on("remove", &self.path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.is_there
            && let Err(error) = remove_tree(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove what was made to look");
        }
    }
}

/// What came of a look that did not come out well.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// The folder does not do what it must.
    #[error("{0}")]
    Fault(String),
    /// It could not be looked at, for a reason that says nothing about it.
    #[error("{why}")]
    Untried {
        /// Why.
        why: String,
        /// What to do about that.
        hint: String,
    },
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        let is_closed = [ErrorKind::ReadOnlyFilesystem, ErrorKind::PermissionDenied].contains(&error.source.kind());
        if error.is_full() || is_closed {
            Self::Untried { why: error.to_string(), hint: error.hint().to_owned() }
        } else {
            Self::Fault(error.to_string())
        }
    }
}

fn fault<T>(what: &str) -> Result<T, Trouble> {
    Err(Trouble::Fault(what.to_owned()))
}

/// Another process that wants the same lock.
pub trait Rival {
    /// Tries to take the lock; `false`: it was refused.
    ///
    /// # Errors
    /// Why there is no answer.
    fn lock(&mut self) -> Result<bool, Trouble>;

    /// Gives it back.
    ///
    /// # Errors
    /// Why there is no answer.
    fn unlock(&mut self) -> Result<(), Trouble>;

    /// Ends by SIGKILL, with the lock in its hands.
    ///
    /// # Errors
    /// As the system says.
    fn die(&mut self) -> Result<(), Trouble>;
}

/// Whether a lock has one holder at a time, passes from process to process, and ends with its holder's life.
///
/// # Errors
/// What it does instead.
pub fn locks_exclude(disk: &dyn Disk, path: &Path, rival: &mut dyn Rival) -> Result<(), Trouble> {
    const BOTH: &str = "two processes held one lock at once";
    let try_lock = || disk.lock(path).on("lock", path);
    for _ in 0..HANDS {
        let Some(guard) = try_lock()? else { return fault("a lock that is free was refused") };
        if rival.lock()? {
            return fault(BOTH);
        }
        drop(guard);
        if !rival.lock()? {
            return fault("a lock that was given back was refused to another process");
        }
        if try_lock()?.is_some() {
            return fault(BOTH);
        }
        rival.unlock()?;
    }
    if !rival.lock()? {
        return fault("a lock that is free was refused to another process");
    }
    rival.die()?;
    if try_lock()?.is_none() {
        return fault("the lock of a process that was killed stays held");
    }
    Ok(())
}

/// Whether a rename that is to replace nothing replaces nothing. `true`: in one step; `false`: the system does not know such a rename,
/// so that the product looks first and renames then.
///
/// # Errors
/// What it does instead.
pub fn renames_refuse(disk: &dyn Disk, folder: &Path) -> Result<bool, Trouble> {
    let [first, second, third] = ["first", "second", "third"].map(|name| folder.join(name));
    for (path, text) in [(&first, b"one"), (&second, b"two")] {
        disk.create(path, text).on("write", path)?;
    }
    let refused = disk.rename_new(&first, &second).is_err_and(|error| error.kind() == ErrorKind::AlreadyExists);
    let is_kept = |path: &Path, text: &[u8]| disk.read(path, 10).is_ok_and(|(bytes, _)| bytes == text);
    if !refused || !is_kept(&first, b"one") || !is_kept(&second, b"two") {
        return fault("a rename replaced a file that was there");
    }
    Ok(renames_at_once(&first, &third).on("rename", &first)?)
}

/// Whether a reader that looks again and again while a document is replaced always sees a whole one. How often it looked.
///
/// # Errors
/// What it saw instead.
pub fn replaces_whole(disk: &dyn Disk, names: &mut Temporary, path: &Path) -> Result<u32, Trouble> {
    let documents = [vec![b'a'; DOCUMENT], vec![b'b'; DOCUMENT]];
    let mut write = |round: u32| write_over(disk, names, path, &documents[usize::from(round % 2 == 1)]);
    write(0)?;
    let (looks, is_over) = (AtomicU32::new(0), AtomicBool::new(false));
    let until = disk.boot() + REPLACING;
    let (written, read) = std::thread::scope(|threads| {
        let reader = threads.spawn(|| {
            let seen = look_until(&is_over, &looks, path);
            is_over.store(true, Ordering::Release);
            seen
        });
        let mut round = 0;
        let mut written = Ok(());
        while written.is_ok()
            && !is_over.load(Ordering::Acquire)
            && (round < 2 || disk.boot() < until)
            && (round < REPLACED || looks.load(Ordering::Acquire) < REPLACED)
        {
            round += 1;
            written = write(round);
        }
        is_over.store(true, Ordering::Release);
        (written, reader.join().unwrap_or_else(|_| fault("the reader ended before its time")))
    });
    written?;
    read?;
    Ok(looks.load(Ordering::Acquire))
}

fn look_until(is_over: &AtomicBool, looks: &AtomicU32, path: &Path) -> Result<(), Trouble> {
    let disk = OsDisk::new();
    loop {
        let (bytes, _) = disk
            .read(path, DOCUMENT as u64 * 2)
            .map_err(|error| Trouble::Fault(format!("while a file was replaced, a reader did not find it: {error}")))?;
        if bytes.len() != DOCUMENT || bytes.iter().any(|byte| *byte != bytes[0]) {
            return fault("while a file was replaced, a reader saw half of it");
        }
        looks.fetch_add(1, Ordering::AcqRel);
        if is_over.load(Ordering::Acquire) {
            return Ok(());
        }
    }
}

/// Whether a trigger that is dropped into a folder of the volume gives an event to who watches. `pause` lets a moment pass.
///
/// # Errors
/// Why none comes.
pub fn events_arrive(
    disk: &dyn Disk,
    names: &mut Temporary,
    scratch: &Scratch,
    patience: Duration,
    mut pause: impl FnMut(),
) -> Result<(), Trouble> {
    // A volume within the volume: no device takes what is dropped there.
    let layout = Layout { common: scratch.path("events"), programs: scratch.path("events").join("Programs") };
    let (folder, path) = (layout.triggers(), layout.triggers().join("probe.json"));
    disk.make_folders(&folder).on("make the folder", &folder)?;
    let mailbox = Arc::new(Mailbox::default());
    let mut watch = Watch::start(&layout, Arc::clone(&mailbox), Arc::new(Notify::new())).map_err(Trouble::Fault)?;
    watch.renew(inode_of).map_err(Trouble::Fault)?;
    write_new(disk, names, &path, b"{}")?;
    let until = disk.boot() + patience;
    loop {
        let seen = mailbox.take();
        if seen.inbox || !seen.names.is_empty() {
            return Ok(());
        }
        if disk.boot() >= until {
            return fault(&format!("no file event came within {} s", patience.as_secs()));
        }
        pause();
    }
}

/// What time the volume has: the change time of a file that is made now.
///
/// # Errors
/// What the system said.
pub fn time_of(disk: &dyn Disk, path: &Path) -> Result<DateTime<Utc>, Error> {
    disk.create(path, b"").on("write", path)?;
    disk.stat(path).map(|meta| meta.changed).on("look at", path)
}

/// Whether a file can be made in a folder, and removed again. `false`: there is no such folder.
///
/// # Errors
/// What the system said.
pub fn can_write(disk: &dyn Disk, names: &mut Temporary, folder: &Path) -> Result<bool, Error> {
    let probe = names.beside(&folder.join("probe"));
    if super::found(disk.create(&probe, b"")).on("write into", folder)?.is_none() {
        return Ok(false);
    }
    disk.remove(&probe).on("remove from", folder).map(|()| true)
}

#[cfg(test)]
mod tests;
