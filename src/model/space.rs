//! What is left of a file system, in numbers, and sizes as people read them.

/// The room on a file system, as it reports it to those who are not its administrator. A total of 0: it does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// How many bytes can still be written.
    pub free_bytes: u64,
    /// How many there are in all.
    pub total_bytes: u64,
    /// How many files can still be made.
    pub free_inodes: u64,
    /// How many there can be in all.
    pub total_inodes: u64,
}

/// Writes a number of bytes in a unit that people can compare: `52.4 KiB`.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >> shift > 0 {
            // One digit behind the point, cut off: what is short of a floor must not look as if it reached it.
            let tenths = (u128::from(bytes) * 10) >> shift;
            let (whole, tenth) = (tenths / 10, tenths % 10);
            return if tenth == 0 { format!("{whole} {unit}") } else { format!("{whole}.{tenth} {unit}") };
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::show_size;

    #[test]
    fn sizes_are_shown_in_their_unit_and_never_rounded_up() {
        for (bytes, shown) in [
            (0, "0 bytes"),
            (1_023, "1023 bytes"),
            (1_024, "1 KiB"),
            (53_657, "52.3 KiB"),
            ((64 << 20) - 1, "63.9 MiB"),
            (64 << 20, "64 MiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(show_size(bytes), shown);
        }
    }
}
