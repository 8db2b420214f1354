"""The end of a transaction: announce before the driver's COMMIT, publish after it, retract after a ROLLBACK.

Tied to the driver's own calls and not to a session's events: `before_commit` comes before the final flush, fires for
savepoints, and fires for sessions inside somebody else's transaction, where no COMMIT follows; `after_commit` does not
come where another listener raised, or one of several databases failed. Whatever ends a transaction (a session, an outer
transaction, close, garbage collection, the pool) comes by here. After COMMIT nothing raises.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Connection, Dialect, ExceptionContext
from sqlalchemy.orm import Session

from sa_writethrough import _sqla
from sa_writethrough.core import Core
from sa_writethrough.engines import Transaction, driver_in_transaction, driver_transaction
from sa_writethrough.exceptions import WriteThroughError
from sa_writethrough.staging import abandon, announce, publish, retract
from sa_writethrough.taps import Do
from sa_writethrough.unit import Phase, Unit

__all__ = ["Ending"]


class Ending:
    """The tap of one registration on one dialect."""

    def __init__(self, core: Core, dialect: Dialect) -> None:
        self._core = core
        self._dialect = dialect

    def do_begin(self, do: Do, dbapi_connection: Any) -> None:
        """Forget what an earlier transaction left, if it ended where nobody could see it."""
        unit: Unit | None = dbapi_connection.info.get(self._core)
        # Else another Connection shares the driver's (SQLite in memory), and is in the middle of it.
        if unit is not None and not unit.is_fresh and not driver_in_transaction(dbapi_connection.dbapi_connection):
            forget(self._core, unit)
        do(dbapi_connection)

    def do_commit(self, do: Do, dbapi_connection: Any) -> None:
        """Announce, commit, publish."""
        unit: Unit | None = dbapi_connection.info.get(self._core)
        if unit is None or unit.is_fresh or unit.phase is Phase.ENDING:
            do(dbapi_connection)
            return
        said = driver_transaction(dbapi_connection.dbapi_connection)
        if said is Transaction.FAILED:
            # PostgreSQL answers this COMMIT with ROLLBACK. Another database's COMMIT may have announced it already.
            self.do_rollback(do, dbapi_connection)
            return
        if unit.phase is Phase.OPEN:
            if unit.is_empty:
                unit.clear()
                do(dbapi_connection)
                return
            if said is Transaction.NONE:
                unit.forget_values()  # it was ended past SQLAlchemy: as it was told to, nobody knows
            try:
                self._announce_all(unit)
            except BaseException:
                # SQLAlchemy takes the transaction for ended, and would return the connection to the pool inside it.
                roll_back(self._core, dbapi_connection, unit)
                raise
        try:
            do(dbapi_connection)
        except BaseException as error:
            self._failed(dbapi_connection, unit, error)
            raise
        publish(self._core, unit)

    def do_rollback(self, do: Do, dbapi_connection: Any) -> None:
        """Roll back, then forget; take back what was announced, since the rollback is acknowledged."""
        unit: Unit | None = dbapi_connection.info.get(self._core)
        if unit is None or unit.is_fresh or unit.phase is Phase.ENDING:
            do(dbapi_connection)
            return
        try:
            do(dbapi_connection)
        except BaseException:
            forget(self._core, unit)
            raise
        if unit.phase is Phase.ANNOUNCED:
            retract(self._core, unit)
        else:
            forget(self._core, unit)

    def handle_error(self, context: ExceptionContext) -> None:
        """Answer a statement that failed: OR ROLLBACK ended the transaction, or it found the database locked."""
        connection = context.connection
        if connection is None or connection.closed or connection.invalidated:
            return
        unit = self._core.unit_of(connection)
        if unit is None or unit.is_fresh or unit.phase is not Phase.OPEN:
            return
        said = driver_transaction(connection.connection.driver_connection)
        if said is Transaction.BEGUN or (said is Transaction.UNKNOWN and self._is_databases(context)):
            unit.doubted = True
        elif context.statement is None:
            return
        elif said is Transaction.NONE:
            unit.clear()
        elif connection.dialect.name == "sqlite":
            unit.snapshot = True  # it may have been the write that did not get the lock: others still commit

    def _is_databases(self, context: ExceptionContext) -> bool:
        """Tell whether it was the database that failed: it may have rolled back (MariaDB does after a deadlock)."""
        return isinstance(context.original_exception, self._dialect.loaded_dbapi.Error)

    # --- two phases ---

    def do_prepare_twophase(self, do: Do, connection: Connection, xid: Any) -> None:
        """Announce, prepare. From here on the rows are in the database's hands."""
        unit = self._core.unit_of(connection)
        self._announce_twophase(connection, unit)
        if unit is None:
            do(connection, xid)
            return
        after = Phase.PREPARED if unit.phase is Phase.ANNOUNCED else unit.phase
        unit.phase = Phase.ENDING  # MariaDB's and asyncpg's dialects use SQL for it
        try:
            do(connection, xid)
        finally:
            unit.phase = after

    def do_commit_twophase(self, do: Do, connection: Connection, xid: Any, *rest: Any, **recover: Any) -> None:
        """Announce what was not prepared, commit, publish."""
        unit = self._core.unit_of(connection)
        self._announce_twophase(connection, unit)
        if self._ends_twophase(unit, do, connection, xid, *rest, **recover) and unit is not None:
            publish(self._core, unit)

    def do_rollback_twophase(self, do: Do, connection: Connection, xid: Any, *rest: Any, **recover: Any) -> None:
        """Roll back, retract."""
        unit = self._core.unit_of(connection)
        if self._ends_twophase(unit, do, connection, xid, *rest, **recover) and unit is not None:
            retract(self._core, unit)

    def _announce_twophase(self, connection: Connection, unit: Unit | None) -> None:
        if unit is None or unit.phase is not Phase.OPEN or unit.is_empty:
            return
        if driver_transaction(connection.connection.driver_connection) is not Transaction.FAILED:
            announce(self._core, connection, unit)

    def _ends_twophase(self, unit: Unit | None, do: Do, *arguments: Any, **recover: Any) -> bool:
        """Do it; tell whether the unit was announced. The dialect may use `do_commit`, `do_rollback` and SQL for it."""
        announced = unit is not None and unit.phase is not Phase.OPEN
        if unit is not None:
            unit.phase = Phase.ENDING
        try:
            do(*arguments, **recover)
        except BaseException:
            if unit is not None:
                abandon(self._core, unit)
            raise
        if unit is not None and not announced:
            unit.clear()
        return announced

    # --- what happens at an end ---

    def _announce_all(self, unit: Unit) -> None:
        """Announce every unit of the session before its first COMMIT: a second one that fails would come too late.

        One that was announced when the next one fails stays so until its connection is rolled back.
        """
        connection = unit.connection_alive()
        announce(self._core, connection, unit)
        session: Session | None = unit.session() if unit.session is not None else None
        if session is None or connection is None or not _sqla.ends_transaction(session, connection):
            return
        work = self._core.work_of(session)
        for other, its_unit in [] if work is None or len(work.units) == 1 else work.units:
            if its_unit.phase is not Phase.OPEN or its_unit.is_empty or not _sqla.ends_transaction(session, other):
                continue
            # One that failed could not read back, and will write nothing.
            if driver_transaction(other.connection.driver_connection) is not Transaction.FAILED:
                announce(self._core, other, its_unit)

    def _failed(self, dbapi_connection: Any, unit: Unit, error: BaseException) -> None:
        """Answer a COMMIT that raised."""
        refused = isinstance(error, (self._dialect.loaded_dbapi.Error, WriteThroughError))
        if not refused and self._dialect.is_async and self._dialect.name == "sqlite":
            outwait(self._core, dbapi_connection, unit)
        elif not refused or self._dialect.is_disconnect(error, dbapi_connection, None):  # type: ignore[arg-type]  # refused
            abandon(self._core, unit)  # it may still be under way
        else:
            # SQLite's BUSY leaves the transaction open, and SQLAlchemy would return it to the pool like that.
            roll_back(self._core, dbapi_connection, unit)


