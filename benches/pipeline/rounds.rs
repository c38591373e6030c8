//! One round of each experiment: a fresh volume, one side, its figures, a check of what it did.

use std::thread;
use std::time::Duration;

use crate::Outcome;
use crate::clock;
use crate::device::{ALONE, Seat, Side};
use crate::report::{median, quantile};
use crate::stage::Stage;
use crate::volume::{Job, Place};

/// Before each single trigger the device idles this long and up to [`GAP_STEPS`] ms more: longer than any background
/// work after an end, and never in step with a period.
const GAP: Duration = Duration::from_millis(12);

/// The gap's variation, a prime.
const GAP_STEPS: u64 = 7;

/// How long a device is left alone before its idleness or its memory is measured.
const QUIET: Duration = Duration::from_secs(1);

/// Where and how a round runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting<'a> {
    /// The file system.
    pub place: &'a Place,
    /// Whether the floor plays the product's part.
    pub self_check: bool,
}

/// A1 and A2: milliseconds.
#[derive(Debug)]
pub(crate) struct Latency {
    /// Drop → `main`, the median.
    pub main_p50: f64,
    /// Drop → `main`, one in a hundred is slower.
    pub main_p99: f64,
    /// Drop → result visible, the median.
    pub result_p50: f64,
}

/// Single triggers on an idle device, one after another.
pub(crate) fn latency(setting: Setting<'_>, side: Side, samples: u32) -> Outcome<Latency> {
    let mut stage = Stage::open(setting.place, side, &[ALONE], setting.self_check)?;
    let (mut to_main, mut to_result) = (Vec::new(), Vec::new());
    for sample in 0..u64::from(samples) {
        thread::sleep(GAP + Duration::from_millis(sample % GAP_STEPS));
        let dropped = stage.drop_all(Job::Probe, 1)?;
        let visible = stage.await_results()?;
        to_main.push(clock::millis(dropped, stage.volume.answers().take()?));
        to_result.push(clock::millis(dropped, visible));
    }
    stage.close()?;
    Ok(Latency { main_p50: median(&to_main), main_p99: quantile(&to_main, 0.99), result_p50: median(&to_result) })
}

/// A3, A4, A5 and A9.
#[derive(Debug)]
pub(crate) struct Drain {
    /// Triggers a second, from the first drop to the last result.
    pub rate: f64,
    /// Resident memory before, in MiB.
    pub idle_mib: f64,
    /// Resident memory after, in MiB.
    pub after_mib: f64,
}

/// Many triggers at once, until all results are visible. More than one seat: they share the volume.
pub(crate) fn drain(setting: Setting<'_>, side: Side, seats: &[Seat], count: usize) -> Outcome<Drain> {
    let mut stage = Stage::open(setting.place, side, seats, setting.self_check)?;
    thread::sleep(QUIET);
    let idle_mib = stage.resident_mib()?;
    let dropped = stage.drop_all(Job::Nop, count)?;
    let done = stage.await_results()?;
    thread::sleep(QUIET);
    let after_mib = stage.resident_mib()?;
    stage.close()?;
    Ok(Drain { rate: count as f64 / clock::seconds(dropped, done), idle_mib, after_mib })
}

/// A10: CPU use in percent of one CPU, floor and product. Both idle at once: what idles disturbs nobody.
pub(crate) fn idle(setting: Setting<'_>, seconds: u64) -> Outcome<(f64, f64)> {
    let floor = Stage::open(setting.place, Side::Floor, &[ALONE], setting.self_check)?;
    let product = Stage::open(setting.place, Side::Product, &[ALONE], setting.self_check)?;
    thread::sleep(QUIET);
    let (start, before) = (clock::now(), (floor.cpu_seconds()?, product.cpu_seconds()?));
    thread::sleep(Duration::from_secs(seconds));
    let (after, end) = ((floor.cpu_seconds()?, product.cpu_seconds()?), clock::now());
    floor.close()?;
    product.close()?;
    let percent = |before: f64, after: f64| 100.0 * (after - before) / clock::seconds(start, end);
    Ok((percent(before.0, after.0), percent(before.1, after.1)))
}

/// A11: milliseconds from exec to the `main` of a trigger that was waiting; the median of some starts on one volume.
pub(crate) fn start(setting: Setting<'_>, side: Side, jobs: usize, starts: u32) -> Outcome<f64> {
    let mut stage = Stage::set(setting.place, jobs)?;
    // The first start ever makes the volume; that is not what is measured.
    stage.start(side, ALONE, setting.self_check)?;
    stage.warm_up()?;
    stage.stop()?;
    let mut times = Vec::new();
    for _ in 0..starts {
        stage.drop_all(Job::Probe, 1)?;
        let started = clock::now();
        stage.start(side, ALONE, setting.self_check)?;
        stage.await_results()?;
        times.push(clock::millis(started, stage.volume.answers().take()?));
        // The trigger is moved after its result is visible; a floor that is killed in between would run it again.
        thread::sleep(GAP);
        stage.stop()?;
    }
    stage.close()?;
    Ok(median(&times))
}
