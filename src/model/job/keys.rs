//! The keys of a job file, one line each: what a key holds, what it means, an example.
//!
//! The readers decide what is right; this table tells others of it. The schema that editors read and the options of the
//! command line are made from it, and a test holds it against the readers' own lists.

use std::ops::RangeInclusive;

use super::super::container::{Engine, Pull};
use super::super::limits::PIDS;
use super::super::schedule::Missed;
use super::container::GPUS;
use super::timing::{OWN_KEYS, TYPES};
use super::{EXIT_CODES, INSTANCES, OnLost, Overlap, PRIORITY, RETRIES, SLOTS};

/// The words of `overlap`.
pub(super) const OVERLAPS: [(&str, Overlap); 3] =
    [("allow", Overlap::Allow), ("skip", Overlap::Skip), ("queue", Overlap::Queue)];
/// The words of `on_lost`.
pub(super) const ON_LOST: [(&str, OnLost); 2] = [("rerun", OnLost::Rerun), ("fail", OnLost::Fail)];
/// The words of `missed`.
pub(super) const MISSED: [(&str, Missed); 3] = [("once", Missed::Once), ("all", Missed::All), ("skip", Missed::Skip)];
/// The words of `docker.pull`.
pub(super) const PULLS: [(&str, Pull); 3] =
    [("missing", Pull::Missing), ("always", Pull::Always), ("never", Pull::Never)];
/// The words of `docker.engine`.
pub(super) const ENGINES: [(&str, Engine); 2] = [("local", Engine::Local), ("swarm", Engine::Swarm)];
/// The word of `instances` for one on each device.
pub const EVERY: &str = "every";

/// One key of a job file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What it belongs to.
    pub part: Part,
    /// What it holds.
    pub shape: Shape,
    /// What it means, in sentences.
    pub says: &'static str,
    /// A value for it, as JSON.
    pub example: &'static str,
}

/// What a key is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// What runs.
    Program,
    /// When it runs.
    Timing,
    /// Where, and beside what.
    Place,
    /// What becomes of failures.
    Failure,
    /// What its end brings about.
    Chain,
}

