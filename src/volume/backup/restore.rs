//! The way back: an archive becomes a volume again, or gives back to its own volume what that one lost.
//!
//! Everything is looked at before anything is written: the archive from its first byte to its last, who lives on the volume, what
//! would have to be replaced, and whether there is room. Then all is written in one hold of the state's lock, so that no device
//! acts on half of it, and in the order of dependence: programs, keys and results before the triggers that need them, the state
//! last. A restore that was cut off leaves whole files; the same one again goes on from there.
//!
//! **What the volume has is newer, and stays.** A result that is there is never replaced, and a run that has a final one gets no
//! other. An open run's file stays away where the volume has that run, open or put away; and where the run left traces that the
//! archive does not know, its file comes into `.running`, held by nobody: a device that finds it there ends it by its final result
//! or gives it a number behind all that were used ([`crate::decide::recover`]). The state counts as one that was lost and made
//! anew, above every revision that is known. So neither number nor due time nor run comes twice.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::archive::{Item, Place, limit};
use super::trace::Seen;
use super::{Archive, Fault, check_state_schema};
use crate::decide::backup::{Fate, Lies, Traces, fate, restored};
use crate::decide::plan::sign;
use crate::model::backup::{MOVING_MOST, Manifest, Part};
use crate::model::device::Me;
use crate::model::entry::{Waiting, parse_running, split_dropped};
use crate::model::ids::{DeviceId, RunId, stamp};
use crate::model::lease::Lease;
use crate::model::result::Outcome;
use crate::model::state::State;
use crate::model::time::utc;
use crate::volume::atomic::{Temporary, discard, in_folder, stage, write_new};
use crate::volume::disk::{Disk, Guard, Kind};
use crate::volume::layout::Layout;
use crate::volume::os::{create_private, finish, is_network, open_plain, sync};
use crate::volume::{Context, Error, found, heartbeat, revisions, volume_id};

/// How many conflicts are named.
const NAMED: usize = 5;
/// What a file takes up beside its bytes.
const BLOCK: u64 = 4_096;
/// How much of the lock's file is read for the revisions noted there, bytes.
const NOTED: usize = 64 << 10;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The archive.
    pub archive: PathBuf,
    /// What is there may be replaced; it is kept beside its place.
    pub force: bool,
    /// In whose name the state is written.
    pub me: Me,
    /// When.
    pub now: DateTime<Utc>,
}

/// What was done.
#[derive(Debug, Serialize)]
pub struct Restored {
    /// The volume's id.
    pub volume: String,
    /// When the archive was made.
    #[serde(with = "utc")]
    pub created_at: DateTime<Utc>,
    /// How many files were written.
    pub written: u64,
    /// How many were there already, or are newer than the archive.
    pub stayed: u64,
    /// How many open runs stayed away: the volume has them, or had them.
    pub runs_stayed_away: u64,
    /// How many open runs have left traces that the archive does not know: devices go on from these.
    pub runs_reconciled: u64,
    /// What was replaced, under the names under which it is kept.
    pub kept: Vec<PathBuf>,
}

/// Restores an archive into the folders of `layout`.
///
/// # Errors
/// [`Fault`]. All but those of the volume itself come before anything was written.
pub fn restore(disk: &dyn Disk, layout: &Layout, names: &mut Temporary, wish: &Wish) -> Result<Restored, Fault> {
    let file = open_plain(&wish.archive).on("open", &wish.archive)?;
    let archive = Archive::new(&wish.archive, file);
    let manifest = check(&archive)?;
    same_volume(disk, layout, &manifest)?;
    let guards = nobody_lives(disk, layout, wish.now)?;
    room(disk, layout, &manifest)?;
    disk.make_folders(&layout.common).on("make the folder", &layout.common)?;
    let lock = layout.lock();
    let Some(guard) = disk.lock(&lock).on("lock", &lock)? else {
        return Err(Fault::Busy { what: "the lock of the state" });
    };
    let plan = plan(disk, layout, &archive, wish.force)?;
    let mut work = Work {
        disk,
        layout,
        names,
        wish,
        before: Seen::new(disk, layout),
        done: Restored {
            volume: manifest.volume.clone(),
            created_at: manifest.created_at,
            written: 0,
            stayed: 0,
            runs_stayed_away: 0,
            runs_reconciled: 0,
            kept: Vec::new(),
        },
    };
    work.still(&archive, &manifest, &plan)?;
    let runs = work.moving(&plan)?;
    work.state(&plan, &runs)?;
    for folder in [&layout.common, &layout.programs] {
        found(sync(folder)).on("sync", folder)?;
    }
    drop((guard, guards));
    Ok(work.done)
}

