//! Due times over 20 years in the zones where clocks behave worst, against tables that another program computed
//! (`tests/data/due/make.py`, which says what stands in them).

use std::fmt::Write as _;
use std::path::PathBuf;

use aios::decide::due::{self, Clockwork};
use aios::model::ids::JobName;
use aios::model::job::{self, JobType};
use aios::model::schedule::{Schedule, Timing};
use chrono::{DateTime, NaiveDate, NaiveTime, TimeDelta, Utc};
use chrono_tz::Tz;
use sha2::{Digest, Sha256};

const VOLUME: &str = "5f0c1d";

/// An instant, and the length of the window that begins there; in seconds.
type Row = (i64, Option<i64>);

/// What one zone's table says of one schedule.
struct Section {
    kind: String,
    text: String,
    /// Year, how many, and their hash.
    years: Vec<(i32, usize, String)>,
    /// What lies around a change of the clocks.
    near: Vec<(DateTime<Utc>, Vec<Row>)>,
}

struct Table {
    zone: Tz,
    release: String,
    sections: Vec<Section>,
}

fn instant(text: &str) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339(text).unwrap().to_utc()
}

fn start_of(year: i32) -> DateTime<Utc> {
    NaiveDate::from_ymd_opt(year, 1, 1).unwrap().and_time(NaiveTime::MIN).and_utc()
}

/// Reads `INSTANT[/LENGTH] +STEP[/LENGTH][*COUNT] ...`.
fn rows(words: &str) -> Vec<Row> {
    let mut found: Vec<Row> = Vec::new();
    for word in words.split(' ') {
        let (word, count) = word.split_once('*').unwrap_or((word, "1"));
        let (at, length) =
            word.split_once('/').map_or((word, None), |(at, length)| (at, Some(length.parse().unwrap())));
        for _ in 0..count.parse().unwrap() {
            let at = match (at.strip_prefix('+'), found.last()) {
                (Some(step), Some((last, _))) => last + step.parse::<i64>().unwrap(),
                (None, None) => instant(at).timestamp(),
                (Some(_), None) | (None, Some(_)) => panic!("{words}"),
            };
            found.push((at, length));
        }
    }
    found
}

fn tables() -> Vec<Table> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/due");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|ending| ending != "txt") {
            continue;
        }
        let mut table = Table { zone: Tz::UTC, release: String::new(), sections: Vec::new() };
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            if let Some(release) = line.strip_prefix("# Zone data: ") {
                table.release = release.to_owned();
            } else if let Some(zone) = line.strip_prefix("zone ") {
                table.zone = zone.parse().unwrap();
            } else if let Some(name) = line.strip_prefix('[') {
                let (kind, text) = name.strip_suffix(']').unwrap().split_once(' ').unwrap();
                let section =
                    Section { kind: kind.to_owned(), text: text.to_owned(), years: Vec::new(), near: Vec::new() };
                table.sections.push(section);
            } else if let Some(near) = line.strip_prefix("near ") {
                let (change, words) = near.split_once(' ').unwrap();
                table.sections.last_mut().unwrap().near.push((instant(change), rows(words)));
            } else if let Some(section) = table.sections.last_mut() {
                let words: Vec<&str> = line.split(' ').collect();
                section.years.push((words[0].parse().unwrap(), words[1].parse().unwrap(), words[2].to_owned()));
            }
        }
        found.push(table);
    }
    assert!(found.len() >= 16, "{} tables", found.len());
    found
}

/// The timing of a job file: what users write is what is tested.
fn timing(keys: &str) -> Timing {
    let text = format!("file = \"a\"\n{keys}");
    let job =
        job::parse(&JobName::new("demo").unwrap(), "demo.toml", &text).unwrap_or_else(|e| panic!("{text}: {e:?}"));
    let JobType::Timed(timing) = job.kind else { panic!("{text}") };
    timing
}

