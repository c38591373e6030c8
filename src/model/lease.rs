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

/// An attempt that goes on without its device, as whoever finds it knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outliving {
    /// What runs it, as results say it.
    pub executor: &'static str,
    /// The digest of the definition that it was started by.
    pub definition: String,
}

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.run, self.attempt)
    }
}
