"""Fixtures of every room: servers, databases, hypothesis profiles, and the check that a test leaves nothing behind."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from sqlalchemy.ext.compiler import compiles

from tests.servers import MariadbServer, MemcachedServer, MissingServerError, PostgresServer, Server


@compiles(sa.String, "mariadb")
def _of_some_length(type_: sa.String, compiler: Any, **options: Any) -> str:
    """MariaDB has no text without a length that could be a key."""
    return "VARCHAR(255)" if type_.length is None else str(compiler.visit_string(type_, **options))


AnyServer = TypeVar("AnyServer", bound=Server)

GRACE_SECONDS = 2.0

settings.register_profile(
    "dev", max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.register_profile("ci", parent=settings.get_profile("dev"), derandomize=True, print_blob=True)
settings.register_profile("thorough", parent=settings.get_profile("dev"), max_examples=2000, print_blob=True)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI", "").lower() == "true" else "dev")
)


def started(server: AnyServer) -> AnyServer:
    """Start *server*. Where its program is missing, fail under CI=true, else skip with the package's name."""
    try:
        server.start()
    except MissingServerError as error:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    return server


@pytest.fixture(scope="session")
def _memcached_server() -> Iterator[MemcachedServer]:
    with contextlib.closing(MemcachedServer()) as server:
        yield started(server)


@pytest.fixture
def memcached(_memcached_server: MemcachedServer) -> MemcachedServer:
    """A memcached that knows nothing: each test gets a new process. It may be stopped, killed and paused."""
    _memcached_server.renew()
    return _memcached_server


@pytest.fixture
def memcached_factory() -> Iterator[Callable[..., MemcachedServer]]:
    """Start a memcached of one's own with MemcachedServer's arguments; it ends with the test."""
    with contextlib.ExitStack() as servers:

        def start(*arguments: str, unix: bool = False) -> MemcachedServer:
            return started(servers.enter_context(contextlib.closing(MemcachedServer(*arguments, unix=unix))))

        yield start


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The session's PostgreSQL; most tests want `postgres_url`. A test that stops it starts it again."""
    with contextlib.closing(PostgresServer(settings={"deadlock_timeout": "200ms"})) as server:
        yield started(server)


@pytest.fixture
def postgres_factory() -> Iterator[Callable[..., PostgresServer]]:
    """Start a PostgreSQL of one's own (two seconds) with PostgresServer's arguments; it ends with the test."""
    with contextlib.ExitStack() as servers:

        def start(**arguments: object) -> PostgresServer:
            return started(servers.enter_context(contextlib.closing(PostgresServer(**arguments))))  # type: ignore[arg-type]  # from a dict

        yield start


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """SQLAlchemy's URL of an empty PostgreSQL database of the test's own."""
    url = postgres.create_database()
    yield url
    postgres.drop_database(url)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariadbServer]:
    """The session's MariaDB; most tests want `mariadb_url`."""
    with contextlib.closing(MariadbServer(settings={"innodb_lock_wait_timeout": "2"})) as server:
        yield started(server)


@pytest.fixture
def mariadb_url(mariadb: MariadbServer) -> Iterator[str]:
    """SQLAlchemy's URL of an empty MariaDB database of the test's own."""
    url = mariadb.create_database()
    yield url
    mariadb.drop_database(url)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """SQLAlchemy's URL of an empty SQLite file of the test's own."""
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves threads, child processes or sockets; `shares_connections(reason)` exempts it."""
    if request.node.get_closest_marker("shares_connections"):
        yield
        return
    threads, sockets = set(threading.enumerate()), _sockets()
    yield
    left = _left_behind(threads, sockets)
    if left:
        pytest.fail("the test left behind: " + ", ".join(left), pytrace=False)


def _left_behind(threads: set[threading.Thread], sockets: set[str]) -> list[str]:
    """Name what is there and was not before; what is about to end gets GRACE_SECONDS for it."""
    deadline = time.monotonic() + GRACE_SECONDS
    for thread in set(threading.enumerate()) - threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if _sockets() - sockets:
        gc.collect()
    return [
        *(f"thread {thread.name}" for thread in set(threading.enumerate()) - threads),
        *(f"process {child.name}" for child in multiprocessing.active_children()),
        *(_sockets() - sockets),
    ]


def _sockets() -> set[str]:
    """Name this process's open sockets, where the system tells (Linux); elsewhere none."""
    found = set()
    for descriptor in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):
            found.add(str(descriptor.readlink()))
    return {name for name in found if name.startswith("socket:")}