/// All due times from 2010 to 2030, found forwards, or found backwards.
fn walk(of: Clockwork<'_>, forwards: bool) -> Vec<i64> {
    let (from, to) = (start_of(2010), start_of(2030));
    let ms = TimeDelta::milliseconds(1);
    let mut found = Vec::new();
    let mut at = if forwards { from - ms } else { to - ms };
    loop {
        let due = if forwards { due::next(of, at) } else { due::newest(of, at) };
        match due {
            Some(due) if (from..to).contains(&due) => {
                assert!(if forwards { due > at } else { due <= at }, "{due} from {at}");
                assert_eq!(due.timestamp_subsec_nanos(), 0);
                found.push(due.timestamp());
                at = if forwards { due } else { due - ms };
            }
            Some(_) => break,
            None => {
                println!("nothing is due from {at}, forwards: {forwards}");
                break;
            }
        }
    }
    if !forwards {
        found.reverse();
    }
    found
}

/// Compares what was found with a section; what differs, in words.
fn differences(section: &Section, found: &[Row]) -> Vec<String> {
    let mut told = Vec::new();
    let shown = |row: Option<&Row>| {
        row.map_or("nothing".to_owned(), |(at, length)| {
            let at = DateTime::from_timestamp_secs(*at).unwrap();
            length.map_or_else(|| at.to_string(), |length| format!("{at} for {length} s"))
        })
    };
    let between = |from: i64, to: i64| {
        let place = |at: i64| found.partition_point(|(found, _)| *found < at);
        &found[place(from)..place(to)]
    };
    for (change, expected) in &section.near {
        let (change, two_days) = (change.timestamp(), 2 * 86_400);
        let near = between(change - two_days, change + two_days + 1);
        if let Some(at) = (0..near.len().max(expected.len())).find(|at| near.get(*at) != expected.get(*at)) {
            let (expected, found) = (shown(expected.get(at)), shown(near.get(at)));
            let change = DateTime::from_timestamp_secs(change).unwrap();
            told.push(format!("around {change}: expected {expected}, found {found}"));
        }
    }
    for (year, count, hash) in &section.years {
        let of_year = between(start_of(*year).timestamp(), start_of(year + 1).timestamp());
        let mut text = String::new();
        for (at, length) in of_year {
            match length {
                Some(length) => writeln!(text, "{at}/{length}").unwrap(),
                None => writeln!(text, "{at}").unwrap(),
            }
        }
        let digest = Sha256::digest(text.as_bytes());
        let found_hash: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        let found_count = of_year.len();
        if (found_count, &found_hash) != (*count, hash) {
            told.push(format!("in {year}: expected {count} with hash {hash}, found {found_count} with {found_hash}"));
        }
    }
    told
}

