//! The contract of the disk and of the store on it, held by the real disk and by the simulated one alike: what the simulator
//! proves is worth as much as its disk is true.

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use aios::coordinator::open_volume;
use aios::decide::plan::{Change, Matter, Move, Plan};
use aios::model::device::Me;
use aios::model::entry::{FileKey, Source, Waiting};
use aios::model::ids::{DeviceId, JobName, RunId, Session};
use aios::model::lease::Lease;
use aios::model::result::{Cause, Outcome};
use aios::model::state::Held;
use aios::model::time::Moment;
use aios::store::{Refused, Store};
use aios::volume::disk::{Disk, Kind};
use aios::volume::layout::Layout;
use aios::volume::os::OsDisk;

use super::check::Checker;
use super::disk::SimDisk;
use super::faults::Faults;
use super::world::World;

/// Two handles, as of two processes, on one empty folder.
type Pair = (Rc<dyn Disk>, Rc<dyn Disk>);

/// Holds both kinds of disk to the same promise.
fn both(promise: impl Fn(&Path, &Pair)) {
    let home = tempfile::tempdir().unwrap();
    promise(home.path(), &(Rc::new(OsDisk::new()), Rc::new(OsDisk::new())));
    let world = Rc::new(World::new(1, Checker::default(), &Faults::default()));
    let root = PathBuf::from("/contract");
    world.make_folders(&root);
    let alive = Rc::new(Cell::new(false));
    let disk = |life| -> Rc<dyn Disk> { Rc::new(SimDisk::new(&world, life, 0, &alive)) };
    promise(&root, &(disk(16), disk(32)));
}

fn kind<T>(result: io::Result<T>) -> Option<io::ErrorKind> {
    result.err().map(|error| error.kind())
}

#[test]
fn a_file_is_made_once_and_read_whole() {
    both(|root, (a, b)| {
        let path = root.join("one");
        assert_eq!(kind(a.read(&path, 10)), Some(io::ErrorKind::NotFound));
        assert_eq!(kind(a.stat(&path)), Some(io::ErrorKind::NotFound));
        assert_eq!(kind(a.create(&root.join("no").join("folder"), b"")), Some(io::ErrorKind::NotFound));
        a.create(&path, b"hello").unwrap();
        assert_eq!(kind(b.create(&path, b"other")), Some(io::ErrorKind::AlreadyExists));
        let (bytes, meta) = b.read(&path, 10).unwrap();
        assert_eq!((bytes.as_slice(), meta.kind, meta.id.size), (&b"hello"[..], Kind::File, 5));
        assert_eq!(b.stat(&path).unwrap().id, meta.id);
        assert_eq!(b.read_head(&path, 2).unwrap(), b"he");
        let (none, meta) = b.read(&path, 4).unwrap();
        assert_eq!((none.len(), meta.id.size), (0, 5), "what is too large is not read, and says how large it is");
    });
}

#[test]
fn a_rename_replaces_nothing_unless_it_is_asked_to() {
    both(|root, (a, b)| {
        let [from, to, third] = ["from", "to", "third"].map(|name| root.join(name));
        a.create(&from, b"1").unwrap();
        a.create(&to, b"2").unwrap();
        assert_eq!(kind(b.rename_new(&from, &to)), Some(io::ErrorKind::AlreadyExists));
        assert_eq!((b.read(&from, 9).unwrap().0, b.read(&to, 9).unwrap().0), (b"1".to_vec(), b"2".to_vec()));
        let before = b.stat(&from).unwrap();
        b.rename_new(&from, &third).unwrap();
        let after = a.stat(&third).unwrap();
        assert_eq!(after.id, before.id, "it is the same file under another name");
        assert!(after.changed >= before.changed);
        assert_eq!(kind(a.rename_new(&from, &root.join("fourth"))), Some(io::ErrorKind::NotFound));
        assert_eq!(kind(a.rename_new(&third, &root.join("no").join("folder"))), Some(io::ErrorKind::NotFound));
        a.replace(&third, &to).unwrap();
        assert_eq!((b.read(&to, 9).unwrap().0, kind(b.stat(&third))), (b"1".to_vec(), Some(io::ErrorKind::NotFound)));
    });
}

