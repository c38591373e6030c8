//! What the state does not know, or no longer needs: runs that a lost state forgot, files that nobody holds, requests that are answered.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::chain::follow;
use super::claim::open_run;
use super::lost::{Accepted, Evidence, orphan_outcome, vanished_outcome};
use super::marks::{Note, ended, over};
use super::plan::{Change, Matter, Move, Observation, Plan};
use super::settle::waiting;
use crate::model::ids::DeviceId;
use crate::model::job::{OnLost, Overlap};
use crate::model::lease::Lease;
use crate::model::result::{Cause, Outcome};
use crate::model::state::{Ask, Held, Request, State};
use crate::model::trigger::Target;

/// How long a request waits for a device that nobody knows.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// A file in `.running` that neither the state nor any living device's heartbeat names: a claim that was never
/// committed, or the state was lost.
#[derive(Debug, Clone, PartialEq)]
pub struct Orphan {
    /// The attempt that it is named after.
    pub lease: Lease,
    /// The entry that its next attempt would have.
    pub held: Arc<Held>,
    /// The result that ended the run, if one did: that of this attempt, or of an end without one.
    pub over: Option<Accepted>,
    /// The result that ends the run without this attempt, if one was decided on.
    pub pending: Option<Outcome>,
    /// Its own time, if it has one.
    pub not_before: Option<DateTime<Utc>>,
    /// What its last attempt left behind.
    pub evidence: Evidence,
}

/// Puts the attempts of this device back into a state that forgot them.
pub fn keep(state: &State, seen: &Observation, plan: &mut Plan) {
    for (lease, mine) in seen.attempts.owned() {
        if state.runs.contains_key(&mine.run) || mine.ended().is_some() || seen.defers(&mine.run) {
            continue;
        }
        plan.changes.push(Change {
            matter: Matter::Kept(lease.clone()),
            run: mine.run.clone(),
            moves: vec![
                Move::Unended { job: mine.held.job.clone(), lease: lease.clone() },
                Move::Expect { lease: lease.clone(), stem: mine.held.stem.clone() },
            ],
            entry: Some(Arc::clone(&mine.held)),
            notes: Vec::new(),
        });
    }
    if state.rebuilt.is_some() {
        list_again(state, seen, plan);
        let settled = |change: &Change| !matches!(change.matter, Matter::Kept(_) | Matter::Listed(_));
        plan.rebuilt =
            seen.accounted == state.rebuilt && seen.remembered == state.rebuilt && plan.changes.iter().all(settled);
    }
}

/// Runs that wait and whose job forbids overlap were listed in the state that was lost.
fn list_again(state: &State, seen: &Observation, plan: &mut Plan) {
    for (entry, candidate) in seen.queue.comebacks() {
        let Some(job) = candidate.map(|candidate| candidate.job) else { continue };
        let is_lasting = entry.cause().is_lasting();
        let is_listed = entry.was_started()
            && (is_lasting || job.overlap != Overlap::Allow)
            && !matches!(entry.trigger.target, Target::Command(_));
        let is_alone = || is_lasting || open_run(plan, &job.name, &entry.run).is_none();
        if !is_listed || state.runs.contains_key(&entry.run) || !is_alone() {
            continue;
        }
        let held = Held {
            job: job.name.clone(),
            stem: entry.stem(),
            cause: entry.cause(),
            trigger: entry.dropped_name(),
            attempt: entry.attempt,
            device: None,
            session: None,
            priority: entry.trigger.priority.unwrap_or(job.priority),
            slots: job.slots,
            pool: job.pool.clone(),
            only_on: entry.trigger.only_on(),
            claimed_at: entry.run.time(),
            command: false,
            fail_if_lost: job.on_lost == OnLost::Fail,
            listed: true,
            retried: entry.retried(),
            losses: entry.losses(),
            extra: std::collections::BTreeMap::new(),
        };
        plan.changes.push(Change {
            matter: Matter::Listed(entry.run.clone()),
            run: entry.run.clone(),
            moves: Vec::new(),
            entry: Some(Arc::new(held)),
            notes: Vec::new(),
        });
    }
}

/// Lets go on what nobody holds.
pub fn free(state: &State, seen: &Observation, plan: &mut Plan) {
    for orphan in seen.orphans.iter().filter(|_| !crate::planted!(KeepOrphans)) {
        let held_by_somebody = state.runs.get(&orphan.lease.run).is_some_and(|held| held.device.is_some());
        if !held_by_somebody && seen.attempts.of_run(&orphan.lease.run).is_none() && !seen.defers(&orphan.lease.run) {
            let change = free_one(state, seen, plan, orphan);
            plan.changes.push(change);
        }
    }
}

