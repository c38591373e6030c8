//! API keys: made, listed, rotated, revoked. A secret is shown once, when it is made; its hash is what is kept.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{all, base32, locked, random};
use crate::client::{Client, Code, Failure};
use crate::model::access::{KEY_ID_LENGTH, KEY_PREFIX, Key, Previous, Role, SCHEMA, Scope, check_scopes};
use crate::model::message::quoted;
use crate::model::time::{utc, utc_opt};
use crate::volume::security;

/// How many keys there may be.
const KEYS: usize = 10_000;
/// How long the name of a key may be, characters.
const NAME: usize = 100;
/// How long the old secret of a rotated key stays good, unless said.
pub const OVERLAP: Duration = Duration::from_secs(24 * 3_600);
/// What the key of the first start is called.
pub const FIRST: &str = "first admin key";

/// A key as lists show it: nothing of its secret.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Its id.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// What it is limited to.
    pub scopes: Vec<Scope>,
    /// Whether it is good, unless it has expired.
    pub active: bool,
    /// When it was made.
    #[serde(with = "utc")]
    pub created_at: DateTime<Utc>,
    /// Until when it is good.
    #[serde(with = "utc_opt")]
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was last used, to the minute.
    #[serde(with = "utc_opt")]
    pub last_used_at: Option<DateTime<Utc>>,
    /// Until when its secret before the last rotation is good.
    #[serde(with = "utc_opt")]
    pub previous_until: Option<DateTime<Utc>>,
}

impl Row {
    fn of(key: Key, seen: &BTreeMap<String, DateTime<Utc>>) -> Self {
        Self {
            last_used_at: seen.get(&key.id).copied(),
            previous_until: key.previous.map(|previous| previous.until),
            id: key.id,
            name: key.name,
            role: key.role,
            scopes: key.scopes,
            active: key.active,
            created_at: key.created_at,
            expires_at: key.expires_at,
        }
    }
}

/// A key with its secret, which is told this once.
#[derive(Debug, Serialize)]
pub struct Made {
    /// What is sent: `aios_<id>_<secret>`.
    pub key: String,
    /// The rest.
    #[serde(flatten)]
    pub row: Row,
}

/// What a new key is to be.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// What it is for.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// What it is limited to.
    pub scopes: Vec<Scope>,
    /// Until when it is good.
    pub expires_at: Option<DateTime<Utc>>,
}

/// SHA-256 of a secret, in hex.
#[must_use]
pub fn hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

/// All keys, the oldest first.
///
/// # Errors
/// Exit code 4.
pub fn list(client: &Client) -> Result<Vec<Row>, Failure> {
    let keys: Vec<Key> = all(client, &client.layout.api_keys())?;
    let seen = seen(client)?;
    let mut rows: Vec<Row> = keys.into_iter().map(|key| Row::of(key, &seen)).collect();
    rows.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    Ok(rows)
}

/// When each key was last used, on any device.
fn seen(client: &Client) -> Result<BTreeMap<String, DateTime<Utc>>, Failure> {
    let folder = client.layout.security().join("seen");
    let (of_devices, _) = security::read_all::<BTreeMap<String, DateTime<Utc>>>(&*client.disk, &folder)?;
    let mut newest = BTreeMap::new();
    for (id, at) in of_devices.into_iter().flatten() {
        let known = newest.entry(id).or_insert(at);
        *known = at.max(*known);
    }
    Ok(newest)
}

/// Makes a key.
///
/// # Errors
/// Exit code 2: it cannot be meant; 4.
pub fn create(client: &mut Client, wanted: Wanted) -> Result<Made, Failure> {
    let _lock = locked(client)?;
    make(client, wanted)
}

/// Makes the key of an admin if there is neither key nor user: of the first start.
///
/// # Errors
/// Exit code 4.
pub fn create_first(client: &mut Client) -> Result<Option<Made>, Failure> {
    let _lock = locked(client)?;
    for folder in [client.layout.api_keys(), client.layout.users()] {
        let names = client.disk.list(&folder);
        let names = crate::volume::Context::on(names, "list", &folder)?;
        // One that is damaged is one: who deletes it gets the first key anew.
        if names.iter().any(|name| name.to_str().is_none_or(|name| name.ends_with(".json"))) {
            return Ok(None);
        }
    }
    let wanted = Wanted { name: FIRST.to_owned(), role: Role::Admin, scopes: Vec::new(), expires_at: None };
    make(client, wanted).map(Some)
}

