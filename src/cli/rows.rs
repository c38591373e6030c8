//! Runs in rows: `orchestrator runs list`, and what `status` shows of them.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use clap::Args;
use serde::Serialize;

use super::find::Run;
use super::out::{Cell, Paint};
use super::times::{When, between, short, when};
use super::view::{self, Lies};
use super::{Code, Context, Failure};
use crate::decide::queue::job_name;
use crate::model::entry::Entry;
use crate::model::ids::{DeviceId, JobName, RunId};
use crate::model::result::{Cause, Outcome, Status};
use crate::model::state::Held;
use crate::model::time::{utc, utc_opt};
use crate::volume::results::{self, Named};

/// Options of `runs list`.
#[derive(Debug, Clone, Args)]
pub(super) struct ListArgs {
    /// Only of this job.
    #[arg(long, value_name = "J")]
    job: Option<JobName>,
    /// Only with this status.
    #[arg(long, value_name = "S", value_parser = STATUSES)]
    status: Option<String>,
    /// Only on this device.
    #[arg(long, value_name = "D")]
    device: Option<DeviceId>,
    /// Only dropped since this time, or since this long ago.
    #[arg(long, value_name = "T", value_parser = when)]
    since: Option<When>,
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
}

/// Every word that `--status` takes.
const STATUSES: [&str; 10] =
    ["waiting", "active", "succeeded", "failed", "timed_out", "cancelled", "expired", "skipped", "lost", "superseded"];

/// One run in a list (`formats.md`, "JSON shapes").
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) run_id: RunId,
    pub(super) job: JobName,
    pub(super) status: &'static str,
    pub(super) attempt: u32,
    pub(super) device: Option<DeviceId>,
    pub(super) cause: Cause,
    pub(super) trigger: Option<String>,
    #[serde(with = "utc")]
    pub(super) created_at: DateTime<Utc>,
    /// Of an active run only its device knows it before its end; `claimed_at` is what everybody knows.
    #[serde(with = "utc_opt")]
    pub(super) started_at: Option<DateTime<Utc>>,
    #[serde(with = "utc_opt")]
    pub(super) finished_at: Option<DateTime<Utc>>,
    #[serde(with = "utc_opt")]
    pub(super) claimed_at: Option<DateTime<Utc>>,
    pub(super) error: Option<String>,
}

impl Row {
    pub(super) fn of_waiting(entry: &Entry) -> Self {
        Self {
            run_id: entry.run.clone(),
            job: job_name(entry),
            status: "waiting",
            attempt: entry.attempt,
            device: None,
            cause: entry.cause(),
            trigger: entry.dropped_name(),
            created_at: entry.run.time(),
            started_at: None,
            finished_at: None,
            claimed_at: None,
            error: None,
        }
    }

    pub(super) fn of_held(id: &RunId, held: &Held) -> Self {
        let is_active = held.device.is_some();
        Self {
            run_id: id.clone(),
            job: held.job.clone(),
            status: if is_active { "active" } else { "waiting" },
            attempt: held.attempt,
            device: held.device.clone(),
            cause: held.cause,
            trigger: held.trigger.clone(),
            created_at: id.time(),
            started_at: None,
            finished_at: None,
            claimed_at: is_active.then_some(held.claimed_at),
            error: None,
        }
    }

    pub(super) fn of_result(outcome: &Outcome) -> Self {
        Self {
            run_id: outcome.run_id.clone(),
            job: outcome.job.clone(),
            status: outcome.status.as_str(),
            attempt: outcome.attempt,
            device: Some(outcome.device.clone()),
            cause: outcome.cause,
            trigger: outcome.trigger.clone(),
            created_at: outcome.created_at,
            started_at: outcome.started_at,
            finished_at: Some(outcome.finished_at),
            claimed_at: outcome.claimed_at,
            error: outcome.error.clone(),
        }
    }

