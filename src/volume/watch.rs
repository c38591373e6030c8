//! File events: they only ever mean "look again". The full scan is the truth; a lost event costs at most its interval.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::{Config, Event, EventKindMask, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use super::layout::Layout;
use super::os::boot;
use crate::model::entry::{FileKey, Source};

/// More names than this are not remembered one by one: a scan is cheaper.
const NAMES: usize = 4_096;

/// The events that the system is asked for. Being opened and read changes nothing, and each device reads each trigger: with 24 devices,
/// each of them would be woken 24 times a trigger.
const EVENTS: EventKindMask = EventKindMask::CREATE
    .union(EventKindMask::REMOVE)
    .union(EventKindMask::ALL_MODIFY)
    .union(EventKindMask::ACCESS_CLOSE);

/// Which part of its rest the watching is awake for: long enough to take in what came meanwhile.
const AWAKE: u32 = 4;

/// What to look at again.
#[derive(Debug, Default)]
pub struct Dirty {
    /// These names in the inbox.
    pub names: BTreeSet<FileKey>,
    /// The inbox as a whole: events were lost, or a folder was replaced.
    pub inbox: bool,
    /// The job files.
    pub programs: bool,
    /// The shared state.
    pub state: bool,
}

impl Dirty {
    /// Whether there is anything to look at.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.inbox || self.programs || self.state || !self.names.is_empty()
    }

    /// Adds what came later.
    pub fn add(&mut self, later: Self) {
        let Self { mut names, inbox, programs, state } = later;
        self.names.append(&mut names);
        self.inbox |= inbox;
        self.programs |= programs;
        self.state |= state;
    }
}

/// Where events are gathered until the loop has time.
#[derive(Debug, Default)]
pub struct Mailbox {
    dirty: Mutex<Dirty>,
    /// How long the watching rests between two batches of events, microseconds.
    rest_us: AtomicU64,
}

impl Mailbox {
    /// Takes what has gathered.
    pub fn take(&self) -> Dirty {
        std::mem::take(&mut *self.dirty.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Has the watching rest for this long after an event. The system keeps what comes meanwhile.
    pub fn rest(&self, pause: Duration) {
        self.rest_us.store(u64::try_from(pause.as_micros()).unwrap_or(0), Ordering::Relaxed);
    }

    /// Has everything looked at again.
    pub fn all(&self) {
        let mut dirty = self.dirty.lock().unwrap_or_else(PoisonError::into_inner);
        (dirty.inbox, dirty.programs, dirty.state) = (true, true, true);
    }
}

/// The watches of one volume.
pub struct Watch {
    watcher: RecommendedWatcher,
    folders: Vec<(PathBuf, Option<u64>)>,
}

impl Watch {
    /// Watches a volume; every event puts something into `mailbox` and wakes the loop.
    ///
    /// # Errors
    /// What the system said, in a sentence that names the limit if it is one.
    pub fn start(layout: &Layout, mailbox: Arc<Mailbox>, wake: Arc<Notify>) -> Result<Self, String> {
        let places = Places::new(layout);
        let mut rest = Rest { of: Arc::clone(&mailbox), ended: boot() };
        let take = move |event: notify::Result<Event>| {
            let mut dirty = mailbox.dirty.lock().unwrap_or_else(PoisonError::into_inner);
            if !places.sort(event, &mut dirty) {
                return;
            }
            drop(dirty);
            wake.notify_one();
            rest.take();
        };
        let config = Config::default().with_event_kinds(EVENTS);
        let watcher = RecommendedWatcher::new(take, config).map_err(|error| explain(&error))?;
        let folders = [layout.lock(), layout.triggers(), layout.waiting(), layout.programs.clone()];
        Ok(Self { watcher, folders: folders.into_iter().map(|folder| (folder, None)).collect() })
    }

    /// Watches what is not watched: a folder that was made again is another one. `inode` says which folder is at a path.
    ///
    /// # Errors
    /// The first problem, in a sentence. The other folders are watched all the same.
    pub fn renew(&mut self, inode: impl Fn(&Path) -> Option<u64>) -> Result<bool, String> {
        let mut renewed = false;
        let mut problem = Ok(());
        for (folder, watched) in &mut self.folders {
            let now = inode(folder);
            if now.is_none() || now == *watched {
                continue;
            }
            if watched.is_some() {
                // The old folder is gone; that its watch is gone too is no problem.
                let _ = self.watcher.unwatch(folder);
            }
            match self.watcher.watch(folder, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    *watched = now;
                    renewed = true;
                }
                Err(error) => problem = Err(explain(&error)),
            }
        }
        problem.map(|()| renewed)
    }
}

/// The rest of the thread that takes events. The loop gathers them for as long; read one by one, they would cost this thread a turn each.
struct Rest {
    of: Arc<Mailbox>,
    ended: Duration,
}

impl Rest {
    #[expect(
        clippy::disallowed_methods,
        reason = "nothing waits for this thread, and it rests for a tenth of a second at most"
    )]
    fn take(&mut self) {
        let pause = Duration::from_micros(self.of.rest_us.load(Ordering::Relaxed));
        if !pause.is_zero() && boot().saturating_sub(self.ended) >= pause / AWAKE {
            std::thread::sleep(pause);
            self.ended = boot();
        }
    }
}

