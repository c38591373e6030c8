//! Backup and restore with the real binary: the way there and back, what is refused, and what is left where it is cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use aios::model::backup::BackupName;
use aios::model::device::Me;
use aios::model::entry::{Waiting, parse_running, split_dropped};
use aios::model::ids::{DeviceId, RunId, Session};
use aios::volume::atomic::{Temporary, temporary_session};
use aios::volume::backup::restore::Wish;
use aios::volume::backup::{self, RESULTS, Terms};
use aios::volume::layout::Layout;
use aios::volume::os::OsDisk;
use aios::volume::results;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::keep::Meddled;
use super::volume::{Volume, files, mount_small, read};

/// Makes a volume without a device, with one trigger in it.
fn make(volume: &Volume) {
    let output = volume.command(&["exec"]).args(["--", "true"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Makes a backup and says where it is.
fn back_up(volume: &Volume, more: &[&str]) -> PathBuf {
    let (code, made) = volume.ask(&[&["backup"], more].concat());
    assert_eq!(code, Some(0), "{made}");
    PathBuf::from(made["path"].as_str().unwrap())
}

/// What `restore` answers, and its exit code.
fn restore(volume: &Volume, archive: &Path, more: &[&str]) -> (Option<i32>, Value) {
    let mut command: Command = volume.command(&["restore"]);
    let output = command.arg(archive).args(more).arg("--json").output().unwrap();
    let answer = if output.status.success() { &output.stdout } else { &output.stderr };
    let answer = serde_json::from_slice(answer).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), answer)
}

fn restored(volume: &Volume, archive: &Path, more: &[&str]) -> Value {
    let (code, done) = restore(volume, archive, more);
    assert_eq!(code, Some(0), "{done}");
    done
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Everything in an archive, by name.
fn unpack(archive: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut tar = tar::Archive::new(zstd::Decoder::new(std::fs::File::open(archive).unwrap()).unwrap());
    let mut all = BTreeMap::new();
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
        assert!(all.insert(name, bytes).is_none());
    }
    all
}

/// The runs in an archive: those that are open, and those of which there is a result.
fn runs_in(archive: &Path) -> (BTreeSet<RunId>, BTreeSet<RunId>) {
    let (mut open, mut ended) = (BTreeSet::new(), BTreeSet::new());
    for name in unpack(archive).into_keys() {
        let path = Path::new(&name);
        let file = path.file_name().unwrap();
        match path.parent().unwrap().to_str().unwrap() {
            "Triggers" => assert!(open.insert(split_dropped(file).1.unwrap()), "{name}"),
            "Triggers/.waiting" => assert!(open.insert(Waiting::parse(file).unwrap().run), "{name}"),
            "Triggers/.running" => assert!(open.insert(parse_running(file).unwrap().0.run), "{name}"),
            folder if folder.starts_with("Results/") => {
                ended.insert(results::parse_name(file, "json").unwrap().run);
            }
            _ => {}
        }
    }
    (open, ended)
}

/// How many final results each run has.
fn finals(volume: &Volume) -> BTreeMap<RunId, usize> {
    let mut finals = BTreeMap::new();
    for path in files(&volume.common("Results")) {
        let result = read(&path).unwrap();
        let run = RunId::parse(result["run_id"].as_str().unwrap()).unwrap();
        *finals.entry(run).or_default() += usize::from(result["final"] == true);
    }
    finals
}

fn idle(volume: &Volume) -> bool {
    let open = ["", ".waiting", ".running"].iter().any(|folder| {
        let names = std::fs::read_dir(volume.common("Triggers").join(folder)).unwrap();
        names.map(|entry| entry.unwrap().file_name()).any(|name| name.to_string_lossy().ends_with(".json"))
    });
    !open
        && volume
            .state()
            .is_some_and(|state| state["runs"].as_object().unwrap().is_empty() && state["rebuilt"].is_null())
}

/// Stops a device as a person would.
fn stop(volume: &mut Volume, id: &str) {
    volume.signal(id, Signal::TERM);
    assert_eq!(volume.ended(id), Some(0));
}

#[test]
fn a_restored_volume_goes_on_where_the_backup_was_made() {
    let mut old = Volume::new();
    old.script("quick.sh", "");
    old.job("quick", "file = \"quick.sh\"\n");
    old.script("again.sh", "exit 3");
    old.job("again", "file = \"again.sh\"\nretries = 1\nbackoff = \"1h\"\nbackoff_max = \"1h\"\n");
    std::fs::write(old.path("Programs/tool"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(old.path("Programs/tool"), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("tool", old.path("Programs/link")).unwrap();
    old.start("a", &[]);
    let keys = old.common("Security/keys/one.json");
    std::fs::create_dir_all(keys.parent().unwrap()).unwrap();
    std::fs::write(&keys, "secret").unwrap();
    std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o600)).unwrap();
    let long =
        "a-name-that-is-longer-than-what-the-header-of-a-tar-archive-has-room-for-so-that-it-needs-an-entry-of-its-own";
    old.drop_copy("done.json", "{\"job\": \"quick\", \"id\": \"once\"}");
    old.drop_copy("again.json", "{\"job\": \"again\"}");
    old.drop_copy(&format!("{long}.json"), "{\"job\": \"quick\", \"tags\": [\"late\"]}");
    old.wait("one ended and one waits", |volume| {
        volume.finals("quick") == 1 && volume.results("again").len() == 1 && volume.holder("again").is_none()
    });
    stop(&mut old, "a");
    let archive = back_up(&old, &[]);
    assert_eq!(mode(&archive), 0o600);
    assert!(BackupName::parse(archive.file_name().unwrap().to_str().unwrap()).is_some(), "{}", archive.display());
    let inside = unpack(&archive);
    let manifest: Value = serde_json::from_slice(&inside["manifest.json"]).unwrap();
    assert_eq!((&manifest["schema"], &manifest["state_schema"]), (&json!(1), &json!(1)));
    let of = |part: &str| {
        manifest["parts"].as_array().unwrap().iter().find(|it| it["part"] == part).unwrap()["files"].clone()
    };
    assert_eq!((of("state"), of("inbox"), of("waiting"), of("running")), (json!(1), json!(1), json!(1), json!(0)));
    assert_eq!((of("keys"), of("security"), of("results"), of("programs")), (json!(1), json!(1), json!(2), json!(5)));
    assert_eq!(manifest["skipped"], json!([{"path": "Programs/link", "why": "it is a symbolic link"}]));
    let (code, listed) = old.ask(&["backup", "list"]);
    assert_eq!((code, &listed[0]["path"]), (Some(0), &json!(archive)));

    let mut new = Volume::new();
    std::fs::remove_dir(new.path("Programs")).unwrap();
    let done = restored(&new, &archive, &[]);
    assert_eq!((&done["stayed"], &done["runs_reconciled"]), (&json!(0), &json!(0)), "{done}");
    let id = |volume: &Volume| std::fs::read_to_string(volume.common(".volume")).unwrap();
    assert_eq!(id(&new), id(&old));
    assert_eq!((mode(&new.common("Security/keys/one.json")), mode(&new.common("Security"))), (0o600, 0o700));
    assert_eq!(mode(&new.path("Programs/tool")), 0o755);
    assert_eq!(std::fs::read_to_string(new.common("Security/keys/one.json")).unwrap(), "secret");
    let [before, after] = [&old, &new].map(|volume| {
        let path = files(&volume.common("Results")).into_iter().next().unwrap();
        let changed = std::fs::metadata(&path).unwrap().modified().unwrap();
        (std::fs::read(&path).unwrap(), changed.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs())
    });
    assert_eq!(before, after, "a result keeps its content and its age");
    let listed = |volume: &Volume| {
        let (_, runs) = volume.ask(&["runs", "list"]);
        let of_run = |run: &Value| (run["run_id"].to_string(), run["status"].to_string());
        runs.as_array().unwrap().iter().map(of_run).collect::<BTreeSet<_>>()
    };
    assert_eq!(listed(&new), listed(&old));
    let waits = |volume: &Volume| {
        std::fs::read_dir(volume.common("Triggers/.waiting"))
            .unwrap()
            .map(|it| it.unwrap().file_name())
            .collect::<Vec<_>>()
    };
    assert_eq!(waits(&new), waits(&old));

    new.start("late", &[]);
    new.wait("what waited for a device has run", |volume| volume.finals("quick") == 2);
    // Its key was used, and its run is there.
    new.drop_copy("twice.json", "{\"job\": \"quick\", \"id\": \"once\"}");
    new.wait("it is a duplicate", |volume| {
        files(&volume.common("TriggersProcessed")).iter().any(|path| path.to_string_lossy().contains("duplicate-of"))
    });
    assert_eq!(new.finals("quick"), 2);
    let again = new.results("again")[0]["run_id"].as_str().unwrap().to_owned();
    assert_eq!(new.ask(&["runs", "retry", &again]).0, Some(0));
    new.wait("its second attempt", |volume| volume.finals("again") == 1);
    let attempts: Vec<Value> = new.results("again").iter().map(|result| result["attempt"].clone()).collect();
    assert_eq!(attempts, [json!(1), json!(2)]);
}

#[test]
fn of_a_busy_volume_every_backup_ends_every_run_once() {
    let mut old = Volume::new();
    old.job("quick", "command = [\"sleep\", \"0.05\"]\n");
    old.job("twice", "command = [\"sh\", \"-c\", \"test $AIOS_ATTEMPT -ge 2\"]\nretries = 2\nbackoff = \"50ms\"\n");
    old.job("next", "command = [\"true\"]\n");
    old.job("first", "command = [\"true\"]\non_success = [\"next\"]\n");
    old.start("a", &["--slots", "3"]);
    old.start("b", &["--slots", "3"]);
    let mut archives = Vec::new();
    for round in 0..6 {
        for number in 0..10 {
            let job = ["quick", "twice", "first"][number % 3];
            old.drop_trigger(&format!("{job}-{round}-{number}.json"), &format!("{{\"job\": \"{job}\"}}"));
        }
        archives.push(back_up(&old, &[]));
    }
    stop(&mut old, "a");
    stop(&mut old, "b");
    let mut some_were_open = 0;
    for archive in archives {
        let (open, ended) = runs_in(&archive);
        some_were_open += open.len();
        let mut new = Volume::new();
        restored(&new, &archive, &[]);
        new.start("c", &[]);
        new.wait("everything is over", idle);
        let finals = finals(&new);
        assert!(finals.values().all(|count| *count == 1), "{finals:?}");
        let all: BTreeSet<&RunId> = open.union(&ended).collect();
        assert!(all.iter().all(|run| finals.contains_key(run)), "each run of the archive has ended");
        // What those that succeeded cause is the only thing that was not in it.
        let caused = |run: &RunId| new.results("next").iter().any(|result| result["run_id"] == json!(run));
        assert!(finals.keys().all(|run| all.contains(run) || caused(run)));
        assert_eq!(new.finals("first"), new.finals("next"), "each success has caused its run");
        new.kill("c");
    }
    assert!(some_were_open > 0, "no backup met an open run: does this test still test anything?");
}

#[test]
fn what_ended_since_the_backup_does_not_run_again_and_no_number_comes_twice() {
    over_a_volume_that_went_on(false);
}

#[test]
fn nor_does_it_where_the_state_is_lost() {
    over_a_volume_that_went_on(true);
}

fn over_a_volume_that_went_on(damaged: bool) {
    let mut volume = Volume::new();
    volume.script("slow.sh", "while [ ! -e \"$AIOS_PROGRAMS/go\" ]; do sleep 0.02; done");
    volume.job("slow", "file = \"slow.sh\"\n");
    volume.script("again.sh", "test -e \"$AIOS_PROGRAMS/end\"");
    volume.job("again", "file = \"again.sh\"\nretries = 50\nbackoff = \"100ms\"\nbackoff_max = \"100ms\"\n");
    volume.start("a", &[]);
    volume.drop_copy("slow.json", "{\"job\": \"slow\"}");
    volume.drop_copy("again.json", "{\"job\": \"again\"}");
    volume.drop_copy("later.json", "{\"job\": \"slow\", \"tags\": [\"b\"]}");
    volume.drop_copy("wrong.json", "{\"job\": \"again\", \"tags\": [\"nobody\"]}");
    volume.wait("some attempts", |volume| volume.ledger().len() > 3 && volume.holder("slow").is_some());
    let archive = back_up(&volume, &[]);
    let (code, refused) = restore(&volume, &archive, &["--force"]);
    assert_eq!(code, Some(4));
    assert!(refused["error"].as_str().unwrap().contains("device a is alive"), "{refused}");

    std::fs::write(volume.path("Programs/go"), "").unwrap();
    volume.start("b", &[]);
    volume.wait("both have ended", |volume| volume.finals("slow") == 2);
    volume.wait("more attempts", |volume| volume.results("again").len() > 6);
    stop(&mut volume, "b");
    stop(&mut volume, "a");
    std::fs::write(volume.path("Programs/again.sh"), "broken").unwrap();
    std::fs::remove_file(volume.path("Programs/slow.toml")).unwrap();
    let (code, refused) = restore(&volume, &archive, &[]);
    assert_eq!(code, Some(4));
    let said = refused["error"].as_str().unwrap();
    assert!(said.starts_with("2 files") && said.contains("Programs/again.sh") && said.contains("state.json"), "{said}");
    assert!(!volume.path("Programs/slow.toml").exists(), "nothing was written");

    let revision = volume.state().unwrap()["revision"].as_u64().unwrap();
    if damaged {
        std::fs::write(volume.common("state.json"), "{\"revision\": 1}").unwrap();
    }
    let done = restored(&volume, &archive, &["--force"]);
    let kept: Vec<&str> = done["kept"].as_array().unwrap().iter().map(|path| path.as_str().unwrap()).collect();
    assert_eq!(kept.len(), 2, "{done}");
    let kept_as = |name: &str| kept.iter().find(|path| path.contains(&format!("{name}.before-restore-"))).unwrap();
    assert_eq!(std::fs::read_to_string(kept_as("Programs/again.sh")).unwrap(), "broken");
    let known = if damaged { 1 } else { revision };
    assert_eq!(read(Path::new(kept_as("state.json"))).unwrap()["revision"], json!(known));
    assert!(volume.state().unwrap()["revision"].as_u64().unwrap() > revision);
    assert!(volume.path("Programs/slow.toml").exists());
    std::fs::write(volume.path("Programs/end"), "").unwrap();
    volume.start("a", &[]);
    volume.wait("the run that was open has ended", |volume| volume.finals("again") == 1);
    volume.wait("the state is settled", |volume| volume.state().is_some_and(|state| state["rebuilt"].is_null()));
    volume.wait("nothing else is open", |volume| {
        let names = std::fs::read_dir(volume.common("Triggers/.running")).unwrap();
        names.count() == 0
    });
    let all = finals(&volume);
    assert!(all.len() == 3 && all.values().all(|count| *count == 1), "{all:?}");
    assert_eq!(files(&volume.common("Triggers")).len(), 1, "what nobody can take waits, once");
    assert_eq!(files(&volume.common("TriggersProcessed")).len(), 3, "each trigger is put away once");
    let mut starts: Vec<String> = volume.ledger();
    let count = starts.len();
    starts.sort();
    starts.dedup_by_key(|line| line.rsplit_once(' ').unwrap().0.to_owned());
    assert_eq!(starts.len(), count, "no attempt was started twice");
}

#[test]
fn what_moves_is_archived_as_it_lies_under_the_lock() {
    let volume = Volume::new();
    make(&volume);
    let layout = Layout { common: volume.common(""), programs: volume.path("Programs") };
    let triggers = volume.common("Triggers");
    let dropped = files(&triggers).pop().unwrap();
    std::fs::write(triggers.join("stays.json"), "{\"command\": [\"true\"]}").unwrap();
    // While the backup looks around, a device claims one, and a person drops another.
    let (running, late) = (format!("Triggers/.running/{RUN}.1.true.json"), triggers.join("late.json"));
    let claimed = volume.common(&running);
    let claim = move || {
        std::fs::rename(dropped, claimed).unwrap();
        std::fs::write(late, "{}").unwrap();
    };
    let disk = Meddled::before_lock(claim);
    let terms = Terms {
        device: DeviceId::new("d").unwrap(),
        to: volume.path("backups"),
        results: RESULTS,
        now: chrono::Utc::now(),
    };
    let made = backup::make(&disk, &layout, &mut Temporary::new(Session::from_random(1)), &terms, &|| false).unwrap();
    let names: Vec<String> = unpack(&made.path).into_keys().filter(|name| name.starts_with("Triggers/")).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert_eq!(names[0], running);
    assert!(names[1].starts_with("Triggers/late.") && names[2].starts_with("Triggers/stays."), "{names:?}");
}

#[test]
fn a_run_that_was_held_goes_on_elsewhere_with_the_next_number() {
    let mut old = Volume::new();
    old.job("slow", "command = [\"sleep\", \"60\"]\n");
    old.job("once", "command = [\"sleep\", \"60\"]\non_lost = \"fail\"\n");
    old.start("a", &[]);
    old.drop_copy("slow.json", "{\"job\": \"slow\"}");
    old.drop_copy("once.json", "{\"job\": \"once\"}");
    old.wait("both run", |volume| volume.holder("slow").is_some() && volume.holder("once").is_some());
    let archive = back_up(&old, &[]);
    let mut new = Volume::new();
    restored(&new, &archive, &[]);
    new.job("slow", "command = [\"true\"]\n");
    new.start("z", &[]);
    assert_eq!(new.outcome("slow")["attempt"], json!(2));
    let once = new.outcome("once");
    assert_eq!((&once["status"], &once["attempt"]), (&json!("lost"), &json!(1)), "it was started at most once");
}

#[test]
fn another_volume_is_left_alone() {
    let (old, new) = (Volume::new(), Volume::new());
    for volume in [&old, &new] {
        make(volume);
    }
    let archive = back_up(&old, &[]);
    let before = files(new.home.path());
    for more in [&[][..], &["--force"]] {
        let (code, refused) = restore(&new, &archive, more);
        assert_eq!(code, Some(4));
        let id = |volume: &Volume| std::fs::read_to_string(volume.common(".volume")).unwrap().trim().to_owned();
        let said = refused["error"].as_str().unwrap();
        assert!(said.contains(&id(&old)) && said.contains(&id(&new)), "{said}");
    }
    assert_eq!(files(new.home.path()), before);
}

#[test]
fn no_link_is_followed() {
    let (old, new) = (Volume::new(), Volume::new());
    std::fs::create_dir(old.path("Programs/deep")).unwrap();
    std::fs::write(old.path("Programs/deep/x"), "x").unwrap();
    make(&old);
    let archive = back_up(&old, &[]);
    let outside = new.path("outside");
    std::fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, new.path("Programs/deep")).unwrap();
    for more in [&[][..], &["--force"]] {
        let (code, refused) = restore(&new, &archive, more);
        let said = refused["error"].as_str().unwrap();
        assert!(code == Some(4) && said.ends_with("is a symbolic link, expected a folder"), "{refused}");
    }
    assert_eq!((files(&outside), files(&new.common(""))), (vec![], vec![]));
    // Nor is one in the place of the archive.
    let link = new.path("link");
    std::os::unix::fs::symlink(&archive, &link).unwrap();
    assert_eq!(restore(&new, &link, &[]).0, Some(4));
}

#[test]
fn devices_back_up_by_the_clock_and_keep_the_newest() {
    let mut volume = Volume::new();
    let backups = volume.common("Backups");
    std::fs::create_dir_all(&backups).unwrap();
    let others = [
        "Programs.20250105T000000000Z-00000a.1.tar.gz",
        "aios-20250105T000000Z-ffffffff.tar.zst",
        ".aios-20250105T000000Z-ffffffff.tar.zst",
        "notes.txt",
    ];
    others.iter().for_each(|name| std::fs::write(backups.join(name), "").unwrap());
    let own = |volume: &Volume| {
        let id = std::fs::read_to_string(volume.common(".volume")).unwrap();
        let names = std::fs::read_dir(volume.common("Backups")).into_iter().flatten();
        let names = names.filter_map(|entry| BackupName::parse(entry.unwrap().file_name().to_str().unwrap()));
        names.filter(|name| id.starts_with(&name.volume)).collect::<BTreeSet<_>>()
    };
    let more = ["--backup-every", "1s", "--backup-keep", "2"];
    volume.start("a", &more);
    volume.start("b", &more);
    volume.wait("a backup", |volume| !own(volume).is_empty());
    let first = own(&volume).pop_first().unwrap();
    volume.wait("the first has gone", |volume| own(volume).len() == 2 && !own(volume).contains(&first));
    assert!(others.iter().all(|name| backups.join(name).exists()), "what others made stays");
    let all: Vec<BackupName> = own(&volume).into_iter().collect();
    assert!((all[1].at - all[0].at).num_seconds() >= 1);

    // It cannot be made: that is said, and nothing goes.
    std::fs::rename(&backups, volume.path("moved")).unwrap();
    std::fs::write(&backups, "").unwrap();
    let problem = |volume: &Volume| volume.beat("a").unwrap()["problems"].to_string();
    volume.wait("it says so", |volume| problem(volume).contains("no backup is made"));
    assert!(volume.tell().contains("no backup is made"));
    std::fs::remove_file(&backups).unwrap();
    std::fs::rename(volume.path("moved"), &backups).unwrap();
    volume.wait("it says no more of it", |volume| !problem(volume).contains("no backup is made"));
}

/// Bytes that nothing makes smaller.
fn noise(len: usize) -> Vec<u8> {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(len).collect()
}

#[test]
fn a_full_disk_leaves_nothing_half() {
    let volume = Volume::new();
    make(&volume);
    std::fs::write(volume.path("Programs/large"), noise(4 << 20)).unwrap();
    let small = volume.path("small");
    let Some(_mounted) = mount_small(&small, "size=2m") else { return };
    let output = volume.command(&["backup", "--json"]).arg("--to").arg(&small).output().unwrap();
    let said: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said["error"].as_str().unwrap().contains("no space left"), "{said}");
    assert_eq!(std::fs::read_dir(&small).unwrap().count(), 0);
    // Nor does a restore begin what cannot end.
    let archive = back_up(&volume, &[]);
    let output = Command::new(env!("CARGO_BIN_EXE_orchestrator"))
        .args(["--json", "restore"])
        .arg(&archive)
        .arg("--common")
        .arg(small.join("Common"))
        .arg("--programs")
        .arg(small.join("Programs"))
        .output()
        .unwrap();
    let said: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert!(said["error"].as_str().unwrap().contains("bytes free, the archive needs"), "{said}");
    assert_eq!(std::fs::read_dir(&small).unwrap().count(), 0);
}

