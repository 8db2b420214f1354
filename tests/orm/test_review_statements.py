"""Statements that hide what they write, and rows that the database changes beside those a statement names."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, synonym

import sa_writethrough as wt
from sa_writethrough.dml import _has_one_form, writes_of
from sa_writethrough.effects import Undone
from sa_writethrough.entities import Entities
from sa_writethrough.stores.memory import MemoryStore
from tests.orm.models import Account
from tests.orm.worlds import World, open_world


class Base(DeclarativeBase):
    pass


class Parent(Base):
    __tablename__ = "parent"
    __writethrough__ = True
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


class Child(Base):
    __tablename__ = "child"
    __writethrough__ = True
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int] = mapped_column(sa.ForeignKey(Parent.id, ondelete="CASCADE"))


class Yielding(Base):
    __tablename__ = "yielding"
    __writethrough__ = True
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    __table_args__ = (sa.UniqueConstraint("name", sqlite_on_conflict="REPLACE"),)


class Code(Base):
    """Not cached; its code is unique by an index, and its attribute has a name of its own."""

    __tablename__ = "code"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[str] = mapped_column("code")
    __table_args__ = (sa.Index("code_code", "code", unique=True),)


class Coded(Base):
    __tablename__ = "coded"
    __writethrough__ = True
    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(sa.ForeignKey("code.code", onupdate="CASCADE"))


class Renamed(Base):
    """The primary key has three names, and a synonym."""

    __tablename__ = "renamed"
    __writethrough__ = True
    id: Mapped[int] = mapped_column("renamed_id", key="uid", primary_key=True)
    name: Mapped[str]
    pk = synonym("id")


class Spaced(Base):
    __tablename__ = "order lines"
    __writethrough__ = True
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Lower(sa.types.TypeDecorator[str]):
    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: Any, _dialect: Any) -> Any:
        return value.lower()


class Same(sa.types.TypeDecorator[str]):
    impl = sa.String(5)
    cache_ok = True


class Day(Base):
    __tablename__ = "day"
    __writethrough__ = True
    id: Mapped[Any] = mapped_column(sa.Date, primary_key=True)
    name: Mapped[str]


class Moment(Base):
    __tablename__ = "moment"
    __writethrough__ = True
    id: Mapped[Any] = mapped_column(sa.DateTime, primary_key=True)
    name: Mapped[str]


class Word(Base):
    __tablename__ = "word"
    __writethrough__ = True
    id: Mapped[Any] = mapped_column(Lower, primary_key=True)
    name: Mapped[str]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[World]:
    """A SQLite file with this module's models."""
    url = f"sqlite:///{tmp_path / 'own.db'}"
    engine = sa.create_engine(url)
    Base.metadata.create_all(engine)
    engine.dispose()
    world = open_world(url, MemoryStore())
    yield world
    world.close()


@pytest.fixture
def entities() -> Entities:
    """This module's models."""
    Base.registry.configure()
    found = Entities(None, wt.CachePolicy())
    for mapper in Base.registry.mappers:
        found.add(mapper)
    return found


def _execute(world: World, statement: Any, **options: Any) -> None:
    with world.sessions() as session:
        result = session.execute(statement, execution_options=options)
        if getattr(result, "returns_rows", True):
            result.all()
        session.commit()


def _text_effects(entities: Entities, sql: str, **options: Any) -> list[Any]:
    context: Any = SimpleNamespace(execution_options=options, compiled=None, dialect=SimpleNamespace(name="sqlite"))
    return list(writes_of(entities, context, sql))


def _tables(effects: list[Any]) -> set[str]:
    return {effect.family.base.local_table.name for effect in effects if effect.identities is None}


_ACCOUNT = Account.__table__
_UPDATE = sa.update(_ACCOUNT).where(_ACCOUNT.c.id == 1).values(name="new").returning(_ACCOUNT)
_TEXT = sa.text("UPDATE account SET name = 'new' WHERE id = 1 RETURNING id, name, note")


@pytest.mark.parametrize(
    "statement",
    [
        sa.select(Account).from_statement(_TEXT),
        sa.select(Account).from_statement(_TEXT.columns(Account.id, Account.name, Account.note)),
        sa.select(Account).from_statement(_UPDATE),
        sa.select(Account).from_statement(sa.update(Account).values(name="new").returning(Account)),
        sa.select(Account).from_statement(sa.delete(_ACCOUNT).where(_ACCOUNT.c.id == 1).returning(_ACCOUNT)),
        sa.select(Account).from_statement(sa.insert(_ACCOUNT).values(id=7, name="new").returning(_ACCOUNT)),
    ],
    ids=["text", "columns", "core", "orm", "delete", "insert"],
)
def test_dml_that_a_select_is_loaded_from(world: World, statement: Any) -> None:
    """It is understood as the DML that it is."""
    world.add(Account(id=1, name="old"))
    world.warm(Account, 1)
    _execute(world, statement)
    world.agrees(Account, 1)
    with world.sessions() as session:
        assert (world.cache.get(session, Account, 1) is None) == (world.select(Account, 1) is None)


