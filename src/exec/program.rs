//! From a [`Spec`] to a command line that can be started, and from a refusal of the system to a sentence that helps.
//!
//! Promises: the program is looked up in the *attempt's* `PATH` and folder, never in this process's own; and whoever reads the
//! message of a failed start learns what was tried, what the system said and what was expected. Looking for the reason
//! costs nothing when there is none: it happens after the failure.

use std::ffi::OsString;
use std::fmt::Display;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Access, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::Spec;

/// The command for a spec. It is built so that the standard library starts it with `posix_spawn`: an absolute program,
/// no `pre_exec`, no change of user. `out`: what it prints into; `None`: nothing that it prints is kept. `before`: words that the
/// program, its name and its arguments are handed to instead.
///
/// # Errors
/// What was tried and why it cannot be, as a sentence.
pub(super) fn command(
    spec: &Spec,
    out: Option<BorrowedFd<'_>>,
    before: &[OsString],
) -> Result<(Command, PathBuf), Unstarted> {
    let Some(name) = spec.argv.first().filter(|name| !name.is_empty()) else {
        let error = "cannot start the program: its name is empty; expected a program and its arguments".to_owned();
        return Err(error.into());
    };
    let program = resolve(name, spec.env.get("PATH").map(String::as_str), &spec.dir)?;
    let dup = |out: BorrowedFd<'_>| {
        let dup = out.try_clone_to_owned().map(Stdio::from);
        dup.map_err(|error| Unstarted::by(&error, explain(spec, &program, &error)))
    };
    let (out, err) = match out {
        Some(out) => (dup(out)?, dup(out)?),
        None => (Stdio::null(), Stdio::null()),
    };
    let mut command = match before {
        [] => {
            let mut command = Command::new(&program);
            command.arg0(name).args(&spec.argv[1..]);
            command
        }
        [first, words @ ..] => {
            let mut command = Command::new(first);
            command.args(words).arg(&program).args(&spec.argv);
            command
        }
    };
    command
        .current_dir(&spec.dir)
        .env_clear()
        .envs(&spec.env)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err);
    Ok((command, program))
}

/// The reason why an attempt was not started.
#[derive(Debug)]
pub(super) struct Unstarted {
    /// A sentence: what was tried, the error of the system and what was expected.
    pub(super) error: String,
    /// The system was short of something that other processes give back: it may be started later, or elsewhere.
    pub(super) is_short: bool,
}

impl Unstarted {
    /// Because of what the system said, in these words.
    pub(super) fn by(system: &io::Error, error: String) -> Self {
        Self { error, is_short: is_short(system) }
    }
}

/// For a reason that stays.
impl From<String> for Unstarted {
    fn from(error: String) -> Self {
        Self { error, is_short: false }
    }
}

/// Returns whether the system says that it is out of processes, memory or descriptors.
#[must_use]
pub fn is_short(error: &io::Error) -> bool {
    let number = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(number, Some(Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE))
}

/// Where `name` is: looked up in `path` if it has no `/`, else relative to `dir`.
pub(super) fn resolve(name: &str, path: Option<&str>, dir: &Path) -> Result<PathBuf, String> {
    if name.contains('/') {
        return Ok(dir.join(name));
    }
    let Some(path) = path.filter(|path| !path.is_empty()) else {
        return Err(failed(name, "it has no `/`, and PATH is not set for it", "a path, or PATH in its environment"));
    };
    if name.contains('\0') {
        return Err(failed(name, "its name contains a NUL byte", "a name without one"));
    }
    let mut unusable = None;
    for folder in path.split(':') {
        // An empty or relative entry means the working directory, as it does for the shell.
        let candidate = dir.join(folder).join(name);
        match usable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(None) => {}
            Err(Some(why)) => unusable = unusable.or(Some((candidate, why))),
        }
    }
    Err(match unusable {
        Some((candidate, why)) => failed(name, &format!("{} {why}", candidate.display()), "an executable file"),
        None => failed(name, &format!("not found in PATH ({path})"), "a program in one of these folders"),
    })
}

/// Whether a file can be executed by us; the error says why not, `None`: nothing is there.
fn usable(path: &Path) -> Result<(), Option<String>> {
    let found = rustix::fs::stat(path).map_err(|_| None)?;
    match FileType::from_raw_mode(found.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(Some("is a folder".to_owned())),
        FileType::Symlink
        | FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice
        | FileType::Unknown => return Err(Some("is not a regular file".to_owned())),
    }
    if found.st_mode & 0o111 == 0 || rustix::fs::access(path, Access::EXEC_OK).is_err() {
        return Err(Some(format!("is not executable (mode {:04o}; chmod +x)", found.st_mode & 0o7777)));
    }
    Ok(())
}

