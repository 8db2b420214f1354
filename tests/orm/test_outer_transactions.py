"""Sessions inside somebody else's transaction, which "commit" without a COMMIT."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

import sa_writethrough as wt
from sa_writethrough.coherence import Announce
from sa_writethrough.stores.memory import MemoryStore
from sa_writethrough.taps import tap, untap
from sa_writethrough.testing import LoseReply
from tests.orm.models import Account, Claim, Contract
from tests.orm.worlds import ABSENT, PassingTap, World, around_commit, open_engine, open_world

MODES = ["conditional_savepoint", "rollback_only", "control_fully", "create_savepoint"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("outer", ["commit", "rollback", "close"])
def test_nothing_is_published_before_the_outer_transaction_ends(world: World, mode: str, outer: str) -> None:
    """A joined session's commit publishes nothing; the outer commit publishes all, the outer rollback nothing."""
    world.add(Account(id=1, name="old"))
    connection = world.engine.connect()
    transaction = connection.begin()
    with world.sessions(bind=connection, join_transaction_mode=mode) as session:
        session.get(Account, 1).name = "new"
        session.commit()
        committed = not transaction.is_active  # control_fully
        if not committed:
            assert world.entry(Account, 1)["name"] == "old"
            world.agrees(Account, 1)
        if outer == "commit" and not committed:
            transaction.commit()
        elif outer == "rollback" and not committed:
            transaction.rollback()
    connection.close()
    assert world.select(Account, 1)["name"] == ("new" if committed or outer == "commit" else "old")
    world.published(Account, 1)
    assert world.idle()


@pytest.mark.parametrize("mode", MODES)
def test_the_usual_test_fixture_leaves_the_cache_alone(world: World, mode: str) -> None:
    """Insert, commit, update, rollback, commit inside an outer transaction that is rolled back: nothing remains."""
    if mode == "control_fully":
        pytest.skip("the session ends the outer transaction itself")
    world.add(Account(id=1, name="old"))
    with world.engine.connect() as connection:
        transaction = connection.begin()
        with world.sessions(bind=connection, join_transaction_mode=mode) as session:
            session.add(Account(id=2, name="n"))
            session.get(Account, 1).name = "new"
            session.commit()
            assert world.cache.get(session, Account, 1).name == "new"
            if mode == "create_savepoint":
                session.get(Account, 1).name = "newer"
                session.flush()
                session.rollback()
                assert world.cache.get(session, Account, 1).name == "new"
            session.expunge_all()
            assert world.cache.get(session, Account, 2).name == "n"
        transaction.rollback()
    assert world.select(Account, 2) is None
    world.published(Account, 1)
    world.reads_true(Account, 2)


def test_the_outer_commit_fails_at_a_deferred_constraint(world: World) -> None:
    """The outer COMMIT raises: database and cache keep the old row, and the connection is clean."""
    world.add(Claim(id=1, name="old"))
    with world.engine.connect() as connection:
        transaction = connection.begin()
        with world.sessions(bind=connection) as session:
            session.get(Claim, 1).account_id = 99
            session.commit()
        with pytest.raises(IntegrityError):
            transaction.commit()
    assert world.idle()
    world.reads_true(Claim, 1)
    assert world.select(Claim, 1)["account_id"] is None


def test_an_unreachable_cache_aborts_the_outer_commit(world: World) -> None:
    """The outer transaction's COMMIT is refused, and nothing is written."""
    world.add(Account(id=1, name="old"))
    with world.engine.connect() as connection:
        transaction = connection.begin()
        with world.sessions(bind=connection) as session:
            session.get(Account, 1).name = "new"
            session.commit()
        world.faults.script.append(LoseReply(Announce))
        with pytest.raises(wt.CacheUnavailableError):
            transaction.commit()
    assert world.idle()
    world.reads_true(Account, 1)
    assert world.select(Account, 1)["name"] == "old"


def test_two_sessions_in_one_outer_transaction(world: World) -> None:
    """What both wrote is announced and published with the one COMMIT."""
    world.add(Account(id=1, name="old"), Account(id=2, name="old"))
    with world.engine.connect() as connection:
        transaction = connection.begin()
        for ident in (1, 2):
            with world.sessions(bind=connection) as session:
                session.get(Account, ident).name = "new"
                session.commit()
        transaction.commit()
    world.published(Account, 1, 2)
    assert world.select(Account, 2)["name"] == "new"


