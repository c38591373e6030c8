"""schemas/: what they say of job and trigger files, held against the files of this repository and against the binary."""

import itertools
import json
import os
import pathlib
import subprocess
import sys
import unittest

from support import PROGRAMS, ROOT, Case

try:
    import tomllib
except ImportError:  # before Python 3.11
    tomllib = None
try:
    import jsonschema
except ImportError:
    jsonschema = None

if jsonschema is None:
    print("SKIPPED: the package jsonschema is not installed; the schemas are not tested", file=sys.stderr)

TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
BUILT = sorted((path for path in (TARGET / kind / "orchestrator" for kind in ("debug", "release")) if path.exists()),
               key=lambda path: path.stat().st_mtime)

# Jobs that both refuse. A body is TOML; `file = "a.py"` stands before it unless it says what runs.
BAD_JOBS = [
    "# nothing runs", 'command = []', 'command = [""]', 'command = "ls -l"', 'command = ["a", 5]', 'command = ["a", "\\u0000"]',
    'file = ""', 'file = "/bin/sh"', 'file = "a/../../b"', 'file = ".."', 'file = "a/"', 'file = "."', 'file = 5',
    'file = "a.py"\ncommand = ["b"]', 'function = "f"\ncommand = ["b"]', 'file = "a.sh"\nfunction = "f"',
    'function = "a.b"', 'function = "1a"', 'function = ""', 'function = "a b"',
    'type = "dayly"', 'type = 1', 'agrs = []', 'limits = {memory = 5}', 'limits = {cores = 1}', 'limits = 5', 'docker = "x"', 'docker = {}', 'docker = {image = ""}',
    'docker = {image = "x", privileged = true}', 'docker = {image = "x", network = "host"}', 'docker = {image = "x", volumes = ["/a"]}',
    'docker = {image = "x", labels = {"aios.run" = "x"}}', 'docker = {image = "x", gpus = 0}', 'docker = {image = "x", entrypoint = []}',
    'docker = {image = "x", keep_warm = "0s"}', 'docker = {image = "x", keep_warm = 5}', 'docker = {image = "x", engine = "nomad"}',
    'docker = {image = "x", engine = "swarm"}', 'docker = {image = "x", engine = "swarm", network = "none"}',
    'docker = {image = "x", engine = "swarm", network = "b", gpus = 1}', 'docker = {image = "x", engine = "swarm", network = "b", pull = "never"}',
    'docker = {image = "x", engine = "swarm", network = "b", keep_warm = "1m"}',
    'args = 5', 'args = ["\\u0000"]', 'kwargs = []',
    'env = ["a"]', 'env = {A = 5}', 'env = {"A=B" = "x"}', 'env = {AIOS_JOB = "x"}', 'env = {"" = "x"}', 'env = {A = "secret:a/b"}', 'env = {A = "secret:"}', 'pass_env = "A"',
    'pass_env = ["AIOS_X"]', 'tags = "gpu"', 'tags = ["a b"]', 'tags = ["-a"]', 'priority = 1000', 'priority = "high"',
    'slots = -1', 'slots = 1001', 'overlap = "skp"', 'retries = 1001', 'retries = "3"', 'retry_on = 5', 'retry_on = [1, 256]',
    'retry_elsewhere = 1', 'backoff = 5', 'backoff = "5"', 'backoff_max = "1.5s"', 'timeout = "0s"', 'timeout = "1w"',
    'stop_grace = 1979-05-27', 'on_lost = "retry"', 'enabled = "yes"', 'pool = "a b"', 'pool = 5', 'after = "a"',
    'on_success = ["a b"]', 'on_failure = [1]', 'notify = "ftp://x"', 'notify = "https:///x"', 'notify = "https://a b"',
    'type = "daily"', 'time = "09:00"', 'type = "daily"\ntime = "25:61"', 'type = "daily"\ntime = "9:00"',
    'type = "daily"\ntime = 09:00:00', 'type = "daily"\ntime = "09:00"\ninstances = 2',
    'type = "daily"\ntime = "09:00"\nmissed = "never"', 'type = "interval"', 'type = "interval"\ninterval = "0s"',
    'type = "interval"\ninterval_minutes = 0', 'type = "interval"\ninterval = "1h"\ninterval_minutes = 5',
    'type = "interval"\ninterval = "1h"\ntimezone = "UTC"', 'type = "random_daily"\nafter_time = "10:00"',
    'type = "random_daily"\nafter_time = "10:00"\nbefore_time = "11:00"\njitter = "1m"', 'type = "cron"', 'type = "cron"\ncron = ""',
    'type = "cron"\ncron = "0 9 * * *"\ntimezone = ""', 'type = "always"\ninstances = 0', 'type = "always"\ninstances = "all"',
    'type = "always"\nafter = ["a"]', 'type = "idle"\nafter = []', 'type = "trigger"\ninstances = 1',
]
# Values of all sorts for every key: what the binary takes the schema must take, and the other way round but for what it cannot say.
VALUES = [
    '0', '1', '-1', '999', '1000', '1e2', '1.5', '0.5', '0.001', 'true', '""', '"a"', '"a-b_c.1"', '"every"', '"once"', '"skip"', '"allow"', '"rerun"',
    '"daily"', '"trigger"', '"09:00"', '"23:59:59"', '"0s"', '"005m"', '"250ms"', '"10000d"', '"a.py"', '"b/./c"', '"..a"', '"a//b"', '".a"',
    '"a\\nb"', '"ünïcode"', '"_x1"', '"UTC"', '"America/Argentina/Buenos_Aires"', '"Etc/GMT+5"', '"@daily"', '"0 9 L * *"',
    '"*/5 * * * *"', '"http://h"', '"https://h:1/x?y#z"', '"http://[::1]/"', '[]', '["a"]', '["a", "a"]', '["A_B", "lower"]', '["", "a"]',
    '{A = "secret:a.b", B = " secret:!"}', '"64m"', '"all"', '"host"', '"bridge"', '"1000:1000"', '"never"', '"swarm"', '["/a:/b:ro"]', '["c:/d", "/e:/f"]', '["a:b:c:d"]', '["/t:size=1m"]',
    '[""]', '["a\\nb"]', '[0, 255]', '[1, "x", 1.5, [true], {a = 1}, 1979-05-27]', '{}', '{a = 1}', '{A = "x", "b c" = ""}', '{a = {b = [1.50]}}',
]
NEEDS = {None: {}, "always": {}, "idle": {}, "daily": {"time": '"09:00"'}, "interval": {"interval": '"1h"'}, "cron": {"cron": '"0 9 * * *"'},
         "random_daily": {"after_time": '"10:00"', "before_time": '"11:00"'}}
