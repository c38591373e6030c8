//! Looking around: heartbeats, job files, the inbox, and what dead devices left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Device, End, Pulse, TRY_AGAIN};
use crate::decide::catalog::Known;
use crate::decide::lost::{Accepted, Evidence};
use crate::decide::marks::gone_jobs;
use crate::decide::plan::Plan;
use crate::decide::queue::job_name;
use crate::decide::recover::Orphan;
use crate::model::container::Container;
use crate::model::device::Beat;
use crate::model::entry::{Entry, FileId, FileKey, Source, Waiting, parse_running};
use crate::model::ids::{DeviceId, JobName, RunId, Tag};
use crate::model::job::{Job, JobType, NATIVE, OnLost, Overlap, executor_of, merge_args, merge_kwargs};
use crate::model::lease::Lease;
use crate::model::message::suggest;
use crate::model::result::Cause;
use crate::model::state::{Ask, Held};
use crate::model::time::Moment;
use crate::model::trigger::{Refusal, Target, parse_own};
use crate::volume::disk::Disk;
use crate::volume::heartbeat::Beats;
use crate::volume::inbox::Look;
use crate::volume::layout::Layout;
use crate::volume::watch::Dirty;
use crate::volume::{self, Context, found, heartbeat, inbox, rejects, results};

/// How many unknown jobs a heartbeat names at most: it stays small, however many jobs there are.
const UNKNOWN_JOBS: usize = 256;

impl Device {
    /// Reads the state without the lock.
    pub(super) fn refresh(&mut self, now: Moment) {
        self.keep_known();
        match self.store.refresh() {
            Ok(true) => {}
            // Missing or damaged: made anew under the lock, unless all of the volume is missing.
            Ok(false) => match self.find_volume() {
                Ok(()) => {
                    if let Err(refused) = self.store.ensure(now) {
                        self.refused(refused, now);
                    }
                }
                Err(problem) => self.problem("volume", problem),
            },
            Err(refused) => self.refused(refused, now),
        }
        self.say_what_the_store_says();
        self.take_requests();
        self.take_settings(now);
    }

    /// What people asked of this device as such.
    fn take_requests(&mut self) {
        let before = self.drained;
        for request in &self.store.state().requests {
            if request.device == self.seen.me.device {
                match request.ask {
                    Ask::Drain => self.drained = true,
                    Ask::Resume => self.drained = false,
                    Ask::Cancel | Ask::Restart => {}
                }
            }
        }
        if before != self.drained {
            tracing::info!(drained = self.drained, "asked by a person");
            self.due.beat = std::time::Duration::ZERO;
        }
    }

    /// Says that this device lives, and hears who else does.
    pub(super) fn exchange_beats(&mut self, now: Moment) -> Option<End> {
        self.due.beat = now.boot + self.parts.config.heartbeat;
        if let Err(problem) = self.find_volume() {
            self.problem("volume", problem);
            self.could_write = false;
            self.seen.devices.watch_anew(now.boot);
            return None;
        }
        self.solved("volume");
        self.take_identity();
        match heartbeat::read_all(&*self.parts.disk, &self.parts.layout) {
            Ok(Beats { beats, unreadable }) => {
                if self.is_displaced(&beats) {
                    return Some(End::Replaced);
                }
                self.solved("heartbeats");
                if let Some((_, error)) = unreadable.first() {
                    let error = format!("{error}; hint: {}; until then that device counts as alive", error.hint());
                    self.problem("heartbeats", error);
                }
                let unreadable: Vec<DeviceId> = unreadable.into_iter().map(|(device, _)| device).collect();
                // Not when this tick began: it may have taken long to read them.
                let read_at = self.parts.disk.boot();
                self.seen.devices.observe(read_at, beats, &unreadable, self.could_write);
                // A device with a longer lease may hold the lock for longer.
                self.store.set_patience(self.seen.devices.longest_lease(read_at));
            }
            Err(error) => {
                self.problem("heartbeats", format!("{error}; hint: {}", error.hint()));
                self.seen.devices.watch_anew(now.boot);
            }
        }
        // Who has just come hears of commits when it looks itself, at its beats.
        let others = self.seen.devices.alive(now.boot).any(|peer| peer.beat.device != self.seen.me.device);
        self.store.set_watched(others);
        self.refresh(now);
        if self.store.is_copy_behind()
            && let Err(refused) = self.store.ensure(now)
        {
            tracing::debug!(%refused, "state.json is brought up to date later");
        }
        self.seen.upkeep = true;
        self.look_at_space();
        self.say_what_is_not_held();
        self.beat += 1;
        let beat = self.beat(now, false);
        let written = self.write_beat(&beat);
        self.could_write = written.is_ok();
        match written {
            Ok(()) => {
                (self.seen.drained, self.seen.set) = (beat.drained, beat.set);
                let path = self.parts.layout.heartbeat(&self.seen.me.device);
                let first = self.anchor.is_none();
                // Read behind the write: a device that stood still in between is late then, and never early.
                let disk = &self.parts.disk;
                // Where that cannot be read, what was known still holds: boot time carries it on.
                let read = disk.stat(&path).ok().map(|meta| Moment { wall: meta.changed, boot: disk.boot() });
                self.anchor = read.or(self.anchor);
                if first {
                    // What was placed by this machine's own clock may have its time still before it.
                    let now = self.by_the_volume(now);
                    self.seen.place_anew(now);
                }
                self.solved("heartbeat");
            }
            Err(error) => {
                self.problem("heartbeat", format!("{error}; hint: {}", error.hint()));
                self.due.beat = now.boot + TRY_AGAIN.min(self.parts.config.heartbeat);
            }
        }
        if !self.could_write {
            self.seen.devices.watch_anew(now.boot);
        }
        None
    }

