//! What this reader takes, refuses, and says about it.

use proptest::prelude::*;

use super::*;

fn refusal(text: &str) -> Refusal {
    parse(text.as_bytes()).expect_err(text)
}

fn good(text: &str) -> Trigger {
    parse(text.as_bytes()).unwrap_or_else(|refusal| panic!("{text}: {refusal:?}"))
}

/// What a text is refused with: the place, a part of the error, a part of the hint.
type Row = (&'static str, (usize, usize), &'static str, &'static str);

#[track_caller]
fn check(rows: &[Row], unfinished: bool) {
    for (text, place, error, hint) in rows {
        let refusal = refusal(text);
        let what = format!("{text:?} gave {refusal:#?}");
        assert_eq!((refusal.line, refusal.column), (Some(place.0), Some(place.1)), "{what}");
        assert!(refusal.error.contains(error) && refusal.hint.contains(hint), "{what}");
        assert_eq!(refusal.unfinished, unfinished, "{what}");
    }
}

#[test]
fn what_is_not_json_is_unfinished_and_has_a_place() {
    check(
        &[
            ("{", (1, 2), "found the end of the text, expected a key in double quotes or '}'", "too early"),
            ("{\"job\": \"a\"", (1, 12), "the end of the text, expected ',' or '}'", "all of it written"),
            ("{\"job\": \"a\",\n}", (2, 1), "found \"}\", expected a key in double quotes", "comma before"),
            ("{\"job\" \"a\"}", (1, 8), "expected ':' after the key", ""),
            ("{\"job\": \"a\"} x", (1, 14), "found \"x\", expected nothing more", ""),
            ("{\"jöb\": NaN}", (1, 9), "found \"NaN\", expected a value", "finite numbers"),
            ("{'job': 1}", (1, 2), "found \"'\"", "double quotes"),
            ("{\"args\": [1,]}", (1, 13), "found \"]\", expected a value", "comma before"),
            ("{\"args\": [1 2]}", (1, 13), "expected ',' or ']'", ""),
            ("{\"args\": [1}", (1, 12), "expected ',' or ']'", ""),
            ("// hi\n{}", (1, 1), "found \"/\"", "no comments"),
            ("{\"a\": 01}", (1, 8), "leading 0", ""),
            ("{\"a\": -}", (1, 8), "expected a digit", ""),
            ("{\"a\": 1.}", (1, 9), "expected a digit", ""),
            ("{\"a\": 1e+}", (1, 10), "expected a digit", ""),
            ("{\"a\": \"x\ny\"}", (1, 9), "found \"\\n\", expected control characters", ""),
            ("{\"a\": \"\u{1f}\"}", (1, 8), "found \"\\u{1f}\"", "trigger"),
            ("{\"a\": \"\\x\"}", (1, 9), "after \\", ""),
            ("{\"a\": \"\\u12g4\"}", (1, 12), "four hexadecimal digits", ""),
            ("{\"a\": \"\u{1F600}", (1, 9), "'\"' at the end of the string", "too early"),
            ("\u{feff}{", (1, 2), "the end of the text", ""),
            ("\0\0\0\0\0", (1, 1), "found \"\\0\"", ""),
            // Wrong in other ways too; but a writer may be at work.
            ("{\"x\": 1, \"x\": ", (1, 15), "the end of the text", ""),
            ("[1", (1, 3), "the end of the text", ""),
        ],
        true,
    );
}

#[test]
fn an_empty_file_is_unfinished() {
    for text in ["", " \r\n\t", "\u{feff}", "\u{feff} "] {
        let refusal = refusal(text);
        assert!(refusal.unfinished && refusal.error.contains("empty") && refusal.line.is_none(), "{refusal:?}");
    }
}

#[test]
fn json_that_is_no_trigger_is_refused_for_good() {
    check(
        &[
            ("[]", (1, 1), "found an array ([]), expected an object", "{\"job\": \"NAME\"}"),
            (" 5", (1, 2), "found a number (5)", ""),
            ("null", (1, 1), "found null, expected an object", ""),
            ("{}", (1, 1), "neither `job` nor `command`", "{\"job\": \"NAME\"}"),
            ("{\"job\": \"a\",\n \"agrs\": []}", (2, 2), "unknown key \"agrs\"", "did you mean `args`?"),
            ("{\"job\": \"a\", \"zzz\": 0}", (1, 14), "unknown key \"zzz\"", "known are `job`"),
            (
                "{\"job\": \"a\", \"cause\": \"schedule\"}",
                (1, 23),
                "`cause` is \"schedule\", expected one of `trigger`, `api`",
                "leave it out",
            ),
            (
                "{\"job\": \"a\", \"timeout\": \"0s\"}",
                (1, 25),
                "`timeout` is \"0s\", expected a number with",
                "job's own",
            ),
            ("{\"job\": \"a\", \"timeout\": \"soon\"}", (1, 25), "`timeout` is \"soon\", expected", ""),
            ("{\"job\": \"a\", \"timeout\": 5}", (1, 25), "`timeout` is a number (5), expected", ""),
            ("{\"job\": \"a\", \"\": 0}", (1, 14), "unknown key \"\"", "known are"),
            ("{\"job\": \"a\", \"\\ud800\": 0}", (1, 14), "unknown key \"\\ud800\"", "known are"),
            ("{\"command\": [\"a\"], \"docker\": {}}", (1, 30), "`docker`: found no `image`", "image ="),
            (
                "{\"command\": [\"a\"], \"docker\": \"x\"}",
                (1, 30),
                "`docker` is a string (\"x\"), expected an object",
                "",
            ),
            ("{\"job\": \"a\", \"docker\": {\"image\": \"x\"}}", (1, 14), "found `docker` beside a job", "its file"),
            (
                "{\"command\": [\"a\"], \"docker\": {\"image\": \"x\", \"privileged\": true}}",
                (1, 30),
                "`docker`: `privileged` is refused by the rule no-privileges",
                "no container",
            ),
            ("{\"job\": \"a\", \"command\": [\"b\"]}", (1, 14), "found `command` beside `job`", "keep `job`"),
            ("{\"command\": [\"b\"], \"job_name\": \"a\"}", (1, 20), "found `job_name` beside `command`", "keep `job`"),
            ("{\"job\": \"a\", \"job_name\": \"a\"}", (1, 14), "another name for `job`", "keep `job`"),
            ("{\"job\": \"a\", \"job\": \"a\"}", (1, 14), "the key \"job\" twice", "keep one"),
            ("{\"job\": \"a\", \"j\\u006fb\": \"a\"}", (1, 14), "the key \"j\\u006fb\" twice", ""),
            ("{\"job\": \"a\", \"args\": [[{\"x\":1,\n\"x\":2}]]}", (2, 1), "the key \"x\" twice", ""),
            ("{\"job\": 5}", (1, 9), "`job` is a number (5), expected the name of a job", ""),
            ("{\"job\": null}", (1, 9), "`job` is null", "leave `job` out"),
            ("{\"job\": \"a b\"}", (1, 9), "job name \"a b\" is not valid: expected 1 to 64", "Programs/"),
            ("{\"job\": \"\\ud83d\"}", (1, 9), "half of a surrogate pair", "both halves"),
        ],
        false,
    );
}

#[test]
fn impossible_values_are_refused_with_their_place() {
    check(
        &[
            ("{\"command\": \"ls -l\"}", (1, 13), "`command` is a string (\"ls -l\"), expected an array", ""),
            ("{\"command\": []}", (1, 13), "`command` is empty", "python3"),
            ("{\"command\": [\"\"]}", (1, 14), "`command[0]` is an empty string", "python3"),
            ("{\"command\": [\"a\", 5]}", (1, 19), "`command[1]` is a number (5), expected a string", ""),
            ("{\"command\": [\"a\\u0000\"]}", (1, 14), "`command[0]` contains a NUL", "\\u0000"),
            ("{\"command\": [\"a\", \"\\udc00\"]}", (1, 19), "`command[1]` is \"\\udc00\", which has half", ""),
            ("{\"job\": \"a\", \"args\": {}}", (1, 22), "`args` is an object ({}), expected an array", ""),
            ("{\"job\": \"a\", \"args\": null}", (1, 22), "`args` is null", "leave `args` out"),
            ("{\"job\": \"a\", \"args\": [1, \"\\u0000\"]}", (1, 26), "`args[1]` contains a NUL", "kwargs"),
            ("{\"job\": \"a\", \"args\": [\"\\ud800\"]}", (1, 23), "`args[0]`", ""),
            ("{\"job\": \"a\", \"kwargs\": []}", (1, 24), "`kwargs` is an array ([]), expected an object", ""),
            ("{\"job\": \"a\", \"kwargs\": {\"\\ud800\": 1}}", (1, 25), "a key of `kwargs`", "both halves"),
            (
                "{\"job\": \"a\", \"priority\": \"5\"}",
                (1, 26),
                "`priority` is a string (\"5\"), expected an integer",
                "",
            ),
            (
                "{\"job\": \"a\", \"priority\": 1.0}",
                (1, 26),
                "1.0, expected an integer from -999 to 999",
                "without point",
            ),
            ("{\"job\": \"a\", \"priority\": 1e2}", (1, 26), "1e2, expected an integer", ""),
            ("{\"job\": \"a\", \"priority\": 1000}", (1, 26), "1000, expected an integer", ""),
            ("{\"job\": \"a\", \"priority\": -1000}", (1, 26), "-1000, expected an integer", ""),
            ("{\"job\": \"a\", \"priority\": 99999999999999999999}", (1, 26), "expected an integer", ""),
            ("{\"job\": \"a\", \"priority\": null}", (1, 26), "`priority` is null", "leave"),
            ("{\"job\": \"a\", \"tags\": \"gpu\"}", (1, 22), "`tags` is a string (\"gpu\"), expected an array", ""),
            ("{\"job\": \"a\", \"tags\": [\"gpu\", \"\"]}", (1, 30), "tag name \"\" is not valid", "--tags"),
            ("{\"job\": \"a\", \"tags\": [true]}", (1, 23), "`tags[0]` is a boolean (true)", ""),
            ("{\"job\": \"a\", \"time\": 5}", (1, 22), "expected \"immediate\" or an RFC 3339 time", ""),
            ("{\"job\": \"a\", \"time\": \"now\"}", (1, 22), "`time` is \"now\"", "offset or Z"),
            (
                "{\"job\": \"a\", \"time\": \"2026-11-21T09:00:00\"}",
                (1, 22),
                "`time` is",
                "2026-11-21T09:00:00Z for UTC",
            ),
            ("{\"job\": \"a\", \"time\": \"2026-11-21\"}", (1, 22), "`time` is", "add a time of day"),
            ("{\"job\": \"a\", \"time\": \"2026-11-21T09:00:00\u{2212}01:00\"}", (1, 22), "`time` is", ""),
            ("{\"job\": \"a\", \"time\": \"2026-02-30T09:00:00Z\"}", (1, 22), "`time` is", ""),
            ("{\"job\": \"a\", \"time\": \"9999-12-31T23:59:59-01:00\"}", (1, 22), "year from 0 to 9999", ""),
            ("{\"job\": \"a\", \"time\": \"0000-01-01T00:00:00+01:00\"}", (1, 22), "year from 0 to 9999", ""),
            (
                "{\"job\": \"a\", \"expires\": \"immediate\"}",
                (1, 25),
                "`expires` is \"immediate\", expected an RFC",
                "",
            ),
            ("{\"job\": \"a\", \"id\": \"\"}", (1, 20), "`id` has 0 bytes, expected a string of 1 to 256", ""),
            ("{\"job\": \"a\", \"id\": 7}", (1, 20), "`id` is a number (7)", ""),
        ],
        false,
    );
    let id = "é".repeat(129);
    assert!(refusal(&format!("{{\"job\": \"a\", \"id\": \"{id}\"}}")).error.contains("258 bytes"));
}

#[test]
fn a_good_trigger_is_read_whole() {
    let trigger = good(
        "\u{feff}{\"job_name\": \"llm\", \"args\": [ \"a b\" , 1.10, {\"x\": [ ]}], \"kwargs\": {\"t\\u00e9\": 0.20, \"a\": null},
        \"priority\": -0, \"tags\": [\"gpu\", \"gpu\"], \"time\": \"2026-11-21T09:00:00+01:00\",
        \"expires\": \"2026-11-21 09:00:00.5z\", \"timeout\": \"1500ms\", \"id\": \"k\\ud83d\\ude00\"}\n",
    );
    assert_eq!(trigger.target, Target::Job(JobName::new("llm").unwrap()));
    let args: Vec<&str> = trigger.args.as_ref().unwrap().iter().map(Json::text).collect();
    assert_eq!(args, ["\"a b\"", "1.10", "{\"x\": [ ]}"]);
    let kwargs: Vec<(&str, &str)> = trigger.kwargs.iter().map(|(key, value)| (key.as_str(), value.text())).collect();
    assert_eq!(kwargs, [("té", "0.20"), ("a", "null")]);
    assert_eq!((trigger.priority, trigger.tags.len(), trigger.id.as_deref()), (Some(0), 1, Some("k😀")));
    assert_eq!(trigger.not_before.unwrap().to_rfc3339(), "2026-11-21T08:00:00+00:00");
    assert_eq!(trigger.timeout, Some(Duration::from_millis(1_500)));
    assert_eq!(trigger.expires.unwrap().timestamp_subsec_millis(), 500);
}

#[test]
fn the_bounds_themselves_are_fine() {
    let trigger = good("{\"job\": \"a\", \"time\": \"immediate\"}");
    assert_eq!((trigger.not_before, trigger.args, trigger.priority), (None, None, None));
    assert_eq!(good("{\"job\": \"a\", \"args\": []}").args, Some(Vec::new()));
    for priority in [-999, 999] {
        assert_eq!(good(&format!("{{\"job\": \"a\", \"priority\": {priority}}}")).priority, Some(priority));
    }
    good(&format!("{{\"job\": \"a\", \"id\": \"{}\"}}", "x".repeat(256)));
    good("{\"job\": \"a\", \"kwargs\": {\"x\": \"\\ud800\\u0000\"}, \"args\": [[\"\\ud800\"]]}");
    let command = good("{\"command\": [\"sh\", \"\", \"-c\"]}").target;
    assert_eq!(command, Target::Command(vec!["sh".to_owned(), String::new(), "-c".to_owned()]));
}

#[test]
fn numbers_stay_as_they_were_written() {
    let numbers = [
        "1e999",
        "1.10",
        "123456789012345678901234567890",
        "-0",
        "-0.0",
        "1E+05",
        "0.1000000000000000055511151231257827",
    ];
    let trigger = good(&format!("{{\"job\":\"a\",\"args\":[{}]}}", numbers.join(",")));
    assert_eq!(trigger.args.unwrap().iter().map(Json::text).collect::<Vec<_>>(), numbers);
}

#[test]
fn a_trigger_of_more_than_one_mebibyte_is_refused() {
    let mut text = "{\"job\": \"a\"}".to_owned();
    text.extend(std::iter::repeat_n(' ', (1 << 20) - text.len()));
    good(&text);
    text.push(' ');
    let refusal = refusal(&text);
    assert!(refusal.error.contains("1048577") && refusal.error.contains("1048576"), "{refusal:?}");
    assert!(!refusal.unfinished);
}

#[test]
fn other_encodings_are_named() {
    let text = "{\"job\": \"a\"}";
    let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
    for (bytes, name) in [
        (little.clone(), "UTF-16 (little-endian"),
        (big.clone(), "UTF-16 (big-endian"),
        ([b"\xFF\xFE".as_slice(), &little].concat(), "UTF-16 (little-endian)"),
        ([b"\xFE\xFF".as_slice(), &big].concat(), "UTF-16 (big-endian)"),
        (b"{\0".to_vec(), "UTF-16 (little-endian"),
        (b"\0{".to_vec(), "UTF-16 (big-endian"),
    ] {
        let refusal = parse(&bytes).unwrap_err();
        assert!(refusal.hint.contains(name) && refusal.unfinished, "{refusal:?}");
    }
    let latin = parse(b"\xEF\xBB\xBF{\"job\":\n\"\xC3\xA9\xE9\"}").unwrap_err();
    assert_eq!((latin.line, latin.column), (Some(2), Some(3)));
    assert!(latin.error.contains("0xE9") && latin.unfinished);
    let cut = parse(b"{\"\xF0\x9F").unwrap_err();
    assert!(cut.error.contains("within a character") && cut.column == Some(3), "{cut:?}");
}

#[test]
fn a_hostile_text_is_refused_at_once_and_briefly() {
    let million = 1 << 20;
    let texts = [
        "[".repeat(million),
        "{\"a\":".repeat(million / 5),
        format!("{{\"job\":\"a\",\"args\":[{}]}}", vec!["1"; million / 2 - 20].join(",")),
        format!("{{\"{}\":1}}", "\u{202e}".repeat(million / 4)),
        format!("{{\"job\":\"{}\"}}", "\\u0000".repeat(million / 7)),
        format!("{{{}}}", (0..60_000).map(|at| format!("\"{at:09}\":1")).collect::<Vec<_>>().join(",")),
        format!("{{\"job\":\"a\",\"args\":{}{}}}", "[".repeat(500_000), "]".repeat(500_000)),
    ];
    for text in texts {
        if let Err(refusal) = parse(text.as_bytes()) {
            assert!(refusal.error.chars().count() < 500 && refusal.hint.chars().count() < 500, "{refusal:?}");
            assert!(!refusal.error.contains(|c: char| c.is_control() || c == '\u{202e}'), "{refusal:?}");
        }
    }
}

/// JSON values with every kind of number and string.
fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|truth| truth.to_string()),
        "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,5})?([eE][+-]?[0-9]{1,4})?",
        any::<String>().prop_map(|text| serde_json::to_string(&text.replace('\0', "")).unwrap()),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|list| format!("[{}]", list.join(" , "))),
            prop::collection::btree_map(any::<String>(), inner, 0..4).prop_map(|map| object(map.into_iter().collect())),
        ]
    })
}

