//! What a change touches, and what it leaves alone.

use proptest::prelude::*;
use toml_edit::DocumentMut;

use super::*;

fn draft(text: &str) -> Draft {
    Draft::open("demo.toml", text).unwrap_or_else(|errors| panic!("{text}: {errors:?}"))
}

fn value(text: &str) -> Value {
    text.parse().unwrap()
}

/// One change to a text: `key = value`, `key.member = value`, or `-key` to remove one.
fn changed(text: &str, change: &str) -> String {
    let mut draft = draft(text);
    let path = |path: &str| path.split('.').map(str::to_owned).collect::<Vec<_>>();
    if let Some(gone) = change.strip_prefix('-') {
        let gone = path(gone);
        draft.remove(&gone.iter().map(String::as_str).collect::<Vec<_>>());
    } else {
        let (key, new) = change.split_once(" = ").unwrap();
        match &path(key)[..] {
            [key] => draft.set(key, &value(new)),
            [key, member] => draft.set_member(key, member, &value(new)),
            _ => unreachable!(),
        };
    }
    let text = draft.text();
    assert!(Draft::open("demo.toml", &text).is_ok(), "{change} made {text:?}");
    text
}

#[track_caller]
fn check(rows: &[(&str, &str, &str)]) {
    for (text, change, expected) in rows {
        assert_eq!(changed(text, change), *expected, "{change} in {text:?}");
        // The same with the line ends of other systems, and behind a byte order mark.
        let other = |text: &str| format!("\u{feff}{}", text.replace('\n', "\r\n"));
        if text.contains('\n') {
            assert_eq!(changed(&other(text), change), other(expected), "{change} in {text:?}, CRLF");
        }
    }
}

#[test]
fn a_value_is_replaced_where_it_stands() {
    check(&[
        ("a = 1", "a = 2", "a = 2"),
        ("# a\n\n  a   =  1   # why\n\n# b\nb=2\n", "a = \"x\"", "# a\n\n  a   =  \"x\"   # why\n\n# b\nb=2\n"),
        ("a = [ # first\n  1,\n  2, # two\n] # why\nb = 1\n", "a = [3]", "a = [3] # why\nb = 1\n"),
        ("a = '''\nx\n'''\nb = 1\n", "a = 1", "a = 1\nb = 1\n"),
        ("\"a\" = 1\n", "a = 2", "\"a\" = 2\n"),
        // What is the same already stays as it is written.
        ("a = 'x'\n", "a = \"x\"", "a = 'x'\n"),
        ("a = [ 1,2, ]\n", "a = [1, 2]", "a = [ 1,2, ]\n"),
        ("a = 0x10\n", "a = 16", "a = 0x10\n"),
        ("a = 1.50\n", "a = 1.5", "a = 1.5\n"),
    ]);
}

#[test]
fn a_new_key_stands_behind_the_last_one_at_the_top() {
    check(&[
        ("", "a = 1", "a = 1\n"),
        ("# only\n", "a = 1", "# only\na = 1\n"),
        ("b = 1", "a = 2", "b = 1\na = 2\n"),
        ("b = 1 # why\n\n# end\n", "a = 2", "b = 1 # why\na = 2\n\n# end\n"),
        ("b = [\n  1,\n]\n\n[c]\nd = 1\n", "a = 2", "b = [\n  1,\n]\na = 2\n\n[c]\nd = 1\n"),
        ("b.c = 1\n[d]\n", "a = 2", "b.c = 1\na = 2\n[d]\n"),
        ("  b = 1\n", "a = 2", "  b = 1\n  a = 2\n"),
        ("[c]\nd = 1\n", "a = 2", "a = 2\n[c]\nd = 1\n"),
        ("b = 1\n", "a = {x = 1}", "b = 1\na = {x = 1}\n"),
    ]);
}

#[test]
fn a_removed_key_takes_its_lines_and_no_others() {
    check(&[
        ("a = 1 # why\n", "-a", ""),
        ("# a\na = 1 # why\nb = 2", "-a", "# a\nb = 2"),
        ("b = 2\na = [\n 1, # one\n]\n", "-a", "b = 2\n"),
        ("b = 1\n\na = 1\n\nc = 1\n", "-a", "b = 1\n\nc = 1\n"),
        ("b = 1\n\n[a]\n# x\nx = 1\n# y\ny = 2\n# c\n[c]\n", "-a", "b = 1\n\n# c\n[c]\n"),
        ("b = 1\n[a.x]\ny = 1\n\n[c]\n[a.z]\n", "-a", "b = 1\n\n[c]\n"),
        ("a.x = 1\nb = 1\na.y = 2\n", "-a", "b = 1\n"),
        ("b = 1\n[[a]]\nx = 1\n[[a]]\nx = 2\n", "-a", "b = 1\n"),
        ("b = 1\n\n[a]\nx = 1\n", "-a", "b = 1\n"),
        ("b = 1\n", "-a", "b = 1\n"),
        ("ab = 1\na = 1\n", "-a", "ab = 1\n"),
        ("b = 1\na = 2", "-a", "b = 1\n"),
    ]);
}

