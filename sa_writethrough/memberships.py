"""The rows of one owner's collection in SQL, and the fence that tells whether anybody is about to join, move or leave.

PostgreSQL: who joins holds the owner's row through the foreign key, and who leaves, changes its primary key, or moves
in the order, its own. So both are locked, in a savepoint that is rolled back; what is locked already is in doubt. Of
members a zero `xmax` says that nobody holds them. SQLite: as for rows, `fences` says how.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from sqlalchemy import bindparam, literal_column, select
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.sql import Select

from sa_writethrough import _sqla
from sa_writethrough.engines import EngineFacts
from sa_writethrough.fences import in_savepoint, under_write_lock
from sa_writethrough.references import Collection, MembersCodec
from sa_writethrough.rows import unlocked

__all__ = ["Memberships"]

Identity: TypeAlias = tuple[Any, ...]


class Memberships:
    """Selects the primary keys of the members of one collection, in one dialect."""

    def __init__(self, collection: Collection, dialect: Dialect) -> None:
        self.codec: MembersCodec = collection.codec(dialect)
        self._names = tuple(f"writethrough_owner_{index}" for index in range(len(collection.columns)))
        members: Select[Any] = select(*self.codec.expressions).select_from(collection.source)
        members = members.where(*self._criteria(collection.columns))
        owner: Select[Any] = select(literal_column("1")).select_from(collection.owner_columns[0].table)
        self._members = members.order_by(*collection.statement_order)
        self._unlocked = self._members.add_columns(unlocked(collection.mapper.tables))
        self._lock_owner = owner.where(*self._criteria(collection.owner_columns)).with_for_update(skip_locked=True)
        self._lock_members = members.with_for_update(read=True, skip_locked=True)

    def _criteria(self, columns: Sequence[Any]) -> list[Any]:
        return [column == bindparam(name, type_=column.type) for column, name in zip(columns, self._names, strict=True)]

    def fenced(
        self, connection: Connection, facts: EngineFacts, owner: Identity, options: Mapping[str, Any], *, lossless: bool
    ) -> list[Any] | None:
        """Return the members, in order; None where they may be about to change.

        connection: the application's own, which has written nothing; nothing is left locked on it. lossless: the store
        cannot lose a tombstone. The caller has leased the entry before.
        """
        parameters = dict(zip(self._names, owner, strict=True))

        def run(on: Connection, statement: Any) -> list[Any]:
            return [tuple(row) for row in on.execute(statement, parameters, execution_options=options)]

        def locked() -> list[Any] | None:
            if not run(connection, self._lock_owner):
                return None
            members = run(connection, self._unlocked)
            if all(member[-1] for member in members):
                return [member[:-1] for member in members]
            # `fences` says why: it is not known who holds them, if anybody does.
            free = run(connection, self._lock_members)
            members = run(connection, self._members)
            return members if sorted(map(repr, free)) == sorted(map(repr, members)) else None

        if facts.dialect_name == "sqlite":
            if lossless:
                return run(connection, self._members)
            return under_write_lock(connection, facts, lambda own: run(own, self._members))
        if _sqla.is_autocommit(connection):
            return None  # the locks would be free again after each statement
        return in_savepoint(connection, locked)
