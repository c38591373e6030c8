//! Runs attempts in containers beside this process, through an engine's API (`Docker`, or `Podman` by its socket).
//!
//! Promises: exactly one [`Exit`] for each started [`Spec`], whatever becomes of the engine; an end is read from the engine's
//! own record of the container and never taken for success because something was cut off; no container is left behind. It
//! lives on a thread of its own, so that an engine that is slow, and programs that print much, hold up nobody.
//!
//! A container is named after run and attempt, and labelled with volume, device and session. So making one twice finds the
//! first one, and what an earlier life of this device left running is taken over by starting it once more.
//!
//! | an attempt's home | in | its end is known from |
//! |---|---|---|
//! | a container of its own | `cold` | the engine's record of it |
//! | a process in a container that is kept | `warm` | the engine's record of the process |
//! | a task of a swarm | `service` | the manager's record of it |

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::ledger::Ledger;
use super::{Executor, Exit, Spec, StopCause};
use crate::model::container::{Allowed, DOCKER_TAG, SWARM_TAG};
use crate::model::device::RunUse;
use crate::model::ids::{DeviceId, Session, Tag};
use crate::model::lease::{Lease, Outliving};

mod attempt;
mod cold;
mod create;
mod engine;
mod output;
mod places;
mod service;
mod start;
mod tidy;
mod warm;

pub use create::{Given, Inside};
pub use engine::{DEFAULT_HOST, Engine, Fault, Seen};

use attempt::Attempt;
use places::Places;

/// How often it is looked whether the engine is there.
const LOOK: Duration = Duration::from_secs(10);
/// How soon it is looked again when it did not answer.
const LOOK_SOON: Duration = Duration::from_secs(1);
/// How long a start waits to hear what an earlier life left.
const LOOK_BACK: Duration = Duration::from_secs(5);

/// What the executor goes by.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the engine listens: `unix://PATH` or `tcp://HOST:PORT`.
    pub host: String,
    /// The volume's id.
    pub volume: String,
    /// This device.
    pub device: DeviceId,
    /// This life of it.
    pub session: Session,
    /// The shared folder, as this process sees it.
    pub common: PathBuf,
    /// The folder of jobs, as this process sees it.
    pub programs: PathBuf,
    /// The shared folder on the engine's host, if that was said by hand.
    pub host_common: Option<PathBuf>,
    /// The folder of jobs there, likewise.
    pub host_programs: Option<PathBuf>,
    /// What of the host jobs may ask for.
    pub allowed: Allowed,
}

/// The executor for containers.
#[derive(Debug)]
pub struct DockerExecutor {
    shared: Arc<Shared>,
    thread: Handle,
    gone: Arc<Notify>,
}

#[derive(Debug)]
struct Shared {
    ledger: Ledger<Attempt>,
    engine: Engine,
    settings: Settings,
    wake: Arc<Notify>,
    /// What the engine was when it was last looked at; `None`: not there.
    seen: Mutex<Option<Seen>>,
    places: tokio::sync::Mutex<Option<Arc<Places>>>,
    /// Containers that wait for another attempt.
    pool: warm::Pool,
    /// What an earlier life left running.
    found: Mutex<BTreeMap<Lease, Outliving>>,
    /// Attempts whose containers were met, and that are not this life's.
    surveyed: Mutex<BTreeSet<Lease>>,
    /// It is to be looked at once whether the engine is there.
    look: Notify,
    /// What running attempts have in use.
    used: Mutex<BTreeMap<Lease, RunUse>>,
    /// Attempts of others that are to be ended; `true`: nothing of them is left that can be reached.
    evicted: Mutex<BTreeMap<Lease, bool>>,
}

