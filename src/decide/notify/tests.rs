//! The rules of telling webhooks, by table.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::DateTime;

use super::*;
use crate::decide::catalog::Catalog;
use crate::decide::liveness::Liveness;
use crate::decide::marks;
use crate::model::device::Beat;
use crate::model::ids::RunId;
use crate::model::job::parse;
use crate::model::time::Moment;

const LEASE: Duration = Duration::from_secs(15);

fn job() -> JobName {
    JobName::new("backup").unwrap()
}

fn me(name: &str, session: u64) -> Me {
    let device = DeviceId::new(name).unwrap();
    Me { device, session: Session::from_random(session), tags: BTreeSet::new(), slots: 1 }
}

fn run(number: u64) -> RunId {
    RunId::new(DateTime::from_timestamp(i64::try_from(number).unwrap(), 0).unwrap(), number)
}

fn news(event: Event, number: u64, by: &Me) -> News {
    News { event, run_id: run(number), attempt: 1, device: by.device.clone(), by: by.session.clone() }
}

fn catalog(hook: bool) -> Catalog {
    let hook = if hook { "notify = \"http://h/\"\n" } else { "" };
    let parsed = parse(&job(), "backup.toml", &format!("command = [\"x\"]\n{hook}")).unwrap();
    Catalog { jobs: BTreeMap::from([(job(), Arc::new(parsed))]), ..Catalog::default() }
}

/// A state in which the job's webhook is in this place.
fn state(told_failed: bool, news: Vec<News>) -> State {
    let mark = JobMark { told_failed, news, ..JobMark::default() };
    State { jobs: [(job(), mark)].into(), ..State::default() }
}

/// What `me` makes of a state, once its plan has happened.
fn after(
    state: &State,
    me: &Me,
    catalog: &Catalog,
    devices: &Liveness,
    told: &[News],
    changes: Vec<Change>,
    now: u64,
) -> JobMark {
    let told: BTreeMap<JobName, News> = told.iter().map(|news| (job(), news.clone())).collect();
    let now = Moment { boot: Duration::from_secs(now), wall: DateTime::UNIX_EPOCH };
    let seen = Observation::new(me.clone(), String::new(), LEASE, now);
    let (catalog, devices) = (Arc::new(catalog.clone()), devices.clone());
    let seen = Observation { upkeep: true, may_tell: true, devices, told, catalog, ..seen };
    let mut plan = Plan { changes: changes.into(), ..Plan::default() };
    tell(state, &seen, &mut plan);
    plan.apply(state, me, |_| true).jobs.get(&job()).cloned().unwrap_or_default()
}

fn nobody() -> Liveness {
    Liveness::new(LEASE, Duration::ZERO)
}

/// A run that is over.
fn over(number: u64, status: Status) -> Change {
    let over = Over { run: run(number), cause: Cause::Trigger, attempt: 1, status, at: DateTime::UNIX_EPOCH };
    let notes = vec![(job(), Note::Over(over))];
    Change { matter: Matter::Vanished(run(number)), run: run(number), moves: Vec::new(), entry: None, notes }
}

/// Before; how runs end; what is then to be told, by run.
type Case<'a> = (bool, &'a [Status], &'a [(Event, u64)]);

#[test]
fn the_first_failure_and_the_recovery_are_told_and_nothing_else() {
    use Event::{Failed, Recovered};
    use Status::{Cancelled, Expired, Lost, Skipped, Succeeded, Superseded, TimedOut};
    let who = me("a", 1);
    let table: [Case; 13] = [
        (false, &[Status::Failed], &[(Failed, 0)]),
        (false, &[TimedOut], &[(Failed, 0)]),
        (false, &[Lost], &[(Failed, 0)]),
        (false, &[Expired], &[(Failed, 0)]),
        (false, &[Succeeded, Cancelled, Skipped, Superseded], &[]),
        (true, &[Status::Failed, Cancelled, Skipped, Superseded], &[]),
        (true, &[Succeeded], &[(Recovered, 0)]),
        (false, &[Status::Failed, TimedOut, Lost], &[(Failed, 0)]),
        (true, &[Succeeded, Succeeded], &[(Recovered, 0)]),
        // What came before it could be told is told in its order, and what came and went is not told at all.
        (false, &[Status::Failed, Succeeded], &[(Failed, 0), (Recovered, 1)]),
        (false, &[Status::Failed, Succeeded, Status::Failed], &[(Failed, 0)]),
        (false, &[Status::Failed, Succeeded, Status::Failed, Succeeded], &[(Failed, 0), (Recovered, 3)]),
        (true, &[Succeeded, Status::Failed, Succeeded], &[(Recovered, 0)]),
    ];
    for (told_failed, ends, expected) in table {
        let changes = (0..).zip(ends).map(|(number, status)| over(number, *status)).collect();
        let mark = after(&state(told_failed, Vec::new()), &who, &catalog(true), &nobody(), &[], changes, 0);
        let expected: Vec<News> = expected.iter().map(|(event, number)| news(*event, *number, &who)).collect();
        assert_eq!(mark.news, expected, "{told_failed} {ends:?}");
    }
}

