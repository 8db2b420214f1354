"""Everything that writes a row, and the entry that it leaves: the row, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

import sa_writethrough as wt
from sa_writethrough.stores.memory import MemoryStore
from tests.orm.models import (
    Account,
    City,
    Contract,
    Country,
    Engineer,
    Line,
    Manager,
    Note,
    Order,
    Pair,
    Part,
    Person,
    Plain,
    Ticket,
)
from tests.orm.worlds import ABSENT, World, open_world


@pytest.fixture
def accounts(world: World) -> World:
    """Five cached accounts."""
    world.add(*(Account(id=i, name=f"old{i}") for i in range(1, 6)))
    world.published(Account, 1, 2, 3, 4, 5)
    return world


def commit(world: World, *writes: Callable[[Session], Any]) -> None:
    with world.sessions() as session:
        for write in writes:
            write(session)
        session.commit()


# --- bulk methods of the session --------------------------------------------------------------------------------------


def test_bulk_save_objects_of_new_rows(world: World) -> None:
    """New rows are not in the cache, or as they are."""
    commit(world, lambda s: s.bulk_save_objects([Account(id=1, name="a"), Account(id=2, name="b")]))
    world.agrees(Account, 1, 2)
    world.reads_true(Account, 1, 2)


def test_bulk_save_objects_of_changed_rows(accounts: World) -> None:
    """Rows that it updates are not served as they were."""

    def save(session: Session) -> None:
        account = session.get(Account, 1)
        session.expunge(account)
        account.name = "new"
        session.bulk_save_objects([account])

    commit(accounts, save)
    accounts.reads_true(Account, 1)
    assert accounts.select(Account, 1)["name"] == "new"
    accounts.published(Account, 2)


def test_bulk_insert_mappings(world: World) -> None:
    """Rows of a bulk insert are absent or true."""
    commit(world, lambda s: s.bulk_insert_mappings(Account, [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]))
    world.reads_true(Account, 1, 2)


@pytest.mark.parametrize(
    "write",
    [
        lambda s: s.bulk_insert_mappings(Account, [{"id": 9, "name": "a"}]),
        lambda s: s.bulk_save_objects([Account(id=9, name="a")]),
        lambda s: s.execute(insert(Account), [{"id": 9, "name": "a"}]),
        lambda s: s.execute(insert(Account.__table__).values(id=9, name="a")),
        lambda s: s.execute(sa.text("INSERT INTO account (id, name) VALUES (9, 'a')")),
        lambda s: s.connection().exec_driver_sql("INSERT INTO account (id, name) VALUES (9, 'a')"),
        lambda s: s.scalars(insert(Account).values(id=9, name="a").returning(Account)).one(),
    ],
    ids=["mappings", "objects", "orm-many", "core", "text", "driver", "orm-returning"],
)
def test_a_session_does_not_fill_its_own_uncommitted_inserts(world: World, write: Callable[[Session], Any]) -> None:
    """A row that only its writer sees must not reach the cache through that writer's own reads."""
    with world.sessions() as session:
        write(session)
        session.expunge_all()
        assert world.cache.get(session, Account, 9).name == "a"
        session.rollback()
    assert world.select(Account, 9) is None
    assert world.entry(Account, 9) == ABSENT


def test_bulk_update_mappings(accounts: World) -> None:
    """Rows of a bulk update are not served as they were; the others are."""
    commit(accounts, lambda s: s.bulk_update_mappings(Account, [{"id": 1, "name": "x"}, {"id": 2, "name": "y"}]))
    accounts.reads_true(Account, 1, 2)
    assert accounts.select(Account, 2)["name"] == "y"
    accounts.published(Account, 3)


