//! `orchestrator jobs add`, `update`, `enable`, `disable` and `delete`: job files, changed by hand of a verb.
//!
//! What a device would refuse is never written, and what is not concerned stays as it is, byte for byte.

use std::ffi::OsString;

use clap::{ArgGroup, Args};
use serde_json::json;
use toml_edit::Value;

use super::super::{Code, Context, Failure, view};
use super::JobArg;
use super::change::{Change, Done};
use super::options::Options;
use super::show::document;
use super::validate::program_of;
use crate::decide::queue::job_name;
use crate::model::entry::Source;
use crate::model::ids::{JobName, RunId};
use crate::model::job::draft::Draft;
use crate::model::job::{Job, JobError, JobType, parse};
use crate::model::message::{bad_name, listed, quoted};
use crate::model::trigger::Target;
use crate::store::Refused;
use crate::volume::disk::{Guard, Kind};
use crate::volume::os::real_path;
use crate::volume::programs::write::{self, path_of};
use crate::volume::programs::{LIMIT, job_of, read, read_text};
use crate::volume::{self, Context as _, found};

/// So many errors of a file are told.
const SHOWN: usize = 5;
/// How often a file is read again that somebody else changes meanwhile.
const TRIES: u32 = 5;

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
    let job = named(context, name, "choose a name that follows the rule")?;
    if job_of(&file_of(&job)).is_none() {
        let error = format!("Programs/{job}.toml is no job's file, whatever is in it");
        return Err(Failure::new(Code::Usage, error, "choose another name"));
    }
    writable(context)?;
    let is_there = || {
        let hint = format!("`orchestrator jobs update {job}` changes it, `orchestrator jobs delete {job}` removes it");
        Failure::new(Code::Usage, format!("the job {job} is there already: Programs/{job}.toml"), hint)
    };
    let path = path_of(&context.layout, &job);
    // Before anything is said of the options.
    if found(context.disk.stat(&path)).on("look at", &path)?.is_some() {
        return Err(is_there());
    }
    let mut draft = Draft::default();
    args.options.change.clone().apply(&mut draft)?;
    let new = checked(&job, &draft)?;
    let written = write::add(&*context.disk, &mut context.names, &context.layout, &job, &draft.text());
    if !written.map_err(not_written)? {
        return Err(is_there());
    }
    tell(context, &new, &format!("wrote Programs/{job}.toml"))
}

pub(super) fn update(args: &UpdateArgs, context: &mut Context) -> Result<Code, Failure> {
    let mut change = args.options.change.clone();
    change.unset = args.unset.iter().filter(|key| !key.is_empty()).cloned().collect();
    if change.is_empty() {
        let hint = "name a key and its value, such as --timeout 30m; `orchestrator jobs update --help` shows all";
        return Err(Failure::new(Code::Usage, "there is nothing to change", hint));
    }
    let (new, done) = rewrite(context, &args.job.job, |_| change.clone())?;
    tell(context, &new, &sentence(&new.name, &done))
}

pub(super) fn enable(name: &str, enabled: bool, context: &mut Context) -> Result<Code, Failure> {
    let (new, done) = rewrite(context, name, |draft| {
        // Where nothing is said a job is enabled.
        let is_so = enabled && !draft.has(&["enabled"]);
        let set = if is_so { Vec::new() } else { vec![("enabled", Value::from(enabled))] };
        Change { set, ..Change::default() }
    })?;
    let word = if enabled { "enabled" } else { "disabled" };
    if done.set.is_empty() {
        return tell(context, &new, &format!("{} is {word} already", new.name));
    }
    let code = tell(context, &new, &format!("{word} {}", new.name))?;
    if !enabled {
        let open = Open::of(context, &new.name)?;
        let waiting = open.again.len() + open.triggers.len();
        let lasting = ["a run is active: it goes on to its end", "runs are active: they go on to their ends"];
        note(context, open.active.len(), if is_always(&new) { STOPPED } else { lasting });
        note(context, waiting, ["a run waits until the job is enabled", "runs wait until the job is enabled"]);
    }
    Ok(code)
}

