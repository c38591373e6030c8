//! Retention: now and then a device removes what was kept long enough. What the product keeps for ten minutes at least is kept for
//! seconds here: a round has a time that is so much later than the world's.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use aios::model::config::KEPT_AT_LEAST;
use aios::volume::disk::Disk;
use aios::volume::retention::{Terms, round};

use super::faults::{Faults, Kind};
use super::scheduler::{Scheduler, layout};
use super::world::World;

/// For how long files are kept where nothing takes long.
const KEPT: Duration = Duration::from_secs(10);
/// And where devices stand still or see what was: longer than they do, as ten minutes are.
const KEPT_LONGER: Duration = Duration::from_secs(90);

/// Returns for how long a world with these faults keeps its files.
fn keep(faults: &Faults) -> Duration {
    let slow = [Kind::LongPause, Kind::PausedDeath, Kind::Caches, Kind::VolumeClock, Kind::Errors];
    let is_slow =
        faults.lying_lock || faults.pause > 0 || faults.stale > 0 || slow.iter().any(|kind| faults.has(*kind));
    if is_slow { KEPT_LONGER } else { KEPT }
}

/// A round of a device, with a view of the disk of its own.
pub(crate) fn remove_what_is_old(world: &Rc<World>, scheduler: &Scheduler, disk: &dyn Disk) {
    let device = scheduler.machines[0].id.clone();
    let keep = keep(&world.faults.borrow());
    let Some(volume) = world.files.borrow().get(&layout().volume_id()).map(|file| Rc::clone(&file.bytes)) else {
        return;
    };
    world.check.borrow_mut().keep = keep;
    let terms = Terms {
        volume: String::from_utf8_lossy(&volume).trim().to_owned(),
        device,
        keep: KEPT_AT_LEAST + keep,
        keep_bytes: None,
        every: KEPT_AT_LEAST,
        thorough: world.one_in(2),
        now: world.wall() + KEPT_AT_LEAST,
    };
    // What fails is tried again in the next round.
    let _ = round(disk, &layout(), &terms, &|| false);
}

/// Returns whether a file in one of the folders that are cleaned up is of this run. A duplicate names the other run behind its own.
pub(crate) fn is_of_run(path: &Path, run: &str) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split(".duplicate-of.").next().is_some_and(|own| own.split('.').any(|part| part == run))
}
