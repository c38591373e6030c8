//! Keeping house: what crashes leave behind, swept by whoever comes first.

use std::collections::BTreeSet;

use super::{Device, SWEEP, TIDY};
use crate::decide::attempts::LocalAttempt;
use crate::model::ids::RunId;
use crate::model::lease::Lease;
use crate::model::time::Moment;
use crate::volume::atomic::temporary_session;
use crate::volume::{keys, results, work};

/// How old a leftover must be.
const OLD: chrono::TimeDelta = chrono::TimeDelta::minutes(10);

impl Device {
    /// Has what goes on ended of attempts that nobody holds.
    fn tidy(&mut self, now: Moment) {
        if now.boot >= self.due.tidy && self.anchor.is_some() {
            self.due.tidy = now.boot + TIDY;
            self.parts.executor.survey();
        }
        let met = self.parts.executor.take_surveyed();
        if !met.is_empty() {
            let strays = self.held_by_nobody(met);
            self.parts.executor.evict(&strays);
        }
    }

    /// Removes work folders of attempts that nobody holds.
    fn sweep_work(&mut self, now: Moment) {
        let met = work::all(&*self.parts.disk, &self.parts.layout).unwrap_or_default();
        if !met.is_empty() {
            for lease in self.held_by_nobody(met) {
                work::remove(&*self.parts.disk, &self.parts.layout, &lease);
            }
        }
        work::remove_kept(&*self.parts.disk, &self.parts.layout, now.wall, |session| self.lives(session, now));
    }

    /// Of attempts that left traces, those that nobody holds. The traces were met first and the state is read after that: whatever was
    /// claimed meanwhile is held in it. A state that cannot be read, or is being rebuilt, says nothing of that.
    fn held_by_nobody(&mut self, met: impl IntoIterator<Item = Lease>) -> BTreeSet<Lease> {
        self.keep_known();
        let is_read = matches!(self.store.refresh(), Ok(true));
        let state = self.store.state();
        if !is_read || state.rebuilt.is_some() {
            return BTreeSet::new();
        }
        let is_held = |lease: &Lease| {
            let held = state.runs.get(&lease.run).filter(|held| held.attempt == lease.attempt);
            held.is_some_and(|held| held.device.is_some())
                || self.seen.attempts.get(lease).is_some_and(LocalAttempt::is_begun)
        };
        met.into_iter().filter(|lease| !is_held(lease)).collect()
    }

    /// Once an hour: temporary files of sessions that are over, and idempotency keys that no longer count.
    pub(super) fn sweep(&mut self, now: Moment) {
        self.tidy(now);
        if now.boot < self.due.sweep {
            return;
        }
        // Not at the first tick: starting is no time for it.
        let first = self.due.sweep.is_zero();
        self.due.sweep = now.boot + if first { SWEEP / 60 } else { SWEEP };
        if first {
            return;
        }
        self.sweep_work(now);
        let mut swept = 0;
        let layout = &self.parts.layout;
        let mut folders = vec![
            layout.common.clone(),
            layout.revisions(),
            layout.devices(),
            layout.keys(),
            layout.triggers(),
            layout.running(),
            layout.waiting(),
            layout.logs(),
            layout.backups(),
        ];
        folders.push(layout.rejected(&now.wall.format("%Y-%m-%d").to_string()));
        folders.extend(
            results::days(&*self.parts.disk, layout)
                .into_iter()
                .flatten()
                .take(2)
                .map(|day| layout.results().join(day)),
        );
        for folder in folders {
            for name in self.parts.disk.list(&folder).unwrap_or_default() {
                let Some(text) = name.to_str() else { continue };
                let session = temporary_session(text).or_else(|| staged_session(text));
                let is_over = match (session, output_of(text)) {
                    (Some(session), _) => !self.lives(session, now),
                    (None, Some(run)) => !self.store.state().runs.contains_key(&run),
                    (None, None) => false,
                };
                if !is_over {
                    continue;
                }
                let path = folder.join(&name);
                let is_old = self.parts.disk.stat(&path).is_ok_and(|meta| now.wall - meta.changed > OLD);
                swept += usize::from(is_old && self.parts.disk.remove(&path).is_ok());
            }
        }
        match keys::sweep(&*self.parts.disk, &self.parts.layout, now.wall) {
            Ok(keys) => tracing::debug!(files = swept, keys, "swept"),
            Err(error) => tracing::warn!(%error, "idempotency keys are not swept"),
        }
    }

    fn lives(&self, session: &str, now: Moment) -> bool {
        session == self.seen.me.session.as_str()
            || self.seen.devices.alive(now.boot).any(|peer| peer.beat.session.as_str() == session)
    }
}

/// The run in `.<job>.<run>.<attempt>.out`, what its program wrote for its result, and in the runner's names behind it.
fn output_of(name: &str) -> Option<RunId> {
    let (front, _) = name.strip_prefix('.')?.split_once(".out")?;
    let (front, _attempt) = front.rsplit_once('.')?;
    RunId::parse(front.rsplit_once('.')?.1)
}

/// The session in `.<job>.<run>.<attempt>.<session>.staged`.
fn staged_session(name: &str) -> Option<&str> {
    name.strip_prefix('.')?.strip_suffix(".staged")?.rsplit_once('.').map(|(_, session)| session)
}
