"""The processes: one `sluice-agent` per host, started, stopped, killed, drained and started again."""

import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from hosts import Lab
from machine import Unable
from scenario import Host, Scenario
from table import PEER_PORT

DEPLOYMENT = "default/sluice"


@dataclass
class Agent:
    host: Host
    binary: str
    flags: tuple[str, ...]
    log: Path
    process: subprocess.Popen | None = None
    # How often it was started.
    incarnation: int = 0
    # Spans of time in which the bed had taken it away; the last one may have no end yet.
    away: list[list[float | None]] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)
    # Ends that the bed did not ask for.
    surprises: list[str] = field(default_factory=list)
    expected: bool = False

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None


class Agents:
    """All processes of a scenario. `binaries` by name; the empty name is the usual one."""

    def __init__(self, scenario: Scenario, lab: Lab, binaries: dict[str, str], work: Path):
        self.scenario, self.lab, self.binaries, self.work = scenario, lab, binaries, work
        self.all: dict[str, Agent] = {}
        for host in scenario.hosts.values():
            directory = work / host.name
            directory.mkdir(exist_ok=True)
            # A gateway has the model's tokenizer, and no engine.
            engine = () if host.role == "gateway" else scenario.flags["engine"]
            flags = (*scenario.flags["model"], *engine, *scenario.flags[host.role], *host.flags)
            self.all[host.name] = Agent(host, self.binary(host.binary), flags, directory / "log")

    def binary(self, name: str) -> str:
        if name not in self.binaries:
            raise Unable(f"the scenario names the binary {name!r}: give it with --binary {name}=PATH")
        return self.binaries[name]

    def command(self, agent: Agent) -> list[str]:
        host = agent.host
        command = [agent.binary, host.role]
        if host.role in ("gateway", "serve"):
            command += ["--listen", "0.0.0.0:8080"]
        if host.role != "serve":
            command += ["--name", host.name, "--deployment", DEPLOYMENT, "--table", str(self.table(host.name)), "--tls",
                        str(self.work / "tls" / host.name) if self.scenario.tls else "off",
                        "--peer-listen", f"0.0.0.0:{PEER_PORT}"]
        return [*command, "--admin-listen", "0.0.0.0:9090", *agent.flags]

    def table(self, name: str) -> Path:
        return self.work / name / "table.json"

    def start(self, name: str) -> None:
        agent = self.all[name]
        agent.incarnation += 1
        with open(agent.log, "a") as log:
            print(f"--- start {agent.incarnation}: {' '.join(self.command(agent))}", file=log, flush=True)
            agent.process = self.lab.exec(
                name, self.command(agent), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={"RUST_LOG": "info", **os.environ, "NO_COLOR": "1"}, start_new_session=True,
            )
        agent.expected = False

    def returned(self, name: str) -> None:
        """It is ready: clients are expected to be served by it."""
        agent = self.all[name]
        if agent.away and agent.away[-1][1] is None:
            agent.away[-1][1] = time.monotonic()

    def _take_away(self, agent: Agent) -> None:
        agent.expected = True
        if not agent.away or agent.away[-1][1] is not None:
            agent.away.append([time.monotonic(), None])

    def kill(self, name: str) -> None:
        agent = self.all[name]
        self._take_away(agent)
        agent.kills.append(time.monotonic())
        agent.process.kill()
        agent.process.wait()

    def signal(self, name: str, number: signal.Signals) -> None:
        self.all[name].process.send_signal(number)

    def drain(self, name: str) -> None:
        agent = self.all[name]
        self._take_away(agent)
        agent.process.terminate()

    def poll(self) -> None:
        """Notes processes that ended by themselves."""
        for agent in self.all.values():
            if agent.process is not None and not agent.expected and agent.process.poll() is not None:
                agent.surprises.append(f"{agent.host.name} ended with {agent.process.returncode}")
                agent.expected = True

    def stop_all(self, grace: float) -> list[str]:
        """Drains all, then kills; who had to be killed, or ended badly."""
        self.poll()
        running = [agent for agent in self.all.values() if agent.running]
        late = []
        # Gateways first: they hold what others still work at.
        for gateways in (True, False):
            part = [agent for agent in running if (agent.host.role in ("gateway", "serve")) == gateways]
            for agent in part:
                agent.expected = True
                agent.process.send_signal(signal.SIGCONT)
                agent.process.terminate()
            end = time.monotonic() + grace
            for agent in part:
                try:
                    if agent.process.wait(max(0.1, end - time.monotonic())):
                        late.append(f"{agent.host.name} ended with {agent.process.returncode} after SIGTERM")
                except subprocess.TimeoutExpired:
                    agent.process.kill()
                    agent.process.wait()
                    late.append(f"{agent.host.name} did not end within {grace:.0f} s of SIGTERM")
        return late

    # What the clients know.

    def address(self, host: str) -> str:
        return self.lab.address(host)

    def away(self, host: str, since: float) -> bool:
        return any(end is None or end >= since for _, end in self.all[host].away)

    def killed(self, host: str, since: float) -> bool:
        return any(at >= since for at in self.all[host].kills)

    def panics(self) -> list[str]:
        found = []
        for agent in self.all.values():
            if agent.log.exists():
                lines = agent.log.read_text(errors="replace").splitlines()
                found += [f"{agent.host.name}: {line}" for line in lines if "panicked at" in line]
        return found
