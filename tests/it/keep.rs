//! Retention, on the real disk: which files go and which stay, whatever else happens; and a device of the real binary that does it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aios::model::ids::DeviceId;
use aios::volume::disk::{Disk, Guard, Meta};
use aios::volume::layout::Layout;
use aios::volume::os::OsDisk;
use aios::volume::retention::{Tally, Terms, Turn, round};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::volume::{Volume, files, read};

const DAY: Duration = Duration::from_secs(86_400);
const HOUR: Duration = Duration::from_secs(3_600);
/// An open run, the last run of a job, and one that is neither; all of a day long ago.
const OPEN: &str = "20260105T000000000Z-00000a";
const LAST: &str = "20260105T000000000Z-00000b";
const OVER: &str = "20260105T000000000Z-00000c";
/// One that is over and has an idempotency key.
const KEYED: &str = "20260105T000000000Z-00000f";

/// Sets a file's date of change back.
fn age(path: &Path, age: Duration) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - age).unwrap();
}

/// A volume made by hand.
struct Bed {
    home: tempfile::TempDir,
    /// One day from beginning to end.
    now: DateTime<Utc>,
}

impl Bed {
    fn new() -> Self {
        let bed = Self { home: tempfile::tempdir().unwrap(), now: Utc::now() };
        bed.put(".volume", "v\n", Duration::ZERO);
        for folder in [".running", ".waiting"] {
            std::fs::create_dir_all(bed.path("Triggers").join(folder)).unwrap();
        }
        bed.state(&json!({"schema": 1, "revision": 1, "last_commits": [], "runs": {}, "jobs": {}}));
        bed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join("Common").join(name)
    }

    fn put(&self, name: &str, text: &str, old: Duration) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        age(&path, old);
    }

    fn state(&self, state: &Value) {
        self.put("state.json", &state.to_string(), Duration::ZERO);
    }

    fn layout(&self) -> Layout {
        Layout { common: self.home.path().join("Common"), programs: self.home.path().join("Programs") }
    }

    fn terms(&self) -> Terms {
        Terms {
            volume: "v".to_owned(),
            device: DeviceId::new("d").unwrap(),
            keep: 30 * DAY,
            keep_bytes: None,
            every: HOUR,
            thorough: true,
            now: self.now,
        }
    }

    fn round(&self, terms: &Terms) -> Turn {
        round(&OsDisk::new(), &self.layout(), terms, &|| false).unwrap()
    }

    fn day(&self, ago: i64) -> String {
        (self.now - chrono::TimeDelta::days(ago)).format("%Y-%m-%d").to_string()
    }

    /// What lies in the folders that are kept for a time, hidden files too.
    fn left(&self) -> BTreeSet<String> {
        let mut open: Vec<PathBuf> = ["Results", "Logs", "TriggersProcessed"].map(|tree| self.path(tree)).into();
        let mut left = BTreeSet::new();
        while let Some(folder) = open.pop() {
            let Ok(entries) = std::fs::read_dir(&folder) else { continue };
            for path in entries.map(|entry| entry.unwrap().path()) {
                let name = path.strip_prefix(self.path("")).unwrap().to_str().unwrap().to_owned();
                if path.is_dir() {
                    left.insert(name + "/");
                    open.push(path);
                } else {
                    left.insert(name);
                }
            }
        }
        left
    }
}

fn done(turn: Turn) -> Tally {
    match turn {
        Turn::Done(tally) => tally,
        Turn::Later(_) | Turn::Stopped(_) => panic!("{turn:?}"),
    }
}

fn later(turn: &Turn) -> Duration {
    match turn {
        Turn::Later(rest) => *rest,
        Turn::Done(_) | Turn::Stopped(_) => panic!("{turn:?}"),
    }
}

