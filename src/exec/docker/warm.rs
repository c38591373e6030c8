//! Attempts in containers that are kept (`docker.keep_warm`): each is a process that the engine starts in one, so that an attempt
//! costs no container.
//!
//! A kept container has one attempt at a time, and its name says which: so it is found by whoever ends what a dead device left.
//! Its first process does nothing but reap, and ends once nothing has run there for long, should its device never come back.
//! All others belong to the attempt: they are signalled together, and killed together when its program ends. What did not end
//! with 0, or was stopped, or whose image has changed, is thrown away with its container.
//!
//! What it prints goes over a connection, so no other life of the device could take an attempt over: it ends with its device.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bollard::exec::CreateExecOptions;
use bollard::models::ContainerState;
use futures_util::{Stream, StreamExt};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::attempt::{Attempt, Ended, Look, Made, PAUSE, STOPPED_BEFORE, Signal, Vessel, told};
use super::create::{Inside, argv_of, env_of, idle_name, kept_body, name_of};
use super::engine::{Engine, Fault};
use super::start::{create, name_taken, prepare, pull, why_not_started};
use super::{Shared, lock};
use crate::exec::log::Log;
use crate::exec::{Ending, Spec};
use crate::model::container::Pull;

/// The first process: it sleeps, and reaps what comes to it. Each attempt's end kills its sleep; one that lasted to its end says
/// that nothing has run since, unless something runs now.
const KEEPER: &str = "while :; do sleep \"$1\" & wait $!; code=$?
if [ $code -eq 126 ] || [ $code -eq 127 ]; then exit 127; fi
if [ $code -eq 0 ]; then set -- \"$1\" /proc/[0-9]*; [ $# -gt 2 ] || exit 0; fi
done";
/// The process of an attempt: the program, and then an end for whatever it left. Signals spare the first process and who sends them.
/// What the shell says of signals is not the program's.
const RUNNER: &str =
    "trap : TERM; exec 3>&2 2>/dev/null; (exec 2>&3 3>&-; exec \"$@\"); code=$?; kill -KILL -1; exit $code";
/// Says how many processes the system has killed there because memory was used up, by either version of control groups.
const OOM_KILLS: &str = "for file in /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control; do
[ -r $file ] && while read key count; do [ $key = oom_kill ] && echo $count; done <$file
done";
/// How long that may take.
const OOM_LOOK: Duration = Duration::from_secs(5);
/// How often a process is looked at that has closed its output.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// What is wrong with an image whose containers cannot be kept.
const NOT_FOUND: &str = "keep_warm needs `sh` and `sleep` in the image";
/// The exit code of a first process that finds no `sleep`.
const NOT_FOUND_CODE: i64 = 127;

/// A container without an attempt, and what it was made for.
#[derive(Debug)]
pub(super) struct Idle {
    inside: Inside,
    image: String,
    container: String,
    until: Instant,
}

/// The containers of this device that wait for an attempt.
pub(super) type Pool = Mutex<Vec<Idle>>;

/// Starts an attempt in a container that is kept, or in a new one that will be.
pub(super) async fn make(
    shared: &Shared,
    attempt: &Attempt,
    spec: &Spec,
    inside: &Inside,
    idle: Duration,
) -> Result<Made, Ended> {
    let places = prepare(shared, attempt, spec, inside).await.map_err(Ended::unstarted)?;
    let image = &inside.container.image;
    let when = match inside.container.pull {
        Pull::Always => {
            pull(shared, attempt, spec, image).await.map_err(Ended::unstarted)?;
            Pull::Missing
        }
        when @ (Pull::Missing | Pull::Never) => when,
    };
    let name = name_of(&spec.lease);
    loop {
        let kept = take(shared, inside, &name).await.map_err(Ended::unstarted)?;
        let is_fresh = kept.is_none();
        let (container, image) = match kept {
            Some(kept) => kept,
            None => {
                let body = |_| kept_body(spec, inside, &shared.settings, &places, keeper(idle));
                let made = create(shared, attempt, spec, inside, when, &name, body).await;
                let made = made.map_err(Ended::unstarted)?;
                let Some(id) = made else { return Err(Ended::unstarted(name_taken(&name))) };
                let started = shared.engine.start(&id).await;
                started.map_err(|fault| Ended::unstarted(explain(why_not_started(shared, inside, &fault))))?;
                let image = shared.engine.inspect(&id).await.ok().and_then(|seen| seen.image).unwrap_or_default();
                (id, image)
            }
        };
        if attempt.is_stopped() {
            return Err(Ended::unstarted(STOPPED_BEFORE.to_owned()));
        }
        let clock = Instant::now();
        match shared.engine.exec(&container, process(spec, inside)).await {
            Ok((id, output)) => {
                let idle = Idle { inside: inside.clone(), image, container, until: clock };
                return Ok(Made::fresh(Vessel::Kept(Process::new(id, idle, clock, Box::pin(output)))));
            }
            // One that waited may have ended meanwhile, and nothing was started there.
            Err(Fault::NotNow(_) | Fault::NoContainer) if !is_fresh => throw_away(shared, &container).await,
            // It may have been started all the same: it ends with its container, before its end is told.
            Err(fault) => {
                let ended = why_no_process(shared, &container, &fault).await;
                end(shared, &container).await;
                return Err(ended);
            }
        }
    }
}

