//! Ends: from a process that is gone to a result that waits for its commit.

use super::spec::output_of;
use super::{Device, End, Leaving, Parts, TRY_AGAIN};
use crate::decide::agenda::unwanted;
use crate::decide::attempts::{LocalAttempt, Step};
use crate::decide::settle::{Circumstances, GoesOn, Next, Report, fits_here, judge};
use crate::exec::{Ending, Exit, StopCause};
use crate::model::job::Program;
use crate::model::lease::Lease;
use crate::model::result::Status;
use crate::model::space::show_size;
use crate::model::time::{Moment, show_duration};
use crate::volume::layout::Layout;
use crate::volume::results::{Output, stage_result, staged_path, supersede, take_output};
use crate::volume::{self, Context};

impl Device {
    /// Takes the ends since the last tick and stages their results. What cannot be staged is kept and tried again.
    pub(super) fn take_exits(&mut self, now: Moment) {
        for exit in self.parts.executor.take_exits() {
            let report = self.report(&exit, now);
            self.seen.attempts.step(&exit.lease, Step::Exit(Box::new(report)));
        }
        let waiting: Vec<Lease> = self.seen.attempts.exited().cloned().collect();
        let is_any = !waiting.is_empty();
        let mut failed = None;
        for lease in waiting {
            if let Err(error) = self.stage(&lease, false, now) {
                failed = Some(error);
            }
        }
        if let Some(error) = failed {
            self.problem("results", format!("{error}; hint: {}", error.hint()));
            self.come_back(now.boot + TRY_AGAIN);
        } else if is_any {
            self.solved("results");
        }
    }

    /// Judges those ends again that were judged before somebody asked for the end of their run.
    pub(super) fn heed_cancels(&mut self, now: Moment) {
        let state = std::sync::Arc::clone(self.store.state());
        let late = self.seen.attempts.concluded().filter(|(lease, ended)| {
            ended.next != Next::Over && !ended.by.cancel_asked && state.cancel_asked(&lease.run)
        });
        for lease in late.map(|(lease, _)| lease.clone()).collect::<Vec<_>>() {
            self.judge_again(&lease, false, now);
        }
    }

    /// Judges an end again: what it was judged by has changed.
    pub(super) fn judge_again(&mut self, lease: &Lease, gone: bool, now: Moment) {
        self.seen.attempts.step(lease, Step::Reopen);
        if let Err(error) = self.stage(lease, gone, now) {
            self.problem("results", format!("{error}; hint: {}", error.hint()));
        }
    }

    /// An attempt that is claimed and cannot be started by this device goes back as it is, for this reason.
    pub(super) fn hand_back_unstarted(&mut self, lease: &Lease, error: String, now: Moment) {
        let report = Report { goes_on: GoesOn::Anywhere, ..Report::unstarted(Status::Cancelled, error, now.wall) };
        self.seen.attempts.step(lease, Step::Exit(Box::new(report)));
        self.come_back(now.boot);
    }

    fn stage(&mut self, lease: &Lease, gone: bool, now: Moment) -> Result<(), volume::Error> {
        let Some(mine) = self.seen.attempts.get(lease) else { return Ok(()) };
        let Some(report) = mine.exited() else { return Ok(()) };
        let cancel_asked = self.store.state().cancel_asked(&lease.run);
        let by = Circumstances { cancel_asked, gone, may_stay: self.may_stay(mine) };
        let ended = judge(mine, report, &self.seen.me, by, now);
        let Device { parts, seen, names, .. } = self;
        stage_result(&*parts.disk, &parts.layout, names, &seen.me.session, &ended.outcome)?;
        self.seen.attempts.step(lease, Step::Conclude(Box::new(ended)));
        Ok(())
    }

    /// Whether another attempt of a run could be made here at once.
    fn may_stay(&self, mine: &LocalAttempt) -> bool {
        self.leaving.is_none()
            && !self.drained
            && self.could_write
            && !self.problems.contains_key("programs")
            && fits_here(mine, &self.seen.catalog, &self.seen.me)
    }

    /// Keeps what an attempt reported after it had lost its lease. `false`: that could not be written.
    pub(super) fn supersede(&mut self, lease: &Lease) -> bool {
        let Some(ended) = self.seen.attempts.ended(lease) else { return true };
        let mut outcome = ended.outcome.clone();
        outcome.status = Status::Superseded;
        outcome.is_final = false;
        let Device { parts, seen, names, .. } = self;
        let kept = supersede(&*parts.disk, &parts.layout, names, &seen.me.session, &outcome);
        match &kept {
            Ok(()) => {
                tracing::warn!(run = %lease.run, attempt = lease.attempt, "its lease had gone to another attempt: the result is kept as superseded");
                self.seen.attempts.remove(lease);
            }
            Err(error) => self.problem("results", format!("{error}; hint: {}", error.hint())),
        }
        kept.is_ok()
    }

