//! The order in which what waits is taken, kept so that a look at it costs what is taken and not what lies there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::catalog::{Catalog, Known};
use crate::model::config::UNKNOWN_JOB_WAIT;
use crate::model::device::Me;
use crate::model::entry::{Entry, FileKey, Source};
use crate::model::ids::{JobName, RunId, Tag};
use crate::model::job::{Job, command_job_name, for_command};
use crate::model::time::Moment;
use crate::model::trigger::Target;

/// Higher priority first, then the older, then the smaller id (`docs/reference/formats.md`, "Order").
type Rank = (std::cmp::Reverse<i16>, RunId, FileKey);

/// Entries of one group block each other where their job forbids overlap; commands share one group and never block.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// The job; none: commands.
    pub job: Option<JobName>,
    /// Instances of a daemon or an idle job: what others of the job wait for does not concern them.
    pub lasting: bool,
}

/// Why an entry cannot be claimed by this device now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// It can, as soon as a slot is free.
    Ready(Group),
    /// Not before this instant.
    Later(DateTime<Utc>),
    /// Nobody knows its job, since this moment of the observer's clock.
    Unknown(Duration),
    /// Its job is disabled.
    Disabled,
    /// Its job's file has an error.
    Broken,
    /// This device has not all the tags.
    Tags(BTreeSet<Tag>),
    /// It takes more slots than this device has.
    Slots(u32),
}

#[derive(Debug)]
struct Kept {
    entry: Arc<Entry>,
    job: Option<Arc<Job>>,
    priority: i16,
    place: Place,
    /// Since when it could be claimed.
    since: Duration,
}

/// Everything that waits, in its places.
#[derive(Debug, Default)]
pub struct Queue {
    kept: BTreeMap<FileKey, Kept>,
    ready: BTreeMap<Group, BTreeSet<Rank>>,
    later: BTreeSet<(DateTime<Utc>, FileKey)>,
    unknown: BTreeSet<(Duration, FileKey)>,
    expiring: BTreeSet<(DateTime<Utc>, FileKey)>,
    comebacks: BTreeMap<RunId, FileKey>,
}

/// An entry that this device could claim.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// The entry.
    pub entry: &'a Arc<Entry>,
    /// Its job, or one made up for its command.
    pub job: &'a Arc<Job>,
    /// The priority that counts.
    pub priority: i16,
    /// Since when it could be claimed, on this device's clock.
    pub since: Duration,
}

impl Queue {
    /// Takes an entry in, or its newer content.
    pub fn insert(&mut self, entry: Arc<Entry>, catalog: &Catalog, me: &Me, now: Moment) {
        let ready_since = self.kept.get(&entry.key).filter(|kept| kept.is_ready()).map(|kept| kept.since);
        let known_since = self.remove(&entry.key).and_then(|old| match old {
            Place::Unknown(since) => Some(since),
            Place::Ready(_) | Place::Later(_) | Place::Disabled | Place::Broken | Place::Tags(_) | Place::Slots(_) => {
                None
            }
        });
        if !entry.was_started
            && let Some(at) = entry.trigger.expires
        {
            self.expiring.insert((at, entry.key.clone()));
        }
        if entry.key.source == Source::Waiting {
            self.comebacks.insert(entry.run.clone(), entry.key.clone());
        }
        let mut kept = place(entry, catalog, me, now, known_since);
        kept.since = ready_since.unwrap_or(now.boot);
        self.file(&kept, true);
        self.kept.insert(kept.entry.key.clone(), kept);
    }

    /// Forgets an entry; says where it was.
    pub fn remove(&mut self, key: &FileKey) -> Option<Place> {
        let kept = self.kept.remove(key)?;
        if let Some(at) = kept.entry.trigger.expires {
            self.expiring.remove(&(at, key.clone()));
        }
        if self.comebacks.get(&kept.entry.run) == Some(key) {
            self.comebacks.remove(&kept.entry.run);
        }
        self.file(&kept, false);
        Some(kept.place)
    }

    /// Places everything anew: jobs changed, or this device did. Waits for unknown jobs begin again.
    pub fn place_anew(&mut self, catalog: &Catalog, me: &Me, now: Moment) {
        let entries: Vec<_> = self.kept.values().map(|kept| Arc::clone(&kept.entry)).collect();
        for entry in entries {
            self.remove(&entry.key);
            self.insert(entry, catalog, me, now);
        }
    }

