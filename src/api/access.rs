//! Who may come in: tokens for users, keys, users.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::Json;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use utoipa::{IntoParams, ToSchema};

use super::app::{App, answer};
use super::audit::{What, what};
use super::extract::{Asked, Body, Form, Named, duration};
use super::guard::{Caller, network, refresh, refresh_soon};
use super::page::{Page, PageQuery};
use super::problem::{Document, Kind, Problem};
use crate::client::security::keys::{self, Made, OVERLAP, Wanted};
use crate::client::security::tokens::{Purpose, TOKEN_SECONDS};
use crate::client::security::users::{self, Change, is_password_of};
use crate::client::{Client, Failure};
use crate::model::access::{Role, Scope, User};

/// How many passwords are looked at at once: each takes 19 MiB.
static HASHING: Semaphore = Semaphore::const_new(2);

/// The password form of OAuth 2, and the one for another token.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenForm {
    /// `password` or `refresh_token`; `password` unless said.
    #[serde(default)]
    grant_type: Option<String>,
    /// The user.
    #[serde(default)]
    username: Option<String>,
    /// The password.
    #[serde(default)]
    #[schema(format = Password)]
    password: Option<String>,
    /// With `refresh_token`: the one that came with the last token.
    #[serde(default)]
    refresh_token: Option<String>,
    /// Taken and not heeded: what a user may do, the user's record says.
    #[serde(default)]
    #[expect(dead_code, reason = "the standard's form has it")]
    scope: Option<String>,
    /// The same.
    #[serde(default)]
    #[expect(dead_code, reason = "the standard's form has it")]
    client_id: Option<String>,
    /// The same.
    #[serde(default)]
    #[expect(dead_code, reason = "the standard's form has it")]
    client_secret: Option<String>,
}

/// A token.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TokenAnswer {
    /// What is sent from now on: `Authorization: Bearer TOKEN`.
    access_token: String,
    /// `bearer`.
    token_type: &'static str,
    /// How long it is good, seconds.
    expires_in: i64,
    /// What another one is given for, without the password, for 12 hours.
    refresh_token: String,
}

