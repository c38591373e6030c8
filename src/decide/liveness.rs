//! Who lives: judged by what this device saw with its own clock, never by comparing clocks.
//!
//! A device is dead when its beat stood still for a whole lease (its own, or the observer's if that is longer) while the
//! observer was itself ticking and itself able to write (after client-go's leader election, which tolerates any clock offset).

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use crate::model::device::Beat;
use crate::model::ids::{DeviceId, JobName, RunId, Session};
use crate::model::lease::Lease;

/// What an observer holds of one life of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It moves, or has not stood still for long enough.
    Alive,
    /// It stood still for a whole lease, or has left.
    Dead,
    /// The device lives on in another session, which takes its own leftovers over.
    Replaced,
}

/// A device, as it was seen.
#[derive(Debug, Clone, PartialEq)]
pub struct Peer {
    /// Its newest heartbeat.
    pub beat: Beat,
    /// The last sign of life, on the observer's clock: its beat moved, or was repeated.
    pub moved_at: Duration,
    /// The last time that its beat was seen to move.
    pub beaten_at: Duration,
    /// The time before that.
    pub beaten_before: Option<Duration>,
    /// Since when its file is missing.
    pub missing_since: Option<Duration>,
}

/// The memory of an observer.
#[derive(Debug, Clone)]
pub struct Liveness {
    lease: Duration,
    /// Since when this observer has watched without a gap.
    watching_since: Duration,
    last_look: Option<Duration>,
    peers: BTreeMap<DeviceId, Peer>,
    /// Devices whose heartbeat was there at the last look and could not be read.
    unreadable: BTreeSet<DeviceId>,
    met: Met,
}

/// The attempts that others hold, each with the moment since which that is known.
#[derive(Debug, Clone, Default)]
struct Met {
    since: BTreeMap<Lease, Duration>,
    /// The number of attempts of each of these moments.
    moments: BTreeMap<Duration, usize>,
}

impl Met {
    fn insert(&mut self, lease: Lease, now: Duration) {
        if let Entry::Vacant(place) = self.since.entry(lease) {
            place.insert(now);
            *self.moments.entry(now).or_default() += 1;
        }
    }

    fn remove(&mut self, lease: &Lease) {
        let Some(since) = self.since.remove(lease) else { return };
        if let Some(count) = self.moments.get_mut(&since) {
            *count -= 1;
            if *count == 0 {
                self.moments.remove(&since);
            }
        }
    }

    /// Has everything be met at this moment.
    fn begin_anew(&mut self, now: Duration) {
        self.since.values_mut().for_each(|since| *since = now);
        self.moments = [(now, self.since.len())].into_iter().filter(|(_, count)| *count > 0).collect();
    }

    /// Returns the first moment that is less than `span` before `now`.
    fn first_within(&self, span: Duration, now: Duration) -> Option<Duration> {
        match now.checked_sub(span) {
            Some(bound) => self.moments.range((Bound::Excluded(bound), Bound::Unbounded)).next(),
            None => self.moments.first_key_value(),
        }
        .map(|(moment, _)| *moment)
    }
}

impl Liveness {
    /// An observer that starts to watch now.
    #[must_use]
    pub fn new(lease: Duration, now: Duration) -> Self {
        Self {
            lease,
            watching_since: now,
            last_look: None,
            peers: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            met: Met::default(),
        }
    }

