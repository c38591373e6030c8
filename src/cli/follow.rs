//! Waiting for a run: its log as it grows, attempt after attempt, whichever device has it, and its final result.
//!
//! It polls exact paths, quickly at first, then slower: nothing has to be told that somebody waits. What exact paths do not
//! show (a rejected trigger, a duplicate, a file that somebody removed) is looked for now and then.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use super::failure::{Code, Failure};
use super::find::{self, Run};
use super::view;
use super::{Context, times};
use crate::model::entry::FileId;
use crate::model::ids::RunId;
use crate::model::lease::Lease;
use crate::model::result::{Outcome, Status};
use crate::volume::logs::earlier_part;
use crate::volume::os::read_from;
use crate::volume::{Context as _, found, processed, results};

/// The first and the longest pause between two looks.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(200));
/// How often it is looked for what exact paths do not show.
const LOOK_AROUND: Duration = Duration::from_secs(2);
/// How long a run may be nowhere before that is the answer: a network file system shows moves late.
const NOWHERE: Duration = Duration::from_secs(12);
/// How far ahead attempts are looked for: a claim that was never committed leaves its number unused.
const AHEAD: u32 = 3;
/// How much of a log is read at once, bytes.
const CHUNK: u64 = 256 << 10;

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

/// Somebody who waits.
pub(super) struct Follower<'a> {
    context: &'a Context,
    run: Run,
    log: LogTo,
    attempt: u32,
    tail: Tail,
    nowhere_since: Option<Duration>,
    /// What it was last said to wait for.
    said: String,
}

impl<'a> Follower<'a> {
    /// Follows `run` from `attempt` on.
    pub(super) fn new(context: &'a Context, run: Run, log: LogTo, attempt: u32) -> Self {
        let tail = Tail::new(context, &run, attempt);
        Self { context, run, log, attempt, tail, nowhere_since: None, said: String::new() }
    }

    /// Waits for the end of the run, at most until `timeout` is over.
    ///
    /// # Errors
    /// Exit code 124 when time is up, 2 if the trigger was rejected, 3 if the run is nowhere any more.
    pub(super) fn wait(&mut self, timeout: Option<Duration>) -> Result<Outcome, Failure> {
        let begun = self.context.now().boot;
        let mut look_around = begun + PAUSES.1;
        let mut pause = PAUSES.0;
        loop {
            let before = (self.attempt, self.tail.offset);
            if let Some(outcome) = self.look()? {
                return Ok(outcome);
            }
            let now = self.context.now().boot;
            if let Some(timeout) = timeout
                && now.saturating_sub(begun) >= timeout
            {
                let error = format!("the run {} has not ended within {timeout:?}; it goes on", self.run.id);
                return Err(Failure::new(
                    Code::TimedOut,
                    error,
                    format!("`orchestrator runs wait {}` waits again", self.run.id),
                ));
            }
            if now >= look_around {
                look_around = now + LOOK_AROUND;
                self.look_around(now)?;
            }
            let moved = before != (self.attempt, self.tail.offset);
            pause = if moved { PAUSES.0 } else { (pause * 5 / 4).min(PAUSES.1) };
            let left = timeout.map_or(pause, |timeout| (begun + timeout).saturating_sub(now));
            self.context.pause(pause.min(left));
        }
    }

    /// Takes in what is new; the final result, if it is there.
    fn look(&mut self) -> Result<Option<Outcome>, Failure> {
        let first = self.attempt.max(1);
        for attempt in std::iter::once(0).chain(first..=first + AHEAD) {
            if let Some(outcome) = self.result(attempt)? {
                if attempt >= self.attempt {
                    self.go_to(attempt)?;
                }
                // The result stands after the last byte of the log.
                self.tail.copy(self.context, self.log)?;
                if outcome.is_final {
                    self.tail.finish(self.context, self.log)?;
                    return Ok(Some(outcome));
                }
                self.tell_end_of(&outcome);
                self.go_to(attempt + 1)?;
            }
        }
        for attempt in self.attempt + 1..=self.attempt + AHEAD {
            if found(self.context.disk.stat(&log_path(self.context, &self.run, attempt)))
                .is_ok_and(|there| there.is_some())
            {
                self.go_to(attempt)?;
            }
        }
        self.tail.copy(self.context, self.log)?;
        Ok(None)
    }