# What the binary says of values that no schema can tell from good ones.
UNSAYABLE = [
    "expected five or six fields", "which never occurs", "expected the name of a time zone", "expected at least 1 s and at most 10000 days",
    "expected less than the interval", "the window has length 0", "expected at least `backoff`",
    # What other files have, no schema of one file knows.
    "expected a pool of Programs/pools.toml", "expected a job of Programs/",
    "at least 6m", "expected a number from 0.01 to 1024", "expected more than 0 and at most 1d",
    # JSON knows no whole number but as a float without a part, TOML does.
    "is a float (1e2), expected an integer", "is a float (1e2), expected a number from",
]
BAD_TRIGGERS = [
    [], "x", {}, {"job": "hello", "command": ["a"]}, {"job": "hello", "job_name": "hello"}, {"job": "a b"}, {"job": 7}, {"job": None},
    {"command": []}, {"command": [""]}, {"command": ["a", 1]}, {"command": "ls"}, {"command": ["a\0"]}, {"job": "hello", "arsg": []},
    {"job": "hello", "args": {}}, {"job": "hello", "args": ["\0"]}, {"job": "hello", "kwargs": []}, {"job": "hello", "priority": 1000},
    {"job": "hello", "priority": "1"}, {"job": "hello", "priority": 1.5}, {"job": "hello", "tags": "gpu"}, {"job": "hello", "tags": ["a b"]},
    {"job": "hello", "time": "tomorrow"}, {"job": "hello", "time": "2026-11-21T09:00:00"}, {"job": "hello", "time": None},
    {"job": "hello", "expires": "immediate"}, {"job": "hello", "expires": 5}, {"job": "hello", "timeout": "0s"}, {"job": "hello", "timeout": 5}, {"job": "hello", "timeout": "soon"}, {"job": "hello", "id": ""}, {"job": "hello", "id": "x" * 257},
    {"job": "hello", "docker": {"image": "x"}}, {"command": ["a"], "docker": {}}, {"command": ["a"], "docker": "x"},
    {"command": ["a"], "docker": {"image": "x", "privileged": True}}, {"command": ["a"], "docker": {"image": "x", "pull": "often"}},
    {"command": ["a"], "docker": {"image": "x", "keep_warm": "1m"}},
]
GOOD_TRIGGERS = [
    {"job_name": "hello"}, {"job": "hello", "time": "immediate"}, {"job": "hello", "time": "2126-11-21t09:00:00.123456z"},
    {"job": "hello", "time": "2126-11-21 09:00:00+01:00", "expires": "2127-11-21T09:00:00-00:30"}, {"job": "hello", "id": "x" * 256, "args": [None, 1e3]}, {"job": "hello", "timeout": "90m"},
    {"job": "hello", "args": [], "kwargs": {"": None, "a": "\0"}, "tags": ["a", "a"], "priority": -999}, {"command": ["a", ""]},
    {"command": ["a"], "docker": {"image": "h:5000/a/b@sha256:00", "volumes": ["c:/d:ro"], "gpus": 2, "tmpfs": [], "labels": {"a": ""}}},
]


def schema(kind):
    return json.loads((ROOT / "schemas" / (kind + ".schema.json")).read_text(encoding="utf-8"))


def takes(kind):
    """Whether a value follows a schema."""
    validator = jsonschema.Draft202012Validator(schema(kind))
    return validator.is_valid


