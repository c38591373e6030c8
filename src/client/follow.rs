//! Following a run: its log as it grows, attempt after attempt, whichever device has it, and its final result.
//!
//! It polls exact paths, quickly at first, then slower: nothing has to be told that somebody waits. What exact paths do not
//! show (a rejected trigger, a duplicate, a file that somebody removed) is looked for now and then.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::find::{self, Run};
use super::runs::{has_log, log_path, why};
use super::{Client, Code, Failure};
use crate::model::entry::FileId;
use crate::model::ids::{JobName, RunId};
use crate::model::lease::Lease;
use crate::model::result::Outcome;
use crate::volume::logs::earlier_part;
use crate::volume::os::read_from;
use crate::volume::{Context as _, found, processed, results};

/// The first and the longest pause between two looks.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));
/// How often it is looked for what exact paths do not show.
const LOOK_AROUND: Duration = Duration::from_secs(2);
/// How long a run may be nowhere before that is the answer: a network file system shows moves late.
const NOWHERE: Duration = Duration::from_secs(12);
/// How far ahead attempts are looked for: a claim that was never committed leaves its number unused.
const AHEAD: u32 = 3;
/// How much of a log is read at once, bytes.
const CHUNK: u64 = 256 << 10;

/// Who is told what a run does.
pub trait Listener {
    /// Whether the log is wanted at all.
    fn wants_log(&self) -> bool {
        true
    }

    /// Whether more of it may come now; what is refused comes with a later look.
    fn has_room(&self) -> bool {
        true
    }

    /// A piece of the log of `attempt`, which goes on at `offset` bytes.
    ///
    /// # Errors
    /// Ends the following.
    fn output(&mut self, _attempt: u32, _offset: u64, _bytes: &[u8]) -> Result<(), Failure> {
        Ok(())
    }

    /// The log of `attempt` is told to its end.
    ///
    /// # Errors
    /// Ends the following.
    fn log_ends(&mut self, _attempt: u32) -> Result<(), Failure> {
        Ok(())
    }

    /// An attempt is over, and the run goes on.
    fn attempt_ends(&mut self, _outcome: &Outcome) {}

    /// Whether it is worth finding out why nothing happens.
    fn wants_reasons(&self) -> bool {
        false
    }

    /// The run waits, for this reason.
    fn waits(&mut self, _reason: &str) {}

    /// The run is a duplicate: the first one with its key is followed instead.
    fn duplicates(&mut self, _run: &RunId, _first: &RunId) {}
}

/// Whether the runs of a job may be followed.
pub type Only = Box<dyn Fn(&JobName) -> bool + Send>;

/// Somebody who follows a run.
pub struct Follower {
    run: Run,
    attempt: u32,
    tail: Tail,
    look_around: Option<Duration>,
    nowhere_since: Option<Duration>,
    /// What it was last said to wait for.
    said: String,
    /// Whether the runs of a job may be followed.
    only: Only,
}

impl Follower {
    /// Follows `run` from `attempt` on.
    #[must_use]
    pub fn new(client: &Client, run: Run, attempt: u32) -> Self {
        Self::resume(client, run, attempt, 0)
    }

    /// Follows `run` from `offset` bytes of the log of `attempt` on.
    #[must_use]
    pub fn resume(client: &Client, run: Run, attempt: u32, offset: u64) -> Self {
        let mut tail = Tail { offset, begun: offset > 0, ..Tail::new(client, &run, attempt) };
        if offset > 0 {
            // The log was told up to there: what was rotated away before is not told again.
            tail.told = tail.earlier_part(client).ok().flatten();
        }
        let only = Box::new(|_: &JobName| true);
        Self { run, attempt, tail, look_around: None, nowhere_since: None, said: String::new(), only }
    }

    /// Changes over to the first run of an idempotency key only where its job may be followed.
    #[must_use]
    pub fn only(self, only: Only) -> Self {
        Self { only, ..self }
    }

    /// The run that is followed.
    #[must_use]
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// Waits for the end of the run, at most until `timeout` is over.
    ///
    /// # Errors
    /// Exit code 124 when time is up, 2 if the trigger was rejected, 3 if the run is nowhere any more.
    pub fn wait(
        &mut self,
        client: &Client,
        listener: &mut dyn Listener,
        timeout: Option<Duration>,
    ) -> Result<Outcome, Failure> {
        let begun = client.now().boot;
        let mut pause = PAUSES.0;
        loop {
            let before = (self.attempt, self.tail.offset);
            if let Some(outcome) = self.look(client, listener)? {
                return Ok(outcome);
            }
            let now = client.now().boot;
            if let Some(timeout) = timeout
                && now.saturating_sub(begun) >= timeout
            {
                return Err(time_is_up(&self.run.id, timeout));
            }
            let moved = before != (self.attempt, self.tail.offset);
            pause = if moved { PAUSES.0 } else { (pause * 5 / 4).min(PAUSES.1) };
            let left = timeout.map_or(pause, |timeout| (begun + timeout).saturating_sub(now));
            client.pause(pause.min(left));
        }
    }

