"""One memcached node: its idle connections, whether it is down, and which node owns a key. Knows no keys' meaning.

A node that does not answer costs one time limit; until `retry_after` seconds later everyone fails at once, then one
thread tries. The ring is fixed: a key's owner does not change because a node is down. (pymemcache's HashClient moves
the keys, and the old values come back with the node.)
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar
from zlib import crc32

from sa_writethrough.exceptions import CacheUnavailableError
from sa_writethrough.stores._connecting import Address, connect, has_explicit_cas
from sa_writethrough.stores._connection import Connection
from sa_writethrough.stores._node import NodeBase, NodeOptions, random_cas
from sa_writethrough.stores._pipeline import Plan, Run

__all__ = ["Node", "NodeOptions", "Ring", "random_cas"]

T = TypeVar("T")
N = TypeVar("N", bound=NodeBase[Any])

_RING_POINTS = 160
"""Per node. Enough that of three nodes none gets more than a tenth above its share."""


class Node(NodeBase[Connection]):
    """One server and the connections to it. Thread-safe; a forked child starts with none."""

    def __init__(self, address: Address, options: NodeOptions) -> None:
        super().__init__(address, options)
        self._pool_size = options.pool_size
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._idle: deque[Connection] = deque()
        self._open: set[Connection] = set()
        self._retry_at: float | None = None
        self._down: CacheUnavailableError | None = None

    # --- connections -------------------------------------------------------------------------------------------------

    def take(self) -> Connection:
        """Return a connection, its lock held; `give` it back. Raises `CacheUnavailableError`."""
        if self._pid != os.getpid():
            self._leave_to_parent()
        if self._retry_at is not None:
            return self._probe()
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return self._connect()
            if not connection.alive:
                continue
            if connection.lock.acquire(blocking=False):
                return connection
            # Someone settles a token on it.
            self._idle.appendleft(connection)
            return self._connect()

    def take_checked(self) -> Connection:
        """Like `take`, but of a connection that the server has closed meanwhile take another."""
        connection = self.take()
        while connection.is_stale:
            connection.fail(self._gone())
            self.give(connection)
            connection = self.take()
        return connection

    def give(self, connection: Connection) -> None:
        """Let go of a connection that `take` returned."""
        if len(self._idle) >= self._pool_size and connection.alive:
            connection.drain()
            if not connection.is_bound:  # else a lease or a tombstone would be lost with it
                connection.fail(self._gone())
        connection.lock.release()
        if connection.outbox:
            connection.settle()
        if not connection.alive:
            self._open.discard(connection)
        elif connection.owes:
            # To the far end: the next thread should find one that owes nothing.
            self._idle.appendleft(connection)
        else:
            self._idle.append(connection)

    def close(self) -> None:
        """Close every connection, after what it owes."""
        if self._pid != os.getpid():
            self._leave_to_parent()
        for connection in tuple(self._open):
            with connection.lock:
                connection.drain()
                connection.fail(self._gone())
            self._open.discard(connection)
        self._idle.clear()

    # --- runs --------------------------------------------------------------------------------------------------------

    def start(self, plans: Sequence[Callable[[Connection], Plan[T]]]) -> list[Run[T]]:
        """Send *plans* over one connection. What goes wrong is told by the runs."""
        try:
            connection = self.take_checked()
        except CacheUnavailableError as error:
            return [Run.failed(error) for _ in plans]
        try:
            runs = [Run(plan(connection), connection) for plan in plans]
            for run in runs:
                connection.enqueue(run)
            connection.flush()
            return runs
        finally:
            self.give(connection)

    def start_on(self, connection: Connection, plans: Sequence[Callable[[Connection], Plan[T]]]) -> list[Run[T]]:
        """Send *plans* over *connection* and no other, or fail."""
        if not connection.is_usable:
            return [Run.failed(self._gone()) for _ in plans]
        runs = [Run(plan(connection), connection) for plan in plans]
        connection.hand(runs)
        return runs

    def drain(self) -> None:
        """Wait until nothing is owed on any connection."""
        if self._pid != os.getpid():
            self._leave_to_parent()
        for connection in tuple(self._open):
            with connection.lock:
                connection.drain()
            connection.settle()

    # --- what can go wrong -------------------------------------------------------------------------------------------

    def _connect(self) -> Connection:
        try:
            sock, version = connect(self._address, self._options.connecting)
        except OSError as error:
            raise self._mark_down(error) from error
        new_cas = self._options.new_cas if has_explicit_cas(version) else None
        connection = Connection(sock, self._pid, new_cas, self._fault)
        connection.lock.acquire()
        self._open.add(connection)
        self._retry_at = None
        return connection

    def _probe(self) -> Connection:
        """Let one thread try a node that was down, once the time has come; the others go on failing."""
        with self._lock:
            now = self._options.clock()
            if self._retry_at is not None and now < self._retry_at and self._down is not None:
                raise self._down.with_traceback(None)
            self._retry_at = now + self._options.retry_after
        return self._connect()

    def _fault(self, connection: Connection, error: Exception) -> CacheUnavailableError:
        """Tell what a connection died of. A node that is slow is down; one that hung up may have come back already."""
        slow = isinstance(error, BlockingIOError | TimeoutError)
        fault = self._mark_down(error) if slow else CacheUnavailableError(self._describe(error))
        self._open.discard(connection)
        self._forget_idle(fault)
        return fault

    def _forget_idle(self, fault: CacheUnavailableError) -> None:
        while self._idle:
            connection = self._idle.popleft()
            self._open.discard(connection)
            if connection.lock.acquire(blocking=False):
                connection.fail(fault)
                connection.lock.release()
                connection.settle()

    def _leave_to_parent(self) -> None:
        """After a fork: close our copies of the parent's sockets, which does not touch the connections."""
        inherited = self._open
        self._start_afresh()
        for connection in inherited:
            connection.alive = False
            connection.sock.close()


class Ring(Generic[N]):
    """Maps keys to nodes, for good: by the nodes' names, whatever their order and whether or not they answer.

    Consistent hashing (Karger et al., 1997), so that adding a node to the configuration moves its share of keys alone.
    """

    def __init__(self, nodes: Sequence[N]) -> None:
        points = sorted(
            ((crc32(f"{node.name}#{n}".encode()), node) for node in nodes for n in range(_RING_POINTS)),
            key=lambda point: (point[0], point[1].name),
        )
        self._hashes = [point for point, _ in points]
        self._owners = [node for _, node in points]

    def owner(self, key: str) -> N:
        """Return the node of *key*."""
        return self._owners[bisect_right(self._hashes, crc32(key.encode())) % len(self._owners)]
