//! The user that a container's orchestrator becomes: the owner of the shared folder, in the group of the engine's socket.
//!
//! A container starts as root, because whose folder it is given is known only then. The process looks whom the folder belongs
//! to, becomes that user, gives up every capability, rules out new privileges, and executes itself again. Process 1 does so as
//! well as every `docker exec`, before it looks at anything else, and while it has one thread only: Linux keeps users and
//! capabilities per thread.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::init;
use crate::volume::os::{link_owner_of, owner_of};

/// The user to become: a number, or `owner` (the default) for the owner of the shared folder.
const UID: &str = "AIOS_UID";
/// The group to become, likewise.
const GID: &str = "AIOS_GID";
/// The group of the engine's socket, where the socket does not tell.
const ENGINE_GID: &str = "DOCKER_GID";
/// The value that stands for the owner of the shared folder.
const OWNER: &str = "owner";
/// Set in the images.
const IN_CONTAINER: &str = "AIOS_IN_CONTAINER";

/// The change of the user cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A variable holds no id.
    #[error("{name} is {value:?}: expected {expected}")]
    Variable {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
    /// No folder above the shared one can be looked at.
    #[error("cannot find out who owns {}: {source}", .path.display())]
    Owner {
        /// The shared folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The system refuses the change.
    #[error("cannot become user {uid}, group {gid}: cannot {doing}: {source}")]
    Refused {
        /// The user to become.
        uid: u32,
        /// The group to become.
        gid: u32,
        /// The step that failed.
        doing: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

/// Returns whether this process has to become another user: it is in a container, is root, and has capabilities.
#[must_use]
pub fn is_change_due() -> bool {
    rustix::process::geteuid().is_root() && is_in_container() && has_capabilities()
}

/// Returns whether this process is in a container: it is process 1, or the image says so.
#[must_use]
pub fn is_in_container() -> bool {
    init::is_first() || std::env::var_os(IN_CONTAINER).is_some()
}

/// Returns whether this process is root and has no capability, so that it may write only what belongs to root.
#[must_use]
pub fn is_bare_root() -> bool {
    rustix::process::geteuid().is_root() && !has_capabilities()
}

/// Becomes the owner of `common` and executes this program again with the same arguments. It returns only if that fails.
///
/// `socket` is the engine's socket: if there is one, its group is kept as a further group.
///
/// # Errors
/// A variable that holds no id, a folder whose owner cannot be found out, or a change that the system refuses.
pub fn become_owner(common: &Path, socket: Option<&Path>, words: impl IntoIterator<Item = OsString>) -> IdentityError {
    let identity = match choose(common, socket, &variable) {
        Ok(identity) => identity,
        Err(error) => return error,
    };
    let refused = |doing, source| IdentityError::Refused { uid: identity.uid, gid: identity.gid, doing, source };
    if let Err((doing, errno)) = identity.assume() {
        return refused(doing, errno.into());
    }
    let mut words = words.into_iter();
    let name = words.next().unwrap_or_default();
    // The new program is readable in /proc for its own user, as one whose user has changed is not.
    let started = std::env::current_exe().map(|program| Command::new(program).arg0(name).args(words).exec());
    refused("execute this program again (is /proc mounted?)", started.unwrap_or_else(|error| error))
}

/// Who to become.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    uid: u32,
    gid: u32,
    /// The group of the engine's socket.
    engine: Option<u32>,
}

impl Identity {
    /// Makes this process that user, for good.
    fn assume(&self) -> Result<(), (&'static str, rustix::io::Errno)> {
        let Self { uid, gid, engine } = self;
        let (user, group) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
        // Those that the container was given (`--group-add`) stay, but for root's.
        let given = rustix::process::getgroups().map_err(|error| ("read its groups", error))?;
        let kept = given.iter().copied().filter(|group| !group.is_root());
        let mut groups: Vec<Gid> = [group].into_iter().chain(engine.map(Gid::from_raw)).chain(kept).collect();
        groups.sort_unstable_by_key(|group| group.as_raw());
        groups.dedup();
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        // Needs a capability that compose drops: then the set holds no more than compose left in it.
        for capability in CapabilitySet::all().iter() {
            let _ = rustix::thread::remove_capability_from_bounding_set(capability);
        }
        // A change of nothing needs no capability.
        if groups != given {
            rustix::thread::set_thread_groups(&groups).map_err(|error| ("set its groups", error))?;
        }
        if !group.is_root() {
            rustix::thread::set_thread_res_gid(group, group, group).map_err(|error| ("set its group", error))?;
        }
        if !user.is_root() {
            rustix::thread::set_thread_res_uid(user, user, user).map_err(|error| ("set its user", error))?;
        }
        // Root keeps what it has until here.
        rustix::thread::set_capabilities(None, none).map_err(|error| ("give up its capabilities", error))?;
        // Without it root would get capabilities back with the next program that it executes.
        rustix::thread::set_no_new_privs(true).map_err(|error| ("rule out new privileges", error))
    }
}

/// Chooses the user from the variables, the folder's owner and the socket's group.
fn choose(common: &Path, socket: Option<&Path>, variable: Variables<'_>) -> Result<Identity, IdentityError> {
    let number = |name| number(name, variable(name));
    let (uid, gid) = (number(UID)?, number(GID)?);
    // A folder that is not there yet is made by the owner of the one above it. A link is never followed: a job could make one.
    let owner = match common.ancestors().find_map(|path| link_owner_of(path).ok()) {
        Some(owner) => owner,
        None => return Err(IdentityError::Owner { path: common.to_owned(), source: io::ErrorKind::NotFound.into() }),
    };
    let engine = match number(ENGINE_GID)? {
        Some(gid) => Some(gid),
        None => socket.and_then(|socket| owner_of(socket).ok()).map(|socket| socket.gid),
    };
    Ok(Identity { uid: uid.unwrap_or(owner.uid), gid: gid.unwrap_or(owner.gid), engine })
}

/// The environment: gives a variable's value unless that is unset or empty.
type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Reads the value of a variable that holds an id. `None`: it stands for the owner.
fn number(name: &'static str, value: Option<String>) -> Result<Option<u32>, IdentityError> {
    match value {
        None => Ok(None),
        Some(value) if value == OWNER => Ok(None),
        // The largest number means "no change" to the system.
        Some(value) => match value.parse() {
            Ok(id) if id != u32::MAX => Ok(Some(id)),
            Ok(_) | Err(_) => {
                let expected = if name == ENGINE_GID { "the number of a group" } else { "a number, or `owner`" };
                Err(IdentityError::Variable { name, value, expected })
            }
        },
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()).filter(|value| !value.is_empty())
}

fn has_capabilities() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| !sets.permitted.is_empty())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// Chooses with these variables, for a folder of this user.
    fn chosen(folder: &Path, socket: Option<&Path>, set: &[(&str, &str)]) -> Result<Identity, String> {
        let variable = |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        choose(folder, socket, &variable).map_err(|error| error.to_string())
    }

    #[test]
    fn the_folder_says_who_unless_a_variable_does() {
        let folder = tempfile::tempdir().unwrap();
        let own = std::fs::metadata(folder.path()).unwrap();
        let owner = Identity { uid: own.uid(), gid: own.gid(), engine: None };
        let inside = folder.path().join("Common");
        assert_eq!(chosen(folder.path(), None, &[]), Ok(owner.clone()));
        assert_eq!(chosen(&inside, None, &[("AIOS_UID", "owner")]), Ok(owner.clone()), "the nearest folder above");
        std::os::unix::fs::symlink("/", &inside).unwrap();
        assert_eq!(chosen(&inside, None, &[]), Ok(owner.clone()), "a link says nothing of what it leads to");
        std::fs::remove_file(&inside).unwrap();
        let socket = Some(folder.path());
        assert_eq!(chosen(&inside, socket, &[]), Ok(Identity { engine: Some(own.gid()), ..owner.clone() }));
        assert_eq!(chosen(&inside, Some(&inside), &[]), Ok(owner.clone()), "no socket, no group");
        let set = [("AIOS_UID", "12"), ("AIOS_GID", "13"), ("DOCKER_GID", "14")];
        assert_eq!(chosen(&inside, socket, &set), Ok(Identity { uid: 12, gid: 13, engine: Some(14) }));
        assert_eq!(chosen(&inside, None, &[("AIOS_UID", "12")]), Ok(Identity { uid: 12, ..owner }));
    }

    #[test]
    fn what_is_no_id_is_refused_by_name_and_value() {
        for (name, value) in [("AIOS_UID", "bob"), ("AIOS_GID", "-1"), ("DOCKER_GID", "4294967295")] {
            let said = chosen(Path::new("/"), None, &[(name, value)]).unwrap_err();
            assert!(said.starts_with(&format!("{name} is {value:?}: expected ")), "{said}");
        }
    }
}
