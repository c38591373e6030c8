//! Connections: taken here, because the framework's own loop has no limit of time for headers.
//!
//! Each connection has a limit for its headers, and so has the number of them. When that is reached, whoever has asked for nothing
//! for longest gives way, and so does who asks and has shown no key: neither locks out anybody who has one.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustix::net::sockopt::set_tcp_user_timeout;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::guard::network;
use super::site::Site;
use super::tls::Shown;

/// How long the headers of a request, or the beginning of TLS, may take to come.
const HEADERS: Duration = Duration::from_secs(10);
/// How many connections there may be, and from one address.
const CONNECTIONS: usize = 512;
const OF_ONE_ADDRESS: usize = 384;
/// The most that headers may be, bytes, and their number.
const HEADER_BYTES: usize = 64 << 10;
const HEADER_COUNT: usize = 100;
/// How many requests one HTTP/2 connection may make at once.
const STREAMS: u32 = 16;
/// How long nothing of an answer may be taken by who asked for it.
const UNTAKEN: Duration = Duration::from_secs(60);
/// How long the server waits for answers that are on their way when it ends.
const FAREWELL: Duration = Duration::from_millis(500);
/// How long it rests when the system has no more connections to give.
const REST: Duration = Duration::from_millis(50);

/// One connection, as the others see it.
struct Open {
    address: IpAddr,
    /// Requests that are not answered yet.
    asked: AtomicU64,
    /// Those of them whose caller is known.
    busy: AtomicU64,
    /// Which of all events was its last: what is smaller was longer ago.
    last: AtomicU64,
    close: Notify,
}

/// All connections.
#[derive(Default)]
struct Crowd {
    open: Mutex<BTreeMap<u64, Arc<Open>>>,
    events: AtomicU64,
}

impl Crowd {
    /// Lets a connection in; if there are too many, another one goes. `None`: all the others are at work.
    fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let address = network(address);
        let of_address = open.values().filter(|it| it.address == address).count();
        if of_address >= OF_ONE_ADDRESS || open.len() >= CONNECTIONS {
            let only = (of_address >= OF_ONE_ADDRESS).then_some(address);
            let idle = open
                .iter()
                .filter(|(_, it)| only.is_none_or(|only| it.address == only) && it.busy.load(Ordering::Acquire) == 0)
                .min_by_key(|(_, it)| it.last.load(Ordering::Acquire))
                .map(|(id, _)| *id)?;
            // It counts no longer, even before its task has heard of it.
            if let Some(gone) = open.remove(&idle) {
                gone.close.notify_one();
            }
        }
        let id = self.events.fetch_add(1, Ordering::AcqRel);
        let (asked, busy, last) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(id));
        let one = Arc::new(Open { address, asked, busy, last, close: Notify::new() });
        open.insert(id, Arc::clone(&one));
        Some(Place { crowd: Arc::clone(self), id, open: one })
    }
}

/// A connection's place among the others.
struct Place {
    crowd: Arc<Crowd>,
    id: u64,
    open: Arc<Open>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.crowd.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// A request that is being answered, until its body is sent.
pub(super) struct Work {
    crowd: Arc<Crowd>,
    open: Arc<Open>,
    is_known: AtomicBool,
}

impl Work {
    fn new(place: &Place) -> Self {
        place.open.asked.fetch_add(1, Ordering::AcqRel);
        Self { crowd: Arc::clone(&place.crowd), open: Arc::clone(&place.open), is_known: AtomicBool::new(false) }
    }

