//! The text of a job file while it is changed: what a change does not concern stays, byte for byte.
//!
//! `toml_edit` says where things stand and how values are written; the text itself is spliced. So comments, order, line
//! ends, a byte order mark and every space outlive any change, wherever in a file a key stands.

use std::ops::Range;

use toml_edit::{InlineTable, Item, Key, Table, Value};

use super::super::toml_read;
use super::{JobError, located};

/// A job file's text that is being changed. It is TOML at any time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    mark: &'static str,
    /// How its lines end.
    end: &'static str,
    text: String,
}

/// A line of the file that says something, with its lines below if its value has several.
#[derive(Debug)]
struct Statement {
    path: Vec<String>,
    /// `[path]` or `[[path]]`.
    is_header: bool,
    /// From the last part of its key, or the bracket of a header, to the end of its value.
    span: Range<usize>,
}

impl Default for Draft {
    fn default() -> Self {
        Self { mark: "", end: "\n", text: String::new() }
    }
}

impl Draft {
    /// A text to be changed; `file` is for messages.
    ///
    /// # Errors
    /// It is not TOML.
    pub fn open(file: &str, text: &str) -> Result<Self, Vec<JobError>> {
        let (mark, text) = match text.strip_prefix('\u{feff}') {
            Some(rest) => ("\u{feff}", rest),
            None => ("", text),
        };
        match toml_read::document(text) {
            Ok(_) => {
                let first = text.split_inclusive('\n').next().unwrap_or_default();
                let end = if first.ends_with("\r\n") { "\r\n" } else { "\n" };
                Ok(Self { mark, end, text: text.to_owned() })
            }
            Err(problem) => Err(located(file, text, vec![problem])),
        }
    }

