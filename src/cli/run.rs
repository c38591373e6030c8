//! `orchestrator run`: this device.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::sync::watch;
use tracing_appender::non_blocking::NonBlockingBuilder;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::access::explain;
use super::http::Api;
use super::ready::{Outside, announce};
use super::{Code, Context, Failure};
use crate::client::{default_device, host_name};
use crate::coordinator::run::{Containers, Options, RunError, run as run_device};
use crate::coordinator::{BeginError, End, Host};
use crate::exec::docker::DEFAULT_HOST;
use crate::exec::{identity, surroundings};
use crate::model::config::{Config, KEPT_AT_LEAST};
use crate::model::container::{Allowed, Limits, is_plain_path};
use crate::model::device::Me;
use crate::model::ids::{DeviceId, Tag};
use crate::model::limits::{read_cpus, read_memory, read_pids, read_slots};
use crate::model::time::{DURATION_RULE, SIZE_RULE, parse_duration, parse_size, show_duration};
use crate::volume::logs::OwnLog;
use crate::volume::mounts::{Kind, mount_of};

/// Instead of an engine: this device runs no containers.
pub(super) const NO_ENGINE: &str = "none";
/// How many lines of its own log wait for the disk; more are dropped. The room for them is taken at the start.
const LOG_LINES: usize = 4_096;

