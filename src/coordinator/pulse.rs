//! The pulse: a thread that repeats the last heartbeat while one turn of the loop takes long.
//!
//! A slow disk or a long scan keeps the loop from its next heartbeat, and the others would take a healthy device for dead. What the
//! thread repeats is a sign of life and says nothing new: [`Beat::pulse`] counts up, [`Beat::beat`] stays. A loop that makes no turn for
//! [`HUNG`] leases is given up: the thread falls silent, and the others take the runs over.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::model::config::Config;
use crate::model::device::Beat;
use crate::model::ids::Session;
use crate::model::time::show_duration;
use crate::volume::atomic::Temporary;
use crate::volume::heartbeat;
use crate::volume::layout::Layout;
use crate::volume::os::{OsDisk, boot};

/// After how many leases without a turn the loop is given up.
const HUNG: u32 = 4;

/// The thread. It ends with this value.
pub struct Pulse {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    last: Mutex<Last>,
    ended: Condvar,
}

/// The last heartbeat, and when what was done.
#[derive(Default)]
struct Last {
    /// `None`: there is nothing to repeat.
    beat: Option<Beat>,
    written_at: Duration,
    turned_at: Duration,
    has_ended: bool,
}

/// The right to write the heartbeat: the thread writes none meanwhile.
pub struct Writing<'a>(MutexGuard<'a, Last>);

impl Writing<'_> {
    /// Has this heartbeat repeated from now on; `None`: nothing is repeated any more.
    pub fn repeat(mut self, beat: Option<Beat>) {
        (self.0.beat, self.0.written_at) = (beat, boot());
    }
}

impl Pulse {
    /// Starts the thread.
    ///
    /// # Errors
    /// The error of the system: there is no thread to be had.
    pub fn start(layout: Layout, session: Session, config: &Config) -> std::io::Result<Self> {
        let shared = Arc::<Shared>::default();
        shared.lock().turned_at = boot();
        let (pulse, rhythm) = (Self { shared: Arc::clone(&shared) }, Rhythm::of(config));
        let work = move || repeat(&shared, &layout, Temporary::beside_loop(session), rhythm);
        std::thread::Builder::new().name("aios-pulse".to_owned()).spawn(work)?;
        Ok(pulse)
    }

    /// Notes that the loop makes a turn.
    pub fn turn(&self) {
        self.shared.lock().turned_at = boot();
    }

