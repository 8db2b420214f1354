"""The worlds that every claim about the ORM is tested in.

SQLite with the embedded store, PostgreSQL with memcached, MariaDB with memcached and reads of committed rows.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from sa_writethrough.stores.memory import MemoryStore
from sa_writethrough.stores.urls import open_store
from tests.orm.models import Account, Base, create_schema
from tests.orm.worlds import World, open_engine, open_world
from tests.servers import MariadbServer, PostgresServer

MARIADB_DIFFERS = {
    "test_an_inserted_row_of_exact_columns_is_not_read_back": "every inserted row is read back",
    "test_a_listener_that_comes_before_every_insert_costs_no_select": "every inserted row is read back",
    "test_an_unrelated_savepoint_does_not_lose_the_outer_values": "every inserted row is read back",
    "test_the_outer_commit_fails_at_a_deferred_constraint": "no deferred constraints",
    "test_dml_that_a_select_is_loaded_from": "no UPDATE RETURNING",
    "test_orm_update_by_a_criterion_that_names_no_key": "no UPDATE RETURNING: it evicts",
    "test_an_orm_update_that_returns_entities_is_not_served_from_before": "no UPDATE RETURNING",
    "test_bulk_statements_on_a_single_table_subclass": "no UPDATE RETURNING: it evicts",
    "test_composite_keys": "no UPDATE RETURNING: it evicts",
    "test_on_conflict_do_update": "no ON CONFLICT",
    "test_on_conflict_do_update_that_returns_entities": "no ON CONFLICT",
    "test_on_conflict_do_nothing_changes_no_entry": "no ON CONFLICT",
    "test_core_and_text_dml[mariadb-text-upper-session]": "names are quoted by backticks",
    "test_core_and_text_dml[mariadb-text-upper-connection]": "names are quoted by backticks",
    "test_core_and_text_dml[mariadb-text-columns-session]": "no UPDATE RETURNING",
    "test_core_and_text_dml[mariadb-text-columns-connection]": "no UPDATE RETURNING",
}
"""What cannot be claimed of MariaDB, and why; `test_mariadb` and `test_mariadb_fences` say what holds there."""


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "template.db"
    _with_schema(f"sqlite:///{path}")
    return path


def _with_schema(url: str) -> str:
    engine = open_engine(url)
    create_schema(engine)
    engine.dispose()
    return url


@pytest.fixture(scope="session")
def _postgres_schema(postgres: PostgresServer) -> str:
    return _with_schema(postgres.create_database())


@pytest.fixture(scope="session")
def _mariadb_schema(mariadb: MariadbServer) -> str:
    return _with_schema(mariadb.create_database())


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


@pytest.fixture
def mariadb_world(_mariadb_schema: str, mariadb: MariadbServer, memcached: Any) -> Iterator[World]:
    """MariaDB with memcached."""
    world = open_world(_mariadb_schema, open_store(memcached.url))
    yield world
    world.close()
    engine = sa.create_engine(_mariadb_schema, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for *_, xid in connection.exec_driver_sql("XA RECOVER").all():
            connection.exec_driver_sql(f"XA ROLLBACK '{xid.decode()}'")
        connection.exec_driver_sql("SET foreign_key_checks = 0")
        connection.exec_driver_sql("SET SESSION lock_wait_timeout = 2")  # a test that failed may have left a lock
        for table in Base.metadata.tables.values():
            # Not TRUNCATE: that makes the table's file anew.
            connection.exec_driver_sql(f"DELETE FROM `{table.name}`")
    engine.dispose()


@pytest.fixture
def mariadb_accounts(mariadb_world: World) -> World:
    """The same, with three accounts, all of them cached."""
    mariadb_world.add(*(Account(id=i, name=f"old{i}", note="n") for i in (1, 2, 3)))
    mariadb_world.published(Account, 1, 2, 3)
    return mariadb_world


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def world(request: pytest.FixtureRequest) -> World:
    """Each kind of world in turn."""
    node = request.node
    reason = MARIADB_DIFFERS.get(node.originalname) or MARIADB_DIFFERS.get(node.name)
    if request.param == "mariadb" and reason is not None:
        pytest.skip(reason)
    found: World = request.getfixturevalue(f"{request.param}_world")
    return found