/// Options of `run`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options for run")]
pub(super) struct RunArgs {
    /// Take the id over from a living device, which stops its attempts and exits 5.
    #[arg(long)]
    force: bool,
    /// This device's id, unique on the volume [default: the host's name].
    #[arg(long, env = "DEVICE_ID", value_name = "ID")]
    device_id: Option<DeviceId>,
    /// What this device has, comma-separated; its id is always among them.
    #[arg(long, env = "DEVICE_TAGS", value_name = "TAGS", value_delimiter = ',')]
    tags: Vec<String>,
    /// How much it runs at once [default: twice the CPUs, at least 4].
    #[arg(long, env = "DEVICE_SLOTS", value_name = "N", value_parser = read_slots)]
    slots: Option<u32>,
    /// The memory of a run whose job does not say [default: as much as there is].
    #[arg(long, env = "DEVICE_DEFAULT_MEMORY", value_name = "SIZE", value_parser = read_memory)]
    default_memory: Option<u64>,
    /// The same for processor time, as a number of CPUs.
    #[arg(long, env = "DEVICE_DEFAULT_CPUS", value_name = "N", value_parser = read_cpus)]
    default_cpus: Option<u32>,
    /// The same for processes and threads.
    #[arg(long, env = "DEVICE_DEFAULT_PIDS", value_name = "N", value_parser = read_pids)]
    default_pids: Option<u32>,
    /// How often it says that it lives.
    #[arg(long, default_value = "2s", value_parser = duration, value_name = "D")]
    heartbeat: Duration,
    /// How long a device may stand still before it counts as dead [default: 15s, on network file systems 60s].
    #[arg(long, value_parser = duration, value_name = "D")]
    lease: Option<Duration>,
    /// How often the folder is looked through in full.
    #[arg(long, default_value = "2s", value_parser = duration, value_name = "D")]
    scan: Duration,
    /// File events, or only the scan.
    #[arg(long, default_value = "auto", value_name = "HOW")]
    watch: WatchMode,
    /// How long a drain at SIGTERM waits for runs to end by themselves.
    #[arg(long, default_value = "5s", value_parser = duration, value_name = "D")]
    stop_grace: Duration,
    /// Whether what is written is synced, in the background, to survive a power cut.
    #[arg(long, default_value = "full", value_name = "HOW")]
    durability: Durability,
    /// How much it logs: error, warn, info, debug, trace.
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    log_level: String,
    /// The largest log of one attempt.
    #[arg(long, default_value = "64m", value_parser = size, value_name = "SIZE")]
    log_limit: u64,
    /// With less free space than this on Common's file system nothing new is claimed; 0 switches this guard off
    /// [default: 64m, or 5 % of the file system if that is less].
    #[arg(long, value_parser = size, value_name = "SIZE")]
    min_free: Option<u64>,
    /// How long results, logs and processed triggers are kept, by each file's own age; at least 10m.
    #[arg(long, default_value = "30d", value_parser = duration, value_name = "D")]
    keep: Duration,
    /// How many bytes of them are kept; the oldest go first [default: no limit].
    #[arg(long, value_parser = size, value_name = "SIZE")]
    keep_bytes: Option<u64>,
    /// Forgets a device this long after it has left or died, with what waits for it alone; at least twice the lease; 0: never.
    #[arg(long, default_value = "1d", value_parser = duration_or_never, value_name = "D")]
    forget_after: Duration,
    /// How often the volume is backed up into Common/Backups, by one device for all; at least 1s [default: never].
    #[arg(long, value_parser = duration, value_name = "D")]
    backup_every: Option<Duration>,
    /// How many of these backups stay.
    #[arg(long, default_value = "7", value_parser = super::backup::count, value_name = "N")]
    backup_keep: usize,
    /// The container engine, for jobs with a [docker] table: unix://PATH or tcp://HOST:PORT; `none` for none.
    #[arg(long, env = "DOCKER_HOST", default_value = DEFAULT_HOST, value_name = "URL")]
    pub(super) docker_host: String,
    /// What of the engine's host the containers of jobs may see, exactly these, comma-separated: absolute paths, and names of
    /// volumes.
    #[arg(long, env = "AIOS_ALLOWED_VOLUMES", default_value = "", value_name = "LIST", value_parser = Allowed::parse, hide_default_value = true)]
    allowed_volumes: Allowed,
    /// Where Common lies on the engine's host, if this device is in a container and cannot find out.
    #[arg(long, env = "AIOS_HOST_COMMON", value_name = "PATH", value_parser = host_path)]
    host_common: Option<PathBuf>,
    /// The same for Programs.
    #[arg(long, env = "AIOS_HOST_PROGRAMS", value_name = "PATH", value_parser = host_path)]
    host_programs: Option<PathBuf>,
    /// Where the HTTP API listens; `none`: nowhere [default: 127.0.0.1:8080, if nobody else does].
    #[arg(long, env = "AIOS_HTTP", value_name = "HOST:PORT")]
    pub(super) http: Option<String>,
    /// The certificate of the HTTP API and those that lead to it, PEM; read again when it changes.
    #[arg(long, env = "AIOS_TLS_CERT", value_name = "PATH", requires = "tls_key")]
    pub(super) tls_cert: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(long, env = "AIOS_TLS_KEY", value_name = "PATH", requires = "tls_cert")]
    pub(super) tls_key: Option<PathBuf>,
    /// Serve the HTTP API without TLS to other machines too: keys and answers can be read on the way.
    #[arg(long, env = "AIOS_INSECURE_HTTP", action = clap::ArgAction::SetTrue, value_parser = clap::builder::FalseyValueParser::new())]
    pub(super) insecure_http: bool,
    /// How many requests a second each key or address may make, twice as many at once; 0: no limit.
    #[arg(long, env = "AIOS_HTTP_RATE", default_value_t = 200, value_name = "N")]
    pub(super) http_rate: u32,
    /// From which pages of others a browser may use the HTTP API, comma-separated: https://HOST[:PORT].
    #[arg(long, env = "AIOS_HTTP_ORIGINS", value_name = "LIST", value_delimiter = ',')]
    pub(super) http_origins: Vec<String>,
    #[command(flatten)]
    outside: Outside,
    /// How often it is looked for what was kept long enough.
    #[arg(long, hide = true, default_value = "1h", value_parser = duration, value_name = "D")]
    keep_every: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum WatchMode {
    Auto,
    Poll,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Durability {
    Full,
    Fast,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| format!("expected {DURATION_RULE}"))
}

/// 0 stands for never.
fn duration_or_never(text: &str) -> Result<Duration, String> {
    if text == "0" || text == "never" { Ok(Duration::ZERO) } else { duration(text) }
}

/// Whether the engine's host is one that is spoken with. The variable belongs to other tools too, which know more ways.
fn is_spoken(host: &str) -> bool {
    ["unix:///", "tcp://", "http://"].iter().any(|scheme| host.starts_with(scheme))
}

fn host_path(text: &str) -> Result<PathBuf, String> {
    is_plain_path(text).then(|| PathBuf::from(text)).ok_or_else(|| "expected an absolute path".to_owned())
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| format!("expected {SIZE_RULE}"))
}

