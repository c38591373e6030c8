//! Who moves next: the devices, a user who drops files, and the faults between them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use aios::coordinator::{Device, End, Host, Identity, Parts, Tick, claim_identity, open_volume};
use aios::model::config::Config;
use aios::model::device::{Beat, Me, Remembered};
use aios::model::entry::{FileKey, Source};
use aios::model::ids::{DeviceId, Session, Tag};
use aios::model::time::Moment;
use aios::volume::atomic::Temporary;
use aios::volume::heartbeat;
use aios::volume::layout::Layout;
use aios::volume::watch::Dirty;
use chrono::TimeDelta;

use super::disk::SimDisk;
use super::executor::SimExecutor;
use super::faults::{Faults, Kind};
use super::notifier::SimNotifier;
use super::power;
use super::rng::Rng;
use super::world::{Process, World, offset_of};

pub(crate) const LEASE: Duration = Duration::from_secs(6);
const BEAT: Duration = Duration::from_secs(2);

/// A world in which there is more to do gets nowhere: its devices turn without rest.
const MOST_TICKS: u64 = 20_000;

pub(crate) fn layout() -> Layout {
    Layout { common: "/c".into(), programs: "/p".into() }
}

/// One machine: its orchestrator lives, dies and comes back.
pub(crate) struct Machine {
    index: usize,
    pub(crate) id: DeviceId,
    pub(crate) tags: Vec<&'static str>,
    pub(crate) slots: u32,
    pub(crate) lease: Duration,
    beat: Duration,
    /// Its folder of jobs: all machines share one, or each has its own.
    pub(crate) programs: PathBuf,
    living: RefCell<Option<Device>>,
    dead: RefCell<Rc<Cell<bool>>>,
    life: Cell<u64>,
    dirty: RefCell<Dirty>,
    wake_at: Cell<Duration>,
    clock_error: Cell<i64>,
    /// Its processes die with its orchestrator, as in a container.
    contained: bool,
    /// It hears of no changes but by looking into every file again and again.
    polls: bool,
    /// Lives that begin from then on have the newer program.
    updated_at: Cell<Duration>,
    /// It takes its id over, whoever has it.
    forces: bool,
    /// From then on it is away for ever.
    pub(crate) gone_at: Option<Duration>,
}

/// The number of lives in one round of numbers: a life's number names its machine in the lowest digits.
const ROUND: u64 = 64;
/// Whose life is no machine's: a person's.
pub(crate) const PERSON: usize = 63;
/// The thread of whichever device cleans up.
pub(crate) const KEEPER: usize = 62;

pub(crate) struct Scheduler {
    pub(crate) world: Rc<World>,
    pub(crate) machines: Vec<Machine>,
    chance: RefCell<Rng>,
    lives: Cell<u64>,
    /// The number of devices that stand still.
    still: Cell<u32>,
    pub(crate) ticks: Cell<u64>,
    most_ticks: u64,
}

impl Machine {
    fn new(index: usize, now: Duration, chance: &mut Rng) -> Self {
        Self {
            index,
            id: DeviceId::new(&format!("d{index}")).unwrap(),
            tags: if index == 0 || chance.one_in(2) { vec!["gpu"] } else { vec![] },
            slots: u32::try_from(chance.between(1, 4)).unwrap(),
            lease: LEASE,
            beat: BEAT,
            programs: layout().programs,
            living: RefCell::new(None),
            dead: RefCell::new(Rc::new(Cell::new(true))),
            life: Cell::new(0),
            dirty: RefCell::default(),
            // Some come late: the others have then long watched without them.
            wake_at: Cell::new({
                let latest = if chance.one_in(3) { 30_000 } else { 3_000 };
                now + Duration::from_millis(chance.below(latest))
            }),
            clock_error: Cell::new(0),
            contained: chance.one_in(2),
            polls: true,
            updated_at: Cell::new(Duration::MAX),
            forces: false,
            gone_at: None,
        }
    }

