"""What must be known of an engine before its rows may be cached. Learnt once per engine, on the first connection used.

Knows the databases' own words for it; knows nothing of entries, keys or stores.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

from sqlalchemy import text
from sqlalchemy.engine import Connection, Engine

from sa_writethrough import _sqla
from sa_writethrough.exceptions import ConfigurationError

__all__ = [
    "REPLICA_OPTION",
    "EngineFacts",
    "Engines",
    "driver_in_transaction",
    "is_snapshot",
    "is_snapshot_level",
    "may_have_begun",
]

REPLICA_OPTION = "writethrough_replica"
"""Execution option of an engine or a connection: what it reads may lag behind the primary, and is not filled."""

_CURRENT_LEVELS = frozenset({"READ COMMITTED", "AUTOCOMMIT"})
_NO_DIRTY_READS = frozenset({"postgresql", "sqlite"})
"""Where READ UNCOMMITTED is READ COMMITTED, or an agreement between connections that share a cache."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What was learnt of one engine.

    database: tells databases apart that share a cache. It comes from the server itself, so that two ways to the same
        database (a pooler, another host name, a `file:` URI) give the same.
    replica: the server says that it follows a primary; nothing is filled from it.
    snapshots: `is_snapshot_level` of what a session gets that asked for no isolation level.
    isolated: every other connection of the engine is another database, or the same transaction (SQLite in memory).
    schema: the one that a table without a schema is in, where the same table may be named with it elsewhere (MariaDB).
    folds: strings that differ may be equal there, whatever the model says of them.
    """

    dialect_name: str
    database: str
    replica: bool
    snapshots: bool
    isolated: bool
    schema: str | None = None
    folds: bool = False


class Engines:
    """The facts of every engine seen. An engine that is dropped is forgotten."""

    def __init__(self) -> None:
        self._facts: WeakKeyDictionary[Engine, EngineFacts] = WeakKeyDictionary()

    def known(self, engine: Engine) -> EngineFacts | None:
        """Return the facts of *engine* if they were learnt before."""
        facts = self._facts.get(engine)
        if facts is None:
            facts = self._facts.get(_sqla.root_engine(engine))
            if facts is not None:
                self._facts[engine] = facts
        return facts

    @staticmethod
    def supports(engine: Engine) -> bool:
        """Tell whether cached models may live in this kind of database; others may be used beside them."""
        return engine.dialect.name in _DIALECTS

    def learn(self, connection: Connection) -> EngineFacts:
        """Return the facts of the connection's engine, asking the database over *connection* if need be.

        Raises `ConfigurationError` for a database or a setting that the promise cannot be kept on.
        """
        facts = self.known(connection.engine)
        if facts is None:
            facts = _learn(connection)
            self._facts[_sqla.root_engine(connection.engine)] = facts
        return facts


def _learn(connection: Connection) -> EngineFacts:
    engine = connection.engine
    learn = _DIALECTS.get(engine.dialect.name)
    if learn is None:
        raise ConfigurationError(
            f"The database {engine.dialect.name!r} ({engine.url.render_as_string()}) is not supported: "
            f"its fills cannot be verified. Supported are {', '.join(sorted(_DIALECTS))}."
            + (" Of a MariaDB server the URL begins with mariadb, not mysql." if engine.dialect.name == "mysql" else "")
        )
    if _sqla.commits_on_return(engine):
        raise ConfigurationError(
            f"The engine {engine.url.render_as_string()} has pool_reset_on_return='commit': it commits what no session "
            "announced. Use the default, 'rollback'."
        )
    return learn(connection)


_POSTGRESQL = text(
    "SELECT pg_is_in_recovery(), d.oid::text, d.datname, CASE WHEN "
    "has_function_privilege('pg_catalog.pg_control_system()', 'execute') "
    "THEN (SELECT system_identifier::text FROM pg_catalog.pg_control_system()) END "
    "FROM pg_catalog.pg_database d WHERE d.datname = current_database()"
)


def _learn_postgresql(connection: Connection) -> EngineFacts:
    replica, oid, name, system = connection.execute(_POSTGRESQL).one()
    return EngineFacts(
        dialect_name="postgresql",
        database=_tag(f"{system}/{oid}/{name}"),
        replica=replica,
        snapshots=is_snapshot_level(connection.default_isolation_level or "READ COMMITTED", "postgresql"),
        isolated=False,
    )


def _learn_sqlite(connection: Connection) -> EngineFacts:
    path = _sqlite_file(connection)
    return EngineFacts(
        dialect_name="sqlite",
        database=_tag(path or uuid4().hex),
        replica=False,
        # The driver begins at the first DML; a transaction that is open before is an explicit BEGIN.
        snapshots=driver_in_transaction(connection.connection.driver_connection) is True,
        isolated=path is None,
    )


def _sqlite_file(connection: Connection) -> str | None:
    """Ask the database for its file, whatever the URL looks like: None in memory, or where there is no such file.

    On the driver's cursor: the question is no statement of the application's, and must not begin a transaction.
    """
    cursor = connection.connection.cursor()
    try:
        cursor.execute("PRAGMA database_list")
        path = next((file for _, name, file in cursor.fetchall() if name == "main"), None)
    finally:
        cursor.close()
    return os.path.realpath(path) if path and os.path.exists(path) else None  # noqa: PTH110 - a text, as realpath


_MARIADB = text(
    "SHOW GLOBAL VARIABLES WHERE Variable_name IN "
    "('server_uid', 'hostname', 'datadir', 'port', 'read_only', 'lower_case_table_names')"
)
_OLDEST_MARIADB = (10, 5)


def _learn_mariadb(connection: Connection) -> EngineFacts:
    version: tuple[Any, ...] = connection.dialect.server_version_info or _OLDEST_MARIADB
    url = connection.engine.url.render_as_string()
    if version < _OLDEST_MARIADB:
        raise ConfigurationError(f"The database at {url} is MariaDB {version}: MariaDB 10.5 or later is needed.")
    schema = connection.execute(text("SELECT DATABASE()")).scalar()
    if schema is None:
        raise ConfigurationError(
            f"The URL {url} names no database: which tables the models mean is not known. Write mariadb://.../database."
        )
    found = {name: value for name, value in connection.execute(_MARIADB).all()}  # noqa: C416 - rows are no pairs to mypy
    # A server that was copied has the same server_uid.
    identity = "/".join(str(found.get(name)) for name in ("server_uid", "hostname", "datadir", "port"))
    return EngineFacts(
        dialect_name="mariadb",
        database=_tag(identity),
        # Whoever may write all the same (READ_ONLY ADMIN) writes through a primary, too, for all that is known here.
        replica=found.get("read_only") not in {"OFF", "0"},
        snapshots=is_snapshot_level(connection.default_isolation_level or "REPEATABLE READ", "mariadb"),
        isolated=False,
        schema=schema if found.get("lower_case_table_names") == "0" else schema.lower(),
        folds=True,
    )


_DIALECTS: dict[str, Callable[[Connection], EngineFacts]] = {
    "mariadb": _learn_mariadb,
    "postgresql": _learn_postgresql,
    "sqlite": _learn_sqlite,
}


def _tag(identity: str) -> str:
    return blake2b(identity.encode(), digest_size=5).hexdigest()


def is_snapshot_level(level: str, dialect_name: str) -> bool:
    """Tell whether a transaction's reads may be of anything but what is committed now: an old moment, or no commit."""
    level = level.upper().replace("_", " ")
    return level not in _CURRENT_LEVELS and not (level == "READ UNCOMMITTED" and dialect_name in _NO_DIRTY_READS)


