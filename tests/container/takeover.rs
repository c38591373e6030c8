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

    /// Starts the device with this job, and one attempt of it that goes on.
    fn start_with(&mut self, job: &str) {
        self.job(job);
        self.start();
        self.drop_trigger();
        self.wait_for("out/up-1");
    }

    /// Asks the device to leave, and waits until it has.
    fn leave(&mut self) {
        if let Some(mut device) = self.device.take() {
            let pid = rustix::process::Pid::from_child(&device);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
            assert!(device.wait().unwrap().success());
        }
    }

    fn drop_trigger(&self) {
        self.drop_file("job", "{\"job\": \"job\"}");
    }

    fn drop_file(&self, name: &str, text: &str) {
        eventually("the inbox", || self.path("Common/Triggers").exists().then_some(()));
        let part = self.path("Common/Triggers").join(format!(".{name}"));
        fs::write(&part, text).unwrap();
        fs::rename(part, self.path("Common/Triggers").join(format!("{name}.json"))).unwrap();
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
    let job = machine.container();
    machine.start_with(&job);
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
    let job = machine.container();
    machine.start_with(&job);
    machine.kill();
    machine.job("command = [\"true\"]\n");
    machine.start();
    let results = eventually("both results", || Some(machine.results()).filter(|results| results.len() == 2));
    let told: Vec<_> = results.iter().map(|it| (&it["attempt"], &it["status"], &it["executor"])).collect();
    assert_eq!(serde_json::json!(told), serde_json::json!([[1, "lost", "native"], [2, "succeeded", "native"]]));
    // Before the second attempt began, the first one's container was gone: never both.
    assert_eq!(machine.containers(), "");
}

