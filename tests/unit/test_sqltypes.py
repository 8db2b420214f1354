"""What SQLAlchemy's types say of a column: forms, loaders, refusals, and which values are exact."""

from __future__ import annotations

import datetime as dt
import enum
import ipaddress
import subprocess
import sys
import uuid
import zoneinfo
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import types
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.dialects.postgresql import ranges

from sa_writethrough import exactness, wire
from sa_writethrough.codec import RowCodec, fingerprint_of
from sa_writethrough.exceptions import CodecError, ConfigurationError
from sa_writethrough.sqltypes import CachedColumn, column_of

PG = sa.create_engine("postgresql+psycopg://").dialect
LITE = sa.create_engine("sqlite://").dialect
MYSQL = mysql.dialect()

NAIVE = dt.datetime(2024, 5, 6, 7, 8, 9, 10)
AWARE = NAIVE.replace(tzinfo=dt.timezone.utc)


def cached(type_: Any, dialect: Any = PG) -> CachedColumn:
    """Return the description of a column `stock.value` of *type_*."""
    table = sa.Table("stock", sa.MetaData(), sa.Column("id", sa.Integer), sa.Column("value", type_))
    return column_of(table.c.value, dialect)


def stay(column: CachedColumn, value: Any) -> Any:
    """Return *value* after a stay in the cache."""
    codec = RowCodec([column.field], fingerprint_of([column.fingerprint]))
    decoded = codec.decode(codec.encode([value]))
    assert decoded is not None
    return decoded[0]


# --- refusals ---------------------------------------------------------------------------------------------------------


class Geometry(types.UserDefinedType[Any]):
    cache_ok = True


class Secret(types.TypeDecorator[str]):
    impl = sa.LargeBinary
    cache_ok = True

    def column_expression(self, column):
        return sa.func.decrypt(column)


class OverSecret(types.TypeDecorator[str]):
    impl = Secret
    cache_ok = True


class Opaque(types.TypeDecorator[str]):
    impl = sa.Text
    cache_ok = True

    def result_processor(self, dialect, coltype):
        return str.upper


class OwnRange(ranges.AbstractSingleRange[Any]):
    __visit_name__ = "FLOATRANGE"


@pytest.mark.parametrize(
    ("type_", "reason"),
    [
        (types.PickleType(), "must never be unpickled"),
        (types.NullType(), "reflection does not know"),
        (Geometry(), "nothing is known of its values"),
        (Secret(), "column_expression"),
        (OverSecret(), "column_expression"),
        (Opaque(), "result_processor"),
        (OwnRange(), "nothing is known of its bounds"),
        (postgresql.ARRAY(Geometry()), "nothing is known of its values"),
        (postgresql.ARRAY(types.PickleType()), "must never be unpickled"),
        (postgresql.ARRAY(types.JSON(), as_tuple=True), "as_tuple"),
        (postgresql.DOMAIN("places", Geometry()), "a domain over"),
    ],
    ids=repr,
)
def test_a_type_that_cannot_be_cached_is_refused_at_registration(type_: Any, reason: str) -> None:
    """The error names the column, the type, the reason and both remedies."""
    with pytest.raises(ConfigurationError) as caught:
        cached(type_)
    message = str(caught.value)
    assert message.startswith(f"stock.value has the type {type_!r}: ")
    assert reason in message
    assert 'CachePolicy(exclude=["value"])' in message
    assert "TypeDecorator over a type that can be cached" in message


@pytest.mark.skipif(not hasattr(sqlite, "JSONB"), reason="new in SQLAlchemy 2.1")
def test_sqlites_jsonb_is_refused() -> None:
    """Its values are read through the SQL function json()."""
    with pytest.raises(ConfigurationError, match="column_expression"):
        cached(sqlite.JSONB(), LITE)


# --- decorators -------------------------------------------------------------------------------------------------------


class Doubled(types.TypeDecorator[int]):
    impl = sa.Integer
    cache_ok = True

    def process_result_value(self, value, dialect):
        return -1 if value is None else value * 2


class Labelled(types.TypeDecorator[str]):
    impl = Doubled
    cache_ok = True

    def process_result_value(self, value, dialect):
        return f"{dialect.name} {value}"


