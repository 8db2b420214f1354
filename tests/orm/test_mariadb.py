"""What is different on MariaDB: nothing returns from an UPDATE, DDL commits, a deadlock rolls back, strings are folded."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session, make_transient_to_detached, sessionmaker

import sa_writethrough as wt
from sa_writethrough.engines import Engines
from sa_writethrough.exceptions import ConfigurationError
from sa_writethrough.stores.memory import MemoryStore
from sa_writethrough.stores.urls import open_store
from tests.orm.models import Account, Country, Engineer, Manager, Order, Pair, Person, Plain, Ticket
from tests.orm.worlds import ABSENT, StatementCounter, World, around_commit, open_world

TABLE: Any = Account.__table__


def _id(statement: Any) -> str:
    """Return one line without what pytest refuses."""
    return " ".join(str(statement).split())[:70] if isinstance(statement, sa.TextClause) else type(statement).__name__


@pytest.fixture
def world(mariadb_world: World) -> World:
    """Three accounts, all cached."""
    mariadb_world.add(*(Account(id=i, name=f"old{i}", note="n") for i in (1, 2, 3)))
    mariadb_world.published(Account, 1, 2, 3)
    return mariadb_world


def commit(world: World, statement: Any, parameters: Any = None) -> None:
    with world.sessions() as session:
        session.execute(statement, parameters)
        session.commit()


def found_as_stored(world: World, entity: Any, *idents: Any) -> None:
    """Assert that each is found through the cache as a SELECT finds it, twice: filling, and filled."""
    for ident in (*idents, *idents):
        with world.sessions() as session, Session(world.observer) as outside:
            found, stored = world.cache.get(session, entity, ident), outside.get(entity, ident)
            assert (found is None) is (stored is None)
            if stored is not None:
                assert {c.key: getattr(found, c.key) for c in sa.inspect(entity).column_attrs} == {
                    c.key: getattr(stored, c.key) for c in sa.inspect(entity).column_attrs
                }
        world.cache.drain()


# --- what comes back --------------------------------------------------------------------------------------------------


def test_an_inserted_and_an_updated_row_are_read_back(world: World) -> None:
    """One SELECT for all of them, in the same transaction; what is published is what the column keeps."""
    sent = StatementCounter(world.engine)
    with world.sessions() as session:
        session.add(Account(id=4, name="new"))
        session.get(Account, 1, options=[wt.from_cache()]).name = "new"
        session.commit()
    assert [sql.split()[0] for sql in sent.statements] == ["INSERT", "UPDATE", "SELECT"]
    world.published(Account, 1, 4)


def test_trailing_blanks_are_no_part_of_a_key(world: World) -> None:
    """A composite key that the database holds equal to another."""
    world.add(Pair(a=1, b="x  ", name="n  "))
    found_as_stored(world, Pair, (1, "x"), (1, "x  "))
    commit(world, sa.update(Pair).where(Pair.a == 1, Pair.b == "X").values(name="new"))
    found_as_stored(world, Pair, (1, "x"), (1, "x  "))


def test_a_bulk_update_by_criterion_evicts(world: World) -> None:
    """Nothing tells which rows it changed, so the whole table's entries go; by key they stay known."""
    commit(world, sa.update(Account).where(Account.name == "old1").values(name="new"))
    world.absent(Account, 1, 2)
    commit(world, sa.update(Account).where(Account.id == 1).values(name="newer"))
    world.reads_true(Account, 1)
    world.published(Account, 2)


def test_a_bulk_delete_returns_what_it_deleted(world: World) -> None:
    """DELETE can return: the others stay."""
    commit(world, sa.delete(Account).where(Account.name == "old1"))
    assert world.entry(Account, 1) == ABSENT
    world.published(Account, 2, 3)


def test_bulk_statements_of_a_subclass(world: World) -> None:
    """A single-table subclass, and one that is joined."""
    world.add(Person(id=1, name="p"), Engineer(id=2, name="e", language="C"), Manager(id=3, name="m", budget=1))
    world.published(Person, 1, 2, 3)
    commit(world, sa.update(Manager).values(budget=2))
    world.reads_true(Person, 1, 2, 3)
    commit(world, sa.update(Engineer).values(language="Ada"))
    world.reads_true(Person, 1, 2, 3)
    commit(world, sa.delete(Manager))
    world.reads_true(Person, 1, 2, 3)


