"""Counters of all processes, summed over their restarts: what a killed process had counted is kept as last seen."""

import collections
import re
from dataclasses import dataclass, field

SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
# What the report calls them, and the families of /metrics that make them up.
COUNTERS: dict[str, tuple[str, ...]] = {
    "masks": ("sluice_masked_peers_total",),
    "suspicions": ("sluice_suspected_peers_total",),
    "redispatches": ("sluice_redispatched_total",),
    "hedges": ("sluice_hedged_total",),
    "duplicates": ("sluice_duplicate_frames_total", "sluice_duplicate_returns_total", "sluice_front_duplicates_total"),
    "replays": ("sluice_replays_total",),
    "resumes": ("sluice_resumes_total",),
    "redirects": ("sluice_redirected_total",),
    "orphaned": ("sluice_orphaned_rows_total",),
    "hand_backs": ("sluice_hand_backs_total",),
    "late": ("sluice_late_tokens_total",),
    "credit_stalls": ("sluice_credit_stalls_total",),
    "bad_frames": ("sluice_bad_frames_total",),
    "prefix_hits": ("sluice_prefix_hit_tokens_total",),
    "round_trips": ("sluice_peer_round_trip_seconds_count",),
}
# Histograms of which quantiles are told.
HISTOGRAMS: dict[str, str] = {
    "redispatch": "sluice_redispatch_seconds",
    "step": "sluice_step_duration_seconds",
    "inter_token": "sluice_inter_token_latency_seconds",
    "round_trip": "sluice_peer_round_trip_seconds",
}


@dataclass
class Page:
    """What we keep of one /metrics."""

    values: dict[str, float] = field(default_factory=dict)
    # By histogram and upper bound, over all labels: cumulated counts.
    buckets: dict[str, dict[float, float]] = field(default_factory=dict)


def parse(text: str) -> Page:
    page = Page()
    families = {family: name for name, members in COUNTERS.items() for family in members}
    histograms = {f"{family}_bucket": name for name, family in HISTOGRAMS.items()}
    for line in text.splitlines():
        found = SAMPLE.fullmatch(line)
        if not found:
            continue
        family, labels, value = found.groups()
        if family in families:
            name = families[family]
            page.values[name] = page.values.get(name, 0.0) + float(value)
        elif family in histograms:
            bound = re.search(r'le="([^"]+)"', labels)
            buckets = page.buckets.setdefault(histograms[family], collections.defaultdict(float))
            buckets[float(bound.group(1))] += float(value)
    return page


def quantile(buckets: dict[float, float], q: float) -> float | None:
    """The upper bound of the bucket in which the quantile lies."""
    bounds = sorted(buckets)
    if not bounds or not buckets[bounds[-1]]:
        return None
    return next(bound for bound in bounds if buckets[bound] >= q * buckets[bounds[-1]])


class Sums:
    """The last page of every process there was."""

    def __init__(self) -> None:
        self.pages: dict[tuple[str, int], Page] = {}

    def put(self, host: str, incarnation: int, page: Page) -> None:
        self.pages[host, incarnation] = page

    def totals(self) -> dict[str, int]:
        """Only counters that some process has: one that is not there is not zero."""
        out: dict[str, int] = {}
        for page in self.pages.values():
            for name, value in page.values.items():
                out[name] = out.get(name, 0) + int(value)
        return out

    def by_host(self) -> dict[str, dict[str, int]]:
        out: dict[str, dict[str, int]] = {}
        for (host, _), page in self.pages.items():
            mine = out.setdefault(host, {})
            for name, value in page.values.items():
                mine[name] = mine.get(name, 0) + int(value)
        return out

    def buckets(self, histogram: str) -> dict[float, float]:
        out: dict[float, float] = collections.defaultdict(float)
        for page in self.pages.values():
            for bound, count in page.buckets.get(histogram, {}).items():
                out[bound] += count
        return dict(out)
