"""`_pools` names SQLAlchemy's internals: each is there, and does what it is used for."""

from __future__ import annotations

import gc
import sqlite3
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
    before = len(_pools._ASIDE)
    _pools.connection_aside(engine).close()
    assert len(_pools._ASIDE) == before + 1
    engine.dispose()
    del engine
    gc.collect()
    assert len(_pools._ASIDE) == before
