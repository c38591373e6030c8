//! An engine of the tests' own, which can be killed, started again and run out of disk. It takes root.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aios::exec::{Ending, Executor};
use aios::model::container::{Container, Pull};
use tempfile::TempDir;

use super::contract::Rig;
use super::{SHELL, docker, eventually, has_image};

/// An engine beside the machine's.
struct Own {
    home: TempDir,
    process: Option<Child>,
    is_mounted: bool,
}

impl Own {
    /// `None`: there can be none here. With `disk`, in a file system of so many bytes.
    fn new(disk: Option<&str>) -> Option<Self> {
        if !has_image(SHELL) {
            return None;
        }
        let may = rustix::process::geteuid().is_root() && Command::new("dockerd").arg("--version").output().is_ok();
        if !may {
            assert!(std::env::var_os("CI").is_none(), "no dockerd, or not root");
            eprintln!("SKIPPED: an engine of the tests' own takes root and dockerd");
            return None;
        }
        let home = tempfile::tempdir().unwrap();
        let mut own = Self { home, process: None, is_mounted: false };
        fs::create_dir(own.path("data")).unwrap();
        if let Some(size) = disk {
            let options = format!("size={size}");
            let mounted =
                Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(own.path("data")).status();
            own.is_mounted = mounted.unwrap().success();
            assert!(own.is_mounted);
        }
        // What this machine's own engine is told is not for this one.
        fs::write(own.path("config.json"), "{}").unwrap();
        own.start();
        let image = own.path("image.tar").display().to_string();
        docker(&["save", "-o", &image, SHELL]).unwrap();
        docker(&["-H", &own.host(), "load", "-i", &image]).unwrap();
        fs::remove_file(image).unwrap();
        Some(own)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn host(&self) -> String {
        format!("unix://{}", self.path("engine.sock").display())
    }

    fn start(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.path("dockerd.log")).unwrap();
        let flags = ["--bridge=none", "--iptables=false", "--ip-masq=false", "--containerd-namespace=aios-test"];
        // In a network of its own: an engine without a bridge removes the one that it finds.
        let process = Command::new("unshare")
            .args(["--net", "--", "dockerd"])
            .args(["-H", &self.host()])
            .args(flags)
            .arg("--containerd-plugins-namespace=aios-test-plugins")
            .arg("--config-file")
            .arg(self.path("config.json"))
            .arg("--data-root")
            .arg(self.path("data"))
            .arg("--exec-root")
            .arg(self.path("exec"))
            .arg("--pidfile")
            .arg(self.path("pid"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.process = Some(process.unwrap());
        eventually("the engine of the test's own", || docker(&["-H", &self.host(), "version"]).ok());
    }

    /// Without a word, as a crash.
    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
        // Whoever starts again would take it for one that runs.
        let _ = fs::remove_file(self.path("pid"));
    }

    /// As its service is stopped.
    fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let pid = rustix::process::Pid::from_child(&process);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
            process.wait().unwrap();
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let host = self.host();
        let all = docker(&["-H", &host, "ps", "-aq"]).unwrap_or_default();
        for container in all.lines() {
            let _ = docker(&["-H", &host, "rm", "-f", container]);
        }
        self.stop();
        // What the engine that was killed had started.
        let containerd = fs::read_to_string(self.path("exec/containerd/containerd.pid")).unwrap_or_default();
        if let Some(pid) = containerd.trim().parse().ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        if self.is_mounted {
            let _ = Command::new("umount").arg("-l").arg(self.path("data")).status();
        }
    }
}

#[test]
fn an_engine_that_is_started_again_is_asked_how_things_ended() {
    let Some(mut engine) = Own::new(None) else { return };
    let mut rig = Rig::on(&engine.host());
    let long = "touch up$AIOS; sleep 1000";
    rig.executor.start(rig.sh(1, &long.replace("$AIOS", "1")));
    rig.executor.start(rig.sh(2, "touch up2; while [ ! -e end2 ]; do sleep 0.05; done; exit 5"));
    for name in ["up1", "up2"] {
        rig.wait_for(name);
    }
    engine.kill();
    fs::write(rig.path("end2"), "").unwrap();
    let until = Instant::now() + Duration::from_secs(1);
    eventually("a moment", || (Instant::now() > until).then_some(()));
    assert!(rig.executor.take_exits().is_empty(), "nothing is told of what cannot be seen");
    eventually("that no container can be started", || rig.executor.offers().is_empty().then_some(()));
    engine.start();
    // It ends what goes on without it, and says how: by no means well.
    let first = rig.exit(1);
    assert!(matches!(first.ending, Ending::Code(1..) | Ending::Unknown { .. }), "{first:?}");
    let second = rig.exit(2);
    assert!(matches!(second.ending, Ending::Code(5 | 137) | Ending::Unknown { .. }), "{second:?}");
    assert_eq!((first.stopped, second.stopped), (None, None));
    eventually("the engine", || (!rig.executor.offers().is_empty()).then_some(()));
    // In good order.
    rig.executor.start(rig.sh(3, &long.replace("$AIOS", "3")));
    rig.wait_for("up3");
    engine.stop();
    engine.start();
    let third = rig.exit(3);
    assert!(matches!(third.ending, Ending::Code(1..) | Ending::Unknown { .. }), "{third:?}");
    assert_eq!(rig.run(rig.sh(4, "echo it works")).ending, Ending::Code(0));
    assert_eq!(rig.log(4), "it works\n");
    let host = engine.host();
    eventually("the removal of every container", || {
        docker(&["-H", &host, "ps", "-aq"]).is_ok_and(|left| left.is_empty()).then_some(())
    });
}

#[test]
fn an_engine_without_disk_says_so_and_is_used_again_when_it_has_some() {
    let Some(engine) = Own::new(Some("400m")) else { return };
    let mut rig = Rig::on(&engine.host());
    let never = || Container { pull: Pull::Never, ..Container::of(SHELL.to_owned()) };
    assert_eq!(rig.run(rig.spec(1, &["true"], never())).ending, Ending::Code(0));
    // All that is left.
    let filler = engine.path("data/filler");
    let filled = Command::new("dd").args(["if=/dev/zero", "bs=64k"]).arg(format!("of={}", filler.display())).output();
    assert!(!filled.unwrap().status.success());
    let error = rig.error_of(rig.spec(2, &["true"], never()));
    assert!(error.contains("the engine's disk is full") && error.contains("docker system df"), "{error}");
    fs::remove_file(filler).unwrap();
    assert_eq!(rig.run(rig.spec(3, &["true"], never())).ending, Ending::Code(0));
}
