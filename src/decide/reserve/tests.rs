//! Turns, by table.

use std::sync::Arc;

use super::*;
use crate::model::ids::{JobName, RunId};
use crate::model::job::parse;
use crate::model::trigger::{Origin, Trigger};

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
}

#[test]
fn turns_double_up_to_the_longest() {
    let cases = [
        (-5, 0, 10),
        (0, 0, 10),
        (9, 0, 10),
        (10, 1, 30),
        (29, 1, 30),
        (30, 2, 70),
        (2_549, 7, 2_550),
        (2_550, 8, 5_110),
        (163_829, 13, 163_830),
        (163_830, 14, 250_230),
        (250_229, 14, 250_230),
        (250_230, 15, 336_630),
        (163_830 + 86_400 * 1_000, 1_014, 163_830 + 86_400 * 1_001),
    ];
    for (age, ended, until) in cases {
        assert_eq!(turns(at(7), at(7 + age)), (ended, at(7 + until)), "{age} s");
    }
}

/// Whose turn it is for a run of two slots that came at 0, where devices have so many slots; `gpu` is the tag of the last one.
fn turns_of(slots: [u32; 3], keys: &str, seconds: i64) -> Option<String> {
    let name = JobName::new("large").unwrap();
    let job = parse(&name, "large.toml", &format!("command = [\"true\"]\nslots = 2\n{keys}")).unwrap();
    let trigger = Trigger::own(&name, Origin { cause: Cause::Trigger, by: None }, None);
    let entry = Arc::new(Entry::due(RunId::new(at(0), 1), 1, trigger));
    let ids = ["a", "b", "c"].map(|id| DeviceId::new(id).unwrap());
    let (none, gpu) = (BTreeSet::new(), BTreeSet::from([Tag::new("gpu").unwrap()]));
    let tags = [&none, &none, &gpu];
    let rooms: Vec<Room<'_>> =
        (0..3).map(|place| Room { device: &ids[place], tags: tags[place], slots: slots[place] }).collect();
    turn(&entry, &job, &rooms, at(seconds)).map(|turn| turn.device.to_string())
}

#[test]
fn devices_that_could_ever_fit_a_run_take_turns_and_one_turn_is_nobodys() {
    let of_round = |slots, keys| -> Vec<Option<String>> {
        [0, 10, 30, 70, 150].map(|seconds| turns_of(slots, keys, seconds)).to_vec()
    };
    let all = of_round([2, 2, 2], "");
    let mut devices: Vec<&str> = all[..3].iter().map(|device| device.as_deref().unwrap()).collect();
    devices.sort_unstable();
    assert_eq!((devices, &all[3], &all[4]), (vec!["a", "b", "c"], &None, &all[0]));
    let only = |id: &str| [Some(id.to_owned()), None, Some(id.to_owned()), None, Some(id.to_owned())].to_vec();
    assert_eq!(of_round([1, 2, 1], ""), only("b"));
    assert_eq!(of_round([2, 2, 2], "tags = [\"gpu\"]"), only("c"));
    assert_eq!(of_round([1, 1, 1], ""), vec![None; 5]);
}
