//! Before the first tick: a volume that works, and an id that is this device's alone.

use std::io;
use std::path::PathBuf;

use crate::model::device::Beat;
use crate::model::ids::{DeviceId, Session};
use crate::model::time::rfc3339;
use crate::volume::atomic::{Temporary, write_new};
use crate::volume::disk::{Disk, Guard};
use crate::volume::layout::Layout;
use crate::volume::{self, Context, found, heartbeat, secrets};

/// Why a device cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// The volume cannot be used.
    #[error(transparent)]
    Volume(#[from] volume::Error),
    /// Another process is this device.
    #[error("the device id {device} is in use{by}")]
    InUse {
        /// The id.
        device: DeviceId,
        /// By whom, as far as its heartbeat tells.
        by: String,
    },
}

/// Makes the folders that are missing and returns the volume's id, made at the first start.
///
/// # Errors
/// What the system said.
pub fn open_volume(disk: &dyn Disk, layout: &Layout, session: &Session) -> Result<String, volume::Error> {
    for folder in folders(layout).iter().chain([&layout.programs]) {
        disk.make_folders(folder).on("make the folder", folder)?;
    }
    secrets::make_folder(disk, layout);
    let path = layout.volume_id();
    for _ in 0..3 {
        match volume::volume_id(disk, layout)? {
            Some(id) if id.is_empty() => remove_empty_name(disk, layout)?,
            Some(id) => return Ok(id),
            // The device that makes it first names the volume.
            None => {
                write_new(disk, &mut Temporary::new(session.clone()), &path, format!("{session}\n").as_bytes())?;
            }
        }
    }
    let source = io::Error::new(io::ErrorKind::ResourceBusy, "another device is just naming the volume");
    Err(source).on("name the volume in", &path)
}

/// Removes the file of the volume's id if a power cut has taken its content; under the lock, so that no device removes one that another has
/// made anew.
fn remove_empty_name(disk: &dyn Disk, layout: &Layout) -> Result<(), volume::Error> {
    let lock = layout.lock();
    if let Some(_guard) = disk.lock(&lock).on("lock", &lock)?
        && volume::volume_id(disk, layout)?.is_some_and(|id| id.is_empty())
    {
        let path = layout.volume_id();
        found(disk.remove(&path)).on("remove", &path)?;
    }
    Ok(())
}

/// Makes and removes a file in each folder that devices write.
///
/// # Errors
/// The first folder that refuses, with the system's error.
pub fn check_writable(disk: &dyn Disk, layout: &Layout, names: &mut Temporary) -> Result<(), volume::Error> {
    for folder in [layout.common.clone(), layout.triggers()].iter().chain(&folders(layout)) {
        let probe = names.beside(&folder.join("probe"));
        disk.create(&probe, b"").and_then(|()| disk.remove(&probe)).on("write to the folder", folder)?;
    }
    Ok(())
}

/// The folders of a volume.
fn folders(layout: &Layout) -> [PathBuf; 7] {
    [
        layout.devices(),
        layout.running(),
        layout.waiting(),
        layout.keys(),
        layout.processed(),
        layout.results(),
        layout.logs(),
    ]
}

/// The right to be a device.
pub struct Identity {
    /// Held for life; `None` only where it was taken over by force.
    pub guard: Option<Guard>,
    /// The heartbeat of the life before, if there was one.
    pub before: Option<Beat>,
}

/// Takes a device's lock for life. With `force` a living holder is displaced.
///
/// # Errors
/// [`BeginError::InUse`], naming host, process and since when.
pub fn claim_identity(
    disk: &dyn Disk,
    layout: &Layout,
    device: &DeviceId,
    force: bool,
) -> Result<Identity, BeginError> {
    let guard = heartbeat::lock(disk, layout, device)?;
    let before = heartbeat::read(disk, layout, device)?;
    if guard.is_none() && !force {
        return Err(in_use(device, before.as_ref()));
    }
    Ok(Identity { guard, before })
}

/// The refusal, naming host, process and since when, as far as the heartbeat tells.
#[must_use]
pub(super) fn in_use(device: &DeviceId, beat: Option<&Beat>) -> BeginError {
    let by = beat.map_or_else(String::new, |beat| {
        format!(" on host {} by process {} since {}", beat.host, beat.pid, rfc3339(beat.started_at))
    });
    BeginError::InUse { device: device.clone(), by }
}
