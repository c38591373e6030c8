//! The orchestrators' own logs, of all devices, merged by time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{Client, Failure};
use crate::model::ids::DeviceId;
use crate::volume::os::read_from;
use crate::volume::{Context as _, found};

/// How much is read at once, bytes.
const CHUNK: u64 = 256 << 10;

/// One device's log of one day.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// Its day.
    pub date: String,
    /// Its device.
    pub device: DeviceId,
    file: String,
}

/// Reads `orchestrator.<device>.<date>.log`.
fn parse_name(file: &str) -> Option<Name> {
    let (device, date) = file.strip_prefix("orchestrator.")?.strip_suffix(".log")?.rsplit_once('.')?;
    parse_day(date)?;
    Some(Name { date: date.to_owned(), device: DeviceId::new(device).ok()?, file: file.to_owned() })
}

fn parse_day(day: &str) -> Option<chrono::NaiveDate> {
    chrono::NaiveDate::parse_from_str(day, "%Y-%m-%d").ok()
}

/// Where a line stands among all of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Its time; of what is no JSON, that of the line before.
    pub at: String,
    /// Its device.
    pub device: DeviceId,
    /// The day of the log that it stands in: at midnight that may be the one after its time.
    pub day: String,
    /// Where it ends in its log, bytes.
    pub end: u64,
}

impl Place {
    /// Reads what it is written as.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, ' ');
        let (at, day, end, device) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        // Before the first line with a time there is none.
        let is_time = at.is_empty() || chrono::DateTime::parse_from_rfc3339(at).is_ok();
        is_time.then_some(())?;
        parse_day(day)?;
        let (at, day) = (at.to_owned(), day.to_owned());
        Some(Self { at, device: DeviceId::new(device).ok()?, day, end: end.parse().ok()? })
    }

    /// The last day whose logs may hold a line before this one.
    fn last_day(&self) -> Option<String> {
        let day = self.at.split_once('T').map_or(self.day.as_str(), |(day, _)| day);
        parse_day(day.max(&self.day))?.succ_opt().map(|day| day.to_string())
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "{} {} {} {}", self.at, self.day, self.end, self.device)
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    /// What it is sorted by.
    pub place: Place,
    /// As it was written.
    pub text: String,
}

/// How far a log has been read.
#[derive(Debug, Default)]
pub struct Read {
    /// So many bytes.
    pub offset: u64,
    rest: Vec<u8>,
    /// The time of the line before: what is no JSON stays behind it.
    at: String,
    /// Where it ends; `None`: where the log does.
    end: Option<u64>,
}

impl Read {
    /// Everything from `offset` on is new.
    #[must_use]
    pub fn from(offset: u64) -> Self {
        Self { offset, ..Self::default() }
    }
}

/// All logs, oldest first.
///
/// # Errors
/// Exit code 4.
pub fn names(client: &Client, device: Option<&DeviceId>) -> Result<Vec<Name>, Failure> {
    let folder = client.layout.logs();
    let files = found(client.disk.list(&folder)).on("list", &folder)?.unwrap_or_default();
    let mut names: Vec<Name> = files.iter().filter_map(|file| parse_name(file.to_str()?)).collect();
    names.retain(|name| device.is_none_or(|device| *device == name.device));
    names.sort();
    Ok(names)
}

/// The file of a log.
#[must_use]
pub fn path(client: &Client, name: &Name) -> PathBuf {
    client.layout.logs().join(&name.file)
}

/// The newest `limit` lines before a place, or of all; fewer if there are not so many. Oldest first.
///
/// # Errors
/// Exit code 4.
pub fn newest(
    client: &Client,
    names: &[Name],
    limit: usize,
    before: Option<&Place>,
    reads: &mut BTreeMap<Name, Read>,
) -> Result<Vec<Line>, Failure> {
    let mut lines: Vec<Line> = Vec::new();
    let last = before.and_then(Place::last_day);
    let is_before = |name: &Name| last.as_ref().is_none_or(|last| name.date <= *last);
    for of_day in names.chunk_by(|a, b| a.date == b.date).rev().filter(|of_day| of_day.iter().all(is_before)) {
        for name in of_day {
            let path = path(client, name);
            let size = found(client.disk.stat(&path)).on("look at", &path)?.map_or(0, |meta| meta.id.size);
            let end = before.map(|before| end_before(&path, size, before, name)).transpose()?;
            let size = end.unwrap_or(size);
            let mut back = CHUNK;
            // From its end backwards, twice as far each time, until there are enough lines.
            loop {
                let offset = size.saturating_sub(back);
                let mut read = Read { offset, end, ..Read::default() };
                let mut found = Vec::new();
                take_new(client, name, &mut read, &mut found)?;
                if offset > 0 {
                    // The first may be half a line.
                    found.drain(..found.len().min(1));
                }
                found.retain(|line| before.is_none_or(|before| line.place < *before));
                if offset == 0 || found.len() >= limit {
                    lines.append(&mut found);
                    reads.insert(name.clone(), read);
                    break;
                }
                back *= 2;
            }
        }
        // A line at midnight may stand in the next day's log: such a one says nothing of the day before.
        let is_of_day = |line: &&Line| of_day.iter().any(|name| line.place.at.as_str() >= name.date.as_str());
        if lines.iter().filter(is_of_day).count() >= limit {
            break;
        }
    }
    lines.sort();
    // Each log was read far enough for so many, and not all of them further.
    lines.drain(..lines.len().saturating_sub(limit));
    Ok(lines)
}

