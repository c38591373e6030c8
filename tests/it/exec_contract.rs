//! What every executor must do, whatever it runs attempts with: written against the port, with real processes.
//!
//! A suite function takes a [`Rig`] and knows nothing of the executor in it; `suite!` makes the tests of one executor out
//! of them. Each test runs in a process of its own, started from this very binary: an executor adopts orphans, reaps them and
//! raises limits for its whole process, which is nothing to share with other tests. Nothing sleeps to let something happen:
//! everything is waited for, with a deadline that only a failure reaches.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aios::exec::cgroup::{Cgroups, Why};
use aios::exec::launch::Limiter;
use aios::exec::leftovers::{kill_lease, kill_leftovers};
use aios::exec::native::NativeExecutor;
use aios::exec::{Ending, Executor, Exit, MARKER, Spec, StopCause};
use aios::model::container::Limits;
use aios::model::ids::RunId;
use aios::model::lease::Lease;
use aios::model::masker::Masker;
use aios::volume::logs::{Keeps, open_again};
use aios::volume::os::{OsDisk, boot};
use chrono::{TimeZone, Utc};
use rustix::process::{Resource, Rlimit};
use tempfile::TempDir;
use tokio::sync::Notify;

mod limits;

use limits::{
    groups_of_an_earlier_life_are_emptied_and_removed, more_address_space_than_allowed_is_not_given,
    nobody_has_more_processes_than_it_may, processor_time_is_counted_and_its_group_goes_with_it,
    what_cannot_be_held_does_not_start, who_hides_from_the_hunt_is_found_in_its_group,
    who_takes_more_memory_than_it_may_is_killed_and_it_is_told,
};

const DEADLINE: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(3_600);
const ISOLATED: &str = "AIOS_TEST_ISOLATED";

/// An executor and what its tests need around it.
struct Rig {
    executor: Box<dyn Executor>,
    wake: Arc<Notify>,
    home: TempDir,
    /// Prefix of the markers, unique to this test.
    session: String,
    /// What every attempt may use.
    limits: Limits,
    exits: Vec<Exit>,
}

impl Rig {
    fn native() -> Self {
        let wake = Arc::new(Notify::new());
        let executor = Box::new(NativeExecutor::new(Arc::clone(&wake)).unwrap());
        let home = tempfile::tempdir().unwrap();
        let session = format!("{}/device/session/", home.path().file_name().unwrap().display());
        Self { executor, wake, home, session, limits: Limits::default(), exits: Vec::new() }
    }

    /// Every attempt is held by a cgroup. `None`: there are none here.
    fn in_cgroups() -> Option<Self> {
        let cgroups = Cgroups::open().inspect_err(skipped).ok()?;
        let limits = Limits { memory: Some(2 << 30), cpu_millis: Some(64_000), pids: Some(5_000) };
        Some(Self { limits, ..Self::limited_by(Some(cgroups)) })
    }

    /// Every attempt is held by a resource limit.
    fn in_address_space() -> Self {
        let limits = Limits { memory: Some(4 << 30), ..Limits::default() };
        Self { limits, ..Self::limited_by(None) }
    }