#[test]
fn a_copy_takes_the_first_bytes_and_replaces_nothing() {
    both(|root, (a, b)| {
        let [from, to] = ["from", "to"].map(|name| root.join(name));
        assert_eq!(kind(a.copy(&from, &to, 9)), Some(io::ErrorKind::NotFound));
        assert_eq!(kind(b.stat(&to)), Some(io::ErrorKind::NotFound));
        a.create(&from, b"hello").unwrap();
        assert_eq!(a.copy(&from, &to, 4).unwrap(), 4);
        assert_eq!(b.read(&to, 9).unwrap().0, b"hell");
        assert_eq!(kind(b.copy(&from, &to, 9)), Some(io::ErrorKind::AlreadyExists));
        assert_eq!(b.read(&to, 9).unwrap().0, b"hell");
        assert_eq!(b.copy(&from, &root.join("all"), 9).unwrap(), 5);
    });
}

#[test]
fn folders_are_listed_made_and_told_from_files() {
    both(|root, (a, b)| {
        assert_eq!(kind(a.list(&root.join("none"))), Some(io::ErrorKind::NotFound));
        let deep = root.join("x").join("y");
        a.make_folders(&deep).unwrap();
        a.make_folders(&deep).unwrap();
        a.create(&deep.join("f"), b"").unwrap();
        assert_eq!(b.list(&root.join("x")).unwrap(), ["y"]);
        assert_eq!(b.list(&deep).unwrap(), ["f"]);
        assert_eq!(b.stat(&deep).unwrap().kind, Kind::Folder);
        b.remove(&deep.join("f")).unwrap();
        assert_eq!(kind(a.remove(&deep.join("f"))), Some(io::ErrorKind::NotFound));
        assert_eq!(a.list(&deep).unwrap(), Vec::<std::ffi::OsString>::new());
        assert_eq!(kind(a.remove_folder(&root.join("x"))), Some(io::ErrorKind::DirectoryNotEmpty));
        a.remove_folder(&deep).unwrap();
        assert_eq!(kind(b.remove_folder(&deep)), Some(io::ErrorKind::NotFound));
        assert_eq!(kind(b.create(&deep.join("f"), b"")), Some(io::ErrorKind::NotFound));
        b.create(&root.join("x").join("f"), b"").unwrap();
        assert_eq!(kind(a.remove_folder(&root.join("x"))), Some(io::ErrorKind::DirectoryNotEmpty));
    });
}

#[test]
fn a_lock_has_one_holder_and_ends_with_its_guard() {
    both(|root, (a, b)| {
        let path = root.join(".state.lock");
        let guard = a.lock(&path).unwrap();
        assert!(guard.is_some());
        assert!(b.lock(&path).unwrap().is_none());
        drop(guard);
        assert!(b.lock(&path).unwrap().is_some());
        a.append(&path, b"12\n").unwrap();
        a.append(&path, b"345\n").unwrap();
        assert_eq!(b.read_head(&path, 99).unwrap(), b"12\n345\n");
        let before = a.boot();
        a.touch(&path).unwrap();
        assert!(a.boot() >= before);
    });
}

#[test]
fn a_file_system_says_how_much_room_there_is() {
    both(|root, (a, _)| {
        let space = a.space(root).unwrap();
        assert!(space.free_bytes > 0 && space.free_bytes <= space.total_bytes, "{space:?}");
        assert!(space.free_inodes <= space.total_inodes, "{space:?}");
    });
}

fn layout(root: &Path) -> Layout {
    Layout { common: root.to_owned(), programs: root.join("Programs") }
}

fn store(root: &Path, disk: &Rc<dyn Disk>, name: &str, session: u64) -> Store {
    let me = Me {
        device: DeviceId::new(name).unwrap(),
        session: Session::from_random(session),
        tags: std::collections::BTreeSet::new(),
        slots: 1,
    };
    Store::new(Rc::clone(disk), layout(root), me)
}

fn now() -> Moment {
    Moment { boot: Duration::ZERO, wall: chrono::DateTime::UNIX_EPOCH }
}

/// A change that lists one run.
fn listing(hash: u64) -> Change {
    let run = RunId::new(chrono::DateTime::UNIX_EPOCH, hash);
    let held = Held {
        job: JobName::new("j").unwrap(),
        stem: "j".to_owned(),
        cause: Cause::Trigger,
        trigger: None,
        attempt: 1,
        device: None,
        session: None,
        priority: 0,
        slots: 1,
        pool: None,
        only_on: None,
        claimed_at: run.time(),
        command: false,
        fail_if_lost: false,
        listed: true,
        retried: 0,
        losses: 0,
        extra: std::collections::BTreeMap::new(),
    };
    let matter = Matter::Listed(run.clone());
    Change { matter, run, moves: Vec::new(), entry: Some(Arc::new(held)), notes: Vec::new() }
}

