"""Lookups by composite keys, and by keys that are no integers."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import uuid
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql
from sqlalchemy.pool import NullPool

import sa_writethrough as wt
from tests.reading.conftest import World


@pytest.fixture
def pair(base: Any) -> Any:
    class Pair(base):
        __tablename__ = "pair"
        __writethrough__ = True
        a: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        b: orm.Mapped[str] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str]

    return Pair


@pytest.fixture
def pairs(pair: Any, base: Any, world_of: Any) -> World:
    world = world_of(base)
    world.add(pair(a=1, b="x", name="1x"), pair(a=1, b="y", name="1y"), pair(a=2, b="x", name="2x"))
    return world


LOOKUPS = {
    "two criteria": lambda p: sa.select(p).where(p.a == 1, p.b == "y"),
    "two wheres": lambda p: sa.select(p).where(p.b == "y").where(p.a == 1),
    "and_": lambda p: sa.select(p).where(sa.and_(p.a == 1, p.b == "y")),
    "nested and_": lambda p: sa.select(p).where(sa.and_(sa.and_(p.b == "y"), p.a == 1)),
    "filter_by": lambda p: sa.select(p).filter_by(b="y", a=1),
    "tuple in": lambda p: sa.select(p).where(sa.tuple_(p.a, p.b).in_([(1, "y")])),
    "tuple in, turned": lambda p: sa.select(p).where(sa.tuple_(p.b, p.a).in_([("y", 1)])),
}


@pytest.mark.parametrize("make", LOOKUPS.values(), ids=LOOKUPS)
def test_a_composite_key_is_served(pair: Any, pairs: World, make: Any) -> None:
    """Each way to name a whole composite key is a lookup; a hit needs no SQL and a miss is right."""
    with pairs.session() as session, pairs.no_sql():
        assert session.scalars(make(pair).options(wt.from_cache())).one().name == "1y"
    pairs.cache.evict_all()
    with pairs.session() as session:
        assert session.scalars(make(pair).options(wt.from_cache())).one().name == "1y"
    assert pairs.is_cached(pair, (1, "y"))


@pytest.mark.parametrize("ident", [(1, "y"), {"b": "y", "a": 1}])
def test_get_takes_tuples_and_dicts(pair: Any, pairs: World, ident: Any) -> None:
    """A composite identity is a tuple in the mapper's order, or a dict."""
    with pairs.session() as session, pairs.no_sql():
        assert pairs.cache.get(session, pair, ident).name == "1y"
        assert session.get(pair, ident, options=[wt.from_cache()]).name == "1y"


def test_many_composite_keys(pair: Any, pairs: World) -> None:
    """Hits, misses, duplicates and what does not exist, by get_many and by tuple_().in_."""
    pairs.cache.evict(pair, (1, "y"))
    wanted = [(2, "x"), (1, "y"), (9, "z"), (2, "x"), (1, "x")]
    with pairs.session() as session, pairs.counting() as seen:
        found = pairs.cache.get_many(session, pair, wanted)
        assert [getattr(p, "name", None) for p in found] == ["2x", "1y", None, "2x", "1x"]
    assert len(seen) == 1
    with pairs.session() as session:
        statement = sa.select(pair).where(sa.tuple_(pair.a, pair.b).in_(wanted)).options(wt.from_cache())
        assert sorted(p.name for p in session.scalars(statement)) == ["1x", "1y", "2x"]


@pytest.mark.parametrize(
    "make",
    [
        lambda p: sa.select(p).where(p.a == 1),
        lambda p: sa.select(p).where(p.a.in_([1])),
        lambda p: sa.select(p).where(p.a == 1, p.b.in_(["x", "y"])),
        lambda p: sa.select(p).where(sa.tuple_(p.a, p.name).in_([(1, "1x"), (1, "1y")])),
        lambda p: sa.select(p).where(sa.tuple_(p.a, p.b, p.name).in_([(1, "x", "1x"), (1, "y", "1y")])),
    ],
)
def test_a_part_of_a_key_is_no_lookup(pair: Any, pairs: World, make: Any) -> None:
    """What does not name the whole key goes to the database."""
    with pairs.session() as session, pairs.counting() as seen:
        assert {p.name for p in session.scalars(make(pair).options(wt.from_cache()))} == {"1x", "1y"}
    assert len(seen) == 1