    /// Gives it a lease, a beat and slots of its own. The first can run everything, so that everything can end.
    fn differ(&mut self, chance: &mut Rng) {
        self.lease = Duration::from_secs(*chance.pick(&[3, 6, 15, 30]));
        self.beat = self.lease / u32::try_from(chance.between(3, 8)).unwrap();
        self.slots = *chance.pick(&[0, 1, 2, 4, 16, 64]);
        if self.index == 0 {
            self.slots = self.slots.max(1);
        }
    }
}

/// Machines that come once, live for a while, and are never seen again.
fn newcomers(now: Duration, from: usize, chance: &mut Rng) -> Vec<Machine> {
    let count = usize::try_from(chance.between(1, 3)).unwrap();
    let come = |index| {
        let mut machine = Machine::new(index, now, chance);
        let comes = now + Duration::from_millis(chance.between(1_000, 35_000));
        machine.wake_at.set(comes);
        let goes = comes + Duration::from_millis(chance.between(100, 15_000));
        machine.gone_at = Some(goes.min(now + Duration::from_secs(39)));
        machine
    };
    (from..from + count).map(come).collect()
}

/// A machine that takes over the id of another by force, lives for a while, and is never seen again.
fn rival(now: Duration, index: usize, of: &Machine, chance: &mut Rng) -> Machine {
    let comes = now + Duration::from_millis(chance.between(3_000, 30_000));
    let goes = comes + Duration::from_millis(chance.between(1_000, 15_000));
    Machine {
        id: of.id.clone(),
        tags: of.tags.clone(),
        slots: of.slots,
        lease: of.lease,
        beat: of.beat,
        programs: of.programs.clone(),
        polls: of.polls,
        wake_at: Cell::new(comes),
        forces: true,
        gone_at: Some(goes.min(now + Duration::from_secs(39))),
        ..Machine::new(index, now, chance)
    }
}

impl Scheduler {
    pub(crate) fn new(seed: u64, world: Rc<World>, faults: &Faults) -> Rc<Self> {
        let mut chance = Rng::new(seed, "machines");
        let few = usize::try_from(chance.between(2, 4)).unwrap();
        let count = faults.crowd.map_or(few, |(devices, _)| devices);
        let mut machines: Vec<Machine> =
            (0..count).map(|index| Machine::new(index, world.now.get(), &mut chance)).collect();
        if faults.has(Kind::Newcomers) {
            machines.extend(newcomers(world.now.get(), count, &mut Rng::new(seed, "those who come")));
        }
        if faults.has(Kind::Unequal) {
            let mut chance = Rng::new(seed, "differences");
            machines.iter_mut().for_each(|machine| machine.differ(&mut chance));
        }
        if faults.has(Kind::Events) {
            machines.iter_mut().for_each(|machine| machine.polls = machine.index % 3 == 2);
        }
        if faults.has(Kind::Programs) {
            machines.iter_mut().for_each(|machine| machine.programs = format!("/p{}", machine.index).into());
        }
        if faults.has(Kind::Force) {
            let mut chance = Rng::new(seed, "by force");
            let of = usize::try_from(chance.below(count as u64)).unwrap();
            machines.push(rival(world.now.get(), machines.len(), &machines[of], &mut chance));
        }
        if faults.has(Kind::Versions) {
            let mut chance = Rng::new(seed, "updates");
            let soon = |chance: &mut Rng| world.now.get() + Duration::from_millis(chance.between(0, 60_000));
            machines.iter().for_each(|machine| machine.updated_at.set(soon(&mut chance)));
        }
        let scheduler = Rc::new(Self {
            world: Rc::clone(&world),
            machines,
            chance: RefCell::new(chance),
            lives: Cell::new(1),
            still: Cell::new(0),
            ticks: Cell::new(0),
            most_ticks: MOST_TICKS + faults.crowd.map_or(0, |(_, triggers)| u64::from(triggers) * 200),
        });
        *world.scheduler.borrow_mut() = Rc::downgrade(&scheduler);
        scheduler
    }

