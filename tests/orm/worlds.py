"""A world: a database with its cache, an outside observer, and the oracle that compares the two."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session, sessionmaker

import sa_writethrough as wt
from sa_writethrough.coherence import Change, Intent, Outcome, Reading
from sa_writethrough.stores.base import Reply, Store
from sa_writethrough.taps import tap, untap
from sa_writethrough.testing import FaultyStore

ABSENT = "absent"
"""What `World.entry` returns where the cache has nothing."""


class CountingStore:
    """Pass everything on to *inner*, and remember what passed."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.keeps_tombstones = inner.keeps_tombstones
        self.changes: list[Change] = []
        self.calls: list[str] = []

    def read(self, keys: Any, epoch: str | None, intent: Intent) -> list[Reading]:
        self.calls.append("read")
        return list(self.inner.read(keys, epoch, intent))

    def submit(self, changes: Any) -> Reply:
        self.changes += changes
        self.calls.append("submit")
        return self.inner.submit(changes)

    def post(self, changes: Any) -> None:
        self.changes += changes
        self.calls.append("post")
        self.inner.post(changes)

    def close(self) -> None:
        self.inner.close()

    def kinds(self) -> list[str]:
        """Return what changes were sent, and forget them."""
        sent, self.changes = self.changes, []
        return [type(change).__name__ for change in sent]


class StatementCounter:
    """The statements that an engine was sent."""

    def __init__(self, engine: sa.Engine) -> None:
        self.statements: list[str] = []
        event.listen(engine, "before_cursor_execute", self._note)

    def _note(self, _connection: Any, _cursor: Any, sql: str, *_rest: Any) -> None:
        self.statements.append(sql)


@dataclass
class World:
    """One registration over one database. *observer* is an engine of its own, which no registration listens to."""

    engine: sa.Engine
    observer: sa.Engine
    sessions: sessionmaker[Session]
    cache: wt.WriteThroughCache
    faults: FaultyStore
    traffic: CountingStore
    sql: StatementCounter
    extra: list[Callable[[], None]] = field(default_factory=list)

    @property
    def dialect(self) -> str:
        return self.engine.dialect.name

    # --- writing ---

    def add(self, *instances: Any) -> None:
        """Insert and commit, through the registered factory."""
        with self.sessions() as session:
            session.add_all(instances)
            session.commit()

    def execute(self, statement: Any, parameters: Any = None) -> None:
        """Execute and commit, through the registered factory."""
        with self.sessions() as session:
            session.execute(statement, parameters)
            session.commit()

    def outside(self, statement: str, **parameters: Any) -> None:
        """Execute and commit SQL that no registration sees."""
        with self.observer.begin() as connection:
            connection.execute(sa.text(statement), parameters)

    # --- the oracle ---

    def select(self, entity: Any, ident: Any) -> dict[str, Any] | None:
        """Return the committed row as a SELECT on another connection gives it."""
        with Session(self.observer) as session:
            return _columns(session.get(entity, ident))

    def entry(self, entity: Any, ident: Any) -> Any:
        """Return what a fresh session gets from the cache with no SQL, or ABSENT."""
        self.cache.drain()
        if not self.cache.contains(entity, ident, bind=self.engine):
            return ABSENT
        before = len(self.sql.statements)
        with self.sessions(bind=self.engine, binds={}) as session:
            found = _columns(self.cache.get(session, entity, ident))
            assert self.sql.statements[before:] == []
            return found

    def agrees(self, entity: Any, *idents: Any) -> None:
        """Assert the promise: the entry is the row, or there is no entry."""
        for ident in idents:
            entry = self.entry(entity, ident)
            assert entry == ABSENT or entry == self.select(entity, ident)
            assert entry is not None

    def published(self, entity: Any, *idents: Any) -> None:
        """Assert that there is an entry, and that it is the row."""
        for ident in idents:
            assert self.entry(entity, ident) == self.select(entity, ident) != ABSENT
            assert self.select(entity, ident) is not None

    def absent(self, entity: Any, *idents: Any) -> None:
        """Assert that there is no entry, and that the next reader gets the row and fills it."""
        for ident in idents:
            assert self.entry(entity, ident) == ABSENT
            self.reads_true(entity, ident)

    def reads_true(self, entity: Any, *idents: Any) -> None:
        """Assert that a read through the cache returns the committed row."""
        for ident in idents:
            with self.sessions(bind=self.engine, binds={}) as session:
                assert _columns(self.cache.get(session, entity, ident)) == self.select(entity, ident)
            self.agrees(entity, ident)

    def finds_as_stored(self, entity: Any, *idents: Any) -> None:
        """Assert that each is found through the cache as a SELECT finds it, twice: filling it if it can be, and filled.

        Unlike `reads_true` for keys that the database holds equal to the row's own.
        """
        for ident in (*idents, *idents):
            with self.sessions() as session:
                assert _columns(self.cache.get(session, entity, ident)) == self.select(entity, ident)
            self.cache.drain()

    def warm(self, entity: Any, *idents: Any) -> None:
        """Have the rows cached."""
        for ident in idents:
            with self.sessions(bind=self.engine, binds={}) as session:
                self.cache.get(session, entity, ident)
            self.published(entity, ident)

    @contextlib.contextmanager
    def no_traffic(self) -> Iterator[None]:
        """Assert that nothing is asked of the store or sent to it."""
        before = len(self.traffic.calls)
        yield
        assert self.traffic.calls[before:] == []

    def idle(self) -> bool:
        """Tell whether no pooled connection holds a transaction: another one can write and read every row."""
        assert self.engine.pool.checkedout() == 0
        connection = self.engine.raw_connection()
        try:
            driver: Any = connection.driver_connection
            if self.dialect == "sqlite":
                return not driver.in_transaction
            if self.dialect == "mariadb":
                with driver.cursor() as cursor:
                    cursor.execute("SELECT @@in_transaction")
                    return cursor.fetchone() == (0,)
            return int(driver.info.transaction_status) == 0
        finally:
            connection.close()

    def close(self) -> None:
        for close in reversed(self.extra):
            close()
        self.cache.unregister()
        self.engine.dispose()
        self.observer.dispose()


