//! Retention: results, logs and triggers that were kept long enough go, and the oldest of them where room is limited.
//!
//! Which files go is said by [`rule`]. This part promises that one device at a time works at it, that it needs no more memory
//! than one day's names, and that it may be stopped, or die, at any file: nothing is half done, and the next round goes on.
//! Whoever reads or writes meanwhile is not locked out: readers take a file that has gone for one that never was, and writers
//! make a day's folder again.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;

use super::disk::{Disk, Kind};
use super::layout::{CORRUPT, Layout, is_hidden};
use super::results::days_in;
use super::{Context, Error, found, keys, revisions};
use crate::model::config::KEY_KEPT;
use crate::model::entry::{Waiting, parse_running};
use crate::model::ids::{DeviceId, RunId};
use crate::model::state::{Held, SCHEMA, State};
use crate::model::time::rfc3339;

pub mod rule;

use rule::{Cut, Place, Room, Rule, Verdict, day_stays, minute};

/// What a round is held to.
#[derive(Debug, Clone)]
pub struct Terms {
    /// The volume's random id: another folder in its place is left alone.
    pub volume: String,
    /// Who asks.
    pub device: DeviceId,
    /// How long files are kept.
    pub keep: Duration,
    /// How many bytes of them are kept, if that is limited.
    pub keep_bytes: Option<u64>,
    /// How long after a round the next one is due, whoever does it.
    pub every: Duration,
    /// Looks also where only dates that were set back by hand could be old enough.
    pub thorough: bool,
    /// The volume's time.
    pub now: DateTime<Utc>,
}

/// What came of it.
#[derive(Debug)]
pub enum Turn {
    /// Nothing was done: it is not due yet, another device is at it, or what must stay is not known. Ask again after this.
    Later(Duration),
    /// A round was done.
    Done(Tally),
    /// It was asked to stop half-way.
    Stopped(Tally),
}

/// What went.
#[derive(Debug, Default)]
pub struct Tally {
    /// How many files.
    pub files: u64,
    /// How many bytes they had.
    pub bytes: u64,
    /// How many things could not be looked at or removed.
    pub failed: u64,
    /// The first of these failures.
    pub error: Option<Error>,
}

impl Tally {
    fn fail(&mut self, error: Error) {
        self.failed += 1;
        self.error.get_or_insert(error);
    }
}

/// Does a round, if one is due and no other device is at it. `stop` is asked at every file.
///
/// Devices agree by [`Layout::kept`] alone: its lock is held for the time of a round and ends with its holder; what it says is
/// written at the end, so that a round that was not finished is done again by whoever comes next.
///
/// # Errors
/// What the system said of the volume as a whole; a file that cannot be removed is counted in the [`Tally`].
pub fn round(disk: &dyn Disk, layout: &Layout, terms: &Terms, stop: &dyn Fn() -> bool) -> Result<Turn, Error> {
    // An empty folder where the volume was mounted must not get so much as a lock's file.
    let id = layout.volume_id();
    let found_id = found(disk.read(&id, 1_024)).on("read", &id)?;
    if found_id.is_none_or(|(bytes, _)| String::from_utf8_lossy(&bytes).trim() != terms.volume) {
        return Ok(Turn::Later(terms.every));
    }
    if let Some(left) = not_yet(disk, layout, terms)? {
        return Ok(Turn::Later(left));
    }
    let kept = layout.kept();
    let Some(_guard) = disk.lock(&kept).on("lock", &kept)? else { return Ok(Turn::Later(terms.every / 4)) };
    // Another device may just have been at it.
    if let Some(left) = not_yet(disk, layout, terms)? {
        return Ok(Turn::Later(left));
    }
    let Some(stays) = what_stays(disk, layout)? else { return Ok(Turn::Later(terms.every / 4)) };
    // A key counts for a day, and only if its run can be found.
    let is_short = terms.keep < KEY_KEPT || terms.keep_bytes.is_some();
    let keyed = if is_short { keys::runs(disk, layout)? } else { BTreeSet::new() };
    let rule = Rule { now: terms.now, keep: terms.keep, stays, keyed };
    let mut round = Round { disk, layout, terms, rule, stop, tally: Tally::default(), room: Room::default() };
    if round.work().is_none() {
        return Ok(Turn::Stopped(round.tally));
    }
    let mut tally = round.tally;
    let line = json!({"at": rfc3339(terms.now), "device": terms.device, "files": tally.files, "bytes": tally.bytes});
    let noted = disk.cut(&kept, 0).and_then(|_| disk.append(&kept, format!("{line}\n").as_bytes()));
    if let Err(error) = noted.on("write", &kept) {
        tally.fail(error);
    }
    Ok(Turn::Done(tally))
}

/// How many of the newest attempts of a daemon's run stay, whatever their age: more than are ever looked back on.
const ATTEMPTS_KEPT: u32 = 64;

