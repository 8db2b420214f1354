"""What SQLAlchemy's type objects say of a column: how its values travel, and how they become the attribute's.

The cached row holds each column's value as a Core SELECT returns it. Of a TypeDecorator, which may make any Python
object, it holds the value that the decorator receives; `process_result_value` is applied when the row is hydrated. So
everything that an application builds on the stock types can be cached, and nothing that it builds is ever serialised.

Knows types alone: not the ORM, not what a transaction did to a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import type_coerce, types
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.dialects.mysql import mariadb
from sqlalchemy.dialects.postgresql import ranges
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.types import TypeDecorator, TypeEngine

from sa_writethrough import wire
from sa_writethrough.codec import Field
from sa_writethrough.exactness import exactness_of
from sa_writethrough.exceptions import ConfigurationError
from sa_writethrough.wire import Form

__all__ = ["CachedColumn", "column_of"]

Conversion: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class CachedColumn:
    """One column of a cached row."""

    expression: ColumnElement[Any]
    """What to select, or to return from DML, to get the row's value."""
    field: Field
    """How the row's value travels."""
    attribute: Conversion | None
    """Turns the row's value, None included, into what SQLAlchemy's loader gives the attribute; None: they are equal."""
    exact: Callable[[Any], bool] | None
    """Whether a SELECT is certain to return the value that was sent to the column, given the attribute's value.

    True: it returns an equal value of the same type and `repr`, so the value may go into the row as it is. False, or
    no function: read the row back. It speaks of the column's type alone: the caller must know that the value was sent
    (not an SQL expression, not left to a default), that the database's column has the type that the model says, and
    that no trigger, rule or generated column changes it. A dict or list may be changed by the application afterwards:
    encode at once.
    """
    returnable: bool
    """Whether RETURNING the expression gives the value that a SELECT of it gives."""
    fingerprint: str
    """What gives the row's value its meaning, for `fingerprint_of`."""


class _UnsupportedError(Exception):
    """A type cannot be cached; the message is the reason, which continues "has the type X: "."""


def column_of(column: ColumnElement[Any], dialect: Dialect) -> CachedColumn:
    """Describe how *column*, of a table or of another selectable, is cached in a database of *dialect*.

    Raises ConfigurationError for a type that cannot be.
    """
    name = str(column)
    try:
        raw, loaders = _undecorated(column.type, dialect)
        form = _form_of(raw, dialect)
    except _UnsupportedError as error:
        raise ConfigurationError(
            f"{name} has the type {column.type!r}: {error}. Leave the column out of the cache with "
            f'CachePolicy(exclude=["{column.key}"]), or make its type a TypeDecorator over a type that can be cached.'
        ) from error
    return CachedColumn(
        expression=type_coerce(column, raw) if loaders else column,
        field=form.field(name),
        attribute=_one([loader for loader in loaders if loader is not _unchanged]),
        exact=None if loaders else exactness_of(column.type, dialect),
        # SQLite stores 1.0 as 1, and RETURNING returns it as it is stored (3.40).
        returnable=not (dialect.name == "sqlite" and isinstance(raw, types.Float)),
        fingerprint=f"{name}:{form.kind}",
    )


def _one(loaders: Sequence[Conversion]) -> Conversion | None:
    if len(loaders) <= 1:
        return loaders[0] if loaders else None

    def load(value: Any) -> Any:
        for loader in loaders:
            value = loader(value)
        return value

    return load


# --- decorators -------------------------------------------------------------------------------------------------------


def _undecorated(type_: TypeEngine[Any], dialect: Dialect) -> tuple[TypeEngine[Any], list[Conversion]]:
    """Return what is below the TypeDecorators of *type_* in *dialect*, and what they do to its values, in order."""
    loaders: list[Conversion] = []
    below: TypeEngine[Any] = type_.dialect_impl(dialect)
    _require_plain_column(below)
    # Interval is a TypeDecorator in name only: its values are timedeltas, which travel as such.
    while isinstance(below, TypeDecorator) and not isinstance(below, types.Interval):
        if isinstance(below, types.PickleType):
            raise _UnsupportedError("bytes from a cache must never be unpickled")
        if type(below).result_processor is not TypeDecorator.result_processor:
            raise _UnsupportedError(
                "it overrides result_processor, so what it makes of a value cannot be applied later"
            )
        loaders.insert(0, _process_result_value(below, dialect))
        below = below.impl_instance
    if isinstance(below, types.ARRAY):
        below, elements = _undecorated_array(below, dialect)
        loaders[:0] = elements
    return below, loaders


