//! The judge: invariants 1 to 11 of the lifecycle, checked from what happened in the world. It shares no rule with the
//! product: files are read as plain JSON, names are taken apart here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use aios::exec::Spec;
use aios::notify::Letter;
use serde_json::Value;

use super::timed::Calendar;
use super::world::{File, World};

/// What the judge knows of a job, from the same table that the job files were written from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules {
    pub(crate) tags: Vec<&'static str>,
    pub(crate) exclusive: bool,
    pub(crate) once: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Checker {
    pub(crate) jobs: BTreeMap<String, Rules>,
    pub(crate) devices: Vec<(String, Vec<&'static str>, u64)>,
    /// The lock excludes: invariants 1, 6 and 8 must hold too.
    pub(crate) honest_lock: bool,
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
    finals: BTreeMap<String, (PathBuf, u64)>,
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
    pub(crate) fn moved(&mut self, _from: &Path, to: &Path, device: usize, world: &World) {
        let bytes = Rc::clone(&world.files.borrow()[to].bytes);
        if to.ends_with("state.json") {
            if serde_json::from_slice::<Value>(&bytes).is_err() {
                self.broken(7, "state.json is half a document".into());
            }
        } else if to.starts_with("/c/Results") && !is_hidden(to) {
            self.recorded(to, &bytes, device, world);
        }
    }

    /// A file was given a second name.
    pub(crate) fn linked(&mut self, to: &Path, world: &World) {
        let number = |path: &Path| path.file_stem()?.to_str()?.parse::<u64>().ok();
        let made = world
            .files
            .borrow()
            .keys()
            .filter(|path| path.starts_with("/c/.revisions"))
            .filter_map(|p| number(p))
            .max();
        // Below the newest one it is the name of an old revision, taken too late.
        if to.starts_with("/c/.revisions") && number(to) == made {
            let bytes = Rc::clone(&world.files.borrow()[to].bytes);
            self.committed(&bytes, world);
        }
    }

    pub(crate) fn removed(&mut self, path: &Path, own: bool) {
        if self.results.contains_key(path) {
            self.broken(3, format!("the result {} was removed", path.display()));
        }
        if !own && path.starts_with("/c/Triggers") && !is_hidden(path) && !path.starts_with("/c/Triggers/.ids") {
            self.broken(5, format!("{} was removed", path.display()));
        }
    }

    fn committed(&mut self, bytes: &[u8], world: &World) {
        self.commits += 1;
        let Ok(state) = serde_json::from_slice::<Value>(bytes) else {
            self.broken(7, "a revision is half a document".into());
            return;
        };
        let revision = state["revision"].as_u64().unwrap_or(0);
        let chain: Vec<(u64, String)> = state["last_commits"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|link| (link[0].as_u64().unwrap_or(0), link[1].as_str().unwrap_or("").to_owned()))
            .collect();
        if self.honest_lock {
            // A state that was lost may be made anew while one that had not heard of it commits to the old one.
            if !(self.state_was_ever_hurt && state["rebuilt"] == revision) {
                self.chained(revision, &chain, world);
            }
            self.shared(&state);
        }
        let wrong = self.calendar.committed(&state, self.honest_lock, self.state_was_ever_hurt);
        self.violations.extend(wrong);
        self.fenced(&state, world.now.get());
        self.newest = Some((revision, chain));
        self.state_was_hurt = false;
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
    fn fenced(&mut self, state: &Value, now: Duration) {
        for (run, held) in state["runs"].as_object().into_iter().flatten() {
            let (Some(device), Some(session)) = (held["device"].as_str(), held["session"].as_str()) else { continue };
            let attempt = held["attempt"].as_u64().unwrap_or(0);
            let holder = (device.to_owned(), session.to_owned());
            self.claimed.entry((run.clone(), attempt)).or_insert(now);
            let known = self.holders.entry((run.clone(), attempt)).or_insert_with(|| holder.clone()).clone();
            if known != holder && self.honest_lock {
                self.broken(2, format!("attempt {attempt} of {run} belongs to {known:?} and to {holder:?}"));
            }
        }
    }

    /// Invariant 8.
    fn shared(&mut self, state: &Value) {
        let mut busy: BTreeMap<String, u64> = BTreeMap::new();
        let mut open: BTreeMap<String, u64> = BTreeMap::new();
        for held in state["runs"].as_object().into_iter().flatten().map(|(_, held)| held) {
            let job = held["job"].as_str().unwrap_or("").to_owned();
            *open.entry(job.clone()).or_default() += 1;
            if let Some(device) = held["device"].as_str() {
                *busy.entry(device.to_owned()).or_default() += held["slots"].as_u64().unwrap_or(1);
                let needs = self.jobs.get(&job).map(|rules| rules.tags.clone()).unwrap_or_default();
                let has = self
                    .devices
                    .iter()
                    .find(|(id, ..)| id == device)
                    .map(|(_, tags, _)| tags.clone())
                    .unwrap_or_default();
                if let Some(missing) = needs.iter().find(|tag| !has.contains(tag)) {
                    self.broken(8, format!("{device} holds {job} without the tag {missing}"));
                }
            }
        }
        for (device, used) in busy {
            let slots = self.devices.iter().find(|(id, ..)| *id == device).map_or(0, |(_, _, slots)| *slots);
            if used > slots {
                self.broken(8, format!("{device} holds {used} slots and has {slots}"));
            }
        }
        for (job, count) in open {
            if count > 1 && self.jobs.get(&job).is_some_and(|rules| rules.exclusive) {
                self.broken(8, format!("{count} runs of {job} are open at once"));
            }
        }
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
        let holder = self.holders.get(&(run.clone(), attempt)).map(|(_, session)| session.clone());
        let lives = holder.is_some_and(|session| world.living.borrow().values().any(|living| *living == session));
        let claimed = self.claimed.get(&(run.clone(), attempt)).copied();
        let is_fresh = claimed.is_some_and(|at| world.now.get() - at < super::scheduler::LEASE);
        let is_clear = self.honest_lock && !self.state_was_ever_hurt && lives;
        if result["status"] == "lost" && is_clear && (world.calm.get() || is_fresh) {
            self.violations
                .push(format!("false death: attempt {attempt} of {run} was called lost and its device lives, claimed {claimed:?}, now {:?}", world.now.get()));
        }
        let reporter = result["device"].as_str().unwrap_or("").to_owned();
        let own = self.devices.get(device).is_some_and(|(id, ..)| *id == reporter);
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
        if self.jobs.get(&job).is_some_and(|rules| rules.once) && spawns > 1 && self.honest_lock {
            self.broken(9, format!("{job} may start once and was started {spawns} times ({run})"));
        }
        self.in_time(spec, attempt == 1, world);
        // No effect before its commit: the state must name this attempt, or have been hurt since.
        if self.honest_lock && !self.state_was_hurt {
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

    /// Invariants 3, 4 and 5 over everything, once all is quiet.
    pub(crate) fn at_the_end(&mut self, dropped: &[Dropped], files: &BTreeMap<PathBuf, File>) {
        self.all_told();
        for (path, bytes) in self.results.clone() {
            if files.get(&path).is_none_or(|file| file.bytes != bytes) {
                self.broken(3, format!("the result {} changed or went", path.display()));
            }
        }
        let mut ends: BTreeMap<&[u8], Vec<&PathBuf>> = BTreeMap::new();
        let is_end = |path: &&PathBuf| {
            path.starts_with("/c/TriggersProcessed")
                && !is_hidden(path)
                && !path.to_string_lossy().ends_with(".error.json")
        };
        for path in files.keys().filter(is_end) {
            ends.entry(&files[path].bytes).or_default().push(path);
        }
        for drop in dropped {
            let found = ends.get(drop.bytes.as_slice()).map_or(&[][..], |paths| paths.as_slice());
            if found.len() != 1 {
                self.broken(5, format!("{} ended {} times: {found:?}", drop.name, found.len()));
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
            if !drop.may_end_as.contains(&kind) {
                self.broken(5, format!("{} ended as {kind}: {path}", drop.name));
            }
            if kind == "processed" {
                let run = path.trim_end_matches(".json").rsplit('.').next().unwrap_or("").to_owned();
                let finals = self
                    .results
                    .keys()
                    .filter(|result| result.to_string_lossy().contains(&run) && is_final(&self.results[*result]));
                let count = finals.count();
                if count != 1 {
                    self.broken(4, format!("{} is processed and has {count} final results", drop.name));
                }
            }
        }
        let keys: BTreeSet<&str> = dropped.iter().filter_map(|drop| drop.key.as_deref()).collect();
        for key in keys {
            let runs = dropped.iter().filter(|drop| drop.key.as_deref() == Some(key));
            let processed = runs.filter(|drop| {
                ends.get(drop.bytes.as_slice())
                    .is_some_and(|paths| paths.iter().any(|path| !path.to_string_lossy().contains(".duplicate-of.")))
            });
            let count = processed.count();
            if count > 1 && self.honest_lock {
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

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}
