//! The shared state: what is held, and by whom. `state.json` is exactly this.
//!
//! It grows with the work in hand, never with the backlog: what waits is a file in the inbox, what is over is a result.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ids::{DeviceId, JobName, PoolName, RunId, Session};
use super::lease::Lease;
use super::limits::Resources;
use super::marks::Marks;
use super::news::News;
use super::result::{Cause, Status};
use super::runs::Runs;
use super::time::{utc, utc_opt};

/// The schema this program reads and writes.
pub const SCHEMA: u32 = 1;
/// How many of the newest commits the state names.
pub const CHAIN_LENGTH: usize = 16;

/// Keys that a newer program of the same schema added: kept as they are.
pub type Extra = BTreeMap<String, Value>;

/// A state that was made anew goes on this far above every revision that anything tells of: more than can be committed between two
/// heartbeats.
pub const REBUILD_STEP: u64 = 10_000;

/// One whole revision of the shared state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Grows by one with every change.
    pub revision: u64,
    /// The newest commits, newest first: revision and the session that made it. A commit of mine that is missing from a
    /// later chain proves that the lock does not exclude.
    pub last_commits: Vec<(u64, Session)>,
    /// Open runs that are held, or listed while they wait because their job forbids overlap.
    pub runs: Runs,
    /// What is remembered of each job.
    #[serde(default)]
    pub jobs: Marks,
    /// What people asked of devices and not yet got.
    #[serde(default)]
    pub requests: Vec<Request>,
    /// What people set of devices that have not taken it yet. Not among the requests: who knows nothing of it keeps it as it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<Setting>,
    /// The state was lost and made anew with this revision: until every living device has worked through it, nothing is claimed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rebuilt: Option<u64>,
    /// Keys of a newer program.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Default for State {
    fn default() -> Self {
        Self {
            schema: SCHEMA,
            revision: 0,
            last_commits: Vec::new(),
            runs: Runs::default(),
            jobs: Marks::default(),
            requests: Vec::new(),
            settings: Vec::new(),
            rebuilt: None,
            extra: Extra::new(),
        }
    }
}

impl State {
    /// Returns whether another state differs from this one at most in its revision and chain of commits.
    #[must_use]
    pub fn says_the_same(&self, other: &Self) -> bool {
        let Self { schema, revision: _, last_commits: _, runs, jobs, requests, settings, rebuilt, extra } = self;
        (schema, runs, jobs) == (&other.schema, &other.runs, &other.jobs)
            && (requests, settings) == (&other.requests, &other.settings)
            && (rebuilt, extra) == (&other.rebuilt, &other.extra)
    }

