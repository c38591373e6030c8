//! Cgroups of attempts: one each, below the device's own group.
//!
//! Promises: nothing is made or moved outside the group that this process was started in, so what holds the device holds its runs
//! too; nobody else's processes are moved, unless the whole container is the device's; and a group is gone once its attempt is.
//! Both versions of the kernel's interface are spoken: in the second there is one hierarchy, in the first one for each controller.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::procfs::{self, Stat};
use super::program::is_short;
use super::tree;
use crate::model::container::Limits;

mod home;

use home::{Home, choose};

/// What limits need, in the order of their keys.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];
/// Where a device goes, to leave its own group to the groups of its attempts: in version 2 only a group without processes can have
/// limited ones below it.
const SEAT: &str = "aios-devices";
/// What begins the names of groups made here; a marker follows, with `:` for `/`.
const PREFIX: &str = "aios:";
/// How often the own group is looked at until nobody is left in it.
const MOVES: u32 = 10;
/// The span in which processor time is counted, microseconds.
const PERIOD: u64 = 100_000;
/// The first and the last pause between two looks at a group that should be empty.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));
/// So close to its limit nothing more may fit into a group, bytes: more than a processor takes at once.
const SLACK: u64 = 1 << 20;
/// How long after SIGKILL a process may still be there before it is given up.
const GIVE_UP: Duration = Duration::from_secs(5);

/// The kernel's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    /// A hierarchy for each controller.
    One,
    /// One hierarchy.
    Two,
}

/// Why no cgroups can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// The kernel or the container shows none.
    #[error("no cgroups with the controllers {0} are to be seen")]
    Missing(String),
    /// The own group is another's to change.
    #[error("this process may not make groups in {}", .0.display())]
    NotWritable(PathBuf),
    /// Others are in the own group.
    #[error("other processes are in the own group {}, so that none with limits can be made below it", .0.display())]
    Shared(PathBuf),
    /// It was tried, and the system refused.
    #[error("{what} {}: {error}", .path.display())]
    Refused {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        error: String,
        /// The system was short of something that other processes give back.
        is_short: bool,
    },
}

impl Why {
    fn refused(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Refused { what, path, error: error.to_string(), is_short: is_short(&error) }
    }

    /// Returns whether it may work later: the system was short of something that others give back.
    pub(super) fn is_short(&self) -> bool {
        matches!(self, Self::Refused { is_short: true, .. })
    }

    /// Whether there is nothing here that could be used, rather than something that does not work.
    #[must_use]
    pub fn is_not_offered(&self) -> bool {
        match self {
            Self::Missing(_) | Self::NotWritable(_) | Self::Shared(_) => true,
            Self::Refused { .. } => false,
        }
    }
}

/// The place where groups of attempts are made.
#[derive(Debug, Clone)]
pub struct Cgroups {
    version: Version,
    /// For each of [`CONTROLLERS`].
    homes: [PathBuf; 3],
}

impl Cgroups {
    /// Finds the place and prepares it. In version 2 this process may be moved within its group, and in a container of its own
    /// everybody there.
    ///
    /// # Errors
    /// Why there is none.
    pub fn open() -> Result<Self, Why> {
        let home = choose(&home::look())?;
        if let Home::Unified { dir, moves } = &home {
            if *moves {
                make_room(dir)?;
            }
            let all = CONTROLLERS.map(|controller| format!("+{controller}")).join(" ");
            write(&dir.join("cgroup.subtree_control"), &all)?;
        }
        let cgroups = Self::of(home);
        cgroups.try_out(Limits { memory: Some(1 << 30), cpu_millis: Some(100), pids: Some(100) })?;
        Ok(cgroups)
    }

    /// Finds the place and tries it, as far as that changes nothing.
    ///
    /// # Errors
    /// Why there is none.
    pub fn look() -> Result<Self, Why> {
        let home = choose(&home::look())?;
        let cgroups = Self::of(home);
        cgroups.try_out(Limits::default())?;
        Ok(cgroups)
    }

    fn of(home: Home) -> Self {
        match home {
            Home::Unified { dir, .. } => Self { version: Version::Two, homes: CONTROLLERS.map(|_| dir.clone()) },
            Home::Legacy(homes) => Self { version: Version::One, homes },
        }
    }

    /// As people read it.
    #[must_use]
    pub fn show(&self) -> String {
        match self.version {
            Version::One => {
                let homes: Vec<String> = self.homes.iter().map(|home| home.display().to_string()).collect();
                format!("version 1, below {}", homes.join(", "))
            }
            Version::Two => format!("version 2, below {}", self.homes[0].display()),
        }
    }