@unittest.skipIf(jsonschema is None, "needs the package jsonschema: python3 -m pip install jsonschema")
class Schemas(Case):
    def setUp(self):
        super().setUp()
        self.programs = self.folder / "Programs"
        self.programs.mkdir()
        (self.common / ".volume").write_text("0123456789abcdef\n")
        (self.common / "Triggers").mkdir()
        (self.common / "Devices").mkdir()

    def binary(self, *words):
        if not BUILT:
            self.skipTest("the binary is not built: ./debug.sh build")
        command = [str(BUILT[-1]), "--json", "--common", str(self.common), "--programs", str(self.programs)] + list(words)
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
        return json.loads(done.stdout)

    def refused_jobs(self, bodies):
        """What the binary says of those jobs whose files it refuses, by their numbers."""
        for number, body in enumerate(bodies):
            (self.programs / ("j%d.toml" % number)).write_text(body + "\n", encoding="utf-8")
        for name in ("a.py", "a"):
            (self.programs / name).write_text("def f(): pass\n")
        told = self.binary("jobs", "validate")["errors"]
        # That a program is not there is no matter of the file's words.
        refused = {}
        for error in told:
            if not error["error"].startswith(("file: ", "command: ")):
                refused.setdefault(int(error["job"][1:]), []).append(error["error"])
        return refused

    def test_the_schemas_are_schemas(self):
        for kind in ("job", "trigger"):
            jsonschema.Draft202012Validator.check_schema(schema(kind))

    @unittest.skipIf(tomllib is None, "reads TOML with Python 3.11")
    def test_every_job_and_example_follows_its_schema(self):
        jobs, triggers = sorted(PROGRAMS.glob("*.toml")), sorted((ROOT / "examples" / "triggers").glob("*.json"))
        self.assertTrue(jobs and triggers)
        for path in jobs:
            with self.subTest(path.name):
                job = tomllib.loads(path.read_text(encoding="utf-8"))
                jsonschema.validate(job, schema("job"), jsonschema.Draft202012Validator)
        for path in triggers:
            with self.subTest(path.name):
                trigger = json.loads(path.read_text(encoding="utf-8"))
                jsonschema.validate(trigger, schema("trigger"), jsonschema.Draft202012Validator)

    @unittest.skipIf(tomllib is None, "reads TOML with Python 3.11")
    def test_bad_jobs_are_refused_by_both(self):
        runs = ("#", "command", "file", "function = \"f\"\ncommand")
        bodies = [body if body.startswith(runs) else 'file = "a.py"\n' + body for body in BAD_JOBS]
        refused, is_good = self.refused_jobs(bodies), takes("job")
        for number, body in enumerate(bodies):
            with self.subTest(body):
                self.assertFalse(is_good(tomllib.loads(body)), "the schema takes it")
                self.assertIn(number, refused, "the binary takes it")

    @unittest.skipIf(tomllib is None, "reads TOML with Python 3.11")
    def test_jobs_are_judged_alike_by_both(self):
        bodies = []
        for key, value, kind in itertools.product(schema("job")["properties"], VALUES, NEEDS):
            job = dict(NEEDS[kind], file='"a.py"', **({"type": '"%s"' % kind} if kind else {}))
            for gone in {"command": ["file"], "interval_minutes": ["interval"], "interval_seconds": ["interval"]}.get(key, []):
                job.pop(gone, None)
            job[key] = value
            bodies.append("\n".join("%s = %s" % line for line in job.items()))
        # Tables with keys of their own.
        for table, needs in {"docker": 'image = "x", ', "limits": ""}.items():
            for key, value in itertools.product(schema("job")["properties"][table]["properties"], VALUES):
                body = '%s = {%s%s = %s}' % (table, "" if key == "image" else needs, key, value)
                bodies.append('file = "a.py"\n%s' % body)
        refused, is_good = self.refused_jobs(bodies), takes("job")
        self.assertGreater(len(bodies) - len(refused), 800)
        for number, body in enumerate(bodies):
            with self.subTest(body):
                told = refused.get(number, [])
                if is_good(tomllib.loads(body)):
                    # Refused all the same: then each time for a reason that a schema has no words for.
                    self.assertEqual([why for why in told if not any(reason in why for reason in UNSAYABLE)], [])
                else:
                    self.assertNotEqual(told, [])

    def test_triggers_are_judged_alike_by_both(self):
        for number, trigger in enumerate(BAD_TRIGGERS + GOOD_TRIGGERS):
            (self.common / "Triggers" / ("t%d.json" % number)).write_text(json.dumps(trigger), encoding="utf-8")
        (self.programs / "hello.toml").write_text('file = "a.py"\n')
        waiting = {it["trigger"]: it["reason"] for it in self.binary("status")["waiting"]}
        is_good = takes("trigger")
        for number, trigger in enumerate(BAD_TRIGGERS + GOOD_TRIGGERS):
            with self.subTest(json.dumps(trigger)):
                expected = number >= len(BAD_TRIGGERS)
                self.assertEqual(is_good(trigger), expected, "the schema")
                refused = waiting["t%d.json" % number].startswith("it cannot be taken")
                self.assertEqual(not refused, expected, "the binary: " + waiting["t%d.json" % number])


if __name__ == "__main__":
    unittest.main()
