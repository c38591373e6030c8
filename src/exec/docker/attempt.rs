//! One attempt in a container, from its start to its end, whatever kind of container it has.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bollard::models::ContainerInspectResponse;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::cold::Own;
use super::create::{Inside, label, lease_of, name_of};
use super::engine::{Engine, Fault};
use super::service::Task;
use super::warm::Process;
use super::{Shared, cold, lock, service, warm};
use crate::exec::end::until;
use crate::exec::log::Log;
use crate::exec::procfs::Used;
use crate::exec::{Ending, Exit, Spec, StopCause};
use crate::model::container::Engine as RunBy;
use crate::model::device::RunUse;
use crate::model::lease::Lease;
use crate::volume::os::boot;

/// How long an engine that does not answer is left alone.
pub(super) const PAUSE: Duration = Duration::from_secs(1);
/// How long the last of what a container printed may take to come, if it comes at all.
const LAST_WORDS: Duration = Duration::from_secs(60);
/// How often it is measured what a container has in use.
const MEASURE: Duration = Duration::from_secs(2);
/// How long after its start the engine is asked what a kept container had used before: who ends sooner costs no question.
const KEPT_BEFORE: Duration = Duration::from_millis(100);
/// How often a container is looked at whatever its connection says.
const LOOK_ANYWAY: Duration = Duration::from_secs(30);
/// How often a container that should be dead is killed again.
const KILL_AGAIN: Duration = Duration::from_secs(2);
/// How often a container that has ended is tried to be removed.
const REMOVALS: u32 = 3;
/// The exit code of what SIGKILL has ended.
const KILLED: i32 = 137;
/// The time for which an attempt that was not started for want of processes or descriptors is kept before others may start it.
const SHORT: Duration = Duration::from_secs(5);
/// Why an attempt has no container.
pub(super) const STOPPED_BEFORE: &str = "it was stopped before its container was started";

/// An attempt that has not ended yet, as its attendant and its owner share it.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) lease: Lease,
    orders: Mutex<Orders>,
    /// The orders have changed.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Orders {
    /// The first cause.
    stopped: Option<StopCause>,
    kill_at: Option<Instant>,
}

impl Attempt {
    pub(super) fn new(lease: Lease) -> Self {
        Self { lease, orders: Mutex::default(), changed: Notify::new() }
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for its end; asked again, the earlier moment of the kill counts.
    pub(super) fn stop(&self, cause: StopCause, grace: Duration) {
        let mut orders = self.orders();
        let at = Instant::now().checked_add(grace);
        orders.stopped.get_or_insert(cause);
        orders.kill_at = [orders.kill_at, at].into_iter().flatten().min();
        drop(orders);
        self.changed.notify_one();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.orders().stopped.is_some()
    }

    /// It had ended by itself before anybody could stop it.
    fn was_over(&self) {
        self.orders().stopped = None;
    }

    pub(super) async fn asked_to_stop(&self) {
        while !self.is_stopped() {
            self.changed.notified().await;
        }
    }
}

/// What an attempt lives in.
pub(super) enum Vessel {
    /// A container of its own.
    Own(Own),
    /// A process in a container that is kept.
    Kept(Process),
    /// A task of a swarm.
    Swarm(Task),
}

/// What there is to see of an attempt.
pub(super) enum Look {
    Runs,
    Ended(Ended),
}

/// A signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    Term,
    Kill,
}

impl Vessel {
    /// Copies what it prints into the log; `over` says when nothing more will come of it.
    fn copy(&self, engine: &Engine, log: Log, copied: u64, over: watch::Receiver<bool>) -> JoinHandle<bool> {
        match self {
            Self::Own(own) => own.copy(engine, log, copied, over),
            Self::Kept(process) => process.copy(log),
            Self::Swarm(task) => task.copy(engine, log, copied, over),
        }
    }

    /// Returns when it may have ended.
    async fn wait(&self, engine: &Engine) -> Result<(), Fault> {
        match self {
            Self::Own(own) => engine.wait(&own.id).await,
            Self::Kept(process) => process.wait(engine).await,
            Self::Swarm(task) => {
                task.pause().await;
                Ok(())
            }
        }
    }

    /// What the engine has on record. `lost_sight`: the engine was away while it ran.
    async fn look(&self, shared: &Shared, attempt: &Attempt, lost_sight: bool) -> Result<Look, Fault> {
        match self {
            Self::Own(own) => own.look(shared, attempt, lost_sight).await,
            Self::Kept(process) => process.look(&shared.engine).await,
            Self::Swarm(task) => task.look(&shared.engine).await,
        }
    }

