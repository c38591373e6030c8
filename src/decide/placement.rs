//! Whose turn it is, where several devices could take a run: the one with the lower share of busy slots, and among equals the one that
//! the run's lot falls on.
//!
//! Nobody is asked. Every device knows from the state who is how busy; who is not first only waits a little, so that a first one
//! that does not answer costs milliseconds, and for a daemon at most a second.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::time::Duration;

use super::plan::{Observation, Plan};
use super::queue::Candidate;
use crate::model::ids::{DeviceId, Tag, mix};
use crate::model::result::{Cause, Status};
use crate::model::state::{Held, State};

#[cfg(test)]
mod tests;

/// How long a device waits for each one whose turn comes before its own.
const STEP: Duration = Duration::from_millis(10);
/// The same for a daemon: where it starts is where it stays, and a device that is kept busy for a moment should not lose its share.
const DAEMON_STEP: Duration = Duration::from_millis(500);
/// For how many it waits at most.
const MOST: u32 = 2;
/// How long the device on which an attempt has failed leaves the next one to others, where its job prefers that.
const ELSEWHERE: Duration = Duration::from_secs(5);

/// What the devices of a volume do, as the state has it.
pub struct Placement<'a> {
    /// Living devices that take work, this one left out.
    others: Vec<Other<'a>>,
    own: Load,
    me: &'a DeviceId,
}

struct Other<'a> {
    device: &'a DeviceId,
    tags: &'a BTreeSet<Tag>,
    load: Load,
}

/// How much a device does, of how much it can.
#[derive(Debug, Clone, Copy)]
struct Load {
    busy: u32,
    slots: u32,
    /// Runs that take no slot count where shares are equal.
    lasting: u32,
}

impl<'a> Placement<'a> {
    /// Takes in who is there. Alone, nothing is looked at.
    #[must_use]
    pub fn new(state: &'a State, seen: &'a Observation) -> Self {
        let me = &seen.me.device;
        let alive = seen.devices.alive(seen.now.boot).map(|peer| &peer.beat);
        let others: Vec<_> = alive.filter(|beat| beat.device != *me && beat.takes_work()).collect();
        let of = |device: &DeviceId, slots| {
            let held = state.runs.load(device);
            Load { busy: held.slots, slots, lasting: held.lasting }
        };
        let own = of(me, seen.me.slots);
        let others = others
            .into_iter()
            .map(|beat| Other { device: &beat.device, tags: &beat.tags, load: of(&beat.device, beat.slots) })
            .collect();
        Self { others, own, me }
    }

    /// How long this device leaves a run to those whose turn comes first, counted from when it could be claimed.
    #[must_use]
    pub fn wait(&self, candidate: Candidate<'_>) -> Duration {
        if self.others.is_empty() {
            return Duration::ZERO;
        }
        if crate::planted!(NeverYield) {
            let is_first = self.others.iter().all(|other| self.me < other.device);
            return if is_first { Duration::ZERO } else { STEP * MOST };
        }
        let Candidate { entry, job, .. } = candidate;
        let has = |tags: &BTreeSet<Tag>| job.tags.is_subset(tags) && entry.trigger.tags.is_subset(tags);
        let has_room = |load: Load| load.busy + job.slots <= load.slots;
        let able = || self.others.iter().filter(|other| has(other.tags) && has_room(other.load));
        if job.retry_elsewhere && self.failed_here(candidate) && able().next().is_some() {
            return ELSEWHERE;
        }
        let own = (self.own, turn(entry.lot, self.me));
        let first = able().filter(|other| before((other.load, turn(entry.lot, other.device)), own));
        let first = u32::try_from(first.count()).unwrap_or(u32::MAX);
        let step = if entry.cause() == Cause::Always { DAEMON_STEP } else { STEP };
        step * first.min(MOST)
    }

    fn failed_here(&self, candidate: Candidate<'_>) -> bool {
        let failed = |status: Status| matches!(status, Status::Failed | Status::TimedOut | Status::Lost);
        candidate
            .entry
            .past
            .as_ref()
            .and_then(|past| past.last.as_ref())
            .is_some_and(|(device, status)| device == self.me && failed(*status))
    }

    /// Counts in what this device has just claimed.
    pub fn add(&mut self, plan: &Plan) {
        let Some(held) = plan.changes.last().and_then(|change| change.entry.as_ref()) else { return };
        self.own.add(held);
    }
}

impl Load {
    fn add(&mut self, held: &Held) {
        self.busy += held.slots_taken();
        self.lasting += u32::from(held.cause.is_lasting());
    }
}

fn before((a, lot_a): (Load, u64), (b, lot_b): (Load, u64)) -> bool {
    let share = |x: Load, y: Load| u64::from(x.busy) * u64::from(y.slots.max(1));
    let order = share(a, b).cmp(&share(b, a)).then(a.lasting.cmp(&b.lasting)).then(lot_a.cmp(&lot_b));
    order == Ordering::Less
}

/// The lot of one device for one run.
pub(super) fn turn(lot: u64, device: &DeviceId) -> u64 {
    let mixed = mix(lot, device.as_str());
    // The last bytes of a name change only the low bits: they are spread over all.
    (mixed ^ (mixed >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}
