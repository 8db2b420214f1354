"""One checked read, and how many SQL statements it took. Knows the rule (`checking`); knows nothing of the load."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import Connection, Engine, bindparam, event, select
from sqlalchemy.orm import Session, sessionmaker

import sa_writethrough as wt
from sa_writethrough.demo.checking import Finding, Seen, check
from sa_writethrough.demo.places import MODELS, Place

__all__ = ["Reader", "Reading", "StatementCounter", "by_option", "by_shortest_path", "from_database"]

Way: TypeAlias = Callable[[wt.WriteThroughCache, Session, Place], Any]


def by_shortest_path(cache: wt.WriteThroughCache, session: Session, place: Place) -> Any:
    """Read through the cache with `cache.get`."""
    return cache.get(session, place.model, place.id)


def by_option(_cache: wt.WriteThroughCache, session: Session, place: Place) -> Any:
    """Read through the cache with `session.get` and its option."""
    return session.get(place.model, place.id, options=[wt.from_cache()])


def from_database(_cache: wt.WriteThroughCache, session: Session, place: Place) -> Any:
    """Read as without the library."""
    return session.get(place.model, place.id)


class StatementCounter(threading.local):
    """How many statements this thread has sent over *engine*."""

    def __init__(self, engine: Engine) -> None:
        # Called once in every thread that uses the object; SQLAlchemy takes the one listener once.
        self.sent = 0
        if not event.contains(engine, "before_cursor_execute", self._count):
            event.listen(engine, "before_cursor_execute", self._count)

    def _count(self, *_: object) -> None:
        self.sent += 1


@dataclass(frozen=True, slots=True)
class Reading:
    """What one read took, and what is wrong with it, if anything. No statement: it was a hit."""

    seconds: float
    statements: int
    finding: Finding | None


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads places and checks what it reads. For one thread: *witness* is a connection of its own."""

    cache: wt.WriteThroughCache
    sessions: sessionmaker[Session]
    witness: Connection
    counter: StatementCounter

    def read(self, place: Place, way: Way) -> Reading:
        """Read *place* in a session that is opened for it and closed again."""
        before = self.committed(place)
        sent = self.counter.sent
        started = time.perf_counter()
        with self.sessions() as session:
            seen = Seen.of(way(self.cache, session, place), place)
        seconds = time.perf_counter() - started
        statements = self.counter.sent - sent
        return Reading(seconds, statements, check(place, seen, before, self.committed(place)))

    def read_in(self, session: Session, place: Place, way: Way) -> tuple[Any, Reading]:
        """Read *place* in *session*, which goes on with the instance that is returned."""
        before = self.committed(place)
        sent = self.counter.sent
        started = time.perf_counter()
        instance = way(self.cache, session, place)
        seen = Seen.of(instance, place)
        seconds = time.perf_counter() - started
        statements = self.counter.sent - sent
        return instance, Reading(seconds, statements, check(place, seen, before, self.committed(place)))

    def committed(self, place: Place) -> int:
        """Ask the database, past the library, which version of *place* is committed now."""
        version: int = self.witness.execute(_VERSIONS[place.model], {"id": place.id}).scalar_one()
        return version


_VERSIONS = {model: select(model.version).where(model.id == bindparam("id")) for model in MODELS}