    /// The runs that `device` holds in `session`, in order.
    pub fn held_by<'a>(
        &'a self,
        device: &'a DeviceId,
        session: &'a Session,
    ) -> impl Iterator<Item = (&'a RunId, &'a Arc<Held>)> {
        self.runs.of_device(device).filter(move |(_, held)| held.is_held_by(device, session))
    }

    /// Whether `device` in `session` holds exactly this attempt: the fence that every result passes.
    #[must_use]
    pub fn names(&self, lease: &Lease, device: &DeviceId, session: &Session) -> bool {
        self.runs.get(&lease.run).is_some_and(|held| held.attempt == lease.attempt && held.is_held_by(device, session))
    }

    /// What was asked for this run, the newest last.
    pub fn requests_for<'a>(&'a self, run: &'a RunId) -> impl Iterator<Item = &'a Request> {
        self.requests.iter().filter(move |request| request.run.as_ref() == Some(run))
    }

    /// Whether somebody asked for another attempt instead of this one.
    #[must_use]
    pub fn restart_asked(&self, lease: &Lease) -> bool {
        let asks = |request: &Request| request.ask == Ask::Restart && request.attempt == Some(lease.attempt);
        self.requests_for(&lease.run).any(asks)
    }

    /// What people set of a device and it has not taken yet, the newest last.
    pub fn settings_for<'a>(&'a self, device: &'a DeviceId) -> impl Iterator<Item = &'a Setting> {
        self.settings.iter().filter(move |setting| setting.device == *device)
    }

    /// All of them as one.
    #[must_use]
    pub fn to_set(&self, device: &DeviceId) -> Resources {
        self.settings_for(device).fold(Resources::default(), |all, setting| all.then(setting.set))
    }

    /// Asks for slots or default limits of a device, beside what was asked for before. `false`: that is asked for already.
    pub fn set(&mut self, setting: Setting) -> bool {
        let pending = self.to_set(&setting.device);
        if pending.then(setting.set) == pending {
            return false;
        }
        self.settings.retain(|other| other.device != setting.device);
        self.settings.push(Setting { set: pending.then(setting.set), ..setting });
        true
    }

    /// Adds the state to `text` as JSON, the same that [`Serialize`] makes. Runs and marks that have not changed since an earlier revision was
    /// written are not written anew, but copied.
    ///
    /// # Errors
    /// A key of a newer program cannot be written as JSON.
    pub fn write_json(&self, text: &mut Vec<u8>) -> serde_json::Result<()> {
        let Self { schema, revision, last_commits, runs, jobs, requests, settings, rebuilt, extra } = self;
        text.extend_from_slice(format!(r#"{{"schema":{schema},"revision":{revision},"last_commits":"#).as_bytes());
        serde_json::to_writer(&mut *text, last_commits)?;
        text.extend_from_slice(br#","runs":"#);
        runs.write_json(text)?;
        text.extend_from_slice(br#","jobs":"#);
        jobs.write_json(text)?;
        let rest = serde_json::to_vec(&Rest { requests, settings, rebuilt: *rebuilt, extra })?;
        text.push(b',');
        text.extend_from_slice(&rest[1..]);
        Ok(())
    }

    /// Takes out what was asked of a device as such; `false`: nothing was. What concerns a run is answered by what becomes of the run.
    pub fn forget(&mut self, device: &DeviceId) -> bool {
        let asked = self.requests.len() + self.settings.len();
        self.requests.retain(|request| request.device != *device || request.run.is_some());
        self.settings.retain(|setting| setting.device != *device);
        self.requests.len() + self.settings.len() != asked
    }

    /// Whether somebody asked for the end of this run.
    #[must_use]
    pub fn cancel_asked(&self, run: &RunId) -> bool {
        self.requests_for(run).any(|request| request.ask == Ask::Cancel)
    }
}

/// The keys behind the marks of jobs in `state.json`.
#[derive(Serialize)]
struct Rest<'a> {
    requests: &'a [Request],
    #[serde(skip_serializing_if = "<[Setting]>::is_empty")]
    settings: &'a [Setting],
    #[serde(skip_serializing_if = "Option::is_none")]
    rebuilt: Option<u64>,
    #[serde(flatten)]
    extra: &'a Extra,
}

/// An open run: who holds which attempt of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// The job's name.
    pub job: JobName,
    /// What its files are named after.
    pub stem: String,
    /// What made the run.
    pub cause: Cause,
    /// The dropped file's name; `null` for a due time.
    pub trigger: Option<String>,
    /// The attempt that is held, or with no device the next one.
    pub attempt: u32,
    /// Who holds it; `null` while it waits for another attempt.
    pub device: Option<DeviceId>,
    /// The life of that device.
    pub session: Option<Session>,
    /// Its priority.
    pub priority: i16,
    /// How many slots it takes.
    pub slots: u32,
    /// The pool it counts in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
    /// The one device that it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only_on: Option<DeviceId>,
    /// When this attempt was claimed.
    #[serde(with = "utc")]
    pub claimed_at: DateTime<Utc>,
    /// It has no job file: overlap and job marks do not concern it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub command: bool,
    /// It may start at most once: lost is final.
    #[serde(default, skip_serializing_if = "is_false")]
    pub fail_if_lost: bool,
    /// It stays listed while it waits, so that overlap can be judged.
    #[serde(default, skip_serializing_if = "is_false")]
    pub listed: bool,
    /// How many of its attempts were tried again for a failure.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retried: u32,
    /// How many attempts before this one ended as `lost` in a row.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub losses: u32,
    /// Keys of a newer program.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Held {
    /// Whether this life of this device holds it.
    #[must_use]
    pub fn is_held_by(&self, device: &DeviceId, session: &Session) -> bool {
        self.device.as_ref() == Some(device) && self.session.as_ref() == Some(session)
    }

    /// How many slots it keeps from others: what runs only while nothing else does is in nobody's way.
    #[must_use]
    pub fn slots_taken(&self) -> u32 {
        if self.cause == Cause::Idle { 0 } else { self.slots }
    }

    /// Who holds it, if anybody does.
    #[must_use]
    pub fn holder(&self) -> Option<(&DeviceId, &Session)> {
        self.device.as_ref().zip(self.session.as_ref())
    }
}

/// What is remembered of a job beside its file.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct JobMark {
    /// When it was first seen.
    #[serde(with = "utc_opt", default)]
    pub since: Option<DateTime<Utc>>,
    /// Its schedule as it counts since then.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub schedule: String,
    /// It is disabled, or gone: what is due meanwhile is not missed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub paused: bool,
    /// The newest due time that became a run, or was passed over.
    #[serde(with = "utc_opt", default)]
    pub last_due_at: Option<DateTime<Utc>>,
    /// The run that ended last.
    #[serde(default)]
    pub last_run_id: Option<RunId>,
    /// How it ended.
    #[serde(default)]
    pub last_status: Option<Status>,
    /// When a run of it ended last.
    #[serde(with = "utc_opt", default, skip_serializing_if = "Option::is_none")]
    pub last_ended_at: Option<DateTime<Utc>>,
    /// A daemon or an idle job rests after its last run.
    #[serde(default, skip_serializing_if = "is_false")]
    pub rests: bool,
    /// Since when no living device knows the job: it is forgotten once that is as long ago as results are kept.
    #[serde(with = "utc_opt", default, skip_serializing_if = "Option::is_none")]
    pub gone_at: Option<DateTime<Utc>>,
    /// The newest run that was claimed, by its own time; kept only where `after` needs it.
    #[serde(with = "utc_opt", default, skip_serializing_if = "Option::is_none")]
    pub last_run_at: Option<DateTime<Utc>>,
    /// The newest success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success: Option<Success>,
    /// How many runs in a row ended without success.
    #[serde(default)]
    pub failures: u32,
    /// How many triggers were skipped because a run was open.
    #[serde(default)]
    pub skipped: u64,
    /// The last that its webhook was told, or is to be told, is a failure.
    #[serde(default, skip_serializing_if = "is_false")]
    pub told_failed: bool,
    /// What its webhook is still to be told, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub news: Vec<News>,
    /// Keys of a newer program.
    #[serde(flatten)]
    pub extra: Extra,
}

