//! The port to executors, kept by the one for containers: every ending is told, once, and as what it was.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aios::exec::docker::{DockerExecutor, Settings};
use aios::exec::{Ending, Executor, Exit, Given, Inside, Spec, StopCause};
use aios::model::container::{Allowed, Container, Gpus, Limits, Pull, Volume};
use aios::model::ids::{DeviceId, RunId, Session};
use aios::model::lease::Lease;
use aios::model::masker::Masker;
use aios::volume::logs::{Keeps, open_again};
use aios::volume::os::OsDisk;
use tempfile::TempDir;
use tokio::sync::Notify;

use super::{DEADLINE, SHELL, docker, eventually, has_image};

pub(crate) const LONG: Duration = Duration::from_secs(3_600);

/// An executor and what its tests need around it.
pub(crate) struct Rig {
    pub(crate) executor: DockerExecutor,
    pub(crate) settings: Settings,
    /// What its runs are named after.
    base: u64,
    pub(crate) home: Arc<TempDir>,
    exits: Vec<Exit>,
}

impl Rig {
    /// `None`: there is no engine.
    pub(crate) fn new() -> Option<Self> {
        has_image(SHELL).then(|| Self::on("unix:///var/run/docker.sock"))
    }

    pub(crate) fn on(host: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        // Whoever the image says writes there.
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let settings = Settings {
            host: host.to_owned(),
            volume: format!("test-{:016x}", rand::random::<u64>()),
            device: DeviceId::new("d").unwrap(),
            session: Session::from_random(rand::random()),
            common: home.path().to_owned(),
            programs: home.path().to_owned(),
            host_common: None,
            host_programs: None,
            allowed: Allowed::default(),
        };
        Self { executor: executor(&settings), settings, base: rand::random(), home: Arc::new(home), exits: Vec::new() }
    }

    /// The same device in its next life.
    pub(crate) fn next_life(&mut self) {
        self.settings.session = Session::from_random(rand::random());
        self.anew();
    }

    pub(crate) fn anew(&mut self) {
        self.executor = executor(&self.settings);
        self.exits.clear();
    }

    /// The first attempt of a run of its own.
    pub(crate) fn lease(&self, number: u32) -> Lease {
        let at = chrono::DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        Lease { run: RunId::new(at, self.base.wrapping_add(u64::from(number))), attempt: 1 }
    }

