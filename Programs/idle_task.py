"""Verifies that each result parses and each archive can be read to its end, a few files at a call."""

import json
import os
import signal
import sys
import tarfile
import time
import zlib

from common_folder import common, days, number, whole_number, write_file


def results(after):
    """The results behind a position, oldest first: (position, path)."""
    for day in days():
        # Positions compare as texts: a whole day is over when even its last name would be.
        if "Results/%s/\U0010ffff" % day.name <= after:
            continue
        try:
            names = sorted(name for name in os.listdir(str(day)) if name.endswith(".json") and not name.startswith("."))
        except FileNotFoundError:
            continue
        for name in names:
            position = "Results/%s/%s" % (day.name, name)
            if position > after:
                yield position, day / name


def archives(after):
    """The archives behind a position: (position, path)."""
    folder = common() / "Backups"
    try:
        names = sorted(name for name in os.listdir(str(folder)) if name.endswith(".tar.gz") and not name.startswith("."))
    except FileNotFoundError:
        return
    for name in names:
        position = "Backups/" + name
        if position > after:
            yield position, folder / name


def behind(after):
    """Everything behind a position, in the order of positions: Backups before Results."""
    yield from archives(after)
    yield from results(after)


def damage(path):
    """What is wrong with a file, or None."""
    try:
        if path.name.endswith(".json"):
            if not isinstance(json.loads(path.read_text(encoding="utf-8")), dict):
                return "no JSON object"
            return None
        with tarfile.open(str(path), "r:gz") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isreg() else None
                while file and file.read(1 << 20):
                    pass
            # The checksum stands behind the last member.
            while tar.fileobj.read(1 << 20):
                pass
    except FileNotFoundError:
        return None  # its time was over
    except (OSError, ValueError, EOFError, RecursionError, tarfile.TarError, zlib.error) as error:
        return "%s: %s" % (type(error).__name__, error)
    return None


def load(path):
    """Where the last call stopped; from the start if that cannot be read."""
    try:
        after = json.loads(path.read_text(encoding="utf-8"))["after"]
        return after if isinstance(after, str) else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def check(files=500, seconds=20):
    """Looks at the next files and says what it found."""
    whole_number("files", files)
    end = time.monotonic() + number("seconds", seconds)
    place = common() / "IdleTask" / "position.json"
    after = load(place)
    seen = {"checked": 0, "damaged": [], "finished_round": False}
    try:
        for position, path in behind(after):
            if seen["checked"] >= files or (seen["checked"] and time.monotonic() >= end):
                break
            problem = damage(path)
            if problem:
                print("%s: %s" % (position, problem), file=sys.stderr)
                seen["damaged"].append({"file": position, "error": problem})
            seen["checked"] += 1
            after = position
        else:
            after, seen["finished_round"] = "", True
    finally:
        # Also when it has to make room for other work: SIGTERM comes as SystemExit.
        write_file(place, json.dumps({"after": after}) + "\n")
    return seen


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        seen = check(**json.loads(os.environ.get("AIOS_KWARGS") or "{}"))
    except (OSError, TypeError, ValueError) as error:
        print("idle_task: %s" % error, file=sys.stderr)
        return 2
    print("%d files looked at, %d damaged" % (seen["checked"], len(seen["damaged"])))
    if os.environ.get("AIOS_RESULT"):
        with open(os.environ["AIOS_RESULT"], "w", encoding="utf-8", errors="backslashreplace") as file:
            json.dump(seen, file)
    return 1 if seen["damaged"] else 0


if __name__ == "__main__":
    sys.exit(main())