/// Runs this device until it is asked to leave.
pub(super) fn run(args: &RunArgs, context: &mut Context) -> Result<Code, Failure> {
    let failed = |error: std::io::Error| Failure::new(Code::Failed, error.to_string(), "see `ulimit -a`");
    surroundings::settle().map_err(failed)?;
    if let Some(ended) = surroundings::leave_terminal(std::env::args_os()).map_err(failed)? {
        return Ok(if ended == 0 { Code::Done } else { Code::Program(ended) });
    }
    let options = options(args, context)?;
    // The log's folder is in the volume; that the volume cannot be made is said by the device itself, or here.
    let made = context.client.disk.make_folders(&context.client.layout.logs());
    let _flush = start_log(args, context, &options.me.device)?;
    if options.containers.is_none() && args.docker_host != NO_ENGINE {
        tracing::warn!(
            host = args.docker_host,
            "no jobs in containers: this device speaks with engines at unix:///PATH, tcp://HOST:PORT and http://HOST:PORT"
        );
    }
    if let Err(error) = made {
        tracing::warn!(path = %context.client.layout.logs().display(), %error, "cannot make the log folder");
    }
    tracing::info!(
        device = %options.me.device, session = %options.me.session, slots = options.me.slots,
        common = %options.layout.common.display(), programs = %options.layout.programs.display(),
        version = env!("CARGO_PKG_VERSION"), user = rustix::process::geteuid().as_raw(), "device starts"
    );
    if identity::is_bare_root() {
        tracing::warn!(
            "this device and its native jobs are root without capabilities, because Common belongs to root, or AIOS_UID says so: a job may leave a setuid program there; better give the folder to a user (sudo chown -R 1000:1000 Common)"
        );
    }
    if identity::is_in_container() && mount_of(&options.layout.common).is_some_and(|mount| mount.kind == Kind::Overlay)
    {
        tracing::warn!(
            common = %options.layout.common.display(),
            "the shared folder is not mounted from outside: what it holds is lost with this container"
        );
    }
    let api = Api::new(args, context, &options)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Code::Failed, format!("cannot start the runtime: {error}"), "see `ulimit -a`"))?;
    let mut server = None;
    let (device, layout, quiet) = (options.me.device.clone(), options.layout.clone(), context.global.quiet);
    let begun = || {
        let (started, served) = api.and_then(Api::start).unzip();
        server = started;
        if !quiet {
            announce(device.as_str(), &layout, served, &args.outside);
        }
    };
    let end = runtime.block_on(run_device(options, begun)).map_err(|error| match error {
        RunError::Begin(BeginError::Volume(error)) => explain(error, &context.client.layout),
        RunError::Begin(begin) => begin.into(),
        RunError::System(..) | RunError::Executor(_) => {
            Failure::new(Code::Failed, error.to_string(), "see `ulimit -a`")
        }
    });
    if let Some(server) = server {
        server.stop();
    }
    match end? {
        End::Left => Ok(Code::Done),
        End::Replaced => Err(Failure::new(
            Code::InUse,
            "another session took this device's id over by force",
            "its attempts were stopped here; give one of the two another --device-id",
        )),
        End::NewerState(why) => Err(Failure::new(Code::Volume, why, "use the newer program on this machine too")),
    }
}