    fn report(&mut self, exit: &Exit, now: Moment) -> Report {
        let lease = &exit.lease;
        let attempt = self.seen.attempts.get(lease);
        let started = attempt.and_then(LocalAttempt::started);
        let work = attempt.zip(started).and_then(|(attempt, started)| Some(self.work_of(attempt, started.seat?)));
        let masker = started.and_then(|started| started.masker.clone()).unwrap_or_default();
        let mask = |text: String| masker.mask_text(text);
        let memory = started.and_then(|started| started.limits.memory);
        let mut output = Output::default();
        let (mut timeout, mut claimed_at) = (None, None);
        if let Some(mine) = attempt {
            let is_function = matches!(mine.job.program, Program::Function { .. });
            timeout = mine.timeout();
            claimed_at = Some(mine.held.claimed_at);
            let (disk, layout) = (&*self.parts.disk, &self.parts.layout);
            output = take_output(disk, &output_of(mine, layout, work.as_ref()), is_function, &masker)
                .unwrap_or_else(|error| Output { result_error: Some(error.to_string()), ..Output::default() });
        }
        if let Some(work) = work
            && !work.remove(&*self.parts.disk)
        {
            tracing::warn!(run = %lease.run, folder = %work.given.display(), "this attempt left what this device may not remove: its warm container serves no other; hint: give the container the device's own user");
            self.spoiled.insert(work);
        }
        let (status, goes_on) = status_of(exit);
        // It may have taken long to end what the program left behind.
        let finished_at = now.wall - span(now.boot.saturating_sub(exit.finished));
        // The volume's clock is coarser than what is measured here: nothing starts before it was claimed.
        let started_at = (finished_at - span(exit.duration)).max(claimed_at.unwrap_or_default());
        let finished_at = finished_at.max(started_at);
        let (exit_code, signal) = match exit.ending {
            Ending::Code(code) => (Some(code), None),
            Ending::Signal(signal) => (None, Some(signal)),
            Ending::NotStarted { .. } | Ending::Unknown { .. } => (None, None),
        };
        let error =
            self.why_dismissed(exit).or_else(|| error_of(exit, status, timeout, memory, output.error).map(mask));
        Report {
            status,
            goes_on,
            exit_code,
            signal,
            error,
            result: output.result,
            result_error: output.result_error.map(mask),
            // By the volume's clock: what follows from it is compared on other machines.
            started_at: exit.started.then_some(started_at),
            finished_at,
            duration: exit.duration,
            usage: exit.usage,
            log: self.log_of(lease),
            log_truncated: exit.log_truncated,
        }
    }

    /// What its job says against an attempt that was stopped for its job's sake.
    fn why_dismissed(&self, exit: &Exit) -> Option<String> {
        let mine = self.seen.attempts.get(&exit.lease).filter(|_| exit.stopped == Some(StopCause::Dismissed))?;
        unwanted(self.store.state(), &self.seen.catalog, &exit.lease.run, &mine.held)
    }

    fn log_of(&self, lease: &Lease) -> Option<String> {
        self.seen.attempts.get(lease).map(|mine| Layout::log_name(&mine.held.job, lease))
    }

    /// The device is to end for this reason: its runs are stopped at once.
    pub(super) fn leave_for(&mut self, end: End, now: Moment) {
        // Whose id is another's has nothing left to finish, whatever it was about to end for.
        if self.end.as_ref().is_some_and(|known| *known == End::Replaced || end != End::Replaced) {
            return;
        }
        let (cause, stop_at, gone_by) = match &end {
            End::Left => (StopCause::Drained, now.boot, now.boot + super::LEAVE_GRACE + TRY_AGAIN),
            End::Replaced => {
                tracing::error!("another session has taken this device's id over by force: its attempts are stopped");
                if let Some(pulse) = &self.parts.pulse {
                    pulse.writing().repeat(None);
                }
                (StopCause::Fenced, now.boot, now.boot + super::LEAVE_GRACE + TRY_AGAIN)
            }
            End::NewerState(why) => {
                tracing::error!("{why}: nothing is claimed any more; hint: install the newer program here too");
                // Its runs may finish: nobody else takes them while it beats.
                (StopCause::Drained, std::time::Duration::MAX, std::time::Duration::MAX)
            }
        };
        let before = self.leaving.filter(|_| end != End::Replaced);
        let (stop_at, gone_by) =
            before.map_or((stop_at, gone_by), |before| (before.stop_at.min(stop_at), before.gone_by.min(gone_by)));
        self.end = Some(end);
        self.leaving = Some(Leaving { stop_at, gone_by, cause, asked: false });
    }

