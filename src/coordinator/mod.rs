//! The loop of one device, and the only owner of change: observe, decide, commit, perform.
//!
//! [`Device::tick`] is one turn. It waits for nothing and takes its time as an argument, so that the simulator turns thousands of them in
//! a second; [`run`] is the shell that gives it time, events and signals. Nothing to do is remembered from one turn to the
//! next but what the world itself shows: a crash at any line heals at the next turn, of this device or another.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::decide::agenda::{Agenda, IDLE_REST};
use crate::decide::attempts::{LocalAttempt, Step};
use crate::decide::derive::{Effect, effects};
use crate::decide::notify::told_by_others;
use crate::decide::plan::{Observation, plan};
use crate::decide::space::Shortage;
use crate::exec::machine::Meter;
use crate::exec::{Executor, StopCause};
use crate::model::config::Config;
use crate::model::device::{Me, Remembered};
use crate::model::ids::{RunId, Session, Tag};
use crate::model::lease::Lease;
use crate::model::limits::Resources;
use crate::model::state::{Held, State};
use crate::model::time::Moment;
use crate::notify::Notifier;
use crate::store::{Refused, Store};
use crate::volume::atomic::Temporary;
use crate::volume::disk::{Disk, Guard};
use crate::volume::inbox::Inbox;
use crate::volume::layout::Layout;
use crate::volume::programs::Programs;
use crate::volume::watch::Dirty;
use crate::volume::work::Work;

mod begin;
mod chores;
mod commit;
mod ends;
mod figures;
mod forget;
mod guard;
mod history;
mod keep;
mod limits;
mod look;
mod offer;
mod orphans;
mod pulse;
pub mod run;
mod spec;
mod tell;

pub use pulse::Pulse;

pub use begin::{BeginError, Identity, check_writable, claim_identity, open_volume};

/// How long a tick that was refused waits before it tries again.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// The shortest time after which a device that is alone tries again to get the lock.
const SHORTEST_RETRY: Duration = Duration::from_micros(200);
/// The longest time after which a device tries again to get the lock, and for how long one that is full gathers file events.
const TOGETHER: Duration = Duration::from_millis(20);
/// For how long file events are gathered for each other device, so that many together look hardly more often than a few.
const STEP_BACK: Duration = Duration::from_millis(4);
/// For how long they are gathered at most.
const LONGEST_GATHERING: Duration = Duration::from_millis(100);
/// How long the lock may be busy before people are told.
const BUSY_WARNING: Duration = Duration::from_secs(5);
/// How long a run that is stopped because its device leaves has before it is killed.
const LEAVE_GRACE: Duration = Duration::from_secs(3);
/// The problem of a device that is out of processes, memory or descriptors.
const SHORT: &str = "processes";
/// How often containers that nobody holds are looked for.
const TIDY: Duration = Duration::from_secs(60);
/// How often leftovers are swept.
const SWEEP: Duration = Duration::from_secs(3_600);

/// What the machine is, for people.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// This process.
    pub pid: u32,
    /// The orchestrator's own variables, from which some are passed on.
    pub env: BTreeMap<String, String>,
    /// Since when this device runs.
    pub started_at: DateTime<Utc>,
}

/// Everything a device is made of; the ports come from outside.
pub struct Parts {
    /// The file system.
    pub disk: Rc<dyn Disk>,
    /// The folders.
    pub layout: Layout,
    /// What runs attempts.
    pub executor: Box<dyn Executor>,
    /// What tells webhooks.
    pub notifier: Box<dyn Notifier>,
    /// Every limit and interval.
    pub config: Config,
    /// The machine.
    pub host: Host,
    /// The thread that repeats its heartbeats while a turn takes long; `None`: there is none.
    pub pulse: Option<Pulse>,
    /// What measures it; `None`: nobody does.
    pub meter: Option<Meter>,
    /// The proof that no other process is this device, if locks give one.
    pub identity: Option<Guard>,
    /// Sessions that were displaced on purpose (`--force`).
    pub displaced: Option<Session>,
}

