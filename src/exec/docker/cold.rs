//! An attempt in a container of its own: its end is what the engine has on record of that container.

use std::time::Duration;

use bollard::models::{ContainerInspectResponse, ContainerState, ContainerStateStatusEnum};
use chrono::DateTime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Shared;
use super::attempt::{Attempt, Ended, Look, Made, PAUSE, STOPPED_BEFORE, Signal, Vessel, own, told};
use super::create::{Inside, body, label, name_of};
use super::engine::{Engine, Fault};
use super::output::{self, Of};
use super::start::{create, name_taken, prepare, why_not_started};
use crate::exec::log::Log;
use crate::exec::{Ending, Spec};
use crate::volume::logs;

/// What an engine says of a container that it found dead.
const ENGINE_DIED: i64 = 255;

/// The container.
pub(super) struct Own {
    pub(super) id: String,
}

/// Makes and starts the container, or finds the one that was made for this attempt before.
pub(super) async fn make(shared: &Shared, attempt: &Attempt, spec: &Spec, inside: &Inside) -> Result<Made, Ended> {
    let name = name_of(&spec.lease);
    if inside.goes_on {
        return adopt(shared, attempt, spec, &name).await;
    }
    let places = prepare(shared, attempt, spec, inside).await.map_err(Ended::unstarted)?;
    let body = |log_from| body(spec, inside, &shared.settings, &places, shared.log_driver(), log_from);
    let Some(id) =
        create(shared, attempt, spec, inside, inside.container.pull, &name, body).await.map_err(Ended::unstarted)?
    else {
        return adopt(shared, attempt, spec, &name).await;
    };
    match shared.engine.start(&id).await {
        // Where the engine does not say whether it was started, nobody knows before it is back: then its record says so.
        Err(fault) if !fault.is_absence() => Err(Ended::unstarted(why_not_started(shared, inside, &fault))),
        Ok(()) | Err(_) => Ok(Made::fresh(Vessel::Own(Own { id }))),
    }
}

/// Takes over the container that has this attempt's name, if it is this attempt's. An engine that is away is waited for: what
/// goes on there has not ended.
async fn adopt(shared: &Shared, attempt: &Attempt, spec: &Spec, name: &str) -> Result<Made, Ended> {
    let mut said = false;
    let seen = loop {
        match shared.engine.inspect(name).await {
            Ok(seen) => break seen,
            Err(fault) if fault.is_absence() => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(run = %attempt.lease.run, %fault, "its container is to be taken over once the engine is back");
                }
                tokio::time::sleep(PAUSE).await;
            }
            Err(Fault::NoContainer) => {
                return Err(Ended::unknown("its container was removed while its device was away".to_owned()));
            }
            Err(fault) => return Err(Ended::unknown(told(shared, &fault))),
        }
    };
    let log_from = seen.config.as_ref().and_then(|config| config.labels.as_ref()?.get(label::LOG_FROM)?.parse().ok());
    let log_from: u64 = log_from.unwrap_or(0);
    let ran_for = seen.state.as_ref().and_then(ran_for).unwrap_or_default();
    let Some(id) = own(shared, &spec.lease, seen) else {
        return Err(Ended::unstarted(name_taken(name)));
    };
    let written = spec.log.as_ref().map_or(0, logs::Log::size);
    tracing::info!(run = %spec.lease.run, attempt = spec.lease.attempt, container = name, "its container goes on and is taken over");
    let vessel = Vessel::Own(Own { id });
    Ok(Made { vessel, copied: written.saturating_sub(log_from), ran_for, is_adopted: true })
}

/// For how long a container that runs has run.
fn ran_for(state: &ContainerState) -> Option<Duration> {
    let started = DateTime::parse_from_rfc3339(state.started_at.as_deref()?).ok()?;
    (chrono::Utc::now() - started.to_utc()).to_std().ok()
}

impl Own {
    pub(super) fn copy(&self, engine: &Engine, log: Log, copied: u64, over: watch::Receiver<bool>) -> JoinHandle<bool> {
        tokio::spawn(output::copy(engine.clone(), Of::Container(self.id.clone()), log, copied, over))
    }

