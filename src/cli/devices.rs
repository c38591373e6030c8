//! `orchestrator devices`: who is there, and what people ask of them.

use clap::{Args, Subcommand};
use serde_json::json;

use super::limits::{LimitsArgs, limits};
use super::out::{Cell, Paint};
use super::times::short;
use super::{Code, Context, Failure};
use crate::client::devices::{self, Asked, Forgotten, Row};
use crate::model::ids::Tag;
use crate::model::state::Ask;

/// The verbs of `devices`.
#[derive(Debug, Subcommand)]
pub(super) enum DevicesVerb {
    /// Who is there, how loaded, since when.
    List,
    /// Take no new work; what runs goes on. It stays so after a restart.
    Drain(DeviceArg),
    /// Take work again.
    Resume(DeviceArg),
    /// Change its slots and the default limits of its runs, now and after a restart; with no option it says what holds.
    Limits(LimitsArgs),
    /// Remove what is left of a device that is dead.
    Forget(DeviceArg),
}

/// Which device.
#[derive(Debug, Clone, Args)]
pub(super) struct DeviceArg {
    /// Its id.
    id: String,
}

pub(super) fn devices(verb: &DevicesVerb, context: &Context) -> Result<Code, Failure> {
    context.client.need_volume()?;
    match verb {
        DevicesVerb::List => list(context),
        DevicesVerb::Drain(args) => ask(context, &args.id, Ask::Drain),
        DevicesVerb::Resume(args) => ask(context, &args.id, Ask::Resume),
        DevicesVerb::Limits(args) => limits(context, args),
        DevicesVerb::Forget(args) => forget(context, &args.id),
    }
}

fn list(context: &Context) -> Result<Code, Failure> {
    let rows = devices::list(&context.client)?;
    if context.out.json {
        context.out.document(&rows)?;
    } else if rows.is_empty() {
        context.out.note("no device was ever here: start one with `orchestrator run`");
    } else {
        table(context, &rows)?;
    }
    Ok(Code::Done)
}

/// The rows as people read them.
pub(super) fn table(context: &Context, rows: &[Row]) -> Result<(), Failure> {
    let now = context.client.now().wall;
    let cells: Vec<[Cell; 8]> = rows
        .iter()
        .map(|row| {
            let tags: Vec<&str> =
                row.tags.iter().filter(|tag| tag.as_str() != row.device.as_str()).map(Tag::as_str).collect();
            [
                Cell::new(row.device.as_str()),
                state_cell(row),
                Cell::new(format!("{}/{}", row.busy, row.slots)),
                Cell::new(format!("{:.2}", row.load)),
                Cell::new(if tags.is_empty() { "-".to_owned() } else { tags.join(",") }),
                Cell::new(&row.host),
                Cell::new(&row.version),
                Cell::new(short(if row.alive { row.since } else { row.seen_at }, now)),
            ]
        })
        .collect();
    context.out.table(["DEVICE", "STATE", "BUSY", "LOAD", "TAGS", "HOST", "VERSION", "SINCE"], &cells)
}

fn state_cell(row: &Row) -> Cell {
    match (row.alive, row.asked, row.drained) {
        (false, _, _) if row.silent => Cell::painted("silent", Paint::Red),
        (false, _, drained) => match (row.left, drained) {
            (true, false) => Cell::painted("left", Paint::Dim),
            (true, true) => Cell::painted("left, drained", Paint::Dim),
            (false, false) => Cell::painted("dead", Paint::Red),
            (false, true) => Cell::painted("dead, drained", Paint::Red),
        },
        (true, Some(Ask::Drain), false) => Cell::painted("alive, to be drained", Paint::Yellow),
        (true, Some(Ask::Resume), true) => Cell::painted("drained, to be resumed", Paint::Yellow),
        (true, _, true) => Cell::painted("drained", Paint::Yellow),
        (true, _, false) => Cell::painted("alive", Paint::Green),
    }
}

fn ask(context: &Context, name: &str, ask: Ask) -> Result<Code, Failure> {
    let Asked { device, ask, alive, held } = devices::ask(&context.client, name, ask)?;
    let verb = if ask == Ask::Drain { "takes no new work" } else { "takes work again" };
    let when = match (held, alive) {
        (true, _) => "",
        (false, true) => " as soon as it reads this",
        (false, false) => " once it is back: it is not alive",
    };
    if context.out.json {
        context.out.document(&json!({"device": device, "asked": ask, "alive": alive}))?;
    } else if !context.out.quiet {
        context.out.line(&format!("{device} {verb}{when}"))?;
    }
    Ok(Code::Done)
}

fn forget(context: &Context, name: &str) -> Result<Code, Failure> {
    let Forgotten { device, holds } = devices::forget(&context.client, name)?;
    if context.out.json {
        context.out.document(&json!({"device": device, "forgotten": true}))?;
    } else if !context.out.quiet {
        let rest = match holds {
            0 => String::new(),
            1 => "; the run it held goes on elsewhere once its lease is over".to_owned(),
            many => format!("; the {many} runs it held go on elsewhere once its lease is over"),
        };
        context.out.line(&format!("{device} is forgotten{rest}"))?;
    }
    Ok(Code::Done)
}