/// The folders, as events name them.
struct Places {
    inbox: PathBuf,
    waiting: PathBuf,
    programs: PathBuf,
    /// Touched by every commit; the state itself is another file each time.
    lock: PathBuf,
}

impl Places {
    fn new(layout: &Layout) -> Self {
        Self {
            inbox: layout.triggers(),
            waiting: layout.waiting(),
            programs: layout.programs.clone(),
            lock: layout.lock(),
        }
    }

    /// Notes what an event is about; `false`: it is about nothing.
    fn sort(&self, event: notify::Result<Event>, dirty: &mut Dirty) -> bool {
        let event = match event {
            Ok(event) if event.need_rescan() => {
                (dirty.inbox, dirty.programs, dirty.state) = (true, true, true);
                return true;
            }
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(error = %explain(&error), "file events fail; the scan goes on");
                dirty.inbox = true;
                return true;
            }
        };
        event.paths.iter().filter(|path| self.sort_path(path, dirty)).count() > 0
    }

    fn sort_path(&self, path: &Path, dirty: &mut Dirty) -> bool {
        if *path == self.lock {
            dirty.state = true;
            return true;
        }
        if *path == self.inbox || *path == self.waiting {
            dirty.inbox = true;
            return true;
        }
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return false };
        let source = if folder == self.inbox {
            Source::Inbox
        } else if folder == self.waiting {
            Source::Waiting
        } else {
            dirty.programs |= folder == self.programs;
            return folder == self.programs;
        };
        if !super::inbox::is_trigger_name(name) {
            return false;
        }
        if dirty.names.len() >= NAMES {
            dirty.names.clear();
            dirty.inbox = true;
        }
        if !dirty.inbox {
            dirty.names.insert(FileKey { source, name: OsStr::new(name).into() });
        }
        true
    }
}

fn explain(error: &notify::Error) -> String {
    match &error.kind {
        notify::ErrorKind::MaxFilesWatch => {
            "the kernel's limit of file watches is reached; raise fs.inotify.max_user_watches (sysctl)".to_owned()
        }
        notify::ErrorKind::Io(io) if io.raw_os_error() == Some(24) => {
            "the kernel's limit of inotify instances is reached; raise fs.inotify.max_user_instances (sysctl)"
                .to_owned()
        }
        notify::ErrorKind::Io(_)
        | notify::ErrorKind::Generic(_)
        | notify::ErrorKind::PathNotFound
        | notify::ErrorKind::WatchNotFound
        | notify::ErrorKind::InvalidConfig(_) => error.to_string(),
    }
}
