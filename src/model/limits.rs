//! What runs may use: the bounds of each limit, which of job and device counts, and how it is held outside containers.
//!
//! A job's own limit is a promise: where it cannot be held, the job does not start. A device's default is a rule of the house: where
//! it cannot be held, the device says so and its jobs start all the same.

use std::ops::RangeInclusive;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::container::Limits;
use super::message::quoted;
use super::space::show_size;
use super::time::{SIZE_RULE, parse_size};

/// What a device has that may make cgroups: the tag that jobs need whose limits nothing else holds.
pub const CGROUP_TAG: &str = "cgroup";
/// The least memory a limit can name, bytes: an engine gives no container less.
pub const LEAST_MEMORY: u64 = 6 << 20;
/// How many CPUs a limit can name.
pub const CPUS: RangeInclusive<f64> = 0.01..=1024.0;
/// How many processes and threads a limit can name.
pub const PIDS: RangeInclusive<i64> = 1..=1_000_000;
/// How many slots a device can have.
pub const SLOTS: RangeInclusive<u32> = 0..=100_000;

impl Limits {
    /// Each limit of these, and where there is none, the other's.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            memory: self.memory.or(other.memory),
            cpu_millis: self.cpu_millis.or(other.cpu_millis),
            pids: self.pids.or(other.pids),
        }
    }

    /// Whether there is no limit.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Whether one of them is held by nothing but a cgroup.
    #[must_use]
    pub fn need_cgroups(self) -> bool {
        self.cpu_millis.is_some() || self.pids.is_some()
    }

    /// Those of them that can be held outside containers.
    #[must_use]
    pub fn where_held(self, cgroups: bool) -> Self {
        if cgroups { self } else { Self { memory: self.memory, ..Self::default() } }
    }

    /// As people read them, such as `memory 512 MiB, cpus 1.5, pids none`.
    #[must_use]
    pub fn show(self) -> String {
        let none = || "none".to_owned();
        let memory = self.memory.map_or_else(none, show_size);
        let cpus = self.cpu_millis.map_or_else(none, |millis| in_cpus(millis).to_string());
        let pids = self.pids.map_or_else(none, |pids| pids.to_string());
        format!("memory {memory}, cpus {cpus}, pids {pids}")
    }
}

/// How the limits of a process of this machine are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// There are none.
    Free,
    /// By a cgroup of its own.
    Cgroup,
    /// Its memory by `RLIMIT_AS`: the address space of each of its processes, bytes.
    AddressSpace(u64),
    /// Not at all: only a cgroup could, and none can be made.
    Unheld,
}

impl Way {
    /// The way for these limits; `cgroups`: they can be made here. What counts processes for each user (`RLIMIT_NPROC`) or processor
    /// seconds (`RLIMIT_CPU`) holds something else than was asked for, and is not used.
    #[must_use]
    pub fn of(limits: Limits, cgroups: bool) -> Self {
        match (limits.memory, cgroups) {
            _ if limits.is_none() => Self::Free,
            (_, true) => Self::Cgroup,
            (Some(memory), false) if !limits.need_cgroups() => Self::AddressSpace(memory),
            (_, false) => Self::Unheld,
        }
    }
}

/// What people set of a device while it runs. Where nothing is set, it is as the device was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Resources {
    /// How much it runs at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// The default limit of memory, bytes; `Some(None)`: none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "said")]
    pub memory: Option<Option<u64>>,
    /// The default limit of processor time, in thousandths of one CPU, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "cpus", with = "said_cpus")]
    pub cpu_millis: Option<Option<u32>>,
    /// The default limit of processes and threads, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "said")]
    pub pids: Option<Option<u32>>,
}

impl Resources {
    /// Whether nothing is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// These, changed by later ones.
    #[must_use]
    pub fn then(self, later: Self) -> Self {
        Self {
            slots: later.slots.or(self.slots),
            memory: later.memory.or(self.memory),
            cpu_millis: later.cpu_millis.or(self.cpu_millis),
            pids: later.pids.or(self.pids),
        }
    }