/// How long it is until a round is due; `None`: it is.
fn not_yet(disk: &dyn Disk, layout: &Layout, terms: &Terms) -> Result<Option<Duration>, Error> {
    let path = layout.kept();
    // An empty one was made by a lock whose holder did not come to an end.
    let Some(meta) = found(disk.stat(&path)).on("look at", &path)?.filter(|meta| meta.id.size > 0) else {
        return Ok(None);
    };
    let every = TimeDelta::from_std(terms.every).unwrap_or(TimeDelta::MAX);
    let passed = terms.now - meta.modified();
    // Somewhat in the future it was written since this device read the time; far in the future it says nothing.
    if passed.abs() >= every {
        return Ok(None);
    }
    Ok((every - passed.max(TimeDelta::zero())).to_std().ok())
}

/// The runs of which everything stays: those that are open, because their attempts are counted from these files, and the last
/// one of each job. `None`: the state does not tell.
fn what_stays(disk: &dyn Disk, layout: &Layout) -> Result<Option<BTreeMap<RunId, u32>>, Error> {
    let mut stays = BTreeMap::new();
    // Twice: a run that moves between two folders while they are listed is seen in one of them, or in the state.
    for _ in 0..2 {
        stays.extend(in_hand(disk, layout)?.into_iter().map(|run| (run, 0)));
    }
    let Some(state) = state(disk, layout)? else { return Ok(None) };
    // A daemon's run is open for as long as it is wanted: of its attempts only the newest count.
    let from = |held: &Held| if held.cause.is_lasting() { held.attempt.saturating_sub(ATTEMPTS_KEPT) } else { 0 };
    stays.extend(state.runs.iter().map(|(run, held)| (run.clone(), from(held))));
    stays.extend(state.jobs.values().filter_map(|mark| Some((mark.last_run_id.clone()?, 0))));
    Ok(Some(stays))
}

/// The runs whose files lie in `.running` and `.waiting`.
fn in_hand(disk: &dyn Disk, layout: &Layout) -> Result<BTreeSet<RunId>, Error> {
    let list = |folder: PathBuf| disk.list(&folder).on("list", &folder);
    let running = list(layout.running())?.into_iter().filter_map(|name| Some(parse_running(&name)?.0.run));
    let waiting = list(layout.waiting())?.into_iter().filter_map(|name| Some(Waiting::parse(&name)?.run));
    Ok(running.chain(waiting).collect())
}

/// The state, where it can be relied on: one that is lost, of a newer program or being rebuilt names too little.
fn state(disk: &dyn Disk, layout: &Layout) -> Result<Option<State>, Error> {
    let state =
        revisions::newest_text(disk, layout)?.and_then(|(bytes, _)| serde_json::from_slice::<State>(&bytes).ok());
    Ok(state.filter(|state| state.schema <= SCHEMA && state.rebuilt.is_none()))
}

/// A folder that was looked through.
struct Folder {
    place: Place,
    path: PathBuf,
    /// Its day, if it is a day's.
    day: Option<String>,
    /// The oldest minute of what is left and may go.
    oldest: Option<i64>,
}

/// One file of a folder.
struct Seen {
    path: PathBuf,
    verdict: Verdict,
    bytes: u64,
}

struct Round<'a> {
    disk: &'a dyn Disk,
    layout: &'a Layout,
    terms: &'a Terms,
    rule: Rule,
    stop: &'a dyn Fn() -> bool,
    tally: Tally,
    room: Room,
}

