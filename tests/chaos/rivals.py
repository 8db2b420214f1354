"""What people use today, over the same two memcached nodes, each with what its own documentation offers for it.

All of them take a cache that fails for a miss when they read, and go on without it when they write: that is what an
application does that must not fail with its cache.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE
from sqlalchemy import event, select
from sqlalchemy.orm import Session, sessionmaker

from tests.chaos.client import Spec
from tests.chaos.log import NOT_READ, Source
from tests.chaos.schema import models
from tests.chaos.strategies import ABSENT, Row, Strategy, engine_of

__all__ = ["NAMES", "RIVALS"]

EXPIRATION_SECONDS = 3600
BACKEND = "dogpile.cache.pymemcache"


class Aside:
    """dogpile.cache beside the ORM: what is missed is read from the database and set."""

    errors = (Exception,)

    def __init__(self, spec: Spec) -> None:
        self.item = models(spec.version)
        self.engine = engine_of(spec)
        self.sessions = sessionmaker(self.engine)
        self.region = make_region().configure(
            BACKEND, expiration_time=EXPIRATION_SECONDS, arguments={"url": list(spec.caches)}
        )
        self.source = Source.DATABASE
        self.hits = 0

    def read_one(self, key: int) -> Row:
        return self.read_many([key])[0]

    def read_many(self, keys: Sequence[int]) -> list[Row]:
        found = self._cached(keys)
        missing = [key for key in keys if key not in found]
        if missing:
            loaded = self._loaded(missing)
            self._set(loaded)
            found |= loaded
        hits = len(keys) - len(missing)
        self.hits += hits
        self.source = Source.CACHE if not missing else Source.EITHER if hits else Source.DATABASE
        return [found.get(key, ABSENT) for key in keys]

    def _cached(self, keys: Sequence[int]) -> dict[int, Row]:
        try:
            values = self.region.get_multi([str(key) for key in keys])
        except Exception:  # noqa: BLE001 - a cache that fails is a miss
            return {}
        return {key: value for key, value in zip(keys, values, strict=True) if value is not NO_VALUE}

    def _loaded(self, keys: Sequence[int]) -> dict[int, Row]:
        with self.sessions() as session:
            return self._rows(session, keys)

    def _rows(self, session: Session, keys: Sequence[int]) -> dict[int, Row]:
        item = self.item
        rows = session.execute(select(item.id, item.a, item.b).where(item.id.in_(keys)))
        return {key: (a, b, NOT_READ) for key, a, b in rows}

    def _set(self, rows: Mapping[int, Row]) -> None:
        if rows:
            with contextlib.suppress(Exception):
                self.region.set_multi({str(key): row for key, row in rows.items()})

    def _delete(self, keys: Sequence[int]) -> None:
        if keys:
            with contextlib.suppress(Exception):
                self.region.delete_multi([str(key) for key in keys])

    def _put(self, rows: Mapping[int, Row], keys: Sequence[int]) -> None:
        """Set *rows*, and delete those of *keys* that have none."""
        self._set(rows)
        self._delete([key for key in keys if key not in rows])

    def commit(self, session: Session, keys: Sequence[int]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.engine.dispose()


class AsideDeletes(Aside):
    """The usual recipe."""

    def commit(self, session: Session, keys: Sequence[int]) -> None:
        session.commit()
        self._delete(keys)


class AsideSets(Aside):
    """The same, but the next reader finds the new row."""

    def commit(self, session: Session, keys: Sequence[int]) -> None:
        rows = self._rows(session, keys)
        session.commit()
        self._put(rows, keys)


class CacheFirst(Aside):
    """Write-through: the cache before the database, and back if the database refuses."""

    def commit(self, session: Session, keys: Sequence[int]) -> None:
        rows, before = self._rows(session, keys), self._cached(keys)
        self._put(rows, keys)
        try:
            session.commit()
        except BaseException:
            self._put(before, keys)
            raise


class Repository:
    """advanced-alchemy's cached repository."""

    errors = (Exception,)

    def __init__(self, spec: Spec) -> None:
        from advanced_alchemy.cache import (  # noqa: PLC0415 - an optional package
            CacheConfig,
            CacheManager,
            setup_cache_listeners,
        )
        from advanced_alchemy.exceptions import NotFoundError  # noqa: PLC0415 - the same
        from advanced_alchemy.repository import SQLAlchemySyncRepository  # noqa: PLC0415 - the same

        self.item = models(spec.version)
        self.engine = engine_of(spec)
        self.sessions = sessionmaker(self.engine)
        setup_cache_listeners()
        logging.getLogger("advanced_alchemy").setLevel(logging.CRITICAL)  # it logs every fault with its stack
        self._not_found = NotFoundError
        self._manager = CacheManager(
            CacheConfig(backend=BACKEND, arguments={"url": list(spec.caches)}, expiration_time=EXPIRATION_SECONDS)
        )
        self._repository = type("Items", (SQLAlchemySyncRepository,), {"model_type": self.item})
        self.source = Source.DATABASE
        self.hits = 0
        self._statements = 0
        event.listen(self.engine, "before_cursor_execute", self._count)

    def _count(self, *_arguments: Any) -> None:
        self._statements += 1

    def read_one(self, key: int) -> Row:
        return self.read_many([key])[0]

    def read_many(self, keys: Sequence[int]) -> list[Row]:
        before = self._statements
        with self.sessions() as session:
            repository = self._repository(session=session, cache_manager=self._manager)
            rows = [self._get(repository, key) for key in keys]
        missed = self._statements - before
        self.hits += max(0, len(keys) - missed)
        self.source = Source.CACHE if not missed else Source.EITHER if missed < len(keys) else Source.DATABASE
        return rows

    def _get(self, repository: Any, key: int) -> Row:
        try:
            # It looks into its cache only for instances that it may detach.
            found = repository.get(key, auto_expunge=True)
        except self._not_found:
            return ABSENT
        except Exception as error:
            if "memcache" not in type(error).__module__ and not isinstance(error, OSError):
                raise
            found = repository.get(key, auto_expunge=True, use_cache=False)
        return found.a, found.b, NOT_READ

    def commit(self, session: Session, keys: Sequence[int]) -> None:
        repository = self._repository(session=session, cache_manager=self._manager)
        for key in keys:  # what its update, add and delete do after their flush
            repository._queue_cache_invalidation(key)
        session.commit()

    def close(self) -> None:
        self.engine.dispose()


RIVALS: dict[str, Callable[[Spec], Strategy]] = {
    "aside-deletes": AsideDeletes,
    "aside-sets": AsideSets,
    "cache-first": CacheFirst,
    "repository": Repository,
}
NAMES = {
    "direct": "the database alone",
    "ours": "sa_writethrough",
    "aside-deletes": "dogpile cache-aside, deletes after commit",
    "aside-sets": "dogpile cache-aside, sets after commit",
    "cache-first": "write-through, cache before database",
    "repository": "advanced-alchemy's cached repository",
}
"""What each strategy is called where people read."""