impl DockerExecutor {
    /// Makes an executor; `wake` is notified whenever there are exits to take or its offers have changed.
    ///
    /// # Errors
    /// If its thread cannot be started.
    pub fn new(settings: Settings, wake: Arc<Notify>) -> std::io::Result<Self> {
        let engine = Engine::new(&settings.host);
        let shared = Arc::new(Shared {
            ledger: Ledger::new(Arc::clone(&wake)),
            engine,
            settings,
            wake,
            seen: Mutex::default(),
            places: tokio::sync::Mutex::default(),
            pool: warm::Pool::default(),
            found: Mutex::default(),
            surveyed: Mutex::default(),
            look: Notify::new(),
            used: Mutex::default(),
            evicted: Mutex::default(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (thread, gone) = (runtime.handle().clone(), Arc::new(Notify::new()));
        let (watched, until) = (Arc::clone(&shared), Arc::clone(&gone));
        std::thread::Builder::new().name("aios-docker".to_owned()).stack_size(1 << 20).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = watched.watch_engine() => {}
                    () = until.notified() => {}
                }
            });
        })?;
        Ok(Self { shared, thread, gone })
    }
}

/// What a device does with its executor when it leaves.
#[derive(Debug, Clone)]
pub struct Closer {
    shared: Arc<Shared>,
    thread: Handle,
}

impl Closer {
    /// Throws away the containers that wait for another attempt.
    pub async fn close(self) {
        let Self { shared, thread } = self;
        let closed = thread.spawn(async move {
            if tokio::time::timeout(LOOK_BACK, warm::close(&shared)).await.is_err() {
                tracing::warn!("the container engine is slow: containers that were kept end by themselves, later");
            }
        });
        // It panics only with a bug, which its thread has told by then.
        let _ = closed.await;
    }
}

impl DockerExecutor {
    /// What is to be done with it in the end, when it was given away.
    #[must_use]
    pub fn closer(&self) -> Closer {
        Closer { shared: Arc::clone(&self.shared), thread: self.thread.clone() }
    }

    /// Looks what an earlier life of this device left running; the look begins at once and goes on whether it is awaited or not. An engine
    /// that does not answer soon has left nothing.
    pub fn look_back(&self) -> impl Future<Output = ()> + use<> {
        let shared = Arc::clone(&self.shared);
        let looked = self.thread.spawn(async move {
            match tokio::time::timeout(LOOK_BACK, tidy::left(&shared)).await {
                Ok((left, forgotten)) => {
                    *lock(&shared.found) = left;
                    // Nothing of this life waits for that.
                    tokio::spawn(async move { forgotten.remove(&shared).await });
                }
                Err(_) => {
                    tracing::warn!("the container engine is slow: what an earlier life left there is not taken over")
                }
            }
        });
        // It panics only with a bug, which its thread has told by then.
        async { _ = looked.await }
    }
}

/// Each lock is held for one line, so a panic elsewhere cannot have left anything half done.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks once whether an engine answers, and waits for that.
///
/// # Errors
/// Why it does not.
pub fn look(host: &str) -> Result<Seen, Fault> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let gone = |error: std::io::Error| Fault::Gone { host: host.to_owned(), why: error.to_string() };
    runtime.map_err(gone)?.block_on(Engine::new(host).look())
}

impl Drop for DockerExecutor {
    /// What runs is left alone.
    fn drop(&mut self) {
        self.gone.notify_one();
    }
}

