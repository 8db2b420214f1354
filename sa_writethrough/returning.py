"""Rows of the unit of work's own UPDATEs, from the UPDATEs themselves: RETURNING, on PostgreSQL.

SQLAlchemy's UPDATE of one instance writes the changed columns and asks for nothing back. Here ` RETURNING <columns>` is
put behind it for the driver, and the row that comes back is taken from the cursor. So the stored row is known without
another round trip. What cannot return a whole row (several tables, several sets of
parameters, a RETURNING of its own) is read back by a SELECT before COMMIT, as on every other database.
"""

from __future__ import annotations

from typing import Any

from sa_writethrough import _sqla
from sa_writethrough.core import Core
from sa_writethrough.entities import Family
from sa_writethrough.exceptions import CodecError
from sa_writethrough.policy import OnWrite, ReadBack
from sa_writethrough.rows import Shapes
from sa_writethrough.unit import Touch, Unit

__all__ = ["Returning"]


class Returning:
    """Executes statements with RETURNING put behind them."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def execute(  # noqa: PLR0917 - what the event gets, and for whom
        self,
        unit: Unit,
        touched: tuple[str, Touch],
        cursor: Any,
        sql: str,
        parameters: Any,
        context: Any,
    ) -> bool:
        """Execute *sql*, which writes one row under its lock, and note the row; tell whether that was possible."""
        shapes = self._shapes(touched[1], sql, context)
        if shapes is None:
            return False
        context.dialect.do_execute(cursor, f"{sql} RETURNING {shapes.returning}", parameters, context)
        rows = cursor.fetchall()
        _sqla.discard_rows(context)  # to describe the result of a statement that returned none is quicker, too
        if len(rows) == 1:
            payload = self._payload(cursor, context, shapes, rows[0])
            if payload is not None:
                unit.learn(*touched, payload)
        return True

    def _shapes(self, touch: Touch, sql: str, context: Any) -> Shapes | None:
        """Return how to read what the statement returns, or None if it can return no whole row."""
        family: Family = touch.model
        policy = family.policy
        if (
            context.dialect.name != "postgresql"
            or not context.isupdate
            or touch.gone
            or policy.on_write is not OnWrite.PUBLISH
            or policy.read_back is not ReadBack.WHEN_NEEDED
            or sql != context.statement  # somebody has put something behind it: a comment, a RETURNING
            or _sqla.returns_rows(context)
            or not _sqla.executes_alone(context.dialect)
        ):
            return None
        shapes = self._core.shapes(family, context.dialect)
        return None if shapes.returning is None else shapes

    def _payload(self, cursor: Any, context: Any, shapes: Shapes, row: Any) -> bytes | None:
        selection = shapes.read_returned(context, cursor, row)
        if selection.layout is None:
            return None
        try:
            return selection.layout.codec.encode(selection.row)
        except CodecError:  # the reading back finds it again, and tells of it
            return None
