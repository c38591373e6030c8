//! Process 1 of a container: a small parent that reaps what is orphaned and passes signals on, with the orchestrator as its child.
//!
//! The kernel hands every orphan of a container to process 1 and ignores signals for which that has no handler. Both are
//! kept away from the orchestrator, which waits for its own children only: whoever waits for any child would take exit codes
//! away from it (supercronic, tini and dumb-init part the two in the same way). Promises: no zombie stays, the child's end is
//! this process's end with the same code, and every signal that asks for something reaches the child. It also stands between a
//! terminal and a device that has left it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use signal_hook::consts::signal::{SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::Signals;

use super::surroundings::{self, STAND_IN};

/// What is passed on, beside the news that a child has ended.
const PASSED_ON: [i32; 8] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH, SIGCONT];

/// Whether this process is the first of a container.
#[must_use]
pub fn is_first() -> bool {
    std::process::id() == 1
}

/// Runs this program once more as a child with these words, and stands in for it until it ends.
///
/// # Errors
/// If signals cannot be listened for or the child not be started.
pub fn stand_in(words: impl IntoIterator<Item = OsString>) -> std::io::Result<ExitCode> {
    surroundings::unblock_signals()?;
    // In a group of its own, so that what a terminal sends to all of its foreground reaches the child once.
    stand_in_for(
        words,
        |command| command.process_group(0),
        |child| {
            if rustix::termios::isatty(std::io::stdin()) {
                // Where it fails there is no terminal to share.
                let _ = rustix::termios::tcsetpgrp(std::io::stdin(), child);
            }
        },
    )
    .map(ExitCode::from)
}

/// The same for a device that is to leave the terminal: this process stays there.
///
/// # Errors
/// If signals cannot be listened for or the child not be started.
pub(super) fn stand_in_on_terminal(words: impl IntoIterator<Item = OsString>) -> std::io::Result<u8> {
    stand_in_for(words, |command| command.env(STAND_IN, std::process::id().to_string()), |_| {})
}

fn stand_in_for(
    words: impl IntoIterator<Item = OsString>,
    prepare: impl FnOnce(&mut Command) -> &mut Command,
    begun: impl FnOnce(Pid),
) -> std::io::Result<u8> {
    // Before there is a child, so that none of its signals is missed.
    let mut signals = Signals::new(PASSED_ON.into_iter().chain([SIGCHLD]))?;
    let mut words = words.into_iter();
    let name = words.next().unwrap_or_default();
    let child = prepare(Command::new(std::env::current_exe()?).arg0(name).args(words)).spawn()?;
    let child = Pid::from_child(&child);
    begun(child);
    for number in signals.forever() {
        if number == SIGCHLD {
            if let Some(ended) = reap(child) {
                return Ok(code_of(ended));
            }
        } else if let Some(signal) = Signal::from_named_raw(number) {
            // It may just have ended: then SIGCHLD says so.
            let _ = rustix::process::kill_process(child, signal);
        }
    }
    Ok(1)
}

/// Reaps all that has ended; one signal may stand for many. The end of the child ends it all.
fn reap(child: Pid) -> Option<WaitStatus> {
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if pid == child && (status.exited() || status.signaled()) {
            return Some(status);
        }
    }
    None
}

/// As shells have it: 128 + n for a signal.
fn code_of(status: WaitStatus) -> u8 {
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}
