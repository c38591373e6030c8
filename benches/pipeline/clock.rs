//! One clock for every process: the wall clock, the only one that the probe gets from the standard library as a number.
//! A step of it would spoil one sample, which no median sees.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since 1970.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::Realtime);
    // Neither part is negative in our days.
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// The seconds from one moment to a later one.
pub(crate) fn seconds(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1e9
}

/// The milliseconds from one moment to a later one.
pub(crate) fn millis(from: u64, to: u64) -> f64 {
    seconds(from, to) * 1e3
}