    /// Lets time pass: what waited for an instant that has come is placed again.
    pub fn advance(&mut self, catalog: &Catalog, me: &Me, now: Moment) {
        while let Some((at, key)) = self.later.first().cloned() {
            if at > now.wall {
                break;
            }
            let Some(kept) = self.kept.get(&key) else {
                self.later.pop_first();
                continue;
            };
            let entry = Arc::clone(&kept.entry);
            self.insert(entry, catalog, me, now);
        }
    }

    /// When time alone changes something next, as time from now on. What has come already and could not be acted on is not
    /// waited for: the next scan tries again.
    #[must_use]
    pub fn next_change(&self, now: Moment) -> Option<Duration> {
        let until = |at: &DateTime<Utc>| (*at - now.wall).to_std().ok().filter(|span| !span.is_zero());
        let wait = |since: &Duration| (*since + UNKNOWN_JOB_WAIT).checked_sub(now.boot).filter(|span| !span.is_zero());
        let later = self.later.iter().find_map(|(at, _)| until(at));
        let expiring = self.expiring.iter().find_map(|(at, _)| until(at));
        let unknown = self.unknown.iter().find_map(|(since, _)| wait(since));
        [later, expiring, unknown].into_iter().flatten().min()
    }

    /// What could be claimed, in order, with the group of each. A group that is blocked is left out from then on by [`Ordered::leave`].
    #[must_use]
    pub fn in_order(&self) -> Ordered<'_> {
        let heads = self
            .ready
            .iter()
            .filter_map(|(group, ranks)| {
                let mut rest = ranks.iter();
                rest.next().map(|rank| (rank, (group, rest)))
            })
            .collect();
        Ordered { queue: self, heads }
    }

    /// Entries whose first attempt should have started by now, with the priority that counts.
    pub fn expired(&self, now: DateTime<Utc>) -> impl Iterator<Item = (&Arc<Entry>, i16)> {
        let due = self.expiring.iter().take_while(move |(at, _)| *at <= now);
        due.filter_map(|(_, key)| self.kept.get(key)).map(|kept| (&kept.entry, kept.priority))
    }

    /// Entries that have waited long enough for a job that nobody knows.
    pub fn unknown(&self, now: Duration) -> impl Iterator<Item = &Arc<Entry>> {
        let over = self.unknown.iter().take_while(move |(since, _)| now.saturating_sub(*since) >= UNKNOWN_JOB_WAIT);
        over.filter_map(|(_, key)| self.kept.get(key)).map(|kept| &kept.entry)
    }

    /// The entry of a run that waits for another attempt, if it could be claimed.
    #[must_use]
    pub fn comeback(&self, run: &RunId) -> Option<Candidate<'_>> {
        let kept = self.kept.get(self.comebacks.get(run)?)?;
        kept.candidate().filter(|_| matches!(kept.place, Place::Ready(_)))
    }

    /// Everything that waits for another attempt, with its job where that is known.
    pub fn comebacks(&self) -> impl Iterator<Item = (&Arc<Entry>, Option<Candidate<'_>>)> {
        self.comebacks.values().filter_map(|key| self.kept.get(key)).map(|kept| (&kept.entry, kept.candidate()))
    }

    /// The entry of one that does.
    #[must_use]
    pub fn waiting_entry(&self, run: &RunId) -> Option<&Arc<Entry>> {
        self.kept.get(self.comebacks.get(run)?).map(|kept| &kept.entry)
    }

    /// Whether anything is ready to be claimed.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether a run waits for another attempt.
    #[must_use]
    pub fn comes_back(&self, run: &RunId) -> bool {
        self.comebacks.contains_key(run)
    }

    /// An entry and its place.
    #[must_use]
    pub fn get(&self, key: &FileKey) -> Option<(&Arc<Entry>, &Place)> {
        self.kept.get(key).map(|kept| (&kept.entry, &kept.place))
    }

    /// Everything, in the order of names.
    pub fn all(&self) -> impl Iterator<Item = (&Arc<Entry>, &Place)> {
        self.kept.values().map(|kept| (&kept.entry, &kept.place))
    }

    /// How many entries wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    fn file(&mut self, kept: &Kept, add: bool) {
        fn change<T: Ord>(set: &mut BTreeSet<T>, item: T, add: bool) {
            if add {
                set.insert(item);
            } else {
                set.remove(&item);
            }
        }
        let key = kept.entry.key.clone();
        match &kept.place {
            Place::Ready(group) => {
                let ranks = self.ready.entry(group.clone()).or_default();
                change(ranks, (std::cmp::Reverse(kept.priority), kept.entry.run.clone(), key), add);
                if ranks.is_empty() {
                    self.ready.remove(group);
                }
            }
            Place::Later(at) => change(&mut self.later, (*at, key), add),
            Place::Unknown(since) => change(&mut self.unknown, (*since, key), add),
            Place::Disabled | Place::Broken | Place::Tags(_) | Place::Slots(_) => {}
        }
    }
}

