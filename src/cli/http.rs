//! The HTTP API of a device that `run` starts: where it listens, and whether it may.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};

use tokio::sync::watch;

use super::ready::Served;
use super::run::RunArgs;
use super::{Code, Context, Failure};
use crate::api::{Server, Settings, TlsFiles, is_loopback};
use crate::coordinator::run::Options;

/// Where the API listens unless said.
const USUAL: &str = "127.0.0.1:8080";
/// Instead of an address: nowhere.
const NOWHERE: &str = "none";

/// An API that waits for its device.
pub(super) struct Api {
    listener: TcpListener,
    address: SocketAddr,
    settings: Settings,
    changed: watch::Sender<u64>,
}

impl Api {
    /// Takes the port. `None`: there is to be no API, or its usual port is another's.
    ///
    /// # Errors
    /// Exit code 2: the address cannot be used, or others could listen to what is said there.
    pub(super) fn new(args: &RunArgs, context: &Context, options: &Options) -> Result<Option<Self>, Failure> {
        let given = args.http.as_deref();
        if given == Some(NOWHERE) {
            return Ok(None);
        }
        let wanted = given.unwrap_or(USUAL);
        let tls = args.tls_cert.clone().zip(args.tls_key.clone()).map(|(cert, key)| TlsFiles { cert, key });
        if let Some(tls) = &tls {
            tls.check()
                .map_err(|error| Failure::new(Code::Usage, error, "--tls-cert and --tls-key take files in PEM"))?;
        }
        let places = places(wanted)?;
        if tls.is_none() && !args.insecure_http && places.iter().any(|place| !is_loopback(place)) {
            let error = format!(
                "--http {wanted} is open to other machines, and there is no TLS: keys could be read on the way"
            );
            let hint =
                "give --tls-cert and --tls-key; or --insecure-http, where nobody can listen (a network of containers)";
            return Err(Failure::new(Code::Usage, error, hint));
        }
        let listener = match TcpListener::bind(&places[..]) {
            Ok(listener) => listener,
            Err(error) if given.is_none() => {
                tracing::warn!(
                    address = wanted, %error,
                    "no HTTP API on this device: give it an address of its own with --http, or --http none"
                );
                return Ok(None);
            }
            Err(error) => {
                let error = format!("cannot listen at --http {wanted}: {error}");
                return Err(Failure::new(Code::Usage, error, "give another port, or --http none"));
            }
        };
        let address = listener.local_addr().map_err(|error| {
            Failure::new(Code::Failed, format!("cannot find out where the API listens: {error}"), "")
        })?;
        let settings = Settings {
            layout: context.client.layout.clone(),
            device: options.me.device.clone(),
            tls,
            rate: args.http_rate,
            origins: origins(&args.http_origins)?,
            insecure: args.insecure_http,
        };
        Ok(Some(Self { listener, address, settings, changed: options.changed.clone() }))
    }

    /// Serves it. What goes wrong now is no reason to leave the runs alone: it is said, and the device goes on without.
    pub(super) fn start(self) -> Option<(Server, Served)> {
        let scheme = if self.settings.tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", self.address);
        match Server::start(self.settings, self.listener, self.changed) {
            Ok(mut server) => {
                tracing::info!(%url, "HTTP API");
                let first_key = server.first_key.take();
                if let Some(key) = &first_key {
                    // At once, since it is known nowhere else; and not through the log: that one is kept in the shared folder.
                    let text =
                        format!("The first key of the HTTP API, for an admin; it is shown this once:\n  {key}\n");
                    let write = move || {
                        let _ = std::io::stderr().write_all(text.as_bytes());
                    };
                    // On a thread of its own: whoever was to read this may never do so.
                    let _ = std::thread::Builder::new().name("aios-key".to_owned()).spawn(write);
                }
                Some((server, Served { url, first_key }))
            }
            Err(failure) => {
                tracing::error!(hint = failure.hint, "no HTTP API on this device: {}", failure.error);
                None
            }
        }
    }
}

/// Origins as browsers send them.
fn origins(given: &[String]) -> Result<Vec<String>, Failure> {
    let given = given.iter().filter(|origin| !origin.is_empty());
    let read = given.map(|origin| {
        let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://")).unwrap_or_default();
        let is_origin = !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b));
        let error = || {
            Failure::new(
                Code::Usage,
                format!("--http-origins: {origin:?} is no origin"),
                "give https://HOST[:PORT], and nothing behind it",
            )
        };
        is_origin.then(|| origin.clone()).ok_or_else(error)
    });
    read.collect()
}

/// What an address stands for.
fn places(wanted: &str) -> Result<Vec<SocketAddr>, Failure> {
    let places: Vec<SocketAddr> = wanted.to_socket_addrs().map(Iterator::collect).unwrap_or_default();
    if places.is_empty() {
        let error = format!("--http {wanted:?} is no address");
        return Err(Failure::new(Code::Usage, error, "give HOST:PORT such as 127.0.0.1:8080, or none"));
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_host_and_port() {
        assert_eq!(places("127.0.0.1:80").unwrap(), [SocketAddr::from(([127, 0, 0, 1], 80))]);
        assert!(places("[::1]:80").unwrap().iter().all(is_loopback));
        assert!(places("[::ffff:127.0.0.1]:80").unwrap().iter().all(is_loopback));
        assert!(!places("0.0.0.0:80").unwrap().iter().all(is_loopback));
        for bad in ["", "80", "localhost", "127.0.0.1:http", "127.0.0.1:99999"] {
            assert_eq!(places(bad).unwrap_err().code, Code::Usage, "{bad}");
        }
    }
}
