//! One tick's decision: what becomes of every run that something happened to.
//!
//! A plan is a list of [`Change`]s, one a run: moves of files, then the run's new place in the state. A change happens
//! entirely or, where another device was faster, not at all; the others stand. What must be started or stopped is not in it:
//! that is derived from the state once it is committed ([`super::derive`]).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use super::attempts::Attempts;
use super::catalog::Catalog;
use super::claim;
use super::deferred::Deferred;
use super::liveness::Liveness;
use super::lost::{self, Evidence};
use super::marks::{self, Note};
use super::notify;
use super::queue::Queue;
use super::recover::{self, Orphan};
use super::settle;
use crate::model::device::Me;
use crate::model::entry::{Entry, FileId, FileKey, KeySeen};
use crate::model::ids::{JobName, RunId};
use crate::model::lease::{Lease, Outliving};
use crate::model::limits::Resources;
use crate::model::news::News;
use crate::model::result::{Cause, Outcome};
use crate::model::runs::Runs;
use crate::model::state::{CHAIN_LENGTH, Held, JobMark, State};
use crate::model::time::Moment;
use chrono::{DateTime, Utc};

/// Everything a device sees when it decides.
#[derive(Debug)]
pub struct Observation {
    /// Both clocks.
    pub now: Moment,
    /// Who decides.
    pub me: Me,
    /// The volume's random id.
    pub volume: String,
    /// Whether this device has had nothing to do for long enough to run idle jobs.
    pub quiet: bool,
    /// Whether it is time to look after what need not be looked after at every turn: it is at beats.
    pub upkeep: bool,
    /// Jobs whose definition came, changed or went since this device noted it.
    pub fresh: BTreeSet<JobName>,
    /// Those whose definition came or changed while this device ran.
    pub changed: BTreeSet<JobName>,
    /// What a lost state knew of jobs, as far as this device knows it …
    pub marks: BTreeMap<JobName, JobMark>,
    /// … and the rebuilt state for which that was found out.
    pub remembered: Option<u64>,
    /// Due times whose run there was already.
    pub spent: BTreeSet<RunId>,
    /// The time for which results are kept (`--keep`).
    pub keep: Duration,
    /// Whether it takes new work: not drained, not leaving, able to write.
    pub taking: bool,
    /// A person asked it to take no new work, as its newest heartbeat says.
    pub drained: bool,
    /// What people set of it, as its newest heartbeat says.
    pub set: Resources,
    /// The jobs it knows.
    pub catalog: Arc<Catalog>,
    /// What waits.
    pub queue: Queue,
    /// Who lives.
    pub devices: Liveness,
    /// Its own attempts.
    pub attempts: Attempts,
    /// What was found out about attempts whose holder may be dead.
    pub evidence: BTreeMap<Lease, Evidence>,
    /// Attempts that an earlier life of this device started and that go on without it.
    pub found: BTreeMap<Lease, Outliving>,
    /// Runs whose changes wait because one failed.
    pub deferred: Deferred,
    /// Files in `.running` that nobody holds.
    pub orphans: Vec<Orphan>,
    /// Runs listed as waiting whose file has been nowhere for a whole lease, and the first of their attempts that has no result; `None`:
    /// one of their results is final.
    pub vanished: BTreeMap<RunId, Option<u32>>,
    /// The rebuilt state of which every file in `.running` was found to be held, after every living device had worked through
    /// it: the revision in [`State::rebuilt`].
    pub accounted: Option<u64>,
    /// Whether it tells webhooks: not leaving for good.
    pub may_tell: bool,
    /// What it has told, or given up, and the state does not know yet.
    pub told: BTreeMap<JobName, News>,
}

impl Observation {
    /// Returns what a device sees that has looked at nothing yet: itself. It takes no work.
    #[must_use]
    pub fn new(me: Me, volume: String, lease: Duration, now: Moment) -> Self {
        Self {
            now,
            me,
            volume,
            quiet: false,
            upkeep: false,
            fresh: BTreeSet::new(),
            changed: BTreeSet::new(),
            marks: BTreeMap::new(),
            remembered: None,
            spent: BTreeSet::new(),
            keep: Duration::MAX,
            taking: false,
            drained: false,
            set: Resources::default(),
            catalog: Arc::default(),
            queue: Queue::default(),
            devices: Liveness::new(lease, now.boot),
            attempts: Attempts::default(),
            evidence: BTreeMap::new(),
            found: BTreeMap::new(),
            deferred: Deferred::default(),
            orphans: Vec::new(),
            vanished: BTreeMap::new(),
            accounted: None,
            may_tell: false,
            told: BTreeMap::new(),
        }
    }

