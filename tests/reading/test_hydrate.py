"""An instance that was made of an entry, compared with one that SQLAlchemy's own loader made."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import pickle
import sys
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.ext.mutable import MutableDict, MutableList

import sa_writethrough as wt
from tests.reading.conftest import World


class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"


@dataclasses.dataclass
class Point:
    x: int
    y: int


@dataclasses.dataclass
class Case:
    """A mapping: how to make its rows, which one to look at, and what an entry does not have."""

    entity: Any
    rows: Callable[[], list[Any]]
    ident: Any = 1
    missing: frozenset[str] = frozenset()
    eager: bool = False
    change: tuple[str, Any] = ("name", "changed")


# --- mappings -------------------------------------------------------------------------------------------------------


def plain(base: Any) -> Case:
    class Plain(base):
        __tablename__ = "plain"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str | None]

    return Case(Plain, lambda: [Plain(id=1, name="a")])


def twelve_columns(base: Any) -> Case:
    class Twelve(base):
        __tablename__ = "twelve"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]
        body: orm.Mapped[str] = orm.mapped_column(sa.Text)
        flag: orm.Mapped[bool]
        made: orm.Mapped[dt.datetime]
        seen: orm.Mapped[dt.datetime | None]
        price: orm.Mapped[decimal.Decimal] = orm.mapped_column(sa.Numeric(10, 2, asdecimal=True))
        ref: orm.Mapped[uuid.UUID]
        colour: orm.Mapped[Colour]
        extra: orm.Mapped[dict[str, Any] | None] = orm.mapped_column(sa.JSON)
        day: orm.Mapped[dt.date]
        raw: orm.Mapped[bytes]

    moment = dt.datetime(2024, 2, 29, 12, 30, 1, 5)
    return Case(
        Twelve,
        lambda: [
            Twelve(
                id=1,
                name="n",
                body="b" * 300,
                flag=True,
                made=moment,
                seen=None,
                price=decimal.Decimal("1.50"),
                ref=uuid.UUID(int=7),
                colour=Colour.BLUE,
                extra={"a": [1, {"b": None}]},
                day=moment.date(),
                raw=b"\0\xff",
            )
        ],
    )


def renamed_columns(base: Any) -> Case:
    class Renamed(base):
        __tablename__ = "renamed"
        __writethrough__ = True
        key: orm.Mapped[int] = orm.mapped_column("id", primary_key=True)
        name: orm.Mapped[str] = orm.mapped_column("The Name")

    return Case(Renamed, lambda: [Renamed(key=1, name="a")])


def deferred_columns(base: Any) -> Case:
    class Deferred(base):
        __tablename__ = "deferred"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]
        photo: orm.Mapped[str] = orm.mapped_column(deferred=True)
        one: orm.Mapped[str] = orm.mapped_column(deferred=True, deferred_group="g")
        two: orm.Mapped[str] = orm.mapped_column(deferred=True, deferred_group="g")

    return Case(Deferred, lambda: [Deferred(id=1, name="a", photo="p", one="1", two="2")])


def raising_deferred_column(base: Any) -> Case:
    class RaisingDeferred(base):
        __tablename__ = "raising_deferred"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]
        photo: orm.Mapped[str] = orm.mapped_column(deferred=True, deferred_raiseload=True)

    return Case(RaisingDeferred, lambda: [RaisingDeferred(id=1, name="a", photo="p")])


def column_property(base: Any) -> Case:
    class Computed(base):
        __tablename__ = "computed"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]
        shout = orm.column_property(sa.func.upper(sa.literal_column("name")))
        later = orm.column_property(sa.func.lower(sa.literal_column("name")), deferred=True)

    return Case(Computed, lambda: [Computed(id=1, name="aB")], missing=frozenset({"shout"}))


def query_expressions(base: Any) -> Case:
    class Expressive(base):
        __tablename__ = "expressive"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]
        asked: orm.Mapped[int | None] = orm.query_expression()

    return Case(Expressive, lambda: [Expressive(id=1, name="a")])


def excluded_column(base: Any) -> Case:
    class Excluded(base):
        __tablename__ = "excluded"
        __writethrough__ = wt.CachePolicy(exclude=["photo"])
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]
        photo: orm.Mapped[str]

    return Case(Excluded, lambda: [Excluded(id=1, name="a", photo="p")], missing=frozenset({"photo"}))


def composites(base: Any) -> Case:
    class Shape(base):
        __tablename__ = "shape"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]
        x: orm.Mapped[int]
        y: orm.Mapped[int]
        point: orm.Mapped[Point] = orm.composite("x", "y")

    return Case(Shape, lambda: [Shape(id=1, name="a", x=3, y=4)])


def mutables(base: Any) -> Case:
    class Mutable(base):
        __tablename__ = "mutable"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]
        settings: orm.Mapped[dict[str, Any]] = orm.mapped_column(MutableDict.as_mutable(sa.JSON))
        tags: orm.Mapped[list[Any] | None] = orm.mapped_column(MutableList.as_mutable(sa.JSON))

    return Case(Mutable, lambda: [Mutable(id=1, name="a", settings={"k": 1}, tags=["x"])])


def hybrids_and_synonyms(base: Any) -> Case:
    class Hybrid(base):
        __tablename__ = "hybrid"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]
        alias = orm.synonym("name")

        @hybrid_property
        def loud(self) -> str:
            return self.name.upper()

        @orm.validates("name")
        def _check(self, _key: str, value: str) -> str:
            assert value
            return value

    return Case(Hybrid, lambda: [Hybrid(id=1, name="a")])


def type_decorators(base: Any) -> Case:
    class Reversed(sa.TypeDecorator[str]):
        impl = sa.String
        cache_ok = True

        def process_bind_param(self, value: Any, dialect: Any) -> Any:
            return None if value is None else value[::-1]

        def process_result_value(self, value: Any, dialect: Any) -> Any:
            return "nothing" if value is None else value[::-1]

    class Decorated(base):
        __tablename__ = "decorated"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str] = orm.mapped_column(Reversed)
        none: orm.Mapped[str | None] = orm.mapped_column(Reversed)

    return Case(Decorated, lambda: [Decorated(id=1, name="abc", none=None)])


def versioned(base: Any) -> Case:
    class Versioned(base):
        __tablename__ = "versioned"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]
        version: orm.Mapped[int] = orm.mapped_column()
        __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy's idiom

    return Case(Versioned, lambda: [Versioned(id=1, name="a")])


def server_defaults(base: Any) -> Case:
    class Defaulted(base):
        __tablename__ = "defaulted"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]
        state: orm.Mapped[str] = orm.mapped_column(server_default="new")
        double: orm.Mapped[int] = orm.mapped_column(sa.Computed("id * 2", persisted=True))

    return Case(Defaulted, lambda: [Defaulted(id=1, name="a")])


def composite_key(base: Any) -> Case:
    class Composite(base):
        __tablename__ = "composite"
        __writethrough__ = True
        a: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        b: orm.Mapped[str] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]

    return Case(Composite, lambda: [Composite(a=1, b="x y", name="n")], ident=(1, "x y"))


def slots_and_dataclass(base: Any) -> Case:
    class DataBase(orm.MappedAsDataclass, orm.DeclarativeBase):
        registry = base.registry
        metadata = base.metadata

    class Data(DataBase):
        __tablename__ = "data"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]
        count: orm.Mapped[int] = orm.mapped_column(default=3)
        made: orm.Mapped[str | None] = orm.mapped_column(default=None, init=False)

    return Case(Data, lambda: [Data(id=1, name="a")])


def reconstructed(base: Any) -> Case:
    class Reconstructed(base):
        __tablename__ = "reconstructed"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]

        def __init__(self, **kw: Any) -> None:
            super().__init__(**kw)
            self.by_init = True

        @orm.reconstructor
        def _rebuild(self) -> None:
            self.rebuilt = self.name * 2

    return Case(Reconstructed, lambda: [Reconstructed(id=1, name="a")])


def imperative(base: Any) -> Case:
    class Imperative:
        __writethrough__ = True

        def __init__(self, **kw: Any) -> None:
            self.__dict__.update({})
            for name, value in kw.items():
                setattr(self, name, value)

    table = sa.Table(
        "imperative", base.metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("_name", sa.String(20))
    )
    base.registry.map_imperatively(Imperative, table, properties={"name": table.c._name})
    return Case(Imperative, lambda: [Imperative(id=1, name="a")])


def _related(base: Any, **to_parent: Any) -> tuple[Any, Any]:
    class Parent(base):
        __tablename__ = "parent"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]
        children: orm.Mapped[list[Child]] = orm.relationship(back_populates="parent", **to_parent)

    class Child(base):
        __tablename__ = "child"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]
        parent_id: orm.Mapped[int | None] = orm.mapped_column(sa.ForeignKey("parent.id"))
        parent: orm.Mapped[Parent | None] = orm.relationship(back_populates="children")

    namespace = {"Parent": Parent, "Child": Child}
    sys.modules[__name__].__dict__.update(namespace)
    return Parent, Child


def collections(lazy: str) -> Callable[[Any], Case]:
    def mapping(base: Any) -> Case:
        parent, child = _related(base, lazy=lazy)
        eager = lazy in {"joined", "selectin", "subquery", "immediate"}
        return Case(
            parent,
            lambda: [parent(id=1, name="a", children=[child(id=1, name="c1"), child(id=2, name="c2")])],
            eager=eager,
        )

    mapping.__name__ = f"collection_{lazy}"
    return mapping


def many_to_one(lazy: str) -> Callable[[Any], Case]:
    def mapping(base: Any) -> Case:
        class Owner(base):
            __tablename__ = "owner"
            id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

        class Pet(base):
            __tablename__ = "pet"
            __writethrough__ = True
            id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
            name: orm.Mapped[str]
            owner_id: orm.Mapped[int | None] = orm.mapped_column(sa.ForeignKey(Owner.id))
            owner = orm.relationship(Owner, lazy=lazy)

        eager = lazy in {"joined", "selectin", "immediate"}
        return Case(Pet, lambda: [Pet(id=1, name="rex", owner=Owner(id=5))], eager=eager)

    mapping.__name__ = f"many_to_one_{lazy}"
    return mapping


def self_referential(base: Any) -> Case:
    class Node(base):
        __tablename__ = "node"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]
        up_id: orm.Mapped[int | None] = orm.mapped_column(sa.ForeignKey("node.id"))
        children = orm.relationship("Node", lazy="selectin", join_depth=1, order_by="Node.id")

    def rows() -> list[Any]:
        return [Node(id=1, name="root", children=[Node(id=2, name="leaf", children=[Node(id=3, name="deep")])])]

    return Case(Node, rows, eager=True)


def single_inheritance(base: Any) -> Case:
    class Animal(base):
        __tablename__ = "animal"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]
        kind: orm.Mapped[str]
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}  # noqa: RUF012 - the idiom

    class Cat(Animal):
        lives: orm.Mapped[int | None]
        __mapper_args__ = {"polymorphic_identity": "cat"}  # noqa: RUF012 - SQLAlchemy's idiom

    return Case(Cat, lambda: [Cat(id=1, name="tom", lives=9)])


def joined_inheritance(base: Any) -> Case:
    class Person(base):
        __tablename__ = "person"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]
        kind: orm.Mapped[str]
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012 - the idiom

    class Boss(Person):
        __tablename__ = "boss"
        boss_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey(Person.id), primary_key=True)
        bonus: orm.Mapped[int]
        __mapper_args__ = {"polymorphic_identity": "boss"}  # noqa: RUF012 - SQLAlchemy's idiom

    return Case(Boss, lambda: [Boss(id=1, name="ann", bonus=7)])


MAPPINGS = [
    plain,
    twelve_columns,
    renamed_columns,
    deferred_columns,
    raising_deferred_column,
    column_property,
    query_expressions,
    excluded_column,
    composites,
    mutables,
    hybrids_and_synonyms,
    type_decorators,
    versioned,
    server_defaults,
    composite_key,
    slots_and_dataclass,
    reconstructed,
    imperative,
    *(
        collections(lazy)
        for lazy in ("select", "joined", "selectin", "subquery", "immediate", "raise", "dynamic", "write_only")
    ),
    *(many_to_one(lazy) for lazy in ("select", "joined", "selectin", "immediate", "raise", "raise_on_sql")),
    self_referential,
    single_inheritance,
    joined_inheritance,
]


# --- what can be observed -------------------------------------------------------------------------------------------


def shown(value: Any, depth: int = 3) -> Any:
    """Return *value* so that those of two sessions compare; instances by identity and content."""
    if isinstance(value, dict) and not hasattr(value, "_sa_adapter"):
        return type(value).__name__, [(k, shown(v, depth)) for k, v in value.items()]
    if isinstance(value, list | set | tuple):
        return type(value).__name__, [shown(v, depth) for v in value]
    state = sa.inspect(value, raiseerr=False)
    if isinstance(state, orm.InstanceState):
        return (state.key, contents(value, depth - 1)) if depth else state.key
    return type(value).__name__, repr(value)


def contents(instance: Any, depth: int = 3) -> dict[str, Any]:
    state = sa.inspect(instance)
    ignored = {"_sa_instance_state"} | {
        r.key for r in state.mapper.relationships if r.lazy in {"dynamic", "write_only"}
    }
    return {k: shown(v, depth) for k, v in instance.__dict__.items() if k not in ignored}


def observed(instance: Any, missing: frozenset[str]) -> dict[str, Any]:
    state = sa.inspect(instance)
    session = orm.object_session(instance)
    flags = ("transient", "pending", "persistent", "deleted", "detached", "modified", "expired", "key", "identity",
             "identity_token", "has_identity", "was_deleted", "callables", "load_options")  # fmt: skip
    names = [a.key for a in state.mapper.attrs if a.key not in missing]
    plain_names = [n for n in names if n not in {s.key for s in state.mapper.synonyms}]
    lazy = {r.key for r in state.mapper.relationships if r.lazy in {"dynamic", "write_only"}}
    return {
        "dict": {k: v for k, v in contents(instance).items() if k not in missing},
        "flags": {name: getattr(state, name) for name in flags},
        "committed": {k: shown(v) for k, v in sorted(state.committed_state.items()) if k not in missing},
        "unloaded": state.unloaded - missing,
        "expired_attributes": state.expired_attributes - missing,
        "unmodified": state.unmodified - missing,
        "history": {n: shown(tuple(state.attrs[n].history)) for n in plain_names if n not in lazy},
        "loaded_value": {n: shown(state.attrs[n].loaded_value) for n in plain_names if n not in lazy},
        "in session": session is not None and instance in session,
        "identity map": session.identity_map.get(state.key) is instance,
        "dirty": sorted(str(sa.inspect(dirty).key) for dirty in session.dirty),
        "new": list(session.new),
        "is_modified": session.is_modified(instance),
        "session key": state.session_id == session.hash_key,
    }


def attributes(instance: Any) -> dict[str, Any]:
    """Return every attribute, loaded when it is asked for; errors are values too."""
    found = {}
    for attr in sa.inspect(instance).mapper.all_orm_descriptors:
        name = getattr(attr, "key", None) or attr.__name__
        try:
            value = getattr(instance, name)
        except sa.exc.InvalidRequestError as error:
            value = type(error)
        found[name] = "query" if hasattr(value, "select") or isinstance(value, orm.Query) else shown(value, 1)
    return found


@pytest.fixture(params=MAPPINGS, ids=lambda mapping: mapping.__name__)
def case(request: pytest.FixtureRequest, base: Any) -> Case:
    made = request.param(base)
    base.registry.configure()
    return made


@pytest.fixture
def pair(case: Case, base: Any, sqlite_world_of: Any) -> Any:
    """A world, an instance that was loaded, and one that was hydrated: each alone in an open session."""
    world: World = sqlite_world_of(base)
    world.add(*case.rows())
    with orm.Session(world.engine) as plain_session, world.session() as session:
        loaded = plain_session.get(case.entity, case.ident)
        with world.counting() as seen:
            hydrated = world.cache.get(session, case.entity, case.ident)
        assert case.eager or seen == []
        assert world.cache.stats().hits >= 1
        yield world, loaded, hydrated


def test_a_hydrated_instance_is_observed_as_a_loaded_one(case: Case, pair: Any) -> None:
    """Content, state flags, history and membership are the same at once after the load."""
    _, loaded, hydrated = pair
    assert observed(hydrated, case.missing) == observed(loaded, case.missing)
    assert type(hydrated) is type(loaded)


def test_nothing_of_ours_is_in_its_dict(case: Case, pair: Any) -> None:
    """`vars()` lists the names of a loaded instance, but for what an entry does not have."""
    _, loaded, hydrated = pair
    assert set(vars(hydrated)) | case.missing == set(vars(loaded))


def test_every_attribute_can_be_loaded_afterwards(case: Case, pair: Any) -> None:
    """Deferred, expired and lazy attributes give what they give on a loaded instance."""
    _, loaded, hydrated = pair
    assert attributes(hydrated) == attributes(loaded)
    assert observed(hydrated, frozenset()) == observed(loaded, frozenset())


def test_both_ways_of_the_cache_give_the_same(case: Case, pair: Any) -> None:
    """`session.get` with `from_cache()` and the instance of a miss are observed as a loaded one, too."""
    world, loaded, _ = pair
    expected = observed(loaded, case.missing)
    with world.session() as session:
        assert observed(session.get(case.entity, case.ident, options=[wt.from_cache()]), case.missing) == expected
    world.cache.evict_all()
    with world.session() as session:
        assert observed(world.cache.get(session, case.entity, case.ident), case.missing) == expected


def test_a_change_writes_the_same_update(case: Case, pair: Any) -> None:
    """After a modification both flush the same minimal UPDATE."""
    world, loaded, hydrated = pair
    written = []
    for instance in (loaded, hydrated):
        session = orm.object_session(instance)
        setattr(instance, *case.change)
        assert session.is_modified(instance)
        history = sa.inspect(instance).attrs[case.change[0]].history
        with world.counting() as seen:
            session.flush()
        written.append((history, seen))
        session.rollback()
    assert written[0] == written[1]


def test_a_refresh_gives_the_same(case: Case, pair: Any) -> None:
    """`session.refresh` works and leaves the same behind."""
    _, loaded, hydrated = pair
    for instance in (loaded, hydrated):
        orm.object_session(instance).refresh(instance)
    assert observed(hydrated, frozenset()) == observed(loaded, frozenset())


def test_expired_it_reads_the_database(case: Case, pair: Any) -> None:
    """After `expire` the attributes come from the database, as a loaded instance's do."""
    world, loaded, hydrated = pair
    for instance in (loaded, hydrated):
        orm.object_session(instance).expire(instance)
    with world.counting() as seen:
        assert attributes(hydrated) == attributes(loaded)
    assert len(seen) >= 2


