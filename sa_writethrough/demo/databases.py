"""Where the rows are put: a SQLite file of our own, or a database that the user names. What was made is removed.

Only tables that this run created are written or dropped: they are created without looking first, so that of a table
that is there already the database itself says so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, inspect, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from sa_writethrough.demo.places import Base
from sa_writethrough.demo.settings import DemoError, first_line, without_password

__all__ = ["Database", "opened", "refusal", "tables"]

_CONNECT_SECONDS = 10
_BUSY_SECONDS = 30
_NAMES = {"postgresql": "PostgreSQL", "sqlite": "SQLite"}


@dataclass(frozen=True, slots=True)
class Database:
    """A database that answers.

    engine: the application's. witness: connections in AUTOCOMMIT that the library knows nothing of; each statement
    over them sees what is committed at that moment.
    """

    engine: Engine
    witness: Engine
    title: str


@contextmanager
def opened(url: str | None, threads: int) -> Iterator[Database]:
    """Open the database at *url* for *threads*; None is a SQLite file that is removed afterwards.

    Raises `DemoError` if it cannot be used or does not answer.
    """
    if url is not None:
        with _opened(_checked(url), threads, "") as database:
            yield database
        return
    with tempfile.TemporaryDirectory(prefix="sa-writethrough-demo-", ignore_cleanup_errors=True) as directory:
        path = Path(directory) / "demo.db"
        with _opened(URL.create("sqlite", database=str(path)), threads, "in a temporary file") as database:
            # The file is ours: readers do not wait for a writer, and it need not survive a power failure.
            event.listen(database.engine, "connect", _write_ahead)
            event.listen(database.witness, "connect", _write_ahead)
            database.engine.dispose()
            database.witness.dispose()
            yield database


@contextmanager
def tables(database: Database) -> Iterator[None]:
    """Create the tables, and drop them afterwards. Raises `DemoError` if one is there already or may not be created."""
    found = sorted(set(inspect(database.engine).get_table_names()) & set(Base.metadata.tables))
    if found:
        raise DemoError(
            f"--database: {database.title} has a table {found[0]} already, left by a demo that was killed or used by "
            f"one that runs; if it is not needed: DROP TABLE {', '.join(reversed(found))};"
        )
    try:
        with database.engine.begin() as connection:
            Base.metadata.create_all(connection, checkfirst=False)
    except DBAPIError as error:
        raise DemoError(
            f"--database: the demo's tables cannot be created in {database.title}: {refusal(error)}."
        ) from None
    try:
        yield
    finally:
        with database.engine.begin() as connection:
            Base.metadata.drop_all(connection)


def refusal(error: DBAPIError) -> str:
    """Return what the database said, in one line."""
    return first_line(error.orig or error)


def _checked(text: str) -> URL:
    """Return the URL if the demonstration can run there."""
    shown = without_password(text)
    example = "for example postgresql+psycopg://user:password@host/database"
    try:
        url = make_url(text)
    except ArgumentError:
        raise DemoError(f"--database: {shown!r} is no database URL; {example}.") from None
    if url.get_backend_name() not in _NAMES:
        raise DemoError(f"--database: {url.drivername!r} is not supported; give PostgreSQL or SQLite, {example}.")
    try:
        dialect = url.get_dialect()
        dialect.import_dbapi()
    except NoSuchModuleError:
        raise DemoError(f"--database: SQLAlchemy has no driver {url.drivername!r}; {example}.") from None
    except ModuleNotFoundError as error:
        raise DemoError(
            f"--database: the driver {error.name} is not installed: "
            "pip install '.[postgresql]', and give postgresql+psycopg://..."
        ) from None
    if dialect.is_async:
        raise DemoError(f"--database: the demo uses threads, and {url.drivername} is for asyncio; {example}.")
    if url.get_backend_name() == "sqlite":
        _require_file(url)
    return url


def _require_file(url: URL) -> None:
    name = url.database or ""
    if name in {"", ":memory:"} or name.startswith("file:"):
        raise DemoError("--database: threads cannot share this SQLite database; give sqlite:///path/to/an/existing.db.")
    if not Path(name).is_file():
        raise DemoError(f"--database: there is no file {name}; without --database the demo makes one of its own.")


@contextmanager
def _opened(url: URL, threads: int, where: str) -> Iterator[Database]:
    size = 2 * threads + 2  # a fill on SQLite takes a second connection
    arguments: dict[str, Any] = {"pool_size": size, "connect_args": _connect_arguments(url)}
    # A server may default to another level, at which the library rightly leaves reads to the database.
    level = {} if url.get_backend_name() == "sqlite" else {"isolation_level": "READ COMMITTED"}
    engine = create_engine(url, **arguments, **level)
    witness = create_engine(url, **arguments, isolation_level="AUTOCOMMIT")
    try:
        yield Database(engine, witness, _title(engine, where))
    finally:
        engine.dispose()
        witness.dispose()


def _title(engine: Engine, where: str) -> str:
    shown = engine.url.render_as_string()
    try:
        with engine.connect():
            version = ".".join(str(part) for part in engine.dialect.server_version_info or ())
    except DBAPIError as error:
        raise DemoError(f"--database: {shown} cannot be reached: {refusal(error)}.") from None
    if engine.dialect.name == "sqlite" and engine.dialect.dbapi is not None:
        version = str(getattr(engine.dialect.dbapi, "sqlite_version", ""))
    return f"{_NAMES[engine.dialect.name]} {version} {where or 'at ' + shown}"


def _connect_arguments(url: URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"timeout": _BUSY_SECONDS}  # a writer waits for the file's one write lock instead of failing
    if url.get_driver_name().startswith("psycopg") and "connect_timeout" not in url.query:
        return {"connect_timeout": _CONNECT_SECONDS}
    return {}


def _write_ahead(dbapi_connection: Any, _record: Any) -> None:
    cursor = dbapi_connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()
