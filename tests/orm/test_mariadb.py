"""What is different on MariaDB: nothing returns from an UPDATE, DDL commits, a deadlock rolls back, strings are folded."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import (
    Session,
)

import sa_writethrough as wt
from sa_writethrough.exceptions import ConfigurationError
from tests.orm.models import Account, Engineer, Manager, Pair, Person, Plain
from tests.orm.worlds import ABSENT, StatementCounter, World

TABLE: Any = Account.__table__


@pytest.fixture
def world(mariadb_accounts: World) -> World:
    """Three accounts, all cached."""
    return mariadb_accounts


def _id(statement: Any) -> str:
    """Return one line without what pytest refuses."""
    return " ".join(str(statement).split())[:70] if isinstance(statement, sa.TextClause) else type(statement).__name__


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
    world.finds_as_stored(Pair, (1, "x"), (1, "x  "))
    world.execute(sa.update(Pair).where(Pair.a == 1, Pair.b == "X").values(name="new"))
    world.finds_as_stored(Pair, (1, "x"), (1, "x  "))


def test_a_bulk_update_by_criterion_evicts(world: World) -> None:
    """Nothing tells which rows it changed, so the whole table's entries go; by key they stay known."""
    world.execute(sa.update(Account).where(Account.name == "old1").values(name="new"))
    world.absent(Account, 1, 2)
    world.execute(sa.update(Account).where(Account.id == 1).values(name="newer"))
    world.reads_true(Account, 1)
    world.published(Account, 2)


def test_a_bulk_delete_returns_what_it_deleted(world: World) -> None:
    """DELETE can return: the others stay."""
    world.execute(sa.delete(Account).where(Account.name == "old1"))
    assert world.entry(Account, 1) == ABSENT
    world.published(Account, 2, 3)


def test_bulk_statements_of_a_subclass(world: World) -> None:
    """A single-table subclass, and one that is joined."""
    world.add(Person(id=1, name="p"), Engineer(id=2, name="e", language="C"), Manager(id=3, name="m", budget=1))
    world.published(Person, 1, 2, 3)
    world.execute(sa.update(Manager).values(budget=2))
    world.reads_true(Person, 1, 2, 3)
    world.execute(sa.update(Engineer).values(language="Ada"))
    world.reads_true(Person, 1, 2, 3)
    world.execute(sa.delete(Manager))
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
    world.execute(statement)
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
