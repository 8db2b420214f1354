"""Rows of the unit of work's own UPDATEs, from the UPDATEs themselves: RETURNING, on PostgreSQL.

SQLAlchemy's UPDATE of one instance writes the changed columns and asks for nothing back. Here ` RETURNING <columns>` is
put behind it just before the driver gets it, and the row that comes back is taken from the cursor just after. So the
stored row is known without another round trip. What cannot return a whole row (several tables, several sets of
parameters, a RETURNING of its own) is read back by a SELECT before COMMIT, as on every other database.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Connection

from sa_writethrough import _sqla
from sa_writethrough.core import Core
from sa_writethrough.entities import Family
from sa_writethrough.exceptions import CodecError
from sa_writethrough.policy import OnWrite, ReadBack
from sa_writethrough.rows import Shapes
from sa_writethrough.unit import Touch, Unit

__all__ = ["Returning"]


class Returning:
    """Adds RETURNING to statements, and takes what they return. Keeps what it waits for on the unit."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def add(self, connection: Connection, context: Any, sql: str, unit: Unit, touched: tuple[str, Touch]) -> str:
        """Return *sql*, which writes one row under its lock, with RETURNING if it can have it."""
        family: Family = touched[1].model
        policy = family.policy
        if (
            connection.dialect.name != "postgresql"
            or not context.isupdate
            or context.executemany
            or touched[1].gone
            or policy.on_write is not OnWrite.PUBLISH
            or policy.read_back is not ReadBack.WHEN_NEEDED
            or sql != context.statement  # somebody has put something behind it: a comment, a RETURNING
            or _sqla.returns_rows(context)
        ):
            return sql
        shapes = self._core.shapes(family, connection.dialect)
        columns = shapes.returning
        if columns is None:
            return sql
        unit.returning = (context, *touched, shapes)
        return f"{sql} RETURNING {columns}"

    def take(self, cursor: Any, context: Any, unit: Unit) -> None:
        """Take the row that the statement returned, if it was given RETURNING."""
        expected, key, touch, shapes = unit.returning
        unit.returning = None
        if context is not expected:
            return
        rows = cursor.fetchall()
        if len(rows) == 1:
            payload = self._payload(cursor, context, shapes, rows[0])
            if payload is not None:
                unit.learn(key, touch, payload)

    def _payload(self, cursor: Any, context: Any, shapes: Shapes, row: Any) -> bytes | None:
        selection = shapes.read_returned(context, cursor.description, row)
        if selection.layout is None:
            return None
        try:
            return selection.layout.codec.encode(selection.row)
        except CodecError:  # the reading back finds it again, and tells of it
            return None
