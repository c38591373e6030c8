//! The order in which what waits is taken, kept so that a look at it costs what is taken and not what lies there.

use std::borrow::Borrow;
use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet, btree_map, btree_set};
use std::iter::Peekable;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::catalog::{Catalog, Known};
use crate::model::config::UNKNOWN_JOB_WAIT;
use crate::model::device::Me;
use crate::model::entry::{Entry, FileId, FileKey, Past, Source};
use crate::model::ids::{JobName, RunId, Tag};
use crate::model::job::{Job, Overlap, command_job_name, for_command};
use crate::model::sorted::Sorted;
use crate::model::time::Moment;
use crate::model::trigger::{Target, Trigger};

#[cfg(test)]
mod tests;

/// An entry in its order: higher priority first, then the older, then the smaller id (`docs/reference/formats.md`, "Order").
#[derive(Debug, Clone)]
struct Rank {
    priority: i16,
    entry: Arc<Entry>,
}

impl Rank {
    fn order(&self) -> (Reverse<i16>, &RunId, &FileKey) {
        (Reverse(self.priority), &self.entry.run, &self.entry.key)
    }
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order().cmp(&other.order())
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Rank {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Rank {}

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
    Ready,
    /// Not before this instant.
    Later(DateTime<Utc>),
    /// This device does not know its job.
    Unknown,
    /// Its job is disabled.
    Disabled,
    /// Its job's file has an error.
    Broken,
    /// This device has not all the tags.
    Tags(Arc<BTreeSet<Tag>>),
    /// It takes more slots than this device has. A device without slots takes nothing, not even what needs none.
    Slots(u32),
}

/// An entry and its place, ordered by its file.
#[derive(Debug, Clone)]
struct Kept {
    entry: Arc<Entry>,
    job: Option<Arc<Job>>,
    priority: i16,
    place: Place,
    /// Since when it could be claimed, or its job has been unknown, on this device's clock.
    since: Duration,
}

impl Borrow<FileKey> for Kept {
    fn borrow(&self) -> &FileKey {
        &self.entry.key
    }
}

impl Ord for Kept {
    fn cmp(&self, other: &Self) -> Ordering {
        self.entry.key.cmp(&other.entry.key)
    }
}

impl PartialOrd for Kept {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Kept {}

/// Everything that waits, in its places.
#[derive(Debug, Default)]
pub struct Queue {
    kept: Sorted<Kept, ()>,
    ready: BTreeMap<Group, Ready>,
    /// The first of each group.
    heads: BTreeMap<Rank, Group>,
    /// The same of the groups in which there is more to decide than whether a slot is free.
    choosy: BTreeMap<Rank, Group>,
    later: BTreeSet<(DateTime<Utc>, FileKey)>,
    unknown: BTreeSet<(Duration, FileKey)>,
    expiring: BTreeSet<(DateTime<Utc>, FileKey)>,
    comebacks: BTreeMap<RunId, FileKey>,
    /// The tags that were missing last.
    missing: Arc<BTreeSet<Tag>>,
    /// The newest outline of each job's triggers.
    outlines: BTreeMap<JobName, Arc<Trigger>>,
    /// Jobs of which something that was offered has gone since this was asked last.
    withdrawn: BTreeSet<JobName>,
}

/// The entries of one group that can be claimed.
#[derive(Debug, Default)]
struct Ready {
    ranks: BTreeSet<Rank>,
    /// The number of them that need more than a free slot.
    choosy: usize,
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
    /// Takes an entry in, or its newer content. Of its trigger only an outline is held, which it shares with others of its job.
    pub fn insert(&mut self, entry: Arc<Entry>, catalog: &Catalog, me: &Me, now: Moment) {
        let entry = self.outline(entry);
        let before = self.take(&entry.key);
        if !entry.was_started()
            && let Some(at) = entry.trigger.expires
        {
            self.expiring.insert((at, entry.key.clone()));
        }
        if entry.key.source == Source::Waiting {
            self.comebacks.insert(entry.run.clone(), entry.key.clone());
        }
        let mut kept = place(entry, catalog, me, now);
        if let Some(before) = before.filter(|before| before.is_timed() && before.place == kept.place) {
            kept.since = before.since;
        }
        if let Place::Tags(missing) = &mut kept.place {
            self.share_tags(missing);
        }
        self.file(&kept, true);
        self.kept.insert(kept, ());
    }

