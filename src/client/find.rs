//! Runs by name: an id, an unambiguous prefix or suffix of one, or the name of the file that was dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::sync::Arc;

use super::runs::Attempts;
use super::view::{self, Lies};
use super::{Client, Code, Failure};
use crate::decide::queue::job_name;
use crate::model::entry::{Entry, Source, Waiting, parse_running, split_dropped};
use crate::model::ids::{JobName, RunId};
use crate::model::lease::Lease;
use crate::model::message::quoted;
use crate::model::result::Outcome;
use crate::model::state::{Held, State};
use crate::volume::inbox::Inbox;
use crate::volume::results::{self, Named};
use crate::volume::{Context as _, found, processed};

/// How many candidates an ambiguous name is answered with.
const CANDIDATES: usize = 10;

/// Everything that the volume shows of one run.
#[derive(Debug)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// Its job.
    pub job: JobName,
    /// Its place in the state, if it is held or listed.
    pub held: Option<Arc<Held>>,
    /// Its file, if it waits.
    pub entry: Option<Arc<Entry>>,
    /// Its results, by attempt.
    pub results: Vec<Named>,
}

/// Where a run is.
#[derive(Debug)]
pub enum Place {
    /// It waits for its first or its next attempt.
    Waiting,
    /// A device holds it.
    Active(Arc<Held>),
    /// It is over.
    Past(Box<Outcome>),
    /// Between two places: it moved while it was looked for, or its files were removed.
    Nowhere,
}

impl Run {
    /// Where it is. A final result counts most: it is visible before the state lets the run go.
    pub fn place(&self, client: &Client) -> Result<Place, Failure> {
        if let Some(outcome) = self.final_result(client)? {
            return Ok(Place::Past(Box::new(outcome)));
        }
        Ok(match (&self.held, &self.entry) {
            (Some(held), _) if held.device.is_some() => Place::Active(Arc::clone(held)),
            (_, Some(_)) | (Some(_), None) => Place::Waiting,
            (None, None) => Place::Nowhere,
        })
    }

    /// The result that ended it. Mostly the newest; one that was ended while it waited has attempt 0. Of a run that is held nothing
    /// before the attempt it is held for has ended it: a daemon has very many.
    pub fn final_result(&self, client: &Client) -> Result<Option<Outcome>, Failure> {
        let held = self.held.as_ref().map_or(0, |held| held.attempt);
        let may_be = |named: &&Named| !named.superseded && (named.attempt == 0 || named.attempt >= held);
        let (waited, begun): (Vec<&Named>, Vec<&Named>) =
            self.results.iter().filter(may_be).partition(|named| named.attempt == 0);
        for named in waited.into_iter().chain(begun.into_iter().rev()) {
            if let Some(outcome) = read(client, named)?.filter(|outcome| outcome.is_final) {
                return Ok(Some(outcome));
            }
        }
        Ok(None)
    }

    /// Those of its results that are wanted and can be read, by attempt; and the first of them, if there are some before it.
    pub fn attempts(&self, client: &Client, wanted: Attempts) -> Result<(Vec<Outcome>, Option<u32>), Failure> {
        let end = wanted
            .before
            .map_or(self.results.len(), |before| self.results.partition_point(|named| named.attempt < before));
        let first =
            self.results[..end].iter().rev().nth(wanted.limit.saturating_sub(1)).map_or(0, |named| named.attempt);
        let from = self.results.partition_point(|named| named.attempt < first);
        let read = self.results[from..end].iter().map(|named| read(client, named));
        let all = read.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
        Ok((all, (from > 0).then_some(first)))
    }

    /// The newest of its results that can be read.
    pub fn newest(&self, client: &Client) -> Result<Option<Outcome>, Failure> {
        for named in self.results.iter().rev() {
            if let Some(outcome) = read(client, named)? {
                return Ok(Some(outcome));
            }
        }
        Ok(None)
    }

