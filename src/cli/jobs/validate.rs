//! `orchestrator jobs validate`: what is wrong with job files, each thing with its place.

use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::super::out::{Paint, printable};
use super::super::{Code, Context, Failure};
use crate::client::jobs::files;
use crate::client::view;
use crate::model::ids::JobName;
use crate::model::job::{Job, JobError};
use crate::volume::program_check::{Found, look_for_program};
use crate::volume::secrets;

/// Options of `jobs validate`.
#[derive(Debug, Clone, Args)]
pub(in crate::cli) struct ValidateArgs {
    /// Only these [default: all].
    #[arg(value_name = "JOB")]
    pub(super) jobs: Vec<String>,
}

/// One error in a job file, as `jobs validate` lists it.
#[derive(Serialize)]
pub(super) struct Located<'a> {
    job: Option<&'a JobName>,
    file: &'a str,
    line: usize,
    column: usize,
    error: &'a str,
    hint: &'a str,
}

pub(super) fn located<'a>(job: &'a JobName, errors: &'a [JobError]) -> Vec<Located<'a>> {
    errors.iter().map(|error| place(Some(job), error)).collect()
}

fn place<'a>(job: Option<&'a JobName>, error: &'a JobError) -> Located<'a> {
    let JobError { file, line, column, error, hint } = error;
    Located { job, file, line: *line, column: *column, error, hint }
}

pub(super) fn validate(names: &[String], context: &Context) -> Result<Code, Failure> {
    let (mut files, misnamed) = files(&context.client)?;
    let mut errors: Vec<Located<'_>> = Vec::new();
    if names.is_empty() {
        errors.extend(misnamed.iter().map(|error| place(None, error)));
    } else {
        for name in names {
            let job = view::job_name(name)?;
            if !files.iter().any(|file| file.job == job) {
                return Err(view::no_such_job(name, view::programs(&context.client)?.catalog()));
            }
        }
        files.retain(|file| names.iter().any(|name| file.job.as_str() == name));
    }
    for file in &files {
        if let Err(found) = &file.read {
            errors.extend(located(&file.job, found));
        }
    }
    let mut missing: Vec<(&JobName, JobError)> = Vec::new();
    for (name, job) in files.iter().filter_map(|file| Some((&file.job, file.read.as_ref().ok()?))) {
        let found = program_of(job, context);
        missing.extend(found.errors.into_iter().map(|error| (name, error)));
        for note in found.notes {
            context.out.note(&format!("Programs/{name}.toml: {note}"));
        }
    }
    errors.extend(missing.iter().map(|(name, error)| place(Some(name), error)));
    tell_errors(context, files.len(), &errors)?;
    Ok(if errors.is_empty() { Code::Done } else { Code::Failed })
}

/// What can be seen of a job's program and its secrets from here.
pub(super) fn program_of(job: &Job, context: &Context) -> Found {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut found = look_for_program(job, &context.client.layout.programs, &path);
    found.notes.extend(secrets::missing(&*context.client.disk, &context.client.layout, job));
    found
}

pub(super) fn tell_errors(context: &Context, jobs: usize, errors: &[Located<'_>]) -> Result<(), Failure> {
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
