#!/usr/bin/env python3
"""Writes the tables of due times beside this file: a second implementation of the rules in src/decide/due.rs.

It shares no code, no calendar library and no search with the product: it takes the changes of a zone's UTC offset from
zoneinfo, cuts time into the pieces between them, and in each piece a clock is a sum. Run it once, after the release of the
zone data that chrono-tz brings has changed; what it writes is committed:

    python3 -m venv /tmp/zones && /tmp/zones/bin/pip install tzdata==2025.2
    /tmp/zones/bin/python tests/data/due/make.py

The rules: a fixed local time that a change of the clocks skips is due at the first moment behind the gap, and one that
comes twice is due once, the first time. A cron expression with * or a step in its minute or hour is due whenever a clock
shows one of its times: in both passes, and never in a gap. Instants that fall together are one.

A table: a line `change INSTANT BEFORE AFTER` for each change of the offset (seconds east of UTC); then for each schedule
`[NAME]`, lines `YEAR COUNT HASH` over all its instants in that year of UTC (SHA-256 of their Unix seconds, each followed by
a newline; 12 digits), and lines `near INSTANT ...` with those within two days of the change at that instant: the first one,
then the steps to the next ones in seconds, `*N` meaning N times. A window has its length behind a slash.
"""

import datetime
import hashlib
import pathlib
import sys
import zoneinfo

import tzdata

# What chrono_tz::IANA_TZDB_VERSION says.
CHRONO_TZ = "2025b"

ZONES = """
    UTC America/New_York Europe/Berlin Africa/Cairo America/Sao_Paulo Australia/Lord_Howe Asia/Kathmandu Pacific/Apia
    Africa/Casablanca Asia/Tehran America/Caracas Antarctica/Troll Europe/Dublin America/St_Johns Pacific/Kwajalein Asia/Gaza
    America/Nuuk Asia/Pyongyang Antarctica/Casey
""".split()
DAILY = "00:00 00:30 01:30 02:00 02:15 02:30 03:00 09:00 23:59:59".split()
FIXED = ["30 2 * * *", "0 0 * * 0", "15,45 1-3 * * *", "30 23 * * 6", "0 0 30 12 *"]
ELAPSED = ["*/15 * * * *", "0 * * * *", "0 */6 * * *", "*/20 1-3 * * *"]
WINDOWS = ["02:00-03:00", "01:00-02:00", "22:00-02:00", "00:00-01:00"]

DAY = 86400
EPOCH = datetime.date(1970, 1, 1)


def seconds(year, month=1, day=1):
    return (datetime.date(year, month, day) - EPOCH).days * DAY


FROM, TO = seconds(2010), seconds(2030)
# The pieces reach further, so that what begins or is moved at the edges is right.
FIRST, LAST = seconds(2009, 12, 1), seconds(2030, 2, 1)


