//! `orchestrator users`: people who use the HTTP API with a password.

use std::io::{BufRead, IsTerminal, Write};

use clap::{Args, Subcommand};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use serde_json::json;

use super::out::{Cell, Paint};
use super::times::short;
use super::{Code, Context, Failure};
use crate::client::security::users::{self, Change, Row};
use crate::model::access::{Role, Scope};

/// The longest line that is read as a password, bytes.
const LINE: u64 = 8_192;

/// The verbs of `users`.
#[derive(Debug, Subcommand)]
pub(super) enum UsersVerb {
    /// Make a user; the password is read from standard input, or asked for.
    Create(CreateArgs),
    /// All users.
    List,
    /// Change a user; tokens that were given before are no longer good.
    Update(UpdateArgs),
    /// Remove a user.
    Delete(UserArg),
}

/// Options of `users create`.
#[derive(Debug, Clone, Args)]
pub(super) struct CreateArgs {
    #[command(flatten)]
    user: UserArg,
    /// viewer, agent, operator or admin.
    #[arg(long, value_name = "ROLE", default_value = "viewer")]
    role: Role,
    /// What this user is limited to: job:PREFIX or tag:TAG.
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<Scope>,
}

/// Options of `users update`.
#[derive(Debug, Clone, Args)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["role", "scopes", "no_scopes", "password", "active"])))]
pub(super) struct UpdateArgs {
    #[command(flatten)]
    user: UserArg,
    /// Another role.
    #[arg(long, value_name = "ROLE")]
    role: Option<Role>,
    /// Other scopes, in the place of the old ones.
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<Scope>,
    /// No scopes any more.
    #[arg(long, conflicts_with = "scopes")]
    no_scopes: bool,
    /// Another password, read from standard input or asked for.
    #[arg(long)]
    password: bool,
    /// Whether this user may come in.
    #[arg(long, value_name = "BOOL")]
    active: Option<bool>,
}

/// Which user.
#[derive(Debug, Clone, Args)]
pub(super) struct UserArg {
    /// The name.
    name: String,
}

pub(super) fn users(verb: &UsersVerb, context: &mut Context) -> Result<Code, Failure> {
    context.client.need_volume()?;
    match verb {
        UsersVerb::Create(args) => {
            let password = read_password()?;
            let name = &args.user.name;
            let row = users::create(&mut context.client, name, args.role, args.scopes.clone(), &password)?;
            tell(context, &row, "made")
        }
        UsersVerb::List => list(context),
        UsersVerb::Update(args) => {
            let scopes = (args.no_scopes || !args.scopes.is_empty()).then(|| args.scopes.clone());
            let password = args.password.then(read_password).transpose()?;
            let change = Change { role: args.role, scopes, password, active: args.active };
            let row = users::change(&mut context.client, &args.user.name, change)?;
            tell(context, &row, "changed")
        }
        UsersVerb::Delete(args) => {
            users::delete(&mut context.client, &args.name)?;
            if context.out.json {
                context.out.document(&json!({"name": args.name, "deleted": true}))?;
            } else if !context.out.quiet {
                context.out.line(&format!("deleted {}", args.name))?;
            }
            Ok(Code::Done)
        }
    }
}

fn tell(context: &Context, row: &Row, what: &str) -> Result<Code, Failure> {
    if context.out.json {
        context.out.document(row)?;
    } else if !context.out.quiet {
        context.out.line(&format!("{what} the user {}", row.name))?;
    }
    Ok(Code::Done)
}

/// A password never stands on a command line, where everybody could read it.
fn read_password() -> Result<String, Failure> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return read_line();
    }
    let failed = |error: rustix::io::Errno| {
        Failure::new(Code::Failed, format!("cannot ask for the password: {error}"), "give it on standard input")
    };
    let before = tcgetattr(&stdin).map_err(failed)?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    let ask = |words: &str| {
        let mut stderr = std::io::stderr();
        // Whoever does not see the question does not answer it.
        let _ = write!(stderr, "{words}: ").and_then(|()| stderr.flush());
        let line = read_line();
        let _ = writeln!(stderr);
        line
    };
    tcsetattr(&stdin, OptionalActions::Flush, &silent).map_err(failed)?;
    let answers = ask("password").and_then(|first| Ok((first, ask("the same once more")?)));
    tcsetattr(&stdin, OptionalActions::Flush, &before).map_err(failed)?;
    let (first, second) = answers?;
    if first != second {
        return Err(Failure::new(Code::Usage, "the two passwords are not the same", "try again"));
    }
    Ok(first)
}

fn read_line() -> Result<String, Failure> {
    let mut line = String::new();
    let read = std::io::Read::take(std::io::stdin().lock(), LINE).read_line(&mut line);
    read.map_err(|error| {
        Failure::new(Code::Usage, format!("cannot read the password: {error}"), "give it as a line of text")
    })?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn list(context: &Context) -> Result<Code, Failure> {
    let rows = users::list(&context.client)?;
    if context.out.json {
        context.out.document(&rows)?;
        return Ok(Code::Done);
    }
    if rows.is_empty() {
        context.out.note("there is no user; `orchestrator users create NAME --role admin` makes one");
        return Ok(Code::Done);
    }
    let now = context.client.now().wall;
    let cells: Vec<[Cell; 5]> = rows
        .iter()
        .map(|row| {
            let state =
                if row.active { Cell::painted("active", Paint::Green) } else { Cell::painted("locked", Paint::Red) };
            let created = short(row.created_at, now);
            [
                Cell::new(&row.name),
                Cell::new(row.role.as_str()),
                Cell::new(scopes_text(&row.scopes)),
                state,
                Cell::new(created),
            ]
        })
        .collect();
    context.out.table(["NAME", "ROLE", "SCOPES", "STATE", "CREATED"], &cells)?;
    Ok(Code::Done)
}

/// Scopes as a cell shows them.
pub(super) fn scopes_text(scopes: &[Scope]) -> String {
    if scopes.is_empty() { "-".to_owned() } else { scopes.iter().map(Scope::to_string).collect::<Vec<_>>().join(",") }
}
