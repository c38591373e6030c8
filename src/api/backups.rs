//! Backups: one is made, and which there are.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::app::{App, answer};
use super::audit::what;
use super::extract::{Asked, Body, duration, time};
use super::page::{Page, PageQuery};
use super::problem::{Document, Problem};
use crate::client::backups::back_up;
use crate::client::{Code, Failure};
use crate::model::backup::Manifest;
use crate::volume::backup::{RESULTS, list as there_are};

/// What a backup is to hold, and how many stay.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BackupBody {
    /// How young results must be to come along: `7d` unless said; the last of each job always does.
    #[serde(default, deserialize_with = "duration")]
    #[schema(value_type = Option<String>, example = "7d", pattern = "^[0-9]{1,4}(ms|s|m|h|d)$")]
    results: Option<Duration>,
    /// How many backups of this volume stay, this one among them; all unless said.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 100000)]
    keep: Option<usize>,
}

/// A backup that was made.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BackupAnswer {
    /// Its file, relative to `Common/`.
    file: String,
    /// Its size.
    bytes: u64,
    /// What it holds.
    #[schema(value_type = Object)]
    manifest: Manifest,
    /// The files of older ones that were removed.
    removed: Vec<String>,
}

/// Make a backup of state, triggers, job files, keys and recent results in `Common/Backups`. `orchestrator restore` brings it back.
#[utoipa::path(post, path = "/backup", tag = "service", request_body = Option<BackupBody>, responses(
    (status = 201, description = "It is made", body = BackupAnswer),
    (status = 400, description = "It cannot be meant", body = Document),
    (status = 503, description = "The folder cannot be used, or another backup is being made", body = Document),
))]
pub(super) async fn make(State(app): State<App>, Body(wanted): Body<BackupBody>) -> Result<Response, Problem> {
    if let Some(keep) = wanted.keep.filter(|keep| !(1..=100_000).contains(keep)) {
        let error = format!("found keep {keep}, expected 1 to 100000");
        return Err(Failure::new(Code::Usage, error, "leave it out to keep all").into());
    }
    let made = app.change(move |client| {
        let folder = client.layout.backups();
        let (made, removed) = back_up(client, &folder, wanted.results.unwrap_or(RESULTS), wanted.keep)?;
        let file = client.shown(&made.path);
        Ok(BackupAnswer { file, bytes: made.bytes, manifest: made.manifest, removed })
    });
    let made = made.await?;
    Ok((StatusCode::CREATED, what(format!("backup {}", made.file)), Json(made)).into_response())
}

/// A backup that is there.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Backup)]
pub(super) struct Shown {
    /// Its file, relative to `Common/`.
    file: String,
    /// Its size.
    bytes: u64,
    /// When it was made.
    made_at: String,
}

/// Which backups are wanted.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct BackupsQuery {
    /// Only those made since this time, RFC 3339.
    #[serde(default, deserialize_with = "time")]
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<DateTime<Utc>>,
}

/// The backups that are there, oldest first.
#[utoipa::path(get, path = "/backups", tag = "service", params(PageQuery, BackupsQuery), responses((status = 200, description = "A page of backups", body = Page<Shown>)))]
pub(super) async fn list(
    State(app): State<App>,
    headers: HeaderMap,
    Asked(page): Asked<PageQuery>,
    Asked(query): Asked<BackupsQuery>,
) -> Result<Response, Problem> {
    let items = app.ask(move |client| {
        let mut all = there_are(&*client.disk, &client.layout.backups())?;
        all.retain(|it| query.since.is_none_or(|since| it.at >= since));
        let shown = |it: &crate::volume::backup::Listed| Shown {
            file: client.shown(&it.path),
            bytes: it.bytes,
            made_at: crate::model::time::rfc3339(it.at),
        };
        Ok(all.iter().map(shown).collect())
    });
    answer(&headers, &Page::of(items.await?, &page, |it: &Shown| format!("{} {}", it.made_at, it.file)))
}
