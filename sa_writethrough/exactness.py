"""Which values a database stores as they are: what was sent is certain to be what a SELECT returns.

The database normalises: the scale of numbers, padding, time zones, the order of keys. Where a value is known to come
back unchanged, a committed row can be published without reading it back; where it is not certain, it is not exact.
What a rule is certain of was compared with SQLite and PostgreSQL (`tests/integration/test_values.py`), so it holds for
the types that SQLAlchemy itself brings, and for the drivers that were compared.

Not knowable from a type, and assumed: the database's column has the type that the model says, and the driver and the
connection are configured as SQLAlchemy does it (no `extra_float_digits` below 1, no global adapters or JSON functions
of psycopg's).
"""

from __future__ import annotations

import datetime as dt
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, TypeAlias

from sqlalchemy import types
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeEngine

__all__ = ["Exactness", "exactness_of"]

Exactness: TypeAlias = Callable[[Any], bool]
Conversion: TypeAlias = Callable[[Any], Any]
Rule: TypeAlias = Callable[[Any, Dialect], Exactness]

DRIVERS = frozenset({"aiosqlite", "psycopg", "pysqlite"})

# PostgreSQL keeps up to 16383 digits after the point. Nobody needs to know what it does with more.
DIGITS_AFTER_POINT = 1000

# A real (float4) has up to 24 binary digits of precision.
SINGLE_PRECISION = 24

DEFAULT_DECIMAL_SCALE = 10


def exactness_of(type_: TypeEngine[Any], dialect: Dialect) -> Exactness | None:
    """Return what tells whether a value sent to a column of *type_* is certain to be returned, or None: none is."""
    declared = _variant(type_, dialect)
    driver = getattr(dialect, "driver", None)  # none where no engine is known yet
    if driver not in DRIVERS or not (_is_stock(type_) and _is_stock(declared) and _is_stock(dialect)):
        return None
    for class_, rule in RULES[dialect.name]:
        if isinstance(declared, class_):
            return rule(declared, dialect)
    return _is_none


# _sqla
def _variant(type_: TypeEngine[Any], dialect: Dialect) -> TypeEngine[Any]:
    """Return what `with_variant` declared for *dialect*, or *type_*; `dialect_impl` would lose its arguments."""
    return type_._variant_mapping.get(dialect.name, type_)  # noqa: SLF001 (_sqla)


# _sqla
def _has_own_json(dialect: Any) -> bool:
    """Return whether `create_engine` was given a JSON serialiser or deserialiser."""
    return dialect._json_serializer is not None or dialect._json_deserializer is not None  # noqa: SLF001 (_sqla)


def _processors(declared: TypeEngine[Any], dialect: Dialect) -> tuple[Conversion, Conversion]:
    """Return what SQLAlchemy does to a value on its way into the database, and out of it."""
    impl = declared.dialect_impl(dialect)
    return impl.bind_processor(dialect) or _unchanged, impl.result_processor(dialect, None) or _unchanged


def _unchanged(value: Any) -> Any:
    return value


def _is_stock(thing: object) -> bool:
    """Return whether *thing*'s class is SQLAlchemy's own: a subclass may do anything to its values."""
    return type(thing).__module__.startswith("sqlalchemy.")


def _is_none(value: Any) -> bool:
    return value is None


def _of_type(type_: type) -> Exactness:
    def exact(value: Any) -> bool:
        return value is None or type(value) is type_

    return exact


def _plain(type_: type) -> Rule:
    exact = _of_type(type_)
    return lambda _declared, _dialect: exact


def _never(_declared: Any, _dialect: Dialect) -> Exactness:
    return _is_none


# --- text and enumerations --------------------------------------------------------------------------------------------


def _text_with_length(declared: types.String, _dialect: Dialect) -> Exactness:
    """PostgreSQL cuts spaces off a text that is too long because of them, without an error."""
    if declared.length is None:
        return _of_type(str)
    return lambda value: value is None or (type(value) is str and not value.endswith(" "))


