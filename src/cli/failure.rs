//! How a verb that failed says so, and the exit codes.

use std::io::Write;
use std::process::ExitCode;

use super::out::printable;
use super::{Code, Failure};

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        code.number().into()
    }
}

/// Output that nobody reads any more: the verb ends without a word.
#[must_use]
pub(super) fn closed_pipe() -> Failure {
    Failure::new(Code::Done, "", "")
}

/// Says what went wrong on standard error and gives the exit code.
#[must_use]
pub(super) fn report(failure: &Failure, json: bool) -> ExitCode {
    let Failure { error, hint, code } = failure;
    if !error.is_empty() {
        let mut text = if json {
            serde_json::json!({"error": error, "hint": hint, "exit_code": code.number()}).to_string()
        } else if hint.is_empty() {
            format!("error: {}", printable(error))
        } else {
            format!("error: {}\nhint: {}", printable(error), printable(hint))
        };
        text.push('\n');
        // Nobody can be told that nobody can be told.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
    (*code).into()
}

/// Help and version are no failures; anything else is wrong usage.
pub(super) fn of_usage(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind;
    let is_help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if !is_help && std::env::args_os().any(|arg| arg == "--json") {
        let text = error.render().to_string();
        let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        return report(&Failure::new(Code::Usage, first, "`orchestrator --help` shows the usage"), true);
    }
    // A closed pipe ends the help silently.
    let _ = error.print();
    if is_help { ExitCode::SUCCESS } else { Code::Usage.into() }
}
