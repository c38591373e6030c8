//! Which rounds are run, interleaved, and the rows they make.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::Outcome;
use crate::contained;
use crate::device::{ALONE, Seat, Side};
use crate::floor;
use crate::http;
use crate::inside;
use crate::many::{self, Sleepers};
use crate::options::Options;
use crate::probe::Probe;
use crate::report::Target::{AtLeast, AtMost, RatioAtLeast, RatioAtMost};
use crate::report::{Report, Row, Spread, Target};
use crate::rounds::{self, Drain, Latency, Setting};
use crate::volume::{Job, Place};

/// What every round of each side gave.
type Rounds<T> = BTreeMap<Side, Vec<T>>;

/// One round's figures by the number of triggers.
type Drains = BTreeMap<usize, Drain>;

/// HyperQueue's 10,000 triggers, and the lead over it that is wanted.
const HYPERQUEUE_RATE: f64 = 874.0 * 1.5;

/// Runs what was asked for. What fails is reported, and the next is run.
pub(crate) fn run(options: &Options, report: &mut Report) -> Outcome<()> {
    let probe = Probe::build()?;
    if !probe.is_static {
        report.remark("the probe is not static here: A1, A2 and A11 are longer by its loading, on both sides");
    }
    let place = |name, folder, gated| Place { name, folder, gated, probe: probe.program() };
    let tmpfs = place("tmpfs", PathBuf::from("/dev/shm"), true);
    let disk = options.disk().map(|folder| place("disk", folder, false));
    if let Some(disk) = &disk {
        std::fs::create_dir_all(&disk.folder)?;
    }
    for place in [Some(&tmpfs), disk.as_ref()].into_iter().flatten() {
        let bench = Bench { options, place };
        bench.latency(report);
        bench.throughput(report);
    }
    let bench = Bench { options, place: &tmpfs };
    bench.two_devices(report);
    bench.idle(report);
    bench.start(report);
    bench.inside(report);
    bench.restart(report);
    bench.sleepers(report);
    bench.contained(report);
    bench.over_http(report);
    Ok(())
}

/// The experiments at one place.
struct Bench<'a> {
    options: &'a Options,
    place: &'a Place,
}