#[test]
fn a_damaged_copy_of_the_state_goes_like_everything_else() {
    let bed = Bed::new();
    let [old, young] = ["20260101T000000000Z", "20261101T000000000Z"].map(|at| format!("state.json.corrupt-{at}"));
    bed.put(&old, "{", 31 * DAY);
    bed.put(&young, "{", 29 * DAY);
    assert_eq!(done(bed.round(&bed.terms())).files, 1);
    assert!(!bed.path(&old).exists() && bed.path(&young).exists() && bed.path("state.json").exists());
}

#[test]
fn what_was_kept_long_enough_goes_and_the_rest_stays() {
    let bed = Bed::new();
    bed.state(&json!({
        "schema": 1, "revision": 7, "last_commits": [], "runs": {},
        "jobs": {"a": {"since": null, "last_run_id": LAST, "last_status": "succeeded"}},
    }));
    let waits = "20260105T000000000Z-00000d";
    bed.put(&format!("Triggers/.running/{OPEN}.1.a.json"), "{}", 90 * DAY);
    bed.put(&format!("Triggers/.waiting/20310101T000000000Z.{waits}.2.a.json"), "{}", 90 * DAY);
    let mut stays = Vec::new();
    for run in [OPEN, LAST, waits, OVER] {
        let of_run = [
            format!("Results/2026-01-05/a.{run}.1.json"),
            format!("Results/2026-01-05/a.{run}.2.json"),
            format!("Results/2026-01-05/a.{run}.1.superseded.json"),
            format!("Logs/2026-01-05/a.{run}.2.log"),
            format!("Logs/2026-01-05/a.{run}.2.log.1"),
            format!("TriggersProcessed/2026-01-05/a.{run}.json"),
        ];
        of_run.iter().for_each(|name| bed.put(name, "12345", 31 * DAY));
        if run != OVER {
            stays.extend(of_run);
        }
    }
    let (today, eve) = (bed.day(0), bed.day(1));
    let old = |name: String| bed.put(&name, "12345", 31 * DAY);
    old(format!("Results/{today}/a.{OVER}.3.json"));
    old(format!("Logs/2026-01-06/a.{OVER}.1.log"));
    old(format!("TriggersProcessed/2026-01-06/a.{OVER}.duplicate-of.{LAST}.json"));
    old(format!("TriggersProcessed/rejected/2026-01-06/a.{OVER}.json"));
    old(format!("TriggersProcessed/rejected/2026-01-06/a.{OVER}.error.json"));
    old("Logs/orchestrator.d.2026-01-06.log".to_owned());
    let tree = format!("TriggersProcessed/rejected/2026-01-07/a.{OVER}.json/deep/file");
    for name in [
        format!("Logs/orchestrator.d.{today}.log"),
        "Logs/mine.log".to_owned(),
        format!("Results/2026-01-07/.a.{OVER}.1.out"),
        tree,
    ] {
        old(name.clone());
        stays.push(name);
    }
    for folder in [format!("Logs/{today}"), format!("Logs/{eve}"), "Results/2026-01-08".to_owned()] {
        std::fs::create_dir_all(bed.path(&folder)).unwrap();
    }
    let young = format!("Results/2026-01-06/a.{OVER}.9.json");
    bed.put(&young, "1", 29 * DAY);
    stays.push(young);

    let tally = done(bed.round(&bed.terms()));
    assert_eq!((tally.files, tally.bytes, tally.failed), (12, 60, 0), "{tally:?}");
    let folders = [format!("Logs/{today}/"), format!("Logs/{eve}/"), format!("Results/{today}/")];
    let mut expected: BTreeSet<String> = folders.into();
    for name in &stays {
        let above = Path::new(name).ancestors().skip(1).filter(|folder| folder.components().count() > 1);
        expected.extend(above.map(|folder| format!("{}/", folder.display())));
    }
    expected.extend(stays);
    assert_eq!(bed.left(), expected);
}

