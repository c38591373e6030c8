//! A device as a process of this machine, killed while a container of it goes on.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::{SHELL, docker, eventually, has_image};

/// A volume and one device on it.
struct Machine {
    home: TempDir,
    device: Option<Child>,
}

impl Machine {
    /// `None`: there is no engine.
    fn new() -> Option<Self> {
        if !has_image(SHELL) {
            return None;
        }
        let home = tempfile::tempdir().unwrap();
        for folder in ["Common", "Programs", "out"] {
            fs::create_dir(home.path().join(folder)).unwrap();
        }
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(home.path().join("out"), mode).unwrap();
        Some(Self { home, device: None })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn job(&self, text: &str) {
        fs::write(self.path("Programs/job.toml"), text).unwrap();
    }

    /// A container that says that it is up, and goes on until it is told to end.
    fn container(&self) -> String {
        let out = self.path("out").display().to_string();
        let script = "touch /out/up-$AIOS_ATTEMPT; while [ ! -e /out/end ]; do sleep 0.05; done; exit 6";
        format!(
            "command = [\"sh\", \"-c\", \"{script}\"]\ndocker = {{image = \"{SHELL}\", volumes = [\"{out}:/out\"]}}\n"
        )
    }

    fn start(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.path("said")).unwrap();
        let device = Command::new(env!("CARGO_BIN_EXE_orchestrator"))
            .args(["run", "--device-id", "d", "--docker-host", "unix:///var/run/docker.sock", "--allowed-volumes"])
            .arg(self.path("out"))
            .arg("--common")
            .arg(self.path("Common"))
            .arg("--programs")
            .arg(self.path("Programs"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.device = Some(device.unwrap());
    }

    fn kill(&mut self) {
        if let Some(mut device) = self.device.take() {
            device.kill().unwrap();
            device.wait().unwrap();
        }
    }

    fn drop_trigger(&self) {
        eventually("the inbox", || self.path("Common/Triggers").exists().then_some(()));
        fs::write(self.path("Common/Triggers/job.json"), "{\"job\": \"job\"}").unwrap();
    }

    fn wait_for(&self, name: &str) {
        eventually(name, || self.path(name).exists().then_some(()));
    }

    /// The results so far, by attempt.
    fn results(&self) -> Vec<Value> {
        let days = fs::read_dir(self.path("Common/Results")).into_iter().flatten().flatten();
        let files = days.flat_map(|day| fs::read_dir(day.path()).unwrap().flatten()).map(|file| file.path());
        let mut files: Vec<PathBuf> =
            files.filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with('.')).collect();
        files.sort();
        files.iter().map(|path| serde_json::from_slice(&fs::read(path).unwrap()).unwrap()).collect()
    }

    fn containers(&self) -> String {
        let id = fs::read_to_string(self.path("Common/.volume")).unwrap_or_default();
        let label = format!("label=aios.volume={}", id.trim());
        docker(&["ps", "-aq", "--filter", &label]).unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
        for container in self.containers().lines() {
            let _ = docker(&["rm", "-f", container]);
        }
    }
}

#[test]
fn a_container_goes_on_through_a_kill_of_its_device() {
    let Some(mut machine) = Machine::new() else { return };
    machine.job(&machine.container());
    machine.start();
    machine.drop_trigger();
    machine.wait_for("out/up-1");
    machine.kill();
    machine.start();
    fs::write(machine.path("out/end"), "").unwrap();
    let result = eventually("the result", || machine.results().pop());
    let told = (&result["attempt"], &result["status"], &result["exit_code"], &result["executor"]);
    assert_eq!(serde_json::json!(told), serde_json::json!([1, "failed", 6, "docker"]));
}

#[test]
fn what_goes_on_is_ended_once_its_job_runs_in_no_container_any_more() {
    let Some(mut machine) = Machine::new() else { return };
    machine.job(&machine.container());
    machine.start();
    machine.drop_trigger();
    machine.wait_for("out/up-1");
    machine.kill();
    machine.job("command = [\"true\"]\n");
    machine.start();
    let results = eventually("both results", || Some(machine.results()).filter(|results| results.len() == 2));
    let told: Vec<_> = results.iter().map(|it| (&it["attempt"], &it["status"], &it["executor"])).collect();
    assert_eq!(serde_json::json!(told), serde_json::json!([[1, "lost", "native"], [2, "succeeded", "native"]]));
    // Before the second attempt began, the first one's container was gone: never both.
    assert_eq!(machine.containers(), "");
}
