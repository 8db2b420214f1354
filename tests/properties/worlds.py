"""Where a machine runs: a database with its cache, and the oracle, which reads the database on a connection of its own.

A `Place` lasts as long as a test: servers, engines, schema. A `World` lasts as long as one example: first rows, a new
registration under a namespace of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session, sessionmaker

import sa_writethrough as wt
from sa_writethrough.coherence import Hit, Intent
from sa_writethrough.stores.base import Store
from sa_writethrough.testing import FaultyStore
from tests.properties.models import KINDS, NUMBERS, ROOTS, Base, Kind, first_rows

Described: TypeAlias = "dict[str, str]"
"""A row or an instance as text, by attribute: equal texts mean equal values of equal types."""
Rows: TypeAlias = "dict[tuple[Any, ...], Described]"

HALF = {"class": "half a row"}
"""Of a person who is an engineer, and whose row in that table was deleted alone: read by no two ways alike."""
LOCK_TIMEOUT_MS = 10
BEGUN = "tests.properties.connection"
"""In a session's `info`: the connection that its transaction has begun on."""


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Place:
    """One database and one kind of store. Nobody waits for a lock: whoever is in the way makes the other one fail."""

    url: str
    open_store: Callable[[Clock], Store]
    forgetful: bool = False
    """Whether its store may lose tombstones, so that faults may take them."""
    reads: wt.Reads = wt.Reads.OPTION
    journal: str = "wal"
    models: tuple[str, ...] = ()
    """What its examples are about; each draws its own where there are none."""
    engine: Engine = field(init=False)
    observer: Engine = field(init=False)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        self.engine = _open_engine(self.url, self.journal)
        self.observer = _open_engine(self.url, self.journal)
        Base.metadata.drop_all(self.observer)
        Base.metadata.create_all(self.observer)

    def put_back(self) -> None:
        """Have the first rows in the database and no others."""
        with Session(self.observer) as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(table.delete())
            session.add_all(first_rows())
            session.commit()

    def close(self) -> None:
        Base.metadata.drop_all(self.observer)
        self.engine.dispose()
        self.observer.dispose()


class World:
    """One registration over a place, and what is true in its database."""

    def __init__(self, place: Place) -> None:
        self.place = place
        place.put_back()
        self.clock = Clock()
        self.faults = FaultyStore(place.open_store(self.clock))
        if place.forgetful:
            self.faults.keeps_tombstones = False
        self.sessions: sessionmaker[Session] = sessionmaker(place.engine)
        policy = wt.CachePolicy(namespace=f"example{next(place.numbers)}", reads=place.reads)
        self.cache = wt.register(self.sessions, self.faults, policy=policy)
        event.listen(self.sessions, "after_begin", _note_begin)
        event.listen(self.sessions, "after_transaction_end", _note_end)
        with self.sessions() as session:
            for root in ROOTS:
                self.cache.get_many(session, KINDS[root].cls, [KINDS[root].identity(number) for number in NUMBERS])
        self.watching = place.observer.connect().execution_options(isolation_level="AUTOCOMMIT")

    def close(self) -> None:
        self.watching.close()
        self.cache.unregister()
        checked_out = self.place.engine.pool.checkedout()
        self.place.engine.dispose()
        assert checked_out == 0, "a session that was closed has kept its connection"

    # --- the oracle ---

    def committed(self) -> dict[str, Rows]:
        """Return every row of every model as any other connection sees it now."""
        return {root: rows_of(self.watching, root) for root in ROOTS}

    def seen_by(self, session: Session, root: str) -> Rows:
        """Return what a SELECT in this session's transaction returns now."""
        connection: Connection | None = session.info.get(BEGUN)
        if connection is None or connection.closed:
            return rows_of(self.watching, root)
        try:
            return rows_of(connection, root)
        except sa.exc.DBAPIError:  # PostgreSQL answers nothing in a transaction that has failed
            return rows_of(self.watching, root)

    # --- the cache ---

    def keys(self, root: str) -> dict[tuple[Any, ...], str]:
        """Return the keys of a model's entries, by primary key."""
        family, scope = self._scope(root)
        identities = [KINDS[root].identity(number) for number in NUMBERS]
        return {identity: family.key(scope, identity) for identity in identities}

    def entries(self, root: str) -> Rows:
        """Return every row of a model that the cache would serve now."""
        family, scope = self._scope(root)
        keys = self.keys(root)
        # At the inner store, so that a fault in waiting is not used up by looking.
        readings = self.faults.inner.read(list(keys.values()), scope.epoch, Intent.LOOK)
        shapes = self.cache._core.shapes(family, self.place.engine.dialect)
        found: Rows = {}
        for identity, reading in zip(keys, readings, strict=True):
            decoded = shapes.decode(reading) if isinstance(reading, Hit) else None
            if decoded is not None and decoded[0].identity(decoded[1]) == identity:  # or it is not served
                layout, row = decoded
                values = {
                    name: value if column.attribute is None else column.attribute(value)
                    for name, value, column in zip(layout.names, row, layout.columns, strict=True)
                }
                found[identity] = describe(layout.cls, values)
        return found

    def _scope(self, root: str) -> tuple[Any, Any]:
        core = self.cache._core
        family = core.entities.require(KINDS[root].mapper)
        return family, core.scope_in(family, self.place.engine)


