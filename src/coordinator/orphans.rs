//! Looking after what dead devices and a lost state left behind: attempts without a holder, files in `.running` that nobody holds, runs
//! whose files are gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Device;
use crate::decide::catalog::Known;
use crate::decide::lost::{Accepted, Evidence};
use crate::decide::plan::Plan;
use crate::decide::recover::Orphan;
use crate::model::container::Container;
use crate::model::entry::{Waiting, parse_running};
use crate::model::ids::{JobName, RunId};
use crate::model::job::{Job, JobType, NATIVE, OnLost, Overlap, executor_of, merge_args, merge_kwargs};
use crate::model::lease::Lease;
use crate::model::result::Cause;
use crate::model::state::Held;
use crate::model::time::Moment;
use crate::model::trigger::{Refusal, Target, parse_own};
use crate::volume::disk::Disk;
use crate::volume::layout::Layout;
use crate::volume::{self, Context, found, inbox, rejects, results};

impl Device {
    /// Looks at what the attempts of dead devices left behind; `true`: there is something new to decide on.
    pub(super) fn look_at_evidence(&mut self, plan: &Plan) -> bool {
        let mut looked = false;
        let mut to_end: BTreeMap<Lease, Evidence> = BTreeMap::new();
        for (lease, job, stem) in &plan.look {
            match self.evidence(lease, job, stem) {
                Ok(evidence) if !self.is_to_be_ended(lease, job, &evidence) => {
                    self.seen.evidence.insert(lease.clone(), evidence);
                    looked = true;
                }
                Ok(evidence) => {
                    to_end.insert(lease.clone(), evidence);
                }
                Err(error) => {
                    let now = self.parts.disk.boot();
                    self.seen.deferred.fail(&lease.run, format!("{error}; hint: {}", error.hint()), now);
                    self.say_what_waits();
                }
            }
        }
        // What goes on without its device is not to run twice: what this one can reach of it is ended first.
        let leases = to_end.keys().cloned().collect();
        for lease in self.parts.executor.evict(&leases) {
            if let Some(evidence) = to_end.remove(&lease) {
                self.seen.found.remove(&lease);
                self.seen.evidence.insert(lease, evidence);
                looked = true;
            }
        }
        let state = Arc::clone(self.store.state());
        self.seen.evidence.retain(|lease, _| state.runs.contains_key(&lease.run));
        looked
    }

    /// Whether something of an attempt may go on that is not to. Processes ended with their device, or its next life ends them, so a
    /// job that runs in no container has left none; unless one was found, and its job is another one by now.
    fn is_to_be_ended(&self, lease: &Lease, job: &JobName, evidence: &Evidence) -> bool {
        if let Some(found) = self.seen.found.get(lease) {
            return !evidence.may_go_on(found);
        }
        evidence.executor != NATIVE || !self.seen.catalog.jobs.contains_key(job)
    }

    fn evidence(&self, lease: &Lease, job: &JobName, stem: &str) -> Result<Evidence, volume::Error> {
        let (disk, layout) = (&*self.parts.disk, &self.parts.layout);
        let accepted = accepted(disk, layout, job, lease)?;
        let log = layout.log(job, lease);
        let has_log = found(disk.stat(&log)).on("look at", &log)?.is_some();
        let file = layout.running_file(lease, stem);
        let content = found(disk.read(&file, crate::model::config::TRIGGER_LIMIT)).on("read", &file)?;
        let trigger = content.as_ref().and_then(|(bytes, _)| parse_own(bytes).ok());
        let known = match trigger.as_ref().map(|trigger| &trigger.target) {
            Some(Target::Job(name)) => self.seen.catalog.jobs.get(name),
            Some(Target::Command(_)) | None => None,
        };
        let (args, kwargs) = match (&trigger, known) {
            (Some(trigger), Some(job)) => (merge_args(job, trigger), merge_kwargs(job, trigger)),
            (Some(trigger), None) => (trigger.args.clone().unwrap_or_default(), trigger.kwargs.clone()),
            (None, _) => Default::default(),
        };
        let container = match known {
            Some(job) => job.container.as_deref(),
            None => trigger.as_ref().and_then(|trigger| trigger.container.as_deref()),
        };
        let is_daemon = |job: &&Arc<Job>| matches!(job.kind, JobType::Always(_));
        Ok(Evidence {
            accepted,
            outlives: container.and_then(Container::outlives_its_device),
            daemon: known.filter(is_daemon).map(|job| job.digest()),
            executor: executor_of(container),
            held_file: content.is_some(),
            moved_on: content.is_none() && inbox::has_file(disk, layout, &lease.run)?,
            trigger: trigger.map(Arc::new),
            args,
            kwargs,
            log: has_log.then(|| Layout::log_name(job, lease)),
        })
    }

