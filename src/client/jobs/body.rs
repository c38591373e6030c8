//! A change of a job file as a JSON object: the keys of job files and their values; `null` takes a key out.

use super::change::Change;
use crate::client::drop::Object;
use crate::client::{Code, Failure};
use crate::model::job::from_json::{from_json, string};
use crate::model::job::keys::{JOB_KEYS, Shape, job_key};
use crate::model::message::{did_you_mean, quoted};

/// Reads a change.
///
/// # Errors
/// Exit code 2: a key that no job has, or a value that TOML has no word for.
pub fn change(Object(members): &Object) -> Result<Change, Failure> {
    let mut change = Change::default();
    for (name, value) in members {
        let Some(key) = job_key(name) else {
            let known: Vec<&str> = JOB_KEYS.iter().map(|key| key.name).collect();
            let error = format!("a job has no key {}", quoted(name));
            return Err(Failure::new(Code::Usage, error, did_you_mean(name, &known)));
        };
        if value.text() == "null" {
            change.unset.push(key.name.to_owned());
            continue;
        }
        let read = from_json(value.text());
        let read = read
            .map_err(|error| Failure::new(Code::Usage, format!("{name}: {error}"), "see `orchestrator schema job`"))?;
        // One word for a tag is a list of one, as people write it.
        let read = match (&key.shape, read.as_str()) {
            (Shape::Names(_), Some(one)) => {
                toml_edit::Value::from(std::iter::once(string(one)).collect::<toml_edit::Array>())
            }
            _ => read,
        };
        change.set.push((key.name, read));
    }
    change.set.sort_by_key(|(name, _)| JOB_KEYS.iter().position(|key| key.name == *name));
    Ok(change)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::job::draft::Draft;

    fn written(json: &str) -> Result<String, Failure> {
        let mut draft = Draft::default();
        change(&serde_json::from_str(json).unwrap())?.apply(&mut draft)?;
        Ok(draft.text())
    }

    #[test]
    fn keys_and_values_are_those_of_job_files() {
        let json = r#"{"tags": ["a"], "file": "a.py", "kwargs": {"n": 1.50}, "time": "09:00"}"#;
        let text = "file = \"a.py\"\ntime = \"09:00\"\ntype = \"daily\"\n";
        let written_text = written(json).unwrap();
        for line in text.lines().chain(["kwargs = { n = 1.50 }", "tags = [\"a\"]"]) {
            assert!(written_text.contains(line), "{line} in {written_text}");
        }
        assert!(written(r#"{"tag": ["a"]}"#).unwrap_err().hint.contains("tags"));
        assert!(written(r#"{"args": [null]}"#).unwrap_err().error.contains("args"));
        assert!(change(&serde_json::from_str(r#"{"timeout": null}"#).unwrap()).unwrap().unset == ["timeout"]);
    }
}
