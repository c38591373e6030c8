//! A trigger: the JSON file that somebody dropped, read and checked.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::config::TRIGGER_LIMIT;
use super::container::Container;
use super::ids::{DeviceId, JobName, RunId, Tag};
use super::message;
pub use super::message::suggest;
use super::result::Cause;
pub(super) use read::{DROPPED, ID_LIMIT, KEYS};

mod read;

/// A JSON value kept as it was written, so that no number changes on its way to a program.
#[derive(Clone)]
pub struct Json(Arc<RawValue>);

impl Json {
    /// The value's JSON text, without surrounding white space.
    #[must_use]
    pub fn text(&self) -> &str {
        self.0.get()
    }
}

impl From<Box<RawValue>> for Json {
    fn from(value: Box<RawValue>) -> Self {
        Self(value.into())
    }
}

impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(to)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(from).map(Self::from)
    }
}

/// What a trigger asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A job of `Programs/`.
    Job(JobName),
    /// A program and its arguments, without a job file; never empty.
    Command(Vec<String>),
}

/// One trigger, as it was dropped.
#[derive(Debug, Clone, PartialEq)]
pub struct Trigger {
    /// What to run.
    pub target: Target,
    /// The container that a command runs in.
    pub container: Option<Arc<Container>>,
    /// Positional arguments; `None`: the job's.
    pub args: Option<Vec<Json>>,
    /// Keyword arguments, merged over the job's, in the order they were written.
    pub kwargs: Vec<(String, Json)>,
    /// −999…999; `None`: the job's.
    pub priority: Option<i16>,
    /// What the device must have, beside the job's own tags.
    pub tags: BTreeSet<Tag>,
    /// Not before this instant.
    pub not_before: Option<DateTime<Utc>>,
    /// If its first attempt has not started by then, it ends as `expired`.
    pub expires: Option<DateTime<Utc>>,
    /// How long an attempt may take, where the job does not give it less.
    pub timeout: Option<Duration>,
    /// Idempotency key.
    pub id: Option<String>,
    /// What made the run, if the file says so.
    pub origin: Option<Origin>,
}

/// What made a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// What kind of thing it was.
    pub cause: Cause,
    /// The run whose end it was.
    pub by: Option<CausedBy>,
}

/// The run that caused another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CausedBy {
    /// The run.
    pub run: RunId,
    /// Its result, relative to `Common/`.
    pub result: String,
}

impl Trigger {
    /// A run of a job that nobody asks for: on which device alone, if on one.
    #[must_use]
    pub fn own(job: &JobName, origin: Origin, only_on: Option<Tag>) -> Self {
        Self {
            target: Target::Job(job.clone()),
            container: None,
            args: None,
            kwargs: Vec::new(),
            priority: None,
            tags: only_on.into_iter().collect(),
            not_before: None,
            expires: None,
            timeout: None,
            id: None,
            origin: Some(origin),
        }
    }

    /// Returns the trigger without its arguments; `None`: it has none.
    #[must_use]
    pub fn without_arguments(&self) -> Option<Self> {
        let has_any = self.args.is_some() || !self.kwargs.is_empty();
        has_any.then(|| Self { args: None, kwargs: Vec::new(), ..self.clone() })
    }

    /// The one device that a run of a daemon or an idle job is for, if its job runs once on each.
    #[must_use]
    pub fn only_on(&self) -> Option<DeviceId> {
        self.origin.as_ref().filter(|origin| origin.cause.is_lasting())?;
        DeviceId::new(self.tags.first()?.as_str()).ok()
    }

    /// Returns the file of a run of a job, which [`parse_own`] reads as the same trigger. The times before and by which the first attempt
    /// had to begin are left out.
    #[must_use]
    pub fn own_text(&self) -> String {
        let job = match &self.target {
            Target::Job(job) => Some(job.as_str()),
            Target::Command(_) => None,
        };
        let by = self.origin.as_ref().and_then(|origin| origin.by.as_ref());
        let text = OwnText {
            job,
            args: self.args.as_deref(),
            kwargs: InOrder(&self.kwargs),
            priority: self.priority,
            tags: &self.tags,
            timeout: self.timeout.map(|timeout| format!("{}ms", timeout.as_millis())),
            id: self.id.as_deref(),
            cause: self.origin.as_ref().map(|origin| origin.cause.as_str()),
            cause_run_id: by.map(|by| &by.run),
            cause_result: by.map(|by| by.result.as_str()),
        };
        // Each part is text, a number, or JSON already.
        serde_json::to_string(&text).unwrap_or_default()
    }
}

