//! Runs attempts as processes of this machine.
//!
//! Promises: exactly one [`Exit`] for each started [`Spec`], and none before everything of the attempt is dead - its main
//! process, its process group, and whatever left the group but still belongs to its tree (`tree.rs` says how that is known). No CPU
//! while nothing happens: an end wakes a pidfd, and nothing polls unless something that should have ended has not.
//!
//! A thread of its own starts the programs, one after the other (`starting.rs`).
//!
//! In the ordinary case an attempt costs one `posix_spawn`, one pidfd, one pipe, and at its end eight system calls besides closing those. Only a
//! program that left something behind, was stopped, or lived long is followed by a look at all processes, which happens on
//! a thread of its own and is shared by everybody who waits for one.
//!
//! What cannot be had without privileges: a process that wiped its environment, left its group, closed the log and outlived its parent cannot be
//! told from that of another attempt that was open when it started. It is stopped with the last of those attempts.
//!
//! A start that fails because the system is out of processes, memory or descriptors is tried again, and so is all that comes behind
//! it (`waiting.rs`).

use std::collections::BTreeSet;
use std::io::PipeWriter;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, Signal};
use tokio::runtime::Handle;
use tokio::signal::unix::SignalKind;
use tokio::sync::{Notify, oneshot};
use wait4::Wait4;

use super::cgroup::Group;
use super::end::{MainEnd, until};
use super::launch::{self, Launch, Limiter};
use super::ledger::Ledger;
use super::log::{Log, Pipe, Pipes};
use super::procfs::NewestPid;
use super::program::{self, Unstarted};
use super::tree::{self, Known, Signalled, Survey};
use super::{Ending, Executor, Exit, MARKER, Spec, StopCause};
use crate::model::ids::{RunId, Tag};
use crate::model::lease::Lease;
use crate::model::limits::CGROUP_TAG;
use crate::model::result::Usage;
use crate::volume::os::boot;

mod starting;
mod waiting;

use starting::{Starter, Starting};
use waiting::Waiting;

/// As many descriptors as are asked for: each run holds three while it lives.
const DESCRIPTORS: u64 = 65_536;
/// The number of them that no start may take: the device goes on to read and write its volume.
const RESERVED: u64 = 64;
/// How often ended orphans are looked for when there may be some.
const REAP_SOON: Duration = Duration::from_millis(100);
/// The same, when the last looks found none: then what ends all the time are main processes.
const REAP_LATE: Duration = Duration::from_secs(2);
/// How long the first and the last pause is between two looks at something that should be gone.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));
/// How many looks in a row in which nothing was certain are believed after all.
const MOST_BLURRED: u32 = 20;
/// Within this time the pids of no machine go round once, so a newer pid means a newer process.
const PIDS_LAST: Duration = Duration::from_millis(200);

/// Why the executor cannot work here.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct NativeError {
    what: &'static str,
    source: std::io::Error,
}

/// The executor for processes of this machine.
///
/// It lives on one tokio runtime with I/O and time. Several in one process do not disturb each other, but other code of the process
/// should start children in its own process group only (as `Command` does by default): a child in a group of its own
/// would be taken for an orphan of an attempt. Dropping it leaves what runs alone.
#[derive(Debug)]
pub struct NativeExecutor {
    shared: Arc<Shared>,
    starter: Starter,
}

#[derive(Debug)]
struct Shared {
    runtime: Handle,
    ledger: Ledger<Attempt>,
    starting: Starting,
    waiting: Waiting,
    pipes: Pipes,
    /// Not set: it starts nothing that has limits.
    limiter: OnceLock<Limiter>,
    /// The limit of open files that this process was started with, and that programs get.
    descriptors: Rlimit,
    newest: Option<NewestPid>,
    #[expect(clippy::disallowed_types, reason = "as many askers as open attempts, and one answer serves them all")]
    surveys: mpsc::Sender<oneshot::Sender<Arc<Survey>>>,
    adopts: bool,
}