def test_the_connection_goes_on_after_the_outer_commit(world: World) -> None:
    """The next transaction on the same open connection settles the one before, and is not mixed with it."""
    world.add(Account(id=1, name="old"), Account(id=2, name="old"))
    with world.engine.connect() as connection:
        with connection.begin(), world.sessions(bind=connection) as session:
            session.get(Account, 1).name = "new"
            session.commit()
        world.reads_true(Account, 1)
        with connection.begin() as transaction:
            with world.sessions(bind=connection) as session:
                session.get(Account, 2).name = "undone"
                session.commit()
            world.published(Account, 1)
            transaction.rollback()
    world.published(Account, 1, 2)


def test_statements_of_the_outer_transaction_itself(world: World) -> None:
    """What is executed on the connection beside the session is touched as well."""
    world.add(Account(id=1, name="old"), Account(id=2, name="old"))
    with world.engine.connect() as connection, connection.begin():
        with world.sessions(bind=connection) as session:
            session.get(Account, 1).name = "new"
            session.commit()
        connection.execute(sa.update(Account.__table__).where(Account.__table__.c.id == 2).values(name="new"))
    world.reads_true(Account, 1, 2)
    assert world.select(Account, 2)["name"] == "new"


@pytest.mark.parametrize("engine_is_known", [True, False])
def test_a_joined_session_sets_no_savepoint_outside_a_transaction(world: World, engine_is_known: bool) -> None:
    """Its first savepoint on a connection that no session has used is no transaction of its own: RELEASE commits none."""
    world.add(Account(id=1, name="old"))
    world.published(Account, 1)
    world.engine.dispose()  # the pool's next connection is a new one
    engine = world.engine if engine_is_known else open_engine(world.engine.url.render_as_string(hide_password=False))
    with engine.connect() as connection:
        transaction = connection.begin()
        with world.sessions(bind=connection, join_transaction_mode="create_savepoint") as session:
            session.get(Account, 1).name = "new"
            session.commit()
        assert world.select(Account, 1)["name"] == "old"
        world.published(Account, 1)
        transaction.rollback()
    world.published(Account, 1)
    engine.dispose()


# --- two binds ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(sqlite_copy: Callable[[str], str]) -> object:
    """Two SQLite files under one registration: the first world's, whose sessions write Contract to the second file."""
    first = open_world(sqlite_copy("one.db"), MemoryStore())
    second = open_world(sqlite_copy("two.db"), MemoryStore())
    second.cache.unregister()
    first.sessions.configure(bind=None, binds={Account: first.engine, Contract: second.engine, Claim: second.engine})
    with first.sessions() as session:
        session.add_all([Account(id=1, name="old"), Contract(id=1, name="old"), Claim(id=1, name="old")])
        session.commit()
    second.cache, second.sessions, second.faults, second.traffic = (
        first.cache,
        first.sessions,
        first.faults,
        first.traffic,
    )
    yield first, second
    first.close()
    second.engine.dispose()
    second.observer.dispose()


def _change_both(session: Session) -> None:
    session.get(Account, 1).name = "new"
    session.get(Contract, 1).name = "new"
    session.flush()


def test_a_transaction_over_two_databases(two: tuple[World, World]) -> None:
    """Both rows are published."""
    first, second = two
    with first.sessions() as session:
        _change_both(session)
        session.commit()
    first.published(Account, 1)
    second.published(Contract, 1)
    assert second.select(Contract, 1)["name"] == "new"


@pytest.mark.parametrize("lost", [1, 2])
def test_no_database_is_committed_where_one_cannot_be_announced(two: tuple[World, World], lost: int) -> None:
    """All announcements come before the first COMMIT."""
    first, second = two
    for _ in range(lost - 1):
        first.faults.script.append(LoseReply(Announce, key="nobody's"))
    with first.sessions() as session:
        _change_both(session)
        keys = [key for _, unit in session.info[first.cache._core].units for key in unit.rows()]
        first.faults.script.append(LoseReply(Announce, key=keys[lost - 1]))
        with pytest.raises(wt.CacheUnavailableError):
            session.commit()
        session.rollback()
    assert first.select(Account, 1)["name"] == second.select(Contract, 1)["name"] == "old"
    assert first.idle()
    assert second.idle()
    first.reads_true(Account, 1)
    second.reads_true(Contract, 1)


