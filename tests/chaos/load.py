"""The load: what readers, writers, the control and the probe do until they are told to stop, or killed."""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from time import monotonic_ns
from typing import Any

import psycopg
from sqlalchemy import delete, text, update
from sqlalchemy.orm import Session

import sa_writethrough as wt
from tests.chaos.client import MOST_KEYS, Figure, Role, Spec, State, Stop, begun, zipf
from tests.chaos.log import Event, RecordLog, Source, pack_commit, pack_probe, pack_read
from tests.chaos.schema import NUMBERS
from tests.chaos.strategies import ABSENT, Cached, Strategy, opened

__all__ = ["run_client"]

DRAWN = 100_000
SLOW_SECONDS = (1.2, 2.0)
"""Longer than a tombstone lives."""
HOLD_SECONDS = (0.02, 0.2)
"""Long enough that faults meet writers there."""
CONTROL_SECONDS = 0.25
PROBE_SECONDS = 0.01


def run_client(spec: Spec, requests: Connection | None = None) -> None:
    """Be one process of the application, from begin to end."""
    with begun(spec) as (row, stop, chance):
        if spec.role is Role.CONTROL:
            watch(spec, stop)
            return
        strategy = opened(spec)
        if spec.role is Role.READER:
            Reader(spec, strategy, row, chance).run(stop)
        elif spec.role is Role.WRITER:
            Writer(spec, strategy, row, chance).run(stop)
        elif requests is not None and isinstance(strategy, Cached):
            Probe(spec, strategy, requests).run(stop)
        strategy.close()


class Reader:
    """Reads hot keys, one or many at a time, and writes down every row that it saw."""

    def __init__(self, spec: Spec, strategy: Strategy, row: Any, chance: random.Random) -> None:
        self._strategy, self._row, self._chance, self._pause = strategy, row, chance, spec.pause
        self._log = RecordLog(spec.path("reads"))
        self._hits = 0
        self._hot = zipf(spec.keys, DRAWN, 1.0)

    def run(self, stop: Stop) -> None:
        """Read until told to stop."""
        while not stop.requested:
            at = self._chance.randrange(DRAWN - 64)
            wanted = self._hot[at : at + (1 if self._chance.random() < 0.5 else self._chance.randint(10, 50))]
            try:
                self._read(wanted)
            except self._strategy.errors:
                self._row[Figure.ERRORS] += 1
                time.sleep(0.02)
            self._log.flush_sometimes()
            if self._pause:
                time.sleep(self._pause)
        self._log.close()

    def _read(self, wanted: list[int]) -> None:
        keys = wanted if len(wanted) == 1 else list(dict.fromkeys(wanted))
        start = monotonic_ns()
        rows = self._strategy.read_many(keys) if len(keys) > 1 else [self._strategy.read_one(keys[0])]
        end = monotonic_ns()
        source, add = int(self._strategy.source), self._log.add
        for key, row in zip(keys, rows, strict=True):
            add(pack_read(start, end, key, *row, source))
        self._row[Figure.READS] += len(keys)
        self._row[Figure.HITS] += self._strategy.hits - self._hits
        self._hits = self._strategy.hits


Body = Callable[["Writer", Session, Sequence[int]], None]


