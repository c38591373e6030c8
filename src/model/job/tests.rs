//! What this reader takes, refuses, and says about it.

use proptest::prelude::*;

use super::file::KEYS;
use super::timing::TYPES;
use super::*;
use crate::model::schedule::Missed;
use crate::model::trigger;

fn name() -> JobName {
    JobName::new("demo").unwrap()
}

fn read(text: &str) -> Result<Job, Vec<JobError>> {
    parse(&name(), "demo.toml", text)
}

fn good(text: &str) -> Job {
    read(text).unwrap_or_else(|errors| panic!("{text}: {errors:#?}"))
}

/// The one error of a text.
fn error(text: &str) -> JobError {
    let errors = read(text).expect_err(text);
    assert_eq!(errors.len(), 1, "{text:?} gave {errors:#?}");
    errors.into_iter().next().unwrap()
}

#[track_caller]
fn check(rows: &[(&str, (usize, usize), &str, &str)]) {
    for (text, place, wrong, hint) in rows {
        let error = error(text);
        let what = format!("{text:?} gave {error:#?}");
        assert_eq!((error.line, error.column), *place, "{what}");
        assert!(error.error.contains(wrong) && error.hint.contains(hint), "{what}");
    }
}

#[test]
fn what_is_run_must_be_said_once_and_well() {
    check(&[
        ("", (1, 1), "neither `command` nor `file`", "add file"),
        ("file = \"a.py\"\ncommand = [\"b\"]", (2, 1), "`file` and `command`", "keep"),
        ("command = [\"b\"]\nfile = \"a.py\"", (2, 1), "`file` and `command`", "keep"),
        ("command = \"ls -l\"", (1, 11), "`command` is a string (\"ls -l\"), expected an array", ""),
        ("command = []", (1, 11), "`command` is empty", "python3"),
        ("command = [\"\"]", (1, 12), "`command[0]` is an empty string", "python3"),
        ("command = [\"a\", 5]", (1, 17), "`command[1]` is an integer (5), expected a string", ""),
        ("command = [5]", (1, 12), "`command[0]` is an integer (5)", ""),
        ("command = [\"a\", \"\\u0000\"]", (1, 17), "`command[1]` contains a NUL", ""),
        ("[[command]]\nx = 1", (1, 1), "`command[0]` is a table, expected a string", ""),
        ("file = 5", (1, 8), "`file` is an integer (5)", ""),
        ("file = \"\"", (1, 8), "which is empty", "below Programs/"),
        ("file = \"/bin/sh\"", (1, 8), "which is absolute", ""),
        ("file = \"a/../../b\"", (1, 8), "which leads out", ""),
        ("file = \"..\"", (1, 8), "which leads out", ""),
        ("file = \"a/\"", (1, 8), "which names a folder", ""),
        ("file = \".\"", (1, 8), "which names a folder", ""),
        ("file = \"a\\u0000\"", (1, 8), "NUL", ""),
        ("function = \"f\"", (1, 1), "`function` without `file`", "add file"),
        ("command = [\"a\"]\nfunction = \"f\"", (2, 1), "`function` without `file`", ""),
        ("file = \"a.sh\"\nfunction = \"f\"", (1, 8), "expected a file that ends in .py", ""),
        ("file = \"a.py\"\nfunction = \"a.b\"", (2, 12), "`function` is \"a.b\"", "dots"),
        ("file = \"a.py\"\nfunction = \"1a\"", (2, 12), "`function` is \"1a\"", "the first no digit"),
        ("file = \"a.py\"\nfunction = \"\"", (2, 12), "`function` is \"\"", ""),
        ("file = \"a.py\"\nfunction = \"def\"", (2, 12), "`function` is \"def\"", "keyword"),
    ]);
}

