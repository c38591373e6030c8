//! Job files: `Programs/<job>.toml`, read again when they change, each by itself.
//!
//! An error in one leaves its previous good definition in force and every other job untouched.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::time::Duration;

use super::disk::{Disk, Kind};
use super::layout::Layout;
use super::{Context, Error};
use crate::decide::catalog::Catalog;
use crate::decide::mentions::check;
use crate::model::config::JOB_FILE_SETTLE;
use crate::model::entry::FileId;
use crate::model::ids::{JobName, NAME_RULE};
use crate::model::job::{self, Job, JobError};
use crate::model::pools::{self, Pools};

pub mod write;

/// The largest job file that is read, bytes.
pub const LIMIT: u64 = 1 << 20;
/// Where the sizes of pools stand.
const POOLS: &str = "pools.toml";
/// Files in `Programs/` that look like jobs and are none.
/// Stands for every job where jobs are named (`POST /restart/all`), so no job has this name.
pub const ALL_JOBS: &str = "all";
const NO_JOBS: [&str; 3] = [POOLS, "pyproject.toml", "Cargo.toml"];

#[derive(Debug, Default)]
struct File {
    /// `None`: it could not be looked at yet.
    id: Option<FileId>,
    since: Duration,
    taken: bool,
    /// The reason for which the last scan could not look at it or read it: what was read before stays in force, and the next scan looks again.
    unread: Option<JobError>,
    /// What it said when it was read last, if it could be read.
    read: Option<Arc<Job>>,
    /// What is wrong with it by itself.
    errors: Vec<JobError>,
    /// What is wrong with what it says of other files.
    mentions: Vec<JobError>,
}

impl File {
    fn errors(&self) -> impl Iterator<Item = &JobError> {
        self.unread.iter().chain(&self.errors).chain(&self.mentions)
    }
}

/// The reason for which a file gives no definition.
#[derive(Debug)]
pub enum Unread {
    /// The volume failed: the file may be a good one.
    Volume(JobError),
    /// Everything that is wrong with it by itself.
    Wrong(Vec<JobError>),
}

impl Unread {
    /// Returns all that is known to be wrong.
    #[must_use]
    pub fn into_errors(self) -> Vec<JobError> {
        match self {
            Self::Volume(error) => vec![error],
            Self::Wrong(errors) => errors,
        }
    }
}

/// What one device knows of `Programs/`.
#[derive(Debug, Default)]
pub struct Programs {
    files: BTreeMap<OsString, File>,
    misnamed: Vec<JobError>,
    catalog: Arc<Catalog>,
    /// Jobs whose file came, changed or went, and that nobody has asked for since.
    fresh: BTreeSet<JobName>,
    /// Those of them that were defined otherwise, or not at all, when `Programs/` was looked at before.
    changed: BTreeSet<JobName>,
    started: bool,
    /// The moment at which a changed file will have been still for long enough.
    settles_at: Option<Duration>,
}

impl Programs {
    /// The jobs, each in its newest good definition.
    #[must_use]
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// What is wrong with job files, in the order of their names.
    pub fn errors(&self) -> impl Iterator<Item = &JobError> {
        self.files.values().flat_map(File::errors).chain(&self.misnamed)
    }

    /// Returns why a file could not be read at the last scan: the first of those, by name.
    #[must_use]
    pub fn unread(&self) -> Option<&JobError> {
        self.files.values().find_map(|file| file.unread.as_ref())
    }

    /// Each job file in its newest version: what it says, or all that is wrong with it.
    pub fn newest(&self) -> impl Iterator<Item = (JobName, Result<Arc<Job>, Vec<JobError>>)> {
        self.files.iter().filter_map(|(name, file)| {
            let errors: Vec<JobError> = file.errors().cloned().collect();
            let read = file.read.clone().filter(|_| errors.is_empty()).ok_or(errors);
            Some((job_of(name)?, read))
        })
    }

    /// What is wrong with other files than those of jobs: with pools, and with names.
    pub fn errors_beside(&self) -> impl Iterator<Item = &JobError> {
        let pools = self.files.get(OsStr::new(POOLS)).into_iter().flat_map(File::errors);
        pools.chain(&self.misnamed)
    }

    /// The jobs whose definition came, changed or went since the last call.
    pub fn take_fresh(&mut self) -> BTreeSet<JobName> {
        std::mem::take(&mut self.fresh)
    }

