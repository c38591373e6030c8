//! Containers whose device is not there any more, or has forgotten them: a crash may have left them.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::create::label;
use super::engine::Fault;
use super::{Shared, lock};
use crate::model::ids::RunId;
use crate::model::lease::Lease;

/// Looks which containers of the volume there are. Whose attempt is over is for who knows the state to say, once it was read anew.
pub(super) async fn survey(shared: Arc<Shared>) {
    // An engine that is not there has nothing to tidy now.
    let Ok(found) = labelled(&shared, &[of_volume(&shared)]).await else { return };
    let found: BTreeSet<Lease> =
        found.into_iter().map(|(lease, _)| lease).filter(|lease| !shared.ledger.knows(lease)).collect();
    if !found.is_empty() {
        lock(&shared.surveyed).extend(found);
        shared.wake.notify_one();
    }
}

/// Ends what goes on here of earlier attempts of a run.
pub(super) async fn end_earlier(shared: &Shared, lease: &Lease) -> Result<(), Fault> {
    let labels = [of_volume(shared), format!("{}={}", label::RUN, lease.run)];
    for (earlier, id) in labelled(shared, &labels).await?.into_iter().filter(|(found, _)| found.attempt < lease.attempt)
    {
        remove(shared, &earlier, &id, "a later attempt starts").await?;
    }
    Ok(())
}

fn of_volume(shared: &Shared) -> String {
    format!("{}={}", label::VOLUME, shared.settings.volume)
}

/// Ends what goes on of attempts that others held, on the engine that this device reaches.
pub(super) async fn evict(shared: Arc<Shared>, leases: BTreeSet<Lease>) {
    match labelled(&shared, &[of_volume(&shared)]).await {
        Ok(found) => {
            for (lease, id) in found.into_iter().filter(|(lease, _)| leases.contains(lease)) {
                // What could not be removed is met again by the survey, and by whoever starts a later attempt.
                let _ = remove(&shared, &lease, &id, "nobody holds it").await;
            }
        }
        // Where there is no engine nothing can go on that this device could reach.
        Err(fault) if fault.is_absence() => tracing::debug!(%fault, "no look at what goes on of a dead device"),
        Err(fault) => tracing::warn!(%fault, "whether runs of a dead device go on in containers is not known"),
    }
    lock(&shared.evicted).extend(leases.into_iter().map(|lease| (lease, true)));
    shared.wake.notify_one();
}

/// The containers of this device.
pub(super) async fn left(shared: &Shared) -> Result<Vec<(Lease, String)>, Fault> {
    let settings = &shared.settings;
    let own = [of_volume(shared), format!("{}={}", label::DEVICE, settings.device)];
    labelled(shared, &own).await
}

async fn labelled(shared: &Shared, labels: &[String]) -> Result<Vec<(Lease, String)>, Fault> {
    let found = shared.engine.labelled(labels).await?;
    let lease_of = |labels: &std::collections::HashMap<String, String>| {
        let run = RunId::parse(labels.get(label::RUN)?)?;
        Some(Lease { run, attempt: labels.get(label::ATTEMPT)?.parse().ok()? })
    };
    let found = found.into_iter().filter_map(|container| Some((lease_of(&container.labels?)?, container.id?)));
    Ok(found.collect())
}

async fn remove(shared: &Shared, lease: &Lease, container: &str, why: &str) -> Result<(), Fault> {
    let (run, attempt) = (&lease.run, lease.attempt);
    let removed = shared.engine.remove(container).await;
    match &removed {
        Ok(()) => tracing::info!(%run, attempt, container, why, "a container is removed"),
        Err(error) => tracing::warn!(%run, attempt, container, why, %error, "a container cannot be removed"),
    }
    removed
}
