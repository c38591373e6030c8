//! One attempt in a container, from its image to its end.

use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bollard::models::{ContainerInspectResponse, ContainerState, ContainerStateStatusEnum};
use chrono::DateTime;
use tokio::sync::Notify;

use super::create::{Inside, body, check_policy, label, name_of};
use super::engine::Fault;
use super::places::{HINT, Unknown};
use super::{Shared, output, tidy};
use crate::exec::end::until;
use crate::exec::{Ending, Exit, Spec, StopCause};
use crate::model::container::{Gpus, Pull};
use crate::model::lease::Lease;
use crate::volume::os::boot;

/// How long an engine that does not answer is left alone.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the last of what a container printed may take to come.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// How often a container is looked at whatever its connection says.
const LOOK_ANYWAY: Duration = Duration::from_secs(30);
/// How often a container that should be dead is killed again.
const KILL_AGAIN: Duration = Duration::from_secs(2);
/// How often a container that has ended is tried to be removed.
const REMOVALS: u32 = 3;
/// Why an attempt has no container.
const STOPPED_BEFORE: &str = "it was stopped before its container was started";
/// What an engine says of a container that it found dead.
const ENGINE_DIED: i64 = 255;

/// An attempt that has not ended yet, as its attendant and its owner share it.
#[derive(Debug)]
pub(super) struct Attempt {
    lease: Lease,
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

    /// It had ended by itself before anybody could stop it.
    fn was_over(&self) {
        self.orders().stopped = None;
    }

    async fn asked_to_stop(&self) {
        while self.orders().stopped.is_none() {
            self.changed.notified().await;
        }
    }
}

/// Sees one attempt through to its [`Exit`].
pub(super) async fn attend(shared: Arc<Shared>, attempt: Arc<Attempt>, mut spec: Spec) {
    let clock = Instant::now();
    let lease = attempt.lease.clone();
    let name = name_of(&lease);
    let made = make(&shared, &attempt, &mut spec).await;
    let (ended, container) = match made {
        Ok(made) => (live(&shared, &attempt, spec, &made).await, Some(made.id)),
        Err(ended) => (ended, None),
    };
    let started = !matches!(ended.ending, Ending::NotStarted { .. });
    let finished = boot();
    let stopped = attempt.orders().stopped;
    let duration = ended.duration.unwrap_or_else(|| clock.elapsed());
    let Ended { ending, oom_killed, .. } = ended;
    // It is dead by now, or was never there: what is left of it may go after its end was told.
    shared.ledger.deliver(Exit { lease, ending, oom_killed, stopped, started, finished, duration, usage: None });
    remove(&shared, &attempt.lease, &name, container).await;
}

