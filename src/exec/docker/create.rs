//! What a container is made of: from a job's words to the engine's, purely.

use std::collections::HashMap;
use std::path::PathBuf;

use bollard::models::{
    ContainerCreateBody, DeviceRequest, HealthConfig, HostConfig, HostConfigLogConfig, Limit, Mount, MountTmpfsOptions,
    MountType, NetworkAttachmentConfig, RestartPolicy, RestartPolicyNameEnum, ServiceSpec, ServiceSpecMode,
    ServiceSpecModeReplicatedJob, TaskSpec, TaskSpecContainerSpec, TaskSpecContainerSpecPrivileges, TaskSpecLogDriver,
    TaskSpecPlacement, TaskSpecResources, TaskSpecRestartPolicy, TaskSpecRestartPolicyConditionEnum,
};

use super::Settings;
use super::places::Places;
use crate::exec::Spec;
use crate::model::container::{Container, Gpus, Limits, PIDS, Rule};
use crate::model::ids::RunId;
use crate::model::lease::Lease;
use crate::model::time::parse_size;

/// How output is kept until it was copied: the one driver that every engine can read back.
pub(super) const LOG_DRIVER: &str = "json-file";
/// The same where it keeps bytes that are no UTF-8, which the other replaces.
pub(super) const EXACT_LOG_DRIVER: &str = "local";
/// The processes of a kept container that are not the job's: its first one, that one's sleep, and the shells that start and stop an
/// attempt.
const KEEPERS_PIDS: i64 = 4;
/// What begins the name of each container and service.
const NAME: &str = "aios-";

/// The labels that name an attempt and its holder.
pub(super) mod label {
    /// The volume's id.
    pub(crate) const VOLUME: &str = "aios.volume";
    /// The run.
    pub(crate) const RUN: &str = "aios.run";
    /// The attempt.
    pub(crate) const ATTEMPT: &str = "aios.attempt";
    /// The device.
    pub(crate) const DEVICE: &str = "aios.device";
    /// The life of it that made the container.
    pub(crate) const SESSION: &str = "aios.session";
    /// How many bytes of the log are the orchestrator's own, before what the program printed.
    pub(crate) const LOG_FROM: &str = "aios.log_from";
    /// What the job was when it was started.
    pub(crate) const DEFINITION: &str = "aios.definition";
    /// It is kept for later attempts: which one it has now, its name says.
    pub(crate) const KEPT: &str = "aios.kept";
}

/// A container that a [`Spec`] is to run in.
#[derive(Debug, Clone)]
pub struct Inside {
    /// What the job says of it.
    pub container: std::sync::Arc<Container>,
    /// What it may use.
    pub limits: Limits,
    /// What it is given of the folders, at the same paths as this process has them.
    pub mounts: Vec<Given>,
    /// The job that it is for.
    pub job: String,
    /// What tells one definition of that from another.
    pub definition: String,
    /// An earlier life of this device has started it: it is taken over, and never made.
    pub goes_on: bool,
}

impl Inside {
    /// Whether a container that was made for this would do for another: it is of the same job, as that was then.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        !self.is_outdated_by(other) && self.job == other.job && self.mounts == other.mounts
    }

    /// Whether the job of this is another one by now.
    pub(super) fn is_outdated_by(&self, other: &Self) -> bool {
        let of = |inside: &Self| (inside.definition.clone(), inside.limits);
        self.job == other.job && (of(self) != of(other) || self.container != other.container)
    }
}

/// A path that a container is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The path, of this process and in the container.
    pub path: PathBuf,
    /// Whether it can be written.
    pub writable: bool,
}

/// The name of an attempt's container.
pub(super) fn name_of(lease: &Lease) -> String {
    format!("{NAME}{}-{}", lease.run, lease.attempt)
}

/// The name of a kept container that has no attempt.
pub(super) fn idle_name(container: &str) -> String {
    format!("{NAME}kept-{}", container.get(..12).unwrap_or(container))
}

/// Whose a container is, by its labels, or by its name if it is kept.
pub(super) fn lease_of(labels: &HashMap<String, String>, name: &str) -> Option<Lease> {
    let (run, attempt) = if labels.contains_key(label::KEPT) {
        name.trim_start_matches('/').strip_prefix(NAME)?.rsplit_once('-')?
    } else {
        (labels.get(label::RUN)?.as_str(), labels.get(label::ATTEMPT)?.as_str())
    };
    Some(Lease { run: RunId::parse(run)?, attempt: attempt.parse().ok()? })
}

