"""The checker: each read must be what the database would have shown at some moment during that read.

The database numbers the versions of a key in the order of their commits. Version i became visible at some moment
between *low*, when its COMMIT was sent, and *high*, when that came back. Reads that went to the database narrow this:
it was visible at the end of a read that found it, and not yet at the start of one that found the version before; so
something is known of COMMITs, too, that never came back. A later version is visible later, so `low` is made a running
maximum and `high` a running minimum from the end; each moment between is then possible. A read from *start* to *end* of
version i is right if version i may have been visible at its end, `low[i] <= end`, and version i + 1 not surely before
its start, `high[i + 1] >= start`. That every single read is right does not make two of them fit together: a read that
begins after another one ended must not see an older version (non-monotonic), whoever made them.

O(n log n): one sort by key, one binary search per read. Reads come in any order; see `check` for the memory.
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
            f"{self.kind.value}: key {self.key}, read from the {self.source.name.lower()} at [{self.read[0]}, {self.read[1]}]"
            f" saw {self.saw}, {self.by / 1e6:.3f} ms beyond what is right: {self.evidence}"
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
    """Check *reads* against all *versions* (sorted by key and number). Needs a few times the memory of its arguments."""
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
    return _Key(versions, reads).violations() if len(versions) else _of_no_row(reads)


def _of_no_row(reads: np.ndarray) -> list[Violation]:
    """Check the *reads* of a key that never had a row."""
    seen = reads[np.maximum(reads["a"], reads["b"]) > 0]
    return [_violation(read, Kind.DIRTY, 0, "no transaction ever wrote this key") for read in seen]


def _violation(read: np.ndarray, kind: Kind, by: np.int64 | int, evidence: str) -> Violation:
    times, saw = (int(read["start"]), int(read["end"])), (int(read["a"]), int(read["b"]))
    return Violation(kind, int(read["key"]), times, saw, Source(int(read["source"])), int(by), evidence)


class _Key:
    def __init__(self, versions: np.ndarray, reads: np.ndarray) -> None:
        self.versions, self.reads = versions, reads
        self.number = np.maximum(reads["a"], reads["b"])
        self.absent = self.number == 0
        self.index = np.minimum(np.searchsorted(versions["version"], self.number), len(versions) - 1)
        self.known = self._known()
        low, high = np.maximum.accumulate(versions["low"]), self._proven(versions["high"], np.zeros(len(reads), bool))
        self.future, stale = self._outside(low, high)
        database = self.known & ~self.future & ~stale & (reads["source"] == Source.DATABASE)
        self.low = self._not_before(low, database)
        self.high = self._proven(high[:-1], database)
        self.future, self.stale = self._outside(self.low, self.high)
        self.seen = self._proven(np.full(len(versions), NEVER), self.known & ~self.future)

    def _outside(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which reads ended before their version was visible, and which began after the next one was."""
        future = self.known & (self.reads["end"] < low[self.index])
        return future, self.known & ~future & (self.reads["start"] > high[self.index + 1])

    def _not_before(self, low: np.ndarray, witnesses: np.ndarray) -> np.ndarray:
        """Return when each version was visible at the earliest, by *low* and by *witnesses*, who saw the one before."""
        shown = np.append(low, BEFORE)
        np.maximum.at(shown, self.index[witnesses] + 1, self.reads["start"][witnesses])
        return np.maximum.accumulate(shown[:-1])

    def _known(self) -> np.ndarray:
        found = self.versions[self.index]
        same = (found["a"] == self.reads["a"]) & (found["b"] == self.reads["b"]) & ~found["gone"]
        same &= (found["note"] == self.reads["note"]) | (self.reads["note"] == NOT_READ)
        return same & (found["version"] == self.number) & ~self.absent

    def _proven(self, high: np.ndarray, witnesses: np.ndarray) -> np.ndarray:
        """Return when each version was surely visible, by *high* and by the *witnesses* among the reads, and NEVER."""
        proven = np.append(high, NEVER)
        np.minimum.at(proven, self.index[witnesses], self.reads["end"][witnesses])
        return np.minimum.accumulate(proven[::-1])[::-1]

    def violations(self) -> list[Violation]:
        """Return one violation for each read that is wrong."""
        present = self.known & ~self.future
        older = present & ~self.stale & (self.reads["start"] > self.seen[self.index + 1])
        found = [self._dirty(at) for at in np.flatnonzero(~self.known & ~self.absent)]
        found += [self._future(at) for at in np.flatnonzero(self.future)]
        found += [self._late(at, Kind.STALE, self.high) for at in np.flatnonzero(self.stale)]
        found += [self._late(at, Kind.NON_MONOTONIC, self.seen) for at in np.flatnonzero(older)]
        absent = np.flatnonzero(self.absent)
        return found + self._absences(absent) if len(absent) else found

    # --- reads that found no row: right if any version that may have been there was a deletion ---

    def _absences(self, absent: np.ndarray) -> list[Violation]:
        gone = np.append(0, np.cumsum(self.versions["gone"]))
        start, end = self.reads["start"][absent], self.reads["end"][absent]
        last = np.searchsorted(self.low, end, side="right")
        # Version i is over when version i + 1 is surely visible; the first that is not over at *start*.
        first = np.searchsorted(self.high[1:], start, side="left")
        sure = np.searchsorted(np.minimum(self.high, self.seen)[1:], start, side="left")
        wrong = gone[last] - gone[np.minimum(first, last)] == 0
        older = ~wrong & (gone[last] - gone[np.minimum(sure, last)] == 0)
        found = [self._no_row(at, int(f)) for at, f in zip(absent[wrong], first[wrong], strict=True)]
        return found + [
            self._violation(at, Kind.NON_MONOTONIC, start[n] - self.seen[sure[n]], "an earlier read saw a later row")
            for n, at in zip(np.flatnonzero(older), absent[older], strict=True)
        ]

    def _no_row(self, at: int, first: int) -> Violation:
        deleted = np.flatnonzero(self.versions["gone"])
        before = deleted[deleted < first]
        if len(before):
            self.index[at] = before[-1]
            return self._late(at, Kind.STALE, self.high)
        if len(deleted):
            self.index[at] = deleted[0]
            return self._future(at)
        return self._violation(at, Kind.DIRTY, 0, "the row was never deleted")

    # --- evidence ---

    def _dirty(self, at: int) -> Violation:
        return self._violation(at, Kind.DIRTY, 0, "no transaction committed this row")

    def _future(self, at: int) -> Violation:
        i = self.index[at]
        commit = f"the COMMIT of version {self.versions['version'][i]} was sent at {self.low[i]} or later"
        return self._violation(at, Kind.FUTURE, self.low[i] - self.reads["end"][at], commit)

    def _late(self, at: int, kind: Kind, bounds: np.ndarray) -> Violation:
        following = self.index[at] + 1
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


def merged(findings: Iterable[Findings]) -> Findings:
    """Return all of *findings* as one."""
    whole = Findings()
    for one in findings:
        whole.merge(one)
    return whole
