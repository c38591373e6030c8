"""The HTTP API of the real binary, asked at random by a public tester of OpenAPI descriptions (schemathesis).

Skipped where that is not installed; `.ci/run` installs it.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("ORCHESTRATOR", ROOT / "target" / "debug" / "orchestrator"))
TESTER = shutil.which("schemathesis") or shutil.which("st", path=str(pathlib.Path(sys.executable).parent))
PATIENCE = 60

# What no description can say is no failure: that a time has passed, a name is taken, or two keys exclude one another.
UNSAID = "positive_data_acceptance"

# A stream does not end, and the password form is asked at random elsewhere: its tries are limited.
SETTINGS = """
[[operations]]
include-path = "/api/v1/logs"
parameters = { follow = "false" }

[[operations]]
include-path = "/api/v1/runs/{id}/log"
parameters = { follow = "false" }

[[operations]]
include-path = "/api/v1/system/monitor_resources"
parameters = { follow = "false" }

[[operations]]
include-path = "/api/v1/trigger/{job}"
parameters = { wait = "1s" }
"""


@unittest.skipUnless(BINARY.exists(), "the binary is not built")
class Api(unittest.TestCase):
    def setUp(self):
        self.home = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.home, True)
        programs = self.home / "Programs"
        programs.mkdir()
        (programs / "hello.toml").write_text('command = ["echo", "hello"]\n')
        env = {**os.environ, "AIOS_HTTP": "127.0.0.1:0", "AIOS_HTTP_RATE": "0", "DEVICE_ID": "main", "DOCKER_HOST": "none"}
        self.said = self.home / "said"
        with self.said.open("w") as said:
            self.device = subprocess.Popen([BINARY, "run", "--common", self.home / "Common", "--programs", programs], env=env,
                                           stdout=said, stderr=said, stdin=subprocess.DEVNULL)
        self.addCleanup(self.stop)
        end = time.monotonic() + PATIENCE
        while True:
            said = self.said.read_text()
            url, key = re.search(r"url=(\S+)", said), re.search(r"aios_\w+", said)
            if url and key:
                break
            self.assertLess(time.monotonic(), end, said)
            time.sleep(0.05)
        self.url, self.key = url[1], key[0]

    def stop(self):
        self.device.terminate()
        self.device.wait(PATIENCE)

    def test_the_description_holds_for_what_is_asked_at_random(self):
        if not TESTER:
            if os.environ.get("CI"):
                self.fail("schemathesis is not installed")
            self.skipTest("schemathesis is not installed")
        (self.home / "schemathesis.toml").write_text(SETTINGS)
        asked = subprocess.run(
            [TESTER, "run", self.url + "/api/openapi.json", "-H", "Authorization: Bearer " + self.key,
             "--exclude-path-regex", "(events|token)$", "--exclude-checks", UNSAID, "--max-examples", "15", "--seed", "20261121",
             "--suppress-health-check", "all", "--request-timeout", "30", "--no-color"],
            cwd=self.home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        self.assertEqual(asked.returncode, 0, asked.stdout[-20_000:])
        tested = re.search(r"Tested: (\d+)", asked.stdout)
        self.assertGreaterEqual(int(tested[1]), 40, asked.stdout)
        self.assertIsNone(self.device.poll(), self.said.read_text())

    def test_the_description_is_one(self):
        with urllib.request.urlopen(self.url + "/api/openapi.json") as answer:
            description = json.load(answer)
        self.assertEqual(description["openapi"], "3.1.0")
        names = [operation["operationId"] for path in description["paths"].values() for operation in path.values()
                 if isinstance(operation, dict) and "operationId" in operation]
        self.assertEqual(len(names), len(set(names)), "each operation has a name of its own")
        text = json.dumps(description)
        used = set(re.findall(r"#/components/schemas/(\w+)", text))
        self.assertEqual(used - set(description["components"]["schemas"]), set())


if __name__ == "__main__":
    unittest.main()
