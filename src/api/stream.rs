//! Waiting for runs, and telling what they do as it happens, as server-sent events.
//!
//! A stream that was cut goes on where it was: each event has an id that says how far it was told.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{sleep, timeout};

use super::app::App;
use super::guard::{Caller, refresh};
use super::problem::Problem;
use crate::client::Failure;
use crate::client::find::Run;
use crate::client::follow::{Follower, Listener};
use crate::model::ids::{JobName, RunId};
use crate::model::result::Outcome;

/// The longest pause between two looks at a run, where no change is heard of.
const PAUSE: Duration = Duration::from_millis(200);
/// The shortest pause between two, for each so many that wait.
const GAP: Duration = Duration::from_millis(5);
const TOGETHER: u32 = 8;
/// How long one stream lasts; whoever wants more goes on where it was.
const AGE: Duration = Duration::from_secs(3_600);
/// How often something is sent where nothing happens, so that nobody takes the connection for dead.
const ALIVE: Duration = Duration::from_secs(15);
/// How often it is looked whether the caller may still listen.
const RECHECK: Duration = Duration::from_secs(1);
/// How many events wait for a slow reader.
pub(super) const WAITING: usize = 16;
/// How much of a log is told in one go, bytes.
const PIECE: usize = 256 << 10;

/// How many wait for runs.
static WAITERS: AtomicU32 = AtomicU32::new(0);

/// Somebody who waits for a run.
struct Waiter;

impl Waiter {
    fn new() -> Self {
        WAITERS.fetch_add(1, Ordering::AcqRel);
        Self
    }