    fn limited_by(cgroups: Option<Cgroups>) -> Self {
        let plain = Self::native();
        let launcher = PathBuf::from(env!("CARGO_BIN_EXE_orchestrator"));
        let executor = NativeExecutor::new(Arc::clone(&plain.wake)).unwrap();
        Self { executor: Box::new(executor.with_limits(Limiter { launcher, cgroups })), ..plain }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn marker(&self, lease: &Lease) -> String {
        format!("{}{lease}", self.session)
    }

    /// A spec for this command, with a log, a marker and nothing else out of the ordinary.
    fn spec(&self, number: u32, argv: &[&str]) -> Spec {
        let lease = lease(number);
        let env = [("PATH", "/usr/local/bin:/usr/bin:/bin"), (MARKER, &self.marker(&lease))];
        Spec {
            env: env.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            argv: argv.iter().map(|&arg| arg.to_owned()).collect(),
            dir: self.home.path().to_owned(),
            log: open_again(&OsDisk::new(), &self.path(&format!("{number}.log")), 16 << 20, Keeps::First).unwrap(),
            masker: None,
            timeout: None,
            grace: LONG,
            inside: None,
            limits: self.limits,
            lease,
        }
    }

    fn sh(&self, number: u32, script: &str) -> Spec {
        self.spec(number, &["sh", "-c", script])
    }

    fn log(&self, number: u32) -> String {
        fs::read_to_string(self.path(&format!("{number}.log"))).unwrap()
    }

    fn script(&self, name: &str, mode: u32, text: &str) -> String {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn collect(&mut self) {
        self.exits.extend(self.executor.take_exits());
    }

    /// The exit of this attempt, waited for by the wake-up the port promises and by nothing else.
    async fn exit(&mut self, number: u32) -> Exit {
        let wait = async {
            loop {
                self.collect();
                if let Some(at) = self.exits.iter().position(|exit| exit.lease == lease(number)) {
                    return self.exits.remove(at);
                }
                self.wake.notified().await;
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("attempt {number} has no exit"))
    }

    async fn run(&mut self, spec: Spec) -> Exit {
        let number = spec.lease.attempt;
        self.executor.start(spec);
        self.exit(number).await
    }

    /// Waits until the program has written this file whole: a line.
    async fn line(&self, name: &str) -> String {
        let path = self.path(name);
        eventually(|| fs::read_to_string(&path).ok().filter(|text| text.ends_with('\n'))).await.trim().to_owned()
    }

    async fn pid(&self, name: &str) -> i32 {
        self.line(name).await.parse().unwrap()
    }
}

/// Says that there are no cgroups. In CI they may only be missing where nobody offers them.
fn skipped(why: &Why) {
    assert!(
        std::env::var_os("CI").is_none() || why.is_not_offered(),
        "there are cgroups, and they cannot be used: {why}"
    );
    println!("SKIPPED: no cgroups: {why}");
}

fn lease(number: u32) -> Lease {
    Lease { run: RunId::new(Utc.timestamp_opt(1_800_000_000, 0).unwrap(), 7), attempt: number }
}

/// Polls until there is an answer.
async fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "waited in vain");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// State and parent of a process, if there is one.
fn process(pid: i32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn is_alive(pid: i32) -> bool {
    process(pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

fn children() -> Vec<(i32, char)> {
    let own = std::process::id();
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| process(pid).filter(|(_, parent)| *parent == own).map(|(state, _)| (pid, state))).collect()
}

fn error_of(exit: &Exit) -> &str {
    match &exit.ending {
        Ending::NotStarted { error } => {
            assert!(!exit.started && exit.usage.is_none() && exit.stopped.is_none());
            error
        }
        ending @ (Ending::Code(_) | Ending::Signal(_) | Ending::Unknown { .. }) => panic!("it started: {ending:?}"),
    }
}

/// Runs a test in a process in which there is nothing else.
fn isolated(name: &str, body: impl Future<Output = ()>) {
    if std::env::var_os(ISOLATED).is_some() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        return runtime.enable_all().build().unwrap().block_on(body);
    }
    let name = name.split_once("::").unwrap().1;
    let done = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--include-ignored"])
        .env(ISOLATED, "1")
        .stdin(Stdio::piped())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success() && out.contains("1 passed"), "{name}: {}\n{out}\n{err}", done.status);
    out.lines().filter_map(|line| line.find("SKIPPED").map(|at| &line[at..])).for_each(|why| println!("{why}"));
}

macro_rules! suite {
    ($module:ident, $rig:expr, [$($test:ident),* $(,)?]) => {
        mod $module {
            $(#[test]
            fn $test() {
                super::isolated(concat!(module_path!(), "::", stringify!($test)), async {
                    if let Some(mut rig) = Option::<super::Rig>::from($rig) {
                        super::$test(&mut rig).await;
                    }
                });
            })*
        }
    };
}

/// What holds for every attempt, whatever holds its limits.
macro_rules! contract {
    ($module:ident, $rig:expr) => {
        suite!(
            $module,
            $rig,
            [
                every_ending_is_told,
                a_signal_is_told_as_one,
                what_cannot_start_says_why,
                output_is_whole,
                who_opens_its_output_again_cuts_nothing,
                output_is_the_same_bytes,
                a_flood_is_cut_and_stops_nobody,
                secrets_are_masked_before_they_are_written,
                the_environment_is_exactly_the_given_one,
                the_program_is_alone_in_its_group_and_reads_nothing,
                usage_and_times_are_plausible,
                a_lease_runs_once_and_is_listed_until_taken,
                a_timeout_ends_it,
                who_ignores_term_is_killed,
                the_first_cause_counts,
                the_earlier_kill_counts,
                a_stop_of_what_has_ended_changes_nothing,
                a_background_child_ends_with_its_program,
                a_daemon_that_ignores_term_is_gone,
                a_daemon_is_found_while_its_program_runs,
                a_child_without_environment_is_found,
                an_orphan_without_any_sign_is_found,
                an_orphan_of_either_ends_with_the_last,
                one_attempts_daemon_is_not_anothers,
                a_fork_storm_is_ended,
            ]
        );
    };
}

contract!(native, super::Rig::native());
contract!(in_cgroups, super::Rig::in_cgroups());
contract!(in_address_space, super::Rig::in_address_space());

suite!(
    cgroups_only,
    super::Rig::in_cgroups(),
    [
        who_takes_more_memory_than_it_may_is_killed_and_it_is_told,
        nobody_has_more_processes_than_it_may,
        processor_time_is_counted_and_its_group_goes_with_it,
        who_hides_from_the_hunt_is_found_in_its_group,
        groups_of_an_earlier_life_are_emptied_and_removed,
    ]
);

suite!(
    address_space_only,
    super::Rig::in_address_space(),
    [more_address_space_than_allowed_is_not_given, what_cannot_be_held_does_not_start]
);

suite!(
    native_only,
    super::Rig::native(),
    [
        nothing_is_mixed_up_in_an_orphan_storm,
        other_children_of_this_process_are_left_alone,
        without_descriptors_ends_are_still_seen_and_starts_wait,
        a_thousand_sleepers_are_held_and_stopped,
        leftovers_are_ended_but_not_the_spared,
        one_lease_of_another_session_is_ended,
    ]
);

async fn every_ending_is_told(rig: &mut Rig) {
    for code in [0, 7, 255] {
        let exit = rig.run(rig.sh(1, &format!("exit {code}"))).await;
        assert_eq!((exit.ending, exit.stopped), (Ending::Code(code), None));
    }
    assert_eq!(rig.executor.list(), [], "all were taken");
}

async fn a_signal_is_told_as_one(rig: &mut Rig) {
    for signal in [9, 11, 15, 34] {
        let exit = rig.run(rig.spec(1, &["bash", "-c", &format!("kill -{signal} $$")])).await;
        assert_eq!((exit.ending, exit.stopped), (Ending::Signal(signal), None));
    }
}

async fn what_cannot_start_says_why(rig: &mut Rig) {
    let plain = rig.script("plain", 0o644, "#!/bin/sh\n");
    let bare = rig.script("bare", 0o755, "echo no interpreter line\n");
    let crlf = rig.script("crlf", 0o755, "#!/bin/sh\r\n");
    let folder = rig.home.path().to_str().unwrap().to_owned();
    let huge = "x".repeat(200_000);
    let cases: &[(&[&str], &[&str])] = &[
        (&["no-such-program"], &["\"no-such-program\"", "not found in PATH (/usr/local/bin:/usr/bin:/bin)"]),
        (&["/no/such/program"], &["/no/such/program", "No such file"]),
        (&["./nothing"], &["./nothing", "No such file"]),
        (&[&plain], &[&plain, "not executable (mode 0644", "Permission denied"]),
        (&["./plain"], &["./plain", "not executable"]),
        (&[&bare], &[&bare, "no `#!` line", "os error 8"]),
        (&[&crlf], &[&crlf, "#!/bin/sh\\r", "carriage return"]),
        (&[&folder], &[&folder, "is a folder"]),
        (&["sh", "-c", "a\0b"], &["argument 2 contains a NUL byte"]),
        (&["s\0h"], &["NUL byte"]),
        (&["sh", &huge], &["bytes", "os error 7"]),
        (&[], &["name is empty"]),
        (&[""], &["name is empty"]),
    ];
    for (argv, parts) in cases {
        let exit = rig.run(rig.spec(1, argv)).await;
        let error = error_of(&exit);
        for part in parts.iter().chain(&["cannot start", "expected"]) {
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        }
    }
    let mut spec = rig.sh(1, "true");
    spec.dir = rig.path("nowhere");
    let exit = rig.run(spec).await;
    assert!(error_of(&exit).contains("nowhere does not exist"), "{exit:?}");
    let mut spec = rig.sh(1, "true");
    spec.env.insert("KEY".to_owned(), "a\0b".to_owned());
    assert!(error_of(&rig.run(spec).await).contains("\"KEY\" contains a NUL byte"));
    // Relative to the attempt's folder, not to ours.
    rig.script("here", 0o755, "#!/bin/sh\nexit 3\n");
    assert_eq!(rig.run(rig.spec(1, &["./here"])).await.ending, Ending::Code(3));
    let mut spec = rig.spec(1, &["here"]);
    spec.env.insert("PATH".to_owned(), format!("/nowhere:{folder}"));
    assert_eq!(rig.run(spec).await.ending, Ending::Code(3));
}

async fn output_is_whole(rig: &mut Rig) {
    for round in 0..200 {
        let exit = rig.run(rig.sh(round, "echo out; echo err >&2; echo last")).await;
        assert_eq!(exit.ending, Ending::Code(0));
        assert_eq!(rig.log(round), "out\nerr\nlast\n", "round {round}");
    }
}

/// A program that opens its own output again cuts nothing: all it prints stands in order.
async fn who_opens_its_output_again_cuts_nothing(rig: &mut Rig) {
    let script = "echo 1; echo 2 > /dev/stderr; echo 3; echo 4 | tee /dev/stderr > /dev/null; exec 3>/proc/self/fd/1; echo 5 >&3; echo 6";
    rig.run(rig.sh(1, script)).await;
    assert_eq!(rig.log(1), "1\n2\n3\n4\n5\n6\n");
}

async fn output_is_the_same_bytes(rig: &mut Rig) {
    rig.run(rig.sh(1, "printf 'a\\0b\\r\\n\\351 \\377\\n'; printf '\\n\\nlast' >&2")).await;
    assert_eq!(fs::read(rig.path("1.log")).unwrap(), b"a\0b\r\n\xe9 \xff\n\n\nlast");
}

/// Output over the limit is read and dropped: neither the program nor another one is stopped.
async fn a_flood_is_cut_and_stops_nobody(rig: &mut Rig) {
    let log = open_again(&OsDisk::new(), &rig.path("1.log"), 10_000, Keeps::First).unwrap();
    let flood = "i=0; while [ $i -lt 200 ]; do head -c 100000 /dev/zero; i=$((i + 1)); done; echo end >done; exit 3";
    rig.executor.start(Spec { log, ..rig.sh(1, flood) });
    rig.run(rig.sh(2, "echo here")).await;
    assert_eq!(rig.log(2), "here\n");
    let exit = rig.exit(1).await;
    assert_eq!((exit.ending, exit.log_truncated, rig.line("done").await.as_str()), (Ending::Code(3), true, "end"));
    let log = rig.log(1);
    assert!(
        log.ends_with("[log cut at 10000 bytes (--log-limit): 19990000 bytes are left out]\n"),
        "{:?}",
        &log[10_000..]
    );
    assert_eq!(log.find('['), Some(10_001));
}

async fn secrets_are_masked_before_they_are_written(rig: &mut Rig) {
    let with = |spec: Spec| Spec { masker: Some(Arc::new(Masker::new(["hunter2"]))), ..spec };
    let script = "printf 'out hun'; printf 'err ter2\n' >&2; printf hun; printf 'ter2\n' >&2; printf hunter";
    assert_eq!(rig.run(with(rig.sh(1, script))).await.ending, Ending::Code(0));
    assert_eq!(rig.log(1), "out hunerr ter2\n*******\nhunter", "in the order of printing, to the last byte");
    // More than a pipe holds, to the last line.
    let many = "i=0; while [ $i -lt 20000 ]; do echo \"$i hunter2\"; i=$((i + 1)); done; echo end";
    rig.run(with(rig.sh(2, many))).await;
    let expected: String = (0..20_000).map(|number| format!("{number} *******\n")).collect();
    assert!(rig.log(2) == expected + "end\n", "{} bytes", rig.log(2).len());
    // What was left behind has the pipe open until it ends.
    let exit = rig.run(with(rig.sh(3, "sleep 1000 & echo hunter2"))).await;
    assert_eq!((exit.ending, rig.log(3).as_str()), (Ending::Code(0), "*******\n"));
    // Whoever left its group is known by that pipe.
    let exit = rig.run(with(rig.sh(4, "setsid env -i sleep 1000 & echo $! >pid; exit 3"))).await;
    assert_eq!(exit.ending, Ending::Code(3));
    assert!(!is_alive(rig.pid("pid").await));
    assert!(error_of(&rig.run(with(rig.spec(5, &["no-such-program"]))).await).contains("not found"));
    assert_eq!(rig.log(5), "");
    let shown =
        format!("{:?}", Spec { env: [("A".to_owned(), "hunter2".to_owned())].into(), ..with(rig.sh(6, "true")) });
    assert!(shown.contains("\"true\"") && !shown.contains("hunter2"), "{shown}");
}

async fn the_environment_is_exactly_the_given_one(rig: &mut Rig) {
    let mut spec = rig.spec(1, &["env", "-0"]);
    spec.env.extend([("A B".to_owned(), "c=d\ne".to_owned()), ("EMPTY".to_owned(), String::new())]);
    let expected = spec.env.clone();
    assert_eq!(rig.run(spec).await.ending, Ending::Code(0));
    let log = rig.log(1);
    let found: BTreeMap<String, String> = log
        .split_terminator('\0')
        .map(|pair| pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned())).unwrap())
        .collect();
    assert_eq!(found, expected);
}

