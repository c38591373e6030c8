//! What a job file says: which keys there are, what each may hold, and what follows when one is not there.
//!
//! Each key of [`KEYS`] has its line in [`job`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use toml_edit::Table;

use super::super::ids::{JobName, PoolName, SecretName, Tag};
use super::super::message::{bad_name, quoted};
use super::super::time::show_duration;
use super::super::toml_read::{At, Problem, Reader};
use super::container::{container, limits};
use super::keys::{ON_LOST, OVERLAPS};
use super::timing::kind;
use super::{EXIT_CODES, Job, JobType, Mentioned, PRIORITY, Program, RETRIES, SECRET, SLOTS};

/// The keys that this version reads.
pub(in crate::model) const KEYS: [&str; 39] = [
    "type",
    "command",
    "file",
    "function",
    "docker",
    "limits",
    "args",
    "kwargs",
    "env",
    "pass_env",
    "tags",
    "priority",
    "slots",
    "overlap",
    "retries",
    "retry_on",
    "backoff",
    "backoff_max",
    "timeout",
    "stop_grace",
    "on_lost",
    "enabled",
    "time",
    "interval",
    "interval_minutes",
    "interval_seconds",
    "after_time",
    "before_time",
    "cron",
    "timezone",
    "jitter",
    "missed",
    "instances",
    "pool",
    "retry_elsewhere",
    "on_success",
    "on_failure",
    "after",
    "notify",
];

const COMMAND: &str = "an array of strings: a program and its arguments";
const COMMAND_HINT: &str = r#"write it as command = ["python3", "script.py"]"#;
const FILE_HINT: &str = "a job's file stands below Programs/, such as file = \"reports/daily.py\"";

/// What a file names that another has, and where, as a byte of the text.
pub(super) type Named = Vec<(Mentioned, usize, String)>;

/// Reads the keys of a job file.
pub(super) fn job(name: &JobName, text: &str, table: &Table) -> Result<(Job, Named), Vec<Problem>> {
    let mut reader = Reader::new(text, table);
    reader.only_keys(&KEYS);
    let kind = kind(&mut reader).unwrap_or(JobType::Trigger);
    let program = program(&mut reader);
    let default = Job::with_defaults(name.clone(), kind, program.unwrap_or(Program::Command(Vec::new())));
    let mut named = Named::new();
    let after = jobs(&mut reader, Mentioned::After, &mut named);
    if matches!(default.kind, JobType::Always(_) | JobType::Idle(_))
        && let Some(at) = reader.key("after")
    {
        let error = format!("found `after` in a job of type `{}`, expected it with another type", default.kind.word());
        reader.problem(at, error, "what runs by itself all the time waits for no other job");
    }
    let (backoff, backoff_max) = backoff(&mut reader, &default);
    let job = Job {
        args: args(&mut reader).unwrap_or_default(),
        kwargs: reader.json_table("kwargs").unwrap_or_default(),
        limits: limits(&mut reader),
        env: env(&mut reader).unwrap_or_default(),
        pass_env: pass_env(&mut reader).unwrap_or_default(),
        tags: tags(&mut reader).unwrap_or_default(),
        priority: reader.integer("priority", &PRIORITY).unwrap_or(default.priority),
        slots: reader.integer("slots", &SLOTS).unwrap_or(default.slots),
        overlap: reader.word("overlap", &OVERLAPS).unwrap_or(default.overlap),
        pool: pool(&mut reader, &mut named),
        retry_elsewhere: reader.boolean("retry_elsewhere").unwrap_or(default.retry_elsewhere),
        on_success: jobs(&mut reader, Mentioned::OnSuccess, &mut named),
        on_failure: jobs(&mut reader, Mentioned::OnFailure, &mut named),
        after,
        notify: notify(&mut reader),
        retries: reader.integer("retries", &RETRIES).unwrap_or(default.retries),
        retry_on: reader.integers("retry_on", &EXIT_CODES).map(BTreeSet::from_iter),
        backoff,
        backoff_max,
        timeout: timeout(&mut reader),
        stop_grace: reader.duration("stop_grace").map_or(default.stop_grace, |found| found.value),
        on_lost: reader.word("on_lost", &ON_LOST).unwrap_or(default.on_lost),
        enabled: reader.boolean("enabled").unwrap_or(default.enabled),
        ..default
    };
    let job = job.inside(container(&mut reader).map(Arc::new));
    // Where a value could not be read, the job holds a default; it leaves this function only if there was no such value.
    let problems = reader.into_problems();
    if problems.is_empty() { Ok((job, named)) } else { Err(problems) }
}

/// The names of other jobs.
fn jobs(reader: &mut Reader<'_>, of: Mentioned, named: &mut Named) -> Vec<JobName> {
    let hint = "a job's name is the stem of its file in Programs/";
    let job = |name: &str| JobName::new(name).map_err(|bad| bad_name(&bad));
    let found = reader.names_at(of.key(), "an array of names of jobs", hint, job).unwrap_or_default();
    named.extend(found.iter().map(|found| (of, found.at, found.value.to_string())));
    found.into_iter().map(|found| found.value).collect()
}

