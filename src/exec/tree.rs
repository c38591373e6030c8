//! Whose process is it? The register of attempts in this process, and what belongs to each of them.
//!
//! The process is a child subreaper: whatever a program starts stays below it for as long as it lives, because an orphan
//! becomes our child instead of init's. So a process of an attempt is either below its main process, or below an orphan
//! that we adopted. An orphan has lost its ancestry and is told by what it kept: its environment marker, its process
//! group, the log on its standard output or error, or, if all of that is gone, by being younger than the start of one
//! single attempt that is still open.
//!
//! Promises: the status of a main process is read by its own attendant only, across all executors of this process; an adopted orphan
//! is reaped by its exact pid; a signal reaches the process that was meant, never one that got its pid later. Children that other code
//! starts in our own process group are left alone.
//!
//! `/proc/<pid>/task/*/children` is not used: proc(5) warns that it skips entries while other children end (which is
//! always, here), and many kernels are built without it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions};

use super::MARKER;
use super::procfs::{self, FileId, NewestPid, Stat};

/// What tells the processes of one attempt from all others.
#[derive(Debug)]
pub(super) struct Known {
    id: u64,
    /// The main process, and so its process group.
    pub(super) main: Pid,
    /// Not older than this, in ticks, is any process of it.
    born: u64,
    marker: Option<Box<str>>,
    log: Option<FileId>,
}

/// Every attempt of this process. One register for all executors, because wait and signals know only the process.
struct Register {
    next: u64,
    /// Main processes that were not reaped yet: their pids belong to them.
    mains: BTreeMap<i32, u64>,
    /// Attempts whose end was not told yet.
    open: BTreeMap<u64, Arc<Known>>,
}

static REGISTER: Mutex<Register> = Mutex::new(Register { next: 0, mains: BTreeMap::new(), open: BTreeMap::new() });

fn register() -> MutexGuard<'static, Register> {
    // Every change is a single insert or remove, so a panic elsewhere cannot have left it half done.
    REGISTER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a main process and registers it, as one step: nobody sees the child before the register knows it.
pub(super) fn spawn(
    command: &mut Command,
    marker: Option<&str>,
    log: Option<FileId>,
) -> io::Result<(Child, Arc<Known>)> {
    let marker = marker.map(Box::from);
    let mut register = register();
    let born = procfs::ticks_now();
    let child = command.spawn()?;
    let id = register.next;
    register.next += 1;
    let known = Arc::new(Known { id, main: Pid::from_child(&child), born, marker, log });
    register.mains.insert(known.main.as_raw_pid(), id);
    register.open.insert(id, Arc::clone(&known));
    Ok((child, known))
}

/// Runs `reap`, which waits for the main process, and gives its pid back.
pub(super) fn reap_main<T>(known: &Known, reap: impl FnOnce() -> T) -> T {
    let mut register = register();
    let reaped = reap();
    register.mains.remove(&known.main.as_raw_pid());
    reaped
}

/// Nothing of the attempt is left, or nothing can be done about it: it is no longer anybody's candidate.
pub(super) fn forget(known: &Known) {
    register().open.remove(&known.id);
}

/// Whether a child has ended; it stays to be reaped.
pub(super) fn is_over(main: Pid) -> bool {
    let looked = rustix::process::waitid(
        WaitId::Pid(main),
        WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT,
    );
    // An error can only mean that there is no such child any more.
    !matches!(looked, Ok(None) | Err(Errno::INTR))
}

/// Whether any child has ended and was not reaped yet.
pub(super) fn any_zombie() -> bool {
    let looked =
        rustix::process::waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT);
    matches!(looked, Ok(Some(_)))
}

