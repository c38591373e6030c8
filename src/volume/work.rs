//! Work folders: what an attempt in a container can write of `Common/`, made before it starts and removed after its end.
//!
//! A container's processes are whoever its image says, so the folder that they are given can be written by everybody; it lies in
//! one that only the device's own user can enter.

use std::path::{Path, PathBuf};

use chrono::{DateTime, TimeDelta, Utc};

use super::disk::{Disk, Kind};
use super::layout::{GIVEN, KEPT_WORK, Layout};
use super::{Context, Error, found};
use crate::model::config::RESULT_LIMIT;
use crate::model::ids::{JobName, RunId, Session};
use crate::model::lease::Lease;

/// The largest file that is copied, bytes: results are no larger.
const COPIED_MOST: u64 = RESULT_LIMIT * 8;
/// For how long a device is thought to come back to what it kept: nothing is kept for longer.
const KEPT_MOST: TimeDelta = TimeDelta::days(2);

/// An attempt's work folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Work {
    /// Only the device's user can enter this.
    closed: PathBuf,
    /// What its container is given of it. No program can put a link in its place: it is what is mounted.
    pub given: PathBuf,
    /// Whether another attempt may have had it before.
    pub is_kept: bool,
}

impl Work {
    /// The folder of an attempt that has a container of its own.
    #[must_use]
    pub fn own(layout: &Layout, lease: &Lease) -> Self {
        Self { closed: layout.work_of(lease), given: layout.work_inside(lease), is_kept: false }
    }

    /// A folder of attempts in one container that is kept: for one of them after the other, in one life of a device. `seat` tells
    /// those apart that a job needs at the same time.
    #[must_use]
    pub fn kept(layout: &Layout, session: &Session, job: &JobName, seat: usize) -> Self {
        let closed = layout.kept_work(session, job, seat);
        Self { given: closed.join(GIVEN), closed, is_kept: true }
    }

    /// Makes it, without anything in it.
    ///
    /// # Errors
    /// What the system said.
    pub fn make(&self, disk: &dyn Disk, layout: &Layout) -> Result<(), Error> {
        disk.make_folders(&layout.work()).on("make the folder", &layout.work())?;
        for (folder, mode) in [(&self.closed, 0o700), (&self.given, 0o777)] {
            disk.make_folder_with(folder, mode).on("make the folder", folder)?;
        }
        if self.is_kept { empty(disk, &self.given).on("empty the folder", &self.given) } else { Ok(()) }
    }

    /// Gives the attempt a copy of a small file, where its container cannot be given the file itself.
    ///
    /// # Errors
    /// What the system said.
    pub fn add(&self, disk: &dyn Disk, from: &Path, name: &str) -> Result<(), Error> {
        let (bytes, meta) = disk.read(from, COPIED_MOST).on("read", from)?;
        if meta.kind != Kind::File || bytes.len() as u64 != meta.id.size {
            let why = format!("expected a file of at most {COPIED_MOST} bytes");
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, why)).on("copy", from);
        }
        let to = self.given.join(name);
        disk.create(&to, &bytes).on("write", &to)
    }

    /// Removes it, or what an attempt left in it; what is gone is fine. `false`: something of another user's stays that this device
    /// may not remove, so that no other attempt can have it.
    pub fn remove(&self, disk: &dyn Disk) -> bool {
        if !self.is_kept {
            remove_folder(disk, &self.closed);
            return true;
        }
        found(empty(disk, &self.given)).is_ok()
    }
}

/// Removes an attempt's own work folder, likewise.
pub fn remove(disk: &dyn Disk, layout: &Layout, lease: &Lease) {
    remove_folder(disk, &layout.work_of(lease));
}

/// Removes what was kept in a life of a device that is over, likewise: one that only stands still comes back to what it kept.
pub fn remove_kept(disk: &dyn Disk, layout: &Layout, now: DateTime<Utc>, lives: impl Fn(&str) -> bool) {
    for name in disk.list(&layout.work()).unwrap_or_default() {
        let session = name.to_str().and_then(|name| name.strip_prefix(KEPT_WORK)?.split_once('.'));
        let Some((session, _)) = session else { continue };
        let folder = layout.work().join(&name);
        let is_old = disk.stat(&folder.join(GIVEN)).is_ok_and(|meta| now - meta.changed > KEPT_MOST);
        if is_old && !lives(session) {
            remove_folder(disk, &folder);
        }
    }
}

/// Removes what a life of a device kept, at its end.
pub fn remove_kept_by(disk: &dyn Disk, layout: &Layout, session: &Session) {
    let begin = format!("{KEPT_WORK}{session}.");
    for name in disk.list(&layout.work()).unwrap_or_default() {
        if name.to_str().is_some_and(|name| name.starts_with(&begin)) {
            remove_folder(disk, &layout.work().join(&name));
        }
    }
}

fn remove_folder(disk: &dyn Disk, folder: &Path) {
    if let Err(error) = found(disk.remove_tree(folder)) {
        tracing::debug!(folder = %folder.display(), %error, "this work folder stays for now");
    }
}

/// Removes everything in a folder.
fn empty(disk: &dyn Disk, folder: &Path) -> std::io::Result<()> {
    for name in disk.list(folder)? {
        let path = folder.join(name);
        match disk.stat(&path)?.kind {
            Kind::Folder => disk.remove_tree(&path)?,
            Kind::File | Kind::Link | Kind::Other => disk.remove(&path)?,
        }
    }
    Ok(())
}

/// The work folders that are there, and whose they are.
///
/// # Errors
/// What the system said.
pub fn all(disk: &dyn Disk, layout: &Layout) -> Result<Vec<Lease>, Error> {
    let folder: PathBuf = layout.work();
    let names = found(disk.list(&folder)).on("list", &folder)?.unwrap_or_default();
    let lease_of = |name: &str| {
        let (run, attempt) = name.rsplit_once('.')?;
        Some(Lease { run: RunId::parse(run)?, attempt: attempt.parse().ok()? })
    };
    Ok(names.iter().filter_map(|name| lease_of(name.to_str()?)).collect())
}