    /// Looks for files in `.running` that nobody holds.
    pub(super) fn look_for_orphans(&mut self, now: Moment) -> Result<(), volume::Error> {
        let folder = self.parts.layout.running();
        let names = found(self.parts.disk.list(&folder)).on("list", &folder)?.unwrap_or_default();
        // Not when this tick began: beats that were read since then may be older than what was claimed since then.
        let listed_at = self.parts.disk.boot();
        let state = Arc::clone(self.store.state());
        let mut there = BTreeSet::new();
        for (lease, stem) in names.iter().filter_map(|name| parse_running(name)) {
            let is_held = state.runs.get(&lease.run).is_some_and(|held| held.device.is_some());
            // What was fenced here may still run.
            if is_held || self.seen.attempts.of_run(&lease.run).is_some() || self.seen.attempts.get(&lease).is_some() {
                continue;
            }
            if self.seen.deferred.holds(&lease.run, now.boot) {
                continue;
            }
            there.insert(lease.clone());
            let since = *self.orphans_since.entry(lease.clone()).or_insert(listed_at);
            let alone = self.seen.devices.alive(now.boot).all(|peer| peer.beat.device == self.seen.me.device);
            let watched = self.seen.devices.is_known(&self.seen.me.device);
            let free =
                watched && (alone || self.seen.devices.is_free(&lease.run, &self.seen.me.device, since, now.boot));
            let is_new = !self.seen.orphans.iter().any(|orphan| orphan.lease == lease);
            if !free || !is_new {
                continue;
            }
            let orphan = self.orphan(&lease, &stem, now).map_err(|error| format!("{error}; hint: {}", error.hint()));
            match orphan.and_then(|orphan| self.judged_by_its_job(orphan)) {
                Ok(orphan) => {
                    let orphan = orphan.filter(|orphan| self.has_ended(orphan));
                    self.seen.orphans.extend(orphan);
                }
                Err(why) => {
                    // It waits, and a rebuild does not wait for it.
                    self.seen.deferred.fail(&lease.run, why, now.boot);
                    self.say_what_waits();
                    there.remove(&lease);
                }
            }
        }
        self.seen.deferred.tidy(now.boot);
        self.say_what_waits();
        self.look_for_vanished(&names, now)?;
        let all_saw = |revision: &u64| self.seen.devices.all_saw(*revision, now.boot);
        self.seen.accounted = state.rebuilt.filter(all_saw).filter(|_| there.is_empty());
        self.orphans_since.retain(|lease, _| there.contains(lease));
        self.seen.orphans.retain(|orphan| there.contains(&orphan.lease));
        Ok(())
    }

