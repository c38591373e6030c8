//! Keeps text from the TOML parser that would overflow the stack there.

/// The most dots beyond one a key that a text may have outside strings and comments.
const DOTS: usize = 500;

/// Where a text has more dotted keys than [`DOTS`] allows.
///
/// `toml_edit` bounds the parts of a key and the depth of brackets at 80 each but not their product, and it drops what
/// it read by recursion: 12 KB of `a.a.a…={a.a.a…={…` would overflow the stack and take every run of the device with
/// it. A key's parts are levels, and all of them but two show here as a dot that is not the first since the key began.
pub(super) fn too_many_dots(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let (mut at, mut dots, mut in_key) = (0, 0, 0_usize);
    let mut token_starts = true;
    while let Some(&byte) = bytes.get(at) {
        let rest = &bytes[at..];
        let mut length = 1;
        match byte {
            // A quote within a bare word begins no string, for toml_edit either.
            b'\'' | b'"' if token_starts => length = string_length(rest, byte),
            b'#' => length = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')).unwrap_or(rest.len()),
            b',' | b'[' | b'{' | b'=' | b'\n' => in_key = 0,
            b'.' => {
                in_key += 1;
                dots += usize::from(in_key > 1);
                if dots > DOTS {
                    return Some(at);
                }
            }
            _ => {}
        }
        token_starts =
            matches!(byte, b'.' | b'=' | b',' | b'[' | b']' | b'{' | b'}' | b' ' | b'\t' | b'\r' | b'\n') || length > 1;
        at += length;
    }
    None
}

/// How many bytes the string token takes that `rest` begins with; an unclosed one ends with its line or the text.
fn string_length(rest: &[u8], quote: u8) -> usize {
    let closing = [quote; 3];
    let long = rest.starts_with(&closing);
    let mut at = if long { 3 } else { 1 };
    while let Some(&byte) = rest.get(at) {
        match byte {
            b'\\' if quote == b'"' => at += if matches!(rest.get(at + 1), Some(b'\\' | b'"')) { 2 } else { 1 },
            b'\n' if !long => return at,
            _ if byte != quote => at += 1,
            _ if !long => return at + 1,
            _ if rest[at..].starts_with(&closing) => {
                // Up to two quotes may stand right before the closing three.
                let more = rest[at + 3..].iter().take(2).take_while(|byte| **byte == quote).count();
                return at + 3 + more;
            }
            _ => at += 1,
        }
    }
    rest.len()
}
