//! Devices: who is there, what they have, how loaded they are.

use axum::Extension;
use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::app::{App, Question};
use super::extract::{Asked, Named};
use super::guard::Caller;
use super::page::{Page, PageQuery};
use super::problem::{Document, Kind, Problem};
use crate::client::devices::{self, Row};
use crate::client::{Client, Code, Failure};
use crate::model::ids::DeviceId;
use crate::model::state::Ask;

/// Which devices are wanted.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct DevicesQuery {
    /// Only those that live, or do not.
    #[serde(default)]
    alive: Option<bool>,
    /// Only those that have this tag.
    #[serde(default)]
    tag: Option<String>,
}

/// Who is there: id, host, tags, slots, load, machine, when it was last seen, version.
#[utoipa::path(get, path = "/devices", tag = "devices", params(PageQuery, DevicesQuery), responses(
    (status = 200, description = "A page of devices", body = Page<Object>),
    (status = 304, description = "As the `If-None-Match` says"),
))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    Asked(page): Asked<PageQuery>,
    Asked(query): Asked<DevicesQuery>,
) -> Result<Response, Problem> {
    let question = Question::new("devices", &(&page, &query), &caller);
    app.look(question, &headers, move |client| {
        let mut rows = devices::list(client)?;
        rows.retain(|row| {
            caller.sees_device(&row.tags)
                && query.alive.is_none_or(|alive| alive == row.alive)
                && query.tag.as_deref().is_none_or(|tag| row.tags.iter().any(|has| has.as_str() == tag))
        });
        // Whose runs they are, it does not say.
        for machine in rows.iter_mut().filter(|_| !caller.sees_all()).filter_map(|row| row.machine.as_mut()) {
            machine.runs.clear();
        }
        Ok(Page::of(rows, &page, |row| row.device.to_string()))
    })
    .await
}

/// The device of this name, if the caller sees it.
pub(super) fn seen(client: &Client, caller: &Caller, name: &str) -> Result<Row, Failure> {
    let row =
        devices::list(client)?.into_iter().find(|row| row.device.as_str() == name && caller.sees_device(&row.tags));
    row.ok_or_else(|| match devices::known(client, name).err().filter(|_| caller.sees_all()) {
        Some(failure) => failure,
        None => {
            let error = format!("there is no device {}", crate::model::message::quoted(name));
            Failure::new(Code::NotFound, error, "`GET /devices` lists the devices")
        }
    })
}

/// What was asked of a device.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AskAnswer {
    /// The device.
    #[schema(value_type = String)]
    device: DeviceId,
    /// What was asked.
    #[schema(value_type = String)]
    asked: Ask,
    /// Whether it lives; if not, it does so once it is back.
    alive: bool,
}

/// Let a device take no new work; what runs goes on.
#[utoipa::path(post, path = "/devices/{id}/drain", tag = "devices", params(("id" = String, Path, description = "The device")), responses(
    (status = 200, description = "It was asked to", body = AskAnswer),
    (status = 404, description = "There is none", body = Document),
))]
pub(super) async fn drain(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Named(id): Named<String>,
) -> Result<Json<AskAnswer>, Problem> {
    ask(app, caller, id, Ask::Drain).await
}

/// Let a device take work again.
#[utoipa::path(post, path = "/devices/{id}/resume", tag = "devices", params(("id" = String, Path, description = "The device")), responses(
    (status = 200, description = "It was asked to", body = AskAnswer),
    (status = 404, description = "There is none", body = Document),
))]
pub(super) async fn resume(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Named(id): Named<String>,
) -> Result<Json<AskAnswer>, Problem> {
    ask(app, caller, id, Ask::Resume).await
}

async fn ask(app: App, caller: Caller, id: String, ask: Ask) -> Result<Json<AskAnswer>, Problem> {
    let who = caller.clone();
    let name = id.clone();
    let row = app.ask(move |client| seen(client, &who, &name)).await?;
    if !caller.commands_device(&row.tags) {
        let detail = "the scopes of this key name jobs, and a device works for all";
        return Err(Problem::new(
            Kind::Forbidden,
            detail,
            "ask for a key without scopes, or with a tag that the device has",
        ));
    }
    let devices::Asked { device, ask, alive, .. } = app.change(move |client| devices::ask(client, &id, ask)).await?;
    Ok(Json(AskAnswer { device, asked: ask, alive }))
}