@pytest.mark.filterwarnings("ignore:transaction already deassociated:sqlalchemy.exc.SAWarning")  # SQLAlchemy's own
def test_a_half_failed_commit_leaves_no_stale_entry(two: tuple[World, World]) -> None:
    """One database commits, the other fails at COMMIT: each entry is its own database's row, in either order.

    The order is that of a set of connections, so the transaction is repeated until both orders have been seen.
    """
    first, second = two
    orders: set[str] = set()
    kept: list[object] = []
    while orders != {"old", "new"} and len(kept) < 5_000:
        kept += [object() for _ in range(len(orders) + 7)]  # connections get other addresses
        with first.sessions() as session:
            session.merge(Account(id=1, name="old"))
            session.commit()
        with first.sessions() as session:
            session.get(Account, 1).name = "new"
            session.get(Claim, 1).account_id = 99
            session.flush()
            with pytest.raises(IntegrityError):
                session.commit()
            session.rollback()
        orders.add(first.select(Account, 1)["name"])
        first.agrees(Account, 1)
        second.agrees(Claim, 1)
        assert first.idle()
        assert second.idle()
        first.reads_true(Account, 1)
        second.reads_true(Claim, 1)
        assert second.select(Claim, 1)["account_id"] is None
    assert orders == {"old", "new"}


def test_what_a_commit_listener_writes_after_the_announcement_is_announced_too(two: tuple[World, World]) -> None:
    """Both databases are announced before the first COMMIT; the second one's commit event comes after that."""
    first, second = two
    with first.sessions() as session:
        session.add_all([Account(id=2, name="old"), Contract(id=2, name="old")])
        session.commit()

    def late(connection: Any) -> None:
        table = Account.__table__ if connection.engine is first.engine else Contract.__table__
        connection.execute(sa.update(table).where(table.c.id == 2).values(name="late"))

    before_commit: list[Any] = []
    with first.sessions() as session:
        _change_both(session)
        for world in two:
            event.listen(world.engine, "commit", late)
        with (
            around_commit(first.engine, lambda: before_commit.append(first.entry(Account, 2))),
            around_commit(second.engine, lambda: before_commit.append(second.entry(Contract, 2))),
        ):
            session.commit()
        for world in two:
            event.remove(world.engine, "commit", late)
    assert before_commit == [ABSENT, ABSENT]
    assert first.select(Account, 2)["name"] == second.select(Contract, 2)["name"] == "late"
    first.agrees(Account, 1, 2)
    second.agrees(Contract, 1, 2)


class _Refusing(PassingTap):
    """A driver that refuses every COMMIT, and may lose the answer to the ROLLBACK that follows."""

    def __init__(self, world: World, lost: bool) -> None:
        self._world, self._lost = world, lost
        self.retracted: list[int] = []

    def do_commit(self, do: Any, dbapi_connection: Any) -> None:
        raise sqlite3.OperationalError("refused")

    def do_rollback(self, do: Any, dbapi_connection: Any) -> None:
        self.retracted.append(self._world.traffic.kinds().count("Retract"))
        do(dbapi_connection)
        if self._lost and len(self.retracted) == 1:
            raise sqlite3.OperationalError("no answer")


@pytest.mark.parametrize("lost", [False, True])
def test_tombstones_are_taken_back_after_a_rollback_that_is_acknowledged(two: tuple[World, World], lost: bool) -> None:
    """Of two databases the first refuses its COMMIT; the second is announced, and rolled back by the session."""
    first, second = two
    taps = [_Refusing(first, lost), _Refusing(first, lost)]
    with first.sessions() as session:
        _change_both(session)
        first.traffic.changes.clear()
        for world, one in zip(two, taps, strict=True):
            tap(world.engine.dialect, one)
        with pytest.raises(sa.exc.DBAPIError):
            session.commit()
        with contextlib.suppress(sa.exc.DBAPIError):
            session.rollback()
        for world, one in zip(two, taps, strict=True):
            untap(world.engine.dialect, one)
    # The first one's, when the second one's ROLLBACK is about to be sent: not its own.
    assert max(one.retracted[0] for one in taps if one.retracted) == 1
    stats = first.cache.stats()
    assert (stats.announced - 3, stats.retracted, stats.unresolved) == (2, 1 if lost else 2, 1 if lost else 0)
    first.agrees(Account, 1)
    second.agrees(Contract, 1)
    assert first.select(Account, 1)["name"] == second.select(Contract, 1)["name"] == "old"


@pytest.mark.parametrize("outer", ["commit", "rollback"])
def test_a_session_with_a_bind_inside_an_outer_transaction_and_one_of_its_own(
    two: tuple[World, World], outer: str
) -> None:
    """The session's commit is a COMMIT for one bind and none for the other: that one publishes nothing yet."""
    first, second = two
    with first.engine.connect() as connection:
        transaction = connection.begin()
        with first.sessions(binds={Account: connection, Contract: second.engine}) as session:
            _change_both(session)
            session.commit()
        second.agrees(Contract, 1)
        assert first.select(Account, 1)["name"] == "old"
        first.agrees(Account, 1)
        transaction.commit() if outer == "commit" else transaction.rollback()
    first.agrees(Account, 1)
    first.reads_true(Account, 1)
    assert first.select(Account, 1)["name"] == ("new" if outer == "commit" else "old")