/// What the engine is told of an attempt's process.
fn process(spec: &Spec, inside: &Inside) -> CreateExecOptions<String> {
    let argv = ["sh", "-c", RUNNER, "sh"].map(str::to_owned).into_iter().chain(argv_of(spec, inside));
    CreateExecOptions {
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        env: Some(env_of(spec)),
        cmd: Some(argv.collect()),
        working_dir: Some(spec.dir.to_string_lossy().into_owned()),
        ..CreateExecOptions::default()
    }
}

/// Why an engine did not say that it has started an attempt's process.
async fn why_no_process(shared: &Shared, container: &str, fault: &Fault) -> Ended {
    let error = format!("the engine did not start a process in its kept container: {fault}; hint: {}", fault.hint());
    if fault.is_absence() {
        return Ended::unknown(error);
    }
    match shared.engine.inspect(container).await.ok().and_then(|seen| seen.state) {
        Some(state) if keeps_not(&state) => Ended::unstarted(format!("{NOT_FOUND}: {error}")),
        Some(_) | None => Ended::unstarted(error),
    }
}

/// Whether the first process of a container did not find what it needs.
fn keeps_not(state: &ContainerState) -> bool {
    state.running == Some(false) && state.exit_code == Some(NOT_FOUND_CODE)
}

/// The first process of a container that is kept for so long.
fn keeper(idle: Duration) -> Vec<String> {
    // Long after its device would have thrown it away.
    let alone = idle * 2 + Duration::from_secs(60);
    vec!["sh".to_owned(), "-c".to_owned(), KEEPER.to_owned(), "sh".to_owned(), alone.as_secs().to_string()]
}

fn explain(error: String) -> String {
    let is_missing =
        ["executable file not found", "no such file or directory"].iter().any(|words| error.contains(words));
    if is_missing { format!("{NOT_FOUND}: {error}") } else { error }
}

/// Takes a container that waits, and names it after the attempt; `None`: there is none that would do.
async fn take(shared: &Shared, inside: &Inside, name: &str) -> Result<Option<(String, String)>, String> {
    loop {
        let (found, outdated) = {
            let mut pool = lock(&shared.pool);
            let outdated: Vec<Idle> = pool.extract_if(.., |idle| idle.inside.is_outdated_by(inside)).collect();
            let at = pool.iter().rposition(|idle| idle.inside.is_like(inside) && idle.until > Instant::now());
            (at.map(|at| pool.swap_remove(at)), outdated)
        };
        for idle in outdated {
            discard(shared, idle).await;
        }
        let Some(Idle { image, container, until, .. }) = found else { return Ok(None) };
        // An image that was made anew has another id.
        let id = match shared.engine.image_id(&inside.container.image).await {
            Err(fault) if fault.is_absence() => {
                lock(&shared.pool).push(Idle { inside: inside.clone(), image, container, until });
                return Err(told(shared, &fault));
            }
            id => id,
        };
        if id.is_ok_and(|id| id == image) {
            match shared.engine.rename(&container, name).await {
                Ok(()) => return Ok(Some((container, image))),
                Err(Fault::NameTaken) => {
                    throw_away(shared, &container).await;
                    return Err(name_taken(name));
                }
                Err(fault) => tracing::debug!(container, %fault, "this kept container is gone"),
            }
        }
        throw_away(shared, &container).await;
    }
}