    /// Takes the right to write the heartbeat.
    pub fn writing(&self) -> Writing<'_> {
        Writing(self.shared.lock())
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.shared.lock().has_ended = true;
        self.shared.ended.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The interval at which the heartbeat is repeated, and the time for which the loop may stand still meanwhile.
#[derive(Clone, Copy)]
struct Rhythm {
    every: Duration,
    patience: Duration,
}

impl Rhythm {
    /// A little later than the loop writes it, which does so at every turn that it makes in time.
    fn of(config: &Config) -> Self {
        Self { every: config.heartbeat + config.heartbeat / 8, patience: config.lease * HUNG }
    }
}

/// Repeats the heartbeat until its device ends.
fn repeat(shared: &Shared, layout: &Layout, mut names: Temporary, rhythm: Rhythm) {
    let disk = OsDisk::new();
    let mut last = shared.lock();
    while !last.has_ended {
        let now = boot();
        let due = last.written_at + rhythm.every;
        let pause = if last.beat.is_none() { rhythm.every } else { due.saturating_sub(now) };
        if !pause.is_zero() {
            last = shared.ended.wait_timeout(last, pause).unwrap_or_else(PoisonError::into_inner).0;
            continue;
        }
        let stood = now.saturating_sub(last.turned_at);
        if stood >= rhythm.patience {
            tracing::error!(
                seconds = stood.as_secs(),
                "the loop of this device hangs: its heartbeat is not repeated any more"
            );
            last.beat = None;
            continue;
        }
        let since = now.saturating_sub(last.written_at);
        last.written_at = now;
        let Some(beat) = &mut last.beat else { continue };
        beat.pulse += 1;
        beat.at += chrono::TimeDelta::from_std(since).unwrap_or_default();
        let mut told = beat.clone();
        if stood >= rhythm.patience / 8 {
            told.problems.push(problem(stood));
        }
        match heartbeat::read(&disk, layout, &told.device) {
            // Another session has the id by now: the loop finds out itself.
            Ok(Some(found)) if found.session != told.session => last.beat = None,
            Ok(_) => {
                if let Err(error) = heartbeat::write(&disk, layout, &mut names, &told) {
                    tracing::debug!(%error, "the heartbeat is not repeated this time");
                }
            }
            Err(error) => tracing::debug!(%error, "the heartbeat is not repeated this time"),
        }
    }
}

/// The problem of a device whose loop has been at one turn for so long.
fn problem(stood: Duration) -> String {
    let stood = show_duration(Duration::from_secs(stood.as_secs()));
    format!(
        "one turn of the loop has taken {stood} so far: nothing is started or recorded meanwhile; \
         hint: is the disk of Common slow, or are there very many files in Triggers?"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::DeviceId;

    struct Home {
        layout: Layout,
        _folder: tempfile::TempDir,
    }

    fn home() -> Home {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout { common: folder.path().join("Common"), programs: folder.path().join("Programs") };
        Home { layout, _folder: folder }
    }

    fn config(lease: Duration) -> Config {
        Config { heartbeat: Duration::from_millis(1), lease, ..Config::default() }
    }

    fn write(home: &Home, pulse: &Pulse, session: u64) {
        let beat = Beat::example("d", session, 7);
        let writing = pulse.writing();
        let mut names = Temporary::new(beat.session.clone());
        heartbeat::write(&OsDisk::new(), &home.layout, &mut names, &beat).unwrap();
        writing.repeat(Some(beat));
    }

    fn read(home: &Home) -> Beat {
        heartbeat::read(&OsDisk::new(), &home.layout, &DeviceId::new("d").unwrap()).unwrap().unwrap()
    }

    /// Looks until something is so, for a minute at most.
    fn wait_for(is_so: impl Fn() -> bool) {
        let begun = boot();
        while !is_so() {
            assert!(boot().saturating_sub(begun) < Duration::from_secs(60));
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_heartbeat_is_repeated_while_the_loop_is_at_one_turn() {
        let home = home();
        let pulse =
            Pulse::start(home.layout.clone(), Session::from_random(1), &config(Duration::from_secs(60))).unwrap();
        write(&home, &pulse, 1);
        wait_for(|| read(&home).pulse > 3);
        assert_eq!(read(&home).beat, 7);
        // For more than half a lease.
        pulse.shared.lock().turned_at = boot().saturating_sub(Duration::from_secs(31));
        wait_for(|| !read(&home).problems.is_empty());
        assert!(read(&home).problems[0].contains("one turn of the loop has taken 3"), "{:?}", read(&home).problems);
    }

    #[test]
    fn the_heartbeat_of_a_loop_that_hangs_is_not_repeated_any_more() {
        let home = home();
        let pulse = Pulse::start(home.layout.clone(), Session::from_random(1), &config(Duration::ZERO)).unwrap();
        write(&home, &pulse, 1);
        wait_for(|| pulse.shared.lock().beat.is_none());
        assert_eq!(read(&home).pulse, 0);
    }

    #[test]
    fn a_heartbeat_that_is_anothers_by_now_is_left_alone() {
        let home = home();
        let pulse =
            Pulse::start(home.layout.clone(), Session::from_random(1), &config(Duration::from_secs(60))).unwrap();
        let mut names = Temporary::new(Session::from_random(2));
        let writing = pulse.writing();
        heartbeat::write(&OsDisk::new(), &home.layout, &mut names, &Beat::example("d", 2, 1)).unwrap();
        writing.repeat(Some(Beat::example("d", 1, 7)));
        wait_for(|| pulse.shared.lock().beat.is_none());
        assert_eq!(read(&home).session, Session::from_random(2));
    }
}
