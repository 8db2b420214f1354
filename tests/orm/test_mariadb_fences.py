"""What keeps the promise on MariaDB where PostgreSQL has other means: the fence, the levels, the keys, who it is."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    make_transient_to_detached,
    mapped_column,
    relationship,
    sessionmaker,
)

import sa_writethrough as wt
from sa_writethrough import _pools
from sa_writethrough.engines import Engines
from sa_writethrough.exceptions import ConfigurationError
from sa_writethrough.stores.memory import MemoryStore
from sa_writethrough.stores.urls import open_store
from tests.orm.models import Account, Country, Engineer, Person, Ticket
from tests.orm.worlds import StatementCounter, World, around_commit, open_world

TABLE: Any = Account.__table__


@pytest.fixture
def world(mariadb_accounts: World) -> World:
    """Three accounts, all cached."""
    return mariadb_accounts


# --- the fence --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [(10, 5, 9), (10, 11, 0)])
def test_a_row_whose_tombstone_was_lost_is_not_filled(world: World, memcached: Any, version: tuple[int, ...]) -> None:
    """The writer is about to COMMIT; the reader sees the row before it, serves it, and fills nothing."""
    world.engine.dialect.server_version_info = version
    family: Any = world.cache._core.entities.family_of(Account.__mapper__)
    (scope,) = family.scopes()

    def before_commit() -> None:
        assert memcached.command(f"delete {family.key(scope, (1,))}") == b"DELETED\r\n"
        with world.sessions() as reader:
            assert world.cache.get(reader, Account, 1).name == "old1"
        world.cache.drain()
        assert not world.cache.contains(Account, 1)

    with world.sessions() as writer:
        writer.get(Account, 1).name = "new"
        with around_commit(world.engine, before_commit):
            writer.commit()
    world.reads_true(Account, 1)


@pytest.mark.parametrize("version", [(10, 5, 9), (10, 11, 0)])
def test_of_many_rows_those_that_nobody_holds_are_filled(world: World, version: tuple[int, ...]) -> None:
    """One that is held does not keep the others out; and no lock is left behind."""
    world.engine.dialect.server_version_info = version
    world.cache.evict_all(Account)
    with world.sessions() as writer:
        writer.get(Account, 2).name = "new"
        writer.flush()
        with world.sessions() as reader:
            assert [each.name for each in world.cache.get_many(reader, Account, [1, 2, 3])] == ["old1", "old2", "old3"]
        world.cache.drain()
        with world.sessions() as other:
            other.get(Account, 1).name = "free"
            other.commit()
        writer.commit()
    world.published(Account, 1, 3)
    world.agrees(Account, 2)
    world.reads_true(Account, 1, 2, 3)


@pytest.mark.parametrize("table", ["person", "engineer"])
def test_a_row_in_two_tables_of_which_one_is_held_is_not_filled(world: World, table: str) -> None:
    """No outer join takes the held part for one that is not there."""
    world.add(Engineer(id=1, name="ann", language="C"))
    world.cache.evict_all(Person)
    column = "name" if table == "person" else "language"
    with world.observer.connect() as writer:
        writer.execute(sa.text(f"UPDATE {table} SET {column} = 'new'"))
        with world.sessions() as reader:
            assert (world.cache.get(reader, Person, 1).name, reader.get(Engineer, 1).language) == ("ann", "C")
        world.cache.drain()
        assert not world.cache.contains(Person, 1)
        writer.rollback()
    world.reads_true(Person, 1)
    world.published(Person, 1)


def test_the_check_is_not_heard_as_an_error(world: World) -> None:
    """The application's error listeners hear nothing of a row that is held."""
    heard: list[Any] = []

    def hear(context: Any) -> None:
        heard.append(context)

    world.cache.evict_all(Account)
    sa.event.listen(world.engine, "handle_error", hear)
    with world.observer.connect() as writer, world.sessions() as reader:
        writer.execute(sa.update(TABLE).where(TABLE.c.id == 1).values(name="new"))
        assert world.cache.get(reader, Account, 1).name == "old1"
    sa.event.remove(world.engine, "handle_error", hear)
    assert heard == []


