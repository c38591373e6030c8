//! Secrets: values that job files name and nothing else holds.
//!
//! A secret is a file whose name is the secret's. It is looked for where container engines mount such files, then in the shared
//! folder. It promises that what it reads is a regular file of its place, and that no error says what was in it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::disk::{Disk, Kind};
use super::layout::Layout;
use super::{is_absent, os};
use crate::model::ids::SecretName;
use crate::model::job::Job;

#[cfg(test)]
mod tests;

/// The largest secret, bytes.
pub const LIMIT: u64 = 64 << 10;
/// Where container engines mount secrets.
const MOUNTED: &str = "/run/secrets";
/// Nobody but their owner.
const CLOSED: u32 = 0o700;
/// What files grant to others than their owner.
const OTHERS: u32 = 0o077;
/// How often a mounted secret is looked at that is just being replaced.
const LOOKS: u32 = 3;

/// Where secrets are looked for.
#[derive(Debug, Clone)]
struct Places {
    /// First: what the engine mounts. It may make its files links to each other.
    mounted: PathBuf,
    /// Then: what the devices share.
    shared: PathBuf,
}

/// Why a secret cannot be had. What is in its file is not said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the secret {name} {why}")]
pub struct Unusable {
    /// Its name.
    pub name: SecretName,
    /// What was found, where, and what was expected.
    pub why: String,
    /// What to do about it.
    pub hint: &'static str,
}

const MEND: &str = "a secret is a file with its value alone, at most 64 KiB of UTF-8, that this device's user can read";

impl Places {
    /// Those of a volume on this machine.
    fn of(layout: &Layout) -> Self {
        Self { mounted: PathBuf::from(MOUNTED), shared: layout.secrets() }
    }

    /// The value of a secret, without one line feed at its end.
    ///
    /// # Errors
    /// [`Unusable`]: it is nowhere, or the first place that has it has something else.
    fn read(&self, disk: &dyn Disk, name: &SecretName) -> Result<String, Unusable> {
        let unusable = |why: String, hint| Unusable { name: name.clone(), why, hint };
        for look in [Self::read_mounted, Self::read_shared] {
            match look(self, disk, name) {
                Ok(Some(value)) => return Ok(value),
                Ok(None) => {}
                Err(why) => return Err(unusable(why, MEND)),
            }
        }
        let [mounted, shared] = [&self.mounted, &self.shared].map(|place| place.join(name.as_str()));
        let why = format!("is not there: found neither {} nor {}", mounted.display(), shared.display());
        let hint =
            "write its value into one of the two, with mode 0600, on the device that runs the job; tags choose devices";
        Err(unusable(why, hint))
    }

    /// Its links are followed, as far as they stay inside: engines put new versions of secrets in place by them.
    fn read_mounted(&self, disk: &dyn Disk, name: &SecretName) -> Result<Option<String>, String> {
        let path = self.mounted.join(name.as_str());
        for _ in 0..LOOKS {
            let (root, real) = (os::real_path(&self.mounted), os::real_path(&path));
            if !real.starts_with(&root) && real != path {
                let (path, root) = (path.display(), root.display());
                return Err(format!(
                    "cannot be used: {path} is a link out of {root}, expected a regular file in there"
                ));
            }
            let value = read_file(disk, &real, &path)?;
            // Gone between the two looks: there is a newer one.
            if value.is_some() || real == path {
                return Ok(value);
            }
        }
        Ok(None)
    }

    fn read_shared(&self, disk: &dyn Disk, name: &SecretName) -> Result<Option<String>, String> {
        for folder in self.shared_folders() {
            match disk.stat(folder) {
                Ok(meta) if meta.kind == Kind::Folder => {}
                Ok(meta) => {
                    return Err(format!(
                        "cannot be used: {} is {}, expected a folder, and no link to one",
                        folder.display(),
                        meta.kind
                    ));
                }
                Err(error) if is_absent(&error) => return Ok(None),
                Err(error) => return Err(cannot_read(folder, &error)),
            }
        }
        let path = self.shared.join(name.as_str());
        read_file(disk, &path, &path)
    }

