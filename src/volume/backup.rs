//! Backups: one archive of what a volume cannot do without, and its way back.
//!
//! **What is promised.** An archive holds one revision of the state together with the files of `Triggers/` - inbox, waiting, held,
//! keys - as they lay while that revision was the newest: both are read in one hold of the state's lock, under which alone runs
//! move. So each run that was open is in it exactly once, and each that was over is not. Results are listed after that hold: every
//! run that had ended by then has its final result in the archive, if it is young enough, and a run that ends while the archive is
//! written may be in it as open and with that result. The result counts: a restored volume puts such a run away. Files that stand
//! still - programs, keys, results - are listed first and read afterwards; if one has changed in between, all is gathered anew,
//! so that the manifest is exact.
//!
//! An archive has a temporary name until it is whole and on the disk. Whatever ends the work before leaves nothing, or a
//! temporary file that the sweep of leftovers removes.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use tar::{EntryType, Header};

use super::atomic::{Temporary, discard};
use super::disk::Disk;
use super::layout::Layout;
use super::os::{create_private, finish, sync_folder};
use super::{Context, Error, found, volume_id};
use crate::decide::backup::{due_in, surplus};
use crate::model::backup::{BackupName, Manifest, PATH_MOST, SCHEMA};
use crate::model::ids::DeviceId;
use crate::model::time::utc;

mod archive;
mod gather;
pub mod restore;
mod trace;

pub use archive::Archive;

use archive::MANIFEST;
use gather::{Content, File};

/// How young a result must be to come along, unless somebody says otherwise.
pub const RESULTS: Duration = Duration::from_secs(7 * 86_400);
/// How often everything is gathered anew because a file changed before it was read.
const TRIES: u32 = 3;
/// How many backups may begin in one second.
const SAME_SECOND: i64 = 10;
/// How well archives are compressed: zstd's own default, at which it is about as fast as a disk.
const LEVEL: i32 = 3;
/// How soon it is asked again where somebody else is at it.
const SOON: Duration = Duration::from_secs(1);

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The volume failed.
    #[error(transparent)]
    Volume(#[from] Error),
    /// Somebody else holds what is needed.
    #[error("{what} is held by another process")]
    Busy {
        /// What.
        what: &'static str,
    },
    /// It was asked to stop.
    #[error("it was asked to stop")]
    Stopped,
    /// A file changed each time before it was read.
    #[error("{} changed while it was archived, {TRIES} times in a row", .path.display())]
    Changed {
        /// Which.
        path: PathBuf,
    },
    /// More than an archive may hold.
    #[error("the volume holds {what}, which is more than an archive may hold")]
    TooMuch {
        /// What.
        what: String,
    },
    /// The state that was to be archived is none.
    #[error("state.json is damaged: {why}")]
    Damaged {
        /// What is wrong.
        why: String,
    },
    /// Written by a newer program.
    #[error("{what} has schema {found}, this program knows {known}")]
    Newer {
        /// What.
        what: &'static str,
        /// Its schema.
        found: u64,
        /// The newest that is known.
        known: u32,
    },
    /// It is no archive of this program's, or one that was damaged.
    #[error("{} is no sound backup: {what}", .path.display())]
    Bad {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A device lives on the volume.
    #[error("device {device} is alive on this volume, on host {host}")]
    Alive {
        /// Which.
        device: DeviceId,
        /// Where.
        host: String,
    },
    /// The folder is another volume.
    #[error("{} is the volume {found}, the archive is of the volume {archived}", .common.display())]
    OtherVolume {
        /// The folder.
        common: PathBuf,
        /// Its id.
        found: String,
        /// The archive's.
        archived: String,
    },
    /// Something would have to be replaced.
    #[error("{count} files that are there are other ones than in the archive: {}", .first.join(", "))]
    Occupied {
        /// How many.
        count: usize,
        /// Some of them.
        first: Vec<String>,
    },
    /// Something that is no folder, or no file, is where one has to be.
    #[error("{} is {found}, expected {expected}", .path.display())]
    InTheWay {
        /// Where.
        path: PathBuf,
        /// What it is.
        found: super::disk::Kind,
        /// What has to be there.
        expected: &'static str,
    },
    /// There is less room than the archive needs.
    #[error("{} has {free} bytes free, the archive needs {needed}", .path.display())]
    NoRoom {
        /// Where.
        path: PathBuf,
        /// What is free.
        free: u64,
        /// What is needed.
        needed: u64,
    },
}

impl Fault {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Volume(error) => error.hint(),
            Self::Busy { .. } => "try again in a moment",
            Self::Stopped => "",
            Self::Changed { .. } => "make the backup while nobody writes to that file",
            Self::TooMuch { .. } => "give a shorter --results, or take what is not needed out of Programs and Security",
            Self::Damaged { .. } => "start a device, which rebuilds it, and make the backup then",
            Self::Newer { .. } => "use the newer program on this machine too",
            Self::Bad { .. } => "take another backup: `orchestrator backup list` shows all",
            Self::Alive { .. } => "stop every device first: a volume is restored while nobody works on it",
            Self::OtherVolume { .. } => "restore it into an empty folder, or into its own volume",
            Self::Occupied { .. } => {
                "restore into an empty folder, or give --force: what it replaces is kept beside it"
            }
            Self::InTheWay { .. } => "no link is followed: move it out of the way",
            Self::NoRoom { .. } => "free space on that file system (df -h)",
        }
    }
}