impl NativeExecutor {
    /// Prepares this process and makes an executor; `wake` is notified whenever there are exits to take.
    ///
    /// The process becomes a child subreaper. Its soft limit of open files is raised to the hard one (at most 65,536) once it needs more.
    ///
    /// # Errors
    /// Outside a tokio runtime, or when SIGCHLD cannot be listened for or a thread not be started.
    pub fn new(wake: Arc<Notify>) -> Result<Self, NativeError> {
        let runtime = Handle::try_current()
            .map_err(|error| NativeError { what: "no runtime", source: std::io::Error::other(error) })?;
        let adopts = match rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "cannot adopt orphans: processes that leave their group are found by their environment only");
                false
            }
        };
        // Listening also undoes an inherited "ignore SIGCHLD", under which the kernel would throw exit codes away.
        let child_ended = tokio::signal::unix::signal(SignalKind::child())
            .map_err(|source| NativeError { what: "cannot listen for SIGCHLD", source })?;
        let (surveys, asked) = mpsc::channel();
        std::thread::Builder::new()
            .name("aios-survey".to_owned())
            .stack_size(256 * 1024)
            .spawn(move || survey_when_asked(&asked, adopts))
            .map_err(|source| NativeError { what: "cannot start a thread", source })?;
        let shared = Arc::new(Shared {
            runtime: runtime.clone(),
            ledger: Ledger::new(wake),
            starting: Starting::default(),
            waiting: Waiting::default(),
            pipes: Pipes::start().map_err(|source| NativeError { what: "cannot read what programs print", source })?,
            limiter: OnceLock::new(),
            descriptors: rustix::process::getrlimit(Resource::Nofile),
            newest: NewestPid::open(),
            surveys,
            adopts,
        });
        if adopts {
            runtime.spawn(reap_orphans(Arc::clone(&shared), child_ended));
        }
        let starter = Starter::new(&shared).map_err(|source| NativeError { what: "cannot start a thread", source })?;
        Ok(Self { shared, starter })
    }

    /// Has it hold the limits of attempts by this.
    #[must_use]
    pub fn with_limits(self, limiter: Limiter) -> Self {
        // A second call changes nothing.
        let _ = self.shared.limiter.set(limiter);
        self
    }
}

/// One survey answers everybody who asked before it began.
fn survey_when_asked(asked: &mpsc::Receiver<oneshot::Sender<Arc<Survey>>>, adopts: bool) {
    while let Ok(first) = asked.recv() {
        let askers: Vec<_> = std::iter::once(first).chain(asked.try_iter()).collect();
        let survey = Arc::new(Survey::take(adopts));
        for asker in askers {
            // Who no longer waits needs no answer.
            let _ = asker.send(Arc::clone(&survey));
        }
    }
}

/// Keeps adopted orphans from staying zombies. A signal only says that some child ended, mostly a main process that its
/// attendant reaps at once, so the look waits a moment for those, and longer when it was for nothing.
async fn reap_orphans(shared: Arc<Shared>, mut child_ended: tokio::signal::unix::Signal) {
    let mut pause = REAP_SOON;
    let mut look_at = None;
    loop {
        tokio::select! {
            heard = child_ended.recv() => {
                if heard.is_none() {
                    return;
                }
                look_at = look_at.or(Some(Instant::now() + pause));
            }
            () = until(look_at) => {
                look_at = None;
                if tree::any_zombie() {
                    pause = if shared.survey().await.reaped > 0 { REAP_SOON } else { (pause * 2).min(REAP_LATE) };
                    look_at = Some(Instant::now() + pause);
                } else {
                    pause = REAP_SOON;
                }
            }
        }
    }
}

impl Shared {
    /// A survey that begins after this call.
    async fn survey(&self) -> Arc<Survey> {
        let (answer, survey) = oneshot::channel();
        // Sending fails only with the thread gone; then it is taken here.
        let _ = self.surveys.send(answer);
        match survey.await {
            Ok(survey) => survey,
            Err(_) => Arc::new(Survey::take(self.adopts)),
        }
    }
}