def forget(core: Core, unit: Unit) -> None:
    """Forget a unit whose transaction is over; of one that was announced, what became of it is unknown."""
    if unit.phase is Phase.OPEN:
        unit.clear()
    else:
        abandon(core, unit)


def roll_back(core: Core, dbapi_connection: Any, unit: Unit) -> None:
    """Roll back here, so that it is acknowledged before the tombstones are taken back."""
    try:
        dbapi_connection.rollback()
    except Exception as error:  # noqa: BLE001 - whoever ended the transaction hears of it from SQLAlchemy
        core.cache.report(error)
        abandon(core, unit)
    except BaseException:  # a task was cancelled, perhaps once more: the connection will be closed
        abandon(core, unit)
        raise
    else:
        retract(core, unit)


def outwait(core: Core, dbapi_connection: Any, unit: Unit) -> None:
    """Answer the cancellation of a COMMIT that the driver's thread goes on with: wait until it is over.

    No tombstone may expire before that: where the store keeps tombstones, nothing else holds a reader back. A rollback
    is done when the COMMIT before it has been; then absent is right, whatever became of that. Where nobody can wait for
    it, tombstones without a time limit stay, until the row is written again or evicted.
    """
    try:
        dbapi_connection.rollback()
    except BaseException as error:  # noqa: BLE001 - cancelled once more; the first one goes to the caller
        if isinstance(error, Exception):
            core.cache.report(error)
        unit.clear()
    else:
        retract(core, unit)
