//! The disk guard: looks at the room on the volume at each beat, and says when there is too little of it for new work.

use super::Device;
use crate::decide::space::{Shortage, shortage};

impl Device {
    /// Looks how much room there is. A file system that does not say is taken to have some: what does not fit says so itself.
    pub(super) fn look_at_space(&mut self) {
        let common = &self.parts.layout.common;
        self.low_on = match self.parts.disk.space(common) {
            Ok(space) => shortage(&space, self.parts.config.min_free),
            Err(error) => {
                tracing::debug!(path = %common.display(), %error, "the room on the volume is not known");
                None
            }
        };
        let Some(low_on) = self.low_on else { return self.solved("space") };
        let hint = match low_on {
            Shortage::Bytes { .. } => "free space there (df -h), or start this device with another --min-free",
            Shortage::Inodes { .. } => "remove files there (df -i), or start this device with --min-free 0",
        };
        let common = common.display();
        let text = format!("no new work is claimed on {common}: {low_on}; hint: {hint}; it goes on by itself");
        // The numbers change with each beat, and are logged once.
        match self.problems.get_mut("space") {
            Some(said) => *said = text,
            None => self.problem("space", text),
        }
    }
}
