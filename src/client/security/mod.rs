//! Keys and users: who may use the HTTP API. The command line and the API change them with the same words.

use std::path::Path;

use ring::rand::{SecureRandom, SystemRandom};
use serde::de::DeserializeOwned;

use super::view::{PATIENCE, patiently};
use super::{Client, Code, Failure};
use crate::volume::disk::Guard;
use crate::volume::security;

pub mod keys;
pub mod tokens;
pub mod users;

/// Keeps others from changing keys and users.
pub(super) fn locked(client: &Client) -> Result<Guard, Failure> {
    security::prepare(&*client.disk, &client.layout)?;
    let held = || {
        let lock = client.layout.security_lock();
        let error = format!("{} has been locked by another process for {} s", lock.display(), PATIENCE.as_secs());
        Failure::new(Code::Volume, error, "see which process holds it: fuser -v")
    };
    let lock = |_| match security::lock(&*client.disk, &client.layout) {
        Ok(guard) => guard.ok_or(None),
        Err(error) => Err(Some(error.into())),
    };
    patiently(client, Option::is_none, lock).map_err(|failure| failure.unwrap_or_else(held))
}

/// All documents of a folder; what is wrong with others is said beside the answer.
pub(super) fn all<T: DeserializeOwned>(client: &Client, folder: &Path) -> Result<Vec<T>, Failure> {
    let (all, wrong) = security::read_all(&*client.disk, folder)?;
    for error in wrong {
        (client.note)(&error.to_string());
    }
    Ok(all)
}

/// Random bytes from the system.
///
/// # Errors
/// The system has none to give.
pub fn random<const N: usize>() -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| Failure::new(Code::Failed, "the system gives no random bytes", "see getrandom(2)"))?;
    Ok(bytes)
}

/// Bytes as lower-case letters and digits, 5 bits in each.
fn base32(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let mut text = String::new();
    let (mut bits, mut count) = (0_u32, 0);
    for byte in bytes {
        bits = (bits << 8 | u32::from(*byte)) & 0xfff;
        count += 8;
        while count >= 5 {
            count -= 5;
            text.push(char::from(DIGITS[(bits >> count & 31) as usize]));
        }
    }
    if count > 0 {
        text.push(char::from(DIGITS[(bits << (5 - count) & 31) as usize]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_five_bits_at_a_time() {
        assert_eq!(base32(&[0; 32]).len(), 52);
        assert_eq!(base32(&[0xff; 5]), "zzzzzzzz");
        assert_eq!(base32(&[0x08, 0x42, 0x10, 0x84, 0x21]), "11111111");
        assert_eq!(base32(&[0x01]), "04");
        let distinct: std::collections::BTreeSet<String> = (0..=255).map(|byte| base32(&[7, byte, 9])).collect();
        assert_eq!(distinct.len(), 256);
    }
}
