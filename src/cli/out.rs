//! Standard output: tables for people, JSON for programs, silence for a closed pipe.

use std::io::{IsTerminal, Write};

use serde::Serialize;

use super::failure::closed_pipe;
use super::{Code, Color, Failure, Global};

/// Where a verb writes to, and how.
#[derive(Debug, Clone, Copy)]
pub struct Out {
    /// JSON is wanted.
    pub json: bool,
    /// Colours are.
    pub color: bool,
    /// Only what was asked for.
    pub quiet: bool,
}

/// A colour or weight of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    /// Success.
    Green,
    /// Failure.
    Red,
    /// What waits.
    Yellow,
    /// What matters less.
    Dim,
    /// Headings.
    Bold,
}

impl Out {
    /// As the options say.
    #[must_use]
    pub fn new(global: &Global) -> Self {
        let color = match global.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty())
            }
        };
        Self { json: global.json, color: color && !global.json, quiet: global.quiet }
    }

    /// Writes a line.
    ///
    /// # Errors
    /// A closed pipe ends the verb silently; anything else with exit code 1.
    pub fn line(&self, text: &str) -> Result<(), Failure> {
        self.bytes(format!("{text}\n").as_bytes())
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    /// As [`Out::line`].
    pub fn bytes(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| {
            if error.kind() == std::io::ErrorKind::BrokenPipe {
                closed_pipe()
            } else {
                Failure::new(Code::Failed, format!("cannot write to standard output: {error}"), "")
            }
        })
    }

    /// Tells people something beside the answer, on standard error; programs and those who want it quiet are not told.
    pub fn note(&self, text: &str) {
        if !self.json && !self.quiet {
            // That nobody reads it takes nothing from the answer.
            let _ = writeln!(std::io::stderr(), "{}", printable(text));
        }
    }

    /// Writes one JSON document, on one line.
    ///
    /// # Errors
    /// As [`Out::line`].
    pub fn document(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value)
            .map_err(|error| Failure::new(Code::Failed, format!("cannot write JSON: {error}"), ""))?;
        self.line(&text)
    }

    /// Text in a colour, where colours are wanted.
    #[must_use]
    pub fn paint(&self, paint: Paint, text: &str) -> String {
        if !self.color {
            return text.to_owned();
        }
        let code = match paint {
            Paint::Green => "32",
            Paint::Red => "31",
            Paint::Yellow => "33",
            Paint::Dim => "2",
            Paint::Bold => "1",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// Writes rows in aligned columns under a heading. Control characters in cells are shown, never sent to the terminal.
    ///
    /// # Errors
    /// As [`Out::line`].
    pub fn table<const N: usize>(&self, heading: [&str; N], rows: &[[Cell; N]]) -> Result<(), Failure> {
        let mut widths = heading.map(|title| title.chars().count());
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
        let titles = heading.map(|title| Cell { text: title.to_owned(), paint: Some(Paint::Bold) });
        for row in std::iter::once(&titles).chain(rows) {
            let mut line = String::new();
            for (index, (cell, width)) in row.iter().zip(widths).enumerate() {
                let gap = if index + 1 == N { 0 } else { width - cell.text.chars().count() + 2 };
                line.push_str(&cell.paint.map_or_else(|| cell.text.clone(), |paint| self.paint(paint, &cell.text)));
                line.push_str(&" ".repeat(gap));
            }
            self.line(line.trim_end())?;
        }
        Ok(())
    }
}

/// One cell of a table.
#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    paint: Option<Paint>,
}

impl Cell {
    /// Plain text.
    #[must_use]
    pub fn new(text: impl AsRef<str>) -> Self {
        Self { text: printable(text.as_ref()), paint: None }
    }

    /// Text in a colour.
    #[must_use]
    pub fn painted(text: impl AsRef<str>, paint: Paint) -> Self {
        Self { text: printable(text.as_ref()), paint: Some(paint) }
    }
}

/// Text without anything that a terminal would act on.
#[must_use]
pub(super) fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}
