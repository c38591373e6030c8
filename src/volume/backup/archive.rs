//! The form of an archive: a tar stream of regular files under zstd with its checksum, the manifest first.
//!
//! The reader believes nothing. It takes only what the writer makes - regular files, and the long names of GNU tar - under names
//! that have a place in a volume, each once, within the limits of [`crate::model::backup`], and as many files and bytes of each
//! part as the manifest says; so an archive that was cut, grew, or was made to fill a disk is refused where that shows.
//! Nothing of it reaches a file system here.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use tar::EntryType;

use super::Fault;
use crate::model::backup::{
    BYTES_MOST, FILE_MOST, FILES_MOST, MANIFEST_MOST, Manifest, PATH_MOST, Part, SCHEMA, STATE_MOST,
};
use crate::model::config::TRIGGER_LIMIT;
use crate::model::entry::{Waiting, parse_running, split_dropped};
use crate::model::ids::RunId;
use crate::volume::layout::Layout;
use crate::volume::{inbox, results};

/// The name of the first file.
pub(super) const MANIFEST: &str = "manifest.json";
/// The largest file of an idempotency key, bytes.
pub(super) const KEY_MOST: u64 = 4_096;
/// The largest result, bytes: what is larger is not read as one either.
pub(super) const RESULT_MOST: u64 = 8 << 20;
/// What may stand behind the last file, bytes: the two blocks that end a tar stream, filled up to a record.
const TAIL_MOST: u64 = 64 << 10;

/// The largest file of a part, bytes.
pub(super) fn limit(part: Part) -> u64 {
    match part {
        Part::State => STATE_MOST,
        Part::Inbox | Part::Waiting | Part::Running => TRIGGER_LIMIT,
        Part::Keys => KEY_MOST,
        Part::Programs | Part::Security => FILE_MOST,
        Part::Results => RESULT_MOST,
    }
}

/// A file's place in an archive, and in a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) part: Part,
    /// The run that it is, if it is an open one, or that it is a result of.
    pub(super) run: Option<RunId>,
    /// As the archive has it: `Triggers/.running/…`.
    pub(super) name: String,
}

impl Place {
    /// Reads a name. `None`: it has no place in a volume.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let is_plain = |piece: &str| !piece.is_empty() && piece != "." && piece != ".." && piece.len() <= 255;
        if name.len() > PATH_MOST || name.contains('\0') || !name.split('/').all(is_plain) {
            return None;
        }
        let (part, run) = match name.split_once('/') {
            None if name == "state.json" => (Part::State, None),
            None => return None,
            Some(("Programs", _)) => (Part::Programs, None),
            Some(("Security", _)) => (Part::Security, None),
            Some(("Results", rest)) => {
                let (day, file) = rest.split_once('/')?;
                let named = results::parse_name(OsStr::new(file), "json")?;
                (named.run.date() == day).then_some((Part::Results, Some(named.run)))?
            }
            Some(("Triggers", rest)) => of_triggers(rest)?,
            Some(_) => return None,
        };
        Some(Self { part, run, name: name.to_owned() })
    }

    /// Where it lies in a volume.
    pub(super) fn path(&self, layout: &Layout) -> PathBuf {
        match self.name.strip_prefix("Programs/") {
            Some(rest) => layout.programs.join(rest),
            None => layout.common.join(&self.name),
        }
    }
}

fn of_triggers(rest: &str) -> Option<(Part, Option<RunId>)> {
    match rest.split_once('/') {
        Some((".ids", key)) => {
            let is_hash = key.len() == 64 && key.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            is_hash.then_some((Part::Keys, None))
        }
        Some((".waiting", file)) => Some((Part::Waiting, Some(Waiting::parse(OsStr::new(file))?.run))),
        Some((".running", file)) => Some((Part::Running, Some(parse_running(OsStr::new(file))?.0.run))),
        Some(_) => None,
        None => {
            let run = split_dropped(OsStr::new(rest)).1.filter(|_| inbox::is_trigger_name(OsStr::new(rest)))?;
            Some((Part::Inbox, Some(run)))
        }
    }
}

/// One file as it comes by.
pub(super) struct Item<'a> {
    pub(super) place: Place,
    pub(super) size: u64,
    pub(super) rights: u32,
    pub(super) modified: DateTime<Utc>,
    /// Its content; what is not read is passed over.
    pub(super) content: &'a mut dyn Read,
}

