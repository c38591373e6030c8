//! Who runs what: claiming what waits, and ending what waited in vain.

use std::collections::BTreeSet;
use std::sync::Arc;

use chrono::TimeDelta;

use super::agenda::{is_wanted, unwanted};
use super::marks::{Note, ended};
use super::placement::Placement;
use super::plan::{Change, Matter, Move, Observation, Plan};
use super::queue::{Candidate, Group, job_name};
use super::reserve::{self, Room};
use crate::model::entry::{Entry, KeySeen, Source};
use crate::model::ids::{DeviceId, JobName, PoolName, RunId};
use crate::model::job::{OnLost, Overlap, merge_args, merge_kwargs};
use crate::model::result::{Cause, Outcome, Status};
use crate::model::state::{Held, SCHEMA, State};
use crate::model::time::rfc3339;
use crate::model::trigger::Target;

#[cfg(test)]
mod tests;

/// How many triggers one commit takes at most, to run or to end them: a lock hold stays short.
const TAKEN: usize = 64;

/// Ends what waited in vain: past its `expires`, or its job is gone.
pub fn expire(state: &State, seen: &Observation, plan: &mut Plan) {
    if !seen.taking || is_rebuilding(state, plan) {
        return;
    }
    let before = plan.changes.len();
    for (entry, priority) in seen.queue.expired(seen.now.wall) {
        if plan.changes.len() - before >= TAKEN {
            plan.more = true;
            return;
        }
        if is_open(state, plan, &entry.run) || seen.defers(&entry.run) {
            continue;
        }
        if let Some(first) = other_run_of_key(entry) {
            plan.changes.push(duplicate(entry, first));
            continue;
        }
        let until = entry.trigger.expires.map(rfc3339).unwrap_or_default();
        let error = format!("its first attempt had not started by {until}");
        plan.changes.push(end(seen, entry, priority, Status::Expired, 0, Some(error)));
    }
    for (entry, since) in seen.queue.unknown(seen.now.boot) {
        if plan.changes.len() - before >= TAKEN {
            plan.more = true;
            return;
        }
        // A daemon's is dismissed.
        if entry.cause().is_lasting() || seen.defers(&entry.run) {
            continue;
        }
        let held_elsewhere = state.runs.get(&entry.run).is_some_and(|held| held.device.is_some());
        if entry.key.source != Source::Waiting || seen.catalog.is_empty() || held_elsewhere {
            continue;
        }
        if !seen.devices.none_knows(&job_name(entry), &seen.me.device, since, seen.now.boot) {
            continue;
        }
        let error = format!("the job {} is gone: Programs/ has no file for it any more", job_name(entry));
        let priority = entry.trigger.priority.unwrap_or(0);
        plan.changes.push(end(seen, entry, priority, Status::Failed, entry.attempt, Some(error)));
    }
}

