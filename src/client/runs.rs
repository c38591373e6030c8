//! Runs: waiting, active and past ones in rows, and one with its attempts.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::find::{Place, Run, find};
use super::view::{self, Lies};
use super::{Client, Code, Failure};
use crate::decide::explain::{self, Reserved, Scene};
use crate::decide::queue::job_name;
use crate::model::config::TRIGGER_LIMIT;
use crate::model::entry::{Entry, split_dropped};
use crate::model::ids::{DeviceId, JobName, RunId};
use crate::model::lease::Lease;
use crate::model::result::{Cause, Outcome, Status};
use crate::model::state::Held;
use crate::model::time::{utc, utc_opt};
use crate::model::trigger::{Target, parse};
use crate::volume::results::{self, Named, names_in};
use crate::volume::{Context as _, found};

/// Every word that a run can be asked for by its status.
pub const STATUSES: [&str; 10] =
    ["waiting", "active", "succeeded", "failed", "timed_out", "cancelled", "expired", "skipped", "lost", "superseded"];

/// Which runs are wanted.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only of this job.
    pub job: Option<JobName>,
    /// Only with this status, one of [`STATUSES`].
    pub status: Option<String>,
    /// Only on this device.
    pub device: Option<DeviceId>,
    /// Only dropped or due since then.
    pub since: Option<DateTime<Utc>>,
    /// Only older than this run.
    pub before: Option<RunId>,
    /// Only of job files: no commands.
    pub jobs_only: bool,
    /// So many runs that are over are looked at; the rest is for the next page.
    pub looks: Option<usize>,
    /// At most so many.
    pub limit: usize,
}

impl Filter {
    /// Whether every run is wanted, as far as `limit` goes.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.job.is_none()
            && self.status.is_none()
            && self.device.is_none()
            && self.since.is_none()
            && self.before.is_none()
    }

    fn takes_run(&self, id: &RunId, job: &JobName) -> bool {
        self.job.as_ref().is_none_or(|wanted| wanted == job)
            && self.since.is_none_or(|since| id.time() >= since)
            && self.before.as_ref().is_none_or(|before| id < before)
    }

    fn takes_row(&self, row: &Row) -> bool {
        self.status.as_ref().is_none_or(|wanted| wanted == row.status)
            && self.device.as_ref().is_none_or(|wanted| Some(wanted) == row.device.as_ref())
    }
}

/// One run in a list (`docs/reference/formats.md`, "JSON shapes").
#[derive(Debug, Serialize)]
pub struct Row {
    /// Its id.
    pub run_id: RunId,
    /// Its job.
    pub job: JobName,
    /// A result's status, `waiting` or `active`.
    pub status: &'static str,
    /// The newest attempt; the next one of a run that waits.
    pub attempt: u32,
    /// Who has it, had it last, or ended it while it waited.
    pub device: Option<DeviceId>,
    /// What made it.
    pub cause: Cause,
    /// The name of the file that was dropped.
    pub trigger: Option<String>,
    /// When it was dropped or due.
    #[serde(with = "utc")]
    pub created_at: DateTime<Utc>,
    /// Of an active run only its device knows it before its end; `claimed_at` is what everybody knows.
    #[serde(with = "utc_opt")]
    pub started_at: Option<DateTime<Utc>>,
    /// When its newest attempt ended.
    #[serde(with = "utc_opt")]
    pub finished_at: Option<DateTime<Utc>>,
    /// When its device took it.
    #[serde(with = "utc_opt")]
    pub claimed_at: Option<DateTime<Utc>>,
    /// Why it did not succeed.
    pub error: Option<String>,
    /// Whether it is a command without a job file; `None`: its trigger tells.
    #[serde(skip)]
    pub command: Option<bool>,
}

