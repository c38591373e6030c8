//! The service itself: what it is, whether it is well, and what it can do.

use std::time::Duration;

use axum::Extension;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Redirect, Response};
use serde::Serialize;
use tokio::time::timeout;
use utoipa::ToSchema;

use super::app::{App, Question};
use super::guard::Caller;
use super::problem::Problem;
use super::routes::endpoints;
use crate::client::status::of_devices;
use crate::client::{Client, Failure, view};
use crate::model::ids::DeviceId;

/// How long the folder may take to answer to somebody who asks for the health.
const PATIENCE: Duration = Duration::from_secs(2);

/// The service, and where everything is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Service {
    /// `aios`.
    service: &'static str,
    /// Its version.
    version: &'static str,
    /// The device that answers.
    #[schema(value_type = String)]
    device: DeviceId,
    /// The description for programs, OpenAPI 3.1.
    openapi: &'static str,
    /// The same for people.
    docs: &'static str,
    /// Every route, as `METHOD /path`.
    endpoints: Vec<String>,
}

/// What this is; a browser is led to the description.
#[utoipa::path(get, path = "/", tag = "service", security(()), responses(
    (status = 200, description = "The service", body = Service),
    (status = 303, description = "A browser is led to /api/docs"),
))]
pub(super) async fn root(State(app): State<App>, headers: HeaderMap) -> Response {
    let accepts = headers.get(header::ACCEPT).and_then(|kinds| kinds.to_str().ok()).unwrap_or_default();
    if accepts.contains("text/html") {
        return Redirect::to("/api/docs").into_response();
    }
    let service = Service {
        service: "aios",
        version: env!("CARGO_PKG_VERSION"),
        device: app.device.clone(),
        openapi: "/api/openapi.json",
        docs: "/api/docs",
        endpoints: endpoints().to_vec(),
    };
    Json(service).into_response()
}

/// Whether the service is well.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok` or `degraded`.
    status: &'static str,
    /// Its version.
    version: &'static str,
}

/// Whether the service is well, with the reasons.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HealthReasons {
    /// `ok` or `degraded`.
    status: &'static str,
    /// Its version.
    version: &'static str,
    /// The device that answers.
    #[schema(value_type = String)]
    device: DeviceId,
    /// What hinders, in sentences.
    problems: Vec<String>,
    /// How many devices live.
    devices_alive: usize,
}

fn look(client: &Client) -> Result<HealthReasons, Failure> {
    let device = client.device.clone();
    let version = env!("CARGO_PKG_VERSION");
    let looked = client.need_volume().and_then(|()| {
        let devices = view::devices(client)?;
        let state = view::state(client)?.unwrap_or_default();
        Ok((of_devices(&devices, &state), devices.iter().filter(|device| device.alive).count()))
    });
    let (problems, devices_alive) =
        looked.unwrap_or_else(|failure| (vec![format!("{} (hint: {})", failure.error, failure.hint)], 0));
    let status = if problems.is_empty() { "ok" } else { "degraded" };
    Ok(HealthReasons { status, version, device, problems, devices_alive })
}

/// Whether the service is well: no key is needed, and no reason is told.
#[utoipa::path(get, path = "/health", tag = "service", security(()), responses((status = 200, description = "It answers", body = Health)))]
pub(super) async fn health(State(app): State<App>, headers: HeaderMap) -> Result<Response, Problem> {
    let question = Question::public("health");
    let look = |client: &mut Client| {
        let HealthReasons { status, version, .. } = look(client)?;
        Ok(Health { status, version })
    };
    match timeout(PATIENCE, app.look(question, &headers, look)).await {
        Ok(answer) => answer,
        // A folder that does not answer is no reason to be silent.
        Err(_) => Ok(Json(Health { status: "degraded", version: env!("CARGO_PKG_VERSION") }).into_response()),
    }
}

/// Whether the service is well, and why not.
#[utoipa::path(get, path = "/health", tag = "service", responses((status = 200, description = "It answers", body = HealthReasons)))]
pub(super) async fn health_with_reasons(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let question = Question::new("health reasons", &(), &caller);
    app.look(question, &headers, move |client| {
        let mut seen = look(client)?;
        // They name devices and jobs of all.
        if !caller.sees_all() {
            seen.problems.clear();
        }
        Ok(seen)
    })
    .await
}

/// This description, for programs: OpenAPI 3.1.
#[utoipa::path(get, path = "/api/openapi.json", tag = "service", security(()), responses((status = 200, description = "OpenAPI 3.1", body = Object)))]
pub(super) async fn openapi() -> Response {
    let kind = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    ([kind], super::docs::document()).into_response()
}

/// This description, for people.
#[utoipa::path(get, path = "/api/docs", tag = "service", security(()), responses((status = 200, description = "A page", body = String, content_type = "text/html")))]
pub(super) async fn docs() -> Response {
    let kind = (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    ([kind], super::docs::page()).into_response()
}
