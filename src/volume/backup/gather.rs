//! What a backup is made of: the moving part, read in one lock hold, and the list of what stands still.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::archive::{KEY_MOST, Place, RESULT_MOST};
use super::trace::Seen;
use super::{Fault, Terms};
use crate::model::backup::{BYTES_MOST, FILE_MOST, FILES_MOST, MOVING_MOST, NAMED_MOST, Part, Skipped, Tally};
use crate::model::config::TRIGGER_LIMIT;
use crate::model::entry::{FileId, Waiting, parse_running, split_dropped};
use crate::model::ids::RunId;
use crate::model::state::{SCHEMA, State};
use crate::volume::atomic::temporary_session;
use crate::volume::disk::{Disk, Kind, Meta};
use crate::volume::layout::Layout;
use crate::volume::os::rights;
use crate::volume::{Context, found, inbox, results, revisions};

/// The deepest folder below `Programs/` or `Security/`.
const DEPTH_MOST: usize = 32;

/// One file of an archive to be.
#[derive(Debug)]
pub(super) struct File {
    pub(super) place: Place,
    pub(super) id: FileId,
    pub(super) rights: u32,
    pub(super) modified: DateTime<Utc>,
    /// What it held, where that was read already; else it still lies at its place.
    pub(super) bytes: Option<Vec<u8>>,
}

impl File {
    pub(super) fn size(&self) -> u64 {
        self.bytes.as_ref().map_or(self.id.size, |bytes| bytes.len() as u64)
    }
}

/// Everything that goes into one archive, in its order.
#[derive(Debug, Default)]
pub(super) struct Content {
    pub(super) files: Vec<File>,
    pub(super) skipped: Vec<Skipped>,
    pub(super) skipped_count: u64,
    pub(super) state_schema: u32,
    bytes: u64,
}

impl Content {
    fn add(&mut self, file: File) -> Result<(), Fault> {
        self.bytes += file.size();
        if self.files.len() >= FILES_MOST || self.bytes > BYTES_MOST {
            return Err(Fault::TooMuch { what: format!("more than {FILES_MOST} files or {BYTES_MOST} bytes") });
        }
        self.files.push(file);
        Ok(())
    }

    fn skip(&mut self, path: String, why: impl Into<String>) {
        self.skipped_count += 1;
        if self.skipped.len() < NAMED_MOST {
            self.skipped.push(Skipped { path, why: why.into() });
        }
    }

    pub(super) fn tallies(&self) -> Vec<Tally> {
        let of = |part| {
            let files = self.files.iter().filter(move |file| file.place.part == part);
            let (files, bytes) = files.fold((0, 0), |(files, bytes), file| (files + 1, bytes + file.size()));
            Tally { part, files, bytes }
        };
        Part::ALL.map(of).into()
    }
}

/// Gathers everything. What moves is read in one lock hold; most of it was read shortly before, so that the hold is short.
pub(super) fn gather(
    disk: &dyn Disk,
    layout: &Layout,
    terms: &Terms,
    stop: &dyn Fn() -> bool,
) -> Result<Content, Fault> {
    let mut moving = Moving { disk, layout, seen: Seen::new(disk, layout), known: BTreeMap::new(), bytes: 0 };
    moving.read_all(stop)?;
    let lock = layout.lock();
    let Some(guard) = disk.lock(&lock).on("lock", &lock)? else {
        return Err(Fault::Busy { what: "the lock of the state" });
    };
    let there = moving.read_all(stop)?;
    let state = revisions::newest_text(disk, layout);
    drop(guard);
    let state = state?;

    let mut content = Content { state_schema: SCHEMA, ..Content::default() };
    let mut read = State::default();
    if let Some((bytes, meta)) = state {
        read = parse_state(&bytes)?;
        content.state_schema = read.schema;
        let place = Place { part: Part::State, run: None, name: "state.json".to_owned() };
        let file = File { place, id: meta.id, rights: 0o644, modified: meta.modified(), bytes: Some(bytes) };
        content.add(file)?;
    }
    let open = moving.into_content(there, &mut content)?;
    for (root, folder) in [("Programs", layout.programs.clone()), ("Security", layout.security())] {
        walk(disk, layout, root, &folder, &mut content, stop)?;
    }
    let last = read.jobs.values().filter_map(|mark| mark.last_run_id.clone());
    let stays: BTreeSet<RunId> = open.into_iter().chain(read.runs.keys().cloned()).chain(last).collect();
    recent_results(disk, layout, terms, &stays, &mut content, stop)?;
    Ok(content)
}

/// A state that a restored volume could go on from.
fn parse_state(bytes: &[u8]) -> Result<State, Fault> {
    super::check_state_schema(bytes)?;
    serde_json::from_slice(bytes).map_err(|error| Fault::Damaged { why: error.to_string() })
}

