//! `orchestrator trigger` and `exec`: drop a trigger, and wait for its end if asked to.

use std::path::Path;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};

use super::find::Run;
use super::follow::{Follower, LogTo, tell};
use super::times::{When, duration, when};
use super::{Code, Context, Failure, view};
use crate::decide::catalog::Known;
use crate::model::ids::{BadName, JobName, RunId, Tag};
use crate::model::job::command_job_name;
use crate::model::message::{bad_name, quoted};
use crate::model::result::pairs;
use crate::model::time::rfc3339;
use crate::model::trigger::{Json, parse};
use crate::volume::atomic::write_new;

/// Options of `trigger`.
#[derive(Debug, Clone, Args)]
pub(super) struct TriggerArgs {
    /// The job, by the name of its file in Programs.
    job: String,
    /// Positional arguments, each a string.
    #[arg(value_name = "ARG", allow_negative_numbers = true)]
    args: Vec<String>,
    /// A keyword argument, always a string; over those of --kwargs.
    #[arg(long, value_name = "K=V", value_parser = key_value)]
    kwarg: Vec<(String, String)>,
    /// Keyword arguments as a JSON object: numbers and lists too.
    #[arg(long, value_name = "JSON")]
    kwargs: Option<String>,
    /// -999 to 999; higher is claimed first [default: the job's].
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i16).range(-999..=999))]
    priority: Option<i16>,
    /// What the device must have, beside the job's own tags; a device's id pins it there.
    #[arg(long = "tag", value_name = "T")]
    tags: Vec<String>,
    /// Not before this time; or this long from now.
    #[arg(long, value_name = "TIME", value_parser = when, allow_hyphen_values = true)]
    at: Option<When>,
    /// End it as expired if its first attempt has not started by then.
    #[arg(long, value_name = "TIME", value_parser = when, allow_hyphen_values = true)]
    expires: Option<When>,
    /// Idempotency key: a run that has it already is the one that counts.
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    #[command(flatten)]
    wait: WaitArgs,
}

/// Options of `exec`.
#[derive(Debug, Clone, Args)]
pub(super) struct ExecArgs {
    /// The name it goes by [default: the program's].
    #[arg(long, value_name = "N")]
    name: Option<String>,
    /// What the device must have; a device's id pins it there.
    #[arg(long = "tag", value_name = "T")]
    tags: Vec<String>,
    /// Run it in a container of this image.
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    #[command(flatten)]
    wait: WaitArgs,
    /// The program and its arguments. It runs in Programs.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Debug, Clone, Args)]
struct WaitArgs {
    /// Follow the log, print the result, exit as the run did.
    #[arg(long)]
    wait: bool,
    /// Wait at most this long, then exit 124; the run goes on.
    #[arg(long, value_name = "D", value_parser = duration, requires = "wait")]
    timeout: Option<Duration>,
}

pub(super) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err(format!("found {}, expected KEY=VALUE", quoted(text))),
    }
}

/// A trigger, as it is written.
#[derive(Serialize)]
struct Written<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<&'a JobName>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    command: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    docker: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    args: &'a [String],
    #[serde(with = "pairs", skip_serializing_if = "Vec::is_empty")]
    kwargs: Vec<(String, Json)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<i16>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<Tag>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
}

pub(super) fn trigger(args: &TriggerArgs, context: &mut Context) -> Result<Code, Failure> {
    let job = view::job_name(&args.job)?;
    let now = context.now().wall;
    let written = Written {
        job: Some(&job),
        command: &[],
        docker: None,
        args: &args.args,
        kwargs: kwargs(args.kwargs.as_deref(), &args.kwarg)?,
        priority: args.priority,
        tags: tags(&args.tags)?,
        time: args.at.map(|at| rfc3339(at.ahead(now))),
        expires: args.expires.map(|at| rfc3339(at.ahead(now))),
        id: args.id.as_deref(),
    };
    let bytes = to_bytes(&written)?;
    context.make_volume()?;
    must_be_known(context, &job)?;
    drop_and_wait(context, job, &bytes, &args.wait)
}