impl JobMark {
    /// Returns whether its webhook is to be told something, or was told of a failure last.
    #[must_use]
    pub fn tells(&self) -> bool {
        self.told_failed || !self.news.is_empty()
    }
}

/// A run that succeeded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Success {
    /// The run.
    pub run_id: RunId,
    /// The attempt that ended it.
    pub attempt: u32,
    /// When.
    #[serde(with = "utc")]
    pub at: DateTime<Utc>,
}

/// What a person asked of a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Unique.
    pub id: String,
    /// What is asked.
    #[serde(rename = "do")]
    pub ask: Ask,
    /// The run it concerns, if it concerns one.
    pub run: Option<RunId>,
    /// The attempt it concerns, if it concerns only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// The device that is asked.
    #[serde(rename = "for")]
    pub device: DeviceId,
    /// When it was asked.
    #[serde(with = "utc")]
    pub at: DateTime<Utc>,
    /// Keys of a newer program.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What a person set of a device: written under the lock, taken out once its heartbeat says it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// Unique.
    pub id: String,
    /// The device.
    #[serde(rename = "for")]
    pub device: DeviceId,
    /// When it was asked.
    #[serde(with = "utc")]
    pub at: DateTime<Utc>,
    /// What of it.
    #[serde(flatten)]
    pub set: Resources,
    /// Keys of a newer program.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The things that can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// End the run.
    Cancel,
    /// End the attempt and start another.
    Restart,
    /// Take no new work.
    Drain,
    /// Take work again.
    Resume,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_newer_program_survive() {
        let text = r#"{"schema":1,"revision":7,"last_commits":[[7,"0123"]],
            "runs":{"20261121T034156123Z-k3f9q2":{"job":"a","stem":"a","cause":"trigger","trigger":"a.json","attempt":1,
              "device":"d","session":"0123","priority":0,"slots":1,"claimed_at":"2026-11-21T03:41:57.000Z","colour":"red"}},
            "jobs":{"a":{"since":null,"mood":[1]}},
            "requests":[{"id":"1","do":"cancel","run":null,"for":"d","at":"2026-11-21T03:41:57.000Z","why":"x"}],
            "settings":[{"id":"2","for":"d","at":"2026-11-21T03:41:57.000Z","slots":3,"memory":null,"cpus":0.5,"mode":"y"}],"later":{"a":1}}"#;
        let state: State = serde_json::from_str(text).unwrap();
        let written = serde_json::to_string(&state).unwrap();
        for kept in [
            r#""colour":"red""#,
            r#""mood":[1]"#,
            r#""why":"x""#,
            r#""memory":null"#,
            r#""mode":"y""#,
            r#""later":{"a":1}"#,
        ] {
            assert!(written.contains(kept), "{kept} in {written}");
        }
        assert_eq!(serde_json::from_str::<State>(&written).unwrap(), state);
        for state in [state.clone(), State { rebuilt: Some(3), ..State::default() }] {
            let mut text = Vec::new();
            state.write_json(&mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            assert_eq!(text, serde_json::to_string(&state).unwrap());
        }
        let set = Resources { slots: Some(3), memory: Some(None), cpu_millis: Some(Some(500)), pids: None };
        assert_eq!(state.to_set(&DeviceId::new("d").unwrap()), set);
    }

    #[test]
    fn what_is_set_of_a_device_adds_up_in_one_setting_and_is_not_asked_twice() {
        let device = DeviceId::new("d").unwrap();
        let setting = |set| Setting {
            id: "1".to_owned(),
            device: device.clone(),
            at: DateTime::UNIX_EPOCH,
            set,
            extra: Extra::new(),
        };
        let slots = |slots| Resources { slots: Some(slots), ..Resources::default() };
        let mut state = State::default();
        assert!(state.set(setting(slots(3))));
        assert!(!state.set(setting(slots(3))), "it is asked for");
        assert!(state.set(setting(Resources { pids: Some(None), ..Resources::default() })));
        assert!(state.set(setting(slots(2))), "the newest counts");
        assert_eq!(state.settings.len(), 1);
        assert_eq!(state.to_set(&device), Resources { pids: Some(None), ..slots(2) });
        let old = r#"{"schema":1,"revision":1,"last_commits":[],"runs":{}}"#;
        assert!(serde_json::from_str::<State>(old).unwrap().settings.is_empty());
    }
}