    /// Sends a signal; `false`: it had ended already.
    async fn signal(&self, engine: &Engine, signal: Signal) -> Result<bool, Fault> {
        match self {
            Self::Own(own) => own.signal(engine, signal).await,
            Self::Kept(process) => process.signal(engine, signal).await,
            Self::Swarm(task) => task.signal(engine).await,
        }
    }
}

/// Notes again and again what a container has in use, as long as it is asked to. A task of a swarm may be on another machine.
async fn measure(shared: &Shared, lease: &Lease, vessel: &Vessel) -> Infallible {
    let container = match vessel {
        Vessel::Own(own) => Some(own.id.as_str()),
        Vessel::Kept(process) => Some(process.container()),
        Vessel::Swarm(_) => None,
    };
    let Some(container) = container else { return std::future::pending().await };
    // What attempts before this one took of the processors; of a container of its own, nothing.
    let mut before = matches!(vessel, Vessel::Own(_)).then_some(0);
    let mut pause = KEPT_BEFORE;
    while before.is_none() {
        tokio::time::sleep(std::mem::replace(&mut pause, MEASURE)).await;
        before = shared.engine.used(container).await.ok().flatten().map(|used| used.cpu_ms);
    }
    loop {
        tokio::time::sleep(MEASURE).await;
        // What cannot be known now is as it was.
        if let Ok(Some(Used { processes, memory_bytes, cpu_ms })) = shared.engine.used(container).await {
            let (run_id, attempt) = (lease.run.clone(), lease.attempt);
            let cpu_ms = cpu_ms.saturating_sub(before.unwrap_or_default());
            let used = RunUse { run_id, attempt, processes, memory_bytes, cpu_ms };
            lock(&shared.used).insert(lease.clone(), used);
        }
    }
}

/// An attempt that was started.
pub(super) struct Made {
    pub(super) vessel: Vessel,
    /// How much of what it printed stands in the log already.
    pub(super) copied: u64,
    /// For how long it has run already, and whether an earlier life of this device made it.
    pub(super) ran_for: Duration,
    pub(super) is_adopted: bool,
}

impl Made {
    pub(super) fn fresh(vessel: Vessel) -> Self {
        Self { vessel, copied: 0, ran_for: Duration::ZERO, is_adopted: false }
    }
}

/// How an attempt ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) ending: Ending,
    pub(super) oom_killed: bool,
    /// From start to end, as far as that is known better than by who waited.
    pub(super) duration: Option<Duration>,
    /// Something of what it printed is missing in its log.
    pub(super) log_truncated: bool,
}

impl Ended {
    pub(super) fn of(ending: Ending) -> Self {
        Self { ending, oom_killed: false, duration: None, log_truncated: false }
    }

    pub(super) fn unstarted(error: String) -> Self {
        Self::of(Ending::NotStarted { error })
    }

    pub(super) fn unknown(error: String) -> Self {
        Self::of(Ending::Unknown { error })
    }
}

/// Sees one attempt through to its [`Exit`].
pub(super) async fn attend(shared: Arc<Shared>, attempt: Arc<Attempt>, mut spec: Spec) {
    let clock = Instant::now();
    let has_own_limit = spec.inside.as_ref().is_some_and(|inside| inside.limits.pids.is_some());
    let made = match spec.inside.take() {
        Some(inside) => make(&shared, &attempt, &spec, &inside).await,
        None => Err(Ended::unstarted("found no container to run it in".to_owned())),
    };
    let (ended, vessel) = match made {
        Ok(made) => {
            let ended = tokio::select! {
                ended = live(&shared, &attempt, spec, &made) => ended,
                never = measure(&shared, &attempt.lease, &made.vessel) => match never {},
            };
            lock(&shared.used).remove(&attempt.lease);
            (ended, Some(made.vessel))
        }
        Err(ended) => (ended, None),
    };
    // What is kept for later is put back before anybody can hear of the end: its name is still this attempt's.
    let vessel = match vessel {
        Some(Vessel::Kept(process)) => {
            let is_clean = ended.ending == Ending::Code(0) && !attempt.is_stopped();
            process.put_back(&shared, is_clean).await;
            None
        }
        other => Some(other),
    };
    let started = !matches!(ended.ending, Ending::NotStarted { .. });
    if !has_own_limit && is_short(&ended.ending) {
        // Not at once: it may be this device that takes it again.
        tokio::select! {
            () = tokio::time::sleep(SHORT) => {}
            () = attempt.asked_to_stop() => {}
        }
        attempt.orders().stopped.get_or_insert(StopCause::Short);
    }
    let finished = boot();
    let stopped = attempt.orders().stopped;
    let duration = ended.duration.unwrap_or_else(|| clock.elapsed());
    let Ended { ending, oom_killed, log_truncated, .. } = ended;
    let lease = attempt.lease.clone();
    // It is dead by now, or was never there: what is left of it may go after its end was told.
    let usage = None;
    let exit = Exit { lease, ending, oom_killed, stopped, started, finished, duration, usage, log_truncated };
    shared.ledger.deliver(exit);
    if let Some(vessel) = vessel {
        remove(&shared, &attempt.lease, vessel).await;
    }
}

