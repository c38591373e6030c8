//! Each look on a disk that is as it should be, and on one that is not.
#![expect(clippy::disallowed_methods, reason = "a disk that takes its time is one of the faults")]

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::rc::Rc;

use super::super::disk::{Guard, Meta};
use super::*;
use crate::model::space::Space;

/// What a disk does wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    SharesLocks,
    KeepsLocks,
    RenameReplaces,
    ReplaceInSteps,
    WritesInPlace,
    ReadOnly,
}

struct Disturbed {
    disk: OsDisk,
    fault: Fault,
}

impl Disturbed {
    fn new(fault: Fault) -> Self {
        Self { disk: OsDisk::new(), fault }
    }

    fn write(&self) -> io::Result<()> {
        if self.fault == Fault::ReadOnly { Err(ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(()) }
    }
}

impl Disk for Disturbed {
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.write().and_then(|()| self.disk.link(from, to))
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        self.disk.list(folder)
    }
    fn stat(&self, path: &Path) -> io::Result<Meta> {
        self.disk.stat(path)
    }
    fn read(&self, path: &Path, limit: u64) -> io::Result<(Vec<u8>, Meta)> {
        self.disk.read(path, limit)
    }
    fn read_head(&self, path: &Path, limit: usize) -> io::Result<Vec<u8>> {
        self.disk.read_head(path, limit)
    }
    fn create(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.write().and_then(|()| self.disk.create(path, bytes))
    }
    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_folder(path)
    }
    fn copy(&self, from: &Path, to: &Path, limit: u64) -> io::Result<u64> {
        self.write().and_then(|()| self.disk.copy(from, to, limit))
    }
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.fault == Fault::RenameReplaces { self.disk.replace(from, to) } else { self.disk.rename_new(from, to) }
    }
    fn replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.disk.stat(to).is_err() {
            return self.disk.replace(from, to);
        }
        match self.fault {
            Fault::ReplaceInSteps => {
                self.disk.remove(to)?;
                std::thread::sleep(Duration::from_millis(1));
            }
            Fault::WritesInPlace => {
                let bytes = self.disk.read(from, 1 << 20)?.0;
                self.disk.cut(to, 0)?;
                for part in bytes.chunks(DOCUMENT / 4) {
                    std::thread::sleep(Duration::from_millis(1));
                    self.disk.append(to, part)?;
                }
                return self.disk.remove(from);
            }
            Fault::None | Fault::SharesLocks | Fault::KeepsLocks | Fault::RenameReplaces | Fault::ReadOnly => {}
        }
        self.disk.replace(from, to)
    }
    fn touch(&self, path: &Path) -> io::Result<()> {
        self.disk.touch(path)
    }
    fn boot(&self) -> Duration {
        self.disk.boot()
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn make_folders(&self, path: &Path) -> io::Result<()> {
        self.write().and_then(|()| self.disk.make_folders(path))
    }

    fn make_folder_with(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.write().and_then(|()| self.disk.make_folder_with(path, mode))
    }
    fn lock(&self, path: &Path) -> io::Result<Option<Guard>> {
        match self.fault {
            Fault::SharesLocks => Ok(Some(Box::new(()))),
            Fault::KeepsLocks => Ok(self.disk.lock(path)?.map(|guard| {
                std::mem::forget(guard);
                Box::new(()) as Guard
            })),
            Fault::None | Fault::RenameReplaces | Fault::ReplaceInSteps | Fault::WritesInPlace | Fault::ReadOnly => {
                self.disk.lock(path)
            }
        }
    }
    fn open_log(&self, path: &Path) -> io::Result<Option<File>> {
        self.disk.open_log(path)
    }

    fn open_log_again(&self, path: &Path) -> io::Result<Option<File>> {
        self.disk.open_log_again(path)
    }
    fn cut(&self, path: &Path, limit: u64) -> io::Result<u64> {
        self.disk.cut(path, limit)
    }
    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.disk.append(path, bytes)
    }
    fn space(&self, path: &Path) -> io::Result<Space> {
        self.disk.space(path)
    }
}

/// A rival with a handle of its own; on one machine that is as good as a process of its own.
struct Other {
    disk: Rc<dyn Disk>,
    path: PathBuf,
    guard: Option<Guard>,
}

impl Rival for Other {
    fn lock(&mut self) -> Result<bool, Trouble> {
        self.guard = self.disk.lock(&self.path).on("lock", &self.path)?;
        Ok(self.guard.is_some())
    }
    fn unlock(&mut self) -> Result<(), Trouble> {
        self.guard = None;
        Ok(())
    }
    fn die(&mut self) -> Result<(), Trouble> {
        self.unlock()
    }
}

