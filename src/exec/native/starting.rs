//! The thread that starts programs. Whoever starts one stands still until it has been loaded; the loop goes on meanwhile.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use super::{Shared, Start};
use crate::exec::StopCause;
use crate::exec::program::Unstarted;
use crate::model::lease::Lease;

/// What an attempt was stopped for, and how long it may take to end.
type Order = (StopCause, Duration);

/// The attempts that were handed to the thread, and by what they were stopped meanwhile.
#[derive(Debug, Default)]
pub(super) struct Starting {
    attempts: Mutex<BTreeMap<Lease, Option<Order>>>,
}

impl Starting {
    fn attempts(&self) -> MutexGuard<'_, BTreeMap<Lease, Option<Order>>> {
        // Every change is a single one: a panic elsewhere cannot have left it half done.
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the first order to stop an attempt, for when it has been started; `false`: it is not being started.
    pub(super) fn stop(&self, lease: &Lease, cause: StopCause, grace: Duration) -> bool {
        match self.attempts().get_mut(lease) {
            Some(order) => {
                order.get_or_insert((cause, grace));
                true
            }
            None => false,
        }
    }
}

/// The way to the thread. With it the thread ends, once it has started what it was given.
#[derive(Debug)]
pub(super) struct Starter {
    #[expect(clippy::disallowed_types, reason = "as many starts as there are free slots")]
    line: mpsc::Sender<Start>,
}

impl Starter {
    pub(super) fn new(shared: &Arc<Shared>) -> io::Result<Self> {
        let (line, starts) = mpsc::channel();
        let shared = Arc::clone(shared);
        std::thread::Builder::new().name("aios-start".to_owned()).stack_size(512 * 1024).spawn(move || {
            for start in starts {
                shared.begin(start);
            }
        })?;
        Ok(Self { line })
    }

    /// Has an attempt started after those before it.
    pub(super) fn start(&self, shared: &Arc<Shared>, start: Start) {
        shared.starting.attempts().insert(start.spec.lease.clone(), None);
        // The thread ends before this only by a panic.
        if let Err(mpsc::SendError(start)) = self.line.send(start) {
            shared.begin(start);
        }
    }
}

impl Shared {
    /// Starts an attempt, or has it wait; then it is stopped if that was asked meanwhile.
    fn begin(self: &Arc<Self>, mut start: Start) {
        let lease = start.spec.lease.clone();
        let stopped = {
            let mut attempts = self.starting.attempts();
            let order = attempts.get(&lease).copied().flatten();
            order.inspect(|_| _ = attempts.remove(&lease))
        };
        if let Some((cause, _)) = stopped {
            let error = "it was stopped before it was started".to_owned();
            return self.ledger.deliver(start.exit(error, Some(cause)));
        }
        // One after the other.
        let begun = match self.short_of() {
            Some(error) => Err(Unstarted { error, is_short: true }),
            None => self.start(&mut start),
        };
        match begun {
            Ok(()) => {}
            Err(Unstarted { error, is_short: true }) => self.wait(start, error),
            Err(Unstarted { error, is_short: false }) => self.ledger.deliver(start.exit(error, None)),
        }
        let order = self.starting.attempts().remove(&lease).flatten();
        if let Some((cause, grace)) = order {
            self.stop(&lease, cause, grace);
        }
    }
}
