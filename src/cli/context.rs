//! What every verb has: the volume, a session of its own for what it writes, and its output.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use super::failure::{Code, Failure};
use super::{Global, Out};
use crate::coordinator::open_volume;
use crate::coordinator::run::clock;
use crate::model::ids::{DeviceId, RunId, Session};
use crate::model::time::Moment;
use crate::volume::atomic::Temporary;
use crate::volume::disk::Disk;
use crate::volume::layout::Layout;
use crate::volume::os::OsDisk;

/// What every verb has.
pub struct Context {
    /// The options of every verb.
    pub global: Global,
    /// The file system.
    pub disk: Rc<dyn Disk>,
    /// The folders, absolute.
    pub layout: Layout,
    /// A session of its own.
    pub session: Session,
    /// Names for what it writes.
    pub names: Temporary,
    /// Where its answer goes.
    pub out: Out,
}

impl Context {
    /// Reads nothing yet.
    ///
    /// # Errors
    /// The working directory cannot be found.
    #[expect(clippy::disallowed_methods, reason = "a session is random by nature, and this is where it enters")]
    pub fn new(global: &Global, out: Out) -> Result<Self, Failure> {
        let absolute = |path: &PathBuf| {
            std::path::absolute(path).map_err(|error| {
                Failure::new(Code::Volume, format!("cannot find {}: {error}", path.display()), "give an absolute path")
            })
        };
        let layout = Layout { common: absolute(&global.common)?, programs: absolute(&global.programs)? };
        let session = Session::from_random(rand::random());
        Ok(Self {
            global: global.clone(),
            disk: Rc::new(OsDisk::new()),
            layout,
            names: Temporary::new(session.clone()),
            session,
            out,
        })
    }

    /// Both clocks.
    #[must_use]
    pub fn now(&self) -> Moment {
        clock()
    }

    /// Lets some time pass.
    #[expect(
        clippy::disallowed_methods,
        reason = "a verb has no loop of its own: a signal ends it by the system's default, asleep or not"
    )]
    pub fn pause(&self, span: Duration) {
        std::thread::sleep(span);
    }

    /// Makes the folders that are missing.
    ///
    /// # Errors
    /// Exit code 4.
    pub fn make_volume(&self) -> Result<(), Failure> {
        let is_new = self.disk.stat(&self.layout.volume_id()).is_err_and(|error| crate::volume::is_absent(&error));
        open_volume(&*self.disk, &self.layout, &self.session)?;
        if is_new {
            self.out.note(&format!("{} was no volume yet: its folders were made", self.layout.common.display()));
        }
        Ok(())
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
        let path = self.layout.volume_id();
        let read = crate::volume::found(self.disk.read(&path, 1_024));
        let read = crate::volume::Context::on(read, "read", &path)?;
        Ok(read.map(|(bytes, _)| String::from_utf8_lossy(&bytes).trim().to_owned()).unwrap_or_default())
    }

    /// The name this machine goes by where no device is named: `DEVICE_ID`, else the host's name.
    #[must_use]
    pub fn default_device(&self) -> DeviceId {
        let named = std::env::var("DEVICE_ID").ok().and_then(|id| DeviceId::new(&id).ok());
        named.unwrap_or_else(|| device_of_host(&host_name()))
    }

    /// A run id of this verb's own making.
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

/// A run id that no file name made: now, and chance.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "two verbs in one millisecond must not make one id")]
pub fn new_run_id() -> RunId {
    RunId::new(clock().wall, rand::random())
}
