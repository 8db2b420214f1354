"""What the explored processes do, in the application's own words: real sessions, the real `register`.

Each program has a registration of its own, as each process has. It catches what an application would catch, and returns
a word for what happened.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from sqlalchemy import create_engine, update
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session, make_transient_to_detached, sessionmaker
from sqlalchemy.orm.exc import StaleDataError

import sa_writethrough as wt
from tests.exploration import driver
from tests.exploration.models import Item, OldItem
from tests.exploration.remote import RemoteStore
from tests.exploration.runs import Begun, Ended, Run, RunPool, current, tell

EXPECTED = (wt.CacheUnavailableError, OperationalError, StaleDataError, IntegrityError)


class Registered:
    """One process: its engine, its Session factory, its registration. Warm: nothing is learnt while it is explored.

    *lossless*: its store keeps tombstones and its fills are not verified, as with the in-process store on SQLite.
    """

    def __init__(self, model: type = Item, *, isolation: str | None = None, lossless: bool = False) -> None:
        options = {} if isolation is None else {"isolation_level": isolation}
        self.model = model
        self.repeatable = isolation is not None
        self.engine = create_engine("postgresql+exploration://", module=driver, poolclass=RunPool, **options)
        self.factory = sessionmaker(self.engine)
        self.lossless = lossless
        self.cache = wt.register(self.factory, RemoteStore(keeps_tombstones=lossless), models=[model])
        Run(self._warm).switch()
        self.scope: Any = self.cache._core.scope_in(self.cache._require(model)[0], self.engine)

    def _warm(self) -> None:
        with self.factory() as session:
            session.connection()
        if self.lossless:
            facts = self.cache._core.engines._facts
            facts[self.engine] = replace(facts[self.engine], dialect_name="sqlite")
        current().over = True
        with self.factory() as session:
            self.cache.get(session, self.model, 1)

    def close(self) -> None:
        """End the registration."""
        self.cache.unregister()

    def decoded(self, payload: bytes) -> dict[str, Any] | None:
        """Return the columns of a cached row; None where this version of the application cannot read it."""
        family = self.cache._require(self.model)[0]
        decoded = self.cache._core.shapes(family, self.engine.dialect).decode(payload)
        return None if decoded is None else dict(zip(decoded[0].names, decoded[1], strict=True))


Program: TypeAlias = Callable[[Registered], Hashable]


def program_of(registered: Registered, program: Program) -> Callable[[], Hashable]:
    """Return a program of no arguments, which returns a word for an expected failure."""

    def run() -> Hashable:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return program(registered)
            except EXPECTED as error:
                return type(error).__name__

    return run


# --- writers ----------------------------------------------------------------------------------------------------------


def existing(session: Session, row: int, model: Any = Item) -> Any:
    """Return an instance of a row that is there, without reading it."""
    instance = model(id=row)
    make_transient_to_detached(instance)
    session.add(instance)
    return instance


def writes(row: int = 1, **columns: int) -> Program:
    """Change a row without reading it first."""

    def program(registered: Registered) -> Hashable:
        with registered.factory() as session:
            instance = existing(session, row, registered.model)
            for name, value in columns.items():
                setattr(instance, name, value)
            session.commit()
        return "committed"

    return program


def changes(row: int = 1, **columns: int) -> Program:
    """Load a row, as most applications do, and change it: the instance may be older than the row by then."""

    def program(registered: Registered) -> Hashable:
        with registered.factory() as session:
            instance = session.get(registered.model, row)
            if instance is None:
                return "nothing there"
            for name, value in columns.items():
                setattr(instance, name, value)
            session.commit()
        return "committed"

    return program


def writes_and_rolls_back(row: int = 1, **columns: int) -> Program:
    """Change a row, flush, and roll back."""

    def program(registered: Registered) -> Hashable:
        with registered.factory() as session:
            instance = existing(session, row, registered.model)
            for name, value in columns.items():
                setattr(instance, name, value)
            session.flush()
            session.rollback()
        return "rolled back"

    return program


def inserts(row: int, a: int, b: int) -> Program:
    """Insert a row."""

    def program(registered: Registered) -> Hashable:
        with registered.factory() as session:
            session.add(Item(id=row, a=a, b=b))
            session.commit()
        return "committed"

    return program


def deletes(row: int = 1) -> Program:
    """Delete a row without reading it first."""

    def program(registered: Registered) -> Hashable:
        with registered.factory() as session:
            instance = existing(session, row)
            session.delete(instance)
            session.commit()
        return "committed"

    return program


def one_after_another(*programs: Program) -> Program:
    """Do one program after another, whatever becomes of each; they share a pool's connection."""

    def program(registered: Registered) -> Hashable:
        return tuple(program_of(registered, program)() for program in programs)

    return program


