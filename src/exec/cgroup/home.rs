//! Where the groups of attempts can be made: what there is on this machine, and what is chosen of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use super::{CONTROLLERS, SEAT, Why};
use crate::volume::mounts::unescape;

/// The groups of this process, by the kernel's two lists.
#[derive(Debug, Default, PartialEq, Eq)]
struct Places {
    /// In version 2, and whether that is the root of what this process sees.
    unified: Option<(PathBuf, bool)>,
    /// In version 1, one for each of [`CONTROLLERS`].
    legacy: [Option<PathBuf>; 3],
}

/// What was found out about the groups of this process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    unified: Option<Unified>,
    /// In version 1, for each of [`CONTROLLERS`]: its group, and whether it may be written.
    legacy: [Option<(PathBuf, bool)>; 3],
}

/// The group in version 2.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Unified {
    dir: PathBuf,
    /// The controllers that it has, and those that the groups below it have.
    has: BTreeSet<String>,
    gives: BTreeSet<String>,
    /// It is the machine's own root, which may have processes of its own.
    is_root: bool,
    /// It is all that this container sees: whoever is in it belongs to the container.
    is_whole: bool,
    /// Nobody is in it but this process.
    is_alone: bool,
    may_write: bool,
}

/// Where groups can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Home {
    /// `moves`: who is in it must leave it first.
    Unified { dir: PathBuf, moves: bool },
    /// One for each of [`CONTROLLERS`].
    Legacy([PathBuf; 3]),
}

/// Where groups can be made, by what was seen.
pub(super) fn choose(seen: &Seen) -> Result<Home, Why> {
    let all_in = |set: &BTreeSet<String>| CONTROLLERS.iter().all(|controller| set.contains(*controller));
    if let Some(unified) = seen.unified.as_ref().filter(|unified| all_in(&unified.has)) {
        let dir = unified.dir.clone();
        let is_free = unified.is_root || all_in(&unified.gives);
        return match (unified.may_write, is_free, unified.is_whole || unified.is_alone) {
            (false, _, _) => Err(Why::NotWritable(dir)),
            (true, true, _) => Ok(Home::Unified { dir, moves: false }),
            (true, false, true) => Ok(Home::Unified { dir, moves: true }),
            (true, false, false) => Err(Why::Shared(dir)),
        };
    }
    if let [Some(memory), Some(cpu), Some(pids)] = &seen.legacy {
        let homes = [memory, cpu, pids];
        return match homes.iter().find(|(_, may_write)| !may_write) {
            Some((dir, _)) => Err(Why::NotWritable(dir.clone())),
            None => Ok(Home::Legacy(homes.map(|(dir, _)| dir.clone()))),
        };
    }
    let in_two = seen.unified.as_ref().map(|unified| &unified.has);
    let is_missing =
        |at: &usize| seen.legacy[*at].is_none() && !in_two.is_some_and(|has| has.contains(CONTROLLERS[*at]));
    let missing: Vec<&str> = (0..CONTROLLERS.len()).filter(is_missing).map(|at| CONTROLLERS[at]).collect();
    let missing = if missing.is_empty() { CONTROLLERS.to_vec() } else { missing };
    Err(Why::Missing(missing.join(", ")))
}

/// Looks at the groups of this process.
pub(super) fn look() -> Seen {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let Places { unified, legacy } = places(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"));
    let unified = unified.map(|(dir, is_top)| {
        let words = |file: &str| {
            let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
            text.split_ascii_whitespace().map(str::to_owned).collect::<BTreeSet<String>>()
        };
        let is_root = access(dir.join("cgroup.type"), Access::EXISTS).is_err();
        let own = std::process::id().to_string();
        Unified {
            has: words("cgroup.controllers"),
            gives: words("cgroup.subtree_control"),
            is_root,
            is_whole: is_top && !is_root,
            is_alone: words("cgroup.procs").iter().all(|pid| *pid == own),
            may_write: may_write(&dir, &["cgroup.procs", "cgroup.subtree_control"]),
            dir,
        }
    });
    let legacy = legacy.map(|dir| {
        dir.map(|dir| {
            let may_write = may_write(&dir, &["cgroup.procs"]);
            (dir, may_write)
        })
    });
    Seen { unified, legacy }
}

fn may_write(dir: &Path, files: &[&str]) -> bool {
    let may = |path: &Path| access(path, Access::WRITE_OK).is_ok();
    may(dir) && files.iter().all(|file| may(&dir.join(file)))
}

/// The groups of a process, from its `mountinfo` and its `cgroup`. One whose hierarchy is not mounted where this process sees it has no
/// place.
fn places(mounts: &str, groups: &str) -> Places {
    let mut places = Places::default();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let controllers: Vec<&str> = controllers.split(',').filter(|controller| !controller.is_empty()).collect();
        let is_two = controllers.is_empty();
        let is_its = |kind: &str, options: &str| match is_two {
            true => kind == "cgroup2",
            false => kind == "cgroup" && options.split(',').any(|option| controllers.contains(&option)),
        };
        let Some(dir) = mounts.lines().find_map(|mount| below_mount(mount, Path::new(path), is_its)) else { continue };
        if is_two {
            // A device that has moved looks at where it came from.
            let is_seat = dir.file_name().is_some_and(|name| name == SEAT);
            let path = Path::new(path);
            let (dir, path) = match (dir.parent(), path.parent()) {
                (Some(home), Some(above)) if is_seat => (home.to_owned(), above),
                (_, _) => (dir, path),
            };
            places.unified = Some((dir, path == Path::new("/")));
        } else {
            for (place, controller) in places.legacy.iter_mut().zip(CONTROLLERS) {
                if controllers.contains(&controller) {
                    *place = Some(dir.clone());
                }
            }
        }
    }
    places
}

/// The folder of a group, if this line of `mountinfo` has its hierarchy, from a root above it.
fn below_mount(line: &str, group: &Path, is_its: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
    let (place, file_system) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (root, at) = (unescape(place.next()?), unescape(place.next()?));
    let mut words = file_system.split(' ');
    let (kind, options) = (words.next()?, words.nth(1).unwrap_or_default());
    let inside = group.strip_prefix(root).ok().filter(|_| is_its(kind, options))?;
    let is_plain = inside.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    is_plain.then(|| if inside.as_os_str().is_empty() { PathBuf::from(at) } else { Path::new(&at).join(inside) })
}

#[cfg(test)]
mod tests;