/// An archive that is open. It is one file from the check to the last byte that is written, whatever its name stands for meanwhile.
#[derive(Debug)]
pub struct Archive {
    path: PathBuf,
    file: std::fs::File,
}

impl Archive {
    pub(super) fn new(path: &Path, file: std::fs::File) -> Self {
        Self { path: path.to_owned(), file }
    }

    /// What is wrong with it.
    pub(super) fn bad(&self, what: impl Into<String>) -> Fault {
        Fault::Bad { path: self.path.clone(), what: what.into() }
    }

    /// Reads it from its first byte to its last and shows each file but the manifest.
    ///
    /// # Errors
    /// [`Fault::Bad`] and [`Fault::Newer`] for what it may not be, and what `look` says.
    pub(super) fn walk(&self, look: &mut dyn FnMut(Item<'_>) -> Result<(), Fault>) -> Result<Manifest, Fault> {
        let broken = |error: std::io::Error| self.bad(format!("it cannot be read to its end: {error}"));
        let mut file = &self.file;
        file.seek(SeekFrom::Start(0)).map_err(broken)?;
        let plain = zstd::Decoder::new(BufReader::new(file)).map_err(broken)?;
        let mut tar = tar::Archive::new(plain);
        let mut check = Check::new(self);
        for entry in tar.entries().map_err(broken)?.raw(true) {
            let mut entry = entry.map_err(broken)?;
            let (kind, size) = (entry.header().entry_type(), entry.size());
            if kind == EntryType::GNULongName {
                check.long_name(size, &mut entry)?;
                continue;
            }
            let name = check.name(&entry.path_bytes())?;
            if kind != EntryType::Regular {
                return Err(self.bad(format!("{name:?} is {}, and only regular files are taken", kind_name(kind))));
            }
            let header = entry.header();
            let (rights, seconds) = (header.mode().map_err(broken)? & 0o777, header.mtime().map_err(broken)?);
            let modified = i64::try_from(seconds).ok().and_then(|at| DateTime::from_timestamp(at, 0));
            if check.manifest.is_none() {
                check.first(&name, size, &mut entry)?;
                continue;
            }
            let place = check.file(&name, size)?;
            look(Item { place, size, rights, modified: modified.unwrap_or_default(), content: &mut entry })?;
        }
        let mut tail = Vec::new();
        tar.into_inner().take(TAIL_MOST + 1).read_to_end(&mut tail).map_err(broken)?;
        if tail.len() as u64 > TAIL_MOST || tail.iter().any(|byte| *byte != 0) {
            return Err(self.bad("something stands behind its end"));
        }
        check.end()
    }
}

fn kind_name(kind: EntryType) -> &'static str {
    if kind.is_symlink() || kind.is_hard_link() {
        "a link"
    } else if kind.is_dir() {
        "a folder"
    } else if kind.is_character_special() || kind.is_block_special() || kind.is_fifo() {
        "a device or FIFO"
    } else {
        "something else"
    }
}

/// What an archive is held to while it is read.
struct Check<'a> {
    archive: &'a Archive,
    manifest: Option<Manifest>,
    long_name: Option<Vec<u8>>,
    files: BTreeSet<String>,
    folders: BTreeSet<String>,
    open: BTreeSet<RunId>,
    found: BTreeMap<Part, (u64, u64)>,
}

impl<'a> Check<'a> {
    fn new(archive: &'a Archive) -> Self {
        Self {
            archive,
            manifest: None,
            long_name: None,
            files: BTreeSet::new(),
            folders: BTreeSet::new(),
            open: BTreeSet::new(),
            found: BTreeMap::new(),
        }
    }

    /// The name of the next file, where it is too long for its header.
    fn long_name(&mut self, size: u64, content: &mut impl Read) -> Result<(), Fault> {
        if size > PATH_MOST as u64 + 1 || self.long_name.is_some() {
            return Err(self.archive.bad(format!("a name has {size} bytes, expected at most {PATH_MOST}")));
        }
        let mut name = Vec::new();
        content
            .read_to_end(&mut name)
            .map_err(|error| self.archive.bad(format!("it cannot be read to its end: {error}")))?;
        name.pop_if(|last| *last == 0);
        self.long_name = Some(name);
        Ok(())
    }

    fn name(&mut self, short: &[u8]) -> Result<String, Fault> {
        let name = self.long_name.take().unwrap_or_else(|| short.to_owned());
        String::from_utf8(name).map_err(|error| {
            let shown = String::from_utf8_lossy(error.as_bytes()).into_owned();
            self.archive.bad(format!("the name {shown:?} is not UTF-8"))
        })
    }

