"""Whole courses of events: a node that dies in the middle of a commit, many writers of one row, savepoints in savepoints."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session

import sa_writethrough as wt
from sa_writethrough.coherence import Announce, Fill, Publish
from sa_writethrough.stores.urls import open_store
from sa_writethrough.testing import LoseReply, LoseRequest
from tests.orm.models import Account, Claim, Engineer, Manager, Order, Person
from tests.orm.worlds import ABSENT, World, around_commit, open_world

# --- the node dies ----------------------------------------------------------------------------------------------------


def _change(world: World, name: str = "new") -> None:
    with world.sessions() as session:
        session.get(Account, 1).name = name
        session.commit()


@pytest.mark.parametrize("end", ["kill", "restart"])
@pytest.mark.parametrize("when", ["before announcing", "before COMMIT", "after COMMIT", "after publishing"])
def test_a_node_that_dies_during_a_commit(
    request: Any, postgresql_world: World, memcached: Any, when: str, end: str
) -> None:
    """Killed, or killed and started anew: the caller hears of it before COMMIT or never, and nothing stale is read."""
    url = postgresql_world.engine.url.render_as_string(hide_password=False)
    world = open_world(url, open_store(f"{memcached.url}?retry_after=0.001"))
    request.addfinalizer(world.close)
    world.add(Account(id=1, name="old"))
    world.published(Account, 1)
    die = memcached.kill if end == "kill" else memcached.restart
    expected = "new"
    if when == "before announcing":
        with world.sessions() as session:
            session.get(Account, 1).name = "new"
            session.flush()
            die()
            if end == "kill":
                expected = "old"
                with pytest.raises(wt.CacheUnavailableError):
                    session.commit()
            else:
                session.commit()
    elif when == "after publishing":
        _change(world)
        die()
    else:
        with around_commit(world.engine, **{when.partition(" ")[0]: die}):
            _change(world)
    if end == "kill":
        for _ in range(2):
            with world.sessions() as session:
                assert world.cache.get(session, Account, 1).name == expected
        memcached.start()
    assert world.select(Account, 1)["name"] == expected
    world.reads_true(Account, 1)
    _change(world, "newer")
    world.reads_true(Account, 1)
    assert world.select(Account, 1)["name"] == "newer"


@pytest.mark.parametrize("kind", [Announce, Publish, Fill])
@pytest.mark.parametrize("loss", [LoseRequest, LoseReply])
def test_a_request_or_its_reply_is_lost(world: World, kind: Any, loss: Any) -> None:
    """Each message of a commit or a fill, lost before or after it was done: no stale read, and no entry for good."""
    world.add(Account(id=1, name="old"))
    world.cache.evict(Account, 1)
    world.faults.script.append(loss(kind))
    with world.sessions() as session:
        world.cache.get(session, Account, 1)
    world.agrees(Account, 1)
    aborted = kind is Announce
    with world.sessions() as session:
        session.get(Account, 1).name = "new"
        if aborted:
            with pytest.raises(wt.CacheUnavailableError):
                session.commit()
        else:
            session.commit()
    assert world.faults.script == []
    assert world.select(Account, 1)["name"] == ("old" if aborted else "new")
    world.reads_true(Account, 1)
    _change(world, "newer")
    world.published(Account, 1)
    assert world.entry(Account, 1)["name"] == "newer"


# --- one row, many writers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["unit of work", "bulk"])
def test_many_threads_write_one_row(postgresql_world: World, how: str) -> None:
    """The counter is as high as there were commits; no reader ever sees it fall; the last value is the entry's."""
    world, threads, rounds = postgresql_world, 6, 8
    world.add(Account(id=1, name="0"))
    falls: list[tuple[int, int]] = []
    over = threading.Event()

    def write() -> None:
        for _ in range(rounds):
            with world.sessions() as session:
                if how == "bulk":
                    raised = sa.cast(sa.cast(Account.name, sa.Integer) + 1, sa.String)
                    session.execute(sa.update(Account).where(Account.id == 1).values(name=raised))
                else:
                    account = session.get(Account, 1, with_for_update=True)
                    account.name = str(int(account.name) + 1)
                session.commit()

    def read() -> None:
        last = 0
        while not over.is_set():
            with world.sessions() as session:
                seen = int(world.cache.get(session, Account, 1).name)
            if seen < last:
                falls.append((last, seen))
            last = seen

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write) for _ in range(threads)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    over.set()
    reader.join()
    assert falls == []
    assert world.select(Account, 1)["name"] == str(threads * rounds)
    world.cache.drain()  # the last reader's lease, if it was given back
    world.reads_true(Account, 1)
    assert world.entry(Account, 1)["name"] == str(threads * rounds)


