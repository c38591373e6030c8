//! What error messages share: foreign text made safe to show, places in a text, the nearest known name.
//!
//! Nothing that was read from a file reaches a terminal or a log but through here: control characters, line breaks and
//! marks that turn the direction of text around are shown as escapes, and nothing is shown at length.

use super::ids::{BadName, NAME_RULE};

/// How many characters of foreign text a message shows at most.
pub const ECHO: usize = 200;

/// Foreign text in double quotes, safe to show: at most [`ECHO`] characters between them, `…` where it was cut.
#[must_use]
pub fn quoted(text: &str) -> String {
    format!("\"{}\"", shown(text, ECHO, |c| c == '\''))
}

/// A piece of source text as it stands in its file, safe to show, cut to `limit` characters.
#[must_use]
pub fn excerpt(source: &str, limit: usize) -> String {
    shown(source, limit.min(ECHO), |c| matches!(c, '\'' | '"' | '\\'))
}

fn shown(text: &str, limit: usize, plain: impl Fn(char) -> bool) -> String {
    let mut shown = String::new();
    let mut length = 0;
    // Cut here, what is shown leaves a place for the mark of the cut.
    let mut cut = 0;
    for c in text.chars() {
        let before = shown.len();
        if plain(c) {
            shown.push(c);
        } else {
            shown.extend(c.escape_debug());
        }
        length += shown[before..].chars().count();
        if length > limit {
            shown.truncate(cut);
            shown.push('…');
            break;
        }
        if length < limit {
            cut = shown.len();
        }
    }
    shown
}

/// Line and column of a byte of `text`, both from 1, the column in characters.
#[must_use]
pub fn place(text: &str, at: usize) -> (usize, usize) {
    let (lines, columns) = distance(&text.as_bytes()[..at.min(text.len())]);
    (lines + 1, columns + 1)
}

/// How many lines UTF-8 text goes down, and how many characters its last line has.
pub(super) fn distance(passed: &[u8]) -> (usize, usize) {
    let lines = passed.iter().filter(|byte| **byte == b'\n').count();
    let last = passed.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    (lines, last.iter().filter(|byte| **byte & 0xC0 != 0x80).count())
}

/// The known name that was probably meant, if one is near enough; of equally near ones the first.
pub fn suggest<'a>(found: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Comparing costs the product of both lengths, and no name that anybody knows is this long.
    if found.len() > 128 {
        return None;
    }
    let found = found.to_lowercase();
    let mut best: Option<(f64, &str)> = None;
    for name in known {
        let lower = name.to_lowercase();
        // One is good at common beginnings (`prio`), the other at slips of the finger (`ojb`).
        let alike = strsim::jaro_winkler(&found, &lower);
        let typo = strsim::normalized_damerau_levenshtein(&found, &lower);
        let score = alike.max(typo);
        if (alike >= 0.8 || typo >= 0.6) && best.is_none_or(|(most, _)| score > most) {
            best = Some((score, name));
        }
    }
    best.map(|(_, name)| name)
}

/// The sentence for a hint that names the nearest known name, or else all of them.
#[must_use]
pub fn did_you_mean(found: &str, known: &[&str]) -> String {
    match suggest(found, known.iter().copied()) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("known are {}", listed(known)),
    }
}

/// A name that breaks the rule, safe to show.
#[must_use]
pub fn bad_name(bad: &BadName) -> String {
    format!("{} name {} is not valid: expected {NAME_RULE}", bad.what, quoted(&bad.found))
}

/// Names in a row: `a`, `b` and `c`.
#[must_use]
pub fn listed(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match names.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn foreign_text_is_shown_safely() {
        assert_eq!(quoted("it's \"x\"\n\u{1b}[2J\u{202e}é"), r#""it's \"x\"\n\u{1b}[2J\u{202e}é""#);
        assert_eq!(excerpt("[\"a\\n\",\n1]", 60), r#"["a\n",\n1]"#);
        assert_eq!(excerpt("abcdef", 6), "abcdef");
        assert_eq!(excerpt("abcdefg", 6), "abcde…");
        assert_eq!(excerpt("abcde\nfg", 6), "abcde…");
    }

    #[test]
    fn places_count_characters_from_one() {
        let text = "aé\n\n😀b";
        assert_eq!(place(text, 0), (1, 1));
        assert_eq!(place(text, 3), (1, 3));
        assert_eq!(place(text, 4), (2, 1));
        assert_eq!(place(text, text.len() - 1), (3, 2));
        assert_eq!(place(text, usize::MAX), (3, 3));
    }

    #[test]
    fn the_nearest_name_is_found_and_a_far_one_is_not() {
        let known = ["job", "command", "args", "kwargs", "priority", "tags", "time", "timeout", "timezone"];
        for (found, expected) in [
            ("ojb", Some("job")),
            ("JOB", Some("job")),
            ("comand", Some("command")),
            ("prio", Some("priority")),
            ("tag", Some("tags")),
            ("timeuot", Some("timeout")),
            ("arg", Some("args")),
            ("xyzzy", None),
            ("", None),
        ] {
            assert_eq!(suggest(found, known.into_iter()), expected, "{found:?}");
        }
        assert_eq!(suggest("abcx", ["abcd", "abce"].into_iter()), Some("abcd"));
        let long = "a".repeat(129);
        assert_eq!(suggest(&long, [long.as_str()].into_iter()), None);
        assert_eq!(did_you_mean("xyzzy", &["a", "b", "c"]), "known are `a`, `b` and `c`");
    }

    proptest! {
        #[test]
        fn what_is_shown_is_short_and_has_no_control_characters(text in any::<String>(), limit in 1_usize..300) {
            for shown in [quoted(&text), excerpt(&text, limit)] {
                prop_assert!(shown.chars().count() <= ECHO + 2);
                prop_assert!(!shown.chars().any(char::is_control));
            }
            prop_assert!(excerpt(&text, limit).chars().count() <= limit);
        }
    }
}
