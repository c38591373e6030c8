//! Logs of attempts: the file that a program writes to, kept within its limit.

use std::fs::File;
use std::path::Path;

use super::atomic::in_folder;
use super::disk::Disk;
use super::{Context, Error};

/// Makes an attempt's log.
///
/// # Errors
/// What the system said; `AlreadyExists` means that this attempt was started before.
pub fn open(disk: &dyn Disk, path: &Path) -> Result<Option<File>, Error> {
    in_folder(disk, path, || disk.open_log(path)).on("create", path)
}

/// Cuts a log to its first `limit` bytes, and says how many went. The program goes on to append.
///
/// # Errors
/// What the system said.
pub fn cut(disk: &dyn Disk, path: &Path, limit: u64) -> Result<u64, Error> {
    disk.cut(path, limit).on("cut", path)
}

/// Says at the end of a log what was left out of it.
///
/// # Errors
/// What the system said.
pub fn close_cut(disk: &dyn Disk, path: &Path, limit: u64, left_out: u64) -> Result<(), Error> {
    let line = format!("\n[log cut at {limit} bytes (--log-limit): at least {left_out} bytes are left out]\n");
    disk.append(path, line.as_bytes()).on("write to", path)
}