fn check_all(kind: &str, of_zones: impl Fn(usize) -> bool) {
    let job = JobName::new("demo").unwrap();
    let mut wrong = Vec::new();
    let (mut compared, mut release) = (0, String::new());
    for table in tables().into_iter().enumerate().filter(|(at, _)| of_zones(*at)).map(|(_, table)| table) {
        release.clone_from(&table.release);
        for section in table.sections.iter().filter(|section| section.kind == kind) {
            let key = if kind == "daily" { "time" } else { "cron" };
            let zone = table.zone.name();
            let timing = timing(&format!("type = \"{kind}\"\n{key} = \"{}\"\ntimezone = \"{zone}\"", section.text));
            let of = Clockwork { volume: VOLUME, job: &job, timing: &timing };
            let [forwards, backwards] = [true, false].map(|forwards| walk(of, forwards));
            compared += forwards.len();
            let name = format!("{zone} {}", section.text);
            if let Some(at) =
                (0..forwards.len().max(backwards.len())).find(|at| forwards.get(*at) != backwards.get(*at))
            {
                let (next, newest) = (forwards.get(at), backwards.get(at));
                wrong.push(format!("{name} next finds {next:?} where newest finds {newest:?}"));
            }
            let found: Vec<Row> = forwards.into_iter().map(|at| (at, None)).collect();
            wrong.extend(differences(section, &found).into_iter().map(|told| format!("{name} {told}")));
        }
    }
    println!("{compared} compared");
    let ours = chrono_tz::IANA_TZDB_VERSION;
    assert!(wrong.is_empty(), "tables: {release}; here {ours}; {} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn daily_jobs_are_due_once_a_local_day_through_every_change_of_the_clocks() {
    check_all("daily", |_| true);
}

// Two tests, so that they run beside each other.
#[test]
fn cron_jobs_are_due_as_the_tables_say_in_one_half_of_the_zones() {
    check_all("cron", |at| at % 2 == 0);
}

#[test]
fn cron_jobs_are_due_as_the_tables_say_in_the_other_half_of_the_zones() {
    check_all("cron", |at| at % 2 == 1);
}

/// The windows of all local days that begin from 2010 to 2030, as the product sees them.
fn windows(after: NaiveTime, before: NaiveTime, zone: Tz) -> Vec<(DateTime<Utc>, DateTime<Utc>)> {
    let mut found = Vec::new();
    let mut day = NaiveDate::from_ymd_opt(2009, 12, 28).unwrap();
    while day <= NaiveDate::from_ymd_opt(2030, 1, 4).unwrap() {
        let next_day = day.succ_opt().unwrap();
        let begin = due::first_moment(zone, day.and_time(after)).unwrap();
        let end = due::first_moment(zone, if before > after { day } else { next_day }.and_time(before)).unwrap();
        if (start_of(2010)..start_of(2030)).contains(&begin) {
            found.push((begin, end));
        }
        day = next_day;
    }
    found
}

#[test]
fn random_daily_draws_one_moment_in_each_window() {
    let (job, other) = (JobName::new("demo").unwrap(), JobName::new("other").unwrap());
    for table in tables() {
        for section in table.sections.iter().filter(|section| section.kind == "window") {
            let (after, before) = section.text.split_once('-').unwrap();
            let zone = table.zone.name();
            let keys = format!("after_time = \"{after}\"\nbefore_time = \"{before}\"\ntimezone = \"{zone}\"");
            let timing = timing(&format!("type = \"random_daily\"\n{keys}"));
            let Schedule::RandomDaily { after, before, zone } = timing.schedule else { panic!("{timing:?}") };
            let windows = windows(after, before, zone);
            let rows: Vec<Row> =
                windows.iter().map(|(from, to)| (from.timestamp(), Some((*to - from).num_seconds()))).collect();
            let told = differences(section, &rows);
            assert!(told.is_empty(), "{zone} {}, {}:\n{}", section.text, table.release, told.join("\n"));

            let of = Clockwork { volume: VOLUME, job: &job, timing: &timing };
            let mut at = windows[0].0 - TimeDelta::milliseconds(1);
            let mut shares = [0_u32; 8];
            let mut drawn = Vec::new();
            for (begin, end) in &windows {
                let due = due::next(of, at).unwrap();
                let length = (*end - begin).num_seconds();
                let inside = due >= *begin && (due < *end || (length == 0 && due == *begin));
                assert!(inside, "{zone} {}: {due} is not in {begin} to {end}", section.text);
                assert_eq!(due::newest(of, due), Some(due));
                assert_eq!(due::newest(of, *end - TimeDelta::milliseconds(i64::from(length > 0))), Some(due));
                if length > 0 {
                    shares[usize::try_from((due - begin).num_seconds() * 8 / length).unwrap()] += 1;
                }
                drawn.push(due);
                at = due;
            }
            // Eight equal parts of the window, 7305 days: 7 degrees of freedom, 40 is passed by chance once in a million.
            let expected = f64::from(shares.iter().sum::<u32>()) / 8.0;
            let spread: f64 = shares.iter().map(|share| (f64::from(*share) - expected).powi(2) / expected).sum();
            assert!(spread < 40.0, "{zone} {}: {shares:?} is uneven ({spread})", section.text);

            for of in [Clockwork { job: &other, ..of }, Clockwork { volume: "another", ..of }] {
                let same = drawn.iter().filter(|due| due::newest(of, **due) == Some(**due)).count();
                assert!(same < drawn.len() / 100, "{same} of {} moments are those of {of:?}", drawn.len());
            }
        }
    }
}
