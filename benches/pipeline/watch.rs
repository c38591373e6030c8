//! Counting results as they appear: by file events, so that nobody lists folders while a round runs.

use std::mem::MaybeUninit;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::OwnedFd;
use rustix::fs::inotify::{self, ReadFlags, WatchFlags};
use rustix::io::Errno;

use crate::Outcome;
use crate::volume::Volume;

/// Counts the results of one volume.
#[derive(Debug)]
pub(crate) struct ResultWatch {
    events: OwnedFd,
    count: usize,
}

impl ResultWatch {
    /// Watches the result folders, which exist and are empty.
    pub(crate) fn open(volume: &Volume) -> Outcome<Self> {
        let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        for folder in volume.result_folders() {
            // A result comes by rename, or by a link to a file without a name.
            inotify::add_watch(&events, folder, WatchFlags::MOVED_TO | WatchFlags::CREATE)?;
        }
        Ok(Self { events, count: 0 })
    }

    /// How many results were seen.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Waits until something happens, at most this long, and counts it.
    pub(crate) fn wait(&mut self, at_most: Duration) -> Outcome<()> {
        let timeout = Timespec::try_from(at_most)?;
        let mut waited_for = [PollFd::new(&self.events, PollFlags::IN)];
        match rustix::event::poll(&mut waited_for, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => self.drain(),
            Err(error) => Err(error.into()),
        }
    }

    /// Counts what has happened.
    pub(crate) fn drain(&mut self) -> Outcome<()> {
        let mut buffer = [MaybeUninit::uninit(); 64 * 1024];
        let mut reader = inotify::Reader::new(&self.events, &mut buffer);
        loop {
            match reader.next() {
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => {
                    return Err("results came faster than the harness counts them".into());
                }
                Ok(event) => self.count += usize::from(event.file_name().is_some_and(is_result)),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn is_result(name: &std::ffi::CStr) -> bool {
    let name = name.to_bytes();
    name.ends_with(b".json") && !name.starts_with(b".")
}
