//! `orchestrator keys`: who may use the HTTP API.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;

use super::out::{Cell, Paint};
use super::times::{When, duration, short, when};
use super::{Code, Context, Failure};
use crate::client::security::keys::{self, Made, OVERLAP, Row, Wanted};
use crate::model::access::{Role, Scope};

/// The verbs of `keys`.
#[derive(Debug, Subcommand)]
pub(super) enum KeysVerb {
    /// Make a key and show it, this once.
    Create(CreateArgs),
    /// All keys; nothing of their secrets.
    List,
    /// Give a key another secret and show it, this once.
    Rotate(RotateArgs),
    /// Let a key open nothing until it is activated.
    Revoke(KeyArg),
    /// Let a revoked key open what it did.
    Activate(KeyArg),
    /// Remove a key.
    Delete(KeyArg),
}

/// Options of `keys create`.
#[derive(Debug, Clone, Args)]
pub(super) struct CreateArgs {
    /// What it is for.
    #[arg(long, value_name = "TEXT")]
    name: String,
    /// viewer, agent, operator or admin.
    #[arg(long, value_name = "ROLE", default_value = "viewer")]
    role: Role,
    /// What it is limited to: job:PREFIX or tag:TAG.
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<Scope>,
    /// Until when it is good: a time, or a duration from now [default: for ever].
    #[arg(long, value_name = "TIME", value_parser = when)]
    expires: Option<When>,
}

/// Options of `keys rotate`.
#[derive(Debug, Clone, Args)]
pub(super) struct RotateArgs {
    #[command(flatten)]
    key: KeyArg,
    /// How long the old secret stays good [default: 24h].
    #[arg(long, value_name = "D", value_parser = duration)]
    overlap: Option<Duration>,
}

/// Which key.
#[derive(Debug, Clone, Args)]
pub(super) struct KeyArg {
    /// Its id: what stands between `aios_` and the next `_`.
    id: String,
}

pub(super) fn keys(verb: &KeysVerb, context: &mut Context) -> Result<Code, Failure> {
    context.client.need_volume()?;
    match verb {
        KeysVerb::Create(args) => {
            let now = context.client.now().wall;
            let wanted = Wanted {
                name: args.name.clone(),
                role: args.role,
                scopes: args.scopes.clone(),
                expires_at: args.expires.map(|at| at.ahead(now)),
            };
            let made = keys::create(&mut context.client, wanted)?;
            show(context, &made)
        }
        KeysVerb::List => list(context),
        KeysVerb::Rotate(args) => {
            let made = keys::rotate(&mut context.client, &args.key.id, args.overlap.unwrap_or(OVERLAP))?;
            show(context, &made)
        }
        KeysVerb::Revoke(args) => set_active(context, &args.id, false),
        KeysVerb::Activate(args) => set_active(context, &args.id, true),
        KeysVerb::Delete(args) => {
            keys::delete(&mut context.client, &args.id)?;
            if context.out.json {
                context.out.document(&json!({"id": args.id, "deleted": true}))?;
            } else if !context.out.quiet {
                context.out.line(&format!("deleted {}", args.id))?;
            }
            Ok(Code::Done)
        }
    }
}

/// The key alone on standard output, so that a script can keep it.
fn show(context: &Context, made: &Made) -> Result<Code, Failure> {
    if context.out.json {
        context.out.document(made)?;
        return Ok(Code::Done);
    }
    context.out.note(&format!("{} ({}); it is shown this once:", made.row.name, made.row.role));
    if let Some(until) = made.row.previous_until {
        let until = short(until, context.client.now().wall);
        context.out.note(&format!("the old one is good until {until}; --overlap 0s ends it at once"));
    }
    context.out.line(&made.key)?;
    Ok(Code::Done)
}

fn set_active(context: &mut Context, id: &str, active: bool) -> Result<Code, Failure> {
    let row = keys::set_active(&mut context.client, id, active)?;
    if context.out.json {
        context.out.document(&row)?;
    } else if !context.out.quiet {
        let what =
            if active { "is good again" } else { "opens nothing any more, on all devices within a second or two" };
        context.out.line(&format!("{id} {what}"))?;
    }
    Ok(Code::Done)
}

fn list(context: &Context) -> Result<Code, Failure> {
    let rows = keys::list(&context.client)?;
    if context.out.json {
        context.out.document(&rows)?;
    } else if rows.is_empty() {
        context.out.note("there is no key; `orchestrator keys create --name NAME --role admin` makes one");
    } else {
        table(context, &rows)?;
    }
    Ok(Code::Done)
}

fn table(context: &Context, rows: &[Row]) -> Result<(), Failure> {
    let now = context.client.now().wall;
    let cells: Vec<[Cell; 7]> = rows
        .iter()
        .map(|row| {
            let state = match (row.active, row.expires_at) {
                (false, _) => Cell::painted("revoked", Paint::Red),
                (true, Some(at)) if at <= now => Cell::painted("expired", Paint::Red),
                (true, Some(at)) => Cell::painted(format!("good until {}", short(at, now)), Paint::Green),
                (true, None) => Cell::painted("good", Paint::Green),
            };
            [
                Cell::new(&row.id),
                Cell::new(&row.name),
                Cell::new(row.role.as_str()),
                Cell::new(super::users::scopes_text(&row.scopes)),
                state,
                Cell::new(short(row.created_at, now)),
                Cell::new(row.last_used_at.map_or_else(|| "-".to_owned(), |at| short(at, now))),
            ]
        })
        .collect();
    context.out.table(["ID", "NAME", "ROLE", "SCOPES", "STATE", "CREATED", "LAST USED"], &cells)
}
