//! What all handlers share: the way to the volume, the guard, what was looked at a moment ago.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::Settings;
use super::events::Happenings;
use super::guard::{Caller, Guard};
use super::problem::{Kind, Problem};
use super::servers::Servers;
use crate::client::{Client, Failure};
use crate::coordinator::run::clock;
use crate::model::ids::DeviceId;
use crate::model::time::Moment;
use crate::volume::layout::Layout;

/// How long what was looked at counts, unless something changes sooner.
const FRESH: Duration = Duration::from_secs(1);
/// How long it counts although others have changed something: a busy volume changes at every moment.
const LULL: Duration = Duration::from_millis(100);
/// So many answers are kept.
const KEPT: usize = 64;
/// So many requests wait for the disk at once.
const AT_ONCE: usize = 8;
/// So many requests of one caller may wait for the end of a run.
const WAITS: u32 = 256;
/// So many live streams one caller may have.
const STREAMS: u32 = 20;

/// What is done with the volume.
type Act = Box<dyn FnOnce(&mut Client) + Send>;
/// What is looked at, as JSON.
type Look = Box<dyn FnOnce(&mut Client) -> Result<Result<Vec<u8>, Problem>, Failure> + Send>;

/// What all handlers share.
#[derive(Clone)]
pub(super) struct App(Arc<Inner>);

/// Behind [`App`].
pub(super) struct Inner {
    pub(super) layout: Layout,
    pub(super) device: DeviceId,
    /// The volume's random id.
    pub(super) volume: String,
    pub(super) guard: Guard,
    /// Counts up whenever something on the volume may have changed.
    changed: watch::Sender<u64>,
    /// Becomes true when the server ends.
    pub(super) stop: watch::Receiver<bool>,
    kept: RwLock<BTreeMap<Question, Arc<Kept>>>,
    /// Of those who ask the same one looks; the others wait for what it finds.
    looking: Mutex<BTreeMap<Question, Arc<tokio::sync::Mutex<()>>>>,
    /// Counts up with every change that was asked for here: who asks next sees it.
    own: AtomicU64,
    asking: Arc<tokio::sync::Semaphore>,
    /// How many waits and live streams each caller has.
    places: Mutex<BTreeMap<String, Arc<AtomicU32>>>,
    pub(super) happenings: Happenings,
    pub(super) servers: Servers,
    /// Whether keys may go over the network in the clear.
    pub(super) insecure: bool,
}

/// What was asked: a route, what stands behind its `?`, and whom it is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Question {
    route: &'static str,
    query: String,
    scopes: String,
}

impl Question {
    /// A question whose answer is the same for all with the caller's scopes.
    pub(super) fn new(route: &'static str, query: &impl Debug, caller: &Caller) -> Self {
        let scopes = caller.scopes.iter().map(|scope| format!("{scope} ")).collect();
        Self { route, query: format!("{query:?}"), scopes }
    }

    /// A question whose answer is the same for everybody.
    pub(super) fn public(route: &'static str) -> Self {
        Self { route, query: String::new(), scopes: String::new() }
    }
}

/// An answer that was made a moment ago.
struct Kept {
    version: u64,
    own: u64,
    at: Duration,
    body: Bytes,
    etag: HeaderValue,
}

impl std::ops::Deref for App {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl App {
    /// What is shared by the handlers of one server; `life` tells one from the next.
    pub(super) fn new(
        settings: &Settings,
        volume: String,
        life: String,
        guard: Guard,
        changed: watch::Sender<u64>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let Settings { layout, device, insecure, .. } = settings.clone();
        Self(Arc::new(Inner {
            layout,
            device,
            volume,
            guard,
            changed,
            stop,
            kept: RwLock::default(),
            looking: Mutex::default(),
            own: AtomicU64::new(0),
            asking: Arc::new(tokio::sync::Semaphore::new(AT_ONCE)),
            places: Mutex::default(),
            happenings: Happenings::new(life),
            servers: Servers::new(),
            insecure,
        }))
    }

    /// Both clocks.
    pub(super) fn now(&self) -> Moment {
        clock()
    }

    /// Asks the volume, on a thread that may wait for the disk.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Client) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Problem> {
        let (give, given) = tokio::sync::oneshot::channel();
        self.work(Box::new(move |client| drop(give.send(act(client))))).await;
        let unanswered =
            |_| Problem::new(Kind::Internal, "the request could not be handled", "the device's log says more");
        Ok(given.await.map_err(unanswered)??)
    }

    /// Works on such a thread until it is done. Not generic: a task of its own for each question is a large part of the program.
    async fn work(&self, act: Act) {
        let (layout, device) = (self.layout.clone(), self.device.clone());
        // Threads there are more of: some wait for other servers, and not for the disk.
        let one = Arc::clone(&self.asking).acquire_owned().await;
        let worked = tokio::task::spawn_blocking(move || {
            // It is given back when the work is done, also if nobody waits for it any more.
            let _one = one;
            act(&mut Client::new(layout, device));
        });
        if let Err(error) = worked.await {
            tracing::error!(%error, "a request ended in a panic");
        }
    }