/// Claims what fits, in order.
pub fn claim(state: &State, seen: &Observation, plan: &mut Plan) {
    if !seen.taking || !seen.queue.has_ready() || is_rebuilding(state, plan) {
        return;
    }
    let mut free = i64::from(seen.me.slots) - i64::from(busy(seen, plan));
    let mut placement = Placement::new(state, seen);
    let mut ordered = seen.queue.in_order();
    let mut rooms = None;
    let mut is_reserved = false;
    let mut claimed: BTreeSet<RunId> = BTreeSet::new();
    let before = plan.changes.len();
    while let Some((group, candidate)) = ordered.take_next() {
        if plan.changes.len() - before >= TAKEN {
            plan.more = true;
            break;
        }
        let Candidate { entry, job, priority, .. } = candidate;
        if seen.defers(&entry.run) {
            continue;
        }
        let listed = state.runs.get(&entry.run);
        let comes_back = entry.key.source == Source::Waiting && listed.is_none_or(|held| held.device.is_none());
        if claimed.contains(&entry.run) || (listed.is_some() && !comes_back) || planned(plan, &entry.run) {
            if entry.key.source == Source::Inbox {
                plan.clashes.push(entry.key.clone());
            }
            continue;
        }
        if let Some(first) = other_run_of_key(entry) {
            plan.changes.push(duplicate(entry, first));
            continue;
        }
        if entry.cause() == Cause::Idle && (!seen.quiet || plan.claims_work()) {
            continue;
        }
        if entry.key.source == Source::Due {
            if !is_wanted(state, plan, seen, entry, job) {
                continue;
            }
            let is_lost = crate::planted!(LoseDueTime) && entry.run.time().timestamp() % 5 == 0;
            if seen.spent.contains(&entry.run) || is_lost {
                let at = entry.run.time();
                plan.changes
                    .push(pass(entry, if entry.cause() == Cause::Job { Note::Claimed(at) } else { Note::Due(at) }));
                continue;
            }
        }
        let mut candidate = candidate;
        if job.overlap != Overlap::Allow
            && !crate::planted!(IgnoreOverlap)
            && !entry.cause().is_lasting()
            && let Some(open) = open_run(plan, &job.name, &entry.run)
        {
            if job.overlap == Overlap::Skip && was_open(state, &open, entry) {
                plan.changes.push(pass(entry, Note::Skipped(entry.run.time())));
                continue;
            }
            if job.overlap == Overlap::Skip && is_asked_for(entry) {
                let error = format!("another run of {} was open", job.name);
                plan.changes.push(end(seen, entry, priority, Status::Skipped, 0, Some(error)));
                continue;
            }
            // The open run itself may be what waits, behind this one.
            ordered.leave(group);
            match seen.queue.comeback(&open).filter(|_| !planned(plan, &open)) {
                Some(comeback) => candidate = comeback,
                None => continue,
            }
        }
        let Candidate { entry, job, .. } = candidate;
        if job.pool.as_ref().is_some_and(|pool| !has_room(plan, seen, pool)) {
            ordered.leave(group);
            continue;
        }
        let since = candidate.since + placement.wait(candidate);
        if since > seen.now.boot {
            plan.wake(since);
            continue;
        }
        if job.slots > 0 && (is_reserved || i64::from(job.slots) > free + i64::from(crate::planted!(ClaimOverSlots))) {
            ordered.leave(group);
            // What is behind it passes, unless this device reserves what it has free.
            if !is_reserved && free > 0 {
                let rooms = rooms.get_or_insert_with(|| rooms_of(state, seen));
                let turn = reserve::turn(entry, job, rooms, seen.now.wall);
                if let Some(turn) = turn.filter(|turn| *turn.device == seen.me.device) {
                    is_reserved = true;
                    plan.wake(seen.now.boot + (turn.until - seen.now.wall).to_std().unwrap_or_default());
                }
            }
            if is_reserved || free <= 0 {
                ordered.leave_all_but_choosy();
            }
            continue;
        }
        free -= i64::from(job.slots);
        claimed.insert(entry.run.clone());
        plan.changes.push(take(seen, candidate, group));
        placement.add(plan);
    }
}

fn take(seen: &Observation, candidate: Candidate<'_>, group: &Group) -> Change {
    let Candidate { entry, job, priority, .. } = candidate;
    let mut moves = Vec::with_capacity(2);
    moves.push(take_move(entry, &job.name));
    let mut notes = Vec::new();
    if entry.key.source == Source::Due && entry.cause() == Cause::Schedule {
        notes.push((job.name.clone(), Note::Due(entry.run.time())));
    }
    if group.job.is_some() && !job.after.is_empty() {
        notes.push((job.name.clone(), Note::Claimed(entry.run.time())));
    }
    moves.extend(key_move(entry));
    let held = Held {
        job: job.name.clone(),
        stem: entry.stem(),
        cause: entry.cause(),
        trigger: entry.dropped_name(),
        attempt: entry.attempt,
        device: Some(seen.me.device.clone()),
        session: Some(seen.me.session.clone()),
        priority,
        slots: job.slots,
        pool: job.pool.clone(),
        only_on: entry.trigger.only_on(),
        // File times are coarser than clocks: nothing is claimed before it was dropped.
        claimed_at: seen.now.wall.max(entry.run.time().min(seen.now.wall + TimeDelta::seconds(1))),
        command: group.job.is_none(),
        fail_if_lost: job.on_lost == OnLost::Fail,
        listed: group.job.is_some() && (job.overlap != Overlap::Allow || entry.cause().is_lasting()),
        retried: entry.retried(),
        losses: entry.losses(),
        extra: std::collections::BTreeMap::new(),
    };
    Change {
        matter: Matter::Claimed(Arc::clone(entry)),
        run: entry.run.clone(),
        moves,
        entry: Some(Arc::new(held)),
        notes,
    }
}

/// A due time that makes no run: its job only remembers it.
fn pass(entry: &Arc<Entry>, note: Note) -> Change {
    let notes = vec![(job_name(entry), note)];
    Change { matter: Matter::Passed(Arc::clone(entry)), run: entry.run.clone(), moves: Vec::new(), entry: None, notes }
}

