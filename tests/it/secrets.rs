//! Secrets by reference: the programs that are given them get them, and nobody else finds them anywhere.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use super::volume::{Volume, processes_of};

/// Nothing else on the machine has it in it.
const CANARY: &str = "canary-Zq8~v\"\\x/7+é>5";
const SECOND: &str = "canary-second-line";

fn put(volume: &Volume, name: &str, value: &str) {
    std::fs::write(volume.common("Security/secrets").join(name), value).unwrap();
}

/// What the shell makes of it, without what it adds at the end.
fn base64(text: &str) -> String {
    let shell =
        Command::new("sh").args(["-c", "printf %s \"$1\" | base64 -w 0 | tr -d =", "sh", text]).output().unwrap();
    String::from_utf8(shell.stdout).unwrap()
}

/// Each form in which a secret could be found.
fn forms() -> Vec<Vec<u8>> {
    let escaped = serde_json::to_string(CANARY).unwrap();
    let mut forms = vec![CANARY.to_owned(), SECOND.to_owned(), escaped[1..escaped.len() - 1].to_owned()];
    for value in [CANARY, SECOND] {
        let encoded = base64(value);
        forms.extend([encoded.replace('+', "-").replace('/', "_"), encoded]);
    }
    // Of what stands inside of a longer encoded text the ends depend on the rest.
    forms.push(base64(&format!("user:{CANARY}")).trim_start_matches(&base64("user:")[..6]).to_owned());
    forms.into_iter().map(String::into_bytes).collect()
}

#[track_caller]
fn clean(what: &str, bytes: &[u8]) {
    for form in forms() {
        let found = bytes.windows(form.len()).any(|seen| seen == form);
        assert!(!found, "{:?} is in {what}: {}", String::from_utf8_lossy(&form), String::from_utf8_lossy(bytes));
    }
}

/// Everything in the shared folder but the secrets themselves, names included, and all that the devices said.
#[track_caller]
fn clean_volume(volume: &Volume) {
    let mut open = vec![volume.path("Common")];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            clean("a name", path.as_os_str().as_encoded_bytes());
            if path.is_dir() {
                open.extend((path != volume.common("Security/secrets")).then_some(path));
            } else {
                // A heartbeat is replaced while it is looked at.
                clean(&path.display().to_string(), &std::fs::read(&path).unwrap_or_default());
            }
        }
    }
    for id in volume.devices.keys() {
        clean("what a device said", &std::fs::read(volume.path(&format!("{id}.said"))).unwrap());
    }
}

/// What every verb says that shows anything of jobs and runs.
#[track_caller]
fn clean_verbs(volume: &Volume, job: &str, run: &str) {
    let verbs: [&[&str]; 13] = [
        &["runs", "list"],
        &["runs", "show", run],
        &["runs", "logs", run],
        &["runs", "wait", run],
        &["jobs", "list"],
        &["jobs", "show", job],
        &["jobs", "explain", job],
        &["jobs", "validate"],
        &["devices", "list"],
        &["status"],
        &["logs"],
        &["doctor"],
        &["trigger", "nobody"],
    ];
    for verb in verbs {
        for more in [&[][..], &["--json"], &["-v"]] {
            let output = volume.command(&[verb, more].concat()).output().unwrap();
            clean(&format!("{verb:?}"), &[output.stdout, output.stderr].concat());
        }
    }
}

/// What the API answers to anything that shows jobs and runs, and what it tells of one that runs.
#[track_caller]
fn clean_api(volume: &mut Volume, run: &str) {
    let api = volume.serve("b", &[]);
    let asked = [
        "/jobs",
        "/jobs/tell",
        "/runs",
        "/triggers",
        "/logs?limit=500",
        "/devices",
        "/metrics",
        "/servers",
        "/keys",
        "/users",
        "/backups",
        "/health",
        "/system/monitor_resources",
        "/me",
    ];
    let of_run = ["", "/log", "/log?follow"].map(|what| format!("/runs/{run}{what}"));
    for path in asked.map(str::to_owned).iter().chain(&of_run) {
        let answer = api.get(&format!("/api/v1{path}")).is(200);
        clean(path, answer.text.as_bytes());
        clean(path, format!("{:?}", answer.headers).as_bytes());
    }
    let told = api.post("/api/v1/command", &json!({"job": "tell"})).is(200);
    assert!(told.json()["output"].as_str().unwrap().contains("to be masked"), "{told:?}");
    clean("an answer to a command", told.text.as_bytes());
    let live = api.post("/api/v1/trigger/tell?wait=30s", &json!({})).is(200);
    clean("a result", live.text.as_bytes());
    clean_volume(volume);
}

fn log_of(volume: &Volume, result: &Value) -> String {
    std::fs::read_to_string(volume.common(result["log"].as_str().unwrap())).unwrap()
}

