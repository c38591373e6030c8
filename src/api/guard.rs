//! Who asks: keys and tokens are looked up here, rights are judged, and too many requests are turned away.

use std::collections::{BTreeMap, HashMap};
use std::hash::RandomState;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use chrono::{DateTime, Utc};
use governor::clock::{Clock, DefaultClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use subtle::ConstantTimeEq;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::app::App;
use super::problem::{Kind, Problem};
use crate::client::follow::Only;
use crate::client::jobs::overview::tags_of_jobs;
use crate::client::security::keys::hash;
use crate::client::security::tokens::{Purpose, Secrets};
use crate::client::{Client, Failure};
use crate::model::access::{Key, Right, Role, Scope, User, sees, split_key};
use crate::model::ids::{DeviceId, JobName, Tag};
use crate::volume::os::is_network;
use crate::volume::security::{self, Stamp};

/// How often it is looked whether keys or users have changed.
const LOOK: Duration = Duration::from_secs(1);
/// The shortest time between two looks, where somebody shows what is not known.
const LOOK_SOON: Duration = Duration::from_millis(100);
/// How old what is known may be while somebody is looking: then it is waited for.
const OLD: Duration = Duration::from_millis(1_500);
/// For how long after a look that came to nothing nobody waits for another's.
const FAILED: Duration = Duration::from_secs(10);
/// How long anybody waits for his turn to look, and for a look.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it is written down when keys were last used.
const TELL_SEEN: Duration = Duration::from_secs(60);
/// How often a password may be tried, from one address or for one name: a burst, then one each 3 s.
const FAILURES: u32 = 20;
/// How many addresses and keys are remembered before those that were quiet are forgotten.
const REMEMBERED: usize = 10_000;

type Limiter<K> = RateLimiter<K, HashMapStateStore<K, RandomState>, DefaultClock>;

/// Who asks.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// `key:<id>` or `user:<name>`.
    pub(super) id: Arc<str>,
    /// What people call it.
    pub(super) name: Arc<str>,
    pub(super) role: Role,
    pub(super) scopes: Arc<[Scope]>,
}

impl Caller {
    /// Whether this caller sees a job that needs these tags.
    pub(super) fn sees(&self, job: &JobName, tags: &mut dyn Iterator<Item = &Tag>) -> bool {
        self.sees_all() || sees(&self.scopes, job, tags)
    }

    /// Whether this caller sees everything.
    pub(super) fn sees_all(&self) -> bool {
        self.scopes.is_empty()
    }

    /// Refuses a caller with scopes what speaks of, or works for, all jobs.
    pub(super) fn must_see_all(&self, why: &str, hint: &str) -> Result<(), Problem> {
        let refused = || Problem::new(Kind::Forbidden, format!("this key has scopes, and {why}"), hint);
        if self.sees_all() { Ok(()) } else { Err(refused()) }
    }

    /// Which jobs this caller sees, as their files are now. Of a job without a file only its name is known.
    pub(super) fn view(&self, client: &Client) -> Result<Only, Failure> {
        if self.sees_all() {
            return Ok(Box::new(|_| true));
        }
        let (caller, tags) = (self.clone(), tags_of_jobs(client)?);
        Ok(Box::new(move |job| caller.sees(job, &mut tags.get(job).into_iter().flatten())))
    }

    /// The tags that this caller is limited to.
    fn tags(&self) -> impl Iterator<Item = &Tag> {
        self.scopes.iter().filter_map(|scope| match scope {
            Scope::Tag(tag) => Some(tag),
            Scope::Job(_) => None,
        })
    }

    /// Whether this caller may have a device do something: names of jobs are no right over machines.
    pub(super) fn commands_device(&self, tags: &[Tag]) -> bool {
        self.sees_all() || self.tags().any(|tag| tags.contains(tag))
    }

    /// Whether this caller sees a device with these tags. Names of jobs limit no devices.
    pub(super) fn sees_device(&self, tags: &[Tag]) -> bool {
        self.tags().next().is_none() || self.tags().any(|tag| tags.contains(tag))
    }
}

