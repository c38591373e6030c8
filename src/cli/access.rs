//! Explains a shared folder that this process may not write: its owner, this process's user, and the command that fixes it.

use std::path::Path;

use super::{Code, Failure};
use crate::exec::identity;
use crate::volume;
use crate::volume::layout::Layout;
use crate::volume::os::{Owner, is_network, owner_of};

/// Turns a failure of the volume into one line for people, if the rights of a folder are its cause.
pub(super) fn explain(error: volume::Error, layout: &Layout) -> Failure {
    let is_read_only = error.source.kind() == std::io::ErrorKind::ReadOnlyFilesystem;
    if !is_read_only && error.source.kind() != std::io::ErrorKind::PermissionDenied {
        return error.into();
    }
    let there = error.path.ancestors().find_map(|path| Some((path, owner_of(path).ok()?)));
    let Some((path, owner)) = there else { return error.into() };
    let me = Me {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        is_in_container: identity::is_in_container(),
        shown_common: std::env::var("AIOS_SHOWN_COMMON").ok().filter(|path| !path.is_empty()),
    };
    let cause = cause(is_read_only, path, owner, &me, layout);
    Failure::new(Code::Volume, line(&error.to_string(), path, owner, &me, cause, layout), "")
}

/// The user that this process is, and how the folder is called outside.
#[derive(Debug, Clone)]
struct Me {
    uid: u32,
    gid: u32,
    is_in_container: bool,
    /// Where Common lies on the host, as whoever started the container calls it.
    shown_common: Option<String>,
}

/// Why the folder cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    ReadOnly,
    /// It is a folder of the container's own image, where something was to be mounted.
    NotMounted,
    /// The shared folder is not there yet, and the one above it is another's.
    Missing,
    /// The file server takes root for nobody.
    RootSquash,
    /// A container that may not become the owner.
    NoCapabilities,
    /// The owner is a user of the host that this user namespace does not know.
    Unmapped,
    /// The owner is another user.
    Owner,
    /// The owner is this user, and the permission bits deny it.
    Mode,
    /// The permission bits allow it.
    Other,
}

/// What the kernel shows for users that a user namespace does not map.
const OVERFLOW: u32 = 65_534;

fn cause(is_read_only: bool, path: &Path, owner: Owner, me: &Me, layout: &Layout) -> Cause {
    let is_outside = !path.starts_with(&layout.common);
    match (is_read_only, me.is_in_container && is_outside) {
        (_, true) => Cause::NotMounted,
        (true, false) => Cause::ReadOnly,
        (false, false) if is_outside && layout.common.starts_with(path) => Cause::Missing,
        (false, false) if me.uid == 0 && is_network(path) => Cause::RootSquash,
        (false, false) if me.is_in_container && owner.uid == OVERFLOW => Cause::Unmapped,
        (false, false) if me.is_in_container && me.uid == 0 && owner.uid != 0 => Cause::NoCapabilities,
        (false, false) if me.uid != owner.uid => Cause::Owner,
        (false, false) if owner.mode & 0o300 != 0o300 => Cause::Mode,
        (false, false) => Cause::Other,
    }
}

