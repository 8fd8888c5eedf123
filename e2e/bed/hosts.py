"""Hosts: network namespaces on one bridge, which has a namespace of its own, as do the clients (they sit at the bridge).

Nothing is made in the machine's own network, so deleting the namespaces leaves nothing behind.
"""

import fcntl
import os
import signal
import subprocess
import time
from pathlib import Path

from machine import Unable, enter, run

NET = "10.77.0"
# Where the clients, the scraping of counters and the reference server are.
SWITCH = "switch"


class Lab:
    """All namespaces of one bed. `name` keeps beds on one machine apart."""

    def __init__(self, name: str = "bed"):
        self.prefix = f"sluice-{name}-"
        self.hosts: dict[str, str] = {}
        self._lock = None

    def namespace(self, host: str) -> str:
        return self.prefix + host

    def address(self, host: str) -> str:
        return self.hosts[host]

    def lock(self) -> None:
        """So that nobody cleans away, or shares, a bed that is in use. The kernel lets go of it when we end."""
        path = Path("/run") / f"{self.prefix}lock"
        self._lock = open(path, "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Unable(f"the bed {self.prefix.rstrip('-')} is in use by another process; choose another --bed") from error

    def make(self, hosts: list[str]) -> None:
        """One namespace per host, all on the bridge; this process goes to the bridge."""
        self.clean()
        switch = self.namespace(SWITCH)
        run("ip", "netns", "add", switch)
        run("ip", "-n", switch, "link", "set", "lo", "up")
        run("ip", "-n", switch, "link", "add", "name", "br0", "type", "bridge", "forward_delay", "0")
        run("ip", "-n", switch, "link", "set", "br0", "up")
        run("ip", "-n", switch, "addr", "add", f"{NET}.1/24", "dev", "br0")
        for i, host in enumerate(hosts):
            namespace, address = self.namespace(host), f"{NET}.{10 + i}"
            run("ip", "netns", "add", namespace)
            run("ip", "-n", switch, "link", "add", "name", port(host), "type", "veth", "peer", "name", "eth0", "netns", namespace)
            run("ip", "-n", switch, "link", "set", port(host), "master", "br0", "up")
            run("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
            run("ip", "-n", namespace, "link", "set", "eth0", "up")
            run("ip", "-n", namespace, "link", "set", "lo", "up")
            self.hosts[host] = address
        enter(switch)

    def exec(self, host: str, command: list[str], **options) -> subprocess.Popen:
        """A process on a host; its pid is the command's own. `ip netns exec` becomes the command."""
        return subprocess.Popen(["ip", "netns", "exec", self.namespace(host), *command], **options)

    def clean(self) -> int:
        """Ends every process in our namespaces, stopped ones too, and deletes them; how many there were."""
        namespaces = [line.split()[0] for line in run("ip", "netns", "list").splitlines() if line.startswith(self.prefix)]
        for namespace in namespaces:
            _end(namespace)
            run("ip", "netns", "del", namespace, check=False)
        self.hosts.clear()
        return len(namespaces)


def port(host: str) -> str:
    """The bridge's end of a host's cable."""
    return f"p-{host}"


def _end(namespace: str) -> None:
    for _ in range(50):
        pids = [int(pid) for pid in run("ip", "netns", "pids", namespace, check=False).split() if int(pid) != os.getpid()]
        if not pids:
            return
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.05)
