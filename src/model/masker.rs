//! Masking: the values of secrets in bytes that were meant for somebody's eyes.
//!
//! Each byte of a known value becomes a `*`, so that lengths stay. Known are each line of a value and, as programs like to hand
//! them on so, its Base64 forms, also inside of a longer text that was encoded. What is shorter than [`SHORTEST`] bytes is left
//! as it is: it stands everywhere. Values stay in memory, and in no message.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet::{self, Alphabet};
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};
use serde_json::value::RawValue;

use super::trigger::Json;

/// The shortest that is masked, bytes.
pub const SHORTEST: usize = 4;
/// The shortest value whose Base64 forms are masked, bytes.
pub const SHORTEST_ENCODED: usize = 8;
/// After how many characters tools break lines of Base64: MIME and coreutils, PEM and OpenSSL.
const WRAPS: [usize; 2] = [76, 64];
const MASK: u8 = b'*';

/// Knows values, and masks them. The default knows none.
#[derive(Clone)]
pub struct Masker {
    /// What is masked, in order, each at least [`SHORTEST`] bytes long.
    needles: Vec<Vec<u8>>,
    /// The bytes that begin one.
    begins: [bool; 256],
    longest: usize,
}

impl Default for Masker {
    fn default() -> Self {
        Self { needles: Vec::new(), begins: [false; 256], longest: 0 }
    }
}

impl fmt::Debug for Masker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Masker").finish_non_exhaustive()
    }
}

impl Masker {
    /// A masker of these values.
    #[must_use]
    pub fn new<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let mut needles = Vec::new();
        for value in values {
            add_lines(value, &mut needles);
            if value.len() >= SHORTEST_ENCODED {
                add_base64(value.as_bytes(), &mut needles);
            }
        }
        // What is nothing but masks hides nothing.
        needles.retain(|needle| needle.len() >= SHORTEST && needle.iter().any(|byte| *byte != MASK));
        needles.sort_unstable();
        needles.dedup();
        let mut begins = [false; 256];
        for needle in &needles {
            begins[usize::from(needle[0])] = true;
        }
        let longest = needles.iter().map(Vec::len).max().unwrap_or(0);
        Self { needles, begins, longest }
    }

    /// Whether it knows nothing that it could mask.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.needles.is_empty()
    }

    /// Masks every known value in these bytes. One of which only a part is there stays: what comes in pieces goes through a
    /// [`Stream`].
    pub fn mask(&self, bytes: &mut [u8]) {
        if !self.is_empty() {
            self.sweep(bytes, bytes.len(), 0);
        }
    }

    /// Masks every known value in a text.
    #[must_use]
    pub fn mask_text(&self, text: String) -> String {
        if self.is_empty() {
            return text;
        }
        let mut bytes = text.into_bytes();
        self.mask(&mut bytes);
        // Values are text, so that they begin and end where characters do.
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Masks every known value in the strings and keys of a JSON document, however they are escaped there; a number that holds one
    /// becomes a string. Everything else stays as it was written. `None`: one stands there across several of them, or could.
    #[must_use]
    pub fn mask_json(&self, json: Json) -> Option<Json> {
        if self.is_empty() {
            return Some(json);
        }
        let mut masked = String::with_capacity(json.text().len());
        for token in tokens(json.text()) {
            let plain = match token.as_bytes().first() {
                Some(b'"') => serde_json::from_str(token).ok()?,
                Some(b'-' | b'0'..=b'9') => token.to_owned(),
                Some(_) | None => String::new(),
            };
            let hidden = self.mask_text(plain.clone());
            if hidden == plain {
                masked.push_str(token);
            } else {
                masked.push_str(&serde_json::Value::from(hidden).to_string());
            }
        }
        if self.finds(masked.as_bytes()) {
            return None;
        }
        RawValue::from_string(masked).ok().map(Json::from)
    }

    /// Whether a known value stands in these bytes.
    fn finds(&self, bytes: &[u8]) -> bool {
        (0..bytes.len()).any(|at| self.longest_at(&bytes[at..]).is_some())
    }

    /// Masks what begins before `decided`, and of an earlier one the first `owed` bytes; returns how much of what begins there lies
    /// behind it.
    fn sweep(&self, bytes: &mut [u8], decided: usize, owed: usize) -> usize {
        let mut until = owed;
        for at in 0..decided {
            if let Some(length) = self.longest_at(&bytes[at..]) {
                until = until.max(at + length);
            }
            // Nothing that begins later looks back at it: so also those are found that overlap.
            if at < until {
                bytes[at] = MASK;
            }
        }
        until.saturating_sub(decided)
    }

    /// The length of the longest known value that these bytes begin with.
    fn longest_at(&self, bytes: &[u8]) -> Option<usize> {
        let head = bytes.get(..SHORTEST).filter(|head| self.begins[usize::from(head[0])])?;
        let from = self.needles.partition_point(|needle| &needle[..SHORTEST] < head);
        let alike = self.needles[from..].iter().take_while(|needle| needle.starts_with(head));
        alike.filter(|needle| bytes.starts_with(needle)).map(Vec::len).max()
    }

    /// From where on it takes what follows to know whether a known value begins there.
    fn undecided(&self, bytes: &[u8]) -> usize {
        let from = bytes.len().saturating_sub(self.longest.saturating_sub(1));
        (from..bytes.len()).find(|at| self.may_go_on(&bytes[*at..])).unwrap_or(bytes.len())
    }

    /// Whether these bytes, of which there is one at least, are the beginning of something known that is longer.
    fn may_go_on(&self, bytes: &[u8]) -> bool {
        if !self.begins[usize::from(bytes[0])] {
            return false;
        }
        let from = self.needles.partition_point(|needle| needle.as_slice() < bytes);
        // The first of them may be the very same.
        self.needles[from..].iter().take(2).any(|needle| needle.len() > bytes.len() && needle.starts_with(bytes))
    }
}