    pub(super) async fn look(&self, shared: &Shared, attempt: &Attempt, lost_sight: bool) -> Result<Look, Fault> {
        let seen = match shared.engine.inspect(&self.id).await {
            Err(Fault::NoContainer) => {
                let error = "its container was removed by somebody else while it ran".to_owned();
                return Ok(Look::Ended(Ended::unknown(error)));
            }
            seen => seen?,
        };
        if was_not_started(&seen) && attempt.is_stopped() {
            return Ok(Look::Ended(Ended::unstarted(STOPPED_BEFORE.to_owned())));
        }
        if was_not_started(&seen) {
            return match shared.engine.start(&self.id).await {
                Ok(()) => Ok(Look::Runs),
                Err(fault) if fault.is_absence() => Err(fault),
                // Killed between a start and the record of it, the engine does not know that it ran.
                Err(fault) if lost_sight => {
                    let why = told(shared, &fault);
                    let error = format!("the engine was away while it was started, and does not start it now: {why}");
                    Ok(Look::Ended(Ended::unknown(error)))
                }
                Err(fault) => Ok(Look::Ended(Ended::unstarted(told(shared, &fault)))),
            };
        }
        Ok(if is_running(&seen) { Look::Runs } else { Look::Ended(judge(&seen, lost_sight)) })
    }

    pub(super) async fn signal(&self, engine: &Engine, signal: Signal) -> Result<bool, Fault> {
        let signal = match signal {
            Signal::Term => "SIGTERM",
            Signal::Kill => "SIGKILL",
        };
        engine.signal(&self.id, signal).await
    }
}

/// Whether it was made, and nobody has come to start it.
fn was_not_started(seen: &ContainerInspectResponse) -> bool {
    let status = seen.state.as_ref().and_then(|state| state.status);
    status == Some(ContainerStateStatusEnum::CREATED)
}

fn is_running(seen: &ContainerInspectResponse) -> bool {
    seen.state.as_ref().is_some_and(|state| state.running == Some(true) || state.restarting == Some(true))
}

/// Reads an end from the engine's record. `lost_sight`: the engine was away while it ran.
fn judge(seen: &ContainerInspectResponse, lost_sight: bool) -> Ended {
    let Some(state) = &seen.state else {
        return Ended::unknown("the engine does not say how its container ended".to_owned());
    };
    let (oom_killed, duration) = (state.oom_killed.unwrap_or(false), lived(state));
    let error = state.error.as_deref().filter(|error| !error.is_empty());
    let ending = match state.exit_code {
        Some(ENGINE_DIED) if lost_sight => {
            let error = "the engine was restarted while it ran, and does not know how its container ended".to_owned();
            Ending::Unknown { error }
        }
        Some(code) => match (error, i32::try_from(code)) {
            // What the engine could not do is no end of the program.
            (Some(error), _) if code != 0 => {
                Ending::NotStarted { error: format!("the engine could not start it: {error} (exit code {code})") }
            }
            (_, Ok(code)) => Ending::Code(code),
            (_, Err(_)) => Ending::Unknown { error: format!("its container ended with the odd exit code {code}") },
        },
        None => Ending::Unknown { error: "the engine does not say how its container ended".to_owned() },
    };
    Ended { oom_killed, duration, ..Ended::of(ending) }
}

/// From start to end, by the engine's clock.
fn lived(state: &ContainerState) -> Option<Duration> {
    let at = |text: &Option<String>| DateTime::parse_from_rfc3339(text.as_deref()?).ok();
    (at(&state.finished_at)? - at(&state.started_at)?).to_std().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(exit_code: Option<i64>, error: &str) -> ContainerInspectResponse {
        let at = |second: u32| Some(format!("2026-11-21T03:41:0{second}.25Z"));
        let state = ContainerState {
            exit_code,
            error: Some(error.to_owned()),
            started_at: at(1),
            finished_at: at(3),
            ..ContainerState::default()
        };
        ContainerInspectResponse { state: Some(state), ..ContainerInspectResponse::default() }
    }

    #[test]
    fn an_end_is_what_the_engine_has_on_record_and_no_success_by_default() {
        let judged = |exit_code, error, lost_sight| judge(&seen(exit_code, error), lost_sight).ending;
        let is_unknown = |ending: &Ending| matches!(ending, Ending::Unknown { .. });
        for code in [0, 1, 137, 254] {
            let expected = Ending::Code(i32::try_from(code).unwrap());
            assert_eq!(judged(Some(code), "", false), expected);
            assert_eq!(judged(Some(code), "", true), expected, "seen or not, it is on record");
        }
        assert_eq!(judged(Some(255), "", false), Ending::Code(255), "a program may say so");
        assert!(is_unknown(&judged(Some(255), "", true)), "so does an engine that was restarted");
        assert!(
            matches!(judged(Some(128), "OCI runtime: no", false), Ending::NotStarted { error } if error.contains("OCI"))
        );
        assert!(is_unknown(&judged(None, "", false)) && is_unknown(&judged(Some(1 << 40), "", false)));
        let nothing = judge(&ContainerInspectResponse::default(), false);
        assert!(is_unknown(&nothing.ending) && nothing.duration.is_none());
        assert_eq!(judge(&seen(Some(0), ""), false).duration, Some(Duration::from_secs(2)));
    }
}
