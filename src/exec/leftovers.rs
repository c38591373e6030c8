//! Ends what an earlier session of a device, or a lost attempt of it, left running on this machine.
//!
//! Nothing is known of such processes but the marker in their environment, so all of the machine's are looked at. Promises: never this
//! process, its ancestors, its own process group or anything below it; never a process that got the pid of one that was
//! meant; and it comes to an end, also when a process cannot be killed.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::MARKER;
use super::procfs::{self, Stat};
use super::tree::{self, Signalled};

/// How long after SIGKILL a process may still be there (stuck in the kernel, on a dead mount) before it is given up.
const GIVE_UP: Duration = Duration::from_secs(5);

/// Ends every process on this machine whose marker begins with `prefix` (`<volume id>/<device>/`), and what is below it: SIGTERM,
/// after `grace` SIGKILL. Those whose marker begins with `spare` are left alone: the prefix of the current session; empty: none.
/// Returns how many were ended.
///
/// Processes of users whom we may not signal, and processes whose environment we may not read, are passed over. It reads `/proc` on
/// the caller's thread, some milliseconds at a time: it is meant for the start of a device, before it has runs.
pub async fn kill_leftovers(prefix: &str, spare: &str, grace: Duration) -> usize {
    let is_meant = |marker: &str| marker.starts_with(prefix) && (spare.is_empty() || !marker.starts_with(spare));
    end_all(is_meant, grace).await
}

/// The same for one attempt: every process that carries exactly this marker, and what is below it.
pub async fn kill_lease(marker: &str, grace: Duration) -> usize {
    end_all(|found| found == marker, grace).await
}

async fn end_all(is_meant: impl Fn(&str) -> bool, grace: Duration) -> usize {
    let kill_at = Instant::now().checked_add(grace);
    let give_up_at = kill_at.and_then(|at| at.checked_add(GIVE_UP));
    let is_past = |at: Option<Instant>| at.is_some_and(|at| at <= Instant::now());
    let mut meant: BTreeMap<(i32, u64), Signalled> = BTreeMap::new();
    let mut pause = Duration::from_millis(2);
    let mut is_sure = true;
    loop {
        let is_kill = is_past(kill_at);
        let mut living = find(&is_meant, &meant);
        living.retain(|stat| meant.get(&(stat.pid, stat.start)) != Some(&Signalled::Refused));
        for stat in &living {
            let told = meant.entry((stat.pid, stat.start));
            if is_kill || matches!(told, Entry::Vacant(_)) {
                let signal = if is_kill { Signal::KILL } else { Signal::TERM };
                let signalled = tree::signal(stat, signal);
                // One that was gone at its second signal ended by the first.
                told.and_modify(|how| *how = (*how).min(signalled)).or_insert(signalled);
            }
        }
        // What was there may have forked just behind the look: then it takes two empty ones.
        if living.is_empty() && is_sure || is_past(give_up_at) {
            break;
        }
        is_sure = living.is_empty();
        let until_kill = kill_at.filter(|_| !is_kill).map(|at| at.saturating_duration_since(Instant::now()));
        tokio::time::sleep(until_kill.map_or(pause, |left| left.min(pause))).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    let mut ended = 0;
    for (&(pid, start), how) in &meant {
        let is_left = procfs::stat(pid).is_some_and(|now| now.start == start && !now.is_dead);
        if is_left {
            tracing::warn!(pid, ?how, "a process of an earlier session cannot be ended");
        }
        ended += usize::from(!is_left && *how == Signalled::Sent);
    }
    ended
}

/// The living processes that are meant, those that were meant before, and what is below any of them.
fn find(is_meant: &impl Fn(&str) -> bool, before: &BTreeMap<(i32, u64), Signalled>) -> Vec<Stat> {
    let all: BTreeMap<i32, Stat> = procfs::processes().0.into_iter().map(|stat| (stat.pid, stat)).collect();
    let own = rustix::process::getpid().as_raw_pid();
    let own_group = rustix::process::getpgrp().as_raw_pid();
    let parents = |stat: &Stat| {
        std::iter::successors(all.get(&stat.ppid), |parent| all.get(&parent.ppid)).take(1_000).map(|parent| parent.pid)
    };
    let above: BTreeSet<i32> = all.get(&own).into_iter().flat_map(parents).collect();
    let may_be = |stat: &&Stat| {
        !stat.is_dead
            && stat.pid != own
            && stat.pgrp != own_group
            && !above.contains(&stat.pid)
            && parents(stat).all(|pid| pid != own)
    };
    let candidates: Vec<Stat> = all.values().filter(may_be).copied().collect();
    let roots: BTreeSet<i32> = candidates
        .iter()
        .filter(|stat| {
            before.contains_key(&(stat.pid, stat.start))
                || procfs::variable(stat.pid, MARKER).is_some_and(|marker| is_meant(&marker))
        })
        .map(|stat| stat.pid)
        .collect();
    candidates
        .into_iter()
        .filter(|stat| roots.contains(&stat.pid) || parents(stat).any(|pid| roots.contains(&pid)))
        .collect()
}
