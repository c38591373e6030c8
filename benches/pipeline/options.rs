//! The command line.

use std::path::PathBuf;

use clap::Parser;
use clap::builder::PossibleValuesParser;
use serde_json::json;

use crate::report::Subject;

/// Every measure, in the order in which they are shown.
pub(crate) const MEASURES: [&str; 17] =
    ["A1", "A2", "A3", "A4", "A5", "A6", "A7", "A8", "A9", "A10", "A11", "B1", "B2", "C1", "C2", "D1", "D2"];

/// Measures the way from a dropped trigger to its result, against a minimal pipeline.
#[derive(Debug, Parser)]
#[command(name = "pipeline", after_help = HELP)]
pub(crate) struct Options {
    /// What to measure [default: everything]
    #[arg(value_name = "MEASURE", value_parser = PossibleValuesParser::new(MEASURES), ignore_case = true)]
    measures: Vec<String>,
    /// Fewer rounds and samples: a look, not a verdict
    #[arg(long)]
    pub quick: bool,
    /// Also what takes minutes: 100,000 triggers (A5), one minute of idling (A10)
    #[arg(long)]
    pub long: bool,
    /// Rounds of each side [default: 5, with --quick 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// A folder on the disk to measure beside tmpfs
    #[arg(long, value_name = "DIR", default_value = env!("CARGO_TARGET_TMPDIR"), conflicts_with = "no_disk")]
    disk: PathBuf,
    /// Only tmpfs
    #[arg(long)]
    no_disk: bool,
    /// Where the figures are written [default: pipeline.json in the target folder]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The floor plays the product's part too: ratios should be about 1
    #[arg(long)]
    pub self_check: bool,
    /// Passed by `cargo bench`; without it nothing is measured
    #[arg(long, hide = true)]
    pub bench: bool,
}

const HELP: &str = "\
A1  drop -> the process's main(), p50 and p99     A7   spawn against std::process::Command
A2  drop -> result visible, p50                   A8   cost of a commit
A3  1,000 triggers at once                        A9   resident memory, idle and after 10,000 runs
A4  10,000 triggers at once                       A10  CPU while idle
A5  cost per trigger as their number grows        A11  start -> first trigger's main()
A6  two devices against one with as many slots    B1   restart --all of 100 daemons
                                                  B2   1,000 runs that sleep

Exit codes: 0 every gated target met, 1 one missed, 2 something died, hung or gave a wrong result.";

/// Reads the arguments; ends the process on wrong ones and on `--help`.
pub(crate) fn parse() -> Options {
    Options::parse()
}

impl Options {
    /// Whether one of these measures was asked for.
    pub(crate) fn wants(&self, any_of: &[&str]) -> bool {
        let asked = |measure: &&str| self.measures.iter().any(|name| name.eq_ignore_ascii_case(measure));
        self.measures.is_empty() || any_of.iter().any(asked)
    }

    /// The subject of the report.
    pub(crate) fn subject(&self) -> Subject {
        let options = json!({"quick": self.quick, "long": self.long, "self_check": self.self_check});
        Subject { measures: &MEASURES, sides: ["floor", "product"], rounds: self.rounds(), options }
    }

    /// Where to measure beside tmpfs.
    pub(crate) fn disk(&self) -> Option<PathBuf> {
        (!self.no_disk).then(|| self.disk.clone())
    }

    /// Where the figures go.
    pub(crate) fn json_path(&self) -> PathBuf {
        let beside = || PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("pipeline.json");
        self.json.clone().unwrap_or_else(beside)
    }

    /// Rounds of each side.
    pub(crate) fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 3 } else { 5 })
    }

    /// Single triggers in a round of A1 and A2.
    pub(crate) fn samples(&self) -> u32 {
        if self.quick { 50 } else { 200 }
    }

    /// Calls in a round of A7 and A8.
    pub(crate) fn calls(&self) -> usize {
        if self.quick { 100 } else { 500 }
    }

    /// Starts in a round of A11.
    pub(crate) fn starts(&self) -> u32 {
        if self.quick { 4 } else { 10 }
    }

    /// The seconds of A10.
    pub(crate) fn idle_seconds(&self) -> u64 {
        if self.long { 60 } else { 20 }
    }
}