    /// Takes in what this device has because of its executors: an engine came, or went.
    pub(super) fn take_offers(&mut self, now: Moment) {
        let offers = self.parts.executor.offers();
        if offers == self.offers {
            return;
        }
        let own = |tag: &Tag| !self.offers.contains(tag) || self.own_tags.contains(tag);
        self.seen.me.tags.retain(own);
        self.seen.me.tags.extend(offers.iter().cloned());
        self.offers = offers;
        self.seen.place_anew(now);
        // The others are to know at once.
        self.due.beat = now.boot;
    }

    /// Whether the folder still is the volume that this device began on: an empty folder where it was mounted is none.
    fn find_volume(&self) -> Result<(), String> {
        let path = self.parts.layout.volume_id();
        let read = found(self.parts.disk.read(&path, 1_024)).on("read", &path);
        let read = read.map_err(|error| format!("{error}; hint: {}", error.hint()))?;
        let found = read.map(|(bytes, _)| String::from_utf8_lossy(&bytes).trim().to_owned());
        if found.as_deref() == Some(self.seen.volume.as_str()) {
            return Ok(());
        }
        let shown = self.parts.layout.common.display();
        let found = found.map_or_else(|| "no .volume".to_owned(), |id| format!("the volume {id}"));
        let expected = &self.seen.volume;
        Err(format!(
            "{shown} holds {found}, expected the volume {expected}; hint: was it unmounted, moved or replaced?"
        ))
    }

    /// Who took an id over by force has its lock as soon as the other lets go.
    fn take_identity(&mut self) {
        if self.parts.identity.is_none() {
            let lock = heartbeat::lock(&*self.parts.disk, &self.parts.layout, &self.seen.me.device);
            self.parts.identity = lock.ok().flatten();
        }
    }

    /// Whether a session that this one did not displace beats under its id.
    fn is_displaced(&self, beats: &[Beat]) -> bool {
        let me = &self.seen.me;
        beats.iter().any(|beat| {
            beat.device == me.device
                && beat.session != me.session
                && self.parts.displaced.as_ref() != Some(&beat.session)
                // Before the first beat the file still is that of the life before.
                && self.seen.devices.is_known(&me.device)
        })
    }

    fn beat(&mut self, now: Moment, left: bool) -> Beat {
        let pids = self.parts.executor.pids();
        let used = self.parts.executor.used();
        let unknown = self.unknown_jobs(now);
        let machine = self.parts.meter.as_mut().map(|meter| meter.read(&pids, used));
        let me = &self.seen.me;
        let busy = self.seen.attempts.owned().map(|(_, attempt)| attempt.held.slots_taken()).sum();
        Beat {
            schema: 1,
            device: me.device.clone(),
            session: me.session.clone(),
            beat: self.beat,
            pulse: 0,
            at: now.wall,
            revision: self.worked_through,
            host: self.parts.host.name.clone(),
            pid: self.parts.host.pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.parts.host.started_at,
            tags: me.tags.clone(),
            slots: me.slots,
            busy,
            load: load(),
            drained: self.drained,
            limits: self.default_limits(),
            set: self.set,
            holds: self.seen.attempts.owned().map(|(lease, _)| (lease.run.clone(), lease.attempt)).collect(),
            machine,
            pids,
            left,
            lease_ms: u64::try_from(self.parts.config.lease.as_millis()).unwrap_or(u64::MAX),
            low_on: self.low_on.map(|low_on| low_on.to_string()),
            unknown,
            problems: self.problems.values().cloned().collect(),
        }
    }

