//! The shared state behind one door: [`Store::transact`].
//!
//! A commit is the next state and the moves of files that go with it, in one lock hold. It takes effect by the exclusive creation of
//! the next revision's file ([`crate::volume::revisions`]): a committed revision never disappears, even where the lock does not exclude or its
//! holder stood still and was passed by. Nothing is waited for inside the hold: no process, no network, no reading of the inbox.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::decide::plan::{Change, Matter, Plan, sign};
use crate::model::device::Me;
use crate::model::state::{CHAIN_LENGTH, REBUILD_STEP, SCHEMA, State};
use crate::model::time::Moment;
use crate::volume::atomic::{Temporary, discard, stage, write_over};
use crate::volume::disk::{Disk, Guard};
use crate::volume::layout::{CORRUPT, Layout, is_hidden};
use crate::volume::revisions::{self, HEAD, STATE_LIMIT};
use crate::volume::{self, Context, found, heartbeat};

mod moves;

pub use moves::Failure;

/// How much of the lock's file is read for the revisions noted there, bytes: more than were ever rebuilt.
const NOTED: usize = 64 << 10;

/// Why nothing was committed.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Another process holds the lock.
    #[error("the lock is held by another process")]
    Busy,
    /// The state is of a newer program, and why this one does not understand it.
    #[error("state.json {0}")]
    Newer(String),
    /// Another device committed while this one held the lock.
    #[error("another device committed while this one held the lock")]
    Raced,
    /// The volume failed.
    #[error(transparent)]
    Volume(#[from] volume::Error),
}

/// What became of a plan.
#[derive(Debug)]
pub struct Committed {
    /// The plan that was made under the lock.
    pub plan: Plan,
    /// For each of its changes: why it did not happen, if it did not.
    pub failed: Vec<Option<Failure>>,
}

impl Committed {
    /// Each change with what became of it.
    pub fn changes(&self) -> impl Iterator<Item = (&Change, Option<&Failure>)> {
        self.plan.changes.iter().zip(self.failed.iter().map(Option::as_ref))
    }
}

/// The state of a volume, as one session sees and changes it.
pub struct Store {
    disk: Rc<dyn Disk>,
    layout: Layout,
    me: Me,
    names: Temporary,
    state: Arc<State>,
    /// The first bytes of the file that [`Store::state`] was read from or written to; empty: none.
    head: Vec<u8>,
    mine: Vec<u64>,
    /// The text of the state that was staged last: its memory serves the next one.
    text: Vec<u8>,
    /// The number that the file of a state that is made anew gets: the next one after those that were there. Its revision is far
    /// above that, and another device that has found the state, or made it too, must meet it all the same.
    number: Option<u64>,
    /// A sentence that proves that two devices held the lock at once; `None`: nothing was seen that does.
    breach: Option<String>,
    /// The time for which the lock may be busy without a commit before its file is replaced; `None`: it is never.
    patience: Option<Duration>,
    busy: Option<Busy>,
    /// Something to say to people: a state was rebuilt, a damaged one kept.
    notices: Vec<String>,
    is_watched: bool,
}

/// The lock is busy.
#[derive(Debug, Clone, Copy)]
struct Busy {
    since: Duration,
    last_seen: Duration,
    /// The newest revision then.
    revision: u64,
}

/// The lock, held, and since when.
struct Hold {
    _guard: Guard,
    since: Duration,
}

/// A state as it lies on the disk.
enum Loaded {
    Same,
    New(State, Vec<u8>),
    /// The newest revision is not in `state.json` yet, or not any more: its text, and what is wrong with the file if it is damaged.
    Ahead(State, Vec<u8>, Option<String>),
    /// There is neither a copy nor a revision.
    Missing,
    /// The error of the parser, and the number after that of the damaged revision.
    Damaged(String, u64),
}

impl Store {
    /// A view that has read nothing yet.
    #[must_use]
    pub fn new(disk: Rc<dyn Disk>, layout: Layout, me: Me) -> Self {
        Self {
            disk,
            names: Temporary::new(me.session.clone()),
            layout,
            me,
            state: Arc::default(),
            head: Vec::new(),
            mine: Vec::new(),
            text: Vec::new(),
            number: None,
            breach: None,
            patience: None,
            busy: None,
            notices: Vec::new(),
            is_watched: true,
        }
    }

    /// The newest state that was read or written.
    #[must_use]
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Returns a sentence that proves that two devices held the lock at once; `None`: nothing was seen that does.
    #[must_use]
    pub fn breach(&self) -> Option<&str> {
        self.breach.as_deref()
    }