def test_text_in_a_cte(postgresql_world: World) -> None:
    """Its words are judged like those of any text."""
    postgresql_world.add(Account(id=1, name="old"))
    postgresql_world.warm(Account, 1)
    _execute(postgresql_world, sa.select(_TEXT.columns(id=sa.Integer).cte("x")))
    postgresql_world.absent(Account, 1)


def test_replace_after_with(own: World) -> None:
    """SQLite's verb counts, and its function does not."""
    own.add(Spaced(id=1, name="old"))
    own.warm(Spaced, 1)
    _execute(own, sa.text("SELECT replace(name, 'a', 'b') FROM \"order lines\""))
    own.published(Spaced, 1)
    _execute(own, sa.text("WITH x AS (SELECT 1, 'new') REPLACE /* ! */ INTO \"order lines\" SELECT * FROM x"))
    own.absent(Spaced, 1)


@pytest.mark.parametrize(
    ("entity", "statement"),
    [
        (Child, sa.insert(Parent).prefix_with("OR REPLACE").values(id=1, name="z")),
        (Parent, sa.update(Parent.__table__).prefix_with("OR REPLACE").where(Parent.id == 2).values(name="a")),
        (Parent, sa.update(Parent).prefix_with("OR REPLACE").where(Parent.id == 2).values(name="a")),
        (Child, sa.update(Parent).prefix_with("OR REPLACE").where(Parent.id == 2).values(name="a")),
        (Yielding, sa.insert(Yielding).values(id=7, name="a")),
        (Yielding, sa.update(Yielding).where(Yielding.id == 2).values(name="a")),
        (Yielding, sa.text("INSERT INTO yielding VALUES (7, 'a')")),
    ],
)
def test_replace_deletes_other_rows(own: World, entity: Any, statement: Any) -> None:
    """Those in the way, and what goes with them; whether the statement says it or the table."""
    own.add(Parent(id=1, name="a"), Parent(id=2, name="b"), Yielding(id=1, name="a"), Yielding(id=2, name="b"))
    own.add(Child(id=1, parent_id=1))
    own.warm(entity, 1)
    _execute(own, statement)
    assert own.select(entity, 1) is None or entity is Child
    own.reads_true(entity, 1)


@pytest.mark.parametrize(
    "change", [lambda s: setattr(s.get(Yielding, 2), "name", "a"), lambda s: s.add(Yielding(id=7, name="a"))]
)
def test_the_unit_of_work_replaces(own: World, change: Callable[[Session], None]) -> None:
    """ON CONFLICT REPLACE of a constraint works for it as well."""
    own.add(Yielding(id=1, name="a"), Yielding(id=2, name="b"))
    own.warm(Yielding, 1)
    with own.sessions() as session:
        change(session)
        session.commit()
    assert own.select(Yielding, 1) is None
    own.reads_true(Yielding, 1)


@pytest.mark.parametrize(
    "statement",
    [
        sa.update(Code).values(value="b"),
        sa.update(Code.__table__).values(code="b"),
        sqlite.insert(Code).values(id=1, code="z").on_conflict_do_update(index_elements=["id"], set_={"code": "b"}),
    ],
    ids=["orm", "core", "upsert"],
)
def test_a_referenced_key_changes(own: World, statement: Any) -> None:
    """Whatever makes it unique, and whatever changes it."""
    own.add(Code(id=1, value="a"))
    own.add(Coded(id=1, code="a"))
    own.warm(Coded, 1)
    _execute(own, statement)
    assert own.select(Coded, 1)["code"] == "b"  # type: ignore[index]
    own.reads_true(Coded, 1)


@pytest.mark.parametrize("how", ["attribute", "column", "synonym"])
def test_a_bulk_update_changes_a_renamed_key(own: World, how: str) -> None:
    """Under whichever of its names."""
    own.add(Renamed(id=1, name="a"))
    own.warm(Renamed, 1)
    values = {"attribute": {"id": 3}, "column": {Renamed.__table__.c.uid: 3}, "synonym": {"pk": 3}}[how]
    _execute(own, sa.update(Renamed).where(Renamed.name == "a").values(values), synchronize_session=False)
    assert own.select(Renamed, 1) is None
    own.reads_true(Renamed, 1)


_ZONE = dt.timezone(dt.timedelta(hours=2))


@pytest.mark.parametrize(
    ("entity", "given", "read"),
    [
        (Day, dt.datetime(2020, 1, 1, 5), dt.date(2020, 1, 1)),
        (Moment, dt.date(2020, 1, 1), dt.datetime(2020, 1, 1)),
        (Moment, dt.datetime(2020, 1, 1, 5, tzinfo=_ZONE), dt.datetime(2020, 1, 1, 5)),
        (Word, "ABC", "abc"),
    ],
)
def test_a_key_that_the_database_has_otherwise(own: World, entity: Any, given: Any, read: Any) -> None:
    """The row that the session writes under one value is cached under another."""
    with own.sessions(expire_on_commit=False) as session:
        instance = entity(id=given, name="old")
        session.add(instance)
        session.commit()
        own.warm(entity, read)
        instance.name = "new"
        session.commit()
    assert own.entry(entity, read) == "absent"
    own.reads_true(entity, read)