    /// The largest attempt that has a number: in a result, in a device's hands, or next.
    pub fn newest_attempt(&self) -> u32 {
        let held = self.held.as_ref().map(|held| held.attempt);
        self.results.iter().map(|named| named.attempt).chain(held).max().unwrap_or(0)
    }
}

/// One result by its name.
pub fn read(client: &Client, named: &Named) -> Result<Option<Outcome>, Failure> {
    let lease = Lease { run: named.run.clone(), attempt: named.attempt };
    let layout = &client.layout;
    let path = if named.superseded { layout.superseded(&named.job, &lease) } else { layout.result(&named.job, &lease) };
    Ok(results::read(&*client.disk, &path)?)
}

/// Finds the run that `name` names.
///
/// # Errors
/// Exit code 3 if there is none, 2 if there are several or it is one that was rejected.
pub fn find(client: &Client, name: &str) -> Result<Run, Failure> {
    // A run that moves while it is looked for may be missed in both of its places.
    for _ in 0..3 {
        let run = resolve(client, name)?.map(|id| gather(client, &id)).transpose()?.flatten();
        let is_on_its_way = match run {
            Some(run) if run.held.is_some() || run.entry.is_some() => return Ok(run),
            Some(run) if run.final_result(client)?.is_some() => return Ok(run),
            Some(_) => true,
            None => is_being_claimed(client, name)?,
        };
        if !is_on_its_way {
            break;
        }
        client.pause(std::time::Duration::from_millis(20));
    }
    // Its files are incomplete for good: what there is of it.
    if let Some(id) = resolve(client, name)?
        && let Some(run) = gather(client, &id)?
    {
        return Ok(run);
    }
    let (disk, layout) = (&*client.disk, &client.layout);
    let rejection = match RunId::parse(name) {
        Some(id) => processed::rejection(disk, layout, &id)?,
        None if name.ends_with(".json") => processed::rejection_of_name(disk, layout, name)?,
        None => None,
    };
    if let Some(why) = rejection {
        return Err(rejected(&why));
    }
    let hint = "`orchestrator runs list --limit 100` shows the newest; a run is named by its id, the beginning or end of it, or the trigger's file name";
    Err(Failure::new(Code::NotFound, format!("there is no run {}", quoted(name)), hint))
}

/// Whether a device has taken the file of a run that nothing else is known of yet.
fn is_being_claimed(client: &Client, name: &str) -> Result<bool, Failure> {
    let folder = client.layout.running();
    let taken = found(client.disk.list(&folder)).on("list", &folder)?.unwrap_or_default();
    let stem = name.ends_with(".json").then(|| split_dropped(OsStr::new(name)).0);
    let is_it = |(id, of): (RunId, String)| id.as_str() == name || stem.as_ref().is_some_and(|stem| *stem == of);
    let open = state(client)?;
    let is_unknown = |(id, _): &(RunId, String)| !open.runs.contains_key(id);
    Ok(taken
        .iter()
        .filter_map(|file| parse_running(file).map(|(lease, stem)| (lease.run, stem)))
        .filter(is_unknown)
        .any(is_it))
}

/// The failure for a trigger that was rejected.
#[must_use]
pub fn rejected(why: &processed::Rejection) -> Failure {
    let place = match (why.line, why.column) {
        (Some(line), Some(column)) => format!(":{line}:{column}"),
        (Some(line), None) => format!(":{line}"),
        (None, _) => String::new(),
    };
    let error = format!("the trigger {}{place} was rejected: {}", quoted(&why.name), why.error);
    Failure::new(Code::Rejected, error, why.hint.clone())
}