    /// Writes a heartbeat. It is repeated while a turn takes long, until the device leaves.
    fn write_beat(&mut self, beat: &Beat) -> Result<(), volume::Error> {
        let Device { parts, names, .. } = self;
        let writing = parts.pulse.as_ref().map(Pulse::writing);
        let written = heartbeat::write(&*parts.disk, &parts.layout, names, beat);
        if let Some(writing) = writing {
            writing.repeat((!beat.left).then(|| beat.clone()));
        }
        written
    }

    /// The last beat: nobody needs to wait for a lease to know.
    pub(super) fn say_good_bye(&mut self, now: Moment) {
        self.beat += 1;
        let holds_nothing = self.seen.attempts.owned().next().is_none();
        let beat = self.beat(now, holds_nothing);
        if let Err(error) = self.write_beat(&beat) {
            tracing::warn!(%error, "the others learn from the silence that this device has left");
        }
    }

    /// Job files and inbox: what events name, what must be looked at again by now, and everything when the scan is due.
    pub(super) fn look_around(&mut self, now: Moment, dirty: &Dirty) {
        let scan = now.boot >= self.due.scan;
        let settles = self.programs.next_settle().is_some_and(|at| at <= now.boot);
        if scan || dirty.programs || settles {
            self.look_at_programs(now);
        }
        if scan || dirty.inbox {
            self.due.scan = now.boot + self.parts.config.scan;
            self.scan(now);
        }
        for key in &dirty.names {
            self.look_at(key, now);
        }
        for key in self.inbox.unsettled(now.boot).0 {
            self.look_at(&key, now);
        }
        self.reject_unknown_jobs(now);
        self.seen.advance(now);
    }

    fn look_at_programs(&mut self, now: Moment) {
        match self.programs.scan(&*self.parts.disk, &self.parts.layout, now.boot) {
            Ok(changed) => {
                self.solved("programs");
                if changed {
                    self.seen.catalog = Arc::clone(self.programs.catalog());
                    tracing::debug!(jobs = self.seen.catalog.jobs.len(), "job files are read anew");
                    for error in self.programs.errors() {
                        tracing::warn!(hint = error.hint, "{error}");
                    }
                    let fresh = self.programs.take_fresh();
                    self.seen.fresh.extend(fresh);
                    self.seen.place_anew(now);
                    self.seen.end_backoff(self.programs.take_changed(), now);
                }
                self.say_what_cannot_be_read();
            }
            Err(error) => self.problem("programs", format!("{error}; hint: {}", error.hint())),
        }
    }

    /// Says which job file could not be read. What was read of it before stays in force.
    fn say_what_cannot_be_read(&mut self) {
        match self.programs.unread().map(|unread| format!("Programs/{unread}; hint: {}", unread.hint)) {
            Some(problem) => self.problem("job files", problem),
            None => self.solved("job files"),
        }
    }

    fn scan(&mut self, now: Moment) {
        if self.problems.contains_key("volume") {
            return;
        }
        // Made again if somebody removed them, and not in what has come into the volume's place since the last beat.
        let layout = &self.parts.layout;
        for folder in [layout.triggers(), layout.running(), layout.waiting()] {
            if !found(self.parts.disk.stat(&folder)).is_ok_and(|there| there.is_none()) {
                continue;
            }
            if let Err(problem) = self.find_volume() {
                self.problem("volume", problem);
                return;
            }
            if let Err(error) = self.parts.disk.make_folders(&folder).on("make the folder", &folder) {
                self.problem("inbox", format!("{error}; hint: {}", error.hint()));
                return;
            }
        }
        let (disk, layout, config) = (&*self.parts.disk, &self.parts.layout, &self.parts.config);
        match self.inbox.scan(disk, layout, now, config.poll, !config.remote) {
            Ok(names) => {
                self.solved("inbox");
                for key in names {
                    self.look_at(&key, now);
                }
                self.say_what_is_unreadable();
            }
            Err(error) => self.problem("inbox", format!("{error}; hint: {}", error.hint())),
        }
        // Said again by whoever meets it again.
        self.solved("taken");
        if let Err(error) = self.look_for_orphans(now) {
            self.problem("inbox", format!("{error}; hint: {}", error.hint()));
        }
    }

