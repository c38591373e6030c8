//! What kind of file system a folder is on, as the kernel's list of mounts names it.

use std::path::{Path, PathBuf};

use super::os::{read_from, real_path};

/// More of the list is not read, bytes.
const LIMIT: u64 = 4 << 20;

/// What a file system is, by what that means for those who share a folder on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// On a disk of this machine, under this machine's kernel alone.
    Local,
    /// In memory.
    Memory,
    /// A container's own layer, or another union of folders.
    Overlay,
    /// NFS.
    Nfs,
    /// SMB, also called CIFS.
    Smb,
    /// Given by a program: sshfs, rclone, the folders that desktop container engines share.
    Fuse,
    /// What a virtual machine's host shares with it: 9p, virtiofs.
    Host,
    /// One file system for many machines: Ceph, Lustre, GFS2.
    Cluster,
    /// Anything else.
    Unknown,
}

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub at: PathBuf,
    /// What the kernel calls it: `ext4`, `fuse.sshfs`.
    pub name: String,
    /// What that is.
    pub kind: Kind,
    /// Nothing can be written there.
    pub read_only: bool,
}

/// The file system that a path is on. `None`: the kernel does not say.
#[must_use]
pub fn mount_of(path: &Path) -> Option<Mount> {
    let list = read_from(Path::new("/proc/self/mountinfo"), 0, LIMIT).ok()?;
    nearest(&String::from_utf8_lossy(&list), &real_path(path))
}

/// Of the mounts above a path the nearest; of several at one place the last, which covers the others.
fn nearest(list: &str, path: &Path) -> Option<Mount> {
    let above = list.lines().filter_map(parse).filter(|mount| path.starts_with(&mount.at));
    above.fold(None, |best: Option<Mount>, mount| {
        let is_nearer = best.as_ref().is_none_or(|best| mount.at.starts_with(&best.at));
        if is_nearer { Some(mount) } else { best }
    })
}

/// A line such as `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`.
fn parse(line: &str) -> Option<Mount> {
    let (place, file_system) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(4);
    let (at, options) = (place.next()?, place.next()?);
    let mut words = file_system.split(' ');
    let name = words.next()?.to_owned();
    let of_all = words.nth(1).unwrap_or_default();
    let read_only = [options, of_all].iter().any(|options| options.split(',').any(|option| option == "ro"));
    Some(Mount { at: PathBuf::from(unescape(at)), kind: kind_of(&name), name, read_only })
}

/// Space, tab, line feed and backslash stand there as three octal digits behind a backslash.
pub(crate) fn unescape(text: &str) -> String {
    let mut words = text.split('\\');
    let mut whole = words.next().unwrap_or_default().to_owned();
    for word in words {
        match word.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                whole.push(char::from(byte));
                whole.push_str(&word[3..]);
            }
            None => {
                whole.push('\\');
                whole.push_str(word);
            }
        }
    }
    whole
}

fn kind_of(name: &str) -> Kind {
    match name {
        "ext2" | "ext3" | "ext4" | "xfs" | "btrfs" | "zfs" | "f2fs" | "bcachefs" | "jfs" | "reiserfs" | "vfat"
        | "exfat" | "ntfs3" | "fuseblk" => Kind::Local,
        "tmpfs" | "ramfs" => Kind::Memory,
        "overlay" | "aufs" | "fuse.fuse-overlayfs" => Kind::Overlay,
        "nfs" | "nfs4" => Kind::Nfs,
        "cifs" | "smb3" | "smbfs" => Kind::Smb,
        "9p" | "virtiofs" | "vboxsf" | "fuse.vmhgfs-fuse" | "prl_fs" => Kind::Host,
        "ceph" | "lustre" | "gfs2" | "ocfs2" | "afs" | "beegfs" | "gpfs" | "fuse.glusterfs" => Kind::Cluster,
        other if other == "fuse" || other.starts_with("fuse.") => Kind::Fuse,
        _ => Kind::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "\
        22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
        30 22 0:40 / /srv/a\\040b rw - nfs4 host:/x ro,vers=4.2\n\
        31 22 0:41 / /srv/ab rw master:1 shared:2 - fuse.sshfs me@host: rw\n\
        32 31 0:42 / /srv/ab ro,nosuid - tmpfs tmpfs rw\n\
        33 22 0:43 / /srv/odd - broken\n";

    #[test]
    fn the_nearest_and_newest_mount_counts() {
        let seen = |path: &str| nearest(LIST, Path::new(path)).map(|mount| (mount.name, mount.kind, mount.read_only));
        assert_eq!(seen("/home/x"), Some(("ext4".to_owned(), Kind::Local, false)));
        assert_eq!(seen("/srv/a b/Common"), Some(("nfs4".to_owned(), Kind::Nfs, true)), "the whole file system is");
        assert_eq!(seen("/srv/ab/Common"), Some(("tmpfs".to_owned(), Kind::Memory, true)), "the later one covers");
        assert_eq!(seen("/srv/abc"), Some(("ext4".to_owned(), Kind::Local, false)), "not by letters");
        assert_eq!(nearest("", Path::new("/")), None);
    }

    #[test]
    fn kinds_go_by_their_names() {
        for (name, kind) in [
            ("fuse.sshfs", Kind::Fuse),
            ("fuseblk", Kind::Local),
            ("fuse.glusterfs", Kind::Cluster),
            ("virtiofs", Kind::Host),
            ("fusectl", Kind::Unknown),
            ("proc", Kind::Unknown),
        ] {
            assert_eq!(kind_of(name), kind, "{name}");
        }
    }

    #[test]
    fn this_machine_has_mounts() {
        assert!(mount_of(Path::new("/proc/self")).is_some_and(|mount| mount.name == "proc"));
    }
}
