//! A result: what one attempt came to, as it stands in `Results/`.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::ids::{DeviceId, JobName, RunId};
use super::lease::Lease;
use super::time::{utc, utc_opt};
use super::trigger::Json;

/// How an attempt, and with `final` its run, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Exit code 0.
    Succeeded,
    /// Another exit code, a signal, or it could not be started.
    Failed,
    /// It took longer than its timeout.
    TimedOut,
    /// A person ended it; not final: its device left or it was restarted, and it goes on.
    Cancelled,
    /// Its first attempt had not started in time.
    Expired,
    /// Another run of the same job was open.
    Skipped,
    /// Its device died.
    Lost,
    /// It finished after its lease had gone to another attempt.
    Superseded,
}

impl Status {
    /// The word for it, as files and lists show it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Skipped => "skipped",
            Self::Lost => "lost",
            Self::Superseded => "superseded",
        }
    }
}

/// What made a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A file was dropped.
    Trigger,
    /// It was due.
    Schedule,
    /// It is to run all the time.
    Always,
    /// A device had nothing else to do.
    Idle,
    /// It was asked for over HTTP.
    Api,
    /// It was asked for on the command line.
    Manual,
    /// Another job's end.
    Job,
}

impl Cause {
    /// The word for it, as files show it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trigger => "trigger",
            Self::Schedule => "schedule",
            Self::Always => "always",
            Self::Idle => "idle",
            Self::Api => "api",
            Self::Manual => "manual",
            Self::Job => "job",
        }
    }

    /// Whether somebody handed its trigger in: then the file is kept when the run is over.
    #[must_use]
    pub fn is_dropped(self) -> bool {
        match self {
            Self::Trigger | Self::Api | Self::Manual => true,
            Self::Schedule | Self::Always | Self::Idle | Self::Job => false,
        }
    }

    /// Whether the run lasts for as long as its job wants it, rather than having an end of its own.
    #[must_use]
    pub fn is_lasting(self) -> bool {
        match self {
            Self::Always | Self::Idle => true,
            Self::Trigger | Self::Schedule | Self::Api | Self::Manual | Self::Job => false,
        }
    }
}

/// Where the result of an attempt stands, relative to `Common/`.
#[must_use]
pub fn result_name(job: &JobName, lease: &Lease) -> String {
    format!("Results/{}/{job}.{lease}.json", lease.run.date())
}

/// What an attempt used.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time in user mode, milliseconds.
    pub cpu_user_ms: f64,
    /// CPU time in the kernel, milliseconds.
    pub cpu_system_ms: f64,
    /// The largest resident set of its main process or a child of it, bytes.
    pub max_rss_bytes: u64,
}

/// One attempt, one result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// 1.
    pub schema: u32,
    /// The run.
    pub run_id: RunId,
    /// The job.
    pub job: JobName,
    /// Which attempt, from 1; 0: it ended before any.
    pub attempt: u32,
    /// The device that ran it; with attempt 0 the one that ended it.
    pub device: DeviceId,
    /// `native`; `null` with attempt 0.
    pub executor: Option<String>,
    /// What made the run.
    pub cause: Cause,
    /// The dropped file's name; `null` for a due time.
    pub trigger: Option<String>,
    /// The positional arguments it got.
    pub args: Vec<Json>,
    /// The keyword arguments it got.
    #[serde(with = "pairs")]
    pub kwargs: Vec<(String, Json)>,
    /// Its priority.
    pub priority: i16,
    /// How it ended.
    pub status: Status,
    /// Whether the run ended with it.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// The exit code, if it exited.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What went wrong, in a sentence.
    pub error: Option<String>,
    /// What the program reported.
    pub result: Option<Json>,
    /// Why there is no `result` although the program wrote one.
    pub result_error: Option<String>,
    /// When the trigger was dropped.
    #[serde(with = "utc")]
    pub created_at: DateTime<Utc>,
    /// When the attempt was claimed.
    #[serde(with = "utc_opt")]
    pub claimed_at: Option<DateTime<Utc>>,
    /// When its process was started.
    #[serde(with = "utc_opt")]
    pub started_at: Option<DateTime<Utc>>,
    /// When its end was seen.
    #[serde(with = "utc")]
    pub finished_at: DateTime<Utc>,
    /// From start to end, milliseconds.
    pub duration_ms: Option<f64>,
    /// What it used.
    pub usage: Option<Usage>,
    /// Its log, relative to `Common/`; `null`: it never started.
    pub log: Option<String>,
    /// Whether the log was cut at its limit.
    pub log_truncated: bool,
    /// How many attempts of the run had been tried again for a failure when this one began.
    #[serde(default)]
    pub retried: u32,
    /// How many attempts in a row, this one included, ended as `lost`.
    #[serde(default)]
    pub losses: u32,
}

/// Serde for key-value pairs whose order is kept, as a JSON object.
pub mod pairs {
    use std::fmt;

    use serde::de::{MapAccess, Visitor};
    use serde::{Deserializer, Serializer};

    use super::Json;

    /// Writes the pairs as an object.
    pub fn serialize<S: Serializer>(pairs: &[(String, Json)], to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(pairs.iter().map(|(key, value)| (key, value)))
    }

    /// Reads an object as pairs.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<(String, Json)>, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Vec<(String, Json)>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(pairs)
            }
        }
        from.deserialize_map(Pairs)
    }
}
