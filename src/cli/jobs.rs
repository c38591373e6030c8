//! `orchestrator jobs`: what `Programs/` holds, and what is wrong with it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::out::{Cell, Paint, printable};
use super::{Code, Context, Failure, view};
use crate::model::ids::{JobName, RunId, Tag};
use crate::model::job::{Job, JobError, JobType, OnLost, Overlap, Program};
use crate::model::result::{Status, pairs};
use crate::model::state::{JobMark, State};
use crate::model::time::show_duration;
use crate::model::trigger::Json;
use crate::volume::Context as _;
use crate::volume::program_check::look_for_program;
use crate::volume::programs::{job_of, misnamed_job, read};

/// The verbs of `jobs`.
#[derive(Debug, Subcommand)]
pub(super) enum JobsVerb {
    /// All jobs.
    List,
    /// One job's definition, defaults included.
    Show(JobArg),
    /// Check job files; exit code 1 if one has an error.
    Validate(ValidateArgs),
}

/// Which job.
#[derive(Debug, Clone, Args)]
pub(super) struct JobArg {
    /// The job, by the name of its file in Programs.
    job: String,
}

/// Options of `jobs validate`.
#[derive(Debug, Clone, Args)]
pub(super) struct ValidateArgs {
    /// Only these [default: all].
    #[arg(value_name = "JOB")]
    jobs: Vec<String>,
}

pub(super) fn jobs(verb: &JobsVerb, context: &Context) -> Result<Code, Failure> {
    context.need_volume()?;
    match verb {
        JobsVerb::List => list(context),
        JobsVerb::Show(args) => show(&args.job, context),
        JobsVerb::Validate(args) => validate(&args.jobs, context),
    }
}

/// A job file and what it says.
struct File {
    job: JobName,
    read: Result<Job, Vec<JobError>>,
}

/// All job files, by name, and the errors of those that cannot be one for their name.
fn files(context: &Context) -> Result<(Vec<File>, Vec<JobError>), Failure> {
    let folder = &context.layout.programs;
    let (mut files, mut misnamed) = (Vec::new(), Vec::new());
    let mut names: Vec<OsString> = context.disk.list(folder).on("list", folder)?;
    names.sort();
    for name in names {
        let Some(job) = job_of(&name) else {
            misnamed.extend(misnamed_job(&name));
            continue;
        };
        files.push(File { read: read(&*context.disk, &context.layout, &name, &job), job });
    }
    Ok((files, misnamed))
}

#[derive(Serialize)]
struct Row<'a> {
    job: &'a JobName,
    #[serde(rename = "type")]
    kind: Option<&'static str>,
    enabled: Option<bool>,
    valid: bool,
    tags: Vec<&'a str>,
    /// Timed jobs are not claimed by this version.
    next_due_at: Option<String>,
    last_status: Option<Status>,
}

fn kind_name(kind: JobType) -> &'static str {
    match kind {
        JobType::Trigger => "trigger",
    }
}

fn row<'a>(file: &'a File, state: &State) -> Row<'a> {
    let good = file.read.as_ref().ok();
    Row {
        job: &file.job,
        kind: good.map(|job| kind_name(job.kind)),
        enabled: good.map(|job| job.enabled),
        valid: good.is_some(),
        tags: good.map_or_else(Vec::new, |job| job.tags.iter().map(|tag| tag.as_str()).collect()),
        next_due_at: None,
        last_status: state.jobs.get(&file.job).and_then(|mark| mark.last_status),
    }
}

