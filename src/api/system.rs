//! The machines: what they have in use, and what their runs may have.

use std::time::Duration;

use axum::Extension;
use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Deserializer, Serialize};
use tokio::sync::mpsc::channel;
use tokio::time::sleep;
use utoipa::{IntoParams, ToSchema};

use super::app::{App, Question};
use super::audit::{What, what};
use super::devices::seen;
use super::extract::{Asked, Body, switch};
use super::guard::Caller;
use super::jobs::value;
use super::problem::{Document, Problem};
use super::stream::{Events, WAITING, sse};
use crate::client::devices::{self, Limited, Row};
use crate::client::{Client, Code, Failure};
use crate::model::device::Machine;
use crate::model::ids::{DeviceId, RunId};
use crate::model::limits::{Resources, read_cpus, read_memory, read_pids, read_slots};
use crate::model::space::Space;
use crate::volume::Context as _;

/// How often followed figures are told: as often as devices say them.
const EVERY: Duration = Duration::from_secs(2);

/// A device's slots and default limits; what is left out stays, `none` or `null` takes a limit away.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LimitsBody {
    /// The device; the one that answers unless said.
    #[serde(default)]
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    device: Option<String>,
    /// How much it runs at once; what runs already goes on.
    #[serde(default)]
    #[schema(maximum = 100000)]
    slots: Option<u32>,
    /// The memory of a run whose job does not say: `512m`, or `none`.
    #[serde(default, deserialize_with = "word")]
    #[schema(value_type = Option<String>, pattern = "^([0-9]{2,4}m|[0-9]{1,2}g|none)$")]
    memory: Option<String>,
    /// Its processor time, as a number of CPUs: `1.5`, or `none`.
    #[serde(default, deserialize_with = "word")]
    #[schema(value_type = Option<String>, pattern = "^([1-9][0-9]{0,2}|none)$")]
    cpus: Option<String>,
    /// Its processes and threads: `100`, or `none`.
    #[serde(default, deserialize_with = "word")]
    #[schema(value_type = Option<String>, pattern = "^([1-9][0-9]{0,5}|none)$")]
    pids: Option<String>,
}

/// Reads a word, or a number as one; `null` is `none`.
fn word<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Word {
        Text(String),
        Number(serde_json::Number),
        Nothing(()),
    }
    Ok(Some(match Word::deserialize(from)? {
        Word::Text(text) => text,
        Word::Number(number) => number.to_string(),
        Word::Nothing(()) => "none".to_owned(),
    }))
}

fn read<T>(
    name: &str,
    text: Option<String>,
    read: fn(&str) -> Result<T, String>,
) -> Result<Option<Option<T>>, Failure> {
    match text.as_deref() {
        None => Ok(None),
        Some("none") => Ok(Some(None)),
        Some(text) => read(text)
            .map(|value| Some(Some(value)))
            .map_err(|error| Failure::new(Code::Usage, format!("{name}: {error}"), "or none, to take the limit away")),
    }
}

/// Set a device's slots and the default limits of its runs: memory, processors, processes. It takes them without a restart, and keeps
/// them over one.
#[utoipa::path(post, path = "/system/set_resource_limits", tag = "devices", request_body = Option<LimitsBody>, responses(
    (status = 200, description = "What holds, and what was asked for and is not taken yet", body = Object),
    (status = 404, description = "There is no such device", body = Document),
))]
pub(super) async fn set_resource_limits(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Body(wanted): Body<LimitsBody>,
) -> Result<(Extension<What>, Json<Limited>), Problem> {
    let said = serde_json::to_string(&wanted).unwrap_or_default();
    let slots = wanted.slots.map(|slots| read_slots(&slots.to_string()));
    let slots = slots
        .transpose()
        .map_err(|error| Failure::new(Code::Usage, format!("slots: {error}"), "leave it out to keep what holds"))?;
    let set = Resources {
        slots,
        memory: read("memory", wanted.memory, read_memory)?,
        cpu_millis: read("cpus", wanted.cpus, read_cpus)?,
        pids: read("pids", wanted.pids, read_pids)?,
    };
    let device = wanted.device.unwrap_or_else(|| app.device.to_string());
    let changed = what(format!("device {device}: {said}"));
    let limited = app.change(move |client| {
        seen(client, &caller, &device)?;
        devices::limit(client, &device, set)
    });
    Ok((changed, Json(limited.await?)))
}