/// The cheap proof that nothing of an attempt is left once its main process was reaped: its process group is empty, and no
/// process made since its start is alive and could be its own. `false` only means that one has to look closer.
///
/// The price is two system calls, and a few per process that was started since.
///
/// `adopts`: orphans become our children, so there are none where there is no child at all.
pub(super) fn is_gone(known: &Known, newest: Option<&NewestPid>, adopts: bool) -> bool {
    /// Beyond this many a look at all processes costs about the same.
    const FEW: i32 = 64;
    let register = register();
    let main = known.main.as_raw_pid();
    // Only here can the group be waited for by its number: its main process is reaped, and while the register is held no
    // other main process gets that number.
    if !register.mains.contains_key(&main) && !is_group_empty(known.main) {
        while matches!(rustix::process::waitpgid(known.main, WaitOptions::NOHANG), Ok(Some(_))) {}
        if !is_group_empty(known.main) {
            return false;
        }
    }
    if adopts && has_no_child() {
        return true;
    }
    let Some(newest) = newest else { return false };
    let own = (rustix::process::getpid().as_raw_pid(), rustix::process::getpgrp().as_raw_pid());
    let mut checked = main;
    loop {
        let Some(last) = newest.read() else { return false };
        // A smaller number: the pids have begun anew.
        if last < main || last - main > FEW {
            return false;
        }
        // Nothing new came while the others were looked at: so nobody has just passed on its life and died.
        if last == checked {
            return true;
        }
        if !(checked + 1..=last).all(|pid| register.cannot_be_an_orphan(pid, own)) {
            return false;
        }
        checked = last;
    }
}

/// Returns whether this process has no child, living or ended.
fn has_no_child() -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    matches!(rustix::process::waitid(WaitId::All, options), Err(Errno::CHILD))
}

fn is_group_empty(group: Pid) -> bool {
    rustix::process::test_kill_process_group(group) == Err(Errno::SRCH)
}

/// A process that may belong to an attempt.
#[derive(Debug)]
struct Suspect {
    stat: Stat,
    origin: Origin,
}

#[derive(Debug)]
enum Origin {
    /// Below the main process of this attempt.
    Below(u64),
    /// Below a process that we adopted, or that ended while we looked.
    Adopted { marker: Option<String>, outputs: [Option<FileId>; 2], is_ours: bool },
}

/// One look at all processes: who lives below this process.
#[derive(Debug)]
pub(super) struct Survey {
    suspects: Vec<Suspect>,
    /// How many ended orphans were reaped on the way.
    pub(super) reaped: usize,
    /// A process ended before it was known whose it was: it may have started another just behind the look.
    pub(super) is_blurred: bool,
}

impl Survey {
    /// Looks now, and reaps every adopted orphan that has ended.
    ///
    /// `adopts`: orphans become our children. Where they do not, the marker alone finds them, so everybody's is read.
    pub(super) fn take(adopts: bool) -> Self {
        let (all, is_whole) = procfs::processes();
        let all: BTreeMap<i32, Stat> = all.into_iter().map(|stat| (stat.pid, stat)).collect();
        let own = rustix::process::getpid().as_raw_pid();
        let own_group = rustix::process::getpgrp().as_raw_pid();
        // Taken after the look: a main process that was being started meanwhile is in the register by now.
        let (mains, reaped) = {
            let register = register();
            (register.mains.clone(), reap_orphans(&all, &register.mains, own, own_group))
        };
        let mut suspects = Vec::new();
        let mut is_blurred = !is_whole;
        for stat in all.values().filter(|stat| !stat.is_dead && stat.pid != own && !mains.contains_key(&stat.pid)) {
            let is_ours = match ancestry(stat, &all, &mains, own) {
                Ancestry::Main(id) => {
                    suspects.push(Suspect { stat: *stat, origin: Origin::Below(id) });
                    continue;
                }
                // A child in our own group was started by other code of this process.
                Ancestry::Us { root_group } => root_group != own_group,
                Ancestry::Broken => false,
                Ancestry::Foreign if adopts => continue,
                Ancestry::Foreign => false,
            };
            let marker = procfs::variable(stat.pid, MARKER);
            is_blurred |= marker.is_none() && !is_alive(stat);
            if is_ours || marker.is_some() {
                let outputs = if is_ours { procfs::outputs(stat.pid) } else { [None; 2] };
                suspects.push(Suspect { stat: *stat, origin: Origin::Adopted { marker, outputs, is_ours } });
            }
        }
        Self { suspects, reaped, is_blurred }
    }