#[test]
fn impossible_values_are_refused_with_their_place() {
    let rows = [
        ("type = \"dayly\"", 8, "`type` is \"dayly\"", "did you mean `daily`?"),
        ("type = 1", 8, "`type` is an integer (1)", ""),
        ("agrs = []", 1, "unknown key \"agrs\"", "did you mean `args`?"),
        ("\"a\\u001b\" = 1", 1, "unknown key \"a\\u{1b}\"", ""),
        ("args = 5", 8, "`args` is an integer (5), expected an array", ""),
        ("args = [1, nan]", 12, "`args[1]` has a float (nan), expected a finite number", "string"),
        ("args = [\"\\u0000\"]", 9, "`args[0]` contains a NUL", ""),
        ("kwargs = []", 10, "`kwargs` is an array ([]), expected a table", ""),
        ("kwargs.x = inf", 12, "`kwargs.x` has a float (inf)", ""),
        ("env = [\"a\"]", 7, "`env` is an array", ""),
        ("env = {A = 5}", 12, "is an integer (5), expected a string", ""),
        ("env.A = true", 9, "is a boolean (true), expected a string", ""),
        ("env = {A = \"\\u0000\"}", 12, "NUL", ""),
        ("env = {\"\" = \"x\"}", 8, "found \"\", expected the name of a variable", ""),
        ("env = {\"A=B\" = \"x\"}", 8, "found \"A=B\"", ""),
        ("env = {AIOS_JOB = \"x\"}", 8, "AIOS_ is reserved", "rename"),
        ("env = {A = \"secret:../x\"}", 12, "secret name \"../x\" is not valid", "must be a secret itself"),
        ("env = {A = \"secret:\"}", 12, "secret name \"\" is not valid", "secret:NAME"),
        ("pass_env = \"A\"", 12, "`pass_env` is a string (\"A\")", ""),
        ("pass_env = [\"A\", \"\"]", 18, "`pass_env[1]`: found \"\"", ""),
        ("pass_env = [\"AIOS_X\"]", 13, "AIOS_ is reserved", ""),
        ("tags = \"gpu\"", 8, "`tags` is a string", ""),
        ("tags = [\"a b\"]", 9, "tag name \"a b\" is not valid", "--tags"),
        ("priority = 1.0", 12, "`priority` is a float (1.0), expected an integer from -999 to 999", ""),
        ("priority = 1000", 12, "`priority` is 1000, expected an integer from -999 to 999", "bounds"),
        ("slots = -1", 9, "expected an integer from 0 to 1000", ""),
        ("slots = 1001", 9, "expected an integer from 0 to 1000", ""),
        ("overlap = \"skp\"", 11, "one of `allow`, `skip` and `queue`", "did you mean `skip`?"),
        ("retries = 1001", 11, "expected an integer from 0 to 1000", ""),
        ("retries = \"3\"", 11, "`retries` is a string (\"3\")", ""),
        ("retry_on = 5", 12, "`retry_on` is an integer (5), expected an array", ""),
        ("retry_on = [1, 256]", 16, "`retry_on[1]` is 256, expected an integer from 0 to 255", ""),
        ("backoff = 5", 11, "`backoff` is an integer (5), expected a duration in quotes", "5m"),
        ("backoff = \"5\"", 11, "`backoff` is \"5\", expected a number with a unit", ""),
        ("backoff_max = \"1.5s\"", 15, "`backoff_max` is \"1.5s\"", ""),
        ("timeout = \"0s\"", 11, "`timeout` is 0", "leave"),
        ("timeout = \"10001d\"", 11, "`timeout` is \"10001d\"", "10000d"),
        ("stop_grace = 1979-05-27", 14, "`stop_grace` is a date or time (1979-05-27)", ""),
        ("on_lost = \"retry\"", 11, "one of `rerun` and `fail`", ""),
        ("enabled = \"yes\"", 11, "`enabled` is a string (\"yes\"), expected true or false", ""),
    ];
    for (line, column, wrong, hint) in rows {
        check(&[(&format!("file = \"é.py\"\n{line}"), (2, column), wrong, hint)]);
    }
    let text = "file = \"a\"\nbackoff = \"2s\"\nbackoff_max = \"1s\"";
    check(&[(text, (3, 15), "`backoff_max` is 1s, expected at least `backoff`, which is 2s", "")]);
}

