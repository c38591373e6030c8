//! Committing a plan, and taking in what became of each of its changes.

use std::sync::Arc;
use std::time::Duration;

use super::{Device, TRY_AGAIN, figures};
use crate::decide::attempts::{LocalAttempt, Phase};
use crate::decide::catalog::Known;
use crate::decide::plan::{Change, Matter, plan};
use crate::model::config::TRIGGER_LIMIT;
use crate::model::entry::{Entry, Source};
use crate::model::ids::RunId;
use crate::model::job::{command_job_name, for_command, merge_args, merge_kwargs};
use crate::model::lease::Lease;
use crate::model::state::Held;
use crate::model::time::Moment;
use crate::model::trigger::{Target, Trigger, parse_own};
use crate::store::{Failure, Refused};
use crate::volume::{self, Context, results, work};

/// A state of fewer bytes is written so soon that the next commit may follow at once.
const SMALL_STATE: usize = 300_000;
/// How long a device rests for each byte of a larger one: about three times as long as writing it takes.
const REST_PER_BYTE: Duration = Duration::from_nanos(3);
/// The longest time that a device rests for the size of the state.
const LONGEST_REST: Duration = Duration::from_millis(10);
/// A device that had the lock for less than this leaves others no time for it.
const SHORT_COMMIT: Duration = Duration::from_micros(500);
/// The longest time that it leaves them.
const LONGEST_TURN: Duration = Duration::from_millis(5);

/// Returns how long a device rests that had the lock for `took` and wrote a state of so many bytes. A large state takes long to write: what
/// comes up meanwhile goes into one commit. And other devices get the lock for as long as this one had it.
fn rest_after(took: Duration, bytes: usize, is_alone: bool) -> Duration {
    let for_size = if bytes < SMALL_STATE {
        Duration::ZERO
    } else {
        REST_PER_BYTE.saturating_mul(u32::try_from(bytes).unwrap_or(u32::MAX)).min(LONGEST_REST)
    };
    let for_others = if is_alone || took < SHORT_COMMIT { Duration::ZERO } else { took.min(LONGEST_TURN) };
    for_size.max(for_others)
}

impl Device {
    /// Plans again under the lock, commits, and takes in the outcome. `true`: more may follow at once.
    pub(super) fn transact(&mut self, now: Moment) -> Result<bool, Refused> {
        let begun = self.parts.disk.boot();
        let Device { store, seen, .. } = self;
        let outcome = store.transact(now, &mut |state| plan(state, seen));
        let waited = self.due.busy_since.map(|since| begun.saturating_sub(since));
        let took = self.parts.disk.boot().saturating_sub(begun);
        let written = if outcome.is_ok() { self.store.staged_bytes() } else { 0 };
        self.due.commit = begun + took + rest_after(took, written, self.others() == 0);
        figures::committed(outcome.is_ok(), waited.unwrap_or_default(), took);
        self.say_what_the_store_says();
        let committed = outcome?;
        self.due.busy_since = None;
        self.solved("lock");
        self.solved("state");
        let mut more = committed.plan.more || !committed.plan.clashes.is_empty();
        for lease in &committed.plan.fenced {
            if self.supersede(lease) {
                more = true;
            } else {
                self.come_back(now.boot + TRY_AGAIN);
            }
        }
        self.note_minded();
        for key in &committed.plan.clashes {
            self.inbox.salt(key);
            self.look_anew(key, now);
        }
        self.due.again = super::earlier(self.due.again, committed.plan.later);
        let changes: Vec<(Change, Option<Failure>)> =
            committed.plan.changes.into_iter().zip(committed.failed).collect();
        for (change, failure) in changes {
            self.defer(&change, failure.as_ref(), now);
            more |= matches!(failure, Some(Failure::Deferred));
            more |= self.take_in(change, failure, now);
        }
        self.say_what_waits();
        Ok(more)
    }

    pub(super) fn say_what_the_store_says(&mut self) {
        for notice in self.store.take_notices() {
            tracing::warn!("{notice}");
        }
        if let Some(breach) = self.store.breach().map(str::to_owned) {
            self.problem(
                "exclusion",
                format!(
                    "the volume does not honour locks: {breach}; \
                     hint: put Common on a file system whose locks exclude: a local disk, a named volume, NFS with its lock service"
                ),
            );
        }
    }

