"""Archives a folder as Common/Backups/<name>.<run id>.<attempt>.tar.gz; run ids sort by time, so archives do too."""

import datetime
import hashlib
import os
import pathlib
import re
import sys
import tarfile
import time
import traceback

from common_folder import common, programs, whole_number

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
ARCHIVE = re.compile(r"(?P<name>.+)\.(?P<run>\d{8}T\d{9}Z-[a-z0-9]{6})\.(?P<attempt>\d+)\.tar\.gz\Z")
STALE_PART = 24 * 3600
TRY_AGAIN = 75


def name_of(source):
    """What archives of a folder are called: two folders of one name must not push each other's archives out."""
    text = re.sub(r"[^A-Za-z0-9_-]", "_", source.name).lstrip("_-")[:40] or "folder"
    return "%s-%s" % (text, hashlib.sha256(os.fsencode(str(source))).hexdigest()[:8])


def run_name():
    """The run and its attempt; of the same form when started by hand."""
    now = datetime.datetime.now(datetime.timezone.utc)
    by_hand = "%s%03dZ-%06d" % (now.strftime("%Y%m%dT%H%M%S"), now.microsecond // 1000, os.getpid() % 1000000)
    return "%s.%s" % (os.environ.get("AIOS_RUN_ID") or by_hand, os.environ.get("AIOS_ATTEMPT") or "1")


def tell(error):
    raise error


def entries(source, without):
    """Every path below a folder, sorted, the folder first; links are kept as links, never followed."""
    yield source
    for folder, folders, files in os.walk(str(source), onerror=tell):
        folders[:] = sorted(name for name in folders if os.path.join(folder, name) != without)
        for name in sorted(folders + files):
            yield pathlib.Path(folder, name)


def archive(source, target, without):
    """Writes the archive; says how many files are in it."""
    files = 0
    with open(str(target), "xb") as raw:
        with tarfile.open(fileobj=raw, mode="w:gz", compresslevel=6) as tar:
            for path in entries(source, without):
                inside = pathlib.PurePosixPath(source.name, path.relative_to(source).as_posix())
                try:
                    info = tar.gettarinfo(str(path), str(inside))
                except FileNotFoundError:
                    continue  # removed since its folder was read
                if info is None:
                    print("left out, a socket: %s" % path, file=sys.stderr)
                elif info.isreg():
                    with open(str(path), "rb") as file:
                        tar.addfile(info, file)
                    files += 1
                else:
                    tar.addfile(info)
                    files += info.islnk()
        raw.flush()
        os.fsync(raw.fileno())
    return files


def archives(folder, name):
    """The archives of one name, oldest first."""
    found = []
    for path in folder.iterdir():
        match = ARCHIVE.match(path.name)
        if match and match.group("name") == name:
            found.append((match.group("run"), int(match.group("attempt")), path))
    return [path for _, _, path in sorted(found)]


def backup(source=None, name=None, keep=7):
    """Archives `source` and removes all but the newest `keep` archives of the same name."""
    whole_number("keep", keep)
    if source is None:
        folder = programs().resolve()
        name = name or "Programs"
    else:
        if not isinstance(source, str) or not source:
            raise ValueError("source: expected the path of a folder, found %r" % (source,))
        folder = (programs() / source).resolve()
        name = name or name_of(folder)
    if not isinstance(name, str) or not NAME.match(name):
        raise ValueError("name: expected letters, digits, '.', '_' and '-', at most 64, found %r" % (name,))
    if not folder.is_dir():
        raise FileNotFoundError("source: no such folder: %s" % folder)

    backups = (common() / "Backups").resolve()
    backups.mkdir(parents=True, exist_ok=True)
    for part in backups.glob(".*.part"):
        if part.stat().st_mtime < time.time() - STALE_PART:
            part.unlink()  # left by an attempt that was killed

    target = backups / ("%s.%s.tar.gz" % (name, run_name()))
    part = backups / (".%s.part" % target.name)
    started = time.monotonic()
    try:
        files = archive(folder, part, str(backups))
        os.rename(str(part), str(target))
    except BaseException as error:
        if part.exists():
            part.unlink()
        if isinstance(error, OSError):
            # A file that changed or went while it was read: the job file has this exit code tried again.
            traceback.print_exc()
            sys.exit(TRY_AGAIN)
        raise
    removed = []
    for old in archives(backups, name)[:-keep]:
        old.unlink()
        removed.append("Backups/" + old.name)
    size = target.stat().st_size
    print("%s: %d files, %d bytes, %.1f s" % (target.name, files, size, time.monotonic() - started))
    return {"path": "Backups/" + target.name, "size": size, "files": files, "removed": removed}
