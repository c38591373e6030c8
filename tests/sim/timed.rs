//! Jobs that run by themselves, and the judge of when they do: it computes due times by arithmetic of its own.
//!
//! Some worlds begin just before a change of the clocks in Berlin: 2026-03-29T01:00Z, when 02:00 to 03:00 local never comes,
//! and 2026-10-25T01:00Z, when it comes a second time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;

use super::rng::Rng;
use super::scheduler::Machine;
use super::world::{File, World};

/// The interval of the job of which no due time may be forgotten, seconds.
const EACH: i64 = 7;
/// The interval of the job that runs only the newest, seconds.
const NEWEST: i64 = 5;

/// The jobs and their files.
const JOBS: [(&str, &str); 14] = [
    ("each", "type = \"interval\"\ninterval = \"7s\"\nmissed = \"all\"\noverlap = \"queue\"\nslots = 0\n"),
    ("newest", "type = \"interval\"\ninterval = \"5s\"\nslots = 0\n"),
    ("slotted", "type = \"cron\"\ncron = \"*/6 * * * * *\"\nmissed = \"skip\"\njitter = \"2s\"\n"),
    ("gap", "type = \"daily\"\ntime = \"02:00:20\"\ntimezone = \"Europe/Berlin\"\nslots = 0\n"),
    ("gap_cron", "type = \"cron\"\ncron = \"40 30 2 * * *\"\ntimezone = \"Europe/Berlin\"\nslots = 0\n"),
    ("random", "type = \"random_daily\"\nafter_time = \"23:59:40\"\nbefore_time = \"00:00:20\"\nslots = 0\n"),
    ("web", "type = \"always\"\ninstances = 2\nbackoff = \"200ms\"\nbackoff_max = \"4s\"\n"),
    ("agent", "type = \"always\"\ninstances = \"every\"\nbackoff = \"1s\"\nbackoff_max = \"4s\"\n"),
    ("fill", "type = \"idle\"\nbackoff_max = \"4s\"\n"),
    ("p1", "type = \"interval\"\ninterval = \"3s\"\npool = \"one\"\nslots = 0\n"),
    ("p2", "type = \"interval\"\ninterval = \"4s\"\npool = \"one\"\nslots = 0\nretries = 1\n"),
    ("first", "type = \"interval\"\ninterval = \"11s\"\nslots = 0\non_success = [\"then\"]\non_failure = [\"else\"]\n"),
    ("then", "slots = 0\n"),
    ("else", "slots = 0\noverlap = \"queue\"\n"),
];
/// Waits for two others; its file comes with the rest.
const JOIN: (&str, &str) = ("join", "slots = 0\nafter = [\"then\", \"else\"]\n");

/// When a world begins: mostly at the turn of a day, else at a change of the clocks.
pub(crate) fn epoch(seed: u64) -> DateTime<Utc> {
    let mut chance = Rng::new(seed, "epoch");
    let at = *chance.pick(&["2026-11-21T23:59:30Z", "2026-03-29T00:59:40Z", "2026-10-25T00:59:40Z"]);
    at.parse().unwrap()
}

/// The keys that make a job run by itself.
const BY_ITSELF: [&str; 9] =
    ["type", "interval", "missed", "cron", "jitter", "time", "after_time", "before_time", "instances"];

/// Writes the job files; without `by_itself`, all run only when they are asked to.
pub(crate) fn write(world: &World, folders: &BTreeSet<PathBuf>, by_itself: bool) {
    for folder in folders {
        world.put(&folder.join("pools.toml"), b"one = 1\n".to_vec());
        for (name, text) in JOBS.into_iter().chain([JOIN]) {
            let stays = |line: &&str| by_itself || !BY_ITSELF.iter().any(|key| line.starts_with(key));
            let text: Vec<&str> = std::iter::once("command = [\"x\"]").chain(text.lines().filter(stays)).collect();
            let text = text.join("\n");
            world.put(&folder.join(format!("{name}.toml")), text.into_bytes());
        }
    }
}

/// What the judge has seen of timed jobs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Calendar {
    /// When each job first counted, by the state.
    since: BTreeMap<String, DateTime<Utc>>,
    /// A state was lost, and perhaps with it what was known of due times.
    was_lost: bool,
    /// The lock excludes, and no state was lost.
    is_sure: bool,
}

