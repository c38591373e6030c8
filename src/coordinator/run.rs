//! The shell around the loop: it gives [`Device::tick`] the time, events, signals and a reason to come back.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use chrono::Utc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use super::begin::{BeginError, Identity, claim_identity, in_use, open_volume};
use super::chores::Chores;
use super::pulse::Pulse;
use super::{Device, End, Host, LEAVE_GRACE, Parts, TRY_AGAIN, Tick};
use crate::exec::Executor;
use crate::exec::cgroup::Cgroups;
use crate::exec::docker::{Closer, DockerExecutor, Settings};
use crate::exec::fleet::Fleet;
use crate::exec::launch::Limiter;
use crate::exec::leftovers::kill_leftovers;
use crate::exec::machine::Meter;
use crate::exec::native::{NativeError, NativeExecutor};
use crate::model::config::Config;
use crate::model::container::Allowed;
use crate::model::device::{Beat, Me, Remembered};
use crate::model::ids::Session;
use crate::model::time::Moment;
use crate::notify::web::WebNotifier;
use crate::volume::Context as _;
use crate::volume::atomic::Temporary;
use crate::volume::disk::Disk;
use crate::volume::heartbeat;
use crate::volume::layout::Layout;
use crate::volume::os::{OsDisk, boot, inode_of, is_network, sync};
use crate::volume::watch::{Mailbox, Watch};
use crate::volume::work;

/// How often what was written is synced to the disk, if anything was: a power cut takes at most this and what a sync takes.
const SYNC: Duration = Duration::from_secs(2);
/// How long a start waits for a device lock that somebody only looks at.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// What a device is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folders.
    pub layout: Layout,
    /// Every limit and interval.
    pub config: Config,
    /// Who this is.
    pub me: Me,
    /// Take the id over from a living device.
    pub force: bool,
    /// Sync what is written (`--durability=full`).
    pub sync: bool,
    /// The machine.
    pub host: Host,
    /// Its container engine; `None`: it runs no containers.
    pub containers: Option<Containers>,
    /// Counts up whenever something on the volume may have changed, for whoever looks.
    pub changed: watch::Sender<u64>,
}

/// What is said of a device's container engine.
#[derive(Debug, Clone)]
pub struct Containers {
    /// Where it listens.
    pub host: String,
    /// What of its host jobs may ask for.
    pub allowed: Allowed,
    /// Where the shared folder lies on its host, if that was said by hand.
    pub common: Option<PathBuf>,
    /// Where the folder of jobs lies there, likewise.
    pub programs: Option<PathBuf>,
}