@pytest.mark.parametrize(
    "statement",
    [
        mysql.insert(TABLE).values(id=1, name="new").on_duplicate_key_update(name="new"),
        mysql.insert(Account).values(id=1, name="new").on_duplicate_key_update(name="new"),
        mysql.insert(TABLE).values(id=1, name="new").prefix_with("IGNORE"),
        sa.text("REPLACE INTO account (id, name) VALUES (1, 'new')"),
        sa.text("INSERT INTO `account` (id, name) VALUES (1, 'x') ON DUPLICATE KEY UPDATE name = 'new'"),
        sa.text("UPDATE `account` SET `name` = 'new' WHERE id = 1"),
        sa.text("UPDATE account JOIN plain ON plain.id = account.id SET account.name = 'new'"),
        sa.text("UPDATE plain, account SET account.name = 'new' WHERE plain.id = account.id"),
        sa.text("DELETE plain, account FROM plain JOIN account ON plain.id = account.id"),
        sa.text("DELETE FROM account USING account JOIN plain ON plain.id = account.id"),
        sa.text("# a comment\nUPDATE account SET name = 'new'"),
        sa.text("/*! UPDATE account SET name = 'new' */"),
        sa.text("/*M!100000 DELETE FROM account */"),
        sa.text("SET STATEMENT max_statement_time = 9 FOR DELETE FROM account"),
        sa.update(TABLE).values({TABLE.c.name: "new"}).where(TABLE.c.id == Plain.__table__.c.id),
        sa.update(Plain.__table__)
        .values({Plain.__table__.c.name: "new", TABLE.c.name: "new"})
        .where(TABLE.c.id == Plain.__table__.c.id),
        sa.delete(TABLE).where(TABLE.c.id == Plain.__table__.c.id),
        sa.update(Account).values(name="new").where(Account.id == Plain.id),
        sa.text("UPDATE account SET name = 'new' WHERE id < 3 ORDER BY id LIMIT 1"),
    ],
    ids=_id,
)
def test_mariadbs_own_ways_of_writing(world: World, statement: Any) -> None:
    """Each is understood, or closes the epoch."""
    world.add(Plain(id=1, name="p"))
    commit(world, statement)
    world.agrees(Account, 1, 2, 3)
    world.reads_true(Account, 1, 2, 3)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("USE mysql", "which schema's rows"),
        ("XA COMMIT 'x'", "ended by text"),
        ("CALL change_everything()", "cannot be known"),
        ("# show\nCALL change_everything()", "cannot be known"),
        ("/*! CALL change_everything() */", "cannot be known"),
        ("SET STATEMENT max_statement_time = 9 FOR CALL change_everything()", "cannot be known"),
        ("/*! COMMIT */", "ended by text"),
        ("HANDLER account OPEN", "cannot be known"),
    ],
)
def test_what_cannot_be_known_is_refused(world: World, statement: str, message: str) -> None:
    """Before it is executed."""
    with world.sessions() as session, pytest.raises(ConfigurationError, match=message):
        session.execute(sa.text(statement))


# --- statements that commit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        sa.text("TRUNCATE TABLE other_plain"),
        sa.text("ALTER TABLE plain COMMENT = 'x'"),
        sa.text("START TRANSACTION"),
        sa.text("SET autocommit = 1"),
        sa.text("LOCK TABLES account READ"),
        sa.schema.CreateTable(sa.Table("other_plain", sa.MetaData(), sa.Column("id", sa.Integer))),
    ],
    ids=_id,
)
def test_what_commits_by_itself_is_refused_after_a_write(world: World, statement: Any) -> None:
    """It would commit what nobody announced; the transaction can go on without it."""
    with world.sessions() as session:
        session.get(Account, 1).name = "new"
        session.flush()
        with pytest.raises(ConfigurationError, match="MariaDB commits"):
            session.execute(statement)
        session.commit()
    world.published(Account, 1)
    assert world.entry(Account, 1)["name"] == "new"


