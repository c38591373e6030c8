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
use super::page::{Page, PageQuery};
use super::problem::{Document, Problem};
use crate::client::follow::Only;
use crate::client::status::Waiting;
use crate::client::triggers;
use crate::model::ids::RunId;

/// Which triggers are wanted.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct TriggersQuery {
    /// Only of this job.
    #[serde(default)]
    job: Option<String>,
}

/// What of the inbox somebody sees who sees these jobs.
fn visible(sees: &Only, caller: &Caller) -> impl Fn(&Waiting) -> bool {
    let sees_all = caller.sees_all();
    // A command is no job's, and whose a file is that is no trigger cannot be known.
    move |waiting: &Waiting| sees_all || (!waiting.command && waiting.job.as_ref().is_some_and(sees))
}

/// What waits, in the order in which it will be taken, and why it waits.
#[utoipa::path(get, path = "/triggers", tag = "triggers", params(PageQuery, TriggersQuery), responses(
    (status = 200, description = "A page of what waits", body = Page<Object>),
    (status = 304, description = "As the `If-None-Match` says"),
))]
pub(super) async fn list(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    Asked(page): Asked<PageQuery>,
    Asked(query): Asked<TriggersQuery>,
) -> Result<Response, Problem> {
    let question = Question::new("triggers", &(&page, &query), &caller);
    app.look(question, &headers, move |client| {
        let only = caller.view(client)?;
        let mut all = triggers::list(client, &only)?;
        let sees = visible(&only, &caller);
        all.retain(|waiting| {
            sees(waiting)
                && query.job.as_deref().is_none_or(|job| waiting.job.as_ref().is_some_and(|is| is.as_str() == job))
        });
        Ok(Page::of(all, &page, Waiting::place))
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
    let removed = app.change(move |client| triggers::remove(client, &name, &visible(&caller.view(client)?, &caller)));
    Ok(Json(Removed { run_id: removed.await? }))
}