/// Removes the container of an attempt: the one that was made, or one that the engine made without being heard of. One of
/// somebody else under that name is left alone.
async fn remove(shared: &Shared, lease: &Lease, name: &str, container: Option<String>) {
    for _ in 0..REMOVALS {
        let container = match &container {
            Some(id) => Ok(Some(id.clone())),
            None => shared.engine.inspect(name).await.map(|seen| own(shared, lease, seen)),
        };
        let removed = match container {
            Ok(Some(id)) => shared.engine.remove(&id).await,
            Ok(None) | Err(Fault::NoContainer) => return,
            Err(fault) => Err(fault),
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
fn own(shared: &Shared, lease: &Lease, seen: ContainerInspectResponse) -> Option<String> {
    let labels = seen.config.and_then(|config| config.labels)?;
    let has = |name: &str, value: &str| labels.get(name).is_some_and(|found| found == value);
    let is_own = has(label::VOLUME, &shared.settings.volume)
        && has(label::DEVICE, shared.settings.device.as_str())
        && has(label::RUN, lease.run.as_str())
        && has(label::ATTEMPT, &lease.attempt.to_string());
    seen.id.filter(|_| is_own)
}

/// A container that runs, or has run.
struct Made {
    id: String,
    /// How much of what it printed stands in the log already.
    copied: u64,
    /// For how long it has run already, and whether an earlier life of this device made it.
    ran_for: Duration,
    is_adopted: bool,
}

impl Made {
    fn fresh(id: String) -> Self {
        Self { id, copied: 0, ran_for: Duration::ZERO, is_adopted: false }
    }
}

/// How a container ended.
struct Ended {
    ending: Ending,
    oom_killed: bool,
    /// From start to end by the engine's clock; `None`: not known.
    duration: Option<Duration>,
}

impl Ended {
    fn unstarted(error: String) -> Self {
        Self { ending: Ending::NotStarted { error }, oom_killed: false, duration: None }
    }

    fn unknown(error: String) -> Self {
        Self { ending: Ending::Unknown { error }, oom_killed: false, duration: None }
    }
}

/// Makes and starts the container, or finds the one that was made for this attempt before.
async fn make(shared: &Shared, attempt: &Attempt, spec: &mut Spec) -> Result<Made, Ended> {
    let Some(inside) = spec.inside.take() else {
        return Err(Ended::unstarted("found no container to run it in".to_owned()));
    };
    let name = name_of(&spec.lease);
    if inside.goes_on {
        return adopt(shared, attempt, spec, &name).await;
    }
    match create(shared, attempt, spec, &inside, &name).await.map_err(Ended::unstarted)? {
        Some(id) => match shared.engine.start(&id).await {
            Ok(()) => Ok(Made::fresh(id)),
            // Whether it was started nobody knows before the engine is back: then its record says so.
            Err(fault) if fault.is_absence() => Ok(Made::fresh(id)),
            Err(fault) => Err(Ended::unstarted(why_not_started(shared, &inside, &fault))),
        },
        None => adopt(shared, attempt, spec, &name).await,
    }
}

/// Makes the container; `None`: there is one of its name.
async fn create(
    shared: &Shared,
    attempt: &Attempt,
    spec: &Spec,
    inside: &Inside,
    name: &str,
) -> Result<Option<String>, String> {
    let places = shared.places().await.map_err(|unknown| match unknown {
        Unknown::Engine(fault) => told(shared, &fault),
        Unknown::Place(error) => format!("{error}; hint: {HINT}"),
    })?;
    check_policy(&inside.container, &shared.settings, &places)?;
    // Whoever held an earlier attempt is dead, or has lost it: what goes on of that here ends before this one starts.
    if spec.lease.attempt > 1 {
        tidy::end_earlier(shared, &spec.lease).await.map_err(|fault| told(shared, &fault))?;
    }
    let image = &inside.container.image;
    let mut log_from = 0;
    if inside.container.pull == Pull::Always {
        log_from = pull(shared, attempt, spec, image).await?;
    }
    let body = |log_from| {
        body(spec, inside, &shared.settings, &places, log_from).map_err(|error| format!("{error}; hint: {HINT}"))
    };
    let mut created = shared.engine.create(name, body(log_from)?).await;
    if matches!(created, Err(Fault::NoImage(_))) && inside.container.pull == Pull::Missing {
        let log_from = pull(shared, attempt, spec, image).await?;
        created = shared.engine.create(name, body(log_from)?).await;
    }
    match created {
        // It is removed once its end was told.
        Ok(_) if attempt.orders().stopped.is_some() => Err(STOPPED_BEFORE.to_owned()),
        Ok(id) => Ok(Some(id)),
        Err(Fault::NameTaken) => Ok(None),
        Err(fault) => Err(why_not_started(shared, inside, &fault)),
    }
}

/// Takes over the container that has this attempt's name, if it is this attempt's. An engine that is away is waited for: what
/// goes on there has not ended.
async fn adopt(shared: &Shared, attempt: &Attempt, spec: &Spec, name: &str) -> Result<Made, Ended> {
    let mut said = false;
    let seen = loop {
        match shared.engine.inspect(name).await {
            Ok(seen) => break seen,
            Err(fault) if fault.is_absence() => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(run = %attempt.lease.run, %fault, "its container is to be taken over once the engine is back");
                }
                tokio::time::sleep(PAUSE).await;
            }
            Err(Fault::NoContainer) => {
                return Err(Ended::unknown("its container was removed while its device was away".to_owned()));
            }
            Err(fault) => return Err(Ended::unknown(told(shared, &fault))),
        }
    };
    let log_from = seen.config.as_ref().and_then(|config| config.labels.as_ref()?.get(label::LOG_FROM)?.parse().ok());
    let log_from: u64 = log_from.unwrap_or(0);
    let ran_for = seen.state.as_ref().and_then(ran_for).unwrap_or_default();
    let Some(id) = own(shared, &spec.lease, seen) else {
        return Err(Ended::unstarted(format!(
            "a container of somebody else has the name {name}; hint: `docker inspect {name}` shows whose it is, `docker rm -f {name}` removes it"
        )));
    };
    let written = spec.log.as_ref().and_then(|log| log.metadata().ok()).map_or(0, |meta| meta.len());
    tracing::info!(run = %spec.lease.run, attempt = spec.lease.attempt, container = name, "its container goes on and is taken over");
    Ok(Made { id, copied: written.saturating_sub(log_from), ran_for, is_adopted: true })
}

/// For how long a container that runs has run.
fn ran_for(state: &ContainerState) -> Option<Duration> {
    let started = DateTime::parse_from_rfc3339(state.started_at.as_deref()?).ok()?;
    (chrono::Utc::now() - started.to_utc()).to_std().ok()
}

/// Fetches the image, and says so in the log; returns how many bytes that took there.
async fn pull(shared: &Shared, attempt: &Attempt, spec: &Spec, image: &str) -> Result<u64, String> {
    let mut say = |line: &str| {
        if let Some(mut log) = spec.log.as_ref() {
            // Whether anybody can read of it is no reason not to fetch it.
            let _ = writeln!(log, "[{image}: {line}]");
        }
    };
    say("fetching the image");
    // Nothing else here takes long: so only this is cut short by who asks for its end.
    let fetched = tokio::select! {
        fetched = shared.engine.pull(image, &mut say) => fetched,
        () = attempt.asked_to_stop() => return Err(STOPPED_BEFORE.to_owned()),
    };
    match fetched {
        Ok(()) => Ok(spec.log.as_ref().and_then(|log| log.metadata().ok()).map_or(0, |meta| meta.len())),
        Err(fault) if fault.is_absence() => Err(told(shared, &fault)),
        Err(fault) => {
            say(&format!("cannot be fetched: {fault}"));
            let hint = "is its name right, and does this machine reach its registry? `docker pull` says more; `pull = \"never\"` where it is made here";
            Err(format!("the image {image} is not here and cannot be fetched: {fault}; hint: {hint}"))
        }
    }
}

/// A fault in words, noted if it says that the engine is not there.
fn told(shared: &Shared, fault: &Fault) -> String {
    if fault.is_absence() {
        shared.is_gone();
    }
    format!("{fault}; hint: {}", fault.hint())
}

/// Why a container was not made or started, in the words of who asked for it.
fn why_not_started(shared: &Shared, inside: &Inside, fault: &Fault) -> String {
    let container = &inside.container;
    let text = fault.to_string();
    let says = |words: &str| text.to_lowercase().contains(words);
    if container.gpus != Gpus::None && (says("device driver") || says("gpu") || says("nvidia") || says("cdi")) {
        return format!(
            "this machine's engine has no GPU to give: {text}; hint: tag the devices that have one, and ask for the tag"
        );
    }
    if says("no space left") {
        return format!("the engine's disk is full: {text}; hint: `docker system df` says of what");
    }
    if says("bind source path does not exist") {
        return format!("the engine's host has no such path: {text}; hint: {HINT}");
    }
    if says("network") && says("not found") {
        return format!(
            "the engine has no network {}: {text}; hint: `docker network create {}`",
            container.network, container.network
        );
    }
    match fault {
        Fault::Refused(_) | Fault::NotNow(_) => {
            format!("the engine did not start a container of {}: {text}", container.image)
        }
        Fault::Gone { .. } | Fault::NoRights(_) | Fault::NoImage(_) | Fault::NameTaken | Fault::NoContainer => {
            told(shared, fault)
        }
    }
}

/// Waits until the container has ended, stops it when that is asked, and reads how it ended.
async fn live(shared: &Arc<Shared>, attempt: &Attempt, spec: Spec, made: &Made) -> Ended {
    let engine = &shared.engine;
    let copying = spec.log.map(|log| tokio::spawn(output::copy(engine.clone(), made.id.clone(), log, made.copied)));
    let left = spec.timeout.map(|timeout| timeout.saturating_sub(made.ran_for));
    let mut timeout_at = left.and_then(|left| Instant::now().checked_add(left));
    // Nobody watched what an earlier life left.
    let mut lost_sight = made.is_adopted;
    let mut stopping = Stopping::default();
    let ended = loop {
        let mut wait = std::pin::pin!(engine.wait(&made.id));
        let look_at = Instant::now().checked_add(LOOK_ANYWAY);
        let looked = loop {
            // Before each wait, which may fail at once again and again.
            if timeout_at.is_some_and(|at| at <= Instant::now()) {
                timeout_at = None;
                attempt.stop(StopCause::Timeout, spec.grace);
            }
            if attempt.orders().stopped.is_some() {
                stopping.press(shared, attempt, &made.id).await;
            }
            let is_stopping = attempt.orders().stopped.is_some();
            let due = if is_stopping { stopping.due(attempt) } else { timeout_at };
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
        match engine.inspect(&made.id).await {
            Ok(seen) if was_not_started(&seen) => match engine.start(&made.id).await {
                Err(fault) if !fault.is_absence() => break Ended::unstarted(told(shared, &fault)),
                Ok(()) => continue,
                Err(_) => {}
            },
            Ok(seen) if !is_running(&seen) => break judge(&seen, lost_sight),
            Err(Fault::NoContainer) => {
                break Ended::unknown("its container was removed by somebody else while it ran".to_owned());
            }
            Ok(_) if looked.is_ok() => continue,
            Ok(_) => {}
            Err(fault) => {
                if !std::mem::replace(&mut lost_sight, true) {
                    tracing::warn!(run = %attempt.lease.run, %fault, "the engine is out of sight; this attempt is judged when it is back");
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    };
    if let Some(mut copying) = copying
        && tokio::time::timeout(LAST_WORDS, &mut copying).await.is_err()
    {
        // Nothing is to be written behind the end.
        copying.abort();
        tracing::warn!(run = %attempt.lease.run, "the last of what its container printed did not come");
    }
    ended
}

/// What a container that is to end has been sent.
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
    async fn press(&mut self, shared: &Shared, attempt: &Attempt, container: &str) {
        let is_kill = attempt.orders().kill_at.is_some_and(|at| at <= Instant::now());
        let signal = match (is_kill, self.was_asked) {
            (true, _) => "SIGKILL",
            (false, false) => "SIGTERM",
            (false, true) => return,
        };
        match shared.engine.signal(container, signal).await {
            Ok(true) => {}
            // It had ended by itself.
            Ok(false) if !self.was_asked => attempt.was_over(),
            Ok(false) => {}
            Err(fault) => {
                tracing::warn!(container, %fault, "this container cannot be sent its end; it is tried again");
                tokio::time::sleep(PAUSE).await;
                return;
            }
        }
        self.was_asked = true;
        if is_kill {
            self.killed_at = Some(Instant::now());
        }
    }
}

/// Whether it was made, and nobody has come to start it.
fn was_not_started(seen: &ContainerInspectResponse) -> bool {
    let status = seen.state.as_ref().and_then(|state| state.status);
    status == Some(ContainerStateStatusEnum::CREATED)
}

fn is_running(seen: &ContainerInspectResponse) -> bool {
    seen.state.as_ref().is_some_and(|state| state.running == Some(true) || state.restarting == Some(true))
}

/// Reads an end from the engine's record. `lost_sight`: the engine was away while it ran.
fn judge(seen: &ContainerInspectResponse, lost_sight: bool) -> Ended {
    let Some(state) = &seen.state else {
        return Ended::unknown("the engine does not say how its container ended".to_owned());
    };
    let (oom_killed, duration) = (state.oom_killed.unwrap_or(false), lived(state));
    let error = state.error.as_deref().filter(|error| !error.is_empty());
    let ending = match state.exit_code {
        Some(ENGINE_DIED) if lost_sight => {
            let error = "the engine was restarted while it ran, and does not know how its container ended".to_owned();
            Ending::Unknown { error }
        }
        Some(code) => match (error, i32::try_from(code)) {
            // What the engine could not do is no end of the program.
            (Some(error), _) if code != 0 => {
                Ending::Unknown { error: format!("the engine says of its container: {error} (exit code {code})") }
            }
            (_, Ok(code)) => Ending::Code(code),
            (_, Err(_)) => Ending::Unknown { error: format!("its container ended with the odd exit code {code}") },
        },
        None => Ending::Unknown { error: "the engine does not say how its container ended".to_owned() },
    };
    Ended { ending, oom_killed, duration }
}

/// From start to end, by the engine's clock.
fn lived(state: &ContainerState) -> Option<Duration> {
    let at = |text: &Option<String>| DateTime::parse_from_rfc3339(text.as_deref()?).ok();
    (at(&state.finished_at)? - at(&state.started_at)?).to_std().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(exit_code: Option<i64>, error: &str) -> ContainerInspectResponse {
        let at = |second: u32| Some(format!("2026-11-21T03:41:0{second}.25Z"));
        let state = ContainerState {
            exit_code,
            error: Some(error.to_owned()),
            started_at: at(1),
            finished_at: at(3),
            ..ContainerState::default()
        };
        ContainerInspectResponse { state: Some(state), ..ContainerInspectResponse::default() }
    }

    #[test]
    fn an_end_is_what_the_engine_has_on_record_and_no_success_by_default() {
        let judged = |exit_code, error, lost_sight| judge(&seen(exit_code, error), lost_sight).ending;
        let is_unknown = |ending: &Ending| matches!(ending, Ending::Unknown { .. });
        for code in [0, 1, 137, 254] {
            let expected = Ending::Code(i32::try_from(code).unwrap());
            assert_eq!(judged(Some(code), "", false), expected);
            assert_eq!(judged(Some(code), "", true), expected, "seen or not, it is on record");
        }
        assert_eq!(judged(Some(255), "", false), Ending::Code(255), "a program may say so");
        assert!(is_unknown(&judged(Some(255), "", true)), "so does an engine that was restarted");
        assert!(is_unknown(&judged(Some(128), "OCI runtime: no", false)));
        assert!(is_unknown(&judged(None, "", false)) && is_unknown(&judged(Some(1 << 40), "", false)));
        let nothing = judge(&ContainerInspectResponse::default(), false);
        assert!(is_unknown(&nothing.ending) && nothing.duration.is_none());
        assert_eq!(judge(&seen(Some(0), ""), false).duration, Some(Duration::from_secs(2)));
    }
}