@pytest.mark.parametrize("ident", ["1", 1.0, True], ids=repr)
def test_an_identity_of_another_python_type_is_the_same_row(sqlite_world: World, ident: Any) -> None:
    """SQLite holds '1', 1.0 and True equal to the key 1: whoever writes by one of them reaches the entry of 1."""
    world = sqlite_world
    world.add(Account(id=1, name="old"))
    commit(world, lambda s: s.bulk_update_mappings(Account, [{"id": ident, "name": "x"}]))
    world.reads_true(Account, 1)
    commit(
        world, lambda s: s.execute(update(Account.__table__).where(Account.__table__.c.id == ident).values(name="y"))
    )
    world.reads_true(Account, 1)
    commit(world, lambda s: s.execute(update(Account), [{"id": ident, "name": "z"}]))
    world.reads_true(Account, 1)
    assert world.select(Account, 1)["name"] == "z"


def test_a_text_that_names_an_integer_key_is_the_same_row(postgresql_world: World) -> None:
    """PostgreSQL casts '1' to the key 1."""
    world = postgresql_world
    world.add(Account(id=1, name="old"))
    commit(world, lambda s: s.bulk_update_mappings(Account, [{"id": "1", "name": "x"}]))
    world.reads_true(Account, 1)
    assert world.select(Account, 1)["name"] == "x"


def test_an_instance_whose_key_is_of_another_type_reaches_the_row(sqlite_world: World) -> None:
    """An instance that was made with the key '1' is updated after its commit: the entry of 1 is not left behind."""
    world = sqlite_world
    with world.sessions(expire_on_commit=False) as session:
        account = Account(id="1", name="old")
        session.add(account)
        session.commit()
        world.warm(Account, 1)
        account.name = "new"
        session.commit()
    world.reads_true(Account, 1)
    assert world.select(Account, 1)["name"] == "new"


UPPER = "ABCDEF00-0000-4000-8000-00000000000A"


def test_a_uuid_that_is_text_is_the_same_row_in_either_case(postgresql_world: World) -> None:
    """PostgreSQL holds both equal."""
    world = postgresql_world
    world.add(Ticket(id=UPPER.lower(), name="old"))
    world.warm(Ticket, UPPER.lower())
    commit(world, lambda s: s.execute(update(Ticket.__table__).where(Ticket.__table__.c.id == UPPER).values(name="x")))
    world.agrees(Ticket, UPPER.lower())
    commit(world, lambda s: s.bulk_update_mappings(Ticket, [{"id": UPPER, "name": "y"}]))
    world.agrees(Ticket, UPPER.lower())


# --- update(), delete(), insert() of the ORM ------------------------------------------------------------------------------

SYNCHRONIZE = ["auto", "evaluate", "fetch", False]


@pytest.mark.parametrize("synchronize", SYNCHRONIZE)
@pytest.mark.parametrize("returning", [False, True], ids=["", "returning"])
def test_orm_update_by_a_criterion_that_names_no_key(accounts: World, synchronize: Any, returning: bool) -> None:
    """The matched rows are published with their new values, whatever synchronize_session says; the others stay."""
    statement = update(Account).where(Account.name.in_(["old1", "old2"])).values(note="n")
    statement = statement.execution_options(synchronize_session=synchronize)
    with accounts.sessions() as session:
        kept = session.get(Account, 1)
        if returning:
            assert sorted(session.execute(statement.returning(Account.id)).scalars()) == [1, 2]
        else:
            assert session.execute(statement).rowcount == 2
        if synchronize is not False:
            assert kept.note == "n"
        session.commit()
    accounts.agrees(Account, 1, 2, 3)
    if not returning:
        accounts.published(Account, 1, 2, 3)
    accounts.reads_true(Account, 1, 2, 3)
    assert accounts.select(Account, 2)["note"] == "n"


@pytest.mark.parametrize("synchronize", SYNCHRONIZE)
@pytest.mark.parametrize("returning", [False, True], ids=["", "returning"])
def test_orm_delete_by_a_criterion_that_names_no_key(accounts: World, synchronize: Any, returning: bool) -> None:
    """The matched rows are gone from the cache, whatever synchronize_session says; the others stay."""
    statement = delete(Account).where(Account.name.in_(["old1", "old2"]))
    statement = statement.execution_options(synchronize_session=synchronize)
    with accounts.sessions() as session:
        session.get(Account, 1)
        if returning:
            assert sorted(session.execute(statement.returning(Account.id)).scalars()) == [1, 2]
        else:
            assert session.execute(statement).rowcount == 2
        session.commit()
    assert accounts.entry(Account, 1) == accounts.entry(Account, 2) == ABSENT
    accounts.reads_true(Account, 1, 2, 3)
    if not returning:
        accounts.published(Account, 3)


