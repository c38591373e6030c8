"""The Python function runner: what a function is given, and what becomes of what it does."""

import json
import os
import signal
import sys
import textwrap
import unittest

from support import RUNNER, Case


class Runner(Case):
    def setUp(self):
        super().setUp()
        self.programs = self.folder / "Programs"
        self.programs.mkdir()

    def put(self, text, name="job.py"):
        path = self.programs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    def run_text(self, text, *args, name="job.py", function="run", env=None, **kwargs):
        self.put(text, name)
        return self.call(name, function, *args, programs=self.programs, env=env, **kwargs)

    def test_arguments_and_return_value(self):
        ended = self.run_text("def run(a, *rest, b=0): return {'a': a, 'rest': rest, 'b': b}", 1, "zwei", None, b=[True])
        self.assertEqual((ended.code, ended.err), (0, ""))
        self.assertEqual(ended.result, {"a": 1, "rest": ["zwei", None], "b": [True]})

    def test_large_integers_arrive_whole(self):
        ended = self.run_text("def run(n): return n + 1", 2**70)
        self.assertEqual(ended.result, 2**70 + 1)

    def test_none_is_null(self):
        ended = self.run_text("def run(): pass")
        self.assertTrue(ended.has_result)
        self.assertIsNone(ended.result)

    def test_a_result_written_by_the_function_stays(self):
        text = "import os\ndef run(): open(os.environ['AIOS_RESULT'], 'w').write('[7]')"
        self.assertEqual(self.run_text(text).result, [7])

    def test_coroutine_is_awaited(self):
        ended = self.run_text("import asyncio\nasync def run(x):\n  await asyncio.sleep(0)\n  return x * 2", 21)
        self.assertEqual(ended.result, 42)

    def test_awaitable_object_is_awaited(self):
        text = "class A:\n  def __await__(self):\n    yield from ()\n    return 5\ndef run(): return A()"
        self.assertEqual(self.run_text(text).result, 5)

    def test_values_json_cannot_hold_become_their_repr(self):
        for expression, expected in [
            ("float('nan')", "nan"),
            ("[float('inf')]", "[inf]"),
            ("{1, }", "{1}"),
            ("b'x'", "b'x'"),
            ("{(1, 2): 3}", "{(1, 2): 3}"),
            ("'\\ud800'", "'\\ud800'"),
        ]:
            with self.subTest(expression):
                ended = self.run_text("def run(): return %s" % expression)
                self.assertEqual((ended.code, ended.result), (0, expected))

    def test_a_circle_and_a_failing_repr_do_not_fail_the_run(self):
        self.assertEqual(self.run_text("def run():\n  x = []\n  x.append(x)\n  return x").result, "[[...]]")
        ended = self.run_text("class A:\n  def __repr__(self): raise ValueError('no')\ndef run(): return A()")
        self.assertEqual(ended.result, "<A whose repr() failed: ValueError: no>")

    def test_deep_value(self):
        ended = self.run_text("def run():\n  x = []\n  for _ in range(100000): x = [x]\n  return x")
        self.assertEqual(ended.code, 0)
        self.assertIn("RecursionError", ended.result)

    def test_exception(self):
        ended = self.run_text("def run():\n    helper()\n\ndef helper():\n    raise ValueError('bad \\n value')\n")
        self.assertEqual(ended.code, 1)
        self.assertEqual(ended.error, "ValueError: bad value")
        self.assertFalse(ended.has_result)
        lines = ended.err.splitlines()
        self.assertEqual(lines[0], "Traceback (most recent call last):")
        self.assertIn("job.py\", line 2, in run", lines[1])
        self.assertNotIn("<string>", ended.err)

    def test_exception_in_a_coroutine_shows_no_frames_of_the_loop(self):
        ended = self.run_text("async def run():\n    raise KeyError('k')\n")
        self.assertEqual((ended.code, ended.error), (1, "KeyError: 'k'"))
        self.assertNotIn("asyncio", ended.err)
        self.assertNotIn("<string>", ended.err)

    def test_wrong_arguments(self):
        ended = self.run_text("def run(a): pass")
        self.assertEqual(ended.code, 1)
        self.assertIn("TypeError: run() missing 1 required positional argument: 'a'", ended.error)
        self.assertNotIn("<string>", ended.err)

    def test_error_of_an_own_type_with_a_note_and_a_cause(self):
        ended = self.run_text(
            """
            class Own(Exception): pass
            def run():
                try:
                    1 / 0
                except ZeroDivisionError as error:
                    own = Own("told")
                    if hasattr(own, "add_note"): own.add_note("a note")
                    raise own from error
            """
        )
        self.assertEqual(ended.error, "job.Own: told")
        self.assertIn("ZeroDivisionError", ended.err)

    def test_error_line_is_bounded_and_one_line(self):
        ended = self.run_text("def run(): raise RuntimeError('x\\x1b[31m\\r\\n' + 'y' * 100000)")
        self.assertLessEqual(len(ended.error), 20000)
        self.assertTrue(ended.error.startswith("RuntimeError: x [31m yyy"))

    def test_exception_whose_str_fails(self):
        ended = self.run_text("class E(Exception):\n  def __str__(self): raise OSError('no')\ndef run(): raise E()")
        self.assertEqual((ended.code, ended.error), (1, "job.E: <exception str() failed>"))

    def test_syntax_error_names_file_and_line(self):
        ended = self.run_text("def run(:\n  pass")
        self.assertEqual(ended.code, 1)
        self.assertTrue(ended.error.startswith("SyntaxError: "), ended.error)
        self.assertIn("(job.py, line 1)", ended.error)

    def test_import_error(self):
        ended = self.run_text("import no_such_module_here\ndef run(): pass")
        self.assertEqual((ended.code, ended.error), (1, "ModuleNotFoundError: No module named 'no_such_module_here'"))
        self.assertNotIn("frozen", ended.err)

    def test_exit_codes(self):
        for expression, code, error in [("0", 0, None), ("", 0, None), ("3", 3, None), ("'told'", 1, "told")]:
            with self.subTest(expression):
                ended = self.run_text("import sys\ndef run(): sys.exit(%s)" % expression)
                self.assertEqual((ended.code, ended.error, ended.has_result), (code, error, False))

    def test_keyboard_interrupt_ends_as_in_python(self):
        ended = self.run_text("def run(): raise KeyboardInterrupt")
        self.assertIn(ended.code, (130, -signal.SIGINT))
        self.assertEqual(ended.error, "KeyboardInterrupt")

    def test_missing_file(self):
        ended = self.call("none.py", "run", programs=self.programs)
        self.assertEqual(ended.code, 1)
        self.assertIn("none.py: no such file", ended.error)
        self.assertIn(ended.error, ended.err)

    def test_missing_function_names_the_nearest(self):
        ended = self.run_text("def run_all(): pass", function="runall")
        self.assertEqual(ended.code, 1)
        self.assertIn("no function 'runall'; the nearest is 'run_all'", ended.error)

    def test_not_callable(self):
        ended = self.run_text("run = 7")
        self.assertEqual(ended.code, 1)
        self.assertIn("'run' is no function but int", ended.error)

    def test_name_is_the_stem_and_import_path_holds_both_folders(self):
        self.put("VALUE = 1", "beside/near.py")
        self.put("VALUE = 2", "far.py")
        text = """
            import near, far, sys
            assert __name__ == "job-one", __name__
            def run(): return [near.VALUE, far.VALUE, sys.path[0].endswith("beside"), "" in sys.path, len(sys.argv)]
            """
        self.assertEqual(self.run_text(text, name="beside/job-one.py").result, [1, 2, True, False, 1])

    def test_file_named_like_a_module_python_holds(self):
        ended = self.run_text("import os, sys\ndef run(): return [__name__, os.sep]", name="os.py")
        self.assertEqual(ended.result, ["job_os", "/"])
        ended = self.run_text("def run(): return __name__", name="__main__.py")
        self.assertEqual(ended.result, "job___main__")

    def test_file_named_like_a_module_the_runner_uses(self):
        self.assertEqual(self.run_text("def run(): return __name__", name="json.py").result, "json")

    def test_package_beside_the_file_does_not_hide_it(self):
        self.put("raise SystemExit('the package')", "job/__init__.py")
        self.assertEqual(self.run_text("def run(): return 'the file'").result, "the file")

    def test_an_edit_is_seen_at_once(self):
        env = {"PYTHONDONTWRITEBYTECODE": None}
        for value in (1, 2, 3):
            path = self.put("def run(): return %d" % value)
            os.utime(str(path), (1000000000, 1000000000))
            self.assertEqual(self.call("job.py", "run", programs=self.programs, env=env).result, value)

    def test_functions_cross_process_borders(self):
        for method in ("spawn", "fork", "forkserver"):
            with self.subTest(method):
                text = """
                    import multiprocessing, pickle
                    def square(x): return x * x
                    def run(method):
                        assert pickle.loads(pickle.dumps(square)) is square
                        with multiprocessing.get_context(method).Pool(2) as pool:
                            return pool.map(square, [1, 2, 3])
                    """
                ended = self.run_text(text, method)
                self.assertEqual((ended.code, ended.result), (0, [1, 4, 9]), ended.err)

    def test_dataclasses_find_their_module(self):
        text = """
            from __future__ import annotations
            import dataclasses
            @dataclasses.dataclass
            class Point:
                x: int
            def run(): return dataclasses.asdict(Point(1))
            """
        self.assertEqual(self.run_text(text).result, {"x": 1})

    def test_large_arguments_come_from_the_trigger(self):
        trigger = self.folder / "trigger.json"
        trigger.write_text("\ufeff" + json.dumps({"job": "job", "args": ["x" * 100000], "kwargs": {"b": 2}}), encoding="utf-8")
        env = {"AIOS_ARGS": None, "AIOS_KWARGS": None, "AIOS_TRIGGER": str(trigger)}
        ended = self.run_text("def run(a, b): return [len(a), b]", env=env)
        self.assertEqual(ended.result, [100000, 2])
        env = {"AIOS_ARGS": None, "AIOS_TRIGGER": str(trigger)}
        self.assertEqual(self.run_text("def run(a, c): return [len(a), c]", env=env, c=3).result, [100000, 3])

    def test_no_arguments_at_all(self):
        ended = self.run_text("def run(*a, **k): return [a, k]", env={"AIOS_ARGS": None, "AIOS_KWARGS": None})
        self.assertEqual(ended.result, [[], {}])

    def test_damaged_arguments(self):
        for env, said in [
            ({"AIOS_ARGS": "{}"}, "AIOS_ARGS: args: expected list, found dict"),
            ({"AIOS_KWARGS": "nope"}, "AIOS_KWARGS: cannot read kwargs"),
            ({"AIOS_ARGS": None, "AIOS_TRIGGER": "/nowhere/x.json"}, "/nowhere/x.json: cannot read args"),
        ]:
            with self.subTest(env):
                ended = self.run_text("def run(): pass", env=env)
                self.assertEqual(ended.code, 1)
                self.assertIn(said, ended.error)

    def test_changed_environment_and_folder_do_not_matter(self):
        text = "import os\ndef run():\n  os.chdir('/')\n  os.environ.clear()\n  return 1"
        self.assertEqual(self.run_text(text, env={"AIOS_RESULT": os.path.relpath(str(self.result), str(self.programs))}).result, 1)

    def test_result_that_cannot_be_written_fails_the_run(self):
        env = {"AIOS_RESULT": str(self.folder / "nowhere" / "r.json")}
        ended = self.run_text("def run(): return 1", env=env)
        self.assertEqual(ended.code, 1)
        self.assertIn("FileNotFoundError", ended.err)

    def test_without_a_place_for_the_result(self):
        self.assertEqual(self.run_text("def run(): return 1", env={"AIOS_RESULT": None}).code, 0)

    def test_nothing_is_left_beside_the_result(self):
        self.run_text("def run(): return 1")
        self.run_text("def run(): raise ValueError")
        self.assertEqual([p.name for p in self.folder.iterdir() if "part" in p.name], [])

    def test_output_is_not_held_back(self):
        ended = self.run_text("import os\ndef run():\n  print('out')\n  os._exit(0)")
        self.assertEqual(ended.out, "out\n")

    def test_wrong_use(self):
        self.assertEqual(self.start([sys.executable, "-c", RUNNER], programs=self.programs).code, 1)

    def test_fits_into_one_argument(self):
        self.assertLess(len(RUNNER.encode("utf-8")), 16 << 10)


if __name__ == "__main__":
    unittest.main()
