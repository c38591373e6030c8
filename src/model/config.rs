//! Every limit and interval of a device, in one place.

use std::time::Duration;

use super::container::Limits;

/// What a device was started with. Everything that waits, grows or retries is bounded by one of these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How often the device says that it lives.
    pub heartbeat: Duration,
    /// How long a device may stand still before it counts as dead.
    pub lease: Duration,
    /// How often the inbox is looked through in full, events or not.
    pub scan: Duration,
    /// How long a drain at SIGTERM waits for runs to end by themselves.
    pub stop_grace: Duration,
    /// No file events: the scan looks into every file, each time.
    pub poll: bool,
    /// Common is on a network file system, which may show old dates of folders: the scan lists them each time.
    pub remote: bool,
    /// What its runs may use where their jobs do not say.
    pub limits: Limits,
    /// The largest log of one attempt, bytes.
    pub log_limit: u64,
    /// How many bytes must be free on the volume for new work; `None`: by the size of its file system; 0: none.
    pub min_free: Option<u64>,
    /// How long results, logs and processed triggers are kept, by each file's own age.
    pub keep: Duration,
    /// How many bytes of them are kept; `None`: as many as there are.
    pub keep_bytes: Option<u64>,
    /// How often it is looked for what was kept long enough.
    pub keep_every: Duration,
    /// The time after its end at which a device is forgotten; `None`: never.
    pub forget_after: Option<Duration>,
    /// How often the volume is backed up; `None`: never.
    pub backup_every: Option<Duration>,
    /// How many of these backups stay.
    pub backup_keep: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(2),
            lease: Duration::from_secs(15),
            scan: Duration::from_secs(2),
            stop_grace: Duration::from_secs(5),
            poll: false,
            remote: false,
            limits: Limits::default(),
            log_limit: 64 << 20,
            min_free: None,
            keep: Duration::from_secs(30 * 86_400),
            keep_bytes: None,
            keep_every: Duration::from_secs(3_600),
            forget_after: Some(Duration::from_secs(86_400)),
            backup_every: None,
            backup_keep: 7,
        }
    }
}

/// The largest trigger that is read, bytes.
pub const TRIGGER_LIMIT: u64 = 1 << 20;
/// The deepest nesting of a trigger.
pub const TRIGGER_DEPTH: usize = 100;
/// The largest `AIOS_RESULT` that is taken, bytes.
pub const RESULT_LIMIT: u64 = 1 << 20;
/// The largest `AIOS_ARGS` or `AIOS_KWARGS`, bytes; above it the variable is left out.
pub const ENV_LIMIT: usize = 64 << 10;
/// How long a file that does not parse must have been still before it is rejected.
pub const SETTLE: Duration = Duration::from_secs(2);
/// How long a trigger whose job nobody knows is waited for.
pub const UNKNOWN_JOB_WAIT: Duration = Duration::from_secs(10);
/// How long a changed job file must have been still before it is taken.
pub const JOB_FILE_SETTLE: Duration = Duration::from_millis(300);
/// How many attempts in a row may end as `lost` before the run does.
pub const LOSSES_IN_A_ROW: u32 = 3;
/// How long an idempotency key is kept after its run's end.
pub const KEY_KEPT: Duration = Duration::from_secs(86_400);
/// What is younger is kept in any case: a network file system may not show yet whose it is.
pub const KEPT_AT_LEAST: Duration = Duration::from_secs(600);
