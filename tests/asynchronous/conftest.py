"""A database, a store and a registered factory of asynchronous sessions, with every statement counted."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool

import sa_writethrough as wt

BACKENDS = ("asyncpg+memcached", "psycopg+memcached", "aiosqlite+memory", "aiosqlite+memcached")


class World:
    """One engine and one registered async_sessionmaker; and a synchronous way into the database past the library."""

    def __init__(self, url: str, outside: sa.Engine, store: Any, **registration: Any) -> None:
        self.engine = create_async_engine(url)
        self.outside = outside
        self.factory = async_sessionmaker(self.engine)
        self.statements: list[str] = []
        self.checkouts: list[object] = []
        sa.event.listen(self.engine.sync_engine, "before_cursor_execute", self._note)
        sa.event.listen(self.engine.sync_engine, "checkout", lambda *arguments: self.checkouts.append(arguments))
        self.cache = wt.register(self.factory, store, **registration)

    def _note(self, _connection: Any, _cursor: Any, sql: str, *_rest: Any) -> None:
        self.statements.append(sql)

    def session(self, **options: Any) -> AsyncSession:
        return self.factory(**options)

    async def add(self, *instances: Any) -> None:
        """Commit *instances*, and wait until they are published."""
        async with self.factory.begin() as session:
            session.add_all(instances)
        await self.cache.drain()

    async def name_of(self, entity: Any, ident: Any) -> str | None:
        """Return the name in a row as a session of its own reads it through the cache, when what it filled is there."""
        async with self.session() as session:
            found = await self.cache.get(session, entity, ident)
            name = None if found is None else found.name
        await self.cache.drain()
        return name

    def stored(self, ident: Any) -> str | None:
        """Return the name in a row of the database, past the library."""
        with self.outside.connect() as connection:
            return connection.scalar(sa.text("SELECT name FROM users WHERE id = :id"), {"id": ident})

    @contextlib.contextmanager
    def no_sql(self) -> Iterator[None]:
        """Fail if the block executes a statement or checks a connection out."""
        statements, checkouts = len(self.statements), len(self.checkouts)
        yield
        assert self.statements[statements:] == []
        assert len(self.checkouts) == checkouts

    async def close(self) -> None:
        await self.cache.unregister()
        await self.engine.dispose()


@pytest.fixture
def base() -> Iterator[type[orm.DeclarativeBase]]:
    """A declarative base of the test's own, whose mappers are gone afterwards."""

    class Base(orm.DeclarativeBase):
        pass

    yield Base
    Base.registry.dispose()


@pytest.fixture
def user(base: Any) -> Any:
    """A plain cached model."""

    class User(base):
        __tablename__ = "users"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str] = orm.mapped_column(sa.String(30))
        age: orm.Mapped[int | None]

    return User


def _opener(
    request: pytest.FixtureRequest, base: Any, backend: str
) -> Iterator[Callable[..., contextlib.AbstractAsyncContextManager[World]]]:
    driver, _, store = backend.partition("+")
    pytest.importorskip(driver)
    plain = request.getfixturevalue("sqlite_url" if driver == "aiosqlite" else "postgres_url")
    url = plain.replace("sqlite:", "sqlite+aiosqlite:").replace("+psycopg", f"+{driver}")
    where = "memory://" if store == "memory" else request.getfixturevalue("memcached").url
    outside = sa.create_engine(plain, poolclass=NullPool)

    @contextlib.asynccontextmanager
    async def opened(**arguments: Any) -> AsyncIterator[World]:
        base.metadata.create_all(outside)
        world = World(url, outside, arguments.pop("store", where), **arguments)
        try:
            yield world
        finally:
            await world.close()

    yield opened
    outside.dispose()


@pytest.fixture(params=BACKENDS)
def open_world(request: pytest.FixtureRequest, base: Any) -> Iterator[Any]:
    """What opens worlds on each driver and store; it takes the arguments of `register`."""
    yield from _opener(request, base, request.param)


@pytest.fixture(params=["asyncpg+memcached", "psycopg+memcached"])
def open_postgres_world(request: pytest.FixtureRequest, base: Any) -> Iterator[Any]:
    """Open worlds on PostgreSQL's drivers with memcached."""
    yield from _opener(request, base, request.param)
