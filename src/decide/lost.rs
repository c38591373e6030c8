//! A device died: its attempts end as `lost`, and their runs go on elsewhere.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::chain::follow;
use super::liveness::Verdict;
use super::marks::{Note, Over, over};
use super::plan::{Change, Matter, Move, Observation, Plan};
use super::settle::{retried_before, waiting};
use crate::model::config::LOSSES_IN_A_ROW;
use crate::model::ids::DeviceId;
use crate::model::job::NATIVE;
use crate::model::lease::{Lease, Outliving};
use crate::model::result::{Cause, Outcome, Status};
use crate::model::state::{Held, SCHEMA, State};
use crate::model::trigger::{Json, Target, Trigger};

#[cfg(test)]
mod tests;

/// What an attempt of a dead device left behind.
#[derive(Debug, Clone, PartialEq)]
pub struct Evidence {
    /// Its result, if one was accepted: whether the run was over with it.
    pub accepted: Option<Accepted>,
    /// Whether the run's file is in `.running`.
    pub held_file: bool,
    /// The file is in `.running` or `.waiting` for a later attempt: the device died after it had moved it and before it committed that.
    pub moved_on: bool,
    /// What that file says, if it can be read.
    pub trigger: Option<Arc<Trigger>>,
    /// What it was given, read from the run's file.
    pub args: Vec<Json>,
    /// What it was given, by name.
    pub kwargs: Vec<(String, Json)>,
    /// What ran it.
    pub executor: &'static str,
    /// What runs it, if its job is one whose attempts go on without their device.
    pub outlives: Option<&'static str>,
    /// The digest of its job, if that is a daemon: one that was started by another definition is to start anew.
    pub daemon: Option<String>,
    /// Its log, relative to `Common/`, if it has one: it was started.
    pub log: Option<String>,
}

impl Evidence {
    /// Whether an attempt that goes on without its device could be taken over: it has no result, and what it was started for is known
    /// and still something that outlives a device.
    #[must_use]
    pub fn may_go_on(&self, found: &Outliving) -> bool {
        self.accepted.is_none()
            && self.trigger.is_some()
            && self.outlives == Some(found.executor)
            && self.daemon.as_ref().is_none_or(|digest| *digest == found.definition)
    }

    /// Returns whether the attempt has not begun and can: it has neither a log nor a result, and its file is there and says what it is held
    /// for.
    fn can_begin(&self, held: &Held) -> bool {
        let is_of_job = |trigger: &Arc<Trigger>| match &trigger.target {
            Target::Job(name) => !held.command && *name == held.job,
            Target::Command(_) => held.command,
        };
        self.held_file && self.log.is_none() && self.accepted.is_none() && self.trigger.as_ref().is_some_and(is_of_job)
    }
}

/// A result that stands in `Results/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The attempt it is of.
    pub attempt: u32,
    /// How the attempt ended.
    pub status: Status,
    /// Whether the run ended with it.
    pub is_final: bool,
    /// Where it ran.
    pub device: DeviceId,
    /// When its end was seen.
    pub at: DateTime<Utc>,
    /// How many attempts have been tried again, this one counted in if it was.
    pub retried: u32,
    /// How many attempts in a row, that one included, were lost.
    pub losses: u32,
}

impl Accepted {
    /// How many attempts have been tried again, and how many in a row were lost, once this one is over.
    #[must_use]
    pub fn counts_after(&self) -> (u32, u32) {
        (self.retried, if self.status == Status::Lost { self.losses } else { 0 })
    }
}

impl From<&Outcome> for Accepted {
    fn from(outcome: &Outcome) -> Self {
        let Outcome { attempt, status, is_final, finished_at: at, losses, .. } = *outcome;
        let lived = Duration::from_secs_f64(outcome.duration_ms.unwrap_or(0.0).max(0.0) / 1_000.0);
        let before = retried_before(outcome.cause, outcome.retried, lived);
        let is_counted = match status {
            Status::Failed | Status::TimedOut => true,
            Status::Succeeded => outcome.cause == Cause::Always,
            Status::Cancelled | Status::Expired | Status::Skipped | Status::Lost | Status::Superseded => false,
        };
        let retried = before.saturating_add(u32::from(is_counted));
        Self { attempt, status, is_final, device: outcome.device.clone(), at, retried, losses }
    }
}

