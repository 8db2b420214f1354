"""Which SQLite database an engine leads to, and what the verified fill asks of an engine's pool."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import QueuePool, StaticPool

from sa_writethrough.engines import EngineFacts, Engines, driver_autocommits
from tests.reading.conftest import World


def facts_of(url: str, **options: Any) -> EngineFacts:
    engine = sa.create_engine(url, **options)
    try:
        with engine.connect() as connection:
            return Engines().learn(connection)
    finally:
        engine.dispose()


def test_one_file_is_one_database_whatever_its_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path, a relative path, a symbolic link and `file:` URIs of one file give one identity."""
    path = tmp_path / "one.db"
    link = tmp_path / "link.db"
    link.symlink_to(path)
    monkeypatch.chdir(tmp_path)
    urls = [
        f"sqlite:///{path}",
        "sqlite:///one.db",
        f"sqlite:///{link}",
        f"sqlite:///file:{path}?uri=true",
        f"sqlite:///file:{path}?mode=rwc&uri=true",
        f"sqlite:///file://{path}?cache=private&uri=true",
    ]
    found = [facts_of(url) for url in urls]
    assert {facts.database for facts in found} == {found[0].database}
    assert not any(facts.isolated for facts in found)
    assert facts_of(f"sqlite:///{tmp_path / 'two.db'}").database != found[0].database


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:m0?mode=memory&uri=true",
        "sqlite:///file:m0?mode=memory&cache=shared&uri=true",
        "sqlite:///file:/m0?vfs=memdb&uri=true",
        "sqlite:///file::memory:?uri=true",
    ],
)
def test_a_database_in_memory_is_nobody_elses(url: str) -> None:
    """However the URL says that it is in memory: each engine has an identity of its own, and is isolated."""
    one, two = facts_of(url, poolclass=StaticPool), facts_of(url, poolclass=StaticPool)
    assert one.isolated
    assert two.isolated
    assert one.database != two.database


def test_a_creator_of_the_applications_decides_which_file_it_is(tmp_path: Path) -> None:
    """The URL may say nothing at all: the database is asked."""
    path = tmp_path / "one.db"

    def connect() -> Any:
        return sa.dialects.sqlite.dialect.import_dbapi().connect(path)

    facts = facts_of("sqlite://", creator=connect, poolclass=QueuePool)
    assert facts == facts_of(f"sqlite:///{path}")


def test_asking_for_the_file_begins_no_transaction(sqlite_url: str) -> None:
    """An engine whose `begin` listener emits BEGIN is learnt without one."""
    engine = sa.create_engine(sqlite_url)
    begun: list[Any] = []
    sa.event.listen(engine, "begin", begun.append)
    with engine.connect() as connection:
        Engines().learn(connection)
        assert not connection.in_transaction()
    engine.dispose()
    assert begun == []


def test_a_write_through_a_file_uri_reaches_readers_of_the_path(
    base: Any, user: Any, sqlite_world_of: Any, sqlite_url: str
) -> None:
    """Two engines of one file, named differently, keep one entry per row."""
    world: World = sqlite_world_of(base)
    world.add(user(id=1, name="ann"))
    other = sa.create_engine(sqlite_url.replace("sqlite:///", "sqlite:///file:") + "?uri=true")
    with world.session(bind=other) as session:
        session.get(user, 1).name = "new"
        session.commit()
    other.dispose()
    assert world.read(user, 1).name == "new"


# --- the verified fill ------------------------------------------------------------------------------------------------


@pytest.fixture
def exhausted(base: Any, user: Any, sqlite_world_of: Any, memcached: Any) -> World:
    """A world on a SQLite file and memcached, with a pool of one connection and one row that is not cached."""
    pool = {"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0, "pool_timeout": 30}
    world: World = sqlite_world_of(base, store=memcached.url, engine=pool)
    world.add(user(id=1, name="ann"))
    world.cache.evict_all()
    return world


def test_a_fill_does_not_wait_for_the_pool(user: Any, exhausted: World) -> None:
    """With the pool's only connection in the reader's hands a miss is as quick as ever, and is filled."""
    start = time.monotonic()
    assert exhausted.read(user, 1).name == "ann"
    assert time.monotonic() - start < 5
    assert exhausted.is_cached(user, 1)


def test_a_fill_beside_an_exhausted_pool_still_sees_a_writer(user: Any, exhausted: World) -> None:
    """The connection outside the pool asks the same file: what a writer holds is served and not filled."""
    with exhausted.outside.begin() as writer:
        writer.execute(sa.text("UPDATE users SET name = 'new'"))
        assert exhausted.read(user, 1).name == "ann"
        assert not exhausted.cache.contains(user, 1)
    assert exhausted.read(user, 1).name == "new"
    assert exhausted.is_cached(user, 1)


def test_a_fill_on_a_static_pool_leaves_the_sessions_transaction_alone(
    base: Any, user: Any, sqlite_world_of: Any, memcached: Any
) -> None:
    """The pool's only connection is the session's own: the fill takes another one, and rolls back that one alone."""
    world: World = sqlite_world_of(base, store=memcached.url, engine={"poolclass": StaticPool})
    world.add(user(id=1, name="ann"))
    world.cache.evict_all()
    with world.session() as session:
        assert world.cache.get(session, user, 1).name == "ann"
        session.add(user(id=2, name="bob"))
        session.commit()
    assert world.is_cached(user, 1)
    assert world.read(user, 2).name == "bob"


def test_a_fill_that_cannot_connect_is_left_out(user: Any, exhausted: World) -> None:
    """Where no second connection is to be had the row is served and not filled; nothing is raised."""
    with exhausted.session() as session:
        session.connection()  # the pool's own

        def refuse(*_arguments: Any) -> None:
            raise exhausted.engine.dialect.loaded_dbapi.OperationalError("unable to open database file")

        sa.event.listen(exhausted.engine, "do_connect", refuse)
        assert exhausted.cache.get(session, user, 1).name == "ann"
        sa.event.remove(exhausted.engine, "do_connect", refuse)
    exhausted.cache.drain()
    assert not exhausted.cache.contains(user, 1)


def test_connect_listeners_hold_for_the_fill(user: Any, exhausted: World) -> None:
    """What the application sets up on every connection is set up on the one that verifies a row, too."""
    connected: list[Any] = []
    sa.event.listen(exhausted.engine, "connect", lambda connection, _record: connected.append(connection))
    exhausted.read(user, 1)
    assert len(connected) == 1
    assert exhausted.is_cached(user, 1)


def test_a_connection_of_another_thread_is_asked_what_it_may_tell() -> None:
    """In memory, Python 3.12 lets no other thread read `autocommit`: it counts as not set."""

    class Bound(sqlite3.Connection):
        @property
        def autocommit(self) -> bool:
            raise sqlite3.ProgrammingError("SQLite objects created in a thread can only be used in that same thread.")

    with contextlib.closing(sqlite3.connect(":memory:", factory=Bound)) as connection:
        assert not driver_autocommits(connection)
    with contextlib.closing(sqlite3.connect(":memory:", factory=Bound, isolation_level=None)) as connection:
        assert driver_autocommits(connection)