#[test]
fn the_oldest_go_first_until_the_rest_fits() {
    let bed = Bed::new();
    bed.state(&json!({
        "schema": 1, "revision": 7, "last_commits": [],
        "runs": {OPEN: {"job": "a", "stem": "a", "cause": "trigger", "trigger": "a.json", "attempt": 1, "device": "d",
            "session": "0123", "priority": 0, "slots": 1, "claimed_at": "2026-01-05T00:00:00Z"}},
        "jobs": {},
    }));
    bed.put("Triggers/.ids/0123", &json!({"run_id": KEYED, "job": "a", "id": "k"}).to_string(), Duration::ZERO);
    let ten = "0123456789";
    // In this order, across folders; two of them within a minute.
    let oldest_first = [
        (format!("Logs/2026-01-05/a.{KEYED}.1.log"), 9 * HOUR),
        (format!("Results/2026-01-05/a.{OVER}.1.json"), 8 * HOUR),
        ("Logs/orchestrator.d.2026-01-06.log".to_owned(), 7 * HOUR),
        (format!("Results/2026-01-05/a.{OVER}.3.json"), 5 * HOUR + Duration::from_millis(2)),
        (format!("Results/2026-01-05/a.{OVER}.2.json"), 5 * HOUR + Duration::from_millis(1)),
        (format!("TriggersProcessed/2026-01-05/a.{OVER}.json"), 4 * HOUR),
    ];
    oldest_first.iter().for_each(|(name, old)| bed.put(name, ten, *old));
    let stays = [
        (format!("Logs/2026-01-05/a.{OPEN}.1.log"), 20 * HOUR),
        (format!("Results/2026-01-05/a.{KEYED}.1.json"), 20 * HOUR),
        (format!("Logs/orchestrator.d.{}.log", bed.day(0)), 20 * HOUR),
        (format!("Results/2026-01-05/a.{OVER}.4.json"), Duration::from_secs(60)),
    ];
    stays.iter().for_each(|(name, old)| bed.put(name, ten, *old));
    let left = |count: usize| {
        let left = bed.left();
        assert!(stays.iter().all(|(name, _)| left.contains(name)), "{left:?}");
        let there: Vec<bool> = oldest_first.iter().map(|(name, _)| left.contains(name)).collect();
        assert_eq!(there.iter().filter(|there| **there).count(), count, "{left:?}");
        assert!(there.is_sorted(), "the oldest go first: {there:?}");
    };
    for (limit, tally, count) in [(100, (0, 0), 6), (99, (1, 10), 5), (60, (3, 30), 2), (9, (2, 20), 0)] {
        let terms = Terms { keep_bytes: Some(limit), every: Duration::from_nanos(1), ..bed.terms() };
        let done = done(bed.round(&terms));
        assert_eq!((done.files, done.bytes), tally, "{limit}");
        left(count);
    }
}

#[test]
fn a_round_is_due_once_an_hour_and_done_by_one_device_at_a_time() {
    let bed = Bed::new();
    let (disk, layout) = (OsDisk::new(), bed.layout());
    let guard = disk.lock(&layout.kept()).unwrap();
    assert!(guard.is_some());
    assert_eq!(later(&bed.round(&bed.terms())), HOUR / 4, "another device is at it");
    // As it is when that one dies before its end: its lock goes with it, and the file says nothing.
    drop(guard);
    done(bed.round(&bed.terms()));
    let note = read(&layout.kept()).unwrap();
    assert_eq!((&note["device"], &note["files"]), (&json!("d"), &json!(0)));
    let rest = later(&bed.round(&bed.terms()));
    assert!(rest <= HOUR && rest > HOUR - 60 * Duration::from_secs(1), "{rest:?}");
    age(&layout.kept(), 2 * HOUR);
    done(bed.round(&bed.terms()));
    // Who read the time a while ago meets a round that was done since.
    let terms = Terms { now: bed.now - chrono::TimeDelta::minutes(10), ..bed.terms() };
    assert_eq!(later(&bed.round(&terms)), HOUR);
    let file = File::options().write(true).open(layout.kept()).unwrap();
    file.set_modified(SystemTime::now() + 2 * DAY).unwrap();
    done(bed.round(&bed.terms()));
}

