//! One pass over a JSON text: is it JSON, how deep does it go, does an object have a key twice, where does what stand.
//!
//! It never recurses, and its time grows with the text alone. Text that is not JSON is told from JSON that goes too
//! deep or repeats a key, because only the first can become good by more bytes: the pass therefore always goes on to
//! the end. Values are kept as places, down to the elements of the root's members, so that numbers stay as written.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;

use super::config::TRIGGER_DEPTH;
use super::message::quoted;

/// What sort of value stands at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Null,
    Boolean,
    Number,
    String,
    Array,
    Object,
}

/// A value, where it stands, and what it holds if it is near enough to the root.
#[derive(Debug)]
pub(super) struct Value {
    pub(super) kind: Kind,
    /// Its text, without surrounding white space.
    pub(super) span: Range<usize>,
    /// Its key with the quotes; empty for elements and the root.
    pub(super) key: Range<usize>,
    /// Members or elements, down to [`KEPT`] levels.
    pub(super) inside: Vec<Value>,
}

/// Containers nested this deep still list what they hold: the root, and its members.
const KEPT: usize = 2;

/// Why a text is refused, with the byte at which that shows.
#[derive(Debug)]
pub(super) enum Fault {
    /// It is not JSON.
    Syntax { at: usize, found: String, expected: &'static str },
    /// It is JSON of more than [`TRIGGER_DEPTH`] levels.
    TooDeep { at: usize },
    /// It is JSON in which an object has a key twice; this is the second.
    KeyTwice { key: Range<usize> },
}

/// Returns how many arrays and objects a JSON text nests, at the deepest.
#[must_use]
pub fn depth(json: &str) -> usize {
    let (mut now, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                now += 1;
                deepest = deepest.max(now);
            }
            b']' | b'}' => now = now.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Scans the whole of `text`, which must be one JSON value.
pub(super) fn scan(text: &str) -> Result<Value, Fault> {
    let mut scanner = Scanner { text, at: 0, brackets: Vec::new(), open: Vec::new(), fault: None };
    let root = scanner.document()?;
    scanner.fault.map_or(Ok(root), Err)
}

/// The content of a string token, quotes included, or `None` if a lone surrogate keeps it from being text.
pub(super) fn string_text<'t>(text: &'t str, span: &Range<usize>) -> Option<Cow<'t, str>> {
    match unescape(inner(text, span)) {
        Cow::Borrowed(bytes) => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
        Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
    }
}

fn inner<'t>(text: &'t str, span: &Range<usize>) -> &'t str {
    text.get(span.start + 1..span.end.saturating_sub(1)).unwrap_or_default()
}

/// A container that is not closed yet.
struct Open<'t> {
    value: Value,
    keys: BTreeSet<Cow<'t, [u8]>>,
}

struct Scanner<'t> {
    text: &'t str,
    at: usize,
    /// Every open container; a byte each, since a text of nothing but brackets opens a million.
    brackets: Vec<Kind>,
    /// The open containers down to the limit.
    open: Vec<Open<'t>>,
    /// The first thing that is wrong with it, if it turns out to be JSON.
    fault: Option<Fault>,
}

