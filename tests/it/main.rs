//! What is tested against the real world: files, processes, binaries.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test stands outside the house and looks in"
)]

mod cli;
mod devices;
mod exec_contract;
mod jobs;
mod tidy;
mod triggers;
mod volume;