def test_merged_it_gives_the_same(case: Case, pair: Any) -> None:
    """`merge(load=False)` and `merge()` into another session give equal instances."""
    world, loaded, hydrated = pair
    for load in (False, True):
        with orm.Session(world.engine) as one, orm.Session(world.engine) as two:
            ours, theirs = one.merge(hydrated, load=load), two.merge(loaded, load=load)
            assert observed(ours, case.missing) == observed(theirs, case.missing)


def test_detached_and_attached_again_it_is_the_same(case: Case, pair: Any) -> None:
    """`expunge` and `add` leave the same behind."""
    _, loaded, hydrated = pair
    for instance in (loaded, hydrated):
        session = orm.object_session(instance)
        session.expunge(instance)
        assert sa.inspect(instance).detached
        assert sa.inspect(instance).session is None
        session.add(instance)
    assert observed(hydrated, case.missing) == observed(loaded, case.missing)


def test_deleted_it_writes_the_same(case: Case, pair: Any) -> None:
    """`session.delete` of both executes the same statements."""
    world, loaded, hydrated = pair
    written = []
    for instance in (loaded, hydrated):
        session = orm.object_session(instance)
        sa.inspect(instance).attrs  # noqa: B018 - as an application may
        try:
            with world.counting() as seen:
                session.delete(instance)
                session.flush()
        except sa.exc.InvalidRequestError as error:  # a collection that is never loaded
            written.append(type(error))
        else:
            written.append(sorted(sql for sql in seen if sql.startswith(("DELETE", "UPDATE"))))
        session.rollback()
    assert written[0] == written[1]


