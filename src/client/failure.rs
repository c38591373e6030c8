//! What went wrong: in words for people, as a code for programs.

use crate::coordinator::BeginError;
use crate::store::Refused;
use crate::volume;

/// How what was asked for ended (`docs/reference/formats.md`, "Exit codes").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Done.
    Done,
    /// A check failed, or what was asked has no object any more.
    Failed,
    /// Wrong usage or invalid input.
    Usage,
    /// What was to be made is there already.
    Exists,
    /// A trigger was rejected.
    Rejected,
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
    /// The exit code.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage | Self::Exists | Self::Rejected => 2,
            Self::NotFound => 3,
            Self::Volume => 4,
            Self::InUse => 5,
            Self::TimedOut => 124,
            Self::Program(code) => code,
        }
    }
}

/// What was asked for could not be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What happened, to which path or name: found and expected.
    pub error: String,
    /// What to do; empty: nothing.
    pub hint: String,
    /// How it ended.
    pub code: Code,
}

impl Failure {
    /// A failure with a hint.
    #[must_use]
    pub fn new(code: Code, error: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { error: error.into(), hint: hint.into(), code }
    }
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
            Refused::Newer(_) => "use the newer program on this machine too",
            Refused::Volume(error) => error.hint(),
        };
        Self::new(Code::Volume, refused.to_string(), hint)
    }
}