/// Masks what comes in pieces of any size. It holds back what may be the beginning of a known value, and nothing else.
#[derive(Debug)]
pub struct Stream {
    masker: Arc<Masker>,
    held: Vec<u8>,
    /// How much of what is held belongs to a value that began before it.
    owed: usize,
}

impl Stream {
    /// A stream that has seen nothing yet.
    #[must_use]
    pub fn new(masker: Arc<Masker>) -> Self {
        Self { masker, held: Vec::new(), owed: 0 }
    }

    /// Takes the next piece; returns what can be shown by now.
    #[must_use]
    pub fn pass(&mut self, piece: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(piece);
        self.release(self.masker.undecided(&self.held))
    }

    /// What is left when nothing more comes.
    #[must_use]
    pub fn rest(&mut self) -> Vec<u8> {
        self.release(self.held.len())
    }

    fn release(&mut self, decided: usize) -> Vec<u8> {
        self.owed = self.masker.sweep(&mut self.held, decided, self.owed);
        let kept = self.held.split_off(decided);
        std::mem::replace(&mut self.held, kept)
    }
}

/// The lines of a value; all of it, if no line of it could be masked.
fn add_lines(value: &str, needles: &mut Vec<Vec<u8>>) {
    let before = needles.len();
    for line in value.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)) {
        // As the function runner tells errors: what cannot be printed is a space, and of spaces there is one.
        let printable: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let told = printable.split_whitespace().collect::<Vec<_>>().join(" ");
        needles.extend(
            [line, &told].into_iter().filter(|line| line.len() >= SHORTEST).map(|line| line.as_bytes().to_vec()),
        );
    }
    if needles.len() == before {
        needles.push(value.as_bytes().to_vec());
    }
}

/// What Base64 makes of a value, wherever in an encoded text it stands: of the characters at its ends, which depend on its
/// neighbours too, there is none.
fn add_base64(value: &[u8], needles: &mut Vec<Vec<u8>>) {
    for alphabet in [&alphabet::STANDARD, &alphabet::URL_SAFE] {
        for before in 0..3 {
            let encoded = encode(alphabet, &[&[0; 2][..before], value].concat());
            let first = (before * 8).div_ceil(6);
            let whole = (before + value.len()) * 8 / 6;
            needles.push(encoded[first..whole].to_vec());
        }
        // With nothing around it, also its last character is its own, and tools may break it into lines.
        let alone = encode(alphabet, value);
        for width in WRAPS.into_iter().filter(|width| alone.len() > *width) {
            needles.extend(alone.chunks(width).filter(|line| line.len() >= SHORTEST_ENCODED).map(<[u8]>::to_vec));
        }
        needles.push(alone);
    }
}

