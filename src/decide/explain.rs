//! Why something waits: the answer that people ask a scheduler for most.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};

use super::agenda::rests_until;
use super::catalog::{Catalog, Known};
use super::queue::job_name;
use super::reserve::{self, Room};
use crate::model::container::{DOCKER_TAG, SWARM_TAG};
use crate::model::entry::{Entry, Source};
use crate::model::ids::{DeviceId, JobName, RunId, Tag};
use crate::model::job::{Job, JobType, Overlap, command_job_name, for_command};
use crate::model::limits::CGROUP_TAG;
use crate::model::result::Cause;
use crate::model::schedule::Instances;
use crate::model::state::{Held, State};
use crate::model::time::{Moment, rfc3339};
use crate::model::trigger::{Origin, Target, Trigger};

/// A device, as somebody who asks sees it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its id.
    pub device: DeviceId,
    /// Whether it lives.
    pub alive: bool,
    /// It takes no new work.
    pub drained: bool,
    /// What Common's file system has too little of for it to take new work, in words.
    pub low_on: Option<String>,
    /// What it has.
    pub tags: BTreeSet<Tag>,
    /// How much it runs at once.
    pub slots: u32,
    /// How many of them are taken.
    pub busy: u32,
    /// The newest revision of the state that it has worked through.
    pub revision: u64,
}

impl Seen {
    /// Returns whether it takes new work.
    fn takes_work(&self) -> bool {
        self.alive && !self.drained && self.slots > 0 && self.low_on.is_none()
    }
}

/// Higher priority first, then the older run.
pub type Rank = (Reverse<i16>, RunId);

/// The runs for which devices reserve their free slots, by device.
pub type Reserved = BTreeMap<DeviceId, Reservation>;

/// A device reserves its free slots for a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// The run, and its place among all that waits.
    pub rank: Rank,
    /// Its job.
    pub job: JobName,
    /// Until this instant, if it does not find room before.
    pub until: DateTime<Utc>,
}

/// What reasons are found in, and for whom.
#[derive(Clone, Copy)]
pub struct Scene<'a> {
    /// The job files.
    pub catalog: &'a Catalog,
    /// Who holds which run.
    pub state: &'a State,
    /// The devices.
    pub devices: &'a [Seen],
    /// Now.
    pub now: Moment,
    /// For which runs devices reserve their free slots.
    pub reserved: &'a Reserved,
    /// Of which jobs runs are named to who asks.
    pub sees: &'a dyn Fn(&JobName) -> bool,
}

/// Why this entry is not running, in a sentence.
#[must_use]
pub fn why(entry: &Entry, scene: Scene<'_>) -> String {
    let Scene { catalog, state, devices, now, .. } = scene;
    let name = job_name(entry);
    let job = match &entry.trigger.target {
        Target::Command(argv) => {
            Arc::new(for_command(command_job_name(&entry.stem()), argv.clone(), entry.trigger.container.clone()))
        }
        Target::Job(_) => match catalog.look_up(&name) {
            Known::Good(job) => job,
            Known::Broken => {
                return format!(
                    "Programs/{name}.toml has an error (`orchestrator jobs validate`): it waits until that is mended, or for a device that has read a good version"
                );
            }
            Known::Unknown if catalog.is_empty() => {
                return format!("there is no job {name}, and Programs/ holds no job at all: is it mounted?");
            }
            Known::Unknown => {
                return format!(
                    "there is no job {name} in Programs/; it is rejected once every living device has looked for it for 10 s and none has it"
                );
            }
        },
    };
    if !job.enabled {
        return format!("the job {name} is disabled (enabled = false in Programs/{name}.toml)");
    }
    rebuild_reason(state, devices)
        .or_else(|| time_reason(entry, now))
        .or_else(|| device_reason(entry, &job, devices))
        .or_else(|| overlap_reason(entry, &job, state))
        .or_else(|| pool_reason(&job, scene))
        .or_else(|| room_reason(entry, &job, scene))
        .unwrap_or_else(|| "it is about to be claimed".to_owned())
}

