//! Learning that a main process has ended.
//!
//! Promises: the end is seen once it is there, whatever the system runs short of, and it is only seen: the status stays to be
//! read. Waiting costs no CPU.

use std::future::pending;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::tree;

/// How often one looks without a pidfd, with SIGCHLD as the main source of news.
const LOOK_LATE: Duration = Duration::from_secs(2);
/// The same, when even that cannot be listened for.
const LOOK_SOON: Duration = Duration::from_millis(100);

/// Tells when the main process has ended, without reaping it.
#[derive(Debug)]
pub(super) enum MainEnd {
    /// The kernel says so.
    Pidfd(Pid, AsyncFd<OwnedFd>),
    /// No descriptor to be had: each ended child is a reason to look.
    Signal(Pid, Option<Signal>),
}

impl MainEnd {
    #[expect(
        deprecated,
        reason = "the successor is an unsafe fn; what it asks of the caller, an OwnedFd keeps by its type"
    )]
    pub(super) fn watch(main: Pid) -> Self {
        let pidfd = rustix::process::pidfd_open(main, PidfdFlags::empty())
            .map_err(std::io::Error::from)
            .and_then(|pidfd| AsyncFd::with_interest(pidfd, Interest::READABLE));
        match pidfd {
            Ok(pidfd) => Self::Pidfd(main, pidfd),
            Err(error) => {
                tracing::warn!(%error, "no pidfd: waiting by SIGCHLD");
                Self::Signal(main, signal(SignalKind::child()).ok())
            }
        }
    }

    /// Returns when it has ended; may be dropped and called again.
    pub(super) async fn seen(&mut self) {
        match self {
            Self::Pidfd(main, pidfd) => loop {
                match pidfd.readable().await {
                    Ok(mut ready) if !tree::is_over(*main) => ready.clear_ready(),
                    Ok(_) => return,
                    // The runtime is shutting down; nothing can be waited for any more.
                    Err(_) => pending().await,
                }
            },
            Self::Signal(main, signal) => {
                while !tree::is_over(*main) {
                    // Signals can be merged, and there may be no listener: so it also looks by itself.
                    let again = Instant::now() + if signal.is_some() { LOOK_LATE } else { LOOK_SOON };
                    tokio::select! {
                        _ = async { match signal { Some(signal) => signal.recv().await, None => pending().await } } => {}
                        () = until(Some(again)) => {}
                    }
                }
            }
        }
    }
}

/// Waits for a moment; `None` never comes.
pub(super) async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => pending().await,
    }
}