def test_an_orm_update_that_returns_entities_is_not_served_from_before(accounts: World) -> None:
    """RETURNING the entity itself."""
    statement = update(Account).where(Account.note.is_(None)).values(note="n").returning(Account)
    with accounts.sessions() as session:
        assert len(session.scalars(statement).all()) == 5
        session.commit()
    accounts.reads_true(Account, 1, 5)


def test_an_orm_update_that_is_rolled_back_leaves_the_entries(accounts: World) -> None:
    """Bulk update, rollback: the old entries stay."""
    with accounts.sessions() as session:
        session.execute(update(Account).values(note="n"))
        session.rollback()
    accounts.published(Account, 1, 5)


def test_an_orm_update_of_the_primary_key(accounts: World) -> None:
    """The old key has no entry any more, the new one the row or none."""
    commit(accounts, lambda s: s.execute(update(Account).where(Account.name == "old1").values(id=100)))
    assert accounts.entry(Account, 1) == ABSENT
    accounts.reads_true(Account, 1, 100)
    commit(accounts, lambda s: s.execute(update(Account.__table__).where(Account.__table__.c.id == 2).values(id=200)))
    assert accounts.entry(Account, 2) == ABSENT
    accounts.reads_true(Account, 2, 200)


def test_an_orm_update_by_primary_key_with_many_parameters(accounts: World) -> None:
    """`session.execute(update(Account), [...])` reaches its rows and no other."""
    commit(accounts, lambda s: s.execute(update(Account), [{"id": 1, "name": "x"}, {"id": 2, "note": "y"}]))
    accounts.reads_true(Account, 1, 2)
    assert accounts.select(Account, 1)["name"] == "x"
    accounts.published(Account, 3)


@pytest.fixture
def people(world: World) -> World:
    """One person of each class, cached."""
    world.add(Person(id=1, name="p"), Engineer(id=2, name="e", language="C"), Manager(id=3, name="m", budget=1))
    world.published(Person, 1, 2, 3)
    return world


@pytest.mark.parametrize("synchronize", SYNCHRONIZE)
def test_bulk_statements_on_a_joined_subclass(people: World, synchronize: Any) -> None:
    """update() of the subclass's own table and of the base's."""
    options = {"synchronize_session": synchronize}
    statement = update(Engineer).where(Engineer.language == "C").values(language="D")
    commit(people, lambda s: s.execute(statement.execution_options(**options)))
    people.agrees(Person, 1, 2, 3)
    people.reads_true(Engineer, 2)
    assert people.select(Person, 2)["language"] == "D"
    by_base = update(Engineer.__table__).where(Person.__table__.c.id == Engineer.__table__.c.id).values(language="E")
    if people.dialect == "postgresql":
        commit(people, lambda s: s.execute(by_base.where(Person.__table__.c.name == "e")))
        people.reads_true(Engineer, 2)
    commit(
        people,
        lambda s: s.execute(update(Person).where(Person.name == "e").values(name="n").execution_options(**options)),
    )
    people.reads_true(Person, 1, 2, 3)
    assert people.entry(Person, 2)["name"] == "n"


def test_bulk_statements_on_a_single_table_subclass(people: World) -> None:
    """update() and delete() of a subclass that shares its table."""
    commit(people, lambda s: s.execute(update(Manager).values(budget=2)))
    people.published(Person, 1, 3)
    assert people.entry(Person, 3)["budget"] == 2
    commit(people, lambda s: s.execute(delete(Manager)))
    assert people.entry(Person, 3) == ABSENT
    people.reads_true(Person, 3)


