//! Running things: the port, and one file per way to run.
//!
//! This room promises the full space of endings: whatever becomes of an attempt, exactly one [`Exit`] says so. It
//! is the only room that starts, signals and reaps processes. It knows no folders: an open log comes in with the
//! [`Spec`], and reading what the program left behind is the coordinator's.

#![expect(
    clippy::disallowed_methods,
    reason = "this room starts processes, reads /proc, makes cgroups, and measures how long its own waits last"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use docker::{Given, Inside};
pub use program::is_short;

use crate::model::container::Limits;
use crate::model::device::RunUse;
use crate::model::ids::{RunId, Tag};
use crate::model::lease::{Lease, Outliving};
use crate::model::masker::Masker;
use crate::model::result::Usage;
use crate::volume::logs::Log;

pub mod cgroup;
pub mod device;
pub mod docker;
mod end;
pub mod fleet;
pub mod identity;
pub mod init;
pub mod launch;
mod ledger;
pub mod leftovers;
mod log;
pub mod machine;
pub mod native;
mod nvidia;
mod procfs;
mod program;
pub mod surroundings;
pub mod talk;
mod tree;

/// Everything needed to start one attempt; nothing is looked up later.
pub struct Spec {
    /// Whose attempt it is.
    pub lease: Lease,
    /// The program and its arguments, never empty. A name without `/` is looked up in `PATH` of [`Spec::env`]; a relative path with `/`
    /// is relative to [`Spec::dir`].
    pub argv: Vec<String>,
    /// The working directory, absolute.
    pub dir: PathBuf,
    /// The whole environment: nothing else is passed on.
    pub env: BTreeMap<String, String>,
    /// The log: what becomes of standard output and standard error of the program. `None` only in the simulator.
    pub log: Option<Log>,
    /// What is masked in the log: the secrets among the values of [`Spec::env`]. `None`: there are none.
    pub masker: Option<Arc<Masker>>,
    /// SIGTERM after this long, measured on a clock that stands still in suspend.
    pub timeout: Option<Duration>,
    /// SIGKILL this long after SIGTERM.
    pub grace: Duration,
    /// The container that it runs in; `None`: it is a process of this machine.
    pub inside: Option<Inside>,
    /// What it may use as a process of this machine; a container's limits stand in [`Inside`].
    pub limits: Limits,
}

/// Without the environment, whose values may be secrets.
impl fmt::Debug for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lease, argv, dir, inside, .. } = self;
        let mut shown = f.debug_struct("Spec");
        shown
            .field("lease", lease)
            .field("argv", argv)
            .field("dir", dir)
            .field("inside", inside)
            .finish_non_exhaustive()
    }
}

/// The variable whose value marks every process of an attempt: `<volume id>/<device>/<session>/<run id>.<attempt>`.
/// By it a process is found that left its process group, also by a later session.
pub const MARKER: &str = "AIOS_LEASE";

/// How the main process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// It never started.
    NotStarted {
        /// What was tried and what the system said.
        error: String,
    },
    /// It exited with this code.
    Code(i32),
    /// It was ended by this signal.
    Signal(i32),
    /// It ran, and how it ended cannot be known: it is lost.
    Unknown {
        /// Why.
        error: String,
    },
}

/// Why an attempt was stopped from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopCause {
    /// It took longer than its timeout.
    Timeout,
    /// A person asked for its end.
    Cancelled,
    /// A person asked for a restart.
    Restarted,
    /// Its device leaves.
    Drained,
    /// The attempt is no longer this device's.
    Fenced,
    /// Its job does not want it any more.
    Dismissed,
    /// It ran only while there was nothing else to do.
    Preempted,
    /// It could not be started, because the system was out of processes, memory or descriptors for too long: another device may have them.
    Short,
}

/// The end of one attempt: sent exactly once for each started [`Spec`].
#[derive(Debug)]
pub struct Exit {
    /// Whose attempt it was.
    pub lease: Lease,
    /// How its main process ended.
    pub ending: Ending,
    /// Whether the system ended it, or a part of it, because its memory was used up.
    pub oom_killed: bool,
    /// Why it was stopped; `None`: it had ended by itself, even if nobody had seen that yet. The first cause counts.
    pub stopped: Option<StopCause>,
    /// Whether its process was started.
    pub started: bool,
    /// When the end of its main process was seen, by the machine's boot time; what that left behind is dead by the time the
    /// exit can be taken. Wall time is the volume's, which this room does not know.
    pub finished: Duration,
    /// From start to end, on a clock that never jumps.
    pub duration: Duration,
    /// What it used.
    pub usage: Option<Usage>,
    /// Something of what it printed is missing in its log.
    pub log_truncated: bool,
}

/// The port: whatever runs attempts.
///
/// One owner calls it; nothing blocks. Ends are collected with [`Executor::take_exits`]; an implementation wakes the owner when there are any.
pub trait Executor {
    /// Starts an attempt. A start that fails is an [`Exit`] too. Starting a lease that is already listed does nothing.
    fn start(&mut self, spec: Spec);

    /// Attempts that were started and whose [`Exit`] was not yet taken, in the order of their leases.
    fn list(&self) -> Vec<Lease>;

    /// The main processes of attempts that have one of this machine: run, attempt, process id.
    fn pids(&self) -> Vec<(RunId, u32, u32)> {
        Vec::new()
    }

    /// What attempts that are no processes of this machine have in use, as it was measured last.
    fn used(&self) -> Vec<RunUse> {
        Vec::new()
    }

    /// Asks the whole process tree to end: SIGTERM now (once), SIGKILL after `grace`. Asked again, the earlier moment of the kill counts; a lease that is not listed is ignored.
    fn stop(&mut self, lease: &Lease, cause: StopCause, grace: Duration);

    /// The ends since the last call, oldest first.
    fn take_exits(&mut self) -> Vec<Exit>;

    /// Returns what it is short of, in a sentence: it starts nothing at the moment, and new work is better left to others. The owner is woken
    /// when that changes.
    fn short_of(&self) -> Option<String> {
        None
    }

    /// What a device has because of it, beside what its tags say. It may change at any time; the owner is woken then.
    fn offers(&self) -> BTreeSet<Tag> {
        BTreeSet::new()
    }

    /// Attempts that an earlier life of this device started and that go on without it. They are taken over by starting them with
    /// [`Inside::goes_on`].
    fn found(&self) -> BTreeMap<Lease, Outliving> {
        BTreeMap::new()
    }

    /// Ends whatever of these attempts of others goes on where this device can reach it, and says of which nothing is left to end; the
    /// others are asked for again once the owner is woken.
    fn evict(&mut self, leases: &BTreeSet<Lease>) -> BTreeSet<Lease> {
        leases.clone()
    }

    /// Looks what there is of attempts that this executor was not given; the owner is woken when there is something to take.
    fn survey(&mut self) {}

    /// What surveys have met. Those that nobody holds, by a state that is read now, are to be evicted.
    fn take_surveyed(&mut self) -> BTreeSet<Lease> {
        BTreeSet::new()
    }
}
