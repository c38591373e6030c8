//! A device in bad surroundings: a pipe that nobody reads, signals that are not for it, bytes that are no text, results too deep.

use std::io::{BufRead, Read};
use std::os::unix::ffi::OsStringExt;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::json;

use super::volume::{Volume, mount_small, read};

#[test]
fn a_device_whose_output_nobody_reads_goes_on() {
    let mut volume = Volume::new();
    volume.job("nop", "command = [\"true\"]\n");
    let mut command =
        volume.command(&["run", "--device-id", "a", "--http", "none", "--scan", "300ms", "--log-level", "trace"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut unread = child.stderr.take().unwrap();
    volume.devices.insert("a".to_owned(), child);
    volume.wait("a beats", |volume| volume.beat("a").is_some());
    // Far more than a pipe holds.
    for number in 0..600 {
        volume.drop_trigger(&format!("n{number}.json"), "{\"job\": \"nop\"}");
    }
    volume.wait("all have run", |volume| volume.finals("nop") == 600);
    let beat = volume.beat("a").unwrap()["beat"].as_u64();
    volume.wait("it still beats", |volume| volume.beat("a").unwrap()["beat"].as_u64() > beat);
    volume.signal("a", Signal::TERM);
    assert_eq!(volume.ended("a"), Some(0));
    let mut first = vec![0; 60_000];
    unread.read_exact(&mut first).unwrap();
}

#[test]
fn signals_that_are_not_for_it_lose_no_run() {
    let mut volume = Volume::new();
    volume.script("slow.sh", "while [ ! -e \"$AIOS_PROGRAMS/go\" ]; do sleep 0.02; done");
    volume.job("slow", "file = \"slow.sh\"\n");
    volume.start("a", &[]);
    volume.drop_trigger("s.json", "{\"job\": \"slow\"}");
    volume.wait("it runs", |volume| volume.ledger().len() == 1);
    for signal in [Signal::HUP, Signal::USR1, Signal::USR2, Signal::ALARM] {
        let beat = volume.beat("a").unwrap()["beat"].as_u64();
        volume.signal("a", signal);
        volume.wait("it beats on", |volume| volume.beat("a").unwrap()["beat"].as_u64() > beat);
    }
    volume
        .wait("it says that it looks again", |volume| volume.tell().contains("SIGHUP: everything is looked at again"));
    std::fs::write(volume.path("Programs/go"), "").unwrap();
    volume.check("slow", 1);
    assert_eq!(volume.results("slow")[0]["attempt"], 1);
    volume.signal("a", Signal::QUIT);
    assert_eq!(volume.ended("a"), Some(0), "SIGQUIT drains, as SIGTERM does");
}

#[test]
fn words_that_are_no_text_are_wrong_usage() {
    let volume = Volume::new();
    volume.job("nop", "command = [\"true\"]\n");
    let word = || std::ffi::OsString::from_vec(b"caf\xe9.json".to_vec());
    for verb in [&["trigger", "nop"][..], &["runs", "show"], &["--json", "runs", "show"], &["exec", "--"]] {
        let done = volume.command(&[]).args(verb).arg(word()).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(2), "{verb:?}: {said}");
        assert!(said.contains("UTF-8"), "{verb:?}: {said}");
    }
}

#[test]
fn a_result_too_deep_is_left_out_with_the_reason() {
    let mut volume = Volume::new();
    volume.place(&volume.path("Programs/deep.sh"), "awk \"BEGIN { for (i = 0; i < $1; i++) printf \\\"[\\\"; for (i = 0; i < $1; i++) printf \\\"]\\\" }\" >\"$AIOS_RESULT\"\n");
    volume.job("deep", "file = \"deep.sh\"\nargs = [101]\n");
    volume.job("fair", "file = \"deep.sh\"\nargs = [100]\n");
    volume.start("a", &[]);
    volume.drop_trigger("d.json", "{\"job\": \"deep\"}");
    volume.drop_trigger("f.json", "{\"job\": \"fair\"}");
    let (deep, fair) = (volume.outcome("deep"), volume.outcome("fair"));
    assert_eq!((&deep["status"], &deep["result"]), (&json!("succeeded"), &json!(null)), "{deep}");
    assert_eq!(deep["result_error"], "AIOS_RESULT has 101 levels, at most 100 are taken");
    assert!(fair["result"].is_array() && fair["result_error"].is_null(), "{fair}");
}

#[test]
fn no_job_is_called_all() {
    let volume = Volume::new();
    volume.job("all", "command = [\"true\"]\n");
    assert!(volume.command(&["init"]).status().unwrap().success());
    let done = volume.command(&["jobs", "validate"]).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.code() == Some(1) && said.contains("this stands for every job"), "{said}");
    let done = volume.command(&["jobs", "add", "--name", "all", "--command", "true"]).output().unwrap();
    assert_eq!(done.status.code(), Some(2), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn a_device_that_was_killed_is_waited_for_as_long_as_it_announced() {
    let mut volume = Volume::new();
    volume.script("slow.sh", "test \"$AIOS_ATTEMPT\" -ge 2 || sleep 300");
    volume.job("slow", "file = \"slow.sh\"\n");
    volume.start("a", &["--lease", "1h"]);
    volume.drop_trigger("s.json", "{\"job\": \"slow\"}");
    volume.wait("a holds it", |volume| volume.holder("slow").as_deref() == Some("a") && !volume.ledger().is_empty());
    volume.start("b", &["--lease", "600ms"]);
    volume.signal("a", Signal::STOP);
    // Five of b's leases.
    let beat = volume.beat("b").unwrap()["beat"].as_u64().unwrap();
    volume.wait("b beats on", |volume| volume.beat("b").unwrap()["beat"].as_u64() > Some(beat + 15));
    assert_eq!(volume.holder("slow").as_deref(), Some("a"), "b takes nothing away");
    let (_, status) = volume.ask(&["status"]);
    let problems = status["problems"].to_string();
    assert!(problems.contains("different leases: b has 600ms, a has 1h"), "{problems}");
    volume.signal("a", Signal::CONT);
    let state: Option<serde_json::Value> = read(&volume.common("state.json"));
    assert!(state.is_some());
}

/// The log of the only attempt of a job, byte for byte.
fn log(volume: &Volume, job: &str) -> Vec<u8> {
    std::fs::read(volume.common(volume.results(job)[0]["log"].as_str().unwrap())).unwrap()
}

#[test]
fn a_program_that_opens_its_output_again_does_not_cut_its_log() {
    let mut volume = Volume::new();
    let text = "echo one\necho two > /dev/stderr\necho three\necho four > /dev/stdout\necho five | tee /dev/stderr >/dev/null\n";
    volume.place(&volume.path("Programs/w.sh"), text);
    volume.job("w", "file = \"w.sh\"\n");
    volume.start("a", &[]);
    volume.drop_trigger("w.json", "{\"job\": \"w\"}");
    assert_eq!(volume.outcome("w")["status"], "succeeded");
    assert_eq!(String::from_utf8(log(&volume, "w")).unwrap(), "one\ntwo\nthree\nfour\nfive\n");
}

#[test]
fn a_log_is_never_larger_than_its_limit_and_a_daemons_never_than_twice_that() {
    let mut volume = Volume::new();
    // It prints 40 MB, and says so.
    volume.script(
        "flood.sh",
        "head -c 40000000 /dev/zero; echo $? >> \"$AIOS_PROGRAMS/said\"; [ $AIOS_JOB = once ] || sleep 1000",
    );
    volume.job("once", "file = \"flood.sh\"\n");
    volume.job("always", "type = \"always\"\nfile = \"flood.sh\"\n");
    volume.start("a", &["--log-limit", "1m"]);
    volume.drop_trigger("o.json", "{\"job\": \"once\"}");
    let sizes = |volume: &Volume, job: &str| -> Vec<u64> {
        let of_job = |path: &&std::path::PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(job);
        let all = super::volume::files(&volume.common("Logs"));
        all.iter().filter(of_job).filter_map(|path| Some(std::fs::metadata(path).ok()?.len())).collect()
    };
    let said = volume.path("Programs/said");
    let limit = 1 << 20;
    volume.wait("both have printed all of it", |volume| {
        assert!(sizes(volume, "once").iter().all(|size| *size <= limit + 100), "{:?}", sizes(volume, "once"));
        assert!(sizes(volume, "always").iter().all(|size| *size <= limit), "{:?}", sizes(volume, "always"));
        std::fs::read_to_string(&said).is_ok_and(|said| said == "0\n0\n")
    });
    let outcome = volume.outcome("once");
    assert_eq!((&outcome["status"], &outcome["log_truncated"]), (&json!("succeeded"), &json!(true)));
    let text = String::from_utf8(log(&volume, "once")).unwrap();
    let left_out = 40_000_000 - limit;
    assert!(text.ends_with(&format!("\n[log cut at {limit} bytes (--log-limit): {left_out} bytes are left out]\n")));
    assert_eq!(sizes(&volume, "always").len(), 2);
}

#[test]
fn who_follows_a_log_that_is_rotated_by_others_gets_each_line_once() {
    let mut volume = Volume::new();
    volume.script(
        "p.sh",
        "i=0; while [ ! -e \"$AIOS_PROGRAMS/go\" ]; do i=$((i + 1)); echo line$i; sleep 0.01; done; echo $i >&2",
    );
    volume.job("p", "file = \"p.sh\"\n");
    volume.start("a", &[]);
    volume.drop_trigger("p.json", "{\"job\": \"p\"}");
    let find = |volume: &Volume| {
        let mut all = super::volume::files(&volume.common("Logs"));
        all.retain(|path| path.file_name().unwrap().to_string_lossy().starts_with("p."));
        all.into_iter().find(|path| path.extension().is_some_and(|ending| ending == "log"))
    };
    let has_text = |path: &std::path::Path| std::fs::metadata(path).is_ok_and(|meta| meta.len() > 0);
    volume.wait("it prints", |volume| find(volume).is_some_and(|path| has_text(&path)));
    let path = find(&volume).unwrap();
    let mut command = volume.command(&["runs", "logs", "-f", "p.json"]);
    let mut follower = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut told = std::io::BufReader::new(follower.stdout.take().unwrap());
    let (mut number, mut line) = (0, String::new());
    let mut next = || {
        line.clear();
        told.read_line(&mut line).unwrap();
        line.clone()
    };
    let mut expect = |count: usize| {
        for _ in 0..count {
            number += 1;
            assert_eq!(next(), format!("line{number}\n"));
        }
    };
    expect(1);
    for how in ["with create", "without", "removed"] {
        if how == "removed" {
            std::fs::remove_file(&path).unwrap();
        } else {
            std::fs::rename(&path, path.with_extension("log.1")).unwrap();
        }
        if how == "with create" {
            std::fs::write(&path, "").unwrap();
        }
        volume.wait("it prints into a new file", |_| has_text(&path));
        // More than there was before.
        expect(100);
    }
    std::fs::write(volume.path("Programs/go"), "").unwrap();
    let mut line = next();
    while line.starts_with("line") {
        number += 1;
        assert_eq!(line, format!("line{number}\n"));
        line = next();
    }
    assert_eq!(line, format!("{number}\n"));
    assert!(follower.wait().unwrap().success());
}

#[test]
fn the_devices_own_log_goes_on_after_it_was_renamed_or_removed() {
    let mut volume = Volume::new();
    volume.start("a", &["--log-level", "trace"]);
    let own = |volume: &Volume| {
        let mut all = super::volume::files(&volume.common("Logs"));
        all.retain(|path| path.extension().is_some_and(|ending| ending == "log"));
        all.into_iter().find(|path| path.file_name().unwrap().to_string_lossy().starts_with("orchestrator.a."))
    };
    volume.wait("it logs", |volume| own(volume).is_some());
    let path = own(&volume).unwrap();
    for round in 0..2 {
        if round == 0 {
            std::fs::rename(&path, path.with_extension("log.1")).unwrap();
        } else {
            std::fs::remove_file(&path).unwrap();
        }
        let count = std::cell::Cell::new(0);
        volume.wait("it logs into a new file", |volume| {
            // Each rejection is a line.
            count.set(count.get() + 1);
            volume.drop_trigger(&format!("bad{round}.{}.json", count.get()), "[]");
            own(volume).is_some_and(|path| std::fs::metadata(path).is_ok_and(|meta| meta.len() > 0))
        });
    }
    let told = volume.command(&["logs"]).output().unwrap();
    assert!(String::from_utf8_lossy(&told.stdout).contains("bad1."), "the verb reads the new one");
}

/// Starts a device in these surroundings: a shell sets them up and becomes the device, or a program does that starts its arguments.
fn start_in(volume: &mut Volume, before: &[&str]) {
    let run = volume.command(&["run", "--device-id", "a", "--heartbeat", "200ms", "--scan", "300ms"]);
    let mut command = Command::new(before[0]);
    command.args(&before[1..]).arg(run.get_program()).args(run.get_args());
    for (name, value) in run.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    // As people start it.
    command.env_remove("AIOS_STAND_IN").stdin(Stdio::null()).stdout(Stdio::null());
    let said = std::fs::File::create(volume.path("a.said")).unwrap();
    volume.devices.insert("a".to_owned(), command.stderr(said).spawn().unwrap());
    volume.wait("a beats", |volume| volume.beat("a").is_some());
}

/// Runs a job once and gives its log.
fn printed(volume: &Volume, job: &str, text: &str) -> String {
    volume.job(job, text);
    volume.drop_trigger(&format!("{job}.json"), &format!("{{\"job\": \"{job}\"}}"));
    assert_eq!(volume.outcome(job)["status"], "succeeded", "{}", volume.outcome(job));
    String::from_utf8(log(volume, job)).unwrap()
}

#[test]
fn a_program_gets_clean_signals_the_given_limits_and_no_descriptor_of_others() {
    let mut volume = Volume::new();
    // Blocked and ignored by the parent of the device, and a file that it has open for itself.
    let start = "import os,resource,signal,sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1, signal.SIGRTMIN])
for number in [signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD, signal.SIGTSTP, signal.SIGTTOU, signal.SIGXFSZ]: signal.signal(number, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 400))
os.set_inheritable(os.open('/etc/passwd', os.O_RDONLY), True); os.dup2(os.open('/etc/passwd', os.O_RDONLY), 77)
os.execv(sys.argv[1], sys.argv[1:])";
    start_in(&mut volume, &["python3", "-c", start]);
    let masks = printed(&volume, "masks", "command = [\"grep\", \"-E\", \"^Sig(Blk|Ign)\", \"/proc/self/status\"]\n");
    let mask = |line: &str| u64::from_str_radix(line.split_once(":\t").unwrap().1, 16).unwrap();
    // Signals 32 and 33 are the C library's own: its `posix_spawn` has them ignored.
    let masks: Vec<u64> = masks.lines().map(|line| mask(line) & !(3 << 31)).collect();
    assert_eq!(masks, [0, 0]);
    let limits = "command = [\"sh\", \"-c\", \"ulimit -Sn; ulimit -Hn; ls /proc/self/fd | wc -w\"]\n";
    // The fourth is the folder that `ls` reads.
    assert_eq!(printed(&volume, "limits", limits), "200\n400\n4\n");
    volume.signal("a", Signal::TERM);
    assert_eq!(volume.ended("a"), Some(0), "it hears signals all the same");
}

#[test]
fn many_runs_at_once_raise_the_limit_of_open_files() {
    let mut volume = Volume::new();
    start_in(&mut volume, &["sh", "-c", "ulimit -Sn 64; exec \"$0\" \"$@\" --slots 60"]);
    volume.script("hold.sh", "while [ ! -e \"$AIOS_PROGRAMS/go\" ]; do sleep 0.1; done");
    volume.job("hold", "file = \"hold.sh\"\n");
    for number in 0..50 {
        volume.drop_trigger(&format!("h{number}.json"), "{\"job\": \"hold\"}");
    }
    volume.wait("more run than that limit allows", |volume| volume.ledger().len() == 50);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", volume.beat("a").unwrap()["pid"])).unwrap();
    assert!(!limits.lines().any(|line| line.starts_with("Max open files            64 ")), "{limits}");
    std::fs::write(volume.path("Programs/go"), "").unwrap();
    volume.check("hold", 50);
}

#[test]
fn a_program_that_asks_on_the_terminal_of_its_device_fails_at_once() {
    let mut volume = Volume::new();
    volume.job("ask", "command = [\"sh\", \"-c\", \"read password < /dev/tty\"]\n");
    start_in(&mut volume, &["python3", "-c", "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"]);
    volume.drop_trigger("ask.json", "{\"job\": \"ask\"}");
    let outcome = volume.outcome("ask");
    assert_eq!(outcome["status"], "failed", "{outcome}");
    assert!(String::from_utf8(log(&volume, "ask")).unwrap().contains("/dev/tty"));
    // What is typed on the terminal, or sent to the process that stands there, reaches the device.
    let device = rustix::process::Pid::from_raw(volume.beat("a").unwrap()["pid"].as_i64().unwrap() as i32).unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", device.as_raw_pid())).unwrap();
    let stand_in = stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(stand_in).unwrap(), Signal::INT).unwrap();
    assert_eq!(volume.ended("a"), Some(0));
    assert!(rustix::process::test_kill_process(device).is_err(), "it has gone");
}

