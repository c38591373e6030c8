//! What a container prints, copied into the log of its attempt.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use futures_util::StreamExt;

use super::engine::{Engine, Fault};

/// How long a copy that was cut off waits before it goes on.
const PAUSE: Duration = Duration::from_millis(500);

/// Copies everything that a container prints until it has ended, leaving out what was copied before: an engine always tells
/// it from the beginning. Where the log cannot be written the rest is lost and the program goes on.
pub(super) async fn copy(engine: Engine, container: String, mut log: File, mut copied: u64) {
    let mut complained = false;
    loop {
        let ended = {
            let Ok(pieces) = engine.output(&container) else { return };
            let mut pieces = std::pin::pin!(pieces);
            let mut passed = 0_u64;
            loop {
                match pieces.next().await {
                    None => break true,
                    Some(Err(Fault::NoContainer)) => return,
                    Some(Err(_)) => break false,
                    Some(Ok(piece)) => {
                        let known = usize::try_from(copied.saturating_sub(passed)).unwrap_or(usize::MAX);
                        passed += piece.len() as u64;
                        let fresh = piece.get(known.min(piece.len())..).unwrap_or_default();
                        copied += fresh.len() as u64;
                        if let Err(error) = log.write_all(fresh)
                            && !std::mem::replace(&mut complained, true)
                        {
                            tracing::warn!(container, %error, "what this container prints cannot be written to its log");
                        }
                    }
                }
            }
        };
        // The engine ends the stream when the container has ended, and when it ends itself.
        let is_running = match engine.inspect(&container).await {
            Ok(seen) => seen.state.and_then(|state| state.running).unwrap_or(false),
            Err(fault) if fault.is_absence() => true,
            Err(_) => return,
        };
        if ended && !is_running {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}