/// A plan that lists one run.
fn list(hash: u64) -> Plan {
    Plan { changes: vec![listing(hash)].into(), ..Plan::default() }
}

#[test]
fn every_commit_builds_on_the_newest_and_carries_the_chain() {
    both(|root, (a, b)| {
        a.create(&layout(root).volume_id(), b"v\n").unwrap();
        let (mut one, mut two) = (store(root, a, "a", 1), store(root, b, "b", 2));
        one.transact(now(), &mut |_| list(1)).unwrap();
        two.transact(now(), &mut |state| {
            assert_eq!((state.revision, state.runs.len()), (1, 1), "the rules see what another has committed");
            list(2)
        })
        .unwrap();
        assert!(one.refresh().unwrap());
        let chain: Vec<(u64, String)> =
            one.state().last_commits.iter().map(|(revision, by)| (*revision, by.to_string())).collect();
        assert_eq!(chain, [(2, format!("{:016x}", 2)), (1, format!("{:016x}", 1))]);
        assert_eq!(one.state().runs.len(), 2);
        // A plan without a change makes no revision.
        one.transact(now(), &mut |_| Plan::default()).unwrap();
        assert_eq!(one.state().revision, 2);
    });
}

#[test]
fn a_plan_of_which_nothing_happens_makes_no_revision() {
    both(|root, (a, _)| {
        a.create(&layout(root).volume_id(), b"v\n").unwrap();
        let mut store = store(root, a, "a", 1);
        store.transact(now(), &mut |_| list(1)).unwrap();
        let committed = store.transact(now(), &mut |_| {
            let mut change = listing(2);
            let lease = Lease { run: change.run.clone(), attempt: 1 };
            change.moves.push(Move::Expect { lease, stem: "gone".to_owned() });
            Plan { changes: vec![change].into(), ..Plan::default() }
        });
        assert!(committed.unwrap().failed[0].is_some());
        assert_eq!(store.state().revision, 1);
    });
}

#[test]
fn a_run_whose_file_is_there_has_not_vanished() {
    both(|root, (a, _)| {
        let layout = layout(root);
        a.create(&layout.volume_id(), b"v\n").unwrap();
        let mut store = store(root, a, "a", 1);
        let run = RunId::new(chrono::DateTime::UNIX_EPOCH, 1);
        let mut vanishes = || {
            let plan = || {
                let mut change = listing(1);
                change.moves.push(Move::Absent { run: run.clone() });
                Plan { changes: vec![change].into(), ..Plan::default() }
            };
            store.transact(now(), &mut |_| plan()).unwrap().failed[0].is_none()
        };
        let waiting = Waiting { not_before: run.time(), run: run.clone(), attempt: 2, stem: "j".to_owned() };
        let lease = Lease { run: run.clone(), attempt: 2 };
        for path in [layout.waiting_file(&waiting), layout.running_file(&lease, "j")] {
            a.make_folders(path.parent().unwrap()).unwrap();
            // Nobody can read it as a trigger.
            a.create(&path, b"").unwrap();
            assert!(!vanishes(), "{}", path.display());
            a.remove(&path).unwrap();
        }
        assert!(vanishes());
    });
}