/// Where in a log the lines end that can stand before a place: found by halves, since lines stand in the order of their times. Of
/// lines that a stepping clock has put elsewhere some may be missed.
fn end_before(path: &Path, size: u64, before: &Place, name: &Name) -> Result<u64, Failure> {
    if (&name.device, &name.date) == (&before.device, &before.day) {
        // Lines of two threads may stand the other way round.
        return Ok((before.end + CHUNK).min(size));
    }
    let (mut low, mut high) = (0, size);
    while high - low > CHUNK {
        let middle = low + (high - low) / 2;
        let piece = found(read_from(path, middle, CHUNK)).on("read", path)?.unwrap_or_default();
        let mut whole = piece.split(|byte| *byte == b'\n').skip(1);
        let time = whole.find_map(|line| time_of(std::str::from_utf8(line).ok()?));
        if time.is_some_and(|time| time < before.at) { low = middle } else { high = middle }
    }
    Ok((high + CHUNK).min(size))
}

/// The whole lines that were written since.
///
/// # Errors
/// Exit code 4.
pub fn take_new(client: &Client, name: &Name, read: &mut Read, lines: &mut Vec<Line>) -> Result<(), Failure> {
    let path = path(client, name);
    loop {
        let most = read.end.map_or(CHUNK, |end| CHUNK.min(end.saturating_sub(read.offset)));
        let chunk = found(read_from(&path, read.offset, most)).on("read", &path)?.unwrap_or_default();
        if chunk.is_empty() {
            return Ok(());
        }
        read.offset += chunk.len() as u64;
        read.rest.extend(chunk);
        let Some(end) = read.rest.iter().rposition(|byte| *byte == b'\n') else {
            continue;
        };
        let whole: Vec<u8> = read.rest.drain(..=end).collect();
        let mut at = read.offset - (whole.len() + read.rest.len()) as u64;
        for bytes in whole.split_inclusive(|byte| *byte == b'\n') {
            at += bytes.len() as u64;
            let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
            if bytes.is_empty() {
                continue;
            }
            let text = String::from_utf8_lossy(bytes).into_owned();
            if let Some(at) = time_of(&text) {
                read.at = at;
            }
            let place = Place { at: read.at.clone(), device: name.device.clone(), day: name.date.clone(), end: at };
            lines.push(Line { place, text });
        }
    }
}

fn time_of(line: &str) -> Option<String> {
    let object: Map<String, Value> = serde_json::from_str(line).ok()?;
    object.get("timestamp")?.as_str().map(str::to_owned)
}

/// The line as it was written, and whose it is. What is no JSON becomes a message.
#[must_use]
pub fn with_device(line: &Line) -> Map<String, Value> {
    let mut object = serde_json::from_str::<Map<String, Value>>(&line.text)
        .unwrap_or_else(|_| Map::from_iter([("message".to_owned(), Value::from(line.text.as_str()))]));
    object.insert("device".to_owned(), Value::from(line.place.device.as_str()));
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_as_it_is_written() {
        let (at, day) = ("2026-11-21T08:00:00.1Z".to_owned(), "2026-11-21".to_owned());
        let place = Place { at, device: DeviceId::new("d.1").unwrap(), day, end: 17 };
        assert_eq!(Place::parse(&place.to_string()), Some(place));
        for bad in ["", "2026-11-21T08:00:00.1Z", "x 2026-11-21 1 d", "2026-11-21T08:00:00Z 2026-11-21 -1 d"]
            .into_iter()
            .chain([" 2026-11-21 1 ", " 2026-11-21 1 a b", " 2026-13-21 1 a", " 1 a"])
        {
            assert_eq!(Place::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_device_may_have_dots_in_its_name() {
        let name = parse_name("orchestrator.d.1.2026-11-21.log").unwrap();
        assert_eq!((name.device.as_str(), name.date.as_str()), ("d.1", "2026-11-21"));
        for other in ["2026-11-21", "orchestrator.2026-11-21.log", "orchestrator.d.1.log", "x.d.2026-11-21.log"] {
            assert_eq!(parse_name(other), None, "{other}");
        }
    }
}