fn pool(reader: &mut Reader<'_>, named: &mut Named) -> Option<PoolName> {
    let At { at, value } = reader.string("pool", "the name of a pool of Programs/pools.toml")?;
    match PoolName::new(value) {
        Ok(pool) => {
            named.push((Mentioned::Pool, at, value.to_owned()));
            Some(pool)
        }
        Err(bad) => {
            reader.problem(
                at,
                format!("`pool`: {}", bad_name(&bad)),
                "pools stand in Programs/pools.toml: NAME = NUMBER",
            );
            None
        }
    }
}

fn notify(reader: &mut Reader<'_>) -> Option<String> {
    let expected = "the URL of a webhook: http:// or https://, a host, and no spaces";
    // The address is not repeated: it may be all the secret that the hook takes.
    let At { at, value } = reader.secret_string("notify", expected)?;
    let rest = value.strip_prefix("http://").or_else(|| value.strip_prefix("https://"));
    let host = rest.and_then(|rest| rest.split(['/', '?', '#']).next()).unwrap_or_default();
    if host.is_empty() || !value.chars().all(|c| c.is_ascii_graphic()) {
        let error = format!("`notify` is no such address, expected {expected}");
        reader.problem(at, error, "notify = \"https://example.org/hook\"");
    }
    Some(value.to_owned())
}

/// What the job executes. Every key of it is read in any case, so that each of their errors is told.
fn program(reader: &mut Reader<'_>) -> Option<Program> {
    let command = command(reader);
    let file = file(reader);
    let function = function(reader);
    let places = (reader.key("command"), reader.key("file"), reader.key("function"));
    match places {
        (Some(command), Some(file), _) => {
            let error = "found `file` and `command`, expected one of them".to_owned();
            reader.problem(
                command.max(file),
                error,
                "keep `file` to run a file of Programs/, `command` to run anything else",
            );
        }
        (_, None, Some(function)) => {
            let error = "found `function` without `file`, expected the Python file that it is in".to_owned();
            reader.problem(function, error, r#"add file = "SCRIPT.py""#);
        }
        (None, None, None) => {
            let error = "found neither `command` nor `file`, expected one of them".to_owned();
            reader.problem(0, error, r#"add file = "SCRIPT.py", or command = ["PROGRAM", "ARGUMENT"]"#);
        }
        (_, Some(_), Some(_)) | (Some(_), None, None) | (None, Some(_), None) => {}
    }
    match (command, file, places.2) {
        (Some(command), _, _) => Some(Program::Command(command)),
        (None, Some(file), None) => Some(Program::File(file.value)),
        (None, Some(file), Some(_)) => {
            if !file.value.ends_with(".py") {
                let error =
                    format!("`file` is {}, expected a file that ends in .py: `function` is in it", quoted(&file.value));
                reader.problem(
                    file.at,
                    error,
                    "only Python functions can be called; without `function` the file is run",
                );
            }
            function.map(|function| Program::Function { file: file.value, function })
        }
        (None, None, _) => None,
    }
}

fn command(reader: &mut Reader<'_>) -> Option<Vec<String>> {
    let words = reader.strings("command", COMMAND)?;
    for (what, word) in &words {
        no_nul(reader, what, *word);
    }
    match words.first() {
        Some((what, program)) if program.value.is_empty() => {
            let error = format!("`{what}` is an empty string, expected the name or path of a program");
            reader.problem(program.at, error, COMMAND_HINT);
        }
        Some(_) => {}
        None => {
            // Nothing is left too of an array whose elements were refused for their type.
            if let Some(at) = reader.empty_array("command") {
                reader.problem(at, format!("`command` is empty, expected {COMMAND}"), COMMAND_HINT);
            }
        }
    }
    Some(words.into_iter().map(|(_, word)| word.value.to_owned()).collect())
}

fn file(reader: &mut Reader<'_>) -> Option<At<String>> {
    let At { at, value } = reader.string("file", "a path below Programs/")?;
    let wrong = if value.is_empty() {
        "which is empty"
    } else if value.contains('\0') {
        "which contains a NUL character"
    } else if value.starts_with('/') {
        "which is absolute"
    } else if value.split('/').any(|part| part == "..") {
        "which leads out of a folder"
    } else if matches!(value.rsplit('/').next(), Some("" | ".")) {
        "which names a folder"
    } else {
        return Some(At { at, value: value.to_owned() });
    };
    reader.problem(at, format!("`file` is {}, {wrong}, expected a path below Programs/", quoted(value)), FILE_HINT);
    None
}

fn function(reader: &mut Reader<'_>) -> Option<String> {
    let At { at, value } = reader.string("function", "the name of a Python function")?;
    if is_identifier(value) {
        return Some(value.to_owned());
    }
    let error = format!("`function` is {}, expected the name of a Python function", quoted(value));
    let hint = if value.contains('.') {
        "name a function at the top of the file; methods and modules cannot be reached by dots"
    } else {
        "letters, digits and _, the first no digit, and no keyword"
    };
    reader.problem(at, error, hint);
    None
}

/// Whether Python could define a function of that name. Its letters are Unicode's, near enough: what Python would
/// refuse beyond that, it does not find in the file.
fn is_identifier(name: &str) -> bool {
    const KEYWORDS: [&str; 35] = [
        "False", "None", "True", "and", "as", "assert", "async", "await", "break", "class", "continue", "def", "del",
        "elif", "else", "except", "finally", "for", "from", "global", "if", "import", "in", "is", "lambda", "nonlocal",
        "not", "or", "pass", "raise", "return", "try", "while", "with", "yield",
    ];
    name.starts_with(|c: char| c == '_' || c.is_alphabetic())
        && name.chars().all(|c| c == '_' || c.is_alphanumeric())
        && !KEYWORDS.contains(&name)
}

fn args(reader: &mut Reader<'_>) -> Option<Vec<super::Json>> {
    let args = reader.json_array("args")?;
    for (what, found, _) in &args {
        if let Some(value) = found.value.as_str() {
            no_nul(reader, what, At { at: found.at, value });
        }
    }
    Some(args.into_iter().map(|(_, _, json)| json).collect())
}

fn env(reader: &mut Reader<'_>) -> Option<BTreeMap<String, String>> {
    let mut env = BTreeMap::new();
    for (name, found) in reader.members("env", "a table of strings")? {
        if let Err(bad) = variable(name.value) {
            reader.problem(name.at, format!("`env`: {bad}"), "rename the variable");
        }
        let what = format!("env.{}", quoted(name.value));
        let Some(value) = found.value.as_str() else {
            reader.wrong_type::<()>(&what, found, "a string: variables hold nothing else");
            continue;
        };
        no_nul(reader, &what, At { at: found.at, value });
        if let Some(Err(bad)) = value.strip_prefix(SECRET).map(SecretName::new) {
            let hint =
                "secret:NAME names a file of Common/Security/secrets; a value that begins so must be a secret itself";
            reader.problem(found.at, format!("`{what}`: {}", bad_name(&bad)), hint);
        }
        env.insert(name.value.to_owned(), value.to_owned());
    }
    Some(env)
}

fn pass_env(reader: &mut Reader<'_>) -> Option<BTreeSet<String>> {
    let hint = "name variables of the orchestrator, such as [\"SSL_CERT_FILE\"]";
    reader.names("pass_env", "an array of names of variables", hint, variable).map(BTreeSet::from_iter)
}

/// The name of an environment variable, if a program may be given one of that name.
fn variable(name: &str) -> Result<String, String> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err(format!("found {}, expected the name of a variable: not empty, without = and NUL", quoted(name)));
    }
    if name.starts_with("AIOS_") {
        return Err(format!("found {}, expected another name: AIOS_ is reserved for the orchestrator", quoted(name)));
    }
    Ok(name.to_owned())
}