    /// The living processes of an attempt but its main process. `before`: those that were its own in an earlier survey,
    /// which stay so after their ancestry is gone.
    pub(super) fn of(&self, known: &Known, before: &BTreeSet<(i32, u64)>) -> Vec<Stat> {
        let register = register();
        let group = known.main.as_raw_pid();
        let is_own = |suspect: &&Suspect| {
            let stat = &suspect.stat;
            if before.contains(&(stat.pid, stat.start)) {
                return true;
            }
            match &suspect.origin {
                Origin::Below(id) => *id == known.id,
                Origin::Adopted { .. } if stat.start < known.born => false,
                Origin::Adopted { marker, outputs, is_ours } => {
                    let of_marker = |open: &Known| marker.is_some() && marker.as_deref() == open.marker.as_deref();
                    if of_marker(known) {
                        return true;
                    }
                    if !is_ours || register.open.values().any(|open| of_marker(open)) {
                        return false;
                    }
                    let has_group = stat.pgrp == group && register.mains.get(&group).is_none_or(|id| *id == known.id);
                    let has_log = known.log.is_some() && outputs.contains(&known.log);
                    has_group || has_log || register.is_only_candidate(known, stat, outputs)
                }
            }
        };
        self.suspects.iter().filter(is_own).map(|suspect| suspect.stat).collect()
    }
}

impl Register {
    /// Whether a process is dead, or visibly another attempt's, or a thread or child of ours that no program started.
    fn cannot_be_an_orphan(&self, raw: i32, (own, own_group): (i32, i32)) -> bool {
        let Some(pid) = Pid::from_raw(raw) else { return true };
        if self.mains.contains_key(&raw) || rustix::process::test_kill_process(pid) == Err(Errno::SRCH) {
            return true;
        }
        procfs::stat(raw).is_none_or(|seen| {
            seen.is_dead
                || self.mains.contains_key(&seen.ppid)
                || self.mains.contains_key(&seen.pgrp)
                || (seen.pgrp == own_group && seen.ppid != own)
        })
    }

    /// Whether nobody but `known` can have started an orphan that kept no sign of whose it is.
    fn is_only_candidate(&self, known: &Known, orphan: &Stat, outputs: &[Option<FileId>; 2]) -> bool {
        let can_be_of = |open: &Known| open.born <= orphan.start;
        let is_of_other = |open: &Known| {
            open.id != known.id && (open.log.is_some() && outputs.contains(&open.log) || can_be_of(open))
        };
        can_be_of(known) && !self.open.values().any(|open| is_of_other(open))
    }
}

enum Ancestry {
    Main(u64),
    /// By an adopted child of this process, whose process group is given.
    Us {
        root_group: i32,
    },
    /// An ancestor ended while we looked.
    Broken,
    Foreign,
}

fn ancestry(stat: &Stat, all: &BTreeMap<i32, Stat>, mains: &BTreeMap<i32, u64>, own: i32) -> Ancestry {
    let mut at = stat;
    // Parents read at different moments could form a circle; no real chain is that long.
    for _ in 0..1_000 {
        if let Some(id) = mains.get(&at.ppid) {
            return Ancestry::Main(*id);
        }
        if at.ppid == own {
            return Ancestry::Us { root_group: at.pgrp };
        }
        if at.ppid == 0 {
            return Ancestry::Foreign;
        }
        match all.get(&at.ppid) {
            Some(parent) => at = parent,
            None => return Ancestry::Broken,
        }
    }
    Ancestry::Broken
}