/// One device.
pub struct Device {
    parts: Parts,
    /// Everything that the rules decide by.
    seen: Observation,
    names: Temporary,
    store: Store,
    inbox: Inbox,
    /// What is to be looked at in the next turn that is a whole one.
    dirty: Dirty,
    programs: Programs,
    orphans_since: BTreeMap<Lease, Duration>,
    /// What jobs want of their own accord.
    agenda: Agenda,
    /// What it has because of its executors, and what it was told that it has.
    offers: BTreeSet<Tag>,
    own_tags: BTreeSet<Tag>,
    /// Since when it has had nothing to do.
    quiet_since: Option<Duration>,
    /// The last state that was not being rebuilt.
    known: Arc<State>,
    vanished_since: BTreeMap<RunId, Duration>,
    /// Work folders of attempts in containers that no other attempt can have.
    spoiled: BTreeSet<Work>,
    /// The day folder of results that was made last.
    results_folder: Option<std::path::PathBuf>,
    beat: u64,
    worked_through: u64,
    could_write: bool,
    /// What the volume has too little of for new work.
    low_on: Option<Shortage>,
    /// When the last heartbeat was written: by boot time, and by the volume's time.
    anchor: Option<Moment>,
    drained: bool,
    /// Slots and limits that people set. A setting, and draining, count as done once the newest heartbeat says so: then they survive a crash.
    set: Resources,
    /// The state whose holders are known.
    met: Arc<State>,
    /// How many triggers it has rejected.
    rejected: u64,
    /// The number of waiting triggers that it has taken in, so that they are synced to the disk.
    taken_in: u64,
    /// What is told by this device now.
    desk: tell::Desk,
    leaving: Option<Leaving>,
    /// Why it leaves, if not because it was asked to.
    end: Option<End>,
    due: Due,
    problems: BTreeMap<&'static str, String>,
}

/// When things are due next, on this device's clock.
#[derive(Debug, Default)]
struct Due {
    beat: Duration,
    scan: Duration,
    sweep: Duration,
    tidy: Duration,
    /// The earliest next commit.
    commit: Duration,
    again: Option<Duration>,
    last_tick: Option<Duration>,
    busy_since: Option<Duration>,
}

/// The device goes: by when runs are stopped, and why.
#[derive(Debug, Clone, Copy)]
struct Leaving {
    stop_at: Duration,
    gone_by: Duration,
    cause: StopCause,
    asked: bool,
}

/// Why a device stops ticking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It was asked to, and has handed everything back.
    Left,
    /// Another session took its id.
    Replaced,
    /// The state is of a newer program, in a sentence.
    NewerState(String),
}

/// What a tick says to the shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tick {
    /// Come back at this time, or earlier if anything happens.
    Wake(Duration),
    /// This was the last.
    End(End),
}

/// The earlier of two times, if there is one.
fn earlier(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    a.into_iter().chain(b).min()
}

impl Device {
    /// A device that has not ticked yet. Its folders are there ([`open_volume`]), its id is its own ([`claim_identity`]), and `volume` is
    /// the volume's random id.
    #[must_use]
    pub fn new(parts: Parts, mut me: Me, volume: String, now: Moment, before: Remembered) -> Self {
        let Remembered { beat, drained, set } = before;
        me.slots = set.slots.unwrap_or(me.slots);
        let mut store = Store::new(Rc::clone(&parts.disk), parts.layout.clone(), me.clone());
        store.set_patience(parts.config.lease);
        let (names, own_tags) = (Temporary::new(me.session.clone()), me.tags.clone());
        let mut seen = Observation::new(me, volume, parts.config.lease, now);
        (seen.drained, seen.set, seen.found) = (drained, set, parts.executor.found());
        Self {
            seen,
            names,
            store,
            inbox: Inbox::default(),
            dirty: Dirty::default(),
            programs: Programs::default(),
            orphans_since: BTreeMap::new(),
            agenda: Agenda::default(),
            offers: BTreeSet::new(),
            own_tags,
            quiet_since: None,
            known: Arc::default(),
            vanished_since: BTreeMap::new(),
            spoiled: BTreeSet::new(),
            results_folder: None,
            beat,
            worked_through: 0,
            could_write: true,
            low_on: None,
            anchor: None,
            drained,
            set,
            met: Arc::default(),
            rejected: 0,
            taken_in: 0,
            desk: tell::Desk::default(),
            leaving: None,
            end: None,
            due: Due::default(),
            problems: BTreeMap::new(),
            parts,
        }
    }

