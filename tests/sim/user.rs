//! People and programs that drop files, slowly, twice, torn, and now and then hurt what they should not touch.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use super::check::{Dropped, Rules};
use super::drills::{EVEN, LASTING};
use super::faults::Kind;
use super::power;
use super::rng::Rng;
use super::scheduler::Scheduler;
use super::world::World;

/// The jobs of the simulation: what the judge knows, and the files that say the same to the product.
pub(crate) fn jobs() -> BTreeMap<String, Rules> {
    let rules = Rules::default();
    [
        ("plain", rules.clone()),
        ("gpu", Rules { tags: vec!["gpu"], ..rules.clone() }),
        ("queued", Rules { exclusive: true, ..rules.clone() }),
        ("skipped", Rules { exclusive: true, ..rules.clone() }),
        ("once", Rules { once: true, ..rules.clone() }),
        ("again", rules.clone()),
        ("queued_again", Rules { exclusive: true, ..rules }),
    ]
    .into_iter()
    .map(|(name, rules)| (name.to_owned(), rules))
    .collect()
}

/// The jobs that have a webhook, where any has: every other one.
pub(crate) fn hooked() -> Vec<String> {
    jobs().into_keys().step_by(2).collect()
}

/// The job files, by name.
pub(crate) fn texts(hooked: &[String]) -> BTreeMap<String, String> {
    let extra = |name: &str| match name {
        "gpu" => "tags = [\"gpu\"]\n",
        "queued" => "overlap = \"queue\"\n",
        "skipped" => "overlap = \"skip\"\n",
        "once" => "on_lost = \"fail\"\n",
        "again" => "retries = 2\nbackoff = \"500ms\"\ntimeout = \"3s\"\n",
        "queued_again" => "retries = 1\nbackoff = \"1s\"\noverlap = \"queue\"\n",
        _ => "",
    };
    let text = |name: String| {
        let hook = if hooked.contains(&name) { "notify = \"http://hook/\"\n" } else { "" };
        let text = format!("command = [\"x\"]\n{}{hook}", extra(&name));
        (name, text)
    };
    jobs().into_keys().chain([LASTING, EVEN].map(str::to_owned)).map(text).collect()
}

pub(crate) fn write_programs(world: &World, folders: &BTreeSet<PathBuf>, hooked: &[String]) {
    for folder in folders {
        world.make_folders(folder);
        // The histories of seeds that are kept stay as they were.
        for (name, text) in
            texts(hooked).into_iter().filter(|(name, _)| !world.is_kept || ![LASTING, EVEN].contains(&name.as_str()))
        {
            world.put(&folder.join(format!("{name}.toml")), text.into_bytes());
        }
    }
}

pub(crate) struct User {
    chance: Rng,
    world: Rc<World>,
    scheduler: Rc<Scheduler>,
    hurts_state: bool,
    pub(crate) dropped: Vec<Dropped>,
    count: u32,
}

impl User {
    pub(crate) fn new(seed: u64, world: Rc<World>, scheduler: Rc<Scheduler>, hurts_state: bool) -> Self {
        let chance = Rng::new(seed, "user");
        Self { chance, world, scheduler, hurts_state, dropped: Vec::new(), count: 0 }
    }

    /// One thing a person does.
    pub(crate) fn act(&mut self) {
        let damages = self.world.faults.borrow().rate(Kind::Damage);
        if self.world.one_in(damages) {
            self.damage_a_file();
        }
        let cuts = self.world.faults.borrow().rate(Kind::Power);
        if self.world.one_in(cuts) {
            let (world, scheduler) = (Rc::clone(&self.world), Rc::clone(&self.scheduler));
            power::cut(&world, &scheduler, self);
        }
        match self.chance.below(12) {
            0 => self.scheduler.step_a_clock(),
            1 => self.scheduler.ask_to_leave(),
            2 if self.hurts_state => self.hurt_the_state(),
            3 => {}
            4 => self.drop_junk(),
            _ => {
                for _ in 0..self.chance.between(1, 3) {
                    self.drop_trigger();
                }
            }
        }
    }

    /// A heap of triggers at once.
    pub(crate) fn drop_many(&mut self, count: u32) {
        for number in 0..count {
            let (name, bytes) =
                (format!("many{number}.json"), format!("{{\"job\": \"plain\", \"args\": [\"{number}\"]}}"));
            let path = PathBuf::from("/c/Triggers").join(&name);
            let bytes = bytes.into_bytes();
            self.world.drop_file(&path, bytes.clone());
            self.dropped.push(Dropped { name, bytes, may_end_as: &["processed"], key: None });
        }
    }