#[test]
fn a_secret_is_given_to_its_program_and_found_nowhere() {
    let mut volume = Volume::new();
    volume.script(
        "tell.sh",
        r#"printf 'out %s\n' "$TOKEN"
printf 'err %s\n' "$TOKEN" >&2
printf '%s/' "${TOKEN%/*}"; printf '%s\n' "${TOKEN#*/}"
printf '%s' "$TOKEN" | base64
printf 'user:%s' "$TOKEN" | base64 | tr '+/' '-_'
echo "$KEY"
echo 'to be masked' >&2
while [ ! -e "$AIOS_PROGRAMS/go" ]; do sleep 0.02; done
python3 - <<'PYTHON'
import json, os
token, plain = os.environ["TOKEN"], open(os.environ["AIOS_COMMON"] + "/Security/secrets/token").read()
json.dump({"same": token + "\n" == plain, "token": token, "in": ["Bearer " + token, 1.50], token: None}, open(os.environ["AIOS_RESULT"], "w"))
PYTHON"#,
    );
    volume.job(
        "tell",
        "file = \"tell.sh\"\nenv = {TOKEN = \"secret:token\", KEY = \"secret:key.pem\", PLAIN = \" secret:token\"}\n",
    );
    volume.start("a", &[]);
    let folder = volume.common("Security");
    for path in [folder.clone(), folder.join("secrets")] {
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o7777, 0o700);
    }
    put(&volume, "token", &format!("{CANARY}\n"));
    put(&volume, "key.pem", &format!("abc\n{SECOND}\r\nx\n"));
    volume.drop_trigger("tell.json", "{\"job\": \"tell\"}");
    let log = || -> Option<PathBuf> {
        let state = volume.state()?;
        let (run, held) = state["runs"].as_object()?.iter().find(|(_, held)| held["job"] == "tell")?;
        let day = format!("{}-{}-{}", &run[..4], &run[4..6], &run[6..8]);
        Some(volume.common(&format!("Logs/{day}/tell.{run}.{}.log", held["attempt"])))
    };
    let told = |path: PathBuf| std::fs::read_to_string(path).is_ok_and(|text| text.contains("to be masked"));
    volume.wait("it has printed", |_| log().is_some_and(told));
    // Not even while it runs.
    clean_volume(&volume);
    let run = volume.state().unwrap()["runs"].as_object().unwrap().keys().next().unwrap().clone();
    for pid in processes_of(&run) {
        clean("a command line", &std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default());
    }
    std::fs::write(volume.path("Programs/go"), "").unwrap();
    let result = volume.outcome("tell");
    let stars = "*".repeat(CANARY.len());
    assert_eq!(
        result["result"],
        json!({"same": true, "token": stars, "in": [format!("Bearer {stars}"), 1.5], stars.clone(): null})
    );
    let log = log_of(&volume, &result);
    let lines: Vec<&str> = log.lines().collect();
    let encoded = base64(CANARY).len().next_multiple_of(4);
    assert_eq!(lines[..3], [format!("out {stars}"), format!("err {stars}"), stars.clone()], "{log}");
    assert!(lines[3].len() == encoded && lines[3].trim_end_matches('=').bytes().all(|byte| byte == b'*'), "{log}");
    assert_eq!(lines[5..], ["abc", &"*".repeat(SECOND.len()), "x", "to be masked"], "{log}");
    clean_volume(&volume);
    clean_verbs(&volume, "tell", &run);
    clean_api(&mut volume, &run);
    let (_, shown) = volume.ask(&["jobs", "show", "tell"]);
    assert_eq!(shown["env"]["TOKEN"], "secret:token");
}

#[test]
fn what_a_program_says_of_its_failure_is_masked_before_it_is_cut() {
    let mut volume = Volume::new();
    std::fs::write(
        volume.path("Programs/fail.py"),
        "import os\ndef fail(): raise ValueError('x' * 1980 + os.environ['TOKEN'])\ndef spread(): return {'user': 'x'}\n",
    )
    .unwrap();
    let env = "env = {TOKEN = \"secret:token\"}\n";
    volume.job("fail", &format!("file = \"fail.py\"\nfunction = \"fail\"\n{env}"));
    volume.job("spread", &format!("file = \"fail.py\"\nfunction = \"spread\"\n{env}"));
    volume.start("a", &[]);
    put(&volume, "token", CANARY);
    volume.drop_trigger("fail.json", "{\"job\": \"fail\"}");
    let error = volume.outcome("fail")["error"].as_str().unwrap().to_owned();
    assert!(error.starts_with("ValueError: xxx") && error.ends_with("x********"), "{}", error.len());
    clean_volume(&volume);
    put(&volume, "token", "\"user\"");
    volume.drop_trigger("spread.json", "{\"job\": \"spread\"}");
    let result = volume.outcome("spread");
    assert_eq!((&result["status"], &result["result"]), (&json!("succeeded"), &Value::Null));
    assert!(result["result_error"].as_str().unwrap().contains("the value of a secret"), "{result}");
}

