"""SQLAlchemy's internals that cached collections need: each function against what SQLAlchemy itself does."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql

from sa_writethrough import _relationships


class Models:
    def __init__(self, base: Any) -> None:
        class Owner(base):
            __tablename__ = "owner"
            id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
            things: orm.Mapped[list[Any]] = orm.relationship("Thing", order_by="Thing.place")
            plain: orm.Mapped[list[Any]] = orm.relationship("Thing", viewonly=True)

        class Thing(base):
            __tablename__ = "thing"
            id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
            owner_id: orm.Mapped[int | None] = orm.mapped_column(sa.ForeignKey("owner.id"))
            place: orm.Mapped[int] = orm.mapped_column(server_default="0")
            owner: orm.Mapped[Any] = orm.relationship("Owner", viewonly=True)

        self.owner, self.thing = Owner, Thing


@pytest.fixture
def models() -> Iterator[Models]:
    class Base(orm.DeclarativeBase):
        pass

    yield Models(Base)
    Base.registry.dispose()


@pytest.fixture
def session(models: Models) -> Iterator[orm.Session]:
    engine = sa.create_engine("sqlite://")
    models.owner.metadata.create_all(engine)
    with orm.Session(engine) as session:
        session.add(models.owner(id=1))
        session.commit()
        yield session


def states(session: orm.Session, run: Any) -> list[Any]:
    """Return the ORMExecuteStates of the statements that *run* executes."""
    seen: list[Any] = []
    listener = seen.append
    sa.event.listen(session, "do_orm_execute", listener)
    run()
    sa.event.remove(session, "do_orm_execute", listener)
    return seen


def test_every_function_of_this_room_is_tested_here() -> None:
    """A function that is added there fails here until it has a test whose text names it."""
    functions = {
        name
        for name, thing in vars(_relationships).items()
        if inspect.isfunction(thing) and thing.__module__ == _relationships.__name__ and not name.startswith("_")
    }
    text = Path(__file__).read_text(encoding="utf-8")
    assert functions
    assert {name for name in functions if f"_relationships.{name}" not in text} == set()


def test_mappers_to_come(models: Models) -> None:
    """`_relationships.mappers_to_come` is true until the last mapper is configured."""
    assert _relationships.mappers_to_come()
    orm.configure_mappers()
    assert not _relationships.mappers_to_come()


@pytest.mark.parametrize("name", ["things", "plain"])
def test_loaded_relationship(session: orm.Session, models: Models, name: str) -> None:
    """`_relationships.loaded_relationship` is the one whose lazy load it is, also below others."""
    owner = session.get(models.owner, 1)
    (state,) = states(session, lambda: getattr(owner, name))
    assert _relationships.loaded_relationship(state) is getattr(models.owner, name).property
    assert state.lazy_loaded_from is sa.inspect(owner)


def test_is_load_of(session: orm.Session, models: Models) -> None:
    """`_relationships.is_load_of` compares all of the path, and is for lazy loads alone."""
    things, plain = models.owner.things.property, models.owner.plain.property
    owner = session.get(models.owner, 1)
    (state,) = states(session, lambda: owner.things)
    assert _relationships.is_load_of(state, (things,))
    assert not _relationships.is_load_of(state, (plain,))
    assert not _relationships.is_load_of(state, (things, things))
    session.expire(owner)
    (state, _) = states(
        session, lambda: session.scalars(sa.select(models.owner).options(orm.selectinload(models.owner.things))).all()
    )
    assert not _relationships.is_load_of(state, (things,))


def test_steps_of_and_is_at(session: orm.Session, models: Models) -> None:
    """`_relationships.steps_of` is the path to what is loaded, of lazy and eager loads; `_relationships.is_at` its end."""
    things, plain = models.owner.things.property, models.owner.plain.property
    first, eager = states(
        session, lambda: session.scalars(sa.select(models.owner).options(orm.selectinload(models.owner.things))).all()
    )
    assert tuple(_relationships.steps_of(first)) == ()
    assert tuple(_relationships.steps_of(eager)) == (things,)
    assert _relationships.is_at(eager, (things,))
    assert not _relationships.is_at(eager, (plain,))
    assert not _relationships.is_at(first, (things,))
    session.add(models.thing(id=1, owner_id=1))
    session.commit()
    option = orm.lazyload(models.owner.things).selectinload(models.thing.owner)
    owner = session.scalars(sa.select(models.owner).options(option)).one()
    *_, last = states(session, lambda: owner.things)
    assert next(iter(_relationships.steps_of(last))) is things
    assert not _relationships.is_at(last, (things, plain))


def test_carry_is_what_the_loader_does(session: orm.Session, models: Models) -> None:
    """`_relationships.carry` (and `_relationships.carries` tells of it) leaves options and path as an ordinary load does, also of what was loaded lazily."""
    session.add(models.thing(id=1, owner_id=1))
    session.commit()
    option = orm.lazyload(models.owner.things).lazyload(models.thing.owner)

    def path_of(instance: Any) -> Any:
        return instance.load_options, instance.load_path

    def carrying(state: Any) -> None:
        seen.append(state)

    for step in ("owner", "thing"):
        seen: list[Any] = []
        session.expunge_all()
        sa.event.listen(session, "do_orm_execute", carrying)
        owner = session.scalars(sa.select(models.owner).options(option)).one()
        instance = owner if step == "owner" else owner.things[0]
        sa.event.remove(session, "do_orm_execute", carrying)
        loaded = sa.inspect(instance)
        expected = path_of(loaded)
        assert list(expected[0]) == [option]
        loaded.load_options, loaded.load_path = (), None
        _relationships.carry(seen[-1], [option], [None, instance], {loaded})
        assert path_of(loaded) == ((), None)
        assert not _relationships.carries(instance, [option])
        _relationships.carry(seen[-1], [option], [None, instance], ())
        assert (set(loaded.load_options), loaded.load_path) == (set(expected[0]), expected[1])
        assert _relationships.carries(instance, [option])


@pytest.mark.parametrize(
    ("name", "change", "lazy"),
    [
        ("things", None, True),
        ("plain", None, True),
        ("things", lambda statement, thing: statement.where(thing.id > 1), False),
        ("things", lambda statement, thing: statement.order_by(thing.id), False),
        ("things", lambda statement, thing: statement.order_by(None), False),
        ("things", lambda statement, thing: statement.order_by(None).order_by(thing.id), False),
        ("things", lambda statement, thing: statement.limit(1), False),
        ("plain", lambda statement, thing: statement.order_by(thing.id), False),
    ],
)
def test_is_lazy_load(session: orm.Session, models: Models, name: str, change: Any, lazy: bool) -> None:
    """`_relationships.is_lazy_load` is true for what a relationship emits, and false once anything was added."""
    owner = session.get(models.owner, 1)
    (state,) = states(session, lambda: getattr(owner, name))
    if change is not None:
        state.statement = change(state.statement, models.thing)
    order = getattr(models.owner, name).property.order_by
    assert _relationships.is_lazy_load(state, order) is lazy


def test_key_as_loaded(session: orm.Session, models: Models) -> None:
    """`_relationships.key_as_loaded` is a persistent instance's key, and nothing once it is to be another."""
    owner = session.get(models.owner, 1)
    assert _relationships.key_as_loaded(sa.inspect(owner), ["id"]) == (1,)
    owner.id = 2
    assert _relationships.key_as_loaded(sa.inspect(owner), ["id"]) is None
    session.rollback()
    assert _relationships.key_as_loaded(sa.inspect(owner), ["id"]) == (1,)
    assert _relationships.key_as_loaded(sa.inspect(models.owner(id=3)), ["id"]) is None
    other = session.get(models.owner, 1, identity_token="shard")
    assert _relationships.key_as_loaded(sa.inspect(other), ["id"]) is None