/// A record, and who comes in by it.
#[derive(Debug)]
pub(super) struct Known<T> {
    pub(super) record: T,
    caller: Caller,
}

impl From<Key> for Known<Key> {
    fn from(record: Key) -> Self {
        let Key { id, name, role, scopes, .. } = record.clone();
        let caller = Caller { id: format!("key:{id}").into(), name: name.into(), role, scopes: scopes.into() };
        Self { record, caller }
    }
}

impl From<User> for Known<User> {
    fn from(record: User) -> Self {
        let User { name, role, scopes, .. } = record.clone();
        let caller = Caller { id: format!("user:{name}").into(), name: name.into(), role, scopes: scopes.into() };
        Self { record, caller }
    }
}

/// Everybody who may come in, as the folder had it.
#[derive(Default)]
struct Book {
    keys: HashMap<String, Arc<Known<Key>>>,
    users: HashMap<String, Arc<Known<User>>>,
    /// The folders' stamp, if another content has another.
    stamp: Option<Stamp>,
    looked: Option<Duration>,
    /// When a look came to nothing, if the last one did.
    failed: Option<Duration>,
    /// What could not be read, so that it is said once.
    wrong: Vec<String>,
}

/// The guard of one server.
pub(super) struct Guard {
    book: RwLock<Book>,
    secrets: Secrets,
    by_caller: Limiter<Arc<str>>,
    by_address: Limiter<IpAddr>,
    failures: Limiter<String>,
    /// Until when somebody may try no password.
    blocked: Mutex<HashMap<String, <DefaultClock as Clock>::Instant>>,
    seen: Mutex<Seen>,
    /// One looks for changes at a time.
    turn: Arc<Semaphore>,
    /// Whether there is any limit of requests.
    limited: bool,
    /// Whether the folder is another machine's: what it says of its folders may be old, what it says of files is not.
    remote: bool,
}

#[derive(Default)]
struct Seen {
    at: BTreeMap<String, DateTime<Utc>>,
    told: Option<Duration>,
    is_new: bool,
}

/// One in so many seconds, after a burst.
fn quota(per_second: u32, burst: u32) -> Quota {
    let at_least = |number: u32| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
    Quota::per_second(at_least(per_second)).allow_burst(at_least(burst))
}

impl Guard {
    /// `rate`: how many requests a second a caller may make, twice as many at once; 0: as many as they like.
    pub(super) fn new(client: &mut Client, secrets: Secrets, rate: u32) -> Result<Self, Failure> {
        let slowly = Quota::with_period(Duration::from_secs(3)).unwrap_or_else(|| quota(1, 1));
        let guard = Self {
            book: RwLock::default(),
            secrets,
            by_caller: RateLimiter::keyed(quota(rate, rate.saturating_mul(2))),
            by_address: RateLimiter::keyed(quota(rate, rate.saturating_mul(2))),
            failures: RateLimiter::keyed(slowly.allow_burst(NonZeroU32::new(FAILURES).unwrap_or(NonZeroU32::MIN))),
            blocked: Mutex::default(),
            seen: Mutex::default(),
            turn: Arc::new(Semaphore::new(1)),
            limited: rate > 0,
            remote: is_network(&client.layout.common),
        };
        guard.look(client)?;
        Ok(guard)
    }

    /// What tokens are signed with.
    pub(super) fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// How long ago it was looked for changes.
    fn age(&self, now: Duration) -> Duration {
        let looked = self.book.read().unwrap_or_else(PoisonError::into_inner).looked;
        looked.map_or(Duration::MAX, |looked| now.saturating_sub(looked))
    }

    /// Whether the last look came to nothing, so short a time ago.
    fn failed_within(&self, span: Duration, now: Duration) -> bool {
        let failed = self.book.read().unwrap_or_else(PoisonError::into_inner).failed;
        failed.is_some_and(|failed| now.saturating_sub(failed) < span)
    }

