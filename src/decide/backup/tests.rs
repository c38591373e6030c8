//! Due times, retention, and what becomes of open runs, by table.

use serde_json::json;

use super::*;
use crate::model::ids::JobName;
use crate::model::state::JobMark;

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
}

#[test]
fn a_backup_is_due_an_interval_after_the_newest() {
    let every = Duration::from_secs(100);
    let left = |seconds: i64| due_in(Some(at(seconds)), every, at(0)).map(|left| left.as_secs());
    assert_eq!(due_in(None, every, at(0)), None, "there is none yet");
    for (newest, wanted) in [(0, Some(100)), (-1, Some(99)), (-99, Some(1)), (-100, None), (-9_999, None)] {
        assert_eq!(left(newest), wanted, "{newest}");
    }
    // Named by a clock that is ahead: somewhat it counts, far it says nothing.
    assert_eq!((left(30), left(100), left(9_999)), (Some(100), None, None));
}

#[test]
fn the_newest_backups_of_a_volume_stay_and_those_of_others() {
    let name = |seconds: i64, volume: &str| BackupName { at: at(seconds), volume: volume.to_owned() };
    let all = BTreeSet::from([name(1, "a"), name(2, "b"), name(3, "a"), name(4, "a"), name(5, "b")]);
    let gone = |keep| surplus(&all, "a", keep);
    assert_eq!(gone(7), vec![]);
    assert_eq!(gone(3), vec![]);
    assert_eq!(gone(2), vec![name(1, "a")]);
    assert_eq!(gone(1), vec![name(1, "a"), name(3, "a")]);
    assert_eq!(surplus(&all, "c", 0), vec![]);
}

#[test]
fn what_the_volume_knows_of_a_run_decides_where_its_file_comes_back_to() {
    use Fate::{Reconciled, Returns, StaysAway};
    let none = Traces::default();
    let result = |attempt| Traces { result: Some(attempt), ..none };
    let log = |attempt| Traces { log: Some(attempt), ..none };
    let over = |attempt| Traces { over: true, ..result(attempt) };
    let there = |lies| Traces { lies: Some(lies), ..none };
    let put_away = Traces { put_away: true, ..over(1) };
    let cases = [
        (Lies::Inbox, none, Returns),
        (Lies::Inbox, log(1), Reconciled),
        (Lies::Inbox, over(0), Reconciled),
        (Lies::Inbox, put_away, StaysAway),
        (Lies::Inbox, there(Lies::Inbox), StaysAway),
        (Lies::Inbox, there(Lies::Running(1)), StaysAway),
        (Lies::Waiting(2), result(1), Returns),
        (Lies::Waiting(2), log(1), Returns),
        (Lies::Waiting(2), log(2), Reconciled),
        (Lies::Waiting(2), result(2), Reconciled),
        (Lies::Waiting(2), over(1), Reconciled),
        (Lies::Waiting(2), there(Lies::Waiting(5)), StaysAway),
        (Lies::Running(2), none, Returns),
        (Lies::Running(2), result(1), Returns),
        (Lies::Running(2), log(2), Returns),
        (Lies::Running(2), result(2), Reconciled),
        (Lies::Running(2), log(3), Reconciled),
        (Lies::Running(2), over(1), Reconciled),
        (Lies::Running(2), put_away, StaysAway),
    ];
    for (lies, traces, wanted) in cases {
        assert_eq!(fate(lies, &traces), wanted, "{lies:?} {traces:?}");
    }
    assert_eq!(Traces { log: Some(3), ..result(2) }.newest(), 3);
    assert_eq!(Traces { log: Some(3), ..over(2) }.newest(), 2, "what had lost its lease reported behind the end");
}

fn run(number: u64) -> RunId {
    RunId::new(at(0), number)
}

fn held(attempt: u32, device: Option<&str>) -> Arc<Held> {
    let session = device.map(|_| "0123456789abcdef");
    let held = json!({
        "job": "j", "stem": "j", "cause": "trigger", "trigger": "j.json", "attempt": attempt, "device": device,
        "session": session, "priority": 0, "slots": 1, "claimed_at": "2026-11-21T03:41:57.000Z",
    });
    Arc::new(serde_json::from_value(held).unwrap())
}

fn mark(due: i64) -> JobMark {
    JobMark { since: Some(at(-9)), last_due_at: Some(at(due)), ..JobMark::default() }
}

#[test]
fn a_restored_state_names_only_what_still_holds_and_is_above_all_that_is_known() {
    let job = JobName::new("j").unwrap();
    let runs = [held(1, Some("d")), held(2, Some("d")), held(2, None), held(3, None), held(1, Some("d"))];
    let archived = State {
        revision: 50,
        runs: (1..).map(run).zip(runs).collect(),
        jobs: [(job.clone(), mark(5))].into(),
        ..State::default()
    };
    let traces = |result: Option<u32>| Traces { result, ..Traces::default() };
    let found = BTreeMap::from([
        (run(1), (Some(Lies::Running(1)), traces(None))),
        // Its attempt is over.
        (run(2), (Some(Lies::Running(2)), traces(Some(2)))),
        (run(3), (Some(Lies::Waiting(2)), traces(Some(1)))),
        // It waits for another attempt than this one by now.
        (run(4), (Some(Lies::Waiting(4)), traces(Some(3)))),
        // Its file has vanished, and so has every trace.
        (run(5), (None, traces(None))),
    ]);
    let next = restored(archived.clone(), None, 70, &found);
    assert_eq!(next.runs.keys().cloned().collect::<Vec<_>>(), [run(1), run(3), run(5)]);
    assert_eq!((next.revision, next.rebuilt), (70 + REBUILD_STEP, Some(71 + REBUILD_STEP)));
    assert!(next.last_commits.is_empty());
    assert_eq!(next.jobs[&job].last_due_at, Some(at(5)));

    let own = State {
        revision: 90,
        runs: [(run(1), held(4, Some("e"))), (run(9), held(1, Some("e")))].into(),
        jobs: [(job.clone(), mark(8))].into(),
        ..State::default()
    };
    let next = restored(archived, Some(&own), 70, &found);
    assert_eq!(next.runs.keys().cloned().collect::<Vec<_>>(), [run(1), run(3), run(5), run(9)]);
    assert_eq!(next.runs.get(&run(1)).unwrap().attempt, 4, "what the volume knows is newer");
    assert_eq!(next.revision, 90 + REBUILD_STEP);
    assert_eq!(next.jobs[&job].last_due_at, Some(at(8)), "no due time comes twice");
}
