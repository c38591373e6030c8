//! Triggers: what waits, and why, and how it is taken out.

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
use super::jobs::scopes_of;
use super::page::{Page, PageQuery};
use super::problem::{Document, Problem};
use crate::client::jobs::overview::tags_of_jobs;
use crate::client::status::Waiting;
use crate::client::triggers;
use crate::client::{Client, Failure};
use crate::model::ids::RunId;

/// Which triggers are wanted.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct TriggersQuery {
    /// At most so many, 1 to 500.
    #[serde(default)]
    #[param(minimum = 1, maximum = 500, default = 100)]
    limit: Option<usize>,
    /// The `next` of the page before.
    #[serde(default)]
    cursor: Option<String>,
    /// Only of this job.
    #[serde(default)]
    job: Option<String>,
}

/// What of the inbox the caller sees.
fn visible(client: &Client, caller: &Caller) -> Result<impl Fn(&Waiting) -> bool, Failure> {
    let tags = if caller.sees_all() { Default::default() } else { tags_of_jobs(client)? };
    let caller = caller.clone();
    Ok(move |waiting: &Waiting| match waiting.job.as_ref().filter(|_| !waiting.command || caller.sees_all()) {
        Some(job) => caller.sees(job, &mut tags.get(job).map_or(&[][..], Vec::as_slice).iter()),
        // A command is no job's, and whose a file is that is no trigger cannot be known.
        None => caller.sees_all(),
    })
}

/// What waits, in the order in which it will be taken, and why it waits.
#[utoipa::path(get, path = "/triggers", tag = "triggers", params(TriggersQuery), responses(
    (status = 200, description = "A page of what waits", body = Page<Object>),
    (status = 304, description = "As the `If-None-Match` says"),
))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    Asked(query): Asked<TriggersQuery>,
) -> Result<Response, Problem> {
    let limit = PageQuery::limit(query.limit)?;
    let question = Question { route: "triggers", query: format!("{query:?}"), scopes: scopes_of(&caller) };
    app.look(question, &headers, move |client| {
        let sees = visible(client, &caller)?;
        let mut all = triggers::list(client)?;
        all.retain(|waiting| {
            sees(waiting)
                && query.job.as_deref().is_none_or(|job| waiting.job.as_ref().is_some_and(|is| is.as_str() == job))
        });
        all.sort_by_cached_key(Waiting::place);
        Ok(Page::of(all, limit, query.cursor.as_deref(), Waiting::place))
    })
    .await
}

/// A trigger that was taken out.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RemovedTrigger)]
pub(super) struct Removed {
    /// Its run, which ended as `cancelled`.
    #[schema(value_type = String)]
    run_id: RunId,
}

/// Take a trigger out that waits: its run ends as `cancelled`, and the file is kept in `TriggersProcessed`.
#[utoipa::path(delete, path = "/triggers/{name}", tag = "triggers", params(("name" = String, Path, description = "The name of the file")), responses(
    (status = 200, description = "It waits no longer", body = Removed),
    (status = 404, description = "No such trigger waits, or it is not yours", body = Document),
    (status = 409, description = "It is no trigger (yet)", body = Document),
))]
pub(super) async fn delete(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Named(name): Named<String>,
) -> Result<Json<Removed>, Problem> {
    let removed = app.change(move |client| {
        let sees = visible(client, &caller)?;
        triggers::remove(client, &name, &sees)
    });
    Ok(Json(Removed { run_id: removed.await? }))
}
