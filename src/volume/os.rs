//! The real file system.
#![expect(clippy::disallowed_methods, reason = "this file is where the bans point to")]

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use fs2::FileExt;
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, UTIME_NOW};
use rustix::io::Errno;

use super::disk::{Disk, Guard, Kind, Meta};
use super::layout::Layout;
use super::{Error, is_absent};
use crate::model::entry::FileId;
use crate::model::space::Space;

/// How files of others are read: no link is followed, nothing blocks.
const READ: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// The file system of this machine.
#[derive(Debug, Default)]
pub struct OsDisk {
    /// Lock files stay open: a lock then costs two calls instead of five.
    locks: RefCell<Vec<(PathBuf, Rc<LockFile>)>>,
}

impl OsDisk {
    /// A handle that shares nothing with others.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock_file(&self, path: &Path) -> io::Result<Rc<LockFile>> {
        if let Some((_, file)) = self.locks.borrow().iter().find(|(known, _)| known == path) {
            return Ok(Rc::clone(file));
        }
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let held = file.metadata()?;
        let file = Rc::new(LockFile { file, which: (held.dev(), held.ino()) });
        self.locks.borrow_mut().push((path.to_owned(), Rc::clone(&file)));
        Ok(file)
    }

    fn forget_lock_file(&self, path: &Path) {
        self.locks.borrow_mut().retain(|(known, _)| known != path);
    }
}

/// An open lock file, and which file it is.
#[derive(Debug)]
struct LockFile {
    file: File,
    which: (u64, u64),
}

/// Unlocks explicitly: a child between fork and exec still shares the descriptor.
struct Unlock(Rc<LockFile>);

impl Drop for Unlock {
    fn drop(&mut self) {
        if let Err(error) = FileExt::unlock(&self.0.file) {
            tracing::error!(%error, "cannot unlock; the lock ends with this process");
        }
    }
}

/// Boot time: it runs through suspend, and no step of a clock moves it.
#[must_use]
pub fn boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Where the system cannot rename without replacing. A hard link does not replace either, but a crash between link and removal
/// leaves both names: good for a temporary file, which is swept. A file of a person's must never lie in two places: it is
/// renamed, and that nothing lies at its new name is known by the lock and by the run id in the name.
fn rename_new_in_steps(from: &Path, to: &Path) -> io::Result<()> {
    let is_temporary = from.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    if is_temporary {
        fs::hard_link(from, to)?;
        return fs::remove_file(from);
    }
    match fs::symlink_metadata(to) {
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::rename(from, to),
        Err(error) => Err(error),
    }
}

