//! The README's first commands in fresh clones of this checkout, as root and as two other users, without a variable set.
//!
//! The clones share the image, its layers and port 8080, so one test goes through them one after the other.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::{SHELL, docker, eventually, has_image};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const SOCKET: &str = "/var/run/docker.sock";

/// A clone in a folder of its own that belongs to one user, who may use the engine.
struct Clone {
    home: TempDir,
    uid: u32,
    /// Of the engine's socket.
    group: u32,
}

impl Clone {
    /// Copies what is tracked, as it lies here, so that what is not committed yet is tested too. `None`: only root can give it
    /// to the user.
    fn of_checkout(uid: u32) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "this test needs root");
            eprintln!("SKIPPED: only root can make clones for other users");
            return None;
        }
        // In the user's own folder, below one that everybody may enter.
        let home = tempfile::Builder::new().prefix(&format!("aios-u{uid}-")).tempdir().unwrap();
        let clone = Self { home, uid, group: fs::metadata(SOCKET).unwrap().gid() };
        fs::create_dir(clone.root()).unwrap();
        let tracked = Command::new("git").args(["-c", "safe.directory=*", "ls-files", "-z"]).current_dir(ROOT).output();
        let tracked = tracked.unwrap();
        assert!(tracked.status.success(), "{}", String::from_utf8_lossy(&tracked.stderr));
        for name in String::from_utf8(tracked.stdout).unwrap().split_terminator('\0') {
            let (from, to) = (Path::new(ROOT).join(name), clone.root().join(name));
            if from.exists() {
                fs::create_dir_all(to.parent().unwrap()).unwrap();
                fs::copy(from, to).unwrap();
            }
        }
        fs::set_permissions(clone.home.path(), PermissionsExt::from_mode(0o755)).unwrap();
        give(clone.home.path(), uid);
        Some(clone)
    }

    fn root(&self) -> PathBuf {
        self.home.path().join("aios")
    }

    /// The name that compose gives to what belongs to the clone.
    fn project(&self) -> String {
        format!("aios-fresh-{}", self.uid)
    }

    /// Runs words of the README as the user, with nothing in the environment that the README does not name.
    fn runs(&self, words: &[&str]) -> Output {
        let ids = [self.uid.to_string(), format!("{},{}", self.uid, self.group)];
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &ids[0], "--regid", &ids[0], "--groups", &ids[1]]).args(words);
        command.current_dir(self.root()).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        // Only so that the clones of several checkouts do not meet.
        command.env("HOME", self.home.path()).env("COMPOSE_PROJECT_NAME", self.project());
        command.stdin(Stdio::null()).output().unwrap()
    }

    fn succeeds(&self, words: &[&str]) -> String {
        let done = self.runs(words);
        let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "user {}: {words:?}: {said}", self.uid);
        said
    }

    fn compose(&self, words: &[&str]) -> String {
        self.succeeds(&[&compose()[..], words].concat())
    }

    fn containers(&self, service: &str) -> Vec<String> {
        self.compose(&["ps", "-q", service]).lines().map(str::to_owned).collect()
    }

    fn drop_trigger(&self, name: &str, text: &str) {
        let inbox = self.root().join("Common/Triggers");
        // No device takes a hidden name: it is the user's before it is taken.
        let part = inbox.join(format!(".{name}"));
        fs::write(&part, text).unwrap();
        chown(&part, Some(self.uid), Some(self.uid)).unwrap();
        fs::rename(part, inbox.join(format!("{name}.json"))).unwrap();
    }

    /// The statuses of all results of a job, and on which devices they were made.
    fn results(&self, job: &str) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for day in fs::read_dir(self.root().join("Common/Results")).unwrap().flatten().filter(|day| day.path().is_dir())
        {
            for file in fs::read_dir(day.path()).unwrap().flatten() {
                let text = fs::read_to_string(file.path()).unwrap_or_default();
                let Ok(result) = serde_json::from_str::<Value>(&text) else { continue };
                if result["job"] == job {
                    let word = |key: &str| result[key].as_str().unwrap_or_default().to_owned();
                    found.push((word("status"), word("device")));
                }
            }
        }
        found
    }

    fn wait_for_success(&self, job: &str, count: usize) {
        eventually(&format!("{count} results of {job}"), || {
            let results = self.results(job);
            assert!(results.iter().all(|(status, _)| status == "succeeded"), "{results:?}");
            (results.len() == count).then_some(())
        });
    }

    /// Looks at every process of a device: its user, its capabilities, and that it can get no new ones.
    fn has_only_its_owner(&self, container: &str) {
        let list = docker(&["exec", container, "sh", "-c", "for p in /proc/[0-9]*; do cat $p/status; done"]).unwrap();
        let mut processes = 0;
        for status in list.split("Name:\t").skip(1) {
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap_or_default().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
            };
            // Process 1 and its child; what the engine puts in beside them, such as this look, begins as root.
            if field("Pid:") != ["1"] && field("PPid:") != ["1"] {
                continue;
            }
            processes += 1;
            let ids = vec![self.uid.to_string(); 4];
            assert_eq!(field("Uid:"), ids, "{status}");
            assert_eq!(field("Gid:"), ids, "{status}");
            for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
                assert_eq!(field(set), ["0000000000000000"], "{set} {status}");
            }
            assert_eq!(field("NoNewPrivs:"), ["1"], "{status}");
        }
        assert_eq!(processes, 2, "process 1 and the device: {list}");
    }
}