    /// Returns the jobs whose definition came or changed since the last call, other than at the first look.
    pub fn take_changed(&mut self) -> BTreeSet<JobName> {
        std::mem::take(&mut self.changed)
    }

    /// Looks at every job file; `true`: the catalog changed. A changed file is taken once it has been still for
    /// [`JOB_FILE_SETTLE`], at the first scan at once.
    ///
    /// # Errors
    /// What the system said; the catalog stays as it was.
    pub fn scan(&mut self, disk: &dyn Disk, layout: &Layout, now: Duration) -> Result<bool, Error> {
        let folder = &layout.programs;
        let mut there = BTreeSet::new();
        let mut misnamed = Vec::new();
        let names = disk.list(folder).on("list", folder)?;
        let mut changed = self.catalog.is_bare != names.is_empty();
        if changed {
            Arc::make_mut(&mut self.catalog).is_bare = names.is_empty();
        }
        for name in names {
            if name == POOLS || job_of(&name).is_some() {
                there.insert(name);
            } else {
                misnamed.extend(misnamed_job(&name));
            }
        }
        changed |= misnamed != self.misnamed;
        self.misnamed = misnamed;
        let before = self.files.len();
        self.files.retain(|name, _| there.contains(name));
        changed |= self.files.len() != before;
        for name in there {
            changed |= self.look(disk, layout, &name, now);
        }
        let settling = self.files.values().filter(|file| !file.taken && file.unread.is_none());
        self.settles_at = settling.map(|file| file.since + JOB_FILE_SETTLE).min();
        if changed {
            self.compile();
        }
        self.started = true;
        Ok(changed)
    }

    /// Returns the moment at which a changed file will have been still for long enough; one that cannot be read waits for the next scan.
    #[must_use]
    pub fn next_settle(&self) -> Option<Duration> {
        self.settles_at
    }

    /// `true`: the file was read anew, or cannot be read from now on.
    fn look(&mut self, disk: &dyn Disk, layout: &Layout, name: &OsString, now: Duration) -> bool {
        let path = layout.programs.join(name);
        let mut file = self.files.remove(name).unwrap_or_default();
        let could_be_read = file.unread.take().is_none();
        let read = disk.stat(&path).on("look at", &path).map_err(|error| volume_failed(name, &error));
        let read = read.and_then(|meta| self.take(disk, layout, name, &mut file, meta.id, now));
        let changed = read.unwrap_or_else(|unread| {
            file.unread = Some(unread);
            could_be_read
        });
        self.files.insert(name.clone(), file);
        changed
    }

    /// Reads a file that was found as `id`, if it is another one than before and has been still for long enough. `true`: it was.
    fn take(
        &mut self,
        disk: &dyn Disk,
        layout: &Layout,
        name: &OsString,
        file: &mut File,
        id: FileId,
        now: Duration,
    ) -> Result<bool, JobError> {
        if file.id != Some(id) {
            (file.id, file.since, file.taken) = (Some(id), now, false);
        }
        if file.taken || self.started && now.saturating_sub(file.since) < JOB_FILE_SETTLE {
            return Ok(false);
        }
        let read = match job_of(name) {
            Some(job) => read(disk, layout, name, &job).map(|job| Some(Arc::new(job))),
            // A size that is in force stays in force for jobs that go by it still.
            None => read_pools(disk, layout).map(|pools| {
                Arc::make_mut(&mut self.catalog).pools = pools;
                None
            }),
        };
        (file.read, file.errors) = match read {
            Ok(read) => (read, Vec::new()),
            Err(Unread::Wrong(errors)) => (None, errors),
            Err(Unread::Volume(error)) => return Err(error),
        };
        file.taken = true;
        Ok(true)
    }

