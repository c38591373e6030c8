//! The shared folder: the only room that touches `Common/` and `Programs/`.
//!
//! It promises that a reader never sees half a document, that no move replaces a file, and that every error names the
//! operation and the path. All of it goes through the port [`disk::Disk`], so that the simulator can crash, pause, fill
//! up and lie at every single operation.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

pub mod atomic;
pub mod audit;
pub mod backup;
pub mod disk;
pub mod heartbeat;
pub mod inbox;
pub mod keys;
pub mod layout;
pub mod logs;
pub mod mounts;
pub mod os;
pub mod probe;
pub mod processed;
pub mod program_check;
pub mod programs;
pub mod rejects;
pub mod results;
pub mod retention;
pub mod revisions;
pub mod secrets;
pub mod security;
pub mod watch;
pub mod work;

/// An operation on the volume that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}: {}", .path.display(), reason(.source))]
pub struct Error {
    /// What was tried: "read", "create".
    pub doing: &'static str,
    /// On which path.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl Error {
    /// What to do about it.
    #[must_use]
    #[expect(clippy::wildcard_enum_match_arm, reason = "the list of kinds grows with the standard library")]
    pub fn hint(&self) -> &'static str {
        match self.source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "free space or inodes on that file system (df -h, df -i); work goes on by itself"
            }
            io::ErrorKind::ReadOnlyFilesystem => {
                "the file system is mounted read-only; work goes on once it is writable"
            }
            io::ErrorKind::PermissionDenied => {
                "give this user rights on the folder (ls -ld), or start as the user who owns it"
            }
            io::ErrorKind::NotFound => "check --common and --programs, and that the volume is mounted",
            io::ErrorKind::StaleNetworkFileHandle => "the file server was replaced: mount the volume again",
            _ => "look at the rights of this path and at how its folder is mounted",
        }
    }

    /// Whether no room was left: space, inodes or a quota.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// What the system said, without Rust's "(os error 28)", which helps nobody.
fn reason(source: &io::Error) -> String {
    let text = source.to_string();
    text.split_once(" (os error").map_or(text.clone(), |(said, _)| said.to_lowercase())
}

/// Adds operation and path to what the system said.
pub trait Context<T> {
    /// Names the operation and the path.
    ///
    /// # Errors
    /// The same failure as an [`Error`].
    fn on(self, doing: &'static str, path: &Path) -> Result<T, Error>;
}

impl<T> Context<T> for io::Result<T> {
    fn on(self, doing: &'static str, path: &Path) -> Result<T, Error> {
        self.map_err(|source| Error { doing, path: path.to_owned(), source })
    }
}

/// Turns "not there" into `None`.
///
/// # Errors
/// Every other failure.
pub fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The volume's random id; `None`: the folder is none, such as an empty one where a volume was to be mounted.
///
/// # Errors
/// What the system said.
pub fn volume_id(disk: &dyn disk::Disk, layout: &layout::Layout) -> Result<Option<String>, Error> {
    let path = layout.volume_id();
    let read = found(disk.read(&path, 1_024)).on("read", &path)?;
    Ok(read.map(|(bytes, _)| String::from_utf8_lossy(&bytes).trim().to_owned()))
}

/// Whether the error says that there is nothing at the path.
#[must_use]
pub fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

impl fmt::Display for disk::Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "a file",
            Self::Folder => "a folder",
            Self::Link => "a symbolic link",
            Self::Other => "a FIFO, socket or device",
        })
    }
}