    pub(crate) fn name(&self, number: u32) -> String {
        format!("aios-{}-1", self.lease(number).run)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub(crate) fn sh(&self, number: u32, script: &str) -> Spec {
        self.spec(number, &["sh", "-c", script], Container::of(SHELL.to_owned()))
    }

    pub(crate) fn spec(&self, number: u32, argv: &[&str], container: Container) -> Spec {
        let log = self.path(&format!("{number}.log"));
        Spec {
            lease: self.lease(number),
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            dir: self.home.path().to_owned(),
            env: BTreeMap::from([("GREETING".to_owned(), "hello\nthere".to_owned())]),
            log: open_again(&OsDisk::new(), &log, 16 << 20, Keeps::First).unwrap(),
            masker: None,
            timeout: None,
            grace: LONG,
            inside: Some(Inside {
                container: Arc::new(container),
                limits: Limits::default(),
                mounts: vec![Given { path: self.home.path().to_owned(), writable: true }],
                job: "job".to_owned(),
                definition: String::new(),
                goes_on: false,
            }),
            limits: Limits::default(),
        }
    }

    pub(crate) fn log(&self, number: u32) -> String {
        fs::read_to_string(self.path(&format!("{number}.log"))).unwrap()
    }

    pub(crate) fn exit(&mut self, number: u32) -> Exit {
        self.exit_of(&self.lease(number))
    }

    pub(crate) fn exit_of(&mut self, lease: &Lease) -> Exit {
        eventually(&format!("the exit of {lease}"), || {
            self.exits.extend(self.executor.take_exits());
            let at = self.exits.iter().position(|exit| exit.lease == *lease)?;
            Some(self.exits.remove(at))
        })
    }

    pub(crate) fn run(&mut self, spec: Spec) -> Exit {
        let lease = spec.lease.clone();
        self.executor.start(spec);
        self.exit_of(&lease)
    }

    pub(crate) fn is_up(&self, number: u32) -> bool {
        docker(&["inspect", "--format", "{{.State.Running}}", &self.name(number)]).as_deref() == Ok("true")
    }

    /// Waits until the program has made this file.
    pub(crate) fn wait_for(&self, name: &str) {
        eventually(name, || self.path(name).exists().then_some(()));
    }

    pub(crate) fn containers(&self) -> Vec<String> {
        let label = format!("label=aios.volume={}", self.settings.volume);
        let found = docker(&["ps", "-a", "--filter", &label, "--format", "{{.Names}}"]).unwrap_or_default();
        found.lines().map(str::to_owned).collect()
    }

    /// Nothing is left behind once everything has ended.
    pub(crate) fn is_tidy(&self) {
        eventually("the removal of every container", || self.containers().is_empty().then_some(()));
        assert_eq!(self.executor.list(), []);
    }

    pub(crate) fn error_of(&mut self, spec: Spec) -> String {
        let exit = self.run(spec);
        assert!(!exit.started, "{exit:?}");
        match exit.ending {
            Ending::NotStarted { error } => error,
            other @ (Ending::Code(_) | Ending::Signal(_) | Ending::Unknown { .. }) => {
                panic!("it was started: {other:?}")
            }
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for name in self.containers() {
            let _ = docker(&["rm", "-f", &name]);
        }
    }
}

fn executor(settings: &Settings) -> DockerExecutor {
    DockerExecutor::new(settings.clone(), Arc::new(Notify::new())).unwrap()
}

pub(crate) fn look_back(executor: &DockerExecutor) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(executor.look_back());
}

#[test]
fn every_exit_code_is_told() {
    let Some(mut rig) = Rig::new() else { return };
    let codes = [0, 1, 7, 124, 125, 126, 127, 128, 137, 143, 200, 255];
    for (number, code) in (1..).zip(codes) {
        rig.executor.start(rig.sh(number, &format!("exit {code}")));
    }
    for (number, code) in (1..).zip(codes) {
        let exit = rig.exit(number);
        assert_eq!((exit.ending, exit.stopped, exit.oom_killed), (Ending::Code(code), None, false));
        assert!(exit.started && exit.duration < DEADLINE);
    }
    rig.is_tidy();
}

#[test]
fn what_ends_within_milliseconds_is_told_whole() {
    const ROUNDS: u32 = 500;
    const AT_ONCE: u32 = 8;
    let Some(mut rig) = Rig::new() else { return };
    for number in 1..=ROUNDS + AT_ONCE {
        if number <= ROUNDS {
            let script = format!("echo out {number}; echo err {number} >&2; exit {}", number % 256);
            rig.executor.start(rig.sh(number, &script));
        }
        if let Some(number) = number.checked_sub(AT_ONCE).filter(|number| *number > 0) {
            let exit = rig.exit(number);
            assert_eq!(exit.ending, Ending::Code(i32::try_from(number % 256).unwrap()), "{number}");
            let mut lines: Vec<String> = rig.log(number).lines().map(str::to_owned).collect();
            // Two pipes keep no order between them.
            lines.sort();
            assert_eq!(lines, [format!("err {number}"), format!("out {number}")]);
        }
    }
    rig.is_tidy();
}

#[test]
fn a_program_gets_what_its_spec_says() {
    let Some(mut rig) = Rig::new() else { return };
    let script =
        "pwd; printf '%s' \"$GREETING\"; cat; echo; tr '\\0' '\\n' </proc/1/cmdline | head -n 1; echo made >file";
    assert_eq!(rig.run(rig.sh(1, script)).ending, Ending::Code(0));
    let log = rig.log(1);
    let home = rig.home.path().to_str().unwrap().to_owned();
    assert_eq!(log.lines().take(3).collect::<Vec<_>>(), [home.as_str(), "hello", "there"], "{log}");
    assert_eq!(fs::read_to_string(rig.path("file")).unwrap(), "made\n");
    // The image's own environment stays, and the device's does not come in.
    assert_eq!(rig.run(rig.spec(2, &["env"], Container::of(SHELL.to_owned()))).ending, Ending::Code(0));
    let names: BTreeSet<String> =
        rig.log(2).lines().filter_map(|line| Some(line.split_once('=')?.0.to_owned())).collect();
    assert!(names.contains("PATH") && names.contains("GREETING") && !names.contains("CARGO_MANIFEST_DIR"), "{names:?}");
    // What the command is handed to.
    let entrypoint = Some(vec!["echo".to_owned(), "before".to_owned()]);
    let spec = rig.spec(3, &["a", "b c"], Container { entrypoint, ..Container::of(SHELL.to_owned()) });
    assert_eq!(rig.run(spec).ending, Ending::Code(0));
    assert_eq!(rig.log(3), "before a b c\n");
    let labels = BTreeMap::from([("team".to_owned(), "data".to_owned())]);
    let user = Some("1234:4321".to_owned());
    let container = Container { labels, user, ..Container::of(SHELL.to_owned()) };
    rig.executor.start(rig.spec(4, &["sh", "-c", "id -u; id -g; touch up; sleep 1000"], container));
    rig.wait_for("up");
    let format = "{{index .Config.Labels \"team\"}} {{index .Config.Labels \"aios.attempt\"}} {{index .Config.Labels \"aios.device\"}}";
    assert_eq!(docker(&["inspect", "--format", format, &rig.name(4)]).as_deref(), Ok("data 1 d"));
    rig.executor.stop(&rig.lease(4), StopCause::Cancelled, LONG);
    rig.exit(4);
    assert_eq!(rig.log(4), "1234\n4321\n");
    rig.is_tidy();
}

#[test]
fn secrets_are_masked_in_the_log_and_stand_in_no_label() {
    let Some(mut rig) = Rig::new() else { return };
    for (number, keep_warm) in [(1, None), (2, Some(LONG))] {
        let script = format!(
            "printf 'a hun'; printf 'ter2\\n'; echo \"b $TOKEN\" >&2; touch up{number}; while ! [ -e go{number} ]; do sleep 0.05; done"
        );
        let container = Container { keep_warm, ..Container::of(SHELL.to_owned()) };
        let mut spec = rig.spec(number, &["sh", "-c", &script], container);
        spec.env.insert("TOKEN".to_owned(), "hunter2".to_owned());
        spec.masker = Some(Arc::new(Masker::new(["hunter2"])));
        rig.executor.start(spec);
        rig.wait_for(&format!("up{number}"));
        let (name, known) = (rig.name(number), "{{.Name}} {{json .Config.Labels}} {{.Path}} {{json .Args}}");
        // A container of its own has its environment on record; what runs in a kept one brings it along.
        let format = if keep_warm.is_some() { format!("{known} {{{{json .Config.Env}}}}") } else { known.to_owned() };
        let shown = docker(&["inspect", "--format", &format, &name]).unwrap();
        assert!(shown.contains("aios.volume") && !shown.contains("hunter2"), "{shown}");
        fs::write(rig.path(&format!("go{number}")), "").unwrap();
        assert_eq!(rig.exit(number).ending, Ending::Code(0));
        let log = rig.log(number);
        let mut lines: Vec<&str> = log.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["a *******", "b *******"]);
    }
}

