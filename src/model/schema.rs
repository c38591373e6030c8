//! The JSON Schemas (draft 2020-12) of job and trigger files, for editors and for whoever writes such files by program.
//!
//! They are made from what the readers themselves go by: the lists of keys, the bounds, the words, the types and their keys.
//! A schema never refuses what its reader takes. A reader refuses more: what a schema cannot say.

use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

use super::ids::NAME_PATTERN;
use super::job::keys::{DOCKER_KEYS, JOB_KEYS, Key, Shape, foreign_keys};
use super::job::{PRIORITY, TYPES};
use super::result::Cause;
use super::trigger::{DROPPED, ID_LIMIT, KEYS as TRIGGER_KEYS};

const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";
const NO_NUL: &str = "^[^\\u0000]*$";
const CLOCK: &str = "^([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?$";
const DURATION: &str = "^[0-9]+(ms|s|m|h|d)$";
const NO_DURATION: &str = "^0+(ms|s|m|h|d)$";
/// Absolute, out of the folder, or a folder.
const NO_FILE: &str = "^/|(^|/)\\.\\.(/|$)|(^|/)\\.?$";
/// ASCII that no name in Python has; what other letters there are is Python's matter.
const FUNCTION: &str = "^[^\\u0000-@\\[-\\^`{-\\u007f][^\\u0000-/:-@\\[-\\^`{-\\u007f]*$";
const URL: &str = "^https?://[!-\"$-.0->@-~][!-~]*$";
const VARIABLE: &str = "^[^=\\u0000]+$";
const SECRET: &str = "^secret:[A-Za-z0-9][A-Za-z0-9._-]{0,63}$";
const RESERVED: &str = "^AIOS_";
const SIZE: &str = "^[0-9]+[kmg]?$";
const IMAGE: &str = "^[A-Za-z0-9][A-Za-z0-9._/:@-]{0,511}$";
/// The name of a volume or a network.
const PLAIN: &str = "^[A-Za-z0-9][A-Za-z0-9_.-]{0,254}$";
const USER: &str = "^[A-Za-z0-9][A-Za-z0-9_.-]*(:[A-Za-z0-9][A-Za-z0-9_.-]*)?$";
const VOLUME: &str = "^[/A-Za-z0-9][^:]*:/[^:]+(:r[ow])?$";
const TMPFS: &str = "^/[^:]+(:[A-Za-z0-9=,%_]*)?$";
const OWN_LABELS: &str = "^(aios|com\\.docker|io\\.podman)\\.";
const TIME: &str =
    "^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})$";

/// The keys without which a type is none; `interval` has three ways to say it.
const NEEDS: [(&str, &[&str]); 3] =
    [("daily", &["time"]), ("random_daily", &["after_time", "before_time"]), ("cron", &["cron"])];
const INTERVALS: [&str; 3] = ["interval", "interval_minutes", "interval_seconds"];

/// The schema of `Programs/<job>.toml`.
#[must_use]
pub fn job() -> Value {
    let properties = properties(&JOB_KEYS);
    json!({
        "$schema": DRAFT,
        "title": "A job of AIOS",
        "description": "Programs/<job>.toml: one file, one job; its name is the file's stem.",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
        "oneOf": [{"required": ["command"]}, {"required": ["file"]}],
        "dependentRequired": {"function": ["file"]},
        "if": {"required": ["function"]},
        "then": {"properties": {"file": {"pattern": "\\.py$"}}},
        "allOf": TYPES.map(|(word, _)| of_type(word)),
    })
}

/// The schema of a file in `Common/Triggers`.
#[must_use]
pub fn trigger() -> Value {
    let properties: Map<String, Value> = TRIGGER_KEYS.iter().map(|key| ((*key).to_owned(), of_trigger(key))).collect();
    let targets = ["job", "job_name", "command"].map(|key| json!({"required": [key]}));
    json!({
        "$schema": DRAFT,
        "title": "A trigger of AIOS",
        "description": "A JSON file dropped into Common/Triggers: it asks for one run.",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
        "oneOf": targets,
        "dependentRequired": {"docker": ["command"]},
    })
}

fn properties(keys: &[Key]) -> Map<String, Value> {
    let property = |key: &Key| {
        let mut value = of_shape(&key.shape);
        describe(&mut value, key.says, key.example);
        (key.name.to_owned(), value)
    };
    keys.iter().map(property).collect()
}

/// A table with keys of its own.
fn table(keys: &[Key], required: Option<&str>) -> Value {
    let required: Vec<&str> = required.into_iter().collect();
    let mut table =
        json!({"type": "object", "additionalProperties": false, "properties": properties(keys), "required": required});
    if keys.iter().any(|key| key.name == "engine") {
        table["if"] = json!({"properties": {"engine": {"const": "swarm"}}, "required": ["engine"]});
        table["then"] = in_swarm();
    }
    table
}

/// What a container in a swarm must have, and cannot have.
fn in_swarm() -> Value {
    json!({
        "properties": {"network": {"not": {"const": "none"}}, "keep_warm": false, "pull": false, "gpus": false},
        "required": ["network"],
    })
}