impl Kept {
    fn candidate(&self) -> Option<Candidate<'_>> {
        let Self { entry, priority, since, .. } = self;
        Some(Candidate { entry, job: self.job.as_ref()?, priority: *priority, since: *since })
    }

    fn is_ready(&self) -> bool {
        matches!(self.place, Place::Ready(_))
    }
}

/// What could be claimed, in order.
#[derive(Debug)]
pub struct Ordered<'a> {
    queue: &'a Queue,
    heads: BTreeMap<&'a Rank, (&'a Group, std::collections::btree_set::Iter<'a, Rank>)>,
}

impl<'a> Ordered<'a> {
    /// The next candidate and its group.
    pub fn take_next(&mut self) -> Option<(&'a Group, Candidate<'a>)> {
        loop {
            let (rank, (group, mut rest)) = self.heads.pop_first()?;
            if let Some(next) = rest.next() {
                self.heads.insert(next, (group, rest));
            }
            if let Some(candidate) = self.queue.kept.get(&rank.2).and_then(Kept::candidate) {
                return Some((group, candidate));
            }
        }
    }

    /// Leaves the rest of a group out.
    pub fn leave(&mut self, group: &Group) {
        self.heads.retain(|_, (other, _)| *other != group);
    }
}

/// The name that an entry's run goes by.
#[must_use]
pub fn job_name(entry: &Entry) -> JobName {
    match &entry.trigger.target {
        Target::Job(name) => name.clone(),
        Target::Command(_) => command_job_name(&entry.stem()),
    }
}

fn place(entry: Arc<Entry>, catalog: &Catalog, me: &Me, now: Moment, unknown_since: Option<Duration>) -> Kept {
    let known = match &entry.trigger.target {
        Target::Job(name) => catalog.look_up(name),
        Target::Command(argv) => Known::Good(Arc::new(for_command(
            command_job_name(&entry.stem()),
            argv.clone(),
            entry.trigger.container.clone(),
        ))),
    };
    let own_priority = entry.trigger.priority.unwrap_or(0);
    let (job, priority) = match &known {
        Known::Good(job) => (Some(Arc::clone(job)), entry.trigger.priority.unwrap_or(job.priority)),
        Known::Broken | Known::Unknown => (None, own_priority),
    };
    let place = match (&known, due(&entry)) {
        (Known::Unknown, _) => Place::Unknown(unknown_since.unwrap_or(now.boot)),
        (Known::Broken, _) => Place::Broken,
        (Known::Good(job), _) if !job.enabled => Place::Disabled,
        (Known::Good(job), due) => ready_or_not(&entry, job, due, me, now),
    };
    Kept { entry, job, priority, place, since: now.boot }
}

fn ready_or_not(entry: &Entry, job: &Job, due: Option<DateTime<Utc>>, me: &Me, now: Moment) -> Place {
    let missing: BTreeSet<Tag> =
        job.tags.union(&entry.trigger.tags).filter(|tag| !me.tags.contains(*tag)).cloned().collect();
    if !missing.is_empty() {
        return Place::Tags(missing);
    }
    if job.slots > me.slots {
        return Place::Slots(job.slots);
    }
    match due {
        Some(at) if at > now.wall => Place::Later(at),
        Some(_) | None => Place::Ready(match &entry.trigger.target {
            Target::Job(name) => Group { job: Some(name.clone()), lasting: entry.cause().is_lasting() },
            Target::Command(_) => Group::default(),
        }),
    }
}

/// The later of what the trigger says and what a backoff says.
fn due(entry: &Entry) -> Option<DateTime<Utc>> {
    let own = match entry.key.source {
        Source::Inbox => entry.trigger.not_before,
        // Its own time had come when it was first claimed.
        Source::Waiting | Source::Due => None,
    };
    own.max(entry.not_before)
}