/// What a backup is made with.
#[derive(Debug, Clone)]
pub struct Terms {
    /// Who makes it.
    pub device: DeviceId,
    /// Into which folder; made if it is missing.
    pub to: PathBuf,
    /// How young results must be to come along. The last of each job and those of open runs always do.
    pub results: Duration,
    /// When it is made.
    pub now: DateTime<Utc>,
}

/// A backup that was made.
#[derive(Debug, Clone, Serialize)]
pub struct Made {
    /// Where it lies.
    pub path: PathBuf,
    /// How large it is, bytes.
    pub bytes: u64,
    /// What is in it.
    pub manifest: Manifest,
}

/// A backup that is there.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// Its file's name.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    /// When it was begun.
    #[serde(with = "utc")]
    pub at: DateTime<Utc>,
    /// The beginning of its volume's id.
    pub volume: String,
    /// How large it is, bytes.
    pub bytes: u64,
}

/// Makes a backup. One is made at a time, over all devices. `stop` is asked at every file.
///
/// # Errors
/// [`Fault`]; then there is none, and nothing is left behind.
pub fn make(
    disk: &dyn Disk,
    layout: &Layout,
    names: &mut Temporary,
    terms: &Terms,
    stop: &dyn Fn() -> bool,
) -> Result<Made, Fault> {
    let volume = id_of(disk, layout)?;
    let lock = layout.backup_lock();
    let Some(_guard) = disk.lock(&lock).on("lock", &lock)? else {
        return Err(Fault::Busy { what: "the lock of backups" });
    };
    make_alone(disk, layout, names, terms, &volume, stop)
}

fn make_alone(
    disk: &dyn Disk,
    layout: &Layout,
    names: &mut Temporary,
    terms: &Terms,
    volume: &str,
    stop: &dyn Fn() -> bool,
) -> Result<Made, Fault> {
    disk.make_folders(&terms.to).on("make the folder", &terms.to)?;
    let mut tries = 1;
    loop {
        let content = gather::gather(disk, layout, terms, stop)?;
        let manifest = Manifest {
            schema: SCHEMA,
            state_schema: content.state_schema,
            volume: volume.to_owned(),
            created_at: terms.now,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            device: terms.device.clone(),
            parts: content.tallies(),
            skipped: content.skipped.clone(),
            skipped_count: content.skipped_count,
        };
        let staged = names.beside(&terms.to.join(BackupName::new(terms.now, volume).to_string()));
        let written = write(disk, layout, &staged, &manifest, &content, stop)
            .and_then(|()| publish(disk, &staged, terms, volume));
        match written {
            Err(Fault::Changed { .. }) if tries < TRIES => discard(disk, &staged),
            Err(fault) => {
                discard(disk, &staged);
                return Err(fault);
            }
            Ok(path) => {
                let bytes = disk.stat(&path).on("look at", &path)?.id.size;
                return Ok(Made { path, bytes, manifest });
            }
        }
        tries += 1;
    }
}