fn describe(value: &mut Value, says: &str, example: &str) {
    value["description"] = says.into();
    if let Ok(example) = serde_json::from_str::<Value>(example) {
        value["examples"] = json!([example]);
    }
}

/// What holds for jobs of one type alone.
fn of_type(word: &str) -> Value {
    let mut is_type = json!({"properties": {"type": {"const": word}}});
    // Where no type is said it is the first.
    if word != "trigger" {
        is_type["required"] = json!(["type"]);
    }
    let mut without: Map<String, Value> = foreign_keys(word).map(|key| (key.to_owned(), false.into())).collect();
    if matches!(word, "always" | "idle") {
        without.insert("after".to_owned(), false.into());
    }
    let mut then = json!({"properties": without});
    if let Some((_, needs)) = NEEDS.iter().find(|(name, _)| *name == word) {
        then["required"] = json!(needs);
    }
    if word == "interval" {
        then["oneOf"] = json!(INTERVALS.map(|key| json!({"required": [key]})));
    }
    json!({"if": is_type, "then": then})
}

fn of_shape(shape: &Shape) -> Value {
    match shape {
        Shape::Word(words) => json!({"type": "string", "enum": words}),
        Shape::Clock => text(CLOCK),
        Shape::Duration { zero: true } => text(DURATION),
        Shape::Duration { zero: false } => {
            json!({"type": "string", "pattern": DURATION, "not": {"pattern": NO_DURATION}})
        }
        Shape::Number => json!({"type": "number", "exclusiveMinimum": 0}),
        Shape::Integer(range) => integer(range),
        Shape::IntegerOr(range, word) => json!({"anyOf": [integer(range), {"const": word}]}),
        Shape::Boolean => json!({"type": "boolean"}),
        Shape::Cron | Shape::Zone => text("[^\\s]"),
        Shape::Command => command(),
        Shape::File => json!({"type": "string", "pattern": NO_NUL, "not": {"pattern": NO_FILE}}),
        Shape::Function => text(FUNCTION),
        Shape::Url => text(URL),
        Shape::Name => text(NAME_PATTERN),
        Shape::Names(_) => json!({"type": "array", "items": text(NAME_PATTERN)}),
        Shape::Variables => json!({"type": "array", "items": variable()}),
        Shape::Environment => {
            // A secret's name, or anything else.
            let value = json!({"type": "string", "pattern": NO_NUL, "if": {"pattern": "^secret:"}, "then": {"pattern": SECRET}});
            json!({"type": "object", "propertyNames": variable(), "additionalProperties": value})
        }
        Shape::Values => values(),
        Shape::Table => json!({"type": "object"}),
        Shape::Integers(range) => json!({"type": "array", "items": integer(range)}),
        Shape::Size => text(SIZE),
        Shape::Image => text(IMAGE),
        Shape::Network => json!({"type": "string", "pattern": PLAIN, "not": {"const": "host"}}),
        Shape::User => text(USER),
        Shape::Gpus(range) => {
            let ids = json!({"type": "array", "items": text(PLAIN)});
            json!({"anyOf": [integer(range), {"const": "all"}, ids]})
        }
        Shape::Volumes => json!({"type": "array", "items": text(VOLUME)}),
        Shape::Tmpfs => json!({"type": "array", "items": text(TMPFS)}),
        Shape::Labels => {
            let name = json!({"minLength": 1, "not": {"pattern": OWN_LABELS}});
            json!({"type": "object", "propertyNames": name, "additionalProperties": {"type": "string"}})
        }
        Shape::Keys(keys, required) => table(keys, *required),
    }
}

