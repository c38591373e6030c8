//! What the files of a volume tell of a run: where it lies, and what it left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::Fault;
use crate::decide::backup::{Lies, Traces};
use crate::model::entry::{Waiting, parse_running};
use crate::model::ids::RunId;
use crate::volume::disk::Disk;
use crate::volume::layout::Layout;
use crate::volume::{Context, found, inbox, processed, results};

/// What was seen of a volume, day by day; each folder is listed once.
pub(super) struct Seen<'a> {
    disk: &'a dyn Disk,
    layout: &'a Layout,
    /// Open runs, and where they lie; listed when the first is asked for.
    open: Option<BTreeMap<RunId, Lies>>,
    /// What was rejected, under the id of the run it would have been.
    rejected: Option<BTreeSet<RunId>>,
    days: BTreeMap<String, Day>,
}

#[derive(Default)]
struct Day {
    of_runs: BTreeMap<RunId, OfRun>,
}

/// What one day's folders have of a run.
#[derive(Default)]
struct OfRun {
    results: Vec<(u32, PathBuf)>,
    log: Option<u32>,
    put_away: bool,
}

impl<'a> Seen<'a> {
    pub(super) fn new(disk: &'a dyn Disk, layout: &'a Layout) -> Self {
        Self { disk, layout, open: None, rejected: None, days: BTreeMap::new() }
    }

    /// What there is of a run.
    pub(super) fn traces(&mut self, run: &RunId) -> Result<Traces, Fault> {
        let lies = self.open()?.get(run).copied();
        Ok(Traces { lies, ..self.left(run)? })
    }

    /// What a run left behind, open or not.
    pub(super) fn left(&mut self, run: &RunId) -> Result<Traces, Fault> {
        let mut traces = Traces { put_away: self.rejected()?.contains(run), ..Traces::default() };
        let date = run.date();
        if !self.days.contains_key(&date) {
            let day = self.day(&date)?;
            self.days.insert(date.clone(), day);
        }
        let Some(found) = self.days[&date].of_runs.get(run) else { return Ok(traces) };
        traces.put_away |= found.put_away;
        traces.log = found.log;
        traces.result = found.results.iter().map(|(attempt, _)| *attempt).max();
        for (_, path) in &found.results {
            traces.over |= results::read(self.disk, path)?.is_some_and(|outcome| outcome.is_final);
        }
        Ok(traces)
    }

    /// Where the open runs lie. One of the inbox whose name carries no id is the run that its content makes it.
    fn open(&mut self) -> Result<&BTreeMap<RunId, Lies>, Fault> {
        if self.open.is_none() {
            let list =
                |folder: PathBuf| found(self.disk.list(&folder)).on("list", &folder).map(Option::unwrap_or_default);
            let mut open = BTreeMap::new();
            for name in list(self.layout.triggers())?.into_iter().filter(|name| inbox::is_trigger_name(name)) {
                if let Some(run) = inbox::run_in(self.disk, &self.layout.triggers().join(&name), &name)? {
                    open.insert(run, Lies::Inbox);
                }
            }
            for name in list(self.layout.waiting())? {
                open.extend(Waiting::parse(&name).map(|waiting| (waiting.run, Lies::Waiting(waiting.attempt))));
            }
            for name in list(self.layout.running())? {
                open.extend(parse_running(&name).map(|(lease, _)| (lease.run, Lies::Running(lease.attempt))));
            }
            self.open = Some(open);
        }
        Ok(self.open.get_or_insert_default())
    }

    fn rejected(&mut self) -> Result<&BTreeSet<RunId>, Fault> {
        if self.rejected.is_none() {
            let mut rejected = BTreeSet::new();
            for day in results::days_in(self.disk, &self.layout.processed().join("rejected"))? {
                let folder = self.layout.rejected(&day);
                let names = found(self.disk.list(&folder)).on("list", &folder)?.unwrap_or_default();
                rejected.extend(names.iter().filter_map(|name| processed::parse_name(name)).map(|it| it.run));
            }
            self.rejected = Some(rejected);
        }
        Ok(self.rejected.get_or_insert_default())
    }

    fn day(&self, date: &str) -> Result<Day, Fault> {
        let mut day = Day::default();
        for named in results::of_day(self.disk, self.layout, date)? {
            let path = self
                .layout
                .result(&named.job, &crate::model::lease::Lease { run: named.run.clone(), attempt: named.attempt });
            let of_run = day.of_runs.entry(named.run).or_default();
            // What an attempt reported after its lease was another's is no end of it, and its number was used all the same.
            if named.superseded {
                of_run.log = of_run.log.max(Some(named.attempt));
            } else {
                of_run.results.push((named.attempt, path));
            }
        }
        for named in results::names_in(self.disk, &self.layout.logs().join(date), "log")? {
            let of_run = day.of_runs.entry(named.run).or_default();
            of_run.log = of_run.log.max(Some(named.attempt));
        }
        for processed in processed::of_day(self.disk, self.layout, date)? {
            day.of_runs.entry(processed.run).or_default().put_away = true;
        }
        Ok(day)
    }
}
