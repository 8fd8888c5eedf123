#!/usr/bin/env python3
"""Runs scenarios on a bed of network namespaces: hosts, links, processes, load, faults, and what must hold.

    cargo build --release -p sluice-agent
    sudo e2e/bed/bed.py run smoke                       # a scenario of scenarios/, or the path of a file
    sudo e2e/bed/bed.py run kills --json kills.json
    sudo e2e/bed/bed.py run rolling --binary next=/path/to/another/sluice-agent
    e2e/bed/bed.py list                                 # the scenarios there are
    sudo e2e/bed/bed.py check                           # whether this machine can be a bed
    sudo e2e/bed/bed.py clean                           # after a crash

Needs Linux, root, iproute2, openssl and Python 3.11, nothing else. Exits with 0 only if all that must hold does.
"""

import argparse
import asyncio
import dataclasses
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import machine
import report
import table
from agents import DEPLOYMENT, Agents
from certs import Pki
from client import Answer
from compare import Comparison, by_cohort
from control import Control
from faults import READY, Faults
from gaps import measure
from hosts import Lab
from links import Links
from load import PORT, Record, Run, replay
from machine import Unable
from scenario import BadScenario, Host, Load, Scenario, parse, read

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# The host of the undisturbed server.
REFERENCE = "ref"


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