/// Gives the volume to a user of nobody else's, whose processes are counted together. `None`: no device can run as another user here.
fn other_user(volume: &Volume) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: not root: nothing can be started as another user");
        return None;
    }
    let user = (20_000 + std::process::id() % 10_000).to_string();
    let own = Command::new("chown").args(["-R", &user]).arg(volume.home.path()).status();
    assert!(own.unwrap().success());
    let mut look = Command::new("setpriv");
    look.args(["--reuid", &user, "--regid", &user, "--clear-groups", env!("CARGO_BIN_EXE_orchestrator"), "--version"]);
    let may_run = look.stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    if !may_run {
        println!("SKIPPED: another user may not run this program, or there is no setpriv");
    }
    may_run.then_some(user)
}

#[test]
fn a_device_that_runs_out_of_processes_lives_and_no_run_fails_for_that() {
    let mut volume = Volume::new();
    volume.job("s", "command = [\"sleep\", \"2\"]\n");
    let Some(user) = other_user(&volume) else { return };
    let start = "exec prlimit --nproc=40 setpriv --reuid \"$0\" --regid \"$0\" --clear-groups \"$@\" --slots 100";
    start_in(&mut volume, &["sh", "-c", start, &user]);
    for number in 0..70 {
        volume.drop_trigger(&format!("s{number}.json"), "{\"job\": \"s\"}");
    }
    volume.wait("it says what it is short of", |volume| {
        volume.beat("a").is_some_and(|beat| beat["problems"].to_string().contains("out of processes"))
    });
    volume.wait("all have run", |volume| volume.finals("s") == 70);
    for result in volume.results("s") {
        let is_handed_back = result["status"] == "cancelled" && result["final"] == false;
        assert!(result["status"] == "succeeded" || is_handed_back, "{result}");
    }
    volume.wait("it is solved", |volume| volume.beat("a").unwrap()["problems"] == json!([]));
}

