//! From a claimed attempt to everything its start needs (`docs/reference/formats.md`, "What a program is given").

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Device, Parts, TRY_AGAIN};
use crate::decide::attempts::{LocalAttempt, Seat, Started, Step};
use crate::decide::plan::Observation;
use crate::decide::settle::Report;
use crate::exec::{Given, Inside, MARKER, Spec, is_short};
use crate::model::config::ENV_LIMIT;
use crate::model::container::Limits;
use crate::model::ids::RunId;
use crate::model::job::Program;
use crate::model::lease::Lease;
use crate::model::masker::Masker;
use crate::model::result::{Cause, Status};
use crate::model::time::Moment;
use crate::model::trigger::Json;
use crate::volume::layout::Layout;
use crate::volume::logs::Keeps;
use crate::volume::retention::rule::day_stays;
use crate::volume::work::Work;
use crate::volume::{self, Context, found, logs, secrets};

/// Calls a Python function; given to `python3 -c`.
const RUNNER: &str = include_str!("../exec/runner.py");
/// What copies in a work folder are called.
const TRIGGER_COPY: &str = "trigger.json";
const CAUSE_COPY: &str = "cause.json";
/// What of the orchestrator's own environment a program sees, beside `LC_*` and what its job names.
const PASSED: [&str; 5] = ["PATH", "HOME", "LANG", "TZ", "TMPDIR"];

/// Variables, and the values of the secrets that they stand for.
type Secrets = BTreeMap<String, String>;

impl Device {
    /// Opens the log and starts the attempt. It is committed: nobody else has it.
    pub(super) fn start(&mut self, lease: &Lease, now: Moment) {
        let Some(mine) = self.seen.attempts.get(lease) else { return };
        // The last look: this device may have stood still since the commit, and another may have taken it for dead.
        let file = self.parts.layout.running_file(lease, &mine.held.stem);
        if found(self.parts.disk.stat(&file)).is_ok_and(|there| there.is_none()) {
            self.seen.attempts.remove(lease);
            tracing::warn!(run = %lease.run, attempt = lease.attempt, "its file has gone from .running: it is not started");
            return;
        }
        let path = self.parts.layout.log(&mine.held.job, lease);
        let found_as = self.seen.found.get(lease).map(|found| found.executor);
        let goes_on = found_as.is_some();
        if goes_on && found_as != mine.job.outlives_its_device() {
            // Its definition has changed since that was decided: started now, it would run twice.
            self.seen.attempts.remove(lease);
            self.come_back(now.boot);
            return;
        }
        let (secrets, masker) = match self.look_up_secrets(mine, goes_on) {
            Ok(found) => found,
            Err(error) => {
                self.end_unstarted(lease, error, now);
                return;
            }
        };
        let keeps = if mine.held.cause == Cause::Always { Keeps::Newest } else { Keeps::First };
        let open = if goes_on { logs::open_again } else { logs::open };
        let log = match open(&*self.parts.disk, &path, self.parts.config.log_limit, keeps) {
            Ok(log) => log,
            Err(error) if error.source.kind() == std::io::ErrorKind::AlreadyExists => {
                // Made by this device in a try that reported an error, or by another that keeps this attempt from starting.
                let error = format!("its log {} is there already: it is left to another attempt", path.display());
                return self.hand_back_unstarted(lease, error, now);
            }
            Err(error) => {
                self.problem("logs", format!("{error}; hint: {}", error.hint()));
                self.come_back(now.boot + TRY_AGAIN);
                return;
            }
        };
        self.make_results_folder(lease, now);
        let Some(mine) = self.seen.attempts.get(lease) else { return };
        let limits = self.limits_of(&mine.job);
        let seat = match self.open_work(mine) {
            Ok(seat) => seat,
            Err(error) if is_short(&error.source) => return self.hand_back_unstarted(lease, error.to_string(), now),
            Err(error) => {
                self.end_unstarted(lease, format!("{error}; hint: {}", error.hint()), now);
                return;
            }
        };
        let work = seat.map(|seat| self.work_of(mine, seat));
        let spec = Spec {
            lease: lease.clone(),
            inside: inside(mine, &self.parts.layout, work.as_ref(), limits, goes_on),
            argv: argv(mine, &self.parts.layout),
            dir: self.parts.layout.programs.clone(),
            env: environment(mine, &self.parts, &self.seen, secrets, work.as_ref()),
            log,
            masker: masker.clone(),
            timeout: mine.timeout(),
            grace: mine.job.stop_grace,
            limits,
        };
        self.seen.attempts.step(lease, Step::Start(Started { limits, seat, masker }));
        self.parts.executor.start(spec);
        self.solved("logs");
    }

