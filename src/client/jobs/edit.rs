//! Add, update, enable and delete: job files, changed by hand of a client.
//!
//! What a device would refuse is never written, and what is not concerned stays as it is, byte for byte.

use std::ffi::OsString;

use toml_edit::Value;

use super::change::{Change, Done};
use crate::client::{Client, Code, Failure, view};
use crate::decide::queue::job_name;
use crate::model::entry::Source;
use crate::model::ids::{JobName, RunId};
use crate::model::job::draft::Draft;
use crate::model::job::{Job, JobError, JobType, parse};
use crate::model::message::{bad_name, quoted};
use crate::model::trigger::Target;
use crate::store::Refused;
use crate::volume::disk::{Guard, Kind};
use crate::volume::os::real_path;
use crate::volume::programs::write::{self, path_of};
use crate::volume::programs::{ALL_JOBS, LIMIT, job_of, read, read_text};
use crate::volume::{self, Context as _, found};

/// So many errors of a file are told.
const SHOWN: usize = 5;
/// How often a file is read again that somebody else changes meanwhile.
const TRIES: u32 = 5;

/// Writes a new job file.
///
/// # Errors
/// Exit code 2: the name is taken or breaks the rule, or a device would refuse the file; 4: it cannot be written.
pub fn add(client: &mut Client, name: &str, change: &Change) -> Result<Job, Failure> {
    let job = named(client, name, "choose a name that follows the rule")?;
    if job_of(&file_of(&job)).is_none() {
        let error = format!("Programs/{job}.toml is no job's file, whatever is in it");
        return Err(Failure::new(Code::Usage, error, "choose another name"));
    }
    writable(client)?;
    let is_there = || {
        let hint = format!("`orchestrator jobs update {job}` changes it, `orchestrator jobs delete {job}` removes it");
        Failure::new(Code::Exists, format!("the job {job} is there already: Programs/{job}.toml"), hint)
    };
    let path = path_of(&client.layout, &job);
    // Before anything is said of the options.
    if found(client.disk.stat(&path)).on("look at", &path)?.is_some() {
        return Err(is_there());
    }
    let mut draft = Draft::default();
    change.clone().apply(&mut draft)?;
    let new = checked(&job, &draft)?;
    let written = write::add(&*client.disk, &mut client.names, &client.layout, &job, &draft.text());
    if !written.map_err(not_written)? {
        return Err(is_there());
    }
    Ok(new)
}

/// Changes a job file.
///
/// # Errors
/// Exit code 3: nobody knows the job; 2: there is nothing to change, or a device would refuse the result; 4: it cannot be
/// written.
pub fn update(client: &mut Client, name: &str, change: &Change) -> Result<(Job, Done), Failure> {
    if change.is_empty() {
        let hint = "name a key and its value, such as --timeout 30m; `orchestrator jobs update --help` shows all";
        return Err(Failure::new(Code::Usage, "there is nothing to change", hint));
    }
    rewrite(client, name, |_| change.clone())
}

/// Lets a job run, or run no more; whether that is new.
///
/// # Errors
/// As [`update`].
pub fn enable(client: &mut Client, name: &str, enabled: bool) -> Result<(Job, bool), Failure> {
    let (new, done) = rewrite(client, name, |draft| {
        // Where nothing is said a job is enabled.
        let is_so = enabled && !draft.has(&["enabled"]);
        let set = if is_so { Vec::new() } else { vec![("enabled", Value::from(enabled))] };
        Change { set, ..Change::default() }
    })?;
    Ok((new, !done.set.is_empty()))
}

/// A job that has no file any more.
#[derive(Debug)]
pub struct Deleted {
    /// The job.
    pub job: JobName,
    /// Whether it was a daemon, as far as its file could be read.
    pub was_always: bool,
    /// What of it is not over.
    pub open: Open,
}

/// Removes a job file.
///
/// # Errors
/// Exit code 3: nobody knows the job; 4: it cannot be removed.
pub fn delete(client: &mut Client, name: &str) -> Result<Deleted, Failure> {
    let job = known(client, name)?;
    writable(client)?;
    let lock = locked(client)?;
    let old = read(&*client.disk, &client.layout, &file_of(&job), &job).ok();
    if !write::remove(&*client.disk, &client.layout, &job).map_err(not_written)? {
        return Err(no_such_job(client, name)?);
    }
    // All devices wait for it: what follows may take its time.
    drop(lock);
    let open = Open::of(client, &job)?;
    Ok(Deleted { job, was_always: old.is_some_and(|old| is_always(&old)), open })
}