#[test]
fn every_key_and_type_of_the_format_is_known() {
    for (word, keys) in TYPES {
        assert!(keys.iter().all(|key| KEYS.contains(key)), "{word}");
    }
    let unique: BTreeSet<&str> = KEYS.into_iter().collect();
    assert_eq!(unique.len(), KEYS.len());
}

#[test]
fn a_type_has_its_own_keys_and_no_others() {
    let rows = [
        ("type = \"daily\"", 1, "found no `time`", "add time"),
        ("type = \"cron\"", 1, "found no `cron`", ""),
        ("type = \"interval\"", 1, "found no `interval`", ""),
        ("time = \"09:00\"", 1, "found `time` in a job of type `trigger`, expected it only with type `daily`", "daily"),
        ("type = \"daily\"; time = \"25:61\"", 8, "`time` is \"25:61\", expected a time in quotes", ""),
        ("type = \"daily\"; time = \"9:00\"", 8, "`time` is \"9:00\"", "09:30"),
        ("type = \"daily\"; time = \"24:00\"", 8, "`time` is \"24:00\"", ""),
        ("type = \"daily\"; time = 09:00:00", 8, "`time` is a date or time (09:00:00), expected a time in quotes", ""),
        ("type = \"interval\"; interval = \"0s\"", 12, "`interval` is 0ms, expected at least 1 s", ""),
        ("type = \"interval\"; interval_minutes = 0", 20, "`interval_minutes` is 0ms, expected at least 1 s", ""),
        ("type = \"interval\"; interval_seconds = -5", 20, "expected at least 1 s", ""),
        (
            "type = \"interval\"; interval_minutes = nan",
            20,
            "`interval_minutes` is a float (nan), expected a number",
            "",
        ),
        ("interval = \"1h\"; type = \"interval\"; interval_minutes = 5", 20, "found `interval_minutes` beside", "keep"),
        ("type = \"interval\"; interval = \"1h\"; jitter = \"1h\"", 10, "expected less than the interval", ""),
        ("type = \"daily\"; time = \"09:00\"; timezone = \"Europe/Berln\"", 12, "`timezone` is", "Europe/Berlin"),
        ("type = \"daily\"; time = \"09:00\"; missed = \"never\"", 10, "one of `once`, `all` and `skip`", ""),
        ("type = \"cron\"; cron = \"* * *\"", 8, "`cron` is \"* * *\"", ""),
        ("type = \"cron\"; cron = \"0 0 30 2 *\"", 8, "which never occurs", "February"),
        ("type = \"cron\"; cron = \"61 * * * *\"", 8, "`cron` is \"61 * * * *\"", ""),
        ("type = \"always\"; instances = 0", 13, "a number from 1 to 1000, or \"every\"", ""),
        ("type = \"always\"; instances = \"all\"", 13, "a number from 1 to 1000, or \"every\"", ""),
        ("type = \"always\"; after = [\"a\"]", 1, "found `after` in a job of type `always`", ""),
        ("pool = 5", 8, "`pool` is an integer (5)", ""),
        ("pool = \"a b\"", 8, "pool name \"a b\" is not valid", ""),
        ("after = \"a\"", 9, "`after` is a string", ""),
        ("on_success = [\"a b\"]", 15, "job name \"a b\" is not valid", ""),
        ("notify = \"ftp://x\"", 10, "the URL of a webhook", "https"),
        ("notify = \"https:///x\"", 10, "the URL of a webhook", ""),
        ("retry_elsewhere = 1", 19, "expected true or false", ""),
    ];
    for (lines, column, wrong, hint) in rows {
        let text = format!("file = \"a\"\n{}", lines.replace("; ", "\n"));
        let last = text.lines().count();
        check(&[(&text, (last, column), wrong, hint)]);
    }
    let window = "file = \"a\"\ntype = \"random_daily\"\nafter_time = \"10:00\"\nbefore_time = \"10:00:00\"";
    check(&[(window, (4, 1), "the window has length 0", "22:00 to 02:00")]);
}

