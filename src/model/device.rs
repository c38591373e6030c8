//! A device: one orchestrator, as it presents itself and as others see it.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::container::Limits;
use super::ids::{DeviceId, JobName, RunId, Session, Tag};
use super::limits::Resources;
use super::time::utc;

/// Who this device is, in this life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Me {
    /// Its id.
    pub device: DeviceId,
    /// This life of it.
    pub session: Session,
    /// What it has; its own id is one of them.
    pub tags: BTreeSet<Tag>,
    /// How much it runs at once.
    pub slots: u32,
}

/// What a device knows of its life before, by the heartbeat that this left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Remembered {
    /// How many beats there were.
    pub beat: u64,
    /// A person asked it to take no new work.
    pub drained: bool,
    /// What people set of it.
    pub set: Resources,
}

impl From<&Beat> for Remembered {
    fn from(beat: &Beat) -> Self {
        Self { beat: beat.beat, drained: beat.drained, set: beat.set }
    }
}

fn default_lease_ms() -> u64 {
    15_000
}

#[cfg(test)]
impl Beat {
    /// A beat of a device that is there and has nothing to do.
    pub(crate) fn example(device: &str, session: u64, count: u64) -> Self {
        Self {
            schema: 1,
            device: DeviceId::new(device).unwrap(),
            session: Session::from_random(session),
            beat: count,
            at: DateTime::UNIX_EPOCH,
            revision: count,
            host: "h".into(),
            pid: 1,
            version: "0".into(),
            started_at: DateTime::UNIX_EPOCH,
            tags: BTreeSet::new(),
            slots: 1,
            busy: 0,
            load: 0.0,
            drained: false,
            limits: Limits::default(),
            set: Resources::default(),
            holds: vec![],
            pids: vec![],
            machine: None,
            pulse: 0,
            left: false,
            lease_ms: default_lease_ms(),
            low_on: None,
            unknown: vec![],
            problems: vec![],
        }
    }
}

/// A heartbeat: `Devices/<id>.json`, written by that device alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Beat {
    /// 1.
    pub schema: u32,
    /// Who.
    pub device: DeviceId,
    /// Which life.
    pub session: Session,
    /// Counts up; whoever sees it stand still for a whole lease takes the device for dead.
    pub beat: u64,
    /// Counts its repetitions while one turn of the loop took long: a sign of life that says nothing new.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub pulse: u32,
    /// When it was written, for people.
    #[serde(with = "utc")]
    pub at: DateTime<Utc>,
    /// The newest revision it has seen.
    pub revision: u64,
    /// The machine's name.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// The program's version.
    pub version: String,
    /// Since when.
    #[serde(with = "utc")]
    pub started_at: DateTime<Utc>,
    /// What it has.
    pub tags: BTreeSet<Tag>,
    /// How much it runs at once.
    pub slots: u32,
    /// How many of them are taken.
    pub busy: u32,
    /// The machine's load, averaged over a minute.
    pub load: f64,
    /// It takes no new work until it is resumed.
    pub drained: bool,
    /// What its runs may use where their jobs do not say.
    #[serde(default)]
    pub limits: Limits,
    /// What of slots and limits people set while it ran: that counts before what it is started with.
    #[serde(default, skip_serializing_if = "Resources::is_empty")]
    pub set: Resources,
    /// The attempts it holds: what a lost state is rebuilt from.
    pub holds: Vec<(RunId, u32)>,
    /// The processes of its attempts, as far as they are its own; for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pids: Vec<(RunId, u32, u32)>,
    /// The machine as it is now; `None`: nobody measures it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
    /// It has left, by its own will.
    #[serde(default)]
    pub left: bool,
    /// After how long without a beat it counts as dead, as it is configured itself, milliseconds.
    #[serde(default = "default_lease_ms")]
    pub lease_ms: u64,
    /// What Common's file system has too little of for it to take new work, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_on: Option<String>,
    /// Jobs that it does not know and that something on the volume names, as it found when it looked at `Programs/` last; at most 256.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<JobName>,
    /// What hinders it, in sentences for people.
    #[serde(default)]
    pub problems: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

impl Beat {
    /// Returns whether the device takes new work: a person has not drained it, it has slots, and the volume has room.
    #[must_use]
    pub fn takes_work(&self) -> bool {
        !self.drained && self.slots > 0 && self.low_on.is_none()
    }
}

/// What a machine has, and how much of it is taken.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Machine {
    /// `linux`.
    pub os: String,
    /// Its kernel.
    pub kernel: String,
    /// `x86_64`, `aarch64`.
    pub arch: String,
    /// How many processors this device may use.
    pub cpus: u32,
    /// How busy all of them have been since the last beat, percent.
    pub cpu_percent: Option<f64>,
    /// Its memory, bytes.
    pub memory_bytes: Option<u64>,
    /// What of it can be had, bytes.
    pub memory_available_bytes: Option<u64>,
    /// What the orchestrator itself has in use, bytes.
    pub own_memory_bytes: Option<u64>,
    /// Its graphics processors.
    pub gpus: Vec<Gpu>,
    /// What its runs have in use, those that are on this machine: the first of them.
    pub runs: Vec<RunUse>,
}

/// A graphics processor.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Gpu {
    /// What it is.
    pub name: String,
    /// How busy it is, percent, where its driver says.
    pub busy_percent: Option<f64>,
    /// Its memory, bytes, likewise.
    pub memory_bytes: Option<u64>,
    /// What of it is taken, bytes, likewise.
    pub memory_used_bytes: Option<u64>,
}

/// What a run has in use, with all that its program has started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunUse {
    /// The run.
    pub run_id: RunId,
    /// Which attempt.
    pub attempt: u32,
    /// How many processes it has; in a container each of their threads counts.
    pub processes: u32,
    /// Memory, bytes; of a container that is kept, all that it holds.
    pub memory_bytes: u64,
    /// Processor time so far of the processes there are, milliseconds; in a container, of all there were.
    pub cpu_ms: u64,
}
