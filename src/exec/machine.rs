//! What this machine offers to those who run programs on it: an interpreter, and room for file events.

use std::io;
use std::time::Duration;

use super::talk::Talk;
use super::{nvidia, procfs};
use crate::model::device::{Gpu, Machine, RunUse};
use crate::model::ids::RunId;

/// How long an interpreter may take to say its version.
const PATIENCE: Duration = Duration::from_secs(2);

/// The interpreter that Python jobs run under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Python {
    /// No folder of `PATH` has it.
    Missing,
    /// It is there and cannot be used.
    Broken {
        /// Why.
        why: String,
    },
    /// It says which it is.
    Found {
        /// As it says it: `3.11.7`.
        version: String,
        /// Whether that is at least what is needed.
        is_enough: bool,
    },
}

/// The oldest Python that will do.
pub const PYTHON: (u32, u32) = (3, 8);

/// Looks for `python3` as a job's start does.
#[must_use]
pub fn python() -> Python {
    let said = Talk::with("python3", &["--version"]).and_then(|mut talk| talk.hear(PATIENCE));
    match said {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Python::Missing,
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            Python::Broken { why: format!("it did not say its version within {} s", PATIENCE.as_secs()) }
        }
        Err(error) => Python::Broken { why: error.to_string() },
        Ok(None) => Python::Broken { why: "it ended without saying its version".to_owned() },
        Ok(Some(line)) => read_version(&line),
    }
}

fn read_version(line: &str) -> Python {
    let version = line.strip_prefix("Python ").unwrap_or_default().trim();
    let mut numbers = version.split('.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => {
            Python::Found { version: version.to_owned(), is_enough: (major, minor) >= PYTHON }
        }
        (Some(_) | None, _) => Python::Broken { why: format!("asked for its version it said {line:?}") },
    }
}

/// The kernel's limits of file events for each user, and what of them is taken here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileEvents {
    /// Most watches; `None`: the kernel does not say.
    pub max_watches: Option<u64>,
    /// Most instances.
    pub max_instances: Option<u64>,
    /// Watches of this user's processes, as far as they can be seen: not those of other containers.
    pub watches: u64,
    /// Instances, likewise.
    pub instances: u64,
}

/// Looks at the limits and at what is taken.
#[must_use]
pub fn file_events() -> FileEvents {
    let (instances, watches) = procfs::inotify_of_this_user();
    FileEvents {
        max_watches: procfs::number("/proc/sys/fs/inotify/max_user_watches"),
        max_instances: procfs::number("/proc/sys/fs/inotify/max_user_instances"),
        watches,
        instances,
    }
}

/// So many runs are measured, and so many processes of each.
const MEASURED: usize = 64;
const PROCESSES: usize = 64;

/// Measures this machine: a few short files of `/proc` each time.
#[derive(Debug)]
pub struct Meter {
    fixed: Machine,
    /// Busy and all ticks of the processors, at the last look.
    ticks: Option<(u64, u64)>,
    nvidia: Option<nvidia::Watch>,
}

impl Default for Meter {
    fn default() -> Self {
        Self::new()
    }
}

impl Meter {
    /// Looks at what does not change.
    #[must_use]
    pub fn new() -> Self {
        let name = rustix::system::uname();
        let text = |name: &std::ffi::CStr| name.to_string_lossy().into_owned();
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let fixed = Machine {
            os: text(name.sysname()).to_lowercase(),
            kernel: text(name.release()),
            arch: text(name.machine()),
            cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
            ..Machine::default()
        };
        Self { fixed, ticks: None, nvidia: nvidia::Watch::begin() }
    }

    fn gpus(&self) -> Vec<Gpu> {
        let told = self.nvidia.as_ref().map(nvidia::Watch::gpus).filter(|told| !told.is_empty());
        told.unwrap_or_else(procfs::nvidia_gpus).into_iter().chain(procfs::other_gpus()).collect()
    }

    /// Looks at what changes. `pids`: the main processes of the runs that are measured too; `used`: what else was measured.
    pub fn read(&mut self, pids: &[(RunId, u32, u32)], used: Vec<RunUse>) -> Machine {
        let memory = procfs::memory();
        let ticks = procfs::processor_ticks();
        let since = self.ticks.zip(ticks).filter(|(before, now)| now.1 > before.1);
        let cpu_percent = since.map(|(before, now)| {
            let share = now.0.saturating_sub(before.0) as f64 / (now.1 - before.1) as f64;
            (share * 1_000.0).round() / 10.0
        });
        self.ticks = ticks;
        let measured = pids.iter().take(MEASURED).filter_map(|(run, attempt, pid)| {
            let used = procfs::used_by_tree(*pid, PROCESSES)?;
            Some(RunUse {
                run_id: run.clone(),
                attempt: *attempt,
                processes: used.processes,
                memory_bytes: used.memory_bytes,
                cpu_ms: used.cpu_ms,
            })
        });
        Machine {
            cpu_percent,
            memory_bytes: memory.map(|memory| memory.0),
            memory_available_bytes: memory.map(|memory| memory.1),
            own_memory_bytes: own_memory(),
            gpus: self.gpus(),
            runs: measured.chain(used).take(MEASURED).collect(),
            ..self.fixed.clone()
        }
    }
}

/// The memory that this process has in use, bytes.
#[must_use]
pub fn own_memory() -> Option<u64> {
    let pages = procfs::words("/proc/self/statm")?.get(1)?.parse::<u64>().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared_by_number() {
        let enough = |line: &str| match read_version(line) {
            Python::Found { is_enough, .. } => Some(is_enough),
            Python::Missing | Python::Broken { .. } => None,
        };
        for (line, expected) in [
            ("Python 3.11.7", Some(true)),
            ("Python 3.8.0", Some(true)),
            ("Python 4.0.0a1", Some(true)),
            ("Python 3.7.17", Some(false)),
            ("Python 2.7.18", Some(false)),
            ("Python", None),
            ("", None),
            ("pyenv: no version", None),
        ] {
            assert_eq!(enough(line), expected, "{line}");
        }
    }

    #[test]
    fn an_instance_and_its_watch_are_counted() {
        use notify::Watcher as _;
        let home = tempfile::tempdir().unwrap();
        let mut watcher = notify::recommended_watcher(|_| {}).unwrap();
        watcher.watch(home.path(), notify::RecursiveMode::NonRecursive).unwrap();
        let taken = file_events();
        assert!(taken.instances >= 1 && taken.watches >= 1, "{taken:?}");
        assert!(taken.max_instances.is_some_and(|most| most >= taken.instances), "{taken:?}");
    }
}
