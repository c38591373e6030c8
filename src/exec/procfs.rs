//! What `/proc` says about processes. Read-only, and the only file of this room that opens files there.
//!
//! A process can end between any two reads, so "not there" is an answer and never an error. A pid alone names nobody for
//! long: whoever is meant is named by pid *and* start time, which no two processes share.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use rustix::time::{ClockId, clock_gettime};

use crate::model::device::Gpu;

/// Start times are counted in these, whatever the kernel's own tick is: `USER_HZ`, 100 in the ABI of every architecture in use.
const TICKS_PER_SECOND: u64 = 100;
/// The bit of a process's flags that makes it a thread of the kernel.
const PF_KTHREAD: u32 = 0x0020_0000;

/// One line of `/proc/<pid>/stat`, as far as it is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) pid: i32,
    pub(super) ppid: i32,
    pub(super) pgrp: i32,
    /// Ticks from boot to its start.
    pub(super) start: u64,
    /// It ended, and only its parent's wait is outstanding.
    pub(super) is_dead: bool,
    /// A thread of the kernel: no program, no environment.
    pub(super) is_kernel: bool,
}

/// A file, whatever its name: device and inode.
pub(super) type FileId = (u64, u64);

/// Every process of this pid namespace but the kernel's own, and whether none can be missing.
///
/// The kernel makes the list of pids first, so a process that starts another and ends before it is read would hide both: the list is
/// made again until it shows no pid that was not read. Then whatever lives has been read while it lived.
pub(super) fn processes() -> (Vec<Stat>, bool) {
    /// More often only where processes come faster than they can be read.
    const LISTS: u32 = 8;
    let mut stats = Vec::new();
    let mut read = BTreeSet::new();
    for _ in 0..LISTS {
        let Ok(entries) = fs::read_dir("/proc") else { return (stats, false) };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let new: Vec<i32> = pids.filter(|pid| read.insert(*pid)).collect();
        if new.is_empty() {
            return (stats, true);
        }
        stats.extend(new.into_iter().filter_map(stat).filter(|stat| !stat.is_kernel));
    }
    (stats, false)
}

/// One process; `None`: there is none of that pid.
pub(super) fn stat(pid: i32) -> Option<Stat> {
    let mut buffer = [0; 1024];
    let count = File::open(format!("/proc/{pid}/stat")).ok()?.read(&mut buffer).ok()?;
    parse_stat(&buffer[..count])
}

fn parse_stat(line: &[u8]) -> Option<Stat> {
    // The name stands in parentheses and may itself contain any of `) ` and digits: what follows the last one counts.
    let name_end = line.iter().rposition(|&b| b == b')')?;
    let pid = std::str::from_utf8(&line[..line.iter().position(|&b| b == b' ')?]).ok()?.parse().ok()?;
    let mut fields = std::str::from_utf8(&line[name_end + 1..]).ok()?.split_ascii_whitespace();
    let is_dead = matches!(fields.next()?, "Z" | "X" | "x");
    let ppid = fields.next()?.parse().ok()?;
    let pgrp = fields.next()?.parse().ok()?;
    // By the count of proc(5) the group was field 5; flags are 9 and the start 22.
    let flags: u32 = fields.nth(9 - 6)?.parse().ok()?;
    let start = fields.nth(22 - 10)?.parse().ok()?;
    Some(Stat { pid, ppid, pgrp, start, is_dead, is_kernel: flags & PF_KTHREAD != 0 })
}

/// Now, in the ticks of [`Stat::start`].
pub(super) fn ticks_now() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let (seconds, nanos) = (u64::try_from(now.tv_sec).unwrap_or(0), u64::try_from(now.tv_nsec).unwrap_or(0));
    seconds * TICKS_PER_SECOND + nanos / (1_000_000_000 / TICKS_PER_SECOND)
}

/// The value of an environment variable of a process, as it was when its program was started. `None`: it has none, or
/// it may not be read.
pub(super) fn variable(pid: i32, name: &str) -> Option<String> {
    let path = format!("/proc/{pid}/environ");
    let mut environ = fs::read(&path).ok()?;
    // In the middle of an exec a process shows no environment at all: it is looked at again before that is believed.
    for _ in 0..2 {
        if !environ.is_empty() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
        environ = fs::read(&path).ok()?;
    }
    find_variable(&environ, name)
}