impl Disk for OsDisk {
    fn list(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        let fd = rustix::fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(fd)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
        }
        Ok(names)
    }

    fn stat(&self, path: &Path) -> io::Result<Meta> {
        Ok(meta(&rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)?))
    }

    fn read(&self, path: &Path, limit: u64) -> io::Result<(Vec<u8>, Meta)> {
        let fd = match rustix::fs::open(path, READ, Mode::empty()) {
            Ok(fd) => fd,
            // A link, or a socket or device without a driver: what it is matters more than why it cannot be opened.
            Err(Errno::LOOP | Errno::NXIO | Errno::NODEV) => {
                return Ok((Vec::new(), self.stat(path)?));
            }
            Err(error) => return Err(error.into()),
        };
        let mut file = File::from(fd);
        let seen = meta(&rustix::fs::fstat(&file)?);
        if seen.kind != Kind::File || seen.id.size > limit {
            return Ok((Vec::new(), seen));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(seen.id.size).unwrap_or(0) + 1);
        Read::by_ref(&mut file).take(limit + 1).read_to_end(&mut bytes)?;
        // It may have grown while it was read: the size that was read is the one that counts.
        let id = FileId { size: bytes.len() as u64, ..seen.id };
        Ok((bytes, Meta { id, ..seen }))
    }

    fn read_head(&self, path: &Path, limit: usize) -> io::Result<Vec<u8>> {
        let mut head = vec![0; limit];
        let mut file = File::open(path)?;
        let mut filled = 0;
        while filled < limit {
            let more = file.read(&mut head[filled..])?;
            filled += more;
            // A regular file gives less than was asked for only at its end.
            if filled < limit {
                break;
            }
        }
        head.truncate(filled);
        Ok(head)
    }

    fn create(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        file.write_all(bytes).inspect_err(|_| {
            // Half a file helps nobody; that it cannot be removed either changes nothing.
            let _ = fs::remove_file(path);
        })
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        // NFS and some FUSE file systems do not know the flag.
        if renames_at_once(from, to)? { Ok(()) } else { rename_new_in_steps(from, to) }
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        // FAT and some network file systems refuse every link with EPERM, as they would one that is not allowed.
        fs::hard_link(from, to).map_err(|error| match error.raw_os_error() {
            Some(errno)
                if [Errno::PERM, Errno::OPNOTSUPP, Errno::NOSYS].iter().any(|no| no.raw_os_error() == errno) =>
            {
                io::Error::new(io::ErrorKind::Unsupported, error)
            }
            Some(_) | None => error,
        })
    }

    fn replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn touch(&self, path: &Path) -> io::Result<()> {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn boot(&self) -> Duration {
        boot()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        match fs::remove_dir(path) {
            // The other of the two words that POSIX has for it.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(io::ErrorKind::DirectoryNotEmpty.into()),
            done => done,
        }
    }

    fn make_folders(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        remove_tree(path)
    }

    fn make_folder_with(&self, path: &Path, mode: u32) -> io::Result<()> {
        fs::create_dir_all(path)?;
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Guard>> {
        // Twice, because the file may turn out to be another one than the one kept open.
        for _ in 0..2 {
            let file = self.lock_file(path)?;
            let guard = match FileExt::try_lock_exclusive(&file.file) {
                Ok(()) => Some(Unlock(Rc::clone(&file))),
                Err(error) if error.raw_os_error() == fs2::lock_contended_error().raw_os_error() => None,
                Err(error) => return Err(error),
            };
            // Of a lock file that was replaced only the one at the path counts.
            match fs::symlink_metadata(path) {
                Ok(at_path) if (at_path.dev(), at_path.ino()) == file.which => {
                    return Ok(guard.map(|guard| Box::new(guard) as Guard));
                }
                Err(error) if !is_absent(&error) => return Err(error),
                Ok(_) | Err(_) => self.forget_lock_file(path),
            }
        }
        Ok(None)
    }

    fn open_log(&self, path: &Path) -> io::Result<Option<File>> {
        OpenOptions::new().append(true).create_new(true).open(path).map(Some)
    }

    fn open_log_again(&self, path: &Path) -> io::Result<Option<File>> {
        OpenOptions::new().append(true).open(path).map(Some)
    }

    fn cut(&self, path: &Path, limit: u64) -> io::Result<u64> {
        let size = fs::symlink_metadata(path)?.len();
        if size > limit {
            OpenOptions::new().write(true).open(path)?.set_len(limit)?;
        }
        Ok(size.saturating_sub(limit))
    }

    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        OpenOptions::new().append(true).open(path)?.write_all(bytes)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let found = rustix::fs::statvfs(path)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(Space {
            free_bytes: bytes(found.f_bavail),
            total_bytes: bytes(found.f_blocks),
            free_inodes: found.f_favail,
            total_inodes: found.f_files,
        })
    }

    fn copy(&self, from: &Path, to: &Path, limit: u64) -> io::Result<u64> {
        let source = File::from(rustix::fs::open(from, READ, Mode::empty())?);
        let mut target = OpenOptions::new().write(true).create_new(true).open(to)?;
        io::copy(&mut source.take(limit), &mut target).inspect_err(|_| {
            // Half a copy helps nobody; that it cannot be removed either changes nothing.
            let _ = fs::remove_file(to);
        })
    }
}

/// Writes everything of the file system that a path is on to the disk.
///
/// # Errors
/// As the system says.
pub fn sync(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(path)?)?)
}

