"""The eighteen traps of the design's section 2, one by one; what reads is tested where reading is."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session

import sa_writethrough as wt
from sa_writethrough.coherence import Announce, Fill, Publish
from sa_writethrough.testing import Call, LoseReply
from tests.orm.models import Account, Part, Order, Plain
from tests.orm.worlds import ABSENT, World


@pytest.fixture
def accounts(world: World) -> World:
    """Two cached accounts."""
    world.add(Account(id=1, name="old"), Account(id=2, name="old"))
    world.published(Account, 1, 2)
    return world


def test_trap_01_a_flush_in_a_late_before_commit_is_announced(accounts: World) -> None:
    """Another listener flushes after every before_commit of ours."""

    def late(session: Session) -> None:
        session.get(Account, 2).name = "late"
        session.flush()

    with accounts.sessions() as session:
        event.listen(session, "before_commit", late)
        session.get(Account, 1).name = "new"
        session.commit()
    accounts.published(Account, 1, 2)
    assert accounts.entry(Account, 2)["name"] == "late"


def test_trap_02_a_savepoints_commit_is_no_commit(accounts: World) -> None:
    """Nothing is sent before the COMMIT."""
    with accounts.sessions() as session:
        session.get(Account, 1).name = "new"
        with accounts.no_traffic(), session.begin_nested():
            session.get(Account, 2).name = "new"
        assert accounts.entry(Account, 1)["name"] == "old"
        session.rollback()
    accounts.published(Account, 1, 2)


def test_trap_03_nothing_raises_after_commit(accounts: World) -> None:
    """The store breaks in publish, and the commit returns."""

    def explode() -> None:
        raise RuntimeError("broken")

    accounts.faults.script.append(Call(Publish, explode))
    with accounts.sessions() as session:
        session.get(Account, 1).name = "new"
        session.commit()
    accounts.agrees(Account, 1)


def test_trap_04_a_joined_session_publishes_nothing_before_the_outer_commit(accounts: World) -> None:
    """And an announcement that fails leaves a clean connection, without locks."""
    with accounts.engine.connect() as connection:
        transaction = connection.begin()
        with accounts.sessions(bind=connection) as session, accounts.no_traffic():
            session.get(Account, 1).name = "new"
            session.commit()
        transaction.rollback()
    accounts.published(Account, 1)


def test_trap_04_an_announcement_that_fails_rolls_back_first(accounts: World) -> None:
    """The row's lock is free although nobody has rolled back yet, and the pool gets a clean connection."""
    accounts.faults.script.append(LoseReply(Announce))
    session = accounts.sessions()
    session.get(Account, 1).name = "new"
    with pytest.raises(wt.CacheUnavailableError):
        session.commit()
    accounts.outside("UPDATE account SET note = 'free' WHERE id = 2")
    session.close()
    assert accounts.idle()
    assert accounts.select(Account, 1)["name"] == "old"


def test_trap_05_a_row_of_a_rolled_back_savepoint_is_not_announced(accounts: World) -> None:
    """Its lock is free."""
    accounts.traffic.changes.clear()
    with accounts.sessions() as session:
        session.get(Account, 1).name = "new"
        savepoint = session.begin_nested()
        session.get(Account, 2).name = "undone"
        session.flush()
        savepoint.rollback()
        session.commit()
    assert accounts.traffic.kinds().count("Announce") == 1
    accounts.published(Account, 1, 2)


def test_trap_06_a_connection_lost_in_commit_leaves_the_tombstone(postgresql_world: World) -> None:
    """The outcome is unknown: never retract."""
    world = postgresql_world
    world.add(Account(id=1, name="old"))

    def terminate(_connection: sa.Connection) -> None:
        with world.observer.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})

    with world.sessions() as session:
        pid = session.scalar(sa.text("SELECT pg_backend_pid()"))
        session.get(Account, 1).name = "new"
        session.flush()
        event.listen(world.engine, "commit", terminate)
        with pytest.raises(sa.exc.OperationalError):
            session.commit()
        session.rollback()
    event.remove(world.engine, "commit", terminate)
    assert (world.cache.stats().retracted, world.cache.stats().unresolved) == (0, 1)
    assert world.entry(Account, 1) == ABSENT


