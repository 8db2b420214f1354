"""The instance is not the row: what is published is what SELECT returns."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event, update
from sqlalchemy.orm import Session

from tests.orm.models import Account, Contract, Document, Grade, Note, Order
from tests.orm.worlds import ABSENT, World


def _selects(world: World, session: Session) -> list[str]:
    """Commit, and return the SELECTs of it."""
    session.flush()
    before = len(world.sql.statements)
    session.commit()
    return [sql for sql in world.sql.statements[before:] if sql.startswith("SELECT")]


@pytest.mark.parametrize("model", [Account, Contract])
def test_an_inserted_row_of_exact_columns_is_not_read_back(world: World, model: Any) -> None:
    """An INSERT wrote all of the row: no SQL before COMMIT."""
    with world.sessions() as session:
        session.add(model(id=1, name="a"))
        assert _selects(world, session) == []
    world.published(model, 1)


def test_an_inserted_sql_expression_is_no_null(world: World) -> None:
    """The instance does not have the value after the flush: the row is read back, or fetched by SQLAlchemy."""
    with world.sessions() as session:
        session.add(Account(id=1, name=sa.func.lower("A"), note=sa.func.lower("N")))
        session.commit()
    world.published(Account, 1)
    assert (world.entry(Account, 1)["name"], world.entry(Account, 1)["note"]) == ("a", "n")


def test_updated_rows_cost_at_most_one_select(world: World) -> None:
    """The other columns are not known: they come by RETURNING, or by one SELECT for all rows."""
    world.add(Account(id=1, name="a"), Account(id=2, name="a"))
    with world.sessions() as session:
        session.get(Account, 1).name = session.get(Account, 2).name = "b"
        assert len(_selects(world, session)) <= 1
    world.published(Account, 1, 2)


def test_a_versioned_row_costs_at_most_one_select(world: World) -> None:
    """version_id_col: a version that matched proves nothing of the other columns, and the new one is published."""
    world.add(Contract(id=1, name="a", note="n"))
    with world.sessions() as session:
        contract = session.get(Contract, 1)
        contract.name = "b"
        assert len(_selects(world, session)) <= 1
        assert contract.version == 2
        contract.note = "m"
        session.commit()
    world.published(Contract, 1)


def test_a_stale_instance_publishes_the_other_writers_column(world: World) -> None:
    """It writes one column; another writer has committed another one since it was loaded."""
    world.add(Account(id=1, name="old", note="old"))
    with world.sessions(expire_on_commit=False) as session:
        account = session.get(Account, 1)
        session.commit()
        world.outside("UPDATE account SET note = 'theirs' WHERE id = 1")
        world.cache.evict(Account, 1)
        account.name = "ours"
        session.commit()
        assert account.note == "old"
    world.published(Account, 1)
    assert (world.entry(Account, 1)["name"], world.entry(Account, 1)["note"]) == ("ours", "theirs")


def test_a_stale_instance_and_a_writer_that_commits_in_between(postgresql_world: World) -> None:
    """The same within one transaction at READ COMMITTED, both writers through the library."""
    world = postgresql_world
    world.add(Account(id=1, name="old", note="old"))
    with world.sessions() as first, world.sessions() as second:
        account = first.get(Account, 1)
        second.get(Account, 1).note = "theirs"
        second.commit()
        account.name = "ours"
        first.commit()
    world.published(Account, 1)
    assert (world.entry(Account, 1)["name"], world.entry(Account, 1)["note"]) == ("ours", "theirs")


def test_a_column_that_the_database_changes_behind_a_version_is_published_as_it_is(world: World) -> None:
    """ON DELETE SET NULL bumps no version: the loaded foreign key is not trusted."""
    world.add(Order(id=1, name="o"))
    world.add(Note(id=1, text="old", order_id=1))
    with world.sessions(expire_on_commit=False) as session:
        note = session.get(Note, 1)
        session.commit()
        with world.sessions() as other:
            other.delete(other.get(Order, 1))
            other.commit()
        note.text = "new"
        session.commit()
        assert note.order_id == 1
    assert world.select(Note, 1)["order_id"] is None
    world.agrees(Note, 1)
    world.reads_true(Note, 1)


def test_a_bulk_update_behind_a_version_is_published_as_it_is(world: World) -> None:
    """ORM and Core UPDATEs leave version_id_col alone."""
    world.add(Contract(id=1, name="old", note="old"))
    with world.sessions(expire_on_commit=False) as session:
        contract = session.get(Contract, 1)
        session.commit()
        with world.sessions() as other:
            other.execute(update(Contract).values(note="theirs"))
            other.commit()
        contract.name = "ours"
        session.commit()
    assert world.select(Contract, 1)["note"] == "theirs"
    world.agrees(Contract, 1)


def test_what_the_database_and_python_add(world: World) -> None:
    """Server default, computed column, onupdate in Python and SQL, SQL expressions, Numeric scale."""
    world.add(Document(id=1, title="abc", price=Decimal("1.5")))
    world.published(Document, 1)
    assert world.entry(Document, 1)["size"] == 3
    assert world.entry(Document, 1)["state"] == "draft"
    assert str(world.entry(Document, 1)["price"]) == "1.50"
    with world.sessions() as session:
        session.get(Document, 1).title = "abcd"
        session.commit()
    world.published(Document, 1)
    found = world.entry(Document, 1)
    assert (found["size"], found["editions"], found["changed"]) == (4, 7, "changed")
    with world.sessions() as session:
        document = session.get(Document, 1)
        document.title = Document.title + "e"
        document.price = "2.345"
        session.commit()
    world.published(Document, 1)
    assert world.entry(Document, 1)["title"] == "abcde"


def test_a_mutable_value_that_changes_in_place(world: World) -> None:
    """MutableDict notices; a plain dict does not, and what was not written is not published."""
    world.add(Document(id=1, title="a", body={"n": 1}, plain={"n": 1}))
    with world.sessions() as session:
        document = session.get(Document, 1)
        document.body["n"] = 2
        document.plain["n"] = 2
        session.commit()
    world.published(Document, 1)
    assert (world.entry(Document, 1)["body"], world.entry(Document, 1)["plain"]) == ({"n": 2}, {"n": 1})


def test_a_value_that_changes_in_place_after_the_flush(world: World) -> None:
    """A dict that is changed between flush and commit: the row has what the flush wrote."""
    with world.sessions() as session:
        document = Document(id=1, title="a", plain={"n": 1})
        session.add(document)
        session.flush()
        document.plain["n"] = 2
        session.commit()
    world.published(Document, 1)
    assert world.entry(Document, 1)["plain"] == {"n": 1}


def test_a_trigger_with_read_back_always(world: World) -> None:
    """ReadBack.ALWAYS: the entry has what the trigger made of it."""
    world.add(Grade(id=1, name="a"))
    world.published(Grade, 1)
    assert world.entry(Grade, 1)["shout"] == "A"
    with world.sessions() as session:
        session.get(Grade, 1).name = "b"
        session.commit()
    world.published(Grade, 1)
    assert world.entry(Grade, 1)["shout"] == "B"


@pytest.mark.parametrize("name", ["after_insert", "after_update", "before_insert", "before_update"])
@pytest.mark.parametrize("model", [Account, Contract])
def test_a_mapper_listener_that_changes_the_instance(world: World, model: Any, name: str) -> None:
    """before_... changes the row, after_... only the instance."""

    def change(_mapper: Any, _connection: Any, target: Any) -> None:
        target.note = "from the listener"

    event.listen(model, name, change)
    try:
        with world.sessions(expire_on_commit=False) as session:
            instance = model(id=1, name="a")
            session.add(instance)
            session.commit()
            world.agrees(model, 1)
            instance.name = "b"
            session.commit()
    finally:
        event.remove(model, name, change)
    world.agrees(model, 1)
    world.reads_true(model, 1)


def test_a_listener_of_the_application_in_after_flush_changes_no_row(world: World) -> None:
    """It changes an instance that was just inserted, and has that flushed, or not."""

    def change(session: Session, _context: Any) -> None:
        for instance in session.new:
            sa.orm.attributes.set_committed_value(instance, "note", "of the instance alone")

    with world.sessions() as session:
        event.listen(session, "after_flush", change)
        session.add(Account(id=1, name="a"))
        session.commit()
    world.published(Account, 1)


@pytest.mark.parametrize("value", ["400", 400.0, True], ids=repr)
def test_a_value_of_another_type_than_the_column_is_read_back(sqlite_world: World, value: Any) -> None:
    """'400' in an integer column."""
    world = sqlite_world
    with world.sessions() as session:
        session.add(Document(id=1, title="a", editions=value))
        session.commit()
    world.published(Document, 1)
    assert type(world.entry(Document, 1)["editions"]) is int


def test_a_row_that_was_deleted_by_others_is_not_published(postgresql_world: World) -> None:
    """Core UPDATE of a row that is no longer there."""
    world = postgresql_world
    world.add(Account(id=1, name="a"))
    with world.sessions() as session:
        table = Account.__table__
        session.execute(sa.delete(table))
        session.execute(update(table).where(table.c.id == 1).values(name="x"))
        session.commit()
    assert world.entry(Account, 1) == ABSENT
    world.reads_true(Account, 1)