def _enum(declared: types.Enum, dialect: Dialect) -> Exactness:
    """Where names, values and members do not pair up, a member may come back as another: try each of them."""
    send, receive = _processors(declared, dialect)
    enum_class: Any = declared.enum_class
    if enum_class is None:
        texts = frozenset(text for text in declared.enums if receive(send(text)) is text)
        return lambda value: value is None or (type(value) is str and value in texts)
    names = frozenset(member.name for member in enum_class if receive(send(member)) is member)
    return lambda value: value is None or (type(value) is enum_class and value.name in names)


def _uuid(declared: types.Uuid[Any], dialect: Dialect) -> Exactness:
    if dialect.name == "sqlite" and isinstance(declared, types.UUID):
        # A column of the type "UUID" has numeric affinity: hexadecimal digits without a letter become a number.
        return _is_none
    return _of_type(uuid.UUID) if declared.as_uuid else _is_canonical_uuid


def _is_canonical_uuid(value: Any) -> bool:
    if type(value) is not str:
        return value is None
    try:
        return str(uuid.UUID(value)) == value
    except ValueError:
        return False


# --- numbers ----------------------------------------------------------------------------------------------------------


def _double(declared: Any, _dialect: Dialect) -> Exactness:
    return _is_none if declared.asdecimal else _is_exact_float


def _float(declared: types.Float[Any], dialect: Dialect) -> Exactness:
    if declared.precision is not None and declared.precision <= SINGLE_PRECISION:
        return _is_none
    return _double(declared, dialect)


def _is_exact_float(value: Any) -> bool:
    if type(value) is not float:
        return value is None
    # SQLite has neither NaN nor a negative zero.
    return math.isfinite(value) and (value != 0.0 or math.copysign(1.0, value) > 0)


def _numeric(declared: types.Numeric[Any], _dialect: Dialect) -> Exactness:
    """PostgreSQL: a number of the column's own scale, or any scale where the column has none."""
    if not declared.asdecimal:
        return _is_none
    scale = None if declared.precision is None else (declared.scale or 0)
    if scale is not None and scale < 0:
        return _is_none

    def exact(value: Any) -> bool:
        exponent = _exponent(value)
        if exponent is None:
            return value is None
        return exponent == -scale if scale is not None else -DIGITS_AFTER_POINT <= exponent <= 0

    return exact


def _numeric_as_float(declared: types.Numeric[Any], _dialect: Dialect) -> Exactness:
    """SQLite: the number becomes a float, and then a text of the column's scale; do the same and compare."""
    if not declared.asdecimal:
        return _is_none
    scale = next(
        (scale for scale in (declared.decimal_return_scale, declared.scale) if scale is not None),
        DEFAULT_DECIMAL_SCALE,
    )

    def exact(value: Any) -> bool:
        if _exponent(value) is None:
            return value is None
        number = float(value)
        return math.isfinite(number) and Decimal("%.*f" % (scale, number)).as_tuple() == value.as_tuple()  # noqa: UP031 (as SQLAlchemy does it)

    return exact


def _exponent(value: Any) -> int | None:
    """Return the exponent of a finite Decimal that is no negative zero, else None."""
    if type(value) is not Decimal or not value.is_finite() or (value.is_zero() and value.is_signed()):
        return None
    exponent = value.as_tuple().exponent
    return exponent if isinstance(exponent, int) else None


# --- dates and times --------------------------------------------------------------------------------------------------


def _datetime(declared: Any, _dialect: Dialect) -> Exactness:
    return _is_none if _rounds(declared) else _is_naive_datetime


def _time(declared: Any, _dialect: Dialect) -> Exactness:
    return _is_none if _rounds(declared) else _is_naive_time


def _rounds(declared: Any) -> bool:
    return bool(declared.timezone) or getattr(declared, "precision", None) is not None


def _is_naive_datetime(value: Any) -> bool:
    return value is None or (type(value) is dt.datetime and value.tzinfo is None and value.fold == 0)


def _is_naive_time(value: Any) -> bool:
    return value is None or (type(value) is dt.time and value.tzinfo is None and value.fold == 0)