/// Returns whether something was not started because the engine's machine, or this process, is out of processes or descriptors.
fn is_short(ending: &Ending) -> bool {
    let Ending::NotStarted { error } = ending else { return false };
    let error = error.to_lowercase();
    ["resource temporarily unavailable", "too many open files"].iter().any(|words| error.contains(words))
}

async fn make(shared: &Shared, attempt: &Attempt, spec: &Spec, inside: &Inside) -> Result<Made, Ended> {
    match (inside.container.engine, inside.container.keep_warm) {
        (RunBy::Swarm, _) => service::make(shared, attempt, spec, inside).await,
        (RunBy::Local, None) => cold::make(shared, attempt, spec, inside).await,
        (RunBy::Local, Some(idle)) => warm::make(shared, attempt, spec, inside, idle).await,
    }
}

/// Removes what an attempt lived in: what was made, or what the engine made without being heard of. What somebody else has under
/// that name is left alone.
async fn remove(shared: &Shared, lease: &Lease, vessel: Option<Vessel>) {
    let name = name_of(lease);
    for _ in 0..REMOVALS {
        let removed = match &vessel {
            Some(Vessel::Swarm(_)) => service::remove(shared, lease).await,
            Some(Vessel::Own(own)) => shared.engine.remove(&own.id).await,
            Some(Vessel::Kept(_)) => Ok(()),
            None => match shared.engine.inspect(&name).await.map(|seen| own(shared, lease, seen)) {
                Ok(Some(id)) => shared.engine.remove(&id).await,
                Ok(None) | Err(Fault::NoContainer) => Ok(()),
                Err(fault) => Err(fault),
            },
        };
        match removed {
            Ok(()) => return,
            Err(fault) => tracing::debug!(container = name, %fault, "not removed yet"),
        }
        tokio::time::sleep(PAUSE).await;
    }
    tracing::warn!(container = name, "this container could not be removed; it is tried again each minute");
}

/// The id of a container, if it is this attempt's by its labels.
pub(super) fn own(shared: &Shared, lease: &Lease, seen: ContainerInspectResponse) -> Option<String> {
    let labels = seen.config.and_then(|config| config.labels)?;
    let has = |name: &str, value: &str| labels.get(name).is_some_and(|found| found == value);
    let is_own = has(label::VOLUME, &shared.settings.volume)
        && has(label::DEVICE, shared.settings.device.as_str())
        && lease_of(&labels, seen.name.as_deref().unwrap_or_default()).as_ref() == Some(lease);
    seen.id.filter(|_| is_own)
}

/// A fault in words, noted if it says that the engine is not there.
pub(super) fn told(shared: &Shared, fault: &Fault) -> String {
    if fault.is_absence() {
        shared.is_gone();
    }
    format!("{fault}; hint: {}", fault.hint())
}

