//! What a job file says of when the job runs: its type, and the keys that belong to that type alone.

use std::time::Duration;

use chrono::NaiveTime;
use chrono_tz::{TZ_VARIANTS, Tz};
use croner::parser::{CronParser, Seconds, Year};

use super::super::message::{listed, quoted, suggest};
use super::super::schedule::{CronText, Instances, Schedule, Timing};
use super::super::time::show_duration;
use super::super::toml_read::{At, Reader};
use super::keys::{EVERY, MISSED};
use super::{INSTANCES, JobType};

/// The types, in the order of their use, and the keys that each has for itself.
pub(in crate::model) const TYPES: [(&str, &[&str]); 7] = [
    ("trigger", &[]),
    ("always", &["instances"]),
    ("daily", &["time", "timezone", "jitter", "missed"]),
    ("interval", &["interval", "interval_minutes", "interval_seconds", "jitter", "missed"]),
    ("random_daily", &["after_time", "before_time", "timezone", "missed"]),
    ("idle", &["instances"]),
    ("cron", &["cron", "timezone", "jitter", "missed"]),
];
/// The keys of [`TYPES`].
pub(super) const OWN_KEYS: [&str; 11] = [
    "time",
    "interval",
    "interval_minutes",
    "interval_seconds",
    "after_time",
    "before_time",
    "cron",
    "timezone",
    "jitter",
    "missed",
    "instances",
];

const TIME_RULE: &str = "a time in quotes, HH:MM or HH:MM:SS, from 00:00 to 23:59:59";
const CRON_RULE: &str =
    "five or six fields in quotes: [SECOND] MINUTE HOUR DAY MONTH WEEKDAY, such as \"*/15 9-17 * * 1-5\"";
const LONGEST: Duration = Duration::from_secs(10_000 * 86_400);

/// The job's type, with everything that its keys say. `None`: something was wrong with them.
pub(super) fn kind(reader: &mut Reader<'_>) -> Option<JobType> {
    let names = TYPES.map(|(word, _)| word);
    let words = names.map(|word| (word, word));
    let word = if reader.key("type").is_some() { reader.word("type", &words) } else { Some("trigger") };
    let own = TYPES.iter().find(|(name, _)| Some(*name) == word).map(|(_, keys)| *keys);
    if let (Some(word), Some(own)) = (word, own) {
        refuse_others(reader, word, own);
    }
    // Each key is read in any case, so that each of their errors is told.
    let zone = zone(reader);
    let (time, interval, window, cron) = (time(reader, "time"), interval(reader), window(reader), cron(reader));
    let moved = reader.duration("jitter");
    let jitter = moved.map_or(Duration::ZERO, |found| found.value);
    let missed = reader.word("missed", &MISSED).unwrap_or_default();
    let instances = instances(reader);
    let timed = |schedule| JobType::Timed(Timing { schedule, jitter, missed });
    match word? {
        "trigger" => Some(JobType::Trigger),
        "always" => Some(JobType::Always(instances)),
        "idle" => Some(JobType::Idle(instances)),
        "daily" => {
            need(reader, "time", "time = \"09:00\"");
            Some(timed(Schedule::Daily { time: time?, zone }))
        }
        "interval" => {
            need_interval(reader);
            too_much_jitter(reader, interval?, moved);
            Some(timed(Schedule::Interval(interval?)))
        }
        "random_daily" => {
            need(reader, "after_time", "after_time = \"14:00\"");
            need(reader, "before_time", "before_time = \"18:00\"");
            let (after, before) = window?;
            Some(timed(Schedule::RandomDaily { after, before, zone }))
        }
        "cron" => {
            need(reader, "cron", "cron = \"0 9 * * 1-5\"");
            Some(timed(Schedule::Cron { cron: Box::new(cron?), zone }))
        }
        // The words above are all there are.
        _ => None,
    }
}

fn refuse_others(reader: &mut Reader<'_>, word: &str, own: &[&str]) {
    for key in OWN_KEYS.iter().filter(|key| !own.contains(key)) {
        let Some(at) = reader.key(key) else { continue };
        let of: Vec<&str> = TYPES.iter().filter(|(_, keys)| keys.contains(key)).map(|(word, _)| *word).collect();
        let error = format!("found `{key}` in a job of type `{word}`, expected it only with type {}", listed(&of));
        reader.problem(at, error, format!("take it out, or write type = \"{}\"", of.first().unwrap_or(&word)));
    }
}

/// Notes that a key is missing that the type needs.
fn need(reader: &mut Reader<'_>, key: &str, example: &str) {
    if reader.key(key).is_none() {
        let at = reader.key("type").unwrap_or(0);
        reader.problem(at, format!("found no `{key}`, which this type needs"), format!("add {example}"));
    }
}

