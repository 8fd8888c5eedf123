"""Faults: each occurrence is done, lasts, and is undone; what happened when is kept for the report."""

import asyncio
import signal
import sys
import time
from dataclasses import dataclass, field

from agents import Agents
from certs import Pki
from control import Control
from hosts import SWITCH
from links import Links
from machine import Unable
from scenario import Occurrence, Scenario, schedule

# For a process to be ready again. A large model takes longer; a bed is for small ones.
READY = 60.0
GRACE = 30.0
# For a slot that drains, before it is taken out of the table.
PAUSE = 5.0


@dataclass
class Happened:
    """One fault as it was: times in seconds since the load began."""

    name: str
    kind: str
    targets: tuple[str, ...]
    begin: float
    end: float
    settle: float
    # Nothing was done: the target was not running.
    skipped: bool = False
    notes: list[str] = field(default_factory=list)


class Faults:
    def __init__(self, scenario: Scenario, agents: Agents, links: Links, control: Control, pki: Pki | None):
        self.scenario, self.agents, self.links, self.control, self.pki = scenario, agents, links, control, pki
        self.happened: list[Happened] = []
        self.problems: list[str] = []

    async def run(self, begin: float) -> None:
        async with asyncio.TaskGroup() as group:
            for one in schedule(self.scenario.faults, self.scenario.duration):
                await asyncio.sleep(max(0.0, begin + one.at - time.monotonic()))
                group.create_task(self._one(one, begin))

    async def _one(self, one: Occurrence, begin: float) -> None:
        now = time.monotonic() - begin
        record = Happened(one.fault.name, one.fault.kind, one.targets, now, now, one.fault.settle)
        self.happened.append(record)
        try:
            await getattr(self, f"_{one.fault.kind}")(one, record)
        except Exception as error:
            # Whatever it was, the load goes on, is told, and the run does not hold.
            what = str(error) if isinstance(error, Unable) else repr(error)
            self.problems.append(f"the fault {one.fault.name} at {now:.1f} s could not be done: {what}")
        record.end = time.monotonic() - begin

    def _live(self, one: Occurrence, record: Happened) -> list[str]:
        live = [name for name in one.targets if self.agents.all[name].running]
        record.skipped = not live
        return live

    async def _start_again(self, names: list[str]) -> None:
        for name in names:
            self.agents.start(name)
        await asyncio.gather(*(self.control.ready(name, READY) for name in names))

    async def _kill(self, one: Occurrence, record: Happened) -> None:
        live = self._live(one, record)
        await asyncio.gather(*(self.control.scrape(name) for name in live))
        for name in live:
            self.agents.kill(name)
        if one.fault.lasts:
            await asyncio.sleep(one.fault.lasts)
            await self._start_again(live)

    async def _stop(self, one: Occurrence, record: Happened) -> None:
        live = self._live(one, record)
        for name in live:
            self.agents.signal(name, signal.SIGSTOP)
        await asyncio.sleep(one.fault.lasts)
        for name in live:
            # Something else may have killed it meanwhile.
            if self.agents.all[name].running:
                self.agents.signal(name, signal.SIGCONT)

    async def _end(self, live: list[str], grace: float, record: Happened) -> None:
        """Drains and waits; one that takes longer than its grace is killed, and that is a problem."""
        await asyncio.gather(*(self.control.scrape(name) for name in live))
        begin = time.monotonic()
        for name in live:
            self.agents.drain(name)
        while any(self.agents.all[name].running for name in live) and time.monotonic() < begin + grace:
            await asyncio.sleep(0.02)
        for name in live:
            agent = self.agents.all[name]
            if agent.running:
                self.problems.append(f"{name} did not end within {grace:.0f} s of SIGTERM")
                self.agents.kill(name)
            elif agent.process.returncode:
                self.problems.append(f"{name} ended with {agent.process.returncode} after SIGTERM")
        record.notes.append(f"gone after {time.monotonic() - begin:.1f} s")

    async def _drain(self, one: Occurrence, record: Happened) -> None:
        live = self._live(one, record)
        await self._end(live, one.fault.options.get("grace", GRACE), record)
        if one.fault.lasts:
            await asyncio.sleep(one.fault.lasts)
            await self._start_again(live)

    async def _restart(self, one: Occurrence, record: Happened) -> None:
        live = self._live(one, record)
        await self._end(live, one.fault.options.get("grace", GRACE), record)
        for name in live:
            agent = self.agents.all[name]
            if "binary" in one.fault.options:
                agent.binary = self.agents.binary(one.fault.options["binary"])
            agent.flags = (*agent.flags, *one.fault.options.get("flags", "").split())
        await self._start_again(live)

    async def _start(self, one: Occurrence, record: Happened) -> None:
        names = [name for name in one.targets if not self.agents.all[name].running]
        record.skipped = not names
        await self._start_again(names)

    async def _cut(self, one: Occurrence, record: Happened) -> None:
        for name in one.targets:
            self.links.cut(name)
        try:
            await asyncio.sleep(one.fault.lasts)
        finally:
            for name in one.targets:
                self.links.heal(name)

    async def _break(self, one: Occurrence, record: Happened) -> None:
        """Resets, and with `lasts` the link stays cut so long. The cut comes second, or the resets would be lost in it."""
        for name in one.targets:
            self.links.break_connections(name)
        if one.fault.lasts:
            await self._cut(one, record)

    async def _partition(self, one: Occurrence, record: Happened) -> None:
        left, right = one.fault.options["between"]
        record.targets = (*left, "|", *right)
        self.links.part(left, right)
        try:
            await asyncio.sleep(one.fault.lasts)
        finally:
            self.links.join(left, right)

    async def _rate(self, one: Occurrence, record: Happened) -> None:
        for name in one.targets:
            self.links.limit(name, one.fault.options["rate"])
        try:
            await asyncio.sleep(one.fault.lasts)
        finally:
            for name in one.targets:
                self.links.unlimit(name)

    async def _burn(self, one: Occurrence, record: Happened) -> None:
        """Others that want the cores."""
        command = [sys.executable, "-c", "while True: pass"]
        burners = [self.agents.lab.exec(SWITCH, command) for _ in range(one.fault.options["processes"])]
        try:
            await asyncio.sleep(one.fault.lasts)
        finally:
            for burner in burners:
                burner.kill()
                burner.wait()

    async def _rotate(self, one: Occurrence, record: Happened) -> None:
        if self.pki is None:
            raise Unable("the scenario runs without TLS")
        pause = float(one.fault.options.get("pause", 5))
        if one.fault.options["what"] == "leaves":
            return await asyncio.to_thread(self.pki.rotate_leaves)
        for step in (self.pki.add_authority, self.pki.rotate_leaves, self.pki.drop_old_authorities):
            await asyncio.to_thread(step)
            await asyncio.sleep(pause)

    # Changes of the table happen one after the other, in the order in which they were due.

    async def _place(self, one: Occurrence, record: Happened) -> None:
        (worker,) = one.targets
        async with self.control.changing:
            units = await self.control.units(one.fault.options["units"], worker)
            record.notes.append(await self.control.place(worker, units, one.fault.options.get("by", "file")))

    async def _unplace(self, one: Occurrence, record: Happened) -> None:
        (worker,) = one.targets
        async with self.control.changing:
            units = await self.control.units(one.fault.options["units"], worker)
            pause = float(one.fault.options.get("pause", PAUSE))
            await self.control.unplace(worker, units, one.fault.options.get("by", "file"), pause)

    async def _join(self, one: Occurrence, record: Happened) -> None:
        """A new worker: in the table before it starts, so that those who would talk to it know it."""
        (worker,) = one.targets
        by = one.fault.options.get("by", "file")
        async with self.control.changing:
            units = await self.control.units(one.fault.options["units"], worker) if "units" in one.fault.options else []
            self.control.table.enlist(worker)
            await self.control.publish(by)
            await self._start_again([worker])
            if units:
                record.notes.append(await self.control.place(worker, units, by))

    async def _leave(self, one: Occurrence, record: Happened) -> None:
        """Drained in the table, then as a process, then out of the table."""
        (worker,) = one.targets
        by = one.fault.options.get("by", "file")
        async with self.control.changing:
            units = await self.control.units("held", worker)
            if units:
                await self.control.unplace(worker, units, by, float(one.fault.options.get("pause", PAUSE)))
            await self._end(self._live(one, record), one.fault.options.get("grace", GRACE), record)
            self.control.table.strike(worker)
            await self.control.publish(by)