    /// Has a change that failed wait, so that it holds nothing else up.
    fn defer(&mut self, change: &Change, failure: Option<&Failure>, now: Moment) {
        match failure {
            None => self.seen.deferred.succeed(&change.run),
            Some(Failure::Volume(error)) => {
                self.seen.deferred.fail(&change.run, format!("{error}; hint: {}", error.hint()), now.boot);
            }
            Some(Failure::Deferred) => {}
            // Several devices may claim the same: only one can, and nothing is wrong.
            Some(_) if matches!(change.matter, Matter::Claimed(_) | Matter::Ended(_) | Matter::Passed(_)) => {}
            Some(other) => self.seen.deferred.lost_race(&change.run, &other.to_string(), now.boot),
        }
    }

    pub(super) fn say_what_waits(&mut self) {
        match self.seen.deferred.problem() {
            Some(problem) => self.problem("deferred", problem),
            None => self.solved("deferred"),
        }
    }

    /// `true`: something follows from it at once.
    fn take_in(&mut self, change: Change, failure: Option<Failure>, now: Moment) -> bool {
        if let Some(failure) = &failure {
            tracing::debug!(run = %change.run, matter = ?change.matter, %failure, "a change did not happen");
        }
        match (change.matter, failure) {
            (Matter::Settled(lease), None) => self.settled(&lease),
            (Matter::Settled(lease), Some(Failure::Taken)) => {
                self.supersede(&lease);
            }
            (Matter::Settled(lease), Some(Failure::Gone)) if self.was_published(&lease) => return true,
            (Matter::Settled(lease), Some(Failure::Gone)) => {
                if self.store.state().names(&lease, &self.seen.me.device, &self.seen.me.session) {
                    self.judge_again(&lease, true, now);
                    return true;
                }
                self.supersede(&lease);
            }
            (Matter::Kept(lease), Some(Failure::Gone)) => self.fence(&lease),
            (Matter::Adopted(lease), None) => self.adopt(&lease),
            // Somebody has ended it meanwhile.
            (Matter::Adopted(lease), Some(_)) => {
                self.seen.evidence.remove(&lease);
            }
            (Matter::Lost(lease, job), failure) => {
                if failure.is_none() {
                    work::remove(&*self.parts.disk, &self.parts.layout, &lease);
                    results::discard_output(&*self.parts.disk, &self.parts.layout.output(&job, &lease));
                    tracing::warn!(run = %lease.run, attempt = lease.attempt, "its device is dead: the attempt has ended as lost");
                }
                self.seen.evidence.remove(&lease);
            }
            (Matter::Freed(run), _) => {
                self.seen.orphans.retain(|orphan| orphan.lease.run != run);
                self.orphans_since.retain(|lease, _| lease.run != run);
            }
            (Matter::Vanished(run), _) => {
                self.seen.vanished.remove(&run);
                self.vanished_since.remove(&run);
            }
            (Matter::Claimed(entry), None) => {
                self.forget(&entry);
                self.claimed(&entry);
                // Where many due times are made up for, the next one follows at once.
                return entry.key.source == Source::Due;
            }
            (Matter::Ended(entry) | Matter::Passed(entry), None) => {
                self.seen.spent.remove(&entry.run);
                self.forget(&entry);
            }
            (Matter::Claimed(entry), Some(Failure::Taken)) if entry.key.source == Source::Due => {
                // Its due time has had its run; what else is due gets another id.
                if !entry.cause().is_lasting() {
                    self.seen.spent.insert(entry.run.clone());
                }
                self.forget(&entry);
                return true;
            }
            (Matter::Claimed(entry) | Matter::Ended(entry) | Matter::Passed(entry), Some(failure)) => {
                return self.not_taken(&entry, &failure, now);
            }
            (Matter::Settled(_) | Matter::Kept(_) | Matter::Listed(_), _) => {}
        }
        false
    }

    /// Whether an earlier try of the same commit has moved everything, and only the state does not say so yet.
    fn was_published(&mut self, lease: &Lease) -> bool {
        let Some(ended) = self.seen.attempts.ended(lease) else { return false };
        let path = self.parts.layout.result(&ended.held.job, lease);
        let there = results::read(&*self.parts.disk, &path).ok().flatten();
        let is_published = there.is_some_and(|there| there == ended.outcome);
        self.seen.attempts.note_published(lease, is_published);
        is_published
    }

    fn forget(&mut self, entry: &Entry) {
        self.seen.queue.remove(&entry.key);
        if entry.key.source == Source::Due {
            return;
        }
        self.inbox.forget(&entry.key);
    }

