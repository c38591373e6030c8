//! What follows from an attempt that is lost, by table.

use std::collections::BTreeSet;

use serde_json::json;

use super::*;
use crate::model::ids::{DeviceId, Session};

const ERROR: &str = "its container was removed";

fn me() -> Me {
    Me { device: DeviceId::new("d").unwrap(), session: Session::from_random(1), tags: BTreeSet::new(), slots: 1 }
}

/// An attempt of this cause, after so many that were lost in a row; `more` stands in its entry.
fn mine(cause: &str, losses: u32, more: &serde_json::Value) -> LocalAttempt {
    let mut held = json!({
        "cause": cause, "attempt": losses + 1, "losses": losses, "retried": 2, "listed": true,
    });
    held.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    LocalAttempt::example(&held)
}

fn judged(mine: &LocalAttempt, status: Status, lived: Duration, by: Circumstances) -> Ended {
    let report = Report {
        started_at: Some(DateTime::UNIX_EPOCH),
        duration: lived,
        ..Report::unstarted(status, ERROR.to_owned(), DateTime::UNIX_EPOCH)
    };
    judge(mine, &report, &me(), by, Moment { boot: Duration::ZERO, wall: DateTime::UNIX_EPOCH })
}

#[test]
fn what_is_lost_goes_on_at_once_until_the_third_in_a_row() {
    let short = Duration::from_secs(1);
    for losses in [0, 1] {
        let ended = judged(&mine("trigger", losses, &json!({})), Status::Lost, short, Circumstances::default());
        let again = Next::Again { not_before: RunId::new(DateTime::UNIX_EPOCH, 1).time(), retried: 2 };
        assert_eq!(ended.next, again, "no backoff, and not counted as a retry");
        assert_eq!((ended.outcome.losses, ended.outcome.is_final), (losses + 1, false));
        assert_eq!(ended.outcome.error.as_deref(), Some(ERROR));
    }
    let third = judged(&mine("trigger", 2, &json!({})), Status::Lost, short, Circumstances::default());
    assert_eq!((third.next, third.outcome.losses, third.outcome.is_final), (Next::Over, 3, true));
    assert!(third.outcome.error.unwrap().contains("third in a row"));
    // Any other end begins the count anew.
    let failed = judged(&mine("trigger", 2, &json!({})), Status::Failed, short, Circumstances::default());
    assert_eq!(failed.outcome.losses, 0);
    // A daemon that lived well did not take its container down.
    let daemon = |lived| judged(&mine("always", 2, &json!({})), Status::Lost, lived, Circumstances::default());
    assert_eq!((daemon(HEALTHY).next == Next::Over, daemon(HEALTHY).outcome.losses), (false, 1));
    assert_eq!(daemon(short).next, Next::Over);
}

#[test]
fn what_is_lost_and_cannot_go_on_says_why() {
    let lost = |more: &serde_json::Value, by| judged(&mine("trigger", 0, more), Status::Lost, Duration::ZERO, by);
    let once = lost(&json!({"fail_if_lost": true}), Circumstances::default());
    assert_eq!((once.next, once.outcome.status), (Next::Over, Status::Lost));
    assert!(once.outcome.error.unwrap().contains("on_lost"));
    let mut command = mine("trigger", 0, &json!({}));
    command.trigger = Arc::new(crate::model::trigger::parse(b"{\"command\": [\"true\"]}").unwrap());
    let gone = judged(&command, Status::Lost, Duration::ZERO, Circumstances { gone: true, ..Circumstances::default() });
    assert!(gone.next == Next::Over && gone.outcome.error.unwrap().contains("vanished"));
    let cancelled = lost(&json!({}), Circumstances { cancel_asked: true, ..Circumstances::default() });
    assert_eq!((cancelled.next, cancelled.outcome.status), (Next::Over, Status::Cancelled));
    assert_eq!(cancelled.outcome.losses, 0);
}

#[test]
fn a_file_that_has_vanished_is_made_anew_before_the_result_says_that_the_run_goes_on() {
    let by = Circumstances { gone: true, may_stay: true, ..Circumstances::default() };
    let mine = mine("trigger", 0, &json!({}));
    let ended = judged(&mine, Status::Lost, Duration::ZERO, by);
    assert!(matches!(ended.next, Next::Again { .. }) && !ended.outcome.is_final);
    let now = Moment { boot: Duration::ZERO, wall: DateTime::UNIX_EPOCH };
    let seen = Observation::new(me(), String::new(), Duration::ZERO, now);
    let moves = accept(&mine.lease(), &ended, &seen).moves;
    let [Move::Remake { text, .. }, Move::Publish { .. }] = &moves[..] else { panic!("{moves:?}") };
    assert_eq!(text, "{\"job\":\"j\"}");
    // What is over needs no file.
    let over = judged(&mine, Status::Succeeded, Duration::ZERO, by);
    let moves = accept(&mine.lease(), &over, &seen).moves;
    assert!(matches!(moves[..], [Move::Publish { .. }, Move::Retire { .. }]), "{moves:?}");
}

#[test]
fn losses_are_handed_on_to_the_next_attempt() {
    let ended = judged(&mine("trigger", 1, &json!({})), Status::Lost, Duration::ZERO, Circumstances::default());
    let now = Moment { boot: Duration::ZERO, wall: DateTime::UNIX_EPOCH };
    let seen = Observation::new(me(), String::new(), Duration::ZERO, now);
    let lease = Lease { run: RunId::new(DateTime::UNIX_EPOCH, 1), attempt: 2 };
    for published in [false, true] {
        let ended = Ended { published, ..ended.clone() };
        let change = accept(&lease, &ended, &seen);
        let entry = change.entry.unwrap();
        assert_eq!((entry.attempt, entry.losses, entry.retried), (3, 2, 2));
    }
}