    fn first(&mut self, name: &str, size: u64, content: &mut impl Read) -> Result<(), Fault> {
        let bad = |what: String| self.archive.bad(what);
        if name != MANIFEST || size > MANIFEST_MOST {
            return Err(bad(format!(
                "it begins with {name:?} of {size} bytes, expected {MANIFEST} of at most {MANIFEST_MOST}"
            )));
        }
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes).map_err(|error| bad(format!("it cannot be read to its end: {error}")))?;
        check_schemas(&bytes)?;
        let manifest: Manifest =
            serde_json::from_slice(&bytes).map_err(|error| bad(format!("its {MANIFEST} is none: {error}")))?;
        let said = manifest.parts.iter().try_fold((0_u64, 0_u64), |(files, bytes), tally| {
            Some((files.checked_add(tally.files)?, bytes.checked_add(tally.bytes)?))
        });
        match said {
            Some((files, bytes)) if files <= FILES_MOST as u64 && bytes <= BYTES_MOST => {}
            Some((files, bytes)) => {
                return Err(bad(format!(
                    "it says that it holds {files} files of {bytes} bytes, expected at most {FILES_MOST} of {BYTES_MOST}"
                )));
            }
            None => return Err(bad("it says that it holds more than can be counted".to_owned())),
        }
        self.manifest = Some(manifest);
        Ok(())
    }

    fn file(&mut self, name: &str, size: u64) -> Result<Place, Fault> {
        let bad = |what: String| self.archive.bad(what);
        let Some(place) = Place::parse(name) else {
            return Err(bad(format!("{name:?} has no place in a volume")));
        };
        let most = limit(place.part);
        if size > most {
            return Err(bad(format!("{name:?} has {size} bytes, expected at most {most}")));
        }
        let ancestors = || name.match_indices('/').map(|(at, _)| &name[..at]);
        if self.folders.contains(name) || ancestors().any(|folder| self.files.contains(folder)) {
            return Err(bad(format!("{name:?} is a file and a folder")));
        }
        self.folders.extend(ancestors().map(str::to_owned));
        if !self.files.insert(name.to_owned()) {
            return Err(bad(format!("{name:?} comes twice")));
        }
        if let (Part::Inbox | Part::Waiting | Part::Running, Some(run)) = (place.part, &place.run)
            && !self.open.insert(run.clone())
        {
            return Err(bad(format!("the run {run} lies in two places, the second is {name:?}")));
        }
        let (files, bytes) = self.found.entry(place.part).or_default();
        (*files, *bytes) = (*files + 1, *bytes + size);
        let said = self.manifest.as_ref().and_then(|it| it.parts.iter().find(|tally| tally.part == place.part));
        if said.is_none_or(|said| *files > said.files || *bytes > said.bytes) {
            return Err(bad(format!("{name:?} is more of that part than its {MANIFEST} says")));
        }
        Ok(place)
    }

    fn end(self) -> Result<Manifest, Fault> {
        let bad = |what: String| self.archive.bad(what);
        let Some(manifest) = self.manifest else { return Err(bad("it is empty".to_owned())) };
        for tally in &manifest.parts {
            let found = self.found.get(&tally.part).copied().unwrap_or_default();
            if found != (tally.files, tally.bytes) {
                return Err(bad(format!(
                    "of {:?} it holds {} files of {} bytes, its {MANIFEST} says {} of {}",
                    tally.part, found.0, found.1, tally.files, tally.bytes
                )));
            }
        }
        Ok(manifest)
    }
}

/// Refuses what a newer program wrote, before anything else of it is read.
fn check_schemas(manifest: &[u8]) -> Result<(), Fault> {
    #[derive(serde::Deserialize)]
    struct Schemas {
        schema: u64,
        state_schema: u64,
    }
    // What has no such numbers is refused as no manifest.
    let Ok(found) = serde_json::from_slice::<Schemas>(manifest) else { return Ok(()) };
    let known =
        [("the archive", found.schema, SCHEMA), ("its state.json", found.state_schema, crate::model::state::SCHEMA)];
    match known.into_iter().find(|(_, found, known)| *found > u64::from(*known)) {
        Some((what, found, known)) => Err(Fault::Newer { what, found, known }),
        None => Ok(()),
    }
}