    fn try_out(&self, limits: Limits) -> Result<(), Why> {
        let group = self.make(&format!("try:{}", std::process::id()), limits)?;
        for dir in &group.dirs {
            remove(dir).map_err(Why::refused("cannot remove", dir))?;
        }
        Ok(())
    }

    /// Makes the group of an attempt with these limits; nobody is in it yet. What is half made is removed again.
    ///
    /// # Errors
    /// What was refused.
    pub(super) fn make(&self, marker: &str, limits: Limits) -> Result<Group, Why> {
        let name = name_of(marker);
        let needed: Vec<usize> = match self.version {
            Version::Two => vec![0],
            // With no limit at all one of them has to do.
            Version::One => {
                let wanted = [limits.memory.is_some(), limits.cpu_millis.is_some(), limits.pids.is_some()];
                let wanted: Vec<usize> = (0..wanted.len()).filter(|at| wanted[*at]).collect();
                if wanted.is_empty() { (0..CONTROLLERS.len()).collect() } else { wanted }
            }
        };
        let mut group =
            Group { version: self.version, dirs: Vec::new(), memory: limits.memory.map(|_| self.homes[0].join(&name)) };
        let made = needed.iter().map(|at| self.homes[*at].join(&name)).try_for_each(|dir| {
            fs::create_dir(&dir).map_err(Why::refused("cannot make", &dir))?;
            group.dirs.push(dir);
            Ok(())
        });
        let set = || settings(self.version, limits).into_iter().try_for_each(|setting| setting.put(&self.homes, &name));
        if let Err(why) = made.and_then(|()| set()) {
            group.remove_unused();
            return Err(why);
        }
        Ok(group)
    }

    /// Ends and removes the groups whose markers begin so: what an earlier life of a device left. Returns how many there were.
    pub async fn clear(&self, prefix: &str) -> usize {
        let prefix = name_of(prefix);
        let homes: BTreeSet<&PathBuf> = self.homes.iter().collect();
        let mut count = 0;
        for home in homes {
            for dir in children(home) {
                if dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)) {
                    count += 1;
                    Group { version: self.version, dirs: vec![dir], memory: None }.close().await;
                }
            }
        }
        count
    }
}

/// The group of one attempt.
#[derive(Debug)]
pub(super) struct Group {
    version: Version,
    /// One in version 2; in version 1 one for each controller that is needed.
    dirs: Vec<PathBuf>,
    /// Where its memory is counted, if that is limited.
    memory: Option<PathBuf>,
}

impl Group {
    /// The files into which a process writes itself to be in the group.
    pub(super) fn doors(&self) -> impl Iterator<Item = PathBuf> {
        self.dirs.iter().map(|dir| dir.join("cgroup.procs"))
    }

    /// Whether a process of it was killed because its memory limit was reached, and not because the machine's was.
    pub(super) fn was_killed_for_memory(&self) -> bool {
        let Some(dir) = &self.memory else { return false };
        let read = |file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default();
        match self.version {
            Version::Two => {
                let events = read("memory.events");
                count_of(&events, "oom_kill") > 0 && count_of(&events, "oom") > 0
            }
            Version::One => {
                // The counts of failures stay 0 on some kernels; the most that was used does not.
                let bytes = |file| read(file).trim().parse().unwrap_or(0_u64);
                let was_full = bytes("memory.max_usage_in_bytes") + SLACK >= bytes("memory.limit_in_bytes");
                was_full && count_of(&read("memory.oom_control"), "oom_kill") > 0
            }
        }
    }

    /// Removes it before anybody is in it.
    pub(super) fn remove_unused(&self) {
        for dir in &self.dirs {
            // It is empty, and if it stays it is looked for at the next start.
            let _ = remove(dir);
        }
    }

    /// SIGKILL to whoever is in it.
    pub(super) fn kill(&self) {
        self.dirs.iter().for_each(|dir| kill(dir));
    }

    /// Ends whoever is left in it and removes it. What cannot be ended is left to the next start of the device.
    pub(super) async fn close(&self) {
        let give_up_at = Instant::now() + GIVE_UP;
        let mut pause = LOOK_AGAIN.0;
        loop {
            let left: Vec<&PathBuf> = self.dirs.iter().filter(|dir| remove(dir).is_err()).collect();
            if left.is_empty() {
                return;
            }
            if Instant::now() >= give_up_at {
                tracing::warn!(groups = ?left, "a cgroup of a run that is over cannot be removed");
                return;
            }
            left.iter().for_each(|dir| kill(dir));
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_AGAIN.1);
        }
    }
}

