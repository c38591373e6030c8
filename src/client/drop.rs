//! Dropping triggers: what a device would reject is refused here, before anything is written.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Client, Code, Failure, view};
use crate::decide::catalog::Known;
use crate::model::ids::{BadName, JobName, RunId, Tag};
use crate::model::job::command_job_name;
use crate::model::message::bad_name;
use crate::model::result::{Cause, pairs};
use crate::model::trigger::{Json, parse};
use crate::volume::atomic::write_new;
use crate::volume::os::sync_accepted;

/// A trigger, as it is written.
#[derive(Debug, Default, Serialize)]
pub struct Order {
    /// The job; or `command`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<JobName>,
    /// What to run without a job file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// The container that a command runs in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub docker: Option<serde_json::Value>,
    /// Positional arguments, in the place of the job's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Json>,
    /// Keyword arguments, merged over the job's.
    #[serde(with = "pairs", skip_serializing_if = "Vec::is_empty")]
    pub kwargs: Vec<(String, Json)>,
    /// Higher is claimed first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i16>,
    /// What the device must have, beside the job's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<Tag>,
    /// Not before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// Not started by then, it ends as expired.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// How long an attempt may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// The idempotency key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Who asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
}

impl Order {
    /// An order for nothing yet.
    #[must_use]
    pub fn by(cause: Cause) -> Self {
        Self { cause: Some(cause), ..Self::default() }
    }

    /// The bytes of the trigger, read once as a device will read them.
    ///
    /// # Errors
    /// Exit code 2: a device would reject it.
    pub fn bytes(&self) -> Result<Vec<u8>, Failure> {
        let mut bytes = serde_json::to_vec(self)
            .map_err(|error| Failure::new(Code::Usage, format!("cannot write the trigger as JSON: {error}"), ""))?;
        bytes.push(b'\n');
        match parse(&bytes) {
            Ok(_) => Ok(bytes),
            Err(refusal) => {
                Err(Failure::new(Code::Usage, format!("the trigger cannot be taken: {}", refusal.error), refusal.hint))
            }
        }
    }
}

/// A JSON object whose members keep their order, and their numbers as they were written.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Object(#[serde(with = "pairs")] pub Vec<(String, Json)>);

/// The name that a command goes by: its program's base name.
#[must_use]
pub fn name_of_program(command: &[String]) -> JobName {
    let program = command.first().map_or("", String::as_str);
    let base = Path::new(program).file_name().and_then(|name| name.to_str());
    command_job_name(base.unwrap_or(program))
}

/// The failure for a name that breaks the rule.
#[must_use]
pub fn of_bad_name(bad: &BadName) -> Failure {
    Failure::new(Code::Usage, bad_name(bad), "give a name that follows the rule")
}

/// Tags as they are written: each once.
///
/// # Errors
/// Exit code 2: one breaks the rule.
pub fn tags(texts: &[String]) -> Result<Vec<Tag>, Failure> {
    let tags: Result<std::collections::BTreeSet<Tag>, BadName> = texts.iter().map(|tag| Tag::new(tag)).collect();
    Ok(tags.map_err(|bad| of_bad_name(&bad))?.into_iter().collect())
}

/// Refuses a job that nobody knows, and gives what is worth saying of one that is known. While there is no job at all,
/// `Programs/` may not be mounted here: then it is left to the devices.
///
/// # Errors
/// Exit code 3: nobody knows it.
pub fn must_be_known(client: &Client, job: &JobName) -> Result<Option<String>, Failure> {
    let programs = view::programs(client)?;
    let catalog = programs.catalog();
    if catalog.is_empty() {
        let programs = client.layout.programs.display();
        return Ok(Some(format!("there is no job in {programs}: whether {job} is one is left to the devices")));
    }
    Ok(match catalog.look_up(job) {
        Known::Good(good) if !good.enabled => {
            Some(format!("the job {job} is disabled: its trigger waits until it is enabled"))
        }
        Known::Good(_) => None,
        Known::Broken => Some(format!(
            "Programs/{job}.toml has an error (`orchestrator jobs validate`): a device that has read a good version goes on with that one, any other waits until it is mended"
        )),
        Known::Unknown => return Err(view::no_such_job(job.as_str(), catalog)),
    })
}

/// Drops a trigger whose name carries its run's id, and says which run it is and what the file is called.
///
/// # Errors
/// Exit code 4.
pub fn drop_new(client: &mut Client, stem: &str, bytes: &[u8]) -> Result<(RunId, String), Failure> {
    for _ in 0..8 {
        let run = client.new_run_id();
        let name = format!("{stem}.{run}.json");
        let path = client.layout.triggers().join(&name);
        if write_new(&*client.disk, &mut client.names, &path, bytes)? {
            // What is acknowledged survives a power cut. Devices hear of the file before it is synced.
            if let Err(error) = sync_accepted(&client.layout.common, &path) {
                (client.note)(&format!(
                    "{name} is dropped, and not synced ({error}): a power cut in the next seconds may take it"
                ));
            }
            return Ok((run, name));
        }
    }
    let error = format!("cannot find an unused name in {}", client.layout.triggers().display());
    Err(Failure::new(Code::Volume, error, "see whether the clock of this machine stands still"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_goes_by_the_name_of_its_program() {
        let name = |program: &str| name_of_program(&[program.to_owned()]).to_string();
        assert_eq!(name("/usr/bin/env"), "env");
        assert_eq!(name("./tools/my tool.sh"), "my_tool.sh");
        assert_eq!(name(".."), "x..");
    }

    #[test]
    fn what_a_device_would_reject_is_refused_before_it_is_written() {
        assert_eq!(Order::default().bytes().unwrap_err().code, Code::Usage);
        let order = Order { command: vec!["true".to_owned()], ..Order::by(Cause::Manual) };
        assert_eq!(order.bytes().unwrap(), b"{\"command\":[\"true\"],\"cause\":\"manual\"}\n");
    }
}
