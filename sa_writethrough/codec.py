"""Rows to bytes and back. Pure: knows msgspec, not SQLAlchemy; what a column's values look like comes as `Field`s.

An entry's payload is

    format version (1 byte) | schema fingerprint (8 bytes) | [HMAC-SHA256, first 16 bytes] | MessagePack array

The fingerprint stands in the value and not in the key: a reader with another version of the model sees a miss, and the
writers of every version announce on the same key. Never pickle: whoever can write to the cache must not run code.
"""

from __future__ import annotations

import datetime as dt
import hmac
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from hashlib import blake2b
from types import UnionType
from typing import Any, Union, get_args, get_origin

import msgspec

from sa_writethrough.exceptions import CodecError

__all__ = ["NO_ROW", "Field", "RowCodec", "accepted_types", "fingerprint_in", "fingerprint_of", "json_text"]

NO_ROW = b"\x00"
"""The payload that says that there is no such row; it is of no format."""

# A signed payload has a format of its own: a reader without the secret must not take a signature for a row.
FORMAT = b"\x01"
FORMAT_SIGNED = b"\x02"
FINGERPRINT_BYTES = 8
SIGNATURE_BYTES = 16
JSON_TEXT = 1

# What msgspec sends and brings back unchanged. It would send more (a set as a list, an int for a float, any UTC offset
# as UTC) and bring back something else, so encoding compares the types before.
SCALARS = frozenset({bool, bytes, dt.date, Decimal, float, int, str, uuid.UUID, type(None)})


@dataclass(frozen=True, slots=True)
class Field:
    """How one column's values travel.

    `wire` is a type that msgspec can decode to, without None (every field is optional); `to_wire` turns a value of a
    row into one that msgspec encodes as `wire`, `from_wire` the reverse. Both see no None; None means unchanged.

    Without `to_wire` a value's type must be `wire`, or a member of it where it is a union, exactly; encoding refuses
    any other. A `to_wire` answers itself for what it lets through, and refuses by raising.

    `unchanged`: values of this type `from_wire` returns as they are, so that it need not be called for them.
    """

    name: str
    wire: Any
    to_wire: Callable[[Any], Any] | None = None
    from_wire: Callable[[Any], Any] | None = None
    unchanged: type | None = None