    /// Takes in what is new; the final result, if it is there and all of the log is told.
    ///
    /// # Errors
    /// Exit code 2 if the trigger was rejected, 3 if the run is nowhere any more.
    pub fn look(&mut self, client: &Client, listener: &mut dyn Listener) -> Result<Option<Outcome>, Failure> {
        if let Some(outcome) = self.look_at_paths(client, listener)? {
            return Ok(Some(outcome));
        }
        let now = client.now().boot;
        match self.look_around {
            // At once everything is where the caller has just found it.
            None => self.look_around = Some(now + PAUSES.1),
            Some(at) if now >= at => {
                self.look_around = Some(now + LOOK_AROUND);
                self.look_around(client, listener, now)?;
            }
            Some(_) => {}
        }
        Ok(None)
    }

    fn look_at_paths(&mut self, client: &Client, listener: &mut dyn Listener) -> Result<Option<Outcome>, Failure> {
        let first = self.attempt.max(1);
        for attempt in std::iter::once(0).chain(first..=first.saturating_add(AHEAD)) {
            if let Some(outcome) = self.result(client, attempt)? {
                let there = attempt < self.attempt || self.go_to(client, listener, attempt)?;
                // The result stands after the last byte of the log.
                if !there || !self.tail.copy(client, listener)? {
                    return Ok(None);
                }
                if outcome.is_final {
                    listener.log_ends(self.attempt)?;
                    return Ok(Some(outcome));
                }
                listener.attempt_ends(&outcome);
                self.go_to(client, listener, attempt.saturating_add(1))?;
            }
        }
        for attempt in self.attempt.saturating_add(1)..=self.attempt.saturating_add(AHEAD) {
            if has_log(client, &self.run, attempt) && !self.go_to(client, listener, attempt)? {
                return Ok(None);
            }
        }
        self.tail.copy(client, listener)?;
        Ok(None)
    }

    fn result(&self, client: &Client, attempt: u32) -> Result<Option<Outcome>, Failure> {
        let lease = Lease { run: self.run.id.clone(), attempt };
        Ok(results::read(&*client.disk, &client.layout.result(&self.run.job, &lease))?)
    }

    /// Goes over to the log of another attempt, once that of the present one is told; `false`: it is not yet.
    fn go_to(&mut self, client: &Client, listener: &mut dyn Listener, attempt: u32) -> Result<bool, Failure> {
        if attempt != self.attempt {
            if !self.tail.copy(client, listener)? {
                return Ok(false);
            }
            listener.log_ends(self.attempt)?;
            self.attempt = attempt;
            self.tail = Tail::new(client, &self.run, attempt);
        }
        Ok(true)
    }

    /// Looks for what exact paths do not show.
    fn look_around(&mut self, client: &Client, listener: &mut dyn Listener, now: Duration) -> Result<(), Failure> {
        let id = self.run.id.clone();
        if let Some(first) = find::first_of_duplicate(client, &id)? {
            return self.change_over(client, listener, &first);
        }
        match find::gather(client, &id)? {
            Some(run) if run.held.is_some() || run.entry.is_some() => {
                self.nowhere_since = None;
                self.say_why(client, listener, &run)?;
                self.run = run;
                return Ok(());
            }
            Some(_) | None => {}
        }
        if let Some(why) = processed::rejection(&*client.disk, &client.layout, &id)? {
            return Err(find::rejected(&why));
        }
        let since = *self.nowhere_since.get_or_insert(now);
        if now.saturating_sub(since) >= NOWHERE {
            return Err(Failure::new(
                Code::NotFound,
                format!(
                    "the run {id} is nowhere any more: its trigger was removed, or got another id because this one was used"
                ),
                "`orchestrator runs list` shows the runs there are",
            ));
        }
        Ok(())
    }

    /// The trigger was a duplicate: the first run with its key is the one that counts.
    fn change_over(&mut self, client: &Client, listener: &mut dyn Listener, first: &RunId) -> Result<(), Failure> {
        let Some(run) = find::gather(client, first)? else {
            return Ok(());
        };
        if !(self.only)(&run.job) {
            let error = format!("the run {} is a duplicate, by its id, of one that is not yours", self.run.id);
            return Err(Failure::new(Code::NotFound, error, "give it another id"));
        }
        listener.duplicates(&self.run.id, first);
        self.attempt = 1;
        self.tail = Tail::new(client, &run, 1);
        self.run = run;
        Ok(())
    }

    /// Whoever waits is told why nothing happens, again whenever that is something else.
    fn say_why(&mut self, client: &Client, listener: &mut dyn Listener, run: &Run) -> Result<(), Failure> {
        let Some(entry) = run.entry.as_ref().filter(|_| listener.wants_reasons()) else { return Ok(()) };
        let why = why(client, entry, &self.only)?;
        if why != self.said {
            listener.waits(&why);
            self.said = why;
        }
        Ok(())
    }
}

