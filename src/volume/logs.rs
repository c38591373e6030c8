//! Logs of attempts: the file that a program writes to, kept within its limit.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::atomic::{discard, in_folder};
use super::disk::Disk;
use super::{Context, Error, found};

/// Makes an attempt's log.
///
/// # Errors
/// What the system said; `AlreadyExists` means that this attempt was started before.
pub fn open(disk: &dyn Disk, path: &Path) -> Result<Option<File>, Error> {
    in_folder(disk, path, || disk.open_log(path)).on("create", path)
}

/// Opens the log of an attempt that goes on, to append to it; one that somebody removed begins anew.
///
/// # Errors
/// What the system said.
pub fn open_again(disk: &dyn Disk, path: &Path) -> Result<Option<File>, Error> {
    match found(disk.open_log_again(path)).on("open", path)? {
        Some(log) => Ok(log),
        None => open(disk, path),
    }
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

/// Where the earlier part of a rotated log lies: `<log>.1`.
#[must_use]
pub fn earlier_part(log: &Path) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

/// Whether a log has passed its limit. One that cannot be looked at has not.
#[must_use]
pub fn has_outgrown(disk: &dyn Disk, log: &Path, limit: u64) -> bool {
    disk.stat(log).is_ok_and(|meta| meta.id.size > limit)
}

/// Rotates a log that has passed its limit, while the program goes on to append to it: what it holds becomes its
/// [`earlier_part`], in one step and in the place of the one before, and it begins anew. `staged`: a name on the same file
/// system that is this caller's alone. Says how many bytes are in neither of the two; `None`: there was nothing to do.
///
/// At most twice the limit is taken over; more is left out, as in [`close_cut`]. What the program writes between the end of the
/// copy and the cut is lost, an instant's worth: it holds the file itself open, so that no rename can take it away from under it.
///
/// A crash behind the copy leaves the log uncut, and the next rotation replaces the earlier part by the same again and more.
///
/// # Errors
/// What the system said; then the log is as it was, or cut at twice its limit.
pub fn rotate(disk: &dyn Disk, log: &Path, staged: &Path, limit: u64) -> Result<Option<u64>, Error> {
    if !has_outgrown(disk, log, limit) {
        return Ok(None);
    }
    let room = limit.saturating_mul(2);
    let taken = take_over(disk, log, staged, room).inspect_err(|_| {
        // Whatever is wrong with the copy, the log must not grow for ever; that it cannot be cut either is said by the next try.
        let _ = disk.cut(log, room);
    })?;
    let had = cut(disk, log, 0)?;
    Ok(Some(had.saturating_sub(taken)))
}

/// Copies a log and makes the copy its earlier part.
fn take_over(disk: &dyn Disk, log: &Path, staged: &Path, room: u64) -> Result<u64, Error> {
    // Of an earlier try that could not remove it.
    found(disk.remove(staged)).on("remove", staged)?;
    let taken = disk.copy(log, staged, room).on("copy", log)?;
    let size = disk.stat(log).on("look at", log)?.id.size;
    let marked = if taken == room && size > room { close_cut(disk, staged, room, size - room) } else { Ok(()) };
    let earlier = earlier_part(log);
    marked
        .and_then(|()| disk.replace(staged, &earlier).on("write", &earlier))
        .inspect_err(|_| discard(disk, staged))?;
    Ok(taken)
}
