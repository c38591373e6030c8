//! JSON from a command line as a TOML value for a job file. Numbers keep their digits.

use serde::Deserialize;
use toml_edit::{Array, InlineTable, Value};

use super::super::json_scan::{self, Fault};
use super::super::message::{excerpt, quoted};
use super::super::result::pairs;
use super::Json;

/// How much of a wrong value is shown.
const SHOWN: usize = 60;

/// Reads JSON as TOML.
///
/// # Errors
/// It is no JSON, or TOML has no word for it.
pub fn from_json(text: &str) -> Result<Value, String> {
    let scanned = json_scan::scan(text);
    scanned.map_err(|fault| match fault {
        Fault::Syntax { at, found, expected } => {
            let column = text.get(..at).unwrap_or_default().chars().count() + 1;
            format!("found {found} at character {column}, expected {expected}")
        }
        Fault::TooDeep { .. } => "found too many levels of arrays and objects".to_owned(),
        Fault::KeyTwice { key } => {
            let key = text.get(key).unwrap_or_default();
            format!("found the key {} twice in one object, expected it once", excerpt(key, SHOWN))
        }
    })?;
    convert(text.trim())
}

/// The same for an array.
///
/// # Errors
/// As [`from_json`], or it is another value.
pub fn array_from_json(text: &str) -> Result<Value, String> {
    let value = from_json(text)?;
    if value.is_array() { Ok(value) } else { Err(format!("found {}, expected a JSON array", excerpt(text, SHOWN))) }
}

/// The same for an object.
///
/// # Errors
/// As [`from_json`], or it is another value.
pub fn table_from_json(text: &str) -> Result<Value, String> {
    let value = from_json(text)?;
    if value.is_inline_table() {
        Ok(value)
    } else {
        Err(format!("found {}, expected a JSON object", excerpt(text, SHOWN)))
    }
}

/// Converts what is JSON of bounded depth.
fn convert(text: &str) -> Result<Value, String> {
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Object(#[serde(with = "pairs")] Vec<(String, Json)>);
    let odd = |error: serde_json::Error| format!("found {}, expected JSON: {error}", excerpt(text, SHOWN));
    match text.as_bytes().first() {
        Some(b'{') => {
            let Object(members) = serde_json::from_str(text).map_err(odd)?;
            let member = |(key, value): (String, Json)| Ok((key, convert(value.text())?));
            let table: InlineTable = members.into_iter().map(member).collect::<Result<_, String>>()?;
            Ok(table.into())
        }
        Some(b'[') => {
            let elements: Vec<Json> = serde_json::from_str(text).map_err(odd)?;
            let array: Array = elements.iter().map(|value| convert(value.text())).collect::<Result<_, String>>()?;
            Ok(array.into())
        }
        Some(b'"') => serde_json::from_str::<String>(text).map(|text| string(&text)).map_err(odd),
        Some(b't') => Ok(true.into()),
        Some(b'f') => Ok(false.into()),
        Some(b'n') => Err("found null, which TOML has no word for: leave it out".to_owned()),
        Some(_) | None => number(text),
    }
}

/// Text as a TOML string, in double quotes and on one line, as people write it.
#[must_use]
pub fn string(text: &str) -> Value {
    // JSON's escapes are TOML's too; DEL alone needs one in TOML.
    let written = serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007F");
    written.parse().unwrap_or_else(|_| Value::from(text))
}

/// A JSON number, as it is written.
fn number(text: &str) -> Result<Value, String> {
    let whole = text.parse::<i64>().map(Value::from).ok();
    let float = || text.contains(['.', 'e', 'E']).then(|| text.parse::<Value>().ok()).flatten();
    whole
        .or_else(float)
        .ok_or_else(|| format!("found the number {}, which TOML cannot hold: write it as a string", quoted(text)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn json_becomes_toml_digit_by_digit() {
        for (json, toml) in [
            (r#"{"a": 1, "b c": [1.50, -2, 1E3, true, "x\n\"é\""], "d": {}}"#, {
                r#"{ a = 1, "b c" = [1.50, -2, 1E3, true, "x\n\"é\""], d = {} }"#
            }),
            (" [ ] ", "[]"),
            ("9223372036854775807", "9223372036854775807"),
            ("-0.0", "-0.0"),
        ] {
            let value = from_json(json).unwrap();
            let again = |text: &str| text.parse::<Value>().unwrap().to_string().replace(' ', "");
            assert_eq!(again(&value.to_string()), again(toml), "{json}");
        }
    }

    #[test]
    fn what_toml_cannot_hold_is_refused() {
        for (json, said) in [
            ("[1", "character 3"),
            ("", "expected"),
            ("{\"a\": 1, \"a\": 2}", "twice"),
            ("[null]", "null"),
            ("[9223372036854775808]", "9223372036854775808"),
            ("[1e999]", "1e999"),
            ("[\"\\ud800\"]", "expected JSON"),
            (&"[".repeat(200), "expected"),
            (&format!("{}{}", "[".repeat(101), "]".repeat(101)), "levels"),
        ] {
            let found = from_json(json).expect_err(json);
            assert!(found.contains(said), "{json}: {found}");
        }
        assert!(array_from_json("{}").is_err() && table_from_json("[]").is_err());
    }

    proptest! {
        #[test]
        fn a_string_is_written_on_one_line_and_reads_back(text in any::<String>()) {
            for text in [text.clone(), format!("{text}\u{7f}\r\n\"\"\"'\u{1b}")] {
                let written = string(&text).to_string();
                prop_assert!(written.starts_with('"') && !written.chars().any(char::is_control), "{}", written);
                let read: Value = written.parse().unwrap();
                prop_assert_eq!(read.as_str(), Some(text.as_str()));
            }
        }
    }
}
