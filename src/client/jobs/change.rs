//! What people ask to be changed in a job file, and what follows from it for keys that they did not name.
//!
//! A change means what it says, and takes away what cannot stay beside it: the keys of a type that the job no longer has, the
//! command where a file is to run, another spelling of the interval. Nothing else; whether the result is right is the
//! reader's to say.

use toml_edit::Value;

use crate::client::{Code, Failure};
use crate::model::job::draft::Draft;
use crate::model::job::keys::{JOB_KEYS, foreign_keys, is_of_types, job_key, types_with};
use crate::model::message::{did_you_mean, listed, quoted};

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// Keys and their new values, in the order of the table of keys.
    pub set: Vec<(&'static str, Value)>,
    /// Members of tables and their new values.
    pub members: Vec<(&'static str, String, Value)>,
    /// Keys to remove, or members as `table.member`.
    pub unset: Vec<String>,
}

/// What was done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Keys that have a new value.
    pub set: Vec<String>,
    /// Keys that went, each with the reason.
    pub removed: Vec<(String, String)>,
    /// Keys that were to go and were not there.
    pub absent: Vec<String>,
}

/// The keys of which a job has one alone.
const ALTERNATIVES: [(&str, &[&str]); 6] = [
    ("command", &["file", "function"]),
    ("file", &["command"]),
    ("function", &["command"]),
    ("interval", &["interval_minutes", "interval_seconds"]),
    ("interval_minutes", &["interval", "interval_seconds"]),
    ("interval_seconds", &["interval", "interval_minutes"]),
];

impl Change {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.members.is_empty() && self.unset.is_empty()
    }

    /// Changes a draft.
    ///
    /// # Errors
    /// What was asked cannot be meant; exit code 2.
    pub fn apply(mut self, draft: &mut Draft) -> Result<Done, Failure> {
        self.check_unset(draft)?;
        let mut done = Done::default();
        let new_type = self.new_type(draft)?;
        for name in &self.unset {
            if draft.remove(&path(name)) {
                done.removed.push((name.clone(), "as asked".to_owned()));
            } else {
                done.absent.push(name.clone());
            }
        }
        if let Some(word) = &new_type {
            let why = format!("a job of type {word} has none");
            let foreign: Vec<&str> = foreign_keys(word).collect();
            self.give_way(draft, &foreign, &why, &mut done);
        }
        let named: Vec<&str> = self.set.iter().map(|(key, _)| *key).collect();
        for (key, others) in ALTERNATIVES.iter().filter(|(key, _)| named.contains(key)) {
            self.give_way(draft, others, &format!("{key} stands instead"), &mut done);
        }
        if let Some(word) = new_type
            && !named.contains(&"type")
            && (draft.has(&["type"]) || word != "trigger")
        {
            self.set.insert(0, ("type", Value::from(word)));
        }
        for (key, value) in &self.set {
            if draft.set(key, value) {
                done.set.push((*key).to_owned());
            }
        }
        for (key, name, value) in &self.members {
            if draft.set_member(key, name, value) {
                done.set.push(format!("{key}.{name}"));
            }
        }
        Ok(done)
    }

    fn names(&self, key: &str) -> bool {
        self.set.iter().any(|(name, _)| *name == key)
    }

    fn give_way(&self, draft: &mut Draft, keys: &[&str], why: &str, done: &mut Done) {
        for key in keys.iter().filter(|key| !self.names(key)) {
            if draft.remove(&[key]) {
                done.removed.push(((*key).to_owned(), why.to_owned()));
            }
        }
    }

    /// Refuses names that nobody knows, and a key that is both set and removed.
    fn check_unset(&self, draft: &Draft) -> Result<(), Failure> {
        for name in &self.unset {
            let path = path(name);
            let key = path.first().copied().unwrap_or_default();
            if job_key(key).is_none() && !draft.has(&path) {
                let known: Vec<&str> = JOB_KEYS.iter().map(|key| key.name).collect();
                let error = format!("--unset {}: a job has no such key", quoted(name));
                return Err(Failure::new(Code::Usage, error, did_you_mean(key, &known)));
            }
            let is_member_set = self.members.iter().any(|(of, member, _)| path == [*of, member] || path == [*of]);
            if self.names(key) || is_member_set {
                let error = format!("{name} is to be set and to be removed");
                return Err(Failure::new(Code::Usage, error, "leave one of the two out"));
            }
        }
        Ok(())
    }

    /// The type that the job shall have, if that is another one than it has: the one that is named, or else the one type that has
    /// all the keys that are set.
    fn new_type(&self, draft: &Draft) -> Result<Option<String>, Failure> {
        let old = if draft.has(&["type"]) { draft.string("type") } else { Some("trigger".to_owned()) };
        let other = |word: &str| (old.as_deref() != Some(word)).then(|| word.to_owned());
        if let Some((_, named)) = self.set.iter().find(|(key, _)| *key == "type") {
            return Ok(named.as_str().and_then(other));
        }
        if self.unset.iter().any(|key| key == "type") {
            return Ok(other("trigger"));
        }
        let own: Vec<&str> = self.set.iter().map(|(key, _)| *key).filter(|key| is_of_types(key)).collect();
        let fitting = types_with(&own);
        if own.is_empty() || old.as_deref().is_some_and(|old| fitting.contains(&old)) {
            return Ok(None);
        }
        match fitting[..] {
            [one] => Ok(Some(one.to_owned())),
            [] => {
                let error = format!("{} are keys of different types", listed(&own));
                Err(Failure::new(Code::Usage, error, "name the type with --type, and only its own keys"))
            }
            _ => {
                let old = old.map_or_else(|| "of no known type".to_owned(), |old| format!("of type `{old}`"));
                let verb = if own.len() == 1 { "is a key" } else { "are keys" };
                let error = format!("{} {verb} of the types {}, and the job is {old}", listed(&own), listed(&fitting));
                let hint = format!("say which with --type, such as --type {}", fitting.first().unwrap_or(&"daily"));
                Err(Failure::new(Code::Usage, error, hint))
            }
        }
    }
}