/// Reads the archive to its end, and its state as one.
fn check(archive: &Archive) -> Result<Manifest, Fault> {
    let manifest = archive.walk(&mut |item| match item.place.part {
        Part::State => read_state(archive, item).map(|_| ()),
        Part::Inbox | Part::Waiting | Part::Running | Part::Keys | Part::Programs | Part::Security | Part::Results => {
            Ok(())
        }
    })?;
    let moves = |part| matches!(part, Part::Inbox | Part::Waiting | Part::Running);
    let moving: u64 = manifest.parts.iter().filter(|tally| moves(tally.part)).map(|tally| tally.bytes).sum();
    if moving > MOVING_MOST {
        return Err(archive.bad(format!("it holds {moving} bytes of triggers, expected at most {MOVING_MOST}")));
    }
    Ok(manifest)
}

fn read_state(archive: &Archive, item: Item<'_>) -> Result<State, Fault> {
    let bytes = read_all(archive, item)?;
    check_state_schema(&bytes)?;
    serde_json::from_slice(&bytes).map_err(|error| archive.bad(format!("its state.json is none: {error}")))
}

fn read_all(archive: &Archive, item: Item<'_>) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    item.content
        .read_to_end(&mut bytes)
        .map_err(|error| archive.bad(format!("{:?} cannot be read: {error}", item.place.name)))?;
    if bytes.len() as u64 == item.size { Ok(bytes) } else { Err(archive.bad(format!("{:?} is cut", item.place.name))) }
}

fn same_volume(disk: &dyn Disk, layout: &Layout, manifest: &Manifest) -> Result<(), Fault> {
    match volume_id(disk, layout)? {
        Some(found) if found != manifest.volume => {
            Err(Fault::OtherVolume { common: layout.common.clone(), found, archived: manifest.volume.clone() })
        }
        Some(_) | None => Ok(()),
    }
}

/// Takes the lock of every device that ever was on the volume: who has one lives, and who has none cannot begin meanwhile. Where
/// locks may not reach across hosts, a young heartbeat is a living device too.
fn nobody_lives(disk: &dyn Disk, layout: &Layout, now: DateTime<Utc>) -> Result<Vec<Guard>, Fault> {
    let heartbeat::Beats { beats, unreadable } = heartbeat::read_all(disk, layout)?;
    if let Some((_, error)) = unreadable.into_iter().next() {
        return Err(error.into());
    }
    let host_of = |device: &DeviceId| {
        beats.iter().find(|beat| beat.device == *device).map_or_else(|| "unknown".to_owned(), |beat| beat.host.clone())
    };
    let alive = |device: &DeviceId| Fault::Alive { device: device.clone(), host: host_of(device) };
    let folder = layout.devices();
    let mut guards = Vec::new();
    for name in found(disk.list(&folder)).on("list", &folder)?.unwrap_or_default() {
        let device = name.to_str().and_then(|name| DeviceId::new(name.strip_suffix(".lock")?).ok());
        let Some(device) = device else { continue };
        guards.push(heartbeat::lock(disk, layout, &device)?.ok_or_else(|| alive(&device))?);
    }
    for beat in beats.iter().filter(|beat| !beat.left && is_network(&layout.common)) {
        let path = layout.heartbeat(&beat.device);
        let changed = found(disk.stat(&path)).on("look at", &path)?.map(|meta| meta.changed);
        let age = changed.and_then(|changed| (now - changed).to_std().ok()).unwrap_or_default();
        if age.as_millis() < u128::from(beat.lease_ms) {
            return Err(alive(&beat.device));
        }
    }
    Ok(guards)
}

/// Refuses to begin what cannot end.
fn room(disk: &dyn Disk, layout: &Layout, manifest: &Manifest) -> Result<(), Fault> {
    let needed = manifest.parts.iter().map(|tally| tally.bytes + tally.files.saturating_mul(BLOCK)).sum();
    let there = layout.common.ancestors().find(|path| disk.stat(path).is_ok()).unwrap_or(&layout.common);
    let free = disk.space(there).on("look at", there)?.free_bytes;
    if free < needed { Err(Fault::NoRoom { path: there.to_owned(), free, needed }) } else { Ok(()) }
}