#[test]
fn where_it_is_not_known_what_must_stay_nothing_goes() {
    let bed = Bed::new();
    let old = format!("Results/2026-01-05/a.{OVER}.1.json");
    bed.put(&old, "1", 90 * DAY);
    let state = |more: Value| {
        let mut state = json!({"schema": 1, "revision": 7, "last_commits": [], "runs": {}, "jobs": {}});
        state.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        state.to_string()
    };
    for text in [state(json!({"rebuilt": 7})), state(json!({"schema": 2})), "{".to_owned()] {
        std::fs::write(bed.path("state.json"), &text).unwrap();
        later(&bed.round(&bed.terms()));
        assert!(bed.left().contains(&old), "{text}");
    }
    std::fs::remove_file(bed.path("state.json")).unwrap();
    later(&bed.round(&bed.terms()));
    bed.state(&serde_json::from_str(&state(json!({}))).unwrap());
    std::fs::rename(bed.path("Triggers/.waiting"), bed.path("Triggers/away")).unwrap();
    round(&OsDisk::new(), &bed.layout(), &bed.terms(), &|| false).unwrap_err();
    assert!(bed.left().contains(&old));
    std::fs::rename(bed.path("Triggers/away"), bed.path("Triggers/.waiting")).unwrap();
    std::fs::remove_file(bed.layout().kept()).unwrap();
    later(&bed.round(&Terms { volume: "another".to_owned(), ..bed.terms() }));
    assert!(bed.left().contains(&old) && !bed.layout().kept().exists(), "another volume is left alone");
    done(bed.round(&bed.terms()));
    assert!(!bed.left().contains(&old));
}

#[test]
fn a_round_that_is_not_thorough_looks_only_at_days_that_can_be_old_enough() {
    let bed = Bed::new();
    let (old, set_back) =
        (format!("Results/2026-01-05/a.{OVER}.1.json"), format!("Results/{}/a.{OVER}.1.json", bed.day(2)));
    bed.put(&old, "1", 90 * DAY);
    bed.put(&set_back, "1", 90 * DAY);
    assert_eq!(done(bed.round(&Terms { thorough: false, ..bed.terms() })).files, 1);
    assert!(bed.left().contains(&set_back));
    std::fs::remove_file(bed.layout().kept()).unwrap();
    assert_eq!(done(bed.round(&bed.terms())).files, 1);
}

/// The real disk, where something happens in between.
#[derive(Default)]
pub(crate) struct Meddled {
    disk: OsDisk,
    /// It refuses to remove this.
    firm: Option<PathBuf>,
    /// Done once, before a folder is removed.
    before: RefCell<Option<Box<dyn FnOnce()>>>,
    /// Done once, before the lock of the state is taken.
    before_lock: RefCell<Option<Box<dyn FnOnce()>>>,
}

impl Meddled {
    /// Something happens before the lock of the state is taken.
    pub(crate) fn before_lock(happens: impl FnOnce() + 'static) -> Self {
        Self { before_lock: RefCell::new(Some(Box::new(happens))), ..Self::default() }
    }
}

