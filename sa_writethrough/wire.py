"""The forms in which Python values travel inside a row. Pure: knows msgspec's types, not SQLAlchemy.

Two rules. What is let through comes back equal, of the same type and with the same `repr` (of a time zone: the same
offset); what would not is refused by raising, which the codec turns into a CodecError. And the common types have no
converter on the way in, because a hit pays for it: msgspec makes the dates, decimals and UUIDs itself.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Union
from zoneinfo import ZoneInfo

from sa_writethrough.codec import Field, accepted_types, json_text

__all__ = [
    "ADDRESS",
    "AWARE_DATETIME",
    "AWARE_TIME",
    "BOOL",
    "BYTES",
    "DATE",
    "DATETIME",
    "DECIMAL",
    "INT",
    "JSON",
    "NUMBER",
    "STRINGS",
    "TEXT",
    "TIME",
    "TIMEDELTA",
    "UUID",
    "Form",
    "array_of",
    "member_of",
    "multirange_of",
    "range_of",
    "text_as",
]


@dataclass(frozen=True, slots=True)
class Form:
    """How the values of one kind travel: a `Field` without a name.

    *kind* goes into the schema's fingerprint. It changes when the bytes get another meaning, and is the same in every
    process: no address, no hash, no default `repr`.
    """

    kind: str
    wire: Any
    to_wire: Callable[[Any], Any] | None = None
    from_wire: Callable[[Any], Any] | None = None
    unchanged: type | None = None

    def field(self, name: str) -> Field:
        """Return the field *name* of this form."""
        return Field(name, self.wire, self.to_wire, self.from_wire, self.unchanged)


def _require(value: Any, type_: type) -> None:
    if type(value) is not type_:
        raise TypeError(f"expected {type_.__qualname__}, not {type(value).__qualname__}")


# --- numbers, text, bytes ---------------------------------------------------------------------------------------------


def _uuid_to_wire(value: Any) -> uuid.UUID:
    if type(value) is uuid.UUID:
        return value
    # asyncpg has a subclass of its own, equal and with the same repr.
    if not isinstance(value, uuid.UUID):
        raise TypeError("expected UUID")
    return uuid.UUID(int=value.int)


def _decimal_to_wire(value: Any) -> Any:
    _require(value, Decimal)
    return value  # which msgspec sends as its text


BOOL = Form("bool", bool)
BYTES = Form("bytes", bytes)
DECIMAL = Form("decimal", str, _decimal_to_wire, Decimal)
"""msgspec would make the Decimal itself, in twice the time."""
INT = Form("int", int)
NUMBER = Form("number", Union[int, float])  # noqa: UP007 (a value at run time)
"""SQLite's NUMERIC columns return 1 for 1.0; each must come back as it was."""
TEXT = Form("text", str)
UUID = Form("uuid", uuid.UUID, _uuid_to_wire)


def text_as(class_: type[str]) -> Form:
    """Return the form of a subclass of str that is made from its text."""

    def to_wire(value: Any) -> str:
        _require(value, class_)
        return str(value)

    return Form(f"text:{class_.__name__}", str, to_wire, class_)


def member_of(members: Mapping[str, Any]) -> Form:
    """Return the form of the members of an enumeration; they travel by name."""
    by_name = dict(members)

    def to_wire(value: Any) -> str:
        name: str = value.name
        if by_name.get(name) is not value:
            raise TypeError(f"not a member of the enumeration {list(by_name)}")
        return name

    return Form(f"member:{json.dumps(list(by_name))}", str, to_wire, by_name.__getitem__)


# --- dates and times --------------------------------------------------------------------------------------------------


def _naive_to_wire(value: Any) -> Any:
    _require(value, dt.datetime)
    # Under a column without a time zone: text keeps the offset, where msgspec's own form of it is UTC.
    return value if value.tzinfo is None else _with_whole_minutes(value).isoformat()


def _aware_to_wire(value: Any) -> Any:
    _require(value, dt.datetime)
    zone = value.tzinfo
    if zone is None or zone is dt.timezone.utc:
        return value
    if type(zone) is ZoneInfo and zone.key is not None:
        return value, zone.key
    return value, _offset_seconds(value)


def _aware_from_wire(value: Any) -> dt.datetime:
    if type(value) is dt.datetime:
        return value
    instant, zone = value
    moment: dt.datetime = instant.astimezone(ZoneInfo(zone) if type(zone) is str else _zone(zone))
    return moment


