"""Scenarios as data: who starts, what load runs, what fails when, what must hold. Read from TOML and checked."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROLES = ("gateway", "attention", "experts", "hybrid", "serve")
# What each kind of fault may say, beside name, kind, at, every, rounds, until and settle.
FAULTS: dict[str, set[str]] = {
    "kill": {"targets", "lasts"},
    "stop": {"targets", "lasts"},
    "drain": {"targets", "lasts", "grace"},
    "restart": {"targets", "grace", "binary", "flags"},
    "start": {"targets"},
    "cut": {"targets", "lasts"},
    "break": {"targets", "lasts"},
    "partition": {"between", "lasts"},
    "rate": {"targets", "lasts", "rate"},
    "burn": {"lasts", "processes"},
    "rotate": {"what", "pause"},
    "place": {"targets", "units", "by"},
    "unplace": {"targets", "units", "by", "pause"},
    "join": {"targets", "units", "by"},
    "leave": {"targets", "by", "grace", "pause"},
}
COMMON = {"name", "kind", "at", "every", "rounds", "until", "settle"}
NEEDS: dict[str, set[str]] = {"stop": {"lasts"}, "cut": {"lasts"}, "partition": {"between", "lasts"}, "rate": {"lasts", "rate"},
                              "burn": {"lasts", "processes"}, "place": {"units"}, "unplace": {"units"}, "rotate": {"what"}}


class BadScenario(Exception):
    """What is wrong with a scenario, and where."""


@dataclass(frozen=True)
class Host:
    """A network namespace with one process."""

    name: str
    role: str
    flags: tuple[str, ...] = ()
    binary: str = ""
    # Not started, and not in the table, until a fault starts it.
    later: bool = False
    # A gateway may be shown a table with these attention ranks only: so a load can be put on one rank.
    sees: tuple[str, ...] = ()


@dataclass(frozen=True)
class Load:
    """Clients that each ask again when they have their answer."""

    name: str
    streams: int
    begin: float
    end: float
    gateways: tuple[str, ...]
    kinds: tuple[str, ...]
    tokens: tuple[int, int]
    prompt_tokens: int
    pause: float


@dataclass(frozen=True)
class Fault:
    """Something done to the bed once, or again and again to its targets in turn."""

    name: str
    kind: str
    at: float
    targets: tuple[tuple[str, ...], ...] = ()
    every: float = 0.0
    rounds: int = 0
    until: float = 0.0
    lasts: float = 0.0
    # Seconds after its end in which gaps are still put down to it.
    settle: float = 3.0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Occurrence:
    """One time that a fault happens."""

    at: float
    fault: Fault
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Phase:
    """A span of time that is measured by itself."""

    name: str
    begin: float
    end: float


@dataclass(frozen=True)
class Hold:
    """Bounds of a measure, absolute or as multiples of another one."""

    measure: str
    low: float | None
    high: float | None
    of: str = ""
    why: str = ""


@dataclass(frozen=True)
class Placement:
    """Which workers hold which experts."""

    replicas: int = 1
    slices: int = 1
    segments: int = 8
    # Expert e is held by all workers of groups[e % len(groups)]. Without groups the planner decides.
    groups: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Reference:
    """An undisturbed server: one for each numerics id."""

    binary: str = ""
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scenario:
    name: str
    about: str
    duration: float
    seed: int
    tls: bool
    # Whether answers are compared with an undisturbed server's.
    compare: bool
    hosts: dict[str, Host]
    flags: dict[str, tuple[str, ...]]
    placement: Placement
    loads: tuple[Load, ...]
    faults: tuple[Fault, ...]
    phases: tuple[Phase, ...]
    holds: tuple[Hold, ...]
    references: tuple[Reference, ...]

    def of_role(self, *roles: str) -> list[str]:
        return [host.name for host in self.hosts.values() if host.role in roles]


class Table:
    """A table of a TOML file that knows where it is and complains about what nobody asked for."""

    def __init__(self, values: Any, where: str):
        if not isinstance(values, dict):
            raise BadScenario(f"{where}: must be a table")
        self.values, self.where, self.known = values, where, set()

    def get(self, key: str, kind: type, default: Any = ...) -> Any:
        self.known.add(key)
        value = self.values.get(key, default)
        if value is ...:
            raise BadScenario(f"{self.where}: {key} is missing")
        if kind is float and type(value) is int:
            value = float(value)
        if value is not default and (not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))):
            raise BadScenario(f"{self.where}: {key} must be {kind.__name__}, not {value!r}")
        return value

    def words(self, key: str, default: Any = ...) -> tuple[str, ...]:
        """A list of strings, or one string that is split at white space."""
        self.known.add(key)
        value = self.values.get(key, default)
        if value is ...:
            raise BadScenario(f"{self.where}: {key} is missing")
        if isinstance(value, str):
            return tuple(value.split())
        if not isinstance(value, (list, tuple)) or not all(isinstance(word, str) for word in value):
            raise BadScenario(f"{self.where}: {key} must be a list of strings")
        return tuple(value)

    def close(self) -> None:
        unknown = set(self.values) - self.known
        if unknown:
            raise BadScenario(f"{self.where}: unknown: {', '.join(sorted(unknown))}; known: {', '.join(sorted(self.known))}")


def read(path: Path) -> Scenario:
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise BadScenario(f"{path}: {error}") from error
    return parse(values, path.stem)


def parse(values: dict[str, Any], name: str) -> Scenario:
    top = Table(values, name)
    duration = top.get("duration", float)
    hosts = _hosts(top.get("hosts", list))
    flags = Table(top.get("flags", dict, {}), f"{name}: flags")
    scenario = Scenario(
        name=name,
        about=top.get("about", str, ""),
        duration=duration,
        seed=top.get("seed", int, 1),
        tls=top.get("tls", bool, True),
        compare=top.get("compare", bool, True),
        hosts=hosts,
        flags={"model": (), **{role: flags.words(role, ()) for role in (*ROLES, "engine")}},
        placement=_placement(Table(top.get("placement", dict, {}), f"{name}: placement"), hosts),
        loads=tuple(_load(one, i, hosts, duration) for i, one in enumerate(top.get("load", list, []))),
        faults=tuple(_fault(one, i, hosts) for i, one in enumerate(top.get("fault", list, []))),
        phases=tuple(_phase(one, i) for i, one in enumerate(top.get("phase", list, []))),
        holds=tuple(_hold(one, i) for i, one in enumerate(top.get("hold", list, []))),
        references=tuple(_reference(one, i) for i, one in enumerate(top.get("reference", list, [{}]))),
    )
    flags.close()
    top.close()
    for kind, found in (("load", scenario.loads), ("phase", scenario.phases), ("fault", scenario.faults)):
        names = [one.name for one in found]
        if len(names) != len(set(names)):
            raise BadScenario(f"{name}: two of {kind} have the same name; give them names: {', '.join(names)}")
    return scenario


def _hosts(values: list[Any]) -> dict[str, Host]:
    hosts: dict[str, Host] = {}
    for i, one in enumerate(values):
        table = Table(one, f"hosts[{i}]")
        names = table.words("names")
        role = table.get("role", str)
        if role not in ROLES:
            raise BadScenario(f"{table.where}: role {role!r} is none of {', '.join(ROLES)}")
        for name in names:
            if name in hosts:
                raise BadScenario(f"{table.where}: a second host {name!r}")
            if not name.isalnum() or len(name) > 8:
                raise BadScenario(f"{table.where}: {name!r} must be letters and digits, at most 8 (it names a network device)")
            hosts[name] = Host(
                name=name, role=role, flags=table.words("flags", ()), binary=table.get("binary", str, ""),
                later=table.get("later", bool, False), sees=table.words("sees", ()),
            )
        table.close()
    for host in hosts.values():
        _known(hosts, host.sees, f"hosts: {host.name}: sees")
    if not hosts:
        raise BadScenario("hosts: none")
    if len(hosts) > 200:
        raise BadScenario("hosts: at most 200")
    return hosts


def _known(hosts: dict[str, Host], names: tuple[str, ...], where: str) -> None:
    for name in names:
        if name not in hosts:
            raise BadScenario(f"{where}: no host {name!r}; there are {', '.join(hosts)}")


def _placement(table: Table, hosts: dict[str, Host]) -> Placement:
    groups = []
    for group in table.get("groups", list, []):
        if not isinstance(group, list) or not group:
            raise BadScenario(f"{table.where}: groups must be lists of workers")
        _known(hosts, tuple(group), table.where)
        groups.append(tuple(group))
    placement = Placement(
        replicas=table.get("replicas", int, 1), slices=table.get("slices", int, 1), segments=table.get("segments", int, 8),
        groups=tuple(groups),
    )
    table.close()
    return placement


KINDS = ("greedy", "sampled", "choices", "schema")


def _load(values: Any, i: int, hosts: dict[str, Host], duration: float) -> Load:
    table = Table(values, f"load[{i}]")
    fronts = tuple(h.name for h in hosts.values() if h.role in ("gateway", "serve") and not h.later)
    gateways = table.words("gateways", fronts)
    _known(hosts, gateways, table.where)
    tokens = table.get("tokens", list, [16, 96])
    if len(tokens) != 2 or not all(isinstance(n, int) and n > 0 for n in tokens) or tokens[0] > tokens[1]:
        raise BadScenario(f"{table.where}: tokens must be [least, most]")
    kinds = table.words("kinds", KINDS)
    known = (*KINDS, "plain")
    if set(kinds) - set(known) or not kinds:
        raise BadScenario(f"{table.where}: kinds must be some of {', '.join(known)}")
    load = Load(
        name=table.get("name", str, "all" if i == 0 else f"load{i}"), streams=table.get("streams", int),
        begin=table.get("begin", float, 0.0), end=table.get("end", float, duration), gateways=gateways, kinds=kinds,
        tokens=(tokens[0], tokens[1]), prompt_tokens=table.get("prompt_tokens", int, 600), pause=table.get("pause", float, 0.0),
    )
    table.close()
    if not 0 <= load.begin < load.end <= duration:
        raise BadScenario(f"{table.where}: begin and end must lie within the duration")
    return load


def _fault(values: Any, i: int, hosts: dict[str, Host]) -> Fault:
    table = Table(values, f"fault[{i}]")
    kind = table.get("kind", str)
    if kind not in FAULTS:
        raise BadScenario(f"{table.where}: kind {kind!r} is none of {', '.join(FAULTS)}")
    unknown = set(values) - COMMON - FAULTS[kind]
    if unknown:
        raise BadScenario(f"{table.where}: {kind} has no {', '.join(sorted(unknown))}")
    needed = NEEDS.get(kind, set()) | ({"targets"} & FAULTS[kind])
    missing = needed - set(values)
    if missing:
        raise BadScenario(f"{table.where}: {kind} needs {', '.join(sorted(missing))}")
    options = {key: values[key] for key in FAULTS[kind] - {"targets", "lasts"} if key in values}
    fault = Fault(
        name=table.get("name", str, kind), kind=kind, at=table.get("at", float), targets=_targets(values, hosts, table.where),
        every=table.get("every", float, 0.0), rounds=table.get("rounds", int, 0), until=table.get("until", float, 0.0),
        lasts=table.get("lasts", float, 0.0), settle=table.get("settle", float, 3.0), options=options,
    )
    for side in options.get("between", ()):
        _known(hosts, tuple(side), table.where)
    if "between" in options and len(options["between"]) != 2:
        raise BadScenario(f"{table.where}: between must be two lists of hosts")
    if kind in ("place", "unplace", "join", "leave") and any(len(group) != 1 for group in fault.targets):
        raise BadScenario(f"{table.where}: {kind} takes one worker at a time")
    if len(fault.targets) > 1 and not fault.every:
        raise BadScenario(f"{table.where}: several targets in turn need `every`; at one time they are a list in the list")
    if fault.every and not (fault.rounds or fault.until):
        raise BadScenario(f"{table.where}: `every` needs `rounds` or `until`")
    return fault


def _targets(values: dict[str, Any], hosts: dict[str, Host], where: str) -> tuple[tuple[str, ...], ...]:
    out = []
    for target in values.get("targets", []):
        group = (target,) if isinstance(target, str) else tuple(target)
        _known(hosts, group, where)
        out.append(group)
    return tuple(out)


def _phase(values: Any, i: int) -> Phase:
    table = Table(values, f"phase[{i}]")
    phase = Phase(table.get("name", str), table.get("begin", float), table.get("end", float))
    table.close()
    if phase.begin >= phase.end:
        raise BadScenario(f"{table.where}: it ends before it begins")
    return phase


def _hold(values: Any, i: int) -> Hold:
    table = Table(values, f"hold[{i}]")
    hold = Hold(
        measure=table.get("measure", str), low=table.get("min", float, None), high=table.get("max", float, None),
        of=table.get("of", str, ""), why=table.get("why", str, ""),
    )
    table.close()
    if hold.low is None and hold.high is None:
        raise BadScenario(f"{table.where}: {hold.measure} needs min or max")
    return hold


def _reference(values: Any, i: int) -> Reference:
    table = Table(values, f"reference[{i}]")
    reference = Reference(table.get("binary", str, ""), table.words("flags", ()))
    table.close()
    return reference


def schedule(faults: tuple[Fault, ...], duration: float) -> list[Occurrence]:
    """Everything that will happen, in order of time."""
    out = []
    for fault in faults:
        groups = fault.targets or ((),)
        count = fault.rounds * len(groups) if fault.rounds else None
        at, i = fault.at, 0
        while at < (fault.until or duration) and (count is None or i < count):
            out.append(Occurrence(at, fault, groups[i % len(groups)]))
            i += 1
            if not fault.every:
                break
            at = fault.at + i * fault.every
    return sorted(out, key=lambda one: one.at)
