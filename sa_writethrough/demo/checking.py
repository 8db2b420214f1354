"""The promise as a rule on one read. Pure.

> A read served from the cache returns what a READ COMMITTED read of the primary database would have returned at some
> moment during that read.

The database itself counts a row's committed updates in its version. Whoever reads asks the database for the version,
then reads, then asks again. Versions only grow, so at every moment of the read the committed version lay between the
two answers: a lower one is stale for certain, a higher one was not committed for certain. There are no false alarms.
The version alone does not prove the rest, so the columns must also be those that the version was committed with; a
transaction that is rolled back writes others.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from sa_writethrough.demo.places import Place

__all__ = ["Finding", "Seen", "Verdict", "check"]


class Verdict(Enum):
    """What is wrong with a read."""

    MISSING = "the row was not found"
    STALE = "older than what was committed before the read began"
    AHEAD = "newer than what was committed when the read had ended"
    NEVER_COMMITTED = "columns that were never committed with this version"


@dataclass(frozen=True, slots=True)
class Seen:
    """What a read returned."""

    columns: dict[str, Any]
    population: int
    version: int

    @classmethod
    def of(cls, instance: Any, place: Place) -> Seen | None:
        """Take down *instance*, of the place's model or None, while its session is open."""
        if instance is None:
            return None
        columns = {name: getattr(instance, name) for name in place.columns if name != "population"}
        return cls(columns, instance.population, instance.version)


@dataclass(frozen=True, slots=True)
class Finding:
    """A read that breaks the promise."""

    place: Place
    verdict: Verdict
    seen: Seen | None
    before: int
    after: int

    def __str__(self) -> str:
        version = "nothing" if self.seen is None else f"version {self.seen.version}"
        return (
            f"{self.place}: {self.verdict.value}: read {version}, "
            f"the database had {self.before} before and {self.after} after"
        )


def check(place: Place, seen: Seen | None, before: int, after: int) -> Finding | None:
    """Return what is wrong with a read of *place*, or None.

    *before* and *after* are the committed versions, asked of the database before the read began and after it ended.
    """
    verdict = _verdict(place, seen, before, after)
    return None if verdict is None else Finding(place, verdict, seen, before, after)


def _verdict(place: Place, seen: Seen | None, before: int, after: int) -> Verdict | None:
    if seen is None:
        return Verdict.MISSING
    if seen.version < before:
        return Verdict.STALE
    if seen.version > after:
        return Verdict.AHEAD
    if seen.population != place.population + seen.version - 1:
        return Verdict.NEVER_COMMITTED
    if any(place.columns[name] != value for name, value in seen.columns.items()):
        return Verdict.NEVER_COMMITTED
    return None
