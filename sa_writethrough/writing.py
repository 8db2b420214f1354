"""The listeners of one write: touch, announce, publish, retract.

    every statement > dml > unit.touch · after_flush > unit.touch with the row's value ·
    the connection's commit event: announce, read back, wait · COMMIT · after_commit > publish

The announcement hangs on the connection's own commit event, the last moment before COMMIT: `before_commit` comes before
the final flush, fires for savepoints, and fires for sessions inside somebody else's transaction, where no COMMIT
follows. Whatever ends a transaction otherwise (rollback, close, garbage collection, a broken connection) reaches the
connection or its pool, and is answered there. After COMMIT nothing raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine, ExceptionContext
from sqlalchemy.orm import Session

from sa_writethrough import _sqla
from sa_writethrough.core import Core, SessionWork
from sa_writethrough.dml import writes_of
from sa_writethrough.effects import Effect, Saved, Written
from sa_writethrough.engines import driver_autocommits, driver_failed, driver_in_transaction
from sa_writethrough.exceptions import ConfigurationError
from sa_writethrough.returning import Returning
from sa_writethrough.snapshots import Snapshots
from sa_writethrough.staging import abandon, announce, announce_late, publish, retract
from sa_writethrough.unit import Phase, Touch, Unit

__all__ = ["Writing"]


class Writing:
    """The write side of one registration."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._snapshots = Snapshots(core)
        self._returning = Returning(core)
        self._engines: WeakSet[Engine] = WeakSet()

    def session_listeners(self) -> list[tuple[str, Any, dict[str, Any]]]:
        """Return what to listen for on the Session factory: name, listener, arguments."""
        return [
            ("after_begin", self._after_begin, {}),
            ("before_flush", self._before_flush, {}),
            # First of all listeners: another one may change the instances, which changes no row.
            ("after_flush", self._after_flush, {"insert": True}),
            ("after_commit", self._after_commit, {"insert": True}),
            ("after_rollback", self._after_rollback, {"insert": True}),
            ("after_transaction_end", self._after_transaction_end, {}),
        ]

    def _engine_listeners(self, engine: Engine) -> list[tuple[Any, str, Any, dict[str, Any]]]:
        return [
            (engine, "before_cursor_execute", self._before_cursor_execute, {"retval": True}),
            (engine, "after_cursor_execute", self._after_cursor_execute, {}),
            (engine, "begin", self._settle, {}),
            (engine, "commit", self._commit, {}),
            (engine, "rollback", self._rollback, {}),
            (engine, "savepoint", self._savepoint, {}),
            (engine, "rollback_savepoint", self._rollback_savepoint, {}),
            (engine, "release_savepoint", self._release_savepoint, {}),
            (engine, "prepare_twophase", self._prepare_twophase, {}),
            (engine, "commit_twophase", self._commit_twophase, {}),
            (engine, "rollback_twophase", self._rollback_twophase, {}),
            (engine, "handle_error", self._handle_error, {}),
            (engine, "reset", self._reset, {}),
        ]

    def listen_to(self, engine: Engine) -> None:
        """Listen to *engine*; a second call does nothing."""
        root = _sqla.root_engine(engine)
        if root not in self._engines:
            self._engines.add(root)
            for target, name, listener, arguments in self._engine_listeners(root):
                event.listen(target, name, listener, **arguments)

    def close(self) -> None:
        """Stop listening to engines."""
        for engine in list(self._engines):
            for target, name, listener, _ in self._engine_listeners(engine):
                event.remove(target, name, listener)
        self._engines.clear()

    # --- the session ---

    def _after_begin(self, session: Session, _transaction: Any, connection: Connection) -> None:
        if self._core.unit_of(connection) is not None:  # it is a known connection of a known engine
            self._core.join(session, connection)
            return
        self.listen_to(connection.engine)
        if connection.connection.is_detached:
            raise ConfigurationError(
                "The session is bound to a detached connection: the end of its transaction cannot be seen. "
                "Bind it to an engine or to a pooled connection."
            )
        self._begin_before_savepoint(session, connection)
        earlier = _sqla.is_joined(session, connection) and driver_in_transaction(
            connection.connection.driver_connection
        )
        if self._core.engines.supports(connection.engine):
            facts = self._core.engines.learn(connection)  # now, before the session has read or written anything
            unit = self._core.join(session, connection)
            if earlier:
                # Somebody else's transaction, which has done we do not know what: it may have written any row.
                for family in self._core.entities.families:
                    scope = self._core.scope(family, facts, connection.get_execution_options())
                    unit.touch_epoch(scope.epoch, family)
        else:
            self._core.join(session, connection)

    def _before_flush(self, session: Session, _context: Any, _instances: Any) -> None:
        work = self._core.work_of(session)
        if work is None:
            work = session.info[self._core] = SessionWork()
        work.flushing = True

    def _after_flush(self, session: Session, context: Any) -> None:
        work = self._core.work_of(session)
        if work is not None:
            work.flushing = False
            self._snapshots.after_flush(session, work, context)

    def _after_commit(self, session: Session) -> None:
        # For a savepoint, or inside somebody else's transaction, no unit is announced and nothing happens here.
        for _, unit in self._units(session):
            if unit.phase is Phase.ANNOUNCED:
                publish(self._core, unit)

    def _after_rollback(self, session: Session) -> None:
        for _, unit in self._units(session):
            if unit.phase is Phase.ROLLING_BACK:
                retract(self._core, unit)

    def _after_transaction_end(self, session: Session, transaction: Any) -> None:
        if transaction.parent is None:
            self._core.part(session)

    def _units(self, session: Session) -> list[tuple[Connection, Unit]]:
        work = self._core.work_of(session)
        return [] if work is None else work.units

    # --- the connection ---

    def _before_cursor_execute(
        self,
        connection: Connection,
        _cursor: Any,
        sql: str,
        parameters: Any,
        context: Any,
        _many: bool,  # noqa: FBT001 - the event's signature
    ) -> tuple[str, Any]:
        unit = self._core.unit_of(connection)
        if unit is None or context is None:
            return sql, parameters
        unit.returning = None
        effects = writes_of(self._core.entities, context, sql)
        if len(effects) > 1:
            # Two classes of one table share their keys: what the unit of work itself wrote is noted last, and stands.
            effects = sorted(effects, key=_is_by_unit_of_work)
        for effect in effects:
            if isinstance(effect, Written):
                _refuse_autocommit(connection, effect)
                touched = self._touch(connection, unit, effect, context.execution_options)
                if unit.phase is not Phase.OPEN:
                    announce_late(self._core, unit)
                elif touched is not None:
                    sql = self._returning.add(connection, context, sql, unit, touched)
            elif isinstance(effect, Saved):
                unit.savepoint(effect.name)
            else:
                unit.forget_values()
                unit.snapshot = unit.snapshot or effect.isolation
        return sql, parameters

    def _after_cursor_execute(
        self,
        connection: Connection,
        cursor: Any,
        _sql: str,
        _parameters: Any,
        context: Any,
        _many: bool,  # noqa: FBT001 - the event's signature
    ) -> None:
        unit = self._core.unit_of(connection)
        if unit is not None and unit.returning is not None:
            self._returning.take(cursor, context, unit)

    def _touch(
        self, connection: Connection, unit: Unit, written: Written, options: Mapping[str, Any]
    ) -> tuple[str, Touch] | None:
        """Note what a statement writes; return the row if it is one, and surely written under its lock."""
        family = written.family
        unit.wrote = True
        facts = self._core.engines.learn(connection)
        scope = self._core.scope(family, facts, options)
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
            unit.insert_unseen(scope.epoch)
        return last if held and written.identities is not None and len(written.identities) == 1 else None

    def _is_flushing(self, unit: Unit) -> bool:
        work = self._work_on(unit)
        return work is not None and work.flushing

    def _work_on(self, unit: Unit) -> SessionWork | None:
        session = unit.session() if unit.session is not None else None
        return None if session is None else self._core.work_of(session)

    def _savepoint(self, connection: Connection, _name: str | None) -> None:
        """Begin before the first savepoint: sqlite3 does not, and its RELEASE would be an unannounced COMMIT.

        Also where no session has begun yet: one that joins the transaction begins after it has set its savepoint.
        """
        if connection.dialect.name != "sqlite":
            return
        begun = driver_in_transaction(connection.connection.driver_connection)
        if begun is False and not _sqla.is_autocommit(connection):
            connection.exec_driver_sql("BEGIN")

    def _begin_before_savepoint(self, session: Session, connection: Connection) -> None:
        """Do what `_savepoint` does for the savepoint of a session that is the first one of its engine."""
        name = _sqla.savepoint_joined_by(session, connection) if connection.dialect.name == "sqlite" else None
        if name is not None:
            connection.exec_driver_sql(f"RELEASE SAVEPOINT {name}")  # nothing has been done in it
            self._savepoint(connection, name)
            connection.exec_driver_sql(f"SAVEPOINT {name}")

    def _rollback_savepoint(self, connection: Connection, name: str, _context: Any) -> None:
        unit = self._core.unit_of(connection)
        if unit is None:
            return
        unit.rollback_to(name)
        work = self._work_on(unit)
        if work is not None:
            work.flushing = False  # a flush that failed has no end of its own

    def _release_savepoint(self, connection: Connection, name: str, _context: Any) -> None:
        unit = self._core.unit_of(connection)
        if unit is not None:
            unit.release(name)

    # --- the end of the transaction ---

    def _commit(self, connection: Connection) -> None:
        unit = self._core.unit_of(connection)
        if unit is None or unit.is_fresh or unit.phase is not Phase.OPEN:
            return
        if unit.is_empty or driver_failed(connection.connection.driver_connection):
            unit.clear()  # nothing was written; or a statement failed, and PostgreSQL answers this COMMIT with ROLLBACK
            return
        try:
            self._announce_all(connection, unit)
        except BaseException:
            # SQLAlchemy takes the transaction for ended when this event raises, and would return the connection to
            # the pool inside it, locks held.
            if not connection.invalidated:
                self._roll_back_now(connection.connection, unit)
            raise

    def _announce_all(self, connection: Connection, unit: Unit) -> None:
        """Announce every unit of the session before its first COMMIT: a second one that fails would come too late.

        One that was announced when the next one fails stays so until its connection is rolled back.
        """
        session = unit.session() if unit.session is not None else None
        announce(self._core, connection, unit)
        if session is None or not _sqla.ends_transaction(session, connection):
            return
        for other, its_unit in self._units(session):
            waits = its_unit.phase is Phase.OPEN and not its_unit.is_empty
            if waits and _sqla.ends_transaction(session, other):
                announce(self._core, other, its_unit)

    def _rollback(self, connection: Connection) -> None:
        unit = self._core.unit_of(connection)
        if unit is None or unit.is_fresh:
            return
        if unit.phase is Phase.ANNOUNCED:
            self._roll_back_now(connection.connection, unit)
        else:
            unit.clear()

    def _roll_back_now(self, dbapi_connection: Any, unit: Unit) -> None:
        """Roll back here, so that it is acknowledged before the tombstones are taken back."""
        try:
            dbapi_connection.rollback()
        except Exception as error:  # noqa: BLE001 - whoever ended the transaction hears of it from SQLAlchemy
            self._core.cache.report(error)
            abandon(self._core, unit)
        else:
            retract(self._core, unit)

    def _settle(self, connection: Connection) -> None:
        unit = self._core.unit_of(connection)
        if unit is None or unit.is_fresh:
            return
        dbapi_connection = connection.connection.dbapi_connection
        if unit.phase is Phase.OPEN and driver_in_transaction(dbapi_connection) is True:
            return  # another Connection shares this one (SQLite in memory), and is in the middle of it
        self._settle_unit(dbapi_connection, unit)

    def _reset(self, dbapi_connection: Any, record: Any, _state: Any) -> None:
        unit: Unit | None = record.info.get(self._core)
        if unit is not None:
            self._settle_unit(dbapi_connection, unit)

    def _settle_unit(self, dbapi_connection: Any, unit: Unit) -> None:
        """Answer the end of a transaction that no session event told of: an outer one, a half-failed commit."""
        if unit.is_fresh:
            return
        if unit.phase is Phase.OPEN:
            unit.clear()
        elif unit.phase is not Phase.ANNOUNCED:
            abandon(self._core, unit)
        elif driver_in_transaction(dbapi_connection) is False:
            publish(self._core, unit)  # a COMMIT that failed would have come to _handle_error
        else:
            self._roll_back_now(dbapi_connection, unit)

    def _handle_error(self, context: ExceptionContext) -> None:
        """Answer a COMMIT that failed, and a statement whose failure ended the transaction (SQLite's OR ROLLBACK)."""
        connection = context.connection
        if connection is None or connection.closed or connection.invalidated:
            return
        unit = self._core.unit_of(connection)
        if unit is None or unit.is_fresh:
            return
        if context.statement is not None:
            if unit.phase is Phase.OPEN and driver_in_transaction(connection.connection.driver_connection) is False:
                unit.clear()
        elif unit.phase is not Phase.ANNOUNCED:
            return
        elif context.is_disconnect:
            abandon(self._core, unit)  # it may still be under way
        else:
            # SQLite's BUSY leaves the transaction open, and SQLAlchemy would return it to the pool like that.
            self._roll_back_now(connection.connection, unit)

    # --- two phases ---

    def _prepare_twophase(self, connection: Connection, _xid: Any) -> None:
        unit = self._core.unit_of(connection)
        if unit is None or unit.phase is not Phase.OPEN or unit.is_empty:
            return
        if not driver_failed(connection.connection.driver_connection):
            announce(self._core, connection, unit)
            unit.phase = Phase.PREPARED

    def _commit_twophase(self, connection: Connection, xid: Any, _is_prepared: bool) -> None:  # noqa: FBT001 - the event's signature
        self._prepare_twophase(connection, xid)  # where it was not prepared before
        unit = self._core.unit_of(connection)
        if unit is not None and unit.phase is Phase.PREPARED:
            unit.phase = Phase.ANNOUNCED

    def _rollback_twophase(self, connection: Connection, _xid: Any, _is_prepared: bool) -> None:  # noqa: FBT001 - the event's signature
        unit = self._core.unit_of(connection)
        if unit is not None and unit.phase is Phase.OPEN:
            unit.clear()
        elif unit is not None:
            unit.phase = Phase.ROLLING_BACK


def _is_by_unit_of_work(effect: Effect) -> bool:
    return isinstance(effect, Written) and effect.by_unit_of_work


def _refuse_autocommit(connection: Connection, written: Written) -> None:
    if _sqla.is_autocommit(connection) or driver_autocommits(connection.connection.driver_connection):
        raise ConfigurationError(
            f"{written.family.base.class_.__name__} is cached, and the connection is in AUTOCOMMIT: each statement is "
            "final before the cache can be told. Write cached models in a transaction; reading them is allowed."
        )