#[test]
fn no_message_repeats_the_address_of_a_webhook() {
    for line in [
        "notify = https://hooks.lan/T0/private",
        "notify = hooks.lan/T0/private",
        "'notify' = https:/hooks.lan/T0/private",
        "notify = \"https://hooks.lan/T0/private",
        "notify = \"https://hooks.lan/T0/\\private\"",
        "notify = \"https://hooks.lan/T0/private\" # and\u{1} so on",
        "notify = [\"https://hooks.lan/T0/private\"]",
        "notify = {url = \"https://hooks.lan/T0/private\"}",
        "notify = \"hooks.lan/T0/private\"",
        "notify = \"https://hooks.lan/T0/ private\"",
    ] {
        let errors = read(&format!("file = \"a\"\n{line}\ntags = []")).expect_err(line);
        assert!(!format!("{errors:?}").contains("private"), "{line}: {errors:?}");
    }
}

#[test]
fn each_type_is_read_with_its_keys_and_defaults() {
    let job = good(
        "type = \"daily\"\nfile = \"a\"\ntime = \"09:30\"\ntimezone = \"Europe/Berlin\"\njitter = \"5m\"\nmissed = \"skip\"",
    );
    let JobType::Timed(timing) = &job.kind else { panic!("{job:?}") };
    assert_eq!((timing.jitter.as_secs(), timing.missed), (300, Missed::Skip));
    assert_eq!(timing.schedule.zone().name(), "Europe/Berlin");
    assert_eq!((job.overlap, job.slots, job.retries, job.kind.word()), (Overlap::Skip, 1, 0, "daily"));
    for (line, seconds) in [("interval = \"90s\"", 90), ("interval_minutes = 1.5", 90), ("interval_seconds = 90", 90)] {
        let job = good(&format!("type = \"interval\"\nfile = \"a\"\n{line}"));
        let expected = Schedule::Interval(Duration::from_secs(seconds));
        assert!(matches!(&job.kind, JobType::Timed(timing) if timing.schedule == expected), "{line}");
    }
    let job = good("type = \"random_daily\"\nfile = \"a\"\nafter_time = \"22:00\"\nbefore_time = \"02:00:30\"");
    assert!(matches!(&job.kind, JobType::Timed(Timing { schedule: Schedule::RandomDaily { .. }, .. })));
    for text in ["*/5 * * * *", "0 */5 * * * *", "@daily", "0 9 L * *"] {
        let job = good(&format!("type = \"cron\"\nfile = \"a\"\ncron = \"{text}\""));
        assert_eq!(job.kind.word(), "cron");
    }
    let job = good("type = \"always\"\nfile = \"a\"\ninstances = \"every\"");
    assert_eq!((&job.kind, job.slots, job.retries), (&JobType::Always(Instances::Every), 0, UNLIMITED));
    let job = good("type = \"idle\"\nfile = \"a\"\ninstances = 3\nretries = 2");
    assert_eq!((&job.kind, job.slots, job.retries, job.priority), (&JobType::Idle(Instances::Count(3)), 0, 2, -1));
}

#[test]
fn what_names_other_files_says_where() {
    let job = good(
        "file = \"a\"\npool = \"llm\"\nafter = [\"b\",\n  \"c\"]\non_failure = [\"d\"]\nnotify = \"http://h/x?y\"",
    );
    let places: Vec<_> = job.mentions.iter().map(|it| (it.of.key(), it.name.as_str(), it.line, it.column)).collect();
    assert_eq!(
        places,
        [("after", "b", 3, 10), ("after", "c", 4, 3), ("pool", "llm", 2, 8), ("on_failure", "d", 5, 15)]
    );
    assert_eq!((job.after.len(), job.on_success.len(), job.on_failure.len()), (2, 0, 1));
}

#[test]
fn all_errors_are_told_in_the_order_of_the_text() {
    let text = "retries = -1\nslots = 1001\nfoo = 1\nfile = \"/x\"\nargs = [nan, inf, 1]\nenv = {A = 1, AIOS_B = \"\"}\ntype = \"corn\"\npool = \"-\"";
    let places: Vec<(usize, usize)> = read(text).unwrap_err().iter().map(|error| (error.line, error.column)).collect();
    assert_eq!(places, [(1, 11), (2, 9), (3, 1), (4, 8), (5, 9), (5, 14), (6, 12), (6, 15), (7, 8), (8, 8)]);
    let shown = error("file = \"a\"\nslots = 1001").to_string();
    assert_eq!(shown, "demo.toml:2:9: `slots` is 1001, expected an integer from 0 to 1000");
}

