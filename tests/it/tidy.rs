//! The code holds itself to the rules of the house: floors, bans, and nothing left unfinished.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The rooms and their floors, as `ARCHITECTURE.md` draws them.
const FLOORS: [(&str, u32); 10] = [
    ("model", 0),
    ("decide", 1),
    ("volume", 2),
    ("store", 3),
    ("exec", 3),
    ("notify", 3),
    ("coordinator", 4),
    ("client", 5),
    ("api", 6),
    ("cli", 7),
];

/// What may not stand in a room's code, and why.
const BANS: [(&str, &[&str], &str); 8] = [
    ("model", &["tokio", "std::fs", "::now()", "rand::", "async "], "model/ is free of effects"),
    ("decide", &["tokio", "std::fs", "::now()", "rand::", "async "], "decide/ is pure"),
    ("coordinator", &["std::fs", "std::process::Command"], "files are volume/'s, processes exec/'s"),
    ("store", &["std::fs", "tokio", "std::process"], "files are volume/'s, and a lock hold waits for nothing"),
    ("notify", &["std::fs", "std::process", "::now()"], "what it tells, to whom and when is given to it"),
    (
        "client",
        &["std::fs::", "std::process::Command", "println!"],
        "files are volume/'s, processes exec/'s, and what is said is the caller's",
    ),
    ("api", &["std::fs", "std::process::Command", "::transact("], "it sees what a client sees, and decides nothing"),
    ("cli", &["std::fs::", "std::process::Command"], "files are volume/'s, processes exec/'s"),
];

/// Words that must not be left behind anywhere.
const UNFINISHED: [&str; 5] = ["todo!(", "unimplemented!(", "FIXME", "XXX", "dbg!("];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The code of a file: without comments, and without what is only compiled for tests.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let own = text.split("#[cfg(test)]").next().unwrap_or_default();
    own.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The room that a file belongs to; files beside the rooms belong to none.
fn room(path: &Path) -> Option<String> {
    let inside = path.strip_prefix(root().join("src")).ok()?;
    let first = inside.components().next()?.as_os_str().to_str()?.trim_end_matches(".rs").to_owned();
    FLOORS.iter().any(|(room, _)| *room == first).then_some(first)
}

#[test]
fn rooms_import_only_from_lower_floors() {
    let floors: BTreeMap<&str, u32> = FLOORS.into_iter().collect();
    let mut seen = 0;
    for path in sources(&root().join("src")) {
        let Some(here) = room(&path) else { continue };
        for mention in code(&path).split("crate::").skip(1) {
            let there: String = mention.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            let Some(&floor) = floors.get(there.as_str()) else { continue };
            seen += 1;
            let allowed = there == here || floor < floors[here.as_str()];
            assert!(
                allowed,
                "{} ({here}, floor {}) imports {there} (floor {floor})",
                path.display(),
                floors[here.as_str()]
            );
        }
    }
    assert!(seen > 100, "only {seen} imports were seen: does this test still read them?");
}

#[test]
fn every_room_is_on_the_map() {
    let map = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    for entry in std::fs::read_dir(root().join("src")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            assert!(FLOORS.iter().any(|(room, _)| *room == name), "src/{name} has no floor");
            assert!(map.contains(&format!("{name}/")), "ARCHITECTURE.md does not name {name}/");
        }
    }
}

#[test]
fn what_is_banned_stays_out() {
    for path in sources(&root().join("src")) {
        let Some(here) = room(&path) else { continue };
        let text = code(&path);
        for (room, words, why) in BANS {
            for word in words.iter().filter(|_| room == here) {
                assert!(!text.contains(word), "{} says {word:?}: {why}", path.display());
            }
        }
    }
}

#[test]
fn nothing_is_left_unfinished() {
    for folder in ["src", "tests", "benches"] {
        for path in sources(&root().join(folder)).into_iter().filter(|path| !path.ends_with("tidy.rs")) {
            let text = std::fs::read_to_string(&path).unwrap();
            for word in UNFINISHED {
                assert!(!text.contains(word), "{} says {word:?}", path.display());
            }
        }
    }
}

#[test]
fn every_module_says_what_it_is_for() {
    for folder in ["src", "tests", "benches"] {
        for path in sources(&root().join(folder)) {
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("//! "), "{} does not open with what it is for", path.display());
        }
    }
}
