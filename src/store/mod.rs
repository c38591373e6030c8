//! The shared state behind one door: [`Store::transact`].
//!
//! A commit is the next state and the moves of files that go with it, in one lock hold. This room promises that a committed
//! revision never disappears while the lock excludes; where it does not, the chain of commits shows it and
//! [`Store::breach`] says so. Nothing is waited for inside the hold: no process, no network, no reading of the inbox.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use crate::decide::plan::{Change, Matter, Plan, sign};
use crate::model::device::Me;
use crate::model::state::{CHAIN_LENGTH, REBUILD_STEP, SCHEMA, State};
use crate::model::time::Moment;
use crate::volume::atomic::{Temporary, discard, stage};
use crate::volume::disk::{Disk, Guard};
use crate::volume::layout::{Layout, is_hidden};
use crate::volume::{self, Context, found, heartbeat};

mod moves;

pub use moves::Failure;

/// How much of `state.json` names its revision and newest commits, bytes; generously.
const HEAD: usize = 1_024;
/// How much of the lock's file is read for the revisions noted there, bytes: more than were ever rebuilt.
const NOTED: usize = 64 << 10;
/// The largest state that is read, bytes.
const STATE_LIMIT: u64 = 256 << 20;

/// Why nothing was committed.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Another process holds the lock.
    #[error("the lock is held by another process")]
    Busy,
    /// The state is of a newer program.
    #[error("state.json has schema {found}, this program knows {SCHEMA}")]
    NewerSchema {
        /// The schema it has.
        found: u64,
    },
    /// Another device committed while this one held the lock.
    #[error("state.json changed while the lock was held: the volume does not honour locks")]
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

/// A revision that was committed here and is missing from a later chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breach {
    /// The revision that disappeared.
    pub lost: u64,
    /// The revision in which it is missing.
    pub seen: u64,
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
    breach: Option<Breach>,
    /// Something to say to people: a state was rebuilt, a damaged one kept.
    notices: Vec<String>,
    is_watched: bool,
}