    /// One turn of the loop: takes in what happened, commits what follows, starts and stops.
    pub fn tick(&mut self, now: Moment, dirty: Dirty) -> Tick {
        self.dirty.add(dirty);
        if self.only_waits_for_lock(now) {
            return Tick::Wake(self.next_wake(now));
        }
        let dirty = &std::mem::take(&mut self.dirty);
        self.due.again = None;
        let now = self.by_the_volume(now);
        if self.is_replaced() {
            return self.end_processes(now);
        }
        self.wake_up(now, dirty);
        self.take_offers(now);
        if now.boot >= self.due.beat
            && let Some(end) = self.exchange_beats(now)
        {
            self.leave_for(end, now);
        }
        let now = self.by_the_volume(now);
        if self.is_replaced() {
            return self.end_processes(now);
        }
        self.take_exits(now);
        self.take_shortage();
        self.take_answers();
        self.look_around(now, dirty);
        // Due times, expiry and backoffs are judged by the volume's time.
        if self.anchor.is_some() {
            let is_beat = self.seen.upkeep;
            self.decide_and_act(now);
            self.watch_quiet(now);
            if is_beat {
                self.forget_devices(now);
            }
        }
        self.stop_to_leave(now);
        self.sweep(now);
        match self.has_left(now) {
            Some(end) => Tick::End(end),
            None => Tick::Wake(self.next_wake(now)),
        }
    }

    /// Returns whether the lock that this device waits for is still busy, and it has looked around a moment ago: then all else can wait too.
    /// Where many devices commit, most turns are of this kind.
    fn only_waits_for_lock(&mut self, now: Moment) -> bool {
        let looked = self.due.last_tick.unwrap_or_default();
        let is_soon = now.boot < self.due.beat.min(self.due.scan).min(looked + self.gathers_events_for());
        if self.due.busy_since.is_none() || !is_soon || self.leaving.is_some() || self.end.is_some() {
            return false;
        }
        let is_busy = self.store.is_busy();
        if is_busy {
            self.due.again = None;
            self.wait_for_lock(now);
        }
        is_busy
    }

    /// Returns whether another session has this device's id.
    fn is_replaced(&self) -> bool {
        self.end == Some(End::Replaced)
    }

    /// A turn of a device whose id another session has: it ends its own processes, and leaves everything else to that session.
    fn end_processes(&mut self, now: Moment) -> Tick {
        self.take_exits(now);
        self.take_answers();
        self.stop_to_leave(now);
        match self.has_left(now) {
            Some(end) => Tick::End(end),
            None => Tick::Wake(earlier(self.due.again, self.next_step_of_leaving()).unwrap_or(now.boot + TRY_AGAIN)),
        }
    }

    /// Returns when a device that leaves stops its runs or, once they are stopped, is gone.
    fn next_step_of_leaving(&self) -> Option<Duration> {
        self.leaving.map(|leaving| if leaving.asked { leaving.gone_by } else { leaving.stop_at })
    }

    /// The moment with the volume's time instead of this machine's: the one clock that all devices share, and one that
    /// no step of a clock moves, because boot time carries it from beat to beat.
    fn by_the_volume(&self, now: Moment) -> Moment {
        let since = |from: Duration, to: Duration| chrono::TimeDelta::from_std(to.saturating_sub(from)).ok();
        let wall = self
            .anchor
            .and_then(|anchor| Some(anchor.wall + since(anchor.boot, now.boot)? - since(now.boot, anchor.boot)?));
        Moment { wall: wall.unwrap_or(now.wall), ..now }
    }

    /// Notes that the loop makes a turn: until the next one its heartbeat may be repeated.
    pub fn note_turn(&self) {
        if let Some(pulse) = &self.parts.pulse {
            pulse.turn();
        }
    }

    /// Asks the device to drain and leave; asked a second time it stops its runs at once.
    pub fn leave(&mut self, now: Moment) {
        let grace = self.parts.config.stop_grace;
        match &mut self.leaving {
            None => {
                self.leaving = Some(Leaving {
                    stop_at: now.boot + grace,
                    gone_by: now.boot + grace + LEAVE_GRACE + TRY_AGAIN,
                    cause: StopCause::Drained,
                    asked: false,
                });
                tracing::info!(runs = self.seen.attempts.begun().count(), grace = ?grace, "draining: no new work is taken");
            }
            Some(leaving) => {
                leaving.stop_at = now.boot;
                leaving.gone_by = leaving.gone_by.min(now.boot + LEAVE_GRACE + TRY_AGAIN);
            }
        }
    }

