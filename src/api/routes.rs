//! The table of routes: which path, which right, which handler. No route is without an entry here, and none is reached without the
//! right that stands here.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{HeaderMap, Method};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::RequestBodyTimeoutLayer;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::app::App;
use super::guard::{Caller, allow, refresh, refresh_soon};
use super::problem::{Kind, Problem};
use super::server::Work;
use super::{access, backups, command, devices, events, jobs, logs, metrics, runs, servers, service, system, triggers};
use crate::model::access::Right;
use crate::model::message::{did_you_mean, quoted};

/// The most that a body may be, bytes.
const BODY: usize = 1 << 20;
/// The same of somebody who need not be known.
const ANYBODYS_BODY: usize = 8 << 10;
/// How long the next piece of a body may take to come.
const BODY_PIECE: Duration = Duration::from_secs(10);
/// Another name for devices, which the description does not have.
const NODES: [&str; 3] = ["GET /api/nodes", "POST /api/nodes/{id}/drain", "POST /api/nodes/{id}/resume"];
/// What the versioned paths begin with.
pub(super) const VERSION: &str = "/api/v1";

/// Routes that take one right; `None`: that anybody may use.
struct Group {
    right: Option<Right>,
    /// Below `/api/v1`, and without it.
    everywhere: OpenApiRouter<App>,
    /// Below `/api/v1` alone.
    versioned: OpenApiRouter<App>,
    /// As it stands.
    plain: OpenApiRouter<App>,
}

impl Group {
    fn new(right: Option<Right>) -> Self {
        Self {
            right,
            everywhere: OpenApiRouter::default(),
            versioned: OpenApiRouter::default(),
            plain: OpenApiRouter::default(),
        }
    }
}

/// Every route.
fn groups() -> [Group; 5] {
    [
        Group {
            everywhere: OpenApiRouter::default().routes(routes!(access::token)),
            plain: OpenApiRouter::default()
                .routes(routes!(service::root))
                .routes(routes!(service::health))
                .routes(routes!(service::openapi))
                .routes(routes!(service::docs)),
            ..Group::new(None)
        },
        Group {
            everywhere: OpenApiRouter::default()
                .routes(routes!(jobs::list))
                .routes(routes!(jobs::show))
                .routes(routes!(runs::list))
                .routes(routes!(runs::show))
                .routes(routes!(runs::log))
                .routes(routes!(triggers::list))
                .routes(routes!(logs::list))
                .routes(routes!(devices::list))
                .routes(routes!(metrics::metrics))
                .routes(routes!(servers::list))
                .routes(routes!(system::monitor_resources)),
            versioned: OpenApiRouter::default()
                .routes(routes!(service::health_with_reasons))
                .routes(routes!(access::me))
                .routes(routes!(events::events)),
            ..Group::new(Some(Right::Look))
        },
        Group {
            everywhere: OpenApiRouter::default()
                .routes(routes!(jobs::trigger))
                .routes(routes!(command::command))
                .routes(routes!(runs::cancel))
                .routes(routes!(runs::retry)),
            ..Group::new(Some(Right::Start))
        },
        Group {
            everywhere: OpenApiRouter::default()
                .routes(routes!(jobs::restart_one))
                .routes(routes!(jobs::restart_all))
                .routes(routes!(triggers::delete))
                .routes(routes!(devices::drain))
                .routes(routes!(devices::resume)),
            ..Group::new(Some(Right::Operate))
        },
        Group {
            everywhere: OpenApiRouter::default()
                .routes(routes!(jobs::add))
                .routes(routes!(jobs::update))
                .routes(routes!(jobs::delete))
                .routes(routes!(jobs::enable))
                .routes(routes!(jobs::disable))
                .routes(routes!(system::set_resource_limits))
                .routes(routes!(servers::register))
                .routes(routes!(servers::delete)),
            versioned: OpenApiRouter::default()
                .routes(routes!(access::list_keys, access::make_key))
                .routes(routes!(access::delete_key))
                .routes(routes!(access::rotate_key))
                .routes(routes!(access::revoke_key))
                .routes(routes!(access::activate_key))
                .routes(routes!(access::list_users, access::make_user))
                .routes(routes!(access::change_user, access::delete_user))
                .routes(routes!(backups::make))
                .routes(routes!(backups::list)),
            ..Group::new(Some(Right::Administer))
        },
    ]
}

/// The description of all routes, with the right that each takes.
pub(super) fn description() -> OpenApi {
    let mut whole = OpenApi::default();
    for group in groups() {
        let mut all =
            OpenApiRouter::default().nest(VERSION, group.everywhere).nest(VERSION, group.versioned).merge(group.plain);
        let mut of_group = all.to_openapi();
        for (path, item) in &mut of_group.paths.paths {
            super::docs::mark(path, item, group.right);
        }
        whole.merge(of_group);
    }
    whole
}

/// Every route as `METHOD /path`, the ones without a version too.
pub(super) fn endpoints() -> &'static [String] {
    static ALL: LazyLock<Vec<String>> = LazyLock::new(|| {
        let mut all = Vec::new();
        for group in groups() {
            let mut versioned = group.everywhere.clone();
            let named = [(VERSION, group.versioned), (VERSION, group.everywhere), ("", group.plain)];
            for (before, mut router) in named.into_iter().chain([("", std::mem::take(&mut versioned))]) {
                for (path, item) in &router.to_openapi().paths.paths {
                    all.extend(super::docs::methods(item).map(|(method, _)| format!("{method} {before}{path}")));
                }
            }
        }
        all.extend(NODES.map(str::to_owned));
        all.sort();
        all
    });
    &ALL
}

