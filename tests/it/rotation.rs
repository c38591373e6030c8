//! Logs that are rotated under a program that goes on writing, and under whoever reads them.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};

use aios::client::find::find;
use aios::client::follow::{Listener, Tail};
use aios::client::{Client, Failure};
use aios::model::ids::DeviceId;
use aios::volume::layout::Layout;
use aios::volume::logs::{Keeps, Log, earlier_part, open, open_again};
use aios::volume::os::OsDisk;
use serde_json::json;

use super::volume::{PATIENCE, Volume, read};

const RUN: &str = "20261121T034156123Z-k3f9q2";

/// A volume with one active run, whose device is this test.
struct Bed {
    volume: Volume,
    log: PathBuf,
    out: Log,
}

impl Bed {
    fn new(limit: u64, keeps: Keeps) -> Self {
        let volume = Volume::new();
        let bed = |name: &str| volume.common(name);
        let log = bed(&format!("Logs/2026-11-21/a.{RUN}.1.log"));
        for folder in ["Logs/2026-11-21", "Triggers/.running", "Triggers/.waiting", "Devices", "Results/2026-11-21"] {
            std::fs::create_dir_all(bed(folder)).unwrap();
        }
        std::fs::write(bed(".volume"), "v\n").unwrap();
        std::fs::write(bed(&format!("Triggers/.running/{RUN}.1.a.json")), r#"{"job": "a"}"#).unwrap();
        let held = json!({"job": "a", "stem": "a", "cause": "trigger", "trigger": "a.json", "attempt": 1, "device": "d",
            "session": "0123", "priority": 0, "slots": 1, "claimed_at": "2026-11-21T03:41:57Z"});
        let state = json!({"schema": 1, "revision": 1, "last_commits": [], "runs": {RUN: held}, "jobs": {}});
        std::fs::write(bed("state.json"), state.to_string()).unwrap();
        let out = open(&OsDisk::new(), &log, limit, keeps).unwrap().unwrap();
        Self { volume, log, out }
    }

    fn print(&mut self, text: &str) {
        self.out.write(text.as_bytes()).unwrap();
    }

    /// What lies in the log and in its earlier part.
    fn parts(&self) -> (String, Option<String>) {
        (std::fs::read_to_string(&self.log).unwrap(), std::fs::read_to_string(earlier_part(&self.log)).ok())
    }

    fn end(&self) {
        let result = json!({
            "schema": 1, "run_id": RUN, "job": "a", "attempt": 1, "device": "d", "executor": "native", "cause": "trigger",
            "trigger": "a.json", "args": [], "kwargs": {}, "priority": 0, "status": "succeeded", "final": true, "exit_code": 0,
            "signal": null, "error": null, "result": null, "result_error": null, "created_at": "2026-11-21T03:41:56.123Z",
            "claimed_at": "2026-11-21T03:41:57Z", "started_at": "2026-11-21T03:41:57Z",
            "finished_at": "2026-11-21T03:41:58Z", "duration_ms": 1.0, "usage": null, "log": null, "log_truncated": true
        });
        let path = self.volume.common(&format!("Results/2026-11-21/a.{RUN}.1.json"));
        std::fs::write(path.with_extension("aside"), result.to_string()).unwrap();
        std::fs::rename(path.with_extension("aside"), path).unwrap();
    }
}

/// `runs logs -f`, line by line.
struct Reader {
    child: Child,
    lines: Receiver<String>,
}

impl Reader {
    fn new(volume: &Volume) -> Self {
        let mut command = volume.command(&["runs", "logs", "-f", RUN]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (tell, lines) = sync_channel(10_000);
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
        Self { child, lines }
    }

    fn expect(&self, lines: impl IntoIterator<Item = String>) {
        for line in lines {
            assert_eq!(self.lines.recv_timeout(PATIENCE).as_ref(), Ok(&line));
        }
    }

    fn ends(mut self) {
        assert_eq!(self.lines.recv_timeout(PATIENCE).ok(), None);
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // It has ended, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn line(number: usize) -> String {
    format!("line {number:04}")
}

fn text(numbers: std::ops::Range<usize>) -> String {
    numbers.map(|number| line(number) + "\n").collect()
}

#[test]
fn a_log_begins_anew_with_whole_lines_and_what_it_held_is_its_earlier_part() {
    let mut bed = Bed::new(1_024, Keeps::Newest);
    // Of ten bytes each.
    bed.print(&text(0..100));
    assert_eq!(bed.parts(), (text(0..100), None), "it is within its limit");
    bed.print(&text(100..105));
    assert_eq!(bed.parts(), (text(102..105), Some(text(0..102))));
    assert!(!bed.out.is_cut(), "all of it is there");
    bed.print(&text(105..310));
    assert_eq!(bed.parts(), (text(306..310), Some(text(204..306))));
    assert!(bed.out.close().unwrap(), "the first part is gone");
    bed.print("x".repeat(1_500).as_str());
    let (log, earlier) = bed.parts();
    assert_eq!((log.len(), earlier.unwrap().len()), (476, 1_024), "a line that fits nowhere is split");
}

#[test]
fn a_log_keeps_its_first_bytes_and_says_what_is_left_out() {
    let mut bed = Bed::new(25, Keeps::First);
    for number in 0..10 {
        bed.print(&text(number..number + 1));
        assert!(bed.parts().0.len() <= 25, "at no moment it is larger");
    }
    assert!(bed.out.close().unwrap());
    let note = "\n[log cut at 25 bytes (--log-limit): 75 bytes are left out]\n";
    assert_eq!(bed.parts(), (text(0..3)[..25].to_owned() + note, None));
}

#[test]
fn a_log_whose_earlier_part_cannot_be_written_does_not_grow_for_ever() {
    let mut bed = Bed::new(1_024, Keeps::Newest);
    std::fs::create_dir(earlier_part(&bed.log)).unwrap();
    bed.out.write(text(0..300).as_bytes()).unwrap_err();
    bed.out.write(text(300..400).as_bytes()).unwrap_err();
    assert_eq!(bed.parts().0, text(0..102));
    std::fs::remove_dir(earlier_part(&bed.log)).unwrap();
    bed.print(&text(400..401));
    assert_eq!(bed.parts(), (text(400..401), Some(text(0..102))));
    assert!(bed.out.close().unwrap());
    assert!(bed.parts().0.contains("[2980 bytes are missing here: they could not be written]"), "{}", bed.parts().0);
}

#[test]
fn a_log_that_somebody_renames_or_removes_is_opened_anew() {
    let mut bed = Bed::new(1 << 20, Keeps::First);
    bed.print(&text(0..1));
    std::fs::rename(&bed.log, earlier_part(&bed.log)).unwrap();
    bed.out = open_again(&OsDisk::new(), &bed.log, 1 << 20, Keeps::First).unwrap().unwrap();
    bed.print(&text(1..2));
    assert_eq!(bed.parts(), (text(1..2), Some(text(0..1))));
    std::fs::remove_file(&bed.log).unwrap();
    // It looks once a second.
    let until = std::time::Instant::now() + PATIENCE;
    while !bed.log.is_file() {
        assert!(std::time::Instant::now() < until);
        bed.print("x\n");
        super::volume::pause();
    }
    assert_eq!(bed.parts().0, "x\n");
}

#[test]
fn a_reader_of_a_rotated_log_gets_the_earlier_part_first() {
    let mut bed = Bed::new(1_024, Keeps::Newest);
    bed.print(&text(0..105));
    let output = bed.volume.command(&["runs", "logs", RUN]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), text(0..105));
    let (code, answer) = bed.volume.ask(&["runs", "logs", RUN]);
    assert_eq!((code, &answer["log"]), (Some(0), &json!(text(0..105))));
    bed.print(&text(105..204));
    let reader = Reader::new(&bed.volume);
    reader.expect((0..204).map(line));
    bed.end();
    reader.ends();
    assert!(read(&bed.volume.common(&format!("Results/2026-11-21/a.{RUN}.1.json"))).is_some());
}

#[test]
fn who_follows_a_log_gets_every_line_once_however_often_it_is_rotated() {
    let mut bed = Bed::new(1_024, Keeps::Newest);
    bed.print(&text(0..5));
    let reader = Reader::new(&bed.volume);
    reader.expect((0..5).map(line));
    let mut next = 5;
    for round in 0..12 {
        // Some of it is told before the log is rotated, some of it behind.
        bed.print(&text(next..next + 60));
        if round % 3 == 0 {
            reader.expect((next..next + 60).map(line));
        }
        bed.print(&text(next + 60..next + 80));
        reader.expect((if round % 3 == 0 { next + 60 } else { next }..next + 80).map(line));
        next += 80;
    }
    bed.end();
    reader.ends();
}

#[test]
fn who_follows_a_log_that_others_rotate_gets_every_line_once() {
    for (removes, has_successor) in [(false, true), (false, false), (true, false)] {
        let mut bed = Bed::new(1 << 20, Keeps::First);
        bed.print(&text(0..5));
        let reader = Reader::new(&bed.volume);
        reader.expect((0..5).map(line));
        let aside = earlier_part(&bed.log);
        if removes {
            std::fs::remove_file(&bed.log).unwrap()
        } else {
            std::fs::rename(&bed.log, &aside).unwrap()
        }
        if has_successor {
            std::fs::write(&bed.log, "").unwrap();
        }
        // The writer has not seen it yet.
        bed.print(&text(5..8));
        reader.expect((5..8).map(line));
        bed.print(&text(8..9));
        bed.out = open_again(&OsDisk::new(), &bed.log, 1 << 20, Keeps::First).unwrap().unwrap();
        bed.print(&text(9..20));
        reader.expect((8..20).map(line));
        bed.end();
        reader.ends();
    }
}

/// Takes no more at a time than it has room for.
struct Narrow {
    text: Vec<u8>,
    room: usize,
}

impl Listener for Narrow {
    fn has_room(&self) -> bool {
        self.text.len() < self.room
    }

