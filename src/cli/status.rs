//! `orchestrator status`: one screen of what is, and of what hinders.

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

use super::explain::next_due;
use super::out::{Cell, Paint, printable};
use super::rows::{Row, failed_since, table};
use super::times::short;
use super::view::{self, Device, Lies};
use super::{Code, Context, Failure, devices};
use crate::decide::catalog::Catalog;
use crate::decide::explain::{Seen, why};
use crate::decide::queue::job_name;
use crate::model::entry::{Entry, FileKey};
use crate::model::ids::{DeviceId, JobName, RunId};
use crate::model::state::State;
use crate::volume::inbox::is_trigger_name;
use crate::volume::processed::{self, Rejection};
use crate::volume::programs::Programs;
use crate::volume::{Context as _, found};

/// How much of each part people are shown.
const SHOWN: usize = 10;
/// How many rejections are read.
const REJECTED: usize = 100;
/// How old a file that is no trigger must be to be told of.
const IGNORED_AGE: TimeDelta = TimeDelta::minutes(1);
/// How many runs are looked at for failures: one screen must come quickly.
const LOOKED_AT: usize = 2_000;
/// What belongs into the inbox beside triggers.
const OWN_FOLDERS: [&str; 3] = [".running", ".waiting", ".ids"];

/// One screen (`formats.md`, "JSON shapes").
#[derive(Serialize)]
struct Screen {
    devices: Vec<devices::Row>,
    active: Vec<Row>,
    waiting: Vec<Waiting>,
    /// Names in the inbox that are no triggers.
    ignored: Vec<String>,
    /// Triggers of the last day that could not be taken.
    rejected: Vec<Rejected>,
    /// The next due time of each job that has one, the soonest first.
    next: Vec<Next>,
    failed: Vec<Row>,
    problems: Vec<String>,
    #[serde(skip)]
    failed_is_all: bool,
    #[serde(skip)]
    rejections: usize,
}

#[derive(Serialize)]
struct Next {
    job: JobName,
    #[serde(with = "crate::model::time::utc")]
    at: DateTime<Utc>,
}

#[derive(Serialize)]
struct Rejected {
    trigger: String,
    run_id: RunId,
    error: String,
    hint: String,
}

#[derive(Serialize)]
struct Waiting {
    trigger: String,
    run_id: Option<RunId>,
    job: Option<JobName>,
    reason: String,
    #[serde(skip)]
    rank: (std::cmp::Reverse<i16>, Option<RunId>),
}

pub(super) fn status(context: &Context) -> Result<Code, Failure> {
    context.need_volume()?;
    let screen = look(context)?;
    if context.out.json {
        context.out.document(&screen)?;
    } else {
        show(context, &screen)?;
    }
    Ok(Code::Done)
}

fn look(context: &Context) -> Result<Screen, Failure> {
    let mut problems = Vec::new();
    let programs = programs(context, &mut problems);
    // Before the state: what is claimed in between is then active rather than nowhere.
    let lying = view::waiting(context)?;
    let state = view::state(context)?;
    let devices = view::devices(context)?;
    // A volume that no device has used yet has no state.
    if state.is_none() && !devices.is_empty() {
        problems
            .push("state.json is missing or damaged; the next device that starts or works makes it anew".to_owned());
    }
    let state = state.unwrap_or_default();
    problems.extend(of_devices(&devices, &state));
    let seen = view::seen(&devices, &state);
    let mut waiting: Vec<Waiting> =
        lying.iter().filter_map(|(key, lies)| waits(context, key, lies, programs.catalog(), &state, &seen)).collect();
    waiting.sort_by(|a, b| a.rank.cmp(&b.rank));
    if !waiting.is_empty() && !devices.iter().any(|device| device.alive) {
        let wait =
            if waiting.len() == 1 { "a trigger waits".to_owned() } else { format!("{} triggers wait", waiting.len()) };
        problems.push(format!("{wait} and no device is alive: start one with `orchestrator run`"));
    }
    let active = state.runs.iter().filter(|(_, held)| held.device.is_some()).map(|(id, held)| Row::of_held(id, held));
    let since = context.now().wall - TimeDelta::days(1);
    let (failed, failed_is_all) = failed_since(context, since, LOOKED_AT)?;
    let (rejected, rejections) = processed::rejected_since(&*context.disk, &context.layout, since, REJECTED)?;
    let rejected = rejected.into_iter().map(|(run_id, Rejection { name, error, hint, .. })| Rejected {
        trigger: name,
        run_id,
        error,
        hint,
    });
    Ok(Screen {
        rejected: rejected.collect(),
        rejections,
        active: active.collect(),
        devices: devices::rows(&devices, &state),
        waiting,
        ignored: ignored(context)?,
        next: next(context, programs.catalog(), &state)?,
        failed,
        problems,
        failed_is_all,
    })
}