#[test]
fn a_timeout_ends_it_and_who_ignores_term_is_killed() {
    let Some(mut rig) = Rig::new() else { return };
    let with = |spec: Spec, timeout, grace| Spec { timeout: Some(timeout), grace, ..spec };
    // The shells have set their traps by then.
    let short = Duration::from_secs(2);
    let polite = with(rig.spec(1, &["sleep", "1000"], Container::of(SHELL.to_owned())), short, LONG);
    let telling = "trap 'echo cleaned; exit 5' TERM; while :; do sleep 0.05; done";
    let telling = with(rig.sh(2, telling), short, LONG);
    let deaf = with(rig.sh(3, "trap '' TERM; while :; do sleep 1000; done"), short, short);
    for spec in [polite, telling, deaf] {
        rig.executor.start(spec);
    }
    for (number, code) in [(1, 143), (2, 5), (3, 137)] {
        let exit = rig.exit(number);
        assert_eq!((exit.ending, exit.stopped), (Ending::Code(code), Some(StopCause::Timeout)), "{number}");
        assert!(exit.duration >= short);
    }
    assert_eq!(rig.log(2), "cleaned\n");
    rig.is_tidy();
}

#[test]
fn the_first_cause_counts_and_an_end_of_its_own_is_no_stop() {
    let Some(mut rig) = Rig::new() else { return };
    rig.executor.start(rig.sh(1, "touch up; sleep 1000"));
    rig.executor.start(rig.sh(1, "echo twice"));
    rig.wait_for("up");
    rig.executor.stop(&rig.lease(1), StopCause::Drained, LONG);
    rig.executor.stop(&rig.lease(1), StopCause::Cancelled, Duration::ZERO);
    let exit = rig.exit(1);
    assert_eq!(exit.stopped, Some(StopCause::Drained));
    assert!(matches!(exit.ending, Ending::Code(137 | 143)), "{exit:?}");
    // Before it has come to run.
    rig.executor.start(rig.sh(2, "touch ran"));
    rig.executor.stop(&rig.lease(2), StopCause::Cancelled, LONG);
    let exit = rig.exit(2);
    assert_eq!(exit.stopped, Some(StopCause::Cancelled));
    assert!(matches!(exit.ending, Ending::NotStarted { .. }) && !exit.started && !rig.path("ran").exists(), "{exit:?}");
    rig.executor.stop(&rig.lease(9), StopCause::Cancelled, Duration::ZERO);
    rig.is_tidy();
}