/// Why starting `program` failed, as a sentence.
pub(super) fn explain(spec: &Spec, program: &Path, error: &io::Error) -> String {
    let name = spec.argv.first().map_or("", String::as_str);
    let system = describe(error);
    if let Some(what) = first_nul(spec) {
        return failed(name, &format!("{what} contains a NUL byte"), "text without one");
    }
    if let Err(why) = folder(&spec.dir) {
        return failed(name, &format!("the working directory {} {why}: {system}", spec.dir.display()), "a folder");
    }
    let shown = program.display();
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::PERM | Errno::LOOP) => match usable(program) {
            Err(None) => failed(name, &format!("{shown}: {system}"), "a program there"),
            Err(Some(why)) => failed(name, &format!("{shown} {why}: {system}"), "an executable file"),
            Ok(()) => match interpreter(program) {
                Some(line) => failed(
                    name,
                    &format!("{shown} begins with {line:?}: {system}"),
                    "an interpreter that exists and can be executed, and no carriage return at the line's end",
                ),
                None => failed(name, &format!("{shown}: {system}"), "its loader and libraries to be there"),
            },
        },
        Some(Errno::NOEXEC) => failed(
            name,
            &format!("{shown} has no `#!` line and is no binary of this machine: {system}"),
            "a first line such as `#!/bin/sh`, or a binary",
        ),
        Some(Errno::TXTBSY) => failed(name, &format!("{shown} is being written: {system}"), "a file nobody has open"),
        Some(Errno::TOOBIG) => {
            let bytes = spec.argv.iter().map(|arg| arg.len() + 1).sum::<usize>()
                + spec.env.iter().map(|(key, value)| key.len() + value.len() + 2).sum::<usize>();
            failed(
                name,
                &format!("arguments and environment are {bytes} bytes: {system}"),
                "less, and no single one of 128 KiB",
            )
        }
        Some(Errno::AGAIN) => {
            failed(name, &format!("out of processes: {system}"), "a free process (ulimit -u, pids.max)")
        }
        Some(Errno::MFILE | Errno::NFILE) => {
            failed(name, &format!("out of file descriptors: {system}"), "a free descriptor (ulimit -n, fs.file-max)")
        }
        Some(Errno::NOMEM) => failed(name, &format!("out of memory: {system}"), "memory for one more process"),
        Some(_) | None => failed(name, &format!("{shown}: {system}"), "it to start"),
    }
}

pub(super) fn failed(name: &str, why: &str, expected: &str) -> String {
    format!("cannot start {name:?}: {why}; expected {expected}")
}

fn describe(error: &dyn Display) -> String {
    error.to_string()
}

fn first_nul(spec: &Spec) -> Option<String> {
    if let Some(at) = spec.argv.iter().position(|arg| arg.contains('\0')) {
        return Some(if at == 0 { "its name".to_owned() } else { format!("argument {at}") });
    }
    let (key, _) = spec.env.iter().find(|(key, value)| key.contains('\0') || value.contains('\0'))?;
    Some(format!("the environment variable {key:?}"))
}

fn folder(dir: &Path) -> Result<(), &'static str> {
    match rustix::fs::stat(dir) {
        Err(Errno::NOENT) => Err("does not exist"),
        Err(_) => Err("cannot be reached"),
        Ok(found) if FileType::from_raw_mode(found.st_mode) != FileType::Directory => Err("is not a folder"),
        Ok(_) if rustix::fs::access(dir, Access::EXEC_OK).is_err() => Err("may not be entered"),
        Ok(_) => Ok(()),
    }
}

/// The `#!` line of a script.
fn interpreter(program: &Path) -> Option<String> {
    let file = rustix::fs::open(program, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty()).ok()?;
    let mut buffer = [0; 128];
    let count = rustix::io::read(&file, &mut buffer).ok()?;
    let line = buffer[..count].strip_prefix(b"#!")?.split(|&b| b == b'\n').next()?;
    Some(format!("#!{}", String::from_utf8_lossy(line)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_up_in_the_given_path_only() {
        let home = tempfile::tempdir().unwrap();
        let (one, two) = (home.path().join("one"), home.path().join("two"));
        for folder in [&one, &two] {
            std::fs::create_dir(folder).unwrap();
            std::fs::copy("/bin/true", folder.join("tool")).unwrap();
        }
        let path = format!("{}:{}", one.display(), two.display());
        assert_eq!(resolve("tool", Some(&path), home.path()), Ok(one.join("tool")));
        assert_eq!(resolve("tool", Some("nowhere:two"), home.path()), Ok(two.join("tool")), "relative to the folder");
        assert_eq!(resolve("tool", Some("/nowhere:"), &one), Ok(one.join("tool")), "empty means the folder");
        assert_eq!(resolve("./x", None, &one), Ok(one.join("./x")));
        assert_eq!(resolve("/bin/x", None, &one), Ok(PathBuf::from("/bin/x")));
        std::fs::remove_file(one.join("tool")).unwrap();
        std::fs::create_dir(one.join("tool")).unwrap();
        assert_eq!(resolve("tool", Some(&path), home.path()), Ok(two.join("tool")), "a folder is passed over");
        let missing = resolve("sh", Some(&path), home.path()).unwrap_err();
        assert!(missing.contains("\"sh\"") && missing.contains(&path), "{missing}");
        assert!(resolve("sh", None, home.path()).unwrap_err().contains("PATH is not set"));
    }
}