def test_the_unit_of_work_on_a_joined_subclass(people: World) -> None:
    """One column of each table, each alone, and a delete."""
    for values in ({"name": "n"}, {"language": "L"}, {"name": "n2", "language": "L2"}):

        def change(session: Session, values: dict[str, str] = values) -> None:
            engineer = session.get(Engineer, 2)
            for name, value in values.items():
                setattr(engineer, name, value)

        commit(people, change)
        people.published(Person, 2)
    commit(people, lambda s: s.delete(s.get(Person, 2)))
    assert people.entry(Person, 2) == ABSENT
    people.reads_true(Person, 1, 2)


def test_core_delete_of_a_base_row_takes_the_whole_identity(people: World) -> None:
    """ON DELETE CASCADE within the hierarchy."""
    commit(people, lambda s: s.execute(delete(Person.__table__).where(Person.__table__.c.id == 2)))
    people.agrees(Person, 2)
    people.reads_true(Person, 1, 2, 3)


def _upsert(world: World, model: Any) -> Any:
    return (sqlite if world.dialect == "sqlite" else postgresql).insert(model)


@pytest.mark.parametrize("model", [Account, Account.__table__], ids=["orm", "core"])
def test_on_conflict_do_update(accounts: World, model: Any) -> None:
    """An upsert replaces rows that are cached."""
    statement = _upsert(accounts, model).values([{"id": 1, "name": "x"}, {"id": 9, "name": "y"}])
    statement = statement.on_conflict_do_update(index_elements=["id"], set_={"name": statement.excluded.name})
    commit(accounts, lambda s: s.execute(statement))
    accounts.reads_true(Account, 1, 2, 9)
    assert accounts.select(Account, 1)["name"] == "x"


def test_on_conflict_do_update_that_returns_entities(accounts: World) -> None:
    """An upsert with RETURNING the entity, with populate_existing, as SQLAlchemy's documentation has it."""
    statement = _upsert(accounts, Account).values([{"id": 1, "name": "x"}])
    statement = statement.on_conflict_do_update(index_elements=["id"], set_={"name": statement.excluded.name})
    with accounts.sessions() as session:
        options = {"populate_existing": True}
        assert session.scalars(statement.returning(Account), execution_options=options).one().name == "x"
        session.commit()
    accounts.reads_true(Account, 1, 2)


def test_on_conflict_do_nothing_changes_no_entry(accounts: World) -> None:
    """Nothing that is cached can change."""
    statement = _upsert(accounts, Account).values(id=1, name="x").on_conflict_do_nothing()
    commit(accounts, lambda s: s.execute(statement))
    accounts.published(Account, 1, 2)


def test_insert_or_replace(sqlite_world: World) -> None:
    """SQLite's own upsert."""
    world = sqlite_world
    world.add(Account(id=1, name="old"))
    commit(world, lambda s: s.execute(insert(Account).prefix_with("OR REPLACE").values(id=1, name="x")))
    world.reads_true(Account, 1)
    commit(world, lambda s: s.execute(sa.text("INSERT OR REPLACE INTO account (id, name) VALUES (1, 'y')")))
    world.reads_true(Account, 1)
    commit(world, lambda s: s.execute(sa.text("REPLACE INTO account (id, name) VALUES (1, 'z')")))
    world.reads_true(Account, 1)
    assert world.select(Account, 1)["name"] == "z"


# --- Core, text -----------------------------------------------------------------------------------------------------------

