//! Attempts in a swarm (`docker.engine = "swarm"`): each is a service, a job of one task, on whichever node has the job's tags.
//!
//! What there is to know of it, the swarm's manager tells: so another life of the device takes it over as it does a container. The
//! swarm says nothing by itself, so it is asked often at first and less often later.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use bollard::models::{ContainerSummaryStateEnum, TaskState};
use chrono::DateTime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::attempt::{Attempt, Ended, Look, Made, PAUSE, STOPPED_BEFORE, Vessel};
use super::create::{Inside, label, lease_of, name_of, service};
use super::engine::{self, Engine, Fault};
use super::output::{self, Of};
use super::places::HINT;
use super::start::{name_taken, prepare};
use super::{Shared, lock};
use crate::exec::log::Log;
use crate::exec::{Ending, Spec};
use crate::model::lease::Lease;
use crate::volume::logs;

/// How long the pause is between two looks at a task, at first and at most.
const LOOKS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How long a task may wait for a node before somebody is told.
const TELL_AFTER: Duration = Duration::from_secs(5);

/// The service of an attempt.
pub(super) struct Task {
    name: String,
    /// What tells its tasks from all others.
    labels: [String; 3],
    /// The tags that its node must have, for people.
    tags: String,
    clock: Instant,
    sight: Mutex<Sight>,
}

/// What was seen of it.
#[derive(Debug, Default)]
struct Sight {
    /// Its end was asked for.
    is_ending: bool,
    /// Somebody was told that it waits.
    was_told: bool,
    looks: u32,
}

/// Makes the service, or finds the one that was made for this attempt before.
pub(super) async fn make(shared: &Shared, attempt: &Attempt, spec: &Spec, inside: &Inside) -> Result<Made, Ended> {
    let name = name_of(&spec.lease);
    if inside.goes_on {
        return adopt(shared, attempt, spec, inside, name).await;
    }
    let places = prepare(shared, attempt, spec, inside).await.map_err(Ended::unstarted)?;
    let service = service(spec, inside, &shared.settings, &places, shared.log_driver())
        .map_err(|error| Ended::unstarted(format!("{error}; hint: {HINT}")))?;
    if attempt.is_stopped() {
        return Err(Ended::unstarted(STOPPED_BEFORE.to_owned()));
    }
    match shared.engine.create_service(service).await {
        Ok(()) => Ok(Made::fresh(Vessel::Swarm(Task::new(shared, &spec.lease, inside)))),
        // Whether it was made nobody knows before the engine is back.
        Err(fault) if fault.is_absence() => adopt(shared, attempt, spec, inside, name).await,
        Err(Fault::NameTaken) => adopt(shared, attempt, spec, inside, name).await,
        Err(fault) => {
            let network = &inside.container.network;
            let hint = if fault.to_string().contains("not found") {
                format!("`docker network create --driver overlay {network}` makes a network that all nodes have")
            } else {
                "`docker service ls` shows all services".to_owned()
            };
            Err(Ended::unstarted(format!("the swarm did not take the service: {fault}; hint: {hint}")))
        }
    }
}

