//! The promises for the time after faults, each with its bound: a trigger is claimed, a full disk forgotten, a dead device's run taken over.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::check::Dropped;
use super::scheduler::Scheduler;
use super::world::World;

/// The job whose runs last until long after a device's death is noticed.
pub(crate) const LASTING: &str = "lasting";
/// For how long they do.
pub(crate) const LASTS: Duration = Duration::from_secs(90);

/// The number of runs that devices share.
const SHARED: u32 = 24;

/// The job whose runs take equally long, so that devices are under equal load.
pub(crate) const EVEN: &str = "even";
/// How long they take.
pub(crate) const EVEN_TAKES: Duration = Duration::from_millis(500);

const STEP: Duration = Duration::from_millis(20);

/// Goes through what is promised, one after the other; what was dropped for it must come to its end like everything else.
pub(crate) fn drill(world: &World, scheduler: &Scheduler, dropped: &mut Vec<Dropped>) -> Vec<String> {
    let mut drills = Drills { world, scheduler, dropped, wrong: Vec::new() };
    drills.a_trigger_is_claimed();
    drills.a_full_disk_is_repaired();
    drills.a_dead_device_is_replaced(Duration::from_secs(60));
    drills.a_dead_device_is_replaced(Duration::from_millis(100));
    drills.no_device_starves();
    drills.wrong
}

struct Drills<'a> {
    world: &'a World,
    scheduler: &'a Scheduler,
    dropped: &'a mut Vec<Dropped>,
    wrong: Vec<String>,
}

impl Drills<'_> {
    fn a_trigger_is_claimed(&mut self) {
        let name = self.drop_trigger("plain");
        // The scan interval and a second: events may be lost on their way here.
        self.must("a trigger is claimed", Duration::from_secs(3), |drills| drills.was_claimed(&name));
    }

    fn a_full_disk_is_repaired(&mut self) {
        let repaired = self.world.now.get() + Duration::from_secs(3);
        self.world.full_until.set(repaired);
        let name = self.drop_trigger("plain");
        self.scheduler.run_until(repaired);
        self.must("work goes on after a full disk", Duration::from_secs(10), |drills| drills.was_claimed(&name));
    }

    /// Kills the holder of a run, for so long.
    fn a_dead_device_is_replaced(&mut self, away: Duration) {
        self.wait();
        let name = self.drop_trigger(LASTING);
        let mut held = None;
        self.must("a lasting run is claimed", Duration::from_secs(3), |drills| {
            held = drills.holder(&name);
            held.is_some()
        });
        let Some((device, attempt)) = held else { return };
        // Long enough for its claim to have been seen.
        self.scheduler.run_until(self.world.now.get() + Duration::from_secs(3));
        let bound = if away < Duration::from_secs(1) {
            Duration::from_secs(3)
        } else if self.scheduler.can_replace(&device) {
            self.scheduler.longest_silence() + Duration::from_secs(5)
        } else {
            away + Duration::from_secs(3)
        };
        self.scheduler.kill(&device, away);
        self.must("a dead device's run is active again", bound, |drills| {
            drills.holder(&name).is_some_and(|(_, now)| now > attempt)
        });
        self.end_lasting();
    }

    /// Of equal devices under equal load, none gets more than three times another's share.
    fn no_device_starves(&mut self) {
        self.scheduler.await_all();
        self.wait();
        let names: BTreeSet<String> = (0..SHARED).map(|_| self.drop_trigger(EVEN)).collect();
        self.wait();
        let runs = self.runs_by_device(&names);
        let share = |id: &str| runs.get(id).copied().unwrap_or(0);
        for equals in self.scheduler.equals() {
            let most = equals.iter().map(|id| share(id)).max().unwrap_or(0);
            let least = equals.iter().map(|id| share(id)).min().unwrap_or(0);
            // Few runs may fall as chance wills.
            if most > 3 * least + 4 {
                self.wrong.push(format!("liveness: of {SHARED} runs the equal devices {equals:?} had {runs:?}"));
            }
        }
    }

    /// Returns how many first attempts of these triggers each device made.
    fn runs_by_device(&self, names: &BTreeSet<String>) -> BTreeMap<String, u32> {
        let files = self.world.files.borrow();
        let results = files.iter().filter(|(path, _)| path.starts_with("/c/Results"));
        let mut runs = BTreeMap::new();
        for result in results.filter_map(|(_, file)| serde_json::from_slice::<Value>(&file.bytes).ok()) {
            let text = |key: &str| result[key].as_str().unwrap_or_default().to_owned();
            if result["attempt"] == 1 && names.contains(&text("trigger")) {
                *runs.entry(text("device")).or_default() += 1;
            }
        }
        runs
    }

    fn drop_trigger(&mut self, job: &str) -> String {
        let count = self.dropped.len();
        let name = format!("drill{count}.json");
        let text = format!("{{\"job\": \"{job}\", \"args\": [\"drill\", {count}]}}");
        let bytes = text.into_bytes();
        self.dropped.push(Dropped { name: name.clone(), bytes: bytes.clone(), may_end_as: &["processed"], key: None });
        self.world.drop_file(&PathBuf::from("/c/Triggers").join(&name), bytes);
        name
    }

    fn must(&mut self, what: &str, within: Duration, mut is_so: impl FnMut(&Self) -> bool) {
        let begun = self.world.now.get();
        while self.world.now.get() <= begun + within {
            if is_so(self) {
                return;
            }
            self.scheduler.run_until(self.world.now.get() + STEP);
        }
        self.wrong.push(format!("liveness: {what} within {within:?}: it is not"));
    }

    /// Returns whether the trigger has left the inbox.
    fn was_claimed(&self, name: &str) -> bool {
        !self.world.files.borrow().contains_key(&PathBuf::from("/c/Triggers").join(name))
    }

    /// Returns the holder of the run of a trigger, and the attempt.
    fn holder(&self, name: &str) -> Option<(String, u64)> {
        let files = self.world.files.borrow();
        let state = serde_json::from_slice::<Value>(&files.get(Path::new("/c/state.json"))?.bytes).ok()?;
        let held = state["runs"].as_object()?.values().find(|held| held["trigger"] == name)?;
        Some((held["device"].as_str()?.to_owned(), held["attempt"].as_u64()?))
    }

    /// Lets the runs of the lasting job come to their end.
    fn end_lasting(&mut self) {
        let now = self.world.now.get();
        for process in self.world.processes.borrow_mut().iter_mut() {
            process.ends_at = process.ends_at.min(now);
        }
        self.wait();
    }

    /// Waits until nothing is open: what is would stand in the way.
    fn wait(&self) {
        let begun = self.world.now.get();
        while !self.scheduler.is_quiet() && self.world.now.get() < begun + Duration::from_secs(120) {
            self.scheduler.run_until(self.world.now.get() + Duration::from_millis(500));
        }
    }
}