/// Throws a container away in which nothing runs.
async fn throw_away(shared: &Shared, container: &str) {
    if let Err(fault) = shared.engine.remove(container).await {
        tracing::warn!(container, %fault, "this kept container could not be removed; it ends by itself, later");
    }
}

/// Throws a container away that waits, or has it wait for another try.
async fn discard(shared: &Shared, idle: Idle) {
    if let Err(fault) = shared.engine.remove(&idle.container).await {
        tracing::debug!(container = idle.container, %fault, "this kept container could not be removed; it is tried again");
        lock(&shared.pool).push(Idle { until: Instant::now(), ..idle });
    }
}

/// Throws a container away in which something may go on: nobody hears of its end before that has ended. An engine that is away is
/// waited for.
async fn end(shared: &Shared, container: &str) {
    let mut said = false;
    while let Err(fault) = shared.engine.remove(container).await {
        let seen = shared.engine.inspect(container).await.ok().and_then(|seen| seen.state);
        if seen.is_some_and(|state| state.running == Some(false)) {
            // The survey has it removed.
            return;
        }
        if !std::mem::replace(&mut said, true) {
            tracing::warn!(container, %fault, "this kept container is to end and does not; its attempt has not ended before");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Throws away what nothing has run in for as long as its job says.
pub(super) async fn expire(shared: &Shared) {
    let now = Instant::now();
    let over: Vec<Idle> = lock(&shared.pool).extract_if(.., |idle| idle.until <= now).collect();
    for idle in over {
        discard(shared, idle).await;
    }
}

/// Throws away all that waits: its device leaves.
pub(super) async fn close(shared: &Arc<Shared>) {
    let all = std::mem::take(&mut *lock(&shared.pool));
    let mut removals = JoinSet::new();
    for idle in all {
        let shared = Arc::clone(shared);
        removals.spawn(async move { throw_away(&shared, &idle.container).await });
    }
    removals.join_all().await;
}

type Output = Pin<Box<dyn Stream<Item = Result<bytes::Bytes, Fault>> + Send>>;

/// The process of an attempt in a kept container.
pub(super) struct Process {
    id: String,
    idle: Idle,
    clock: Instant,
    output: Mutex<Option<(Output, watch::Sender<bool>)>>,
    /// Everything that it prints has been copied.
    is_copied: watch::Receiver<bool>,
    /// Its container was killed for its sake.
    was_killed: AtomicBool,
}

impl Process {
    fn new(id: String, idle: Idle, clock: Instant, output: Output) -> Self {
        let (copied, is_copied) = watch::channel(false);
        let output = Mutex::new(Some((output, copied)));
        Self { id, idle, clock, output, is_copied, was_killed: AtomicBool::new(false) }
    }

    /// The container it is in.
    pub(super) fn container(&self) -> &str {
        &self.idle.container
    }

    pub(super) fn copy(&self, log: Log) -> JoinHandle<bool> {
        let output = lock(&self.output).take();
        tokio::spawn(async move {
            let Some((output, copied)) = output else { return false };
            let is_cut = copy(output, log).await;
            // Who has gone needs not be told.
            let _ = copied.send(true);
            is_cut
        })
    }

    pub(super) async fn wait(&self, engine: &Engine) -> Result<(), Fault> {
        // Where its log is not kept nobody copies, and where somebody did, that is over.
        let _ = self.is_copied.clone().wait_for(|copied| *copied).await;
        let mut pause = LOOK_AGAIN;
        while engine.exec_end(&self.id).await?.is_none() {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE);
        }
        Ok(())
    }

    pub(super) async fn look(&self, engine: &Engine) -> Result<Look, Fault> {
        let gone =
            || Ended::unknown("its kept container was removed or ended by somebody else while it ran".to_owned());
        let code = match engine.exec_end(&self.id).await {
            Ok(None) => return Ok(Look::Runs),
            Ok(Some(code)) => code.and_then(|code| i32::try_from(code).ok()),
            Err(Fault::NoContainer) => return Ok(Look::Ended(gone())),
            Err(fault) => return Err(fault),
        };
        let Some(code) = code else {
            return Ok(Look::Ended(Ended::unknown("the engine does not say how its process ended".to_owned())));
        };
        let duration = Some(self.clock.elapsed());
        let mut ended = Ended { duration, ..Ended::of(Ending::Code(code)) };
        if code != 0 && !self.was_killed.load(Ordering::Relaxed) {
            let state = match engine.inspect(&self.idle.container).await {
                Err(Fault::NoContainer) => return Ok(Look::Ended(gone())),
                seen => seen?.state.unwrap_or_default(),
            };
            // An engine says so of a container that has ended, and this one may go on.
            ended.oom_killed = state.oom_killed == Some(true) || self.has_run_out_of_memory(engine).await;
            if keeps_not(&state) {
                return Ok(Look::Ended(Ended::unstarted(NOT_FOUND.to_owned())));
            }
            if state.running != Some(true) && !ended.oom_killed {
                ended = Ended { duration, ..gone() };
            }
        }
        Ok(Look::Ended(ended))
    }

    /// Whether something was killed for want of memory in its container, which is thrown away with the first attempt that fails: an
    /// earlier attempt's that ended well all the same would be taken for this one's.
    async fn has_run_out_of_memory(&self, engine: &Engine) -> bool {
        if self.idle.inside.limits.memory.is_none() {
            return false;
        }
        let cmd = Some(["sh", "-c", OOM_KILLS].map(str::to_owned).into());
        let attach_stdout = Some(true);
        let look = CreateExecOptions { cmd, attach_stdout, ..CreateExecOptions::default() };
        let Ok((_, output)) = engine.exec(&self.idle.container, look).await else { return false };
        let pieces = output.filter_map(async |piece| piece.ok()).collect::<Vec<_>>();
        let Ok(pieces) = tokio::time::timeout(OOM_LOOK, pieces).await else { return false };
        let text = String::from_utf8_lossy(&pieces.concat()).into_owned();
        text.lines().any(|count| count.trim().parse::<u64>().is_ok_and(|count| count > 0))
    }

    /// SIGTERM goes to all processes of the attempt; it is killed with its container.
    pub(super) async fn signal(&self, engine: &Engine, signal: Signal) -> Result<bool, Fault> {
        match engine.exec_end(&self.id).await {
            Ok(None) => {}
            Ok(Some(_)) | Err(Fault::NoContainer) => return Ok(false),
            Err(fault) => return Err(fault),
        }
        let container = &self.idle.container;
        if signal == Signal::Kill {
            self.was_killed.store(true, Ordering::Relaxed);
            return engine.signal(container, "SIGKILL").await;
        }
        let cmd = Some(["sh", "-c", "kill -TERM -1"].map(str::to_owned).into());
        let attach_stdout = Some(true);
        match engine.exec(container, CreateExecOptions { cmd, attach_stdout, ..CreateExecOptions::default() }).await {
            Ok(_) => Ok(true),
            Err(Fault::NotNow(_) | Fault::NoContainer) => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    /// Gives its container back for another attempt, or throws it away.
    pub(super) async fn put_back(self, shared: &Shared, is_clean: bool) {
        let Idle { inside, image, container, .. } = self.idle;
        if !is_clean {
            return end(shared, &container).await;
        }
        if shared.engine.rename(&container, &idle_name(&container)).await.is_err() {
            return throw_away(shared, &container).await;
        }
        let kept = inside.container.keep_warm.unwrap_or_default();
        let until = Instant::now() + kept;
        lock(&shared.pool).push(Idle { inside, image, container, until });
    }
}

/// Copies what a process prints into its log. Returns whether something of it is missing there.
async fn copy(mut output: Output, mut log: Log) -> bool {
    let mut was_cut_off = false;
    while let Some(piece) = output.next().await {
        match piece {
            Ok(piece) => log.write(&piece),
            Err(fault) => {
                tracing::warn!(%fault, "what a process in a kept container prints is cut off");
                log.write(b"\n[the connection to the engine was cut: what was printed from here on is lost]\n");
                was_cut_off = true;
                break;
            }
        }
    }
    log.finish() || was_cut_off
}
