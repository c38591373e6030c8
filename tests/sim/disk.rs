//! A file system that crashes, pauses, fills up, shows old listings and lies about its lock, at any operation.

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

use super::world::{File, World};

/// The disk as one life of one orchestrator sees it.
pub(crate) struct SimDisk {
    pub(crate) world: Rc<World>,
    pub(crate) life: u64,
    pub(crate) device: usize,
    /// Set once this life is over: nothing it does has an effect any more.
    pub(crate) dead: Rc<Cell<bool>>,
    listings: RefCell<BTreeMap<PathBuf, Vec<OsString>>>,
    contents: RefCell<BTreeMap<PathBuf, File>>,
}

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
            listings: RefCell::default(),
            contents: RefCell::default(),
        }
    }

    /// Every operation passes here: time goes on, and something may go wrong.
    fn step<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
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
            When::Never => act(),
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
        let one_in = if self.holds_lock() { one_in.div_ceil(4) } else { one_in };
        if !self.world.one_in(one_in) {
            return;
        }
        // Under the lock never for as long as a lease: where the lock lies as well, no rename can know that it comes too late.
        let longest = match (self.holds_lock(), self.world.faults.borrow().lying_lock) {
            (true, false) => 30_000,
            (true, true) => 30_000,
            (false, _) => 30_000,
        };
        let span = Duration::from_millis(self.world.between(1, longest));
        let scheduler = self.world.scheduler.borrow().upgrade();
        if let Some(scheduler) = scheduler {
            scheduler.run_others(self.device, self.world.now.get() + span);
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

    fn relocate(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut file = self.file(from)?;
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

/// Whether the orchestrator made this file of a run itself: then it takes it out when the run is over.
fn is_own(bytes: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(bytes).is_ok_and(|run| run.get("cause").is_some())
}

pub(crate) fn crashed() -> io::Error {
    io::Error::other("this orchestrator is dead")
}

fn meta(file: &File) -> Meta {
    let id = FileId { inode: file.inode, size: file.bytes.len() as u64, modified_ns: i128::from(file.inode) };
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
        self.step(|| {
            if self.is_stale()
                && let Some(old) = self.listings.borrow().get(folder)
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
            self.listings.borrow_mut().insert(folder.to_owned(), names.clone());
            Ok(names)
        })
    }

    fn stat(&self, path: &Path) -> io::Result<Meta> {
        self.step(|| {
            if self.world.folders.borrow().contains(path) {
                let id = FileId { inode: 0, size: 0, modified_ns: 0 };
                return Ok(Meta { kind: Kind::Folder, id, changed: self.world.wall() });
            }
            Ok(meta(&self.file(path)?))
        })
    }

    fn read(&self, path: &Path, limit: u64) -> io::Result<(Vec<u8>, Meta)> {
        self.step(|| {
            let file = self.maybe_stale_file(path)?;
            let meta = meta(&file);
            Ok((if meta.id.size > limit { Vec::new() } else { file.bytes.to_vec() }, meta))
        })
    }

    fn read_head(&self, path: &Path, limit: usize) -> io::Result<Vec<u8>> {
        self.step(|| {
            let file = self.maybe_stale_file(path)?;
            Ok(file.bytes[..file.bytes.len().min(limit)].to_vec())
        })
    }

    fn create(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let torn = self.world.one_in(2);
        let made = self.step(|| {
            self.need_folder(path)?;
            self.is_full()?;
            if self.world.files.borrow().contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            self.world.put(path, bytes.to_vec());
            Ok(())
        });
        // Who died while it wrote leaves half a file.
        if made.is_err() && self.dead.get() && torn && self.world.files.borrow().contains_key(path) {
            self.world.put(path, bytes[..bytes.len() / 2].to_vec());
        }
        made
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(|| {
            if self.world.files.borrow().contains_key(to) {
                self.file(from)?;
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            self.relocate(from, to)
        })
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(|| {
            let file = self.file(from)?;
            self.need_folder(to)?;
            if self.world.files.borrow().contains_key(to) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            self.world.files.borrow_mut().insert(to.to_owned(), file);
            self.world.check.borrow_mut().linked(to, &self.world);
            Ok(())
        })
    }

    fn replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(|| {
            if to.ends_with(".state.lock") {
                // Another file is at the path now, and nobody holds that.
                self.world.locks.borrow_mut().remove(to);
            }
            self.relocate(from, to)
        })
    }

    fn touch(&self, _path: &Path) -> io::Result<()> {
        self.step(|| Ok(()))
    }

    fn boot(&self) -> Duration {
        self.world.now.get()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step(|| {
            let own = self.world.files.borrow().get(path).map(|file| is_own(&file.bytes));
            self.world.check.borrow_mut().removed(path, own.ok_or(io::ErrorKind::NotFound)?);
            self.world.files.borrow_mut().remove(path).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
        })
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.step(|| {
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
        self.step(|| {
            self.world.make_folders(path);
            Ok(())
        })
    }

    fn make_folder_with(&self, path: &Path, _: u32) -> io::Result<()> {
        self.make_folders(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Guard>> {
        self.step(|| {
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
        self.step(|| {
            self.is_full()?;
            let before = self.file(path).map_or_else(|_| Vec::new(), |file| file.bytes.to_vec());
            self.world.put(path, [&before, bytes].concat());
            Ok(())
        })
    }

    // Always plenty, and no step of its own: what a full disk does is seen at the writes.
    fn space(&self, _path: &Path) -> io::Result<Space> {
        let (bytes, inodes) = (1 << 40, 1 << 20);
        Ok(Space { free_bytes: bytes, total_bytes: bytes, free_inodes: inodes, total_inodes: inodes })
    }
}
