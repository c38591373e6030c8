//! Results: staged aside, made visible by a commit, found again by name.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde_json::value::RawValue;

use super::atomic::{Temporary, discard, in_folder, stage, write_new};
use super::disk::{Disk, Kind};
use super::layout::Layout;
use super::{Context, Error, found};
use crate::model::config::{RESULT_LIMIT, TRIGGER_DEPTH};
use crate::model::ids::{JobName, RunId, Session, is_name, stamp};
use crate::model::json_scan::depth;
use crate::model::lease::Lease;
use crate::model::masker::Masker;
use crate::model::result::Outcome;
use crate::model::trigger::Json;

/// The largest result file that is read, bytes: a trigger's arguments, the program's result and what surrounds them.
const FILE_LIMIT: u64 = 8 << 20;
/// Why a result is left out that was JSON.
const HIDDEN: &str = "AIOS_RESULT holds the value of a secret where masking it would leave no JSON";

/// Where a result waits for the commit that accepts it: beside its final place, under the session's own name.
#[must_use]
pub fn staged_path(layout: &Layout, job: &JobName, lease: &Lease, session: &Session) -> PathBuf {
    layout.result(job, lease).with_file_name(format!(".{job}.{lease}.{session}.staged"))
}

/// Writes a result aside; an earlier one of the same attempt and session is replaced.
///
/// # Errors
/// What the system said.
pub fn stage_result(
    disk: &dyn Disk,
    layout: &Layout,
    names: &mut Temporary,
    session: &Session,
    outcome: &Outcome,
) -> Result<(), Error> {
    let lease = Lease { run: outcome.run_id.clone(), attempt: outcome.attempt };
    let path = staged_path(layout, &outcome.job, &lease, session);
    let bytes = to_bytes(outcome, &path)?;
    match in_folder(disk, &path, || disk.create(&path, &bytes)) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let fresh = stage(disk, names, &path, &bytes)?;
            disk.replace(&fresh, &path).inspect_err(|_| discard(disk, &fresh)).on("write", &path)
        }
        other => other.on("write", &path),
    }
}

/// Keeps what an attempt reported after it had lost its lease, and forgets what was staged.
///
/// # Errors
/// What the system said.
pub fn supersede(
    disk: &dyn Disk,
    layout: &Layout,
    names: &mut Temporary,
    session: &Session,
    outcome: &Outcome,
) -> Result<(), Error> {
    let lease = Lease { run: outcome.run_id.clone(), attempt: outcome.attempt };
    let path = layout.superseded(&outcome.job, &lease);
    write_new(disk, names, &path, &to_bytes(outcome, &path)?)?;
    discard(disk, &staged_path(layout, &outcome.job, &lease, session));
    Ok(())
}

fn to_bytes(outcome: &Outcome, path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = serde_json::to_vec(outcome).map_err(std::io::Error::from).on("write", path)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Reads a result. `None`: there is none, or it cannot be read as one (then a warning says so).
///
/// # Errors
/// What the system said.
pub fn read(disk: &dyn Disk, path: &Path) -> Result<Option<Outcome>, Error> {
    let Some((bytes, _)) = found(disk.read(path, FILE_LIMIT)).on("read", path)? else { return Ok(None) };
    match serde_json::from_slice(&bytes) {
        Ok(outcome) => Ok(Some(outcome)),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "this result cannot be read; it counts as not there");
            Ok(None)
        }
    }
}

/// Returns whether a result lies at a path, and all of it.
///
/// # Errors
/// The error of the system.
pub fn is_whole(disk: &dyn Disk, path: &Path) -> Result<bool, Error> {
    let read = found(disk.read(path, FILE_LIMIT)).on("read", path)?;
    Ok(read.is_some_and(|(bytes, _)| serde_json::from_slice::<Outcome>(&bytes).is_ok()))
}

/// Returns whether what lies at a path is a result. Content that is none is set aside as `<name>.damaged-<time>`: nobody can ever use its
/// name otherwise. One that this device may not read may be whole, and stays. `false`: nothing lies there now.
///
/// # Errors
/// What the system said.
pub fn stands(disk: &dyn Disk, path: &Path) -> Result<bool, Error> {
    if is_whole(disk, path)? {
        return Ok(true);
    }
    let Some(meta) = found(disk.stat(path)).on("look at", path)? else { return Ok(false) };
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".damaged-{}", stamp(meta.changed)));
    let aside = PathBuf::from(name);
    found(disk.rename_new(path, &aside)).on("set aside", path)?;
    tracing::warn!(path = %path.display(), kept = %aside.display(), "this result cannot be read: it is set aside");
    Ok(false)
}