class Writer:
    """Changes rows in every way that an ORM has, and writes down when each COMMIT was sent and came back."""

    def __init__(self, spec: Spec, strategy: Strategy, row: Any, chance: random.Random) -> None:
        self._spec, self.strategy, self._row, self.chance = spec, strategy, row, chance
        self._log = RecordLog(spec.path("commits"))
        self._ops = itertools.count(spec.number << 32)
        self._op = 0
        self._keys = zipf(spec.keys, DRAWN, 0.6)
        self._watch_commits()

    def _watch_commits(self) -> None:
        """Note the moments directly around the driver's COMMIT: what the cache does before and after is not in it."""
        dialect = self.strategy.sessions.kw["bind"].dialect
        do_commit = dialect.do_commit

        def noted(connection: Any) -> None:
            self._row[Figure.STATE] = State.ANNOUNCED
            self._hold()
            self._row[Figure.STATE] = State.COMMITTING
            self._log.write_now(pack_commit(self._op, monotonic_ns(), Event.SENT))
            try:
                do_commit(connection)
            except BaseException:
                self._log.write_now(pack_commit(self._op, monotonic_ns(), Event.FAILED))
                self._row[Figure.UNKNOWN] += 1
                raise
            self._log.write_now(pack_commit(self._op, monotonic_ns(), Event.DONE))
            self._row[Figure.STATE] = State.COMMITTED
            self._row[Figure.COMMITS] += 1
            self._hold()

        dialect.do_commit = noted

    def _hold(self) -> None:
        """Stand still for a moment, sometimes, where a fault would seldom meet a writer."""
        if self._spec.hold and self.chance.random() < self._spec.hold:
            time.sleep(self.chance.uniform(*HOLD_SECONDS))

    def run(self, stop: Stop) -> None:
        """Write until told to stop."""
        while not stop.requested:
            try:
                self._transaction()
            except wt.CacheUnavailableError:
                self._row[Figure.OUTAGES] += 1
                time.sleep(0.02)
            except self.strategy.errors:
                self._row[Figure.ERRORS] += 1
                time.sleep(0.02)
            self._row[Figure.STATE] = State.IDLE
            if self._spec.pause:
                time.sleep(self._spec.pause)
        self._log.close()

    def _transaction(self) -> None:
        body, ends = self.chance.choices(BODIES, WEIGHTS)[0], self.chance.random()
        keys = self._choose(body)
        slow = self.chance.random() < self._spec.slow
        self._op = next(self._ops)
        self._row[Figure.KEYS] = 0
        for column, key in enumerate(keys, len(Figure)):
            self._row[column] = key
        self._row[Figure.STATE], self._row[Figure.KEYS] = State.WRITING, len(keys)
        sleep = f"{self.chance.uniform(*SLOW_SECONDS):.2f}" if slow else ""
        fail = "yes" if ends > 0.96 else ""
        settings = {"op": str(self._op), "sleep": sleep, "fail": fail}
        with self.strategy.sessions() as session:
            session.execute(SETTINGS, settings)
            body(self, session, keys)
            if ends < 0.02:
                session.flush()
                session.rollback()
            elif ends < 0.03:
                session.flush()  # and close without a word
            else:
                self._row[Figure.STATE] = State.ENDING
                began = time.monotonic()
                self.strategy.commit(session, keys)
                if slow and time.monotonic() - began >= SLOW_SECONDS[0]:  # not if it changed no row
                    self._row[Figure.SLOW] += 1

    def _choose(self, body: Body) -> list[int]:
        """Return distinct keys in order: two writers of the same rows wait for each other, and never in a circle."""
        count = MOST_KEYS if body in {several, bulk, savepoint} else 1
        at = self.chance.randrange(DRAWN - 16)
        return sorted(dict.fromkeys(self._keys[at : at + count]))


SETTINGS = text(
    "SELECT set_config('chaos.op', :op, true), set_config('chaos.sleep', :sleep, true),"
    " set_config('chaos.fail', :fail, true)"
)
LOCK = text("SELECT pg_advisory_xact_lock(:key)")
"""Taken by whoever makes a row come or go, so that a number drawn for it is in the order of the commits."""


def change(writer: Writer, item: Any) -> None:
    """Give one column a new number, and the new model's own column another one, for the old model not to lose it."""
    setattr(item, writer.chance.choice("ab"), NUMBERS.next_value())
    if hasattr(item, "note"):
        item.note = NUMBERS.next_value()


def locked(writer: Writer, session: Session, keys: Sequence[int]) -> None:
    """Change a row that was read under its lock."""
    for key in keys:
        item = session.get(writer.strategy.item, key, with_for_update=True)
        if item is not None:
            change(writer, item)
    session.flush()


def unlocked(writer: Writer, session: Session, keys: Sequence[int]) -> None:
    """Change one column of a row that may have come from the cache: of the other column the instance knows no news."""
    for key in keys:
        item = session.get(writer.strategy.item, key, options=[wt.from_cache()])
        if item is not None:
            change(writer, item)
            session.flush()


def several(writer: Writer, session: Session, keys: Sequence[int]) -> None:
    """Change several rows, and the first one twice."""
    locked(writer, session, keys)
    locked(writer, session, keys[:1])