/// The failure of a wait that took too long.
#[must_use]
pub fn time_is_up(run: &RunId, timeout: Duration) -> Failure {
    let error = format!("the run {run} has not ended within {timeout:?}; it goes on");
    Failure::new(Code::TimedOut, error, format!("`orchestrator runs wait {run}` waits again"))
}

/// One log, told as far as `offset`; where it was rotated, its earlier part first.
pub struct Tail {
    path: PathBuf,
    earlier: PathBuf,
    /// The earlier part that was told last.
    told: Option<FileId>,
    /// The one that is being told.
    telling: Option<Telling>,
    begun: bool,
    attempt: u32,
    offset: u64,
}

/// An earlier part that is being told.
struct Telling {
    part: FileId,
    /// How far.
    at: u64,
    /// Whether it was there before anything was told.
    was_before: bool,
}

impl Tail {
    /// The log of `attempt`, from its beginning.
    #[must_use]
    pub fn new(client: &Client, run: &Run, attempt: u32) -> Self {
        let path = log_path(client, run, attempt);
        Self { earlier: earlier_part(&path), path, told: None, telling: None, begun: false, attempt, offset: 0 }
    }

    /// Tells what is new; `false`: there is more, and no room for it. A log that is not there (yet) has nothing new.
    ///
    /// # Errors
    /// What the system or the listener said.
    pub fn copy(&mut self, client: &Client, listener: &mut dyn Listener) -> Result<bool, Failure> {
        if !listener.wants_log() {
            return Ok(true);
        }
        if !self.tell_earlier_part(client, listener)? {
            return Ok(false);
        }
        loop {
            if !listener.has_room() {
                return Ok(false);
            }
            let chunk = piece(&self.path, self.offset)?;
            if !chunk.is_empty() {
                self.offset += chunk.len() as u64;
                listener.output(self.attempt, self.offset, &chunk)?;
                continue;
            }
            let size = found(client.disk.stat(&self.path)).on("look at", &self.path)?.map(|meta| meta.id.size);
            let Some(size) = size.filter(|size| *size < self.offset) else { return Ok(true) };
            // It shrank. If it was rotated, what it held was its earlier part before that.
            if !self.tell_earlier_part(client, listener)? {
                return Ok(false);
            }
            if self.told.is_none() {
                // Cut at its limit: what comes next stands behind the cut.
                self.offset = size;
                return Ok(true);
            }
            self.offset = 0;
        }
    }

    /// Tells what is not told yet of an earlier part that is new. It holds its bytes where the log held them, so the rest begins at
    /// the same offset; and the log, if it is not cut yet, goes on where the earlier part ends.
    /// `false`: there is more, and no room for it.
    fn tell_earlier_part(&mut self, client: &Client, listener: &mut dyn Listener) -> Result<bool, Failure> {
        let was_before = !std::mem::replace(&mut self.begun, true);
        let mut next = (if was_before { 0 } else { self.offset }, was_before);
        loop {
            let there = self.earlier_part(client)?;
            let Some(part) = there.filter(|_| there != self.told) else { return Ok(true) };
            let mut telling = match self.telling.take() {
                Some(telling) if telling.part == part => telling,
                // Replaced before it was told: the rest of it is gone.
                Some(gone) => Telling { part, at: 0, was_before: gone.was_before },
                None => Telling { part, at: next.0, was_before: next.1 },
            };
            loop {
                if !listener.has_room() {
                    self.telling = Some(telling);
                    return Ok(false);
                }
                let chunk = piece(&self.earlier, telling.at)?;
                // Where it is replaced meanwhile, the rest of it is gone, and the next one is new from its beginning.
                if chunk.is_empty() || self.earlier_part(client)? != there {
                    break;
                }
                telling.at += chunk.len() as u64;
                // Who goes on later begins with the log as it is then.
                listener.output(self.attempt, 0, &chunk)?;
            }
            self.told = there;
            self.offset = if telling.was_before { 0 } else { telling.at };
            next = (0, telling.was_before);
        }
    }

    fn earlier_part(&self, client: &Client) -> Result<Option<FileId>, Failure> {
        Ok(found(client.disk.stat(&self.earlier)).on("look at", &self.earlier)?.map(|meta| meta.id))
    }

    /// All of it, as text.
    ///
    /// # Errors
    /// What the system said.
    pub fn text(&self, client: &Client) -> Result<String, Failure> {
        let mut bytes = Vec::new();
        // Again if it was rotated meanwhile, which happens once in a while at most.
        for _ in 0..3 {
            let before = self.earlier_part(client)?;
            bytes.clear();
            for path in [&self.earlier, &self.path] {
                let begin = bytes.len();
                loop {
                    let chunk = piece(path, (bytes.len() - begin) as u64)?;
                    if chunk.is_empty() {
                        break;
                    }
                    bytes.extend(chunk);
                }
            }
            if self.earlier_part(client)? == before {
                break;
            }
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// The next piece of a log that may not be there.
fn piece(path: &Path, offset: u64) -> Result<Vec<u8>, Failure> {
    Ok(found(read_from(path, offset, CHUNK)).on("read", path)?.unwrap_or_default())
}
