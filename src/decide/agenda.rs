//! What jobs want of their own accord: a run for a due time, for the successes that `after` names, for each instance of a
//! daemon, for idle time.
//!
//! What is wanted is offered to the queue like what lies in the inbox, and claimed by the same rules. An offer is only that:
//! [`is_wanted`] asks again under the lock, with the newest state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::catalog::Catalog;
use super::due::{self, Clockwork, hash, run_of};
use super::plan::{Observation, Plan};
use super::queue::Queue;
use super::settle::backoff;
use crate::model::device::Me;
use crate::model::entry::{Entry, FileKey};
use crate::model::ids::{DeviceId, JobName, RunId, Tag, mix};
use crate::model::job::{Job, JobType, OnLost};
use crate::model::lease::Lease;
use crate::model::result::{Cause, Status, result_name};
use crate::model::runs::Runs;
use crate::model::schedule::Instances;
use crate::model::state::{Held, JobMark, State, Success};
use crate::model::time::Moment;
use crate::model::trigger::{CausedBy, Origin, Trigger};

/// How long a device must have had nothing to do before it runs idle jobs, and how long such a job rests after each end.
pub const IDLE_REST: Duration = Duration::from_secs(1);
/// How many instances of one job a device offers to take at a time.
const OFFERED: usize = 64;

/// What an agenda is made from.
#[derive(Debug, Clone, Copy)]
pub struct Ground<'a> {
    /// Both clocks.
    pub now: Moment,
    /// Whose agenda it is.
    pub me: &'a Me,
    /// The volume's random id.
    pub volume: &'a str,
    /// The jobs.
    pub catalog: &'a Catalog,
    /// The newest state that is known.
    pub state: &'a Arc<State>,
    /// Whether this device has had nothing to do for [`IDLE_REST`].
    pub quiet: bool,
}

/// What is offered to the queue, job by job.
#[derive(Debug, Default)]
pub struct Agenda {
    offers: BTreeMap<JobName, Offer>,
    /// Counts the offers that no due time names.
    count: u64,
    /// The instants at which time alone changes an offer.
    turns: BTreeSet<(DateTime<Utc>, JobName)>,
    /// The jobs that wait for a job's success.
    followers: BTreeMap<JobName, Vec<JobName>>,
    has_idle_jobs: bool,
    /// The ground on which it was brought up to date last.
    seen: Option<Seen>,
}

/// The ground on which offers were made.
#[derive(Debug)]
struct Seen {
    now: DateTime<Utc>,
    state: Arc<State>,
    quiet: bool,
    catalog: u64,
}

#[derive(Debug, Default)]
struct Offer {
    entries: Vec<FileKey>,
    /// What it was made from.
    basis: Option<(Arc<Job>, JobMark)>,
    /// When time alone changes it.
    next: Option<DateTime<Utc>>,
}

impl Agenda {
    /// Brings the queue to what is wanted now.
    pub fn refresh(&mut self, queue: &mut Queue, ground: Ground<'_>) {
        let withdrawn = queue.take_withdrawn();
        match self.changed(ground, withdrawn) {
            Some(names) => {
                let jobs = names.iter().filter_map(|name| ground.catalog.jobs.get(name));
                jobs.for_each(|job| self.renew(job, queue, ground));
            }
            None => self.renew_all(queue, ground),
        }
        let Ground { now, state, quiet, .. } = ground;
        self.seen = Some(Seen { now: now.wall, state: Arc::clone(state), quiet, catalog: ground.catalog.changes });
    }

    /// Returns the jobs of which something may be wanted otherwise by now; `None`: all of them.
    fn changed(&self, ground: Ground<'_>, mut names: BTreeSet<JobName>) -> Option<BTreeSet<JobName>> {
        let is_like_now = |seen: &&Seen| {
            seen.quiet == ground.quiet && seen.catalog == ground.catalog.changes && seen.now <= ground.now.wall
        };
        let seen = self.seen.as_ref().filter(is_like_now)?;
        let come = self.turns.iter().take_while(|(at, _)| *at <= ground.now.wall);
        names.extend(come.map(|(_, name)| name.clone()));
        for (_, before, after) in ground.state.runs.differences(&seen.state.runs) {
            names.extend([before, after].into_iter().flatten().map(|held| held.job.clone()));
        }
        for (name, _, _) in ground.state.jobs.differences(&seen.state.jobs) {
            names.extend(self.followers.get(name).into_iter().flatten().cloned());
            names.insert(name.clone());
        }
        Some(names)
    }

