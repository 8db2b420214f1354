"""SQLAlchemy's internals that connections beside an engine's pool need. A room as `_sqla` is, and tested as that one.

The application may hold the last connection of its pool, and nothing here may wait for that one.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, Pool, QueuePool

from sa_writethrough._sqla import root_engine

__all__ = ["connection_aside", "connection_of_its_own"]

_SIZE = 5
_ASIDE = "_sa_writethrough_aside"
"""Where an engine has its pool aside: with the engine it goes, which its `connect` listeners refer to."""


class _Aside(NamedTuple):
    pool: Pool
    pid: int


def connection_of_its_own(engine: Engine) -> Connection:
    """Open a connection as the engine's pool would, its `connect` listeners included, without asking the pool for it.

    It is closed, and not pooled, when the Connection is closed.
    """
    pool = NullPool(engine.pool._creator, dialect=engine.dialect, _dispatch=engine.pool.dispatch)
    return Connection(engine, pool.connect())


def connection_aside(engine: Engine) -> Connection:
    """Return a connection of a small pool beside the engine's, whose transactions are READ COMMITTED.

    Raises SQLAlchemy's TimeoutError, at once, if all of them are in use. `Engine.dispose()` closes them, too.
    """
    root = root_engine(engine)
    aside: _Aside | None = vars(root).get(_ASIDE)
    if aside is None:
        aside = vars(root).setdefault(_ASIDE, _Aside(_small_pool(root), os.getpid()))
    return Connection(engine, aside.pool.connect())


def _small_pool(engine: Engine) -> Pool:
    dialect = engine.dialect

    def read_committed(dbapi_connection: DBAPIConnection, _record: object) -> None:
        dialect.set_isolation_level(dbapi_connection, "READ COMMITTED")

    class_ = AsyncAdaptedQueuePool if dialect.is_async else QueuePool
    pool = class_(
        engine.pool._creator,
        pool_size=_SIZE,
        max_overflow=0,
        timeout=0,
        recycle=engine.pool._recycle,
        pre_ping=engine.pool._pre_ping,
        dialect=dialect,
        _dispatch=engine.pool.dispatch,
    )
    event.listen(pool, "connect", read_committed)
    if not event.contains(engine, "engine_disposed", _dispose):
        event.listen(engine, "engine_disposed", _dispose)
    return pool


def _dispose(engine: Engine) -> None:
    aside: _Aside | None = vars(root_engine(engine)).pop(_ASIDE, None)
    # A forked child that disposes of what it inherited must not take leave of the server in its parent's name.
    if aside is not None and aside.pid == os.getpid():
        aside.pool.dispose()
