//! Status: what is, what waits and why, what comes next, what failed, and what hinders.

use std::cmp::Reverse;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

use super::explain::next_due;
use super::runs::{Row, failed_since};
use super::view::{self, Device, Lies};
use super::{Client, Failure, devices};
use crate::decide::catalog::Catalog;
use crate::decide::explain::{Reserved, Scene, daemon_problems, rank, rebuild_reason, reservations, why};
use crate::decide::queue::job_name;
use crate::decide::space::shortage;
use crate::model::device::Beat;
use crate::model::entry::FileKey;
use crate::model::ids::{DeviceId, JobName, RunId};
use crate::model::state::State;
use crate::model::time::{rfc3339, show_duration};
use crate::model::trigger::Target;
use crate::volume::inbox::is_trigger_name;
use crate::volume::processed::{self, Rejection};
use crate::volume::programs::Programs;
use crate::volume::{Context as _, found};

/// How many rejections are read.
const REJECTED: usize = 100;
/// How old a file that is no trigger must be to be told of.
const IGNORED_AGE: TimeDelta = TimeDelta::minutes(1);
/// How many runs are looked at for failures: one screen must come quickly.
pub const LOOKED_AT: usize = 2_000;
/// What belongs into the inbox beside triggers.
const OWN_FOLDERS: [&str; 3] = [".running", ".waiting", ".ids"];

/// One screen (`docs/reference/formats.md`, "JSON shapes").
#[derive(Debug, Serialize)]
pub struct Screen {
    /// Who is there.
    pub devices: Vec<devices::Row>,
    /// What runs.
    pub active: Vec<Row>,
    /// What waits, and why.
    pub waiting: Vec<Waiting>,
    /// Names in the inbox that are no triggers.
    pub ignored: Vec<String>,
    /// Triggers of the last day that could not be taken.
    pub rejected: Vec<Rejected>,
    /// The next due time of each job that has one, the soonest first.
    pub next: Vec<Next>,
    /// What failed in the last day.
    pub failed: Vec<Row>,
    /// What hinders.
    pub problems: Vec<String>,
    /// Whether all runs of the last day were looked at.
    #[serde(skip)]
    pub failed_is_all: bool,
    /// How many triggers of the last day could not be taken.
    #[serde(skip)]
    pub rejections: usize,
}

/// When a job is due next.
#[derive(Debug, Serialize)]
pub struct Next {
    /// The job.
    pub job: JobName,
    /// When.
    #[serde(with = "crate::model::time::utc")]
    pub at: DateTime<Utc>,
}

/// A trigger that could not be taken.
#[derive(Debug, Serialize)]
pub struct Rejected {
    /// The name of the file.
    pub trigger: String,
    /// As which run it would have been known.
    pub run_id: RunId,
    /// What is wrong with it.
    pub error: String,
    /// What to do.
    pub hint: String,
}

/// Something in the inbox that nobody holds.
#[derive(Debug, Serialize)]
pub struct Waiting {
    /// The name of the file.
    pub trigger: String,
    /// Its run, if it is a trigger.
    pub run_id: Option<RunId>,
    /// Its job, likewise.
    pub job: Option<JobName>,
    /// What it waits for.
    pub reason: String,
    #[serde(skip)]
    rank: (Reverse<i16>, Option<RunId>),
    /// Whether it is a command without a job file.
    #[serde(skip)]
    pub command: bool,
    /// Since when it could run, as far as its own time goes.
    #[serde(skip)]
    pub since: Option<DateTime<Utc>>,
}

impl Waiting {
    /// Its place in the order of all that waits, as text that sorts likewise.
    #[must_use]
    pub fn place(&self) -> String {
        let (Reverse(priority), run) = &self.rank;
        let run = run.as_ref().map_or("", RunId::as_str);
        format!("{:04}.{run}.{}", 999 - i32::from(*priority), self.trigger)
    }
}