    fn drop_trigger(&mut self) {
        self.count += 1;
        let names: Vec<String> = jobs().into_keys().collect();
        let job = self.chance.pick(&names).clone();
        let number = self.count;
        let mut keys = vec![format!("\"args\": [{number}]")];
        let has_containers = self.world.has_containers;
        if self.chance.one_in(if has_containers { 3 } else { 8 }) {
            keys.push(r#""command": ["y"]"#.to_owned());
            keys.extend(has_containers.then(|| r#""docker": {"image": "i"}"#.to_owned()));
        } else {
            keys.push(format!("\"job\": \"{job}\""));
        }
        if self.chance.one_in(4) {
            keys.push(format!("\"priority\": {}", self.chance.below(20)));
        }
        let mut may_end_as: &'static [&'static str] = &["processed"];
        let mut key = None;
        if self.chance.one_in(6) {
            let id = format!("key{}", self.chance.below(3));
            keys.push(format!("\"id\": \"{id}\""));
            key = Some(id);
            may_end_as = &["processed", "duplicate"];
        }
        if self.chance.one_in(8) {
            let at = self.world.wall() + chrono::TimeDelta::seconds(self.chance.between(0, 20).cast_signed());
            let word = if self.chance.one_in(2) { "time" } else { "expires" };
            keys.push(format!("\"{word}\": \"{}\"", at.to_rfc3339()));
        }
        let text = format!("{{{}}}", keys.join(", "));
        let name = if self.chance.one_in(5) { "same.json".to_owned() } else { format!("t{number}.json") };
        let path = PathBuf::from("/c/Triggers").join(&name);
        if self.world.files.borrow().contains_key(&path) {
            return;
        }
        self.dropped.push(Dropped { name, bytes: text.clone().into_bytes(), may_end_as, key });
        if self.chance.one_in(5) {
            let half = text.len() / 2;
            self.world.drop_file(&path, text.as_bytes()[..half].to_vec());
            // A slow writer is not slower than 2 s: it is done before its file counts as still.
            let takes = if self.world.is_kept { 0 } else { self.chance.below(1_900) };
            let done_at = self.world.now.get() + Duration::from_millis(takes);
            self.world.torn.borrow_mut().push((done_at, path, text.into_bytes()));
            self.world.go_on_writing();
        } else {
            self.world.drop_file(&path, text.into_bytes());
        }
    }

    fn drop_junk(&mut self) {
        self.count += 1;
        let name = format!("junk{}.json", self.count);
        let texts = ["{", "{\"job\": \"nobody\"", "[]", "{\"job\": \"plain\", \"jbo\": 1}", "{\"job\": \"unknown\"}"];
        let text = format!("{}{}", self.chance.pick(&texts), " ".repeat(self.count as usize));
        let path = PathBuf::from("/c/Triggers").join(&name);
        self.dropped.push(Dropped { name, bytes: text.clone().into_bytes(), may_end_as: &["rejected"], key: None });
        self.world.drop_file(&path, text.into_bytes());
    }

    /// A file of the devices' is found empty, or cut in half, as after a power cut. What the state says is hurt apart.
    fn damage_a_file(&mut self) {
        let folders = ["/c/Results", "/c/Triggers/.ids", "/c/Triggers/.waiting", "/c/Triggers/.running", "/c/Devices"];
        let folder = *self.world.chance.borrow_mut().pick(&folders);
        let files = self.world.files.borrow();
        let paths: Vec<PathBuf> = files.keys().filter(|path| path.starts_with(folder)).cloned().collect();
        drop(files);
        if paths.is_empty() {
            return;
        }
        let path = self.world.chance.borrow_mut().pick(&paths).clone();
        let before = Rc::clone(&self.world.files.borrow()[&path].bytes);
        // Due times have no file but these: without them nobody can know that they were.
        let is_own = path.starts_with("/c/Triggers") && super::disk::is_own(&before);
        if is_own || path.extension().is_none_or(|ending| ending != "json") && !path.starts_with("/c/Triggers/.ids") {
            return;
        }
        let half = if self.world.one_in(2) { 0 } else { before.len() / 2 };
        self.world.check.borrow_mut().damaged(&path, &before);
        self.world.put(&path, before[..half].to_vec());
    }

    fn hurt_the_state(&mut self) {
        let path = Path::new("/c/state.json");
        if !self.world.files.borrow().contains_key(path) {
            return;
        }
        self.world.check.borrow_mut().state_hurt();
        // As a person who removes the folder of revisions, or a power cut that takes all that was not synced.
        self.world.files.borrow_mut().retain(|path, _| !path.starts_with("/c/.revisions"));
        if self.chance.one_in(2) {
            self.world.take_out(path);
        } else {
            let half = { self.world.files.borrow()[path].bytes.len() / 2 };
            let bytes = self.world.files.borrow()[path].bytes[..half].to_vec();
            self.world.put(path, bytes);
        }
    }
}