TABLE = Account.__table__
CORE = {
    "by-key": update(TABLE).where(TABLE.c.id == 1).values(name="x"),
    "by-key-and-more": update(TABLE).where(TABLE.c.id == 1, TABLE.c.name != "x").values(name="x"),
    "by-keys": update(TABLE).where(TABLE.c.id.in_([1, 2])).values(name="x"),
    "by-criterion": update(TABLE).where(TABLE.c.name == "old1").values(name="x"),
    "by-or": update(TABLE).where(sa.or_(TABLE.c.id == 1, TABLE.c.name == "old2")).values(name="x"),
    "by-reverse": update(TABLE).where(sa.literal(1) == TABLE.c.id).values(name="x"),
    "all": update(TABLE).values(name="x"),
    "expression": update(TABLE).where(TABLE.c.id == 1).values(name=TABLE.c.name + "x"),
    "subquery": update(TABLE).where(TABLE.c.id.in_(select(TABLE.c.id).where(TABLE.c.name == "old1"))).values(name="x"),
    "delete-by-key": delete(TABLE).where(TABLE.c.id == 1),
    "delete-all": delete(TABLE),
    "text": sa.text("UPDATE account SET name = 'x' WHERE id = 1"),
    "text-upper": sa.text("UPDATE \"account\" SET NAME = 'x' WHERE id = 1"),
    "text-delete": sa.text("/* a comment */ DELETE FROM account WHERE name = 'old1'"),
    "text-view": sa.text("UPDATE names SET name = 'x' WHERE id = 1"),
    "text-view-with-a-known-table": sa.text("UPDATE names SET name = 'x' WHERE id NOT IN (SELECT id FROM plain)"),
    "text-columns": sa.text("UPDATE account SET name = 'x' WHERE id = 1 RETURNING id").columns(TABLE.c.id),
    "declared": sa.text("UPDATE names SET name = 'x'").execution_options(writethrough_tables=["account"]),
    "declared-class": sa.text("UPDATE names SET name = 'x'").execution_options(writethrough_tables=[Account]),
    "declared-table": sa.text("UPDATE names SET name = 'x'").execution_options(writethrough_tables=[TABLE]),
}


@pytest.mark.parametrize("through", ["session", "connection"])
@pytest.mark.parametrize("statement", CORE.values(), ids=CORE.keys())
def test_core_and_text_dml(accounts: World, statement: Any, through: str) -> None:
    """Whatever the statement changes is not served as it was."""
    with accounts.sessions() as session:
        (session if through == "session" else session.connection()).execute(statement)
        session.commit()
    assert accounts.select(Account, 1) is None or accounts.select(Account, 1)["name"] != "old1"
    accounts.agrees(Account, 1, 2, 3)
    accounts.reads_true(Account, 1, 2, 3)


def test_core_dml_with_many_parameters(accounts: World) -> None:
    """With executemany and the key as a parameter."""
    statement = update(TABLE).where(TABLE.c.id == sa.bindparam("b_id")).values(name=sa.bindparam("b_name"))
    parameters = [{"b_id": 1, "b_name": "x"}, {"b_id": 2, "b_name": "y"}]
    with accounts.sessions() as session:
        session.connection().execute(statement, parameters)
        session.commit()
    accounts.reads_true(Account, 1, 2)
    accounts.published(Account, 3)


def test_core_dml_by_one_key_keeps_the_other_entries(accounts: World) -> None:
    """A WHERE clause that names the key costs one entry."""
    commit(accounts, lambda s: s.execute(CORE["by-key"]))
    accounts.published(Account, 2)
    accounts.reads_true(Account, 1)


def test_driver_sql(accounts: World) -> None:
    """exec_driver_sql, with parameters of the driver's own."""
    mark = "?" if accounts.dialect == "sqlite" else "%s"
    with accounts.sessions() as session:
        session.connection().exec_driver_sql(f"UPDATE account SET name = {mark} WHERE id = {mark}", ("x", 1))
        session.commit()
    accounts.reads_true(Account, 1, 2)
    assert accounts.select(Account, 1)["name"] == "x"


def test_dml_in_a_cte_of_a_select(postgresql_world: World) -> None:
    """WITH ... AS (UPDATE ... RETURNING) SELECT, as an expression and as text."""
    world = postgresql_world
    world.add(Account(id=1, name="old"), Account(id=2, name="old"))
    cte = update(TABLE).where(TABLE.c.id == 1).values(name="x").returning(TABLE.c.id).cte("changed")
    commit(world, lambda s: s.execute(select(cte)).all())
    world.reads_true(Account, 1, 2)
    assert world.select(Account, 1)["name"] == "x"
    text = "WITH changed AS (UPDATE account SET name = 'y' WHERE id = 2 RETURNING id) SELECT * FROM changed"
    commit(world, lambda s: s.execute(sa.text(text)).all())
    world.reads_true(Account, 1, 2)
    assert world.select(Account, 2)["name"] == "y"
    cte = delete(TABLE).where(TABLE.c.id == 1).returning(TABLE.c.id, TABLE.c.name).cte("moved")
    move = insert(Plain.__table__).from_select(["id", "name"], select(cte.c.id, cte.c.name))
    commit(world, lambda s: s.execute(move))
    world.reads_true(Account, 1)
    assert world.select(Account, 1) is None


