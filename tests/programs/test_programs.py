"""The programs of Programs/, run for real on a volume of their own."""

import datetime
import http.client
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import unittest

from support import PROGRAMS, ROOT, Case

try:
    import tomllib
except ImportError:  # before Python 3.11
    tomllib = None

TODAY = datetime.datetime.now(datetime.timezone.utc).date().isoformat()


class Jobs(Case):
    @unittest.skipIf(tomllib is None, "reads TOML with Python 3.11")
    def test_every_job_names_what_exists(self):
        known = {"command", "file", "function", "args", "kwargs", "env", "pass_env", "tags", "priority", "overlap", "retries", "retry_on",
                 "backoff", "timeout", "stop_grace", "on_lost", "enabled", "type", "time", "after_time", "before_time"}
        found = sorted(PROGRAMS.glob("*.toml"))
        self.assertEqual(len(found), 8)
        for path in found:
            with self.subTest(path.name):
                job = tomllib.loads(path.read_text(encoding="utf-8"))
                self.assertEqual(set(job) - known, set())
                file = PROGRAMS / (job["file"] if "file" in job else job["command"][-1])
                self.assertTrue(file.is_file())
                if "function" in job:
                    self.assertRegex(file.read_text(encoding="utf-8"), r"(?m)^def %s\(" % job["function"])

    def test_every_example_names_a_job(self):
        for path in sorted((ROOT / "examples" / "triggers").glob("*.json")):
            with self.subTest(path.name):
                trigger = json.loads(path.read_text(encoding="utf-8"))
                self.assertTrue("command" in trigger or (PROGRAMS / (trigger["job"] + ".toml")).is_file())


class Hello(Case):
    def hello(self, *args):
        return self.start(["sh", str(PROGRAMS / "hello.sh")] + list(args))

    def test_greets(self):
        ended = self.hello()
        self.assertEqual(ended.code, 0, ended.err)
        self.assertEqual(ended.result, {"greeting": "Hello, world!", "attempt": 1, "device": "test-device"})
        self.assertEqual(self.hello('a "q" \\ $(id)\n%s é').result["greeting"], 'Hello, a "q" \\ $(id) %s é!')

    def test_counts_seconds(self):
        self.assertIn("1 of 1", self.hello("x", "1").out)
        ended = self.hello("x", "1.5")
        self.assertEqual(ended.code, 2)
        self.assertIn("found '1.5'", ended.err)


class Backup(Case):
    def setUp(self):
        super().setUp()
        self.source = self.folder / "data"
        (self.source / "deep").mkdir(parents=True)
        (self.source / "a.txt").write_text("a")
        (self.source / "deep" / "b.txt").write_text("bb")
        os.symlink("/etc/passwd", str(self.source / "link"))
        os.mkfifo(str(self.source / "fifo"))

    def backup(self, run=0, **kwargs):
        kwargs.setdefault("source", str(self.source))
        env = {"AIOS_RUN_ID": "20261121T03415612%dZ-k3f9q2" % run}
        return self.call("backup.py", "backup", env=env, **kwargs)

    def test_archives_everything_and_follows_nothing(self):
        ended = self.backup()
        self.assertEqual(ended.code, 0, ended.err)
        self.assertEqual((ended.result["files"], ended.result["removed"]), (2, []))
        path = self.common / ended.result["path"]
        self.assertEqual(path.stat().st_size, ended.result["size"])
        with tarfile.open(str(path)) as tar:
            self.assertEqual(tar.getnames(), ["data", "data/a.txt", "data/deep", "data/fifo", "data/link", "data/deep/b.txt"])
            self.assertTrue(tar.getmember("data/link").issym())
            self.assertEqual(tar.extractfile("data/deep/b.txt").read(), b"bb")
        self.assertEqual([p.name for p in path.parent.iterdir()], [path.name])

    def test_keeps_the_newest_of_its_own(self):
        other = self.backup(name="data").result["path"]
        paths = [self.backup(run, keep=2).result["path"] for run in (1, 2)]
        ended = self.backup(3, keep=2)
        self.assertEqual(ended.result["removed"], [paths[0]])
        names = {path.name for path in (self.common / "Backups").iterdir()}
        self.assertEqual(names, {os.path.basename(p) for p in (other, paths[1], ended.result["path"])})

    def test_default_is_programs(self):
        ended = self.call("backup.py", "backup")
        self.assertTrue(ended.result["path"].startswith("Backups/Programs.2026"))

    def test_does_not_archive_the_archives(self):
        self.backup(0)
        ended = self.backup(1, source=str(self.common))
        with tarfile.open(str(self.common / ended.result["path"])) as tar:
            self.assertEqual(tar.getnames(), ["Common"])

    def test_refusals(self):
        for kwargs, said in [
            ({"source": "nowhere"}, "source: no such folder"),
            ({"source": ""}, "source: expected"),
            ({"keep": 0}, "keep: expected a whole number from 1 on, found 0"),
            ({"keep": True}, "keep: expected"),
            ({"name": "../x"}, "name: expected"),
        ]:
            with self.subTest(kwargs):
                ended = self.backup(**kwargs)
                self.assertEqual(ended.code, 1)
                self.assertIn(said, ended.error)

    def test_a_failure_leaves_nothing(self):
        if os.geteuid() == 0:
            self.skipTest("root reads everything")
        (self.source / "a.txt").chmod(0)
        self.assertEqual(self.backup().code, 1)
        self.assertEqual(list((self.common / "Backups").iterdir()), [])