/// Waits until the attempt has ended, stops it when that is asked, and reads how it ended.
async fn live(shared: &Arc<Shared>, attempt: &Attempt, spec: Spec, made: &Made) -> Ended {
    let engine = &shared.engine;
    let (over, is_over) = watch::channel(false);
    let log = spec.log.map(|log| Log::new(log, spec.masker, &spec.lease));
    let copying = log.map(|log| made.vessel.copy(engine, log, made.copied, is_over));
    let vessel = &made.vessel;
    let left = spec.timeout.map(|timeout| timeout.saturating_sub(made.ran_for));
    let mut timeout_at = left.and_then(|left| Instant::now().checked_add(left));
    // Nobody watched what an earlier life left.
    let mut lost_sight = made.is_adopted;
    let mut stopping = Stopping::default();
    let mut was_killed_before = false;
    let mut ended = loop {
        let mut wait = std::pin::pin!(vessel.wait(engine));
        let look_at = Instant::now().checked_add(LOOK_ANYWAY);
        let looked = loop {
            // Before each wait, which may fail at once again and again.
            if timeout_at.is_some_and(|at| at <= Instant::now()) {
                timeout_at = None;
                attempt.stop(StopCause::Timeout, spec.grace);
            }
            if attempt.is_stopped() {
                stopping.press(shared, attempt, vessel).await;
            }
            let due = if attempt.is_stopped() { stopping.due(attempt) } else { timeout_at };
            tokio::select! {
                biased;
                ended = &mut wait => break ended,
                () = attempt.changed.notified() => {}
                () = until(due) => {}
                // A connection may die without a word.
                () = until(look_at) => break Ok(()),
            }
        };
        lost_sight |= looked.is_err();
        match vessel.look(shared, attempt, lost_sight).await {
            Ok(Look::Ended(ended)) if was_killed(&ended) && !attempt.is_stopped() && !was_killed_before => {
                // Whoever removes a container kills it first: then it is gone in a moment, and was no failure of its own.
                was_killed_before = true;
            }
            Ok(Look::Ended(ended)) => break ended,
            Ok(Look::Runs) if looked.is_ok() => continue,
            Ok(Look::Runs) => {}
            Err(fault) => {
                if !std::mem::replace(&mut lost_sight, true) {
                    tracing::warn!(run = %attempt.lease.run, %fault, "the engine is out of sight; this attempt is judged when it is back");
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    };
    // Its time was over while nobody watched, and whoever stopped it has died.
    let is_late = spec.timeout.zip(ended.duration).is_some_and(|(timeout, lived)| lived >= timeout);
    if made.is_adopted && is_late && ended.ending != Ending::Code(0) && !attempt.is_stopped() {
        attempt.stop(StopCause::Timeout, Duration::ZERO);
    }
    // Who has gone needs not be told.
    let _ = over.send(true);
    if let Some(mut copying) = copying {
        match tokio::time::timeout(LAST_WORDS, &mut copying).await {
            // It panics only with a bug, which its thread has told by then.
            Ok(copied) => ended.log_truncated = copied.unwrap_or(true),
            Err(_) => {
                // Nothing is to be written behind the end.
                copying.abort();
                ended.log_truncated = true;
                tracing::warn!(run = %attempt.lease.run, "the last of what its container printed did not come");
            }
        }
    }
    ended
}

/// Whether somebody sent it SIGKILL, as it seems.
fn was_killed(ended: &Ended) -> bool {
    ended.ending == Ending::Code(KILLED) && !ended.oom_killed
}

/// What an attempt that is to end has been sent.
#[derive(Debug, Default)]
struct Stopping {
    was_asked: bool,
    killed_at: Option<Instant>,
}

impl Stopping {
    fn due(&self, attempt: &Attempt) -> Option<Instant> {
        if !self.was_asked {
            return Some(Instant::now());
        }
        match self.killed_at {
            Some(at) => at.checked_add(KILL_AGAIN),
            None => attempt.orders().kill_at,
        }
    }

    /// Sends what is due: SIGTERM once, SIGKILL when its grace is over, and again while it lives.
    async fn press(&mut self, shared: &Shared, attempt: &Attempt, vessel: &Vessel) {
        let now = Instant::now();
        let is_kill = attempt.orders().kill_at.is_some_and(|at| at <= now);
        let is_again = self.killed_at.and_then(|at| at.checked_add(KILL_AGAIN)).is_none_or(|at| at <= now);
        let signal = match (is_kill, self.was_asked) {
            (true, _) if is_again => Signal::Kill,
            (false, false) => Signal::Term,
            (true, _) | (false, true) => return,
        };
        match vessel.signal(&shared.engine, signal).await {
            Ok(true) => {}
            Ok(false) if !self.was_asked => match vessel.look(shared, attempt, false).await {
                // It had ended by itself.
                Ok(Look::Ended(_)) => attempt.was_over(),
                // It is paused, or somebody else is at it.
                Ok(Look::Runs) | Err(_) => {
                    tokio::time::sleep(PAUSE).await;
                    return;
                }
            },
            Ok(false) => {}
            Err(fault) => {
                tracing::warn!(run = %attempt.lease.run, %fault, "this attempt cannot be sent its end; it is tried again");
                tokio::time::sleep(PAUSE).await;
                return;
            }
        }
        self.was_asked = true;
        if is_kill {
            self.killed_at = Some(now);
        }
    }
}