    /// The whole text.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}{}", self.mark, self.text)
    }

    /// Whether there is a key, or with a second name a member of its table.
    #[must_use]
    pub fn has(&self, path: &[&str]) -> bool {
        self.look(|root| match path {
            [key] => root.contains_key(key),
            [key, member] => root.get(key).and_then(Item::as_table_like).is_some_and(|it| it.contains_key(member)),
            _ => false,
        })
    }

    /// The text of a string.
    #[must_use]
    pub fn string(&self, key: &str) -> Option<String> {
        self.look(|root| root.get(key).and_then(Item::as_str).map(str::to_owned))
    }

    /// Gives a key a value. One that has it already is left as it is written; of a table that becomes another one, the members
    /// that stay are. `false`: nothing changed.
    pub fn set(&mut self, key: &str, value: &Value) -> bool {
        let before = self.text.clone();
        match (self.look(|root| root.get(key).cloned()), value.as_inline_table()) {
            (None, _) => self.add(key, value),
            (Some(Item::Value(old)), _) if is_same(&old, value) => {}
            (Some(item), Some(wanted)) if item.is_table_like() => {
                let there = item.as_table_like().into_iter().flat_map(|table| table.iter());
                let gone: Vec<&str> = there.map(|(name, _)| name).filter(|name| !wanted.contains_key(name)).collect();
                for name in gone {
                    self.remove(&[key, name]);
                }
                for (name, value) in wanted {
                    self.set_member(key, name, value);
                }
            }
            (Some(Item::Value(old)), _) => self.splice(old.span(), &written(value)),
            (Some(_), _) => {
                self.remove(&[key]);
                self.add(key, value);
            }
        }
        self.text != before
    }

    /// Gives a member of a table a value, and makes the table if there is none.
    pub fn set_member(&mut self, key: &str, name: &str, value: &Value) -> bool {
        let before = self.text.clone();
        match self.look(|root| root.get(key).cloned()) {
            Some(Item::Table(table)) => self.set_in_table(key, &table, name, value),
            Some(Item::Value(Value::InlineTable(table))) => {
                if !table.get(name).is_some_and(|old| is_same(old, value)) {
                    self.change_inline(table.span(), |table| insert(table, name, value));
                }
            }
            Some(Item::Value(_) | Item::ArrayOfTables(_) | Item::None) | None => {
                let table: InlineTable = [(name, plain(value))].into_iter().collect();
                self.set(key, &Value::from(table));
            }
        }
        self.text != before
    }

    /// Removes a key, or with a second name a member of its table. `false`: it was not there.
    pub fn remove(&mut self, path: &[&str]) -> bool {
        if !self.has(path) {
            return false;
        }
        if let [key, name] = path
            && let Some(span) = self.look(|root| root.get(key).and_then(Item::as_inline_table).map(InlineTable::span))
        {
            self.change_inline(span, |table| take_out(table, name));
            return true;
        }
        let mut lines: Vec<Range<usize>> = Vec::new();
        let mut under_header = false;
        for statement in self.statements() {
            let concerned = statement.path.iter().map(String::as_str).take(path.len()).eq(path.iter().copied());
            let lines_of = self.lines_of(&statement.span);
            match lines.last_mut() {
                // The comments between the lines of a table go with it.
                Some(last) if concerned && under_header && !statement.is_header => last.end = lines_of.end,
                _ if concerned => lines.push(lines_of),
                _ => {}
            }
            under_header = concerned && (under_header || statement.is_header);
        }
        for range in lines.into_iter().rev() {
            let range = self.with_blank_line(range);
            self.splice(Some(range), "");
        }
        true
    }

    fn add(&mut self, key: &str, value: &Value) {
        self.insert_at_top(&format!("{} = {}", Key::new(key).display_repr(), written(value)));
    }

    /// Inserts a line behind the last key at the top, before the first header.
    fn insert_at_top(&mut self, line: &str) {
        let statements = self.statements();
        let last = statements.iter().take_while(|statement| !statement.is_header).last();
        match (last, statements.first()) {
            (Some(last), _) => self.insert_below(last.span.clone(), line),
            (None, Some(header)) => {
                let at = self.lines_of(&header.span).start;
                let end = self.end;
                self.splice(Some(at..at), &format!("{line}{end}"));
            }
            (None, None) => self.insert_below(self.text.len()..self.text.len(), line),
        }
    }

    fn set_in_table(&mut self, key: &str, table: &Table, name: &str, value: &Value) {
        match table.get(name) {
            Some(Item::Value(old)) if is_same(old, value) => return,
            Some(Item::Value(old)) => return self.splice(old.span(), &written(value)),
            Some(Item::Table(_) | Item::ArrayOfTables(_)) => {
                self.remove(&[key, name]);
            }
            Some(Item::None) | None => {}
        }
        if !self.has(&[key]) {
            self.set_member(key, name, value);
            return;
        }
        let statements = self.statements();
        let header = statements.iter().position(|statement| statement.is_header && statement.path == [key]);
        let name = Key::new(name).display_repr().into_owned();
        let dotted = format!("{}.{name}", Key::new(key).display_repr());
        match header {
            Some(at) => {
                let inside = statements[at + 1..].iter().take_while(|statement| !statement.is_header);
                let last = inside.last().unwrap_or(&statements[at]);
                self.insert_below(last.span.clone(), &format!("{name} = {}", written(value)));
            }
            None => {
                let top = statements.iter().take_while(|statement| !statement.is_header);
                match top.filter(|statement| statement.path.first().is_some_and(|first| first == key)).last() {
                    Some(last) => self.insert_below(last.span.clone(), &format!("{dotted} = {}", written(value))),
                    None => self.insert_at_top(&format!("{dotted} = {}", written(value))),
                }
            }
        }
    }

    /// Inserts a line below the line in which something ends, as far from the margin as that one.
    fn insert_below(&mut self, span: Range<usize>, line: &str) {
        let lines = self.lines_of(&span);
        let end = self.end;
        let first = &self.text[lines.start..];
        let margin = &first[..first.len() - first.trim_start_matches([' ', '\t']).len()];
        let margin = if span.is_empty() { "" } else { margin };
        let open = if lines.end == 0 || self.text[..lines.end].ends_with('\n') { "" } else { end };
        let added = format!("{open}{margin}{line}{end}");
        self.splice(Some(lines.end..lines.end), &added);
    }

    /// The lines in which something stands, with the end of the last one.
    fn lines_of(&self, span: &Range<usize>) -> Range<usize> {
        let start = self.text[..span.start].rfind('\n').map_or(0, |at| at + 1);
        let end = self.text[span.end..].find('\n').map_or(self.text.len(), |at| span.end + at + 1);
        start..end
    }

    /// Lines that are to go, with one of the blank lines around them if both sides have one, or the text ends there.
    fn with_blank_line(&self, lines: Range<usize>) -> Range<usize> {
        let (before, after) = (&self.text[..lines.start], &self.text[lines.end..]);
        let starts = ["\n", "\r\n"].into_iter().find(|blank| after.starts_with(blank));
        let ends = ["\n\n", "\n\r\n"].into_iter().find(|blank| before.ends_with(blank));
        match (ends, starts) {
            (Some(_), Some(blank)) => lines.start..lines.end + blank.len(),
            (None, Some(blank)) if before.is_empty() => lines.start..lines.end + blank.len(),
            (Some(blank), None) if after.is_empty() => lines.start + 1 - blank.len()..lines.end,
            (Some(_) | None, Some(_) | None) => lines,
        }
    }

    fn change_inline(&mut self, span: Option<Range<usize>>, change: impl FnOnce(&mut InlineTable)) {
        let text = span.clone().and_then(|span| self.text.get(span)).unwrap_or_default();
        let Ok(mut value) = text.parse::<Value>() else { return };
        if let Some(table) = value.as_inline_table_mut() {
            change(table);
        }
        // `toml_edit` writes one line end alone.
        let end = if text.contains("\r\n") { "\r\n" } else { "\n" };
        let changed = value.to_string().replace("\r\n", "\n").replace('\n', end);
        self.splice(span, &changed);
    }

    fn splice(&mut self, span: Option<Range<usize>>, text: &str) {
        if let Some(span) = span {
            self.text.replace_range(span, text);
        }
    }

    fn look<T: Default>(&self, at: impl FnOnce(&Table) -> T) -> T {
        toml_read::document(&self.text).map(|document| at(document.as_table())).unwrap_or_default()
    }

    /// What the text says, line by line.
    fn statements(&self) -> Vec<Statement> {
        let mut found = Vec::new();
        self.look(|root| gather(root, &mut Vec::new(), &mut found));
        found.sort_by_key(|statement| statement.span.start);
        found
    }
}

