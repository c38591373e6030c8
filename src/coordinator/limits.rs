//! What this device gives to its runs: slots and default limits, as it was started with them and as people have set them since.
//!
//! What was set holds until it is set again, over any restart: the heartbeat remembers it. It holds for what is claimed and started
//! from then on; what runs already keeps what it has.

use std::time::Duration;

use super::Device;
use crate::model::container::Limits;
use crate::model::job::Job;
use crate::model::limits::CGROUP_TAG;
use crate::model::time::Moment;

impl Device {
    /// Takes in what people set of this device.
    pub(super) fn take_settings(&mut self, now: Moment) {
        let set = self.set.then(self.store.state().to_set(&self.seen.me.device));
        if set == self.set {
            return;
        }
        self.set = set;
        self.seen.me.slots = set.slots.unwrap_or(self.seen.me.slots);
        tracing::info!(slots = self.seen.me.slots, limits = self.default_limits().show(), "set by a person");
        self.seen.place_anew(now);
        // The others are to know at once.
        self.due.beat = Duration::ZERO;
    }

    /// What its runs may use where their jobs do not say.
    pub(super) fn default_limits(&self) -> Limits {
        self.set.limits(self.parts.config.limits)
    }

    /// What an attempt of a job may use here.
    pub(super) fn limits_of(&self, job: &Job) -> Limits {
        job.limits.or(self.default_limits().where_held(job.container.is_some() || self.makes_cgroups()))
    }

    fn makes_cgroups(&self) -> bool {
        self.offers.iter().any(|tag| tag.as_str() == CGROUP_TAG)
    }

    /// Says which of its default limits it cannot hold.
    pub(super) fn say_what_is_not_held(&mut self) {
        let limits = self.default_limits();
        if limits == limits.where_held(self.makes_cgroups()) {
            return self.solved("limits");
        }
        let error = format!(
            "the default limits ({}) of cpus and pids are not held outside containers: this device may make no cgroups; hint: `orchestrator doctor` says why",
            limits.show()
        );
        self.problem("limits", error);
    }
}