fn object(members: Vec<(String, String)>) -> String {
    let members: Vec<String> =
        members.into_iter().map(|(key, value)| format!("{}: {value}", serde_json::to_string(&key).unwrap())).collect();
    format!("{{{}}}", members.join(","))
}

prop_compose! {
    /// The members of a valid trigger, in any order.
    fn members()(
        command in any::<bool>(),
        args in prop::option::of(prop::collection::vec(json(), 0..4)),
        kwargs in prop::option::of(prop::collection::btree_map(any::<String>(), json(), 0..4)),
        priority in prop::option::of(-999_i16..=999),
        tags in prop::option::of(prop::collection::vec("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", 0..3)),
        seconds in prop::option::of(-62_167_219_200_i64..=253_402_300_799),
        id in prop::option::of("\\PC{1,60}"),
    )(
        members in Just([
            Some(if command { ("command", "[\"sh\",\"-c\"]".to_owned()) } else { ("job", "\"a.b-c\"".to_owned()) }),
            args.map(|args| ("args", format!("[{}]", args.join(",")))),
            kwargs.map(|kwargs| ("kwargs", object(kwargs.into_iter().collect()))),
            priority.map(|priority| ("priority", priority.to_string())),
            tags.map(|tags| ("tags", serde_json::to_string(&tags).unwrap())),
            seconds.map(|at| ("time", format!("\"{}\"", DateTime::from_timestamp(at, 0).unwrap().format("%Y-%m-%dT%H:%M:%SZ")))),
            id.map(|id| ("id", serde_json::to_string(&id).unwrap())),
        ].into_iter().flatten().map(|(key, value)| (key.to_owned(), value)).collect::<Vec<_>>()).prop_shuffle(),
    ) -> Vec<(String, String)> { members }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn a_damaged_trigger_makes_nothing_panic(members in members(), cut in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = object(members).into_bytes();
        let at = cut.index(bytes.len());
        bytes[at] = byte;
        let _ = parse(&bytes);
        bytes.truncate(at);
        let refusal = parse(&bytes).unwrap_err();
        prop_assert!(refusal.unfinished, "{:?}", refusal);
    }

    #[test]
    fn what_was_written_is_read(members in members()) {
        let trigger = good(&object(members.clone()));
        let written = |key: &str| members.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str());
        let again: Vec<(String, String)> = [
            match &trigger.target {
                Target::Job(name) => Some(("job", format!("\"{name}\""))),
                Target::Command(words) => Some(("command", serde_json::to_string(words).unwrap())),
            },
            trigger.args.as_ref().map(|args| ("args", format!("[{}]", args.iter().map(Json::text).collect::<Vec<_>>().join(",")))),
            written("kwargs").map(|_| {
                ("kwargs", object(trigger.kwargs.iter().map(|(key, value)| (key.clone(), value.text().to_owned())).collect()))
            }),
            trigger.priority.map(|priority| ("priority", priority.to_string())),
            trigger.not_before.map(|at| ("time", format!("\"{}\"", at.format("%Y-%m-%dT%H:%M:%SZ")))),
            trigger.id.as_ref().map(|id| ("id", serde_json::to_string(id).unwrap())),
        ].into_iter().flatten().map(|(key, value)| (key.to_owned(), value)).collect();
        for (key, value) in &again {
            prop_assert_eq!(written(key), Some(value.as_str()));
        }
        prop_assert_eq!(again.len() + usize::from(written("tags").is_some()), members.len());
        let tags: BTreeSet<Tag> = written("tags").map(|tags| serde_json::from_str(tags).unwrap()).unwrap_or_default();
        prop_assert_eq!(&trigger.tags, &tags);
        prop_assert_eq!(good(&object(again.into_iter().chain(written("tags").map(|tags| ("tags".to_owned(), tags.to_owned()))).collect())), trigger);
    }

    #[test]
    fn a_key_twice_is_refused_wherever_it_is(depth in 0_usize..90, key in any::<String>(), escaped in any::<bool>(), between in json()) {
        let plain = serde_json::to_string(&key).unwrap();
        let second = if escaped {
            format!("\"{}\"", key.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect::<String>())
        } else {
            plain.clone()
        };
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        let other = serde_json::to_string(&format!("{key}x")).unwrap();
        let before = format!("{{\"job\":\"a\",\"args\":[{open}{{{plain}:1,{other}:{between},");
        let refusal = refusal(&format!("{before}{second}:2}}{close}]}}"));
        prop_assert!(refusal.error.contains("twice") && !refusal.unfinished, "{:?}", refusal);
        prop_assert_eq!(refusal.column, Some(before.rsplit('\n').next().unwrap().chars().count() + 1));
    }

    #[test]
    fn a_hundred_levels_are_fine_and_one_more_is_not(levels in 1_usize..140, objects in any::<bool>()) {
        // The trigger and `args` are two of them.
        let (open, close) = if objects { ("{\"a\":", "}") } else { ("[", "]") };
        let text = format!("{{\"job\":\"a\",\"args\":[{}1{}]}}", open.repeat(levels), close.repeat(levels));
        match parse(text.as_bytes()) {
            Ok(_) => prop_assert!(levels + 2 <= 100),
            Err(refusal) => {
                prop_assert!(levels + 2 > 100 && refusal.error.contains("more than 100 levels") && !refusal.unfinished);
                prop_assert_eq!(refusal.column, Some(19 + 98 * open.len() + 1));
            }
        }
    }
}

#[test]
fn the_text_of_a_job_reads_back_as_the_same_trigger() {
    let written = r#"{"job": "a", "args": [1.50, {"x": 1e400}], "kwargs": {"b": 1, "a": [2]}, "priority": -7, "tags": ["gpu"],
        "timeout": "90s", "id": "k\u0001", "cause": "job", "cause_run_id": "20261121T034156123Z-k3f9q2",
        "cause_result": "Results/2026-11-21/a.20261121T034156123Z-k3f9q2.1.json"}"#;
    let trigger = parse_own(written.as_bytes()).unwrap();
    assert_eq!(parse_own(trigger.own_text().as_bytes()).unwrap(), trigger);
    let timed = good(r#"{"job": "a", "time": "2026-11-21T03:41:56Z", "expires": "2026-11-22T03:41:56Z"}"#);
    assert_eq!(timed.own_text(), r#"{"job":"a"}"#);
}