class Bed:
    """One scenario from its namespaces to its report."""

    def __init__(self, scenario: Scenario, args: argparse.Namespace, binaries: dict[str, str]):
        self.scenario, self.args, self.binaries = scenario, args, binaries
        self.lab = Lab(args.bed)
        self.work = Path(tempfile.mkdtemp(prefix=f"sluice-{args.bed}-"))
        self.problems: list[str] = []

    def run(self) -> dict:
        self.lab.lock()
        try:
            self.lab.make([*self.scenario.hosts, REFERENCE])
            return asyncio.run(self._run())
        finally:
            left = self.lab.clean()
            say(f"cleaned up {left} namespaces")

    async def _run(self) -> dict:
        scenario = self.scenario
        agents = Agents(scenario, self.lab, self.binaries, self.work)
        pki = self._certificates()
        control = Control(agents, *self._table(), pki)
        control.write_tables()
        # Ctrl-C and SIGTERM end what runs; the clean-up follows.
        main = asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, main.cancel)
        await self._start(agents, control)
        run = Run(scenario.loads, agents, scenario.seed)
        faults = Faults(scenario, agents, Links(self.lab), control, pki)
        say(f"load for {scenario.duration:.0f} s: {sum(load.streams for load in scenario.loads)} streams")
        begin = time.monotonic()
        watch = asyncio.create_task(control.watch())
        await asyncio.gather(run.run(begin), faults.run(begin), asyncio.sleep(scenario.duration))
        watch.cancel()
        await control.scrape_all()
        self.problems += faults.problems
        self.problems += await asyncio.to_thread(agents.stop_all, self.args.grace)
        gaps = measure(run.records, faults.happened, scenario, begin)
        comparison = await self._compare(run.records) if scenario.compare else None
        taken = report.measures(run, gaps, comparison, control, agents, faults, self.problems)
        self.problems += [line for agent in agents.all.values() for line in agent.surprises]
        self.problems += agents.panics()
        return report.as_json(scenario, run, taken, gaps, comparison, control, report.verdicts(scenario, taken), self.problems)

    def _certificates(self) -> Pki | None:
        hosts = [host for host in self.scenario.hosts.values() if host.role != "serve"]
        if not self.scenario.tls or not hosts:
            return None
        pki = Pki(self.work / "tls", DEPLOYMENT)
        for host in hosts:
            pki.issue(host.name, host.role)
        pki.issue("operator", "operator")
        return pki

    def _table(self) -> tuple[table.Placed | None, table.Shape | None]:
        scenario, agent = self.scenario, self.binaries[""]
        hosts = [host for host in scenario.hosts.values() if host.role != "serve"]
        if not hosts:
            return None, None
        shape = table.shape(agent, self.args.model)
        listed = table.workers(hosts, self.lab.hosts)
        later = {host.name for host in hosts if host.later}
        placement, holders = scenario.placement, [h.name for h in hosts if h.role in table.HOLDERS and not h.later]
        cut = placement.slices, placement.segments
        if placement.groups:
            rows = table.grouped(shape.units(), placement.groups, *cut)
        elif table.can_plan(agent):
            plan = table.planned(agent, self.args.model, [w for w in listed if w["name"] not in later], placement)
            return table.Placed({**plan, "workers": listed}, later), shape
        else:
            say("the agent has no command `plan`: experts are dealt out in turn")
            rows = table.round_robin(shape.units(), holders, placement.replicas, *cut)
        slices = [{"blocks": [shape.dense, shape.blocks], "generation": 1, "units": rows}]
        return table.Placed({"segments": placement.segments, "workers": listed, "slices": slices}, later), shape

    async def _start(self, agents: Agents, control: Control) -> None:
        names = [name for name, agent in agents.all.items() if not agent.host.later]
        for name, agent in agents.all.items():
            if agent.host.later:
                agent.away.append([0.0, None])
        say(f"starting {', '.join(names)}; logs in {self.work}")
        for name in names:
            agents.start(name)
        await asyncio.gather(*(control.ready(name, READY) for name in names))

    async def _compare(self, records: list[Record]) -> Comparison:
        """Asks everything again of an undisturbed server of the same numerics id, seeds set to those that were used."""
        out = Comparison()
        cohorts = by_cohort([record for record in records if record.outcome == "complete"])
        out.cohorts = len(cohorts)
        for reference in self.scenario.references:
            host = Host(REFERENCE, "serve", reference.flags, reference.binary)
            alone = parse({"duration": 1, "hosts": [{"names": [REFERENCE], "role": "serve"}]}, "reference")
            kept = {kind: self.scenario.flags[kind] for kind in ("model", "engine")}
            alone = dataclasses.replace(alone, hosts={REFERENCE: host}, flags={**alone.flags, **kept})
            agents = Agents(alone, self.lab, self.binaries, self.work)
            agents.start(REFERENCE)
            await Control(agents, None, None).ready(REFERENCE, READY)
            streams = max(sum(load.streams for load in self.scenario.loads), 1)
            await self._against(agents.address(REFERENCE), cohorts, streams, out)
            self.problems += await asyncio.to_thread(agents.stop_all, self.args.grace)
        for fingerprint, left in cohorts.items():
            for record in left:
                out.add(record, None, f"no reference server has the numerics id {fingerprint}")
        return out

    async def _against(self, address: str, cohorts: dict[str, list[Record]], streams: int, out: Comparison) -> None:
        """Takes from `cohorts` what this server has answered."""
        fingerprints: set[str] = set()
        if not cohorts:
            return

        def probed(_: int, answer: Answer | None, why: str) -> None:
            fingerprints.update(answer.fingerprints if answer else ())
            if answer is None:
                self.problems.append(f"the undisturbed server answers nothing: {why}")

        await replay([next(iter(cohorts.values()))[0].ask], address, 1, probed)
        for fingerprint in fingerprints & set(cohorts):
            records = cohorts.pop(fingerprint)
            say(f"comparing {len(records)} answers with an undisturbed server's")
            asks = [record.ask.seeded(record.answer.seed) for record in records]
            await replay(asks, address, streams, lambda i, answer, why: out.add(records[i], answer, why))


def find(name: str) -> Path:
    path = Path(name)
    return path if path.suffix == ".toml" else HERE / "scenarios" / f"{name}.toml"


