"""Values and keys at the ends of what databases take: served as a SELECT returns them, or read from the database."""

from __future__ import annotations

import datetime as dt
import enum
import math
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext.horizontal_shard import ShardedSession, set_shard_id
from sqlalchemy.pool import NullPool

import sa_writethrough as wt
from sa_writethrough.stores.memory import MemoryStore
from tests.reading.conftest import World

UTC = dt.timezone.utc
EAST, WEST = dt.timezone(dt.timedelta(hours=14)), dt.timezone(-dt.timedelta(hours=12))


@pytest.fixture
def extreme(base: Any) -> Any:
    """A model with a nullable column of each kind."""

    class Extreme(base):
        __tablename__ = "extreme"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        text: orm.Mapped[str | None]
        raw: orm.Mapped[bytes | None]
        number: orm.Mapped[int | None] = orm.mapped_column(sa.BigInteger)
        real: orm.Mapped[float | None] = orm.mapped_column(sa.Double)
        exact: orm.Mapped[Decimal | None] = orm.mapped_column(sa.Numeric(30, 10))
        day: orm.Mapped[dt.date | None]
        clock: orm.Mapped[dt.time | None]
        moment: orm.Mapped[dt.datetime | None]
        zoned: orm.Mapped[dt.datetime | None] = orm.mapped_column(sa.DateTime(timezone=True))
        span: orm.Mapped[dt.timedelta | None]
        body: orm.Mapped[Any] = orm.mapped_column(sa.JSON, nullable=True)

    return Extreme


VALUES = [
    ("text", ""),
    ("text", " \t\r\n\x01\x7f "),
    ("text", "\N{LATIN SMALL LETTER E}\N{COMBINING ACUTE ACCENT}\N{PILE OF POO}\U0010ffff"),
    ("raw", b""),
    ("raw", bytes(range(256))),
    ("number", 2**63 - 1),
    ("number", -(2**63)),
    ("real", math.nan),
    ("real", math.inf),
    ("real", -math.inf),
    ("real", -0.0),
    ("real", 5e-324),
    ("real", 1.7976931348623157e308),
    ("exact", Decimal("-99999999999999999999.9999999999")),
    ("exact", Decimal("0E-10")),
    ("exact", Decimal("NaN")),
    ("day", dt.date.min),
    ("day", dt.date.max),
    ("clock", dt.time.min),
    ("clock", dt.time.max),
    ("moment", dt.datetime.min),
    ("moment", dt.datetime.max),
    ("zoned", dt.datetime(1, 1, 2, tzinfo=EAST)),
    ("zoned", dt.datetime(9999, 12, 30, 23, 59, 59, 999999, tzinfo=WEST)),
    ("zoned", dt.datetime(2024, 3, 31, 1, 30, tzinfo=UTC)),
    ("span", dt.timedelta(days=-1, microseconds=1)),
    ("span", dt.timedelta(days=9999, seconds=86399)),
    ("body", None),
    ("body", [None, True, 0.1, 2**70, {"": ""}]),
    ("body", {"b": 1, "a": [[]]}),
]


def _seen(instance: Any) -> dict[str, str]:
    """Return every value in a form that tells types, NaN, zeros and time zones apart."""
    return {attribute.key: repr(getattr(instance, attribute.key)) for attribute in sa.inspect(instance).attrs}


def _selected(world: World, entity: Any, ident: Any) -> dict[str, str]:
    with orm.Session(world.outside) as session:
        return _seen(session.get_one(entity, ident))