    fn renew_all(&mut self, queue: &mut Queue, ground: Ground<'_>) {
        let jobs = &ground.catalog.jobs;
        let is_wanted = |name: &JobName| jobs.get(name).is_some_and(|job| wants(job));
        let gone: Vec<JobName> = self.offers.keys().filter(|name| !is_wanted(name)).cloned().collect();
        for name in gone {
            let offer = self.take(&name);
            withdraw(queue, offer.entries);
        }
        self.followers.clear();
        for job in jobs.values() {
            for name in &job.after {
                self.followers.entry(name.clone()).or_default().push(job.name.clone());
            }
        }
        self.has_idle_jobs = jobs.values().any(|job| job.enabled && matches!(job.kind, JobType::Idle(_)));
        jobs.values().for_each(|job| self.renew(job, queue, ground));
    }

    fn renew(&mut self, job: &Arc<Job>, queue: &mut Queue, ground: Ground<'_>) {
        if !wants(job) {
            return;
        }
        let mut offer = self.take(&job.name);
        offer.renew(job, queue, ground, &mut self.count);
        self.turns.extend(offer.next.map(|at| (at, job.name.clone())));
        self.offers.insert(job.name.clone(), offer);
    }

    fn take(&mut self, name: &JobName) -> Offer {
        let offer = self.offers.remove(name).unwrap_or_default();
        if let Some(at) = offer.next {
            self.turns.remove(&(at, name.clone()));
        }
        offer
    }

    /// When time alone changes what is wanted.
    #[must_use]
    pub fn next_change(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.turns.iter().map(|(at, _)| *at).find(|at| *at > now)
    }

    /// Whether any job waits for this device to have nothing to do.
    #[must_use]
    pub fn has_idle_jobs(&self) -> bool {
        self.has_idle_jobs
    }
}

impl Offer {
    fn renew(&mut self, job: &Arc<Job>, queue: &mut Queue, ground: Ground<'_>, count: &mut u64) {
        let never = JobMark::default();
        let mark = ground.state.jobs.get(&job.name).unwrap_or(&never);
        let is_same = |(known, of): &(Arc<Job>, JobMark)| Arc::ptr_eq(known, job) && of == mark;
        let is_timed = matches!(job.kind, JobType::Timed(_)) && job.after.is_empty();
        let has_come = self.next.is_some_and(|next| next <= ground.now.wall);
        if is_timed && self.entries.is_empty() && !has_come && self.basis.as_ref().is_some_and(is_same) {
            return;
        }
        self.entries.retain(|key| queue.get(key).is_some());
        self.next = None;
        if !job.enabled {
            withdraw(queue, std::mem::take(&mut self.entries));
        } else if let JobType::Always(instances) | JobType::Idle(instances) = job.kind {
            self.offer_instances(job, instances, mark, queue, ground, count);
        } else {
            offer_due(self, job, mark, queue, ground);
        }
        if !self.basis.as_ref().is_some_and(is_same) {
            self.basis = Some((Arc::clone(job), mark.clone()));
        }
    }

    fn offer_instances(
        &mut self,
        job: &Arc<Job>,
        instances: Instances,
        mark: &JobMark,
        queue: &mut Queue,
        ground: Ground<'_>,
        count: &mut u64,
    ) {
        let Ground { now, me, .. } = ground;
        let rest = rests_until(job, mark).filter(|until| *until > now.wall);
        let is_ready = rest.is_none() && (ground.quiet || !matches!(job.kind, JobType::Idle(_)));
        let missing = if is_ready { missing(&ground.state.runs, job, &me.device).min(OFFERED) } else { 0 };
        self.next = rest;
        withdraw(queue, self.entries.drain(missing.min(self.entries.len())..));
        let cause = if matches!(job.kind, JobType::Idle(_)) { Cause::Idle } else { Cause::Always };
        let only_on = match instances {
            Instances::Every => Tag::new(me.device.as_str()).ok(),
            Instances::Count(_) => None,
        };
        while self.entries.len() < missing {
            *count += 1;
            let place = self.entries.len();
            let run = RunId::new(now.wall, hash(me.session.as_str(), &job.name, &count.to_string()));
            let lot = hash(ground.volume, &job.name, &place.to_string());
            let trigger = Trigger::own(&job.name, Origin { cause, by: None }, only_on.clone());
            let entry = Arc::new(Entry::due(run, lot, trigger));
            self.entries.push(entry.key.clone());
            queue.insert(entry, ground.catalog, me, now);
        }
    }
}