def test_temporary_tables_do_not_commit(world: World) -> None:
    """They may be made in the middle."""
    with world.sessions() as session:
        session.get(Account, 1).name = "new"
        session.flush()
        session.execute(sa.text("CREATE TEMPORARY TABLE scratch (id INTEGER)"))
        session.rollback()
    world.published(Account, 1)
    assert world.entry(Account, 1)["name"] == "old1"


@pytest.mark.parametrize("end", [Session.commit, Session.rollback, Session.close])
def test_ddl_on_a_cached_table_is_announced_before_it(world: World, end: Callable[[Session], None]) -> None:
    """It is final when it returns, whatever the session does then: nothing stale at any time."""
    with world.sessions() as session:
        session.execute(sa.text("SET foreign_key_checks = 0"))
        session.execute(sa.text("TRUNCATE TABLE account"))
        assert world.entry(Account, 1) == ABSENT
        world.reads_true(Account, 1)
        session.execute(sa.text("ALTER TABLE account COMMENT = 'x'"))
        session.add(Account(id=1, name="after"))
        session.flush()
        end(session)
    world.agrees(Account, 1, 2, 3)
    world.reads_true(Account, 1, 2, 3)
    with world.sessions() as session:
        session.execute(sa.text("SET foreign_key_checks = 1"))
    world.add(Account(id=4, name="x"))
    world.published(Account, 4)


# --- what the server rolls back ---------------------------------------------------------------------------------------


