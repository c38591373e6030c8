//! Who changed what: one line a change in `Common/Logs/audit.<device>.jsonl`.
//!
//! Each line carries the hash of the line before it, so that a line that was changed or taken out is found.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::client::{Client, Failure};
use crate::model::time::rfc3339;
use crate::volume::atomic::in_folder;
use crate::volume::os::read_from;
use crate::volume::{Context as _, found};

/// The longest line that is written or looked for, bytes.
const LINE: u64 = 16 << 10;

/// One change.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Entry {
    pub(super) at: String,
    /// `key:<id>`, `user:<name>`, or what somebody called himself who was not let in.
    pub(super) who: String,
    pub(super) role: Option<&'static str>,
    pub(super) from: String,
    pub(super) method: String,
    pub(super) path: String,
    /// What the handler says of it: which run, which key.
    pub(super) what: Option<String>,
    /// The status of the answer.
    pub(super) status: u16,
    pub(super) device: String,
    /// SHA-256 of the line before, in hex; of the first line, nothing.
    pub(super) before: String,
}

/// What a handler says of a change, beside its path.
#[derive(Debug, Clone)]
pub(super) struct What(pub(super) String);

/// So many changes of nobody are written down in a minute.
const NOBODYS: u32 = 60;

/// The log of one device.
#[derive(Default)]
pub(super) struct Audit {
    /// Since when nobodies are counted, and how many there were.
    nobodies: Mutex<(Duration, u32)>,
    /// The hash of the last line; `None`: the file has not been looked at.
    last: Mutex<Option<String>>,
}

impl Audit {
    /// Whether what nobody asked for is still written down.
    pub(super) fn has_room_for_nobody(&self, now: Duration) -> bool {
        let mut nobodies = self.nobodies.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_sub(nobodies.0) >= Duration::from_secs(60) {
            *nobodies = (now, 0);
        }
        nobodies.1 += 1;
        nobodies.1 <= NOBODYS
    }

    /// Writes a line.
    pub(super) fn write(&self, client: &Client, entry: Entry) -> Result<(), Failure> {
        let path = client.layout.audit(&client.device);
        // One line at a time: each needs the one before.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, is_torn) = match last.take() {
            Some(last) => (last, false),
            None => newest(client)?,
        };
        let line =
            serde_json::to_string(&Entry { before, at: rfc3339(client.now().wall), ..entry }).unwrap_or_default();
        // What was cut off in the middle of a line stays as it is, and is found by whoever checks the chain.
        let bytes = format!("{}{line}\n", if is_torn { "\n" } else { "" });
        if found(client.disk.append(&path, bytes.as_bytes())).on("write", &path)?.is_none() {
            in_folder(&*client.disk, &path, || client.disk.create(&path, bytes.as_bytes())).on("write", &path)?;
        }
        *last = Some(hash(&line));
        Ok(())
    }
}

fn hash(line: &str) -> String {
    Sha256::digest(line.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The hash of the line that was written last, in an earlier life, and whether it was cut off.
fn newest(client: &Client) -> Result<(String, bool), Failure> {
    let path = client.layout.audit(&client.device);
    let Some(meta) = found(client.disk.stat(&path)).on("look at", &path)? else { return Ok((String::new(), false)) };
    let from = meta.id.size.saturating_sub(LINE);
    let bytes = found(read_from(&path, from, LINE)).on("read", &path)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let last = text.trim_end_matches('\n').rsplit('\n').next().filter(|line| !line.is_empty());
    Ok((last.map(hash).unwrap_or_default(), !text.is_empty() && !text.ends_with('\n')))
}

/// One line, as it is read again.
#[derive(Debug, Deserialize)]
struct Written {
    before: String,
}

/// The first line that does not follow the one before it; `None`: all do.
#[must_use]
pub fn first_break(text: &str) -> Option<usize> {
    let mut before = String::new();
    for (number, line) in text.lines().enumerate() {
        let follows = serde_json::from_str::<Written>(line).is_ok_and(|written| written.before == before);
        if !follows {
            return Some(number + 1);
        }
        before = hash(line);
    }
    None
}
