//! `orchestrator logs`: the orchestrators' own logs, of all devices, merged by time.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Local};
use clap::Args;
use serde_json::{Map, Value};

use super::out::{Out, Paint, printable};
use super::{Code, Context, Failure};
use crate::client::logs::{Line, Name, Read, names, newest, path, take_new, with_device};
use crate::model::ids::DeviceId;
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
pub(super) fn logs(args: &LogsArgs, context: &Context) -> Result<Code, Failure> {
    context.client.need_volume()?;
    let names = names(&context.client, args.device.as_ref())?;
    if let (Some(device), true, false) = (&args.device, names.is_empty(), args.follow) {
        let hint = "`orchestrator devices list` shows the devices; a device logs once it was started";
        return Err(Failure::new(Code::NotFound, format!("there is no log of a device {device}"), hint));
    }
    let mut reads: BTreeMap<Name, Read> = BTreeMap::new();
    for line in newest(&context.client, &names, args.limit, None, &mut reads)? {
        tell(&context.out, &line)?;
    }
    if !args.follow {
        return Ok(Code::Done);
    }
    // What was written before is behind; a log that comes later is new from its beginning.
    for name in names {
        let path = path(&context.client, &name);
        let size = found(context.client.disk.stat(&path)).on("look at", &path)?.map_or(0, |meta| meta.id.size);
        reads.entry(name).or_insert_with(|| Read::from(size));
    }
    follow(context, args.device.as_ref(), reads)
}

fn follow(context: &Context, device: Option<&DeviceId>, mut reads: BTreeMap<Name, Read>) -> Result<Code, Failure> {
    let mut look_for_new = context.client.now().boot + NEW_LOGS;
    loop {
        context.client.pause(LOOK);
        let now = context.client.now().boot;
        if now >= look_for_new {
            look_for_new = now + NEW_LOGS;
            for name in names(&context.client, device)? {
                reads.entry(name).or_default();
            }
        }
        let mut lines = Vec::new();
        for (name, read) in &mut reads {
            take_new(&context.client, name, read, &mut lines)?;
        }
        lines.sort();
        for line in &lines {
            tell(&context.out, line)?;
        }
    }
}

fn tell(out: &Out, line: &Line) -> Result<(), Failure> {
    if out.json { out.document(&with_device(line)) } else { out.line(&readable(out, line)) }
}

/// `2026-11-21 09:00:01.123 docker-main WARN the message key=value`.
fn readable(out: &Out, line: &Line) -> String {
    let Ok(mut object) = serde_json::from_str::<Map<String, Value>>(&line.text) else {
        return format!("{} {}", line.place.device, printable(&line.text));
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
        format!("{} {} {level} {}", out.paint(Paint::Dim, &printable(&at)), line.place.device, printable(&message));
    for (key, value) in object {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text += &out.paint(Paint::Dim, &format!(" {}={}", printable(&key), printable(&value)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::logs::Place;
    use crate::model::ids::DeviceId;

    const OUT: Out = Out { json: false, color: false, quiet: false };

    fn line(text: &str) -> Line {
        let place = Place { at: String::new(), device: DeviceId::new("d.1").unwrap(), day: String::new(), end: 0 };
        Line { place, text: text.to_owned() }
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