fn gather(table: &Table, path: &mut Vec<String>, found: &mut Vec<Statement>) {
    let header = |path: &[String], span: Option<Range<usize>>| {
        span.map(|span| Statement { path: path.to_vec(), is_header: true, span })
    };
    for (key, item) in table {
        path.push(key.to_owned());
        match item {
            Item::Value(value) => {
                let places = table.key(key).and_then(Key::span).zip(value.span());
                let statement = |(key, value): (Range<usize>, Range<usize>)| Statement {
                    path: path.clone(),
                    is_header: false,
                    span: key.start..value.end,
                };
                found.extend(places.map(statement));
            }
            Item::Table(inner) => {
                // What only `[key.more]` or `key.more = …` make has no line of its own.
                let has_line = !inner.is_implicit() && !inner.is_dotted();
                found.extend(header(path, inner.span()).filter(|_| has_line));
                gather(inner, path, found);
            }
            Item::ArrayOfTables(tables) => {
                for inner in tables {
                    found.extend(header(path, inner.span()));
                    gather(inner, path, found);
                }
            }
            Item::None => {}
        }
        path.pop();
    }
}

/// A value without what stood around it.
fn plain(value: &Value) -> Value {
    let mut value = value.clone();
    value.decor_mut().clear();
    value
}

fn written(value: &Value) -> String {
    plain(value).to_string()
}

fn insert(table: &mut InlineTable, name: &str, value: &Value) {
    if let Some(old) = table.get_mut(name) {
        let around = old.decor().clone();
        *old = value.clone();
        *old.decor_mut() = around;
        return;
    }
    // What stood between the last value and the end stays there.
    let last = table.iter_mut().last().map(|(_, last)| last.decor_mut());
    let suffix = last.and_then(|decor| {
        let suffix = decor.suffix().cloned();
        decor.set_suffix("");
        suffix
    });
    let value = suffix.map_or_else(|| plain(value), |suffix| plain(value).decorated(" ", suffix));
    table.insert(name, value);
}

fn take_out(table: &mut InlineTable, name: &str) {
    let was_last = table.iter().last().is_some_and(|(last, _)| last == name);
    let suffix = table.remove(name).and_then(|value| value.decor().suffix().cloned());
    if let Some((_, last)) = table.iter_mut().last() {
        if let Some(suffix) = suffix.filter(|_| was_last) {
            last.decor_mut().set_suffix(suffix);
        }
    } else {
        table.set_trailing_comma(false);
        table.set_trailing("");
    }
}

/// Whether two values are the same to whoever reads them. A float is none: its very digits reach programs.
fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::String(a), Value::String(b)) => a.value() == b.value(),
        (Value::Integer(a), Value::Integer(b)) => a.value() == b.value(),
        (Value::Boolean(a), Value::Boolean(b)) => a.value() == b.value(),
        (Value::Datetime(a), Value::Datetime(b)) => a.value() == b.value(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| is_same(a, b)),
        (Value::InlineTable(a), Value::InlineTable(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| is_same(a, b)))
        }
        (
            Value::String(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Boolean(_)
            | Value::Datetime(_)
            | Value::Array(_)
            | Value::InlineTable(_),
            _,
        ) => false,
    }
}

#[cfg(test)]
mod tests;