fn reap_orphans(all: &BTreeMap<i32, Stat>, mains: &BTreeMap<i32, u64>, own: i32, own_group: i32) -> usize {
    let is_orphan =
        |stat: &&Stat| stat.is_dead && stat.ppid == own && stat.pgrp != own_group && !mains.contains_key(&stat.pid);
    let orphans = all.values().filter(is_orphan).filter_map(|stat| Pid::from_raw(stat.pid));
    orphans
        .filter(|&pid| {
            matches!(
                rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG),
                Ok(Some(_))
            )
        })
        .count()
}

/// What became of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Signalled {
    /// It was sent.
    Sent,
    /// The process has ended.
    Gone,
    /// It belongs to another user, whom we may not signal.
    Refused,
}

/// Sends a signal to exactly this process.
pub(super) fn signal(target: &Stat, signal: Signal) -> Signalled {
    let Some(pid) = Pid::from_raw(target.pid) else {
        return Signalled::Gone;
    };
    // The order makes it safe: what is opened first cannot be replaced after its start time was found to be right.
    let opened = rustix::process::pidfd_open(pid, PidfdFlags::empty());
    if opened.as_ref().err() == Some(&Errno::SRCH) || !is_alive(target) {
        return Signalled::Gone;
    }
    let sent = match opened {
        Ok(pidfd) => rustix::process::pidfd_send_signal(pidfd, signal),
        // No descriptor left, or an old kernel: then the number has to do, checked a moment ago.
        Err(_) => rustix::process::kill_process(pid, signal),
    };
    match sent {
        Ok(()) => Signalled::Sent,
        Err(Errno::SRCH) => Signalled::Gone,
        Err(_) => Signalled::Refused,
    }
}

/// Whether exactly this process lives.
pub(super) fn is_alive(target: &Stat) -> bool {
    procfs::stat(target.pid).is_some_and(|now| now.start == target.start && !now.is_dead)
}

/// Kills the process groups of these processes of one attempt, so that a program that forks faster than it is looked for cannot
/// get away: the kernel lets no member of a group fork past a signal to it.
pub(super) fn kill_groups(known: &Known, members: &[Stat]) {
    let own = rustix::process::getpgrp().as_raw_pid();
    let groups: BTreeSet<i32> = members.iter().map(|stat| stat.pgrp).collect();
    for group in groups.into_iter().filter(|&group| group != own) {
        let register = register();
        let is_others = register.mains.get(&group).is_some_and(|id| *id != known.id);
        // A member that is alive right now keeps the number from being used again.
        let is_held = members.iter().any(|member| {
            member.pgrp == group
                && procfs::stat(member.pid).is_some_and(|now| now.start == member.start && now.pgrp == group)
        });
        if let Some(group) = Pid::from_raw(group).filter(|_| is_held && !is_others) {
            // A member that may not be signalled was told of by `signal`.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_survey_leaves_the_status_of_a_main_process_to_its_attendant() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exit 7"]).process_group(0);
        let (mut child, known) = spawn(&mut command, None, None).unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        while !is_over(known.main) {
            assert!(Instant::now() < until);
            std::thread::yield_now();
        }
        Survey::take(true);
        assert!(any_zombie() && !is_gone(&known, None, true), "it is still there");
        assert_eq!(reap_main(&known, || child.wait()).unwrap().code(), Some(7));
        forget(&known);
    }

    #[test]
    fn a_signal_needs_the_start_time_to_fit() {
        let mut child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let seen = procfs::stat(child.id().cast_signed()).unwrap();
        let earlier = Stat { start: seen.start - 1, ..seen };
        assert_eq!(signal(&earlier, Signal::KILL), Signalled::Gone, "another process of the same pid");
        assert!(is_alive(&seen) && child.try_wait().unwrap().is_none());
        assert_eq!(signal(&seen, Signal::KILL), Signalled::Sent);
        child.wait().unwrap();
        assert_eq!(signal(&seen, Signal::KILL), Signalled::Gone);
    }
}
