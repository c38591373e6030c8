//! Where a path of this process lies on the host of the engine: what a container beside ours can be given.
//!
//! Outside of a container paths are what they are. Inside, the engine knows what is mounted where: this process finds its own
//! container, has the engine show that container's mounts, and makes sure that it is the right one by reading the volume's id
//! through the engine. `AIOS_HOST_COMMON` and `AIOS_HOST_PROGRAMS` say it by hand.

use std::path::{Path, PathBuf};

use super::Settings;
use super::engine::{Engine, Fault};
use crate::volume::os::read_from;

/// More of the kernel's lists is not read, bytes.
const LIMIT: u64 = 1 << 20;
/// What an engine mounts into each of its containers, from a folder that is named after the container.
const ENGINES_FILES: [&str; 4] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/run/.containerenv"];

/// What lies where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Places {
    /// Paths of this process, and what they are on the host.
    mounts: Vec<(PathBuf, PathBuf)>,
    /// The networks that this process's own container is on: names and ids.
    networks: Vec<(String, String)>,
}

impl Places {
    /// Finds out what lies where.
    ///
    /// # Errors
    /// The engine does not answer, or, in one sentence, what could not be found out.
    pub(super) async fn find(engine: &Engine, settings: &Settings) -> Result<Self, Unknown> {
        let by_hand = [(&settings.common, &settings.host_common), (&settings.programs, &settings.host_programs)];
        let by_hand: Vec<(PathBuf, PathBuf)> =
            by_hand.into_iter().filter_map(|(own, host)| Some((own.clone(), host.clone()?))).collect();
        let candidates = candidates();
        if candidates.is_empty() {
            let whole = (PathBuf::from("/"), PathBuf::from("/"));
            // What was said by hand counts before it, because it is longer.
            return Ok(Self { mounts: by_hand.into_iter().chain([whole]).collect(), networks: Vec::new() });
        }
        for candidate in &candidates {
            let seen = match engine.inspect(&candidate.id).await {
                Ok(seen) => seen,
                Err(fault) if fault.is_absence() => return Err(Unknown::Engine(fault)),
                Err(_) => continue,
            };
            let path = settings.common.join(".volume");
            let id = engine.read_file(&candidate.id, &path.to_string_lossy()).await;
            let is_own = match id {
                Ok(id) if !id.is_empty() => String::from_utf8_lossy(&id).trim() == settings.volume,
                // A proxy may forbid the look.
                Ok(_) | Err(_) => candidate.is_sure,
            };
            if !is_own {
                continue;
            }
            let mounts = seen.mounts.unwrap_or_default().into_iter().filter_map(|mount| {
                let (at, source) = (mount.destination?, mount.source.filter(|source| source.starts_with('/'))?);
                Some((PathBuf::from(at), PathBuf::from(source)))
            });
            let networks = seen.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
            // An engine takes a name, an id, and the beginning of an id.
            let networks = networks
                .into_iter()
                .filter(|(name, _)| !matches!(name.as_str(), "bridge" | "none" | "host"))
                .map(|(name, network)| (name, network.network_id.unwrap_or_default()));
            return Ok(Self { mounts: by_hand.into_iter().chain(mounts).collect(), networks: networks.collect() });
        }
        if by_hand.len() == 2 {
            return Ok(Self { mounts: by_hand, networks: Vec::new() });
        }
        let candidates: Vec<String> = candidates.into_iter().map(|candidate| candidate.id).collect();
        Err(Unknown::Place(format!(
            "this device is in a container ({}) that the engine does not know as one with {} in it, so the paths of the host are unknown",
            candidates.join(", "),
            settings.common.display()
        )))
    }

    /// Whether this process's own container is on a network.
    pub(super) fn has_network(&self, name: &str) -> bool {
        self.networks.iter().any(|(known, id)| known == name || id.starts_with(name))
    }

    /// What a path of this process is on the host.
    ///
    /// # Errors
    /// In one sentence, that it is nothing there.
    pub(super) fn on_host(&self, path: &Path) -> Result<String, String> {
        let above = self.mounts.iter().filter_map(|(at, source)| Some((at, source, path.strip_prefix(at).ok()?)));
        let nearest = above.max_by_key(|(at, _, _)| at.components().count());
        let Some((_, source, rest)) = nearest else {
            return Err(format!(
                "{} lies in this device's own container and nowhere on the host, so no other container can be given it",
                path.display()
            ));
        };
        let found = if rest.as_os_str().is_empty() { source.clone() } else { source.join(rest) };
        Ok(found.to_string_lossy().into_owned())
    }
}

/// Why it is not known what lies where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unknown {
    /// The engine did not say.
    Engine(Fault),
    /// It said that this cannot be.
    Place(String),
}

/// What to do where places are unknown.
pub(super) const HINT: &str =
    "mount Common and Programs from the host, or say where they lie there: AIOS_HOST_COMMON, AIOS_HOST_PROGRAMS";