# --- what sqlite3 does not begin for -------------------------------------------------------------------------------------

_ONE = sa.select(sa.literal(1).label("id")).cte("one")
UNBEGUN = {
    "cte": sa.update(Account.__table__).where(Account.__table__.c.id.in_(sa.select(_ONE.c.id))).values(name="new"),
    "with": sa.text("WITH one AS (SELECT 1 AS id) UPDATE account SET name = 'new' WHERE id IN (SELECT id FROM one)"),
    "with delete": sa.text("WITH one AS (SELECT 1 AS id) DELETE FROM account WHERE id IN (SELECT id FROM one)"),
    "rename": sa.text("ALTER TABLE account RENAME COLUMN note TO remark"),
    "drop": sa.DDL("DROP TABLE claim"),
}


@pytest.mark.parametrize("statement", UNBEGUN)
@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("level", ["", "IMMEDIATE"])
def test_a_statement_that_the_driver_does_not_begin_for(
    sqlite_world: World, statement: str, end: str, level: str
) -> None:
    """DML after WITH, and DDL: unseen until COMMIT, undone by ROLLBACK, and never stale in the cache."""
    world = sqlite_world
    world.add(Account(id=1, name="old"), Claim(id=1, name="old"))
    event.listen(world.engine, "checkout", lambda connection, *_: setattr(connection, "isolation_level", level))
    with world.sessions() as session:
        session.execute(UNBEGUN[statement])
        assert session.connection().connection.driver_connection.in_transaction
        assert world.select(Account, 1)["name"] == "old"
        assert world.select(Claim, 1)["name"] == "old"
        world.published(Account, 1)
        getattr(session, end)()
    if end == "rollback" or statement in {"cte", "with", "with delete"}:
        world.agrees(Account, 1)
        world.reads_true(Account, 1)
    elif statement == "rename":
        assert world.entry(Account, 1) == ABSENT
    if statement == "drop":
        assert (world.entry(Claim, 1) == ABSENT) is (end == "commit")
    if end == "rollback":
        world.published(Account, 1)
        world.published(Claim, 1)


# --- savepoints in savepoints -------------------------------------------------------------------------------------------


def _with(session: Session) -> str:
    """Return what sqlite3 does not begin for; MariaDB has it before SELECT alone."""
    return "" if session.get_bind().dialect.name == "mariadb" else "WITH one AS (SELECT 1) "


