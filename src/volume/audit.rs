//! The audit logs, one a device: who changed what over HTTP, line by line.
//!
//! Each line carries the hash of the line before it, from one part of the log to the next: [`check`] finds a line that was changed,
//! or taken out between two others. It does not find what is missing at either end, nor a chain that was made anew as a whole.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::atomic::in_folder;
use super::disk::{Disk, Kind};
use super::layout::Layout;
use super::os::read_from;
use super::{Context, Error, found};
use crate::model::ids::DeviceId;
use crate::model::time::{parse_second_stamp, second_stamp};

/// The longest line that is looked for, bytes.
const LINE: u64 = 16 << 10;
/// How large a log grows before it goes on in a new file, bytes.
const PART: u64 = 16 << 20;
/// The largest file that is checked, bytes: one that could not be renamed grows on.
const READ: u64 = 1 << 30;

/// A device's log, as the one who writes it has it.
#[derive(Debug)]
pub struct Log {
    device: DeviceId,
    /// The hash of the last line; `None`: it has not been looked for.
    last: Option<String>,
    /// Behind how many bytes it goes on in a new file.
    part: u64,
}

impl Log {
    /// The log of this device, whoever wrote it before.
    #[must_use]
    pub fn new(device: DeviceId) -> Self {
        Self { device, last: None, part: PART }
    }

    /// Writes the line that `line` makes of the hash of the one before it.
    ///
    /// # Errors
    /// What the system said; then it is not known what of the line is there.
    pub fn write(
        &mut self,
        disk: &dyn Disk,
        layout: &Layout,
        now: DateTime<Utc>,
        line: impl FnOnce(String) -> String,
    ) -> Result<(), Error> {
        let path = layout.audit(&self.device);
        let (before, is_torn) = match self.last.take() {
            Some(last) => (last, false),
            None => self.newest(disk, layout)?,
        };
        let line = line(before);
        // What was cut off in the middle of a line stays as it is.
        let bytes = format!("{}{line}\n", if is_torn { "\n" } else { "" });
        if found(disk.append(&path, bytes.as_bytes())).on("write", &path)?.is_none() {
            in_folder(disk, &path, || disk.create(&path, bytes.as_bytes())).on("write", &path)?;
        }
        self.last = Some(hash(line.as_bytes()));
        if disk.stat(&path).is_ok_and(|meta| meta.id.size > self.part) {
            // Where it cannot be now, it is with the next line.
            let _ = self.end_part(disk, layout, now);
        }
        Ok(())
    }

    /// Lets the log go on in a new file. Parts are put in order by their names: a clock that was set back changes none.
    fn end_part(&self, disk: &dyn Disk, layout: &Layout, now: DateTime<Utc>) -> Result<(), Error> {
        let files = all(disk, layout)?.remove(self.device.as_str()).unwrap_or_default();
        let newest = files.iter().filter_map(|path| part_over(path.file_name()?.to_str()?)).map(|(_, at)| at).max();
        let at = newest.map_or(now, |newest| now.max(newest + TimeDelta::seconds(1)));
        let path = layout.audit(&self.device);
        disk.rename_new(&path, &layout.audit_part(&self.device, &second_stamp(at))).on("rename", &path)
    }

    /// The hash of the line that was written last, and whether that was cut off.
    fn newest(&self, disk: &dyn Disk, layout: &Layout) -> Result<(String, bool), Error> {
        let files = all(disk, layout)?.remove(self.device.as_str()).unwrap_or_default();
        for path in files.iter().rev() {
            let Some(meta) = found(disk.stat(path)).on("look at", path)? else { continue };
            let from = meta.id.size.saturating_sub(LINE);
            let bytes = found(read_from(path, from, LINE)).on("read", path)?.unwrap_or_default();
            let lines = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
            // A crash may leave a file without a line.
            let Some(last) = lines.rsplit(|byte| *byte == b'\n').next().filter(|line| !line.is_empty()) else {
                continue;
            };
            // A part that is over takes no more.
            let is_torn = lines.len() == bytes.len() && *path == layout.audit(&self.device);
            return Ok((hash(last), is_torn));
        }
        Ok(Default::default())
    }
}

