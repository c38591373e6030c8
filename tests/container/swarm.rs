//! Attempts as services of a swarm of one node.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use aios::exec::{Ending, Executor, Inside, Spec, StopCause};
use aios::model::container::{Container, Engine, Limits};
use aios::model::ids::Tag;

use super::contract::{Rig, look_back};
use super::{SHELL, docker, eventually, has_image};

/// This engine as the manager of a swarm, until the test is over. One that manages a swarm already keeps it.
struct Swarm {
    is_own: bool,
}

impl Swarm {
    /// `None`: there is no engine.
    fn new() -> Option<Self> {
        if !has_image(SHELL) {
            return None;
        }
        let is_own = docker(&["info", "--format", "{{.Swarm.LocalNodeState}}"]).as_deref() == Ok("inactive");
        if is_own {
            docker(&["swarm", "init", "--advertise-addr", "127.0.0.1"]).unwrap();
        }
        Some(Self { is_own })
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        if self.is_own {
            let _ = docker(&["swarm", "leave", "--force"]);
        }
    }
}

fn in_swarm() -> Container {
    Container { engine: Engine::Swarm, network: "bridge".to_owned(), ..Container::of(SHELL.to_owned()) }
}

fn sh(rig: &Rig, number: u32, script: &str) -> Spec {
    rig.spec(number, &["sh", "-c", script], in_swarm())
}

/// What the swarm still has of the rig's.
fn services(rig: &Rig) -> Vec<String> {
    let label = format!("label=aios.volume={}", rig.settings.volume);
    let found = docker(&["service", "ls", "--filter", &label, "--format", "{{.Name}}"]).unwrap_or_default();
    found.lines().map(str::to_owned).collect()
}

fn is_tidy(rig: &Rig) {
    eventually("the removal of every service", || services(rig).is_empty().then_some(()));
    rig.is_tidy();
}

#[test]
fn attempts_run_as_services() {
    let Some(swarm) = Swarm::new() else { return };
    let mut rig = Rig::new().unwrap();
    eventually("the manager", || rig.executor.offers().iter().any(|tag| tag.as_str() == "swarm").then_some(()));
    // Codes, output, environment, folders.
    for (number, code) in (1..).zip([0, 3, 137, 255]) {
        rig.executor.start(sh(&rig, number, &format!("echo out; echo err >&2; exit {code}")));
    }
    for (number, code) in (1..).zip([0, 3, 137, 255]) {
        let exit = rig.exit(number);
        assert_eq!((exit.ending, exit.stopped, exit.started), (Ending::Code(code), None, true));
        let log = rig.log(number);
        assert_eq!(log.lines().collect::<BTreeSet<_>>(), BTreeSet::from(["err", "out"]), "{log}");
    }
    let script = "pwd; printf '%s\\n' \"$GREETING\"; echo made >file; touch /etc/x || echo read-only; grep -c CapBnd:.0000000000000000 /proc/self/status";
    assert_eq!(rig.run(sh(&rig, 5, script)).ending, Ending::Code(0));
    let log = rig.log(5);
    assert!(log.contains(&format!("{}\nhello\nthere\n", rig.home.path().display())), "{log}");
    assert!(log.contains("read-only") && log.ends_with("1\n") && rig.path("file").exists(), "{log}");
    is_tidy(&rig);
    // The swarm cannot start it.
    let missing = Container { image: "aios-no-such-image:1".to_owned(), ..in_swarm() };
    let error = rig.error_of(rig.spec(6, &["true"], missing));
    assert!(error.contains("the swarm could not start it") && error.contains("aios-no-such-image"), "{error}");
    // It is stopped with all that is of it.
    let spec = sh(&rig, 7, "touch up7; sleep 1000");
    rig.executor.start(Spec { timeout: Some(Duration::from_secs(2)), grace: Duration::from_secs(1), ..spec });
    let exit = rig.exit(7);
    assert_eq!((exit.stopped, exit.started), (Some(StopCause::Timeout), true), "{exit:?}");
    let running = docker(&["ps", "--filter", &format!("label=aios.volume={}", rig.settings.volume), "-q"]).unwrap();
    assert_eq!(running, "", "nothing is alive when its end is told");
    is_tidy(&rig);
    // Killed for its memory.
    let spec = sh(&rig, 11, "x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo ${#x}");
    let limits = Limits { memory: Some(16 << 20), ..Limits::default() };
    let inside = Inside { limits, ..spec.inside.as_ref().unwrap().clone() };
    let exit = rig.run(Spec { inside: Some(inside), ..spec });
    assert!(exit.oom_killed && matches!(exit.ending, Ending::Code(1..)), "{exit:?}");
    // Only a node that has its tags runs it.
    let tag = format!("test{:08x}", rand::random::<u32>());
    let tagged = Container { node_tags: [Tag::new(&tag).unwrap()].into(), ..in_swarm() };
    rig.executor.start(rig.spec(8, &["touch", "tagged"], tagged));
    eventually("a task that waits", || {
        docker(&["service", "ps", &rig.name(8), "--format", "{{.CurrentState}}"])
            .is_ok_and(|state| state.starts_with("Pending"))
            .then_some(())
    });
    assert!(!rig.path("tagged").exists());
    let label = format!("aios.{tag}");
    let node = docker(&["info", "--format", "{{.Swarm.NodeID}}"]).unwrap();
    docker(&["node", "update", "--label-add", &format!("{label}=true"), &node]).unwrap();
    assert_eq!(rig.exit(8).ending, Ending::Code(0));
    docker(&["node", "update", "--label-rm", &label, &node]).unwrap();
    is_tidy(&rig);
    // Another life of the device takes over what goes on.
    rig.executor.start(sh(
        &rig,
        9,
        "i=0; while [ ! -e end9 ]; do i=$((i+1)); echo line $i; touch up9; sleep 0.05; done; exit 9",
    ));
    eventually("some lines", || (rig.log(9).lines().count() > 3).then_some(()));
    rig.next_life();
    look_back(&rig.executor);
    let found = rig.executor.found();
    assert_eq!(found[&rig.lease(9)].executor, "swarm");
    let spec = sh(&rig, 9, "echo it was started once more");
    let inside = Inside { goes_on: true, ..spec.inside.as_ref().unwrap().clone() };
    rig.executor.start(Spec { inside: Some(inside), ..spec });
    fs::write(rig.path("end9"), "").unwrap();
    assert_eq!(rig.exit(9).ending, Ending::Code(9));
    let log = rig.log(9);
    assert!(log.lines().count() > 3 && log.lines().zip(1..).all(|(line, at)| line == format!("line {at}")), "{log}");
    is_tidy(&rig);
    // What nobody holds is ended by whoever reaches a manager.
    rig.executor.start(Spec { grace: Duration::from_secs(1), ..sh(&rig, 10, "touch up10; sleep 1000") });
    rig.wait_for("up10");
    rig.next_life();
    let leases = BTreeSet::from([rig.lease(10)]);
    eventually("the eviction", || (rig.executor.evict(&leases) == leases).then_some(()));
    is_tidy(&rig);
    // The engine leaves its swarm, and with that what it ran there.
    if swarm.is_own {
        rig.executor.start(sh(&rig, 12, "touch up12; sleep 1000"));
        rig.wait_for("up12");
        docker(&["swarm", "leave", "--force"]).unwrap();
        let exit = rig.exit(12);
        assert!(matches!(&exit.ending, Ending::Unknown { error } if error.contains("left its swarm")), "{exit:?}");
        rig.is_tidy();
    }
}
