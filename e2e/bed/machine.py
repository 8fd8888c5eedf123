"""What the bed needs of the machine: root, `ip`, `tc`, namespaces, bridges, rate limits. Said clearly where it is missing."""

import ctypes
import os
import shutil
import subprocess
import sys

CLONE_NEWNET = 0x40000000


class Unable(Exception):
    """Why this machine cannot be a bed, and what would help."""


def run(*command: str, check: bool = True) -> str:
    """Runs a short command; its output, or an error that names it."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise Unable(f"`{' '.join(command)}` gave {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def enter(namespace: str) -> None:
    """Moves this thread, and those it starts, into a network namespace."""
    with open(f"/run/netns/{namespace}") as file:
        join(file.fileno())


def join(namespace: int) -> None:
    """The same, of an open file."""
    if hasattr(os, "setns"):
        os.setns(namespace, CLONE_NEWNET)
    elif ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def check() -> list[str]:
    """Raises if there can be no bed; returns what it will have to do without."""
    if not sys.platform.startswith("linux"):
        raise Unable("the bed needs Linux: its hosts are network namespaces")
    if os.geteuid() != 0:
        raise Unable("the bed needs root: its hosts are network namespaces. Run it with sudo, or in a privileged container")
    for tool, package in (("ip", "iproute2"), ("bridge", "iproute2"), ("openssl", "openssl")):
        if shutil.which(tool) is None:
            raise Unable(f"there is no `{tool}`: install {package}")
    probe = f"sluice-probe-{os.getpid()}"
    missing = []
    try:
        try:
            run("ip", "netns", "add", probe)
        except Unable as error:
            raise Unable(f"no network namespaces here (a container needs CAP_SYS_ADMIN and CAP_NET_ADMIN): {error}") from error
        try:
            run("ip", "-n", probe, "link", "add", "name", "br0", "type", "bridge")
            run("ip", "-n", probe, "link", "add", "name", "veth0", "type", "veth", "peer", "name", "veth1")
        except Unable as error:
            raise Unable(f"the kernel has no bridge or no veth: {error}") from error
        try:
            if shutil.which("tc") is None:
                raise Unable("there is no `tc` (iproute2)")
            run("tc", "-n", probe, "qdisc", "add", "dev", "veth0", "root", "tbf", "rate", "1mbit", "burst", "32kb", "latency", "100ms")
        except Unable as error:
            missing.append(f"rate limits (the fault `rate`): {error}")
        # Without CONFIG_INET_DIAG_DESTROY the kernel answers that it does not know the operation.
        if shutil.which("ss") is None:
            missing.append("breaking connections (the fault `break`): there is no `ss` (iproute2)")
        else:
            done = subprocess.run(["ip", "netns", "exec", probe, "ss", "-K", "dport", "=", ":1"], capture_output=True, text=True,
                                  check=False)
            if "not supported" in done.stderr:
                missing.append(f"breaking connections (the fault `break`): {done.stderr.strip()}")
    finally:
        subprocess.run(["ip", "netns", "del", probe], capture_output=True, check=False)
    return missing