/// Why a device could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It could not begin.
    #[error(transparent)]
    Begin(#[from] BeginError),
    /// It cannot run programs.
    #[error("cannot prepare to run programs: {0}")]
    Executor(#[from] NativeError),
    /// The system did not give what every process has.
    #[error("cannot {0}: {1}")]
    System(&'static str, std::io::Error),
}

/// Both clocks of this moment.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is where wall time enters")]
pub fn clock() -> Moment {
    Moment { boot: boot(), wall: Utc::now() }
}

/// Runs a device until it is asked to leave. Once it is the device and has begun what waits for it, `begun` is called.
///
/// # Errors
/// [`RunError`].
pub async fn run(options: Options, begun: impl FnOnce()) -> Result<End, RunError> {
    let mut is_device = Some(begun);
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|error| RunError::System("listen for SIGTERM", error))?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|error| RunError::System("listen for SIGINT", error))?;
    let mut others = Others::listen().map_err(|error| RunError::System("listen for signals", error))?;
    let (wake, events) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let begun = tokio::select! {
        begun = begin(&options, &wake, &events) => begun?,
        _ = terminate.recv() => return Ok(End::Left),
        _ = interrupt.recv() => return Ok(End::Left),
    };
    let (mut device, mut watcher, mailbox, closer) = begun;
    let mut happened = device.happened();
    let mut syncer = Syncer::new(&options);
    let mut chores = Chores::new(&device, clock().boot);
    let mut first = true;
    loop {
        let mut dirty = mailbox.take();
        dirty.inbox |= std::mem::take(&mut first);
        let now = clock();
        device.note_turn();
        let is_dirty = dirty.is_any();
        let wake_at = match device.tick(now, dirty) {
            Tick::End(end) => {
                syncer.finish();
                if let Some(closer) = closer {
                    closer.close().await;
                    work::remove_kept_by(&OsDisk::new(), &options.layout, &options.me.session);
                }
                return Ok(end);
            }
            Tick::Wake(at) => at,
        };
        if let Some(is_device) = is_device.take() {
            is_device();
        }
        mailbox.rest(device.steps_back_for());
        if is_dirty || std::mem::replace(&mut happened, device.happened()) != device.happened() {
            options.changed.send_modify(|version| *version += 1);
        }
        if watcher.renew(now) {
            first = true;
            continue;
        }
        syncer.sync(device.happened(), now.boot);
        chores.look(&mut device, now);
        let wake_at = [syncer.due(), chores.due()].into_iter().flatten().fold(wake_at, Duration::min);
        let pause = wake_at.saturating_sub(clock().boot);
        tokio::select! {
            biased;
            _ = terminate.recv() => device.leave(clock()),
            _ = interrupt.recv() => device.leave(clock()),
            order = others.next() => match order {
                Order::Leave => device.leave(clock()),
                Order::LookAgain => {
                    tracing::info!("SIGHUP: everything is looked at again");
                    mailbox.all();
                }
                Order::Ignore => {}
            },
            () = wake.notified() => {}
            () = next_event(&events, device.gathers_events_for()) => {}
            () = pause_until(pause) => {}
        }
    }
}

/// Waits for a file event that comes so long after the last turn of the loop, or has come by then.
async fn next_event(events: &Notify, gathered_for: Duration) {
    // A pause of no time would last until the clock's next tick.
    if !gathered_for.is_zero() {
        pause_until(gathered_for).await;
    }
    events.notified().await;
}

/// What a signal beside SIGTERM and SIGINT asks for.
enum Order {
    /// SIGQUIT, and SIGHUP of a terminal that was closed: the same as SIGTERM.
    Leave,
    /// SIGHUP of a device that has no terminal, as service managers and log rotation send it.
    LookAgain,
    /// SIGUSR1, SIGUSR2 and SIGALRM mean nothing here. Unheard they would end the process.
    Ignore,
}

/// The signals whose default would end this process and lose its runs.
struct Others {
    hangup: Signal,
    quit: Signal,
    rest: [Signal; 3],
    has_terminal: bool,
}

impl Others {
    fn listen() -> std::io::Result<Self> {
        use std::io::IsTerminal;
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            rest: [
                signal(SignalKind::user_defined1())?,
                signal(SignalKind::user_defined2())?,
                signal(SignalKind::alarm())?,
            ],
            has_terminal: std::io::stdin().is_terminal() || std::io::stderr().is_terminal(),
        })
    }

    async fn next(&mut self) -> Order {
        let [first, second, third] = &mut self.rest;
        tokio::select! {
            _ = self.hangup.recv() => if self.has_terminal { Order::Leave } else { Order::LookAgain },
            _ = self.quit.recv() => Order::Leave,
            _ = first.recv() => Order::Ignore,
            _ = second.recv() => Order::Ignore,
            _ = third.recv() => Order::Ignore,
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "only a pause is measured with it")]
async fn pause_until(pause: Duration) {
    sleep_until(Instant::now() + pause).await;
}

