//! What a device counts of its own work, for whoever collects such figures. Where nobody does, it costs nothing.

use std::time::Duration;

use crate::model::result::Outcome;

/// An attempt's end was committed; `was_to_wait`: its trigger named a time.
pub(super) fn ended(outcome: &Outcome, was_to_wait: bool) {
    metrics::counter!("aios_attempts_ended_total", "status" => outcome.status.as_str()).increment(1);
    if outcome.is_final {
        metrics::counter!("aios_runs_ended_total", "status" => outcome.status.as_str()).increment(1);
    }
    // What waits for its time, or for another attempt, says nothing of how fast a device is.
    let is_first = outcome.cause.is_dropped() && outcome.attempt == 1 && !was_to_wait;
    if let Some(started) = outcome.started_at.filter(|_| is_first) {
        let waited = (started - outcome.created_at).to_std().unwrap_or_default();
        metrics::histogram!("aios_trigger_to_start_seconds").record(waited.as_secs_f64());
    }
}

/// A commit was tried: how long the lock was waited for, and how long it took.
pub(super) fn committed(is_done: bool, waited: Duration, took: Duration) {
    if is_done {
        metrics::histogram!("aios_lock_wait_seconds").record(waited.as_secs_f64());
        metrics::histogram!("aios_commit_seconds").record(took.as_secs_f64());
    }
}
