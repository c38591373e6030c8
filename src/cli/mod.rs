//! The command line: one file a verb. Every verb works on the volume directly, without a running device.
//!
//! This room promises exact words: each failure names the thing, what was found, what was expected, a hint, and ends with
//! the exit code of `docs/reference/formats.md`. With `--json` there is one document on standard output, and errors are JSON too.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::exec::identity::IdentityError;
use crate::exec::{identity, init as process_one, launch};

mod access;
mod backup;
pub mod context;
mod devices;
mod doctor;
mod explain;
mod failure;
mod follow;
mod health;
mod http;
mod init;
mod jobs;
mod keys;
mod limits;
mod logs;
mod out;
mod pages;
mod ready;
mod restart;
mod rival;
mod rows;
mod run;
mod runs;
mod selftest;
mod status;
mod times;
mod trigger;
mod users;

pub use crate::client::{Code, Failure};
pub use context::Context;
pub use out::Out;

/// Runs jobs across every container and machine that shares a folder.
///
/// Without a verb it runs a device, like `orchestrator run`.
#[derive(Debug, Parser)]
#[command(name = "orchestrator", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    /// Test this program and the volume; whatever it makes it removes. Exit code 1 if a check fails.
    #[arg(long, help_heading = "Options")]
    test: bool,
    #[command(flatten)]
    run: run::RunArgs,
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// Options of every verb.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options for every verb")]
pub struct Global {
    /// The shared folder.
    #[arg(long, env = "AIOS_COMMON", default_value = "./Common", global = true, value_name = "PATH")]
    pub common: PathBuf,
    /// The folder with jobs and their programs.
    #[arg(long, env = "AIOS_PROGRAMS", default_value = "./Programs", global = true, value_name = "PATH")]
    pub programs: PathBuf,
    /// Write JSON: one document, or a line each where it follows.
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more; twice for everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Say only what was asked for, and errors.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Colours: on a terminal only, always or never. `NO_COLOR` is respected.
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: Color,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Color {
    /// On a terminal only.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start this device (the default).
    Run(Box<run::RunArgs>),
    /// Make the shared folder ready before there is a device. Exit code 4 if it cannot be written.
    Init,
    /// Write a trigger and print its run id.
    Trigger(trigger::TriggerArgs),
    /// The same for a command without a job file.
    Exec(trigger::ExecArgs),
    /// The jobs in Programs.
    #[command(subcommand)]
    Jobs(jobs::JobsVerb),
    /// Waiting, active and past runs.
    #[command(subcommand)]
    Runs(runs::RunsVerb),
    /// The devices of the volume.
    #[command(subcommand)]
    Devices(devices::DevicesVerb),
    /// API keys: who may use the HTTP API.
    #[command(subcommand)]
    Keys(keys::KeysVerb),
    /// Users of the HTTP API, with a password.
    #[command(subcommand)]
    Users(users::UsersVerb),
    /// Stop and start the active runs of a job, wherever they are.
    Restart(restart::RestartArgs),
    /// One screen: devices, what runs, what waits and why, what failed, what hinders.
    Status,
    /// The orchestrators' own logs, merged by time.
    Logs(logs::LogsArgs),
    /// Whether this machine's device lives, for those who watch it. Exit code 1 if it does not.
    Health(health::HealthArgs),
    /// Each thing that can be wrong with this machine and volume, and how to mend it. Exit code 1 if one is an error.
    Doctor,
    /// Archive what the volume cannot do without, or show the backups.
    Backup(backup::BackupArgs),
    /// Make a backup a volume again. No device may live on it.
    Restore(backup::RestoreArgs),
    /// A shell's completions.
    Completions(pages::CompletionsArgs),
    /// The manual page.
    Man(pages::ManArgs),
    /// The JSON Schema of job or trigger files, for editors.
    Schema(pages::SchemaArgs),
}

/// Parses the command line, does what it says, and says what went wrong.
#[must_use]
pub fn main() -> ExitCode {
    if identity::is_change_due() {
        return become_owner();
    }
    if let Some(orders) = launch::wanted(std::env::args_os()) {
        return launch::launch(&orders);
    }
    if process_one::is_first() {
        return process_one::stand_in(std::env::args_os()).unwrap_or_else(|error| {
            let hint = "as process 1 of a container it runs itself once more: is /proc mounted?";
            let error = format!("cannot start as a child of process 1: {error}");
            failure::report(&Failure::new(Code::Failed, error, hint), false)
        });
    }
    if let Some(lock) = rival::wanted(std::env::args_os()) {
        return rival::hold(&lock);
    }
    let cli = match parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return failure::of_usage(&error),
    };
    let out = Out::new(&cli.global);
    let outcome = Context::new(&cli.global, out).and_then(|mut context| dispatch(cli, &mut context));
    match outcome {
        Ok(code) => code.into(),
        Err(failure) => failure::report(&failure, std::env::args_os().any(|arg| arg == "--json")),
    }
}

