//! Everything that changes, as it changes: runs, jobs, devices, what hinders.
//!
//! The folder is looked at when something has happened, and what is another than before is told. Nobody looks while nobody listens.
//! A listener who was cut off goes on where it was, as long as that is remembered; else it is told to look at everything anew.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde_json::{Value, json};
use tokio::sync::mpsc::channel;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::app::{App, fingerprint};
use super::guard::Caller;
use super::jobs::value;
use super::problem::{Document, Problem};
use super::stream::{Events, sse};
use crate::client::jobs::overview::tags_of_jobs;
use crate::client::jobs::show::Definition;
use crate::client::security::{keys, users};
use crate::client::status::of_devices;
use crate::client::{Client, Failure, devices, find, jobs, runs, servers, view};
use crate::model::access::Right;
use crate::model::ids::{JobName, RunId, Tag};
use crate::model::state::JobMark;
use crate::volume::security::{self, Stamp};
use crate::volume::{backup, results};

/// So many happenings are remembered.
const REMEMBERED: usize = 1_000;
/// How often it is looked where no change is heard of: devices die in silence.
const LOOK: Duration = Duration::from_secs(1);
/// The shortest time between two looks.
const GAP: Duration = Duration::from_millis(100);
/// How long it is looked on when nobody listens any more: somebody may come back.
const LINGER: Duration = Duration::from_secs(30);

/// What happened.
#[derive(Debug, Clone)]
struct Happening {
    number: u64,
    kind: &'static str,
    data: Value,
    whose: Whose,
}

/// Whom it concerns: what scopes are judged by.
#[derive(Debug, Clone)]
enum Whose {
    Job(JobName, Vec<Tag>),
    Device(Vec<Tag>),
    All,
    Admins,
}

impl Whose {
    fn is_seen_by(&self, caller: &Caller) -> bool {
        match self {
            Self::Job(job, tags) => caller.sees(job, &mut tags.iter()),
            Self::Device(tags) => caller.sees_device(tags),
            Self::All => caller.sees_all(),
            Self::Admins => caller.role.may(Right::Administer),
        }
    }
}

/// A kind of happening, what is told of it, and whom it concerns.
type News = (&'static str, Value, Whose);

/// What has happened lately, for all listeners.
pub(super) struct Happenings {
    /// Tells one life of this list from another.
    life: String,
    recent: Mutex<Recent>,
    newest: watch::Sender<u64>,
    /// Whether there was a look that later ones are held against.
    looked: watch::Sender<bool>,
}

#[derive(Default)]
struct Recent {
    all: VecDeque<Arc<Happening>>,
    next: u64,
    listeners: usize,
    is_looked: bool,
}

impl Happenings {
    pub(super) fn new(life: String) -> Self {
        Self { life, recent: Mutex::default(), newest: watch::Sender::new(0), looked: watch::Sender::new(false) }
    }

    fn recent(&self) -> std::sync::MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what happened.
    fn add(&self, happened: Vec<News>) {
        if happened.is_empty() {
            return;
        }
        let mut recent = self.recent();
        for (kind, data, whose) in happened {
            let number = recent.next;
            recent.next += 1;
            recent.all.push_back(Arc::new(Happening { number, kind, data, whose }));
        }
        let over = recent.all.len().saturating_sub(REMEMBERED);
        recent.all.drain(..over);
        self.newest.send_replace(recent.next);
    }

    /// What happened from `number` on; `None`: some of it is forgotten.
    fn since(&self, number: u64) -> Option<Vec<Arc<Happening>>> {
        let recent = self.recent();
        let first = recent.all.front().map_or(recent.next, |first| first.number);
        (number >= first && number <= recent.next)
            .then(|| recent.all.iter().filter(|it| it.number >= number).map(Arc::clone).collect())
    }

    /// Where `Last-Event-ID: <life>-<number>` goes on.
    fn resumed(&self, headers: &HeaderMap) -> Option<u64> {
        let (life, number) = headers.get("last-event-id")?.to_str().ok()?.rsplit_once('-')?;
        let number: u64 = number.parse().ok()?;
        (life == self.life).then_some(number.saturating_add(1))
    }
}

/// Somebody who listens; when the last one goes, so does who looks, after a while.
struct Listener(App);

impl Listener {
    fn new(app: &App) -> Self {
        let is_first = {
            let mut recent = app.happenings.recent();
            recent.listeners += 1;
            !std::mem::replace(&mut recent.is_looked, true)
        };
        if is_first {
            tokio::spawn(look_on(app.clone()));
        }
        Self(app.clone())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.happenings.recent().listeners -= 1;
    }
}

/// Everything that changes, as server-sent events: `run`, `job`, `device`, `problems`, `server`, and for admins `key`, `user`,
/// `backup`; `gone` for what of these is there no more, but for runs, which end; `hello` at the beginning; `reset` where what was
/// missed is forgotten: look at everything anew.
#[utoipa::path(get, path = "/events", tag = "service", responses(
    (status = 200, description = "Events", body = String, content_type = "text/event-stream"),
    (status = 429, description = "Too many live streams", body = Document),
))]
pub(super) async fn events(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (to, events) = channel(64);
    let from = app.happenings.resumed(&headers);
    let asked = headers.contains_key("last-event-id");
    let sender = Events::new(&app, &caller, headers, to)?;
    tokio::spawn(tell(app, caller, sender, from, asked));
    Ok(sse(events))
}