/// The file that [`Trigger::own_text`] makes.
#[derive(Serialize)]
struct OwnText<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    args: Option<&'a [Json]>,
    #[serde(skip_serializing_if = "InOrder::is_empty")]
    kwargs: InOrder<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<i16>,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    tags: &'a BTreeSet<Tag>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause_run_id: Option<&'a RunId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause_result: Option<&'a str>,
}

/// Keyword arguments as one object, in the order they were written.
struct InOrder<'a>(&'a [(String, Json)]);

impl InOrder<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for InOrder<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// Why a trigger cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What was found and what was expected.
    pub error: String,
    /// What to do about it.
    pub hint: String,
    /// Where, counted from 1, if it has a place.
    pub line: Option<usize>,
    /// The column in characters of that line, counted from 1.
    pub column: Option<usize>,
    /// More bytes could still make it good: a writer may be at work.
    pub unfinished: bool,
}

/// What a hint shows to those who did not write a trigger at all.
const EXAMPLE: &str = r#"a trigger is one JSON object, such as {"job": "NAME"}"#;

/// Reads a trigger.
///
/// Everything [`Trigger`] says of its fields has been checked then. No text makes it panic or recurse, and its time
/// grows with the length of the text.
///
/// # Errors
/// The first thing that is wrong, as [`Refusal`]. It is `unfinished` as long as the bytes are no JSON: a writer may be
/// at work. JSON that is no trigger will not become one by more bytes.
pub fn parse(bytes: &[u8]) -> Result<Trigger, Refusal> {
    read_text(bytes, false)
}

/// Reads a trigger of the orchestrator's own folders, which may say what made its run.
///
/// # Errors
/// As [`parse`].
pub fn parse_own(bytes: &[u8]) -> Result<Trigger, Refusal> {
    read_text(bytes, true)
}

fn read_text(bytes: &[u8], own: bool) -> Result<Trigger, Refusal> {
    let text = decode(bytes)?;
    if text.trim_matches([' ', '\t', '\n', '\r']).is_empty() {
        return Err(Refusal {
            error: "found an empty file, expected a JSON object".to_owned(),
            hint: EXAMPLE.to_owned(),
            line: None,
            column: None,
            unfinished: true,
        });
    }
    read::trigger(text, own)
}

/// The text of a file, without a byte order mark.
fn decode(bytes: &[u8]) -> Result<&str, Refusal> {
    let refusal = |error, hint: &str, place: Option<(usize, usize)>, unfinished| Refusal {
        error,
        hint: hint.to_owned(),
        line: place.map(|(line, _)| line),
        column: place.map(|(_, column)| column),
        unfinished,
    };
    if bytes.len() as u64 > TRIGGER_LIMIT {
        let error = format!("found {} bytes, expected at most {TRIGGER_LIMIT}", bytes.len());
        let hint = "put large data into a file that the program can reach, and pass its path in `args`";
        return Err(refusal(error, hint, None, false));
    }
    if let Some(encoding) = utf16(bytes) {
        let error = format!("found {encoding}, expected UTF-8");
        let hint = format!("the file is encoded as {encoding}: save it as UTF-8");
        return Err(refusal(error, &hint, None, true));
    }
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|bad| {
        let (valid, rest) = bytes.split_at(bad.valid_up_to());
        let found = match bad.error_len() {
            Some(_) => format!("byte 0x{:02X}", rest.first().copied().unwrap_or_default()),
            None => "the end of the file within a character".to_owned(),
        };
        let error = format!("found {found}, expected UTF-8");
        let place = message::place(std::str::from_utf8(valid).unwrap_or_default(), valid.len());
        refusal(error, "save the file as UTF-8", Some(place), true)
    })
}

/// The name of a two-byte encoding, told by its mark, or by a JSON text's first characters, which are ASCII.
fn utf16(bytes: &[u8]) -> Option<&'static str> {
    let first = &bytes[..bytes.len().min(4)];
    let zeros_at = |odd: usize| first.iter().enumerate().all(|(at, byte)| (at % 2 == odd) == (*byte == 0));
    match first {
        [0xFF, 0xFE, ..] => Some("UTF-16 (little-endian)"),
        [0xFE, 0xFF, ..] => Some("UTF-16 (big-endian)"),
        [_, _, ..] if zeros_at(1) => Some("UTF-16 (little-endian, without a byte order mark)"),
        [_, _, ..] if zeros_at(0) => Some("UTF-16 (big-endian, without a byte order mark)"),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
