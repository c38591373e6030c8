//! The right to run: one attempt of one run, held by one life of one device.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ids::RunId;

/// One attempt of one run. The attempt number is the fencing token: it only grows, and is never used twice.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lease {
    /// The run.
    pub run: RunId,
    /// Which attempt of it, from 1.
    pub attempt: u32,
}

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.run, self.attempt)
    }
}
