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
    };
    let cause = if is_read_only {
        Cause::ReadOnly
    } else if me.uid == 0 && is_network(path) {
        Cause::RootSquash
    } else if me.uid == owner.uid {
        Cause::Mode
    } else {
        Cause::Owner
    };
    Failure::new(Code::Volume, line(&error.to_string(), path, owner, me, cause, layout), "")
}

/// The user that this process is.
#[derive(Debug, Clone, Copy)]
struct Me {
    uid: u32,
    gid: u32,
    is_in_container: bool,
}

/// Why the folder cannot be written.
#[derive(Debug, Clone, Copy)]
enum Cause {
    ReadOnly,
    /// The file server takes root for nobody.
    RootSquash,
    /// The owner is this user, and the permission bits deny it.
    Mode,
    /// The owner is another user.
    Owner,
}

fn line(error: &str, path: &Path, owner: Owner, me: Me, cause: Cause, layout: &Layout) -> String {
    let Owner { uid, gid, mode } = owner;
    let (subject, place, folder) = if me.is_in_container {
        ("this container", "on the host, beside docker-compose.yml", folder_on_host(path, layout))
    } else {
        ("this process", "run", path.display().to_string())
    };
    let fix = match cause {
        Cause::ReadOnly if me.is_in_container => {
            "mount it without `:ro`, or on the host: sudo mount -o remount,rw MOUNTPOINT".to_owned()
        }
        Cause::ReadOnly => "run: sudo mount -o remount,rw MOUNTPOINT".to_owned(),
        Cause::RootSquash => format!(
            "the file server maps root to nobody (root_squash): on the server, give the folder to a user: sudo chown -R 1000:1000 {folder}"
        ),
        Cause::Mode => format!("{place}: chmod -R u+rwX {folder}"),
        Cause::Owner => format!("{place}: sudo chown -R {}:{} {folder}", me.uid, me.gid),
    };
    format!(
        "{error}: {} belongs to user {uid}, group {gid} (mode {mode:04o}), {subject} is user {}, group {}; {fix}",
        path.display(),
        me.uid,
        me.gid
    )
}

/// The name that a path of the container has in the folder of `docker-compose.yml`.
fn folder_on_host(path: &Path, layout: &Layout) -> String {
    match path.strip_prefix(&layout.common) {
        Ok(rest) if rest.as_os_str().is_empty() => "Common".to_owned(),
        Ok(rest) => format!("Common/{}", rest.display()),
        Err(_) => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_names_folder_owner_user_and_command() {
        let layout = Layout { common: "/aios/Common".into(), programs: "/aios/Programs".into() };
        let owner = Owner { uid: 0, gid: 0, mode: 0o755 };
        let me = Me { uid: 1000, gid: 1001, is_in_container: true };
        let said = |path: &str, cause, me| line("cannot write", Path::new(path), owner, me, cause, &layout);
        assert_eq!(
            said("/aios/Common/Devices", Cause::Owner, me),
            "cannot write: /aios/Common/Devices belongs to user 0, group 0 (mode 0755), this container is user 1000, group 1001; on the host, beside docker-compose.yml: sudo chown -R 1000:1001 Common/Devices"
        );
        assert!(said("/aios/Common", Cause::Mode, me).ends_with("chmod -R u+rwX Common"));
        assert!(said("/aios/Common", Cause::ReadOnly, me).ends_with("sudo mount -o remount,rw MOUNTPOINT"));
        let native = Me { is_in_container: false, ..me };
        assert!(
            said("/srv/Common", Cause::Owner, native)
                .ends_with("this process is user 1000, group 1001; run: sudo chown -R 1000:1001 /srv/Common")
        );
        assert!(said("/aios/Common", Cause::RootSquash, me).contains("root_squash"));
    }
}
