//! `orchestrator logs`: the orchestrators' own logs, of all devices, merged by time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Local};
use clap::Args;
use serde_json::{Map, Value};

use super::out::{Out, Paint, printable};
use super::{Code, Context, Failure};
use crate::model::ids::DeviceId;
use crate::volume::os::read_from;
use crate::volume::{Context as _, found};

/// Options of `logs`.
#[derive(Debug, Clone, Args)]
pub(super) struct LogsArgs {
    /// Go on with what is written from now on.
    #[arg(short, long)]
    follow: bool,
    /// Only of this device.
    #[arg(long, value_name = "D")]
    device: Option<DeviceId>,
    /// The newest so many lines.
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
}

/// How often a followed log is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// How often new logs are looked for: at midnight, or when a device comes.
const NEW_LOGS: Duration = Duration::from_secs(2);
/// How much is read at once, bytes.
const CHUNK: u64 = 256 << 10;

/// One device's log of one day.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    date: String,
    device: DeviceId,
    file: String,
}

/// Reads `orchestrator.<device>.<date>.log`.
fn parse_name(file: &str) -> Option<Name> {
    let (device, date) = file.strip_prefix("orchestrator.")?.strip_suffix(".log")?.rsplit_once('.')?;
    chrono::NaiveDate::parse_from_str(date, "%Y-%m-%d").ok()?;
    Some(Name { date: date.to_owned(), device: DeviceId::new(device).ok()?, file: file.to_owned() })
}

/// One line, with what it is sorted by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    at: String,
    device: DeviceId,
    text: String,
}

/// How far a log has been read.
#[derive(Debug, Default)]
struct Read {
    offset: u64,
    rest: Vec<u8>,
    /// The time of the line before: what is no JSON stays behind it.
    at: String,
}

pub(super) fn logs(args: &LogsArgs, context: &Context) -> Result<Code, Failure> {
    context.need_volume()?;
    let names = names(context, args.device.as_ref())?;
    if let (Some(device), true, false) = (&args.device, names.is_empty(), args.follow) {
        let hint = "`orchestrator devices list` shows the devices; a device logs once it was started";
        return Err(Failure::new(Code::NotFound, format!("there is no log of a device {device}"), hint));
    }
    let mut reads: BTreeMap<Name, Read> = BTreeMap::new();
    let mut lines = newest(context, &names, args.limit, &mut reads)?;
    lines.sort();
    let skip = lines.len().saturating_sub(args.limit);
    for line in &lines[skip..] {
        tell(&context.out, line)?;
    }
    if !args.follow {
        return Ok(Code::Done);
    }
    // What was written before is behind; a log that comes later is new from its beginning.
    for name in names {
        let path = path(context, &name);
        let size = found(context.disk.stat(&path)).on("look at", &path)?.map_or(0, |meta| meta.id.size);
        reads.entry(name).or_insert_with(|| Read { offset: size, ..Read::default() });
    }
    follow(context, args.device.as_ref(), reads)
}

fn follow(context: &Context, device: Option<&DeviceId>, mut reads: BTreeMap<Name, Read>) -> Result<Code, Failure> {
    let mut look_for_new = context.now().boot + NEW_LOGS;
    loop {
        context.pause(LOOK);
        let now = context.now().boot;
        if now >= look_for_new {
            look_for_new = now + NEW_LOGS;
            for name in names(context, device)? {
                reads.entry(name).or_default();
            }
        }
        let mut lines = Vec::new();
        for (name, read) in &mut reads {
            take_new(context, name, read, &mut lines)?;
        }
        lines.sort();
        for line in &lines {
            tell(&context.out, line)?;
        }
    }
}

/// All logs, oldest first.
fn names(context: &Context, device: Option<&DeviceId>) -> Result<Vec<Name>, Failure> {
    let folder = context.layout.logs();
    let files = found(context.disk.list(&folder)).on("list", &folder)?.unwrap_or_default();
    let mut names: Vec<Name> = files.iter().filter_map(|file| parse_name(file.to_str()?)).collect();
    names.retain(|name| device.is_none_or(|device| *device == name.device));
    names.sort();
    Ok(names)
}

fn path(context: &Context, name: &Name) -> PathBuf {
    context.layout.logs().join(&name.file)
}