    /// The program may write its result there before anybody else has written one that day. An older day's folder may have been
    /// removed since it was made.
    fn make_results_folder(&mut self, lease: &Lease, now: Moment) {
        let day = lease.run.date();
        let folder = self.parts.layout.results().join(&day);
        if self.results_folder.as_ref() != Some(&folder) || !day_stays(&day, now.wall) {
            if let Err(error) = self.parts.disk.make_folders(&folder).on("make the folder", &folder) {
                self.problem("results", format!("{error}; hint: {}", error.hint()));
            }
            self.results_folder = Some(folder);
        }
    }

    /// The values of the variables of an attempt that stand for secrets, as they are now, and what masks them.
    fn look_up_secrets(&self, mine: &LocalAttempt, goes_on: bool) -> Result<(Secrets, Option<Arc<Masker>>), String> {
        let mut values = Secrets::new();
        for (variable, value) in secrets::of_job(&*self.parts.disk, &self.parts.layout, &mine.job) {
            match value {
                Ok(value) => {
                    values.insert(variable, value);
                }
                // It was started with what there was then.
                Err(_) if goes_on => {}
                Err(unusable) => {
                    let job = &mine.held.job;
                    return Err(format!("env.{variable} of the job {job}: {unusable}; hint: {}", unusable.hint));
                }
            }
        }
        let masker = (!values.is_empty()).then(|| Arc::new(Masker::new(values.values().map(String::as_str))));
        Ok((values, masker))
    }

    /// Makes the work folder of an attempt that runs in a container, with copies of what no container that is kept can be given
    /// otherwise: for what comes after it was made nothing can be mounted any more.
    fn open_work(&self, mine: &LocalAttempt) -> Result<Option<Seat>, volume::Error> {
        let Some(container) = &mine.job.container else { return Ok(None) };
        let Parts { disk, layout, .. } = &self.parts;
        let (disk, lease) = (&**disk, mine.lease());
        let seat = match container.keep_warm {
            None => Some(Seat::Own),
            Some(_) => self.free_seat(mine),
        };
        let Some(seat) = seat else { return Ok(None) };
        let work = self.work_of(mine, seat);
        work.make(disk, layout)?;
        if seat == Seat::Own {
            return Ok(Some(seat));
        }
        if !container.share_common {
            work.add(disk, &layout.running_file(&lease, &mine.held.stem), TRIGGER_COPY)?;
            if let Some((_, result)) = cause_of(mine, layout) {
                work.add(disk, &result, CAUSE_COPY)?;
            }
        }
        Ok(Some(seat))
    }

    /// Returns the first seat in the warm containers of a job that no attempt has, and that is not spoiled.
    fn free_seat(&self, mine: &LocalAttempt) -> Option<Seat> {
        let of_job = self.seen.attempts.all().filter(|(_, other)| other.held.job == mine.held.job);
        let taken: Vec<Seat> = of_job.filter_map(|(_, other)| other.started()?.seat).collect();
        let is_free = |seat: &Seat| !taken.contains(seat) && !self.spoiled.contains(&self.work_of(mine, *seat));
        (0..).map(Seat::Kept).find(is_free)
    }

    /// Returns the work folder of an attempt.
    pub(super) fn work_of(&self, mine: &LocalAttempt, seat: Seat) -> Work {
        let (layout, me) = (&self.parts.layout, &self.seen.me);
        match seat {
            Seat::Own => Work::own(layout, &mine.lease()),
            Seat::Kept(number) => Work::kept(layout, &me.session, &mine.held.job, number),
        }
    }

    fn end_unstarted(&mut self, lease: &Lease, error: String, now: Moment) {
        let report = Report::unstarted(Status::Failed, error, now.wall);
        self.seen.attempts.step(lease, Step::Exit(Box::new(report)));
        self.come_back(now.boot);
    }
}

/// Where a program writes its result: beside the others, or where its container can write.
pub(super) fn output_of(mine: &LocalAttempt, layout: &Layout, work: Option<&Work>) -> PathBuf {
    match work {
        Some(work) => work.given.join("result"),
        None => layout.output(&mine.held.job, &mine.lease()),
    }
}

/// The container of an attempt, and what it is given of the folders, if it runs in one.
fn inside(mine: &LocalAttempt, layout: &Layout, work: Option<&Work>, limits: Limits, goes_on: bool) -> Option<Inside> {
    let container = mine.job.container.clone()?;
    let lease = mine.lease();
    let given = |path: PathBuf, writable| Given { path, writable };
    let mut mounts = vec![given(layout.programs.clone(), false)];
    if container.share_common {
        mounts.push(given(layout.common.clone(), true));
    } else {
        mounts.extend(work.map(|work| given(work.given.clone(), true)));
        if container.keep_warm.is_none() {
            mounts.push(given(layout.running_file(&lease, &mine.held.stem), false));
            mounts.extend(cause_of(mine, layout).map(|(_, result)| given(result, false)));
        }
    }
    Some(Inside { container, limits, mounts, job: mine.held.job.to_string(), definition: mine.job.digest(), goes_on })
}