    fn result(&self, attempt: u32) -> Result<Option<Outcome>, Failure> {
        let lease = Lease { run: self.run.id.clone(), attempt };
        Ok(results::read(&*self.context.disk, &self.context.layout.result(&self.run.job, &lease))?)
    }

    /// Goes over to the log of another attempt, once that of the present one is told.
    fn go_to(&mut self, attempt: u32) -> Result<(), Failure> {
        if attempt != self.attempt {
            self.tail.copy(self.context, self.log)?;
            self.tail.finish(self.context, self.log)?;
            self.attempt = attempt;
            self.tail = Tail::new(self.context, &self.run, attempt);
        }
        Ok(())
    }

    fn tell_end_of(&self, outcome: &Outcome) {
        if self.log != LogTo::Nobody {
            self.context.out.note(&format!("attempt {}: {}; the run goes on", outcome.attempt, summary(outcome)));
        }
    }

    /// Looks for what exact paths do not show.
    fn look_around(&mut self, now: Duration) -> Result<(), Failure> {
        let id = self.run.id.clone();
        if let Some(first) = find::first_of_duplicate(self.context, &id)? {
            return self.change_over(&first);
        }
        match find::gather(self.context, &id)? {
            Some(run) if run.held.is_some() || run.entry.is_some() => {
                self.nowhere_since = None;
                self.say_why(&run)?;
                self.run = run;
                return Ok(());
            }
            Some(_) | None => {}
        }
        if let Some(why) = processed::rejection(&*self.context.disk, &self.context.layout, &id)? {
            return Err(find::rejected(&why));
        }
        let since = *self.nowhere_since.get_or_insert(now);
        if now.saturating_sub(since) >= NOWHERE {
            return Err(Failure::new(
                Code::NotFound,
                format!(
                    "the run {id} is nowhere any more: its trigger was removed, or got another id because this one was used"
                ),
                "`orchestrator runs list` shows the runs there are",
            ));
        }
        Ok(())
    }

    /// The trigger was a duplicate: the first run with its key is the one that counts.
    fn change_over(&mut self, first: &RunId) -> Result<(), Failure> {
        let Some(run) = find::gather(self.context, first)? else {
            return Ok(());
        };
        self.context.out.note(&format!("{} is a duplicate of {first}, by its id", self.run.id));
        self.attempt = 1;
        self.tail = Tail::new(self.context, &run, 1);
        self.run = run;
        Ok(())
    }

    /// Whoever waits is told why nothing happens, again whenever that is something else.
    fn say_why(&mut self, run: &Run) -> Result<(), Failure> {
        let Some(entry) = &run.entry else { return Ok(()) };
        if self.log == LogTo::Nobody || self.context.out.json || self.context.out.quiet {
            return Ok(());
        }
        let state = view::state(self.context)?.unwrap_or_default();
        let devices = view::seen(&view::devices(self.context)?, &state);
        let programs = view::programs(self.context)?;
        let why = crate::decide::explain::why(entry, programs.catalog(), &state, &devices, self.context.now());
        if why != self.said {
            self.context.out.note(&format!("waiting: {why}"));
            self.said = why;
        }
        Ok(())
    }
}

/// The log of an attempt.
pub(super) fn log_path(context: &Context, run: &Run, attempt: u32) -> PathBuf {
    context.layout.log(&run.job, &Lease { run: run.id.clone(), attempt })
}

/// One log, told as far as `offset`; where it was rotated, its earlier part first.
pub(super) struct Tail {
    path: PathBuf,
    earlier: PathBuf,
    /// The earlier part that was told last.
    told: Option<FileId>,
    begun: bool,
    attempt: u32,
    offset: u64,
    /// The beginning of a line that is not told yet, where lines are told.
    rest: Vec<u8>,
    /// What was told last ends in the middle of a line.
    open_line: bool,
}

impl Tail {
    /// The log of `attempt`, from its beginning.
    pub(super) fn new(context: &Context, run: &Run, attempt: u32) -> Self {
        let path = log_path(context, run, attempt);
        Self {
            earlier: earlier_part(&path),
            path,
            told: None,
            begun: false,
            attempt,
            offset: 0,
            rest: Vec::new(),
            open_line: false,
        }
    }