/// What is, and what hinders.
///
/// # Errors
/// Exit code 4.
pub fn look(client: &Client) -> Result<Screen, Failure> {
    let mut problems = Vec::from_iter(of_space(client));
    let programs = programs(client, &mut problems);
    // Before the state: what is claimed in between is then active rather than nowhere.
    let lying = view::waiting(client)?;
    let state = view::state(client)?;
    let devices = view::devices(client)?;
    // A volume that no device has used yet has no state.
    if state.is_none() && !devices.is_empty() {
        problems
            .push("state.json is missing or damaged; the next device that starts or works makes it anew".to_owned());
    }
    let state = state.unwrap_or_default();
    problems.extend(of_devices(&devices, &state));
    let seen = view::seen(&devices, &state);
    problems.extend(rebuild_reason(&state, &seen));
    let (catalog, now) = (programs.catalog(), client.now());
    let reserved = Reserved::new();
    let scene = Scene { catalog, state: &state, devices: &seen, now, reserved: &reserved, sees: &|_| true };
    problems.extend(of_daemons(client, catalog, &devices, &state));
    let waiting = waiting(&lying, scene);
    if !waiting.is_empty() && !devices.iter().any(|device| device.alive) {
        let wait =
            if waiting.len() == 1 { "a trigger waits".to_owned() } else { format!("{} triggers wait", waiting.len()) };
        problems.push(format!("{wait} and no device is alive: start one with `orchestrator run`"));
    }
    let active = state.runs.iter().filter(|(_, held)| held.device.is_some()).map(|(id, held)| Row::of_held(id, held));
    let since = client.now().wall - TimeDelta::days(1);
    let (failed, failed_is_all) = failed_since(client, since, LOOKED_AT)?;
    let (rejected, rejections) = processed::rejected_since(&*client.disk, &client.layout, since, REJECTED)?;
    let rejected = rejected.into_iter().map(|(run_id, Rejection { name, error, hint, .. })| Rejected {
        trigger: name,
        run_id,
        error,
        hint,
    });
    Ok(Screen {
        rejected: rejected.collect(),
        rejections,
        active: active.collect(),
        devices: devices::rows(&devices, &state),
        waiting,
        ignored: ignored(client)?,
        next: next(client, programs.catalog(), &state)?,
        failed,
        problems,
        failed_is_all,
    })
}

/// Says that Common's file system has too little room, which a device may be unable to say itself.
fn of_space(client: &Client) -> Option<String> {
    let common = &client.layout.common;
    let space = client.disk.space(common).ok()?;
    let shortage = shortage(&space, None)?;
    let common = common.display();
    Some(format!("{common}: {shortage}; hint: free space there (df -h, df -i): devices claim nothing new without it"))
}

/// The job files; what is wrong with them is a problem and no reason to say nothing of the rest.
fn programs(client: &Client, problems: &mut Vec<String>) -> Programs {
    match view::programs(client) {
        Ok(programs) => {
            problems.extend(programs.errors().map(|error| format!("Programs/{error} (hint: {})", error.hint)));
            programs
        }
        Err(failure) => {
            problems.push(format!("{} (hint: {})", failure.error, failure.hint));
            Programs::default()
        }
    }
}

/// What devices say of themselves, and what their silence says.
#[must_use]
pub fn of_devices(devices: &[Device], state: &State) -> Vec<String> {
    let mut problems = Vec::new();
    for Device { beat, alive, silent } in devices {
        if *alive {
            problems.extend(beat.problems.iter().map(|problem| format!("{}: {problem}", beat.device)));
            continue;
        }
        if *silent {
            problems.push(format!(
                "{}: its process {} lives on {}, and its heartbeat has stood still for a lease: the others take its runs over; \
                 hint: is Common full, read-only or very slow? `orchestrator doctor` looks",
                beat.device, beat.pid, beat.host
            ));
        }
        let holds = state.runs.load(&beat.device).runs as usize;
        if holds > 0 {
            let runs = if holds == 1 { "a run".to_owned() } else { format!("{holds} runs") };
            problems.push(format!(
                "{} is dead and holds {runs}: another device takes over once its lease is over",
                beat.device
            ));
        } else if !beat.left && !beat.holds.is_empty() {
            problems.push(format!(
                "{} died with work at about {}: others have taken it over (hint: start it again, or `orchestrator devices forget {}`)",
                beat.device,
                rfc3339(beat.at),
                beat.device
            ));
        }
    }
    problems.extend(unequal_leases(devices));
    let known = |id: &DeviceId| devices.iter().any(|device| device.beat.device == *id);
    let lost: std::collections::BTreeSet<_> = state.runs.devices().filter(|id| !known(id)).collect();
    problems.extend(lost.into_iter().map(|id| format!("{id} holds runs and has no heartbeat")));
    problems
}