fn find_variable(environ: &[u8], name: &str) -> Option<String> {
    environ
        .split(|&b| b == 0)
        .find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
        .map(|value| String::from_utf8_lossy(value).into_owned())
}

/// What standard output and standard error of a process are open on.
pub(super) fn outputs(pid: i32) -> [Option<FileId>; 2] {
    [1, 2].map(|fd| fs::metadata(format!("/proc/{pid}/fd/{fd}")).ok().map(|file| (file.dev(), file.ino())))
}

/// A file that holds one number.
pub(super) fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// All memory and what of it can be had, bytes.
pub(super) fn memory() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
    };
    Some((of("MemTotal:")?, of("MemAvailable:")?))
}

/// The busy and all ticks of the processors since the start of the machine.
pub(super) fn processor_ticks() -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<u64> =
        text.lines().next()?.split_whitespace().skip(1).take(8).map_while(|tick| tick.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal (proc(5)).
    let idle = ticks.get(3)? + ticks.get(4)?;
    let all: u64 = ticks.iter().sum();
    Some((all - idle, all))
}

/// What a process and all it has started have in use.
#[derive(Debug, Default)]
pub(super) struct Used {
    pub(super) processes: u32,
    pub(super) memory_bytes: u64,
    pub(super) cpu_ms: u64,
}

/// Measures a process and all it has started, `most` of them; `None`: it is gone.
pub(super) fn used_by_tree(pid: u32, most: usize) -> Option<Used> {
    let page = rustix::param::page_size() as u64;
    let tick_ms = 1_000 / rustix::param::clock_ticks_per_second().max(1);
    let mut used = Used::default();
    let mut open = vec![pid];
    let mut seen = 0;
    while let Some(pid) = open.pop().filter(|_| seen < most) {
        seen += 1;
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        // The name, in brackets, may hold anything.
        let Some((_, rest)) = text.rsplit_once(')') else { continue };
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        used.processes += 1;
        // Behind the name: utime and stime are the 12th and 13th field, rss the 22nd (proc(5)).
        used.cpu_ms += (number(11) + number(12)) * tick_ms;
        used.memory_bytes += number(21) * page;
        // Children of the first thread; what other threads start is left out.
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        open.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
    }
    (used.processes > 0).then_some(used)
}

fn folders(path: &str) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    all.sort();
    all
}

/// NVIDIA's graphics processors: their driver tells no more than their names by files.
pub(super) fn nvidia_gpus() -> Vec<Gpu> {
    let named = folders("/proc/driver/nvidia/gpus").into_iter().filter_map(|folder| {
        let text = fs::read_to_string(folder.join("information")).ok()?;
        let model = text.lines().find_map(|line| line.strip_prefix("Model:"))?;
        Some(Gpu { name: model.trim().to_owned(), ..Gpu::default() })
    });
    named.collect()
}

/// The graphics processors of others, as far as their drivers tell of them by files.
pub(super) fn other_gpus() -> Vec<Gpu> {
    let others = folders("/sys/class/drm").into_iter().filter_map(|folder| {
        let device = folder.join("device");
        let number = |name: &str| fs::read_to_string(device.join(name)).ok()?.trim().parse::<u64>().ok();
        let total = number("mem_info_vram_total")?;
        // A card has a folder for each of its outputs too.
        let name = folder.file_name()?.to_str().filter(|name| name.starts_with("card") && !name.contains('-'))?;
        Some(Gpu {
            name: name.to_owned(),
            busy_percent: number("gpu_busy_percent").map(|percent| percent as f64),
            memory_bytes: Some(total),
            memory_used_bytes: number("mem_info_vram_used"),
        })
    });
    others.collect()
}

/// The words of a short file.
pub(super) fn words(path: &str) -> Option<Vec<String>> {
    Some(fs::read_to_string(path).ok()?.split_whitespace().map(str::to_owned).collect())
}

