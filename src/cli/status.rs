//! `orchestrator status`: one screen of what is, and of what hinders.

use chrono::{DateTime, Utc};

use super::out::{Cell, Paint, printable};
use super::rows::table;
use super::times::short;
use super::{Code, Context, Failure, devices};
use crate::client::runs::Row;
use crate::client::status::{LOOKED_AT, Next, Rejected, Screen, Waiting, look};
use crate::model::ids::{JobName, RunId};

/// How much of each part people are shown.
const SHOWN: usize = 10;

pub(super) fn status(context: &Context) -> Result<Code, Failure> {
    context.client.need_volume()?;
    let screen = look(&context.client)?;
    if context.out.json {
        context.out.document(&screen)?;
    } else {
        show(context, &screen)?;
    }
    Ok(Code::Done)
}

fn show(context: &Context, screen: &Screen) -> Result<(), Failure> {
    let out = &context.out;
    let now = context.client.now().wall;
    let heading = |title: &str, count: usize| {
        out.line("")?;
        out.line(&out.paint(Paint::Bold, &format!("{title}: {count}")))
    };
    let more = |count: usize, how: &str| {
        let rest = count.saturating_sub(SHOWN);
        if rest > 0 { out.line(&out.paint(Paint::Dim, &format!("… and {rest} more{how}"))) } else { Ok(()) }
    };
    let alive = screen.devices.len();
    out.line(&out.paint(Paint::Bold, &format!("Devices: {alive}")))?;
    if alive > 0 {
        devices::table(context, &screen.devices)?;
    }
    heading("Active", screen.active.len())?;
    if !screen.active.is_empty() {
        table(context, &screen.active[..screen.active.len().min(SHOWN)], now)?;
        more(screen.active.len(), ": `orchestrator runs list --status active`")?;
    }
    heading("Waiting", screen.waiting.len())?;
    if !screen.waiting.is_empty() {
        let rows: Vec<[Cell; 4]> = screen.waiting.iter().take(SHOWN).map(waiting_cells).collect();
        out.table(["TRIGGER", "JOB", "RUN", "WHY"], &rows)?;
        more(screen.waiting.len(), ": `orchestrator runs list --status waiting`")?;
    }
    if !screen.next.is_empty() {
        heading("Due next", screen.next.len())?;
        for Next { job, at } in screen.next.iter().take(SHOWN) {
            out.line(&format!("{}  {job}", short(*at, now)))?;
        }
        more(screen.next.len(), ": `orchestrator jobs list`")?;
    }
    let of = if screen.failed_is_all { String::new() } else { format!(" (of the newest {LOOKED_AT} runs)") };
    heading(&format!("Failed in the last day{of}"), screen.failed.len())?;
    if !screen.failed.is_empty() {
        let rows: Vec<[Cell; 7]> = screen.failed.iter().take(SHOWN).map(|row| failed_cells(row, now)).collect();
        out.table(["RUN", "JOB", "STATUS", "ATTEMPT", "DEVICE", "FINISHED", "WHY"], &rows)?;
        more(
            screen.failed.len(),
            ": `orchestrator runs list --since 1d --status failed --limit 1000`, and so for each status",
        )?;
    }
    if screen.rejections > 0 {
        heading("Rejected in the last day", screen.rejections)?;
        let rows: Vec<[Cell; 3]> = screen.rejected.iter().take(SHOWN).map(rejected_cells).collect();
        out.table(["TRIGGER", "RUN", "WHY"], &rows)?;
        more(screen.rejections, " in TriggersProcessed/rejected")?;
    }
    if !screen.ignored.is_empty() {
        heading("Ignored in Triggers (no name of a trigger: NAME.json)", screen.ignored.len())?;
        for name in screen.ignored.iter().take(SHOWN) {
            out.line(&printable(name))?;
        }
        more(screen.ignored.len(), "")?;
    }
    heading("Problems", screen.problems.len())?;
    for problem in screen.problems.iter().take(SHOWN) {
        out.line(&out.paint(Paint::Red, &printable(problem)))?;
    }
    more(screen.problems.len(), ": `orchestrator jobs validate` shows those of job files")
}

fn failed_cells(row: &Row, now: DateTime<Utc>) -> [Cell; 7] {
    [
        Cell::new(row.run_id.as_str()),
        Cell::new(row.job.as_str()),
        row.status_cell(),
        Cell::new(row.attempt.to_string()),
        Cell::new(row.device_name()),
        Cell::new(row.finished_at.map_or_else(String::new, |at| short(at, now))),
        Cell::new(row.error.as_deref().unwrap_or("-")),
    ]
}

fn rejected_cells(rejected: &Rejected) -> [Cell; 3] {
    let why = format!("{} (hint: {})", rejected.error, rejected.hint);
    [Cell::new(&rejected.trigger), Cell::new(rejected.run_id.as_str()), Cell::new(why)]
}

fn waiting_cells(waiting: &Waiting) -> [Cell; 4] {
    [
        Cell::new(&waiting.trigger),
        Cell::new(waiting.job.as_ref().map_or("-", JobName::as_str)),
        Cell::new(waiting.run_id.as_ref().map_or("-", RunId::as_str)),
        Cell::new(&waiting.reason),
    ]
}