#[test]
fn a_device_that_cannot_write_its_heartbeat_is_no_dead_one_and_a_full_disk_is_named() {
    let mut volume = Volume::new();
    let common = volume.path("Common");
    let Some(_mounted) = mount_small(&common, "size=8m") else { return };
    volume.job("nop", "command = [\"true\"]\n");
    volume.start("a", &["--lease", "1s"]);
    let space = rustix::fs::statvfs(&common).unwrap();
    // More than there is: the file ends where the room does.
    let ballast = vec![b'x'; usize::try_from(space.f_blocks * space.f_frsize).unwrap()];
    std::fs::write(common.join("ballast"), ballast).unwrap_err();
    volume.signal("a", Signal::STOP);
    let of_a = |status: &serde_json::Value| {
        let row = status["devices"][0].clone();
        (row["alive"] == json!(true), row["silent"] == json!(true))
    };
    volume.wait("a is silent", |volume| of_a(&volume.ask(&["status"]).1) == (false, true));
    let problems = volume.ask(&["status"]).1["problems"].to_string();
    assert!(problems.contains("its process") && problems.contains("heartbeat has stood still"), "{problems}");
    assert!(problems.contains("are free, the floor is"), "{problems}");
    let shown = volume.command(&["devices", "list"]).output().unwrap();
    assert!(String::from_utf8_lossy(&shown.stdout).contains("silent"), "{shown:?}");
    volume.signal("a", Signal::CONT);
    std::fs::remove_file(common.join("ballast")).unwrap();
    volume.wait("a lives", |volume| of_a(&volume.ask(&["status"]).1) == (true, false));
}

