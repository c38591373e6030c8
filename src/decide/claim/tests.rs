//! Claims, by table: which of the jobs that wait a device takes.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;

use super::*;
use crate::decide::catalog::Catalog;
use crate::model::device::{Beat, Me};
use crate::model::entry::{FileKey, Past};
use crate::model::ids::{DeviceId, Session};
use crate::model::job::parse;
use crate::model::time::Moment;
use crate::model::trigger::{Origin, Trigger};

/// A device and what it sees.
struct Device {
    seen: Observation,
    state: State,
    count: u64,
}

impl Device {
    fn new(slots: u32, jobs: &[(&str, &str)]) -> Self {
        let mut catalog = Catalog::default();
        for (name, keys) in jobs {
            let name = JobName::new(name).unwrap();
            let job = parse(&name, "job.toml", &format!("command = [\"true\"]\n{keys}")).unwrap();
            catalog.jobs.insert(name, Arc::new(job));
        }
        let me = Me { device: DeviceId::new("a").unwrap(), session: Session::from_random(1), tags: [].into(), slots };
        let now = Moment { boot: Duration::from_secs(1_000), wall: DateTime::UNIX_EPOCH };
        let seen = Observation::new(me, String::new(), Duration::from_secs(15), now);
        let seen = Observation { catalog: Arc::new(catalog), taking: true, quiet: true, ..seen };
        Self { seen, state: State::default(), count: 0 }
    }

    /// Something of this job waits from now on.
    fn waits(&mut self, job: &str, cause: Cause) -> RunId {
        self.count += 1;
        let run = RunId::new(self.seen.now.wall, self.count);
        let trigger = Trigger::own(&JobName::new(job).unwrap(), Origin { cause, by: None }, None);
        let entry = Entry::due(run.clone(), self.count, trigger);
        let source = if cause.is_lasting() { Source::Due } else { Source::Inbox };
        let key = FileKey { source, ..entry.key.clone() };
        self.seen.queue_up(Arc::new(Entry { key, ..entry }), self.seen.now);
        run
    }

    fn later(&mut self, span: Duration) {
        self.seen.now.boot += span;
        self.seen.now.wall += span;
    }

    fn plan(&self) -> Plan {
        let mut plan = Plan::on(&self.state);
        claim(&self.state, &self.seen, &mut plan);
        plan
    }

    /// Claims, and returns the jobs of what is claimed.
    fn claims(&mut self) -> Vec<String> {
        let plan = self.plan();
        self.state = plan.apply(&self.state, &self.seen.me, |_| true);
        for change in plan.changes.iter() {
            let Matter::Claimed(entry) = &change.matter else { continue };
            self.seen.queue.remove(&entry.key);
        }
        plan.changes.iter().map(|change| change.entry.as_ref().unwrap().job.to_string()).collect()
    }

    fn ends(&mut self, run: &RunId) {
        assert!(self.state.runs.contains_key(run));
        self.state.runs.remove(run);
    }

    /// A daemon of another job holds so many slots of a device.
    fn hosts(&mut self, device: &str, slots: u32) {
        let held = json!({
            "job": "other", "stem": "other", "cause": "always", "trigger": null, "attempt": 1, "device": device,
            "session": Session::from_random(1), "priority": 0, "slots": slots, "claimed_at": "1970-01-01T00:00:00.000Z",
        });
        self.count += 1;
        let run = RunId::new(DateTime::<Utc>::UNIX_EPOCH, self.count);
        self.state.runs.insert(run, Arc::new(serde_json::from_value(held).unwrap()));
    }
}

const JOBS: [(&str, &str); 4] =
    [("small", ""), ("large", "slots = 2"), ("daemon", "type = \"always\""), ("idle", "type = \"idle\"")];

#[test]
fn a_device_without_slots_takes_nothing() {
    for (slots, expected) in [(1, vec!["daemon", "idle"]), (0, vec![])] {
        let mut device = Device::new(slots, &JOBS);
        device.waits("daemon", Cause::Always);
        device.waits("idle", Cause::Idle);
        assert_eq!(device.claims(), expected, "{slots} slots");
    }
}

