//! `orchestrator runs`: waiting, active and past runs, their results and their logs.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;

use super::find::{Place, Run, find};
use super::follow::{Follower, LogTo, Tail, log_path, summary, tell};
use super::out::{Paint, printable};
use super::rows::{ListArgs, Row, list, paint};
use super::times::{duration, local};
use super::{Code, Context, Failure, change, view};
use crate::model::entry::Entry;
use crate::model::result::Outcome;
use crate::model::trigger::Json;
use crate::volume::found;
use crate::volume::results::names_in;

/// The verbs of `runs`.
#[derive(Debug, Subcommand)]
pub(super) enum RunsVerb {
    /// Waiting, active and past runs, newest first.
    List(ListArgs),
    /// One run, with its attempts.
    Show(RunArg),
    /// What its program printed.
    Logs(LogsArgs),
    /// Wait for its end, print the result, exit as the run did.
    Wait(WaitArgs),
    /// End it.
    Cancel(RunArg),
    /// Drop the trigger of a past run again, as a new run; make a waiting one due now.
    Retry(RunArg),
}

/// Which run.
#[derive(Debug, Clone, Args)]
pub(super) struct RunArg {
    /// Its id, the beginning or end of it, or the trigger's file name (its newest run).
    run: String,
}

/// Options of `runs logs`.
#[derive(Debug, Clone, Args)]
pub(super) struct LogsArgs {
    #[command(flatten)]
    run: RunArg,
    /// Follow it, attempt after attempt, until the run is over.
    #[arg(short, long)]
    follow: bool,
    /// Of this attempt [default: the newest].
    #[arg(long, value_name = "N", conflicts_with = "follow")]
    attempt: Option<u32>,
}

/// Options of `runs wait`.
#[derive(Debug, Clone, Args)]
pub(super) struct WaitArgs {
    #[command(flatten)]
    run: RunArg,
    /// Wait at most this long, then exit 124; the run goes on.
    #[arg(long, value_name = "D", value_parser = duration)]
    timeout: Option<Duration>,
}

pub(super) fn runs(verb: &RunsVerb, context: &mut Context) -> Result<Code, Failure> {
    context.need_volume()?;
    match verb {
        RunsVerb::List(args) => list(args, context),
        RunsVerb::Show(args) => show(&args.run, context),
        RunsVerb::Logs(args) => logs(args, context),
        RunsVerb::Wait(args) => {
            let run = find(context, &args.run.run)?;
            let outcome = Follower::new(context, run, LogTo::Nobody, 1).wait(args.timeout)?;
            tell(context, &outcome)
        }
        RunsVerb::Cancel(args) => change::cancel(&args.run, context),
        RunsVerb::Retry(args) => change::retry(&args.run, context),
    }
}

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    row: &'a Row,
    /// Why it waits.
    reason: Option<String>,
    attempts: &'a [Outcome],
}

fn show(name: &str, context: &Context) -> Result<Code, Failure> {
    let run = find(context, name)?;
    let attempts = run.outcomes(context)?;
    let row = match (run.place(context)?, &run.entry, attempts.last()) {
        (Place::Past(outcome), _, _) => Row::of_result(&outcome),
        (Place::Active(held), _, _) => Row::of_held(&run.id, &held),
        (Place::Waiting, Some(entry), _) => Row::of_waiting(entry),
        (Place::Waiting | Place::Nowhere, _, Some(outcome)) => Row::of_result(outcome),
        (Place::Waiting | Place::Nowhere, _, None) => {
            let error = format!("the run {} has left nothing that can be shown", run.id);
            return Err(Failure::new(Code::NotFound, error, "try again; it may be on its way between two folders"));
        }
    };
    let reason = match (&run.entry, row.status) {
        (Some(entry), "waiting") => Some(why(context, entry)?),
        _ => None,
    };
    if context.out.json {
        context.out.document(&Shown { row: &row, reason, attempts: &attempts })?;
        return Ok(Code::Done);
    }
    show_to_people(context, &row, reason.as_deref(), &attempts)?;
    Ok(Code::Done)
}