/// At least the newest `limit` lines, if there are so many; day by day, the newest first.
fn newest(
    context: &Context,
    names: &[Name],
    limit: usize,
    reads: &mut BTreeMap<Name, Read>,
) -> Result<Vec<Line>, Failure> {
    let mut lines: Vec<Line> = Vec::new();
    for of_day in names.chunk_by(|a, b| a.date == b.date).rev() {
        if lines.len() >= limit {
            break;
        }
        for name in of_day {
            let path = path(context, name);
            let size = found(context.disk.stat(&path)).on("look at", &path)?.map_or(0, |meta| meta.id.size);
            let mut back = CHUNK;
            // From its end backwards, twice as far each time, until there are enough lines.
            loop {
                let offset = size.saturating_sub(back);
                let mut read = Read { offset, ..Read::default() };
                let mut found = Vec::new();
                take_new(context, name, &mut read, &mut found)?;
                if offset > 0 {
                    // The first may be half a line.
                    found.drain(..found.len().min(1));
                }
                if offset == 0 || found.len() >= limit {
                    lines.append(&mut found);
                    reads.insert(name.clone(), read);
                    break;
                }
                back *= 2;
            }
        }
    }
    Ok(lines)
}

/// The whole lines that were written since.
fn take_new(context: &Context, name: &Name, read: &mut Read, lines: &mut Vec<Line>) -> Result<(), Failure> {
    let path = path(context, name);
    loop {
        let chunk = found(read_from(&path, read.offset, CHUNK)).on("read", &path)?.unwrap_or_default();
        if chunk.is_empty() {
            return Ok(());
        }
        read.offset += chunk.len() as u64;
        read.rest.extend(chunk);
        let Some(end) = read.rest.iter().rposition(|byte| *byte == b'\n') else {
            continue;
        };
        let whole: Vec<u8> = read.rest.drain(..=end).collect();
        for bytes in whole[..end].split(|byte| *byte == b'\n').filter(|bytes| !bytes.is_empty()) {
            let text = String::from_utf8_lossy(bytes).into_owned();
            if let Some(at) = time_of(&text) {
                read.at = at;
            }
            lines.push(Line { at: read.at.clone(), device: name.device.clone(), text });
        }
    }
}

fn time_of(line: &str) -> Option<String> {
    let object: Map<String, Value> = serde_json::from_str(line).ok()?;
    object.get("timestamp")?.as_str().map(str::to_owned)
}

fn tell(out: &Out, line: &Line) -> Result<(), Failure> {
    if out.json { out.line(&with_device(line)) } else { out.line(&readable(out, line)) }
}

/// The line as it was written, and whose it is. What is no JSON becomes a message.
fn with_device(line: &Line) -> String {
    let mut object = serde_json::from_str::<Map<String, Value>>(&line.text)
        .unwrap_or_else(|_| Map::from_iter([("message".to_owned(), Value::from(line.text.as_str()))]));
    object.insert("device".to_owned(), Value::from(line.device.as_str()));
    Value::Object(object).to_string()
}

/// `2026-11-21 09:00:01.123 docker-main WARN the message key=value`.
fn readable(out: &Out, line: &Line) -> String {
    let Ok(mut object) = serde_json::from_str::<Map<String, Value>>(&line.text) else {
        return format!("{} {}", line.device, printable(&line.text));
    };
    let mut take =
        |key: &str| object.remove(key).and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default();
    let (at, level, message) = (take("timestamp"), take("level"), take("message"));
    take("target");
    let at = DateTime::parse_from_rfc3339(&at)
        .map_or(at, |at| at.with_timezone(&Local).format("%Y-%m-%d %H:%M:%S%.3f").to_string());
    let paint = match level.as_str() {
        "ERROR" => Paint::Red,
        "WARN" => Paint::Yellow,
        _ => Paint::Dim,
    };
    let level = out.paint(paint, &printable(&format!("{level:<5}")));
    let mut text =
        format!("{} {} {level} {}", out.paint(Paint::Dim, &printable(&at)), line.device, printable(&message));
    for (key, value) in object {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text += &out.paint(Paint::Dim, &format!(" {}={}", printable(&key), printable(&value)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUT: Out = Out { json: false, color: false, quiet: false };

    fn line(text: &str) -> Line {
        Line { at: String::new(), device: DeviceId::new("d.1").unwrap(), text: text.to_owned() }
    }

    #[test]
    fn a_device_may_have_dots_in_its_name() {
        let name = parse_name("orchestrator.d.1.2026-11-21.log").unwrap();
        assert_eq!((name.device.as_str(), name.date.as_str()), ("d.1", "2026-11-21"));
        for other in ["2026-11-21", "orchestrator.2026-11-21.log", "orchestrator.d.1.log", "x.d.2026-11-21.log"] {
            assert_eq!(parse_name(other), None, "{other}");
        }
    }

    #[test]
    fn a_line_is_readable_and_harmless() {
        let shown = readable(
            &OUT,
            &line(
                r#"{"timestamp":"2026-11-21T08:00:00.123456Z","level":"WARN","message":"a \u001b[31m","target":"aios","run":"r","n":7}"#,
            ),
        );
        assert!(shown.ends_with(" d.1 WARN  a \\u{1b}[31m n=7 run=r"), "{shown}");
        assert_eq!(readable(&OUT, &line("no JSON\r")), "d.1 no JSON\\r");
    }
}