def _naive_time_to_wire(value: Any) -> Any:
    _require(value, dt.time)
    return value if value.tzinfo is None else _with_whole_minutes(value).isoformat()


def _aware_time_to_wire(value: Any) -> Any:
    _require(value, dt.time)
    return value if value.tzinfo is None else (value.replace(tzinfo=None), _offset_seconds(value))


def _aware_time_from_wire(value: Any) -> dt.time:
    if type(value) is dt.time:
        return value
    clock, seconds = value
    moment: dt.time = clock.replace(tzinfo=_zone(seconds))
    return moment


def _zone(seconds: int) -> dt.timezone:
    return dt.timezone(dt.timedelta(seconds=seconds))


def _offset_seconds(value: dt.datetime | dt.time) -> int:
    offset = value.utcoffset()
    if offset is None or offset.microseconds:
        raise ValueError("its UTC offset is not a whole number of seconds")
    return offset.days * 86_400 + offset.seconds


def _with_whole_minutes(value: Any) -> Any:
    if _offset_seconds(value) % 60:
        raise ValueError("its UTC offset is not a whole number of minutes: declare the column with timezone=True")
    return value


def _timedelta_to_wire(value: Any) -> tuple[int, int, int]:
    _require(value, dt.timedelta)
    return value.days, value.seconds, value.microseconds


def _timedelta_from_wire(value: tuple[int, int, int]) -> dt.timedelta:
    return dt.timedelta(*value)


DATE = Form("date", dt.date)
DATETIME = Form("datetime", dt.datetime, _naive_to_wire)
AWARE_DATETIME = Form(
    "datetime+zone",
    Union[dt.datetime, tuple[dt.datetime, Union[str, int]]],  # noqa: UP007 (a value at run time)
    _aware_to_wire,
    _aware_from_wire,
    dt.datetime,
)
"""With the offset: PostgreSQL's drivers present an instant in the zone that the connection is set to."""
TIME = Form("time", dt.time, _naive_time_to_wire)
AWARE_TIME = Form(
    "time+zone",
    Union[dt.time, tuple[dt.time, int]],  # noqa: UP007 (a value at run time)
    _aware_time_to_wire,
    _aware_time_from_wire,
    dt.time,
)
TIMEDELTA = Form("timedelta", tuple[int, int, int], _timedelta_to_wire, _timedelta_from_wire)


# --- network addresses ------------------------------------------------------------------------------------------------

ADDRESSES: Mapping[str, Callable[[str], Any]] = {
    class_.__name__: class_
    for class_ in (
        str,  # where the driver or `native_inet_types=False` makes no objects of them
        ipaddress.IPv4Address,
        ipaddress.IPv4Interface,
        ipaddress.IPv4Network,
        ipaddress.IPv6Address,
        ipaddress.IPv6Interface,
        ipaddress.IPv6Network,
    )
}


def _address_to_wire(value: Any) -> tuple[str, str]:
    name = type(value).__name__
    if ADDRESSES.get(name) is not type(value):
        raise TypeError(f"expected one of {', '.join(ADDRESSES)}")
    return name, str(value)


def _address_from_wire(value: tuple[str, str]) -> Any:
    return ADDRESSES[value[0]](value[1])


ADDRESS = Form("address", tuple[str, str], _address_to_wire, _address_from_wire)


# --- structures -------------------------------------------------------------------------------------------------------


def _json_to_wire(value: Any) -> Any:
    if _fits_messagepack(value):
        return value
    sent = json_text(value)
    if json.loads(bytes(sent.data)) != value:
        raise ValueError("it would not come back equal")
    return sent


def _fits_messagepack(value: Any) -> bool:
    """Return whether MessagePack holds *value*, of which a JSON deserialiser made nothing but plain types.

    msgspec would send a Decimal or a tuple, too, and bring back a string or a list: so look at every node.
    """
    type_ = type(value)
    if type_ is str:
        return _is_unicode(value)
    if type_ is dict:
        for key in value:
            _require(key, str)
        readable = all(_is_unicode(key) for key in value)
        return _all_fit_messagepack(value.values()) and readable
    if type_ is list:
        return _all_fit_messagepack(value)
    if type_ is int:
        return bool(-(2**63) <= value < 2**64)
    if value is None or type_ is float or type_ is bool:
        return True
    raise TypeError(f"expected what JSON can hold, not {type_.__qualname__}")


