//! Many processes at once: daemons that are all started anew (B1), and runs that all sleep (B2).
//!
//! The program is the probe, which answers from its `main` and then stays. The floor starts it in a plain loop, each with
//! a log file, and knows nothing but its children.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::{Pid, Signal};
use serde_json::Value;
use tempfile::TempDir;

use crate::Outcome;
use crate::clock;
use crate::device::{ALONE, Seat, Side};
use crate::probe::Answers;
use crate::rounds::Setting;
use crate::stage::Stage;
use crate::volume::{Job, Volume};

/// The daemons of B1.
const DAEMONS: usize = 100;

/// The runs of B2.
const SLEEPERS: usize = 1_000;

/// How long everything is left alone before a restart, and before memory and idleness are measured.
const QUIET: Duration = Duration::from_secs(1);

/// Over how long the device of B2 is watched.
const WATCHED: Duration = Duration::from_secs(10);

/// B1: milliseconds from the request until each daemon's new process has entered its `main`.
pub(crate) fn restart(setting: Setting<'_>, side: Side) -> Outcome<f64> {
    let gate = Gate::make()?;
    if setting.self_check || side == Side::Floor {
        let home = tempfile::tempdir_in(&setting.place.folder)?;
        let answers = Answers::create(home.path().join("answers"))?;
        let mut family = Family::new(home.path(), program(setting, &answers, &gate));
        (0..DAEMONS).try_for_each(|_| family.add())?;
        answers.wait_for(DAEMONS)?;
        thread::sleep(QUIET);
        let asked = clock::now();
        family.restart_all()?;
        return Ok(clock::millis(asked, answers.wait_for(DAEMONS)?));
    }
    let mut stage = Stage::set(setting.place, 2)?;
    let program = program(setting, stage.volume.answers(), &gate).map(|part| part.display().to_string());
    for number in 0..DAEMONS {
        stage.volume.write_job(&format!("daemon-{number:03}"), "always", &program)?;
    }
    stage.start(side, ALONE, false)?;
    stage.volume.answers().wait_for(DAEMONS)?;
    thread::sleep(QUIET);
    let asked = clock::now();
    let mut verb = Command::new(env!("CARGO_BIN_EXE_orchestrator"));
    verb.args(["restart", "--all", "--quiet", "--common"]).arg(stage.volume.common());
    verb.arg("--programs").arg(stage.volume.programs()).stdin(Stdio::null()).stdout(Stdio::null());
    let status = verb.status()?;
    if !status.success() {
        return Err(format!("restart ended with {status}").into());
    }
    let took = clock::millis(asked, stage.volume.answers().wait_for(DAEMONS)?);
    check_attempts(&stage.volume, 2)?;
    stage.stop()?;
    Ok(took)
}

/// The probe, told to stay.
fn program(setting: Setting<'_>, answers: &Answers, gate: &Gate) -> [PathBuf; 3] {
    [setting.place.probe.clone(), answers.path().to_owned(), gate.path()]
}

/// Checks that each daemon is held with this attempt.
fn check_attempts(volume: &Volume, attempt: u64) -> Outcome<()> {
    let state: Value = serde_json::from_slice(&std::fs::read(volume.common().join("state.json"))?)?;
    let runs = state["runs"].as_object().into_iter().flatten();
    let there = runs.filter(|(_, held)| held["attempt"] == attempt && held["device"] == ALONE.id).count();
    match there == DAEMONS {
        true => Ok(()),
        false => Err(format!("{there} of {DAEMONS} daemons are held with attempt {attempt}").into()),
    }
}

/// B2.
#[derive(Debug)]
pub(crate) struct Sleepers {
    /// Milliseconds from the first drop until each process has entered its `main`.
    pub started: f64,
    /// The device's resident memory while they sleep, in MiB; not a number for the floor.
    pub mib: f64,
    /// The device's CPU use while they sleep, in percent of one CPU; not a number for the floor.
    pub cpu: f64,
}

/// A thousand runs that sleep, in as many slots.
pub(crate) fn sleepers(setting: Setting<'_>, side: Side) -> Outcome<Sleepers> {
    let mut gate = Gate::make()?;
    if setting.self_check || side == Side::Floor {
        let home = tempfile::tempdir_in(&setting.place.folder)?;
        let answers = Answers::create(home.path().join("answers"))?;
        let mut family = Family::new(home.path(), program(setting, &answers, &gate));
        let asked = clock::now();
        (0..SLEEPERS).try_for_each(|_| family.add())?;
        let started = clock::millis(asked, answers.wait_for(SLEEPERS)?);
        return Ok(Sleepers { started, mib: f64::NAN, cpu: f64::NAN });
    }
    let mut stage = Stage::set(setting.place, 2)?;
    let program = program(setting, stage.volume.answers(), &gate).map(|part| part.display().to_string());
    stage.volume.write_job("stay", "trigger", &program)?;
    stage.start(side, Seat { slots: Some(SLEEPERS), ..ALONE }, false)?;
    stage.warm_up()?;
    let dropped = stage.drop_all(Job::Stay, SLEEPERS)?;
    let started = clock::millis(dropped, stage.volume.answers().wait_for(SLEEPERS)?);
    thread::sleep(QUIET);
    let (from, before) = (clock::now(), stage.cpu_seconds()?);
    thread::sleep(WATCHED);
    let cpu = 100.0 * (stage.cpu_seconds()? - before) / clock::seconds(from, clock::now());
    let mib = stage.resident_mib()?;
    gate.open()?;
    stage.await_results()?;
    stage.close()?;
    Ok(Sleepers { started, mib, cpu })
}

/// What a probe that stays waits for: a FIFO that somebody opens for writing. It opens at the latest when it goes, so that
/// no process stays for ever.
#[derive(Debug)]
struct Gate {
    folder: TempDir,
    open: Option<File>,
}

impl Gate {
    fn make() -> Outcome<Self> {
        let folder = tempfile::Builder::new().prefix("aios-bench-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let gate = Self { folder, open: None };
        rustix::fs::mkfifoat(CWD, gate.path(), Mode::RUSR | Mode::WUSR)?;
        Ok(gate)
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("gate")
    }

    fn open(&mut self) -> Outcome<()> {
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        self.open = Some(File::options().read(true).write(true).custom_flags(flags).open(self.path())?);
        Ok(())
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // What fails here leaves processes that wait, which no figure of this round depends on.
        let _ = self.open();
        thread::sleep(Duration::from_millis(20));
    }
}

/// The floor: children, and what they are started with.
struct Family {
    home: PathBuf,
    program: [PathBuf; 3],
    children: Vec<Child>,
    logs: usize,
}

impl Family {
    fn new(home: &Path, program: [PathBuf; 3]) -> Self {
        Self { home: home.to_owned(), program, children: Vec::new(), logs: 0 }
    }

    fn spawn(&mut self) -> Outcome<Child> {
        self.logs += 1;
        let log = File::create(self.home.join(format!("{}.log", self.logs)))?;
        let mut command = Command::new(&self.program[0]);
        command.args(&self.program[1..]).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command.spawn()?)
    }

    fn add(&mut self) -> Outcome<()> {
        let child = self.spawn()?;
        self.children.push(child);
        Ok(())
    }

    /// TERM, reap, spawn: one after another.
    fn restart_all(&mut self) -> Outcome<()> {
        for at in 0..self.children.len() {
            rustix::process::kill_process(Pid::from_child(&self.children[at]), Signal::TERM)?;
            self.children[at].wait()?;
            self.children[at] = self.spawn()?;
        }
        Ok(())
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