    /// The folders of jobs.
    pub(crate) fn programs(&self) -> BTreeSet<PathBuf> {
        self.machines.iter().map(|machine| machine.programs.clone()).collect()
    }

    /// Lets everything happen until a moment.
    pub(crate) fn run_until(&self, end: Duration) {
        while let Some((at, machine)) = self.next() {
            if at > end || self.ticks.get() > self.most_ticks {
                break;
            }
            self.world.now.set(self.world.now.get().max(at));
            self.turn(machine);
        }
        self.world.now.set(self.world.now.get().max(end));
    }

    /// One device stands still; the others go on until a moment, unless `most` stand still already.
    pub(crate) fn run_others(&self, _paused: usize, end: Duration, most: u32) {
        if self.still.get() >= most {
            return;
        }
        self.still.set(self.still.get() + 1);
        self.run_until(end);
        self.still.set(self.still.get() - 1);
    }

    /// Whoever wakes first and is not in the middle of a turn.
    fn next(&self) -> Option<(Duration, &Machine)> {
        let free = self.machines.iter().filter(|machine| machine.living.try_borrow_mut().is_ok());
        free.map(|machine| (self.wake_of(machine), machine)).min_by_key(|(at, machine)| (*at, machine.index))
    }

    fn wake_of(&self, machine: &Machine) -> Duration {
        let life = machine.dead.borrow().get();
        let processes = self.world.processes.borrow();
        // The end of a container that an earlier life started wakes nobody before it is taken over.
        let wakes = |process: &&Process| {
            process.device == machine.index && (process.container.is_none() || process.life == machine.life.get())
        };
        let ends = processes.iter().filter(wakes).filter(|_| !life).map(|process| process.ends_at);
        let letters = self.world.letters.borrow();
        let answers =
            letters.iter().filter(|letter| letter.device == machine.index && !life).map(|letter| letter.answered_at);
        ends.chain(answers).fold(machine.wake_at.get(), Duration::min)
    }

    fn turn(&self, machine: &Machine) {
        self.ticks.set(self.ticks.get() + 1);
        self.world.go_on_writing();
        power::keep(&self.world);
        let Ok(mut living) = machine.living.try_borrow_mut() else { return };
        if machine.gone_at.is_some_and(|at| at <= self.world.now.get()) {
            self.bury(machine);
            *living = None;
            self.world.processes.borrow_mut().retain(|process| process.device != machine.index);
            machine.wake_at.set(Duration::MAX);
            return;
        }
        if living.is_none() {
            *living = self.start(machine);
            if living.is_none() {
                self.bury(machine);
                let again = Duration::from_millis(self.chance.borrow_mut().between(50, 2_000));
                machine.wake_at.set(self.world.now.get() + again);
                return;
            }
        }
        let dirty = std::mem::take(&mut *machine.dirty.borrow_mut());
        let now = self.clock(machine);
        let Some(device) = living.as_mut() else { return };
        let tick = device.tick(now, dirty);
        if machine.dead.borrow().get() {
            // It died in the middle of it. Nothing of it is left but what the world has.
            self.bury(machine);
            *living = None;
            if machine.contained {
                self.world.end_processes(machine.index);
            }
            let away = [1, 100, 3_000, 30_000];
            let away = Duration::from_millis(*self.chance.borrow_mut().pick(&away));
            machine.wake_at.set(self.world.now.get() + away);
            return;
        }
        self.world.check.borrow_mut().had_its_turn(machine.index, &self.world);
        match tick {
            // A tick takes some time, so that a loop that never rests is seen as one that gets nowhere.
            Tick::Wake(at) => {
                let at = at.saturating_sub(offset_of(machine.index));
                machine.wake_at.set(at.max(self.world.now.get() + Duration::from_micros(200)));
            }
            Tick::End(end) => {
                self.bury(machine);
                *living = None;
                let away = if end == End::Left { 500 } else { 5_000 };
                machine.wake_at.set(self.world.now.get() + Duration::from_millis(away));
            }
        }
    }

