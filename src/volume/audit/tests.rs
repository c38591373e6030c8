//! A chain that holds over lives, crashes and parts, and what it finds.
#![expect(clippy::disallowed_methods, reason = "a test meddles with files as a person would")]

use serde_json::json;

use super::*;
use crate::volume::os::OsDisk;

struct Home {
    _home: tempfile::TempDir,
    layout: Layout,
    device: DeviceId,
    log: Log,
}

impl Home {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let layout = Layout { common: home.path().join("Common"), programs: home.path().to_owned() };
        let device = DeviceId::new("a.b").unwrap();
        Self { _home: home, layout, log: Log::new(device.clone()), device }
    }

    fn write(&mut self, second: i64, what: &str) {
        let at = DateTime::from_timestamp(1_790_000_000 + second, 0).unwrap();
        let line = |before: String| json!({"what": what, "before": before}).to_string();
        self.log.write(&OsDisk::default(), &self.layout, at, line).unwrap();
    }

    fn files(&self) -> Vec<PathBuf> {
        all(&OsDisk::default(), &self.layout).unwrap().remove("a.b").unwrap_or_default()
    }

    fn checked(&self) -> Checked {
        check(&OsDisk::default(), &self.files()).unwrap()
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.layout.audit(&self.device)).unwrap()
    }

    fn put(&self, text: &str) {
        std::fs::write(self.layout.audit(&self.device), text).unwrap();
    }
}

#[test]
fn a_line_that_was_changed_or_taken_out_is_found() {
    let mut home = Home::new();
    assert_eq!(home.checked(), Checked::default());
    ["one", "two", "three"].iter().for_each(|what| home.write(0, what));
    let text = home.text();
    assert_eq!(home.checked(), Checked { lines: 3, ..Checked::default() });
    let broken_at = |number| Some((home.layout.audit(&home.device), number));
    home.put(&text.replacen("two", "2", 1));
    assert_eq!(home.checked().broken, broken_at(3), "the line behind the one that was changed");
    home.put(&text.lines().filter(|line| !line.contains("two")).map(|line| format!("{line}\n")).collect::<String>());
    assert_eq!(home.checked().broken, broken_at(2));
    home.put(&text.replacen("\"what\":\"two\"", "what", 1));
    assert_eq!(home.checked().broken, broken_at(3), "although it is no line any more");
}

#[test]
fn what_the_clock_and_a_crash_do_between_two_parts_breaks_nothing() {
    let mut home = Home::new();
    home.log.part = 10;
    [50, 50, 7].iter().for_each(|second| home.write(*second, "something"));
    let files = home.files();
    assert_eq!(
        (files.len(), home.checked()),
        (3, Checked { lines: 3, ..Checked::default() }),
        "set back, and no second passed"
    );
    let text = std::fs::read_to_string(&files[2]).unwrap();
    std::fs::write(&files[2], &text[..text.len() - 9]).unwrap();
    home.log = Log::new(home.device.clone());
    home.write(60, "after a power cut");
    assert_eq!(home.checked(), Checked { lines: 4, torn: 1, broken: None });
}

#[test]
fn what_is_no_log_is_not_passed_over() {
    let mut home = Home::new();
    home.write(0, "one");
    let aside = home.layout.logs().join("aside");
    std::fs::rename(home.layout.audit(&home.device), &aside).unwrap();
    std::os::unix::fs::symlink(&aside, home.layout.audit(&home.device)).unwrap();
    assert!(check(&OsDisk::default(), &home.files()).is_err());
}

#[test]
fn what_a_crash_cut_off_breaks_nothing() {
    let mut home = Home::new();
    home.write(0, "one");
    home.put(&format!("{}{{\"what\": \"tw", home.text()));
    assert_eq!(home.checked(), Checked { lines: 1, ..Checked::default() }, "it may just be being written");
    home.log = Log::new(home.device.clone());
    home.write(1, "three");
    assert_eq!(home.checked(), Checked { lines: 3, torn: 1, broken: None });
}

#[test]
fn a_log_goes_on_in_parts_over_another_life_and_without_those_that_were_removed() {
    let mut home = Home::new();
    home.log.part = 300;
    (0..20).for_each(|second| home.write(second, "something"));
    let files = home.files();
    assert!(files.len() > 3, "{files:?}");
    assert_eq!(home.checked(), Checked { lines: 20, ..Checked::default() });
    let over: Vec<_> = files.iter().filter_map(|path| part_over(path.file_name()?.to_str()?)).collect();
    assert!(over.len() >= files.len() - 1 && over.is_sorted() && over.iter().all(|(device, _)| *device == "a.b"));
    // The next life begins where a part has just ended: with no file to go on in, or with one that a crash left empty.
    let _ = std::fs::remove_file(home.layout.audit(&home.device));
    home.put("");
    let lines = home.checked().lines;
    home.log = Log::new(home.device.clone());
    home.write(100, "again");
    assert_eq!(home.checked(), Checked { lines: lines + 1, ..Checked::default() });
    std::fs::remove_file(&files[0]).unwrap();
    assert_eq!(home.checked().broken, None);
    std::fs::remove_file(&files[2]).unwrap();
    assert_eq!(home.checked().broken, Some((files[3].clone(), 1)), "one out of the middle is missed");
}