class Health(Case):
    def check(self, **kwargs):
        return self.call("health_check.py", "check", **kwargs)

    def test_measures(self):
        now = datetime.datetime.now(datetime.timezone.utc).isoformat().replace("+00:00", "Z")
        self.put_result(TODAY, "good", finished_at=now)
        self.put_result(TODAY, "bad", run="2", status="failed", error="boom", finished_at=now)
        self.put_result(TODAY, "tried", run="3", status="failed", final=False, finished_at=now)
        self.put_result("2020-01-01", "old", run="4", status="failed")
        ended = self.check(disk_percent=100, memory_percent=100, load_per_cpu=1e9)
        self.assertEqual(ended.code, 0, ended.err)
        self.assertTrue(ended.result["healthy"], ended.result["problems"])
        self.assertEqual((ended.result["runs"]["ended"], ended.result["runs"]["failed"]), (2, 1))
        self.assertEqual(ended.result["runs"]["newest_failed"][0]["error"], "boom")

    def test_thresholds_and_strict(self):
        (self.common / "Results" / TODAY).mkdir(parents=True)
        (self.common / "Results" / TODAY / "torn.json").write_text("{")
        ended = self.check(disk_percent=0, memory_percent=0)
        self.assertFalse(ended.result["healthy"])
        self.assertGreaterEqual(len(ended.result["problems"]), 3)
        self.assertEqual(ended.result["runs"]["unreadable"], 1)
        ended = self.check(disk_percent=0, strict=True)
        self.assertEqual(ended.code, 1)
        self.assertIn("more than 0 %", ended.error)
        self.assertIn("disk_percent: expected a number", self.check(disk_percent="x").error)

    def test_without_proc_and_without_common(self):
        code = "import health_check as h; print(h.memory('/nowhere'), h.disk('/nowhere')['error'] != '')"
        ended = self.start([sys.executable, "-c", code])
        self.assertEqual(ended.out, "None True\n", ended.err)
        self.assertEqual(self.call("health_check.py", "check", env={"AIOS_COMMON": "/nowhere"}).code, 0)


class Report(Case):
    def report(self, date="2026-11-20"):
        return self.call("report.py", "report", date=date)

    def test_a_day(self):
        day = "2026-11-20"
        self.put_result(day, "good")
        self.put_result(day, "flaky", run="2", status="failed", final=False)
        self.put_result(day, "flaky", run="2", attempt=2)
        path = self.put_result(day, "bad", run="3", status="failed", error="| <b>\n# boom `x`")
        self.put_result(day, "open", run="4", status="lost", final=False)
        path.with_name(path.name.replace(".1.json", ".1.superseded.json")).write_text("{}")
        (path.parent / "torn.json").write_text("{")
        ended = self.report()
        self.assertEqual(ended.code, 0, ended.err)
        self.assertEqual(ended.result, {"markdown": "Reports/%s.md" % day, "json": "Reports/%s.json" % day, "runs": 4,
                                        "succeeded": 2, "without_success": 1, "open": 1})
        seen = json.loads((self.common / "Reports" / (day + ".json")).read_text())
        self.assertEqual((seen["superseded"], seen["unreadable"]), (1, ["torn.json"]))
        text = (self.common / "Reports" / (day + ".md")).read_text()
        self.assertIn("| flaky | 1 | 2 | 1 succeeded | 0 |", text)
        self.assertIn("\\| \\<b\\> # boom \\`x\\`", text)
        self.report()
        self.assertEqual((self.common / "Reports" / (day + ".md")).read_text(), text)
        self.assertEqual(len(list((self.common / "Reports").iterdir())), 2)

    def test_an_empty_day_and_wrong_dates(self):
        self.assertEqual(self.report("yesterday").result["runs"], 0)
        for date in ("2026-13-01", "../x", 7, "2026-11-20\n"):
            ended = self.report(date)
            self.assertEqual(ended.code, 1)
            self.assertIn("date: expected", ended.error)


