//! The moves of a commit, on the disk. Each may be asked for twice: what already happened is done.

use std::io;
use std::path::Path;

use chrono::{DateTime, Utc};

use crate::decide::plan::Move;
use crate::model::config::TRIGGER_LIMIT;
use crate::model::entry::{FileId, FileKey, KeySeen, Waiting, split_dropped};
use crate::model::ids::{JobName, RunId, Session};
use crate::model::job::merged_kwargs;
use crate::model::lease::Lease;
use crate::model::result::Outcome;
use crate::model::trigger::parse_own;
use crate::volume::atomic::{Temporary, discard, in_folder, link_new, write_new, write_over};
use crate::volume::disk::{Disk, Kind};
use crate::volume::layout::Layout;
use crate::volume::results::{self, staged_path};
use crate::volume::{self, Context, found, inbox, is_absent, keys};

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

/// Does one move. Every move names the attempt whose file it moves, so that one that comes too late finds nothing to move.
pub(super) fn perform(
    disk: &dyn Disk,
    layout: &Layout,
    names: &mut Temporary,
    session: &Session,
    step: &Move,
) -> Result<(), Failure> {
    match step {
        Move::Unended { job, lease } => {
            let path = layout.result(job, lease);
            found(disk.stat(&path)).on("look at", &path)?.map_or(Ok(()), |_| Err(Failure::Gone))
        }
        Move::Remake { lease, stem, not_before, text } => remake(disk, layout, names, lease, stem, *not_before, text),
        Move::Absent { run } => {
            if inbox::has_file(disk, layout, run)? {
                Err(Failure::Changed)
            } else {
                Ok(())
            }
        }
        Move::Expect { lease, stem } => {
            let path = layout.running_file(lease, stem);
            found(disk.stat(&path)).on("look at", &path)?.map(|_| ()).ok_or(Failure::Gone)
        }
        Move::Key { id, from, stem, lease, job, seen } => {
            let made = make_key(disk, layout, names, id, &lease.run, job, seen);
            if made.is_err() {
                relocate(disk, &layout.running_file(lease, stem), &layout.entry(from))?;
            }
            made
        }
        Move::Take { from, expect, lease, stem, job, fresh: true } => {
            take_fresh(disk, layout, from, *expect, lease, stem, job)
        }
        Move::Take { from, expect, lease, stem, job, fresh: false } => {
            take(disk, layout, from, *expect, &layout.running_file(lease, stem))?;
            take_up_end(disk, layout, job, lease, stem)
        }
        Move::Void { job, lease } => void(disk, layout, job, lease),
        Move::EndUnstarted { outcome, lease, stem, keep, has_more } => {
            let mut outcome = outcome.clone();
            if *has_more {
                take_arguments(disk, &layout.running_file(lease, stem), &mut outcome)?;
            }
            end_unstarted(disk, layout, names, &outcome, lease)?;
            retire(disk, layout, lease, stem, *keep)
        }
        Move::Publish { job, lease } => {
            publish(disk, &staged_path(layout, job, lease, session), &layout.result(job, lease))
        }
        Move::Record(outcome) => record(disk, layout, names, outcome),
        Move::Make { run, job, text } => make(disk, layout, names, job, run, text),
        Move::Chain { run, job, text } => chain(disk, layout, names, job, run, text),
        Move::Retire { lease, stem, keep } => retire(disk, layout, lease, stem, *keep),
        Move::Wait { lease, stem, not_before } => {
            let (run, attempt) = (lease.run.clone(), lease.attempt + u32::from(!crate::planted!(ReuseAttempt)));
            let name = Waiting { not_before: *not_before, run, attempt, stem: stem.clone() };
            relocate(disk, &layout.running_file(lease, stem), &layout.waiting_file(&name))
        }
        Move::Renew { lease, stem } => {
            let next = Lease { attempt: lease.attempt + 1, ..lease.clone() };
            relocate(disk, &layout.running_file(lease, stem), &layout.running_file(&next, stem))
        }
        Move::Duplicate { from, run, stem, first } => {
            relocate(disk, &layout.entry(from), &layout.duplicate_file(run, stem, first))
        }
    }
}