    /// The status in its colour.
    pub(super) fn status_cell(&self) -> Cell {
        Cell::painted(self.status, paint(self.status))
    }

    /// The device that had it. Who ended it while it waited did not have it.
    pub(super) fn device_name(&self) -> &str {
        self.device.as_ref().filter(|_| self.attempt > 0).map_or("-", DeviceId::as_str)
    }

    /// How long it took, or has taken.
    fn took(&self, now: DateTime<Utc>) -> String {
        match (self.started_at.or(self.claimed_at), self.finished_at) {
            (Some(from), Some(to)) => between(from, to),
            (Some(from), None) => between(from, now),
            (None, _) => String::new(),
        }
    }
}

pub(super) fn paint(status: &str) -> Paint {
    match status {
        "succeeded" => Paint::Green,
        "waiting" | "active" => Paint::Yellow,
        "cancelled" | "skipped" | "superseded" => Paint::Dim,
        _ => Paint::Red,
    }
}

impl ListArgs {
    fn limits_nothing(&self) -> bool {
        self.job.is_none() && self.status.is_none() && self.device.is_none() && self.since.is_none()
    }

    fn takes_run(&self, id: &RunId, job: &JobName, since: Option<DateTime<Utc>>) -> bool {
        self.job.as_ref().is_none_or(|wanted| wanted == job) && since.is_none_or(|since| id.time() >= since)
    }

    fn takes_row(&self, row: &Row) -> bool {
        self.status.as_ref().is_none_or(|wanted| wanted == row.status)
            && self.device.as_ref().is_none_or(|wanted| Some(wanted) == row.device.as_ref())
    }
}

pub(super) fn list(args: &ListArgs, context: &Context) -> Result<Code, Failure> {
    let now = context.now().wall;
    let since = args.since.map(|since| since.ago(now));
    let mut rows: BTreeMap<RunId, Row> = BTreeMap::new();
    // In the order in which a run moves: what is seen twice counts where it was seen last.
    for (_, lies) in view::waiting(context)? {
        match lies {
            Lies::Waits(entry) => rows.insert(entry.run.clone(), Row::of_waiting(&entry)),
            Lies::Refused(..) | Lies::Unfinished => None,
        };
    }
    if let Some(state) = view::state(context)? {
        for (id, held) in &state.runs {
            // Listed while it waits: its file says more.
            if held.device.is_some() || !rows.contains_key(id) {
                rows.insert(id.clone(), Row::of_held(id, held));
            }
        }
    }
    let open: Vec<RunId> = rows.keys().cloned().collect();
    rows.retain(|id, row| args.takes_run(id, &row.job, since) && args.takes_row(row));
    let is_open = |id: &RunId| open.binary_search(id).is_ok();
    for row in past(context, args, since, is_open)? {
        rows.insert(row.run_id.clone(), row);
    }
    let rows: Vec<Row> = rows.into_values().rev().take(args.limit).collect();
    if context.out.json {
        context.out.document(&rows)?;
        return Ok(Code::Done);
    }
    if rows.is_empty() {
        let hint = if args.limits_nothing() { "there is no run yet" } else { "no run is like that" };
        context.out.note(hint);
        return Ok(Code::Done);
    }
    table(context, &rows, now)?;
    Ok(Code::Done)
}

/// Runs that are over, newest first, as many as are asked for. Names tell run and job, so that few results are read.
fn past(
    context: &Context,
    args: &ListArgs,
    since: Option<DateTime<Utc>>,
    is_open: impl Fn(&RunId) -> bool,
) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    let wants_open = matches!(args.status.as_deref(), Some("waiting" | "active"));
    let first_day = since.map(|since| since.format("%Y-%m-%d").to_string());
    for day in results::days(&*context.disk, &context.layout)? {
        if wants_open || rows.len() >= args.limit || first_day.as_ref().is_some_and(|first| day < *first) {
            break;
        }
        for run in by_run(results::of_day(&*context.disk, &context.layout, &day)?).into_iter().rev() {
            if rows.len() >= args.limit {
                break;
            }
            if is_open(&run.id) || !args.takes_run(&run.id, &run.job, since) {
                continue;
            }
            let last = match run.final_result(context)? {
                Some(outcome) => Some(outcome),
                None => run.outcomes(context)?.pop(),
            };
            rows.extend(last.map(|outcome| Row::of_result(&outcome)).filter(|row| args.takes_row(row)));
        }
    }
    Ok(rows)
}

