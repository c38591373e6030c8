//! The disk guard, on a file system small enough to be filled: below the floor nothing new is claimed, and everything says why.

use std::path::Path;

use serde_json::Value;

use super::volume::{Volume, mount_small};

/// The room on the file system: bytes and inodes.
fn free(path: &Path) -> (u64, u64) {
    let found = rustix::fs::statvfs(path).unwrap();
    (found.f_bavail * found.f_frsize, found.f_favail)
}

fn low_on(volume: &Volume, id: &str) -> String {
    volume.beat(id).unwrap()["low_on"].as_str().unwrap_or_default().to_owned()
}

/// Several whole turns of the device's loop go by.
fn turns(volume: &Volume, id: &str) {
    let count = || volume.beat(id).unwrap()["beat"].as_u64().unwrap();
    let before = count();
    volume.wait("some beats", |_| count() > before + 3);
}

/// Why the one trigger that waits does, and what the problems say.
fn status(volume: &Volume) -> (String, String) {
    let (code, status) = volume.ask(&["status"]);
    assert_eq!(code, Some(0));
    let waiting: &Vec<Value> = status["waiting"].as_array().unwrap();
    assert_eq!(waiting.len(), 1, "{status}");
    (waiting[0]["reason"].as_str().unwrap().to_owned(), status["problems"].to_string())
}

#[test]
fn below_the_floor_nothing_new_is_claimed_until_there_is_room_again() {
    let mut volume = Volume::new();
    let common = volume.path("Common");
    let Some(_mounted) = mount_small(&common, "size=16m,nr_inodes=400") else { return };
    volume.script("slow.sh", "while [ ! -e \"$AIOS_PROGRAMS/go\" ]; do sleep 0.02; done");
    volume.job("slow", "file = \"slow.sh\"\n");
    let of_a = "{\"job\": \"slow\", \"tags\": [\"a\"]}";
    volume.start("a", &["--log-level", "info"]);
    volume.drop_copy("one.json", of_a);
    volume.wait("it runs", |volume| volume.ledger().len() == 1);

    // The floor is 5 % of 16 MiB, 819.2 KiB.
    let (bytes, _) = free(&common);
    std::fs::write(common.join("ballast"), vec![b'x'; usize::try_from(bytes - (500 << 10)).unwrap()]).unwrap();
    volume.wait("a is low on space", |volume| low_on(volume, "a").contains("are free, the floor is 819.1 KiB"));
    volume.drop_copy("two.json", of_a);
    std::fs::write(volume.path("Programs/go"), "").unwrap();
    volume.wait("what ran is recorded", |volume| volume.finals("slow") == 1);
    turns(&volume, "a");
    assert_eq!(volume.ledger().len(), 1, "nothing new is claimed");
    let (why, problems) = status(&volume);
    assert!(why.starts_with("no device that could take it has enough free space") && why.contains("a: "), "{why}");
    assert!(why.contains("are free, the floor is 819.1 KiB"), "{why}");
    assert!(problems.contains("a: no new work is claimed") && problems.contains("the floor is"), "{problems}");
    let (code, found) = volume.ask(&["doctor"]);
    let of = |name: &str| found["checks"].as_array().unwrap().iter().find(|check| check["check"] == name).unwrap();
    assert!(code == Some(1) && of("space")["verdict"] == "error" && of("devices")["verdict"] == "error", "{found}");
    let shown = volume.command(&["status"]).output().unwrap();
    assert!(String::from_utf8_lossy(&shown.stdout).contains("enough free space"), "{shown:?}");
    // Who asks for no floor has none.
    volume.start("b", &["--min-free", "0"]);
    volume.drop_copy("free.json", "{\"command\": [\"true\"], \"tags\": [\"b\"]}");
    assert_eq!(volume.outcome("free")["status"], "succeeded");
    volume.kill("b");
    assert_eq!(volume.ledger().len(), 1, "nor is it in the meantime");
    std::fs::remove_file(common.join("ballast")).unwrap();
    volume.wait("the second has run", |volume| volume.finals("slow") == 2);
    assert_eq!(volume.tell().matches("no new work is claimed").count(), 1, "it is said once, not with each beat");

    // Inodes: the floor is 5 % of 400.
    std::fs::create_dir(common.join("ballast")).unwrap();
    for number in 0..free(&common).1 - 14 {
        std::fs::write(common.join("ballast").join(number.to_string()), "").unwrap();
    }
    volume.wait("a is low on inodes", |volume| low_on(volume, "a").contains("inodes are free, the floor is 20"));
    volume.drop_copy("three.json", of_a);
    turns(&volume, "a");
    assert!(status(&volume).0.contains("inodes are free, the floor is 20"));
    assert_eq!(volume.ledger().len(), 2);
    std::fs::remove_dir_all(common.join("ballast")).unwrap();
    volume.check("slow", 3);
    volume.wait("it says no more of it", |volume| low_on(volume, "a").is_empty());
}