pub(super) fn exec(args: &ExecArgs, context: &mut Context) -> Result<Code, Failure> {
    let written = Written {
        job: None,
        command: &args.command,
        docker: args.image.as_ref().map(|image| serde_json::json!({"image": image})),
        args: &[],
        kwargs: Vec::new(),
        priority: None,
        tags: tags(&args.tags)?,
        time: None,
        expires: None,
        id: None,
    };
    let bytes = to_bytes(&written)?;
    let job = match &args.name {
        Some(name) => JobName::new(name).map_err(|bad| of_bad_name(&bad))?,
        None => name_of_program(&args.command),
    };
    context.make_volume()?;
    drop_and_wait(context, job, &bytes, &args.wait)
}

/// The name that a command goes by: its program's base name.
fn name_of_program(command: &[String]) -> JobName {
    let program = command.first().map_or("", String::as_str);
    let base = Path::new(program).file_name().and_then(|name| name.to_str());
    command_job_name(base.unwrap_or(program))
}

fn of_bad_name(bad: &BadName) -> Failure {
    Failure::new(Code::Usage, bad_name(bad), "give a name that follows the rule")
}

fn tags(texts: &[String]) -> Result<Vec<Tag>, Failure> {
    let tags: Result<std::collections::BTreeSet<Tag>, BadName> = texts.iter().map(|tag| Tag::new(tag)).collect();
    Ok(tags.map_err(|bad| of_bad_name(&bad))?.into_iter().collect())
}