#[test]
fn a_large_run_gets_its_slots_although_small_ones_keep_coming() {
    let mut device = Device::new(2, &JOBS);
    let mut ends: Vec<(DateTime<Utc>, RunId)> = Vec::new();
    let mut waited_for = None;
    // Each small run takes a minute, and one begins every half: there is never more than one slot free by itself.
    for step in 0..400 {
        if step % 30 == 0 {
            device.waits("small", Cause::Trigger);
        }
        if step == 45 {
            device.waits("large", Cause::Trigger);
        }
        let now = device.seen.now.wall;
        for (_, run) in ends.extract_if(.., |(at, _)| *at <= now) {
            device.ends(&run);
        }
        let before: BTreeSet<RunId> = device.state.runs.keys().cloned().collect();
        let claimed = device.claims();
        let new = device.state.runs.keys().filter(|run| !before.contains(*run)).cloned();
        ends.extend(new.map(|run| (device.seen.now.wall + Duration::from_secs(60), run)));
        if claimed.iter().any(|job| job == "large") {
            waited_for = Some(step - 45);
            break;
        }
        device.later(Duration::from_secs(1));
    }
    // Turns of the device begin 0, 30 and 150 s after the large run came, and last 10, 40 and 160 s.
    let waited_for = waited_for.expect("the large run found its slots");
    assert!((60..=250).contains(&waited_for), "{waited_for} s");
}

#[test]
fn a_large_run_holds_small_ones_up_for_a_turn_and_not_for_ever() {
    let mut device = Device::new(2, &JOBS);
    device.waits("small", Cause::Trigger);
    assert_eq!(device.claims(), ["small"]);
    device.waits("large", Cause::Trigger);
    device.waits("small", Cause::Trigger);
    assert_eq!(device.claims(), [""; 0]);
    assert_eq!(device.plan().later, Some(device.seen.now.boot + Duration::from_secs(10)), "when its turn is over");
    device.later(Duration::from_secs(10));
    assert_eq!(device.claims(), ["small"]);
}

#[test]
fn small_runs_pass_where_another_device_has_the_turn() {
    // One of the two has the first turn.
    let claims = ["a", "b"].map(|name| {
        let mut device = Device::new(3, &[("small", ""), ("large", "slots = 3")]);
        device.seen.me.device = DeviceId::new(name).unwrap();
        let beats = ["a", "b"].map(|name| Beat { slots: 3, ..Beat::example(name, 1, 1) }).to_vec();
        device.seen.devices.observe(device.seen.now.boot, beats, &[], true);
        device.waits("small", Cause::Trigger);
        device.later(Duration::from_millis(100));
        assert_eq!(device.claims(), ["small"]);
        device.waits("large", Cause::Trigger);
        device.waits("small", Cause::Trigger);
        device.later(Duration::from_millis(100));
        device.claims().len()
    });
    assert_eq!(claims.iter().sum::<usize>(), 1, "{claims:?}");
}

#[test]
fn what_can_never_fit_beside_daemons_holds_nothing_up() {
    let mut device = Device::new(2, &JOBS);
    device.hosts("a", 1);
    device.waits("large", Cause::Trigger);
    device.waits("small", Cause::Trigger);
    assert_eq!(device.claims(), ["small"]);
}

#[test]
fn what_comes_first_by_its_priority_is_not_held_up() {
    let mut device = Device::new(2, &[("small", ""), ("large", "slots = 2"), ("urgent", "priority = 1")]);
    device.waits("small", Cause::Trigger);
    device.claims();
    device.waits("large", Cause::Trigger);
    device.waits("small", Cause::Trigger);
    device.waits("urgent", Cause::Trigger);
    assert_eq!(device.claims(), ["urgent"]);
}

#[test]
fn a_changed_definition_ends_a_backoff() {
    let mut device = Device::new(1, &JOBS);
    let run = device.waits("small", Cause::Trigger);
    let (entry, _) = device.seen.queue.all().next().unwrap();
    let (entry, fresh) = (Arc::clone(entry), entry.key.clone());
    device.seen.queue.remove(&fresh);
    let not_before = Some(device.seen.now.wall + Duration::from_secs(300));
    let key = FileKey { source: Source::Waiting, name: std::ffi::OsStr::new("waits").into() };
    let past = Some(Box::new(Past { not_before, was_started: true, ..Past::default() }));
    let entry = Arc::new(Entry { key, past, attempt: 2, ..(*entry).clone() });
    device.seen.queue_up(entry, device.seen.now);
    let changed = |device: &mut Device, job: &str| {
        device.seen.end_backoff([JobName::new(job).unwrap()].into(), device.seen.now);
    };
    changed(&mut device, "large");
    assert_eq!(device.claims(), [""; 0]);
    changed(&mut device, "small");
    assert_eq!(device.claims(), ["small"]);
    assert_eq!(device.state.runs.get(&run).unwrap().attempt, 2);
}
