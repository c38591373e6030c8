//! The benchmark of the whole way: a trigger dropped, a process run, a result visible.
//!
//! Every measure compares this program with a *floor*: a minimal pipeline without coordination ([`floor`]), measured
//! in the same run on the same machine. Rounds are interleaved (floor, product, floor, product, …) and the ratio of
//! their medians is held against a target. Ratios are gated on tmpfs; the disk's figures stand beside them with their
//! range.
//!
//! ```text
//! cargo bench --bench pipeline                     everything
//! cargo bench --bench pipeline -- A1 A3 --quick    two measures, few rounds
//! cargo bench --bench pipeline -- --self-check     the floor against itself: is the harness fair?
//! cargo bench --bench pipeline -- --help           all options
//! ```
//!
//! This one binary is the harness and, re-executed with `--floor`, the floor; under `cargo test` it does nothing. Exit
//! codes: 0 every gated target was met; 1 one was missed; 2 something died, hung or gave a wrong result.
//!
//! | module | what |
//! |---|---|
//! | [`options`] | the command line |
//! | [`clock`] | one clock for every process |
//! | [`probe`] | the program that says when its `main` was entered, and its answers |
//! | [`floor`] | the minimal pipeline |
//! | [`volume`] | the folders of one round, and dropping triggers into them |
//! | [`watch`] | counting results as they appear |
//! | [`device`] | one running pipeline of either side |
//! | [`stage`] | a volume, its devices and the bounded wait for results |
//! | [`rounds`] | one round of each experiment |
//! | [`inside`] | one call inside the program: a spawn, a commit |
//! | [`many`] | many processes at once: restarted, asleep |
//! | [`contained`] | jobs in containers |
//! | [`http`] | the HTTP API |
//! | [`measures`] | which rounds are run, and the rows they make |
//! | [`report`] | rows, verdicts, the table and the JSON |

#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark stands outside the house and has its own clocks, files and processes"
)]
#![expect(clippy::print_stdout, reason = "the table is this program's output")]
#![expect(clippy::print_stderr, reason = "progress and failures go to standard error")]

use std::process::ExitCode;

#[path = "pipeline/clock.rs"]
mod clock;
#[path = "pipeline/contained.rs"]
mod contained;
#[path = "pipeline/device.rs"]
mod device;
#[path = "pipeline/floor.rs"]
mod floor;
#[path = "pipeline/http.rs"]
mod http;
#[path = "pipeline/inside.rs"]
mod inside;
#[path = "pipeline/many.rs"]
mod many;
#[path = "pipeline/measures.rs"]
mod measures;
#[path = "pipeline/options.rs"]
mod options;
#[path = "pipeline/probe.rs"]
mod probe;
#[path = "pipeline/report.rs"]
mod report;
#[path = "pipeline/rounds.rs"]
mod rounds;
#[path = "pipeline/stage.rs"]
mod stage;
#[path = "pipeline/volume.rs"]
mod volume;
#[path = "pipeline/watch.rs"]
mod watch;

/// What can go wrong here is only ever told to a person.
type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Something died, hung or gave a wrong result.
const BROKEN: u8 = 2;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let outcome = match arguments.next() {
        Some(mode) if mode == floor::MODE => floor::run(arguments).map(|()| ExitCode::SUCCESS),
        Some(_) | None => harness(),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("pipeline: {error}");
        ExitCode::from(BROKEN)
    })
}

/// Measures what was asked for, prints the table, writes the JSON.
fn harness() -> Outcome<ExitCode> {
    let options = options::parse();
    if !options.bench {
        println!("pipeline: nothing is measured without --bench; use `cargo bench --bench pipeline`");
        return Ok(ExitCode::SUCCESS);
    }
    let mut report = report::Report::new(options.subject());
    report.remark("the floor syncs nothing");
    if options.self_check {
        report.remark("SELF-CHECK: the floor played the product's part, ratios should be about 1");
    }
    measures::run(&options, &mut report)?;
    print!("{}", report.table());
    let json = options.json_path();
    report.write_json(&json)?;
    println!("\nwritten to {}", json.display());
    Ok(report.exit_code())
}