def test_several_statements_in_one_text(postgresql_world: World) -> None:
    """The driver runs them all, whatever the first one is."""
    world = postgresql_world
    for text in (
        "SELECT 1; UPDATE account SET name = name || 'x'",
        "SELECT 1; TRUNCATE account, claim",
        "SET LOCAL statement_timeout = 0; DELETE FROM account",
        "SAVEPOINT s; UPDATE account SET name = name || 'y'",
        "INSERT INTO plain (id, name) VALUES (1, 'a;b'); DELETE FROM account",
    ):
        commit(world, lambda s: s.execute(delete(Account)))
        world.add(Account(id=1, name="old"))
        world.published(Account, 1)
        commit(world, lambda s, text=text: s.execute(sa.text(text)))
        world.agrees(Account, 1)
        world.reads_true(Account, 1)


def test_truncate(postgresql_world: World) -> None:
    """TRUNCATE, and with CASCADE of the tables that refer to it, ON DELETE or not."""
    world = postgresql_world
    world.add(Account(id=1, name="a"), Order(id=1, name="o"))
    world.add(Part(id=1, order_id=1))
    commit(world, lambda s: s.execute(sa.text("TRUNCATE orders CASCADE")))
    assert world.entry(Order, 1) == world.entry(Part, 1) == ABSENT
    assert world.select(Part, 1) is None


@pytest.mark.parametrize(
    "text",
    [
        "CALL f()",
        "DO $$ BEGIN PERFORM f(); END $$",
        "EXECUTE f",
        "DO $$ BEGIN UPDATE plain SET name = 'x'; PERFORM f(); END $$",
    ],
)
def test_what_cannot_be_understood_is_refused_with_the_remedy(world: World, text: str) -> None:
    """Before anything is executed, and the message says what to do."""
    with world.sessions() as session:
        before = len(world.sql.statements)
        with pytest.raises(wt.ConfigurationError, match=r"execution_options\(writethrough_tables="):
            session.execute(sa.text(text))
        assert len(world.sql.statements) <= before + 1  # the counter listens beside us


def test_what_is_declared_is_believed(postgresql_world: World) -> None:
    """DO with the option evicts the tables that it names, and nothing with an empty list."""
    world = postgresql_world
    world.add(Account(id=1, name="old"))
    text = sa.text("DO $$ BEGIN UPDATE account SET name = 'x'; END $$")
    commit(world, lambda s: s.execute(text.execution_options(writethrough_tables=["account"])))
    world.reads_true(Account, 1)
    world.published(Account, 1)
    nothing = sa.text("DO $$ BEGIN PERFORM 1; END $$").execution_options(writethrough_tables=[])
    with world.no_traffic():
        commit(world, lambda s: s.execute(nothing))
    world.published(Account, 1)


@pytest.mark.parametrize("text", ["COMMIT", "END", "PREPARE TRANSACTION 'x'", "SELECT 1; COMMIT"])
def test_a_transaction_may_not_be_ended_by_text(world: World, text: str) -> None:
    """Nobody could announce it."""
    with world.sessions() as session, pytest.raises(wt.ConfigurationError, match=r"session\.commit"):
        session.execute(sa.text(text))


# --- what the database and the ORM change besides --------------------------------------------------------------------------


@pytest.fixture
def orders(world: World) -> World:
    """Two orders with what hangs on them, cached."""
    for i in (1, 2):
        world.add(Order(id=i, name="o"))
        world.add(Line(id=i, text="l", order_id=i), Note(id=i, text="n", order_id=i), Part(id=i, order_id=i))
    world.published(Order, 1, 2)
    world.published(Line, 1, 2)
    world.published(Note, 1, 2)
    return world