/// The room of this device, and of the others that take work.
fn rooms_of<'a>(state: &State, seen: &'a Observation) -> Vec<Room<'a>> {
    let me = &seen.me;
    let others = seen.devices.alive(seen.now.boot).map(|peer| &peer.beat);
    let others = others.filter(|beat| beat.device != me.device && beat.takes_work());
    let others = others.map(|beat| (&beat.device, &beat.tags, beat.slots));
    reserve::rooms(state, others.chain([(&me.device, &me.tags, me.slots)]))
}

/// Whether somebody asked for this run, or another's end did, and it has not begun.
fn is_asked_for(entry: &Entry) -> bool {
    match entry.key.source {
        Source::Inbox => true,
        Source::Waiting => entry.cause() == Cause::Job && entry.attempt == 1,
        Source::Due => false,
    }
}

/// Whether a run was open already when another one came due. One that was claimed since is its own missed time made up for.
fn was_open(state: &State, open: &RunId, due: &Entry) -> bool {
    let claimed = state.runs.get(open).map(|held| held.claimed_at);
    due.cause() == Cause::Schedule && due.key.source == Source::Due && claimed.is_some_and(|at| at <= due.run.time())
}

/// Whether one more run of a pool may be claimed. A pool that nobody gave a size has none.
fn has_room(plan: &Plan, seen: &Observation, pool: &PoolName) -> bool {
    let taken = plan.changes.open_after().in_pool(pool);
    seen.catalog.pools.get(pool).is_some_and(|size| taken < *size as usize)
}

fn key_move(entry: &Entry) -> Option<Move> {
    let id = entry.trigger.id.clone()?;
    let is_free = |seen: &&KeySeen| !matches!(seen, KeySeen::Names(_)) && !crate::planted!(DropKeys);
    let seen = entry.key_seen.as_deref().filter(is_free)?.clone();
    let (from, stem) = (entry.key.clone(), entry.stem());
    Some(Move::Key { id, from, stem, lease: entry.lease(), job: job_name(entry), seen })
}

/// The run that has the entry's idempotency key, if it is another.
fn other_run_of_key(entry: &Entry) -> Option<&RunId> {
    match entry.key_seen.as_deref()? {
        KeySeen::Names(first) if *first != entry.run && !crate::planted!(DropKeys) => Some(first),
        KeySeen::Names(_) | KeySeen::Free | KeySeen::Stale(_) => None,
    }
}

fn take_move(entry: &Entry, job: &JobName) -> Move {
    if entry.key.source == Source::Due {
        return Move::Make { run: entry.run.clone(), job: job.clone(), text: entry.trigger.own_text() };
    }
    Move::Take {
        from: entry.key.clone(),
        expect: entry.id,
        lease: entry.lease(),
        stem: entry.stem(),
        job: job.clone(),
        fresh: entry.key.source == Source::Inbox,
    }
}

fn duplicate(entry: &Arc<Entry>, first: &RunId) -> Change {
    let (run, stem) = (entry.run.clone(), entry.stem());
    let moves = vec![Move::Duplicate { from: entry.key.clone(), run: run.clone(), stem, first: first.clone() }];
    Change { matter: Matter::Ended(Arc::clone(entry)), run, moves, entry: None, notes: Vec::new() }
}

/// Ends what waits, without an attempt of its own. It passes `.running` like every other run, so that one rule heals
/// whatever a crash leaves behind.
fn end(
    seen: &Observation,
    entry: &Arc<Entry>,
    priority: i16,
    status: Status,
    attempt: u32,
    error: Option<String>,
) -> Change {
    let job = job_name(entry);
    let outcome = unstarted(seen, entry, priority, status, attempt, error);
    let mut moves = vec![take_move(entry, &job)];
    moves.extend(key_move(entry));
    let note = ended(&outcome);
    let keep = entry.cause().is_dropped();
    let (lease, stem, has_more) = (entry.lease(), entry.stem(), entry.is_outline);
    moves.push(Move::EndUnstarted { outcome: Box::new(outcome), lease, stem, keep, has_more });
    let notes = match &entry.trigger.target {
        Target::Job(name) if seen.catalog.jobs.contains_key(name) => vec![(name.clone(), note)],
        Target::Job(_) | Target::Command(_) => Vec::new(),
    };
    Change { matter: Matter::Ended(Arc::clone(entry)), run: entry.run.clone(), moves, entry: None, notes }
}