/// Returns the problems of daemons.
#[must_use]
pub fn of_daemons(client: &Client, catalog: &Catalog, devices: &[Device], state: &State) -> Vec<String> {
    let (seen, reserved) = (view::seen(devices, state), Reserved::new());
    daemon_problems(Scene { catalog, state, devices: &seen, now: client.now(), reserved: &reserved, sees: &|_| true })
}

/// Warns where living devices have different leases: the longest decides how soon a death is noticed.
fn unequal_leases(devices: &[Device]) -> Option<String> {
    let living = || devices.iter().filter(|device| device.alive).map(|device| &device.beat);
    let shortest = living().min_by_key(|beat| beat.lease_ms)?;
    let longest = living().max_by_key(|beat| beat.lease_ms)?;
    let shown = |beat: &Beat| format!("{} has {}", beat.device, show_duration(Duration::from_millis(beat.lease_ms)));
    (shortest.lease_ms != longest.lease_ms).then(|| {
        format!(
            "devices have different leases: {}, {}; a device counts as dead after its own or the observer's, whichever is longer: give all the same --lease",
            shown(shortest),
            shown(longest)
        )
    })
}

/// What waits and why, in the order in which it will be taken.
pub(super) fn waiting(lying: &[(FileKey, Lies)], scene: Scene<'_>) -> Vec<Waiting> {
    let reserved = reservations(view::entries(lying), scene);
    let scene = Scene { reserved: &reserved, ..scene };
    let mut waiting: Vec<Waiting> = lying.iter().filter_map(|(key, lies)| waits(key, lies, scene)).collect();
    waiting.sort_by(|a, b| a.rank.cmp(&b.rank));
    waiting
}

fn waits(key: &FileKey, lies: &Lies, scene: Scene<'_>) -> Option<Waiting> {
    let Scene { catalog, state, .. } = scene;
    let trigger = key.name.to_string_lossy().into_owned();
    let other = |run: Option<RunId>, reason: String| Waiting {
        trigger: trigger.clone(),
        rank: (Reverse(0), run.clone()),
        command: false,
        since: None,
        run_id: run,
        job: None,
        reason,
    };
    match lies {
        Lies::Waits(entry) if state.runs.get(&entry.run).is_some_and(|held| held.device.is_some()) => None,
        Lies::Waits(entry) => Some(Waiting {
            trigger: entry.dropped_name().unwrap_or_else(|| "-".to_owned()),
            run_id: Some(entry.run.clone()),
            job: Some(job_name(entry)),
            reason: why(entry, scene),
            rank: {
                let (priority, run) = rank(entry, catalog);
                (priority, Some(run))
            },
            command: matches!(entry.trigger.target, Target::Command(_)),
            since: Some(entry.run.time()).max(entry.not_before()).max(entry.trigger.not_before),
        }),
        Lies::Refused(run, refusal) => {
            Some(other(Some(run.clone()), format!("it cannot be taken and is about to be rejected: {}", refusal.error)))
        }
        Lies::Unfinished => {
            Some(other(None, "it is no JSON (yet), or cannot be read: it may still be written".to_owned()))
        }
    }
}

fn next(client: &Client, catalog: &Catalog, state: &State) -> Result<Vec<Next>, Failure> {
    let mut next = Vec::new();
    for (name, job) in &catalog.jobs {
        next.extend(next_due(client, job, state)?.map(|at| Next { job: name.clone(), at }));
    }
    next.sort_by(|a, b| (a.at, &a.job).cmp(&(b.at, &b.job)));
    Ok(next)
}

/// The file that keeps an empty folder in a repository.
const KEEPS_FOLDER: &str = ".gitkeep";

/// Names in the inbox that nobody will take.
fn ignored(client: &Client) -> Result<Vec<String>, Failure> {
    let folder = client.layout.triggers();
    let now = client.now().wall;
    let is_old = |name: &std::ffi::OsString| {
        client.disk.stat(&folder.join(name)).is_ok_and(|meta| now - meta.changed >= IGNORED_AGE)
    };
    let names = found(client.disk.list(&folder)).on("list", &folder)?.unwrap_or_default();
    let is_own = |name: &std::ffi::OsString| name == KEEPS_FOLDER || OWN_FOLDERS.iter().any(|own| name == own);
    let strange = names.into_iter().filter(|name| !is_trigger_name(name) && !is_own(name));
    let mut ignored: Vec<String> = strange.filter(is_old).map(|name| name.to_string_lossy().into_owned()).collect();
    ignored.sort();
    Ok(ignored)
}
