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
    let is_mine = write_new(disk, names, &note_path, &bytes)?;
    let target = folder.join(format!("{stem}.{id}.json"));
    match in_folder(disk, &target, || disk.rename_new(path, &target)) {
        Ok(()) => Ok(true),
        Err(error) if is_absent(&error) => {
            // Another device has moved it. If it read the file's times before they changed, it knows the file by another id.
            if is_mine && disk.stat(&target).is_err_and(|error| is_absent(&error)) {
                disk.remove(&note_path).on("remove", &note_path)?;
            }
            Ok(false)
        }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use chrono::{DateTime, Utc};

    use super::*;
    use crate::model::ids::Session;
    use crate::volume::os::OsDisk;

    #[test]
    fn a_file_that_two_devices_reject_has_one_note() {
        let home = tempfile::tempdir().unwrap();
        let layout = Layout { common: home.path().join("Common"), programs: home.path().join("Programs") };
        let (disk, mut names) = (OsDisk::new(), Temporary::new(Session::from_random(7)));
        let file = layout.triggers().join("bad.json");
        disk.make_folders(&layout.triggers()).unwrap();
        disk.create(&file, b"{").unwrap();
        let now = Moment { boot: Duration::ZERO, wall: DateTime::<Utc>::UNIX_EPOCH };
        let refusal =
            Refusal { error: "no JSON".into(), hint: String::new(), line: None, column: None, unfinished: false };
        let mut rejects = |id: u64| {
            let id = RunId::new(DateTime::UNIX_EPOCH, id);
            let (file, device) = ((file.as_path(), OsStr::new("bad.json")), DeviceId::new("a").unwrap());
            reject(&disk, &layout, &mut names, file, (&id, &refusal), &device, now).unwrap()
        };
        assert!(rejects(1));
        // The second one comes too late: by the same id, and by one that it made from the time of the move.
        assert!(!rejects(1) && !rejects(2));
        let mut left = disk.list(&layout.rejected("1970-01-01")).unwrap();
        left.sort();
        let id = RunId::new(DateTime::UNIX_EPOCH, 1);
        assert_eq!(left, ["error.json", "json"].map(|ending| std::ffi::OsString::from(format!("bad.{id}.{ending}"))));
    }
}