#[test]
fn a_trigger_that_a_device_cannot_read_is_named() {
    let mut volume = Volume::new();
    volume.job("nop", "command = [\"true\"]\n");
    let Some(user) = other_user(&volume) else { return };
    start_in(&mut volume, &["sh", "-c", "exec setpriv --reuid \"$0\" --regid \"$0\" --clear-groups \"$@\"", &user]);
    let may_read = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    volume.place(&volume.path("x"), "{\"job\": \"nop\"}");
    may_read(&volume.path("x"), 0o600);
    std::fs::rename(volume.path("x"), volume.common("Triggers/closed.json")).unwrap();
    volume.wait("a names it", |volume| {
        let problems = volume.ask(&["status"]).1["problems"].to_string();
        problems.contains("cannot read") && problems.contains("closed.json")
    });
    may_read(&volume.common("Triggers/closed.json"), 0o644);
    volume.wait("it has run", |volume| volume.finals("nop") == 1);
}

#[test]
fn a_job_that_removes_its_trigger_keeps_its_retries() {
    let mut volume = Volume::new();
    let command = "command = [\"sh\", \"-c\", \"rm $AIOS_TRIGGER; exit 1\"]\n";
    volume.job("gone", &format!("{command}retries = 2\nbackoff = \"10ms\"\n"));
    volume.start("a", &[]);
    volume.drop_trigger("g.json", r#"{"job": "gone", "args": [1.50], "kwargs": {"b": 1, "a": 2}, "priority": 7}"#);
    volume.wait("the last attempt has ended", |volume| volume.finals("gone") == 1);
    let results = volume.results("gone");
    assert_eq!(results.len(), 3, "{results:?}");
    for result in results {
        let given = serde_json::json!([result["args"], result["kwargs"], result["priority"], result["trigger"]]);
        assert_eq!(given, serde_json::json!([[1.50], {"b": 1, "a": 2}, 7, "g.json"]), "{result}");
        assert_eq!(result["error"], "exited with code 1");
    }
}
