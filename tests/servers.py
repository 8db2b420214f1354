"""Real servers for tests and benchmarks: started on free ports of 127.0.0.1, in a directory of their own, and stopped.

Nothing of the machine's own servers is touched. A server ends with the process that started it, however that ends: a
guard, a shell that waits on a pipe from this process, stops the server when the pipe closes. Each class is a context
manager:

    with MemcachedServer() as memcached, PostgresServer() as postgres:
        engine = create_engine(postgres.create_database())
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import psycopg
import pymysql
from sqlalchemy import make_url
from typing_extensions import Self

__all__ = [
    "MariadbServer",
    "MemcachedServer",
    "MissingServerError",
    "PostgresServer",
    "ServerError",
    "find_binary",
    "free_port",
]

HOST = "127.0.0.1"
START_SECONDS = 30.0
STOP_SECONDS = 20.0
POLL_SECONDS = 0.005

# Below the range from which Linux takes the ports of outgoing connections: a stopped server finds its port free again.
PORTS = range(18_000, 32_000)

GUARD = """
read -r _
kill -CONT "$1"; kill "-$2" "$1"
for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$1" || break; sleep 0.5; done
kill -KILL "$1"
rm -rf "$3"
"""


class ServerError(RuntimeError):
    """A server did not start or stop; the message ends with the last lines of its log."""


class MissingServerError(ServerError):
    """A server's program is not on this machine; the message says which package has it."""


def find_binary(name: str) -> str | None:
    """Return the path of program *name*: of PATH, of where Debian has servers, else None."""
    if found := shutil.which(name) or shutil.which(name, path="/usr/sbin"):
        return found
    versions = sorted(
        (path for path in Path("/usr/lib/postgresql").glob(f"*/bin/{name}") if path.parents[1].name.isdigit()),
        key=lambda path: int(path.parents[1].name),
    )
    return str(versions[-1]) if versions else None


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listened on a moment ago."""
    for port in random.Random().sample(PORTS, 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((HOST, port))
                return port
    raise ServerError(f"no free port among 200 of {PORTS.start} to {PORTS.stop} on {HOST}")


def _unprivileged_account(*names: str) -> pwd.struct_passwd | None:
    """Return the account to run a server as: None is one's own; root takes the first of *names* that exists."""
    if os.geteuid() != 0:
        return None
    for name in names:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise ServerError(f"servers refuse to run as root, and there is no account {' or '.join(names)}")


