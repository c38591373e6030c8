//! How a program is started that has limits: this very program is started in its place, joins the cgroup or takes the limit upon
//! itself, and becomes the program.
//!
//! So the program is held from its first instruction on, and the start stays on `posix_spawn`. Nothing else is different for it:
//! environment, folder, group, descriptors and number are those of the one in whose place it comes. A start that fails is told as
//! it is without limits: the launcher says why into a pipe, which the program never has.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};

use super::cgroup::{Cgroups, Group};
use super::program::{self, Unstarted};
use super::{MARKER, Spec};
use crate::model::limits::Way;

/// Makes this program the launcher. What follows: where to say what fails, limits, `--`, the program, its arguments with its name.
const WORD: &str = "launch-limited";
/// Before the file through which a cgroup is joined.
const JOIN: &str = "--join";
/// Before the most bytes of address space.
const ADDRESS_SPACE: &str = "--address-space";
const END: &str = "--";
/// The longest that a launcher says, bytes: a word and a number.
const SAYS: usize = 64;

/// How limits of processes are held on this machine.
#[derive(Debug, Clone)]
pub struct Limiter {
    /// This very program.
    pub launcher: PathBuf,
    /// Where cgroups are made; `None`: they cannot be.
    pub cgroups: Option<Cgroups>,
}

impl Limiter {
    /// For a process that is the orchestrator.
    #[must_use]
    pub fn of_this_program(cgroups: Option<Cgroups>) -> Self {
        // The kernel's own link: it leads to this program also after its file was replaced.
        Self { launcher: PathBuf::from("/proc/self/exe"), cgroups }
    }
}

/// What a start needs beside its command, and its attempt afterwards.
#[derive(Debug)]
pub(super) struct Launch {
    pub(super) group: Option<Group>,
    said: PipeReader,
    program: PathBuf,
    spec: Spec,
}

/// The command for a spec, and what goes with it if it has limits.
///
/// # Errors
/// What was tried and why it cannot be, as a sentence.
pub(super) fn command(
    spec: &Spec,
    out: Option<BorrowedFd<'_>>,
    limiter: Option<&Limiter>,
) -> Result<(Command, PathBuf, Option<Launch>), Unstarted> {
    let cgroups = limiter.and_then(|limiter| limiter.cgroups.as_ref());
    let way = Way::of(spec.limits, cgroups.is_some());
    let (Some(limiter), false) = (limiter, way == Way::Free) else {
        return match way {
            Way::Free => program::command(spec, out, &[]).map(|(command, program)| (command, program, None)),
            Way::Cgroup | Way::AddressSpace(_) | Way::Unheld => Err(unheld(spec).into()),
        };
    };
    let name = || spec.argv.first().map_or("", String::as_str).to_owned();
    let (group, limit) = match (way, cgroups) {
        (Way::Cgroup, Some(cgroups)) => {
            let marker = spec.env.get(MARKER).cloned().unwrap_or_else(|| spec.lease.to_string());
            let group = cgroups.make(&marker, spec.limits);
            let group = group.map_err(|why| Unstarted {
                is_short: why.is_short(),
                error: program::failed(&name(), &format!("its limits: {why}"), "a cgroup for it"),
            })?;
            let doors: Vec<OsString> = group.doors().flat_map(|door| [JOIN.into(), door.into()]).collect();
            (Some(group), doors)
        }
        (Way::AddressSpace(bytes), _) => (None, vec![ADDRESS_SPACE.into(), bytes.to_string().into()]),
        (Way::Free | Way::Cgroup | Way::Unheld, _) => return Err(unheld(spec).into()),
    };
    let before = [limiter.launcher.clone().into(), WORD.into()].into_iter().chain(limit).chain([END.into()]);
    let made = program::command(spec, out, &before.collect::<Vec<OsString>>()).and_then(|(mut command, program)| {
        let (said, says) =
            io::pipe().map_err(|error| Unstarted::by(&error, program::explain(spec, &program, &error)))?;
        // It stands in for the empty input until the program begins: no descriptor is passed on that others could catch.
        command.stdin(Stdio::from(says));
        Ok((command, program, said))
    });
    match made {
        Ok((command, program, said)) => {
            let launch = Launch { group, said, program: program.clone(), spec: without_log(spec) };
            Ok((command, program, Some(launch)))
        }
        Err(error) => {
            group.iter().for_each(Group::remove_unused);
            Err(error)
        }
    }
}

