//! `orchestrator trigger` and `exec`: drop a trigger, and wait for its end if asked to.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};

use super::follow::{LogTo, Printer, tell};
use super::times::{When, duration, when};
use super::{Code, Context, Failure};
use crate::client::drop::{Object, Order, drop_new, must_be_known, name_of_program, of_bad_name, tags};
use crate::client::find::Run;
use crate::client::follow::Follower;
use crate::client::view;
use crate::model::ids::{JobName, RunId};
use crate::model::message::quoted;
use crate::model::result::Cause;
use crate::model::time::rfc3339;
use crate::model::trigger::Json;

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

pub(super) fn trigger(args: &TriggerArgs, context: &mut Context) -> Result<Code, Failure> {
    let job = view::job_name(&args.job)?;
    let now = context.client.now().wall;
    let order = Order {
        job: Some(job.clone()),
        args: args.args.iter().map(|arg| json_text(arg)).collect::<Result<_, _>>()?,
        kwargs: kwargs(args.kwargs.as_deref(), &args.kwarg)?,
        priority: args.priority,
        tags: tags(&args.tags)?,
        time: args.at.map(|at| rfc3339(at.ahead(now))),
        expires: args.expires.map(|at| rfc3339(at.ahead(now))),
        id: args.id.clone(),
        ..Order::by(Cause::Manual)
    };
    let bytes = order.bytes()?;
    context.make_volume()?;
    if let Some(note) = must_be_known(&context.client, &job)? {
        context.out.note(&note);
    }
    drop_and_wait(context, job, &bytes, &args.wait)
}

pub(super) fn exec(args: &ExecArgs, context: &mut Context) -> Result<Code, Failure> {
    let order = Order {
        command: args.command.clone(),
        docker: args.image.as_ref().map(|image| json!({"image": image})),
        tags: tags(&args.tags)?,
        ..Order::by(Cause::Manual)
    };
    let bytes = order.bytes()?;
    let job = match &args.name {
        Some(name) => JobName::new(name).map_err(|bad| of_bad_name(&bad))?,
        None => name_of_program(&args.command),
    };
    context.make_volume()?;
    drop_and_wait(context, job, &bytes, &args.wait)
}

/// Keyword arguments: those of the JSON object in their order, numbers as they were written; single ones replace them.
fn kwargs(object: Option<&str>, single: &[(String, String)]) -> Result<Vec<(String, Json)>, Failure> {
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

fn drop_and_wait(context: &mut Context, job: JobName, bytes: &[u8], wait: &WaitArgs) -> Result<Code, Failure> {
    let (run, name) = drop_new(&mut context.client, job.as_str(), bytes)?;
    if !wait.wait {
        tell_run(context, &run, &name)?;
        return Ok(Code::Done);
    }
    context.out.note(&format!("run {run}"));
    let run = Run { id: run, job, held: None, entry: None, results: Vec::new() };
    let log = if context.out.json { LogTo::Nobody } else { LogTo::People };
    let client = &context.client;
    let outcome = Follower::new(client, run, 1).wait(client, &mut Printer::new(context, log), wait.timeout)?;
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
}