/// The one run that a job of due times, or of `after`, wants now.
fn offer_due(offer: &mut Offer, job: &Arc<Job>, mark: &JobMark, queue: &mut Queue, ground: Ground<'_>) {
    let Ground { now, volume, .. } = ground;
    let mut wanted = None;
    if let JobType::Timed(timing) = &job.kind {
        let clockwork = Clockwork { volume, job: &job.name, timing };
        offer.next = due::next_change(clockwork, mark, now.wall);
        wanted = due::due_now(clockwork, mark, now.wall).map(|at| (at, Origin { cause: Cause::Schedule, by: None }));
    }
    if wanted.is_none() {
        wanted = after(ground.state, job).map(|last| (last.0.at, of_success(last)));
    }
    let wanted = wanted.map(|(at, origin)| {
        let run = run_of(volume, &job.name, at);
        let lot = lot_of(&run);
        Entry::due(run, lot, Trigger::own(&job.name, origin, None))
    });
    let is_offered = |entry: &Entry| offer.entries.contains(&entry.key);
    if wanted.as_ref().is_some_and(is_offered) {
        return;
    }
    withdraw(queue, std::mem::take(&mut offer.entries));
    if let Some(entry) = wanted {
        offer.entries.push(entry.key.clone());
        queue.insert(Arc::new(entry), ground.catalog, ground.me, now);
    }
}

fn withdraw(queue: &mut Queue, entries: impl IntoIterator<Item = FileKey>) {
    for key in entries {
        queue.remove(&key);
    }
}

/// Whether a job ever wants a run of its own accord.
fn wants(job: &Job) -> bool {
    !matches!(job.kind, JobType::Trigger) || !job.after.is_empty()
}

/// By which devices agree whose a run is.
#[must_use]
pub fn lot_of(run: &RunId) -> u64 {
    mix(0, run.as_str())
}

/// Whether what was offered is wanted still, by the newest state and by what is planned already.
#[must_use]
pub fn is_wanted(state: &State, plan: &Plan, seen: &Observation, entry: &Entry, job: &Job) -> bool {
    let default = JobMark::default();
    let mark = state.jobs.get(&job.name).unwrap_or(&default);
    match (entry.cause(), &job.kind) {
        (Cause::Always | Cause::Idle, JobType::Always(_) | JobType::Idle(_)) => {
            let rests = rests_until(job, mark).is_some_and(|until| until > seen.now.wall);
            !rests && missing(plan.changes.open_after(), job, &seen.me.device) > 0
        }
        (Cause::Schedule, JobType::Timed(timing)) => {
            let clockwork = Clockwork { volume: &seen.volume, job: &job.name, timing };
            due::due_now(clockwork, mark, seen.now.wall) == Some(entry.run.time())
        }
        (Cause::Job, _) => {
            after(state, job).is_some_and(|(last, _)| run_of(&seen.volume, &job.name, last.at) == entry.run)
        }
        (
            Cause::Always | Cause::Idle | Cause::Schedule | Cause::Trigger | Cause::Api | Cause::Manual,
            JobType::Trigger | JobType::Timed(_) | JobType::Always(_) | JobType::Idle(_),
        ) => false,
    }
}

/// How many instances of a daemon or an idle job this device could add.
fn missing(open: &Runs, job: &Job, me: &DeviceId) -> usize {
    let (instances, cause) = match job.kind {
        JobType::Always(instances) => (instances, Cause::Always),
        JobType::Idle(instances) => (instances, Cause::Idle),
        JobType::Trigger | JobType::Timed(_) => return 0,
    };
    let open = open.of_job(&job.name).map(|(_, held)| held).filter(|held| held.cause == cause);
    match instances {
        Instances::Count(count) => (count as usize).saturating_sub(open.count()),
        Instances::Every => 1_usize.saturating_sub(open.filter(|held| held.only_on.as_ref() == Some(me)).count()),
    }
}

