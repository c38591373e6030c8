//! The faults, as data. Each seed draws its own mixture: every kind is on or off, so that some seeds are calm but for one
//! thing.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::rng::Rng;
use super::world::World;

/// A kind of fault that a seed may have. Crashes, short pauses, old listings, a full disk, lost events and a lock that lies are
/// drawn apart ([`Faults`]): they came first, and their histories stay as they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Any operation fails with any error, for one path, a folder or all, for one device or all, for a moment or longer.
    Errors,
    /// An operation happens and reports an error all the same.
    Unsaid,
    /// Files are found empty or cut in half.
    Damage,
    /// Devices stand still for up to three leases at any operation, also under an honest lock and in the middle of their starts, and
    /// two at once.
    LongPause,
    /// Devices die while they stand still.
    PausedDeath,
    /// Lease, heartbeat interval and slots differ between devices.
    Unequal,
    /// Some devices do not have a job yet, or no longer.
    Programs,
    /// Devices that come once and never again.
    Newcomers,
    /// People restart, drain, resume, limit, retry and forget.
    People,
    /// And cancel.
    Cancels,
    /// Job files are disabled, become invalid and disappear in mid-flight.
    JobFiles,
    /// Devices rely on file events and look into known files no more; a lost event costs them a scan.
    Events,
    /// A rename that replaces nothing is a look and a rename, or a link and its end, as where the system has no such rename.
    TwoSteps,
    /// Numbers of files that are gone are given to new ones, and the times of files are coarse.
    Reuse,
    /// The volume's own clock is set.
    VolumeClock,
    /// Attributes, missing files and listings are shown as they were up to a minute ago, also under the lock, as where
    /// attributes and failed lookups are cached. An open shows the content of a file, and a change of a name shows that.
    Caches,
    /// Everything loses its power, and what was not synced is gone or empty.
    Power,
    /// Commands run in containers, which go on when their device dies, and which its next life takes over.
    Containers,
    /// What was kept long enough is removed.
    Retention,
    /// A second machine takes a device's id over by force while the first may live.
    Force,
    /// Devices are updated one after the other, and a newer one writes a state that the older ones do not know.
    Versions,
}

impl Kind {
    /// All of them, with the word that `AIOS_SIM_FAULTS` has for each.
    const ALL: [(Self, &'static str); 21] = [
        (Self::Errors, "errors"),
        (Self::Unsaid, "unsaid"),
        (Self::Damage, "damage"),
        (Self::LongPause, "long-pause"),
        (Self::PausedDeath, "paused-death"),
        (Self::Unequal, "unequal"),
        (Self::Programs, "programs"),
        (Self::Newcomers, "newcomers"),
        (Self::People, "people"),
        (Self::Cancels, "cancels"),
        (Self::JobFiles, "job-files"),
        (Self::Events, "events"),
        (Self::TwoSteps, "two-steps"),
        (Self::Reuse, "reuse"),
        (Self::VolumeClock, "volume-clock"),
        (Self::Caches, "caches"),
        (Self::Power, "power"),
        (Self::Containers, "containers"),
        (Self::Retention, "retention"),
        (Self::Force, "force"),
        (Self::Versions, "versions"),
    ];

    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, word)| word)
    }

    /// Returns whether this run of the simulator has the kind at all: `AIOS_SIM_FAULTS` lists those that it has, by their words.
    fn is_on(self) -> bool {
        std::env::var("AIOS_SIM_FAULTS").map_or(true, |asked| asked.split(',').any(|word| word == self.word()))
    }
}

/// The rates of faults (once in so many operations; 0: never).
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    pub(crate) crash: u64,
    pub(crate) pause: u64,
    pub(crate) stale: u64,
    pub(crate) lying_lock: bool,
    pub(crate) full: u64,
    pub(crate) lost_events: u64,
    /// The number of devices, where it is so many, and of triggers that they find.
    pub(crate) crowd: Option<(usize, u32)>,
    pub(crate) rates: [u64; Kind::ALL.len()],
}

impl Faults {
    /// Draws for each further kind whether this seed has it, and how often: between once in `often` and once in eight times as many.
    pub(crate) fn draw_kinds(&mut self, seed: u64) {
        for (kind, word) in Kind::ALL {
            let mut chance = Rng::new(seed, word);
            let has = chance.one_in(3);
            let rate = often(kind) * chance.between(1, 8);
            // Where the lock lies, a rename that replaces nothing is all that keeps two devices apart.
            let is_hopeless = kind == Kind::TwoSteps && self.lying_lock;
            if has && kind.is_on() && !is_hopeless {
                self.rates[kind as usize] = rate;
            }
        }
    }