def test_trap_11_a_stale_instance_is_not_the_row(accounts: World) -> None:
    """It writes one column; another writer has committed another."""
    with accounts.sessions(expire_on_commit=False) as session:
        account = session.get(Account, 1)
        session.commit()
        accounts.outside("UPDATE account SET note = 'theirs' WHERE id = 1")
        account.name = "ours"
        session.commit()
    accounts.published(Account, 1)
    assert accounts.entry(Account, 1)["note"] == "theirs"


@pytest.mark.parametrize("end", ["close", "reset"])
def test_trap_12_what_a_closed_session_left_is_not_in_its_next_commit(accounts: World, end: str) -> None:
    """close() and reset() fire no rollback."""
    with accounts.sessions() as session:
        session.get(Account, 1).name = "left"
        session.flush()
        getattr(session, end)()
        with accounts.no_traffic():
            session.add(Plain(id=1, name="x"))
            session.commit()
    accounts.published(Account, 1)


def test_trap_13_bulk_methods_and_the_sessions_connection_are_seen(accounts: World) -> None:
    """They fire no flush events."""
    with accounts.sessions() as session:
        session.bulk_update_mappings(Account, [{"id": 1, "name": "bulk"}])
        session.connection().execute(sa.text("UPDATE account SET name = 'core' WHERE id = 2"))
        session.commit()
    accounts.reads_true(Account, 1, 2)


def test_trap_13_an_orphan_is_seen(world: World) -> None:
    """delete-orphan victims are not in session.deleted."""
    world.add(Order(id=1, name="o", parts=[Part(id=1)]))
    world.published(Part, 1)
    with world.sessions() as session:
        order = session.get(Order, 1)
        order.parts.clear()
        session.commit()
    assert world.entry(Part, 1) == ABSENT


def test_trap_15_a_half_failed_commit_is_settled_without_after_commit(accounts: World) -> None:
    """A COMMIT that no session event tells of: the outer transaction's."""
    with accounts.engine.connect() as connection:
        with connection.begin(), accounts.sessions(bind=connection) as session:
            session.get(Account, 1).name = "new"
            session.commit()
    accounts.published(Account, 1)
    assert accounts.entry(Account, 1)["name"] == "new"


def test_trap_16_an_autocommit_flush_is_refused(accounts: World) -> None:
    """A later rollback would not undo it."""
    engine = accounts.engine.execution_options(isolation_level="AUTOCOMMIT")
    with accounts.sessions(bind=engine) as session:
        session.get(Account, 1).name = "new"
        with pytest.raises(wt.ConfigurationError, match="AUTOCOMMIT"):
            session.commit()
        session.rollback()
    assert accounts.select(Account, 1)["name"] == "old"
    accounts.published(Account, 1)


def test_trap_17_a_listener_that_raises_in_after_commit_leaves_no_stale_value(accounts: World) -> None:
    """The tombstone stands, or the row is published."""

    def explode(_session: Any) -> None:
        raise RuntimeError("too late")

    with accounts.sessions() as session:
        event.listen(session, "after_commit", explode, insert=True)
        session.get(Account, 1).name = "new"
        with pytest.raises(RuntimeError):
            session.commit()
    accounts.agrees(Account, 1)
    accounts.reads_true(Account, 1)


def test_trap_18_a_fill_needs_the_lease_of_its_own_read(accounts: World) -> None:
    """What a session loads otherwise fills nothing, and a fill whose lease is gone is refused."""
    accounts.cache.evict_all(Account)
    with accounts.sessions() as session:
        session.scalars(sa.select(Account)).all()
    assert accounts.entry(Account, 1) == ABSENT
    accounts.faults.script.append(Call(Fill, lambda: accounts.cache.evict(Account, 1)))
    with accounts.sessions() as session:
        accounts.cache.get(session, Account, 1)
    assert accounts.entry(Account, 1) == ABSENT