impl Bench<'_> {
    /// A1 and A2.
    fn latency(&self, report: &mut Report) {
        if !self.options.wants(&["A1", "A2"]) {
            return;
        }
        let samples = self.options.samples();
        let rounds = self.interleave("single triggers", |side| rounds::latency(self.setting(), side, samples));
        let Some(rounds) = report.keep("A1, A2", self.place.name, rounds) else {
            return;
        };
        let (p50, p99, result): (&[Target], &[Target], &[Target]) = match self.place.gated {
            true => (&[RatioAtMost(1.3)], &[RatioAtMost(2.0)], &[RatioAtMost(1.4)]),
            false => (&[RatioAtMost(2.0)], &[], &[]),
        };
        let mut rows = Vec::new();
        if self.options.wants(&["A1"]) {
            rows.extend(self.compare("A1", "drop → main(), p50", "ms", p50, &rounds, |round: &Latency| round.main_p50));
            rows.extend(self.compare("A1", "drop → main(), p99", "ms", p99, &rounds, |round| round.main_p99));
        }
        if self.options.wants(&["A2"]) {
            let what = "drop → result visible, p50";
            rows.extend(self.compare("A2", what, "ms", result, &rounds, |round| round.result_p50));
        }
        report.add(rows);
    }

    /// A3, A4, A5 and A9, which share their rounds: each holds every number of triggers, so that growth compares what
    /// ran close together.
    fn throughput(&self, report: &mut Report) {
        let (wants, gated) = (|any_of: &[&str]| self.options.wants(any_of), self.place.gated);
        let (growth, memory) = (gated && wants(&["A5"]), gated && wants(&["A9"]));
        let thousand = (wants(&["A3"]) || growth).then_some(1_000);
        let ten = (wants(&["A4"]) || growth || memory).then_some(10_000);
        let hundred = (growth && self.options.long).then_some(100_000);
        let counts: Vec<usize> = [thousand, ten, hundred].into_iter().flatten().collect();
        if counts.is_empty() {
            return;
        }
        let rounds = self.interleave(&format!("{counts:?} triggers at once"), |side| self.drains(side, &counts));
        let Some(rounds) = report.keep("A3, A4, A5, A9", self.place.name, rounds) else {
            return;
        };

        if wants(&["A3"]) {
            let targets: &[Target] = if gated { &[RatioAtLeast(0.8)] } else { &[] };
            report.add(self.compare("A3", "1,000 triggers at once", "/s", targets, &rounds, rate(1_000)));
        }
        if wants(&["A4"]) {
            let on_disk = [RatioAtLeast(0.5), AtLeast(HYPERQUEUE_RATE)];
            let targets: &[Target] = if gated { &[RatioAtLeast(0.8)] } else { &on_disk };
            report.add(self.compare("A4", "10,000 triggers at once", "/s", targets, &rounds, rate(10_000)));
        }
        if growth {
            report.add(self.growth("cost each, 10,000 against 1,000", &rounds, 1_000, 10_000));
        }
        if hundred.is_some() {
            report.add(self.growth("cost each, 100,000 against 10,000", &rounds, 10_000, 100_000));
        }
        if memory {
            let (idle, after) = (of(10_000, |drain| drain.idle_mib), of(10_000, |drain| drain.after_mib));
            report.add(self.compare("A9", "resident, idle", "MiB", &[AtMost(16.0)], &rounds, idle));
            report.add(self.compare("A9", "resident, after 10,000 runs", "MiB", &[AtMost(20.0)], &rounds, after));
        }
    }

    /// One round of many triggers on one device, for each of these numbers.
    fn drains(&self, side: Side, counts: &[usize]) -> Outcome<Drains> {
        let drain = |&count: &usize| {
            let drain = rounds::drain(self.setting(), side, &[ALONE], count);
            Ok((count, drain.map_err(|error| format!("{count} triggers: {error}"))?))
        };
        counts.iter().map(drain).collect()
    }

    /// A5: how much more one trigger costs among more of them.
    fn growth(&self, what: &str, rounds: &Rounds<Drains>, fewer: usize, more: usize) -> Option<Row> {
        let (fewer, more) = (rate(fewer), rate(more));
        let spread = |side| Spread::of(rounds.get(&side)?.iter().map(|round| fewer(round) / more(round)).collect());
        let product = spread(Side::Product)?;
        Some(Row::new("A5", what, "×", self.place, spread(Side::Floor), product, &[AtMost(1.15)]).without_ratio())
    }

    /// A6: the product alone, with as many slots, stands where the floor stands elsewhere.
    fn two_devices(&self, report: &mut Report) {
        if !self.options.wants(&["A6"]) {
            return;
        }
        let slots = floor::default_slots();
        let one = [Seat { id: "bench", slots: Some(slots), shared: true, options: &[] }];
        let two = [
            Seat { id: "bench-1", slots: Some(slots / 2), shared: true, options: &[] },
            Seat { id: "bench-2", slots: Some(slots - slots / 2), shared: true, options: &[] },
        ];
        // The sides' names mean one device and two here.
        let rounds = self.interleave_sides(&[Side::Floor, Side::Product], "one device, two devices", |side| {
            let seats: &[Seat] = if side == Side::Floor { &one } else { &two };
            rounds::drain(self.setting(), Side::Product, seats, 10_000)
        });
        let Some(rounds) = report.keep("A6", self.place.name, rounds) else {
            return;
        };
        let what = "10,000 on two devices, against one";
        report.add(self.compare("A6", what, "/s", &[RatioAtLeast(0.9)], &rounds, |round| round.rate));
    }

    /// A10, one long round.
    fn idle(&self, report: &mut Report) {
        if !self.options.wants(&["A10"]) {
            return;
        }
        let seconds = self.options.idle_seconds();
        eprintln!("{}: idle for {seconds} s", self.place.name);
        let used = rounds::idle(self.setting(), seconds);
        let Some((floor, product)) = report.keep("A10", self.place.name, used) else {
            return;
        };
        let (floor, product) = (Spread::of(vec![floor]), Spread::of(vec![product]));
        let what = format!("CPU idle over {seconds} s");
        report
            .add(product.map(|product| {
                Row::new("A10", &what, "%", self.place, floor, product, &[AtMost(0.1)]).without_ratio()
            }));
    }

    /// A11.
    fn start(&self, report: &mut Report) {
        if !self.options.wants(&["A11"]) {
            return;
        }
        let starts = self.options.starts();
        for (jobs, limit) in [(10, 10.0), (1_000, 40.0)] {
            let title = format!("starts with {jobs} job files");
            let rounds = self.interleave_sides(&[Side::Floor, Side::Product], &title, |side| {
                rounds::start(self.setting(), side, jobs, starts)
            });
            let Some(rounds) = report.keep("A11", self.place.name, rounds) else {
                continue;
            };
            let what = format!("exec → first main(), {jobs} job files");
            report.add(self.compare("A11", &what, "ms", &[AtMost(limit)], &rounds, |&millis| millis));
        }
    }

    /// A7 and A8, in this process.
    fn inside(&self, report: &mut Report) {
        let (calls, pair) = (self.options.calls(), [Side::Floor, Side::Product]);
        if self.options.wants(&["A7"]) {
            let rounds = self.interleave_sides(&pair, "spawns", |side| inside::spawn(self.place, side, calls));
            if let Some(rounds) = report.keep("A7", self.place.name, rounds) {
                report.add(self.compare("A7", "one spawn, p50", "µs", &[RatioAtMost(1.15)], &rounds, |&micros| micros));
            }
        }
        if self.options.wants(&["A8"]) {
            // At 10 runs the file of the revision is most of the cost.
            for (active, target) in [(10, 2.0), (100, 1.3), (1_000, 1.3)] {
                let title = format!("commits with {active} active runs");
                let rounds =
                    self.interleave_sides(&pair, &title, |side| inside::commit(self.place, side, active, calls));
                if let Some(rounds) = report.keep("A8", self.place.name, rounds) {
                    let what = format!("one commit, {active} active runs, p50");
                    report.add(self.compare("A8", &what, "µs", &[RatioAtMost(target)], &rounds, |&micros| micros));
                }
            }
        }
    }

    /// B1.
    fn restart(&self, report: &mut Report) {
        if !self.options.wants(&["B1"]) {
            return;
        }
        let pair = [Side::Floor, Side::Product];
        let rounds = self.interleave_sides(&pair, "restarts", |side| many::restart(self.setting(), side));
        if let Some(rounds) = report.keep("B1", self.place.name, rounds) {
            let what = "restart --all of 100 daemons → main()";
            report.add(self.compare("B1", what, "ms", &[AtMost(100.0)], &rounds, |&millis| millis));
        }
    }

    /// B2.
    fn sleepers(&self, report: &mut Report) {
        if !self.options.wants(&["B2"]) {
            return;
        }
        let pair = [Side::Floor, Side::Product];
        let rounds = self.interleave_sides(&pair, "runs that sleep", |side| many::sleepers(self.setting(), side));
        let Some(rounds) = report.keep("B2", self.place.name, rounds) else {
            return;
        };
        let started = |round: &Sleepers| round.started;
        report.add(self.compare("B2", "1,000 runs that sleep → main()", "ms", &[RatioAtMost(1.5)], &rounds, started));
        let own = |what: &str, unit, limit, figure: fn(&Sleepers) -> f64| {
            let product = Spread::of(rounds.get(&Side::Product)?.iter().map(figure).collect())?;
            Some(Row::new("B2", what, unit, self.place, None, product, &[AtMost(limit)]))
        };
        if !self.options.self_check {
            report.add(own("resident with 1,000 runs", "MiB", 24.0, |round| round.mib));
            report.add(own("CPU with 1,000 runs asleep", "%", 0.2, |round| round.cpu));
        }
    }

    /// C1 and C2.
    fn contained(&self, report: &mut Report) {
        let rows = [
            ("C1", "one container job, against docker run --rm", Job::Cold, 1.15),
            ("C2", "one with keep_warm, against docker exec", Job::Warm, 1.3),
        ];
        for (measure, what, job, limit) in rows {
            if !self.options.wants(&[measure]) {
                continue;
            }
            if !contained::has_engine() {
                report.remark("C1, C2 are left out: no container engine with debian:bookworm-slim");
                return;
            }
            let pair = [Side::Floor, Side::Product];
            let rounds = self.interleave_sides(&pair, what, |side| contained::round(self.setting(), side, job));
            if let Some(rounds) = report.keep(measure, self.place.name, rounds) {
                report.add(self.compare(measure, what, "ms", &[RatioAtMost(limit)], &rounds, |&millis| millis));
            }
        }
    }

    /// D1 and D2.
    fn over_http(&self, report: &mut Report) {
        let pair = [Side::Floor, Side::Product];
        if self.options.wants(&["D1"]) {
            let rounds = self.interleave_sides(&pair, "cached reads", |side| http::reads(self.setting(), side));
            if let Some(rounds) = report.keep("D1", self.place.name, rounds) {
                let what = "GET /jobs (100 jobs) against an empty handler";
                report.add(self.compare("D1", what, "/s", &[RatioAtLeast(0.5)], &rounds, |&rate| rate));
            }
        }
        if self.options.wants(&["D2"]) {
            let rounds =
                self.interleave_sides(&pair, "triggers over HTTP", |side| http::triggers(self.setting(), side));
            if let Some(rounds) = report.keep("D2", self.place.name, rounds) {
                let what = "a trigger over HTTP → main(), against by file";
                report.add(self.compare("D2", what, "ms", &[RatioAtMost(1.5)], &rounds, |&millis| millis));
            }
        }
    }

    fn setting(&self) -> Setting<'_> {
        Setting { place: self.place, self_check: self.options.self_check }
    }

    /// The rounds of all sides that are compared at this place.
    fn interleave<T>(&self, title: &str, round: impl FnMut(Side) -> Outcome<T>) -> Outcome<Rounds<T>> {
        // On a disk the floor's lack of syncs is an advantage, so a product without them stands beside.
        let sides: &[Side] = match self.place.gated {
            true => &[Side::Floor, Side::Product],
            false => &[Side::Floor, Side::Product, Side::ProductFast],
        };
        self.interleave_sides(sides, title, round)
    }

    /// Runs the sides in turn, round after round. The first failure ends it.
    fn interleave_sides<T>(
        &self,
        sides: &[Side],
        title: &str,
        mut round: impl FnMut(Side) -> Outcome<T>,
    ) -> Outcome<Rounds<T>> {
        let mut rounds = Rounds::new();
        for number in 1..=self.options.rounds() {
            eprintln!("{}: {title}, round {number} of {}", self.place.name, self.options.rounds());
            // Another side begins each round, so that coming first helps nobody.
            for &side in sides.iter().cycle().skip(number as usize % sides.len()).take(sides.len()) {
                let figures = round(side).map_err(|error| format!("{side}, round {number}: {error}"))?;
                rounds.entry(side).or_insert_with(Vec::new).push(figures);
            }
        }
        Ok(rounds)
    }

    /// A row for the product, and one for its other durability if that was measured.
    fn compare<T>(
        &self,
        measure: &'static str,
        what: &str,
        unit: &'static str,
        targets: &[Target],
        rounds: &Rounds<T>,
        figure: impl Fn(&T) -> f64,
    ) -> Vec<Row> {
        let spread = |side| Spread::of(rounds.get(&side)?.iter().map(&figure).collect());
        let row = |side, what: &str, targets: &[Target]| {
            Some(Row::new(measure, what, unit, self.place, spread(Side::Floor), spread(side)?, targets))
        };
        let full = row(Side::Product, what, targets);
        let fast = row(Side::ProductFast, &format!("{what}, fast"), &[]);
        [full, fast].into_iter().flatten().collect()
    }
}

/// Reads a figure of the round with so many triggers; not a number if there was none.
fn of(count: usize, figure: fn(&Drain) -> f64) -> impl Fn(&Drains) -> f64 {
    move |drains| drains.get(&count).map_or(f64::NAN, figure)
}

/// Triggers a second in the round with so many.
fn rate(count: usize) -> impl Fn(&Drains) -> f64 {
    of(count, |drain| drain.rate)
}