async fn the_program_is_alone_in_its_group_and_reads_nothing(rig: &mut Rig) {
    let script = "cat; readlink /proc/self/fd/0; pwd; echo $$; cut -d' ' -f5 /proc/$$/stat";
    assert_eq!(rig.run(rig.sh(1, script)).await.ending, Ending::Code(0));
    let log = rig.log(1);
    let lines: Vec<&str> = log.lines().collect();
    let dir = rig.home.path().canonicalize().unwrap();
    assert_eq!(lines[..2], ["/dev/null", dir.to_str().unwrap()]);
    assert_eq!(lines[2], lines[3], "its process group is its own");
    // It holds what any child of ours would (whatever we were started with), and nothing more.
    assert_eq!(rig.run(rig.spec(2, &["ls", "/proc/self/fd"])).await.ending, Ending::Code(0));
    let bare = Command::new("ls").arg("/proc/self/fd").stdin(Stdio::null()).stderr(Stdio::null()).output().unwrap();
    assert_eq!(rig.log(2), String::from_utf8(bare.stdout).unwrap());
}

async fn usage_and_times_are_plausible(rig: &mut Rig) {
    let before = boot();
    let exit = rig.run(rig.sh(1, "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done")).await;
    let usage = exit.usage.unwrap();
    let cpu = usage.cpu_user_ms + usage.cpu_system_ms;
    let wall = exit.duration.as_secs_f64() * 1e3;
    assert!(cpu > 5.0 && cpu <= wall + 20.0, "{cpu} of {wall} ms");
    assert!((100_000..1_000_000_000).contains(&usage.max_rss_bytes), "{usage:?}");
    assert!(exit.started && !exit.duration.is_zero());
    assert!(before + exit.duration <= exit.finished && exit.finished <= boot());
}

