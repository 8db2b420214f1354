"""Every type that SQLite and PostgreSQL support, with the values that an application may send to its columns.

The values are what the type is for, and what it lets pass: numbers of another scale, texts with spaces at the end,
truths as numbers. What comes back for them is what `test_values` compares.
"""

from __future__ import annotations

import datetime as dt
import enum
import ipaddress
import uuid
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from hypothesis import strategies as st
from sqlalchemy import types
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import Range

POSTGRESQL, SQLITE = "postgresql", "sqlite"
BOTH = (POSTGRESQL, SQLITE)

UTC = dt.timezone.utc
FIRST, LAST = dt.datetime(1000, 1, 1), dt.datetime(9000, 1, 1)


class Colour(enum.Enum):
    RED = 1
    GREEN = "green"
    CRIMSON = 1  # noqa: PIE796 (an alias)


class Crossed(str, enum.Enum):
    """Values that are the names of other members."""

    a = "b"
    b = "a"


def values_of(enum_class: type[enum.Enum]) -> list[str]:
    """Return what the members are called in the database."""
    return [member.value for member in enum_class]


@dataclass(frozen=True)
class Point:
    x: int
    y: int


class PointType(sa.TypeDecorator[Point]):
    """What no codec knows, over text; and None is a point, too."""

    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return f"{value.x},{value.y}"

    def process_result_value(self, value, dialect):
        return Point(0, 0) if value is None else Point(*map(int, value.split(",")))


class Mirrored(sa.TypeDecorator[Point]):
    """A decorator over a decorator."""

    impl = PointType
    cache_ok = True

    def process_bind_param(self, value, dialect):
        return Point(value.y, value.x)

    def process_result_value(self, value, dialect):
        return Point(value.y, value.x)


class Portable(sa.TypeDecorator[Any]):
    """Another type in each database."""

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect):
        return dialect.type_descriptor(pg.JSONB() if dialect.name == POSTGRESQL else sa.JSON())

    def process_bind_param(self, value, dialect):
        return {"wrapped": value}

    def process_result_value(self, value, dialect):
        return None if value is None else frozenset([value["wrapped"]])


class Renamed(sa.TypeDecorator[str]):
    """A decorator that changes nothing."""

    impl = sa.String(20)
    cache_ok = True


class WideInteger(sa.TypeDecorator[int]):
    """Integers beyond 64 bit."""

    impl = sa.Numeric(60, 0)
    cache_ok = True

    def process_result_value(self, value, dialect):
        return None if value is None else int(value)


@dataclass(frozen=True)
class Case:
    name: str
    type_: types.TypeEngine[Any]
    sent: st.SearchStrategy[Any]
    on: tuple[str, ...] = BOTH
    extension: str | None = None
    timezone: str = "UTC"
    null: bool = True
    """Whether None can be sent."""


def case(name: str, type_: Any, sent: st.SearchStrategy[Any], *on: str, **kw: Any) -> Case:
    """Return a case; *on* says in which databases, without it in both."""
    return Case(name, type_() if isinstance(type_, type) else type_, sent, on or BOTH, **kw)


# --- strategies -------------------------------------------------------------------------------------------------------

