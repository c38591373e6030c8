//! The log of an attempt, where this program writes it: what containers print, and what programs print that were given secrets.
//!
//! A program without secrets writes into the file itself. One with secrets prints into a pipe, and what it was given is masked on
//! the way: so its values are in no file, whatever becomes of it, of its device or of the file.

use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::model::lease::Lease;
use crate::volume::secrets::{Masker, Stream};

/// How much is taken out of a pipe at a time, bytes: as much as it holds.
const PIECE: usize = 64 << 10;
/// How long the last of what was printed may take to come.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A log under way.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    masks: Option<Stream>,
}

impl Log {
    pub(super) fn new(file: File, masker: Option<Arc<Masker>>) -> Self {
        Self { file, masks: masker.map(Stream::new) }
    }

    /// Writes the next piece. What may be the beginning of a secret comes with the piece after it.
    pub(super) fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        match &mut self.masks {
            Some(masks) => self.file.write_all(&masks.pass(piece)),
            None => self.file.write_all(piece),
        }
    }

    /// Writes what was held back: nothing more comes.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.masks.as_mut().map_or(Ok(()), |masks| self.file.write_all(&masks.rest()))
    }
}

/// The copy from a pipe into a log, on a thread of its own.
#[derive(Debug)]
pub(super) struct Copying {
    done: oneshot::Receiver<()>,
    is_closed: Arc<AtomicBool>,
}

impl Copying {
    /// Starts one; the file is the end of the pipe that a program is to print into. It ends when nobody has that open any more.
    pub(super) fn start(lease: &Lease, log: File, masker: Arc<Masker>) -> io::Result<(Self, File)> {
        let (from, into) = io::pipe()?;
        let (tell, done) = oneshot::channel();
        let is_closed = Arc::new(AtomicBool::new(false));
        let (log, closed, lease) = (Log::new(log, Some(masker)), Arc::clone(&is_closed), lease.clone());
        std::thread::Builder::new().name("aios-log".to_owned()).stack_size(128 << 10).spawn(move || {
            copy(from, log, &lease, &closed);
            // Who does not wait needs not be told.
            let _ = tell.send(());
        })?;
        Ok((Self { done, is_closed }, File::from(OwnedFd::from(into))))
    }

    /// Waits until everything is in the log. What a process prints later that nobody could find does not come into it.
    pub(super) async fn finish(self, lease: &Lease) {
        if tokio::time::timeout(LAST_WORDS, self.done).await.is_err() {
            self.is_closed.store(true, Ordering::Release);
            tracing::warn!(run = %lease.run, "something still has the output of this attempt open: its log ends here");
        }
    }
}

/// Copies until nobody can print any more. Where the log cannot be written the rest is lost and the program goes on.
fn copy(mut from: PipeReader, mut log: Log, lease: &Lease, is_closed: &AtomicBool) {
    let mut piece = vec![0; PIECE];
    let mut complained = false;
    let mut note = |written: io::Result<()>| {
        if let Err(error) = written
            && !std::mem::replace(&mut complained, true)
        {
            tracing::warn!(run = %lease.run, %error, "what this attempt prints cannot be written to its log");
        }
    };
    loop {
        match from.read(&mut piece) {
            Ok(0) => break,
            Ok(_) if is_closed.load(Ordering::Acquire) => {}
            Ok(count) => note(log.write(&piece[..count])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::warn!(run = %lease.run, %error, "what this attempt prints cannot be read");
                break;
            }
        }
    }
    if !is_closed.load(Ordering::Acquire) {
        note(log.finish());
    }
}
