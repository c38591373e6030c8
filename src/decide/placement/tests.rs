//! Whose turn it is, by table: for each device, what it makes of the same state and the same run.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::DateTime;
use serde_json::json;

use super::*;
use crate::decide::liveness::Liveness;
use crate::model::device::{Beat, Me};
use crate::model::entry::{Entry, Past};
use crate::model::ids::{JobName, RunId, Session};
use crate::model::job::{Job, parse};
use crate::model::time::Moment;
use crate::model::trigger::{Origin, Trigger};

const NOTHING: Duration = Duration::ZERO;

fn run(number: u64) -> RunId {
    RunId::new(DateTime::UNIX_EPOCH, number)
}

fn job(keys: &str) -> Arc<Job> {
    let name = JobName::new("work").unwrap();
    Arc::new(parse(&name, "work.toml", &format!("command = [\"true\"]\n{keys}")).unwrap())
}

fn entry(lot: u64) -> Entry {
    let origin = Origin { cause: Cause::Trigger, by: None };
    Entry::due(run(lot), lot, Trigger::own(&JobName::new("work").unwrap(), origin, None))
}

/// A beat of a device with four slots.
fn beat(device: &str) -> Beat {
    Beat { slots: 4, ..Beat::example(device, 1, 1) }
}

/// A state in which each of these devices holds a run with so many slots.
fn held(loads: &[(&str, u32)]) -> State {
    let held = |(number, (device, slots)): (u64, &(&str, u32))| {
        let held = json!({
            "job": "other", "stem": "other", "cause": "trigger", "trigger": "other.json", "attempt": 1, "device": device,
            "session": Session::from_random(1), "priority": 0, "slots": slots, "claimed_at": "2026-11-21T03:41:56.123Z",
        });
        (run(1_000 + number), Arc::new(serde_json::from_value(held).unwrap()))
    };
    State { runs: (0..).zip(loads).map(held).collect(), ..State::default() }
}

/// How long the device waits with a run, where these are there.
fn wait(state: &State, device: &str, beats: &[Beat], job: &Arc<Job>, entry: Entry) -> Duration {
    let mut devices = Liveness::new(Duration::from_secs(15), NOTHING);
    devices.observe(NOTHING, beats.to_vec(), &[], true);
    let own = beats.iter().find(|beat| beat.device.as_str() == device).unwrap();
    let (tags, slots) = (own.tags.clone(), own.slots);
    let me = Me { device: own.device.clone(), session: own.session.clone(), tags, slots };
    let now = Moment { boot: NOTHING, wall: DateTime::UNIX_EPOCH };
    let entry = Arc::new(entry);
    let seen = Observation { devices, ..Observation::new(me, String::new(), NOTHING, now) };
    Placement::new(state, &seen).wait(Candidate { entry: &entry, job, priority: 0, since: NOTHING })
}

/// The waits of devices that all see the same, in their order, in milliseconds.
fn waits(state: &State, beats: &[Beat], job: &Arc<Job>, lot: u64) -> Vec<u128> {
    beats.iter().map(|own| wait(state, own.device.as_str(), beats, job, entry(lot)).as_millis()).collect()
}

#[test]
fn alone_nobody_waits() {
    let busy = held(&[("a", 3)]);
    assert_eq!(waits(&busy, &[beat("a")], &job(""), 1), [0]);
}

#[test]
fn the_less_busy_comes_first_and_each_that_comes_first_is_waited_for_up_to_a_bound() {
    let beats = ["a", "b", "c", "d"].map(beat);
    let loads = held(&[("a", 3), ("b", 1), ("c", 2)]);
    assert_eq!(waits(&loads, &beats, &job(""), 1), [20, 10, 20, 0]);
    // Shares, not counts: two of eight are less than one of two.
    let beats = [Beat { slots: 8, ..beat("a") }, Beat { slots: 2, ..beat("b") }];
    assert_eq!(waits(&held(&[("a", 2), ("b", 1)]), &beats, &job(""), 1), [0, 10]);
}

