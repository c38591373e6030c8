//! Processes that end when chance says so.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use aios::exec::{Ending, Executor, Exit, Spec, StopCause};
use aios::model::container::DOCKER_TAG;
use aios::model::ids::Tag;
use aios::model::lease::{Lease, Outliving};

use super::drills::{EVEN, EVEN_TAKES, LASTING, LASTS};
use super::rng::Rng;
use super::world::{Process, World, offset_of};

pub(crate) struct SimExecutor {
    pub(crate) world: Rc<World>,
    pub(crate) device: usize,
    pub(crate) life: u64,
    pub(crate) dead: Rc<Cell<bool>>,
    pub(crate) chance: Rng,
    /// Containers of earlier lives that a survey has met.
    pub(crate) surveyed: BTreeSet<Lease>,
}

impl SimExecutor {
    fn is_mine(&self, process: &Process) -> bool {
        process.device == self.device && process.life == self.life
    }

    /// Returns whether an earlier life started it and it goes on, or has ended and nobody has taken its end.
    fn is_left(&self, process: &Process) -> bool {
        process.device == self.device && process.life != self.life && process.container.is_some()
    }

    /// Takes a container of an earlier life over.
    fn take_over(&self, lease: &Lease) {
        for process in self.world.processes.borrow_mut().iter_mut() {
            if self.is_left(process) && process.lease == *lease {
                process.life = self.life;
            }
        }
    }
}

impl Executor for SimExecutor {
    fn start(&mut self, spec: Spec) {
        if self.dead.get() {
            return;
        }
        if spec.inside.as_ref().is_some_and(|inside| inside.goes_on) {
            return self.take_over(&spec.lease);
        }
        // In the middle of its starts.
        self.world.perhaps_stand_still(self.device);
        let now = self.world.now.get();
        self.world.check.borrow_mut().spawned(&spec, self.device, &self.world);
        let spans = [0, 3, 40, 400, 4_000, 12_000];
        let mut ends_at = now + Duration::from_millis(*self.chance.pick(&spans));
        if spec.env.get("AIOS_JOB").is_some_and(|job| job == LASTING) {
            ends_at = now + LASTS;
        }
        let mut ending = if self.chance.one_in(4) { Ending::Code(1) } else { Ending::Code(0) };
        if spec.env.get("AIOS_JOB").is_some_and(|job| job == EVEN) {
            ends_at = now + EVEN_TAKES;
        }
        let mut stopped = None;
        if let Some(timeout) = spec.timeout
            && now + timeout < ends_at
        {
            (ends_at, ending, stopped) = (now + timeout, Ending::Signal(15), Some(StopCause::Timeout));
        }
        self.world.processes.borrow_mut().push(Process {
            lease: spec.lease,
            device: self.device,
            life: self.life,
            started_at: now,
            ends_at,
            ending,
            stopped,
            ignores_term: self.chance.one_in(4),
            alive: true,
            container: spec.inside.map(|inside| inside.definition),
        });
    }

    fn offers(&self) -> BTreeSet<Tag> {
        self.world.has_containers.then(|| Tag::new(DOCKER_TAG).unwrap()).into_iter().collect()
    }

    fn found(&self) -> BTreeMap<Lease, Outliving> {
        let processes = self.world.processes.borrow();
        let left = processes.iter().filter(|process| self.is_left(process));
        let outliving = |definition: &String| Outliving { executor: "docker", definition: definition.clone() };
        left.filter_map(|process| Some((process.lease.clone(), outliving(process.container.as_ref()?)))).collect()
    }

    /// What runs on other machines is out of reach.
    fn evict(&mut self, leases: &BTreeSet<Lease>) -> BTreeSet<Lease> {
        let mut processes = self.world.processes.borrow_mut();
        processes.retain(|process| !(self.is_left(process) && leases.contains(&process.lease)));
        leases.clone()
    }

    fn survey(&mut self) {
        let processes = self.world.processes.borrow();
        self.surveyed =
            processes.iter().filter(|process| self.is_left(process)).map(|process| process.lease.clone()).collect();
    }

    fn take_surveyed(&mut self) -> BTreeSet<Lease> {
        std::mem::take(&mut self.surveyed)
    }

    fn list(&self) -> Vec<Lease> {
        let processes = self.world.processes.borrow();
        processes.iter().filter(|process| self.is_mine(process)).map(|process| process.lease.clone()).collect()
    }

    fn stop(&mut self, lease: &Lease, cause: StopCause, grace: Duration) {
        let now = self.world.now.get();
        let (device, life) = (self.device, self.life);
        for process in self.world.processes.borrow_mut().iter_mut() {
            if process.device == device && process.life == life && process.lease == *lease && process.stopped.is_none()
            {
                let until = if process.ignores_term { now + grace } else { now + Duration::from_millis(1) };
                if until < process.ends_at {
                    process.ends_at = until;
                    process.ending = Ending::Signal(if process.ignores_term { 9 } else { 15 });
                    process.stopped = Some(cause);
                }
            }
        }
    }

    fn take_exits(&mut self) -> Vec<Exit> {
        let now = self.world.now.get();
        let mut exits = Vec::new();
        let (device, life) = (self.device, self.life);
        if self.dead.get() {
            return exits;
        }
        self.world.processes.borrow_mut().retain(|process| {
            let over = process.device == device && process.life == life && process.ends_at <= now;
            if over {
                let duration = process.ends_at - process.started_at;
                exits.push(Exit {
                    lease: process.lease.clone(),
                    ending: process.ending.clone(),
                    oom_killed: false,
                    stopped: process.stopped,
                    started: true,
                    finished: process.ends_at + offset_of(device),
                    duration,
                    usage: None,
                    log_truncated: false,
                });
            }
            !over
        });
        exits
    }
}
