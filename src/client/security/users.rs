//! Users: people with a password, who get short-lived tokens for it.

use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, PasswordHasher, PasswordVerifier};
use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{all, locked};
use crate::client::{Client, Code, Failure};
use crate::model::access::{Role, SCHEMA, Scope, User, check_scopes};
use crate::model::ids::{NAME_RULE, is_name};
use crate::model::message::quoted;
use crate::model::time::utc;
use crate::volume::security;

/// How many characters a password may have. Fewer are guessed, more cost time.
const PASSWORD: std::ops::RangeInclusive<usize> = 12..=1_000;

/// A user as lists show them: nothing of the password.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The name.
    pub name: String,
    /// What this user may do.
    pub role: Role,
    /// What this user is limited to.
    pub scopes: Vec<Scope>,
    /// Whether this user may come in.
    pub active: bool,
    /// When this user was made.
    #[serde(with = "utc")]
    pub created_at: DateTime<Utc>,
}

impl From<User> for Row {
    fn from(user: User) -> Self {
        let User { name, role, scopes, active, created_at, .. } = user;
        Self { name, role, scopes, active, created_at }
    }
}

/// What is to be another; what is left out stays.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// What this user may do.
    pub role: Option<Role>,
    /// What this user is limited to.
    pub scopes: Option<Vec<Scope>>,
    /// Another password.
    pub password: Option<String>,
    /// Whether this user may come in.
    pub active: Option<bool>,
}

/// All users, by name.
///
/// # Errors
/// Exit code 4.
pub fn list(client: &Client) -> Result<Vec<Row>, Failure> {
    let users: Vec<User> = all(client, &client.layout.users())?;
    let mut rows: Vec<Row> = users.into_iter().map(Row::from).collect();
    // Files are listed with their endings, which sort otherwise.
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(rows)
}

/// Makes a user.
///
/// # Errors
/// Exit code 2: the name is taken or breaks the rule, or the password is too short.
pub fn create(client: &mut Client, name: &str, role: Role, scopes: Vec<Scope>, password: &str) -> Result<Row, Failure> {
    if !is_name(name) {
        let error = format!("the user name {} is not valid: expected {NAME_RULE}", quoted(name));
        return Err(Failure::new(Code::Usage, error, "give a name that follows the rule"));
    }
    check(role, &scopes)?;
    let user = User {
        schema: SCHEMA,
        name: name.to_owned(),
        role,
        scopes,
        password: hashed(password)?,
        active: true,
        // Never that of an earlier user of this name, whose tokens may still live.
        version: u64::try_from(client.now().wall.timestamp_millis()).unwrap_or(1),
        created_at: client.now().wall,
    };
    let _lock = locked(client)?;
    let path = path(client, name);
    if !security::write_new(&*client.disk, &mut client.names, &path, &user)? {
        let error = format!("the user {name} is there already");
        return Err(Failure::new(Code::Exists, error, "choose another name, or change that user"));
    }
    Ok(user.into())
}

/// Changes a user. Tokens that were given before are no longer good.
///
/// # Errors
/// Exit code 3: nobody knows the user; 2: it cannot be meant.
pub fn change(client: &mut Client, name: &str, change: Change) -> Result<Row, Failure> {
    let password = change.password.as_deref().map(hashed).transpose()?;
    let _lock = locked(client)?;
    let old = known(client, name)?;
    let user = User {
        role: change.role.unwrap_or(old.role),
        scopes: change.scopes.unwrap_or(old.scopes),
        password: password.unwrap_or(old.password),
        active: change.active.unwrap_or(old.active),
        version: old.version + 1,
        ..old
    };
    check(user.role, &user.scopes)?;
    let path = path(client, name);
    security::write(&*client.disk, &mut client.names, &path, &user)?;
    Ok(user.into())
}

/// Removes a user.
///
/// # Errors
/// Exit code 3: nobody knows the user.
pub fn delete(client: &mut Client, name: &str) -> Result<(), Failure> {
    let _lock = locked(client)?;
    let user = known(client, name)?;
    security::remove(&*client.disk, &path(client, &user.name))?;
    Ok(())
}

fn path(client: &Client, name: &str) -> std::path::PathBuf {
    client.layout.users().join(format!("{name}.json"))
}

fn known(client: &Client, name: &str) -> Result<User, Failure> {
    let missing = || {
        let error = format!("there is no user {}", quoted(name));
        Failure::new(Code::NotFound, error, "`orchestrator users list` shows all users")
    };
    if !is_name(name) {
        return Err(missing());
    }
    security::read(&*client.disk, &path(client, name))?.ok_or_else(missing)
}

fn check(role: Role, scopes: &[Scope]) -> Result<(), Failure> {
    let usage = |error: String| Failure::new(Code::Usage, error, "leave the scopes out, or give another role");
    check_scopes(role, scopes).map_err(usage)
}

/// A password as it is kept.
fn hashed(password: &str) -> Result<String, Failure> {
    let length = password.chars().count();
    if !PASSWORD.contains(&length) {
        let (least, most) = (PASSWORD.start(), PASSWORD.end());
        let error = format!("the password has {length} characters, expected {least} to {most}");
        return Err(Failure::new(Code::Usage, error, "a few words are long, and easy to remember"));
    }
    let hash = Argon2::default().hash_password(password.as_bytes());
    let hash = hash.map_err(|error| Failure::new(Code::Failed, format!("cannot hash the password: {error}"), ""))?;
    Ok(hash.to_string())
}

/// Whether a password is this user's. Where there is no user it takes as long, so that names cannot be found out by the clock.
#[must_use]
pub fn is_password_of(user: Option<&User>, password: &str) -> bool {
    const NOBODYS: &str =
        "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5bm9ib2R5bm9ib2R5$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    // No longer password was ever taken.
    let password = if password.len() <= 4 * PASSWORD.end() { password } else { "" };
    let kept = user.map_or(NOBODYS, |user| user.password.as_str());
    let matches =
        PasswordHash::new(kept).is_ok_and(|kept| Argon2::default().verify_password(password.as_bytes(), &kept).is_ok());
    matches && user.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_recognised_and_no_other() {
        let user = |password: &str| User {
            schema: SCHEMA,
            name: "ada".to_owned(),
            role: Role::Viewer,
            scopes: Vec::new(),
            password: hashed(password).unwrap(),
            active: true,
            version: 1,
            created_at: DateTime::UNIX_EPOCH,
        };
        let ada = user("correct horse battery");
        assert!(ada.password.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", ada.password);
        assert_ne!(ada.password, user("correct horse battery").password, "salted");
        assert!(is_password_of(Some(&ada), "correct horse battery"));
        assert!(!is_password_of(Some(&ada), "correct horse batterz"));
        assert!(!is_password_of(Some(&ada), ""));
        assert!(!is_password_of(None, "correct horse battery"));
        for bad in ["", "short", &"x".repeat(1_001)] {
            assert_eq!(hashed(bad).unwrap_err().code, Code::Usage);
        }
    }
}
