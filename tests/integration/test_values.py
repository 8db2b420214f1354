"""What a SELECT returns, what the cache returns, and what was sent: compared in the databases themselves."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import orm, types
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.pool import NullPool

from sa_writethrough.codec import RowCodec, fingerprint_of
from sa_writethrough.sqltypes import CachedColumn, column_of
from tests.integration.mariadb_types import MARIADB, MARIADB_CASES
from tests.integration.types_table import CASES as COMMON_CASES
from tests.integration.types_table import POSTGRESQL, SQLITE, Case

CASES = [*COMMON_CASES, *MARIADB_CASES]

# What need not be cached, or cannot be, and why.
REFUSED = {
    "MatchType": "the type of an expression, not of a column",
    "NamedType": "the base of ENUM and DOMAIN",
    "NullType": "nothing is known of its values",
    "PickleType": "bytes from a cache must never be unpickled",
    "TupleType": "the type of an expression, not of a column",
    "TypeDecorator": "a base; the table's own decorators derive from it",
    "TypeEngine": "the base of all types",
    "UserDefinedType": "nothing is known of its values",
    "Variant": "SQLAlchemy 2 has it in name only",
    "_Binary": "the base of the binary types",
    "mysql.SET": "a set has no order, and what is sent may be text, a set or a number",
    "sqlite.JSONB": "its column_expression makes SELECT return something else than the column's value",
}

# SQLAlchemy 2.0 warns where a Decimal goes through a float; that it does is what is measured.
pytestmark = pytest.mark.filterwarnings("ignore:Dialect sqlite:sqlalchemy.exc.SAWarning")


class Bench:
    """One table with one column of the case's type, its mapped class, and a connection."""

    def __init__(self, case: Case, connection: sa.Connection, table: sa.Table) -> None:
        self.connection = connection
        self.table = table
        self.model = type("Model", (), {})
        self.cached: CachedColumn = column_of(table.c.value, connection.dialect)
        self.codec = RowCodec([self.cached.field], fingerprint_of([self.cached.fingerprint]))
        orm.registry().map_imperatively(self.model, table)

    def write(self, value: Any) -> SimpleNamespace:
        """Send *value* and return what each way of reading returns; the row is gone afterwards."""
        with self.connection.begin() as transaction:
            insert = self.table.insert().returning(self.cached.expression)
            returned = self.connection.execute(insert, {"id": 1, "value": value}).scalar_one()
            selected = self.connection.execute(sa.select(self.cached.expression)).scalar_one()
            with orm.Session(self.connection) as session:
                loaded = session.get_one(self.model, 1).value
            transaction.rollback()
        return SimpleNamespace(returned=returned, selected=selected, loaded=loaded)


@contextlib.contextmanager
def bench_of(case: Case, url: str) -> Iterator[Bench]:
    """Create the case's table in the database of *url*."""
    arguments = {}
    if url.startswith(POSTGRESQL):
        arguments["connect_args"] = {"options": f"-c timezone={case.timezone}"}
        if case.extension:
            extend(url, case.extension)
    engine = sa.create_engine(url, poolclass=NullPool, **arguments)
    metadata = sa.MetaData()
    # Each test its own copy: a type remembers the table that it was created with.
    columns = [sa.Column("id", sa.Integer, primary_key=True), sa.Column("value", case.type_)]
    table = sa.Table("original", sa.MetaData(), *columns).to_metadata(metadata, name="stock")
    metadata.create_all(engine)
    with engine.connect() as connection:
        yield Bench(case, connection, table)


def extend(url: str, extension: str) -> None:
    """Create *extension* before the engine under test looks for its types."""
    engine = sa.create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE EXTENSION IF NOT EXISTS {extension}"))


def assert_same(actual: Any, expected: Any) -> None:
    """Compare value, type and representation; the latter tells the scale, the zone and the order of keys, too."""
    assert type(actual) is type(expected)
    assert repr(actual) == repr(expected)
    assert actual == expected or "nan" in repr(expected).lower()


def through_the_cache(bench: Bench, row_value: Any) -> Any:
    """Return *row_value* as an attribute, after a stay in the cache."""
    decoded = bench.codec.decode(bench.codec.encode((row_value,)))
    assert decoded is not None
    assert_same(decoded[0], row_value)
    return decoded[0] if bench.cached.attribute is None else bench.cached.attribute(decoded[0])


def check(bench: Bench, value: Any) -> None:
    """Compare what the cache, the database and the ORM make of *value*."""
    read = bench.write(value)
    assert_same(through_the_cache(bench, read.selected), read.loaded)
    if bench.cached.returnable:
        assert_same(through_the_cache(bench, read.returned), read.loaded)
    if bench.cached.exact is not None and bench.cached.exact(value):
        assert_same(value, read.selected)


def check_all(case: Case, url: str) -> None:
    """Check None and many values of *case*."""
    with bench_of(case, url) as bench:

        @settings(max_examples=settings().max_examples // 4)
        @given(st.data())
        def run(data: st.DataObject) -> None:
            check(bench, data.draw(case.sent))

        run()
        if case.null:
            check(bench, None)


def on(dialect: str) -> list[Any]:
    """Return the cases of *dialect* as pytest's parameters."""
    return [pytest.param(case, id=case.name) for case in CASES if dialect in case.on]


@pytest.mark.parametrize("case", on(POSTGRESQL))
def test_a_cached_value_is_what_the_orm_loads_from_postgresql(case: Case, postgres_url: str) -> None:
    """Through the cache an attribute gets the value that PostgreSQL returns, and exact values come back as sent."""
    check_all(case, postgres_url)


@pytest.mark.parametrize("case", on(SQLITE))
def test_a_cached_value_is_what_the_orm_loads_from_sqlite(case: Case, sqlite_url: str) -> None:
    """Through the cache an attribute gets the value that SQLite returns, and exact values come back as sent."""
    check_all(case, sqlite_url)


@pytest.mark.parametrize("case", on(MARIADB))
def test_a_cached_value_is_what_the_orm_loads_from_mariadb(case: Case, mariadb_url: str) -> None:
    """Through the cache an attribute gets the value that MariaDB returns, whatever it made of what was sent."""
    check_all(case, mariadb_url)


@pytest.mark.parametrize("module", [types, postgresql, sqlite, mysql], ids=lambda module: module.__name__)
def test_every_type_of_sqlalchemy_is_tested_or_refused(module: Any) -> None:
    """A type that SQLAlchemy adds fails here until it is in the table or has a reason not to be."""
    tested = {type(case.type_) for case in CASES}
    names = getattr(module, "__all__", None) or dir(module)
    found = {name: getattr(module, name) for name in names}
    unknown = {
        name
        for name, thing in found.items()
        if inspect.isclass(thing) and issubclass(thing, types.TypeEngine) and thing not in tested
    }
    package = module.__name__.rpartition(".")[2]
    assert {name for name in unknown if name not in REFUSED and f"{package}.{name}" not in REFUSED} == set()