impl Disk for Meddled {
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.link(from, to)
    }
    fn space(&self, path: &Path) -> io::Result<aios::model::space::Space> {
        self.disk.space(path)
    }
    fn list(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        self.disk.list(folder)
    }
    fn stat(&self, path: &Path) -> io::Result<Meta> {
        self.disk.stat(path)
    }
    fn read(&self, path: &Path, limit: u64) -> io::Result<(Vec<u8>, Meta)> {
        self.disk.read(path, limit)
    }
    fn read_head(&self, path: &Path, limit: usize) -> io::Result<Vec<u8>> {
        self.disk.read_head(path, limit)
    }
    fn create(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.disk.create(path, bytes)
    }
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename_new(from, to)
    }
    fn replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.replace(from, to)
    }
    fn touch(&self, path: &Path) -> io::Result<()> {
        self.disk.touch(path)
    }
    fn boot(&self) -> Duration {
        self.disk.boot()
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        if self.firm.as_deref() == Some(path) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.disk.remove(path)
    }
    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        if let Some(before) = self.before.take() {
            before();
        }
        self.disk.remove_folder(path)
    }
    fn make_folders(&self, path: &Path) -> io::Result<()> {
        self.disk.make_folders(path)
    }

    fn make_folder_with(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.disk.make_folder_with(path, mode)
    }
    fn lock(&self, path: &Path) -> io::Result<Option<Guard>> {
        if path.ends_with(".state.lock")
            && let Some(before) = self.before_lock.take()
        {
            before();
        }
        self.disk.lock(path)
    }
    fn open_log(&self, path: &Path) -> io::Result<Option<File>> {
        self.disk.open_log(path)
    }

    fn open_log_again(&self, path: &Path) -> io::Result<Option<File>> {
        self.disk.open_log_again(path)
    }
    fn cut(&self, path: &Path, limit: u64) -> io::Result<u64> {
        self.disk.cut(path, limit)
    }
    fn copy(&self, from: &Path, to: &Path, limit: u64) -> io::Result<u64> {
        self.disk.copy(from, to, limit)
    }
    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.disk.append(path, bytes)
    }
}

#[test]
fn a_file_that_cannot_be_removed_does_not_keep_the_others() {
    let bed = Bed::new();
    let names: Vec<String> = (1..=9).map(|attempt| format!("Results/2026-01-05/a.{OVER}.{attempt}.json")).collect();
    names.iter().for_each(|name| bed.put(name, "1", 90 * DAY));
    let disk = Meddled { firm: Some(bed.path(&names[4])), ..Meddled::default() };
    let tally = done(round(&disk, &bed.layout(), &bed.terms(), &|| false).unwrap());
    assert_eq!((tally.files, tally.failed), (8, 1));
    assert!(tally.error.unwrap().to_string().contains(&names[4]));
    assert_eq!(bed.left(), BTreeSet::from(["Results/2026-01-05/".to_owned(), names[4].clone()]));
}

#[test]
fn a_round_stops_when_it_is_asked_to_and_is_done_again() {
    let bed = Bed::new();
    for attempt in 1..=9 {
        bed.put(&format!("Results/2026-01-05/a.{OVER}.{attempt}.json"), "1", 90 * DAY);
    }
    let asked = Cell::new(0);
    let stop = || asked.replace(asked.get() + 1) == 4;
    match round(&OsDisk::new(), &bed.layout(), &bed.terms(), &stop).unwrap() {
        Turn::Stopped(tally) => assert_eq!(tally.files, 4),
        other @ (Turn::Later(_) | Turn::Done(_)) => panic!("{other:?}"),
    }
    assert_eq!(done(bed.round(&bed.terms())).files, 5);
    assert_eq!(bed.left(), BTreeSet::new());
}

#[test]
fn a_folder_stays_for_a_run_that_is_claimed_meanwhile() {
    let bed = Bed::new();
    let folder = bed.path("Results/2026-01-05");
    std::fs::create_dir_all(&folder).unwrap();
    let claimed = bed.path(&format!("Triggers/.running/{OVER}.1.a.json"));
    let claim = Box::new({
        let claimed = claimed.clone();
        move || std::fs::write(claimed, "{}").unwrap()
    });
    let disk = Meddled { before: RefCell::new(Some(claim)), ..Meddled::default() };
    done(round(&disk, &bed.layout(), &bed.terms(), &|| false).unwrap());
    assert!(folder.is_dir(), "whoever claimed it found the folder and did not make it");
    std::fs::remove_file(bed.layout().kept()).unwrap();
    // A run of that day is open now.
    let disk = Meddled { before: RefCell::new(Some(Box::new(|| panic!("a folder is removed")))), ..disk };
    done(round(&disk, &bed.layout(), &bed.terms(), &|| false).unwrap());
    assert!(folder.is_dir());
    std::fs::remove_file(&claimed).unwrap();
    std::fs::remove_file(bed.layout().kept()).unwrap();
    done(bed.round(&bed.terms()));
    assert!(!folder.exists());
}