impl Round<'_> {
    /// `None`: it was asked to stop.
    fn work(&mut self) -> Option<()> {
        self.remove_corrupt()?;
        let mut folders = self.folders();
        for folder in &mut folders {
            self.remove_old(folder)?;
        }
        if let Some(cut) = self.terms.keep_bytes.and_then(|limit| self.room.cut(limit)) {
            self.make_room(&folders, cut)?;
        }
        if let Err(error) = self.remove_empty(&folders) {
            self.tally.fail(error);
        }
        Some(())
    }

    /// Removes copies of the state that could not be read and were set aside, once they are old.
    fn remove_corrupt(&mut self) -> Option<()> {
        let common = self.layout.common.clone();
        let keep = TimeDelta::from_std(self.terms.keep).unwrap_or(TimeDelta::MAX);
        let mut names = self.names(&common);
        names.retain(|name| name.to_string_lossy().starts_with(CORRUPT));
        for name in names {
            if (self.stop)() {
                return None;
            }
            let path = common.join(name);
            let looked = found(self.disk.stat(&path)).on("look at", &path);
            let meta = self.noted(looked).flatten();
            if let Some(meta) = meta.filter(|meta| self.terms.now - meta.modified() >= keep) {
                self.remove(&path, meta.id.size);
            }
        }
        Some(())
    }

    /// The folders that may hold something that goes, oldest days first.
    fn folders(&mut self) -> Vec<Folder> {
        let rejected = self.layout.processed().join("rejected");
        let trees = [
            (Place::Results, self.layout.results()),
            (Place::Logs, self.layout.logs()),
            (Place::Processed, self.layout.processed()),
            (Place::Rejected, rejected),
        ];
        // Where room is limited every file counts.
        let all = self.terms.thorough || self.terms.keep_bytes.is_some();
        let mut folders = vec![Folder { place: Place::OwnLogs, path: self.layout.logs(), day: None, oldest: None }];
        for (place, tree) in trees {
            let days = self.noted(days_in(self.disk, &tree)).unwrap_or_default();
            let days = days.into_iter().rev().filter(|day| all || self.rule.may_be_old(day));
            folders.extend(days.map(|day| Folder { place, path: tree.join(&day), day: Some(day), oldest: None }));
        }
        folders
    }

    /// What the volume gave; that it gave nothing is counted.
    fn noted<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        result.map_err(|error| self.tally.fail(error)).ok()
    }

    fn names(&mut self, folder: &Path) -> Vec<OsString> {
        let listed = found(self.disk.list(folder)).on("list", folder);
        let mut names = self.noted(listed).flatten().unwrap_or_default();
        names.retain(|name| !is_hidden(name));
        names
    }

    /// Looks at one name; `None`: it is none of ours, or has gone.
    fn look(&mut self, place: Place, folder: &Path, name: &OsStr) -> Option<Seen> {
        let path = folder.join(name);
        let looked = found(self.disk.stat(&path)).on("look at", &path);
        let meta = self.noted(looked).flatten()?;
        // A folder that was dropped as a trigger is a person's tree, and not taken apart.
        if meta.kind == Kind::Folder {
            return None;
        }
        let verdict = self.rule.judge(place, name, meta.modified());
        (verdict != Verdict::Foreign).then_some(Seen { path, verdict, bytes: meta.id.size })
    }

    /// `false`: it is still there.
    fn remove(&mut self, path: &Path, bytes: u64) -> bool {
        let removed = found(self.disk.remove(path)).on("remove", path);
        match self.noted(removed) {
            Some(removed) => {
                self.tally.files += u64::from(removed.is_some());
                self.tally.bytes += if removed.is_some() { bytes } else { 0 };
                true
            }
            None => false,
        }
    }

    fn remove_old(&mut self, folder: &mut Folder) -> Option<()> {
        for name in self.names(&folder.path) {
            if (self.stop)() {
                return None;
            }
            let Some(seen) = self.look(folder.place, &folder.path, &name) else { continue };
            if seen.verdict == Verdict::Goes && self.remove(&seen.path, seen.bytes) {
                continue;
            }
            self.room.count(seen.verdict, seen.bytes);
            if let Verdict::MayGo(since) = seen.verdict {
                folder.oldest = Some(folder.oldest.map_or(minute(since), |oldest| oldest.min(minute(since))));
            }
        }
        Some(())
    }

    /// Removes what is older than the cut, and of its minute the oldest.
    fn make_room(&mut self, folders: &[Folder], cut: Cut) -> Option<()> {
        let mut of_the_minute = Vec::new();
        for folder in folders.iter().filter(|folder| folder.oldest.is_some_and(|oldest| oldest <= cut.minute)) {
            for name in self.names(&folder.path) {
                if (self.stop)() {
                    return None;
                }
                let Some(Seen { path, verdict: Verdict::MayGo(since), bytes }) =
                    self.look(folder.place, &folder.path, &name)
                else {
                    continue;
                };
                if minute(since) < cut.minute {
                    self.remove(&path, bytes);
                } else if minute(since) == cut.minute {
                    of_the_minute.push((since, path, bytes));
                }
            }
        }
        of_the_minute.sort_unstable();
        let mut freed = 0;
        for (_, path, bytes) in of_the_minute {
            if freed >= cut.bytes {
                break;
            }
            freed += if self.remove(&path, bytes) { bytes } else { 0 };
        }
        Some(())
    }

    /// Removes days' folders that are empty. A run that is open may be about to write to that of its day.
    fn remove_empty(&mut self, folders: &[Folder]) -> Result<(), Error> {
        let open_days = |disk, layout| -> Result<BTreeSet<String>, Error> {
            Ok(in_hand(disk, layout)?.iter().map(RunId::date).collect())
        };
        let open = open_days(self.disk, self.layout)?;
        let mut removed = Vec::new();
        for folder in folders {
            let Some(day) = folder.day.as_ref().filter(|day| !open.contains(*day)) else { continue };
            if day_stays(day, self.terms.now) {
                continue;
            }
            match found(self.disk.remove_folder(&folder.path)) {
                Ok(_) => removed.push((day, &folder.path)),
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                Err(error) => self.tally.fail(Error { doing: "remove", path: folder.path.clone(), source: error }),
            }
        }
        if removed.is_empty() {
            return Ok(());
        }
        // Who claimed a run of that day in between may have found the folder still there.
        let open = open_days(self.disk, self.layout)?;
        for (_, path) in removed.into_iter().filter(|(day, _)| open.contains(*day)) {
            self.disk.make_folders(path).on("make the folder", path)?;
        }
        Ok(())
    }
}
