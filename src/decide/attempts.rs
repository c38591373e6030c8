//! The attempts of this device: one value each, from the claim to the commit that records the end.
//!
//! The [`Phase`] of an attempt carries exactly what exists in it. [`Phase::after`] is the only place where one becomes another.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::settle::{Ended, Report};
use crate::model::container::Limits;
use crate::model::ids::RunId;
use crate::model::job::Job;
use crate::model::lease::Lease;
use crate::model::masker::Masker;
use crate::model::state::Held;
use crate::model::trigger::{Json, Trigger};

/// An attempt that the state gives to this device, or gave to it.
#[derive(Debug, Clone)]
pub struct LocalAttempt {
    /// The run.
    pub run: RunId,
    /// Its entry in the state, as it was committed.
    pub held: Arc<Held>,
    /// The definition in force when it was claimed.
    pub job: Arc<Job>,
    /// The arguments it gets.
    pub args: Vec<Json>,
    /// The keyword arguments it gets.
    pub kwargs: Vec<(String, Json)>,
    /// The trigger that it was claimed for.
    pub trigger: Arc<Trigger>,
    /// Its phase.
    pub phase: Phase,
}

/// The progress of an attempt, and the owner of its lease.
#[derive(Debug, Clone)]
pub enum Phase {
    /// It is committed as this device's, and nothing was done with it.
    Claimed,
    /// It was begun, and its lease is this device's.
    Owned(Stage),
    /// It was begun, and its lease has gone to another attempt: its processes are stopped, and what it reports is kept as superseded.
    Fenced(Stage),
}

/// The progress of an attempt that was begun.
#[derive(Debug, Clone)]
pub enum Stage {
    /// Its program was started.
    Running(Started),
    /// Its program has ended, or could not be started. Its result is not staged yet.
    Exited(Box<Report>),
    /// Its result is staged, and waits for its commit.
    Concluded(Box<Ended>),
}

/// Resources of a running program that its device needs again at the end.
#[derive(Debug, Clone)]
pub struct Started {
    /// Its limits.
    pub limits: Limits,
    /// The work folder that it has, if it runs in a container.
    pub seat: Option<Seat>,
    /// The masker of the secrets that it was given, if it was given some.
    pub masker: Option<Arc<Masker>>,
}

/// The kind of work folder that an attempt in a container has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seat {
    /// One of its own.
    Own,
    /// One of those that the warm containers of its job keep, by number.
    Kept(usize),
}

/// Something that happens to an attempt.
#[derive(Debug)]
pub enum Step {
    /// Its program was started.
    Start(Started),
    /// Its program has ended, or cannot be started.
    Exit(Box<Report>),
    /// Its result is staged.
    Conclude(Box<Ended>),
    /// Its end must be judged again.
    Reopen,
    /// Its lease has gone to another attempt.
    Fence,
    /// Its lease is this device's again.
    Regain,
}

impl Phase {
    /// Returns the phase after a step; `None`: nothing of the attempt is left here. A step that does not fit changes nothing.
    #[must_use]
    pub fn after(self, step: Step) -> Option<Self> {
        Some(match (self, step) {
            (Self::Claimed, Step::Start(started)) => Self::Owned(Stage::Running(started)),
            (Self::Claimed, Step::Exit(report)) => Self::Owned(Stage::Exited(report)),
            (Self::Claimed, Step::Fence) => return None,
            (Self::Claimed, Step::Conclude(_) | Step::Reopen | Step::Regain) => Self::Claimed,
            (Self::Owned(stage), Step::Fence) => Self::Fenced(stage),
            (Self::Fenced(stage), Step::Regain) => Self::Owned(stage),
            (Self::Owned(stage), step) => Self::Owned(stage.after(step)),
            (Self::Fenced(stage), step) => Self::Fenced(stage.after(step)),
        })
    }

    /// Returns the stage of an attempt that was begun.
    #[must_use]
    pub fn stage(&self) -> Option<&Stage> {
        match self {
            Self::Claimed => None,
            Self::Owned(stage) | Self::Fenced(stage) => Some(stage),
        }
    }
}

impl Stage {
    fn after(self, step: Step) -> Self {
        match (self, step) {
            (Self::Running(_), Step::Exit(report)) => Self::Exited(report),
            (Self::Exited(_), Step::Conclude(ended)) => Self::Concluded(ended),
            (Self::Concluded(ended), Step::Reopen) => Self::Exited(Box::new(ended.report)),
            (stage, _) => stage,
        }
    }
}