def _table(models: Models) -> Any:
    return models.thing.__table__


def _upsert(t: Any) -> Any:
    insert = postgresql.insert(t).values(id=1, owner_id=7)
    return insert.on_conflict_do_update(index_elements=["id"], set_={"owner_id": 8})


ORDERED = None if sa.__version__.startswith("2.0.") else "owner_id"
"""SQLAlchemy 2.0 keeps them in a place of their own."""

STATEMENTS = {
    # statement, keys of the parameters that are given with it, parameter of owner_id, and whether it leaves it NULL
    "literal": (lambda t: sa.insert(t).values(id=1, owner_id=7), None, "owner_id", False),
    "given": (sa.insert, ["id", "owner_id"], "owner_id", False),
    "left out": (sa.insert, ["id", "place"], None, True),
    "left out of values": (lambda t: sa.insert(t).values(id=1), None, None, True),
    "parameter": (lambda t: sa.insert(t).values(id=1, owner_id=sa.bindparam("who")), ["id", "who"], "who", False),
    "expression": (lambda t: sa.insert(t).values(id=1, owner_id=sa.func.abs(7)), None, None, False),
    "null": (lambda t: sa.insert(t).values(id=1, owner_id=sa.null()), None, None, False),
    "column": (lambda t: sa.insert(t).values({t.c.owner_id: 7}), None, "owner_id", False),
    "several": (lambda t: sa.insert(t).values([{"id": 1, "owner_id": 7}, {"id": 2, "owner_id": 8}]), None, None, False),
    "select": (lambda t: sa.insert(t).from_select(["owner_id"], sa.select(t.c.id)), None, None, False),
    "upsert": (_upsert, None, None, False),
    "update": (lambda t: sa.update(t).values(owner_id=7), None, "owner_id", False),
    "update given": (sa.update, ["owner_id"], "owner_id", False),
    "update parameter": (lambda t: sa.update(t).values(owner_id=sa.bindparam("who")), ["who"], "who", False),
    "update expression": (lambda t: sa.update(t).values(owner_id=t.c.owner_id + 1), None, None, False),
    "update ordered": (lambda t: sa.update(t).ordered_values((t.c.owner_id, 7)), None, ORDERED, False),
}


