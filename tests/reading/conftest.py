"""A database, a store and a registered factory for each test of the read side, with every statement counted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.pool import NullPool

import sa_writethrough as wt
from tests.servers import MariadbServer, PostgresServer

BACKENDS = ("sqlite+memory", "postgresql+memcached", "mariadb+memcached")

INNODBS_FENCE = ("LOCK IN SHARE MODE NOWAIT", "LOCK IN SHARE MODE SKIP LOCKED")
"""What a statement ends with that reads a row again on MariaDB; tests/orm/test_mariadb_fences.py tests it."""
MARIADB_DIFFERS = {
    "test_execution_options_reach_the_miss": "the row is read again with the same options",
    "test_keys_of_every_kind_are_served[mariadb+memcached-string with spaces]": "equal to others, who knows to which",
    "test_keys_of_every_kind_are_served[mariadb+memcached-unicode]": "equal to others, who knows to which",
    "test_keys_of_every_kind_are_served[mariadb+memcached-control characters]": "equal to others, who knows to which",
    "test_keys_of_every_kind_are_served[mariadb+memcached-long string]": "longer than a key may be",
    "test_keys_of_every_kind_are_served[mariadb+memcached-datetime]": "a column without fractions of a second",
    "test_keys_of_every_kind_are_served[mariadb+memcached-bytes]": "no key without a length",
    "test_values_at_the_ends_of_their_ranges[mariadb+memcached-real-7]": "no infinity, no NaN",
    "test_values_at_the_ends_of_their_ranges[mariadb+memcached-real-8]": "no infinity, no NaN",
    "test_values_at_the_ends_of_their_ranges[mariadb+memcached-real-9]": "no infinity, no NaN",
    "test_values_at_the_ends_of_their_ranges[mariadb+memcached-exact-15]": "no NaN",
    "test_any_text_is_a_primary_key": "equal to others, who knows to which",
    "test_a_row_of_more_than_a_mebibyte": "longer than a VARCHAR may be",
}
"""What cannot be claimed of MariaDB, and why."""
WITHOUT_MARIADB = {"test_collections", "test_collections_races", "test_eager_options"}
"""Rooms whose models have cached collections, which are refused there."""


class World:
    """One engine, one registered sessionmaker, and a second way into the database that the library does not see."""

    def __init__(
        self,
        url: str,
        store: Any,
        base: Any,
        *,
        engine: dict[str, Any] | None = None,
        session: dict[str, Any] | None = None,
        **registration: Any,
    ) -> None:
        self.url = url
        self.base = base
        level = {"isolation_level": "READ COMMITTED"} if url.startswith("mariadb") else {}
        self.outside = sa.create_engine(url, poolclass=NullPool, **level)
        self.engine = sa.create_engine(url, **{**level, **(engine or {})})
        for each in (self.outside, self.engine) if url.startswith("sqlite") else ():
            sa.event.listen(each, "connect", _do_not_sync)
        base.metadata.create_all(self.outside)
        self.factory = orm.sessionmaker(self.engine, **(session or {}))
        self.statements: list[str] = []
        self.checkouts: list[object] = []
        sa.event.listen(self.engine, "before_cursor_execute", self._note)
        sa.event.listen(self.engine, "checkout", lambda *arguments: self.checkouts.append(arguments))
        self.cache = wt.register(self.factory, store, **registration)

    def _note(self, _connection: Any, _cursor: Any, sql: str, *_rest: Any) -> None:
        if not sql.endswith(INNODBS_FENCE):
            self.statements.append(sql)

    def close(self) -> None:
        self.cache.unregister()
        self.engine.dispose()

    def session(self, **options: Any) -> orm.Session:
        return self.factory(**options)

    def add(self, *instances: Any) -> None:
        """Commit *instances* through the registered factory, which publishes them."""
        with self.factory.begin() as session:
            session.add_all(instances)
        self.cache.drain()

    def outside_sql(self, sql: str, **parameters: Any) -> None:
        """Write past the library, as another program would; what is cached stays."""
        with self.outside.begin() as connection:
            connection.execute(sa.text(sql), parameters)

    @contextlib.contextmanager
    def counting(self) -> Iterator[list[str]]:
        """Collect the statements of the block."""
        seen: list[str] = []
        start = len(self.statements)
        yield seen
        seen += self.statements[start:]

    @contextlib.contextmanager
    def no_sql(self) -> Iterator[None]:
        """Fail if the block executes a statement or checks a connection out."""
        checkouts = len(self.checkouts)
        with self.counting() as seen:
            yield
        assert seen == []
        assert len(self.checkouts) == checkouts

    def is_cached(self, entity: Any, ident: Any, **session: Any) -> bool:
        """Tell whether a fresh session gets the row with no SQL at all. Fills nothing."""
        self.cache.drain()
        with self.counting() as seen, self.session(**session) as fresh:
            found = fresh.get(entity, ident, options=[wt.from_cache(wt.CacheMode.GET)])
        return found is not None and seen == []

    def read(self, entity: Any, ident: Any, mode: wt.CacheMode = wt.CacheMode.NORMAL) -> Any:
        """Return the instance as a fresh session gets it, detached, when what it filled is there."""
        with self.session(expire_on_commit=False) as fresh:
            found = fresh.get(entity, ident, options=[wt.from_cache(mode)])
        self.cache.drain()
        return found


def _do_not_sync(connection: Any, _record: Any) -> None:
    """Spare the disk: no test cuts the power."""
    connection.execute("PRAGMA synchronous = OFF")


@pytest.fixture
def base() -> Iterator[type[orm.DeclarativeBase]]:
    """A declarative base of the test's own, whose mappers are gone afterwards."""

    class Base(orm.DeclarativeBase):
        pass

    yield Base
    Base.registry.dispose()