fn of_trigger(key: &str) -> Value {
    let time = text(TIME);
    let (mut value, says, example) = match key {
        "job" => (text(NAME_PATTERN), "A job of Programs.", r#""hello""#),
        "job_name" => (text(NAME_PATTERN), "Another name for `job`.", r#""hello""#),
        "command" => (command(), "A program and its arguments: run this without a job file.", r#"["uname", "-a"]"#),
        "docker" => (
            // A command has no next run that a container could be kept for.
            table(
                &DOCKER_KEYS.iter().filter(|key| key.name != "keep_warm").cloned().collect::<Vec<_>>(),
                Some("image"),
            ),
            "The container that a `command` runs in.",
            r#"{"image": "debian:bookworm-slim"}"#,
        ),
        "args" => (values(), "Positional arguments; they replace the job's.", r#"["world", 3]"#),
        "kwargs" => (json!({"type": "object"}), "Keyword arguments, merged over the job's.", r#"{"top": 5}"#),
        "priority" => (integer(&PRIORITY), "Higher is claimed first [default: the job's].", "10"),
        "tags" => (
            json!({"type": "array", "items": text(NAME_PATTERN)}),
            "What the device must have, beside the job's own tags; a device's id pins it there.",
            r#"["gpu"]"#,
        ),
        "time" => (
            json!({"anyOf": [{"const": "immediate"}, time]}),
            "Not before this time, with an offset or Z [default: immediate].",
            r#""2026-11-21T09:00:00Z""#,
        ),
        "expires" => (
            time,
            "If its first attempt has not started by this time, with an offset or Z, it ends as expired.",
            r#""2026-11-21T10:00:00+01:00""#,
        ),
        "timeout" => (
            of_shape(&Shape::Duration { zero: false }),
            "How long an attempt may take, if that is less than the job's own timeout; SIGTERM then, SIGKILL later.",
            r#""30s""#,
        ),
        "id" => (
            json!({"type": "string", "minLength": 1, "maxLength": ID_LIMIT}),
            "Idempotency key: while a run with it exists or ended within the last day, another trigger with it starts nothing.",
            r#""invoice-4711""#,
        ),
        "cause" => (
            json!({"enum": DROPPED.map(Cause::as_str)}),
            "Who asks, as the result will show it [default: trigger].",
            r#""trigger""#,
        ),
        _ => (json!({}), "", ""),
    };
    describe(&mut value, says, example);
    value
}

fn text(pattern: &str) -> Value {
    json!({"type": "string", "pattern": pattern})
}

fn integer(range: &RangeInclusive<i64>) -> Value {
    json!({"type": "integer", "minimum": range.start(), "maximum": range.end()})
}

fn variable() -> Value {
    json!({"type": "string", "pattern": VARIABLE, "not": {"pattern": RESERVED}})
}

fn command() -> Value {
    let program = json!({"type": "string", "minLength": 1, "pattern": NO_NUL});
    json!({"type": "array", "minItems": 1, "prefixItems": [program], "items": text(NO_NUL)})
}

/// Anything, but no string that could not stand in a command line.
fn values() -> Value {
    json!({"type": "array", "items": {"pattern": NO_NUL}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::JobName;
    use crate::model::job::parse;

    fn read(text: &str) -> Result<(), Vec<String>> {
        let read = parse(&JobName::new("j").unwrap(), "j.toml", text);
        read.map(|_| ()).map_err(|errors| errors.into_iter().map(|error| error.error).collect())
    }

    #[test]
    fn every_key_of_the_readers_is_in_its_schema_with_words_and_an_example() {
        let keys = |schema: &Value| schema["properties"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let sorted = |keys: &[&str]| {
            let mut keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
            keys.sort();
            keys
        };
        let (job, trigger) = (job(), trigger());
        assert_eq!(keys(&job), sorted(&crate::model::job::KEYS), "a new key has its line in model/job/keys.rs");
        assert_eq!(keys(&trigger), sorted(&TRIGGER_KEYS));
        for (name, property) in [&job, &trigger].into_iter().flat_map(|it| it["properties"].as_object().unwrap()) {
            assert!(property["description"].as_str().is_some_and(|says| says.ends_with('.')), "{name}");
            assert!(property["examples"][0] != Value::Null && property.as_object().unwrap().len() > 2, "{name}");
        }
    }

    #[test]
    fn each_example_is_good_where_its_key_may_stand() {
        for key in &JOB_KEYS {
            let value = crate::model::job::from_json::from_json(key.example).unwrap();
            let line = format!("{} = {value}\n", key.name);
            let texts = TYPES.iter().map(|(word, _)| {
                let type_line = if key.name == "type" { String::new() } else { format!("type = \"{word}\"\n") };
                let needs = NEEDS.iter().find(|(name, _)| name == word).map_or(&[][..], |(_, needs)| needs);
                let needs = needs.iter().chain(INTERVALS.iter().take(usize::from(*word == "interval")));
                let program = if key.name == "command" { "" } else { "file = \"a.py\"\n" };
                let more: String = needs
                    .filter(|need| **need != key.name && !(key.name.starts_with("interval") && **need == "interval"))
                    .map(|need| format!("{need} = {}\n", JOB_KEYS.iter().find(|it| it.name == *need).unwrap().example))
                    .chain((key.name == "type").then(|| "time = \"09:00\"\n".to_owned()))
                    .chain((key.name != "file").then(|| program.to_owned()))
                    .collect();
                read(&format!("{type_line}{line}{more}"))
            });
            let outcomes: Vec<_> = texts.collect();
            assert!(outcomes.iter().any(Result::is_ok), "{}: {outcomes:?}", key.name);
        }
    }

    #[test]
    fn a_type_needs_what_its_reader_misses() {
        for (word, _) in TYPES {
            let missed = read(&format!("file = \"a\"\ntype = \"{word}\"\n")).err().unwrap_or_default();
            let missed: Vec<&str> = missed.iter().filter_map(|error| error.split('`').nth(1)).collect();
            let then = &of_type(word)["then"];
            let needs: Vec<&str> =
                then["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let needs = if word == "interval" { vec!["interval"] } else { needs };
            assert_eq!(needs, missed, "{word}");
            assert_eq!(then["oneOf"].is_array(), word == "interval");
            let after = read(&format!("file = \"a\"\ntype = \"{word}\"\nafter = [\"b\"]\n")).err().unwrap_or_default();
            let is_refused = after.iter().any(|error| error.contains("`after`"));
            assert_eq!(then["properties"]["after"] == json!(false), is_refused, "{word}");
        }
    }
}