fn unheld(spec: &Spec) -> String {
    let name = spec.argv.first().map_or("", String::as_str);
    let why = format!("its limits ({}) cannot be held: this device may make no cgroups", spec.limits.show());
    program::failed(name, &why, "a device with the tag cgroup (orchestrator doctor)")
}

/// What explains a start that fails.
fn without_log(spec: &Spec) -> Spec {
    Spec {
        lease: spec.lease.clone(),
        argv: spec.argv.clone(),
        dir: spec.dir.clone(),
        env: spec.env.clone(),
        log: None,
        timeout: None,
        grace: spec.grace,
        inside: None,
        limits: spec.limits,
        masker: None,
    }
}

impl Launch {
    /// The process that was to be the launcher could not be started.
    pub(super) fn abandon(&self) {
        self.group.iter().for_each(Group::remove_unused);
    }

    /// Why the program did not begin, once the process has ended; `None`: it did.
    pub(super) fn failure(&self) -> Option<Unstarted> {
        rustix::io::ioctl_fionbio(&self.said, true).ok()?;
        let mut buffer = [0; SAYS];
        // Nothing there, or nobody who could still say something: the program has begun.
        let count = (&self.said).read(&mut buffer).ok().filter(|count| *count > 0)?;
        let said = String::from_utf8_lossy(&buffer[..count]).into_owned();
        let (step, number) = said.trim().split_once(' ')?;
        let error = io::Error::from_raw_os_error(number.parse().ok()?);
        let name = self.spec.argv.first().map_or("", String::as_str);
        let why = match Step::of(step)? {
            Step::Begin => program::explain(&self.spec, &self.program, &error),
            Step::Join => program::failed(name, &format!("it cannot join its cgroup: {error}"), "to be let in"),
            Step::Limit => program::failed(name, &format!("it cannot limit its memory: {error}"), "to be let"),
        };
        Some(Unstarted::by(&error, why))
    }
}

/// What a launcher does, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Join,
    Limit,
    Begin,
}

impl Step {
    fn word(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Limit => "limit",
            Self::Begin => "begin",
        }
    }

    fn of(word: &str) -> Option<Self> {
        [Self::Join, Self::Limit, Self::Begin].into_iter().find(|step| step.word() == word)
    }
}

/// What a launcher is to do.
#[derive(Debug, PartialEq, Eq)]
pub struct Orders {
    doors: Vec<PathBuf>,
    address_space: Option<u64>,
    program: PathBuf,
    /// The program's name, then its arguments.
    argv: Vec<OsString>,
}

/// What this process is to launch, if it is a launcher.
#[must_use]
pub fn wanted(mut words: impl Iterator<Item = OsString>) -> Option<Orders> {
    words.nth(1).filter(|word| word == WORD)?;
    let (mut doors, mut address_space) = (Vec::new(), None);
    loop {
        let word = words.next()?;
        if word == END {
            break;
        } else if word == JOIN {
            doors.push(PathBuf::from(words.next()?));
        } else if word == ADDRESS_SPACE {
            address_space = Some(words.next()?.to_str()?.parse().ok()?);
        } else {
            return None;
        }
    }
    Some(Orders { doors, address_space, program: PathBuf::from(words.next()?), argv: words.collect() })
}

