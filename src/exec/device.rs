//! Starts this very program as a device of its own: for the self-test, which kills it.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal};

use super::surroundings::STAND_IN;

/// What would make of it another device than its arguments say.
const OWN_VARIABLES: [&str; 8] = [
    "DEVICE_ID",
    "DEVICE_TAGS",
    "DEVICE_SLOTS",
    "DEVICE_DEFAULT_MEMORY",
    "DEVICE_DEFAULT_CPUS",
    "DEVICE_DEFAULT_PIDS",
    "AIOS_COMMON",
    "AIOS_PROGRAMS",
];

/// A device in a process of its own. It is killed when this is dropped.
#[derive(Debug)]
pub struct DeviceProcess(Child);

impl DeviceProcess {
    /// Starts this program with these arguments; what it says goes into `log`.
    ///
    /// # Errors
    /// As the system says.
    #[expect(
        clippy::disallowed_methods,
        reason = "this room starts processes; a device is no attempt, and has no spec"
    )]
    pub fn start<S: AsRef<OsStr>>(args: &[S], log: File) -> io::Result<Self> {
        let this = std::env::current_exe()?;
        let mut command = Command::new(this);
        for name in OWN_VARIABLES {
            command.env_remove(name);
        }
        command.env("AIOS_HTTP", "none").env(STAND_IN, "0");
        let errors = log.try_clone()?;
        command.args(args).stdin(Stdio::null()).stdout(log).stderr(errors).spawn().map(Self)
    }

    /// SIGKILL: it has no chance to clean up.
    ///
    /// # Errors
    /// As the system says.
    pub fn kill(&mut self) -> io::Result<()> {
        self.0.kill()?;
        self.0.wait().map(|_| ())
    }

    /// SIGTERM: it drains.
    ///
    /// # Errors
    /// As the system says.
    pub fn terminate(&self) -> io::Result<()> {
        let pid = Pid::from_child(&self.0);
        Ok(rustix::process::kill_process(pid, Signal::TERM)?)
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// As the system says.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.0.try_wait()
    }
}

impl Drop for DeviceProcess {
    fn drop(&mut self) {
        // It is gone already, or it is to be: either way nothing is left to do.
        let _ = self.kill();
    }
}
