//! `orchestrator runs`: waiting, active and past runs, their results and their logs.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;

use super::follow::{LogTo, Printer, summary, tell};
use super::out::{Paint, printable};
use super::rows::{ListArgs, list, paint};
use super::times::{duration, local};
use super::trigger::tell_run;
use super::{Code, Context, Failure};
use crate::client::change::{self, Cancelled, Retried};
use crate::client::find::find;
use crate::client::follow::{Follower, Tail};
use crate::client::runs::{self, Row, attempt_with_log, newest_log};
use crate::model::result::Outcome;
use crate::model::trigger::Json;

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
    context.client.need_volume()?;
    match verb {
        RunsVerb::List(args) => list(args, context),
        RunsVerb::Show(args) => show(&args.run, context),
        RunsVerb::Logs(args) => logs(args, context),
        RunsVerb::Wait(args) => {
            let client = &context.client;
            let run = find(client, &args.run.run)?;
            let mut printer = Printer::new(context, LogTo::Nobody);
            let outcome = Follower::new(client, run, 1).wait(client, &mut printer, args.timeout)?;
            tell(context, &outcome)
        }
        RunsVerb::Cancel(args) => cancel(&args.run, context),
        RunsVerb::Retry(args) => retry(&args.run, context),
    }
}

fn cancel(name: &str, context: &Context) -> Result<Code, Failure> {
    let Cancelled { run, device } = change::cancel(&context.client, name)?;
    let said = match &device {
        Some(device) => format!("{device} is asked to end {run}; `orchestrator runs wait {run}` shows when it has"),
        None => format!("cancelled {run}, which waited"),
    };
    if context.out.json {
        let what = if device.is_some() { "asked" } else { "cancelled" };
        context.out.document(&json!({"run_id": run, "cancel": what, "device": device}))?;
    } else if !context.out.quiet {
        context.out.line(&said)?;
    }
    Ok(Code::Done)
}

fn retry(name: &str, context: &mut Context) -> Result<Code, Failure> {
    let (run, trigger) = match change::retry(&mut context.client, name)? {
        Retried::DueAlready(run, trigger) => {
            let show = format!("`orchestrator runs show {run}` says what it waits for");
            context.out.note(&format!("it is due already; {show}"));
            (run, trigger)
        }
        Retried::DueNow(run, trigger) => {
            context.out.note("due now");
            (run, trigger)
        }
        Retried::Anew { before, status, run, trigger } => {
            if let Some(status) = status {
                context.out.note(&format!("{before} ({}) is tried again as a new run", status.as_str()));
            }
            (run, trigger)
        }
    };
    tell_run(context, &run, &trigger)?;
    Ok(Code::Done)
}

fn show(name: &str, context: &Context) -> Result<Code, Failure> {
    let shown = runs::show(&context.client, name)?;
    if context.out.json {
        context.out.document(&shown)?;
    } else {
        show_to_people(context, &shown.row, shown.reason.as_deref(), &shown.attempts)?;
    }
    Ok(Code::Done)
}

fn show_to_people(context: &Context, row: &Row, reason: Option<&str>, attempts: &[Outcome]) -> Result<(), Failure> {
    let out = &context.out;
    let now = context.client.now().wall;
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
    let client = &context.client;
    let run = find(client, &args.run.run)?;
    if args.follow {
        let to = if context.out.json { LogTo::Lines } else { LogTo::People };
        let newest = newest_log(client, &run)?.unwrap_or(1);
        Follower::new(client, run, newest).wait(client, &mut Printer::new(context, to), None)?;
        return Ok(Code::Done);
    }
    let attempt = attempt_with_log(client, &run, args.attempt)?;
    let mut tail = Tail::new(client, &run, attempt);
    if context.out.json {
        let text = tail.text(client)?;
        context.out.document(&json!({"run_id": run.id, "attempt": attempt, "log": text}))?;
    } else {
        tail.copy(client, &mut Printer::new(context, LogTo::People))?;
    }
    Ok(Code::Done)
}