def test_a_reader_that_finds_no_connection_fills_nothing(world: World) -> None:
    """All that are kept aside are in use: it has its row, and the next reader fills it."""
    world.cache.evict_all(Account)
    with contextlib.ExitStack() as in_use:
        for _ in range(_pools._SIZE):
            in_use.enter_context(_pools.connection_aside(world.engine))
        with world.sessions() as session:
            assert world.cache.get(session, Account, 1).name == "old1"
        world.cache.drain()
        assert not world.cache.contains(Account, 1)
    world.reads_true(Account, 1)
    world.published(Account, 1)


# --- isolation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("serve", [False, True])
def test_the_default_isolation_sees_one_moment(world: World, memcached: Any, serve: bool) -> None:
    """REPEATABLE READ: served only if the policy says so, filled never, and a commit is published all the same."""
    engine = sa.create_engine(world.engine.url)
    reads = wt.SnapshotReads.SERVE if serve else wt.SnapshotReads.BYPASS
    sessions = sessionmaker(engine)
    cache = wt.register(sessions, memcached.url, policy=wt.CachePolicy(snapshot_reads=reads))
    sent = StatementCounter(engine)
    try:
        with sessions() as session:
            session.connection()
        with sessions() as session:
            session.get(Account, 1).name = "new"
            session.commit()
        cache.drain()
        sent.statements.clear()
        with sessions() as session:
            assert cache.get(session, Account, 1).name == "new"
        assert (sent.statements == []) is serve
        cache.evict(Account, 1)
        with sessions() as session:
            cache.get(session, Account, 1)
        cache.drain()
        assert not cache.contains(Account, 1)
    finally:
        cache.unregister()
        engine.dispose()


# --- keys -------------------------------------------------------------------------------------------------------------


def test_strings_that_the_collation_holds_equal_are_one_row(world: World) -> None:
    """Whatever they are written by: there is one entry, or none."""
    world.add(Country(code="été", name="old"))
    world.add(Country(code="de", name="old"))
    world.published(Country, "de")
    for written in ("DE", "De ", "de"):
        world.execute(sa.update(Country).where(Country.code == written).values(name=f"by {written}"))
        world.finds_as_stored(Country, "de", "DE", "dE  ")
    with world.sessions() as session:
        session.delete(session.get(Country, "DE"))
        session.commit()
        world.finds_as_stored(Country, "de", "DE")
        session.add(Country(code="DE", name="again"))
        session.commit()
    world.finds_as_stored(Country, "de", "DE", "ete", "ÉTÉ", "été")
    world.execute(sa.update(Country).where(Country.code == "ETE").values(name="new"))
    world.finds_as_stored(Country, "été", "ete")


def test_an_instance_whose_key_is_written_otherwise(world: World) -> None:
    """It was never loaded, so it has not the key that the row has; its row is the same one."""
    world.add(Country(code="de", name="old"))
    world.published(Country, "de")
    with world.sessions() as session:
        detached = Country(code="DE", name="old")
        make_transient_to_detached(detached)
        session.add(detached)
        detached.name = "new"
        session.commit()
    world.finds_as_stored(Country, "de", "DE")


def test_uuids_as_text(world: World) -> None:
    """Upper case and dashes are other forms of the same key."""
    key = "12345678-1234-5678-1234-567812345678"
    world.add(Ticket(id=key, name="old"))
    world.published(Ticket, key)
    world.execute(sa.update(Ticket).where(Ticket.id == key).values(name="new"))
    world.reads_true(Ticket, key)


# --- what is learnt of the server -------------------------------------------------------------------------------------


def test_two_ways_to_one_database_share_its_entries(world: World) -> None:
    """Another host name; and another database, from where the table is named with its schema."""
    facts = Engines()
    found = []
    url = world.engine.url
    for each in (url, url.set(host="localhost"), url.set(database="information_schema")):
        engine = sa.create_engine(each)
        with engine.connect() as connection:
            found.append(facts.learn(connection))
        engine.dispose()
    assert found[0] == found[1]
    assert found[0].database == found[2].database
    assert found[0].schema == url.database
    assert found[2].schema == "information_schema"
    assert (found[0].snapshots, found[0].replica, found[0].folds) == (True, False, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"database": None}, "names no database"), ({"drivername": "mysql+pymysql"}, "begins with mariadb")],
)
def test_a_url_that_does_not_say_enough_is_refused(world: World, change: dict[str, Any], message: str) -> None:
    """At the first use, and before anything is read."""
    url = world.engine.url.set(**change)
    if "database" in change:
        url = sa.URL.create(url.drivername, url.username, url.password, url.host, url.port, None, url.query)
    engine = sa.create_engine(url)
    try:
        with engine.connect() as connection, pytest.raises(ConfigurationError, match=message):
            Engines().learn(connection)
    finally:
        engine.dispose()


