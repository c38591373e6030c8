//! One job's definition in the words of job files, every default filled in.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{NaiveTime, Timelike};
use serde::Serialize;

use crate::model::container::{Container, Gpus, Limits, Pull, Volume};
use crate::model::ids::{JobName, PoolName, RunId, Tag};
use crate::model::job::keys::EVERY;
use crate::model::job::{Job, JobType, OnLost, Overlap, Program, UNLIMITED};
use crate::model::result::{Status, pairs};
use crate::model::schedule::{Instances, Missed, Schedule, Timing};
use crate::model::state::JobMark;
use crate::model::time::show_duration;
use crate::model::trigger::Json;

/// A definition with the names that job files use, every default filled in. Of `command`, `file` and `function`, and of the
/// keys that belong to some types alone, those are there that the job has.
#[derive(Serialize)]
pub struct Definition<'a> {
    job: &'a JobName,
    #[serde(rename = "type")]
    kind: &'static str,
    valid: bool,
    enabled: bool,
    #[serde(flatten)]
    timing: When,
    #[serde(flatten)]
    program: What<'a>,
    args: &'a [Json],
    #[serde(with = "pairs")]
    kwargs: &'a [(String, Json)],
    env: &'a BTreeMap<String, String>,
    pass_env: &'a BTreeSet<String>,
    tags: &'a BTreeSet<Tag>,
    priority: i16,
    slots: u32,
    overlap: &'static str,
    pool: &'a Option<PoolName>,
    /// `null`: unlimited.
    retries: Option<u32>,
    retry_on: &'a Option<BTreeSet<i32>>,
    retry_elsewhere: bool,
    backoff: String,
    backoff_max: String,
    timeout: Option<String>,
    stop_grace: String,
    on_lost: &'static str,
    on_success: &'a [JobName],
    on_failure: &'a [JobName],
    after: &'a [JobName],
    notify: &'a Option<String>,
    last_run_id: &'a Option<RunId>,
    last_status: Option<Status>,
    failures: u32,
    skipped: u64,
}

/// What runs.
#[derive(Default, Serialize)]
struct What<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<&'a [String]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    function: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    docker: Option<Docker<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Limited>,
}

/// The container that it runs in.
#[derive(Serialize)]
struct Docker<'a> {
    image: &'a str,
    pull: &'static str,
    network: &'a str,
    volumes: Vec<String>,
    user: &'a Option<String>,
    gpus: serde_json::Value,
    entrypoint: &'a Option<Vec<String>>,
    labels: &'a BTreeMap<String, String>,
    tmpfs: Vec<String>,
    read_only: bool,
    share_common: bool,
}

/// What it may use.
#[derive(Serialize)]
struct Limited {
    /// Bytes.
    memory: Option<u64>,
    cpus: Option<f64>,
    pids: Option<u32>,
}

/// The keys that some types have for themselves.
#[derive(Default, Serialize)]
struct When {
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interval: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    before_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cron: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timezone: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jitter: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    missed: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instances: Option<Several>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Several {
    Count(u32),
    Word(&'static str),
}

impl<'a> Definition<'a> {
    /// Of a job and what is remembered of it.
    #[must_use]
    pub fn new(job: &'a Job, mark: &'a JobMark) -> Self {
        Self {
            job: &job.name,
            kind: job.kind.word(),
            valid: true,
            enabled: job.enabled,
            timing: when(&job.kind),
            program: What {
                docker: job.container.as_deref().map(docker),
                limits: limits(job.limits),
                ..what(&job.program)
            },
            args: &job.args,
            kwargs: &job.kwargs,
            env: &job.env,
            pass_env: &job.pass_env,
            tags: &job.tags,
            priority: job.priority,
            slots: job.slots,
            overlap: overlap_name(job.overlap),
            pool: &job.pool,
            retries: (job.retries != UNLIMITED).then_some(job.retries),
            retry_on: &job.retry_on,
            retry_elsewhere: job.retry_elsewhere,
            backoff: show_duration(job.backoff),
            backoff_max: show_duration(job.backoff_max),
            timeout: job.timeout.map(show_duration),
            stop_grace: show_duration(job.stop_grace),
            on_lost: on_lost_name(job.on_lost),
            on_success: &job.on_success,
            on_failure: &job.on_failure,
            after: &job.after,
            notify: &job.notify,
            last_run_id: &mark.last_run_id,
            last_status: mark.last_status,
            failures: mark.failures,
            skipped: mark.skipped,
        }
    }
}

fn what(program: &Program) -> What<'_> {
    match program {
        Program::Command(command) => What { command: Some(command), ..What::default() },
        Program::File(file) => What { file: Some(file), ..What::default() },
        Program::Function { file, function } => What { file: Some(file), function: Some(function), ..What::default() },
    }
}

fn docker(container: &Container) -> Docker<'_> {
    let volume = |Volume { source, target, read_only }: &Volume| {
        format!("{source}:{target}{}", if *read_only { ":ro" } else { "" })
    };
    let tmpfs = |(path, options): (&String, &String)| {
        if options.is_empty() { path.clone() } else { format!("{path}:{options}") }
    };
    Docker {
        image: &container.image,
        pull: match container.pull {
            Pull::Missing => "missing",
            Pull::Always => "always",
            Pull::Never => "never",
        },
        network: &container.network,
        volumes: container.volumes.iter().map(volume).collect(),
        user: &container.user,
        gpus: match &container.gpus {
            Gpus::None => serde_json::Value::Null,
            Gpus::All => "all".into(),
            Gpus::Count(count) => (*count).into(),
            Gpus::Ids(ids) => ids.clone().into(),
        },
        entrypoint: &container.entrypoint,
        labels: &container.labels,
        tmpfs: container.tmpfs.iter().map(tmpfs).collect(),
        read_only: container.read_only,
        share_common: container.share_common,
    }
}