fn line(error: &str, path: &Path, owner: Owner, me: &Me, cause: Cause, layout: &Layout) -> String {
    let Owner { uid, gid, mode } = owner;
    let folder = folder_outside(path, me, layout);
    let (subject, place) = if me.is_in_container { ("this container", "on the host") } else { ("this process", "run") };
    let fix = match cause {
        Cause::ReadOnly => format!(
            "mount it without `:ro`, or its file system read-write: sudo mount -o remount,rw MOUNTPOINT ({folder})"
        ),
        Cause::NotMounted => format!("mount a folder of the host there: --volume FOLDER:{}", error_path(error, path)),
        Cause::Missing => {
            format!("run: sudo install -d -o {} -g {} {}", me.uid, me.gid, layout.common.display())
        }
        Cause::RootSquash => format!(
            "the file server maps root to nobody (root_squash): on the server, give the folder to a user: sudo chown -R 1000:1000 {folder}"
        ),
        Cause::NoCapabilities => "it could not become the owner: add the capabilities SETUID and SETGID (cap_add), or start it as that user (user:)".to_owned(),
        Cause::Unmapped => format!(
            "the owner is unknown in this container's user namespace: {place}: sudo chown -R to a user that it maps (/proc/self/uid_map): {folder}"
        ),
        Cause::Owner => format!("{place}: sudo chown -R {}:{} {folder}", me.uid, me.gid),
        Cause::Mode => format!("{place}: chmod -R u+rwX {folder}"),
        Cause::Other => format!(
            "the permission bits allow it: look at SELinux (mount with `:z`), access lists (getfacl) and attributes (lsattr) of {folder}"
        ),
    };
    format!(
        "{error}: {} belongs to user {uid}, group {gid} (mode {mode:04o}), {subject} is user {}, group {}; {fix}",
        path.display(),
        me.uid,
        me.gid
    )
}

/// The path that the error is about, if it says one; else the one that was looked at.
fn error_path(error: &str, path: &Path) -> String {
    let named = error.split(' ').find(|word| word.starts_with('/'));
    named.map_or_else(|| path.display().to_string(), |named| named.trim_end_matches(':').to_owned())
}

/// Returns the name of a folder as the person who has to fix it knows it.
fn folder_outside(path: &Path, me: &Me, layout: &Layout) -> String {
    let common = match (&me.shown_common, me.is_in_container) {
        (Some(shown), _) => shown.clone(),
        (None, true) => format!("the folder mounted at {}", layout.common.display()),
        (None, false) => layout.common.display().to_string(),
    };
    // What is wrong with one is wrong with others: the command is for all of them.
    if path.starts_with(&layout.common) { common } else { path.display().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_names_folder_owner_user_and_command() {
        let layout = Layout { common: "/aios/Common".into(), programs: "/aios/Programs".into() };
        let root = Owner { uid: 0, gid: 0, mode: 0o755 };
        let me = Me { uid: 1000, gid: 1001, is_in_container: true, shown_common: Some("./Common".into()) };
        let native = Me { is_in_container: false, shown_common: None, ..me.clone() };
        let bare = Me { uid: 0, ..me.clone() };
        let of = |mode| Owner { uid: 1000, gid: 1000, mode };
        let rows = [
            ("/aios/Common", root, &me, false, Cause::Owner, "on the host: sudo chown -R 1000:1001 ./Common"),
            ("/aios/Common/Devices", root, &native, false, Cause::Owner, "run: sudo chown -R 1000:1001 /aios/Common"),
            ("/", root, &native, false, Cause::Missing, "run: sudo install -d -o 1000 -g 1001 /aios/Common"),
            ("/aios/Common", of(0o555), &me, false, Cause::Mode, "chmod -R u+rwX ./Common"),
            ("/aios/Common", of(0o755), &me, false, Cause::Other, "SELinux"),
            ("/aios/Common", of(0o755), &bare, false, Cause::NoCapabilities, "SETUID"),
            ("/aios/Common", Owner { uid: OVERFLOW, ..root }, &me, false, Cause::Unmapped, "user namespace"),
            ("/aios/Common", root, &me, true, Cause::ReadOnly, "remount,rw"),
            ("/aios", root, &me, false, Cause::NotMounted, "--volume FOLDER:/aios/Programs"),
        ];
        for (path, owner, me, is_read_only, expected, fix) in rows {
            let path = Path::new(path);
            assert_eq!(cause(is_read_only, path, owner, me, &layout), expected, "{fix}");
            let said = line("cannot make the folder /aios/Programs: denied", path, owner, me, expected, &layout);
            for part in [&format!("{} belongs to user {}", path.display(), owner.uid), fix] {
                assert!(said.contains(part), "{part}: {said}");
            }
        }
    }
}
