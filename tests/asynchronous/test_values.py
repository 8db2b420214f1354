"""Values of asynchronous drivers: what the cache returns is what the driver returns, after an INSERT and an UPDATE."""

from __future__ import annotations

import datetime as dt
import enum
import uuid
from decimal import Decimal

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql

from tests.asynchronous.loops import in_loop


class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"


UTC = dt.timezone.utc
COLUMNS = {
    "small": (sa.SmallInteger, 1),
    "big": (sa.BigInteger, 2**40),
    "numeric": (sa.Numeric(10, 4), Decimal("1.5")),
    "real": (sa.REAL, 0.1),
    "double": (sa.Double, 0.1),
    "text": (sa.Text, "é\u2028"),
    "char": (sa.CHAR(5), "ab"),
    "boolean": (sa.Boolean, True),
    "date": (sa.Date, dt.date(2024, 2, 29)),
    "time": (sa.Time, dt.time(1, 2, 3, 4)),
    "naive": (sa.DateTime, dt.datetime(2024, 1, 1, 1, 2, 3, 456)),
    "aware": (sa.DateTime(timezone=True), dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=2)))),
    "interval": (sa.Interval, dt.timedelta(days=3, seconds=5, microseconds=7)),
    "uuid": (sa.Uuid, uuid.UUID(int=5)),
    "bytes": (sa.LargeBinary, b"\x00\xff"),
    "json": (sa.JSON, {"a": [1, None, 2.5, "x"]}),
    "jsonb": (postgresql.JSONB, {"b": 1, "a": [True]}),
    "array": (postgresql.ARRAY(sa.Integer), [1, 2, None]),
    "texts": (postgresql.ARRAY(sa.Text), ["a", "b"]),
    "inet": (postgresql.INET, "10.0.0.1/8"),
    "cidr": (postgresql.CIDR, "10.0.0.0/8"),
    "colour": (sa.Enum(Colour), Colour.BLUE),
    "span": (postgresql.INT4RANGE, postgresql.Range(1, 5)),
    "moments": (postgresql.TSTZRANGE, postgresql.Range(dt.datetime(2024, 1, 1, tzinfo=UTC), None)),
    "spans": (postgresql.INT4MULTIRANGE, [postgresql.Range(1, 5), postgresql.Range(7, 8)]),
}


def kind_of(value):
    """Return the type; asyncpg has a UUID of its own, which is equal to Python's and looks like it."""
    return uuid.UUID if isinstance(value, uuid.UUID) else type(value)


@in_loop
async def test_values_of_every_kind(open_postgres_world, base):
    """Equal, of the same type and with the same representation."""
    columns = {name: sa.Column(type_, nullable=True) for name, (type_, _) in COLUMNS.items()}

    class Thing(base):
        __tablename__ = "things"
        __writethrough__ = True
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        turn: orm.Mapped[int]
        locals().update(columns)

    async def values(get):
        async with world.session() as session:
            found = await get(session)
            return {name: (kind_of(getattr(found, name)), repr(getattr(found, name))) for name in COLUMNS}

    async with open_postgres_world() as world:
        await world.add(Thing(id=1, turn=0, **{name: value for name, (_, value) in COLUMNS.items()}))
        for turn in range(2):
            stored = await values(lambda session: session.get(Thing, 1))
            with world.no_sql():
                assert await values(lambda session: world.cache.get(session, Thing, 1)) == stored
            async with world.factory.begin() as session:
                (await session.get(Thing, 1)).turn = turn + 1
            await world.cache.drain()
        await world.cache.evict(Thing, 1)
        assert await values(lambda session: world.cache.get(session, Thing, 1)) == stored
        await world.cache.drain()
        with world.no_sql():
            assert await values(lambda session: world.cache.get(session, Thing, 1)) == stored
