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
use super::faults::{Faults, Kind, Trouble};
use super::notifier::OnItsWay;
use super::rng::Rng;
use super::scheduler::Scheduler;

#[derive(Debug, Clone)]
pub(crate) struct File {
    pub(crate) bytes: Rc<Vec<u8>>,
    pub(crate) inode: u64,
    pub(crate) modified: i128,
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
    pub(crate) troubles: RefCell<Vec<Trouble>>,
    /// Sessions whose orchestrator lives, by machine.
    pub(crate) living: RefCell<BTreeMap<usize, String>>,
    /// Nobody stands still, sees old files or finds the disk full: then nobody who lives may be taken for dead.
    pub(crate) calm: Cell<bool>,
    /// Nothing in this world makes a device start late what it has claimed.
    pub(crate) punctual: Cell<bool>,
    /// When it began, by the volume's time.
    pub(crate) epoch: DateTime<Utc>,
    /// Its seed once found a fault, and its history is to stay as it was.
    pub(crate) is_kept: bool,
    /// Jobs run by themselves here.
    pub(crate) timed: bool,
    pub(crate) chance: RefCell<Rng>,
    pub(crate) check: RefCell<Checker>,
    pub(crate) scheduler: RefCell<Weak<Scheduler>>,
    next_inode: Cell<u64>,
    /// Numbers of files that are gone.
    free_inodes: RefCell<Vec<u64>>,
    /// By how much the volume's clock was set.
    clock_step: Cell<TimeDelta>,
}

impl World {
    pub(crate) fn new(seed: u64, check: Checker, faults: &Faults) -> Self {
        Self {
            files: RefCell::default(),
            folders: RefCell::default(),
            locks: RefCell::default(),
            processes: RefCell::default(),
            letters: RefCell::default(),
            now: Cell::new(Duration::from_secs(1_000)),
            faults: RefCell::default(),
            full_until: Cell::default(),
            troubles: RefCell::default(),
            living: RefCell::default(),
            calm: Cell::new(false),
            punctual: Cell::new(false),
            epoch: super::timed::epoch(seed),
            is_kept: super::KEPT.contains(&seed),
            // Due times are judged by the volume's clock.
            timed: Rng::new(seed, "timed").one_in(2) && !faults.has(Kind::VolumeClock),
            chance: RefCell::new(Rng::new(seed, "faults")),
            check: RefCell::new(check),
            scheduler: RefCell::default(),
            next_inode: Cell::new(1),
            free_inodes: RefCell::default(),
            clock_step: Cell::default(),
        }
    }

    /// Wall time as the folder's server has it.
    pub(crate) fn wall(&self) -> DateTime<Utc> {
        self.epoch + TimeDelta::from_std(self.now.get() - Duration::from_secs(1_000)).unwrap() + self.clock_step.get()
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
        let reuses = self.faults.borrow().has(Kind::Reuse);
        let inode = self.free_inodes.borrow_mut().pop().filter(|_| reuses);
        let inode = inode.unwrap_or_else(|| {
            self.next_inode.set(self.next_inode.get() + 1);
            self.next_inode.get()
        });
        let ticks = self.wall().timestamp_millis() / 10;
        let modified = if reuses { i128::from(ticks) * 10_000_000 } else { i128::from(inode) };
        let file = File { bytes: Rc::new(bytes), inode, modified, changed: self.wall() };
        self.take_out(path);
        self.files.borrow_mut().insert(path.to_owned(), file);
        self.notify(path);
    }

    /// Takes a file away, if it is there.
    pub(crate) fn take_out(&self, path: &Path) -> Option<File> {
        let file = self.files.borrow_mut().remove(path)?;
        self.free_inodes.borrow_mut().push(file.inode);
        Some(file)
    }

    /// Sets it right again.
    pub(crate) fn right_the_clock(&self) {
        self.clock_step.set(TimeDelta::zero());
    }

    /// Sets the volume's clock, by up to 20 s either way: what waits is put off by as much.
    pub(crate) fn step_the_clock(&self) {
        let step = TimeDelta::milliseconds(self.between(0, 40_000).cast_signed() - 20_000);
        self.clock_step.set(step);
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

    /// One device stands still for a while, unless so many do already.
    pub(crate) fn stand_still(&self, device: usize, span: Duration, most: u32) {
        if let Some(scheduler) = self.scheduler.borrow().upgrade() {
            scheduler.run_others(device, self.now.get() + span, most);
        }
    }

    /// For up to three leases, and another one may do so meanwhile.
    pub(crate) fn perhaps_stand_still(&self, device: usize) {
        if self.one_in(self.faults.borrow().rate(Kind::LongPause)) {
            self.stand_still(device, Duration::from_millis(self.between(1, 20_000)), 2);
        }
    }

    /// The time since a machine was started: a clock of its own.
    pub(crate) fn boot_of(&self, device: usize) -> Duration {
        self.now.get() + offset_of(device)
    }

    /// Ends the processes of one life of a device, as the death of a container does.
    pub(crate) fn end_processes(&self, device: usize) {
        for process in self.processes.borrow_mut().iter_mut().filter(|process| process.device == device) {
            process.alive = false;
        }
    }
}

/// By how much a machine was started earlier than the first.
pub(crate) fn offset_of(device: usize) -> Duration {
    Duration::from_secs(device as u64 * 100_000)
}
