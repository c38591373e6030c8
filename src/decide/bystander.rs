//! Who decides without taking part: the command line, which changes one run for a person, and tests of one rule.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::attempts::Attempts;
use super::catalog::Catalog;
use super::deferred::Deferred;
use super::liveness::Liveness;
use super::lost::Evidence;
use super::plan::Observation;
use super::queue::Queue;
use crate::model::device::Me;
use crate::model::ids::{JobName, RunId};
use crate::model::lease::{Lease, Outliving};
use crate::model::limits::Resources;
use crate::model::news::News;
use crate::model::state::JobMark;
use crate::model::time::Moment;

/// Holds nothing, runs nothing and remembers nothing.
#[derive(Debug)]
pub struct Bystander {
    queue: Queue,
    devices: Liveness,
    fresh: BTreeSet<JobName>,
    spent: BTreeSet<RunId>,
    marks: BTreeMap<JobName, JobMark>,
    attempts: Attempts,
    evidence: BTreeMap<Lease, Evidence>,
    deferred: Deferred,
    found: BTreeMap<Lease, Outliving>,
    vanished: BTreeMap<RunId, Option<u32>>,
    told: BTreeMap<JobName, News>,
}

impl Default for Bystander {
    fn default() -> Self {
        Self {
            queue: Queue::default(),
            devices: Liveness::new(Duration::ZERO, Duration::ZERO),
            fresh: BTreeSet::new(),
            spent: BTreeSet::new(),
            marks: BTreeMap::new(),
            attempts: Attempts::default(),
            evidence: BTreeMap::new(),
            deferred: Deferred::default(),
            found: BTreeMap::new(),
            vanished: BTreeMap::new(),
            told: BTreeMap::new(),
        }
    }
}

impl Bystander {
    /// What it sees: itself and the jobs.
    #[must_use]
    pub fn observation<'a>(&'a self, now: Moment, me: &'a Me, catalog: &'a Catalog) -> Observation<'a> {
        Observation {
            now,
            me,
            catalog,
            volume: "",
            quiet: false,
            upkeep: false,
            fresh: &self.fresh,
            spent: &self.spent,
            marks: &self.marks,
            remembered: None,
            taking: false,
            drained: false,
            set: Resources::default(),
            queue: &self.queue,
            devices: &self.devices,
            attempts: &self.attempts,
            evidence: &self.evidence,
            deferred: &self.deferred,
            found: &self.found,
            orphans: &[],
            vanished: &self.vanished,
            accounted: None,
            may_tell: false,
            told: &self.told,
        }
    }
}
