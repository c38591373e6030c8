//! What every request goes through, whatever its path: it is taken to its handler, noted if it is to change something, and its answer
//! says what browsers may do with it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::body::HttpBody as _;
use axum::extract::{ConnectInfo, Request};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt as _;
use tower::ServiceExt as _;

use super::app::App;
use super::audit::{Audit, Entry, What};
use super::guard::Caller;
use super::problem::{Kind, Problem};
use super::routes::{Nowhere, router};

/// What all connections of one server ask.
#[derive(Clone)]
pub(super) struct Site(Arc<Inner>);

struct Inner {
    app: App,
    router: Router,
    audit: Audit,
    /// From which pages of others a browser may ask.
    origins: Vec<HeaderValue>,
    /// One for each change that is under way, and this one.
    changing: Arc<()>,
}

impl Site {
    pub(super) fn new(app: App, origins: &[String]) -> Self {
        let origins = origins.iter().filter_map(|origin| origin.parse().ok()).collect();
        let audit = Audit::new(app.device.clone());
        Self(Arc::new(Inner { router: router(app.clone()), app, audit, origins, changing: Arc::default() }))
    }

    /// Answers one request, whatever it is.
    pub(super) async fn answer(&self, address: SocketAddr, mut request: Request) -> Response {
        request.extensions_mut().insert(ConnectInfo(address));
        let origin = request.headers().get(header::ORIGIN).filter(|origin| self.0.origins.contains(origin)).cloned();
        let is_question = origin.is_some()
            && request.method() == Method::OPTIONS
            && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        let mut response =
            if is_question { StatusCode::NO_CONTENT.into_response() } else { self.handle(address, request).await };
        harden(&mut response);
        if let Some(origin) = origin {
            share(&mut response, origin, is_question);
        }
        response
    }

    async fn handle(&self, address: SocketAddr, request: Request) -> Response {
        let response = if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
            self.route(request).await
        } else {
            // On a task of its own: whoever hangs up has asked all the same, and what was done is written down.
            let (site, one) = (self.clone(), Arc::clone(&self.0.changing));
            let done = tokio::spawn(async move {
                let _one = one;
                site.change(address, request).await
            });
            done.await.unwrap_or_else(|_| panicked())
        };
        if is_refused_unread(&response) {
            let detail = "the body is larger than what is taken here";
            return outside(Problem::new(Kind::TooLarge, detail, "send at most 1 MiB"));
        }
        response
    }

    /// Takes a request to its handler.
    async fn route(&self, request: Request) -> Response {
        let answered: Result<Result<Response, Infallible>, _> =
            AssertUnwindSafe(self.0.router.clone().oneshot(request)).catch_unwind().await;
        match answered {
            Ok(Ok(response)) => response,
            Err(_) => panicked(),
        }
    }

    /// The same, and writes down who changed what, or tried to.
    async fn change(&self, address: SocketAddr, mut request: Request) -> Response {
        let Inner { app, audit, .. } = &*self.0;
        let path = request.uri().path().chars().take(1_000).collect();
        let (site, method, from) = (self.clone(), request.method().to_string(), address.ip().to_string());
        let note = Arc::new(Note { site, method, path, from, is_written: AtomicBool::new(false) });
        request.extensions_mut().insert(Arc::clone(&note));
        let response = self.route(request).await;
        if note.is_written.load(Ordering::Acquire) {
            return response;
        }
        let caller = response.extensions().get::<Caller>();
        // Neither who is nobody nor who asks too often fills the disk: a few of them are written down. A sign-in always is.
        let is_known = caller.is_some() && response.status() != StatusCode::TOO_MANY_REQUESTS;
        let is_at_nothing = response.extensions().get::<Nowhere>().is_some() || is_refused_unread(&response);
        if is_known || response.status().is_success() || !is_at_nothing && audit.has_room(app.now().boot) {
            let what = response.extensions().get::<What>().map(|What(what)| what.clone());
            note.write(caller, what, response.status()).await;
        }
        response
    }

    /// Whether something is being changed, perhaps for somebody who has hung up.
    pub(super) fn is_changing(&self) -> bool {
        Arc::strong_count(&self.0.changing) > 1
    }
}

/// What is to be written down of one request that is to change something.
pub(super) struct Note {
    site: Site,
    method: String,
    path: String,
    from: String,
    is_written: AtomicBool,
}

impl Note {
    /// Writes down what was done whose end is waited for: this device may end before it.
    pub(super) async fn done(&self, caller: &Caller, what: String) {
        self.write(Some(caller), Some(what), StatusCode::ACCEPTED).await;
    }

    /// Writes down what is about to be asked of another; what comes of it is still to be written down.
    pub(super) async fn asks(&self, caller: &Caller, what: String) {
        self.put(Some(caller), Some(what), StatusCode::ACCEPTED).await;
    }

    async fn write(&self, caller: Option<&Caller>, what: Option<String>, status: StatusCode) {
        self.is_written.store(true, Ordering::Release);
        self.put(caller, what, status).await;
    }

    async fn put(&self, caller: Option<&Caller>, what: Option<String>, status: StatusCode) {
        let app = &self.site.0.app;
        let entry = Entry {
            at: app.now().wall,
            who: caller.map_or_else(|| "nobody".to_owned(), |caller| caller.id.to_string()),
            role: caller.map(|caller| caller.role.as_str()),
            from: self.from.clone(),
            method: self.method.clone(),
            path: self.path.clone(),
            what,
            status: status.as_u16(),
            device: app.device.clone(),
            before: String::new(),
        };
        let site = self.site.clone();
        if let Err(problem) = app.ask(move |client| site.0.audit.write(client, entry)).await {
            tracing::error!("a change over HTTP is not in the audit log: {}", problem.detail());
        }
    }
}

/// Whether a request was refused by the length of its body alone, and never reached a handler.
fn is_refused_unread(response: &Response) -> bool {
    let kind = response.headers().get(header::CONTENT_TYPE);
    response.status() == StatusCode::PAYLOAD_TOO_LARGE && kind.is_none_or(|kind| kind != "application/problem+json")
}

/// An answer that comes from no router, which would have said how long it is.
fn outside(problem: Problem) -> Response {
    let mut response = problem.into_response();
    if let Some(length) = response.body().size_hint().exact() {
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    response
}

/// Says what browsers may do with an answer: show it, and nothing else.
fn harden(response: &mut Response) {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        ),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
}

/// Lets pages of a listed origin read what is answered; `is_question`: their browser asks first whether it may.
fn share(response: &mut Response, origin: HeaderValue, is_question: bool) {
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::VARY, HeaderValue::from_static("origin"));
    headers.insert(HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("cross-origin"));
    if is_question {
        let methods = HeaderValue::from_static("GET, POST, PATCH, DELETE");
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        let allowed =
            HeaderValue::from_static("authorization, content-type, x-api-key, if-none-match, last-event-id, range");
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    } else {
        let exposed = HeaderValue::from_static("etag, retry-after, content-range");
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
}

fn panicked() -> Response {
    tracing::error!("a request ended in a panic");
    outside(Problem::new(Kind::Internal, "the request could not be handled", "the device's log says more"))
}
