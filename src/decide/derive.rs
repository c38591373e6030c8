//! What must be started and stopped, derived anew each time from what the state wants and what is seen: a crash at any line
//! heals at the next tick.

use std::collections::{BTreeMap, BTreeSet};

use super::recover::Mine;
use crate::model::device::Me;
use crate::model::ids::RunId;
use crate::model::lease::Lease;
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
}

/// What follows from a committed state. `running`: attempts that were started and whose end is not yet recorded.
#[must_use]
pub fn effects(state: &State, me: &Me, mine: &BTreeMap<RunId, Mine>, running: &BTreeSet<Lease>) -> Vec<Effect> {
    let mut effects = Vec::new();
    for (run, mine) in mine {
        let lease = mine.lease();
        match state.runs.get(run) {
            // Forgotten by a lost state: whether it is still this device's is decided by `recover::keep`.
            None => {}
            Some(_) if !state.names(&lease, &me.device, &me.session) => effects.push(Effect::Fence(lease)),
            Some(_) if !running.contains(&lease) => effects.push(Effect::Start(lease)),
            Some(_) if state.cancel_asked(run) => effects.push(Effect::Cancel(lease)),
            Some(_) => {}
        }
    }
    effects
}
