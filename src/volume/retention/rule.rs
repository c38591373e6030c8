//! The selecting rule, pure: which of the files that a round meets stay, may go for room, or have been kept long enough.
//!
//! A file's age is counted from its last change (`mtime`), not from the date of its folder: a run may wait for weeks, and what
//! it leaves is as young as its end. Not from `ctime` either, which a backup by hard links or a change of owner renews. A
//! trigger brings the date that its author gave it, and counts as no older than its drop, which its run's id tells.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};

use crate::model::config::KEPT_AT_LEAST;
use crate::model::ids::RunId;
use crate::volume::audit::part_over;
use crate::volume::layout::is_hidden;
use crate::volume::{processed, results};

/// What a folder holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// `Results/<date>/`.
    Results,
    /// `Logs/<date>/`.
    Logs,
    /// `Logs/`: the orchestrators' own logs, and parts of audit logs that are over.
    OwnLogs,
    /// `TriggersProcessed/<date>/`.
    Processed,
    /// `TriggersProcessed/rejected/<date>/`.
    Rejected,
}

/// What becomes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is none of the files that are kept for a time.
    Foreign,
    /// It stays, however little room there is.
    Stays,
    /// It stays unless room is needed; since when it is kept.
    MayGo(DateTime<Utc>),
    /// It was kept long enough.
    Goes,
}

/// What is judged by.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The volume's time when the round began.
    pub now: DateTime<Utc>,
    /// How long files are kept.
    pub keep: Duration,
    /// Runs that stay, the open ones and the last one of each job, and from which attempt on their files do.
    pub stays: BTreeMap<RunId, u32>,
    /// Runs of which the results stay: a key counts for a day after them.
    pub keyed: BTreeSet<RunId>,
}

impl Rule {
    /// Judges a file by where it lies, its name and its last change.
    #[must_use]
    pub fn judge(&self, place: Place, name: &OsStr, modified: DateTime<Utc>) -> Verdict {
        if is_hidden(name) {
            return Verdict::Foreign;
        }
        let run = run_of(place, name);
        let is_keyed = |run: &RunId| place == Place::Results && self.keyed.contains(run);
        let attempt = attempt_of(name);
        let stays =
            |run: &RunId| self.stays.get(run).is_some_and(|from| attempt.is_none_or(|attempt| attempt >= *from));
        if run.as_ref().is_some_and(|run| stays(run) || is_keyed(run)) {
            return Verdict::Stays;
        }
        let since = match place {
            Place::Results | Place::Logs => modified,
            Place::Processed | Place::Rejected => run.map_or(modified, |run| run.time().max(modified)),
            // Who changed what stays for its whole time: nobody can drown it in other logs.
            Place::OwnLogs if is_audit(name) => {
                let is_old = (self.now - modified).to_std().is_ok_and(|age| age > self.keep.max(KEPT_AT_LEAST));
                return if is_old { Verdict::Goes } else { Verdict::Stays };
            }
            Place::OwnLogs => match day_of_own_log(name) {
                None => return Verdict::Foreign,
                // Its device may still write to it.
                Some(day) if day >= self.now.date_naive() => return Verdict::Stays,
                Some(_) => modified,
            },
        };
        // A date in the future is younger than anything.
        let age = (self.now - since).to_std().unwrap_or_default();
        if age < KEPT_AT_LEAST {
            Verdict::Stays
        } else if age > self.keep {
            Verdict::Goes
        } else {
            Verdict::MayGo(since)
        }
    }

    /// Whether a day's folder can hold anything that was kept long enough: what belongs to a run is written after its drop. Only
    /// where dates were set back by hand is this wrong.
    #[must_use]
    pub fn may_be_old(&self, day: &str) -> bool {
        let begin = NaiveDate::parse_from_str(day, "%Y-%m-%d").ok().map(|day| day.and_time(chrono::NaiveTime::MIN));
        begin.is_none_or(|begin| (self.now - begin.and_utc()).to_std().is_ok_and(|age| age > self.keep))
    }
}

