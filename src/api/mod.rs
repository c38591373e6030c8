//! The HTTP API: control over everything, on every device alike, because it all comes from the shared folder.
//!
//! It sees what a client sees, writes triggers and requests, and decides nothing. It runs on a thread of its own, so that no caller
//! costs the device's loop a millisecond. Nothing is done without a key whose role allows it; every change is in the audit log.

#![expect(unused_qualifications, reason = "the description's macro qualifies what it is given")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;

use self::app::App;
use self::guard::Guard;
use self::site::Site;
use self::tls::Shown;
use crate::client::security::{keys, tokens};
use crate::client::{Client, Code, Failure};
use crate::model::ids::DeviceId;
use crate::volume::layout::Layout;
use crate::volume::security;

mod access;
mod app;
mod audit;
mod backups;
mod command;
mod devices;
mod docs;
mod events;
mod extract;
mod guard;
mod jobs;
mod logs;
mod metrics;
mod page;
mod problem;
mod routes;
mod runs;
mod server;
mod servers;
mod service;
mod site;
mod stream;
mod system;
mod tls;
mod triggers;

pub use tls::Files as TlsFiles;

/// So many connections may wait to be taken. Whoever finds no room tries again a second later, and the standard library's 128 are
/// soon taken by those who only connect.
const BACKLOG: i32 = 4_096;
/// So many threads wait at once: for the disk, for the answers of other servers, for word how these are, for keys.
const BLOCKING: usize = 80;
/// How long one of them lives without work.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How often what needs no request is done: certificates, limits of who was quiet, when keys were used.
const TIDY: Duration = Duration::from_secs(10);

/// How the API is served.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The folders.
    pub layout: Layout,
    /// Whose API it is.
    pub device: DeviceId,
    /// The certificate; `None`: in the clear.
    pub tls: Option<TlsFiles>,
    /// How many requests a second each caller may make; 0: as many as they like.
    pub rate: u32,
    /// From which pages of others a browser may ask.
    pub origins: Vec<String>,
    /// Whether keys may go over the network in the clear.
    pub insecure: bool,
}

/// An API that is served.
pub struct Server {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
    /// The key of the first start, to be shown this once.
    pub first_key: Option<String>,
}

impl Server {
    /// Serves the API to whoever connects to `listener`. `changed` is told to, and hears of, changes of the volume.
    ///
    /// # Errors
    /// Exit code 4: the keys cannot be read or made; 2: the certificate cannot be used.
    pub fn start(
        settings: Settings,
        listener: std::net::TcpListener,
        changed: watch::Sender<u64>,
    ) -> Result<Self, Failure> {
        let mut client = Client::new(settings.layout.clone(), settings.device.clone());
        security::prepare(&*client.disk, &client.layout)?;
        let secrets = tokens::load(&mut client)?;
        let unusable = |error: String| Failure::new(Code::Usage, error, "give --tls-cert and --tls-key, both PEM");
        let tls = settings.tls.clone().map(Shown::new).transpose().map_err(unusable)?;
        if let Some(tls) = &tls {
            tls.config().map_err(|error| unusable(error.to_string()))?;
        }
        let failed = |error: std::io::Error| {
            Failure::new(Code::Failed, format!("cannot serve the API: {error}"), "see `ulimit -a`")
        };
        listener.set_nonblocking(true).map_err(failed)?;
        rustix::net::listen(&listener, BACKLOG).map_err(|error| failed(error.into()))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING)
            .thread_keep_alive(KEEP_ALIVE)
            .thread_name("aios-api-disk")
            .build()
            .map_err(failed)?;
        // Last, so that nothing keeps it from being shown.
        let first_key = keys::create_first(&mut client)?.map(|made| made.key);
        let guard = Guard::new(&mut client, secrets, settings.rate)?;
        let (stop, stopped) = watch::channel(false);
        let (volume, life) = (client.volume_id()?, client.session.to_string());
        let app = App::new(&settings, volume, life, guard, changed, stopped.clone());
        metrics::start();
        let origins = settings.origins;
        let serve = move || {
            runtime.block_on(async {
                let listener = match tokio::net::TcpListener::from_std(listener) {
                    Ok(listener) => listener,
                    Err(error) => return tracing::error!(%error, "the API cannot be served"),
                };
                let tidier = tokio::spawn(tidy(app.clone(), tls.clone()));
                let watcher = tokio::spawn(servers::watch(app.clone()));
                server::serve(listener, Site::new(app, &origins), tls, stopped).await;
                tidier.abort();
                watcher.abort();
            });
            // What still waits for the disk is not waited for.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name("aios-api".to_owned()).spawn(serve).map_err(failed)?;
        Ok(Self { stop, thread: Some(thread), first_key })
    }

    /// Ends it: whoever is being answered has half a second.
    pub fn stop(mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the API ended in a panic");
        }
    }
}

/// Does what needs no request.
async fn tidy(app: App, tls: Option<Arc<Shown>>) {
    loop {
        tokio::time::sleep(TIDY).await;
        if let Some(tls) = tls.clone() {
            // A panic there would be a bug of the TLS library; the old certificate stays.
            let _ = tokio::task::spawn_blocking(move || tls.renew()).await;
        }
        metrics::tidy();
        if let Some(seen) = app.guard.tidy(app.now().boot) {
            let device = app.device.clone();
            if let Err(problem) = app.ask(move |client| guard::tell_seen(client, &device, seen)).await {
                tracing::warn!("{}", problem.detail());
            }
        }
    }
}

/// Whether only this machine can connect to an address.
#[must_use]
pub fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}
