"""The write side of one registration: which listeners hang where.

a session begins > its connection has a unit · every statement (`executing`) > unit.touch ·
after_flush (`snapshots`) > inserted rows · the driver's COMMIT (`ending`): announce, COMMIT, publish
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session

from sa_writethrough import _sqla
from sa_writethrough.core import Core, SessionWork
from sa_writethrough.ending import Ending
from sa_writethrough.engines import may_have_begun
from sa_writethrough.exceptions import ConfigurationError
from sa_writethrough.executing import Executing
from sa_writethrough.snapshots import Snapshots
from sa_writethrough.taps import tap, untap

__all__ = ["Writing"]


class Writing:
    """Ties one registration to sessions and engines."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._snapshots = Snapshots(core)
        self._executing = Executing(core)
        self._engines: WeakKeyDictionary[Engine, Ending] = WeakKeyDictionary()
        self._ahead: WeakSet[Engine] = WeakSet()

    # --- engines ---

    def listen_to(self, engine: Engine) -> None:
        """Listen to *engine*; a second call does nothing."""
        root = _sqla.root_engine(engine)
        if root in self._engines:
            return
        ending = self._engines[root] = Ending(self._core, root.dialect)
        tap(root.dialect, ending)
        for name, listener in self._engine_listeners(ending):
            event.listen(root, name, listener)

    def _engine_listeners(self, ending: Ending) -> list[tuple[str, Any]]:
        return [
            ("do_execute", self._executing.do_execute),
            ("do_executemany", self._executing.do_executemany),
            ("do_execute_no_params", self._executing.do_execute_no_params),
            ("handle_error", ending.handle_error),
        ]

    def _look_ahead(self, engine: Engine) -> None:
        """Listen one step earlier, if others listen to the dialect: one that executes a statement keeps it from us.

        SQLAlchemy lets nobody be the first of them. Not everywhere: it costs every statement a good deal more.
        """
        root = _sqla.root_engine(engine)
        if root not in self._ahead and not _sqla.executes_alone(root.dialect):
            self._ahead.add(root)
            event.listen(root, "before_cursor_execute", self._executing.before_cursor_execute)

    def close(self) -> None:
        """Stop listening to engines."""
        for engine in list(self._ahead):
            event.remove(engine, "before_cursor_execute", self._executing.before_cursor_execute)
        self._ahead.clear()
        for engine, ending in list(self._engines.items()):
            untap(engine.dialect, ending)
            for name, listener in self._engine_listeners(ending):
                event.remove(engine, name, listener)
        self._engines.clear()

    # --- sessions ---

    def session_listeners(self) -> list[tuple[str, Any, dict[str, Any]]]:
        """Return what to listen for on the Session factory: name, listener, arguments."""
        return [
            ("after_begin", self._after_begin, {}),
            ("before_flush", self._before_flush, {}),
            # First of all listeners: another one may change the instances, which changes no row.
            ("after_flush", self._after_flush, {"insert": True}),
            ("after_transaction_end", self._after_transaction_end, {}),
        ]

    def _after_begin(self, session: Session, _transaction: Any, connection: Connection) -> None:
        self._begin(session, connection)
        self._look_ahead(connection.engine)

    def _begin(self, session: Session, connection: Connection) -> None:
        if self._core.unit_of(connection) is not None:  # it is a known connection of a known engine
            self._core.join(session, connection)
            return
        self.listen_to(connection.engine)
        if connection.connection.is_detached:
            raise ConfigurationError(
                "The session is bound to a detached connection: the end of its transaction cannot be seen. "
                "Bind it to an engine or to a pooled connection."
            )
        _begin_before_savepoint(session, connection)
        earlier = _sqla.is_joined(session, connection) and may_have_begun(connection)
        if self._core.engines.supports(connection.engine):
            facts = self._core.engines.learn(connection)  # now, before the session has read or written anything
            unit = self._core.join(session, connection)
            if earlier:
                # Somebody else's transaction, which has done we do not know what: it may have written any row.
                for family in self._core.entities.families:
                    scope = self._core.scope(family, facts, connection.get_execution_options())
                    unit.touch_epoch(scope.epoch, family)
                    for collection in self._core.collections.of_members(family):
                        unit.touch_epoch(collection.scope(scope).epoch, collection)
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

    def _after_transaction_end(self, session: Session, transaction: Any) -> None:
        if transaction.parent is None:
            self._core.part(session)


def _begin_before_savepoint(session: Session, connection: Connection) -> None:
    """Set the savepoint of a session that joins a transaction once more, now that `executing` begins before it.

    sqlite3 does not, and the savepoint's RELEASE would be an unannounced COMMIT. Nothing has been done in it yet.
    """
    name = _sqla.savepoint_joined_by(session, connection) if connection.dialect.name == "sqlite" else None
    if name is not None:
        connection.exec_driver_sql(f"RELEASE SAVEPOINT {name}")
        connection.exec_driver_sql(f"SAVEPOINT {name}")
