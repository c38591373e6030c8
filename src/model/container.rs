//! What a job asks of a container: the `[docker]` table and the limits, and the rules that no job may break.
//!
//! A container of a job has no privileges, shares no namespace with its host and sees no path of it but what is listed.
//! Whoever can write a trigger or a job file could else be root on every machine.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ids::Tag;
use super::limits::cpus;
use super::message::quoted;

/// How many processes a container may have unless its job says otherwise.
pub const PIDS: u32 = 512;
/// What a device has while it reaches a container engine: the tag that jobs with a `[docker]` table need.
pub const DOCKER_TAG: &str = "docker";
/// What a device has while the engine that it reaches manages a swarm: the tag that jobs with `engine = "swarm"` need.
pub const SWARM_TAG: &str = "swarm";
/// What begins the labels that are the orchestrator's own.
pub const OWN_LABEL: &str = "aios.";
/// What begins the labels that are not a job's to give: these are the engines'.
pub const RESERVED_LABELS: [&str; 3] = [OWN_LABEL, "com.docker.", "io.podman."];

/// The `[docker]` table of a job, or of a trigger with a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// The image, as the engine knows it.
    pub image: String,
    /// When the image is fetched.
    pub pull: Pull,
    /// The network: `none`, `bridge` or the name of one.
    pub network: String,
    /// What it sees beside what each run is given.
    pub volumes: Vec<Volume>,
    /// Who its processes are: `USER[:GROUP]`; `None`: who the image says.
    pub user: Option<String>,
    /// The GPUs it is given.
    pub gpus: Gpus,
    /// What the command is handed to; `None`: it runs by itself, whatever the image says.
    pub entrypoint: Option<Vec<String>>,
    /// Labels for people and tools.
    pub labels: BTreeMap<String, String>,
    /// Folders in memory, each with its mount options.
    pub tmpfs: BTreeMap<String, String>,
    /// Whether the image's own files cannot be written.
    pub read_only: bool,
    /// Whether it sees all of `Common/`, to be written, instead of what its run needs.
    pub share_common: bool,
    /// For how long it is kept after an attempt, so that the next one runs in it; `None`: each attempt has one of its own.
    pub keep_warm: Option<Duration>,
    /// What runs it.
    pub engine: Engine,
    /// What the nodes of a swarm must have: the job's tags.
    pub node_tags: BTreeSet<Tag>,
}

impl Container {
    /// With nothing but an image.
    #[must_use]
    pub fn of(image: String) -> Self {
        Self {
            image,
            pull: Pull::Missing,
            network: "none".to_owned(),
            volumes: Vec::new(),
            user: None,
            gpus: Gpus::None,
            entrypoint: None,
            labels: BTreeMap::new(),
            tmpfs: BTreeMap::from([("/tmp".to_owned(), String::new())]),
            read_only: true,
            share_common: false,
            keep_warm: None,
            engine: Engine::Local,
            node_tags: BTreeSet::new(),
        }
    }

    /// What runs it, if it goes on when its device dies.
    #[must_use]
    pub fn outlives_its_device(&self) -> Option<&'static str> {
        self.keep_warm.is_none().then(|| self.engine.executor())
    }

    /// The tag that a device has while it can run this.
    #[must_use]
    pub fn tag(&self) -> &'static str {
        match self.engine {
            Engine::Local => DOCKER_TAG,
            Engine::Swarm => SWARM_TAG,
        }
    }
}

/// What runs a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// The engine of the device's own machine.
    Local,
    /// The swarm that this engine manages: some node of it.
    Swarm,
}

impl Engine {
    /// What runs it, as results say it.
    #[must_use]
    pub fn executor(self) -> &'static str {
        match self {
            Self::Local => "docker",
            Self::Swarm => "swarm",
        }
    }
}

/// When an image is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pull {
    /// If the engine does not have it.
    Missing,
    /// Before each attempt.
    Always,
    /// Never.
    Never,
}

/// Which GPUs a container is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gpus {
    /// None.
    None,
    /// All.
    All,
    /// So many.
    Count(u32),
    /// These, by their ids.
    Ids(Vec<String>),
}

/// Something of the host, or a named volume of the engine, in a container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Volume {
    /// An absolute path of the host, or the name of a volume.
    pub source: String,
    /// Where it appears.
    pub target: String,
    /// Whether it cannot be written.
    pub read_only: bool,
}

