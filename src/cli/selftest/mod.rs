//! `orchestrator --test`: the product tests itself, then the volume it is to work on.
//!
//! Not one line says ok without having looked: real devices in processes of their own run real triggers on a temporary
//! volume, one of them is killed, and what is found in the files decides.

mod own;

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use serde_json::{Value, json};

use super::out::Paint;
use super::rival::SecondProcess;
use super::{Code, Context, Failure, Out};
use crate::client::new_run_id;
use crate::coordinator::open_volume;
use crate::coordinator::run::clock;
use crate::exec::device::DeviceProcess;
use crate::model::entry::{FileKey, Source};
use crate::model::ids::{DeviceId, JobName, RunId, Session};
use crate::model::lease::Lease;
use crate::model::result::{Outcome, Status};
use crate::volume::atomic::{Temporary, write_new};
use crate::volume::disk::Disk;
use crate::volume::layout::Layout;
use crate::volume::os::{OsDisk, remove_tree};
use crate::volume::probe::{self, Scratch};
use crate::volume::{heartbeat, results};

/// How long one thing may take before its check fails. Generous: only a fault is that slow.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(10);
/// How long a file event may take.
const EVENT: Duration = Duration::from_secs(3);

/// The jobs of the test. `attempt` and `ledger` are in every script's hands.
const JOBS: [(&str, &str); 9] = [
    ("t_args", "file = \"args.sh\"\nargs = [\"default\"]\n"),
    ("t_fail", "command = [\"sh\", \"-c\", \"exit 7\"]\n"),
    ("t_retry", "file = \"third.sh\"\nretries = 2\nbackoff = \"10ms\"\n"),
    ("t_slow", "command = [\"sleep\", \"60\"]\ntimeout = \"300ms\"\nstop_grace = \"1s\"\n"),
    ("t_queue", "file = \"alone.sh\"\noverlap = \"queue\"\n"),
    ("t_skip", "command = [\"sleep\", \"3\"]\noverlap = \"skip\"\n"),
    ("t_python", "file = \"answer.py\"\nfunction = \"answer\"\nkwargs = { plus = 1 }\n"),
    ("t_long", "file = \"long.sh\"\n"),
    ("t_off", "command = [\"true\"]\nenabled = false\n"),
];

const SCRIPTS: [(&str, &str); 5] = [
    ("args.sh", "printf '%s|' \"$@\"\nprintf '{\"seen\": %s}' \"$AIOS_ARGS\" > \"$AIOS_RESULT\"\n"),
    ("third.sh", "test \"$AIOS_ATTEMPT\" -ge 3\n"),
    ("alone.sh", "mkdir \"$AIOS_COMMON/alone\" || exit 9\nsleep 0.2\nrmdir \"$AIOS_COMMON/alone\"\n"),
    ("long.sh", "test \"$AIOS_ATTEMPT\" -ge 2 || sleep 60\n"),
    ("answer.py", "async def answer(base, plus=0):\n    return {\"answer\": base + plus}\n"),
];

/// Runs the self-test.
pub(super) fn run(context: &mut Context) -> Result<Code, Failure> {
    let mut report = Report { out: context.out, checks: Vec::new() };
    let home = std::env::temp_dir().join(format!("orchestrator-test-{}", context.client.session));
    let outcome = Bench::new(home.clone(), &context.client.session).and_then(|mut bench| bench.test(&mut report));
    if let Err(why) = outcome {
        report.check("devices on a temporary volume", Err(why))?;
    }
    let removed = remove_tree(&home).map_err(|error| format!("{} stays: {error}", home.display()));
    report.check("what the test made is removed", removed)?;
    test_volume(context, &mut report)?;
    report.finish()
}

/// One line a check, or one document.
struct Report {
    out: Out,
    checks: Vec<(String, Result<(), String>)>,
}

impl Report {
    fn check(&mut self, name: &str, outcome: Result<(), String>) -> Result<(), Failure> {
        if !self.out.json {
            let line = match &outcome {
                Ok(()) => format!("{}  {name}", self.out.paint(Paint::Green, "ok  ")),
                Err(why) => format!("{}  {name}: {why}", self.out.paint(Paint::Red, "FAIL")),
            };
            self.out.line(&line)?;
        }
        self.checks.push((name.to_owned(), outcome));
        Ok(())
    }