class Server(ABC):
    """One server process, its directory, its log and its guard."""

    program: ClassVar[str]
    accounts: ClassVar[tuple[str, ...]]
    stop_signal: ClassVar[signal.Signals]

    def __init__(self, *, directory: str | Path | None = None) -> None:
        self.host = HOST
        self.port = free_port()
        self._account = _unprivileged_account(*self.accounts)
        self._parent = directory
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """Whether the process is there, paused or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The running server's process id."""
        if self._process is None:
            raise ServerError(f"{self.program} is not running: call start()")
        return self._process.pid

    @property
    def directory(self) -> Path:
        """The server's own directory, made on first use and deleted by `close`."""
        if self._directory is None:
            # An account other than one's own may be barred from $TMPDIR, and a UNIX socket's path must be short.
            parent = self._parent or ("/tmp" if self._account else None)
            self._directory = Path(tempfile.mkdtemp(prefix="wt-", dir=parent))
            self._own(self._directory)
        return self._directory

    def start(self) -> None:
        """Start the server and wait until it answers. The port stays the same from one start to the next."""
        if self.running:
            return
        self._prepare()
        for attempt in range(3):
            if attempt:
                self.port = free_port()
            self._spawn()
            if self._wait_until_ready():
                return
            log = self._log_tail()
            self._end(signal.SIGKILL)
            if "in use" not in log:
                break
        raise ServerError(f"{self.program} did not start:\n{log}")

    def stop(self) -> None:
        """Stop the server in an orderly way; its directory stays."""
        self._end(self.stop_signal)

    def kill(self) -> None:
        """End the server at once (SIGKILL)."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop the server, if it runs, and start it again on the same port."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze the process (SIGSTOP): connections stay open, nothing answers from the return of this call on."""
        os.kill(self.pid, signal.SIGSTOP)
        # The signal is sent, not yet obeyed: a thread on another core could still answer.
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let a paused process go on (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Stop the server and delete its directory."""
        self._end(self.stop_signal)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    @abstractmethod
    def _prepare(self) -> None:
        """Make what the server needs before its first start."""

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """Return the command line."""

    @abstractmethod
    def _answers(self) -> bool:
        """Ask the server something; False where it cannot answer yet."""

    def _binary(self, name: str) -> str:
        if found := find_binary(name):
            return found
        raise MissingServerError(
            f"{name} is not installed; on Debian or Ubuntu: sudo apt-get install memcached postgresql mariadb-server"
        )

    def _own(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)

    def _run_as(self) -> dict[str, object]:
        """Return the arguments of Popen that choose account, directory and surroundings."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
        identity: dict[str, object] = {}
        if self._account is not None:
            identity = {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}
        return {
            **identity,
            "cwd": self.directory,
            "env": {**environment, "LC_ALL": "C"},
            "stdin": subprocess.DEVNULL,
            "stderr": subprocess.STDOUT,
            # Ctrl-C at a terminal reaches the test runner alone, which then stops its servers.
            "start_new_session": True,
        }

    def _spawn(self) -> None:
        command = self._command()
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, **self._run_as())  # type: ignore[call-overload]  # from a dict
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "guard", str(self.pid), self.stop_signal.name[3:], str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _wait_until_ready(self) -> bool:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.running:
            if self._answers():
                return self.running
            time.sleep(POLL_SECONDS)
        return False

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(how)
            process.send_signal(signal.SIGCONT)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._dismiss_guard()

    def _dismiss_guard(self) -> None:
        guard, self._guard = self._guard, None
        if guard is None:
            return
        guard.kill()
        guard.wait()
        if guard.stdin is not None:
            guard.stdin.close()

    def _log_tail(self) -> str:
        log = self.directory / "log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return "\n".join(lines[-20:]) or "(it wrote nothing)"


class MemcachedServer(Server):
    """A memcached on a free port of 127.0.0.1, or, with *unix*, on a UNIX socket.

    *arguments* are added to the command line: `MemcachedServer("-m", "8", "-M")`.
    """

    program = "memcached"
    accounts = ("nobody", "memcache", "memcached")
    stop_signal = signal.SIGKILL  # SIGTERM takes a second, and there is nothing to save

    def __init__(self, *arguments: str, unix: bool = False, directory: str | Path | None = None) -> None:
        super().__init__(directory=directory)
        self._arguments = arguments
        self._unix = unix

    @property
    def socket_path(self) -> Path | None:
        """The path of the UNIX socket, or None where the server listens on a port."""
        return self.directory / "memcached.sock" if self._unix else None

    @property
    def url(self) -> str:
        """The URL that `sa_writethrough.register` takes."""
        if self.socket_path is not None:
            return f"memcached+unix://{self.socket_path}"
        return f"memcached://{self.host}:{self.port}"

    @property
    def address(self) -> tuple[str, int] | str:
        """What pymemcache's clients take as their server."""
        return str(self.socket_path) if self.socket_path is not None else (self.host, self.port)

    def version(self) -> tuple[int, ...]:
        """Return the server's version: `(1, 6, 18)`."""
        found = re.search(rb"(\d+)\.(\d+)\.(\d+)", self.command("version"))
        if found is None:
            raise ServerError("memcached did not tell its version")
        return tuple(int(part) for part in found.groups())

    def flush(self) -> None:
        """Make every item invalid at once, except those stored in this second with a CAS of one's own choice."""
        self.command("flush_all")

    def renew(self) -> None:
        """Replace the server by one that knows nothing, on the same port: no item, CAS counter at zero."""
        self.kill()
        self.start()

    def stats(self) -> dict[str, str]:
        """Return what the server's `stats` command reports."""
        words = (line.split(" ", 2) for line in self.command("stats", end=b"END\r\n").decode().splitlines())
        return {word[1]: word[2] for word in words if word[0] == "STAT"}

    def command(self, line: str, *, end: bytes = b"\r\n", timeout: float = 5.0) -> bytes:
        """Send one command *line* on a connection of its own and return the answer up to *end*."""
        with self._connect(timeout) as connection:
            connection.sendall(line.encode() + b"\r\n")
            answer = b""
            while not answer.endswith(end):
                received = connection.recv(65_536)
                if not received:
                    raise ServerError(f"memcached closed the connection in its answer to {line!r}")
                answer += received
            return answer

    def _connect(self, timeout: float) -> socket.socket:
        if self.socket_path is None:
            return socket.create_connection((self.host, self.port), timeout)
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout)
        try:
            connection.connect(str(self.socket_path))
        except OSError:
            connection.close()
            raise
        return connection

    def _prepare(self) -> None:
        if self.socket_path is not None:
            self.socket_path.unlink(missing_ok=True)

    def _command(self) -> Sequence[str]:
        where = ["-s", str(self.socket_path), "-a", "0777"] if self._unix else ["-l", self.host, "-p", str(self.port)]
        return [self._binary("memcached"), *where, "-U", "0", "-t", "2", *self._arguments]

    def _answers(self) -> bool:
        try:
            return self.command("version", timeout=1.0).startswith(b"VERSION")
        except (OSError, ServerError):
            return False