def bulk(writer: Writer, session: Session, keys: Sequence[int]) -> None:
    """Change several rows with one statement."""
    locked(writer, session, keys)
    item = writer.strategy.item
    session.execute(update(item).where(item.id.in_(keys)).values(a=NUMBERS.next_value()))


def unnamed(writer: Writer, session: Session, keys: Sequence[int]) -> None:
    """Change a row with SQL that comes as text."""
    session.execute(text("UPDATE item SET b = nextval('numbers') WHERE id = :key"), {"key": keys[0]})


def savepoint(writer: Writer, session: Session, keys: Sequence[int]) -> None:
    """Change rows, and take a part of it back."""
    locked(writer, session, keys[:1])
    with contextlib.suppress(ZeroDivisionError), session.begin_nested():
        locked(writer, session, keys)
        raise ZeroDivisionError
    locked(writer, session, keys[1:2])


def come_or_go(writer: Writer, session: Session, keys: Sequence[int]) -> None:
    """Delete a row, or insert it where there is none, or both."""
    item, key = writer.strategy.item, keys[0]
    session.execute(LOCK, {"key": key})
    found = session.get(item, key)
    if found is not None and writer.chance.random() < 0.3:
        session.execute(delete(item).where(item.id == key))
    elif found is not None:
        session.delete(found)
    session.flush()
    if found is None or writer.chance.random() < 0.95:
        session.expire_all()
        session.add(item(id=key, a=NUMBERS.next_value(), b=NUMBERS.next_value()))
        session.flush()


BODIES: list[Body] = [locked, unlocked, several, bulk, savepoint, come_or_go, unnamed]
WEIGHTS = [35, 25, 12, 5, 12, 10, 0.2]


def watch(spec: Spec, stop: Stop) -> None:
    """Be the control: read every row from the database, again and again, and write down what has changed.

    So a version is known to be visible even where nobody lives who knows that it committed.
    """
    log = RecordLog(spec.path("control"))
    known: dict[int, list[int]] = {}
    with psycopg.connect(spec.database.replace("+psycopg", ""), autocommit=True, application_name="control") as server:
        while not stop.requested:
            start = monotonic_ns()
            rows = server.execute("SELECT id, a, b, coalesce(note, 0) FROM item").fetchall()
            end = monotonic_ns()
            seen = {key: row for key, *row in rows}
            for key, row in seen.items():
                if known.get(key) != row:
                    log.add(pack_read(start, end, key, *row, Source.DATABASE))
            for key in known.keys() - seen.keys():
                log.add(pack_read(start, end, key, *ABSENT, Source.DATABASE))
            known = seen
            log.flush()
            time.sleep(CONTROL_SECONDS)
    log.close()


Request = tuple[int, "str | None", list[int], int]
"""A cause, the node that is meant, keys, and since when."""


class Probe:
    """After a fault, reads a key until it is served from the cache again."""

    def __init__(self, spec: Spec, strategy: Cached, requests: Connection) -> None:
        self._strategy, self._requests = strategy, requests
        self._log = RecordLog(spec.path("probes"))
        self._open: set[tuple[int, int, int]] = set()

    def run(self, stop: Stop) -> None:
        """Probe until told to stop."""
        while not stop.requested:
            while self._requests.poll(0 if self._open else 0.1):
                self._take(self._requests.recv())
            for one in tuple(self._open):
                self._probe(*one)
            self._log.flush_sometimes()
            time.sleep(PROBE_SECONDS)
        for one in self._open:  # how long they would have taken nobody knows
            self._log.add(pack_probe(*one, -monotonic_ns()))
        self._log.close()

    def _take(self, request: Request) -> None:
        cause, node, keys, since = request
        try:
            found = [key for key in keys if node in {None, self._strategy.node_of(key)}]
        except self._strategy.errors:  # to ask for the first time needs a connection, which a fault may have met
            return
        self._open.update((cause, key, since) for key in found)

    def _probe(self, cause: int, key: int, since: int) -> None:
        try:
            row = self._strategy.read_one(key)
        except self._strategy.errors:
            return
        if self._strategy.source is Source.CACHE:
            self._log.add(pack_probe(cause, key, since, monotonic_ns()))
        elif row != ABSENT:  # of a row that is gone there is nothing to cache
            return
        self._open.discard((cause, key, since))