#[test]
fn what_cannot_start_says_why() {
    let Some(mut rig) = Rig::new() else { return };
    let plain = || Container::of(SHELL.to_owned());
    let missing = "aios-no-such-image:1";
    let never = Container { pull: Pull::Never, ..Container::of(missing.to_owned()) };
    let volume = |text: &str| Container { volumes: vec![Volume::parse(text).unwrap()], ..plain() };
    let rows = [
        (never, vec!["the engine has no image", missing, "hint:"]),
        (Container::of(missing.to_owned()), vec!["cannot be fetched", missing, "hint:"]),
        (
            Container { network: "aios-nowhere".to_owned(), ..plain() },
            vec!["no network aios-nowhere", "docker network create"],
        ),
        (volume("/etc:/x:ro"), vec!["the volume /etc is refused by the rule allowed-volumes", "AIOS_ALLOWED_VOLUMES"]),
        (volume("/var/run/docker.sock:/x"), vec!["refused by the rule no-engine-socket"]),
        (volume("/:/x"), vec!["refused by the rule no-engine-socket"]),
        (volume("some_volume:/x"), vec!["refused by the rule allowed-volumes"]),
    ];
    for (number, (container, parts)) in (1..).zip(rows) {
        let error = rig.error_of(rig.spec(number, &["true"], container));
        for part in parts {
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        }
    }
    assert!(rig.log(2).starts_with("[aios-no-such-image:1: fetching the image]"), "{}", rig.log(2));
    if !Path::new("/dev/nvidiactl").exists() {
        let error = rig.error_of(rig.spec(20, &["true"], Container { gpus: Gpus::All, ..plain() }));
        assert!(error.contains("no GPU to give"), "{error}");
    }
    let spec = rig.spec(21, &["no-such-program"], plain());
    let exit = rig.run(spec);
    assert_ne!(exit.ending, Ending::Code(0));
    assert!(rig.log(21).contains("no-such-program") || matches!(exit.ending, Ending::NotStarted { .. }), "{exit:?}");
    rig.is_tidy();
    // A path that the host does not have.
    rig.settings.host_common = Some("/aios-nowhere".into());
    rig.settings.host_programs = Some("/aios-nowhere".into());
    rig.anew();
    let error = rig.error_of(rig.sh(22, "true"));
    assert!(error.contains("no such path") && error.contains("AIOS_HOST_COMMON"), "{error}");
}

#[test]
fn a_registry_that_hangs_is_left_when_the_end_is_asked_for() {
    let Some(mut rig) = Rig::new() else { return };
    // It takes connections and says nothing.
    let registry = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let image = format!("127.0.0.1:{}/silent:1", registry.local_addr().unwrap().port());
    for (number, keep_warm) in [(1, None), (2, Some(LONG))] {
        let container = Container { keep_warm, ..Container::of(image.clone()) };
        rig.executor.start(rig.spec(number, &["true"], container));
        eventually("the fetching", || rig.log(number).contains("fetching the image").then_some(()));
        let _connection = registry.accept().unwrap();
        assert!(rig.executor.take_exits().is_empty());
        rig.executor.stop(&rig.lease(number), StopCause::Cancelled, LONG);
        let exit = rig.exit(number);
        assert!(
            matches!(&exit.ending, Ending::NotStarted { error } if error.contains("was stopped before")),
            "{exit:?}"
        );
        assert_eq!((exit.stopped, exit.started), (Some(StopCause::Cancelled), false));
    }
    rig.is_tidy();
}

#[test]
fn a_name_that_is_taken_is_left_to_who_has_it() {
    let Some(mut rig) = Rig::new() else { return };
    let name = rig.name(1);
    docker(&["create", "--name", &name, SHELL, "true"]).unwrap();
    let error = rig.error_of(rig.sh(1, "true"));
    assert!(error.contains("a container of somebody else has the name") && error.contains(&name), "{error}");
    docker(&["rm", &name]).unwrap();
}

#[test]
fn limits_bite() {
    let Some(mut rig) = Rig::new() else { return };
    let limited = |spec: Spec, limits| {
        let inside = spec.inside.as_ref().unwrap().clone();
        Spec { inside: Some(Inside { limits, ..inside }), ..spec }
    };
    // The shell itself holds what it reads.
    let memory = Limits { memory: Some(16 << 20), ..Limits::default() };
    let exit = rig.run(limited(rig.sh(1, "x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo ${#x}"), memory));
    assert!(exit.oom_killed && exit.ending != Ending::Code(0), "{exit:?}");
    let pids = Limits { pids: Some(8), ..Limits::default() };
    let storm = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done; echo all";
    let exit = rig.run(limited(rig.sh(2, storm), pids));
    assert!(exit.ending != Ending::Code(0) || !rig.log(2).starts_with("all"), "{exit:?} {}", rig.log(2));
    assert!(rig.log(2).contains("fork"), "{}", rig.log(2));
    let cpus = Limits { cpu_millis: Some(250), ..Limits::default() };
    rig.executor.start(limited(rig.sh(3, "touch up; sleep 1000"), cpus));
    rig.wait_for("up");
    assert_eq!(docker(&["inspect", "--format", "{{.HostConfig.NanoCpus}}", &rig.name(3)]).as_deref(), Ok("250000000"));
    rig.executor.stop(&rig.lease(3), StopCause::Cancelled, Duration::ZERO);
    rig.exit(3);
    let tmpfs = BTreeMap::from([("/small".to_owned(), "size=1m".to_owned())]);
    let container = Container { tmpfs, ..Container::of(SHELL.to_owned()) };
    let fill = "head -c 2000000 /dev/zero >/small/x || echo full; touch /tmp/x || echo none";
    assert_eq!(rig.run(rig.spec(4, &["sh", "-c", fill], container)).ending, Ending::Code(0));
    assert!(rig.log(4).contains("full") && rig.log(4).contains("none"), "{}", rig.log(4));
    rig.is_tidy();
}

