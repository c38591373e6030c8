//! What a trigger's text says: each key's value read, checked and refused with its place.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Datelike, Utc};
use serde_json::value::RawValue;

use super::super::config::TRIGGER_DEPTH;
use super::super::container::Container;
use super::super::ids::{BadName, JobName, RunId, Tag};
use super::super::job::{PRIORITY, container_from_json};
use super::super::json_scan::{self, Fault, Kind, Value, string_text};
use super::super::message::{self, did_you_mean, listed, quoted};
use super::super::time::{DURATION_RULE, parse_duration};
use super::{Cause, CausedBy, EXAMPLE, Json, Origin, Refusal, Target, Trigger};

/// The keys of a trigger.
pub(in crate::model) const KEYS: [&str; 13] = [
    "job", "command", "docker", "args", "kwargs", "priority", "tags", "time", "expires", "timeout", "id", "cause",
    "job_name",
];
/// The keys that only the orchestrator's own files have.
const OWN_KEYS: [&str; 2] = ["cause_run_id", "cause_result"];
/// What may be said of who asks: the rest is for files of the orchestrator's own making.
pub(in crate::model) const DROPPED: [Cause; 3] = [Cause::Trigger, Cause::Api, Cause::Manual];
/// The longest idempotency key, bytes.
pub(in crate::model) const ID_LIMIT: usize = 256;
/// How times are written, as messages quote it.
const TIME_RULE: &str = "an RFC 3339 time with an offset or Z, such as 2026-11-21T09:00:00Z";
/// How much of a wrong value is shown.
const VALUE_SHOWN: usize = 60;

/// Reads a trigger from a text that is not empty.
pub(super) fn trigger(text: &str, own: bool) -> Result<Trigger, Refusal> {
    let reader = Reader { text, own };
    let root = json_scan::scan(text).map_err(|fault| reader.refuse_fault(fault))?;
    reader.trigger(&root)
}

/// Reads values of one text, and knows where they stand.
struct Reader<'t> {
    text: &'t str,
    /// It is a file of the orchestrator's own making, or may be.
    own: bool,
}

