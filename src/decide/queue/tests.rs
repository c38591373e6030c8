//! The order of the queue against a plain sort, and what it holds of a trigger.

use proptest::prelude::*;

use super::*;
use crate::model::entry::FileId;
use crate::model::ids::{DeviceId, Session};
use crate::model::job::parse as parse_job;
use crate::model::trigger::parse;

/// The jobs `a` to `d`; only of the first two a run needs nothing but a slot.
const JOBS: [(&str, &str); 4] = [("a", ""), ("b", "priority = 3"), ("c", "overlap = \"queue\""), ("d", "slots = 0")];

fn catalog() -> Catalog {
    let job = |(name, keys): (&str, &str)| {
        let name = JobName::new(name).unwrap();
        let job = parse_job(&name, "x.toml", &format!("command = [\"true\"]\n{keys}")).unwrap();
        (name, Arc::new(job))
    };
    Catalog { jobs: JOBS.into_iter().map(job).collect(), ..Catalog::default() }
}

fn me() -> Me {
    let device = DeviceId::new("me").unwrap();
    Me { device, session: Session::from_random(1), tags: BTreeSet::new(), slots: 4 }
}

const NOW: Moment = Moment { boot: Duration::ZERO, wall: DateTime::UNIX_EPOCH };

fn key(number: u8) -> FileKey {
    FileKey { source: Source::Inbox, name: std::ffi::OsString::from(format!("{number}.json")).into() }
}

/// A dropped trigger; the larger the number, the older it is.
fn entry(number: u8, text: &str) -> Arc<Entry> {
    let trigger = parse(text.as_bytes()).unwrap();
    let run = RunId::new(DateTime::from_timestamp(1_000 - i64::from(number), 0).unwrap(), 0);
    let id = FileId { inode: 1, size: 1, modified_ns: 1 };
    Arc::new(Entry { key: key(number), id, ..Entry::due(run, 0, trigger) })
}

fn names(mut ordered: Ordered<'_>) -> Vec<FileKey> {
    std::iter::from_fn(|| ordered.take_next().map(|(_, candidate)| candidate.entry.key.clone())).collect()
}

proptest! {
    #[test]
    fn it_comes_in_order_whatever_was_put_in_and_taken_out(
        changes in proptest::collection::vec((0_u8..40, proptest::option::of((0_usize..4, -2_i16..2))), 0..200),
    ) {
        let (catalog, me) = (catalog(), me());
        let (mut queue, mut model) = (Queue::default(), BTreeMap::new());
        for (number, change) in changes {
            queue.remove(&key(number));
            model.remove(&number);
            if let Some((job, priority)) = change {
                let text = format!("{{\"job\": \"{}\", \"priority\": {priority}}}", JOBS[job].0);
                queue.insert(entry(number, &text), &catalog, &me, NOW);
                model.insert(number, (job, priority));
            }
        }
        let expected = |wanted: fn(usize) -> bool| {
            let mut all: Vec<_> = model.iter().filter(|(_, (job, _))| wanted(*job)).collect();
            all.sort_by_key(|(number, (_, priority))| (Reverse(*priority), Reverse(**number)));
            all.into_iter().map(|(number, _)| key(*number)).collect::<Vec<_>>()
        };
        prop_assert_eq!(names(queue.in_order()), expected(|_| true));
        let mut full = queue.in_order();
        full.leave_all_but_choosy();
        prop_assert_eq!(names(full), expected(|job| job >= 2));
        let group = Group { job: Some(JobName::new("a").unwrap()), lasting: false };
        let mut without = queue.in_order();
        without.leave(&group);
        prop_assert_eq!(names(without), expected(|job| job != 0));
    }
}

#[test]
fn of_what_waits_an_outline_is_held_which_triggers_of_one_job_share() {
    let (catalog, me, mut queue) = (catalog(), me(), Queue::default());
    for number in 0..2 {
        let text = format!("{{\"job\": \"a\", \"args\": [{number}], \"kwargs\": {{\"x\": {number}}}}}");
        queue.insert(entry(number, &text), &catalog, &me, NOW);
    }
    queue.insert(entry(2, r#"{"job": "a", "priority": 7}"#), &catalog, &me, NOW);
    let of = |number| queue.get(&key(number)).unwrap().0;
    assert!(Arc::ptr_eq(&of(0).trigger, &of(1).trigger));
    assert_eq!((of(0).is_outline, of(2).is_outline), (true, false));
    assert_eq!((&of(0).trigger.args, of(0).trigger.kwargs.len(), of(2).trigger.priority), (&None, 0, Some(7)));
}
