//! A device: one orchestrator, as it presents itself and as others see it.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::ids::{DeviceId, RunId, Session, Tag};
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
            holds: vec![],
            left: false,
            lease_ms: default_lease_ms(),
            low_on: None,
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
    /// The attempts it holds: what a lost state is rebuilt from.
    pub holds: Vec<(RunId, u32)>,
    /// It has left, by its own will.
    #[serde(default)]
    pub left: bool,
    /// After how long without a beat it counts as dead, as it is configured itself, milliseconds.
    #[serde(default = "default_lease_ms")]
    pub lease_ms: u64,
    /// What Common's file system has too little of for it to take new work, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_on: Option<String>,
    /// What hinders it, in sentences for people.
    #[serde(default)]
    pub problems: Vec<String>,
}
