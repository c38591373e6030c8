//! Forgetting devices that are gone for good: their heartbeats, what was asked of them, and with that what waits for them alone.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::Device;
use crate::model::ids::DeviceId;
use crate::model::time::Moment;
use crate::store::Refused;
use crate::volume::{self, Context, found, heartbeat};

impl Device {
    /// Forgets the devices that have left, or have been dead, for `--forget-after`. Until then a device that comes back is drained if it was,
    /// and has the slots that people set.
    pub(super) fn forget_devices(&mut self, now: Moment) {
        let Some(after) = self.parts.config.forget_after.filter(|_| self.could_write && self.anchor.is_some()) else {
            return;
        };
        let after = after.max(self.seen.devices.longest_lease(now.boot) * 2);
        let holds = |device: &DeviceId| self.store.state().runs.load(device).runs > 0;
        let is_old = |since: DateTime<Utc>| (now.wall - since).to_std().is_ok_and(|age| age >= after);
        let gone = self.seen.devices.dead(now.boot).filter(|beat| is_old(beat.at) && !holds(&beat.device));
        let gone: Vec<DeviceId> = gone.map(|beat| beat.device.clone()).collect();
        for device in gone {
            match self.forget_device(&device, after, now) {
                Ok(true) => tracing::info!(%device, ?after, "forgotten: nothing was heard of it for so long"),
                Ok(false) => {}
                Err(error) => tracing::warn!(%device, hint = error.hint(), "{error}; it is forgotten later"),
            }
        }
    }

    /// Returns whether the device was forgotten: not while another process holds its lock, or its heartbeat is younger than was seen.
    fn forget_device(&mut self, device: &DeviceId, after: Duration, now: Moment) -> Result<bool, volume::Error> {
        let (disk, layout) = (&*self.parts.disk, &self.parts.layout);
        // Held meanwhile, so that it does not start in between.
        let Some(_guard) = heartbeat::lock(disk, layout, device)? else { return Ok(false) };
        let path = layout.heartbeat(device);
        let Some(meta) = found(disk.stat(&path)).on("look at", &path)? else { return Ok(false) };
        if (now.wall - meta.changed).to_std().unwrap_or_default() < after {
            return Ok(false);
        }
        match self.store.change(now, &mut |state| state.forget(device)) {
            Ok(_) => {}
            Err(Refused::Volume(error)) => return Err(error),
            Err(Refused::Busy | Refused::Raced | Refused::Newer(_)) => return Ok(false),
        }
        found(disk.remove(&path)).on("remove", &path).map(|removed| removed.is_some())
    }
}
