//! A device's own log: a file for each day.

use std::io::{self, Write};
use std::path::PathBuf;

use chrono::{NaiveDate, Utc};

use super::super::os::OsDisk;
use super::Appended;
use crate::model::ids::DeviceId;

/// The log of a device, `orchestrator.<device>.<date>.log` in a folder. Its file is opened anew on another day, and when somebody
/// has renamed or removed it.
#[derive(Debug)]
pub struct OwnLog {
    folder: PathBuf,
    device: DeviceId,
    /// Says which day it is.
    today: fn() -> NaiveDate,
    open: Option<(NaiveDate, Appended)>,
}

impl OwnLog {
    /// The log of a device in this folder, which need not be there yet.
    #[must_use]
    pub fn new(folder: PathBuf, device: DeviceId) -> Self {
        Self { folder, device, today, open: None }
    }

    fn file(&mut self) -> io::Result<&mut Appended> {
        let (disk, day) = (OsDisk::new(), (self.today)());
        let open = match self.open.take().filter(|(of, _)| *of == day) {
            Some(mut open) => {
                open.1.look(&disk);
                open
            }
            None => (day, Appended::open(&disk, &self.folder.join(format!("orchestrator.{}.{day}.log", self.device)))?),
        };
        Ok(&mut self.open.insert(open).1)
    }
}

#[expect(clippy::disallowed_methods, reason = "a log's day is the machine's, as the times of its lines are")]
fn today() -> NaiveDate {
    Utc::now().date_naive()
}

impl Write for OwnLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file()?.append(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::disk::Disk as _;

    #[test]
    fn each_day_has_a_file_and_a_removed_one_is_made_anew() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("Logs");
        let mut log = OwnLog::new(folder.clone(), DeviceId::new("a").unwrap());
        log.today = || NaiveDate::from_ymd_opt(2026, 11, 21).unwrap();
        log.write_all(b"one\n").unwrap();
        log.today = || NaiveDate::from_ymd_opt(2026, 11, 22).unwrap();
        log.write_all(b"two\n").unwrap();
        let disk = OsDisk::new();
        let read = |day: &str| {
            let path = folder.join(format!("orchestrator.a.2026-11-{day}.log"));
            String::from_utf8(disk.read(&path, 100).unwrap().0).unwrap()
        };
        assert_eq!((read("21"), read("22")), ("one\n".to_owned(), "two\n".to_owned()));
        disk.remove_tree(&folder).unwrap();
        log.open.as_mut().unwrap().1.looked = std::time::Duration::ZERO;
        log.write_all(b"three\n").unwrap();
        assert_eq!(read("22"), "three\n");
    }
}
