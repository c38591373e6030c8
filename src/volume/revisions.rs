//! The chain of revisions: a commit takes effect by making the file of the next one, which only one device can.
//!
//! `Common/.revisions/<revision>.json` holds the newest few. The lock keeps devices from making moves in vain; that no two of them
//! commit the same revision does not depend on it. `state.json` is the readable copy of the newest.

use std::path::Path;

use serde::Deserialize;

use super::atomic::{Temporary, link_new};
use super::disk::{Disk, Meta};
use super::layout::Layout;
use super::{Context, Error, found};

/// The first bytes of a state, which name its revision and newest commits; generously.
pub const HEAD: usize = 1_024;
/// The largest state that is read, bytes.
pub const STATE_LIMIT: u64 = 256 << 20;
/// The number of newest revisions that keep their files.
const KEPT: u64 = 4;

/// The outcome of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is the newest revision.
    Committed,
    /// It is committed, and another device has committed a later one already.
    BuiltUpon,
    /// Another device has committed this revision, or a later one.
    Overtaken,
}

/// Returns the largest revision that has a file; `None`: none has.
///
/// # Errors
/// The error of the system.
pub fn newest(disk: &dyn Disk, layout: &Layout) -> Result<Option<u64>, Error> {
    Ok(list(disk, layout)?.into_iter().max())
}

/// Returns whether a revision has a file.
///
/// # Errors
/// The error of the system.
pub fn is_made(disk: &dyn Disk, layout: &Layout, revision: u64) -> Result<bool, Error> {
    let path = layout.revision(revision);
    Ok(found(disk.stat(&path)).on("look at", &path)?.is_some())
}

/// Commits a staged state as this revision. `staged` stays, to become `state.json`.
///
/// # Errors
/// The error of the system; then nothing is committed.
pub fn commit(
    disk: &dyn Disk,
    layout: &Layout,
    names: &mut Temporary,
    staged: &Path,
    revision: u64,
) -> Result<Outcome, Error> {
    let path = layout.revision(revision);
    if !link_new(disk, names, staged, &path)? && !is_same(disk, staged, &path)? {
        return Ok(Outcome::Overtaken);
    }
    // What cannot be listed here was not committed by another either: the lock was held when it could.
    let made = list(disk, layout).unwrap_or_default();
    let newest = made.iter().copied().max().unwrap_or(revision);
    if newest > revision {
        // A device that stood still long enough finds the name of an old revision free again.
        let is_in_chain = descends(disk, &layout.revision(newest), staged)?;
        return Ok(if is_in_chain { Outcome::BuiltUpon } else { Outcome::Overtaken });
    }
    for old in made.into_iter().filter(|other| other + KEPT <= revision) {
        // The next commit tries again.
        let _ = disk.remove(&layout.revision(old));
    }
    Ok(Outcome::Committed)
}

/// Returns the text of the newest state: `state.json`, unless that is missing, damaged or older than the newest revision.
///
/// # Errors
/// The error of the system.
pub fn newest_text(disk: &dyn Disk, layout: &Layout) -> Result<Option<(Vec<u8>, Meta)>, Error> {
    #[derive(Deserialize)]
    struct Numbered {
        revision: u64,
    }
    let read = |path: &Path| found(disk.read(path, STATE_LIMIT)).on("read", path);
    let copy = read(&layout.state())?;
    let Some(newest) = newest(disk, layout)? else { return Ok(copy) };
    let number = copy.as_ref().and_then(|(bytes, _)| serde_json::from_slice::<Numbered>(bytes).ok());
    if number.is_some_and(|number| number.revision >= newest) {
        return Ok(copy);
    }
    Ok(read(&layout.revision(newest))?.or(copy))
}

/// Returns whether a later revision goes back to a staged one: its chain of commits names it. A chain that does not reach back so far
/// says nothing, and the commit counts as not made: what it claimed is then found as the attempts of a device that does not know them.
fn descends(disk: &dyn Disk, later: &Path, staged: &Path) -> Result<bool, Error> {
    let chain = |path: &Path| {
        #[derive(Deserialize)]
        struct Chain {
            last_commits: Vec<(u64, String)>,
        }
        let read = found(disk.read(path, STATE_LIMIT)).on("read", path)?;
        let chain = read.and_then(|(bytes, _)| serde_json::from_slice::<Chain>(&bytes).ok());
        Ok::<_, Error>(chain.map(|chain| chain.last_commits).unwrap_or_default())
    };
    let (later, staged) = (chain(later)?, chain(staged)?);
    Ok(staged.first().is_some_and(|own| later.contains(own)))
}

/// Returns whether a link that seems to have failed is there all the same: a network file system may lose the answer to a request
/// that it has carried out.
fn is_same(disk: &dyn Disk, staged: &Path, path: &Path) -> Result<bool, Error> {
    let ours = disk.read_head(staged, HEAD).on("read", staged)?;
    let there = found(disk.read_head(path, HEAD)).on("read", path)?;
    Ok(there == Some(ours))
}

fn list(disk: &dyn Disk, layout: &Layout) -> Result<Vec<u64>, Error> {
    let folder = layout.revisions();
    let names = found(disk.list(&folder)).on("list", &folder)?.unwrap_or_default();
    let revision = |name: &std::ffi::OsString| name.to_str()?.strip_suffix(".json")?.parse().ok();
    Ok(names.iter().filter_map(revision).collect())
}