async fn a_lease_runs_once_and_is_listed_until_taken(rig: &mut Rig) {
    rig.executor.start(rig.sh(2, "echo once"));
    rig.executor.start(rig.sh(1, "echo once"));
    assert_eq!(rig.executor.list(), [lease(1), lease(2)], "in order");
    let listed = Arc::clone(&rig.wake);
    listed.notified().await;
    rig.executor.start(rig.sh(1, "echo twice"));
    rig.executor.start(rig.sh(2, "echo twice"));
    assert_eq!(rig.executor.list(), [lease(1), lease(2)], "ended or not, they are not taken yet");
    rig.executor.stop(&lease(9), StopCause::Cancelled, Duration::ZERO);
    for number in [1, 2] {
        assert_eq!(rig.exit(number).await.stopped, None);
        assert_eq!(rig.log(number), "once\n");
    }
    assert_eq!(rig.executor.list(), []);
    assert_eq!(rig.run(rig.sh(1, "exit 4")).await.ending, Ending::Code(4), "taken, it may run again");
    rig.collect();
    assert!(rig.exits.is_empty(), "one exit each");
}

async fn a_timeout_ends_it(rig: &mut Rig) {
    let mut spec = rig.spec(1, &["sleep", "1000"]);
    spec.timeout = Some(Duration::from_millis(50));
    let exit = rig.run(spec).await;
    assert_eq!((exit.ending, exit.stopped), (Ending::Signal(15), Some(StopCause::Timeout)));
    assert!(exit.duration >= Duration::from_millis(50));
    // What it makes of the signal is told all the same.
    let mut spec = rig.sh(2, "trap 'echo cleaned; exit 5' TERM; while :; do sleep 0.01; done");
    spec.timeout = Some(Duration::from_secs(2));
    let exit = rig.run(spec).await;
    assert_eq!((exit.ending, exit.stopped), (Ending::Code(5), Some(StopCause::Timeout)));
    assert!(rig.log(2).contains("cleaned"));
    let mut spec = rig.sh(3, "exit 6");
    spec.timeout = Some(Duration::MAX);
    let exit = rig.run(spec).await;
    assert_eq!((exit.ending, exit.stopped), (Ending::Code(6), None));
}

