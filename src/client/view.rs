//! The volume as a client sees it: read once, without a lock, and said to be what it is - a look from outside.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::{Client, Code, Failure};
use crate::decide::catalog::Catalog;
use crate::decide::explain::Seen;
use crate::model::device::{Beat, Me};
use crate::model::entry::{Entry, FileKey, Source};
use crate::model::ids::{JobName, RunId};
use crate::model::message::{quoted, suggest};
use crate::model::state::State;
use crate::model::time::Moment;
use crate::model::trigger::Refusal;
use crate::store::{Refused, Store};
use crate::volume::inbox::{Inbox, Look, is_trigger_name};
use crate::volume::os::is_network;
use crate::volume::programs::Programs;
use crate::volume::{Context as _, found, heartbeat};

/// How long a change waits for a lock that another process holds.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long it waits between two tries.
const STEP: Duration = Duration::from_millis(15);

/// A device, as its files show it.
#[derive(Debug)]
pub struct Device {
    /// Its newest heartbeat.
    pub beat: Beat,
    /// Whether it lives.
    pub alive: bool,
    /// Its process lives, as its lock shows, and its heartbeat stands still.
    pub silent: bool,
}

/// The life of a device, as far as its heartbeat and its lock show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It beats, and holds its lock, where locks reach from machine to machine.
    Alive,
    /// It holds its lock, and its heartbeat has stood still for a whole lease: the others take it for dead.
    Silent,
    /// It has left, or nothing of it is seen.
    Over,
}

/// Who this is where it signs what it changes.
pub fn me(client: &Client) -> Me {
    Me { device: client.device.clone(), session: client.session.clone(), tags: BTreeSet::new(), slots: 0 }
}

/// The shared state, to be read or changed.
pub fn store(client: &Client) -> Store {
    Store::new(Rc::clone(&client.disk), client.layout.clone(), me(client))
}

/// The state as it stands. `None`: it is missing or damaged, and whoever writes next makes it anew.
pub fn state(client: &Client) -> Result<Option<Arc<State>>, Failure> {
    let mut store = store(client);
    Ok(store.refresh()?.then(|| Arc::clone(store.state())))
}

/// Does something; where another process is in the way, again, for [`PATIENCE`].
pub fn patiently<T, E>(
    client: &Client,
    is_in_the_way: impl Fn(&E) -> bool,
    mut act: impl FnMut(Moment) -> Result<T, E>,
) -> Result<T, E> {
    let end = client.now().boot + PATIENCE;
    loop {
        let now = client.now();
        match act(now) {
            Err(error) if now.boot < end && is_in_the_way(&error) => client.pause(STEP),
            done => return done,
        }
    }
}

/// Changes the state, under its lock.
pub fn commit<T>(client: &Client, act: impl FnMut(Moment) -> Result<T, Refused>) -> Result<T, Failure> {
    Ok(patiently(client, |refused| matches!(refused, Refused::Busy | Refused::Raced), act)?)
}

/// All devices that have a heartbeat, in the order of their ids.
pub fn devices(client: &Client) -> Result<Vec<Device>, Failure> {
    let beats = heartbeat::read_all(&*client.disk, &client.layout)?.beats;
    let network = is_network(&client.layout.common);
    let look = |beat: Beat| {
        let life = life_of(client, &beat, network)?;
        Ok(Device { beat, alive: life == Life::Alive, silent: life == Life::Silent })
    };
    beats.into_iter().map(look).collect()
}

/// Returns what can be seen of a device's life. `network`: its folder is on a network file system, whose locks may not reach here.
pub fn life_of(client: &Client, beat: &Beat, network: bool) -> Result<Life, Failure> {
    if beat.left {
        return Ok(Life::Over);
    }
    let path = client.layout.heartbeat(&beat.device);
    let meta = found(client.disk.stat(&path)).on("look at", &path)?;
    let age = meta.and_then(|meta| (client.now().wall - meta.changed).to_std().ok());
    // One from the future is young: the server's clock is not this machine's.
    let beats = meta.is_some() && age.is_none_or(|age| age < Duration::from_millis(beat.lease_ms));
    if network {
        return Ok(if beats { Life::Alive } else { Life::Over });
    }
    let path = client.layout.device_lock(&beat.device);
    let is_there = found(client.disk.stat(&path)).on("look at", &path)?.is_some();
    let is_held = is_there && heartbeat::lock(&*client.disk, &client.layout, &beat.device)?.is_none();
    Ok(match (is_held, beats) {
        (true, true) => Life::Alive,
        (true, false) => Life::Silent,
        (false, _) => Life::Over,
    })
}

