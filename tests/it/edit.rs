//! `jobs add`, `update`, `enable`, `disable` and `delete`: what becomes of the files, and of whoever reads them.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use super::volume::Volume;

/// A volume that no device has used.
fn volume() -> Volume {
    let volume = Volume::new();
    for folder in ["Triggers/.running", "Triggers/.waiting", "Triggers/.ids", "Devices"] {
        std::fs::create_dir_all(volume.common(folder)).unwrap();
    }
    std::fs::write(volume.common(".volume"), "0123456789abcdef\n").unwrap();
    volume
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

/// The verb with options that stand before a `--`.
fn run(volume: &Volume, line: &str) -> Output {
    let words = words(line);
    let at = words.iter().position(|word| *word == "--").unwrap_or(words.len());
    let mut command = volume.command(&words[..at]);
    command.args(&words[at..]).output().unwrap()
}

fn code(volume: &Volume, line: &str) -> Option<i32> {
    run(volume, line).status.code()
}

/// What a good verb says, and beside it what it notes.
#[track_caller]
fn said(volume: &Volume, line: &str) -> (String, String) {
    let output = run(volume, line);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
    (text(output.stdout), text(output.stderr))
}

/// The exit code and the error of one that is refused.
#[track_caller]
fn refused(volume: &Volume, line: &str) -> (i32, String) {
    let output = run(volume, &line.replacen("jobs ", "--json jobs ", 1));
    assert!(output.stdout.is_empty() && !output.status.success(), "{line}: {output:?}");
    let error: Value = serde_json::from_slice(&output.stderr).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    assert_eq!(error["exit_code"], json!(output.status.code()));
    (
        output.status.code().unwrap(),
        format!("{} | {}", error["error"].as_str().unwrap(), error["hint"].as_str().unwrap()),
    )
}

fn text(volume: &Volume, job: &str) -> String {
    std::fs::read_to_string(volume.path("Programs").join(format!("{job}.toml"))).unwrap()
}

fn names(volume: &Volume) -> Vec<String> {
    let entries = std::fs::read_dir(volume.path("Programs")).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_job_is_added_as_the_formats_say_and_shown_as_it_is() {
    let volume = volume();
    let line = "jobs add --name my_job --file my_job.py --function run --type daily --time 09:00";
    let (out, notes) = said(&volume, line);
    assert_eq!(out, "wrote Programs/my_job.toml\n");
    assert!(notes.contains("my_job.py is not there"), "{notes}");
    let expected = "type = \"daily\"\ntime = \"09:00\"\nfile = \"my_job.py\"\nfunction = \"run\"\n";
    assert_eq!(text(&volume, "my_job"), expected);
    let (_, shown) = volume.ask(&["jobs", "show", "my_job"]);
    assert_eq!((&shown["type"], &shown["time"], &shown["timezone"]), (&json!("daily"), &json!("09:00"), &json!("UTC")));
    // The type follows from a key that it alone has; the command stands behind `--`.
    let output = run(&volume, "--json jobs add other --interval 30m --tag a,b --env K=v=w --retries 2 -- sh -c true");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer, volume.ask(&["jobs", "show", "other"]).1);
    let expected = "type = \"interval\"\ninterval = \"30m\"\ncommand = [\"sh\", \"-c\", \"true\"]\n\
                    tags = [\"a\", \"b\"]\nretries = 2\nenv = { K = \"v=w\" }\n";
    assert_eq!(text(&volume, "other"), expected);
    assert_eq!(code(&volume, "jobs validate other"), Some(0));
}

#[test]
fn what_cannot_be_added_is_not_written() {
    let volume = volume();
    volume.job("old", "command = [\"true\"]\n");
    symlink("/nowhere", volume.path("Programs/link.toml")).unwrap();
    std::fs::create_dir(volume.path("Programs/folder.toml")).unwrap();
    std::fs::write(volume.path("Programs/möwe.toml"), "command = [\"true\"]\n").unwrap();
    let before = names(&volume);
    for (line, said) in [
        ("jobs add old -- false", "the job old is there already"),
        ("jobs add link -- false", "the job link is there already"),
        ("jobs add folder -- false", "the job folder is there already"),
        ("jobs add pools -- false", "Programs/pools.toml is no job's file"),
        ("jobs add a/b -- false", "job name \"a/b\" is not valid"),
        ("jobs add möwe -- false", "Programs/ has a file \"möwe.toml\": rename it"),
        ("jobs add new", "Programs/new.toml:1:1: found neither `command` nor `file`"),
        ("jobs add new --file a.py --time 9:00", "Programs/new.toml:2:8: `time` is \"9:00\""),
        ("jobs add new --file ../a --retries 5 --timeout 0s", "Programs/new.toml:2:11: `timeout` is 0"),
        (
            "jobs add new --file a.py --timezone UTC",
            "`daily`, `random_daily` and `cron`, and the job is of type `trigger`",
        ),
        ("jobs add new --file a.py --time 09:00 --cron @daily", "`time` and `cron` are keys of different types"),
        ("jobs add new --name other -- true", "cannot be used with"),
        ("jobs add -- true", "required"),
        ("jobs add new --file a -- true", "cannot be used with"),
        ("jobs add new --overlap skp -- true", "skp"),
        ("jobs add new --priority 1000 -- true", "1000"),
        ("jobs add new --args [1 -- true", "found the end"),
        ("jobs add new --kwargs [] -- true", "expected a JSON object"),
        ("jobs add new --env A -- true", "KEY=VALUE"),
    ] {
        let (code, error) = refused(&volume, line);
        assert!(code == 2 && error.contains(said), "{line}: {code} {error}");
    }
    assert_eq!(names(&volume), before);
}

const WRITTEN: &str = "# Nightly.\r\n\r\ntype = \"daily\"   # each day\r\ntime=\"09:00\" # early\r\nfile = 'report.py'\r\n\r\n\
                       # How it is called:\r\nfunction = \"run\"\r\n[kwargs]  # words\r\n\ta = 1 # one\r\n";

#[test]
fn an_update_changes_what_is_asked_and_not_one_byte_more() {
    let volume = volume();
    let whole = format!("\u{feff}{WRITTEN}");
    volume.job("j", &whole);
    let path = volume.path("Programs/j.toml");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let may_give_away = std::os::unix::fs::chown(&path, Some(1234), Some(1235)).is_ok();
    let (out, _) = said(&volume, "jobs update j --time 10:30 --retries 3 --kwarg b=x");
    assert_eq!(out, "changed Programs/j.toml: set `time`, `retries` and `kwargs.b`\n");
    let expected = whole
        .replace("\"09:00\"", "\"10:30\"")
        .replace("\"run\"\r\n", "\"run\"\r\nretries = 3\r\n")
        .replace("# one\r\n", "# one\r\n\tb = \"x\"\r\n");
    assert_eq!(text(&volume, "j"), expected);
    let meta = std::fs::metadata(&path).unwrap();
    assert_eq!(meta.mode() & 0o7777, 0o640);
    assert!(!may_give_away || (meta.uid(), meta.gid()) == (1234, 1235), "{meta:?}");
    // The same again is no change: the file is not even touched.
    let (out, _) = said(&volume, "jobs update j --time 10:30 --unset tags");
    assert_eq!(out, "Programs/j.toml stays as it is: `tags` was not set\n");
    assert_eq!(std::fs::metadata(&path).unwrap().ino(), meta.ino());
    said(&volume, "jobs update j --time 09:00 --unset retries,kwargs.b");
    assert_eq!(text(&volume, "j"), whole);
    // Another type: what it has not goes, and that is said.
    let (out, _) = said(&volume, "jobs update j --interval 30m");
    let gone = "changed Programs/j.toml: set `type` and `interval`; removed `time` (a job of type interval has none)\n";
    assert_eq!(out, gone);
    let expected = whole
        .replace("\"daily\"", "\"interval\"")
        .replace("time=\"09:00\" # early\r\n", "")
        .replace("\"run\"\r\n", "\"run\"\r\ninterval = \"30m\"\r\n");
    assert_eq!(text(&volume, "j"), expected);
    assert_eq!(names(&volume), ["j.toml"]);
}

#[test]
fn an_update_that_would_be_wrong_leaves_the_file_alone() {
    let volume = volume();
    volume.job("good", "file = \"a.py\" # a\n");
    volume.job("broken", "file = \"a.py\"\nretries = \n");
    volume.job("wrong", "file = \"a.py\"\nretrys = 2\n");
    std::fs::write(volume.path("Programs/latin.toml"), b"file = \"\xe9.py\"\n").unwrap();
    symlink("good.toml", volume.path("Programs/link.toml")).unwrap();
    let bytes = |name: &str| std::fs::read(volume.path("Programs").join(name)).unwrap();
    let before: Vec<_> = ["good.toml", "broken.toml", "wrong.toml", "latin.toml"].map(bytes).into();
    for (line, status, said) in [
        (
            "jobs update good --timeout soon",
            2,
            "Programs/good.toml:2:11: `timeout` is \"soon\", expected a number with a unit",
        ),
        ("jobs update good --function f.g", 2, "Programs/good.toml:2:12: `function` is \"f.g\""),
        ("jobs update good --type daily", 2, "found no `time`, which this type needs | add time = \"09:00\""),
        ("jobs update good --type daily --tag x! --notify nowhere", 2, "; Programs/good.toml:3:9: "),
        ("jobs update good --unset file", 2, "found neither `command` nor `file`"),
        ("jobs update good --unset retrys", 2, "did you mean `retries`?"),
        ("jobs update good --unset timeout --timeout 5s", 2, "to be set and to be removed"),
        ("jobs update good", 2, "nothing to change"),
        ("jobs update broken --retries 5", 2, "Programs/broken.toml:2:11: not valid TOML"),
        ("jobs update wrong --retries 5", 2, "unknown key \"retrys\" | did you mean `retries`?"),
        ("jobs disable wrong", 2, "unknown key \"retrys\""),
        ("jobs update latin --retries 5", 2, "not UTF-8 at offset 8"),
        ("jobs update link --retries 5", 2, "found a symbolic link, expected a regular file"),
        ("jobs update god --retries 5", 3, "did you mean good?"),
        ("jobs enable god", 3, "did you mean good?"),
        ("jobs delete god", 3, "did you mean good?"),
        ("jobs update pools --retries 5", 3, "no job \"pools\""),
    ] {
        let (code, error) = refused(&volume, line);
        assert!(code == status && error.contains(said), "{line}: {code} {error}");
    }
    assert_eq!(Vec::from(["good.toml", "broken.toml", "wrong.toml", "latin.toml"].map(bytes)), before);
    // What mends the file is taken.
    said(&volume, "jobs update wrong --retries 2 --unset retrys");
    assert_eq!(text(&volume, "wrong"), "file = \"a.py\"\nretries = 2\n");
}

#[test]
fn a_job_is_disabled_and_enabled_by_one_word() {
    let volume = volume();
    volume.job("j", "command = [\"true\"] # it\n");
    assert_eq!(said(&volume, "jobs enable j").0, "j is enabled already\n");
    assert_eq!(said(&volume, "jobs disable j").0, "disabled j\n");
    assert_eq!(text(&volume, "j"), "command = [\"true\"] # it\nenabled = false\n");
    assert_eq!(said(&volume, "jobs disable j").0, "j is disabled already\n");
    let (code, shown) = volume.ask(&["jobs", "enable", "j"]);
    assert_eq!((code, &shown["enabled"]), (Some(0), &json!(true)));
    assert_eq!(text(&volume, "j"), "command = [\"true\"] # it\nenabled = true\n");
}

struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

#[test]
fn a_folder_that_cannot_be_written_to_is_told_with_what_to_do() {
    let volume = volume();
    volume.job("j", "command = [\"true\"]\n");
    let folder = volume.path("Programs");
    let lines = ["jobs add k -- true", "jobs update j --retries 5", "jobs disable j", "jobs delete j"];
    std::fs::rename(&folder, volume.path("Elsewhere")).unwrap();
    symlink(volume.path("Elsewhere"), &folder).unwrap();
    let real = volume.path("Elsewhere").canonicalize().unwrap();
    for line in lines {
        let (code, error) = refused(&volume, line);
        let hint = format!("--programs {}", real.display());
        assert!(code == 4 && error.contains("is a symbolic link") && error.ends_with(&hint), "{line}: {error}");
    }
    std::fs::remove_file(&folder).unwrap();
    for line in lines {
        assert_eq!(refused(&volume, line).0, 4, "{line}: there is no Programs");
    }
    assert!(!folder.exists());
    std::fs::rename(volume.path("Elsewhere"), &folder).unwrap();
    let mounted = Command::new("mount").args(["--bind", "-o", "ro"]).args([&folder, &folder]).status();
    let _unmount = Unmount(&folder);
    let remounted = Command::new("mount").args(["-o", "remount,bind,ro"]).arg(&folder).status();
    if ![mounted, remounted].into_iter().all(|status| status.is_ok_and(|status| status.success())) {
        println!("SKIPPED: a folder cannot be mounted read-only here (not root?); that is not tested");
        return;
    }
    for line in lines {
        let (code, error) = refused(&volume, line);
        assert!(code == 4 && error.contains("mounted read-only here: change the file where"), "{line}: {error}");
    }
    assert_eq!(names(&volume), ["j.toml"]);
}

#[test]
fn changes_at_the_same_time_are_all_there() {
    let volume = volume();
    volume.job("j", "command = [\"true\"]\n");
    let children: Vec<_> = (0..12)
        .map(|number| {
            let member = format!("V{number}={number}");
            volume.command(&["-q", "jobs", "update", "j", "--env", &member]).spawn().unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let (_, shown) = volume.ask(&["jobs", "show", "j"]);
    assert_eq!(shown["env"].as_object().unwrap().len(), 12, "{shown}");
    // Of those who add the same job one has added it.
    let children: Vec<_> = (0..8)
        .map(|number| {
            let number = number.to_string();
            let mut command = volume.command(&["--json", "jobs", "add", "k", "--file", "a", "--retries", &number]);
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap()
        })
        .collect();
    let codes: Vec<_> = children.into_iter().map(|mut child| child.wait().unwrap().code()).collect();
    assert_eq!(codes.iter().filter(|code| **code == Some(0)).count(), 1, "{codes:?}");
    assert!(codes.iter().all(|code| matches!(code, Some(0 | 2))), "{codes:?}");
}

#[test]
fn a_device_takes_what_was_changed() {
    let mut volume = Volume::new();
    volume.start("a", &[]);
    std::fs::write(volume.path("Programs/told.sh"), "printf '\"%s\"' \"$WORD\" > \"$AIOS_RESULT\"\n").unwrap();
    said(&volume, "jobs add told --file told.sh --env WORD=one");
    volume.drop_trigger("first.json", "{\"job\": \"told\"}");
    assert_eq!(volume.outcome("told")["result"], "one");
    said(&volume, "jobs update told --env WORD=two");
    volume.wait("the change is taken", |volume| {
        volume.drop_trigger("more.json", "{\"job\": \"told\"}");
        volume.results("told").iter().any(|result| result["result"] == "two")
    });
}

#[test]
fn what_becomes_of_open_runs_is_said() {
    let volume = volume();
    let held = |job: &str, device: &str| {
        json!({"job": job, "stem": job, "cause": "trigger", "trigger": "x.json", "attempt": 1, "device": device,
               "session": "0123456789abcdef", "priority": 0, "slots": 1, "claimed_at": "2026-11-21T03:41:56.123Z"})
    };
    let id = |number: usize| format!("20261121T034156123Z-00000{number}");
    let state = json!({
        "schema": 1, "revision": 1, "last_commits": [], "jobs": {}, "requests": [],
        "runs": {id(1): held("slow", "a"), id(2): held("web", "a"), id(3): held("web", "b")}
    });
    std::fs::write(volume.common("state.json"), state.to_string()).unwrap();
    let waiting = format!("Triggers/.waiting/20261121T034156123Z.{}.2.slow.json", id(4));
    std::fs::write(volume.common(&waiting), "{\"job\": \"slow\"}").unwrap();
    volume.drop_trigger("slow.json", "{\"job\": \"slow\"}");
    // It goes by the job's name, and is none of its runs.
    volume.drop_trigger(&format!("slow.{}.json", id(5)), "{\"command\": [\"true\"]}");
    volume.job("slow", "command = [\"true\"]\n");
    volume.job("web", "command = [\"true\"]\ntype = \"always\"\n");
    let notes = |line: &str| said(&volume, line).1;
    let stopped = "2 runs are active: they are stopped, and end as cancelled\n";
    assert_eq!(
        notes("jobs disable slow"),
        "a run is active: it goes on to its end\n2 runs wait until the job is enabled\n"
    );
    assert_eq!(notes("jobs disable web"), stopped);
    assert_eq!(notes("jobs disable web"), "", "nothing changed");
    assert_eq!(notes("-q jobs delete web"), "");
    volume.job("web", "command = [\"true\"]\ntype = \"always\"\n");
    assert_eq!(said(&volume, "jobs delete web"), ("removed Programs/web.toml\n".to_owned(), stopped.to_owned()));
    volume.job("other", "command = [\"true\"]\n");
    assert_eq!(
        notes("jobs delete slow"),
        "a run is active: it goes on to its end, and is not tried again\n\
         a run waits for another attempt: it ends as failed\na trigger waits: it is rejected after 10 s\n"
    );
    // A file that is no good job can be deleted too.
    volume.job("slow", "x");
    let (code, answer) = volume.ask(&["jobs", "delete", "slow"]);
    assert_eq!((code, &answer["active"], answer["waiting"].as_array().unwrap().len()), (Some(0), &json!([id(1)]), 2));
    let removed = answer["removed"].as_str().unwrap();
    assert!(removed.ends_with("/Programs/slow.toml") && !Path::new(removed).exists(), "{removed}");
}