    /// The words of the further kinds that a seed has.
    pub(crate) fn words_of(seed: u64) -> Vec<&'static str> {
        let mut faults = Self::default();
        faults.draw_kinds(seed);
        Kind::ALL.into_iter().filter(|(kind, _)| faults.has(*kind)).map(|(_, word)| word).collect()
    }

    pub(crate) fn rate(&self, kind: Kind) -> u64 {
        self.rates[kind as usize]
    }

    pub(crate) fn has(&self, kind: Kind) -> bool {
        self.rate(kind) > 0
    }
}

fn often(kind: Kind) -> u64 {
    match kind {
        Kind::Errors | Kind::Unsaid => 400,
        Kind::LongPause | Kind::PausedDeath => 800,
        // Of what people do.
        Kind::Damage | Kind::Programs | Kind::People | Kind::Cancels | Kind::JobFiles | Kind::Retention => 2,
        Kind::VolumeClock | Kind::Power => 10,
        Kind::Caches => 20,
        // On or off.
        Kind::Unequal
        | Kind::Newcomers
        | Kind::Events
        | Kind::TwoSteps
        | Kind::Reuse
        | Kind::Containers
        | Kind::Force
        | Kind::Versions => 1,
    }
}

/// The operations of a disk, as far as an error concerns only one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    List,
    Stat,
    Read,
    Create,
    Rename,
    Replace,
    Touch,
    Remove,
    Folder,
    Lock,
    Append,
}

impl Op {
    /// Returns whether it changes anything.
    pub(crate) fn changes(self) -> bool {
        match self {
            Self::List | Self::Stat | Self::Read | Self::Lock => false,
            Self::Create | Self::Rename | Self::Replace | Self::Touch | Self::Remove | Self::Folder | Self::Append => {
                true
            }
        }
    }
}

/// Operations that fail for a while.
#[derive(Debug, Clone)]
pub(crate) struct Trouble {
    /// Whose; `None`: everybody's.
    device: Option<usize>,
    /// At and below this path.
    below: PathBuf,
    /// Only these; `None`: all.
    op: Option<Op>,
    errno: i32,
    until: Duration,
}

/// EACCES, EPERM, EIO, ESTALE, EROFS, ENOSPC, EDQUOT.
const ERRNOS: [i32; 7] = [13, 1, 5, 116, 30, 28, 122];

/// Any of the errors.
pub(crate) fn any_error(world: &World) -> io::Error {
    let errno = *world.chance.borrow_mut().pick(&ERRNOS);
    io::Error::from_raw_os_error(errno)
}

impl Trouble {
    /// Returns the fault that begins at this operation. It concerns at least the operation that met it.
    fn draw(chance: &mut Rng, now: Duration, device: usize, op: Op, path: &Path) -> Self {
        let below = match chance.below(6) {
            0 => PathBuf::from("/"),
            1 => path.parent().unwrap_or(path).to_owned(),
            _ => path.to_owned(),
        };
        let span = match chance.below(12) {
            0 => Duration::from_secs(3_600),
            1 => Duration::from_millis(chance.between(5_000, 30_000)),
            2..=4 => Duration::from_millis(chance.between(1, 5_000)),
            _ => Duration::ZERO,
        };
        Self {
            device: (!chance.one_in(4)).then_some(device),
            below,
            op: chance.one_in(2).then_some(op),
            errno: *chance.pick(&ERRNOS),
            until: now + span,
        }
    }

    /// One operation fails with EIO at this path for every device, until it is taken back.
    pub(crate) fn at(path: &Path, op: Op) -> Self {
        Self { device: None, below: path.to_owned(), op: Some(op), errno: ERRNOS[2], until: Duration::MAX }
    }

    fn concerns(&self, device: usize, op: Op, path: &Path) -> bool {
        self.device.is_none_or(|only| only == device)
            && self.op.is_none_or(|only| only == op)
            && path.starts_with(&self.below)
    }
}

/// Returns whether this operation fails: because of what began earlier, or begins now.
pub(crate) fn trouble(world: &World, device: usize, op: Op, path: &Path) -> io::Result<()> {
    let one_in = world.faults.borrow().rate(Kind::Errors);
    if one_in == 0 {
        return Ok(());
    }
    let now = world.now.get();
    let mut troubles = world.troubles.borrow_mut();
    troubles.retain(|trouble| trouble.until > now);
    if world.one_in(one_in) {
        troubles.push(Trouble::draw(&mut world.chance.borrow_mut(), now, device, op, path));
    }
    let met = troubles.iter().find(|trouble| trouble.concerns(device, op, path));
    met.map_or(Ok(()), |trouble| Err(io::Error::from_raw_os_error(trouble.errno)))
}
