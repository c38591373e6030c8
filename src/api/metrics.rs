//! Figures for Prometheus: what this device counts of its own work, and what the folder shows at the moment.

use std::sync::LazyLock;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use super::app::App;
use super::problem::{Document, Kind, Problem};
use crate::client::{Client, Failure, triggers, view};
use crate::exec::machine;
use crate::volume::Context as _;

/// The buckets of times, seconds: from what a trigger takes where nothing waits to what a lost device costs.
const BUCKETS: [f64; 14] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// One for the whole process, as the crate has it; `None`: another one was there before.
static HANDLE: LazyLock<Option<PrometheusHandle>> = LazyLock::new(install);

fn install() -> Option<PrometheusHandle> {
    let builder =
        PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS).ok()?;
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).ok()?;
    for (name, unit, says) in [
        (
            "aios_trigger_to_start_seconds",
            metrics::Unit::Seconds,
            "From the drop of a trigger to the start of its process, on this device",
        ),
        ("aios_lock_wait_seconds", metrics::Unit::Seconds, "How long a commit of this device waited for the lock"),
        ("aios_commit_seconds", metrics::Unit::Seconds, "How long a commit of this device took under the lock"),
    ] {
        metrics::describe_histogram!(name, unit, says);
    }
    metrics::describe_counter!("aios_runs_ended_total", "Runs that ended on this device, by status");
    metrics::describe_counter!("aios_attempts_ended_total", "Attempts that ended on this device, by status");
    for (name, says) in [
        ("aios_queue_depth", "Triggers and runs that wait, on the volume"),
        ("aios_queue_oldest_seconds", "How long the oldest of them has waited"),
        ("aios_runs_active", "Attempts that run, on the volume"),
        ("aios_devices_alive", "Devices that live"),
        ("aios_devices_known", "Devices that have a heartbeat"),
        ("aios_volume_free_bytes", "Free space of the shared folder"),
        ("aios_volume_total_bytes", "All space of the shared folder"),
        ("aios_state_revision", "The revision of the shared state"),
        ("aios_process_resident_bytes", "Memory of this orchestrator"),
        ("aios_build_info", "1, with the version"),
    ] {
        metrics::describe_gauge!(name, says);
    }
    Some(handle)
}

/// Begins to count.
pub(super) fn start() {
    LazyLock::force(&HANDLE);
}

/// Makes room: what was counted long ago is summed up.
pub(super) fn tidy() {
    if let Some(handle) = &*HANDLE {
        handle.run_upkeep();
    }
}

/// Figures for Prometheus: runs by status, depth and age of the queue, from trigger to start, lock and commit times, devices, disk,
/// memory. Counters are this device's own, gauges of the volume are the same on all.
#[utoipa::path(get, path = "/metrics", tag = "service", responses(
    (status = 200, description = "In the text format of Prometheus", body = String, content_type = "text/plain"),
    (status = 403, description = "With scopes they cannot be read: they count all jobs", body = Document),
))]
pub(super) async fn metrics(
    State(app): State<App>,
    axum::Extension(caller): axum::Extension<super::guard::Caller>,
) -> Result<Response, Problem> {
    caller.must_see_all("the figures count all jobs", "ask for a key without scopes")?;
    app.ask(|client| gauges(client)).await?;
    let handle = HANDLE.as_ref().ok_or_else(|| {
        Problem::new(Kind::Internal, "figures are collected by somebody else in this process", "restart the device")
    })?;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, kind)], handle.render()).into_response())
}

/// Sets what the folder shows at the moment.
fn gauges(client: &Client) -> Result<(), Failure> {
    let waiting = triggers::list(client, &|_| true)?;
    let now = client.now().wall;
    let ready = waiting.iter().filter_map(|waiting| waiting.since);
    let oldest = ready.map(|since| (now - since).as_seconds_f64());
    let state = view::state(client)?.unwrap_or_default();
    let devices = view::devices(client)?;
    let space = client.disk.space(&client.layout.common).on("ask for the free space of", &client.layout.common)?;
    metrics::gauge!("aios_queue_depth").set(waiting.len() as f64);
    metrics::gauge!("aios_queue_oldest_seconds").set(oldest.fold(0.0, f64::max));
    metrics::gauge!("aios_runs_active").set(state.runs.values().filter(|held| held.device.is_some()).count() as f64);
    metrics::gauge!("aios_devices_alive").set(devices.iter().filter(|device| device.alive).count() as f64);
    metrics::gauge!("aios_devices_known").set(devices.len() as f64);
    metrics::gauge!("aios_volume_free_bytes").set(space.free_bytes as f64);
    metrics::gauge!("aios_volume_total_bytes").set(space.total_bytes as f64);
    metrics::gauge!("aios_state_revision").set(state.revision as f64);
    metrics::gauge!("aios_process_resident_bytes").set(machine::own_memory().unwrap_or_default() as f64);
    metrics::gauge!("aios_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(())
}