impl Volume {
    /// Reads `SOURCE:TARGET[:ro|rw]`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        const RULE: &str = "SOURCE:TARGET[:ro], with an absolute path or the name of a volume, and an absolute path";
        let bad = |why: &str| format!("found {}, {why}, expected {RULE}", quoted(text));
        let mut parts = text.split(':');
        let (Some(source), Some(target), mode, None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(bad("which has not two or three parts"));
        };
        let read_only = match mode {
            None | Some("rw") => false,
            Some("ro") => true,
            Some(_) => return Err(bad("whose third part is neither ro nor rw")),
        };
        if !(is_plain_path(source) || is_name(source)) {
            return Err(bad("whose first part is neither"));
        }
        if !is_plain_path(target) || target == "/" {
            return Err(bad("whose second part is no absolute path below /"));
        }
        Ok(Self { source: source.to_owned(), target: target.to_owned(), read_only })
    }

    /// Whether it is a path of the host.
    #[must_use]
    pub fn is_path(&self) -> bool {
        self.source.starts_with('/')
    }
}

/// Limits of a run, in a container or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Memory, bytes.
    #[serde(default)]
    pub memory: Option<u64>,
    /// Processor time, in thousandths of one CPU.
    #[serde(default, rename = "cpus", with = "cpus")]
    pub cpu_millis: Option<u32>,
    /// Processes and threads.
    #[serde(default)]
    pub pids: Option<u32>,
}

/// An absolute path without `.` and `..`, empty parts and control characters: what it says is where it leads.
#[must_use]
pub fn is_plain_path(path: &str) -> bool {
    let is_part = |part: &str| !matches!(part, "" | "." | "..") && !part.chars().any(char::is_control);
    path == "/" || path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(is_part))
}

/// A name as engines have them for volumes and networks.
#[must_use]
pub fn is_name(name: &str) -> bool {
    name.len() <= 255
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// A rule that a request for a container broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// No container of a job is privileged, or gets capabilities or devices.
    NoPrivileges,
    /// No container of a job shares a namespace of its host, or another container's.
    NoHostNamespaces,
    /// No container of a job is on a network of the devices: what listens there trusts who is on it.
    NoDeviceNetworks,
    /// No container of a job sees the engine's socket: it would be root on the host.
    NoEngineSocket,
    /// Of the host it sees what `AIOS_ALLOWED_VOLUMES` lists.
    AllowedVolumes,
}

impl Rule {
    /// Its name in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NoPrivileges => "no-privileges",
            Self::NoHostNamespaces => "no-host-namespaces",
            Self::NoDeviceNetworks => "no-device-networks",
            Self::NoEngineSocket => "no-engine-socket",
            Self::AllowedVolumes => "allowed-volumes",
        }
    }

    /// The rule against a key that other tools have and this one will not.
    #[must_use]
    pub fn against(key: &str) -> Option<Self> {
        match key {
            "privileged"
            | "cap_add"
            | "capabilities"
            | "devices"
            | "device_cgroup_rules"
            | "security_opt"
            | "sysctls"
            | "cgroup_parent"
            | "oom_score_adj" => Some(Self::NoPrivileges),
            "pid" | "pid_mode" | "ipc" | "ipc_mode" | "uts" | "uts_mode" | "userns" | "userns_mode" | "cgroup"
            | "cgroupns" | "cgroupns_mode" | "network_mode" | "volumes_from" | "links" => Some(Self::NoHostNamespaces),
            _ => None,
        }
    }
}

/// What of a host the containers of jobs may see: `AIOS_ALLOWED_VOLUMES`, paths and names of volumes, comma-separated.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Allowed {
    entries: Vec<String>,
}

impl Allowed {
    /// Reads the list.
    ///
    /// # Errors
    /// The entry that is neither a path nor a name.
    pub fn parse(text: &str) -> Result<Self, String> {
        let entries: Vec<String> =
            text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(str::to_owned).collect();
        match entries.iter().find(|entry| !is_plain_path(entry) && !is_name(entry)) {
            Some(bad) => Err(format!("found {}, expected an absolute path or the name of a volume", quoted(bad))),
            None => Ok(Self { entries }),
        }
    }

