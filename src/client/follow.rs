//! Following a run: its log as it grows, attempt after attempt, whichever device has it, and its final result.
//!
//! It polls exact paths, quickly at first, then slower: nothing has to be told that somebody waits. What exact paths do not
//! show (a rejected trigger, a duplicate, a file that somebody removed) is looked for now and then.

use std::path::PathBuf;
use std::time::Duration;

use super::find::{self, Run};
use super::runs::{has_log, log_path, why};
use super::{Client, Code, Failure};
use crate::model::ids::{JobName, RunId};
use crate::model::lease::Lease;
use crate::model::result::Outcome;
use crate::volume::logs::{Reader, earlier_part};
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
const CHUNK: usize = 256 << 10;

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
        let tail = Tail::resume(client, &run, attempt, offset);
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
///
/// The file that is told stays open. It is left for the one at its path when that is another one and has something in it: then
/// the writer of the log has gone over to it, and nothing more comes into the file before.
pub struct Tail {
    path: PathBuf,
    earlier: PathBuf,
    telling: Option<Telling>,
    /// The earlier part when it was last looked at, which is told by now, or is told now, or needs not be.
    told: Option<u64>,
    attempt: u32,
    offset: u64,
}

/// A file that is being told.
struct Telling {
    file: Reader,
    /// It is not the earlier part of another one, and was not renamed or removed when it was last looked at.
    is_at_path: bool,
}

impl Tail {
    /// The log of `attempt`, from its beginning.
    #[must_use]
    pub fn new(client: &Client, run: &Run, attempt: u32) -> Self {
        let path = log_path(client, run, attempt);
        Self { earlier: earlier_part(&path), path, telling: None, told: None, attempt, offset: 0 }
    }

    /// The log of `attempt`, which was told up to `offset` bytes: what was rotated away before is not told again.
    fn resume(client: &Client, run: &Run, attempt: u32, offset: u64) -> Self {
        let mut tail = Self::new(client, run, attempt);
        if offset == 0 {
            return tail;
        }
        let size = |file: &Option<Reader>| file.as_ref().and_then(|file| file.size().ok()).unwrap_or(0);
        // What cannot be looked at now is told from its beginning.
        let open = |path| Reader::open(path).unwrap_or_default();
        let (log, earlier) = (open(&tail.path), open(&tail.earlier));
        tail.told = earlier.as_ref().map(Reader::inode);
        (tail.telling, tail.offset) = if size(&log) >= offset {
            (log.map(|file| Telling { file, is_at_path: true }), offset)
        } else if size(&earlier) >= offset {
            (earlier.map(|file| Telling { file, is_at_path: false }), offset)
        } else {
            (None, 0)
        };
        tail
    }

    /// Tells what is new; `false`: there is more, and no room for it. A log that is not there (yet) has nothing new.
    ///
    /// # Errors
    /// What the system or the listener said.
    pub fn copy(&mut self, client: &Client, listener: &mut dyn Listener) -> Result<bool, Failure> {
        if !listener.wants_log() {
            return Ok(true);
        }
        loop {
            let next = self.next(client)?;
            if !self.tell(listener)? {
                return Ok(false);
            }
            let Some((telling, earlier)) = next else { return Ok(true) };
            (self.telling, self.told, self.offset) = (Some(telling), earlier, 0);
        }
    }

    /// The file that comes after the one that is told now, and the earlier part that is told by then or with it.
    fn next(&mut self, client: &Client) -> Result<Option<(Telling, Option<u64>)>, Failure> {
        let there = found(client.disk.stat(&self.path)).on("look at", &self.path)?;
        let present = self.telling.as_ref().map(|telling| telling.file.inode());
        let is_present = |inode| present == Some(inode);
        if there.is_some_and(|meta| is_present(meta.id.inode)) {
            return Ok(None);
        }
        if let Some(telling) = &mut self.telling {
            telling.is_at_path = false;
            if there.is_none_or(|meta| meta.id.size == 0) {
                return Ok(None);
            }
        }
        // What was rotated away since.
        let earlier = Reader::open(&self.earlier)?;
        let which = earlier.as_ref().map(Reader::inode);
        if let Some(file) = earlier.filter(|file| !is_present(file.inode()) && self.told != Some(file.inode())) {
            return Ok(Some((Telling { file, is_at_path: false }, which)));
        }
        let log = Reader::open(&self.path)?.filter(|file| !is_present(file.inode()));
        Ok(log.map(|file| (Telling { file, is_at_path: true }, which)))
    }

    /// Tells the file that is open to its end; `false`: there is more, and no room for it.
    fn tell(&mut self, listener: &mut dyn Listener) -> Result<bool, Failure> {
        let Some(Telling { file, is_at_path }) = &self.telling else { return Ok(true) };
        loop {
            if !listener.has_room() {
                return Ok(false);
            }
            let chunk = file.read(self.offset, CHUNK).on("read", &self.path)?;
            if chunk.is_empty() {
                // Cut, by a program that copied it before: what comes next stands behind the cut.
                self.offset = self.offset.min(file.size().on("look at", &self.path)?);
                return Ok(true);
            }
            self.offset += chunk.len() as u64;
            // Who goes on later begins with the log as it is then.
            listener.output(self.attempt, if *is_at_path { self.offset } else { 0 }, &chunk)?;
        }
    }

    /// All of it, as text.
    ///
    /// # Errors
    /// What the system said.
    pub fn text(&self, client: &Client) -> Result<String, Failure> {
        let mut all = Whole(Vec::new());
        let mut tail =
            Self { telling: None, told: None, path: self.path.clone(), earlier: self.earlier.clone(), ..*self };
        tail.offset = 0;
        tail.copy(client, &mut all)?;
        Ok(String::from_utf8_lossy(&all.0).into_owned())
    }
}

/// Keeps a log in memory.
struct Whole(Vec<u8>);

impl Listener for Whole {
    fn output(&mut self, _: u32, _: u64, bytes: &[u8]) -> Result<(), Failure> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}