/// Opens the volume, becomes the device, ends what an earlier life left running, starts to watch.
async fn begin(
    options: &Options,
    wake: &Arc<Notify>,
    events: &Arc<Notify>,
) -> Result<(Device, Watcher, Arc<Mailbox>, Option<Closer>), RunError> {
    let disk: Rc<dyn Disk> = Rc::new(OsDisk::new());
    let Options { layout, me, .. } = options;
    let volume = patiently(|| open_volume(&*disk, layout, &me.session).map_err(BeginError::from)).await?;
    let mut identity = patiently_locked(|| claim_identity(&*disk, layout, &me.device, options.force)).await?;
    if options.force {
        displace(&*disk, options, &mut identity).await?;
    } else if is_network(&layout.common) {
        stands_still(&*disk, options, identity.before.as_ref()).await?;
    }
    let has_left = has_left(&*disk, layout, identity.before.as_ref());
    let executor = NativeExecutor::new(Arc::clone(wake))?;
    let own = format!("{volume}/{}/", me.device);
    let leftovers = end_leftovers(own.clone(), me.session.clone());
    if !has_left {
        leftovers.await;
    } else {
        // This begins when the loop waits for the first time.
        tokio::spawn(leftovers);
    }
    let executor = Box::new(executor.with_limits(limiter(&own).await));
    // What is to be watched must be there: on a new volume commits would be heard of only at beats, until the next look.
    drop(disk.lock(&layout.lock()).on("lock", &layout.lock()).map_err(BeginError::from)?);
    let mailbox = Arc::new(Mailbox::default());
    let watcher = Watcher::new(options, &mailbox, events);
    let mut config = options.config.clone();
    config.poll |= watcher.watch.is_none();
    let remembered = identity.before.as_ref().map(Remembered::from).unwrap_or_default();
    let displaced = identity.before.map(|beat| beat.session);
    let (executor, closer) = with_containers(executor, options, &volume, wake, has_left).await?;
    let pulse = Pulse::start(layout.clone(), me.session.clone(), &options.config)
        .map_err(|error| RunError::System("start the thread for heartbeats", error))?;
    let parts = Parts {
        disk,
        layout: layout.clone(),
        executor,
        notifier: Box::new(WebNotifier::new(Arc::clone(wake))),
        config,
        host: options.host.clone(),
        pulse: Some(pulse),
        meter: Some(Meter::new()),
        identity: identity.guard,
        displaced,
    };
    Ok((Device::new(parts, me.clone(), volume, clock(), remembered), watcher, mailbox, closer))
}

/// How limits are held here. What an earlier life of this device left of its cgroups, whose markers begin with `own`, is removed.
async fn limiter(own: &str) -> Limiter {
    let cgroups = match Cgroups::open() {
        Ok(cgroups) => {
            let left = cgroups.clear(own).await;
            tracing::debug!(left, "limits are held by cgroups, {}", cgroups.show());
            Some(cgroups)
        }
        Err(why) => {
            tracing::info!(%why, "no cgroups: of limits outside containers only memory can be held");
            None
        }
    };
    Limiter::of_this_program(cgroups)
}

/// Returns whether no attempt of an earlier life of this device can go on: that life has said that it leaves, which it says when all of them have
/// ended, or there was none.
fn has_left(disk: &dyn Disk, layout: &Layout, before: Option<&Beat>) -> bool {
    match before {
        Some(before) => before.left,
        None => [layout.running(), layout.waiting()]
            .iter()
            .all(|folder| disk.list(folder).is_ok_and(|runs| runs.is_empty())),
    }
}

/// Ends the processes whose marker begins with `own` and that are not of this session.
async fn end_leftovers(own: String, session: Session) {
    let ended = kill_leftovers(&own, &format!("{own}{session}/"), LOCK_PATIENCE).await;
    if ended > 0 {
        tracing::warn!(processes = ended, "an earlier life of this device left processes running: they are ended");
    }
}

/// Returns the executor of processes, and of containers where there is to be an engine. `has_left`: nothing can be taken over.
async fn with_containers(
    processes: Box<NativeExecutor>,
    options: &Options,
    volume: &str,
    wake: &Arc<Notify>,
    has_left: bool,
) -> Result<(Box<dyn Executor>, Option<Closer>), RunError> {
    let Some(containers) = &options.containers else { return Ok((processes, None)) };
    let settings = Settings {
        host: containers.host.clone(),
        volume: volume.to_owned(),
        device: options.me.device.clone(),
        session: options.me.session.clone(),
        common: options.layout.common.clone(),
        programs: options.layout.programs.clone(),
        host_common: containers.common.clone(),
        host_programs: containers.programs.clone(),
        allowed: containers.allowed.clone(),
    };
    let executor = DockerExecutor::new(settings, Arc::clone(wake))
        .map_err(|error| RunError::System("start the thread for containers", error))?;
    let looked = executor.look_back();
    if !has_left {
        looked.await;
    }
    let closer = executor.closer();
    Ok((Box::new(Fleet::new(processes, Box::new(executor))), Some(closer)))
}