    /// Returns whether changes of this run wait because one failed.
    #[must_use]
    pub fn defers(&self, run: &RunId) -> bool {
        self.deferred.holds(run, self.now.boot)
    }

    /// Takes in what waits.
    pub fn queue_up(&mut self, entry: Arc<Entry>, now: Moment) {
        self.queue.insert(entry, &self.catalog, &self.me, now);
    }

    /// Places everything that waits anew: jobs changed, or this device did.
    pub fn place_anew(&mut self, now: Moment) {
        self.queue.place_anew(&self.catalog, &self.me, now);
    }

    /// Notes that the definition of these jobs changed: no backoff of theirs goes on.
    pub fn end_backoff(&mut self, changed: BTreeSet<JobName>, now: Moment) {
        self.queue.end_backoff(&changed, &self.catalog, &self.me, now);
        self.changed.extend(changed);
    }

    /// Lets time pass for what waits.
    pub fn advance(&mut self, now: Moment) {
        self.queue.advance(&self.catalog, &self.me, now);
    }
}

/// One step with a file. The store knows the paths.
#[derive(Debug, Clone, PartialEq)]
pub enum Move {
    /// This attempt must have no result yet: else another device has ended it, in a commit that was lost.
    Unended {
        /// The job.
        job: JobName,
        /// The attempt.
        lease: Lease,
    },
    /// Makes the file of a run anew that has vanished from `.running`, in `.waiting` for its next attempt. If it is in `.running` after
    /// all, it is moved.
    Remake {
        /// The attempt that has ended.
        lease: Lease,
        /// Its stem.
        stem: String,
        /// The next one does not begin before this instant.
        not_before: DateTime<Utc>,
        /// The content.
        text: String,
    },
    /// No file of this run may be in `.running` or `.waiting`.
    Absent {
        /// The run.
        run: RunId,
    },
    /// The file of this held attempt must be in `.running`.
    Expect {
        /// The attempt.
        lease: Lease,
        /// Its stem.
        stem: String,
    },
    /// Makes the file of an idempotency key, naming the run. If another run has it, what was taken goes back.
    Key {
        /// The key.
        id: String,
        /// Where the run's file came from.
        from: FileKey,
        /// Its stem.
        stem: String,
        /// The attempt whose run has it.
        lease: Lease,
        /// Its job.
        job: JobName,
        /// What was seen of it: nobody has it, or who has it no longer counts.
        seen: KeySeen,
    },
    /// Moves what waits into `.running`: the claim. Only one device can.
    Take {
        /// The file.
        from: FileKey,
        /// The content that was read.
        expect: FileId,
        /// The attempt that begins.
        lease: Lease,
        /// Its stem.
        stem: String,
        /// Its job.
        job: JobName,
        /// It is a fresh drop, whose id must not have been used before.
        fresh: bool,
    },
    /// Makes the file of a run that nobody dropped, in `.running`: its claim. Only one device can, and only once.
    Make {
        /// The run.
        run: RunId,
        /// Its job, and its stem.
        job: JobName,
        /// The content.
        text: String,
    },
    /// Makes the file of a run that another's end causes, in `.waiting`; if there is anything of it already, it was made before.
    Chain {
        /// The run.
        run: RunId,
        /// Its job, and its stem.
        job: JobName,
        /// The content.
        text: String,
    },
    /// Makes the log of an attempt that nobody has started, so that no device can: a start makes the attempt's log, which exists
    /// only once.
    Void {
        /// The job.
        job: JobName,
        /// The attempt.
        lease: Lease,
    },
    /// Writes the result of a run that ends without this attempt, once nobody can start it any more, and takes the run's file out of
    /// `.running`.
    EndUnstarted {
        /// The result.
        outcome: Box<Outcome>,
        /// The attempt that would come next.
        lease: Lease,
        /// The stem of the run's file.
        stem: String,
        /// Somebody handed it in.
        keep: bool,
        /// The run's file has arguments that the result does not have yet.
        has_more: bool,
    },
    /// Makes the staged result of an attempt of this session visible.
    Publish {
        /// The job.
        job: JobName,
        /// The attempt.
        lease: Lease,
    },
    /// Writes a result that no program reported.
    Record(Box<Outcome>),
    /// Moves the file of a run that is over from `.running` to `TriggersProcessed`; one that nobody handed in is removed.
    Retire {
        /// The attempt that it is named after.
        lease: Lease,
        /// Its stem.
        stem: String,
        /// Somebody handed it in.
        keep: bool,
    },
    /// Moves the file of a run that goes on from `.running` to `.waiting`, for the attempt after this one.
    Wait {
        /// The attempt that is over.
        lease: Lease,
        /// Its stem.
        stem: String,
        /// Not before this instant.
        not_before: DateTime<Utc>,
    },
    /// Renames the file of a run in `.running`, whose next attempt begins at once where this one was.
    Renew {
        /// The attempt that is over.
        lease: Lease,
        /// Its stem.
        stem: String,
    },
    /// Moves a trigger whose key was used out of the inbox.
    Duplicate {
        /// The file.
        from: FileKey,
        /// The run it would have been.
        run: RunId,
        /// Its stem.
        stem: String,
        /// The run that has the key.
        first: RunId,
    },
}