def _without_part(session: Session) -> None:
    session.execute(sa.text("DELETE FROM part WHERE order_id = 1"))


DELETES: dict[str, Callable[[Session], Any]] = {
    "unit-of-work": lambda s: s.delete(s.get(Order, 1)),
    "orm": lambda s: s.execute(delete(Order).where(Order.id == 1)),
    "orm-by-name": lambda s: s.execute(delete(Order).where(Order.name == "o", Order.id < 2)),
    "core": lambda s: s.execute(delete(Order.__table__).where(Order.__table__.c.id == 1)),
    "text": lambda s: s.execute(sa.text("DELETE FROM orders WHERE id = 1")),
}


@pytest.mark.parametrize("write", DELETES.values(), ids=DELETES.keys())
def test_what_the_database_cascades_to(orders: World, write: Callable[[Session], Any]) -> None:
    """ON DELETE CASCADE and SET NULL, with passive_deletes or without the ORM."""
    commit(orders, _without_part, write)
    assert orders.select(Line, 1) is None
    assert orders.select(Note, 1)["order_id"] is None
    for model in (Order, Line, Note, Part):
        orders.agrees(model, 1, 2)
        orders.reads_true(model, 1, 2)


@pytest.mark.parametrize("how", ["remove", "delete"])
def test_an_orphan_is_gone_from_the_cache(orders: World, how: str) -> None:
    """delete-orphan, by removal from the collection and with its parent."""

    def write(session: Session) -> None:
        if how == "remove":
            order = session.get(Order, 1)
            order.parts.clear()
            session.flush()
        else:
            session.delete(session.get(Order, 1))

    commit(orders, write)
    assert orders.select(Part, 1) is None
    assert orders.entry(Part, 1) == ABSENT
    orders.reads_true(Part, 1, 2)
    orders.reads_true(Order, 1, 2)


def test_a_primary_key_that_changes(orders: World) -> None:
    """The old key's entry is gone, the new key's is true."""
    commit(orders, _without_part)

    def write(session: Session) -> None:
        account = Account(id=1, name="a")
        session.add(account)
        session.commit()
        account.id = 50

    commit(orders, write)
    assert orders.entry(Account, 1) == ABSENT
    assert orders.select(Account, 50)["name"] == "a"
    orders.reads_true(Account, 1, 50)


@pytest.mark.parametrize(
    "write",
    [
        lambda s: setattr(s.get(Country, "dk"), "code", "de"),
        lambda s: s.execute(update(Country).where(Country.code == "dk").values(code="de")),
        lambda s: s.execute(update(Country.__table__).where(Country.__table__.c.code == "dk").values(code="de")),
        lambda s: s.execute(sa.text("UPDATE country SET code = 'de' WHERE code = 'dk'")),
    ],
    ids=["unit-of-work", "orm", "core", "text"],
)
def test_on_update_cascade(world: World, write: Callable[[Session], Any]) -> None:
    """A key that others refer to changes: their entries do not keep the old one."""
    world.add(Country(code="dk", name="d"))
    world.add(City(id=1, name="c", country="dk"))
    world.published(City, 1)
    commit(world, write)
    assert world.select(City, 1)["country"] == "de"
    world.reads_true(City, 1)
    world.reads_true(Country, "dk", "de")


def test_a_delete_and_an_insert_of_one_key_in_one_flush(accounts: World) -> None:
    """A row switch: SQLAlchemy writes one UPDATE, of a row whose other columns keep what they had."""

    def write(session: Session) -> None:
        session.get(Account, 2).note = "kept"
        session.flush()
        session.delete(session.get(Account, 2))
        session.add(Account(id=2, name="switched"))

    commit(accounts, write)
    accounts.published(Account, 2)
    assert accounts.entry(Account, 2)["name"] == "switched"


