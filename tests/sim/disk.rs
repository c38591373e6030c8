//! A file system that crashes, pauses, fills up, shows old listings and lies about its lock, at any operation.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File as RealFile;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use aios::model::entry::FileId;
use aios::model::space::Space;
use aios::volume::disk::{Disk, Guard, Kind, Meta};

use super::faults::{Kind as Fault, Op, any_error, trouble};
use super::scheduler::KEEPER;
use super::versions;
use super::world::{File, World};

/// The disk as one life of one orchestrator sees it.
pub(crate) struct SimDisk {
    pub(crate) world: Rc<World>,
    pub(crate) life: u64,
    pub(crate) device: usize,
    /// Set once this life is over: nothing it does has an effect any more.
    pub(crate) dead: Rc<Cell<bool>>,
    /// Whether its program is the newer one.
    is_newer: bool,
    listings: RefCell<BTreeMap<PathBuf, (Duration, Vec<OsString>)>>,
    /// The file at each path when it was looked at last.
    seen: RefCell<BTreeMap<PathBuf, (Duration, Option<File>)>>,
    contents: RefCell<BTreeMap<PathBuf, File>>,
}

/// For how long what was seen may be shown once more.
const CACHED: Duration = Duration::from_secs(60);

enum When {
    Before,
    After,
    Never,
}

impl SimDisk {
    pub(crate) fn new(world: &Rc<World>, life: u64, device: usize, dead: &Rc<Cell<bool>>) -> Self {
        Self {
            world: Rc::clone(world),
            life,
            device,
            dead: Rc::clone(dead),
            is_newer: false,
            listings: RefCell::default(),
            seen: RefCell::default(),
            contents: RefCell::default(),
        }
    }

    /// Every operation passes here: time goes on, and something may go wrong.
    fn step<T>(&self, op: Op, path: &Path, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.dead.get() {
            return Err(crashed());
        }
        let micros = self.world.between(1, 40);
        self.world.now.set(self.world.now.get() + Duration::from_micros(micros));
        self.perhaps_pause();
        if self.dead.get() {
            return Err(crashed());
        }
        match self.crashes() {
            When::Before => {
                self.die();
                Err(crashed())
            }
            When::After => {
                let _ = act();
                self.die();
                Err(crashed())
            }
            When::Never => {
                trouble(&self.world, self.device, op, path)?;
                let done = act()?;
                if op.changes() && self.world.one_in(self.world.faults.borrow().rate(Fault::Unsaid)) {
                    return Err(any_error(&self.world));
                }
                Ok(done)
            }
        }
    }

    fn crashes(&self) -> When {
        let mut one_in = self.world.faults.borrow().crash;
        // Oftener while it holds the lock: that is where order matters.
        if self.holds_lock() {
            one_in = one_in.div_ceil(4);
        }
        if !self.world.one_in(one_in) {
            When::Never
        } else if self.world.one_in(2) {
            When::Before
        } else {
            When::After
        }
    }

    fn die(&self) {
        self.dead.set(true);
        self.world.locks.borrow_mut().retain(|_, life| *life != self.life);
    }

    fn holds_lock(&self) -> bool {
        self.world.locks.borrow().iter().any(|(path, life)| *life == self.life && path.ends_with(".state.lock"))
    }

    /// This orchestrator stands still, mid-operation, while the others go on.
    fn perhaps_pause(&self) {
        let one_in = self.world.faults.borrow().pause;
        let holds = self.holds_lock();
        let one_in = if holds { one_in.div_ceil(4) } else { one_in };
        if self.world.one_in(one_in) {
            // Also under the lock for several leases: the others replace its file.
            self.world.stand_still(self.device, Duration::from_millis(self.world.between(1, 30_000)), 1);
        }
        self.world.perhaps_stand_still(self.device);
        if self.world.one_in(self.world.faults.borrow().rate(Fault::PausedDeath)) {
            self.world.stand_still(self.device, Duration::from_millis(self.world.between(1, 10_000)), 2);
            self.die();
            self.world.stand_still(self.device, Duration::from_millis(self.world.between(1, 20_000)), 2);
        }
    }

