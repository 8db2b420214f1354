"""Every statement, one step before the driver: what it writes is touched, and its row taken where it returns it.

Everything passes there: the unit of work, bulk methods, Core, `text()`, DML in a CTE, statements that other listeners
execute during a flush. The dialect's own events and not the connection's: those make SQLAlchemy dispatch ten of them
for each statement of every connection of the engine.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from sqlalchemy.engine import Connection

from sa_writethrough import _sqla
from sa_writethrough.core import Core, SessionWork
from sa_writethrough.dml import ends_transaction, writes_of
from sa_writethrough.effects import Effect, Released, RolledBack, Saved, Undone, Written
from sa_writethrough.engines import driver_autocommits, driver_in_transaction
from sa_writethrough.exceptions import ConfigurationError
from sa_writethrough.joining import Joining
from sa_writethrough.returning import Returning
from sa_writethrough.staging import announce, announce_late
from sa_writethrough.unit import Phase, Touch, Unit

__all__ = ["Executing"]


class Executing:
    """Listens to the statements of one registration's engines."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._returning = Returning(core)
        self._joining = Joining(core)

    # --- the dialect's events; true says that the statement has been executed ---

    def do_execute(self, cursor: Any, sql: str, parameters: Any, context: Any) -> bool | None:
        """Touch what one statement writes, and execute it here if that tells the row that it wrote."""
        written = self._look_at(cursor, sql, context)
        return written is not None and self._returning.execute(*written, cursor, sql, parameters, context)

    def do_execute_no_params(self, cursor: Any, sql: str, context: Any) -> None:
        """Touch what a statement without parameters writes."""
        self._look_at(cursor, sql, context)

    def do_executemany(self, cursor: Any, sql: str, _parameters: Any, context: Any) -> None:
        """Touch what a statement with several sets of parameters writes."""
        self._look_at(cursor, sql, context)

    # --- the connection's, where somebody else may execute statements before the dialect's listeners reach ours ---

    def before_cursor_execute(
        self,
        _connection: Connection,
        cursor: Any,
        sql: str,
        _parameters: Any,
        context: Any,
        _many: bool,  # noqa: FBT001 - the event's signature
    ) -> None:
        """Touch what any statement writes. To touch it once more when the dialect's event comes changes nothing."""
        self._look_at(cursor, sql, context)

    def _look_at(self, cursor: Any, sql: str, context: Any) -> tuple[Unit, tuple[str, Touch]] | None:
        """Note the statement's effects; return the row, with its unit, if it surely writes that one and no more."""
        if context is None:
            return None
        connection: Connection = context.root_connection
        unit = self._core.unit_of(connection)
        if unit is None:
            if sql.startswith("SAVEPOINT"):
                # A session that joins the transaction begins after it has set its savepoint.
                _begin(connection, cursor)
            return None
        if unit.phase is Phase.ENDING:
            return None
        touched = self._note(connection, unit, cursor, sql, context)
        return None if touched is None else (unit, touched)

    # --- its effects ---

    def _note(
        self, connection: Connection, unit: Unit, cursor: Any, sql: str, context: Any
    ) -> tuple[str, Touch] | None:
        """Note the statement's effects; return the row if it surely writes that one, under its lock, and no more."""
        ends = ends_transaction(context, sql)
        if ends:
            _refuse_commit(unit, sql)
        effects = writes_of(self._core.entities, context, sql)
        if not effects:
            return None
        touched = None
        if len(effects) > 1:
            # Two classes of one table share their keys: what the unit of work itself wrote is noted last, and stands.
            effects = sorted(effects, key=_is_by_unit_of_work)
        for effect in effects:
            if isinstance(effect, Written):
                touched = self._touch(connection, unit, effect, context.execution_options)
            else:
                self._move(connection, unit, cursor, effect)
        if any(isinstance(effect, Written) for effect in effects):
            _begin(connection, cursor)
        if self._core.collections.declared and unit.wrote:
            self._joining.note(unit, effects, self._core.engines.learn(connection), context)
        if unit.phase is not Phase.OPEN and unit.wrote:
            announce_late(self._core, unit)
            return None
        if ends and not unit.is_empty:
            announce(self._core, None, unit)  # now: it is final when it returns, whatever ends the transaction
        return touched

    def _move(self, connection: Connection, unit: Unit, cursor: Any, effect: Effect) -> None:
        """Note what happens to savepoints and to the isolation level."""
        if isinstance(effect, Saved):
            _begin(connection, cursor)
            unit.savepoint(effect.name)
        elif isinstance(effect, Released):
            unit.release(effect.name)
        elif isinstance(effect, RolledBack):
            self._roll_back_to(unit, effect.name)
        elif isinstance(effect, Undone):
            unit.forget_values()
            unit.snapshot = unit.snapshot or effect.isolation
            unit.level_set = unit.level_set or effect.lasting

    def _touch(
        self, connection: Connection, unit: Unit, written: Written, options: Mapping[str, Any]
    ) -> tuple[str, Touch] | None:
        """Note what a statement writes; return the row if it is one, and surely written under its lock."""
        if not unit.wrote:
            _refuse_autocommit(connection, written)
        family = written.family
        unit.wrote = True
        unit.connection = weakref.ref(connection)
        scope = self._core.scope(family, self._core.engines.learn(connection), options)
        held = unit.phase is Phase.OPEN and written.by_unit_of_work and self._is_flushing(unit)
        last = None
        for identity in written.identities or ():
            key = family.key(scope, identity)
            if key is None:
                unit.touch_epoch(scope.epoch, family)
            else:
                last = key, Touch(family, scope.epoch, identity, held, written.gone)
                unit.touch(*last)
        if written.identities is None:
            unit.touch_epoch(scope.epoch, family)
        if written.unseen and not held:  # what a flush inserts is touched after it
            if family.policy.negative:
                unit.touch_epoch(scope.epoch, family)  # it may be cached that they do not exist
            else:
                unit.insert_unseen(scope.epoch)
        return last if held and written.identities is not None and len(written.identities) == 1 else None

    def _roll_back_to(self, unit: Unit, name: str) -> None:
        unit.rollback_to(name)
        unit.doubted = False  # it succeeds, or is doubted again
        work = self._work_on(unit)
        if work is not None:
            work.flushing = False  # a flush that failed has no end of its own

    def _is_flushing(self, unit: Unit) -> bool:
        work = self._work_on(unit)
        return work is not None and work.flushing

    def _work_on(self, unit: Unit) -> SessionWork | None:
        session = unit.session() if unit.session is not None else None
        return None if session is None else self._core.work_of(session)


