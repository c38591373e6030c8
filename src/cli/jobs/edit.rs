//! `orchestrator jobs add`, `update`, `enable`, `disable` and `delete`: job files, changed by hand of a verb.

use clap::{ArgGroup, Args};
use serde_json::json;

use super::super::{Code, Context, Failure};
use super::JobArg;
use super::options::Options;
use super::show::document;
use super::validate::program_of;
use crate::client::jobs::change::Done;
use crate::client::jobs::edit::{self, Deleted, Open, is_always};
use crate::client::view;
use crate::model::ids::{JobName, RunId};
use crate::model::job::Job;
use crate::model::message::listed;
use crate::volume::programs::write::path_of;

/// Options of `jobs add`.
#[derive(Debug, Clone, Args)]
#[command(group(ArgGroup::new("which").required(true).args(["job", "name"])))]
pub(in crate::cli) struct AddArgs {
    /// The new job's name; its file becomes Programs/NAME.toml.
    #[arg(value_name = "NAME")]
    job: Option<String>,
    /// The same as an option.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    options: Options,
}

/// Options of `jobs update`.
#[derive(Debug, Clone, Args)]
pub(in crate::cli) struct UpdateArgs {
    #[command(flatten)]
    job: JobArg,
    /// Remove this key, so that its default holds; or one member of a table, such as env.NAME.
    #[arg(long, value_name = "KEY", value_delimiter = ',')]
    unset: Vec<String>,
    #[command(flatten)]
    options: Options,
}

pub(super) fn add(args: &AddArgs, context: &mut Context) -> Result<Code, Failure> {
    let name = args.job.as_deref().or(args.name.as_deref()).unwrap_or_default();
    let new = edit::add(&mut context.client, name, &args.options.change)?;
    tell(context, &new, &format!("wrote Programs/{}.toml", new.name))
}

pub(super) fn update(args: &UpdateArgs, context: &mut Context) -> Result<Code, Failure> {
    let mut change = args.options.change.clone();
    change.unset = args.unset.iter().filter(|key| !key.is_empty()).cloned().collect();
    let (new, done) = edit::update(&mut context.client, &args.job.job, &change)?;
    tell(context, &new, &sentence(&new.name, &done))
}

pub(super) fn enable(name: &str, enabled: bool, context: &mut Context) -> Result<Code, Failure> {
    let (new, is_new) = edit::enable(&mut context.client, name, enabled)?;
    let word = if enabled { "enabled" } else { "disabled" };
    if !is_new {
        return tell(context, &new, &format!("{} is {word} already", new.name));
    }
    let code = tell(context, &new, &format!("{word} {}", new.name))?;
    if !enabled {
        let open = Open::of(&context.client, &new.name)?;
        let waiting = open.again.len() + open.triggers.len();
        let lasting = ["a run is active: it goes on to its end", "runs are active: they go on to their ends"];
        note(context, open.active.len(), if is_always(&new) { STOPPED } else { lasting });
        note(context, waiting, ["a run waits until the job is enabled", "runs wait until the job is enabled"]);
    }
    Ok(code)
}

pub(super) fn delete(name: &str, context: &mut Context) -> Result<Code, Failure> {
    let Deleted { job, was_always, open } = edit::delete(&mut context.client, name)?;
    if context.out.json {
        let removed = path_of(&context.client.layout, &job);
        let waiting: Vec<&RunId> = open.again.iter().chain(&open.triggers).collect();
        let shown = json!({"job": job, "removed": removed, "active": open.active, "waiting": waiting});
        context.out.document(&shown)?;
        return Ok(Code::Done);
    }
    if !context.out.quiet {
        context.out.line(&format!("removed Programs/{job}.toml"))?;
    }
    let lasting = [
        "a run is active: it goes on to its end, and is not tried again",
        "runs are active: they go on to their ends, and are not tried again",
    ];
    note(context, open.active.len(), if was_always { STOPPED } else { lasting });
    let again =
        ["a run waits for another attempt: it ends as failed", "runs wait for another attempt: they end as failed"];
    note(context, open.again.len(), again);
    let triggers = if view::programs(&context.client)?.catalog().is_empty() {
        ["a trigger waits until there is a job again", "triggers wait until there is a job again"]
    } else {
        ["a trigger waits: it is rejected after 10 s", "triggers wait: they are rejected after 10 s"]
    };
    note(context, open.triggers.len(), triggers);
    Ok(Code::Done)
}

const STOPPED: [&str; 2] = [
    "a run is active: it is stopped, and ends as cancelled",
    "runs are active: they are stopped, and end as cancelled",
];

/// Says something of one run, or of several; of none nothing.
fn note(context: &Context, count: usize, [one, more]: [&str; 2]) {
    match count {
        0 => {}
        1 => context.out.note(one),
        _ => context.out.note(&format!("{count} {more}")),
    }
}

/// Says what was done; with `--json` what the job is now.
fn tell(context: &Context, new: &Job, said: &str) -> Result<Code, Failure> {
    if context.out.json {
        document(new, context)?;
        return Ok(Code::Done);
    }
    if !context.out.quiet {
        context.out.line(said)?;
    }
    let program = program_of(new, context);
    for missing in &program.errors {
        context.out.note(&format!("{} (hint: {})", missing.error, missing.hint));
    }
    for note in &program.notes {
        context.out.note(note);
    }
    Ok(Code::Done)
}

/// What an update did.
fn sentence(job: &JobName, done: &Done) -> String {
    let mut parts = Vec::new();
    if !done.set.is_empty() {
        parts.push(format!("set {}", listed(&done.set.iter().map(String::as_str).collect::<Vec<_>>())));
    }
    let mut reasons: Vec<&str> = done.removed.iter().map(|(_, why)| why.as_str()).collect();
    reasons.dedup();
    for reason in reasons {
        let of = done.removed.iter().filter(|(_, why)| why == reason).map(|(key, _)| key.as_str());
        parts.push(format!("removed {} ({reason})", listed(&of.collect::<Vec<_>>())));
    }
    for key in &done.absent {
        parts.push(format!("`{key}` was not set"));
    }
    let changed = !done.set.is_empty() || !done.removed.is_empty();
    match (changed, parts.is_empty()) {
        (true, _) => format!("changed Programs/{job}.toml: {}", parts.join("; ")),
        (false, false) => format!("Programs/{job}.toml stays as it is: {}", parts.join("; ")),
        (false, true) => format!("Programs/{job}.toml says so already"),
    }
}