@pytest.fixture(scope="session")
def _postgres_database(postgres: PostgresServer) -> str:
    return postgres.create_database()


@pytest.fixture
def postgres_url(_postgres_database: str) -> str:
    """One database for all tests of this room, emptied before each: to create one takes a third of a second."""
    with psycopg.connect(_postgres_database.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS other CASCADE")
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return _postgres_database


@pytest.fixture(scope="session")
def _mariadb_server(mariadb: MariadbServer) -> MariadbServer:
    mariadb.execute("CREATE DATABASE IF NOT EXISTS reading")
    return mariadb


@pytest.fixture
def mariadb_url(_mariadb_server: MariadbServer) -> str:
    """One database for all tests of this room, emptied before each."""
    _mariadb_server.execute("DROP DATABASE IF EXISTS other")
    _mariadb_server.execute("DROP DATABASE reading")
    _mariadb_server.execute("CREATE DATABASE reading")
    return _mariadb_server.url_of("reading")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The URLs of a database and a store."""
    if request.param == "sqlite+memory":
        return request.getfixturevalue("sqlite_url"), "memory://"
    if request.param == "mariadb+memcached":
        reason = MARIADB_DIFFERS.get(request.node.originalname) or MARIADB_DIFFERS.get(request.node.name)
        if reason is None and request.module.__name__.rpartition(".")[2] in WITHOUT_MARIADB:
            reason = "cached collections are refused on MariaDB"
        if reason is not None:
            pytest.skip(reason)
        return request.getfixturevalue("mariadb_url"), request.getfixturevalue("memcached").url
    return request.getfixturevalue("postgres_url"), request.getfixturevalue("memcached").url


def _builder(url: str, store: Any) -> Iterator[Callable[..., World]]:
    with contextlib.ExitStack() as worlds:

        def build(base: Any, **arguments: Any) -> World:
            chosen = arguments.pop("store", store)
            world = World(arguments.pop("url", url), chosen, base, **arguments)
            worlds.callback(world.close)
            return world

        yield build


@pytest.fixture
def world_of(base: Any, backend: tuple[str, str]) -> Iterator[Callable[..., World]]:
    """Build worlds on each backend: `world_of(base, policy=...)`."""
    yield from _builder(*backend)


@pytest.fixture
def sqlite_world_of(base: Any, sqlite_url: str) -> Iterator[Callable[..., World]]:
    """Build worlds on a SQLite file with the in-process store."""
    yield from _builder(sqlite_url, "memory://")


@pytest.fixture
def postgres_world_of(base: Any, postgres_url: str, memcached: Any) -> Iterator[Callable[..., World]]:
    """Build worlds on PostgreSQL with memcached."""
    yield from _builder(postgres_url, memcached.url)


@pytest.fixture
def user(base: Any) -> Any:
    """A plain cached model."""

    class User(base):
        __tablename__ = "users"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]
        age: orm.Mapped[int | None]

    return User


@pytest.fixture
def world(user: Any, base: Any, world_of: Callable[..., World]) -> World:
    """A world with User 1 (ann), 2 (bob) and 3 (cid), all of them cached."""
    made = world_of(base)
    made.add(*(user(id=i, name=n, age=10 * i) for i, n in ((1, "ann"), (2, "bob"), (3, "cid"))))
    return made