fn list(context: &Context) -> Result<Code, Failure> {
    let state = view::state(context)?.unwrap_or_default();
    let (files, misnamed) = files(context)?;
    let rows: Vec<Row<'_>> = files.iter().map(|file| row(file, &state)).collect();
    if context.out.json {
        context.out.document(&rows)?;
        return Ok(Code::Done);
    }
    let cells: Vec<[Cell; 5]> = rows
        .iter()
        .map(|row| {
            let state = match (row.valid, row.enabled) {
                (false, _) => Cell::painted("invalid", Paint::Red),
                (true, Some(false)) => Cell::painted("disabled", Paint::Dim),
                (true, _) => Cell::painted("enabled", Paint::Green),
            };
            let tags = if row.tags.is_empty() { "-".to_owned() } else { row.tags.join(",") };
            [
                Cell::new(row.job.as_str()),
                Cell::new(row.kind.unwrap_or("-")),
                state,
                Cell::new(tags),
                Cell::new(row.last_status.map_or("-", Status::as_str)),
            ]
        })
        .collect();
    if cells.is_empty() {
        context.out.note(&format!("there is no job in {}", context.layout.programs.display()));
    } else {
        context.out.table(["JOB", "TYPE", "STATE", "TAGS", "LAST"], &cells)?;
    }
    if !misnamed.is_empty() || rows.iter().any(|row| !row.valid) {
        context.out.note(
            "`orchestrator jobs validate` says what is wrong; a device goes on with the last good version it has read",
        );
    }
    Ok(Code::Done)
}

/// The file of one job.
fn file(context: &Context, name: &str) -> Result<File, Failure> {
    let job = view::job_name(name)?;
    let (mut files, _) = files(context)?;
    match files.iter().position(|file| file.job == job) {
        Some(at) => Ok(files.swap_remove(at)),
        None => Err(view::no_such_job(name, view::programs(context)?.catalog())),
    }
}

fn show(name: &str, context: &Context) -> Result<Code, Failure> {
    let file = file(context, name)?;
    let state = view::state(context)?.unwrap_or_default();
    let job = match &file.read {
        Ok(job) => job,
        Err(errors) => {
            tell_errors(context, 1, &located(&file.job, errors))?;
            return Ok(Code::Failed);
        }
    };
    let mark = state.jobs.get(&file.job).cloned().unwrap_or_default();
    let shown = definition(job, &mark);
    if context.out.json {
        context.out.document(&shown)?;
        return Ok(Code::Done);
    }
    for (key, value) in pairs_of(&shown)? {
        let text = value.text();
        let text = serde_json::from_str::<String>(text).unwrap_or_else(|_| text.to_owned());
        context.out.line(&format!("{key:<14} {}", printable(if text == "null" { "-" } else { &text })))?;
    }
    Ok(Code::Done)
}

/// A definition with the names that job files use, every default filled in.
#[derive(Serialize)]
struct Definition<'a> {
    job: &'a JobName,
    #[serde(rename = "type")]
    kind: &'static str,
    valid: bool,
    enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<&'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    function: Option<&'a str>,
    args: &'a [Json],
    #[serde(with = "pairs")]
    kwargs: &'a [(String, Json)],
    env: &'a BTreeMap<String, String>,
    pass_env: &'a BTreeSet<String>,
    tags: &'a BTreeSet<Tag>,
    priority: i16,
    slots: u32,
    overlap: &'static str,
    retries: u32,
    retry_on: &'a Option<BTreeSet<i32>>,
    backoff: String,
    backoff_max: String,
    timeout: Option<String>,
    stop_grace: String,
    on_lost: &'static str,
    last_run_id: &'a Option<RunId>,
    last_status: Option<Status>,
    failures: u32,
    skipped: u64,
}

fn definition<'a>(job: &'a Job, mark: &'a JobMark) -> Definition<'a> {
    let (command, file, function) = match &job.program {
        Program::Command(command) => (Some(command.as_slice()), None, None),
        Program::File(file) => (None, Some(file.as_str()), None),
        Program::Function { file, function } => (None, Some(file.as_str()), Some(function.as_str())),
    };
    Definition {
        job: &job.name,
        kind: kind_name(job.kind),
        valid: true,
        enabled: job.enabled,
        command,
        file,
        function,
        args: &job.args,
        kwargs: &job.kwargs,
        env: &job.env,
        pass_env: &job.pass_env,
        tags: &job.tags,
        priority: job.priority,
        slots: job.slots,
        overlap: overlap_name(job.overlap),
        retries: job.retries,
        retry_on: &job.retry_on,
        backoff: show_duration(job.backoff),
        backoff_max: show_duration(job.backoff_max),
        timeout: job.timeout.map(show_duration),
        stop_grace: show_duration(job.stop_grace),
        on_lost: on_lost_name(job.on_lost),
        last_run_id: &mark.last_run_id,
        last_status: mark.last_status,
        failures: mark.failures,
        skipped: mark.skipped,
    }
}

