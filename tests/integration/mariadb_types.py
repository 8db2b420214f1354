"""Every type that MariaDB supports, as `types_table` has those of SQLite and PostgreSQL."""

from __future__ import annotations

import datetime as dt
import ipaddress
from decimal import Decimal

from hypothesis import strategies as st
from sqlalchemy import types
from sqlalchemy.dialects import mysql as my
from sqlalchemy.dialects.mysql import mariadb

from tests.integration import types_table as table
from tests.integration.types_table import Case

MARIADB = "mariadb"

# A float that is no double keeps seven digits, and is written out with six.
FEW_DIGITS = st.integers(-(10**5), 10**5).map(lambda number: number / 8)
SECONDS = st.datetimes(dt.datetime(1971, 1, 1), dt.datetime(2037, 1, 1))
YEARS = st.integers(1901, 2155)
WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs", "Cn"]), max_size=20)
# NATIONAL types have the old character set of three bytes.
NATIONAL = st.text(
    st.characters(max_codepoint=0x2FFF, exclude_characters="\0", exclude_categories=["Cs", "Cn"]), max_size=6
)
# Only what RFC 4122 knows is a UUID to the server.
UUIDS = st.uuids(version=4) | st.uuids(version=1)
V4 = st.ip_addresses(v=4).map(str)
V6 = st.ip_addresses(v=6).filter(lambda address: address != ipaddress.ip_address("::")).map(str)
LATER = st.datetimes(dt.datetime(1971, 1, 1), dt.datetime(9000, 1, 1))


def case(name: str, type_: types.TypeEngine, sent: st.SearchStrategy, **kw: bool) -> Case:
    return Case(name, type_, sent, (MARIADB,), **kw)


