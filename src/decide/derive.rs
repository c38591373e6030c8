//! What must be started and stopped, derived anew each time from what the state wants and what is seen: a crash at any line
//! heals at the next tick.

use std::sync::Arc;

use super::agenda::unwanted;
use super::attempts::{Attempts, LocalAttempt};
use super::catalog::Catalog;
use crate::model::device::Me;
use crate::model::lease::Lease;
use crate::model::result::Cause;
use crate::model::state::State;

/// One thing to do outside the state. Each may be asked for twice without harm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Start this attempt.
    Start(Lease),
    /// Stop it: a person asked for its end.
    Cancel(Lease),
    /// Stop it: it is no longer this device's.
    Fence(Lease),
    /// Stop it and start another: a person asked for it, or its definition is another one by now.
    Restart(Lease),
    /// Stop it: its job does not want it any more.
    Dismiss(Lease),
    /// Stop it: it ran only while there was nothing else to do.
    Preempt(Lease),
}

/// Returns what follows from a committed state for this device's attempts.
#[must_use]
pub fn effects(state: &State, catalog: &Catalog, me: &Me, attempts: &Attempts) -> Vec<Effect> {
    let mut effects = Vec::new();
    let is_at_work = is_at_work(attempts);
    for (lease, mine) in attempts.owned() {
        let lease = lease.clone();
        match state.runs.get(&lease.run) {
            // Forgotten by a lost state: whether it is still this device's is decided by `recover::keep`.
            None => {}
            Some(_) if !state.names(&lease, &me.device, &me.session) => effects.push(Effect::Fence(lease)),
            Some(_) if !mine.is_begun() => effects.push(Effect::Start(lease)),
            Some(_) if state.cancel_asked(&lease.run) => effects.push(Effect::Cancel(lease)),
            Some(held) if unwanted(state, catalog, &lease.run, held).is_some() => effects.push(Effect::Dismiss(lease)),
            Some(held) if is_at_work && held.cause == Cause::Idle => effects.push(Effect::Preempt(lease)),
            Some(_) if state.restart_asked(&lease) || is_outdated(mine, catalog, me) => {
                effects.push(Effect::Restart(lease));
            }
            Some(_) => {}
        }
    }
    effects
}

/// Whether a device does anything that keeps idle jobs away: daemons that take no slot do not.
#[must_use]
pub fn is_at_work(attempts: &Attempts) -> bool {
    attempts.owned().any(|(_, mine)| match mine.held.cause {
        Cause::Idle => false,
        Cause::Always => mine.held.slots > 0,
        Cause::Trigger | Cause::Schedule | Cause::Api | Cause::Manual | Cause::Job => true,
    })
}

/// Whether a daemon runs by a definition that its job no longer has.
fn is_outdated(mine: &LocalAttempt, catalog: &Catalog, me: &Me) -> bool {
    let Some(job) = catalog.jobs.get(&mine.held.job).filter(|_| mine.held.cause == Cause::Always) else { return false };
    !Arc::ptr_eq(job, &mine.job) && (!job.starts_like(&mine.job) || !job.own_tags().all(|tag| me.tags.contains(tag)))
}
