"""Unique keys by which rows are looked up: which there are, and the entries that point from a key to a primary key.

Knows mappers and metadata; knows nothing of sessions, stores or transactions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from sqlalchemy import Column, Index, PrimaryKeyConstraint, Table, UniqueConstraint, types
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import Mapper

from sa_writethrough import keys
from sa_writethrough.codec import RowCodec, fingerprint_of
from sa_writethrough.entities import Entities, Family, Scope
from sa_writethrough.exceptions import ConfigurationError
from sa_writethrough.layouts import Layout, Row
from sa_writethrough.sqltypes import column_of

__all__ = ["UniqueKey", "UniqueKeys"]

Identity: TypeAlias = tuple[Any, ...]
_SURE = (types.Integer, types.String, types.Uuid, types.LargeBinary)
"""Types of which a value that was read is found again by comparing with it."""


class UniqueKey:
    """One of a family's unique keys. Raises `ConfigurationError` for what is none."""

    def __init__(self, family: Family, mapper: Mapper[Any], names: Sequence[str]) -> None:
        self.family = family
        self.mapper = mapper
        self.names = tuple(names)
        self.columns = tuple(_column(mapper, name, self.names) for name in names)
        excluded = sorted(set(names) & family.policy.exclude)
        if excluded:
            raise _refusal(self.names, mapper, f"{', '.join(excluded)} is not cached")
        for column in self.columns:
            if not isinstance(column.type, _SURE):
                raise _refusal(
                    self.names, mapper, f"only the database knows which values of {column} ({column.type!r}) are equal"
                )
        _require_constraint(self.names, mapper, self.columns)
        self._codecs: dict[str, RowCodec] = {}

    def key(self, scope: Scope, values: Sequence[Any]) -> str | None:
        """Return the key of the pointer for *values*, or None where they have no one text, or one of them is NULL."""
        parts = [keys.canonical_part(value) for value in values]
        if None in parts:
            return None
        prefix = f"{scope.prefix}@by.{'.'.join(self.names)}"
        return keys.entry_key(prefix, None, parts)  # type: ignore[arg-type]  # None was excluded above

    def holds(self, layout: Layout, row: Row, values: Sequence[Any]) -> bool:
        """Tell whether a row has exactly these values; what only the database would call equal has not."""
        for name, value in zip(self.names, values, strict=True):
            if name not in layout.names:
                return False
            place = layout.names.index(name)
            convert = layout.columns[place].attribute
            held = row[place] if convert is None else convert(row[place])
            if type(held) is not type(value) or held != value:
                return False
        return True

    def encode(self, identity: Identity, dialect: Dialect) -> bytes:
        """Return a pointer to the row with this primary key. Raises `CodecError`."""
        return self._codec(dialect).encode(identity)

    def decode(self, payload: bytes, dialect: Dialect) -> Identity | None:
        """Return the primary key that a pointer points to, or None where it cannot be read."""
        row = self._codec(dialect).decode(payload)
        return None if row is None or None in row else tuple(row)

    def _codec(self, dialect: Dialect) -> RowCodec:
        codec = self._codecs.get(dialect.name)
        if codec is None:
            cached = [column_of(column, dialect) for column in self.family.base.primary_key]
            fingerprint = fingerprint_of(["pointer", *self.names, *(column.fingerprint for column in cached)])
            codec = RowCodec([column.field for column in cached], fingerprint, self.family.policy.secret)
            self._codecs[dialect.name] = codec
        return codec


class UniqueKeys:
    """The unique keys of one registration's families, found when they are first needed."""

    def __init__(self, entities: Entities) -> None:
        self._entities = entities
        self._found: dict[Family, dict[frozenset[str], UniqueKey]] = {}

    def forget(self) -> None:
        """Find them anew: there is another mapper."""
        self._found.clear()

    def check(self) -> None:
        """Raise `ConfigurationError` if a policy names what is no unique key."""
        for family in self._entities.families:
            self.of(family)

    def of(self, family: Family) -> Mapping[frozenset[str], UniqueKey]:
        """Return the family's unique keys by the names of their attributes."""
        found = self._found.get(family)
        if found is None:
            made = [UniqueKey(family, _mapper_with(family, names), names) for names in family.policy.unique_keys]
            found = self._found[family] = {frozenset(each.names): each for each in made}
        return found

    def require(self, family: Family, mapper: Mapper[Any], names: frozenset[str]) -> UniqueKey:
        """Return the key of these attributes; raise `ConfigurationError` if the policy names none."""
        key = self.of(family).get(names)
        if key is None or not mapper.isa(key.mapper):
            declared = self.of(family).values()
            of = ", ".join(f"({', '.join(each.names)}) of {each.mapper.class_.__name__}" for each in declared)
            raise ConfigurationError(
                f"{mapper.class_.__name__} has no cached unique key of {', '.join(sorted(names)) or 'nothing'}: "
                f"CachePolicy(unique_keys=[...]) names {of or 'none'}. Ask by one of these, or with select()."
            )
        return key


def _mapper_with(family: Family, names: Sequence[str]) -> Mapper[Any]:
    """Return the most general mapper of the family that has attributes of all these names; else its base."""
    mappers = sorted({family.base, *family.mappers}, key=lambda mapper: len(list(mapper.iterate_to_root())))
    return next((mapper for mapper in mappers if all(name in mapper.column_attrs for name in names)), family.base)


def _column(mapper: Mapper[Any], name: str, names: Sequence[str]) -> Column[Any]:
    attribute = mapper.column_attrs.get(name)
    column = None if attribute is None else attribute.columns[0]
    if not isinstance(column, Column) or not isinstance(column.table, Table):
        raise _refusal(names, mapper, f"it has no column attribute {name!r}")
    return column


def _require_constraint(names: Sequence[str], mapper: Mapper[Any], columns: Sequence[Column[Any]]) -> None:
    wanted = set(columns)
    if any(set(unique) == wanted for unique in _uniques(columns[0].table)):
        return
    raise _refusal(
        names,
        mapper,
        f"{columns[0].table} has no unique constraint, and no unique index without conditions, on exactly these "
        "columns, that holds after every statement (a deferrable one does not)",
    )


def _uniques(table: Any) -> Iterator[Sequence[Any]]:
    for constraint in table.constraints:
        unique = isinstance(constraint, UniqueConstraint | PrimaryKeyConstraint)
        if unique and not constraint.deferrable and not constraint.initially:
            yield list(constraint.columns)
    for index in table.indexes:
        if index.unique and not _is_partial(index):
            yield list(index.expressions)


def _is_partial(index: Index) -> bool:
    return any(options.get("where") is not None for options in index.dialect_options.values())


def _refusal(names: Sequence[str], mapper: Mapper[Any], why: str) -> ConfigurationError:
    return ConfigurationError(
        f"CachePolicy(unique_keys=[{tuple(names)!r}]): no unique key of {mapper.class_.__name__}: {why}."
    )