/// A token for a user: the password form of OAuth 2. It is good for 15 minutes; `refresh_token` gets another one for 12 hours.
#[utoipa::path(post, path = "/token", tag = "access", security(()),
    request_body(content = TokenForm, content_type = "application/x-www-form-urlencoded"), responses(
    (status = 200, description = "A token", body = TokenAnswer),
    (status = 400, description = "It cannot be meant", body = Document),
    (status = 401, description = "Nobody is known by this", body = Document),
    (status = 429, description = "Too many tries", body = Document),
))]
pub(super) async fn token(
    State(app): State<App>,
    ConnectInfo(address): ConnectInfo<SocketAddr>,
    Form(form): Form<TokenForm>,
) -> Result<Response, Problem> {
    let (user, since) = match form.grant_type.as_deref() {
        None | Some("password" | "") => {
            let (Some(name), Some(password)) = (form.username, form.password) else {
                return Err(Problem::invalid("found no `username` and `password`", "send both in the form"));
            };
            (of_password(&app, address, name, password).await?, app.now().wall.timestamp())
        }
        Some("refresh_token") => {
            let Some(token) = form.refresh_token else {
                return Err(Problem::invalid("found no `refresh_token`", "send the one that came with the last token"));
            };
            refresh(&app).await;
            of_refresh(&app, &token)?
        }
        Some(other) => {
            let detail = format!("found the grant_type {other:?}, expected password or refresh_token");
            return Err(Problem::invalid(detail, "programs use a key instead of a token"));
        }
    };
    let now = app.now().wall.timestamp();
    let sign = |purpose| app.guard.secrets().sign(&user.name, user.version, purpose, since, now);
    let made = TokenAnswer {
        access_token: sign(Purpose::Access)?,
        token_type: "bearer",
        expires_in: TOKEN_SECONDS,
        refresh_token: sign(Purpose::Refresh)?,
    };
    let given = what(format!("token for user:{}", user.name));
    Ok((given, [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(made)).into_response())
}

fn unknown() -> Problem {
    Problem::new(
        Kind::Unauthenticated,
        "no active user has this name and password",
        "`orchestrator users list` shows the users",
    )
}

/// The user who has this password. Tries that fail are counted, by address and by name, and at most two are under way.
async fn of_password(app: &App, address: SocketAddr, name: String, password: String) -> Result<User, Problem> {
    // Only failures count, and of one address: nobody keeps another from signing in.
    let whose = [
        format!("address {}", network(address.ip())),
        format!("user {} at {}", name.chars().take(64).collect::<String>(), network(address.ip())),
    ];
    whose.iter().try_for_each(|whose| app.guard.may_try(whose))?;
    // Until a failure is counted.
    let _one = HASHING.acquire().await.map_err(|_| unknown())?;
    // Again, for those who asked at once: what the ones before came to is known by now.
    whose.iter().try_for_each(|whose| app.guard.may_try(whose))?;
    // Whoever it is: how long the answer takes does not tell which names there are.
    refresh_soon(app).await;
    let user = app.guard.user(&name).map(|known| known.record.clone());
    // On a thread of its own: the memory that a hash takes is given back with it.
    let (told, answer) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("aios-api-hash".to_owned()).spawn(move || {
        let is_right = is_password_of(user.as_ref(), &password);
        // Whoever asked may have gone.
        let _ = told.send(user.filter(|user| is_right && user.active));
    });
    thread.map_err(|error| {
        Problem::new(Kind::Internal, format!("no thread can be started: {error}"), "see `ulimit -u`")
    })?;
    answer.await.ok().flatten().ok_or_else(|| {
        whose.iter().for_each(|whose| app.guard.count_failure(whose));
        unknown()
    })
}

fn of_refresh(app: &App, token: &str) -> Result<(User, i64), Problem> {
    let claims = app.guard.secrets().check(token, Purpose::Refresh, app.now().wall.timestamp()).ok();
    let user = claims.and_then(|claims| {
        let known = app.guard.user(&claims.sub)?;
        let user = &known.record;
        (user.active && user.version == claims.ver).then(|| (user.clone(), claims.auth_time))
    });
    user.ok_or_else(|| {
        Problem::new(Kind::Unauthenticated, "the refresh token is not good", "sign in with the password again")
    })
}

/// Who somebody is here.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Me {
    /// `key:ID` or `user:NAME`.
    #[schema(value_type = String)]
    id: Arc<str>,
    /// What people call it.
    #[schema(value_type = String)]
    name: Arc<str>,
    /// What it may do.
    role: Role,
    /// What it is limited to.
    scopes: Vec<Scope>,
    /// The volume's id.
    volume: String,
}

/// Who you are here.
#[utoipa::path(get, path = "/me", tag = "access", responses((status = 200, description = "You", body = Me)))]
pub(super) async fn me(State(app): State<App>, Extension(caller): Extension<Caller>) -> Json<Me> {
    let Caller { id, name, role, scopes } = caller;
    Json(Me { id, name, role, scopes: scopes.to_vec(), volume: app.volume.clone() })
}

/// Which keys or users are wanted.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct AccessQuery {
    /// Only those with this role: viewer, agent, operator or admin.
    #[serde(default)]
    #[param(value_type = Option<String>, pattern = "^(viewer|agent|operator|admin)$")]
    role: Option<Role>,
    /// Only those that come in, or only those that do not.
    #[serde(default)]
    active: Option<bool>,
}

impl AccessQuery {
    fn takes(&self, role: Role, active: bool) -> bool {
        self.role.is_none_or(|wanted| wanted == role) && self.active.is_none_or(|wanted| wanted == active)
    }
}

/// All keys; nothing of their secrets.
#[utoipa::path(get, path = "/keys", tag = "access", params(PageQuery, AccessQuery), responses(
    (status = 200, description = "A page of keys", body = Page<Object>),
))]
pub(super) async fn list_keys(
    State(app): State<App>,
    headers: HeaderMap,
    Asked(page): Asked<PageQuery>,
    Asked(query): Asked<AccessQuery>,
) -> Result<Response, Problem> {
    let mut rows = app.ask(|client| keys::list(client)).await?;
    let now = app.now().wall;
    rows.retain(|row| query.takes(row.role, row.active && row.expires_at.is_none_or(|at| now < at)));
    answer(&headers, &Page::of(rows, &page, |row| row.id.clone()))
}

