//! The `orchestrator` binary: see the library for everything.

use std::process::ExitCode;

fn main() -> ExitCode {
    aios::cli::main()
}