def test_it_does_not_keep_itself_alive(case: Case, pair: Any) -> None:
    """The identity map holds a clean instance weakly."""
    world, _, _ = pair
    with world.session() as session:
        world.cache.get(session, case.entity, case.ident)
        session.get(case.entity, case.ident, options=[wt.from_cache()])
        assert case.eager or len(session.identity_map) == 0


# --- pickling needs classes that can be imported --------------------------------------------------------------------


class PickledBase(orm.DeclarativeBase):
    pass


class Pickled(PickledBase):
    __tablename__ = "pickled"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str]
    settings: orm.Mapped[dict[str, Any]] = orm.mapped_column(MutableDict.as_mutable(sa.JSON))
    photo: orm.Mapped[str | None] = orm.mapped_column(deferred=True)


def test_it_can_be_pickled(sqlite_world_of: Any) -> None:
    """A pickled and restored instance works in another session as a loaded one does."""
    world = sqlite_world_of(PickledBase, models=[Pickled])
    world.add(Pickled(id=1, name="a", settings={"k": 1}, photo="p"))
    results = []
    with orm.Session(world.engine) as plain_session, world.session() as session:
        for owner, instance in (
            (plain_session, plain_session.get(Pickled, 1)),
            (session, world.cache.get(session, Pickled, 1)),
        ):
            restored = pickle.loads(pickle.dumps(instance))
            assert sa.inspect(restored).detached
            owner.expunge_all()
            owner.add(restored)
            restored.settings["k"] = 2
            seen = observed(restored, frozenset())
            owner.rollback()
            results.append((seen, restored.photo))
    assert results[0] == results[1]


