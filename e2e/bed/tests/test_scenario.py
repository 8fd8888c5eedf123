"""Scenarios: every file of this directory reads, and what makes no sense is refused by name."""

import unittest
from pathlib import Path

from scenario import BadScenario, parse, read, schedule

HOSTS = [{"names": ["g0"], "role": "gateway"}, {"names": "a0 a1", "role": "attention"}, {"names": "e0 e1", "role": "experts"}]


def with_(**more):
    return parse({"duration": 10, "hosts": HOSTS, "load": [{"streams": 2}], **more}, "test")


class Reading(unittest.TestCase):
    def test_all_files_read(self):
        files = sorted((Path(__file__).resolve().parents[1] / "scenarios").glob("*.toml"))
        self.assertIn("smoke.toml", [file.name for file in files])
        for file in files:
            with self.subTest(file.name):
                scenario = read(file)
                self.assertTrue(scenario.about)
                self.assertTrue(scenario.holds)
                for fault in scenario.faults:
                    self.assertLess(fault.at, scenario.duration)
                for hold in scenario.holds:
                    for name in filter(None, (hold.measure, hold.of)):
                        first, _, rest = name.partition(".")
                        known = {"phase": scenario.phases, "load": scenario.loads, "fault": scenario.faults}.get(first)
                        if known is not None:
                            self.assertIn(rest.split(".")[0], [one.name for one in known], name)

    def test_hosts_and_loads(self):
        scenario = with_()
        self.assertEqual(list(scenario.hosts), ["g0", "a0", "a1", "e0", "e1"])
        self.assertEqual(scenario.of_role("experts"), ["e0", "e1"])
        self.assertEqual(scenario.loads[0].gateways, ("g0",))
        self.assertEqual(scenario.loads[0].end, 10.0)

    def refused(self, part: str, **more):
        with self.assertRaises(BadScenario) as caught:
            with_(**more)
        self.assertIn(part, str(caught.exception))

    def test_refusals_name_what_is_wrong(self):
        self.refused("no host 'e9'", fault=[{"kind": "kill", "at": 1, "targets": ["e9"]}])
        self.refused("kind 'burglary'", fault=[{"kind": "burglary", "at": 1}])
        self.refused("stop needs lasts", fault=[{"kind": "stop", "at": 1, "targets": ["e0"]}])
        self.refused("kill has no rate", fault=[{"kind": "kill", "at": 1, "targets": ["e0"], "rate": "1mbit"}])
        self.refused("need `every`", fault=[{"kind": "kill", "at": 1, "targets": ["e0", "e1"]}])
        self.refused("`rounds` or `until`", fault=[{"kind": "kill", "at": 1, "targets": ["e0"], "every": 2}])
        self.refused("needs min or max", hold=[{"measure": "requests.failed"}])
        self.refused("unknown: maks", hold=[{"measure": "requests.failed", "maks": 0}])
        self.refused("same name", fault=[{"kind": "kill", "at": 1, "targets": ["e0"]}, {"kind": "kill", "at": 2, "targets": ["e1"]}])
        self.refused("within the duration", load=[{"streams": 1, "end": 11}])
        self.refused("no host 'a7'", placement={"groups": [["a7"]]})
        self.refused("a second host", hosts=[*HOSTS, {"names": "e0", "role": "experts"}])
        self.refused("is none of", hosts=[{"names": "x0", "role": "oracle"}])


class Schedule(unittest.TestCase):
    def times(self, **fault):
        scenario = with_(fault=[{"kind": "kill", **fault}])
        return [(one.at, one.targets) for one in schedule(scenario.faults, scenario.duration)]

    def test_once(self):
        self.assertEqual(self.times(at=3, targets=["e0"]), [(3, ("e0",))])

    def test_a_group_at_one_time(self):
        self.assertEqual(self.times(at=3, targets=[["e0", "e1"]]), [(3, ("e0", "e1"))])

    def test_in_turn_until(self):
        self.assertEqual(self.times(at=1, every=3, until=9, targets=["e0", "a0"]), [(1, ("e0",)), (4, ("a0",)), (7, ("e0",))])

    def test_in_turn_for_rounds(self):
        self.assertEqual(self.times(at=1, every=2, rounds=1, targets=["e0", "a0"]), [(1, ("e0",)), (3, ("a0",))])

    def test_in_order_of_time(self):
        scenario = with_(fault=[
            {"kind": "kill", "at": 2, "every": 4, "rounds": 2, "targets": ["e0"]},
            {"kind": "stop", "at": 4, "lasts": 1, "targets": ["a0"]},
        ])
        found = schedule(scenario.faults, scenario.duration)
        self.assertEqual([(one.at, one.fault.kind) for one in found], [(2, "kill"), (4, "stop"), (6, "kill")])