impl Drop for Clone {
    fn drop(&mut self) {
        let label = format!("label=com.docker.compose.project={}", self.project());
        for container in docker(&["ps", "-aq", "--filter", &label]).unwrap_or_default().lines() {
            let _ = docker(&["rm", "-f", container]);
        }
        for network in ["devices", "engine"] {
            let _ = docker(&["network", "rm", &format!("{}_{network}", self.project())]);
        }
    }
}

/// Gives a folder and all that is in it to a user.
fn give(path: &Path, uid: u32) {
    std::os::unix::fs::lchown(path, Some(uid), Some(uid)).unwrap();
    if path.symlink_metadata().unwrap().is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), uid);
        }
    }
}

fn compose() -> Vec<&'static str> {
    if docker(&["compose", "version"]).is_ok() { vec!["docker", "compose"] } else { vec!["docker-compose"] }
}

#[test]
fn every_user_of_a_fresh_clone_gets_by_with_the_commands_of_the_readme() {
    if !has_image("aios-orchestrator") || !has_image(SHELL) {
        return;
    }
    let readme = fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
    for command in ["docker compose up -d", "docker compose run --rm test", "--scale worker="] {
        assert!(readme.contains(command), "README does not name `{command}`");
    }
    for uid in [0, 1000, 1001] {
        let Some(clone) = Clone::of_checkout(uid) else { return };
        // What is dropped before there is a device is run when one comes up.
        clone.succeeds(&["cp", "examples/triggers/hello.json", "Common/Triggers/"]);
        clone.compose(&["up", "-d"]);
        clone.wait_for_success("hello", 1);
        let image = format!("{{\"command\": [\"id\"], \"docker\": {{\"image\": \"{SHELL}\"}}}}");
        clone.drop_trigger("inside", &image);
        eventually("the container of a trigger", || {
            (clone.results("inside") == [("succeeded".to_owned(), "docker-main".to_owned())]).then_some(())
        });
        let said = clone.compose(&["exec", "-T", "orchestrator", "orchestrator", "trigger", "hello", "Ada", "--wait"]);
        assert!(said.contains("Hello, Ada!"), "{said}");
        let said = clone.compose(&["run", "--rm", "test"]);
        assert!(said.contains("27 checks, 0 failed"), "{said}");
        clone.compose(&["up", "-d", "--scale", "worker=3"]);
        let workers = clone.containers("worker");
        assert_eq!(workers.len(), 3);
        for container in workers.iter().chain(&clone.containers("orchestrator")) {
            clone.has_only_its_owner(container);
        }
        let said = clone.compose(&["logs", "orchestrator"]);
        for line in ["ready     device docker-main", "http://localhost:8080", "./debug.sh down"] {
            assert!(said.contains(line), "{line}: {said}");
        }
        clone.compose(&["down"]);
        clone.compose(&["up", "-d"]);
        clone.drop_trigger("again", "{\"job\": \"hello\"}");
        clone.wait_for_success("hello", 3);
        clone.compose(&["down"]);
        // All that was made is the user's: removing the clone needs no other one.
        let owners: BTreeSet<u32> =
            walk(&clone.root()).iter().map(|path| path.symlink_metadata().unwrap().uid()).collect();
        assert_eq!(owners, BTreeSet::from([uid]));
    }
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.symlink_metadata().unwrap().is_dir() {
            found.extend(walk(&path));
        }
        found.push(path);
    }
    found
}