/// Takes an id over from a device that may live: shows it another life under its id, and waits until it has stopped its attempts
/// and let go of its lock. One that hangs for a whole lease is dead.
async fn displace(disk: &dyn Disk, options: &Options, identity: &mut Identity) -> Result<(), RunError> {
    let Options { layout, me, config, .. } = options;
    // A lock that does not reach across hosts says nothing: then as long as the other may take to see this life and to stop.
    let may_live = identity.before.as_ref().is_some_and(|before| !before.left) && is_network(&layout.common);
    let at_least = if may_live { config.heartbeat * 3 + LEAVE_GRACE } else { Duration::ZERO };
    let mut names = Temporary::new(me.session.clone());
    let mut before = identity.before.as_ref().map(Remembered::from).unwrap_or_default();
    let begun = clock().boot;
    while identity.guard.is_none() || clock().boot.saturating_sub(begun) < at_least {
        if clock().boot.saturating_sub(begun) >= at_least.max(config.lease) {
            tracing::warn!("who had this id does not let go of it: it is taken for dead");
            break;
        }
        before.beat += 1;
        let beat = announcement(options, before);
        heartbeat::write(disk, layout, &mut names, &beat).map_err(BeginError::from)?;
        // Sooner than whoever would start the other again.
        for _ in 0..10 {
            pause_until(LOCK_PATIENCE / 50).await;
            if identity.guard.is_none() {
                identity.guard = heartbeat::lock(disk, layout, &me.device).map_err(BeginError::from)?;
            }
        }
    }
    identity.before = identity.before.take().map(|beat| Beat { beat: before.beat, ..beat });
    Ok(())
}

/// The heartbeat of a life that does nothing yet.
fn announcement(options: &Options, before: Remembered) -> Beat {
    let Options { me, host, .. } = options;
    let Remembered { beat, drained, set } = before;
    Beat {
        schema: 1,
        device: me.device.clone(),
        session: me.session.clone(),
        beat,
        pulse: 0,
        at: clock().wall,
        revision: 0,
        host: host.name.clone(),
        pid: host.pid,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: host.started_at,
        tags: me.tags.clone(),
        slots: set.slots.unwrap_or(me.slots),
        busy: 0,
        load: 0.0,
        drained,
        limits: set.limits(options.config.limits),
        set,
        holds: Vec::new(),
        pids: Vec::new(),
        machine: None,
        left: false,
        lease_ms: u64::try_from(options.config.lease.as_millis()).unwrap_or(u64::MAX),
        unknown: Vec::new(),
        low_on: None,
        problems: Vec::new(),
    }
}

/// Where a lock may not reach across hosts, a beat that moves is a living device.
async fn stands_still(disk: &dyn Disk, options: &Options, before: Option<&Beat>) -> Result<(), RunError> {
    let Some(before) = before.filter(|beat| !beat.left) else { return Ok(()) };
    tracing::info!(
        host = before.host,
        "this is a network file system: looking whether another device beats under this id"
    );
    // Three beats of a living device, and some.
    for _ in 0..7 {
        pause_until(options.config.heartbeat / 2).await;
        let now = heartbeat::read(disk, &options.layout, &options.me.device).map_err(BeginError::from)?;
        if let Some(now) = now.filter(|now| (&now.session, now.beat) != (&before.session, before.beat)) {
            return Err(in_use(&options.me.device, Some(&now)).into());
        }
    }
    Ok(())
}

/// On a full disk a device waits; whatever else is wrong ends it.
async fn patiently<T>(mut act: impl FnMut() -> Result<T, BeginError>) -> Result<T, RunError> {
    let mut said = false;
    loop {
        match act() {
            Err(BeginError::Volume(error)) if error.is_full() => {
                if !std::mem::replace(&mut said, true) {
                    tracing::error!(hint = error.hint(), "{error}; waiting until there is room");
                }
                pause_until(TRY_AGAIN).await;
            }
            other => return Ok(other?),
        }
    }
}

