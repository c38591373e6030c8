//! Reads values from a TOML text: typed, bounded, each error with its place, all errors and not just the first.
//!
//! What a key means is not known here. A reader hands out a value only if it has the type and the bounds that were
//! asked for; otherwise it hands out nothing and notes why. Of a hostile text it notes [`MOST`] errors and stops.

use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use serde_json::value::RawValue;
use toml_edit::{ArrayOfTables, Document, Item, Table, TableLike, Value};

use super::message::{did_you_mean, excerpt, listed, quoted};
use super::time::{DURATION_RULE, parse_duration};
use super::trigger::Json;

mod guard;
mod json;

/// So many errors of one text are told; nobody reads more.
pub(super) const MOST: usize = 100;
/// How much of a wrong value is shown.
const VALUE_SHOWN: usize = 60;
/// Something wrong with a text, at a byte of it.
#[derive(Debug, PartialEq)]
pub(super) struct Problem {
    pub(super) at: usize,
    pub(super) error: String,
    pub(super) hint: String,
}

/// A piece of text and where it stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct At<T> {
    pub(super) at: usize,
    pub(super) value: T,
}

/// A value of any type, wherever in a document it stands.
#[derive(Clone, Copy)]
pub(super) enum Node<'t> {
    Value(&'t Value),
    /// `[key]`, or what `key.member = …` makes.
    Table(&'t Table),
    /// `[[key]]`.
    Tables(&'t ArrayOfTables),
    /// toml_edit's mark for a removed item: in what was just parsed there is none.
    Nothing,
}

impl<'t> Node<'t> {
    fn of(item: &'t Item) -> Self {
        match item {
            Item::Value(value) => Self::Value(value),
            Item::Table(table) => Self::Table(table),
            Item::ArrayOfTables(tables) => Self::Tables(tables),
            Item::None => Self::Nothing,
        }
    }

    fn value(self) -> Option<&'t Value> {
        match self {
            Self::Value(value) => Some(value),
            Self::Table(_) | Self::Tables(_) | Self::Nothing => None,
        }
    }

    pub(super) fn as_str(self) -> Option<&'t str> {
        self.value().and_then(Value::as_str)
    }

    fn as_table(self) -> Option<&'t dyn TableLike> {
        match self {
            Self::Value(value) => value.as_inline_table().map(|table| table as &dyn TableLike),
            Self::Table(table) => Some(table),
            Self::Tables(_) | Self::Nothing => None,
        }
    }

    fn elements(self) -> Option<Vec<Self>> {
        match self {
            Self::Value(value) => Some(value.as_array()?.iter().map(Self::Value).collect()),
            Self::Tables(tables) => Some(tables.iter().map(Self::Table).collect()),
            Self::Table(_) | Self::Nothing => None,
        }
    }

    fn span(self) -> Option<Range<usize>> {
        match self {
            Self::Value(value) => value.span(),
            Self::Table(table) => table.span(),
            Self::Tables(tables) => tables.span(),
            Self::Nothing => None,
        }
    }

    /// Its type.
    fn kind(self) -> &'static str {
        match self {
            Self::Value(Value::String(_)) => "a string",
            Self::Value(Value::Integer(_)) => "an integer",
            Self::Value(Value::Float(_)) => "a float",
            Self::Value(Value::Boolean(_)) => "a boolean",
            Self::Value(Value::Datetime(_)) => "a date or time",
            Self::Value(Value::Array(_)) => "an array",
            Self::Value(Value::InlineTable(_)) | Self::Table(_) | Self::Nothing => "a table",
            Self::Tables(_) => "an array of tables",
        }
    }

    /// Its type, and of a value as much as helps.
    fn described(self, text: &str) -> String {
        let kind = self.kind();
        match self {
            Self::Value(_) => {
                let written = self.span().and_then(|span| text.get(span)).unwrap_or_default();
                format!("{kind} ({})", excerpt(written, VALUE_SHOWN))
            }
            Self::Table(_) | Self::Tables(_) | Self::Nothing => kind.to_owned(),
        }
    }
}

/// Where a key of a table stands.
fn key_at(table: &dyn TableLike, key: &str) -> usize {
    table.key(key).and_then(toml_edit::Key::span).map_or(0, |span| span.start)
}

fn may_hold_address(line: &str) -> bool {
    line.contains("://") || line.trim_start().trim_start_matches(['"', '\'']).starts_with("notify")
}

