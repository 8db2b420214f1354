"""The checker: each read must be what the database would have shown at some moment during that read.

The database numbers the versions of a key in the order of their commits. Version i became visible at some moment
between *low*, when its COMMIT was sent, and *high*, when that came back. A later version is visible later, so `low` is
made a running maximum and `high` a running minimum from the end; each moment between is then possible. A read from
*start* to *end* of version i is right if version i may have been visible at its end, `low[i] <= end`, and version i + 1
not surely before its start, `high[i + 1] >= start`. A read that found no row is right if some deletion is right for it.
A key whose first version was not there from the beginning was no row before: that counts as its first deletion.

A read is evidence for others. Who saw version i proves that it was visible at their end, `high[i] <= end`, and that
version i + 1 was not yet at their start, `low[i + 1] >= start`. Who found no row saw a deletion, and does not say which
one. They prove what all deletions have in common that may explain it: the first of these was visible at their end, and
what follows the last of these was not yet visible at their start. Which deletions these are is told by the commits and
by reads of rows. One pass is enough: an absence whose last deletion another absence rules out would move on to the one
before; but what follows that one has a later bound already, by the absence that ruled the other out. The same goes for
the first deletions.

Reads that went to the database are trusted, so they narrow the bounds of the commits first: something is known of
COMMITs, too, that never came back. Reads outside these bounds are stale or in the future. That every single read is
right does not make all of them fit together: a read must not show something older than what reads that ended before it
began have proven (non-monotonic), whoever made them. If no read is wrong, one order of events explains all of them.

O(n log n): one sort by key, a few binary searches per read. Reads come in any order; see `check` for the memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from tests.chaos.log import NOT_READ, Source

__all__ = ["BEFORE", "NEVER", "VERSION", "Findings", "Kind", "Violation", "check", "check_key", "merged"]

BEFORE = np.int64(0)
"""Of a version that was there before the first read."""
NEVER = np.int64(2**63 - 1)
"""Of a COMMIT that did not come back."""
VERSION = np.dtype([
    ("key", "<u4"), ("version", "<u4"), ("a", "<u4"), ("b", "<u4"), ("note", "<u4"), ("gone", "?"), ("low", "<i8"),
    ("high", "<i8"),
])  # fmt: skip
"""One committed version of a key. `gone`: the row was deleted. Its number is the higher one of `a` and `b`."""
NOTHING = np.array([(0, 0, 0, 0, 0, True, BEFORE, BEFORE)], VERSION)
"""Before the first version of a key, where that was not there before the first read: no row, as after a deletion."""
EVIDENCE = 50
"""How many violations of each kind are kept with their evidence."""


class Kind(Enum):
    """What is wrong with a read."""

    STALE = "stale"
    NON_MONOTONIC = "non-monotonic"
    DIRTY = "dirty"
    FUTURE = "future"


@dataclass(frozen=True, slots=True)
class Violation:
    """A read, and what proves it wrong: the version's own commit, the next one's, or another read."""

    kind: Kind
    key: int
    read: tuple[int, int]
    saw: tuple[int, int]
    source: Source
    by: int
    """How long it had been wrong, in nanoseconds; of a future read, how much too early."""
    evidence: str

    def __str__(self) -> str:
        return (
            f"{self.kind.value}: key {self.key}, read from the {self.source.name.lower()} at"
            f" [{self.read[0]}, {self.read[1]}] saw {self.saw}, {self.by / 1e6:.3f} ms beyond what is right:"
            f" {self.evidence}"
        )


@dataclass(slots=True)
class Findings:
    """What a check found. Findings add up."""

    reads: int = 0
    hits: int = 0
    counts: Counter[Kind] = field(default_factory=Counter)
    longest: dict[Kind, int] = field(default_factory=dict)
    examples: list[Violation] = field(default_factory=list)

    @property
    def violations(self) -> int:
        """How many reads were wrong."""
        return sum(self.counts.values())

    def note(self, violations: list[Violation]) -> None:
        """Count *violations*; keep some."""
        for one in violations:
            self.counts[one.kind] += 1
            self.longest[one.kind] = max(self.longest.get(one.kind, 0), one.by)
            if self.counts[one.kind] <= EVIDENCE:
                self.examples.append(one)

    def merge(self, other: Findings) -> None:
        """Add *other*."""
        self.reads += other.reads
        self.hits += other.hits
        self.counts += other.counts
        for kind, by in other.longest.items():
            self.longest[kind] = max(self.longest.get(kind, 0), by)
        self.examples += other.examples


def check(versions: np.ndarray, reads: np.ndarray) -> Findings:
    """Check *reads* against all *versions* (sorted by key and number). Takes a few times their memory."""
    findings = Findings(len(reads), int(np.count_nonzero(reads["source"] != Source.DATABASE)))
    order = np.argsort(reads["key"], kind="stable")
    for key, some in _by_key(reads[order]):
        low, high = np.searchsorted(versions["key"], [key, key + 1])
        findings.note(check_key(versions[low:high], some))
    return findings


def _by_key(reads: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    keys, starts = np.unique(reads["key"], return_index=True)
    for key, some in zip(keys, np.split(reads, starts[1:]) if len(keys) else [], strict=True):
        yield int(key), some


def check_key(versions: np.ndarray, reads: np.ndarray) -> list[Violation]:
    """Check the *reads* of one key against its *versions*, in order."""
    if not len(versions) or versions["high"][0] > BEFORE:
        versions = np.concatenate([NOTHING, versions])
    return _Key(versions, reads).violations()


def _violation(read: np.ndarray, kind: Kind, by: np.int64 | int, evidence: str) -> Violation:
    times, saw = (int(read["start"]), int(read["end"])), (int(read["a"]), int(read["b"]))
    return Violation(kind, int(read["key"]), times, saw, Source(int(read["source"])), int(by), evidence)


class _Key:
    def __init__(self, versions: np.ndarray, reads: np.ndarray) -> None:
        self.versions, self.reads = versions, reads
        self.number = np.maximum(reads["a"], reads["b"])
        self.index = np.minimum(np.searchsorted(versions["version"], self.number), len(versions) - 1)
        self.known = self._known()
        self.absent = np.flatnonzero(self.number == 0)
        self.deleted = np.flatnonzero(versions["gone"])
        # One version more than there are, which is never visible: so each one has a version that follows.
        self.low = np.maximum.accumulate(np.append(versions["low"], NEVER))
        self.high = _least_from_here(np.append(versions["high"], NEVER))
        self._trust(reads["source"] == Source.DATABASE)
        self.future, self.stale = self._outside()
        self.seen = self._seen()

    def _known(self) -> np.ndarray:
        found = self.versions[self.index]
        same = (found["a"] == self.reads["a"]) & (found["b"] == self.reads["b"]) & ~found["gone"]
        same &= (found["note"] == self.reads["note"]) | (self.reads["note"] == NOT_READ)
        return same & (found["version"] == self.number)

    def _outside(self) -> tuple[np.ndarray, np.ndarray]:
        """Return which reads ended before their version was visible, and which began after the next one was."""
        future = self.known & (self.reads["end"] < self.low[self.index])
        return future, self.known & ~future & (self.reads["start"] > self.high[self.index + 1])

    def _deletions(self, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the first and the last deletion that may explain each absence, as places in `deleted`.

        The first is not surely over at the start. The last may have been visible at the end. Where the first comes
        after the last there is none.
        """
        first = np.searchsorted(high[self.deleted + 1], self.reads["start"][self.absent], side="left")
        last = np.searchsorted(self.low[self.deleted], self.reads["end"][self.absent], side="right") - 1
        return first, last

    def _trust(self, database: np.ndarray) -> None:
        """Narrow the bounds by what reads of the *database* saw, those that are right by the bounds of the commits."""
        future, stale = self._outside()
        start, end = self.reads["start"], self.reads["end"]
        rows = self.known & ~future & ~stale & database
        self.low = _not_before(self.low, self.index[rows] + 1, start[rows])
        self.high = _visible_by(self.high, self.index[rows], end[rows])
        first, last = self._deletions(self.high)
        proven = (first <= last) & database[self.absent]
        absent = self.absent[proven]
        self.low = _not_before(self.low, self.deleted[last[proven]] + 1, start[absent])
        self.high = _visible_by(self.high, self.deleted[first[proven]], end[absent])

    def _seen(self) -> np.ndarray:
        """Return by when each version was surely visible, by all reads, those of caches, too."""
        rows = self.known & ~self.future
        seen = _visible_by(self.high, self.index[rows], self.reads["end"][rows])
        first, last = self._deletions(seen)
        proven = first <= last
        return _visible_by(seen, self.deleted[first[proven]], self.reads["end"][self.absent[proven]])

    def violations(self) -> list[Violation]:
        """Return one violation for each read that is wrong."""
        older = self.known & ~self.future & ~self.stale & (self.reads["start"] > self.seen[self.index + 1])
        found = [self._dirty(at) for at in np.flatnonzero(~self.known & (self.number > 0))]
        found += [self._future(at, self.index[at]) for at in np.flatnonzero(self.future)]
        found += [self._late(at, self.index[at], Kind.STALE, self.high) for at in np.flatnonzero(self.stale)]
        found += [self._late(at, self.index[at], Kind.NON_MONOTONIC, self.seen) for at in np.flatnonzero(older)]
        return found + self._absences()

    def _absences(self) -> list[Violation]:
        first, last = self._deletions(self.high)
        sure, _ = self._deletions(self.seen)
        wrong, older = np.flatnonzero(first > last), np.flatnonzero((first <= last) & (sure > last))
        found = [self._no_row(self.absent[n], first[n]) for n in wrong]
        return found + [
            self._late(self.absent[n], self.deleted[sure[n] - 1], Kind.NON_MONOTONIC, self.seen) for n in older
        ]

    def _no_row(self, at: int, first: int) -> Violation:
        """Return what is wrong with an absence: the deletions before *first* were over, the others not yet visible."""
        if first:
            return self._late(at, self.deleted[first - 1], Kind.STALE, self.high)
        if len(self.deleted):
            return self._future(at, self.deleted[0])
        return self._violation(at, Kind.DIRTY, 0, "the row was never deleted")

    # --- evidence ---

    def _dirty(self, at: int) -> Violation:
        return self._violation(at, Kind.DIRTY, 0, "no transaction committed this row")

    def _future(self, at: int, i: int) -> Violation:
        commit = f"the COMMIT of version {self.versions['version'][i]} was sent at {self.low[i]} or later"
        return self._violation(at, Kind.FUTURE, self.low[i] - self.reads["end"][at], commit)

    def _late(self, at: int, i: int, kind: Kind, bounds: np.ndarray) -> Violation:
        following = i + 1
        since = bounds[following]
        latest = following + int(np.searchsorted(bounds[following:], self.reads["start"][at], side="left")) - 1
        low, high = (int(self.versions[name][following]) for name in ("low", "high"))
        back = "did not come back" if high == NEVER else f"came back at {high}"
        why = (
            f"the COMMIT of version {self.versions['version'][following]} was sent at {low} and {back}; version"
            f" {self.versions['version'][latest]} was seen or committed by {bounds[latest]}"
        )
        return self._violation(at, kind, self.reads["start"][at] - since, why)

    def _violation(self, at: int, kind: Kind, by: np.int64 | int, evidence: str) -> Violation:
        return _violation(self.reads[at], kind, by, evidence)


def _not_before(low: np.ndarray, following: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return from when on each version may be visible, by *low* and by who saw at *start* what came before."""
    bounds = low.copy()
    np.maximum.at(bounds, following, start)
    return np.maximum.accumulate(bounds)


def _visible_by(high: np.ndarray, index: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return by when each version was surely visible, by *high* and by who had seen version *index* at *end*."""
    bounds = high.copy()
    np.minimum.at(bounds, index, end)
    return _least_from_here(bounds)


def _least_from_here(bounds: np.ndarray) -> np.ndarray:
    return np.minimum.accumulate(bounds[::-1])[::-1]


def merged(findings: Iterable[Findings]) -> Findings:
    """Return all of *findings* as one."""
    whole = Findings()
    for one in findings:
        whole.merge(one)
    return whole