#[test]
fn what_is_not_toml_is_one_error_with_its_place() {
    check(&[
        ("file = \"a\"\nargs = [1,\n", (2, 11), "unclosed array", "brackets"),
        ("file = \"a\"\nfile = \"b\"", (2, 1), "duplicate key", ""),
        ("\u{feff}file = 'é' x", (1, 12), "not valid TOML", ""),
        ("file = a.py", (1, 8), "must be quoted", "double quotes"),
    ]);
}

#[test]
fn a_job_that_says_little_has_the_defaults() {
    let job = good("\u{feff}file = \"bin/é.sh\"");
    assert_eq!(job, Job::with_defaults(name(), JobType::Trigger, Program::File("bin/é.sh".to_owned())));
    assert_eq!((job.priority, job.slots, job.retries, job.enabled), (0, 1, 0, true));
    assert_eq!((job.overlap, job.on_lost, job.timeout, job.retry_on), (Overlap::Allow, OnLost::Rerun, None, None));
    let seconds = [job.backoff, job.backoff_max, job.stop_grace].map(|span| span.as_secs());
    assert_eq!(seconds, [1, 300, 10]);
    let command = vec!["ls".to_owned()];
    assert_eq!(for_command(name(), command.clone(), None), good("command = [\"ls\"]"));
}

#[test]
fn a_job_that_says_everything_is_read_whole() {
    let job = good(
        "type = \"trigger\"\nfile = \"a/b.py\"\nfunction = \"größe_2\"\nargs = [1, \"x\", 1.50, {a = [true]}]\n\
         pass_env = [\"HOME\", \"HOME\"]\ntags = [\"gpu\", \"gpu\"]\npriority = -999\nslots = 0\noverlap = \"queue\"\n\
         retries = 1000\nretry_on = [0, 255, 124]\nbackoff = \"250ms\"\nbackoff_max = \"2h\"\ntimeout = \"1ms\"\n\
         stop_grace = \"0s\"\non_lost = \"fail\"\nenabled = false\n[kwargs]\nz = 1979-05-27\na = {}\n[env]\nA = \"\"\n",
    );
    assert_eq!(job.program, Program::Function { file: "a/b.py".to_owned(), function: "größe_2".to_owned() });
    assert_eq!(job.args.iter().map(Json::text).collect::<Vec<_>>(), ["1", "\"x\"", "1.50", "{\"a\":[true]}"]);
    let kwargs: Vec<(&str, &str)> = job.kwargs.iter().map(|(key, value)| (key.as_str(), value.text())).collect();
    assert_eq!(kwargs, [("z", "\"1979-05-27\""), ("a", "{}")]);
    assert_eq!((job.env.len(), job.pass_env.len(), job.tags.len()), (1, 1, 1));
    assert_eq!((job.priority, job.slots, job.retries, job.enabled), (-999, 0, 1000, false));
    assert_eq!((job.overlap, job.on_lost), (Overlap::Queue, OnLost::Fail));
    assert_eq!(job.retry_on, Some(BTreeSet::from([0, 124, 255])));
    assert_eq!((job.timeout, job.stop_grace), (Some(Duration::from_millis(1)), Duration::ZERO));
    assert_eq!((job.backoff.as_millis(), job.backoff_max.as_secs()), (250, 7_200));
    assert_eq!(good("file = \"a\"\n[[args]]\nx = 1\n[[args]]").args.len(), 2);
}

#[test]
fn of_two_backoffs_the_one_that_is_given_counts() {
    let job = good("file = \"a\"\nbackoff = \"10m\"");
    assert_eq!((job.backoff.as_secs(), job.backoff_max.as_secs()), (600, 600));
    let job = good("file = \"a\"\nbackoff_max = \"100ms\"");
    assert_eq!((job.backoff.as_millis(), job.backoff_max.as_millis()), (100, 100));
}