/// Why a job does not run now, in sentences; none: nothing keeps it from its next due time.
#[must_use]
pub fn why_job(job: &Job, scene: Scene<'_>) -> Vec<String> {
    let Scene { state, devices, now, .. } = scene;
    let name = &job.name;
    if !job.enabled {
        return vec![format!("it is disabled (enabled = false in Programs/{name}.toml)")];
    }
    let mut reasons: Vec<String> = unable(&job.tags.iter().collect(), job.slots, devices).into_iter().collect();
    let open: Vec<_> = state.runs.of_job(name).filter(|(_, held)| !held.command).collect();
    reasons.extend(open.iter().map(|(run, held)| place_of(run, held)));
    match &job.kind {
        JobType::Trigger if job.after.is_empty() => reasons.push("it runs when it is triggered".to_owned()),
        JobType::Trigger | JobType::Timed(_) => {}
        JobType::Always(instances) | JobType::Idle(instances) => {
            reasons.extend(instances_reason(*instances, &open, devices, job));
            reasons.extend(rest_reason(job, state, now));
        }
    }
    if matches!(job.kind, JobType::Idle(_)) && open.is_empty() {
        reasons.push("it runs on a device that has had nothing else to do for a second".to_owned());
    }
    reasons.extend(after_reasons(job, scene));
    reasons.extend(pool_reason(job, scene));
    reasons.extend(rebuild_reason(state, devices));
    reasons
}

/// Returns what a rebuild of the state waits for, before which nothing is claimed, in a sentence. `None`: none is going on.
#[must_use]
pub fn rebuild_reason(state: &State, devices: &[Seen]) -> Option<String> {
    let rebuilt = state.rebuilt?;
    let behind = devices.iter().filter(|device| device.alive && device.revision < rebuilt);
    let behind: Vec<&str> = behind.map(|device| device.device.as_str()).collect();
    let waits_for = if behind.is_empty() {
        "for what lies in Triggers/.running and no device holds".to_owned()
    } else {
        format!("until these devices have worked through it: {}", behind.join(", "))
    };
    Some(format!("the state was lost and is being rebuilt; it waits {waits_for}, and nothing is claimed meanwhile"))
}

/// The number of attempts in a row that must have ended within a minute before a daemon counts as a problem.
const CRASHES: u32 = 3;

/// Returns what is wrong with daemons, in sentences: which of them end again and again, and which are wanted and run nowhere.
#[must_use]
pub fn daemon_problems(scene: Scene<'_>) -> Vec<String> {
    let Scene { catalog, state, devices, now, .. } = scene;
    let mut problems = Vec::new();
    for job in catalog.jobs.values().filter(|job| job.enabled) {
        let JobType::Always(instances) = job.kind else { continue };
        let name = &job.name;
        let is_daemon = |held: &Held| held.cause == Cause::Always && !held.command;
        let open: Vec<(&RunId, &Arc<Held>)> = state.runs.of_job(name).filter(|(_, held)| is_daemon(held)).collect();
        // One that has lived for longer by now is well again.
        let is_young = |held: &Held| held.device.is_none() || now.wall - held.claimed_at < TimeDelta::minutes(1);
        let crashing = open.iter().filter(|(_, held)| held.retried >= CRASHES && is_young(held));
        problems.extend(crashing.map(|(run, held)| {
            let times = held.retried;
            format!("the daemon {name} ends again and again: {times} times in a row so far (hint: `orchestrator runs logs {run}`)")
        }));
        let wanted = match instances {
            Instances::Count(count) => count as usize,
            Instances::Every => {
                with_tags(&job.tags.iter().collect(), devices).filter(|device| device.takes_work()).count()
            }
        };
        let lives =
            |held: &Held| devices.iter().any(|device| device.alive && held.device.as_ref() == Some(&device.device));
        let running = open.iter().filter(|(_, held)| lives(held)).count();
        if running < wanted
            && let Some(reason) = why_absent(job, scene)
        {
            problems.push(format!("the daemon {name} is wanted and not there ({running} of {wanted}): {reason}"));
        }
    }
    problems
}

