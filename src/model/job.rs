//! A job: what `Programs/<job>.toml` says, read and checked.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use super::container::{Container, Engine, Limits};
use super::ids::{JobName, PoolName, SecretName, Tag};
use super::limits::CGROUP_TAG;
use super::message;
use super::schedule::{Instances, Schedule, Timing};
use super::toml_read::{self, Problem};
use super::trigger::{Json, Trigger};

mod container;
pub mod draft;
mod file;
pub mod from_json;
pub mod keys;
mod timing;

#[cfg(test)]
pub(super) use file::KEYS;
pub(super) use timing::TYPES;

/// How a job comes to run, beside being asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum JobType {
    /// Only when somebody asks for it.
    Trigger,
    /// At its due times.
    Timed(Timing),
    /// For as long as it is enabled: each end is followed by another attempt.
    Always(Instances),
    /// When a device has nothing else to do.
    Idle(Instances),
}

impl JobType {
    /// The word for it in job files.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Trigger => "trigger",
            Self::Always(_) => "always",
            Self::Idle(_) => "idle",
            Self::Timed(timing) => match timing.schedule {
                Schedule::Daily { .. } => "daily",
                Schedule::Interval(_) => "interval",
                Schedule::RandomDaily { .. } => "random_daily",
                Schedule::Cron { .. } => "cron",
            },
        }
    }
}

/// What begins a value of `env` that stands for a secret; its name follows.
pub const SECRET: &str = "secret:";

/// What a job's file says of another file, and where: it is held against that one when both are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mention {
    /// What is mentioned.
    pub of: Mentioned,
    /// Its name.
    pub name: String,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
}

/// The things that a job's file names and another file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mentioned {
    /// A pool of `pools.toml`.
    Pool,
    /// A job that its success triggers.
    OnSuccess,
    /// A job that its failure triggers.
    OnFailure,
    /// A job whose success it waits for.
    After,
}

impl Mentioned {
    /// The key that names it.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Pool => "pool",
            Self::OnSuccess => "on_success",
            Self::OnFailure => "on_failure",
            Self::After => "after",
        }
    }
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
    /// The container that it runs in; `None`: it is a process of the device's machine.
    pub container: Option<Arc<Container>>,
    /// What it may use.
    pub limits: Limits,
    /// Positional arguments unless the trigger brings its own.
    pub args: Vec<Json>,
    /// Keyword arguments, which the trigger's are merged over.
    pub kwargs: Vec<(String, Json)>,
    /// Variables for the program; [`SECRET`] and a name stand for the value of that secret.
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
    /// The pool whose size bounds how many of its runs there are over all devices.
    pub pool: Option<PoolName>,
    /// How many attempts that ended `failed` or `timed_out` are tried again; [`UNLIMITED`]: all.
    pub retries: u32,
    /// Only these exit codes are tried again (124 for a timeout, 128 + n for a signal); `None`: all.
    pub retry_on: Option<BTreeSet<i32>>,
    /// Another attempt is better made on another device.
    pub retry_elsewhere: bool,
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
    /// Whether it runs at all: not its triggers, nor what its file makes due.
    pub enabled: bool,
    /// Jobs that are triggered when a run of it ends as `succeeded`.
    pub on_success: Vec<JobName>,
    /// Jobs that are triggered when a run of it ends as `failed`, `timed_out` or `lost`.
    pub on_failure: Vec<JobName>,
    /// It runs when each of these has a success later than its own newest run.
    pub after: Vec<JobName>,
    /// Where a first failure and a recovery are told.
    pub notify: Option<String>,
    /// Where its file names what other files have.
    pub mentions: Vec<Mention>,
}

/// The largest and smallest priority.
pub const PRIORITY: RangeInclusive<i64> = -999..=999;

/// The most slots a run can take, and the most retries it can have.
const SLOTS: RangeInclusive<i64> = 0..=1000;
const RETRIES: RangeInclusive<i64> = 0..=1000;
const EXIT_CODES: RangeInclusive<i64> = 0..=255;
const INSTANCES: RangeInclusive<i64> = 1..=1000;
/// [`Job::retries`] of a job that is tried again for ever.
pub const UNLIMITED: u32 = u32::MAX;
const BACKOFF: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(300);
const STOP_GRACE: Duration = Duration::from_secs(10);

impl Job {
    /// A job of whose file only type and program are known. Every default stands here and nowhere else.
    fn with_defaults(name: JobName, kind: JobType, program: Program) -> Self {
        let is_lasting = matches!(kind, JobType::Always(_) | JobType::Idle(_));
        Self {
            name,
            program,
            container: None,
            limits: Limits::default(),
            args: Vec::new(),
            kwargs: Vec::new(),
            env: BTreeMap::new(),
            pass_env: BTreeSet::new(),
            tags: BTreeSet::new(),
            priority: if matches!(kind, JobType::Idle(_)) { -1 } else { 0 },
            slots: if is_lasting { 0 } else { 1 },
            overlap: if matches!(kind, JobType::Trigger) { Overlap::Allow } else { Overlap::Skip },
            pool: None,
            retries: if matches!(kind, JobType::Always(_)) { UNLIMITED } else { 0 },
            retry_on: None,
            retry_elsewhere: false,
            backoff: BACKOFF,
            backoff_max: BACKOFF_MAX,
            timeout: None,
            stop_grace: STOP_GRACE,
            on_lost: OnLost::default(),
            enabled: true,
            on_success: Vec::new(),
            on_failure: Vec::new(),
            after: Vec::new(),
            notify: None,
            mentions: Vec::new(),
            kind,
        }
    }

