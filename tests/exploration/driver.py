"""A DBAPI (PEP 249) in front of the miniature database, and SQLAlchemy's PostgreSQL dialect on it.

Understands the statements that SQLAlchemy and the library make for `models.item`, and refuses any other. Like psycopg it
begins by itself, and knows without asking whether it is inside a transaction, and whether that one has failed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.base import PGDialect

from tests.exploration.database import (
    COLUMNS,
    Commit,
    Delete,
    Found,
    Insert,
    Refused,
    Rollback,
    Rows,
    Savepoint,
    Select,
    Statement,
    Update,
    UpdateAll,
)
from tests.exploration.runs import Sql, ask, current

IDLE, IN_TRANSACTION, IN_ERROR = 0, 2, 3
INTEGER_OID = 23

# --- PEP 249 ----------------------------------------------------------------------------------------------------------

apilevel = "2.0"
threadsafety = 1
paramstyle = "pyformat"


class Error(Exception):
    """PEP 249."""


class DatabaseError(Error):
    """PEP 249."""


class IntegrityError(DatabaseError):
    """PEP 249."""


class OperationalError(DatabaseError):
    """PEP 249; the connection is lost."""


class InternalError(DatabaseError):
    """PEP 249."""


class ProgrammingError(DatabaseError):
    """PEP 249."""


_ERRORS: dict[str, type[DatabaseError]] = {
    "integrity": IntegrityError,
    "serialization": InternalError,
    "lost": OperationalError,
}


class _Info:
    """What psycopg's `connection.info` is asked for."""

    transaction_status = IDLE


class Connection:
    """One connection."""

    autocommit = False

    def __init__(self) -> None:
        self.info = _Info()
        self.isolation_level = "READ COMMITTED"
        self.lost = False

    def cursor(self) -> Cursor:
        """PEP 249."""
        return Cursor(self)

    def commit(self) -> None:
        """PEP 249. The COMMIT of a failed transaction is answered with ROLLBACK, and no error."""
        self._end(Rollback() if self.info.transaction_status == IN_ERROR else Commit())

    def rollback(self) -> None:
        """PEP 249."""
        self._end(Rollback())

    def close(self) -> None:
        """PEP 249."""
        if not self.lost and not current().over:
            self.rollback()

    def _end(self, statement: Statement) -> None:
        if self.info.transaction_status != IDLE:
            self.execute(statement)
            self.info.transaction_status = IDLE

    def execute(self, statement: Statement) -> Rows:
        """Ask the world; keep the books that a driver keeps."""
        if current().over:
            return Rows(())
        if self.lost:
            raise OperationalError("the connection is lost")
        answer = ask(Sql(statement, self.isolation_level == "REPEATABLE READ"))
        if isinstance(answer, Refused):
            self.lost = answer.why == "lost"
            self.info.transaction_status = IDLE if self.lost else IN_ERROR
            raise _ERRORS[answer.why](answer.why)
        self.info.transaction_status = IN_TRANSACTION
        return answer


class Cursor:
    """One cursor; rows come whole."""

    arraysize = 1
    lastrowid = None

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.description: list[tuple[Any, ...]] | None = None
        self.rowcount = -1
        self._rows: list[tuple[Any, ...]] = []

    def execute(self, sql: str, parameters: Any = None) -> None:
        """PEP 249."""
        form = form_of(sql)
        if form.facts is not None:
            self._keep(("replica", "oid", "datname", "system"), [form.facts])
            return
        statement = form.statement(parameters or {})
        answer = self._connection.execute(statement)
        self.rowcount = len(answer.found)
        if form.columns:
            self._keep(form.columns, [_row(form.columns, found) for found in answer.found])

    def executemany(self, sql: str, many: Sequence[Any]) -> None:
        """PEP 249."""
        rowcount = 0
        for parameters in many:
            self.execute(sql, parameters)
            rowcount += max(self.rowcount, 0)
        self.rowcount = rowcount

    def _keep(self, names: Sequence[str], rows: list[tuple[Any, ...]]) -> None:
        self.description = [(name, INTEGER_OID, None, None, None, None, None) for name in names]
        self._rows = rows

    def fetchone(self) -> Any:
        """PEP 249."""
        return self._rows.pop(0) if self._rows else None

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """PEP 249."""
        taken, self._rows = self._rows[: size or 1], self._rows[size or 1 :]
        return taken

    def fetchall(self) -> list[Any]:
        """PEP 249."""
        taken, self._rows = self._rows, []
        return taken

    def close(self) -> None:
        """PEP 249."""


def connect(*_arguments: Any, **_options: Any) -> Connection:
    """PEP 249."""
    return Connection()


