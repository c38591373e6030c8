//! The moves of a commit, on the disk. Each may be asked for twice: what already happened is done.

use std::io;
use std::path::Path;

use crate::decide::plan::Move;
use crate::model::entry::{FileId, FileKey, KeySeen, Waiting, split_dropped};
use crate::model::ids::{JobName, RunId, Session};
use crate::model::lease::Lease;
use crate::volume::atomic::{Temporary, in_folder, write_new, write_over};
use crate::volume::disk::{Disk, Kind};
use crate::volume::layout::Layout;
use crate::volume::results::{self, staged_path};
use crate::volume::{self, Context, found, is_absent, keys};

/// Why a change did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// What was to be moved is gone: somebody else had it.
    #[error("its file is gone")]
    Gone,
    /// It is not what was read: somebody wrote to it since.
    #[error("its file has changed since it was read")]
    Changed,
    /// Something is where it was to go.
    #[error("its place is taken")]
    Taken,
    /// Another run has its idempotency key.
    #[error("another run has its key")]
    KeyTaken,
    /// An earlier change of the same commit failed, and this one counted on it.
    #[error("it counts on a change that did not happen")]
    Deferred,
    /// The volume failed.
    #[error(transparent)]
    Volume(#[from] volume::Error),
}

/// Does one move. `gap`: how far behind an attempt that nobody named the next one may be ([`State::attempt_gap`]).
///
/// [`State::attempt_gap`]: crate::model::state::State::attempt_gap
pub(super) fn perform(
    disk: &dyn Disk,
    layout: &Layout,
    names: &mut Temporary,
    session: &Session,
    gap: u32,
    step: &Move,
) -> Result<(), Failure> {
    match step {
        Move::Unended { job, lease } => {
            let path = layout.result(job, lease);
            found(disk.stat(&path)).on("look at", &path)?.map_or(Ok(()), |_| Err(Failure::Gone))
        }
        Move::Expect { run, stem } => {
            let path = layout.running_file(run, stem);
            found(disk.stat(&path)).on("look at", &path)?.map(|_| ()).ok_or(Failure::Gone)
        }
        Move::Key { id, from, stem, run, job, seen } => {
            let made = make_key(disk, layout, names, id, run, job, seen);
            if made.is_err() {
                relocate(disk, &layout.running_file(run, stem), &layout.entry(from))?;
            }
            made
        }
        Move::Take { from, expect, run, stem, job, fresh } => {
            // An id that a name carries may well be used already; one that was made here can only clash by chance.
            if *fresh && split_dropped(&from.name).1.is_some() && is_used(disk, layout, job, run, from, stem)? {
                return Err(Failure::Taken);
            }
            take(disk, layout, from, *expect, &layout.running_file(run, stem))?;
            if *fresh {
                if is_used(disk, layout, job, run, from, stem)? {
                    relocate(disk, &layout.running_file(run, stem), &layout.entry(from))?;
                    return Err(Failure::Taken);
                }
                return Ok(());
            }
            match Waiting::parse(&from.name) {
                Some(waiting) if is_over(disk, layout, job, run, before(waiting.attempt, gap))? => {
                    retire(disk, &layout.running_file(run, stem), &layout.processed_file(run, stem))?;
                    Err(Failure::Gone)
                }
                Some(_) | None => Ok(()),
            }
        }
        Move::Publish { job, lease, doubtful } => {
            let later = lease.attempt + 1..=lease.attempt + if *doubtful { 2 * gap } else { gap };
            if is_over(disk, layout, job, &lease.run, before(lease.attempt, gap).chain(later))? {
                return Err(Failure::Taken);
            }
            publish(disk, &staged_path(layout, job, lease, session), &layout.result(job, lease))
        }
        Move::Record(outcome) => {
            let lease = Lease { run: outcome.run_id.clone(), attempt: outcome.attempt };
            let others = (0..=lease.attempt + gap).filter(|attempt| *attempt != lease.attempt);
            if outcome.is_final && is_over(disk, layout, &outcome.job, &lease.run, others)? {
                return Err(Failure::Taken);
            }
            let path = layout.result(&outcome.job, &lease);
            let bytes = serde_json::to_vec(outcome).map_err(io::Error::from).on("write", &path)?;
            if write_new(disk, names, &path, &bytes)? { Ok(()) } else { Err(Failure::Taken) }
        }
        Move::Make { run, job, text } => make(disk, layout, names, job, run, text, gap),
        Move::Chain { run, job, text } => chain(disk, layout, names, job, run, text, gap),
        Move::Retire { run, stem, keep: true } => {
            retire(disk, &layout.running_file(run, stem), &layout.processed_file(run, stem))
        }
        Move::Retire { run, stem, keep: false } => {
            let path = layout.running_file(run, stem);
            Ok(found(disk.remove(&path)).on("remove", &path).map(|_| ())?)
        }
        Move::Wait { run, stem, not_before, attempt } => {
            let name = Waiting { not_before: *not_before, run: run.clone(), attempt: *attempt, stem: stem.clone() };
            relocate(disk, &layout.running_file(run, stem), &layout.waiting_file(&name))
        }
        Move::Duplicate { from, run, stem, first } => {
            relocate(disk, &layout.entry(from), &layout.duplicate_file(run, stem, first))
        }
    }
}

