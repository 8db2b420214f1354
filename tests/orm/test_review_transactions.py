"""Ways to break the promise that a sceptical reader of the code found in transactions; each is closed, and stays so."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.pool import StaticPool

import sa_writethrough as wt
from sa_writethrough.stores.memory import MemoryStore
from tests.orm.models import Account, Contract
from tests.orm.worlds import ABSENT, World, open_engine, open_world


def test_a_commit_that_postgresql_answers_with_rollback_publishes_nothing(postgresql_world: World) -> None:
    """A statement failed, the application went on and committed: PostgreSQL rolls back without an error."""
    world = postgresql_world
    world.add(Account(id=1, name="committed"))
    with world.sessions() as session:
        session.get(Account, 1).name = "never committed"
        session.add(Account(id=2, name="never inserted"))
        session.flush()
        with pytest.raises(sa.exc.DataError):
            session.connection().execute(sa.text("SELECT 1 / 0"))
        session.commit()
    assert world.entry(Account, 2) == ABSENT
    world.agrees(Account, 1, 2)
    world.reads_true(Account, 1, 2)


def test_one_of_two_databases_that_rolls_back_instead_publishes_nothing(postgresql_world: World) -> None:
    """The other one's COMMIT comes first and announces for both; this one's COMMIT is answered with ROLLBACK.

    The order is that of a set of connections, so the transaction is repeated until the failed one was second.
    """
    world = postgresql_world
    world.add(Account(id=1, name="0"), Contract(id=1, name="0"))
    other = open_engine(world.engine.url.render_as_string(hide_password=False))
    world.sessions.configure(bind=None, binds={Account: world.engine, Contract: other})
    seconds, kept = 0, []
    for number in range(1, 40):
        commits: list[sa.Engine] = []
        for engine in (world.engine, other):
            event.listen(engine, "commit", lambda connection, to=commits: to.append(connection.engine), once=True)
        with world.sessions() as session:
            session.get(Account, 1).name = session.get(Contract, 1).name = f"{number}"
            session.add(Contract(id=2, name=sa.func.lower("READ BACK")))  # which the failed transaction cannot
            session.flush()
            failed = session.connection(bind_arguments={"mapper": Contract})
            with pytest.raises(sa.exc.DataError):
                failed.execute(sa.text("SELECT 1 / 0"))
            kept += [failed, object()]  # for the next connections to lie elsewhere, and be in another order
            session.commit()
        seconds += commits.index(other)
        assert world.select(Account, 1)["name"] == f"{number}"
        assert world.select(Contract, 1)["name"] == "0"
        world.agrees(Account, 1)
        world.agrees(Contract, 1, 2)
        world.reads_true(Contract, 1, 2)
        if seconds == 3:
            break
    other.dispose()
    assert seconds


def test_a_statement_whose_failure_ends_the_transaction_undoes_the_unit(sqlite_world: World) -> None:
    """SQLite's OR ROLLBACK takes everything before it back; the COMMIT that follows commits nothing of it."""
    world = sqlite_world
    world.outside("CREATE TABLE log (id INTEGER UNIQUE ON CONFLICT ROLLBACK)")
    world.outside("INSERT INTO log VALUES (1)")
    with world.sessions() as session:
        session.add(Account(id=2, name="undone"))
        session.flush()
        with pytest.raises(sa.exc.IntegrityError):
            session.connection().execute(sa.text("INSERT INTO log VALUES (1)"))
        session.commit()
    assert world.select(Account, 2) is None
    assert world.entry(Account, 2) == ABSENT