fn options(args: &RunArgs, context: &Context) -> Result<Options, Failure> {
    let usage = |error: String, hint: &str| Failure::new(Code::Usage, error, hint);
    let device = args.device_id.clone().unwrap_or_else(default_device);
    let mut tags: BTreeSet<Tag> = BTreeSet::new();
    for tag in args.tags.iter().map(|tag| tag.trim()).filter(|tag| !tag.is_empty()) {
        tags.insert(Tag::new(tag).map_err(|error| usage(error.to_string(), "--tags gpu,storage"))?);
    }
    tags.insert(Tag::new(device.as_str()).map_err(|error| usage(error.to_string(), ""))?);
    let lease = args.lease.unwrap_or_else(|| default_lease(context));
    if args.heartbeat.is_zero() || args.scan.is_zero() {
        return Err(usage("--heartbeat and --scan must be longer than 0".into(), "--heartbeat 2s --scan 2s"));
    }
    if args.keep_every.is_zero() {
        return Err(usage("--keep-every must be longer than 0".into(), "--keep-every 1h"));
    }
    if args.backup_every.is_some_and(|every| every < Duration::from_secs(1)) {
        return Err(usage("--backup-every must be at least 1s".into(), "--backup-every 1d"));
    }
    if args.keep < KEPT_AT_LEAST {
        let (keep, least) = (show_duration(args.keep), show_duration(KEPT_AT_LEAST));
        return Err(usage(format!("--keep {keep} is shorter than {least}"), "give at least 10m; 10000d is for ever"));
    }
    if lease < args.heartbeat * 3 {
        return Err(usage(
            format!(
                "a lease of {} is shorter than three heartbeats of {}",
                show_duration(lease),
                show_duration(args.heartbeat)
            ),
            "a device that is a little late would count as dead; give a longer --lease or a shorter --heartbeat",
        ));
    }
    let forget_after = Some(args.forget_after).filter(|after| !after.is_zero());
    if let Some(after) = forget_after.filter(|after| *after < lease * 2) {
        return Err(usage(
            format!("--forget-after {} is shorter than two leases of {}", show_duration(after), show_duration(lease)),
            "a device that restarts would not be known any more; give a longer one, or 0 for never",
        ));
    }
    let cpus = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let slots = args.slots.unwrap_or_else(|| u32::try_from(cpus * 2).unwrap_or(4).max(4));
    Ok(Options {
        layout: context.client.layout.clone(),
        config: Config {
            heartbeat: args.heartbeat,
            lease,
            scan: args.scan,
            stop_grace: args.stop_grace,
            poll: args.watch == WatchMode::Poll,
            remote: crate::volume::os::is_network(&context.client.layout.common),
            limits: Limits { memory: args.default_memory, cpu_millis: args.default_cpus, pids: args.default_pids },
            log_limit: args.log_limit,
            min_free: args.min_free,
            keep: args.keep,
            keep_bytes: args.keep_bytes,
            keep_every: args.keep_every,
            forget_after,
            backup_every: args.backup_every,
            backup_keep: args.backup_keep,
        },
        me: Me { device, session: context.client.session.clone(), tags, slots },
        force: args.force,
        sync: args.durability == Durability::Full,
        host: Host {
            name: host_name(),
            pid: std::process::id(),
            env: std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
            started_at: context.client.now().wall,
        },
        containers: is_spoken(&args.docker_host).then(|| Containers {
            host: args.docker_host.clone(),
            allowed: args.allowed_volumes.clone(),
            common: args.host_common.clone(),
            programs: args.host_programs.clone(),
        }),
        changed: watch::Sender::new(0),
    })
}

/// A file server may keep others waiting for longer than a local disk.
fn default_lease(context: &Context) -> Duration {
    let slow = crate::volume::os::is_network(&context.client.layout.common);
    Duration::from_secs(if slow { 60 } else { 15 })
}

/// The device's own log: JSON lines in `Common/Logs`, and people's words on standard error.
fn start_log(args: &RunArgs, context: &Context, device: &DeviceId) -> Result<impl Sized + use<>, Failure> {
    let level = match context.global.verbose {
        0 => args.log_level.as_str(),
        1 => "debug",
        _ => "trace",
    };
    let Some(level) = level.parse::<LevelFilter>().ok().filter(|_| !level.bytes().all(|byte| byte.is_ascii_digit()))
    else {
        let error = format!("--log-level {level:?} is not known: expected error, warn, info, debug or trace");
        return Err(Failure::new(Code::Usage, error, "--log-level debug"));
    };
    let filter = Targets::new().with_default(LevelFilter::WARN).with_target("aios", level);
    let file = OwnLog::new(context.client.layout.logs(), device.clone());
    let (file, guard) = NonBlockingBuilder::default().buffered_lines_limit(LOG_LINES).finish(file);
    let to_file = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(file);
    let quiet = context.global.quiet;
    // Through a queue and a thread of its own, as the file: a pipe that nobody reads, or a terminal that is stopped, holds up
    // that thread and not the device.
    let (people, people_guard) =
        NonBlockingBuilder::default().buffered_lines_limit(LOG_LINES).finish(std::io::stderr());
    let to_people = tracing_subscriber::fmt::layer()
        .with_target(false)
        .with_ansi(context.out.color && std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(people);
    tracing_subscriber::registry()
        .with(filter)
        .with(to_file)
        .with((!quiet).then_some(to_people))
        .try_init()
        .map_err(|error| Failure::new(Code::Failed, format!("cannot start the log: {error}"), ""))?;
    Ok((guard, people_guard))
}