/// A state as it lies on the disk.
enum Loaded {
    Same,
    New(State, Vec<u8>),
    Missing,
    Damaged(String),
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
            breach: None,
            notices: Vec::new(),
            is_watched: true,
        }
    }

    /// The newest state that was read or written.
    #[must_use]
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// A proof that two devices held the lock at once, if one was seen.
    #[must_use]
    pub fn breach(&self) -> Option<&Breach> {
        self.breach.as_ref()
    }

    /// What people should know, once.
    pub fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices)
    }

    /// Reads the state without the lock: the file is always one whole revision. `false`: it is missing or damaged, and the last known one is kept.
    ///
    /// # Errors
    /// [`Refused::NewerSchema`] or [`Refused::Volume`].
    pub fn refresh(&mut self) -> Result<bool, Refused> {
        match self.load()? {
            Loaded::Same => Ok(true),
            // A network file system may show an older file for a while; what is there under the lock counts.
            Loaded::New(state, _) if state.revision < self.state.revision => self.refresh_under_lock(),
            Loaded::New(state, head) => {
                self.adopt(state, head);
                Ok(true)
            }
            Loaded::Missing | Loaded::Damaged(_) => Ok(false),
        }
    }

    fn refresh_under_lock(&mut self) -> Result<bool, Refused> {
        let path = self.layout.lock();
        let Some(guard) = self.disk.lock(&path).on("lock", &path)? else { return Ok(true) };
        let loaded = self.load()?;
        drop(guard);
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
        let path = self.layout.lock();
        let Some(guard) = self.disk.lock(&path).on("lock", &path)? else { return Err(Refused::Busy) };
        let rebuilt = self.load_for_change(now)?;
        let plan = rules(&self.state);
        if plan.is_empty() && !rebuilt {
            return Ok(Committed { plan, failed: Vec::new() });
        }
        self.commit(plan, guard)
    }

    fn commit(&mut self, plan: Plan, guard: Guard) -> Result<Committed, Refused> {
        // Written before anything moves: a full disk is found while there is nothing to put right.
        let hoped = plan.apply(&self.state, &self.me, |_| true);
        let (mut staged, mut head) = self.stage(&hoped)?;
        if let Err(raced) = self.nobody_else() {
            discard(&*self.disk, &staged);
            return Err(raced);
        }
        let failed = self.move_all(&plan);
        let mut next = hoped;
        if failed.iter().any(Option::is_some) {
            discard(&*self.disk, &staged);
            next = plan.apply(&self.state, &self.me, |index| failed[index].is_none());
            (staged, head) = self.stage(&next)?;
        }
        self.publish(next, &staged, head)?;
        drop(guard);
        self.tell();
        Ok(Committed { plan, failed })
    }

    /// Changes what no run and no file is part of, such as what people ask of devices, in one lock hold. `change` says whether there
    /// is anything to commit.
    ///
    /// # Errors
    /// [`Refused`]; then nothing changed.
    pub fn change(&mut self, now: Moment, change: &mut dyn FnMut(&mut State) -> bool) -> Result<bool, Refused> {
        let path = self.layout.lock();
        let Some(guard) = self.disk.lock(&path).on("lock", &path)? else { return Err(Refused::Busy) };
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
        self.publish(next, &staged, head)?;
        drop(guard);
        self.tell();
        Ok(changed)
    }

    /// Puts a staged state into its place, under the lock.
    fn publish(&mut self, next: State, staged: &Path, head: Vec<u8>) -> Result<(), volume::Error> {
        let path = self.layout.state();
        self.disk.replace(staged, &path).inspect_err(|_| discard(&*self.disk, staged)).on("write", &path)?;
        self.mine.push(next.revision);
        if self.mine.len() > CHAIN_LENGTH {
            self.mine.remove(0);
        }
        self.state = Arc::new(next);
        self.head = head;
        Ok(())
    }

    /// Says whether anybody but this process may watch the volume: without, no commit is announced.
    pub fn set_watched(&mut self, watched: bool) {
        self.is_watched = watched;
    }

    /// Wakes whoever watches. The lock file stays the same file for ever, so one watch on it hears of every commit.
    fn tell(&self) {
        if !self.is_watched {
            return;
        }
        if let Err(error) = self.disk.touch(&self.layout.lock()) {
            tracing::debug!(%error, "the others hear of this commit at their next beat");
        }
    }

    fn move_all(&mut self, plan: &Plan) -> Vec<Option<Failure>> {
        let mut failed: Vec<Option<Failure>> = Vec::with_capacity(plan.changes.len());
        let mut room_is_sure = true;
        for change in &plan.changes {
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
        let mut bytes = Vec::with_capacity(256 + state.runs.len() * 300);
        let path = self.layout.state();
        serde_json::to_writer(&mut bytes, state).map_err(std::io::Error::from).on("write", &path)?;
        bytes.push(b'\n');
        let staged = stage(&*self.disk, &mut self.names, &path, &bytes)?;
        bytes.truncate(HEAD);
        Ok((staged, bytes))
    }

    /// The last look before anything moves. It cannot exclude a second holder, but it makes the gap a few microseconds.
    fn nobody_else(&self) -> Result<(), Refused> {
        let path = self.layout.state();
        let head = found(self.disk.read_head(&path, HEAD)).on("read", &path)?.unwrap_or_default();
        if head == self.head { Ok(()) } else { Err(Refused::Raced) }
    }

    /// Under the lock: the newest state, made anew if it is missing or damaged. `true`: it was.
    fn load_for_change(&mut self, now: Moment) -> Result<bool, Refused> {
        let is_first = match self.load()? {
            Loaded::Same => return Ok(false),
            Loaded::New(state, head) => {
                self.adopt(state, head);
                return Ok(false);
            }
            Loaded::Missing => {
                // An empty folder where the volume was mounted is no volume that lost its state.
                let path = self.layout.volume_id();
                self.disk.stat(&path).on("look at", &path)?;
                self.seen_revision()? == 0 && !self.has_history()
            }
            Loaded::Damaged(why) => {
                self.keep_damaged(now, &why)?;
                false
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
        Ok(told.chain(noted).fold(self.state.revision, u64::max))
    }

    /// Whether the volume was used before: then a missing state is a lost one.
    fn has_history(&self) -> bool {
        [self.layout.running(), self.layout.waiting(), self.layout.results()]
            .iter()
            .any(|folder| self.disk.list(folder).is_ok_and(|names| names.iter().any(|name| !is_hidden(name))))
    }

    fn keep_damaged(&mut self, now: Moment, why: &str) -> Result<(), volume::Error> {
        let path = self.layout.state();
        let kept = path.with_file_name(format!("state.json.corrupt-{}", crate::model::ids::stamp(now.wall)));
        self.disk.rename_new(&path, &kept).on("keep the damaged", &path)?;
        self.notices.push(format!("state.json is damaged ({why}): it is kept as {}", kept.display()));
        Ok(())
    }

    fn load(&self) -> Result<Loaded, Refused> {
        let path = self.layout.state();
        let Some(head) = found(self.disk.read_head(&path, HEAD)).on("read", &path)? else { return Ok(Loaded::Missing) };
        if !self.head.is_empty() && head == self.head {
            return Ok(Loaded::Same);
        }
        let Some((bytes, _)) = found(self.disk.read(&path, STATE_LIMIT)).on("read", &path)? else {
            return Ok(Loaded::Missing);
        };
        parse(&bytes)
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
            self.breach = Some(Breach { lost, seen: state.revision });
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
        let path = self.layout.lock();
        let Some(guard) = self.disk.lock(&path).on("lock", &path)? else { return Err(Refused::Busy) };
        self.load_for_change(now)?;
        if !self.head.is_empty() {
            return Ok(());
        }
        let mut next = (*self.state).clone();
        sign(&mut next, &self.me);
        let (staged, head) = self.stage(&next)?;
        self.publish(next, &staged, head)?;
        drop(guard);
        Ok(())
    }
}

fn parse(bytes: &[u8]) -> Result<Loaded, Refused> {
    #[derive(serde::Deserialize)]
    struct Schema {
        schema: u64,
    }
    match serde_json::from_slice::<Schema>(bytes) {
        Ok(Schema { schema: found }) if found > u64::from(SCHEMA) => return Err(Refused::NewerSchema { found }),
        Ok(_) | Err(_) => {}
    }
    Ok(match serde_json::from_slice::<State>(bytes) {
        Ok(state) => Loaded::New(state, bytes[..bytes.len().min(HEAD)].to_vec()),
        Err(error) => Loaded::Damaged(error.to_string()),
    })
}
