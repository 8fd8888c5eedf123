"""Tables: every slice of every expert is held, changes raise generations, shares add up."""

import collections
import json
import tempfile
import unittest
from pathlib import Path

from machine import Unable
from scenario import Host
from table import Placed, Shape, grouped, hottest, parse_plan, round_robin, workers, write

SHAPE = Shape(blocks=3, dense=1, experts=4)


def placed(rows):
    hosts = [Host("g0", "gateway"), *(Host(name, "attention") for name in ("a0", "a1")),
             *(Host(name, "experts") for name in ("e0", "e1", "e2"))]
    listed = workers(hosts, {host.name: f"10.0.0.{i}" for i, host in enumerate(hosts)})
    return Placed({"workers": listed, "slices": [{"blocks": [1, 3], "generation": 1, "units": rows}]}, {"e2"})


def shares(table):
    out = collections.defaultdict(float)
    for row in table.slices[0]["units"]:
        out[row["block"], row["expert"], tuple(row["slice"])] += row["fraction"]
    return out


class Rows(unittest.TestCase):
    def test_groups_hold_all_of_their_experts(self):
        rows = grouped(SHAPE.units(), (("e0", "e1"), ("e2",)), 2, 8)
        self.assertEqual({row["worker"] for row in rows if row["expert"] == 2}, {"e0", "e1"})
        self.assertEqual({row["worker"] for row in rows if row["expert"] == 3}, {"e2"})
        self.assertEqual(len(rows), 2 * 2 * (2 * 2 + 2 * 1))
        self.assertEqual({tuple(row["slice"]) for row in rows}, {(0, 4), (4, 8)})

    def test_round_robin_puts_replicas_on_different_workers(self):
        rows = round_robin(SHAPE.units(), ["e0", "e1", "e2"], 2, 2, 8)
        holders = collections.defaultdict(set)
        for row in rows:
            holders[row["block"], row["expert"], tuple(row["slice"])].add(row["worker"])
        self.assertEqual(len(holders), 2 * 4 * 2)
        self.assertEqual({len(names) for names in holders.values()}, {2})
        with self.assertRaises(Unable):
            round_robin(SHAPE.units(), ["e0"], 2, 1, 8)

    def test_dense_blocks_have_no_rows(self):
        self.assertEqual({block for block, _ in SHAPE.units()}, {1, 2})


class Changes(unittest.TestCase):
    def setUp(self):
        self.table = placed(grouped(SHAPE.units(), (("e0",), ("e1",)), 2, 8))

    def test_numbers_stay(self):
        self.assertEqual([row["number"] for row in self.table.document()["workers"]], [0, 1, 2, 3])
        before = self.table.document()["generation"]
        self.table.enlist("e2")
        self.table.enlist("e2")
        self.assertEqual(self.table.document()["generation"], before + 1)
        self.assertEqual(self.table.document()["workers"][-1]["number"], 4)
        self.table.strike("a0")
        self.assertEqual([row["number"] for row in self.table.document()["workers"]], [1, 2, 3, 4])
        self.assertEqual(self.table.document()["generation"], before + 2)

    def test_a_replica_joins_and_leaves(self):
        self.table.enlist("e2")
        self.table.add("e2", [(1, 0), (2, 1)])
        self.assertEqual(self.table.slices[0]["generation"], 2)
        self.assertEqual(self.table.holders((1, 0)), ["e0", "e0"])
        self.assertEqual(self.table.holders((1, 0), "Joining"), ["e2", "e2"])
        self.assertEqual(set(shares(self.table).values()), {1.0})
        self.table.set_state("e2", [(1, 0), (2, 1)], "Active")
        self.assertEqual(self.table.slices[0]["generation"], 3)
        self.assertEqual(sorted(set(self.table.holders((1, 0)))), ["e0", "e2"])
        self.assertEqual(set(shares(self.table).values()), {1.0})
        self.assertIn(0.5, {row["fraction"] for row in self.table.slices[0]["units"]})
        self.table.set_state("e2", [(1, 0)], "Draining")
        self.table.remove("e2", [(1, 0)])
        self.assertEqual(self.table.holders((1, 0)), ["e0", "e0"])
        self.assertEqual(self.table.holders((1, 0), "Draining"), [])
        self.assertEqual(self.table.slices[0]["generation"], 5)

    def test_adding_twice_adds_once(self):
        self.table.add("e2", [(1, 0)])
        rows = len(self.table.slices[0]["units"])
        self.table.add("e2", [(1, 0)])
        self.assertEqual((len(self.table.slices[0]["units"]), self.table.slices[0]["generation"]), (rows, 2))

    def test_a_change_of_nothing_is_no_change(self):
        self.table.set_state("e2", [(1, 0)], "Active")
        self.assertEqual(self.table.slices[0]["generation"], 1)

    def test_a_gateway_may_see_some_ranks(self):
        names = [row["name"] for row in self.table.document(("a1",))["workers"]]
        self.assertEqual(names, ["a1", "e0", "e1"])

    def test_files_are_whole(self):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "table.json"
            for _ in range(2):
                write(path, self.table.document())
                self.assertEqual(json.loads(path.read_text()), self.table.document())
            self.assertEqual([p.name for p in Path(directory).iterdir()], ["table.json"])


class Hottest(unittest.TestCase):
    def test_sums_over_ranks_block_by_block(self):
        ranks = [[1, 9, 0, 0, 0, 0, 3, 4], [8, 1, 0, 0, 0, 0, 3, 0]]
        self.assertEqual(hottest(ranks, SHAPE, 1), [(1, 1), (2, 2)])
        self.assertEqual(hottest(ranks, SHAPE, 2), [(1, 1), (1, 0), (2, 2), (2, 3)])

    def test_too_few_counts_are_refused(self):
        with self.assertRaises(Unable):
            hottest([[1, 2, 3, 4]], SHAPE, 1)


class Plans(unittest.TestCase):
    TEXT = """generation: 7
segments: 8
workers:
- {"number":0,"name":"a0","role":"attention","address":"10.0.0.1:7070"}
slices:
- blocks: [0, 4]
  generation: 1
  units:
  - {"worker":"e0","block":0,"expert":5,"slice":[0,8],"state":"Active","fraction":1.0}
  - {"worker":"e1","block":0,"expert":5,"slice":[0,8],"state":"Active","fraction":0.5}
- blocks: [4, 5]
  generation: 2
  units: []
- blocks: [5, 6]
  generation: 3
  units:
  - {"worker":"e0","block":5,"expert":1,"slice":[0,8],"state":"Joining","fraction":0.0}
"""

    def test_the_printed_form(self):
        table = parse_plan(self.TEXT)
        self.assertEqual((table["generation"], table["segments"]), (7, 8))
        self.assertEqual(table["workers"], [{"number": 0, "name": "a0", "role": "attention", "address": "10.0.0.1:7070"}])
        self.assertEqual([part["blocks"] for part in table["slices"]], [[0, 4], [4, 5], [5, 6]])
        self.assertEqual([part["generation"] for part in table["slices"]], [1, 2, 3])
        self.assertEqual([len(part["units"]) for part in table["slices"]], [2, 0, 1])
        self.assertEqual(table["slices"][0]["units"][1], {"worker": "e1", "block": 0, "expert": 5, "slice": [0, 8],
                                                          "state": "Active", "fraction": 0.5})
        self.assertEqual(parse_plan("workers:\nslices: []\n"), {"generation": 0, "workers": [], "slices": []})

    def test_another_form_is_refused(self):
        with self.assertRaises(Unable):
            parse_plan(self.TEXT.replace("  generation", "  age"))
