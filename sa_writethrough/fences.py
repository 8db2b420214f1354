"""The verified fill: read rows, and learn in the same statement, or in one after it, that no writer holds them.

A tombstone can be lost, so its absence proves nothing; the database's own row locks do. A writer announces while it
holds the lock: if nobody holds it after the reader took its lease, no announcement can have been lost that matters.

PostgreSQL: the row's `xmax` comes with the row. Zero means that nobody ever locked this version. Anything else is
ambiguous (an aborted update, a child row's key-share lock, a multixact), so it is not decoded: the row is read again
under a share lock, inside a savepoint that is rolled back, which frees the lock. SQLite: there is one write lock, so
the row is read again under BEGIN IMMEDIATE, on a connection that is opened for it, unless the store cannot lose a
tombstone. MariaDB: the rows are read again LOCK IN SHARE MODE, with SKIP LOCKED or NOWAIT; in a transaction of their
own, since InnoDB keeps locks when a savepoint is rolled back. A server is asked whatever the store is: a COMMIT whose
outcome nobody learnt may come there when its tombstones have expired.

What is in doubt is not filled: that costs a miss, a wrong fill the promise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from sa_writethrough import _sqla
from sa_writethrough._pools import connection_aside, connection_of_its_own
from sa_writethrough.engines import EngineFacts
from sa_writethrough.rows import Selection, Shapes

__all__ = ["Fence", "FencedRow", "in_savepoint", "under_write_lock"]

T = TypeVar("T")

_SKIPPING_MARIADB = (10, 6)


@dataclass(frozen=True, slots=True)
class FencedRow:
    """A selected row, and what may be filled of it: None where a writer may hold it."""

    selection: Selection
    fillable: Selection | None


@dataclass(frozen=True, slots=True)
class Fence:
    """Reads rows of one family through one connection.

    connection: the application's own; nothing is left locked on it.
    lossless: the store cannot lose a tombstone.
    """

    connection: Connection
    shapes: Shapes
    facts: EngineFacts
    lossless: bool
    execution_options: Any

    def read(
        self, identities: Sequence[tuple[Any, ...]], leased: Callable[[tuple[Any, ...]], bool]
    ) -> dict[tuple[Any, ...], FencedRow]:
        """Return the rows that exist, by primary key. Only those that *leased* approves are worth verifying."""
        statement, parameters = self.shapes.by_identities(identities)
        raws = self.connection.execute(statement, parameters, execution_options=self.execution_options).all()
        if self.facts.dialect_name == "mariadb":
            return self._read_again(raws, leased)
        rows = {}
        for raw in raws:
            identity = self.shapes.identity_of(raw)
            selection = self.shapes.read(raw)
            verify = selection.layout is not None and leased(identity)
            rows[identity] = FencedRow(selection, self._verified(identity, selection) if verify else None)
        return rows

    def _verified(self, identity: tuple[Any, ...], selection: Selection) -> Selection | None:
        if self.facts.dialect_name == "sqlite":
            return selection if self.lossless else self._under_write_lock(identity)
        return selection if selection.unlocked else self._under_share_lock(identity, selection)

    # --- PostgreSQL ---

    def _under_share_lock(self, identity: tuple[Any, ...], selection: Selection) -> Selection | None:
        if selection.layout is None:
            return None
        statements = self.shapes.locking(identity, selection.layout)
        if not _sqla.is_autocommit(self.connection):
            return in_savepoint(self.connection, lambda: self._last_row(self.connection, statements))
        # Each statement is a transaction: only one that locks and reads at once proves anything.
        try:
            return self._last_row(self.connection, statements) if len(statements) == 1 else None
        except SQLAlchemyError:
            return None

    def _last_row(self, connection: Connection, statements: Sequence[Any]) -> Selection | None:
        raw = None
        for statement, parameters in statements:
            raw = connection.execute(statement, parameters, execution_options=self.execution_options).first()
            if raw is None:
                return None
        return self.shapes.read(raw) if raw is not None else None

    # --- MariaDB ---

    def _read_again(
        self, raws: Sequence[Any], leased: Callable[[tuple[Any, ...]], bool]
    ) -> dict[tuple[Any, ...], FencedRow]:
        """Return the rows that were read, and those of them that nobody holds as they are under a share lock."""
        selections = {self.shapes.identity_of(raw): self.shapes.read(raw) for raw in raws}
        wanted = [i for i, selection in selections.items() if selection.layout is not None and leased(i)]
        unheld = self._under_innodb_locks(wanted) if wanted else {}
        return {identity: FencedRow(selection, unheld.get(identity)) for identity, selection in selections.items()}

    def _under_innodb_locks(self, identities: Sequence[tuple[Any, ...]]) -> dict[tuple[Any, ...], Selection]:
        """Return those of the rows that nobody holds: all at once, or, where somebody does, one after another."""
        engine = self.connection.engine
        try:
            with connection_aside(engine) as aside:
                found = self._unheld(aside, identities)
                if found is None and len(identities) > 1:
                    each = [self._unheld(aside, [identity]) or {} for identity in identities]
                    return {identity: selection for one in each for identity, selection in one.items()}
                return found or {}
        except (SQLAlchemyError, engine.dialect.loaded_dbapi.Error):  # there is no way in, or no connection left
            return {}

    @property
    def _version(self) -> tuple[Any, ...]:
        return self.connection.dialect.server_version_info or ()

    def _unheld(
        self, aside: Connection, identities: Sequence[tuple[Any, ...]]
    ) -> dict[tuple[Any, ...], Selection] | None:
        """Return rows under a share lock, which the end of the transaction frees; None where somebody holds one."""
        statement, parameters = self.shapes.by_identities(identities)
        own = self.connection.get_execution_options()
        options = {name: own[name] for name in ("schema_translate_map",) if name in own} | dict(self.execution_options)
        try:
            # Rows that are held are left out, quietly, where the server can do that and no outer join hides it.
            skips = self.shapes.whole and self._version >= _SKIPPING_MARIADB
            locked = statement.with_for_update(read=True, skip_locked=skips, nowait=not skips)
            raws = aside.execute(locked, parameters, execution_options=options).all()
        except DBAPIError:
            aside.rollback()
            return None
        return {self.shapes.identity_of(raw): self.shapes.read(raw) for raw in raws}

    # --- SQLite ---

    def _under_write_lock(self, identity: tuple[Any, ...]) -> Selection | None:
        statements = [self.shapes.by_identities([identity])]
        return under_write_lock(self.connection, self.facts, lambda own: self._last_row(own, statements))


def in_savepoint(connection: Connection, read: Callable[[], T | None]) -> T | None:
    """Return what *read*, which takes locks, returns; free the locks. None where it may not: that is in doubt."""
    try:
        with connection.begin_nested() as savepoint:
            found = read()
            savepoint.rollback()
    except SQLAlchemyError:  # a read-only transaction, no right to lock
        return None
    return found


def under_write_lock(connection: Connection, facts: EngineFacts, read: Callable[[Connection], T | None]) -> T | None:
    """Return what *read* returns while nobody can write to the SQLite database; None where somebody does."""
    if facts.isolated:  # another connection would be another database
        return None
    engine = connection.engine
    try:
        # Not from the pool: the application may hold its last connection, and this one must not wait for it.
        with connection_of_its_own(engine).execution_options(isolation_level="AUTOCOMMIT") as own:
            own.exec_driver_sql("PRAGMA busy_timeout = 0")
            own.exec_driver_sql("BEGIN IMMEDIATE")
            found = read(own)
            own.exec_driver_sql("ROLLBACK")
            if engine.dialect.is_async:
                own.invalidate()  # closes it even where the task is cancelled meanwhile
    except (SQLAlchemyError, engine.dialect.loaded_dbapi.Error):  # a writer holds the lock, or there is no way in
        return None
    except BaseException as error:  # a task was cancelled
        _sqla.let_go_of_cursors(error)
        raise
    return found