class PerDialect(types.TypeDecorator[Any]):
    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect):
        return dialect.type_descriptor(postgresql.JSONB() if dialect.name == "postgresql" else sa.Text())

    def process_result_value(self, value, dialect):
        return value


class Bare(types.TypeDecorator[str]):
    impl = sa.String(20)
    cache_ok = True


def test_a_stock_column_is_selected_as_it_is() -> None:
    """Without a decorator the row's value is the attribute's."""
    table = sa.Table("stock", sa.MetaData(), sa.Column("value", sa.Integer))
    column = column_of(table.c.value, PG)
    assert column.expression is table.c.value
    assert column.attribute is None


def test_a_decorator_is_applied_on_hydration() -> None:
    """The row holds what the decorator receives; None goes through it, too."""
    column = cached(Doubled())
    assert isinstance(column.expression.type, types.Integer)
    assert column.attribute is not None
    assert (column.attribute(4), column.attribute(None)) == (8, -1)
    assert column.exact is None


def test_decorators_are_applied_from_the_inside() -> None:
    """A decorator over a decorator sees what that one makes, and the dialect."""
    column = cached(Labelled(), LITE)
    assert isinstance(column.expression.type, types.Integer)
    assert column.attribute is not None
    assert (column.attribute(4), column.attribute(None)) == ("sqlite 8", "sqlite -1")


def test_a_decorator_without_process_result_value_changes_nothing() -> None:
    """Hydration has nothing to do for it; what it sends is still not known to be exact."""
    column = cached(Bare())
    assert isinstance(column.expression.type, types.String)
    assert column.attribute is None
    assert column.exact is None


def test_an_array_of_such_items_changes_nothing_either() -> None:
    """The items travel as those of the type below."""
    column = cached(postgresql.ARRAY(Bare()))
    assert column.attribute is not None
    assert column.attribute(stay(column, ["x", None])) == ["x", None]


def test_a_decorator_may_have_another_type_in_each_dialect() -> None:
    """What `load_dialect_impl` chooses is what travels."""
    assert stay(cached(PerDialect(), PG), {"a": 1}) == {"a": 1}
    assert stay(cached(PerDialect(), LITE), "text") == "text"
    assert cached(PerDialect(), PG).fingerprint != cached(PerDialect(), LITE).fingerprint


def test_the_items_of_an_array_may_be_decorated() -> None:
    """Decorators inside of arrays are applied to each item, in every dimension, and to NULL items."""
    attribute = cached(postgresql.ARRAY(Doubled())).attribute
    assert attribute is not None
    assert attribute([1, None]) == [2, -1]
    assert attribute([[1], [2]]) == [[2], [4]]
    assert attribute([]) == []
    assert attribute(None) is None


def test_a_decorated_array_keeps_its_dimensions_and_its_collection() -> None:
    """`dimensions` and `as_tuple` say what is an item and what a row of items."""
    attribute = cached(postgresql.ARRAY(Doubled(), dimensions=2, as_tuple=True)).attribute
    assert attribute is not None
    assert attribute([[1], None]) == ((2,), None)


def test_a_variant_is_what_is_cached() -> None:
    """`with_variant` gives the column another type in one dialect."""
    type_ = sa.String().with_variant(postgresql.JSONB(), "postgresql")
    assert stay(cached(type_, PG), [1]) == [1]
    with pytest.raises(CodecError):
        stay(cached(type_, LITE), [1])


# --- forms ------------------------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = 1
    GREEN = 2
    CRIMSON = 1  # noqa: PIE796 (an alias)


class Hue(enum.Enum):
    RED = 1


ROME = zoneinfo.ZoneInfo("Europe/Rome")