/// The folders through which runs move, and what was read of them.
struct Moving<'a> {
    disk: &'a dyn Disk,
    layout: &'a Layout,
    seen: Seen<'a>,
    known: BTreeMap<(Part, Vec<u8>), Moved>,
    bytes: u64,
}

/// What was read of a moving file.
struct Moved {
    bytes: Vec<u8>,
    meta: Meta,
    /// The run whose id its name carries has been there before.
    is_used: bool,
}

/// Names in the folders of moving files, and why one that is there was not read.
type There = Vec<(Part, std::ffi::OsString, Option<String>)>;

impl Moving<'_> {
    fn folders(&self) -> [(Part, std::path::PathBuf, u64); 4] {
        let layout = self.layout;
        [
            (Part::Inbox, layout.triggers(), TRIGGER_LIMIT),
            (Part::Waiting, layout.waiting(), TRIGGER_LIMIT),
            (Part::Running, layout.running(), TRIGGER_LIMIT),
            (Part::Keys, layout.keys(), KEY_MOST),
        ]
    }

    /// Reads what was not read before, or has changed since. Says what is there.
    fn read_all(&mut self, stop: &dyn Fn() -> bool) -> Result<There, Fault> {
        use std::os::unix::ffi::OsStrExt as _;
        let mut there = Vec::new();
        for (part, folder, limit) in self.folders() {
            for name in found(self.disk.list(&folder)).on("list", &folder)?.unwrap_or_default() {
                if stop() {
                    return Err(Fault::Stopped);
                }
                if name.as_bytes().starts_with(b".") {
                    continue;
                }
                let path = folder.join(&name);
                let Some(meta) = found(self.disk.stat(&path)).on("look at", &path)? else { continue };
                if meta.kind != Kind::File || meta.id.size > limit {
                    there.push((part, name, Some(not_taken(meta.kind, limit))));
                    continue;
                }
                let key = (part, name.as_bytes().to_owned());
                if self.known.get(&key).is_none_or(|known| known.meta.id != meta.id) {
                    let Some((bytes, meta)) = found(self.disk.read(&path, limit)).on("read", &path)? else { continue };
                    self.bytes += bytes.len() as u64;
                    if self.bytes > MOVING_MOST {
                        let what = format!("triggers and keys of more than {MOVING_MOST} bytes");
                        return Err(Fault::TooMuch { what });
                    }
                    let is_used = part == Part::Inbox && self.is_used(&name)?;
                    self.known.insert(key, Moved { bytes, meta, is_used });
                }
                there.push((part, name, None));
            }
        }
        Ok(there)
    }

    /// Whether a name carries the id of a run that has been there. Where the file lies in the inbox after this was found out, that
    /// run was another one: its own claim would have moved it.
    fn is_used(&mut self, name: &OsStr) -> Result<bool, Fault> {
        Ok(match split_dropped(name).1 {
            Some(run) => self.seen.left(&run)?.is_used(),
            None => false,
        })
    }

    /// What was there under the lock, each run once. Says which runs are open.
    fn into_content(mut self, there: There, content: &mut Content) -> Result<BTreeSet<RunId>, Fault> {
        use std::os::unix::ffi::OsStrExt as _;
        let mut open = BTreeSet::new();
        // Held before waiting before new: should a run ever lie in two folders, its newest place counts.
        for wanted in [Part::Running, Part::Waiting, Part::Inbox, Part::Keys] {
            for (_, name, why) in there.iter().filter(|(part, ..)| *part == wanted) {
                let shown = format!("{}/{}", folder_of(wanted), name.to_string_lossy());
                let key = (wanted, name.as_bytes().to_owned());
                let moved = match (why, self.known.remove(&key)) {
                    (None, Some(read)) => read,
                    (why, _) => {
                        content.skip(shown, why.clone().unwrap_or_else(|| "it was gone when it was read".to_owned()));
                        continue;
                    }
                };
                let Some((run, name)) = archived_name(wanted, name, &moved) else {
                    content.skip(shown, "its name is none of the orchestrator's");
                    continue;
                };
                if run.as_ref().is_some_and(|run| !open.insert(run.clone())) {
                    content.skip(shown, "its run lies in another folder as well");
                    continue;
                }
                let place = Place { part: wanted, run, name: format!("{}/{name}", folder_of(wanted)) };
                let Moved { bytes, meta, .. } = moved;
                let file = File { place, id: meta.id, rights: 0o644, modified: meta.modified(), bytes: Some(bytes) };
                content.add(file)?;
            }
        }
        content.files.sort_by_key(|file| file.place.part);
        Ok(open)
    }
}

fn folder_of(part: Part) -> &'static str {
    match part {
        Part::Waiting => "Triggers/.waiting",
        Part::Running => "Triggers/.running",
        Part::Keys => "Triggers/.ids",
        Part::Inbox => "Triggers",
        Part::State | Part::Programs | Part::Security | Part::Results => "",
    }
}