# --- rows as text -----------------------------------------------------------------------------------------------------


def describe(cls: type[Any], values: dict[str, Any]) -> Described:
    """Return values as text; Decimal('1.5') is not Decimal('1.50'), and 1 is not True."""
    return {"class": cls.__name__, **{name: repr(value) for name, value in sorted(values.items())}}


def describe_instance(instance: Any) -> Described:
    """Return what an instance has loaded; nothing is loaded for it."""
    state = sa.inspect(instance)
    names = [attribute.key for attribute in state.mapper.column_attrs if attribute.key in state.dict]
    return describe(state.mapper.class_, {name: state.dict[name] for name in names})


class _Selected:
    """The SELECT of one hierarchy's tables, without the ORM's loader."""

    def __init__(self, kind: Kind) -> None:
        mapper = kind.mapper
        source: Any = mapper.local_table
        columns: list[Any] = list(source.columns)
        for sub in mapper.self_and_descendants:
            if sub.local_table is not mapper.local_table:
                source = source.outerjoin(sub.local_table)
                columns += list(sub.local_table.columns)
        self.statement = sa.select(*columns).select_from(source)
        self._key = [columns.index(column) for column in mapper.primary_key]
        self._kind = None if mapper.polymorphic_on is None else columns.index(mapper.polymorphic_on)
        self._mapper = mapper
        self._attributes = {
            sub: [(attribute.key, columns.index(attribute.columns[0])) for attribute in sub.column_attrs]
            for sub in mapper.self_and_descendants
        }

    def rows(self, raws: Sequence[Any]) -> Rows:
        found = {}
        for raw in raws:
            mapper = self._mapper if self._kind is None else self._mapper.polymorphic_map[raw[self._kind]]
            values = {name: raw[index] for name, index in self._attributes[mapper]}
            key = tuple(raw[index] for index in self._key)
            found[key] = HALF if None in self._key_of(mapper, values) else describe(mapper.class_, values)
        return found

    @staticmethod
    def _key_of(mapper: Any, values: dict[str, Any]) -> list[Any]:
        return [values[mapper.get_property_by_column(column).key] for column in mapper.primary_key]


def rows_of(connection: Connection, root: str) -> Rows:
    """Return every row of a model, by primary key, as *connection* sees it."""
    selected = _SELECTED[root]
    return selected.rows(connection.execute(selected.statement).all())


_SELECTED = {root: _Selected(KINDS[root]) for root in ROOTS}


# --- engines and sessions ---------------------------------------------------------------------------------------------


def _open_engine(url: str, journal: str) -> Engine:
    if url.startswith("postgresql"):
        return sa.create_engine(url, connect_args={"options": f"-c lock_timeout={LOCK_TIMEOUT_MS}ms"})
    if url.startswith("mariadb"):
        no_wait = {"init_command": "SET SESSION innodb_lock_wait_timeout = 0, lock_wait_timeout = 5"}
        return sa.create_engine(url, isolation_level="READ COMMITTED", connect_args=no_wait)
    engine = sa.create_engine(url, connect_args={"timeout": 0.0})

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(f"PRAGMA journal_mode = {journal}")

    return engine


def _note_begin(session: Session, _transaction: Any, connection: Connection) -> None:
    session.info[BEGUN] = connection


def _note_end(session: Session, transaction: Any) -> None:
    if transaction.parent is None:
        session.info.pop(BEGUN, None)