    fn output(&mut self, _: u32, _: u64, bytes: &[u8]) -> Result<(), Failure> {
        self.text.extend_from_slice(bytes);
        Ok(())
    }
}

#[test]
fn who_takes_little_at_a_time_gets_the_earlier_part_in_pieces_and_whole() {
    let mut bed = Bed::new(1_000_000, Keeps::Newest);
    bed.print(&text(0..100_100));
    let layout = Layout { common: bed.volume.path("Common"), programs: bed.volume.path("Programs") };
    let client = Client::new(layout, DeviceId::new("d").unwrap());
    let run = find(&client, RUN).unwrap();
    let mut tail = Tail::new(&client, &run, 1);
    let (mut whole, mut rounds) = (Vec::new(), 0);
    loop {
        let mut narrow = Narrow { text: Vec::new(), room: 1 };
        let is_all = tail.copy(&client, &mut narrow).unwrap();
        assert!(narrow.text.len() <= 1 << 20, "{} bytes at once", narrow.text.len());
        whole.append(&mut narrow.text);
        rounds += 1;
        if is_all {
            break;
        }
        // Somebody prints on.
        if rounds == 3 {
            bed.print(&text(100_100..100_200));
        }
    }
    assert!(rounds > 3, "{rounds}");
    let expected = text(0..100_200);
    let whole = String::from_utf8(whole).unwrap();
    assert!(whole == expected, "{} bytes of {}", whole.len(), expected.len());
}