text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
short = st.text(st.sampled_from("ab é😀 "), max_size=6)
printable = st.text(st.sampled_from("abcXYZ09 '\\\",{}é"), max_size=8)
small, integer = st.integers(-(2**15), 2**15 - 1), st.integers(-(2**31), 2**31 - 1)
big = st.integers(-(2**63), 2**63 - 1)
floats = st.floats() | st.sampled_from([0.0, -0.0, 1.0, 1e16, 1e-7])
finite = st.floats(allow_nan=False, allow_infinity=False)
single = st.floats(width=32) | st.sampled_from([0.1, 1.0])
decimals = st.builds(
    lambda digits, exponent: Decimal(digits).scaleb(exponent), st.integers(-(10**6), 10**6), st.integers(-6, 3)
) | st.sampled_from([Decimal("-0"), Decimal("0.00"), Decimal("-0.00"), Decimal("1E+3"), Decimal("12.30")])
specials = st.sampled_from([Decimal("NaN"), Decimal("Infinity"), Decimal("-Infinity")])
cents = st.integers(-(10**8), 10**8).map(lambda digits: Decimal(digits).scaleb(-2))
dates = st.dates(FIRST.date(), LAST.date())
naive = st.datetimes(FIRST, LAST)
offsets = st.integers(-14 * 60, 14 * 60).map(lambda minutes: dt.timezone(dt.timedelta(minutes=minutes)))
aware = st.datetimes(FIRST, LAST, timezones=offsets)
clocks = st.times()
aware_clocks = st.builds(lambda clock, zone: clock.replace(tzinfo=zone), st.times(), offsets)
durations = st.timedeltas(dt.timedelta(days=-100_000), dt.timedelta(days=100_000))
uuids = st.uuids() | st.just(uuid.UUID(int=1))
texts_of_uuids = uuids.map(str) | uuids.map(lambda value: str(value).upper()) | uuids.map(lambda value: value.hex)
octets = st.binary(max_size=20)
keys = st.text(st.sampled_from("abé€"), max_size=3)
scalars = st.none() | st.booleans() | big | st.integers(-(2**80), 2**80) | finite | text | st.just(-0.0)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=8
)
json_sent = json_values | st.tuples(integer, text) | st.dictionaries(integer, text, max_size=2)
hstores = st.dictionaries(printable, st.none() | printable, max_size=3)
addresses = st.ip_addresses() | st.ip_addresses(v=4).map(lambda a: ipaddress.ip_interface(f"{a}/24"))
networks = st.ip_addresses().map(lambda address: ipaddress.ip_network(f"{address}/20", strict=False))
bits = st.text(st.sampled_from("01"), min_size=3, max_size=3)
two_dimensions = st.integers(1, 3).flatmap(
    lambda width: st.lists(st.lists(integer, min_size=width, max_size=width), min_size=1, max_size=3)
)
three_dimensions = two_dimensions.map(lambda square: [square, square])


def lists(items: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """Return lists of *items* and None."""
    return st.lists(st.none() | items, max_size=4)


def range_values(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Range[Any]]:
    """Return ranges between two of *values*, half open, and empty."""

    def ordered(first, second, bounds, form):
        lower, upper = sorted((first, second))
        if form == "empty":
            return Range(empty=True)
        return Range(
            None if form == "below" else lower,
            None if form == "above" else upper,
            bounds=bounds,
        )

    return st.builds(
        ordered,
        values,
        values,
        st.sampled_from(["[)", "(]", "[]", "()"]),
        st.sampled_from(["", "", "empty", "below", "above"]),
    )


def multiranges(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Range[Any]]]:
    """Return lists of ranges, which PostgreSQL merges."""
    return st.lists(range_values(values), max_size=3)


numbers = st.integers(-(10**6), 10**6)
points = st.builds(Point, small, small)

# --- the table --------------------------------------------------------------------------------------------------------

TEXTS = [
    case(type_.__name__, type_, text | printable)
    for type_ in (types.String, types.Text, types.Unicode, types.UnicodeText, types.TEXT, types.VARCHAR)
]

RANGES = [
    *(
        case(single_.__name__, single_, range_values(values), POSTGRESQL)
        for single_, values in (
            (pg.INT4RANGE, numbers),
            (pg.INT8RANGE, st.integers(-(2**60), 2**60)),
            (pg.NUMRANGE, decimals),
            (pg.DATERANGE, dates),
            (pg.TSRANGE, naive),
            (pg.TSTZRANGE, aware),
        )
    ),
    *(
        case(multi.__name__, multi, multiranges(values), POSTGRESQL)
        for multi, values in (
            (pg.INT4MULTIRANGE, numbers),
            (pg.INT8MULTIRANGE, st.integers(-(2**60), 2**60)),
            (pg.NUMMULTIRANGE, decimals),
            (pg.DATEMULTIRANGE, dates),
            (pg.TSMULTIRANGE, naive),
            (pg.TSTZMULTIRANGE, aware),
        )
    ),
]

