//! A volume with devices of the real binary on it, and what can be seen of it from outside.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A volume and its devices; they are killed with it, and what they said is shown when a test fails.
pub(crate) struct Volume {
    pub(crate) home: tempfile::TempDir,
    pub(crate) devices: BTreeMap<String, Child>,
    /// Variables for its devices.
    pub(crate) env: Vec<(&'static str, PathBuf)>,
}

impl Volume {
    pub(crate) fn new() -> Self {
        let memory = Path::new("/dev/shm");
        Self::in_home(if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap())
    }

    /// Not in memory: of that file system not everything can be asked.
    pub(crate) fn on_disk() -> Self {
        Self::in_home(tempfile::tempdir().unwrap())
    }

    fn in_home(home: tempfile::TempDir) -> Self {
        let volume = Self { home, devices: BTreeMap::new(), env: Vec::new() };
        std::fs::create_dir_all(volume.path("Programs")).unwrap();
        volume
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub(crate) fn common(&self, name: &str) -> PathBuf {
        self.path("Common").join(name)
    }

    pub(crate) fn job(&self, name: &str, text: &str) {
        self.place(&self.path("Programs").join(format!("{name}.toml")), text);
    }

    /// Writes a file so that nobody sees it in pieces.
    pub(crate) fn place(&self, target: &Path, text: &str) {
        let aside = self.path("aside");
        std::fs::write(&aside, text).unwrap();
        std::fs::rename(&aside, target).unwrap();
    }

    pub(crate) fn script(&self, name: &str, text: &str) {
        let ledger = self.path("ledger");
        let head = format!("echo \"$AIOS_RUN_ID $AIOS_ATTEMPT $AIOS_DEVICE_ID\" >> {}\n", ledger.display());
        self.place(&self.path("Programs").join(name), &format!("{head}{text}\n"));
    }

    pub(crate) fn command(&self, verb: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_orchestrator"));
        command.args(verb).arg("--common").arg(self.path("Common"));
        let own = |name: &str| name.starts_with("DEVICE_") || matches!(name, "AIOS_COMMON" | "AIOS_PROGRAMS");
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(own)) {
            command.env_remove(name);
        }
        // A device may be given another folder of jobs, as an option.
        command.env("AIOS_PROGRAMS", self.path("Programs"));
        // What an engine adds is tested in tests/container.
        command.env("DOCKER_HOST", "none").env("AIOS_HTTP", "none");
        // Devices leave the terminal that the tests were started on, and get no process between.
        command.env("AIOS_STAND_IN", "0");
        command
    }

    pub(crate) fn spawn(&self, id: &str, more: &[&str]) -> Child {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path(&format!("{id}.said"))).unwrap();
        let mut command = self.command(&["run", "--device-id", id]);
        let usual = [("--heartbeat", "200ms"), ("--lease", "3s"), ("--scan", "300ms"), ("--log-level", "debug")];
        for (option, value) in usual.into_iter().filter(|(option, _)| !more.contains(option)) {
            command.args([option, value]);
        }
        command.args(more).envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    /// Starts a device and waits until it beats in its new life.
    pub(crate) fn start(&mut self, id: &str, more: &[&str]) {
        let before = self.beat(id).map(|beat| beat["session"].clone());
        let child = self.spawn(id, more);
        self.devices.insert(id.to_owned(), child);
        self.wait(&format!("{id} beats"), |volume| {
            volume.beat(id).is_some_and(|beat| Some(&beat["session"]) != before.as_ref())
        });
    }

    pub(crate) fn beat(&self, id: &str) -> Option<Value> {
        read(&self.common(&format!("Devices/{id}.json")))
    }

    pub(crate) fn kill(&mut self, id: &str) {
        let mut child = self.devices.remove(id).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn signal(&self, id: &str, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.devices[id]), signal).unwrap();
    }