    /// Takes in the heartbeats that lie in the folder now. `could_write`: whether the observer's own beats reach the volume;
    /// when they do not, perhaps nobody's do, and nobody is dead. Nor is one whose heartbeat is there and `unreadable`.
    pub fn observe(&mut self, now: Duration, beats: Vec<Beat>, unreadable: &[DeviceId], could_write: bool) {
        let gap = self.last_look.is_some_and(|last| now.saturating_sub(last) > self.lease / 2);
        self.last_look = Some(now);
        if gap || !could_write {
            self.watch_anew(now);
        }
        for peer in self.peers.values_mut() {
            if unreadable.contains(&peer.beat.device) {
                (peer.moved_at, peer.missing_since) = (now, None);
            } else if !beats.iter().any(|beat| beat.device == peer.beat.device) {
                peer.missing_since.get_or_insert(now);
            }
        }
        self.unreadable = unreadable.iter().cloned().collect();
        // A device whose file has been gone for a whole lease is forgotten.
        let own = self.lease;
        self.peers
            .retain(|_, peer| peer.missing_since.is_none_or(|since| now.saturating_sub(since) < patience(own, peer)));
        for beat in beats {
            let moved = Peer { beat, moved_at: now, beaten_at: now, beaten_before: None, missing_since: None };
            match self.peers.get_mut(&moved.beat.device) {
                Some(peer) if (&peer.beat.session, peer.beat.beat) == (&moved.beat.session, moved.beat.beat) => {
                    if peer.beat.pulse != moved.beat.pulse {
                        peer.moved_at = now;
                    }
                    peer.beat = moved.beat;
                    peer.missing_since = None;
                }
                Some(peer) => *peer = Peer { beaten_before: Some(peer.beaten_at), ..moved },
                None => {
                    self.peers.insert(moved.beat.device.clone(), moved);
                }
            }
        }
    }

    /// Takes in what others hold by now, and what of it they no longer hold. A claim is a sign of life like a beat, and often an earlier
    /// one: a device that has just started, or woken up, claims before its first beat is read.
    pub fn meet(&mut self, now: Duration, held: &BTreeSet<Lease>, no_longer: &BTreeSet<Lease>) {
        no_longer.difference(held).for_each(|lease| self.met.remove(lease));
        held.iter().for_each(|lease| self.met.insert(lease.clone(), now));
    }

    /// Starts all waits again: the observer itself was away.
    pub fn watch_anew(&mut self, now: Duration) {
        self.watching_since = now;
        self.met.begin_anew(now);
        for peer in self.peers.values_mut() {
            (peer.moved_at, peer.beaten_at, peer.beaten_before) = (now, now, None);
            peer.missing_since = peer.missing_since.map(|_| now);
        }
    }

    /// Whether the life that holds this lease is over, as far as this observer can tell at `now`: nothing of it was heard for a
    /// whole lease, neither a beat nor the claim itself.
    #[must_use]
    pub fn verdict(&self, lease: &Lease, device: &DeviceId, session: &Session, now: Duration) -> Verdict {
        let peer = self.peers.get(device);
        let is_silent = self.is_silent(device, now);
        let patience = peer.map_or(self.lease, |peer| self.patience(peer));
        let was_met = self.met.since.get(lease).is_some_and(|since| now.saturating_sub(*since) >= patience);
        match peer {
            Some(peer) if !is_silent && peer.beat.session != *session => Verdict::Replaced,
            Some(_) | None if is_silent && was_met => Verdict::Dead,
            Some(_) | None => Verdict::Alive,
        }
    }

    /// Returns whether nothing was heard of a device for a whole lease: only then can the life that holds an attempt be
    /// [`Verdict::Dead`].
    #[must_use]
    pub fn is_silent(&self, device: &DeviceId, now: Duration) -> bool {
        self.peers.get(device).map_or(!self.unreadable.contains(device), |peer| self.is_dead(peer, now))
    }

    /// The devices that are not known to be dead.
    pub fn alive(&self, now: Duration) -> impl Iterator<Item = &Peer> {
        self.peers.values().filter(move |peer| !self.is_dead(peer, now))
    }

    /// Whether no living device other than `me` can hold this run, which was first seen to be in nobody's hands at `since`: each has
    /// beaten twice since then (the first beat may have been gathered before) and names it in none. A beat that is repeated is none: it
    /// says what was known before.
    #[must_use]
    pub fn is_free(&self, run: &RunId, me: &DeviceId, since: Duration, now: Duration) -> bool {
        // An observer that has not watched for long may not have seen everybody.
        self.alive(now).filter(|peer| peer.beat.device != *me).all(|peer| {
            peer.beaten_before.is_some_and(|beaten| beaten > since)
                && !peer.beat.holds.iter().any(|(held, _)| held == run)
        })
    }

    /// Returns whether no living device other than `me` knows a job that something has named since `since`: each has beaten twice since then
    /// (the first beat may have been gathered before) and says that it does not know it.
    #[must_use]
    pub fn none_knows(&self, job: &JobName, me: &DeviceId, since: Duration, now: Duration) -> bool {
        let lacks =
            |peer: &Peer| peer.beaten_before.is_some_and(|beaten| beaten > since) && peer.beat.unknown.contains(job);
        self.is_known(me) && self.alive(now).filter(|peer| peer.beat.device != *me).all(lacks)
    }

