"""What the rig's processes write down, and how it is read again. Times are nanoseconds of CLOCK_MONOTONIC: one host.

A process may be killed at any instant. What a COMMIT needs is therefore written, unbuffered, before it is sent; reads
are buffered, and those that a killed process had not written yet are reads that nobody checks.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path

import numpy as np

__all__ = ["COMMIT", "NOT_READ", "PROBE", "READ", "Event", "RecordLog", "Source", "count_of", "pack_read", "records"]

READ = np.dtype(
    [("start", "<i8"), ("end", "<i8"), ("key", "<u4"), ("a", "<u4"), ("b", "<u4"), ("note", "<u4"), ("source", "u1")]
)
"""One row of one read: what its columns held (`a` and `b` 0: there was no row), and where they came from."""
NOT_READ = 2**32 - 1
"""As a `note`: this version of the model has no such column."""
COMMIT = np.dtype([("op", "<i8"), ("when", "<i8"), ("event", "u1")])
"""A COMMIT was about to be sent, or came back."""
PROBE = np.dtype([("cause", "u1"), ("key", "<u4"), ("since", "<i8"), ("until", "<i8")])
"""When after a fault a key was first served from the cache again; minus the end of the run where it was not by then."""

pack_read = struct.Struct("<qqIIIIB").pack
pack_commit = struct.Struct("<qqB").pack
pack_probe = struct.Struct("<BIqq").pack

FLUSH_BYTES = 64 * 1024
FLUSH_SECONDS = 0.25


class Source(IntEnum):
    """Where a row came from, as far as the strategy tells."""

    DATABASE = 0
    CACHE = 1
    EITHER = 2


class Event(IntEnum):
    """What a writer knows of its COMMIT."""

    SENT = 0
    DONE = 1
    FAILED = 2
    """An error came back: it may have committed all the same."""


class RecordLog:
    """Appends packed records to one file; after a kill the file ends with a whole record or with the part of one."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._buffer = bytearray()
        self._clock = clock
        self._flushed = clock()

    def add(self, record: bytes) -> None:
        """Note *record*; it is written before long."""
        self._buffer += record

    def flush_sometimes(self) -> None:
        """Write what is noted, if it is much or old."""
        if len(self._buffer) >= FLUSH_BYTES or self._clock() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is noted."""
        if self._buffer:
            os.write(self._file, self._buffer)
            self._buffer.clear()
        self._flushed = self._clock()

    def write_now(self, record: bytes) -> None:
        """Write *record*: it survives if this process is killed after that."""
        os.write(self._file, record)

    def close(self) -> None:
        """Write the rest and close the file."""
        self.flush()
        os.close(self._file)


def count_of(path: Path, kind: np.dtype) -> int:
    """Return how many whole records of *kind* a file has."""
    return path.stat().st_size // kind.itemsize


def records(paths: list[Path], kind: np.dtype) -> Iterator[np.ndarray]:
    """Yield each file's whole records, mapped and not loaded."""
    for path in paths:
        if count := count_of(path, kind):
            yield np.memmap(path, kind, mode="r", shape=(count,))