    /// In this container, if in one: then its device must reach an engine. In a swarm the job's tags choose the node, and whichever
    /// device reaches a manager sees to it. In none, its device must be able to hold its limits.
    fn inside(mut self, container: Option<Arc<Container>>) -> Self {
        let Some(mut container) = container else {
            self.tags.extend(Tag::new(CGROUP_TAG).ok().filter(|_| self.limits.need_cgroups()));
            return self;
        };
        if container.engine == Engine::Swarm {
            Arc::make_mut(&mut container).node_tags = std::mem::take(&mut self.tags);
        }
        self.tags.extend(Tag::new(container.tag()).ok());
        Self { container: Some(container), ..self }
    }

    /// The tags without the one that stands for its engine: what runs in a container goes on while the engine is away.
    pub fn own_tags(&self) -> impl Iterator<Item = &Tag> {
        let engine = self.container.as_ref().map(|container| container.tag());
        self.tags.iter().filter(move |tag| Some(tag.as_str()) != engine)
    }

    /// The variables that stand for secrets, each with the secret's name. Their values are in no definition, so neither in its
    /// digest.
    pub fn secrets(&self) -> impl Iterator<Item = (&str, SecretName)> {
        let secret = |value: &str| SecretName::new(value.strip_prefix(SECRET)?).ok();
        self.env.iter().filter_map(move |(variable, value)| Some((variable.as_str(), secret(value)?)))
    }

    /// What runs it, as results say it.
    #[must_use]
    pub fn executor(&self) -> &'static str {
        executor_of(self.container.as_deref())
    }

    /// What runs its attempts, if they go on when their device dies.
    #[must_use]
    pub fn outlives_its_device(&self) -> Option<&'static str> {
        self.container.as_ref().and_then(|container| container.outlives_its_device())
    }

    /// What tells two definitions apart that would not start the same, within one version of this program.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut hasher = DefaultHasher::new();
        let Self { program, container, limits, args, kwargs, env, pass_env, stop_grace, timeout, .. } = self;
        format!("{:?}", (program, container, limits, args, kwargs, env, pass_env, stop_grace, timeout))
            .hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }

    /// Whether a process that was started by the definition `other` is what this one would start.
    #[must_use]
    pub fn starts_like(&self, other: &Self) -> bool {
        let of = |job: &Self| (job.stop_grace, job.timeout);
        of(self) == of(other)
            && self.program == other.program
            && self.container == other.container
            && self.limits == other.limits
            && self.args == other.args
            && self.kwargs == other.kwargs
            && self.env == other.env
            && self.pass_env == other.pass_env
    }
}

/// What runs processes of the device's own machine, as results say it.
pub const NATIVE: &str = "native";

/// What runs something in this container, or in none.
#[must_use]
pub fn executor_of(container: Option<&Container>) -> &'static str {
    container.map_or(NATIVE, |container| container.engine.executor())
}

/// The job of a trigger that brings its own command, which is not empty, and perhaps a container: all else as a job file leaves
/// it unsaid.
#[must_use]
pub fn for_command(name: JobName, command: Vec<String>, container: Option<Arc<Container>>) -> Job {
    Job::with_defaults(name, JobType::Trigger, Program::Command(command)).inside(container)
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
    merged_kwargs(&job.kwargs, &trigger.kwargs)
}

/// Returns keyword arguments in their order, replaced in place by others, then those that only the others have in theirs.
#[must_use]
pub fn merged_kwargs(kwargs: &[(String, Json)], others: &[(String, Json)]) -> Vec<(String, Json)> {
    let mut merged = kwargs.to_vec();
    let places: BTreeMap<&str, usize> = kwargs.iter().enumerate().map(|(at, (key, _))| (key.as_str(), at)).collect();
    for (key, value) in others {
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

/// Reads a container that is written as a JSON object: the table `docker` of a trigger.
///
/// # Errors
/// The first thing that is wrong with it, and a hint.
pub(super) fn container_from_json(text: &str) -> Result<Container, (String, String)> {
    let table = from_json::table_from_json(text).map_err(|error| (error, "as in a job file's [docker]".to_owned()))?;
    let text = format!("docker = {table}\n");
    let document = toml_read::document(&text).map_err(|problem| (problem.error, problem.hint))?;
    let mut reader = toml_read::Reader::new(&text, document.as_table());
    let read = container::container(&mut reader);
    match (read, reader.into_problems().into_iter().next()) {
        (Some(Container { keep_warm: Some(_), .. }), None) => {
            let error = "found `keep_warm`, expected it in a job file only: a command has no next run";
            Err((error.to_owned(), "leave it out, or make a job of the command".to_owned()))
        }
        (Some(container), None) => Ok(container),
        (_, problem) => Err(problem.map(|problem| (problem.error, problem.hint)).unwrap_or_default()),
    }
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
    let (mut job, named) =
        file::job(name, text, document.as_table()).map_err(|problems| located(file_name, text, problems))?;
    job.mentions = named
        .into_iter()
        .map(|(of, at, name)| {
            let (line, column) = message::place(text, at);
            Mention { of, name, line, column }
        })
        .collect();
    Ok(job)
}

/// Gives problems, which are in the order of the text, their lines and columns, in one pass over the text.
pub(super) fn located(file: &str, text: &str, problems: Vec<Problem>) -> Vec<JobError> {
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
