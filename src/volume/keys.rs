//! Idempotency keys: which run has one, and whether it still counts.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::disk::Disk;
use super::layout::Layout;
use super::{Context, Error, found, results};
use crate::model::config::KEY_KEPT;
use crate::model::entry::{KeySeen, Waiting, parse_running};
use crate::model::ids::{JobName, RunId};

/// So young a key counts in any case: a network file system may not show yet where its run is.
const YOUNG: std::time::Duration = std::time::Duration::from_secs(600);

/// What a key's file says.
#[derive(Deserialize)]
struct Key {
    run_id: RunId,
    job: JobName,
}

/// What is known of a key now.
///
/// # Errors
/// What the system said.
pub fn seen(disk: &dyn Disk, layout: &Layout, id: &str, own: &RunId, now: DateTime<Utc>) -> Result<KeySeen, Error> {
    let path = layout.key(id);
    let Some((bytes, meta)) = found(disk.read(&path, 4_096)).on("read", &path)? else { return Ok(KeySeen::Free) };
    let Ok(key) = serde_json::from_slice::<Key>(&bytes) else { return Ok(KeySeen::Stale(None)) };
    let is_young = (now - meta.changed).to_std().map_or(true, |age| age < YOUNG);
    let counts = key.run_id == *own || is_young || counts(disk, layout, &key, now)?;
    Ok(if counts { KeySeen::Names(key.run_id) } else { KeySeen::Stale(Some(key.run_id)) })
}

/// The run that a key's file names. `None`: there is no such file, or it names none.
///
/// # Errors
/// What the system said.
pub fn holder(disk: &dyn Disk, layout: &Layout, id: &str) -> Result<Option<RunId>, Error> {
    let path = layout.key(id);
    let read = found(disk.read(&path, 4_096)).on("read", &path)?;
    Ok(read.and_then(|(bytes, _)| serde_json::from_slice::<Key>(&bytes).ok()).map(|key| key.run_id))
}

/// The runs that have a key, whether it still counts or not.
///
/// # Errors
/// What the system said.
pub fn runs(disk: &dyn Disk, layout: &Layout) -> Result<BTreeSet<RunId>, Error> {
    let folder = layout.keys();
    let mut runs = BTreeSet::new();
    for name in found(disk.list(&folder)).on("list", &folder)?.unwrap_or_default() {
        let path = folder.join(name);
        let read = found(disk.read(&path, 4_096)).on("read", &path)?;
        runs.extend(read.and_then(|(bytes, _)| serde_json::from_slice::<Key>(&bytes).ok()).map(|key| key.run_id));
    }
    Ok(runs)
}

/// A key counts while its run can be found: held, waiting, or ended within the last day.
fn counts(disk: &dyn Disk, layout: &Layout, key: &Key, now: DateTime<Utc>) -> Result<bool, Error> {
    let names =
        |folder: std::path::PathBuf| found(disk.list(&folder)).on("list", &folder).map(Option::unwrap_or_default);
    let is_held = |name: &std::ffi::OsString| parse_running(name).is_some_and(|(lease, _)| lease.run == key.run_id);
    let waits = |name: &std::ffi::OsString| Waiting::parse(name).is_some_and(|waiting| waiting.run == key.run_id);
    if names(layout.running())?.iter().any(is_held) || names(layout.waiting())?.iter().any(waits) {
        return Ok(true);
    }
    let ended = results::final_of(disk, layout, &key.job, &key.run_id)?;
    Ok(ended.is_some_and(|outcome| (now - outcome.finished_at).to_std().map_or(true, |age| age < KEY_KEPT)))
}

/// Removes keys whose run ended more than a day ago, or cannot be found. How many went; none while another holds the lock.
///
/// # Errors
/// What the system said.
pub fn sweep(disk: &dyn Disk, layout: &Layout, now: DateTime<Utc>) -> Result<usize, Error> {
    let folder = layout.keys();
    let mut old = Vec::new();
    for name in found(disk.list(&folder)).on("list", &folder)?.unwrap_or_default() {
        let path = folder.join(name);
        let Some((bytes, meta)) = found(disk.read(&path, 4_096)).on("read", &path)? else { continue };
        let is_old = (now - meta.changed).to_std().is_ok_and(|age| age > KEY_KEPT);
        if !is_old {
            continue;
        }
        let key = serde_json::from_slice::<Key>(&bytes).ok();
        if key.map_or(Ok(false), |key| counts(disk, layout, &key, now))? {
            continue;
        }
        old.push((path, meta.id));
    }
    let lock = layout.lock();
    let mut swept = 0;
    // Under the lock nobody takes an old key over.
    if let Some(_guard) = disk.lock(&lock).on("lock", &lock)? {
        for (path, id) in old {
            let is_same = found(disk.stat(&path)).on("look at", &path)?.is_some_and(|meta| meta.id == id);
            swept += usize::from(is_same && found(disk.remove(&path)).on("remove", &path)?.is_some());
        }
    }
    Ok(swept)
}