    /// Has the lock's file replaced once it was busy for so long without a commit: its holder stands still, and cannot commit any
    /// more when it goes on.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = Some(patience);
    }

    /// What people should know, once.
    pub fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices)
    }

    /// Reads the state without the lock: the file is always one whole revision. `false`: it is missing or damaged, and the last known one is kept.
    ///
    /// # Errors
    /// [`Refused::Newer`] or [`Refused::Volume`].
    pub fn refresh(&mut self) -> Result<bool, Refused> {
        match self.load()? {
            Loaded::Same => Ok(true),
            // A network file system may show an older file for a while; what is there under the lock counts.
            Loaded::New(state, _) | Loaded::Ahead(state, ..) if state.revision < self.state.revision => {
                self.refresh_under_lock()
            }
            Loaded::New(state, head) => {
                self.adopt(state, head);
                Ok(true)
            }
            // Its committer is just about to bring the copy up to date, or died.
            Loaded::Ahead(state, _, None) => {
                self.adopt(state, Vec::new());
                Ok(true)
            }
            Loaded::Ahead(_, _, Some(_)) | Loaded::Missing | Loaded::Damaged(..) => Ok(false),
        }
    }

    /// Returns whether `state.json` is older than the newest revision, as far as was seen: [`Store::ensure`] brings it up to date.
    #[must_use]
    pub fn is_copy_behind(&self) -> bool {
        self.state.revision > 0 && self.head.is_empty()
    }

    fn refresh_under_lock(&mut self) -> Result<bool, Refused> {
        let Ok(hold) = self.lock() else { return Ok(true) };
        let loaded = self.load()?;
        drop(hold);
        if let Loaded::New(state, head) = loaded {
            self.adopt(state, head);
        }
        Ok(true)
    }

    /// Asks `rules` for a plan with the newest state under the lock, moves the files, commits.
    ///
    /// A change of which one move cannot be done is left out, and with it every claim planned behind it; nothing that
    /// happened is undone.
    ///
    /// # Errors
    /// [`Refused`]; then no revision was made. Moves may have happened: the same plan made again finishes them.
    pub fn transact(&mut self, now: Moment, rules: &mut dyn FnMut(&State) -> Plan) -> Result<Committed, Refused> {
        let hold = self.lock()?;
        let rebuilt = self.load_for_change(now)?;
        let plan = rules(&self.state);
        if plan.is_empty() && !rebuilt && !crate::planted!(CommitNothing) {
            return Ok(Committed { plan, failed: Vec::new() });
        }
        self.commit(plan, rebuilt, hold)
    }

    fn commit(&mut self, plan: Plan, rebuilt: bool, hold: Hold) -> Result<Committed, Refused> {
        // Written before anything moves: a full disk is found while there is nothing to put right.
        let hoped = plan.apply(&self.state, &self.me, |_| true);
        let (mut staged, mut head) = self.stage(&hoped)?;
        if let Err(raced) = self.nobody_else() {
            discard(&*self.disk, &staged);
            return Err(raced);
        }
        let failed = self.move_all(&plan);
        let is_whole = failed.iter().all(Option::is_none);
        let next = if is_whole { hoped } else { plan.apply(&self.state, &self.me, |index| failed[index].is_none()) };
        let is_needed = rebuilt || !self.state.says_the_same(&next) || crate::planted!(CommitNothing);
        if !is_whole || !is_needed {
            discard(&*self.disk, &staged);
        }
        if !is_needed {
            return Ok(Committed { plan, failed });
        }
        if !is_whole {
            (staged, head) = self.stage(&next)?;
        }
        self.publish(next, &staged, head, &hold)?;
        drop(hold);
        self.tell();
        Ok(Committed { plan, failed })
    }

    /// Changes what no run and no file is part of, such as what people ask of devices, in one lock hold. `change` says whether there
    /// is anything to commit.
    ///
    /// # Errors
    /// [`Refused`]; then nothing changed.
    pub fn change(&mut self, now: Moment, change: &mut dyn FnMut(&mut State) -> bool) -> Result<bool, Refused> {
        let hold = self.lock()?;
        let rebuilt = self.load_for_change(now)?;
        let mut next = (*self.state).clone();
        let changed = change(&mut next);
        if !changed && !rebuilt {
            return Ok(false);
        }
        sign(&mut next, &self.me);
        let (staged, head) = self.stage(&next)?;
        if let Err(raced) = self.nobody_else() {
            discard(&*self.disk, &staged);
            return Err(raced);
        }
        self.publish(next, &staged, head, &hold)?;
        drop(hold);
        self.tell();
        Ok(changed)
    }

    fn lock(&mut self) -> Result<Hold, Refused> {
        let path = self.layout.lock();
        let taken = self.disk.lock(&path).on("lock", &path)?;
        let since = self.disk.boot();
        match taken {
            Some(guard) => {
                self.busy = None;
                Ok(Hold { _guard: guard, since })
            }
            None => {
                self.pass_by(since)?;
                Err(Refused::Busy)
            }
        }
    }

    /// Returns the size of the state that was written last, bytes.
    pub fn staged_bytes(&self) -> usize {
        self.text.len()
    }

    /// Returns whether another has the lock now. An error is none: whoever needs the lock meets it again.
    pub fn is_busy(&mut self) -> bool {
        matches!(self.lock(), Err(Refused::Busy))
    }

    /// Replaces the lock's file if its holder has stood still for long enough. Its commit, should it go on, fails: others have
    /// committed the revision that it is about to make.
    fn pass_by(&mut self, now: Duration) -> Result<(), volume::Error> {
        let Some(patience) = self.patience else { return Ok(()) };
        // After a gap it is not known whether it was the same holder all the time.
        let gap = |busy: &Busy| now.saturating_sub(busy.last_seen) > patience / 4;
        let busy = self.busy.take().filter(|busy| !gap(busy));
        let revision = self.state.revision;
        let mut busy = busy.unwrap_or(Busy { since: now, last_seen: now, revision });
        busy.last_seen = now;
        if now.saturating_sub(busy.since) < patience {
            self.busy = Some(busy);
            return Ok(());
        }
        let newest = revisions::newest(&*self.disk, &self.layout)?.unwrap_or(0);
        if newest > busy.revision {
            self.busy = Some(Busy { since: now, last_seen: now, revision: newest });
            return Ok(());
        }
        let path = self.layout.lock();
        let noted = found(self.disk.read_head(&path, NOTED)).on("read", &path)?.unwrap_or_default();
        write_over(&*self.disk, &mut self.names, &path, &noted)?;
        let seconds = patience.as_secs();
        self.notices.push(format!(
            "{} was held for {seconds} s without a commit: its holder stands still, and the file is replaced",
            path.display()
        ));
        Ok(())
    }

    /// Commits a staged state, and puts it into its place.
    fn publish(&mut self, next: State, staged: &Path, head: Vec<u8>, hold: &Hold) -> Result<(), Refused> {
        let revision = next.revision;
        let number = self.number.take().unwrap_or(revision);
        let made = revisions::commit(&*self.disk, &self.layout, &mut self.names, staged, number);
        if !matches!(made, Ok(revisions::Outcome::Committed)) {
            discard(&*self.disk, staged);
        }
        match made? {
            revisions::Outcome::Overtaken => {
                self.overtaken(revision, hold);
                return Err(Refused::Raced);
            }
            revisions::Outcome::BuiltUpon => {
                self.overtaken(revision, hold);
                self.head.clear();
            }
            revisions::Outcome::Committed => self.replace_copy(staged, head, revision),
        }
        self.mine.push(revision);
        if self.mine.len() > CHAIN_LENGTH {
            self.mine.remove(0);
        }
        self.state = Arc::new(next);
        Ok(())
    }

    /// Makes a staged state, which is committed, its readable copy.
    fn replace_copy(&mut self, staged: &Path, head: Vec<u8>, revision: u64) {
        match self.disk.replace(staged, &self.layout.state()) {
            Ok(()) => self.head = head,
            Err(error) => {
                // The next device that looks puts the copy right.
                tracing::warn!(%error, revision, "state.json is not brought up to date yet");
                discard(&*self.disk, staged);
                self.head.clear();
            }
        }
    }

    /// Another device has committed. If this one did not stand still meanwhile, two held the lock at once.
    fn overtaken(&mut self, revision: u64, hold: &Hold) {
        let held_for = self.disk.boot().saturating_sub(hold.since);
        if self.patience.is_none_or(|patience| held_for < patience / 2) {
            self.breach =
                Some(format!("revision {revision} was committed by another device while this one held the lock"));
        }
    }

    /// Says whether anybody but this process may watch the volume: without, no commit is announced.
    pub fn set_watched(&mut self, watched: bool) {
        self.is_watched = watched;
    }

    /// Wakes the devices that watch the lock's file, which changes place only when its holder stood still.
    fn tell(&self) {
        if !self.is_watched || crate::planted!(ForgetToTell) {
            return;
        }
        if let Err(error) = self.disk.touch(&self.layout.lock()) {
            tracing::debug!(%error, "the others hear of this commit at their next beat");
        }
    }

    fn move_all(&mut self, plan: &Plan) -> Vec<Option<Failure>> {
        let mut failed: Vec<Option<Failure>> = Vec::with_capacity(plan.changes.len());
        let mut room_is_sure = true;
        for change in plan.changes.iter() {
            let is_claim = matches!(change.matter, Matter::Claimed(_));
            // A claim counts on the room that earlier changes make.
            let outcome = if is_claim && !room_is_sure { Err(Failure::Deferred) } else { self.move_one(change) };
            room_is_sure &= is_claim || outcome.is_ok();
            failed.push(outcome.err());
        }
        failed
    }

    fn move_one(&mut self, change: &Change) -> Result<(), Failure> {
        for step in &change.moves {
            moves::perform(&*self.disk, &self.layout, &mut self.names, &self.me.session, step)?;
        }
        Ok(())
    }

    fn stage(&mut self, state: &State) -> Result<(PathBuf, Vec<u8>), volume::Error> {
        let path = self.layout.state();
        self.text.clear();
        state.write_json(&mut self.text).map_err(std::io::Error::from).on("write", &path)?;
        self.text.push(b'\n');
        let staged = stage(&*self.disk, &mut self.names, &path, &self.text)?;
        self.text.shrink_to(self.text.len() * 4);
        Ok((staged, head_of(&self.text)))
    }

    /// The last look before anything moves: what another has committed makes the moves vain.
    fn nobody_else(&self) -> Result<(), Refused> {
        let path = self.layout.state();
        let head = found(self.disk.read_head(&path, HEAD)).on("read", &path)?.unwrap_or_default();
        if head == self.head { Ok(()) } else { Err(Refused::Raced) }
    }

    /// Under the lock: the newest state, made anew if it is missing or damaged. `true`: it was.
    fn load_for_change(&mut self, now: Moment) -> Result<bool, Refused> {
        self.number = None;
        let (is_first, number) = match self.load()? {
            Loaded::Same => return Ok(false),
            Loaded::New(state, head) => {
                self.adopt(state, head);
                return Ok(false);
            }
            Loaded::Ahead(state, bytes, damaged) => {
                self.restore_copy(now, &bytes, damaged)?;
                self.adopt(state, head_of(&bytes));
                return Ok(false);
            }
            Loaded::Missing => {
                // An empty folder where the volume was mounted is no volume that lost its state.
                let path = self.layout.volume_id();
                self.disk.stat(&path).on("look at", &path)?;
                (self.seen_revision()? == 0 && !self.has_history(), 1)
            }
            Loaded::Damaged(why, number) => {
                self.keep_damaged(now, &why)?;
                (false, number)
            }
        };
        let mut state = State::default();
        let revision = self.seen_revision()?;
        state.revision = if is_first { 0 } else { revision + REBUILD_STEP };
        // Lost again before anybody has seen it, it must not go on from the same number.
        let note = format!("{}\n", state.revision + 1);
        let lock = self.layout.lock();
        self.disk.append(&lock, note.as_bytes()).on("write", &lock)?;
        if !is_first {
            // Its own commit counts up once more.
            state.rebuilt = Some(state.revision + 1);
            self.notices.push(format!(
                "state.json was missing or damaged: it is rebuilt from what devices hold, from revision {}",
                state.revision + 1
            ));
        }
        self.state = Arc::new(state);
        self.head.clear();
        self.mine.clear();
        self.number = Some(number);
        Ok(!is_first)
    }

    /// The largest revision of which anything is known: seen here, told by a heartbeat, or noted in the lock's file when a state
    /// was made.
    fn seen_revision(&self) -> Result<u64, Refused> {
        let beats = heartbeat::read_all(&*self.disk, &self.layout)?.beats;
        let lock = self.layout.lock();
        let noted = found(self.disk.read_head(&lock, NOTED)).on("read", &lock)?.unwrap_or_default();
        let noted = String::from_utf8_lossy(&noted);
        let noted = noted.lines().filter_map(|line| line.parse().ok());
        let told = beats.iter().map(|beat| beat.revision);
        let made = revisions::newest(&*self.disk, &self.layout)?;
        Ok(told.chain(noted).chain(made).fold(self.state.revision, u64::max))
    }

    /// Whether the volume was used before: then a missing state is a lost one.
    fn has_history(&self) -> bool {
        [self.layout.running(), self.layout.waiting(), self.layout.results()]
            .iter()
            .any(|folder| self.disk.list(folder).is_ok_and(|names| names.iter().any(|name| !is_hidden(name))))
    }

    fn keep_damaged(&mut self, now: Moment, why: &str) -> Result<(), volume::Error> {
        let path = self.layout.state();
        let kept = path.with_file_name(format!("{CORRUPT}{}", crate::model::ids::stamp(now.wall)));
        self.disk.rename_new(&path, &kept).on("keep the damaged", &path)?;
        self.notices.push(format!("state.json is damaged ({why}): it is kept as {}", kept.display()));
        Ok(())
    }

    fn load(&self) -> Result<Loaded, Refused> {
        // Without the lock, or where it does not exclude, the newest revision may be an old one before it is read.
        for _ in 0..8 {
            if let Some(loaded) = self.try_to_load()? {
                return Ok(loaded);
            }
        }
        Err(Refused::Raced)
    }

    /// `None`: what was to be read is gone, because there is a newer revision.
    fn try_to_load(&self) -> Result<Option<Loaded>, Refused> {
        let path = self.layout.state();
        let head = found(self.disk.read_head(&path, HEAD)).on("read", &path)?;
        let is_known = !self.head.is_empty() && head.as_ref() == Some(&self.head);
        if is_known && !revisions::is_made(&*self.disk, &self.layout, self.state.revision + 1)? {
            return Ok(Some(Loaded::Same));
        }
        let bytes = match head {
            Some(_) => found(self.disk.read(&path, STATE_LIMIT)).on("read", &path)?.map(|(bytes, _)| bytes),
            None => None,
        };
        let copy = match &bytes {
            Some(bytes) => parse(bytes),
            None => Ok(Loaded::Missing),
        };
        let Some(newest) = revisions::newest(&*self.disk, &self.layout)? else { return copy.map(Some) };
        let is_copy = |bytes: &Vec<u8>| {
            schema_of(bytes) == Some(u64::from(SCHEMA)) && revision_of(bytes).is_some_and(|revision| revision <= newest)
        };
        match copy {
            Ok(Loaded::New(state, head)) if state.revision >= newest => Ok(Some(Loaded::New(state, head))),
            Ok(Loaded::Damaged(why, _)) => self.load_revision(newest, Some(why)),
            Ok(Loaded::New(..) | Loaded::Same | Loaded::Ahead(..) | Loaded::Missing) => {
                self.load_revision(newest, None)
            }
            // If a newer program of this schema wrote that word, it stands in the revision too; else the copy was damaged.
            Err(Refused::Newer(why)) if bytes.as_ref().is_some_and(is_copy) => self.load_revision(newest, Some(why)),
            Err(refused) => Err(refused),
        }
    }

    /// Loads the newest revision, of which `state.json` is no copy.
    fn load_revision(&self, revision: u64, damaged: Option<String>) -> Result<Option<Loaded>, Refused> {
        let path = self.layout.revision(revision);
        let read = found(self.disk.read(&path, STATE_LIMIT)).on("read", &path)?;
        let Some((bytes, _)) = read else { return Ok(None) };
        Ok(Some(match parse(&bytes)? {
            Loaded::New(state, _) => Loaded::Ahead(state, bytes, damaged),
            Loaded::Damaged(why, _) => Loaded::Damaged(why, revision + 1),
            other @ (Loaded::Same | Loaded::Ahead(..) | Loaded::Missing) => other,
        }))
    }

    /// Makes `state.json` a copy of the newest revision again.
    fn restore_copy(&mut self, now: Moment, bytes: &[u8], damaged: Option<String>) -> Result<(), volume::Error> {
        if let Some(why) = damaged {
            self.keep_damaged(now, &why)?;
        }
        write_over(&*self.disk, &mut self.names, &self.layout.state(), bytes)
    }

    fn adopt(&mut self, state: State, head: Vec<u8>) {
        let oldest = state.last_commits.last().map_or(u64::MAX, |(revision, _)| *revision);
        // A short chain begins with a rebuilt state: what came before it was lost with the file, not by the lock.
        let is_rebuilt = state.last_commits.len() < CHAIN_LENGTH;
        let lost = self.mine.iter().find(|&&revision| {
            let named = state.last_commits.iter().any(|(r, by)| *r == revision && *by == self.me.session);
            let is_covered = if is_rebuilt { revision > oldest } else { revision >= oldest };
            is_covered && revision <= state.revision && !named
        });
        if let Some(&lost) = lost {
            self.breach =
                Some(format!("revision {lost} was committed here and is missing from revision {}", state.revision));
            self.mine.retain(|&revision| revision != lost);
        }
        self.state = Arc::new(state);
        self.head = head;
    }

    /// Makes the first state of a volume, or of a lost one, if there is none.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn ensure(&mut self, now: Moment) -> Result<(), Refused> {
        let hold = self.lock()?;
        self.load_for_change(now)?;
        if !self.head.is_empty() {
            return Ok(());
        }
        let mut next = (*self.state).clone();
        sign(&mut next, &self.me);
        let (staged, head) = self.stage(&next)?;
        self.publish(next, &staged, head, &hold)?;
        Ok(())
    }
}