/// The id that a name stands for.
fn resolve(client: &Client, name: &str) -> Result<Option<RunId>, Failure> {
    if name.is_empty() {
        return Err(Failure::new(
            Code::Usage,
            "the name of the run is empty",
            "`orchestrator runs list` shows the runs",
        ));
    }
    if let Some(id) = RunId::parse(name) {
        let first = first_of_duplicate(client, &id)?;
        return Ok(Some(first.map_or(id.clone(), |first| told_as_duplicate(client, &id, &first))));
    }
    if name.ends_with(".json") {
        return by_trigger(client, name);
    }
    let matches = |id: &RunId| id.as_str().starts_with(name) || id.as_str().ends_with(name);
    let mut ids: BTreeSet<RunId> = waiting_ids(client)?.into_iter().filter(|id| matches(id)).collect();
    ids.extend(state(client)?.runs.keys().filter(|id| matches(id)).cloned());
    for day in results::days(&*client.disk, &client.layout)? {
        let named = results::of_day(&*client.disk, &client.layout, &day)?;
        ids.extend(named.into_iter().map(|named| named.run).filter(|id| matches(id)));
    }
    let mut firsts = BTreeMap::new();
    for day in results::days_in(&*client.disk, &client.layout.processed())? {
        let of_day = processed::of_day(&*client.disk, &client.layout, &day)?;
        firsts.extend(of_day.into_iter().filter(|it| matches(&it.run)).filter_map(|it| Some((it.run, it.first?))));
    }
    ids.extend(firsts.keys().cloned());
    let Some(id) = one_of(name, ids)? else { return Ok(None) };
    Ok(Some(firsts.get(&id).map_or(id.clone(), |first| told_as_duplicate(client, &id, first))))
}

fn told_as_duplicate(client: &Client, id: &RunId, first: &RunId) -> RunId {
    (client.note)(&format!("the trigger {id} is a duplicate of the run {first}"));
    first.clone()
}

/// The only candidate, or the failure that names them.
fn one_of(name: &str, ids: BTreeSet<RunId>) -> Result<Option<RunId>, Failure> {
    if ids.len() < 2 {
        return Ok(ids.into_iter().next());
    }
    let shown: Vec<&str> = ids.iter().rev().take(CANDIDATES).map(RunId::as_str).collect();
    let more = ids.len() - shown.len();
    let rest = if more > 0 { format!(" and {more} older ones") } else { String::new() };
    Err(Failure::new(
        Code::Usage,
        format!("{} names {} runs: {}{rest}", quoted(name), ids.len(), shown.join(", ")),
        "give more of the id",
    ))
}

/// The state, or an empty one where there is none.
fn state(client: &Client) -> Result<Arc<State>, Failure> {
    Ok(view::state(client)?.unwrap_or_default())
}

fn waiting_ids(client: &Client) -> Result<Vec<RunId>, Failure> {
    let id = |lies| match lies {
        Lies::Waits(entry) => Some(entry.run.clone()),
        Lies::Refused(run, _) => Some(run),
        Lies::Unfinished => None,
    };
    Ok(view::waiting(client)?.into_iter().filter_map(|(_, lies)| id(lies)).collect())
}

/// The run whose idempotency key made this one a duplicate.
pub fn first_of_duplicate(client: &Client, id: &RunId) -> Result<Option<RunId>, Failure> {
    let of_day = processed::of_day(&*client.disk, &client.layout, &id.date())?;
    Ok(of_day.into_iter().find(|it| it.run == *id).and_then(|it| it.first))
}

/// The newest run of a trigger's file name. Of a duplicate, the run it is a duplicate of.
fn by_trigger(client: &Client, name: &str) -> Result<Option<RunId>, Failure> {
    let mut newest: Option<RunId> = None;
    for (_, lies) in view::waiting(client)? {
        match lies {
            Lies::Waits(entry) if entry.dropped() == *name => newest = newest.max(Some(entry.run.clone())),
            Lies::Waits(_) | Lies::Refused(..) | Lies::Unfinished => {}
        }
    }
    for (id, held) in state(client)?.runs.iter() {
        if held.trigger.as_deref() == Some(name) {
            newest = newest.max(Some(id.clone()));
        }
    }
    let stem = split_dropped(OsStr::new(name)).0;
    for day in results::days_in(&*client.disk, &client.layout.processed())? {
        let mut of_stem = processed::of_day(&*client.disk, &client.layout, &day)?;
        of_stem.retain(|it| it.stem == stem && newest.as_ref().is_none_or(|newest| it.run > *newest));
        of_stem.sort_by(|a, b| b.run.cmp(&a.run));
        for it in of_stem {
            if it.first.is_some() {
                if processed::was_dropped_as(&*client.disk, &client.layout, &it, name)? {
                    return Ok(it.first);
                }
                continue;
            }
            // Different names can have one stem: the result knows the name.
            if is_named(client, &it.run, name)? {
                return Ok(Some(it.run));
            }
        }
    }
    Ok(newest)
}