#[test]
fn a_triggers_arguments_go_over_the_jobs() {
    let job = good("file = \"a\"\nargs = [1, 2]\nkwargs = {b = 1, a = 2, c = 3}");
    let with = |text: &str| {
        let trigger = trigger::parse(text.as_bytes()).unwrap();
        let args: Vec<String> = merge_args(&job, &trigger).iter().map(|arg| arg.text().to_owned()).collect();
        let kwargs: Vec<String> =
            merge_kwargs(&job, &trigger).iter().map(|(key, value)| format!("{key}={}", value.text())).collect();
        (args.join(" "), kwargs.join(" "))
    };
    assert_eq!(with("{\"job\":\"demo\"}"), ("1 2".to_owned(), "b=1 a=2 c=3".to_owned()));
    assert_eq!(with("{\"job\":\"demo\",\"args\":[]}").0, "");
    let merged = with("{\"job\":\"demo\",\"args\":[9],\"kwargs\":{\"z\":1.0,\"a\":null,\"d\":4}}");
    assert_eq!(merged, ("9".to_owned(), "b=1 a=null c=3 z=1.0 d=4".to_owned()));
}

#[test]
fn a_command_is_named_after_its_file() {
    for (stem, expected) in
        [("a.b-c_D", "a.b-c_D"), ("my file", "my_file"), ("ärger", "x_rger"), ("-f", "x-f"), ("", "x")]
    {
        assert_eq!(command_job_name(stem).as_str(), expected);
    }
    assert_eq!(command_job_name(&"é".repeat(100)).as_str(), format!("x{}", "_".repeat(63)));
}

/// A TOML value of each type.
const VALUES: [&str; 7] = ["\"@\"", "7", "1.5", "true", "1979-05-27", "[1, \"@\", nan]", "{ \"\" = 1 }"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_text_makes_it_panic(text in any::<String>()) {
        let _ = read(&text);
    }

    #[test]
    fn no_mix_of_toml_makes_it_panic(
        tokens in prop::collection::vec(
            prop_oneof![
                prop::sample::select(&KEYS[..]).prop_map(str::to_owned),
                prop::sample::select(&["=", "\n", "[", "]", "[[", "]]", "{", "}", ",", ".", "\"", "'", "\"\"\"", " ", "#", "\\", "é"][..]).prop_map(str::to_owned),
                prop::sample::select(&VALUES[..]).prop_map(|value| format!(" = {value}\n")),
            ],
            0..20,
        ),
    ) {
        if let Err(errors) = read(&tokens.concat()) {
            prop_assert!(!errors.is_empty());
            prop_assert!(errors.is_sorted_by_key(|error| (error.line, error.column)));
        }
    }

    #[test]
    fn a_wrong_type_is_an_error_on_its_line(
        keys in prop::sample::subsequence(&KEYS[..], 1..8).prop_shuffle(),
        value in prop::sample::select(&VALUES[..]),
    ) {
        let text: String = keys.iter().map(|key| format!("{key} = {value}\n")).collect();
        let errors = read(&text).err().unwrap_or_default();
        for (at, key) in keys.iter().enumerate() {
            let right = match *key {
                "file" => value.starts_with('"'),
                "priority" | "slots" | "retries" | "instances" => value == "7",
                "interval_minutes" | "interval_seconds" => value == "7" || value == "1.5",
                "enabled" | "retry_elsewhere" => value == "true",
                "kwargs" => value.starts_with('{'),
                _ => false,
            };
            prop_assert!(right || errors.iter().any(|error| error.line == at + 1), "{}\n{:#?}", text, errors);
        }
    }

    #[test]
    fn any_stem_gives_a_command_a_name(stem in any::<String>()) {
        let name = command_job_name(&stem);
        prop_assert!(crate::model::ids::is_name(name.as_str()));
        if crate::model::ids::is_name(&stem) {
            prop_assert_eq!(name.as_str(), stem);
        }
    }
}

