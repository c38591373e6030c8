//! People who ask for things: to end, restart and retry runs, to drain, resume, limit and forget devices; and who change job files
//! while runs are in flight. They write as the command line does, through the store, and may stand still or fail like a device.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use aios::model::device::Me;
use aios::model::entry::Waiting;
use aios::model::ids::{DeviceId, RunId, Session};
use aios::model::limits::Resources;
use aios::model::state::{Ask, Request, Setting, State};
use aios::model::time::Moment;
use aios::store::Store;
use aios::volume::disk::Disk;

use super::disk::SimDisk;
use super::faults::Kind;
use super::keeping;
use super::rng::Rng;
use super::scheduler::{KEEPER, PERSON, Scheduler, layout};
use super::user;
use super::world::World;

pub(crate) struct People {
    chance: Rng,
    world: Rc<World>,
    scheduler: Rc<Scheduler>,
    /// Job files as they are to be at the end.
    texts: BTreeMap<String, String>,
    /// Job files that are otherwise now.
    changed: BTreeSet<PathBuf>,
    count: u64,
}

impl People {
    pub(crate) fn new(seed: u64, world: Rc<World>, scheduler: Rc<Scheduler>, hooked: &[String]) -> Self {
        let texts = user::texts(hooked);
        Self { chance: Rng::new(seed, "people"), world, scheduler, texts, changed: BTreeSet::new(), count: 0 }
    }

    /// The things that people may do now and then.
    pub(crate) fn act(&mut self) {
        let is_due = |kind| self.world.one_in(self.world.faults.borrow().rate(kind));
        let (asks, edits, differs) = (is_due(Kind::People), is_due(Kind::JobFiles), is_due(Kind::Programs));
        if is_due(Kind::Cancels) {
            self.ask_of_a_run(Ask::Cancel);
        }
        if self.world.one_in(self.world.faults.borrow().rate(Kind::Retention)) {
            self.remove_what_is_old();
        }
        if self.world.one_in(self.world.faults.borrow().rate(Kind::VolumeClock)) {
            self.world.step_the_clock();
        }
        if asks {
            self.ask();
        }
        if edits {
            self.edit_everywhere();
        }
        if differs {
            self.edit_somewhere();
        }
    }

    /// Takes back what would keep anything from its end: job files are whole, devices take work and have the slots they began with.
    pub(crate) fn finish(&mut self) {
        for path in std::mem::take(&mut self.changed) {
            let text = self.texts[&path.file_stem().unwrap().to_string_lossy().into_owned()].clone();
            self.world.put(&path, text.into_bytes());
        }
        let devices: Vec<(DeviceId, u32)> =
            self.scheduler.machines.iter().map(|machine| (machine.id.clone(), machine.slots)).collect();
        for _ in 0..1_000 {
            let done = self.change(|people, state, at| {
                for (device, slots) in &devices {
                    state.requests.retain(|request| request.device != *device || !is_of_device(request.ask));
                    state.requests.push(people.request(Ask::Resume, None, device, at));
                    let set = Resources { slots: Some(*slots), ..Resources::default() };
                    state.set(people.setting(device, set, at));
                }
                true
            });
            if done {
                return;
            }
            self.scheduler.run_until(self.world.now.get() + Duration::from_millis(10));
        }
    }

    fn ask(&mut self) {
        match self.chance.below(10) {
            0..=4 => self.ask_of_a_run(Ask::Restart),
            5 => self.ask_of_a_device(Ask::Drain),
            6 => self.ask_of_a_device(Ask::Resume),
            7 => self.limit(),
            8 => self.retry(),
            _ => self.forget(),
        }
    }

    /// Changes the state as the command line does; `true`: it was changed.
    fn change(&mut self, mut what: impl FnMut(&mut Self, &mut State, chrono::DateTime<chrono::Utc>) -> bool) -> bool {
        let (disk, session) = self.hands();
        let me = Me { device: DeviceId::new("person").unwrap(), session, tags: BTreeSet::new(), slots: 0 };
        let mut store = Store::new(disk, layout(), me);
        let now = Moment { boot: self.world.boot_of(PERSON), wall: self.world.wall() };
        store.change(now, &mut |state| what(self, state, now.wall)).unwrap_or(false)
    }

    /// A command's own view of the disk, and its session.
    fn hands(&mut self) -> (Rc<SimDisk>, Session) {
        (self.disk(PERSON), Session::from_random(self.chance.next()))
    }

    fn disk(&self, who: usize) -> Rc<SimDisk> {
        let life = self.scheduler.new_life(who);
        let disk = SimDisk::new(&self.world, life, who, &Rc::new(Cell::new(false)));
        Rc::new(disk.of_version(self.scheduler.is_updated()))
    }

    /// A device cleans up, in a thread of its own.
    pub(crate) fn remove_what_is_old(&self) {
        keeping::remove_what_is_old(&self.world, &self.scheduler, &*self.disk(KEEPER));
    }

