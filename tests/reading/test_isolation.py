"""Isolation levels: a snapshot is not broken by a hit, nor an entry filled from one."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import sqlalchemy as sa

import sa_writethrough as wt
from tests.reading.conftest import World

SNAPSHOTS = ["REPEATABLE READ", "SERIALIZABLE"]


def sessions(world: World, level: str) -> dict[str, Any]:
    """Return ways to make a session at *level*."""

    def by_connection() -> Any:
        session = world.session()
        session.connection(execution_options={"isolation_level": level})
        return session

    def by_text() -> Any:
        session = world.session()
        session.execute(sa.text(f"SET TRANSACTION ISOLATION LEVEL {level}"))
        return session

    def by_bind() -> Any:
        return world.session(bind=world.engine.execution_options(isolation_level=level))

    return {"connection": by_connection, "text": by_text, "bind": by_bind}


@pytest.fixture
def postgres_world(user: Any, base: Any, postgres_world_of: Any) -> World:
    world = postgres_world_of(base)
    world.add(user(id=1, name="ann"), user(id=2, name="bob"))
    return world


@pytest.mark.parametrize("level", SNAPSHOTS)
@pytest.mark.parametrize("way", ["connection", "text", "bind"])
def test_a_snapshot_is_not_broken_by_a_hit(user: Any, postgres_world: World, level: str, way: str) -> None:
    """A session that began before another's commit keeps reading its own moment."""
    with sessions(postgres_world, level)[way]() as reader:
        assert reader.scalar(sa.text("SELECT name FROM users WHERE id = 2")) == "bob"  # the snapshot is taken
        with postgres_world.factory.begin() as writer:
            writer.get(user, 1).name = "new"
        postgres_world.cache.drain()
        assert reader.get(user, 1, options=[wt.from_cache()]).name == "ann"
        reader.expunge_all()
        assert postgres_world.cache.get(reader, user, 1).name == "ann"
        reader.expunge_all()
        statement = sa.select(user).where(user.id == 1).options(wt.from_cache())
        assert reader.scalars(statement).one().name == "ann"
    assert postgres_world.read(user, 1).name == "new"


@pytest.mark.parametrize("level", SNAPSHOTS)
@pytest.mark.parametrize("way", ["connection", "text", "bind"])
def test_a_snapshot_fills_nothing(user: Any, postgres_world: World, level: str, way: str) -> None:
    """What an old snapshot shows is not filled."""
    postgres_world.cache.evict_all()
    with sessions(postgres_world, level)[way]() as reader:
        postgres_world.cache.get(reader, user, 1)
    postgres_world.cache.drain()
    assert not postgres_world.cache.contains(user, 1)


@pytest.mark.parametrize("way", ["connection", "text", "bind"])
def test_read_committed_is_served(user: Any, postgres_world: World, way: str) -> None:
    """READ COMMITTED that is asked for in so many words is served and fills."""
    with sessions(postgres_world, "READ COMMITTED")[way]() as reader:
        with postgres_world.no_sql() if way == "bind" else postgres_world.counting() as seen:
            assert postgres_world.cache.get(reader, user, 1).name == "ann"
        assert not (seen if way == "connection" else [])
    postgres_world.cache.evict_all()
    with sessions(postgres_world, "READ COMMITTED")["connection"]() as reader:
        postgres_world.cache.get(reader, user, 1)
    assert postgres_world.is_cached(user, 1)


@pytest.mark.parametrize("level", SNAPSHOTS)
def test_an_engine_of_snapshots_bypasses_the_cache(base: Any, user: Any, postgres_world_of: Any, level: str) -> None:
    """`create_engine(isolation_level=...)` counts for every session; writes are published all the same."""
    world = postgres_world_of(base, engine={"isolation_level": level})
    world.add(user(id=1, name="ann"))
    assert world.cache.contains(user, 1)
    with world.session() as session, world.counting() as seen:
        assert world.cache.get(session, user, 1).name == "ann"
    assert len(seen) == 1


@pytest.mark.parametrize("level", SNAPSHOTS)
def test_a_database_of_snapshots_bypasses_the_cache(base: Any, user: Any, postgres_world_of: Any, level: str) -> None:
    """The server's default_transaction_isolation counts where the application asks for nothing."""
    option = f"-c default_transaction_isolation={level.lower().replace(' ', chr(92) + ' ')}"
    world = postgres_world_of(base, engine={"connect_args": {"options": option}})
    world.add(user(id=1, name="ann"))
    with world.session() as session, world.counting() as seen:
        assert world.cache.get(session, user, 1).name == "ann"
    assert len(seen) == 1