    fn has_failed(&self, now: Duration) {
        self.book.write().unwrap_or_else(PoisonError::into_inner).failed = Some(now);
    }

    /// The turn to look for changes, if it is time. While another has it, only who would be judged by what is too old waits; and
    /// nobody where a look has just come to nothing.
    async fn turn_to_look(&self, app: &App, due: Duration) -> Option<OwnedSemaphorePermit> {
        let asked = app.now().boot;
        let age = self.age(asked);
        if age < due || self.failed_within(LOOK, asked) {
            return None;
        }
        let turn = Arc::clone(&self.turn);
        if age < OLD || self.failed_within(FAILED, asked) {
            return turn.try_acquire_owned().ok();
        }
        let turn = timeout(PATIENCE, turn.acquire_owned()).await.ok()?.ok()?;
        // Whoever had the turn before has looked for all who waited then, perhaps in vain.
        let now = app.now().boot;
        let age = self.age(now);
        let is_due = age >= LOOK && age > now.saturating_sub(asked) && !self.failed_within(LOOK, now);
        is_due.then_some(turn)
    }

    /// Reads keys and users again if they have changed.
    pub(super) fn look(&self, client: &Client) -> Result<(), Failure> {
        let now = client.now();
        let folders = [client.layout.api_keys(), client.layout.users()];
        let stamp = security::stamp(&*client.disk, &folders, now.wall).filter(|_| !self.remote);
        {
            let mut book = self.book.write().unwrap_or_else(PoisonError::into_inner);
            if stamp.is_some() && book.stamp == stamp {
                (book.looked, book.failed) = (book.looked.max(Some(now.boot)), None);
                return Ok(());
            }
        }
        let (keys, wrong_keys) = security::read_all::<Key>(&*client.disk, &client.layout.api_keys())?;
        let (users, wrong_users) = security::read_all::<User>(&*client.disk, &client.layout.users())?;
        let wrong: Vec<String> = wrong_keys.iter().chain(&wrong_users).map(ToString::to_string).collect();
        let mut book = self.book.write().unwrap_or_else(PoisonError::into_inner);
        // Who looked later has seen all of this.
        if book.looked > Some(now.boot) {
            return Ok(());
        }
        for error in wrong.iter().filter(|error| !book.wrong.contains(error)) {
            tracing::error!("{error}: whoever it was for cannot come in");
        }
        let keys = keys.into_iter().map(|key| (key.id.clone(), Arc::new(key.into())));
        let users = users.into_iter().map(|user| (user.name.clone(), Arc::new(user.into())));
        let looked = Some(now.boot);
        let mut new = Book { keys: keys.collect(), users: users.collect(), stamp, looked, failed: None, wrong };
        // What cannot be read now was good when it was read: it stays, and is looked at again.
        if !new.wrong.is_empty() {
            new.stamp = None;
            for error in wrong_keys.iter().chain(&wrong_users) {
                let Some(name) = error.path.file_stem().and_then(|name| name.to_str()) else { continue };
                let is_user = error.path.parent() == Some(&client.layout.users());
                match (is_user, book.keys.get(name), book.users.get(name)) {
                    (false, Some(key), _) => drop(new.keys.insert(name.to_owned(), Arc::clone(key))),
                    (true, _, Some(user)) => drop(new.users.insert(name.to_owned(), Arc::clone(user))),
                    (false, None, _) | (true, _, None) => {}
                }
            }
        }
        *book = new;
        Ok(())
    }

    /// Who shows this.
    pub(super) fn recognise(&self, headers: &HeaderMap, now: DateTime<Utc>) -> Result<Caller, Problem> {
        let unknown = |detail: &str, hint: &str| Problem::new(Kind::Unauthenticated, detail, hint);
        let shown = shown(headers).ok_or_else(|| {
            unknown(
                "no key or token was sent",
                "send `Authorization: Bearer KEY`; `orchestrator keys create` makes a key",
            )
        })?;
        let caller = if split_key(shown).is_some() { self.of_key(shown, now) } else { self.of_token(shown, now) };
        caller.ok_or_else(|| {
            let hint = "it may be revoked, expired or mistyped; `orchestrator keys list` shows the keys there are";
            unknown("the key or token that was sent is not good", hint)
        })
    }

