//! An attempt ended: what that makes of its run.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::attempts::LocalAttempt;
use super::catalog::{Catalog, Known};
use super::chain::follow;
use super::marks::over;
use super::plan::{Change, Matter, Move, Observation, Plan};
use crate::model::config::LOSSES_IN_A_ROW;
use crate::model::device::Me;
use crate::model::ids::{RunId, mix};
use crate::model::job::{Job, UNLIMITED};
use crate::model::lease::Lease;
use crate::model::result::{Cause, Outcome, Status, Usage};
use crate::model::state::{Held, SCHEMA, State};
use crate::model::time::Moment;
use crate::model::trigger::{Json, Target};

#[cfg(test)]
mod tests;

/// How long a daemon must live for its next end to count as the first.
const HEALTHY: Duration = Duration::from_secs(60);

/// Whether the run of an attempt that was stopped goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoesOn {
    /// It does not, or what the program came to says whether it does.
    No,
    /// With another attempt, by whoever takes it.
    Anywhere,
    /// With another attempt, at once and where it was.
    Here,
}

/// How a program ended, as this device saw it.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// `succeeded`, `failed`, `timed_out`; `cancelled` if it was stopped from outside.
    pub status: Status,
    /// It was stopped so that its run goes on: not final, no backoff.
    pub goes_on: GoesOn,
    /// The exit code, if it exited.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What went wrong.
    pub error: Option<String>,
    /// What it reported.
    pub result: Option<Json>,
    /// Why there is no `result` although one was written.
    pub result_error: Option<String>,
    /// When its process was started.
    pub started_at: Option<DateTime<Utc>>,
    /// When its end was seen.
    pub finished_at: DateTime<Utc>,
    /// From start to end.
    pub duration: Duration,
    /// What it used.
    pub usage: Option<Usage>,
    /// Its log, relative to `Common/`.
    pub log: Option<String>,
    /// Whether the log was cut.
    pub log_truncated: bool,
}

impl Report {
    /// Of an attempt whose program was never started.
    #[must_use]
    pub fn unstarted(status: Status, error: String, at: DateTime<Utc>) -> Self {
        Self {
            status,
            goes_on: GoesOn::No,
            exit_code: None,
            signal: None,
            error: Some(error),
            result: None,
            result_error: None,
            started_at: None,
            finished_at: at,
            duration: Duration::ZERO,
            usage: None,
            log: None,
            log_truncated: false,
        }
    }
}

/// Why a run whose attempt was lost ends with that.
const VANISHED: &str = "; its trigger's file has vanished from .running, so that it cannot run again";
const NO_RERUN: &str = "; on_lost = \"fail\" forbids another attempt";
const TOO_OFTEN: &str = "; it is the third in a row that was lost";

/// What comes after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing: the run is over.
    Over,
    /// Another attempt.
    Again {
        /// Not before this instant.
        not_before: DateTime<Utc>,
        /// How many attempts have then been tried again for a failure.
        retried: u32,
    },
    /// Another attempt, at once and on this device.
    Here,
}

/// What an attempt is judged by beside how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Circumstances {
    /// Somebody asked for the end of the run.
    pub cancel_asked: bool,
    /// The trigger's file has vanished: it is made anew if another attempt follows.
    pub gone: bool,
    /// Another attempt could be made on this device at once.
    pub may_stay: bool,
}

/// An attempt of this device that is over, its result staged.
#[derive(Debug, Clone)]
pub struct Ended {
    /// What it came to, as it will stand in `Results/`.
    pub outcome: Outcome,
    /// What comes after it.
    pub next: Next,
    /// The entry it has, or had, in the state.
    pub held: Arc<Held>,
    /// What it was judged by.
    pub by: Circumstances,
    /// The content of the run's file, where it has vanished and another attempt follows.
    pub remade: Option<String>,
    /// Its files are where they belong; only the commit that says so failed.
    pub published: bool,
    /// How the program ended, should it have to be judged again.
    pub report: Report,
}