async fn tell(app: App, caller: Caller, mut events: Events, from: Option<u64>, asked: bool) {
    let _listener = Listener::new(&app);
    // From the first look on everything is told.
    let mut looked = app.happenings.looked.subscribe();
    tokio::select! {
        _ = looked.wait_for(|looked| *looked) => {}
        () = events.closed() => return,
    }
    let mut newest = app.happenings.newest.subscribe();
    let now = app.happenings.recent().next;
    let mut next = from.unwrap_or(now);
    let id = |number: u64| Some(format!("{}-{number}", app.happenings.life));
    let first = if asked && (from.is_none() || app.happenings.since(next).is_none()) { "reset" } else { "hello" };
    if first == "reset" {
        next = now;
    }
    if !events.send(id(next.wrapping_sub(1)).filter(|_| next > 0), first, &json!({"device": app.device})).await {
        return;
    }
    loop {
        newest.mark_unchanged();
        match app.happenings.since(next) {
            Some(happened) => {
                for it in happened {
                    next = it.number + 1;
                    if it.whose.is_seen_by(&caller) && !events.send(id(it.number), it.kind, &it.data).await {
                        return;
                    }
                }
            }
            // A slow reader: what it missed is forgotten.
            None => {
                next = app.happenings.recent().next;
                if !events.send(id(next.saturating_sub(1)), "reset", &json!({"device": app.device})).await {
                    return;
                }
            }
        }
        tokio::select! {
            _ = newest.changed() => {}
            () = events.closed() => return,
        }
    }
}

