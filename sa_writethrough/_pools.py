"""SQLAlchemy's internals that connections beside an engine's pool need. A room as `_sqla` is, and tested as that one.

The application may hold the last connection of its pool, and nothing here may wait for that one.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, Pool, QueuePool

from sa_writethrough._sqla import root_engine

__all__ = ["connection_aside", "connection_of_its_own"]

_SIZE = 5
_ASIDE: WeakKeyDictionary[Engine, Pool] = WeakKeyDictionary()


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
    pool = _ASIDE.get(root)
    if pool is None:
        pool = _ASIDE.setdefault(root, _small_pool(root))
    return Connection(engine, pool.connect())


def _small_pool(engine: Engine) -> Pool:
    class_ = AsyncAdaptedQueuePool if engine.dialect.is_async else QueuePool
    pool = class_(
        engine.pool._creator,
        pool_size=_SIZE,
        max_overflow=0,
        timeout=0,
        recycle=engine.pool._recycle,
        pre_ping=engine.pool._pre_ping,
        dialect=engine.dialect,
        _dispatch=engine.pool.dispatch,
    )
    event.listen(pool, "connect", lambda connection, _record: _read_committed(engine, connection))
    event.listen(engine, "engine_disposed", _dispose)
    return pool


def _read_committed(engine: Engine, dbapi_connection: object) -> None:
    engine.dialect.set_isolation_level(dbapi_connection, "READ COMMITTED")  # type: ignore[arg-type]  # what pools hold


def _dispose(engine: Engine) -> None:
    pool = _ASIDE.pop(root_engine(engine), None)
    if pool is not None:
        pool.dispose()