/// Takes a fresh drop. An id that its name carries may well be used already; one that was made here can only clash by chance.
fn take_fresh(
    disk: &dyn Disk,
    layout: &Layout,
    from: &FileKey,
    expect: FileId,
    lease: &Lease,
    stem: &str,
    job: &JobName,
) -> Result<(), Failure> {
    if split_dropped(&from.name).1.is_some() && is_used(disk, layout, job, &lease.run, from, stem)? {
        return Err(Failure::Taken);
    }
    let file = layout.running_file(lease, stem);
    take(disk, layout, from, expect, &file)?;
    if is_used(disk, layout, job, &lease.run, from, stem)? {
        relocate(disk, &file, &layout.entry(from))?;
        return Err(Failure::Taken);
    }
    Ok(())
}

/// Looks whether an attempt that was just taken has its end already, because a device that was slow has made the run's file anew, or
/// whether the run has ended without it. Then only what follows from that end is missing, and nothing is claimed.
fn take_up_end(disk: &dyn Disk, layout: &Layout, job: &JobName, lease: &Lease, stem: &str) -> Result<(), Failure> {
    let Some(outcome) = end_of(disk, layout, job, lease)? else { return Ok(()) };
    if outcome.is_final {
        retire(disk, layout, lease, stem, outcome.cause.is_dropped())?;
    } else {
        let (run, attempt) = (lease.run.clone(), lease.attempt + 1);
        let next = Waiting { not_before: run.time(), run, attempt, stem: stem.to_owned() };
        relocate(disk, &layout.running_file(lease, stem), &layout.waiting_file(&next))?;
    }
    Err(Failure::Gone)
}

/// Returns the result of an attempt, or else the one that ended its run: without an attempt, or with an earlier one whose device died
/// after it had moved the run's file for the next.
fn end_of(disk: &dyn Disk, layout: &Layout, job: &JobName, lease: &Lease) -> Result<Option<Outcome>, volume::Error> {
    let without = Lease { attempt: 0, ..lease.clone() };
    for ended in [lease, &without] {
        let outcome = results::read(disk, &layout.result(job, ended))?;
        if outcome.is_some() {
            return Ok(outcome);
        }
    }
    Ok(results::last_before(disk, layout, job, lease)?.filter(|outcome| outcome.is_final))
}

/// Makes a run's file anew for the attempt after `lease`. Another device that has moved the run on meanwhile has ended the attempt.
fn remake(
    disk: &dyn Disk,
    layout: &Layout,
    names: &mut Temporary,
    lease: &Lease,
    stem: &str,
    not_before: DateTime<Utc>,
    text: &str,
) -> Result<(), Failure> {
    let next = Waiting { not_before, run: lease.run.clone(), attempt: lease.attempt + 1, stem: stem.to_owned() };
    let path = layout.waiting_file(&next);
    match relocate(disk, &layout.running_file(lease, stem), &path) {
        Err(Failure::Gone) => {}
        moved => return moved,
    }
    // Made by an earlier try of the same commit.
    if inbox::waiting_attempt(disk, layout, &lease.run)? == Some(next.attempt) {
        return Ok(());
    }
    if inbox::has_file(disk, layout, &lease.run)? || !write_new(disk, names, &path, text.as_bytes())? {
        return Err(Failure::Taken);
    }
    Ok(())
}

/// Makes the log of an attempt, so that no device can start it any more.
fn void(disk: &dyn Disk, layout: &Layout, job: &JobName, lease: &Lease) -> Result<(), Failure> {
    let path = layout.log(job, lease);
    match in_folder(disk, &path, || disk.create(&path, VOID)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Failure::Gone),
        made => Ok(made.on("create", &path)?),
    }
}

/// The log of an attempt that was claimed and can no longer start.
const VOID: &[u8] = b"[this attempt was never started: its claim was not committed]\n";

/// Gives a result the arguments that stand in the run's file. Without the file this end is written already.
fn take_arguments(disk: &dyn Disk, file: &Path, outcome: &mut Outcome) -> Result<(), Failure> {
    let Some((bytes, _)) = found(disk.read(file, TRIGGER_LIMIT)).on("read", file)? else { return Ok(()) };
    // What can no longer be read ends all the same.
    if let Ok(trigger) = parse_own(&bytes) {
        outcome.kwargs = merged_kwargs(&outcome.kwargs, &trigger.kwargs);
        outcome.args = trigger.args.unwrap_or_else(|| std::mem::take(&mut outcome.args));
    }
    Ok(())
}