impl LocalAttempt {
    /// Returns which attempt of which run it is.
    #[must_use]
    pub fn lease(&self) -> Lease {
        Lease { run: self.run.clone(), attempt: self.held.attempt }
    }

    /// Returns how long it may take: as long as its job and its trigger both let it.
    #[must_use]
    pub fn timeout(&self) -> Option<Duration> {
        self.job.timeout.into_iter().chain(self.trigger.timeout).min()
    }

    /// Returns whether anything was done with it: what was not begun can still be started.
    #[must_use]
    pub fn is_begun(&self) -> bool {
        self.phase.stage().is_some()
    }

    /// Returns whether its lease has gone to another attempt.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        matches!(self.phase, Phase::Fenced(_))
    }

    /// Returns what its program was given, while that runs.
    #[must_use]
    pub fn started(&self) -> Option<&Started> {
        match self.phase.stage()? {
            Stage::Running(started) => Some(started),
            Stage::Exited(_) | Stage::Concluded(_) => None,
        }
    }

    /// Returns how its program ended, until its result is staged.
    #[must_use]
    pub fn exited(&self) -> Option<&Report> {
        match self.phase.stage()? {
            Stage::Exited(report) => Some(report),
            Stage::Running(_) | Stage::Concluded(_) => None,
        }
    }

    /// Returns its end, once its result is staged.
    #[must_use]
    pub fn ended(&self) -> Option<&Ended> {
        match self.phase.stage()? {
            Stage::Concluded(ended) => Some(ended),
            Stage::Running(_) | Stage::Exited(_) => None,
        }
    }
}

#[cfg(test)]
impl LocalAttempt {
    /// Returns a claimed attempt of a trigger; `more` stands in its entry.
    pub(crate) fn example(more: &serde_json::Value) -> Self {
        let mut held = serde_json::json!({
            "job": "j", "stem": "j", "cause": "trigger", "trigger": "j.json", "attempt": 1, "device": "d",
            "session": crate::model::ids::Session::from_random(1), "priority": 0, "slots": 1,
            "claimed_at": "1970-01-01T00:00:00.000Z",
        });
        held.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let name = crate::model::ids::JobName::new("j").unwrap();
        Self {
            run: RunId::new(chrono::DateTime::UNIX_EPOCH, 1),
            held: Arc::new(serde_json::from_value(held).unwrap()),
            job: Arc::new(crate::model::job::for_command(name, vec!["true".to_owned()], None)),
            args: Vec::new(),
            kwargs: Vec::new(),
            trigger: Arc::new(crate::model::trigger::parse(b"{\"job\": \"j\"}").unwrap()),
            phase: Phase::Claimed,
        }
    }
}

/// The attempts of this device. At most one of each run is not fenced.
#[derive(Debug, Default)]
pub struct Attempts(BTreeMap<Lease, LocalAttempt>);

impl Attempts {
    /// Takes in an attempt that the state gives to this device. One that was fenced before is its own again, as far as it has come.
    pub fn hold(&mut self, mut attempt: LocalAttempt) {
        let lease = attempt.lease();
        if let Some(before) = self.0.remove(&lease) {
            attempt.phase = before.phase.after(Step::Regain).unwrap_or(attempt.phase);
        }
        self.0.insert(lease, attempt);
    }

    /// Takes in what happened to an attempt. What is not known here is left alone.
    pub fn step(&mut self, lease: &Lease, step: Step) {
        let Some(attempt) = self.0.get_mut(lease) else { return };
        match std::mem::replace(&mut attempt.phase, Phase::Claimed).after(step) {
            Some(phase) => attempt.phase = phase,
            None => {
                self.0.remove(lease);
            }
        }
    }

    /// Forgets an attempt.
    pub fn remove(&mut self, lease: &Lease) -> Option<LocalAttempt> {
        self.0.remove(lease)
    }

    /// Notes whether the files of an attempt whose result is staged are where they belong already.
    pub fn note_published(&mut self, lease: &Lease, is_published: bool) {
        if let Some(LocalAttempt { phase: Phase::Owned(stage) | Phase::Fenced(stage), .. }) = self.0.get_mut(lease)
            && let Stage::Concluded(ended) = stage
        {
            ended.published = is_published;
        }
    }

    /// Returns an attempt.
    #[must_use]
    pub fn get(&self, lease: &Lease) -> Option<&LocalAttempt> {
        self.0.get(lease)
    }

