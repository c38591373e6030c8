//! What a lost state knew of jobs, found again: this device remembers the last state it saw, and the names of results and of
//! what runs tell the newest due times.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::Device;
use crate::decide::due::run_of;
use crate::decide::marks::recall;
use crate::model::entry::{Waiting, parse_running};
use crate::model::ids::{JobName, RunId};
use crate::model::job::JobType;
use crate::volume::{self, Context, found, results};

/// How many days of results are looked through.
const DAYS: usize = 40;

impl Device {
    /// Keeps the state that is known, before it is looked whether there is another: that one may know less.
    pub(super) fn keep_known(&mut self) {
        if self.store.state().rebuilt.is_none() {
            self.known = Arc::clone(self.store.state());
        }
    }

    /// Once for each time that the state was lost: what is known of each job.
    pub(super) fn remember(&mut self) {
        self.keep_known();
        let rebuilt = self.store.state().rebuilt;
        if rebuilt.is_none() || rebuilt == self.seen.remembered {
            return;
        }
        match self.last_due_times() {
            Ok(found) => {
                self.seen.marks = recall(&self.known.jobs, found, &self.seen.catalog);
                self.seen.remembered = rebuilt;
                self.solved("history");
            }
            Err(error) => self.problem("history", format!("{error}; hint: {}", error.hint())),
        }
    }

    fn last_due_times(&self) -> Result<BTreeMap<JobName, DateTime<Utc>>, volume::Error> {
        let (disk, layout) = (&*self.parts.disk, &self.parts.layout);
        let timed = self.seen.catalog.jobs.values().filter(|job| matches!(job.kind, JobType::Timed(_)));
        let mut missing: BTreeSet<&JobName> = timed.map(|job| &job.name).collect();
        let mut last = BTreeMap::new();
        if missing.is_empty() {
            return Ok(last);
        }
        // A due time's run can be told from all others by its id.
        let mut take = |job: &JobName, run: &RunId| {
            let at = run.time();
            if run_of(&self.seen.volume, job, at) == *run {
                last.entry(job.clone()).and_modify(|last: &mut DateTime<Utc>| *last = at.max(*last)).or_insert(at);
            }
        };
        let open = [layout.running(), layout.waiting()];
        for folder in &open {
            for name in found(disk.list(folder)).on("list", folder)?.unwrap_or_default() {
                let waiting = Waiting::parse(&name).map(|waiting| (waiting.run, waiting.stem));
                let Some((run, stem)) = waiting.or_else(|| parse_running(&name).map(|(lease, stem)| (lease.run, stem)))
                else {
                    continue;
                };
                if let Ok(job) = JobName::new(&stem) {
                    take(&job, &run);
                }
            }
        }
        for day in results::days(disk, layout)?.into_iter().take(DAYS) {
            let mut found = BTreeSet::new();
            for named in results::of_day(disk, layout, &day)? {
                if missing.contains(&named.job) {
                    take(&named.job, &named.run);
                    found.insert(named.job);
                }
            }
            missing.retain(|job| !found.contains(*job));
            if missing.is_empty() {
                break;
            }
        }
        Ok(last)
    }
}