    /// Returns an orphan unless only the file of its job says whether another attempt may follow, and that file is not known here.
    fn judged_by_its_job(&self, orphan: Option<Orphan>) -> Result<Option<Orphan>, String> {
        let jobs = &self.seen.catalog.jobs;
        let is_unclear = |orphan: &&Orphan| {
            let Orphan { held, over, pending, evidence, .. } = orphan;
            let was_lost = over.is_none() && pending.is_none() && evidence.accepted.is_none() && evidence.log.is_some();
            was_lost && !held.command && !jobs.contains_key(&held.job)
        };
        match orphan.as_ref().filter(is_unclear).map(|orphan| &orphan.held.job) {
            Some(job) => Err(format!(
                "an attempt of the job {job} was lost with the state, and only the job's file says whether another may follow; \
                 hint: put Programs/{job}.toml back; a device that has it goes on by itself"
            )),
            None => Ok(orphan),
        }
    }

    /// Ends what goes on of an orphan without its device, where this one can reach it. `false`: something of it may go on still.
    fn has_ended(&mut self, Orphan { lease, held, evidence, .. }: &Orphan) -> bool {
        let may_go_on = evidence.executor != NATIVE || !self.seen.catalog.jobs.contains_key(&held.job);
        if evidence.log.is_none() || !may_go_on {
            return true;
        }
        let has_ended = self.parts.executor.evict(&BTreeSet::from([lease.clone()])).contains(lease);
        if has_ended {
            self.seen.found.remove(lease);
        }
        has_ended
    }

    /// Looks for runs that are listed as waiting and of which no file is there, by the names in `.waiting` and `.running`: a file that this
    /// device cannot read has not vanished.
    fn look_for_vanished(&mut self, running: &[std::ffi::OsString], now: Moment) -> Result<(), volume::Error> {
        let state = Arc::clone(self.store.state());
        let running: BTreeSet<RunId> = running.iter().filter_map(|name| Some(parse_running(name)?.0.run)).collect();
        let is_there = |run: &RunId| self.seen.queue.comes_back(run) || running.contains(run);
        let waits = state.runs.waiting().filter(|(run, _)| !is_there(run));
        let mut gone: BTreeMap<RunId, Arc<Held>> = waits.map(|(run, held)| (run.clone(), Arc::clone(held))).collect();
        if !gone.is_empty() {
            let folder = self.parts.layout.waiting();
            let names = found(self.parts.disk.list(&folder)).on("list", &folder)?.unwrap_or_default();
            for waiting in names.iter().filter_map(|name| Waiting::parse(name)) {
                gone.remove(&waiting.run);
            }
        }
        self.vanished_since.retain(|run, _| gone.contains_key(run));
        self.seen.vanished.retain(|run, _| gone.contains_key(run));
        for (run, held) in gone {
            let since = *self.vanished_since.entry(run.clone()).or_insert_with(|| self.parts.disk.boot());
            if now.boot.saturating_sub(since) >= self.parts.config.lease {
                let (disk, layout) = (&*self.parts.disk, &self.parts.layout);
                let next = Lease { run: run.clone(), attempt: held.attempt };
                let unended = match ended(disk, layout, &held.job, &Lease { attempt: 0, ..next.clone() })? {
                    Some(_) => None,
                    None => first_unended(disk, layout, &held.job, next)?,
                };
                self.seen.vanished.insert(run, unended);
            }
        }
        Ok(())
    }