/// Judges an attempt: its result, and whether the run goes on.
#[must_use]
pub fn judge(mine: &LocalAttempt, report: &Report, me: &Me, by: Circumstances, now: Moment) -> Ended {
    let Circumstances { cancel_asked, gone, .. } = by;
    let wanted = after(mine, report, Circumstances { may_stay: by.may_stay && !gone, ..by }, now);
    // A command's container is not written down anew.
    let is_stuck = gone && !matches!(mine.trigger.target, Target::Job(_));
    let next = if is_stuck { Next::Over } else { wanted };
    let stopped = report.goes_on != GoesOn::No;
    let mut status = report.status;
    let mut error = report.error.clone();
    if next == Next::Over && stopped && !gone && !cancel_asked {
        error = Some("its device left, and on_lost = \"fail\" forbids another attempt".to_owned());
    }
    if is_stuck && stopped {
        error = Some("it was stopped, and its trigger's file has vanished from .running".to_owned());
    }
    if is_stuck && status != Status::Lost && !stopped && wanted != Next::Over {
        error = error.map(|error| error + VANISHED);
    }
    if cancel_asked && status != Status::Succeeded {
        status = Status::Cancelled;
    }
    let losses = if status == Status::Lost { losses_after(mine, report) } else { 0 };
    if status == Status::Lost && next == Next::Over {
        let why = match (is_stuck, mine.held.fail_if_lost) {
            (true, _) => VANISHED,
            (false, true) => NO_RERUN,
            (false, false) => TOO_OFTEN,
        };
        error = error.map(|error| error + why);
    }
    let outcome = Outcome {
        schema: SCHEMA,
        run_id: mine.run.clone(),
        job: mine.held.job.clone(),
        attempt: mine.held.attempt,
        device: me.device.clone(),
        executor: Some(mine.job.executor().to_owned()),
        cause: mine.held.cause,
        trigger: mine.held.trigger.clone(),
        args: mine.args.clone(),
        kwargs: mine.kwargs.clone(),
        priority: mine.held.priority,
        status,
        is_final: next == Next::Over,
        exit_code: report.exit_code,
        signal: report.signal,
        error,
        result: report.result.clone(),
        result_error: report.result_error.clone(),
        created_at: mine.run.time(),
        claimed_at: Some(mine.held.claimed_at),
        started_at: report.started_at,
        // The machine's clocks are read one after the other.
        finished_at: report.finished_at.max(mine.run.time()),
        duration_ms: report.started_at.map(|_| (report.duration.as_secs_f64() * 1e6).round() / 1e3),
        usage: report.usage,
        log: report.log.clone(),
        log_truncated: report.log_truncated,
        retried: mine.held.retried,
        losses,
    };
    let remade = (gone && next != Next::Over).then(|| mine.trigger.own_text());
    Ended { outcome, next, held: Arc::clone(&mine.held), by, remade, published: false, report: report.clone() }
}

/// What needs no backoff may start at once: its time is the run's own, which has passed on every device's clock.
fn after(mine: &LocalAttempt, report: &Report, by: Circumstances, now: Moment) -> Next {
    let is_daemon = mine.held.cause == Cause::Always;
    let retried = retried_before(mine.held.cause, mine.held.retried, report.duration);
    if by.cancel_asked {
        return Next::Over;
    }
    let at_once = Next::Again { not_before: mine.run.time(), retried };
    match report.goes_on {
        GoesOn::Here if by.may_stay => return Next::Here,
        // Somebody asked for it: that is another matter than a device that leaves.
        GoesOn::Here => return at_once,
        GoesOn::Anywhere if mine.held.fail_if_lost && report.started_at.is_some() => return Next::Over,
        GoesOn::Anywhere => return at_once,
        GoesOn::No => {}
    }
    let is_unlimited = mine.job.retries == UNLIMITED && !is_daemon;
    let retries = if crate::planted!(EndEarly) || is_unlimited { 0 } else { mine.job.retries };
    let again = || {
        let wait = backoff(&mine.job, retried, &mine.run);
        Next::Again { not_before: now.wall + wait, retried: retried.saturating_add(1) }
    };
    match report.status {
        Status::Lost if mine.held.fail_if_lost || losses_after(mine, report) >= LOSSES_IN_A_ROW => Next::Over,
        Status::Lost => at_once,
        Status::Failed | Status::TimedOut if retried < retries && is_retried(&mine.job, report) => again(),
        Status::Succeeded if is_daemon => again(),
        Status::Failed
        | Status::TimedOut
        | Status::Succeeded
        | Status::Cancelled
        | Status::Expired
        | Status::Skipped
        | Status::Superseded => Next::Over,
    }
}

/// How many attempts in a row were lost with this one.
fn losses_after(mine: &LocalAttempt, report: &Report) -> u32 {
    retried_before(mine.held.cause, mine.held.losses, report.duration) + 1
}

/// Whether the next attempt of a run of this device can be made where the last one was: by the job as it is now, in the slots that
/// it holds already. A device without slots starts nothing.
#[must_use]
pub fn fits_here(mine: &LocalAttempt, catalog: &Catalog, me: &Me) -> bool {
    if me.slots == 0 {
        return false;
    }
    if mine.held.command {
        return true;
    }
    match catalog.look_up(&mine.held.job) {
        Known::Good(job) => job.enabled && job.tags.is_subset(&me.tags) && job.slots <= mine.held.slots,
        Known::Broken | Known::Unknown => false,
    }
}

/// How many attempts count as tried again before one that lived so long: a daemon that lived well begins anew.
#[must_use]
pub fn retried_before(cause: Cause, retried: u32, lived: Duration) -> u32 {
    if cause == Cause::Always && lived >= HEALTHY { 0 } else { retried }
}