/// Reads a result as it stands there, byte for byte. `None`: there is none.
///
/// # Errors
/// What the system said.
pub fn read_bytes(disk: &dyn Disk, path: &Path) -> Result<Option<Vec<u8>>, Error> {
    Ok(found(disk.read(path, FILE_LIMIT)).on("read", path)?.map(|(bytes, _)| bytes))
}

/// What a program reported through `AIOS_RESULT`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Output {
    /// The value it wrote.
    pub result: Option<Json>,
    /// Why there is none although it wrote one.
    pub result_error: Option<String>,
    /// What the function runner says went wrong.
    pub error: Option<String>,
}

/// Takes what the program wrote, with its secrets masked, and removes it.
///
/// # Errors
/// What the system said.
pub fn take_output(disk: &dyn Disk, path: &Path, is_function: bool, masker: &Masker) -> Result<Output, Error> {
    let mut output = Output::default();
    if let Some((bytes, meta)) = found(disk.read(path, RESULT_LIMIT)).on("read", path)? {
        match check_output(&bytes, meta.kind, meta.id.size) {
            Ok(json) => {
                output.result = masker.mask_json(json);
                output.result_error = output.result.is_none().then(|| HIDDEN.to_owned());
            }
            Err(why) => output.result_error = Some(why),
        }
        if meta.kind != Kind::Folder {
            disk.remove(path).on("remove", path)?;
        }
    }
    if is_function {
        let path = error_path(path);
        if let Some((mut bytes, _)) = found(disk.read(&path, RESULT_LIMIT)).on("read", &path)? {
            masker.mask(&mut bytes);
            let text: String = String::from_utf8_lossy(&bytes).trim().chars().take(2_000).collect();
            output.error = (!text.is_empty()).then_some(text);
            disk.remove(&path).on("remove", &path)?;
        }
    }
    Ok(output)
}

/// Where the function runner says what went wrong.
fn error_path(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".error");
    PathBuf::from(name)
}

/// Removes what the program of a dead device has left: nobody takes it any more.
pub fn discard_output(disk: &dyn Disk, path: &Path) {
    for path in [path.to_owned(), error_path(path)] {
        // It is hidden and small; should it stay, nothing looks at it.
        let _ = disk.remove(&path);
    }
}

fn check_output(bytes: &[u8], kind: Kind, size: u64) -> Result<Json, String> {
    if kind != Kind::File {
        return Err(format!("AIOS_RESULT is {kind}, not a file"));
    }
    if size > RESULT_LIMIT {
        return Err(format!("AIOS_RESULT has {size} bytes, at most {RESULT_LIMIT} are taken"));
    }
    let json =
        serde_json::from_slice::<Box<RawValue>>(bytes).map_err(|error| format!("AIOS_RESULT is not JSON: {error}"))?;
    let levels = depth(json.get());
    if levels > TRIGGER_DEPTH {
        return Err(format!("AIOS_RESULT has {levels} levels, at most {TRIGGER_DEPTH} are taken"));
    }
    Ok(Json::from(json))
}

/// A result's or log's name, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    /// The run.
    pub run: RunId,
    /// The attempt.
    pub attempt: u32,
    /// The job.
    pub job: JobName,
    /// It is the report of an attempt that had lost its lease.
    pub superseded: bool,
}

/// Reads `<job>.<run_id>.<attempt>[.superseded].<ending>`.
#[must_use]
pub fn parse_name(name: &OsStr, ending: &str) -> Option<Named> {
    let base = name.to_str()?.strip_suffix(ending)?.strip_suffix('.')?;
    let (base, superseded) = base.strip_suffix(".superseded").map_or((base, false), |base| (base, true));
    let (rest, attempt) = base.rsplit_once('.')?;
    let (job, run) = rest.rsplit_once('.')?;
    if !is_name(job) {
        return None;
    }
    Some(Named { run: RunId::parse(run)?, attempt: attempt.parse().ok()?, job: JobName::new(job).ok()?, superseded })
}

