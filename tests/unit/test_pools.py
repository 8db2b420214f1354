"""`_pools` names SQLAlchemy's internals: each is there, and does what it is used for."""

from __future__ import annotations

import gc
import os
import sqlite3
import weakref
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from sa_writethrough import _pools


def test_connection_of_its_own(tmp_path: Any) -> None:
    """`_pools.connection_of_its_own` connects as the pool does, beside a pool that is exhausted."""
    engine = sa.create_engine(
        f"sqlite:///{tmp_path / 'own.db'}", poolclass=sa.QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.1
    )
    connected: list[Any] = []
    sa.event.listen(engine, "connect", lambda dbapi_connection, _record: connected.append(dbapi_connection))
    with engine.connect() as held, _pools.connection_of_its_own(engine) as own:
        assert own.engine is engine
        assert connected == [held.connection.dbapi_connection, own.connection.dbapi_connection]
        assert own.scalar(sa.text("SELECT 1")) == 1
        driver = own.connection.driver_connection
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        driver.execute("SELECT 1")
    engine.dispose()


def test_connection_aside(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`_pools.connection_aside` has connections beside a pool that is exhausted, and keeps them until the end."""
    engine = sa.create_engine(
        f"sqlite:///{tmp_path / 'aside.db'}", poolclass=sa.QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.1
    )
    levels: list[str] = []
    monkeypatch.setattr(engine.dialect, "set_isolation_level", lambda _connection, level: levels.append(level))
    with engine.connect(), _pools.connection_aside(engine) as aside:
        assert aside.engine is engine
        assert aside.scalar(sa.text("SELECT 1")) == 1
        driver = aside.connection.driver_connection
    assert levels == ["READ COMMITTED"]
    with _pools.connection_aside(engine.execution_options(logging_token="x")) as again:
        assert again.connection.driver_connection is driver
    held = [_pools.connection_aside(engine) for _ in range(5)]
    with pytest.raises(PoolTimeoutError):
        _pools.connection_aside(engine)
    for connection in held:
        connection.close()
    engine.dispose()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        driver.execute("SELECT 1")
    with _pools.connection_aside(engine) as anew:
        assert anew.connection.driver_connection is not driver
    engine.dispose()


def test_an_engine_goes_with_its_connections_aside(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody need dispose of it: what is kept for it does not keep it."""
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'gone.db'}")
    monkeypatch.setattr(engine.dialect, "set_isolation_level", lambda *_arguments: None)
    _pools.connection_aside(engine).close()
    gone = weakref.ref(engine)
    monkeypatch.undo()
    engine.pool.dispose()
    vars(engine)[_pools._ASIDE].pool.dispose()
    del engine
    gc.collect()
    assert gone() is None


def test_a_forked_child_leaves_its_parents_connections_alone(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It disposes of the engine as SQLAlchemy advises, and has connections of its own afterwards."""
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'fork.db'}")
    monkeypatch.setattr(engine.dialect, "set_isolation_level", lambda *_arguments: None)
    with _pools.connection_aside(engine) as aside:
        parents = aside.connection.driver_connection
    inherited = vars(engine)[_pools._ASIDE].pool
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        engine.dispose(close=False)
    assert parents.execute("SELECT 1").fetchall() == [(1,)]
    with _pools.connection_aside(engine) as own:
        assert own.connection.driver_connection is not parents
    engine.dispose()
    inherited.dispose()