/// The labels of an attempt's container, without those that a person gave it.
fn labels_of(spec: &Spec, inside: &Inside, settings: &Settings, log_from: u64) -> HashMap<String, String> {
    let lease = &spec.lease;
    let own = [
        (label::RUN, lease.run.to_string()),
        (label::ATTEMPT, lease.attempt.to_string()),
        (label::LOG_FROM, log_from.to_string()),
        (label::DEFINITION, inside.definition.clone()),
    ];
    labels_of_device(settings).chain(own).map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The labels of a container that is kept.
fn labels_of_kept(settings: &Settings) -> HashMap<String, String> {
    let own = [(label::KEPT, "true".to_owned())];
    labels_of_device(settings).chain(own).map(|(name, value)| (name.to_owned(), value)).collect()
}

fn labels_of_device(settings: &Settings) -> impl Iterator<Item = (&'static str, String)> {
    [
        (label::VOLUME, settings.volume.clone()),
        (label::DEVICE, settings.device.to_string()),
        (label::SESSION, settings.session.to_string()),
    ]
    .into_iter()
}

/// Holds what a job asks for against this device's policy.
///
/// # Errors
/// The rule it breaks, and what breaks it.
pub(super) fn check_policy(container: &Container, settings: &Settings, places: &Places) -> Result<(), String> {
    if places.has_network(&container.network) {
        let rule = Rule::NoDeviceNetworks.name();
        return Err(format!("the network {} is refused by the rule {rule}: this device is on it", container.network));
    }
    let socket = settings.host.strip_prefix("unix://");
    let on_host = socket.and_then(|socket| places.on_host(std::path::Path::new(socket)).ok());
    let sockets: Vec<&str> = socket.into_iter().chain(on_host.as_deref()).collect();
    for volume in &container.volumes {
        settings.allowed.check(volume, &sockets).map_err(|rule| {
            let what = match rule {
                Rule::AllowedVolumes => "AIOS_ALLOWED_VOLUMES of this device does not list it; hint: start the device with --allowed-volumes and this path or name",
                Rule::NoEngineSocket => "with the engine's socket it would be root on the host",
                Rule::NoPrivileges | Rule::NoHostNamespaces | Rule::NoDeviceNetworks => {
                    "it would be no container any more"
                }
            };
            format!("the volume {} is refused by the rule {}: {what}", volume.source, rule.name())
        })?;
    }
    Ok(())
}

/// What an attempt is started as: the program, and where it lives.
///
/// # Errors
/// In one sentence, which path cannot be given to it.
pub(super) fn body(
    spec: &Spec,
    inside: &Inside,
    settings: &Settings,
    places: &Places,
    log_driver: &str,
    log_from: u64,
) -> Result<ContainerCreateBody, String> {
    let (entrypoint, command) = program(spec, inside);
    let labels = with_labels(&inside.container, labels_of(spec, inside, settings, log_from));
    let body = home(spec, inside, places, labels)?;
    Ok(ContainerCreateBody {
        entrypoint: Some(entrypoint),
        cmd: Some(command),
        env: Some(env_of(spec)),
        // A first process of the engine's, so that the program gets its signals and orphans are reaped.
        host_config: body.host_config.map(|host| {
            let log_config = HostConfigLogConfig { typ: Some(log_driver.to_owned()), config: Some(log_options()) };
            HostConfig { init: Some(true), log_config: Some(log_config), ..host }
        }),
        ..body
    })
}

/// A container that is kept: its first process does nothing but reap.
///
/// # Errors
/// As [`body`].
pub(super) fn kept_body(
    spec: &Spec,
    inside: &Inside,
    settings: &Settings,
    places: &Places,
    keeper: Vec<String>,
) -> Result<ContainerCreateBody, String> {
    let labels = with_labels(&inside.container, labels_of_kept(settings));
    let body = home(spec, inside, places, labels)?;
    Ok(ContainerCreateBody {
        entrypoint: Some(keeper),
        cmd: Some(Vec::new()),
        // What is to end is ended by who signals everybody but the first process: that must be the keeper itself.
        host_config: body.host_config.map(|host| HostConfig {
            init: Some(false),
            pids_limit: host.pids_limit.map(|pids| pids + KEEPERS_PIDS),
            ..host
        }),
        ..body
    })
}

/// Entrypoint and command, as an engine calls the two.
fn program(spec: &Spec, inside: &Inside) -> (Vec<String>, Vec<String>) {
    match &inside.container.entrypoint {
        Some(entrypoint) => (entrypoint.clone(), spec.argv.clone()),
        // Set, so that the image's own does not count: the program is what the job says, as outside of a container.
        None => (spec.argv.iter().take(1).cloned().collect(), spec.argv.iter().skip(1).cloned().collect()),
    }
}

/// The program and all its arguments.
pub(super) fn argv_of(spec: &Spec, inside: &Inside) -> Vec<String> {
    let (mut argv, command) = program(spec, inside);
    argv.extend(command);
    argv
}

/// The environment, as an engine writes it.
pub(super) fn env_of(spec: &Spec) -> Vec<String> {
    spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn with_labels(container: &Container, own: HashMap<String, String>) -> HashMap<String, String> {
    let mut labels: HashMap<String, String> = container.labels.clone().into_iter().collect();
    labels.extend(own);
    labels
}

/// A container without its program.
fn home(
    spec: &Spec,
    inside: &Inside,
    places: &Places,
    labels: HashMap<String, String>,
) -> Result<ContainerCreateBody, String> {
    let container = &*inside.container;
    let mounts = mounts(inside, places)?;
    Ok(ContainerCreateBody {
        image: Some(container.image.clone()),
        working_dir: Some(spec.dir.to_string_lossy().into_owned()),
        user: container.user.clone(),
        labels: Some(labels),
        tty: Some(false),
        healthcheck: Some(no_health_check()),
        host_config: Some(HostConfig { mounts: Some(mounts), ..host(container, inside.limits) }),
        ..ContainerCreateBody::default()
    })
}

/// What of the host it sees.
fn mounts(inside: &Inside, places: &Places) -> Result<Vec<Mount>, String> {
    let given = inside.mounts.iter().map(|given| {
        let path = given.path.to_string_lossy().into_owned();
        Ok(bind(places.on_host(&given.path)?, path, !given.writable))
    });
    let asked = inside.container.volumes.iter().map(|volume| {
        let mount = bind(volume.source.clone(), volume.target.clone(), volume.read_only);
        Ok(if volume.is_path() { mount } else { Mount { typ: Some(MountType::VOLUME), ..mount } })
    });
    given.chain(asked).collect()
}

/// The attempt as a service of a swarm: a job of one task that is never tried again.
///
/// # Errors
/// As [`body`].
pub(super) fn service(
    spec: &Spec,
    inside: &Inside,
    settings: &Settings,
    places: &Places,
    log_driver: &str,
) -> Result<ServiceSpec, String> {
    let container = &*inside.container;
    let (command, args) = program(spec, inside);
    let labels = with_labels(container, labels_of(spec, inside, settings, 0));
    let in_memory = container.tmpfs.iter().map(|(path, options)| in_memory(path, options));
    let mounts = mounts(inside, places)?.into_iter().chain(in_memory).collect();
    let needs = container.node_tags.iter().map(|tag| format!("node.labels.aios.{tag}==true"));
    let task = TaskSpec {
        container_spec: Some(TaskSpecContainerSpec {
            image: Some(container.image.clone()),
            labels: Some(labels.clone()),
            command: Some(command),
            args: Some(args),
            env: Some(env_of(spec)),
            dir: Some(spec.dir.to_string_lossy().into_owned()),
            user: container.user.clone(),
            // Engines before API 1.46 do not know it for services; without capabilities little is left to gain.
            privileges: Some(TaskSpecContainerSpecPrivileges { no_new_privileges: Some(true), ..Default::default() }),
            tty: Some(false),
            read_only: Some(container.read_only),
            mounts: Some(mounts),
            stop_grace_period: i64::try_from(spec.grace.as_nanos()).ok(),
            init: Some(true),
            health_check: Some(no_health_check()),
            capability_drop: Some(vec!["ALL".to_owned()]),
            ..TaskSpecContainerSpec::default()
        }),
        resources: Some(TaskSpecResources { limits: Some(limits(inside.limits)), ..TaskSpecResources::default() }),
        restart_policy: Some(TaskSpecRestartPolicy {
            condition: Some(TaskSpecRestartPolicyConditionEnum::NONE),
            ..TaskSpecRestartPolicy::default()
        }),
        placement: Some(TaskSpecPlacement { constraints: Some(needs.collect()), ..TaskSpecPlacement::default() }),
        // What a service is on without being told is the engine's bridge.
        networks: (container.network != "bridge").then(|| {
            let target = Some(container.network.clone());
            vec![NetworkAttachmentConfig { target, ..NetworkAttachmentConfig::default() }]
        }),
        log_driver: Some(TaskSpecLogDriver { name: Some(log_driver.to_owned()), options: Some(log_options()) }),
        ..TaskSpec::default()
    };
    let once = ServiceSpecModeReplicatedJob { max_concurrent: Some(1), total_completions: Some(1) };
    Ok(ServiceSpec {
        name: Some(name_of(&spec.lease)),
        labels: Some(labels),
        task_template: Some(task),
        mode: Some(ServiceSpecMode { replicated_job: Some(once), ..ServiceSpecMode::default() }),
        ..ServiceSpec::default()
    })
}

/// A folder in memory; of its options a service knows size and mode.
fn in_memory(path: &str, options: &str) -> Mount {
    let option = |name: &str| options.split(',').find_map(|option| option.strip_prefix(name)?.strip_prefix('='));
    let size = option("size").and_then(parse_size).and_then(|bytes| i64::try_from(bytes).ok());
    let mode = option("mode").and_then(|mode| i64::from_str_radix(mode, 8).ok());
    let tmpfs_options = Some(MountTmpfsOptions { size_bytes: size, mode, ..MountTmpfsOptions::default() });
    Mount { typ: Some(MountType::TMPFS), target: Some(path.to_owned()), tmpfs_options, ..Mount::default() }
}

fn limits(limits: Limits) -> Limit {
    Limit {
        nano_cpus: nano_cpus(limits),
        memory_bytes: limits.memory.and_then(|bytes| i64::try_from(bytes).ok()),
        pids: Some(i64::from(limits.pids.unwrap_or(PIDS))),
    }
}

fn nano_cpus(limits: Limits) -> Option<i64> {
    limits.cpu_millis.map(|millis| i64::from(millis) * 1_000_000)
}

/// The image's own is for what the image is for, and no part of a job.
fn no_health_check() -> HealthConfig {
    HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() }
}

/// Logs as every engine can read them back, and as much of them as is kept.
fn log_options() -> HashMap<String, String> {
    [("max-size", "256m"), ("max-file", "2")].map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

fn bind(source: String, target: String, read_only: bool) -> Mount {
    let typ = Some(MountType::BIND);
    Mount { typ, source: Some(source), target: Some(target), read_only: Some(read_only), ..Mount::default() }
}

/// What holds for every container, and what its job says of it.
fn host(container: &Container, limits: Limits) -> HostConfig {
    let memory = limits.memory.and_then(|bytes| i64::try_from(bytes).ok());
    HostConfig {
        network_mode: Some(container.network.clone()),
        privileged: Some(false),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        readonly_rootfs: Some(container.read_only),
        tmpfs: Some(container.tmpfs.clone().into_iter().collect()),
        // Its end is read from it: whatever removed it by itself would take that along.
        auto_remove: Some(false),
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        pids_limit: Some(i64::from(limits.pids.unwrap_or(PIDS))),
        memory,
        // Without room to swap the limit is one.
        memory_swap: memory,
        nano_cpus: nano_cpus(limits),
        device_requests: gpus(&container.gpus).map(|request| vec![request]),
        log_config: Some(HostConfigLogConfig { typ: Some(LOG_DRIVER.to_owned()), config: Some(log_options()) }),
        ..HostConfig::default()
    }
}

fn gpus(gpus: &Gpus) -> Option<DeviceRequest> {
    let (count, device_ids) = match gpus {
        Gpus::None => return None,
        Gpus::All => (Some(-1), None),
        Gpus::Count(count) => (Some(i64::from(*count)), None),
        Gpus::Ids(ids) => (None, Some(ids.clone())),
    };
    let capabilities = Some(vec![vec!["gpu".to_owned()]]);
    Some(DeviceRequest { count, device_ids, capabilities, ..DeviceRequest::default() })
}
