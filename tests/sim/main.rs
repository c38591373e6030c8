//! The simulator: several devices, one shared folder, and everything that can go wrong, from one seed.
//!
//! The product's own loop, store and volume run here unchanged, on a disk that crashes, pauses, fills up, shows old listings and
//! lies about its lock at any operation. First the faults rule and nothing forbidden may happen; then they stop and
//! everything must come to its end. A seed gives the same history each time: `AIOS_SIM_SEED=7 cargo test --test sim`.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test may stop and speak")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

mod check;
mod contract;
mod disk;
mod executor;
mod notifier;
mod rng;
mod scheduler;
mod timed;
mod user;
mod world;

use check::Checker;
use rng::Rng;
use scheduler::Scheduler;
use user::User;
use world::{Faults, World};

/// Seeds that once found a fault stay.
const KEPT: [u64; 18] =
    [8, 14, 37, 40, 254, 305, 500, 575, 830, 851, 2093, 4180, 7089, 8839, 11_975, 12_974, 17_116, 20_358];

/// What one simulation came to.
struct Story {
    violations: Vec<String>,
    commits: u64,
    ticks: u64,
    accepted: u64,
    dropped: usize,
    letters: usize,
}

fn simulate(seed: u64) -> Story {
    let mut swarm = Rng::new(seed, "swarm");
    let lying_lock = swarm.one_in(4);
    let mut checker = Checker::default();
    checker.jobs = user::jobs();
    checker.honest_lock = true;
    let world = Rc::new(World::new(seed, Checker::default()));
    let scheduler = Scheduler::new(seed, Rc::clone(&world));
    checker.devices = scheduler
        .machines
        .iter()
        .map(|machine| (machine.id.to_string(), machine.tags.clone(), u64::from(machine.slots)))
        .collect();
    *world.check.borrow_mut() = checker;
    // The histories of seeds that are kept stay as they were.
    let has_hooks = !KEPT.contains(&seed) && Rng::new(seed, "webhooks").one_in(2);
    let hooked = if has_hooks { user::hooked() } else { Vec::new() };
    user::write_programs(&world, &hooked);
    world.check.borrow_mut().hooked = hooked;
    if world.timed {
        timed::write(&world, true);
    }
    let hurts_state = swarm.one_in(4) && !lying_lock;
    // Each seed has its own mixture: some are calm but for one thing.
    let mut some = |often: u64| if swarm.one_in(2) { often * swarm.between(1, 8) } else { 0 };
    let faults = Faults {
        crash: some(300),
        pause: some(400),
        // What heartbeats say of a lost state may not be older than they are.
        stale: if hurts_state { 0 } else { some(10) },
        full: some(300),
        lost_events: some(2),
        lying_lock,
    };
    tracing::info!(hurts_state, ?faults, "the mixture");
    world.punctual.set(faults.pause == 0 && faults.full == 0);
    let undisturbed = faults.pause == 0 && faults.full == 0 && faults.stale == 0 && faults.crash == 0;
    world.check.borrow_mut().tells_in_order = undisturbed && !lying_lock && !hurts_state;
    world.calm.set(faults.pause == 0 && faults.stale == 0 && faults.full == 0 && !lying_lock && !hurts_state);
    let mut user = User::new(seed, Rc::clone(&world), Rc::clone(&scheduler), hurts_state);
    scheduler.run_until(world.now.get() + Duration::from_secs(1));
    *world.faults.borrow_mut() = faults;
    let end = world.now.get() + Duration::from_secs(40);
    while world.now.get() < end {
        user.act();
        let pause = Duration::from_millis(swarm.between(1, 1_500));
        scheduler.run_until(world.now.get() + pause);
    }
    calm_down(&world, &scheduler, &mut user);
    let off = world.wall();
    if world.timed {
        catch_up(&world, &scheduler);
        timed::write(&world, false);
    }
    converge(&world, &scheduler);
    let dropped = user.dropped.len();
    let mut check = world.check.borrow_mut();
    check.at_the_end(&user.dropped, &world.files.borrow());
    if world.timed {
        let wrong = check.calendar.at_the_end(&world.files.borrow(), world.epoch, off);
        check.violations.extend(wrong);
    }
    Story {
        violations: std::mem::take(&mut check.violations),
        commits: check.commits,
        ticks: scheduler.ticks.get(),
        accepted: check.accepted,
        dropped,
        letters: check.letters,
    }
}

/// The faults stop.
fn calm_down(world: &Rc<World>, scheduler: &Rc<Scheduler>, user: &mut User) {
    *world.faults.borrow_mut() = Faults::default();
    world.full_until.set(Duration::ZERO);
    scheduler.right_all_clocks();
    scheduler.wake_all();
    user.finish();
}

