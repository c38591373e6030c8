//! All ways to run an attempt behind one port: each attempt goes to the one that its [`Spec`] asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Executor, Exit, Spec, StopCause};
use crate::model::device::RunUse;
use crate::model::ids::{RunId, Tag};
use crate::model::lease::{Lease, Outliving};

/// Processes of this machine, and containers beside this one.
pub struct Fleet {
    processes: Box<dyn Executor>,
    containers: Box<dyn Executor>,
}

impl Fleet {
    /// Of these two.
    #[must_use]
    pub fn new(processes: Box<dyn Executor>, containers: Box<dyn Executor>) -> Self {
        Self { processes, containers }
    }
}

impl Executor for Fleet {
    fn start(&mut self, spec: Spec) {
        if spec.inside.is_some() {
            self.containers.start(spec);
        } else {
            self.processes.start(spec);
        }
    }

    fn list(&self) -> Vec<Lease> {
        let all: BTreeSet<Lease> = self.processes.list().into_iter().chain(self.containers.list()).collect();
        all.into_iter().collect()
    }

    fn pids(&self) -> Vec<(RunId, u32, u32)> {
        self.processes.pids()
    }

    fn used(&self) -> Vec<RunUse> {
        self.processes.used().into_iter().chain(self.containers.used()).collect()
    }

    fn stop(&mut self, lease: &Lease, cause: StopCause, grace: Duration) {
        // Whoever does not have it ignores it.
        self.processes.stop(lease, cause, grace);
        self.containers.stop(lease, cause, grace);
    }

    fn take_exits(&mut self) -> Vec<Exit> {
        let mut exits = self.processes.take_exits();
        exits.append(&mut self.containers.take_exits());
        exits
    }

    fn short_of(&self) -> Option<String> {
        self.processes.short_of().or_else(|| self.containers.short_of())
    }

    fn offers(&self) -> BTreeSet<Tag> {
        self.processes.offers().into_iter().chain(self.containers.offers()).collect()
    }

    fn found(&self) -> BTreeMap<Lease, Outliving> {
        self.processes.found().into_iter().chain(self.containers.found()).collect()
    }

    fn evict(&mut self, leases: &BTreeSet<Lease>) -> BTreeSet<Lease> {
        let clear = self.containers.evict(leases);
        &self.processes.evict(leases) & &clear
    }

    fn survey(&mut self) {
        self.processes.survey();
        self.containers.survey();
    }

    fn take_surveyed(&mut self) -> BTreeSet<Lease> {
        self.processes.take_surveyed().into_iter().chain(self.containers.take_surveyed()).collect()
    }
}