def test_a_write_that_found_the_database_locked_leaves_the_session_in_its_snapshot(sqlite_world: World) -> None:
    """SQLite gives the session no write lock, so others still commit, and a hit would be newer than its snapshot."""
    world = sqlite_world
    with world.observer.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    world.add(Account(id=1, name="old"), Account(id=2, name="old"))
    with world.sessions() as writer, world.sessions() as session:
        writer.get(Account, 1).name = "new"
        writer.flush()
        with pytest.raises(sa.exc.OperationalError, match="locked"), session.begin_nested():  # noqa: PT012 - the savepoint keeps the snapshot
            session.get(Account, 2).name = "never"
            session.flush()
        writer.commit()
        world.published(Account, 1)
        assert session.execute(sa.select(Account.name).where(Account.id == 1)).scalar_one() == "old"
        assert world.cache.get(session, Account, 1).name == "old"
    world.published(Account, 1)


def test_a_session_does_not_fill_a_row_whose_key_it_changed(world: World) -> None:
    """The fence does not see what its own transaction wrote: nothing is filled after a write."""
    world.add(Account(id=1, name="a"))
    with world.sessions() as session:
        session.get(Account, 1).id = 3
        session.flush()
        session.expunge_all()
        assert world.cache.get(session, Account, 3).name == "a"
        session.rollback()
    assert world.select(Account, 3) is None
    assert world.entry(Account, 3) == ABSENT


@pytest.mark.parametrize("arguments", [{}, {"poolclass": StaticPool}])
@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_two_sessions_on_one_connection(arguments: dict[str, Any], ends: str) -> None:
    """SQLite in memory: another session that begins and reads neither loses nor fills what the first one wrote."""

    class Base(DeclarativeBase):
        pass

    class Thing(Base):
        __tablename__ = "thing"
        __writethrough__ = True
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    engine = sa.create_engine("sqlite://", **arguments)
    Base.metadata.create_all(engine)
    sessions = sessionmaker(engine)
    cache = wt.register(sessions)
    with sessions() as session:
        session.add(Thing(id=1, name="old"))
        session.commit()
    cache.evict(Thing, 1)
    first, second = sessions(), sessions()
    first.get(Thing, 1).name = "new"
    first.flush()
    cache.get(second, Thing, 1)
    getattr(first, ends)()
    second.close()
    with sessions() as session:
        expected = session.get(Thing, 1).name
    with sessions() as session:
        assert cache.get(session, Thing, 1).name == expected
    first.close()
    cache.unregister()
    engine.dispose()


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_a_session_that_joins_a_transaction_which_has_written_before(world: World, ends: str) -> None:
    """What a connection did before the first session joined it is not known: it may be any row."""
    world.add(Account(id=1, name="old"))
    world.warm(Account, 1)
    engine = open_engine(world.engine.url.render_as_string(hide_password=False))
    with engine.connect() as connection:
        outer = connection.begin()
        connection.execute(sa.update(Account.__table__).values(name="core"))
        with world.sessions(bind=connection, join_transaction_mode="create_savepoint") as session:
            assert world.cache.get(session, Account, 1).name == "core"
        getattr(outer, ends)()
    engine.dispose()
    world.agrees(Account, 1)
    world.reads_true(Account, 1)


def test_a_reader_inside_the_flush_fills_nothing(world: World) -> None:
    """cache.get in an after_insert listener reads the uncommitted row, and leaves it out of the cache."""

    def read(_mapper: Any, connection: Any, target: Any) -> None:
        with Session(connection, join_transaction_mode="rollback_only") as joined:
            joined.connection()
            world.cache.get(joined, Account, target.id)
        world.cache.get(other, Account, target.id)

    with world.sessions() as session, world.sessions() as other:
        event.listen(Account, "after_insert", read)
        try:
            session.add(Account(id=7, name="dirty"))
            session.flush()
        finally:
            event.remove(Account, "after_insert", read)
        session.rollback()
    assert world.entry(Account, 7) == ABSENT


@pytest.mark.parametrize("options", [{"autocommit": True}, {"isolation_level": None}])
def test_autocommit_behind_sqlalchemys_back_is_refused_for_writes(
    world: World, options: dict[str, Any], sqlite_copy: Callable[[str], str]
) -> None:
    """The driver commits each statement, and SQLAlchemy does not know: nothing is written."""
    if (world.dialect == "sqlite") != ("isolation_level" in options):
        return
    engine = sa.create_engine(world.engine.url, connect_args=options)
    with world.sessions(bind=engine) as session:
        session.add(Account(id=9, name="x"))
        with pytest.raises(wt.ConfigurationError, match="AUTOCOMMIT"):
            session.commit()
    engine.dispose()
    assert world.select(Account, 9) is None