class WordCount(Case):
    def put(self, text, name="a.txt"):
        path = self.folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        return str(path)

    def test_counts(self):
        path = self.put("One two, TWO;\r\nit's well-known: naïve 3\nlast")
        ended = self.call("word_count.py", "count", path, top=2)
        self.assertEqual(ended.code, 0, ended.err)
        self.assertEqual(ended.result["total"], {"lines": 3, "words": 8, "characters": 44, "bytes": 45})
        self.assertEqual(ended.result["most_frequent"], [{"word": "two", "count": 2}, {"word": "3", "count": 1}])

    def test_several_files_the_sample_and_odd_bytes(self):
        ended = self.call("word_count.py", "count", "samples/lighthouse.txt", self.put(b"\xff x"), self.put("", "empty"))
        self.assertEqual(ended.result["files"][0]["file"], "samples/lighthouse.txt")
        self.assertEqual(ended.result["files"][1]["words"], 1)
        self.assertEqual(ended.result["files"][2], {"file": str(self.folder / "empty"), "lines": 0, "words": 0, "characters": 0, "bytes": 0})
        self.assertEqual(ended.result["most_frequent"][0]["word"], "the")

    def test_words_across_pieces(self):
        ended = self.call("word_count.py", "count", self.put("word " * 500000), top=1)
        self.assertEqual(ended.result["most_frequent"], [{"word": "word", "count": 500000}])
        self.assertEqual(self.call("word_count.py", "count", self.put("x" * 3000000)).result["total"]["characters"], 3000000)

    def test_refusals(self):
        os.mkfifo(str(self.folder / "fifo"))
        for args, said in [((), "no file given"), (("none.txt",), "none.txt: no such file"), ((str(self.folder),), "is a folder"),
                           ((7,), "found 7"), ((str(self.folder / "fifo"),), "no regular file")]:
            with self.subTest(args):
                ended = self.call("word_count.py", "count", *args)
                self.assertEqual(ended.code, 1)
                self.assertIn(said, ended.error)