async fn who_ignores_term_is_killed(rig: &mut Rig) {
    let mut spec = rig.sh(1, "trap '' TERM; echo $$ > main; while :; do sleep 1000; done");
    spec.timeout = Some(Duration::from_secs(2));
    spec.grace = Duration::from_millis(100);
    rig.executor.start(spec);
    let main = rig.pid("main").await;
    let exit = rig.exit(1).await;
    assert_eq!((exit.ending, exit.stopped), (Ending::Signal(9), Some(StopCause::Timeout)));
    assert!(exit.duration >= Duration::from_millis(2_100) && !is_alive(main));
}

async fn the_first_cause_counts(rig: &mut Rig) {
    rig.executor.start(rig.spec(1, &["sleep", "1000"]));
    eventually(|| (!rig.executor.pids().is_empty()).then_some(())).await;
    rig.executor.stop(&lease(1), StopCause::Drained, LONG);
    rig.executor.stop(&lease(1), StopCause::Cancelled, LONG);
    let exit = rig.exit(1).await;
    assert_eq!((exit.ending, exit.stopped), (Ending::Signal(15), Some(StopCause::Drained)));
}

async fn the_earlier_kill_counts(rig: &mut Rig) {
    for (number, graces) in [(1, [LONG, Duration::ZERO]), (2, [Duration::from_millis(50), LONG])] {
        rig.executor.start(rig.sh(number, &format!("trap '' TERM; echo > up{number}; while :; do sleep 1000; done")));
        rig.line(&format!("up{number}")).await;
        for grace in graces {
            rig.executor.stop(&lease(number), StopCause::Fenced, grace);
        }
        let exit = rig.exit(number).await;
        assert_eq!((exit.ending, exit.stopped), (Ending::Signal(9), Some(StopCause::Fenced)));
    }
}

async fn a_stop_of_what_has_ended_changes_nothing(rig: &mut Rig) {
    rig.executor.start(rig.sh(1, "exit 7"));
    // Without giving the executor a moment to see it.
    let until = Instant::now() + DEADLINE;
    while !children().iter().any(|(_, state)| *state == 'Z') {
        assert!(Instant::now() < until);
        std::thread::yield_now();
    }
    rig.executor.stop(&lease(1), StopCause::Cancelled, Duration::ZERO);
    let exit = rig.exit(1).await;
    assert_eq!((exit.ending, exit.stopped), (Ending::Code(7), None));
}