/// An attempt that is to be started.
#[derive(Debug)]
struct Start {
    spec: Spec,
    /// Its log, until there is a pipe into it.
    log: Option<Log>,
    output: Option<(Pipe, PipeWriter)>,
}

impl Start {
    fn new(mut spec: Spec) -> Self {
        let (log, masker) = (spec.log.take(), spec.masker.take());
        let log = log.map(|log| Log::new(log, masker, &spec.lease));
        Self { spec, log, output: None }
    }

    /// It was not started.
    fn exit(self, error: String, stopped: Option<StopCause>) -> Exit {
        let log_truncated = self.output.is_some_and(|(pipe, _)| pipe.finish());
        Exit {
            lease: self.spec.lease,
            ending: Ending::NotStarted { error },
            oom_killed: false,
            stopped,
            started: false,
            finished: boot(),
            duration: Duration::ZERO,
            usage: None,
            log_truncated,
        }
    }
}

impl Shared {
    /// Starts an attempt.
    ///
    /// # Errors
    /// The reason, as a sentence; then it may be tried again.
    fn start(self: &Arc<Self>, start: &mut Start) -> Result<(), Unstarted> {
        self.open_output(start)?;
        let Start { spec, output, .. } = start;
        let out = output.as_ref().map(|(_, into)| into.as_fd());
        let file = out.and_then(|out| rustix::fs::fstat(out).ok()).map(|file| (file.st_dev, file.st_ino));
        let (mut command, program, launch) = launch::command(spec, out, self.limiter.get())?;
        let clock = Instant::now();
        let (child, known) = match tree::spawn(&mut command, spec.env.get(MARKER).map(String::as_str), file) {
            Ok(started) => started,
            Err(error) => {
                launch.iter().for_each(Launch::abandon);
                return Err(Unstarted::by(&error, program::explain(spec, &program, &error)));
            }
        };
        self.give_descriptors(&known);
        let attempt =
            Attempt { lease: spec.lease.clone(), known, launch, orders: Mutex::default(), changed: Notify::new() };
        let attempt = Arc::new(attempt);
        self.ledger.add(spec.lease.clone(), Arc::clone(&attempt));
        let pipe = output.take().map(|(pipe, _)| pipe);
        let plan = Plan { clock, timeout: spec.timeout, grace: spec.grace, pipe };
        self.runtime.spawn(attend(Arc::clone(self), attempt, child, plan));
        Ok(())
    }

    fn stop(&self, lease: &Lease, cause: StopCause, grace: Duration) {
        if let Some(start) = self.waiting.take(lease) {
            let error = "it was stopped before it was started".to_owned();
            self.ledger.deliver(start.exit(error, Some(cause)));
        }
        if let Some(attempt) = self.ledger.get(lease) {
            attempt.stop(cause, grace);
        }
    }

    fn open_output(&self, start: &mut Start) -> Result<(), Unstarted> {
        let name = || start.spec.argv.first().map_or("", String::as_str).to_owned();
        let expected = "a free descriptor (ulimit -n, fs.file-max)";
        if let Some(log) = start.log.take() {
            match self.pipes.open(log) {
                Ok(output) => start.output = Some(output),
                Err(failed) => {
                    let (log, error) = *failed;
                    start.log = Some(log);
                    Self::raise_descriptors();
                    return Err(Unstarted::by(
                        &error,
                        program::failed(&name(), &format!("its output: {error}"), expected),
                    ));
                }
            }
        }
        let newest = start.output.as_ref().map_or(0, |(_, into)| into.as_raw_fd());
        if Self::has_descriptors(u64::try_from(newest).unwrap_or(0)) {
            return Ok(());
        }
        let error = program::failed(&name(), "all descriptors but the device's own are in use", expected);
        Err(Unstarted { error, is_short: true })
    }

    /// Returns whether there are descriptors for another attempt, by the newest number that was given out: the system gives out the lowest that
    /// is free. The limit is raised when the half of it is in use.
    fn has_descriptors(newest: u64) -> bool {
        let most = || rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        if newest >= most() / 2 {
            Self::raise_descriptors();
        }
        newest.saturating_add(RESERVED.min(most() / 4)) < most()
    }

