//! What cannot be taken: kept byte for byte, with a file beside it that says why.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use serde::Serialize;

use super::atomic::{Temporary, in_folder, write_new};
use super::disk::Disk;
use super::layout::Layout;
use super::{Context, Error, is_absent};
use crate::model::entry::split_dropped;
use crate::model::ids::{DeviceId, RunId};
use crate::model::time::{Moment, rfc3339};
use crate::model::trigger::Refusal;

/// `….error.json`.
#[derive(Serialize)]
struct Note<'a> {
    name: &'a str,
    error: &'a str,
    hint: &'a str,
    at: String,
    device: &'a DeviceId,
    line: Option<usize>,
    column: Option<usize>,
}

/// Moves what lies at `path`, and was dropped under that name, to `rejected/` and says why. `false`: somebody else had it.
///
/// The note comes first: a crash in between leaves a note that the next try completes, never a file without a word.
///
/// # Errors
/// What the system said; then the file is still where it was.
pub fn reject(
    disk: &dyn Disk,
    layout: &Layout,
    names: &mut Temporary,
    (path, dropped): (&Path, &OsStr),
    (id, refusal): (&RunId, &Refusal),
    device: &DeviceId,
    now: Moment,
) -> Result<bool, Error> {
    let (stem, _) = split_dropped(dropped);
    let folder = layout.rejected(&now.wall.format("%Y-%m-%d").to_string());
    let note = Note {
        name: &dropped.to_string_lossy(),
        error: &refusal.error,
        hint: &refusal.hint,
        at: rfc3339(now.wall),
        device,
        line: refusal.line,
        column: refusal.column,
    };
    let note_path = folder.join(format!("{stem}.{id}.error.json"));
    let bytes = serde_json::to_vec(&note).map_err(io::Error::from).on("write", &note_path)?;
    write_new(disk, names, &note_path, &bytes)?;
    let target = folder.join(format!("{stem}.{id}.json"));
    match in_folder(disk, &target, || disk.rename_new(path, &target)) {
        Ok(()) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // The same name, content and instant were rejected before: both are kept.
            let other = folder.join(format!(
                "{stem}.{id}.{}.json",
                names
                    .beside(path)
                    .file_stem()
                    .map_or_else(String::new, |name| name.to_string_lossy().trim_start_matches('.').to_owned(),)
            ));
            disk.rename_new(path, &other).on("move", path).map(|()| true)
        }
        Err(error) => Err(error).on("move", path),
    }
}
