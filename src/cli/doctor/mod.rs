//! `orchestrator doctor`: each thing that can be wrong with this machine and volume, its verdict and its mend.
//!
//! Nothing says ok without having been looked at. What has to be tried is tried with what the product itself does, in a folder
//! of its own that is removed, whatever comes of it.

use std::time::Duration;

use serde::Serialize;

use super::out::{Paint, printable};
use super::{Code, Context, Failure, Out};

mod audit;
mod beats;
mod machine;
mod secrets;
mod volume;

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// As it should be.
    Ok,
    /// It works, and not as well as it could.
    Warning,
    /// It does not work, or does harm.
    Error,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }

    fn paint(self) -> Paint {
        match self {
            Self::Ok => Paint::Green,
            Self::Warning => Paint::Yellow,
            Self::Error => Paint::Red,
        }
    }
}

/// What was found, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    verdict: Verdict,
    found: String,
    /// `null`: there is nothing to mend.
    mend: Option<String>,
}

impl Finding {
    fn ok(found: impl Into<String>) -> Self {
        Self { verdict: Verdict::Ok, found: found.into(), mend: None }
    }

    fn warning(found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warning, found: found.into(), mend: Some(mend.into()) }
    }

    fn error(found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { verdict: Verdict::Error, found: found.into(), mend: Some(mend.into()) }
    }
}

impl From<crate::volume::Error> for Finding {
    fn from(error: crate::volume::Error) -> Self {
        Self::error(error.to_string(), error.hint())
    }
}

/// One line of the answer.
#[derive(Debug, Serialize)]
struct Check {
    check: &'static str,
    #[serde(flatten)]
    finding: Finding,
}

/// All lines of it.
#[derive(Serialize)]
struct Document<'a> {
    checks: &'a [Check],
}

/// Tells each check as soon as it is known, or all in one document.
struct Report {
    out: Out,
    checks: Vec<Check>,
}

/// How wide the names of checks are.
const NAME: usize = "file system".len();

impl Report {
    fn tell(&mut self, check: &'static str, finding: Finding) -> Result<(), Failure> {
        if !self.out.json {
            let Finding { verdict, found, mend } = &finding;
            let word = self.out.paint(verdict.paint(), &format!("{:<7}", verdict.word()));
            self.out.line(&format!("{word}  {check:<NAME$}  {}", printable(found)))?;
            if let Some(mend) = mend {
                let label = self.out.paint(Paint::Dim, "mend:");
                self.out.line(&format!("{:<7}  {:<NAME$}  {label} {}", "", "", printable(mend)))?;
            }
        }
        self.checks.push(Check { check, finding });
        Ok(())
    }

    fn finish(&self) -> Result<Code, Failure> {
        let count = |verdict| self.checks.iter().filter(|check| check.finding.verdict == verdict).count();
        let (warnings, errors) = (count(Verdict::Warning), count(Verdict::Error));
        if self.out.json {
            self.out.document(&Document { checks: &self.checks })?;
        } else if !self.out.quiet {
            let several = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
            let (warnings, errors) = (several(warnings, "warning"), several(errors, "error"));
            self.out.line(&format!("{}: {warnings}, {errors}", several(self.checks.len(), "check")))?;
        }
        Ok(if errors == 0 { Code::Done } else { Code::Failed })
    }
}

/// Looks at everything.
pub(super) fn doctor(context: &mut Context) -> Result<Code, Failure> {
    context.client.need_volume()?;
    let mut report = Report { out: context.out, checks: Vec::new() };
    volume::checks(context, &mut report)?;
    machine::checks(context, &mut report)?;
    report.finish()
}

/// The first few of many, in one sentence.
fn some_of(all: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown = all.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join("; ");
    if all.len() > SHOWN { format!("{shown}; and {} more", all.len() - SHOWN) } else { shown }
}

#[expect(clippy::disallowed_methods, reason = "a verb waits for nothing but what it looks for, and ends at any signal")]
fn pause(span: Duration) {
    std::thread::sleep(span);
}
