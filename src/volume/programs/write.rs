//! Changing job files for people: each file is whole at any time, keeps its rights, and is replaced only as it was read.

use std::path::PathBuf;

use super::super::atomic::{Temporary, discard, stage, write_new};
use super::super::disk::Disk;
use super::super::layout::Layout;
use super::super::os::settle;
use super::super::{Context, Error, found};
use crate::model::entry::FileId;
use crate::model::ids::JobName;

/// Where a job's file is.
#[must_use]
pub fn path_of(layout: &Layout, job: &JobName) -> PathBuf {
    layout.programs.join(format!("{job}.toml"))
}

/// Writes a job file that must not be there yet. `false`: something of that name is there, and stays as it is.
///
/// # Errors
/// What the system said; nothing is left behind.
pub fn add(disk: &dyn Disk, names: &mut Temporary, layout: &Layout, job: &JobName, text: &str) -> Result<bool, Error> {
    let path = path_of(layout, job);
    let is_new = write_new(disk, names, &path, text.as_bytes())?;
    if is_new {
        settle(&path, None).on("write", &path)?;
    }
    Ok(is_new)
}

/// Writes a job file in the place of the one that was read as `read`, with its mode and, as far as this user may, its owner.
/// `false`: somebody changed it meanwhile, and it stays as it is.
///
/// # Errors
/// What the system said; the earlier file is then still there.
pub fn replace(
    disk: &dyn Disk,
    names: &mut Temporary,
    layout: &Layout,
    job: &JobName,
    text: &str,
    read: &FileId,
) -> Result<bool, Error> {
    let path = path_of(layout, job);
    let staged = stage(disk, names, &path, text.as_bytes())?;
    let outcome = settle(&staged, Some(&path)).and_then(|()| found(disk.stat(&path))).and_then(|there| {
        let is_same = there.is_some_and(|there| there.id == *read);
        if is_same { disk.replace(&staged, &path) } else { disk.remove(&staged) }.map(|()| is_same)
    });
    outcome.inspect_err(|_| discard(disk, &staged)).on("write", &path)
}

/// Removes a job file. `false`: there was none.
///
/// # Errors
/// What the system said.
pub fn remove(disk: &dyn Disk, layout: &Layout, job: &JobName) -> Result<bool, Error> {
    let path = path_of(layout, job);
    found(disk.remove(&path)).map(|gone| gone.is_some()).on("remove", &path)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test looks at the files from outside")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::model::ids::Session;
    use crate::volume::os::OsDisk;

    #[test]
    fn only_what_was_read_is_replaced_and_rights_stay() {
        let home = tempfile::tempdir().unwrap();
        let layout = Layout { common: home.path().into(), programs: home.path().into() };
        let (disk, job) = (OsDisk::new(), JobName::new("j").unwrap());
        let mut names = Temporary::new(Session::from_random(1));
        let path = path_of(&layout, &job);
        let text = || std::fs::read_to_string(&path).unwrap();
        assert!(add(&disk, &mut names, &layout, &job, "one").unwrap());
        assert!(!add(&disk, &mut names, &layout, &job, "two").unwrap() && text() == "one");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let read = disk.stat(&path).unwrap().id;
        assert!(replace(&disk, &mut names, &layout, &job, "three", &read).unwrap() && text() == "three");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
        assert!(!replace(&disk, &mut names, &layout, &job, "four", &read).unwrap() && text() == "three");
        assert!(remove(&disk, &layout, &job).unwrap() && !remove(&disk, &layout, &job).unwrap());
        assert!(!replace(&disk, &mut names, &layout, &job, "five", &read).unwrap());
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0, "nothing is left behind");
    }
}