def _begin(connection: Connection, cursor: Any) -> None:
    """Begin where sqlite3 does not: before a savepoint, whose RELEASE would be a COMMIT, before WITH and before DDL.

    Else they would be final before anybody is told, and a ROLLBACK would undo nothing.
    """
    if connection.dialect.name != "sqlite" or _sqla.is_autocommit(connection):
        return
    driver: Any = connection.connection.driver_connection
    if driver_in_transaction(driver) is False:
        cursor.execute(f"BEGIN {driver.isolation_level or ''}")


def _is_by_unit_of_work(effect: Effect) -> bool:
    return isinstance(effect, Written) and effect.by_unit_of_work


def _refuse_commit(unit: Unit, sql: str) -> None:
    if unit.phase is Phase.OPEN and not unit.is_empty:
        raise ConfigurationError(
            f"{sql.strip()[:60]!r}: MariaDB commits the transaction before it executes this, and cached models were "
            "written in it, which nobody has announced. Commit first."
        )


def _refuse_autocommit(connection: Connection, written: Written) -> None:
    if _sqla.is_autocommit(connection) or driver_autocommits(connection.connection.dbapi_connection):
        raise ConfigurationError(
            f"{written.family.base.class_.__name__} is cached, and the connection is in AUTOCOMMIT: each statement is "
            "final before the cache can be told. Write cached models in a transaction; reading them is allowed."
        )
