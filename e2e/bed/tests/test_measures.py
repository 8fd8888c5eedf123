"""Gaps, counters and holds."""

import unittest
from array import array

import counters
from asks import Ask
from client import Answer, Choice
from faults import Happened
from gaps import Blame, at, measure
from holds import judge
from load import Record
from scenario import Hold, parse

HOSTS = [{"names": "g0", "role": "gateway"}]
START = 100.0


def scenario(**more):
    return parse({"duration": 10, "hosts": HOSTS, "load": [{"streams": 1}], **more}, "test")


def record(times, load="all", begin=0.0, outcome="complete"):
    choice = Choice(times=array("d", (START + t for t in times)))
    end = START + (times[-1] if times else begin)
    answer = Answer([choice]) if outcome == "complete" else None
    return Record(load, 0, Ask("greedy", "/", {}), "g0", START + begin, end, outcome, answer=answer)


def fault(name, begin, end, settle=1.0, **more):
    return Happened(name, "kill", ("e0",), begin, end, settle, **more)


class Gaps(unittest.TestCase):
    def test_quantiles_are_values_that_occurred(self):
        values = [float(n) for n in range(1, 101)]
        self.assertEqual((at(values, 0.5), at(values, 0.99), at(values, 1.0), at([3.0], 0.5)), (50, 99, 100, 3))

    def test_phases_loads_and_faults(self):
        work = scenario(
            load=[{"name": "x", "streams": 1}, {"name": "y", "streams": 1}],
            phase=[{"name": "early", "begin": 0, "end": 4}, {"name": "late", "begin": 4, "end": 10}],
        )
        records = [record([0.5, 1.0, 1.25, 5.25], "x"), record([1.0, 1.5, 2.0], "y", begin=0.5), record([], "y", outcome="failed")]
        found = measure(records, [fault("kill", 3.0, 4.5), fault("kill", 9.0, 9.5)], work, START)
        m = found.measures
        self.assertEqual((m["complete"], m["failed"]), (2, 1))
        self.assertAlmostEqual(m["tokens_per_second"], 0.7)
        self.assertAlmostEqual(m["load.x.gap_max"], 4.0)
        self.assertAlmostEqual(m["load.y.gap_max"], 0.5)
        self.assertAlmostEqual(m["phase.early.gap_max"], 0.5)
        self.assertAlmostEqual(m["phase.late.load.x.gap_max"], 4.0)
        self.assertNotIn("phase.late.load.y.gap_max", m)
        self.assertAlmostEqual(m["first_max"], 0.5)
        self.assertAlmostEqual(m["usual.gap_max"], 0.5)
        self.assertEqual(m["fault.kill.count"], 2)
        self.assertAlmostEqual(m["fault.kill.gap_max"], 4.0)
        self.assertEqual([round(gap, 3) for _, gap in found.faults], [4.0, 0.0])

    def test_the_latest_of_the_faults_that_are_on(self):
        first, second, skipped = fault("a", 1.0, 6.0), fault("b", 3.0, 4.0), fault("c", 3.5, 3.5, skipped=True)
        blame = Blame([second, first, skipped])
        self.assertIsNone(blame.of(0.1, 0.9))
        self.assertIs(blame.of(0.5, 1.5), first)
        self.assertIs(blame.of(3.2, 3.6), second)
        self.assertIs(blame.of(4.9, 5.5), second)
        self.assertIs(blame.of(5.5, 5.6), first)
        self.assertIsNone(blame.of(7.1, 7.2))


class Counting(unittest.TestCase):
    PAGE = """# HELP x y
sluice_masked_peers_total{worker="0"} 2
sluice_masked_peers_total{worker="1"} 3
sluice_replays_total 4
sluice_other_total 9
sluice_step_duration_seconds_bucket{kind="experts",worker="0",le="0.1"} 1
sluice_step_duration_seconds_bucket{kind="head",worker="0",le="0.1"} 1
sluice_step_duration_seconds_bucket{kind="experts",worker="0",le="0.2"} 8
sluice_step_duration_seconds_bucket{kind="experts",worker="0",le="+Inf"} 10
"""

    def test_pages_and_sums_over_restarts(self):
        page = counters.parse(self.PAGE)
        self.assertEqual(page.values, {"masks": 5, "replays": 4})
        self.assertEqual(dict(page.buckets["step"]), {0.1: 2, 0.2: 8, float("inf"): 10})
        sums = counters.Sums()
        sums.put("a0", 1, counters.parse("sluice_replays_total 9"))
        sums.put("a0", 1, page)
        sums.put("a0", 2, page)
        sums.put("e0", 1, counters.parse("sluice_masked_peers_total 1"))
        self.assertEqual(sums.totals(), {"masks": 11, "replays": 8})
        self.assertEqual(sums.by_host(), {"a0": {"masks": 10, "replays": 8}, "e0": {"masks": 1}})
        self.assertEqual(sums.buckets("step")[0.2], 16)

    def test_quantiles(self):
        buckets = counters.parse(self.PAGE).buckets["step"]
        self.assertEqual(counters.quantile(buckets, 0.1), 0.1)
        self.assertEqual(counters.quantile(buckets, 0.5), 0.2)
        self.assertEqual(counters.quantile(buckets, 0.99), float("inf"))
        self.assertIsNone(counters.quantile({}, 0.5))


class Holding(unittest.TestCase):
    MEASURES = {"a": 3.0, "b": 1.5}

    def held(self, measure="a", low=None, high=None, of=""):
        return judge(Hold(measure, low, high, of), self.MEASURES).held

    def test_bounds(self):
        self.assertTrue(self.held(low=3))
        self.assertFalse(self.held(low=3.1))
        self.assertTrue(self.held(high=3))
        self.assertFalse(self.held(high=2.9))
        self.assertFalse(self.held(low=1, high=2))

    def test_multiples(self):
        self.assertTrue(self.held(high=2, of="b"))
        self.assertFalse(self.held(high=1.9, of="b"))
        self.assertFalse(judge(Hold("a", 2.0, None, "zero"), {**self.MEASURES, "zero": 0.0}).held)

    def test_what_was_not_measured_does_not_hold(self):
        self.assertFalse(self.held("c", high=1))
        self.assertFalse(self.held(high=1, of="c"))
        self.assertIn("c was not measured", judge(Hold("c", None, 1.0), self.MEASURES).text)