/// The attempt that a result or a log is of.
fn attempt_of(name: &OsStr) -> Option<u32> {
    let text = name.to_str()?;
    let ending = if text.ends_with(".json") { "json" } else { "log" };
    results::parse_name(OsStr::new(text.strip_suffix(".1").filter(|_| ending == "log").unwrap_or(text)), ending)
        .map(|named| named.attempt)
}

/// Whether a day's folder stays although it is empty: today's and yesterday's are about to be written to.
#[must_use]
pub fn day_stays(day: &str, now: DateTime<Utc>) -> bool {
    day >= (now - TimeDelta::days(1)).format("%Y-%m-%d").to_string().as_str()
}

/// The run that a file belongs to. A rejected one belongs to none, and is named after the run it would have been.
fn run_of(place: Place, name: &OsStr) -> Option<RunId> {
    match place {
        Place::Results => results::parse_name(name, "json").map(|named| named.run),
        Place::Logs => {
            ["log", "log.1"].iter().find_map(|ending| results::parse_name(name, ending)).map(|named| named.run)
        }
        Place::OwnLogs => None,
        Place::Processed => processed::parse_name(name).map(|processed| processed.run),
        Place::Rejected => {
            let noted = name.to_str()?.strip_suffix(".error.json").map(|base| format!("{base}.json"));
            processed::parse_name(noted.as_ref().map_or(name, OsStr::new)).map(|processed| processed.run)
        }
    }
}

/// Whether it is a part of an audit log that is over; the one that goes on never goes.
fn is_audit(name: &OsStr) -> bool {
    name.to_str().and_then(part_over).is_some()
}

/// The day in `orchestrator.<device>.<date>.log`.
fn day_of_own_log(name: &OsStr) -> Option<NaiveDate> {
    let (_, day) = name.to_str()?.strip_prefix("orchestrator.")?.strip_suffix(".log")?.rsplit_once('.')?;
    NaiveDate::parse_from_str(day, "%Y-%m-%d").ok()
}

/// How much lies where, by the minute: enough to find the oldest of millions of files without holding their names.
#[derive(Debug, Default)]
pub struct Room {
    total: u64,
    may_go: BTreeMap<i64, u64>,
}

/// Which files go for room: all that may go and are older than a minute, and the oldest of that minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// The minute, counted from 1970.
    pub minute: i64,
    /// How many bytes of it must go.
    pub bytes: u64,
}

impl Room {
    /// Counts a file that is still there.
    pub fn count(&mut self, verdict: Verdict, bytes: u64) {
        match verdict {
            Verdict::Foreign => return,
            Verdict::MayGo(since) => *self.may_go.entry(minute(since)).or_default() += bytes,
            // What could not be removed takes up room as well.
            Verdict::Stays | Verdict::Goes => {}
        }
        self.total += bytes;
    }

    /// What must go so that at most `limit` bytes are left. `None`: nothing.
    #[must_use]
    pub fn cut(&self, limit: u64) -> Option<Cut> {
        let mut excess = self.total.checked_sub(limit).filter(|excess| *excess > 0)?;
        for (minute, bytes) in &self.may_go {
            if *bytes >= excess {
                return Some(Cut { minute: *minute, bytes: excess });
            }
            excess -= bytes;
        }
        Some(Cut { minute: i64::MAX, bytes: 0 })
    }
}

