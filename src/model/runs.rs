//! The open runs, with an index by job, by device and by pool.
//!
//! The index is brought up to date by each change, so that a question costs what it asks for and not what is open.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ids::{DeviceId, JobName, PoolName, RunId};
use super::sorted::{Difference, Sorted};
use super::state::Held;

/// The open runs: those that are held, and those that are listed while they wait.
#[derive(Debug, Clone, Default)]
pub struct Runs {
    all: Sorted<RunId, Arc<Held>>,
    by_job: Sorted<(JobName, RunId), Arc<Held>>,
    /// No device: it waits for another attempt.
    by_device: Sorted<(Option<DeviceId>, RunId), Arc<Held>>,
    loads: BTreeMap<DeviceId, Workload>,
    pools: BTreeMap<PoolName, usize>,
}

/// The runs of one device, added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Workload {
    /// The number of runs.
    pub runs: u32,
    /// The slots that they keep from others.
    pub slots: u32,
    /// The number of runs that have no end of their own.
    pub lasting: u32,
}

impl Runs {
    /// Returns the number of open runs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Returns whether no run is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Returns an open run.
    #[must_use]
    pub fn get(&self, run: &RunId) -> Option<&Arc<Held>> {
        self.all.get(run)
    }

    /// Returns whether a run is open.
    #[must_use]
    pub fn contains_key(&self, run: &RunId) -> bool {
        self.all.contains_key(run)
    }

    /// Returns all in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (&RunId, &Arc<Held>)> {
        self.all.iter()
    }

    /// Returns all ids in order.
    pub fn keys(&self) -> impl Iterator<Item = &RunId> {
        self.all.keys()
    }

    /// Returns all in the order of their ids, without these.
    pub fn values(&self) -> impl Iterator<Item = &Arc<Held>> {
        self.all.values()
    }

    /// Returns the runs that go by the name of this job, in order.
    pub fn of_job<'a>(&'a self, job: &'a JobName) -> impl Iterator<Item = (&'a RunId, &'a Arc<Held>)> {
        let some = self.by_job.from(move |(other, _)| other < job).take_while(move |((other, _), _)| other == job);
        some.map(|((_, run), held)| (run, held))
    }

    /// Returns the runs that a device holds, in order.
    pub fn of_device<'a>(&'a self, device: &'a DeviceId) -> impl Iterator<Item = (&'a RunId, &'a Arc<Held>)> {
        self.held_by(Some(device))
    }

    /// Returns the runs that are listed while they wait for another attempt, in order.
    pub fn waiting(&self) -> impl Iterator<Item = (&RunId, &Arc<Held>)> {
        self.held_by(None)
    }

    fn held_by<'a>(&'a self, device: Option<&'a DeviceId>) -> impl Iterator<Item = (&'a RunId, &'a Arc<Held>)> {
        let from = self.by_device.from(move |(other, _)| other.as_ref() < device);
        let some = from.take_while(move |((other, _), _)| other.as_ref() == device);
        some.map(|((_, run), held)| (run, held))
    }

    /// Returns the devices that hold any, in order.
    pub fn devices(&self) -> impl Iterator<Item = &DeviceId> {
        self.loads.keys()
    }

    /// Returns the runs of a device, added up.
    #[must_use]
    pub fn load(&self, device: &DeviceId) -> Workload {
        self.loads.get(device).copied().unwrap_or_default()
    }

    /// Returns how many held runs count in a pool.
    #[must_use]
    pub fn in_pool(&self, pool: &PoolName) -> usize {
        self.pools.get(pool).copied().unwrap_or_default()
    }

    /// Opens a run, or gives it a new entry.
    pub fn insert(&mut self, run: RunId, held: Arc<Held>) {
        self.remove(&run);
        self.by_job.insert((held.job.clone(), run.clone()), Arc::clone(&held));
        self.by_device.insert((held.device.clone(), run.clone()), Arc::clone(&held));
        if let Some(device) = &held.device {
            self.loads.entry(device.clone()).or_default().add(&held);
            if let Some(pool) = &held.pool {
                *self.pools.entry(pool.clone()).or_default() += 1;
            }
        }
        self.all.insert(run, held);
    }

    /// Closes a run.
    pub fn remove(&mut self, run: &RunId) {
        let Some(held) = self.all.remove(run) else { return };
        self.by_job.remove(&(held.job.clone(), run.clone()));
        self.by_device.remove(&(held.device.clone(), run.clone()));
        let Some(device) = &held.device else { return };
        if let Some(load) = self.loads.get_mut(device) {
            load.take(&held);
            if load.runs == 0 {
                self.loads.remove(device);
            }
        }
        if let Some(pool) = &held.pool
            && let Some(count) = self.pools.get_mut(pool)
        {
            *count -= 1;
            if *count == 0 {
                self.pools.remove(pool);
            }
        }
    }

    /// Returns in order what differs from an older revision. What both share is not looked at.
    #[must_use]
    pub fn differences<'a>(&'a self, older: &'a Self) -> Vec<Difference<'a, RunId, Arc<Held>>> {
        self.all.differences(&older.all)
    }

    /// Adds the runs to `text` as one JSON object.
    ///
    /// # Errors
    /// A run cannot be written as JSON.
    pub fn write_json(&self, text: &mut Vec<u8>) -> serde_json::Result<()> {
        self.all.write_json(text)
    }
}