/// Everything that is served.
pub(super) fn router(app: App) -> Router {
    let mut router: Router<App> = Router::new();
    for group in groups() {
        let everywhere: Router<App> = group.everywhere.into();
        let versioned = everywhere.clone().merge(Router::from(group.versioned));
        let mut all = Router::new().nest(VERSION, versioned).merge(everywhere).merge(Router::from(group.plain));
        // The names that the users of an earlier system know.
        if group.right == Some(Right::Look) {
            all = all.route("/api/nodes", get(devices::list));
        }
        if group.right == Some(Right::Operate) {
            all = all.route("/api/nodes/{id}/drain", post(devices::drain));
            all = all.route("/api/nodes/{id}/resume", post(devices::resume));
        }
        if group.right.is_none() {
            all = all.layer(RequestBodyLimitLayer::new(ANYBODYS_BODY));
        }
        let admit = Admit { app: app.clone(), right: group.right };
        router = router.merge(all.route_layer(from_fn_with_state(admit, admit_one)));
    }
    // In one layer: each is a box of its own around every route, and is copied for every request.
    let bodies = (RequestBodyTimeoutLayer::new(BODY_PIECE), RequestBodyLimitLayer::new(BODY));
    router.fallback(nowhere).method_not_allowed_fallback(no_such_method).layer(bodies).with_state(app)
}

/// What a group of routes asks of its callers.
#[derive(Clone)]
struct Admit {
    app: App,
    right: Option<Right>,
}

/// Lets those in who may.
async fn admit_one(
    State(admit): State<Admit>,
    ConnectInfo(address): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    let known = known(&admit, address, request.headers()).await;
    let admitted = known.and_then(|caller| match check_query(&request) {
        Ok(()) => Ok(caller),
        Err(problem) => Err(Box::new((problem, caller))),
    });
    let (mut response, caller) = match admitted {
        Ok(caller) => {
            if let Some(caller) = caller.clone() {
                if let Some(work) = request.extensions_mut().remove::<Arc<Work>>() {
                    work.admit();
                }
                request.extensions_mut().insert(caller);
            }
            (next.run(request).await, caller)
        }
        Err(refused) => {
            let (problem, caller) = *refused;
            (problem.into_response(), caller)
        }
    };
    if let Some(caller) = caller {
        response.extensions_mut().insert(caller);
    }
    response
}

/// Refuses what a route does not know behind the `?`: a filter that is mistyped would let everything through.
fn check_query(request: &Request) -> Result<(), Problem> {
    let (Some(query), Some(path)) = (request.uri().query(), request.extensions().get::<MatchedPath>()) else {
        return Ok(());
    };
    // Who asks for the head of an answer asks what would be asked for all of it.
    let method = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
    let known = super::docs::asked_for(method.as_str(), path.as_str());
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let names = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split('=').next().unwrap_or_default());
    for name in names {
        if !known.contains(&name) {
            let detail = format!("there is nothing to ask for by {}", quoted(name));
            let hint = if known.is_empty() { "leave it out".to_owned() } else { did_you_mean(name, &known) };
            return Err(Problem::invalid(detail, hint));
        }
    }
    Ok(())
}

type Refused = (Problem, Option<Caller>);

async fn known(admit: &Admit, address: SocketAddr, headers: &HeaderMap) -> Result<Option<Caller>, Box<Refused>> {
    let Admit { app, right } = admit;
    let refuse = |problem: Problem, caller: Option<Caller>| Box::new((problem, caller));
    let Some(right) = right else {
        app.guard.count_address(address.ip()).map_err(|problem| refuse(problem, None))?;
        return Ok(None);
    };
    refresh(app).await;
    let caller = match app.guard.recognise(headers, app.now().wall) {
        Ok(caller) => caller,
        // A key has too many bits to be guessed: whoever shows a wrong one is only kept from asking too often. It may have been made
        // a moment ago, on another device.
        Err(_) => {
            app.guard.count_address(address.ip()).map_err(|problem| refuse(problem, None))?;
            refresh_soon(app).await;
            app.guard.recognise(headers, app.now().wall).map_err(|problem| refuse(problem, None))?
        }
    };
    app.guard.count(&caller).map_err(|problem| refuse(problem, Some(caller.clone())))?;
    allow(&caller, *right).map_err(|problem| refuse(problem, Some(caller.clone())))?;
    Ok(Some(caller))
}

/// Says of an answer that nothing is at the path.
#[derive(Debug, Clone)]
pub(super) struct Nowhere;

async fn nowhere() -> (Extension<Nowhere>, Problem) {
    (
        Extension(Nowhere),
        Problem::new(
            Kind::NotFound,
            "there is no such path",
            "`GET /` lists the paths there are; some stand below /api/v1 alone",
        ),
    )
}

async fn no_such_method() -> Problem {
    Problem::new(
        Kind::MethodNotAllowed,
        "the path does not know this method",
        "`GET /` lists the paths and their methods",
    )
}
