//! Work folders: what an attempt in a container can write of `Common/`, made before it starts and removed after its end.
//!
//! A container's processes are whoever its image says, so the folder that they are given can be written by everybody; it lies in
//! one that only the device's own user can enter.

use std::path::{Path, PathBuf};

use super::disk::{Disk, Kind};
use super::layout::Layout;
use super::{Context, Error, found};
use crate::model::config::RESULT_LIMIT;
use crate::model::ids::{JobName, RunId, Session};
use crate::model::lease::Lease;

/// How deep a folder that a program made is removed.
const DEPTH: u32 = 64;

/// An attempt's work folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// Only the device's user can enter this.
    closed: PathBuf,
    /// What its container is given of it.
    pub given: PathBuf,
    /// Where in that the attempt writes.
    pub inside: PathBuf,
}

impl Work {
    /// The folder of an attempt that has a container of its own.
    #[must_use]
    pub fn own(layout: &Layout, lease: &Lease) -> Self {
        let (closed, given) = (layout.work_of(lease), layout.work_inside(lease));
        Self { closed, inside: given.clone(), given }
    }

    /// The folder of an attempt in a container that is kept for all attempts of a job in one life of a device.
    #[must_use]
    pub fn kept(layout: &Layout, session: &Session, job: &JobName, lease: &Lease) -> Self {
        let closed = layout.kept_work(session, job);
        let given = closed.join("out");
        Self { closed, inside: given.join(lease.to_string()), given }
    }

    /// Makes it.
    ///
    /// # Errors
    /// What the system said.
    pub fn make(&self, disk: &dyn Disk, layout: &Layout) -> Result<(), Error> {
        disk.make_folders(&layout.work()).on("make the folder", &layout.work())?;
        for (folder, mode) in [(&self.closed, 0o700), (&self.given, 0o755), (&self.inside, 0o777)] {
            disk.make_folder_with(folder, mode).on("make the folder", folder)?;
        }
        Ok(())
    }

    /// Gives the attempt a copy of a small file, where its container cannot be given the file itself.
    ///
    /// # Errors
    /// What the system said.
    pub fn add(&self, disk: &dyn Disk, from: &Path, name: &str) -> Result<(), Error> {
        let (bytes, _) = disk.read(from, RESULT_LIMIT * 2).on("read", from)?;
        let to = self.inside.join(name);
        match disk.create(&to, &bytes) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            made => made.on("write", &to),
        }
    }

    /// Removes what only this attempt used, as far as the rights of what lies there allow; what is gone is fine.
    pub fn remove(&self, disk: &dyn Disk) {
        remove_folder(disk, if self.inside == self.given { &self.closed } else { &self.inside });
    }
}

/// Removes an attempt's own work folder, likewise.
pub fn remove(disk: &dyn Disk, layout: &Layout, lease: &Lease) {
    remove_folder(disk, &layout.work_of(lease));
}

/// Removes what was kept in a life of a device that is over, likewise.
pub fn remove_kept(disk: &dyn Disk, layout: &Layout, lives: impl Fn(&str) -> bool) {
    for name in disk.list(&layout.work()).unwrap_or_default() {
        let session = name.to_str().and_then(|name| name.strip_prefix(super::layout::KEPT_WORK)?.split_once('.'));
        if session.is_some_and(|(session, _)| !lives(session)) {
            remove_folder(disk, &layout.work().join(&name));
        }
    }
}

fn remove_folder(disk: &dyn Disk, folder: &Path) {
    if let Err(error) = remove_all(disk, folder, DEPTH) {
        tracing::debug!(folder = %folder.display(), %error, "this work folder stays for now");
    }
}

fn remove_all(disk: &dyn Disk, folder: &Path, depth: u32) -> std::io::Result<()> {
    let Some(names) = found(disk.list(folder))? else { return Ok(()) };
    for name in names {
        let path = folder.join(name);
        // A link is removed, and never followed.
        match disk.stat(&path)?.kind {
            Kind::Folder if depth > 0 => remove_all(disk, &path, depth - 1)?,
            Kind::Folder | Kind::File | Kind::Link | Kind::Other => disk.remove(&path)?,
        }
    }
    disk.remove_folder(folder)
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
