//! Explain: when a job runs next, or why it does not.

use chrono::{DateTime, SecondsFormat, TimeZone, Utc};
use serde::Serialize;

use super::{Client, Failure, view};
use crate::decide::catalog::Known;
use crate::decide::due::{Clockwork, ahead_until, upcoming};
use crate::decide::explain::{Reserved, Scene, why_job};
use crate::model::ids::JobName;
use crate::model::job::{Job, JobType};
use crate::model::state::{JobMark, State};
use crate::model::time::rfc3339;

/// How many due times are told.
const TOLD: usize = 5;

/// The answer (`docs/reference/formats.md`, "JSON shapes").
#[derive(Debug, Serialize)]
pub struct Answer {
    /// The job.
    pub job: JobName,
    /// Whether it may run.
    pub enabled: bool,
    /// Its next due times.
    pub next: Vec<Due>,
    /// Why it does not run, or not when one would expect it.
    pub reasons: Vec<String>,
}

/// A due time: in UTC, and as clocks in the job's zone show it.
#[derive(Debug, Serialize)]
pub struct Due {
    /// In UTC.
    pub at: String,
    /// As clocks in its zone show it.
    pub local: String,
    /// The zone.
    pub timezone: String,
}

/// When a job runs next, or why it does not.
///
/// # Errors
/// Exit code 3: nobody knows it.
pub fn explain(client: &Client, name: &str) -> Result<Answer, Failure> {
    let name = view::job_name(name)?;
    let programs = view::programs(client)?;
    let file = format!("{name}.toml");
    let errors: Vec<String> = programs
        .errors()
        .filter(|error| error.file == file)
        .map(|error| format!("Programs/{error} (hint: {})", error.hint))
        .collect();
    let job = match programs.catalog().look_up(&name) {
        Known::Good(job) => job,
        Known::Broken => {
            let answer = Answer { job: name, enabled: false, next: Vec::new(), reasons: errors };
            return Ok(answer);
        }
        Known::Unknown => return Err(view::no_such_job(name.as_str(), programs.catalog())),
    };
    let state = view::state(client)?.unwrap_or_default();
    let seen = view::seen(&view::devices(client)?, &state);
    let mut reasons = errors;
    let (catalog, now) = (programs.catalog(), client.now());
    let reserved = Reserved::new();
    let scene = Scene { catalog, state: &state, devices: &seen, now, reserved: &reserved, sees: &|_| true };
    reasons.extend(why_job(&job, scene));
    reasons.extend(ahead(client, &job, &state)?);
    let next = due_times(client, &job, &state)?.into_iter().map(|at| due(&job, at)).collect();
    Ok(Answer { job: name, enabled: job.enabled, next, reasons })
}

fn due(job: &Job, at: DateTime<Utc>) -> Due {
    let zone = match &job.kind {
        JobType::Timed(timing) => timing.schedule.zone(),
        JobType::Trigger | JobType::Always(_) | JobType::Idle(_) => chrono_tz::UTC,
    };
    let local = zone.from_utc_datetime(&at.naive_utc()).to_rfc3339_opts(SecondsFormat::Millis, false);
    Due { at: rfc3339(at), local, timezone: zone.name().to_owned() }
}

/// The next due times of a job; none if it has none, or is disabled.
fn due_times(client: &Client, job: &Job, state: &State) -> Result<Vec<DateTime<Utc>>, Failure> {
    let JobType::Timed(timing) = &job.kind else { return Ok(Vec::new()) };
    if !job.enabled {
        return Ok(Vec::new());
    }
    let volume = client.volume_id()?;
    let never = JobMark::default();
    let mark = state.jobs.get(&job.name).unwrap_or(&never);
    let clockwork = Clockwork { volume: &volume, job: &job.name, timing };
    Ok(upcoming(clockwork, mark, client.now().wall).take(TOLD).collect())
}

/// Why nothing is due although time passes: what was last due lies in the future.
fn ahead(client: &Client, job: &Job, state: &State) -> Result<Option<String>, Failure> {
    let (JobType::Timed(timing), Some(mark)) = (&job.kind, state.jobs.get(&job.name)) else { return Ok(None) };
    let volume = client.volume_id()?;
    let clockwork = Clockwork { volume: &volume, job: &job.name, timing };
    let until = ahead_until(clockwork, mark, client.now().wall);
    Ok(until.map(|until| {
        format!(
            "its last due time was {}: the volume's clock was set back since, and no due time before that comes again; \
             to begin anew, disable the job and enable it",
            rfc3339(until)
        )
    }))
}

/// When a job is due next.
///
/// # Errors
/// Exit code 4.
pub fn next_due(client: &Client, job: &Job, state: &State) -> Result<Option<DateTime<Utc>>, Failure> {
    Ok(due_times(client, job, state)?.into_iter().next())
}
