//! `orchestrator devices`: who is there, and what people ask of them.

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::change::request;
use super::out::{Cell, Paint};
use super::times::short;
use super::view::{self, Device};
use super::{Code, Context, Failure};
use crate::model::ids::{DeviceId, Tag};
use crate::model::message::suggest;
use crate::model::state::{Ask, State};
use crate::model::time::utc;
use crate::volume::{Context as _, found, heartbeat};

/// The verbs of `devices`.
#[derive(Debug, Subcommand)]
pub(super) enum DevicesVerb {
    /// Who is there, how loaded, since when.
    List,
    /// Take no new work; what runs goes on. It stays so after a restart.
    Drain(DeviceArg),
    /// Take work again.
    Resume(DeviceArg),
    /// Remove what is left of a device that is dead.
    Forget(DeviceArg),
}

/// Which device.
#[derive(Debug, Clone, Args)]
pub(super) struct DeviceArg {
    /// Its id.
    id: String,
}

pub(super) fn devices(verb: &DevicesVerb, context: &Context) -> Result<Code, Failure> {
    context.need_volume()?;
    match verb {
        DevicesVerb::List => list(context),
        DevicesVerb::Drain(args) => ask(context, &args.id, Ask::Drain),
        DevicesVerb::Resume(args) => ask(context, &args.id, Ask::Resume),
        DevicesVerb::Forget(args) => forget(context, &args.id),
    }
}

/// One device in a list (`formats.md`, "JSON shapes").
#[derive(Debug, Serialize)]
pub(super) struct Row {
    device: DeviceId,
    alive: bool,
    /// It has left by itself.
    left: bool,
    drained: bool,
    tags: Vec<Tag>,
    slots: u32,
    busy: u32,
    host: String,
    version: String,
    #[serde(with = "utc")]
    since: DateTime<Utc>,
    load: f64,
    #[serde(with = "utc")]
    seen_at: DateTime<Utc>,
    /// Asked for and not yet done.
    asked: Option<Ask>,
}