# SQLAlchemy 2.0 warns where a Decimal goes through a float, as SQLite has no other numbers.
@pytest.mark.filterwarnings("ignore:Dialect sqlite:sqlalchemy.exc.SAWarning")
@pytest.mark.parametrize(("name", "value"), VALUES, ids=[f"{name}-{number}" for number, (name, _) in enumerate(VALUES)])
def test_values_at_the_ends_of_their_ranges(
    extreme: Any, base: Any, world_of: Any, request: Any, name: str, value: Any
) -> None:
    """Inserted, updated, filled: the cache has what a SELECT returns, in value, type and representation."""
    sqlite = "sqlite" in request.node.callspec.id
    if sqlite and (name == "zoned" or (isinstance(value, Decimal) and not value.is_finite())):
        pytest.skip("SQLite has no time zones and no such number")
    world = world_of(base)
    world.add(extreme(id=1, **{name: value}), extreme(id=2))
    with world.factory.begin() as session:
        setattr(session.get(extreme, 2), name, value)
    world.cache.drain()
    for ident in (1, 2):
        expected = _selected(world, extreme, ident)
        assert world.is_cached(extreme, ident)
        assert _seen(world.read(extreme, ident)) == expected
        world.cache.evict(extreme, ident)
        assert _seen(world.read(extreme, ident)) == expected
        assert world.is_cached(extreme, ident)
        assert _seen(world.read(extreme, ident)) == expected


@pytest.mark.parametrize("value", ["'infinity'", "'-infinity'", "'0044-03-15 BC'", "'294276-01-01'"])
def test_moments_that_python_has_not(extreme: Any, base: Any, postgres_world_of: Any, value: str) -> None:
    """What the driver cannot return raises as without the cache, each time, and nothing is filled."""
    world = postgres_world_of(base)
    world.outside_sql(f"INSERT INTO extreme (id, moment) VALUES (1, {value})")
    for _ in range(2):
        with pytest.raises(sa.exc.DataError), orm.Session(world.outside) as session:
            session.get(extreme, 1)
        with pytest.raises(sa.exc.DataError), world.session() as session:
            world.cache.get(session, extreme, 1)
    world.outside_sql("UPDATE extreme SET moment = '2024-01-01' WHERE id = 1")
    assert world.read(extreme, 1).moment == dt.datetime(2024, 1, 1)


KEYS = [
    *(
        "",
        " ",
        "a b",
        "tab\tand\nnewline\r\n",
        "\x01\x1b[0m\x7f",
        "set x 0 0 1\r\nx\r\n",
        ":",
        "a:b",
        "%",
        "\\",
        "'\"",
        "é",
    ),
    *("e\N{COMBINING ACUTE ACCENT}", "\N{PILE OF POO}", "x" * 251, "\N{SNOWMAN}" * 500),
]


def test_any_text_is_a_primary_key(base: Any, world_of: Any) -> None:
    """Spaces, control characters, memcached's own commands, texts longer than its keys: each is a row of its own."""

    class Page(base):
        __tablename__ = "page"
        __writethrough__ = True
        path: orm.Mapped[str] = orm.mapped_column(sa.String(600), primary_key=True)
        place: orm.Mapped[int]

    world = world_of(base)
    world.add(*(Page(path=path, place=place) for place, path in enumerate(KEYS)))
    for place, path in enumerate(KEYS):
        assert world.is_cached(Page, path)
        assert world.read(Page, path).place == place
    with world.session() as session, world.no_sql():
        assert [page.place for page in world.cache.get_many(session, Page, KEYS)] == list(range(len(KEYS)))
    for path in KEYS[::2]:
        world.cache.evict(Page, path)
    assert [world.is_cached(Page, path) for path in KEYS] == [place % 2 == 1 for place in range(len(KEYS))]
    assert [world.read(Page, path).place for path in KEYS] == list(range(len(KEYS)))


@pytest.mark.parametrize("way", ["publish", "fill"])
def test_a_row_of_more_than_a_mebibyte(user: Any, base: Any, world_of: Any, request: Any, way: str) -> None:
    """Memcached takes no such value: the row comes from the database, the right one, until it is smaller again."""
    world = world_of(base)
    world.add(user(id=1, name="small"))
    large = "\N{SNOWMAN}" * 400_000
    if way == "publish":
        with world.factory.begin() as session:
            session.get(user, 1).name = large
    else:
        world.outside_sql("UPDATE users SET name = :name", name=large)
        world.cache.evict_all()
    for _ in range(2):
        assert world.read(user, 1).name == large
    assert world.is_cached(user, 1) is ("sqlite" in request.node.callspec.id)
    with world.factory.begin() as session:
        session.get(user, 1).name = "small again"
    assert world.is_cached(user, 1)
    assert world.read(user, 1).name == "small again"


