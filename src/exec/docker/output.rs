//! What a container prints, copied into the log of its attempt.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::watch;

use super::engine::{Engine, Fault};
use crate::exec::log::Log;

/// How long a copy that was cut off waits before it goes on.
const PAUSE: Duration = Duration::from_millis(500);
/// How long nothing may come of what has ended before it is taken for all: not every engine ends the stream.
const QUIET: Duration = Duration::from_secs(1);
/// Up to so many bytes what was printed is read once more when it has ended.
const READ_AGAIN: u64 = 16 << 20;

/// Whose output is copied.
#[derive(Debug)]
pub(super) enum Of {
    Container(String),
    Service(String),
}

/// Copies everything that a container or service prints until it is `over`, leaving out what was copied before: an engine always
/// tells it from the beginning. Returns whether something of it is missing in the log.
pub(super) async fn copy(engine: Engine, of: Of, log: Log, copied: u64, mut over: watch::Receiver<bool>) -> bool {
    let mut copy = Copy { engine, of, log, copied };
    loop {
        copy.pass(true, &mut over).await;
        // The engine ends the stream when the container has ended, and when it ends itself.
        tokio::select! {
            () = is_over(&mut over) => break,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
    // Who follows a container that ends within milliseconds may be told its end before its last line (moby ends the stream when
    // the container stops, whatever its log's reader has come to). What is on record is whole.
    // Whoever waits for this has a limit.
    while copy.copied <= READ_AGAIN && !copy.pass(false, &mut over).await {
        tokio::time::sleep(PAUSE).await;
    }
    copy.log.finish()
}

/// Returns once it is over. Whoever has gone without a word has nothing more to say.
async fn is_over(over: &mut watch::Receiver<bool>) {
    let _ = over.wait_for(|over| *over).await;
}

/// A copy under way.
struct Copy {
    engine: Engine,
    of: Of,
    log: Log,
    copied: u64,
}

impl Copy {
    /// Reads from the beginning and writes what was not copied yet; `true`: to the end. Who follows stops when nothing more comes.
    async fn pass(&mut self, follow: bool, over: &mut watch::Receiver<bool>) -> bool {
        let Self { engine, of, log, copied } = self;
        let pieces = match of {
            Of::Container(name) => engine.output(name, follow).map(StreamExt::boxed),
            Of::Service(name) => engine.service_output(name, follow).map(StreamExt::boxed),
        };
        let Ok(mut pieces) = pieces else { return false };
        let mut passed = 0_u64;
        loop {
            let quiet = async {
                is_over(over).await;
                tokio::time::sleep(QUIET).await;
            };
            let piece: Option<Result<bytes::Bytes, Fault>> = tokio::select! {
                piece = pieces.next() => piece,
                () = quiet, if follow => return true,
            };
            let piece = match piece {
                Some(Ok(piece)) => piece,
                // It was removed by somebody: there is nothing more.
                None | Some(Err(Fault::NoContainer)) => return true,
                Some(Err(_)) => return false,
            };
            let known = usize::try_from(copied.saturating_sub(passed)).unwrap_or(usize::MAX);
            passed += piece.len() as u64;
            let fresh = piece.get(known.min(piece.len())..).unwrap_or_default();
            *copied += fresh.len() as u64;
            log.write(fresh);
        }
    }
}