    /// The default limits of a device that was started with these.
    #[must_use]
    pub fn limits(self, started_with: Limits) -> Limits {
        Limits {
            memory: self.memory.unwrap_or(started_with.memory),
            cpu_millis: self.cpu_millis.unwrap_or(started_with.cpu_millis),
            pids: self.pids.unwrap_or(started_with.pids),
        }
    }
}

/// Reads a limit of memory, in bytes.
///
/// # Errors
/// What was expected.
pub fn read_memory(text: &str) -> Result<u64, String> {
    let size = parse_size(text).filter(|size| (LEAST_MEMORY..=i64::MAX.unsigned_abs()).contains(size));
    size.ok_or_else(|| format!("found {}, expected {SIZE_RULE}, at least 6m", quoted(text)))
}

/// Reads a number of CPUs, in thousandths of one.
///
/// # Errors
/// What was expected.
pub fn read_cpus(text: &str) -> Result<u32, String> {
    let cpus = text.parse().ok().and_then(in_millis);
    cpus.ok_or_else(|| format!("found {}, expected a number from {} to {}", quoted(text), CPUS.start(), CPUS.end()))
}

/// Reads a number of processes and threads.
///
/// # Errors
/// What was expected.
pub fn read_pids(text: &str) -> Result<u32, String> {
    let pids = text.parse().ok().filter(|pids| PIDS.contains(pids)).and_then(|pids| u32::try_from(pids).ok());
    pids.ok_or_else(|| format!("found {}, expected a number from {} to {}", quoted(text), PIDS.start(), PIDS.end()))
}

/// Reads a number of slots.
///
/// # Errors
/// What was expected.
pub fn read_slots(text: &str) -> Result<u32, String> {
    let slots = text.parse().ok().filter(|slots| SLOTS.contains(slots));
    slots.ok_or_else(|| format!("found {}, expected a number from {} to {}", quoted(text), SLOTS.start(), SLOTS.end()))
}

/// Thousandths of one CPU; `None`: no limit can be as much or as little.
#[must_use]
pub fn in_millis(cpus: f64) -> Option<u32> {
    CPUS.contains(&cpus).then(|| (cpus * 1_000.0).round() as u32)
}

/// A number of CPUs from thousandths of one.
#[must_use]
pub fn in_cpus(millis: u32) -> f64 {
    f64::from(millis) / 1_000.0
}

/// A key that is there says something, and be it `null`.
fn said<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(from).map(Some)
}

/// The same for CPUs, which are thousandths of one inside this program only.
mod said_cpus {
    use super::{Deserializer, Serializer, cpus};