    /// Makes the results of the last runs visible, where the state may no longer be written: whoever can read it completes
    /// the commit.
    fn publish_without_commit(&self) {
        for (lease, ended) in self.seen.attempts.concluded() {
            let Parts { disk, layout, .. } = &self.parts;
            let staged = staged_path(layout, &ended.held.job, lease, &self.seen.me.session);
            let result = layout.result(&ended.held.job, lease);
            if let Err(error) = disk.rename_new(&staged, &result).on("write", &result) {
                tracing::error!("{error}; the result stays as {}", staged.display());
            }
        }
    }

    /// Why the device stops ticking now, if it does.
    pub(super) fn has_left(&mut self, now: Moment) -> Option<End> {
        let leaving = self.leaving?;
        let end = self.end.clone().unwrap_or(End::Left);
        let done = match end {
            End::Left => self.seen.attempts.is_empty() && self.has_told(now),
            // Their results belong to nobody here: it is enough that the processes are gone and said so.
            End::Replaced | End::NewerState(_) => {
                self.parts.executor.list().is_empty() && self.seen.attempts.exited().next().is_none()
            }
        };
        if !done && now.boot < leaving.gone_by {
            return None;
        }
        match end {
            End::Left => self.say_good_bye(now),
            End::NewerState(_) => self.publish_without_commit(),
            End::Replaced => {}
        }
        Some(end)
    }
}

fn span(span: std::time::Duration) -> chrono::TimeDelta {
    chrono::TimeDelta::from_std(span).unwrap_or_default()
}

/// The status of an end, and whether its run goes on all the same.
fn status_of(exit: &Exit) -> (Status, GoesOn) {
    let by_itself = match exit.ending {
        Ending::Code(0) => Status::Succeeded,
        Ending::Code(_) | Ending::Signal(_) | Ending::NotStarted { .. } => Status::Failed,
        Ending::Unknown { .. } => Status::Lost,
    };
    match exit.stopped {
        None => (by_itself, GoesOn::No),
        Some(StopCause::Timeout) => (Status::TimedOut, GoesOn::No),
        Some(StopCause::Cancelled | StopCause::Dismissed | StopCause::Preempted) => (Status::Cancelled, GoesOn::No),
        Some(StopCause::Restarted) => (Status::Cancelled, GoesOn::Here),
        Some(StopCause::Drained | StopCause::Fenced | StopCause::Short) => (Status::Cancelled, GoesOn::Anywhere),
    }
}

fn error_of(
    exit: &Exit,
    status: Status,
    timeout: Option<std::time::Duration>,
    memory: Option<u64>,
    reported: Option<String>,
) -> Option<String> {
    if let Ending::NotStarted { error } = &exit.ending {
        return Some(error.clone());
    }
    match (exit.stopped, &exit.ending) {
        (Some(StopCause::Timeout), _) => {
            Some(format!("stopped after its timeout of {}", show_duration(timeout.unwrap_or_default())))
        }
        (Some(StopCause::Cancelled), _) => Some("cancelled by a person".to_owned()),
        (Some(StopCause::Restarted), _) => Some("stopped to be started again".to_owned()),
        (Some(StopCause::Dismissed), _) => Some("its job does not want it any more".to_owned()),
        (Some(StopCause::Preempted), _) => Some("preempted: its device has other work".to_owned()),
        (Some(StopCause::Drained), _) => Some("its device left; the run goes on".to_owned()),
        (Some(StopCause::Short), _) => Some("its device was out of processes, memory or descriptors".to_owned()),
        (Some(StopCause::Fenced), _) => Some("stopped: its lease had gone to another attempt".to_owned()),
        (None, Ending::Unknown { error }) => Some(error.clone()),
        (None, Ending::Code(_) | Ending::Signal(_)) if status == Status::Failed && exit.oom_killed => {
            let limit = memory.map_or_else(String::new, |bytes| format!(" of {}", show_size(bytes)));
            Some(format!("killed because its memory limit{limit} was used up"))
        }
        (None, Ending::Code(code)) if status == Status::Failed => {
            reported.or_else(|| Some(format!("exited with code {code}")))
        }
        (None, Ending::Signal(signal)) => Some(format!("ended by signal {signal}{}", signal_name(*signal))),
        (None, Ending::Code(_) | Ending::NotStarted { .. }) => None,
    }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return String::new(),
    };
    format!(" ({name})")
}