/// The devices as lists show them.
pub(super) fn rows(devices: &[Device], state: &State) -> Vec<Row> {
    let row = |Device { beat, alive }: &Device| Row {
        device: beat.device.clone(),
        alive: *alive,
        left: !alive && beat.left,
        drained: beat.drained,
        tags: beat.tags.iter().cloned().collect(),
        slots: beat.slots,
        busy: state.held_by(&beat.device, &beat.session).map(|(_, held)| held.slots).sum(),
        host: beat.host.clone(),
        version: beat.version.clone(),
        since: beat.started_at,
        load: beat.load,
        seen_at: beat.at,
        asked: asked(state, &beat.device),
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

fn list(context: &Context) -> Result<Code, Failure> {
    let state = view::state(context)?.unwrap_or_default();
    let rows = rows(&view::devices(context)?, &state);
    if context.out.json {
        context.out.document(&rows)?;
    } else if rows.is_empty() {
        context.out.note("no device was ever here: start one with `orchestrator run`");
    } else {
        table(context, &rows)?;
    }
    Ok(Code::Done)
}

/// The rows as people read them.
pub(super) fn table(context: &Context, rows: &[Row]) -> Result<(), Failure> {
    let now = context.now().wall;
    let cells: Vec<[Cell; 8]> = rows
        .iter()
        .map(|row| {
            let tags: Vec<&str> =
                row.tags.iter().filter(|tag| tag.as_str() != row.device.as_str()).map(Tag::as_str).collect();
            [
                Cell::new(row.device.as_str()),
                state_cell(row),
                Cell::new(format!("{}/{}", row.busy, row.slots)),
                Cell::new(format!("{:.2}", row.load)),
                Cell::new(if tags.is_empty() { "-".to_owned() } else { tags.join(",") }),
                Cell::new(&row.host),
                Cell::new(&row.version),
                Cell::new(short(if row.alive { row.since } else { row.seen_at }, now)),
            ]
        })
        .collect();
    context.out.table(["DEVICE", "STATE", "BUSY", "LOAD", "TAGS", "HOST", "VERSION", "SINCE"], &cells)
}

fn state_cell(row: &Row) -> Cell {
    match (row.alive, row.asked, row.drained) {
        (false, _, drained) => match (row.left, drained) {
            (true, false) => Cell::painted("left", Paint::Dim),
            (true, true) => Cell::painted("left, drained", Paint::Dim),
            (false, false) => Cell::painted("dead", Paint::Red),
            (false, true) => Cell::painted("dead, drained", Paint::Red),
        },
        (true, Some(Ask::Drain), false) => Cell::painted("alive, to be drained", Paint::Yellow),
        (true, Some(Ask::Resume), true) => Cell::painted("drained, to be resumed", Paint::Yellow),
        (true, _, true) => Cell::painted("drained", Paint::Yellow),
        (true, _, false) => Cell::painted("alive", Paint::Green),
    }
}

/// The device of this name.
fn known(context: &Context, name: &str) -> Result<Device, Failure> {
    let mut devices = view::devices(context)?;
    let place = devices.iter().position(|device| device.beat.device.as_str() == name);
    place.map(|at| devices.swap_remove(at)).ok_or_else(|| {
        let names = devices.iter().map(|device| device.beat.device.as_str());
        let hint = match suggest(name, names) {
            Some(nearest) => format!("did you mean {nearest}? `orchestrator devices list` shows all"),
            None => "`orchestrator devices list` shows all devices".to_owned(),
        };
        let error = format!("there is no device {}", crate::model::message::quoted(name));
        Failure::new(Code::NotFound, error, hint)
    })
}

/// Leaves a request for a device; the newest counts, so that an older one of its kind goes.
fn ask(context: &Context, name: &str, ask: Ask) -> Result<Code, Failure> {
    let Device { beat, alive } = known(context, name)?;
    let wants_drained = match ask {
        Ask::Drain => true,
        Ask::Resume | Ask::Cancel | Ask::Restart => false,
    };
    let mut store = view::store(context);
    view::patiently(context, |now| {
        store.change(now, &mut |state| {
            let pending = asked(state, &beat.device);
            // Asked for already, or what holds anyhow.
            if pending == Some(ask) || (pending.is_none() && beat.drained == wants_drained) {
                return false;
            }
            state.requests.retain(|request| request.device != beat.device || !concerns_device(request.ask));
            state.requests.push(request(context, ask, None, &beat.device));
            true
        })
    })?;
    let verb = if wants_drained { "takes no new work" } else { "takes work again" };
    let when = if beat.drained == wants_drained {
        ""
    } else if alive {
        " as soon as it reads this"
    } else {
        " once it is back: it is not alive"
    };
    if context.out.json {
        context.out.document(&serde_json::json!({"device": beat.device, "asked": ask, "alive": alive}))?;
    } else if !context.out.quiet {
        context.out.line(&format!("{} {verb}{when}", beat.device))?;
    }
    Ok(Code::Done)
}

fn forget(context: &Context, name: &str) -> Result<Code, Failure> {
    let Device { beat, alive } = known(context, name)?;
    let refused = || {
        let error = format!("the device {} lives: on host {}, process {}", beat.device, beat.host, beat.pid);
        Failure::new(Code::Failed, error, "stop it first; `orchestrator devices drain` lets it finish what it has")
    };
    if alive {
        return Err(refused());
    }
    // Held meanwhile, so that it does not start under this verb's hands.
    let Some(_guard) = heartbeat::lock(&*context.disk, &context.layout, &beat.device)? else {
        return Err(refused());
    };
    // Whoever comes back under this id begins anew: drained it was, if it was, is forgotten with it.
    let mut holds = 0;
    let mut store = view::store(context);
    view::patiently(context, |now| {
        store.change(now, &mut |state| {
            holds = state.runs.values().filter(|held| held.device.as_ref() == Some(&beat.device)).count();
            let asked = state.requests.len();
            state.requests.retain(|request| request.device != beat.device || !concerns_device(request.ask));
            state.requests.len() != asked
        })
    })?;
    let path = context.layout.heartbeat(&beat.device);
    found(context.disk.remove(&path)).on("remove", &path)?;
    if context.out.json {
        context.out.document(&serde_json::json!({"device": beat.device, "forgotten": true}))?;
    } else if !context.out.quiet {
        let rest = match holds {
            0 => String::new(),
            1 => "; the run it held goes on elsewhere once its lease is over".to_owned(),
            many => format!("; the {many} runs it held go on elsewhere once its lease is over"),
        };
        context.out.line(&format!("{} is forgotten{rest}", beat.device))?;
    }
    Ok(Code::Done)
}