    fn of_key(&self, shown: &str, now: DateTime<Utc>) -> Option<Caller> {
        let (id, secret) = split_key(shown)?;
        let known = self.book.read().unwrap_or_else(PoisonError::into_inner).keys.get(id).cloned()?;
        let key = &known.record;
        let hash = hash(secret);
        let fits =
            key.hashes(now).fold(subtle::Choice::from(0), |fits, kept| fits | hash.as_bytes().ct_eq(kept.as_bytes()));
        if !bool::from(fits) || !key.is_good(now) {
            return None;
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.at.get(id).is_none_or(|before| (now - *before).num_seconds() >= 60) {
            seen.at.insert(id.to_owned(), now);
            seen.is_new = true;
        }
        Some(known.caller.clone())
    }

    fn of_token(&self, shown: &str, now: DateTime<Utc>) -> Option<Caller> {
        let claims = self.secrets.check(shown, Purpose::Access, now.timestamp()).ok()?;
        let known = self.user(&claims.sub)?;
        let is_good = known.record.active && known.record.version == claims.ver;
        is_good.then(|| known.caller.clone())
    }

    /// The user of this name.
    pub(super) fn user(&self, name: &str) -> Option<Arc<Known<User>>> {
        self.book.read().unwrap_or_else(PoisonError::into_inner).users.get(name).cloned()
    }

    /// Counts a request of somebody who is known.
    pub(super) fn count(&self, caller: &Caller) -> Result<(), Problem> {
        if !self.limited {
            return Ok(());
        }
        within(&self.by_caller, &caller.id, "this key or user makes more requests than it may")
    }

    /// Counts a request of somebody who need not be known.
    pub(super) fn count_address(&self, address: IpAddr) -> Result<(), Problem> {
        if !self.limited {
            return Ok(());
        }
        within(&self.by_address, &network(address), "this address makes more requests than it may")
    }

    /// Refuses somebody whose tries of passwords failed too often.
    pub(super) fn may_try(&self, whose: &str) -> Result<(), Problem> {
        let now = DefaultClock::default().now();
        let blocked = self.blocked.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = blocked.get(whose).map(|until| until.duration_since(now));
        match wait.filter(|wait| !wait.is_zero()) {
            None => Ok(()),
            Some(wait) => Err(Problem::too_many("too many tries of passwords", wait.as_secs() + 1)),
        }
    }

    /// Counts a try of a password that failed.
    pub(super) fn count_failure(&self, whose: &str) {
        if self.failures.len() > REMEMBERED {
            self.failures.retain_recent();
        }
        if let Err(until) = self.failures.check_key(&whose.to_owned()) {
            let mut blocked = self.blocked.lock().unwrap_or_else(PoisonError::into_inner);
            let now = DefaultClock::default().now();
            blocked.retain(|_, until| *until > now);
            blocked.insert(whose.to_owned(), until.earliest_possible());
        }
    }

    /// Forgets who was quiet, and gives what is to be written down of when keys were used.
    pub(super) fn tidy(&self, now: Duration) -> Option<BTreeMap<String, DateTime<Utc>>> {
        self.by_caller.retain_recent();
        self.by_address.retain_recent();
        self.failures.retain_recent();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = seen.is_new && seen.told.is_none_or(|told| now.saturating_sub(told) >= TELL_SEEN);
        if !is_due {
            return None;
        }
        (seen.is_new, seen.told) = (false, Some(now));
        Some(seen.at.clone())
    }
}

/// Looks for what was made a moment ago: somebody shows a key that is not known. A look that was only just made is too old, so
/// the next one is waited for.
pub(super) async fn refresh_soon(app: &App) {
    let wait = LOOK_SOON.saturating_sub(app.guard.age(app.now().boot));
    if !wait.is_zero() {
        sleep(wait + Duration::from_millis(1)).await;
    }
    look_for(app, LOOK_SOON).await;
}

/// Sees to it that keys and users are known as they were a moment ago. What cannot be read now was read before: whoever was known
/// stays known, and nobody waits for long.
pub(super) async fn refresh(app: &App) {
    look_for(app, LOOK).await;
}

/// Whoever has the turn to look. That it came to nothing is known before the next one has it.
struct Looking {
    app: App,
    came_to_something: bool,
    _turn: OwnedSemaphorePermit,
}

impl Looking {
    fn look(mut self) -> Result<(), Failure> {
        let looked = self.app.guard.look(&Client::new(self.app.layout.clone(), self.app.device.clone()));
        self.came_to_something = looked.is_ok();
        looked
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        if !self.came_to_something {
            self.app.guard.has_failed(self.app.now().boot);
        }
    }
}

async fn look_for(app: &App, due: Duration) {
    let Some(turn) = app.guard.turn_to_look(app, due).await else { return };
    let looking = Looking { app: app.clone(), came_to_something: false, _turn: turn };
    // Not behind those who wait for the disk, and to its end whoever waits for it: under load too it comes to its turn.
    match timeout(PATIENCE, spawn_blocking(move || looking.look())).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(failure))) => tracing::warn!("{}; hint: {}", failure.error, failure.hint),
        Ok(Err(error)) => tracing::error!("the look at keys and users ended in a panic: {error}"),
        Err(_) if app.guard.age(app.now().boot) < OLD => {}
        Err(_) => {
            tracing::warn!("keys and users cannot be read within {PATIENCE:?}: those known before count");
            app.guard.has_failed(app.now().boot);
        }
    }
}