/// Writes the result of a run that ends without an attempt. The device that makes the attempt's log decides whether it
/// starts: here the log becomes the result's own file, so that another device that finds it can complete the end
/// ([`results::pending_end`]).
fn end_unstarted(
    disk: &dyn Disk,
    layout: &Layout,
    names: &mut Temporary,
    outcome: &Outcome,
    lease: &Lease,
) -> Result<(), Failure> {
    let (job, pending) = (&outcome.job, layout.pending_end(&outcome.job, lease));
    let bytes = serde_json::to_vec(outcome).map_err(io::Error::from).on("write", &pending)?;
    // Found empty after a power cut it is made anew.
    if !write_new(disk, names, &pending, &bytes)? && !results::is_whole(disk, &pending)? {
        write_over(disk, names, &pending, &bytes)?;
    }
    let log = layout.log(job, lease);
    // If the log is there, either the attempt was started, or another device is at this same end.
    if !link_new(disk, names, &pending, &log)? && results::pending_end(disk, layout, job, lease)?.is_none() {
        discard(disk, &pending);
        return Err(Failure::Gone);
    }
    let path = layout.result(job, &Lease { attempt: 0, ..lease.clone() });
    match disk.rename_new(&pending, &path) {
        // Another device was at it too.
        Err(error) if is_absent(&error) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => discard(disk, &pending),
        other => other.on("write", &path)?,
    }
    // The result says the same from now on.
    discard(disk, &log);
    Ok(())
}

/// Writes a result that no program reported.
fn record(disk: &dyn Disk, layout: &Layout, names: &mut Temporary, outcome: &Outcome) -> Result<(), Failure> {
    let path = layout.result(&outcome.job, &Lease { run: outcome.run_id.clone(), attempt: outcome.attempt });
    let bytes = serde_json::to_vec(outcome).map_err(io::Error::from).on("write", &path)?;
    let write = |names: &mut Temporary| write_new(disk, names, &path, &bytes);
    if write(names)? || !results::stands(disk, &path)? && write(names)? { Ok(()) } else { Err(Failure::Taken) }
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
) -> Result<(), Failure> {
    let first = Lease { run: run.clone(), attempt: 1 };
    if has_traces(disk, layout, job, run)? {
        return Err(Failure::Taken);
    }
    let path = layout.running_file(&first, job.as_str());
    if write_new(disk, names, &path, text.as_bytes())? { Ok(()) } else { Err(Failure::Taken) }
}

/// A run that another's end causes: made once, however often it is asked for.
fn chain(
    disk: &dyn Disk,
    layout: &Layout,
    names: &mut Temporary,
    job: &JobName,
    run: &RunId,
    text: &str,
) -> Result<(), Failure> {
    let running = layout.running_file(&Lease { run: run.clone(), attempt: 1 }, job.as_str());
    let is_running = found(disk.stat(&running)).on("look at", &running)?.is_some();
    if !is_running && !has_traces(disk, layout, job, run)? {
        let name = Waiting { not_before: run.time(), run: run.clone(), attempt: 1, stem: job.to_string() };
        write_new(disk, names, &layout.waiting_file(&name), text.as_bytes())?;
    }
    Ok(())
}

/// Returns whether a run was there before: its first attempt leaves a result or a log, also if it was never started, and an end without an
/// attempt leaves a result.
fn has_traces(disk: &dyn Disk, layout: &Layout, job: &JobName, run: &RunId) -> Result<bool, Failure> {
    let lease = |attempt| Lease { run: run.clone(), attempt };
    for path in [layout.result(job, &lease(0)), layout.result(job, &lease(1)), layout.log(job, &lease(1))] {
        if found(disk.stat(&path)).on("look at", &path)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
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
        Err(Failure::Taken) if !results::stands(disk, to)? => relocate(disk, staged, to),
        // Published by an earlier try of the same commit.
        Err(Failure::Gone) if found(disk.stat(to)).on("look at", to)?.is_some() => Ok(()),
        other => other,
    }
}

/// Takes the file of a run that is over out of `.running`; one that nobody handed in is removed. That it is gone changes nothing for the
/// run.
fn retire(disk: &dyn Disk, layout: &Layout, lease: &Lease, stem: &str, keep: bool) -> Result<(), Failure> {
    let from = layout.running_file(lease, stem);
    if !keep {
        return Ok(found(disk.remove(&from)).on("remove", &from).map(|_| ())?);
    }
    let to = layout.processed_file(&lease.run, stem);
    // Somebody may have put a file of that name there: both are kept.
    let beside = (1_u32..100).map(|n| to.with_extension(format!("{n}.json")));
    for path in std::iter::once(to.clone()).chain(beside) {
        match relocate(disk, &from, &path) {
            Err(Failure::Taken) => {}
            Err(Failure::Gone) => return Ok(()),
            other => return other,
        }
    }
    Err(Failure::Taken)
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