WRITES: dict[str, Callable[[Session, int, str], Any]] = {
    "unit of work": lambda s, i, name: setattr(s.get(Account, i), "name", name),
    "bulk": lambda s, i, name: s.execute(sa.update(Account).where(Account.id == i).values(name=name)),
    "criterion": lambda s, i, name: s.execute(sa.update(Account).where(Account.note == str(i)).values(name=name)),
    "core": lambda s, i, name: s.connection().execute(
        sa.update(Account.__table__).where(Account.__table__.c.id == i).values(name=name)
    ),
    "with": lambda s, i, name: s.execute(
        sa.text(f"{_with(s)}UPDATE account SET name = :name WHERE id = :id"), {"name": name, "id": i}
    ),
    "text": lambda s, i, name: s.execute(
        sa.text("UPDATE account SET name = :name WHERE id = :id"), {"name": name, "id": i}
    ),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("outcomes", ["kkr", "krk", "rkk", "krr"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_every_kind_of_write_three_savepoints_deep(world: World, write: str, outcomes: str, end: str) -> None:
    """The deepest level's end comes first. What was kept all the way out is published, and not a value more."""
    world.add(*(Account(id=i, name="old", note=str(i)) for i in range(1, 5)))
    world.warm(Account, 1, 2, 3, 4)
    with world.sessions() as session:
        levels = []
        for depth in (1, 2, 3):
            levels.append(session.begin_nested())
            WRITES[write](session, depth, str(depth))
            WRITES[write](session, 4, str(depth))
            session.flush()
        for level, outcome in zip(reversed(levels), reversed(outcomes), strict=True):
            level.commit() if outcome == "k" else level.rollback()
        session.begin_nested().rollback()
        getattr(session, end)()
    kept = [depth for depth in (1, 2, 3) if "r" not in outcomes[:depth]] if end == "commit" else []
    names = [world.select(Account, ident)["name"] for ident in (1, 2, 3, 4)]
    assert names == [*(str(d) if d in kept else "old" for d in (1, 2, 3)), str(max(kept)) if kept else "old"]
    world.agrees(Account, 1, 2, 3, 4)
    world.reads_true(Account, 1, 2, 3, 4)


def test_a_row_comes_and_goes_in_nested_savepoints(world: World) -> None:
    """Inserted in one level, deleted in the next, which is undone; and the other way round."""
    world.add(Account(id=2, name="old"))
    with world.sessions() as session:
        session.begin_nested()
        session.add(Account(id=1, name="new"))
        session.flush()
        inner = session.begin_nested()
        session.execute(sa.delete(Account).where(Account.id == 1))
        inner.rollback()
        inner = session.begin_nested()
        session.delete(session.get(Account, 2))
        session.flush()
        deepest = session.begin_nested()
        session.execute(sa.insert(Account).values(id=2, name="again"))
        deepest.rollback()
        inner.commit()
        session.commit()
    world.agrees(Account, 1)
    world.reads_true(Account, 1, 2)
    assert world.select(Account, 1)["name"] == "new"
    assert world.select(Account, 2) is None
    assert world.entry(Account, 2) == ABSENT


# --- listeners of before_commit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("insert", [True, False])
def test_a_listener_that_flushes_and_then_raises_in_before_commit(world: World, insert: bool) -> None:
    """Nothing of it is published, whichever side of ours it stands on; and the session can go on."""
    world.add(Account(id=1, name="old"), Account(id=2, name="old"))

    def refuse(session: Session) -> None:
        session.get(Account, 2).name = "more"
        session.flush()
        raise RuntimeError("no")

    with world.sessions() as session:
        event.listen(session, "before_commit", refuse, insert=insert)
        session.get(Account, 1).name = "new"
        with pytest.raises(RuntimeError):
            session.commit()
        session.rollback()
        event.remove(session, "before_commit", refuse)
        world.published(Account, 1, 2)
        assert world.entry(Account, 2)["name"] == "old"
        session.get(Account, 1).name = "at last"
        session.commit()
    world.published(Account, 1, 2)
    assert [world.entry(Account, ident)["name"] for ident in (1, 2)] == ["at last", "old"]
    assert world.idle()


@pytest.mark.parametrize("point", ["before_commit", "after_flush", "before_flush"])
def test_a_connection_that_is_invalidated_by_a_listener(world: World, point: str) -> None:
    """The commit raises or commits nothing; the old row stays, and the pool's next connection is clean."""
    world.add(Account(id=1, name="old"))

    def invalidate(session: Session, *_arguments: Any) -> None:
        session.connection().invalidate()

    with world.sessions() as session:
        session.get(Account, 1).name = "new"
        event.listen(session, point, invalidate)
        with pytest.raises(sa.exc.SQLAlchemyError):
            session.commit()
        session.rollback()
    assert world.select(Account, 1)["name"] == "old"
    world.published(Account, 1)
    _change(world)
    world.published(Account, 1)


# --- rows of other classes ----------------------------------------------------------------------------------------------


def test_a_row_that_is_replaced_by_one_of_another_class(world: World) -> None:
    """Deleted as an engineer and inserted as a manager, in one transaction and in two."""
    world.add(Engineer(id=1, name="e", language="c"), Engineer(id=2, name="e", language="c"))
    with world.sessions() as session:
        session.delete(session.get(Person, 1))
        session.flush()
        session.expunge_all()
        session.add(Manager(id=1, name="m", budget=1))
        session.delete(session.get(Person, 2))
        session.commit()
        session.add(Manager(id=2, name="m", budget=1))
        session.commit()
    for ident in (1, 2):
        world.agrees(Person, ident)
        world.reads_true(Person, ident)
        with world.sessions() as session:
            assert type(world.cache.get(session, Person, ident)) is Manager
            assert world.cache.get(session, Engineer, ident) is None


def test_a_many_to_many_of_cached_rows(sqlite_world: World) -> None:
    """Rows of the secondary table come and go: both ends' entries stay right, and are not dropped for them."""
    world = sqlite_world
    world.add(Account(id=1, name="a"), Order(id=1, name="o"))
    world.outside("CREATE TABLE account_order (account_id INT REFERENCES account, order_id INT REFERENCES orders)")
    secondary = sa.table("account_order", sa.column("account_id"), sa.column("order_id"))
    with world.sessions() as session:
        session.execute(sa.insert(secondary).values(account_id=1, order_id=1))
        session.execute(sa.delete(secondary))
        session.commit()
    world.published(Account, 1)
    world.published(Order, 1)