    /// A number that is another one whenever something on the volume may have to survive a power cut.
    #[must_use]
    pub fn happened(&self) -> u64 {
        self.store.state().revision.wrapping_add(self.rejected).wrapping_add(self.taken_in)
    }

    /// Returns for how long after a turn file events are gathered. While no slot is free nothing of what they tell can start before a run
    /// ends, which wakes the device by itself. And the more devices there are, the less of it is for this one.
    #[must_use]
    pub fn gathers_events_for(&self) -> Duration {
        let me = &self.seen.me;
        let is_full = self.store.state().runs.load(&me.device).slots >= me.slots;
        if is_full { self.steps_back_for().max(TOGETHER) } else { self.steps_back_for() }
    }

    /// Returns for how long they are gathered for the sake of other devices.
    #[must_use]
    pub fn steps_back_for(&self) -> Duration {
        (STEP_BACK * self.others()).min(LONGEST_GATHERING)
    }

    /// Returns the number of other living devices.
    fn others(&self) -> u32 {
        let Observation { devices, me, now, .. } = &self.seen;
        let others = devices.alive(now.boot).filter(|peer| peer.beat.device != me.device);
        u32::try_from(others.count()).unwrap_or(u32::MAX)
    }

    /// The attempts that run here, for whoever looks.
    pub fn running(&self) -> impl Iterator<Item = &Lease> {
        self.seen.attempts.begun().map(|(lease, _)| lease)
    }