    fn finish(&self) -> Result<Code, Failure> {
        let failed = self.checks.iter().filter(|(_, outcome)| outcome.is_err()).count();
        if self.out.json {
            let lines: Vec<Value> = self
                .checks
                .iter()
                .map(|(name, outcome)| json!({"check": name, "ok": outcome.is_ok(), "error": outcome.as_ref().err()}))
                .collect();
            self.out.document(&json!({"checks": lines, "failed": failed}))?;
        } else {
            self.out.line(&format!("{} checks, {failed} failed", self.checks.len()))?;
        }
        Ok(if failed == 0 { Code::Done } else { Code::Failed })
    }
}

/// A temporary volume with two devices.
struct Bench {
    disk: Rc<dyn Disk>,
    layout: Layout,
    names: Temporary,
    devices: Vec<(DeviceId, DeviceProcess)>,
}

impl Bench {
    fn new(home: PathBuf, session: &Session) -> Result<Self, String> {
        let layout = Layout { common: home.join("Common"), programs: home.join("Programs") };
        let disk: Rc<dyn Disk> = Rc::new(OsDisk::new());
        open_volume(&*disk, &layout, session).map_err(|error| error.to_string())?;
        let mut names = Temporary::new(session.clone());
        let jobs = JOBS.map(|(job, text)| (format!("{job}.toml"), text));
        for (name, text) in jobs.into_iter().chain(SCRIPTS.map(|(name, text)| (name.to_owned(), text))) {
            let path = layout.programs.join(name);
            write_new(&*disk, &mut names, &path, text.as_bytes()).map_err(|error| error.to_string())?;
        }
        Ok(Self { disk, layout, names, devices: Vec::new() })
    }

    fn test(&mut self, report: &mut Report) -> Result<(), String> {
        let mut say = |name: &str, outcome| report.check(name, outcome).map_err(|failure| failure.error);
        let started = self.start("a").and_then(|()| self.start("b"));
        say("two devices start and beat", started)?;
        say("a command runs, its log and result are there", self.command())?;
        say("a job gets its arguments", self.arguments())?;
        say("a Python function is called and awaited", self.python())?;
        say("an exit code is kept", self.ends_as("t_fail", 1, Status::Failed, |it| it.exit_code == Some(7)))?;
        say("a failure is tried again", self.ends_as("t_retry", 3, Status::Succeeded, |it| it.is_final))?;
        say("a timeout ends a run", self.ends_as("t_slow", 1, Status::TimedOut, |it| it.signal == Some(15)))?;
        say("overlap = queue runs one after the other", self.queued())?;
        say("overlap = skip skips", self.skipped())?;
        say("a run goes to the device that is named", self.pinned())?;
        say("a time is waited for", self.timed())?;
        say("what expires does not run", self.expired())?;
        say("an idempotency key runs once", self.keyed())?;
        say("what cannot be taken is kept, with the reason", self.rejected())?;
        say("a disabled job waits", self.disabled())?;
        say("an interval is due at its multiples", self.intervals())?;
        say("daily, cron and random_daily are due to the second", self.due_times())?;
        say("a daemon has its instances and follows its definition", self.daemons())?;
        say("an idle job gives way to work", self.idle())?;
        say("an end starts what follows it", self.chains())?;
        say("a pool holds over all devices", self.pools())?;
        say("a killed device's run goes on elsewhere", self.killed())?;
        say("a device that is asked to leaves with exit code 0", self.left())
    }