fn time(reader: &mut Reader<'_>, key: &str) -> Option<NaiveTime> {
    let At { at, value } = reader.string(key, TIME_RULE)?;
    let time = clock_time(value);
    if time.is_none() {
        reader.problem(at, format!("`{key}` is {}, expected {TIME_RULE}", quoted(value)), format!("{key} = \"09:30\""));
    }
    time
}

/// `HH:MM` or `HH:MM:SS`.
fn clock_time(text: &str) -> Option<NaiveTime> {
    let parts: Vec<u32> = text
        .split(':')
        .map(|part| (part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse().ok())?)
        .collect::<Option<_>>()?;
    match parts[..] {
        [hour, minute] => NaiveTime::from_hms_opt(hour, minute, 0),
        [hour, minute, second] => NaiveTime::from_hms_opt(hour, minute, second),
        _ => None,
    }
}

fn window(reader: &mut Reader<'_>) -> Option<(NaiveTime, NaiveTime)> {
    let (after, before) = (time(reader, "after_time"), time(reader, "before_time"));
    let (after, before) = (after?, before?);
    if after == before {
        let at = reader.key("before_time").unwrap_or(0);
        let error =
            format!("`before_time` is {before}, expected another time than `after_time`: the window has length 0");
        reader.problem(at, error, "a window across midnight ends earlier than it begins: 22:00 to 02:00");
    }
    Some((after, before))
}

fn zone(reader: &mut Reader<'_>) -> Tz {
    let expected = "the name of a time zone, such as \"Europe/Berlin\"";
    let Some(At { at, value }) = reader.string("timezone", expected) else { return Tz::UTC };
    value.parse().unwrap_or_else(|_| {
        let hint = match suggest(value, TZ_VARIANTS.iter().map(|zone| zone.name())) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => "names are those of the IANA database: CONTINENT/CITY, or UTC".to_owned(),
        };
        reader.problem(at, format!("`timezone` is {}, expected {expected}", quoted(value)), hint);
        Tz::UTC
    })
}

/// The interval, from whichever of its three keys is there.
fn interval(reader: &mut Reader<'_>) -> Option<Duration> {
    let text = reader.duration("interval").map(|found| (found.at, "interval", found.value));
    let minutes = number(reader, "interval_minutes", 60.0);
    let seconds = number(reader, "interval_seconds", 1.0);
    let given = [text, minutes, seconds].into_iter().flatten();
    let mut found: Option<Duration> = None;
    for (at, key, span) in given {
        if found.is_some() {
            let error = format!("found `{key}` beside another interval, expected one of them");
            reader.problem(at, error, "keep `interval`");
        } else if span < Duration::from_secs(1) || span > LONGEST {
            let error = format!("`{key}` is {}, expected at least 1 s and at most 10000 days", show_duration(span));
            reader.problem(at, error, "interval = \"30m\"");
        }
        found = Some(span);
    }
    found
}

/// A number of units of so many seconds.
fn number(reader: &mut Reader<'_>, key: &'static str, unit: f64) -> Option<(usize, &'static str, Duration)> {
    let At { at, value } = reader.number(key)?;
    // Whole milliseconds; what is no span at all is told as one of 0.
    let span = Duration::try_from_secs_f64((value * unit * 1_000.0).round() / 1_000.0).unwrap_or_default();
    Some((at, key, span))
}

fn need_interval(reader: &mut Reader<'_>) {
    if ["interval", "interval_minutes", "interval_seconds"].iter().all(|key| reader.key(key).is_none()) {
        need(reader, "interval", "interval = \"30m\"");
    }
}

fn too_much_jitter(reader: &mut Reader<'_>, interval: Duration, jitter: Option<At<Duration>>) {
    if let Some(At { at, value }) = jitter
        && value >= interval
    {
        let (value, interval) = (show_duration(value), show_duration(interval));
        let error = format!("`jitter` is {value}, expected less than the interval of {interval}");
        reader.problem(at, error, "a due time is never moved as far as the next one");
    }
}

fn cron(reader: &mut Reader<'_>) -> Option<CronText> {
    let At { at, value } = reader.string("cron", CRON_RULE)?;
    let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
    match parser.parse(value) {
        Ok(cron) if crate::model::schedule::occurs(&cron) => Some(CronText { text: value.to_owned(), cron }),
        Ok(_) => {
            let error = format!("`cron` is {}, which never occurs, expected a date that there is", quoted(value));
            reader.problem(at, error, "there is no February 30th: look at the day and the month");
            None
        }
        Err(why) => {
            let why = why.to_string().trim_end_matches('.').to_owned();
            reader.problem(at, format!("`cron` is {} ({why}), expected {CRON_RULE}", quoted(value)), "");
            None
        }
    }
}

fn instances(reader: &mut Reader<'_>) -> Instances {
    let expected = "a number from 1 to 1000, or \"every\" for one on each device";
    match reader.integer_or_word("instances", &INSTANCES, EVERY, expected) {
        Some(Some(count)) => Instances::Count(count),
        Some(None) => Instances::Every,
        None => Instances::Count(1),
    }
}