impl Scanner<'_> {
    fn document(&mut self) -> Result<Value, Fault> {
        let mut key = 0..0;
        loop {
            self.skip_space();
            let mut done = match self.peek() {
                Some(b'{') => {
                    self.open(Kind::Object, key);
                    self.skip_space();
                    if self.peek() != Some(b'}') {
                        key = self.key("a key in double quotes or '}'")?;
                        continue;
                    }
                    self.close(Kind::Object)
                }
                Some(b'[') => {
                    self.open(Kind::Array, key);
                    self.skip_space();
                    if self.peek() != Some(b']') {
                        key = 0..0;
                        continue;
                    }
                    self.close(Kind::Array)
                }
                _ => self.scalar(key)?,
            };
            // A value is complete: it may complete the containers around it, until one goes on.
            loop {
                self.skip_space();
                let Some(&around) = self.brackets.last() else {
                    return if self.at == self.text.len() { Ok(done) } else { Err(self.expected("nothing more")) };
                };
                self.keep(done);
                match (around, self.peek()) {
                    (Kind::Object, Some(b',')) => {
                        self.at += 1;
                        self.skip_space();
                        key = self.key("a key in double quotes")?;
                        break;
                    }
                    (Kind::Object, Some(b'}')) | (Kind::Array, Some(b']')) => done = self.close(around),
                    (Kind::Object, _) => return Err(self.expected("',' or '}'")),
                    (_, Some(b',')) => {
                        self.at += 1;
                        key = 0..0;
                        break;
                    }
                    _ => return Err(self.expected("',' or ']'")),
                }
            }
        }
    }

    fn open(&mut self, kind: Kind, key: Range<usize>) {
        if self.brackets.len() < TRIGGER_DEPTH {
            let value = Value { kind, span: self.at..self.at, key, inside: Vec::new() };
            self.open.push(Open { value, keys: BTreeSet::new() });
        } else if self.fault.is_none() {
            self.fault = Some(Fault::TooDeep { at: self.at });
        }
        self.brackets.push(kind);
        self.at += 1;
    }

    fn close(&mut self, kind: Kind) -> Value {
        self.at += 1;
        let too_deep = self.brackets.len() > self.open.len();
        self.brackets.pop();
        let kept = if too_deep { None } else { self.open.pop() };
        // Below the limit nothing is known of a container, and nobody will ask: the fault is noted.
        let mut value =
            kept.map_or(Value { kind, span: self.at..self.at, key: 0..0, inside: Vec::new() }, |open| open.value);
        value.span.end = self.at;
        value
    }

    fn keep(&mut self, value: Value) {
        if self.brackets.len() <= KEPT
            && let Some(around) = self.open.last_mut()
        {
            around.value.inside.push(value);
        }
    }

    fn key(&mut self, expected: &'static str) -> Result<Range<usize>, Fault> {
        let start = self.at;
        if self.peek() != Some(b'"') {
            return Err(self.expected(expected));
        }
        self.string()?;
        let key = start..self.at;
        if self.fault.is_none()
            && let Some(open) = self.open.last_mut()
            && !open.keys.insert(unescape(inner(self.text, &key)))
        {
            self.fault = Some(Fault::KeyTwice { key: key.clone() });
        }
        self.skip_space();
        if self.peek() != Some(b':') {
            return Err(self.expected("':' after the key"));
        }
        self.at += 1;
        Ok(key)
    }

    fn scalar(&mut self, key: Range<usize>) -> Result<Value, Fault> {
        let start = self.at;
        let rest = &self.text[start..];
        let kind = match self.peek() {
            Some(b'"') => {
                self.string()?;
                Kind::String
            }
            Some(b'-' | b'0'..=b'9') => {
                self.number()?;
                Kind::Number
            }
            _ => {
                let words = [("null", Kind::Null), ("true", Kind::Boolean), ("false", Kind::Boolean)];
                let Some((word, kind)) = words.into_iter().find(|(word, _)| rest.starts_with(word)) else {
                    return Err(self.expected("a value"));
                };
                self.at += word.len();
                kind
            }
        };
        Ok(Value { kind, span: start..self.at, key, inside: Vec::new() })
    }

    fn number(&mut self) -> Result<(), Fault> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
            if self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
                return Err(self.expected("no digit after a leading 0"));
            }
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Fault> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == start { Err(self.expected("a digit")) } else { Ok(()) }
    }

    /// Goes over a string, from its opening quote to behind its closing one.
    fn string(&mut self) -> Result<(), Fault> {
        self.at += 1;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => {
                    self.at += 1;
                    self.escape()?;
                }
                Some(0..=0x1F) => return Err(self.expected("control characters in strings as escapes such as \\n")),
                Some(_) => self.at += 1,
                None => return Err(self.expected("'\"' at the end of the string")),
            }
        }
    }

    fn escape(&mut self) -> Result<(), Fault> {
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                self.at += 1;
                for _ in 0..4 {
                    if !self.peek().is_some_and(|byte| byte.is_ascii_hexdigit()) {
                        return Err(self.expected("four hexadecimal digits after \\u"));
                    }
                    self.at += 1;
                }
            }
            _ => return Err(self.expected("one of \" \\ / b f n r t u after \\")),
        }
        Ok(())
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn expected(&self, expected: &'static str) -> Fault {
        let rest = &self.text[self.at..];
        // A word is shown whole: `NaN` says more than `N`.
        let word = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len()).min(20);
        let length = word.max(rest.chars().next().map_or(0, char::len_utf8));
        let found = if rest.is_empty() { "the end of the text".to_owned() } else { quoted(&rest[..length]) };
        Fault::Syntax { at: self.at, found, expected }
    }
}