    fn start(&mut self, name: &str) -> Result<(), String> {
        let id: DeviceId = name.parse().map_err(|error: crate::model::ids::BadName| error.to_string())?;
        let common = self.layout.common.to_string_lossy().into_owned();
        let programs = self.layout.programs.to_string_lossy().into_owned();
        let args = [
            "run",
            "--common",
            &common,
            "--programs",
            &programs,
            "--device-id",
            name,
            "--slots",
            "4",
            "--heartbeat",
            "200ms",
            "--lease",
            "2s",
            "--scan",
            "500ms",
            "--docker-host",
            "none",
            "--quiet",
        ];
        let log = self.layout.logs().join(format!("{name}.{}.out", clock().boot.as_nanos()));
        let log = self.disk.open_log(&log).map_err(|error| error.to_string())?;
        let log = log.ok_or("this disk gives no logs")?;
        let before = heartbeat::read(&*self.disk, &self.layout, &id).ok().flatten().map(|beat| beat.session);
        let process = DeviceProcess::start(&args, log).map_err(|error| format!("cannot start a device: {error}"))?;
        self.devices.push((id.clone(), process));
        self.wait(&format!("the heartbeat of {name}"), |bench| {
            let beat = heartbeat::read(&*bench.disk, &bench.layout, &id).ok().flatten()?;
            (Some(&beat.session) != before.as_ref()).then_some(())
        })
    }

    fn wait<T>(&self, what: &str, look: impl Fn(&Self) -> Option<T>) -> Result<T, String> {
        let until = clock().boot + PATIENCE;
        loop {
            if let Some(found) = look(self) {
                return Ok(found);
            }
            if clock().boot > until {
                return Err(format!("waited {} s in vain for {what}", PATIENCE.as_secs()));
            }
            pause();
        }
    }

    /// Drops a trigger under a name that carries its run id.
    fn drop(&mut self, stem: &str, trigger: &Value) -> Result<RunId, String> {
        let run = new_run_id();
        let key =
            FileKey { source: Source::Inbox, name: std::ffi::OsString::from(format!("{stem}.{run}.json")).into() };
        let path = self.layout.entry(&key);
        write_new(&*self.disk, &mut self.names, &path, trigger.to_string().as_bytes())
            .map_err(|error| error.to_string())?;
        Ok(run)
    }

    fn result(&self, job: &str, run: &RunId, attempt: u32) -> Result<Outcome, String> {
        let job: JobName = job.parse().map_err(|error: crate::model::ids::BadName| error.to_string())?;
        let path = self.layout.result(&job, &Lease { run: run.clone(), attempt });
        self.wait(&format!("the result {}", path.display()), |bench| results::read(&*bench.disk, &path).ok().flatten())
    }

    fn ends_as(
        &mut self,
        job: &str,
        attempt: u32,
        status: Status,
        also: impl Fn(&Outcome) -> bool,
    ) -> Result<(), String> {
        let run = self.drop(job, &json!({"job": job}))?;
        let outcome = self.result(job, &run, attempt)?;
        expect(outcome.status == status && also(&outcome), &outcome)
    }

    fn command(&mut self) -> Result<(), String> {
        let trigger = json!({"command": ["sh", "-c", "echo hello; echo oops >&2"]});
        let run = self.drop("t_command", &trigger)?;
        let outcome = self.result("t_command", &run, 1)?;
        expect(outcome.status == Status::Succeeded && outcome.is_final, &outcome)?;
        let log = self.layout.common.join(outcome.log.as_deref().unwrap_or("no log"));
        let (text, _) = self.disk.read(&log, 1_000).map_err(|error| format!("{}: {error}", log.display()))?;
        if text != b"hello\noops\n" {
            return Err(format!("the log says {:?}", String::from_utf8_lossy(&text)));
        }
        let processed = self.layout.processed_file(&run, "t_command");
        let (bytes, _) = self.wait("the processed trigger", |bench| bench.disk.read(&processed, 10_000).ok())?;
        if bytes == trigger.to_string().as_bytes() { Ok(()) } else { Err("the processed trigger has changed".into()) }
    }