/// What a key is to be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyBody {
    /// What it is for.
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// viewer, agent, operator or admin.
    role: Role,
    /// What it is limited to: `job:PREFIX` or `tag:TAG`.
    #[serde(default)]
    scopes: Vec<Scope>,
    /// Until when it is good, RFC 3339.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<DateTime<Utc>>,
}

/// Make a key. Its secret is in the answer, this once.
#[utoipa::path(post, path = "/keys", tag = "access", request_body = KeyBody, responses(
    (status = 201, description = "The key", body = Object),
    (status = 400, description = "It cannot be meant", body = Document),
))]
pub(super) async fn make_key(State(app): State<App>, Body(wanted): Body<KeyBody>) -> Result<Response, Problem> {
    let KeyBody { name, role, scopes, expires_at } = wanted;
    let made = of_access(&app, move |client| keys::create(client, Wanted { name, role, scopes, expires_at })).await?;
    Ok(secret(StatusCode::CREATED, &made))
}

/// Changes who may come in; from now on it counts here.
async fn of_access<T: Send + 'static>(
    app: &App,
    act: impl FnOnce(&mut Client) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Problem> {
    let done = app.change(act).await?;
    let guard = app.clone();
    app.ask(move |client| guard.guard.look(client)).await?;
    Ok(done)
}

/// Scopes, as the audit log has them.
fn shown(scopes: &[Scope]) -> String {
    scopes.iter().map(|scope| format!(" {scope}")).collect()
}

/// What nobody may keep on the way.
fn secret(status: StatusCode, made: &Made) -> Response {
    let given = what(format!("key:{} {}{}", made.row.id, made.row.role, shown(&made.row.scopes)));
    (status, given, [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(made)).into_response()
}

/// Remove a key.
#[utoipa::path(delete, path = "/keys/{id}", tag = "access", params(("id" = String, Path, description = "The key's id")), responses(
    (status = 204, description = "It is gone"),
    (status = 404, description = "There is none", body = Document),
))]
pub(super) async fn delete_key(State(app): State<App>, Named(id): Named<String>) -> Result<StatusCode, Problem> {
    of_access(&app, move |client| keys::delete(client, &id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// How a key is given another secret.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RotateBody {
    /// How long the old secret stays good: `24h` unless said.
    #[serde(default, deserialize_with = "duration")]
    #[schema(value_type = Option<String>, example = "24h", pattern = "^[0-9]{1,4}(ms|s|m|h|d)$")]
    overlap: Option<Duration>,
}

/// Give a key another secret. It is in the answer, this once.
#[utoipa::path(post, path = "/keys/{id}/rotate", tag = "access", params(("id" = String, Path, description = "The key's id")), request_body = Option<RotateBody>, responses(
    (status = 200, description = "The key", body = Object),
    (status = 404, description = "There is none", body = Document),
))]
pub(super) async fn rotate_key(
    State(app): State<App>,
    Named(id): Named<String>,
    Body(wanted): Body<RotateBody>,
) -> Result<Response, Problem> {
    let made = of_access(&app, move |client| keys::rotate(client, &id, wanted.overlap.unwrap_or(OVERLAP))).await?;
    Ok(secret(StatusCode::OK, &made))
}

/// Let a key open nothing until it is activated.
#[utoipa::path(post, path = "/keys/{id}/revoke", tag = "access", params(("id" = String, Path, description = "The key's id")), responses(
    (status = 200, description = "The key", body = Object),
    (status = 404, description = "There is none", body = Document),
))]
pub(super) async fn revoke_key(State(app): State<App>, Named(id): Named<String>) -> Result<Json<keys::Row>, Problem> {
    Ok(Json(of_access(&app, move |client| keys::set_active(client, &id, false)).await?))
}

/// Let a revoked key open what it did.
#[utoipa::path(post, path = "/keys/{id}/activate", tag = "access", params(("id" = String, Path, description = "The key's id")), responses(
    (status = 200, description = "The key", body = Object),
    (status = 404, description = "There is none", body = Document),
))]
pub(super) async fn activate_key(State(app): State<App>, Named(id): Named<String>) -> Result<Json<keys::Row>, Problem> {
    Ok(Json(of_access(&app, move |client| keys::set_active(client, &id, true)).await?))
}