ARRAYS = [
    case(f"ARRAY({name})", pg.ARRAY(item), sent, POSTGRESQL, **kw)
    for name, item, sent, kw in (
        ("Integer", types.Integer(), lists(integer) | two_dimensions | three_dimensions, {}),
        ("Text", types.Text(), lists(text | printable), {}),
        ("Numeric", types.Numeric(10, 2), lists(cents), {}),
        ("Numeric as float", types.Numeric(asdecimal=False), lists(finite), {}),
        ("Float", types.Float(), lists(floats), {}),
        ("Boolean", types.Boolean(), lists(st.booleans()), {}),
        ("DateTime", types.DateTime(), lists(naive), {}),
        ("aware DateTime", types.DateTime(timezone=True), lists(aware), {"timezone": "Europe/Rome"}),
        ("Date", types.Date(), lists(dates), {}),
        ("Time", types.Time(), lists(clocks), {}),
        ("Interval", types.Interval(), lists(durations), {}),
        ("Uuid", types.Uuid(), lists(uuids), {}),
        ("UUID as text", types.UUID(as_uuid=False), lists(uuids.map(str)), {}),
        ("LargeBinary", types.LargeBinary(), lists(octets), {}),
        # No None: SQLAlchemy 2.0.36 cannot read NULL in an array of enumerations.
        ("Enum", types.Enum(Colour, name="array_colour"), st.lists(st.sampled_from(Colour)), {}),
        ("Enum of texts", types.Enum("a b", 'c"d', name="array_text"), st.lists(st.sampled_from(["a b", 'c"d'])), {}),
        ("JSON", types.JSON(), st.lists(st.dictionaries(keys, json_values, max_size=3) | text | big, max_size=3), {}),
        ("JSONB", pg.JSONB(), st.lists(st.dictionaries(keys, scalars, max_size=3), max_size=3), {}),
        ("INET", pg.INET(), lists(addresses), {}),
        ("BIT", pg.BIT(3), lists(bits), {}),
        ("HSTORE", pg.HSTORE(), lists(hstores), {"extension": "hstore"}),
        ("INT4RANGE", pg.INT4RANGE(), lists(range_values(numbers)), {}),
        ("decorated", PointType(), st.lists(points, max_size=3), {}),
        ("decorated twice", Mirrored(), st.lists(points, max_size=3), {}),
    )
]

