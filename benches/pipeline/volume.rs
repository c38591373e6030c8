//! The folders of one round, and dropping triggers into them.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::Outcome;
use crate::clock;
use crate::probe::Answers;

/// Where volumes are made: a file system.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// `tmpfs` or `disk`.
    pub name: &'static str,
    /// Volumes are folders of their own in here.
    pub folder: PathBuf,
    /// Whether a missed target counts.
    pub gated: bool,
    /// The program of the job `probe`.
    pub probe: PathBuf,
}

/// The jobs that triggers name.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Job {
    /// `/bin/true`.
    Nop,
    /// The probe.
    Probe,
    /// The probe that stays; its file is written where it is used.
    Stay,
    /// `true` in a container of its own; its file is written where it is used.
    Cold,
    /// The same in a container that is kept.
    Warm,
    /// So many jobs that do nothing, by turns; never none.
    Each(usize),
}

impl Job {
    fn name(self) -> &'static str {
        match self {
            Self::Nop => "nop",
            Self::Probe => "probe",
            Self::Stay => "stay",
            Self::Cold => "cold",
            Self::Warm => "warm",
            Self::Each(_) => "other",
        }
    }

    /// The job that the trigger with this number names.
    fn named_by(self, trigger: usize) -> String {
        match self {
            Self::Each(jobs) => format!("{}-{}", self.name(), trigger % jobs),
            Self::Nop | Self::Probe | Self::Stay | Self::Cold | Self::Warm => self.name().to_owned(),
        }
    }
}

/// A volume and programs of its own, gone when dropped.
#[derive(Debug)]
pub(crate) struct Volume {
    root: TempDir,
    answers: Answers,
    dropped: usize,
}

impl Volume {
    /// Makes the folders, with `jobs` job files (never fewer than the two that are used).
    pub(crate) fn create(place: &Place, jobs: usize) -> Outcome<Self> {
        let root = tempfile::Builder::new().prefix("aios-bench-").tempdir_in(&place.folder)?;
        let answers = Answers::create(root.path().join("answers"))?;
        let volume = Self { root, answers, dropped: 0 };
        for folder in [volume.triggers(), volume.programs(), volume.staging()] {
            std::fs::create_dir_all(folder)?;
        }
        for folder in volume.result_folders() {
            std::fs::create_dir_all(folder)?;
        }
        volume.write_jobs(&place.probe, jobs)?;
        // What earlier rounds left to be written must not weigh on this one.
        rustix::fs::syncfs(std::fs::File::open(&place.folder)?)?;
        Ok(volume)
    }

    fn write_jobs(&self, probe: &Path, jobs: usize) -> Outcome<()> {
        let probe = [probe, self.answers.path()].map(|path| path.display().to_string());
        self.write_job("nop", "trigger", &["/bin/true".to_owned()])?;
        self.write_job("probe", "trigger", &probe)?;
        for number in 0..jobs.saturating_sub(2) {
            self.write_job(&Job::Each(jobs).named_by(number), "trigger", &["/bin/true".to_owned()])?;
        }
        Ok(())
    }

    /// Writes the file of a job that runs `true` in a container.
    pub(crate) fn write_job_inside(&self, job: Job, image: &str, keep_warm: Option<&str>) -> Outcome<()> {
        let mut table = toml_edit::InlineTable::new();
        table.insert("image", image.into());
        if let Some(span) = keep_warm {
            table.insert("keep_warm", span.into());
        }
        let mut file = toml_edit::DocumentMut::new();
        file.insert("command", toml_edit::value(["true"].into_iter().collect::<toml_edit::Array>()));
        file.insert("docker", toml_edit::value(table));
        std::fs::write(self.programs().join(format!("{}.toml", job.name())), file.to_string())?;
        Ok(())
    }

    /// Writes a job file of this type.
    pub(crate) fn write_job(&self, name: &str, kind: &str, command: &[String]) -> Outcome<()> {
        let mut file = toml_edit::DocumentMut::new();
        file.insert("type", toml_edit::value(kind));
        file.insert("command", toml_edit::value(command.iter().collect::<toml_edit::Array>()));
        std::fs::write(self.programs().join(format!("{name}.toml")), file.to_string())?;
        Ok(())
    }

    /// The folder of everything.
    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    /// `Common`.
    pub(crate) fn common(&self) -> PathBuf {
        self.root().join("Common")
    }

    /// `Programs`.
    pub(crate) fn programs(&self) -> PathBuf {
        self.root().join("Programs")
    }

    /// `Common/Triggers`.
    pub(crate) fn triggers(&self) -> PathBuf {
        self.common().join("Triggers")
    }

    /// Beside the volume and on its file system, so that nobody watches the temporary names.
    fn staging(&self) -> PathBuf {
        self.root().join("staging")
    }

    /// The result folders of today and tomorrow: a round may run over midnight.
    pub(crate) fn result_folders(&self) -> [PathBuf; 2] {
        let today = chrono::Utc::now().date_naive();
        [today, today + chrono::Days::new(1)].map(|day| self.common().join("Results").join(day.to_string()))
    }

    /// The probes' answers.
    pub(crate) fn answers(&self) -> &Answers {
        &self.answers
    }

    /// How many triggers were dropped so far.
    pub(crate) fn dropped(&self) -> usize {
        self.dropped
    }

    /// Writes triggers under temporary names, ready to be dropped.
    pub(crate) fn stage(&mut self, job: Job, count: usize) -> Outcome<Vec<Staged>> {
        let (staging, triggers) = (self.staging(), self.triggers());
        let first = self.dropped;
        self.dropped += count;
        (first..self.dropped)
            .map(|number| {
                let name = format!("{}-{number:06}.json", job.name());
                let staged = Staged { from: staging.join(&name), to: triggers.join(&name) };
                let content = serde_json::json!({"job": job.named_by(number)}).to_string();
                std::fs::write(&staged.from, content)?;
                Ok(staged)
            })
            .collect()
    }

    /// Checks that every dropped trigger has exactly one result, and that it succeeded.
    pub(crate) fn verify(&self) -> Outcome<()> {
        let mut results = 0;
        for folder in self.result_folders() {
            for entry in std::fs::read_dir(folder)? {
                let path = entry?.path();
                let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
                if hidden || path.extension().is_none_or(|extension| extension != "json") {
                    continue;
                }
                results += 1;
                let result: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
                if result.get("exit_code").and_then(Value::as_i64) != Some(0) {
                    return Err(format!("a run did not succeed: {result}").into());
                }
            }
        }
        match results == self.dropped {
            true => Ok(()),
            false => Err(format!("{} triggers were dropped, {results} results are there", self.dropped).into()),
        }
    }
}

/// A trigger under its temporary name.
#[derive(Debug)]
pub(crate) struct Staged {
    from: PathBuf,
    to: PathBuf,
}

impl Staged {
    /// Moves the trigger into the inbox; gives the moment just before.
    pub(crate) fn drop_in(&self) -> Outcome<u64> {
        let moment = clock::now();
        std::fs::rename(&self.from, &self.to)?;
        Ok(moment)
    }
}
