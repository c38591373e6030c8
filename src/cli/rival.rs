//! A second process that wants the same lock: this very program, started again with a word that no help and no completion names.

use std::ffi::OsString;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::exec::talk::Talk;
use crate::volume::Context as _;
use crate::volume::disk::Disk;
use crate::volume::os::OsDisk;
use crate::volume::probe::{Rival, Trouble};

/// Makes this program the second process; the lock's path follows.
const WORD: &str = "hold-lock";

/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

const LOCK: &str = "lock";
const UNLOCK: &str = "unlock";
const HELD: &str = "held";
const REFUSED: &str = "refused";
const FREE: &str = "free";

/// The second process, as the first sees it.
pub(super) struct SecondProcess(Talk);

impl SecondProcess {
    /// Starts it.
    ///
    /// # Errors
    /// What the system said.
    pub(super) fn start(lock: &Path) -> Result<Self, Trouble> {
        let args = [WORD.as_ref(), lock.as_os_str()];
        Talk::with_self(&args).map(Self).map_err(|error| alone(&format!("cannot start a second process: {error}")))
    }

    fn ask(&mut self, what: &str, wanted: &[&str]) -> Result<String, Trouble> {
        match self.0.ask(what, PATIENCE) {
            Ok(Some(answer)) if wanted.contains(&answer.as_str()) => Ok(answer),
            Ok(Some(answer)) => Err(Trouble::Fault(format!("a second process {answer}"))),
            Ok(None) => Err(alone("the second process ended")),
            Err(error) => Err(alone(&format!("the second process does not answer: {error}"))),
        }
    }
}

fn alone(why: &str) -> Trouble {
    Trouble::Untried {
        why: why.to_owned(),
        hint: "see `ulimit -a`, and that this program's file is still there".to_owned(),
    }
}

impl Rival for SecondProcess {
    fn lock(&mut self) -> Result<bool, Trouble> {
        self.ask(LOCK, &[HELD, REFUSED]).map(|answer| answer == HELD)
    }

    fn unlock(&mut self) -> Result<(), Trouble> {
        self.ask(UNLOCK, &[FREE]).map(|_| ())
    }

    fn die(&mut self) -> Result<(), Trouble> {
        self.0.kill().map_err(|error| alone(&format!("cannot end the second process: {error}")))
    }
}

/// The lock that this process is to hold, if it is the second one.
pub(super) fn wanted(mut words: impl Iterator<Item = OsString>) -> Option<PathBuf> {
    let is_second = words.nth(1).is_some_and(|word| word == WORD);
    if is_second { words.next().map(PathBuf::from) } else { None }
}

/// The second process itself: takes the lock and gives it back as it is told, until nobody tells it any more.
pub(super) fn hold(lock: &Path) -> ExitCode {
    let disk = OsDisk::new();
    let mut held = None;
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let answer = if line == LOCK {
            match disk.lock(lock).on("lock", lock) {
                Ok(Some(guard)) => {
                    held = Some(guard);
                    HELD.to_owned()
                }
                Ok(None) => REFUSED.to_owned(),
                Err(error) => error.to_string(),
            }
        } else {
            held = None;
            FREE.to_owned()
        };
        let mut stdout = std::io::stdout().lock();
        if writeln!(stdout, "{answer}").and_then(|()| stdout.flush()).is_err() {
            break;
        }
    }
    drop(held);
    ExitCode::SUCCESS
}