async fn a_background_child_ends_with_its_program(rig: &mut Rig) {
    let mut spec = rig.sh(1, "sleep 1000 & echo $! > child; exit 3");
    spec.grace = LONG;
    let exit = rig.run(spec).await;
    assert_eq!((exit.ending, exit.stopped), (Ending::Code(3), None));
    assert!(!is_alive(rig.pid("child").await));
}

/// Leaves its group and its parents behind, and ignores SIGTERM.
const DAEMON: &str = "setsid sh -c 'trap \"\" TERM; (while :; do sleep 1000; done) & echo $! > daemon.new; mv daemon.new daemon' & while [ ! -e daemon ]; do sleep 0.01; done";

async fn a_daemon_that_ignores_term_is_gone(rig: &mut Rig) {
    let mut spec = rig.sh(1, &format!("{DAEMON}; exit 4"));
    spec.grace = Duration::from_millis(200);
    let begun = Instant::now();
    let exit = rig.run(spec).await;
    assert_eq!((exit.ending, exit.stopped), (Ending::Code(4), None));
    assert!(!is_alive(rig.pid("daemon").await));
    assert!(begun.elapsed() >= Duration::from_millis(200), "it got its grace");
    assert!(exit.duration < begun.elapsed(), "the duration is the main process's");
}

async fn a_daemon_is_found_while_its_program_runs(rig: &mut Rig) {
    rig.executor.start(rig.sh(1, &format!("trap 'exit 8' TERM; {DAEMON}; while :; do sleep 0.01; done")));
    let daemon = rig.pid("daemon").await;
    rig.executor.stop(&lease(1), StopCause::Restarted, Duration::from_secs(2));
    let exit = rig.exit(1).await;
    assert_eq!((exit.ending, exit.stopped), (Ending::Code(8), Some(StopCause::Restarted)));
    assert!(!is_alive(daemon));
}

async fn a_child_without_environment_is_found(rig: &mut Rig) {
    // By its ancestors, which are still there when it is looked for.
    let script = "trap '' TERM; env -i setsid sleep 1000 >/dev/null 2>&1 & echo $! > one; while :; do sleep 1000; done";
    // Another attempt, open all the time, so that nothing is found by being the only candidate.
    rig.executor.start(rig.spec(9, &["sleep", "1000"]));
    rig.executor.start(rig.sh(1, script));
    let child = rig.pid("one").await;
    rig.executor.stop(&lease(1), StopCause::Cancelled, Duration::from_millis(100));
    assert_eq!(rig.exit(1).await.ending, Ending::Signal(9));
    assert!(!is_alive(child));
    // By the log it writes to.
    assert_eq!(rig.run(rig.sh(2, &bare_orphan("two", ""))).await.ending, Ending::Code(0));
    assert!(!is_alive(rig.pid("two").await));
    rig.executor.stop(&lease(9), StopCause::Cancelled, LONG);
    assert_eq!(rig.exit(9).await.ending, Ending::Signal(15));
}

/// A script that leaves a process behind which has its own session and no environment.
fn bare_orphan(name: &str, outputs: &str) -> String {
    let orphan = format!("env -i setsid sh -c 'echo $$ > {name}; exec sleep 1000'");
    format!("{orphan} {outputs} & while [ ! -s {name} ]; do sleep 0.01; done")
}

async fn an_orphan_without_any_sign_is_found(rig: &mut Rig) {
    rig.run(rig.sh(1, &bare_orphan("orphan", ">/dev/null 2>&1"))).await;
    assert!(!is_alive(rig.pid("orphan").await), "only one attempt can have started it");
}

async fn an_orphan_of_either_ends_with_the_last(rig: &mut Rig) {
    rig.executor.start(rig.sh(1, "while [ ! -e go ]; do sleep 0.01; done; exit 1"));
    // Its parent ends at once, and the program itself stays.
    let script = format!("({}); echo $$ > main; exec sleep 1000", bare_orphan("orphan", ">/dev/null 2>&1"));
    rig.executor.start(rig.sh(2, &script));
    let (orphan, _) = (rig.pid("orphan").await, rig.pid("main").await);
    fs::write(rig.path("go"), "").unwrap();
    assert_eq!(rig.exit(1).await.ending, Ending::Code(1));
    assert!(is_alive(orphan), "it may be the other's, and it is");
    rig.executor.stop(&lease(2), StopCause::Cancelled, LONG);
    assert_eq!(rig.exit(2).await.ending, Ending::Signal(15));
    assert!(!is_alive(orphan));
}

