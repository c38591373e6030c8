//! Room for a run that needs more slots than are free: one device at a time reserves its free slots for it.
//!
//! Without that, smaller runs would take each slot as it becomes free, and the large run would never start. If every device reserved its
//! slots instead, one run that does not fit would hold all others up. So the devices that could ever fit the run take turns. The device
//! whose turn it is lets nothing behind the run take a slot; on every other device smaller runs pass it, and it takes what room it finds.
//!
//! - A device could ever fit a run if it lives, takes work, has the tags, and has enough slots beside those that daemons hold.
//! - The order of turns is that of the run's lot. One turn of each round belongs to no device, so that nothing waits for ever behind a run
//!   that never finds room.
//! - A turn lasts 10 s, and each one twice as long as the one before it, up to a day. In the end a turn is longer than the runs that hold
//!   the slots, and the large run finds its room however many small ones keep coming.
//!
//! Nothing of this is written anywhere. Every device computes the same turn from the run, the volume's time and the heartbeats. Devices that
//! disagree for a moment reserve too much or too little for that moment.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::placement;
use crate::model::entry::Entry;
use crate::model::ids::{DeviceId, Tag};
use crate::model::job::Job;
use crate::model::result::Cause;
use crate::model::state::State;

#[cfg(test)]
mod tests;

/// The length of the first turn.
const FIRST: Duration = Duration::from_secs(10);
/// The length of the longest.
const LONGEST: Duration = Duration::from_secs(24 * 3_600);

/// A device that takes work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room<'a> {
    /// The device.
    pub device: &'a DeviceId,
    /// Its tags.
    pub tags: &'a BTreeSet<Tag>,
    /// The slots that a run could have there once everything but daemons has ended.
    pub slots: u32,
}

/// The turn of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn<'a> {
    /// The device.
    pub device: &'a DeviceId,
    /// The end of its turn.
    pub until: DateTime<Utc>,
}

/// Returns the room of devices that take work, given with their tags and slots.
pub fn rooms<'a>(
    state: &State,
    devices: impl IntoIterator<Item = (&'a DeviceId, &'a BTreeSet<Tag>, u32)>,
) -> Vec<Room<'a>> {
    let mut daemons: BTreeMap<&DeviceId, u32> = BTreeMap::new();
    for held in state.runs.values().filter(|held| held.cause == Cause::Always) {
        if let Some(device) = &held.device {
            *daemons.entry(device).or_default() += held.slots;
        }
    }
    let room = |(device, tags, slots): (&'a DeviceId, &'a BTreeSet<Tag>, u32)| {
        let taken = daemons.get(device).copied().unwrap_or(0);
        Room { device, tags, slots: slots.saturating_sub(taken) }
    };
    devices.into_iter().map(room).collect()
}

/// Returns whose turn it is to reserve its free slots for a run; `None`: no device could ever fit the run, or this turn belongs to no device.
#[must_use]
pub fn turn<'a>(entry: &Entry, job: &Job, rooms: &[Room<'a>], now: DateTime<Utc>) -> Option<Turn<'a>> {
    let mut able: Vec<&DeviceId> = rooms.iter().filter(|room| fits(entry, job, room)).map(|room| room.device).collect();
    able.sort_by_cached_key(|device| placement::turn(entry.lot, device));
    let waiting_since = entry.run.time().max(entry.not_before().unwrap_or_default());
    let (ended, until) = turns(waiting_since, now);
    let device = able.get(ended % (able.len() + 1))?;
    Some(Turn { device, until })
}

/// Returns whether a run could ever run on a device as it is now.
#[must_use]
pub fn fits(entry: &Entry, job: &Job, room: &Room<'_>) -> bool {
    job.slots <= room.slots && job.tags.is_subset(room.tags) && entry.trigger.tags.is_subset(room.tags)
}

/// Returns how many turns have ended since `from`, and when the present one ends.
fn turns(from: DateTime<Utc>, now: DateTime<Utc>) -> (usize, DateTime<Utc>) {
    let age = (now - from).to_std().unwrap_or_default();
    let (mut ended, mut length, mut end) = (0, FIRST, FIRST);
    while end <= age && length < LONGEST {
        ended += 1;
        length = (length * 2).min(LONGEST);
        end += length;
    }
    let more = if end <= age { (age - end).as_secs() / LONGEST.as_secs() + 1 } else { 0 };
    ended += usize::try_from(more).unwrap_or(usize::MAX / 2);
    end += LONGEST * u32::try_from(more).unwrap_or(u32::MAX);
    (ended, from + TimeDelta::from_std(end).unwrap_or_default())
}