impl Row {
    /// Of a file that waits.
    #[must_use]
    pub fn of_waiting(entry: &Entry) -> Self {
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
            command: Some(matches!(entry.trigger.target, Target::Command(_))),
        }
    }

    /// Of an entry of the state.
    #[must_use]
    pub fn of_held(id: &RunId, held: &Held) -> Self {
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
            command: Some(held.command),
        }
    }

    /// Of an attempt that is over.
    #[must_use]
    pub fn of_result(outcome: &Outcome) -> Self {
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
            command: None,
        }
    }
}

/// Everything that waits or is active, by id.
///
/// # Errors
/// Exit code 4.
pub fn open(client: &Client) -> Result<BTreeMap<RunId, Row>, Failure> {
    let mut rows: BTreeMap<RunId, Row> = BTreeMap::new();
    // In the order in which a run moves: what is seen twice counts where it was seen last.
    for (_, lies) in view::waiting(client)? {
        match lies {
            Lies::Waits(entry) => rows.insert(entry.run.clone(), Row::of_waiting(&entry)),
            Lies::Refused(..) | Lies::Unfinished => None,
        };
    }
    if let Some(state) = view::state(client)? {
        for (id, held) in state.runs.iter() {
            // Listed while it waits: its file says more.
            if held.device.is_some() || !rows.contains_key(id) {
                rows.insert(id.clone(), Row::of_held(id, held));
            }
        }
    }
    Ok(rows)
}

/// Whether a run is a command without a job file, which shares nothing with a job of its name. Of one that is over, its trigger
/// tells; what nobody dropped is none.
///
/// # Errors
/// Exit code 4.
pub fn is_command(client: &Client, row: &Row) -> Result<bool, Failure> {
    if let Some(command) = row.command {
        return Ok(command);
    }
    let Some(dropped) = row.trigger.as_deref().filter(|_| row.cause.is_dropped()) else { return Ok(false) };
    let stem = split_dropped(OsStr::new(dropped)).0;
    let name = format!("{stem}.{}.json", row.run_id);
    let path = client.layout.processed().join(row.run_id.date()).join(name);
    let read = found(client.disk.read(&path, TRIGGER_LIMIT)).on("read", &path)?;
    // One that is gone cannot tell: then it may be one.
    Ok(read.is_none_or(|(bytes, _)| parse(&bytes).is_ok_and(|trigger| matches!(trigger.target, Target::Command(_)))))
}

/// The runs that `filter` takes and whose job `allows`, newest first.
///
/// # Errors
/// Exit code 4.
pub fn list(client: &Client, filter: &Filter, allows: &dyn Fn(&JobName) -> bool) -> Result<Vec<Row>, Failure> {
    Ok(page(client, filter, allows)?.0)
}

/// The same, and where the next page begins if the looks were used up before the rows were found.
///
/// # Errors
/// Exit code 4.
pub fn page(
    client: &Client,
    filter: &Filter,
    allows: &dyn Fn(&JobName) -> bool,
) -> Result<(Vec<Row>, Option<RunId>), Failure> {
    let mut rows = open(client)?;
    let open: Vec<RunId> = rows.keys().cloned().collect();
    rows.retain(|id, row| {
        let is_kind = !filter.jobs_only || row.command != Some(true);
        filter.takes_run(id, &row.job) && filter.takes_row(row) && allows(&row.job) && is_kind
    });
    let is_open = |id: &RunId| open.binary_search(id).is_ok();
    let (past, cut) = past(client, filter, allows, is_open)?;
    for row in past {
        rows.insert(row.run_id.clone(), row);
    }
    // What is older than where the looks ended belongs to the next page.
    let rows = rows.into_values().rev().filter(|row| cut.as_ref().is_none_or(|cut| row.run_id >= *cut));
    let rows: Vec<Row> = rows.take(filter.limit).collect();
    let cut = cut.filter(|_| rows.len() < filter.limit);
    Ok((rows, cut))
}

