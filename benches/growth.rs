//! The benchmark of growth: the same figure before and after something has grown.
//!
//! Each row compares the program with itself, in the same run on the same machine and on tmpfs: with few jobs and with many, with no open
//! runs of other devices and with thousands. Rounds are interleaved, and the ratio of their medians is held against a target.
//!
//! ```text
//! cargo bench --bench growth                 everything
//! cargo bench --bench growth -- G1 --quick   one measure, a tenth of the size, few rounds
//! ```
//!
//! Under `cargo test` it does nothing. Exit codes: 0 every target was met; 1 one was missed; 2 something died, hung or gave a wrong result.

#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark stands outside the house and has its own clocks, files and processes"
)]
#![expect(clippy::print_stdout, reason = "the table is this program's output")]
#![expect(clippy::print_stderr, reason = "progress and failures go to standard error")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use aios::model::ids::RunId;
use clap::Parser;
use clap::builder::PossibleValuesParser;
use serde_json::{Value, json};

use device::{ALONE, Seat, Side};
use report::Target::{self, AtMost, RatioAtLeast, RatioAtMost};
use report::{Report, Row, Spread, Subject};
use stage::Stage;
use volume::{Job, Place};

#[path = "pipeline/clock.rs"]
#[expect(dead_code, reason = "the other benchmark uses the rest")]
mod clock;
#[path = "pipeline/device.rs"]
#[expect(dead_code, reason = "the other benchmark uses the rest")]
mod device;
#[path = "pipeline/floor.rs"]
#[expect(dead_code, reason = "the other benchmark uses the rest")]
mod floor;
#[path = "pipeline/probe.rs"]
#[expect(dead_code, reason = "the other benchmark uses the rest")]
mod probe;
#[path = "pipeline/report.rs"]
#[expect(dead_code, reason = "the other benchmark uses the rest")]
mod report;
#[path = "pipeline/stage.rs"]
#[expect(dead_code, reason = "the other benchmark uses the rest")]
mod stage;
#[path = "pipeline/volume.rs"]
#[expect(dead_code, reason = "the other benchmark uses the rest")]
mod volume;
#[path = "pipeline/watch.rs"]
mod watch;

/// Errors here are only ever told to a person.
type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Something died, hung or gave a wrong result.
const BROKEN: u8 = 2;

/// Every measure, in the order in which they are shown.
const MEASURES: [&str; 6] = ["G1", "G2", "G3", "G4", "G5", "G6"];

/// The slots of a device, or of all of them together, while a rate is measured.
const SLOTS: usize = 4;

/// The devices of G4, and the slots that they have together.
const CROWD: usize = 24;

/// The interval of heartbeats by default.
const BEAT: Duration = Duration::from_secs(2);

/// The session of a device that is only played.
const SESSION: &str = "0123456789abcdef";

/// The time for which devices are left alone before anything is measured.
const QUIET: Duration = Duration::from_secs(2);

/// The time after the last change from which a device looks at nothing more.
const SETTLED: Duration = Duration::from_secs(8);

/// For how long what waits, or beats, is watched.
const WATCHED: Duration = Duration::from_secs(10);

/// A row: what grows, and the same figure before and after.
struct Growth {
    measure: &'static str,
    what: &'static str,
    unit: &'static str,
    target: Target,
    before: Option<fn(&Bench) -> Outcome<f64>>,
    after: fn(&Bench) -> Outcome<f64>,
}