class IdleTask(Case):
    def idle(self, **kwargs):
        return self.start([sys.executable, "-u", str(PROGRAMS / "idle_task.py")], kwargs=kwargs)

    def test_goes_on_where_it_stopped(self):
        for run in "1234":
            self.put_result("2026-11-2" + run, "job", run=run)
        checked = []
        for _ in range(3):
            ended = self.idle(files=2)
            self.assertEqual(ended.code, 0, ended.err)
            checked.append((ended.result["checked"], ended.result["finished_round"]))
        self.assertEqual(checked, [(2, False), (2, True), (2, False)])
        self.assertEqual(self.idle().result["checked"], 2)

    def test_finds_damage(self):
        (self.common / "IdleTask").mkdir()
        (self.common / "IdleTask" / "position.json").write_text("nonsense")
        self.put_result(TODAY, "good").with_name("torn.json").write_text("{")
        archive = self.common / self.call("backup.py", "backup").result["path"]
        data = archive.read_bytes()
        archive.with_name("cut.tar.gz").write_bytes(data[: len(data) // 2])
        archive.with_name("flipped.tar.gz").write_bytes(data[:-6] + bytes([data[-6] ^ 1]) + data[-5:])
        ended = self.idle()
        self.assertEqual(ended.code, 1)
        self.assertEqual([one["file"] for one in ended.result["damaged"]],
                         ["Backups/cut.tar.gz", "Backups/flipped.tar.gz", "Results/%s/torn.json" % TODAY])
        self.assertIn("torn.json", ended.err)

    def test_refusals_and_an_empty_volume(self):
        self.assertEqual(self.idle(files=0).code, 2)
        self.assertEqual(self.idle(wrong=1).code, 2)
        self.assertTrue(self.idle().result["finished_round"])


class WebServer(Case):
    def setUp(self):
        super().setUp()
        self.put_result("2026-11-20", "job")
        root = self.common / "Results"
        (self.common / "secret.json").write_text('"secret"')
        (root / ".hidden.json").write_text('"secret"')
        os.symlink(str(self.common), str(root / "out"))
        os.symlink(str(self.common / "secret.json"), str(root / "2026-11-20" / "link.json"))
        os.mkfifo(str(root / "fifo.json"))
        (root / "a&<b>.json").write_text("1")
        env = self.environment(kwargs={"port": 0})
        self.server = subprocess.Popen([sys.executable, "-u", "web_server.py"], cwd=str(PROGRAMS), env=env,
                                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
        self.addCleanup(self.server.stdout.close)
        self.addCleanup(self.server.wait)
        self.addCleanup(self.server.kill)
        self.port = int(re.search(r":(\d+)/$", self.server.stdout.readline().strip()).group(1))

    def ask(self, path, method="GET", headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.putrequest(method, path, skip_host="Host" in (headers or {}))
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            connection.endheaders()
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8"), response
        finally:
            connection.close()

    def test_serves_results_and_nothing_else(self):
        status, text, response = self.ask("/")
        self.assertEqual(status, 200)
        self.assertIn('href="/2026-11-20/"', text)
        self.assertIn("a&amp;&lt;b&gt;.json", text)
        for hidden in ("hidden", "out", "secret"):
            self.assertNotIn(hidden, text)
        (path,) = re.findall(r'href="(/2026-11-20/[^"]+json)"', self.ask("/2026-11-20/")[1])
        status, text, response = self.ask(path)
        self.assertEqual((status, json.loads(text)["job"]), (200, "job"))
        self.assertEqual(response.headers["Content-Type"], "application/json")
        status, body, head = self.ask(path, "HEAD")
        self.assertEqual((status, body, head.headers["Content-Length"]), (200, "", str(len(text.encode()))))
        self.assertEqual(self.ask("/a%26%3Cb%3E.json")[1], "1")

    def test_no_way_out(self):
        for path in ("/../secret.json", "/%2e%2e/secret.json", "/..%2fsecret.json", "//../secret.json", "/out/secret.json",
                     "/2026-11-20/link.json", "/.hidden.json", "/2026-11-20/../../secret.json", "/..%5csecret.json", "/%00",
                     "/%ff", "/fifo.json", "/fifo.json/x", "/none.json", "http://127.0.0.1/../secret.json"):
            with self.subTest(path):
                status, text, _ = self.ask(path)
                self.assertEqual(status, 404)
                self.assertNotIn("secret", text)

    def test_only_reading(self):
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            self.assertEqual(self.ask("/", method)[0], 405, method)

    def test_foreign_names_are_refused_on_loopback(self):
        self.assertEqual(self.ask("/", headers={"Host": "evil.example"})[0], 421)
        self.assertEqual(self.ask("/", headers={"Host": "localhost:80"})[0], 200)

    def test_ends_at_sigterm_also_with_an_open_connection(self):
        idle = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        self.addCleanup(idle.close)
        idle.connect()
        self.server.send_signal(signal.SIGTERM)
        self.assertEqual(self.server.wait(timeout=5), 0)
        self.assertEqual(set(json.loads(self.result.read_text())), {"connections"})

    def test_refusals(self):
        for env, kwargs, said in [({"WEB_SERVER_PORT": "x"}, {}, "port: expected"), ({}, {"port": 70000}, "port: expected"),
                                  ({}, {"wrong": 1}, "unknown kwarg 'wrong'"), ({}, {"port": self.port}, "in use")]:
            ended = self.start([sys.executable, "web_server.py"], env=env, kwargs=kwargs)
            self.assertEqual(ended.code, 1)
            self.assertIn(said, ended.err)


class Endpoint(http.server.BaseHTTPRequestHandler):
    """Answers from a list; keeps what it was asked."""

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        self.server.asked.append((self.path, self.headers["Authorization"], json.loads(self.rfile.read(length).decode("utf-8"))))
        code, headers, body = self.server.answers.pop(0)
        data = (body if isinstance(body, str) else json.dumps(body)).encode("utf-8")
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class LlmTask(Case):
    GOOD = (200, {}, {"model": "m1", "choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "usage": {"total_tokens": 3}})
    KEY = "sk-secret-key"

    def setUp(self):
        super().setUp()
        self.server = http.server.HTTPServer(("127.0.0.1", 0), Endpoint)
        self.server.asked, self.server.answers = [], []
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)

    def ask(self, *args, answers=(), env=None, **kwargs):
        self.server.answers[:] = answers
        self.server.asked[:] = []
        variables = {"OPENAI_BASE_URL": "http://127.0.0.1:%d/v1/" % self.server.server_address[1],
                     "OPENAI_API_KEY": self.KEY, "OPENAI_MODEL": "m0"}
        variables.update(env or {})
        ended = self.call("llm_task.py", "ask", *args, env=variables, **kwargs)
        self.assertNotIn(self.KEY, ended.out + ended.err + str(ended.error) + json.dumps(ended.result))
        return ended

    def test_asks(self):
        ended = self.ask("question", answers=[self.GOOD], temperature=0.5, max_tokens=9, system="be short", model="m2")
        self.assertEqual(ended.code, 0, ended.err)
        self.assertEqual(ended.result, {"answer": "hi", "model": "m1", "finish_reason": "stop", "usage": {"total_tokens": 3}, "attempts": 1})
        path, key, question = self.server.asked[0]
        self.assertEqual((path, key), ("/v1/chat/completions", "Bearer " + self.KEY))
        self.assertEqual(question, {"model": "m2", "temperature": 0.5, "max_tokens": 9, "messages": [
            {"role": "system", "content": "be short"}, {"role": "user", "content": "question"}]})

    def test_without_a_key(self):
        self.assertEqual(self.ask("q", answers=[self.GOOD], env={"OPENAI_API_KEY": None}).code, 0)
        self.assertIsNone(self.server.asked[0][1])

    def test_tries_again(self):
        ended = self.ask("q", answers=[(429, {"Retry-After": "0"}, ""), (503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, "x"), self.GOOD])
        self.assertEqual((ended.code, ended.result["attempts"]), (0, 3), ended.err)
        ended = self.ask("q", answers=[(500, {"Retry-After": "0"}, "")] * 2, attempts=2)
        self.assertEqual(ended.code, 1)
        self.assertIn("answered 500: no message (2 attempts)", ended.error)

    def test_waits_are_bounded(self):
        code = ("import llm_task, email.message as m; h = m.Message(); h['Retry-After'] = '9' * 500;"
                "print(min(llm_task.asked_wait(h), llm_task.LONGEST_WAIT))")
        self.assertEqual(self.start([sys.executable, "-c", code]).out, "60.0\n")

    def test_errors_are_said_without_the_key(self):
        ended = self.ask("q", answers=[(401, {}, {"error": {"message": "bad key %s given" % self.KEY}})])
        self.assertEqual((ended.code, len(self.server.asked)), (1, 1))
        self.assertIn("answered 401: bad key *** given", ended.error)
        ended = self.ask("q", answers=[(302, {"Location": "http://127.0.0.1:1/"}, "")])
        self.assertIn("answered 302", ended.error)
        ended = self.ask("q", answers=[(200, {}, "no json")])
        self.assertIn("no chat completion", ended.error)
        self.assertEqual(self.ask("q", env={"OPENAI_API_KEY": self.KEY + "\nx"}).code, 1)

    def test_what_is_missing_is_named(self):
        self.assertIn("OPENAI_BASE_URL is not set", self.ask("q", env={"OPENAI_BASE_URL": None}).error)
        self.assertIn("OPENAI_BASE_URL: expected http", self.ask("q", env={"OPENAI_BASE_URL": "file:///etc/passwd"}).error)
        self.assertIn("no model given", self.ask("q", env={"OPENAI_MODEL": None}).error)
        self.assertIn("prompt: expected a text", self.ask(7).error)
        self.assertIn("missing 1 required positional argument: 'prompt'", self.ask().error)

    def test_nobody_there_and_nobody_answering(self):
        ended = self.ask("q", env={"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"}, attempts=1)
        self.assertIn("cannot reach http://127.0.0.1:1/v1/chat/completions", ended.error)
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen(1)
            ended = self.ask("q", env={"OPENAI_BASE_URL": "http://127.0.0.1:%d" % silent.getsockname()[1]}, attempts=1, timeout=0.2)
        self.assertIn("timed out", ended.error)


if __name__ == "__main__":
    unittest.main()
