"""How the rig's processes read and write: through the library, or straight to the database. The others: `rivals`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from sqlalchemy import Engine, create_engine, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

import sa_writethrough as wt
from sa_writethrough import fences
from tests.chaos.client import Spec
from tests.chaos.log import NOT_READ, Source
from tests.chaos.schema import models

__all__ = ["TOMBSTONE_SECONDS", "Cached", "Direct", "Strategy", "engine_of", "opened", "row_of"]

TOMBSTONE_SECONDS = 1.0
LEASE_SECONDS = 1.0
Row = tuple[int, int, int]
"""The columns a, b and note."""
ABSENT: Row = (0, 0, 0)


class Strategy(Protocol):
    """A cache, or none, as the application sees it."""

    sessions: sessionmaker[Session]
    item: type[Any]
    errors: tuple[type[Exception], ...]
    """What the application must expect; anything else ends the process, and with it the run's good name."""
    source: Source
    """Of the last read's rows."""
    hits: int
    """Rows that came from the cache since the beginning."""

    def read_one(self, key: int) -> Row:
        """Return the columns a, b and note of one row, zeros where there is none."""
        ...

    def read_many(self, keys: Sequence[int]) -> list[Row]:
        """Return those of several rows."""
        ...

    def commit(self, session: Session, keys: Sequence[int]) -> None:
        """Commit *session*, which wrote *keys*, and do with the cache what this strategy does."""
        ...

    def close(self) -> None:
        """Close every connection."""
        ...


def engine_of(spec: Spec) -> Engine:
    """Return a process's engine. Nothing waits for ever: not for a lock, not for a server."""
    options = "-c statement_timeout=12s -c lock_timeout=4s -c idle_in_transaction_session_timeout=30s"
    arguments = {"options": options, "connect_timeout": 3, "application_name": f"chaos {spec.role.value}"}
    return create_engine(spec.database, connect_args=arguments, pool_size=2)


class Direct:
    """No cache: the control."""

    errors = (SQLAlchemyError,)

    def __init__(self, spec: Spec) -> None:
        self.item = models(spec.version)
        self.engine = engine_of(spec)
        self.sessions = sessionmaker(self.engine)
        self.source = Source.DATABASE
        self.hits = 0

    def read_one(self, key: int) -> Row:
        with self.sessions() as session:
            return row_of(session.get(self.item, key))

    def read_many(self, keys: Sequence[int]) -> list[Row]:
        item = self.item
        with self.sessions() as session:
            found = {one.id: row_of(one) for one in session.scalars(select(item).where(item.id.in_(keys)))}
        return [found.get(key, ABSENT) for key in keys]

    def commit(self, session: Session, keys: Sequence[int]) -> None:
        session.commit()

    def close(self) -> None:
        self.engine.dispose()


class Cached:
    """The library. Reads take all of its ways in turn."""

    errors = (SQLAlchemyError,)

    def __init__(self, spec: Spec) -> None:
        if not spec.verified:
            _trust_everyrow_of()
        self.item = models(spec.version)
        self.engine = engine_of(spec)
        self.sessions = sessionmaker(self.engine)
        policy = wt.CachePolicy(tombstone_ttl=TOMBSTONE_SECONDS)
        url = f"memcached://{','.join(spec.caches)}?lease_ttl={LEASE_SECONDS}"
        self.cache = wt.register(self.sessions, url, models=[self.item], policy=policy)
        self._stats = self.cache._core.cache.stats
        self._option = [wt.from_cache()]
        self._turn = 0
        self.source = Source.DATABASE
        self.hits = 0

    def read_one(self, key: int) -> Row:
        hits = self._stats.hits
        self._turn += 1
        with self.sessions() as session:
            if self._turn % 4:
                found = self.cache.get(session, self.item, key)
            else:
                found = session.get(self.item, key, options=self._option)
            row = row_of(found)
        self._learn_source(hits, 1)
        return row

    def read_many(self, keys: Sequence[int]) -> list[Row]:
        hits = self._stats.hits
        with self.sessions() as session:
            rows = [row_of(found) for found in self.cache.get_many(session, self.item, keys)]
        self._learn_source(hits, len(keys))
        return rows

    def _learn_source(self, hits: int, count: int) -> None:
        """A value that cannot be read, of the other version of the model, counts as a hit and is none: then EITHER."""
        found = self._stats.hits - hits
        self.hits += found
        self.source = Source.DATABASE if not found else Source.CACHE if found == count else Source.EITHER

    def node_of(self, key: int) -> str | None:
        """Return the memcached node that owns *key*, as host:port."""
        family, _ = self.cache._require(self.item)
        scopes = self.cache._scopes(family, self.engine)
        name = family.key(scopes[0], (key,)) if scopes else None
        return None if name is None else str(self.cache._core.cache.store._owner(name).name)

    def commit(self, session: Session, keys: Sequence[int]) -> None:
        session.commit()

    def close(self) -> None:
        self.cache.unregister()
        self.engine.dispose()


def row_of(found: Any) -> Row:
    """Return what an instance holds."""
    return ABSENT if found is None else (found.a, found.b, getattr(found, "note", NOT_READ) or 0)


def _trust_everyrow_of() -> None:
    """Break the library on purpose: fill whatever was read, without asking the database whether a writer holds it."""
    fences.Fence._verified = lambda _self, _identity, selection: selection  # type: ignore[method-assign]


def opened(spec: Spec) -> Strategy:
    """Return the strategy that *spec* names."""
    from tests.chaos.rivals import RIVALS  # noqa: PLC0415 - optional packages

    makers: dict[str, Callable[[Spec], Strategy]] = {"direct": Direct, "ours": Cached, **RIVALS}
    return makers[spec.strategy](spec)
