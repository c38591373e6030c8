//! Starts that wait because the system is out of processes, memory or descriptors.
//!
//! They are tried again one after the other, with pauses that grow while nothing can be started; what comes meanwhile stands behind them.
//! One that has waited for long is given up, so that another device may start it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Shared, Start};
use crate::exec::StopCause;
use crate::exec::program::Unstarted;
use crate::model::lease::Lease;

/// The first and the longest pause between two tries.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// The time after which a start is given up here.
const PATIENCE: Duration = Duration::from_secs(10);

/// The starts that wait, in order.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    line: Mutex<Line>,
}

#[derive(Debug, Default)]
struct Line {
    starts: VecDeque<(Instant, Start)>,
    /// The reason why the last try failed; `None`: nothing is short.
    why: Option<String>,
}

impl Line {
    fn position(&self, lease: &Lease) -> Option<usize> {
        self.starts.iter().position(|(_, start)| start.spec.lease == *lease)
    }
}

impl Waiting {
    fn line(&self) -> MutexGuard<'_, Line> {
        // Every change is a single push or pop: a panic elsewhere cannot have left it half done.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one out of the line.
    pub(super) fn take(&self, lease: &Lease) -> Option<Start> {
        let mut line = self.line();
        let at = line.position(lease)?;
        line.starts.remove(at).map(|(_, start)| start)
    }
}

impl Shared {
    /// Returns the reason why nothing is started at the moment.
    pub(super) fn short_of(&self) -> Option<String> {
        self.waiting.line().why.clone()
    }

    /// Has a start wait, for this reason.
    pub(super) fn wait(self: &Arc<Self>, start: Start, why: String) {
        let mut line = self.waiting.line();
        line.starts.push_back((Instant::now(), start));
        if line.why.replace(why).is_none() {
            self.runtime.spawn(tend(Arc::clone(self)));
            self.ledger.wake();
        }
    }

    /// Tries what waits; returns whether anything could be started. What has waited for too long is given up.
    fn try_again(self: &Arc<Self>) -> bool {
        let mut line = self.waiting.line();
        let mut has_started = false;
        while let Some((since, mut start)) = line.starts.pop_front() {
            match self.start(&mut start) {
                Ok(()) => has_started = true,
                Err(Unstarted { error, is_short: false }) => self.ledger.deliver(start.exit(error, None)),
                Err(Unstarted { error, is_short: true }) => {
                    line.why = Some(error.clone());
                    line.starts.push_front((since, start));
                    while line.starts.front().is_some_and(|(since, _)| since.elapsed() >= PATIENCE) {
                        let given_up = line.starts.pop_front().map(|(_, start)| start);
                        let exit = given_up.map(|start| start.exit(error.clone(), Some(StopCause::Short)));
                        exit.into_iter().for_each(|exit| self.ledger.deliver(exit));
                    }
                    break;
                }
            }
        }
        has_started
    }
}

/// Sees to what waits until nothing does. When all of it was given up nothing is started for a while, so that others take the work.
async fn tend(shared: Arc<Shared>) {
    let mut pause = PAUSES.0;
    let mut is_resting = false;
    loop {
        tokio::time::sleep(pause).await;
        let has_started = shared.try_again();
        let mut line = shared.waiting.line();
        let is_empty = line.starts.is_empty();
        if is_empty && (has_started || is_resting) {
            line.why = None;
            drop(line);
            shared.ledger.wake();
            return;
        }
        is_resting = is_empty;
        pause = match (has_started, is_resting) {
            (true, _) => PAUSES.0,
            (false, true) => PAUSES.1,
            (false, false) => (pause * 2).min(PAUSES.1),
        };
    }
}