/// The files of each device's log, in the order in which they were written.
///
/// # Errors
/// `Logs/` cannot be listed.
pub fn all(disk: &dyn Disk, layout: &Layout) -> Result<BTreeMap<String, Vec<PathBuf>>, Error> {
    let folder = layout.logs();
    let names = found(disk.list(&folder)).on("list", &folder)?.unwrap_or_default();
    let mut parts: Vec<(String, bool, String)> = Vec::new();
    for name in names.iter().filter_map(|name| name.to_str()) {
        if let Some(device) = name.strip_prefix("audit.").and_then(|rest| rest.strip_suffix(".jsonl")) {
            let over = part_over(name);
            // Those that are over come first, in the order of their times.
            parts.push((over.map_or(device, |(device, _)| device).to_owned(), over.is_none(), name.to_owned()));
        }
    }
    parts.sort_unstable();
    let mut all: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for (device, _, name) in parts {
        all.entry(device).or_default().push(folder.join(name));
    }
    Ok(all)
}

/// Whose log it is, and when it ended, if a name is that of a part that is over.
#[must_use]
pub fn part_over(name: &str) -> Option<(&str, DateTime<Utc>)> {
    // No device's id has a tilde.
    let (device, stamp) = name.strip_prefix("audit.")?.strip_suffix(".jsonl")?.split_once('~')?;
    Some((device, parse_second_stamp(stamp)?))
}

/// What a log turned out to be.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// How many lines it has.
    pub lines: usize,
    /// How many of them are no whole lines: a crash cuts them off.
    pub torn: usize,
    /// The first line that does not follow the one before it: its file and its number there.
    pub broken: Option<(PathBuf, usize)>,
}

/// Follows the chain of a log through its files, up to the first line that does not follow.
///
/// # Errors
/// One of them cannot be read, or is none of ours: a link, a folder, more than a GiB.
pub fn check(disk: &dyn Disk, files: &[PathBuf]) -> Result<Checked, Error> {
    let mut checked = Checked::default();
    // What stood before the oldest line may have been kept long enough.
    let mut before = None;
    for path in files {
        let Some((bytes, meta)) = found(disk.read(path, READ)).on("read", path)? else { continue };
        if meta.kind != Kind::File || meta.id.size > READ {
            let found = format!("it is {} of {} bytes, expected a file of at most {READ}", meta.kind, meta.id.size);
            return Err(io::Error::new(io::ErrorKind::InvalidData, found)).on("check", path);
        }
        let goes_on = Some(path) == files.last();
        if let Some(number) = follow(&bytes, goes_on, &mut before, &mut checked) {
            checked.broken = Some((path.clone(), number));
            break;
        }
    }
    Ok(checked)
}

/// The number of the first line that does not follow the one before it. `goes_on`: it is the file that is written to.
fn follow(bytes: &[u8], goes_on: bool, before: &mut Option<String>, checked: &mut Checked) -> Option<usize> {
    for (place, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let line = match line.strip_suffix(b"\n") {
            Some(line) => line,
            // It may just be being written.
            None if goes_on => break,
            None => line,
        };
        checked.lines += 1;
        match serde_json::from_slice::<Written>(line) {
            Ok(written) if before.as_ref().is_none_or(|before| written.before == *before) => {}
            Ok(_) => return Some(place + 1),
            // If it was whole once, the next line tells.
            Err(_) => checked.torn += 1,
        }
        *before = Some(hash(line));
    }
    None
}

/// One line, as it is read again.
#[derive(Debug, Deserialize)]
struct Written {
    before: String,
}

fn hash(line: &[u8]) -> String {
    hex::encode(Sha256::digest(line))
}

#[cfg(test)]
mod tests;