/// The results of a day, run by run, oldest first.
fn by_run(named: Vec<Named>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    // They come in the order of runs, then attempts.
    for named in named {
        match runs.last_mut() {
            Some(run) if run.id == named.run => run.results.push(named),
            Some(_) | None => runs.push(Run {
                id: named.run.clone(),
                job: named.job.clone(),
                held: None,
                entry: None,
                results: vec![named],
            }),
        }
    }
    runs
}

/// The rows as people read them.
pub(super) fn table(context: &Context, rows: &[Row], now: DateTime<Utc>) -> Result<(), Failure> {
    let cells: Vec<[Cell; 7]> = rows
        .iter()
        .map(|row| {
            [
                Cell::new(row.run_id.as_str()),
                Cell::new(row.job.as_str()),
                row.status_cell(),
                Cell::new(row.attempt.to_string()),
                Cell::new(row.device_name()),
                Cell::new(short(row.created_at, now)),
                Cell::new(row.took(now)),
            ]
        })
        .collect();
    context.out.table(["RUN", "JOB", "STATUS", "ATTEMPT", "DEVICE", "CREATED", "TOOK"], &cells)
}

/// Runs that failed since then, newest first, among the newest `limit` runs; and whether these were all.
pub(super) fn failed_since(context: &Context, since: DateTime<Utc>, limit: usize) -> Result<(Vec<Row>, bool), Failure> {
    let mut rows = Vec::new();
    let mut looked = 0;
    // A run is filed under the day it was dropped: one that took more than a day before it failed is not looked for.
    let first_day = (since - chrono::TimeDelta::days(1)).format("%Y-%m-%d").to_string();
    for day in results::days(&*context.disk, &context.layout)?.into_iter().take_while(|day| *day >= first_day) {
        for run in by_run(results::of_day(&*context.disk, &context.layout, &day)?).into_iter().rev() {
            if looked >= limit {
                return Ok((rows, false));
            }
            looked += 1;
            let Some(outcome) = run.final_result(context)? else {
                continue;
            };
            let failed = match outcome.status {
                Status::Failed | Status::TimedOut | Status::Lost | Status::Expired => true,
                Status::Succeeded | Status::Cancelled | Status::Skipped | Status::Superseded => false,
            };
            if failed && outcome.finished_at >= since {
                rows.push(Row::of_result(&outcome));
            }
        }
    }
    Ok((rows, true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn results_of_a_day_are_gathered_by_run() {
        let name = |text: &str| results::parse_name(OsStr::new(text), "json").unwrap();
        let named = vec![
            name("a.20261121T034156123Z-000001.1.json"),
            name("a.20261121T034156123Z-000001.2.json"),
            name("b.20261121T034156123Z-000002.0.json"),
        ];
        let runs = by_run(named);
        let shape: Vec<_> =
            runs.iter().map(|run| (run.job.as_str(), run.results.len(), run.newest_attempt())).collect();
        assert_eq!(shape, [("a", 2, 2), ("b", 1, 0)]);
    }

    #[test]
    fn every_status_can_be_asked_for() {
        let all = [
            Status::Succeeded,
            Status::Failed,
            Status::TimedOut,
            Status::Cancelled,
            Status::Expired,
            Status::Skipped,
            Status::Lost,
            Status::Superseded,
        ];
        assert!(all.iter().all(|status| STATUSES.contains(&status.as_str())));
    }
}