fn tags(reader: &mut Reader<'_>) -> Option<BTreeSet<Tag>> {
    let hint = "a tag is the id of a device, or what its --tags gave it";
    let tag = |name: &str| Tag::new(name).map_err(|bad| bad_name(&bad));
    reader.names("tags", "an array of tags", hint, tag).map(BTreeSet::from_iter)
}

/// The first wait and the longest. If only one is given the other gives way: nobody who sets `backoff = "10m"` wants
/// five minutes, and nobody who sets `backoff_max = "100ms"` wants a second.
fn backoff(reader: &mut Reader<'_>, default: &Job) -> (Duration, Duration) {
    let first = reader.duration("backoff").map(|found| found.value);
    match (first, reader.duration("backoff_max")) {
        (Some(first), Some(most)) => {
            if most.value < first {
                let (most_text, first_text) = (show_duration(most.value), show_duration(first));
                let error = format!("`backoff_max` is {most_text}, expected at least `backoff`, which is {first_text}");
                reader.problem(most.at, error, "`backoff` is the first wait, `backoff_max` the longest");
            }
            (first, most.value)
        }
        (Some(first), None) => (first, default.backoff_max.max(first)),
        (None, Some(most)) => (default.backoff.min(most.value), most.value),
        (None, None) => (default.backoff, default.backoff_max),
    }
}

fn timeout(reader: &mut Reader<'_>) -> Option<Duration> {
    let At { at, value } = reader.duration("timeout")?;
    if value.is_zero() {
        reader.problem(
            at,
            "`timeout` is 0, expected more than 0".to_owned(),
            "leave `timeout` out for a run without one",
        );
    }
    Some(value)
}

/// Refuses text that cannot be handed to a program because it would end at its NUL.
fn no_nul(reader: &mut Reader<'_>, what: &str, text: At<&str>) {
    if text.value.contains('\0') {
        let error = format!("`{what}` contains a NUL character, expected text without");
        reader.problem(text.at, error, "take out the \\u0000");
    }
}