/// The content of a string that was scanned: UTF-8, but a lone surrogate becomes the three bytes that UTF-8 would give
/// it if it allowed that, so that any two keys can be compared.
fn unescape(raw: &str) -> Cow<'_, [u8]> {
    if !raw.contains('\\') {
        return Cow::Borrowed(raw.as_bytes());
    }
    let mut content = Vec::with_capacity(raw.len());
    let mut pieces = raw.as_bytes();
    while let [first, rest @ ..] = pieces {
        pieces = rest;
        if *first != b'\\' {
            content.push(*first);
            continue;
        }
        let [letter, rest @ ..] = pieces else { break };
        pieces = rest;
        match letter {
            b'b' => content.push(0x08),
            b'f' => content.push(0x0C),
            b'n' => content.push(b'\n'),
            b'r' => content.push(b'\r'),
            b't' => content.push(b'\t'),
            b'u' => {
                let mut point = code_unit(pieces);
                pieces = pieces.get(4..).unwrap_or_default();
                if let (0xD800..0xDC00, [b'\\', b'u', low @ ..]) = (point, pieces)
                    && let unit @ 0xDC00..0xE000 = code_unit(low)
                {
                    point = 0x1_0000 + ((point - 0xD800) << 10) + (unit - 0xDC00);
                    pieces = low.get(4..).unwrap_or_default();
                }
                push_point(&mut content, point);
            }
            other => content.push(*other),
        }
    }
    Cow::Owned(content)
}

fn code_unit(hex: &[u8]) -> u32 {
    hex.iter().take(4).fold(0, |unit, digit| unit << 4 | (*digit as char).to_digit(16).unwrap_or(0))
}

fn push_point(content: &mut Vec<u8>, point: u32) {
    match char::from_u32(point) {
        Some(c) => content.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        None => {
            content.extend([0xE0 | (point >> 12) as u8, 0x80 | (point >> 6 & 0x3F) as u8, 0x80 | (point & 0x3F) as u8])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What serde_json, which is used nowhere in the scanner, says of the same text.
    fn is_json(text: &str) -> bool {
        serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
    }

    /// Text that is JSON, nearly JSON, or a mix of its tokens.
    fn texts() -> impl Strategy<Value = String> {
        let token = prop::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            " ",
            "\n",
            "\"a\"",
            "\"b\\n\"",
            "\"\\ud800\"",
            "\"\\u00e9",
            "\"",
            "\\",
            "1",
            "0",
            "-",
            ".",
            "e5",
            "E+",
            "true",
            "false",
            "null",
            "nul",
            "\u{0}",
            "é",
            "\"a\":1",
            "[1,2]",
            "{\"c\":[]}",
            "'",
        ]);
        prop::collection::vec(token, 0..12).prop_map(|tokens| tokens.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn it_takes_for_json_what_serde_json_does(text in prop_oneof![3 => texts(), 1 => any::<String>()]) {
            let syntax = matches!(scan(&text), Err(Fault::Syntax { .. }));
            prop_assert_eq!(!syntax, is_json(&text), "{:?}", text);
        }

        #[test]
        fn a_string_reads_as_serde_json_reads_it(content in any::<String>(), ascii in any::<bool>()) {
            let mut token = serde_json::to_string(&content).unwrap();
            if ascii {
                let units: String = content.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
                token = format!("\"{units}\"");
            }
            let read = string_text(&token, &(0..token.len()));
            prop_assert_eq!(read.as_deref(), Some(content.as_str()));
        }
    }

    #[test]
    fn every_prefix_of_json_is_unfinished_json() {
        let text = r#"{"a": [1.5e-3, true, null, "\ud83d\ude00\n"], "b": {"c": -0}}"#;
        assert!(scan(text).is_ok());
        for end in 0..text.len() {
            assert!(matches!(scan(&text[..end]), Err(Fault::Syntax { .. })), "{}", &text[..end]);
        }
    }

    #[test]
    fn a_lone_surrogate_is_no_text_but_can_be_compared() {
        for lone in [r#""\ud800""#, r#""\udc00""#, r#""\ud800\ud800""#, r#""\ud800x""#, r#""\udc00\ud800""#] {
            assert_eq!(string_text(lone, &(0..lone.len())), None, "{lone}");
        }
        assert!(matches!(scan(r#"{"\ud800":1,"\uD800":2}"#), Err(Fault::KeyTwice { key }) if key == (12..20)));
        assert!(scan(r#"{"\ud800":1,"\ud801":2}"#).is_ok());
    }

    #[test]
    fn only_what_callers_look_at_is_kept() {
        let root = scan(r#"{"a":[1,[2,{"x":3}]],"b":{"c":[4]}}"#).unwrap();
        assert_eq!(root.inside.len(), 2);
        assert_eq!((root.inside[0].inside.len(), root.inside[1].inside.len()), (2, 1));
        assert!(root.inside[0].inside[1].inside.is_empty() && root.inside[1].inside[0].inside.is_empty());
    }
}