def _all_fit_messagepack(values: Iterable[Any]) -> bool:
    fit = True
    for value in values:
        # Not all(): every node is looked at, also after one that does not fit.
        fit &= _fits_messagepack(value)
    return fit


def _is_unicode(text: str) -> bool:
    """Return whether *text* is free of lone surrogates, which JSON's escapes can spell and UTF-8 cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _strings_to_wire(value: Any) -> dict[str, str | None]:
    _require(value, dict)
    for key, item in value.items():
        _require(key, str)
        if item is not None:
            _require(item, str)
    found: dict[str, str | None] = value
    return found


JSON = Form("json", Any, _json_to_wire)
STRINGS = Form("strings", dict[str, Union[str, None]], _strings_to_wire)  # noqa: UP007 (a value at run time)


def array_of(item: Form, collection: type[list[Any] | tuple[Any, ...]]) -> Form:
    """Return the form of PostgreSQL's arrays: *collection*s of items or, in more dimensions, of *collection*s.

    They are rectangular, so they travel flat, with the lengths of the inner dimensions: msgspec knows no recursive
    types. The items are no *collection*s themselves.
    """
    send, receive = _sender(item), item.from_wire

    def to_wire(value: Any) -> tuple[list[int], list[Any]]:
        _require(value, collection)
        lengths = []
        while value and type(value[0]) is collection:
            length = len(value[0])
            if any(type(inner) is not collection or len(inner) != length for inner in value):
                raise ValueError("not a rectangular array")
            lengths.append(length)
            value = [element for inner in value for element in inner]
        return lengths, [None if element is None else send(element) for element in value]

    def from_wire(value: tuple[list[int], list[Any]]) -> Any:
        lengths, items = value
        if receive is not None:
            items = [None if element is None else receive(element) for element in items]
        for length in reversed(lengths):
            items = [collection(items[start : start + length]) for start in range(0, len(items), length)]
        return collection(items)

    wire = tuple[list[int], list[Union[item.wire, None]]]  # type: ignore[name-defined]  # noqa: UP007 (made at run time)
    return Form(f"array:{collection.__name__}({item.kind})", wire, to_wire, from_wire)


def range_of(bound: Form, class_: Callable[..., Any]) -> Form:
    """Return the form of ranges, which are `class_(lower, upper, bounds="[)", empty=False)`."""
    send, receive = _sender(bound), bound.from_wire or _unchanged

    def to_wire(value: Any) -> tuple[Any, Any, str, bool]:
        if type(value) is not class_:
            raise TypeError("expected a range")
        lower, upper = (None if side is None else send(side) for side in (value.lower, value.upper))
        return lower, upper, value.bounds, value.empty

    def from_wire(value: tuple[Any, Any, str, bool]) -> Any:
        lower, upper = (None if side is None else receive(side) for side in value[:2])
        return class_(lower, upper, bounds=value[2], empty=value[3])

    side: Any = Union[bound.wire, None]  # noqa: UP007 (made at run time)
    return Form(f"range({bound.kind})", tuple[side, side, str, bool], to_wire, from_wire)


def multirange_of(single: Form, class_: type[list[Any]]) -> Form:
    """Return the form of *class_*, a list of the ranges of form *single*."""
    send, receive = _sender(single), single.from_wire or _unchanged

    def to_wire(value: Any) -> list[Any]:
        _require(value, class_)
        return [send(element) for element in value]

    def from_wire(value: list[Any]) -> list[Any]:
        return class_(receive(element) for element in value)

    return Form(f"multi{single.kind}", list[single.wire], to_wire, from_wire)  # type: ignore[name-defined]


def _sender(form: Form) -> Callable[[Any], Any]:
    """Return *form*'s `to_wire`, or what the codec does for a field without: compare the type."""
    if form.to_wire is not None:
        return form.to_wire
    accepted = accepted_types(form.field(form.kind)) or frozenset()

    def send(value: Any) -> Any:
        if type(value) not in accepted:
            raise TypeError(f"{type(value).__qualname__} in place of {form.kind}")
        return value

    return send


def _unchanged(value: Any) -> Any:
    return value
