//! Chores: what takes too long for a turn of the loop is done beside it, in threads with a disk of their own.
//!
//! The loop waits for none of them, and what they do needs no place in the state: a chore that is cut off is done again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Device, TRY_AGAIN, earlier};
use crate::model::config::Config;
use crate::model::time::{Moment, show_duration};
use crate::volume::atomic::Temporary;
use crate::volume::backup::{self, Fault, Rounds, Terms as BackupTerms};
use crate::volume::disk::Disk;
use crate::volume::layout::Layout;
use crate::volume::os::OsDisk;
use crate::volume::retention::{self, Tally, Terms, Turn};

/// How long after its start a device looks at the earliest for what was kept long enough.
const FIRST: Duration = Duration::from_secs(300);
/// Every so many rounds one looks everywhere, also where hardly anything can be old enough.
const THOROUGH: u64 = 24;
/// How long a thread rests after a failure: a copy that finds no room costs a copy.
const REST: Duration = Duration::from_secs(60);

/// A thread that works, or not, and when it has something to do next, on this machine's boot time.
#[derive(Debug, Clone, Default)]
struct Thread {
    busy: Arc<AtomicBool>,
    due_ms: Arc<AtomicU64>,
}

impl Thread {
    fn due_at(at: Duration) -> Self {
        let thread = Self::default();
        thread.again_at(at);
        thread
    }

    fn again_at(&self, at: Duration) {
        self.due_ms.store(u64::try_from(at.as_millis()).unwrap_or(u64::MAX), Ordering::Release);
    }

    /// When it has something to do; `None`: it is at it.
    fn due(&self) -> Option<Duration> {
        (!self.busy.load(Ordering::Acquire)).then(|| Duration::from_millis(self.due_ms.load(Ordering::Acquire)))
    }

    fn is_due(&self, now: Duration) -> bool {
        self.due().is_some_and(|due| due <= now)
    }

    /// Works, and says itself for how long it rests then.
    fn work(&self, work: impl FnOnce(&OsDisk) -> Duration + Send + 'static) {
        self.busy.store(true, Ordering::Release);
        let working = Working(self.clone());
        let later = self.clone();
        let work = move || {
            let disk = OsDisk::new();
            // Should it panic.
            working.0.again_at(disk.boot() + REST);
            let rest = work(&disk);
            working.0.again_at(disk.boot() + rest + Duration::from_millis(1));
        };
        if let Err(error) = std::thread::Builder::new().name("aios-chores".to_owned()).spawn(work) {
            tracing::warn!(%error, "no thread for cleaning up or a backup: it is tried again");
            later.again_at(OsDisk::new().boot() + REST);
        }
    }
}

/// Ends with the work, however that ends.
struct Working(Thread);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Release);
    }
}

/// The chores of one device.
pub(super) struct Chores {
    layout: Layout,
    config: Config,
    keeping: Thread,
    backing: Thread,
    /// What the last try of a backup came to, until the device has heard of it: why there is none, or that there is one.
    backed: Arc<Mutex<Option<Option<String>>>>,
    rounds: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Chores {
    pub(super) fn new(device: &Device, now: Duration) -> Self {
        let parts = &device.parts;
        Self {
            layout: parts.layout.clone(),
            config: parts.config.clone(),
            keeping: Thread::due_at(now + parts.config.keep_every.min(FIRST)),
            backing: Thread::due_at(now + parts.config.backup_every.unwrap_or_default().min(FIRST)),
            backed: Arc::default(),
            rounds: Arc::default(),
            stop: Arc::default(),
        }
    }

    /// Starts what is to be done by now.
    pub(super) fn look(&mut self, device: &mut Device, now: Moment) {
        if self.keeping.is_due(now.boot) {
            self.keep(device, now);
        }
        if let Some(every) = self.config.backup_every
            && self.backing.is_due(now.boot)
        {
            self.back_up(device, every, now);
        }
        match self.backed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(Some(problem)) => device.problem("backup", problem),
            Some(None) => device.solved("backup"),
            None => {}
        }
    }

    /// When there is something to do that no event tells of.
    pub(super) fn due(&self) -> Option<Duration> {
        let backing = self.config.backup_every.and_then(|_| self.backing.due());
        earlier(self.keeping.due(), backing)
    }