    /// Has equal tags that are missing share one set.
    fn share_tags(&mut self, missing: &mut Arc<BTreeSet<Tag>>) {
        if self.missing == *missing {
            missing.clone_from(&self.missing);
        } else {
            self.missing.clone_from(missing);
        }
    }

    /// Returns the entry without the arguments of its trigger, which nothing asks for while it waits.
    fn outline(&mut self, entry: Arc<Entry>) -> Arc<Entry> {
        let Target::Job(job) = &entry.trigger.target else { return entry };
        let short = entry.trigger.without_arguments().map(Arc::new);
        let is_outline = entry.is_outline || short.is_some();
        let trigger = short.unwrap_or_else(|| Arc::clone(&entry.trigger));
        let shared = match self.outlines.get(job) {
            Some(known) if *known == trigger => Arc::clone(known),
            Some(_) | None => {
                if self.outlines.len() > self.kept.len() {
                    self.outlines.retain(|_, outline| Arc::strong_count(outline) > 1);
                }
                self.outlines.insert(job.clone(), Arc::clone(&trigger));
                trigger
            }
        };
        if Arc::ptr_eq(&shared, &entry.trigger) {
            return entry;
        }
        Arc::new(Entry { trigger: shared, is_outline, ..Arc::unwrap_or_clone(entry) })
    }

    /// Forgets an entry.
    pub fn remove(&mut self, key: &FileKey) {
        self.take(key);
    }

    fn take(&mut self, key: &FileKey) -> Option<Kept> {
        let kept = self.kept.get_key(key)?.clone();
        self.kept.remove(key);
        if self.kept.is_empty() {
            self.outlines.clear();
        }
        if let Some(at) = kept.entry.trigger.expires {
            self.expiring.remove(&(at, key.clone()));
        }
        if self.comebacks.get(&kept.entry.run) == Some(key) {
            self.comebacks.remove(&kept.entry.run);
        }
        if key.source == Source::Due {
            self.withdrawn.insert(job_name(&kept.entry));
        }
        self.file(&kept, false);
        Some(kept)
    }

    /// Places everything anew: jobs changed, or this device did. Waits for unknown jobs begin again.
    pub fn place_anew(&mut self, catalog: &Catalog, me: &Me, now: Moment) {
        let entries: Vec<_> = self.kept.keys().map(|kept| Arc::clone(&kept.entry)).collect();
        for entry in entries {
            self.remove(&entry.key);
            self.insert(entry, catalog, me, now);
        }
    }

    /// Ends the backoff of the runs of these jobs: what failed may well succeed by the definition that they have now.
    pub fn end_backoff(&mut self, jobs: &BTreeSet<JobName>, catalog: &Catalog, me: &Me, now: Moment) {
        let is_of_these = |entry: &Entry| matches!(&entry.trigger.target, Target::Job(name) if jobs.contains(name));
        let resting = self.later.iter().filter(|(_, key)| key.source == Source::Waiting);
        let resting = resting.filter_map(|(_, key)| self.find(key)).map(|kept| &kept.entry);
        let resting: Vec<Arc<Entry>> = resting.filter(|entry| is_of_these(entry)).cloned().collect();
        for entry in resting {
            let not_before = entry.trigger.not_before;
            let past = entry.past.as_deref().map(|past| Box::new(Past { not_before, ..past.clone() }));
            self.insert(Arc::new(Entry { past, ..(*entry).clone() }), catalog, me, now);
        }
    }