impl Workload {
    /// Counts a run in.
    pub fn add(&mut self, held: &Held) {
        self.runs += 1;
        self.slots += held.slots_taken();
        self.lasting += u32::from(held.cause.is_lasting());
    }

    fn take(&mut self, held: &Held) {
        self.runs -= 1;
        self.slots -= held.slots_taken();
        self.lasting -= u32::from(held.cause.is_lasting());
    }
}

impl PartialEq for Runs {
    fn eq(&self, other: &Self) -> bool {
        self.all == other.all
    }
}

impl FromIterator<(RunId, Arc<Held>)> for Runs {
    fn from_iter<I: IntoIterator<Item = (RunId, Arc<Held>)>>(runs: I) -> Self {
        let all: Sorted<RunId, Arc<Held>> = runs.into_iter().collect();
        let (mut loads, mut pools): (BTreeMap<DeviceId, Workload>, BTreeMap<PoolName, usize>) = Default::default();
        for held in all.values() {
            let Some(device) = &held.device else { continue };
            loads.entry(device.clone()).or_default().add(held);
            if let Some(pool) = &held.pool {
                *pools.entry(pool.clone()).or_default() += 1;
            }
        }
        let of_job = |(run, held): (&RunId, &Arc<Held>)| ((held.job.clone(), run.clone()), Arc::clone(held));
        let of_device = |(run, held): (&RunId, &Arc<Held>)| ((held.device.clone(), run.clone()), Arc::clone(held));
        let (by_job, by_device) = (all.iter().map(of_job).collect(), all.iter().map(of_device).collect());
        Self { all, by_job, by_device, loads, pools }
    }
}

impl<const N: usize> From<[(RunId, Arc<Held>); N]> for Runs {
    fn from(runs: [(RunId, Arc<Held>); N]) -> Self {
        runs.into_iter().collect()
    }
}

impl Serialize for Runs {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.all.serialize(to)
    }
}

impl<'de> Deserialize<'de> for Runs {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(BTreeMap::deserialize(from)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::result::Cause;

    const CAUSES: [Cause; 4] = [Cause::Trigger, Cause::Always, Cause::Idle, Cause::Schedule];

    fn run(number: u8) -> RunId {
        RunId::new(chrono::DateTime::UNIX_EPOCH, number.into())
    }

    fn name(kind: &str, number: u8) -> String {
        format!("{kind}{number}")
    }

    prop_compose! {
        fn held()(job in 0_u8..4, device in 0_u8..4, pool in 0_u8..3, cause in 0_usize..4, slots in 0_u32..4) -> Held {
            Held {
                job: JobName::new(&name("job", job)).unwrap(),
                stem: "x".to_owned(),
                cause: CAUSES[cause],
                trigger: None,
                attempt: 1,
                device: (device > 0).then(|| DeviceId::new(&name("device", device)).unwrap()),
                session: None,
                priority: 0,
                slots,
                pool: (pool > 0).then(|| PoolName::new(&name("pool", pool)).unwrap()),
                only_on: None,
                claimed_at: chrono::DateTime::UNIX_EPOCH,
                command: false,
                fail_if_lost: false,
                listed: false,
                retried: 0,
                losses: 0,
                extra: BTreeMap::new(),
            }
        }
    }

    proptest! {
        /// The index says what a look at all runs says, after any changes.
        #[test]
        fn the_index_agrees_with_a_scan(changes in proptest::collection::vec((0_u8..60, proptest::option::of(held())), 0..200)) {
            let mut runs = Runs::default();
            for (number, held) in changes {
                match held {
                    Some(held) => runs.insert(run(number), Arc::new(held)),
                    None => runs.remove(&run(number)),
                }
            }
            let made_anew: Runs = runs.iter().map(|(run, held)| (run.clone(), Arc::clone(held))).collect();
            for index in [&runs, &made_anew] {
                for number in 0..4 {
                    let job = JobName::new(&name("job", number)).unwrap();
                    prop_assert!(index.of_job(&job).eq(runs.iter().filter(|(_, held)| held.job == job)));
                    let device = DeviceId::new(&name("device", number)).unwrap();
                    let of_device = || runs.iter().filter(|(_, held)| held.device.as_ref() == Some(&device));
                    prop_assert!(index.of_device(&device).eq(of_device()));
                    let mut load = Workload::default();
                    of_device().for_each(|(_, held)| load.add(held));
                    prop_assert_eq!(index.load(&device), load);
                    prop_assert_eq!(index.devices().any(|other| *other == device), load.runs > 0);
                    let pool = PoolName::new(&name("pool", number)).unwrap();
                    let in_pool = runs.values().filter(|held| held.device.is_some() && held.pool.as_ref() == Some(&pool));
                    prop_assert_eq!(index.in_pool(&pool), in_pool.count());
                }
                prop_assert!(index.waiting().eq(runs.iter().filter(|(_, held)| held.device.is_none())));
            }
        }
    }
}