def scale(scenario: Scenario, args: argparse.Namespace) -> Scenario:
    """What the command line changes in a scenario."""
    fields: dict = {"seed": args.seed if args.seed is not None else scenario.seed}
    if args.no_tls:
        fields["tls"] = False
    if args.no_compare:
        fields["compare"] = False
    if args.streams is not None:
        def fewer(load: Load) -> Load:
            return dataclasses.replace(load, streams=args.streams)
        fields["loads"] = tuple(fewer(load) for load in scenario.loads)
    flags = {**scenario.flags, "engine": (*scenario.flags["engine"], *args.flags)}
    if args.model:
        flags["model"] = ("--model", args.model)
    # Files that belong to a scenario are named by `{bed}`, wherever that is.
    flags = {role: tuple(word.replace("{bed}", str(HERE)) for word in words) for role, words in flags.items()}
    return dataclasses.replace(scenario, flags=flags, **fields)


def run_all(args: argparse.Namespace) -> int:
    default = os.environ.get("SLUICE_AGENT") or Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target") / "release/sluice-agent"
    binaries = {"": str(Path(args.agent or default).resolve())}
    for word in args.binary:
        name, _, path = word.partition("=")
        binaries[name] = str(Path(path).resolve())
    for path in binaries.values():
        if not os.access(path, os.X_OK):
            raise Unable(f"no program {path}: build it, or give it with --agent or --binary")
    scenarios = [scale(read(find(name)), args) for name in args.scenario]
    lacks = machine.check()
    reports = []
    for scenario in scenarios:
        for lack in lacks:
            say(f"this machine cannot do {lack}")
        bed = Bed(scenario, args, binaries)
        found = bed.run()
        report.show(found, scenario.about)
        reports.append(found)
        if found["held"] and not args.keep:
            shutil.rmtree(bed.work)
        else:
            say(f"logs and tables are kept in {bed.work}")
    if args.json:
        Path(args.json).write_text(json.dumps(reports[0] if len(reports) == 1 else reports, indent=1) + "\n")
    return 0 if all(found["held"] for found in reports) else 1


def list_all() -> int:
    for path in sorted((HERE / "scenarios").glob("*.toml")):
        scenario = read(path)
        print(f"{path.stem:16} {scenario.duration:4.0f} s  {scenario.about}")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bed", default="bed", metavar="NAME", help="keeps beds on one machine apart (default: bed)")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run scenarios")
    run.add_argument("scenario", nargs="+")
    run.add_argument("--agent", metavar="FILE", help="the sluice-agent (default: $SLUICE_AGENT, or the release build)")
    run.add_argument("--binary", action="append", default=[], metavar="NAME=FILE", help="another one, as a scenario names it")
    run.add_argument("--model", metavar="DIR", help="a model directory (default: the bundled model)")
    run.add_argument("--flags", default=[], type=str.split, metavar="'FLAGS'", help="more engine flags for every process that has an engine")
    run.add_argument("--streams", type=int, help="instead of each load's own number")
    run.add_argument("--seed", type=int, help="instead of the scenario's")
    run.add_argument("--no-tls", action="store_true")
    run.add_argument("--no-compare", action="store_true")
    run.add_argument("--grace", type=float, default=45.0, help="for every process to end at the end, in seconds (default: 45)")
    run.add_argument("--json", metavar="FILE", help="also write the report as JSON")
    run.add_argument("--keep", action="store_true", help="keep logs and tables of runs in which all held, too")
    commands.add_parser("list", help="what scenarios there are")
    commands.add_parser("check", help="whether this machine can be a bed")
    commands.add_parser("clean", help="remove what an earlier run has left")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    try:
        if args.command == "run":
            return run_all(args)
        if args.command == "list":
            return list_all()
        lacks = machine.check()
        if args.command == "check":
            for lack in lacks:
                print(f"cannot do {lack}")
            print("this machine can be a bed" if not lacks else "this machine can be a bed for the rest")
            return 0
        lab = Lab(args.bed)
        lab.lock()
        print(f"removed {lab.clean()} namespaces")
        return 0
    except (Unable, BadScenario) as error:
        print(f"bed: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("bed: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