    /// A life is over: what it locked is free.
    fn bury(&self, machine: &Machine) {
        machine.dead.borrow().set(true);
        self.world.living.borrow_mut().remove(&machine.index);
        self.world.check.borrow_mut().died(machine.index);
        self.world.locks.borrow_mut().retain(|_, life| *life != machine.life.get());
    }

    /// A number for a life of a machine, or of a person.
    pub(crate) fn new_life(&self, index: usize) -> u64 {
        let life = (self.lives.get() / ROUND + 1) * ROUND + index as u64;
        self.lives.set(life);
        life
    }

    fn start(&self, machine: &Machine) -> Option<Device> {
        let life = self.new_life(machine.index);
        machine.life.set(life);
        let dead = Rc::new(Cell::new(false));
        *machine.dead.borrow_mut() = Rc::clone(&dead);
        let is_newer = machine.updated_at.get() <= self.world.now.get();
        let disk = Rc::new(SimDisk::new(&self.world, life, machine.index, &dead).of_version(is_newer));
        let session = Session::from_random(self.chance.borrow_mut().next());
        self.world.living.borrow_mut().insert(machine.index, session.to_string());
        let layout = Layout { programs: machine.programs.clone(), ..layout() };
        let volume = open_volume(&*disk, &layout, &session).ok()?;
        let identity = if machine.forces {
            self.displace(machine, &disk, &session)?
        } else {
            claim_identity(&*disk, &layout, &machine.id, false).ok()?
        };
        // What an earlier life left running on this machine is ended before anything is decided.
        let stays = |process: &Process| process.device != machine.index || process.container.is_some();
        self.world.processes.borrow_mut().retain(stays);
        let mut tags: BTreeSet<Tag> = machine.tags.iter().map(|tag| Tag::new(tag).unwrap()).collect();
        tags.insert(Tag::new(machine.id.as_str()).unwrap());
        let me = Me { device: machine.id.clone(), session, tags, slots: machine.slots };
        let now = self.clock(machine);
        let remembered = identity.before.as_ref().map(Remembered::from).unwrap_or_default();
        let executor = SimExecutor {
            world: Rc::clone(&self.world),
            device: machine.index,
            life,
            dead: Rc::clone(&dead),
            chance: Rng::new(life ^ self.chance.borrow_mut().next(), "executor"),
            surveyed: BTreeSet::new(),
        };
        // Nobody waits any more for what an earlier life had on its way.
        self.world.letters.borrow_mut().retain(|letter| letter.device != machine.index);
        let notifier = SimNotifier {
            world: Rc::clone(&self.world),
            device: machine.index,
            life,
            dead: Rc::clone(&dead),
            chance: Rng::new(life, "notifier"),
        };
        let parts = Parts {
            disk,
            layout,
            executor: Box::new(executor),
            notifier: Box::new(notifier),
            config: Config { heartbeat: machine.beat, lease: machine.lease, poll: machine.polls, ..Config::default() },
            host: Host {
                name: "sim".into(),
                pid: u32::try_from(life).unwrap(),
                env: BTreeMap::new(),
                started_at: now.wall,
            },
            pulse: None,
            meter: None,
            identity: identity.guard,
            displaced: identity.before.map(|beat| beat.session),
        };
        Some(Device::new(parts, me, volume, now, remembered))
    }

    /// Takes an id over as the program does: shows its holder another life under it, for a lease at most, until that has let go of its lock.
    fn displace(&self, machine: &Machine, disk: &SimDisk, session: &Session) -> Option<Identity> {
        let mut identity = claim_identity(disk, &layout(), &machine.id, true).ok()?;
        let (begun, mut names) = (self.world.now.get(), Temporary::new(session.clone()));
        while identity.guard.is_none() && self.world.now.get() - begun < machine.lease {
            if let Some(before) = &mut identity.before {
                before.beat += 1;
                let beat = Beat { session: session.clone(), holds: Vec::new(), busy: 0, ..before.clone() };
                heartbeat::write(disk, &layout(), &mut names, &beat).ok()?;
            }
            self.run_others(machine.index, self.world.now.get() + Duration::from_millis(200), u32::MAX);
            identity.guard = heartbeat::lock(disk, &layout(), &machine.id).ok()?;
        }
        Some(identity)
    }

