//! Heartbeats: one file a device, written by itself alone; and the lock that a device holds for its life.

use super::atomic::{Temporary, write_over};
use super::disk::{Disk, Guard};
use super::layout::Layout;
use super::{Context, Error, found};
use crate::model::device::Beat;
use crate::model::ids::DeviceId;

/// The largest heartbeat that is read, bytes.
const LIMIT: u64 = 4 << 20;

/// Writes a device's heartbeat.
///
/// # Errors
/// What the system said.
pub fn write(disk: &dyn Disk, layout: &Layout, names: &mut Temporary, beat: &Beat) -> Result<(), Error> {
    let path = layout.heartbeat(&beat.device);
    let bytes = serde_json::to_vec(beat).map_err(std::io::Error::from).on("write", &path)?;
    write_over(disk, names, &path, &bytes)
}

/// Reads one device's heartbeat. `None`: there is none, or it cannot be read as one.
///
/// # Errors
/// What the system said.
pub fn read(disk: &dyn Disk, layout: &Layout, device: &DeviceId) -> Result<Option<Beat>, Error> {
    let path = layout.heartbeat(device);
    let Some((bytes, _)) = found(disk.read(&path, LIMIT)).on("read", &path)? else { return Ok(None) };
    Ok(serde_json::from_slice(&bytes).ok().filter(|beat: &Beat| beat.device == *device))
}

/// Reads all heartbeats. One that cannot be read as one is left out: its device writes it anew within a beat.
///
/// # Errors
/// What the system said.
pub fn read_all(disk: &dyn Disk, layout: &Layout) -> Result<Vec<Beat>, Error> {
    let folder = layout.devices();
    let mut beats = Vec::new();
    for name in found(disk.list(&folder)).on("list", &folder)?.unwrap_or_default() {
        let device = name.to_str().and_then(|name| name.strip_suffix(".json")).and_then(|id| DeviceId::new(id).ok());
        if let Some(device) = device {
            beats.extend(read(disk, layout, &device)?);
        }
    }
    beats.sort_by(|a, b| a.device.cmp(&b.device));
    Ok(beats)
}

/// Tries to take a device's lock. `None`: another process holds it.
///
/// # Errors
/// What the system said.
pub fn lock(disk: &dyn Disk, layout: &Layout, device: &DeviceId) -> Result<Option<Guard>, Error> {
    let path = layout.device_lock(device);
    super::atomic::in_folder(disk, &path, || disk.lock(&path)).on("lock", &path)
}
