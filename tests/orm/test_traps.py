"""The eighteen traps of the design's section 2, one by one; 8, 9 and more of 7 are in `tests/stores/test_traps.py`."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session

import sa_writethrough as wt
from sa_writethrough.coherence import Announce, Fill, Publish
from sa_writethrough.stores.memory import MemoryStore
from sa_writethrough.stores.urls import open_store
from sa_writethrough.testing import Call, LoseReply, LoseRequest
from tests.orm.models import Account, Line, Order, Part, Plain
from tests.orm.worlds import ABSENT, StatementCounter, World, around_commit, open_world
from tests.servers import MemcachedServer
from tests.stores.proxy import Proxy
from tests.stores.test_memory import Clock


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

    def terminate() -> None:
        with world.observer.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})

    with world.sessions() as session:
        pid = session.scalar(sa.text("SELECT pg_backend_pid()"))
        session.get(Account, 1).name = "new"
        session.flush()
        with around_commit(world.engine, terminate), pytest.raises(sa.exc.OperationalError):
            session.commit()
        session.rollback()
    assert (world.cache.stats().retracted, world.cache.stats().unresolved) == (0, 1)
    assert world.entry(Account, 1) == ABSENT


@pytest.mark.parametrize(
    "error", [sqlite3.ProgrammingError("Cannot operate on a closed database."), RuntimeError("x"), KeyboardInterrupt()]
)
def test_trap_06_a_commit_whose_answer_is_lost_leaves_the_tombstone(sqlite_world: World, error: BaseException) -> None:
    """It committed, and only the driver's word for it was lost: a ROLLBACK that goes through then proves nothing."""
    world = sqlite_world
    world.add(Account(id=1, name="old"))

    def lose() -> None:
        raise error

    with world.sessions() as session:
        session.get(Account, 1).name = "new"
        session.flush()
        with around_commit(world.engine, after=lose), pytest.raises((sa.exc.DBAPIError, type(error))):
            session.commit()
    assert (world.cache.stats().retracted, world.cache.stats().unresolved) == (0, 1)
    assert world.entry(Account, 1) == ABSENT
    assert world.select(Account, 1)["name"] == "new"
    world.absent(Account, 1)


def test_trap_06_a_refused_commit_whose_rollback_fails_leaves_the_tombstone(sqlite_world: World) -> None:
    """Only an acknowledged ROLLBACK takes a tombstone back."""
    world = sqlite_world
    world.add(Account(id=1, name="old"))

    def refuse() -> None:
        driver.close()
        raise sqlite3.OperationalError("refused")

    with world.sessions() as session:
        session.get(Account, 1).name = "new"
        session.flush()
        driver = session.connection().connection.driver_connection
        with around_commit(world.engine, refuse), pytest.raises(sa.exc.OperationalError, match="refused"):
            session.commit()
        session.invalidate()
    assert (world.cache.stats().retracted, world.cache.stats().unresolved) == (0, 1)
    assert world.entry(Account, 1) == ABSENT
    world.absent(Account, 1)


@pytest.fixture
def severed(sqlite_copy: Callable[[str], str], memcached: MemcachedServer) -> Any:
    """A world with one cached account, what cuts it off from its memcached, and a world that is not cut off."""
    with contextlib.ExitStack() as open_things, contextlib.ExitStack() as network:
        url = sqlite_copy("severed.db")
        proxy = network.enter_context(Proxy(memcached.host, memcached.port))
        world = open_world(url, open_store(f"memcached://{proxy.host}:{proxy.port}"))
        open_things.enter_context(contextlib.closing(world))
        direct = open_world(url, open_store(memcached.url))
        open_things.enter_context(contextlib.closing(direct))
        world.add(Account(id=1, name="old"))
        world.published(Account, 1)
        direct.published(Account, 1)
        yield world, network.close, direct


def test_trap_07_a_publication_that_nobody_saw_leaves_a_tombstone(severed: Any) -> None:
    """The commit returns, and those who can reach the cache find no value in it."""
    world, cut, direct = severed
    world.faults.script.append(Call(Publish, cut))
    with world.sessions() as session:
        session.get(Account, 1).name = "new"
        session.commit()
    assert world.faults.script == []
    assert direct.entry(Account, 1) == ABSENT
    assert direct.select(Account, 1)["name"] == "new"
    direct.reads_true(Account, 1)


def test_trap_07_an_announcement_that_nobody_saw_aborts(severed: Any) -> None:
    """What the cache still has is what the database still has."""
    world, cut, direct = severed
    with world.sessions() as session:
        session.get(Account, 1).name = "new"
        session.flush()
        cut()
        with pytest.raises(wt.CacheUnavailableError):
            session.commit()
    direct.published(Account, 1)
    assert direct.entry(Account, 1)["name"] == "old"


@pytest.fixture
def stale_lines(world: World) -> World:
    """A line of an order under `Reads.ALWAYS`, and foreign SQL after them: the values tell who answered."""
    world.cache.unregister()
    world.cache = wt.register(world.sessions, world.faults, policy=wt.CachePolicy(reads=wt.Reads.ALWAYS))
    world.add(Order(id=1, name="cache"), Line(id=1, text="cache", order_id=1))
    world.published(Order, 1)
    world.published(Line, 1)
    world.outside("UPDATE orders SET name = 'database'")
    world.outside("UPDATE line SET text = 'database'")
    world.sql.statements.clear()
    return world


