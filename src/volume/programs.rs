//! Job files: `Programs/<job>.toml`, read again when they change, each by itself.
//!
//! An error in one leaves its previous good definition in force and every other job untouched.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use super::disk::{Disk, Kind};
use super::layout::Layout;
use super::{Context, Error};
use crate::decide::catalog::Catalog;
use crate::model::config::JOB_FILE_SETTLE;
use crate::model::entry::FileId;
use crate::model::ids::{JobName, NAME_RULE};
use crate::model::job::{self, JobError};

/// The largest job file that is read, bytes.
const LIMIT: u64 = 1 << 20;
/// Files in `Programs/` that look like jobs and are none.
const NO_JOBS: [&str; 3] = ["pools.toml", "pyproject.toml", "Cargo.toml"];

#[derive(Debug)]
struct File {
    id: FileId,
    since: Duration,
    taken: bool,
    errors: Vec<JobError>,
}

/// What one device knows of `Programs/`.
#[derive(Debug, Default)]
pub struct Programs {
    files: BTreeMap<OsString, File>,
    misnamed: Vec<JobError>,
    catalog: Catalog,
    started: bool,
}

impl Programs {
    /// The jobs, each in its newest good definition.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// What is wrong with job files, in the order of their names.
    pub fn errors(&self) -> impl Iterator<Item = &JobError> {
        self.files.values().flat_map(|file| &file.errors).chain(&self.misnamed)
    }

    /// Looks at every job file; `true`: the catalog changed. A changed file is taken once it has been still for
    /// [`JOB_FILE_SETTLE`], at the first scan at once.
    ///
    /// # Errors
    /// What the system said; the catalog stays as it was.
    pub fn scan(&mut self, disk: &dyn Disk, layout: &Layout, now: Duration) -> Result<bool, Error> {
        let folder = &layout.programs;
        let mut there = BTreeMap::new();
        let mut misnamed = Vec::new();
        for name in disk.list(folder).on("list", folder)? {
            match job_of(&name) {
                Some(job) => {
                    there.insert(name, job);
                }
                None => misnamed.extend(misnamed_job(&name)),
            }
        }
        let mut changed = misnamed != self.misnamed;
        self.misnamed = misnamed;
        let gone: Vec<_> = self.files.keys().filter(|name| !there.contains_key(*name)).cloned().collect();
        for name in gone {
            self.files.remove(&name);
            if let Some(job) = job_of(&name) {
                changed |= self.catalog.jobs.remove(&job).is_some() | self.catalog.broken.remove(&job);
            }
        }
        for (name, job) in there {
            changed |= self.look(disk, layout, &name, &job, now)?;
        }
        self.started = true;
        Ok(changed)
    }

    /// When a changed file will have been still for long enough.
    #[must_use]
    pub fn next_settle(&self) -> Option<Duration> {
        self.files.values().filter(|file| !file.taken).map(|file| file.since + JOB_FILE_SETTLE).min()
    }

    fn look(
        &mut self,
        disk: &dyn Disk,
        layout: &Layout,
        name: &OsString,
        job: &JobName,
        now: Duration,
    ) -> Result<bool, Error> {
        let path = layout.programs.join(name);
        let Ok(meta) = disk.stat(&path) else { return Ok(false) };
        let known = self.files.get(name).filter(|file| file.id == meta.id);
        let since = known.map_or(now, |file| file.since);
        let waited = !self.started || now.saturating_sub(since) >= JOB_FILE_SETTLE;
        if known.is_some_and(|file| file.taken) {
            return Ok(false);
        }
        if !waited {
            let errors = self.files.remove(name).map_or_else(Vec::new, |file| file.errors);
            self.files.insert(name.clone(), File { id: meta.id, since, taken: false, errors });
            return Ok(false);
        }
        let errors = match read(disk, layout, name, job) {
            Ok(good) => {
                self.catalog.broken.remove(job);
                self.catalog.jobs.insert(job.clone(), Arc::new(good));
                Vec::new()
            }
            Err(errors) => {
                if !self.catalog.jobs.contains_key(job) {
                    self.catalog.broken.insert(job.clone());
                }
                errors
            }
        };
        self.files.insert(name.clone(), File { id: meta.id, since, taken: true, errors });
        Ok(true)
    }
}

/// The job that a file name stands for, if it stands for one.
#[must_use]
pub fn job_of(name: &OsString) -> Option<JobName> {
    let text = name.to_str()?;
    if NO_JOBS.contains(&text) {
        return None;
    }
    JobName::new(text.strip_suffix(".toml")?).ok()
}

/// What is wrong with a file that looks like a job's and whose name is none.
#[must_use]
pub fn misnamed_job(name: &OsString) -> Option<JobError> {
    let file = name.to_string_lossy();
    let stem = file.strip_suffix(".toml").filter(|_| !file.starts_with('.'))?;
    if NO_JOBS.contains(&&*file) || job_of(name).is_some() {
        return None;
    }
    Some(JobError {
        file: file.to_string(),
        line: 1,
        column: 1,
        error: format!("the file's name gives the job the name {stem:?}: expected {NAME_RULE}"),
        hint: "rename the file".to_owned(),
    })
}

/// Reads one job file.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read(disk: &dyn Disk, layout: &Layout, name: &OsString, job: &JobName) -> Result<job::Job, Vec<JobError>> {
    let file = name.to_string_lossy();
    let whole = |error: String, hint: &str| {
        vec![JobError { file: file.to_string(), line: 1, column: 1, error, hint: hint.to_owned() }]
    };
    let path = layout.programs.join(name);
    let (bytes, meta) =
        disk.read(&path, LIMIT).on("read", &path).map_err(|error| whole(error.to_string(), error.hint()))?;
    if meta.kind != Kind::File {
        return Err(whole(format!("found {}, expected a regular file", meta.kind), "copy the file itself"));
    }
    if meta.id.size > LIMIT {
        return Err(whole(format!("found {} bytes, expected at most {LIMIT}", meta.id.size), "a job file is short"));
    }
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        whole(format!("found a byte that is not UTF-8 at offset {}", error.valid_up_to()), "save it as UTF-8")
    })?;
    job::parse(job, &file, text)
}
