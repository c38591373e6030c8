//! Logs: files that one writer appends to, within a limit, while others read them, rename them and remove them.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::atomic::in_folder;
use super::disk::Disk;
use super::os::{OsDisk, open_plain};
use super::{Context, Error, found};

mod own;

pub use own::OwnLog;

/// The shortest time between two looks of a writer whether its file is still at its path.
const LOOK: Duration = Duration::from_secs(1);
/// The least limit of a log that begins anew, bytes.
const LEAST: u64 = 1 << 10;

/// The part of a log that is kept when it reaches its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeps {
    /// The first bytes. All that comes later is left out, and the last line says how much that was.
    First,
    /// The newest bytes: the log becomes its [`earlier_part`], in the place of the one before, and begins anew.
    Newest,
}

/// The log of one attempt, as its device writes it.
///
/// Its file is opened anew when somebody has renamed or removed it, as log rotation does.
#[derive(Debug)]
pub struct Log {
    file: Appended,
    limit: u64,
    keeps: Keeps,
    /// Bytes that were not written because of the limit, and because the file could not be written.
    left_out: u64,
    unwritten: u64,
    rotations: u32,
}

/// Makes an attempt's log, of at most `limit` bytes. `None` only in the simulator.
///
/// # Errors
/// The error of the system; `AlreadyExists` means that this attempt was started before.
pub fn open(disk: &dyn Disk, path: &Path, limit: u64, keeps: Keeps) -> Result<Option<Log>, Error> {
    let file = in_folder(disk, path, || disk.open_log(path)).on("create", path)?;
    log(file, path, limit, keeps).on("look at", path)
}

/// Opens the log of an attempt that goes on, to append to it; one that somebody removed begins anew.
///
/// # Errors
/// The error of the system.
pub fn open_again(disk: &dyn Disk, path: &Path, limit: u64, keeps: Keeps) -> Result<Option<Log>, Error> {
    match found(disk.open_log_again(path)).on("open", path)? {
        Some(file) => log(file, path, limit, keeps).on("look at", path),
        None => open(disk, path, limit, keeps),
    }
}

fn log(file: Option<File>, path: &Path, limit: u64, keeps: Keeps) -> io::Result<Option<Log>> {
    let Some(file) = file else { return Ok(None) };
    let file = Appended::new(file, path)?;
    // A log that begins anew at every byte would be none.
    let limit = if keeps == Keeps::Newest { limit.max(LEAST) } else { limit };
    Ok(Some(Log { file, limit, keeps, left_out: 0, unwritten: 0, rotations: 0 }))
}

impl Log {
    /// The size of its file, bytes; 0 where that cannot be known.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.file.file.metadata().map_or(0, |meta| meta.len())
    }

    /// Appends a line of the device's own, before anything that the program prints.
    ///
    /// # Errors
    /// The error of the system.
    pub fn note(&self, line: &str) -> io::Result<()> {
        (&self.file.file).write_all(line.as_bytes())
    }

    /// Appends to it, as far as its limit allows.
    ///
    /// # Errors
    /// The error of the system. What could not be written is counted and not tried again.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        self.file.look(&OsDisk::new());
        while !rest.is_empty() {
            let written = self.write_some(rest);
            match written {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.unwritten += rest.len() as u64;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Appends the beginning of these bytes, or leaves them out; returns how many were taken.
    fn write_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = usize::try_from(self.limit.saturating_sub(self.file.size)).unwrap_or(usize::MAX);
        let fitting = bytes.get(..room);
        match (fitting, self.keeps) {
            (None, _) => self.file.append(bytes),
            (Some([]), Keeps::First) => {
                self.left_out += bytes.len() as u64;
                Ok(bytes.len())
            }
            (Some(fitting), Keeps::First) => self.file.append(fitting),
            // Whole lines, where there are any.
            (Some(fitting), Keeps::Newest) => match fitting.iter().rposition(|byte| *byte == b'\n') {
                Some(end) => self.file.append(&fitting[..=end]),
                None if self.file.size == 0 => self.file.append(fitting),
                None => self.rotate().map(|()| 0),
            },
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        let disk = OsDisk::new();
        // Somebody may have taken it away at this moment.
        found(disk.replace(&self.file.path, &earlier_part(&self.file.path)))?;
        self.rotations += 1;
        self.file.begin_anew(&disk)
    }

    /// Ends it: says at its end what is missing of what was printed. Returns whether something is.
    ///
    /// # Errors
    /// The error of the system: it does not say what is missing.
    pub fn close(&mut self) -> io::Result<bool> {
        if self.left_out > 0 {
            let (limit, count) = (self.limit, self.left_out);
            self.file
                .append_all(&format!("\n[log cut at {limit} bytes (--log-limit): {count} bytes are left out]\n"))?;
        }
        if self.unwritten > 0 {
            let count = self.unwritten;
            self.file.append_all(&format!("\n[{count} bytes are missing here: they could not be written]\n"))?;
        }
        Ok(self.is_cut())
    }

    /// Returns whether something of what was printed is missing in it and its [`earlier_part`].
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.left_out > 0 || self.unwritten > 0 || self.rotations > 1
    }
}