const GROWTHS: [Growth; 9] = [
    Growth {
        measure: "G1",
        what: "4,000 triggers of one job → of 4,000 jobs",
        unit: "/s",
        target: RatioAtLeast(0.8),
        before: Some(|bench| bench.rate_of_jobs(1)),
        after: |bench| bench.rate_of_jobs(bench.size(4_000)),
    },
    Growth {
        measure: "G2",
        what: "open runs of others 0 → 1,000",
        unit: "/s",
        target: RatioAtLeast(0.9),
        before: Some(|bench| bench.rate_beside(0)),
        after: |bench| bench.rate_beside(bench.size(1_000)),
    },
    Growth {
        measure: "G2",
        what: "open runs of others 0 → 10,000",
        unit: "/s",
        target: RatioAtLeast(0.5),
        before: Some(|bench| bench.rate_beside(0)),
        after: |bench| bench.rate_beside(bench.size(10_000)),
    },
    Growth {
        measure: "G3",
        what: "500 daemons for nobody here, 5,000 open runs: CPU per trigger",
        unit: "ms",
        target: RatioAtMost(1.2),
        before: Some(|bench| bench.cpu_beside(0, 0)),
        after: |bench| bench.cpu_beside(bench.size(500), bench.size(5_000)),
    },
    Growth {
        measure: "G4",
        what: "devices 1 → 24, as many slots: CPU per trigger over all",
        unit: "ms",
        target: RatioAtMost(4.0),
        before: Some(|bench| bench.cpu_of_devices(1)),
        after: |bench| bench.cpu_of_devices(CROWD),
    },
    Growth {
        measure: "G5",
        what: "150,000 small triggers wait: memory",
        unit: "MiB",
        target: AtMost(40.0),
        before: None,
        after: |bench| Ok(bench.waiting(bench.size(150_000), 0)?.mib),
    },
    Growth {
        measure: "G5",
        what: "150,000 small triggers wait: CPU",
        unit: "%",
        target: AtMost(1.0),
        before: None,
        after: |bench| Ok(bench.waiting(bench.size(150_000), 0)?.cpu),
    },
    Growth {
        measure: "G5",
        what: "150 triggers of 1 MB wait: memory",
        unit: "MiB",
        target: AtMost(30.0),
        before: None,
        after: |bench| Ok(bench.waiting(150, 1_000_000)?.mib),
    },
    Growth {
        measure: "G6",
        what: "200,000 results of that day, one orphan: longest gap between beats",
        unit: "s",
        target: RatioAtMost(1.2),
        before: Some(|_| Ok(BEAT.as_secs_f64())),
        after: |bench| bench.longest_gap(bench.size(200_000)),
    },
];

/// Measures whether the program stays fast and small as everything grows.
#[derive(Debug, Parser)]
#[command(name = "growth")]
struct Options {
    /// The rows to measure [default: all]
    #[arg(value_name = "MEASURE", value_parser = PossibleValuesParser::new(MEASURES), ignore_case = true)]
    measures: Vec<String>,
    /// A tenth of the size and fewer rounds: a look, not a verdict
    #[arg(long)]
    quick: bool,
    /// Rounds of each row [default: 3, with --quick 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// Passed by `cargo bench`; without it nothing is measured
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    harness().unwrap_or_else(|error| {
        eprintln!("growth: {error}");
        ExitCode::from(BROKEN)
    })
}

/// Measures what was asked for, prints the table, writes the JSON.
fn harness() -> Outcome<ExitCode> {
    let options = Options::parse();
    if !options.bench {
        println!("growth: nothing is measured without --bench; use `cargo bench --bench growth`");
        return Ok(ExitCode::SUCCESS);
    }
    let rounds = options.rounds.unwrap_or(if options.quick { 1 } else { 3 });
    let place =
        Place { name: "tmpfs", folder: PathBuf::from("/dev/shm"), gated: true, probe: PathBuf::from("/bin/true") };
    let bench = Bench { place, quick: options.quick };
    let mut report = Report::new(Subject {
        measures: &MEASURES,
        sides: ["before", "after"],
        rounds,
        options: json!({"quick": options.quick}),
    });
    let asked = |growth: &&Growth| {
        options.measures.is_empty() || options.measures.iter().any(|name| name.eq_ignore_ascii_case(growth.measure))
    };
    for growth in GROWTHS.iter().filter(asked) {
        let row = bench.row(growth, rounds);
        let row = report.keep(growth.measure, bench.place.name, row);
        report.add(row);
    }
    print!("{}", report.table());
    let json = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("growth.json");
    report.write_json(&json)?;
    println!("\nwritten to {}", json.display());
    Ok(report.exit_code())
}

/// The memory and processor time of a device while much waits and nothing can start.
struct Waiting {
    mib: f64,
    cpu: f64,
}

/// The place and the size of a measurement.
struct Bench {
    place: Place,
    quick: bool,
}

impl Bench {
    /// A tenth of what is wanted for a quick look.
    fn size(&self, whole: usize) -> usize {
        if self.quick { whole.div_ceil(10) } else { whole }
    }

    /// Runs the rounds of a row, before and after by turns.
    fn row(&self, growth: &Growth, rounds: u32) -> Outcome<Row> {
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for round in 1..=rounds {
            eprintln!("{}: {}, round {round} of {rounds}", growth.measure, growth.what);
            if let Some(figure) = growth.before {
                before.push(figure(self)?);
            }
            after.push((growth.after)(self)?);
        }
        let Growth { measure, what, unit, target, .. } = *growth;
        let after = Spread::of(after).ok_or("no rounds")?;
        Ok(Row::new(measure, what, unit, &self.place, Spread::of(before), after, &[target]))
    }

