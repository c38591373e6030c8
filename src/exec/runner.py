"""Calls one Python function as one attempt: python3 -u -c <this text> <absolute file> <function>.

The return value goes to $AIOS_RESULT as JSON, or as a JSON string of its repr() where JSON cannot hold it. An exception
ends with its traceback, exit code 1 and one line in $AIOS_RESULT.error. Runs on Python 3.8 and newer.
"""

import sys

# What Python holds before anything is imported here: a job's file of such a name must not take its place.
HELD = frozenset(sys.modules) | frozenset(sys.builtin_module_names)
# The working folder is Programs/: a json.py there must not become the json of this text.
sys.path[:] = [entry for entry in sys.path if entry]

import importlib.machinery
import importlib.util
import json
import os

# Read once: the function may change its environment and its working folder.
RESULT = os.path.abspath(os.environ["AIOS_RESULT"]) if os.environ.get("AIOS_RESULT") else None


class FreshLoader(importlib.machinery.SourceFileLoader):
    """Compiles the file as it is now: cached bytecode cannot tell two edits within one second apart."""

    def get_code(self, fullname):
        return self.source_to_code(self.get_data(self.path), self.path)


def write(path, data):
    """Writes a file so that it appears whole or not at all."""
    part = "%s.%d.part" % (path, os.getpid())
    try:
        with open(part, "wb") as file:
            file.write(data)
        os.replace(part, path)
    except BaseException:
        try:
            os.unlink(part)
        except OSError:
            pass
        raise


def record(message):
    """Leaves the reason of a failure where the orchestrator finds it: one line. What of it is shown is cut there, once it is masked."""
    line = " ".join("".join(c if c.isprintable() else " " for c in message[:20000]).split())
    if RESULT:
        try:
            write(RESULT + ".error", line.encode("utf-8", "backslashreplace"))
        except OSError as error:
            print("runner: cannot record the error: %s" % error, file=sys.stderr)


def fail(message):
    """Ends the attempt before its function could be called."""
    print("runner: %s" % message, file=sys.stderr)
    record(message)
    sys.exit(1)


def describe(error):
    """An exception as the last line of its traceback shows it, but never a note or half a message."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else "%s.%s" % (kind.__module__, kind.__qualname__)
    try:
        text = str(error)
    except Exception:
        text = "<exception str() failed>"
    return "%s: %s" % (name, text) if text else name


def print_exception(kind, error, trace):
    """The traceback from the job's own first line on; what called it is of no use to its author."""
    while trace is not None:
        frame = trace.tb_frame
        ours = frame.f_globals is globals()
        loader = frame.f_code.co_filename.startswith("<frozen importlib")
        loop = str(frame.f_globals.get("__name__")).split(".")[0] == "asyncio"
        if not (ours or loader or loop):
            break
        trace = trace.tb_next
    sys.__excepthook__(kind, error.with_traceback(trace), trace)


def argument(name, key, kind, default):
    """One of the two arguments: from its variable, or where it was too large for one from the trigger and the job's own."""
    source, value = name, os.environ.get(name)
    try:
        if value is not None:
            value = json.loads(value)
        elif os.environ.get("AIOS_TRIGGER"):
            source = os.environ["AIOS_TRIGGER"]
            with open(source, encoding="utf-8-sig") as file:
                value = json.load(file)
            if not isinstance(value, dict):
                fail("%s: expected a JSON object, found %s" % (source, type(value).__name__))
            value = value.get(key)
            default = json.loads(default)
            value = {**default, **(value or {})} if kind is dict else default if value is None else value
    except (OSError, ValueError, RecursionError) as error:
        fail("%s: cannot read %s: %s" % (source, key, error))
    if value is None:
        return kind()
    if not isinstance(value, kind):
        fail("%s: %s: expected %s, found %s" % (source, key, kind.__name__, type(value).__name__))
    return value


def load(path, name):
    """The function `name` of the file, imported under the file's own name so that it can be pickled."""
    if not os.path.isfile(path):
        fail("%s: no such file" % path)
    stem = os.path.splitext(os.path.basename(path))[0]
    module_name = "job_" + stem if stem in HELD else stem
    spec = importlib.util.spec_from_file_location(module_name, path, loader=FreshLoader(module_name, path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    module = sys.modules.get(module_name, module)
    try:
        function = getattr(module, name)
    except AttributeError:
        import difflib

        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(name, known, 1)
        fail("%s: no function %r%s" % (path, name, "; the nearest is %r" % near[0] if near else ""))
    if not callable(function):
        fail("%s: %r is no function but %s" % (path, name, type(function).__name__))
    return function


async def wait(awaitable):
    return await awaitable


def encode(value):
    """The value as strict JSON in UTF-8, or its repr() as a JSON string."""
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError):
        pass
    try:
        text = repr(value)
    except Exception as error:
        text = "<%s whose repr() failed: %s>" % (type(value).__name__, describe(error))
    return json.dumps(text.encode("utf-8", "backslashreplace").decode("utf-8"), ensure_ascii=False).encode("utf-8")


def main():
    if len(sys.argv) not in (3, 5):
        fail("expected a file, a function and perhaps its job's args and kwargs, found %d arguments" % (len(sys.argv) - 1))
    path, name, own_args, own_kwargs = (sys.argv[1:] + ["[]", "{}"])[:4]
    path = os.path.abspath(path)
    args = argument("AIOS_ARGS", "args", list, own_args)
    kwargs = argument("AIOS_KWARGS", "kwargs", dict, own_kwargs)
    first = [os.path.dirname(path), os.path.abspath(os.environ.get("AIOS_PROGRAMS") or os.getcwd())]
    sys.path[:] = list(dict.fromkeys(first + sys.path))
    sys.argv[:] = [path]
    sys.excepthook = print_exception
    try:
        value = load(path, name)(*args, **kwargs)
        if hasattr(type(value), "__await__"):
            import asyncio

            value = asyncio.run(wait(value))
        # A function that wrote its result itself and returns nothing keeps what it wrote.
        if RESULT and not (value is None and os.path.exists(RESULT)):
            write(RESULT, encode(value))
    except SystemExit as error:
        if error.code is not None and not isinstance(error.code, int):
            record(str(error.code))
        raise
    except BaseException as error:
        record(describe(error))
        raise


if __name__ == "__main__":
    main()
