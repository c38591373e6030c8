//! Backups: what their files are called, what an archive says of itself, and every limit on one.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::ids::DeviceId;
use super::time::{parse_second_stamp, second_stamp, utc};

/// The schema of archives that this program reads and writes.
pub const SCHEMA: u32 = 1;
/// The most files in one archive.
pub const FILES_MOST: usize = 1_000_000;
/// The most bytes of them together, uncompressed.
pub const BYTES_MOST: u64 = 64 << 30;
/// The largest file of `Programs/` or `Security/` in an archive, bytes.
pub const FILE_MOST: u64 = 64 << 20;
/// The largest state in an archive, bytes.
pub const STATE_MOST: u64 = 256 << 20;
/// The largest manifest, bytes.
pub const MANIFEST_MOST: u64 = 1 << 20;
/// The most bytes of triggers that wait or run: they are held in memory, because they move.
pub const MOVING_MOST: u64 = 256 << 20;
/// The longest path in an archive, bytes.
pub const PATH_MOST: usize = 1_024;
/// How many of the files that were left out a manifest names.
pub const NAMED_MOST: usize = 1_000;

/// The name of a backup: `aios-<UTC time>-<the volume's id, its first 8 characters>.tar.zst`. Names sort by time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackupName {
    /// When it was begun, to the second.
    pub at: DateTime<Utc>,
    /// The beginning of the volume's id.
    pub volume: String,
}

impl BackupName {
    /// The name of a backup of this volume that is begun now.
    #[must_use]
    pub fn new(at: DateTime<Utc>, volume: &str) -> Self {
        let at = DateTime::from_timestamp(at.timestamp(), 0).unwrap_or(at);
        Self { at, volume: volume.chars().filter(char::is_ascii_alphanumeric).take(8).collect() }
    }

    /// Reads a file name; `None` if it is not exactly one.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let (at, volume) = name.strip_prefix("aios-")?.strip_suffix(".tar.zst")?.split_once('-')?;
        let is_plain = (1..=8).contains(&volume.len()) && volume.bytes().all(|byte| byte.is_ascii_alphanumeric());
        is_plain.then_some(Self { at: parse_second_stamp(at)?, volume: volume.to_owned() })
    }
}

impl fmt::Display for BackupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "aios-{}-{}.tar.zst", second_stamp(self.at), self.volume)
    }
}

/// The first file of an archive: what it is of, and what else is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`SCHEMA`] of the archive.
    pub schema: u32,
    /// The schema of `state.json` in it.
    pub state_schema: u32,
    /// The volume's random id.
    pub volume: String,
    /// When it was begun.
    #[serde(with = "utc")]
    pub created_at: DateTime<Utc>,
    /// The version of the program that made it.
    pub version: String,
    /// The device that made it.
    pub device: DeviceId,
    /// How much of what is in it, in the order of the archive; the manifest itself does not count.
    pub parts: Vec<Tally>,
    /// What was left out, the first [`NAMED_MOST`].
    pub skipped: Vec<Skipped>,
    /// How much was left out.
    pub skipped_count: u64,
}

/// How much there is of one part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Which.
    pub part: Part,
    /// How many files.
    pub files: u64,
    /// How many bytes they have.
    pub bytes: u64,
}

/// A file that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its path in the volume.
    pub path: String,
    /// Why.
    pub why: String,
}

/// The parts of an archive, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// `state.json`: one whole revision.
    State,
    /// `Triggers/`: the inbox, each under a name that carries its run's id.
    Inbox,
    /// `Triggers/.waiting/`.
    Waiting,
    /// `Triggers/.running/`.
    Running,
    /// `Triggers/.ids/`.
    Keys,
    /// `Programs/`.
    Programs,
    /// `Security/`.
    Security,
    /// `Results/`.
    Results,
}

impl Part {
    /// All of them, in the order of an archive.
    pub const ALL: [Self; 8] = [
        Self::State,
        Self::Inbox,
        Self::Waiting,
        Self::Running,
        Self::Keys,
        Self::Programs,
        Self::Security,
        Self::Results,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_those_of_others_are_none() {
        let at = DateTime::parse_from_rfc3339("2026-11-21T03:41:56.789Z").unwrap().to_utc();
        let name = BackupName::new(at, "0123456789abcdef");
        assert_eq!(name.to_string(), "aios-20261121T034156Z-01234567.tar.zst");
        assert_eq!(BackupName::parse(&name.to_string()), Some(name));
        assert_eq!(BackupName::new(at, "v").to_string(), "aios-20261121T034156Z-v.tar.zst");
        for other in [
            // What the program `backup` makes.
            "Programs.20261121T034156123Z-k3f9q2.1.tar.gz",
            "aios-20261121T034156Z-01234567.tar.gz",
            "aios-20261121T034156Z-012345678.tar.zst",
            "aios-20261121T034156Z-.tar.zst",
            "aios-20261321T034156Z-01234567.tar.zst",
            "aios-20261121T034156Z-0123/567.tar.zst",
            "aios-20261121T034156123Z-01234567.tar.zst",
        ] {
            assert_eq!(BackupName::parse(other), None, "{other}");
        }
    }
}
