//! Containers and services whose device is not there any more, or has forgotten them: a crash may have left them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bollard::models::ContainerSummaryStateEnum;

use super::attempt::PAUSE;
use super::create::{label, lease_of};
use super::engine::Fault;
use super::{Shared, lock, service};
use crate::model::container::Engine;
use crate::model::lease::{Lease, Outliving};

/// What a swarm puts on the containers of its services.
const SWARM_SERVICE: &str = "com.docker.swarm.service.id";

/// Something of the volume on the engine.
#[derive(Debug)]
struct Found {
    /// Whose attempt it is; `None`: it is kept and has none.
    lease: Option<Lease>,
    labels: HashMap<String, String>,
    home: Home,
    is_running: bool,
}

#[derive(Debug)]
enum Home {
    Container(String),
    Service(String),
}

impl Found {
    fn is_kept(&self) -> bool {
        self.labels.contains_key(label::KEPT)
    }

    /// Whether this device made it, in this life or another.
    fn is_of_device(&self, shared: &Shared) -> bool {
        self.labels.get(label::DEVICE).is_some_and(|device| device == shared.settings.device.as_str())
    }

    /// A container that was kept by somebody who will not come back to it: nothing that runs there can be taken over.
    fn is_forgotten(&self, shared: &Shared) -> bool {
        let is_earlier = self.labels.get(label::SESSION).is_none_or(|it| it != shared.settings.session.as_str());
        self.is_kept() && (is_earlier && self.is_of_device(shared) || !self.is_running && self.lease.is_none())
    }

    async fn remove(&self, shared: &Shared, why: &str) -> Result<(), Fault> {
        let (removed, name) = match &self.home {
            Home::Container(id) => (shared.engine.remove(id).await, id),
            Home::Service(name) => match &self.lease {
                Some(lease) => (service::remove(shared, lease).await, name),
                None => (shared.engine.remove_service(name).await, name),
            },
        };
        let (run, attempt) = self.lease.as_ref().map(|lease| (lease.run.as_str(), lease.attempt)).unzip();
        match &removed {
            Ok(()) => tracing::info!(run, attempt, name, why, "a container is removed"),
            Err(Fault::NotNow(_)) => tracing::debug!(run, attempt, name, why, "a container is to end"),
            Err(error) => tracing::warn!(run, attempt, name, why, %error, "a container cannot be removed"),
        }
        removed
    }
}

/// Looks what there is of the volume. Whose attempt is over is for who knows the state to say, once it was read anew.
pub(super) async fn survey(shared: Arc<Shared>) {
    // An engine that is not there has nothing to tidy now.
    let Ok(found) = of_volume(&shared).await else { return };
    let mut met = BTreeSet::new();
    for found in found {
        if found.is_forgotten(&shared) {
            // It is met again.
            let _ = found.remove(&shared, "nobody comes back to it").await;
        } else if let Some(lease) = found.lease.filter(|lease| !shared.ledger.knows(lease)) {
            met.insert(lease);
        }
    }
    if !met.is_empty() {
        lock(&shared.surveyed).extend(met);
        shared.wake.notify_one();
    }
}

/// Ends what goes on here of earlier attempts of a run.
pub(super) async fn end_earlier(shared: &Shared, lease: &Lease) -> Result<(), Fault> {
    let is_earlier = |found: &Lease| found.run == lease.run && found.attempt < lease.attempt;
    for found in of_volume(shared).await?.into_iter().filter(|found| found.lease.as_ref().is_some_and(is_earlier)) {
        found.remove(shared, "a later attempt starts").await?;
    }
    Ok(())
}

