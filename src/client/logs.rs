//! The orchestrators' own logs, of all devices, merged by time.

use std::collections::BTreeMap;
use std::path::PathBuf;

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
    chrono::NaiveDate::parse_from_str(date, "%Y-%m-%d").ok()?;
    Some(Name { date: date.to_owned(), device: DeviceId::new(device).ok()?, file: file.to_owned() })
}

/// One line, with what it is sorted by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    /// Its time; of what is no JSON, that of the line before.
    pub at: String,
    /// Its device.
    pub device: DeviceId,
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
    /// Its time; of what is no JSON, that of the line before.
    pub at: String,
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

/// At least the newest `limit` lines, if there are so many; day by day, the newest first.
///
/// # Errors
/// Exit code 4.
pub fn newest(
    client: &Client,
    names: &[Name],
    limit: usize,
    reads: &mut BTreeMap<Name, Read>,
) -> Result<Vec<Line>, Failure> {
    let mut lines: Vec<Line> = Vec::new();
    for of_day in names.chunk_by(|a, b| a.date == b.date).rev() {
        if lines.len() >= limit {
            break;
        }
        for name in of_day {
            let path = path(client, name);
            let size = found(client.disk.stat(&path)).on("look at", &path)?.map_or(0, |meta| meta.id.size);
            let mut back = CHUNK;
            // From its end backwards, twice as far each time, until there are enough lines.
            loop {
                let offset = size.saturating_sub(back);
                let mut read = Read { offset, ..Read::default() };
                let mut found = Vec::new();
                take_new(client, name, &mut read, &mut found)?;
                if offset > 0 {
                    // The first may be half a line.
                    found.drain(..found.len().min(1));
                }
                if offset == 0 || found.len() >= limit {
                    lines.append(&mut found);
                    reads.insert(name.clone(), read);
                    break;
                }
                back *= 2;
            }
        }
    }
    Ok(lines)
}

/// The whole lines that were written since.
///
/// # Errors
/// Exit code 4.
pub fn take_new(client: &Client, name: &Name, read: &mut Read, lines: &mut Vec<Line>) -> Result<(), Failure> {
    let path = path(client, name);
    loop {
        let chunk = found(read_from(&path, read.offset, CHUNK)).on("read", &path)?.unwrap_or_default();
        if chunk.is_empty() {
            return Ok(());
        }
        read.offset += chunk.len() as u64;
        read.rest.extend(chunk);
        let Some(end) = read.rest.iter().rposition(|byte| *byte == b'\n') else {
            continue;
        };
        let whole: Vec<u8> = read.rest.drain(..=end).collect();
        for bytes in whole[..end].split(|byte| *byte == b'\n').filter(|bytes| !bytes.is_empty()) {
            let text = String::from_utf8_lossy(bytes).into_owned();
            if let Some(at) = time_of(&text) {
                read.at = at;
            }
            lines.push(Line { at: read.at.clone(), device: name.device.clone(), text });
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
    object.insert("device".to_owned(), Value::from(line.device.as_str()));
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_may_have_dots_in_its_name() {
        let name = parse_name("orchestrator.d.1.2026-11-21.log").unwrap();
        assert_eq!((name.device.as_str(), name.date.as_str()), ("d.1", "2026-11-21"));
        for other in ["2026-11-21", "orchestrator.2026-11-21.log", "orchestrator.d.1.log", "x.d.2026-11-21.log"] {
            assert_eq!(parse_name(other), None, "{other}");
        }
    }
}