/// A key, or a table and the member of it.
fn path(name: &str) -> Vec<&str> {
    match name.split_once('.') {
        Some((table, member)) => vec![table, member],
        None => vec![name],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(set: &[(&'static str, &str)], unset: &[&str]) -> Change {
        let set = set.iter().map(|(key, value)| (*key, value.parse().unwrap())).collect();
        Change { set, members: Vec::new(), unset: unset.iter().map(|key| (*key).to_owned()).collect() }
    }

    fn applied(text: &str, change: Change) -> Result<(String, Done), Failure> {
        let mut draft = Draft::open("j.toml", text).unwrap();
        let done = change.apply(&mut draft)?;
        Ok((draft.text(), done))
    }

    #[track_caller]
    fn check(text: &str, set: &[(&'static str, &str)], unset: &[&str], expected: &str, removed: &[&str]) {
        let (after, done) = applied(text, change(set, unset)).unwrap();
        let gone: Vec<&str> = done.removed.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!((after.as_str(), &gone[..]), (expected, removed));
    }

    #[test]
    fn a_key_of_one_type_brings_its_type_and_takes_the_others_keys_away() {
        let daily = "type = \"daily\" # when\ntime = \"09:00\"\nfile = \"a\"\njitter = \"5m\"\n";
        check(
            daily,
            &[("interval", "\"30m\"")],
            &[],
            "type = \"interval\" # when\nfile = \"a\"\njitter = \"5m\"\ninterval = \"30m\"\n",
            &["time"],
        );
        check(
            "file = \"a\"\n",
            &[("time", "\"09:00\"")],
            &[],
            "file = \"a\"\ntype = \"daily\"\ntime = \"09:00\"\n",
            &[],
        );
        check(daily, &[("type", "\"trigger\"")], &[], "type = \"trigger\" # when\nfile = \"a\"\n", &["time", "jitter"]);
        check(daily, &[], &["type"], "file = \"a\"\n", &["type", "time", "jitter"]);
        // What the type has is only changed.
        check(daily, &[("jitter", "\"1m\"")], &[], &daily.replace("5m", "1m"), &[]);
        check(daily, &[("type", "\"daily\"")], &[], daily, &[]);
        // Without --type it is what the keys say; a contradiction is left to the reader.
        check(
            "file = \"a\"\n",
            &[("type", "\"cron\""), ("time", "1")],
            &[],
            "file = \"a\"\ntype = \"cron\"\ntime = 1\n",
            &[],
        );
    }

    #[test]
    fn what_fits_several_types_or_none_is_asked_back() {
        for (text, set, said) in [
            (
                "file = \"a\"",
                &[("timezone", "1")][..],
                "`daily`, `random_daily` and `cron`, and the job is of type `trigger`",
            ),
            ("type = 5", &[("instances", "1")], "`always` and `idle`, and the job is of no known type"),
            ("file = \"a\"", &[("time", "1"), ("cron", "1")], "different types"),
        ] {
            let failure = applied(text, change(set, &[])).unwrap_err();
            assert!(failure.code == Code::Usage && failure.error.contains(said), "{failure:?}");
        }
    }

    #[test]
    fn what_cannot_stand_beside_it_gives_way() {
        check("command = [\"a\"]\n", &[("file", "\"b\"")], &[], "file = \"b\"\n", &["command"]);
        check(
            "file = \"a.py\"\nfunction = \"f\"\n",
            &[("command", "[\"b\"]")],
            &[],
            "command = [\"b\"]\n",
            &["file", "function"],
        );
        let text = "type = \"interval\"\ninterval_minutes = 5\n";
        check(text, &[("interval", "\"1h\"")], &[], "type = \"interval\"\ninterval = \"1h\"\n", &["interval_minutes"]);
        let both = change(&[("file", "1"), ("command", "1")], &[]);
        assert_eq!(applied("", both).unwrap().0, "file = 1\ncommand = 1\n", "left to the reader");
    }

    #[test]
    fn what_is_to_go_is_known_or_there_and_not_also_set() {
        check(
            "a = 1\nretries = 2\nenv = { X = \"1\", Y = \"2\" }\n",
            &[],
            &["a", "env.X"],
            "retries = 2\nenv = { Y = \"2\" }\n",
            &["a", "env.X"],
        );
        let (_, done) = applied("a = 1\n", change(&[], &["retries", "env.X"])).unwrap();
        assert_eq!(done.absent, ["retries", "env.X"]);
        let failure = applied("", change(&[], &["retrys"])).unwrap_err();
        assert!(failure.code == Code::Usage && failure.hint.contains("`retries`"), "{failure:?}");
        assert!(applied("", change(&[("retries", "1")], &["retries"])).is_err());
        for gone in ["env", "env.X"] {
            let member = ("env", "X".to_owned(), Value::from("1"));
            let both = Change { members: vec![member], ..change(&[], &[gone]) };
            assert!(applied("env.X = 1\n", both).is_err(), "{gone}");
        }
    }
}