impl Shared {
    /// Looks from time to time whether the engine is there.
    async fn watch_engine(&self) {
        let mut is_first = true;
        loop {
            let seen = self.engine.look().await;
            let is_news = {
                let mut known = lock(&self.seen);
                let seen = seen.as_ref().ok();
                let is_news = known.as_ref() != seen;
                *known = seen.cloned();
                is_news
            };
            // Where none was asked for, that there is none is no news.
            let is_wanted = self.settings.host != DEFAULT_HOST || matches!(seen, Err(Fault::NoRights(_)));
            let is_news = is_news || std::mem::take(&mut is_first) && seen.is_err() && is_wanted;
            if is_news {
                match seen {
                    Ok(seen) => {
                        tracing::info!(version = seen.version, host = self.settings.host, "a container engine answers")
                    }
                    Err(fault) => tracing::warn!(hint = fault.hint(), "{fault}: no jobs in containers are taken"),
                }
                self.wake.notify_one();
            }
            warm::expire(self).await;
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                // Not at once: who says so has just been told, and many may say so.
                () = self.look.notified() => tokio::time::sleep(LOOK_SOON).await,
            }
        }
    }

    /// The log driver of what is made now.
    fn log_driver(&self) -> &'static str {
        lock(&self.seen).as_ref().map_or(create::LOG_DRIVER, |seen| seen.log_driver)
    }

    /// Notes that the engine did not answer: jobs in containers are left to others until it is back.
    fn is_gone(&self) {
        *lock(&self.seen) = None;
        self.look.notify_one();
        self.wake.notify_one();
    }

    /// What lies where on the host. Found out once, when it is first needed.
    async fn places(&self) -> Result<Arc<Places>, places::Unknown> {
        let mut places = self.places.lock().await;
        if let Some(found) = places.as_ref() {
            return Ok(Arc::clone(found));
        }
        let found = Arc::new(Places::find(&self.engine, &self.settings).await?);
        Ok(Arc::clone(places.insert(found)))
    }
}

impl Executor for DockerExecutor {
    fn start(&mut self, spec: Spec) {
        if self.shared.ledger.knows(&spec.lease) {
            return;
        }
        let attempt = Arc::new(Attempt::new(spec.lease.clone()));
        self.shared.ledger.add(spec.lease.clone(), Arc::clone(&attempt));
        self.thread.spawn(attempt::attend(Arc::clone(&self.shared), attempt, spec));
    }

    fn list(&self) -> Vec<Lease> {
        self.shared.ledger.leases()
    }

    fn stop(&mut self, lease: &Lease, cause: StopCause, grace: Duration) {
        if let Some(attempt) = self.shared.ledger.get(lease) {
            attempt.stop(cause, grace);
        }
    }

    fn take_exits(&mut self) -> Vec<Exit> {
        self.shared.ledger.take()
    }

    fn offers(&self) -> BTreeSet<Tag> {
        let seen = lock(&self.shared.seen);
        let swarm = seen.as_ref().filter(|seen| seen.is_manager).map(|_| SWARM_TAG);
        let tags = seen.as_ref().map(|_| DOCKER_TAG).into_iter().chain(swarm);
        tags.filter_map(|tag| Tag::new(tag).ok()).collect()
    }

    fn used(&self) -> Vec<RunUse> {
        lock(&self.shared.used).values().cloned().collect()
    }

    fn found(&self) -> BTreeMap<Lease, Outliving> {
        lock(&self.shared.found).clone()
    }

    fn evict(&mut self, leases: &BTreeSet<Lease>) -> BTreeSet<Lease> {
        if leases.is_empty() {
            return BTreeSet::new();
        }
        let mut evicted = lock(&self.shared.evicted);
        // What was done for somebody who does not ask any more.
        evicted.retain(|lease, is_clear| !*is_clear || leases.contains(lease));
        let fresh: BTreeSet<Lease> = leases.iter().filter(|lease| !evicted.contains_key(lease)).cloned().collect();
        if !fresh.is_empty() {
            evicted.extend(fresh.iter().map(|lease| (lease.clone(), false)));
            self.thread.spawn(tidy::evict(Arc::clone(&self.shared), fresh));
        }
        // Told once: who asks again later has a reason to look again.
        let clear = leases.iter().filter(|lease| evicted.get(*lease) == Some(&true)).cloned().collect();
        evicted.retain(|lease, is_clear| !(*is_clear && leases.contains(lease)));
        clear
    }

    fn survey(&mut self) {
        self.thread.spawn(tidy::survey(Arc::clone(&self.shared)));
    }

    fn take_surveyed(&mut self) -> BTreeSet<Lease> {
        std::mem::take(&mut *lock(&self.shared.surveyed))
    }
}
