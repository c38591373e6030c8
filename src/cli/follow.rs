//! What a verb that follows a run prints, and how it exits.

use serde_json::json;

use super::{Code, Context, Failure, Out, times};
use crate::client::follow::Listener;
use crate::model::ids::RunId;
use crate::model::result::{Outcome, Status};

/// Where the log goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LogTo {
    /// As it is, to standard output.
    People,
    /// As JSON, a line of the log in a line.
    Lines,
    /// Nowhere.
    Nobody,
}

/// Prints what a run does.
pub(super) struct Printer {
    out: Out,
    log: LogTo,
    /// The beginning of a line that is not told yet, where lines are told.
    rest: Vec<u8>,
    /// What was told last ends in the middle of a line.
    open_line: bool,
}

impl Printer {
    pub(super) fn new(context: &Context, log: LogTo) -> Self {
        Self { out: context.out, log, rest: Vec::new(), open_line: false }
    }

    fn tell_lines(&mut self, attempt: u32) -> Result<(), Failure> {
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else {
            return Ok(());
        };
        let whole: Vec<u8> = self.rest.drain(..=end).collect();
        for line in whole[..end].split(|byte| *byte == b'\n') {
            self.out.document(&json!({"attempt": attempt, "line": String::from_utf8_lossy(line)}))?;
        }
        Ok(())
    }
}

impl Listener for Printer {
    fn wants_log(&self) -> bool {
        self.log != LogTo::Nobody
    }

    fn output(&mut self, attempt: u32, _offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        self.open_line = bytes.last() != Some(&b'\n');
        if self.log == LogTo::People {
            return self.out.bytes(bytes);
        }
        self.rest.extend_from_slice(bytes);
        self.tell_lines(attempt)
    }

    /// Ends the last line, if the program did not.
    fn log_ends(&mut self, attempt: u32) -> Result<(), Failure> {
        if !std::mem::take(&mut self.open_line) {
            return Ok(());
        }
        match self.log {
            LogTo::People => self.out.bytes(b"\n"),
            LogTo::Lines => {
                self.rest.push(b'\n');
                self.tell_lines(attempt)
            }
            LogTo::Nobody => Ok(()),
        }
    }

    fn attempt_ends(&mut self, outcome: &Outcome) {
        if self.log != LogTo::Nobody {
            self.out.note(&format!("attempt {}: {}; the run goes on", outcome.attempt, summary(outcome)));
        }
    }

    fn wants_reasons(&self) -> bool {
        self.log != LogTo::Nobody && !self.out.json && !self.out.quiet
    }

    fn waits(&mut self, reason: &str) {
        self.out.note(&format!("waiting: {reason}"));
    }

    fn duplicates(&mut self, run: &RunId, first: &RunId) {
        self.out.note(&format!("{run} is a duplicate of {first}, by its id"));
    }
}

/// How a verb that waited for this end exits: as the run did.
pub(super) fn code(outcome: &Outcome) -> Code {
    if outcome.status == Status::Succeeded {
        return Code::Done;
    }
    let code = outcome.exit_code.or(outcome.signal.map(|signal| 128 + signal));
    match code.and_then(|code| u8::try_from(code).ok()) {
        // A program that was stopped and then said that all is well has not succeeded.
        Some(0) | None => Code::Failed,
        Some(code) => Code::Program(code),
    }
}

/// How an attempt ended, in some words: `failed (exit code 3) on docker-main in 1.2 s`.
pub(super) fn summary(outcome: &Outcome) -> String {
    let mut text = outcome.status.as_str().to_owned();
    match (outcome.status, outcome.exit_code, outcome.signal) {
        (Status::Succeeded, _, _) | (_, None, None) => {}
        (_, Some(code), _) => text += &format!(" (exit code {code})"),
        (_, None, Some(signal)) => text += &format!(" (signal {signal})"),
    }
    // Who ended it while it waited did not run it.
    if outcome.attempt > 0 {
        text += &format!(" on {}", outcome.device);
    }
    if let Some(ms) = outcome.duration_ms {
        text += &format!(" in {}", times::took(ms));
    }
    text
}

/// Tells the end of a run: to programs as its result, to people in a line, with what the program reported.
pub(super) fn tell(context: &Context, outcome: &Outcome) -> Result<Code, Failure> {
    let out = &context.out;
    if out.json {
        out.document(outcome)?;
        return Ok(code(outcome));
    }
    if !out.quiet {
        out.line(&super::out::printable(&summary(outcome)))?;
        let more = [("error", &outcome.error), ("result_error", &outcome.result_error)];
        for (name, text) in more {
            if let Some(text) = text {
                out.line(&format!("{name}: {}", super::out::printable(text)))?;
            }
        }
    }
    if let Some(result) = &outcome.result {
        out.line(&super::out::printable(result.text()))?;
    }
    Ok(code(outcome))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(status: Status, exit_code: Option<i32>, signal: Option<i32>) -> Outcome {
        let text = json!({
            "schema": 1, "run_id": "20261121T034156123Z-k3f9q2", "job": "a", "attempt": 1, "device": "d", "executor": "native",
            "cause": "trigger", "trigger": "a.json", "args": [], "kwargs": {}, "priority": 0, "status": status, "final": true,
            "exit_code": exit_code, "signal": signal, "error": null, "result": null, "result_error": null,
            "created_at": "2026-11-21T03:41:56.123Z", "claimed_at": null, "started_at": null,
            "finished_at": "2026-11-21T03:41:57Z", "duration_ms": 1_200.0, "usage": null, "log": null, "log_truncated": false
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn a_wait_exits_as_the_run_did() {
        for (status, exit_code, signal, expected) in [
            (Status::Succeeded, Some(0), None, Code::Done),
            (Status::Failed, Some(3), None, Code::Program(3)),
            (Status::Failed, None, Some(9), Code::Program(137)),
            (Status::Failed, None, None, Code::Failed),
            (Status::TimedOut, Some(0), None, Code::Failed),
            (Status::TimedOut, None, Some(15), Code::Program(143)),
            (Status::Failed, Some(300), None, Code::Failed),
            (Status::Skipped, None, None, Code::Failed),
            (Status::Lost, None, None, Code::Failed),
        ] {
            assert_eq!(code(&outcome(status, exit_code, signal)), expected, "{status:?} {exit_code:?} {signal:?}");
        }
    }

    #[test]
    fn an_end_is_told_in_a_line() {
        assert_eq!(summary(&outcome(Status::Succeeded, Some(0), None)), "succeeded on d in 1.2 s");
        assert_eq!(summary(&outcome(Status::Failed, None, Some(9))), "failed (signal 9) on d in 1.2 s");
    }
}
