"""What the clients' clocks say: tokens per second, gaps between the tokens of one stream, and which fault a gap belongs to."""

import bisect
import math
from array import array
from dataclasses import dataclass, field

from faults import Happened
from load import Record
from scenario import Scenario


@dataclass
class Scope:
    """Everything of some loads within some time."""

    begin: float
    end: float
    load: str = ""
    gaps: array = field(default_factory=lambda: array("d"))
    firsts: array = field(default_factory=lambda: array("d"))
    tokens: int = 0
    complete: int = 0
    failed: int = 0
    broken: int = 0

    def measures(self, prefix: str) -> dict[str, float]:
        out = {
            f"{prefix}tokens_per_second": self.tokens / (self.end - self.begin),
            f"{prefix}complete": self.complete,
            f"{prefix}failed": self.failed,
            f"{prefix}broken": self.broken,
        }
        for name, values in (("gap", sorted(self.gaps)), ("first", sorted(self.firsts))):
            if values:
                out |= {f"{prefix}{name}_p50": at(values, 0.5), f"{prefix}{name}_p99": at(values, 0.99),
                        f"{prefix}{name}_max": values[-1]}
        return out


def at(ordered: list[float], q: float) -> float:
    """The quantile, as a value that occurred."""
    return ordered[min(len(ordered) - 1, max(0, math.ceil(q * len(ordered)) - 1))]


class Blame:
    """Which fault a gap belongs to: of those that were on, or just over, the one that began last."""

    def __init__(self, happened: list[Happened]):
        self.faults = sorted((h for h in happened if not h.skipped), key=lambda h: h.begin)
        self.begins = [h.begin for h in self.faults]

    def of(self, begin: float, end: float) -> Happened | None:
        for i in range(bisect.bisect_right(self.begins, end) - 1, -1, -1):
            if self.faults[i].end + self.faults[i].settle >= begin:
                return self.faults[i]
        return None


@dataclass
class Gaps:
    measures: dict[str, float]
    # The longest gap in each fault that happened, in order of time.
    faults: list[tuple[Happened, float]]


def measure(records: list[Record], happened: list[Happened], scenario: Scenario, begin: float) -> Gaps:
    """`begin` is the clock's value at the scenario's 0."""
    scopes = {"": Scope(0.0, scenario.duration)}
    for load in scenario.loads:
        scopes[f"load.{load.name}."] = Scope(load.begin, load.end, load.name)
    for phase in scenario.phases:
        scopes[f"phase.{phase.name}."] = Scope(phase.begin, phase.end)
        for load in scenario.loads:
            scopes[f"phase.{phase.name}.load.{load.name}."] = Scope(phase.begin, phase.end, load.name)
    blame = Blame(happened)
    longest = {id(h): 0.0 for h in blame.faults}
    usual: list[float] = []
    for record in records:
        mine = [s for s in scopes.values() if s.load in ("", record.load)]
        for scope in mine:
            # What ends after the load is over still belongs to the last phase.
            when = min(record.end - begin, math.nextafter(scenario.duration, 0))
            if scope.begin <= when < scope.end:
                scope.complete += record.outcome == "complete"
                scope.failed += record.outcome == "failed"
                scope.broken += record.outcome == "broken"
        if record.answer is None:
            continue
        for choice in record.answer.choices:
            last = record.begin - begin
            for i, when in enumerate(choice.times):
                now = when - begin
                for scope in mine:
                    if scope.begin <= now < scope.end:
                        scope.tokens += 1
                        (scope.gaps if i else scope.firsts).append(now - last)
                if i:
                    fault = blame.of(last, now)
                    if fault is None:
                        usual.append(now - last)
                    else:
                        longest[id(fault)] = max(longest[id(fault)], now - last)
                last = now
    out: dict[str, float] = {}
    for prefix, scope in scopes.items():
        out |= scope.measures(prefix)
    if usual:
        usual.sort()
        out |= {"usual.gap_p50": at(usual, 0.5), "usual.gap_p99": at(usual, 0.99), "usual.gap_max": usual[-1]}
    for name in {h.name for h in happened}:
        mine = sorted(longest[id(h)] for h in blame.faults if h.name == name)
        out[f"fault.{name}.count"] = len(mine)
        if mine:
            out |= {f"fault.{name}.gap_p50": at(mine, 0.5), f"fault.{name}.gap_p99": at(mine, 0.99), f"fault.{name}.gap_max": mine[-1]}
    return Gaps(out, [(h, longest[id(h)]) for h in blame.faults])