/// What runs by itself must come to where it should be, in bounded time, and stay there for a while.
fn catch_up(world: &Rc<World>, scheduler: &Rc<Scheduler>) {
    let patience = world.now.get() + Duration::from_secs(400);
    while world.now.get() < patience {
        scheduler.run_until(world.now.get() + Duration::from_secs(1));
        if world.check.borrow().calendar.is_caught_up(world) {
            return;
        }
    }
    let files = world.files.borrow();
    let state = files.get(std::path::Path::new("/c/state.json"));
    let state = state.map(|file| String::from_utf8_lossy(&file.bytes).into_owned());
    world.check.borrow_mut().violations.push(format!("liveness: what runs by itself does not catch up: {state:?}"));
}

/// Everything that was dropped must come to its end in bounded time.
fn converge(world: &Rc<World>, scheduler: &Rc<Scheduler>) {
    // The sum of everything that may still have to be waited for: three losses, retries with backoff, the longest runs.
    let patience = world.now.get() + Duration::from_secs(400);
    while world.now.get() < patience {
        scheduler.run_until(world.now.get() + Duration::from_secs(1));
        if scheduler.is_quiet() {
            return;
        }
    }
    let open: Vec<PathBuf> = world
        .files
        .borrow()
        .keys()
        .filter(|path| path.starts_with("/c/Triggers") && path.extension().is_some_and(|e| e == "json"))
        .cloned()
        .collect();
    let state = world
        .files
        .borrow()
        .get(std::path::Path::new("/c/state.json"))
        .map(|file| String::from_utf8_lossy(&file.bytes).into_owned());
    world.check.borrow_mut().violations.push(format!("liveness: not everything came to its end: {open:?} {state:?}"));
}

fn run_seeds(seeds: impl Iterator<Item = u64>) -> (u64, Vec<(u64, Vec<String>)>) {
    let (mut commits, mut failed) = (0, Vec::new());
    for seed in seeds {
        match catch_unwind(AssertUnwindSafe(|| simulate(seed))) {
            Ok(story) => {
                if std::env::var_os("AIOS_SIM_TICKS").is_some() && story.ticks > 3_000 {
                    eprintln!("seed {seed}: {} ticks", story.ticks);
                }
                commits += story.commits;
                if !story.violations.is_empty() {
                    failed.push((seed, story.violations));
                }
            }
            Err(_) => failed.push((seed, vec!["it panicked".to_owned()])),
        }
    }
    (commits, failed)
}

fn report(failed: &[(u64, Vec<String>)]) {
    for (seed, violations) in failed.iter().take(5) {
        eprintln!(
            "seed {seed}: {} violations; AIOS_SIM_SEED={seed} cargo test --test sim replays it",
            violations.len()
        );
        for violation in violations.iter().take(6) {
            eprintln!("    {violation}");
        }
    }
    assert!(
        failed.is_empty(),
        "{} seeds failed: {:?}",
        failed.len(),
        failed.iter().map(|(seed, _)| seed).collect::<Vec<_>>()
    );
}

/// How many seeds each of the two halves runs: `AIOS_SIM_SEEDS=100000` for a long night.
fn half() -> u64 {
    std::env::var("AIOS_SIM_SEEDS").ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(1_000) / 2
}

#[test]
fn nothing_forbidden_happens_and_everything_ends_even_seeds() {
    if let Some(seed) = std::env::var("AIOS_SIM_SEED").ok().and_then(|text| text.parse().ok()) {
        tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).without_time().with_test_writer().init();
        let story = simulate(seed);
        eprintln!(
            "seed {seed}: {} commits, {} ticks, {} accepted results, {} triggers, {} letters",
            story.commits, story.ticks, story.accepted, story.dropped, story.letters
        );
        report(
            &[(seed, story.violations)]
                .into_iter()
                .filter(|(_, violations)| !violations.is_empty())
                .collect::<Vec<_>>(),
        );
        return;
    }
    let (commits, failed) = run_seeds((0..half()).map(|n| n * 2));
    report(&failed);
    assert!(commits > half(), "the simulation did nothing");
}

#[test]
fn nothing_forbidden_happens_and_everything_ends_odd_seeds() {
    if std::env::var_os("AIOS_SIM_SEED").is_some() {
        return;
    }
    let (commits, failed) = run_seeds((0..half()).map(|n| n * 2 + 1).chain(KEPT));
    report(&failed);
    assert!(commits > half(), "the simulation did nothing");
}

#[test]
fn a_seed_gives_the_same_history_each_time() {
    for seed in [3, 14, 159] {
        let (a, b) = (simulate(seed), simulate(seed));
        assert_eq!((a.commits, a.ticks, a.accepted), (b.commits, b.ticks, b.accepted), "seed {seed}");
    }
}
