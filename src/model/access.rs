//! Who may do what: roles, scopes, and the records of API keys and users.
//!
//! A key is `aios_<id>_<secret>`. Of the secret, 256 random bits, only the SHA-256 is kept: what is random needs no slow hash.
//! Passwords are kept as argon2id.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ids::{JobName, Tag, is_name};
use super::time::{utc, utc_opt};

/// The schema of key and user files.
pub const SCHEMA: u32 = 1;
/// What begins a key.
pub const KEY_PREFIX: &str = "aios_";
/// How many characters the id of a key has.
pub const KEY_ID_LENGTH: usize = 12;
/// How many characters its secret has: 256 bits, 5 in each.
pub const KEY_SECRET_LENGTH: usize = 52;
/// How many scopes a key or user may have.
pub const SCOPES: usize = 64;

/// What somebody is here to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Looks.
    Viewer,
    /// A program that starts jobs and reads what became of them.
    Agent,
    /// Starts and stops everything that is defined, and runs commands.
    Operator,
    /// Everything: also what is defined, and who may do what.
    Admin,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Agent, Self::Operator, Self::Admin];

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Agent => "agent",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    /// Whether this role may do it.
    #[must_use]
    pub fn may(self, right: Right) -> bool {
        match right {
            Right::Look => true,
            Right::Start => match self {
                Self::Agent | Self::Operator | Self::Admin => true,
                Self::Viewer => false,
            },
            Right::Operate => match self {
                Self::Operator | Self::Admin => true,
                Self::Viewer | Self::Agent => false,
            },
            Right::Administer => match self {
                Self::Admin => true,
                Self::Viewer | Self::Agent | Self::Operator => false,
            },
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| format!("found {text:?}, expected viewer, agent, operator or admin"))
    }
}

/// What a role may be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Right {
    /// See jobs, runs, logs, devices.
    Look,
    /// Start jobs, cancel and retry their runs.
    Start,
    /// Run commands, restart, drain devices, remove what waits.
    Operate,
    /// Change job files, keys, users, limits; backups.
    Administer,
}

impl Right {
    /// All rights.
    pub const ALL: [Self; 4] = [Self::Look, Self::Start, Self::Operate, Self::Administer];

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Look => "look",
            Self::Start => "start",
            Self::Operate => "operate",
            Self::Administer => "administer",
        }
    }

    /// The least role that has it, as messages name it.
    #[must_use]
    pub fn least_role(self) -> Role {
        match self {
            Self::Look => Role::Viewer,
            Self::Start => Role::Agent,
            Self::Operate => Role::Operator,
            Self::Administer => Role::Admin,
        }
    }
}

/// What a key or user is limited to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Jobs whose name begins so; runs and logs of them.
    Job(String),
    /// Jobs that need this tag.
    Tag(Tag),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Job(prefix) => write!(f, "job:{prefix}"),
            Self::Tag(tag) => write!(f, "tag:{tag}"),
        }
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rule = || format!("found {text:?}, expected job:PREFIX or tag:TAG");
        match text.split_once(':') {
            Some(("job", prefix)) if is_name(prefix) => Ok(Self::Job(prefix.to_owned())),
            Some(("tag", tag)) => Tag::new(tag).map(Self::Tag).map_err(|_| rule()),
            Some(_) | None => Err(rule()),
        }
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

impl utoipa::PartialSchema for Scope {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        let text = utoipa::openapi::ObjectBuilder::new().schema_type(utoipa::openapi::Type::String);
        text.pattern(Some("^(job|tag):[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")).into()
    }
}

impl utoipa::ToSchema for Scope {}

/// Whether somebody with these scopes sees a job. Of scopes of one kind one must fit, of two kinds one of each; none limit nothing.
#[must_use]
pub fn sees(scopes: &[Scope], job: &JobName, tags: &mut dyn Iterator<Item = &Tag>) -> bool {
    let (mut by_name, mut by_tag) = (None, None);
    let tags: Vec<&Tag> = tags.collect();
    for scope in scopes {
        match scope {
            Scope::Job(prefix) => *by_name.get_or_insert(false) |= job.as_str().starts_with(prefix.as_str()),
            Scope::Tag(tag) => *by_tag.get_or_insert(false) |= tags.contains(&tag),
        }
    }
    by_name != Some(false) && by_tag != Some(false)
}

/// An API key, as `Common/Security/keys/<id>.json` keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Its id, which is no secret.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// What it is limited to.
    pub scopes: Vec<Scope>,
    /// SHA-256 of its secret, in hex.
    pub hash: String,
    /// The secret before the last rotation, while that one is still good.
    pub previous: Option<Previous>,
    /// Whether it is good at all.
    pub active: bool,
    /// When it was made.
    #[serde(with = "utc")]
    pub created_at: DateTime<Utc>,
    /// Until when it is good.
    #[serde(with = "utc_opt")]
    pub expires_at: Option<DateTime<Utc>>,
}

/// A secret that was replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    /// Its SHA-256, in hex.
    pub hash: String,
    /// Until when it is good.
    #[serde(with = "utc")]
    pub until: DateTime<Utc>,
}

impl Key {
    /// Whether it is good at this time.
    #[must_use]
    pub fn is_good(&self, now: DateTime<Utc>) -> bool {
        self.active && self.expires_at.is_none_or(|at| now < at)
    }