/// Whether a job is a daemon.
#[must_use]
pub fn is_always(job: &Job) -> bool {
    matches!(job.kind, JobType::Always(_))
}

fn file_of(job: &JobName) -> OsString {
    format!("{job}.toml").into()
}

/// A job's name. Where a file has that name and it is none, the file is what is wrong.
fn named(client: &Client, name: &str, hint: &str) -> Result<JobName, Failure> {
    if name == ALL_JOBS {
        let error = format!("a job cannot be called {ALL_JOBS:?}: the name stands for every job");
        return Err(Failure::new(Code::Usage, error, hint));
    }
    JobName::new(name).map_err(|bad| {
        let file = format!("{name}.toml");
        let is_file = !name.contains('/') && client.disk.stat(&client.layout.programs.join(&file)).is_ok();
        let rename = format!("Programs/ has a file {}: rename it, it is no job", quoted(&file));
        Failure::new(Code::Usage, bad_name(&bad), if is_file { &rename } else { hint })
    })
}

/// The name of a job that has a file, be it a good one or not.
fn known(client: &Client, name: &str) -> Result<JobName, Failure> {
    let job = named(client, name, "`orchestrator jobs list` shows all jobs")?;
    let path = path_of(&client.layout, &job);
    let is_there = found(client.disk.stat(&path)).on("look at", &path)?.is_some();
    if is_there && job_of(&file_of(&job)).is_some() { Ok(job) } else { Err(no_such_job(client, name)?) }
}

fn no_such_job(client: &Client, name: &str) -> Result<Failure, Failure> {
    Ok(view::no_such_job(name, view::programs(client)?.catalog()))
}

/// Makes sure that `Programs/` is a folder to write to.
fn writable(client: &Client) -> Result<(), Failure> {
    // With a slash at its end the system would follow a link.
    let folder: std::path::PathBuf = client.layout.programs.components().collect();
    match client.disk.stat(&folder).on("look at", &folder)?.kind {
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
fn locked(client: &Client) -> Result<Guard, Failure> {
    let lock = client.layout.lock();
    view::commit(client, |_| client.disk.lock(&lock).on("lock", &lock)?.ok_or(Refused::Busy))
}

/// Changes a job's file, if the result is good; tries again if somebody else changes it meanwhile.
fn rewrite(client: &mut Client, name: &str, change: impl Fn(&Draft) -> Change) -> Result<(Job, Done), Failure> {
    let job = known(client, name)?;
    let file = file_of(&job);
    writable(client)?;
    let _lock = locked(client)?;
    for _ in 0..TRIES {
        let read = read_text(&*client.disk, &client.layout, &file);
        let (text, id) = read.map_err(|unread| refused(&unread.into_errors()))?;
        let mut draft = Draft::open(&file.to_string_lossy(), &text).map_err(|errors| refused(&errors))?;
        let done = change(&draft).apply(&mut draft)?;
        let new = checked(&job, &draft)?;
        let after = draft.text();
        let written = after == text
            || write::replace(&*client.disk, &mut client.names, &client.layout, &job, &after, &id)
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

/// Runs of a job that are not over.
#[derive(Debug, Default)]
pub struct Open {
    /// They are active.
    pub active: Vec<RunId>,
    /// They wait for another attempt.
    pub again: Vec<RunId>,
    /// They wait for their first.
    pub triggers: Vec<RunId>,
}

impl Open {
    /// Those of `job`.
    ///
    /// # Errors
    /// Exit code 4.
    pub fn of(client: &Client, job: &JobName) -> Result<Self, Failure> {
        let mut open = Self::default();
        // Before the state: what is claimed in between is then active rather than nowhere.
        let waiting = view::waiting(client)?;
        let state = view::state(client)?.unwrap_or_default();
        let of_job = state.runs.of_job(job).filter(|(_, held)| !held.command);
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
