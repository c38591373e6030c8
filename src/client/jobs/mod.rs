//! Jobs: what `Programs/` holds, and what is wrong with it.

use std::sync::Arc;

use serde::Serialize;

use super::explain::next_due;
use super::{Client, Failure, view};
use crate::model::ids::{JobName, Tag};
use crate::model::job::{Job, JobError};
use crate::model::result::Status;
use crate::model::state::{JobMark, State};
use crate::model::time::rfc3339;

pub mod body;
pub mod change;
pub mod edit;
pub mod overview;
pub mod show;

/// A job file and what it says.
#[derive(Debug)]
pub struct File {
    /// The job.
    pub job: JobName,
    /// What was read, or what is wrong with it.
    pub read: Result<Arc<Job>, Vec<JobError>>,
}

/// All job files, by name, and what is wrong with other files of Programs.
///
/// # Errors
/// Exit code 4.
pub fn files(client: &Client) -> Result<(Vec<File>, Vec<JobError>), Failure> {
    let programs = view::programs(client)?;
    let files = programs.newest().map(|(job, read)| File { job, read }).collect();
    Ok((files, programs.errors_beside().cloned().collect()))
}

/// One job in a list (`docs/reference/formats.md`, "JSON shapes").
#[derive(Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub job: JobName,
    /// Its type; none if its file has an error.
    #[serde(rename = "type")]
    pub kind: Option<&'static str>,
    /// Whether it may run, likewise.
    pub enabled: Option<bool>,
    /// Whether its file can be read.
    pub valid: bool,
    /// What a device must have for it.
    pub tags: Vec<Tag>,
    /// When it is due next.
    pub next_due_at: Option<String>,
    /// How its newest run ended.
    pub last_status: Option<Status>,
}

/// A job file as lists show it.
///
/// # Errors
/// Exit code 4.
pub fn row(client: &Client, file: &File, state: &State) -> Result<Row, Failure> {
    let good = file.read.as_ref().ok();
    let next = good.map(|job| next_due(client, job, state)).transpose()?.flatten();
    Ok(Row {
        job: file.job.clone(),
        kind: good.map(|job| job.kind.word()),
        enabled: good.map(|job| job.enabled),
        valid: good.is_some(),
        tags: good.map_or_else(Vec::new, |job| job.tags.iter().cloned().collect()),
        next_due_at: next.map(rfc3339),
        last_status: state.jobs.get(&file.job).and_then(|mark| mark.last_status),
    })
}

/// The file of one job.
///
/// # Errors
/// Exit code 2 or 3: the name breaks the rule, or nobody has it.
pub fn file(client: &Client, name: &str) -> Result<File, Failure> {
    let job = view::job_name(name)?;
    let (mut files, _) = files(client)?;
    match files.iter().position(|file| file.job == job) {
        Some(at) => Ok(files.swap_remove(at)),
        None => Err(view::no_such_job(name, view::programs(client)?.catalog())),
    }
}

/// What is remembered of a job.
///
/// # Errors
/// Exit code 4.
pub fn mark(client: &Client, job: &JobName) -> Result<JobMark, Failure> {
    let state = view::state(client)?.unwrap_or_default();
    Ok(state.jobs.get(job).cloned().unwrap_or_default())
}