/// What is to be done, found out without writing.
#[derive(Default)]
struct Plan {
    state: Option<State>,
    /// Files that move, with what they hold.
    moving: Vec<(Place, Vec<u8>, DateTime<Utc>)>,
    /// Files that are there already, and whether as in the archive.
    there: BTreeMap<String, bool>,
}

/// Looks at every place that an archive's files have, and refuses what is in the way.
fn plan(disk: &dyn Disk, layout: &Layout, archive: &Archive, force: bool) -> Result<Plan, Fault> {
    let mut plan = Plan::default();
    let mut ways = Ways { disk, layout, known: BTreeSet::new() };
    archive.walk(&mut |item| {
        let path = item.place.path(layout);
        let there = ways.there(&path)?;
        match item.place.part {
            Part::State => {
                if there.is_some() {
                    check_state_schema(&disk.read(&path, limit(Part::State)).on("read", &path)?.0)?;
                    plan.there.insert(item.place.name.clone(), false);
                }
                plan.state = Some(read_state(archive, item)?);
            }
            Part::Inbox | Part::Waiting | Part::Running => {
                let (place, modified) = (item.place.clone(), item.modified);
                plan.moving.push((place, read_all(archive, item)?, modified));
            }
            Part::Keys | Part::Programs | Part::Security | Part::Results => {
                let Some(size) = there else { return Ok(()) };
                let (name, part) = (item.place.name.clone(), item.place.part);
                let is_same = size == item.size && {
                    let (bytes, _) = disk.read(&path, limit(part)).on("read", &path)?;
                    bytes == read_all(archive, item)?
                };
                plan.there.insert(name, is_same);
            }
        }
        Ok(())
    })?;
    let other: Vec<&String> = plan.there.iter().filter(|(_, same)| !**same).map(|(name, _)| name).collect();
    if !force && !other.is_empty() {
        let first = other.iter().take(NAMED).map(|name| (*name).clone()).collect();
        return Err(Fault::Occupied { count: other.len(), first });
    }
    Ok(plan)
}

/// The ways to places in the volume: folders, never links.
struct Ways<'a> {
    disk: &'a dyn Disk,
    layout: &'a Layout,
    known: BTreeSet<PathBuf>,
}

impl Ways<'_> {
    /// The size of the file at a place, if there is one.
    fn there(&mut self, path: &Path) -> Result<Option<u64>, Fault> {
        let is_root = |folder: &Path| folder == self.layout.common || folder == self.layout.programs;
        let folders: Vec<PathBuf> =
            path.ancestors().skip(1).take_while(|folder| !is_root(folder)).map(Path::to_owned).collect();
        for folder in folders.into_iter().rev() {
            if self.known.contains(&folder) {
                continue;
            }
            match found(self.disk.stat(&folder)).on("look at", &folder)?.map(|meta| meta.kind) {
                Some(Kind::Folder) => self.known.insert(folder),
                Some(found) => return Err(Fault::InTheWay { path: folder, found, expected: "a folder" }),
                None => return Ok(None),
            };
        }
        match found(self.disk.stat(path)).on("look at", path)? {
            Some(meta) if meta.kind == Kind::File => Ok(Some(meta.id.size)),
            Some(meta) => Err(Fault::InTheWay { path: path.to_owned(), found: meta.kind, expected: "a file" }),
            None => Ok(None),
        }
    }
}

/// Of the runs that were open: where their files lie once all is in place, and what else the volume has of them.
type Runs = BTreeMap<RunId, (Option<Lies>, Traces)>;

struct Work<'a> {
    disk: &'a dyn Disk,
    layout: &'a Layout,
    names: &'a mut Temporary,
    wish: &'a Wish,
    /// The volume as it was before anything was written.
    before: Seen<'a>,
    done: Restored,
}

