"""From an identity to the key of its entry. Pure.

A key is printable ASCII of at most 250 bytes:

    wt1:<namespace>:<schema.table>:<identity token>:<primary key>

and where it would be longer, or a part of it is not printable, that part's BLAKE2b digest stands in its place. Two
values that the database holds equal must give one key, or a writer would announce another key than the reader's; two
different rows may share a key, since an entry also carries its row's own primary key, which the reader compares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, datetime, timezone
from decimal import Decimal
from enum import Enum
from hashlib import blake2b
from typing import Any
from urllib.parse import quote
from uuid import UUID

__all__ = ["MAX_KEY_BYTES", "canonical_part", "entry_key", "epoch_key", "family_prefix", "folded_part", "loose_part"]

MAX_KEY_BYTES = 250
_MAX_PART_BYTES = 64


def family_prefix(namespace: str, schema: str | None, table: str) -> str:
    """Return what the keys of all rows of one base table begin with."""
    name = f"{_name(schema)}.{_name(table)}" if schema else _name(table)
    return f"wt1:{namespace}:{name}:"


def epoch_key(prefix: str) -> str:
    """Return the key of the epoch that the rows under *prefix* belong to. No row's key ends like it."""
    return f"{prefix}@epoch"


def entry_key(prefix: str, token: Any, parts: Sequence[str]) -> str:
    """Return the key of one row; *token* is SQLAlchemy's identity token, *parts* the canonical primary key."""
    key = f"{prefix}{'' if token is None else _text(repr(token))}:{','.join(parts)}"
    if len(key) <= MAX_KEY_BYTES:
        return key
    return f"wt1:#{blake2b(key.encode(), digest_size=32).hexdigest()}"


def canonical_part(value: Any) -> str | None:
    """Return the text of one primary key value, or None where equal values have no one text (floats, foreign types).

    The type must match exactly: True is no integer, '1' is not 1.
    """
    to_text = _CANONICAL.get(type(value))
    if to_text is not None:
        return to_text(value)
    if isinstance(value, Enum):
        return _text(value.name)
    return None


def loose_part(value: Any) -> str | None:
    """Return one text for strings that a database may hold equal: without regard to case and trailing blanks."""
    if type(value) is not str:
        return None
    return _text(value.casefold().rstrip(" "))


def folded_part(value: str) -> str | None:
    """Return one text for strings that any of MariaDB's collations may hold equal, or None where that is not known.

    Of printable ASCII they differ in case, trailing blanks, and letters that some languages do not tell apart: i, j and
    y; u, v and w. What other characters are equal to depends on the collation, which the model need not say.
    """
    if not (value.isascii() and value.isprintable()):
        return None
    return _text(value.lower().rstrip(" ").translate(_ONE_LETTER))


_ONE_LETTER = str.maketrans("jyvw", "iiuu")


def _name(value: str) -> str:
    """Return the text of a schema's or a table's name; a dot of its own must not look like the one between the two."""
    return _digest(value) if "." in value else _text(value)


def _text(value: str) -> str:
    quoted = quote(value, safe="-_.~", errors="surrogatepass")
    return quoted if len(quoted) <= _MAX_PART_BYTES else _digest(value)


def _digest(value: str) -> str:
    return "#" + blake2b(value.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()


def _decimal(value: Decimal) -> str | None:
    if not value.is_finite():
        return None
    # Written out, not normalized: normalize() rounds to the context's precision and would merge different keys.
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return _text("0" if text in {"-0", ""} else text)


def _datetime(value: datetime) -> str:
    if value.tzinfo is not None:
        value = value.astimezone(timezone.utc)
    return _text(value.isoformat())


_CANONICAL: dict[type, Callable[[Any], str | None]] = {
    int: str,
    str: _text,
    UUID: lambda value: value.hex,
    bytes: lambda value: _text("x" + value.hex()),
    date: date.isoformat,
    datetime: _datetime,
    Decimal: _decimal,
}