def test_a_pickled_instance_is_not_larger(sqlite_world_of: Any) -> None:
    """Nothing of the library travels in a pickle."""
    world = sqlite_world_of(PickledBase, models=[Pickled])
    world.add(Pickled(id=1, name="a", settings={"k": 1}, photo="p"))
    with world.session() as session:
        assert b"sa_writethrough" not in pickle.dumps(world.cache.get(session, Pickled, 1))


# --- events ---------------------------------------------------------------------------------------------------------


def test_the_load_event_fires_once_with_a_session(user: Any, world: World) -> None:
    """A `load` listener is called once, when the columns are there, with a context that has the session."""
    calls: list[Any] = []
    sa.event.listen(user, "load", lambda target, context: calls.append((target.name, context.session)))
    with world.session() as session, world.no_sql():
        kept = world.cache.get(session, user, 1)
        assert calls == [("ann", session)]
        world.cache.get(session, user, 1)
        session.get(user, 1, options=[wt.from_cache()])
        assert len(calls) == 1
        assert kept in session


def test_a_load_listener_on_a_superclass_is_called(base: Any, user: Any, world: World) -> None:
    """A listener with `propagate=True` on the declarative base is heard."""
    calls: list[Any] = []

    def listener(target: Any, _context: Any) -> None:
        calls.append(target.id)

    sa.event.listen(base, "load", listener, propagate=True)
    with world.session() as session:
        world.cache.get(session, user, 1)
    assert calls == [1]