/// Runs that are over, newest first, as many as are asked for. Names tell run and job, so that few results are read.
fn past(
    client: &Client,
    filter: &Filter,
    allows: &dyn Fn(&JobName) -> bool,
    is_open: impl Fn(&RunId) -> bool,
) -> Result<(Vec<Row>, Option<RunId>), Failure> {
    let mut rows = Vec::new();
    let mut looks = filter.looks.unwrap_or(usize::MAX);
    let wants_open = matches!(filter.status.as_deref(), Some("waiting" | "active"));
    let first_day = filter.since.map(|since| since.format("%Y-%m-%d").to_string());
    let last_day = filter.before.as_ref().map(RunId::date);
    for day in results::days(&*client.disk, &client.layout)? {
        if wants_open || rows.len() >= filter.limit || first_day.as_ref().is_some_and(|first| day < *first) {
            break;
        }
        if last_day.as_ref().is_some_and(|last| day > *last) {
            continue;
        }
        for run in by_run(results::of_day(&*client.disk, &client.layout, &day)?).into_iter().rev() {
            if rows.len() >= filter.limit {
                break;
            }
            if is_open(&run.id) || !filter.takes_run(&run.id, &run.job) || !allows(&run.job) {
                continue;
            }
            let last = match run.final_result(client)? {
                Some(outcome) => Some(outcome),
                None => run.newest(client)?,
            };
            if let Some(row) = last.map(|outcome| Row::of_result(&outcome)).filter(|row| filter.takes_row(row))
                && !(filter.jobs_only && is_command(client, &row)?)
            {
                rows.push(row);
            }
            looks -= 1;
            if looks == 0 {
                return Ok((rows, Some(run.id)));
            }
        }
    }
    Ok((rows, None))
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

/// Runs that failed since then, newest first, among the newest `limit` runs; and whether these were all.
///
/// # Errors
/// Exit code 4.
pub fn failed_since(client: &Client, since: DateTime<Utc>, limit: usize) -> Result<(Vec<Row>, bool), Failure> {
    let mut rows = Vec::new();
    let mut looked = 0;
    // A run is filed under the day it was dropped: one that took more than a day before it failed is not looked for.
    let first_day = (since - chrono::TimeDelta::days(1)).format("%Y-%m-%d").to_string();
    for day in results::days(&*client.disk, &client.layout)?.into_iter().take_while(|day| *day >= first_day) {
        for run in by_run(results::of_day(&*client.disk, &client.layout, &day)?).into_iter().rev() {
            if looked >= limit {
                return Ok((rows, false));
            }
            looked += 1;
            let Some(outcome) = run.final_result(client)? else {
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

/// One run with its attempts.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// The run as lists show it.
    #[serde(flatten)]
    pub row: Row,
    /// Why it waits.
    pub reason: Option<String>,
    /// Its attempts that are over, oldest first; of many the newest.
    pub attempts: Vec<Outcome>,
    /// The number of the first of these, if there are some before it.
    pub next: Option<String>,
}

/// Which attempts of a run are to be shown.
#[derive(Debug, Clone, Copy)]
pub struct Attempts {
    /// Only those before this one.
    pub before: Option<u32>,
    /// At most so many, and what has the number of the first.
    pub limit: usize,
}

impl Attempts {
    /// All of them.
    pub const ALL: Self = Self { before: None, limit: usize::MAX };
}

/// Everything that is known of one run.
///
/// # Errors
/// Exit code 3 if there is nothing to show.
pub fn show(client: &Client, name: &str) -> Result<Shown, Failure> {
    shown(client, &find(client, name)?, Attempts::ALL, &|_| true)
}

/// The same of a run that was found, with these attempts; in reasons runs are named of jobs that `sees` lets be seen.
///
/// # Errors
/// Exit code 3 if there is nothing to show.
pub fn shown(client: &Client, run: &Run, wanted: Attempts, sees: &dyn Fn(&JobName) -> bool) -> Result<Shown, Failure> {
    let (attempts, next) = run.attempts(client, wanted)?;
    let row = row(client, run)?;
    let reason = match (&run.entry, row.status) {
        (Some(entry), "waiting") => Some(why(client, entry, sees)?),
        _ => None,
    };
    Ok(Shown { row, reason, attempts, next: next.map(|first| first.to_string()) })
}

/// The row of a run that was found.
///
/// # Errors
/// Exit code 3 if there is nothing to show.
pub fn row(client: &Client, run: &Run) -> Result<Row, Failure> {
    match (run.place(client)?, &run.entry) {
        (Place::Past(outcome), _) => Ok(Row::of_result(&outcome)),
        (Place::Active(held), _) => Ok(Row::of_held(&run.id, &held)),
        (Place::Waiting, Some(entry)) => Ok(Row::of_waiting(entry)),
        (Place::Waiting | Place::Nowhere, _) => {
            let newest = run.newest(client)?.map(|outcome| Row::of_result(&outcome));
            newest.ok_or_else(|| {
                let error = format!("the run {} has left nothing that can be shown", run.id);
                Failure::new(Code::NotFound, error, "try again; it may be on its way between two folders")
            })
        }
    }
}

/// What a file waits for; runs are named of jobs that `sees` lets be seen.
///
/// # Errors
/// Exit code 4.
pub fn why(client: &Client, entry: &Entry, sees: &dyn Fn(&JobName) -> bool) -> Result<String, Failure> {
    let state = view::state(client)?.unwrap_or_default();
    let devices = view::seen(&view::devices(client)?, &state);
    let programs = view::programs(client)?;
    let (catalog, now) = (programs.catalog(), client.now());
    let scene = Scene { catalog, state: &state, devices: &devices, now, reserved: &Reserved::new(), sees };
    let lying = view::waiting(client)?;
    let reserved = explain::reservations(view::entries(&lying), scene);
    Ok(explain::why(entry, Scene { reserved: &reserved, ..scene }))
}

/// The log of an attempt.
#[must_use]
pub fn log_path(client: &Client, run: &Run, attempt: u32) -> std::path::PathBuf {
    client.layout.log(&run.job, &Lease { run: run.id.clone(), attempt })
}

/// The largest attempt that has a log.
///
/// # Errors
/// Exit code 4.
pub fn newest_log(client: &Client, run: &Run) -> Result<Option<u32>, Failure> {
    // Mostly it is that of the newest attempt; listing a day costs more.
    let likely = run.newest_attempt();
    if likely > 0 && has_log(client, run, likely) {
        return Ok(Some(likely));
    }
    let logs = names_in(&*client.disk, &client.layout.logs().join(run.id.date()), "log")?;
    Ok(logs.iter().filter(|named| named.run == run.id).map(|named| named.attempt).max())
}

/// Whether an attempt has a log.
#[must_use]
pub fn has_log(client: &Client, run: &Run, attempt: u32) -> bool {
    found(client.disk.stat(&log_path(client, run, attempt))).is_ok_and(|there| there.is_some())
}

/// Which attempt's log is meant: the one that is asked for, or else the newest.
///
/// # Errors
/// Exit code 1 if no attempt was started, 3 if this one has no log.
pub fn attempt_with_log(client: &Client, run: &Run, asked: Option<u32>) -> Result<u32, Failure> {
    let newest = newest_log(client, run)?;
    let Some(attempt) = asked.or(newest) else {
        if run.newest_attempt() > 0 {
            let error = format!("the log of the run {} is gone", run.id);
            return Err(Failure::new(Code::NotFound, error, "logs are kept for --keep, and stand in no backup"));
        }
        let error = format!("the run {} has no log: no attempt of it was started", run.id);
        let hint = format!("`orchestrator runs show {}` says why; -f waits for it", run.id);
        return Err(Failure::new(Code::Failed, error, hint));
    };
    if !has_log(client, run, attempt) {
        let hint = newest.map_or_else(
            || "no attempt of it was started".to_owned(),
            |newest| format!("the newest is attempt {newest}"),
        );
        return Err(Failure::new(Code::NotFound, format!("attempt {attempt} of the run {} has no log", run.id), hint));
    }
    Ok(attempt)
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
