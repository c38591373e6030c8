//! What becomes of the attempts of an earlier life, by table.

use std::collections::BTreeSet;

use serde_json::json;

use super::*;
use crate::model::device::Me;
use crate::model::ids::{RunId, Session};
use crate::model::time::Moment;
use crate::model::trigger::parse;

fn lease() -> Lease {
    Lease { run: RunId::new(DateTime::UNIX_EPOCH, 1), attempt: 1 }
}

fn me(session: u64) -> Me {
    let device = DeviceId::new("d").unwrap();
    Me { device, session: Session::from_random(session), tags: BTreeSet::new(), slots: 1 }
}

/// A state in which the first life of a device holds one attempt.
fn state() -> State {
    let held = json!({
        "job": "j", "stem": "j", "cause": "trigger", "trigger": "j.json", "attempt": 1, "device": "d",
        "session": Session::from_random(1), "priority": 0, "slots": 1, "claimed_at": "1970-01-01T00:00:00.000Z",
    });
    State { runs: [(lease().run, Arc::new(serde_json::from_value(held).unwrap()))].into(), ..State::default() }
}

fn evidence() -> Evidence {
    let trigger = Some(Arc::new(parse(b"{\"job\": \"j\"}").unwrap()));
    Evidence {
        accepted: None,
        held_file: true,
        moved_on: false,
        trigger,
        args: Vec::new(),
        kwargs: Vec::new(),
        executor: "docker",
        outlives: Some("docker"),
        daemon: None,
        log: Some("Logs/x".to_owned()),
    }
}

/// What the device's life `session` makes of it, where this goes on.
fn plan(session: u64, evidence: Option<Evidence>, found: &[Lease]) -> (Plan, Me) {
    plan_for(session, evidence, found, &found_as("docker", "1"))
}

fn found_as(executor: &'static str, definition: &str) -> Outliving {
    Outliving { executor, definition: definition.to_owned() }
}

fn plan_for(session: u64, evidence: Option<Evidence>, found: &[Lease], outliving: &Outliving) -> (Plan, Me) {
    let me = me(session);
    let evidence = evidence.map(|it| (lease(), it)).into_iter().collect();
    let found = found.iter().map(|lease| (lease.clone(), outliving.clone())).collect();
    let now = Moment { boot: Duration::ZERO, wall: DateTime::UNIX_EPOCH };
    let seen = Observation { evidence, found, ..Observation::new(me.clone(), String::new(), Duration::ZERO, now) };
    let mut plan = Plan::default();
    lose(&state(), &seen, &mut plan);
    (plan, me)
}

#[test]
fn what_goes_on_is_taken_over_as_the_same_attempt() {
    let (plan, me) = plan(2, Some(evidence()), &[lease()]);
    let [change] = &plan.changes[..] else { panic!("{:?}", plan.changes) };
    assert!(matches!(&change.matter, Matter::Adopted(adopted) if *adopted == lease()), "{change:?}");
    let entry = change.entry.as_ref().unwrap();
    assert!(entry.is_held_by(&me.device, &me.session) && entry.attempt == 1, "{entry:?}");
    assert!(change.notes.is_empty(), "nothing is over");
    // Only while it has no result, and its file is there.
    assert!(matches!(change.moves[..], [Move::Unended { .. }, Move::Expect { .. }]), "{:?}", change.moves);
}

#[test]
fn what_does_not_go_on_or_has_ended_is_not_taken_over() {
    let is_lost = |plan: &Plan| matches!(&plan.changes[..], [Change { matter: Matter::Lost(..), .. }]);
    assert!(is_lost(&plan(2, Some(evidence()), &[]).0), "it is gone");
    let ended = Accepted {
        attempt: 1,
        status: Status::Succeeded,
        is_final: true,
        device: me(1).device,
        at: DateTime::UNIX_EPOCH,
        retried: 0,
        losses: 0,
    };
    assert!(is_lost(&plan(2, Some(Evidence { accepted: Some(ended), ..evidence() }), &[lease()]).0), "it has a result");
    assert!(is_lost(&plan(2, Some(Evidence { trigger: None, ..evidence() }), &[lease()]).0), "nobody knows what it is");
    // What goes on is no longer what its job is.
    let is_lost_as = |evidence, executor, definition: &str| {
        is_lost(&plan_for(2, Some(evidence), &[lease()], &found_as(executor, definition)).0)
    };
    assert!(
        is_lost_as(evidence(), "swarm", "1") && is_lost_as(Evidence { outlives: None, ..evidence() }, "docker", "1")
    );
    let daemon = || Evidence { daemon: Some("1".to_owned()), ..evidence() };
    assert!(is_lost_as(daemon(), "docker", "2") && !is_lost_as(daemon(), "docker", "1"));
    assert!(!is_lost_as(evidence(), "docker", "2"), "it ends by the definition that it was started by");
    // Before it was looked, nothing is decided.
    let (undecided, _) = plan(2, None, &[lease()]);
    assert!(undecided.changes.is_empty() && undecided.look.len() == 1);
    // The same life that does not know of its own attempt any more has lost it.
    assert!(is_lost(&plan(1, Some(evidence()), &[lease()]).0));
}

#[test]
fn what_has_moved_on_has_not_vanished() {
    let end = |moved_on| {
        let evidence = Evidence { held_file: false, moved_on, ..evidence() };
        let (plan, _) = plan(2, Some(evidence), &[]);
        let [change] = &plan.changes[..] else { panic!("{:?}", plan.changes) };
        let is_final = change.moves.iter().any(|step| matches!(step, Move::Record(outcome) if outcome.is_final));
        let moves_its_file = change.moves.iter().any(|step| matches!(step, Move::Wait { .. }));
        (is_final, moves_its_file)
    };
    assert_eq!(end(false), (true, false), "its file is nowhere: it cannot go on");
    assert_eq!(end(true), (false, false), "its file waits for the next attempt already");
}

#[test]
fn what_this_life_claimed_and_could_not_read_is_taken_up() {
    let unstarted = || Evidence { log: None, ..evidence() };
    let is_taken_up = |session, evidence| {
        let (plan, _) = plan(session, Some(evidence), &[]);
        matches!(&plan.changes[..], [Change { matter: Matter::Adopted(_), .. }])
    };
    assert!(is_taken_up(1, unstarted()));
    assert!(!is_taken_up(1, evidence()), "it was started");
    assert!(!is_taken_up(1, Evidence { held_file: false, ..unstarted() }), "its file is gone");
    assert!(!is_taken_up(2, unstarted()), "an earlier life may have started it without a word");
    let of_other = Some(Arc::new(parse(b"{\"job\": \"k\"}").unwrap()));
    assert!(!is_taken_up(1, Evidence { trigger: of_other, ..unstarted() }), "its file says another job");
}