class ExplorationDialect(PGDialect):
    """PostgreSQL's dialect, told at once what it would ask the server."""

    driver = "exploration"
    default_paramstyle = "pyformat"
    supports_statement_cache = True
    supports_sane_multi_rowcount = False

    def initialize(self, connection: Any) -> None:
        self.server_version_info = (15, 0)
        self.default_schema_name = "public"
        self.default_isolation_level = "READ COMMITTED"
        self._backslash_escapes = False

    def is_disconnect(self, e: Any, connection: Any, cursor: Any) -> bool:
        return isinstance(e, OperationalError)

    def set_isolation_level(self, dbapi_connection: Any, level: str) -> None:
        dbapi_connection.isolation_level = level

    def get_isolation_level(self, dbapi_connection: Any) -> Any:
        return dbapi_connection.isolation_level

    def reset_isolation_level(self, dbapi_conn: Any) -> None:
        dbapi_conn.isolation_level = "READ COMMITTED"


registry.register("postgresql.exploration", __name__, ExplorationDialect.__name__)


# --- statements -------------------------------------------------------------------------------------------------------


class Form(NamedTuple):
    """What a statement's text says: how parameters make it a `Statement`, and which columns it returns."""

    statement: Callable[[Any], Statement]
    columns: tuple[str, ...] = ()
    facts: tuple[Any, ...] | None = None


FENCE = "unlocked"


def _row(columns: Sequence[str], found: Found) -> tuple[Any, ...]:
    known = {"id": found.row + 1, FENCE: found.unlocked} | dict(zip(COLUMNS, found.value, strict=True))
    return tuple([known[column] for column in columns])


@cache
def form_of(sql: str) -> Form:
    """Read a statement's text; raise for one that is not known here."""
    text = " ".join(sql.split())
    for pattern, read in _FORMS:
        match = re.fullmatch(pattern, text)
        if match is not None:
            return read(match)
    raise ProgrammingError(f"the miniature database does not know: {text}")


def _facts(_match: re.Match[str]) -> Form:
    return Form(lambda _: Rollback(), facts=(False, "1", "exploration", "1"))


def _select(match: re.Match[str]) -> Form:
    columns = tuple(
        FENCE if "xmax" in part else re.sub(r"^item\.(\w+)( AS \w+)?$", r"\1", part)
        for part in match["columns"].split(", ")
    )
    key, share = match["key"], match["share"] is not None
    return Form(lambda parameters: Select(_keys(key, parameters), share), columns)


def _keys(clause: str, parameters: Any) -> tuple[int, ...]:
    return tuple([parameters[name] - 1 for name in re.findall(r"%\((\w+)\)s", clause)])


def _update(match: re.Match[str]) -> Form:
    changed = re.findall(r"(\w+)=%\((\w+)\)s", match["set"])
    key = match["key"]
    returning = tuple(re.sub(r"^item\.", "", part) for part in (match["returning"] or "").split(", ") if part)

    def statement(parameters: Any) -> Statement:
        changes = tuple((column, parameters[name]) for column, name in changed)
        return Update(_keys(key, parameters)[0], changes) if key else UpdateAll(changes)

    return Form(statement, returning)


def _insert(match: re.Match[str]) -> Form:
    columns = match["columns"].split(", ")
    names = re.findall(r"%\((\w+)\)s", match["values"])

    def statement(parameters: Any) -> Statement:
        row = {column: parameters[name] for column, name in zip(columns, names, strict=True)}
        return Insert(row["id"] - 1, (row.get("a", 0), row.get("b", 0)))

    return Form(statement)


def _delete(match: re.Match[str]) -> Form:
    key = match["key"]
    return Form(lambda parameters: Delete(_keys(key, parameters)[0]))


def _savepoint(match: re.Match[str]) -> Form:
    verb = {"SAVEPOINT": "set", "RELEASE SAVEPOINT": "release", "ROLLBACK TO SAVEPOINT": "roll back to"}[match["verb"]]
    return Form(lambda _: Savepoint(verb, match["name"]))


_KEY = r"item\.id (?:= %\(\w+\)s(?:::INTEGER)?|IN \([^()]*(?:%\(\w+\)s[^()]*)*\))"
_FORMS: list[tuple[str, Callable[[re.Match[str]], Form]]] = [
    (r"SELECT pg_is_in_recovery\(\).*", _facts),
    (rf"SELECT (?P<columns>.*) FROM item WHERE (?P<key>{_KEY})(?P<share> FOR SHARE SKIP LOCKED)?", _select),
    (rf"UPDATE item SET (?P<set>.*?) WHERE (?P<key>{_KEY})(?: RETURNING (?P<returning>.*))?", _update),
    (r"UPDATE item SET (?P<set>.*?) WHERE item\.a >= %\(\w+\)s(?P<key>)(?: RETURNING (?P<returning>.*))?", _update),
    (r"INSERT INTO item \((?P<columns>.*)\) VALUES \((?P<values>.*)\)", _insert),
    (rf"DELETE FROM item WHERE (?P<key>{_KEY})", _delete),
    (r"(?P<verb>SAVEPOINT|RELEASE SAVEPOINT|ROLLBACK TO SAVEPOINT) (?P<name>\w+)", _savepoint),
]