def test_a_partly_null_key_is_no_lookup(base: Any, sqlite_world_of: Any) -> None:
    """Rows with a NULL in their key, which SQLite allows, are read from the database."""
    table = sa.Table(
        "loose", base.metadata, sa.Column("a", sa.Integer), sa.Column("b", sa.Integer), sa.Column("name", sa.String(9))
    )

    class Loose(base):
        __table__ = table
        __writethrough__ = True
        __mapper_args__ = {"primary_key": [table.c.a, table.c.b]}  # noqa: RUF012 - SQLAlchemy's idiom

    world = sqlite_world_of(base)
    world.outside_sql("INSERT INTO loose VALUES (1, NULL, 'half'), (1, 2, 'whole')")
    for _ in range(2):
        with orm.Session(world.engine) as plain, world.session() as session:
            expected = plain.get(Loose, (1, None))
            found = session.get(Loose, (1, None), options=[wt.from_cache()])
            assert (found and found.name) == (expected and expected.name)
            statement = sa.select(Loose).where(Loose.a == 1, Loose.b == None)  # noqa: E711 - SQL
            assert [x.name for x in session.scalars(statement.options(wt.from_cache()))] == ["half"]
        assert world.read(Loose, (1, 2)).name == "whole"


class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"


KEYS = {
    "string": (sa.String(80), "abc"),
    "string with spaces": (sa.String(80), " a b\t\n"),
    "unicode": (sa.String(80), "žluťoučký \U0001f40e"),
    "control characters": (sa.String(80), "\x01\x7f\r\n"),
    "long string": (sa.String(800), "x" * 700),
    "empty string": (sa.String(80), ""),
    "percent": (sa.String(80), "%2F,:#"),
    "uuid": (sa.Uuid(), uuid.UUID(int=2**100 + 7)),
    "date": (sa.Date(), dt.date(2024, 2, 29)),
    "datetime": (sa.DateTime(), dt.datetime(2024, 2, 29, 1, 2, 3, 456)),
    "numeric": (sa.Numeric(12, 3, asdecimal=True), decimal.Decimal("12.500")),
    "bytes": (sa.LargeBinary(), b"\0\xff"),
    "enum": (sa.Enum(Colour), Colour.BLUE),
    "big": (sa.BigInteger(), 2**62),
    "negative": (sa.Integer(), -5),
}


@pytest.mark.filterwarnings("ignore:Dialect sqlite:sqlalchemy.exc.SAWarning")
@pytest.mark.parametrize(("type_", "value"), KEYS.values(), ids=KEYS)
def test_keys_of_every_kind_are_served(base: Any, world_of: Any, type_: Any, value: Any) -> None:
    """A row is published, served without SQL, filled after a miss and evicted, whatever its key's type."""

    class Keyed(base):
        __tablename__ = "keyed"
        __writethrough__ = True
        id: orm.Mapped[Any] = orm.mapped_column(type_, primary_key=True, autoincrement=False)
        name: orm.Mapped[str]

    world = world_of(base)
    world.add(Keyed(id=value, name="n"))
    assert world.is_cached(Keyed, value)
    assert world.read(Keyed, value).id == value
    world.cache.evict(Keyed, value)
    assert not world.cache.contains(Keyed, value)
    assert world.read(Keyed, value).name == "n"
    assert world.is_cached(Keyed, value)


def test_a_boolean_key_is_read_from_the_database(base: Any, world_of: Any) -> None:
    """A database may hold True and 1 equal, so a boolean has no one text: the row is right, and is not cached."""

    class Switch(base):
        __tablename__ = "switch"
        __writethrough__ = True
        id: orm.Mapped[bool] = orm.mapped_column(primary_key=True, autoincrement=False)
        name: orm.Mapped[str]

    world = world_of(base)
    world.add(Switch(id=True, name="on"), Switch(id=False, name="off"))
    for value, name in ((True, "on"), (False, "off")):
        assert world.read(Switch, value).name == name
        assert not world.cache.contains(Switch, value)
    with world.factory.begin() as session:
        session.get(Switch, True).name = "new"
    assert world.read(Switch, True).name == "new"