/// Writes a file that was just accepted, and its name, to the disk. Where a device takes it meanwhile, everything of the file system that
/// `common` is on is written.
///
/// # Errors
/// As the system says.
pub fn sync_accepted(common: &Path, path: &Path) -> io::Result<()> {
    let written = File::open(path).and_then(|file| file.sync_all());
    match written.and_then(|()| path.parent().map_or(Ok(()), sync_folder)) {
        Ok(()) if fs::symlink_metadata(path).is_ok() => Ok(()),
        // It has another name by now, or this file system writes no single folder.
        Ok(()) | Err(_) => sync(common),
    }
}

/// Writes the names in a folder to the disk.
///
/// # Errors
/// As the system says.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Finishes a new file before it takes its place: gives it the mode and, as far as this user may, the owner of another one,
/// and writes its content to the disk.
///
/// # Errors
/// As the system says.
pub fn settle(new: &Path, like: Option<&Path>) -> io::Result<()> {
    let file = File::open(new)?;
    // One that is gone, or may not be looked at, has no rights to hand on.
    if let Some(like) = like.and_then(|like| fs::symlink_metadata(like).ok()) {
        let made = file.metadata()?;
        // A group may be given away where an owner may not; where neither may, the file is this user's.
        if (made.uid(), made.gid()) != (like.uid(), like.gid()) {
            let _ =
                fchown(&file, Some(like.uid()), Some(like.gid())).or_else(|_| fchown(&file, None, Some(like.gid())));
        }
        if made.mode() != like.mode() {
            let outcome = file.set_permissions(like.permissions());
            // Some file systems know no modes.
            outcome
                .or_else(|error| if error.kind() == io::ErrorKind::PermissionDenied { Ok(()) } else { Err(error) })?;
        }
    }
    file.sync_all()
}

/// Makes a file that is not there yet and that nobody but this user may read, for what is too large to be held in memory.
///
/// # Errors
/// `AlreadyExists`, or as the system says.
pub fn create_private(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Opens a regular file to read it bit by bit; no link is followed, nothing blocks.
///
/// # Errors
/// `InvalidInput` for anything but a regular file, or as the system says.
pub fn open_plain(path: &Path) -> io::Result<File> {
    let file = File::from(rustix::fs::open(path, READ, Mode::empty())?);
    if meta(&rustix::fs::fstat(&file)?).kind == Kind::File {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"))
    }
}

/// The rights of a file: the lowest nine bits of its mode. No link is followed.
///
/// # Errors
/// As the system says.
pub fn rights(path: &Path) -> io::Result<u32> {
    Ok(rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)?.st_mode & 0o777)
}

/// Finishes a new file before it takes its place: gives it these rights and the date of a change, and writes it to the disk where
/// that is not left to a [`sync`] of everything.
///
/// # Errors
/// As the system says.
pub fn finish(file: &File, rights: u32, modified: DateTime<Utc>, sync: bool) -> io::Result<()> {
    let outcome = file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(rights & 0o777));
    // Some file systems know no modes.
    outcome.or_else(|error| if error.kind() == io::ErrorKind::PermissionDenied { Ok(()) } else { Err(error) })?;
    let at = Timespec { tv_sec: modified.timestamp(), tv_nsec: modified.timestamp_subsec_nanos().into() };
    rustix::fs::futimens(file, &Timestamps { last_access: at, last_modification: at })?;
    if sync { file.sync_all() } else { Ok(()) }
}

/// Removes a folder that this program made, with everything in it.
///
/// # Errors
/// As the system says.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    fs::remove_dir_all(path)
}

/// Reads at most `limit` bytes of a growing file from `offset` on; none behind its end. No link is followed, nothing blocks.
///
/// # Errors
/// As the system says.
pub fn read_from(path: &Path, offset: u64, limit: u64) -> io::Result<Vec<u8>> {
    let mut file = File::from(rustix::fs::open(path, READ, Mode::empty())?);
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a file that somebody configured, such as a certificate: a link to it is meant, and is followed.
///
/// # Errors
/// As the system says; a file of more than `limit` bytes is refused.
pub fn read_configured(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = File::from(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?);
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

/// Writes a new file that only its owner may read.
///
/// # Errors
/// As the system says; half a file is removed.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = create_private(path)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).inspect_err(|_| {
        // Half a file helps nobody; that it cannot be removed either changes nothing.
        let _ = fs::remove_file(path);
    })
}