MARIADB_CASES = [
    *(
        case(type_.__name__, type_(200), WORDS | table.printable)
        for type_ in (types.String, types.Unicode, types.VARCHAR, my.VARCHAR)
    ),
    *(
        case(type_.__name__, type_(), WORDS | table.printable)
        for type_ in (types.Text, types.UnicodeText, types.TEXT, my.TEXT, my.TINYTEXT, my.MEDIUMTEXT, my.LONGTEXT)
    ),
    *(case(type_.__name__, type_(6), table.short) for type_ in (types.CHAR, my.CHAR)),
    *(case(type_.__name__, type_(6), NATIONAL) for type_ in (types.NCHAR, types.NVARCHAR, my.NCHAR, my.NVARCHAR)),
    case("VARCHAR, another collation", my.VARCHAR(20, collation="utf8mb4_bin"), table.short),
    case("VARCHAR, another character set", my.VARCHAR(20, charset="latin1"), st.text("aé ", max_size=9)),
    case("Integer", types.Integer(), table.integer | st.booleans()),
    case("SmallInteger", types.SmallInteger(), table.small),
    case("BigInteger", types.BigInteger(), table.big),
    case("TINYINT(1)", my.TINYINT(1), st.integers(-128, 127) | st.booleans()),
    case("SMALLINT", my.SMALLINT(), table.small),
    case("MEDIUMINT", my.MEDIUMINT(unsigned=True), st.integers(0, 2**24 - 1)),
    case("INTEGER", my.INTEGER(unsigned=True), st.integers(0, 2**32 - 1)),
    case("INTEGER ZEROFILL", my.INTEGER(5, zerofill=True), st.integers(0, 99)),
    case("BIGINT", my.BIGINT(unsigned=True), st.integers(0, 2**64 - 1)),
    case("BIT(1)", my.BIT(1), st.booleans()),
    case("BIT(20)", my.BIT(20), st.integers(0, 2**20 - 1)),
    case("YEAR", my.YEAR(), YEARS),
    case("Boolean", types.Boolean(), st.booleans() | st.sampled_from([0, 1])),
    case("BOOLEAN", types.BOOLEAN(), st.booleans()),
    case("Numeric", types.Numeric(), table.integer.map(Decimal) | table.decimals),
    case("Numeric(12, 2)", types.Numeric(12, 2), table.cents | table.decimals | table.integer),
    case("Numeric(30, 20)", types.Numeric(30, 20), table.decimals),
    case("NUMERIC", my.NUMERIC(12, 2), table.cents),
    case("DECIMAL", my.DECIMAL(14, 4, unsigned=True), table.cents.map(abs)),
    case("DECIMAL(60, 0)", table.WideInteger(), st.integers(-(10**59), 10**59)),
    case("Numeric as float", types.Numeric(12, 2, asdecimal=False), table.cents),
    case("Float", types.Float(), FEW_DIGITS | table.single.filter(lambda value: 1e-30 < abs(value) < 1e30)),
    case("Float as Decimal", types.Float(asdecimal=True), FEW_DIGITS),
    case("Float(53)", types.Float(53), table.finite),
    case("Double", types.Double(), table.finite | table.integer),
    case("DOUBLE", my.DOUBLE(), table.finite.filter(lambda value: abs(value) < 1e15)),
    case("DOUBLE(10, 3)", my.DOUBLE(10, 3, asdecimal=False), st.floats(-1e6, 1e6)),
    case("FLOAT", my.FLOAT(), FEW_DIGITS),
    case("REAL", my.REAL(), table.finite.filter(lambda value: abs(value) < 1e15)),
    case("LargeBinary", types.LargeBinary(), table.octets | table.octets.map(bytearray)),
    *(
        case(type_.__name__, type_(), table.octets)
        for type_ in (types.BLOB, my.BLOB, my.TINYBLOB, my.MEDIUMBLOB, my.LONGBLOB)
    ),
    case("BINARY", types.BINARY(20), table.octets),
    case("VARBINARY", my.VARBINARY(20), table.octets),
    case("Date", types.Date(), table.dates | table.naive),
    case("DATE", my.DATE(), table.dates),
    case("DateTime", types.DateTime(), table.naive | table.naive.map(lambda value: value.replace(fold=1))),
    case("DateTime from date", types.DateTime(), table.dates),
    case("aware DateTime", types.DateTime(timezone=True), table.naive | table.aware),
    *(case(f"DATETIME({digits})", my.DATETIME(fsp=digits), table.naive) for digits in (0, 3, 6)),
    case("TIMESTAMP", types.TIMESTAMP(), SECONDS),
    case("TIMESTAMP(3)", my.TIMESTAMP(fsp=3), SECONDS),
    case("Time", types.Time(), table.clocks),
    case("TIME(6)", my.TIME(fsp=6), table.clocks),
    case("Interval", types.Interval(), st.timedeltas(dt.timedelta(0), dt.timedelta(days=100_000))),
    case("Interval(6)", types.Interval(second_precision=6), st.timedeltas(dt.timedelta(0), dt.timedelta(days=9_000))),
    case("Uuid", types.Uuid(), UUIDS),
    case(
        "Uuid as text",
        types.Uuid(as_uuid=False),
        UUIDS.map(str) | UUIDS.map(lambda value: str(value).upper()) | UUIDS.map(lambda value: value.hex),
    ),
    case("Uuid, not native", types.Uuid(native_uuid=False), table.uuids),
    case("UUID", types.UUID(), UUIDS),
    case("Enum", types.Enum(table.Colour), st.sampled_from(table.Colour) | st.sampled_from(["RED", "GREEN"])),
    case("Enum, not native", types.Enum(table.Colour, native_enum=False), st.sampled_from(table.Colour)),
    case("Enum by value", types.Enum(table.Crossed, values_callable=table.values_of), st.sampled_from(table.Crossed)),
    case("Enum of texts", types.Enum("one", "two words", ""), st.sampled_from(["one", "two words", "ONE"])),
    case("ENUM", my.ENUM("one", "two"), st.sampled_from(["one", "two", "TWO"])),
    case("JSON", types.JSON(), table.json_sent | st.none()),
    case("MariaDB's JSON", my.JSON(), table.json_sent | st.none()),
    case("INET4", mariadb.INET4(), V4),
    case("INET6", mariadb.INET6(), V6),
    case("a variant", types.String(9).with_variant(my.VARCHAR(50), MARIADB), table.printable),
    case("a decorator", table.PointType(20), table.points, null=False),
    case("a decorator over a decorator", table.Mirrored(20), table.points, null=False),
    case("a decorator with an impl per dialect", table.Portable(), table.printable | table.integer),
    case("a decorator that does nothing", table.Renamed(), table.printable),
]