/// Tries each, says what it got, and says that it has tried.
fn forbidden() -> String {
    let tries = [
        ("touch /etc/x", "the image's files"),
        ("mkdir -p /tmp/m && mount -t tmpfs none /tmp/m", "a mount"),
        ("mknod /tmp/sda b 8 0", "a device"),
        ("chown 1234 /tmp", "an owner"),
        ("ls /var/run/docker.sock /run/docker.sock", "the engine's socket"),
        ("ls -d /proc/[0-9]* | grep -v '/proc/[0-9]$' | grep -v '/proc/[0-9][0-9]$' | grep .", "the host's processes"),
        ("grep -v lo: /proc/net/dev | grep :", "a network"),
        ("grep -E '^Cap(Eff|Prm|Bnd|Inh|Amb):' /proc/self/status | grep -v 0000000000000000", "a capability"),
        ("grep 'NoNewPrivs:.0' /proc/self/status", "new privileges"),
        ("echo 1 >/proc/sys/kernel/panic", "the kernel's settings"),
    ];
    let script: String =
        tries.iter().map(|(act, what)| format!("( {act} ) >/dev/null 2>&1 && echo \"GOT {what}\"\n")).collect();
    format!("{script}\necho tried")
}

#[test]
fn what_is_forbidden_cannot_be_done() {
    let Some(mut rig) = Rig::new() else { return };
    rig.run(rig.sh(1, &forbidden()));
    assert_eq!(rig.log(1), "tried\n");
    rig.is_tidy();
}

#[test]
fn a_container_that_somebody_removes_is_no_success() {
    let Some(mut rig) = Rig::new() else { return };
    rig.executor.start(rig.sh(1, "trap 'exit 0' TERM; touch up; sleep 1000 & wait"));
    rig.wait_for("up");
    docker(&["rm", "-f", &rig.name(1)]).unwrap();
    let exit = rig.exit(1);
    let is_told = matches!(&exit.ending, Ending::Unknown { error } if error.contains("removed by somebody else"));
    assert!(is_told, "{exit:?}");
    assert_eq!((exit.stopped, exit.started), (None, true));
    rig.is_tidy();
}

#[test]
fn a_life_takes_over_what_the_one_before_left_running() {
    let Some(mut rig) = Rig::new() else { return };
    let counting =
        "i=0; while [ ! -e end ]; do i=$((i+1)); echo line $i; touch up; sleep 0.05; done; echo last; exit 9";
    rig.executor.start(rig.sh(1, counting));
    rig.wait_for("up");
    eventually("some lines", || (rig.log(1).lines().count() > 3).then_some(()));
    rig.next_life();
    look_back(&rig.executor);
    assert_eq!(rig.executor.found().into_keys().collect::<Vec<_>>(), [rig.lease(1)]);
    let spec = rig.sh(1, "echo it was started once more");
    let inside = Inside { goes_on: true, ..spec.inside.as_ref().unwrap().clone() };
    rig.executor.start(Spec { inside: Some(inside), ..spec });
    let before = rig.log(1).lines().count();
    eventually("lines of the second life", || (rig.log(1).lines().count() > before + 3).then_some(()));
    fs::write(rig.path("end"), "").unwrap();
    assert_eq!(rig.exit(1).ending, Ending::Code(9));
    let log = rig.log(1);
    let lines: Vec<&str> = log.lines().collect();
    let expected: Vec<String> =
        (1..lines.len()).map(|number| format!("line {number}")).chain(["last".to_owned()]).collect();
    assert_eq!(lines, expected, "each line once");
    rig.is_tidy();
    // One that is gone is not made again.
    let spec = rig.sh(2, "touch made");
    let inside = Inside { goes_on: true, ..spec.inside.as_ref().unwrap().clone() };
    let exit = rig.run(Spec { inside: Some(inside), ..spec });
    let is_told = matches!(&exit.ending, Ending::Unknown { error } if error.contains("was removed"));
    assert!(is_told && exit.started, "{exit:?}");
    assert!(!rig.path("made").exists());
}