/// Whoever lists devices holds their locks for a moment.
async fn patiently_locked<T>(mut act: impl FnMut() -> Result<T, BeginError>) -> Result<T, RunError> {
    let step = LOCK_PATIENCE / 10;
    for _ in 0..9 {
        match act() {
            Err(BeginError::InUse { .. }) => pause_until(step).await,
            Err(BeginError::Volume(error)) if error.is_full() => break,
            other => return Ok(other?),
        }
    }
    patiently(act).await
}

/// File events, as far as there are any.
struct Watcher {
    watch: Option<Watch>,
    due: Duration,
    every: Duration,
    problem: bool,
}

impl Watcher {
    fn new(options: &Options, mailbox: &Arc<Mailbox>, events: &Arc<Notify>) -> Self {
        let watch = if options.config.poll {
            None
        } else {
            Watch::start(&options.layout, Arc::clone(mailbox), Arc::clone(events))
                .inspect_err(|problem| {
                    tracing::warn!("no file events ({problem}): the folder is scanned every {:?}", options.config.scan)
                })
                .ok()
        };
        let mut watcher = Self { watch, due: Duration::ZERO, every: options.config.scan, problem: false };
        watcher.renew(clock());
        watcher
    }

    /// Watches what was made again. `true`: what happened before that has to be looked for.
    fn renew(&mut self, now: Moment) -> bool {
        let Some(watch) = self.watch.as_mut().filter(|_| now.boot >= self.due) else { return false };
        self.due = now.boot + self.every;
        match watch.renew(inode_of) {
            Ok(renewed) => {
                self.problem = false;
                renewed
            }
            Err(problem) => {
                if !std::mem::replace(&mut self.problem, true) {
                    tracing::warn!(
                        "not all folders give file events ({problem}); the scan finds what they do not tell"
                    );
                }
                false
            }
        }
    }
}

/// Syncs the volume in the background, off the path of every job.
struct Syncer {
    enabled: bool,
    common: Arc<Path>,
    /// What had happened on the volume when it was synced last.
    synced: Arc<AtomicU64>,
    dirty_since: Option<Duration>,
    busy: Arc<AtomicBool>,
}

impl Syncer {
    fn new(options: &Options) -> Self {
        Self {
            enabled: options.sync,
            common: Arc::from(options.layout.common.as_path()),
            synced: Arc::default(),
            dirty_since: None,
            busy: Arc::default(),
        }
    }

    fn sync(&mut self, happened: u64, now: Duration) {
        if !self.enabled || happened == self.synced.load(Ordering::Acquire) {
            return;
        }
        let since = *self.dirty_since.get_or_insert(now);
        if now.saturating_sub(since) < SYNC || self.busy.swap(true, Ordering::AcqRel) {
            return;
        }
        self.dirty_since = None;
        let (common, busy, synced) = (Arc::clone(&self.common), Arc::clone(&self.busy), Arc::clone(&self.synced));
        let failed = Arc::clone(&self.busy);
        let work = move || {
            match sync(&common) {
                Ok(()) => synced.store(happened, Ordering::Release),
                Err(error) => {
                    tracing::warn!(%error, "the volume is not synced: a power cut may take the last seconds");
                }
            }
            busy.store(false, Ordering::Release);
        };
        // Without a free thread it is tried again at the next turn of the loop.
        if let Err(error) = std::thread::Builder::new().name("aios-sync".to_owned()).spawn(work) {
            tracing::warn!(%error, "the volume is not synced for want of a thread: a power cut may take the last seconds");
            failed.store(false, Ordering::Release);
            self.dirty_since = Some(now);
        }
    }

    /// When there is something to sync next.
    fn due(&self) -> Option<Duration> {
        self.dirty_since.filter(|_| !self.busy.load(Ordering::Acquire)).map(|since| since + SYNC)
    }

    fn finish(&self) {
        if self.enabled
            && let Err(error) = sync(&self.common)
        {
            tracing::warn!(%error, "the volume is not synced: a power cut may take the last seconds");
        }
    }
}