#[test]
fn a_container_is_read_key_by_key() {
    use crate::model::container::{Container, Engine, Gpus, Pull, Volume};
    let plain = good("file = \"a\"\ndocker.image = \"x\"");
    assert_eq!(plain.container.as_deref(), Some(&Container::of("x".to_owned())));
    assert_eq!(
        plain.tags.iter().map(|tag| tag.as_str()).collect::<Vec<_>>(),
        ["docker"],
        "its device reaches an engine"
    );
    assert_eq!(plain.own_tags().count(), 0);
    let text = "file = \"a\"\ntags = [\"gpu\"]\nlimits = {memory = \"64m\", cpus = 1.5, pids = 9}\n[docker]\nimage = \"h:5000/a/b:1\"\n\
        pull = \"always\"\nnetwork = \"bridge\"\nvolumes = [\"/a:/b:ro\"]\nuser = \"1:2\"\ngpus = [\"GPU-1\"]\nentrypoint = [\"e\"]\n\
        labels = {a = \"b\"}\ntmpfs = [\"/t:size=1m\"]\nread_only = false\nshare_common = true\nkeep_warm = \"10m\"\nengine = \"local\"\n";
    let job = good(text);
    let limits = job.limits;
    assert_eq!((limits.memory, limits.cpu_millis, limits.pids), (Some(64 << 20), Some(1_500), Some(9)));
    let expected = Container {
        image: "h:5000/a/b:1".to_owned(),
        pull: Pull::Always,
        network: "bridge".to_owned(),
        volumes: vec![Volume { source: "/a".to_owned(), target: "/b".to_owned(), read_only: true }],
        user: Some("1:2".to_owned()),
        gpus: Gpus::Ids(vec!["GPU-1".to_owned()]),
        entrypoint: Some(vec!["e".to_owned()]),
        labels: [("a".to_owned(), "b".to_owned())].into(),
        tmpfs: [("/t".to_owned(), "size=1m".to_owned())].into(),
        read_only: false,
        share_common: true,
        keep_warm: Some(Duration::from_secs(600)),
        engine: Engine::Local,
        node_tags: BTreeSet::new(),
    };
    assert_eq!(job.container.as_deref(), Some(&expected));
    assert_eq!(job.own_tags().map(|tag| tag.as_str()).collect::<Vec<_>>(), ["gpu"]);
    assert!(!job.starts_like(&plain) && job.digest() != plain.digest() && plain.digest() == plain.clone().digest());
    // A node of a swarm is chosen by the job's tags; whichever device reaches a manager sees to it.
    let swarm =
        good("file = \"a\"\ntags = [\"gpu\"]\ndocker = {image = \"x\", engine = \"swarm\", network = \"bridge\"}");
    let names = |tags: &BTreeSet<Tag>| tags.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!((names(&swarm.tags), swarm.own_tags().count()), (vec!["swarm".to_owned()], 0));
    assert_eq!(names(&swarm.container.as_ref().unwrap().node_tags), ["gpu"]);
    assert_eq!([&swarm, &plain, &job].map(|job| job.outlives_its_device()), [Some("swarm"), Some("docker"), None]);
}