#[test]
fn a_folder_that_cannot_be_written_is_named_once() {
    if !has_image("aios-orchestrator") {
        return;
    }
    let Some(clone) = Clone::of_checkout(1002) else { return };
    fs::set_permissions(clone.root().join("Common"), PermissionsExt::from_mode(0o555)).unwrap();
    let done = clone.runs(&[&compose()[..], &["up", "-d"]].concat());
    assert!(!done.status.success());
    let said = clone.compose(&["logs", "setup"]);
    let lines: Vec<&str> = said.lines().filter(|line| line.contains("error:")).collect();
    assert_eq!(lines.len(), 1, "{said}");
    for part in [
        "/aios/Common belongs to user 1002, group 1002 (mode 0555)",
        "this container is user 1002, group 1002",
        "chmod -R u+rwX ./Common",
    ] {
        assert!(lines[0].contains(part), "{part}: {said}");
    }
    let label = format!("label=com.docker.compose.project={}", clone.project());
    let all = docker(&["ps", "-a", "--filter", &label, "--format", "{{.Status}}"]).unwrap();
    assert!(all.lines().any(|status| status.starts_with("Exited (4)")), "{all}");
    assert!(!all.contains("Restarting") && !all.contains("Up "), "{all}");
    // A single container says the same and ends with the same code.
    let (code, said) = run(&clone, &[]);
    assert!(code == 4 && said.contains("/aios/Common belongs to user 1002"), "{code}: {said}");
    // What root has left behind is found before a device starts, in one round.
    fs::set_permissions(clone.root().join("Common"), PermissionsExt::from_mode(0o755)).unwrap();
    fs::write(clone.root().join("Common/.state.lock"), "").unwrap();
    let (code, said) = run(&clone, &["init"]);
    assert!(code == 4 && said.contains("on the host: sudo chown -R 1002:1002"), "{code}: {said}");
    give(clone.home.path(), 1002);
    let (code, said) = run(&clone, &["init"]);
    assert!(code == 0 && said.contains("is ready"), "{code}: {said}");
}

/// Runs the image as `docker run` does, with these options and, behind the image, these words.
fn run_with(clone: &Clone, options: &[&str], words: &[&str]) -> (i32, String) {
    let mounts = ["Common", "Programs"].map(|name| format!("{}:/aios/{name}", clone.root().join(name).display()));
    let before = ["run", "--rm", "-v", &mounts[0], "-v", &mounts[1]];
    let words = [&before[..], options, &["aios-orchestrator"], words].concat();
    let done = Command::new("docker").args(words).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    (done.status.code().unwrap(), said)
}

fn run(clone: &Clone, words: &[&str]) -> (i32, String) {
    run_with(clone, &[], words)
}

#[test]
fn a_container_becomes_who_it_is_told_to_be_and_says_why_it_cannot() {
    if !has_image("aios-orchestrator") {
        return;
    }
    let Some(clone) = Clone::of_checkout(1003) else { return };
    let id = |options: &[&str]| {
        let device = ["--http", "none", "--docker-host", "none", "--stop-grace", "0s"];
        let name = format!("aios-identity-{:08x}", rand::random::<u32>());
        let options = [&["-d", "--name", &name][..], options].concat();
        let (code, said) = run_with(&clone, &options, &[&["run"][..], &device].concat());
        assert_eq!(code, 0, "{said}");
        // A native job has what its device has.
        let text =
            r#"{"command": ["sh", "-c", "grep -hE '^(Uid|Gid|Groups|CapEff|CapPrm|NoNewPrivs):' /proc/self/status"]}"#;
        let trigger = format!("id-{name}");
        clone.drop_trigger(&trigger, text);
        let log = eventually("what the job printed", || {
            let days = fs::read_dir(clone.root().join("Common/Logs")).unwrap().flatten();
            let mut files = days.filter_map(|day| fs::read_dir(day.path()).ok()).flatten().flatten();
            let file = files.find(|file| file.file_name().to_string_lossy().starts_with(&trigger))?;
            fs::read_to_string(file.path()).ok().filter(|text| text.contains("NoNewPrivs:"))
        });
        docker(&["rm", "-f", &name]).unwrap();
        assert!(log.contains("CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nNoNewPrivs:\t1"), "{log}");
        let field = |name: &str| {
            let line = log.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        (field("Uid:")[1].clone(), field("Gid:")[1].clone(), field("Groups:").join(" "))
    };
    let owner = |groups: &str| ("1003".to_owned(), "1003".to_owned(), groups.to_owned());
    assert_eq!(id(&[]), owner("1003"), "with the engine's usual capabilities");
    assert_eq!(id(&["--env", "AIOS_UID="]), owner("1003"), "an empty variable says nothing");
    assert_eq!(
        id(&["--group-add", "44", "--env", "DOCKER_GID=45"]),
        owner("44 45 1003"),
        "groups that were given stay"
    );
    assert_eq!(id(&["--user", "1003:1003", "--security-opt", "no-new-privileges"]), owner("1003"), "nothing to change");
    let (code, said) = run_with(&clone, &["--env", "AIOS_UID=bob"], &["init"]);
    assert!(code == 2 && said.contains("AIOS_UID is \"bob\""), "{code}: {said}");
    let (code, said) = run_with(&clone, &["--cap-drop", "ALL"], &["init"]);
    assert!(code == 4 && said.contains("SETUID and SETGID"), "{code}: {said}");
}
