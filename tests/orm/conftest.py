"""The worlds that every claim about the ORM is tested in: SQLite with the embedded store, PostgreSQL with memcached."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from sa_writethrough.stores.memory import MemoryStore
from sa_writethrough.stores.urls import open_store
from tests.orm.models import Base, create_schema
from tests.orm.worlds import World, open_engine, open_world
from tests.servers import PostgresServer


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "template.db"
    engine = open_engine(f"sqlite:///{path}")
    create_schema(engine)
    engine.dispose()
    return path


@pytest.fixture(scope="session")
def _postgres_schema(postgres: PostgresServer) -> str:
    url = postgres.create_database()
    engine = sa.create_engine(url)
    create_schema(engine)
    engine.dispose()
    return url


@pytest.fixture
def sqlite_copy(_sqlite_template: Path, tmp_path: Path) -> Callable[[str], str]:
    """Return the URL of a new SQLite file with the schema."""

    def copy(name: str) -> str:
        shutil.copy(_sqlite_template, tmp_path / name)
        return f"sqlite:///{tmp_path / name}"

    return copy


@pytest.fixture
def sqlite_world(sqlite_copy: Callable[[str], str]) -> Iterator[World]:
    """A SQLite file with the embedded store."""
    world = open_world(sqlite_copy("world.db"), MemoryStore())
    yield world
    world.close()


@pytest.fixture
def postgresql_world(_postgres_schema: str, postgres: PostgresServer, memcached: Any) -> Iterator[World]:
    """PostgreSQL with memcached."""
    world = open_world(_postgres_schema, open_store(memcached.url))
    yield world
    world.close()
    tables = ", ".join(f'"{table.name}"' for table in Base.metadata.tables.values())
    engine = sa.create_engine(_postgres_schema, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("SET lock_timeout = '2s'")  # a test that failed may have left a lock
        for gid in connection.exec_driver_sql("SELECT gid FROM pg_prepared_xacts").scalars().all():
            connection.exec_driver_sql(f"ROLLBACK PREPARED '{gid}'")
        connection.exec_driver_sql(f"TRUNCATE {tables} RESTART IDENTITY CASCADE")
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest) -> World:
    """Each kind of world in turn."""
    found: World = request.getfixturevalue(f"{request.param}_world")
    return found
