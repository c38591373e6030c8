//! Containers whose device is not there any more, or has forgotten them: a crash may have left them.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::create::label;
use super::engine::Fault;
use super::{Shared, lock};
use crate::model::ids::RunId;
use crate::model::lease::Lease;

/// Removes the containers of this device that belong to none of the attempts that it holds.
pub(super) async fn tidy(shared: Arc<Shared>, held: BTreeSet<Lease>) {
    // An engine that is not there has nothing to tidy now.
    let Ok(left) = left(&shared).await else { return };
    for (lease, id) in left.into_iter().filter(|(lease, _)| !held.contains(lease)) {
        if !shared.ledger.knows(&lease) {
            remove(&shared, &lease, &id, "nobody holds it").await;
        }
    }
}

/// Ends what goes on of attempts that others held, on the engine that this device reaches.
pub(super) async fn evict(shared: Arc<Shared>, leases: BTreeSet<Lease>) {
    let of_volume = format!("{}={}", label::VOLUME, shared.settings.volume);
    match labelled(&shared, &[of_volume]).await {
        Ok(found) => {
            for (lease, id) in found.into_iter().filter(|(lease, _)| leases.contains(lease)) {
                remove(&shared, &lease, &id, "its device is dead").await;
            }
        }
        Err(fault) => tracing::warn!(%fault, "whether runs of a dead device go on in containers is not known"),
    }
    lock(&shared.evicted).extend(leases.into_iter().map(|lease| (lease, true)));
    shared.wake.notify_one();
}

/// The containers of this device.
pub(super) async fn left(shared: &Shared) -> Result<Vec<(Lease, String)>, Fault> {
    let settings = &shared.settings;
    let own = [format!("{}={}", label::VOLUME, settings.volume), format!("{}={}", label::DEVICE, settings.device)];
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

async fn remove(shared: &Shared, lease: &Lease, container: &str, why: &str) {
    let (run, attempt) = (&lease.run, lease.attempt);
    match shared.engine.remove(container).await {
        Ok(()) => tracing::info!(%run, attempt, container, why, "a container is removed"),
        Err(error) => tracing::warn!(%run, attempt, container, why, %error, "a container cannot be removed"),
    }
}
