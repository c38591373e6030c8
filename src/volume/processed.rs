//! Triggers that are over, found again by name: processed, duplicate or rejected.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::disk::Disk;
use super::inbox::derived_id;
use super::layout::Layout;
use super::results::days_in;
use super::{Context, Error, found};
use crate::model::config::TRIGGER_LIMIT;
use crate::model::entry::split_dropped;
use crate::model::ids::RunId;

/// The largest note beside a rejected file that is read, bytes.
const NOTE_LIMIT: u64 = 1 << 20;

/// A name in `TriggersProcessed/<date>/`, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processed {
    /// The run, or the run that the trigger would have been.
    pub run: RunId,
    /// What its files are named after.
    pub stem: String,
    /// The run that had its idempotency key, if it is a duplicate.
    pub first: Option<RunId>,
    /// The name itself.
    pub name: OsString,
}

/// Reads `<stem>.<run_id>.json` and `<stem>.<run_id>.duplicate-of.<first run_id>.json`. A number behind the id tells files of
/// the same name apart.
#[must_use]
pub fn parse_name(name: &OsStr) -> Option<Processed> {
    let base = name.to_str()?.strip_suffix(".json")?;
    let (base, first) = match base.rsplit_once(".duplicate-of.") {
        Some((base, first)) => (base, Some(RunId::parse(first)?)),
        None => (base, None),
    };
    let (mut stem, mut last) = base.rsplit_once('.')?;
    if last.parse::<u32>().is_ok() {
        (stem, last) = stem.rsplit_once('.')?;
    }
    Some(Processed { run: RunId::parse(last)?, stem: stem.to_owned(), first, name: name.to_owned() })
}

/// The triggers of one day, `yyyy-mm-dd`, in no order.
///
/// # Errors
/// What the system said.
pub fn of_day(disk: &dyn Disk, layout: &Layout, date: &str) -> Result<Vec<Processed>, Error> {
    let folder = layout.processed().join(date);
    let names = found(disk.list(&folder)).on("list", &folder)?.unwrap_or_default();
    Ok(names.iter().filter_map(|name| parse_name(name)).collect())
}

/// Whether a trigger was dropped under this name: one that carries its run's id, or one that the id was made from.
///
/// # Errors
/// What the system said.
pub fn was_dropped_as(disk: &dyn Disk, layout: &Layout, it: &Processed, name: &str) -> Result<bool, Error> {
    if let Some(carried) = split_dropped(OsStr::new(name)).1 {
        return Ok(carried == it.run);
    }
    let path = layout.processed().join(it.run.date()).join(&it.name);
    let Some((bytes, meta)) = found(disk.read(&path, TRIGGER_LIMIT)).on("read", &path)? else { return Ok(false) };
    Ok(derived_id(OsStr::new(name), &bytes, meta.id.inode, 0, it.run.time()) == it.run)
}

/// Why a file was rejected, as far as people are told.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Rejection {
    /// The name it was dropped under.
    pub name: String,
    /// What was found and what was expected.
    pub error: String,
    /// What to do about it.
    #[serde(default)]
    pub hint: String,
    /// Where, from 1, if it has a place.
    pub line: Option<usize>,
    /// The column in characters, from 1.
    pub column: Option<usize>,
}

/// Why the trigger that would have been this run was rejected, if it was: on the day it was dropped or a later one.
///
/// # Errors
/// What the system said.
pub fn rejection(disk: &dyn Disk, layout: &Layout, run: &RunId) -> Result<Option<Rejection>, Error> {
    // The day of the drop may be the eve of the day that another machine's clock shows.
    let eve = (run.time() - chrono::TimeDelta::days(1)).format("%Y-%m-%d").to_string();
    newest_note(disk, layout, &eve, |rejected| rejected.run == *run)
}

/// Why the newest file that was dropped under this name was rejected, if one was.
///
/// # Errors
/// What the system said.
pub fn rejection_of_name(disk: &dyn Disk, layout: &Layout, dropped: &str) -> Result<Option<Rejection>, Error> {
    let stem = split_dropped(OsStr::new(dropped)).0;
    newest_note(disk, layout, "", |rejected| rejected.stem == stem)
}

/// The newest rejections of triggers that were dropped since then, newest first, at most `limit`; and how many there are.
///
/// # Errors
/// What the system said.
pub fn rejected_since(
    disk: &dyn Disk,
    layout: &Layout,
    since: DateTime<Utc>,
    limit: usize,
) -> Result<(Vec<(RunId, Rejection)>, usize), Error> {
    let first = since.format("%Y-%m-%d").to_string();
    let mut notes = Vec::new();
    for day in days_in(disk, &layout.processed().join("rejected"))?.iter().take_while(|day| **day >= first) {
        let folder = layout.rejected(day);
        notes.extend(notes_in(disk, &folder)?.into_iter().map(|(it, name)| (it.run, folder.join(name))));
    }
    notes.retain(|(run, _)| run.time() >= since);
    notes.sort_by(|a, b| b.cmp(a));
    let mut newest = Vec::new();
    for (run, path) in notes.iter().take(limit) {
        newest.extend(read_note(disk, path)?.map(|note| (run.clone(), note)));
    }
    Ok((newest, notes.len()))
}

/// The notes of a day. They lie beside the rejected files, under their names.
fn notes_in(disk: &dyn Disk, folder: &Path) -> Result<Vec<(Processed, OsString)>, Error> {
    let names = found(disk.list(folder)).on("list", folder)?.unwrap_or_default();
    let noted = |name: OsString| {
        let base = name.to_str()?.strip_suffix(".error.json")?;
        Some((parse_name(OsStr::new(&format!("{base}.json")))?, name))
    };
    Ok(names.into_iter().filter_map(noted).collect())
}

fn read_note(disk: &dyn Disk, path: &Path) -> Result<Option<Rejection>, Error> {
    let read = found(disk.read(path, NOTE_LIMIT)).on("read", path)?;
    Ok(read.and_then(|(bytes, _)| serde_json::from_slice(&bytes).ok()))
}

fn newest_note(
    disk: &dyn Disk,
    layout: &Layout,
    since: &str,
    wanted: impl Fn(&Processed) -> bool,
) -> Result<Option<Rejection>, Error> {
    for day in days_in(disk, &layout.processed().join("rejected"))?.iter().take_while(|day| day.as_str() >= since) {
        let folder = layout.rejected(day);
        let noted = notes_in(disk, &folder)?.into_iter().filter(|(rejected, _)| wanted(rejected));
        let Some((_, name)) = noted.max_by(|a, b| a.0.run.cmp(&b.0.run)) else { continue };
        return read_note(disk, &folder.join(name));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_run_stem_and_the_first_of_a_duplicate() {
        let (a, b) = ("20261121T034156123Z-k3f9q2", "20261120T034156123Z-000000");
        let parse = |name: &str| parse_name(OsStr::new(name)).map(|it| (it.stem, it.run.to_string(), it.first));
        assert_eq!(parse(&format!("a.b.{a}.json")), Some(("a.b".into(), a.into(), None)));
        assert_eq!(parse(&format!("a.{a}.3.json")), Some(("a".into(), a.into(), None)));
        let first = RunId::parse(b);
        assert_eq!(parse(&format!("a.{a}.duplicate-of.{b}.json")), Some(("a".into(), a.into(), first)));
        assert_eq!((parse(&format!("{a}.json")), parse("a.json")), (None, None));
    }
}
