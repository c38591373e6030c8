//! The things that a process inherits from its parent, and how a device puts them right before it does anything else.
//!
//! A program that a device starts gets a clean slate: no signal is blocked or ignored, no descriptor is open but the three standard ones,
//! and there is no terminal that it could ask for a password. All of this is inherited, so the device puts its own process right
//! once, and each start stays a plain `posix_spawn`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::parent_id;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use nix::sys::signal::SigSet;
use rustix::process::Signal;
use signal_hook::consts::signal::{SIGFPE, SIGILL, SIGKILL, SIGPIPE, SIGSEGV, SIGSTOP};

use super::init;

/// The process id of the parent that stands between the terminal and a device; `0`: none does, and the device has no use for a terminal.
pub const STAND_IN: &str = "AIOS_STAND_IN";

/// Signals whose handling is not this program's to change: the standard library sees to SIGPIPE, and nobody can do anything about the others.
const LEFT_ALONE: [i32; 6] = [SIGPIPE, SIGKILL, SIGSTOP, SIGSEGV, SIGILL, SIGFPE];
/// The last signal that is not one of the C library's own.
const LAST: i32 = 31;

/// Puts this process right: unblocks all signals, sees to it that ignored ones are not ignored by programs that it starts, and keeps
/// open descriptors from them. Called before there is a second thread.
///
/// # Errors
/// A sentence: what was tried and the error of the system.
pub fn settle() -> io::Result<()> {
    let failed = |what: &'static str| move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    unblock_signals().map_err(failed("cannot unblock signals"))?;
    for signal in ignored() {
        // A signal with a handler has its default again in a program that is started.
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))
            .map_err(failed("cannot listen for signals"))?;
    }
    close_fds::set_fds_cloexec(3, &[]);
    Ok(())
}

/// Unblocks all signals for this thread and those that it starts.
pub(super) fn unblock_signals() -> io::Result<()> {
    SigSet::empty().thread_set_mask().map_err(io::Error::from)
}

/// The signals that this process was told to ignore.
fn ignored() -> BTreeSet<i32> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    signals_in(status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap_or_default())
}

fn signals_in(mask: &str) -> BTreeSet<i32> {
    let mask = u64::from_str_radix(mask.trim(), 16).unwrap_or(0);
    (1..=LAST).filter(|signal| mask >> (signal - 1) & 1 == 1 && !LEFT_ALONE.contains(signal)).collect()
}

/// Leaves the terminal that this process was started on, if there is one: its programs have none then. Because what people type there
/// must still reach the device, it runs in a process below this one, which passes signals on. Returns the code that it ended with, in
/// the process that stands in for it; `None` in the device.
///
/// # Errors
/// If the device cannot be started below this process.
pub fn leave_terminal(words: impl IntoIterator<Item = OsString>) -> io::Result<Option<u8>> {
    let stand_in = std::env::var(STAND_IN).ok().and_then(|pid| pid.parse::<u32>().ok());
    match stand_in {
        Some(pid) if pid == 0 || pid == parent_id() => {
            // It fails for the leader of a group, which was started by somebody else with this variable.
            let _ = rustix::process::setsid();
            if pid != 0 {
                // Nobody could reach it any more.
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            }
            Ok(None)
        }
        Some(_) | None if File::open("/dev/tty").is_err() => Ok(None),
        Some(_) | None => init::stand_in_on_terminal(words).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_read_as_the_kernel_writes_them() {
        assert_eq!(signals_in("\t0000000000000000"), BTreeSet::new());
        // HUP, INT, PIPE and the first of the real-time signals.
        assert_eq!(signals_in("\t0000000200001003"), BTreeSet::from([1, 2]));
        assert_eq!(signals_in("no mask"), BTreeSet::new());
    }
}