    /// A volume with so many jobs `other-N`, a device, and something that ran there.
    fn stage(&self, jobs: usize, seat: Seat) -> Outcome<Stage> {
        let mut stage = Stage::set(&self.place, jobs + 2)?;
        stage.start(Side::ProductFast, seat, false)?;
        stage.warm_up()?;
        Ok(stage)
    }

    /// Triggers a second of so many jobs.
    fn rate_of_jobs(&self, jobs: usize) -> Outcome<f64> {
        let mut stage = self.stage(self.size(4_000), Seat { slots: Some(SLOTS), ..ALONE })?;
        let rate = self.work_off(&mut stage, Job::Each(jobs), self.size(4_000))?.0;
        stage.close()?;
        Ok(rate)
    }

    /// Triggers a second beside so many open runs of another device.
    fn rate_beside(&self, open: usize) -> Outcome<f64> {
        Ok(self.beside(0, open)?.0)
    }

    /// Milliseconds of CPU for a trigger beside so many daemons that may not run here, and so many open runs of another device.
    fn cpu_beside(&self, daemons: usize, open: usize) -> Outcome<f64> {
        Ok(self.beside(daemons, open)?.1)
    }

    fn beside(&self, daemons: usize, open: usize) -> Outcome<(f64, f64)> {
        let seat = Seat { slots: Some(SLOTS), ..ALONE };
        let mut stage = self.stage(0, seat)?;
        stage.stop()?;
        for number in 0..daemons {
            let path = stage.volume.programs().join(format!("daemon-{number}.toml"));
            std::fs::write(path, "type = \"always\"\ncommand = [\"true\"]\ntags = [\"elsewhere\"]\n")?;
        }
        let _another = Another::holding(&stage, open)?;
        stage.start(Side::ProductFast, seat, false)?;
        stage.warm_up()?;
        let figures = self.work_off(&mut stage, Job::Nop, self.size(2_000))?;
        stage.close()?;
        Ok(figures)
    }

    /// Milliseconds of CPU for a trigger, over all devices.
    fn cpu_of_devices(&self, devices: usize) -> Outcome<f64> {
        const IDS: [&str; CROWD] = [
            "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r", "s", "t", "u",
            "v", "w", "x",
        ];
        let mut stage = Stage::set(&self.place, 2)?;
        for id in &IDS[..devices] {
            let seat = Seat { id, slots: Some(CROWD / devices), shared: true, options: &[] };
            stage.start(Side::ProductFast, seat, false)?;
        }
        stage.warm_up()?;
        thread::sleep(QUIET);
        let cpu = self.work_off(&mut stage, Job::Nop, self.size(2_000))?.1;
        stage.close()?;
        Ok(cpu)
    }

    /// Drops so many triggers and waits for their results: how many a second, and how many milliseconds of CPU each.
    fn work_off(&self, stage: &mut Stage, job: Job, triggers: usize) -> Outcome<(f64, f64)> {
        let before = stage.cpu_seconds()?;
        let dropped = stage.drop_all(job, triggers)?;
        let took = clock::seconds(dropped, stage.await_results()?);
        let cpu = stage.cpu_seconds()? - before;
        Ok((triggers as f64 / took, 1_000.0 * cpu / triggers as f64))
    }

    /// A device that may start none of so many triggers, each with an argument of so many bytes.
    fn waiting(&self, triggers: usize, bytes: usize) -> Outcome<Waiting> {
        let mut stage = Stage::set(&self.place, 2)?;
        std::fs::write(stage.volume.programs().join("away.toml"), "command = [\"true\"]\ntags = [\"elsewhere\"]\n")?;
        for number in 0..triggers {
            let text = json!({"job": "away", "args": [number, "x".repeat(bytes)]}).to_string();
            std::fs::write(stage.volume.triggers().join(format!("t{number}.json")), text)?;
        }
        stage.start(Side::ProductFast, ALONE, false)?;
        stage.warm_up()?;
        thread::sleep(SETTLED);
        let (from, before) = (clock::now(), stage.cpu_seconds()?);
        thread::sleep(WATCHED);
        let cpu = 100.0 * (stage.cpu_seconds()? - before) / clock::seconds(from, clock::now());
        let mib = stage.resident_mib()?;
        stage.stop()?;
        Ok(Waiting { mib, cpu })
    }