/// Returns the bytes that tell one revision from every other.
fn head_of(bytes: &[u8]) -> Vec<u8> {
    bytes[..bytes.len().min(HEAD)].to_vec()
}

/// Reads a state. One of a newer schema, or with a word that this program does not know, is refused.
fn parse(bytes: &[u8]) -> Result<Loaded, Refused> {
    let newer = |found| Refused::Newer(format!("has schema {found}, this program knows {SCHEMA}"));
    match serde_json::from_slice::<State>(bytes) {
        Ok(state) if state.schema > SCHEMA => Err(newer(state.schema.into())),
        Ok(state) => Ok(Loaded::New(state, head_of(bytes))),
        Err(error) => match schema_of(bytes) {
            Some(schema) if schema > u64::from(SCHEMA) => Err(newer(schema)),
            _ if has_unknown_word(&error) => {
                Err(Refused::Newer(format!("has a value that this program does not know: {error}")))
            }
            _ => Ok(Loaded::Damaged(error.to_string(), 1)),
        },
    }
}

/// Returns the schema of a state, whatever else it says.
fn schema_of(bytes: &[u8]) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct Numbered {
        schema: u64,
    }
    serde_json::from_slice::<Numbered>(bytes).ok().map(|numbered| numbered.schema)
}

/// Returns the revision of a state, whatever else it says.
fn revision_of(bytes: &[u8]) -> Option<u64> {
    #[derive(serde::Deserialize)]
    struct Numbered {
        revision: u64,
    }
    serde_json::from_slice::<Numbered>(bytes).ok().map(|numbered| numbered.revision)
}

