//! Processes that end when chance says so.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use aios::exec::{Ending, Executor, Exit, Spec, StopCause};
use aios::model::lease::Lease;

use super::drills::{LASTING, LASTS};
use super::rng::Rng;
use super::world::{Process, World, offset_of};

pub(crate) struct SimExecutor {
    pub(crate) world: Rc<World>,
    pub(crate) device: usize,
    pub(crate) life: u64,
    pub(crate) dead: Rc<Cell<bool>>,
    pub(crate) chance: Rng,
}

impl SimExecutor {
    fn is_mine(&self, process: &Process) -> bool {
        process.device == self.device && process.life == self.life
    }
}

impl Executor for SimExecutor {
    fn start(&mut self, spec: Spec) {
        if self.dead.get() {
            return;
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
        });
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