#[test]
fn a_run_that_an_earlier_attempt_has_ended_is_not_claimed() {
    both(|root, (a, _)| {
        let layout = layout(root);
        a.create(&layout.volume_id(), b"v\n").unwrap();
        let mut store = store(root, a, "a", 1);
        let change = listing(1);
        let ended = Lease { run: change.run.clone(), attempt: 1 };
        let outcome = serde_json::json!({
            "schema": 1, "run_id": ended.run, "job": "j", "attempt": 1, "device": "a", "executor": "native", "cause": "trigger",
            "trigger": "j.json", "args": [], "kwargs": {}, "priority": 0, "status": "lost", "final": true, "exit_code": null,
            "signal": null, "error": null, "result": null, "result_error": null, "created_at": "1970-01-01T00:00:00.000Z",
            "claimed_at": null, "started_at": null, "finished_at": "1970-01-01T00:00:01.000Z", "duration_ms": null,
            "usage": null, "log": null, "log_truncated": false,
        });
        let outcome: Outcome = serde_json::from_value(outcome).unwrap();
        let record = Change { moves: vec![Move::Record(Box::new(outcome))], ..change.clone() };
        let plan = |change: Change| Plan { changes: vec![change].into(), ..Plan::default() };
        assert!(store.transact(now(), &mut |_| plan(record.clone())).unwrap().failed[0].is_none());
        let waiting =
            Waiting { not_before: ended.run.time(), run: ended.run.clone(), attempt: 2, stem: "j".to_owned() };
        let path = layout.waiting_file(&waiting);
        a.make_folders(path.parent().unwrap()).unwrap();
        a.create(&path, b"{\"job\":\"j\"}").unwrap();
        let from = FileKey { source: Source::Waiting, name: path.file_name().unwrap().into() };
        let lease = Lease { attempt: 2, ..ended };
        let (expect, stem) = (a.stat(&path).unwrap().id, "j".to_owned());
        let take =
            Move::Take { from, expect, lease: lease.clone(), stem, job: JobName::new("j").unwrap(), fresh: false };
        let claim = Change { moves: vec![take], ..change };
        assert!(store.transact(now(), &mut |_| plan(claim.clone())).unwrap().failed[0].is_some(), "it is over");
        assert!(
            a.stat(&path).is_err() && a.stat(&layout.running_file(&lease, "j")).is_err(),
            "its trigger is put away"
        );
    });
}

#[test]
fn a_wrong_word_in_the_copy_is_damage_where_the_revision_is_whole() {
    both(|root, (a, b)| {
        a.create(&layout(root).volume_id(), b"v\n").unwrap();
        store(root, a, "a", 1).transact(now(), &mut |_| list(1)).unwrap();
        let path = layout(root).state();
        let (bytes, _) = a.read(&path, 1 << 20).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let wrong = text.replacen("\"cause\":\"trigger\"", "\"cause\":\"trjgger\"", 1);
        assert_ne!(text, wrong);
        a.remove(&path).unwrap();
        a.create(&path, wrong.as_bytes()).unwrap();
        let mut other = store(root, b, "b", 2);
        other.transact(now(), &mut |_| list(2)).unwrap();
        assert_eq!((other.state().revision, other.state().runs.len()), (2, 2));
    });
}

#[test]
fn who_finds_the_lock_taken_commits_nothing() {
    both(|root, (a, b)| {
        a.create(&layout(root).volume_id(), b"v\n").unwrap();
        let mut store = store(root, a, "a", 1);
        let guard = b.lock(&layout(root).lock()).unwrap();
        assert!(matches!(store.transact(now(), &mut |_| list(1)), Err(Refused::Busy)));
        drop(guard);
        store.transact(now(), &mut |_| list(1)).unwrap();
    });
}

#[test]
fn a_commit_of_another_under_the_lock_is_seen_before_anything_moves() {
    both(|root, (a, b)| {
        a.create(&layout(root).volume_id(), b"v\n").unwrap();
        let mut store = store(root, a, "a", 1);
        store.transact(now(), &mut |_| list(1)).unwrap();
        let raced = store.transact(now(), &mut |state| {
            // As another would that holds the lock as well.
            let (aside, mut other) = (root.join(".aside"), (*state).clone());
            other.revision += 1;
            b.create(&aside, &serde_json::to_vec(&other).unwrap()).unwrap();
            b.replace(&aside, &layout(root).state()).unwrap();
            list(2)
        });
        assert!(matches!(raced, Err(Refused::Raced)), "{raced:?}");
        assert_eq!(store.state().runs.len(), 1);
    });
}

/// Removes the state and its newest revisions.
fn lose(disk: &Rc<dyn Disk>, root: &Path) {
    let layout = layout(root);
    for name in disk.list(&layout.revisions()).unwrap() {
        disk.remove(&layout.revisions().join(name)).unwrap();
    }
    disk.remove(&layout.state()).unwrap();
}

