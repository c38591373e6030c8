//! Bugs that can be planted, so that it is known what the simulator would find. They exist only where debug assertions do: in no
//! release, and in none of the other published builds.

/// One bug.
#[cfg(debug_assertions)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Bug {
    /// One run more than fits is claimed.
    ClaimOverSlots,
    /// A run is claimed although another one of its job is open and they may not overlap.
    IgnoreOverlap,
    /// Nobody is told of a commit.
    ForgetToTell,
    /// A file in `.running` that nobody holds stays there.
    KeepOrphans,
    /// A device is taken for dead after a part of its lease.
    ShortenLease,
    /// The first failure of a run is final, whatever retries its job has.
    EndEarly,
    /// The file of an idempotency key is neither looked at nor made.
    DropKeys,
    /// A device that cannot write its heartbeat claims.
    ClaimUnwritable,
    /// A due time is noted as run, and makes no run.
    LoseDueTime,
    /// A plan without a change is committed.
    CommitNothing,
    /// A run that may start only once goes on when its device dies.
    RerunOnce,
    /// A job that was seen before is noted as seen at each beat.
    NoteAgain,
    /// One device leaves nothing to others.
    NeverYield,
    /// The attempt that comes next has the number of the last.
    ReuseAttempt,
}

#[cfg(debug_assertions)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug in everything that runs on this thread from now on; `None`: there is none any more.
#[cfg(debug_assertions)]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Returns whether this bug is planted on this thread.
#[cfg(debug_assertions)]
#[must_use]
pub fn has(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Says whether a [`Bug`] is planted; never, where there are no debug assertions.
#[cfg(debug_assertions)]
macro_rules! planted {
    ($bug:ident) => {
        $crate::planted::has($crate::planted::Bug::$bug)
    };
}

/// Nothing is planted here.
#[cfg(not(debug_assertions))]
macro_rules! planted {
    ($bug:ident) => {
        false
    };
}

pub(crate) use planted;