/// What can change, by kind and name.
type Picture = BTreeMap<(&'static str, String), (Value, Whose)>;

/// Looks whenever something has happened, as long as somebody listens.
async fn look_on(app: App) {
    let mut changes = app.changes();
    let mut before: Option<Arc<Taken>> = None;
    let mut alone = Duration::ZERO;
    let mut stop = app.stop.clone();
    loop {
        changes.mark_unchanged();
        let begun = app.now().boot;
        let last = before.clone();
        let looked = app.ask(move |client| Taken::take(client, last.as_deref())).await;
        match looked {
            Ok((taken, happened)) => {
                app.happenings.add(happened);
                before = Some(Arc::new(taken));
                app.happenings.looked.send_replace(true);
            }
            // What cannot be read now can be read later: then it is told what has changed since the last look.
            Err(problem) => tracing::debug!("{}", problem.detail()),
        }
        let took = app.now().boot.saturating_sub(begun);
        tokio::select! {
            // A look that is dear comes seldom.
            () = sleep(GAP.max(took * 4)) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let _ = timeout(LOOK, changes.changed()).await;
        let now = app.now().boot;
        let mut recent = app.happenings.recent();
        alone = if recent.listeners > 0 { Duration::ZERO } else { alone + now.saturating_sub(begun) };
        if alone >= LINGER {
            // What happens from here on is not seen: who comes back is told so.
            recent.is_looked = false;
            recent.all.clear();
            recent.next += 1;
            app.happenings.looked.send_replace(false);
            return;
        }
    }
}

/// What was seen at one look.
struct Taken {
    picture: Picture,
    /// The attempts of today and yesterday that are over.
    ended: BTreeSet<(RunId, u32)>,
    /// What keys, users, servers and backups were seen by.
    stamp: Option<Stamp>,
    /// Which of these kinds have been read at all.
    read: BTreeSet<&'static str>,
}

impl Taken {
    /// Looks, and says what is another than before. At the first look nothing is.
    fn take(client: &Client, before: Option<&Self>) -> Result<(Self, Vec<News>), Failure> {
        let mut picture = picture(client)?;
        let Apart { seen, stamp, read } = Apart::see(client, before);
        picture.extend(seen);
        let now = client.now().wall;
        let days = [now - chrono::TimeDelta::days(1), now].map(|day| day.format("%Y-%m-%d").to_string());
        let mut ended = BTreeSet::new();
        for day in days {
            let names = results::of_day(&*client.disk, &client.layout, &day)?;
            ended.extend(names.into_iter().filter(|named| !named.superseded).map(|named| (named.run, named.attempt)));
        }
        let mut happened = Vec::new();
        if let Some(before) = before {
            let tags = tags_of_jobs(client)?;
            let of_job = |job: &JobName| Whose::Job(job.clone(), tags.get(job).cloned().unwrap_or_default());
            // Runs that ended, also those that were never seen while they ran.
            let mut over: BTreeSet<RunId> = ended.difference(&before.ended).map(|(run, _)| run.clone()).collect();
            let open = |picture: &Picture, name: &str| picture.contains_key(&("run", name.to_owned()));
            over.extend(
                before
                    .picture
                    .keys()
                    .filter(|(kind, name)| *kind == "run" && !open(&picture, name))
                    .filter_map(|(_, name)| RunId::parse(name)),
            );
            for run in over.iter().filter(|run| !open(&picture, run.as_str())) {
                if let Some(run) = find::gather(client, run)?
                    && let Ok(row) = runs::row(client, &run)
                {
                    let command = runs::is_command(client, &row)?;
                    let whose = if command { Whose::All } else { of_job(&row.job) };
                    happened.push(("run", value(&row)?, whose));
                }
            }
            // What could not be read before is no news.
            let is_known = |kind: &str| before.read.contains(kind) || APART.iter().all(|(apart, _)| *apart != kind);
            for (key, (data, whose)) in picture.iter().filter(|((kind, _), _)| is_known(kind)) {
                if before.picture.get(key).is_none_or(|(was, _)| was != data) {
                    happened.push((key.0, data.clone(), whose.clone()));
                }
            }
            for ((kind, name), (_, whose)) in before.picture.iter().filter(|(key, _)| !picture.contains_key(*key)) {
                if *kind != "run" {
                    happened.push(("gone", json!({"kind": kind, "name": name}), whose.clone()));
                }
            }
        }
        Ok((Self { picture, ended, stamp, read }, happened))
    }
}

fn picture(client: &Client) -> Result<Picture, Failure> {
    let mut picture = Picture::new();
    let state = view::state(client)?.unwrap_or_default();
    let (files, _) = jobs::files(client)?;
    let mut tags: BTreeMap<JobName, Vec<Tag>> = BTreeMap::new();
    for file in &files {
        let row = jobs::row(client, file, &state)?;
        tags.insert(row.job.clone(), row.tags.clone());
        let whose = Whose::Job(row.job.clone(), row.tags.clone());
        let mut data = value(&row)?;
        if let (Some(data), Ok(job)) = (data.as_object_mut(), &file.read) {
            // What stands in its file and not in the row counts too.
            let definition = value(&Definition::new(job, &JobMark::default()))?;
            data.insert("definition".to_owned(), fingerprint(definition.to_string().as_bytes()).into());
        }
        picture.insert(("job", row.job.to_string()), (data, whose));
    }
    for row in runs::open(client)?.into_values() {
        // A command is no job's, whatever its name.
        let whose = match row.command {
            Some(true) => Whose::All,
            Some(false) | None => Whose::Job(row.job.clone(), tags.get(&row.job).cloned().unwrap_or_default()),
        };
        picture.insert(("run", row.run_id.to_string()), (value(&row)?, whose));
    }
    let seen = view::devices(client)?;
    for row in devices::rows(&seen, &state) {
        let mut data = value(&row)?;
        if let Some(data) = data.as_object_mut() {
            // They change with every beat.
            data.remove("seen_at");
            data.remove("load");
            data.remove("machine");
        }
        picture.insert(("device", row.device.to_string()), (data, Whose::Device(row.tags)));
    }
    let problems = of_devices(&seen, &state);
    picture.insert(("problems", String::new()), (json!({"problems": problems}), Whose::All));
    Ok(picture)
}

/// One thing that was seen: its name, what is told of it, and to whom.
type Seen = (String, Value, Whose);

type See = fn(&Client) -> Result<Vec<Seen>, Failure>;

/// The kinds of what jobs have nothing to do with, who may come in and what is kept, and how each is looked at.
const APART: [(&str, See); 4] =
    [("key", see_keys), ("user", see_users), ("server", see_servers), ("backup", see_backups)];

/// What jobs have nothing to do with, as it was seen at one look.
struct Apart {
    seen: Picture,
    stamp: Option<Stamp>,
    read: BTreeSet<&'static str>,
}

impl Apart {
    fn see(client: &Client, before: Option<&Taken>) -> Self {
        let layout = &client.layout;
        let folders = [layout.api_keys(), layout.users(), layout.servers(), layout.backups()];
        let stamp = security::stamp(&*client.disk, &folders, client.now().wall);
        let stays = stamp.is_some() && before.is_some_and(|before| before.stamp == stamp);
        let mut apart = Self { seen: Picture::new(), stamp, read: BTreeSet::new() };
        for (kind, look) in APART {
            let looked = if stays { Ok(None) } else { look(client).map(Some) };
            let seen = looked.unwrap_or_else(|failure| {
                tracing::debug!("{}; hint: {}", failure.error, failure.hint);
                // It is read the next time.
                apart.stamp = None;
                None
            });
            if let Some(seen) = seen {
                apart.read.insert(kind);
                apart.seen.extend(seen.into_iter().map(|(name, data, whose)| ((kind, name), (data, whose))));
            } else if let Some(before) = before.filter(|before| before.read.contains(kind)) {
                // What cannot be read now is as it was: the rest is told all the same.
                apart.read.insert(kind);
                let of_kind = before.picture.iter().filter(|((of, _), _)| *of == kind);
                apart.seen.extend(of_kind.map(|(key, it)| (key.clone(), it.clone())));
            }
        }
        apart
    }
}

fn see_keys(client: &Client) -> Result<Vec<Seen>, Failure> {
    let see = |mut row: keys::Row| {
        // It changes while nothing happens to the key.
        row.last_used_at = None;
        Ok((row.id.clone(), value(&row)?, Whose::Admins))
    };
    keys::list(client)?.into_iter().map(see).collect()
}

fn see_users(client: &Client) -> Result<Vec<Seen>, Failure> {
    users::list(client)?.into_iter().map(|row| Ok((row.name.clone(), value(&row)?, Whose::Admins))).collect()
}

fn see_servers(client: &Client) -> Result<Vec<Seen>, Failure> {
    let see = |server: servers::Record| {
        let data = json!({"id": server.id, "url": server.url});
        (server.id, data, Whose::All)
    };
    Ok(servers::list(client)?.into_iter().map(see).collect())
}

fn see_backups(client: &Client) -> Result<Vec<Seen>, Failure> {
    let see = |backup: backup::Listed| {
        let data = json!({"file": client.shown(&backup.path), "bytes": backup.bytes});
        (backup.name, data, Whose::Admins)
    };
    Ok(backup::list(&*client.disk, &client.layout.backups())?.into_iter().map(see).collect())
}