fn is_named(client: &Client, id: &RunId, name: &str) -> Result<bool, Failure> {
    let of_day = results::of_day(&*client.disk, &client.layout, &id.date())?;
    let Some(named) = of_day.iter().rev().find(|named| named.run == *id) else {
        return Ok(false);
    };
    Ok(read(client, named)?.is_some_and(|outcome| outcome.trigger.as_deref() == Some(name)))
}

/// Everything there is of a run. Looked at in the order in which a run moves, so that it is seen in one place at least.
pub fn gather(client: &Client, id: &RunId) -> Result<Option<Run>, Failure> {
    let entry = entry(client, id)?;
    let held = state(client)?.runs.get(id).cloned();
    let mut results = results::of_day(&*client.disk, &client.layout, &id.date())?;
    results.retain(|named| named.run == *id);
    results.sort_by_key(|named| (named.attempt, named.superseded));
    let job = held.as_ref().map(|held| held.job.clone());
    let job = job.or_else(|| results.first().map(|named| named.job.clone()));
    let job = job.or_else(|| entry.as_ref().map(|entry| job_name(entry)));
    Ok(job.map(|job| Run { id: id.clone(), job, held, entry, results }))
}

/// The file of a run that waits. Only a name that carries no id has to be read for it, and only if it was dropped at the id's time.
fn entry(client: &Client, id: &RunId) -> Result<Option<Arc<Entry>>, Failure> {
    let mut inbox = Inbox::default();
    for key in view::waiting_files(client)? {
        let carried = match key.source {
            Source::Inbox => split_dropped(&key.name).1,
            Source::Waiting | Source::Due => Waiting::parse(&key.name).map(|waiting| waiting.run),
        };
        let may_be = match carried {
            Some(carried) => carried == *id,
            None => {
                let dropped = client.disk.stat(&client.layout.entry(&key)).ok();
                dropped.is_some_and(|meta| RunId::new(meta.changed, 0).time() == id.time())
            }
        };
        if !may_be {
            continue;
        }
        match view::look(client, &mut inbox, &key)? {
            Some(Lies::Waits(entry)) if entry.run == *id => return Ok(Some(entry)),
            Some(Lies::Waits(_) | Lies::Refused(..) | Lies::Unfinished) | None => {}
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(count: u64) -> BTreeSet<RunId> {
        (0..count).map(|hash| RunId::new(chrono::DateTime::UNIX_EPOCH, hash)).collect()
    }

    #[test]
    fn a_name_of_several_runs_names_the_newest_and_counts_the_rest() {
        assert_eq!(one_of("1970", ids(0)).unwrap(), None);
        assert_eq!(one_of("1970", ids(1)).unwrap(), ids(1).pop_first());
        let failure = one_of("1970", ids(12)).unwrap_err();
        assert_eq!(failure.code, Code::Usage);
        assert!(failure.error.starts_with("\"1970\" names 12 runs: 19700101T000000000Z-00000b, "), "{}", failure.error);
        assert!(failure.error.ends_with("-000002 and 2 older ones"), "{}", failure.error);
    }

    #[test]
    fn a_rejection_tells_its_place() {
        let why = processed::Rejection {
            name: "a\x1b.json".into(),
            error: "found 7".into(),
            hint: "h".into(),
            line: Some(2),
            column: Some(5),
        };
        let failure = rejected(&why);
        assert_eq!(failure.error, "the trigger \"a\\u{1b}.json\":2:5 was rejected: found 7");
        assert_eq!((failure.code, failure.hint.as_str()), (Code::Rejected, "h"));
    }
}
