//! The keys of a job file as options of `jobs add` and `update`, made from the one table of them.

use clap::builder::{PossibleValuesParser, ValueParser};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};
use toml_edit::{Array, Value};

use super::super::trigger::key_value;
use crate::client::jobs::change::Change;
use crate::model::job::from_json::{array_from_json, from_json, string, table_from_json};
use crate::model::job::keys::{JOB_KEYS, Key, Part, Shape};

/// What the options say.
#[derive(Debug, Clone)]
pub(super) struct Options {
    pub(super) change: Change,
}

impl Args for Options {
    fn augment_args(command: Command) -> Command {
        let parts = [Part::Program, Part::Timing, Part::Place, Part::Failure, Part::Chain];
        let keys = parts.into_iter().flat_map(|part| JOB_KEYS.iter().filter(move |key| key.part == part));
        command.args(keys.flat_map(args))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Options {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut change = Change::default();
        for key in &JOB_KEYS {
            read(key, matches, &mut change);
        }
        Ok(Self { change })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn heading(part: Part) -> &'static str {
    match part {
        Part::Program => "What runs",
        Part::Timing => "When it runs",
        Part::Place => "Where, and beside what",
        Part::Failure => "When it fails",
        Part::Chain => "What its end brings about",
    }
}

/// The options of one key.
fn args(key: &'static Key) -> Vec<Arg> {
    let long = key.name.replace('_', "-");
    let help = key.says.trim_end_matches('.').replace('`', "");
    let arg = |id: &'static str, value: &'static str| {
        Arg::new(id).value_name(value).help(help.clone()).help_heading(heading(key.part)).action(ArgAction::Set)
    };
    let one = |value: &'static str| vec![arg(key.name, value).long(long.clone())];
    let several = |value: &'static str| {
        vec![arg(key.name, value).long(long.clone()).action(ArgAction::Append).value_delimiter(',')]
    };
    match &key.shape {
        Shape::Word(words) => one_of(one("WORD"), PossibleValuesParser::new(words.iter().copied())),
        Shape::Clock => one("TIME"),
        Shape::Duration { .. } => one("DURATION"),
        Shape::Number => one_of(one("NUMBER"), ValueParser::new(number)),
        Shape::Integer(range) => {
            let one = one_of(one("N"), value_parser!(i64).range(range.clone()));
            one.into_iter().map(|arg| arg.allow_negative_numbers(true)).collect()
        }
        Shape::IntegerOr(_, _) => one("N"),
        Shape::Boolean => one_of(one("BOOL"), value_parser!(bool)),
        Shape::Cron => one("FIELDS"),
        Shape::Zone => one("ZONE"),
        Shape::File => one("PATH"),
        Shape::Function | Shape::Name => one("NAME"),
        Shape::Url => one("URL"),
        Shape::Size => one("SIZE"),
        Shape::Image => one("IMAGE"),
        Shape::Network | Shape::User | Shape::Gpus(_) => one("NAME"),
        Shape::Volumes | Shape::Tmpfs => several("PATH"),
        Shape::Keys(keys, _) => {
            let keys: Vec<&str> = keys.iter().map(|key| key.name).collect();
            let help = format!("{help}; a JSON object with {}", keys.join(", "));
            vec![arg(key.name, "JSON").long(long).help(help).value_parser(ValueParser::new(table_from_json))]
        }
        // One is named at a time, as for a trigger.
        Shape::Names("TAG") => several("TAG").into_iter().map(|arg| arg.long("tag").alias(long.clone())).collect(),
        Shape::Names(what) => several(what),
        Shape::Variables => several("NAME"),
        Shape::Integers(range) => one_of(several("N"), value_parser!(i64).range(range.clone())),
        Shape::Command => {
            let words = Arg::new(key.name).value_name("COMMAND").help(help.clone());
            vec![words.last(true).num_args(1..).conflicts_with("file").action(ArgAction::Append)]
        }
        Shape::Environment | Shape::Labels => {
            vec![member(arg(key.name, "K=V").long(long)).help("A variable for the program")]
        }
        Shape::Values => vec![
            arg("arg", "ARG")
                .long("arg")
                .help("A positional argument, always a string, unless the trigger brings its own")
                .action(ArgAction::Append)
                .allow_hyphen_values(true),
            arg(key.name, "JSON")
                .long(long)
                .help("The same as a JSON array: numbers and lists too")
                .value_parser(ValueParser::new(array_from_json))
                .conflicts_with("arg"),
        ],
        Shape::Table => vec![
            member(arg("kwarg", "K=V").long("kwarg"))
                .help("A keyword argument, always a string; those of the trigger are merged over them"),
            arg(key.name, "JSON")
                .long(long)
                .help("Keyword arguments as a JSON object: numbers and lists too; each --kwarg replaces one of them")
                .value_parser(ValueParser::new(table_from_json)),
        ],
    }
}

fn one_of(args: Vec<Arg>, parser: impl Into<ValueParser>) -> Vec<Arg> {
    let parser = parser.into();
    args.into_iter().map(|arg| arg.value_parser(parser.clone())).collect()
}

fn member(arg: Arg) -> Arg {
    arg.action(ArgAction::Append).value_parser(ValueParser::new(key_value))
}

fn number(text: &str) -> Result<Value, String> {
    from_json(text).ok().filter(|value| value.is_integer() || value.is_float()).ok_or("expected a number".to_owned())
}

/// What the options of one key say.
fn read(key: &'static Key, matches: &ArgMatches, change: &mut Change) {
    let name = key.name;
    let texts =
        |id: &str| matches.get_many::<String>(id).map(|texts| texts.map(|text| string(text)).collect::<Array>());
    let value: Option<Value> = match &key.shape {
        Shape::Word(_)
        | Shape::Clock
        | Shape::Duration { .. }
        | Shape::Cron
        | Shape::Zone
        | Shape::File
        | Shape::Function
        | Shape::Name
        | Shape::Url
        | Shape::Size
        | Shape::Image
        | Shape::Network
        | Shape::User
        | Shape::Gpus(_) => matches.get_one::<String>(name).map(|text| string(text)),
        Shape::Number => matches.get_one::<Value>(name).cloned(),
        Shape::Integer(_) => matches.get_one::<i64>(name).map(|number| Value::from(*number)),
        Shape::IntegerOr(_, _) => {
            matches.get_one::<String>(name).map(|text| text.parse::<i64>().map_or_else(|_| string(text), Value::from))
        }
        Shape::Boolean => matches.get_one::<bool>(name).map(|truth| Value::from(*truth)),
        Shape::Names(_) | Shape::Variables | Shape::Command | Shape::Volumes | Shape::Tmpfs => {
            texts(name).map(Value::from)
        }
        Shape::Integers(_) => matches.get_many::<i64>(name).map(|all| Value::from(all.copied().collect::<Array>())),
        Shape::Values => matches.get_one::<Value>(name).cloned().or_else(|| texts("arg").map(Value::from)),
        Shape::Table | Shape::Keys(..) => matches.get_one::<Value>(name).cloned(),
        Shape::Environment | Shape::Labels => None,
    };
    if let Some(value) = value {
        change.set.push((name, value));
    }
    if matches!(key.shape, Shape::Table | Shape::Environment) {
        let id = if key.shape == Shape::Table { "kwarg" } else { name };
        for (member, value) in matches.get_many::<(String, String)>(id).into_iter().flatten() {
            change.members.push((name, member.clone(), string(value)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::job::draft::Draft;

    /// What options make of an empty file.
    fn written(words: &[&str]) -> Result<String, clap::Error> {
        let command = Options::augment_args(Command::new("add").no_binary_name(true));
        let options = Options::from_arg_matches(&command.try_get_matches_from(words)?)?;
        let mut draft = Draft::default();
        for (key, value) in &options.change.set {
            draft.set(key, value);
        }
        for (key, name, value) in &options.change.members {
            draft.set_member(key, name, value);
        }
        Ok(draft.text())
    }

    #[test]
    fn every_key_has_its_option() {
        for key in &JOB_KEYS {
            let example: serde_json::Value = serde_json::from_str(key.example).unwrap();
            let option = format!("--{}", key.name.replace('_', "-"));
            let plain = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let words: Vec<String> = match (&key.shape, &example) {
                (Shape::Command, serde_json::Value::Array(all)) => {
                    std::iter::once("--".to_owned()).chain(all.iter().map(plain)).collect()
                }
                (Shape::Values | Shape::Table | Shape::Keys(..), _) => vec![option, key.example.to_owned()],
                (_, serde_json::Value::Object(members)) => members
                    .iter()
                    .flat_map(|(name, value)| [option.clone(), format!("{name}={}", plain(value))])
                    .collect(),
                (_, serde_json::Value::Array(all)) => {
                    vec![option, all.iter().map(plain).collect::<Vec<_>>().join(",")]
                }
                (_, one) => vec![option, plain(one)],
            };
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let expected = format!("{} = {}\n", key.name, from_json(key.example).unwrap());
            assert_eq!(written(&words).unwrap_or_else(|error| panic!("{words:?}: {error}")), expected);
        }
    }

    #[test]
    fn lists_are_said_at_once_or_one_by_one() {
        for (words, text) in [
            (&["--tag", "a", "--tag", "b,c"][..], "tags = [\"a\", \"b\", \"c\"]\n"),
            (&["--arg", "-x", "--arg", "a,b"], "args = [\"-x\", \"a,b\"]\n"),
            (&["--kwarg", "a=1", "--kwargs", "{\"b\": 1.50, \"a\": 2}"], "kwargs = { b = 1.50, a = \"1\" }\n"),
            (&["--instances", "every"], "instances = \"every\"\n"),
            (&["--priority", "-5"], "priority = -5\n"),
            (&["--interval-minutes", "1.50"], "interval_minutes = 1.50\n"),
            (&["--retry-elsewhere=false"], "retry_elsewhere = false\n"),
            (&["--", "a", "--tag"], "command = [\"a\", \"--tag\"]\n"),
        ] {
            assert_eq!(written(words).unwrap(), text, "{words:?}");
        }
        for words in [
            &["--arg", "a", "--args", "[]"][..],
            &["--interval-minutes", "soon"],
            &["--interval-minutes", "\"5\""],
            &["--retries", "1.5"],
            &["--retry-on", "256"],
            &["--enabled"],
            &["--enabled", "yes"],
            &["--kwarg", "a"],
            &["--kwargs", "{\"a\": null}"],
            &["--file", "a", "--", "b"],
            &["--time", "09:00", "--time", "10:00"],
        ] {
            assert!(written(words).is_err(), "{words:?}");
        }
    }
}