CASES = [
    *TEXTS,
    *RANGES,
    *ARRAYS,
    case("String(3)", types.String(3), st.text(st.sampled_from("ab "), max_size=3) | st.just("abc  "), POSTGRESQL),
    case("String(3) in SQLite", types.String(3), text, SQLITE),
    case("a variant", types.String().with_variant(pg.JSONB(), POSTGRESQL), printable),
    case("CHAR", types.CHAR(6), short),
    case("NCHAR", types.NCHAR(6), short),
    case("NVARCHAR", types.NVARCHAR(20), text, SQLITE),
    case("CLOB", types.CLOB, text, SQLITE),
    case("Text with NUL", types.Text, text.map(lambda value: value + "\0" + value), SQLITE),
    case("CITEXT", pg.CITEXT, text, POSTGRESQL, extension="citext"),
    case("Integer", types.Integer, integer | st.booleans()),
    case("INTEGER", types.INTEGER, integer),
    case("Integer from text", types.Integer, integer.map(str), SQLITE),
    case("SmallInteger", types.SmallInteger, small),
    case("SMALLINT", types.SMALLINT, small),
    case("BigInteger", types.BigInteger, big),
    case("BIGINT", types.BIGINT, big),
    case("integers beyond 64 bit", WideInteger, st.integers(-(10**59), 10**59), POSTGRESQL),
    case("Boolean", types.Boolean, st.booleans() | st.sampled_from([0, 1])),
    case("BOOLEAN", types.BOOLEAN, st.booleans()),
    case("Numeric", types.Numeric, decimals | integer, POSTGRESQL),
    case("Numeric in SQLite", types.Numeric, decimals | integer | finite, SQLITE),
    case("Numeric NaN", types.Numeric, specials, POSTGRESQL),
    case("Numeric(12, 2)", types.Numeric(12, 2), cents | decimals | integer),
    case("Numeric(30, 20)", types.Numeric(30, 20), decimals),
    case("Numeric(12)", types.Numeric(12), integer.map(Decimal) | decimals),
    case("Numeric(scale=2)", types.Numeric(scale=2), cents | decimals),
    case("Numeric(12, -2)", types.Numeric(12, -2), decimals, POSTGRESQL),
    case("NUMERIC", types.NUMERIC(12, 2), cents),
    case("DECIMAL", types.DECIMAL(14, 4), decimals),
    case("Numeric as float", types.Numeric(asdecimal=False), finite | integer),
    case("Numeric(12, 2) with return scale", types.Numeric(12, 2, decimal_return_scale=5), cents, SQLITE),
    case("Float", types.Float, floats | integer),
    case("Float(24)", types.Float(24), single),
    case("Float(25)", types.Float(25), floats),
    case("Float as Decimal", types.Float(asdecimal=True), finite.filter(lambda value: abs(value) < 1e15)),
    case("FLOAT", types.FLOAT, floats),
    case("REAL", types.REAL, single),
    case("Double", types.Double, floats),
    case("Double as Decimal", types.Double(asdecimal=True), st.floats(-1e6, 1e6)),
    case("DOUBLE", types.DOUBLE, floats, SQLITE),
    case("DOUBLE_PRECISION", types.DOUBLE_PRECISION, floats),
    case("LargeBinary", types.LargeBinary, octets | octets.map(bytearray)),
    case("BLOB", types.BLOB, octets, SQLITE),
    case("BINARY", types.BINARY(20), octets, SQLITE),
    case("VARBINARY", types.VARBINARY(20), octets, SQLITE),
    case("BYTEA", pg.BYTEA, octets, POSTGRESQL),
    case("Date", types.Date, dates),
    case("Date from datetime", types.Date, naive),
    case("DATE", types.DATE, dates),
    case("DateTime", types.DateTime, naive | naive.map(lambda value: value.replace(fold=1))),
    case("DateTime from date", types.DateTime, dates),
    case("DATETIME", types.DATETIME, naive, SQLITE),
    case("TIMESTAMP", types.TIMESTAMP, naive),
    case("PostgreSQL's TIMESTAMP", pg.TIMESTAMP, naive, POSTGRESQL),
    case("TIMESTAMP(3)", pg.TIMESTAMP(precision=3), naive, POSTGRESQL),
    case("aware DateTime", types.DateTime(timezone=True), aware | naive),
    case("aware DateTime, Rome", types.DateTime(timezone=True), aware, POSTGRESQL, timezone="Europe/Rome"),
    case("aware DateTime, St. John's", types.DateTime(timezone=True), aware, POSTGRESQL, timezone="America/St_Johns"),
    case("naive DateTime, Rome", types.DateTime(), naive | aware, POSTGRESQL, timezone="Europe/Rome"),
    case("Time", types.Time, clocks | clocks.map(lambda value: value.replace(fold=1))),
    case("TIME", types.TIME, clocks),
    case("PostgreSQL's TIME", pg.TIME, clocks, POSTGRESQL),
    case("TIME(3)", pg.TIME(precision=3), clocks, POSTGRESQL),
    case("aware Time", types.Time(timezone=True), aware_clocks | clocks, POSTGRESQL),
    case("SQLite's DATE", sqlite.DATE, dates, SQLITE),
    case(
        "SQLite's DATE, own format",
        sqlite.DATE(
            storage_format="%(month)02d/%(day)02d/%(year)04d",
            regexp=r"(?P<month>\d+)/(?P<day>\d+)/(?P<year>\d+)",
        ),
        dates,
        SQLITE,
    ),
    case("SQLite's TIME", sqlite.TIME(truncate_microseconds=True), clocks, SQLITE),
    case("SQLite's DATETIME", sqlite.DATETIME, naive, SQLITE),
    case("SQLite's DATETIME, truncated", sqlite.DATETIME(truncate_microseconds=True), naive, SQLITE),
    case("Interval", types.Interval, durations),
    case("Interval, not native", types.Interval(native=False), durations, POSTGRESQL),
    case("Interval(3)", types.Interval(second_precision=3), durations, POSTGRESQL),
    case("INTERVAL", pg.INTERVAL, durations, POSTGRESQL),
    case("Uuid", types.Uuid, uuids),
    case("Uuid as text", types.Uuid(as_uuid=False), texts_of_uuids),
    case("Uuid, not native", types.Uuid(native_uuid=False), uuids, POSTGRESQL),
    case("UUID", types.UUID, uuids, POSTGRESQL),
    case("UUID in SQLite", types.UUID, st.uuids(), SQLITE),
    case("Enum", types.Enum(Colour), st.sampled_from(Colour) | st.sampled_from(["RED", "GREEN"])),
    case("Enum with aliases", types.Enum(Colour, omit_aliases=False), st.sampled_from(["RED", "CRIMSON"])),
    case("Enum by value", types.Enum(Crossed, values_callable=values_of), st.sampled_from(Crossed)),
    case("Enum crossed", types.Enum(Crossed, name="crossed_names"), st.sampled_from(Crossed)),
    case("Enum, not native", types.Enum(Colour, native_enum=False, length=20), st.sampled_from(Colour)),
    case("Enum of texts", types.Enum("one", "two words", name="texts"), st.sampled_from(["one", "two words"])),
    case("ENUM", pg.ENUM("one", "two", name="pg_texts"), st.sampled_from(["one", "two"]), POSTGRESQL),
    case("JSON", types.JSON, json_sent | st.none()),
    case("JSON, none as null", types.JSON(none_as_null=True), json_sent | st.none()),
    case("PostgreSQL's JSON", pg.JSON, json_sent | st.text(max_size=3), POSTGRESQL),
    case("SQLite's JSON", sqlite.JSON, json_sent | floats, SQLITE),
    case("JSONB", pg.JSONB, json_sent, POSTGRESQL),
    case("JSONPATH", pg.JSONPATH, st.sampled_from(["$.a", "$[1].b"]), POSTGRESQL, null=False),
    case("generic ARRAY", types.ARRAY(types.Integer), lists(integer) | two_dimensions, POSTGRESQL),
    case("ARRAY as tuple", pg.ARRAY(types.Integer, as_tuple=True), lists(integer) | two_dimensions, POSTGRESQL),
    case("ARRAY, 2 dimensions", pg.ARRAY(types.Numeric, dimensions=2), two_dimensions, POSTGRESQL),
    case("ARRAY of decorated, 2 dimensions", pg.ARRAY(WideInteger, dimensions=2), two_dimensions, POSTGRESQL),
    case("ARRAY of decorated as tuple", pg.ARRAY(WideInteger, as_tuple=True), two_dimensions, POSTGRESQL),
    case("ARRAY of multiranges", pg.ARRAY(pg.INT4MULTIRANGE, dimensions=1), lists(multiranges(numbers)), POSTGRESQL),
    case("HSTORE", pg.HSTORE, hstores, POSTGRESQL, extension="hstore"),
    case("INET", pg.INET, addresses | addresses.map(str), POSTGRESQL),
    case("CIDR", pg.CIDR, networks, POSTGRESQL),
    case("MACADDR", pg.MACADDR, st.sampled_from(["08:00:2b:01:02:03", "08002b010203"]), POSTGRESQL),
    case("MACADDR8", pg.MACADDR8, st.sampled_from(["08:00:2b:01:02:03:04:05"]), POSTGRESQL),
    case("MONEY", pg.MONEY, cents.map(str), POSTGRESQL),
    case("BIT", pg.BIT(3), bits, POSTGRESQL),
    case("BIT VARYING", pg.BIT(varying=True), bits, POSTGRESQL),
    case("OID", pg.OID, st.integers(0, 2**32 - 1), POSTGRESQL),
    case("REGCLASS", pg.REGCLASS, st.sampled_from(["pg_class", "pg_catalog.pg_type"]), POSTGRESQL),
    case("REGCONFIG", pg.REGCONFIG, st.sampled_from(["english", "simple"]), POSTGRESQL),
    case("TSVECTOR", pg.TSVECTOR, st.sampled_from(["b a", "'a':1 'b':2A"]), POSTGRESQL),
    case("TSQUERY", pg.TSQUERY, st.sampled_from(["a & b", "!a | b:*"]), POSTGRESQL),
    case("DOMAIN over integer", pg.DOMAIN("above_0", types.Integer, check="VALUE > 0"), st.integers(1, 9), POSTGRESQL),
    case("DOMAIN over numeric", pg.DOMAIN("price", types.Numeric(12, 2)), cents, POSTGRESQL),
    case("DOMAIN over text", pg.DOMAIN("word", types.Text), printable, POSTGRESQL),
    case("a decorator", PointType, points, null=False),
    case("a decorator over a decorator", Mirrored, points, null=False),
    case("a decorator with an impl per dialect", Portable, printable | integer),
    case("a decorator that does nothing", Renamed, printable),
]
