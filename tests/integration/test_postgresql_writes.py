"""What only PostgreSQL can do to a writer: two phases, killed servers processes, slow COMMITs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

import sa_writethrough as wt
from sa_writethrough import events
from sa_writethrough.coherence import Announce
from sa_writethrough.testing import LoseReply
from tests.orm.conftest import _postgres_schema, postgresql_world  # noqa: F401 - fixtures
from tests.orm.models import Account, Plain
from tests.orm.worlds import ABSENT, World, around_commit


@pytest.fixture
def world(postgresql_world: World) -> World:  # noqa: F811 - the fixture
    """PostgreSQL with memcached, and one cached account."""
    postgresql_world.add(Account(id=1, name="old"))
    postgresql_world.published(Account, 1)
    return postgresql_world


@pytest.fixture
def slow_commit(world: World) -> Iterator[World]:
    """COMMITs of transactions that wrote an account take 0.2 s, by a deferred constraint trigger."""
    world.outside(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.2); RETURN NULL; END'"
    )
    world.outside(
        "CREATE CONSTRAINT TRIGGER slow AFTER UPDATE ON account DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION slow()"
    )
    yield world
    world.outside("DROP TRIGGER slow ON account; DROP FUNCTION slow()")


def _change(session: Session, name: str = "new") -> None:
    session.get(Account, 1).name = name
    session.flush()


def _pid(session: Session) -> int:
    return int(session.scalar(sa.text("SELECT pg_backend_pid()")))


def test_an_update_shows_the_applications_listeners_no_rows(world: World) -> None:
    """RETURNING is the library's affair: the result is that of the UPDATE that the application sent."""
    seen: list[tuple[bool, int]] = []

    def look(_connection: Any, statement: Any, *rest: Any) -> None:
        if getattr(statement, "is_update", False):
            seen.append((rest[-1].returns_rows, rest[-1].rowcount))

    sa.event.listen(world.engine, "after_execute", look)
    with world.sessions() as session:
        _change(session)
        session.commit()
    sa.event.remove(world.engine, "after_execute", look)
    assert seen == [(False, 1)]
    world.published(Account, 1)


# --- two phases ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prepare", [False, True])
def test_a_two_phase_commit_is_published(world: World, prepare: bool) -> None:
    """With an explicit prepare(), and with commit() alone."""
    with world.sessions(twophase=True) as session:
        _change(session)
        if prepare:
            session.prepare()
            assert world.entry(Account, 1) == ABSENT
        session.commit()
    world.published(Account, 1)
    assert world.select(Account, 1)["name"] == "new"


@pytest.mark.parametrize("prepare", [False, True])
def test_a_two_phase_rollback_leaves_the_old_row(world: World, prepare: bool) -> None:
    """Before and after prepare()."""
    with world.sessions(twophase=True) as session:
        _change(session)
        if prepare:
            session.prepare()
        session.rollback()
    world.reads_true(Account, 1)
    assert world.select(Account, 1)["name"] == "old"
    world.warm(Account, 1)


def test_two_phases_without_a_cached_row_ask_nothing_of_the_store(world: World) -> None:
    """Nothing was touched."""
    with world.no_traffic(), world.sessions(twophase=True) as session:
        session.add(Plain(id=1, name="x"))
        session.prepare()
        session.commit()


def test_a_prepared_transaction_of_a_process_that_ended_leaves_its_tombstone(world: World) -> None:
    """PREPARE, and the session goes away: the row is read from the database until somebody ends the transaction."""
    session = world.sessions(twophase=True)
    _change(session)
    connection = session.connection()
    session.prepare()
    connection.invalidate()
    session.close()
    assert world.entry(Account, 1) == ABSENT
    with world.sessions() as reader:
        assert world.cache.get(reader, Account, 1).name == "old"
    world.agrees(Account, 1)
    with world.observer.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        (gid,) = connection.execute(sa.text("SELECT gid FROM pg_prepared_xacts")).scalars()
        connection.exec_driver_sql(f"COMMIT PREPARED '{gid}'")
    world.reads_true(Account, 1)
    assert world.select(Account, 1)["name"] == "new"


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_prepared_transaction_whose_end_is_not_acknowledged_leaves_its_tombstone(world: World, end: str) -> None:
    """The connection is lost after PREPARE: the transaction is still in the database's hands."""
    with world.sessions(twophase=True) as session:
        pid = _pid(session)
        _change(session)
        session.prepare()
        with world.observer.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
        with pytest.raises(DBAPIError):
            getattr(session, end)()
        session.invalidate()
    assert (world.cache.stats().retracted, world.cache.stats().unresolved) == (0, 1)
    assert world.entry(Account, 1) == ABSENT
    with world.observer.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        (gid,) = connection.execute(sa.text("SELECT gid FROM pg_prepared_xacts")).scalars()
        connection.exec_driver_sql(f"COMMIT PREPARED '{gid}'")
    world.agrees(Account, 1)