/// A timeout counts as exit code 124, a signal n as 128 + n, as shells have it.
fn is_retried(job: &Job, report: &Report) -> bool {
    let Some(codes) = &job.retry_on else { return true };
    let code = match report.status {
        Status::TimedOut => Some(124),
        Status::Failed
        | Status::Succeeded
        | Status::Cancelled
        | Status::Expired
        | Status::Skipped
        | Status::Lost
        | Status::Superseded => report.exit_code.or(report.signal.map(|signal| 128 + signal)),
    };
    code.is_some_and(|code| codes.contains(&code))
}

/// The wait before the attempt after `retried` + 1 failures: doubling, capped, ±10 % by a hash, so that it is the same for everybody and not
/// the same for every run.
#[must_use]
pub fn backoff(job: &Job, retried: u32, run: &RunId) -> TimeDelta {
    let doubled = job.backoff.saturating_mul(1_u32.checked_shl(retried.min(30)).unwrap_or(u32::MAX));
    let capped = doubled.min(job.backoff_max);
    let hash = mix(u64::from(retried), run.as_str());
    let per_mille = 900 + (hash >> 33) % 201;
    let ms = capped.as_millis() * u128::from(per_mille) / 1_000;
    TimeDelta::milliseconds(i64::try_from(ms).unwrap_or(i64::MAX / 2))
}

/// Accepts the results of this device's attempts, each only if the lease is still its own.
pub fn settle(state: &State, seen: &Observation, plan: &mut Plan) {
    for (lease, ended) in seen.attempts.concluded().filter(|(lease, _)| !seen.defers(&lease.run)) {
        let known = state.runs.get(&lease.run);
        if known.is_some() && !state.names(lease, &seen.me.device, &seen.me.session) {
            plan.fenced.push(lease.clone());
            continue;
        }
        // Asked for since it was judged: it is judged again before it can be accepted.
        if ended.next != Next::Over && state.cancel_asked(&lease.run) && !ended.by.cancel_asked {
            continue;
        }
        plan.changes.push(accept(lease, ended, seen));
    }
}

/// Only where the run's file is still in `.running`: it names the run even where the state was lost or the lock lied.
fn accept(lease: &Lease, ended: &Ended, seen: &Observation) -> Change {
    let (run, stem) = (lease.run.clone(), ended.held.stem.clone());
    let notes = over(&ended.held, &ended.outcome).into_iter().collect();
    let matter = Matter::Settled(lease.clone());
    if ended.published {
        let entry = match ended.next {
            Next::Over => None,
            Next::Again { retried, .. } => waiting(&ended.held, lease.attempt + 1, retried, ended.outcome.losses),
            Next::Here => Some(stays(&ended.held, seen.now.wall)),
        };
        return Change { matter, run, moves: Vec::new(), entry, notes };
    }
    let mut moves = Vec::with_capacity(3);
    match (ended.next, &ended.remade) {
        // Before the result says that the run goes on: whatever is cut off between them leaves a run that does.
        (Next::Again { not_before, .. }, Some(text)) => {
            let (lease, stem, text) = (lease.clone(), stem.clone(), text.clone());
            moves.push(Move::Remake { lease, stem, not_before, text });
        }
        (_, _) if ended.by.gone => {}
        (_, _) => moves.push(Move::Expect { lease: lease.clone(), stem: stem.clone() }),
    }
    moves.push(Move::Publish { job: ended.held.job.clone(), lease: lease.clone() });
    let entry = match ended.next {
        Next::Over => {
            if !ended.held.command {
                let Outcome { status, finished_at, .. } = ended.outcome;
                moves.extend(follow(&seen.catalog, &ended.held.job, lease, status, finished_at));
            }
            moves.push(Move::Retire { lease: lease.clone(), stem, keep: ended.held.cause.is_dropped() });
            None
        }
        Next::Here => {
            moves.push(Move::Renew { lease: lease.clone(), stem });
            Some(stays(&ended.held, seen.now.wall))
        }
        Next::Again { not_before, retried } => {
            if ended.remade.is_none() {
                moves.push(Move::Wait { lease: lease.clone(), stem, not_before });
            }
            waiting(&ended.held, lease.attempt + 1, retried, ended.outcome.losses)
        }
    };
    Change { matter, run, moves, entry, notes }
}

/// The entry of a run whose next attempt begins at once, where the last one was.
fn stays(held: &Held, now: DateTime<Utc>) -> Arc<Held> {
    Arc::new(Held { attempt: held.attempt + 1, losses: 0, claimed_at: now, ..held.clone() })
}

/// The entry of a run while it waits: only where overlap must be judged.
#[must_use]
pub fn waiting(held: &Held, attempt: u32, retried: u32, losses: u32) -> Option<Arc<Held>> {
    held.listed.then(|| Arc::new(Held { attempt, retried, losses, device: None, session: None, ..held.clone() }))
}
