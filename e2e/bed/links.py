"""Links that are cut, broken, parted and slowed.

Cuts are silent, as a pulled cable in the middle of the network is: no reset, no unreachable, no loss of carrier. They need no
packet filter, which many small kernels lack:
- a host is cut off by setting its port of the bridge to `disabled`;
- two hosts are parted by telling each that the other has a hardware address that nobody has.
A break is the opposite: every connection of the data plane on a host is reset at both ends, and may be dialled anew at once.
"""

import itertools

from hosts import SWITCH, Lab, port
from machine import run

NOBODY = "02:00:00:00:de:ad"
DISABLED, FORWARDING = "0", "3"
PEER_PORT = 7070


class Links:
    def __init__(self, lab: Lab):
        self.lab = lab
        # How many faults that last hold a cut, so that overlapping ones do not heal each other's.
        self.cuts: dict[str, int] = {}
        self.parted: dict[tuple[str, str], int] = {}

    def cut(self, host: str) -> None:
        self.cuts[host] = self.cuts.get(host, 0) + 1
        self._state(host, DISABLED)

    def heal(self, host: str) -> None:
        self.cuts[host] -= 1
        if self.cuts[host] == 0:
            self._state(host, FORWARDING)

    def _state(self, host: str, state: str) -> None:
        run("bridge", "-n", self.lab.namespace(SWITCH), "link", "set", "dev", port(host), "state", state)

    def part(self, left: list[str], right: list[str]) -> None:
        for pair in itertools.product(left, right):
            self.parted[pair] = self.parted.get(pair, 0) + 1
            for here, there in (pair, pair[::-1]):
                run("ip", "-n", self.lab.namespace(here), "neigh", "replace", self.lab.address(there), "lladdr", NOBODY, "dev",
                    "eth0", "nud", "permanent")

    def join(self, left: list[str], right: list[str]) -> None:
        for pair in itertools.product(left, right):
            self.parted[pair] -= 1
            if self.parted[pair]:
                continue
            for here, there in (pair, pair[::-1]):
                run("ip", "-n", self.lab.namespace(here), "neigh", "del", self.lab.address(there), "dev", "eth0")

    def break_connections(self, host: str) -> None:
        # ss says "Invalid argument" after the last socket it closed; what it could not close shows in the run.
        run("ip", "netns", "exec", self.lab.namespace(host), "ss", "-K", "sport", "=", f":{PEER_PORT}", "or", "dport", "=",
            f":{PEER_PORT}", check=False)

    def limit(self, host: str, rate: str) -> None:
        """Both directions of a host's link, each."""
        shape = ("root", "tbf", "rate", rate, "burst", "32kb", "latency", "400ms")
        run("tc", "-n", self.lab.namespace(host), "qdisc", "replace", "dev", "eth0", *shape)
        run("tc", "-n", self.lab.namespace(SWITCH), "qdisc", "replace", "dev", port(host), *shape)

    def unlimit(self, host: str) -> None:
        run("tc", "-n", self.lab.namespace(host), "qdisc", "del", "dev", "eth0", "root")
        run("tc", "-n", self.lab.namespace(SWITCH), "qdisc", "del", "dev", port(host), "root")
