"""The placement table that the bed writes, as an operator would: who there is, who holds what, in which state, by generations."""

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import Unable
from scenario import Host, Placement

Unit = tuple[int, int]
Row = dict[str, Any]
HOLDERS = ("experts", "hybrid")
PEER_PORT = 7070


@dataclass(frozen=True)
class Shape:
    """What of a model decides its table."""

    blocks: int
    dense: int
    experts: int

    def units(self) -> list[Unit]:
        return [(block, expert) for block in range(self.dense, self.blocks) for expert in range(self.experts)]


def shape(agent: str, model: str | None) -> Shape:
    command = [agent, "inspect", "--json", *([model] if model else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unable(f"`{' '.join(command)}` gave {done.returncode}: {done.stderr.strip()}")
    found = json.loads(done.stdout)["shape"]
    return Shape(found["blocks"], found["dense_blocks"], found["experts"])


def workers(hosts: list[Host], addresses: dict[str, str]) -> list[Row]:
    """Numbers in the order of the scenario, those of hosts that come later among them, so that a number is never used twice."""
    kept = [host for host in hosts if host.role != "gateway"]
    return [{"number": i, "name": host.name, "role": host.role, "address": f"{addresses[host.name]}:{PEER_PORT}"}
            for i, host in enumerate(kept)]


def grouped(units: list[Unit], groups: tuple[tuple[str, ...], ...], slices: int, segments: int) -> list[Row]:
    """Expert e on all workers of groups[e % len(groups)], every slice of it."""
    width = segments // slices
    return [
        {"worker": worker, "block": block, "expert": expert, "slice": [lo, lo + width], "state": "Active",
         "fraction": round(1 / len(group), 6)}
        for block, expert in units
        for group in (groups[expert % len(groups)],)
        for worker in group
        for lo in range(0, segments, width)
    ]


def round_robin(units: list[Unit], holders: list[str], replicas: int, slices: int, segments: int) -> list[Row]:
    """Only for an agent without the command `plan`: replicas on workers that follow each other."""
    if replicas > len(holders):
        raise Unable(f"{replicas} replicas of every expert need as many workers that run experts; there are {len(holders)}")
    width = segments // slices
    rows = []
    for i, (block, expert) in enumerate(units):
        for s in range(slices):
            for r in range(replicas):
                rows.append({"worker": holders[(i * slices + s + r) % len(holders)], "block": block, "expert": expert,
                             "slice": [s * width, (s + 1) * width], "state": "Active", "fraction": round(1 / replicas, 6)})
    return rows


def can_plan(agent: str) -> bool:
    return subprocess.run([agent, "plan", "--help"], capture_output=True, check=False).returncode == 0


def planned(agent: str, model: str | None, listed: list[Row], placement: Placement) -> dict[str, Any]:
    """The planner's table."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"workers": listed}, file)
        file.flush()
        command = [agent, "plan", *(["--model", model] if model else []), "--workers", file.name, "--replicas",
                   str(placement.replicas), "--slices", str(placement.slices), "--segments", str(placement.segments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unable(f"`{' '.join(command)}` gave {done.returncode}: {done.stderr.strip()}")
    return parse_plan(done.stdout)


def parse_plan(text: str) -> dict[str, Any]:
    """YAML of the one form that `plan` prints: rows as JSON, one a line."""
    table: dict[str, Any] = {"generation": 0, "workers": [], "slices": []}
    rows = table["workers"]
    for line in text.splitlines():
        indent, body = len(line) - len(line.lstrip()), line.strip()
        if body.startswith("- {"):
            rows.append(json.loads(body[2:]))
        elif indent == 0 and body.startswith("- "):
            table["slices"].append({"units": []})
            rows = table["slices"][-1]["units"]
        key, _, value = body.removeprefix("- ").partition(":")
        if key in ("generation", "segments") and indent == 0:
            table[key] = json.loads(value)
        elif key in ("blocks", "generation") and table["slices"]:
            table["slices"][-1][key] = json.loads(value)
        elif key in ("workers", "slices", "units") or body.startswith("- {") or not body:
            continue
        else:
            raise Unable(f"`plan` printed a line that the bed does not know: {line!r}")
    return table


class Placed:
    """The live table. Every change raises the generation of what it touches: of slices, or of the list of workers."""

    def __init__(self, table: dict[str, Any], later: set[str]):
        self.all = {row["name"]: row for row in table["workers"]}
        self.names = [name for name in self.all if name not in later]
        self.slices = table["slices"]
        self.generation = table.get("generation", 1)
        # Of an expert's inner dimension; a table that does not say fits what its rows fit.
        self.segments = {key: table[key] for key in ("segments",) if key in table}

    def document(self, sees: tuple[str, ...] = ()) -> dict[str, Any]:
        """With `sees`, only these attention ranks."""
        def shown(name: str) -> bool:
            return not sees or self.all[name]["role"] in HOLDERS or name in sees
        workers = [self.all[name] for name in self.names if shown(name)]
        return {"generation": self.generation, **self.segments, "workers": workers, "slices": self.slices}

    def holders(self, unit: Unit, state: str = "Active") -> list[str]:
        return [row["worker"] for part in self.slices for row in part["units"]
                if (row["block"], row["expert"]) == unit and row["state"] == state]

    def enlist(self, worker: str) -> None:
        if worker not in self.names:
            self.names.append(worker)
            self.generation += 1

    def strike(self, worker: str) -> None:
        if worker not in self.names:
            raise Unable(f"{worker} is not in the table")
        self.names.remove(worker)
        self.generation += 1
        self._change(lambda row: row["worker"] == worker, lambda row: None)

    def add(self, worker: str, units: list[Unit]) -> None:
        """`Joining`: the worker loads, nobody sends to it."""
        for part in self.slices:
            wanted = [unit for unit in units if part["blocks"][0] <= unit[0] < part["blocks"][1]]
            rows = [row for unit in wanted for row in self._like(part, unit, worker)]
            if rows:
                part["units"] = [*part["units"], *rows]
                part["generation"] += 1

    @staticmethod
    def _like(part: dict[str, Any], unit: Unit, worker: str) -> list[Row]:
        """A row per slice of the unit that others hold."""
        mine = {tuple(row["slice"]) for row in part["units"] if (row["block"], row["expert"], row["worker"]) == (*unit, worker)}
        theirs = {tuple(row["slice"]) for row in part["units"] if (row["block"], row["expert"]) == unit}
        return [{"worker": worker, "block": unit[0], "expert": unit[1], "slice": list(cut), "state": "Joining", "fraction": 0.0}
                for cut in sorted(theirs - mine)]

    def set_state(self, worker: str, units: list[Unit], state: str) -> None:
        chosen = set(units)
        self._change(lambda row: row["worker"] == worker and (row["block"], row["expert"]) in chosen,
                     lambda row: {**row, "state": state})

    def remove(self, worker: str, units: list[Unit]) -> None:
        chosen = set(units)
        self._change(lambda row: row["worker"] == worker and (row["block"], row["expert"]) in chosen, lambda row: None)

    def _change(self, of, to) -> None:
        for part in self.slices:
            before = part["units"]
            part["units"] = [after for row in before if (after := to(row) if of(row) else row) is not None]
            if part["units"] != before:
                part["generation"] += 1
                part["units"] = _even(part["units"])


def _even(rows: list[Row]) -> list[Row]:
    """Active replicas of a slice of a unit share its tokens evenly."""
    def key(row: Row) -> tuple:
        return row["block"], row["expert"], tuple(row["slice"])
    active: dict[tuple, int] = {}
    for row in rows:
        if row["state"] == "Active":
            active[key(row)] = active.get(key(row), 0) + 1
    return [{**row, "fraction": round(1 / active[key(row)], 6) if row["state"] == "Active" else 0.0} for row in rows]


def hottest(dispatched: list[list[int]], model: Shape, count: int) -> list[Unit]:
    """Of each block the `count` experts that got the most rows, as the ranks' pressure pages tell it."""
    sums = [sum(column) for column in zip(*dispatched)]
    out = []
    for i, block in enumerate(range(model.dense, model.blocks)):
        row = sums[i * model.experts:(i + 1) * model.experts]
        if len(row) < model.experts:
            raise Unable(f"the ranks' pressure pages count {len(sums)} experts, the model has {len(model.units())}")
        order = sorted(range(model.experts), key=lambda expert: (-row[expert], expert))
        out += [(block, expert) for expert in order[:count]]
    return out


def write(path: Path, document: dict[str, Any]) -> None:
    """At one moment, so that no reader finds half a table."""
    fresh = path.with_name(f".{path.name}.fresh")
    fresh.write_text(json.dumps(document))
    os.replace(fresh, path)