/// A file that is appended to, also after others rename or remove it.
#[derive(Debug)]
struct Appended {
    path: PathBuf,
    file: File,
    inode: u64,
    size: u64,
    looked: Duration,
}

impl Appended {
    fn new(file: File, path: &Path) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self { path: path.to_owned(), file, inode: meta.ino(), size: meta.len(), looked: Duration::ZERO })
    }

    /// Opens the file at a path, or makes one.
    fn open(disk: &OsDisk, path: &Path) -> io::Result<Self> {
        let file = match found(disk.open_log_again(path))?.flatten() {
            Some(file) => Some(file),
            None => in_folder(disk, path, || disk.open_log(path))?,
        };
        Self::new(file.ok_or(io::ErrorKind::NotFound)?, path)
    }

    /// Looks now and then whether the file is still at its path, and goes over to the one that is. A path that cannot be looked at
    /// changes nothing.
    fn look(&mut self, disk: &OsDisk) {
        let now = disk.boot();
        if now.saturating_sub(self.looked) < LOOK {
            return;
        }
        self.looked = now;
        match found(disk.stat(&self.path)) {
            // Log rotation that copies and cuts makes it smaller.
            Ok(Some(meta)) if meta.id.inode == self.inode => self.size = meta.id.size,
            // Where no other can be made, the one that is open has to do.
            Ok(_) => drop(self.begin_anew(disk)),
            Err(_) => {}
        }
    }

    /// Goes over to the file at the path, or makes one.
    fn begin_anew(&mut self, disk: &OsDisk) -> io::Result<()> {
        let looked = self.looked;
        *self = Self { looked, ..Self::open(disk, &self.path)? };
        Ok(())
    }

    /// Appends as much as the system takes at once.
    fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.size += count as u64;
        if count == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(count) }
    }

    fn append_all(&mut self, text: &str) -> io::Result<()> {
        self.file.write_all(text.as_bytes())?;
        self.size += text.len() as u64;
        Ok(())
    }
}

/// Returns the path of the earlier part of a log that was rotated: `<log>.1`.
#[must_use]
pub fn earlier_part(log: &Path) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

/// A log that is being read. It stays open, so that nothing in it is missed when it is renamed or removed.
#[derive(Debug)]
pub struct Reader {
    file: File,
    inode: u64,
}

impl Reader {
    /// Opens a log; `None`: there is none.
    ///
    /// # Errors
    /// The error of the system.
    pub fn open(path: &Path) -> Result<Option<Self>, Error> {
        let Some(file) = found(open_plain(path)).on("open", path)? else { return Ok(None) };
        let inode = file.metadata().on("look at", path)?.ino();
        Ok(Some(Self { file, inode }))
    }

    /// Reads at most `limit` bytes from `offset` on; none behind its end.
    ///
    /// # Errors
    /// The error of the system.
    pub fn read(&self, offset: u64, limit: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; limit.min(usize::try_from(self.size()?.saturating_sub(offset)).unwrap_or(usize::MAX))];
        let mut filled = 0;
        while filled < bytes.len() {
            match self.file.read_at(&mut bytes[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }

    /// Its size, bytes.
    ///
    /// # Errors
    /// The error of the system.
    pub fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Returns its inode.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inode
    }
}