/// The line of a byte.
fn line_at(text: &str, at: usize) -> &str {
    let (before, behind) = text.split_at_checked(at).unwrap_or((text, ""));
    let begin = before.rfind(['\n', '\r']).map_or(0, |end| end + 1);
    let end = behind.find(['\n', '\r']).map_or(text.len(), |end| at + end);
    text.get(begin..end).unwrap_or_default()
}

/// Parses `text`, which must have no byte order mark.
pub(super) fn document(text: &str) -> Result<Document<&str>, Problem> {
    if let Some(at) = guard::too_many_dots(text) {
        let error = "found too many dotted keys in one file, expected a job".to_owned();
        return Err(Problem { at, error, hint: "write `[table]` headers instead of long dotted keys".to_owned() });
    }
    Document::parse(text).map_err(|bad| {
        let at = bad.span().map_or(0, |span| span.start);
        let rest = text.get(at..).unwrap_or_default();
        let found = match rest.split(['\n', '\r']).next() {
            Some("") | None if rest.is_empty() => "the end of the file".to_owned(),
            Some("") | None => "the end of the line".to_owned(),
            // A webhook's address may be all the secret that it takes.
            Some(_) if may_hold_address(line_at(text, at)) => {
                "a line that is not shown: it may hold an address".to_owned()
            }
            Some(line) => excerpt(line.trim_end(), VALUE_SHOWN),
        };
        let error = format!("not valid TOML: {}; found {found}", bad.message().replace(['\n', '\r'], " "));
        let hint = if bad.message().contains("must be quoted") {
            "strings stand in double quotes: key = \"value\""
        } else {
            "a job file has a `key = value` a line; values of many lines stand in brackets or triple quotes"
        };
        Problem { at, error, hint: hint.to_owned() }
    })
}

/// Reads one document's keys, and notes what is wrong with them.
pub(super) struct Reader<'t> {
    text: &'t str,
    table: &'t dyn TableLike,
    problems: Vec<Problem>,
}

impl<'t> Reader<'t> {
    pub(super) fn new(text: &'t str, table: &'t dyn TableLike) -> Self {
        Self { text, table, problems: Vec::new() }
    }

    /// What was wrong, in the order of the text.
    pub(super) fn into_problems(mut self) -> Vec<Problem> {
        self.problems.sort_by_key(|problem| problem.at);
        self.problems
    }

    /// Notes a problem of the caller's own finding.
    pub(super) fn problem(&mut self, at: usize, error: String, hint: impl Into<String>) {
        if self.problems.len() < MOST {
            self.problems.push(Problem { at, error, hint: hint.into() });
        }
    }