/// The minute of an instant, counted from 1970.
#[must_use]
pub fn minute(at: DateTime<Utc>) -> i64 {
    at.timestamp().div_euclid(60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OPEN: &str = "20261101T000000000Z-00000a";
    const OVER: &str = "20261101T000000000Z-00000b";
    const KEYED: &str = "20261101T000000000Z-00000c";

    fn at(text: &str) -> DateTime<Utc> {
        DateTime::parse_from_rfc3339(text).unwrap().to_utc()
    }

    fn rule() -> Rule {
        let [open, keyed] = [OPEN, KEYED].map(|run| RunId::parse(run).unwrap());
        let (stays, keyed) = (BTreeMap::from([(open, 0)]), BTreeSet::from([keyed]));
        Rule { now: at("2026-11-21T12:00:00Z"), keep: Duration::from_secs(10 * 86_400), stays, keyed }
    }

    fn judge(place: Place, name: &str, modified: &str) -> Verdict {
        rule().judge(place, OsStr::new(name), at(modified))
    }

    #[test]
    fn a_file_goes_by_its_own_age() {
        let name = format!("a.{OVER}.1.json");
        let (old, young) = ("2026-11-11T11:59:59Z", "2026-11-11T12:00:00Z");
        assert_eq!(judge(Place::Results, &name, old), Verdict::Goes);
        assert_eq!(judge(Place::Results, &name, young), Verdict::MayGo(at(young)));
        // Whatever it is called, in a day's folder it is kept for a time.
        assert_eq!(judge(Place::Results, "notes.txt", old), Verdict::Goes);
        assert_eq!(judge(Place::Logs, &format!("a.{OVER}.1.log.1"), old), Verdict::Goes);
        assert_eq!(judge(Place::Results, &name, "2026-11-21T11:50:01Z"), Verdict::Stays);
        assert_eq!(judge(Place::Results, &name, "2031-01-01T00:00:00Z"), Verdict::Stays);
    }

    #[test]
    fn all_of_a_run_that_stays_stays() {
        let old = "2026-01-01T00:00:00Z";
        for (place, name) in [
            (Place::Results, format!("a.b.{OPEN}.1.json")),
            (Place::Results, format!("a.b.{OPEN}.2.superseded.json")),
            (Place::Logs, format!("a.b.{OPEN}.1.log")),
            (Place::Logs, format!("a.b.{OPEN}.1.log.1")),
            (Place::Processed, format!("a.{OPEN}.json")),
        ] {
            assert_eq!(judge(place, &name, old), Verdict::Stays, "{name}");
            assert_eq!(judge(place, &name.replace(OPEN, OVER), old), Verdict::Goes, "{name}");
        }
    }

    #[test]
    fn of_a_daemon_whose_run_never_ends_the_old_attempts_go() {
        let old = "2026-01-01T00:00:00Z";
        let rule = Rule { stays: BTreeMap::from([(RunId::parse(OPEN).unwrap(), 8)]), ..rule() };
        let judge = |place, name: String| rule.judge(place, OsStr::new(&name), at(old));
        for (attempt, expected) in [(1, Verdict::Goes), (7, Verdict::Goes), (8, Verdict::Stays), (9, Verdict::Stays)] {
            assert_eq!(judge(Place::Results, format!("a.{OPEN}.{attempt}.json")), expected, "{attempt}");
            assert_eq!(judge(Place::Logs, format!("a.{OPEN}.{attempt}.log")), expected, "{attempt}");
            assert_eq!(judge(Place::Logs, format!("a.{OPEN}.{attempt}.log.1")), expected, "{attempt}");
        }
        // Its trigger is of no attempt.
        assert_eq!(judge(Place::Processed, format!("a.{OPEN}.json")), Verdict::Stays);
    }

    #[test]
    fn of_a_run_with_a_key_the_results_stay() {
        let old = "2026-01-01T00:00:00Z";
        assert_eq!(judge(Place::Results, &format!("a.{KEYED}.1.json"), old), Verdict::Stays);
        assert_eq!(judge(Place::Logs, &format!("a.{KEYED}.1.log"), old), Verdict::Goes);
        assert_eq!(judge(Place::Processed, &format!("a.{KEYED}.json"), old), Verdict::Goes);
    }

    #[test]
    fn a_trigger_is_no_older_than_its_drop() {
        let (run, dropped) = ("20261120T000000000Z-00000b", "2026-11-20T00:00:00Z");
        let name = format!("a.{run}.json");
        for (place, name) in [
            (Place::Processed, name.clone()),
            (Place::Processed, format!("a.{run}.duplicate-of.{OVER}.json")),
            (Place::Rejected, name.clone()),
            (Place::Rejected, format!("a.{run}.error.json")),
        ] {
            assert_eq!(judge(place, &name, "2001-01-01T00:00:00Z"), Verdict::MayGo(at(dropped)), "{name}");
        }
        assert_eq!(judge(Place::Results, &format!("a.{run}.1.json"), "2001-01-01T00:00:00Z"), Verdict::Goes);
        assert_eq!(judge(Place::Rejected, "no run.json", "2001-01-01T00:00:00Z"), Verdict::Goes);
    }

    #[test]
    fn of_the_other_files_in_logs_and_of_hidden_ones_nothing_goes() {
        let old = "2026-01-01T00:00:00Z";
        let own = |name: &str| judge(Place::OwnLogs, name, old);
        assert_eq!(own("orchestrator.d.1.2026-11-20.log"), Verdict::Goes);
        assert_eq!(own("orchestrator.d.1.2026-11-21.log"), Verdict::Stays);
        assert_eq!(own("orchestrator.d.1.2026-11-22.log"), Verdict::Stays);
        assert_eq!(own("audit.d.1~20260101T000000Z.jsonl"), Verdict::Goes);
        let part = |since| judge(Place::OwnLogs, "audit.d~20260101T000000Z.jsonl", since);
        assert_eq!(part("2026-11-20T00:00:00Z"), Verdict::Stays, "however little room there is");
        assert_eq!([own("audit.d.jsonl"), own("audit.d.20260101T000000Z.jsonl")], [Verdict::Foreign; 2]);
        assert_eq!([own("mine.log"), own("orchestrator.d.log"), own("2026-01-01")], [Verdict::Foreign; 3]);
        assert_eq!(judge(Place::Results, &format!(".a.{OVER}.1.out"), old), Verdict::Foreign);
    }

    #[test]
    fn only_days_that_are_old_enough_can_hold_something_old() {
        let days = ["2026-11-10", "2026-11-11", "2026-11-12", "2026-11-22"];
        assert_eq!(days.map(|day| rule().may_be_old(day)), [true, true, false, false]);
        let stays = ["2026-11-19", "2026-11-20", "2026-11-21", "2026-11-22"].map(|day| day_stays(day, rule().now));
        assert_eq!(stays, [false, true, true, true]);
    }

    proptest! {
        /// What is cut by minutes is what would be cut from one list of all files: the oldest, as few as are enough.
        #[test]
        fn the_oldest_go_and_no_more_than_needed(
            files in prop::collection::vec((0_i64..600, 0_u64..50, any::<bool>()), 0..60),
            limit in 0_u64..1_500,
        ) {
            let mut room = Room::default();
            let mut may_go = Vec::new();
            for (index, (second, bytes, stays)) in files.iter().enumerate() {
                let since = DateTime::from_timestamp(*second, 0).unwrap();
                room.count(if *stays { Verdict::Stays } else { Verdict::MayGo(since) }, *bytes);
                if !stays {
                    may_go.push((*second, index, *bytes));
                }
            }
            may_go.sort_unstable();
            let mut total: u64 = files.iter().map(|file| file.1).sum();
            let mut expected = Vec::new();
            for (_, index, bytes) in &may_go {
                if total <= limit {
                    break;
                }
                total -= bytes;
                expected.push(*index);
            }
            let mut gone = Vec::new();
            if let Some(cut) = room.cut(limit) {
                let of = |file: &(i64, usize, u64)| minute(DateTime::from_timestamp(file.0, 0).unwrap());
                gone.extend(may_go.iter().filter(|file| of(file) < cut.minute).map(|file| file.1));
                let mut freed = 0;
                for file in may_go.iter().filter(|file| of(file) == cut.minute) {
                    if freed >= cut.bytes {
                        break;
                    }
                    freed += file.2;
                    gone.push(file.1);
                }
            }
            prop_assert_eq!(gone, expected);
        }
    }
}