#[test]
fn what_is_wrong_with_a_container_is_told_with_its_place_and_its_rule() {
    let rows = [
        ("image = \"\"", 9, "`image` is \"\", expected the name of an image", ""),
        ("image = \"a b\"", 9, "`image` is \"a b\"", ""),
        ("image = \"-x\"", 9, "`image` is \"-x\"", ""),
        ("image = \"x\"\nimgae = 1", 1, "unknown key \"imgae\"", "did you mean `image`?"),
        ("image = \"x\"\nprivileged = true", 1, "`privileged` is refused by the rule no-privileges", "no container"),
        ("image = \"x\"\ndevices = []", 1, "refused by the rule no-privileges", ""),
        ("image = \"x\"\npid = \"host\"", 1, "refused by the rule no-host-namespaces", ""),
        ("image = \"x\"\nvolumes_from = []", 1, "refused by the rule no-host-namespaces", ""),
        ("image = \"x\"\nnetwork = \"host\"", 11, "refused by the rule no-host-namespaces", "docker network create"),
        ("image = \"x\"\nnetwork = \"container:y\"", 11, "refused by the rule no-host-namespaces", ""),
        ("image = \"x\"\nnetwork = \"a b\"", 11, "expected `none`, `bridge` or the name of a network", ""),
        ("image = \"x\"\nvolumes = [\"/a\"]", 12, "`volumes[0]`: found \"/a\"", "AIOS_ALLOWED_VOLUMES"),
        ("image = \"x\"\nvolumes = [\"/a:/x\", \"/b:/x\"]", 21, "has two for \"/x\"", ""),
        ("image = \"x\"\nuser = \"a:b:c\"", 8, "`user` is \"a:b:c\"", ""),
        ("image = \"x\"\ngpus = 0", 8, "\"all\", a number from 1 to 64, or an array of ids", ""),
        ("image = \"x\"\nentrypoint = []", 14, "`entrypoint` is empty", ""),
        ("image = \"x\"\nlabels = {\"aios.run\" = \"y\"}", 11, "aios. is reserved", ""),
        ("image = \"x\"\nlabels = {\"com.docker.x\" = \"y\"}", 11, "com.docker. is reserved", ""),
        ("image = \"x\"\ntmpfs = [\"tmp\"]", 10, "expected a path below /", ""),
        ("image = \"x\"\npull = \"often\"", 8, "one of `missing`, `always` and `never`", ""),
        ("image = \"x\"\nkeep_warm = \"0s\"", 13, "`keep_warm` is 0ms, expected more than 0 and at most 1d", ""),
        ("image = \"x\"\nkeep_warm = \"2d\"", 13, "`keep_warm` is 2d, expected more than 0 and at most 1d", ""),
        ("image = \"x\"\nengine = \"nomad\"", 10, "`engine` is \"nomad\"", ""),
        ("image = \"x\"\nengine = \"swarm\"", 1, "found the network `none` with `engine = \"swarm\"`", "bridge"),
        (
            "image = \"x\"\nnetwork = \"b\"\nengine = \"swarm\"\ngpus = 1",
            1,
            "found `gpus` with `engine",
            "label the nodes",
        ),
        (
            "image = \"x\"\nnetwork = \"b\"\nengine = \"swarm\"\nkeep_warm = \"1m\"",
            1,
            "found `keep_warm` with `engine",
            "ends with its run",
        ),
        ("image = \"x\"\nnetwork = \"b\"\nengine = \"swarm\"\ntmpfs = [\"/t:noexec\"]", 1, "expected only size", ""),
    ];
    for (lines, column, wrong, hint) in rows {
        let line = 2 + lines.lines().count();
        check(&[(&format!("file = \"a\"\n[docker]\n{lines}"), (line, column), wrong, hint)]);
    }
    check(&[("file = \"a\"\n[docker]\npull = \"never\"", (2, 1), "found no `image`", "image =")]);
}

#[test]
fn limits_hold_in_containers_and_outside() {
    let limited = |limits: &str| format!("file = \"a\"\nlimits = {{{limits}}}");
    check(&[(&limited("memory = \"5m\""), (2, 20), "`memory` is \"5m\", expected a size in quotes", "")]);
    check(&[(&limited("cpus = 0"), (2, 18), "`cpus` is 0, expected a number from 0.01 to 1024", "")]);
    check(&[(&limited("pids = 0"), (2, 18), "`pids` is 0, expected an integer from 1", "")]);
    let tags = |limits: &str, more: &str| {
        let job = good(&format!("{}\n{more}", limited(limits)));
        job.tags.iter().map(|tag| tag.as_str().to_owned()).collect::<Vec<_>>()
    };
    // What only a cgroup holds needs a device that may make them; an engine makes its own.
    assert_eq!(tags("memory = \"1g\"", ""), [""; 0]);
    assert_eq!(tags("memory = \"1g\", cpus = 2", "tags = [\"gpu\"]"), ["cgroup", "gpu"]);
    assert_eq!(tags("pids = 9", ""), ["cgroup"]);
    assert_eq!(tags("pids = 9, cpus = 2", "docker.image = \"x\""), ["docker"]);
}