#[test]
fn a_member_is_set_in_whatever_way_its_table_is_written() {
    check(&[
        ("b = 1\n", "a.x = 1", "b = 1\na = { x = 1 }\n"),
        ("a = {}\n", "a.x = 1", "a = { x = 1 }\n"),
        ("a = { x = 1, y = 2 } # why\n", "a.x = 3", "a = { x = 3, y = 2 } # why\n"),
        ("a = { x = 1, y = 2 }\n", "a.z = 3", "a = { x = 1, y = 2, z = 3 }\n"),
        ("a = {x=1}\n", "a.z = 3", "a = {x=1, z = 3}\n"),
        ("a = {\n  x = 1, # one\n}\n", "a.z = 3", "a = {\n  x = 1, z = 3, # one\n}\n"),
        ("a = { x.y = 1 }\n", "a.x = 2", "a = { x = 2 }\n"),
        ("b = 1\n\n[a] # why\nx = 1 # one\n\n[c]\n", "a.x = 2", "b = 1\n\n[a] # why\nx = 2 # one\n\n[c]\n"),
        (
            "b = 1\n\n[a] # why\n  x = 1 # one\n\n[c]\n",
            "a.z = 2",
            "b = 1\n\n[a] # why\n  x = 1 # one\n  z = 2\n\n[c]\n",
        ),
        ("[a]\n[c]\n", "a.z = 2", "[a]\nz = 2\n[c]\n"),
        ("a.x = 1\nb = 1\n", "a.z = 2", "a.x = 1\na.z = 2\nb = 1\n"),
        ("a.x = 1\nb = 1\n", "a.x = 2", "a.x = 2\nb = 1\n"),
        ("b = 1\n[a.x]\ny = 1\n", "a.z = 2", "b = 1\na.z = 2\n[a.x]\ny = 1\n"),
        ("b = 1\n[a.x]\ny = 1\n", "a.x = 2", "b = 1\na = { x = 2 }\n"),
        ("b = 1\n[a]\nz = 1\n[a.x]\ny = 1\n", "a.x = 2", "b = 1\n[a]\nz = 1\nx = 2\n"),
        ("b = 1\n[[a]]\nx = 1\n", "a.x = 2", "b = 1\na = { x = 2 }\n"),
        ("a = 5\n", "a.x = 2", "a = { x = 2 }\n"),
    ]);
    let quoted = "x y = \"z\"\n";
    let mut draft = draft("a = {}\n");
    draft.set_member("a", quoted, &value("1"));
    assert!(draft.has(&["a", quoted]), "{draft:?}");
}

#[test]
fn a_member_is_removed_in_whatever_way_its_table_is_written() {
    check(&[
        ("a = { x = 1, y = 2 } # why\n", "-a.x", "a = { y = 2 } # why\n"),
        ("a = { x = 1, y = 2 }\n", "-a.y", "a = { x = 1 }\n"),
        ("a = { x = 1, }\n", "-a.x", "a = {}\n"),
        ("a = { x = 1 }\n", "-a.z", "a = { x = 1 }\n"),
        ("[a]\nx = 1\ny = 2\n", "-a.x", "[a]\ny = 2\n"),
        ("a.x = 1\na.y = 2\n", "-a.y", "a.x = 1\n"),
        ("[a]\nz = 1\n[a.x]\ny = 1\n[c]\n", "-a.x", "[a]\nz = 1\n[c]\n"),
    ]);
}

#[test]
fn a_table_that_becomes_another_keeps_the_members_that_stay() {
    check(&[
        ("a = { x = 1, y = 2 } # why\n", "a = { y = 3, z = 4 }", "a = { y = 3, z = 4 } # why\n"),
        ("b = 1\n[a]\nx = 1\ny = 2 # two\n", "a = { y = 2, z = 4 }", "b = 1\n[a]\ny = 2 # two\nz = 4\n"),
        ("b = 1\na.x = 1\n", "a = { y = 2 }", "b = 1\na = { y = 2 }\n"),
        ("b = 1\n[a]\nx = 1\n", "a = {}", "b = 1\n[a]\n"),
        ("b = 1\n[[a]]\nx = 1\n", "a = [5]", "b = 1\na = [5]\n"),
    ]);
}