fn make(client: &mut Client, wanted: Wanted) -> Result<Made, Failure> {
    let now = client.now().wall;
    check(&wanted, now)?;
    let there = crate::volume::found(client.disk.list(&client.layout.api_keys()));
    if there.is_ok_and(|names| names.is_some_and(|names| names.len() >= KEYS)) {
        let error = format!("there are {KEYS} keys");
        return Err(Failure::new(Code::Failed, error, "delete some that nobody uses"));
    }
    let mut id = base32(&random::<8>()?);
    id.truncate(KEY_ID_LENGTH);
    let secret = base32(&random::<32>()?);
    let Wanted { name, role, scopes, expires_at } = wanted;
    let key = Key {
        schema: SCHEMA,
        id,
        name,
        role,
        scopes,
        hash: hash(&secret),
        previous: None,
        active: true,
        created_at: now,
        expires_at,
    };
    let path = path(client, &key.id);
    if !security::write_new(&*client.disk, &mut client.names, &path, &key)? {
        return Err(Failure::new(Code::Failed, "two keys drew one id", "try again"));
    }
    Ok(Made { key: format!("{KEY_PREFIX}{}_{secret}", key.id), row: Row::of(key, &BTreeMap::new()) })
}

fn check(wanted: &Wanted, now: DateTime<Utc>) -> Result<(), Failure> {
    let usage = |error: String, hint: &str| Err(Failure::new(Code::Usage, error, hint));
    let length = wanted.name.chars().count();
    if length == 0 || length > NAME || wanted.name.chars().any(char::is_control) {
        let error = format!("the name {} has {length} characters, expected 1 to {NAME}", quoted(&wanted.name));
        return usage(error, "say what the key is for; no control characters");
    }
    if wanted.expires_at.is_some_and(|at| at <= now) {
        return usage("the key would have expired already".to_owned(), "give a time that is still to come");
    }
    check_scopes(wanted.role, &wanted.scopes)
        .or_else(|error| usage(error, "leave the scopes out, or give another role"))
}

fn path(client: &Client, id: &str) -> std::path::PathBuf {
    client.layout.api_keys().join(format!("{id}.json"))
}

/// The key of this id.
fn known(client: &Client, id: &str) -> Result<Key, Failure> {
    let missing = || {
        let error = format!("there is no key {}", quoted(id));
        Failure::new(Code::NotFound, error, "`orchestrator keys list` shows the ids of all keys")
    };
    if id.len() != KEY_ID_LENGTH || !id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
        return Err(missing());
    }
    security::read(&*client.disk, &path(client, id))?.ok_or_else(missing)
}

/// Gives a key another secret. The old one stays good for `overlap`.
///
/// # Errors
/// Exit code 3: nobody knows the key.
pub fn rotate(client: &mut Client, id: &str, overlap: Duration) -> Result<Made, Failure> {
    let _lock = locked(client)?;
    let key = known(client, id)?;
    let until = TimeDelta::from_std(overlap).ok().and_then(|overlap| client.now().wall.checked_add_signed(overlap));
    let Some(until) = until else {
        return Err(Failure::new(Code::Usage, "the overlap is too long", "give one such as 24h"));
    };
    let secret = base32(&random::<32>()?);
    let previous = (!overlap.is_zero()).then(|| Previous { hash: key.hash.clone(), until });
    let key = Key { hash: hash(&secret), previous, ..key };
    let path = path(client, id);
    security::write(&*client.disk, &mut client.names, &path, &key)?;
    Ok(Made { key: format!("{KEY_PREFIX}{}_{secret}", key.id), row: Row::of(key, &seen(client)?) })
}

/// Makes a key good, or no good until it is activated again. A revoked one loses the secret before its last rotation for good.
///
/// # Errors
/// Exit code 3: nobody knows the key.
pub fn set_active(client: &mut Client, id: &str, active: bool) -> Result<Row, Failure> {
    let _lock = locked(client)?;
    let key = known(client, id)?;
    let key = Key { active, previous: key.previous.filter(|_| active), ..key };
    let path = path(client, id);
    security::write(&*client.disk, &mut client.names, &path, &key)?;
    Ok(Row::of(key, &seen(client)?))
}

/// Removes a key.
///
/// # Errors
/// Exit code 3: nobody knows the key.
pub fn delete(client: &mut Client, id: &str) -> Result<(), Failure> {
    let _lock = locked(client)?;
    let key = known(client, id)?;
    security::remove(&*client.disk, &path(client, &key.id))?;
    Ok(())
}
