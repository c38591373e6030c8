//! The floor: a minimal pipeline without coordination, as fast as the simple way gets.
//!
//! Wait for a file event, read the JSON, spawn the program by `posix_spawn` with a log file, wait, write a result by
//! temporary name and rename, move the trigger. No locks between devices, no state, no syncs, no checks.
//!
//! Its threads are as many as a device has slots by default. They take turns at the inbox: whoever holds it waits for
//! the next event, lets go, and handles that trigger itself, so that between event and spawn no work changes threads.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use rustix::fd::OwnedFd;
use rustix::fs::inotify;
use rustix::io::Errno;
use rustix::process::Signal;

use crate::Outcome;

/// The argument that makes this binary the floor; [`Arguments`] follow.
pub(crate) const MODE: &str = "--floor";

/// The last argument of a floor that shares its volume with another one.
pub(crate) const CLAIMING: &str = "--claiming";

/// What a device has by default: twice the CPUs, at least 4.
pub(crate) fn default_slots() -> usize {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    (2 * cpus).max(4)
}

/// Runs until it is killed, or its parent ends.
pub(crate) fn run(mut arguments: impl Iterator<Item = OsString>) -> Outcome<()> {
    let mut argument = || arguments.next().ok_or("--floor needs COMMON PROGRAMS SLOTS");
    let (common, programs) = (PathBuf::from(argument()?), PathBuf::from(argument()?));
    let slots: usize = argument()?.to_string_lossy().parse()?;
    let claiming = arguments.next().is_some_and(|last| last == CLAIMING);

    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let floor = Floor::open(&common, programs, claiming)?;
    let inbox = Mutex::new(Inbox::open(floor.triggers.clone())?);
    thread::scope(|scope| {
        for _ in 0..slots {
            scope.spawn(|| {
                if let Err(error) = floor.work(&inbox) {
                    eprintln!("floor: {error}");
                    std::process::exit(1);
                }
            });
        }
    });
    Ok(())
}

/// What the floor reads of a trigger.
#[derive(serde::Deserialize)]
struct Trigger {
    job: String,
    #[serde(default)]
    args: Vec<String>,
}

/// The folders, and the job files read so far.
struct Floor {
    triggers: PathBuf,
    running: PathBuf,
    processed: PathBuf,
    results: PathBuf,
    logs: PathBuf,
    programs: PathBuf,
    claiming: bool,
    jobs: Mutex<BTreeMap<String, Arc<[String]>>>,
}

impl Floor {
    fn open(common: &Path, programs: PathBuf, claiming: bool) -> Outcome<Self> {
        let today = chrono::Utc::now().format("%F").to_string();
        let folder = |path: PathBuf| std::fs::create_dir_all(&path).map(|()| path);
        Ok(Self {
            triggers: folder(common.join("Triggers"))?,
            running: folder(common.join("Triggers/.running"))?,
            processed: folder(common.join("TriggersProcessed").join(&today))?,
            results: folder(common.join("Results").join(&today))?,
            logs: folder(common.join("Logs").join(&today))?,
            programs,
            claiming,
            jobs: Mutex::default(),
        })
    }

    /// One thread's life: take the next trigger, handle it.
    fn work(&self, inbox: &Mutex<Inbox>) -> Outcome<()> {
        loop {
            let name = inbox.lock().unwrap_or_else(PoisonError::into_inner).next()?;
            self.handle(&name).map_err(|error| format!("{}: {error}", name.display()))?;
        }
    }

    /// The whole way of one trigger.
    fn handle(&self, name: &OsStr) -> Outcome<()> {
        let Some(path) = self.claim(name)? else { return Ok(()) };
        let trigger: Trigger = serde_json::from_slice(&std::fs::read(&path)?)?;
        let command = self.command(&trigger.job)?;
        let (program, arguments) = command.split_first().ok_or("the job's command is empty")?;

        let stem = Path::new(name).file_stem().unwrap_or(name).display();
        let attempt = format!("{}.{stem}.1", trigger.job);
        let log = File::create(self.logs.join(format!("{attempt}.log")))?;
        let started = Instant::now();
        let status = Command::new(program)
            .args(arguments)
            .args(&trigger.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .status()?;

        let result = serde_json::json!({
            "job": trigger.job,
            "trigger": name.display().to_string(),
            "exit_code": status.code(),
            "duration_ms": started.elapsed().as_secs_f64() * 1e3,
        });
        let aside = self.results.join(format!(".{attempt}"));
        std::fs::write(&aside, result.to_string())?;
        std::fs::rename(&aside, self.results.join(format!("{attempt}.json")))?;
        std::fs::rename(&path, self.processed.join(name))?;
        Ok(())
    }

    /// Where the trigger lies now; `None`: another floor was faster. Alone on a volume there is nothing to claim.
    fn claim(&self, name: &OsStr) -> io::Result<Option<PathBuf>> {
        let dropped = self.triggers.join(name);
        if !self.claiming {
            return Ok(Some(dropped));
        }
        let claimed = self.running.join(name);
        match std::fs::rename(&dropped, &claimed) {
            Ok(()) => Ok(Some(claimed)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The job's command; its file is read once.
    fn command(&self, job: &str) -> Outcome<Arc<[String]>> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(command) = jobs.get(job) {
            return Ok(Arc::clone(command));
        }
        let file = std::fs::read_to_string(self.programs.join(format!("{job}.toml")))?;
        let definition: toml_edit::DocumentMut = file.parse()?;
        let words = definition.get("command").and_then(toml_edit::Item::as_array).ok_or("the job has no command")?;
        let command: Arc<[String]> = words.iter().filter_map(|word| word.as_str().map(str::to_owned)).collect();
        jobs.insert(job.to_owned(), Arc::clone(&command));
        Ok(command)
    }
}

/// The names of dropped triggers, each once.
struct Inbox {
    folder: PathBuf,
    events: OwnedFd,
    pending: VecDeque<OsString>,
    seen: HashSet<OsString>,
}

impl Inbox {
    /// Watches first and looks then, so that nothing falls between the two.
    fn open(folder: PathBuf) -> Outcome<Self> {
        let events = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&events, &folder, inotify::WatchFlags::MOVED_TO)?;
        let mut inbox = Self { folder, events, pending: VecDeque::new(), seen: HashSet::new() };
        inbox.scan()?;
        Ok(inbox)
    }

    /// The next trigger; waits for it.
    fn next(&mut self) -> io::Result<OsString> {
        loop {
            if let Some(name) = self.pending.pop_front() {
                return Ok(name);
            }
            self.read_events()?;
        }
    }

    /// Waits for events and takes all that one read gives.
    fn read_events(&mut self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
        let mut reader = inotify::Reader::new(&self.events, &mut buffer);
        let (mut names, mut overflow) = (Vec::new(), false);
        loop {
            match reader.next() {
                Ok(event) => {
                    overflow |= event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW);
                    names.extend(event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()).to_owned()));
                }
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            if reader.is_buffer_empty() {
                break;
            }
        }
        for name in names {
            self.admit(name);
        }
        if overflow { self.scan() } else { Ok(()) }
    }

    /// Takes what lies in the folder.
    fn scan(&mut self) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.folder)? {
            self.admit(entry?.file_name());
        }
        Ok(())
    }

    fn admit(&mut self, name: OsString) {
        let is_trigger = name.as_bytes().ends_with(b".json") && !name.as_bytes().starts_with(b".");
        if is_trigger && self.seen.insert(name.clone()) {
            self.pending.push_back(name);
        }
    }
}