def test_a_load_listener_that_changes_the_instance_leaves_it_clean(user: Any, world: World) -> None:
    """What a `load` listener sets is part of the load, as with SQLAlchemy's own loader."""
    sa.event.listen(user, "load", lambda target, context: setattr(target, "name", target.name.upper()))
    seen = []
    for session, get in (
        (orm.Session(world.engine), lambda session: session.get(user, 1)),
        (world.session(), lambda session: world.cache.get(session, user, 1)),
    ):
        with session:
            instance = get(session)
            seen.append((instance.name, sa.inspect(instance).modified, list(session.dirty)))
    assert seen == [("ANN", False, [])] * 2


def test_loaded_as_persistent_fires_once(user: Any, world: World) -> None:
    """The session's `loaded_as_persistent` event is fired for a hit."""
    calls: list[Any] = []
    with world.session() as session:
        sa.event.listen(session, "loaded_as_persistent", lambda owner, instance: calls.append((owner, instance)))
        instance = world.cache.get(session, user, 1)
        assert calls == [(session, instance)]


def test_a_refresh_event_does_not_fire_for_a_hit(user: Any, world: World) -> None:
    """A hit is a load, not a refresh."""
    calls: list[Any] = []
    sa.event.listen(user, "refresh", lambda *arguments: calls.append(arguments))
    with world.session() as session:
        world.cache.get(session, user, 1)
    assert calls == []


