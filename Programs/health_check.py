"""Disk, memory, load and failed runs as one JSON result. What a system does not tell is null, never an error."""

import datetime
import os
import shutil
import time

from common_folder import common, days, number, programs, read_results

DAY = 24 * 3600
FAILED = ("failed", "timed_out", "lost")


def disk(path):
    """Space and inodes of the file system that holds a folder."""
    try:
        usage = shutil.disk_usage(str(path))
        inodes = os.statvfs(str(path))
    except OSError as error:
        return {"path": str(path), "error": str(error)}
    # What only root may use counts as used, as in df.
    available = usage.used + usage.free
    return {
        "path": str(path),
        "free_bytes": usage.free,
        "used_percent": round(100 * usage.used / available, 1) if available else None,
        "inodes_used_percent": round(100 * (1 - inodes.f_ffree / inodes.f_files), 1) if inodes.f_files else None,
    }


def memory(source="/proc/meminfo"):
    """Memory of the machine; None where there is no /proc."""
    found = {}
    try:
        with open(source, encoding="ascii", errors="replace") as file:
            for line in file:
                key, _, rest = line.partition(":")
                fields = rest.split()
                if fields and fields[0].isdigit():
                    found[key] = int(fields[0]) * 1024
    except OSError:
        return None
    total, available = found.get("MemTotal"), found.get("MemAvailable")
    if not total or available is None:
        return None
    return {"total_bytes": total, "available_bytes": available, "used_percent": round(100 * (1 - available / total), 1)}


def load():
    """The load of the last minute, also for each CPU this process may use."""
    try:
        one = os.getloadavg()[0]
    except (AttributeError, OSError):
        return None
    try:
        cpus = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        cpus = os.cpu_count() or 1
    return {"one_minute": round(one, 2), "cpus": cpus, "per_cpu": round(one / cpus, 2)}


def instant(text):
    """A time of a result file in seconds; None if it is none."""
    try:
        return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except (AttributeError, ValueError):
        return None


def runs(now):
    """How the runs ended that ended within the last day."""
    since = now - DAY
    ended, failed, unreadable = 0, [], 0
    for day in days():
        try:
            # A folder changes with each result that comes into it: an older one holds nothing new. An hour for clocks that differ.
            if day.stat().st_mtime < since - 3600:
                continue
        except OSError:
            continue
        for path, result in read_results(day, newer_than=since - 3600):
            if result is None:
                unreadable += 1
                continue
            finished = instant(result.get("finished_at"))
            if not result.get("final") or finished is None or finished < since:
                continue
            ended += 1
            if result.get("status") in FAILED:
                failed.append({key: result.get(key) for key in ("run_id", "job", "status", "error", "device", "finished_at")})
    failed.sort(key=lambda run: str(run["finished_at"]), reverse=True)
    return {"ended": ended, "failed": len(failed), "newest_failed": failed[:10], "unreadable": unreadable}


def check(disk_percent=90, memory_percent=95, load_per_cpu=4.0, failed_runs=10, strict=False):
    """Measures everything and names what passed its threshold."""
    for name in ("disk_percent", "memory_percent", "load_per_cpu", "failed_runs"):
        number(name, locals()[name])
    seen = {"disks": [disk(common()), disk(programs())], "memory": memory(), "load": load(), "runs": runs(time.time())}
    problems = []
    for one in seen["disks"]:
        if "error" in one:
            problems.append("%(path)s: %(error)s" % one)
        for what, key in (("disk", "used_percent"), ("inodes", "inodes_used_percent")):
            if one.get(key) is not None and one[key] > disk_percent:
                problems.append("%s: %s %.1f %% used, more than %s %%" % (one["path"], what, one[key], disk_percent))
    if seen["memory"] and seen["memory"]["used_percent"] > memory_percent:
        problems.append("memory: %.1f %% used, more than %s %%" % (seen["memory"]["used_percent"], memory_percent))
    if seen["load"] and seen["load"]["per_cpu"] > load_per_cpu:
        problems.append("load: %.2f for each CPU, more than %s" % (seen["load"]["per_cpu"], load_per_cpu))
    if seen["runs"]["failed"] > failed_runs:
        problems.append("runs: %d failed within a day, more than %s" % (seen["runs"]["failed"], failed_runs))
    if seen["runs"]["unreadable"]:
        problems.append("results: %d cannot be read" % seen["runs"]["unreadable"])
    for problem in problems:
        print(problem)
    if strict and problems:
        raise RuntimeError("; ".join(problems))
    return dict({"healthy": not problems, "problems": problems}, **seen)