def writes_two_with_savepoint(*, release: bool) -> Program:
    """Change row 1, and rows 1 and 2 inside a savepoint, which is released or rolled back.

    Where it is released, both rows are one statement's, and so are read back; else they come from RETURNING.
    """

    def program(registered: Registered) -> Hashable:
        with registered.factory() as session:
            first = existing(session, 1)
            first.a = 1
            session.flush()
            savepoint = session.begin_nested()
            second = existing(session, 2)
            first.b = 2
            if not release:
                session.flush()
            second.b = 2
            session.flush()
            savepoint.commit() if release else savepoint.rollback()
            session.commit()
        return "committed"

    return program


def writes_inside_outer_transaction(row: int = 1, **columns: int) -> Program:
    """Commit a session that joined somebody else's transaction, which then rolls back."""

    def program(registered: Registered) -> Hashable:
        with registered.engine.connect() as connection:
            outer = connection.begin()
            with registered.factory(bind=connection, join_transaction_mode="create_savepoint") as session:
                instance = existing(session, row)
                for name, value in columns.items():
                    setattr(instance, name, value)
                session.commit()
            outer.rollback()
        return "rolled back"

    return program


def writes_all(**columns: int) -> Program:
    """Change rows by a Core statement that names none of them."""

    def program(registered: Registered) -> Hashable:
        with registered.factory() as session:
            table = Item.__table__
            session.connection().execute(update(table).where(table.c.a >= 0).values(**columns))
            session.commit()
        return "committed"

    return program


# --- readers ----------------------------------------------------------------------------------------------------------


def _columns(instance: Any) -> tuple[tuple[str, Any], ...] | None:
    if instance is None:
        return None
    names = [name for name in ("a", "b") if hasattr(type(instance), name)]
    return tuple((name, getattr(instance, name)) for name in names)


def _read(registered: Registered, session: Session, rows: Sequence[int]) -> None:
    numbers = tuple(row - 1 for row in rows)
    tell(Begun(numbers))
    current().hits.clear()
    if len(rows) == 1:
        instances = [registered.cache.get(session, registered.model, rows[0])]
    else:
        instances = registered.cache.get_many(session, registered.model, rows)
    hits = frozenset(current().hits)
    values = tuple((n, _columns(i)) for n, i in zip(numbers, instances, strict=True))
    tell(Ended(values, hits, hits if registered.repeatable else frozenset(numbers)))


def reads(*rows: int) -> Program:
    """Read rows through the cache in a session of their own."""

    def program(registered: Registered) -> Hashable:
        with registered.factory() as session:
            _read(registered, session, rows)
        return "read"

    return program


def reads_late_in_transaction(before: int, row: int) -> Program:
    """Read one row from the database first, and then, in the same transaction, another one through the cache."""

    def program(registered: Registered) -> Hashable:
        with registered.factory() as session:
            session.get(registered.model, before)
            _read(registered, session, (row,))
        return "read"

    return program


def writes_and_reads_back(row: int = 1, **columns: int) -> Program:
    """Change a row, flush, read it through the cache in a second session on the same connection, and roll back."""

    def program(registered: Registered) -> Hashable:
        with registered.factory() as session:
            instance = existing(session, row)
            for name, value in columns.items():
                setattr(instance, name, value)
            session.flush()
            with registered.factory(bind=session.connection(), join_transaction_mode="create_savepoint") as other:
                seen = registered.cache.get(other, Item, row)
                own = all(getattr(seen, name) == value for name, value in columns.items())
            session.rollback()
        return "rolled back" if own else "WRONG: it does not see what its own transaction wrote"

    return program


def evicts(row: int = 1) -> Program:
    """Evict a row, as an operator may at any time."""

    def program(registered: Registered) -> Hashable:
        registered.cache.evict(registered.model, row)
        return "evicted"

    return program


def old(program: Program) -> Program:
    """Mark a program as one of the older version of the application."""
    program.model = OldItem  # type: ignore[attr-defined]
    return program


def repeatable(program: Program) -> Program:
    """Mark a program as one whose engine is in REPEATABLE READ."""
    program.isolation = "REPEATABLE READ"  # type: ignore[attr-defined]
    return program