class DatabaseServer(Server):
    """A server with databases, which are numbered."""

    def __init__(self, *, fsync: bool, settings: Mapping[str, str], directory: str | Path | None) -> None:
        super().__init__(directory=directory or ("/var/tmp" if fsync else None))
        self._settings = settings
        self._numbers = itertools.count(1)

    @abstractmethod
    def url_of(self, database: str) -> str:
        """Return SQLAlchemy's URL of *database*."""

    @abstractmethod
    def execute(self, statement: str) -> None:
        """Execute *statement* with every right, outside a transaction."""

    def create_database(self) -> str:
        """Create an empty database and return SQLAlchemy's URL of it."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url_of(name)

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except (psycopg.OperationalError, pymysql.Error):
            return False
        return True


class PostgresServer(DatabaseServer):
    """A PostgreSQL cluster of its own on a free port of 127.0.0.1.

    With *fsync* (for benchmarks) a commit is durable and the data lies in /var/tmp, which is no RAM disk; without it a
    power failure may lose all, and nothing waits for a disk. *settings* are added to the configuration:
    `PostgresServer(settings={"deadlock_timeout": "100ms"})`.
    """

    program = "postgres"
    accounts = ("postgres", "nobody")
    stop_signal = signal.SIGINT  # "fast": disconnects the clients instead of waiting for them

    def __init__(
        self,
        *,
        fsync: bool = False,
        settings: Mapping[str, str] | None = None,
        directory: str | Path | None = None,
    ) -> None:
        durability = dict.fromkeys(("fsync", "synchronous_commit", "full_page_writes"), "on" if fsync else "off")
        defaults = {
            **durability,
            "listen_addresses": HOST,
            "unix_socket_directories": "",
            "max_prepared_transactions": "20",
            "max_connections": "200",
            "shared_buffers": "128MB",
            "timezone": "UTC",
        }
        super().__init__(fsync=fsync, settings={**defaults, **(settings or {})}, directory=directory)

    @property
    def dsn(self) -> str:
        """The connection string of database `postgres` for psycopg."""
        return f"host={self.host} port={self.port} user=postgres dbname=postgres"

    @property
    def url(self) -> str:
        """The URL of database `postgres` for SQLAlchemy."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """Return SQLAlchemy's URL of *database*."""
        return f"postgresql+psycopg://postgres@{self.host}:{self.port}/{database}"

    def drop_database(self, url: str) -> None:
        """Drop the database of *url*, whoever is still connected to it."""
        self.execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")

    def execute(self, statement: str) -> None:
        """Execute *statement* as superuser, outside a transaction, in database `postgres`."""
        with psycopg.connect(self.dsn, autocommit=True, connect_timeout=10) as connection:
            connection.execute(statement.encode())

    def kill(self) -> None:
        """End the whole server at once. SIGQUIT: the next start recovers as after SIGKILL, and no child is left."""
        self._end(signal.SIGQUIT)

    def _prepare(self) -> None:
        if self._cluster.exists():
            return
        command = [
            self._binary("initdb"),
            *("--pgdata", str(self._cluster)),
            *("--username", "postgres", "--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync"),
        ]
        try:
            subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=120, **self._run_as())  # type: ignore[call-overload]  # from a dict
        except subprocess.CalledProcessError as error:
            raise ServerError(f"initdb failed:\n{error.stdout.decode(errors='replace')}") from error

    @property
    def _cluster(self) -> Path:
        return self.directory / "cluster"

    def _command(self) -> Sequence[str]:
        settings = {**self._settings, "port": str(self.port)}
        options = itertools.chain.from_iterable(("-c", f"{name}={value}") for name, value in settings.items())
        return [self._binary("postgres"), "-D", str(self._cluster), *options]


