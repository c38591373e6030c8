//! Job files on a disk that fails: what is known of them stays in force.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use aios::decide::catalog::Known;
use aios::model::ids::JobName;
use aios::volume::programs::Programs;

use super::check::Checker;
use super::disk::SimDisk;
use super::faults::{Faults, Kind, Op, Trouble};
use super::scheduler::layout;
use super::world::World;

/// One device's view of `Programs/`, and the world that it lies in.
struct Folder {
    world: Rc<World>,
    disk: SimDisk,
    programs: Programs,
    now: Duration,
}

impl Folder {
    fn new() -> Self {
        let world = Rc::new(World::new(1, Checker::default(), &Faults::default()));
        world.make_folders(&layout().programs);
        world.faults.borrow_mut().rates[Kind::Errors as usize] = u64::MAX;
        let disk = SimDisk::new(&world, 16, 0, &Rc::new(Cell::new(false)));
        Self { world, disk, programs: Programs::default(), now: Duration::ZERO }
    }

    fn write(&self, path: &str, text: &str) {
        self.world.put(Path::new(path), text.as_bytes().to_vec());
    }

    /// Only this operation fails, at this path.
    fn fails(&self, op: Op, path: &str) {
        *self.world.troubles.borrow_mut() = vec![Trouble::at(Path::new(path), op)];
    }

    /// Scans, and once more when what changed has been still for long enough.
    fn scan(&mut self) {
        for _ in 0..2 {
            self.now += Duration::from_secs(1);
            self.programs.scan(&self.disk, &layout(), self.now).unwrap();
        }
    }

    /// Returns the number of retries of a job with a good definition.
    fn retries(&self, job: &str) -> Option<u32> {
        match self.programs.catalog().look_up(&JobName::new(job).unwrap()) {
            Known::Good(job) => Some(job.retries),
            Known::Broken => None,
            Known::Unknown => panic!("{job} has a file and is unknown"),
        }
    }

    fn unread(&self) -> Option<&str> {
        self.programs.unread().map(|unread| unread.file.as_str())
    }
}

#[test]
fn a_job_file_that_cannot_be_read_keeps_its_job_and_is_read_at_a_later_scan() {
    for op in [Op::Stat, Op::Read] {
        let mut folder = Folder::new();
        folder.write("/p/old.toml", "command = [\"x\"]\nretries = 1\n");
        folder.scan();
        folder.write("/p/old.toml", "command = [\"x\"]\nretries = 2\n");
        folder.fails(op, "/p/old.toml");
        folder.scan();
        assert_eq!((folder.retries("old"), folder.unread()), (Some(1), Some("old.toml")), "{op:?}");
        assert_eq!(folder.programs.next_settle(), None, "it waits for the next scan");
        folder.write("/p/new.toml", "command = [\"x\"]\nretries = 3\n");
        folder.fails(op, "/p/new.toml");
        folder.scan();
        assert_eq!((folder.retries("old"), folder.retries("new")), (Some(2), None), "{op:?}");
        assert_eq!((folder.unread(), folder.programs.next_settle()), (Some("new.toml"), None));
        folder.world.troubles.borrow_mut().clear();
        folder.scan();
        assert_eq!((folder.retries("new"), folder.unread()), (Some(3), None), "{op:?}");
    }
}