#[test]
fn what_nobody_holds_is_removed_and_what_a_dead_device_left_is_ended() {
    let Some(mut rig) = Rig::new() else { return };
    for number in [1, 2] {
        rig.executor.start(rig.sh(number, &format!("touch up{number}; sleep 1000")));
        rig.wait_for(&format!("up{number}"));
    }
    rig.next_life();
    eventually("the engine", || (!rig.executor.offers().is_empty()).then_some(()));
    rig.executor.survey();
    let mut met = BTreeSet::new();
    eventually("the survey", || {
        met.extend(rig.executor.take_surveyed());
        (met.len() == 2).then_some(())
    });
    assert_eq!(met, BTreeSet::from([rig.lease(1), rig.lease(2)]));
    rig.executor.evict(&BTreeSet::from([rig.lease(2)]));
    eventually("the removal of what nobody holds", || (rig.containers() == [rig.name(1)]).then_some(()));
    assert!(rig.is_up(1));
    // Another device on the same engine.
    rig.settings.device = DeviceId::new("e").unwrap();
    rig.anew();
    eventually("the engine", || (!rig.executor.offers().is_empty()).then_some(()));
    let leases = BTreeSet::from([rig.lease(1), rig.lease(7)]);
    assert_eq!(rig.executor.evict(&leases), BTreeSet::new(), "not before it was looked");
    let mut clear = BTreeSet::new();
    eventually("the eviction", || {
        clear.extend(rig.executor.evict(&leases));
        (clear == leases).then_some(())
    });
    assert_eq!(rig.containers(), Vec::<String>::new());
    // Whoever starts a later attempt ends what goes on of an earlier one, whoever had that.
    rig.executor.start(rig.sh(3, "touch up3; sleep 1000"));
    rig.wait_for("up3");
    rig.settings.device = DeviceId::new("f").unwrap();
    rig.anew();
    let later = Lease { attempt: 2, ..rig.lease(3) };
    assert_eq!(rig.run(Spec { lease: later, ..rig.sh(4, "true") }).ending, Ending::Code(0));
    assert!(!rig.containers().contains(&rig.name(3)));
}

fn warm() -> Container {
    Container { keep_warm: Some(LONG), ..Container::of(SHELL.to_owned()) }
}

#[test]
fn attempts_share_a_container_that_is_kept() {
    let Some(mut rig) = Rig::new() else { return };
    let script = "echo $GREETING; pwd; id -u; cat /proc/sys/kernel/hostname >host; [ -e /tmp/mark ] && echo again; touch /tmp/mark; read x || echo no input";
    for number in 1..=3 {
        let exit = rig.run(rig.spec(number, &["sh", "-c", script], warm()));
        assert_eq!((exit.ending, exit.stopped, exit.started), (Ending::Code(0), None, true));
    }
    let home = rig.home.path().display().to_string();
    assert_eq!(rig.log(1), format!("hello there\n{home}\n0\nno input\n"));
    assert_eq!(rig.log(3), format!("hello there\n{home}\n0\nagain\nno input\n"), "the same container");
    let [kept] = &rig.containers()[..] else { panic!("{:?}", rig.containers()) };
    assert!(kept.starts_with("aios-kept-"), "{kept}");
    // Two at once have one each, and while they run their names say whose they are.
    for number in [4, 5] {
        let script = format!("touch up{number}; while [ ! -e end ]; do sleep 0.02; done");
        rig.executor.start(rig.spec(number, &["sh", "-c", &script], warm()));
        rig.wait_for(&format!("up{number}"));
    }
    let names: BTreeSet<String> = rig.containers().into_iter().collect();
    assert_eq!(names, [rig.name(4), rig.name(5)].into());
    fs::write(rig.path("end"), "").unwrap();
    assert_eq!([rig.exit(4).ending, rig.exit(5).ending], [Ending::Code(0), Ending::Code(0)]);
    // Another job has containers of its own, whatever else is alike.
    let spec = rig.spec(6, &["test", "!", "-e", "/tmp/mark"], warm());
    let inside = Inside { job: "other".to_owned(), ..spec.inside.as_ref().unwrap().clone() };
    assert_eq!(rig.run(Spec { inside: Some(inside), ..spec }).ending, Ending::Code(0));
    assert_eq!(rig.containers().len(), 3);
    // Those of a job as it was are thrown away.
    let other = Container { read_only: false, ..warm() };
    assert_eq!(rig.run(rig.spec(7, &["touch", "/made"], other)).ending, Ending::Code(0));
    assert_eq!(rig.containers().len(), 2);
    // One that ended while it waited is not used again.
    for name in rig.containers() {
        docker(&["kill", &name]).unwrap();
    }
    let other = Container { read_only: false, ..warm() };
    assert_eq!(rig.run(rig.spec(8, &["test", "!", "-e", "/made"], other)).ending, Ending::Code(0));
    // What waits is thrown away when its device leaves.
    let closer = rig.executor.closer();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(closer.close());
    rig.is_tidy();
}