@pytest.mark.parametrize("level", SNAPSHOTS)
def test_serve_gives_hits_and_fills_nothing(base: Any, user: Any, postgres_world_of: Any, level: str) -> None:
    """`SnapshotReads.SERVE` serves hits in a snapshot; a miss still fills nothing."""
    world = postgres_world_of(
        base, engine={"isolation_level": level}, policy=wt.CachePolicy(snapshot_reads=wt.SnapshotReads.SERVE)
    )
    world.add(user(id=1, name="ann"))
    with world.session() as session, world.no_sql():
        assert world.cache.get(session, user, 1).name == "ann"
    world.cache.evict_all()
    world.read(user, 1)
    assert not world.cache.contains(user, 1)


def test_the_level_of_one_transaction_does_not_reach_the_next(user: Any, postgres_world: World) -> None:
    """After a session's SERIALIZABLE transaction the same session is served again."""
    with postgres_world.session() as session:
        session.execute(sa.text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
        session.rollback()
        with postgres_world.no_sql():
            assert postgres_world.cache.get(session, user, 1).name == "ann"


@pytest.mark.parametrize(
    "sql",
    [
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "SET default_transaction_isolation = 'serializable'",
    ],
)
def test_a_session_level_that_is_set_by_text_is_no_hole(user: Any, postgres_world: World, sql: str) -> None:
    """A connection whose default level was changed by SQL does not fill from its next snapshots."""
    with postgres_world.session() as session:
        connection = session.connection()
        connection.execute(sa.text(sql))
        session.commit()
        postgres_world.cache.evict_all()
        reader = session
        reader.execute(sa.text("SELECT count(*) FROM users"))
        assert reader.scalar(sa.text("SHOW transaction_isolation")) != "read committed"
        postgres_world.outside_sql("UPDATE users SET name = 'new' WHERE id = 1")
        assert postgres_world.cache.get(reader, user, 1).name == "ann"
    postgres_world.cache.drain()
    assert not postgres_world.cache.contains(user, 1)


def test_autocommit_reads_are_served_and_fill(user: Any, postgres_world: World) -> None:
    """Under AUTOCOMMIT each read sees the newest commit: hits, misses and fills work."""
    engine = postgres_world.engine.execution_options(isolation_level="AUTOCOMMIT")
    with postgres_world.session(bind=engine) as session, postgres_world.no_sql():
        assert postgres_world.cache.get(session, user, 1).name == "ann"
    postgres_world.cache.evict_all()
    with postgres_world.session(bind=engine) as session:
        assert postgres_world.cache.get(session, user, 1).name == "ann"
    assert postgres_world.is_cached(user, 1)


def test_autocommit_does_not_fill_what_a_writer_holds(user: Any, postgres_world: World) -> None:
    """The fence holds without a transaction, too, and leaves no lock."""
    engine = postgres_world.engine.execution_options(isolation_level="AUTOCOMMIT")
    postgres_world.cache.evict_all()
    with postgres_world.outside.connect() as writer:
        writer.execute(sa.text("UPDATE users SET name = 'new'"))
        with postgres_world.session(bind=engine) as session:
            assert postgres_world.cache.get(session, user, 1).name == "ann"
        assert not postgres_world.cache.contains(user, 1)
        writer.rollback()
        with postgres_world.session(bind=engine) as session:
            postgres_world.cache.get(session, user, 1)
            writer.execute(sa.text("SELECT 1 FROM users FOR UPDATE NOWAIT"))
    assert postgres_world.is_cached(user, 1)


@pytest.mark.parametrize("how", ["create_engine", "derived"])
def test_a_replica_serves_hits_and_never_fills(base: Any, user: Any, postgres_world_of: Any, how: str) -> None:
    """An engine with the execution option `writethrough_replica` may lag: hits are served, nothing is filled."""
    world = postgres_world_of(base)
    world.add(user(id=1, name="ann"))
    if how == "derived":
        replica = world.engine.execution_options(writethrough_replica=True)
    else:
        replica = sa.create_engine(world.url, execution_options={"writethrough_replica": True})
    try:
        with world.session(bind=replica) as session, world.no_sql():
            assert world.cache.get(session, user, 1).name == "ann"
        world.cache.evict_all()
        with world.session(bind=replica) as session:
            assert world.cache.get(session, user, 1).name == "ann"
        world.cache.drain()
        assert not world.cache.contains(user, 1)
        world.read(user, 1)
        assert world.is_cached(user, 1)
    finally:
        replica.dispose()


def test_a_replica_that_is_seen_first_does_not_keep_the_primary_from_filling(
    base: Any, user: Any, postgres_world_of: Any
) -> None:
    """The option belongs to the engine that has it, and not to those derived from the same one."""
    world = postgres_world_of(base)
    world.outside_sql("INSERT INTO users (id, name) VALUES (1, 'ann')")
    with world.session(bind=world.engine.execution_options(writethrough_replica=True)) as session:
        world.cache.get(session, user, 1)
    world.cache.drain()
    assert not world.cache.contains(user, 1)
    world.read(user, 1)
    assert world.is_cached(user, 1)


# --- SQLite ---------------------------------------------------------------------------------------------------------


def test_sqlite_by_default_counts_as_read_committed(base: Any, user: Any, sqlite_world_of: Any) -> None:
    """The driver opens no transaction for reads: hits are served and misses filled, after a first read as well."""
    world = sqlite_world_of(base)
    world.add(user(id=1, name="ann"), user(id=2, name="bob"))
    with world.session() as session:
        session.scalar(sa.text("SELECT count(*) FROM users"))
        with world.no_sql():
            assert world.cache.get(session, user, 1).name == "ann"
    world.cache.evict_all()
    with world.session() as session:
        session.scalar(sa.text("SELECT count(*) FROM users"))
        world.cache.get(session, user, 1)
    assert world.is_cached(user, 1)


def test_sqlite_with_an_explicit_begin_is_a_snapshot(base: Any, user: Any, sqlite_world_of: Any) -> None:
    """With BEGIN emitted by the application's event the session reads its snapshot, and fills nothing."""
    world = sqlite_world_of(base, engine={"connect_args": {"isolation_level": None}})
    sa.event.listen(world.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    with world.outside.connect() as other:
        other.exec_driver_sql("PRAGMA journal_mode = WAL")
    world.add(user(id=1, name="ann"), user(id=2, name="bob"))
    with world.session() as reader:
        reader.scalar(sa.text("SELECT count(*) FROM users"))
        with world.factory.begin() as writer:
            writer.get(user, 1).name = "new"
        assert world.cache.get(reader, user, 1).name == "ann"
    world.cache.evict_all()
    world.read(user, 1)
    assert not world.cache.contains(user, 1)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3 has autocommit since Python 3.12")
def test_sqlite_with_autocommit_false_is_a_snapshot(base: Any, user: Any, sqlite_world_of: Any) -> None:
    """With the driver's autocommit=False a transaction is always open: a snapshot."""
    world = sqlite_world_of(base, engine={"connect_args": {"autocommit": False}})
    world.add(user(id=1, name="ann"))
    with world.session() as session, world.counting() as seen:
        assert world.cache.get(session, user, 1).name == "ann"
    assert len(seen) == 1
    world.cache.evict_all()
    world.read(user, 1)
    assert not world.cache.contains(user, 1)


def test_sqlite_after_its_own_write_serves_other_rows(base: Any, user: Any, sqlite_world_of: Any) -> None:
    """A session that writes holds the only write lock: nobody else commits, and other rows' entries are right."""
    world = sqlite_world_of(base)
    world.add(user(id=1, name="ann"), user(id=2, name="bob"))
    with world.session() as session:
        session.get(user, 1).name = "new"
        session.flush()
        with world.no_sql():
            assert world.cache.get(session, user, 2).name == "bob"
        session.rollback()


def test_sqlite_in_an_explicit_read_transaction_is_a_snapshot(base: Any, user: Any, sqlite_world_of: Any) -> None:
    """A BEGIN by text opens a snapshot in the middle of an ordinary session."""
    world = sqlite_world_of(base)
    with world.outside.connect() as other:
        other.exec_driver_sql("PRAGMA journal_mode = WAL")
    world.add(user(id=1, name="ann"))
    with world.session() as reader:
        reader.execute(sa.text("BEGIN"))
        reader.scalar(sa.text("SELECT count(*) FROM users"))
        with world.factory.begin() as writer:
            writer.get(user, 1).name = "new"
        assert world.cache.get(reader, user, 1).name == "ann"
