//! What a container is made of: from a job's words to the engine's, purely.

use std::collections::HashMap;
use std::path::PathBuf;

use bollard::models::{
    ContainerCreateBody, DeviceRequest, HostConfig, HostConfigLogConfig, Mount, MountType, RestartPolicy,
    RestartPolicyNameEnum,
};

use super::Settings;
use super::places::Places;
use crate::exec::Spec;
use crate::model::container::{Container, Gpus, Limits, PIDS, Rule};
use crate::model::lease::Lease;

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
    /// An earlier life of this device has started it: it is taken over, and never made.
    pub goes_on: bool,
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
    format!("aios-{}-{}", lease.run, lease.attempt)
}

/// The labels of an attempt's container, without those that a person gave it.
pub(super) fn labels_of(lease: &Lease, settings: &Settings, log_from: u64) -> HashMap<String, String> {
    [
        (label::VOLUME, settings.volume.clone()),
        (label::RUN, lease.run.to_string()),
        (label::ATTEMPT, lease.attempt.to_string()),
        (label::DEVICE, settings.device.to_string()),
        (label::SESSION, settings.session.to_string()),
        (label::LOG_FROM, log_from.to_string()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
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
                Rule::AllowedVolumes => "AIOS_ALLOWED_VOLUMES of this device does not list it",
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

/// Everything that the engine is told of a container.
///
/// # Errors
/// In one sentence, which path cannot be given to it.
pub(super) fn body(
    spec: &Spec,
    inside: &Inside,
    settings: &Settings,
    places: &Places,
    log_from: u64,
) -> Result<ContainerCreateBody, String> {
    let container = &*inside.container;
    let given = inside.mounts.iter().map(|given| {
        let path = given.path.to_string_lossy().into_owned();
        Ok(bind(places.on_host(&given.path)?, path, !given.writable))
    });
    let asked = container.volumes.iter().map(|volume| {
        let mount = bind(volume.source.clone(), volume.target.clone(), volume.read_only);
        Ok(if volume.is_path() { mount } else { Mount { typ: Some(MountType::VOLUME), ..mount } })
    });
    let mounts = given.chain(asked).collect::<Result<Vec<Mount>, String>>()?;
    let (entrypoint, command) = match &container.entrypoint {
        Some(entrypoint) => (entrypoint.clone(), spec.argv.clone()),
        // Set, so that the image's own does not count: the program is what the job says, as outside of a container.
        None => (spec.argv.iter().take(1).cloned().collect(), spec.argv.iter().skip(1).cloned().collect()),
    };
    let mut labels: HashMap<String, String> = container.labels.clone().into_iter().collect();
    labels.extend(labels_of(&spec.lease, settings, log_from));
    Ok(ContainerCreateBody {
        image: Some(container.image.clone()),
        entrypoint: Some(entrypoint),
        cmd: Some(command),
        env: Some(spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        working_dir: Some(spec.dir.to_string_lossy().into_owned()),
        user: container.user.clone(),
        labels: Some(labels),
        tty: Some(false),
        host_config: Some(HostConfig { mounts: Some(mounts), ..host(container, inside.limits) }),
        ..ContainerCreateBody::default()
    })
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
        // A first process of the engine's, so that the program gets its signals and orphans are reaped.
        init: Some(true),
        // Its end is read from it: whatever removed it by itself would take that along.
        auto_remove: Some(false),
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        pids_limit: Some(i64::from(limits.pids.unwrap_or(PIDS))),
        memory,
        // Without room to swap the limit is one.
        memory_swap: memory,
        nano_cpus: limits.cpu_millis.map(|millis| i64::from(millis) * 1_000_000),
        device_requests: gpus(&container.gpus).map(|request| vec![request]),
        // The one driver that every engine can read back.
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(HashMap::from([
                ("max-size".to_owned(), "256m".to_owned()),
                ("max-file".to_owned(), "2".to_owned()),
            ])),
        }),
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