    fn is_full(&self) -> io::Result<()> {
        let one_in = self.world.faults.borrow().full;
        if self.world.now.get() >= self.world.full_until.get() && self.world.one_in(one_in) {
            let span = Duration::from_millis(self.world.between(1, 5_000));
            self.world.full_until.set(self.world.now.get() + span);
        }
        if self.world.now.get() < self.world.full_until.get() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    /// Under the lock a network file system shows the truth; without it perhaps what it showed before.
    fn is_stale(&self) -> bool {
        let one_in = self.world.faults.borrow().stale;
        !self.holds_lock() && self.world.one_in(one_in)
    }

    fn file(&self, path: &Path) -> io::Result<File> {
        self.world.files.borrow().get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn maybe_stale_file(&self, path: &Path) -> io::Result<File> {
        if self.is_stale()
            && let Some(old) = self.contents.borrow().get(path)
        {
            return Ok(old.clone());
        }
        let file = self.file(path)?;
        if path.starts_with("/c/Devices") || path.ends_with("state.json") {
            self.contents.borrow_mut().insert(path.to_owned(), file.clone());
        }
        Ok(file)
    }

    fn need_folder(&self, path: &Path) -> io::Result<()> {
        let folder = path.parent().unwrap();
        if self.world.folders.borrow().contains(folder) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    /// Shows the judge whether a heartbeat could be written.
    fn note_beat(&self, path: &Path, done: bool) {
        if path.starts_with("/c/Devices") && !self.dead.get() {
            let session = self.world.living.borrow().get(&self.device).cloned();
            self.world.check.borrow_mut().beat(self.device, session, self.world.now.get(), done);
        }
    }

    /// The disk as the older or the newer program sees it.
    pub(crate) fn of_version(self, is_newer: bool) -> Self {
        Self { is_newer, ..self }
    }

    /// Returns what this device's program reads.
    fn shown<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        if self.is_newer { versions::read_by_newer(bytes) } else { bytes.into() }
    }

    /// A second name for a file that was written aside.
    fn add_name(&self, from: &Path, to: &Path) -> io::Result<()> {
        let file = self.file(from)?;
        self.need_folder(to)?;
        self.forget(to);
        self.world.files.borrow_mut().insert(to.to_owned(), file);
        self.world.check.borrow_mut().linked(from, to, (self.device, self.is_newer), &self.world);
        self.world.notify(to);
        Ok(())
    }

    /// A device that changes a name sees what becomes of it.
    fn forget(&self, path: &Path) {
        self.seen.borrow_mut().remove(path);
        self.listings.borrow_mut().remove(path.parent().unwrap_or(path));
    }

    /// Returns whether what is cached is shown once more, also under the lock.
    fn is_cached(&self) -> bool {
        self.world.one_in(self.world.faults.borrow().rate(Fault::Caches))
    }

    fn relocate(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut file = self.file(from)?;
        self.forget(from);
        self.forget(to);
        self.need_folder(to)?;
        file.changed = self.world.wall();
        self.world.check.borrow_mut().before_replace(to, &self.world.files.borrow());
        self.world.files.borrow_mut().remove(from);
        self.world.files.borrow_mut().insert(to.to_owned(), file);
        self.world.check.borrow_mut().moved(from, to, self.device, &self.world);
        self.world.notify(from);
        self.world.notify(to);
        Ok(())
    }
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

/// Whether the orchestrator made this file of a run itself: then it takes it out when the run is over.
pub(crate) fn is_own(bytes: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(bytes).is_ok_and(|run| run.get("cause").is_some())
}

pub(crate) fn crashed() -> io::Error {
    io::Error::other("this orchestrator is dead")
}

fn meta(file: &File) -> Meta {
    let id = FileId { inode: file.inode, size: file.bytes.len() as u64, modified_ns: file.modified };
    Meta { kind: Kind::File, id, changed: file.changed }
}

/// Gives the lock back, if its life still has it.
struct Unlock {
    world: Rc<World>,
    path: PathBuf,
    life: u64,
}

impl Drop for Unlock {
    fn drop(&mut self) {
        let mut locks = self.world.locks.borrow_mut();
        if locks.get(&self.path) == Some(&self.life) {
            locks.remove(&self.path);
        }
    }
}

impl Disk for SimDisk {
    fn list(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        self.step(Op::List, folder, || {
            let (stale, cached, now) = (self.is_stale(), self.is_cached(), self.world.now.get());
            if (stale || cached)
                && let Some((at, old)) = self.listings.borrow().get(folder)
                && (stale || now - *at < CACHED)
            {
                return Ok(old.clone());
            }
            if !self.world.folders.borrow().contains(folder) {
                return Err(io::ErrorKind::NotFound.into());
            }
            let name = |path: &PathBuf| path.file_name().unwrap().to_owned();
            let files = self.world.files.borrow();
            let from = files.range(folder.to_owned()..).take_while(|(path, _)| path.starts_with(folder));
            let mut names: Vec<_> =
                from.map(|(path, _)| path).filter(|path| path.parent() == Some(folder)).map(name).collect();
            let folders = self.world.folders.borrow();
            let below = folders.range(folder.to_owned()..).take_while(|path| path.starts_with(folder));
            names.extend(below.filter(|path| path.parent() == Some(folder)).map(name));
            self.listings.borrow_mut().insert(folder.to_owned(), (now, names.clone()));
            Ok(names)
        })
    }

    fn stat(&self, path: &Path) -> io::Result<Meta> {
        self.step(Op::Stat, path, || {
            if self.world.folders.borrow().contains(path) {
                let id = FileId { inode: 0, size: 0, modified_ns: 0 };
                return Ok(Meta { kind: Kind::Folder, id, changed: self.world.wall() });
            }
            let now = self.world.now.get();
            if !self.world.faults.borrow().has(Fault::Caches) {
                return Ok(meta(&self.file(path)?));
            }
            let old = self.seen.borrow().get(path).filter(|(at, _)| now - *at < CACHED).cloned();
            let file = match old {
                Some((_, old)) if self.is_cached() => old,
                Some(_) | None => {
                    let file = self.file(path).ok();
                    self.seen.borrow_mut().insert(path.to_owned(), (now, file.clone()));
                    file
                }
            };
            file.as_ref().map(meta).ok_or_else(|| io::ErrorKind::NotFound.into())
        })
    }

    fn read(&self, path: &Path, limit: u64) -> io::Result<(Vec<u8>, Meta)> {
        self.step(Op::Read, path, || {
            let file = self.maybe_stale_file(path)?;
            let meta = meta(&file);
            Ok((if meta.id.size > limit { Vec::new() } else { self.shown(&file.bytes).into_owned() }, meta))
        })
    }

    fn read_head(&self, path: &Path, limit: usize) -> io::Result<Vec<u8>> {
        self.step(Op::Read, path, || {
            let file = self.maybe_stale_file(path)?;
            let shown = self.shown(&file.bytes);
            Ok(shown[..shown.len().min(limit)].to_vec())
        })
    }

    fn create(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let bytes = &*if self.is_newer { versions::written_by_newer(bytes) } else { bytes.into() };
        let torn = self.world.one_in(2);
        let made = self.step(Op::Create, path, || {
            self.need_folder(path)?;
            self.is_full()?;
            if self.world.files.borrow().contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            self.forget(path);
            self.world.put(path, bytes.to_vec());
            Ok(())
        });
        if made.is_err() {
            self.note_beat(path, false);
        }
        // Who died while it wrote leaves half a file.
        if made.is_err() && self.dead.get() && torn && self.world.files.borrow().contains_key(path) {
            self.world.put(path, bytes[..bytes.len() / 2].to_vec());
        }
        made
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        let is_free = || {
            if self.world.files.borrow().contains_key(to) {
                self.file(from)?;
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            Ok(())
        };
        if !self.world.faults.borrow().has(Fault::TwoSteps) {
            return self.step(Op::Rename, from, || is_free().and_then(|()| self.relocate(from, to)));
        }
        if is_hidden(from) {
            self.link(from, to)?;
            return self.remove(from);
        }
        self.step(Op::Stat, to, is_free)?;
        self.step(Op::Rename, from, || self.relocate(from, to))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(Op::Rename, to, || {
            if self.world.files.borrow().contains_key(to) {
                self.file(from)?;
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            self.add_name(from, to)
        })
    }

    fn replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        let done = self.step(Op::Replace, to, || {
            if to.ends_with(".state.lock") {
                // Another file is at the path now, and nobody holds that.
                self.world.locks.borrow_mut().remove(to);
            }
            self.relocate(from, to)
        });
        self.note_beat(to, done.is_ok());
        done
    }

    fn touch(&self, path: &Path) -> io::Result<()> {
        self.world.check.borrow_mut().told_others(self.device);
        self.step(Op::Touch, path, || {
            self.world.notify(path);
            Ok(())
        })
    }

    fn boot(&self) -> Duration {
        self.world.boot_of(self.device)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step(Op::Remove, path, || {
            let own = self.world.files.borrow().get(path).map(|file| is_own(&file.bytes));
            let own = own.ok_or(io::ErrorKind::NotFound)?;
            if self.device == KEEPER {
                self.world.check.borrow_mut().kept_long_enough(path, &self.world);
            } else {
                self.world.check.borrow_mut().removed(path, own, self.device);
            }
            self.forget(path);
            self.world.take_out(path).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
        })
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.step(Op::Folder, path, || {
            let mut folders = self.world.folders.borrow_mut();
            if !folders.contains(path) {
                return Err(io::ErrorKind::NotFound.into());
            }
            let is_below = |other: &PathBuf| other.starts_with(path) && other != path;
            if folders.iter().any(is_below) || self.world.files.borrow().keys().any(is_below) {
                return Err(io::ErrorKind::DirectoryNotEmpty.into());
            }
            folders.remove(path);
            Ok(())
        })
    }

    fn make_folders(&self, path: &Path) -> io::Result<()> {
        self.step(Op::Folder, path, || {
            self.world.make_folders(path);
            Ok(())
        })
    }

    fn make_folder_with(&self, path: &Path, _: u32) -> io::Result<()> {
        self.make_folders(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Guard>> {
        self.step(Op::Lock, path, || {
            let lies = self.world.faults.borrow().lying_lock && path.ends_with(".state.lock");
            let mut locks = self.world.locks.borrow_mut();
            match locks.get(path) {
                Some(holder) if *holder != self.life && !lies => Ok(None),
                Some(_) | None => {
                    locks.insert(path.to_owned(), self.life);
                    let unlock = Unlock { world: Rc::clone(&self.world), path: path.to_owned(), life: self.life };
                    Ok(Some(Box::new(unlock) as Guard))
                }
            }
        })
    }

    fn open_log(&self, path: &Path) -> io::Result<Option<RealFile>> {
        self.create(path, b"").map(|()| None)
    }

    fn open_log_again(&self, path: &Path) -> io::Result<Option<RealFile>> {
        self.stat(path).map(|_| None)
    }

    fn cut(&self, _path: &Path, _limit: u64) -> io::Result<u64> {
        Ok(0)
    }

    fn copy(&self, from: &Path, to: &Path, limit: u64) -> io::Result<u64> {
        let bytes = self.read_head(from, usize::try_from(limit).unwrap_or(usize::MAX))?;
        self.create(to, &bytes)?;
        Ok(bytes.len() as u64)
    }

    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        // Logs have no content here.
        if !path.ends_with(".state.lock") {
            return Ok(());
        }
        self.step(Op::Append, path, || {
            self.is_full()?;
            let before = self.file(path).map_or_else(|_| Vec::new(), |file| file.bytes.to_vec());
            self.world.put(path, [&before, bytes].concat());
            Ok(())
        })
    }

    // Always plenty, and no step of its own: what a full disk does is seen at the writes.
    fn space(&self, path: &Path) -> io::Result<Space> {
        trouble(&self.world, self.device, Op::Stat, path)?;
        let (bytes, inodes) = (1 << 40, 1 << 20);
        Ok(Space { free_bytes: bytes, total_bytes: bytes, free_inodes: inodes, total_inodes: inodes })
    }
}