/// The results and logs of a job, by their names without the folders.
fn of_job(volume: &Volume, tree: &str, job: &str) -> Vec<String> {
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    let starts = format!("{job}.");
    files(&volume.common(tree)).iter().map(name).filter(|name| name.starts_with(&starts)).collect()
}

/// Whether a log is an orchestrator's own.
fn is_own(log: &Path) -> bool {
    log.file_name().unwrap().to_string_lossy().starts_with("orchestrator.")
}

#[test]
fn a_device_keeps_house_beside_its_work() {
    let mut volume = Volume::new();
    volume.script("quick.sh", "");
    volume.job("quick", "file = \"quick.sh\"\n");
    volume.script("again.sh", "test \"$AIOS_ATTEMPT\" -ge 2");
    volume.job("again", "file = \"again.sh\"\nretries = 1\nbackoff = \"1h\"\nbackoff_max = \"1h\"\n");
    volume.script("slow.sh", "while [ ! -e \"$AIOS_PROGRAMS/go\" ]; do sleep 0.02; done; echo 7 > \"$AIOS_RESULT\"");
    volume.job("slow", "file = \"slow.sh\"\n");
    volume.start("a", &[]);
    for (name, job) in [("s", "slow"), ("r", "again"), ("q1", "quick"), ("q2", "quick"), ("q3", "quick")] {
        volume.drop_trigger(&format!("{name}.json"), &format!("{{\"job\": \"{job}\"}}"));
        volume.wait(name, |volume| match job {
            "quick" => {
                volume.finals("quick") == name[1..].parse::<usize>().unwrap() && volume.holder("quick").is_none()
            }
            "again" => volume.results("again").len() == 1 && volume.holder("again").is_none(),
            _ => of_job(volume, "Logs", job).len() == 1,
        });
    }
    for file in ["Results", "Logs"].into_iter().flat_map(|tree| files(&volume.common(tree))) {
        if !is_own(&file) {
            age(&file, 31 * DAY);
        }
    }
    let old = [
        format!("Results/2026-01-05/quick.{OVER}.1.json"),
        format!("Logs/2026-01-05/quick.{OVER}.1.log"),
        format!("TriggersProcessed/2026-01-05/q0.{OVER}.json"),
        format!("TriggersProcessed/rejected/2026-01-05/q0.{OVER}.json"),
        "Logs/orchestrator.gone.2026-01-05.log".to_owned(),
    ];
    for name in &old {
        let path = volume.common(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "{}").unwrap();
        age(&path, 31 * DAY);
    }
    let last = volume.state().unwrap()["jobs"]["quick"]["last_run_id"].as_str().unwrap().to_owned();
    volume.start("b", &["--keep-every", "100ms"]);
    let said = |volume: &Volume| std::fs::read_to_string(volume.path("b.said")).unwrap();
    volume.wait("it says what went", |volume| said(volume).contains("removed what was kept long enough"));
    volume.wait("the folders are gone", |volume| {
        !old.iter().any(|name| volume.common(name).exists()) && !volume.common("Logs/2026-01-05").exists()
    });
    // Two runs of `quick` with a result and a log each, and what was made by hand.
    assert!(said(&volume).contains("files=9 bytes="), "{}", volume.tell());
    assert_eq!(of_job(&volume, "Results", "quick"), [format!("quick.{last}.1.json")]);
    assert_eq!(of_job(&volume, "Logs", "quick"), [format!("quick.{last}.1.log")]);
    assert_eq!(files(&volume.common("TriggersProcessed")).len(), 3, "triggers are as old as their drop");
    assert_eq!((volume.results("again").len(), of_job(&volume, "Logs", "again").len()), (1, 1));
    assert_eq!(of_job(&volume, "Logs", "slow").len(), 1);
    for verb in [&["status"][..], &["runs", "list"], &["runs", "show", &last]] {
        assert_eq!(volume.ask(verb).0, Some(0), "{verb:?}");
    }
    std::fs::write(volume.path("Programs/go"), "").unwrap();
    assert_eq!(volume.outcome("slow")["result"], 7);
}

