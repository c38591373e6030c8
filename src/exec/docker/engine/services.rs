//! Services of the swarm that an engine manages.

use std::collections::HashMap;

use bollard::models::{Service, ServiceSpec, ServiceSpecModeReplicatedJob, TaskState};
use bollard::query_parameters::{
    ListServicesOptionsBuilder, ListTasksOptionsBuilder, LogsOptionsBuilder, UpdateServiceOptionsBuilder,
};
use futures_util::{Stream, StreamExt};

use super::{ANSWER, Engine, Fault};

/// No node has such an id: a service that asks for it has no tasks any more.
const NOWHERE: &str = "node.id==none";

/// One task of a service, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// What the swarm says of it.
    pub state: Option<TaskState>,
    /// The exit code of its container.
    pub exit_code: Option<i64>,
    /// Its container, once that was made.
    pub container: Option<String>,
    /// What went wrong, or what it waits for.
    pub error: Option<String>,
}

impl Engine {
    /// Whether this engine manages a swarm.
    pub(super) async fn is_manager(&self) -> bool {
        // Any other answer says that it does not.
        match self.client(ANSWER) {
            Ok(client) => client.inspect_swarm().await.is_ok(),
            Err(_) => false,
        }
    }

    /// Makes a service.
    pub async fn create_service(&self, service: ServiceSpec) -> Result<(), Fault> {
        let made = self.client(ANSWER)?.create_service(service, None).await;
        made.map(|_| ()).map_err(|error| self.fault(&error))
    }

    /// What it knows of a service.
    pub async fn inspect_service(&self, name: &str) -> Result<Service, Fault> {
        let none = None::<bollard::query_parameters::InspectServiceOptions>;
        self.client(ANSWER)?.inspect_service(name, none).await.map_err(|error| self.fault(&error))
    }

    /// The services with all of these labels: none where the engine manages no swarm, or nobody may ask it for services. A manager
    /// without a leader does not know: that is a fault.
    pub async fn services_labelled(&self, labels: &[String]) -> Result<Vec<Service>, Fault> {
        let filters = HashMap::from([("label".to_owned(), labels.to_vec())]);
        let options = ListServicesOptionsBuilder::default().filters(&filters).build();
        match self.client(ANSWER)?.list_services(Some(options)).await {
            Err(bollard::errors::Error::DockerResponseServerError { status_code, message })
                if matches!(status_code, 403 | 404 | 405 | 501) || message.contains("not a swarm manager") =>
            {
                Ok(Vec::new())
            }
            listed => listed.map_err(|error| self.fault(&error)),
        }
    }

    /// The tasks of services with all of these labels, also of one that was removed.
    pub async fn tasks(&self, labels: &[String]) -> Result<Vec<Task>, Fault> {
        let filters = HashMap::from([("label".to_owned(), labels.to_vec())]);
        let options = ListTasksOptionsBuilder::default().filters(&filters).build();
        let tasks = self.client(ANSWER)?.list_tasks(Some(options)).await.map_err(|error| self.fault(&error))?;
        let task = |task: bollard::models::Task| {
            let status = task.status.unwrap_or_default();
            let container = status.container_status;
            Task {
                state: status.state,
                exit_code: container.as_ref().and_then(|container| container.exit_code),
                container: container.and_then(|it| it.container_id).filter(|id| !id.is_empty()),
                error: status.err.filter(|error| !error.is_empty()),
            }
        };
        Ok(tasks.into_iter().map(task).collect())
    }

    /// Has the tasks of a service ended and removed, with the grace that it was made with. Engine 20.10 lets the task of a job go on
    /// when its service is removed, and ends that of an earlier round: so a new round begins, of no tasks on no node.
    pub async fn end_tasks(&self, name: &str) -> Result<(), Fault> {
        let seen = self.inspect_service(name).await?;
        let version = seen.version.and_then(|version| version.index).unwrap_or_default();
        let mut spec = seen.spec.unwrap_or_default();
        if let Some(job) = spec.mode.as_mut().and_then(|mode| mode.replicated_job.as_mut()) {
            *job = ServiceSpecModeReplicatedJob { max_concurrent: Some(0), total_completions: Some(0) };
        }
        let task = spec.task_template.get_or_insert_default();
        let placement = task.placement.get_or_insert_default();
        if placement.constraints.as_ref().is_some_and(|all| all.iter().any(|one| one == NOWHERE)) {
            return Ok(());
        }
        placement.constraints = Some(vec![NOWHERE.to_owned()]);
        task.force_update = Some(task.force_update.unwrap_or(0) + 1);
        let version = i32::try_from(version).unwrap_or(i32::MAX);
        let options = UpdateServiceOptionsBuilder::default().version(version).build();
        let updated = self.client(ANSWER)?.update_service(name, spec, options, None).await;
        updated.map(|_| ()).map_err(|error| self.fault(&error))
    }

    /// Removes a service; one that is gone is fine.
    pub async fn remove_service(&self, name: &str) -> Result<(), Fault> {
        match self.client(ANSWER)?.delete_service(name).await.map_err(|error| self.fault(&error)) {
            Err(Fault::NoContainer) => Ok(()),
            other => other,
        }
    }

    /// What the tasks of a service have printed, from the beginning on; with `follow` also what they will print.
    pub fn service_output(
        &self,
        service: &str,
        follow: bool,
    ) -> Result<impl Stream<Item = Result<bytes::Bytes, Fault>> + use<'_>, Fault> {
        let options = LogsOptionsBuilder::default().follow(follow).stdout(true).stderr(true).tail("all").build();
        let pieces = self.client(ANSWER)?.service_logs(service, Some(options));
        Ok(pieces.map(|piece| piece.map(bollard::container::LogOutput::into_bytes).map_err(|error| self.fault(&error))))
    }
}
