"""The clients: each asks, reads its stream to the end, and asks again. What became of every request is recorded."""

import asyncio
import collections
import itertools
import time
from dataclasses import dataclass
from typing import Callable, Protocol

from asks import Ask, Prompts, ask
from client import Answer, Broken, Failed, Refused, Unreachable, stream
from scenario import Load

PORT = 8080
# Longer than any fault of a scenario; the agent's own deadline is longer still.
PATIENCE = 180.0


class Fronts(Protocol):
    """What the clients know of the gateways, as a load balancer with health checks would."""

    def address(self, host: str) -> str: ...

    def away(self, host: str, since: float) -> bool:
        """Whether the bed itself took it away at some time since then, or it has not come back."""

    def killed(self, host: str, since: float) -> bool:
        """Whether the bed killed it since then."""


@dataclass
class Record:
    """One request that got an answer, or none."""

    load: str
    index: int
    ask: Ask
    gateway: str
    begin: float
    end: float
    # complete, failed, broken (with its gateway, which was killed)
    outcome: str
    why: str = ""
    answer: Answer | None = None


class Run:
    """All loads of a scenario over its time. `begin` is the moment 0."""

    def __init__(self, loads: tuple[Load, ...], fronts: Fronts, seed: int):
        self.loads, self.fronts, self.seed = loads, fronts, seed
        self.records: list[Record] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self.prompts = {most: Prompts.read(most) for most in {load.prompt_tokens for load in loads}}

    async def run(self, begin: float) -> None:
        clients = []
        for load in self.loads:
            indices = itertools.count()
            clients += [self._client(load, i, indices, begin) for i in range(load.streams)]
        await asyncio.gather(*clients)

    async def _client(self, load: Load, number: int, indices: "itertools.count[int]", begin: float) -> None:
        await asyncio.sleep(max(0.0, begin + load.begin - time.monotonic()))
        turn = number
        while time.monotonic() < begin + load.end:
            index = next(indices)
            one = ask(self.prompts[load.prompt_tokens], load.kinds, load.tokens, f"{self.seed}/{load.name}", index)
            record = await self._answered(load, index, one, turn)
            self.records.append(record)
            turn += 1
            if record.outcome == "failed" and record.end - record.begin < 0.1:
                # A server that fails everything at once is not to be asked a thousand times a second.
                await asyncio.sleep(0.2)
            if load.pause:
                await asyncio.sleep(load.pause)

    async def _answered(self, load: Load, index: int, one: Ask, turn: int) -> Record:
        """Asks until a gateway takes the request: refusals at the door, and gateways that are away, are no failures."""
        first = time.monotonic()
        while True:
            gateway = load.gateways[turn % len(load.gateways)]
            begin = time.monotonic()

            def record(outcome: str, why: str = "", answer: Answer | None = None) -> Record:
                return Record(load.name, index, one, gateway, begin, time.monotonic(), outcome, why, answer)

            try:
                return record("complete", answer=await stream(self.fronts.address(gateway), PORT, one, PATIENCE))
            except Refused as error:
                if begin - first > PATIENCE:
                    return record("failed", f"refused for {PATIENCE:.0f} s: {error}")
                self.counts["turned_away" if self.fronts.away(gateway, begin) else "refused"] += 1
                if len(load.gateways) == 1 or not self.fronts.away(gateway, begin):
                    await asyncio.sleep(min(error.after, 2.0))
            except Unreachable as error:
                if not self.fronts.away(gateway, begin) or begin - first > PATIENCE:
                    return record("failed", f"{gateway} cannot be reached: {error}")
                self.counts["turned_away"] += 1
                await asyncio.sleep(0.1)
            except Broken as error:
                if self.fronts.killed(gateway, begin):
                    return record("broken", f"{gateway}: {error}")
                # One that is going away closes connections that it has not answered yet; a stream it has begun it must end.
                if error.begun or not self.fronts.away(gateway, begin):
                    return record("failed", f"{gateway}: {error}")
                self.counts["turned_away"] += 1
            except (Failed, ValueError, KeyError, IndexError) as error:
                return record("failed", f"{gateway}: {error}")
            turn += 1


async def replay(asks: list[Ask], address: str, streams: int, done: Callable[[int, Answer | None, str], None]) -> None:
    """Asks all of them of one server, so many at a time, and tells each one's answer."""
    queue = iter(range(len(asks)))

    async def client() -> None:
        for i in queue:
            for _ in range(100):
                try:
                    done(i, await stream(address, PORT, asks[i], PATIENCE), "")
                except Refused as error:
                    await asyncio.sleep(min(error.after, 1.0))
                    continue
                except (Broken, Failed, Unreachable) as error:
                    done(i, None, str(error))
                break

    await asyncio.gather(*(client() for _ in range(streams)))