    /// The heartbeats of the devices that are known to be dead.
    pub fn dead(&self, now: Duration) -> impl Iterator<Item = &Beat> {
        let lies = |peer: &&Peer| peer.missing_since.is_none();
        self.peers.values().filter(lies).filter(move |peer| self.is_dead(peer, now)).map(|peer| &peer.beat)
    }

    /// Whether every living device has worked through `revision`.
    #[must_use]
    pub fn all_saw(&self, revision: u64, now: Duration) -> bool {
        self.alive(now).all(|peer| peer.beat.revision >= revision)
    }

    /// Whose session this is.
    #[must_use]
    pub fn device_of(&self, session: &Session) -> Option<&DeviceId> {
        self.peers.values().find(|peer| peer.beat.session == *session).map(|peer| &peer.beat.device)
    }

    /// Whether the device has a heartbeat file.
    #[must_use]
    pub fn is_known(&self, device: &DeviceId) -> bool {
        self.peers.get(device).is_some_and(|peer| peer.missing_since.is_none())
    }

    /// When the next verdict can change by time alone.
    #[must_use]
    pub fn next_verdict(&self, now: Duration) -> Option<Duration> {
        let moved = self.peers.values().map(|peer| peer.moved_at + self.patience(peer));
        // The holder's lease decides how long a claim counts, so it may be any of these: one, where all devices have the same.
        let spans: BTreeSet<Duration> =
            self.peers.values().map(|peer| self.patience(peer)).chain([self.lease]).collect();
        let met = spans.iter().filter_map(|span| Some(self.met.first_within(*span, now)? + *span));
        moved.chain(met).filter(|&at| at > now).min()
    }

    /// Returns the longest lease of the living devices, the observer's own included.
    #[must_use]
    pub fn longest_lease(&self, now: Duration) -> Duration {
        self.alive(now).map(|peer| self.patience(peer)).fold(self.lease, Duration::max)
    }

    fn is_dead(&self, peer: &Peer, now: Duration) -> bool {
        let still_since = peer.missing_since.unwrap_or(peer.moved_at).max(self.watching_since);
        peer.beat.left || now.saturating_sub(still_since) >= self.patience(peer)
    }

    /// Returns for how long a device may stand still: its own lease, which its heartbeat announces, or the observer's if that is
    /// longer. So an observer with a shorter lease takes nothing away from a device that keeps its own.
    fn patience(&self, peer: &Peer) -> Duration {
        patience(self.lease, peer)
    }
}