fn encode(alphabet: &Alphabet, bytes: &[u8]) -> Vec<u8> {
    GeneralPurpose::new(alphabet, NO_PAD).encode(bytes).into_bytes()
}

/// The tokens of a JSON document: strings with their quotes, what else stands together, and what stands between.
fn tokens(json: &str) -> impl Iterator<Item = &str> {
    let mut rest = json;
    std::iter::from_fn(move || {
        let first = *rest.as_bytes().first()?;
        let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.');
        let length = match first {
            b'"' => end_of_string(rest.as_bytes()),
            _ => rest.bytes().take_while(|byte| *byte != b'"' && is_word(byte) == is_word(&first)).count(),
        };
        let (token, behind) = rest.split_at(length);
        rest = behind;
        Some(token)
    })
}

/// The length of the string that these bytes begin with, quotes included.
fn end_of_string(bytes: &[u8]) -> usize {
    let mut is_escaped = false;
    let end = bytes.iter().skip(1).position(|byte| {
        let is_end = *byte == b'"' && !is_escaped;
        is_escaped = *byte == b'\\' && !is_escaped;
        is_end
    });
    end.map_or(bytes.len(), |at| at + 2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn masked(values: &[&str], text: &str) -> String {
        Masker::new(values.iter().copied()).mask_text(text.to_owned())
    }

    fn json(values: &[&str], text: &str) -> Option<String> {
        let json = Json::from(RawValue::from_string(text.to_owned()).unwrap());
        Masker::new(values.iter().copied()).mask_json(json).map(|json| json.text().to_owned())
    }

    #[test]
    fn values_are_masked_wherever_they_stand_and_lengths_stay() {
        assert_eq!(masked(&["hunter2"], "hunter2 hunter hunter2hunter2"), "******* hunter **************");
        assert_eq!(masked(&["abcab"], "abcabcab"), "********", "also those that overlap");
        assert_eq!(masked(&["abcd", "abcdef", "cdefgh"], "abcdefgh abcde"), "******** ****e");
        assert_eq!(masked(&["größe"], "die größe!"), "die *******!");
        assert_eq!(masked(&["abc", "", "a"], "abc a"), "abc a", "too short");
        assert_eq!(masked(&["****"], "****"), "****");
        assert_eq!(masked(&[], "x"), "x");
    }

    #[test]
    fn each_line_of_a_value_is_masked_for_itself() {
        let key = "-----BEGIN-----\r\nAAAA\nxy\n-----END-----";
        assert_eq!(masked(&[key], "AAAA xy\n> -----END-----"), "**** xy\n> *************");
        assert_eq!(masked(&["a\t b  c "], "a b c, a\t b  c "), "*****, ********", "as errors are told");
        assert_eq!(masked(&["ab\ncd"], "ab cd ab\ncd"), "ab cd *****", "of which no line is long enough");
    }

    #[test]
    fn base64_of_a_value_is_masked_alone_and_inside_of_more() {
        let value = "s3cr3t?>~~value";
        let standard = |text: &str| String::from_utf8(encode(&alphabet::STANDARD, text.as_bytes())).unwrap();
        let url = |text: &str| String::from_utf8(encode(&alphabet::URL_SAFE, text.as_bytes())).unwrap();
        assert_ne!(standard(value), url(value));
        for encode in [&standard as &dyn Fn(&str) -> String, &url] {
            assert_eq!(masked(&[value], &encode(value)), "*".repeat(20));
            for (before, behind) in [("u:", ""), ("ab:", "x"), ("a:bc", "\n"), ("", "yz"), ("longer", "longer")] {
                let text = encode(&format!("{before}{value}{behind}"));
                let hidden = masked(&[value], &text);
                assert_eq!(hidden.len(), text.len());
                let shown = hidden.bytes().zip(text.bytes()).filter(|(a, b)| a == b).count();
                let around = (before.len() + behind.len()) * 4 / 3;
                assert!(shown <= around + 3, "{text} {hidden}: of it show {shown}, around it are {around}");
            }
        }
        assert_eq!(masked(&["7 bytes"], &standard("7 bytes")), standard("7 bytes"), "too short");
        let long = "0123456789abcdef".repeat(20);
        for width in WRAPS {
            let wrapped: Vec<String> = standard(&long)
                .as_bytes()
                .chunks(width)
                .map(|l| masked(&[&long], std::str::from_utf8(l).unwrap()))
                .collect();
            assert!(wrapped.iter().all(|line| line.bytes().all(|byte| byte == MASK)), "{wrapped:?}");
        }
    }

    #[test]
    fn a_document_stays_one_and_what_is_no_secret_stays_as_it_was_written() {
        let secret = "a\"b\\c\u{e9}d";
        let text = r#"{"k": [1.50, 12345678901234567890, "x a\"b\\c\u00e9d"], "a\"b\\céd": null, "n": -1e3}"#;
        let expected = r#"{"k": [1.50, 12345678901234567890, "x ********"], "********": null, "n": -1e3}"#;
        assert_eq!(json(&[secret], text).unwrap(), expected);
        assert_eq!(
            json(&["84711"], r#"[84711, 1.847110, "84711", "\\"]"#).unwrap(),
            r#"["*****", "1.*****0", "*****", "\\"]"#
        );
        assert_eq!(json(&["nothing"], text).unwrap(), text);
        assert_eq!(json(&[r#""user":"x""#], r#"{"user":"x"}"#), None, "it is spread over several");
        assert_eq!(json(&["true"], "[true]"), None);
        assert_eq!(json(&["\u{fffd}abc"], r#"["\ud800"]"#), None, "what it says is not known");
    }

    #[test]
    fn a_stream_holds_back_only_what_may_be_the_beginning_of_a_value() {
        let mut stream = Stream::new(Arc::new(Masker::new(["hunter2", "hunters"])));
        let mut passed = |piece: &str| String::from_utf8(stream.pass(piece.as_bytes())).unwrap();
        assert_eq!(passed("ready\n"), "ready\n");
        assert_eq!(passed("password: hun"), "password: ");
        assert_eq!(passed("ter"), "");
        assert_eq!(passed("2\nhunt"), "*******\n");
        assert_eq!(passed("!"), "hunt!");
        assert_eq!(passed("hunter"), "");
        assert_eq!(stream.rest(), b"hunter");
        assert_eq!(stream.rest(), b"");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

        /// A small alphabet, so that values overlap, repeat and begin each other.
        #[test]
        fn no_value_is_left_whatever_the_pieces(
            values in prop::collection::vec("[ab\n]{1,12}", 1..4),
            words in prop::collection::vec(prop_oneof!["[abc\n]{0,9}".prop_map(Err), (0..4_usize).prop_map(Ok)], 0..30),
            cuts in prop::collection::vec(0..9_usize, 0..60),
        ) {
            let masker = Arc::new(Masker::new(values.iter().map(String::as_str)));
            let text: String = words
                .iter()
                .map(|word| match word { Ok(at) => values[at % values.len()].clone(), Err(text) => text.clone() })
                .collect();
            let mut whole = text.clone().into_bytes();
            masker.mask(&mut whole);
            prop_assert_eq!(whole.len(), text.len());
            let stands_in = |seen: &[u8], value: &str| seen.windows(value.len()).any(|part| part == value.as_bytes());
            for value in values.iter().filter(|value| value.len() >= SHORTEST) {
                prop_assert!(!stands_in(&whole, value), "{:?} of {:?}", value, text);
                for line in value.split('\n').filter(|line| line.len() >= SHORTEST) {
                    let places = text.match_indices('a').chain(text.match_indices('b')).map(|(at, _)| at);
                    for at in places.filter(|at| text[*at..].starts_with(line)) {
                        prop_assert!(whole[at..at + line.len()].iter().all(|byte| *byte == MASK), "{:?} of {:?}", line, text);
                    }
                }
            }
            prop_assert!(whole.iter().zip(text.bytes()).all(|(seen, was)| *seen == was || *seen == MASK));
            let (mut stream, mut pieces, mut rest) = (Stream::new(masker), Vec::new(), text.as_bytes());
            for cut in cuts {
                let (piece, behind) = rest.split_at(cut.min(rest.len()));
                pieces.extend(stream.pass(piece));
                rest = behind;
            }
            pieces.extend(stream.pass(rest));
            pieces.extend(stream.rest());
            prop_assert_eq!(pieces, whole);
        }
    }
}