    /// Holds a volume against the list; `sockets` are those of the engines that this device reaches. Only the entries themselves
    /// may be seen, not what lies below them: a link that a job made there could lead anywhere.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn check(&self, volume: &Volume, sockets: &[&str]) -> Result<(), Rule> {
        let source = volume.source.as_str();
        if volume.is_path() {
            let plain = plain_run(source);
            let mut all = sockets.iter().copied().chain(SOCKETS).map(plain_run);
            if all.any(|socket| below(&socket, &plain) || below(&plain, &socket)) || plain.ends_with("/docker.sock") {
                return Err(Rule::NoEngineSocket);
            }
        }
        if self.entries.iter().any(|entry| entry == source) { Ok(()) } else { Err(Rule::AllowedVolumes) }
    }
}

/// Where engines listen.
const SOCKETS: [&str; 4] =
    ["/run/docker.sock", "/run/podman/podman.sock", "/run/containerd/containerd.sock", "/run/crio/crio.sock"];

/// A path with `/var/run` as what it is on every Linux: `/run`.
fn plain_run(path: &str) -> String {
    match path.strip_prefix("/var/run") {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("/run{rest}"),
        Some(_) | None => path.to_owned(),
    }
}

/// Whether a path is another one or lies below it.
fn below(path: &str, folder: &str) -> bool {
    folder == "/" || path == folder || path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_read_part_by_part() {
        let volume = |source: &str, target: &str, read_only| {
            Ok(Volume { source: source.to_owned(), target: target.to_owned(), read_only })
        };
        assert_eq!(Volume::parse("/data:/in:ro"), volume("/data", "/in", true));
        assert_eq!(Volume::parse("models:/models"), volume("models", "/models", false));
        assert_eq!(Volume::parse("/a b:/c:rw"), volume("/a b", "/c", false));
        for bad in [
            "",
            "/data",
            "/data:in",
            "/data:/",
            "data/x:/in",
            "/data/../etc:/in",
            "/data:/in:z",
            "/data:/in:ro:x",
            "./d:/in",
            "/data//x:/in",
            ":/in",
            "/data:",
            "/data/:/in",
            "/d\n:/in",
            "-x:/in",
        ] {
            assert!(Volume::parse(bad).is_err_and(|error| error.contains("SOURCE:TARGET")), "{bad:?}");
        }
    }

    #[test]
    fn only_what_is_listed_may_be_seen_and_the_socket_never() {
        let allowed = Allowed::parse("/data, /srv/models ,cache").unwrap();
        let check = |allowed: &Allowed, source: &str| {
            let volume = Volume { source: source.to_owned(), target: "/x".to_owned(), read_only: true };
            allowed.check(&volume, &["/run/engine/docker.sock"])
        };
        for source in ["/data", "/srv/models", "cache"] {
            assert_eq!(check(&allowed, source), Ok(()), "{source}");
        }
        // Below an entry a link may lead anywhere.
        for source in ["/srv", "/database", "/dat", "/data/a", "/srv/modelsx", "caches", "data"] {
            assert_eq!(check(&allowed, source), Err(Rule::AllowedVolumes), "{source}");
        }
        let sockets = [
            "/run/engine/docker.sock",
            "/run/engine",
            "/run",
            "/var/run",
            "/",
            "/var",
            "/var/run/docker.sock",
            "/run/podman",
        ];
        let all = Allowed::parse(&sockets.join(",")).unwrap();
        for source in sockets.into_iter().filter(|source| *source != "/var") {
            assert_eq!(check(&all, source), Err(Rule::NoEngineSocket), "{source}");
        }
        assert_eq!(check(&Allowed::default(), "/data"), Err(Rule::AllowedVolumes));
        assert!(Allowed::parse("data/x").is_err() && Allowed::parse("/a/../b").is_err());
    }

    #[test]
    fn paths_say_where_they_lead() {
        for good in ["/", "/a", "/a/b c/d..e", "/.hidden"] {
            assert!(is_plain_path(good), "{good}");
        }
        for bad in ["", "a", "a/b", "/a/", "//a", "/a/./b", "/a/..", "/a\u{0}b", "/a\nb"] {
            assert!(!is_plain_path(bad), "{bad:?}");
        }
    }
}