TRAVELLERS = [
    (sa.Interval(), dt.timedelta.max),
    (sa.Interval(), dt.timedelta.min),
    (sa.DateTime(), dt.datetime.max),
    (sa.DateTime(), AWARE),
    (sa.DateTime(), NAIVE.replace(tzinfo=dt.timezone(dt.timedelta(minutes=-210)))),
    (sa.DateTime(timezone=True), NAIVE),
    (sa.DateTime(timezone=True), AWARE),
    (sa.DateTime(timezone=True), NAIVE.replace(tzinfo=ROME)),
    (sa.DateTime(timezone=True), dt.datetime(2024, 10, 27, 2, 30, tzinfo=ROME, fold=1)),
    (sa.DateTime(timezone=True), dt.datetime(1850, 1, 1, tzinfo=ROME)),
    (sa.DateTime(timezone=True), NAIVE.replace(tzinfo=dt.timezone(dt.timedelta(seconds=-12345)))),
    (sa.Time(), dt.time(1, 2, 3, 4)),
    (sa.Time(), dt.time(1, 2, tzinfo=dt.timezone.utc)),
    (sa.Time(timezone=True), dt.time(1, 2)),
    (sa.Time(timezone=True), dt.time(1, 2, tzinfo=dt.timezone(dt.timedelta(hours=-3)))),
    (sa.Numeric(), Decimal("NaN")),
    (sa.Numeric(), Decimal("-0.00")),
    (sa.Numeric(), Decimal("1E+30")),
    (sa.Numeric(asdecimal=False), 1),
    (sa.Numeric(asdecimal=False), 1.0),
    (sa.Float(), float("inf")),
    (sa.Enum(Colour), Colour.CRIMSON),
    (sa.Enum("one", "two"), "two"),
    (sa.Uuid(), uuid.UUID(int=1)),
    (sa.JSON(), {"b": [], "a": {"c": None}}),
    (sa.JSON(), [1, 1.0, True, "1", -0.0]),
    (sa.JSON(), [10**40, {"é": "\ud800"}]),
    (postgresql.INET(), "10.0.0.1"),
    (postgresql.INET(), ipaddress.ip_interface("10.0.0.1/8")),
    (postgresql.CIDR(), ipaddress.ip_network("fe80::/64")),
    (postgresql.HSTORE(), {"a": None, "b": ""}),
    (postgresql.ARRAY(sa.Integer), []),
    (postgresql.ARRAY(sa.Integer), [[[1, 2], [3, None]]]),
    (postgresql.ARRAY(sa.Numeric(asdecimal=False)), [1, 1.5]),
    (postgresql.ARRAY(sa.Integer, as_tuple=True), ((1, 2), (3, 4))),
    (postgresql.ARRAY(sa.DateTime(timezone=True)), [AWARE, None, NAIVE.replace(tzinfo=ROME)]),
    (postgresql.ARRAY(sa.JSON), [[1], {"a": [2]}]),
    (postgresql.DOMAIN("price", sa.Numeric(10, 2, asdecimal=False)), Decimal("1.50")),
    (postgresql.INT4RANGE(), ranges.Range(1, 5, bounds="(]")),
    (postgresql.INT4RANGE(), ranges.Range(empty=True)),
    (postgresql.TSTZRANGE(), ranges.Range(AWARE, None)),
    (postgresql.DATEMULTIRANGE(), ranges.MultiRange([ranges.Range(dt.date(2024, 1, 1), None)])),
    (postgresql.TSTZMULTIRANGE(), ranges.MultiRange([ranges.Range(AWARE, NAIVE.replace(tzinfo=ROME))])),
]


@pytest.mark.parametrize(("type_", "value"), TRAVELLERS, ids=repr)
def test_a_value_comes_back_in_type_and_representation(type_: Any, value: Any) -> None:
    """Scale, offset, zone, bounds, nesting and order of keys survive a stay in the cache."""
    decoded = stay(cached(type_), value)
    assert type(decoded) is type(value)
    assert repr(decoded) == repr(value)


