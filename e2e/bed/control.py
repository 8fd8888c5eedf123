"""What an operator does: writes the table, waits for workers to be ready, reads their counters."""

import asyncio
import json
import ssl
import time

import counters
import pages
from agents import Agents
from certs import Pki
from counters import Sums
from machine import Unable
from table import PEER_PORT, Placed, Shape, Unit, hottest, write

TABLE_PAGE = "/v1/placement"
# A slot of a small model loads in milliseconds; a host that is busy takes longer.
LOADED = 60.0


class Control:
    def __init__(self, agents: Agents, table: Placed | None, shape: Shape | None, pki: Pki | None = None):
        self.agents, self._table, self._shape, self._pki = agents, table, shape, pki
        self.sums = Sums()
        # Held by whoever changes the table.
        self.changing = asyncio.Lock()

    @property
    def table(self) -> Placed:
        if self._table is None:
            raise Unable("the scenario has no workers, so no table")
        return self._table

    def write_tables(self) -> None:
        """The file of every process, at one moment each."""
        if self._table is None:
            return
        for name, agent in self.agents.all.items():
            if agent.host.role != "serve":
                write(self.agents.table(name), self._table.document(agent.host.sees))

    async def publish(self, by: str) -> None:
        """The table to everybody: by file, or by HTTP (the files follow, for who starts later)."""
        if by == "http":
            for name, agent in self.agents.all.items():
                if agent.running and agent.host.role != "serve":
                    await self._push(name, json.dumps(self.table.document(agent.host.sees)).encode())
        elif by != "file":
            raise Unable(f"a table is published by `file` or `http`, not {by!r}")
        await asyncio.to_thread(self.write_tables)

    def _tls(self) -> ssl.SSLContext | None:
        return pages.as_operator(self._pki.operator) if self._pki else None

    async def _push(self, name: str, body: bytes) -> None:
        try:
            status, text = await pages.get(self.agents.address(name), TABLE_PAGE, 5, "PUT", body, PEER_PORT, self._tls())
        except (OSError, asyncio.TimeoutError, ValueError, IndexError) as error:
            raise Unable(f"{name} took no pushed table: {type(error).__name__} {error}") from error
        if status not in (200, 202, 204):
            raise Unable(f"{name} answered a pushed table with {status}: {text.strip()[:200]}")

    async def ready(self, name: str, patience: float) -> None:
        end = time.monotonic() + patience
        agent = self.agents.all[name]
        incarnation, last = agent.incarnation, "nothing"
        while time.monotonic() < end:
            if not agent.running or agent.incarnation != incarnation:
                if agent.expected or agent.incarnation != incarnation:
                    # Another fault took it away meanwhile.
                    return
                raise Unable(f"{name} ended with {agent.process.returncode} before it was ready; its log: {agent.log}")
            try:
                status, last = await pages.get(self.agents.address(name), "/readyz", 2)
                if status == 200:
                    return self.agents.returned(name)
            except (OSError, asyncio.TimeoutError, ValueError, IndexError) as error:
                last = f"{type(error).__name__} {error}"
            await asyncio.sleep(0.1)
        raise Unable(f"{name} was not ready within {patience:.0f} s: {last.strip()}; its log: {agent.log}")

    async def scrape(self, name: str) -> None:
        """Keeps a process' counters; one that does not answer keeps those it had."""
        incarnation = self.agents.all[name].incarnation
        try:
            status, text = await pages.get(self.agents.address(name), "/metrics", 0.5)
        except (OSError, asyncio.TimeoutError, ValueError, IndexError):
            return
        if status == 200:
            self.sums.put(name, incarnation, counters.parse(text))

    async def scrape_all(self) -> None:
        self.agents.poll()
        await asyncio.gather(*(self.scrape(name) for name, agent in self.agents.all.items() if agent.running))

    async def watch(self) -> None:
        while True:
            await self.scrape_all()
            await asyncio.sleep(1.0)

    async def pressure(self, name: str) -> dict:
        """With certificates, only who has one sees it."""
        status, text = await pages.get(self.agents.address(name), "/v1/pressure", 5, port=PEER_PORT, tls=self._tls())
        if status != 200:
            raise Unable(f"{name}: /v1/pressure gave {status}: {text.strip()[:200]}")
        return json.loads(text)

    async def units(self, wanted: object, worker: str) -> list[Unit]:
        """`all`, `held` (by the worker), `hottest` or `hottest:N` (per block), or a list of [block, expert]."""
        if wanted == "all":
            return self._shape.units()
        if wanted == "held":
            return [unit for unit in self._shape.units()
                    if any(worker in self.table.holders(unit, state) for state in ("Joining", "Active", "Draining"))]
        if isinstance(wanted, str) and wanted.partition(":")[0] == "hottest":
            count = int(wanted.partition(":")[2] or 1)
            ranks = [n for n, a in self.agents.all.items() if a.running and a.host.role in ("attention", "hybrid")]
            told = [await self.pressure(name) for name in ranks]
            return hottest([w["dispatched"] for page in told for w in page["workers"] if w["dispatched"]], self._shape, count)
        if isinstance(wanted, list):
            return [(block, expert) for block, expert in wanted]
        raise Unable(f"units are `all`, `held`, `hottest`, `hottest:N` or a list, not {wanted!r}")

    async def place(self, worker: str, units: list[Unit], by: str) -> str:
        """Joining, then, when the worker has loaded them, Active."""
        begin = time.monotonic()
        self.table.add(worker, units)
        await self.publish(by)
        await self._loaded(worker, sum(row["worker"] == worker for part in self.table.slices for row in part["units"]))
        loaded = time.monotonic()
        self.table.set_state(worker, units, "Active")
        await self.publish(by)
        return f"{len(units)} experts on {worker}, loaded after {loaded - begin:.2f} s"

    async def _loaded(self, worker: str, slots: int) -> None:
        end = time.monotonic() + LOADED
        while time.monotonic() < end:
            page = await self.pressure(worker)
            mine = page["workers"]
            serving, loading = (sum(w[key] for w in mine) for key in ("units_serving", "units_loading"))
            if not loading and serving >= slots:
                return
            await asyncio.sleep(0.1)
        raise Unable(f"{worker} has not loaded its {slots} slots within {LOADED:.0f} s: {serving} serving, {loading} loading")

    async def unplace(self, worker: str, units: list[Unit], by: str, pause: float) -> None:
        """Draining, then, after a bound, gone."""
        self.table.set_state(worker, units, "Draining")
        await self.publish(by)
        await asyncio.sleep(pause)
        self.table.remove(worker, units)
        await self.publish(by)
