//! A power cut of everything: devices and processes die, and the disk is as it was a few seconds earlier. What was written just before that
//! has its name and no content.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use super::check::Checker;
use super::disk::is_own;
use super::faults::Kind;
use super::scheduler::Scheduler;
use super::user::User;
use super::world::{File, World};

/// What is older than this has been synced.
const SYNCED: Duration = Duration::from_secs(5);
/// How often a moment is kept to which a cut may lead back.
const EVERY: Duration = Duration::from_millis(300);

/// A moment to which a power cut may lead back, and what the judge knew then.
#[derive(Debug)]
pub(crate) struct Moment {
    at: Duration,
    files: BTreeMap<PathBuf, File>,
    folders: BTreeSet<PathBuf>,
    check: Checker,
}

/// Keeps this moment, if power may be lost in this world.
pub(crate) fn keep(world: &World) {
    let now = world.now.get();
    let mut moments = world.moments.borrow_mut();
    let is_due = moments.back().is_none_or(|last: &Moment| now - last.at >= EVERY);
    if !world.faults.borrow().has(Kind::Power) || !is_due {
        return;
    }
    moments.retain(|moment| now - moment.at < SYNCED);
    moments.push_back(Moment {
        at: now,
        files: world.files.borrow().clone(),
        folders: world.folders.borrow().clone(),
        check: world.check.borrow().clone(),
    });
}

/// The power goes, and comes back.
pub(crate) fn cut(world: &World, scheduler: &Scheduler, user: &mut User) {
    let moments: VecDeque<Moment> = world.moments.take();
    let recent = moments.into_iter().filter(|moment| world.now.get() - moment.at < SYNCED).collect::<Vec<_>>();
    if recent.is_empty() {
        return;
    }
    scheduler.kill_all();
    let index = usize::try_from(world.between(0, recent.len() as u64 - 1)).unwrap();
    let Some(moment) = recent.into_iter().nth(index) else { return };
    *world.files.borrow_mut() = moment.files;
    *world.folders.borrow_mut() = moment.folders;
    world.keep_numbers_apart();
    // Who was writing has lost its power too.
    world.torn.borrow_mut().clear();
    let mut check = moment.check;
    check.lost_power();
    *world.check.borrow_mut() = check;
    empty_what_is_young(world, moment.at);
    let files = world.files.borrow();
    user.dropped.retain(|drop| {
        let is_there = files.values().any(|file| *file.bytes == drop.bytes);
        is_there || world.check.borrow().was_damaged(&drop.bytes)
    });
}

/// Empties some of what was not synced. The content of a file that is renamed over another is written first, and so is that of every
/// file that has such a name too.
fn empty_what_is_young(world: &World, at: Duration) {
    let files = world.files.borrow().clone();
    let is_written_first = |path: &Path| path.ends_with("state.json") || path.starts_with("/c/Devices");
    let kept: BTreeSet<u64> =
        files.iter().filter(|(path, _)| is_written_first(path)).map(|(_, file)| file.inode).collect();
    let is_young = |file: &File| at.saturating_sub(file.written) < SYNCED && !kept.contains(&file.inode);
    // Due times have no file but these: without them nobody can know that they were.
    let may_go = |(path, file): &(&PathBuf, &File)| path.starts_with("/c") && is_young(file) && !is_own(&file.bytes);
    let young: BTreeSet<u64> = files.iter().filter(may_go).map(|(_, file)| file.inode).collect();
    let emptied: BTreeSet<u64> = young.into_iter().filter(|_| world.one_in(2)).collect();
    for (path, file) in files.iter().filter(|(_, file)| emptied.contains(&file.inode)) {
        if path.starts_with("/c/.revisions") && is_newest(&files, path) {
            world.check.borrow_mut().state_hurt();
        }
        world.check.borrow_mut().damaged(path, &file.bytes);
        world.empty(path);
    }
}

/// Returns whether a revision is newer than its copy.
fn is_newest(files: &BTreeMap<PathBuf, File>, path: &Path) -> bool {
    let copy = files.get(Path::new("/c/state.json")).map(|file| &file.bytes);
    let revision = |bytes: &Rc<Vec<u8>>| serde_json::from_slice::<serde_json::Value>(bytes).ok()?["revision"].as_u64();
    files.get(path).and_then(|file| revision(&file.bytes)) > copy.and_then(revision)
}