    /// Tells what is new. A log that is not there (yet) has nothing new.
    pub(super) fn copy(&mut self, context: &Context, to: LogTo) -> Result<(), Failure> {
        if to == LogTo::Nobody {
            return Ok(());
        }
        self.tell_earlier_part(context, to)?;
        loop {
            let chunk = piece(&self.path, self.offset)?;
            if !chunk.is_empty() {
                self.offset += chunk.len() as u64;
                self.tell(context, to, &chunk)?;
                continue;
            }
            let size = found(context.disk.stat(&self.path)).on("look at", &self.path)?.map(|meta| meta.id.size);
            let Some(size) = size.filter(|size| *size < self.offset) else { return Ok(()) };
            // It shrank. If it was rotated, what it held was its earlier part before that.
            self.tell_earlier_part(context, to)?;
            if self.told.is_none() {
                // Cut at its limit: what comes next stands behind the cut.
                self.offset = size;
                return Ok(());
            }
            self.offset = 0;
        }
    }

    /// Tells what is not told yet of an earlier part that is new. It holds its bytes where the log held them, so the rest begins at
    /// the same offset; and the log, if it is not cut yet, goes on where the earlier part ends.
    fn tell_earlier_part(&mut self, context: &Context, to: LogTo) -> Result<(), Failure> {
        let was_there_before = !std::mem::replace(&mut self.begun, true);
        let mut at = if was_there_before { 0 } else { self.offset };
        loop {
            let there = self.earlier_part(context)?;
            if there.is_none() || there == self.told {
                return Ok(());
            }
            self.told = there;
            loop {
                let chunk = piece(&self.earlier, at)?;
                // Where it is replaced meanwhile, the rest of it is gone, and the next one is new from its beginning.
                if chunk.is_empty() || self.earlier_part(context)? != there {
                    break;
                }
                at += chunk.len() as u64;
                self.tell(context, to, &chunk)?;
            }
            self.offset = if was_there_before { 0 } else { at };
            at = 0;
        }
    }

    fn earlier_part(&self, context: &Context) -> Result<Option<FileId>, Failure> {
        Ok(found(context.disk.stat(&self.earlier)).on("look at", &self.earlier)?.map(|meta| meta.id))
    }

    fn tell(&mut self, context: &Context, to: LogTo, chunk: &[u8]) -> Result<(), Failure> {
        self.open_line = chunk.last() != Some(&b'\n');
        if to == LogTo::People {
            return context.out.bytes(chunk);
        }
        self.rest.extend_from_slice(chunk);
        self.tell_lines(context)
    }

    /// All of it, as text.
    pub(super) fn text(&self, context: &Context) -> Result<String, Failure> {
        let mut bytes = Vec::new();
        // Again if it was rotated meanwhile, which happens once in a while at most.
        for _ in 0..3 {
            let before = self.earlier_part(context)?;
            bytes.clear();
            for path in [&self.earlier, &self.path] {
                let begin = bytes.len();
                loop {
                    let chunk = piece(path, (bytes.len() - begin) as u64)?;
                    if chunk.is_empty() {
                        break;
                    }
                    bytes.extend(chunk);
                }
            }
            if self.earlier_part(context)? == before {
                break;
            }
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Ends the last line, if the program did not.
    pub(super) fn finish(&mut self, context: &Context, to: LogTo) -> Result<(), Failure> {
        if !std::mem::take(&mut self.open_line) {
            return Ok(());
        }
        match to {
            LogTo::People => context.out.bytes(b"\n"),
            LogTo::Lines => {
                self.rest.push(b'\n');
                self.tell_lines(context)
            }
            LogTo::Nobody => Ok(()),
        }
    }

    fn tell_lines(&mut self, context: &Context) -> Result<(), Failure> {
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else {
            return Ok(());
        };
        let whole: Vec<u8> = self.rest.drain(..=end).collect();
        for line in whole[..end].split(|byte| *byte == b'\n') {
            context.out.document(&json!({"attempt": self.attempt, "line": String::from_utf8_lossy(line)}))?;
        }
        Ok(())
    }
}

/// The next piece of a log that may not be there.
fn piece(path: &Path, offset: u64) -> Result<Vec<u8>, Failure> {
    Ok(found(read_from(path, offset, CHUNK)).on("read", path)?.unwrap_or_default())
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
