//! What the webhook of a job is told, and by whom.

use serde::{Deserialize, Serialize};

use super::ids::{DeviceId, RunId, Session};
use super::lease::Lease;

/// The two things that a webhook hears of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A run failed; the one before had not.
    Failed,
    /// A run succeeded; the one before had failed.
    Recovered,
}

impl Event {
    /// The word for it, as the webhook hears it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Recovered => "recovered",
        }
    }
}

/// Something that is still to be told: the result of an attempt, and what it means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct News {
    /// What it means.
    pub event: Event,
    /// The run whose result is told.
    pub run_id: RunId,
    /// The attempt that ended it.
    pub attempt: u32,
    /// The device that tells it.
    pub device: DeviceId,
    /// The life of that device.
    pub by: Session,
}

impl News {
    /// The attempt whose result is told.
    #[must_use]
    pub fn lease(&self) -> Lease {
        Lease { run: self.run_id.clone(), attempt: self.attempt }
    }

    /// Whether they are the same news, whoever tells them.
    #[must_use]
    pub fn is_of(&self, other: &Self) -> bool {
        (self.event, &self.run_id, self.attempt) == (other.event, &other.run_id, other.attempt)
    }
}
