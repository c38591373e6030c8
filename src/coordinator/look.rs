//! Looking around: heartbeats, job files, the inbox, and what dead devices left behind.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Device, End, Pulse, TRY_AGAIN};
use crate::decide::marks::gone_jobs;
use crate::decide::queue::job_name;
use crate::model::device::Beat;
use crate::model::entry::{Entry, FileId, FileKey, Source};
use crate::model::ids::{DeviceId, JobName, RunId, Tag};
use crate::model::message::suggest;
use crate::model::state::Ask;
use crate::model::time::Moment;
use crate::model::trigger::Refusal;
use crate::volume::heartbeat::Beats;
use crate::volume::inbox::Look;
use crate::volume::watch::Dirty;
use crate::volume::{self, Context, found, heartbeat, rejects};

/// The largest number of unknown jobs that a heartbeat names: it stays small, however many jobs there are.
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
                self.measure_time(now);
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

    /// Measures the volume's time by the heartbeat that was just written.
    fn measure_time(&mut self, now: Moment) {
        let path = self.parts.layout.heartbeat(&self.seen.me.device);
        let is_first = self.anchor.is_none();
        match self.parts.disk.stat(&path).on("look at", &path) {
            // Read behind the write: a device that stood still in between is late then, and never early.
            Ok(meta) => self.anchor = Some(Moment { wall: meta.changed, boot: self.parts.disk.boot() }),
            Err(error) if is_first => {
                let hint = error.hint();
                self.problem(
                    "heartbeat",
                    format!("{error}; hint: {hint}; until the volume's time is known nothing is done"),
                );
                self.due.beat = now.boot + TRY_AGAIN.min(self.parts.config.heartbeat);
                return;
            }
            // What was known still holds: boot time carries it on.
            Err(_) => {}
        }
        if is_first {
            // What was placed by this machine's own clock may have its time still before it.
            let now = self.by_the_volume(now);
            self.seen.place_anew(now);
        }
        self.solved("heartbeat");
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
        match self.inbox.scan(disk, layout, &self.seen.queue, now, config.poll, !config.remote) {
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
        let known = self.seen.queue.content(key);
        match self.inbox.look(&*self.parts.disk, &self.parts.layout, key, known, now) {
            Ok(look) => self.take_look(key.clone(), look, now),
            Err(error) => self.problem("inbox", format!("{error}; hint: {}", error.hint())),
        }
    }

    /// Reads a file again, whatever is known of it.
    pub(super) fn look_anew(&mut self, key: &FileKey, now: Moment) {
        self.seen.queue.remove(key);
        self.inbox.doubt(key);
        self.look_at(key, now);
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
            return self.look_anew(key, now);
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

    /// Returns whether this device can say which jobs there are: `Programs/` could be read, and holds some.
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
}

/// The machine's load over the last minute.
fn load() -> f64 {
    // The kernel gives it in 65,536ths.
    let raw = rustix::system::sysinfo().loads[0];
    (raw as f64 / 65_536.0 * 100.0).round() / 100.0
}