/// The name that a moving file has in an archive, and its run. One from the inbox gets its run's id into its name, so that it is the
/// same run wherever it comes back, and not another one beside that.
fn archived_name(part: Part, name: &OsStr, moved: &Moved) -> Option<(Option<RunId>, String)> {
    let own = |run: Option<RunId>| name.to_str().map(|name| (run, name.to_owned()));
    match part {
        Part::Waiting => Waiting::parse(name).and_then(|waiting| own(Some(waiting.run))),
        Part::Running => parse_running(name).and_then(|(lease, _)| own(Some(lease.run))),
        Part::Keys => Place::parse(&format!("Triggers/.ids/{}", name.to_string_lossy())).and_then(|_| own(None)),
        Part::Inbox if inbox::is_trigger_name(name) => {
            let (stem, carried) = split_dropped(name);
            let Moved { bytes, meta, is_used } = moved;
            let derived = |salt| inbox::derived_id(name, bytes, meta.id.inode, salt, meta.changed);
            let run = match carried {
                // As a device does it that claims it: an id that had its run is another trigger's.
                Some(_) if *is_used => derived(1),
                Some(run) => run,
                None => derived(0),
            };
            let name = format!("{stem}.{run}.json");
            Some((Some(run), name))
        }
        Part::Inbox | Part::State | Part::Programs | Part::Security | Part::Results => None,
    }
}

fn not_taken(kind: Kind, limit: u64) -> String {
    match kind {
        Kind::File => format!("it is larger than {limit} bytes"),
        Kind::Folder | Kind::Link | Kind::Other => format!("it is {kind}"),
    }
}

/// Lists the regular files below a folder; no link is followed.
fn walk(
    disk: &dyn Disk,
    layout: &Layout,
    root: &str,
    folder: &Path,
    content: &mut Content,
    stop: &dyn Fn() -> bool,
) -> Result<(), Fault> {
    let mut open = vec![(folder.to_owned(), root.to_owned(), 0)];
    while let Some((folder, inside, depth)) = open.pop() {
        let mut names = found(disk.list(&folder)).on("list", &folder)?.unwrap_or_default();
        names.sort_unstable();
        for name in names {
            if stop() {
                return Err(Fault::Stopped);
            }
            let path = folder.join(&name);
            let shown = format!("{inside}/{}", name.to_string_lossy());
            let Some(meta) = found(disk.stat(&path)).on("look at", &path)? else { continue };
            let is_unfinished = name.to_str().and_then(temporary_session).is_some();
            if path == layout.common || is_unfinished {
                continue;
            }
            let place = name.to_str().and_then(|_| Place::parse(&shown));
            match (meta.kind, place) {
                (Kind::Folder, _) if depth < DEPTH_MOST => open.push((path, shown, depth + 1)),
                (Kind::Folder, _) => content.skip(shown, format!("it lies deeper than {DEPTH_MOST} folders")),
                (Kind::File, Some(_)) if meta.id.size > FILE_MOST => {
                    content.skip(shown, not_taken(Kind::File, FILE_MOST));
                }
                (Kind::File, Some(place)) => {
                    let Some(rights) = found(rights(&path)).on("look at", &path)? else { continue };
                    content.add(File { place, id: meta.id, rights, modified: meta.modified(), bytes: None })?;
                }
                (Kind::File, None) => content.skip(shown, "its name is too long, or not UTF-8"),
                (Kind::Link | Kind::Other, _) => content.skip(shown, format!("it is {}", meta.kind)),
            }
        }
    }
    Ok(())
}

/// Lists the results that are young enough, and all of the runs that are open or the last of their job.
fn recent_results(
    disk: &dyn Disk,
    layout: &Layout,
    terms: &Terms,
    stays: &BTreeSet<RunId>,
    content: &mut Content,
    stop: &dyn Fn() -> bool,
) -> Result<(), Fault> {
    let is_young = |at: DateTime<Utc>| (terms.now - at).to_std().unwrap_or(Duration::ZERO) <= terms.results;
    for day in results::days(disk, layout)? {
        let folder = layout.results().join(&day);
        for name in found(disk.list(&folder)).on("list", &folder)?.unwrap_or_default() {
            if stop() {
                return Err(Fault::Stopped);
            }
            let place = name.to_str().and_then(|name| Place::parse(&format!("Results/{day}/{name}")));
            let Some(place) = place else { continue };
            let path = folder.join(&name);
            let Some(meta) = found(disk.stat(&path)).on("look at", &path)? else { continue };
            let is_wanted = is_young(meta.modified()) || place.run.as_ref().is_some_and(|run| stays.contains(run));
            if !is_wanted {
                continue;
            }
            if meta.kind == Kind::File && meta.id.size <= RESULT_MOST {
                content.add(File { place, id: meta.id, rights: 0o644, modified: meta.modified(), bytes: None })?;
            } else {
                content.skip(place.name, not_taken(meta.kind, RESULT_MOST));
            }
        }
    }
    Ok(())
}