#[test]
fn what_is_no_toml_is_refused_with_its_place() {
    let errors = Draft::open("x.toml", "\u{feff}a = 1\nb = \n").unwrap_err();
    assert_eq!((errors.len(), errors[0].line, errors[0].file.as_str()), (1, 2, "x.toml"));
}

/// Files of all the ways in which a key can stand.
fn any_file() -> impl Strategy<Value = String> {
    let top = prop_oneof![
        Just("# note\n".to_owned()),
        Just("\n".to_owned()),
        "[a-d] = [0-9]( # c)?\n",
        "[a-d] = \\{ x = [0-9], y = \"s\" \\}( # c)?\n",
        "[a-d] = \\[\n  1, # one\n  'x',\n\\]\n",
        "[a-d]\\.[xyz] = [0-9]\n",
        "[a-d] = \"\"\"\n\\[a\\]\nx = 1\n\"\"\"\n",
    ];
    let table = prop_oneof![
        "\\[[a-d]\\]( # c)?\n(# d\n)?([x] = [0-9]( # e)?\n)?([y]\\.z = 1\n)?\n?",
        "\\[[a-d]\\.[xyz]\\]\n(m = 1\n)?",
        "\\[\\[[a-d]\\]\\]\nx = 1\n",
    ];
    (proptest::collection::vec(top, 0..8), proptest::collection::vec(table, 0..4), any::<bool>(), any::<bool>())
        .prop_map(|(top, tables, crlf, open)| {
            let text = top.concat() + &tables.concat();
            let text = if open { text.trim_end_matches('\n').to_owned() } else { text };
            if crlf { text.replace('\n', "\r\n") } else { text }
        })
        .prop_filter("TOML", |text| text.parse::<DocumentMut>().is_ok())
}

/// What a text says of every key but one (or one member), as sorted JSON.
fn others(text: &str, path: &[&str]) -> String {
    let mut document: DocumentMut = text.parse().unwrap();
    if let [key, member] = path
        && let Some(table) = document.get_mut(key).and_then(Item::as_table_like_mut)
    {
        table.remove(member);
        if table.is_empty() {
            document.remove(key);
        }
    } else if let [key, ..] = path {
        document.remove(key);
    }
    plainly(document.as_item())
}

fn plainly(item: &Item) -> String {
    if let Some(table) = item.as_table_like() {
        let mut members: Vec<String> = table.iter().map(|(key, item)| format!("{key}:{}", plainly(item))).collect();
        members.sort();
        return format!("{{{}}}", members.join(","));
    }
    match item {
        Item::ArrayOfTables(tables) => {
            tables.iter().map(|table| plainly(&Item::Table(table.clone()))).collect::<Vec<_>>().join("|")
        }
        Item::Value(value) => written(value),
        Item::Table(_) | Item::None => String::new(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_change_says_what_was_asked_and_changes_nothing_else(
        text in any_file(), key in "[a-e]", member in "[xyz]", number in 10..99_i64, kind in 0..5,
    ) {
        let mut draft = draft(&text);
        let path: Vec<&str> = if kind < 3 { vec![&key] } else { vec![&key, &member] };
        let value = if kind == 1 { value(&format!("{{ x = {number}, w = \"é\" }}")) } else { Value::from(number) };
        match kind {
            0 | 1 => { draft.set(&key, &value); }
            3 => { draft.set_member(&key, &member, &value); }
            _ => { draft.remove(&path); }
        }
        let after = draft.text();
        let read: DocumentMut = after.parse().map_err(|error| TestCaseError::fail(format!("{error}: {after:?}")))?;
        let there = path.iter().try_fold(read.as_item(), |item, key| item.get(key));
        match kind {
            0 | 1 | 3 => prop_assert_eq!(there.map(plainly), Some(plainly(&Item::Value(value))), "{:?}", after),
            _ => prop_assert!(there.is_none(), "{:?}", after),
        }
        // A table of another kind gives way to a member.
        let gives_way = kind == 3 && text.parse::<DocumentMut>().unwrap().get(&key).is_some_and(|it| !it.is_table_like());
        if !gives_way {
            prop_assert_eq!(others(&after, &path), others(&text, &path), "{:?} became {:?}", text, after);
        }
        let lines = |text: &str| text.lines().filter(|line| line.starts_with("# note")).count();
        prop_assert_eq!(lines(&after), lines(&text));
        if text.contains("\r\n") && text.matches('\n').count() == text.matches("\r\n").count() {
            prop_assert_eq!(after.matches('\n').count(), after.matches("\r\n").count(), "{:?}", after);
        }
    }
}