/// The launcher itself: returns only if the program cannot be begun.
#[must_use]
pub fn launch(orders: &Orders) -> ExitCode {
    let says = match take_pipe() {
        Ok(says) => says,
        // It still is where it was.
        Err(error) => return say(io::stdin(), Step::Begin, &error),
    };
    let empty = OsString::new();
    let (name, args) = orders.argv.split_first().map_or((&empty, &[][..]), |(name, args)| (name, args));
    // Made before the limit, under which there may be no memory for it.
    let mut command = Command::new(&orders.program);
    command.arg0::<&OsStr>(name).args(args);
    let is_foreign = has_no_format(&orders.program);
    let (step, error) = match hold(&orders.doors, orders.address_space) {
        Err(failed) => failed,
        Ok(()) if is_foreign => (Step::Begin, Errno::NOEXEC.into()),
        Ok(()) => (Step::Begin, command.exec()),
    };
    say(&says, step, &error)
}

/// Says what failed, without a need for memory.
fn say(to: impl AsFd, step: Step, error: &io::Error) -> ExitCode {
    let mut line = [0; SAYS];
    let mut rest = &mut line[..];
    // A word and a number fit.
    let _ = write!(rest, "{} {}", step.word(), error.raw_os_error().unwrap_or_default());
    let count = SAYS - rest.len();
    // If it fails, nobody is there any more who would hear it.
    let _ = rustix::io::write(to, &line[..count]);
    ExitCode::FAILURE
}

/// Takes the pipe out of standard input, which then is empty. The program does not get it.
fn take_pipe() -> io::Result<OwnedFd> {
    let says = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(says)
}

fn hold(doors: &[PathBuf], address_space: Option<u64>) -> Result<(), (Step, io::Error)> {
    for door in doors {
        join(door).map_err(|error| (Step::Join, error))?;
    }
    if let Some(bytes) = address_space {
        let most = rustix::process::getrlimit(Resource::As).maximum.map_or(bytes, |most| most.min(bytes));
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        rustix::process::setrlimit(Resource::As, limit).map_err(|error: Errno| (Step::Limit, error.into()))?;
    }
    Ok(())
}

/// Whether the kernel would refuse a file for its format. Some C libraries then have a shell read it, whatever it is, and nobody
/// would learn that a script lacks its first line.
fn has_no_format(program: &Path) -> bool {
    const OWN_FILES: [&str; 2] = ["register", "status"];
    let mut head = Vec::new();
    let read = File::open(program).and_then(|file| file.take(4).read_to_end(&mut head));
    let is_usual = read.is_err() || head.starts_with(b"#!") || head == b"\x7fELF";
    let is_own = |name: &OsStr| OWN_FILES.iter().any(|own| name == *own);
    // Formats that were added on this machine.
    let added = || fs::read_dir("/proc/sys/fs/binfmt_misc").into_iter().flatten().flatten();
    !is_usual && added().all(|entry| is_own(&entry.file_name()))
}

/// 0 is whoever writes it.
fn join(door: &Path) -> io::Result<()> {
    fs::write(door, "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> impl Iterator<Item = OsString> {
        line.split(' ').map(OsString::from).collect::<Vec<_>>().into_iter()
    }

    #[test]
    fn orders_are_read_as_they_were_given_and_nothing_else_is_a_launcher() {
        let line = "orchestrator launch-limited --join /a/cgroup.procs --join /b --address-space 7 -- /bin/sh sh -- -c";
        let orders = Orders {
            doors: vec!["/a/cgroup.procs".into(), "/b".into()],
            address_space: Some(7),
            program: "/bin/sh".into(),
            argv: words("sh -- -c").collect(),
        };
        assert_eq!(wanted(words(line)), Some(orders));
        for other in
            ["orchestrator", "orchestrator run", "orchestrator launch-limited", "orchestrator launch-limited x"]
        {
            assert_eq!(wanted(words(other)), None, "{other}");
        }
        assert_eq!(wanted(words("orchestrator run launch-limited -- /bin/sh")), None);
    }
}