#[test]
fn a_kept_container_serves_one_run_after_another_and_ends_with_its_device() {
    let Some(mut machine) = Machine::new() else { return };
    let out = machine.path("out").display().to_string();
    // What it leaves in its work folder the next one does not find, and links lead nobody anywhere.
    let script = "[ -e /tmp/mark ] && again=true || again=false; touch /tmp/mark; cat $AIOS_TRIGGER >/out/$1\n\
        cd $(dirname $AIOS_RESULT); found=$(ls -A | tr '\\n' ' '); mkdir -p a/b; touch a/b/c; ln -s /out a/link; ln -s /out link\n\
        printf '{\"again\": %s, \"found\": \"%s\"}' $again \"$found\" >$AIOS_RESULT; while [ -e /out/wait ]; do touch /out/up-$AIOS_ATTEMPT; sleep 0.05; done";
    fs::write(machine.path("Programs/job.sh"), script).unwrap();
    machine.job(&format!(
        "file = \"job.sh\"\n[docker]\nimage = \"{SHELL}\"\nkeep_warm = \"1h\"\nvolumes = [\"{out}:/out\"]\n"
    ));
    machine.start();
    for (number, again) in [(1, false), (2, true), (3, true)] {
        machine.drop_file(&format!("t{number}"), &format!("{{\"job\": \"job\", \"args\": [\"{number}\"]}}"));
        let results = eventually("the result", || Some(machine.results()).filter(|all| all.len() == number));
        let last = &results[number - 1];
        let told = (&last["status"], &last["executor"], &last["result"]);
        let result = serde_json::json!({"again": again, "found": "trigger.json "});
        assert_eq!(serde_json::json!(told), serde_json::json!(["succeeded", "docker", result]), "{last}");
        let trigger: Value =
            serde_json::from_slice(&fs::read(machine.path(&format!("out/{number}"))).unwrap()).unwrap();
        assert_eq!(trigger["args"], serde_json::json!([number.to_string()]));
    }
    assert_eq!(machine.containers().lines().count(), 1);
    // One that runs there ends with its device, and its run goes on.
    fs::write(machine.path("out/wait"), "").unwrap();
    machine.drop_trigger();
    machine.wait_for("out/up-1");
    machine.kill();
    machine.start();
    machine.wait_for("out/up-2");
    assert_eq!(machine.containers().lines().count(), 1, "the first attempt's has gone");
    fs::remove_file(machine.path("out/wait")).unwrap();
    let results = eventually("all results", || Some(machine.results()).filter(|all| all.len() == 5));
    let told: Vec<_> = results[3..].iter().map(|it| (&it["attempt"], &it["status"])).collect();
    assert_eq!(serde_json::json!(told), serde_json::json!([[1, "lost"], [2, "succeeded"]]));
    machine.leave();
    assert_eq!(machine.containers(), "", "what waits for another run goes with its device");
    let left: Vec<_> = fs::read_dir(machine.path("Common/.work")).unwrap().flatten().map(|it| it.file_name()).collect();
    // What a life left that was killed is removed when nobody can come back to it any more.
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn a_daemon_that_goes_on_by_an_old_definition_is_started_anew() {
    let Some(mut machine) = Machine::new() else { return };
    machine.job(&format!("type = \"always\"\nbackoff = \"0s\"\n{}", machine.container()));
    machine.start();
    machine.wait_for("out/up-1");
    machine.kill();
    machine.job(&format!("type = \"always\"\nenv = {{NEW = \"1\"}}\n{}", machine.container()));
    machine.start();
    machine.wait_for("out/up-2");
    let running = machine.containers();
    assert_eq!(running.lines().count(), 1, "{running}");
    let env = docker(&["inspect", "--format", "{{.Config.Env}}", &running]).unwrap();
    assert!(env.contains("NEW=1"), "{env}");
    // By the same definition it goes on.
    machine.kill();
    machine.start();
    eventually("the takeover", || {
        fs::read_to_string(machine.path("said")).unwrap().contains("is taken over").then_some(())
    });
    assert_eq!(machine.containers(), running);
}

#[test]
fn a_container_that_somebody_removes_is_lost_and_its_run_goes_on_until_the_third_time() {
    let Some(mut machine) = Machine::new() else { return };
    machine.job(&machine.container());
    machine.start();
    machine.drop_trigger();
    for attempt in 1..=3 {
        machine.wait_for(&format!("out/up-{attempt}"));
        docker(&["rm", "-f", &machine.containers()]).unwrap();
    }
    let results = eventually("three results", || Some(machine.results()).filter(|results| results.len() == 3));
    let told: Vec<_> = results.iter().map(|it| (&it["status"], &it["final"], &it["losses"])).collect();
    assert_eq!(serde_json::json!(told), serde_json::json!([["lost", false, 1], ["lost", false, 2], ["lost", true, 3]]));
    let error = results[2]["error"].as_str().unwrap();
    assert!(error.contains("removed by somebody else") && error.contains("third in a row"), "{error}");
}

#[test]
fn a_container_that_somebody_removes_ends_a_run_that_must_not_repeat_itself() {
    let Some(mut machine) = Machine::new() else { return };
    let job = format!("on_lost = \"fail\"\n{}", machine.container());
    machine.start_with(&job);
    docker(&["rm", "-f", &machine.containers()]).unwrap();
    let result = eventually("the result", || machine.results().pop());
    assert_eq!((result["status"].as_str(), result["final"].as_bool()), (Some("lost"), Some(true)), "{result}");
    assert!(result["error"].as_str().unwrap().contains("on_lost"), "{result}");
}

#[test]
fn what_a_container_has_in_use_is_told_with_the_heartbeat() {
    let Some(mut machine) = Machine::new() else { return };
    let container = machine.container();
    machine.start_with(&container);
    let used = |machine: &Machine| -> Vec<Value> {
        let beat = fs::read(machine.path("Common/Devices/d.json")).unwrap_or_default();
        let beat: Value = serde_json::from_slice(&beat).unwrap_or_default();
        beat["machine"]["runs"].as_array().cloned().unwrap_or_default()
    };
    eventually("its use is told", || {
        let used = used(&machine);
        let is_told = used.len() == 1
            && used[0]["attempt"] == 1
            && used[0]["processes"].as_u64().is_some_and(|count| (1..10).contains(&count))
            && used[0]["memory_bytes"].as_u64().is_some_and(|bytes| (1..1 << 30).contains(&bytes));
        is_told.then_some(())
    });
    fs::write(machine.path("out/end"), "").unwrap();
    eventually("it is told no more", || used(&machine).is_empty().then_some(()));
}
