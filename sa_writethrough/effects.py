"""What the statements of a transaction do to cached families: the words in which `dml` tells `writing`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sa_writethrough.entities import Entities, Family, TableName

__all__ = ["NAMED_OPTION", "TABLES_OPTION", "Effect", "Released", "RolledBack", "Saved", "Undone", "Written", "named"]

TABLES_OPTION = "writethrough_tables"
"""Execution option: the tables (names, Table objects or mapped classes) that a statement changes."""

NAMED_OPTION = "_sa_writethrough_named"
"""Execution option: the family, of one registration, whose rows the caller learns by RETURNING."""


@dataclass(frozen=True, slots=True)
class Written:
    """Rows of one family that a statement is about to write.

    identities: their primary keys, or None where they cannot be named. gone: whether they will not be there afterwards.
    by_unit_of_work: whether SQLAlchemy's own persistence wrote the statement for instances of a session.
    unseen: whether it inserts rows whose keys are not known here.
    """

    family: Family
    identities: Sequence[tuple[Any, ...]] | None
    gone: bool = False
    by_unit_of_work: bool = False
    unseen: bool = False


@dataclass(frozen=True, slots=True)
class Undone:
    """The statement moved savepoints, or the isolation level, behind SQLAlchemy's back.

    lasting: the level is that of the connection's later transactions, too.
    """

    isolation: bool
    lasting: bool = False


@dataclass(frozen=True, slots=True)
class Saved:
    """The statement sets a savepoint."""

    name: str


@dataclass(frozen=True, slots=True)
class Released:
    """The statement releases a savepoint."""

    name: str


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The statement rolls back to a savepoint."""

    name: str


Effect: TypeAlias = Written | Undone | Saved | Released | RolledBack


def named(entities: Entities, names: Iterable[TableName]) -> Iterator[Written]:
    """Yield every family that has rows in one of these tables, or whose rows the database changes with theirs."""
    for name in names:
        for family in (
            *entities.families_of_table(name),
            *entities.reached_by_delete(name),
            *entities.reached_by_update(name),
        ):
            yield Written(family, None)