/// The job files; what is wrong with them is a problem and no reason to say nothing of the rest.
fn programs(context: &Context, problems: &mut Vec<String>) -> Programs {
    match view::programs(context) {
        Ok(programs) => {
            problems.extend(programs.errors().map(|error| format!("Programs/{error} (hint: {})", error.hint)));
            programs
        }
        Err(failure) => {
            problems.push(format!("{} (hint: {})", failure.error, failure.hint));
            Programs::default()
        }
    }
}

/// What devices say of themselves, and what their silence says.
pub(super) fn of_devices(devices: &[Device], state: &State) -> Vec<String> {
    let mut problems = Vec::new();
    for Device { beat, alive } in devices {
        if *alive {
            problems.extend(beat.problems.iter().map(|problem| format!("{}: {problem}", beat.device)));
            continue;
        }
        let holds = state.runs.values().filter(|held| held.device.as_ref() == Some(&beat.device)).count();
        if holds > 0 {
            let runs = if holds == 1 { "a run".to_owned() } else { format!("{holds} runs") };
            problems.push(format!(
                "{} is dead and holds {runs}: another device takes over once its lease is over",
                beat.device
            ));
        }
    }
    let known = |id: &DeviceId| devices.iter().any(|device| device.beat.device == *id);
    let lost: std::collections::BTreeSet<_> =
        state.runs.values().filter_map(|held| held.device.as_ref()).filter(|id| !known(id)).collect();
    problems.extend(lost.into_iter().map(|id| format!("{id} holds runs and has no heartbeat")));
    problems
}

fn waits(
    context: &Context,
    key: &FileKey,
    lies: &Lies,
    catalog: &Catalog,
    state: &State,
    seen: &[Seen],
) -> Option<Waiting> {
    let trigger = key.name.to_string_lossy().into_owned();
    let other = |run: Option<RunId>, reason: String| Waiting {
        trigger: trigger.clone(),
        rank: (std::cmp::Reverse(0), run.clone()),
        run_id: run,
        job: None,
        reason,
    };
    match lies {
        Lies::Waits(entry) if state.runs.get(&entry.run).is_some_and(|held| held.device.is_some()) => None,
        Lies::Waits(entry) => Some(Waiting {
            trigger: entry.dropped_name().unwrap_or_else(|| "-".to_owned()),
            run_id: Some(entry.run.clone()),
            job: Some(job_name(entry)),
            reason: why(entry, catalog, state, seen, context.now()),
            rank: (std::cmp::Reverse(priority(entry, catalog)), Some(entry.run.clone())),
        }),
        Lies::Refused(run, refusal) => {
            Some(other(Some(run.clone()), format!("it cannot be taken and is about to be rejected: {}", refusal.error)))
        }
        Lies::Unfinished => {
            Some(other(None, "it is no JSON (yet), or cannot be read: it may still be written".to_owned()))
        }
    }
}

fn priority(entry: &Entry, catalog: &Catalog) -> i16 {
    let of_job = || catalog.jobs.get(&job_name(entry)).map_or(0, |job| job.priority);
    entry.trigger.priority.unwrap_or_else(of_job)
}

fn next(context: &Context, catalog: &Catalog, state: &State) -> Result<Vec<Next>, Failure> {
    let mut next = Vec::new();
    for (name, job) in &catalog.jobs {
        next.extend(next_due(context, job, state)?.map(|at| Next { job: name.clone(), at }));
    }
    next.sort_by(|a, b| (a.at, &a.job).cmp(&(b.at, &b.job)));
    Ok(next)
}

/// Names in the inbox that nobody will take.
fn ignored(context: &Context) -> Result<Vec<String>, Failure> {
    let folder = context.layout.triggers();
    let now = context.now().wall;
    let is_old = |name: &std::ffi::OsString| {
        context.disk.stat(&folder.join(name)).is_ok_and(|meta| now - meta.changed >= IGNORED_AGE)
    };
    let names = found(context.disk.list(&folder)).on("list", &folder)?.unwrap_or_default();
    let strange = names.into_iter().filter(|name| !is_trigger_name(name) && !OWN_FOLDERS.iter().any(|own| name == own));
    let mut ignored: Vec<String> = strange.filter(is_old).map(|name| name.to_string_lossy().into_owned()).collect();
    ignored.sort();
    Ok(ignored)
}

fn show(context: &Context, screen: &Screen) -> Result<(), Failure> {
    let out = &context.out;
    let now = context.now().wall;
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