    /// Returns the end of an attempt whose result is staged.
    #[must_use]
    pub fn ended(&self, lease: &Lease) -> Option<&Ended> {
        self.0.get(lease)?.ended()
    }

    /// Returns the attempt of a run whose lease is this device's.
    #[must_use]
    pub fn of_run(&self, run: &RunId) -> Option<&LocalAttempt> {
        let bound = |attempt| Lease { run: run.clone(), attempt };
        self.0.range(bound(0)..=bound(u32::MAX)).map(|(_, attempt)| attempt).find(|attempt| !attempt.is_fenced())
    }

    /// Returns all of them, in the order of their runs.
    pub fn all(&self) -> impl Iterator<Item = (&Lease, &LocalAttempt)> {
        self.0.iter()
    }

    /// Returns those whose lease is this device's.
    pub fn owned(&self) -> impl Iterator<Item = (&Lease, &LocalAttempt)> {
        self.0.iter().filter(|(_, attempt)| !attempt.is_fenced())
    }

    /// Returns those that were begun.
    pub fn begun(&self) -> impl Iterator<Item = (&Lease, &LocalAttempt)> {
        self.0.iter().filter(|(_, attempt)| attempt.is_begun())
    }

    /// Returns those whose results are staged, with their ends.
    pub fn concluded(&self) -> impl Iterator<Item = (&Lease, &Ended)> {
        self.0.iter().filter_map(|(lease, attempt)| Some((lease, attempt.ended()?)))
    }

    /// Returns those whose programs have ended and whose results are not staged yet.
    pub fn exited(&self) -> impl Iterator<Item = &Lease> {
        self.0.iter().filter(|(_, attempt)| attempt.exited().is_some()).map(|(lease, _)| lease)
    }

    /// Returns how many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::result::Status;
    use chrono::DateTime;
    use serde_json::json;

    fn attempt(number: u32) -> LocalAttempt {
        LocalAttempt::example(&json!({"attempt": number}))
    }

    fn started() -> Step {
        Step::Start(Started { limits: Limits::default(), seat: None, masker: None })
    }

    fn exited() -> Step {
        let report = Report::unstarted(Status::Failed, "no".to_owned(), DateTime::UNIX_EPOCH);
        Step::Exit(Box::new(report))
    }

    #[test]
    fn what_was_never_begun_is_gone_once_it_is_fenced_and_the_rest_stays_until_its_end() {
        let (mut attempts, lease) = (Attempts::default(), attempt(1).lease());
        attempts.hold(attempt(1));
        attempts.step(&lease, Step::Fence);
        assert!(attempts.is_empty());
        attempts.hold(attempt(1));
        attempts.step(&lease, started());
        attempts.step(&lease, Step::Fence);
        assert!(attempts.get(&lease).unwrap().is_fenced() && attempts.get(&lease).unwrap().started().is_some());
        assert!(attempts.of_run(&lease.run).is_none() && attempts.owned().next().is_none());
        attempts.step(&lease, exited());
        assert!(attempts.get(&lease).unwrap().is_fenced() && attempts.exited().eq([&lease]));
        attempts.hold(attempt(1));
        assert!(attempts.of_run(&lease.run).unwrap().exited().is_some(), "it is its own again, as far as it has come");
    }

    #[test]
    fn of_a_run_the_attempt_is_found_whose_lease_is_its_own() {
        let mut attempts = Attempts::default();
        attempts.hold(attempt(1));
        attempts.step(&attempt(1).lease(), started());
        attempts.step(&attempt(1).lease(), Step::Fence);
        attempts.hold(attempt(2));
        assert_eq!(attempts.of_run(&attempt(2).run).unwrap().lease(), attempt(2).lease());
        assert_eq!((attempts.len(), attempts.begun().count()), (2, 1));
    }

    #[test]
    fn a_step_that_does_not_fit_changes_nothing() {
        let (mut attempts, lease) = (Attempts::default(), attempt(1).lease());
        attempts.step(&lease, started());
        assert!(attempts.is_empty(), "what is not known here is left alone");
        attempts.hold(attempt(1));
        attempts.step(&lease, Step::Reopen);
        assert!(!attempts.get(&lease).unwrap().is_begun());
        attempts.step(&lease, started());
        attempts.step(&lease, started());
        attempts.step(&lease, Step::Regain);
        assert!(attempts.get(&lease).unwrap().started().is_some());
        attempts.step(&lease, exited());
        attempts.step(&lease, started());
        assert!(attempts.get(&lease).unwrap().started().is_none(), "what has ended does not run again");
    }
}
