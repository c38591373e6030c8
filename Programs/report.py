"""One day's runs, from Results, for people (Markdown) and programs (JSON). The same results give the same report."""

import datetime
import json

from common_folder import DATE, common, read_results, write_file

ORDER = ("succeeded", "failed", "timed_out", "lost", "cancelled", "expired", "skipped")


def day_of(date):
    """The day a report is about, as yyyy-mm-dd."""
    today = datetime.datetime.now(datetime.timezone.utc).date()
    if date in (None, "today"):
        return today.isoformat()
    if date == "yesterday":
        return (today - datetime.timedelta(days=1)).isoformat()
    try:
        if not DATE.match(date):
            raise ValueError
        datetime.date(*map(int, date.split("-")))
    except (TypeError, ValueError):
        raise ValueError("date: expected 'today', 'yesterday' or yyyy-mm-dd, found %r" % (date,)) from None
    return date


def collect(date):
    """Each run of the day with its attempts in order, what was superseded, and what could not be read."""
    runs, superseded, unreadable = {}, 0, []
    for path, result in read_results(common() / "Results" / date):
        if path.name.endswith(".superseded.json"):
            superseded += 1
        elif result is None or not all(isinstance(result.get(key), str) for key in ("run_id", "job", "status")):
            unreadable.append(path.name)
        else:
            runs.setdefault(result["run_id"], []).append(result)
    for attempts in runs.values():
        attempts.sort(key=lambda one: (one["attempt"] if isinstance(one.get("attempt"), int) else 0, bool(one.get("final"))))
    return runs, superseded, unreadable


def summarise(runs):
    """One line a job: how often it ran, how that ended, how long it took."""
    jobs = {}
    for _, attempts in sorted(runs.items()):
        last = attempts[-1]
        job = jobs.setdefault(last["job"], {"job": last["job"], "runs": 0, "attempts": 0, "open": 0, "ended": {}, "durations": []})
        job["runs"] += 1
        job["attempts"] += len(attempts)
        if last.get("final"):
            job["ended"][last["status"]] = job["ended"].get(last["status"], 0) + 1
        else:
            job["open"] += 1
        job["durations"] += [one["duration_ms"] for one in attempts if isinstance(one.get("duration_ms"), (int, float))]
    for job in jobs.values():
        durations = job.pop("durations")
        job["mean_ms"] = round(sum(durations) / len(durations), 3) if durations else None
        job["longest_ms"] = max(durations) if durations else None
    return [jobs[name] for name in sorted(jobs)]


def failures(runs):
    """The runs that ended without success, in the order in which they were asked for."""
    keys = ("run_id", "job", "status", "attempt", "device", "error", "log")
    ends = (attempts[-1] for _, attempts in sorted(runs.items()))
    return [{key: one.get(key) for key in keys} for one in ends if one.get("final") and one["status"] != "succeeded"]


def cell(value):
    """A value as the cell of a Markdown table, whatever a program put into it."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    for mark in "\\|`*_<>[]":
        text = text.replace(mark, "\\" + mark)
    return text[:300]


def row(*cells):
    return "| " + " | ".join(cell(one) for one in cells) + " |"


def span(milliseconds):
    if milliseconds is None:
        return "–"
    return "%.0f ms" % milliseconds if milliseconds < 1000 else "%.1f s" % (milliseconds / 1000)


def markdown(seen):
    """The report for people."""
    lines = ["# Runs of %s" % seen["date"], "", "%(runs)d runs, %(succeeded)d succeeded, %(open)d still open." % seen, ""]
    if seen["jobs"]:
        lines += ["| job | runs | attempts | ended | open | mean | longest |", "|---|---:|---:|---|---:|---:|---:|"]
        for job in seen["jobs"]:
            known = [status for status in ORDER if status in job["ended"]]
            known += sorted(set(job["ended"]) - set(ORDER))
            ended = ", ".join("%d %s" % (job["ended"][status], status) for status in known) or "–"
            lines.append(row(job["job"], job["runs"], job["attempts"], ended, job["open"], span(job["mean_ms"]), span(job["longest_ms"])))
        lines.append("")
    if seen["failures"]:
        lines += ["## Without success", "", "| job | run | status | device | error | log |", "|---|---|---|---|---|---|"]
        for one in seen["failures"]:
            lines.append(row(one["job"], one["run_id"], one["status"], one["device"] or "–", one["error"] or "–", one["log"] or "–"))
        lines.append("")
    if seen["superseded"]:
        lines += ["%d results came after their run had gone to another device." % seen["superseded"], ""]
    if seen["unreadable"]:
        lines += ["## Results that cannot be read", ""] + ["- " + cell(name) for name in seen["unreadable"]] + [""]
    return "\n".join(lines)


def report(date="today"):
    """Writes both files and returns where they are, with the day's sums."""
    date = day_of(date)
    runs, superseded, unreadable = collect(date)
    jobs = summarise(runs)
    seen = {
        "date": date,
        "runs": len(runs),
        "succeeded": sum(job["ended"].get("succeeded", 0) for job in jobs),
        "open": sum(job["open"] for job in jobs),
        "superseded": superseded,
        "jobs": jobs,
        "failures": failures(runs),
        "unreadable": unreadable,
    }
    folder = common() / "Reports"
    write_file(folder / (date + ".json"), json.dumps(seen, indent=2, ensure_ascii=False) + "\n")
    write_file(folder / (date + ".md"), markdown(seen))
    print("%s: %d runs, %d without success" % (date, seen["runs"], len(seen["failures"])))
    return {
        "markdown": "Reports/%s.md" % date,
        "json": "Reports/%s.json" % date,
        "runs": seen["runs"],
        "succeeded": seen["succeeded"],
        "without_success": len(seen["failures"]),
        "open": seen["open"],
    }
