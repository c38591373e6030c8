//! `Common/Security/`: what only the devices may read. Folders have mode 0700, files 0600; a file appears whole or not at all.
//!
//! Files are changed under a lock of their own, so that of two changes of one key none is lost, and devices find a change by a
//! look at the folders.

use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::atomic::{Temporary, discard};
use super::disk::{Disk, Guard};
use super::layout::Layout;
use super::os::write_private;
use super::{Context, Error, found, is_absent};
use crate::model::entry::FileId;

/// The largest file that is read here, bytes.
const LIMIT: u64 = 256 << 10;
/// After how long without a change a folder's time tells it from any other, nanoseconds: clocks of file systems are coarse.
const SETTLED_NS: i64 = 2_000_000_000;
/// What only its owner may enter.
const PRIVATE: u32 = 0o700;

/// Makes the folders that are missing, for their owner alone.
///
/// # Errors
/// What the system said.
pub fn prepare(disk: &dyn Disk, layout: &Layout) -> Result<(), Error> {
    for folder in [layout.security(), layout.api_keys(), layout.users(), layout.servers()] {
        if found(disk.stat(&folder)).on("look at", &folder)?.is_none() {
            disk.make_folder_with(&folder, PRIVATE).on("make", &folder)?;
        }
    }
    Ok(())
}

/// The lock under which files are changed; `None`: somebody else has it.
///
/// # Errors
/// What the system said.
pub fn lock(disk: &dyn Disk, layout: &Layout) -> Result<Option<Guard>, Error> {
    let path = layout.security_lock();
    disk.lock(&path).on("lock", &path)
}

/// One document; `None`: it is not there.
///
/// # Errors
/// It cannot be read, or is not what it should be.
pub fn read<T: DeserializeOwned>(disk: &dyn Disk, path: &Path) -> Result<Option<T>, Error> {
    let Some((bytes, _)) = found(disk.read(path, LIMIT)).on("read", path)? else { return Ok(None) };
    let wrong = |error: serde_json::Error| std::io::Error::new(std::io::ErrorKind::InvalidData, error.to_string());
    serde_json::from_slice(&bytes).map(Some).map_err(wrong).on("read", path)
}

/// All documents of a folder, by name, and what is wrong with the others: one damaged file locks nobody else out.
///
/// # Errors
/// The folder cannot be listed.
pub fn read_all<T: DeserializeOwned>(disk: &dyn Disk, folder: &Path) -> Result<(Vec<T>, Vec<Error>), Error> {
    let mut names = found(disk.list(folder)).on("list", folder)?.unwrap_or_default();
    names.retain(|name| name.to_str().is_some_and(|name| name.ends_with(".json") && !name.starts_with('.')));
    names.sort();
    let (mut all, mut wrong) = (Vec::new(), Vec::new());
    for name in names {
        match read(disk, &folder.join(name)) {
            Ok(document) => all.extend(document),
            Err(error) => wrong.push(error),
        }
    }
    Ok((all, wrong))
}

/// Writes a document in the place of an earlier one.
///
/// # Errors
/// What the system said; the earlier one is then still there.
pub fn write(disk: &dyn Disk, names: &mut Temporary, path: &Path, document: &impl Serialize) -> Result<(), Error> {
    let staged = stage(disk, names, path, document)?;
    disk.replace(&staged, path).inspect_err(|_| discard(disk, &staged)).on("write", path)
}

/// Writes a document that must not be there yet; `false`: it is.
///
/// # Errors
/// What the system said.
pub fn write_new(
    disk: &dyn Disk,
    names: &mut Temporary,
    path: &Path,
    document: &impl Serialize,
) -> Result<bool, Error> {
    let staged = stage(disk, names, path, document)?;
    match disk.rename_new(&staged, path).inspect_err(|_| discard(disk, &staged)) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        other => other.on("write", path).map(|()| true),
    }
}

fn stage(disk: &dyn Disk, names: &mut Temporary, path: &Path, document: &impl Serialize) -> Result<PathBuf, Error> {
    let mut bytes = serde_json::to_vec_pretty(document).map_err(std::io::Error::other).on("write", path)?;
    bytes.push(b'\n');
    let staged = names.beside(path);
    match write_private(&staged, &bytes) {
        Err(error) if is_absent(&error) => {
            disk.make_folder_with(Layout::folder_of(path), PRIVATE).on("make", Layout::folder_of(path))?;
            write_private(&staged, &bytes).on("write", path)?;
        }
        other => other.on("write", path)?,
    }
    Ok(staged)
}

/// Removes a document; `false`: it was not there.
///
/// # Errors
/// What the system said.
pub fn remove(disk: &dyn Disk, path: &Path) -> Result<bool, Error> {
    Ok(found(disk.remove(path)).on("remove", path)?.is_some())
}

/// What tells folders from what they were: it changes when a document in one of them is written or removed.
pub type Stamp = Vec<Option<FileId>>;

/// The stamp of folders at `now`, or later. `None` shortly after a change of one of them: two changes within one tick of the file
/// system's clock leave one stamp.
#[must_use]
pub fn stamp(disk: &dyn Disk, folders: &[PathBuf], now: DateTime<Utc>) -> Option<Stamp> {
    let stamp: Stamp = folders.iter().map(|folder| disk.stat(folder).ok().map(|meta| meta.id)).collect();
    let now = now.timestamp_nanos_opt()?;
    let is_settled = |id: &FileId| now.saturating_sub(id.modified_ns) >= SETTLED_NS;
    stamp.iter().flatten().all(is_settled).then_some(stamp)
}