/// Returns whether a state could not be read because of a word that a newer program has put into it: a cause, a status, a request.
/// Such a file is whole. That a variant is unknown is told by serde's text alone.
fn has_unknown_word(error: &serde_json::Error) -> bool {
    error.is_data() && error.to_string().starts_with("unknown variant")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_of_a_newer_program_is_refused_and_is_no_damage() {
        let state = |run: &str, mark: &str, request: &str| {
            format!(
                r#"{{"schema":1,"revision":7,"last_commits":[],"runs":{{"20261121T034156123Z-k3f9q2":{{"job":"a","stem":"a","cause":"{run}",
                "trigger":"a.json","attempt":1,"device":null,"session":null,"priority":0,"slots":1,"claimed_at":"2026-11-21T03:41:57.000Z"}}}},
                "jobs":{{"a":{{"last_status":"{mark}"}}}},
                "requests":[{{"id":"1","do":"{request}","run":null,"for":"d","at":"2026-11-21T03:41:57.000Z"}}]}}"#
            )
        };
        let known = state("trigger", "lost", "drain");
        assert!(matches!(parse(known.as_bytes()), Ok(Loaded::New(..))));
        for newer in [state("moon", "lost", "drain"), state("trigger", "dim", "drain"), state("trigger", "lost", "wax")]
        {
            let refused = parse(newer.as_bytes()).err().map(|refused| refused.to_string()).unwrap_or_default();
            let word = ["moon", "dim", "wax"].into_iter().find(|word| newer.contains(word)).unwrap();
            assert!(refused.starts_with("state.json has a value") && refused.contains(word), "{refused}");
        }
        for damaged in ["", "{}", &known[..known.len() / 2], &known.replace("\"revision\":7", "\"revision\":\"7\"")] {
            assert!(matches!(parse(damaged.as_bytes()), Ok(Loaded::Damaged(..))), "{damaged}");
        }
        assert!(matches!(parse(b"{\"schema\":2}"), Err(Refused::Newer(_))));
    }
}