    /// The two clocks of a machine: boot time is its own, wall time may be wrong.
    fn clock(&self, machine: &Machine) -> Moment {
        Moment {
            boot: self.world.boot_of(machine.index),
            wall: self.world.wall() + TimeDelta::milliseconds(machine.clock_error.get()),
        }
    }

    /// A clock is wrong from now on, by up to an hour either way.
    pub(crate) fn step_a_clock(&self) {
        let machine =
            self.chance.borrow_mut().pick(&self.machines.iter().map(|m| m.index).collect::<Vec<_>>()).to_owned();
        let error = self.chance.borrow_mut().between(0, 7_200_000).cast_signed() - 3_600_000;
        self.machines[machine].clock_error.set(error);
    }

    pub(crate) fn right_all_clocks(&self) {
        for machine in &self.machines {
            machine.clock_error.set(0);
        }
    }

    /// A device dies, and comes back after a while.
    pub(crate) fn kill(&self, id: &str, away: Duration) {
        let Some(machine) = self.machines.iter().find(|machine| machine.id.as_str() == id) else { return };
        self.bury(machine);
        *machine.living.borrow_mut() = None;
        if machine.contained {
            self.world.end_processes(machine.index);
        }
        machine.wake_at.set(self.world.now.get() + away);
    }

    /// All machines lose their power, and are up again one after the other.
    pub(crate) fn kill_all(&self) {
        for machine in self.machines.iter().filter(|machine| machine.living.borrow().is_some()) {
            self.bury(machine);
            *machine.living.borrow_mut() = None;
            machine.wake_at.set(self.world.now.get() + Duration::from_millis(self.world.between(100, 10_000)));
        }
        self.world.processes.borrow_mut().clear();
        self.world.letters.borrow_mut().clear();
    }

    /// Returns whether another device can take over what this one holds.
    pub(crate) fn can_replace(&self, id: &str) -> bool {
        let can = |machine: &&Machine| machine.slots > 0 && machine.gone_at.is_none() && machine.id.as_str() != id;
        self.machines.iter().any(|machine| can(&machine) && machine.living.borrow().is_some())
    }

    /// Waits until every machine that comes back is up, and known to the others.
    pub(crate) fn await_all(&self) {
        let is_down = |machine: &Machine| machine.gone_at.is_none() && machine.living.borrow().is_none();
        while self.machines.iter().any(is_down) && self.ticks.get() < self.most_ticks {
            self.run_until(self.world.now.get() + Duration::from_secs(1));
        }
        self.run_until(self.world.now.get() + self.longest_silence());
    }

    /// Returns the devices that live and are like others that live, in groups.
    pub(crate) fn equals(&self) -> Vec<Vec<String>> {
        let mut groups: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        let living = self.machines.iter().filter(|machine| machine.living.borrow().is_some() && machine.slots > 0);
        for machine in living {
            groups.entry(machine.slots).or_default().push(machine.id.to_string());
        }
        groups.into_values().collect()
    }

    /// The longest lease and, where beats are slower than usual, the beat by which a device's last sign of life may be seen late.
    pub(crate) fn longest_silence(&self) -> Duration {
        let silence = |machine: &Machine| machine.lease + machine.beat.saturating_sub(BEAT);
        self.machines.iter().map(silence).max().unwrap_or(LEASE)
    }

    /// A device is asked to leave.
    pub(crate) fn ask_to_leave(&self) {
        let index = usize::try_from(self.chance.borrow_mut().below(self.machines.len() as u64)).unwrap();
        let machine = &self.machines[index];
        let now = self.clock(machine);
        if let Ok(mut living) = machine.living.try_borrow_mut()
            && let Some(device) = living.as_mut()
        {
            device.leave(now);
            machine.wake_at.set(self.world.now.get());
        }
    }