    fn request(
        &mut self,
        ask: Ask,
        run: Option<&RunId>,
        device: &DeviceId,
        at: chrono::DateTime<chrono::Utc>,
    ) -> Request {
        self.count += 1;
        let (run, device) = (run.cloned(), device.clone());
        Request { id: format!("r{}", self.count), ask, run, attempt: None, device, at, extra: BTreeMap::new() }
    }

    fn setting(&mut self, device: &DeviceId, set: Resources, at: chrono::DateTime<chrono::Utc>) -> Setting {
        self.count += 1;
        Setting { id: format!("s{}", self.count), device: device.clone(), at, set, extra: BTreeMap::new() }
    }

    fn ask_of_a_run(&mut self, ask: Ask) {
        let lot = self.chance.next();
        self.change(|people, state, at| {
            let held: Vec<_> = state
                .runs
                .iter()
                .filter_map(|(run, held)| Some((run.clone(), held.attempt, held.device.clone()?)))
                .collect();
            if held.is_empty() {
                return false;
            }
            let (run, attempt, device) = held[usize::try_from(lot % held.len() as u64).unwrap()].clone();
            let request = people.request(ask, Some(&run), &device, at);
            let attempt = (ask == Ask::Restart).then_some(attempt);
            state.requests.push(Request { attempt, ..request });
            true
        });
    }

    fn any_device(&mut self) -> DeviceId {
        let ids: Vec<DeviceId> = self.scheduler.machines.iter().map(|machine| machine.id.clone()).collect();
        self.chance.pick(&ids).clone()
    }

    fn ask_of_a_device(&mut self, ask: Ask) {
        let device = self.any_device();
        self.change(|people, state, at| {
            state.requests.retain(|request| request.device != device || !is_of_device(request.ask));
            state.requests.push(people.request(ask, None, &device, at));
            true
        });
    }

    fn limit(&mut self) {
        let device = self.any_device();
        let set = Resources { slots: Some(*self.chance.pick(&[0, 1, 2, 5])), ..Resources::default() };
        self.change(|people, state, at| {
            let setting = people.setting(&device, set, at);
            state.set(setting)
        });
    }

    /// Makes what waits due now.
    fn retry(&mut self) {
        let (disk, _) = self.hands();
        let folder = layout().waiting();
        let Ok(names) = disk.list(&folder) else { return };
        if names.is_empty() {
            return;
        }
        let name = self.chance.pick(&names).clone();
        if let Some(waiting) = Waiting::parse(&name) {
            let to = layout().waiting_file(&Waiting { not_before: self.world.wall(), ..waiting });
            let _ = disk.rename_new(&folder.join(name), &to);
        }
    }

    /// Removes what is left of a device that is dead, as far as anybody can tell by its lock.
    fn forget(&mut self) {
        let device = self.any_device();
        let (disk, _) = self.hands();
        let Ok(Some(_guard)) = disk.lock(&layout().device_lock(&device)) else { return };
        self.change(|_, state, _| {
            let asked = state.requests.len() + state.settings.len();
            state.requests.retain(|request| request.device != device || !is_of_device(request.ask));
            state.settings.retain(|setting| setting.device != device);
            state.requests.len() + state.settings.len() != asked
        });
        let _ = disk.remove(&layout().heartbeat(&device));
    }

    /// A job file is disabled, broken or removed for all devices, or put right again.
    fn edit_everywhere(&mut self) {
        let (name, text) = self.any_job();
        let text = match self.chance.below(5) {
            0 => Some(format!("{text}enabled = false\n")),
            1 => Some(text[..text.len() - 3].to_owned()),
            2 => None,
            _ => Some(text),
        };
        for folder in self.scheduler.programs() {
            self.write(&folder, &name, text.clone());
        }
    }

    /// One device loses a job, or gets it.
    fn edit_somewhere(&mut self) {
        let (name, text) = self.any_job();
        let folders: Vec<PathBuf> = self.scheduler.programs().into_iter().collect();
        let folder = self.chance.pick(&folders).clone();
        let text = self.chance.one_in(2).then_some(text);
        self.write(&folder, &name, text);
    }

    fn any_job(&mut self) -> (String, String) {
        let all: Vec<(String, String)> = self.texts.clone().into_iter().collect();
        self.chance.pick(&all).clone()
    }

    fn write(&mut self, folder: &Path, name: &str, text: Option<String>) {
        let path = folder.join(format!("{name}.toml"));
        match text {
            Some(text) => self.world.put(&path, text.into_bytes()),
            None => {
                self.world.take_out(&path);
            }
        }
        self.changed.insert(path);
    }
}

fn is_of_device(ask: Ask) -> bool {
    matches!(ask, Ask::Drain | Ask::Resume)
}