    /// `Security` and what is in it for secrets, the outer one first.
    fn shared_folders(&self) -> impl Iterator<Item = &Path> {
        self.shared.parent().into_iter().chain([self.shared.as_path()])
    }
}

/// Reads a file; `shown`: what it is called. `None`: there is none.
fn read_file(disk: &dyn Disk, path: &Path, shown: &Path) -> Result<Option<String>, String> {
    let (bytes, meta) = match disk.read(path, LIMIT) {
        Ok(read) => read,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(cannot_read(shown, &error)),
    };
    let at = shown.display();
    if meta.kind != Kind::File {
        return Err(format!("cannot be used: {at} is {}, expected a regular file", meta.kind));
    }
    if meta.id.size > LIMIT {
        return Err(format!("cannot be used: {at} has {} bytes, expected at most {LIMIT}", meta.id.size));
    }
    if let Some(nul) = bytes.iter().position(|byte| *byte == 0) {
        return Err(format!("cannot be used: {at} has a NUL at byte {nul}, expected text without"));
    }
    let mut value = String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        format!("cannot be used: {at} has a byte that is not UTF-8 at offset {valid}, expected text")
    })?;
    if value.ends_with('\n') {
        value.pop();
    }
    Ok(Some(value))
}

fn cannot_read(path: &Path, error: &std::io::Error) -> String {
    format!("cannot be read: {}: {}", path.display(), super::reason(error))
}

/// What the variables of a job stand for that name secrets, as it is now: each variable, and the value.
pub fn of_job(disk: &dyn Disk, layout: &Layout, job: &Job) -> impl Iterator<Item = (String, Result<String, Unusable>)> {
    let places = Places::of(layout);
    job.secrets().map(move |(variable, name)| (variable.to_owned(), places.read(disk, &name)))
}

/// What a job asks for that cannot be had on this machine, a sentence each.
#[must_use]
pub fn missing(disk: &dyn Disk, layout: &Layout, job: &Job) -> Vec<String> {
    let found = of_job(disk, layout, job);
    let told = |(variable, value): (String, Result<String, Unusable>)| {
        Some(format!("env.{variable}: {}; the device that runs it must have it", value.err()?))
    };
    found.filter_map(told).collect()
}

/// Makes the folder of secrets, closed to others, and the one around it; what is there is left as it is. That it cannot be made
/// hinders nobody: who needs a secret says that it is not there.
pub fn make_folder(disk: &dyn Disk, layout: &Layout) {
    for folder in Places::of(layout).shared_folders() {
        if disk.stat(folder).is_err_and(|error| is_absent(&error))
            && let Err(error) = disk.make_folder_with(folder, CLOSED)
        {
            tracing::debug!(folder = %folder.display(), %error, "this folder cannot be made");
        }
    }
}

/// What grants too much of the secrets that devices share.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exposed {
    /// Folders and files that grant something to others than their owner, each with its mode.
    pub paths: Vec<(PathBuf, u32)>,
    /// Whether the folders let others in, so that what the files grant can be had.
    pub is_open: bool,
}

/// Looks at the rights of the folder of secrets and of what is in it.
#[must_use]
pub fn exposed(disk: &dyn Disk, layout: &Layout) -> Exposed {
    let places = Places::of(layout);
    let granted = |path: &Path| Some((path.to_owned(), os::mode_of(path)?)).filter(|(_, mode)| mode & OTHERS != 0);
    let mut paths: Vec<_> = places.shared_folders().filter_map(granted).collect();
    let is_open = paths.len() == places.shared_folders().count();
    let names: BTreeSet<_> = disk.list(&places.shared).unwrap_or_default().into_iter().collect();
    paths.extend(names.iter().filter_map(|name| granted(&places.shared.join(name))));
    Exposed { paths, is_open }
}
