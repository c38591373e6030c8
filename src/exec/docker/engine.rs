//! The engine, as far as this room speaks with it: a few requests, each with a time limit, and what can go wrong named.

use std::collections::HashMap;
use std::error::Error as _;
use std::io::ErrorKind;
use std::time::Duration;

use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use bollard::models::{ContainerCreateBody, ContainerInspectResponse, ContainerSummary};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, CreateImageOptionsBuilder, DownloadFromContainerOptionsBuilder,
    KillContainerOptionsBuilder, ListContainersOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
    RenameContainerOptionsBuilder, StatsOptionsBuilder,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::{Stream, StreamExt};

use super::create::{EXACT_LOG_DRIVER, LOG_DRIVER};
use crate::exec::procfs::Used;

mod services;

pub(super) use services::Task;

/// Where an engine listens unless `DOCKER_HOST` says otherwise.
pub const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";
/// How long the engine may take to begin an answer.
const ANSWER: u64 = 20;
/// How long it may take to begin to fetch an image.
const PULL_ANSWER: u64 = 60;
/// How long fetching an image may stand still.
const PULL_STALLED: Duration = Duration::from_secs(120);
/// How long it may take in all.
const PULL_MOST: Duration = Duration::from_secs(3_600);
/// How often, and how long after one another, something is asked whose answer cannot be read.
const READ_AGAIN: u32 = 100;
const READ_PAUSE: Duration = Duration::from_millis(100);
/// The largest file that is read out of a container, bytes.
const FILE_LIMIT: usize = 64 << 10;

/// What went wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The engine does not answer.
    #[error("no container engine answers at {host}: {why}")]
    Gone {
        /// Where it was looked for.
        host: String,
        /// What the system said.
        why: String,
    },
    /// It is there, and this user may not speak with it.
    #[error("this user may not speak with the container engine at {0}")]
    NoRights(String),
    /// It does not have the image.
    #[error("the engine has no image {0}")]
    NoImage(String),
    /// Another container has the name.
    #[error("the name is taken")]
    NameTaken,
    /// There is no such container.
    #[error("there is no such container")]
    NoContainer,
    /// It is not in a state for that.
    #[error("{0}")]
    NotNow(String),
    /// Whatever else it refused.
    #[error("{0}")]
    Refused(String),
    /// What it answered cannot be read.
    #[error("its answer cannot be read: {0}")]
    Unreadable(String),
}

impl Fault {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Gone { .. } => "is the engine running? `docker version`; DOCKER_HOST names another one",
            Self::NoRights(_) => {
                "give the device the group of the socket: DOCKER_GID for compose, `usermod -aG docker USER`"
            }
            Self::NoImage(_) => "`docker pull` or build it on this machine, or leave `pull` at `missing`",
            Self::NameTaken | Self::NoContainer | Self::NotNow(_) | Self::Refused(_) | Self::Unreadable(_) => {
                "`docker ps -a` shows all containers"
            }
        }
    }

    /// Whether the engine itself is not to be had: another try may find it.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::Gone { .. } | Self::NoRights(_))
    }
}

/// One engine. Every request makes its own connection, so that one that was restarted is found again.
#[derive(Debug, Clone)]
pub struct Engine {
    host: String,
}

impl Engine {
    /// The engine at `unix://PATH`, `tcp://HOST:PORT` or `http://HOST:PORT`. Nothing is asked of it yet.
    #[must_use]
    pub fn new(host: &str) -> Self {
        Self { host: host.to_owned() }
    }

    /// The path of its socket, if it listens at one.
    #[must_use]
    pub fn socket(&self) -> Option<&str> {
        self.host.strip_prefix("unix://")
    }