def test_an_old_server_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be asked for a lock without waiting for it, and returns nothing from an INSERT."""
    engine = sa.create_engine(world.engine.url)
    with engine.connect() as connection:
        monkeypatch.setattr(engine.dialect, "server_version_info", (10, 4, 9))
        with pytest.raises(ConfigurationError, match="or later is needed"):
            Engines().learn(connection)
    engine.dispose()


def test_a_replica_fills_nothing(world: World, mariadb: Any) -> None:
    """Its reads may lag behind; the same server without `read_only` fills."""
    for read_only in (1, 0):
        mariadb.execute(f"SET GLOBAL read_only = {read_only}")
        try:
            own = open_world(world.engine.url.render_as_string(), MemoryStore())
        finally:
            mariadb.execute("SET GLOBAL read_only = 0")
        with own.sessions() as session:
            assert own.cache.get(session, Account, 1).name == "old1"
        own.cache.drain()
        assert own.cache.contains(Account, 1) is (read_only == 0)
        own.close()


@pytest.mark.parametrize(
    "policy", [wt.CachePolicy(negative=True), wt.CachePolicy(collections=["parts"])], ids=["absence", "collections"]
)
def test_collections_and_absence_are_refused(world: World, memcached: Any, policy: wt.CachePolicy) -> None:
    """No fence tells there that a row is about to join, or to be."""

    class Base(DeclarativeBase):
        pass

    class Whole(Base):
        __tablename__ = "whole"
        __writethrough__ = policy
        id: Mapped[int] = mapped_column(primary_key=True)
        parts: Mapped[list[Part]] = relationship(order_by="Part.id")

    class Part(Base):
        __tablename__ = "part_of_whole"
        __writethrough__ = True
        id: Mapped[int] = mapped_column(primary_key=True)
        whole_id: Mapped[int] = mapped_column(sa.ForeignKey(Whole.id))

    Whole.__annotations__["parts"] = list[Part]
    try:
        with pytest.raises(ConfigurationError, match="mariadb"):
            wt.register(sessionmaker(world.engine), memcached.url)
    finally:
        Base.registry.dispose()


@pytest.mark.parametrize("store", ["memory", "memcached"])
def test_a_commit_that_comes_after_its_tombstone(world: World, memcached: Any, store: str) -> None:
    """The connection is lost when the rows are prepared; the tombstones expire; who reads the old row fills nothing."""
    now = [0.0]
    stores = {"memory": lambda: MemoryStore(clock=lambda: now[0]), "memcached": lambda: open_store(memcached.url)}
    own = open_world(world.engine.url.render_as_string(), stores[store]())
    family: Any = own.cache._core.entities.family_of(Account.__mapper__)
    try:
        own.warm(Account, 1)
        with own.sessions(twophase=True) as session:
            session.get(Account, 1).name = "new"
            lost = session.connection().exec_driver_sql("SELECT CONNECTION_ID()").scalar()
            session.prepare()
            own.outside(f"KILL {lost}")
            with pytest.raises(DBAPIError):
                session.rollback()
        own.cache.drain()
        now[0] += 100
        (scope,) = family.scopes()
        memcached.command(f"delete {family.key(scope, (1,))}")
        with own.sessions() as reader:
            assert own.cache.get(reader, Account, 1).name == "old1"
        own.cache.drain()
        with own.observer.connect().execution_options(isolation_level="AUTOCOMMIT") as outside:
            ((*_, xid),) = outside.exec_driver_sql("XA RECOVER").all()
            outside.exec_driver_sql(f"XA COMMIT '{xid.decode()}'")
        assert own.select(Account, 1)["name"] == "new"
        own.agrees(Account, 1)
        own.reads_true(Account, 1)
    finally:
        own.close()