/// Ends the runs of daemons and idle jobs that wait for another attempt and are not wanted any more.
pub fn retire(state: &State, seen: &Observation, plan: &mut Plan) {
    if !seen.taking || is_rebuilding(state, plan) {
        return;
    }
    // Who does not find itself among the devices does not know them.
    let knows_devices = seen.devices.is_known(&seen.me.device);
    let forgotten = |device: Option<&DeviceId>| {
        let device = device.filter(|device| knows_devices && !seen.devices.is_known(device))?;
        Some(format!("its device {device} was forgotten"))
    };
    // A file that the state does not list, of a job or for a device that is gone by now.
    for (entry, _) in seen.queue.comebacks().filter(|(entry, _)| entry.cause().is_lasting()) {
        let name = job_name(entry);
        let deleted = seen.catalog.lacks(&name).then(|| format!("its job {name} was deleted"));
        let why = deleted.or_else(|| forgotten(entry.trigger.only_on().as_ref()));
        if why.is_some() && !is_open(state, plan, &entry.run) && !seen.defers(&entry.run) {
            plan.changes.push(end(seen, entry, 0, Status::Cancelled, 0, why));
        }
    }
    for (run, held) in state.runs.waiting().filter(|(_, held)| held.cause.is_lasting()) {
        let Some(entry) = seen.queue.waiting_entry(run).filter(|_| !planned(plan, run) && !seen.defers(run)) else {
            continue;
        };
        let why = unwanted(state, &seen.catalog, run, held).or_else(|| forgotten(held.only_on.as_ref()));
        if let Some(why) = why {
            plan.changes.push(end(seen, entry, held.priority, Status::Cancelled, 0, Some(why)));
        }
    }
}

/// The change that ends what waits because a person asked for it.
#[must_use]
pub fn cancel_waiting(seen: &Observation, entry: &Arc<Entry>) -> Change {
    let priority = entry.trigger.priority.unwrap_or(0);
    end(seen, entry, priority, Status::Cancelled, 0, Some("cancelled while it waited".to_owned()))
}

/// The result of a run that ends without an attempt.
fn unstarted(
    seen: &Observation,
    entry: &Entry,
    priority: i16,
    status: Status,
    attempt: u32,
    error: Option<String>,
) -> Outcome {
    let job = match &entry.trigger.target {
        Target::Job(name) => seen.catalog.jobs.get(name),
        Target::Command(_) => None,
    };
    let (args, kwargs) = match job {
        Some(job) => (merge_args(job, &entry.trigger), merge_kwargs(job, &entry.trigger)),
        None => (entry.trigger.args.clone().unwrap_or_default(), entry.trigger.kwargs.clone()),
    };
    Outcome {
        schema: SCHEMA,
        run_id: entry.run.clone(),
        job: job_name(entry),
        attempt,
        device: seen.me.device.clone(),
        executor: None,
        cause: entry.cause(),
        trigger: entry.dropped_name(),
        args,
        kwargs,
        priority,
        status,
        is_final: true,
        exit_code: None,
        signal: None,
        error,
        result: None,
        result_error: None,
        created_at: entry.run.time(),
        claimed_at: None,
        started_at: None,
        // File times are finer than what a device knows of them.
        finished_at: seen.now.wall.max(entry.run.time().min(seen.now.wall + TimeDelta::seconds(1))),
        duration_ms: None,
        usage: None,
        log: None,
        log_truncated: false,
        retried: entry.retried(),
        losses: 0,
    }
}

/// The slots that this device's runs take once the plan has happened, those of an earlier life included.
fn busy(seen: &Observation, plan: &Plan) -> u32 {
    plan.changes.open_after().load(&seen.me.device).slots
}

fn planned(plan: &Plan, run: &RunId) -> bool {
    plan.concerns(run)
}

fn is_open(state: &State, plan: &Plan, run: &RunId) -> bool {
    state.runs.contains_key(run) || planned(plan, run)
}

/// Another run of the job that is open once the plan has happened.
pub(super) fn open_run(plan: &Plan, job: &JobName, run: &RunId) -> Option<RunId> {
    let mut same = plan.changes.open_after().of_job(job);
    same.find(|(other, held)| !held.command && *other != run).map(|(other, _)| other.clone())
}

/// After a lost state nothing is claimed until every living device has put back what it holds.
fn is_rebuilding(state: &State, plan: &Plan) -> bool {
    state.rebuilt.is_some() && !plan.rebuilt
}
