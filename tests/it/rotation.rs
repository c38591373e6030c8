//! Logs that are rotated under a program that goes on writing, and under whoever reads them.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};

use aios::client::find::find;
use aios::client::follow::{Listener, Tail};
use aios::client::{Client, Failure};
use aios::model::ids::DeviceId;
use aios::volume::disk::Disk as _;
use aios::volume::layout::Layout;
use aios::volume::logs::{earlier_part, rotate};
use aios::volume::os::OsDisk;
use serde_json::json;

use super::volume::{PATIENCE, Volume, read};

const RUN: &str = "20261121T034156123Z-k3f9q2";

/// A volume with one active run, whose program is this test.
struct Bed {
    volume: Volume,
    log: PathBuf,
    out: File,
}

impl Bed {
    fn new() -> Self {
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
        let out = OsDisk::new().open_log(&log).unwrap().unwrap();
        Self { volume, log, out }
    }

    fn print(&mut self, text: &str) {
        self.out.write_all(text.as_bytes()).unwrap();
    }

    fn rotate(&self, limit: u64) -> Option<u64> {
        rotate(&OsDisk::new(), &self.log, &self.volume.common("Logs/.staged"), limit).unwrap()
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
fn a_log_begins_anew_and_what_it_held_is_its_earlier_part() {
    let mut bed = Bed::new();
    bed.print(&text(0..10));
    assert_eq!((bed.rotate(100), bed.parts()), (None, (text(0..10), None)), "it is within its limit");
    bed.print(&text(10..11));
    assert_eq!((bed.rotate(100), bed.parts()), (Some(0), (String::new(), Some(text(0..11)))));
    bed.print(&text(11..23));
    assert_eq!(bed.parts(), (text(11..23), Some(text(0..11))), "the program appends where the log ends now");
    // Left behind by one who died.
    std::fs::write(bed.volume.common("Logs/.staged"), "half").unwrap();
    assert_eq!((bed.rotate(100), bed.parts()), (Some(0), (String::new(), Some(text(11..23)))));
    assert!(!bed.volume.common("Logs/.staged").exists());
}

#[test]
fn no_more_than_twice_the_limit_is_taken_over() {
    let mut bed = Bed::new();
    bed.print(&text(0..20));
    assert_eq!((bed.rotate(100), bed.parts()), (Some(0), (String::new(), Some(text(0..20)))), "twice is not too much");
    bed.print(&text(0..25));
    assert_eq!(bed.rotate(100), Some(50));
    let (log, earlier) = bed.parts();
    let earlier = earlier.unwrap();
    assert_eq!((log.as_str(), &earlier[..200]), ("", text(0..20).as_str()));
    assert!(
        earlier[200..].contains("cut at 200 bytes") && earlier.contains("at least 50 bytes are left out"),
        "{earlier}"
    );
}

#[test]
fn a_log_whose_earlier_part_cannot_be_written_does_not_grow_for_ever() {
    let mut bed = Bed::new();
    std::fs::create_dir(earlier_part(&bed.log)).unwrap();
    bed.print(&text(0..15));
    let staged = bed.volume.common("Logs/.staged");
    rotate(&OsDisk::new(), &bed.log, &staged, 100).unwrap_err();
    assert_eq!((bed.parts().0, staged.exists()), (text(0..15), false), "nothing is lost while there is room");
    bed.print(&text(15..30));
    rotate(&OsDisk::new(), &bed.log, &staged, 100).unwrap_err();
    assert_eq!((bed.parts().0, staged.exists()), (text(0..20), false));
}

#[test]
fn a_reader_of_a_rotated_log_gets_the_earlier_part_first() {
    let mut bed = Bed::new();
    bed.print(&text(0..20));
    bed.rotate(100);
    bed.print(&text(20..25));
    let output = bed.volume.command(&["runs", "logs", RUN]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), text(0..25));
    let (code, answer) = bed.volume.ask(&["runs", "logs", RUN]);
    assert_eq!((code, &answer["log"]), (Some(0), &json!(text(0..25))));
    // More of it than there is of the earlier part.
    bed.print(&text(25..50));
    let reader = Reader::new(&bed.volume);
    reader.expect((0..50).map(line));
    bed.end();
    reader.ends();
    assert!(read(&bed.volume.common(&format!("Results/2026-11-21/a.{RUN}.1.json"))).is_some());
}

#[test]
fn who_follows_a_log_gets_every_line_once_however_often_it_is_rotated() {
    let mut bed = Bed::new();
    bed.print(&text(0..5));
    let reader = Reader::new(&bed.volume);
    reader.expect((0..5).map(line));
    let mut next = 5;
    for round in 0..12 {
        // What is printed just before the cut, and just behind it; told meanwhile or not.
        bed.print(&text(next..next + 20));
        if round % 3 == 0 {
            reader.expect((next..next + 20).map(line));
        }
        assert_eq!(bed.rotate(150), Some(0));
        bed.print(&text(next + 20..next + 23));
        reader.expect((if round % 3 == 0 { next + 20 } else { next }..next + 23).map(line));
        next += 23;
    }
    bed.end();
    reader.ends();
}

#[test]
fn who_looks_between_the_copy_and_the_cut_gets_every_line_once() {
    let mut bed = Bed::new();
    bed.print(&text(0..20));
    let reader = Reader::new(&bed.volume);
    reader.expect((0..20).map(line));
    let earlier = earlier_part(&bed.log);
    let aside = bed.volume.common("Logs/.staged");
    for round in 1..4 {
        let (log, next) = (std::fs::read(&bed.log).unwrap(), round * 20);
        std::fs::write(&aside, log).unwrap();
        std::fs::rename(&aside, &earlier).unwrap();
        // Told while the log still holds what its earlier part holds.
        bed.print(&text(next..next + 1));
        reader.expect([line(next)]);
        File::options().write(true).open(&bed.log).unwrap().set_len(0).unwrap();
        bed.print(&text(next + 1..next + 20));
        reader.expect((next + 1..next + 20).map(line));
    }
    bed.end();
    reader.ends();
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
    let mut bed = Bed::new();
    bed.print(&text(0..100_000));
    assert!(bed.rotate(1 << 20).is_some());
    bed.print(&text(100_000..100_100));
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