    /// The longest time between two heartbeats while an attempt that nobody holds is put right, on a day with so many results; seconds.
    fn longest_gap(&self, results: usize) -> Outcome<f64> {
        let mut stage = self.stage(0, ALONE)?;
        let one = stage.volume.root().join("result");
        std::fs::write(&one, "{}")?;
        let now = chrono::Utc::now();
        let [today, _] = stage.volume.result_folders();
        for number in 0..results {
            let run = RunId::new(now, number as u64);
            std::fs::hard_link(&one, today.join(format!("some-job.{run}.1.json")))?;
        }
        let orphan = RunId::new(now, results as u64);
        std::fs::write(stage.volume.common().join(format!("Triggers/.running/{orphan}.1.x.json")), r#"{"job":"nop"}"#)?;
        let gap = longest_gap(&stage.volume.common().join("Devices").join(format!("{}.json", ALONE.id)))?;
        stage.stop()?;
        Ok(gap)
    }
}

/// Another device, of which there is only what it wrote: its runs in `state.json` and `.running`, and heartbeats.
struct Another {
    beats: Arc<AtomicBool>,
    heart: Option<JoinHandle<()>>,
}

impl Another {
    /// Gives it so many runs; no device is at work meanwhile.
    fn holding(stage: &Stage, open: usize) -> Outcome<Self> {
        let common = stage.volume.common();
        let read =
            |path: &Path| Ok::<Value, Box<dyn std::error::Error>>(serde_json::from_slice(&std::fs::read(path)?)?);
        let mut state = read(&common.join("state.json"))?;
        let mut beat = read(&common.join(format!("Devices/{}.json", ALONE.id)))?;
        let runs: Vec<String> =
            (0..open).map(|number| RunId::new(chrono::Utc::now(), number as u64).to_string()).collect();
        for run in &runs {
            std::fs::write(common.join(format!("Triggers/.running/{run}.1.long.json")), r#"{"job":"long"}"#)?;
            state["runs"][run] = json!({
                "job": "long", "stem": "long", "cause": "trigger", "trigger": "long.json", "attempt": 1,
                "device": "another", "session": SESSION, "priority": 0, "slots": 1,
                "claimed_at": "2026-01-01T00:00:00.000Z",
            });
        }
        let revision = state["revision"].as_u64().ok_or("state.json has no revision")? + 1;
        state["revision"] = revision.into();
        state["last_commits"].as_array_mut().ok_or("state.json has no chain")?.insert(0, json!([revision, SESSION]));
        std::fs::write(common.join("state.json"), state.to_string())?;

        beat["device"] = "another".into();
        beat["session"] = SESSION.into();
        beat["left"] = false.into();
        beat["slots"] = 1.into();
        beat["holds"] = runs.iter().map(|run| json!([run, 1])).collect();
        let beats = Arc::new(AtomicBool::new(true));
        let goes_on = Arc::clone(&beats);
        let heart = thread::spawn(move || {
            for number in 1_u64.. {
                beat["beat"] = number.into();
                let staged = common.join("Devices/.another");
                let written = std::fs::write(&staged, beat.to_string());
                // Without its volume it ends with the round.
                let moved = written.and_then(|()| std::fs::rename(&staged, common.join("Devices/another.json")));
                if moved.is_err() || !goes_on.load(Ordering::Relaxed) {
                    return;
                }
                thread::park_timeout(BEAT);
            }
        });
        Ok(Self { beats, heart: Some(heart) })
    }
}

impl Drop for Another {
    fn drop(&mut self) {
        self.beats.store(false, Ordering::Relaxed);
        if let Some(heart) = self.heart.take() {
            heart.thread().unpark();
            // It has nothing to say.
            let _ = heart.join();
        }
    }
}

/// Watches a heartbeat for a while.
fn longest_gap(heartbeat: &Path) -> Outcome<f64> {
    let beat = || -> std::io::Result<SystemTime> { std::fs::metadata(heartbeat)?.modified() };
    let (until, mut last, mut longest) = (Instant::now() + WATCHED, beat()?, Duration::ZERO);
    while Instant::now() < until {
        thread::sleep(Duration::from_millis(10));
        let newest = beat()?;
        longest = longest.max(newest.duration_since(last).unwrap_or_default());
        longest = longest.max(SystemTime::now().duration_since(newest).unwrap_or_default());
        last = newest;
    }
    Ok(longest.as_secs_f64())
}