    /// Says which triggers cannot be read.
    fn say_what_is_unreadable(&mut self) {
        let mut unreadable = self.inbox.unreadable();
        let Some((_, why)) = unreadable.next() else {
            drop(unreadable);
            return self.solved("unreadable");
        };
        let more = match unreadable.count() {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        let text = format!("a trigger waits that this device cannot read{more}: {why}");
        self.problem("unreadable", text);
    }

    pub(super) fn look_at(&mut self, key: &FileKey, now: Moment) {
        match self.inbox.look(&*self.parts.disk, &self.parts.layout, key, now) {
            Ok(look) => self.take_look(key.clone(), look, now),
            Err(error) => self.problem("inbox", format!("{error}; hint: {}", error.hint())),
        }
    }

    fn take_look(&mut self, key: FileKey, look: Look, now: Moment) {
        match look {
            Look::Entry(entry) => {
                self.taken_in += 1;
                self.seen.queue_up(entry, now);
            }
            Look::Gone | Look::NotYet => {
                self.seen.queue.remove(&key);
            }
            Look::Same => {}
            Look::Refused(run, refusal) => {
                self.seen.queue.remove(&key);
                self.reject(&key, None, &run, &refusal, now);
            }
        }
    }

    /// `read`: what was read when it was judged; another content has to be judged anew.
    fn reject(&mut self, key: &FileKey, read: Option<FileId>, run: &RunId, refusal: &Refusal, now: Moment) {
        let Device { parts, seen, names, .. } = self;
        let path = parts.layout.entry(key);
        if read.is_some_and(|read| parts.disk.stat(&path).is_ok_and(|meta| meta.id != read)) {
            self.inbox.doubt(key);
            return self.look_at(key, now);
        }
        let file = (path.as_path(), &*key.name);
        match rejects::reject(&*parts.disk, &parts.layout, names, file, (run, refusal), &seen.me.device, now) {
            Ok(moved) => {
                if moved {
                    self.rejected += 1;
                    tracing::warn!(name = %key.name.to_string_lossy().escape_debug(), error = refusal.error, hint = refusal.hint, "rejected");
                }
                self.inbox.forget(key);
                self.solved("reject");
            }
            Err(error) => {
                // It stays where it is, and the next scan tries again.
                self.inbox.doubt(key);
                self.problem("reject", format!("{error}; hint: {}", error.hint()));
            }
        }
    }

    /// A trigger for a job that no living device knows is waited for, then rejected; while there is no job at all, for ever.
    fn reject_unknown_jobs(&mut self, now: Moment) {
        if !self.knows_jobs() {
            return;
        }
        let me = &self.seen.me.device;
        let is_rejected = |(entry, since): &(&Arc<Entry>, std::time::Duration)| {
            entry.key.source == Source::Inbox && self.seen.devices.none_knows(&job_name(entry), me, *since, now.boot)
        };
        let unknown: Vec<Arc<Entry>> =
            self.seen.queue.unknown(now.boot).filter(is_rejected).map(|(entry, _)| Arc::clone(entry)).collect();
        for entry in unknown {
            let name = job_name(&entry);
            let nearest = suggest(name.as_str(), self.seen.catalog.names());
            let hint = match nearest {
                Some(nearest) => format!("did you mean {nearest:?}? `orchestrator jobs list` shows all"),
                None => format!("make Programs/{name}.toml; `orchestrator jobs list` shows all jobs"),
            };
            let refusal = Refusal {
                error: format!("there is no job {name:?} in Programs/"),
                hint,
                line: None,
                column: None,
                unfinished: false,
            };
            self.seen.queue.remove(&entry.key);
            self.reject(&entry.key, Some(entry.id), &entry.run, &refusal, now);
        }
    }

    /// Whether this device can say which jobs there are: `Programs/` could be read, and holds some.
    fn knows_jobs(&self) -> bool {
        !self.problems.contains_key("programs") && !self.seen.catalog.is_empty()
    }

    /// The jobs that something on the volume names and that this device does not know.
    fn unknown_jobs(&self, now: Moment) -> Vec<JobName> {
        if !self.knows_jobs() {
            return Vec::new();
        }
        let keep = self.parts.config.keep;
        let marked = gone_jobs(self.store.state(), &self.seen.catalog, keep, now.wall).map(|(name, _)| name.clone());
        let mut named = BTreeSet::new();
        self.seen
            .queue
            .unknown_jobs()
            .chain(marked)
            .filter(|name| named.insert(name.clone()))
            .take(UNKNOWN_JOBS)
            .collect()
    }

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
    fn look_for_orphans(&mut self, now: Moment) -> Result<(), volume::Error> {
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

/// The machine's load over the last minute.
fn load() -> f64 {
    // The kernel gives it in 65,536ths.
    let raw = rustix::system::sysinfo().loads[0];
    (raw as f64 / 65_536.0 * 100.0).round() / 100.0
}