class RowCodec:
    """Encode and decode the rows of one schema.

    *fingerprint* is `fingerprint_of` everything that gives the bytes their meaning. With *secret*, payloads are signed,
    and those that are not signed with it are not read. A signature does not say which key a payload belongs to: the
    caller compares the decoded row's primary key with the one it asked for.
    """

    __slots__ = (
        "_accepted",
        "_decode",
        "_encode",
        "_fields",
        "_from_wire",
        "_header",
        "_secret",
        "_start",
        "_to_wire",
        "fingerprint",
    )

    def __init__(self, fields: Sequence[Field], fingerprint: bytes, secret: bytes | None = None) -> None:
        if len(fingerprint) != FINGERPRINT_BYTES:
            raise ValueError(f"a fingerprint has {FINGERPRINT_BYTES} bytes, not {len(fingerprint)}: use fingerprint_of")
        if secret is not None and not secret:
            raise ValueError("the secret is empty: give at least 16 random bytes, or None for unsigned payloads")
        row_type: Any = tuple[tuple(Union[field.wire, None] for field in fields)]  # type: ignore[misc]  # noqa: UP007 (made at run time)
        self.fingerprint = fingerprint
        self._fields = tuple(fields)
        self._secret = secret
        self._header = (FORMAT if secret is None else FORMAT_SIGNED) + fingerprint
        self._start = len(self._header) + (0 if secret is None else SIGNATURE_BYTES)
        # 16 bytes instead of 36 characters.
        self._encode = msgspec.msgpack.Encoder(uuid_format="bytes").encode
        self._decode: Callable[[bytes], tuple[Any, ...]] = msgspec.msgpack.Decoder(
            row_type, ext_hook=_from_extension
        ).decode
        self._accepted = tuple(accepted_types(field) for field in fields)
        self._to_wire = tuple((index, field.to_wire) for index, field in enumerate(fields) if field.to_wire)
        self._from_wire = tuple((index, field.from_wire) for index, field in enumerate(fields) if field.from_wire)

    def encode(self, row: Sequence[Any]) -> bytes:
        """Return *row* as bytes, at once: nothing of it is referred to afterwards, so its dicts and lists may change.

        Raises CodecError, and nothing else, for a row that would not come back equal and of the same types.
        """
        values = list(row)
        try:
            for index, convert in self._to_wire:
                value = values[index]
                if value is not None:
                    values[index] = convert(value)
            for value, accepted in zip(values, self._accepted, strict=True):
                if accepted is not None and type(value) not in accepted:
                    raise TypeError  # noqa: TRY301 (the reason is found below, where there is time for it)
            body = self._encode(values)
        except Exception as error:  # converters may raise anything, and the caller is promised CodecError
            raise self._refusal(row, error) from error
        if self._secret is None:
            return self._header + body
        return self._header + _signature(self._secret, self._header, body) + body

    def decode(self, payload: bytes) -> tuple[Any, ...] | None:
        """Return the row in *payload*; None where it is not ours to read: another format or schema, forged, damaged."""
        try:
            row = self.open_one(payload)
            if row is None or not self._from_wire:
                return row
            values = list(row)
            for index, convert in self._from_wire:
                value = values[index]
                if value is not None:
                    values[index] = convert(value)
        except Exception:  # noqa: BLE001 (whatever bytes the cache holds, a reader must be able to go to the database)
            return None
        return tuple(values)

    def open(self, payloads: Sequence[bytes]) -> Iterator[tuple[Any, ...]] | None:
        """Return the rows in *payloads* as they travelled, or None where one of them is not ours to read.

        The caller applies `from_wire`. Rows are decoded one by one, when they are asked for: a row that goes at once
        into its instance is never seen by the garbage collector. Raises whatever it is for one that is damaged.
        """
        header, start = self._header, self._start
        bodies = [payload[start:] for payload in payloads if payload.startswith(header)]
        if len(bodies) < len(payloads):
            return None
        if self._secret is not None and not all(map(self._is_signed, payloads, bodies)):
            return None
        return map(self._decode, bodies)

    def open_one(self, payload: bytes) -> tuple[Any, ...] | None:
        """Do for one payload what `open` does for several; raises at once."""
        if not payload.startswith(self._header):
            return None
        body = payload[self._start :]
        if self._secret is not None and not self._is_signed(payload, body):
            return None
        return self._decode(body)

    def _is_signed(self, payload: bytes, body: bytes) -> bool:
        signature = payload[len(self._header) : self._start]
        return hmac.compare_digest(signature, _signature(self._secret or b"", self._header, body))

    def _refusal(self, row: Sequence[Any], error: Exception) -> CodecError:
        """Find out which field of *row* cannot travel. Slow, and only for rows that are known to be refused."""
        if len(row) != len(self._fields):
            return CodecError(f"a row of {len(row)} values for {len(self._fields)} fields: {self._names()}")
        for field, accepted, value in zip(self._fields, self._accepted, row, strict=True):
            reason = self._objection(field, accepted, value)
            if reason is not None:
                return CodecError(f"{field.name}: a value of type {_name_of(type(value))} cannot be cached: {reason}")
        return CodecError(f"a row of {self._names()} cannot be cached: {error}")

    def _objection(self, field: Field, accepted: frozenset[type] | None, value: Any) -> str | None:
        try:
            sent = value if value is None or field.to_wire is None else field.to_wire(value)
            self._encode(sent)
        except Exception as error:  # noqa: BLE001 (converters may raise anything)
            return f"{error} ({type(error).__name__})"
        if accepted is None or type(sent) in accepted:
            return None
        expected = " or ".join(sorted(_name_of(type_) for type_ in accepted - {type(None)}))
        return f"the column's type promises {expected}"

    def _names(self) -> str:
        return ", ".join(field.name for field in self._fields)


def fingerprint_of(parts: Iterable[str]) -> bytes:
    """Return 8 bytes that differ where *parts*, or their order, differ (BLAKE2b; no secret)."""
    digest = blake2b(digest_size=FINGERPRINT_BYTES)
    for part in parts:
        text = part.encode("utf-8", "surrogatepass")
        # The length first, so that "ab", "c" is not "a", "bc".
        digest.update(b"%d:" % len(text) + text)
    return digest.digest()


def fingerprint_in(payload: bytes) -> bytes:
    """Return the fingerprint of the schema that *payload* was written in, or some bytes where it is no payload."""
    return payload[len(FORMAT) : len(FORMAT) + FINGERPRINT_BYTES]


def json_text(value: Any) -> msgspec.msgpack.Ext:
    """Return a JSON value as its text, for one that MessagePack cannot hold; `decode` makes the value of it.

    An extension and not a string that a `from_wire` would look at: a hit on an ordinary value pays nothing.
    """
    return msgspec.msgpack.Ext(JSON_TEXT, json.dumps(value).encode())


def _from_extension(code: int, content: memoryview) -> Any:
    if code != JSON_TEXT:
        raise ValueError(f"unknown extension {code}")
    return json.loads(bytes(content))


def accepted_types(field: Field) -> frozenset[type] | None:
    """Return the types whose values travel unchanged as *field*, or None where `to_wire` answers for them."""
    if field.to_wire is not None:
        return None
    members = get_args(field.wire) if get_origin(field.wire) in (Union, UnionType) else (field.wire,)
    if not SCALARS.issuperset(members):
        raise ValueError(f"{field.name}: values of {field.wire} need a to_wire that refuses what would not come back")
    return frozenset(members) | {type(None)}


def _signature(secret: bytes, header: bytes, body: bytes) -> bytes:
    return hmac.digest(secret, header + body, "sha256")[:SIGNATURE_BYTES]


def _name_of(type_: type) -> str:
    return type_.__qualname__ if type_.__module__ == "builtins" else f"{type_.__module__}.{type_.__qualname__}"
