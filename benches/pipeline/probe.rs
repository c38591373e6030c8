//! The program that says when its `main` was entered, and its answers.
//!
//! It is a small static program, compiled once at the start of the benchmark. The harness's own binary would do too,
//! but its exec takes 0.4 ms longer, on both sides alike: a third of A1 that is no pipeline's and would hide as much
//! of the difference. The moment goes through a FIFO, one atomic write of eight bytes, and is read after the result
//! was seen, so that nobody wakes up for it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use tempfile::TempDir;

use crate::Outcome;

const SOURCE: &str = include_str!("probe_program.rs");

/// How long probes that are waited for may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The compiled probe, gone when dropped.
#[derive(Debug)]
pub(crate) struct Probe {
    folder: TempDir,
    /// Whether it is static; where that cannot be linked it takes longer to start.
    pub is_static: bool,
}

impl Probe {
    /// Compiles it, static if that can be linked here.
    pub(crate) fn build() -> Outcome<Self> {
        let folder = tempfile::Builder::new().prefix("aios-bench-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        std::fs::write(folder.path().join("probe.rs"), SOURCE)?;
        let mut probe = Self { folder, is_static: true };
        if probe.compile(&["-Ctarget-feature=+crt-static"]).is_err() {
            probe.is_static = false;
            probe.compile(&[])?;
        }
        Ok(probe)
    }

    fn compile(&self, extra: &[&str]) -> Outcome<()> {
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
        let output = Command::new(&rustc)
            .args(["--edition=2024", "-Copt-level=3", "-Cpanic=abort", "-Cstrip=symbols", "probe.rs", "-oprobe"])
            .args(extra)
            .current_dir(self.folder.path())
            .output()
            .map_err(|error| format!("the probe is compiled by {}: {error}", rustc.display()))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(format!("the probe: {}", String::from_utf8_lossy(&output.stderr)).into()),
        }
    }

    /// The program; its one argument is the FIFO's path.
    pub(crate) fn program(&self) -> PathBuf {
        self.folder.path().join("probe")
    }
}

/// The harness's end of the FIFO.
#[derive(Debug)]
pub(crate) struct Answers {
    path: PathBuf,
    fifo: OwnedFd,
}

impl Answers {
    /// Makes the FIFO. It is open for reading and writing, so a probe's open never waits.
    pub(crate) fn create(path: PathBuf) -> Outcome<Self> {
        rustix::fs::mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR)?;
        let fifo = rustix::fs::open(&path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { path, fifo })
    }

    /// Waits for so many answers; gives the moment of the last.
    pub(crate) fn wait_for(&self, count: usize) -> Outcome<u64> {
        let deadline = Instant::now() + PATIENCE;
        let (mut there, mut last) = (0, 0);
        while there < count {
            let mut moments = [0; 512 * size_of::<u64>()];
            let wanted = moments.len().min((count - there) * size_of::<u64>());
            match rustix::io::read(&self.fifo, &mut moments[..wanted]) {
                Ok(read) => {
                    let answers = moments[..read].as_chunks().0;
                    there += answers.len();
                    last = answers.iter().map(|answer| u64::from_ne_bytes(*answer)).fold(last, u64::max);
                }
                Err(Errno::AGAIN | Errno::INTR) if Instant::now() < deadline => {
                    let timeout = Timespec::try_from(Duration::from_millis(200))?;
                    let _ = rustix::event::poll(&mut [PollFd::new(&self.fifo, PollFlags::IN)], Some(&timeout));
                }
                Err(Errno::AGAIN | Errno::INTR) => return Err(format!("{there} of {count} probes answered").into()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(last)
    }

    /// The path to hand to the probe.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// When the next probe entered its `main`. Called after its result was seen, so it has answered.
    pub(crate) fn take(&self) -> Outcome<u64> {
        let mut moment = [0; size_of::<u64>()];
        match rustix::io::read(&self.fifo, &mut moment) {
            Ok(read) if read == moment.len() => Ok(u64::from_ne_bytes(moment)),
            Ok(read) => Err(format!("a probe answered {read} bytes").into()),
            Err(error) => Err(format!("a result is there but its probe never answered: {error}").into()),
        }
    }
}
