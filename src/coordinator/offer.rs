//! What jobs want of their own accord, brought into the queue; and whether there is time for idle jobs.

use super::Device;
use crate::decide::agenda::{Ground, IDLE_REST};
use crate::decide::derive::is_at_work;
use crate::model::time::Moment;

impl Device {
    /// Brings what jobs want of their own accord into the queue.
    pub(super) fn offer(&mut self, now: Moment) {
        let quiet = self.is_quiet(now);
        let Device { parts, queue, programs, store, agenda, .. } = self;
        let (catalog, state) = (programs.catalog(), store.state());
        agenda.refresh(queue, Ground { now, me: &parts.me, volume: &parts.volume, catalog, state, quiet });
    }

    /// Whether this device has had nothing to do for long enough to run idle jobs.
    pub(super) fn is_quiet(&self, now: Moment) -> bool {
        self.quiet_since.is_some_and(|since| now.boot.saturating_sub(since) >= IDLE_REST)
    }

    /// Notes since when there is nothing to do.
    pub(super) fn watch_quiet(&mut self, now: Moment) {
        if is_at_work(&self.attempts) {
            self.quiet_since = None;
        } else {
            self.quiet_since.get_or_insert(now.boot);
        }
    }
}