    /// `None`: it is gone, or was no trigger any more and has been rejected.
    fn orphan(&mut self, lease: &Lease, stem: &str, now: Moment) -> Result<Option<Orphan>, volume::Error> {
        let run = &lease.run;
        let file = self.parts.layout.running_file(lease, stem);
        let limit = crate::model::config::TRIGGER_LIMIT;
        let Some((bytes, _)) = found(self.parts.disk.read(&file, limit)).on("read", &file)? else { return Ok(None) };
        let trigger = match parse_own(&bytes) {
            Ok(trigger) => trigger,
            Err(refusal) => {
                // It was whole when it was taken. Left there it would hold up a lost state's repair for ever.
                let hint = "it was damaged in .running, by a power cut or by hand; drop it again".to_owned();
                let (refusal, dropped) = (Refusal { hint, ..refusal }, format!("{stem}.json"));
                let Device { parts, seen, names, .. } = self;
                let (disk, me) = (&*parts.disk, &seen.me.device);
                rejects::reject(disk, &parts.layout, names, (&file, dropped.as_ref()), (run, &refusal), me, now)?;
                tracing::warn!(%run, error = refusal.error, hint = refusal.hint, "rejected");
                return Ok(None);
            }
        };
        let (job, definition) = match &trigger.target {
            Target::Job(name) => (
                name.clone(),
                match self.seen.catalog.look_up(name) {
                    Known::Good(job) => Some(job),
                    Known::Broken | Known::Unknown => None,
                },
            ),
            Target::Command(_) => (crate::model::job::command_job_name(stem), None),
        };
        let cause = trigger.origin.as_ref().map_or(Cause::Trigger, |origin| origin.cause);
        let evidence = self.evidence(lease, &job, stem)?;
        let (disk, layout) = (&*self.parts.disk, &self.parts.layout);
        let last = results::last_before(disk, layout, &job, &Lease { attempt: lease.attempt + 1, ..lease.clone() })?;
        let carried = last.as_ref().map(Accepted::from).map_or((0, 0), |accepted| accepted.counts_after());
        let unstarted = ended(disk, layout, &job, &Lease { attempt: 0, ..lease.clone() })?;
        let pending = results::pending_end(disk, layout, &job, lease)?;
        let over = unstarted.or_else(|| evidence.accepted.clone().filter(|accepted| accepted.is_final));
        let held = Held {
            job,
            stem: stem.to_owned(),
            cause,
            trigger: cause.is_dropped().then(|| format!("{stem}.json")),
            attempt: lease.attempt + 1,
            device: None,
            session: None,
            priority: trigger.priority.or(definition.as_ref().map(|job| job.priority)).unwrap_or(0),
            slots: definition.as_ref().map_or(1, |job| job.slots),
            pool: definition.as_ref().and_then(|job| job.pool.clone()),
            only_on: trigger.only_on(),
            claimed_at: run.time(),
            command: matches!(trigger.target, Target::Command(_)),
            fail_if_lost: definition.as_ref().is_some_and(|job| job.on_lost == OnLost::Fail),
            listed: definition.as_ref().is_some_and(|job| cause.is_lasting() || job.overlap != Overlap::Allow),
            retried: carried.0,
            losses: carried.1,
            extra: BTreeMap::new(),
        };
        let not_before = trigger.not_before;
        Ok(Some(Orphan { lease: lease.clone(), held: Arc::new(held), over, pending, not_before, evidence }))
    }
}

/// Returns the first attempt from this one on that has no result; `None`: one of them has ended the run.
fn first_unended(
    disk: &dyn Disk,
    layout: &Layout,
    job: &JobName,
    mut lease: Lease,
) -> Result<Option<u32>, volume::Error> {
    while let Some(outcome) = results::read(disk, &layout.result(job, &lease))? {
        if outcome.is_final {
            return Ok(None);
        }
        lease.attempt += 1;
    }
    Ok(Some(lease.attempt))
}

/// Returns the result of an attempt, or the one that ended its run behind it: a run may be cancelled between two attempts.
fn accepted(disk: &dyn Disk, layout: &Layout, job: &JobName, lease: &Lease) -> Result<Option<Accepted>, volume::Error> {
    let own = results::read(disk, &layout.result(job, lease))?.as_ref().map(Accepted::from);
    if own.as_ref().is_some_and(|own| own.is_final) {
        return Ok(own);
    }
    Ok(ended(disk, layout, job, &Lease { attempt: 0, ..lease.clone() })?.or(own))
}

/// Returns the result of an attempt if it ended the run; attempt 0 is an end without an attempt.
fn ended(disk: &dyn Disk, layout: &Layout, job: &JobName, lease: &Lease) -> Result<Option<Accepted>, volume::Error> {
    let outcome = results::read(disk, &layout.result(job, lease))?;
    Ok(outcome.filter(|outcome| outcome.is_final).as_ref().map(Accepted::from))
}