async fn one_attempts_daemon_is_not_anothers(rig: &mut Rig) {
    rig.executor.start(rig.sh(1, &format!("{DAEMON}; echo $$ > main; while :; do sleep 0.01; done")));
    let (daemon, main) = (rig.pid("daemon").await, rig.pid("main").await);
    for number in 2..6 {
        let mut spec = rig.sh(number, "sleep 1000 & setsid sleep 1000 & exit 0");
        spec.grace = Duration::ZERO;
        assert_eq!(rig.run(spec).await.ending, Ending::Code(0));
    }
    assert!(is_alive(daemon) && is_alive(main));
    rig.executor.stop(&lease(1), StopCause::Cancelled, Duration::ZERO);
    rig.exit(1).await;
    assert!(!is_alive(daemon) && !is_alive(main));
}

async fn a_fork_storm_is_ended(rig: &mut Rig) {
    // Each link starts the next in a new session and ends: a chain that runs away from whoever looks for it.
    rig.script("chain", 0o755, "#!/bin/sh\ntrap '' TERM\n[ -e stop ] && exit\necho x >> links\nsetsid ./chain &\n");
    let mut spec = rig.sh(1, "./chain; while [ $(wc -l < links) -lt 20 ]; do sleep 0.01; done; exit 2");
    spec.grace = Duration::ZERO;
    rig.executor.start(spec);
    let exit = rig.exit(1).await;
    assert_eq!(exit.ending, Ending::Code(2));
    let links = fs::read_to_string(rig.path("links")).unwrap().len();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let later = fs::read_to_string(rig.path("links")).unwrap().len();
    fs::write(rig.path("stop"), "").unwrap();
    assert_eq!(links, later, "the chain goes on");
}

async fn nothing_is_mixed_up_in_an_orphan_storm(rig: &mut Rig) {
    let storm = "echo > storm; i=0; while [ $i -lt 300 ]; do (setsid sh -c 'exit 99' &); (sh -c 'exit 98' &); i=$((i+1)); done; echo $$ > done; exec sleep 1000";
    rig.executor.start(rig.sh(1_000, storm));
    rig.line("storm").await;
    for number in 0..200 {
        rig.executor.start(rig.sh(number, &format!("exit {number}")));
    }
    for number in 0..200 {
        let exit = rig.exit(number).await;
        assert_eq!(exit.ending, Ending::Code(i32::try_from(number).unwrap()), "{exit:?}");
    }
    // The orphans go while the one that made them lives on.
    let main = rig.pid("done").await;
    eventually(|| (children() == [(main, 'S')]).then_some(())).await;
    rig.executor.stop(&lease(1_000), StopCause::Cancelled, LONG);
    assert_eq!(rig.exit(1_000).await.ending, Ending::Signal(15));
    assert_eq!(children(), []);
}

async fn other_children_of_this_process_are_left_alone(rig: &mut Rig) {
    let mut quick = Command::new("sh").args(["-c", "exit 42"]).spawn().unwrap();
    rig.executor.start(rig.spec(2, &["sleep", "1000"]));
    let mut slow = Command::new("sleep").arg("1000").spawn().unwrap();
    let mut spec = rig.sh(1, "(setsid sh -c 'exit 99' &); setsid sleep 1000 & sleep 1000 & exit 1");
    spec.grace = Duration::ZERO;
    assert_eq!(rig.run(spec).await.ending, Ending::Code(1));
    rig.executor.stop(&lease(2), StopCause::Cancelled, Duration::ZERO);
    rig.exit(2).await;
    let (quick_pid, slow_pid) = (quick.id().cast_signed(), slow.id().cast_signed());
    eventually(|| (children().iter().all(|(pid, _)| [quick_pid, slow_pid].contains(pid))).then_some(())).await;
    assert!(is_alive(slow_pid));
    slow.kill().unwrap();
    slow.wait().unwrap();
    assert_eq!(quick.wait().unwrap().code(), Some(42), "its status was left for its owner");
}

async fn without_descriptors_ends_are_still_seen_and_starts_wait(rig: &mut Rig) {
    let few = Rlimit { current: Some(1_024), maximum: Some(1_024) };
    rustix::process::setrlimit(Resource::Nofile, few).unwrap();
    rig.executor.start(rig.sh(1, "while [ ! -e go ]; do sleep 0.01; done; exit 5"));
    rig.executor.start(rig.sh(2, "trap '' TERM; setsid sleep 1000 & echo $! > child; while :; do sleep 1000; done"));
    // Before anything else takes a step.
    let until = Instant::now() + LONG;
    while !fs::read_to_string(rig.path("child")).is_ok_and(|text| text.ends_with('\n')) {
        assert!(Instant::now() < until, "it does not start");
        std::thread::yield_now();
    }
    let too_many = rig.sh(3, "true");
    let mut hoard = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        hoard.push(file);
    }
    rig.executor.start(too_many);
    let is_short = |rig: &Rig| rig.executor.short_of().is_some_and(|why| why.contains("ulimit -n"));
    while !is_short(rig) {
        assert!(Instant::now() < until, "the third is started");
        std::thread::yield_now();
    }
    assert!(rig.executor.list().contains(&lease(3)));
    // The attendants take their first step only now, and find no descriptor for a pidfd.
    tokio::task::yield_now().await;
    rig.executor.stop(&lease(2), StopCause::Cancelled, Duration::from_millis(100));
    tokio::task::yield_now().await;
    hoard.truncate(hoard.len() - 20);
    fs::write(rig.path("go"), "").unwrap();
    assert_eq!(rig.exit(1).await.ending, Ending::Code(5));
    assert_eq!(rig.exit(2).await.ending, Ending::Signal(9));
    assert!(hoard.len() > 100);
    assert_eq!(rig.exit(3).await.ending, Ending::Code(0));
    eventually(|| rig.executor.short_of().is_none().then_some(())).await;
}