#[test]
fn a_program_finds_the_folder_of_a_day_that_was_removed() {
    let mut volume = Volume::new();
    volume.start("a", &["--keep-every", "100ms"]);
    // Triggers that were given their ids weeks ago. What they leave belongs to no job, so that nothing of it has to stay.
    for (number, run) in [OPEN, LAST, OVER].into_iter().enumerate() {
        let command = format!("echo {number} > \"$AIOS_RESULT\"");
        volume.drop_trigger(&format!("late.{run}.json"), &json!({"command": ["sh", "-c", command]}).to_string());
        volume.wait("it is over", |volume| volume.finals("late") == 1 && volume.holder("late").is_none());
        let result = volume.outcome("late");
        assert_eq!((&result["run_id"], &result["result"]), (&json!(run), &json!(number)), "{result}");
        for tree in ["Results", "Logs", "TriggersProcessed"] {
            files(&volume.common(tree).join("2026-01-05")).iter().for_each(|file| age(file, 31 * DAY));
        }
        volume.wait("the day is gone", |volume| {
            !["Results", "Logs", "TriggersProcessed"].iter().any(|tree| volume.common(tree).join("2026-01-05").exists())
        });
    }
}

#[test]
fn a_device_holds_the_volume_to_its_bytes() {
    let mut volume = Volume::new();
    volume.script("quick.sh", "head -c 1000 /dev/zero");
    volume.job("quick", "file = \"quick.sh\"\n");
    volume.start("a", &[]);
    for number in 1..=4 {
        volume.drop_trigger(&format!("q{number}.json"), "{\"job\": \"quick\"}");
        volume.wait("it is over", |volume| volume.finals("quick") == number && volume.holder("quick").is_none());
    }
    volume.signal("a", rustix::process::Signal::TERM);
    assert_eq!(volume.ended("a"), Some(0));
    let logs: Vec<PathBuf> = files(&volume.common("Logs")).into_iter().filter(|log| !is_own(log)).collect();
    // Not in the order of their runs. The others are too young to go, and the last of its job stays.
    for (index, hours) in [(2, 10), (0, 9), (1, 8), (3, 11)] {
        age(&logs[index], hours * HOUR);
    }
    let trees = ["Results", "TriggersProcessed", "Logs"];
    let all = trees.into_iter().flat_map(|tree| files(&volume.common(tree)));
    let size: u64 = all.map(|path| path.metadata().unwrap().len()).sum();
    let limit = (size - 1_001).to_string();
    volume.start("b", &["--keep-every", "100ms", "--log-level", "error", "--keep-bytes", &limit]);
    volume.wait("a round has found nothing to do", |volume| {
        read(&volume.common(".kept")).is_some_and(|note| note["files"] == 0)
    });
    let there: Vec<bool> = logs.iter().map(|log| log.exists()).collect();
    assert_eq!(there, [false, true, false, true]);
}

#[test]
fn too_short_a_time_is_refused() {
    let volume = Volume::new();
    // Nothing that a device could begin on.
    std::fs::write(volume.path("Common"), "").unwrap();
    let output = volume.command(&["run", "--keep", "5m"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains("--keep 5m is shorter than 10m"), "{said}");
}