def test_a_float_key_is_refused(base: Any) -> None:
    """A primary key without a stable text cannot be cached, and says so."""

    class Floating(base):
        __tablename__ = "floating"
        __writethrough__ = True
        id: orm.Mapped[float] = orm.mapped_column(primary_key=True)

    with pytest.raises(wt.ConfigurationError, match=r"floating\.id: a primary key of type (Float|Double)"):
        wt.register(orm.sessionmaker())


@pytest.mark.parametrize("asked", ["ab", "ab   ", "AB"])
def test_a_char_key_finds_what_the_database_finds(base: Any, postgres_world_of: Any, asked: str) -> None:
    """PostgreSQL pads CHAR and ignores the blanks in comparisons; hit, miss and eviction agree with it."""

    class Padded(base):
        __tablename__ = "padded"
        __writethrough__ = True
        id: orm.Mapped[str] = orm.mapped_column(sa.CHAR(5), primary_key=True)
        name: orm.Mapped[str]

    world = postgres_world_of(base)
    world.outside_sql("INSERT INTO padded VALUES ('ab', 'n')")
    with orm.Session(world.engine) as plain:
        expected = getattr(plain.get(Padded, asked), "name", None)
    for _ in range(2):
        assert getattr(world.read(Padded, asked), "name", None) == expected
        with world.session() as session:
            assert getattr(world.cache.get(session, Padded, asked), "name", None) == expected
        assert world.read(Padded, "ab   ").name == "n"
    if expected:
        with world.factory.begin() as session:
            session.execute(sa.update(Padded).where(Padded.id == asked).values(name="new"))
        world.cache.drain()
        assert world.read(Padded, "ab   ").name == "new"


@pytest.mark.parametrize("asked", ["Ann", "ann", "ANN", "ann "])
def test_a_nocase_key_finds_what_sqlite_finds(base: Any, sqlite_world_of: Any, asked: str) -> None:
    """Under a collation that ignores case every spelling finds the row, and a writer's spelling reaches its entry."""

    class Nocase(base):
        __tablename__ = "nocase"
        __writethrough__ = True
        id: orm.Mapped[str] = orm.mapped_column(sa.String(20, collation="NOCASE"), primary_key=True)
        name: orm.Mapped[str]

    world = sqlite_world_of(base)
    world.add(Nocase(id="Ann", name="n"))
    with orm.Session(world.engine) as plain:
        expected = getattr(plain.get(Nocase, asked), "name", None)
    for _ in range(2):
        assert getattr(world.read(Nocase, asked), "name", None) == expected
    with world.factory.begin() as session:
        session.execute(sa.update(Nocase).where(Nocase.id == asked).values(name="new"))
    world.cache.drain()
    assert world.read(Nocase, "Ann").name == ("new" if expected else "n")


def test_a_citext_key_finds_what_postgresql_finds(base: Any, postgres_url: str, postgres_world_of: Any) -> None:
    """CITEXT ignores case: each spelling finds the one row, whichever was cached first."""

    class Loose(base):
        __tablename__ = "loose"
        __writethrough__ = True
        id: orm.Mapped[str] = orm.mapped_column(postgresql.CITEXT, primary_key=True)
        name: orm.Mapped[str]

    engine = sa.create_engine(postgres_url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE EXTENSION citext"))
    world = postgres_world_of(base)
    world.add(Loose(id="Ann", name="n"))
    for asked in ("Ann", "ANN", "ann", "bob"):
        with orm.Session(world.engine) as plain:
            expected = getattr(plain.get(Loose, asked), "name", None)
        assert getattr(world.read(Loose, asked), "name", None) == expected
    with world.factory.begin() as session:
        session.execute(sa.update(Loose).where(Loose.id == "aNN").values(name="new"))
    world.cache.drain()
    assert world.read(Loose, "ANN").name == "new"
