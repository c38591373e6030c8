//! Writing so that a reader sees all or nothing.

use std::io;
use std::path::{Path, PathBuf};

use super::disk::Disk;
use super::layout::Layout;
use super::{Context, Error, is_absent};
use crate::model::ids::Session;

/// Names for files that are not finished: `.<session>.<count>.tmp`, in the folder of the file they will become.
///
/// The session in the name tells whose leftovers they are.
#[derive(Debug)]
pub struct Temporary {
    session: Session,
    count: u64,
}

impl Temporary {
    /// Names of this session.
    #[must_use]
    pub fn new(session: Session) -> Self {
        Self { session, count: 0 }
    }

    /// Names of this session for a thread beside its loop: none of them is one of [`Temporary::new`].
    #[must_use]
    pub fn beside_loop(session: Session) -> Self {
        Self { session, count: 1 << 48 }
    }

    /// An unused name beside `target`.
    pub fn beside(&mut self, target: &Path) -> PathBuf {
        self.count += 1;
        target.with_file_name(format!(".{}.{}.tmp", self.session, self.count))
    }
}

/// The session in a name that [`Temporary`] made.
#[must_use]
pub fn temporary_session(name: &str) -> Option<&str> {
    let (session, count) = name.strip_prefix('.')?.strip_suffix(".tmp")?.split_once('.')?;
    (session.len() == 16 && session.bytes().all(|b| b.is_ascii_hexdigit()) && count.parse::<u64>().is_ok())
        .then_some(session)
}

/// Writes `bytes` under a temporary name in the folder of `target` and returns that name. The folder is made if it is missing.
///
/// # Errors
/// What the system said; nothing is left behind.
pub fn stage(disk: &dyn Disk, names: &mut Temporary, target: &Path, bytes: &[u8]) -> Result<PathBuf, Error> {
    let staged = names.beside(target);
    in_folder(disk, target, || disk.create(&staged, bytes)).on("write", target)?;
    Ok(staged)
}

/// Writes a file that must not be there yet. `false`: it was there, and stays as it is.
///
/// # Errors
/// What the system said; nothing is left behind.
pub fn write_new(disk: &dyn Disk, names: &mut Temporary, target: &Path, bytes: &[u8]) -> Result<bool, Error> {
    let staged = stage(disk, names, target, bytes)?;
    let outcome = disk.rename_new(&staged, target);
    if outcome.is_err() {
        discard(disk, &staged);
    }
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        other => other.on("write", target).map(|()| true),
    }
}

/// Gives a file that is complete a second name, which must not be there yet; where files have one name only, a copy of it. `false`: it
/// was there, and stays as it is.
///
/// # Errors
/// The error of the system; nothing is left behind.
pub fn link_new(disk: &dyn Disk, names: &mut Temporary, from: &Path, to: &Path) -> Result<bool, Error> {
    let copy = |names: &mut Temporary| {
        let staged = names.beside(to);
        let copied = disk.copy(from, &staged, u64::MAX).and_then(|_| disk.rename_new(&staged, to));
        copied.inspect_err(|_| discard(disk, &staged))
    };
    let linked = match in_folder(disk, to, || disk.link(from, to)) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => copy(names),
        other => other,
    };
    match linked {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        other => other.on("write", to).map(|()| true),
    }
}

/// Writes a file, in the place of an earlier one if there is one.
///
/// # Errors
/// What the system said; the earlier file is then still there.
pub fn write_over(disk: &dyn Disk, names: &mut Temporary, target: &Path, bytes: &[u8]) -> Result<(), Error> {
    let staged = stage(disk, names, target, bytes)?;
    disk.replace(&staged, target).inspect_err(|_| discard(disk, &staged)).on("write", target)
}

/// Does something in the folder of `target`, which is made if that is what fails.
///
/// # Errors
/// What the system said.
pub fn in_folder<T>(disk: &dyn Disk, target: &Path, mut act: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    match act() {
        Err(error) if is_absent(&error) => {
            disk.make_folders(Layout::folder_of(target))?;
            act()
        }
        done => done,
    }
}

/// Removes a file that nobody needs; if that fails, the sweep of old temporary files has it later.
pub fn discard(disk: &dyn Disk, staged: &Path) {
    if let Err(error) = disk.remove(staged) {
        tracing::debug!(path = %staged.display(), %error, "a temporary file stays for the sweep");
    }
}
