//! When a timed job is due: what its file says of it, read and checked. The rules that make instants of it are in
//! [`crate::decide::due`].

use std::fmt;
use std::time::Duration;

use chrono::{NaiveDate, NaiveTime};
use chrono_tz::Tz;
use croner::Cron;

/// What makes a job due.
#[derive(Debug, Clone, PartialEq)]
pub enum Schedule {
    /// Once a day at this local time.
    Daily {
        /// The local time.
        time: NaiveTime,
        /// The zone that it is local to.
        zone: Tz,
    },
    /// At the multiples of this span since 1970-01-01T00:00Z; at least 1 s.
    Interval(Duration),
    /// Once a day, at a moment that is drawn in a window of local time.
    RandomDaily {
        /// The window begins at this local time …
        after: NaiveTime,
        /// … and ends before this one, on the next day if that is earlier. They differ.
        before: NaiveTime,
        /// The zone that both are local to.
        zone: Tz,
    },
    /// As a cron expression says, which has an occurrence.
    Cron {
        /// The expression.
        cron: Box<CronText>,
        /// The zone that its fields are local to.
        zone: Tz,
    },
}

/// A cron expression, as it was written and as it was understood.
#[derive(Clone, PartialEq)]
pub struct CronText {
    /// As written.
    pub text: String,
    /// As understood.
    pub cron: Cron,
}

impl fmt::Debug for CronText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

/// Whether a cron expression ever occurs.
#[must_use]
pub fn occurs(cron: &Cron) -> bool {
    let from = NaiveDate::from_ymd_opt(2024, 1, 1).unwrap_or_default().and_time(NaiveTime::MIN).and_utc();
    cron.find_next_occurrence(&from, true).is_ok()
}

/// What becomes of due times that no device could claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Missed {
    /// The newest runs, as soon as it can.
    #[default]
    Once,
    /// All run, from the oldest, at most [`MISSED_MOST`].
    All,
    /// The newest runs if it is not older than [`MISSED_AGE`].
    Skip,
}

/// How many missed due times `missed = "all"` makes up for.
pub const MISSED_MOST: usize = 100;
/// How old a due time may be for `missed = "skip"` to run it.
pub const MISSED_AGE: Duration = Duration::from_secs(60);

/// A schedule and how exactly it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Timing {
    /// What makes the job due.
    pub schedule: Schedule,
    /// Each due time is moved by a stable amount below this.
    pub jitter: Duration,
    /// What becomes of missed due times.
    pub missed: Missed,
}

impl Timing {
    /// The due times in words that stay the same from one program to the next: told apart by them, others begin anew.
    #[must_use]
    pub fn text(&self) -> String {
        let text = match &self.schedule {
            Schedule::Daily { time, zone } => format!("daily {time} {zone}"),
            Schedule::Interval(every) => format!("interval {} ms", every.as_millis()),
            Schedule::RandomDaily { after, before, zone } => format!("random_daily {after} {before} {zone}"),
            Schedule::Cron { cron, zone } => format!("cron {} {zone}", cron.text),
        };
        if self.jitter.is_zero() { text } else { format!("{text} jitter {} ms", self.jitter.as_millis()) }
    }
}

impl Schedule {
    /// The zone whose local time the schedule follows.
    #[must_use]
    pub fn zone(&self) -> Tz {
        match self {
            Self::Daily { zone, .. } | Self::RandomDaily { zone, .. } | Self::Cron { zone, .. } => *zone,
            Self::Interval(_) => Tz::UTC,
        }
    }
}

/// How many runs of a job there shall be at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instances {
    /// So many over all devices.
    Count(u32),
    /// One on each device that can run it.
    Every,
}