def test_the_databases_error_in_a_savepoint_is_the_applications(world: World) -> None:
    """A flush that fails inside begin_nested raises IntegrityError, whatever was to come back."""
    world.outside("CREATE UNIQUE INDEX account_name ON account (name)")
    try:
        world.add(Account(id=1, name="a"), Account(id=2, name="b"))
        with world.sessions() as session:
            second = session.get(Account, 2)
            with pytest.raises(sa.exc.IntegrityError), session.begin_nested():  # noqa: PT012 - the savepoint is the claim
                second.name = "a"
                session.flush()
            session.get(Account, 1).name = "c"
            session.commit()
        world.agrees(Account, 1, 2)
        world.reads_true(Account, 1, 2)
    finally:
        world.outside("DROP INDEX account_name" + (" ON account" if world.dialect == "mariadb" else ""))


@pytest.mark.parametrize("suffix", [" -- traced", ";", " /* traced */"])
def test_a_listener_that_adds_to_the_sql_is_left_alone(postgresql_world: World, suffix: str) -> None:
    """Where somebody has put something behind the UPDATE, no RETURNING is added; the row is read back."""
    world = postgresql_world
    world.add(Account(id=1, name="a"))

    def add(_connection: Any, _cursor: Any, sql: str, parameters: Any, _context: Any, _many: bool) -> Any:
        return sql + suffix, parameters

    event.listen(world.engine, "before_cursor_execute", add, retval=True, insert=True)
    try:
        with world.sessions() as session:
            session.get(Account, 1).name = "b"
            session.commit()
    finally:
        event.remove(world.engine, "before_cursor_execute", add)
    world.published(Account, 1)


@pytest.fixture
def second_registration(world: World) -> Iterator[wt.WriteThroughCache]:
    """Another registration, of all sessions, over the same engine."""
    cache = wt.register(Session)
    yield cache
    cache.unregister()


def test_two_registrations_on_one_engine(world: World, second_registration: wt.WriteThroughCache) -> None:
    """Each keeps its own cache equal to the database."""
    world.add(Account(id=1, name="a"))
    for change in ("b", "c"):
        with world.sessions() as session:
            if change == "b":
                session.get(Account, 1).name = change
            else:
                session.execute(sa.update(Account).where(Account.name == "b").values(name=change))
            session.commit()
        for cache in (world.cache, second_registration):
            with world.sessions() as session:
                assert cache.get(session, Account, 1).name == change
    world.agrees(Account, 1)


@pytest.mark.parametrize("core", [False, True])
def test_a_schema_that_is_translated_for_one_statement(postgresql_world: World, core: bool) -> None:
    """The write announces the keys of the schema that it writes to, and of no other."""
    world = postgresql_world
    world.outside("CREATE SCHEMA tenant")
    try:
        world.outside("CREATE TABLE tenant.account (LIKE account INCLUDING ALL)")
        world.outside("INSERT INTO tenant.account VALUES (1, 'old')")
        world.add(Account(id=1, name="other"))
        options = {"schema_translate_map": {None: "tenant"}}
        target = Account.__table__ if core else Account
        names = []
        for change in (None, "new"):
            with world.sessions() as session:
                if change is not None:
                    session.execute(sa.update(target).values(name=change), execution_options=options)
                    session.commit()
            for _ in range(2):
                with world.sessions() as session:
                    found = session.get(Account, 1, options=[wt.from_cache()], execution_options=options)
                    names.append(found.name)
        assert names == ["old", "old", "new", "new"]
        world.agrees(Account, 1)
    finally:
        world.outside("DROP SCHEMA tenant CASCADE")