/// Becomes the owner of the shared folder and starts again as that user; returns the exit code if that fails.
fn become_owner() -> ExitCode {
    let cli = match parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return failure::of_usage(&error),
    };
    let common = std::path::absolute(&cli.global.common).unwrap_or(cli.global.common);
    let host = match &cli.verb {
        Some(Verb::Run(args)) => &args.docker_host,
        _ => &cli.run.docker_host,
    };
    let socket = host.strip_prefix("unix://").map(std::path::Path::new);
    let error = identity::become_owner(&common, socket, std::env::args_os());
    let (code, hint) = match error {
        IdentityError::Variable { .. } => {
            (Code::Usage, "unset it: the owner of Common and the socket's group are found out")
        }
        IdentityError::Owner { .. } => (Code::Volume, "is the shared folder mounted?"),
        IdentityError::Refused { .. } => (
            Code::Failed,
            "a container that starts as root needs the capabilities SETUID and SETGID (cap_add); or start it as that user (user:)",
        ),
    };
    failure::report(&Failure::new(code, error.to_string(), hint), cli.global.json)
}

/// Reads the command line. What only `run` takes is refused before another verb instead of being ignored; what the environment
/// says for `run` is no mistake there.
fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let mut whole = without_empty_variables(Cli::command());
    let matches = whole.try_get_matches_from_mut(words)?;
    if let Some(verb) = matches.subcommand_name() {
        let of_run = run::RunArgs::augment_args(clap::Command::new("run"));
        let mut words = of_run.get_arguments().map(|arg| arg.get_id().as_str()).chain(["test"]);
        let given = words.find(|id| matches.value_source(id) == Some(ValueSource::CommandLine));
        if let Some(given) = given {
            let option = given.replace('_', "-");
            let found = format!("--{option} is no option for every verb: it cannot stand before `{verb}`");
            return Err(whole.error(ErrorKind::ArgumentConflict, found));
        }
    }
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut whole))
}

/// A variable that is empty says nothing: the default holds.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |arg: &clap::Arg| arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    let reset = |arg: clap::Arg| if is_empty(&arg) { arg.env(clap::builder::Resettable::Reset) } else { arg };
    command.mut_args(reset).mut_subcommands(without_empty_variables)
}

fn dispatch(cli: Cli, context: &mut Context) -> Result<Code, Failure> {
    if cli.test {
        return selftest::run(context);
    }
    match cli.verb {
        None => run::run(&cli.run, context),
        Some(Verb::Run(args)) => run::run(&args, context),
        Some(Verb::Init) => init::init(context),
        Some(Verb::Trigger(args)) => trigger::trigger(&args, context),
        Some(Verb::Exec(args)) => trigger::exec(&args, context),
        Some(Verb::Jobs(verb)) => jobs::jobs(&verb, context),
        Some(Verb::Runs(verb)) => runs::runs(&verb, context),
        Some(Verb::Devices(verb)) => devices::devices(&verb, context),
        Some(Verb::Keys(verb)) => keys::keys(&verb, context),
        Some(Verb::Users(verb)) => users::users(&verb, context),
        Some(Verb::Restart(args)) => restart::restart(&args, context),
        Some(Verb::Status) => status::status(context),
        Some(Verb::Logs(args)) => logs::logs(&args, context),
        Some(Verb::Health(args)) => health::health(&args, context),
        Some(Verb::Doctor) => doctor::doctor(context),
        Some(Verb::Backup(args)) => backup::backup(&args, context),
        Some(Verb::Restore(args)) => backup::restore(&args, context),
        Some(Verb::Completions(args)) => pages::completions(&args, context),
        Some(Verb::Man(args)) => pages::man(&args, context),
        Some(Verb::Schema(args)) => pages::schema(&args, context),
    }
}

/// The whole command line, for completions and the manual.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &str) -> Result<Cli, clap::Error> {
        parse(std::iter::once("orchestrator").chain(words.split(' ')).map(OsString::from))
    }

    #[test]
    fn options_for_every_verb_stand_before_or_behind_it() {
        for words in ["--json status", "status --json", "--json runs list", "runs --json list", "runs list --json"] {
            assert!(parsed(words).unwrap().global.json, "{words}");
        }
    }

    #[test]
    fn an_option_of_run_before_another_verb_is_refused_and_not_ignored() {
        for words in ["--slots 3 status", "--force runs list", "--test status"] {
            assert_eq!(parsed(words).unwrap_err().kind(), ErrorKind::ArgumentConflict, "{words}");
        }
        assert!(parsed("--slots 3").is_ok() && parsed("run --slots 3").is_ok() && parsed("status").is_ok());
    }
}
