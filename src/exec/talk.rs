//! Talks with a process line by line, with patience: for looks at this machine, never for attempts.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The longest line that is listened to, bytes.
const LINE: usize = 4_096;

/// A process that is talked with. It is killed when this is dropped; its standard input ends with this process in any case.
#[derive(Debug)]
pub struct Talk {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
    heard: Vec<u8>,
}

impl Talk {
    /// Starts a program, looked up in `PATH`.
    ///
    /// # Errors
    /// As the system says.
    pub fn with<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: &[S]) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(input), Some(output)) => Ok(Self { child, input, output, heard: Vec::new() }),
            (None, _) | (_, None) => Err(io::Error::other("the process has no pipes")),
        }
    }

    /// Starts this very program a second time.
    ///
    /// # Errors
    /// As the system says.
    pub fn with_self<S: AsRef<OsStr>>(args: &[S]) -> io::Result<Self> {
        Self::with(std::env::current_exe()?, args)
    }

    /// Says a line and hears the answer.
    ///
    /// # Errors
    /// As [`Talk::hear`].
    pub fn ask(&mut self, line: &str, patience: Duration) -> io::Result<Option<String>> {
        match self.input.write_all(format!("{line}\n").as_bytes()) {
            // It has ended: what it said before is heard all the same.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            Ok(()) | Err(_) => {}
        }
        self.hear(patience)
    }

    /// The next line it says, or what it says last. `None`: it has ended and says no more.
    ///
    /// # Errors
    /// `TimedOut`, or as the system says.
    pub fn hear(&mut self, patience: Duration) -> io::Result<Option<String>> {
        let until = Instant::now() + patience;
        let mut buffer = [0; 512];
        loop {
            if let Some(end) = self.heard.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.heard.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            if self.heard.len() > LINE {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it says a line without end"));
            }
            self.wait_until(until)?;
            let count = self.output.read(&mut buffer)?;
            self.heard.extend(&buffer[..count]);
            if count == 0 {
                let last = std::mem::take(&mut self.heard);
                return Ok((!last.is_empty()).then(|| String::from_utf8_lossy(&last).into_owned()));
            }
        }
    }

    /// Until there is something to read, or nothing ever will be.
    fn wait_until(&self, until: Instant) -> io::Result<()> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let left = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            let mut waits = [PollFd::new(&self.output, PollFlags::IN)];
            match poll(&mut waits, Some(&left)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// SIGKILL: whatever it held is free once this returns.
    ///
    /// # Errors
    /// As the system says.
    pub fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(|_| ())
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        // It has ended already, or is to: either way nothing is left to do.
        let _ = self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn lines_go_to_and_fro() {
        let mut talk = Talk::with("sh", &["-c", "while read -r it; do echo \"<$it>\"; done; printf end"]).unwrap();
        assert_eq!(talk.ask("one", PATIENCE).unwrap().as_deref(), Some("<one>"));
        assert_eq!(talk.ask("two", PATIENCE).unwrap().as_deref(), Some("<two>"));
        let late = talk.hear(Duration::from_millis(1)).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        talk.kill().unwrap();
        assert_eq!(talk.hear(PATIENCE).unwrap(), None);
        assert_eq!(talk.ask("three", PATIENCE).unwrap(), None);
    }

    #[test]
    fn what_has_no_line_end_is_heard_at_the_end_and_what_never_ends_is_not() {
        let said = |script: &str| Talk::with("sh", &["-c", script]).unwrap().hear(PATIENCE);
        assert_eq!(said("printf last").unwrap().as_deref(), Some("last"));
        assert_eq!(said("exit 3").unwrap(), None);
        assert_eq!(said("yes | tr -d '\\n'").unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(Talk::with("/no/such/program", &[""; 0]).is_err());
    }
}
