"""Whole runs over a stand-in for the agent: what goes well holds, and what goes wrong is found. Needs root."""

import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import machine

HERE = Path(__file__).resolve().parent
BED, FAKE = HERE.parent / "bed.py", HERE / "fake_agent.py"


def able() -> str:
    try:
        lacks = machine.check()
    except machine.Unable as error:
        return str(error)
    return "; ".join(lacks)


WHY_NOT = able()
FLEET = """
about = "a test"
duration = DURATION
[[hosts]]
names = "g0"
role = "gateway"
flags = "FLAGS"
[[hosts]]
names = "g1"
role = "gateway"
[[hosts]]
names = "a0"
role = "attention"
[[hosts]]
names = "e0 e1"
role = "experts"
[[hosts]]
names = "e2"
role = "experts"
later = true
[placement]
groups = [["e0"], ["e1"]]
[[load]]
streams = 4
tokens = [8, 24]
[[hold]]
measure = "requests.failed"
max = 0
[[hold]]
measure = "compare.different"
max = 0
[[hold]]
measure = "compare.missing"
max = 0
[[hold]]
measure = "compare.compared"
min = 10
[[hold]]
measure = "problems"
max = 0
"""


@unittest.skipIf(WHY_NOT, WHY_NOT)
class Runs(unittest.TestCase):
    def run_bed(self, more: str = "", flags: str = "", duration: int = 2) -> tuple[int, dict, str]:
        with tempfile.TemporaryDirectory() as directory:
            scenario, out = Path(directory) / "test.toml", Path(directory) / "out.json"
            scenario.write_text(FLEET.replace("FLAGS", flags).replace("DURATION", str(duration)) + more)
            command = [sys.executable, str(BED), "--bed", f"test{os.getpid()}", "run", str(scenario), "--agent", str(FAKE), "--json",
                       str(out), "--grace", "5"]
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TMPDIR": directory}, check=False)
            report = json.loads(out.read_text()) if out.exists() else {}
        self.assertNotIn(f"test{os.getpid()}", machine.run("ip", "netns", "list"))
        return done.returncode, report, done.stdout + done.stderr

    def broken(self, report: dict) -> list[str]:
        return [hold["measure"] for hold in report["holds"] if not hold["held"]]

    def test_faults_of_every_kind_are_done_and_undone(self):
        code, report, text = self.run_bed("""
[[fault]]
kind = "kill"
targets = ["e0"]
at = 0.5
lasts = 0.5
[[fault]]
kind = "stop"
targets = [["e1", "a0"]]
at = 0.5
lasts = 1
[[fault]]
kind = "partition"
between = [["a0"], ["e0", "e1"]]
at = 1
lasts = 1
[[fault]]
kind = "rate"
targets = ["e1"]
rate = "1mbit"
at = 1
lasts = 1
[[fault]]
kind = "break"
targets = ["e1"]
at = 1.5
lasts = 0.2
[[fault]]
name = "ca"
kind = "rotate"
what = "authority"
pause = 0.2
at = 1
[[fault]]
kind = "join"
targets = ["e2"]
units = "hottest"
at = 1.5
[[fault]]
kind = "leave"
targets = ["e2"]
pause = 0.2
at = 3.5
[[fault]]
kind = "burn"
processes = 1
at = 1
lasts = 0.5
[[fault]]
kind = "restart"
targets = ["g1"]
binary = ""
at = 1
[[hold]]
measure = "processes.starts"
min = 8
max = 8
[[hold]]
measure = "counters.replays"
min = 16
max = 16
""", duration=5)
        self.assertEqual(code, 0, text)
        self.assertEqual(report["measures"]["faults.done"], 10)
        self.assertEqual(self.broken(report), [])
        self.assertEqual(sorted(fault["kind"] for fault in report["faults"]),
                         sorted(("kill", "stop", "partition", "rate", "break", "rotate", "join", "leave", "burn", "restart")))
        notes = [note for fault in report["faults"] if fault["kind"] == "join" for note in fault["notes"]]
        self.assertRegex(notes[0], "2 experts on e2")

    def test_a_killed_gateway_breaks_its_own_streams(self):
        code, report, text = self.run_bed("""
[[load]]
name = "its"
gateways = "g0"
streams = 4
[[fault]]
kind = "kill"
targets = ["g0"]
at = 1
lasts = 0.5
[[hold]]
measure = "requests.broken"
min = 1
max = 8
""")
        self.assertEqual(code, 0, text)

    def test_two_cohorts_have_two_references(self):
        code, report, text = self.run_bed("""
[[reference]]
[[reference]]
flags = "--numerics two"
[[hold]]
measure = "compare.cohorts"
min = 2
""", "--numerics two")
        self.assertEqual(code, 0, text)
        self.assertEqual(report["measures"]["compare.compared"], report["measures"]["requests.complete"])

    def test_an_answer_without_a_reference_is_found(self):
        code, report, _ = self.run_bed("", "--numerics two")
        self.assertEqual((code, self.broken(report)), (1, ["compare.missing"]))

    def test_another_token_is_found(self):
        code, report, _ = self.run_bed("", "--lie")
        self.assertEqual((code, self.broken(report)), (1, ["compare.different"]))
        self.assertRegex(report["differences"][0], "token")

    def test_a_torn_stream_is_found(self):
        code, report, _ = self.run_bed("", "--tear")
        self.assertEqual((code, self.broken(report)), (1, ["requests.failed"]))

    def test_an_answer_of_two_cohorts_is_found(self):
        code, report, _ = self.run_bed("", "--cross")
        self.assertEqual((code, self.broken(report)), (1, ["requests.failed"]))
        self.assertRegex(report["failures"][0], "fingerprints")

    def test_a_process_that_does_not_drain_is_found(self):
        code, report, _ = self.run_bed("", "--stay")
        self.assertEqual((code, self.broken(report)), (1, ["problems"]))
        self.assertEqual(report["problems"], ["g0 did not end within 5 s of SIGTERM"])

    def test_a_fault_that_cannot_be_done_is_found(self):
        code, report, _ = self.run_bed('[[fault]]\nkind = "unplace"\ntargets = ["e0"]\nunits = "all"\nby = "http"\nat = 1\n')
        self.assertEqual((code, self.broken(report)), (1, ["problems"]))
        self.assertRegex(report["problems"][0], "g0 answered a pushed table with 501")

    def test_an_agent_that_does_not_start_is_said(self):
        code, _, text = self.run_bed("", "--no-such-flag")
        self.assertEqual(code, 2)
        self.assertRegex(text, "bed: g0 ended with 2 before it was ready; its log")