/// The claim: one rename, which only one device can win.
fn take(disk: &dyn Disk, layout: &Layout, from: &FileKey, expect: FileId, to: &Path) -> Result<(), Failure> {
    let path = layout.entry(from);
    let Some(meta) = found(disk.stat(&path)).on("look at", &path)? else { return Err(Failure::Gone) };
    if meta.kind != Kind::File || meta.id != expect {
        return Err(Failure::Changed);
    }
    relocate(disk, &path, to)
}

/// The claim of a run that nobody dropped: its file is made, and only one device can make it.
fn make(
    disk: &dyn Disk,
    layout: &Layout,
    names: &mut Temporary,
    job: &JobName,
    run: &RunId,
    text: &str,
    gap: u32,
) -> Result<(), Failure> {
    if has_traces(disk, layout, job, run, gap)? || waits(disk, layout, run)? {
        return Err(Failure::Taken);
    }
    let path = layout.running_file(run, job.as_str());
    if !write_new(disk, names, &path, text.as_bytes())? {
        return Err(Failure::Taken);
    }
    // Where the lock does not exclude, another may have made it, run it and taken it out since the first look.
    if has_traces(disk, layout, job, run, gap)? {
        disk.remove(&path).on("remove", &path)?;
        return Err(Failure::Taken);
    }
    Ok(())
}

/// A run that another's end causes: made once, however often it is asked for.
fn chain(
    disk: &dyn Disk,
    layout: &Layout,
    names: &mut Temporary,
    job: &JobName,
    run: &RunId,
    text: &str,
    gap: u32,
) -> Result<(), Failure> {
    let running = layout.running_file(run, job.as_str());
    let is_running = found(disk.stat(&running)).on("look at", &running)?.is_some();
    if is_running || waits(disk, layout, run)? || has_traces(disk, layout, job, run, gap)? {
        return Ok(());
    }
    let name = Waiting { not_before: run.time(), run: run.clone(), attempt: 1, stem: job.to_string() };
    let path = layout.waiting_file(&name);
    write_new(disk, names, &path, text.as_bytes())?;
    Ok(())
}

