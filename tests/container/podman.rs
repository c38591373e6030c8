//! Podman in the place of Docker, by its socket. It takes root.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use aios::exec::{Ending, Executor, Inside, Spec, StopCause};
use aios::model::container::Container;
use tempfile::TempDir;

use super::contract::{LONG, Rig, look_back};
use super::{SHELL, docker, eventually, has_image};

/// What holds wherever it runs: no limits above those of this process, and what else Podman needs is taken as it is found.
const CONFIG: &str = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n\
    [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n";

/// Its service, with images of its own.
struct Podman {
    home: TempDir,
    service: Option<Child>,
}

impl Podman {
    /// `None`: there can be none here.
    fn new() -> Option<Self> {
        if !has_image(SHELL) {
            return None;
        }
        let is_here = |program: &str| Command::new(program).arg("--version").output().is_ok();
        if !(rustix::process::geteuid().is_root() && is_here("podman") && is_here("runc")) {
            assert!(std::env::var_os("CI").is_none(), "no podman with runc, or not root");
            eprintln!("SKIPPED: Podman is not here, or this is not root");
            return None;
        }
        let home = tempfile::tempdir().unwrap();
        let mut podman = Self { home, service: None };
        fs::write(podman.path("config"), CONFIG).unwrap();
        let image = podman.path("image.tar").display().to_string();
        docker(&["save", "-o", &image, SHELL]).unwrap();
        assert!(podman.command(&["load", "-q", "-i", &image]).stdout(Stdio::null()).status().unwrap().success());
        fs::remove_file(image).unwrap();
        let service = podman.command(&["system", "service", "--time=0", &podman.host()]).spawn().unwrap();
        podman.service = Some(service);
        eventually("the service", || podman.path("socket").exists().then_some(()));
        Some(podman)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn host(&self) -> String {
        format!("unix://{}", self.path("socket").display())
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command.env("CONTAINERS_CONF", self.path("config")).stdin(Stdio::null()).stderr(Stdio::null());
        command.arg("--root").arg(self.path("root")).arg("--runroot").arg(self.path("run")).args(words);
        command
    }

    fn containers(&self) -> String {
        let listed = self.command(&["ps", "-aq"]).output().unwrap();
        String::from_utf8(listed.stdout).unwrap()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if let Some(mut service) = self.service.take() {
            let _ = service.kill();
            let _ = service.wait();
        }
        let _ = self.command(&["rm", "-af", "-t", "0"]).stdout(Stdio::null()).status();
        let _ = self.command(&["system", "reset", "-f"]).stdout(Stdio::null()).status();
    }
}

#[test]
fn podman_runs_attempts_too() {
    let Some(podman) = Podman::new() else { return };
    let mut rig = Rig::on(&podman.host());
    eventually("the engine", || (!rig.executor.offers().is_empty()).then_some(()));
    for (number, code) in (1..).zip([0, 1, 7, 137, 255]) {
        let script = format!("printf '%s\\n' \"$GREETING\"; pwd; echo made >file; exit {code}");
        let exit = rig.run(rig.sh(number, &script));
        assert_eq!((exit.ending, exit.stopped, exit.started), (Ending::Code(code), None, true));
        assert_eq!(rig.log(number), format!("hello\nthere\n{}\n", rig.home.path().display()), "{number}");
    }
    let missing = rig.error_of(rig.spec(10, &["true"], Container::of("localhost/aios-no-such-image:1".to_owned())));
    assert!(missing.contains("aios-no-such-image") && missing.contains("hint:"), "{missing}");
    // Stopped, with grace and without.
    rig.executor.start(rig.sh(11, "trap 'echo cleaned; exit 5' TERM; touch up11; while :; do sleep 0.05; done"));
    rig.executor.start(rig.sh(12, "trap '' TERM; touch up12; while :; do sleep 0.05; done"));
    for (number, grace, code) in [(11, LONG, 5), (12, Duration::from_millis(200), 137)] {
        rig.wait_for(&format!("up{number}"));
        rig.executor.stop(&rig.lease(number), StopCause::Cancelled, grace);
        let exit = rig.exit(number);
        assert_eq!((exit.ending, exit.stopped), (Ending::Code(code), Some(StopCause::Cancelled)));
    }
    assert_eq!(rig.log(11), "cleaned\n");
    // Kept, and taken over.
    let warm = || Container { keep_warm: Some(LONG), ..Container::of(SHELL.to_owned()) };
    let script = "[ -e /tmp/mark ] && echo again; touch /tmp/mark; echo ran";
    for number in [20, 21] {
        assert_eq!(rig.run(rig.spec(number, &["sh", "-c", script], warm())).ending, Ending::Code(0));
    }
    assert_eq!((rig.log(20).as_str(), rig.log(21).as_str()), ("ran\n", "again\nran\n"));
    rig.executor
        .start(rig.sh(30, "i=0; while [ ! -e end ]; do i=$((i+1)); echo line $i; touch up; sleep 0.05; done; exit 9"));
    eventually("some lines", || (rig.log(30).lines().count() > 3).then_some(()));
    rig.next_life();
    look_back(&rig.executor);
    assert_eq!(rig.executor.found().into_keys().collect::<BTreeSet<_>>(), BTreeSet::from([rig.lease(30)]));
    let spec = rig.sh(30, "echo it was started once more");
    let inside = Inside { goes_on: true, ..spec.inside.as_ref().unwrap().clone() };
    rig.executor.start(Spec { inside: Some(inside), ..spec });
    fs::write(rig.path("end"), "").unwrap();
    assert_eq!(rig.exit(30).ending, Ending::Code(9));
    let log = rig.log(30);
    assert!(log.lines().count() > 3 && log.lines().zip(1..).all(|(line, at)| line == format!("line {at}")), "{log}");
    eventually("the removal of every container", || podman.containers().is_empty().then_some(()));
}