/// The id of a volume that must be there. An empty folder where it was mounted has none, and is left alone.
fn id_of(disk: &dyn Disk, layout: &Layout) -> Result<String, Fault> {
    let id = volume_id(disk, layout)?.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
    Ok(id.on("read", &layout.volume_id())?)
}

/// Refuses a state of a newer program.
fn check_state_schema(bytes: &[u8]) -> Result<(), Fault> {
    #[derive(serde::Deserialize)]
    struct Schema {
        schema: u64,
    }
    match serde_json::from_slice::<Schema>(bytes) {
        Ok(Schema { schema: found }) if found > u64::from(crate::model::state::SCHEMA) => {
            Err(Fault::Newer { what: "state.json", found, known: crate::model::state::SCHEMA })
        }
        // What is none is found out by whoever reads all of it.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Writes an archive under its temporary name, to the disk.
fn write(
    disk: &dyn Disk,
    layout: &Layout,
    staged: &Path,
    manifest: &Manifest,
    content: &Content,
    stop: &dyn Fn() -> bool,
) -> Result<(), Fault> {
    let out = create_private(staged).on("write", staged)?;
    let mut packed = zstd::Encoder::new(out, LEVEL).on("write", staged)?;
    packed.include_checksum(true).on("write", staged)?;
    let mut tar = tar::Builder::new(packed);
    let text = serde_json::to_vec_pretty(manifest).map_err(io::Error::from).on("write", staged)?;
    append(&mut tar, MANIFEST, 0o600, whole_seconds(manifest.created_at), &text).on("write", staged)?;
    for file in &content.files {
        if stop() {
            return Err(Fault::Stopped);
        }
        let read;
        let bytes = match &file.bytes {
            Some(bytes) => bytes,
            None => {
                read = still(disk, layout, file)?;
                &read
            }
        };
        append(&mut tar, &file.place.name, file.rights, whole_seconds(file.modified), bytes).on("write", staged)?;
    }
    let out = tar.into_inner().and_then(zstd::Encoder::finish).on("write", staged)?;
    Ok(finish(&out, 0o600, manifest.created_at, true).on("write", staged)?)
}

/// Whole seconds since 1970: what tar keeps of a date.
fn whole_seconds(at: DateTime<Utc>) -> u64 {
    u64::try_from(at.timestamp()).unwrap_or(0)
}

/// Reads a file that was listed, if it still is that one.
fn still(disk: &dyn Disk, layout: &Layout, file: &File) -> Result<Vec<u8>, Fault> {
    let path = file.place.path(layout);
    match found(disk.read(&path, archive::limit(file.place.part))).on("read", &path)? {
        Some((bytes, meta)) if meta.id == file.id && bytes.len() as u64 == file.id.size => Ok(bytes),
        Some(_) | None => Err(Fault::Changed { path }),
    }
}

fn append(tar: &mut tar::Builder<impl Write>, name: &str, rights: u32, seconds: u64, bytes: &[u8]) -> io::Result<()> {
    debug_assert!(name.len() <= PATH_MOST);
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_size(bytes.len() as u64);
    header.set_mode(rights);
    header.set_mtime(seconds);
    tar.append_data(&mut header, name, bytes)
}

/// Gives an archive its name. One of the same second is not replaced: then the name is of the next, and the names of those that are
/// made one after the other are in that order.
fn publish(disk: &dyn Disk, staged: &Path, terms: &Terms, volume: &str) -> Result<PathBuf, Fault> {
    let mut path = PathBuf::new();
    let own = BackupName::new(terms.now, volume);
    let ahead = names_in(disk, &terms.to)?.into_iter().filter(|name| name.volume == own.volume);
    let ahead =
        ahead.map(|name| (name.at - own.at).num_seconds() + 1).filter(|ahead| (1..=SAME_SECOND).contains(ahead));
    let first = ahead.max().unwrap_or(0);
    for later in first..first + SAME_SECOND {
        let name = BackupName::new(terms.now + TimeDelta::seconds(later), volume);
        path = terms.to.join(name.to_string());
        match disk.rename_new(staged, &path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            done => {
                done.and_then(|()| sync_folder(&terms.to)).on("write", &path)?;
                return Ok(path);
            }
        }
    }
    Err(io::Error::from(io::ErrorKind::AlreadyExists)).on("write", &path).map_err(Fault::from)
}

/// The backups in a folder, oldest first. What else lies there is none of them.
///
/// # Errors
/// What the system said.
pub fn list(disk: &dyn Disk, folder: &Path) -> Result<Vec<Listed>, Error> {
    let mut all = Vec::new();
    for name in names_in(disk, folder)? {
        let path = folder.join(name.to_string());
        let Some(meta) = found(disk.stat(&path)).on("look at", &path)? else { continue };
        let bytes = meta.id.size;
        all.push(Listed { name: name.to_string(), path, at: name.at, volume: name.volume, bytes });
    }
    Ok(all)
}

fn names_in(disk: &dyn Disk, folder: &Path) -> Result<BTreeSet<BackupName>, Error> {
    let names = found(disk.list(folder)).on("list", folder)?.unwrap_or_default();
    Ok(names.iter().filter_map(|name| BackupName::parse(name.to_str()?)).collect())
}

/// Removes all but the newest `keep` backups of this volume from a folder; says which went. The one that was just made stays,
/// whatever the clock was when others were named.
///
/// # Errors
/// What the system said; some may be gone then.
pub fn prune(disk: &dyn Disk, layout: &Layout, folder: &Path, keep: usize, made: &Made) -> Result<Vec<String>, Fault> {
    let own = BackupName::new(DateTime::UNIX_EPOCH, &id_of(disk, layout)?);
    let mut others = names_in(disk, folder)?;
    others.retain(|name| made.path.file_name() != Some(name.to_string().as_ref()));
    let mut gone = Vec::new();
    for name in surplus(&others, &own.volume, keep.saturating_sub(1)) {
        let path = folder.join(name.to_string());
        if found(disk.remove(&path)).on("remove", &path)?.is_some() {
            gone.push(name.to_string());
        }
    }
    Ok(gone)
}

/// What backups by the clock are held to.
#[derive(Debug, Clone)]
pub struct Rounds {
    /// The volume's random id: another folder in its place is left alone.
    pub volume: String,
    /// How the backup is made.
    pub terms: Terms,
    /// How long after the newest one the next is due, whoever made it.
    pub every: Duration,
    /// How many stay.
    pub keep: usize,
}

/// What came of a look whether a backup is due.
#[derive(Debug)]
pub enum Turn {
    /// It is not, or another device is at it. Ask again after this.
    Later(Duration),
    /// One was made, and so many older ones went.
    Done(Box<Made>, usize),
}

/// Makes a backup if one is due and no other device is at it, then removes those that are too many.
///
/// Devices agree by the names in the folder and the lock of [`Layout::backup_lock`], which ends with its holder. Nothing is removed
/// but behind a backup that was made.
///
/// # Errors
/// [`Fault`]: no backup was made, or what is too many could not be removed.
pub fn round(
    disk: &dyn Disk,
    layout: &Layout,
    names: &mut Temporary,
    rounds: &Rounds,
    stop: &dyn Fn() -> bool,
) -> Result<Turn, Fault> {
    if volume_id(disk, layout)?.as_ref() != Some(&rounds.volume) {
        return Ok(Turn::Later(rounds.every));
    }
    let Rounds { volume, terms, every, keep } = rounds;
    let not_yet = || -> Result<Option<Duration>, Fault> {
        let own = BackupName::new(terms.now, volume).volume;
        let newest = names_in(disk, &terms.to)?.into_iter().rfind(|name| name.volume == own);
        Ok(due_in(newest.map(|name| name.at), *every, terms.now))
    };
    if let Some(rest) = not_yet()? {
        return Ok(Turn::Later(rest));
    }
    let lock = layout.backup_lock();
    let Some(_guard) = disk.lock(&lock).on("lock", &lock)? else { return Ok(Turn::Later(SOON.min(*every))) };
    // Another device may just have been at it.
    if let Some(rest) = not_yet()? {
        return Ok(Turn::Later(rest));
    }
    match make_alone(disk, layout, names, terms, volume, stop) {
        Err(Fault::Busy { .. }) => Ok(Turn::Later(SOON.min(*every))),
        made => {
            let made = made?;
            let gone = prune(disk, layout, &terms.to, *keep, &made)?;
            Ok(Turn::Done(Box::new(made), gone.len()))
        }
    }
}
