//! `orchestrator backup` and `orchestrator restore`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::out::Cell;
use super::times::{duration, local};
use super::{Code, Context, Failure};
use crate::client::backups;
use crate::client::view::me;
use crate::volume::backup::restore::{Restored, Wish, restore as bring_back};
use crate::volume::backup::{Made, RESULTS, list};

/// What of backups.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct BackupArgs {
    #[command(subcommand)]
    verb: Option<BackupVerb>,
    #[command(flatten)]
    make: MakeArgs,
}

#[derive(Debug, Clone, Subcommand)]
enum BackupVerb {
    /// The backups that are there, oldest first.
    List {
        /// In which folder [default: Common/Backups].
        #[arg(long, value_name = "FOLDER")]
        to: Option<PathBuf>,
    },
}

#[derive(Debug, Clone, Args)]
struct MakeArgs {
    /// Into which folder; made if it is missing [default: Common/Backups].
    #[arg(long, value_name = "FOLDER")]
    to: Option<PathBuf>,
    /// How young results must be to come along; the last of each job always does [default: 7d].
    #[arg(long, value_parser = duration, value_name = "D")]
    results: Option<Duration>,
    /// How many backups of this volume stay in that folder, this one among them [default: all].
    #[arg(long, value_parser = count, value_name = "N")]
    keep: Option<usize>,
}

/// What to restore.
#[derive(Debug, Clone, Args)]
pub(super) struct RestoreArgs {
    /// The backup's file.
    archive: PathBuf,
    /// Replace what is there and other than in the backup; it is kept beside it as NAME.before-restore-TIME.
    #[arg(long)]
    force: bool,
}

/// How many backups stay: at least one.
pub(super) fn count(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=100_000).contains(number));
    number.ok_or_else(|| "expected a number from 1 to 100000".to_owned())
}

/// Makes a backup, or shows them.
pub(super) fn backup(args: &BackupArgs, context: &mut Context) -> Result<Code, Failure> {
    context.client.need_volume()?;
    match &args.verb {
        Some(BackupVerb::List { to }) => show(&folder(to.as_ref(), context)?, context),
        None => make_one(&args.make, context),
    }
}

fn folder(to: Option<&PathBuf>, context: &Context) -> Result<PathBuf, Failure> {
    let Some(to) = to else { return Ok(context.client.layout.backups()) };
    absolute(to)
}

fn absolute(path: &PathBuf) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| {
        Failure::new(Code::Volume, format!("cannot find {}: {error}", path.display()), "give an absolute path")
    })
}

fn make_one(args: &MakeArgs, context: &mut Context) -> Result<Code, Failure> {
    let to = folder(args.to.as_ref(), context)?;
    let (made, removed) = backups::back_up(&mut context.client, &to, args.results.unwrap_or(RESULTS), args.keep)?;
    let Made { path, bytes, manifest } = made;
    if context.out.json {
        let answer = serde_json::json!({"path": path, "bytes": bytes, "manifest": manifest, "removed": removed});
        context.out.document(&answer)?;
        return Ok(Code::Done);
    }
    let files: u64 = manifest.parts.iter().map(|tally| tally.files).sum();
    context.out.line(&path.display().to_string())?;
    context.out.note(&format!("{files} files, {bytes} bytes"));
    for skipped in &manifest.skipped {
        context.out.note(&format!("left out: {}: {}", skipped.path, skipped.why));
    }
    for name in removed {
        context.out.note(&format!("removed {name}"));
    }
    Ok(Code::Done)
}

fn show(folder: &std::path::Path, context: &Context) -> Result<Code, Failure> {
    let all = list(&*context.client.disk, folder)?;
    if context.out.json {
        context.out.document(&all)?;
        return Ok(Code::Done);
    }
    let now = context.client.now().wall;
    let row = |it: &crate::volume::backup::Listed| {
        [
            Cell::new(local(it.at, now)),
            Cell::new(&it.volume),
            Cell::new(it.bytes.to_string()),
            Cell::new(context.client.shown(&it.path)),
        ]
    };
    context.out.table(["MADE", "VOLUME", "BYTES", "FILE"], &all.iter().map(row).collect::<Vec<_>>())?;
    Ok(Code::Done)
}

/// Makes a backup a volume again.
pub(super) fn restore(args: &RestoreArgs, context: &mut Context) -> Result<Code, Failure> {
    let wish = Wish {
        archive: absolute(&args.archive)?,
        force: args.force,
        me: me(&context.client),
        now: context.client.now().wall,
    };
    let done = bring_back(&*context.client.disk, &context.client.layout, &mut context.client.names, &wish)?;
    if context.out.json {
        context.out.document(&done)?;
        return Ok(Code::Done);
    }
    let Restored { volume, written, stayed, runs_stayed_away, runs_reconciled, kept, .. } = done;
    context.out.line(&format!(
        "restored the volume {volume} into {}: {written} files written, {stayed} stayed as they are",
        context.client.layout.common.display()
    ))?;
    if runs_stayed_away + runs_reconciled > 0 {
        context.out.note(&format!(
            "{runs_stayed_away} open runs of the backup are here already, {runs_reconciled} went on since: devices go on from what is here"
        ));
    }
    for path in kept {
        context.out.note(&format!("what was replaced is kept as {}", context.client.shown(&path)));
    }
    Ok(Code::Done)
}