/// The run that caused this one, and its result.
fn cause_of(mine: &LocalAttempt, layout: &Layout) -> Option<(RunId, PathBuf)> {
    let by = mine.trigger.origin.as_ref()?.by.as_ref()?;
    Some((by.run.clone(), layout.common.join(&by.result)))
}

/// The program and its arguments.
fn argv(mine: &LocalAttempt, layout: &Layout) -> Vec<String> {
    let below = |file: &str| layout.programs.join(file).to_string_lossy().into_owned();
    let appended = mine.args.iter().map(as_argument);
    match &mine.job.program {
        Program::Command(argv) => argv.iter().cloned().chain(appended).collect(),
        Program::File(file) => {
            let interpreter = match Path::new(file).extension().and_then(|ending| ending.to_str()) {
                Some("py") => Some("python3"),
                Some("sh") => Some("sh"),
                Some(_) | None => None,
            };
            interpreter.map(str::to_owned).into_iter().chain([below(file)]).chain(appended).collect()
        }
        Program::Function { file, function } => {
            let mut argv: Vec<String> =
                ["python3", "-u", "-c", RUNNER, &below(file), function].map(str::to_owned).into();
            // Too large for a variable, they are made again from the trigger and these.
            if args_json(&mine.args).len().max(kwargs_json(&mine.kwargs).len()) > ENV_LIMIT {
                argv.extend([args_json(&mine.job.args), kwargs_json(&mine.job.kwargs)]);
            }
            argv
        }
    }
}

/// Strings as they are, other values as JSON.
fn as_argument(value: &Json) -> String {
    serde_json::from_str::<String>(value.text()).unwrap_or_else(|_| value.text().to_owned())
}

fn environment(
    mine: &LocalAttempt,
    parts: &Parts,
    seen: &Observation,
    secrets: Secrets,
    work: Option<&Work>,
) -> BTreeMap<String, String> {
    let (Parts { layout, host, .. }, Observation { me, volume, .. }) = (parts, seen);
    let lease = mine.lease();
    // An image has an environment of its own.
    let is_process = mine.job.container.is_none();
    let is_usual = |name: &String| is_process && (PASSED.contains(&name.as_str()) || name.starts_with("LC_"));
    let passes = |name: &String| is_usual(name) || mine.job.pass_env.contains(name);
    let mut env: BTreeMap<String, String> =
        host.env.iter().filter(|(name, _)| passes(name)).map(|(name, value)| (name.clone(), value.clone())).collect();
    env.extend(mine.job.env.iter().map(|(name, value)| (name.clone(), value.clone())));
    env.extend(secrets);
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let shares = mine.job.container.as_ref().is_some_and(|container| container.share_common);
    let copies = work.filter(|work| work.is_kept && !shares).map(|work| &work.given);
    let given = |path: PathBuf, copy: &str| text(&copies.map_or(path, |folder| folder.join(copy)));
    let own = [
        ("AIOS_JOB", mine.held.job.to_string()),
        ("AIOS_RUN_ID", lease.run.to_string()),
        ("AIOS_ATTEMPT", lease.attempt.to_string()),
        ("AIOS_DEVICE_ID", me.device.to_string()),
        ("AIOS_TRIGGER", given(layout.running_file(&lease, &mine.held.stem), TRIGGER_COPY)),
        ("AIOS_RESULT", text(&output_of(mine, layout, work))),
        ("AIOS_COMMON", text(&layout.common)),
        ("AIOS_PROGRAMS", text(&layout.programs)),
    ];
    // By this a process is found and ended that an earlier life of its device left; a container is found by its labels, and goes on.
    if is_process {
        env.insert(MARKER.to_owned(), format!("{volume}/{}/{}/{lease}", me.device, me.session));
    }
    if let Some((run, result)) = cause_of(mine, layout) {
        env.insert("AIOS_CAUSE_RUN_ID".to_owned(), run.to_string());
        env.insert("AIOS_CAUSE_RESULT".to_owned(), given(result, CAUSE_COPY));
    }
    env.extend(own.map(|(name, value)| (name.to_owned(), value)));
    for (name, value) in [("AIOS_ARGS", args_json(&mine.args)), ("AIOS_KWARGS", kwargs_json(&mine.kwargs))] {
        if value.len() <= ENV_LIMIT {
            env.insert(name.to_owned(), value);
        }
    }
    env
}

fn args_json(args: &[Json]) -> String {
    let inner: Vec<&str> = args.iter().map(Json::text).collect();
    format!("[{}]", inner.join(","))
}

fn kwargs_json(kwargs: &[(String, Json)]) -> String {
    let inner: Vec<String> = kwargs
        .iter()
        .map(|(key, value)| format!("{}:{}", serde_json::Value::from(key.as_str()), value.text()))
        .collect();
    format!("{{{}}}", inner.join(","))
}
