//! The image and the compose file as people use them: several devices in containers, one folder, and what goes wrong.
//!
//! The image is `AIOS_IMAGE`, by default `aios-orchestrator`, as `./debug.sh image` makes it, and the slim one that name with the
//! tag `slim`, as `./debug.sh slim` makes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::{SHELL, docker, eventually, has_image};

fn image() -> String {
    std::env::var("AIOS_IMAGE").unwrap_or_else(|_| "aios-orchestrator".to_owned())
}

/// The compose file, with folders and a name of its own.
struct Stack {
    home: TempDir,
    name: String,
}

impl Stack {
    /// `None`: there is no engine, or the image was not built.
    fn new() -> Option<Self> {
        if !has_image(&image()) || !has_image(SHELL) {
            return None;
        }
        let home = tempfile::tempdir().unwrap();
        for folder in ["Common", "Programs", "ledger"] {
            fs::create_dir(home.path().join(folder)).unwrap();
        }
        // A container's processes are whoever its image says.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(home.path().join("ledger"), mode).unwrap();
        Some(Self { home, name: format!("aios-test-{:08x}", rand::random::<u32>()) })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn job(&self, name: &str, text: &str) {
        fs::write(self.path("Programs").join(format!("{name}.toml")), text).unwrap();
    }

    fn drop_trigger(&self, name: &str, job: &str) {
        let part = self.path("Common/Triggers").join(format!(".{name}"));
        fs::write(&part, format!("{{\"job\": \"{job}\"}}")).unwrap();
        fs::rename(part, self.path("Common/Triggers").join(format!("{name}.json"))).unwrap();
    }

    fn compose(&self, words: &[&str]) -> String {
        let with_plugin = docker(&["compose", "version"]).is_ok();
        let mut command = Command::new(if with_plugin { "docker" } else { "docker-compose" });
        if with_plugin {
            command.arg("compose");
        }
        command
            .args(["-p", &self.name, "-f", concat!(env!("CARGO_MANIFEST_DIR"), "/docker-compose.yml")])
            .args(words)
            .env("AIOS_IMAGE", image())
            // Any port that is free.
            .env("AIOS_HTTP_PORT", "0")
            .env("AIOS_COMMON", self.path("Common"))
            .env("AIOS_PROGRAMS", self.path("Programs"))
            .env("AIOS_ALLOWED_VOLUMES", self.path("ledger"))
            .stdin(Stdio::null());
        let done = command.output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(done.status.success(), "{words:?}: {said}{}", String::from_utf8_lossy(&done.stderr));
        said
    }

    /// Starts devices and waits until all of them beat.
    fn up(&self, workers: usize) {
        self.compose(&["up", "-d", "--no-build", "--scale", &format!("worker={workers}"), "orchestrator", "worker"]);
        eventually("all devices to be alive", || (self.alive().len() == workers + 1).then_some(()));
    }

    fn containers(&self, service: &str) -> Vec<String> {
        self.compose(&["ps", "-q", service]).lines().map(str::to_owned).collect()
    }

    /// The devices that live, as the one with the socket says; of a volume that is not made yet, none.
    fn alive(&self) -> BTreeSet<String> {
        let main = self.containers("orchestrator").remove(0);
        let said = docker(&["exec", &main, "orchestrator", "devices", "list", "--json"]).unwrap_or_default();
        let devices: Vec<Value> = serde_json::from_str(&said).unwrap_or_default();
        let alive = devices.iter().filter(|device| device["alive"] == true);
        alive.map(|device| device["device"].as_str().unwrap().to_owned()).collect()
    }

    /// All results, by run and attempt.
    fn results(&self) -> BTreeMap<(String, u64), Value> {
        let mut all = BTreeMap::new();
        for day in fs::read_dir(self.path("Common/Results")).into_iter().flatten().flatten() {
            for file in fs::read_dir(day.path()).unwrap().flatten() {
                let name = file.file_name().into_string().unwrap();
                if name.starts_with('.') || name.contains(".superseded.") {
                    continue;
                }
                let Ok(text) = fs::read_to_string(file.path()) else { continue };
                let result: Value = serde_json::from_str(&text).unwrap();
                let key = (result["run_id"].as_str().unwrap().to_owned(), result["attempt"].as_u64().unwrap());
                all.insert(key, result);
            }
        }
        all
    }

    fn finals(&self) -> Vec<Value> {
        self.results().into_values().filter(|result| result["final"] == true).collect()
    }

    fn wait_for_finals(&self, count: usize) -> Vec<Value> {
        let mut last = (Instant::now(), 0);
        loop {
            let finals = self.finals();
            if finals.len() >= count {
                return finals;
            }
            if finals.len() > last.1 {
                last = (Instant::now(), finals.len());
            }
            assert!(last.0.elapsed() < Duration::from_secs(90), "{} of {count} have ended: {}", last.1, self.logs());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn logs(&self) -> String {
        self.compose(&["logs", "--tail", "30"])
    }

    fn wait_for(&self, name: &str) {
        eventually(name, || self.path(name).exists().then_some(()));
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let label = format!("label=com.docker.compose.project={}", self.name);
        let devices = docker(&["ps", "-aq", "--filter", &label]).unwrap_or_default();
        // What they made beside themselves goes by the volume's id.
        let id = fs::read_to_string(self.path("Common/.volume")).unwrap_or_default();
        let made = format!("label=aios.volume={}", id.trim());
        let jobs =
            if id.is_empty() { String::new() } else { docker(&["ps", "-aq", "--filter", &made]).unwrap_or_default() };
        for container in devices.lines().chain(jobs.lines()) {
            let _ = docker(&["rm", "-f", container]);
        }
        for network in ["devices", "engine"] {
            let _ = docker(&["network", "rm", &format!("{}_{network}", self.name)]);
        }
    }
}

/// Says that it ran, where no orchestrator looks.
const SAY: &str = r#"echo "$AIOS_RUN_ID $AIOS_ATTEMPT $AIOS_DEVICE_ID" >>"#;

#[test]
fn each_trigger_runs_once_whoever_is_killed_and_paused() {
    const NATIVE: usize = 150;
    const INSIDE: usize = 50;
    let Some(stack) = Stack::new() else { return };
    let ledger = stack.path("ledger");
    stack.job(
        "native",
        &format!("command = [\"sh\", \"-c\", '{SAY} $AIOS_COMMON/ledger; sleep 0.2']\ntags = [\"worker\"]\n"),
    );
    stack.job(
        "inside",
        &format!(
            "command = [\"sh\", \"-c\", '{SAY} /ledger/lines; sleep 0.2']\ndocker = {{image = \"{SHELL}\", volumes = [\"{}:/ledger\"]}}\n",
            ledger.display()
        ),
    );
    stack.job("here", &format!("command = [\"sh\", \"-c\", '{SAY} $AIOS_COMMON/ledger']\ntags = [\"storage\"]\n"));
    stack.up(3);
    for number in 0..NATIVE {
        stack.drop_trigger(&format!("n{number}"), if number % 10 == 0 { "here" } else { "native" });
        if number % 3 == 0 {
            stack.drop_trigger(&format!("i{number}"), "inside");
        }
    }
    stack.wait_for("Common/ledger");
    let workers = stack.containers("worker");
    docker(&["kill", &workers[0]]).unwrap();
    docker(&["pause", &workers[1]]).unwrap();
    // Longer than the lease. Not for ever: where it stands still while it holds the lock, all wait for it, by design.
    let until = Instant::now() + Duration::from_secs(20);
    eventually("the lease to pass", || (Instant::now() > until).then_some(()));
    docker(&["unpause", &workers[1]]).unwrap();
    let finals = stack.wait_for_finals(NATIVE + INSIDE);
    assert_eq!(finals.len(), NATIVE + INSIDE, "one final result a run");
    let main = "docker-main";
    for result in &finals {
        assert_eq!(result["status"], "succeeded", "{result}");
        let (job, device) = (result["job"].as_str().unwrap(), result["device"].as_str().unwrap());
        assert_eq!(device == main, job != "native", "{result}");
        assert_eq!(result["executor"], if job == "inside" { "docker" } else { "native" });
    }
    // The ledger: every attempt that was started says so once; attempts grow only where one was lost.
    let lines = [stack.path("Common/ledger"), ledger.join("lines")].map(|path| fs::read_to_string(path).unwrap());
    let lines: Vec<&str> = lines.iter().flat_map(|text| text.lines()).collect();
    let mut started: BTreeMap<(String, u64), usize> = BTreeMap::new();
    for line in &lines {
        let words: Vec<&str> = line.split(' ').collect();
        *started.entry((words[0].to_owned(), words[1].parse().unwrap())).or_default() += 1;
    }
    assert!(started.values().all(|count| *count == 1), "an attempt was started twice: {started:?}");
    let results = stack.results();
    for result in &finals {
        let key = (result["run_id"].as_str().unwrap().to_owned(), result["attempt"].as_u64().unwrap());
        assert!(started.contains_key(&key), "accepted and never started: {result}");
        for attempt in 1..key.1 {
            let earlier = (key.0.clone(), attempt);
            // A claim that was not committed has no result: the attempt is skipped, because it was never started.
            let Some(before) = results.get(&earlier) else {
                assert!(!started.contains_key(&earlier), "attempt {attempt} has started and has no result: {result}");
                continue;
            };
            assert_eq!((before["status"].as_str(), before["final"].as_bool()), (Some("lost"), Some(false)), "{before}");
        }
    }
    // The one that was paused finds that its runs are others' by now, and takes work again.
    for number in 0..4 {
        stack.drop_trigger(&format!("after{number}"), "native");
    }
    stack.wait_for_finals(NATIVE + INSIDE + 4);
    stack.compose(&["up", "-d", "--no-build", "--scale", "worker=5", "orchestrator", "worker"]);
    eventually("five workers", || (stack.alive().len() >= 6).then_some(()));
}

#[test]
fn a_killed_device_comes_back_to_its_containers() {
    let Some(stack) = Stack::new() else { return };
    let count = "i=0; while [ ! -e /ledger/end ]; do i=$((i+1)); echo line $i; touch /ledger/up; sleep 0.05; done; echo 42 >$AIOS_RESULT; exit 3";
    let volume = stack.path("ledger").display().to_string();
    let docker_table = format!("docker = {{image = \"{SHELL}\", volumes = [\"{volume}:/ledger\"]}}\n");
    stack.job("count", &format!("command = [\"sh\", \"-c\", '{count}']\n{docker_table}"));
    stack.up(1);
    stack.drop_trigger("count", "count");
    stack.wait_for("ledger/up");
    let main = stack.containers("orchestrator").remove(0);
    docker(&["kill", &main]).unwrap();
    docker(&["start", &main]).unwrap();
    eventually("its next life", || (stack.alive().len() == 2).then_some(()));
    fs::write(stack.path("ledger/end"), "").unwrap();
    let result = stack.wait_for_finals(1).remove(0);
    let told = (&result["attempt"], &result["status"], &result["exit_code"], &result["result"], &result["device"]);
    assert_eq!(serde_json::json!(told), serde_json::json!([1, "failed", 3, 42, "docker-main"]), "{}", stack.logs());
    let log = fs::read_to_string(stack.path("Common").join(result["log"].as_str().unwrap())).unwrap();
    assert!(log.lines().count() > 3 && log.lines().zip(1..).all(|(line, at)| line == format!("line {at}")), "{log}");
    assert!(fs::read_dir(stack.path("Common/.work")).unwrap().next().is_none(), "its work folder is removed");
}

#[test]
fn what_a_dead_device_left_running_is_ended_before_its_run_goes_on() {
    let Some(stack) = Stack::new() else { return };
    let volume = stack.path("ledger").display().to_string();
    let script = "touch /ledger/$AIOS_ATTEMPT; while [ ! -e /ledger/end ]; do sleep 0.05; done; echo over >/ledger/over-$AIOS_ATTEMPT";
    stack.job(
        "job",
        &format!("command = [\"sh\", \"-c\", '{script}']\ndocker = {{image = \"{SHELL}\", volumes = [\"{volume}:/ledger\"]}}\n"),
    );
    // The worker reaches no engine: it may be the one who sees the death first.
    stack.up(1);
    let main = stack.containers("orchestrator").remove(0);
    // A second device on the same engine, with the same folders.
    let name = format!("{}-second", stack.name);
    let second = |words: &[&str]| {
        let label = format!("com.docker.compose.project={}", stack.name);
        let common = format!("{}:/aios/Common", stack.path("Common").display());
        let programs = format!("{}:/aios/Programs:ro", stack.path("Programs").display());
        let socket = "/var/run/docker.sock:/var/run/docker.sock";
        let image = image();
        let allowed = format!("AIOS_ALLOWED_VOLUMES={volume}");
        let fixed = [
            "run",
            "-d",
            "--name",
            &name,
            "--label",
            &label,
            "-v",
            &common,
            "-v",
            &programs,
            "-v",
            socket,
            "-e",
            &allowed,
            "-e",
            "DEVICE_ID=second",
            &image,
        ];
        docker(&[&fixed[..], words].concat()).unwrap()
    };
    stack.drop_trigger("job", "job");
    stack.wait_for("ledger/1");
    second(&["run", "--lease", "6s"]);
    eventually("the second device", || stack.alive().contains("second").then_some(()));
    docker(&["kill", &main]).unwrap();
    stack.wait_for("ledger/2");
    let volume = fs::read_to_string(stack.path("Common/.volume")).unwrap();
    let of_volume = format!("label=aios.volume={}", volume.trim());
    let format = "{{.Label \"aios.attempt\"}} {{.Label \"aios.device\"}}";
    let running = docker(&["ps", "--filter", &of_volume, "--format", format]).unwrap();
    assert!(running.lines().any(|line| line == "2 second"), "{running}");
    assert!(!running.lines().any(|line| line == "1 docker-main"), "the first attempt goes on: {running}");
    fs::write(stack.path("ledger/end"), "").unwrap();
    let result = stack.wait_for_finals(1).remove(0);
    assert_eq!((result["attempt"].as_u64(), result["status"].as_str()), (Some(2), Some("succeeded")), "{result}");
    assert!(!stack.path("ledger/over-1").exists());
}

#[test]
fn ten_thousand_orphans_leave_no_zombie_and_take_no_exit_code() {
    let Some(stack) = Stack::new() else { return };
    let storm = "import os, sys\nfor _ in range(10000):\n    if os.fork() == 0:\n        if os.fork() == 0:\n            os._exit(0)\n        os._exit(0)\n    os.wait()\n";
    fs::write(stack.path("Programs/storm.py"), storm).unwrap();
    stack.job("storm", "file = \"storm.py\"\n");
    stack.job("exits", "command = [\"sh\", \"-c\", \"sleep 0.05; exit $((AIOS_ATTEMPT + 6))\"]\n");
    stack.up(0);
    let main = stack.containers("orchestrator").remove(0);
    stack.drop_trigger("storm", "storm");
    for number in 0..40 {
        stack.drop_trigger(&format!("exits{number}"), "exits");
    }
    // Those of a process that the engine put in beside the device are process 1's own.
    docker(&["exec", &main, "python3", "/aios/Programs/storm.py"]).unwrap();
    let finals = stack.wait_for_finals(41);
    for result in finals.iter().filter(|result| result["job"] == "exits") {
        assert_eq!(result["exit_code"], 7, "{result}");
    }
    let zombies = "import glob\nprint(sum(open(p).read().rsplit(')', 1)[1].split()[0] == 'Z' for p in glob.glob('/proc/[0-9]*/stat')))";
    eventually("the last zombie to go", || {
        (docker(&["exec", &main, "python3", "-c", zombies]).as_deref() == Ok("0")).then_some(())
    });
    assert_eq!(docker(&["inspect", "--format", "{{.State.Running}}", &main]).as_deref(), Ok("true"));
    // A stop drains it: exit code 0, not 143.
    docker(&["stop", &main]).unwrap();
    assert_eq!(docker(&["inspect", "--format", "{{.State.ExitCode}}", &main]).as_deref(), Ok("0"));
}

#[test]
fn the_self_test_passes_in_the_image_and_its_health_is_told() {
    let Some(stack) = Stack::new() else { return };
    let said = stack.compose(&["run", "--rm", "test"]);
    assert!(said.contains("a killed device's run goes on elsewhere") && !said.contains("FAIL"), "{said}");
    stack.up(0);
    let main = stack.containers("orchestrator").remove(0);
    assert!(docker(&["exec", &main, "orchestrator", "health"]).is_ok());
    assert!(
        docker(&["exec", &main, "orchestrator", "health", "nobody"])
            .is_err_and(|said| said.contains("has no heartbeat"))
    );
    let format = "{{json .HostConfig.CapDrop}} {{.HostConfig.ReadonlyRootfs}} {{json .HostConfig.SecurityOpt}}";
    let rights = docker(&["inspect", "--format", format, &main]).unwrap();
    assert_eq!(rights, "[\"ALL\"] true [\"no-new-privileges:true\"]");
}

#[test]
fn the_slim_image_starts_containers() {
    let slim = format!("{}:slim", image());
    if !has_image(&slim) || !has_image(SHELL) {
        return;
    }
    let Some(stack) = Stack::new() else { return };
    stack.job(
        "job",
        &format!("command = [\"sh\", \"-c\", \"echo out; echo 7 >$AIOS_RESULT\"]\ndocker.image = \"{SHELL}\"\n"),
    );
    let label = format!("com.docker.compose.project={}", stack.name);
    let common = format!("{}:/aios/Common", stack.path("Common").display());
    let programs = format!("{}:/aios/Programs:ro", stack.path("Programs").display());
    let socket = "/var/run/docker.sock:/var/run/docker.sock";
    let words = ["run", "-d", "--label", &label, "--read-only", "-v", &common, "-v", &programs, "-v", socket, &slim];
    docker(&words).unwrap();
    stack.wait_for("Common/Triggers");
    stack.drop_trigger("job", "job");
    let result = stack.wait_for_finals(1).remove(0);
    assert_eq!((result["status"].as_str(), result["result"].as_u64()), (Some("succeeded"), Some(7)), "{result}");
    let bytes: u64 = docker(&["image", "inspect", "--format", "{{.Size}}", &slim]).unwrap().parse().unwrap();
    assert!(bytes < 20_000_000, "the slim image has {bytes} bytes");
}