async fn a_thousand_sleepers_are_held_and_stopped(rig: &mut Rig) {
    for number in 0..1_000 {
        let spec = rig.spec(number, &["sleep", "1000"]);
        rig.executor.start(spec);
        tokio::task::yield_now().await;
    }
    assert_eq!(rig.executor.list().len(), 1_000);
    eventually(|| (rig.executor.pids().len() == 1_000).then_some(())).await;
    for number in 0..1_000 {
        rig.executor.stop(&lease(number), StopCause::Drained, LONG);
    }
    for number in 0..1_000 {
        assert_eq!(rig.exit(number).await.ending, Ending::Signal(15));
    }
    assert_eq!(children(), []);
}

/// Processes of an earlier session: started by something that is gone, so they are nobody's children here.
fn strangers(dir: &Path, markers: &[&str]) -> Vec<i32> {
    // For the moment of their start we adopt nobody: they must not be below this process.
    rustix::process::set_child_subreaper(None).unwrap();
    let start = |(at, marker): (usize, &&str)| {
        let script = format!(
            "trap '' TERM; env -i setsid sh -c 'echo $$ > below{at}; exec sleep 1000' & echo $$ > top{at}; exec sleep 1000"
        );
        // The launcher leaves its group and ends at once; the process is adopted by whoever is above this test.
        let mut launcher = Command::new("sh");
        launcher.args(["-c", "setsid sh -c \"$0\" >/dev/null 2>&1 &", &script]).env(MARKER, marker).current_dir(dir);
        assert!(launcher.status().unwrap().success());
    };
    markers.iter().enumerate().for_each(start);
    let read = |name: String| {
        let until = Instant::now() + DEADLINE;
        loop {
            if let Some(pid) = fs::read_to_string(dir.join(&name)).ok().filter(|text| text.ends_with('\n')) {
                return pid.trim().parse().unwrap();
            }
            assert!(Instant::now() < until);
            std::thread::yield_now();
        }
    };
    let pids = (0..markers.len()).flat_map(|at| [read(format!("top{at}")), read(format!("below{at}"))]).collect();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    pids
}

async fn leftovers_are_ended_but_not_the_spared(rig: &mut Rig) {
    let volume = rig.session.split('/').next().unwrap().to_owned();
    let prefix = format!("{volume}/one/");
    let markers = [format!("{prefix}old/r.1"), format!("{prefix}now/r.1"), format!("{volume}/one-more/old/r.1")];
    rig.executor.start(rig.spec(1, &["sleep", "1000"]));
    let pids = strangers(rig.home.path(), &markers.each_ref().map(String::as_str));
    assert!(pids.iter().all(|&pid| is_alive(pid)));
    let begun = Instant::now();
    // The one with the marker, and what is below it without any environment.
    assert_eq!(kill_leftovers(&prefix, &format!("{prefix}now/"), Duration::from_millis(100)).await, 2);
    assert!(begun.elapsed() >= Duration::from_millis(100), "it ignored SIGTERM and got its grace");
    let living: Vec<bool> = pids.iter().map(|&pid| is_alive(pid)).collect();
    assert_eq!(living, [false, false, true, true, true, true]);
    assert_eq!(kill_leftovers(&prefix, "", Duration::ZERO).await, 2);
    assert_eq!(kill_leftovers(&format!("{volume}/one-more/"), "", Duration::ZERO).await, 2);
    assert_eq!(kill_leftovers(&format!("{volume}/"), "", Duration::ZERO).await, 0, "not our own runs, whoever asks");
    assert!(!pids.iter().any(|&pid| is_alive(pid)));
    rig.executor.stop(&lease(1), StopCause::Cancelled, LONG);
    assert_eq!(rig.exit(1).await.ending, Ending::Signal(15));
}

async fn one_lease_of_another_session_is_ended(rig: &mut Rig) {
    let volume = rig.session.split('/').next().unwrap().to_owned();
    let markers = [format!("{volume}/one/old/r.1"), format!("{volume}/one/old/r.11")];
    let pids = strangers(rig.home.path(), &markers.each_ref().map(String::as_str));
    assert_eq!(kill_lease(&markers[0], Duration::ZERO).await, 2);
    let living: BTreeSet<i32> = pids.iter().copied().filter(|&pid| is_alive(pid)).collect();
    assert_eq!(living, pids[2..].iter().copied().collect());
    assert_eq!(kill_lease(&markers[1], Duration::ZERO).await, 2);
}