class Moment(dt.datetime):
    __slots__ = ()


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (sa.DateTime(), Moment(2024, 1, 1)),
        (sa.DateTime(), NAIVE.replace(tzinfo=dt.timezone(dt.timedelta(seconds=1)))),
        (sa.DateTime(timezone=True), dt.date(2024, 1, 1)),
        (sa.DateTime(timezone=True), NAIVE.replace(tzinfo=dt.timezone(dt.timedelta(microseconds=1)))),
        (sa.Time(), "10:00"),
        (sa.Time(timezone=True), dt.time(1, tzinfo=ROME)),
        (sa.Interval(), 5),
        (sa.Enum(Colour), Hue.RED),
        (sa.Enum(Colour), "RED"),
        (sa.Uuid(), "x"),
        (sa.JSON(), (1, 2)),
        (sa.JSON(), {1: 2}),
        (sa.JSON(), [2**64, {"a": Decimal(1)}]),
        (sa.JSON(), [2**64, float("nan")]),
        (postgresql.INET(), 5),
        (postgresql.HSTORE(), {"a": 1}),
        (postgresql.HSTORE(), [("a", "b")]),
        (postgresql.ARRAY(sa.Integer), (1, 2)),
        (postgresql.ARRAY(sa.Integer), [[1], [2, 3]]),
        (postgresql.ARRAY(sa.Integer), [[1], 2]),
        (postgresql.ARRAY(sa.Integer), [1, True]),
        (postgresql.INT4RANGE(), (1, 2)),
        (postgresql.INT4RANGE(), ranges.Range(1.5, 2)),
        (postgresql.INT4MULTIRANGE(), [ranges.Range(1, 2)]),
    ],
    ids=repr,
)
def test_a_value_of_another_type_is_refused(type_: Any, value: Any) -> None:
    """What the column's type does not promise ends in CodecError, and not in the cache as something else."""
    with pytest.raises(CodecError, match=r"^stock\.value: "):
        stay(cached(type_), value)


class ForeignUUID(uuid.UUID):
    """Such as asyncpg's."""


def test_a_drivers_own_uuid_becomes_a_plain_one() -> None:
    """Equal, and with the same representation."""
    assert type(stay(cached(sa.Uuid()), ForeignUUID(int=5))) is uuid.UUID


@pytest.mark.skipif(not hasattr(postgresql, "BitString"), reason="SQLAlchemy 2.0 returns plain text")
def test_a_bit_string_comes_back_as_one() -> None:
    """SQLAlchemy 2.1 has a class for them, and plain text is none."""
    value = postgresql.BitString("0101")
    assert type(stay(cached(postgresql.BIT(4)), value)) is postgresql.BitString
    with pytest.raises(CodecError):
        stay(cached(postgresql.BIT(4)), "0101")


def test_sqlite_does_not_return_floats_as_it_selects_them() -> None:
    """RETURNING gives 1 where SELECT gives 1.0; of everything else it gives the same."""
    assert not cached(sa.Float(), LITE).returnable
    assert cached(sa.Float(), PG).returnable
    assert cached(sa.Numeric(), LITE).returnable


# --- fingerprints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (sa.Integer(), sa.String()),
        (sa.Numeric(), sa.Numeric(asdecimal=False)),
        (sa.DateTime(), sa.DateTime(timezone=True)),
        (sa.Uuid(), sa.Uuid(as_uuid=False)),
        (sa.Enum(Colour), sa.Enum(Hue)),
        (sa.Enum(Colour), sa.Enum("RED", "GREEN")),
        (postgresql.ARRAY(sa.Integer), postgresql.ARRAY(sa.Text)),
        (postgresql.ARRAY(sa.Integer), postgresql.ARRAY(sa.Integer, as_tuple=True)),
        (postgresql.INT4RANGE(), postgresql.DATERANGE()),
        (postgresql.INT4RANGE(), postgresql.INT4MULTIRANGE()),
    ],
    ids=repr,
)
def test_another_meaning_has_another_fingerprint(one: Any, other: Any) -> None:
    """A reader whose model reads the bytes as something else must see a miss."""
    assert cached(one).fingerprint != cached(other).fingerprint


@pytest.mark.parametrize(
    ("one", "other"),
    [(sa.String(10), sa.Text()), (sa.Integer(), sa.BigInteger()), (Doubled(), sa.Integer())],
    ids=repr,
)
def test_the_same_meaning_has_the_same_fingerprint(one: Any, other: Any) -> None:
    """A wider column does not empty the cache."""
    assert cached(one).fingerprint == cached(other).fingerprint


def test_a_fingerprint_is_the_same_in_every_process() -> None:
    """No address and no hash seed gets into it."""
    program = (
        "import enum, sqlalchemy as sa\n"
        "from sqlalchemy.dialects import postgresql as pg\n"
        "from sa_writethrough.sqltypes import column_of\n"
        "E = enum.Enum('E', 'A B')\n"
        "types = [sa.Enum(E, values_callable=lambda e: ['a', 'b']), pg.ARRAY(pg.TSTZRANGE), sa.JSON()]\n"
        "table = sa.Table('t', sa.MetaData(), *(sa.Column(f'c{i}', t) for i, t in enumerate(types)))\n"
        "dialect = sa.create_engine('postgresql+psycopg://').dialect\n"
        "print([column_of(c, dialect).fingerprint for c in table.c])\n"
    )
    command = [sys.executable, "-c", program]
    assert subprocess.check_output(command) == subprocess.check_output(command)