/// A container that this process may be in.
struct Candidate {
    id: String,
    /// An engine has mounted that container's own files here.
    is_sure: bool,
}

/// The containers that this process may be in, the surest first; none: it is in no container.
fn candidates() -> Vec<Candidate> {
    let read = |path: &str| read_from(Path::new(path), 0, LIMIT).unwrap_or_default();
    let mounts = of_mounts(&String::from_utf8_lossy(&read("/proc/self/mountinfo")));
    let groups = of_groups(&String::from_utf8_lossy(&read("/proc/self/cgroup")));
    // A host's name is the container's id unless somebody gave it another; alone it says nothing.
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name = (!mounts.is_empty() || !groups.is_empty()).then_some((name, false));
    let all = mounts.into_iter().map(|id| (id, true)).chain(groups.into_iter().map(|id| (id, false))).chain(name);
    let mut found: Vec<Candidate> = Vec::new();
    for (id, is_sure) in all {
        if !found.iter().any(|candidate| candidate.id.starts_with(&id)) {
            found.push(Candidate { id, is_sure });
        }
    }
    found
}

/// Ids in the list of mounts: `… /docker/containers/<id>/hostname /etc/hostname …`.
fn of_mounts(list: &str) -> Vec<String> {
    let of_line = |line: &str| {
        let mut words = line.split(' ').skip(3);
        let (root, at) = (words.next()?, words.next()?);
        ENGINES_FILES.contains(&at).then(|| id_in(root)).flatten()
    };
    list.lines().filter_map(of_line).collect()
}

/// Ids in the list of control groups: `1:name=systemd:/docker/<id>`, `0::/system.slice/docker-<id>.scope`.
fn of_groups(list: &str) -> Vec<String> {
    list.lines().filter_map(|line| id_in(line.splitn(3, ':').nth(2)?)).collect()
}

/// The last 64 hexadecimal digits in a row that stand alone in a path.
fn id_in(path: &str) -> Option<String> {
    let is_id = |word: &&str| word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    path.rsplit(['/', '-', '.']).find(is_id).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn own_containers_are_found_in_what_the_kernel_lists() {
        let mounts = format!(
            "600 580 0:50 / / rw - overlay overlay rw\n\
             601 600 8:1 /var/lib/docker/containers/{ID}/hostname /etc/hostname rw - ext4 /dev/sda rw\n\
             602 600 8:1 /home/u/aios/Common /aios/Common rw - ext4 /dev/sda rw\n"
        );
        assert_eq!(of_mounts(&mounts), [ID]);
        let podman =
            format!("9 8 0:1 /containers/overlay-containers/{ID}/userdata/hosts /etc/hosts rw - tmpfs tmpfs rw");
        assert_eq!(of_mounts(&podman), [ID]);
        // On the host itself the engine's mounts stand the other way round.
        let host = format!("9 8 0:1 / /var/lib/docker/containers/{ID}/mounts/shm rw - tmpfs shm rw");
        assert!(of_mounts(&host).is_empty());
        for line in [format!("3:memory:/docker/{ID}"), format!("0::/system.slice/docker-{ID}.scope")] {
            assert_eq!(of_groups(&line), [ID], "{line}");
        }
        assert!(of_groups("0::/\n1:name=systemd:/user.slice/user-0.slice").is_empty());
    }

    #[test]
    fn the_nearest_mount_says_where_a_path_lies() {
        let places = |mounts: &[(&str, &str)]| Places {
            mounts: mounts.iter().map(|(at, source)| (PathBuf::from(at), PathBuf::from(source))).collect(),
            networks: vec![("aios_devices".to_owned(), "3fa9".to_owned())],
        };
        for (name, is_own) in
            [("aios_devices", true), ("3fa9", true), ("3f", true), ("3fa9b", false), ("bridge", false)]
        {
            assert_eq!(places(&[]).has_network(name), is_own, "{name}");
        }
        let inside =
            places(&[("/aios/Common", "/home/u/Common"), ("/aios/Common/Logs", "/var/logs"), ("/aios", "/opt")]);
        for (path, host) in [
            ("/aios/Common", "/home/u/Common"),
            ("/aios/Common/.work/a", "/home/u/Common/.work/a"),
            ("/aios/Common/Logs/x", "/var/logs/x"),
            ("/aios/Commons", "/opt/Commons"),
        ] {
            assert_eq!(inside.on_host(Path::new(path)).as_deref(), Ok(host));
        }
        assert!(
            inside.on_host(Path::new("/tmp/x")).is_err_and(|error| error.contains("/tmp/x lies in this device's own"))
        );
        assert_eq!(places(&[("/", "/")]).on_host(Path::new("/a/b")).as_deref(), Ok("/a/b"));
    }
}