    /// Somebody else was faster, or the file is another one by now: it is looked at again.
    fn not_taken(&mut self, entry: &Entry, failure: &Failure, now: Moment) -> bool {
        match failure {
            Failure::Gone => self.forget(entry),
            // Offered again as long as it is wanted.
            Failure::Changed | Failure::KeyTaken | Failure::Taken if entry.key.source == Source::Due => {
                self.forget(entry);
            }
            Failure::Changed | Failure::KeyTaken => {
                self.look_anew(&entry.key, now);
                return true;
            }
            Failure::Taken if entry.key.source == Source::Inbox => {
                self.inbox.salt(&entry.key);
                self.look_anew(&entry.key, now);
                return true;
            }
            Failure::Taken => {
                self.problem("taken", format!("two files stand for the run {}: see .running and .waiting", entry.run));
                self.forget(entry);
            }
            Failure::Deferred | Failure::Volume(_) => {}
        }
        false
    }

    fn adopt(&mut self, lease: &Lease) {
        let trigger = self.seen.evidence.remove(lease).and_then(|evidence| evidence.trigger);
        let held = self.store.state().runs.get(&lease.run).cloned();
        if let (Some(trigger), Some(held)) = (trigger, held) {
            if self.seen.found.contains_key(lease) {
                tracing::info!(run = %lease.run, attempt = lease.attempt, "what an earlier life of this device started goes on");
            }
            self.hold(&lease.run, held, &trigger);
        }
    }

    fn claimed(&mut self, entry: &Arc<Entry>) {
        let Some(held) = self.store.state().runs.get(&entry.run).cloned() else { return };
        tracing::debug!(run = %entry.run, job = %held.job, attempt = held.attempt, "claimed");
        match self.whole_trigger(entry, &held) {
            Ok(trigger) => self.hold(&entry.run, held, &trigger),
            Err(error) => {
                // Held without being known here: it is taken up once its file can be read.
                self.seen.deferred.fail(&entry.run, format!("{error}; hint: {}", error.hint()), self.parts.disk.boot());
            }
        }
    }

    /// Returns the trigger of a claimed entry with its arguments. Everything else of it stays as it was when it was claimed.
    fn whole_trigger(&self, entry: &Entry, held: &Held) -> Result<Arc<Trigger>, volume::Error> {
        if !entry.is_outline {
            return Ok(Arc::clone(&entry.trigger));
        }
        let path = self.parts.layout.running_file(&entry.lease(), &held.stem);
        let (bytes, _) = self.parts.disk.read(&path, TRIGGER_LIMIT).on("read", &path)?;
        let read = parse_own(&bytes).map_err(|refusal| std::io::Error::other(refusal.error));
        let Trigger { args, kwargs, .. } = read.on("read", &path)?;
        Ok(Arc::new(Trigger { args, kwargs, ..(*entry.trigger).clone() }))
    }

    /// Takes an attempt in that the state gives to this device, by the definition in force now.
    fn hold(&mut self, run: &RunId, held: Arc<Held>, trigger: &Arc<Trigger>) {
        let job = match &trigger.target {
            Target::Job(name) => match self.seen.catalog.look_up(name) {
                Known::Good(job) => job,
                // It was known when the plan was made, in this same tick.
                Known::Broken | Known::Unknown => return,
            },
            Target::Command(argv) => {
                Arc::new(for_command(command_job_name(&held.stem), argv.clone(), trigger.container.clone()))
            }
        };
        // Claimed back before it was noticed that an earlier attempt had gone: that one is stopped, and not forgotten.
        if let Some(before) =
            self.seen.attempts.of_run(run).map(LocalAttempt::lease).filter(|before| before.attempt != held.attempt)
        {
            self.fence(&before);
        }
        let (args, kwargs) = (merge_args(&job, trigger), merge_kwargs(&job, trigger));
        let (trigger, phase) = (Arc::clone(trigger), Phase::Claimed);
        self.seen.attempts.hold(LocalAttempt { run: run.clone(), held, job, args, kwargs, trigger, phase });
    }

    fn settled(&mut self, lease: &Lease) {
        let Some(before) = self.seen.attempts.remove(lease) else { return };
        if let Some(ended) = before.ended() {
            let outcome = &ended.outcome;
            tracing::info!(
                run = %lease.run, job = %outcome.job, attempt = lease.attempt, status = outcome.status.as_str(),
                last = outcome.is_final, ms = outcome.duration_ms, error = outcome.error, "attempt ended"
            );
            figures::ended(outcome, before.trigger.not_before.is_some());
        }
        if before.is_fenced() {
            return;
        }
        let next = Lease { attempt: lease.attempt + 1, ..lease.clone() };
        if self.store.state().names(&next, &self.seen.me.device, &self.seen.me.session)
            && let Some(held) = self.store.state().runs.get(&lease.run).cloned()
        {
            self.hold(&lease.run, held, &before.trigger);
        }
    }
}