/// Returns the reason for which no device can take a daemon now; `None`: one is about to.
fn why_absent(job: &Job, scene: Scene<'_>) -> Option<String> {
    let run = RunId::new(scene.now.wall, 0);
    let wanted = Entry::due(run, 0, Trigger::own(&job.name, Origin { cause: Cause::Always, by: None }, None));
    device_reason(&wanted, job, scene.devices)
        .or_else(|| rest_reason(job, scene.state, scene.now))
        .or_else(|| pool_reason(job, scene))
        .or_else(|| room_reason(&wanted, job, scene))
}

fn place_of(run: &RunId, held: &Held) -> String {
    match &held.device {
        Some(device) => format!("{run} runs on {device} (attempt {})", held.attempt),
        None => format!("{run} waits for attempt {}", held.attempt),
    }
}

fn instances_reason(
    instances: Instances,
    open: &[(&RunId, &Arc<Held>)],
    devices: &[Seen],
    job: &Job,
) -> Option<String> {
    let wanted = match instances {
        Instances::Count(count) => count as usize,
        Instances::Every => with_tags(&job.tags.iter().collect(), devices).filter(|device| device.slots > 0).count(),
    };
    let lasting = open.iter().filter(|(_, held)| held.cause.is_lasting()).count();
    (lasting < wanted).then(|| format!("{lasting} of {wanted} instances are there"))
}

fn rest_reason(job: &Job, state: &State, now: Moment) -> Option<String> {
    let until = rests_until(job, state.jobs.get(&job.name)?).filter(|until| *until > now.wall)?;
    Some(format!("it rests until {} after its last run", rfc3339(until)))
}

fn after_reasons(job: &Job, Scene { state, sees, .. }: Scene<'_>) -> Vec<String> {
    let own = state.jobs.get(&job.name).and_then(|mark| mark.last_run_at);
    let is_missing = |name: &&JobName| {
        let success = state.jobs.get(name).and_then(|mark| mark.last_success.as_ref());
        success.is_none_or(|success| Some(success.at) <= own)
    };
    let since = own.map_or_else(|| "yet".to_owned(), |own| format!("since its own newest run at {}", rfc3339(own)));
    let shown = |name: &JobName| if sees(name) { name.to_string() } else { "a job before it".to_owned() };
    job.after.iter().filter(is_missing).map(|name| format!("{} has not succeeded {since}", shown(name))).collect()
}

fn pool_reason(job: &Job, scene: Scene<'_>) -> Option<String> {
    let pool = job.pool.as_ref()?;
    let Some(&size) = scene.catalog.pools.get(pool) else {
        return Some(format!("its pool {pool} has no size in Programs/pools.toml"));
    };
    let is_in_pool = |held: &Held| held.device.is_some() && held.pool.as_ref() == Some(pool);
    let in_pool: Vec<_> = scene.state.runs.iter().filter(|(_, held)| is_in_pool(held)).collect();
    (in_pool.len() >= size as usize).then(|| {
        let named: Vec<&str> =
            in_pool.iter().filter(|(_, held)| (scene.sees)(&held.job)).map(|(run, _)| run.as_str()).collect();
        let runs = if named.is_empty() { String::new() } else { format!(" ({})", named.join(", ")) };
        format!("its pool {pool} is full: {} of {size}{runs}", in_pool.len())
    })
}

fn time_reason(entry: &Entry, now: Moment) -> Option<String> {
    match (entry.key.source, entry.not_before(), entry.trigger.not_before) {
        (Source::Waiting, Some(at), _) if at > now.wall => {
            let why = if entry.was_started() { " (backoff)" } else { "" };
            Some(format!("attempt {} waits until {}{why}", entry.attempt, rfc3339(at)))
        }
        (Source::Inbox, _, Some(at)) if at > now.wall => Some(format!("its time is {}", rfc3339(at))),
        (Source::Inbox | Source::Waiting | Source::Due, _, _) => None,
    }
}

fn device_reason(entry: &Entry, job: &Job, devices: &[Seen]) -> Option<String> {
    unable(&job.tags.union(&entry.trigger.tags).collect(), job.slots, devices)
}