fn free_one(state: &State, seen: &Observation, plan: &Plan, orphan: &Orphan) -> Change {
    let (lease, held) = (&orphan.lease, &orphan.held);
    let (run, cause) = (lease.run.clone(), held.cause);
    let stem = || held.stem.clone();
    let retire = Move::Retire { lease: lease.clone(), stem: stem(), keep: cause.is_dropped() };
    // Its claim was lost with the state, or never committed: its due time has become a run all the same.
    let due = match cause {
        Cause::Schedule => Some(Note::Due(run.time())),
        Cause::Job => Some(Note::Claimed(run.time())),
        Cause::Trigger | Cause::Always | Cause::Idle | Cause::Api | Cause::Manual => None,
    };
    let due = due.map(|note| (held.job.clone(), note));
    let expect = Move::Expect { lease: lease.clone(), stem: stem() };
    let matter = Matter::Freed(run.clone());
    let after = |lease: &Lease, status, at| {
        if held.command { Vec::new() } else { follow(&seen.catalog, &held.job, lease, status, at) }
    };
    if let Some(over) = &orphan.over {
        let Accepted { attempt, status, at, .. } = *over;
        let mut moves = after(&Lease { attempt, ..lease.clone() }, status, at);
        moves.push(retire);
        return Change { matter, run, moves, entry: None, notes: due.into_iter().collect() };
    }
    if let Some(outcome) = &orphan.pending {
        let notes = over(held, outcome).into_iter().chain(due).collect();
        let (outcome, keep) = (Box::new(outcome.clone()), cause.is_dropped());
        let (lease, stem) = (lease.clone(), stem());
        let moves = vec![Move::EndUnstarted { outcome, lease, stem, keep, has_more: false }];
        return Change { matter, run, moves, entry: None, notes };
    }
    // Taken and never started, it may still have its time before it.
    let not_before = orphan.not_before.map_or(run.time(), |own| own.max(run.time()));
    let wait = Move::Wait { lease: lease.clone(), stem: stem(), not_before };
    // Of an attempt that has its result only what follows from it is missing.
    if orphan.evidence.accepted.is_some() {
        let entry = still_listed(state, lease);
        return Change { matter, run, moves: vec![expect, wait], entry, notes: due.into_iter().collect() };
    }
    if orphan.evidence.log.is_some() {
        let outcome = orphan_outcome(seen, lease, held, &orphan.evidence);
        let notes = over(held, &outcome).into_iter().chain(due).collect();
        let Outcome { is_final, status, finished_at, retried, losses, .. } = outcome;
        let mut moves = vec![expect, Move::Record(Box::new(outcome))];
        if is_final {
            moves.extend(after(lease, status, finished_at));
        }
        moves.push(if is_final { retire } else { wait });
        let is_alone = || open_run(plan, &held.job, &run).is_none();
        let entry = waiting(held, lease.attempt + 1, retried, losses).filter(|_| !is_final && is_alone());
        return Change { matter, run, moves, entry, notes };
    }
    let void = Move::Void { job: held.job.clone(), lease: lease.clone() };
    // Nobody handed it in, and its job wants another as soon as this one is gone.
    if cause.is_lasting() {
        return Change { matter, run, moves: vec![expect, void, retire], entry: None, notes: Vec::new() };
    }
    let entry = still_listed(state, lease);
    Change { matter, run, moves: vec![expect, void, wait], entry, notes: due.into_iter().collect() }
}

/// Returns the entry of a run that was listed as waiting, for the attempt after this one. A run that is not listed was never claimed: it
/// blocks no other.
fn still_listed(state: &State, lease: &Lease) -> Option<Arc<Held>> {
    let held = state.runs.get(&lease.run).filter(|held| held.device.is_none())?;
    Some(Arc::new(Held { attempt: lease.attempt + 1, ..(**held).clone() }))
}

/// Takes out runs that are listed as waiting although their files are gone: a person removed them, or a commit was overwritten
/// where the lock lied.
pub fn forget(state: &State, seen: &Observation, plan: &mut Plan) {
    for (run, unended) in &seen.vanished {
        let Some(held) = state.runs.get(run).filter(|held| held.device.is_none() && !seen.defers(run)) else {
            continue;
        };
        let mut moves = vec![Move::Absent { run: run.clone() }];
        let mut notes = Vec::new();
        if let Some(attempt) = *unended {
            let lease = Lease { run: run.clone(), attempt };
            let error = "its trigger's file has vanished from .waiting, so that it cannot run again".to_owned();
            let outcome = vanished_outcome(seen, &lease, held, error);
            notes.push((held.job.clone(), ended(&outcome)));
            moves.push(Move::Record(Box::new(outcome)));
        }
        plan.changes.push(Change {
            matter: Matter::Vanished(run.clone()),
            run: run.clone(),
            moves,
            entry: None,
            notes,
        });
    }
}

/// Takes out requests that are fulfilled, or that nobody is left to fulfil.
pub fn answer(state: &State, seen: &Observation, plan: &mut Plan) {
    for request in &state.requests {
        let me = request.device == seen.me.device;
        let answered = match request.ask {
            Ask::Cancel => request.run.as_ref().is_none_or(|run| !state.runs.contains_key(run)),
            Ask::Restart => !is_held(state, request),
            Ask::Drain => me && seen.drained,
            Ask::Resume => me && !seen.drained,
        };
        // What concerns a run is answered by what becomes of the run.
        let concerns_device = matches!(request.ask, Ask::Drain | Ask::Resume);
        if answered || concerns_device && is_for_nobody(seen, &request.device, request.at) {
            plan.answered.insert(request.id.clone());
        }
    }
    let me = &seen.me.device;
    let is_set = seen.set.then(state.to_set(me)) == seen.set;
    for setting in &state.settings {
        let answered = setting.device == *me && is_set;
        if answered || is_for_nobody(seen, &setting.device, setting.at) {
            plan.answered.insert(setting.id.clone());
        }
    }
}

/// Whether the device that something was asked of is gone. Who has just started knows nobody yet.
fn is_for_nobody(seen: &Observation, device: &DeviceId, asked_at: DateTime<Utc>) -> bool {
    let is_old = seen.now.wall - asked_at > TimeDelta::from_std(ANSWER_WAIT).unwrap_or_default();
    is_old && *device != seen.me.device && !seen.devices.is_known(device)
}

/// Whether the attempt that a request is about is held still.
fn is_held(state: &State, request: &Request) -> bool {
    let held = request.run.as_ref().and_then(|run| state.runs.get(run));
    held.is_some_and(|held| held.device.is_some() && Some(held.attempt) == request.attempt)
}