def is_snapshot(facts: EngineFacts, engine: Engine, connection: Connection | None, *, wrote: bool) -> bool:
    """Tell of reads of the session's transaction what `is_snapshot_level` tells of a level. No I/O.

    connection: the one that the session has begun on, if any. wrote: whether the transaction has written: on SQLite it
    holds the only write lock then, and nobody else can commit.
    """
    source = engine if connection is None else connection
    level = source.get_execution_options().get("isolation_level") or _sqla.connect_isolation_level(engine.dialect)
    if facts.dialect_name == "sqlite":
        if connection is None:
            return facts.snapshots
        return not wrote and driver_in_transaction(connection.connection.driver_connection) is True
    return facts.snapshots if level is None else is_snapshot_level(level, facts.dialect_name)


class Transaction(Enum):
    """What a driver says of its transaction."""

    UNKNOWN = "it cannot tell"
    NONE = "there is none"
    OPEN = "there is one"
    FAILED = "it can only be rolled back"
    BEGUN = "there is one, and it may have failed"


def driver_transaction(connection: object) -> Transaction:
    """Ask a DBAPI connection, or a driver's own, about its transaction, without I/O.

    Those of sqlite3, psycopg, psycopg2, aiosqlite and asyncpg can say; the last does not tell whether it has failed.
    PQTRANS_INERROR and the others are libpq's. https://www.postgresql.org/docs/current/libpq-status.html
    """
    driver = _driver_of(connection)
    try:
        in_transaction = getattr(driver, "in_transaction", None)  # sqlite3, aiosqlite
        if isinstance(in_transaction, bool):
            return Transaction.OPEN if in_transaction else Transaction.NONE
        is_in_transaction = getattr(driver, "is_in_transaction", None)  # asyncpg
        if is_in_transaction is not None:
            return Transaction.BEGUN if is_in_transaction() else Transaction.NONE
    except ValueError:  # aiosqlite says so of a closed connection
        return Transaction.UNKNOWN
    status = getattr(getattr(driver, "info", None), "transaction_status", None)  # psycopg, psycopg2
    if status is None:
        return Transaction.UNKNOWN
    return Transaction.NONE if status == _IDLE else Transaction.FAILED if status == _IN_ERROR else Transaction.OPEN