/// Until when no new run of a daemon or an idle job begins: after an end, longer after failures of its own. A run that was triggered, a
/// changed definition, and a person who enables or restarts the job end the longer rest.
#[must_use]
pub fn rests_until(job: &Job, mark: &JobMark) -> Option<DateTime<Utc>> {
    let ended = mark.last_ended_at?;
    let last = mark.last_status?;
    let is_bad = matches!(last, Status::Failed | Status::TimedOut | Status::Lost | Status::Expired);
    let rest = match &job.kind {
        JobType::Idle(_) if mark.failures == 0 || !mark.rests => IDLE_REST,
        JobType::Idle(_) => {
            let wait = mark.last_run_id.as_ref().map(|run| backoff(job, mark.failures - 1, run)).unwrap_or_default();
            wait.to_std().unwrap_or_default().max(IDLE_REST)
        }
        JobType::Always(_) if !mark.rests => return None,
        // Its device's death says nothing against a daemon that may start only once a run.
        JobType::Always(_) if last == Status::Lost && job.on_lost == OnLost::Fail => job.backoff,
        // It has failed as often as it may, or three devices have died of it.
        JobType::Always(_) if is_bad => job.backoff_max,
        JobType::Always(_) | JobType::Trigger | JobType::Timed(_) => return None,
    };
    Some(ended + TimeDelta::from_std(rest).unwrap_or_default())
}

/// The newest of the successes that a job waits for, if each is later than its own newest run.
fn after<'a>(state: &'a State, job: &'a Job) -> Option<(&'a Success, &'a JobName)> {
    let own = state.jobs.get(&job.name).and_then(|mark| mark.last_run_at);
    let mut newest: Option<(&Success, &JobName)> = None;
    for name in &job.after {
        let mark = state.jobs.get(name)?;
        let success = mark.last_success.as_ref().filter(|success| Some(success.at) > own)?;
        if newest.is_none_or(|(newest, _)| success.at > newest.at) {
            newest = Some((success, name));
        }
    }
    newest
}

fn of_success((success, job): (&Success, &JobName)) -> Origin {
    let lease = Lease { run: success.run_id.clone(), attempt: success.attempt };
    let by = CausedBy { run: success.run_id.clone(), result: result_name(job, &lease) };
    Origin { cause: Cause::Job, by: Some(by) }
}

/// Why a run of a daemon or an idle job is not wanted any more, if it is not.
#[must_use]
pub fn unwanted(state: &State, catalog: &Catalog, run: &RunId, held: &Held) -> Option<String> {
    if !held.cause.is_lasting() {
        return None;
    }
    if catalog.lacks(&held.job) {
        return Some(format!("its job {} was deleted", held.job));
    }
    let job = catalog.jobs.get(&held.job)?;
    if !job.enabled {
        return Some(format!("its job {} was disabled", held.job));
    }
    let instances = match (&job.kind, held.cause) {
        (JobType::Always(instances), Cause::Always) | (JobType::Idle(instances), Cause::Idle) => *instances,
        (JobType::Always(_) | JobType::Idle(_) | JobType::Trigger | JobType::Timed(_), _) => {
            return Some(format!("its job {} is of type {} now", held.job, job.kind.word()));
        }
    };
    let older = state.runs.of_job(&held.job).take_while(|(other, _)| *other < run);
    let mut older = older.map(|(_, other)| other).filter(|other| other.cause == held.cause);
    match instances {
        Instances::Every if held.only_on.is_none() => Some("its job runs once on each device now".to_owned()),
        Instances::Count(_) if held.only_on.is_some() => Some("its job runs a number of times now".to_owned()),
        Instances::Every => {
            let twice = older.any(|other| other.only_on == held.only_on);
            twice.then(|| "its device has another instance of it".to_owned())
        }
        Instances::Count(count) => (older.count() >= count as usize)
            .then(|| format!("its job has {count} instances, and this was one too many")),
    }
}