# --- exactness --------------------------------------------------------------------------------------------------------

PLAIN_JSON = {"b": [1, 2.5, None, True, "é"], "a": {"n": 10**30}}

EXACT = [
    (sa.Integer(), 5, True, True),
    (sa.Integer(), True, False, False),
    (sa.Integer(), "5", False, False),
    (sa.Boolean(), True, True, True),
    (sa.Boolean(), 1, False, False),
    (sa.String(), "x ", True, True),
    (sa.String(5), "x", True, True),
    (sa.String(5), "x ", False, True),
    (sa.CHAR(5), "x", False, True),
    (sa.LargeBinary(), b"x", True, True),
    (sa.LargeBinary(), bytearray(b"x"), False, False),
    (sa.Numeric(10, 2), Decimal("1.50"), True, True),
    (sa.Numeric(10, 2), Decimal("1.5"), False, False),
    (sa.Numeric(10, 2), Decimal("-0.00"), False, False),
    (sa.Numeric(10, 2), Decimal("NaN"), False, False),
    (sa.Numeric(10, 2), 1.5, False, False),
    (sa.Numeric(10), Decimal(7), True, False),
    (sa.Numeric(10, -2), Decimal("1E+2"), False, False),
    (sa.Numeric(), Decimal("1.5"), True, False),
    (sa.Numeric(), Decimal("1E+3"), False, False),
    (sa.Numeric(30, 20), Decimal("0.12345678901234567890"), True, False),
    (sa.Numeric(400, 0), Decimal(10**350), True, False),
    (sa.Numeric(10, 2, asdecimal=False), 1.5, False, False),
    (sa.Float(), 1.5, True, True),
    (sa.Float(), -0.0, False, False),
    (sa.Float(), float("nan"), False, False),
    (sa.Float(), 1, False, False),
    (sa.Float(asdecimal=True), Decimal("1.5"), False, False),
    (sa.Float(24), 1.5, False, True),
    (sa.Float(25), 1.5, True, True),
    (sa.REAL(), 1.5, False, True),
    (sa.Double(), 1.5, True, True),
    (sa.Date(), dt.date(2024, 1, 1), True, True),
    (sa.Date(), NAIVE, False, False),
    (sa.DateTime(), NAIVE, True, True),
    (sa.DateTime(), NAIVE.replace(fold=1), False, False),
    (sa.DateTime(), AWARE, False, False),
    (sa.DateTime(timezone=True), AWARE, False, False),
    (postgresql.TIMESTAMP(precision=3), NAIVE, False, True),
    (sqlite.DATETIME(truncate_microseconds=True), NAIVE, True, False),
    (sa.Time(), dt.time(1, 2), True, True),
    (sa.Time(), dt.time(1, 2, tzinfo=dt.timezone.utc), False, False),
    (sa.Interval(), dt.timedelta(1), False, False),
    (sa.Uuid(), uuid.UUID(int=1), True, True),
    (sa.UUID(), uuid.UUID(int=1), True, False),
    (sa.Uuid(as_uuid=False), str(uuid.UUID(int=1)), True, True),
    (sa.Uuid(as_uuid=False), uuid.UUID(int=1).hex, False, False),
    (sa.Uuid(as_uuid=False), "x", False, False),
    (sa.Uuid(as_uuid=False), 5, False, False),
    (sa.Enum(Colour), Colour.RED, True, True),
    (sa.Enum(Colour), "RED", False, False),
    (sa.Enum(Colour, values_callable=lambda e: ["x", "x"]), Colour.GREEN, True, True),
    (sa.Enum(Colour, values_callable=lambda e: ["x", "x"]), Colour.RED, False, False),
    (sa.Enum("one", "two"), "one", True, True),
    (sa.Enum("one", "two"), "three", False, False),
    (sa.JSON(), PLAIN_JSON, True, True),
    (sa.JSON(), (1,), False, False),
    (sa.JSON(), {1: 2}, False, False),
    (sa.JSON(), float("inf"), False, False),
    (sa.JSON(), "\ud800", False, False),
    (sa.JSON(), {"\ud800": 1}, False, False),
    (sa.JSON(), 5, True, False),
    (sa.JSON(), True, True, True),
    (sa.JSON(), sa.JSON.NULL, False, False),
    (sa.Integer(), sa.text("1"), False, False),
]

