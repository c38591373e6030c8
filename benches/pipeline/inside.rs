//! One call inside the program, against the least that would do the same: starting a process (A7), committing the state (A8).

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use aios::decide::plan::{Change, Matter, Plan};
use aios::exec::native::NativeExecutor;
use aios::exec::{Ending, Executor, MARKER, Spec};
use aios::model::container::Limits;
use aios::model::device::Me;
use aios::model::ids::{DeviceId, JobName, RunId, Session};
use aios::model::lease::Lease;
use aios::model::result::Cause;
use aios::model::state::{Held, State};
use aios::model::time::Moment;
use aios::store::Store;
use aios::volume::disk::Disk as _;
use aios::volume::layout::Layout;
use aios::volume::logs::{Keeps, open_again};
use aios::volume::os::OsDisk;
use fs2::FileExt as _;
use tokio::sync::Notify;

use crate::Outcome;
use crate::clock;
use crate::device::Side;
use crate::report::median;
use crate::volume::Place;

const PROGRAM: &str = "/bin/true";
/// Calls that are made before any is measured.
const WARM: usize = 20;

/// A7: microseconds of one spawn, the median. Each process has ended before the next is started.
pub(crate) fn spawn(place: &Place, side: Side, samples: usize) -> Outcome<f64> {
    let home = tempfile::tempdir_in(&place.folder)?;
    let log =
        |number: usize| File::options().create_new(true).append(true).open(home.path().join(format!("{number}.log")));
    let mut micros = Vec::with_capacity(samples);
    match side {
        Side::Floor => {
            for number in 0..WARM + samples {
                let log = log(number)?;
                let copy = log.try_clone()?;
                let mut command = Command::new(PROGRAM);
                command.stdin(Stdio::null()).stdout(copy).stderr(log);
                let from = clock::now();
                let mut child = command.spawn()?;
                micros.push(clock::seconds(from, clock::now()) * 1e6);
                child.wait()?;
            }
        }
        Side::Product | Side::ProductFast => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            micros = runtime.block_on(spawn_as_the_program_does(home.path(), WARM + samples))?;
        }
    }
    Ok(median(&micros[WARM..]))
}

async fn spawn_as_the_program_does(home: &Path, count: usize) -> Outcome<Vec<f64>> {
    let wake = Arc::new(Notify::new());
    let mut executor = NativeExecutor::new(Arc::clone(&wake))?;
    let mut micros = Vec::with_capacity(count);
    for number in 0..count {
        let lease = Lease { run: RunId::new(chrono::DateTime::UNIX_EPOCH, number as u64), attempt: 1 };
        let env = [("PATH", "/usr/bin:/bin".to_owned()), (MARKER, format!("bench/d/s/{lease}"))];
        let spec = Spec {
            inside: None,
            lease,
            argv: vec![PROGRAM.to_owned()],
            dir: home.to_owned(),
            env: env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            log: open_again(&OsDisk::new(), &home.join(format!("{number}.log")), 64 << 20, Keeps::First)?,
            masker: None,
            timeout: None,
            grace: Duration::from_secs(10),
            limits: Limits::default(),
        };
        let from = clock::now();
        executor.start(spec);
        micros.push(clock::seconds(from, clock::now()) * 1e6);
        let exits = loop {
            wake.notified().await;
            let exits = executor.take_exits();
            if !exits.is_empty() {
                break exits;
            }
        };
        if exits[0].ending != Ending::Code(0) {
            return Err(format!("{PROGRAM} ended with {:?}", exits[0].ending).into());
        }
    }
    Ok(micros)
}

/// A8: microseconds of one commit with so many active runs, the median.
pub(crate) fn commit(place: &Place, side: Side, active: usize, samples: usize) -> Outcome<f64> {
    let home = tempfile::tempdir_in(&place.folder)?;
    let layout = Layout { common: home.path().join("Common"), programs: home.path().join("Programs") };
    std::fs::create_dir_all(layout.running())?;
    let state = state(active);
    let mut micros = match side {
        Side::Floor => floor_commits(&layout, state, WARM + samples)?,
        Side::Product | Side::ProductFast => {
            std::fs::write(layout.state(), serde_json::to_vec(&state)?)?;
            store_commits(layout, WARM + samples)?
        }
    };
    Ok(median(&micros.split_off(WARM)))
}

fn me() -> Outcome<Me> {
    let device = DeviceId::new("bench").map_err(|error| error.to_string())?;
    Ok(Me { device, session: Session::from_random(1), tags: std::collections::BTreeSet::new(), slots: 4 })
}

fn held(number: usize) -> (RunId, Arc<Held>) {
    let run = RunId::new(chrono::DateTime::UNIX_EPOCH, number as u64);
    let held = Held {
        job: JobName::new("a_job_of_usual_length").unwrap_or_else(|_| unreachable!("it is a good name")),
        stem: "a_job_of_usual_length".to_owned(),
        cause: Cause::Trigger,
        trigger: Some(format!("a_job_of_usual_length.{run}.json")),
        attempt: 1,
        device: DeviceId::new("another-device").ok(),
        session: Some(Session::from_random(2)),
        priority: 0,
        slots: 1,
        pool: None,
        only_on: None,
        claimed_at: run.time(),
        command: false,
        fail_if_lost: false,
        listed: false,
        retried: 0,
        losses: 0,
        extra: BTreeMap::new(),
    };
    (run, Arc::new(held))
}

fn state(active: usize) -> State {
    State { revision: 1, runs: (0..active).map(held).collect(), ..State::default() }
}

/// One run more, one run less, through the program's own door.
fn store_commits(layout: Layout, count: usize) -> Outcome<Vec<f64>> {
    let mut store = Store::new(Rc::new(OsDisk::new()), layout, me()?);
    let (run, entry) = held(usize::MAX >> 40);
    let mut micros = Vec::with_capacity(count);
    for number in 0..count {
        let entry = number.is_multiple_of(2).then(|| Arc::clone(&entry));
        let change = Change {
            matter: Matter::Listed(run.clone()),
            run: run.clone(),
            moves: Vec::new(),
            entry,
            notes: Vec::new(),
        };
        let now = Moment { boot: Duration::ZERO, wall: chrono::DateTime::UNIX_EPOCH };
        let from = clock::now();
        store.transact(now, &mut |_| Plan { changes: vec![change.clone()].into(), ..Plan::default() })?;
        micros.push(clock::seconds(from, clock::now()) * 1e6);
    }
    Ok(micros)
}

/// The least that commits: lock, write aside, rename, unlock. It neither reads the state again nor tells anybody.
fn floor_commits(layout: &Layout, mut state: State, count: usize) -> Outcome<Vec<f64>> {
    let disk = OsDisk::new();
    disk.create(&layout.lock(), b"")?;
    let lock = File::options().write(true).open(layout.lock())?;
    let (aside, path) = (layout.common.join(".state.tmp"), layout.state());
    let (run, entry) = held(usize::MAX >> 40);
    let mut micros = Vec::with_capacity(count);
    for number in 0..count {
        let from = clock::now();
        lock.lock_exclusive()?;
        if number.is_multiple_of(2) {
            state.runs.insert(run.clone(), Arc::clone(&entry));
        } else {
            state.runs.remove(&run);
        }
        state.revision += 1;
        std::fs::write(&aside, serde_json::to_vec(&state)?)?;
        std::fs::rename(&aside, &path)?;
        fs2::FileExt::unlock(&lock)?;
        micros.push(clock::seconds(from, clock::now()) * 1e6);
    }
    Ok(micros)
}