impl Calendar {
    /// Looks at a committed state: invariant 8 for daemons and pools, unless the lock lies or a state was `lost`.
    pub(crate) fn committed(&mut self, state: &Value, lost: bool) -> Vec<String> {
        let sure = !lost;
        (self.was_lost, self.is_sure) = (lost, sure);
        let mut wrong = Vec::new();
        for (job, mark) in state["jobs"].as_object().into_iter().flatten() {
            if let Some(since) = mark["since"].as_str().and_then(|text| text.parse().ok()) {
                // A state that is lost again and again with every device that knew it takes the first moment with it.
                let kept = self.since.entry(job.clone()).or_insert(since);
                *kept = if lost { since } else { *kept };
            }
        }
        let runs: Vec<&Value> = state["runs"].as_object().into_iter().flatten().map(|(_, held)| held).collect();
        let open = |job: &str| runs.iter().filter(|held| held["job"] == job && held["cause"] != "trigger").count();
        let pooled = runs.iter().filter(|held| held["pool"] == "one" && held["device"].is_string()).count();
        for (what, count, most) in [("web", open("web"), 2), ("fill", open("fill"), 1), ("the pool one", pooled, 1)] {
            if sure && count > most {
                wrong.push(format!("invariant 8: {count} of {what} at once"));
            }
        }
        let mut places = BTreeSet::new();
        for held in runs.iter().filter(|held| held["job"] == "agent") {
            if sure && !places.insert(held["only_on"].to_string()) {
                wrong.push(format!("invariant 8: agent twice on {}", held["only_on"]));
            }
        }
        wrong
    }

    /// Whether nothing that was due waits any more, and daemons are up.
    pub(crate) fn is_caught_up(&self, world: &World) -> bool {
        let files = world.files.borrow();
        let state = files.get(Path::new("/c/state.json"));
        let Some(state) = state.and_then(|state| serde_json::from_slice::<Value>(&state.bytes).ok()) else {
            return false;
        };
        let last = |job: &str| {
            let at = state["jobs"][job]["last_due_at"].as_str()?.parse::<DateTime<Utc>>().ok()?;
            Some((world.wall() - at).num_seconds())
        };
        let recent = |job: &str, every: i64| last(job).is_some_and(|age| age <= every + 2);
        let open = |job: &str| {
            let runs = state["runs"].as_object().into_iter().flatten();
            runs.filter(|(_, held)| held["job"] == job && held["cause"] == "always").count()
        };
        // A device without slots takes no daemon.
        let scheduler = world.scheduler.borrow().upgrade();
        let takes = |machine: &&Machine| machine.slots > 0 && machine.gone_at.is_none();
        let able = scheduler.map_or(0, |all| all.machines.iter().filter(takes).count().min(2));
        recent("each", EACH)
            && recent("newest", NEWEST)
            && recent("first", 11)
            && open("web") == 2
            && open("agent") >= able
    }

    /// Invariant 10, and that nothing due is forgotten, once all is quiet. `off`: when everything was turned off.
    pub(crate) fn at_the_end(
        &self,
        files: &BTreeMap<PathBuf, File>,
        begun: DateTime<Utc>,
        off: DateTime<Utc>,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        let finals = finals(files);
        let due = |job: &str| -> Vec<DateTime<Utc>> {
            let runs = finals.iter().filter(|result| result["job"] == job && result["cause"] == "schedule");
            runs.map(|result| result["created_at"].as_str().unwrap().parse().unwrap()).collect()
        };
        for (job, _) in JOBS {
            let mut times = due(job);
            times.sort();
            if let Some(twice) = times.windows(2).find(|pair| pair[0] == pair[1]) {
                wrong.push(format!("invariant 10: {job} ran twice for {}", twice[0]));
            }
        }
        for (job, every) in [("each", EACH), ("newest", NEWEST), ("p1", 3), ("p2", 4), ("first", 11)] {
            if let Some(off_grid) = due(job).iter().find(|at| at.timestamp_millis() % (every * 1_000) != 0) {
                wrong.push(format!("{job} ran for {off_grid}, which is no multiple of {every} s"));
            }
        }
        // The newest multiple when it was first seen, and each one since; what came due as it was turned off may be missing.
        if let Some(since) = self.since.get("each") {
            let ran: BTreeSet<i64> = due("each").iter().map(DateTime::timestamp).collect();
            let first = since.timestamp().div_euclid(EACH) * EACH;
            let end = (off - TimeDelta::seconds(EACH + 3)).timestamp();
            let missing: Vec<i64> =
                (0..).map(|n| first + n * EACH).take_while(|at| *at < end).filter(|at| !ran.contains(at)).collect();
            if !missing.is_empty() {
                wrong.push(format!("forgotten: each was due at {missing:?} and never ran (ran: {ran:?})"));
            }
        }
        wrong.extend(self.clock_changes(&due, begun, off));
        wrong.extend(chains(&finals));
        for job in ["newest", "first"] {
            if due(job).is_empty() {
                wrong.push(format!("{job} never ran"));
            }
        }
        if self.is_sure {
            wrong.extend(joins(&finals));
        }
        wrong
    }