    /// Raises the limit of open files as far as it goes.
    fn raise_descriptors() {
        let limit = rustix::process::getrlimit(Resource::Nofile);
        let wanted = limit.maximum.unwrap_or(DESCRIPTORS).min(DESCRIPTORS);
        if limit.current.is_some_and(|current| current < wanted) {
            let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
            if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
                tracing::warn!(%error, wanted, "cannot raise the limit of open files");
            }
        }
    }

    /// Gives a program the limit of open files back that this process was started with, if that was raised since. So soon after its
    /// start hardly any program has looked at it.
    fn give_descriptors(&self, known: &Known) {
        if rustix::process::getrlimit(Resource::Nofile) != self.descriptors {
            // A program of another user's rights keeps what it has.
            let _ = rustix::process::prlimit(Some(known.main), Resource::Nofile, self.descriptors);
        }
    }
}

impl Executor for NativeExecutor {
    fn start(&mut self, spec: Spec) {
        if self.shared.ledger.expect(&spec.lease) {
            self.starter.start(&self.shared, Start::new(spec));
        }
    }

    fn short_of(&self) -> Option<String> {
        self.shared.short_of()
    }

    fn pids(&self) -> Vec<(RunId, u32, u32)> {
        let pid = |attempt: &Attempt| u32::try_from(attempt.known.main.as_raw_nonzero().get()).unwrap_or_default();
        self.shared.ledger.each(|lease, attempt| (lease.run.clone(), lease.attempt, pid(attempt)))
    }

    fn list(&self) -> Vec<Lease> {
        self.shared.ledger.leases()
    }

    fn stop(&mut self, lease: &Lease, cause: StopCause, grace: Duration) {
        if !self.shared.starting.stop(lease, cause, grace) {
            self.shared.stop(lease, cause, grace);
        }
    }

    fn take_exits(&mut self) -> Vec<Exit> {
        self.shared.ledger.take()
    }

    fn offers(&self) -> BTreeSet<Tag> {
        let cgroups = self.shared.limiter.get().and_then(|limiter| limiter.cgroups.as_ref());
        cgroups.and_then(|_| Tag::new(CGROUP_TAG).ok()).into_iter().collect()
    }
}

/// An attempt that has not ended yet, as its attendant and its owner share it.
#[derive(Debug)]
struct Attempt {
    lease: Lease,
    known: Arc<Known>,
    /// What it was started with, if it has limits.
    launch: Option<Launch>,
    orders: Mutex<Orders>,
    /// The orders have changed.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Orders {
    /// The first cause.
    stopped: Option<StopCause>,
    /// From when on everything is killed; also set while what a program left behind is being stopped.
    kill_at: Option<Instant>,
    /// The main process was reaped: its pid is no longer its own.
    is_reaped: bool,
}

impl Attempt {
    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn group(&self) -> Option<&Group> {
        self.launch.as_ref().and_then(|launch| launch.group.as_ref())
    }

    /// Sends SIGTERM to the process group at once; the rest of the tree, and what comes after, is the attendant's.
    fn stop(&self, cause: StopCause, grace: Duration) {
        let mut orders = self.orders();
        let is_first = orders.stopped.is_none();
        orders.kill_before(later(Instant::now(), grace));
        // One that has ended by itself, seen or not, was not stopped.
        if is_first && !orders.is_reaped && !tree::is_over(self.known.main) {
            orders.stopped = Some(cause);
            let _ = rustix::process::kill_process_group(self.known.main, Signal::TERM);
        }
        drop(orders);
        self.changed.notify_one();
    }