#[test]
fn a_commit_is_the_file_of_its_revision_and_the_state_a_copy_of_the_newest() {
    both(|root, (a, b)| {
        let layout = layout(root);
        a.create(&layout.volume_id(), b"v\n").unwrap();
        let (mut one, mut two) = (store(root, a, "a", 1), store(root, b, "b", 2));
        for run in 1..=6 {
            one.transact(now(), &mut |_| list(run)).unwrap();
        }
        let mut kept = a.list(&layout.revisions()).unwrap();
        kept.sort();
        assert_eq!(kept, ["3.json", "4.json", "5.json", "6.json"]);
        let newest = a.read(&layout.state(), 1 << 20).unwrap().0;
        for text in [None, Some(&b"{"[..]), Some(&a.read(&layout.revision(4), 1 << 20).unwrap().0)] {
            a.remove(&layout.state()).unwrap();
            if let Some(text) = text {
                a.create(&layout.state(), text).unwrap();
            }
            two.ensure(now()).unwrap();
            assert_eq!((two.state().revision, two.state().runs.len(), two.state().rebuilt), (6, 6, None));
            assert_eq!(b.read(&layout.state(), 1 << 20).unwrap().0, newest);
        }
    });
}

#[test]
fn who_was_overtaken_while_it_held_the_lock_commits_nothing() {
    both(|root, (a, b)| {
        let layout = layout(root);
        a.create(&layout.volume_id(), b"v\n").unwrap();
        let (mut slow, mut other) = (store(root, a, "a", 1), store(root, b, "b", 2));
        other.transact(now(), &mut |_| list(1)).unwrap();
        for (passed, run) in [(1, 100), (9, 200)] {
            // It stands still in the middle of its plan. Others replace the lock's file and commit: once, and so often that the name of
            // the slow one's revision is free again. What the slow one sees of the state is old.
            let old = a.read(&layout.state(), 1 << 20).unwrap().0;
            let put = |path: PathBuf, bytes: &[u8]| {
                b.create(&root.join("new"), bytes).unwrap();
                b.replace(&root.join("new"), &path).unwrap();
            };
            let refused = slow.transact(now(), &mut |_| {
                put(layout.lock(), b"");
                for n in 0..passed {
                    other.transact(now(), &mut |_| list(run + n)).unwrap();
                }
                put(layout.state(), &old);
                list(run + 50)
            });
            assert!(matches!(refused, Err(Refused::Raced)), "{refused:?}");
            assert!(slow.breach().is_some_and(|breach| breach.contains("another device")));
            slow.transact(now(), &mut |state| {
                assert_eq!(state.revision, other.state().revision, "nothing that was committed is lost");
                assert!(!state.runs.keys().any(|seen| *seen == RunId::new(chrono::DateTime::UNIX_EPOCH, run + 50)));
                Plan::default()
            })
            .unwrap();
        }
    });
}

#[test]
fn a_lost_state_goes_on_above_every_revision_and_a_lost_volume_is_left_alone() {
    both(|root, (a, _)| {
        a.create(&layout(root).volume_id(), b"v\n").unwrap();
        let mut first = store(root, a, "a", 1);
        first.transact(now(), &mut |_| list(1)).unwrap();
        lose(a, root);
        let mut second = store(root, a, "b", 2);
        second.ensure(now()).unwrap();
        let rebuilt = second.state().revision;
        assert!(rebuilt > 10_000, "{rebuilt}");
        assert_eq!(second.state().rebuilt, Some(rebuilt));
        lose(a, root);
        let mut third = store(root, a, "c", 3);
        third.ensure(now()).unwrap();
        assert!(third.state().revision > rebuilt);
        lose(a, root);
        a.remove(&layout(root).volume_id()).unwrap();
        assert!(matches!(third.ensure(now()), Err(Refused::Volume(_))));
        assert_eq!(kind(a.stat(&layout(root).state())), Some(io::ErrorKind::NotFound));
    });
}

#[test]
fn a_volume_whose_name_was_emptied_is_named_anew_by_one_device() {
    both(|root, (a, b)| {
        let layout = Layout { common: root.join("c"), programs: root.join("p") };
        let open = |disk: &Rc<dyn Disk>, session| open_volume(&**disk, &layout, &Session::from_random(session));
        let name = open(a, 1).unwrap();
        assert_eq!(open(b, 2).unwrap(), name);
        a.remove(&layout.volume_id()).unwrap();
        a.create(&layout.volume_id(), b"").unwrap();
        let guard = b.lock(&layout.lock()).unwrap();
        assert!(open(a, 3).is_err(), "another device may just be naming it");
        drop(guard);
        let renamed = open(a, 3).unwrap();
        assert_ne!(renamed, name);
        assert_eq!(open(b, 4).unwrap(), renamed);
    });
}
