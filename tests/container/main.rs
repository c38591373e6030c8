//! What is tested on a real container engine: the executor for containers, and the image with its compose file.
//!
//! Without an engine these tests are skipped, loudly; never where `CI` is set. They make containers under names and labels of
//! their own and remove them, whatever happens.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test stands outside the house and looks in"
)]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

mod contract;
mod engine;
mod fresh_clone;
mod podman;
mod stack;
mod swarm;
mod takeover;

/// The image that containers of these tests are made of: a shell, and nothing else is needed of it.
const SHELL: &str = "debian:bookworm-slim";
/// Nothing that goes well takes as long.
const DEADLINE: Duration = Duration::from_secs(120);

/// Runs the engine's command line and returns what it says.
fn docker(words: &[&str]) -> Result<String, String> {
    let done = Command::new("docker").args(words).stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if done.status.success() { Ok(text(&done.stdout)) } else { Err(text(&done.stderr)) }
}

/// Whether there is an engine with this image. Where not, the test is skipped; in CI that is a failure.
fn has_image(image: &str) -> bool {
    let looked = docker(&["version"]).and_then(|_| docker(&["image", "inspect", image]));
    if let Err(error) = &looked {
        let why = error.lines().last().unwrap_or_default();
        assert!(std::env::var_os("CI").is_none(), "no engine with the image {image}: {why}");
        eprintln!("SKIPPED: no container engine with the image {image}: {why}");
    }
    looked.is_ok()
}

/// Looks until there is an answer.
fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