    /// Lets time pass: what waited for an instant that has come is placed again.
    pub fn advance(&mut self, catalog: &Catalog, me: &Me, now: Moment) {
        while let Some((at, key)) = self.later.first().cloned() {
            if at > now.wall {
                break;
            }
            let Some(kept) = self.find(&key) else {
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
        Ordered {
            queue: self,
            heads: self.heads.range(..).peekable(),
            behind: BTreeMap::new(),
            left: BTreeSet::new(),
            is_full: false,
        }
    }

    /// Returns the jobs of which something that was offered has gone since the last call.
    pub fn take_withdrawn(&mut self) -> BTreeSet<JobName> {
        std::mem::take(&mut self.withdrawn)
    }

    /// Entries whose first attempt should have started by now, with the priority that counts.
    pub fn expired(&self, now: DateTime<Utc>) -> impl Iterator<Item = (&Arc<Entry>, i16)> {
        let due = self.expiring.iter().take_while(move |(at, _)| *at <= now);
        due.filter_map(|(_, key)| self.find(key)).map(|kept| (&kept.entry, kept.priority))
    }

    /// Entries that have waited long enough for a job that this device does not know, and since when.
    pub fn unknown(&self, now: Duration) -> impl Iterator<Item = (&Arc<Entry>, Duration)> {
        let over = self.unknown.iter().take_while(move |(since, _)| now.saturating_sub(*since) >= UNKNOWN_JOB_WAIT);
        over.filter_map(|(since, key)| Some((&self.find(key)?.entry, *since)))
    }

    /// The jobs that this device does not know and that entries name, those that have waited longest first.
    pub fn unknown_jobs(&self) -> impl Iterator<Item = JobName> {
        self.unknown.iter().filter_map(|(_, key)| Some(job_name(&self.find(key)?.entry)))
    }

    /// The entry of a run that waits for another attempt, if it could be claimed.
    #[must_use]
    pub fn comeback(&self, run: &RunId) -> Option<Candidate<'_>> {
        let kept = self.find(self.comebacks.get(run)?)?;
        kept.candidate().filter(|_| kept.place == Place::Ready)
    }

    /// Everything that waits for another attempt, with its job where that is known.
    pub fn comebacks(&self) -> impl Iterator<Item = (&Arc<Entry>, Option<Candidate<'_>>)> {
        self.comebacks.values().filter_map(|key| self.find(key)).map(|kept| (&kept.entry, kept.candidate()))
    }

    /// The entry of one that does.
    #[must_use]
    pub fn waiting_entry(&self, run: &RunId) -> Option<&Arc<Entry>> {
        self.find(self.comebacks.get(run)?).map(|kept| &kept.entry)
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
        self.find(key).map(|kept| (&kept.entry, &kept.place))
    }

    /// Returns the content that was read of a file.
    #[must_use]
    pub fn content(&self, key: &FileKey) -> Option<FileId> {
        self.find(key).map(|kept| kept.entry.id)
    }

    /// Returns the files of all entries, in the order of their names.
    pub fn files(&self) -> impl Iterator<Item = &FileKey> {
        self.kept.keys().map(|kept| &kept.entry.key)
    }

    fn find(&self, key: &FileKey) -> Option<&Kept> {
        self.kept.get_key(key)
    }

    /// Everything, in the order of names.
    pub fn all(&self) -> impl Iterator<Item = (&Arc<Entry>, &Place)> {
        self.kept.keys().map(|kept| (&kept.entry, &kept.place))
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
        let key = || kept.entry.key.clone();
        match &kept.place {
            Place::Ready => {
                let group = kept.group();
                let rank = Rank { priority: kept.priority, entry: Arc::clone(&kept.entry) };
                let ready = self.ready.entry(group.clone()).or_default();
                if let Some(head) = ready.ranks.first() {
                    self.heads.remove(head);
                    self.choosy.remove(head);
                }
                change(&mut ready.ranks, rank, add);
                let one = usize::from(kept.is_choosy());
                ready.choosy = if add { ready.choosy + one } else { ready.choosy - one };
                match ready.ranks.first() {
                    Some(head) => {
                        if ready.choosy > 0 {
                            self.choosy.insert(head.clone(), group.clone());
                        }
                        self.heads.insert(head.clone(), group.clone());
                    }
                    None => {
                        self.ready.remove(&group);
                    }
                }
            }
            Place::Later(at) => change(&mut self.later, (*at, key()), add),
            Place::Unknown => change(&mut self.unknown, (kept.since, key()), add),
            Place::Disabled | Place::Broken | Place::Tags(_) | Place::Slots(_) => {}
        }
    }
}

impl Kept {
    fn candidate(&self) -> Option<Candidate<'_>> {
        let Self { entry, priority, since, .. } = self;
        Some(Candidate { entry, job: self.job.as_ref()?, priority: *priority, since: *since })
    }