    /// Reads the main process's status. What else is in its group gets its first signal while the group's number is
    /// certainly its own, which ends with the reaping.
    fn reap(&self, child: &mut Child, grace: Duration) -> (Ending, Option<Usage>) {
        let mut orders = self.orders();
        orders.kill_before(later(Instant::now(), grace));
        let _ = rustix::process::kill_process_group(self.known.main, orders.signal_now());
        let reaped = tree::reap_main(&self.known, || {
            loop {
                match child.wait4() {
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    ended => return ended,
                }
            }
        });
        orders.is_reaped = true;
        match reaped {
            Ok(used) => {
                let ending = match (used.status.code(), used.status.signal()) {
                    (Some(code), _) => Ending::Code(code),
                    (None, signal) => Ending::Signal(signal.unwrap_or_default()),
                };
                (ending, Some(usage(&used.rusage)))
            }
            Err(error) => {
                let error = format!("its end could not be read, something else in this process did: {error}");
                (Ending::NotStarted { error }, None)
            }
        }
    }
}

impl Orders {
    fn kill_before(&mut self, at: Instant) {
        self.kill_at = Some(self.kill_at.map_or(at, |earlier| earlier.min(at)));
    }

    fn is_kill_due(&self) -> bool {
        self.kill_at.is_some_and(|at| at <= Instant::now())
    }

    fn signal_now(&self) -> Signal {
        if self.is_kill_due() { Signal::KILL } else { Signal::TERM }
    }
}

fn usage(used: &wait4::ResourceUsage) -> Usage {
    Usage {
        cpu_user_ms: used.utime.as_secs_f64() * 1e3,
        cpu_system_ms: used.stime.as_secs_f64() * 1e3,
        max_rss_bytes: used.maxrss,
    }
}

/// What an attendant goes by from the start on.
#[derive(Debug)]
struct Plan {
    clock: Instant,
    timeout: Option<Duration>,
    grace: Duration,
    /// The pipe that it prints into.
    pipe: Option<Pipe>,
}

/// Sees one attempt through to its [`Exit`].
async fn attend(shared: Arc<Shared>, attempt: Arc<Attempt>, mut child: Child, plan: Plan) {
    let mut hunt = Hunt::default();
    {
        let mut end = MainEnd::watch(attempt.known.main);
        let mut timeout_at = plan.timeout.map(|timeout| later(plan.clock, timeout));
        loop {
            let (kill_at, is_stopping) = {
                let orders = attempt.orders();
                (orders.kill_at, orders.stopped.is_some())
            };
            let due = if is_stopping { hunt.next.or(kill_at) } else { timeout_at };
            tokio::select! {
                biased;
                () = end.seen() => break,
                () = attempt.changed.notified() => hunt.next = None,
                () = until(due) => {}
            }
            if timeout_at.is_some_and(|at| at <= Instant::now()) {
                timeout_at = None;
                attempt.stop(StopCause::Timeout, plan.grace);
            }
            if attempt.orders().stopped.is_some() {
                hunt.press(&shared, &attempt).await;
            }
        }
    }
    let (duration, finished) = (plan.clock.elapsed(), boot());
    let (ending, usage) = attempt.reap(&mut child, plan.grace);
    let failure = attempt.launch.as_ref().and_then(Launch::failure);
    let newest = shared.newest.as_ref().filter(|_| plan.clock.elapsed() < PIDS_LAST);
    if hunt.was_pressed || !tree::is_gone(&attempt.known, newest, shared.adopts) {
        hunt.clear(&shared, &attempt).await;
    }
    let mut oom_killed = false;
    if let Some(group) = attempt.group() {
        oom_killed = group.was_killed_for_memory();
        group.close().await;
    }
    tree::forget(&attempt.known);
    let log_truncated = plan.pipe.is_some_and(Pipe::finish);
    let stopped = attempt.orders().stopped;
    let lease = attempt.lease.clone();
    let ended = Exit { lease, ending, oom_killed, stopped, started: true, finished, duration, usage, log_truncated };
    shared.ledger.deliver(match failure {
        None => ended,
        Some(Unstarted { error, is_short }) => {
            let stopped = is_short.then_some(StopCause::Short);
            Exit { ending: Ending::NotStarted { error }, stopped, started: false, usage: None, ..ended }
        }
    });
}