#[test]
fn killed_half_way_it_leaves_a_temporary_file_and_no_backup() {
    let volume = Volume::new();
    make(&volume);
    let bytes = noise(48 << 20);
    (0..4).for_each(|number| std::fs::write(volume.path(&format!("Programs/{number}")), &bytes).unwrap());
    let mut child = volume.command(&["backup"]).spawn().unwrap();
    let backups = volume.common("Backups");
    let names = || -> Vec<String> {
        let entries = std::fs::read_dir(&backups).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    volume.wait("it has begun", |_| !names().is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    let left = names();
    assert!(left.len() == 1 && temporary_session(&left[0]).is_some(), "{left:?}");
    // It blocks nobody, and the next one is whole.
    let archive = back_up(&volume, &[]);
    assert_eq!(unpack(&archive).keys().filter(|name| name.starts_with("Programs/")).count(), 4);
    let new = Volume::new();
    restored(&new, &archive, &[]);
}

/// An archive that is made by hand.
struct Forged {
    tar: tar::Builder<zstd::Encoder<'static, Vec<u8>>>,
}

const RUN: &str = "20260105T000000000Z-00000a";

impl Forged {
    /// It begins with a manifest that says so many files and bytes of each part.
    fn new(parts: &[(&str, u64, u64)]) -> Self {
        let parts: Vec<Value> =
            parts.iter().map(|(part, files, bytes)| json!({"part": part, "files": files, "bytes": bytes})).collect();
        let manifest = json!({
            "schema": 1, "state_schema": 1, "volume": "0123456789abcdef", "created_at": "2026-11-21T03:41:56.000Z",
            "version": "0.1.0", "device": "d", "parts": parts, "skipped": [], "skipped_count": 0,
        });
        Self::empty().file("manifest.json", manifest.to_string().as_bytes())
    }

    fn empty() -> Self {
        let mut packed = zstd::Encoder::new(Vec::new(), 1).unwrap();
        packed.include_checksum(true).unwrap();
        Self { tar: tar::Builder::new(packed) }
    }

    fn file(self, name: &str, bytes: &[u8]) -> Self {
        self.raw(name.as_bytes(), tar::EntryType::Regular, bytes.len() as u64, bytes)
    }

    /// A header that says whatever it is told to say.
    fn raw(mut self, name: &[u8], kind: tar::EntryType, size: u64, bytes: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        self.tar.append(&header, bytes).unwrap();
        self
    }

    fn link(self, name: &str, kind: tar::EntryType, to: &str) -> Self {
        let mut it = self;
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_path(name).unwrap();
        header.set_link_name_literal(to).unwrap();
        header.set_cksum();
        it.tar.append(&header, std::io::empty()).unwrap();
        it
    }

    fn pack(self) -> Vec<u8> {
        self.tar.into_inner().unwrap().finish().unwrap()
    }
}

/// What is refused, and by which words.
fn hostile() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    use tar::EntryType;
    let one = || Forged::new(&[("programs", 1, 1)]);
    let whole = one().file("Programs/a", b"x").pack();
    let state =
        |state: &str| Forged::new(&[("state", 1, state.len() as u64)]).file("state.json", state.as_bytes()).pack();
    let open = |names: &[&str]| {
        let inbox = names.iter().filter(|name| !name.contains("/.")).count() as u64;
        let running = names.len() as u64 - inbox;
        let forged = Forged::new(&[("inbox", inbox, 2 * inbox), ("running", running, 2 * running)]);
        names.iter().fold(forged, |forged, name| forged.file(name, b"{}")).pack()
    };
    let with_manifest = |schema: u64, state_schema: u64| {
        let text = json!({"schema": schema, "state_schema": state_schema, "more": 1}).to_string();
        Forged::empty().file("manifest.json", text.as_bytes()).pack()
    };
    let mut flipped = Forged::new(&[("programs", 1, 4_096)]).file("Programs/a", &noise(4_096)).pack();
    let middle = flipped.len() - 2_000;
    flipped[middle] ^= 1;
    let behind = {
        let mut bytes = whole.clone();
        bytes.extend(zstd::encode_all(&b"more"[..], 1).unwrap());
        bytes
    };
    let bomb = {
        let mut bytes = whole.clone();
        bytes.extend(zstd::encode_all(std::io::Read::take(std::io::repeat(0), 64 << 20), 1).unwrap());
        bytes
    };
    let lying = {
        // The header says more than there is: what comes behind it is missing.
        let mut tar = Vec::new();
        std::io::Read::read_to_end(
            &mut zstd::Decoder::new(&Forged::new(&[("programs", 1, 9_000)]).pack()[..]).unwrap(),
            &mut tar,
        )
        .unwrap();
        tar.truncate(tar.len() - 1_024);
        let mut header = tar::Header::new_gnu();
        header.set_path("Programs/a").unwrap();
        header.set_size(9_000);
        header.set_cksum();
        tar.extend(header.as_bytes());
        tar.extend([0; 1_024]);
        zstd::encode_all(&tar[..], 1).unwrap()
    };
    vec![
        ("nothing", Vec::new(), "cannot be read to its end"),
        ("an empty archive", Forged::empty().pack(), "it is empty"),
        ("no archive", b"hello".to_vec(), "cannot be read to its end"),
        ("cut", whole[..whole.len() - 9].to_vec(), "cannot be read to its end"),
        ("flipped", flipped, "cannot be read"),
        ("more behind it", behind, "something stands behind its end"),
        ("a bomb behind it", bomb, "something stands behind its end"),
        ("no manifest", Forged::empty().file("Programs/a", b"x").pack(), "it begins with \"Programs/a\""),
        ("a manifest that is none", Forged::empty().file("manifest.json", b"{}").pack(), "manifest.json is none"),
        ("a newer archive", with_manifest(2, 1), "the archive has schema 2, this program knows 1"),
        ("a newer state", with_manifest(1, 7), "its state.json has schema 7, this program knows 1"),
        ("a newer state that is not said", state("{\"schema\": 9}"), "state.json has schema 9, this program knows 1"),
        ("a state that is none", state("{\"schema\": 1}"), "its state.json is none"),
        ("two manifests", one().file("manifest.json", b"x").pack(), "\"manifest.json\" has no place"),
        ("absolute", one().raw(b"/Programs/a", EntryType::Regular, 1, b"x").pack(), "\"/Programs/a\" has no place"),
        ("dots", one().raw(b"Programs/../a", EntryType::Regular, 1, b"x").pack(), "\"Programs/../a\" has no place"),
        ("only dots", one().raw(b"..", EntryType::Regular, 1, b"x").pack(), "\"..\" has no place"),
        ("empty piece", one().raw(b"Programs//a", EntryType::Regular, 1, b"x").pack(), "has no place"),
        ("elsewhere", one().raw(b"Devices/a.json", EntryType::Regular, 1, b"x").pack(), "has no place"),
        ("a lock", one().raw(b".state.lock", EntryType::Regular, 1, b"x").pack(), "has no place"),
        ("no trigger", one().raw(b"Triggers/a.json", EntryType::Regular, 1, b"x").pack(), "has no place"),
        ("no key", one().raw(b"Triggers/.ids/../../x", EntryType::Regular, 1, b"x").pack(), "has no place"),
        ("not UTF-8", one().raw(b"Programs/\xff", EntryType::Regular, 1, b"x").pack(), "is not UTF-8"),
        ("a link", one().link("Programs/a", EntryType::Symlink, "/etc/passwd").pack(), "is a link"),
        ("a hard link", one().link("Programs/a", EntryType::Link, "/etc/passwd").pack(), "is a link"),
        ("a folder", one().raw(b"Programs/a", EntryType::Directory, 0, b"").pack(), "is a folder"),
        ("a device", one().raw(b"Programs/a", EntryType::Char, 0, b"").pack(), "is a device"),
        ("a FIFO", one().raw(b"Programs/a", EntryType::Fifo, 0, b"").pack(), "is a device or FIFO"),
        ("sparse", one().raw(b"Programs/a", EntryType::GNUSparse, 1, b"x").pack(), "is something else"),
        ("extended", one().raw(b"Programs/a", EntryType::XHeader, 1, b"x").pack(), "is something else"),
        ("a long name", one().raw(b"L", EntryType::GNULongName, 9_999, &[b'x'; 9_999]).pack(), "a name has 9999 bytes"),
        (
            "a name for a name",
            one().raw(b"L", EntryType::GNULongName, 2, b"x\0").raw(b"L", EntryType::GNULongName, 2, b"y\0").pack(),
            "a name has 2 bytes",
        ),
        (
            "twice",
            Forged::new(&[("programs", 2, 2)]).file("Programs/a", b"x").file("Programs/a", b"y").pack(),
            "comes twice",
        ),
        (
            "a file as folder",
            Forged::new(&[("programs", 2, 2)]).file("Programs/a", b"x").file("Programs/a/b", b"y").pack(),
            "is a file and a folder",
        ),
        (
            "a folder as file",
            Forged::new(&[("programs", 2, 2)]).file("Programs/a/b", b"x").file("Programs/a", b"y").pack(),
            "is a file and a folder",
        ),
        (
            "less than it says",
            Forged::new(&[("programs", 2, 1)]).file("Programs/a", b"x").pack(),
            "it holds 1 files of 1 bytes",
        ),
        (
            "more than it says",
            Forged::new(&[("programs", 1, 1)]).file("Programs/a", b"xy").pack(),
            "is more of that part",
        ),
        ("a part it does not say", Forged::new(&[]).file("Programs/a", b"x").pack(), "is more of that part"),
        ("more than there is room for", Forged::new(&[("programs", 1, 1 << 50)]).pack(), "expected at most"),
        (
            "more than can be counted",
            Forged::new(&[("programs", 1, u64::MAX), ("security", 1, 1)]).pack(),
            "can be counted",
        ),
        ("more files than are taken", Forged::new(&[("results", 9_999_999, 1)]).pack(), "expected at most"),
        ("triggers without end", Forged::new(&[("inbox", 1, 1 << 35)]).pack(), "it holds 0 files"),
        (
            "a trigger that is too large",
            Forged::new(&[("running", 1, 2 << 20)])
                .file(&format!("Triggers/.running/{RUN}.1.a.json"), &vec![b' '; 2 << 20])
                .pack(),
            "expected at most 1048576",
        ),
        ("a size that lies", lying, "cannot be read to its end"),
        (
            "a run in two places",
            open(&[&format!("Triggers/a.{RUN}.json"), &format!("Triggers/.running/{RUN}.1.a.json")]),
            "lies in two places",
        ),
        (
            "a result of another day",
            one().file(&format!("Results/2026-01-06/a.{RUN}.1.json"), b"x").pack(),
            "has no place",
        ),
    ]
}

#[test]
fn what_is_no_sound_backup_is_refused_and_writes_nothing() {
    let volume = Volume::new();
    let archive = volume.path("archive");
    let target = volume.path("target");
    let layout = Layout { common: target.join("Common"), programs: target.join("Programs") };
    let session = Session::from_random(7);
    let wish = Wish {
        archive: archive.clone(),
        force: true,
        me: Me { device: DeviceId::new("d").unwrap(), session: session.clone(), tags: BTreeSet::new(), slots: 0 },
        now: chrono::Utc::now(),
    };
    let restore = || {
        let mut names = Temporary::new(session.clone());
        backup::restore::restore(&OsDisk::new(), &layout, &mut names, &wish)
    };
    for (what, bytes, words) in hostile() {
        std::fs::write(&archive, bytes).unwrap();
        let fault = restore().expect_err(what).to_string();
        assert!(fault.contains(words), "{what}: {fault}");
        assert!(!target.exists(), "{what}: something was written");
    }
    // The same hand makes one that is taken.
    let sound = Forged::new(&[("programs", 1, 1)]).file("Programs/a", b"x").pack();
    std::fs::write(&archive, sound).unwrap();
    let done = restore().unwrap();
    assert_eq!((done.written, std::fs::read(layout.programs.join("a")).unwrap()), (1, b"x".to_vec()));
}

#[test]
fn a_restore_that_was_cut_off_anywhere_brings_every_key_back_when_it_is_done_again() {
    let mut old = Volume::new();
    let api = old.serve("a", &[]);
    for number in 0..4 {
        api.make_key("viewer", &[]);
        let user = json!({"name": format!("user{number}"), "password": "correct horse battery", "role": "viewer"});
        api.post("/api/v1/users", &user).is(201);
    }
    stop(&mut old, "a");
    let archive = back_up(&old, &[]);
    let inside = |volume: &Volume| files(&volume.common("Security")).len();
    let all = inside(&old);
    let mut cuts = 0;
    for inodes in 6..200 {
        let new = Volume::new();
        let common = new.path("Common");
        let Some(_mounted) = mount_small(&common, &format!("size=4m,nr_inodes={inodes}")) else { return };
        if restore(&new, &archive, &[]).0 == Some(0) {
            assert_eq!(inside(&new), all);
            break;
        }
        cuts += 1;
        let more = Command::new("mount").args(["-o", "remount,nr_inodes=4000"]).arg(&common).status();
        assert!(more.unwrap().success());
        restored(&new, &archive, &[]);
        assert_eq!(inside(&new), all, "cut off with {inodes} inodes");
    }
    assert!(cuts > all, "{cuts} cuts");
}
