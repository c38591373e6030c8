//! Runs in rows: `orchestrator runs list`, and what `status` shows of them.

use chrono::{DateTime, Utc};
use clap::Args;

use super::out::{Cell, Paint};
use super::times::{When, between, short, when};
use super::{Code, Context, Failure};
use crate::client::runs::{self, Filter, Row, STATUSES};
use crate::model::ids::{DeviceId, JobName};

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

impl Row {
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

pub(super) fn list(args: &ListArgs, context: &Context) -> Result<Code, Failure> {
    let now = context.client.now().wall;
    let filter = Filter {
        job: args.job.clone(),
        status: args.status.clone(),
        device: args.device.clone(),
        since: args.since.map(|since| since.ago(now)),
        before: None,
        jobs_only: false,
        looks: None,
        limit: args.limit,
    };
    let rows = runs::list(&context.client, &filter, &|_| true)?;
    if context.out.json {
        context.out.document(&rows)?;
        return Ok(Code::Done);
    }
    if rows.is_empty() {
        let hint = if filter.is_open() { "there is no run yet" } else { "no run is like that" };
        context.out.note(hint);
        return Ok(Code::Done);
    }
    table(context, &rows, now)?;
    Ok(Code::Done)
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