    #[expect(clippy::ref_option, reason = "serde calls it with a reference")]
    pub(super) fn serialize<S: Serializer>(millis: &Option<Option<u32>>, to: S) -> Result<S::Ok, S::Error> {
        cpus::serialize(&millis.flatten(), to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<u32>>, D::Error> {
        cpus::deserialize(from).map(Some)
    }
}

/// A number of CPUs, or none.
pub(super) mod cpus {
    use super::{Deserialize, Deserializer, Serialize, Serializer, in_cpus, in_millis};

    #[expect(clippy::ref_option, reason = "serde calls it with a reference")]
    pub(in crate::model) fn serialize<S: Serializer>(millis: &Option<u32>, to: S) -> Result<S::Ok, S::Error> {
        millis.map(in_cpus).serialize(to)
    }

    pub(in crate::model) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
        let cpus = Option::<f64>::deserialize(from)?;
        let millis = |cpus| in_millis(cpus).ok_or_else(|| serde::de::Error::custom(format!("{cpus} CPUs")));
        cpus.map(millis).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Limits = Limits { memory: None, cpu_millis: None, pids: None };

    #[test]
    fn how_limits_are_held_outside_containers() {
        let memory = Limits { memory: Some(7 << 20), ..NONE };
        let cpus = Limits { cpu_millis: Some(10), ..NONE };
        let pids = Limits { pids: Some(1), ..NONE };
        let table = [
            (NONE, Way::Free, Way::Free),
            (memory, Way::Cgroup, Way::AddressSpace(7 << 20)),
            (cpus, Way::Cgroup, Way::Unheld),
            (pids, Way::Cgroup, Way::Unheld),
            (memory.or(cpus), Way::Cgroup, Way::Unheld),
            (memory.or(cpus).or(pids), Way::Cgroup, Way::Unheld),
        ];
        for (limits, with, without) in table {
            assert_eq!((Way::of(limits, true), Way::of(limits, false)), (with, without), "{limits:?}");
            assert_ne!(Way::of(limits.where_held(false), false), Way::Unheld, "what is left can be held: {limits:?}");
            assert_eq!(limits.where_held(true), limits);
        }
    }

    #[test]
    fn a_jobs_own_limit_counts_before_its_devices() {
        let own = Limits { memory: Some(1), pids: Some(2), ..NONE };
        let device = Limits { memory: Some(9), cpu_millis: Some(8), pids: None };
        assert_eq!(own.or(device), Limits { memory: Some(1), cpu_millis: Some(8), pids: Some(2) });
        assert_eq!(NONE.or(device), device);
    }

    #[test]
    fn what_is_set_last_counts_and_none_is_something() {
        let first = Resources { slots: Some(3), memory: Some(Some(5)), ..Resources::default() };
        let later = Resources { memory: Some(None), pids: Some(Some(7)), ..Resources::default() };
        let both = first.then(later);
        assert_eq!(both, Resources { slots: Some(3), memory: Some(None), cpu_millis: None, pids: Some(Some(7)) });
        let started_with = Limits { memory: Some(1), cpu_millis: Some(2), pids: Some(3) };
        assert_eq!(both.limits(started_with), Limits { memory: None, cpu_millis: Some(2), pids: Some(7) });
        assert_eq!(Resources::default().limits(started_with), started_with);
    }

    #[test]
    fn what_is_set_is_written_as_people_say_it() {
        let set = Resources { slots: None, memory: Some(None), cpu_millis: Some(Some(1_500)), pids: Some(None) };
        let text = serde_json::to_string(&set).unwrap();
        assert_eq!(text, r#"{"memory":null,"cpus":1.5,"pids":null}"#);
        assert_eq!(serde_json::from_str::<Resources>(&text).unwrap(), set);
        assert_eq!(serde_json::from_str::<Resources>("{}").unwrap(), Resources::default());
        assert!(serde_json::from_str::<Resources>(r#"{"cpus":0.001}"#).is_err());
        let limits = Limits { memory: Some(1 << 20), cpu_millis: Some(250), pids: None };
        assert_eq!(serde_json::to_string(&limits).unwrap(), r#"{"memory":1048576,"cpus":0.25,"pids":null}"#);
        assert_eq!(limits.show(), "memory 1 MiB, cpus 0.25, pids none");
    }

    #[test]
    fn limits_are_read_within_their_bounds() {
        assert_eq!((read_memory("6m"), read_cpus("1.5"), read_pids("7")), (Ok(6 << 20), Ok(1_500), Ok(7)));
        assert_eq!((read_slots("0"), read_cpus("0.01")), (Ok(0), Ok(10)));
        for bad in ["5m", "", "lots", "-1"] {
            assert!(read_memory(bad).is_err_and(|error| error.contains("at least 6m")), "{bad}");
        }
        for bad in ["0", "0.001", "1025", "NaN", "inf", "x"] {
            assert!(read_cpus(bad).is_err_and(|error| error.contains("0.01 to 1024")), "{bad}");
        }
        assert!(read_pids("0").is_err() && read_pids("1000001").is_err() && read_slots("100001").is_err());
    }
}
