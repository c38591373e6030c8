//! The jobs that are known, and what is known of those that cannot run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::ids::JobName;
use crate::model::job::Job;
use crate::model::pools::Pools;

/// Every job of `Programs/`, each in its newest good definition.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    /// Jobs with a good definition.
    pub jobs: BTreeMap<JobName, Arc<Job>>,
    /// Its folder holds nothing at all, as one that is not mounted.
    pub is_bare: bool,
    /// How many runs of each pool there may be over all devices.
    pub pools: Pools,
    /// Jobs whose file has an error and no earlier good version: known, but they cannot run.
    pub broken: BTreeSet<JobName>,
    /// Counts its changes.
    pub changes: u64,
}

/// What a name stands for.
#[derive(Debug, Clone)]
pub enum Known {
    /// A job that can run.
    Good(Arc<Job>),
    /// A job whose file has an error.
    Broken,
    /// No job of that name.
    Unknown,
}

impl Catalog {
    /// Whether a job has no file any more: a folder with nothing in it says nothing of jobs, it is one that is not mounted.
    #[must_use]
    pub fn lacks(&self, name: &JobName) -> bool {
        !self.is_bare && !self.jobs.contains_key(name) && !self.broken.contains(name)
    }

    /// Looks a job up.
    #[must_use]
    pub fn look_up(&self, name: &JobName) -> Known {
        match self.jobs.get(name) {
            Some(job) => Known::Good(Arc::clone(job)),
            None if self.broken.contains(name) => Known::Broken,
            None => Known::Unknown,
        }
    }

    /// Whether there is no job at all: then nothing is rejected for its unknown name, the folder may not be mounted yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty() && self.broken.is_empty()
    }

    /// All names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.jobs.keys().chain(&self.broken).map(JobName::as_str)
    }
}