/// Why no living device could take what needs these tags and slots.
fn unable(needed: &BTreeSet<&Tag>, slots: u32, devices: &[Seen]) -> Option<String> {
    if !devices.iter().any(|device| device.alive) {
        return Some("no device is alive: start one with `orchestrator run`".to_owned());
    }
    let tagged: Vec<&Seen> = with_tags(needed, devices).collect();
    if tagged.is_empty() {
        let list: Vec<&str> = needed.iter().map(|tag| tag.as_str()).collect();
        let nobody: Vec<&str> = needed
            .iter()
            .filter(|tag| !devices.iter().any(|device| device.alive && device.tags.contains(**tag)))
            .map(|tag| tag.as_str())
            .collect();
        return Some(if nobody.is_empty() {
            format!("no single living device has all the tags {}", list.join(", "))
        } else {
            let hint = if nobody.contains(&DOCKER_TAG) {
                ": a device has it while it reaches a container engine (orchestrator doctor)"
            } else if nobody.contains(&SWARM_TAG) {
                ": a device has it while it reaches an engine that manages a swarm (docker swarm init)"
            } else if nobody.contains(&CGROUP_TAG) {
                ": a device has it where it may make cgroups, which limits of cpus and pids need outside containers (orchestrator doctor)"
            } else {
                ""
            };
            format!("no living device has the tag {}{hint}", nobody.join(", "))
        });
    }
    let largest = tagged.iter().map(|device| device.slots).max().unwrap_or(0);
    if largest == 0 {
        let names: Vec<&str> = tagged.iter().map(|device| device.device.as_str()).collect();
        let names = names.join(", ");
        return Some(format!("every living device that could take it has 0 slots and takes nothing: {names}"));
    }
    (slots > largest)
        .then(|| format!("it takes {slots} slots, and no living device that could take it has more than {largest}"))
}

fn overlap_reason(entry: &Entry, job: &Job, state: &State) -> Option<String> {
    if job.overlap == Overlap::Allow {
        return None;
    }
    let (run, held) = state.runs.of_job(&job.name).find(|(run, held)| **run != entry.run && !held.command)?;
    let place = held
        .device
        .as_ref()
        .map_or_else(|| "waits for another attempt".to_owned(), |device| format!("runs on {device}"));
    Some(format!("another run of {} is open: {run} {place}", job.name))
}

fn room_reason(entry: &Entry, job: &Job, scene: Scene<'_>) -> Option<String> {
    let Scene { devices, reserved, .. } = scene;
    let needed: BTreeSet<&Tag> = job.tags.union(&entry.trigger.tags).collect();
    let able: Vec<&Seen> = with_tags(&needed, devices).collect();
    let taking: Vec<&&Seen> = able.iter().filter(|device| device.takes_work()).collect();
    if taking.is_empty() {
        if let Some(reason) = super::space::reason(&able) {
            return Some(reason);
        }
        let why = if able.iter().all(|device| device.drained) { "is drained" } else { "has 0 slots or is drained" };
        let names: Vec<&str> = able.iter().map(|device| device.device.as_str()).collect();
        return Some(format!("every device that could take it {why}: {}", names.join(", ")));
    }
    let with_room: Vec<&&&Seen> = taking.iter().filter(|device| device.busy + job.slots <= device.slots).collect();
    if !with_room.is_empty() {
        let before = |device: &&&&Seen| {
            reserved.get(&device.device).filter(|kept| job.slots > 0 && kept.rank < rank(entry, scene.catalog))
        };
        let kept: Option<Vec<&Reservation>> = with_room.iter().map(before).collect();
        return kept?.first().map(|kept| behind(kept, scene.sees));
    }
    let taken: Vec<String> =
        taking.iter().map(|device| format!("{} {}/{}", device.device, device.busy, device.slots)).collect();
    let taken = taken.join(", ");
    if job.slots < 2 {
        return Some(format!("every slot it could have is taken: {taken}"));
    }
    let slots = job.slots;
    if !rooms(scene).iter().any(|room| reserve::fits(entry, job, room)) {
        return Some(format!(
            "it takes {slots} slots, and daemons leave fewer on every device that could take it: {taken}"
        ));
    }
    let own = reserved.iter().find(|(_, kept)| kept.rank.1 == entry.run);
    let own =
        own.map(|(device, kept)| format!("; {device} reserves what is free for it until {}", rfc3339(kept.until)));
    Some(format!("it takes {slots} slots, and fewer are free: {taken}{}", own.unwrap_or_default()))
}