/// What a key holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    /// One of these words.
    Word(&'static [&'static str]),
    /// A local time, `HH:MM[:SS]`.
    Clock,
    /// A duration; zero where that is said.
    Duration {
        /// Whether it may be 0.
        zero: bool,
    },
    /// A number above 0, whole or not.
    Number,
    /// A whole number within these bounds.
    Integer(RangeInclusive<i64>),
    /// A whole number within these bounds, or this word.
    IntegerOr(RangeInclusive<i64>, &'static str),
    /// `true` or `false`.
    Boolean,
    /// A cron expression.
    Cron,
    /// The name of a time zone.
    Zone,
    /// A program and its arguments.
    Command,
    /// A path below `Programs/`.
    File,
    /// The name of a Python function.
    Function,
    /// The URL of a webhook.
    Url,
    /// A name.
    Name,
    /// An array of names; what one of them is called.
    Names(&'static str),
    /// An array of names of variables.
    Variables,
    /// A table of variables.
    Environment,
    /// An array of anything.
    Values,
    /// A table of anything.
    Table,
    /// An array of whole numbers within these bounds.
    Integers(RangeInclusive<i64>),
    /// A number of bytes, with a unit or not.
    Size,
    /// The name of an image.
    Image,
    /// The name of a network.
    Network,
    /// Who: `USER[:GROUP]`.
    User,
    /// All, so many, or some by their ids.
    Gpus(RangeInclusive<i64>),
    /// An array of `SOURCE:TARGET[:ro]`.
    Volumes,
    /// An array of paths with mount options.
    Tmpfs,
    /// A table of labels.
    Labels,
    /// A table of its own, whose keys these are, and the one that it must have.
    Keys(&'static [Key], Option<&'static str>),
}

/// The words of a list that also says what they stand for.
const fn words<T: Copy, const N: usize>(of: &[(&'static str, T); N]) -> [&'static str; N] {
    let mut words = [""; N];
    let mut at = 0;
    while at < N {
        words[at] = of[at].0;
        at += 1;
    }
    words
}

const fn key(name: &'static str, part: Part, shape: Shape, example: &'static str, says: &'static str) -> Key {
    Key { name, part, shape, says, example }
}

const JOBS: Shape = Shape::Names("JOB");
const SPAN: Shape = Shape::Duration { zero: true };
const SOME_SPAN: Shape = Shape::Duration { zero: false };

/// The keys of the table `docker`.
pub static DOCKER_KEYS: [Key; 13] = {
    use Part::Program;
    [
        key("image", Program, Shape::Image, r#""debian:bookworm-slim""#, "The image that the container is made of."),
        key(
            "pull",
            Program,
            Shape::Word(&words(&PULLS)),
            r#""never""#,
            "When the image is fetched: `missing` if the engine does not have it, `always` before each attempt, `never` [default: missing].",
        ),
        key(
            "network",
            Program,
            Shape::Network,
            r#""bridge""#,
            "Its network: `none`, `bridge` or the name of one that the engine has [default: none].",
        ),
        key(
            "volumes",
            Program,
            Shape::Volumes,
            r#"["/data:/data:ro"]"#,
            "Paths of the host and named volumes, SOURCE:TARGET[:ro]; AIOS_ALLOWED_VOLUMES of the device must list each source.",
        ),
        key(
            "user",
            Program,
            Shape::User,
            r#""1000:1000""#,
            "Who its processes are, USER[:GROUP] [default: who the image says].",
        ),
        key(
            "gpus",
            Program,
            Shape::Gpus(GPUS),
            r#""all""#,
            "The GPUs it is given: `all`, a number, or an array of ids [default: none].",
        ),
        key(
            "entrypoint",
            Program,
            Shape::Command,
            r#"["/entrypoint.sh"]"#,
            "What the command is handed to [default: nothing, whatever the image says].",
        ),
        key("labels", Program, Shape::Labels, r#"{"team": "data"}"#, "Labels of the container."),
        key(
            "tmpfs",
            Program,
            Shape::Tmpfs,
            r#"["/tmp:size=64m"]"#,
            "Folders in memory, with mount options [default: /tmp].",
        ),
        key(
            "read_only",
            Program,
            Shape::Boolean,
            "false",
            "Whether the image's own files cannot be written [default: true].",
        ),
        key(
            "share_common",
            Program,
            Shape::Boolean,
            "true",
            "Whether it sees all of Common and may write there, instead of what its run needs [default: false].",
        ),
        key(
            "keep_warm",
            Program,
            SOME_SPAN,
            r#""10m""#,
            "The container is kept for this long after a run, for the job's next one; the image needs sh and sleep [default: each run has a container of its own].",
        ),
        key(
            "engine",
            Program,
            Shape::Word(&words(&ENGINES)),
            r#""local""#,
            "What runs it: `local`, the engine of the device, or `swarm`, a node of the swarm that this engine manages and that has the job's tags as labels aios.TAG=true [default: local].",
        ),
    ]
};

/// The keys of the table `limits`.
pub(super) static LIMIT_KEYS: [Key; 3] = [
    key("memory", Part::Program, Shape::Size, r#""512m""#, "Memory, at least 6m."),
    key("cpus", Part::Program, Shape::Number, "1.5", "Processor time, as a number of CPUs from 0.01 to 1024."),
    key("pids", Part::Program, Shape::Integer(PIDS), "100", "Processes and threads [default in a container: 512]."),
];

/// Every key, in the order in which a file best says them.
pub static JOB_KEYS: [Key; 39] = {
    use Part::{Chain, Failure, Place, Program, Timing};
    use Shape::{Boolean, Clock, Integer, Integers, Word};
    [
        key(
            "type",
            Timing,
            Word(&words(&TYPES)),
            r#""daily""#,
            "When it runs: `trigger` only when asked for, `always` without end, `daily`, `interval`, `random_daily` and `cron` at its due times, `idle` when a device has nothing else to do [default: trigger].",
        ),
        key(
            "time",
            Timing,
            Clock,
            r#""09:00""#,
            "When it is due each day, HH:MM or HH:MM:SS in its time zone (type daily).",
        ),
        key(
            "interval",
            Timing,
            SOME_SPAN,
            r#""30m""#,
            "How often it is due, at least 1 s: at the multiples of it since 1970-01-01T00:00Z (type interval).",
        ),
        key(
            "interval_minutes",
            Timing,
            Shape::Number,
            "30",
            "The interval as a number of minutes; better write `interval` (type interval).",
        ),
        key(
            "interval_seconds",
            Timing,
            Shape::Number,
            "90",
            "The interval as a number of seconds; better write `interval` (type interval).",
        ),
        key(
            "after_time",
            Timing,
            Clock,
            r#""14:00""#,
            "It is due once a day, at a moment that is drawn in a window; it begins at this time (type random_daily).",
        ),
        key(
            "before_time",
            Timing,
            Clock,
            r#""18:00""#,
            "The window ends before this time, on the next day if that is earlier (type random_daily).",
        ),
        key(
            "cron",
            Timing,
            Shape::Cron,
            r#""*/15 9-17 * * 1-5""#,
            "When it is due: [SECOND] MINUTE HOUR DAY MONTH WEEKDAY (type cron).",
        ),
        key(
            "timezone",
            Timing,
            Shape::Zone,
            r#""Europe/Berlin""#,
            "The IANA time zone that its times are local to [default: UTC] (types daily, random_daily, cron).",
        ),
        key(
            "jitter",
            Timing,
            SPAN,
            r#""5m""#,
            "Each due time is moved by a stable amount below this (types daily, interval, cron).",
        ),
        key(
            "missed",
            Timing,
            Word(&words(&MISSED)),
            r#""skip""#,
            "What becomes of due times that no device could take: `once` runs the newest, `all` runs them all, at most 100, `skip` runs the newest if it is not older than a minute [default: once] (types daily, interval, random_daily, cron).",
        ),
        key(
            "instances",
            Timing,
            Shape::IntegerOr(INSTANCES, EVERY),
            "2",
            "How many there shall be at any time [default: 1]: a number over all devices, or `every` for one on each (types always, idle).",
        ),
        key(
            "command",
            Program,
            Shape::Command,
            r#"["python3", "script.py"]"#,
            "A program and its arguments, run in Programs.",
        ),
        key(
            "file",
            Program,
            Shape::File,
            r#""report.py""#,
            "A path below Programs: .py runs under python3, .sh under sh, anything else must be executable.",
        ),
        key(
            "function",
            Program,
            Shape::Function,
            r#""report""#,
            "The Python function of `file` that is called with the arguments.",
        ),
        key(
            "args",
            Program,
            Shape::Values,
            r#"["world", 3]"#,
            "Positional arguments, unless the trigger brings its own.",
        ),
        key(
            "kwargs",
            Program,
            Shape::Table,
            r#"{"top": 5}"#,
            "Keyword arguments; those of the trigger are merged over them.",
        ),
        key(
            "env",
            Program,
            Shape::Environment,
            r#"{"MODE": "fast", "TOKEN": "secret:token"}"#,
            "Variables for the program; `secret:NAME` stands for the content of /run/secrets/NAME or Common/Security/secrets/NAME.",
        ),
        key(
            "pass_env",
            Program,
            Shape::Variables,
            r#"["OPENAI_API_KEY"]"#,
            "Names of the device's own variables that the program may see.",
        ),
        key(
            "docker",
            Program,
            Shape::Keys(&DOCKER_KEYS, Some("image")),
            r#"{"image": "debian:bookworm-slim"}"#,
            "The container that it runs in: a sibling of the device's own, without network, privileges or more of the host than its run needs, unless said otherwise.",
        ),
        key(
            "limits",
            Program,
            Shape::Keys(&LIMIT_KEYS, None),
            r#"{"memory": "512m", "cpus": 1.5}"#,
            "What a run may use, in a container or not. Outside of one `cpus` and `pids` need a device that may make cgroups: it has the tag cgroup.",
        ),
        key(
            "tags",
            Place,
            Shape::Names("TAG"),
            r#"["gpu"]"#,
            "The device must have them all; a device's id pins it there.",
        ),
        key("priority", Place, Integer(PRIORITY), "10", "Higher is claimed first [default: 0, type idle: -1]."),
        key(
            "slots",
            Place,
            Integer(SLOTS),
            "2",
            "How many of a device's slots a run takes [default: 1, types always and idle: 0].",
        ),
        key(
            "overlap",
            Place,
            Word(&words(&OVERLAPS)),
            r#""queue""#,
            "What a second run does while one is open: `allow` runs it beside that one, `skip` does not run it, `queue` lets it wait [default: allow, other types than trigger: skip].",
        ),
        key(
            "pool",
            Place,
            Shape::Name,
            r#""llm""#,
            "A pool of Programs/pools.toml, which bounds how many of its runs there are over all devices.",
        ),
        key("enabled", Place, Boolean, "false", "Whether it runs at all [default: true]."),
        key(
            "timeout",
            Failure,
            SOME_SPAN,
            r#""30m""#,
            "The whole process tree gets SIGTERM after this long [default: never].",
        ),
        key("stop_grace", Failure, SPAN, r#""10s""#, "SIGKILL follows SIGTERM after this long [default: 10s]."),
        key(
            "retries",
            Failure,
            Integer(RETRIES),
            "3",
            "How many attempts that failed or timed out are tried again [default: 0, type always: unlimited].",
        ),
        key(
            "retry_on",
            Failure,
            Integers(EXIT_CODES),
            "[75, 124]",
            "Only these exit codes are tried again; 124 for a timeout, 128 + n for a signal [default: all].",
        ),
        key(
            "retry_elsewhere",
            Failure,
            Boolean,
            "true",
            "Another attempt is better made on another device [default: false].",
        ),
        key(
            "backoff",
            Failure,
            SPAN,
            r#""10s""#,
            "The first wait before another attempt; it doubles each time [default: 1s].",
        ),
        key(
            "backoff_max",
            Failure,
            SPAN,
            r#""10m""#,
            "The longest wait before another attempt, at least `backoff` [default: 5m].",
        ),
        key(
            "on_lost",
            Failure,
            Word(&words(&ON_LOST)),
            r#""fail""#,
            "What happens when its device dies: `rerun` runs it again, `fail` ends it, so that it starts at most once [default: rerun].",
        ),
        key("on_success", Chain, JOBS, r#"["report"]"#, "Jobs that are triggered when a run of it succeeds."),
        key(
            "on_failure",
            Chain,
            JOBS,
            r#"["alarm"]"#,
            "Jobs that are triggered when a run of it fails, times out or is lost.",
        ),
        key(
            "after",
            Chain,
            JOBS,
            r#"["extract", "load"]"#,
            "It runs when each of these jobs has a success later than its own newest run (not types always, idle).",
        ),
        key(
            "notify",
            Chain,
            Shape::Url,
            r#""https://example.org/hook""#,
            "The webhook that is told of a first failure and of the recovery.",
        ),
    ]
};

/// A key by its name.
#[must_use]
pub fn job_key(name: &str) -> Option<&'static Key> {
    JOB_KEYS.iter().find(|key| key.name == name)
}

/// The types that have all of these keys for themselves.
#[must_use]
pub fn types_with(keys: &[&str]) -> Vec<&'static str> {
    TYPES.iter().filter(|(_, own)| keys.iter().all(|key| own.contains(key))).map(|(word, _)| *word).collect()
}

/// Whether some types have the key and others do not.
#[must_use]
pub fn is_of_types(key: &str) -> bool {
    OWN_KEYS.contains(&key)
}

/// The keys that some types have and this one does not.
pub fn foreign_keys(word: &str) -> impl Iterator<Item = &'static str> {
    let own = TYPES.iter().find(|(name, _)| *name == word).map_or(&[][..], |(_, keys)| *keys);
    OWN_KEYS.into_iter().filter(move |key| !own.contains(key))
}