    /// The same where something is changed: whoever looks next looks anew.
    pub(super) async fn change<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Client) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Problem> {
        let answer = self.ask(act).await;
        self.own.fetch_add(1, Ordering::AcqRel);
        self.changed.send_modify(|version| *version += 1);
        answer
    }

    /// Told whenever something on the volume may have changed.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Answers from what was looked at a moment ago, or looks.
    pub(super) async fn look<T: Serialize + Send + 'static>(
        &self,
        question: Question,
        headers: &HeaderMap,
        look: impl FnOnce(&mut Client) -> Result<T, Failure> + Send + 'static,
    ) -> Result<Response, Problem> {
        let kept = match self.kept(&question) {
            Some(kept) => kept,
            None => self.look_in_turn(question, Box::new(move |client| Ok(json(&look(client)?)))).await?,
        };
        Ok(tagged(headers, &kept.etag, &kept.body))
    }

    async fn look_in_turn(&self, question: Question, look: Look) -> Result<Arc<Kept>, Problem> {
        let one = self.one_who_looks(&question);
        let _one = one.lock().await;
        match self.kept(&question) {
            Some(kept) => Ok(kept),
            None => self.look_anew(question, look).await,
        }
    }

    fn kept(&self, question: &Question) -> Option<Arc<Kept>> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner).get(question).cloned()?;
        let age = clock().boot.saturating_sub(kept.at);
        let is_fresh = age < LULL || (kept.version == *self.changed.borrow() && age < FRESH);
        (is_fresh && kept.own == self.own.load(Ordering::Acquire)).then_some(kept)
    }

    fn one_who_looks(&self, question: &Question) -> Arc<tokio::sync::Mutex<()>> {
        let mut looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        looking.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(looking.entry(question.clone()).or_default())
    }

    async fn look_anew(&self, question: Question, look: Look) -> Result<Arc<Kept>, Problem> {
        // Before the look: what changes meanwhile makes it old.
        let (version, own, at) = (*self.changed.borrow(), self.own.load(Ordering::Acquire), clock().boot);
        let body = Bytes::from(self.ask(look).await??);
        let kept = Arc::new(Kept { version, own, at, etag: etag(&body), body });
        let mut all = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= KEPT {
            all.retain(|_, kept| at.saturating_sub(kept.at) < FRESH);
            if all.len() >= KEPT {
                all.clear();
            }
        }
        all.insert(question, Arc::clone(&kept));
        Ok(kept)
    }

    /// Takes one of the caller's waits for the end of a run; it is given back when the guard goes.
    pub(super) fn wait(&self, caller: &str) -> Result<PlaceGuard, Problem> {
        self.take(format!("wait {caller}"), WAITS, "waits for runs")
    }

    /// Takes one of the caller's live streams; it is given back when the guard goes.
    pub(super) fn stream(&self, caller: &str) -> Result<PlaceGuard, Problem> {
        self.take(caller.to_owned(), STREAMS, "live streams")
    }

    fn take(&self, whose: String, most: u32, what: &str) -> Result<PlaceGuard, Problem> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(|_, count| Arc::strong_count(count) > 1);
        let count = Arc::clone(places.entry(whose).or_default());
        if count.fetch_add(1, Ordering::AcqRel) >= most {
            count.fetch_sub(1, Ordering::AcqRel);
            return Err(Problem::too_many(format!("there are {most} {what} of this key or user"), 5));
        }
        Ok(PlaceGuard(count))
    }
}

/// One wait or live stream.
pub(super) struct PlaceGuard(Arc<AtomicU32>);

impl Drop for PlaceGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What tells one text from another.
pub(super) fn fingerprint(text: &[u8]) -> String {
    hex::encode(&Sha256::digest(text)[..12])
}

fn etag(body: &[u8]) -> HeaderValue {
    // Hexadecimal digits are good in any header.
    HeaderValue::from_str(&format!("\"{}\"", fingerprint(body))).unwrap_or_else(|_| HeaderValue::from_static("\"\""))
}

/// JSON with its tag; nothing but the tag if the caller has it already.
fn tagged(headers: &HeaderMap, etag: &HeaderValue, body: &Bytes) -> Response {
    let has = |tags: &HeaderValue| {
        tags.to_str().is_ok_and(|tags| {
            tags.split(',').map(|tag| tag.trim().trim_start_matches("W/")).any(|tag| tag == "*" || *etag == tag)
        })
    };
    let cache = (header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    let tag = (header::ETAG, etag.clone());
    if headers.get_all(header::IF_NONE_MATCH).iter().any(has) {
        return (StatusCode::NOT_MODIFIED, [cache, tag]).into_response();
    }
    let kind = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    ([kind, cache, tag], body.clone()).into_response()
}

/// JSON that nobody has looked at before, with its tag.
pub(super) fn answer(headers: &HeaderMap, value: &impl Serialize) -> Result<Response, Problem> {
    let body = Bytes::from(json(value)?);
    Ok(tagged(headers, &etag(&body), &body))
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, Problem> {
    serde_json::to_vec(value).map_err(|error| {
        Problem::new(Kind::Internal, format!("cannot write JSON: {error}"), "the device's log says more")
    })
}