fn behind(kept: &Reservation, sees: &dyn Fn(&JobName) -> bool) -> String {
    let run =
        if sees(&kept.job) { format!("the run {} of {}", kept.rank.1, kept.job) } else { "another run".to_owned() };
    format!(
        "{run} needs more slots than are free and comes first: the slots are reserved for it until {}",
        rfc3339(kept.until)
    )
}

/// The room of the devices that take work.
fn rooms(scene: Scene<'_>) -> Vec<Room<'_>> {
    let taking = scene.devices.iter().filter(|device| device.takes_work());
    reserve::rooms(scene.state, taking.map(|device| (&device.device, &device.tags, device.slots)))
}

/// The place of what waits in the order in which it is taken.
#[must_use]
pub fn rank(entry: &Entry, catalog: &Catalog) -> Rank {
    let of_job = || catalog.jobs.get(&job_name(entry)).map_or(0, |job| job.priority);
    (Reverse(entry.trigger.priority.unwrap_or_else(of_job)), entry.run.clone())
}

/// Returns which devices reserve their free slots, and for which of the runs that wait.
#[must_use]
pub fn reservations<'a>(waiting: impl Iterator<Item = &'a Entry>, scene: Scene<'_>) -> Reserved {
    let large = |entry: &Entry| match scene.catalog.look_up(&job_name(entry)) {
        Known::Good(job) if job.enabled && job.slots > 1 => Some(job),
        Known::Good(_) | Known::Broken | Known::Unknown => None,
    };
    let large = waiting
        .filter(|entry| matches!(entry.trigger.target, Target::Job(_)))
        .filter_map(|entry| Some((entry, large(entry)?)));
    let is_kept_by = |entry: &Entry, job: &Job| {
        time_reason(entry, scene.now).is_some()
            || overlap_reason(entry, job, scene.state).is_some()
            || pool_reason(job, scene).is_some()
    };
    let mut large: Vec<(&Entry, Arc<Job>)> = large.filter(|(entry, job)| !is_kept_by(entry, job)).collect();
    large.sort_by_cached_key(|(entry, _)| rank(entry, scene.catalog));
    let (rooms, mut reserved) = (rooms(scene), Reserved::new());
    for (entry, job) in large {
        let Some(turn) = reserve::turn(entry, &job, &rooms, scene.now.wall) else { continue };
        let has_less = |device: &Seen| (1..job.slots).contains(&device.slots.saturating_sub(device.busy));
        if scene.devices.iter().any(|device| device.device == *turn.device && has_less(device)) {
            let kept = Reservation { rank: rank(entry, scene.catalog), job: job.name.clone(), until: turn.until };
            reserved.entry(turn.device.clone()).or_insert(kept);
        }
    }
    reserved
}

fn with_tags<'a>(needed: &'a BTreeSet<&Tag>, devices: &'a [Seen]) -> impl Iterator<Item = &'a Seen> {
    devices.iter().filter(|device| device.alive && needed.iter().all(|tag| device.tags.contains(*tag)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rebuild_names_the_living_devices_that_it_waits_for() {
        let seen = |name: &str, alive, revision| Seen {
            device: DeviceId::new(name).unwrap(),
            alive,
            drained: false,
            low_on: None,
            tags: BTreeSet::new(),
            slots: 1,
            busy: 0,
            revision,
        };
        let devices = [seen("old", true, 6), seen("dead", false, 6), seen("new", true, 7)];
        assert_eq!(rebuild_reason(&State::default(), &devices), None);
        let state = State { rebuilt: Some(7), ..State::default() };
        let said = rebuild_reason(&state, &devices).unwrap();
        assert!(said.contains("through it: old,"), "{said}");
        let said = rebuild_reason(&state, &devices[1..]).unwrap();
        assert!(said.contains("Triggers/.running"), "{said}");
    }
}
