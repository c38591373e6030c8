//! What is remembered of jobs, by table: when it makes a daemon rest, and when it is forgotten.

use std::sync::Arc;

use super::*;
use crate::decide::agenda::rests_until;
use crate::model::device::{Beat, Me};
use crate::model::ids::{DeviceId, Session};
use crate::model::job::parse;
use crate::model::time::Moment;

const KEEP: Duration = Duration::from_secs(600);

fn name(text: &str) -> JobName {
    JobName::new(text).unwrap()
}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
}

fn job(text: &str, keys: &str) -> Arc<Job> {
    Arc::new(parse(&name(text), "job.toml", &format!("command = [\"true\"]\n{keys}")).unwrap())
}

fn over(cause: Cause, status: Status, seconds: i64) -> Note {
    Note::Over(Over { run: RunId::new(at(0), 1), cause, attempt: 1, status, at: at(seconds) })
}

/// Until when a daemon rests, in seconds, after these notes.
fn rests(notes: &[Note]) -> Option<i64> {
    let mut mark = JobMark::default();
    notes.iter().for_each(|note| take(&mut mark, note));
    rests_until(&job("daemon", "type = \"always\"\nbackoff_max = \"5m\""), &mark).map(|until| until.timestamp())
}

#[test]
fn only_a_failure_of_its_own_makes_a_daemon_rest_and_a_change_ends_that() {
    let own = || over(Cause::Always, Status::Failed, 10);
    assert_eq!(rests(&[own()]), Some(310));
    assert_eq!(rests(&[over(Cause::Always, Status::Cancelled, 10)]), None);
    assert_eq!(rests(&[over(Cause::Trigger, Status::Failed, 10)]), None, "it was no daemon then");
    assert_eq!(rests(&[own(), Note::Changed]), None);
    assert_eq!(rests(&[own(), Note::Changed, over(Cause::Always, Status::Failed, 20)]), Some(320));
}

/// What a device plans that has these jobs, where another one lacks some.
fn planned(state: &State, jobs: &[&str], lacking: Option<&[&str]>, changed: &[&str], seconds: i64) -> Plan {
    let mut catalog = Catalog::default();
    for text in jobs {
        catalog.jobs.insert(name(text), job(text, ""));
    }
    let now = Moment { boot: Duration::from_secs(2), wall: at(seconds) };
    let mut seen =
        Observation::new(me(), String::new(), Duration::from_secs(15), Moment { boot: Duration::ZERO, ..now });
    for count in 1..=2 {
        let unknown = |names: &[&str]| names.iter().map(|text| name(text)).collect();
        let other = lacking.map(|names| Beat { unknown: unknown(names), ..Beat::example("other", 2, count) });
        let beats = [Beat::example("me", 1, count)].into_iter().chain(other).collect();
        seen.devices.observe(Duration::from_secs(count), beats, &[], true);
    }
    let changed = changed.iter().map(|text| name(text)).collect();
    let seen = Observation { now, catalog: Arc::new(catalog), changed, upkeep: true, keep: KEEP, ..seen };
    let mut plan = Plan::default();
    mind(state, &seen, &mut plan);
    plan
}

fn remembered(mark: JobMark) -> State {
    State { jobs: [(name("old"), mark)].into(), ..State::default() }
}

#[test]
fn a_change_ends_a_rest_and_is_noted_only_where_there_is_one() {
    let resting = remembered(JobMark { rests: true, ..JobMark::default() });
    assert_eq!(planned(&resting, &["old"], None, &["old"], 0).marks, [(name("old"), Note::Changed)]);
    assert!(planned(&resting, &["old"], None, &[], 0).marks.is_empty());
    let awake = remembered(JobMark::default());
    assert!(planned(&awake, &["old"], None, &["old"], 0).marks.is_empty());
}

#[test]
fn a_job_that_no_living_device_has_is_forgotten_after_keep() {
    let there = remembered(JobMark::default());
    let gone = |at| remembered(JobMark { gone_at: Some(at), ..JobMark::default() });
    let plan = |state: &State, jobs: &[&str], lacking: Option<&[&str]>| {
        let plan = planned(state, jobs, lacking, &[], 1_000);
        (plan.marks, plan.forgotten)
    };
    let nothing = || (vec![], vec![]);
    let noted = |note| (vec![(name("old"), note)], vec![]);
    assert_eq!(plan(&there, &["new"], None), noted(Note::Gone(at(1_000))));
    assert_eq!(plan(&there, &["new"], Some(&["old"])), noted(Note::Gone(at(1_000))));
    assert_eq!(plan(&there, &["new"], Some(&[])), nothing(), "the other has it");
    assert_eq!(plan(&there, &[], None), nothing(), "no job at all: the folder is not mounted");
    assert_eq!(plan(&gone(at(401)), &["new"], None), nothing(), "not long ago");
    assert_eq!(plan(&gone(at(400)), &["new"], None), (vec![], vec![name("old")]));
    assert_eq!(plan(&gone(at(400)), &["new"], Some(&[])), nothing(), "the other has it again");
    assert_eq!(plan(&gone(at(400)), &["old"], None), noted(Note::Back));
    let plan = planned(&gone(at(400)), &["new"], None, &[], 1_000);
    assert!(plan.apply(&gone(at(400)), &me(), |_| true).jobs.iter().next().is_none());
}

fn me() -> Me {
    Me { device: DeviceId::new("me").unwrap(), session: Session::from_random(1), tags: [].into(), slots: 1 }
}