fn names() -> Temporary {
    Temporary::new(Session::from_random(7))
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// A fault's words; what could not be tried has none.
fn said<T: std::fmt::Debug>(told: Result<T, Trouble>) -> String {
    match told.unwrap_err() {
        Trouble::Fault(what) => what,
        Trouble::Untried { .. } => String::new(),
    }
}

fn is_untried(trouble: &Trouble) -> bool {
    match trouble {
        Trouble::Fault(_) => false,
        Trouble::Untried { hint, .. } => !hint.is_empty(),
    }
}

#[test]
fn locks_that_two_can_hold_and_locks_that_stay_are_told_from_good_ones() {
    let look = |own: Fault, other: Fault| {
        let home = folder();
        let path = home.path().join("lock");
        let mut rival = Other { disk: Rc::new(Disturbed::new(other)), path: path.clone(), guard: None };
        locks_exclude(&Disturbed::new(own), &path, &mut rival)
    };
    assert_eq!(look(Fault::None, Fault::None), Ok(()));
    for (own, other) in [(Fault::SharesLocks, Fault::None), (Fault::None, Fault::SharesLocks)] {
        assert!(said(look(own, other)).contains("two processes held one lock"));
    }
    assert!(said(look(Fault::KeepsLocks, Fault::None)).contains("given back was refused"));
    assert!(said(look(Fault::None, Fault::KeepsLocks)).contains("refused"));
}

#[test]
fn a_rename_that_replaces_is_told() {
    assert_eq!(renames_refuse(&OsDisk::new(), folder().path()), Ok(true));
    let told = renames_refuse(&Disturbed::new(Fault::RenameReplaces), folder().path());
    assert_eq!(told, fault("a rename replaced a file that was there"));
    let told = renames_refuse(&Disturbed::new(Fault::ReadOnly), folder().path());
    assert!(is_untried(&told.unwrap_err()), "what cannot be tried is no rename that replaces");
}

#[test]
fn a_reader_that_finds_nothing_or_half_a_file_is_told() {
    let look = |fault: Fault| {
        let home = folder();
        replaces_whole(&Disturbed::new(fault), &mut names(), &home.path().join("document"))
    };
    assert!(look(Fault::None).unwrap() > 0);
    assert!(said(look(Fault::ReplaceInSteps)).contains("did not find it"));
    assert!(said(look(Fault::WritesInPlace)).contains("saw half of it"));
    assert!(is_untried(&look(Fault::ReadOnly).unwrap_err()));
}

#[test]
fn an_event_comes_or_its_absence_is_told() {
    let home = folder();
    let layout = Layout { common: home.path().to_owned(), programs: home.path().join("Programs") };
    let disk = OsDisk::new();
    let scratch = Scratch::new(&disk, &layout, &Session::from_random(1)).unwrap();
    let pause = || std::thread::sleep(Duration::from_millis(1));
    let patience = Duration::from_secs(20);
    assert_eq!(events_arrive(&disk, &mut names(), &scratch, patience, pause), Ok(()));
    // What lies there already gives none.
    let again = events_arrive(&disk, &mut names(), &scratch, Duration::ZERO, pause);
    assert!(said(again).contains("no file event"));
}

#[test]
fn scratch_folders_go_with_their_probe_and_old_ones_with_the_next() {
    let home = folder();
    let layout = Layout { common: home.path().to_owned(), programs: home.path().join("Programs") };
    let disk = OsDisk::new();
    let scratch = Scratch::new(&disk, &layout, &Session::from_random(1)).unwrap();
    disk.create(&scratch.path("x"), b"x").unwrap();
    assert_eq!(disk.list(home.path()).unwrap().len(), 1);
    let other = Scratch::new(&disk, &layout, &Session::from_random(2)).unwrap();
    assert_eq!(disk.list(home.path()).unwrap().len(), 2, "one that is not old stays");
    other.remove().unwrap();
    // A folder that stays behind, as if its probe had been killed.
    std::mem::forget(Scratch::new(&disk, &layout, &Session::from_random(3)).unwrap());
    let any_age = TimeDelta::seconds(-1);
    let next = Scratch::sweeping(&disk, &layout, &Session::from_random(4), any_age).unwrap();
    assert_eq!(disk.list(home.path()).unwrap(), [next.path("").file_name().unwrap()]);
    next.remove().unwrap();
    drop(scratch);
    assert_eq!(disk.list(home.path()).unwrap(), Vec::<OsString>::new());
    assert!(Scratch::new(&Disturbed::new(Fault::ReadOnly), &layout, &Session::from_random(1)).is_err());
}

#[test]
fn a_folder_is_written_into_and_left_as_it_was() {
    let home = folder();
    let look = |fault: Fault, path: &Path| can_write(&Disturbed::new(fault), &mut names(), path);
    assert!(look(Fault::None, home.path()).unwrap());
    assert_eq!(OsDisk::new().list(home.path()).unwrap(), Vec::<OsString>::new());
    assert!(!look(Fault::None, &home.path().join("no")).unwrap());
    let error = look(Fault::ReadOnly, home.path()).unwrap_err();
    assert!(error.to_string().starts_with("cannot write into") && error.hint().contains("read-only"));
}