/// The processes of one attempt that are being ended.
#[derive(Debug, Default)]
struct Hunt {
    /// Everything that was seen to belong to it, by pid and start, and got its SIGTERM.
    seen: BTreeSet<(i32, u64)>,
    /// Of these, those that may not be signalled: they are not waited for.
    refused: BTreeSet<(i32, u64)>,
    /// When a process that should be dead is looked after again.
    next: Option<Instant>,
    was_pressed: bool,
}

impl Hunt {
    /// While the main process lives: sends the group and everything outside it what is due now.
    async fn press(&mut self, shared: &Shared, attempt: &Attempt) {
        self.was_pressed = true;
        let is_kill = {
            let orders = attempt.orders();
            let is_kill = orders.is_kill_due();
            if is_kill {
                // The main process is not reaped while its attendant is here, so the number is the group's.
                let _ = rustix::process::kill_process_group(attempt.known.main, Signal::KILL);
                attempt.group().into_iter().for_each(Group::kill);
            }
            is_kill
        };
        self.round(shared, attempt, is_kill).await;
        self.next = is_kill.then(|| Instant::now() + LOOK_AGAIN.1);
    }

    /// After the main process: ends what is left, and returns when nothing is.
    async fn clear(&mut self, shared: &Shared, attempt: &Attempt) {
        let mut pause = LOOK_AGAIN.0;
        let mut was_kill = false;
        // What was there once may have forked just behind the look: then it takes two empty ones.
        let mut is_sure = self.seen.is_empty();
        let mut blurred = 0;
        loop {
            let (is_kill, kill_at) = {
                let orders = attempt.orders();
                (orders.is_kill_due(), orders.kill_at)
            };
            let found = self.round(shared, attempt, is_kill).await;
            match found {
                Found::Nothing if is_sure => return,
                Found::Nothing => {
                    is_sure = true;
                    continue;
                }
                // A program that starts and drops processes without end is not to hold up the others.
                Found::Blurred if blurred == MOST_BLURRED => return,
                Found::Blurred => blurred += 1,
                Found::Old | Found::New => {
                    is_sure = false;
                    blurred = 0;
                }
            }
            // Who still forks, and who was just told to die, is looked at again soon.
            if found == Found::New || is_kill && !was_kill {
                pause = LOOK_AGAIN.0;
            }
            was_kill = is_kill;
            let next = Instant::now() + pause;
            let next = if is_kill { next } else { kill_at.map_or(next, |at| at.min(next)) };
            tokio::select! {
                () = attempt.changed.notified() => {}
                () = until(Some(next)) => {}
            }
            pause = (pause * 2).min(LOOK_AGAIN.1);
        }
    }

    /// Looks once and signals: SIGTERM to who did not get one yet, or SIGKILL to all.
    async fn round(&mut self, shared: &Shared, attempt: &Attempt, is_kill: bool) -> Found {
        let survey = shared.survey().await;
        let mut members = survey.of(&attempt.known, &self.seen);
        members.retain(|member| !self.refused.contains(&(member.pid, member.start)));
        // One that is gone when its signal comes may have left a successor, so it counts as found.
        let mut found = if survey.is_blurred { Found::Blurred } else { Found::Nothing };
        for member in &members {
            let is_new = self.seen.insert((member.pid, member.start));
            if is_new || is_kill {
                let signal = if is_kill { Signal::KILL } else { Signal::TERM };
                if tree::signal(member, signal) == Signalled::Refused {
                    tracing::warn!(lease = %attempt.lease, pid = member.pid, "may not signal a process of this run");
                    self.refused.insert((member.pid, member.start));
                    continue;
                }
            }
            found = if is_new || found == Found::New { Found::New } else { Found::Old };
        }
        if is_kill {
            tree::kill_groups(&attempt.known, &members);
        }
        found
    }
}

/// What one look for the processes of an attempt came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    /// Nothing for sure of it, but a process whose owner could not be read in time.
    Blurred,
    /// Only processes that were seen before.
    Old,
    New,
}

/// `after` from `at` on; a time too long to be counted is a century.
fn later(at: Instant, after: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    at.checked_add(after.min(CENTURY)).unwrap_or(at)
}