def _as_text(rule: Exactness, probe: Any, text: str) -> Rule:
    """SQLite: *rule*, where the column's text format is SQLAlchemy's own; one's own may be any, so try it."""

    def exactness(declared: TypeEngine[Any], dialect: Dialect) -> Exactness:
        send, receive = _processors(declared, dialect)
        return rule if send(probe) == text and receive(text) == probe else _is_none

    return exactness


# --- JSON -------------------------------------------------------------------------------------------------------------


def _json(_declared: types.JSON, dialect: Dialect) -> Exactness:
    """PostgreSQL keeps the text. None is sent as JSON's null or as NULL, and both are loaded as None."""
    return _is_none if _has_own_json(dialect) else _is_plain_json


def _json_as_text(_declared: types.JSON, dialect: Dialect) -> Exactness:
    """SQLite: a column of the type "JSON" has numeric affinity, which changes a text that is a number."""
    if _has_own_json(dialect):
        return _is_none
    return lambda value: type(value) not in (int, float) and _is_plain_json(value)


def _jsonb(_declared: types.JSON, dialect: Dialect) -> Exactness:
    """PostgreSQL sorts the keys, and keeps numbers as numerics, which have no exponent."""
    return _is_none if _has_own_json(dialect) else _is_normal_json


def _is_plain_json(value: Any) -> bool:
    type_ = type(value)
    if type_ is str:
        return _is_unicode(value)
    if type_ is dict:
        return all(map(_is_plain_key, value)) and all(map(_is_plain_json, value.values()))
    if type_ is list:
        return all(map(_is_plain_json, value))
    if type_ is float:
        return math.isfinite(value)
    return value is None or type_ is bool or type_ is int


def _is_normal_json(value: Any) -> bool:
    type_ = type(value)
    if type_ is dict:
        return len(value) <= 1 and all(map(_is_plain_key, value)) and all(map(_is_normal_json, value.values()))
    if type_ is list:
        return all(map(_is_normal_json, value))
    if type_ is float:
        return _is_exact_float(value) and "e" not in repr(value)
    return _is_plain_json(value)


def _is_plain_key(key: Any) -> bool:
    return type(key) is str and _is_unicode(key)


def _is_unicode(text: str) -> bool:
    """Return whether *text* is free of surrogates: two of them come back as one character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# --- the rules; the first that fits counts ----------------------------------------------------------------------------

_PROBE = dt.datetime(2001, 2, 3, 4, 5, 6, 789)  # noqa: DTZ001 (naive columns are what it is about)

SQLITE: Sequence[tuple[type, Rule]] = (
    (types.Boolean, _plain(bool)),
    (types.Integer, _plain(int)),
    (types.Float, _double),
    (types.Numeric, _numeric_as_float),
    (types.Enum, _enum),
    (postgresql.CITEXT, _never),
    (types.String, _plain(str)),
    (types.LargeBinary, _plain(bytes)),
    (types.DateTime, _as_text(_is_naive_datetime, _PROBE, "2001-02-03 04:05:06.000789")),
    (types.Date, _as_text(_of_type(dt.date), _PROBE.date(), "2001-02-03")),
    (types.Time, _as_text(_is_naive_time, _PROBE.time(), "04:05:06.000789")),
    (types.Uuid, _uuid),
    (types.JSON, _json_as_text),
)

POSTGRESQL: Sequence[tuple[type, Rule]] = (
    (types.Boolean, _plain(bool)),
    (types.Integer, _plain(int)),
    (types.REAL, _never),
    (types.Double, _double),
    (types.Float, _float),
    (types.Numeric, _numeric),
    (types.Enum, _enum),
    (types.CHAR, _never),
    (types.NCHAR, _never),
    (types.String, _text_with_length),
    (types.LargeBinary, _plain(bytes)),
    (types.DateTime, _datetime),
    (types.Date, _plain(dt.date)),
    (types.Time, _time),
    (types.Uuid, _uuid),
    (postgresql.JSONB, _jsonb),
    (types.JSON, _json),
)

RULES: Mapping[str, Sequence[tuple[type, Rule]]] = {"postgresql": POSTGRESQL, "sqlite": SQLITE}