/// Ends the attempts of dead devices.
pub fn lose(state: &State, seen: &Observation, plan: &mut Plan) {
    // What a living device holds is its own, in whatever life.
    let may_be_dead = |device: &&DeviceId| **device == seen.me.device || seen.devices.is_silent(device, seen.now.boot);
    let held = state.runs.devices().filter(may_be_dead).flat_map(|device| state.runs.of_device(device));
    for (run, held) in held {
        let Some((device, session)) = held.holder() else { continue };
        let lease = Lease { run: run.clone(), attempt: held.attempt };
        let dead = if *device == seen.me.device {
            // Whoever has the device's lock knows that its earlier life is over. And what it does not know of was its
            // own once, in a commit that a lock that lies let another one overwrite.
            *session != seen.me.session || !(seen.attempts.of_run(run).is_some() || seen.attempts.get(&lease).is_some())
        } else {
            seen.devices.verdict(&lease, device, session, seen.now.boot) == Verdict::Dead
        };
        if !dead || seen.defers(run) {
            continue;
        }
        match seen.evidence.get(&lease) {
            Some(evidence) => plan.changes.push(match adopt(seen, &lease, held, device, evidence) {
                Some(adopted) => adopted,
                None => lose_one(state, seen, lease, held, device, evidence),
            }),
            None => plan.look.push((lease, held.job.clone(), held.stem.clone())),
        }
    }
}

/// Takes over what an earlier life of this device started and what goes on without it: the same attempt, in this life's name. And takes up
/// what this life has claimed and does not know, because the run's file could not be read then: it was never started.
fn adopt(seen: &Observation, lease: &Lease, held: &Held, device: &DeviceId, evidence: &Evidence) -> Option<Change> {
    let is_earlier = *device == seen.me.device && held.session.as_ref() != Some(&seen.me.session);
    let goes_on = is_earlier && seen.found.get(lease).is_some_and(|found| evidence.may_go_on(found));
    let is_own = held.is_held_by(&seen.me.device, &seen.me.session);
    (goes_on || is_own && evidence.can_begin(held)).then(|| Change {
        matter: Matter::Adopted(lease.clone()),
        run: lease.run.clone(),
        moves: vec![
            Move::Unended { job: held.job.clone(), lease: lease.clone() },
            Move::Expect { lease: lease.clone(), stem: held.stem.clone() },
        ],
        entry: Some(Arc::new(Held { session: Some(seen.me.session.clone()), ..held.clone() })),
        notes: Vec::new(),
    })
}

fn lose_one(
    state: &State,
    seen: &Observation,
    lease: Lease,
    held: &Arc<Held>,
    device: &DeviceId,
    evidence: &Evidence,
) -> Change {
    let (run, stem) = (lease.run.clone(), held.stem.clone());
    let mut moves = Vec::with_capacity(2);
    let (is_final, retried, losses, remembered);
    match &evidence.accepted {
        // The dead device had its result accepted and died before the commit: the commit is completed.
        Some(accepted) => {
            (retried, losses) = accepted.counts_after();
            if !accepted.is_final && state.cancel_asked(&run) {
                let outcome = cancelled_outcome(seen, &lease, held, evidence);
                (is_final, remembered) = (true, over(held, &outcome));
                moves.push(Move::Record(Box::new(outcome)));
            } else {
                is_final = accepted.is_final;
                let Accepted { attempt, status, at, .. } = *accepted;
                let over = || {
                    (held.job.clone(), Note::Over(Over { run: run.clone(), cause: held.cause, attempt, status, at }))
                };
                remembered = (is_final && !held.command).then(over);
                if is_final && !held.command {
                    let ended = Lease { attempt, ..lease.clone() };
                    moves.extend(follow(&seen.catalog, &held.job, &ended, status, at));
                }
            }
        }
        None => {
            let cancelled = state.cancel_asked(&run);
            let outcome = lost_outcome(seen, &lease, held, device, evidence, cancelled);
            (is_final, retried, losses) = (outcome.is_final, held.retried, outcome.losses);
            remembered = over(held, &outcome);
            let Outcome { status, finished_at, .. } = outcome;
            moves.push(Move::Record(Box::new(outcome)));
            if is_final && !held.command {
                moves.extend(follow(&seen.catalog, &held.job, &lease, status, finished_at));
            }
        }
    }
    let entry = if is_final {
        moves.push(Move::Retire { lease: lease.clone(), stem, keep: held.cause.is_dropped() });
        None
    } else {
        if evidence.held_file {
            moves.push(Move::Wait { lease: lease.clone(), stem, not_before: lease.run.time() });
        }
        waiting(held, lease.attempt + 1, retried, losses)
    };
    let notes = remembered.into_iter().collect();
    Change { matter: Matter::Lost(lease, held.job.clone()), run, moves, entry, notes }
}