fn why(context: &Context, entry: &Entry) -> Result<String, Failure> {
    let state = view::state(context)?.unwrap_or_default();
    let devices = view::seen(&view::devices(context)?, &state);
    let programs = view::programs(context)?;
    Ok(crate::decide::explain::why(entry, programs.catalog(), &state, &devices, context.now()))
}

fn show_to_people(context: &Context, row: &Row, reason: Option<&str>, attempts: &[Outcome]) -> Result<(), Failure> {
    let out = &context.out;
    let now = context.now().wall;
    let line = |name: &str, text: &str| out.line(&format!("{name:<10} {text}"));
    let safe = |name: &str, text: &str| line(name, &printable(text));
    safe("run", row.run_id.as_str())?;
    safe("job", row.job.as_str())?;
    line("status", &out.paint(paint(row.status), row.status))?;
    safe("device", row.device_name())?;
    safe("attempt", &row.attempt.to_string())?;
    if let Some(trigger) = &row.trigger {
        safe("trigger", trigger)?;
    }
    line("created", &local(row.created_at, now))?;
    for (name, at) in [("claimed", row.claimed_at), ("started", row.started_at), ("finished", row.finished_at)] {
        if let Some(at) = at {
            line(name, &local(at, now))?;
        }
    }
    if let Some(reason) = reason {
        safe("waits", reason)?;
    }
    for outcome in attempts {
        out.line("")?;
        out.line(&out.paint(Paint::Bold, &format!("attempt {}: {}", outcome.attempt, printable(&summary(outcome)))))?;
        for (name, text) in [("error", &outcome.error), ("no result", &outcome.result_error), ("log", &outcome.log)] {
            if let Some(text) = text {
                safe(name, text)?;
            }
        }
        if !outcome.args.is_empty() {
            let args: Vec<&str> = outcome.args.iter().map(Json::text).collect();
            safe("args", &args.join(" "))?;
        }
        for (key, value) in &outcome.kwargs {
            safe("kwarg", &format!("{key}={}", value.text()))?;
        }
        if let Some(result) = &outcome.result {
            safe("result", result.text())?;
        }
    }
    Ok(())
}

fn logs(args: &LogsArgs, context: &Context) -> Result<Code, Failure> {
    let run = find(context, &args.run.run)?;
    let newest = newest_log(context, &run)?;
    if args.follow {
        let to = if context.out.json { LogTo::Lines } else { LogTo::People };
        Follower::new(context, run, to, newest.unwrap_or(1)).wait(None)?;
        return Ok(Code::Done);
    }
    let attempt = match (args.attempt, newest) {
        (Some(attempt), _) => attempt,
        (None, Some(newest)) => newest,
        (None, None) => {
            let error = format!("the run {} has no log: no attempt of it was started", run.id);
            let hint = format!("`orchestrator runs show {}` says why; -f waits for it", run.id);
            return Err(Failure::new(Code::Failed, error, hint));
        }
    };
    if found(context.disk.stat(&log_path(context, &run, attempt))).is_ok_and(|there| there.is_none()) {
        let hint = newest.map_or_else(
            || "no attempt of it was started".to_owned(),
            |newest| format!("the newest is attempt {newest}"),
        );
        return Err(Failure::new(Code::NotFound, format!("attempt {attempt} of the run {} has no log", run.id), hint));
    }
    let mut tail = Tail::new(context, &run, attempt);
    if context.out.json {
        let text = tail.text(context)?;
        context.out.document(&json!({"run_id": run.id, "attempt": attempt, "log": text}))?;
    } else {
        tail.copy(context, LogTo::People)?;
    }
    Ok(Code::Done)
}

/// The largest attempt that has a log.
fn newest_log(context: &Context, run: &Run) -> Result<Option<u32>, Failure> {
    // Mostly it is that of the newest attempt; listing a day costs more.
    let likely = run.newest_attempt();
    if likely > 0 && found(context.disk.stat(&log_path(context, run, likely))).is_ok_and(|there| there.is_some()) {
        return Ok(Some(likely));
    }
    let logs = names_in(&*context.disk, &context.layout.logs().join(run.id.date()), "log")?;
    Ok(logs.iter().filter(|named| named.run == run.id).map(|named| named.attempt).max())
}