fn patience(own: Duration, peer: &Peer) -> Duration {
    let patience = own.max(Duration::from_millis(peer.beat.lease_ms));
    if crate::planted!(ShortenLease) { patience / 4 } else { patience }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(15);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn beat(session: u64, count: u64) -> Beat {
        Beat { lease_ms: LEASE.as_millis() as u64, ..Beat::example("d", session, count) }
    }

    fn lease() -> Lease {
        Lease { run: RunId::new(chrono::DateTime::UNIX_EPOCH, 1), attempt: 1 }
    }

    /// Of who has held the lease since long ago.
    fn verdict(liveness: &Liveness, session: u64, now: u64) -> Verdict {
        let mut liveness = liveness.clone();
        if liveness.met.since.is_empty() {
            liveness.meet(at(0), &[lease()].into(), &BTreeSet::new());
        }
        liveness.verdict(&lease(), &DeviceId::new("d").unwrap(), &Session::from_random(session), at(now))
    }

    #[test]
    fn a_beat_that_stands_still_for_a_lease_is_death() {
        let mut seen = Liveness::new(LEASE, at(100));
        for now in (100..=114).step_by(2) {
            seen.observe(at(now), vec![beat(1, 7)], &[], true);
        }
        assert_eq!(verdict(&seen, 1, 114), Verdict::Alive);
        seen.observe(at(115), vec![beat(1, 7)], &[], true);
        assert_eq!(verdict(&seen, 1, 115), Verdict::Dead);
        seen.observe(at(116), vec![beat(1, 8)], &[], true);
        assert_eq!(verdict(&seen, 1, 116), Verdict::Alive);
    }

    #[test]
    fn a_beat_that_is_repeated_is_a_sign_of_life_and_says_nothing_new() {
        let me = DeviceId::new("me").unwrap();
        let mut seen = Liveness::new(LEASE, at(100));
        for now in (100..=140).step_by(2) {
            let pulse = u32::try_from(now).unwrap();
            seen.observe(at(now), vec![Beat { pulse, ..beat(1, 7) }], &[], true);
        }
        assert_eq!(verdict(&seen, 1, 140), Verdict::Alive);
        assert!(!seen.is_free(&lease().run, &me, at(101), at(140)), "it may have claimed the run since it beat");
        for (count, now) in [(8, 142), (9, 144)] {
            seen.observe(at(now), vec![beat(1, count)], &[], true);
        }
        assert!(!seen.is_free(&lease().run, &me, at(142), at(144)), "the first may have been gathered before");
        assert!(seen.is_free(&lease().run, &me, at(141), at(144)));
    }

    #[test]
    fn the_longest_lease_is_that_of_a_device_that_lives() {
        let mut seen = Liveness::new(at(6), at(0));
        assert_eq!(seen.longest_lease(at(0)), at(6));
        seen.observe(at(0), vec![Beat { lease_ms: 60_000, ..beat(1, 7) }], &[], true);
        assert_eq!(seen.longest_lease(at(0)), at(60));
        seen.observe(at(2), vec![Beat { lease_ms: 60_000, left: true, ..beat(1, 8) }], &[], true);
        assert_eq!(seen.longest_lease(at(2)), at(6));
    }

    #[test]
    fn an_observer_that_slept_or_could_not_write_waits_a_whole_lease_again() {
        let mut seen = Liveness::new(LEASE, at(0));
        seen.observe(at(0), vec![beat(1, 7)], &[], true);
        seen.observe(at(1_000), vec![beat(1, 7)], &[], true);
        assert_eq!(verdict(&seen, 1, 1_000), Verdict::Alive);
        for now in (1_002..1_030).step_by(2) {
            seen.observe(at(now), vec![beat(1, 7)], &[], false);
        }
        assert_eq!(verdict(&seen, 1, 1_030), Verdict::Alive);
        for now in (1_030..=1_044).step_by(2) {
            seen.observe(at(now), vec![beat(1, 7)], &[], true);
        }
        assert_eq!(verdict(&seen, 1, 1_044), Verdict::Dead);
    }

    #[test]
    fn a_device_is_judged_by_the_longer_lease() {
        for (own, announced, dies_at) in [(6, 60, 60), (60, 6, 60)] {
            let mut seen = Liveness::new(at(own), at(0));
            let beat = || vec![Beat { lease_ms: announced * 1_000, ..beat(1, 7) }];
            for now in (0..dies_at).step_by(2) {
                seen.observe(at(now), beat(), &[], true);
                assert_eq!(verdict(&seen, 1, now), Verdict::Alive, "{own} {announced} {now}");
            }
            assert!(seen.next_verdict(at(dies_at - 1)).is_some_and(|next| next <= at(dies_at)), "{own} {announced}");
            seen.observe(at(dies_at), beat(), &[], true);
            assert_eq!(verdict(&seen, 1, dies_at), Verdict::Dead, "{own} {announced}");
        }
    }

    #[test]
    fn who_cannot_be_read_is_not_dead() {
        let mut seen = Liveness::new(LEASE, at(0));
        seen.observe(at(0), vec![beat(1, 7)], &[], true);
        for now in (2..=60).step_by(2) {
            seen.observe(at(now), vec![], &[DeviceId::new("d").unwrap()], true);
        }
        assert_eq!(verdict(&seen, 1, 60), Verdict::Alive);
        let mut never_read = Liveness::new(LEASE, at(0));
        for now in (0..=60).step_by(2) {
            never_read.observe(at(now), vec![], &[DeviceId::new("d").unwrap()], true);
        }
        assert_eq!(verdict(&never_read, 1, 60), Verdict::Alive);
        never_read.observe(at(62), vec![], &[], true);
        assert_eq!(verdict(&never_read, 1, 62), Verdict::Dead);
    }

    #[test]
    fn a_new_session_replaces_the_old_one_and_a_missing_file_is_death_after_a_lease() {
        let mut seen = Liveness::new(LEASE, at(0));
        seen.observe(at(0), vec![beat(1, 7)], &[], true);
        seen.observe(at(2), vec![beat(2, 1)], &[], true);
        assert_eq!((verdict(&seen, 1, 2), verdict(&seen, 2, 2)), (Verdict::Replaced, Verdict::Alive));
        for now in (4..=18).step_by(2) {
            seen.observe(at(now), vec![], &[], true);
        }
        assert_eq!(verdict(&seen, 2, 18), Verdict::Alive);
        seen.observe(at(19), vec![], &[], true);
        assert_eq!(verdict(&seen, 2, 19), Verdict::Dead);
    }

    #[test]
    fn a_claim_is_a_sign_of_life_whatever_the_heartbeat_says() {
        // Never seen, seen long ago in another life, seen long ago in the same life.
        for known in [None, Some(beat(7, 1)), Some(beat(1, 1))] {
            let mut seen = Liveness::new(LEASE, at(0));
            for now in (0..=100).step_by(2) {
                seen.observe(at(now), known.clone().into_iter().collect(), &[], true);
            }
            for now in (100..=114).step_by(2) {
                seen.meet(at(now), &[lease()].into(), &BTreeSet::new());
                seen.observe(at(now), known.clone().into_iter().collect(), &[], true);
                assert_eq!(verdict(&seen, 1, now), Verdict::Alive);
            }
            assert_eq!(verdict(&seen, 1, 115), Verdict::Dead);
            seen.observe(at(116), vec![beat(1, 2)], &[], true);
            assert_eq!(verdict(&seen, 1, 116), Verdict::Alive);
        }
    }

    #[test]
    fn a_job_is_unknown_once_everybody_has_beaten_twice_and_said_so() {
        let job = JobName::new("j").unwrap();
        let me = DeviceId::new("me").unwrap();
        let own = |count| Beat::example("me", 9, count);
        let lacking = |count| Beat { unknown: vec![job.clone()], ..beat(1, count) };
        let mut seen = Liveness::new(LEASE, at(0));
        assert!(!seen.none_knows(&job, &me, at(0), at(0)), "it has not seen itself: perhaps it has seen nobody");
        seen.observe(at(0), vec![own(1), lacking(1)], &[], true);
        seen.observe(at(2), vec![own(2), lacking(2)], &[], true);
        assert!(!seen.none_knows(&job, &me, at(1), at(2)), "what it says may be older than the question");
        seen.observe(at(4), vec![own(3), lacking(3)], &[], true);
        assert!(seen.none_knows(&job, &me, at(1), at(4)));
        seen.observe(at(6), vec![own(4), beat(1, 4)], &[], true);
        assert!(!seen.none_knows(&job, &me, at(1), at(6)), "the other knows it now");
        seen.observe(at(8), vec![own(5), Beat { left: true, ..beat(1, 5) }], &[], true);
        assert!(seen.none_knows(&job, &me, at(1), at(8)), "the other has left");
        assert_eq!(seen.dead(at(8)).map(|beat| beat.device.as_str()).collect::<Vec<_>>(), ["d"]);
    }

    #[test]
    fn a_run_is_free_once_everybody_has_beaten_twice_without_it() {
        let run = RunId::new(chrono::DateTime::UNIX_EPOCH, 1);
        let me = DeviceId::new("me").unwrap();
        let mut seen = Liveness::new(LEASE, at(0));
        seen.observe(at(0), vec![beat(1, 1)], &[], true);
        assert!(!seen.is_free(&run, &me, at(1), at(1)));
        seen.observe(at(2), vec![beat(1, 2)], &[], true);
        assert!(!seen.is_free(&run, &me, at(1), at(2)));
        seen.observe(at(4), vec![beat(1, 3)], &[], true);
        assert!(seen.is_free(&run, &me, at(1), at(4)));
        seen.observe(at(6), vec![Beat { holds: vec![(run.clone(), 1)], ..beat(1, 4) }], &[], true);
        assert!(!seen.is_free(&run, &me, at(1), at(6)));
    }
}