/// All results of one day, `yyyy-mm-dd`, in the order of their runs.
///
/// # Errors
/// What the system said.
pub fn of_day(disk: &dyn Disk, layout: &Layout, date: &str) -> Result<Vec<Named>, Error> {
    names_in(disk, &layout.results().join(date), "json")
}

/// The number of attempts in a row that may leave no result: each is a device that died between its claim and its commit.
const UNSTARTED: u32 = 8;

/// Returns the result that ended a run, if one did. Attempts are looked for by name, 0 and then one after another until several in a row
/// are missing (those that were never started leave none): a day's folder may hold too many to be listed for one run.
///
/// # Errors
/// What the system said.
pub fn final_of(disk: &dyn Disk, layout: &Layout, job: &JobName, run: &RunId) -> Result<Option<Outcome>, Error> {
    let mut missing = 0;
    for attempt in 0.. {
        match read(disk, &layout.result(job, &Lease { run: run.clone(), attempt }))? {
            Some(outcome) if outcome.is_final => return Ok(Some(outcome)),
            Some(_) => missing = 0,
            None if missing > UNSTARTED => break,
            None => missing += 1,
        }
    }
    Ok(None)
}

/// Returns the result that ends a run without this attempt, if one was decided on and perhaps not written yet: then the attempt's log
/// says the same as that result ([`Layout::pending_end`]): no start has made it.
///
/// # Errors
/// What the system said.
pub fn pending_end(disk: &dyn Disk, layout: &Layout, job: &JobName, lease: &Lease) -> Result<Option<Outcome>, Error> {
    let path = layout.pending_end(job, lease);
    let Some(bytes) = found(disk.read(&path, FILE_LIMIT)).on("read", &path)?.map(|(bytes, _)| bytes) else {
        return Ok(None);
    };
    let log = layout.log(job, lease);
    let is_same = found(disk.read(&log, FILE_LIMIT)).on("read", &log)?.is_some_and(|(other, _)| other == bytes);
    Ok(serde_json::from_slice(&bytes).ok().filter(|_| is_same))
}

/// Returns the result of the newest attempt before this one that has left any. Attempts that were never started leave none.
///
/// # Errors
/// What the system said.
pub fn last_before(disk: &dyn Disk, layout: &Layout, job: &JobName, next: &Lease) -> Result<Option<Outcome>, Error> {
    for attempt in (1..next.attempt).rev() {
        let lease = Lease { run: next.run.clone(), attempt };
        if let Some(outcome) = read(disk, &layout.result(job, &lease))? {
            return Ok(Some(outcome));
        }
    }
    Ok(None)
}

/// All results or logs in one day's folder, in the order of their runs.
///
/// # Errors
/// What the system said.
pub fn names_in(disk: &dyn Disk, folder: &Path, ending: &str) -> Result<Vec<Named>, Error> {
    let names = found(disk.list(folder)).on("list", folder)?.unwrap_or_default();
    let mut named: Vec<_> = names.iter().filter_map(|name| parse_name(name, ending)).collect();
    named.sort();
    Ok(named)
}

/// The days that have results, newest first.
///
/// # Errors
/// What the system said.
pub fn days(disk: &dyn Disk, layout: &Layout) -> Result<Vec<String>, Error> {
    days_in(disk, &layout.results())
}

/// The days that have a folder of their own in `folder`, newest first.
///
/// # Errors
/// What the system said.
pub fn days_in(disk: &dyn Disk, folder: &Path) -> Result<Vec<String>, Error> {
    let names = found(disk.list(folder)).on("list", folder)?.unwrap_or_default();
    let is_day = |name: &String| chrono::NaiveDate::parse_from_str(name, "%Y-%m-%d").is_ok();
    let mut days: Vec<_> = names.into_iter().filter_map(|name| name.into_string().ok()).filter(is_day).collect();
    days.sort_unstable_by(|a, b| b.cmp(a));
    Ok(days)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_job_run_and_attempt() {
        let named = parse_name(OsStr::new("a.b.20261121T034156123Z-k3f9q2.12.superseded.json"), "json").unwrap();
        assert_eq!((named.job.as_str(), named.attempt, named.superseded), ("a.b", 12, true));
        for other in ["x.json", ".a.20261121T034156123Z-k3f9q2.1.json", "a.20261121T034156123Z-k3f9q2.x.json"] {
            assert_eq!(parse_name(OsStr::new(other), "json"), None, "{other}");
        }
    }
}