#[test]
fn what_fails_in_a_kept_container_is_told_and_thrown_away_with_it() {
    let Some(mut rig) = Rig::new() else { return };
    let codes = [1, 7, 126, 127, 137, 143, 255];
    for (number, code) in (1..).zip(codes) {
        let exit = rig.run(rig.spec(number, &["sh", "-c", &format!("echo told; exit {code}")], warm()));
        assert_eq!((exit.ending, exit.stopped), (Ending::Code(code), None));
        assert_eq!((rig.log(number), rig.containers()), ("told\n".to_owned(), Vec::new()));
    }
    let exit = rig.run(rig.spec(10, &["no-such-program"], warm()));
    assert_eq!(exit.ending, Ending::Code(127));
    assert!(rig.log(10).contains("no-such-program"), "{}", rig.log(10));
    // Killed with all that it is made of, or asked first.
    let stopped = |spec: Spec, grace| Spec { timeout: Some(Duration::from_secs(3)), grace, ..spec };
    let deaf =
        "trap '' TERM; setsid sh -c 'trap \"\" TERM; while :; do sleep 0.1; done' & while :; do sleep 1000; done";
    let rows = [
        ("exec sleep 1000", 143, LONG),
        (deaf, 137, Duration::from_millis(200)),
        ("trap 'echo cleaned; exit 5' TERM; while :; do sleep 0.05; done", 5, LONG),
    ];
    for (number, (script, code, grace)) in (11..).zip(rows) {
        let exit = rig.run(stopped(rig.spec(number, &["sh", "-c", script], warm()), grace));
        assert_eq!((exit.ending, exit.stopped), (Ending::Code(code), Some(StopCause::Timeout)), "{script}");
        assert_eq!(rig.containers(), Vec::<String>::new());
    }
    assert_eq!(rig.log(11), "", "what the shells around it say is not its own");
    // The program's own shell may say that what it waited for was ended too.
    assert!(rig.log(13).contains("cleaned\n"), "{}", rig.log(13));
    // Memory.
    let spec = rig.spec(20, &["sh", "-c", "x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo ${#x}"], warm());
    let limits = Limits { memory: Some(16 << 20), ..Limits::default() };
    let inside = Inside { limits, ..spec.inside.as_ref().unwrap().clone() };
    let exit = rig.run(Spec { inside: Some(inside), ..spec });
    assert!(exit.oom_killed && exit.ending != Ending::Code(0), "{exit:?}");
    // Somebody else removes it.
    rig.executor.start(rig.spec(21, &["sh", "-c", "touch up; sleep 1000"], warm()));
    rig.wait_for("up");
    docker(&["rm", "-f", &rig.name(21)]).unwrap();
    let exit = rig.exit(21);
    assert!(matches!(&exit.ending, Ending::Unknown { error } if error.contains("kept container")), "{exit:?}");
    rig.is_tidy();
}

#[test]
fn nothing_outlives_its_attempt_in_a_kept_container() {
    let Some(mut rig) = Rig::new() else { return };
    let script = "for i in 1 2 3; do setsid sh -c 'while :; do sleep 0.05; date +%s%N >>beat; done' & done; until [ -s beat ]; do sleep 0.05; done; exit 0";
    assert_eq!(rig.run(rig.spec(1, &["sh", "-c", script], warm())).ending, Ending::Code(0));
    let beats = || fs::read_to_string(rig.path("beat")).unwrap().lines().count();
    let before = beats();
    assert!(before > 0);
    let look = rig.run(rig.spec(2, &["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"], warm()));
    assert_eq!(look.ending, Ending::Code(0));
    assert!(!rig.log(2).contains("beat"), "{}", rig.log(2));
    assert_eq!(fs::read_to_string(rig.path("beat")).unwrap().lines().count(), before);
}

#[test]
fn a_kept_container_is_thrown_away_for_its_age_its_image_and_its_device() {
    let Some(mut rig) = Rig::new() else { return };
    let tagged = Tagged(format!("aios-test-image:{:08x}", rand::random::<u32>()));
    let image = &tagged.0;
    docker(&["tag", SHELL, image]).unwrap();
    let of_image = || Container { image: image.clone(), ..warm() };
    assert_eq!(rig.run(rig.spec(1, &["true"], of_image())).ending, Ending::Code(0));
    let first = rig.containers();
    // The name stands for another image now.
    let made = docker(&["run", "-d", "--network", "none", image, "touch", "/changed"]).unwrap();
    docker(&["wait", &made]).unwrap();
    docker(&["commit", &made, image]).unwrap();
    docker(&["rm", "-f", &made]).unwrap();
    let exit = rig.run(rig.spec(2, &["test", "-e", "/changed"], of_image()));
    assert_eq!(exit.ending, Ending::Code(0));
    let second = rig.containers();
    assert!(first.len() == 1 && second.len() == 1 && first != second, "{first:?} {second:?}");
    // Another life of the device removes what the one before kept, also what runs there, and takes nothing of it over.
    rig.executor.start(rig.spec(3, &["sh", "-c", "touch up; sleep 1000"], of_image()));
    rig.wait_for("up");
    rig.next_life();
    look_back(&rig.executor);
    assert!(rig.executor.found().is_empty());
    eventually("the removal of what was kept", || rig.containers().is_empty().then_some(()));
    // By others it is found by its name.
    rig.executor.start(rig.spec(4, &["sh", "-c", "touch up4; sleep 1000"], of_image()));
    rig.wait_for("up4");
    rig.settings.device = DeviceId::new("e").unwrap();
    rig.next_life();
    let leases = BTreeSet::from([rig.lease(4)]);
    eventually("the eviction", || (rig.executor.evict(&leases) == leases).then_some(()));
    assert_eq!(rig.containers(), Vec::<String>::new());
    // What nothing runs in for as long as was said.
    let short = Container { keep_warm: Some(Duration::from_millis(10)), ..of_image() };
    assert_eq!(rig.run(rig.spec(5, &["true"], short)).ending, Ending::Code(0));
    rig.is_tidy();
}