/// The devices as explanations need them; what they hold counts as the state has it.
pub fn seen(devices: &[Device], state: &State) -> Vec<Seen> {
    let busy = |beat: &Beat| state.held_by(&beat.device, &beat.session).map(|(_, held)| held.slots_taken()).sum();
    devices
        .iter()
        .map(|Device { beat, alive, .. }| Seen {
            device: beat.device.clone(),
            alive: *alive,
            drained: beat.drained,
            low_on: beat.low_on.clone(),
            tags: beat.tags.clone(),
            slots: beat.slots,
            busy: busy(beat),
            revision: beat.revision,
        })
        .collect()
}

/// The job files.
pub fn programs(client: &Client) -> Result<Programs, Failure> {
    let mut programs = Programs::default();
    programs.scan(&*client.disk, &client.layout, client.now().boot)?;
    Ok(programs)
}

/// The failure for a job that nobody knows, with the nearest name.
pub fn no_such_job(name: &str, catalog: &Catalog) -> Failure {
    let hint = match suggest(name, catalog.names()) {
        Some(nearest) => format!("did you mean {nearest}? `orchestrator jobs list` shows all"),
        None => {
            "`orchestrator jobs list` shows all jobs; for a command without a job file: `orchestrator exec -- COMMAND`"
                .into()
        }
    };
    Failure::new(Code::NotFound, format!("there is no job {} in Programs/", quoted(name)), hint)
}

/// A job's name as somebody gave it.
pub fn job_name(name: &str) -> Result<JobName, Failure> {
    JobName::new(name).map_err(|bad| {
        Failure::new(Code::Usage, crate::model::message::bad_name(&bad), "`orchestrator jobs list` shows all jobs")
    })
}

/// What lies in the inbox under one name.
#[derive(Debug)]
pub enum Lies {
    /// A trigger that waits.
    Waits(Arc<Entry>),
    /// It cannot be taken, and the next device that sees it moves it away.
    Refused(RunId, Refusal),
    /// It may still be written, or cannot be read.
    Unfinished,
}

/// The triggers among what lies in the inbox.
pub fn entries(lying: &[(FileKey, Lies)]) -> impl Iterator<Item = &Entry> {
    lying.iter().filter_map(|(_, lies)| match lies {
        Lies::Waits(entry) => Some(&**entry),
        Lies::Refused(..) | Lies::Unfinished => None,
    })
}

/// Everything that waits, by its file.
pub fn waiting(client: &Client) -> Result<Vec<(FileKey, Lies)>, Failure> {
    let mut all = Vec::new();
    let mut inbox = Inbox::default();
    for key in waiting_files(client)? {
        if let Some(lies) = look(client, &mut inbox, &key)? {
            all.push((key, lies));
        }
    }
    Ok(all)
}

/// The names of everything that waits.
pub fn waiting_files(client: &Client) -> Result<Vec<FileKey>, Failure> {
    let mut keys = Vec::new();
    for source in [Source::Inbox, Source::Waiting] {
        let folder = client.layout.source(source);
        let names = found(client.disk.list(&folder)).on("list", &folder)?.unwrap_or_default();
        keys.extend(
            names.into_iter().filter(|name| is_trigger_name(name)).map(|name| FileKey { source, name: name.into() }),
        );
    }
    Ok(keys)
}

/// What lies under one name; `None`: nothing (any more).
pub fn look(client: &Client, inbox: &mut Inbox, key: &FileKey) -> Result<Option<Lies>, Failure> {
    Ok(match inbox.look(&*client.disk, &client.layout, key, None, client.now())? {
        Look::Entry(entry) => Some(Lies::Waits(entry)),
        Look::Gone | Look::Same => None,
        Look::NotYet => Some(Lies::Unfinished),
        Look::Refused(run, refusal) => Some(Lies::Refused(run, refusal)),
    })
}