/// The result of a run that was asked to end between two attempts.
fn cancelled_outcome(seen: &Observation, lease: &Lease, held: &Held, evidence: &Evidence) -> Outcome {
    let unstarted = Lease { attempt: 0, ..lease.clone() };
    let evidence = Evidence { log: None, ..evidence.clone() };
    let error = "cancelled while it waited".to_owned();
    let found = outcome(seen, &unstarted, held, &seen.me.device, &evidence, Status::Cancelled, true, 0, error);
    Outcome { executor: None, claimed_at: None, ..found }
}

fn lost_outcome(
    seen: &Observation,
    lease: &Lease,
    held: &Held,
    device: &DeviceId,
    evidence: &Evidence,
    cancelled: bool,
) -> Outcome {
    // A daemon that lived well did not take its device down.
    let lived = (seen.now.wall - held.claimed_at).to_std().unwrap_or_default();
    let losses = retried_before(held.cause, held.losses, lived) + 1;
    let too_often = losses >= LOSSES_IN_A_ROW;
    let vanished = !evidence.held_file && !evidence.moved_on;
    let may_start_once = held.fail_if_lost && !crate::planted!(RerunOnce);
    let is_final = may_start_once || too_often || cancelled || vanished;
    let end = if cancelled {
        "; it was to be cancelled"
    } else if held.fail_if_lost {
        "; on_lost = \"fail\" forbids another attempt"
    } else if vanished {
        "; its trigger's file has vanished from .running, so that it cannot run again"
    } else if too_often {
        "; its device died three times in a row"
    } else {
        ""
    };
    outcome(
        seen,
        lease,
        held,
        device,
        evidence,
        if cancelled { Status::Cancelled } else { Status::Lost },
        is_final,
        losses,
        format!("device {device} died while it held this attempt{end}"),
    )
}

#[expect(clippy::too_many_arguments, reason = "a result has many facts, and here each comes from elsewhere")]
fn outcome(
    seen: &Observation,
    lease: &Lease,
    held: &Held,
    device: &DeviceId,
    evidence: &Evidence,
    status: Status,
    is_final: bool,
    losses: u32,
    error: String,
) -> Outcome {
    Outcome {
        schema: SCHEMA,
        run_id: lease.run.clone(),
        job: held.job.clone(),
        attempt: lease.attempt,
        device: device.clone(),
        executor: Some(evidence.executor.to_owned()),
        cause: held.cause,
        trigger: held.trigger.clone(),
        args: evidence.args.clone(),
        kwargs: evidence.kwargs.clone(),
        priority: held.priority,
        status,
        is_final,
        exit_code: None,
        signal: None,
        error: Some(error),
        result: None,
        result_error: None,
        created_at: lease.run.time(),
        claimed_at: Some(held.claimed_at),
        started_at: None,
        finished_at: seen.now.wall,
        duration_ms: None,
        usage: None,
        log: evidence.log.clone(),
        log_truncated: false,
        retried: held.retried,
        losses,
    }
}

/// The result of a run that cannot go on because its file is gone.
#[must_use]
pub fn vanished_outcome(seen: &Observation, lease: &Lease, held: &Held, error: String) -> Outcome {
    let nothing = Evidence {
        accepted: None,
        held_file: false,
        moved_on: false,
        trigger: None,
        args: Vec::new(),
        kwargs: Vec::new(),
        executor: NATIVE,
        outlives: None,
        daemon: None,
        log: None,
    };
    let found = outcome(seen, lease, held, &seen.me.device, &nothing, Status::Failed, true, 0, error);
    Outcome { executor: None, claimed_at: None, ..found }
}

/// The result of an attempt that was started by nobody knows whom and left without a word: the state was lost with it.
#[must_use]
pub fn orphan_outcome(seen: &Observation, lease: &Lease, held: &Held, evidence: &Evidence) -> Outcome {
    let losses = held.losses + 1;
    let is_final = held.fail_if_lost || losses >= LOSSES_IN_A_ROW || held.cause.is_lasting();
    let error = "the device that held this attempt is gone, and so is the state that named it".to_owned();
    outcome(seen, lease, held, &seen.me.device, evidence, Status::Lost, is_final, losses, error)
}
