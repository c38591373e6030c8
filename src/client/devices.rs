//! Devices: who is there, and what people ask of them.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::change::request;
use super::view::{self, Device};
use super::{Client, Code, Failure};
use crate::model::container::Limits;
use crate::model::device::Machine;
use crate::model::ids::{DeviceId, Tag};
use crate::model::limits::{CGROUP_TAG, Resources};
use crate::model::message::{quoted, suggest};
use crate::model::state::{Ask, Extra, Setting, State};
use crate::model::time::utc;
use crate::volume::{Context as _, found, heartbeat};

/// One device in a list (`docs/reference/formats.md`, "JSON shapes").
#[derive(Debug, Serialize)]
pub struct Row {
    /// Its id.
    pub device: DeviceId,
    /// Whether it lives.
    pub alive: bool,
    /// Its process lives on this machine, and its heartbeat stands still.
    pub silent: bool,
    /// It has left by itself.
    pub left: bool,
    /// Whether it takes no work.
    pub drained: bool,
    /// What it has.
    pub tags: Vec<Tag>,
    /// How much it runs at once.
    pub slots: u32,
    /// What its runs may use where their jobs do not say.
    pub limits: Limits,
    /// How much of that is taken.
    pub busy: u32,
    /// Its host.
    pub host: String,
    /// Its program.
    pub version: String,
    /// Since when it runs.
    #[serde(with = "utc")]
    pub since: DateTime<Utc>,
    /// The load of its machine over a minute, per CPU.
    pub load: f64,
    /// When it last said that it lives, by its own clock.
    #[serde(with = "utc")]
    pub seen_at: DateTime<Utc>,
    /// Its machine, as it said last.
    pub machine: Option<Machine>,
    /// Asked for and not yet done.
    pub asked: Option<Ask>,
    /// Slots and limits that were asked for and are not taken yet.
    pub asked_limits: Resources,
}

/// The devices as lists show them.
#[must_use]
pub fn rows(devices: &[Device], state: &State) -> Vec<Row> {
    let row = |Device { beat, alive, silent }: &Device| Row {
        device: beat.device.clone(),
        alive: *alive,
        silent: *silent,
        left: !alive && beat.left,
        drained: beat.drained,
        tags: beat.tags.iter().cloned().collect(),
        slots: beat.slots,
        limits: beat.limits,
        busy: state.held_by(&beat.device, &beat.session).map(|(_, held)| held.slots).sum(),
        host: beat.host.clone(),
        version: beat.version.clone(),
        since: beat.started_at,
        load: beat.load,
        seen_at: beat.at,
        machine: beat.machine.clone(),
        asked: asked(state, &beat.device),
        asked_limits: state.to_set(&beat.device),
    };
    devices.iter().map(row).collect()
}

/// What was last asked of a device as such, and is still to come.
fn asked(state: &State, device: &DeviceId) -> Option<Ask> {
    let of_device = state.requests.iter().filter(|request| request.device == *device);
    of_device.map(|request| request.ask).rfind(|ask| concerns_device(*ask))
}

fn concerns_device(ask: Ask) -> bool {
    match ask {
        Ask::Drain | Ask::Resume => true,
        Ask::Cancel | Ask::Restart => false,
    }
}

/// Who is there.
///
/// # Errors
/// Exit code 4.
pub fn list(client: &Client) -> Result<Vec<Row>, Failure> {
    let state = view::state(client)?.unwrap_or_default();
    Ok(rows(&view::devices(client)?, &state))
}

/// The device of this name.
///
/// # Errors
/// Exit code 3: it never was here.
pub fn known(client: &Client, name: &str) -> Result<Device, Failure> {
    let mut devices = view::devices(client)?;
    let place = devices.iter().position(|device| device.beat.device.as_str() == name);
    place.map(|at| devices.swap_remove(at)).ok_or_else(|| {
        let names = devices.iter().map(|device| device.beat.device.as_str());
        let hint = match suggest(name, names) {
            Some(nearest) => format!("did you mean {nearest}? `orchestrator devices list` shows all"),
            None => "`orchestrator devices list` shows all devices".to_owned(),
        };
        let error = format!("there is no device {}", quoted(name));
        Failure::new(Code::NotFound, error, hint)
    })
}

/// What was asked of a device, and what it means there.
#[derive(Debug)]
pub struct Asked {
    /// The device.
    pub device: DeviceId,
    /// What was asked.
    pub ask: Ask,
    /// Whether it lives.
    pub alive: bool,
    /// Whether it held already.
    pub held: bool,
}

