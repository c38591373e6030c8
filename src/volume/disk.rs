//! The port to a file system: the few operations that the product is made of.
//!
//! [`super::os::OsDisk`] is the real one. The simulator brings its own and crashes, pauses or lies between any two calls, so
//! each method is one step that happens entirely or not at all.

use std::any::Any;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::model::entry::FileId;
use crate::model::space::Space;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link, never followed.
    Link,
    /// Anything else: FIFO, socket, device.
    Other,
}

/// What the file system knows of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// What it is.
    pub kind: Kind,
    /// Which content of which file.
    pub id: FileId,
    /// The last change of the file's content or place (`ctime`), which copying with old dates does not fake.
    pub changed: DateTime<Utc>,
}

impl Meta {
    /// The last change of the content (`mtime`). Whoever copies a file may bring its old date along.
    #[must_use]
    pub fn modified(&self) -> DateTime<Utc> {
        const SECOND: i64 = 1_000_000_000;
        let seconds = self.id.modified_ns.div_euclid(SECOND);
        let nanos = u32::try_from(self.id.modified_ns.rem_euclid(SECOND)).unwrap_or(0);
        // A date that no calendar has says nothing: then that of the file's place.
        DateTime::from_timestamp(seconds, nanos).unwrap_or(self.changed)
    }
}

/// Holds the lock until it is dropped.
pub type Guard = Box<dyn Any>;

/// The operations. Paths are absolute; "absent" is `NotFound`.
pub trait Disk {
    /// The names in a folder, in no order.
    ///
    /// # Errors
    /// As the system says.
    fn list(&self, folder: &Path) -> io::Result<Vec<OsString>>;

    /// What a path is; a link is not followed.
    ///
    /// # Errors
    /// As the system says.
    fn stat(&self, path: &Path) -> io::Result<Meta>;

    /// Reads a regular file; no link is followed, nothing blocks. Of a file larger than `limit` bytes nothing is read: its
    /// [`Meta`] says so. So does the kind of what is not a regular file.
    ///
    /// # Errors
    /// As the system says.
    fn read(&self, path: &Path, limit: u64) -> io::Result<(Vec<u8>, Meta)>;

    /// The first bytes of a file, at most `limit`.
    ///
    /// # Errors
    /// As the system says.
    fn read_head(&self, path: &Path, limit: usize) -> io::Result<Vec<u8>>;

    /// Makes a file that is not there yet. A failure leaves nothing behind.
    ///
    /// # Errors
    /// `AlreadyExists`, or as the system says.
    fn create(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;

    /// Renames, and never replaces.
    ///
    /// # Errors
    /// `AlreadyExists` if there is something at `to`, or as the system says.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file a second name, and never replaces.
    ///
    /// # Errors
    /// `AlreadyExists` if there is something at `to`, or as the system says; `Unsupported` where a file has one name only.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Renames over whatever file is at `to`, atomically.
    ///
    /// # Errors
    /// As the system says.
    fn replace(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Sets a file's times to now: whoever watches it hears of it.
    ///
    /// # Errors
    /// As the system says.
    fn touch(&self, path: &Path) -> io::Result<()>;

    /// The machine's boot time now: what was just written is not younger.
    fn boot(&self) -> Duration;

    /// Removes a file.
    ///
    /// # Errors
    /// As the system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes a folder that is empty.
    ///
    /// # Errors
    /// `DirectoryNotEmpty`, or as the system says.
    fn remove_folder(&self, path: &Path) -> io::Result<()>;

    /// Removes a folder with all that is in it. A link is removed, and never followed, whoever puts it there meanwhile.
    ///
    /// # Errors
    /// As the system says; some of it may be gone then.
    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        for name in self.list(path)? {
            let inside = path.join(name);
            if self.stat(&inside)?.kind == Kind::Folder { self.remove_tree(&inside)? } else { self.remove(&inside)? }
        }
        self.remove_folder(path)
    }

    /// Makes a folder and those above it; one that is there is fine.
    ///
    /// # Errors
    /// As the system says.
    fn make_folders(&self, path: &Path) -> io::Result<()>;

    /// Makes a folder, and those above it, with exactly these rights; one that is there is fine and gets them.
    ///
    /// # Errors
    /// As the system says.
    fn make_folder_with(&self, path: &Path, mode: u32) -> io::Result<()>;

    /// Tries to take an exclusive lock on a file, made if it is missing, that ends with its holder's life. `None`: another holds it.
    ///
    /// # Errors
    /// As the system says.
    fn lock(&self, path: &Path) -> io::Result<Option<Guard>>;

    /// Makes a log that is not there yet, for a program to append to. `None` only in the simulator.
    ///
    /// # Errors
    /// `AlreadyExists`, or as the system says.
    fn open_log(&self, path: &Path) -> io::Result<Option<File>>;

    /// Opens a log that is there, to append to it. `None` only in the simulator.
    ///
    /// # Errors
    /// As the system says.
    fn open_log_again(&self, path: &Path) -> io::Result<Option<File>>;

    /// Cuts a file to its first `limit` bytes; says how many went.
    ///
    /// # Errors
    /// As the system says.
    fn cut(&self, path: &Path, limit: u64) -> io::Result<u64>;

    /// Copies the first `limit` bytes of a file into one that is not there yet; says how many there were. What is appended
    /// meanwhile comes with them. A failure leaves nothing behind.
    ///
    /// # Errors
    /// `AlreadyExists`, or as the system says.
    fn copy(&self, from: &Path, to: &Path, limit: u64) -> io::Result<u64>;

    /// Appends to a file.
    ///
    /// # Errors
    /// As the system says.
    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;

    /// The room on the file system that a path is on.
    ///
    /// # Errors
    /// As the system says.
    fn space(&self, path: &Path) -> io::Result<Space>;
}
