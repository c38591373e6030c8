"""What the programs here share: finding the folders, reading results, writing whole files."""

import json
import os
import pathlib
import re
import tempfile

DATE = re.compile(r"\d{4}-\d{2}-\d{2}\Z")


def common():
    """The shared folder. Started by hand, a program looks beside Programs/."""
    return pathlib.Path(os.environ.get("AIOS_COMMON") or pathlib.Path(__file__).resolve().parent.parent / "Common")


def programs():
    """The folder of the jobs and their programs."""
    return pathlib.Path(os.environ.get("AIOS_PROGRAMS") or pathlib.Path(__file__).resolve().parent)


def write_file(path, text):
    """Writes a text file so that a reader sees the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(prefix=".", suffix=".part", dir=str(path.parent))
    try:
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)
        os.replace(part, str(path))
    except BaseException:
        os.unlink(part)
        raise


def days(newest_first=False):
    """The folders of Results, one a day."""
    try:
        found = [entry for entry in (common() / "Results").iterdir() if DATE.match(entry.name) and entry.is_dir()]
    except FileNotFoundError:
        return []
    return sorted(found, key=lambda day: day.name, reverse=newest_first)


def read_results(day, newer_than=None):
    """Yields (path, result) for each result of one day's folder; the result is None where the file cannot be read.

    Files that vanish meanwhile are left out, and with `newer_than` those last written before that moment.
    """
    try:
        with os.scandir(str(day)) as entries:
            names = sorted(entry.name for entry in entries if entry.name.endswith(".json") and not entry.name.startswith("."))
    except FileNotFoundError:
        return
    for name in names:
        path = day / name
        try:
            if newer_than is not None and path.stat().st_mtime < newer_than:
                continue
            result = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError):
            result = None
        yield path, result if isinstance(result, dict) else None


def whole_number(name, value, least=1):
    """Checks an argument that counts something."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError("%s: expected a whole number from %d on, found %r" % (name, least, value))
    return value


def number(name, value):
    """Checks an argument that measures something."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError("%s: expected a number from 0 on, found %r" % (name, value))
    return value