    fn keep(&self, device: &Device, now: Moment) {
        // Files are as old as the volume's time says, and that is not known before the first beat.
        if device.anchor.is_none() {
            self.keeping.again_at(now.boot + TRY_AGAIN);
            return;
        }
        let rounds = Arc::clone(&self.rounds);
        let terms = Terms {
            volume: device.seen.volume.clone(),
            device: device.seen.me.device.clone(),
            keep: self.config.keep,
            keep_bytes: self.config.keep_bytes,
            every: self.config.keep_every,
            thorough: rounds.load(Ordering::Acquire).is_multiple_of(THOROUGH),
            now: device.by_the_volume(now).wall,
        };
        let (layout, stop) = (self.layout.clone(), Arc::clone(&self.stop));
        self.keeping.work(move |disk| {
            match retention::round(disk, &layout, &terms, &|| stop.load(Ordering::Acquire)) {
                Ok(Turn::Later(rest)) => return rest,
                Ok(Turn::Stopped(tally)) => tell(&tally, &terms),
                Ok(Turn::Done(tally)) => {
                    rounds.fetch_add(1, Ordering::AcqRel);
                    tell(&tally, &terms);
                }
                Err(error) => tracing::warn!(hint = error.hint(), "{error}; nothing old is removed for now"),
            }
            terms.every
        });
    }

    fn back_up(&mut self, device: &Device, every: Duration, now: Moment) {
        // Backups are named by the volume's time, and that is not known before the first beat.
        if device.anchor.is_none() {
            self.backing.again_at(now.boot + TRY_AGAIN);
            return;
        }
        let rounds = Rounds {
            volume: device.seen.volume.clone(),
            terms: BackupTerms {
                device: device.seen.me.device.clone(),
                to: self.layout.backups(),
                results: backup::RESULTS,
                now: device.by_the_volume(now).wall,
            },
            every,
            keep: self.config.backup_keep,
        };
        // Of one thread's making, one after the other: no two of them are in use.
        let mut names = Temporary::new(device.seen.me.session.clone());
        let (layout, stop, backed) = (self.layout.clone(), Arc::clone(&self.stop), Arc::clone(&self.backed));
        self.backing.work(move |disk| {
            let turn = backup::round(disk, &layout, &mut names, &rounds, &|| stop.load(Ordering::Acquire));
            let (said, rest) = match turn {
                Ok(backup::Turn::Later(rest)) => return rest,
                Ok(backup::Turn::Done(made, removed)) => {
                    tracing::info!(path = %made.path.display(), bytes = made.bytes, removed, "backed the volume up");
                    (None, every)
                }
                Err(Fault::Stopped) => return every,
                Err(fault) => (Some(format!("no backup is made: {fault}; hint: {}", fault.hint())), every.min(REST)),
            };
            *backed.lock().unwrap_or_else(PoisonError::into_inner) = Some(said);
            rest
        });
    }
}

/// Whoever waits for the threads at the end waits for one file.
impl Drop for Chores {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

fn tell(tally: &Tally, terms: &Terms) {
    let Tally { files, bytes, failed, error } = tally;
    let keep = show_duration(terms.keep);
    if *files > 0 {
        tracing::info!(files, bytes, keep, keep_bytes = terms.keep_bytes, "removed what was kept long enough");
    } else {
        tracing::debug!("nothing was kept long enough to be removed");
    }
    if let Some(error) = error {
        tracing::warn!(failed, hint = error.hint(), "{error}; it is tried again in the next round");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits until a thread is done with its work, and says when it works again.
    async fn rested(thread: &Thread) -> Duration {
        let done = async {
            loop {
                if let Some(due) = thread.due() {
                    return due;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), done).await.unwrap()
    }

    #[tokio::test]
    async fn a_thread_works_on_one_thing_and_rests_however_that_ends() {
        let (seconds, thread) = (Duration::from_secs, Thread::due_at(Duration::from_secs(5)));
        assert!(!thread.is_due(seconds(4)) && thread.is_due(seconds(5)));
        let (go, wait) = std::sync::mpsc::sync_channel::<()>(0);
        thread.work(move |_| {
            // Whoever let go of the other end lets it go on as well.
            let _ = wait.recv();
            panic!("of this work nothing comes")
        });
        assert!(!thread.is_due(Duration::MAX), "it is at it");
        drop(go);
        assert!(rested(&thread).await > REST, "it is free again, and does not panic over and over");
    }
}