    /// Returns whether there is a newer program by now.
    pub(crate) fn is_updated(&self) -> bool {
        self.machines.iter().any(|machine| machine.updated_at.get() <= self.world.now.get())
    }

    /// All machines that are started again from now on have the newer program, if any has.
    pub(crate) fn update_all(&self) {
        let now = self.world.now.get();
        for machine in self.machines.iter().filter(|machine| machine.updated_at.get() < Duration::MAX) {
            machine.updated_at.set(machine.updated_at.get().min(now));
        }
    }

    /// Every machine is up from soon on.
    pub(crate) fn wake_all(&self) {
        let soon = self.world.now.get() + Duration::from_secs(3);
        for machine in self.machines.iter().filter(|machine| machine.gone_at.is_none()) {
            machine.wake_at.set(machine.wake_at.get().min(soon));
        }
    }

    /// A file event for everybody but those who lose it.
    pub(crate) fn tell(&self, path: &Path, is_lost: impl Fn(usize) -> bool) {
        let layout = layout();
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return };
        let source = if folder == layout.triggers() {
            Some(Source::Inbox)
        } else if folder == layout.waiting() {
            Some(Source::Waiting)
        } else {
            None
        };
        // Devices watch the file of the lock, which every commit touches. The histories of seeds that are kept stay as they were.
        let is_state = path == if self.world.is_kept { layout.state() } else { layout.lock() };
        let is_job = self.machines.iter().any(|machine| machine.programs == folder);
        if is_job {
            self.tell_of_jobs(folder, is_lost);
            return;
        }
        if (source.is_none() || name.to_string_lossy().starts_with('.')) && !is_state {
            return;
        }
        for machine in &self.machines {
            if is_lost(machine.index) {
                continue;
            }
            let mut dirty = machine.dirty.borrow_mut();
            match source {
                Some(source) => {
                    dirty.names.insert(FileKey { source, name: name.into() });
                }
                None => dirty.state = true,
            }
            let alive = !machine.dead.borrow().get();
            if alive {
                machine.wake_at.set(machine.wake_at.get().min(self.world.now.get() + Duration::from_micros(100)));
            }
        }
    }

    /// A job file has changed.
    fn tell_of_jobs(&self, folder: &Path, is_lost: impl Fn(usize) -> bool) {
        let hears = |machine: &&Machine| machine.programs == folder && !machine.polls && !is_lost(machine.index);
        for machine in self.machines.iter().filter(hears) {
            machine.dirty.borrow_mut().programs = true;
            if !machine.dead.borrow().get() {
                machine.wake_at.set(machine.wake_at.get().min(self.world.now.get() + Duration::from_micros(100)));
            }
        }
    }

    /// Returns what devices remember of runs although there are none.
    pub(crate) fn memory(&self) -> Vec<String> {
        let mut kept = Vec::new();
        for machine in &self.machines {
            let living = machine.living.borrow();
            let memory = living.iter().flat_map(Device::memory).filter(|(_, count)| *count > 0);
            kept.extend(memory.map(|(what, count)| format!("{} still remembers {count} of {what}", machine.id)));
        }
        kept
    }

    /// Whether every machine's orchestrator lives and nothing waits or runs.
    pub(crate) fn is_quiet(&self) -> bool {
        let files = self.world.files.borrow();
        let open =
            |path: &PathBuf| path.starts_with("/c/Triggers") && path.extension().is_some_and(|ending| ending == "json");
        let state = files.get(Path::new("/c/state.json"));
        let none_held = state.is_some_and(|state| {
            serde_json::from_slice::<serde_json::Value>(&state.bytes)
                .is_ok_and(|state| state["runs"].as_object().is_some_and(serde_json::Map::is_empty) && all_told(&state))
        });
        none_held && !files.keys().any(open)
    }
}

/// Whether no webhook is still to be told anything.
fn all_told(state: &serde_json::Value) -> bool {
    let mut jobs = state["jobs"].as_object().into_iter().flatten();
    jobs.all(|(_, mark)| mark["news"].as_array().is_none_or(Vec::is_empty))
}
