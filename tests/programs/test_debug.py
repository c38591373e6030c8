"""debug.sh: starting, stopping and cleaning, with a stand-in for the binary."""

import os
import pathlib
import subprocess
import sys
import time

from support import ROOT, Case

# Speaks as much of the command line as debug.sh uses.
STAND_IN = """\
#!%s
import json, os, pathlib, signal, sys, time
common = pathlib.Path(os.environ["AIOS_COMMON"])
devices = common / "Devices"
if sys.argv[1] == "run":
    name = sys.argv[3]
    if name == "taken":
        print("error: taken")
        sys.exit(5)
    devices.mkdir(parents=True, exist_ok=True)
    if name == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (devices / (name + ".json")).write_text(json.dumps({"device": name, "pid": os.getpid(), "tags": os.environ.get("DEVICE_TAGS")}))
    script = os.environ["AIOS_STARTED_WITH"]
    print("ready     device " + name)
    print("next      try an example    " + script + " trigger hello")
    print("          stop              " + script + " down", flush=True)
    time.sleep(60)
elif sys.argv[1] == "devices":
    found = []
    for path in devices.glob("*.json"):
        try:
            stat = pathlib.Path("/proc/%%d/stat" %% json.loads(path.read_text())["pid"]).read_text()
            alive = stat.rsplit(")", 1)[1].split()[0] != "Z"
        except OSError:
            alive = False
        found.append({"device": path.stem, "alive": alive})
    print(json.dumps(found, indent=1))
else:
    print("asked:", *sys.argv[1:])
""" % sys.executable


