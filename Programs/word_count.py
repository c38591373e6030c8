"""Text statistics. A word is a run of letters and digits, with apostrophes and hyphens inside; case does not matter."""

import collections
import re

from common_folder import programs, whole_number

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
CHUNK = 1 << 20


def pieces(file):
    """A file's text in pieces that end between words, so that a file of any size fits into memory."""
    rest = ""
    while True:
        text = file.read(CHUNK)
        if not text:
            break
        text = rest + text
        end = max(text.rfind(" "), text.rfind("\n")) + 1
        # Without a gap in a whole piece it is no text for people: cut where it is.
        if end == 0 and len(text) >= CHUNK:
            end = len(text)
        yield text[:end]
        rest = text[end:]
    if rest:
        yield rest


def measure(path, frequencies):
    """Counts one file; bytes that are no UTF-8 count as one character each."""
    lines = words = characters = 0
    last = "\n"
    with open(str(path), encoding="utf-8", errors="replace", newline="") as file:
        for text in pieces(file):
            if not text:
                continue
            found = WORD.findall(text)
            frequencies.update(word.casefold() for word in found)
            words += len(found)
            characters += len(text)
            lines += text.count("\n")
            last = text[-1]
    return {"lines": lines + (last != "\n"), "words": words, "characters": characters, "bytes": path.stat().st_size}


def checked(name):
    """The file that an argument names."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError("expected the path of a file, found %r" % (name,))
    path = programs() / name
    if path.is_dir():
        raise IsADirectoryError("%s: is a folder, expected a file (looked at %s)" % (name, path))
    if not path.exists():
        raise FileNotFoundError("%s: no such file (looked at %s)" % (name, path))
    if not path.is_file():
        raise ValueError("%s: is no regular file" % name)
    return path


def count(*files, top=10):
    """Counts each file and all of them together."""
    if not files:
        raise ValueError("no file given; hint: name at least one in \"args\"")
    whole_number("top", top, least=0)
    paths = [(name, checked(name)) for name in files]
    frequencies = collections.Counter()
    counted = [dict({"file": name}, **measure(path, frequencies)) for name, path in paths]
    total = {key: sum(one[key] for one in counted) for key in ("lines", "words", "characters", "bytes")}
    # Equal counts in the order of the alphabet, so that equal input gives equal output.
    frequent = sorted(frequencies.items(), key=lambda item: (-item[1], item[0]))[:top]
    for one in counted:
        print("%(file)s: %(lines)d lines, %(words)d words, %(characters)d characters" % one)
    return {"files": counted, "total": total, "distinct_words": len(frequencies), "most_frequent": [{"word": word, "count": n} for word, n in frequent]}