    /// Returns whether it matters since when it has been in its place.
    fn is_timed(&self) -> bool {
        matches!(self.place, Place::Ready | Place::Unknown)
    }

    fn group(&self) -> Group {
        match &self.entry.trigger.target {
            Target::Job(name) => Group { job: Some(name.clone()), lasting: self.entry.cause().is_lasting() },
            Target::Command(_) => Group::default(),
        }
    }

    /// Returns whether more is to be decided than whether a slot is free: it takes none, is refused while another run is open, is wanted only at
    /// times, or has an idempotency key.
    fn is_choosy(&self) -> bool {
        let takes_slots_alone = |job: &Arc<Job>| job.slots > 0 && job.overlap == Overlap::Allow;
        self.entry.key.source == Source::Due
            || self.entry.trigger.id.is_some()
            || !self.job.as_ref().is_some_and(takes_slots_alone)
    }
}

/// What could be claimed, in order.
#[derive(Debug)]
pub struct Ordered<'a> {
    queue: &'a Queue,
    /// The first of each group that has not come up.
    heads: Peekable<btree_map::Range<'a, Rank, Group>>,
    /// The next one of each group that has.
    behind: BTreeMap<&'a Rank, (&'a Group, btree_set::Iter<'a, Rank>)>,
    left: BTreeSet<&'a Group>,
    is_full: bool,
}

impl<'a> Ordered<'a> {
    /// The next candidate and its group.
    pub fn take_next(&mut self) -> Option<(&'a Group, Candidate<'a>)> {
        loop {
            let (rank, group, mut rest) = self.first()?;
            if self.left.contains(group) {
                continue;
            }
            if let Some(next) = rest.next() {
                self.behind.insert(next, (group, rest));
            }
            if let Some(candidate) = self.queue.find(&rank.entry.key).and_then(Kept::candidate) {
                return Some((group, candidate));
            }
        }
    }

    fn first(&mut self) -> Option<(&'a Rank, &'a Group, btree_set::Iter<'a, Rank>)> {
        let is_head_first = match (self.heads.peek(), self.behind.first_key_value()) {
            (Some((head, _)), Some((next, _))) => head < next,
            (head, _) => head.is_some(),
        };
        if !is_head_first {
            return self.behind.pop_first().map(|(rank, (group, rest))| (rank, group, rest));
        }
        let (rank, group) = self.heads.next()?;
        let mut rest = self.queue.ready.get(group)?.ranks.iter();
        rest.next();
        Some((rank, group, rest))
    }

    /// Leaves the rest of a group out.
    pub fn leave(&mut self, group: &'a Group) {
        self.left.insert(group);
    }

    /// Leaves out what only waits for a slot: none is free.
    pub fn leave_all_but_choosy(&mut self) {
        if std::mem::replace(&mut self.is_full, true) {
            return;
        }
        if let Some((head, _)) = self.heads.peek() {
            self.heads = self.queue.choosy.range((Bound::Included(*head), Bound::Unbounded)).peekable();
        }
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

fn place(entry: Arc<Entry>, catalog: &Catalog, me: &Me, now: Moment) -> Kept {
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
        (Known::Unknown, _) => Place::Unknown,
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
        return Place::Tags(Arc::new(missing));
    }
    if job.slots.max(1) > me.slots {
        return Place::Slots(job.slots);
    }
    match due {
        Some(at) if at > now.wall => Place::Later(at),
        Some(_) | None => Place::Ready,
    }
}

/// The later of what the trigger says and what a backoff says.
fn due(entry: &Entry) -> Option<DateTime<Utc>> {
    let own = match entry.key.source {
        Source::Inbox => entry.trigger.not_before,
        // Its own time had come when it was first claimed.
        Source::Waiting | Source::Due => None,
    };
    own.max(entry.not_before())
}