/// Keyword arguments: those of the JSON object in their order, numbers as they were written; single ones replace them.
fn kwargs(object: Option<&str>, single: &[(String, String)]) -> Result<Vec<(String, Json)>, Failure> {
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Object(#[serde(with = "pairs")] Vec<(String, Json)>);
    let mut all = match object {
        None => Vec::new(),
        Some(text) => {
            let read: Result<Object, _> = serde_json::from_str(text);
            let hint = "--kwargs '{\"temperature\": 0.2}'; for strings, --kwarg KEY=VALUE";
            read.map_err(|error| Failure::new(Code::Usage, format!("--kwargs is not a JSON object: {error}"), hint))?.0
        }
    };
    for (key, value) in single {
        let value = json_text(value)?;
        match all.iter_mut().find(|(known, _)| known == key) {
            Some(known) => known.1 = value,
            None => all.push((key.clone(), value)),
        }
    }
    Ok(all)
}

fn json_text(text: &str) -> Result<Json, Failure> {
    let raw: Result<Box<RawValue>, _> = to_raw_value(text);
    raw.map(Json::from)
        .map_err(|error| Failure::new(Code::Usage, format!("cannot write {} as JSON: {error}", quoted(text)), ""))
}

/// The bytes of a trigger, read once as a device will read them: what it would reject is refused here.
fn to_bytes(written: &Written<'_>) -> Result<Vec<u8>, Failure> {
    let mut bytes = serde_json::to_vec(written)
        .map_err(|error| Failure::new(Code::Usage, format!("cannot write the trigger as JSON: {error}"), ""))?;
    bytes.push(b'\n');
    match parse(&bytes) {
        Ok(_) => Ok(bytes),
        Err(refusal) => {
            Err(Failure::new(Code::Usage, format!("the trigger cannot be taken: {}", refusal.error), refusal.hint))
        }
    }
}

/// Refuses a job that nobody knows. While there is no job at all, `Programs/` may not be mounted here: then it is left to the devices.
fn must_be_known(context: &Context, job: &JobName) -> Result<(), Failure> {
    let programs = view::programs(context)?;
    let catalog = programs.catalog();
    if catalog.is_empty() {
        context.out.note(&format!(
            "there is no job in {}: whether {job} is one is left to the devices",
            context.layout.programs.display()
        ));
        return Ok(());
    }
    match catalog.look_up(job) {
        Known::Good(good) if !good.enabled => {
            context.out.note(&format!("the job {job} is disabled: its trigger waits until it is enabled"))
        }
        Known::Good(_) => {}
        Known::Broken => context.out.note(&format!(
            "Programs/{job}.toml has an error (`orchestrator jobs validate`): a device that has read a good version goes on with that one, any other waits until it is mended"
        )),
        Known::Unknown => return Err(view::no_such_job(job.as_str(), catalog)),
    }
    Ok(())
}

/// Drops a trigger whose name carries its run's id, and says which run it is.
pub(super) fn drop_new(context: &mut Context, stem: &str, bytes: &[u8]) -> Result<(RunId, String), Failure> {
    for _ in 0..8 {
        let run = context.new_run_id();
        let name = format!("{stem}.{run}.json");
        let path = context.layout.triggers().join(&name);
        if write_new(&*context.disk, &mut context.names, &path, bytes)? {
            return Ok((run, name));
        }
    }
    let error = format!("cannot find an unused name in {}", context.layout.triggers().display());
    Err(Failure::new(Code::Volume, error, "see whether the clock of this machine stands still"))
}

fn drop_and_wait(context: &mut Context, job: JobName, bytes: &[u8], wait: &WaitArgs) -> Result<Code, Failure> {
    let (run, name) = drop_new(context, job.as_str(), bytes)?;
    if !wait.wait {
        tell_run(context, &run, &name)?;
        return Ok(Code::Done);
    }
    context.out.note(&format!("run {run}"));
    let run = Run { id: run, job, held: None, entry: None, results: Vec::new() };
    let log = if context.out.json { LogTo::Nobody } else { LogTo::People };
    let outcome = Follower::new(context, run, log, 1).wait(wait.timeout)?;
    tell(context, &outcome)
}

/// Says which run a trigger is.
pub(super) fn tell_run(context: &Context, run: &RunId, trigger: &str) -> Result<(), Failure> {
    if context.out.json {
        return context.out.document(&json!({"run_id": run, "trigger": trigger}));
    }
    context.out.line(run.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keyword_argument_has_a_key() {
        assert_eq!(key_value("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(key_value("a="), Ok(("a".into(), String::new())));
        assert!(key_value("=b").is_err() && key_value("a").unwrap_err().contains("KEY=VALUE"));
    }

    #[test]
    fn single_kwargs_replace_those_of_the_object_and_numbers_stay_as_written() {
        let single = [("b".to_owned(), "x\"y".to_owned()), ("c".to_owned(), "1".to_owned())];
        let all = kwargs(Some(r#"{"a": 1.50, "b": [1e3]}"#), &single).unwrap();
        let shown: Vec<String> = all.iter().map(|(key, value)| format!("{key}:{}", value.text())).collect();
        assert_eq!(shown, ["a:1.50", r#"b:"x\"y""#, r#"c:"1""#]);
        for bad in ["", "[]", "{", "7"] {
            assert_eq!(kwargs(Some(bad), &[]).unwrap_err().code, Code::Usage, "{bad:?}");
        }
    }

    #[test]
    fn a_command_goes_by_the_name_of_its_program() {
        let name = |program: &str| name_of_program(&[program.to_owned()]).to_string();
        assert_eq!(name("/usr/bin/env"), "env");
        assert_eq!(name("./tools/my tool.sh"), "my_tool.sh");
        assert_eq!(name(".."), "x..");
    }

    #[test]
    fn what_a_device_would_reject_is_refused_before_it_is_written() {
        let written = Written {
            job: None,
            docker: None,
            command: &[],
            args: &[],
            kwargs: Vec::new(),
            priority: None,
            tags: Vec::new(),
            time: None,
            expires: None,
            id: None,
        };
        assert_eq!(to_bytes(&written).unwrap_err().code, Code::Usage);
        let command = ["true".to_owned()];
        let good = to_bytes(&Written { command: &command, ..written }).unwrap();
        assert_eq!(good, b"{\"command\":[\"true\"]}\n");
    }
}