def test_an_unreachable_cache_aborts_the_preparation(world: World) -> None:
    """The announcement comes before PREPARE, and nothing stays prepared."""
    world.faults.script.append(LoseReply(Announce))
    with world.sessions(twophase=True) as session:
        _change(session)
        with pytest.raises(wt.CacheUnavailableError):
            session.commit()
        session.rollback()
    assert world.idle()
    with world.observer.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM pg_prepared_xacts")).scalar() == 0
    world.reads_true(Account, 1)


# --- a COMMIT whose outcome is unknown ------------------------------------------------------------------------------------


def test_a_server_process_that_is_killed_during_commit_leaves_the_tombstone(slow_commit: World) -> None:
    """Whether the COMMIT took effect is unknown: the tombstone stays and is never taken back."""
    world = slow_commit
    seen: list[Any] = []
    unsubscribe = world.cache.subscribe(seen.append)

    def terminate_in_commit() -> None:
        with world.observer.connect() as connection:
            sleeping = sa.text("SELECT wait_event FROM pg_stat_activity WHERE pid = :pid")
            while connection.execute(sleeping, {"pid": pid}).scalar() != "PgSleep":
                connection.rollback()
            connection.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})

    with world.sessions() as session:
        pid = _pid(session)
        _change(session)
        killer = threading.Thread(target=terminate_in_commit)
        killer.start()
        with pytest.raises(DBAPIError):
            session.commit()
        killer.join()
        session.rollback()
    unsubscribe()
    assert any(isinstance(record, events.Unresolved) for record in seen)
    assert not any(isinstance(record, events.Retracted | events.Published) for record in seen)
    assert world.entry(Account, 1) == ABSENT
    with world.sessions() as reader:
        assert world.cache.get(reader, Account, 1).name == world.select(Account, 1)["name"]
    assert world.entry(Account, 1) == ABSENT
    assert world.cache.stats().unresolved == 1


def test_a_connection_that_is_killed_between_announcement_and_commit_leaves_the_tombstone(world: World) -> None:
    """COMMIT finds the connection gone: the library does not take that for a rollback."""

    def terminate() -> None:
        with world.observer.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})

    with world.sessions() as session:
        pid = _pid(session)
        _change(session)
        session.get(Account, 1).note = "n"
        with around_commit(world.engine, terminate), pytest.raises(OperationalError):
            session.commit()
        session.rollback()
    assert world.cache.stats().retracted == 0
    assert world.cache.stats().unresolved == 1
    assert world.entry(Account, 1) == ABSENT


def test_a_connection_that_is_killed_before_the_announcement_changes_nothing(world: World) -> None:
    """The transaction is over, and the old entry was never touched."""
    with world.sessions() as session:
        pid = _pid(session)
        _change(session)
        with world.observer.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
        with pytest.raises(OperationalError):
            session.commit()
        session.rollback()
    world.reads_true(Account, 1)
    assert world.select(Account, 1)["name"] == "old"


def test_readers_during_a_slow_commit_do_not_keep_the_old_row(slow_commit: World) -> None:
    """A tombstone that is lost while COMMIT runs: the reader's fill is refused by the row's lock."""
    world = slow_commit
    seen: list[str] = []

    def read() -> None:
        world.faults.forget_tombstones()
        with world.sessions() as reader:
            seen.append(world.cache.get(reader, Account, 1).name)
        assert world.entry(Account, 1) == ABSENT

    with world.sessions() as session:
        _change(session)
        with around_commit(world.engine, lambda: seen or read()):
            session.commit()
    assert seen == ["old"]
    world.reads_true(Account, 1)
    assert world.select(Account, 1)["name"] == "new"


# --- two writers ----------------------------------------------------------------------------------------------------------


def test_a_writer_that_waits_for_the_rows_lock_announces_after_the_one_before_it(world: World) -> None:
    """The second writer's UPDATE waits for the first one's COMMIT; the entry is the second's."""
    started = threading.Event()

    def second() -> None:
        with world.sessions() as session:
            account = session.get(Account, 1)
            account.note = "second"
            started.set()
            session.commit()

    with world.sessions() as first:
        _change(first, "first")
        thread = threading.Thread(target=second)
        thread.start()
        started.wait()
        with world.observer.connect() as connection:
            while not connection.execute(sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar():
                connection.rollback()
        first.commit()
        thread.join()
    world.agrees(Account, 1)  # or absent: the first publication may arrive after the second
    world.reads_true(Account, 1)
    assert (world.select(Account, 1)["name"], world.select(Account, 1)["note"]) == ("first", "second")


def test_a_serialization_failure_leaves_the_winner(world: World) -> None:
    """REPEATABLE READ: the loser's UPDATE fails, and its entry is the winner's."""
    engine = world.engine.execution_options(isolation_level="REPEATABLE READ")
    with world.sessions(bind=engine) as loser:
        loser.get(Account, 1)
        with world.sessions() as winner:
            _change(winner, "winner")
            winner.commit()
        with pytest.raises(OperationalError):
            _change(loser, "loser")
        loser.rollback()
    world.published(Account, 1)
    assert world.entry(Account, 1)["name"] == "winner"
