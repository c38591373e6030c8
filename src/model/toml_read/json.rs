//! TOML values as JSON text.

use toml_edit::Value;

use super::super::config::TRIGGER_DEPTH;
use super::{At, Node, Problem, key_at};

/// Writes a value as JSON. A float keeps its digits as they were written; a date or time becomes a string.
pub(super) fn write(
    out: &mut String,
    text: &str,
    what: &str,
    found: At<Node<'_>>,
    level: usize,
) -> Result<(), Problem> {
    if let Some(elements) = found.value.elements() {
        check_level(what, found.at, level)?;
        out.push('[');
        for (index, value) in elements.into_iter().enumerate() {
            out.push_str(if index == 0 { "" } else { "," });
            let at = value.span().map_or(found.at, |span| span.start);
            write(out, text, what, At { at, value }, level + 1)?;
        }
        out.push(']');
        return Ok(());
    }
    if let Some(table) = found.value.as_table() {
        check_level(what, found.at, level)?;
        out.push('{');
        for (index, (key, item)) in table.iter().enumerate() {
            out.push_str(if index == 0 { "" } else { "," });
            out.push_str(&serde_json::Value::from(key).to_string());
            out.push(':');
            let value = Node::of(item);
            let at = value.span().map_or_else(|| key_at(table, key), |span| span.start);
            write(out, text, what, At { at, value }, level + 1)?;
        }
        out.push('}');
        return Ok(());
    }
    match found.value.value() {
        Some(Value::String(string)) => out.push_str(&serde_json::Value::from(string.value().as_str()).to_string()),
        Some(Value::Integer(number)) => out.push_str(&number.value().to_string()),
        Some(Value::Boolean(truth)) => out.push_str(if *truth.value() { "true" } else { "false" }),
        Some(Value::Datetime(time)) => out.push_str(&serde_json::Value::from(time.value().to_string()).to_string()),
        Some(Value::Float(number)) if number.value().is_finite() => {
            // All that TOML allows in a float and JSON does not.
            let written = found.value.span().and_then(|span| text.get(span)).unwrap_or_default();
            out.extend(written.trim_start_matches('+').chars().filter(|c| *c != '_'));
        }
        Some(Value::Float(_)) => {
            let error =
                format!("`{what}` has {}, expected a finite number: JSON has no other", found.value.described(text));
            return Err(Problem { at: found.at, error, hint: "write it as a string".to_owned() });
        }
        // These were written above, and what is not there is nothing to write.
        Some(Value::Array(_) | Value::InlineTable(_)) | None => out.push_str("null"),
    }
    Ok(())
}

/// Bounds the depth as in a trigger, and with it the recursion.
fn check_level(what: &str, at: usize, level: usize) -> Result<(), Problem> {
    if level <= TRIGGER_DEPTH {
        return Ok(());
    }
    let error =
        format!("`{what}` has more than {TRIGGER_DEPTH} levels of arrays and tables, expected at most {TRIGGER_DEPTH}");
    Err(Problem { at, error, hint: "nest less, or pass the data as a string or in a file".to_owned() })
}
