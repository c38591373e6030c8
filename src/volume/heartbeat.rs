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

/// What lies in `Devices/`.
#[derive(Debug, Default)]
pub struct Beats {
    /// The heartbeats, by device. One that is damaged is left out: its device writes it anew within a beat.
    pub beats: Vec<Beat>,
    /// Devices whose heartbeat is there and cannot be read, and what the system said.
    pub unreadable: Vec<(DeviceId, Error)>,
}

/// Reads all heartbeats.
///
/// # Errors
/// What the system said of the folder.
pub fn read_all(disk: &dyn Disk, layout: &Layout) -> Result<Beats, Error> {
    let folder = layout.devices();
    let mut all = Beats::default();
    for name in found(disk.list(&folder)).on("list", &folder)?.unwrap_or_default() {
        let device = name.to_str().and_then(|name| name.strip_suffix(".json")).and_then(|id| DeviceId::new(id).ok());
        let Some(device) = device else { continue };
        match read(disk, layout, &device) {
            Ok(beat) => all.beats.extend(beat),
            Err(error) => all.unreadable.push((device, error)),
        }
    }
    all.beats.sort_by(|a, b| a.device.cmp(&b.device));
    Ok(all)
}

/// Tries to take a device's lock. `None`: another process holds it.
///
/// # Errors
/// What the system said.
pub fn lock(disk: &dyn Disk, layout: &Layout, device: &DeviceId) -> Result<Option<Guard>, Error> {
    let path = layout.device_lock(device);
    super::atomic::in_folder(disk, &path, || disk.lock(&path)).on("lock", &path)
}