/// A name for an image, removed when dropped.
struct Tagged(String);

impl Drop for Tagged {
    fn drop(&mut self) {
        let _ = docker(&["rmi", &self.0]);
    }
}

#[test]
fn what_is_forbidden_cannot_be_done_in_a_kept_container_either() {
    let Some(mut rig) = Rig::new() else { return };
    rig.run(rig.spec(1, &["sh", "-c", &forbidden()], warm()));
    assert_eq!(rig.log(1), "tried\n");
}

#[test]
fn without_an_engine_it_is_said_and_nothing_is_offered() {
    let mut rig = Rig::on("unix:///nowhere/docker.sock");
    let error = rig.error_of(rig.sh(1, "true"));
    assert!(error.contains("no container engine answers at unix:///nowhere/docker.sock"), "{error}");
    assert!(error.contains("hint: is the engine running?"), "{error}");
    assert!(rig.executor.offers().is_empty());
    let lease = BTreeSet::from([rig.lease(1)]);
    eventually("that there is nothing to reach", || (rig.executor.evict(&lease) == lease).then_some(()));
    look_back(&rig.executor);
    assert!(rig.executor.found().is_empty());
}

/// Stands between an executor and the engine, and can cut the two off from each other.
struct Gate {
    is_open: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<UnixStream>>>,
}

impl Gate {
    fn new(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let gate = Self { is_open: Arc::new(AtomicBool::new(true)), streams: Arc::default() };
        let (is_open, streams) = (Arc::clone(&gate.is_open), Arc::clone(&gate.streams));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if !is_open.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(engine) = UnixStream::connect("/var/run/docker.sock") else { continue };
                streams.lock().unwrap().extend([stream.try_clone().unwrap(), engine.try_clone().unwrap()]);
                let pairs = [(stream.try_clone().unwrap(), engine.try_clone().unwrap()), (engine, stream)];
                for (from, to) in pairs {
                    std::thread::spawn(move || pass(from, to));
                }
            }
        });
        gate
    }

    fn close(&self) {
        self.is_open.store(false, Ordering::SeqCst);
        for stream in self.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    fn open(&self) {
        self.is_open.store(true, Ordering::SeqCst);
    }
}

fn pass(mut from: UnixStream, mut to: UnixStream) {
    let mut bytes = [0; 16_384];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if to.write_all(&bytes[..count]).is_err() {
            return;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Write);
}

#[test]
fn an_engine_that_is_out_of_sight_is_waited_for() {
    if !has_image(SHELL) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine.sock");
    let gate = Gate::new(&path);
    let mut rig = Rig::on(&format!("unix://{}", path.display()));
    let script = "i=0; while [ ! -e end ]; do i=$((i+1)); echo line $i; touch up; sleep 0.05; done; exit 4";
    rig.executor.start(rig.sh(1, script));
    rig.executor.start(
        rig.sh(2, "touch up2; while [ ! -e end2 ]; do sleep 0.05; done; echo ended while nobody looked; exit 5"),
    );
    for name in ["up", "up2"] {
        rig.wait_for(name);
    }
    gate.close();
    fs::write(rig.path("end2"), "").unwrap();
    let until = Instant::now() + Duration::from_secs(2);
    eventually("two seconds", || (Instant::now() > until).then_some(()));
    let told = rig.executor.take_exits();
    assert!(told.is_empty(), "nothing is told of what cannot be seen: {told:?}");
    let before = rig.log(1).lines().count();
    gate.open();
    let exit = rig.exit(2);
    assert_eq!(exit.ending, Ending::Code(5));
    assert_eq!(rig.log(2), "ended while nobody looked\n");
    // What was printed while nobody looked, too.
    eventually("the log to go on", || (rig.log(1).lines().count() > before + 20).then_some(()));
    fs::write(rig.path("end"), "").unwrap();
    assert_eq!(rig.exit(1).ending, Ending::Code(4));
    let log = rig.log(1);
    assert!(log.lines().zip(1..).all(|(line, number)| line == format!("line {number}")), "each line once: {log}");
    rig.is_tidy();
}
