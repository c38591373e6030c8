//! Two devices with one id: each of them seems well, and what one writes the other takes for its own.
//!
//! Seen from outside, the heartbeat of such an id shows sessions that take turns, or it moves while nobody holds the id's lock.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{Finding, Verdict, pause, some_of};
use crate::model::device::Beat;
use crate::model::ids::DeviceId;
use crate::volume::disk::Disk;
use crate::volume::heartbeat;
use crate::volume::layout::Layout;
use crate::volume::os::{OsDisk, boot, is_network};

/// How long beats are watched at most: more than two of the usual heartbeats.
const WATCHED: Duration = Duration::from_millis(4_500);
/// How often is looked.
const STEP: Duration = Duration::from_millis(50);
/// So many moves of a beat are more than two heartbeats.
const MOVES: usize = 3;

/// What was seen of one id.
#[derive(Debug)]
struct Seen {
    /// Its beats, each as it was first seen.
    beats: Vec<Beat>,
    /// How often its lock was there to take although its beat had just moved.
    unheld: usize,
}

/// Watches the heartbeats of all who may live. `now` is the volume's time.
pub(super) fn look(layout: &Layout, now: DateTime<Utc>) -> Finding {
    let disk = OsDisk::new();
    let mut seen = match living(&disk, layout, now) {
        Ok(seen) => seen,
        Err(error) => return error.into(),
    };
    if seen.is_empty() {
        return Finding::ok("no device beats: there is nothing to look at");
    }
    let locks_reach = !is_network(&layout.common);
    let until = boot() + WATCHED;
    while boot() < until && seen.values().any(|seen| seen.beats.len() <= MOVES) {
        pause(STEP);
        for (device, seen) in &mut seen {
            let Ok(Some(beat)) = heartbeat::read(&disk, layout, device) else { continue };
            let is_new = seen.beats.last().is_none_or(|last| (&last.session, last.beat) != (&beat.session, beat.beat));
            if is_new {
                seen.unheld += usize::from(locks_reach && !beat.left && !holds_lock(&disk, layout, device));
                seen.beats.push(beat);
            }
        }
    }
    judge(&seen)
}

/// Who has beaten within its lease and has not left.
fn living(
    disk: &dyn Disk,
    layout: &Layout,
    now: DateTime<Utc>,
) -> Result<BTreeMap<DeviceId, Seen>, crate::volume::Error> {
    let beats = heartbeat::read_all(disk, layout)?.beats;
    let is_fresh = |beat: &Beat| {
        let age = disk.stat(&layout.heartbeat(&beat.device)).map(|meta| now - meta.changed);
        age.is_ok_and(|age| age.to_std().map_or(true, |age| age < Duration::from_millis(beat.lease_ms)))
    };
    let living = beats.into_iter().filter(|beat| !beat.left && is_fresh(beat));
    Ok(living.map(|beat| (beat.device.clone(), Seen { beats: vec![beat], unheld: 0 })).collect())
}

/// A lock file that is missing is held by nobody, and is not made.
fn holds_lock(disk: &dyn Disk, layout: &Layout, device: &DeviceId) -> bool {
    disk.stat(&layout.device_lock(device)).is_ok() && heartbeat::lock(disk, layout, device).is_ok_and(|it| it.is_none())
}

fn judge(seen: &BTreeMap<DeviceId, Seen>) -> Finding {
    let (mut verdict, mut found) = (Verdict::Ok, Vec::new());
    for (device, Seen { beats, unheld }) in seen {
        let turns = beats.windows(2).filter(|pair| pair[0].session != pair[1].session).count();
        let who = |beat: &Beat| format!("process {} on host {}", beat.pid, beat.host);
        let (said, how_bad) = match (turns, *unheld, beats.first().zip(beats.last())) {
            (2.., _, Some((first, last))) => {
                let other = beats.iter().rfind(|beat| beat.session != last.session).unwrap_or(first);
                (format!("two devices go by the id {device}: {} and {}", who(other), who(last)), Verdict::Error)
            }
            (1, _, Some((first, last))) => {
                (format!("{device} was {}, and is now {}", who(first), who(last)), Verdict::Warning)
            }
            (_, 2.., Some((_, last))) => {
                (format!("{device} beats, {}, and nobody holds Devices/{device}.lock", who(last)), Verdict::Error)
            }
            (_, _, _) => continue,
        };
        verdict = verdict.max(how_bad);
        found.push(said);
    }
    let mend = match verdict {
        Verdict::Ok => {
            let count =
                if seen.len() == 1 { "1 device beats".to_owned() } else { format!("{} devices beat", seen.len()) };
            return Finding::ok(format!("{count}, each in one session"));
        }
        Verdict::Warning => "if it was not restarted just now, two devices take the id from each other: look again",
        Verdict::Error => {
            "give each device a --device-id (DEVICE_ID) of its own; start one anew whose lock file was deleted"
        }
    };
    Finding { verdict, found: some_of(&found), mend: Some(mend.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(session: u64, count: u64) -> Beat {
        let pid = u32::try_from(session).unwrap();
        Beat { host: format!("h{session}"), pid, ..Beat::example("d", session, count) }
    }

    fn verdict(sessions: &[u64], unheld: usize) -> (Verdict, String) {
        let beats = sessions.iter().zip(1..).map(|(session, count)| beat(*session, count)).collect();
        let finding = judge(&BTreeMap::from([(DeviceId::new("d").unwrap(), Seen { beats, unheld })]));
        (finding.verdict, finding.found)
    }

    #[test]
    fn sessions_that_take_turns_are_two_devices_and_a_restart_is_one() {
        assert_eq!(verdict(&[1, 1, 1, 1], 0).0, Verdict::Ok);
        assert_eq!(verdict(&[1], 0).0, Verdict::Ok, "it does not move: it may be dead");
        assert_eq!(verdict(&[1, 1, 2, 2], 0).0, Verdict::Warning);
        let (found, said) = verdict(&[1, 2, 1], 0);
        assert_eq!(found, Verdict::Error);
        assert!(said.contains("process 2 on host h2") && said.contains("process 1 on host h1"), "{said}");
    }

    #[test]
    fn who_beats_without_its_lock_is_told_once_it_is_sure() {
        assert_eq!(verdict(&[1, 1], 1).0, Verdict::Ok, "it may just have been killed");
        let (found, said) = verdict(&[1, 1, 1], 2);
        assert_eq!(found, Verdict::Error);
        assert!(said.contains("nobody holds Devices/d.lock"), "{said}");
    }
}