impl Work<'_> {
    /// Writes the volume's id and what stands still.
    fn still(&mut self, archive: &Archive, manifest: &Manifest, plan: &Plan) -> Result<(), Fault> {
        let id = self.layout.volume_id();
        write_new(self.disk, self.names, &id, format!("{}\n", manifest.volume).as_bytes())?;
        let security = self.layout.security();
        if manifest.parts.iter().any(|tally| tally.part == Part::Security && tally.files > 0)
            && found(self.disk.stat(&security)).on("look at", &security)?.is_none()
        {
            self.disk.make_folder_with(&security, 0o700).on("make the folder", &security)?;
        }
        // Where there are keys, one that is missing was deleted: it opens nothing again by itself. That there are, the secret of
        // tokens says: it comes last, so that a restore that was cut off goes on with the rest.
        let secret = self.layout.token_secrets();
        let has_keys = found(self.disk.stat(&secret)).on("look at", &secret)?.is_some();
        let was_deleted = |name: &str| {
            has_keys
                && !self.wish.force
                && ["Security/keys/", "Security/users/"].iter().any(|folder| name.starts_with(folder))
        };
        let is_last = |place: &Place| place.path(self.layout) == secret;
        archive.walk(&mut |item| match item.place.part {
            _ if is_last(&item.place) => Ok(()),
            Part::Security if was_deleted(&item.place.name) && !plan.there.contains_key(&item.place.name) => {
                self.done.stayed += 1;
                Ok(())
            }
            Part::State | Part::Inbox | Part::Waiting | Part::Running => Ok(()),
            Part::Keys | Part::Programs | Part::Security | Part::Results => self.put(archive, item, plan),
        })?;
        archive.walk(&mut |item| if is_last(&item.place) { self.put(archive, item, plan) } else { Ok(()) })?;
        Ok(())
    }

    fn put(&mut self, archive: &Archive, item: Item<'_>, plan: &Plan) -> Result<(), Fault> {
        let path = item.place.path(self.layout);
        let is_fact = matches!(item.place.part, Part::Results | Part::Keys);
        match plan.there.get(&item.place.name) {
            Some(is_same) if *is_same || is_fact => {
                self.done.stayed += 1;
                return Ok(());
            }
            Some(_) => self.keep_aside(&path)?,
            None => {}
        }
        let ended = item.place.run.as_ref().filter(|_| item.place.part == Part::Results);
        let is_over = ended.map(|run| self.before.left(run)).transpose()?.is_some_and(|traces| traces.over);
        if !is_over {
            return self.write(archive, &path, item);
        }
        let (place, size, rights, modified) = (item.place.clone(), item.size, item.rights, item.modified);
        let read = read_all(archive, item)?;
        // The run ended otherwise here, and has one end.
        if serde_json::from_slice::<Outcome>(&read).is_ok_and(|outcome| outcome.is_final) {
            self.done.stayed += 1;
            return Ok(());
        }
        self.write(archive, &path, Item { place, size, rights, modified, content: &mut read.as_slice() })
    }

    /// Gives what is at a path another name, beside it.
    fn keep_aside(&mut self, path: &Path) -> Result<(), Fault> {
        let kept = aside(path, self.wish.now);
        self.disk.rename_new(path, &kept).on("keep", path)?;
        self.done.kept.push(kept);
        Ok(())
    }

    fn write(&mut self, archive: &Archive, path: &Path, item: Item<'_>) -> Result<(), Fault> {
        let staged = self.names.beside(path);
        let file = in_folder(self.disk, path, || create_private(&staged)).on("write", path)?;
        let written = fill(archive, &file, path, item).and_then(|()| {
            self.disk.rename_new(&staged, path).on("write", path)?;
            Ok(())
        });
        if written.is_err() {
            discard(self.disk, &staged);
        }
        self.done.written += u64::from(written.is_ok());
        written
    }

    /// Writes the files of open runs, each where what the volume knows of its run lets it be.
    fn moving(&mut self, plan: &Plan) -> Result<Runs, Fault> {
        let (disk, layout) = (self.disk, self.layout);
        let mut seen = Seen::new(disk, layout);
        let mut runs = Runs::new();
        for (place, bytes, modified) in &plan.moving {
            let Some((run, stem, lies)) = opened(place) else { continue };
            let traces = seen.traces(&run)?;
            let (path, lies) = match fate(lies, &traces) {
                Fate::Returns => (place.path(layout), Some(lies)),
                Fate::Reconciled => {
                    self.done.runs_reconciled += 1;
                    let newest = Lease { run: run.clone(), attempt: traces.newest() };
                    (layout.running_file(&newest, &stem), Some(Lies::Running(newest.attempt)))
                }
                Fate::StaysAway => {
                    self.done.runs_stayed_away += 1;
                    runs.insert(run, (traces.lies, traces));
                    continue;
                }
            };
            let staged = stage(disk, self.names, &path, bytes)?;
            let file = open_plain(&staged).on("write", &path)?;
            let placed = finish(&file, 0o644, *modified, false).and_then(|()| disk.rename_new(&staged, &path));
            placed.inspect_err(|_| discard(disk, &staged)).on("write", &path)?;
            self.done.written += 1;
            runs.insert(run, (lies, traces));
        }
        // Those of the state that have no file in the archive.
        for run in plan.state.iter().flat_map(|state| state.runs.keys()) {
            if !runs.contains_key(run) {
                let traces = seen.traces(run)?;
                runs.insert(run.clone(), (traces.lies, traces));
            }
        }
        Ok(runs)
    }

    /// Writes the state, the last of all.
    fn state(&mut self, plan: &Plan, runs: &Runs) -> Result<(), Fault> {
        let (disk, path) = (self.disk, self.layout.state());
        let Some(archived) = plan.state.clone() else { return Ok(()) };
        let own = revisions::newest_text(disk, self.layout)?;
        let kept = aside(&path, self.wish.now);
        if found(disk.copy(&path, &kept, limit(Part::State))).on("keep", &path)?.is_some() {
            self.done.kept.push(kept);
        }
        let readable = own.and_then(|(bytes, _)| serde_json::from_slice::<State>(&bytes).ok());
        let mut next = restored(archived, readable.as_ref(), self.seen_revision()?, runs);
        sign(&mut next, &self.wish.me);
        // Lost again before anybody has seen it, it must not go on from the same number.
        let lock = self.layout.lock();
        disk.append(&lock, format!("{}\n", next.revision).as_bytes()).on("write", &lock)?;
        let mut bytes = serde_json::to_vec(&next).map_err(io::Error::from).on("write", &path)?;
        bytes.push(b'\n');
        let staged = stage(disk, self.names, &path, &bytes)?;
        disk.replace(&staged, &path).inspect_err(|_| discard(disk, &staged)).on("write", &path)?;
        self.done.written += 1;
        Ok(())
    }

    /// The largest revision that has a file, or that a heartbeat or the lock's file tells of.
    fn seen_revision(&self) -> Result<u64, Error> {
        let beats = heartbeat::read_all(self.disk, self.layout)?.beats;
        let lock = self.layout.lock();
        let noted = found(self.disk.read_head(&lock, NOTED)).on("read", &lock)?.unwrap_or_default();
        let noted = String::from_utf8_lossy(&noted).lines().filter_map(|line| line.parse().ok()).max();
        let made = revisions::newest(self.disk, self.layout)?;
        Ok(beats.iter().map(|beat| beat.revision).chain(noted).chain(made).max().unwrap_or(0))
    }
}

