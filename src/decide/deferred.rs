//! Changes that failed wait, and hold nothing else up.
//!
//! If another writer was first, the run is looked at again at once, and waits only if it fails again. Whatever else failed waits for
//! growing times. The plan leaves out what waits, so that everything else goes on under the next lock hold.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::ids::RunId;

/// How long a change waits after its first failure, and at most.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// The runs of which a change failed, by run.
#[derive(Debug, Default)]
pub struct Deferred {
    runs: BTreeMap<RunId, Failed>,
}

#[derive(Debug)]
struct Failed {
    /// On this device's clock.
    until: Duration,
    wait: Duration,
    why: String,
}

impl Deferred {
    /// Notes that a change failed because another writer was first.
    pub fn lost_race(&mut self, run: &RunId, why: &str, now: Duration) {
        match self.runs.get(run) {
            Some(_) => self.fail(run, why.to_owned(), now),
            None => {
                let failed = Failed { until: now, wait: Duration::ZERO, why: why.to_owned() };
                self.runs.insert(run.clone(), failed);
            }
        }
    }

    /// Notes that a change failed: it waits, twice as long as before.
    pub fn fail(&mut self, run: &RunId, why: String, now: Duration) {
        let before = self.runs.get(run).map_or(Duration::ZERO, |failed| failed.wait);
        let wait = (before * 2).clamp(FIRST, LONGEST);
        self.runs.insert(run.clone(), Failed { until: now + wait, wait, why });
    }

    /// Notes that a change of this run happened.
    pub fn succeed(&mut self, run: &RunId) {
        self.runs.remove(run);
    }

    /// Returns whether the changes of a run wait.
    #[must_use]
    pub fn holds(&self, run: &RunId, now: Duration) -> bool {
        self.runs.get(run).is_some_and(|failed| failed.until > now)
    }

    /// Returns when the next of them is tried again.
    #[must_use]
    pub fn next(&self, now: Duration) -> Option<Duration> {
        self.runs.values().map(|failed| failed.until).filter(|until| *until > now).min()
    }

    /// Returns what people should know: which run waits, and why; how many more.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let mut waiting = self.runs.iter().filter(|(_, failed)| !failed.wait.is_zero());
        let (run, failed) = waiting.next()?;
        let more = waiting.count();
        let more = if more == 0 { String::new() } else { format!("; so do {more} more runs") };
        Some(format!("{}; the run {run} waits, and everything else goes on{more}", failed.why))
    }

    /// Forgets the runs that are neither open nor waiting any more, and those whose last failure is long past.
    pub fn tidy(&mut self, now: Duration) {
        self.runs.retain(|_, failed| failed.until + LONGEST * 2 > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_waits_longer_each_time_and_what_was_only_too_late_does_not() {
        let (run, other) = (RunId::new(chrono::DateTime::UNIX_EPOCH, 1), RunId::new(chrono::DateTime::UNIX_EPOCH, 2));
        let at = Duration::from_secs;
        let mut deferred = Deferred::default();
        deferred.lost_race(&run, "its file is gone", at(0));
        assert!(!deferred.holds(&run, at(0)) && deferred.problem().is_none());
        deferred.lost_race(&run, "its file is gone", at(0));
        assert!(deferred.holds(&run, at(0)) && !deferred.holds(&run, at(1)));
        assert!(!deferred.holds(&other, at(0)));
        for (now, wait) in [(1, 2), (3, 4), (7, 8), (15, 16), (31, 32), (63, 60), (123, 60)] {
            deferred.fail(&run, "cannot move x".to_owned(), at(now));
            assert_eq!(deferred.next(at(now)), Some(at(now + wait)));
        }
        deferred.fail(&other, "cannot move y".to_owned(), at(123));
        let problem = deferred.problem().unwrap();
        assert!(
            problem.contains("cannot move x") && problem.contains(run.as_str()) && problem.contains("1 more"),
            "{problem}"
        );
        deferred.succeed(&run);
        assert!(!deferred.holds(&run, at(124)));
        deferred.tidy(at(300));
        assert_eq!(deferred.problem(), None);
    }
}
