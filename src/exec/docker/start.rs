//! What comes before any attempt in a container: the policy, the image, and an end for what goes on of earlier attempts.

use std::sync::Arc;

use bollard::models::ContainerCreateBody;

use super::attempt::{Attempt, PAUSE, STOPPED_BEFORE, told};
use super::create::{Inside, check_policy};
use super::engine::Fault;
use super::places::{HINT, Places, Unknown};
use super::{Shared, tidy};
use crate::exec::Spec;
use crate::model::container::{Gpus, Pull};
use crate::volume::logs::Log;

/// Holds an attempt against the policy, and ends what goes on of earlier ones.
///
/// # Errors
/// Why it cannot be started here.
pub(super) async fn prepare(
    shared: &Shared,
    attempt: &Attempt,
    spec: &Spec,
    inside: &Inside,
) -> Result<Arc<Places>, String> {
    let places = shared.places().await.map_err(|unknown| match unknown {
        Unknown::Engine(fault) => told(shared, &fault),
        Unknown::Place(error) => format!("{error}; hint: {HINT}"),
    })?;
    check_policy(&inside.container, &shared.settings, &places)?;
    // Whoever held an earlier attempt is dead, or has lost it: what goes on of that here ends before this one starts.
    if spec.lease.attempt > 1 {
        let mut said = false;
        while let Err(fault) = tidy::end_earlier(shared, &spec.lease).await {
            if !matches!(fault, Fault::NotNow(_)) {
                return Err(told(shared, &fault));
            }
            if attempt.is_stopped() {
                return Err(STOPPED_BEFORE.to_owned());
            }
            if !std::mem::replace(&mut said, true) {
                tracing::warn!(run = %spec.lease.run, %fault, "an earlier attempt has not ended yet: this one waits for that");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(places)
}

/// Makes a container under a name, fetching its image `when` that is to be done; `None`: there is one of that name.
///
/// # Errors
/// Why it was not made.
pub(super) async fn create(
    shared: &Shared,
    attempt: &Attempt,
    spec: &Spec,
    inside: &Inside,
    when: Pull,
    name: &str,
    body: impl Fn(u64) -> Result<ContainerCreateBody, String>,
) -> Result<Option<String>, String> {
    let image = &inside.container.image;
    let body = |log_from| body(log_from).map_err(|error| format!("{error}; hint: {HINT}"));
    let mut log_from = 0;
    if when == Pull::Always {
        log_from = pull(shared, attempt, spec, image).await?;
    }
    let mut created = shared.engine.create(name, body(log_from)?).await;
    if matches!(created, Err(Fault::NoImage(_))) && when == Pull::Missing {
        let log_from = pull(shared, attempt, spec, image).await?;
        created = shared.engine.create(name, body(log_from)?).await;
    }
    match created {
        // It is removed once its end was told.
        Ok(_) if attempt.is_stopped() => Err(STOPPED_BEFORE.to_owned()),
        Ok(id) => Ok(Some(id)),
        Err(Fault::NameTaken) => Ok(None),
        Err(fault) => Err(why_not_started(shared, inside, &fault)),
    }
}

/// Why nothing was started under a name.
pub(super) fn name_taken(name: &str) -> String {
    format!(
        "a container of somebody else has the name {name}; hint: `docker inspect {name}` shows whose it is, `docker rm -f {name}` removes it"
    )
}

/// Fetches the image, and says so in the log; returns how many bytes that took there.
pub(super) async fn pull(shared: &Shared, attempt: &Attempt, spec: &Spec, image: &str) -> Result<u64, String> {
    let mut say = |line: &str| {
        // Whether anybody can read of it is no reason not to fetch it.
        let _ = spec.log.as_ref().map(|log| log.note(&format!("[{image}: {line}]\n")));
    };
    say("fetching the image");
    // Nothing else here takes long: so only this is cut short by who asks for its end.
    let fetched = tokio::select! {
        fetched = shared.engine.pull(image, &mut say) => fetched,
        () = attempt.asked_to_stop() => return Err(STOPPED_BEFORE.to_owned()),
    };
    match fetched {
        Ok(()) => Ok(spec.log.as_ref().map_or(0, Log::size)),
        Err(fault) if fault.is_absence() => Err(told(shared, &fault)),
        Err(fault) => {
            say(&format!("cannot be fetched: {fault}"));
            let hint = "is its name right, and does this machine reach its registry? `docker pull` says more; `pull = \"never\"` where it is made here";
            Err(format!("the image {image} cannot be fetched: {fault}; hint: {hint}"))
        }
    }
}

/// Why a container was not made or started, in the words of who asked for it.
pub(super) fn why_not_started(shared: &Shared, inside: &Inside, fault: &Fault) -> String {
    let container = &inside.container;
    let text = fault.to_string();
    let says = |words: &str| text.to_lowercase().contains(words);
    if container.gpus != Gpus::None && (says("device driver") || says("gpu") || says("nvidia") || says("cdi")) {
        return format!(
            "this machine's engine has no GPU to give: {text}; hint: tag the devices that have one, and ask for the tag"
        );
    }
    if says("no space left") {
        return format!("the engine's disk is full: {text}; hint: `docker system df` says of what");
    }
    if says("bind source path does not exist") {
        return format!("the engine's host has no such path: {text}; hint: {HINT}");
    }
    if says("network") && says("not found") {
        return format!(
            "the engine has no network {}: {text}; hint: `docker network create {}`",
            container.network, container.network
        );
    }
    match fault {
        Fault::Refused(_) | Fault::Unreadable(_) | Fault::NotNow(_) => {
            format!("the engine did not start a container of {}: {text}", container.image)
        }
        Fault::Gone { .. } | Fault::NoRights(_) | Fault::NoImage(_) | Fault::NameTaken | Fault::NoContainer => {
            told(shared, fault)
        }
    }
}
