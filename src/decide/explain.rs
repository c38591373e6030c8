//! Why something waits: the answer that people ask a scheduler for most.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::catalog::{Catalog, Known};
use super::queue::job_name;
use crate::model::entry::{Entry, Source};
use crate::model::ids::{DeviceId, Tag};
use crate::model::job::{Job, Overlap, command_job_name, for_command};
use crate::model::state::State;
use crate::model::time::{Moment, rfc3339};
use crate::model::trigger::Target;

/// A device, as somebody who asks sees it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its id.
    pub device: DeviceId,
    /// Whether it lives.
    pub alive: bool,
    /// It takes no new work.
    pub drained: bool,
    /// What it has.
    pub tags: BTreeSet<Tag>,
    /// How much it runs at once.
    pub slots: u32,
    /// How many of them are taken.
    pub busy: u32,
}

/// Why this entry is not running, in a sentence.
#[must_use]
pub fn why(entry: &Entry, catalog: &Catalog, state: &State, devices: &[Seen], now: Moment) -> String {
    let name = job_name(entry);
    let job = match &entry.trigger.target {
        Target::Command(argv) => Arc::new(for_command(command_job_name(&entry.stem()), argv.clone())),
        Target::Job(_) => match catalog.look_up(&name) {
            Known::Good(job) => job,
            Known::Broken => {
                return format!(
                    "Programs/{name}.toml has an error (`orchestrator jobs validate`): it waits until that is mended, or for a device that has read a good version"
                );
            }
            Known::Unknown if catalog.is_empty() => {
                return format!("there is no job {name}, and Programs/ holds no job at all: is it mounted?");
            }
            Known::Unknown => return format!("there is no job {name} in Programs/; it is rejected after 10 s"),
        },
    };
    if !job.enabled {
        return format!("the job {name} is disabled (enabled = false in Programs/{name}.toml)");
    }
    time_reason(entry, now)
        .or_else(|| device_reason(entry, &job, devices))
        .or_else(|| overlap_reason(entry, &job, state))
        .or_else(|| room_reason(entry, &job, devices))
        .unwrap_or_else(|| "it is about to be claimed".to_owned())
}

fn time_reason(entry: &Entry, now: Moment) -> Option<String> {
    match (entry.key.source, entry.not_before, entry.trigger.not_before) {
        (Source::Waiting, Some(at), _) if at > now.wall => {
            Some(format!("attempt {} waits until {} (backoff)", entry.attempt, rfc3339(at)))
        }
        (Source::Inbox, _, Some(at)) if at > now.wall => Some(format!("its time is {}", rfc3339(at))),
        (Source::Inbox | Source::Waiting, _, _) => None,
    }
}

fn device_reason(entry: &Entry, job: &Job, devices: &[Seen]) -> Option<String> {
    if !devices.iter().any(|device| device.alive) {
        return Some("no device is alive: start one with `orchestrator run`".to_owned());
    }
    let needed: BTreeSet<&Tag> = job.tags.union(&entry.trigger.tags).collect();
    let tagged: Vec<&Seen> = with_tags(&needed, devices).collect();
    if tagged.is_empty() {
        let list: Vec<&str> = needed.iter().map(|tag| tag.as_str()).collect();
        let nobody: Vec<&str> = needed
            .iter()
            .filter(|tag| !devices.iter().any(|device| device.alive && device.tags.contains(**tag)))
            .map(|tag| tag.as_str())
            .collect();
        return Some(if nobody.is_empty() {
            format!("no single living device has all the tags {}", list.join(", "))
        } else {
            format!("no living device has the tag {}", nobody.join(", "))
        });
    }
    let largest = tagged.iter().map(|device| device.slots).max().unwrap_or(0);
    (job.slots > largest).then(|| {
        format!("it takes {} slots, and no living device that could take it has more than {largest}", job.slots)
    })
}

fn overlap_reason(entry: &Entry, job: &Job, state: &State) -> Option<String> {
    if job.overlap == Overlap::Allow {
        return None;
    }
    let same = |held: &crate::model::state::Held| held.job == job.name && !held.command;
    let (run, held) = state.runs.iter().find(|(run, held)| **run != entry.run && same(held))?;
    let place = held
        .device
        .as_ref()
        .map_or_else(|| "waits for another attempt".to_owned(), |device| format!("runs on {device}"));
    Some(format!("another run of {} is open: {run} {place}", job.name))
}

fn room_reason(entry: &Entry, job: &Job, devices: &[Seen]) -> Option<String> {
    let needed: BTreeSet<&Tag> = job.tags.union(&entry.trigger.tags).collect();
    let able: Vec<&Seen> = with_tags(&needed, devices).collect();
    let taking: Vec<&&Seen> = able.iter().filter(|device| !device.drained).collect();
    if taking.is_empty() {
        let names: Vec<&str> = able.iter().map(|device| device.device.as_str()).collect();
        return Some(format!("every device that could take it is drained: {}", names.join(", ")));
    }
    let full = taking.iter().all(|device| device.busy + job.slots > device.slots);
    full.then(|| {
        let list: Vec<String> =
            taking.iter().map(|device| format!("{} {}/{}", device.device, device.busy, device.slots)).collect();
        format!("every slot it could have is taken: {}", list.join(", "))
    })
}

fn with_tags<'a>(needed: &'a BTreeSet<&Tag>, devices: &'a [Seen]) -> impl Iterator<Item = &'a Seen> {
    devices.iter().filter(|device| device.alive && needed.iter().all(|tag| device.tags.contains(*tag)))
}
