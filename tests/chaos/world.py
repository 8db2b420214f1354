"""The servers under fire and the proxies before them; what can be done to them, one verb for each."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from typing import Any

import psycopg
from typing_extensions import Self

from tests.chaos.fleet import processes
from tests.chaos.pressure import press
from tests.chaos.proxy import Mode, run_proxy
from tests.servers import MemcachedServer, PostgresServer

__all__ = ["Proxies", "World"]

NODES = 2
SETTINGS = {
    "synchronous_commit": "on",  # else no COMMIT waits for a replica; with fsync off it costs nothing
    "deadlock_timeout": "500ms",
    "max_connections": "100",
    "log_min_messages": "panic",
    "log_min_error_statement": "panic",
    "log_connections": "off",
}


class Proxies:
    """One proxy process, and the thread-safe way to order it about."""

    def __init__(self, targets: dict[str, tuple[str, int]]) -> None:
        self._pipe, theirs = processes.Pipe()
        self._process = processes.Process(target=run_proxy, args=(targets, theirs), name="chaos proxy")
        self._process.start()
        theirs.close()
        self._lock = threading.Lock()
        self.addresses: dict[str, str] = self._pipe.recv()
        self.counts: Counter[Mode] = Counter()

    def order(self, name: str, mode: Mode) -> Counter[Mode]:
        """Set the mode of one port and return what was done so far."""
        with self._lock:
            self._pipe.send((name, mode))
            self.counts = Counter(self._pipe.recv())
            return self.counts

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class World:
    """A PostgreSQL and two memcached nodes, each behind a port of a proxy."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        # SIGTERM would take a second: these are killed, and nothing of theirs is to be saved.
        self.nodes = {f"node{n}": MemcachedServer("-m", "1", "-I", "512k") for n in range(NODES)}
        self.postgres = PostgresServer(settings=SETTINGS)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for server in (*self.nodes.values(), self.postgres):
                stack.enter_context(server)
            self.caches = Proxies({name: (node.host, node.port) for name, node in self.nodes.items()})
            stack.callback(self.caches.close)
            self.database = Proxies({"postgres": (self.postgres.host, self.postgres.port)})
            stack.callback(self.database.close)
            stack.callback(self.heal)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """The database, through its proxy."""
        return f"postgresql+psycopg://postgres@{self.database.addresses['postgres']}/postgres"

    @property
    def node_addresses(self) -> tuple[str, ...]:
        """host:port of every node, through its proxy."""
        return tuple(self.caches.addresses[name] for name in self.nodes)

    def heal(self) -> None:
        """Take back whatever is being done to the servers."""
        for name, node in self.nodes.items():
            with contextlib.suppress(OSError, EOFError):
                self.caches.order(name, Mode.PASS)
            if node.running:
                node.resume()
            else:
                node.start()
        with contextlib.suppress(OSError, EOFError):
            self.database.order("postgres", Mode.PASS)
        if self.postgres.running:
            self.wait_for_replica("")

    # --- memcached ---

    def press(self, name: str) -> bool:
        """Fill a node with other items; return whether most items of the library's own sizes went for them."""
        with self.nodes[name]._connect(5.0) as connection:
            return press(connection) > 0.5

    # --- PostgreSQL ---

    def sql(self, statement: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Execute one statement as superuser, past the proxy; return its rows."""
        with psycopg.connect(self.postgres.dsn, autocommit=True, application_name="rig") as connection:
            cursor = connection.execute(statement, parameters)  # type: ignore[arg-type]  # our own text
            return cursor.fetchall() if cursor.description else []

    def terminate(self, where: str, limit: int) -> int:
        """End some of the application's sessions; return how many."""
        found = self.sql(
            "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity"
            f" WHERE application_name LIKE 'chaos %%' AND {where} ORDER BY state = 'idle', random() LIMIT %s) chosen",
            [limit],
        )
        return sum(done for (done,) in found)

    def random_session(self) -> int | None:
        """Return the process id of one of the application's sessions, one in a transaction if there is any."""
        found = self.sql(
            "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'chaos %'"
            " ORDER BY xact_start IS NULL, random() LIMIT 1"
        )
        return found[0][0] if found else None

    def wait_for_replica(self, name: str) -> None:
        """Have every COMMIT wait for the synchronous replica *name*, which does not exist; or not, for ''."""
        self.sql(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
        self.sql("SELECT pg_reload_conf()")

    def waiting_for_replica(self) -> int:
        """Return how many COMMITs wait."""
        return self.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")[0][0]

    def settle(self, seconds: float) -> None:
        """Wait until no session of the application is left: a COMMIT may be under way whose client is gone."""
        deadline = time.monotonic() + seconds
        here = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'chaos %'"
        while self.sql(here)[0][0]:
            if time.monotonic() > deadline:
                self.terminate("true", 1000)
                deadline += 5
            time.sleep(0.1)