def test_two_classes_of_one_table(sqlite_copy: Callable[[str], str]) -> None:
    """Both are cached and share their keys: what one of them writes is published, whichever was mapped first."""

    class Base(DeclarativeBase):
        pass

    table = sa.Table(
        "shared_by_two", Base.metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.Text)
    )

    class First(Base):
        __table__ = table
        __writethrough__ = True

    class Second(Base):
        __table__ = table
        __writethrough__ = True

    engine = open_engine(sqlite_copy("pair.db"))
    Base.metadata.create_all(engine)
    sessions = sessionmaker(engine)
    cache = wt.register(sessions)
    try:
        for ident, cls in ((1, First), (2, Second)):
            with sessions() as session:
                session.add(cls(id=ident, name="a"))
                session.commit()
                session.get(cls, ident).name = "b"
                session.commit()
            with sessions() as session:
                hits = cache.stats().hits
                assert cache.get(session, cls, ident).name == "b"
                assert cache.stats().hits == hits + 1
    finally:
        cache.unregister()
        Base.registry.dispose()
        engine.dispose()


# --- ended past SQLAlchemy ----------------------------------------------------------------------------------------------


def test_what_the_driver_rolled_back_by_itself_is_not_published(world: World) -> None:
    """SQLAlchemy commits a transaction that the driver's own rollback() has ended: the values are not trusted."""
    world.add(Account(id=1, name="old"))
    world.published(Account, 1)
    with world.sessions() as session:
        session.get(Account, 1).name = "new"
        session.add(Account(id=2, name="new"))
        session.flush()
        session.connection().connection.driver_connection.rollback()
        session.commit()
    assert world.select(Account, 1)["name"] == "old"
    assert world.select(Account, 2) is None
    world.agrees(Account, 1, 2)
    world.reads_true(Account, 1)


def test_what_an_abandoned_connection_wrote_is_not_in_its_next_transaction(sqlite_copy: Callable[[str], str]) -> None:
    """The driver rolled back by itself, and the pool, which resets nothing, got the connection back."""
    with contextlib.closing(open_world(sqlite_copy("none.db"), MemoryStore())) as world:
        engine = sa.create_engine(world.engine.url, pool_reset_on_return=None, pool_size=1, max_overflow=0)
        session = world.sessions(bind=engine)
        session.add(Account(id=1, name="undone"))
        session.flush()
        session.connection().connection.driver_connection.rollback()
        del session
        gc.collect()
        with world.sessions(bind=engine) as session:
            session.add(Account(id=2, name="new"))
            session.commit()
        assert world.select(Account, 1) is None
        world.agrees(Account, 1, 2)
        world.published(Account, 2)
        engine.dispose()


def test_a_statement_that_another_listener_executes_is_seen(world: World) -> None:
    """It was there before the library, and executes what it is given; the library still looks first."""
    engine = sa.create_engine(world.engine.url)

    @event.listens_for(engine, "do_execute")
    def execute(cursor: Any, sql: str, parameters: Any, _context: Any) -> bool:
        cursor.execute(sql, parameters)
        return True

    world.add(Account(id=1, name="old"))
    world.published(Account, 1)
    with world.sessions(bind=engine) as session:
        session.get(Account, 1).name = "new"
        session.commit()
    engine.dispose()
    assert world.select(Account, 1)["name"] == "new"
    world.published(Account, 1)


def test_a_flush_that_failed_in_a_savepoint_is_over(world: World) -> None:
    """What a bulk method writes after it is not taken for the unit of work's: it is published as absent."""
    world.add(Account(id=1, name="old"))
    with world.sessions() as session:
        session.connection()
        with pytest.raises(sa.exc.IntegrityError), session.begin_nested():
            session.add(Account(id=1, name="taken"))
        session.bulk_update_mappings(Account, [{"id": 1, "name": "bulk"}])
        session.commit()
    assert world.select(Account, 1)["name"] == "bulk"
    assert world.entry(Account, 1) == ABSENT
    world.reads_true(Account, 1)