def driver_in_transaction(connection: object) -> bool | None:
    """Tell whether the driver is inside a transaction, one that failed included; None where it cannot tell."""
    said = driver_transaction(connection)
    return None if said is Transaction.UNKNOWN else said is not Transaction.NONE


def may_have_begun(connection: Connection) -> bool:
    """Tell whether *connection* is in the middle of a transaction, asking the database where the driver cannot tell."""
    said = driver_in_transaction(connection.connection.driver_connection)
    if said is not None or connection.dialect.name != "mariadb":
        return said is not False
    cursor = connection.connection.cursor()
    try:
        cursor.execute("SELECT @@in_transaction")
        row: Any = cursor.fetchone()
        return bool(row[0])
    finally:
        cursor.close()


def driver_autocommits(connection: object) -> bool:
    """Tell whether the driver itself commits every statement, where it can say.

    Those can of sqlite3, psycopg and psycopg2, asyncpg's adapter, PyMySQL and mysqlclient.

    aiosqlite's connections belong to its thread; where they are bound to it (in memory), Python 3.12 lets no other read
    their `autocommit`, and it is taken for what it is unless somebody set it.
    """
    if getattr(connection, "isolation_level", None) == "autocommit":  # asyncpg itself knows of no such thing
        return True
    driver = _driver_of(connection)
    try:
        autocommit = getattr(driver, "autocommit", None)
    except sqlite3.ProgrammingError:
        autocommit = None
    get_autocommit = getattr(driver, "get_autocommit", None)  # PyMySQL, mysqlclient
    if autocommit is True or (get_autocommit is not None and get_autocommit()):
        return True
    legacy = getattr(driver, "isolation_level", "") is None and hasattr(driver, "total_changes")
    return legacy and autocommit is not False and not getattr(driver, "in_transaction", True)


def _driver_of(connection: object) -> object:
    """Return what SQLAlchemy's adapters of asynchronous drivers stand for, and what aiosqlite has in its thread."""
    driver: object = getattr(connection, "driver_connection", connection)
    wrapped = getattr(driver, "_connection", None)
    return wrapped if isinstance(wrapped, sqlite3.Connection) else driver


_IDLE, _IN_ERROR = 0, 3