class _Name(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("type_", "good", "bad"),
    [
        (sa.Integer(), [1], [True, "1", 1.0]),
        (sa.String(3), ["abc", ""], ["abc ", _Name("a"), 1]),
        (sa.Date(), [dt.date(2020, 1, 1)], [dt.datetime(2020, 1, 1), "2020-01-01"]),
        (sa.DateTime(), [dt.datetime(2020, 1, 1)], [dt.datetime(2020, 1, 1, tzinfo=_ZONE), dt.date(2020, 1, 1)]),
        (sa.DateTime(timezone=True), [dt.datetime(2020, 1, 1, tzinfo=_ZONE)], [dt.datetime(2020, 1, 1)]),
        (postgresql.TIMESTAMP(precision=0), [], [dt.datetime(2020, 1, 1)]),
        (sa.Numeric(10, 2), [Decimal("1.05"), Decimal(3)], [Decimal("1.005"), 1.5, 3, "1.5", Decimal("NaN")]),
        (sa.Numeric(10), [Decimal(1)], [Decimal("1.5")]),
        (sa.LargeBinary(), [b"a"], [bytearray(b"a")]),
        (sa.Enum("a", "b"), ["a"], [1]),
        (sa.Uuid(as_uuid=False), ["12345678-1234-5678-1234-567812345678"], ["12345678123456781234567812345678", 1]),
        (Lower(), ["a"], ["A", 1]),
        (Same(), ["a"], [1, "abcdef"]),
        (postgresql.INET(), [], ["1.1.1.1"]),
    ],
)
def test_which_values_name_a_row(type_: Any, good: list[Any], bad: list[Any]) -> None:
    """Those that PostgreSQL gives back as they are."""
    dialect = postgresql.dialect()
    assert all(_has_one_form(type_, value, dialect) for value in good)
    assert not any(_has_one_form(type_, value, dialect) for value in bad)


@pytest.mark.parametrize(
    ("sql", "tables"),
    [
        ("UPDATE \"order lines\" SET name = 'x'", {"order lines"}),
        ("UPDATE main.[Order Lines] SET name = 'x'", {"order lines"}),
        ("DELETE FROM`order lines`", {"order lines"}),
        ('INSERT INTO "order lines" SELECT * FROM parent', set()),
        ("INSERT INTO yielding VALUES (1)", {"yielding"}),
        ("WITH x AS (SELECT 1) REPLACE INTO parent SELECT * FROM x", {"parent", "child"}),
        ("SELECT replace(name, 'a', 'b') FROM parent", set()),
        ("SELECT replace(name, 'a', 'b') FROM unknown", set()),
    ],
)
def test_names_of_several_words(entities: Entities, sql: str, tables: set[str]) -> None:
    """A quoted name is one name."""
    assert _tables(_text_effects(entities, sql)) == tables


@pytest.mark.parametrize("sql", ['DELETE FROM "two words" USING parent', "UPDATE \"parent's view\" SET name = 'x'"])
def test_a_quoted_name_that_is_not_known(entities: Entities, sql: str) -> None:
    """It may be a view of anything."""
    assert _tables(_text_effects(entities, sql)) == {family.base.local_table.name for family in entities.families}


@pytest.mark.parametrize(
    ("sql", "lasting"),
    [
        ("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ", True),
        ("SET default_transaction_isolation = 'serializable'", True),
        ("set transaction_isolation to 'repeatable read'", True),  # no: but who knows which names last
        ("SELECT set_config('transaction_isolation', 'serializable', true)", True),
        ("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ", True),
        ("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", False),
        ("set local transaction isolation level repeatable read", False),
        ("START TRANSACTION ISOLATION LEVEL SERIALIZABLE", False),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE", False),
    ],
)
def test_the_isolation_level_in_any_spelling(entities: Entities, sql: str, lasting: bool) -> None:
    """From then on the transaction may have a snapshot, and maybe those after it on the connection."""
    assert _text_effects(entities, sql) == [Undone(isolation=True, lasting=lasting)]


@pytest.mark.parametrize(
    "sql", ["SET search_path TO other", "SET LOCAL search_path = x", "SELECT set_config('search_path', 'x', false)"]
)
def test_another_schema_behind_our_back(entities: Entities, sql: str) -> None:
    """It is refused with the remedy, unless the application says that it knows."""
    with pytest.raises(wt.ConfigurationError, match="schema_translate_map"):
        _text_effects(entities, sql)
    assert _text_effects(entities, sql, writethrough_tables=[]) == []