def test_enum_members_that_are_renamed(sqlite_url: str) -> None:
    """Two versions of an application: neither reads the member's name that the other one cached."""
    store = MemoryStore()
    engine = sa.create_engine(sqlite_url, poolclass=NullPool)

    def version(members: list[str]) -> tuple[Any, Any, wt.WriteThroughCache]:
        class Base(orm.DeclarativeBase):
            pass

        class Car(Base):
            __tablename__ = "car"
            __writethrough__ = True
            id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
            colour: orm.Mapped[Any] = orm.mapped_column(
                sa.Enum(enum.Enum("Colour", members), native_enum=False, length=20)
            )

        Base.metadata.create_all(engine)
        factory = orm.sessionmaker(engine)
        return Car, factory, wt.register(factory, store, models=[Car])

    def colours(car: Any, factory: Any, cache: wt.WriteThroughCache) -> list[str]:
        names = []
        for _ in range(2):
            with factory() as session:
                names.append(cache.get(session, car, 1).colour.name)
        return names

    old, new = version(["RED", "GREEN"]), version(["CRIMSON", "GREEN"])
    with old[1].begin() as session:
        session.add(old[0](id=1, colour="RED"))
    assert colours(*old) == ["RED", "RED"]
    with engine.begin() as connection:  # the migration, of which nobody tells the cache
        connection.execute(sa.text("UPDATE car SET colour = 'CRIMSON'"))
    assert colours(*new) == ["CRIMSON", "CRIMSON"]
    with new[1].begin() as session:
        session.get(new[0], 1).colour = "GREEN"
    assert colours(*old) == colours(*new) == ["GREEN", "GREEN"]
    for _, _, cache in (old, new):
        cache.unregister()


def test_an_identity_that_comes_to_be(user: Any, world: World) -> None:
    """That a row does not exist is not remembered: inserted by another session or program, it is found."""
    for ident, insert in (
        (7, lambda: world.add(user(id=7, name="new"))),
        (8, lambda: world.outside_sql("INSERT INTO users (id, name) VALUES (8, 'new')")),
    ):
        assert world.read(user, ident) is None
        insert()
        assert world.read(user, ident).name == "new"
        assert world.is_cached(user, ident)


@pytest.mark.parametrize("store", ["one", "each"])
def test_one_key_in_two_shards(user: Any, base: Any, tmp_path: Any, store: str) -> None:
    """Horizontal sharding: the same primary key under two identity tokens is two rows, read and written apart."""
    engines = {name: sa.create_engine(f"sqlite:///{tmp_path}/{name}.db", poolclass=NullPool) for name in ("a", "b")}
    for name, engine in engines.items():
        base.metadata.create_all(engine)
        with engine.begin() as connection:
            connection.execute(sa.insert(user.__table__).values(id=1, name=name))
    factory = orm.sessionmaker(
        class_=ShardedSession,
        shards=engines,
        shard_chooser=lambda *_, **__: "a",
        identity_chooser=lambda *_, identity_token=None, **__: [identity_token] if identity_token else ["a", "b"],
        execute_chooser=lambda _: ["a", "b"],
    )
    cache = wt.register(factory, MemoryStore() if store == "one" else "memory://")

    def names() -> list[list[str]]:
        found = []
        for shard in ("a", "b"):
            with factory() as session:
                one = session.get(user, 1, options=[wt.from_cache()], identity_token=shard)
                found.append([one.name])
            with factory() as session:
                lookup = sa.select(user).where(user.id == 1).options(wt.from_cache(), set_shard_id(shard))
                found[-1].append(session.scalars(lookup).one().name)
        return found

    try:
        assert names() == names() == [["a", "a"], ["b", "b"]]
        with factory() as session:
            session.get(user, 1, identity_token="b").name = "new"
            session.commit()
        cache.drain()
        assert names() == names() == [["a", "a"], ["new", "new"]]
        assert {name: cache.contains(user, 1, bind=engine) for name, engine in engines.items()} == {
            "a": False,
            "b": True,
        }
    finally:
        cache.unregister()
