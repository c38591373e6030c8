//! Where everything is: the one place that knows the names of folders and files (`docs/reference/formats.md`, "Folders").

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::model::entry::{FileKey, Source, Waiting, running_name};
use crate::model::ids::{DeviceId, JobName, RunId, Session};
use crate::model::lease::Lease;
use crate::model::result::result_name;

/// What begins the name of a work folder that one attempt has after the other.
pub const KEPT_WORK: &str = "kept.";
/// What of a work folder a container is given.
pub const GIVEN: &str = "out";

/// The beginning of the name of a copy of the state that could not be read; its time follows.
pub const CORRUPT: &str = "state.json.corrupt-";

/// The two folders of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// `Common/`, absolute.
    pub common: PathBuf,
    /// `Programs/`, absolute.
    pub programs: PathBuf,
}

impl Layout {
    /// The folder that a file is in.
    #[must_use]
    pub fn folder_of(path: &Path) -> &Path {
        path.parent().unwrap_or(path)
    }

    /// The volume's random id.
    #[must_use]
    pub fn volume_id(&self) -> PathBuf {
        self.common.join(".volume")
    }

    /// The lock file.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.common.join(".state.lock")
    }

    /// Locked by whoever removes what was kept long enough; its change time says when that was done last.
    #[must_use]
    pub fn kept(&self) -> PathBuf {
        self.common.join(".kept")
    }

    /// Backups of the volume, beside whatever else is archived there.
    #[must_use]
    pub fn backups(&self) -> PathBuf {
        self.common.join("Backups")
    }

    /// Locked by whoever makes a backup.
    #[must_use]
    pub fn backup_lock(&self) -> PathBuf {
        self.common.join(".backup.lock")
    }

    /// The shared state.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.common.join("state.json")
    }

    /// What only the devices may read: keys, users, what tokens are signed with.
    #[must_use]
    pub fn security(&self) -> PathBuf {
        self.common.join("Security")
    }

    /// What changes of [`Layout::security`] are made under.
    #[must_use]
    pub fn security_lock(&self) -> PathBuf {
        self.security().join(".lock")
    }

    /// API keys.
    #[must_use]
    pub fn api_keys(&self) -> PathBuf {
        self.security().join("keys")
    }

    /// Users.
    #[must_use]
    pub fn users(&self) -> PathBuf {
        self.security().join("users")
    }

    /// Orchestrators on other volumes.
    #[must_use]
    pub fn servers(&self) -> PathBuf {
        self.security().join("servers")
    }

    /// What tokens are signed with.
    #[must_use]
    pub fn token_secrets(&self) -> PathBuf {
        self.security().join("tokens.json")
    }

    /// When a device last saw each API key.
    #[must_use]
    pub fn keys_seen(&self, device: &DeviceId) -> PathBuf {
        self.security().join("seen").join(format!("{device}.json"))
    }

    /// Who changed what over HTTP, on one device.
    #[must_use]
    pub fn audit(&self, device: &DeviceId) -> PathBuf {
        self.logs().join(format!("audit.{device}.jsonl"))
    }

    /// An earlier part of the same, which ended at that time.
    #[must_use]
    pub fn audit_part(&self, device: &DeviceId, ended: &str) -> PathBuf {
        self.logs().join(format!("audit.{device}~{ended}.jsonl"))
    }

    /// Heartbeats and device locks.
    #[must_use]
    pub fn devices(&self) -> PathBuf {
        self.common.join("Devices")
    }

    /// A device's heartbeat.
    #[must_use]
    pub fn heartbeat(&self, device: &DeviceId) -> PathBuf {
        self.devices().join(format!("{device}.json"))
    }

    /// The lock that a device holds for its life.
    #[must_use]
    pub fn device_lock(&self, device: &DeviceId) -> PathBuf {
        self.devices().join(format!("{device}.lock"))
    }

    /// The inbox.
    #[must_use]
    pub fn triggers(&self) -> PathBuf {
        self.common.join("Triggers")
    }

    /// What devices hold.
    #[must_use]
    pub fn running(&self) -> PathBuf {
        self.triggers().join(".running")
    }

    /// What waits for another attempt.
    #[must_use]
    pub fn waiting(&self) -> PathBuf {
        self.triggers().join(".waiting")
    }

    /// Idempotency keys.
    #[must_use]
    pub fn keys(&self) -> PathBuf {
        self.triggers().join(".ids")
    }

    /// The file of an idempotency key.
    #[must_use]
    pub fn key(&self, id: &str) -> PathBuf {
        let hash = Sha256::digest(id.as_bytes());
        self.keys().join(hex::encode(hash))
    }

    /// The folder of an inbox entry.
    #[must_use]
    pub fn source(&self, source: Source) -> PathBuf {
        match source {
            Source::Inbox => self.triggers(),
            Source::Waiting => self.waiting(),
            // Made where it is claimed.
            Source::Due => self.running(),
        }
    }

    /// The file of an inbox entry.
    #[must_use]
    pub fn entry(&self, key: &FileKey) -> PathBuf {
        self.source(key.source).join(&*key.name)
    }

    /// Returns the folder of the newest revisions of the state.
    #[must_use]
    pub fn revisions(&self) -> PathBuf {
        self.common.join(".revisions")
    }

    /// Returns the path of one revision of the state.
    #[must_use]
    pub fn revision(&self, revision: u64) -> PathBuf {
        self.revisions().join(format!("{revision}.json"))
    }

    /// Returns the path of a held attempt's file.
    #[must_use]
    pub fn running_file(&self, lease: &Lease, stem: &str) -> PathBuf {
        self.running().join(running_name(lease, stem))
    }

    /// The file of a run that waits for another attempt.
    #[must_use]
    pub fn waiting_file(&self, name: &Waiting) -> PathBuf {
        self.waiting().join(name.name())
    }

    /// Where triggers go when their run is over.
    #[must_use]
    pub fn processed(&self) -> PathBuf {
        self.common.join("TriggersProcessed")
    }

    /// The trigger of a run that is over.
    #[must_use]
    pub fn processed_file(&self, run: &RunId, stem: &str) -> PathBuf {
        self.processed().join(run.date()).join(format!("{stem}.{run}.json"))
    }

    /// A trigger whose idempotency key was used.
    #[must_use]
    pub fn duplicate_file(&self, run: &RunId, stem: &str, first: &RunId) -> PathBuf {
        self.processed().join(run.date()).join(format!("{stem}.{run}.duplicate-of.{first}.json"))
    }

    /// Where what could not be taken goes, for a day `yyyy-mm-dd`.
    #[must_use]
    pub fn rejected(&self, date: &str) -> PathBuf {
        self.processed().join("rejected").join(date)
    }

    /// All results.
    #[must_use]
    pub fn results(&self) -> PathBuf {
        self.common.join("Results")
    }

    /// One attempt's result.
    #[must_use]
    pub fn result(&self, job: &JobName, lease: &Lease) -> PathBuf {
        self.common.join(result_name(job, lease))
    }

    /// What an attempt reported after it had lost its lease.
    #[must_use]
    pub fn superseded(&self, job: &JobName, lease: &Lease) -> PathBuf {
        self.results().join(lease.run.date()).join(format!("{job}.{lease}.superseded.json"))
    }

    /// Where a program may write its result (`AIOS_RESULT`).
    #[must_use]
    pub fn output(&self, job: &JobName, lease: &Lease) -> PathBuf {
        self.results().join(lease.run.date()).join(format!(".{job}.{lease}.out"))
    }

    /// Returns the path of a result that ends a run without this attempt, until it is in its place.
    #[must_use]
    pub fn pending_end(&self, job: &JobName, lease: &Lease) -> PathBuf {
        self.results().join(lease.run.date()).join(format!(".{job}.{lease}.out.end"))
    }

    /// What attempts in containers write into.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.common.join(".work")
    }

    /// The work folder of one attempt: nobody but its device's user looks into it.
    #[must_use]
    pub fn work_of(&self, lease: &Lease) -> PathBuf {
        self.work().join(lease.to_string())
    }

    /// What its container is given of that: whoever its processes are, they can write there.
    #[must_use]
    pub fn work_inside(&self, lease: &Lease) -> PathBuf {
        self.work_of(lease).join(GIVEN)
    }

    /// A work folder of attempts in one container that is kept.
    #[must_use]
    pub fn kept_work(&self, session: &Session, job: &JobName, seat: usize) -> PathBuf {
        self.work().join(format!("{KEPT_WORK}{session}.{job}.{seat}"))
    }

    /// The values of secrets, a file each.
    #[must_use]
    pub fn secrets(&self) -> PathBuf {
        self.security().join("secrets")
    }

    /// All logs.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.common.join("Logs")
    }

    /// One attempt's log, relative to `Common/`.
    #[must_use]
    pub fn log_name(job: &JobName, lease: &Lease) -> String {
        format!("Logs/{}/{job}.{lease}.log", lease.run.date())
    }

    /// One attempt's log.
    #[must_use]
    pub fn log(&self, job: &JobName, lease: &Lease) -> PathBuf {
        self.common.join(Self::log_name(job, lease))
    }
}
/// Returns whether a name is hidden: an unfinished file, one of the orchestrator's own, or one that keeps an empty folder in a repository.
#[must_use]
pub fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}