fn limits(limits: Limits) -> Option<Limited> {
    let Limits { memory, cpu_millis, pids } = limits;
    let cpus = cpu_millis.map(|millis| f64::from(millis) / 1_000.0);
    (limits != Limits::default()).then_some(Limited { memory, cpus, pids })
}

fn when(kind: &JobType) -> When {
    let Timing { schedule, jitter, missed } = match kind {
        JobType::Trigger => return When::default(),
        JobType::Always(instances) | JobType::Idle(instances) => {
            let several = match instances {
                Instances::Count(count) => Several::Count(*count),
                Instances::Every => Several::Word(EVERY),
            };
            return When { instances: Some(several), ..When::default() };
        }
        JobType::Timed(timing) => timing,
    };
    let zone = Some(schedule.zone().name());
    let jitter = Some(show_duration(*jitter));
    let timed = When { missed: Some(missed_name(*missed)), ..When::default() };
    match schedule {
        Schedule::Daily { time, .. } => When { time: Some(clock(*time)), timezone: zone, jitter, ..timed },
        Schedule::Interval(span) => When { interval: Some(show_duration(*span)), jitter, ..timed },
        Schedule::RandomDaily { after, before, .. } => {
            When { after_time: Some(clock(*after)), before_time: Some(clock(*before)), timezone: zone, ..timed }
        }
        Schedule::Cron { cron, .. } => When { cron: Some(cron.text.clone()), timezone: zone, jitter, ..timed },
    }
}

/// A local time as files say it.
fn clock(time: NaiveTime) -> String {
    time.format(if time.second() == 0 { "%H:%M" } else { "%H:%M:%S" }).to_string()
}

fn missed_name(missed: Missed) -> &'static str {
    match missed {
        Missed::Once => "once",
        Missed::All => "all",
        Missed::Skip => "skip",
    }
}

fn overlap_name(overlap: Overlap) -> &'static str {
    match overlap {
        Overlap::Allow => "allow",
        Overlap::Skip => "skip",
        Overlap::Queue => "queue",
    }
}

fn on_lost_name(on_lost: OnLost) -> &'static str {
    match on_lost {
        OnLost::Rerun => "rerun",
        OnLost::Fail => "fail",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::job::keys::JOB_KEYS;
    use crate::model::job::parse;

    fn shown(text: &str) -> serde_json::Value {
        let job = parse(&JobName::new("j").unwrap(), "j.toml", text).unwrap();
        serde_json::to_value(Definition::new(&job, &JobMark::default())).unwrap()
    }

    #[test]
    fn every_key_of_a_job_file_is_shown_in_its_words() {
        let texts = [
            "command = [\"a\"]\ntype = \"daily\"\ntime = \"09:00:00\"\njitter = \"60s\"\n",
            "file = \"a.py\"\nfunction = \"f\"\ntype = \"interval\"\ninterval_minutes = 90\n",
            "file = \"a\"\ntype = \"random_daily\"\nafter_time = \"22:00:01\"\nbefore_time = \"02:00\"\nmissed = \"all\"\n",
            "file = \"a\"\ntype = \"cron\"\ncron = \"0 9 * * 1-5\"\ntimezone = \"Europe/Berlin\"\n",
            "file = \"a\"\ntype = \"always\"\ninstances = \"every\"\n",
            "file = \"a\"\ntype = \"idle\"\nlimits = {cpus = 1.5}\ndocker = {image = \"x\", gpus = \"all\"}\n",
        ];
        let [daily, interval, random, cron, always, idle] = texts.map(shown);
        for key in JOB_KEYS.iter().map(|key| key.name).filter(|name| !name.starts_with("interval_")) {
            let all = [&daily, &interval, &random, &cron, &always, &idle];
            assert!(all.iter().any(|shown| shown.get(key).is_some()), "{key} is not shown");
        }
        for (shown, key, value) in [
            (&daily, "time", "\"09:00\""),
            (&daily, "timezone", "\"UTC\""),
            (&daily, "jitter", "\"1m\""),
            (&daily, "missed", "\"once\""),
            (&interval, "interval", "\"90m\""),
            (&random, "after_time", "\"22:00:01\""),
            (&random, "before_time", "\"02:00\""),
            (&random, "missed", "\"all\""),
            (&cron, "cron", "\"0 9 * * 1-5\""),
            (&cron, "timezone", "\"Europe/Berlin\""),
            (&always, "instances", "\"every\""),
            (&always, "retries", "null"),
            (&idle, "instances", "1"),
            (&idle, "retries", "0"),
        ] {
            assert_eq!(shown[key].to_string(), value, "{key} of {shown}");
        }
        // A type has no keys of another.
        assert!(interval.get("timezone").is_none() && idle.get("missed").is_none() && random.get("jitter").is_none());
    }
}
