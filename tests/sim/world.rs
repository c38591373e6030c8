//! One shared folder, one true time, the processes on every machine, and everything that ever happened.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::Duration;

use aios::exec::{Ending, StopCause};
use aios::model::lease::Lease;
use chrono::{DateTime, TimeDelta, Utc};

use super::check::Checker;
use super::notifier::OnItsWay;
use super::rng::Rng;
use super::scheduler::Scheduler;

/// What goes wrong, and how often (once in so many operations; 0: never).
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    pub(crate) crash: u64,
    pub(crate) pause: u64,
    pub(crate) stale: u64,
    pub(crate) lying_lock: bool,
    pub(crate) full: u64,
    pub(crate) lost_events: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct File {
    pub(crate) bytes: Rc<Vec<u8>>,
    pub(crate) inode: u64,
    pub(crate) changed: DateTime<Utc>,
}

/// One process on one machine.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) lease: Lease,
    pub(crate) device: usize,
    /// The life of the orchestrator that started it.
    pub(crate) life: u64,
    pub(crate) started_at: Duration,
    pub(crate) ends_at: Duration,
    pub(crate) ending: Ending,
    pub(crate) stopped: Option<StopCause>,
    pub(crate) ignores_term: bool,
    pub(crate) alive: bool,
}

pub(crate) struct World {
    pub(crate) files: RefCell<BTreeMap<PathBuf, File>>,
    pub(crate) folders: RefCell<BTreeSet<PathBuf>>,
    /// Who holds which lock: the life of an orchestrator.
    pub(crate) locks: RefCell<BTreeMap<PathBuf, u64>>,
    pub(crate) processes: RefCell<Vec<Process>>,
    pub(crate) letters: RefCell<Vec<OnItsWay>>,
    pub(crate) now: Cell<Duration>,
    pub(crate) faults: RefCell<Faults>,
    pub(crate) full_until: Cell<Duration>,
    /// Sessions whose orchestrator lives, by machine.
    pub(crate) living: RefCell<BTreeMap<usize, String>>,
    /// Nobody stands still, sees old files or finds the disk full: then nobody who lives may be taken for dead.
    pub(crate) calm: Cell<bool>,
    /// Nothing in this world makes a device start late what it has claimed.
    pub(crate) punctual: Cell<bool>,
    /// When it began, by the volume's time.
    pub(crate) epoch: DateTime<Utc>,
    /// Jobs run by themselves here.
    pub(crate) timed: bool,
    pub(crate) chance: RefCell<Rng>,
    pub(crate) check: RefCell<Checker>,
    pub(crate) scheduler: RefCell<Weak<Scheduler>>,
    next_inode: Cell<u64>,
}

impl World {
    pub(crate) fn new(seed: u64, check: Checker) -> Self {
        Self {
            files: RefCell::default(),
            folders: RefCell::default(),
            locks: RefCell::default(),
            processes: RefCell::default(),
            letters: RefCell::default(),
            now: Cell::new(Duration::from_secs(1_000)),
            faults: RefCell::default(),
            full_until: Cell::default(),
            living: RefCell::default(),
            calm: Cell::new(false),
            punctual: Cell::new(false),
            epoch: super::timed::epoch(seed),
            timed: Rng::new(seed, "timed").one_in(2),
            chance: RefCell::new(Rng::new(seed, "faults")),
            check: RefCell::new(check),
            scheduler: RefCell::default(),
            next_inode: Cell::new(1),
        }
    }

    /// Wall time as the folder's server has it.
    pub(crate) fn wall(&self) -> DateTime<Utc> {
        self.epoch + TimeDelta::from_std(self.now.get() - Duration::from_secs(1_000)).unwrap()
    }

    pub(crate) fn one_in(&self, n: u64) -> bool {
        self.chance.borrow_mut().one_in(n)
    }

    pub(crate) fn between(&self, from: u64, to: u64) -> u64 {
        self.chance.borrow_mut().between(from, to)
    }

    pub(crate) fn make_folders(&self, path: &Path) {
        let mut folders = self.folders.borrow_mut();
        for folder in path.ancestors() {
            folders.insert(folder.to_owned());
        }
    }

    /// Puts a file somewhere, over whatever is there, and shows it to the checker.
    pub(crate) fn put(&self, path: &Path, bytes: Vec<u8>) {
        let inode = self.next_inode.get();
        self.next_inode.set(inode + 1);
        let file = File { bytes: Rc::new(bytes), inode, changed: self.wall() };
        self.files.borrow_mut().insert(path.to_owned(), file);
        self.notify(path);
    }

    /// A file of a person's, dropped in one piece.
    pub(crate) fn drop_file(&self, path: &Path, bytes: Vec<u8>) {
        self.put(path, bytes);
    }

    /// Tells the devices that something changed at a path, unless the event is lost.
    pub(crate) fn notify(&self, path: &Path) {
        let lost = self.faults.borrow().lost_events;
        if let Some(scheduler) = self.scheduler.borrow().upgrade() {
            scheduler.tell(path, |_| self.one_in(lost));
        }
    }

    /// Ends the processes of one life of a device, as the death of a container does.
    pub(crate) fn end_processes(&self, device: usize) {
        for process in self.processes.borrow_mut().iter_mut().filter(|process| process.device == device) {
            process.alive = false;
        }
    }
}
