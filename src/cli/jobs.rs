//! `orchestrator jobs`: what `Programs/` holds, what is wrong with it, and changes of it.

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};

use super::out::{Cell, Paint};
use super::times::short;
use super::{Code, Context, Failure};
use crate::client::jobs::{Row, files, row};
use crate::client::view;
use crate::model::ids::Tag;
use crate::model::result::Status;

mod edit;
mod options;
mod show;
mod validate;

/// The verbs of `jobs`.
#[derive(Debug, Subcommand)]
pub(super) enum JobsVerb {
    /// All jobs.
    List,
    /// One job's definition, defaults included.
    Show(JobArg),
    /// When it runs next, or why it does not.
    Explain(JobArg),
    /// Write a new job file.
    #[command(after_help = ADD_HELP)]
    Add(Box<edit::AddArgs>),
    /// Change a job file; its comments, order and formatting stay.
    #[command(after_help = UPDATE_HELP)]
    Update(Box<edit::UpdateArgs>),
    /// Let a job run again.
    Enable(JobArg),
    /// Let a job run no more until it is enabled; its triggers wait.
    Disable(JobArg),
    /// Remove a job file, without asking.
    Delete(JobArg),
    /// Check job files; exit code 1 if one has an error.
    Validate(validate::ValidateArgs),
}

const ADD_HELP: &str = "\
A key of one type, such as --time, brings its type with it. Nothing is written that a device would refuse.

Examples:
  orchestrator jobs add report --file report.py --function run --time 09:00 --timezone Europe/Berlin
  orchestrator jobs add --name sweep --interval 30m --tag nas -- find /tmp/cache -mtime +7 -delete";

const UPDATE_HELP: &str = "\
A value takes the place of the old one, a list of the whole list; --kwarg and --env change single members.
A key of another type, such as --interval for a daily job, changes the type; keys that the new type does not have go.
Nothing is written that a device would refuse.

Examples:
  orchestrator jobs update report --interval 30m
  orchestrator jobs update report --retries 3 --retry-on 75,124 --unset timeout
  orchestrator jobs update report --kwarg date=yesterday --unset env.MODE";

/// Which job.
#[derive(Debug, Clone, Args)]
pub(super) struct JobArg {
    /// The job, by the name of its file in Programs.
    job: String,
}

pub(super) fn jobs(verb: &JobsVerb, context: &mut Context) -> Result<Code, Failure> {
    context.client.need_volume()?;
    match verb {
        JobsVerb::List => list(context),
        JobsVerb::Show(args) => show::show(&args.job, context),
        JobsVerb::Add(args) => edit::add(args, context),
        JobsVerb::Update(args) => edit::update(args, context),
        JobsVerb::Enable(args) => edit::enable(&args.job, true, context),
        JobsVerb::Disable(args) => edit::enable(&args.job, false, context),
        JobsVerb::Delete(args) => edit::delete(&args.job, context),
        JobsVerb::Validate(args) => validate::validate(&args.jobs, context),
        JobsVerb::Explain(args) => super::explain::explain(&args.job, context),
    }
}

fn list(context: &Context) -> Result<Code, Failure> {
    let client = &context.client;
    let state = view::state(client)?.unwrap_or_default();
    let (files, misnamed) = files(client)?;
    let rows: Vec<Row> = files.iter().map(|file| row(client, file, &state)).collect::<Result<_, _>>()?;
    if context.out.json {
        context.out.document(&rows)?;
        return Ok(Code::Done);
    }
    let now = client.now().wall;
    let cells: Vec<[Cell; 6]> = rows
        .iter()
        .map(|row| {
            let state = match (row.valid, row.enabled) {
                (false, _) => Cell::painted("invalid", Paint::Red),
                (true, Some(false)) => Cell::painted("disabled", Paint::Dim),
                (true, _) => Cell::painted("enabled", Paint::Green),
            };
            let tags = if row.tags.is_empty() {
                "-".to_owned()
            } else {
                row.tags.iter().map(Tag::as_str).collect::<Vec<_>>().join(",")
            };
            [
                Cell::new(row.job.as_str()),
                Cell::new(row.kind.unwrap_or("-")),
                state,
                Cell::new(tags),
                Cell::new(next_of(row).map_or_else(|| "-".to_owned(), |at| short(at, now))),
                Cell::new(row.last_status.map_or("-", Status::as_str)),
            ]
        })
        .collect();
    if cells.is_empty() {
        context.out.note(&format!("there is no job in {}", client.layout.programs.display()));
    } else {
        context.out.table(["JOB", "TYPE", "STATE", "TAGS", "NEXT", "LAST"], &cells)?;
    }
    if !misnamed.is_empty() || rows.iter().any(|row| !row.valid) {
        context.out.note(
            "`orchestrator jobs validate` says what is wrong; a device goes on with the last good version it has read",
        );
    }
    Ok(Code::Done)
}

fn next_of(row: &Row) -> Option<DateTime<Utc>> {
    row.next_due_at.as_deref().and_then(|at| at.parse().ok())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use crate::volume::programs::misnamed_job;

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
