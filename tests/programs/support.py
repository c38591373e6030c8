"""Runs programs the way the orchestrator does: in a process of their own, with nothing but the contract's environment."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "Programs"
RUNNER = (ROOT / "src" / "exec" / "runner.py").read_text(encoding="utf-8")


class Ended:
    """What one attempt left behind."""

    def __init__(self, process, result):
        self.code = process.returncode
        self.out = process.stdout
        self.err = process.stderr
        self.result = json.loads(result.read_text(encoding="utf-8")) if result.exists() else None
        self.has_result = result.exists()
        error = result.with_name(result.name + ".error")
        self.error = error.read_text(encoding="utf-8") if error.exists() else None


class Case(unittest.TestCase):
    """A test with a volume of its own."""

    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name).resolve()
        self.common = self.folder / "Common"
        self.common.mkdir()
        self.result = self.folder / "result.json"

    def environment(self, args=(), kwargs=None, programs=PROGRAMS, env=None):
        """The variables a program is given."""
        variables = {
            "PATH": os.environ["PATH"],
            "PYTHONDONTWRITEBYTECODE": "1",
            "LANG": "C.UTF-8",
            "AIOS_JOB": "job",
            "AIOS_RUN_ID": "20261121T034156123Z-k3f9q2",
            "AIOS_ATTEMPT": "1",
            "AIOS_DEVICE_ID": "test-device",
            "AIOS_RESULT": str(self.result),
            "AIOS_COMMON": str(self.common),
            "AIOS_PROGRAMS": str(programs),
            "AIOS_ARGS": json.dumps(list(args)),
            "AIOS_KWARGS": json.dumps(kwargs or {}),
        }
        for name, value in (env or {}).items():
            if value is None:
                variables.pop(name, None)
            else:
                variables[name] = value
        return variables

    def start(self, argv, programs=PROGRAMS, **given):
        """Runs a program to its end."""
        for old in (self.result, self.result.with_name(self.result.name + ".error")):
            if old.exists():
                old.unlink()
        process = subprocess.run(
            argv,
            cwd=str(programs),
            env=self.environment(programs=programs, **given),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            timeout=60,
        )
        return Ended(process, self.result)

    def call(self, file, function, *args, programs=PROGRAMS, env=None, **kwargs):
        """Calls a Python function through the runner."""
        path = str(programs / file)
        argv = [sys.executable, "-u", "-c", RUNNER, path, function]
        return self.start(argv, programs=programs, args=args, kwargs=kwargs, env=env)

    def put_result(self, date, job, attempt=1, run="1", **changes):
        """A result file as the orchestrator writes it."""
        run_id = "%sT000000000Z-aaaaa%s" % (date.replace("-", ""), run)
        result = {
            "schema": 1, "run_id": run_id, "job": job, "attempt": attempt, "device": "test-device", "executor": "native",
            "cause": "trigger", "trigger": job + ".json", "args": [], "kwargs": {}, "priority": 0, "status": "succeeded",
            "final": True, "exit_code": 0, "signal": None, "error": None, "result": None, "result_error": None,
            "created_at": date + "T00:00:00.000Z", "claimed_at": date + "T00:00:00.001Z",
            "started_at": date + "T00:00:00.002Z", "finished_at": date + "T00:00:01.000Z", "duration_ms": 998.0,
            "usage": None, "log": "Logs/%s/%s.%s.%d.log" % (date, job, run_id, attempt), "log_truncated": False,
        }
        result.update(changes)
        folder = self.common / "Results" / date
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / ("%s.%s.%d.json" % (job, run_id, attempt))
        path.write_text(json.dumps(result), encoding="utf-8")
        return path
