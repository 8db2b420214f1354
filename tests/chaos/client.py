"""A process of the application: what it needs to know, how it begins and ends, and what it shows of itself meanwhile."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["IN_COMMIT", "MOST_KEYS", "Board", "Figure", "Role", "Spec", "State", "Stop", "begun", "zipf"]

DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class Role(Enum):
    """What a process does."""

    READER = "reader"
    WRITER = "writer"
    CONTROL = "control"
    PROBE = "probe"


class State(IntEnum):
    """Where a writer is: whoever kills it wants to know."""

    IDLE = 0
    WRITING = 1
    ENDING = 2
    """In the session's commit(): flushing, announcing."""
    ANNOUNCED = 3
    """Its COMMIT has not been sent yet."""
    COMMITTING = 4
    COMMITTED = 5
    """Nothing has been published yet, or not all of it."""


IN_COMMIT = frozenset({State.ENDING, State.ANNOUNCED, State.COMMITTING, State.COMMITTED})
"""Whoever stops here leaves something announced, or will."""


class Figure(IntEnum):
    """The columns of the board."""

    READS = 0
    HITS = 1
    COMMITS = 2
    UNKNOWN = 3
    ERRORS = 4
    STATE = 5
    SLOW = 6
    OUTAGES = 7
    KEYS = 8
    """How many keys the transaction has; they stand in the columns behind this one."""


MOST_KEYS = 3
_COLUMNS = len(Figure) + MOST_KEYS


class Board:
    """Figures that every process keeps of itself in its own row, in memory that all of them map."""

    def __init__(self, path: Path, slots: int | None = None) -> None:
        if slots is not None:
            path.write_bytes(bytes(slots * _COLUMNS * 8))
        self.rows = np.memmap(path, "<i8", mode="r+").reshape(-1, _COLUMNS)

    def row(self, slot: int) -> Any:
        """Return one process's row, as what Python indexes fastest."""
        return memoryview(self.rows[slot])

    def keys(self, slot: int) -> list[int]:
        """Return the keys of the transaction that a writer is in."""
        row = self.rows[slot]
        return [int(key) for key in row[len(Figure) : len(Figure) + row[Figure.KEYS]]]

    def total(self, figure: Figure) -> int:
        """Return the sum over all processes."""
        return int(self.rows[:, figure].sum())


@dataclass(frozen=True, slots=True)
class Spec:
    """One process to be."""

    role: Role
    slot: int
    number: int
    """Of all processes of the run: no two have the same one."""
    directory: Path
    database: str
    """SQLAlchemy's URL, through the proxy."""
    caches: tuple[str, ...]
    """host:port of every node, through the proxy."""
    strategy: str
    version: int
    """Of the model."""
    keys: int
    slow: float
    """Share of the transactions whose COMMIT takes longer than a tombstone lives."""
    hold: float
    """Share of the transactions that wait a moment just before their COMMIT, and just after it."""
    verified: bool
    pause: float
    """Between a reader's or writer's operations, seconds."""

    def path(self, kind: str) -> Path:
        """Return where this process writes its records of a *kind*."""
        return self.directory / f"{kind}-{self.number}.log"


class Stop:
    """Set by SIGTERM: end after the operation at hand."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, *_signal: Any) -> None:
        """Request it."""
        self.requested = True


@contextlib.contextmanager
def begun(spec: Spec) -> Iterator[tuple[Any, Stop, random.Random]]:
    """Run one process: it ends with its parent, at SIGTERM, and not at Ctrl-C, which the rig answers."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = Stop()
    signal.signal(signal.SIGTERM, stop)
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)  # it tells of each connection that was cut
    row = Board(spec.directory / "board").row(spec.slot)
    row[Figure.STATE] = State.IDLE
    yield row, stop, random.Random(os.urandom(16))


def zipf(keys: int, count: int, exponent: float) -> list[int]:
    """Draw *count* keys, the first ones the hottest."""
    weights = 1 / np.arange(1, keys + 1) ** exponent
    generator = np.random.default_rng()
    return [int(key) for key in generator.choice(keys, size=count, p=weights / weights.sum())]
