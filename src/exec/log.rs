//! The log of an attempt: what its program prints goes through this program, masked and within its limit.
//!
//! A program of this machine prints into a pipe, standard output and standard error into the same one. So the file belongs to the
//! device alone: a program that opens `/dev/stderr` again, or floods it, cannot cut or fill it. One thread empties all pipes; it
//! waits in `epoll` and costs nothing while nobody prints. A program whose log cannot be written, or has reached its limit, is
//! neither stopped nor told.

use std::collections::BTreeMap;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::mem::replace;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::Errno;

use crate::model::ids::RunId;
use crate::model::lease::Lease;
use crate::model::masker::{Masker, Stream};
use crate::volume::logs;

/// The most that is read from a pipe at a time, bytes: as much as it usually holds.
const PIECE: usize = 64 << 10;
/// The number of pipes that one wait reports.
const EVENTS: usize = 32;
/// The number that ends the thread; pipes are counted from 1.
const STOP: u64 = 0;

/// A log under way.
#[derive(Debug)]
pub(super) struct Log {
    file: logs::Log,
    masks: Option<Stream>,
    run: RunId,
    has_complained: bool,
}

impl Log {
    pub(super) fn new(file: logs::Log, masker: Option<Arc<Masker>>, lease: &Lease) -> Self {
        Self { file, masks: masker.map(Stream::new), run: lease.run.clone(), has_complained: false }
    }

    /// Writes the next piece. What may be the beginning of a secret comes with the piece after it.
    pub(super) fn write(&mut self, piece: &[u8]) {
        let written = match &mut self.masks {
            Some(masks) => self.file.write(&masks.pass(piece)),
            None => self.file.write(piece),
        };
        self.note(written);
    }

    /// Ends it: nothing more comes. Returns whether something of what was printed is missing in it.
    pub(super) fn finish(&mut self) -> bool {
        let rest = self.masks.as_mut().map_or(Ok(()), |masks| self.file.write(&masks.rest()));
        self.note(rest);
        let closed = self.file.close().map(drop);
        self.note(closed);
        self.file.is_cut()
    }

    fn note(&mut self, written: io::Result<()>) {
        if let Err(error) = written
            && !replace(&mut self.has_complained, true)
        {
            tracing::warn!(run = %self.run, %error, "what this attempt prints cannot be written to its log");
        }
    }
}

/// The pipes of all attempts, and the thread that empties them. The thread ends when this is dropped.
#[derive(Debug)]
pub(super) struct Pipes {
    shared: Arc<Shared>,
    _stop: PipeWriter,
}

#[derive(Debug)]
struct Shared {
    epoll: OwnedFd,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    last: u64,
    pipes: BTreeMap<u64, Arc<Mutex<End>>>,
}

/// The end of a pipe that is read.
#[derive(Debug)]
struct End {
    from: PipeReader,
    log: Log,
}

/// No line behind these locks can leave something half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pipes {
    /// Starts the thread.
    ///
    /// # Errors
    /// As the system says.
    pub(super) fn start() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let (stopped, stop) = io::pipe()?;
        epoll::add(&epoll, &stopped, epoll::EventData::new_u64(STOP), epoll::EventFlags::IN)?;
        let shared = Arc::new(Shared { epoll, open: Mutex::default() });
        let emptied = Arc::clone(&shared);
        std::thread::Builder::new().name("aios-log".to_owned()).stack_size(128 << 10).spawn(move || {
            emptied.empty();
            drop(stopped);
        })?;
        Ok(Self { shared, _stop: stop })
    }

    /// Opens a pipe into a log, and returns the end that a program is to print into.
    ///
    /// # Errors
    /// The log, and what the system said.
    pub(super) fn open(&self, log: Log) -> Result<(Pipe, PipeWriter), Box<(Log, io::Error)>> {
        let (from, into) = match reader() {
            Ok(ends) => ends,
            Err(error) => return Err(Box::new((log, error))),
        };
        let mut open = lock(&self.shared.open);
        let number = open.last + 1;
        let data = epoll::EventData::new_u64(number);
        if let Err(error) = epoll::add(&self.shared.epoll, &from, data, epoll::EventFlags::IN) {
            return Err(Box::new((log, error.into())));
        }
        let end = Arc::new(Mutex::new(End { from, log }));
        open.last = number;
        open.pipes.insert(number, Arc::clone(&end));
        Ok((Pipe { shared: Arc::clone(&self.shared), number, end }, into))
    }
}

fn reader() -> io::Result<(PipeReader, PipeWriter)> {
    let (from, into) = io::pipe()?;
    rustix::io::ioctl_fionbio(&from, true)?;
    Ok((from, into))
}

impl Shared {
    /// Empties pipes until it is told to stop.
    fn empty(&self) {
        let mut events = Vec::with_capacity(EVENTS);
        let mut piece = vec![0; PIECE];
        loop {
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    // Only a bug can bring this about.
                    tracing::error!(%error, "what attempts print is no longer read");
                    return;
                }
            }
            for event in events.drain(..) {
                let number = event.data.u64();
                if number == STOP {
                    return;
                }
                // One that has just been finished is not there any more.
                let Some(end) = lock(&self.open).pipes.get(&number).cloned() else { continue };
                let mut end = lock(&end);
                if end.take(&mut piece) == Taken::All {
                    // An error can only mean that it was finished meanwhile.
                    let _ = epoll::delete(&self.epoll, &end.from);
                }
            }
        }
    }
}

/// The outcome of one read of a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    /// Nothing at the moment, or this many bytes were taken.
    Some(usize),
    /// Nobody can print into it any more, and all of it was read.
    All,
}

impl End {
    fn take(&mut self, piece: &mut [u8]) -> Taken {
        match self.from.read(piece) {
            Ok(0) => Taken::All,
            Ok(count) => {
                self.log.write(&piece[..count]);
                Taken::Some(count)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Taken::Some(0)
            }
            Err(error) => {
                tracing::warn!(run = %self.log.run, %error, "what this attempt prints cannot be read");
                Taken::All
            }
        }
    }

    /// Takes what is in the pipe now, and not what somebody who has outlived the attempt goes on to print.
    fn take_rest(&mut self) {
        let mut left = rustix::io::ioctl_fionread(&self.from).map_or(0, |left| usize::try_from(left).unwrap_or(0));
        let mut piece = vec![0; left.min(PIECE)];
        while left > 0 {
            let wanted = left.min(PIECE);
            match self.take(&mut piece[..wanted]) {
                Taken::Some(count @ 1..) => left -= count,
                Taken::Some(0) | Taken::All => break,
            }
        }
    }
}

/// The pipe of one attempt.
#[derive(Debug)]
pub(super) struct Pipe {
    shared: Arc<Shared>,
    number: u64,
    end: Arc<Mutex<End>>,
}

impl Pipe {
    /// Writes the last of what was printed, once nobody of the attempt lives any more. Returns whether something of what was printed is
    /// missing in the log.
    pub(super) fn finish(self) -> bool {
        let mut end = lock(&self.end);
        end.take_rest();
        end.log.finish()
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        lock(&self.shared.open).pipes.remove(&self.number);
        let end = lock(&self.end);
        // It may have been read to its end.
        let _ = epoll::delete(&self.shared.epoll, &end.from);
    }
}