/// Takes over the service that has this attempt's name, if it is this attempt's.
async fn adopt(shared: &Shared, attempt: &Attempt, spec: &Spec, inside: &Inside, name: String) -> Result<Made, Ended> {
    let mut said = false;
    let seen = loop {
        match shared.engine.inspect_service(&name).await {
            Ok(seen) => break seen,
            Err(Fault::NoContainer) => {
                return Err(Ended::unknown("its service is not there: it was removed, or never made".to_owned()));
            }
            // Neither an engine that is away nor a swarm without a leader says that it has ended.
            Err(fault) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(run = %attempt.lease.run, %fault, "its service is to be taken over once the swarm answers");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    };
    let spec_of = seen.spec.unwrap_or_default();
    let labels = spec_of.labels.unwrap_or_default();
    let is_own = labels.get(label::VOLUME) == Some(&shared.settings.volume)
        && lease_of(&labels, &name).as_ref() == Some(&attempt.lease);
    if !is_own {
        return Err(Ended::unstarted(name_taken(&name)));
    }
    let ran_for = seen.created_at.as_deref().and_then(since).unwrap_or_default();
    let copied = spec.log.as_ref().map_or(0, logs::Log::size);
    tracing::info!(run = %spec.lease.run, attempt = spec.lease.attempt, service = name, "its service goes on and is taken over");
    let mut task = Task::new(shared, &spec.lease, inside);
    task.clock = task.clock.checked_sub(ran_for).unwrap_or(task.clock);
    Ok(Made { vessel: Vessel::Swarm(task), copied, ran_for, is_adopted: true })
}

/// How long ago that was.
fn since(at: &str) -> Option<Duration> {
    (chrono::Utc::now() - DateTime::parse_from_rfc3339(at).ok()?.to_utc()).to_std().ok()
}

impl Task {
    fn new(shared: &Shared, lease: &Lease, inside: &Inside) -> Self {
        let labels = labels_of(shared, lease);
        let tags = inside.container.node_tags.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Self { name: name_of(lease), labels, tags, clock: Instant::now(), sight: Mutex::default() }
    }

    pub(super) fn copy(&self, engine: &Engine, log: Log, copied: u64, over: watch::Receiver<bool>) -> JoinHandle<bool> {
        tokio::spawn(output::copy(engine.clone(), Of::Service(self.name.clone()), log, copied, over))
    }

    /// Pauses between two looks.
    pub(super) async fn pause(&self) {
        let looks = {
            let mut sight = lock(&self.sight);
            sight.looks = sight.looks.saturating_add(1);
            sight.looks
        };
        // Ten quick ones: most that ends soon ends by then.
        let pause = LOOKS.0 * 2_u32.saturating_pow((looks / 10).min(5));
        tokio::time::sleep(pause.min(LOOKS.1)).await;
    }

    pub(super) async fn look(&self, engine: &Engine) -> Result<Look, Fault> {
        let tasks = match engine.tasks(&self.labels).await {
            Err(Fault::NoContainer) => {
                return Ok(Look::Ended(Ended::unknown("this engine has left its swarm while it ran".to_owned())));
            }
            tasks => tasks?,
        };
        let is_ending = lock(&self.sight).is_ending;
        let Some(task) = tasks.into_iter().next() else {
            if is_ending {
                return Ok(Look::Ended(Ended::unknown(
                    "it was stopped; a swarm does not say how it ended then".to_owned(),
                )));
            }
            // The swarm has not come to it yet, unless the service is gone.
            return match engine.inspect_service(&self.name).await {
                Ok(_) => Ok(Look::Runs),
                Err(Fault::NoContainer) => {
                    let error = "its service was removed by somebody else while it ran".to_owned();
                    Ok(Look::Ended(Ended::unknown(error)))
                }
                Err(fault) => Err(fault),
            };
        };
        match judge(&task, self.clock.elapsed()) {
            Some(mut ended) => {
                // A swarm does not say it; the node's engine does, if that is this one.
                if let (Some(container), false) = (&task.container, ended.ending == Ending::Code(0)) {
                    let state = engine.inspect(container).await.ok().and_then(|seen| seen.state);
                    ended.oom_killed |= state.is_some_and(|state| state.oom_killed == Some(true));
                }
                Ok(Look::Ended(ended))
            }
            None => {
                self.tell_what_it_waits_for(&task);
                Ok(Look::Runs)
            }
        }
    }

    fn tell_what_it_waits_for(&self, task: &engine::Task) {
        let mut sight = lock(&self.sight);
        if let Some(error) = &task.error
            && self.clock.elapsed() > TELL_AFTER
            && !std::mem::replace(&mut sight.was_told, true)
        {
            tracing::warn!(
                service = self.name,
                tags = self.tags,
                error,
                "this task of a swarm waits; hint: for each of its job's tags a node needs a label, `docker node update --label-add aios.<tag>=true NODE`"
            );
        }
    }

    /// Has the swarm end it, with the grace that it was made with: it knows no signals.
    pub(super) async fn signal(&self, engine: &Engine) -> Result<bool, Fault> {
        // What has ended has its end on record, which would go with it.
        let tasks = match engine.tasks(&self.labels).await {
            Err(Fault::NoContainer) => return Ok(false),
            tasks => tasks?,
        };
        if tasks.first().is_some_and(|task| judge(task, Duration::ZERO).is_some()) {
            return Ok(false);
        }
        match engine.end_tasks(&self.name).await {
            Ok(()) => {
                let mut sight = lock(&self.sight);
                (sight.is_ending, sight.looks) = (true, 0);
                Ok(true)
            }
            Err(Fault::NoContainer) => Ok(false),
            Err(fault) => Err(fault),
        }
    }
}

fn labels_of(shared: &Shared, lease: &Lease) -> [String; 3] {
    let Lease { run, attempt } = lease;
    [
        format!("{}={}", label::VOLUME, shared.settings.volume),
        format!("{}={run}", label::RUN),
        format!("{}={attempt}", label::ATTEMPT),
    ]
}

/// Has whatever of an attempt's service goes on ended, and removes it once that has.
///
/// # Errors
/// [`Fault::NotNow`] while it has not.
pub(super) async fn remove(shared: &Shared, lease: &Lease) -> Result<(), Fault> {
    let (engine, name, labels) = (&shared.engine, name_of(lease), labels_of(shared, lease));
    match engine.end_tasks(&name).await {
        Err(Fault::NoContainer) => return Ok(()),
        ended => ended?,
    }
    // Engine 20.10 keeps what has ended of a job in its records for ever, also without the service.
    if engine.tasks(&labels).await?.iter().any(|task| judge(task, Duration::ZERO).is_none()) {
        return Err(Fault::NotNow("its task in the swarm has not ended yet".to_owned()));
    }
    engine.remove_service(&name).await?;
    // And the container on its node: the one on this node goes now, one on another when a device there tidies up.
    for container in engine.labelled(&labels).await? {
        if let (Some(id), Some(ContainerSummaryStateEnum::EXITED)) = (container.id, container.state) {
            engine.remove(&id).await?;
        }
    }
    Ok(())
}

/// How a task ended; `None`: it has not.
fn judge(task: &engine::Task, lived: Duration) -> Option<Ended> {
    let error = || task.error.clone().unwrap_or_else(|| "the swarm does not say why".to_owned());
    let code = task.exit_code.and_then(|code| i32::try_from(code).ok());
    let duration = Some(lived);
    let ended = |ending, oom_killed| Ended { oom_killed, duration, ..Ended::of(ending) };
    match (task.state?, code) {
        (TaskState::COMPLETE, Some(code)) => Some(ended(Ending::Code(code), false)),
        (TaskState::FAILED, Some(code)) if task.container.is_some() && says_code(task) => {
            Some(ended(Ending::Code(code), says_memory(task)))
        }
        (TaskState::REJECTED, _) => Some(Ended::unstarted(could_not_start(&error()))),
        (TaskState::FAILED, Some(_)) => Some(Ended::unstarted(could_not_start(&error()))),
        (TaskState::COMPLETE | TaskState::FAILED, _) => {
            Some(Ended::unknown(format!("the swarm says of its task: {}", error())))
        }
        (TaskState::SHUTDOWN | TaskState::ORPHANED | TaskState::REMOVE, _) => {
            Some(Ended::unknown(format!("its task was ended by the swarm or somebody else: {}", error())))
        }
        (
            TaskState::NEW
            | TaskState::ALLOCATED
            | TaskState::PENDING
            | TaskState::ASSIGNED
            | TaskState::ACCEPTED
            | TaskState::PREPARING
            | TaskState::READY
            | TaskState::STARTING
            | TaskState::RUNNING,
            _,
        ) => None,
    }
}

fn could_not_start(error: &str) -> String {
    let hint = if error.contains("No such image") {
        "; hint: each node needs the image, or the registry that its name says"
    } else {
        ""
    };
    format!("the swarm could not start it: {error}{hint}")
}

/// Whether a task failed by its program's exit code, and not before that.
fn says_code(task: &engine::Task) -> bool {
    task.error.as_ref().is_none_or(|error| error.contains("non-zero exit"))
}

fn says_memory(task: &engine::Task) -> bool {
    task.error.as_ref().is_some_and(|error| error.contains("OOM"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_ends_as_the_swarm_says_and_never_well_by_default() {
        let task = |state, exit_code, error: &str| {
            let error = (!error.is_empty()).then(|| error.to_owned());
            judge(&engine::Task { state, exit_code, container: Some("c".to_owned()), error }, Duration::ZERO)
        };
        let ending = |state, code, error| task(Some(state), code, error).map(|ended| ended.ending);
        for state in [TaskState::NEW, TaskState::PENDING, TaskState::STARTING, TaskState::RUNNING] {
            assert_eq!(ending(state, Some(0), ""), None);
        }
        assert_eq!(ending(TaskState::COMPLETE, Some(0), ""), Some(Ending::Code(0)));
        assert_eq!(ending(TaskState::FAILED, Some(3), "task: non-zero exit (3)"), Some(Ending::Code(3)));
        let is_unknown = |ending: Option<Ending>| matches!(ending, Some(Ending::Unknown { .. }));
        assert!(is_unknown(ending(TaskState::COMPLETE, None, "")));
        assert!(is_unknown(ending(TaskState::FAILED, None, "")));
        for (state, error) in
            [(TaskState::FAILED, "starting container failed: x"), (TaskState::REJECTED, "No such image: x")]
        {
            let ending = ending(state, Some(0), error);
            assert!(matches!(&ending, Some(Ending::NotStarted { error: told }) if told.contains(error)), "{ending:?}");
        }
        for state in [TaskState::SHUTDOWN, TaskState::ORPHANED, TaskState::REMOVE] {
            assert!(is_unknown(ending(state, Some(0), "")));
        }
        assert!(task(None, Some(0), "").is_none());
    }
}
