//! `Programs/pools.toml`: how many runs of each pool there may be over all devices.

use std::collections::BTreeMap;

use super::ids::{NAME_RULE, PoolName};
use super::job::{JobError, located};
use super::message::quoted;
use super::toml_read::{self, Reader};

/// Sizes of pools, by name.
pub type Pools = BTreeMap<PoolName, u32>;

/// Reads the text of `pools.toml`: `NAME = NUMBER`, each from 0 (nothing runs) to 100,000.
///
/// # Errors
/// Everything that is wrong with it, in the order of the text.
pub fn parse(file_name: &str, text: &str) -> Result<Pools, Vec<JobError>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let document = toml_read::document(text).map_err(|problem| located(file_name, text, vec![problem]))?;
    let mut reader = Reader::new(text, document.as_table());
    let mut pools = Pools::new();
    for name in document.as_table().iter().map(|(name, _)| name) {
        let size = reader.integer::<u32>(name, &(0..=100_000));
        match (PoolName::new(name), size) {
            (Ok(pool), Some(size)) => {
                pools.insert(pool, size);
            }
            (Ok(_), None) => {}
            (Err(_), _) => {
                let at = reader.key(name).unwrap_or(0);
                let error = format!("the pool's name is {}, expected {NAME_RULE}", quoted(name));
                reader.problem(at, error, "llm = 2");
            }
        }
    }
    let problems = reader.into_problems();
    if problems.is_empty() { Ok(pools) } else { Err(located(file_name, text, problems)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_are_names_with_numbers() {
        let pools = parse("pools.toml", "llm = 2\n\"a.b\" = 0 # none\n").unwrap();
        assert_eq!(
            pools.iter().map(|(name, size)| (name.as_str(), *size)).collect::<Vec<_>>(),
            [("a.b", 0), ("llm", 2)]
        );
        for (text, place, wrong) in [
            ("llm = \"2\"", (1, 7), "`llm` is a string (\"2\"), expected an integer from 0 to 100000"),
            ("a = 1\nllm = -1", (2, 7), "`llm` is -1"),
            ("\"a b\" = 1", (1, 1), "the pool's name is \"a b\""),
            ("[llm]\nsize = 2", (1, 1), "`llm` is a table"),
            ("llm 2", (1, 5), "not valid TOML"),
        ] {
            let errors = parse("pools.toml", text).unwrap_err();
            assert_eq!((errors[0].line, errors[0].column), place, "{errors:?}");
            assert!(errors[0].error.contains(wrong), "{errors:?}");
        }
    }
}
