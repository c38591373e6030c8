//! The judge: invariants 1 to 11 of the lifecycle, checked from what happened in the world. It shares no rule with the
//! product: files are read as plain JSON, names are taken apart here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use aios::exec::Spec;
use aios::model::lease::Lease;
use aios::notify::Letter;
use serde_json::Value;

use super::keeping::is_of_run;
use super::scheduler::Machine;
use super::timed::Calendar;
use super::versions;
use super::world::{File, Process, World};

/// What the judge knows of a job, from the same table that the job files were written from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules {
    pub(crate) tags: Vec<&'static str>,
    pub(crate) exclusive: bool,
    pub(crate) once: bool,
}

/// A device, as the judge knows it.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    id: String,
    tags: Vec<&'static str>,
    slots: u64,
    lease: Duration,
}

impl From<&Machine> for Member {
    fn from(machine: &Machine) -> Self {
        let (id, tags) = (machine.id.to_string(), machine.tags.clone());
        Self { id, tags, slots: u64::from(machine.slots), lease: machine.lease }
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Checker {
    pub(crate) jobs: BTreeMap<String, Rules>,
    pub(crate) devices: Vec<Member>,
    /// Job files come and go: a trigger may be rejected because no device knows its job.
    pub(crate) jobs_vary: bool,
    /// The volume's clock is set now and then: what has its time may have it at another one.
    pub(crate) clock_is_set: bool,
    /// The most slots that people ever asked of each device: it may not have heard of the newest.
    asked: BTreeMap<String, u64>,
    /// Runs that a person asked to start anew.
    restarted: BTreeSet<String>,
    /// The newest state that was committed.
    current: Value,
    /// The devices that have moved files since their last commit.
    acted: BTreeSet<usize>,
    /// Devices whose last try to write their heartbeat failed.
    mute: BTreeSet<usize>,
    /// The devices that have committed and not yet woken the others.
    untold: BTreeSet<usize>,
    /// Nothing keeps devices from knowing each other, or from acting at once on what they know.
    pub(crate) is_undisturbed: bool,
    /// Devices see everything as it is.
    pub(crate) sees_truth: bool,
    /// Processes whose lease had gone when their device was last looked at, and how many beats it had written then.
    stray: BTreeMap<(usize, Lease), u64>,
    beats: BTreeMap<usize, u64>,
    /// The first time at which each session was heard, and the last two of each device.
    first_beat: BTreeMap<String, Duration>,
    last_beats: BTreeMap<usize, (Duration, Duration)>,
    /// The slots that each device took by the newest state.
    taken: BTreeMap<String, u64>,
    pub(crate) violations: Vec<String>,
    /// A person damaged or removed the state: the next one begins a new chain.
    pub(crate) state_was_hurt: bool,
    /// Now or earlier.
    state_was_ever_hurt: bool,
    newest: Option<(u64, Vec<(u64, String)>)>,
    holders: BTreeMap<(String, u64), (String, String)>,
    /// When each attempt was first committed.
    claimed: BTreeMap<(String, u64), Duration>,
    spawned: BTreeMap<(String, u64), usize>,
    spawns: BTreeMap<String, u64>,
    results: BTreeMap<PathBuf, Rc<Vec<u8>>>,
    /// The content of files before they were damaged.
    damaged: BTreeMap<PathBuf, Rc<Vec<u8>>>,
    finals: BTreeMap<String, (PathBuf, u64)>,
    /// For how long files are kept here, and what was removed because it was kept for longer.
    pub(crate) keep: Duration,
    gone: BTreeMap<PathBuf, File>,
    pub(crate) calendar: Calendar,
    pub(crate) commits: u64,
    pub(crate) accepted: u64,
    /// The jobs that have a webhook.
    pub(crate) hooked: Vec<String>,
    /// Nothing hinders a device between its commit and the telling.
    pub(crate) tells_in_order: bool,
    /// What each job's webhook was told: the event and the result's path, without what was told again.
    told: BTreeMap<String, Vec<(String, PathBuf)>>,
    pub(crate) letters: usize,
    /// What each job's webhook should have heard: each final result that ends otherwise than the one before.
    turns: BTreeMap<String, Vec<(String, PathBuf)>>,
}

impl Checker {
    fn broken(&mut self, invariant: u32, what: String) {
        self.violations.push(format!("invariant {invariant}: {what}"));
    }

    /// Before something is put at a path.
    pub(crate) fn before_replace(&mut self, to: &Path, files: &BTreeMap<PathBuf, File>) {
        let replaceable = to.ends_with("state.json")
            || to.ends_with(".state.lock")
            || to.starts_with("/c/Devices")
            || is_hidden(to)
            || to.starts_with("/c/Triggers/.ids");
        if files.contains_key(to) && !replaceable {
            self.broken(5, format!("{} was replaced", to.display()));
        }
    }

    /// Something was moved.
    pub(crate) fn moved(&mut self, from: &Path, to: &Path, device: usize, world: &World) {
        let bytes = Rc::clone(&world.files.borrow()[to].bytes);
        if is_outward(to) {
            self.acted.insert(device);
        }
        if to.ends_with("state.json") {
            if serde_json::from_slice::<Value>(&bytes).is_err() {
                self.broken(7, "state.json is half a document".into());
            }
        } else if to.starts_with("/c/Results") && to.to_string_lossy().contains(".damaged-") {
            self.set_aside(from);
        } else if to.starts_with("/c/Results") && !is_hidden(to) {
            self.recorded(to, &bytes, device, world);
        }
    }

    /// A file was given a second name.
    pub(crate) fn linked(&mut self, from: &Path, to: &Path, (device, is_newer): (usize, bool), world: &World) {
        let number = |path: &Path| path.file_stem()?.to_str()?.parse::<u64>().ok();
        let made = world
            .files
            .borrow()
            .keys()
            .filter(|path| path.starts_with("/c/.revisions"))
            .filter_map(|p| number(p))
            .max();
        if to.starts_with("/c/.revisions") {
            // Below the newest one it is the name of an old revision, taken too late.
            if number(to) < made {
                return;
            }
            let bytes = Rc::clone(&world.files.borrow()[to].bytes);
            if !(is_newer || self.state_was_hurt || versions::is_known_to_older(&self.current_schema())) {
                self.violations.push(format!("machine {device} committed to a state that its program does not know"));
            }
            self.committed(&bytes, device, world);
        } else {
            self.moved(from, to, device, world);
        }
    }

    /// The schema of the newest state; that of the older program before there is any.
    fn current_schema(&self) -> Value {
        self.current.get("schema").cloned().unwrap_or_else(|| 1.into())
    }

    pub(crate) fn removed(&mut self, path: &Path, own: bool, device: usize) {
        if is_outward(path) {
            self.acted.insert(device);
        }
        if self.results.contains_key(path) {
            self.broken(3, format!("the result {} was removed", path.display()));
        }
        if !own && path.starts_with("/c/Triggers") && !is_hidden(path) && !path.starts_with("/c/Triggers/.ids") {
            self.broken(5, format!("{} was removed", path.display()));
        }
    }

    /// A file was removed because it was kept long enough: it is old, nothing that is open or the last of its job, and no key counts on it.
    pub(crate) fn kept_long_enough(&mut self, path: &Path, world: &World) {
        let files = world.files.borrow();
        let Some(file) = files.get(path).cloned() else { return };
        let age = world.now.get().saturating_sub(file.written);
        let is_of = |run: &str| is_of_run(path, run);
        let holds = |name: &Path| {
            let name = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.split('.').any(|part| part.len() > 20 && is_of(part))
        };
        let in_hand = ["/c/Triggers/.running", "/c/Triggers/.waiting"];
        let mut moving = files.keys().filter(|file| in_hand.iter().any(|folder| file.starts_with(folder)));
        let is_open = moving.any(|file| holds(file)) || keys_of(&self.current["runs"]).any(|run| is_of(run));
        let mut marks = self.current["jobs"].as_object().into_iter().flatten();
        let is_last = marks.any(|(_, mark)| mark["last_run_id"].as_str().is_some_and(&is_of));
        let mut keys = files.iter().filter(|(path, _)| path.starts_with("/c/Triggers/.ids"));
        let is_keyed = path.starts_with("/c/Results")
            && keys.any(|(_, key)| {
                let key = serde_json::from_slice::<Value>(&key.bytes).unwrap_or_default();
                key["run_id"].as_str().is_some_and(&is_of)
            });
        if age < self.keep && !self.clock_is_set || is_open || is_last || is_keyed {
            self.violations.push(format!(
                "{} was removed after {age:?}; open: {is_open}, the last of its job: {is_last}, named by a key: {is_keyed}",
                path.display()
            ));
        }
        self.gone.insert(path.to_owned(), file);
    }

    fn committed(&mut self, bytes: &[u8], device: usize, world: &World) {
        let Ok(state) = serde_json::from_slice::<Value>(bytes) else {
            self.broken(7, "a revision is half a document".into());
            return;
        };
        let revision = state["revision"].as_u64().unwrap_or(0);
        // Who was passed by may find the name of its revision free again. It is older than the newest, and nobody goes by it.
        if !self.state_was_hurt && self.newest.as_ref().is_some_and(|(newest, _)| revision < *newest) {
            return;
        }
        self.commits += 1;
        let chain: Vec<(u64, String)> = state["last_commits"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|link| (link[0].as_u64().unwrap_or(0), link[1].as_str().unwrap_or("").to_owned()))
            .collect();
        // A state that was lost may be made anew while one that had not heard of it commits to the old one.
        if !(self.state_was_ever_hurt && state["rebuilt"] == revision) {
            self.chained(revision, &chain, world);
        }
        self.shared(&state, &world.files.borrow());
        let wrong = self.calendar.committed(&state, self.state_was_ever_hurt);
        self.violations.extend(wrong);
        self.fenced(&state, world);
        let acted = self.acted.remove(&device);
        self.changed(&state, acted);
        self.claimed_by(device, &state, world);
        self.untold.insert(device);
        for request in state["requests"].as_array().into_iter().flatten().filter(|it| it["do"] == "restart") {
            self.restarted.insert(request["run"].as_str().unwrap_or("").to_owned());
        }
        for setting in state["settings"].as_array().into_iter().flatten() {
            let most = self.asked.entry(setting["for"].as_str().unwrap_or("").to_owned()).or_default();
            *most = (*most).max(setting["slots"].as_u64().unwrap_or(0));
        }
        self.newest = Some((revision, chain));
        self.current = state;
        self.state_was_hurt = false;
    }

    /// No commit without a change, of the state or of files: each costs all devices a look.
    fn changed(&mut self, state: &Value, acted: bool) {
        let is_sure = !self.state_was_hurt && self.newest.is_some();
        let parts = ["runs", "jobs", "requests", "settings", "rebuilt"];
        if is_sure && !acted && parts.iter().all(|part| state[part] == self.current[part]) {
            self.violations.push(format!("revision {} changes nothing", state["revision"]));
        }
    }

    /// A device that cannot write its heartbeat claims nothing.
    fn claimed_by(&mut self, device: usize, state: &Value, world: &World) {
        // Where the lock lies, a claim of earlier may come back.
        if !self.mute.contains(&device) {
            return;
        }
        let living = world.living.borrow().get(&device).cloned();
        let mine = |state: &Value, run: &str| {
            let held = &state["runs"][run];
            (held["session"].as_str() == living.as_deref()).then(|| held["attempt"].as_u64())
        };
        for (run, held) in state["runs"].as_object().into_iter().flatten() {
            let has_now = mine(state, run);
            let goes_on = held["cause"] == "always" || mine(&self.current, run).is_some();
            if has_now.is_some() && !goes_on && self.newest.is_some() && !self.state_was_ever_hurt {
                self.violations.push(format!("a device that cannot write its heartbeat claimed {run}"));
            }
        }
    }

    /// A device tried to write its heartbeat.
    pub(crate) fn beat(&mut self, device: usize, session: Option<String>, now: Duration, done: bool) {
        if !done {
            self.mute.insert(device);
            return;
        }
        self.mute.remove(&device);
        *self.beats.entry(device).or_default() += 1;
        if let Some(session) = session {
            self.first_beat.entry(session).or_insert(now);
        }
        let (last, _) = self.last_beats.get(&device).copied().unwrap_or_default();
        self.last_beats.insert(device, (now, last));
    }

    /// A device wakes those who watch.
    pub(crate) fn told_others(&mut self, device: usize) {
        self.untold.remove(&device);
    }

    /// A device has had its turn: of what it committed the others were told, if it knew any.
    pub(crate) fn had_its_turn(&mut self, device: usize, world: &World) {
        self.fenced_in_time(device, world);
        let committed = self.untold.remove(&device);
        if !committed || !self.is_undisturbed {
            return;
        }
        let before = self.last_beats.get(&device).map_or(Duration::ZERO, |(_, before)| *before);
        let now = world.now.get();
        let is_known = |(index, session): (&usize, &String)| {
            let first = self.first_beat.get(session).copied().unwrap_or(Duration::MAX);
            let last = self.last_beats.get(index).map_or(Duration::ZERO, |(last, _)| *last);
            *index != device && first < before && now - last < Duration::from_secs(3)
        };
        if world.living.borrow().iter().any(is_known) {
            self.violations.push("a commit was made, and nobody was woken".to_owned());
        }
    }

    /// A device that has lost a lease stops its attempt within a beat of being able to read that.
    fn fenced_in_time(&mut self, device: usize, world: &World) {
        if !self.sees_truth || self.state_was_ever_hurt {
            return;
        }
        let (living, now) = (world.living.borrow(), world.now.get());
        let session = living.get(&device).map_or("", String::as_str);
        let mut stray = BTreeMap::new();
        // What an earlier life left in a container is looked for each minute.
        let is_native = |process: &&Process| process.device == device && process.alive && process.container.is_none();
        for process in world.processes.borrow().iter().filter(is_native) {
            let lease = &process.lease;
            let held = &self.current["runs"][lease.run.as_str()];
            let is_own = held["session"] == session && held["attempt"] == lease.attempt;
            if is_own || process.stopped.is_some() || process.ends_at <= now {
                continue;
            }
            let beats = self.beats.get(&device).copied().unwrap_or(0);
            let key = (device, lease.clone());
            // Who still stands there with the lock keeps it from finding out.
            let is_locked = world.locks.borrow().keys().any(|path| path.ends_with(".state.lock"));
            let since = self.stray.get(&key).copied().filter(|_| !is_locked).unwrap_or(beats);
            // One beat to see it, one that may be written before the look, and one for a commit that was refused.
            if beats > since + 3 {
                self.violations.push(format!("attempt {} of {} goes on without its lease", lease.attempt, lease.run));
            }
            stray.insert(key, since);
        }
        self.stray.retain(|(other, _), _| *other != device);
        self.stray.extend(stray);
    }

    /// A run that ends with a failure has been tried as often as its job says.
    fn tried_often_enough(&mut self) {
        let is_sure = !self.state_was_ever_hurt && self.damaged.is_empty() && !self.jobs_vary;
        if !is_sure {
            return;
        }
        let mut failures: BTreeMap<String, u64> = BTreeMap::new();
        let mut last: Vec<(String, u64)> = Vec::new();
        for bytes in self.results.values() {
            let Ok(result) = serde_json::from_slice::<Value>(bytes) else { continue };
            let (run, job) = (result["run_id"].as_str().unwrap_or(""), result["job"].as_str().unwrap_or(""));
            let most = match job {
                "again" => 3,
                "queued_again" => 2,
                _ => continue,
            };
            if result["status"] == "failed" || result["status"] == "timed_out" {
                *failures.entry(run.to_owned()).or_default() += 1;
                if result["final"] == true {
                    last.push((run.to_owned(), most));
                }
            }
        }
        for (run, most) in last {
            let count = failures.get(&run).copied().unwrap_or(0);
            if count != most {
                self.violations.push(format!("{run} ended after {count} failures, and may have {most}"));
            }
        }
    }

    /// A life is over: what it did not say any more nobody can ask it for.
    pub(crate) fn died(&mut self, device: usize) {
        self.untold.remove(&device);
        self.mute.remove(&device);
    }

    /// All lives are over at once.
    pub(crate) fn lost_power(&mut self) {
        self.acted.clear();
        self.untold.clear();
        self.mute.clear();
        self.stray.clear();
    }

    /// Invariant 6.
    fn chained(&mut self, revision: u64, chain: &[(u64, String)], world: &World) {
        let Some((before, old)) = self.newest.clone() else { return };
        if self.state_was_hurt {
            let files = world.files.borrow();
            let beats = files.iter().filter(|(path, _)| path.starts_with("/c/Devices"));
            let seen =
                beats.filter_map(|(_, file)| serde_json::from_slice::<Value>(&file.bytes).ok()?["revision"].as_u64());
            if let Some(seen) = seen.max().filter(|seen| revision <= *seen) {
                self.broken(6, format!("the rebuilt state has revision {revision}, and a heartbeat has seen {seen}"));
            }
            return;
        }
        let continues = revision == before + 1
            && chain.first().is_some_and(|(newest, _)| *newest == revision)
            && chain[1..] == old[..old.len().min(chain.len() - 1)];
        if !continues {
            self.broken(6, format!("revision {revision} {chain:?} does not continue {before} {old:?}"));
        }
    }

    /// Invariants 1 and 2, from the state's side: an attempt number belongs to one holder for ever.
    fn fenced(&mut self, state: &Value, world: &World) {
        let now = world.now.get();
        for (run, held) in state["runs"].as_object().into_iter().flatten() {
            let (Some(device), Some(session)) = (held["device"].as_str(), held["session"].as_str()) else { continue };
            let attempt = held["attempt"].as_u64().unwrap_or(0);
            let holder = (device.to_owned(), session.to_owned());
            self.claimed.entry((run.clone(), attempt)).or_insert(now);
            let known = self.holders.entry((run.clone(), attempt)).or_insert_with(|| holder.clone()).clone();
            // The next life of a device takes over what goes on in a container.
            if known.0 == holder.0 && world.has_container(run, attempt) {
                self.holders.insert((run.clone(), attempt), holder);
            } else if known != holder {
                self.broken(2, format!("attempt {attempt} of {run} belongs to {known:?} and to {holder:?}"));
            }
        }
    }

    /// Invariant 8.
    fn shared(&mut self, state: &Value, files: &BTreeMap<PathBuf, File>) {
        let mut busy: BTreeMap<String, u64> = BTreeMap::new();
        let mut open: BTreeMap<String, u64> = BTreeMap::new();
        for held in state["runs"].as_object().into_iter().flatten().map(|(_, held)| held) {
            let job = held["job"].as_str().unwrap_or("").to_owned();
            *open.entry(job.clone()).or_default() += 1;
            if let Some(device) = held["device"].as_str() {
                *busy.entry(device.to_owned()).or_default() += held["slots"].as_u64().unwrap_or(1);
                let needs = self.jobs.get(&job).map(|rules| rules.tags.clone()).unwrap_or_default();
                let has = self.devices.iter().find(|it| it.id == device).map(|it| it.tags.clone()).unwrap_or_default();
                if let Some(missing) = needs.iter().find(|tag| !has.contains(tag)) {
                    self.broken(8, format!("{device} holds {job} without the tag {missing}"));
                }
            }
        }
        for (device, used) in &busy {
            // What was claimed before people took slots away stays.
            let before = self.taken.get(device).copied().unwrap_or(0);
            let slots = self.slots_of(device, state, files);
            if *used > slots && *used > before {
                self.broken(8, format!("{device} holds {used} slots and has {slots}"));
            }
        }
        self.taken = busy;
        for (job, count) in open {
            if count > 1 && self.jobs.get(&job).is_some_and(|rules| rules.exclusive) {
                self.broken(8, format!("{count} runs of {job} are open at once"));
            }
        }
    }

    /// The most slots that a device can know to have: what it began with, what its heartbeat says, or what was asked of it.
    fn slots_of(&self, device: &str, state: &Value, files: &BTreeMap<PathBuf, File>) -> u64 {
        let began = self.devices.iter().find(|it| it.id == device).map_or(0, |it| it.slots);
        let beat = files.get(&PathBuf::from(format!("/c/Devices/{device}.json")));
        let beat = beat.and_then(|file| serde_json::from_slice::<Value>(&file.bytes).ok());
        let said = beat.and_then(|beat| beat["slots"].as_u64()).unwrap_or(began);
        let asked = state["settings"].as_array().into_iter().flatten().filter(|it| it["for"] == device);
        // A device that was forgotten begins anew with what it was started with.
        let earlier = self.asked.get(device).map_or(0, |most| began.max(*most));
        asked.filter_map(|it| it["slots"].as_u64()).fold(said.max(earlier), u64::max)
    }

    /// A result became visible: invariants 3, 4, 7 and 11.
    fn recorded(&mut self, path: &Path, bytes: &Rc<Vec<u8>>, device: usize, world: &World) {
        self.results.insert(path.to_owned(), Rc::clone(bytes));
        let Ok(result) = serde_json::from_slice::<Value>(bytes) else {
            self.broken(7, format!("{} is half a document", path.display()));
            return;
        };
        let run = result["run_id"].as_str().unwrap_or("").to_owned();
        let attempt = result["attempt"].as_u64().unwrap_or(0);
        if path.to_string_lossy().ends_with(".superseded.json") {
            return;
        }
        self.accepted += 1;
        if let Some((first, at)) = self.finals.get(&run).cloned() {
            self.broken(
                3,
                format!("{} was accepted after the final {} (attempt {at})", path.display(), first.display()),
            );
        }
        if result["final"] == Value::Bool(true) {
            self.finals.insert(run.clone(), (path.to_owned(), attempt));
            self.turned(path, &result);
        }
        let holder = self.holders.get(&(run.clone(), attempt)).cloned();
        let lives =
            holder.as_ref().is_some_and(|(_, held)| world.living.borrow().values().any(|living| living == held));
        let member = holder.as_ref().and_then(|(id, _)| self.devices.iter().position(|it| it.id == *id));
        let claimed = self.claimed.get(&(run.clone(), attempt)).copied();
        let lease = member.map(|at| self.devices[at].lease).unwrap_or_default();
        let is_fresh = claimed.is_some_and(|at| world.now.get() - at < lease);
        // A device that was told that its commit had failed, and finds it done, ends by itself what it does not know.
        // Who has never read a heartbeat does not know its device's lease.
        let is_told = holder.as_ref().is_none_or(|(id, _)| !self.has_damaged_beat(id));
        // Who takes an id over by force ends what its holder had.
        let own_id = |(id, _): &(String, String)| self.devices.get(device).is_some_and(|it| it.id == *id);
        let is_other = !holder.as_ref().is_some_and(own_id);
        let is_clear = !self.state_was_ever_hurt && lives && is_other && is_told;
        if result["status"] == "lost" && is_clear && (world.calm.get() || is_fresh) {
            self.violations
                .push(format!("false death: attempt {attempt} of {run} was called lost and its device lives, claimed {claimed:?}, now {:?}", world.now.get()));
        }
        let reporter = result["device"].as_str().unwrap_or("").to_owned();
        let own = self.devices.get(device).is_some_and(|it| it.id == reporter);
        let alive = world.processes.borrow().iter().any(|process| {
            process.alive
                && process.device == device
                && process.lease.run.as_str() == run
                && u64::from(process.lease.attempt) == attempt
        });
        if own && alive {
            self.broken(11, format!("attempt {attempt} of {run} is recorded as over and still runs on {reporter}"));
        }
    }

    /// A run is over: whether its job's webhook should hear of it.
    fn turned(&mut self, path: &Path, result: &Value) {
        let Some(event) = event_of(result) else { return };
        let turns = self.turns.entry(result["job"].as_str().unwrap_or("").to_owned()).or_default();
        let before = turns.last().map_or("recovered", |(event, _)| event.as_str());
        if before != event {
            turns.push((event.to_owned(), path.to_owned()));
        }
    }

    /// A webhook is told something: a final result that stands there, as it stands there.
    pub(crate) fn told(&mut self, letter: &Letter) {
        let (run, attempt) = (&letter.news.run_id, letter.news.attempt);
        let name = format!("{}.{run}.{attempt}.json", letter.job);
        let path = self.results.keys().find(|path| path.ends_with(&name)).cloned();
        let result = path.as_ref().and_then(|path| serde_json::from_slice::<Value>(&self.results[path]).ok());
        let mut said = serde_json::from_slice::<Value>(&letter.body).unwrap_or_default();
        let event = said.as_object_mut().and_then(|said| said.remove("event"));
        let event = event.as_ref().and_then(Value::as_str).unwrap_or("nothing").to_owned();
        let fits = result.as_ref().is_some_and(|result| {
            *result == said && result["final"] == true && event_of(result) == Some(event.as_str())
        });
        let Some(path) = path.filter(|_| fits) else {
            self.violations.push(format!("a webhook was told {event} of {name}: {said}, and there stands {result:?}"));
            return;
        };
        let told = self.told.entry(letter.job.to_string()).or_default();
        if told.last().is_none_or(|(_, last)| *last != path) {
            told.push((event, path));
        }
        self.letters += 1;
    }

    /// Once everything is told: each failure before its recovery, nothing that was no turn, and the last turn at last.
    fn all_told(&mut self) {
        if !self.tells_in_order {
            return;
        }
        for job in &self.hooked {
            let told = self.told.get(job).cloned().unwrap_or_default();
            let turns = self.turns.get(job).cloned().unwrap_or_default();
            let is_in_order = told.iter().enumerate().all(|(at, (event, _))| (event == "failed") == (at % 2 == 0));
            let is_true = told.iter().all(|told| turns.contains(told));
            let is_up_to_date = told.last().map(|(event, _)| event) == turns.last().map(|(event, _)| event);
            if !(is_in_order && is_true && is_up_to_date) {
                self.violations.push(format!("the webhook of {job} heard {told:?} of {turns:?}"));
            }
        }
    }

    /// A process was started: invariants 2, 3 and 9.
    pub(crate) fn spawned(&mut self, spec: &Spec, device: usize, world: &World) {
        let (run, attempt) = (spec.lease.run.as_str().to_owned(), u64::from(spec.lease.attempt));
        if let Some(before) = self.spawned.insert((run.clone(), attempt), device) {
            self.broken(2, format!("attempt {attempt} of {run} was started on machine {before} and on {device}"));
        }
        // A device that stands still between its commit and the start may start late what others have ended since; it is
        // fenced at its next beat. A new attempt after the end there must never be.
        if let Some((path, _)) = self.finals.get(&run).filter(|(_, last)| attempt > *last).cloned() {
            self.broken(3, format!("attempt {attempt} of {run} was started after its final result {}", path.display()));
        }
        let job = spec.env.get("AIOS_JOB").cloned().unwrap_or_default();
        let spawns = self.spawns.entry(run.clone()).or_default();
        *spawns += 1;
        let spawns = *spawns;
        let may_be_again = self.restarted.contains(&run);
        if self.jobs.get(&job).is_some_and(|rules| rules.once) && spawns > 1 && !may_be_again {
            self.broken(9, format!("{job} may start once and was started {spawns} times ({run})"));
        }
        self.in_time(spec, attempt == 1, world);
        // No effect before its commit: the state must name this attempt, or have been hurt since.
        if !self.state_was_hurt {
            let files = world.files.borrow();
            let state = files
                .get(Path::new("/c/state.json"))
                .and_then(|file| serde_json::from_slice::<Value>(&file.bytes).ok());
            let named = state.is_some_and(|state| state["runs"][&run]["attempt"].as_u64() == Some(attempt));
            let committed = self.holders.contains_key(&(run.clone(), attempt));
            if !named && !committed {
                self.broken(1, format!("attempt {attempt} of {run} was started before any commit named it"));
            }
        }
    }

    /// Nothing starts before its `time`, or for the first time after its `expires`; on the volume's clock, whatever a machine's
    /// own says.
    fn in_time(&mut self, spec: &Spec, is_first: bool, world: &World) {
        let path = Path::new(spec.env.get("AIOS_TRIGGER").map_or("", String::as_str));
        let trigger = world.files.borrow().get(path).and_then(|file| serde_json::from_slice::<Value>(&file.bytes).ok());
        let Some(trigger) = trigger else { return };
        // Until its next beat a device goes by what the volume's clock was.
        if self.clock_is_set {
            return;
        }
        let of = |key: &str| chrono::DateTime::parse_from_rfc3339(trigger[key].as_str()?).ok();
        let (now, run) = (world.wall(), &spec.lease.run);
        // As exactly as a device can tell the volume's time: by how long a write takes.
        if let Some(time) = of("time").filter(|time| now + chrono::TimeDelta::milliseconds(1) < *time) {
            self.violations.push(format!("{run} was started at {now}, before its time {time}"));
        }
        // Who stands still between the claim and the start, or finds the disk full, starts late.
        let expired = of("expires").filter(|at| is_first && now > *at + chrono::TimeDelta::seconds(1));
        if let Some(at) = expired.filter(|_| world.punctual.get()) {
            self.violations.push(format!("{run} was started at {now} for the first time, after it expired at {at}"));
        }
    }

    /// A person removed or damaged the state.
    pub(crate) fn state_hurt(&mut self) {
        (self.state_was_hurt, self.state_was_ever_hurt) = (true, true);
    }

    /// A file was damaged.
    pub(crate) fn damaged(&mut self, path: &Path, before: &Rc<Vec<u8>>) {
        self.damaged.entry(path.to_owned()).or_insert_with(|| Rc::clone(before));
    }

    /// A result that nobody can read was set aside: its attempt has none any more.
    fn set_aside(&mut self, path: &Path) {
        if self.damaged.remove(path).is_none() {
            self.broken(3, format!("the result {} is whole and was set aside", path.display()));
        }
        self.results.remove(path);
        self.finals.retain(|_, (result, _)| result != path);
    }

    /// Returns whether the heartbeat of a device was damaged.
    fn has_damaged_beat(&self, device: &str) -> bool {
        self.damaged.contains_key(Path::new(&format!("/c/Devices/{device}.json")))
    }

    /// Returns whether a file with this content was damaged.
    pub(crate) fn was_damaged(&self, bytes: &[u8]) -> bool {
        self.damaged.values().any(|before| before.as_slice() == bytes)
    }

    /// The files as they would be had none been damaged, or removed because it was old.
    pub(crate) fn undamaged(&self, files: &BTreeMap<PathBuf, File>) -> BTreeMap<PathBuf, File> {
        let mut whole = self.gone.clone();
        whole.extend(files.iter().map(|(path, file)| (path.clone(), file.clone())));
        for (path, before) in &self.damaged {
            if let Some(file) = whole.get_mut(path) {
                file.bytes = Rc::clone(before);
            }
        }
        whole
    }

    /// Returns the number of final results of each run.
    fn finals_by_run(&self) -> BTreeMap<String, usize> {
        let mut finals = BTreeMap::new();
        for (path, _) in self.results.iter().filter(|(_, bytes)| is_final(bytes)) {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let run = name.rsplit('.').nth(1).unwrap_or_default().to_owned();
            *finals.entry(run).or_default() += 1;
        }
        finals
    }

    /// Invariants 3, 4 and 5 over everything, once all is quiet.
    pub(crate) fn at_the_end(&mut self, dropped: &[Dropped], files: &BTreeMap<PathBuf, File>) {
        self.all_told();
        self.tried_often_enough();
        let state = files.get(Path::new("/c/state.json"));
        let state = state.and_then(|file| serde_json::from_slice::<Value>(&file.bytes).ok()).unwrap_or_default();
        let newest = self.newest.as_ref().map(|(newest, _)| *newest);
        if !self.state_was_hurt && state["revision"].as_u64() != newest {
            self.broken(6, format!("the state has revision {} and {newest:?} was committed", state["revision"]));
        }
        let files = &self.undamaged(files);
        for (path, bytes) in self.results.clone() {
            if files.get(&path).is_none_or(|file| file.bytes != bytes) {
                self.broken(3, format!("the result {} changed or went", path.display()));
            }
        }
        let finals = self.finals_by_run();
        let mut ends: BTreeMap<&[u8], Vec<&PathBuf>> = BTreeMap::new();
        let is_end = |path: &&PathBuf| {
            path.starts_with("/c/TriggersProcessed")
                && !is_hidden(path)
                && !path.to_string_lossy().ends_with(".error.json")
        };
        for path in files.keys().filter(is_end) {
            ends.entry(&files[path].bytes).or_default().push(path);
        }
        for drop in dropped.iter().filter(|drop| !self.was_damaged(&drop.bytes)).cloned().collect::<Vec<_>>() {
            let found = ends.get(drop.bytes.as_slice()).map_or(&[][..], |paths| paths.as_slice());
            if found.len() != 1 {
                let text = String::from_utf8_lossy(&drop.bytes);
                self.broken(5, format!("{} ended {} times: {found:?}: {text}", drop.name, found.len()));
                continue;
            }
            let path = found[0].to_string_lossy().into_owned();
            let kind = if path.contains("/rejected/") {
                "rejected"
            } else if path.contains(".duplicate-of.") {
                "duplicate"
            } else {
                "processed"
            };
            if !(drop.may_end_as.contains(&kind) || kind == "rejected" && self.jobs_vary) {
                self.broken(5, format!("{} ended as {kind}: {path}", drop.name));
            }
            if kind == "processed" {
                let run = path.trim_end_matches(".json").rsplit('.').next().unwrap_or("").to_owned();
                let count = finals.get(&run).copied().unwrap_or(0);
                if count != 1 {
                    self.broken(4, format!("{} is processed and has {count} final results", drop.name));
                }
            }
        }
        let keys: BTreeSet<&str> = dropped.iter().filter_map(|drop| drop.key.as_deref()).collect();
        for key in keys {
            let runs = dropped.iter().filter(|drop| drop.key.as_deref() == Some(key));
            let is_run = |path: &&PathBuf| {
                !path.to_string_lossy().contains(".duplicate-of.") && !path.starts_with("/c/TriggersProcessed/rejected")
            };
            let processed =
                runs.filter(|drop| ends.get(drop.bytes.as_slice()).is_some_and(|paths| paths.iter().any(&is_run)));
            let count = processed.count();
            let is_damaged = self.damaged.keys().any(|path| path.starts_with("/c/Triggers/.ids"));
            if count > 1 && !is_damaged {
                let ends: Vec<_> = dropped
                    .iter()
                    .filter(|drop| drop.key.as_deref() == Some(key))
                    .map(|drop| ends.get(drop.bytes.as_slice()))
                    .collect();
                self.broken(5, format!("the key {key} had {count} runs: {ends:?}"));
            }
        }
    }
}

/// A file that the user dropped, complete.
#[derive(Debug, Clone)]
pub(crate) struct Dropped {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) may_end_as: &'static [&'static str],
    pub(crate) key: Option<String>,
}

fn is_final(bytes: &[u8]) -> bool {
    serde_json::from_slice::<Value>(bytes)
        .is_ok_and(|result| result["final"] == Value::Bool(true) && result["status"] != "superseded")
}

/// What a webhook hears of such an end, if anything.
fn event_of(result: &Value) -> Option<&'static str> {
    match result["status"].as_str()? {
        "failed" | "timed_out" | "lost" | "expired" => Some("failed"),
        "succeeded" => Some("recovered"),
        _ => None,
    }
}

/// Returns whether what becomes of a file is a change of its own, and not a part of how devices commit and beat.
fn is_outward(path: &Path) -> bool {
    let is_inner = ["/c/.revisions", "/c/Devices"].iter().any(|folder| path.starts_with(folder));
    !is_hidden(path) && !is_inner && !path.ends_with("state.json")
}

fn keys_of(object: &Value) -> impl Iterator<Item = &String> {
    object.as_object().into_iter().flat_map(serde_json::Map::keys)
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}
