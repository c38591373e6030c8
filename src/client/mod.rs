//! The volume as somebody sees it who runs no device: what there is to look at, and what people may ask to be changed.
//!
//! The command line and the HTTP API are two ways to say the same things; both say them with this room. It reads the volume
//! without a lock, writes triggers, requests and job files, and decides nothing: what follows is the devices' business.
//! It prints nothing: it answers with data, and with a [`Failure`] that names the thing, what was found, what was expected, and
//! a hint.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use crate::coordinator::open_volume;
use crate::coordinator::run::clock;
use crate::model::ids::{DeviceId, RunId, Session};
use crate::model::time::Moment;
use crate::volume::atomic::Temporary;
use crate::volume::disk::Disk;
use crate::volume::layout::Layout;
use crate::volume::os::OsDisk;
use crate::volume::volume_id;

pub mod backups;
pub mod change;
pub mod devices;
pub mod drop;
pub mod explain;
pub mod failure;
pub mod find;
pub mod follow;
pub mod jobs;
pub mod logs;
pub mod restart;
pub mod runs;
pub mod security;
pub mod servers;
pub mod status;
pub mod triggers;
pub mod view;

pub use failure::{Code, Failure};

/// Somebody who looks at a volume, with a session of its own for what it writes.
pub struct Client {
    /// The file system.
    pub disk: Rc<dyn Disk>,
    /// The folders, absolute.
    pub layout: Layout,
    /// A session of its own.
    pub session: Session,
    /// Names for what it writes.
    pub names: Temporary,
    /// What it signs with.
    pub device: DeviceId,
    /// Who is told what is worth saying beside the answer.
    pub note: Box<dyn Fn(&str)>,
}

impl Client {
    /// Reads nothing yet. What it changes is signed as `device`'s; what is worth saying beside an answer is said to nobody.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "a session is random by nature, and this is where it enters")]
    pub fn new(layout: Layout, device: DeviceId) -> Self {
        let session = Session::from_random(rand::random());
        let names = Temporary::new(session.clone());
        Self { disk: Rc::new(OsDisk::new()), layout, names, session, device, note: Box::new(|_| {}) }
    }

    /// Both clocks.
    #[must_use]
    pub fn now(&self) -> Moment {
        clock()
    }

    /// Lets some time pass.
    #[expect(
        clippy::disallowed_methods,
        reason = "who waits here has no loop of its own: a verb is ended by the system's default, a request by its own limit"
    )]
    pub fn pause(&self, span: Duration) {
        std::thread::sleep(span);
    }

    /// Makes the folders that are missing; whether it was no volume before.
    ///
    /// # Errors
    /// What the system said of which folder.
    pub fn make_volume(&self) -> Result<bool, crate::volume::Error> {
        let is_new = self.disk.stat(&self.layout.volume_id()).is_err_and(|error| crate::volume::is_absent(&error));
        open_volume(&*self.disk, &self.layout, &self.session)?;
        Ok(is_new)
    }

    /// Refuses a folder that is no volume.
    ///
    /// # Errors
    /// Exit code 4.
    pub fn need_volume(&self) -> Result<(), Failure> {
        self.disk.stat(&self.layout.volume_id()).map(|_| ()).map_err(|error| {
            let common = self.layout.common.display();
            if crate::volume::is_absent(&error) {
                let hint = "name the shared folder with --common or AIOS_COMMON; `orchestrator run` makes one";
                Failure::new(Code::Volume, format!("{common} is no volume: it has no file .volume"), hint)
            } else {
                Failure::new(
                    Code::Volume,
                    format!("cannot look into {common}: {error}"),
                    "check the rights of this user",
                )
            }
        })
    }

    /// The volume's random id.
    ///
    /// # Errors
    /// Exit code 4.
    pub fn volume_id(&self) -> Result<String, Failure> {
        Ok(volume_id(&*self.disk, &self.layout)?.unwrap_or_default())
    }

    /// A run id of one's own making.
    #[must_use]
    pub fn new_run_id(&self) -> RunId {
        new_run_id()
    }

    /// A path as people read it: relative to `Common/` where it is below it.
    #[must_use]
    pub fn shown(&self, path: &Path) -> String {
        path.strip_prefix(&self.layout.common).unwrap_or(path).display().to_string()
    }
}

/// The host's name.
#[must_use]
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// A device id from a host's name: what a name may not contain becomes `_`.
#[must_use]
pub fn device_of_host(host: &str) -> DeviceId {
    crate::model::job::command_job_name(host).as_str().parse().unwrap_or_else(|_| {
        // The rule for jobs and devices is one.
        unreachable!("a job name is a device name")
    })
}

/// The name this machine goes by where no device is named: `DEVICE_ID`, else the host's name.
#[must_use]
pub fn default_device() -> DeviceId {
    let named = std::env::var("DEVICE_ID").ok().and_then(|id| DeviceId::new(&id).ok());
    named.unwrap_or_else(|| device_of_host(&host_name()))
}

/// A run id that no file name made: now, and chance.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "two clients in one millisecond must not make one id")]
pub fn new_run_id() -> RunId {
    RunId::new(clock().wall, rand::random())
}