    /// Makes the catalog of what was read: each job in its newest definition that is good and agrees with the other files.
    fn compile(&mut self) {
        let catalog = Arc::make_mut(&mut self.catalog);
        if !self.files.contains_key(OsStr::new(POOLS)) {
            catalog.pools.clear();
        }
        let of_files = || self.files.iter().filter_map(|(name, file)| Some((job_of(name)?, file)));
        let names: Vec<JobName> = of_files().map(|(job, _)| job).collect();
        let jobs = self.files.values().filter_map(|file| file.read.as_deref()).map(|job| (&job.name, job)).collect();
        let mut wrong = check(&jobs, &names.iter().map(JobName::as_str).collect(), &catalog.pools);
        let mut good: Vec<Arc<Job>> = Vec::new();
        for (name, file) in &mut self.files {
            file.mentions = job_of(name).and_then(|job| wrong.remove(&job)).unwrap_or_default();
            good.extend(file.read.clone().filter(|_| file.mentions.is_empty()));
        }
        let names: BTreeSet<JobName> = names.into_iter().collect();
        let gone: Vec<JobName> = catalog.jobs.keys().filter(|name| !names.contains(*name)).cloned().collect();
        for name in gone {
            catalog.jobs.remove(&name);
            self.fresh.insert(name);
        }
        for job in good {
            let before = catalog.jobs.get(&job.name);
            if before.is_none_or(|before| !Arc::ptr_eq(before, &job)) {
                if self.started && before.is_none_or(|before| **before != *job) {
                    self.changed.insert(job.name.clone());
                }
                self.fresh.insert(job.name.clone());
                catalog.jobs.insert(job.name.clone(), job);
            }
        }
        catalog.broken = names.into_iter().filter(|name| !catalog.jobs.contains_key(name)).collect();
        catalog.changes += 1;
    }
}

fn read_pools(disk: &dyn Disk, layout: &Layout) -> Result<Pools, Unread> {
    let (text, _) = read_text(disk, layout, OsStr::new(POOLS))?;
    pools::parse(POOLS, &text).map_err(Unread::Wrong)
}

/// The job that a file name stands for, if it stands for one.
#[must_use]
pub fn job_of(name: &OsString) -> Option<JobName> {
    let text = name.to_str()?;
    if NO_JOBS.contains(&text) {
        return None;
    }
    JobName::new(text.strip_suffix(".toml")?).ok().filter(|job| job.as_str() != ALL_JOBS)
}

/// What is wrong with a file that looks like a job's and whose name is none.
#[must_use]
pub fn misnamed_job(name: &OsString) -> Option<JobError> {
    let file = name.to_string_lossy();
    let stem = file.strip_suffix(".toml").filter(|_| !file.starts_with('.'))?;
    if NO_JOBS.contains(&&*file) || job_of(name).is_some() {
        return None;
    }
    let rule = if stem == ALL_JOBS { "another one: this stands for every job" } else { NAME_RULE };
    Some(JobError {
        file: file.to_string(),
        line: 1,
        column: 1,
        error: format!("the file's name gives the job the name {stem:?}: expected {rule}"),
        hint: "rename the file".to_owned(),
    })
}

/// Reads one job file.
///
/// # Errors
/// The reason for which it gives no definition.
pub fn read(disk: &dyn Disk, layout: &Layout, name: &OsString, job: &JobName) -> Result<Job, Unread> {
    let (text, _) = read_text(disk, layout, name)?;
    job::parse(job, &name.to_string_lossy(), &text).map_err(Unread::Wrong)
}

/// The text of a job file, and which file it was.
///
/// # Errors
/// Why it is no text.
pub fn read_text(disk: &dyn Disk, layout: &Layout, name: &OsStr) -> Result<(String, FileId), Unread> {
    let path = layout.programs.join(name);
    let read = disk.read(&path, LIMIT).on("read", &path);
    let (bytes, meta) = read.map_err(|error| Unread::Volume(volume_failed(name, &error)))?;
    let wrong = |error: String, hint: &str| Err(Unread::Wrong(vec![whole(name, error, hint)]));
    if meta.kind != Kind::File {
        return wrong(format!("found {}, expected a regular file", meta.kind), "copy the file itself");
    }
    if meta.id.size > LIMIT {
        return wrong(format!("found {} bytes, expected at most {LIMIT}", meta.id.size), "a job file is short");
    }
    String::from_utf8(bytes).map(|text| (text, meta.id)).or_else(|error| {
        let at = error.utf8_error().valid_up_to();
        wrong(format!("found a byte that is not UTF-8 at offset {at}"), "save it as UTF-8")
    })
}

fn volume_failed(name: &OsStr, error: &Error) -> JobError {
    whole(name, error.to_string(), error.hint())
}

/// An error that concerns a file as a whole.
fn whole(name: &OsStr, error: String, hint: &str) -> JobError {
    JobError { file: name.to_string_lossy().into_owned(), line: 1, column: 1, error, hint: hint.to_owned() }
}
