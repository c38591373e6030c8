//! What went wrong, for people and for programs, and the exit codes.

use std::io::Write;
use std::process::ExitCode;

use super::out::printable;
use crate::coordinator::BeginError;
use crate::store::Refused;
use crate::volume;

/// How a verb ends (`formats.md`, "Exit codes").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Done.
    Done,
    /// A check failed, or what was asked has no object any more.
    Failed,
    /// Wrong usage or invalid input.
    Usage,
    /// No such job, run or device.
    NotFound,
    /// The volume cannot be used.
    Volume,
    /// The device id is in use.
    InUse,
    /// A wait timed out; the run goes on.
    TimedOut,
    /// A program's own code.
    Program(u8),
}

impl Code {
    fn number(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Volume => 4,
            Self::InUse => 5,
            Self::TimedOut => 124,
            Self::Program(code) => code,
        }
    }
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        code.number().into()
    }
}

/// A verb that could not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What happened, to which path or name: found and expected.
    pub error: String,
    /// What to do; empty: nothing.
    pub hint: String,
    /// How the verb ends.
    pub code: Code,
}

impl Failure {
    /// A failure with a hint.
    #[must_use]
    pub fn new(code: Code, error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { error: error.into(), hint: hint.into(), code }
    }

    /// Output that nobody reads any more: the verb ends without a word.
    #[must_use]
    pub fn closed_pipe() -> Self {
        Self::new(Code::Done, "", "")
    }

    /// Says it on standard error and gives the exit code.
    #[must_use]
    pub fn report(&self, json: bool) -> ExitCode {
        if !self.error.is_empty() {
            let mut text = if json {
                let number = self.code.number();
                serde_json::json!({"error": self.error, "hint": self.hint, "exit_code": number}).to_string()
            } else if self.hint.is_empty() {
                format!("error: {}", printable(&self.error))
            } else {
                format!("error: {}\nhint: {}", printable(&self.error), printable(&self.hint))
            };
            text.push('\n');
            // Nobody can be told that nobody can be told.
            let _ = std::io::stderr().write_all(text.as_bytes());
        }
        self.code.into()
    }
}

/// Help and version are no failures; anything else is wrong usage.
pub(super) fn of_usage(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind;
    let is_help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if !is_help && std::env::args().any(|arg| arg == "--json") {
        let text = error.render().to_string();
        let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        return Failure::new(Code::Usage, first, "`orchestrator --help` shows the usage").report(true);
    }
    // A closed pipe ends the help silently.
    let _ = error.print();
    if is_help { ExitCode::SUCCESS } else { Code::Usage.into() }
}

impl From<volume::Error> for Failure {
    fn from(error: volume::Error) -> Self {
        Self::new(Code::Volume, error.to_string(), error.hint())
    }
}

impl From<BeginError> for Failure {
    fn from(error: BeginError) -> Self {
        match error {
            BeginError::Volume(error) => error.into(),
            BeginError::InUse { .. } => Self::new(
                Code::InUse,
                error.to_string(),
                "give this device another --device-id, stop the other one, or take the id over with `run --force`",
            ),
        }
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let hint = match &refused {
            Refused::Busy | Refused::Raced => "try again; `orchestrator status` shows who writes",
            Refused::NewerSchema { .. } => "use the newer program on this machine too",
            Refused::Volume(error) => error.hint(),
        };
        Self::new(Code::Volume, refused.to_string(), hint)
    }
}