@pytest.mark.parametrize(("make", "keys", "name", "null"), STATEMENTS.values(), ids=STATEMENTS)
def test_value_parameters(models: Models, make: Any, keys: Any, name: str | None, null: bool) -> None:
    """`_relationships.value_parameters` names what a foreign key is set to, or nothing in doubt.

    `_relationships.leaves_null` is true only where an INSERT sets it to nothing at all.
    """
    table = _table(models)
    statement = make(table)
    compiled = statement.compile(dialect=postgresql.dialect(), column_keys=keys)
    found = _relationships.value_parameters(compiled, statement, [table.c.owner_id])
    assert found == (None if name is None else (name,))
    if name is not None:
        assert name in compiled.construct_params(dict.fromkeys(keys or (), 7))
    if statement.is_insert:
        assert _relationships.leaves_null(compiled, statement, [table.c.owner_id]) is null
    assert not _relationships.leaves_null(compiled, statement, [table.c.place])


def test_tables_set(models: Models) -> None:
    """`_relationships.tables_set` names the tables of an UPDATE that sets columns of several."""
    one, other = sa.table("one", sa.column("x")), sa.table("other", sa.column("y"))
    assert _relationships.tables_set(sa.update(one)) == []
    assert _relationships.tables_set(sa.update(one).values(x=1)) == []
    assert _relationships.tables_set(sa.update(one).values({one.c.x: 1, other.c.y: 2})) == [one, other]
    assert _relationships.tables_set(sa.update(one).ordered_values((other.c.y, 2))) == [other]
