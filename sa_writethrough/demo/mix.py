"""The load: from several threads 95 % reads by identity and 5 % updates of places that a Zipf distribution chooses.

One in ten updates is rolled back after its SQL. One in a hundred reads first evicts its entry, as a full or restarted
cache would lose it, so that fills are put to the test beside writes.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import accumulate

from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.orm.exc import StaleDataError

import sa_writethrough as wt
from sa_writethrough.demo.checking import Finding
from sa_writethrough.demo.databases import Database
from sa_writethrough.demo.places import Place
from sa_writethrough.demo.reading import Reader, Reading, StatementCounter, by_option, by_shortest_path

__all__ = ["Choice", "Mix", "Tally", "Worker"]

UPDATES = 0.05
ROLLED_BACK = 0.1
EVICTED = 0.01
_AT_ONCE = 1000
_STEPS_AT_LEAST = 20
"""What each thread does however short the run: a machine that stood still must not show a table of zeros."""
_TICK_SECONDS = 0.1
_SWITCH_SECONDS = 0.0005
"""How long a thread may keep the interpreter: a tenth of Python's own, so that more is interrupted half way."""
_UNCOMMITTED_BIRTHS = 1_000_000


@dataclass(slots=True)
class Tally:
    """What happened. statements: those that the reads sent. unavailable: updates that an unreachable store aborted."""

    reads: int = 0
    hits: int = 0
    statements: int = 0
    updates: int = 0
    rollbacks: int = 0
    conflicts: int = 0
    unavailable: int = 0
    evictions: int = 0
    findings: list[Finding] = field(default_factory=list)

    def count(self, reading: Reading) -> None:
        """Add one read."""
        self.reads += 1
        self.hits += reading.statements == 0
        self.statements += reading.statements
        if reading.finding is not None:
            self.findings.append(reading.finding)

    def add(self, other: Tally) -> None:
        """Add what another thread counted."""
        for part in fields(self):
            setattr(self, part.name, getattr(self, part.name) + getattr(other, part.name))


class Choice:
    """Chooses the n-th of *places* with a probability proportional to 1/n. Endless; for one thread."""

    def __init__(self, places: Sequence[Place], source: random.Random) -> None:
        self._places = places
        self._source = source
        self._weights = list(accumulate(1 / rank for rank in range(1, len(places) + 1)))

    def __iter__(self) -> Iterator[Place]:
        while True:
            yield from self._source.choices(self._places, cum_weights=self._weights, k=_AT_ONCE)


@dataclass(slots=True)
class Worker:
    """One thread's part."""

    reader: Reader
    source: random.Random
    tally: Tally = field(default_factory=Tally)

    def step(self, place: Place) -> None:
        """Do one thing to *place*."""
        if self.source.random() < UPDATES:
            self.update(place)
            return
        if self.source.random() < EVICTED:
            self.evict(place)
        way = by_option if self.source.random() < 1 / 2 else by_shortest_path
        self.tally.count(self.reader.read(place, way))

    def evict(self, place: Place) -> None:
        """Drop the entry of *place*."""
        try:
            self.reader.cache.evict(place.model, place.id)
        except wt.CacheUnavailableError:  # an eviction is nobody's loss
            return
        self.tally.evictions += 1

    def update(self, place: Place) -> None:
        """Add one inhabitant, as an application does: read through the cache, change, commit."""
        try:
            with self.reader.sessions() as session:
                self._update(session, place)
        except StaleDataError:  # the row changed between our read and our UPDATE; an application would try again
            self.tally.conflicts += 1
        except wt.CacheUnavailableError:
            self.tally.unavailable += 1
        except OperationalError as error:
            if "locked" not in str(error.orig):  # SQLite's BUSY: nothing was written
                raise
            self.tally.conflicts += 1

    def _update(self, session: Session, place: Place) -> None:
        instance, reading = self.reader.read_in(session, place, by_shortest_path)
        self.tally.count(reading)
        if instance is None:
            return
        if self.source.random() < ROLLED_BACK:
            # What must never be read: it fits no version.
            instance.population += _UNCOMMITTED_BIRTHS
            session.flush()
            session.rollback()
            self.tally.rollbacks += 1
        else:
            instance.population += 1
            session.commit()
            self.tally.updates += 1


@dataclass(frozen=True, slots=True)
class Mix:
    """The load on one registration."""

    cache: wt.WriteThroughCache
    sessions: sessionmaker[Session]
    database: Database
    counter: StatementCounter
    places: Sequence[Place]

    def run(self, seconds: float, threads: int, tick: Callable[[float], object]) -> Tally:
        """Run for *seconds* and return what happened; *tick* is told the seconds gone by. Raises as a thread did.

        Each thread ends what it is at, and takes its first few steps in any case.
        """
        stop = threading.Event()
        total = Tally()
        with _often_interrupted(), ThreadPoolExecutor(threads, "demo") as pool:
            try:
                started = time.monotonic()
                running = [pool.submit(self._work, stop) for _ in range(threads)]
                done = False
                while not done and (gone := time.monotonic() - started) < seconds:
                    tick(gone)
                    done = bool(wait(running, min(_TICK_SECONDS, seconds - gone), "FIRST_COMPLETED").done)
            finally:
                stop.set()
            for future in running:
                total.add(future.result())
        tick(seconds)
        return total

    def _work(self, stop: threading.Event) -> Tally:
        source = random.Random()  # noqa: S311 - chooses places, guards no secret
        with self.database.witness.connect() as witness:
            worker = Worker(Reader(self.cache, self.sessions, witness, self.counter), source)
            for steps, place in enumerate(Choice(self.places, source)):
                if stop.is_set() and steps >= _STEPS_AT_LEAST:
                    break
                worker.step(place)
        return worker.tally


@contextmanager
def _often_interrupted() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