    /// Waits until the device has ended, and gives its exit code.
    pub(crate) fn ended(&mut self, id: &str) -> Option<i32> {
        let mut child = self.devices.remove(id).unwrap();
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < until, "{id} does not end");
            pause();
        }
    }

    pub(crate) fn drop_trigger(&self, name: &str, text: &str) {
        self.place(&self.common("Triggers").join(name), text);
    }

    /// A trigger that is written where it lies, in one piece or not.
    pub(crate) fn drop_copy(&self, name: &str, text: &str) {
        std::fs::write(self.common("Triggers").join(name), text).unwrap();
    }

    /// Waits until the volume's time, which may be coarse, shows another millisecond than now.
    pub(crate) fn next_instant(&self) {
        use std::os::unix::fs::MetadataExt as _;
        let path = self.path("instant");
        let now = || {
            std::fs::write(&path, "").unwrap();
            let meta = std::fs::metadata(&path).unwrap();
            (meta.ctime(), meta.ctime_nsec() / 1_000_000)
        };
        let before = now();
        while now() == before {
            pause();
        }
    }

    /// What a verb answers with `--json`, and its exit code.
    pub(crate) fn ask(&self, verb: &[&str]) -> (Option<i32>, Value) {
        let output = self.command(verb).arg("--json").output().unwrap();
        let answer = serde_json::from_slice(&output.stdout);
        (output.status.code(), answer.unwrap_or_else(|error| panic!("{verb:?}: {error}: {output:?}")))
    }

    /// The one result of a job that is final, once it is there.
    pub(crate) fn outcome(&self, job: &str) -> Value {
        self.wait(&format!("a final result of {job}"), |volume| volume.finals(job) > 0);
        self.results(job).into_iter().find(|result| result["final"] == true).unwrap()
    }

    pub(crate) fn wait(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        self.wait_for(what, |volume| holds(volume).then_some(()));
    }

    /// Waits until there is something, and gives it.
    pub(crate) fn wait_for<T>(&self, what: &str, look: impl Fn(&Self) -> Option<T>) -> T {
        self.wait_within(PATIENCE, what, look)
    }

    /// The same, where it takes longer.
    pub(crate) fn wait_within<T>(&self, most: Duration, what: &str, look: impl Fn(&Self) -> Option<T>) -> T {
        let until = Instant::now() + most;
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(Instant::now() < until, "waited in vain: {what}\n{}", self.tell());
            pause();
        }
    }

    /// Every result of a job, in the order of runs and attempts.
    pub(crate) fn results(&self, job: &str) -> Vec<Value> {
        let starts = format!("{job}.");
        files(&self.common("Results"))
            .into_iter()
            .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(&starts))
            .filter(|path| path.extension().is_some_and(|ending| ending == "json"))
            .map(|path| read(&path).unwrap_or_else(|| panic!("{} is no whole document", path.display())))
            .collect()
    }

    pub(crate) fn finals(&self, job: &str) -> usize {
        self.results(job).iter().filter(|result| result["final"] == true).count()
    }

    pub(crate) fn state(&self) -> Option<Value> {
        read(&self.common("state.json"))
    }

    /// Removes the state, and the newest revisions that it could be made from again.
    pub(crate) fn lose_state(&self) {
        std::fs::remove_dir_all(self.common(".revisions")).unwrap();
        std::fs::remove_file(self.common("state.json")).unwrap();
    }

    pub(crate) fn holder(&self, job: &str) -> Option<String> {
        let state = self.state()?;
        let held = state["runs"].as_object()?.values().find(|held| held["job"] == job)?.clone();
        held["device"].as_str().map(str::to_owned)
    }

    pub(crate) fn ledger(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("ledger")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Whatever was done to the volume: one final result a run, no attempt started twice, every trigger put away.
    pub(crate) fn check(&self, job: &str, triggers: usize) {
        self.wait(&format!("{triggers} final results of {job}"), |volume| volume.finals(job) >= triggers);
        self.wait("the state to be empty", |volume| {
            volume.state().is_some_and(|state| state["runs"].as_object().is_some_and(|runs| runs.is_empty()))
        });
        let mut finals: BTreeMap<String, usize> = BTreeMap::new();
        for result in self.results(job) {
            *finals.entry(result["run_id"].to_string()).or_default() += usize::from(result["final"] == true);
        }
        assert_eq!(finals.len(), triggers, "runs of {job}");
        assert!(finals.values().all(|count| *count == 1), "{finals:?}");
        let mut starts: Vec<String> =
            self.ledger().iter().map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect();
        let all = starts.len();
        starts.sort();
        starts.dedup();
        assert_eq!(starts.len(), all, "an attempt was started twice");
        let processed = files(&self.common("TriggersProcessed")).len();
        assert!(processed >= triggers, "{processed} of {triggers} triggers are put away");
        assert_eq!(self.open_triggers(), Vec::<PathBuf>::new());
    }

    /// Returns the files of the triggers that are not put away yet.
    pub(crate) fn open_triggers(&self) -> Vec<PathBuf> {
        let is_json = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "json");
        files(&self.common("Triggers")).into_iter().filter(is_json).collect()
    }

    pub(crate) fn tell(&self) -> String {
        let mut text = String::new();
        for path in std::fs::read_dir(self.home.path()).unwrap().map(|entry| entry.unwrap().path()) {
            if path.extension().is_some_and(|ending| ending == "said") {
                let said = std::fs::read_to_string(&path).unwrap_or_default();
                let tail: Vec<&str> = said.lines().rev().take(30).collect();
                text += &format!("--- {}\n{}\n", path.display(), tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
        }
        text
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        for child in self.devices.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Devices that are killed leave their programs behind.
        let own = format!("AIOS_COMMON={}", self.path("Common").display());
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            let pid = entry.file_name().to_str().and_then(|pid| pid.parse().ok());
            if environment.split(|byte| *byte == 0).any(|variable| variable == own.as_bytes())
                && let Some(pid) = pid.and_then(rustix::process::Pid::from_raw)
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        if std::thread::panicking() {
            println!("{}", self.tell());
        }
    }
}

/// A file system in memory; it goes when this is dropped.
pub(crate) struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Mounts a small file system on a new folder. `None`: it cannot be done here, and what needs it is not tested.
pub(crate) fn mount_small(path: &Path, options: &str) -> Option<Mounted> {
    std::fs::create_dir_all(path).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(path).status();
    if mounted.is_ok_and(|status| status.success()) {
        return Some(Mounted(path.to_owned()));
    }
    println!("SKIPPED: a small file system cannot be mounted here (not root?); what happens on one is not tested");
    None
}

pub(crate) fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}

pub(crate) fn read(path: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Every file below a folder whose name does not begin with a dot, in order.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if !path.file_name().unwrap().to_string_lossy().starts_with('.') {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Processes that carry this run's marker, whoever started them.
pub(crate) fn processes_of(run: &str) -> Vec<String> {
    let own = |entry: std::fs::DirEntry| {
        let pid = entry.file_name().into_string().ok()?;
        let environment = std::fs::read(entry.path().join("environ")).ok()?;
        let text = String::from_utf8_lossy(&environment).into_owned();
        (pid.bytes().all(|b| b.is_ascii_digit()) && text.contains(&format!("AIOS_RUN_ID={run}"))).then_some(pid)
    };
    std::fs::read_dir("/proc").unwrap().filter_map(|entry| own(entry.ok()?)).collect()
}
