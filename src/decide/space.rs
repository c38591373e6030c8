//! The disk guard: below which floor of free space or inodes nothing new is claimed, so that what runs can still end well.

use std::fmt;

use super::explain::Seen;
use crate::model::space::{Space, show_size};

/// The largest floor that nobody asked for, bytes.
const FLOOR_BYTES: u64 = 64 << 20;
/// The largest floor of free inodes.
const FLOOR_INODES: u64 = 1_000;
/// No floor is larger than this part of what there is, unless somebody asked for it: 5 %.
const PART: u64 = 20;

/// What must stay free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Floor {
    /// Bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// The floor of a file system. `min_free`: how many bytes somebody asked for; 0 switches the guard off. What a file system does not
/// report has no floor.
#[must_use]
pub fn floor(space: &Space, min_free: Option<u64>) -> Floor {
    if min_free == Some(0) {
        return Floor { bytes: 0, inodes: 0 };
    }
    let bytes = if space.total_bytes == 0 { 0 } else { min_free.unwrap_or(FLOOR_BYTES.min(space.total_bytes / PART)) };
    Floor { bytes, inodes: FLOOR_INODES.min(space.total_inodes / PART) }
}

/// What there is too little of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage {
    /// Space.
    Bytes {
        /// What is left.
        free: u64,
        /// What must be.
        floor: u64,
    },
    /// Inodes: no file can be made, however much space is left.
    Inodes {
        /// What is left.
        free: u64,
        /// What must be.
        floor: u64,
    },
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes { free, floor } => {
                write!(f, "{} are free, the floor is {}", show_size(*free), show_size(*floor))
            }
            Self::Inodes { free, floor } => write!(f, "{free} inodes are free, the floor is {floor}"),
        }
    }
}

/// What keeps a device from new work on a file system with this space, if anything does.
#[must_use]
pub fn shortage(space: &Space, min_free: Option<u64>) -> Option<Shortage> {
    let Floor { bytes, inodes } = floor(space, min_free);
    if space.free_bytes < bytes {
        return Some(Shortage::Bytes { free: space.free_bytes, floor: bytes });
    }
    (space.free_inodes < inodes).then_some(Shortage::Inodes { free: space.free_inodes, floor: inodes })
}

/// Why none of these devices takes new work, if for want of space.
#[must_use]
pub(super) fn reason(able: &[&Seen]) -> Option<String> {
    let mut low = able.iter().filter(|device| !device.drained && device.low_on.is_some()).peekable();
    low.peek()?;
    let list: Vec<String> =
        low.map(|device| format!("{}: {}", device.device, device.low_on.as_deref().unwrap_or_default())).collect();
    Some(format!("no device that could take it has enough free space on Common's file system: {}", list.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::DeviceId;

    fn space(bytes: (u64, u64), inodes: (u64, u64)) -> Space {
        Space { free_bytes: bytes.0, total_bytes: bytes.1, free_inodes: inodes.0, total_inodes: inodes.1 }
    }

    #[test]
    fn the_floor_is_the_smaller_of_a_number_and_a_part_unless_somebody_asked() {
        let large = space((1 << 40, 1 << 40), (1 << 30, 1 << 30));
        assert_eq!(floor(&large, None), Floor { bytes: 64 << 20, inodes: 1_000 });
        assert_eq!(floor(&large, Some(7)), Floor { bytes: 7, inodes: 1_000 });
        let small = space((1 << 20, 1 << 20), (400, 400));
        assert_eq!(floor(&small, None), Floor { bytes: (1 << 20) / 20, inodes: 20 });
        assert_eq!(floor(&small, Some(1 << 30)).bytes, 1 << 30, "whoever asks for more than there is gets it");
        assert_eq!(floor(&small, Some(0)), Floor { bytes: 0, inodes: 0 });
        let silent = space((0, 0), (0, 0));
        for asked in [None, Some(1 << 20)] {
            assert_eq!(floor(&silent, asked), Floor { bytes: 0, inodes: 0 });
        }
    }

    #[test]
    fn what_is_below_the_floor_is_a_shortage_and_what_reaches_it_is_none() {
        let mib = 1 << 20;
        let bytes = |free| shortage(&space((free, 1_000 * mib), (100, 100)), None);
        assert_eq!(bytes(50 * mib), None);
        assert_eq!(bytes(50 * mib - 1), Some(Shortage::Bytes { free: 50 * mib - 1, floor: 50 * mib }));
        let inodes = |free| shortage(&space((mib, mib), (free, 1_000)), None);
        assert_eq!((inodes(50), inodes(49)), (None, Some(Shortage::Inodes { free: 49, floor: 50 })));
        for (free, total) in [(0, 0), (0, 19)] {
            assert_eq!(shortage(&space((mib, mib), (free, total)), None), None, "{free} of {total} inodes");
        }
        let full = space((0, mib), (0, 100));
        assert!(shortage(&full, None).is_some() && shortage(&full, Some(0)).is_none());
    }

    #[test]
    fn a_shortage_says_its_numbers() {
        let said = |space| shortage(&space, None).unwrap().to_string();
        assert_eq!(said(space((1 << 20, 1 << 30), (9, 9))), "1 MiB are free, the floor is 51.1 MiB");
        assert_eq!(said(space((1 << 30, 1 << 30), (9, 1_000_000))), "9 inodes are free, the floor is 1000");
    }

    #[test]
    fn a_wait_for_space_names_who_is_short_of_it() {
        let seen = |name: &str, low_on: Option<&str>, drained| Seen {
            device: DeviceId::new(name).unwrap(),
            alive: true,
            drained,
            low_on: low_on.map(str::to_owned),
            tags: std::collections::BTreeSet::new(),
            slots: 1,
            busy: 0,
            revision: 0,
        };
        let (a, b) = (seen("a", Some("1 MiB"), false), seen("b", Some("2 MiB"), true));
        assert!(reason(&[&a, &b]).unwrap().ends_with(": a: 1 MiB"));
        assert_eq!(reason(&[&b]), None, "it is drained before all");
    }
}