def show(at):
    return datetime.datetime.fromtimestamp(at, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def pieces(zone):
    """[(start, end, offset)]: a clock shows start + offset up to end + offset."""

    def offset(at):
        utc = datetime.datetime.fromtimestamp(at, datetime.timezone.utc)
        return int(utc.astimezone(zone).utcoffset().total_seconds())

    found = []
    start, at, now = FIRST, FIRST, offset(FIRST)
    while at < LAST:
        behind = at + 3600
        if offset(behind) != now:
            low, high = at, behind
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if offset(middle) == now else (low, middle)
            found.append((start, high, now))
            start, now = high, offset(high)
        at = behind
    found.append((start, LAST, now))
    return found


def first_moment(cut, local):
    """The first instant at which a clock shows `local` (seconds since 1970-01-01T00:00 of that clock)."""
    for start, end, offset in cut:
        if start <= local - offset < end:
            return local - offset
    # A gap: behind what the clock before the change shows, before what the clock behind it shows.
    for (_, change, before), (_, _, after) in zip(cut, cut[1:]):
        if local - before >= change and local - after < change:
            return change
    return None


def clock(text):
    parts = [int(part) for part in text.split(":")] + [0]
    return parts[0] * 3600 + parts[1] * 60 + parts[2]


def field(text, low, high):
    values = set()
    for part in text.split(","):
        part, _, step = part.partition("/")
        if part == "*":
            first, last = low, high
        else:
            first, _, last = part.partition("-")
            first, last = int(first), int(last or first)
        values.update(range(first, last + 1, int(step or 1)))
    return values


def local_times(cron, first_day, last_day):
    """The local times of a cron expression on local days, in seconds of a clock."""
    minute, hour, day, month, weekday = cron.split()
    assert day == "*" or weekday == "*", "both is another rule, which no table needs"
    times = [h * 3600 + m * 60 for h in sorted(field(hour, 0, 23)) for m in sorted(field(minute, 0, 59))]
    days, months, weekdays = field(day, 1, 31), field(month, 1, 12), field(weekday, 0, 6)
    for number in range(first_day, last_day + 1):
        date = EPOCH + datetime.timedelta(days=number)
        if date.day in days and date.month in months and date.isoweekday() % 7 in weekdays:
            for time in times:
                yield number * DAY + time


def days():
    return range(FROM // DAY - 4, TO // DAY + 4)


def daily(cut, text):
    return sorted({first_moment(cut, day * DAY + clock(text)) for day in days()})


def fixed(cut, cron):
    return sorted({first_moment(cut, local) for local in local_times(cron, days()[0], days()[-1])})


def elapsed(cut, cron):
    found = set()
    for start, end, offset in cut:
        for local in local_times(cron, (start + offset) // DAY, (end + offset) // DAY):
            if start <= local - offset < end:
                found.add(local - offset)
    return sorted(found)


def window(cut, text):
    begin, end = (clock(part) for part in text.split("-"))
    found = []
    for day in days():
        last_day = day if end > begin else day + 1
        found.append((first_moment(cut, day * DAY + begin), first_moment(cut, last_day * DAY + end)))
    return found


def steps(row):
    """The first, then the steps between the others, those that follow each other unchanged counted."""
    words = []
    for number, (at, length) in enumerate(row):
        tail = "" if length is None else f"/{length}"
        word = f"{show(at)}{tail}" if number == 0 else f"+{at - row[number - 1][0]}{tail}"
        if words and words[-1][0] == word:
            words[-1][1] += 1
        else:
            words.append([word, 1])
    return " ".join(word if count == 1 else f"{word}*{count}" for word, count in words)


def section(name, cut, rows):
    """`rows`: (instant, length of the window or None), in order."""
    lines = [f"[{name}]"]
    rows = [(at, length) for at, length in rows if FROM <= at < TO]
    for year in range(2010, 2030):
        part = [row for row in rows if seconds(year) <= row[0] < seconds(year + 1)]
        text = "".join(f"{at}\n" if length is None else f"{at}/{length}\n" for at, length in part)
        lines.append(f"{year} {len(part)} {hashlib.sha256(text.encode()).hexdigest()[:12]}")
    for _, change, _ in cut[:-1]:
        near = [row for row in rows if abs(row[0] - change) <= 2 * DAY]
        if FROM <= change < TO and near:
            lines.append(f"near {show(change)} {steps(near)}")
    return lines


def table(name):
    cut = pieces(zoneinfo.ZoneInfo(name))
    lines = [
        "# Written by make.py, which says what stands here. Not to be edited.",
        f"# Zone data: {tzdata.IANA_VERSION} (tzdata {tzdata.__version__}, read by zoneinfo); chrono-tz: {CHRONO_TZ}",
        f"zone {name}",
    ]
    for (_, change, before), (_, _, after) in zip(cut, cut[1:]):
        if FROM <= change < TO:
            lines.append(f"change {show(change)} {before} {after}")
    for kind, rule, names in (("daily", daily, DAILY), ("cron", fixed, FIXED), ("cron", elapsed, ELAPSED)):
        for text in names:
            lines += section(f"{kind} {text}", cut, [(at, None) for at in rule(cut, text)])
    for text in WINDOWS:
        lines += section(f"window {text}", cut, [(begin, end - begin) for begin, end in window(cut, text)])
    return "\n".join(lines) + "\n"


def main():
    if tzdata.IANA_VERSION != CHRONO_TZ:
        sys.exit(f"tzdata is {tzdata.IANA_VERSION}, expected {CHRONO_TZ}, the release of chrono-tz")
    # The data of the package, and not the machine's.
    zoneinfo.reset_tzpath(to=[])
    for zone in ZONES:
        path = pathlib.Path(__file__).with_name(zone.replace("/", "-") + ".txt")
        path.write_text(table(zone), encoding="ascii")


if __name__ == "__main__":
    main()