def _require_plain_column(type_: TypeEngine[Any]) -> None:
    plain = (TypeEngine.column_expression, TypeDecorator.column_expression)
    below: TypeEngine[Any] | None = type_
    while below is not None:
        if type(below).column_expression not in plain:
            raise _UnsupportedError("its column_expression makes SELECT return something else than the column's value")
        below = below.impl_instance if isinstance(below, TypeDecorator) else None


def _process_result_value(decorator: TypeDecorator[Any], dialect: Dialect) -> Conversion:
    if type(decorator).process_result_value is TypeDecorator.process_result_value:
        return _unchanged
    process = decorator.process_result_value
    return lambda value: process(value, dialect)


def _unchanged(value: Any) -> Any:
    return value


def _undecorated_array(array: types.ARRAY[Any], dialect: Dialect) -> tuple[TypeEngine[Any], list[Conversion]]:
    item, loaders = _undecorated(array.item_type, dialect)
    load = _one(loaders)
    if load is None:
        return array, []
    below: TypeEngine[Any] = postgresql.ARRAY(item, dimensions=array.dimensions)
    collection: Conversion = tuple if array.as_tuple else list
    dimensions = array.dimensions
    return below, [lambda value: None if value is None else _each(value, load, dimensions, collection)]


def _each(values: Any, load: Conversion, dimensions: int | None, collection: Conversion) -> Any:
    """Apply *load* to the items of an array, finding its dimensions as ARRAY's own result processor does."""
    if dimensions == 1 or (dimensions is None and not (values and isinstance(values[0], (list, tuple)))):
        return collection(load(value) for value in values)
    inner = None if dimensions is None else dimensions - 1
    return collection(None if value is None else _each(value, load, inner, collection) for value in values)


# --- forms ------------------------------------------------------------------------------------------------------------


def _form_of(type_: TypeEngine[Any], dialect: Dialect) -> Form:
    """Return how the values travel that a SELECT of an undecorated *type_* returns in *dialect*."""
    for class_, form in FORMS:
        if isinstance(type_, class_):
            return form if isinstance(form, Form) else form(type_, dialect)
    if isinstance(type_, types.NullType):
        raise _UnsupportedError("nothing is known of its values; reflection does not know the column's type")
    raise _UnsupportedError("nothing is known of its values")


def _enum(type_: Any, _dialect: Dialect) -> Form:
    # Not the values: what a value is called in the database does not matter to the cache.
    return wire.TEXT if type_.enum_class is None else wire.member_of(type_.enum_class.__members__)


def _numeric(type_: Any, _dialect: Dialect) -> Form:
    return wire.DECIMAL if type_.asdecimal else wire.NUMBER


def _datetime(type_: Any, _dialect: Dialect) -> Form:
    return wire.AWARE_DATETIME if type_.timezone else wire.DATETIME


def _time(type_: Any, _dialect: Dialect) -> Form:
    return wire.AWARE_TIME if type_.timezone else wire.TIME


def _uuid(type_: Any, _dialect: Dialect) -> Form:
    return wire.UUID if type_.as_uuid else wire.TEXT


def _array(type_: types.ARRAY[Any], dialect: Dialect) -> Form:
    item = type_.item_type.dialect_impl(dialect)
    if not isinstance(item, types.JSON):
        return wire.array_of(_form_of(item, dialect), tuple if type_.as_tuple else list)
    if type_.as_tuple:
        raise _UnsupportedError("as_tuple makes the lists inside of its JSON values tuples, too")
    # An item may itself be a list: only the whole can be told apart, and it is a JSON value.
    return wire.JSON