#[test]
fn a_secret_that_is_missing_fails_the_attempt_and_the_next_one_uses_what_is_there_then() {
    let mut volume = Volume::new();
    volume.script("use.sh", &format!("test \"$TOKEN\" = '{SECOND}'"));
    volume.job("use", "file = \"use.sh\"\nenv = {TOKEN = \"secret:token\"}\nretries = 1000\nbackoff = \"20ms\"\nbackoff_max = \"20ms\"\n");
    volume.start("a", &[]);
    volume.drop_trigger("use.json", "{\"job\": \"use\"}");
    volume.wait("an attempt has failed", |volume| !volume.results("use").is_empty());
    let missing = volume.results("use").remove(0);
    assert_eq!(
        (&missing["status"], &missing["started_at"], &missing["log"]),
        (&json!("failed"), &Value::Null, &Value::Null)
    );
    let error = missing["error"].as_str().unwrap();
    let place = volume.common("Security/secrets/token").display().to_string();
    for word in ["env.TOKEN of the job use", "the secret token is not there", "/run/secrets/token", &place, "hint:"] {
        assert!(error.contains(word), "{word:?} in {error}");
    }
    assert_eq!(volume.ledger(), Vec::<String>::new(), "its program was not started");
    // There, and not yet what it needs.
    put(&volume, "token", CANARY);
    volume.wait("it was started", |volume| !volume.ledger().is_empty());
    put(&volume, "token", "canary\0");
    let is_refused =
        |volume: &Volume| volume.results("use").iter().any(|result| result["error"].to_string().contains("NUL"));
    volume.wait("what is no text is refused", is_refused);
    put(&volume, "token", SECOND);
    assert_eq!(volume.outcome("use")["status"], "succeeded");
    clean_volume(&volume);
}

#[test]
fn a_killed_device_and_a_rotated_log_leave_no_secret() {
    let mut volume = Volume::new();
    volume.script("print.sh", "while :; do echo \"$TOKEN\"; sleep 0.001; done");
    let env = "env = {TOKEN = \"secret:token\"}\n";
    volume.job("once", &format!("file = \"print.sh\"\non_lost = \"fail\"\n{env}"));
    volume.start("a", &["--log-limit", "4k"]);
    put(&volume, "token", CANARY);
    volume.job("always", &format!("type = \"always\"\nfile = \"print.sh\"\n{env}"));
    volume.drop_trigger("once.json", "{\"job\": \"once\"}");
    let logs = |volume: &Volume, ending: &str| -> usize {
        super::volume::files(&volume.common("Logs"))
            .iter()
            .filter(|path| path.to_string_lossy().ends_with(ending))
            .count()
    };
    volume
        .wait("both print, and one log is rotated", |volume| volume.ledger().len() == 2 && logs(volume, ".log.1") == 1);
    clean_volume(&volume);
    volume.kill("a");
    clean_volume(&volume);
    volume.start("a", &["--log-limit", "4k"]);
    assert_eq!(volume.outcome("once")["status"], "lost");
    volume.wait("the daemon prints again", |volume| logs(volume, ".log.1") == 2);
    clean_volume(&volume);
}

#[test]
fn who_looks_is_told_of_secrets_that_are_missing_or_open_to_others() {
    let mut volume = Volume::new();
    volume.job("t", "command = [\"true\"]\nenv = {A = \"secret:here\", B = \"secret:away\"}\n");
    volume.start("a", &[]);
    put(&volume, "here", CANARY);
    let mode = |mode| std::fs::Permissions::from_mode(mode);
    let file = volume.common("Security/secrets/here");
    let secrets = |volume: &Volume| {
        let (code, answer) = volume.ask(&["doctor"]);
        let check =
            answer["checks"].as_array().unwrap().iter().find(|check| check["check"] == "secrets").unwrap().clone();
        (code, check["verdict"].as_str().unwrap().to_owned(), format!("{} {}", check["found"], check["mend"]))
    };
    std::fs::set_permissions(&file, mode(0o644)).unwrap();
    let (_, verdict, text) = secrets(&volume);
    assert!(verdict == "warning" && text.contains("here has mode 0644") && text.contains("chmod -R go= "), "{text}");
    for folder in ["Security/secrets", "Security"] {
        std::fs::set_permissions(volume.common(folder), mode(0o755)).unwrap();
    }
    let (code, verdict, text) = secrets(&volume);
    assert!(code == Some(1) && verdict == "error" && text.contains("Security has mode 0755"), "{text}");
    let mended = Command::new("chmod").args(["-R", "go="]).arg(volume.common("Security")).status().unwrap();
    assert!(mended.success());
    let (_, verdict, text) = secrets(&volume);
    assert!(verdict == "warning" && text.contains("t: env.B: the secret away is not there"), "{text}");
    let validated = volume.command(&["jobs", "validate"]).output().unwrap();
    let said = String::from_utf8([validated.stdout, validated.stderr].concat()).unwrap();
    assert!(validated.status.success() && said.contains("env.B: the secret away") && !said.contains("env.A"), "{said}");
    put(&volume, "away", "x");
    std::fs::set_permissions(volume.common("Security/secrets/away"), mode(0o600)).unwrap();
    assert_eq!(secrets(&volume).1, "ok");
}