/// The file event instances of this user's processes and the watches in them, as far as they may be looked at.
pub(super) fn inotify_of_this_user() -> (u64, u64) {
    let uid = rustix::process::getuid().as_raw();
    let is_own = |pid: i32| fs::metadata(format!("/proc/{pid}")).is_ok_and(|folder| folder.uid() == uid);
    let (mut instances, mut watches) = (0, 0);
    for pid in processes().0.iter().map(|stat| stat.pid).filter(|pid| is_own(*pid)) {
        for fd in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            if !fs::read_link(fd.path()).is_ok_and(|target| target.as_os_str() == "anon_inode:inotify") {
                continue;
            }
            instances += 1;
            let info = format!("/proc/{pid}/fdinfo/{}", fd.file_name().to_string_lossy());
            let text = fs::read_to_string(info).unwrap_or_default();
            watches += text.lines().filter(|line| line.starts_with("inotify ")).count() as u64;
        }
    }
    (instances, watches)
}

/// The newest pid that was handed out: by it, that no process was made since some moment can be known at the price of
/// one read.
#[derive(Debug)]
pub(super) struct NewestPid(File);

impl NewestPid {
    /// `None` where `/proc/loadavg` is not the kernel's own (lxcfs puts one of its making there, which lags behind).
    pub(super) fn open() -> Option<Self> {
        const PROC_SUPER_MAGIC: u64 = 0x9fa0;
        let file = File::open("/proc/loadavg").ok()?;
        let kind = rustix::fs::fstatfs(&file).ok()?.f_type;
        (u64::try_from(kind) == Ok(PROC_SUPER_MAGIC)).then_some(Self(file))
    }

    /// The newest pid (or thread id: they share their numbers).
    pub(super) fn read(&self) -> Option<i32> {
        let mut buffer = [0; 128];
        let count = self.0.read_at(&mut buffer, 0).ok()?;
        std::str::from_utf8(&buffer[..count]).ok()?.split_ascii_whitespace().nth(4)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_whatever_the_name() {
        let tail = "S 7 12 12 0 -1 4194560 146 0 0 0 0 0 0 0 20 0 1 0 98765 2703360 128 18446744073709551615";
        for name in ["sleep", "a b", ") R 1 1", "x)y", "", "99 (z) S 1"] {
            let line = format!("42 ({name}) {tail}\n");
            let expected = Stat { pid: 42, ppid: 7, pgrp: 12, start: 98_765, is_dead: false, is_kernel: false };
            assert_eq!(parse_stat(line.as_bytes()), Some(expected), "{name:?}");
        }
        let dead = format!("42 (x) {}", tail.replacen('S', "Z", 1));
        assert!(parse_stat(dead.as_bytes()).is_some_and(|stat| stat.is_dead));
        for broken in ["", "42", "42 (x", "42 (x)", "42 (x) S 7", "x (x) S 7 12"] {
            assert_eq!(parse_stat(broken.as_bytes()), None, "{broken:?}");
        }
    }

    #[test]
    fn a_variable_is_found_by_its_whole_name() {
        let environ = b"XA=1\0A_B=2\0A\0A=x=y\0A=second\0";
        assert_eq!(find_variable(environ, "A").as_deref(), Some("x=y"));
        assert_eq!(find_variable(environ, "A_B").as_deref(), Some("2"));
        assert_eq!(find_variable(environ, "B"), None);
        assert_eq!(find_variable(b"", "A"), None);
    }

    #[test]
    fn this_process_is_seen() {
        let own = i32::try_from(std::process::id()).unwrap();
        let seen = stat(own).unwrap();
        assert!(!seen.is_dead && seen.pid == own && seen.start <= ticks_now());
        assert!(ticks_now() - seen.start < 24 * 3600 * TICKS_PER_SECOND, "start and now are on one clock");
        assert!(processes().0.contains(&seen));
        assert_eq!(variable(own, "PATH"), std::env::var("PATH").ok());
        assert_eq!(stat(i32::MAX), None);
    }

    #[test]
    fn a_new_process_moves_the_newest_pid() {
        let newest = NewestPid::open().unwrap();
        let before = newest.read().unwrap();
        std::thread::spawn(|| {}).join().unwrap();
        assert_ne!(newest.read().unwrap(), before);
    }
}