#[test]
fn a_job_without_a_webhook_tells_nobody() {
    let who = me("a", 1);
    let mark = after(&State::default(), &who, &catalog(false), &nobody(), &[], vec![over(1, Status::Failed)], 0);
    assert_eq!((mark.told_failed, mark.news.len(), mark.failures), (false, 0, 1));
    // Nor does one whose webhook was taken out meanwhile: it begins anew with the next.
    let waits = state(true, vec![news(Event::Failed, 1, &who)]);
    let mark = after(&waits, &who, &catalog(false), &nobody(), &[], Vec::new(), 0);
    assert_eq!((mark.told_failed, mark.news.len()), (false, 0));
    // So does one whose last job file was taken out; but a folder with nothing in it is one that is not mounted.
    let mark = after(&waits, &who, &Catalog::default(), &nobody(), &[], Vec::new(), 0);
    assert_eq!((mark.told_failed, mark.news.len()), (false, 0));
    let bare = Catalog { is_bare: true, ..Catalog::default() };
    let mark = after(&waits, &who, &bare, &nobody(), &[], Vec::new(), 0);
    assert_eq!(mark, waits.jobs[&job()]);
}

#[test]
fn what_is_told_is_taken_out_and_what_came_meanwhile_stays() {
    let who = me("a", 1);
    let (failed, recovered) = (news(Event::Failed, 1, &who), news(Event::Recovered, 2, &who));
    let waits = state(true, vec![failed.clone()]);
    let ends = vec![over(2, Status::Succeeded)];
    let mark = after(&waits, &who, &catalog(true), &nobody(), std::slice::from_ref(&failed), ends, 0);
    assert_eq!((mark.told_failed, mark.news), (false, vec![recovered.clone()]));
    // Told by who had it before: it is told all the same.
    let taken = state(true, vec![news(Event::Failed, 1, &me("b", 2))]);
    let mark = after(&taken, &who, &catalog(true), &nobody(), std::slice::from_ref(&failed), Vec::new(), 0);
    assert_eq!((mark.told_failed, mark.news), (true, Vec::new()));
    // Something else that was told changes nothing.
    let mark = after(&waits, &who, &catalog(true), &nobody(), &[recovered], Vec::new(), 0);
    assert_eq!(mark.news, vec![failed]);
}

#[test]
fn one_of_each_job_at_a_time_and_only_what_is_ones_own() {
    let (a, b) = (me("a", 1), me("b", 2));
    let mixed = state(false, vec![news(Event::Failed, 1, &a), news(Event::Recovered, 2, &b)]);
    let of = |me: &Me| to_tell(&mixed, me).into_iter().map(|(_, news)| news.clone()).collect::<Vec<_>>();
    assert_eq!(of(&a), vec![news(Event::Failed, 1, &a)]);
    assert_eq!(of(&b), Vec::new());
    assert_eq!(told_by_others(&mixed, &b).count(), 1);
    assert_eq!(told_by_others(&mixed, &a).count(), 0);
    // Oldest first, whatever the jobs are called: nobody waits for ever.
    let mut two = state(true, vec![news(Event::Failed, 9, &a)]);
    let late = JobMark { news: vec![news(Event::Failed, 3, &a)], ..JobMark::default() };
    two.jobs.update(&JobName::new("z").unwrap(), |mark| *mark = late);
    let order: Vec<&str> = to_tell(&two, &a).into_iter().map(|(job, _)| job.as_str()).collect();
    assert_eq!(order, ["z", "backup"]);
}

#[test]
fn who_was_to_tell_and_died_is_replaced() {
    let (a, b) = (me("a", 1), me("b", 2));
    let waits = state(true, vec![news(Event::Failed, 1, &a)]);
    let mut devices = nobody();
    let at = Duration::from_secs;
    let teller = |devices: &Liveness, now| after(&waits, &b, &catalog(true), devices, &[], Vec::new(), now).news;
    for now in (0..20).step_by(2) {
        devices.meet(at(now), &told_by_others(&waits, &b).collect(), &BTreeSet::new());
        devices.observe(at(now), vec![Beat::example("a", 1, now)], &[], true);
        assert_eq!(teller(&devices, now), vec![news(Event::Failed, 1, &a)], "it lives");
    }
    for now in (20..36).step_by(2) {
        devices.observe(at(now), vec![Beat::example("a", 1, 18)], &[], true);
    }
    assert_eq!(teller(&devices, 36), vec![news(Event::Failed, 1, &b)]);
    // Its own next life does not wait for a lease.
    let next = me("a", 3);
    let mark = after(&waits, &next, &catalog(true), &nobody(), &[], Vec::new(), 0);
    assert_eq!(mark.news, vec![news(Event::Failed, 1, &next)]);
    assert!(mark.told_failed);
}

#[test]
fn a_daemon_that_was_well_for_long_fails_for_the_first_time_again() {
    let who = me("a", 1);
    let end = |number, anew| Telling::Ended { news: news(Event::Failed, number, &who), anew };
    let mut mark = JobMark { told_failed: true, ..JobMark::default() };
    marks::take(&mut mark, &Note::Tell(end(1, false)));
    assert_eq!(mark.news, Vec::new());
    marks::take(&mut mark, &Note::Tell(end(2, true)));
    assert_eq!(mark.news, vec![news(Event::Failed, 2, &who)]);
    // But not before that is told.
    marks::take(&mut mark, &Note::Tell(end(3, true)));
    assert_eq!(mark.news.len(), 1);
}
