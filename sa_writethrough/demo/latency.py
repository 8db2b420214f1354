"""The clock: a hit and a database read of the same places in turn, by one thread while nothing else runs.

Not taken from the load: there a read's time is mostly that of the other threads, which hold the interpreter.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sa_writethrough.demo.checking import Finding
from sa_writethrough.demo.places import Place
from sa_writethrough.demo.reading import Reader, by_shortest_path, from_database

__all__ = ["Latencies", "measure", "quantile"]

_PAIRS = 2000


@dataclass(slots=True)
class Latencies:
    """Seconds per read, its session opened and closed included."""

    hits: list[float] = field(default_factory=list)
    database: list[float] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def measure(reader: Reader, places: Iterable[Place], seconds: float) -> Latencies:
    """Read *places* in both ways for at most *seconds*. These reads are checked like all others."""
    latencies = Latencies()
    deadline = time.monotonic() + seconds
    for _, place in zip(range(_PAIRS), places, strict=False):
        if time.monotonic() > deadline:
            break
        filled = reader.read(place, by_shortest_path)  # fills where the entry was missing
        cached = reader.read(place, by_shortest_path)
        uncached = reader.read(place, from_database)
        latencies.findings += [r.finding for r in (filled, cached, uncached) if r.finding is not None]
        if cached.statements == 0:
            latencies.hits.append(cached.seconds)
            latencies.database.append(uncached.seconds)
    return latencies


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest of *values* that at least *share* of them do not exceed; NaN of none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