/// What a change is about: whoever planned it is told what became of it.
#[derive(Debug, Clone)]
pub enum Matter {
    /// An attempt of this device is over.
    Settled(Lease),
    /// A run that a lost state forgot is this device's.
    Kept(Lease),
    /// An attempt that an earlier life of this device started goes on.
    Adopted(Lease),
    /// An attempt of a dead device is over.
    Lost(Lease, JobName),
    /// A file in `.running` that nobody holds goes on.
    Freed(RunId),
    /// A run that waits is listed again, as a lost state had it.
    Listed(RunId),
    /// A run is listed as waiting, and its file is nowhere.
    Vanished(RunId),
    /// A run is claimed.
    Claimed(Arc<Entry>),
    /// A trigger ends without an attempt.
    Ended(Arc<Entry>),
    /// A due time makes no run.
    Passed(Arc<Entry>),
}

/// What becomes of one run.
#[derive(Debug, Clone)]
pub struct Change {
    /// What it is about.
    pub matter: Matter,
    /// The run; its entry in the state is replaced.
    pub run: RunId,
    /// In this order, before the commit.
    pub moves: Vec<Move>,
    /// Its new entry; `None`: it is no longer held.
    pub entry: Option<Arc<Held>>,
    /// What jobs remember of it.
    pub notes: Vec<(JobName, Note)>,
}

impl Change {
    /// Gives the run its new place among the open runs.
    fn open_or_close(&self, open: &mut Runs) {
        match &self.entry {
            Some(entry) => open.insert(self.run.clone(), Arc::clone(entry)),
            None => open.remove(&self.run),
        }
    }
}

/// The changes of a plan, and the open runs once they have happened.
#[derive(Debug, Default)]
pub struct Changes {
    list: Vec<Change>,
    /// The runs that they are about.
    runs: BTreeSet<RunId>,
    open: Runs,
}

impl Changes {
    /// Adds a change behind the others.
    pub fn push(&mut self, change: Change) {
        change.open_or_close(&mut self.open);
        self.runs.insert(change.run.clone());
        self.list.push(change);
    }

    /// Returns the open runs once these changes have happened.
    #[must_use]
    pub fn open_after(&self) -> &Runs {
        &self.open
    }

    /// Adds to what jobs remember of each change what `more` returns for it.
    pub fn add_notes(&mut self, mut more: impl FnMut(&Change) -> Option<(JobName, Note)>) {
        for change in &mut self.list {
            let note = more(change);
            change.notes.extend(note);
        }
    }
}

impl Deref for Changes {
    type Target = [Change];

    fn deref(&self) -> &[Change] {
        &self.list
    }
}

impl From<Vec<Change>> for Changes {
    fn from(list: Vec<Change>) -> Self {
        let mut changes = Self::default();
        list.into_iter().for_each(|change| changes.push(change));
        changes
    }
}

impl IntoIterator for Changes {
    type Item = Change;
    type IntoIter = std::vec::IntoIter<Change>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.into_iter()
    }
}

