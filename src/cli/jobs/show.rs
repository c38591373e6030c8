//! `orchestrator jobs show`: one job's definition in the words of job files, every default filled in.

use serde::Serialize;

use super::super::out::printable;
use super::super::{Code, Context, Failure};
use super::validate::{located, tell_errors};
use crate::client::drop::Object;
use crate::client::jobs::show::Definition;
use crate::client::jobs::{file, mark};
use crate::model::job::Job;
use crate::model::trigger::Json;

pub(super) fn show(name: &str, context: &Context) -> Result<Code, Failure> {
    let file = file(&context.client, name)?;
    let job = match &file.read {
        Ok(job) => job,
        Err(errors) => {
            tell_errors(context, 1, &located(&file.job, errors))?;
            return Ok(Code::Failed);
        }
    };
    let mark = mark(&context.client, &file.job)?;
    let shown = Definition::new(job, &mark);
    if context.out.json {
        context.out.document(&shown)?;
        return Ok(Code::Done);
    }
    for (key, value) in pairs_of(&shown)? {
        let text = value.text();
        let text = match (key.as_str(), text) {
            ("retries", "null") => "unlimited".to_owned(),
            (_, "null") => "-".to_owned(),
            (_, text) => serde_json::from_str::<String>(text).unwrap_or_else(|_| text.to_owned()),
        };
        context.out.line(&format!("{key:<15} {}", printable(&text)))?;
    }
    Ok(Code::Done)
}

/// The definition of a job as one JSON document.
pub(super) fn document(job: &Job, context: &Context) -> Result<(), Failure> {
    let mark = mark(&context.client, &job.name)?;
    context.out.document(&Definition::new(job, &mark))
}

/// What is written as an object, key by key, each value as it is written.
fn pairs_of(value: &impl Serialize) -> Result<Vec<(String, Json)>, Failure> {
    let read = serde_json::to_string(value).and_then(|text| serde_json::from_str::<Object>(&text));
    read.map(|Object(pairs)| pairs)
        .map_err(|error| Failure::new(Code::Failed, format!("cannot write JSON: {error}"), ""))
}