/// Ends what goes on of attempts that others held, on the engine that this device reaches. Each is told as soon as nothing is left of
/// it: one that takes long holds up no other.
pub(super) async fn evict(shared: Arc<Shared>, leases: BTreeSet<Lease>) {
    let mut open = leases;
    let mut said = false;
    loop {
        let left = match of_volume(&shared).await {
            Ok(all) => end_all(&shared, all, &open).await,
            // Where there is no engine nothing can go on that this device could reach.
            Err(fault) if fault.is_absence() => {
                tracing::debug!(%fault, "no look at what goes on of a dead device");
                BTreeSet::new()
            }
            Err(fault) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(%fault, "whether runs of a dead device go on in containers is not known yet");
                }
                open.clone()
            }
        };
        let clear = &open - &left;
        if !clear.is_empty() {
            lock(&shared.evicted).extend(clear.into_iter().map(|lease| (lease, true)));
            shared.wake.notify_one();
        }
        if left.is_empty() {
            return;
        }
        open = left;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Ends what there is of these attempts, and returns those that have not ended yet.
async fn end_all(shared: &Shared, all: Vec<Found>, leases: &BTreeSet<Lease>) -> BTreeSet<Lease> {
    let mut left = BTreeSet::new();
    for found in all {
        if let Some(lease) = found.lease.clone().filter(|lease| leases.contains(lease)) {
            // What could not be removed for another reason is met again by the survey, and by whoever starts a later attempt.
            if let Err(Fault::NotNow(_)) = found.remove(shared, "nobody holds it").await {
                left.insert(lease);
            }
        }
    }
    left
}

/// What goes on of attempts of this device and can be taken over, and what is to be removed because it cannot.
pub(super) async fn left(shared: &Shared) -> (BTreeMap<Lease, Outliving>, Forgotten) {
    let mut said = false;
    let all = loop {
        match of_volume(shared).await {
            Ok(all) => break all,
            Err(fault) if fault.is_absence() => {
                tracing::debug!(%fault, "no look at what an earlier life left in containers");
                break Vec::new();
            }
            // Who asks has a limit.
            Err(fault) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(%fault, "what an earlier life left in containers is not known yet");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    };
    let own = all.into_iter().filter(|found| found.is_of_device(shared));
    let (forgotten, known): (Vec<Found>, Vec<Found>) = own.partition(|found| found.is_forgotten(shared));
    let goes_on = known.into_iter().filter(|found| !found.is_kept() && !found.labels.contains_key(SWARM_SERVICE));
    let goes_on = goes_on.filter_map(|found| {
        let engine = match found.home {
            Home::Container(_) => Engine::Local,
            Home::Service(_) => Engine::Swarm,
        };
        let definition = found.labels.get(label::DEFINITION).cloned().unwrap_or_default();
        Some((found.lease?, Outliving { executor: engine.executor(), definition }))
    });
    (goes_on.collect(), Forgotten(forgotten))
}

/// What earlier lives of this device kept, and nobody comes back to.
pub(super) struct Forgotten(Vec<Found>);

impl Forgotten {
    pub(super) async fn remove(self, shared: &Shared) {
        for found in self.0 {
            // The survey meets it again.
            let _ = found.remove(shared, "its device has begun anew").await;
        }
    }
}

async fn of_volume(shared: &Shared) -> Result<Vec<Found>, Fault> {
    let labels = [format!("{}={}", label::VOLUME, shared.settings.volume)];
    let containers = shared.engine.labelled(&labels).await?.into_iter().filter_map(|container| {
        let labels = container.labels?;
        let name = container.names.into_iter().flatten().next().unwrap_or_default();
        let is_running = container.state.is_none_or(|state| state == ContainerSummaryStateEnum::RUNNING);
        // While it runs the task of a service is its manager's to end.
        if is_running && labels.contains_key(SWARM_SERVICE) {
            return None;
        }
        Some(Found { lease: lease_of(&labels, &name), labels, home: Home::Container(container.id?), is_running })
    });
    let services = shared.engine.services_labelled(&labels).await?.into_iter().filter_map(|service| {
        let spec = service.spec?;
        let (labels, name) = (spec.labels?, spec.name?);
        Some(Found { lease: lease_of(&labels, &name), labels, home: Home::Service(name), is_running: true })
    });
    Ok(containers.chain(services).collect())
}
