//! `orchestrator restart`: another attempt of what runs, wherever it runs.

use clap::Args;

use super::{Code, Context, Failure};
use crate::client::restart::{self, Asked};

/// Options of `restart`.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub(super) struct RestartArgs {
    /// The active runs of this job.
    job: Option<String>,
    /// The active runs of every job.
    #[arg(long)]
    all: bool,
}

pub(super) fn restart(args: &RestartArgs, context: &Context) -> Result<Code, Failure> {
    let client = &context.client;
    client.need_volume()?;
    let job = args.job.as_deref().map(|name| restart::known(client, name)).transpose()?;
    let asked = restart::restart(client, &|name, _| job.as_ref().is_none_or(|job| job == name))?;
    if context.out.json {
        context.out.document(&asked)?;
    } else if asked.is_empty() {
        context.out.note("nothing of it is active");
    }
    for Asked { run_id, job, attempt, device } in asked.iter().filter(|_| !context.out.json) {
        let where_to = device.as_ref().map_or_else(|| "due now".to_owned(), |device| format!("on {device}"));
        context.out.line(&format!("{run_id} {job} attempt {attempt} {where_to}"))?;
    }
    Ok(Code::Done)
}
