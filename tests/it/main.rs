//! What is tested against the real world: files, processes, binaries.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test stands outside the house and looks in"
)]

mod api;
mod backup;
mod cli;
mod daemons;
mod deferred;
mod devices;
mod doctor;
mod due;
mod edit;
mod exec_contract;
mod guard;
mod jobs;
mod keep;
mod limits;
mod rotation;
mod rules;
mod schedules;
mod schemas;
mod secrets;
mod surroundings;
mod syscalls;
mod tidy;
mod triggers;
mod volume;
mod webhooks;