/// Whether a run has left anything behind: a result, or a log.
fn has_traces(disk: &dyn Disk, layout: &Layout, job: &JobName, run: &RunId, gap: u32) -> Result<bool, Failure> {
    // A file that nobody named goes on at a distance.
    for attempt in 0..=1 + gap {
        let lease = Lease { run: run.clone(), attempt };
        for path in [layout.result(job, &lease), layout.log(job, &lease)] {
            if found(disk.stat(&path)).on("look at", &path)?.is_some() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The attempts that may have ended a run before this one without its being seen. Each one since has looked at as many before
/// itself, so that no more need be looked at however many a daemon has had.
fn before(attempt: u32, gap: u32) -> impl Iterator<Item = u32> {
    std::iter::once(0).chain(attempt.saturating_sub(2 * gap).max(1)..attempt)
}

/// Whether a run waits for another attempt.
fn waits(disk: &dyn Disk, layout: &Layout, run: &RunId) -> Result<bool, Failure> {
    let folder = layout.waiting();
    let names = found(disk.list(&folder)).on("list", &folder)?.unwrap_or_default();
    Ok(names.iter().any(|name| Waiting::parse(name).is_some_and(|waiting| waiting.run == *run)))
}

/// An id that a name carries, or a hash that met its like, may have had its run already: then the trigger gets another id.
fn is_used(
    disk: &dyn Disk,
    layout: &Layout,
    job: &JobName,
    run: &RunId,
    from: &FileKey,
    stem: &str,
) -> Result<bool, Failure> {
    let lease = |attempt| Lease { run: run.clone(), attempt };
    let mut traces = vec![layout.log(job, &lease(1)), layout.result(job, &lease(0))];
    if split_dropped(&from.name).1.is_some() {
        traces.extend([layout.result(job, &lease(1)), layout.processed_file(run, stem)]);
    }
    for path in &traces {
        if found(disk.stat(path)).on("look at", path)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether one of these attempts ended the run: where a lock lies, a commit may not have seen it.
fn is_over(
    disk: &dyn Disk,
    layout: &Layout,
    job: &JobName,
    run: &RunId,
    attempts: impl Iterator<Item = u32>,
) -> Result<bool, Failure> {
    for attempt in attempts {
        let path = layout.result(job, &Lease { run: run.clone(), attempt });
        if results::read(disk, &path)?.is_some_and(|outcome| outcome.is_final) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A rename that never replaces.
fn relocate(disk: &dyn Disk, from: &Path, to: &Path) -> Result<(), Failure> {
    match in_folder(disk, to, || disk.rename_new(from, to)) {
        Ok(()) => Ok(()),
        Err(error) if is_absent(&error) => Err(Failure::Gone),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Failure::Taken),
        Err(error) => Err(Failure::Volume(volume::Error { doing: "move", path: from.to_owned(), source: error })),
    }
}

fn publish(disk: &dyn Disk, staged: &Path, to: &Path) -> Result<(), Failure> {
    match relocate(disk, staged, to) {
        // Published by an earlier try of the same commit.
        Err(Failure::Gone) if found(disk.stat(to)).on("look at", to)?.is_some() => Ok(()),
        other => other,
    }
}

/// The file of a run that is over. That it is gone changes nothing for the run.
fn retire(disk: &dyn Disk, from: &Path, to: &Path) -> Result<(), Failure> {
    match relocate(disk, from, to) {
        Err(Failure::Gone) => Ok(()),
        Err(Failure::Taken) => {
            // Somebody put a file of that name there: both are kept.
            let beside = (1_u32..).map(|n| to.with_extension(format!("{n}.json")));
            for path in beside.take(100) {
                match relocate(disk, from, &path) {
                    Err(Failure::Taken) => {}
                    other => return other,
                }
            }
            Err(Failure::Taken)
        }
        other => other,
    }
}

fn make_key(
    disk: &dyn Disk,
    layout: &Layout,
    names: &mut Temporary,
    id: &str,
    run: &RunId,
    job: &JobName,
    seen: &KeySeen,
) -> Result<(), Failure> {
    let path = layout.key(id);
    let bytes = serde_json::json!({"run_id": run, "job": job, "id": id}).to_string();
    if let KeySeen::Stale(before) = seen {
        // Another trigger of this key may have taken it over since it was seen.
        if keys::holder(disk, layout, id)? != *before {
            return Err(Failure::KeyTaken);
        }
        return Ok(write_over(disk, names, &path, bytes.as_bytes())?);
    }
    if write_new(disk, names, &path, bytes.as_bytes())? { Ok(()) } else { Err(Failure::KeyTaken) }
}