    /// Its caller is known: from here on its connection gives way to nobody.
    pub(super) fn admit(&self) {
        if !self.is_known.swap(true, Ordering::AcqRel) {
            self.open.busy.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.open.last.store(self.crowd.events.fetch_add(1, Ordering::AcqRel), Ordering::Release);
        if *self.is_known.get_mut() {
            self.open.busy.fetch_sub(1, Ordering::AcqRel);
        }
        self.open.asked.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Ends when nothing was asked for a while.
async fn silent(open: &Open) {
    let mut last = None;
    loop {
        sleep(HEADERS).await;
        let now = open.last.load(Ordering::Acquire);
        let is_idle = open.asked.load(Ordering::Acquire) == 0;
        if is_idle && last == Some(now) {
            return;
        }
        last = is_idle.then_some(now);
    }
}

/// Takes connections until `stop` is true.
pub(super) async fn serve(listener: TcpListener, site: Site, tls: Option<Arc<Shown>>, mut stop: watch::Receiver<bool>) {
    let acceptor = tls.as_ref().and_then(|tls| tls.config().ok()).map(TlsAcceptor::from);
    // A certificate that cannot be used was refused at the start: nobody is served in the clear instead.
    if tls.is_some() && acceptor.is_none() {
        tracing::error!("TLS cannot be used: nobody is served");
        return;
    }
    let crowd = Arc::new(Crowd::default());
    let whole = site.clone();
    let farewell = stop.clone();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "cannot take a connection");
                sleep(REST).await;
                continue;
            }
        };
        let Some(place) = crowd.enter(address.ip()) else { continue };
        tokio::spawn(attend(stream, address, place, site.clone(), acceptor.clone(), farewell.clone()));
        // Whoever has asked meanwhile is heard before another connection may take its place.
        yield_now().await;
    }
    // Those who are being answered know that it is over; the thread ends with the last, or soon.
    let gone = async {
        while !crowd.open.lock().unwrap_or_else(PoisonError::into_inner).is_empty() || whole.is_changing() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let _ = timeout(FAREWELL, gone).await;
}

/// What bytes come and go by, with TLS or without. One type for both: what speaks HTTP is compiled once.
type Wire = Box<dyn ReadWrite>;

trait ReadWrite: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> ReadWrite for T {}

async fn attend(
    stream: TcpStream,
    address: SocketAddr,
    place: Place,
    site: Site,
    acceptor: Option<TlsAcceptor>,
    mut stop: watch::Receiver<bool>,
) {
    // What is small is sent at once; who takes nothing for long is gone.
    let _ = stream.set_nodelay(true);
    let _ = set_tcp_user_timeout(&stream, u32::try_from(UNTAKEN.as_millis()).unwrap_or(u32::MAX));
    let is_secure = acceptor.is_some();
    let wire: Wire = match acceptor {
        None => Box::new(stream),
        Some(acceptor) => {
            let begun = tokio::select! {
                begun = timeout(HEADERS, acceptor.accept(stream)) => begun,
                () = place.open.close.notified() => return,
                _ = stop.wait_for(|stop| *stop) => return,
            };
            match begun {
                Ok(Ok(stream)) => Box::new(stream),
                Ok(Err(error)) => return tracing::debug!(%address, %error, "no TLS"),
                Err(_) => return tracing::debug!(%address, "TLS did not begin in time"),
            }
        }
    };
    converse(wire, address, place, site, stop, is_secure).await;
}

async fn converse(
    wire: Wire,
    address: SocketAddr,
    place: Place,
    site: Site,
    mut stop: watch::Receiver<bool>,
    is_secure: bool,
) {
    let place = &place;
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let work = Arc::new(Work::new(place));
        let site = site.clone();
        async move {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(Arc::clone(&work));
            let response = site.answer(address, request).await;
            // The work ends with the last byte of the body.
            Ok::<_, Infallible>(response.map(|body| {
                http_body_util::BodyExt::map_frame(body, move |frame| {
                    let _still = &work;
                    frame
                })
            }))
        }
    });
    // Without TLS nobody asks for another version, and its limit of time begins with the connection.
    let mut builder = Builder::new(TokioExecutor::new());
    if !is_secure {
        builder = builder.http1_only();
    }
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_headers(HEADER_COUNT)
        .max_buf_size(HEADER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(HEADER_BYTES).unwrap_or(u32::MAX))
        .keep_alive_interval(HEADERS)
        .keep_alive_timeout(HEADERS);
    let connection = builder.serve_connection(TokioIo::new(wire), service);
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%address, %error, "a connection ended");
            }
            return;
        }
        () = place.open.close.notified() => return,
        () = silent(&place.open) => return,
        _ = stop.wait_for(|stop| *stop) => connection.as_mut().graceful_shutdown(),
    }
    let _ = timeout(FAREWELL, connection).await;
}