    /// Reads a table inside this one, as `read` does; nothing if there is none.
    pub(super) fn within<T>(
        &mut self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&mut Self, usize) -> Option<T>,
    ) -> Option<T> {
        let found = self.get(key)?;
        let Some(table) = found.value.as_table() else {
            return self.wrong_type(key, found, expected);
        };
        let outer = std::mem::replace(&mut self.table, table);
        let inner = read(self, found.at);
        self.table = outer;
        inner
    }

    /// The keys that are there, with their places.
    pub(super) fn keys(&self) -> Vec<At<&'t str>> {
        self.table.iter().map(|(key, _)| At { at: key_at(self.table, key), value: key }).collect()
    }

    /// Whether the key holds an array.
    pub(super) fn holds_array(&self, key: &str) -> bool {
        self.get(key).is_some_and(|found| found.value.elements().is_some())
    }

    /// Where a key stands, if it is there.
    pub(super) fn key(&self, key: &str) -> Option<usize> {
        self.table.contains_key(key).then(|| key_at(self.table, key))
    }

    /// Where an array of nothing stands, if the key holds one.
    pub(super) fn empty_array(&self, key: &str) -> Option<usize> {
        let found = self.get(key)?;
        found.value.elements().is_some_and(|elements| elements.is_empty()).then_some(found.at)
    }

    /// Refuses keys that are not in the list.
    pub(super) fn only_keys(&mut self, known: &[&str]) {
        for At { at, value: key } in self.keys() {
            if self.problems.len() >= MOST {
                return;
            }
            if !known.contains(&key) {
                self.problem(at, format!("unknown key {}", quoted(key)), did_you_mean(key, known));
            }
        }
    }

    /// The value of a key, and where it stands.
    fn get(&self, key: &str) -> Option<At<Node<'t>>> {
        let value = Node::of(self.table.get(key)?);
        let at = value.span().map_or_else(|| key_at(self.table, key), |span| span.start);
        Some(At { at, value })
    }

    pub(super) fn string(&mut self, key: &str, expected: &str) -> Option<At<&'t str>> {
        let found = self.get(key)?;
        let Some(value) = found.value.as_str() else {
            return self.wrong_type(key, found, expected);
        };
        Some(At { at: found.at, value })
    }

    /// A string that no message repeats.
    pub(super) fn secret_string(&mut self, key: &str, expected: &str) -> Option<At<&'t str>> {
        let found = self.get(key)?;
        let Some(value) = found.value.as_str() else {
            return self.wrong(key, found.at, found.value.kind(), expected);
        };
        Some(At { at: found.at, value })
    }

    pub(super) fn boolean(&mut self, key: &str) -> Option<bool> {
        let found = self.get(key)?;
        found.value.value().and_then(Value::as_bool).or_else(|| self.wrong_type(key, found, "true or false"))
    }

    /// An integer of `range`, as the type the caller keeps it in.
    pub(super) fn integer<T: TryFrom<i64>>(&mut self, key: &str, range: &RangeInclusive<i64>) -> Option<T> {
        let found = self.get(key)?;
        self.bounded(key, found, range)
    }

    /// An integer of `range`, or the one word that stands for none.
    pub(super) fn integer_or_word<T: TryFrom<i64>>(
        &mut self,
        key: &str,
        range: &RangeInclusive<i64>,
        word: &str,
        expected: &str,
    ) -> Option<Option<T>> {
        let found = self.get(key)?;
        if found.value.as_str() == Some(word) {
            return Some(None);
        }
        let number = found.value.value().and_then(Value::as_integer).filter(|number| range.contains(number));
        number.and_then(|number| T::try_from(number).ok()).map(Some).or_else(|| self.wrong_type(key, found, expected))
    }

    /// A number, whole or not.
    pub(super) fn number(&mut self, key: &str) -> Option<At<f64>> {
        let found = self.get(key)?;
        let value = found.value.value();
        let number = value.and_then(|value| value.as_float().or_else(|| value.as_integer().map(|whole| whole as f64)));
        match number.filter(|number| number.is_finite()) {
            Some(value) => Some(At { at: found.at, value }),
            None => self.wrong_type(key, found, "a number"),
        }
    }

    /// An array of integers of `range`.
    pub(super) fn integers<T: TryFrom<i64>>(&mut self, key: &str, range: &RangeInclusive<i64>) -> Option<Vec<T>> {
        let expected = format!("an array of integers from {} to {}", range.start(), range.end());
        let elements = self.elements(key, &expected)?;
        Some(elements.into_iter().filter_map(|(what, found)| self.bounded(&what, found, range)).collect())
    }

    fn bounded<T: TryFrom<i64>>(&mut self, what: &str, found: At<Node<'t>>, range: &RangeInclusive<i64>) -> Option<T> {
        let expected = format!("an integer from {} to {}", range.start(), range.end());
        let Some(number) = found.value.value().and_then(Value::as_integer) else {
            return self.wrong_type(what, found, &expected);
        };
        let value = T::try_from(number).ok().filter(|_| range.contains(&number));
        if value.is_none() {
            self.problem(
                found.at,
                format!("`{what}` is {number}, expected {expected}"),
                "choose a value within the bounds",
            );
        }
        value
    }

    pub(super) fn duration(&mut self, key: &str) -> Option<At<Duration>> {
        let expected = format!("a duration in quotes, {DURATION_RULE}");
        let At { at, value } = self.string(key, &expected)?;
        let duration = parse_duration(value);
        if duration.is_none() {
            let error = format!("`{key}` is {}, expected {DURATION_RULE}", quoted(value));
            self.problem(at, error, "one whole number and one unit, at most 10000d");
        }
        duration.map(|value| At { at, value })
    }

    /// One of a few words, as what it stands for.
    pub(super) fn word<T: Copy>(&mut self, key: &str, words: &[(&str, T)]) -> Option<T> {
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let expected = format!("one of {}", listed(&names));
        let At { at, value } = self.string(key, &expected)?;
        let meant = words.iter().find(|(word, _)| *word == value).map(|(_, meant)| *meant);
        if meant.is_none() {
            self.problem(at, format!("`{key}` is {}, expected {expected}", quoted(value)), did_you_mean(value, &names));
        }
        meant
    }

    /// An array of strings, each with a name for messages; elements that are none are left out.
    pub(super) fn strings(&mut self, key: &str, expected: &str) -> Option<Vec<(String, At<&'t str>)>> {
        let mut strings = Vec::new();
        for (what, found) in self.elements(key, expected)? {
            match found.value.as_str() {
                Some(value) => strings.push((what, At { at: found.at, value })),
                None => self.wrong_type(&what, found, "a string").unwrap_or_default(),
            }
        }
        Some(strings)
    }

    /// An array of whatever `read` makes of its strings.
    pub(super) fn names<T, E: Display>(
        &mut self,
        key: &str,
        expected: &str,
        hint: &str,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Option<Vec<T>> {
        Some(self.names_at(key, expected, hint, read)?.into_iter().map(|found| found.value).collect())
    }

    /// The same, each with its place.
    pub(super) fn names_at<T, E: Display>(
        &mut self,
        key: &str,
        expected: &str,
        hint: &str,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Option<Vec<At<T>>> {
        let strings = self.strings(key, expected)?;
        let mut names = Vec::with_capacity(strings.len());
        for (what, At { at, value }) in strings {
            match read(value) {
                Ok(name) => names.push(At { at, value: name }),
                Err(bad) => self.problem(at, format!("`{what}`: {bad}"), hint),
            }
        }
        Some(names)
    }

    /// A table's members with the places of keys and values.
    pub(super) fn members(&mut self, key: &str, expected: &str) -> Option<Vec<(At<&'t str>, At<Node<'t>>)>> {
        let found = self.get(key)?;
        let Some(table) = found.value.as_table() else {
            return self.wrong_type(key, found, expected);
        };
        let member = |(key, item): (&'t str, &'t Item)| {
            let (at, value) = (key_at(table, key), Node::of(item));
            (At { at, value: key }, At { at: value.span().map_or(at, |span| span.start), value })
        };
        Some(table.iter().map(member).collect())
    }

    /// An array as JSON values, each with its name for messages and what it was.
    pub(super) fn json_array(&mut self, key: &str) -> Option<Vec<(String, At<Node<'t>>, Json)>> {
        let mut array = Vec::new();
        for (what, found) in self.elements(key, "an array")? {
            if let Some(json) = self.json(&what, found) {
                array.push((what, found, json));
            }
        }
        Some(array)
    }

    /// A table as JSON values by key, in the order of the text.
    pub(super) fn json_table(&mut self, key: &str) -> Option<Vec<(String, Json)>> {
        let mut table = Vec::new();
        for (name, found) in self.members(key, "a table")? {
            let what = format!("{key}.{}", excerpt(name.value, VALUE_SHOWN));
            if let Some(json) = self.json(&what, found) {
                table.push((name.value.to_owned(), json));
            }
        }
        Some(table)
    }

    fn json(&mut self, what: &str, found: At<Node<'t>>) -> Option<Json> {
        let mut out = String::new();
        // As in a trigger, the root is the first level and `args` or `kwargs` itself the second.
        let written = json::write(&mut out, self.text, what, found, 3).and_then(|()| {
            RawValue::from_string(out).map(Json::from).map_err(|bad| Problem {
                at: found.at,
                error: format!("`{what}` cannot be written as JSON: {bad}"),
                hint: "write it as a string".to_owned(),
            })
        });
        written.map_err(|problem| self.problem(problem.at, problem.error, problem.hint)).ok()
    }

    /// The elements of an array, each with a name for messages and its place.
    fn elements(&mut self, key: &str, expected: &str) -> Option<Vec<(String, At<Node<'t>>)>> {
        let found = self.get(key)?;
        let Some(elements) = found.value.elements() else {
            return self.wrong_type(key, found, expected);
        };
        let named = |(index, value): (usize, Node<'t>)| {
            (format!("{key}[{index}]"), At { at: value.span().map_or(found.at, |span| span.start), value })
        };
        Some(elements.into_iter().enumerate().map(named).collect())
    }

    /// Notes that a value has another type; for the value itself, there is nothing.
    pub(super) fn wrong_type<T>(&mut self, what: &str, found: At<Node<'t>>, expected: &str) -> Option<T> {
        self.wrong(what, found.at, &found.value.described(self.text), expected)
    }

    fn wrong<T>(&mut self, what: &str, at: usize, is: &str, expected: &str) -> Option<T> {
        self.problem(at, format!("`{what}` is {is}, expected {expected}"), format!("write `{what}` as {expected}"));
        None
    }
}

#[cfg(test)]
mod tests;