/// Leaves a request for a device; the newest counts, so that an older one of its kind goes.
///
/// # Errors
/// Exit code 3: it never was here.
pub fn ask(client: &Client, name: &str, ask: Ask) -> Result<Asked, Failure> {
    let Device { beat, alive, .. } = known(client, name)?;
    let wants_drained = match ask {
        Ask::Drain => true,
        Ask::Resume | Ask::Cancel | Ask::Restart => false,
    };
    let mut store = view::store(client);
    view::commit(client, |now| {
        store.change(now, &mut |state| {
            let pending = asked(state, &beat.device);
            // Asked for already, or what holds anyhow.
            if pending == Some(ask) || (pending.is_none() && beat.drained == wants_drained) {
                return false;
            }
            state.requests.retain(|request| request.device != beat.device || !concerns_device(request.ask));
            state.requests.push(request(client, ask, None, &beat.device));
            true
        })
    })?;
    Ok(Asked { device: beat.device, ask, alive, held: beat.drained == wants_drained })
}

/// Slots and default limits of a device.
#[derive(Debug, Serialize)]
pub struct Limited {
    /// The device.
    pub device: DeviceId,
    /// How much it runs at once.
    pub slots: u32,
    /// What its runs may use where their jobs do not say.
    pub limits: Limits,
    /// What of that was asked for and is not taken yet.
    pub asked: Resources,
    /// Whether it lives.
    pub alive: bool,
    /// What it will not hold of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Leaves for a device what slots and default limits it is to have; with nothing to change it only says what holds.
///
/// # Errors
/// Exit code 3: it never was here.
pub fn limit(client: &Client, name: &str, set: Resources) -> Result<Limited, Failure> {
    let Device { beat, alive, .. } = known(client, name)?;
    let mut store = view::store(client);
    let mut asked = Resources::default();
    if set.is_empty() {
        store.refresh()?;
        asked = store.state().to_set(&beat.device);
    } else {
        view::commit(client, |now| {
            store.change(now, &mut |state| {
                let id = client.new_run_id().to_string();
                let setting = Setting { id, device: beat.device.clone(), at: now.wall, set, extra: Extra::new() };
                let is_new = state.set(setting);
                asked = state.to_set(&beat.device);
                is_new
            })
        })?;
    }
    let (slots, limits) = (asked.slots.unwrap_or(beat.slots), asked.limits(beat.limits));
    let makes_cgroups = beat.tags.iter().map(Tag::as_str).any(|tag| tag == CGROUP_TAG);
    let note = (limits != limits.where_held(makes_cgroups)).then(|| {
        "outside containers it does not hold cpus and pids: it may make no cgroups (orchestrator doctor)".to_owned()
    });
    Ok(Limited { device: beat.device, slots, limits, asked, alive, note })
}

/// What is left of a device that was removed.
#[derive(Debug)]
pub struct Forgotten {
    /// The device.
    pub device: DeviceId,
    /// How many runs it holds, which go on elsewhere once its lease is over.
    pub holds: usize,
}

/// Removes what is left of a device that is dead.
///
/// # Errors
/// Exit code 3: it never was here; 1: it lives.
pub fn forget(client: &Client, name: &str) -> Result<Forgotten, Failure> {
    let Device { beat, alive, .. } = known(client, name)?;
    let refused = || {
        let error = format!("the device {} lives: on host {}, process {}", beat.device, beat.host, beat.pid);
        Failure::new(Code::Failed, error, "stop it first; `orchestrator devices drain` lets it finish what it has")
    };
    if alive {
        return Err(refused());
    }
    // Held meanwhile, so that it does not start under this verb's hands.
    let Some(_guard) = heartbeat::lock(&*client.disk, &client.layout, &beat.device)? else {
        return Err(refused());
    };
    // Whoever comes back under this id begins anew: drained it was, if it was, is forgotten with it.
    let mut holds = 0;
    let mut store = view::store(client);
    view::commit(client, |now| {
        store.change(now, &mut |state| {
            holds = state.runs.load(&beat.device).runs as usize;
            state.forget(&beat.device)
        })
    })?;
    let path = client.layout.heartbeat(&beat.device);
    found(client.disk.remove(&path)).on("remove", &path)?;
    Ok(Forgotten { device: beat.device, holds })
}