class Debug(Case):
    def setUp(self):
        super().setUp()
        # A copy, so that process numbers of the real checkout are left alone.
        self.root = self.folder / "checkout with a space"
        (self.root / "examples" / "triggers").mkdir(parents=True)
        for name in ("debug.sh", "Cargo.toml", "examples/triggers/hello.json"):
            (self.root / name).write_bytes((ROOT / name).read_bytes())
        (self.root / "debug.sh").chmod(0o755)
        self.binary = self.folder / "stand-in"
        self.binary.write_text(STAND_IN)
        self.binary.chmod(0o755)
        self.addCleanup(self.end_all)

    def debug(self, *words, **changes):
        env = {"PATH": os.environ["PATH"], "AIOS_COMMON": str(self.common), "AIOS_PROGRAMS": str(self.folder),
               "ORCHESTRATOR": str(self.binary), "DEVICE_ID": "first", "DOWN_SECONDS": "20",
               # No engine answers there: what containers are for is tested in tests/container.
               "AIOS_HTTP": "none", "DOCKER_HOST": "unix://" + str(self.folder / "no-engine.sock")}
        env.update(changes)
        done = subprocess.run([str(self.root / "debug.sh")] + list(words), cwd=str(self.folder), env=env, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", timeout=60)
        return done.returncode, done.stdout

    def pids(self):
        return {path.stem: int(path.read_text().split()[0]) for path in (self.root / ".run").glob("*.pid")}

    def end_all(self):
        for pid in self.pids().values():
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                pass

    def test_up_twice_and_down(self):
        code, out = self.debug("up", DEVICE_TAGS="gpu")
        self.assertEqual(code, 0, out)
        self.assertIn("first is alive", out)
        self.assertIn("./debug.sh trigger hello", out)
        self.assertIn('"tags": "gpu"', (self.common / "Devices" / "first.json").read_text())
        before = self.pids()
        code, out = self.debug("up")
        self.assertEqual((code, self.pids()), (0, before))
        self.assertIn("already runs", out)
        self.assertEqual(self.debug("up", "second")[0], 0)
        self.assertEqual(sorted(self.pids()), ["first", "second"])
        code, out = self.debug("down", "second")
        self.assertEqual((code, sorted(self.pids())), (0, ["first"]), out)
        self.assertIn("second: stopped", out)
        self.assertEqual(self.debug("down")[0], 0)
        self.assertEqual(self.pids(), {})
        self.assertIn("nothing runs", self.debug("down")[1])

    def test_up_says_why_a_device_ended(self):
        code, out = self.debug("up", "taken")
        self.assertEqual(code, 5)
        self.assertIn("a living device has this id", out)
        self.assertEqual(self.pids(), {})

    def test_a_number_that_another_process_has_now_is_not_the_device(self):
        (self.root / ".run").mkdir()
        (self.root / ".run" / "first.pid").write_text("%d 1\n" % os.getpid())
        code, out = self.debug("down")
        self.assertEqual(code, 0, out)
        self.assertIn("first: stopped", out)

    def test_stubborn_device_is_killed(self):
        self.assertEqual(self.debug("up", "stubborn")[0], 0)
        code, out = self.debug("down", DOWN_SECONDS="1")
        self.assertEqual(code, 1)
        self.assertIn("still running after 1 s: stubborn", out)
        pid = self.pids()["stubborn"]
        code, out = self.debug("kill", "stubborn")
        self.assertEqual(code, 0, out)
        for _ in range(200):
            try:
                if " Z " in pathlib.Path("/proc/%d/stat" % pid).read_text():
                    break
            except (FileNotFoundError, ProcessLookupError):
                break
            time.sleep(0.1)
        else:
            self.fail("still there")
        self.assertEqual(self.debug("kill", "stubborn")[0], 3)

    def test_restart(self):
        self.assertEqual(self.debug("up")[0], 0)
        before = self.pids()
        code, out = self.debug("restart")
        self.assertEqual(code, 0, out)
        self.assertNotEqual(self.pids(), before)

    def test_trigger(self):
        code, out = self.debug("trigger")
        self.assertEqual(code, 0, out)
        (dropped,) = (self.common / "Triggers").iterdir()
        self.assertEqual(dropped.read_bytes(), (ROOT / "examples/triggers/hello.json").read_bytes())
        code, out = self.debug("trigger", "../../etc/passwd")
        self.assertEqual(code, 3)
        self.assertIn("there are: hello", out)

    def test_clean(self):
        for name in ("Results/2026-11-21/a.json", "Triggers/wait.json", "Backups/a.tar.gz", "mine.txt", "state.json", ".kept"):
            path = self.common / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        code, out = self.debug("clean")
        self.assertEqual(code, 2)
        self.assertTrue((self.common / "Results").exists())
        self.assertEqual(self.debug("up")[0], 0)
        code, out = self.debug("clean", "--yes")
        self.assertEqual(code, 1)
        self.assertIn("device first runs", out)
        self.assertEqual(self.debug("down")[0], 0)
        code, out = self.debug("clean", "--yes")
        self.assertEqual(code, 0, out)
        left = sorted(path.name for path in self.common.iterdir())
        self.assertEqual(left, [".kept", "Backups", "Devices", "Triggers", "mine.txt", "state.json"])
        self.assertEqual(self.debug("clean", "--yes", "--all")[0], 0)
        self.assertEqual([path.name for path in self.common.iterdir()], ["mine.txt"])
        self.assertEqual(self.debug("clean", "--wrong")[0], 2)

    def test_clean_with_a_living_device_elsewhere(self):
        (self.common / "Devices").mkdir()
        (self.common / "Devices" / "other.json").write_text('{"pid": %d}' % os.getpid())
        (self.common / "Results").mkdir()
        code, out = self.debug("clean", "--yes")
        self.assertEqual(code, 1)
        self.assertIn("devices still live", out)

    def test_other_verbs(self):
        self.assertIn("asked: status", self.debug("status")[1])
        self.assertIn("asked: logs -f", self.debug("logs")[1])
        self.assertIn("asked: --test", self.debug("selftest")[1])
        self.assertIn("waiting in Triggers", self.debug("state")[1])
        self.assertEqual(self.debug("nonsense")[0], 2)
        self.assertEqual(self.debug("menu")[0], 2)
        self.assertIn("usage:", self.debug()[1])
        self.assertEqual(self.debug("up", "bad id")[0], 2)

    def test_paths_mean_what_they_mean_to_the_caller(self):
        code, out = self.debug("trigger", AIOS_COMMON="Elsewhere")
        self.assertEqual(code, 0, out)
        self.assertTrue((self.folder / "Elsewhere" / "Triggers").is_dir())