    /// Returns the sizes of this device's maps of runs, by name. The simulator checks that they stay within what the device holds.
    #[must_use]
    pub fn memory(&self) -> [(&'static str, usize); 7] {
        [
            ("attempts", self.seen.attempts.len()),
            ("evidence", self.seen.evidence.len()),
            ("orphans", self.seen.orphans.len()),
            ("orphans_since", self.orphans_since.len()),
            ("spent", self.seen.spent.len()),
            ("vanished", self.seen.vanished.len()),
            ("vanished_since", self.vanished_since.len()),
        ]
    }

    /// The port to processes, for whoever drives the simulation.
    pub fn executor_mut(&mut self) -> &mut dyn Executor {
        &mut *self.parts.executor
    }

    /// What hinders this device, in sentences.
    pub fn problems(&self) -> impl Iterator<Item = &str> {
        self.problems.values().map(String::as_str)
    }

    /// After a pause longer than half a lease nothing that is known is fresh: it is read again before anything else.
    fn wake_up(&mut self, now: Moment, dirty: &Dirty) {
        let slept = self.due.last_tick.is_some_and(|last| now.boot.saturating_sub(last) > self.parts.config.lease / 2);
        self.due.last_tick = Some(now.boot);
        if slept {
            tracing::warn!("this device stood still for longer than half a lease; everything is read again");
            self.seen.devices.watch_anew(now.boot);
            self.due.beat = now.boot;
            self.due.scan = now.boot;
        }
        // Before the first beat nothing is known of the others: a state that is missing could not be made anew.
        if slept || (dirty.state && self.anchor.is_some()) {
            self.refresh(now);
        }
    }

    /// Decides until nothing more follows. A few rounds at most: what is left comes with the next tick.
    fn decide_and_act(&mut self, now: Moment) {
        for _ in 0..4 {
            self.meet_holders();
            self.heed_cancels(now);
            self.remember();
            self.offer(now);
            self.observe(now);
            let plan = plan(self.store.state(), &self.seen);
            let looked = self.look_at_evidence(&plan);
            if plan.is_empty() && plan.fenced.is_empty() && plan.clashes.is_empty() {
                self.due.busy_since = None;
                self.solved("lock");
                self.worked_through = self.store.state().revision;
                self.note_minded();
                self.due.again = earlier(self.due.again, plan.later);
                self.perform(now);
                if looked {
                    continue;
                }
                return;
            }
            if self.parts.disk.boot() < self.due.commit {
                self.come_back(self.due.commit);
                return;
            }
            let committed = self.transact(now);
            match committed {
                Ok(more) => {
                    self.perform(now);
                    if !more {
                        return;
                    }
                }
                Err(refused) => {
                    self.refused(refused, now);
                    // What the newest known state says is done all the same: an attempt that it gives to another is stopped.
                    self.perform(now);
                    return;
                }
            }
        }
        self.come_back(now.boot);
    }

    /// Notes that a plan was made of what jobs changed, and nothing more is to be done of it.
    fn note_minded(&mut self) {
        self.seen.upkeep = false;
        // A state that is being rebuilt takes no notes of jobs yet.
        if self.store.state().rebuilt.is_none() {
            self.seen.fresh.clear();
            self.seen.changed.clear();
        }
    }

    /// Without its working folder or a free process no program starts, and without room none ends well: what waits is left to others.
    fn takes_work(&self) -> bool {
        let is_able = !self.problems.contains_key("programs") && !self.problems.contains_key(SHORT);
        let could_write = self.could_write || crate::planted!(ClaimUnwritable);
        self.leaving.is_none() && !self.drained && could_write && is_able && self.low_on.is_none()
    }

    /// Takes in whether programs can be started.
    fn take_shortage(&mut self) {
        match self.parts.executor.short_of() {
            Some(why) => self.problem(
                SHORT,
                format!("{why}; hint: it is tried again, and no new work is taken meanwhile; give this device more, or fewer slots"),
            ),
            None => self.solved(SHORT),
        }
    }

    /// Notes since when it is known what others hold.
    fn meet_holders(&mut self) {
        let state = Arc::clone(self.store.state());
        if Arc::ptr_eq(&state, &self.met) {
            return;
        }
        let before = std::mem::replace(&mut self.met, Arc::clone(&state));
        let me = &self.seen.me;
        let mut held: BTreeSet<Lease> = told_by_others(&state, me).collect();
        let mut no_longer: BTreeSet<Lease> = told_by_others(&before, me).collect();
        let is_of_other = |held: &&Arc<Held>| held.device.as_ref().is_some_and(|device| *device != me.device);
        for (run, before, after) in state.runs.differences(&before.runs) {
            let lease = |held: &Arc<Held>| Lease { run: run.clone(), attempt: held.attempt };
            no_longer.extend(before.filter(is_of_other).map(lease));
            held.extend(after.filter(is_of_other).map(lease));
        }
        // Not when this tick began: it may have been claimed since.
        let met_at = self.parts.disk.boot();
        self.seen.devices.meet(met_at, &held, &no_longer);
    }

    /// Brings what the rules see up to this moment.
    fn observe(&mut self, now: Moment) {
        self.seen.now = now;
        self.seen.quiet = self.is_quiet(now);
        self.seen.keep = self.parts.config.keep;
        self.seen.taking = self.takes_work();
        self.seen.may_tell = self.may_tell(now);
    }

    /// Makes the world match the state.
    fn perform(&mut self, now: Moment) {
        for effect in effects(self.store.state(), &self.seen.catalog, &self.seen.me, &self.seen.attempts) {
            match effect {
                Effect::Restart(lease) => self.stop(&lease, StopCause::Restarted),
                Effect::Dismiss(lease) => self.stop(&lease, StopCause::Dismissed),
                Effect::Preempt(lease) => self.stop(&lease, StopCause::Preempted),
                // What goes on was started: it is taken over, and stopped with the others.
                Effect::Start(lease) if self.leaving.is_some() && !self.seen.found.contains_key(&lease) => {
                    let error = "its device left before it was started".to_owned();
                    self.hand_back_unstarted(&lease, error, now);
                }
                Effect::Start(lease) => self.start(&lease, now),
                Effect::Cancel(lease) => self.stop(&lease, StopCause::Cancelled),
                Effect::Fence(lease) => self.fence(&lease),
            }
        }
        self.tell(now);
    }

    /// Stops what still runs when a leaving device has waited long enough, whatever state the volume is in.
    fn stop_to_leave(&mut self, now: Moment) {
        let Some(leaving) = self.leaving else { return };
        // What has no end of its own is not waited for.
        let is_over = now.boot >= leaving.stop_at && !leaving.asked;
        for (lease, attempt) in self.seen.attempts.begun() {
            let is_lasting = attempt.held.cause.is_lasting() && !attempt.is_fenced();
            if is_lasting || is_over {
                self.parts.executor.stop(lease, leaving.cause, LEAVE_GRACE);
            }
        }
        if !is_over {
            return;
        }
        self.leaving = Some(Leaving { asked: true, ..leaving });
    }

    fn stop(&mut self, lease: &Lease, cause: StopCause) {
        let grace = self.seen.attempts.get(lease).map_or(LEAVE_GRACE, |attempt| attempt.job.stop_grace);
        self.parts.executor.stop(lease, cause, grace);
    }

    /// The attempt is another's now: its processes end, and what it reports is kept as superseded.
    fn fence(&mut self, lease: &Lease) {
        if self.seen.attempts.get(lease).is_none_or(LocalAttempt::is_fenced) {
            return;
        }
        tracing::warn!(run = %lease.run, attempt = lease.attempt, "this attempt is no longer this device's: it is stopped");
        self.parts.executor.stop(lease, StopCause::Fenced, LEAVE_GRACE);
        self.seen.attempts.step(lease, Step::Fence);
    }

    fn refused(&mut self, refused: Refused, now: Moment) {
        match refused {
            Refused::Busy => self.wait_for_lock(now),
            Refused::Raced => self.come_back(now.boot + Duration::from_millis(1)),
            refused @ Refused::Newer(_) => self.leave_for(End::NewerState(refused.to_string()), now),
            Refused::Volume(error) => {
                self.problem("state", format!("{error}; hint: {}", error.hint()));
                self.come_back(now.boot + TRY_AGAIN);
            }
        }
    }

    /// Has the loop try again to get the lock: after 0.2 to 20 ms, the longer the later and the more devices there are, and not in step with
    /// others.
    fn wait_for_lock(&mut self, now: Moment) {
        let since = *self.due.busy_since.get_or_insert(now.boot);
        let waited = now.boot.saturating_sub(since);
        if waited >= BUSY_WARNING {
            let text = format!("the lock has been busy for {} s; {}", waited.as_secs(), self.last_writer());
            self.problem("lock", text);
        }
        let shortest = (SHORTEST_RETRY * (1 + self.others())).min(TOGETHER);
        let jitter = Duration::from_micros(self.names_seed() % 200);
        self.come_back(now.boot + (waited / 8).clamp(shortest, TOGETHER) + jitter);
    }

    /// A number that differs between devices and between calls.
    fn names_seed(&self) -> u64 {
        let session = u64::from_str_radix(self.seen.me.session.as_str(), 16).unwrap_or(1);
        (session ^ self.beat).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20
    }

    fn last_writer(&self) -> String {
        let newest = self.store.state().last_commits.first().map(|(_, session)| session.clone());
        let device = newest.as_ref().and_then(|session| self.seen.devices.device_of(session));
        match (device, newest) {
            (Some(device), _) => format!("the last who wrote under it was {device}"),
            (None, Some(session)) => format!("the last who wrote under it was session {session}"),
            (None, None) => "nobody has written under it yet".to_owned(),
        }
    }

    /// Has the loop make another turn at this time, if not earlier.
    fn come_back(&mut self, at: Duration) {
        self.due.again = earlier(self.due.again, Some(at));
    }

    /// Notes what hinders the device; it is logged when it is new.
    fn problem(&mut self, about: &'static str, text: String) {
        if self.problems.get(about) != Some(&text) {
            tracing::error!(about, "{text}");
            self.problems.insert(about, text);
        }
    }

    fn solved(&mut self, about: &'static str) {
        if self.problems.remove(about).is_some() {
            tracing::info!(about, "solved: work goes on");
        }
    }

    fn next_wake(&self, now: Moment) -> Duration {
        let settles = self.inbox.unsettled(now.boot).1;
        let queue = self.seen.queue.next_change(now).map(|span| now.boot + span.max(Duration::from_millis(1)));
        let until =
            |at: DateTime<Utc>| now.boot + (at - now.wall).to_std().unwrap_or_default().max(Duration::from_millis(1));
        let agenda = self.agenda.next_change(now.wall).map(until);
        let quiet = self.quiet_since.map(|since| since + IDLE_REST);
        let quiet = quiet.filter(|at| *at > now.boot && self.agenda.has_idle_jobs());
        let leave = self.next_step_of_leaving();
        // Where the folder cannot be read, what has to be looked at waits for the next scan.
        let settle = self.programs.next_settle().filter(|_| !self.problems.contains_key("programs"));
        let deferred = self.seen.deferred.next(now.boot);
        let dues = [
            deferred,
            settles,
            queue,
            agenda,
            quiet,
            leave,
            self.due.again,
            settle,
            self.seen.devices.next_verdict(now.boot),
        ];
        dues.into_iter().flatten().fold(self.due.beat.min(self.due.scan), Duration::min)
    }
}