/// Whose figures are wanted, and how.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct MonitorQuery {
    /// Only of this device.
    #[serde(default)]
    device: Option<String>,
    /// Again and again, as server-sent events `resources`.
    #[serde(default, deserialize_with = "switch")]
    #[param(value_type = Option<bool>)]
    follow: bool,
}

/// What a device has in use.
#[derive(Debug, Serialize)]
struct Use {
    device: DeviceId,
    alive: bool,
    slots: u32,
    busy: u32,
    load: f64,
    machine: Option<Machine>,
}

/// What all of them have in use, and how much room the folder has.
#[derive(Debug, Serialize)]
struct Uses {
    devices: Vec<Use>,
    disk: Disk,
}

#[derive(Debug, Serialize)]
struct Disk {
    free_bytes: u64,
    total_bytes: u64,
    free_inodes: u64,
    total_inodes: u64,
}

fn look(client: &Client, caller: &Caller, device: Option<&str>) -> Result<Uses, Failure> {
    let of_caller =
        |row: &Row| caller.sees_device(&row.tags) && device.is_none_or(|device| row.device.as_str() == device);
    let sees_job = caller.view(client)?;
    let state = crate::client::view::state(client)?.unwrap_or_default();
    let sees = |run: &RunId| state.runs.get(run).is_some_and(|held| !held.command && sees_job(&held.job));
    let used = |mut row: Row| {
        if let Some(machine) = row.machine.as_mut().filter(|_| !caller.sees_all()) {
            machine.runs.retain(|run| sees(&run.run_id));
        }
        let Row { device, alive, slots, busy, load, machine, .. } = row;
        Use { device, alive, slots, busy, load, machine }
    };
    let rows = devices::list(client)?;
    let common = &client.layout.common;
    let Space { free_bytes, total_bytes, free_inodes, total_inodes } =
        client.disk.space(common).on("ask for the free space of", common)?;
    let disk = Disk { free_bytes, total_bytes, free_inodes, total_inodes };
    Ok(Uses { devices: rows.into_iter().filter(of_caller).map(used).collect(), disk })
}

/// What the machines have in use: processors, memory, graphics processors, runs; and the room of the shared folder. Every device says
/// its figures with its heartbeat, every 2 s.
#[utoipa::path(get, path = "/system/monitor_resources", tag = "devices", params(MonitorQuery), responses(
    (status = 200, description = "Figures; with `follow`, events", content((Object = "application/json"), (String = "text/event-stream"))),
    (status = 304, description = "As the `If-None-Match` says"),
))]
pub(super) async fn monitor_resources(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    Asked(query): Asked<MonitorQuery>,
) -> Result<Response, Problem> {
    if query.follow {
        let (to, events) = channel(WAITING);
        let sender = Events::new(&app, &caller, headers, to)?;
        tokio::spawn(follow(app, caller, sender, query.device));
        return Ok(sse(events));
    }
    let question = Question::new("resources", &query, &caller);
    let answer = app.look(question, &headers, move |client| look(client, &caller, query.device.as_deref()));
    Ok(answer.await?.into_response())
}

async fn follow(app: App, caller: Caller, mut events: Events, device: Option<String>) {
    loop {
        let (caller, device) = (caller.clone(), device.clone());
        let uses = match app.ask(move |client| value(&look(client, &caller, device.as_deref())?)).await {
            Ok(uses) => uses,
            Err(problem) => return events.fail(problem).await,
        };
        if !events.send(None, "resources", &uses).await {
            return;
        }
        tokio::select! {
            () = sleep(EVERY) => {}
            () = events.closed() => return,
        }
    }
}
