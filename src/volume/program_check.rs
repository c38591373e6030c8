//! Beyond a job file's own words: whether the program it names is there and can be started.
//!
//! What lies in `Programs/` is the same for every device, so that what is missing there is an error. What lies elsewhere may be
//! there on the device that runs the job: a note.

#![expect(
    clippy::disallowed_methods,
    reason = "a program is looked at as the system will look at it: through links, from any folder"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::model::job::{Job, JobError, Program};

/// What was found about one job's program.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// What will fail on every device.
    pub errors: Vec<JobError>,
    /// What may fail on some.
    pub notes: Vec<String>,
}

/// Looks for the program of a job. `path`: the `PATH` to look in.
#[must_use]
pub fn look_for_program(job: &Job, programs: &Path, path: &str) -> Found {
    let mut found = Found::default();
    match &job.program {
        // What its image holds is not known here.
        Program::Command(_) if job.container.is_some() => {}
        Program::Command(argv) => {
            let name = argv.first().map_or("", String::as_str);
            if !name.contains('/') {
                let is_there = path.split(':').any(|folder| trouble(&programs.join(folder).join(name), true).is_none());
                if !is_there {
                    found.notes.push(format!("{name:?} is not in PATH here; the device that runs it must have it"));
                }
            } else if let Some(trouble) = trouble(&programs.join(name), true) {
                if Path::new(name).is_absolute() {
                    found.notes.push(format!("{name} {trouble} here; the device that runs it must have it"));
                } else {
                    found.errors.push(error(job, programs, "command", &programs.join(name), trouble));
                }
            }
        }
        Program::File(file) => {
            let by_interpreter =
                Path::new(file).extension().is_some_and(|ending| ["py", "sh"].iter().any(|known| ending == *known));
            let path = programs.join(file);
            found
                .errors
                .extend(trouble(&path, !by_interpreter).map(|trouble| error(job, programs, "file", &path, trouble)));
        }
        Program::Function { file, function } => {
            let path = programs.join(file);
            match trouble(&path, false) {
                Some(trouble) => found.errors.push(error(job, programs, "file", &path, trouble)),
                None if !may_define(&path, function) => {
                    let note = format!(
                        "no line of {file} defines or imports {function:?}; the run fails if nothing else does"
                    );
                    found.notes.push(note);
                }
                None => {}
            }
        }
    }
    found
}

/// Why a file cannot be a program, if it cannot.
fn trouble(path: &Path, must_be_executable: bool) -> Option<&'static str> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some("is not there"),
        Err(_) => Some("cannot be looked at"),
        Ok(meta) if meta.is_dir() => Some("is a folder"),
        Ok(meta) if !meta.is_file() => Some("is no regular file"),
        Ok(meta) if must_be_executable && meta.permissions().mode() & 0o111 == 0 => Some("is not executable"),
        Ok(_) => None,
    }
}

fn error(job: &Job, programs: &Path, key: &str, path: &Path, trouble: &str) -> JobError {
    let file = format!("{}.toml", job.name);
    let text = std::fs::read_to_string(programs.join(&file)).unwrap_or_default();
    let sets_key = |line: &str| line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('='));
    let line = text.lines().position(sets_key).map_or(1, |at| at + 1);
    let hint = match trouble {
        "is not executable" => format!("chmod +x {}", path.display()),
        _ => "a path in `command` or `file` is relative to Programs/".to_owned(),
    };
    JobError { file, line, column: 1, error: format!("{key}: {} {trouble}", path.display()), hint }
}

/// Whether some line of a Python file may give the name a meaning.
fn may_define(path: &Path, function: &str) -> bool {
    let name = function.split('.').next().unwrap_or(function);
    let is_word = |line: &str| {
        line.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == name)
            && ["def ", "class ", "import ", "="].iter().any(|sign| line.contains(sign))
    };
    std::fs::read(path).is_ok_and(|bytes| {
        let text = String::from_utf8_lossy(&bytes);
        text.lines().any(is_word) || text.contains("import *") || text.contains("globals()")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::JobName;
    use crate::model::job::parse;

    fn look(programs: &Path, text: &str) -> Found {
        std::fs::write(programs.join("j.toml"), text).unwrap();
        let job = parse(&JobName::new("j").unwrap(), "j.toml", text).unwrap();
        look_for_program(&job, programs, "/usr/bin:/bin")
    }

    #[test]
    fn what_is_missing_in_programs_is_an_error_and_what_is_missing_elsewhere_a_note() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path();
        std::fs::write(dir.join("a.py"), "async def run(x):\n    pass\n").unwrap();
        std::fs::write(dir.join("plain"), "#!/bin/sh\n").unwrap();
        for good in
            ["command = [\"sh\"]", "command = [\"/bin/sh\"]", "file = \"a.py\"", "file = \"a.py\"\nfunction = \"run\""]
        {
            assert_eq!(look(dir, good), Found::default(), "{good}");
        }
        for note in
            ["command = [\"no-such-program\"]", "command = [\"/no/such\"]", "file = \"a.py\"\nfunction = \"runs\""]
        {
            let found = look(dir, note);
            assert_eq!((found.errors.len(), found.notes.len()), (0, 1), "{note}");
        }
        for (bad, line) in [
            ("tags = []\ncommand = [\"./no\"]", 2),
            ("file = \"no.py\"", 1),
            ("file = \"plain\"", 1),
            ("\n\nfile = \"no.py\"\nfunction = \"f\"", 3),
        ] {
            let found = look(dir, bad);
            assert_eq!((found.errors.len(), found.errors[0].line), (1, line), "{bad}");
        }
    }
}