    /// Waits until something has changed, or for a while.
    async fn pause(&self, changes: &mut tokio::sync::watch::Receiver<u64>) {
        let gap = GAP * (WAITERS.load(Ordering::Acquire) / TOGETHER + 1);
        sleep(gap.min(PAUSE)).await;
        // Whether something has changed or time is up: it is looked again.
        let _ = timeout(PAUSE, changes.changed()).await;
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        WAITERS.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Nobody is told anything.
struct Nobody;

impl Listener for Nobody {
    fn wants_log(&self) -> bool {
        false
    }
}

/// What a wait came to.
pub(super) enum Waited {
    /// The run is over.
    Ended(Box<Outcome>),
    /// It is not, and time is up.
    TimeUp,
    /// The device that answers leaves; the run goes on.
    Stopping,
}

/// Waits for the end of a run that was just asked for.
pub(super) async fn wait_for(
    app: &App,
    caller: &Caller,
    run: RunId,
    job: JobName,
    wait: Duration,
) -> Result<Waited, Problem> {
    let waiter = Waiter::new();
    let mut changes = app.changes();
    // Not looked for: it moves just now, and could be missed in both of its places.
    let run = Run { id: run, job, held: None, entry: None, results: Vec::new() };
    let who = caller.clone();
    let mut follower = app.ask(move |client| Ok(Follower::new(client, run, 1).only(who.view(client)?))).await?;
    let end = app.now().boot + wait;
    loop {
        changes.mark_unchanged();
        let (back, outcome) = app
            .ask(move |client| {
                let outcome = follower.look(client, &mut Nobody)?;
                Ok((follower, outcome))
            })
            .await?;
        follower = back;
        if let Some(outcome) = outcome {
            return Ok(Waited::Ended(Box::new(outcome)));
        }
        if app.now().boot >= end {
            return Ok(Waited::TimeUp);
        }
        let mut stop = app.stop.clone();
        tokio::select! {
            () = waiter.pause(&mut changes) => {}
            () = sleep(end.saturating_sub(app.now().boot)) => {}
            _ = stop.wait_for(|stop| *stop) => return Ok(Waited::Stopping),
        }
    }
}

/// What a run does, gathered until it is sent.
#[derive(Default)]
struct Gatherer {
    events: Vec<(Option<String>, &'static str, Value)>,
    /// The beginning of a character whose rest has not come.
    rest: Vec<u8>,
    size: usize,
}

impl Gatherer {
    fn text(&mut self, attempt: u32, offset: u64, text: String, held: usize) {
        if text.is_empty() {
            return;
        }
        let told = offset.saturating_sub(held as u64);
        self.size += text.len();
        let data = json!({"attempt": attempt, "offset": told, "text": text});
        self.events.push((Some(format!("{attempt}.{told}")), "log", data));
    }
}

impl Listener for Gatherer {
    fn has_room(&self) -> bool {
        self.size < PIECE
    }

    fn output(&mut self, attempt: u32, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        let mut all = std::mem::take(&mut self.rest);
        all.extend_from_slice(bytes);
        let whole = all.len() - unfinished(&all);
        self.rest = all.split_off(whole);
        let held = self.rest.len();
        self.text(attempt, offset, String::from_utf8_lossy(&all).into_owned(), held);
        Ok(())
    }

    fn log_ends(&mut self, attempt: u32) -> Result<(), Failure> {
        let rest = std::mem::take(&mut self.rest);
        if !rest.is_empty() {
            let data = json!({"attempt": attempt, "text": String::from_utf8_lossy(&rest)});
            self.events.push((None, "log", data));
        }
        Ok(())
    }

    fn attempt_ends(&mut self, outcome: &Outcome) {
        let data = serde_json::to_value(outcome).unwrap_or_default();
        self.events.push((Some(format!("{}.0", outcome.attempt + 1)), "attempt", data));
    }

    fn wants_reasons(&self) -> bool {
        true
    }

    fn waits(&mut self, reason: &str) {
        self.events.push((None, "waiting", json!({"reason": reason})));
    }

    fn duplicates(&mut self, run: &RunId, first: &RunId) {
        self.events.push((None, "duplicate", json!({"run_id": run, "first": first})));
    }
}

/// How many bytes at the end are the beginning of a character whose rest has not come.
fn unfinished(bytes: &[u8]) -> usize {
    let last = bytes.iter().rev().take(3).position(|byte| byte & 0xc0 != 0x80);
    let Some((held, first)) = last.and_then(|back| Some((back + 1, bytes.get(bytes.len() - back - 1)?))) else {
        return 0;
    };
    let length = match first {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        // It is whole, or it is no character and will not become one.
        _ => 1,
    };
    if held < length { held } else { 0 }
}

/// Where a log is told from: `Last-Event-ID: <attempt>.<offset>`.
pub(super) fn resumed(headers: &HeaderMap) -> Option<(u32, u64)> {
    let id = headers.get("last-event-id")?.to_str().ok()?;
    let (attempt, offset) = id.split_once('.')?;
    Some((attempt.parse().ok()?, offset.parse().ok()?))
}

/// Tells what a run does until it is over: its log as it grows, attempt after attempt, whichever device has it.
pub(super) fn follow(
    app: &App,
    caller: &Caller,
    headers: HeaderMap,
    run: Run,
    from: (u32, u64),
) -> Result<Response, Problem> {
    let (to, events) = channel(WAITING);
    let sender = Events::new(app, caller, headers, to)?;
    tokio::spawn(tell_run(app.clone(), sender, run, from));
    Ok(sse(events))
}

async fn tell_run(app: App, mut events: Events, run: Run, (attempt, offset): (u32, u64)) {
    let waiter = Waiter::new();
    let mut changes = app.changes();
    let who = events.caller.clone();
    let made = app.ask(move |client| Ok(Follower::resume(client, run, attempt, offset).only(who.view(client)?))).await;
    let mut follower = match made {
        Ok(follower) => follower,
        Err(problem) => return events.fail(problem).await,
    };
    let mut gatherer = Gatherer::default();
    loop {
        changes.mark_unchanged();
        let looked = app
            .ask(move |client| {
                let looked = follower.look(client, &mut gatherer);
                Ok((follower, gatherer, looked))
            })
            .await;
        let (back, mut gathered, looked) = match looked {
            Ok(looked) => looked,
            Err(problem) => return events.fail(problem).await,
        };
        let is_full = !gathered.has_room();
        for (id, name, data) in std::mem::take(&mut gathered.events) {
            if !events.send(id, name, &data).await {
                return;
            }
        }
        gathered.size = 0;
        (follower, gatherer) = (back, gathered);
        match looked {
            Ok(Some(outcome)) => {
                events.send(None, "end", &serde_json::to_value(&outcome).unwrap_or_default()).await;
                return;
            }
            Ok(None) if is_full => continue,
            Ok(None) => {}
            Err(failure) => return events.fail(failure.into()).await,
        }
        tokio::select! {
            () = waiter.pause(&mut changes) => {}
            () = events.closed() => return,
        }
    }
}

/// The events of one stream, as the stream answers.
pub(super) fn sse(events: Receiver<Event>) -> Response {
    let events = stream::unfold(events, |mut events| async move {
        let event = events.recv().await?;
        Some((Ok::<_, Infallible>(event), events))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(ALIVE)).into_response()
}

/// Where events go: to a caller who may still listen, for as long as a stream lasts.
pub(super) struct Events {
    app: App,
    caller: Caller,
    headers: HeaderMap,
    to: Sender<Event>,
    until: Duration,
    rechecked: Duration,
    _stream: super::app::PlaceGuard,
}

impl Events {
    pub(super) fn new(app: &App, caller: &Caller, headers: HeaderMap, to: Sender<Event>) -> Result<Self, Problem> {
        let stream = app.stream(&caller.id)?;
        let now = app.now().boot;
        Ok(Self {
            app: app.clone(),
            caller: caller.clone(),
            headers,
            to,
            until: now + AGE,
            rechecked: now,
            _stream: stream,
        })
    }

    /// Sends one; `false`: nobody listens any more.
    pub(super) async fn send(&mut self, id: Option<String>, name: &str, data: &Value) -> bool {
        if !self.may_listen().await {
            return false;
        }
        let event = Event::default().event(name).data(data.to_string());
        let event = match id {
            Some(id) => event.id(id),
            None => event,
        };
        self.to.send(event).await.is_ok()
    }

    /// Says why it ends.
    pub(super) async fn fail(&mut self, problem: Problem) {
        let document = serde_json::to_value(problem.document()).unwrap_or_default();
        self.send(None, "problem", &document).await;
    }

    /// Whether the stream goes on: the caller's key is still good, and the stream is not too old.
    async fn may_listen(&mut self) -> bool {
        let now = self.app.now();
        if now.boot >= self.until || *self.app.stop.borrow() {
            return false;
        }
        if now.boot.saturating_sub(self.rechecked) >= RECHECK {
            refresh(&self.app).await;
            // Not before: who is kept from looking looks the next time.
            self.rechecked = now.boot;
            return self.app.guard.recognise(&self.headers, now.wall).is_ok();
        }
        true
    }

    /// Ends when nobody listens any more, or nobody may.
    pub(super) async fn closed(&mut self) {
        let mut stop = self.app.stop.clone();
        loop {
            // Whoever asks for this again and again, with something else to wait for, gets to it too.
            let due = (self.rechecked + RECHECK).saturating_sub(self.app.now().boot);
            let is_over = tokio::select! {
                () = self.to.closed() => true,
                _ = stop.wait_for(|stop| *stop) => true,
                () = sleep(due) => false,
            };
            if is_over || !self.may_listen().await {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_that_comes_in_two_pieces_is_told_in_one() {
        let mut gatherer = Gatherer::default();
        let text = "a€b".as_bytes();
        gatherer.output(1, 2, &text[..2]).unwrap();
        gatherer.output(1, 5, &text[2..]).unwrap();
        let told: Vec<(Option<&str>, &str)> =
            gatherer.events.iter().map(|(id, _, data)| (id.as_deref(), data["text"].as_str().unwrap())).collect();
        assert_eq!(told, [(Some("1.1"), "a"), (Some("1.5"), "€b")]);
        gatherer.output(2, 3, b"\xff\xfe\xe2").unwrap();
        gatherer.log_ends(2).unwrap();
        assert_eq!(gatherer.events[2].2["text"], "\u{fffd}\u{fffd}");
        assert_eq!(gatherer.events[3].2["text"], "\u{fffd}");
    }

    #[test]
    fn a_stream_goes_on_where_its_last_event_says() {
        let with = |id: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("last-event-id", id.parse().unwrap());
            resumed(&headers)
        };
        assert_eq!(with("2.17"), Some((2, 17)));
        for bad in ["", "2", "2.", "-1.0", "a.b", "1.99999999999999999999999"] {
            assert_eq!(with(bad), None, "{bad}");
        }
    }
}