impl<'t> Reader<'t> {
    fn trigger(&self, root: &Value) -> Result<Trigger, Refusal> {
        if root.kind != Kind::Object {
            let error = format!("found {}, expected an object", self.described(root));
            return Err(self.refuse(root.span.start, error, EXAMPLE));
        }
        let mut target: Option<(&'static str, Target)> = None;
        let (mut args, mut kwargs, mut tags) = (None, Vec::new(), BTreeSet::new());
        let (mut priority, mut not_before, mut expires, mut timeout, mut id) = (None, None, None, None, None);
        let mut container = None;
        let (mut cause, mut cause_run, mut cause_result) = (None, None, None);
        for member in &root.inside {
            let name = string_text(self.text, &member.key);
            let own = if self.own { &OWN_KEYS[..] } else { &[] };
            let Some(&name) = KEYS.iter().chain(own).find(|known| Some(**known) == name.as_deref()) else {
                return Err(self.unknown_key(member));
            };
            match name {
                "docker" => container = Some((member.key.start, self.container(member)?)),
                "args" => args = Some(self.args(member)?),
                "kwargs" => kwargs = self.kwargs(member)?,
                "priority" => priority = Some(self.priority(member)?),
                "tags" => tags = self.tags(member)?,
                "time" => not_before = self.time("time", "\"immediate\" or ", member)?,
                "expires" => expires = self.time("expires", "", member)?,
                "timeout" => timeout = Some(self.timeout(member)?),
                "id" => id = Some(self.id(member)?),
                "cause" => cause = Some(self.cause(member)?),
                "cause_run_id" => {
                    cause_run = RunId::parse(&self.string("cause_run_id", "the id of a run", member)?);
                }
                "cause_result" => {
                    cause_result = Some(self.cause_result(member)?);
                }
                _ => {
                    if let Some((first, _)) = target {
                        return Err(self.two_targets(first, name, member));
                    }
                    target = Some((name, self.target(name, member)?));
                }
            }
        }
        let Some((_, target)) = target else {
            let error = "found neither `job` nor `command`, expected one of them".to_owned();
            return Err(self.refuse(root.span.start, error, r#"say what to run: {"job": "NAME"}"#));
        };
        if let (Some((at, _)), Target::Job(_)) = (&container, &target) {
            let error = "found `docker` beside a job, expected it beside `command`".to_owned();
            return Err(self.refuse(*at, error, "whether a job runs in a container is said by its file"));
        }
        let container = container.map(|(_, container)| Arc::new(container));
        let by = cause_run.zip(cause_result).map(|(run, result)| CausedBy { run, result });
        let origin = cause.map(|cause| Origin { cause, by });
        Ok(Trigger { target, container, args, kwargs, priority, tags, not_before, expires, timeout, id, origin })
    }

    fn cause(&self, member: &Value) -> Result<Cause, Refusal> {
        let expected = format!("one of {}", listed(&DROPPED.map(Cause::as_str)));
        let word = self.string("cause", &expected, member)?;
        let cause = serde_json::from_value(serde_json::Value::from(&*word)).ok();
        cause.filter(|cause| self.own || DROPPED.contains(cause)).ok_or_else(|| {
            let error = format!("`cause` is {}, expected {expected}", quoted(&word));
            self.refuse(member.span.start, error, "leave it out: the result then says `trigger`")
        })
    }

    /// Programs are given it as a path: nothing but a result may be one.
    fn cause_result(&self, member: &Value) -> Result<String, Refusal> {
        let path = self.string("cause_result", "the path of a result", member)?;
        let parts: Vec<&str> = path.split('/').collect();
        let is_result = matches!(parts[..], ["Results", day, name] if !day.starts_with('.') && !name.starts_with('.') && name.ends_with(".json"));
        if is_result && !path.contains('\0') {
            return Ok(path.into_owned());
        }
        let error = format!("`cause_result` is {}, expected the path of a result", quoted(&path));
        Err(self.refuse(member.span.start, error, "it stands only in files of the orchestrator's own making"))
    }

    fn unknown_key(&self, member: &Value) -> Refusal {
        let Some(name) = string_text(self.text, &member.key) else {
            let error = format!("unknown key {}", self.excerpt(&member.key));
            return self.refuse(member.key.start, error, &format!("known are {}", listed(&KEYS)));
        };
        self.refuse(member.key.start, format!("unknown key {}", quoted(&name)), &did_you_mean(&name, &KEYS))
    }

    fn two_targets(&self, first: &str, second: &str, member: &Value) -> Refusal {
        let (error, hint) = if first != "command" && second != "command" {
            (
                format!(
                    "found `{second}` beside `{first}`, expected one of them: `job_name` is another name for `job`"
                ),
                "keep `job`",
            )
        } else {
            (
                format!("found `{second}` beside `{first}`, expected one of them"),
                "keep `job` to run a job of Programs/, or `command` to run a program without a job file",
            )
        };
        self.refuse(member.key.start, error, hint)
    }

    fn target(&self, key: &str, value: &Value) -> Result<Target, Refusal> {
        if key == "command" {
            return self.command(value).map(Target::Command);
        }
        let name = self.string(key, "the name of a job", value)?;
        let name = JobName::new(&name)
            .map_err(|bad| self.refuse_name(value, &bad, "a job's name is the stem of its file in Programs/"))?;
        Ok(Target::Job(name))
    }

    fn command(&self, value: &Value) -> Result<Vec<String>, Refusal> {
        let example = r#"write it as {"command": ["python3", "script.py"]}"#;
        let expected = "an array of strings: a program and its arguments";
        self.check("command", expected, Kind::Array, value)?;
        let Some(program) = value.inside.first() else {
            let error = format!("`command` is empty, expected {expected}");
            return Err(self.refuse(value.span.start, error, example));
        };
        let mut command = Vec::with_capacity(value.inside.len());
        for (at, word) in value.inside.iter().enumerate() {
            let what = format!("command[{at}]");
            command.push(self.argument(&what, &self.string(&what, "a string", word)?, word)?.to_owned());
        }
        if command.first().is_some_and(String::is_empty) {
            let error = "`command[0]` is an empty string, expected the name or path of a program".to_owned();
            return Err(self.refuse(program.span.start, error, example));
        }
        Ok(command)
    }

    fn container(&self, value: &Value) -> Result<Container, Refusal> {
        self.check("docker", "an object with an `image`", Kind::Object, value)?;
        container_from_json(&self.text[value.span.clone()])
            .map_err(|(error, hint)| self.refuse(value.span.start, format!("`docker`: {error}"), &hint))
    }

    fn args(&self, value: &Value) -> Result<Vec<Json>, Refusal> {
        self.check("args", "an array", Kind::Array, value)?;
        let mut args = Vec::with_capacity(value.inside.len());
        for (at, arg) in value.inside.iter().enumerate() {
            if arg.kind == Kind::String {
                let what = format!("args[{at}]");
                self.argument(&what, &self.string(&what, "a string", arg)?, arg)?;
            }
            args.push(self.json(arg)?);
        }
        Ok(args)
    }

    fn kwargs(&self, value: &Value) -> Result<Vec<(String, Json)>, Refusal> {
        self.check("kwargs", "an object", Kind::Object, value)?;
        let mut kwargs = Vec::with_capacity(value.inside.len());
        for member in &value.inside {
            let Some(name) = string_text(self.text, &member.key) else {
                return Err(self.refuse_surrogate("a key of `kwargs`", &member.key));
            };
            kwargs.push((name.into_owned(), self.json(member)?));
        }
        Ok(kwargs)
    }

    fn priority(&self, value: &Value) -> Result<i16, Refusal> {
        let rule = format!("an integer from {} to {}", PRIORITY.start(), PRIORITY.end());
        self.check("priority", &rule, Kind::Number, value)?;
        let written = &self.text[value.span.clone()];
        // `1.0` and `1e2` do not parse either: what is an integer to one writer and a float to another is neither here.
        match written.parse::<i16>() {
            Ok(priority) if PRIORITY.contains(&i64::from(priority)) => Ok(priority),
            _ => {
                let error = format!("`priority` is {}, expected {rule}", self.excerpt(&value.span));
                Err(self.refuse(
                    value.span.start,
                    error,
                    "write it without point and exponent; higher is claimed first",
                ))
            }
        }
    }

    fn tags(&self, value: &Value) -> Result<BTreeSet<Tag>, Refusal> {
        self.check("tags", "an array of tags", Kind::Array, value)?;
        let mut tags = BTreeSet::new();
        for (at, tag) in value.inside.iter().enumerate() {
            let name = self.string(&format!("tags[{at}]"), "a tag", tag)?;
            tags.insert(
                Tag::new(&name).map_err(|bad| {
                    self.refuse_name(tag, &bad, "a tag is the id of a device, or what --tags gave it")
                })?,
            );
        }
        Ok(tags)
    }

    fn time(&self, key: &str, or: &str, value: &Value) -> Result<Option<DateTime<Utc>>, Refusal> {
        let expected = format!("{or}{TIME_RULE}");
        let written = self.string(key, &expected, value)?;
        if written == "immediate" && !or.is_empty() {
            return Ok(None);
        }
        // chrono takes a typographic minus sign for an offset, which RFC 3339 does not.
        let read = |text: &str| DateTime::parse_from_rfc3339(text).ok().filter(|_| text.is_ascii());
        let Some(time) = read(&written) else {
            let hint = if read(&format!("{written}Z")).is_some() {
                format!("say which time zone it is in: {written}Z for UTC, or an offset such as {written}+01:00")
            } else if read(&format!("{written}T00:00:00Z")).is_some() {
                format!("add a time of day and an offset: {written}T00:00:00Z")
            } else {
                format!("write {TIME_RULE}")
            };
            let error = format!("`{key}` is {}, expected {expected}", quoted(&written));
            return Err(self.refuse(value.span.start, error, &hint));
        };
        let time = time.to_utc();
        // Names of files carry it in four digits for the year, so that they sort.
        if !(0..=9999).contains(&time.year()) {
            let error = format!("`{key}` is {}, expected a year from 0 to 9999 in UTC", quoted(&written));
            return Err(self.refuse(value.span.start, error, "write the time you mean"));
        }
        Ok(Some(time))
    }

    fn timeout(&self, value: &Value) -> Result<Duration, Refusal> {
        let expected = format!("{DURATION_RULE}, more than 0");
        let written = self.string("timeout", &expected, value)?;
        parse_duration(&written).filter(|timeout| !timeout.is_zero()).ok_or_else(|| {
            let error = format!("`timeout` is {}, expected {expected}", quoted(&written));
            self.refuse(value.span.start, error, "leave `timeout` out for the job's own")
        })
    }

    fn id(&self, value: &Value) -> Result<String, Refusal> {
        let expected = format!("a string of 1 to {ID_LIMIT} bytes");
        let id = self.string("id", &expected, value)?;
        if !(1..=ID_LIMIT).contains(&id.len()) {
            let error = format!("`id` has {} bytes, expected {expected}", id.len());
            return Err(self.refuse(value.span.start, error, "leave `id` out, or use a shorter key, such as a hash"));
        }
        Ok(id.into_owned())
    }

    /// The content of a string value.
    fn string(&self, what: &str, expected: &str, value: &Value) -> Result<Cow<'t, str>, Refusal> {
        self.check(what, expected, Kind::String, value)?;
        string_text(self.text, &value.span).ok_or_else(|| self.refuse_surrogate(&format!("`{what}`"), &value.span))
    }

    /// Checks a string that becomes part of a command line, where NUL ends a string.
    fn argument<'s>(&self, what: &str, argument: &'s str, value: &Value) -> Result<&'s str, Refusal> {
        if argument.contains('\0') {
            let error = format!("`{what}` contains a NUL character, expected text that can stand in a command line");
            return Err(self.refuse(value.span.start, error, "take out the \\u0000, or pass the text in `kwargs`"));
        }
        Ok(argument)
    }