def test_after_a_deadlock_nothing_is_published(world: World) -> None:
    """The server rolled the whole transaction back; somebody who goes on commits only the rest."""
    ready, outcomes = threading.Barrier(2, timeout=20), []

    def write(first: int, second: int) -> None:
        with world.engine.connect() as connection, world.sessions(bind=connection) as session:
            session.execute(sa.update(TABLE).where(TABLE.c.id == first).values(name=f"by{first}"))
            session.get(Account, first).note = f"by{first}"
            session.flush()
            ready.wait()
            try:
                connection.execute(sa.update(TABLE).where(TABLE.c.id == second).values(name=f"by{first}"))
            except OperationalError as error:
                outcomes.append(error)
            session.commit()
            connection.commit()

    threads = [threading.Thread(target=write, args=pair) for pair in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 1
    world.agrees(Account, 1, 2)
    world.reads_true(Account, 1, 2)


def test_after_a_lock_wait_that_timed_out_nothing_is_published(world: World) -> None:
    """Whether the statement or the transaction was rolled back is the server's setting, so both are allowed for."""
    with world.sessions() as holder, world.sessions() as session:
        holder.get(Account, 2).name = "held"
        holder.flush()
        session.get(Account, 1).name = "new"
        session.flush()
        connection = session.connection()
        connection.exec_driver_sql("SET innodb_lock_wait_timeout = 1")
        with pytest.raises(OperationalError):
            connection.execute(sa.update(TABLE).where(TABLE.c.id == 2).values(name="x"))
        session.commit()
        holder.rollback()
    world.absent(Account, 1)


def test_an_error_in_a_savepoint_leaves_the_rest_known(world: World) -> None:
    """ROLLBACK TO that succeeds says that the transaction is still there."""
    with world.sessions() as session:
        session.get(Account, 1).name = "new"
        session.flush()
        with pytest.raises(DBAPIError), session.begin_nested():
            session.execute(sa.insert(TABLE).values(id=2, name="twice"))
        session.commit()
    world.published(Account, 1)
    assert world.entry(Account, 1)["name"] == "new"


# --- transactions of others -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("commits", [True, False])
def test_two_phases(world: World, prepared: bool, commits: bool) -> None:
    """XA: announced before it is prepared."""
    with world.sessions(bind=world.engine, twophase=True) as session:
        session.get(Account, 1).name = "new"
        if prepared:
            session.prepare()
            assert world.entry(Account, 1) == ABSENT
        if commits:
            session.commit()
        else:
            session.rollback()
    world.published(Account, 1) if commits else world.agrees(Account, 1)
    assert world.select(Account, 1)["name"] == ("new" if commits else "old1")
    world.reads_true(Account, 1)


def test_a_session_that_joins_a_transaction_in_its_middle(world: World) -> None:
    """What was written before is unknown: the server tells that there is a transaction, the driver cannot."""
    fresh = sa.create_engine(world.engine.url, isolation_level="READ COMMITTED")
    try:
        with fresh.connect() as connection:
            connection.execute(sa.update(TABLE).where(TABLE.c.id == 1).values(name="before"))
            with world.sessions(bind=connection) as session:
                assert session.get(Account, 1, options=[wt.from_cache()]).name == "before"
                session.commit()
            connection.commit()
    finally:
        world.cache.drain()
        fresh.dispose()
    world.agrees(Account, 1)
    world.reads_true(Account, 1)


def test_a_session_on_a_connection_that_has_not_begun(world: World) -> None:
    """Then nothing was written: what the session reads is served."""
    fresh = sa.create_engine(world.engine.url, isolation_level="READ COMMITTED")
    try:
        with fresh.connect() as connection, world.sessions(bind=connection) as session:
            assert session.get(Account, 1, options=[wt.from_cache()]).name == "old1"
            session.get(Account, 1).name = "new"
            session.commit()
            connection.commit()
    finally:
        fresh.dispose()
    world.agrees(Account, 1)


def test_a_driver_that_commits_each_statement_is_refused(world: World) -> None:
    """`connect_args={"autocommit": True}`, which SQLAlchemy does not know of."""
    engine = sa.create_engine(world.engine.url, connect_args={"autocommit": True})
    try:
        with world.sessions(bind=engine) as session:
            session.add(Account(id=9, name="x"))
            with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
                session.flush()
    finally:
        engine.dispose()


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


def test_a_reader_that_finds_no_connection_fills_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has its row, and the next reader fills it."""
    world.cache.evict_all(Account)
    with monkeypatch.context() as patch:
        patch.setattr(world.engine.pool, "_creator", lambda *_arguments: pytest.fail("no connection"))
        patch.setattr("sa_writethrough.fences.connection_aside", _no_connection)
        with world.sessions() as session:
            assert world.cache.get(session, Account, 1).name == "old1"
        world.cache.drain()
    world.absent(Account, 1)


def _no_connection(_engine: Any) -> Any:
    raise sa.exc.TimeoutError


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
        commit(world, sa.update(Country).where(Country.code == written).values(name=f"by {written}"))
        found_as_stored(world, Country, "de", "DE", "dE  ")
    with world.sessions() as session:
        session.delete(session.get(Country, "DE"))
        session.commit()
        found_as_stored(world, Country, "de", "DE")
        session.add(Country(code="DE", name="again"))
        session.commit()
    found_as_stored(world, Country, "de", "DE", "ete", "ÉTÉ", "été")
    commit(world, sa.update(Country).where(Country.code == "ETE").values(name="new"))
    found_as_stored(world, Country, "été", "ete")


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
    found_as_stored(world, Country, "de", "DE")


def test_uuids_as_text(world: World) -> None:
    """Upper case and dashes are other forms of the same key."""
    key = "12345678-1234-5678-1234-567812345678"
    world.add(Ticket(id=key, name="old"))
    world.published(Ticket, key)
    commit(world, sa.update(Ticket).where(Ticket.id == key).values(name="new"))
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
    """Its reads may lag behind."""
    mariadb.execute("SET GLOBAL read_only = 1")
    try:
        engine = sa.create_engine(world.engine.url)
        with engine.connect() as connection:
            assert Engines().learn(connection).replica
        engine.dispose()
    finally:
        mariadb.execute("SET GLOBAL read_only = 0")


def test_collections_and_absence_are_refused(world: World, memcached: Any) -> None:
    """No fence tells there that a row is about to join, or to be."""
    for policy in (wt.CachePolicy(negative=True),):
        sessions = sessionmaker(world.engine)
        with pytest.raises(ConfigurationError, match="mariadb"):
            wt.register(sessions, memcached.url, models=[Order], policy=policy)


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
