//! Who changed what: one line a change, in the audit log of the device that was asked.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::Extension;
use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::client::{Client, Failure};
use crate::model::ids::DeviceId;
use crate::model::time::utc;
use crate::volume::audit::Log;

/// One change.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Entry {
    #[serde(with = "utc")]
    pub(super) at: DateTime<Utc>,
    /// `key:<id>`, `user:<name>`, or what somebody called himself who was not let in.
    pub(super) who: String,
    pub(super) role: Option<&'static str>,
    pub(super) from: String,
    pub(super) method: String,
    pub(super) path: String,
    /// What the handler says of it: which run, which key.
    pub(super) what: Option<String>,
    /// The status of the answer.
    pub(super) status: u16,
    pub(super) device: DeviceId,
    /// SHA-256 of the line before, in hex; of the first line, nothing.
    pub(super) before: String,
}

/// What a handler says of a change, beside its path.
#[derive(Debug, Clone)]
pub(super) struct What(pub(super) String);

/// Says what was changed, in the audit log alone: long words are cut.
pub(super) fn what(text: String) -> Extension<What> {
    Extension(What(if text.len() > LONGEST { text.chars().take(LONGEST).collect() } else { text }))
}

/// How long that may be, characters.
const LONGEST: usize = 500;
/// So many refusals of nobody, and of who asks too often, are written down in a minute.
const REFUSALS: u32 = 60;

/// The log of one device.
pub(super) struct Audit {
    /// Since when they are counted, and how many there were.
    refusals: Mutex<(Duration, u32)>,
    log: Mutex<Log>,
}

impl Audit {
    pub(super) fn new(device: DeviceId) -> Self {
        Self { refusals: Mutex::default(), log: Mutex::new(Log::new(device)) }
    }

    /// Whether another refusal is still written down.
    pub(super) fn has_room(&self, now: Duration) -> bool {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_sub(refusals.0) >= Duration::from_secs(60) {
            *refusals = (now, 0);
        }
        refusals.1 += 1;
        refusals.1 <= REFUSALS
    }

    /// Writes a line.
    pub(super) fn write(&self, client: &Client, entry: Entry) -> Result<(), Failure> {
        // One line at a time: each needs the one before.
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let at = client.now().wall;
        let line = |before| serde_json::to_string(&Entry { before, at, ..entry }).unwrap_or_default();
        Ok(log.write(&*client.disk, &client.layout, at, line)?)
    }
}