    fn json(&self, value: &Value) -> Result<Json, Refusal> {
        RawValue::from_string(self.text[value.span.clone()].to_owned())
            .map(Json::from)
            .map_err(|bad| self.refuse(value.span.start, format!("expected JSON: {bad}"), EXAMPLE))
    }

    fn check(&self, what: &str, expected: &str, kind: Kind, value: &Value) -> Result<(), Refusal> {
        if value.kind == kind {
            return Ok(());
        }
        let error = format!("`{what}` is {}, expected {expected}", self.described(value));
        let hint = if value.kind == Kind::Null {
            format!("leave `{what}` out instead of null")
        } else {
            format!("write `{what}` as {expected}")
        };
        Err(self.refuse(value.span.start, error, &hint))
    }

    /// A value as messages name it: its type, and as much of it as helps.
    fn described(&self, value: &Value) -> String {
        let kind = match value.kind {
            Kind::Null => return "null".to_owned(),
            Kind::Boolean => "a boolean",
            Kind::Number => "a number",
            Kind::String => "a string",
            Kind::Array => "an array",
            Kind::Object => "an object",
        };
        format!("{kind} ({})", self.excerpt(&value.span))
    }

    fn excerpt(&self, span: &Range<usize>) -> String {
        message::excerpt(&self.text[span.clone()], VALUE_SHOWN)
    }

