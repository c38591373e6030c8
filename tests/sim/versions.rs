//! Devices of two versions on one volume. The newer program writes a state of the next schema, which the older one refuses. There is
//! one program here: the disk of a newer device shows it that state as one of its own schema, and writes what it commits as the next.

use std::borrow::Cow;

/// How a state begins, by version. Both are equally long, so that a file has the same size for each.
const BEGINS: [&[u8]; 2] = [b"{\"schema\":1,\"revision\":", b"{\"schema\":2,\"revision\":"];

/// Returns what a newer device reads.
pub(crate) fn read_by_newer(bytes: &[u8]) -> Cow<'_, [u8]> {
    translate(bytes, BEGINS[1], BEGINS[0])
}

/// Returns what a newer device writes.
pub(crate) fn written_by_newer(bytes: &[u8]) -> Cow<'_, [u8]> {
    translate(bytes, BEGINS[0], BEGINS[1])
}

/// Returns whether an older device understands a state of this schema.
pub(crate) fn is_known_to_older(schema: &serde_json::Value) -> bool {
    *schema == 1
}

fn translate<'a>(bytes: &'a [u8], from: &[u8], to: &[u8]) -> Cow<'a, [u8]> {
    match bytes.strip_prefix(from) {
        Some(rest) => Cow::Owned([to, rest].concat()),
        None => Cow::Borrowed(bytes),
    }
}
