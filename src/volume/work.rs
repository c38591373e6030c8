//! Work folders: what an attempt in a container can write of `Common/`, made before it starts and removed after its end.
//!
//! A container's processes are whoever its image says, so the folder that they are given can be written by everybody; it lies in
//! one that only the device's own user can enter.

use std::path::{Path, PathBuf};

use super::disk::{Disk, Kind};
use super::layout::Layout;
use super::{Context, Error, found};
use crate::model::ids::RunId;
use crate::model::lease::Lease;

/// How deep a folder that a program made is removed.
const DEPTH: u32 = 64;

/// Makes an attempt's work folder.
///
/// # Errors
/// What the system said.
pub fn make(disk: &dyn Disk, layout: &Layout, lease: &Lease) -> Result<(), Error> {
    disk.make_folders(&layout.work()).on("make the folder", &layout.work())?;
    for (folder, mode) in [(layout.work_of(lease), 0o700), (layout.work_inside(lease), 0o777)] {
        disk.make_folder_with(&folder, mode).on("make the folder", &folder)?;
    }
    Ok(())
}

/// Removes an attempt's work folder, as far as the rights of what lies there allow; one that is gone is fine.
pub fn remove(disk: &dyn Disk, layout: &Layout, lease: &Lease) {
    let folder = layout.work_of(lease);
    if let Err(error) = remove_all(disk, &folder, DEPTH) {
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