    fn refuse_name(&self, value: &Value, bad: &BadName, hint: &str) -> Refusal {
        self.refuse(value.span.start, message::bad_name(bad), hint)
    }

    fn refuse_surrogate(&self, what: &str, span: &Range<usize>) -> Refusal {
        let error = format!("{what} is {}, which has half of a surrogate pair, expected text", self.excerpt(span));
        self.refuse(span.start, error, "write the character itself, or both halves of its \\u escape")
    }

    fn refuse_fault(&self, fault: Fault) -> Refusal {
        match fault {
            Fault::Syntax { at, found, expected } => {
                let refusal =
                    self.refuse(at, format!("found {found}, expected {expected}"), syntax_hint(&self.text[at..]));
                Refusal { unfinished: true, ..refusal }
            }
            Fault::TooDeep { at } => {
                let error = format!(
                    "found more than {TRIGGER_DEPTH} levels of arrays and objects, expected at most {TRIGGER_DEPTH}"
                );
                self.refuse(at, error, "nest less, or pass the data as a string or in a file")
            }
            Fault::KeyTwice { key } => {
                let error = format!("found the key {} twice in one object, expected it once", self.excerpt(&key));
                self.refuse(key.start, error, "keep one of the two")
            }
        }
    }

    fn refuse(&self, at: usize, error: String, hint: &str) -> Refusal {
        let (line, column) = message::place(self.text, at);
        Refusal { error, hint: hint.to_owned(), line: Some(line), column: Some(column), unfinished: false }
    }
}

/// What people mean who write this in JSON.
fn syntax_hint(rest: &str) -> &'static str {
    match rest.as_bytes() {
        [] => "the text ends too early: was all of it written?",
        [b'\'', ..] => "strings and keys stand in double quotes",
        [b'}' | b']', ..] => "remove the comma before it, or add what is missing",
        [b'/' | b'#', ..] => "JSON has no comments",
        [b'N' | b'I' | b'T' | b'F' | b'u', ..] => "JSON knows true, false, null and finite numbers",
        _ => EXAMPLE,
    }
}