pub(super) fn delete(name: &str, context: &mut Context) -> Result<Code, Failure> {
    let job = known(context, name)?;
    writable(context)?;
    let lock = locked(context)?;
    let old = read(&*context.disk, &context.layout, &file_of(&job), &job).ok();
    if !write::remove(&*context.disk, &context.layout, &job).map_err(not_written)? {
        return Err(no_such_job(context, name)?);
    }
    // All devices wait for it: what follows may take its time.
    drop(lock);
    let open = Open::of(context, &job)?;
    if context.out.json {
        let removed = path_of(&context.layout, &job);
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
    note(context, open.active.len(), if old.is_some_and(|old| is_always(&old)) { STOPPED } else { lasting });
    let again =
        ["a run waits for another attempt: it ends as failed", "runs wait for another attempt: they end as failed"];
    note(context, open.again.len(), again);
    let triggers = if view::programs(context)?.catalog().is_empty() {
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

fn is_always(job: &Job) -> bool {
    matches!(job.kind, JobType::Always(_))
}

/// Says something of one run, or of several; of none nothing.
fn note(context: &Context, count: usize, [one, more]: [&str; 2]) {
    match count {
        0 => {}
        1 => context.out.note(one),
        _ => context.out.note(&format!("{count} {more}")),
    }
}

fn file_of(job: &JobName) -> OsString {
    format!("{job}.toml").into()
}

/// A job's name. Where a file has that name and it is none, the file is what is wrong.
fn named(context: &Context, name: &str, hint: &str) -> Result<JobName, Failure> {
    JobName::new(name).map_err(|bad| {
        let file = format!("{name}.toml");
        let is_file = !name.contains('/') && context.disk.stat(&context.layout.programs.join(&file)).is_ok();
        let rename = format!("Programs/ has a file {}: rename it, it is no job", quoted(&file));
        Failure::new(Code::Usage, bad_name(&bad), if is_file { &rename } else { hint })
    })
}

/// The name of a job that has a file, be it a good one or not.
fn known(context: &Context, name: &str) -> Result<JobName, Failure> {
    let job = named(context, name, "`orchestrator jobs list` shows all jobs")?;
    let path = path_of(&context.layout, &job);
    let is_there = found(context.disk.stat(&path)).on("look at", &path)?.is_some();
    if is_there && job_of(&file_of(&job)).is_some() { Ok(job) } else { Err(no_such_job(context, name)?) }
}

fn no_such_job(context: &Context, name: &str) -> Result<Failure, Failure> {
    Ok(view::no_such_job(name, view::programs(context)?.catalog()))
}

/// Makes sure that `Programs/` is a folder to write to.
fn writable(context: &Context) -> Result<(), Failure> {
    // With a slash at its end the system would follow a link.
    let folder: std::path::PathBuf = context.layout.programs.components().collect();
    match context.disk.stat(&folder).on("look at", &folder)?.kind {
        Kind::Folder => Ok(()),
        Kind::Link => {
            let error = format!(
                "{} is a symbolic link, and a change would end up wherever it happens to lead",
                folder.display()
            );
            let real = real_path(&folder).display().to_string();
            Err(Failure::new(Code::Volume, error, format!("name the folder itself: --programs {real}")))
        }
        kind @ (Kind::File | Kind::Other) => {
            let error = format!("{} is {kind}, expected a folder", folder.display());
            Err(Failure::new(Code::Volume, error, "name the folder with the jobs: --programs PATH"))
        }
    }
}

/// Keeps other verbs from changing job files.
fn locked(context: &Context) -> Result<Guard, Failure> {
    let lock = context.layout.lock();
    view::patiently(context, |_| context.disk.lock(&lock).on("lock", &lock)?.ok_or(Refused::Busy))
}

/// Changes a job's file, if the result is good; tries again if somebody else changes it meanwhile.
fn rewrite(context: &mut Context, name: &str, change: impl Fn(&Draft) -> Change) -> Result<(Job, Done), Failure> {
    let job = known(context, name)?;
    let file = file_of(&job);
    writable(context)?;
    let _lock = locked(context)?;
    for _ in 0..TRIES {
        let read = read_text(&*context.disk, &context.layout, &file);
        let (text, id) = read.map_err(|errors| refused(&errors))?;
        let mut draft = Draft::open(&file.to_string_lossy(), &text).map_err(|errors| refused(&errors))?;
        let done = change(&draft).apply(&mut draft)?;
        let new = checked(&job, &draft)?;
        let after = draft.text();
        let written = after == text
            || write::replace(&*context.disk, &mut context.names, &context.layout, &job, &after, &id)
                .map_err(not_written)?;
        if written {
            return Ok((new, done));
        }
    }
    let error = format!("Programs/{job}.toml changes each time it is read");
    Err(Failure::new(Code::Failed, error, "see who writes it, and try again"))
}

/// What a device would read.
fn checked(job: &JobName, draft: &Draft) -> Result<Job, Failure> {
    let (text, file) = (draft.text(), format!("{job}.toml"));
    if text.len() as u64 > LIMIT {
        let error = format!("nothing was written: Programs/{file} would have {} bytes", text.len());
        return Err(Failure::new(Code::Usage, error, format!("a job file has at most {LIMIT}")));
    }
    parse(job, &file, &text).map_err(|errors| refused(&errors))
}

/// What is wrong with a file, or would be.
fn refused(errors: &[JobError]) -> Failure {
    let mut all: Vec<String> = errors.iter().take(SHOWN).map(|error| format!("Programs/{error}")).collect();
    if errors.len() > SHOWN {
        all.push(format!("{} more errors", errors.len() - SHOWN));
    }
    let hint = errors.iter().map(|error| error.hint.as_str()).find(|hint| !hint.is_empty()).unwrap_or_default();
    Failure::new(Code::Usage, format!("nothing was written: {}", all.join("; ")), hint)
}

/// `Programs/` is meant to be mounted read-only where possible: then it is changed elsewhere.
fn not_written(error: volume::Error) -> Failure {
    let is_read_only = error.source.kind() == std::io::ErrorKind::ReadOnlyFilesystem;
    let failure = Failure::from(error);
    let hint = "Programs is mounted read-only here: change the file where it comes from";
    if is_read_only { Failure { hint: hint.to_owned(), ..failure } } else { failure }
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

/// Runs of a job that are not over.
#[derive(Debug, Default)]
struct Open {
    active: Vec<RunId>,
    /// They wait for another attempt.
    again: Vec<RunId>,
    /// They wait for their first.
    triggers: Vec<RunId>,
}

impl Open {
    fn of(context: &Context, job: &JobName) -> Result<Self, Failure> {
        let mut open = Self::default();
        // Before the state: what is claimed in between is then active rather than nowhere.
        let waiting = view::waiting(context)?;
        let state = view::state(context)?.unwrap_or_default();
        let of_job = state.runs.iter().filter(|(_, held)| held.job == *job && !held.command);
        open.active = of_job.filter(|(_, held)| held.device.is_some()).map(|(id, _)| id.clone()).collect();
        for (key, lies) in waiting {
            let view::Lies::Waits(entry) = lies else { continue };
            let is_command = matches!(entry.trigger.target, Target::Command(_));
            if is_command || job_name(&entry) != *job || open.active.contains(&entry.run) {
                continue;
            }
            match key.source {
                Source::Inbox => open.triggers.push(entry.run.clone()),
                Source::Waiting | Source::Due => open.again.push(entry.run.clone()),
            }
        }
        Ok(open)
    }
}
