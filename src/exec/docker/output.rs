//! What a container prints, copied into the log of its attempt.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::watch;

use super::engine::{Engine, Fault};

/// How long a copy that was cut off waits before it goes on.
const PAUSE: Duration = Duration::from_millis(500);

/// Up to so many bytes what a container has printed is read once more when it has ended.
const READ_AGAIN: u64 = 16 << 20;

/// Copies what the task of a service prints, and once it is `over`, the rest. A swarm does not say when nothing more will come.
pub(super) async fn copy_service(
    engine: Engine,
    service: String,
    log: File,
    copied: u64,
    mut over: watch::Receiver<bool>,
) {
    let mut copy = Copy { engine, of: Of::Service(service), log, copied, complained: false };
    let follow = async {
        loop {
            copy.pass(true).await;
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::select! {
        () = follow => {}
        // Whoever has gone without a word is over too.
        _ = over.wait_for(|over| *over) => {}
    }
    if copy.copied <= READ_AGAIN {
        copy.pass(false).await;
    }
}

/// Copies everything that a container prints until it has ended, leaving out what was copied before: an engine always tells
/// it from the beginning. Where the log cannot be written the rest is lost and the program goes on.
pub(super) async fn copy(engine: Engine, container: String, log: File, copied: u64) {
    let mut copy = Copy { engine, of: Of::Container(container.clone()), log, copied, complained: false };
    loop {
        let passed = copy.pass(true).await;
        // The engine ends the stream when the container has ended, and when it ends itself.
        let is_running = match copy.engine.inspect(&container).await {
            Ok(seen) => seen.state.and_then(|state| state.running).unwrap_or(false),
            Err(fault) if fault.is_absence() => true,
            Err(_) => return,
        };
        match passed {
            Passed::Gone => return,
            Passed::Whole if !is_running => break,
            Passed::Whole | Passed::CutOff => tokio::time::sleep(PAUSE).await,
        }
    }
    // Who follows a container that ends within milliseconds may be told its end before its last line (moby ends the stream when
    // the container stops, whatever its log's reader has come to). What is on record is whole.
    if copy.copied <= READ_AGAIN {
        copy.pass(false).await;
    }
}

/// A copy under way.
struct Copy {
    engine: Engine,
    of: Of,
    log: File,
    copied: u64,
    complained: bool,
}

/// Whose output is copied.
#[derive(Debug)]
enum Of {
    Container(String),
    Service(String),
}

/// How reading what a container printed ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passed {
    /// At its end.
    Whole,
    /// The connection was cut.
    CutOff,
    /// The container is gone.
    Gone,
}

impl Copy {
    /// Reads from the beginning and writes what was not copied yet.
    async fn pass(&mut self, follow: bool) -> Passed {
        let Self { engine, of, log, copied, complained } = self;
        let (pieces, name) = match of {
            Of::Container(name) => (engine.output(name, follow).map(StreamExt::boxed), name),
            Of::Service(name) => (engine.service_output(name, follow).map(StreamExt::boxed), name),
        };
        let Ok(mut pieces) = pieces else { return Passed::CutOff };
        let mut passed = 0_u64;
        loop {
            match pieces.next().await {
                None => return Passed::Whole,
                Some(Err(Fault::NoContainer)) => return Passed::Gone,
                Some(Err(_)) => return Passed::CutOff,
                Some(Ok(piece)) => {
                    let known = usize::try_from(copied.saturating_sub(passed)).unwrap_or(usize::MAX);
                    passed += piece.len() as u64;
                    let fresh = piece.get(known.min(piece.len())..).unwrap_or_default();
                    *copied += fresh.len() as u64;
                    if let Err(error) = log.write_all(fresh)
                        && !std::mem::replace(complained, true)
                    {
                        tracing::warn!(container = name, %error, "what this container prints cannot be written to its log");
                    }
                }
            }
        }
    }
}