def test_a_delete_and_an_insert_of_one_key_in_two_flushes(accounts: World) -> None:
    """The new row is published."""

    def write(session: Session) -> None:
        session.delete(session.get(Account, 2))
        session.flush()
        session.add(Account(id=2, name="again"))

    commit(accounts, write)
    accounts.published(Account, 2)
    assert accounts.entry(Account, 2)["name"] == "again"


def test_an_insert_and_a_delete_in_one_transaction(world: World) -> None:
    """Nothing is left."""

    def write(session: Session) -> None:
        account = Account(id=1, name="a")
        session.add(account)
        session.flush()
        session.delete(account)

    commit(world, write)
    assert world.entry(Account, 1) == ABSENT
    world.reads_true(Account, 1)


def test_composite_keys(world: World) -> None:
    """Every way of writing a row with a key of two columns, one of them text."""
    world.add(Pair(a=1, b="x,y", name="old"), Pair(a=1, b="x", name="old"))
    commit(world, lambda s: setattr(s.get(Pair, (1, "x,y")), "name", "n1"))
    world.published(Pair, (1, "x,y"), (1, "x"))
    commit(world, lambda s: s.execute(update(Pair).where(Pair.name == "n1").values(name="n2")))
    world.published(Pair, (1, "x,y"), (1, "x"))
    table = Pair.__table__
    commit(world, lambda s: s.execute(update(table).where(table.c.a == 1, table.c.b == "x").values(name="n3")))
    world.reads_true(Pair, (1, "x,y"), (1, "x"))
    commit(world, lambda s: s.execute(delete(table).where(table.c.a == 1)))
    assert world.entry(Pair, (1, "x")) == ABSENT


# --- autocommit -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "write",
    [
        lambda s: (s.add(Account(id=2, name="a")), s.flush()),
        lambda s: s.execute(update(Account).values(name="x")),
        lambda s: s.execute(delete(TABLE)),
        lambda s: s.execute(insert(TABLE).values(id=2, name="a")),
        lambda s: s.execute(sa.text("UPDATE account SET name = 'x'")),
    ],
    ids=["unit-of-work", "orm", "core-delete", "core-insert", "text"],
)
def test_an_autocommit_connection_may_not_write_cached_models(world: World, write: Callable[[Session], Any]) -> None:
    """The refusal comes before anything is written; reads and other models are allowed."""
    world.add(Account(id=1, name="old"))
    engine = world.engine.execution_options(isolation_level="AUTOCOMMIT")
    with world.sessions(bind=engine) as session:
        assert world.cache.get(session, Account, 1).name == "old"
        with pytest.raises(wt.ConfigurationError, match="AUTOCOMMIT"):
            write(session)
        session.rollback()
        session.add(Plain(id=1, name="x"))
        session.commit()
    assert world.select(Account, 1)["name"] == "old"
    assert world.select(Account, 2) is None
    world.published(Account, 1)


# --- two databases --------------------------------------------------------------------------------------------------------


def test_two_binds(sqlite_copy: Callable[[str], str]) -> None:
    """One transaction over two databases: each row's entry is under its own database."""
    first = open_world(sqlite_copy("one.db"), MemoryStore())
    second = open_world(sqlite_copy("two.db"), MemoryStore())
    try:
        with first.sessions(binds={Account: first.engine, Contract: second.engine}) as session:
            session.add_all([Account(id=1, name="a"), Contract(id=1, name="c")])
            session.commit()
        first.published(Account, 1)
        assert second.select(Contract, 1)["name"] == "c"
        with first.sessions(bind=second.engine) as session:
            assert first.cache.get(session, Contract, 1).name == "c"
    finally:
        first.close()
        second.close()


def test_a_key_of_another_type_has_no_entry_of_its_own(sqlite_world: World) -> None:
    """A row that is read by the key True is not kept under a key that the writers of 1 do not announce."""
    world = sqlite_world
    world.add(Account(id=1, name="old"))
    with world.sessions() as session:
        world.cache.get(session, Account, True)
    commit(world, lambda s: setattr(s.get(Account, 1), "name", "new"))
    world.cache.drain()
    with world.sessions() as session:
        assert world.cache.get(session, Account, True).name == "new"