    /// The hashes of the secrets that open it at this time.
    pub fn hashes(&self, now: DateTime<Utc>) -> impl Iterator<Item = &str> {
        let previous = self.previous.as_ref().filter(move |previous| now < previous.until);
        std::iter::once(self.hash.as_str()).chain(previous.map(|previous| previous.hash.as_str()))
    }
}

/// A user, as `Common/Security/users/<name>.json` keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The name.
    pub name: String,
    /// What this user may do.
    pub role: Role,
    /// What this user is limited to.
    pub scopes: Vec<Scope>,
    /// The password as argon2id, in the PHC format.
    pub password: String,
    /// Whether this user may come in.
    pub active: bool,
    /// Grows with every change after which tokens that were given before are no longer good.
    pub version: u64,
    /// When this user was made.
    #[serde(with = "utc")]
    pub created_at: DateTime<Utc>,
}

/// Id and secret of a key as somebody shows it; `None`: it is no key.
#[must_use]
pub fn split_key(text: &str) -> Option<(&str, &str)> {
    let (id, secret) = text.strip_prefix(KEY_PREFIX)?.split_once('_')?;
    let is_word = |word: &str, length: usize| {
        word.len() == length && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    (is_word(id, KEY_ID_LENGTH) && is_word(secret, KEY_SECRET_LENGTH)).then_some((id, secret))
}

/// Why these scopes cannot go with this role.
///
/// # Errors
/// In a sentence.
pub fn check_scopes(role: Role, scopes: &[Scope]) -> Result<(), String> {
    if scopes.len() > SCOPES {
        return Err(format!("found {} scopes, expected at most {SCOPES}", scopes.len()));
    }
    if role == Role::Admin && !scopes.is_empty() {
        return Err("an admin may change keys and job files, so scopes would limit nothing".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_has_the_rights_of_those_below_it() {
        for role in Role::ALL {
            assert_eq!(role.as_str().parse(), Ok(role));
            let has: Vec<bool> = Right::ALL.iter().map(|right| role.may(*right)).collect();
            assert!(has.is_sorted_by(|more, less| more >= less), "{role}: {has:?}");
        }
        for right in Right::ALL {
            assert!(right.least_role().may(right));
            assert!(Role::ALL.iter().filter(|role| **role < right.least_role()).all(|role| !role.may(right)));
        }
        assert!("root".parse::<Role>().is_err());
    }

    #[test]
    fn scopes_limit_by_name_and_by_tag() {
        let scopes = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Scope>>();
        let tags = [Tag::new("gpu").unwrap(), Tag::new("nas").unwrap()];
        for (limits, job, has, seen) in [
            (&[][..], "backup", 0, true),
            (&["job:back"], "backup", 0, true),
            (&["job:back"], "report", 0, false),
            (&["job:back", "job:rep"], "report", 0, true),
            (&["tag:gpu"], "report", 2, true),
            (&["tag:gpu"], "report", 0, false),
            (&["tag:gpu", "job:back"], "report", 2, false),
            (&["tag:gpu", "job:back"], "backup", 2, true),
        ] {
            let job = JobName::new(job).unwrap();
            assert_eq!(sees(&scopes(limits), &job, &mut tags.iter().take(has)), seen, "{limits:?} {job} {has}");
        }
        for bad in ["", "job", "job:", "job:-x", "tag:", "tag:a b", "user:x", "JOB:x"] {
            assert!(bad.parse::<Scope>().is_err(), "{bad}");
        }
        assert_eq!("job:a.b".parse::<Scope>().unwrap().to_string(), "job:a.b");
    }

    #[test]
    fn only_what_has_the_form_of_a_key_is_one() {
        let secret = "a".repeat(KEY_SECRET_LENGTH);
        assert_eq!(split_key(&format!("aios_0123456789ab_{secret}")), Some(("0123456789ab", secret.as_str())));
        for bad in [
            String::new(),
            "aios_".to_owned(),
            format!("aios_0123456789ab_{secret}a"),
            format!("aios_0123456789a_{secret}"),
            format!("aios_../3456789ab_{secret}"),
            format!("AIOS_0123456789ab_{secret}"),
            format!("aios_0123456789AB_{secret}"),
        ] {
            assert_eq!(split_key(&bad), None, "{bad}");
        }
    }

    #[test]
    fn a_rotated_key_opens_with_both_secrets_for_a_while() {
        let at = |second: i64| DateTime::from_timestamp(second, 0).unwrap();
        let key = Key {
            schema: SCHEMA,
            id: "0123456789ab".to_owned(),
            name: "n".to_owned(),
            role: Role::Viewer,
            scopes: Vec::new(),
            hash: "new".to_owned(),
            previous: Some(Previous { hash: "old".to_owned(), until: at(100) }),
            active: true,
            created_at: at(0),
            expires_at: Some(at(200)),
        };
        assert_eq!(key.hashes(at(99)).collect::<Vec<_>>(), ["new", "old"]);
        assert_eq!(key.hashes(at(100)).collect::<Vec<_>>(), ["new"]);
        assert!(key.is_good(at(199)) && !key.is_good(at(200)));
        assert!(!Key { active: false, ..key }.is_good(at(0)));
    }
}
