//! What this reader takes, refuses, and says about it.

use proptest::prelude::*;

use super::*;

/// Text that a small stack survives: what the guard lets through must not be able to overflow it.
fn on_a_small_stack(text: String) {
    std::thread::Builder::new()
        .stack_size(1 << 20)
        .spawn(move || {
            let _ = document(&text);
        })
        .unwrap()
        .join()
        .unwrap();
}

#[test]
fn dotted_keys_in_nested_tables_overflow_no_stack() {
    for part in ["a", "\"=\"", "'.'", "1", "\"\\\"[\"", "a\t "] {
        let key = vec![part; 79].join(".");
        let deep = format!("{}={}1{}\n", key, format!("{{{key}=").repeat(78), "}".repeat(78));
        assert!(document(&deep).is_err_and(|problem| problem.error.contains("too many dotted keys")), "{part}");
        // A text that is no TOML is read on after the error, and what was read is dropped all the same.
        for spoiled in [format!("{deep}="), format!("x = y\n{deep}"), deep.replace('}', ""), format!("x = \"\n{deep}")]
        {
            on_a_small_stack(spoiled);
        }
    }
    on_a_small_stack(format!("{}1{}", "a={".repeat(10_000), "}".repeat(10_000)));
    on_a_small_stack(format!("a={}1{}", "[".repeat(10_000), "]".repeat(10_000)));
    on_a_small_stack(format!("[{}]\n", vec!["a"; 10_000].join(".")));
}

#[test]
fn dots_that_make_no_levels_are_not_counted() {
    let sentence = "a. b. c. ".repeat(1_000);
    let text = format!(
        "# {sentence}\na = \"\\\"{sentence}\"\nb = '{sentence}'\nc = \"\"\"\n{sentence}\\\"\"\"\"\"\"\nd = '''{sentence}'''''\ne = [{}]\n{}",
        "1.5, ".repeat(1_000),
        (0..1_000).map(|at| format!("x.k{at} = 2.5 # {sentence}\n")).collect::<String>(),
    );
    assert!(document(&text).is_ok());
}

#[test]
fn syntax_errors_have_a_place_and_a_message_of_one_line() {
    for (text, at, error) in [
        ("a = ", 4, "found the end of the file"),
        ("a = \nb = 1", 4, "found the end of the line"),
        ("a = 1\na = 2", 6, "duplicate key; found a = 2"),
        ("a = abc", 4, "string values must be quoted"),
        ("a = 99999999999999999999", 4, "integer number overflowed"),
        ("a = 1e999", 4, "floating-point number overflowed"),
        ("= 1", 0, ""),
        ("a = \"\u{1b}[2J\"", 5, ""),
    ] {
        let problem = document(text).expect_err(text);
        assert!(problem.at == at && problem.error.contains(error), "{text:?} gave {problem:?}");
        assert!(!problem.error.contains(char::is_control), "{problem:?}");
    }
}

fn json_of(toml: &str) -> Result<String, Vec<Problem>> {
    let text = format!("args = [{toml}]");
    let document = document(&text).unwrap();
    let mut reader = Reader::new(&text, document.as_table());
    let array = reader.json_array("args").unwrap();
    let problems = reader.into_problems();
    if problems.is_empty() { Ok(array[0].2.text().to_owned()) } else { Err(problems) }
}

#[test]
fn toml_values_become_json() {
    for (toml, json) in [
        ("+1_000", "1000"),
        ("0xff", "255"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("+1_0.1_0e+0_6", "10.10e+06"),
        ("-0.0", "-0.0"),
        ("1e3", "1e3"),
        ("true", "true"),
        ("\"a\\\"\\u0001é\"", "\"a\\\"\\u0001é\""),
        ("'''\na\\b'''", "\"a\\\\b\""),
        ("1979-05-27T07:32:00Z", "\"1979-05-27T07:32:00Z\""),
        ("07:32:00", "\"07:32:00\""),
        ("[1, [], {}]", "[1,[],{}]"),
        ("{ a.b = 1, \"c d\" = [2] }", "{\"a\":{\"b\":1},\"c d\":[2]}"),
    ] {
        assert_eq!(json_of(toml).unwrap(), json, "{toml}");
    }
    for toml in ["inf", "-inf", "nan", "[1, {a = +inf}]"] {
        let problems = json_of(toml).unwrap_err();
        assert!(problems[0].error.contains("expected a finite number"), "{problems:?}");
        assert_eq!(
            problems[0].at,
            8 + toml.find(['i', 'n', '+']).unwrap().min(toml.find("-inf").unwrap_or(usize::MAX))
        );
    }
}

#[test]
fn the_depth_is_bounded_as_in_a_trigger() {
    let nested =
        |keys: usize| json_of(&format!("{{{}.x = {{{} = 1}}}}", vec!["a"; 70].join("."), vec!["b"; keys].join(".")));
    // 71 tables for the outer key, then one for each part of the inner; the root and `args` are two more.
    assert!(nested(27).is_ok());
    assert!(nested(28).unwrap_err()[0].error.contains("more than 100 levels"));
}

#[test]
fn hostile_texts_have_few_errors() {
    let text = format!(
        "args = [{}]\n{}",
        "nan,".repeat(1_000),
        (0..1_000).map(|at| format!("k{at} = 1\n")).collect::<String>()
    );
    let document = document(&text).unwrap();
    let mut reader = Reader::new(&text, document.as_table());
    reader.json_array("args");
    reader.only_keys(&[]);
    assert_eq!(reader.into_problems().len(), MOST);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn floats_keep_their_value(number in any::<f64>().prop_filter("finite", |number| number.is_finite())) {
        let json = json_of(&format!("{number:?}")).unwrap();
        prop_assert_eq!(json.parse::<f64>().unwrap().to_bits(), number.to_bits());
    }

    #[test]
    fn strings_keep_their_content(content in any::<String>()) {
        let json = json_of(&Value::from(content.as_str()).to_string()).unwrap();
        prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), content);
    }
}