class MariadbServer(DatabaseServer):
    """A MariaDB server of its own on a free port of 127.0.0.1, without accounts: whoever comes may do everything.

    With *fsync* (for benchmarks) a commit is durable and the data lies in /var/tmp, which is no RAM disk. *settings* are
    added to the configuration: `MariadbServer(settings={"innodb_lock_wait_timeout": "1"})`.
    """

    program = "mariadbd"
    accounts = ("mysql", "nobody")
    stop_signal = signal.SIGTERM

    def __init__(
        self,
        *,
        fsync: bool = False,
        settings: Mapping[str, str] | None = None,
        directory: str | Path | None = None,
    ) -> None:
        defaults = {
            "innodb_flush_log_at_trx_commit": "1" if fsync else "0",
            "innodb_flush_method": "fsync" if fsync else "nosync",
            "innodb_log_file_size": "32M",
            "innodb_buffer_pool_size": "64M",
            "max_connections": "200",
            "lock_wait_timeout": "10",
            "character_set_server": "utf8mb4",
            "default_time_zone": "+00:00",
            # With it a key of 0 is stored as it is given.
            "sql_mode": "STRICT_TRANS_TABLES,NO_AUTO_VALUE_ON_ZERO,NO_ENGINE_SUBSTITUTION",
        }
        super().__init__(fsync=fsync, settings={**defaults, **(settings or {})}, directory=directory)

    def url_of(self, database: str) -> str:
        """Return SQLAlchemy's URL of *database*."""
        return f"mariadb+pymysql://root@{self.host}:{self.port}/{database}?charset=utf8mb4&ssl_disabled=true"

    def drop_database(self, url: str) -> None:
        """Drop the database of *url*, once nobody holds a lock in it."""
        self.execute(f"DROP DATABASE {make_url(url).database}")

    def execute(self, statement: str) -> None:
        """Execute *statement* outside a transaction, in no database."""
        with contextlib.closing(self._connect()) as connection, connection.cursor() as cursor:
            cursor.execute(statement)

    def _connect(self) -> pymysql.Connection[Any]:
        return pymysql.connect(host=self.host, port=self.port, user="root", autocommit=True, ssl_disabled=True)

    def _prepare(self) -> None:
        data = self.directory / "data"
        if not data.exists():
            # A data directory of nothing: the tables of accounts and time zones would take seconds to make.
            data.mkdir()
            self._own(data)

    def _command(self) -> Sequence[str]:
        return [
            self._binary("mariadbd"),
            "--no-defaults",
            f"--datadir={self.directory / 'data'}",
            f"--socket={self.directory / 'mariadb.sock'}",
            f"--pid-file={self.directory / 'pid'}",
            f"--bind-address={self.host}",
            f"--port={self.port}",
            "--skip-grant-tables",
            "--skip-networking=0",
            "--skip-name-resolve",
            *(f"--{name.replace('_', '-')}={value}" for name, value in self._settings.items()),
        ]