    fn client(&self, timeout: u64) -> Result<Docker, Fault> {
        let made = match self.socket() {
            Some(path) => Docker::connect_with_unix(path, timeout, API_DEFAULT_VERSION),
            None => Docker::connect_with_http(&self.host, timeout, API_DEFAULT_VERSION),
        };
        made.map_err(|error| self.fault(&error))
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the library's own list grows, and says nothing finer than these"
    )]
    fn fault(&self, error: &bollard::errors::Error) -> Fault {
        use bollard::errors::Error;
        match error {
            Error::DockerResponseServerError { status_code, message } => answered(*status_code, message),
            Error::DockerStreamError { error } => answered(500, error),
            Error::SocketNotFoundError(_) => self.gone("there is no socket"),
            Error::RequestTimeoutError => self.gone("it took too long to answer"),
            other => {
                if let Some(kind) = io_kind(other) {
                    if kind == ErrorKind::PermissionDenied {
                        return Fault::NoRights(self.host.clone());
                    }
                    return self.gone(&kind.to_string());
                }
                let is_answer = matches!(other, Error::JsonDataError { .. } | Error::JsonSerdeError { .. });
                if is_answer { Fault::Unreadable(other.to_string()) } else { self.gone(&other.to_string()) }
            }
        }
    }

    fn gone(&self, why: &str) -> Fault {
        Fault::Gone { host: self.host.clone(), why: why.to_owned() }
    }

    /// Whether it answers.
    pub async fn look(&self) -> Result<Seen, Fault> {
        let client = self.client(ANSWER)?;
        let version = client.version().await.map_err(|error| self.fault(&error))?;
        // A proxy may keep it to itself.
        let log_drivers = client.info().await.ok().and_then(|info| info.plugins?.log).unwrap_or_default();
        let is_exact = log_drivers.iter().any(|driver| driver == EXACT_LOG_DRIVER);
        let log_driver = if is_exact { EXACT_LOG_DRIVER } else { LOG_DRIVER };
        Ok(Seen { version: version.version.unwrap_or_default(), is_manager: self.is_manager().await, log_driver })
    }

    /// Makes a container.
    pub async fn create(&self, name: &str, body: ContainerCreateBody) -> Result<String, Fault> {
        let options = CreateContainerOptionsBuilder::default().name(name).build();
        let made = self.client(ANSWER)?.create_container(Some(options), body).await;
        made.map(|made| made.id).map_err(|error| self.fault(&error))
    }

    /// Starts a container that was made.
    pub async fn start(&self, container: &str) -> Result<(), Fault> {
        let started = self
            .client(PULL_ANSWER)?
            .start_container(container, None::<bollard::query_parameters::StartContainerOptions>)
            .await;
        started.map_err(|error| self.fault(&error))
    }

    /// What it knows of a container.
    pub async fn inspect(&self, container: &str) -> Result<ContainerInspectResponse, Fault> {
        until_readable(|| async {
            let options = None::<bollard::query_parameters::InspectContainerOptions>;
            let seen = self.client(ANSWER)?.inspect_container(container, options).await;
            seen.map_err(|error| self.fault(&error))
        })
        .await
    }

    /// Returns when a container has ended; that it ended with an error is no fault.
    pub async fn wait(&self, container: &str) -> Result<(), Fault> {
        let client = self.client(ANSWER)?;
        let mut ends =
            std::pin::pin!(client.wait_container(container, None::<bollard::query_parameters::WaitContainerOptions>));
        match ends.next().await {
            Some(Ok(_) | Err(bollard::errors::Error::DockerContainerWaitError { .. })) => Ok(()),
            Some(Err(error)) => Err(self.fault(&error)),
            // The connection ended before the container did.
            None => Err(self.gone("the connection was cut")),
        }
    }

    /// What a container has printed, from its beginning on; with `follow` also what it will print, until it ends.
    pub fn output(
        &self,
        container: &str,
        follow: bool,
    ) -> Result<impl Stream<Item = Result<bytes::Bytes, Fault>> + use<'_>, Fault> {
        let options = LogsOptionsBuilder::default().follow(follow).stdout(true).stderr(true).tail("all").build();
        let pieces = self.client(ANSWER)?.logs(container, Some(options));
        Ok(pieces.map(|piece| piece.map(bollard::container::LogOutput::into_bytes).map_err(|error| self.fault(&error))))
    }

    /// Gives a container another name.
    pub async fn rename(&self, container: &str, name: &str) -> Result<(), Fault> {
        let options = RenameContainerOptionsBuilder::default().name(name).build();
        self.client(ANSWER)?.rename_container(container, options).await.map_err(|error| self.fault(&error))
    }

    /// The id of an image as it is now.
    pub async fn image_id(&self, image: &str) -> Result<String, Fault> {
        let seen = self.client(ANSWER)?.inspect_image(image).await.map_err(|error| self.fault(&error))?;
        Ok(seen.id.unwrap_or_default())
    }

    /// Starts a process in a container that runs, and returns its id and what it prints.
    pub async fn exec(
        &self,
        container: &str,
        process: CreateExecOptions<String>,
    ) -> Result<(String, impl Stream<Item = Result<bytes::Bytes, Fault>> + Send + use<>), Fault> {
        let client = self.client(ANSWER)?;
        let made = client.create_exec(container, process).await.map_err(|error| self.fault(&error))?;
        let started = client.start_exec(&made.id, None::<StartExecOptions>).await;
        let StartExecResults::Attached { output, .. } = started.map_err(|error| self.fault(&error))? else {
            return Err(self.gone("it let go of a process that it was to attach"));
        };
        let engine = self.clone();
        let pieces = output.map(move |piece| {
            piece.map(bollard::container::LogOutput::into_bytes).map_err(|error| engine.fault(&error))
        });
        Ok((made.id, pieces))
    }

    /// How a process that [`Self::exec`] started has ended; `None`: it runs.
    pub async fn exec_end(&self, process: &str) -> Result<Option<Option<i64>>, Fault> {
        let seen = self.client(ANSWER)?.inspect_exec(process).await.map_err(|error| self.fault(&error))?;
        Ok((seen.running != Some(true)).then_some(seen.exit_code))
    }

    /// What a running container has in use; its threads count as processes. `None`: the engine does not say.
    pub(in crate::exec) async fn used(&self, container: &str) -> Result<Option<Used>, Fault> {
        let options = StatsOptionsBuilder::default().stream(false).one_shot(true).build();
        let client = self.client(ANSWER)?;
        let mut told = std::pin::pin!(client.stats(container, Some(options)));
        let Some(told) = told.next().await.transpose().map_err(|error| self.fault(&error))? else { return Ok(None) };
        let memory = told.memory_stats.unwrap_or_default();
        // Pages of files that can be dropped at any time are no need of the program: `docker stats` leaves them out too.
        let idle =
            memory.stats.as_ref().and_then(|it| it.get("inactive_file").or_else(|| it.get("total_inactive_file")));
        let bytes = memory.usage.map(|bytes| bytes.saturating_sub(idle.copied().unwrap_or_default()));
        let nanoseconds = told.cpu_stats.and_then(|it| it.cpu_usage).and_then(|it| it.total_usage);
        let processes = told.pids_stats.and_then(|it| it.current).and_then(|count| u32::try_from(count).ok());
        let all = processes.zip(bytes).zip(nanoseconds);
        Ok(all.map(|((processes, memory_bytes), nanoseconds)| {
            let cpu_ms = nanoseconds / 1_000_000;
            Used { processes, memory_bytes, cpu_ms }
        }))
    }

    /// Sends a signal to the main process of a container; `false`: it has ended already.
    pub async fn signal(&self, container: &str, signal: &str) -> Result<bool, Fault> {
        let options = KillContainerOptionsBuilder::default().signal(signal).build();
        let sent = self.client(ANSWER)?.kill_container(container, Some(options)).await;
        match sent.map_err(|error| self.fault(&error)) {
            Ok(()) => Ok(true),
            Err(Fault::NotNow(_) | Fault::NoContainer) => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    /// Removes a container, running or not, and what only it used. One that is gone is fine.
    pub async fn remove(&self, container: &str) -> Result<(), Fault> {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        let removed = self.client(PULL_ANSWER)?.remove_container(container, Some(options)).await;
        match removed.map_err(|error| self.fault(&error)) {
            // Somebody else removes it at this moment.
            Err(Fault::NotNow(_) | Fault::NoContainer) => Ok(()),
            other => other,
        }
    }

    /// The containers with all of these labels, running or not.
    pub async fn labelled(&self, labels: &[String]) -> Result<Vec<ContainerSummary>, Fault> {
        let filters = HashMap::from([("label".to_owned(), labels.to_vec())]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        until_readable(|| async {
            let seen = self.client(ANSWER)?.list_containers(Some(options.clone())).await;
            seen.map_err(|error| self.fault(&error))
        })
        .await
    }

    /// Fetches an image; `tell` hears what it says, a line each.
    pub async fn pull(&self, image: &str, mut tell: impl FnMut(&str)) -> Result<(), Fault> {
        let (name, tag) = split_image(image);
        let options = CreateImageOptionsBuilder::default().from_image(name).tag(tag).build();
        let client = self.client(PULL_ANSWER)?;
        let mut steps = std::pin::pin!(client.create_image(Some(options), None, None));
        let fetch = async {
            loop {
                let step = tokio::time::timeout(PULL_STALLED, steps.next()).await;
                match step {
                    Err(_) => {
                        let span = PULL_STALLED.as_secs();
                        return Err(Fault::Refused(format!("fetching {image} has stood still for {span} s")));
                    }
                    Ok(None) => return Ok(()),
                    Ok(Some(Err(error))) => return Err(self.fault(&error)),
                    Ok(Some(Ok(step))) => {
                        if let Some(error) = step.error_detail.and_then(|detail| detail.message) {
                            return Err(Fault::Refused(error));
                        }
                        // With progress it is one of hundreds.
                        if let (Some(status), None) = (step.status, step.progress_detail.and_then(|it| it.current)) {
                            tell(&match step.id {
                                Some(id) => format!("{id}: {status}"),
                                None => status,
                            });
                        }
                    }
                }
            }
        };
        tokio::time::timeout(PULL_MOST, fetch).await.unwrap_or_else(|_| {
            Err(Fault::Refused(format!("fetching {image} took longer than {} s", PULL_MOST.as_secs())))
        })
    }

    /// Reads one small file as a container sees it.
    pub async fn read_file(&self, container: &str, path: &str) -> Result<Vec<u8>, Fault> {
        let options = DownloadFromContainerOptionsBuilder::default().path(path).build();
        let client = self.client(ANSWER)?;
        let mut pieces = std::pin::pin!(client.download_from_container(container, Some(options)));
        let mut archive = Vec::new();
        while let Some(piece) = pieces.next().await {
            archive.extend_from_slice(&piece.map_err(|error| self.fault(&error))?);
            if archive.len() > FILE_LIMIT {
                break;
            }
        }
        Ok(first_of_archive(&archive).to_vec())
    }
}

/// What an engine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its version.
    pub version: String,
    /// Whether it manages a swarm.
    pub is_manager: bool,
    /// Its log driver from which what a container prints is read back.
    pub log_driver: &'static str,
}

/// Asks until the answer can be read: Podman's containers pass through states that Docker has no word for, such as `stopped` between
/// their end and the record of it.
async fn until_readable<T, F: Future<Output = Result<T, Fault>>>(ask: impl Fn() -> F) -> Result<T, Fault> {
    for _ in 0..READ_AGAIN {
        match ask().await {
            Err(Fault::Unreadable(_)) => tokio::time::sleep(READ_PAUSE).await,
            answered => return answered,
        }
    }
    ask().await
}

/// What an answer that is no success means.
fn answered(code: u16, message: &str) -> Fault {
    let text = message.trim().to_owned();
    let lower = text.to_lowercase();
    let says = |words: &str| lower.contains(words);
    match code {
        404 if says("no such image") || says("image not known") || says("manifest") => {
            let image = text.rsplit(": ").next().unwrap_or_default().to_owned();
            Fault::NoImage(image)
        }
        404 if says("no such container") || says("no container with") || says("no such exec") => Fault::NoContainer,
        404 if lower.starts_with("service ") || lower.starts_with("task ") => Fault::NoContainer,
        409 if says("already in use") => Fault::NameTaken,
        // It has left its swarm: with that its services are gone. A manager that was made a worker is told otherwise.
        503 if says("not a swarm manager") && says("swarm init") => Fault::NoContainer,
        304 | 409 => Fault::NotNow(text),
        // Somebody else has changed the service: the next try reads it anew.
        _ if says("update out of sequence") => Fault::NotNow(text),
        _ => Fault::Refused(text),
    }
}

/// The kind of the system's own error at the bottom of another.
fn io_kind(error: &bollard::errors::Error) -> Option<ErrorKind> {
    if let bollard::errors::Error::IOError { err } = error {
        return Some(err.kind());
    }
    let mut cause = error.source();
    while let Some(one) = cause {
        if let Some(io) = one.downcast_ref::<std::io::Error>() {
            return Some(io.kind());
        }
        cause = one.source();
    }
    None
}

/// An image's name and its tag or digest.
fn split_image(image: &str) -> (&str, &str) {
    if let Some((_, digest)) = image.split_once('@') {
        // The engine takes the whole with an empty tag.
        return (image, if digest.is_empty() { "latest" } else { "" });
    }
    match image.rsplit_once(':') {
        // A colon before a slash belongs to a registry's port.
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        Some(_) | None => (image, "latest"),
    }
}

/// The content of the first file in a tar archive: its size stands in the header, in octal.
fn first_of_archive(archive: &[u8]) -> &[u8] {
    const HEADER: usize = 512;
    let size = archive.get(124..136).and_then(|digits| std::str::from_utf8(digits).ok());
    let size = size.and_then(|digits| usize::from_str_radix(digits.trim_matches(['\0', ' ']), 8).ok());
    size.and_then(|size| archive.get(HEADER..HEADER.saturating_add(size))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        for (code, message, fault) in [
            (404, "No such image: nope:latest", Fault::NoImage("nope:latest".to_owned())),
            (404, "No such container: x", Fault::NoContainer),
            (409, "Conflict. The container name \"/x\" is already in use by container \"y\".", Fault::NameTaken),
            (409, "Container x is not running", Fault::NotNow("Container x is not running".to_owned())),
            (
                503,
                "This node is not a swarm manager. Use \"docker swarm init\" to connect this node to swarm and try again.",
                Fault::NoContainer,
            ),
            (500, "no space left on device\n", Fault::Refused("no space left on device".to_owned())),
        ] {
            assert_eq!(answered(code, message), fault, "{message}");
        }
    }

    /// An engine that says this of every container, one after the other.
    fn engine_that_says(answers: Vec<&'static str>) -> Engine {
        use std::io::{BufRead as _, BufReader, Write as _};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let host = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for (body, stream) in answers.into_iter().zip(listener.incoming()) {
                let mut stream = stream.unwrap();
                let head = BufReader::new(&stream).lines().map_while(Result::ok);
                head.take_while(|line| !line.is_empty()).for_each(drop);
                let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json";
                write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
            }
        });
        Engine::new(&host)
    }

    #[tokio::test]
    async fn a_state_that_docker_does_not_know_passes() {
        let (passing, over) =
            (r#"{"State": {"Status": "stopped"}}"#, r#"{"State": {"Status": "exited", "ExitCode": 9}}"#);
        let seen = engine_that_says(vec![passing, passing, over]).inspect("x").await.unwrap();
        assert_eq!(seen.state.unwrap().exit_code, Some(9));
        let (passing, over) = (r#"[{"State": "improper"}]"#, r#"[{"State": "exited"}]"#);
        let seen = engine_that_says(vec![passing, over]).labelled(&[]).await.unwrap();
        assert_eq!(seen.len(), 1);
    }

    #[test]
    fn images_are_split_where_their_tag_begins() {
        for (image, expected) in [
            ("debian", ("debian", "latest")),
            ("debian:bookworm", ("debian", "bookworm")),
            ("host:5000/a/b", ("host:5000/a/b", "latest")),
            ("host:5000/a/b:1", ("host:5000/a/b", "1")),
            ("a@sha256:00", ("a@sha256:00", "")),
        ] {
            assert_eq!(split_image(image), expected, "{image}");
        }
    }

    #[test]
    fn a_file_is_found_in_its_archive() {
        let mut archive = vec![0; 512];
        archive[124..135].copy_from_slice(b"00000000005");
        archive.extend_from_slice(b"hello\0\0\0");
        assert_eq!(first_of_archive(&archive), b"hello");
        for broken in [&[][..], &[0; 100], &[b'9'; 600], &archive[..514]] {
            assert_eq!(first_of_archive(broken), b"");
        }
    }
}