/// What one device wants to happen now.
#[derive(Debug, Default)]
pub struct Plan {
    /// Run by run.
    pub changes: Changes,
    /// What jobs remember beside that.
    pub marks: Vec<(JobName, Note)>,
    /// Jobs of which nothing is remembered any more.
    pub forgotten: Vec<JobName>,
    /// Requests and settings that are fulfilled or have nobody left to fulfil them, by id.
    pub answered: BTreeSet<String>,
    /// A rebuilt state has been worked through by every living device.
    pub rebuilt: bool,
    /// More is to be done than one commit should do.
    pub more: bool,
    /// When this device may take what it leaves to others for a moment; its own clock.
    pub later: Option<Duration>,
    /// Attempts of this device that ended after their lease had gone to another.
    pub fenced: Vec<Lease>,
    /// Triggers whose run id another run has: they need another one.
    pub clashes: Vec<FileKey>,
    /// Attempts whose holder is dead: what they left behind must be looked at before anything can be decided.
    pub look: Vec<(Lease, JobName, String)>,
}

impl Plan {
    /// Whether there is nothing to commit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let says_nothing = self.marks.is_empty() && self.forgotten.is_empty() && self.answered.is_empty();
        self.changes.is_empty() && says_nothing && !self.rebuilt
    }

    /// Has the plan made anew at this time, if not before.
    pub fn wake(&mut self, at: Duration) {
        self.later = Some(self.later.map_or(at, |later| later.min(at)));
    }

    /// Whether anything is claimed that keeps idle jobs away.
    #[must_use]
    pub fn claims_work(&self) -> bool {
        let is_claim = |change: &&Change| matches!(change.matter, Matter::Claimed(_));
        let is_work = |held: &Arc<Held>| !held.cause.is_lasting() || held.slots > 0 && held.cause == Cause::Always;
        self.changes.iter().filter(is_claim).filter_map(|change| change.entry.as_ref()).any(is_work)
    }

    /// Begins a plan for a state.
    #[must_use]
    pub fn on(state: &State) -> Self {
        Self { changes: Changes { open: state.runs.clone(), ..Changes::default() }, ..Self::default() }
    }

    /// Whether something is planned for this run already.
    #[must_use]
    pub fn concerns(&self, run: &RunId) -> bool {
        self.changes.runs.contains(run)
    }

    /// The state after the changes for which `happened` says so.
    #[must_use]
    pub fn apply(&self, state: &State, me: &Me, happened: impl Fn(usize) -> bool) -> State {
        let mut next = state.clone();
        for (_, change) in self.changes.iter().enumerate().filter(|(index, _)| happened(*index)) {
            change.open_or_close(&mut next.runs);
            for (job, note) in &change.notes {
                next.jobs.update(job, |mark| marks::take(mark, note));
            }
        }
        for (job, note) in &self.marks {
            next.jobs.update(job, |mark| marks::take(mark, note));
        }
        for job in &self.forgotten {
            next.jobs.remove(job);
        }
        next.requests.retain(|request| !self.answered.contains(&request.id));
        next.settings.retain(|setting| !self.answered.contains(&setting.id));
        if self.rebuilt {
            next.rebuilt = None;
        }
        sign(&mut next, me);
        next
    }
}

/// Counts the revision up and puts this session's name to it.
pub fn sign(state: &mut State, me: &Me) {
    state.revision += 1;
    state.last_commits.insert(0, (state.revision, me.session.clone()));
    state.last_commits.truncate(CHAIN_LENGTH);
}

/// Decides. The steps are in the order in which they free what the later ones need.
#[must_use]
pub fn plan(state: &State, seen: &Observation) -> Plan {
    let mut plan = Plan::on(state);
    settle::settle(state, seen, &mut plan);
    recover::keep(state, seen, &mut plan);
    lost::lose(state, seen, &mut plan);
    recover::free(state, seen, &mut plan);
    recover::forget(state, seen, &mut plan);
    recover::answer(state, seen, &mut plan);
    marks::mind(state, seen, &mut plan);
    claim::retire(state, seen, &mut plan);
    claim::expire(state, seen, &mut plan);
    claim::claim(state, seen, &mut plan);
    notify::tell(state, seen, &mut plan);
    plan
}