def _domain(type_: postgresql.DOMAIN, dialect: Dialect) -> Form:
    """Return the form of a domain's values: it has no processors, so they are the driver's for the type below."""
    below = type_.data_type.dialect_impl(dialect)
    for class_, form in DRIVERS_FORMS:
        if isinstance(below, class_):
            return form
    raise _UnsupportedError(f"what a driver returns for a domain over {type_.data_type!r} is not known")


def _range(type_: Any, _dialect: Dialect) -> Form:
    return wire.range_of(_bound(type_), ranges.Range)


def _multirange(type_: Any, dialect: Dialect) -> Form:
    return wire.multirange_of(_range(type_, dialect), ranges.MultiRange)


def _bound(type_: Any) -> Form:
    for classes, form in BOUNDS:
        if isinstance(type_, classes):
            return form
    raise _UnsupportedError("nothing is known of its bounds")


_bit_string: type[str] | None = getattr(postgresql, "BitString", None)  # SQLAlchemy 2.0 returns str

BOUNDS: Sequence[tuple[tuple[type, ...], Form]] = (
    ((postgresql.INT4RANGE, postgresql.INT4MULTIRANGE, postgresql.INT8RANGE, postgresql.INT8MULTIRANGE), wire.INT),
    ((postgresql.NUMRANGE, postgresql.NUMMULTIRANGE), wire.DECIMAL),
    ((postgresql.DATERANGE, postgresql.DATEMULTIRANGE), wire.DATE),
    ((postgresql.TSRANGE, postgresql.TSMULTIRANGE), wire.DATETIME),
    ((postgresql.TSTZRANGE, postgresql.TSTZMULTIRANGE), wire.AWARE_DATETIME),
)

# Types that a domain can be over, and the driver's values of them.
DRIVERS_FORMS: Sequence[tuple[type, Form]] = (
    (types.Integer, wire.INT),
    (types.Float, wire.NUMBER),
    (types.Numeric, wire.DECIMAL),
    (types.Boolean, wire.BOOL),
    (types.String, wire.TEXT),
    (types.LargeBinary, wire.BYTES),
    (types.Date, wire.DATE),
    (types.Uuid, wire.UUID),
)

# The first that fits counts: what is special comes before what it is made of.
FORMS: Sequence[tuple[type, Form | Callable[[Any, Dialect], Form]]] = (
    (types.Boolean, wire.BOOL),
    (types.Integer, wire.INT),
    (types.Float, _numeric),
    (types.Numeric, _numeric),
    (types.Enum, _enum),
    (types.String, wire.TEXT),
    (types.LargeBinary, wire.BYTES),
    (types.BINARY, wire.BYTES),
    (types.VARBINARY, wire.BYTES),
    (types.DateTime, _datetime),
    (types.Date, wire.DATE),
    (types.Time, _time),
    (types.Interval, wire.TIMEDELTA),
    (types.Uuid, _uuid),
    (types.JSON, wire.JSON),
    (types.JSON.JSONPathType, wire.TEXT),
    (types.ARRAY, _array),
    (postgresql.INTERVAL, wire.TIMEDELTA),
    (postgresql.HSTORE, wire.STRINGS),
    (postgresql.INET, wire.ADDRESS),
    (postgresql.CIDR, wire.ADDRESS),
    (postgresql.MACADDR, wire.TEXT),
    (postgresql.MACADDR8, wire.TEXT),
    (postgresql.BIT, wire.TEXT if _bit_string is None else wire.text_as(_bit_string)),
    (postgresql.MONEY, wire.TEXT),
    (postgresql.OID, wire.INT),
    (postgresql.REGCLASS, wire.TEXT),
    (postgresql.REGCONFIG, wire.TEXT),
    (postgresql.TSVECTOR, wire.TEXT),
    (postgresql.TSQUERY, wire.TEXT),
    (postgresql.DOMAIN, _domain),
    (mysql.BIT, wire.INT),
    (mysql.YEAR, wire.INT),
    (mysql.TINYBLOB, wire.BYTES),
    (mysql.MEDIUMBLOB, wire.BYTES),
    (mysql.LONGBLOB, wire.BYTES),
    (mariadb.INET4, wire.TEXT),
    (mariadb.INET6, wire.TEXT),
    (ranges.AbstractSingleRange, _range),
    (ranges.AbstractMultiRange, _multirange),
)
