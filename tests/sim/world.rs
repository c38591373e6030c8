//! One shared folder, one true time, the processes on every machine, and everything that ever happened.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::Duration;

use aios::exec::{Ending, StopCause};
use aios::model::lease::Lease;
use chrono::{DateTime, TimeDelta, Utc};

use super::check::Checker;
use super::faults::{Faults, Kind, Trouble};
use super::notifier::OnItsWay;
use super::power;
use super::rng::Rng;
use super::scheduler::Scheduler;

#[derive(Debug, Clone)]
pub(crate) struct File {
    pub(crate) bytes: Rc<Vec<u8>>,
    pub(crate) inode: u64,
    pub(crate) modified: i64,
    /// When its content was written.
    pub(crate) written: Duration,
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
    /// The definition that it was started by, if it is a container, which goes on when its orchestrator dies.
    pub(crate) container: Option<String>,
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
    /// Commands run in containers here.
    pub(crate) has_containers: bool,
    /// Jobs run by themselves here.
    pub(crate) timed: bool,
    pub(crate) chance: RefCell<Rng>,
    pub(crate) check: RefCell<Checker>,
    pub(crate) scheduler: RefCell<Weak<Scheduler>>,
    /// Files that are only half written, when they will be whole, and their text.
    pub(crate) torn: RefCell<Vec<(Duration, PathBuf, Vec<u8>)>>,
    /// What a power cut may lead back to, oldest first.
    pub(crate) moments: RefCell<VecDeque<power::Moment>>,
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
            has_containers: faults.has(Kind::Containers),
            chance: RefCell::new(Rng::new(seed, "faults")),
            check: RefCell::new(check),
            scheduler: RefCell::default(),
            torn: RefCell::default(),
            moments: RefCell::default(),
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
        let modified = self.modified(inode);
        let file = File { bytes: Rc::new(bytes), inode, modified, written: self.now.get(), changed: self.wall() };
        self.take_out(path);
        self.files.borrow_mut().insert(path.to_owned(), file);
        self.notify(path);
    }

    /// Slow writers come to the end of their files.
    pub(crate) fn go_on_writing(&self) {
        let now = self.now.get();
        let done: Vec<_> = self.torn.borrow_mut().extract_if(.., |(at, ..)| *at <= now).collect();
        for (_, path, bytes) in done {
            self.write_on(&path, bytes);
        }
    }

    /// Writes a file to its end in place, by the hand that began it.
    fn write_on(&self, path: &Path, bytes: Vec<u8>) {
        self.next_inode.set(self.next_inode.get() + 1);
        if let Some(file) = self.files.borrow_mut().get_mut(path) {
            file.bytes = Rc::new(bytes);
            (file.modified, file.written, file.changed) =
                (self.modified(self.next_inode.get()), self.now.get(), self.wall());
        }
        self.notify(path);
    }

    /// Returns the time of a file that is written now: each another one, or coarse where numbers are given again.
    fn modified(&self, number: u64) -> i64 {
        let ticks = self.wall().timestamp_millis() / 10;
        if self.faults.borrow().has(Kind::Reuse) {
            ticks * 10_000_000
        } else if self.is_kept {
            i64::try_from(number).unwrap_or(i64::MAX)
        } else {
            self.wall().timestamp_nanos_opt().unwrap_or_default() + i64::try_from(number % 1_000).unwrap_or_default()
        }
    }

    /// Takes the content of a file.
    pub(crate) fn empty(&self, path: &Path) {
        if let Some(file) = self.files.borrow_mut().get_mut(path) {
            file.bytes = Rc::default();
        }
    }

    /// Takes a file away, if it is there.
    pub(crate) fn take_out(&self, path: &Path) -> Option<File> {
        let file = self.files.borrow_mut().remove(path)?;
        if !self.is_in_use(file.inode) {
            self.free_inodes.borrow_mut().push(file.inode);
        }
        Some(file)
    }

    /// Returns whether a file has this number, where numbers are given again.
    fn is_in_use(&self, inode: u64) -> bool {
        self.faults.borrow().has(Kind::Reuse) && self.files.borrow().values().any(|file| file.inode == inode)
    }

    /// Takes numbers that files have again out of those that are free.
    pub(crate) fn keep_numbers_apart(&self) {
        self.free_inodes.borrow_mut().retain(|inode| !self.is_in_use(*inode));
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

    /// Returns whether an attempt goes on in a container, or has ended there and nobody has taken its end.
    pub(crate) fn has_container(&self, run: &str, attempt: u64) -> bool {
        let is_it = |lease: &Lease| lease.run.as_str() == run && u64::from(lease.attempt) == attempt;
        self.processes.borrow().iter().any(|process| process.container.is_some() && is_it(&process.lease))
    }

    /// Ends the processes of one life of a device, as the death of its own container does.
    pub(crate) fn end_processes(&self, device: usize) {
        let mut processes = self.processes.borrow_mut();
        for process in processes.iter_mut().filter(|process| process.device == device && process.container.is_none()) {
            process.alive = false;
        }
    }
}

/// By how much a machine was started earlier than the first.
pub(crate) fn offset_of(device: usize) -> Duration {
    Duration::from_secs(device as u64 * 100_000)
}