POSTGRESQL_ONLY = [
    (postgresql.JSONB(), {"a": [1, 2.5, "x"]}, True),
    (postgresql.JSONB(), {"a": 1, "b": 2}, False),
    (postgresql.JSONB(), {1: 2}, False),
    (postgresql.JSONB(), [1e20], False),
    (postgresql.JSONB(), -0.0, False),
    (postgresql.CITEXT(), "x", True),
    (postgresql.INET(), ipaddress.ip_address("10.0.0.1"), False),
    (postgresql.ARRAY(sa.Integer), [1], False),
    (postgresql.INT4RANGE(), ranges.Range(1, 2), False),
]


@pytest.mark.parametrize(
    ("type_", "value", "exact", "dialect"),
    [
        *((type_, value, exact, PG) for type_, value, exact, _ in EXACT),
        *((type_, value, exact, LITE) for type_, value, _, exact in EXACT),
        *((type_, value, exact, PG) for type_, value, exact in POSTGRESQL_ONLY),
    ],
    ids=repr,
)
def test_exact_is_what_is_certain_to_come_back(type_: Any, value: Any, exact: bool, dialect: Any) -> None:
    """The rules of each database; `tests/integration/test_values.py` compares them with the databases."""
    rule = cached(type_, dialect).exact
    assert rule is not None
    assert rule(value) is exact
    assert rule(None) is True


class Upper(sa.String):
    def bind_processor(self, dialect):
        return str.upper


OWN_JSON = sa.create_engine("sqlite://", json_serializer=str).dialect


@pytest.mark.parametrize(
    ("type_", "dialect"),
    [(Doubled(), PG), (Upper(), LITE), (sa.Integer(), MYSQL)],
    ids=["decorator", "subclass", "MySQL"],
)
def test_what_was_not_compared_is_never_exact(type_: Any, dialect: Any) -> None:
    """An application's own types, and databases that were not compared, are read back."""
    assert cached(type_, dialect).exact is None


@pytest.mark.parametrize("type_", [sa.JSON(), sa.JSON().with_variant(sa.JSON(), "sqlite")], ids=["plain", "variant"])
def test_json_of_ones_own_serialiser_is_not_exact(type_: Any) -> None:
    """What `create_engine(json_serializer=...)` makes of a value is not known."""
    rule = cached(type_, OWN_JSON).exact
    assert rule is not None
    assert (rule({}), rule(None)) == (False, True)


@pytest.mark.parametrize("type_", [sa.JSON(), postgresql.JSONB()], ids=["JSON", "JSONB"])
def test_json_of_ones_own_deserialiser_is_not_exact(type_: Any) -> None:
    """What `create_engine(json_deserializer=...)` makes of a value is not known."""
    dialect = sa.create_engine("postgresql+psycopg://", json_deserializer=str).dialect
    rule = cached(type_, dialect).exact
    assert rule is not None
    assert rule({}) is False


def test_native_dates_of_sqlite_are_not_exact() -> None:
    """With `native_datetime` the driver's own converters decide what is stored."""
    dialect = sa.create_engine("sqlite://", native_datetime=True).dialect
    rule = cached(sa.Date(), dialect).exact
    assert rule is not None
    assert rule(dt.date(2024, 1, 1)) is False


def test_the_internals_of_sqlalchemy_exist() -> None:
    """The three private names that exactness reads."""
    type_ = sa.String().with_variant(sa.Text(), "sqlite")
    assert isinstance(exactness._variant(type_, LITE), sa.Text)
    assert exactness._variant(type_, PG) is type_
    assert {"_json_serializer", "_json_deserializer"} <= set(dir(PG))
    assert exactness._has_own_json(OWN_JSON)
    assert not exactness._has_own_json(LITE)


def test_a_form_knows_no_column() -> None:
    """A form becomes a field by a name."""
    assert wire.INT.field("t.x").name == "t.x"