    fn arguments(&mut self) -> Result<(), String> {
        let run = self.drop("t_args", &json!({"job": "t_args", "args": ["a b", 1.50, true]}))?;
        let outcome = self.result("t_args", &run, 1)?;
        let seen = outcome.result.as_ref().map(|json| json.text().to_owned());
        expect(seen.as_deref() == Some(r#"{"seen": ["a b",1.5,true]}"#), &outcome)
    }

    fn python(&mut self) -> Result<(), String> {
        let run = self.drop("t_python", &json!({"job": "t_python", "args": [41]}))?;
        let outcome = self.result("t_python", &run, 1)?;
        let answer = outcome.result.as_ref().and_then(|json| serde_json::from_str::<Value>(json.text()).ok());
        expect(answer == Some(json!({"answer": 42})), &outcome)
    }

    fn queued(&mut self) -> Result<(), String> {
        let runs: Vec<RunId> =
            (0..3).map(|_| self.drop("t_queue", &json!({"job": "t_queue"}))).collect::<Result<_, _>>()?;
        for run in runs {
            let outcome = self.result("t_queue", &run, 1)?;
            // The script fails when another of its kind is at work.
            expect(outcome.status == Status::Succeeded, &outcome)?;
        }
        Ok(())
    }

    fn skipped(&mut self) -> Result<(), String> {
        let first = self.drop("t_skip", &json!({"job": "t_skip"}))?;
        self.wait("the first run to be held", |bench| bench.holder(&first))?;
        let second = self.drop("t_skip", &json!({"job": "t_skip"}))?;
        let outcome = self.result("t_skip", &second, 0)?;
        expect(outcome.status == Status::Skipped, &outcome)?;
        let outcome = self.result("t_skip", &first, 1)?;
        expect(outcome.status == Status::Succeeded, &outcome)
    }

    fn pinned(&mut self) -> Result<(), String> {
        for device in ["a", "b", "a"] {
            let run = self.drop("t_pin", &json!({"command": ["true"], "tags": [device]}))?;
            let outcome = self.result("t_pin", &run, 1)?;
            expect(outcome.device.as_str() == device, &outcome)?;
        }
        Ok(())
    }

    fn timed(&mut self) -> Result<(), String> {
        let at = clock().wall + chrono::TimeDelta::milliseconds(700);
        let run = self.drop("t_time", &json!({"command": ["true"], "time": crate::model::time::rfc3339(at)}))?;
        let outcome = self.result("t_time", &run, 1)?;
        // The claim's time has milliseconds, and so has the trigger's.
        let on_time = outcome.claimed_at.is_some_and(|claimed| claimed >= at - chrono::TimeDelta::milliseconds(50));
        expect(on_time, &outcome)
    }

    fn expired(&mut self) -> Result<(), String> {
        let past = crate::model::time::rfc3339(clock().wall - chrono::TimeDelta::seconds(60));
        let trigger = json!({"command": ["true"], "tags": ["nobody"], "expires": past});
        let run = self.drop("t_expire", &trigger)?;
        let outcome = self.result("t_expire", &run, 0)?;
        expect(outcome.status == Status::Expired, &outcome)
    }

    fn keyed(&mut self) -> Result<(), String> {
        let trigger = json!({"command": ["true"], "id": "self-test"});
        let first = self.drop("t_key", &trigger)?;
        let outcome = self.result("t_key", &first, 1)?;
        expect(outcome.status == Status::Succeeded, &outcome)?;
        let second = self.drop("t_key", &trigger)?;
        let duplicate = self.layout.duplicate_file(&second, "t_key", &first);
        self.wait("the duplicate to be put aside", |bench| bench.disk.stat(&duplicate).ok().map(|_| ()))
    }

    fn rejected(&mut self) -> Result<(), String> {
        let run = self.drop("t_reject", &json!({"job": "t_args", "jbo": 1}))?;
        let folder = self.layout.rejected(&clock().wall.format("%Y-%m-%d").to_string());
        let note = folder.join(format!("t_reject.{run}.error.json"));
        let (bytes, _) = self.wait("the reason of the rejection", |bench| bench.disk.read(&note, 10_000).ok())?;
        let note: Value = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
        if note["hint"].as_str().is_some_and(|hint| hint.contains("job")) {
            Ok(())
        } else {
            Err(format!("the reason does not name the nearest key: {note}"))
        }
    }

    fn disabled(&mut self) -> Result<(), String> {
        let run = self.drop("t_off", &json!({"job": "t_off"}))?;
        // Long enough for every device to have looked twice.
        let until = clock().boot + Duration::from_millis(1_200);
        while clock().boot < until {
            pause();
        }
        let key = FileKey { source: Source::Inbox, name: std::ffi::OsString::from(format!("t_off.{run}.json")).into() };
        let path = self.layout.entry(&key);
        self.disk.stat(&path).map_err(|error| format!("{} did not wait: {error}", path.display()))?;
        self.disk.remove(&path).map_err(|error| error.to_string())
    }

    /// Who holds a run, as the state has it.
    fn holder(&self, run: &RunId) -> Option<DeviceId> {
        let (bytes, _) = self.disk.read(&self.layout.state(), 1 << 20).ok()?;
        let state: Value = serde_json::from_slice(&bytes).ok()?;
        state["runs"][run.as_str()]["device"].as_str()?.parse().ok()
    }

    fn killed(&mut self) -> Result<(), String> {
        let run = self.drop("t_long", &json!({"job": "t_long"}))?;
        let holder = self.wait("the run to be held", |bench| bench.holder(&run))?;
        let index = self.devices.iter().position(|(id, _)| *id == holder).ok_or("an unknown device holds it")?;
        let (_, mut process) = self.devices.remove(index);
        process.kill().map_err(|error| error.to_string())?;
        let lost = self.result("t_long", &run, 1)?;
        expect(lost.status == Status::Lost && !lost.is_final, &lost)?;
        let outcome = self.result("t_long", &run, 2)?;
        expect(outcome.status == Status::Succeeded && outcome.device != holder, &outcome)?;
        // Back again, it ends what its earlier life left running.
        self.start(holder.as_str())
    }

    fn left(&mut self) -> Result<(), String> {
        for (_, process) in &self.devices {
            process.terminate().map_err(|error| error.to_string())?;
        }
        while let Some((id, mut process)) = self.devices.pop() {
            let until = clock().boot + PATIENCE;
            let status = loop {
                if let Some(status) = process.ended().map_err(|error| error.to_string())? {
                    break status;
                }
                if clock().boot > until {
                    return Err(format!("{id} is still there"));
                }
                pause();
            };
            if !status.success() {
                return Err(format!("{id} ended with {status}"));
            }
        }
        Ok(())
    }
}

/// What is asked of the volume that is given: what `doctor` looks at, and what a device cannot do without.
fn test_volume(context: &mut Context, report: &mut Report) -> Result<(), Failure> {
    context.make_volume()?;
    let locks = format!("locks exclude in {}", context.client.layout.common.display());
    let names = [locks.as_str(), "a rename replaces nothing, and a reader sees whole documents", "file events arrive"];
    let scratch = match Scratch::new(&*context.client.disk, &context.client.layout, &context.client.session) {
        Ok(scratch) => scratch,
        Err(error) => return names.iter().try_for_each(|name| report.check(name, Err(error.to_string()))),
    };
    let lock = scratch.path("lock");
    let excludes =
        SecondProcess::start(&lock).and_then(|mut rival| probe::locks_exclude(&OsDisk::new(), &lock, &mut rival));
    report.check(names[0], excludes.map_err(|trouble| trouble.to_string()))?;
    let renames = probe::renames_refuse(&*context.client.disk, &scratch.path("")).and_then(|_| {
        probe::replaces_whole(&*context.client.disk, &mut context.client.names, &scratch.path("document")).map(|_| ())
    });
    report.check(names[1], renames.map_err(|trouble| trouble.to_string()))?;
    let events = probe::events_arrive(&*context.client.disk, &mut context.client.names, &scratch, EVENT, pause);
    let events = events.map_err(|why| format!("{why}: new triggers are found by the scan, within --scan"));
    report.check(names[2], events)?;
    scratch.remove().or_else(|error| report.check("what was made to look is removed", Err(error.to_string())))
}

fn expect(holds: bool, outcome: &Outcome) -> Result<(), String> {
    if holds {
        return Ok(());
    }
    Err(format!("not as expected: {}", serde_json::to_string(outcome).unwrap_or_default()))
}

#[expect(clippy::disallowed_methods, reason = "a verb waits for nothing but what it looks for, and ends at any signal")]
fn pause() {
    std::thread::sleep(LOOK);
}