/// Whether a path is on a file system that other machines serve or that a program makes up: NFS, SMB, 9p, FUSE.
#[must_use]
pub fn is_network(path: &Path) -> bool {
    // From linux/magic.h and the SMB client's sources.
    const NETWORK: [u64; 6] = [0x6969, 0x517B, 0xFE53_4D42, 0xFF53_4D42, 0x0102_1997, 0x6573_5546];
    let there = path.ancestors().find_map(|path| rustix::fs::statfs(path).ok());
    there.is_some_and(|stat| NETWORK.contains(&(stat.f_type as u64 & 0xFFFF_FFFF)))
}

/// Who owns a file, and what its mode allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The permission bits.
    pub mode: u32,
}

/// Returns the owner of what is at a path, or of what a link there leads to.
///
/// # Errors
/// As the system says.
pub fn owner_of(path: &Path) -> io::Result<Owner> {
    Ok(owner(&rustix::fs::stat(path)?))
}

/// Returns the owner of what is at a path; of a link its own.
///
/// # Errors
/// As the system says.
pub fn link_owner_of(path: &Path) -> io::Result<Owner> {
    Ok(owner(&rustix::fs::lstat(path)?))
}

/// Looks for one of the devices' own files that this process may not read and write. What people have put there is not looked at.
#[must_use]
pub fn refused_file(layout: &Layout) -> Option<Error> {
    let devices = layout.devices();
    let names = fs::read_dir(&devices).into_iter().flatten().flatten().map(|entry| entry.path());
    let own = [layout.lock(), layout.state(), layout.volume_id(), layout.security()];
    own.into_iter().chain(names).find_map(|path| {
        let refused = rustix::fs::access(&path, Access::READ_OK | Access::WRITE_OK).err();
        let refused = refused.filter(|error| *error != Errno::NOENT)?;
        Some(Error { doing: "read and write", path, source: refused.into() })
    })
}

fn owner(found: &Stat) -> Owner {
    Owner { uid: found.st_uid, gid: found.st_gid, mode: found.st_mode & 0o7777 }
}

/// Renames without replacing, by the system's own means alone. `false`: it has none here, and nothing moved.
///
/// # Errors
/// As the system says.
pub fn renames_at_once(from: &Path, to: &Path) -> io::Result<bool> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => Ok(false),
        other => Ok(other.map(|()| true)?),
    }
}

/// Whether this user may write at a path, as its rights and its mount have it.
#[must_use]
pub fn may_write(path: &Path) -> bool {
    rustix::fs::access(path, Access::WRITE_OK).is_ok()
}

/// The rights of a file or folder, as `chmod` counts them; a link has none.
#[must_use]
pub fn mode_of(path: &Path) -> Option<u32> {
    let found = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    (FileType::from_raw_mode(found.st_mode) != FileType::Symlink).then_some(found.st_mode & 0o7777)
}

/// A path without links in it; as it is, if there is nothing.
#[must_use]
pub fn real_path(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// Which folder is at a path now.
#[must_use]
pub fn inode_of(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|meta| meta.ino())
}

fn meta(stat: &Stat) -> Meta {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Folder,
        FileType::Symlink => Kind::Link,
        FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice | FileType::Unknown => {
            Kind::Other
        }
    };
    let nanos = |seconds: i64, nanos: u64| seconds.saturating_mul(1_000_000_000).saturating_add_unsigned(nanos);
    let at = |seconds: i64, nanos: u64| DateTime::<Utc>::from_timestamp(seconds, u32::try_from(nanos).unwrap_or(0));
    Meta {
        kind,
        id: FileId {
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified_ns: nanos(stat.st_mtime, stat.st_mtime_nsec),
        },
        changed: at(stat.st_ctime, stat.st_ctime_nsec).unwrap_or_default(),
    }
}
