//! What jobs want of their own accord, brought into the queue; and whether there is time for idle jobs.

use super::Device;
use crate::decide::agenda::{Ground, IDLE_REST};
use crate::decide::derive::is_at_work;
use crate::decide::plan::Observation;
use crate::model::entry::{FileKey, Source};
use crate::model::time::Moment;

impl Device {
    /// Brings what jobs want of their own accord into the queue.
    pub(super) fn offer(&mut self, now: Moment) {
        let quiet = self.is_quiet(now);
        let Device { seen: Observation { queue, me, volume, catalog, spent, .. }, store, agenda, .. } = self;
        agenda.refresh(queue, Ground { now, me, volume, catalog, state: store.state(), quiet });
        // A due time that has had its run is remembered only while it is offered.
        spent.retain(|run| {
            queue.get(&FileKey { source: Source::Due, name: std::ffi::OsStr::new(run.as_str()).into() }).is_some()
        });
    }

    /// Whether this device has had nothing to do for long enough to run idle jobs.
    pub(super) fn is_quiet(&self, now: Moment) -> bool {
        self.quiet_since.is_some_and(|since| now.boot.saturating_sub(since) >= IDLE_REST)
    }

    /// Notes since when there is nothing to do.
    pub(super) fn watch_quiet(&mut self, now: Moment) {
        if is_at_work(&self.seen.attempts) {
            self.quiet_since = None;
        } else {
            self.quiet_since.get_or_insert(now.boot);
        }
    }
}