fn fill(archive: &Archive, file: &std::fs::File, path: &Path, item: Item<'_>) -> Result<(), Fault> {
    let Item { place, size, rights, modified, content } = item;
    let mut to = file;
    let mut chunk = vec![0; 64 << 10];
    let mut left = size;
    while left > 0 {
        let read = content
            .read(&mut chunk)
            .map_err(|error| archive.bad(format!("{:?} cannot be read: {error}", place.name)))?;
        if read == 0 {
            return Err(archive.bad(format!("{:?} is cut", place.name)));
        }
        io::Write::write_all(&mut to, &chunk[..read]).on("write", path)?;
        left = left.saturating_sub(read as u64);
    }
    finish(file, rights, modified, false).on("write", path)?;
    Ok(())
}

/// Where what is replaced is kept.
fn aside(path: &Path, now: DateTime<Utc>) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".before-restore-{}", stamp(now)));
    PathBuf::from(name)
}

/// The run that a moving file is, its stem, and where it lies.
fn opened(place: &Place) -> Option<(RunId, String, Lies)> {
    let name = OsStr::new(place.name.rsplit_once('/')?.1);
    match place.part {
        Part::Inbox => {
            let (stem, run) = split_dropped(name);
            Some((run?, stem, Lies::Inbox))
        }
        Part::Waiting => {
            let waiting = Waiting::parse(name)?;
            Some((waiting.run, waiting.stem, Lies::Waiting(waiting.attempt)))
        }
        Part::Running => {
            let (lease, stem) = parse_running(name)?;
            Some((lease.run, stem, Lies::Running(lease.attempt)))
        }
        Part::State | Part::Keys | Part::Programs | Part::Security | Part::Results => None,
    }
}