def test_a_mutable_column_is_tracked(base: Any, sqlite_world_of: Any) -> None:
    """A change inside a MutableDict of a hydrated instance is flushed, and two sessions share nothing."""
    case = mutables(base)
    world = sqlite_world_of(base)
    world.add(*case.rows())
    with world.session() as one, world.session() as two:
        first, second = world.cache.get(one, case.entity, 1), world.cache.get(two, case.entity, 1)
        first.settings["k"] = 2
        assert first in one.dirty
        assert second.settings == {"k": 1}
        one.commit()
    world.cache.drain()
    assert world.read(case.entity, 1).settings == {"k": 2}


def test_plain_json_is_not_shared_between_sessions(base: Any, sqlite_world_of: Any) -> None:
    """Changing a plain JSON value in place reaches no other reader."""
    case = twelve_columns(base)
    world = sqlite_world_of(base)
    world.add(*case.rows())
    with world.session() as one, world.session() as two:
        world.cache.get(one, case.entity, 1).extra["a"].append("poison")
        assert world.cache.get(two, case.entity, 1).extra == {"a": [1, {"b": None}]}


def test_a_query_expression_with_a_default_is_refused(base: Any, sqlite_world_of: Any) -> None:
    """Once a row is loaded, SQLAlchemy cannot load it any more; what to do instead is said."""

    class Expressive(base):
        __tablename__ = "expressive"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        given: orm.Mapped[int | None] = orm.query_expression(sa.literal(5))

    with pytest.raises(wt.ConfigurationError, match="column_property"):
        sqlite_world_of(base)
