"""The report: tables for people, JSON for machines."""

import collections
from typing import Any

from agents import Agents
from compare import Comparison
from control import Control
from counters import HISTOGRAMS, quantile
from gaps import Gaps
from faults import Faults
from holds import Verdict, judge
from load import Record, Run
from scenario import Scenario

# Told in any case, since a run with faults in which these are all zero has shown nothing.
ALWAYS = ("masks", "redispatches", "hedges", "duplicates", "replays")


def measures(run: Run, gaps: Gaps, comparison: Comparison | None, control: Control, agents: Agents, faults: Faults,
             problems: list[str]) -> dict[str, float]:
    """Every measure by its name."""
    outcomes = collections.Counter(record.outcome for record in run.records)
    out: dict[str, float] = {
        "requests.sent": len(run.records),
        "requests.complete": outcomes["complete"],
        "requests.failed": outcomes["failed"],
        "requests.broken": outcomes["broken"],
        "requests.refused": run.counts["refused"],
        "requests.turned_away": run.counts["turned_away"],
        "processes.surprises": sum(len(agent.surprises) for agent in agents.all.values()),
        "processes.panics": len(agents.panics()),
        "processes.starts": sum(agent.incarnation for agent in agents.all.values()),
        "faults.done": sum(not h.skipped for h in faults.happened),
        "faults.skipped": sum(h.skipped for h in faults.happened),
        "problems": len(problems),
    }
    for kind in {record.ask.kind for record in run.records}:
        out[f"requests.{kind}"] = sum(record.ask.kind == kind for record in run.records)
    if comparison:
        out |= {"compare.compared": comparison.compared, "compare.different": comparison.different,
                "compare.missing": comparison.missing, "compare.tokens": comparison.tokens,
                "compare.cohorts": comparison.cohorts}
    out |= {f"counters.{name}": value for name, value in control.sums.totals().items()}
    for name in HISTOGRAMS:
        for q in (0.5, 0.99):
            if (value := quantile(control.sums.buckets(name), q)) is not None:
                out[f"histograms.{name}_p{100 * q:.0f}"] = value
    return out | gaps.measures


def verdicts(scenario: Scenario, taken: dict[str, float]) -> list[Verdict]:
    return [judge(hold, taken) for hold in scenario.holds]


def failures(records: list[Record]) -> list[str]:
    """Reasons with how often, most frequent first."""
    reasons = collections.Counter(record.why for record in records if record.outcome == "failed")
    return [f"{n} x {why}" for why, n in reasons.most_common(10)]


def as_json(scenario: Scenario, run: Run, taken: dict[str, float], gaps: Gaps, comparison: Comparison | None, control: Control,
            judged: list[Verdict], problems: list[str]) -> dict[str, Any]:
    return {
        "scenario": scenario.name,
        "duration_s": scenario.duration,
        "seed": scenario.seed,
        "held": all(v.held for v in judged) and not problems,
        "holds": [{"measure": v.hold.measure, "held": v.held, "text": v.text, "why": v.hold.why} for v in judged],
        "problems": problems,
        "failures": failures(run.records),
        "differences": comparison.examples if comparison else [],
        "faults": [{"name": h.name, "kind": h.kind, "targets": h.targets, "begin": round(h.begin, 3), "end": round(h.end, 3),
                    "longest_gap": round(gap, 4), "notes": h.notes} for h, gap in gaps.faults],
        "measures": {name: taken[name] for name in sorted(taken)},
        "counters_by_host": control.sums.by_host(),
    }


def show(report: dict[str, Any], about: str) -> None:
    m = report["measures"]
    print(f"\n{report['scenario']}: {about}")
    print(f"{report['duration_s']:.0f} s, seed {report['seed']}")
    kinds = ", ".join(f"{kind} {m[f'requests.{kind}']:.0f}" for kind in ("greedy", "sampled", "choices", "schema", "plain")
                      if f"requests.{kind}" in m)
    print(f"requests     {m['requests.sent']:.0f} ({kinds}): complete {m['requests.complete']:.0f}, failed {m['requests.failed']:.0f}, "
          f"broken with their gateway {m['requests.broken']:.0f}; asked again elsewhere {m['requests.turned_away']:.0f}, "
          f"refused at the door {m['requests.refused']:.0f}")
    if "compare.compared" in m:
        print(f"compared     {m['compare.compared']:.0f} answers of {m['compare.tokens']:.0f} tokens: {m['compare.different']:.0f} different, "
              f"{m['compare.missing']:.0f} without a reference")
    counted = {name.removeprefix("counters."): value for name, value in m.items() if name.startswith("counters.")}
    shown = {name: counted.get(name) for name in ALWAYS} | counted
    print("counters     " + ", ".join(f"{name.replace('_', ' ')} {'not exported' if value is None else f'{value:.0f}'}"
                                      for name, value in shown.items()))
    rows = [("", "all")] + [(p, p.rstrip(".")) for p in _scopes(m)]
    print(f"{'':32} {'tokens/s':>9} {'gap p50':>9} {'p99':>9} {'longest':>9} {'first p50':>9} {'longest':>9}   (ms)")
    for prefix, name in rows:
        cells = [m.get(f"{prefix}{of}") for of in ("gap_p50", "gap_p99", "gap_max", "first_p50", "first_max")]
        print(f"{name:32} {_cell(m.get(f'{prefix}tokens_per_second'), 1)} " + " ".join(_cell(c, 1e3) for c in cells))
    groups: dict[tuple, list[dict]] = {}
    for fault in report["faults"]:
        groups.setdefault((fault["name"], fault["kind"], tuple(fault["targets"])), []).append(fault)
    if groups:
        print(f"{'fault':32} {'times':>9} {'first at':>9} {'lasts':>9} {'gap':>9}   (s, s, ms: the longest gap of a stream)")
    for (name, kind, targets), ones in groups.items():
        label = f"{name if name == kind else f'{name} ({kind})'} {' '.join(targets)}"
        print(f"{label:32} {len(ones):9} {ones[0]['begin']:9.1f} {ones[0]['end'] - ones[0]['begin']:9.1f} "
              f"{max(one['longest_gap'] for one in ones) * 1e3:9.1f}")
        for note in (note for one in ones for note in one["notes"]):
            print(f"    {note}")
    for title in ("failures", "differences", "problems"):
        for line in report[title]:
            print(f"{title.upper().removesuffix('S'):12} {line}")
    for hold in report["holds"]:
        print(f"{'holds' if hold['held'] else 'BROKEN':12} {hold['text']}{'  (' + hold['why'] + ')' if hold['why'] else ''}")
    print(f"{report['scenario']}: " + ("all of it holds" if report["held"] else "NOT all of it holds"), flush=True)


def _scopes(taken: dict[str, float]) -> list[str]:
    """Prefixes of the loads and phases, but a load that is the only one says nothing new."""
    found = [n.removesuffix("tokens_per_second") for n in taken if n.endswith(".tokens_per_second")]
    loads = {p for p in found if p.startswith("load.")}
    return [p for p in found if len(loads) > 1 or "load." not in p] + (["usual."] if "usual.gap_p50" in taken else [])


def _cell(value: float | None, scale: float) -> str:
    return f"{'-':>9}" if value is None else f"{value * scale:9.1f}"