/// Writes down when keys were used on this device, with what was known of it before.
pub(super) fn tell_seen(
    client: &mut Client,
    device: &DeviceId,
    at: BTreeMap<String, DateTime<Utc>>,
) -> Result<(), Failure> {
    let path = client.layout.keys_seen(device);
    let mut all: BTreeMap<String, DateTime<Utc>> =
        security::read(&*client.disk, &path).ok().flatten().unwrap_or_default();
    all.extend(at);
    Ok(security::write(&*client.disk, &mut client.names, &path, &all)?)
}

/// What counts as one address: of IPv6 the network that one customer has.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(four) => IpAddr::V4(four),
        IpAddr::V6(six) => IpAddr::V6(Ipv6Addr::from_bits(six.to_bits() & !u128::from(u64::MAX))),
    }
}

/// The key or token of a request: `Authorization: Bearer …`, or `X-API-Key: …`.
fn shown(headers: &HeaderMap) -> Option<&str> {
    if let Some(text) = headers.get(AUTHORIZATION) {
        let (kind, shown) = text.to_str().ok()?.split_once(' ')?;
        return kind.eq_ignore_ascii_case("bearer").then(|| shown.trim());
    }
    headers.get("x-api-key")?.to_str().ok()
}

fn within<K: std::hash::Hash + Eq + Clone>(limiter: &Limiter<K>, of: &K, detail: &str) -> Result<(), Problem> {
    if limiter.len() > REMEMBERED {
        limiter.retain_recent();
    }
    limiter.check_key(of).map_err(|until| {
        let wait = until.wait_time_from(DefaultClock::default().now());
        Problem::too_many(detail, wait.as_secs() + 1)
    })
}

/// Refuses what the caller's role does not allow.
pub(super) fn allow(caller: &Caller, right: Right) -> Result<(), Problem> {
    if caller.role.may(right) {
        return Ok(());
    }
    let detail = format!("{} has the role {}, and this takes {} or more", caller.name, caller.role, right.least_role());
    Err(Problem::new(Kind::Forbidden, detail, "ask an admin for a key with another role"))
}