def _columns(instance: Any) -> dict[str, Any] | None:
    if instance is None:
        return None
    mapper = sa.inspect(instance).mapper
    return {"__class__": mapper.class_.__name__, **{p.key: getattr(instance, p.key) for p in mapper.column_attrs}}


def open_engine(url: str, **arguments: Any) -> sa.Engine:
    """Return an engine: SQLite enforces foreign keys and waits for no lock, MariaDB reads what is committed."""
    if url.startswith("sqlite"):
        arguments.setdefault("connect_args", {"timeout": 0.0})
    if url.startswith("mariadb"):
        arguments.setdefault("isolation_level", "READ COMMITTED")
    engine = sa.create_engine(url, **arguments)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _enforce(connection: Any, _record: Any) -> None:
            connection.execute("PRAGMA foreign_keys = ON")

    return engine


def open_world(url: str, store: Store, **factory: Any) -> World:
    """Register a factory on the database of *url* over *store*, with faults and counters between."""
    engine, observer = open_engine(url), open_engine(url)
    sql = StatementCounter(engine)
    traffic = CountingStore(store)
    faults = FaultyStore(traffic)
    sessions = sessionmaker(engine, **factory)
    cache = wt.register(sessions, faults)
    with sessions() as session:
        session.connection()  # learns what the database is, once
    return World(engine, observer, sessions, cache, faults, traffic, sql)


__all__ = ["ABSENT", "CountingStore", "Outcome", "World", "open_engine", "open_world"]


class PassingTap:
    """A tap that does nothing by itself."""

    def __getattr__(self, name: str) -> Any:
        return lambda do, *arguments, **keywords: do(*arguments, **keywords)


class _AroundCommit(PassingTap):
    """A tap beneath the library's own."""

    def __init__(self, before: Callable[[], Any], after: Callable[[], Any]) -> None:
        self._before, self._after = before, after

    def do_commit(self, do: Callable[..., None], dbapi_connection: Any) -> None:
        self._before()
        do(dbapi_connection)
        self._after()


def _nothing() -> None:
    """Do nothing."""


@contextlib.contextmanager
def around_commit(
    engine: Any, before: Callable[[], Any] = _nothing, after: Callable[[], Any] = _nothing
) -> Iterator[None]:
    """Do something between the announcement and the driver's COMMIT, or between that and the publication."""
    one = _AroundCommit(before, after)
    tap(engine.dialect, one)
    try:
        yield
    finally:
        untap(engine.dialect, one)