/// One line that makes a limit.
#[derive(Debug, PartialEq, Eq)]
struct Setting {
    controller: usize,
    file: &'static str,
    value: String,
    /// Kernels without the file have nothing that it would limit.
    may_lack: bool,
}

impl Setting {
    fn put(&self, homes: &[PathBuf; 3], name: &str) -> Result<(), Why> {
        let path = homes[self.controller].join(name).join(self.file);
        match fs::write(&path, &self.value) {
            Err(error) if self.may_lack && error.kind() == io::ErrorKind::NotFound => Ok(()),
            // Version 1 refuses more processor time than the group above has, and that holds it anyway.
            Err(error) if self.file == CPU_QUOTA && error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            written => written.map_err(Why::refused("cannot write", &path)),
        }
    }
}

const CPU_QUOTA: &str = "cpu.cfs_quota_us";

/// What is to be written for these limits, in this order.
fn settings(version: Version, limits: Limits) -> Vec<Setting> {
    let mut all = Vec::new();
    let mut set = |controller, file, value: u64, may_lack| {
        all.push(Setting { controller, file, value: value.to_string(), may_lack });
    };
    if let Some(memory) = limits.memory {
        match version {
            // What may be swapped out is no limit; and a program of which a part is gone is no program.
            Version::Two => {
                set(0, "memory.max", memory, false);
                set(0, "memory.swap.max", 0, true);
                set(0, "memory.oom.group", 1, true);
            }
            // With swap never less than without, so in this order.
            Version::One => {
                set(0, "memory.limit_in_bytes", memory, false);
                set(0, "memory.memsw.limit_in_bytes", memory, true);
            }
        }
    }
    if let Some(pids) = limits.pids {
        set(2, "pids.max", u64::from(pids), false);
    }
    if let Some(millis) = limits.cpu_millis {
        let quota = u64::from(millis) * PERIOD / 1_000;
        match version {
            Version::Two => {
                let value = format!("{quota} {PERIOD}");
                all.push(Setting { controller: 1, file: "cpu.max", value, may_lack: false });
            }
            Version::One => {
                set(1, "cpu.cfs_period_us", PERIOD, false);
                set(1, CPU_QUOTA, quota, false);
            }
        }
    }
    all
}

/// Moves everybody in a group into one below it.
fn make_room(home: &Path) -> Result<(), Why> {
    let seat = home.join(SEAT);
    match fs::create_dir(&seat) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Why::refused("cannot make", &seat)(error));
        }
        Ok(()) | Err(_) => {}
    }
    // Who starts a process while it is moved may leave that behind.
    for _ in 0..MOVES {
        let there = pids(home);
        if there.is_empty() {
            return Ok(());
        }
        for pid in there {
            match fs::write(seat.join("cgroup.procs"), pid.to_string()) {
                Err(error) if error.raw_os_error() != Some(rustix::io::Errno::SRCH.raw_os_error()) => {
                    return Err(Why::refused("cannot move a process to", &seat)(error));
                }
                Ok(()) | Err(_) => {}
            }
        }
    }
    Err(Why::Shared(home.to_owned()))
}

fn write(path: &Path, text: &str) -> Result<(), Why> {
    fs::write(path, text).map_err(Why::refused("cannot write", path))
}

/// The name of a group; with a part of a marker, what the names of such groups begin with.
fn name_of(marker: &str) -> String {
    format!("{PREFIX}{}", marker.replace('/', ":"))
}

/// The number behind a word at a line's beginning.
fn count_of(text: &str, word: &str) -> u64 {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(name, _)| *name == word).and_then(|(_, count)| count.trim().parse().ok()).unwrap_or(0)
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn pids(dir: &Path) -> Vec<i32> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// SIGKILL to whoever is in a group or below it.
fn kill(dir: &Path) {
    if fs::write(dir.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    children(dir).iter().for_each(|child| kill(child));
    let seen: Vec<Stat> = pids(dir).into_iter().filter_map(procfs::stat).collect();
    // Who is still there under its number was there when it was looked at, or is not signalled for its other start time.
    let still: BTreeSet<i32> = pids(dir).into_iter().collect();
    for stat in seen.iter().filter(|stat| still.contains(&stat.pid)) {
        tree::signal(stat, Signal::KILL);
    }
}

/// Removes a group and those below it, if nobody is in them.
fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => {
            let below = children(dir);
            if below.is_empty() {
                return Err(error);
            }
            below.iter().try_for_each(|child| remove(child))?;
            fs::remove_dir(dir)
        }
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