/// What is written as an object, key by key, each value as it is written.
fn pairs_of(value: &impl Serialize) -> Result<Vec<(String, Json)>, Failure> {
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Object(#[serde(with = "pairs")] Vec<(String, Json)>);
    let read = serde_json::to_string(value).and_then(|text| serde_json::from_str::<Object>(&text));
    read.map(|Object(pairs)| pairs)
        .map_err(|error| Failure::new(Code::Failed, format!("cannot write JSON: {error}"), ""))
}

fn overlap_name(overlap: Overlap) -> &'static str {
    match overlap {
        Overlap::Allow => "allow",
        Overlap::Skip => "skip",
        Overlap::Queue => "queue",
    }
}

fn on_lost_name(on_lost: OnLost) -> &'static str {
    match on_lost {
        OnLost::Rerun => "rerun",
        OnLost::Fail => "fail",
    }
}

/// One error in a job file, as `jobs validate` lists it.
#[derive(Serialize)]
struct Located<'a> {
    job: Option<&'a JobName>,
    file: &'a str,
    line: usize,
    column: usize,
    error: &'a str,
    hint: &'a str,
}

fn located<'a>(job: &'a JobName, errors: &'a [JobError]) -> Vec<Located<'a>> {
    errors.iter().map(|error| place(Some(job), error)).collect()
}

fn place<'a>(job: Option<&'a JobName>, error: &'a JobError) -> Located<'a> {
    let JobError { file, line, column, error, hint } = error;
    Located { job, file, line: *line, column: *column, error, hint }
}

fn validate(names: &[String], context: &Context) -> Result<Code, Failure> {
    let (mut files, misnamed) = files(context)?;
    let mut errors: Vec<Located<'_>> = Vec::new();
    if names.is_empty() {
        errors.extend(misnamed.iter().map(|error| place(None, error)));
    } else {
        for name in names {
            let job = view::job_name(name)?;
            if !files.iter().any(|file| file.job == job) {
                return Err(view::no_such_job(name, view::programs(context)?.catalog()));
            }
        }
        files.retain(|file| names.iter().any(|name| file.job.as_str() == name));
    }
    for file in &files {
        if let Err(found) = &file.read {
            errors.extend(located(&file.job, found));
        }
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let mut missing: Vec<(&JobName, JobError)> = Vec::new();
    for (name, job) in files.iter().filter_map(|file| Some((&file.job, file.read.as_ref().ok()?))) {
        let found = look_for_program(job, &context.layout.programs, &path);
        missing.extend(found.errors.into_iter().map(|error| (name, error)));
        for note in found.notes {
            context.out.note(&format!("Programs/{name}.toml: {note}"));
        }
    }
    errors.extend(missing.iter().map(|(name, error)| place(Some(name), error)));
    tell_errors(context, files.len(), &errors)?;
    Ok(if errors.is_empty() { Code::Done } else { Code::Failed })
}

fn tell_errors(context: &Context, jobs: usize, errors: &[Located<'_>]) -> Result<(), Failure> {
    let out = &context.out;
    if out.json {
        return out.document(&json!({"valid": errors.is_empty(), "jobs": jobs, "errors": errors}));
    }
    for Located { file, line, column, error, hint, .. } in errors {
        let place = out.paint(Paint::Bold, &format!("Programs/{}:{line}:{column}:", printable(file)));
        out.line(&format!("{place} {}", printable(error)))?;
        if !hint.is_empty() {
            out.line(&format!("  hint: {}", printable(hint)))?;
        }
    }
    if errors.is_empty() && !out.quiet {
        let count = if jobs == 1 { "1 job is".to_owned() } else { format!("{jobs} jobs are") };
        out.line(&out.paint(Paint::Green, &format!("{count} valid")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_toml_file_that_is_no_job_for_its_name_is_told() {
        for (name, told) in [
            ("my job.toml", true),
            ("-x.toml", true),
            ("a.toml", false),
            ("pools.toml", false),
            (".a.toml", false),
            ("a b.py", false),
        ] {
            assert_eq!(misnamed_job(&OsString::from(name)).is_some(), told, "{name}");
        }
    }
}