    /// What is due at 02:00:20 and 02:30:40 in Berlin, where these times are skipped or come twice.
    fn clock_changes(
        &self,
        due: &dyn Fn(&str) -> Vec<DateTime<Utc>>,
        begun: DateTime<Utc>,
        off: DateTime<Utc>,
    ) -> Vec<String> {
        let change = begun.date_naive().and_hms_opt(1, 0, 0).unwrap().and_utc();
        let mut wrong = Vec::new();
        for job in ["gap", "gap_cron"] {
            let Some(since) = self.since.get(job) else { continue };
            let expected: Vec<DateTime<Utc>> = match begun.to_rfc3339().get(..10) {
                // Both are due the moment after the gap.
                Some("2026-03-29") if *since < change && off > change => vec![change],
                // Both came an hour before this world began; their second coming is not due.
                Some(_) | None => Vec::new(),
            };
            let ran = due(job);
            let may_be_unknown =
                self.was_lost && (ran.is_empty() || ran == [change]) && begun.to_rfc3339().starts_with("2026-03");
            if ran != expected && !may_be_unknown {
                wrong.push(format!("{job} was due at {expected:?} and ran for {ran:?}"));
            }
        }
        wrong
    }
}

/// Every end of `first` has made exactly one run of what follows it.
fn chains(finals: &[Value]) -> Vec<String> {
    let count = |job: &str, status: &[&str]| {
        finals
            .iter()
            .filter(|result| result["job"] == job && status.iter().any(|word| result["status"] == *word))
            .count()
    };
    let all = ["succeeded", "failed", "timed_out", "lost", "cancelled", "skipped", "expired"];
    let (good, bad) = (count("first", &all[..1]), count("first", &all[1..4]));
    let (then, other) = (count("then", &all), count("else", &all));
    let wrong = (good, bad) != (then, other);
    let text =
        format!("first succeeded {good} times and failed {bad} times, then ran {then} times and else {other} times");
    wrong.then_some(text).into_iter().collect()
}

/// Each run of `join` has a success of both others behind the run before it, and no such pair is left over.
fn joins(finals: &[Value]) -> Vec<String> {
    let time = |result: &Value, key: &str| result[key].as_str().unwrap().parse::<DateTime<Utc>>().unwrap();
    let of = |job: &str| finals.iter().filter(move |result| result["job"] == job).collect::<Vec<_>>();
    let successes = |job: &str| -> Vec<DateTime<Utc>> {
        of(job).into_iter().filter(|it| it["status"] == "succeeded").map(|it| time(it, "finished_at")).collect()
    };
    let (then, other) = (successes("then"), successes("else"));
    let between = |times: &[DateTime<Utc>], from: Option<DateTime<Utc>>, to: DateTime<Utc>| {
        times.iter().any(|at| Some(*at) > from && *at <= to)
    };
    let mut runs: Vec<DateTime<Utc>> = of("join").into_iter().map(|it| time(it, "created_at")).collect();
    runs.sort();
    let mut wrong = Vec::new();
    let mut last = None;
    for run in runs {
        if !between(&then, last, run) || !between(&other, last, run) {
            wrong.push(format!("join ran for {run} without a success of both since {last:?}"));
        }
        last = Some(run);
    }
    if between(&then, last, DateTime::<Utc>::MAX_UTC) && between(&other, last, DateTime::<Utc>::MAX_UTC) {
        wrong.push(format!("forgotten: both succeeded since {last:?}, and join did not run"));
    }
    wrong
}

fn finals(files: &BTreeMap<PathBuf, File>) -> Vec<Value> {
    let results = files
        .iter()
        .filter(|(path, _)| path.starts_with("/c/Results") && path.extension().is_some_and(|ending| ending == "json"));
    let results = results.filter_map(|(_, file)| serde_json::from_slice::<Value>(&file.bytes).ok());
    results.filter(|result| result["final"] == true && result["status"] != "superseded").collect()
}