def test_trap_10_get_and_lazy_many_to_one_are_served(stale_lines: World) -> None:
    """Both reach the cache, with no SQL."""
    with stale_lines.sessions() as session:
        line = session.get(Line, 1)
        assert (line.text, line.order.name) == ("cache", "cache")
    assert stale_lines.sql.statements == []


RELOADS: dict[str, Callable[[Session, Any], object]] = {
    "refresh": lambda session, order: session.refresh(order),
    "refresh one": lambda session, order: session.refresh(order, ["name"]),
    "expire": lambda session, order: session.expire(order),
    "expire one": lambda session, order: session.expire(order, ["name"]),
    "commit": lambda session, order: session.commit(),
    "rollback": lambda session, order: session.rollback(),
    "expire and get": lambda session, order: (session.expire(order), session.get(Order, 1)),
}


@pytest.mark.parametrize("how", RELOADS)
def test_trap_10_what_is_reloaded_comes_from_the_database(stale_lines: World, how: str) -> None:
    """Refreshes, and loads of expired attributes."""
    with stale_lines.sessions() as session:
        order = session.get(Order, 1)
        assert order.name == "cache"
        RELOADS[how](session, order)
        assert order.name == "database"


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


def test_trap_11_an_updated_row_comes_from_the_database(accounts: World) -> None:
    """With the UPDATE on PostgreSQL, by one SELECT after it elsewhere."""
    with accounts.sessions() as session:
        session.get(Account, 1).name = "new"
        sent = StatementCounter(accounts.engine)
        session.commit()
    found = [sql.split()[0] for sql in sent.statements]
    assert found == (["UPDATE"] if accounts.dialect == "postgresql" else ["UPDATE", "SELECT"])
    accounts.published(Account, 1)


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


LOOKUPS: dict[str, Callable[[World, Session], Any]] = {
    "cache.get": lambda world, session: world.cache.get(session, Account, 1),
    "cache.get_many": lambda world, session: world.cache.get_many(session, Account, [1])[0],
    "session.get": lambda _, session: session.get(Account, 1, options=[wt.from_cache()]),
    "select": lambda _, session: session.scalars(
        sa.select(Account).where(Account.id == 1).options(wt.from_cache())
    ).one(),
}


@pytest.mark.parametrize("how", LOOKUPS)
def test_trap_14_a_hit_begins_and_a_rollback_expires(accounts: World, how: str) -> None:
    """What was served is read again after the rollback, as if it had come from the database."""
    accounts.sql.statements.clear()
    with accounts.sessions() as session:
        account = LOOKUPS[how](accounts, session)
        assert (account.name, accounts.sql.statements) == ("old", [])
        assert session.in_transaction()
        session.rollback()
        accounts.outside("UPDATE account SET name = 'database' WHERE id = 1")
        assert account.name == "database"


@pytest.mark.parametrize("how", LOOKUPS)
def test_trap_14_a_hit_flushes_first(accounts: World, how: str) -> None:
    """Pending changes are sent, and the row is still served from the cache."""
    accounts.sql.statements.clear()
    with accounts.sessions() as session:
        session.add(Account(id=3, name="pending"))
        assert LOOKUPS[how](accounts, session).name == "old"
        assert [sql.split()[0] for sql in accounts.sql.statements] == ["INSERT"]
        assert not session.new


def test_trap_15_a_half_failed_commit_is_settled_without_after_commit(accounts: World) -> None:
    """A COMMIT that no session event tells of: the outer transaction's."""
    with accounts.engine.connect() as connection, connection.begin(), accounts.sessions(bind=connection) as session:
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


def explode(_session: Any) -> None:
    raise RuntimeError("too late")


def test_trap_17_a_listener_that_raises_after_commit_loses_nothing(accounts: World) -> None:
    """The row was published as soon as the driver had committed, before any listener of the session's."""
    event.listen(accounts.sessions, "after_commit", explode, insert=True)
    accounts.traffic.changes.clear()
    with accounts.sessions() as session:
        session.get(Account, 1).name = "new"
        with pytest.raises(RuntimeError, match="too late"):
            session.commit()
        assert accounts.traffic.kinds() == ["Announce", "Publish"]
        assert accounts.select(Account, 1)["name"] == "new"
    accounts.published(Account, 1)


def test_trap_17_a_tombstone_expires_to_nothing(sqlite_copy: Callable[[str], str]) -> None:
    """It never turns into a value by itself: where the publication is lost, a reader fills after its time."""
    clock = Clock()
    with contextlib.closing(open_world(sqlite_copy("expiry.db"), MemoryStore(clock=clock))) as world:
        world.faults.keeps_tombstones = False  # as memcached: with a time limit
        world.add(Account(id=1, name="old"))
        world.faults.script.append(LoseRequest(Publish))
        with world.sessions() as session:
            session.get(Account, 1).name = "new"
            session.commit()
        clock.advance(4.9)
        world.absent(Account, 1)
        world.absent(Account, 1)
        clock.advance(0.2)
        world.absent(Account, 1)
        world.published(Account, 1)


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
