//! A job: what `Programs/<job>.toml` says, read and checked.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::ids::{JobName, Tag};
use super::message;
use super::toml_read::{self, Problem};
use super::trigger::{Json, Trigger};

mod file;

/// How a job comes to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobType {
    /// When somebody asks for it.
    Trigger,
}

/// What a run executes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// A program and its arguments, never empty.
    Command(Vec<String>),
    /// A path below `Programs/`: `.py` under `python3`, `.sh` under `sh`, anything else by itself.
    File(String),
    /// A Python function in a file below `Programs/`.
    Function {
        /// The path below `Programs/`.
        file: String,
        /// The function's name.
        function: String,
    },
}

/// What happens to a trigger while another run of the same job is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlap {
    /// It runs beside it.
    Allow,
    /// It ends as `skipped`.
    Skip,
    /// It waits until that run is over.
    Queue,
}

/// What happens to a run whose device died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnLost {
    /// It runs again, at most twice in a row.
    #[default]
    Rerun,
    /// It ends as `lost`, so that its program starts at most once.
    Fail,
}

/// One job definition. Every bound named here was checked when it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// The stem of its file.
    pub name: JobName,
    /// How it comes to run.
    pub kind: JobType,
    /// What it executes.
    pub program: Program,
    /// Positional arguments unless the trigger brings its own.
    pub args: Vec<Json>,
    /// Keyword arguments, which the trigger's are merged over.
    pub kwargs: Vec<(String, Json)>,
    /// Variables for the program.
    pub env: BTreeMap<String, String>,
    /// Names of the orchestrator's own variables that the program may see.
    pub pass_env: BTreeSet<String>,
    /// What the device must have.
    pub tags: BTreeSet<Tag>,
    /// −999…999; higher is claimed first.
    pub priority: i16,
    /// How many of a device's slots a run takes.
    pub slots: u32,
    /// What a second run does while one is open.
    pub overlap: Overlap,
    /// How many attempts that ended `failed` or `timed_out` are tried again.
    pub retries: u32,
    /// Only these exit codes are tried again (124 for a timeout, 128 + n for a signal); `None`: all.
    pub retry_on: Option<BTreeSet<i32>>,
    /// The first wait before another attempt; it doubles each time.
    pub backoff: Duration,
    /// The longest wait before another attempt.
    pub backoff_max: Duration,
    /// SIGTERM after this long.
    pub timeout: Option<Duration>,
    /// SIGKILL this long after SIGTERM.
    pub stop_grace: Duration,
    /// What happens when its device dies.
    pub on_lost: OnLost,
    /// Whether its triggers are claimed at all.
    pub enabled: bool,
}

/// The largest and smallest priority.
pub const PRIORITY: RangeInclusive<i64> = -999..=999;

/// The most slots a run can take, and the most retries it can have.
const SLOTS: RangeInclusive<i64> = 0..=1000;
const RETRIES: RangeInclusive<i64> = 0..=1000;
const EXIT_CODES: RangeInclusive<i64> = 0..=255;
const BACKOFF: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(300);
const STOP_GRACE: Duration = Duration::from_secs(10);

impl Job {
    /// A job of whose file only the program is known. Every default stands here and nowhere else.
    fn with_defaults(name: JobName, program: Program) -> Self {
        Self {
            name,
            kind: JobType::Trigger,
            program,
            args: Vec::new(),
            kwargs: Vec::new(),
            env: BTreeMap::new(),
            pass_env: BTreeSet::new(),
            tags: BTreeSet::new(),
            priority: 0,
            slots: 1,
            overlap: Overlap::Allow,
            retries: 0,
            retry_on: None,
            backoff: BACKOFF,
            backoff_max: BACKOFF_MAX,
            timeout: None,
            stop_grace: STOP_GRACE,
            on_lost: OnLost::default(),
            enabled: true,
        }
    }
}

/// The job of a trigger that brings its own command, which is not empty: all else as a job file leaves it unsaid.
#[must_use]
pub fn for_command(name: JobName, command: Vec<String>) -> Job {
    Job::with_defaults(name, Program::Command(command))
}

/// The positional arguments of a run: the trigger's, if it brings any or none on purpose, else the job's.
#[must_use]
pub fn merge_args(job: &Job, trigger: &Trigger) -> Vec<Json> {
    trigger.args.as_ref().unwrap_or(&job.args).clone()
}

/// The keyword arguments of a run: the job's in their order, replaced in place by the trigger's, then those that only
/// the trigger has in theirs.
#[must_use]
pub fn merge_kwargs(job: &Job, trigger: &Trigger) -> Vec<(String, Json)> {
    let mut merged = job.kwargs.clone();
    let places: BTreeMap<&str, usize> =
        job.kwargs.iter().enumerate().map(|(at, (key, _))| (key.as_str(), at)).collect();
    for (key, value) in &trigger.kwargs {
        match places.get(key.as_str()) {
            Some(&at) => merged[at].1 = value.clone(),
            None => merged.push((key.clone(), value.clone())),
        }
    }
    merged
}

/// The job name of a command trigger: the stem of its file, each character that no name can have as `_`, an `x` before
/// a first character that no name can begin with, cut to 64.
#[must_use]
pub fn command_job_name(stem: &str) -> JobName {
    let mut name: String =
        stem.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' }).collect();
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        name.insert(0, 'x');
    }
    name.truncate(64);
    #[expect(
        clippy::expect_used,
        reason = "the lines above make it follow the rule, whatever the stem; a property test agrees"
    )]
    JobName::new(&name).expect("a name made to the rule")
}

/// Something that is wrong with a job file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {error}")]
pub struct JobError {
    /// The file, as [`parse`] was told its name.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// What was found and what was expected.
    pub error: String,
    /// What to do about it.
    pub hint: String,
}

/// Reads the job file of the job `name`; `file_name` is for messages.
///
/// Everything [`Job`] says of its fields has been checked then.
///
/// # Errors
/// Everything that is wrong with it, in the order of the text; of a hostile text the first hundred finds. A text that
/// is not TOML has one error.
pub fn parse(name: &JobName, file_name: &str, text: &str) -> Result<Job, Vec<JobError>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let document = toml_read::document(text).map_err(|problem| located(file_name, text, vec![problem]))?;
    file::job(name, text, document.as_table()).map_err(|problems| located(file_name, text, problems))
}

/// Gives problems, which are in the order of the text, their lines and columns, in one pass over the text.
fn located(file: &str, text: &str, problems: Vec<Problem>) -> Vec<JobError> {
    let (mut from, mut line, mut column) = (0, 1, 1);
    let mut errors = Vec::with_capacity(problems.len());
    for Problem { at, error, hint } in problems {
        let passed = text.as_bytes().get(from..at).unwrap_or_default();
        let (lines, columns) = message::distance(passed);
        (line, column) = if lines == 0 { (line, column + columns) } else { (line + lines, columns + 1) };
        from = from.max(at);
        errors.push(JobError { file: file.to_owned(), line, column, error, hint });
    }
    errors
}

#[cfg(test)]
mod tests;