#[test]
fn who_cannot_take_it_is_not_waited_for() {
    let loads = held(&[("a", 3)]);
    let gpu: BTreeSet<Tag> = [Tag::new("gpu").unwrap()].into();
    let has_gpu = |name: &str| Beat { tags: gpu.clone(), ..beat(name) };
    for (idle, job) in [
        (beat("b"), job("tags = [\"gpu\"]")),
        (Beat { slots: 1, ..has_gpu("b") }, job("slots = 2")),
        (Beat { drained: true, ..has_gpu("b") }, job("")),
        (Beat { low_on: Some("bytes".to_owned()), ..has_gpu("b") }, job("")),
        (Beat { left: true, ..has_gpu("b") }, job("")),
    ] {
        assert_eq!(wait(&loads, "a", &[has_gpu("a"), idle.clone()], &job, entry(1)), NOTHING, "{idle:?}");
    }
    assert_eq!(wait(&loads, "a", &[has_gpu("a"), has_gpu("b")], &job("tags = [\"gpu\"]"), entry(1)), STEP);
}

#[test]
fn for_a_daemon_the_others_are_waited_for_longer() {
    let beats = ["a", "b", "c", "d"].map(beat);
    let loads = held(&[("a", 3), ("b", 1), ("c", 2)]);
    let origin = Origin { cause: Cause::Always, by: None };
    let daemon = || Entry::due(run(1), 1, Trigger::own(&JobName::new("work").unwrap(), origin.clone(), None));
    let job = job("type = \"always\"");
    let waits = beats.each_ref().map(|own| wait(&loads, own.device.as_str(), &beats, &job, daemon()).as_millis());
    assert_eq!(waits, [1_000, 500, 1_000, 0]);
    // What idles is not placed for good.
    let origin = Origin { cause: Cause::Idle, by: None };
    let idle = Entry::due(run(1), 1, Trigger::own(&JobName::new("work").unwrap(), origin, None));
    assert_eq!(wait(&loads, "b", &beats, &job, idle), STEP);
}

#[test]
fn among_equals_lots_are_drawn_that_all_agree_on_and_that_favour_nobody() {
    let beats = ["machine-1", "machine-2", "machine-3"].map(beat);
    let mut firsts: BTreeMap<usize, u32> = BTreeMap::new();
    for lot in 0..3_000 {
        let waits = waits(&State::default(), &beats, &job(""), mix(0, run(lot).as_str()));
        let mut sorted = waits.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 10, 20], "{lot}: each has a place of its own");
        *firsts.entry(waits.iter().position(|wait| *wait == 0).unwrap()).or_default() += 1;
    }
    assert!(firsts.values().all(|count| (900..1_100).contains(count)), "{firsts:?}");
}

#[test]
fn another_attempt_is_left_to_others_for_a_time_where_the_last_one_failed() {
    let beats = ["a", "b"].map(beat);
    let (elsewhere, anywhere) = (job("retry_elsewhere = true"), job(""));
    let after = |device: &str, status| {
        let last = Some((DeviceId::new(device).unwrap(), status));
        Entry { past: Some(Box::new(Past { last, ..Past::default() })), ..entry(1) }
    };
    let wait = |load, job, entry| wait(&held(&[("b", load)]), "a", &beats, job, entry);
    assert_eq!(wait(1, &elsewhere, after("a", Status::Failed)), ELSEWHERE);
    assert_eq!(wait(1, &elsewhere, after("a", Status::Cancelled)), NOTHING);
    assert_eq!(wait(1, &elsewhere, after("b", Status::Failed)), NOTHING);
    assert_eq!(wait(1, &anywhere, after("a", Status::Failed)), NOTHING);
    // Nobody else has room: there is no sense in waiting.
    assert_eq!(wait(4, &elsewhere, after("a", Status::Failed)), NOTHING);
}