/// All users.
#[utoipa::path(get, path = "/users", tag = "access", params(PageQuery, AccessQuery), responses(
    (status = 200, description = "A page of users", body = Page<Object>),
))]
pub(super) async fn list_users(
    State(app): State<App>,
    headers: HeaderMap,
    Asked(page): Asked<PageQuery>,
    Asked(query): Asked<AccessQuery>,
) -> Result<Response, Problem> {
    let mut rows = app.ask(|client| users::list(client)).await?;
    rows.retain(|row| query.takes(row.role, row.active));
    answer(&headers, &Page::of(rows, &page, |row| row.name.clone()))
}

/// What a user is to be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UserBody {
    /// The name: 1 to 64 characters of A-Z a-z 0-9 . _ -.
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    name: String,
    /// The password, 12 characters or more.
    #[schema(min_length = 12, max_length = 1000, format = Password)]
    password: String,
    /// viewer, agent, operator or admin.
    role: Role,
    /// What this user is limited to: `job:PREFIX` or `tag:TAG`.
    #[serde(default)]
    scopes: Vec<Scope>,
}

/// Make a user.
#[utoipa::path(post, path = "/users", tag = "access", request_body = UserBody, responses(
    (status = 201, description = "The user", body = Object),
    (status = 400, description = "It cannot be meant", body = Document),
    (status = 409, description = "A user of this name is there already", body = Document),
))]
pub(super) async fn make_user(State(app): State<App>, Body(wanted): Body<UserBody>) -> Result<Response, Problem> {
    let UserBody { name, password, role, scopes } = wanted;
    let _one = HASHING.acquire().await.map_err(|_| unknown())?;
    let made = of_access(&app, move |client| users::create(client, &name, role, scopes, &password)).await?;
    let given = what(format!("user:{} {}{}", made.name, made.role, shown(&made.scopes)));
    Ok((StatusCode::CREATED, given, Json(made)).into_response())
}

/// What of a user is to be another; what is left out stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UserChange {
    /// viewer, agent, operator or admin.
    #[serde(default)]
    role: Option<Role>,
    /// What this user is limited to, in the place of the old ones.
    #[serde(default)]
    scopes: Option<Vec<Scope>>,
    /// Another password.
    #[serde(default)]
    #[schema(min_length = 12, max_length = 1000, format = Password)]
    password: Option<String>,
    /// Whether this user may come in.
    #[serde(default)]
    active: Option<bool>,
}

/// Change a user. Tokens that were given before are no longer good.
#[utoipa::path(patch, path = "/users/{name}", tag = "access", params(("name" = String, Path, description = "The user")), request_body = Option<UserChange>, responses(
    (status = 200, description = "The user", body = Object),
    (status = 400, description = "It cannot be meant", body = Document),
    (status = 404, description = "There is none", body = Document),
))]
pub(super) async fn change_user(
    State(app): State<App>,
    Named(name): Named<String>,
    Body(wanted): Body<UserChange>,
) -> Result<(Extension<What>, Json<users::Row>), Problem> {
    let UserChange { role, scopes, password, active } = wanted;
    let mut changed: Vec<String> = role.iter().map(|role| format!("role {role}")).collect();
    changed.extend(scopes.as_ref().map(|scopes| format!("scopes{}", shown(scopes))));
    changed.extend(active.map(|active| format!("active {active}")));
    changed.extend(password.iter().map(|_| "password".to_owned()));
    let changed = what(format!("user:{name}: {}", changed.join(", ")));
    // Who is only to be kept out waits behind no password.
    let _one = match &password {
        Some(_) => Some(HASHING.acquire().await.map_err(|_| unknown())?),
        None => None,
    };
    let change = Change { role, scopes, password, active };
    Ok((changed, Json(of_access(&app, move |client| users::change(client, &name, change)).await?)))
}

/// Remove a user.
#[utoipa::path(delete, path = "/users/{name}", tag = "access", params(("name" = String, Path, description = "The user")), responses(
    (status = 204, description = "The user is gone"),
    (status = 404, description = "There is none", body = Document),
))]
pub(super) async fn delete_user(State(app): State<App>, Named(name): Named<String>) -> Result<StatusCode, Problem> {
    of_access(&app, move |client| users::delete(client, &name)).await?;
    Ok(StatusCode::NO_CONTENT)
}
