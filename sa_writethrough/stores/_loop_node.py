"""One memcached node as event loops see it: a connection for each loop, whether the node is down, and how loops end.

All tasks of a loop share one connection, so there is no pool and nobody waits for a free one. A connection belongs to
its loop for good: another loop, of another thread or after the first was closed, opens its own. A loop that shuts down
its asynchronous generators, as `asyncio.run` does, closes its connection then.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, TypeVar

from sa_writethrough.coherence import Retract
from sa_writethrough.exceptions import CacheUnavailableError
from sa_writethrough.stores import _plans as plans
from sa_writethrough.stores._connecting import Address, has_explicit_cas
from sa_writethrough.stores._loop_connection import LoopConnection
from sa_writethrough.stores._loops import await_only, running_loop
from sa_writethrough.stores._node import NodeBase, NodeOptions
from sa_writethrough.stores._pipeline import Plan, Run
from sa_writethrough.stores._plans import ItemToken

__all__ = ["LoopNode"]

T = TypeVar("T")

# A connection that a firewall has forgotten is found out, as those of threads are.
_KEEP_ALIVE = (
    (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    )
    if sys.platform == "linux"
    else ()
)
_version_in = re.compile(rb"VERSION (\S+)").match


class _Place:
    """What a node has on one loop."""

    __slots__ = ("closer", "connecting", "connection")

    def __init__(self) -> None:
        self.connection: LoopConnection | None = None
        self.connecting: asyncio.Task[LoopConnection | CacheUnavailableError] | None = None
        self.closer: AsyncGenerator[None, None] | None = None


class LoopNode(NodeBase[LoopConnection]):
    """One server and the connections of all loops to it."""

    def __init__(self, address: Address, options: NodeOptions) -> None:
        super().__init__(address, options)
        self._places: dict[asyncio.AbstractEventLoop, _Place] = {}

    # --- connections -------------------------------------------------------------------------------------------------

    @property
    def connection(self) -> LoopConnection | None:
        """The running loop's connection, if it is open."""
        place = self._places.get(running_loop())
        connection = None if place is None else place.connection
        return connection if connection is not None and connection.alive else None

    @property
    def is_ready(self) -> bool:
        """Whether something can be sent without waiting: the running loop's connection is open, as far as is known."""
        connection = self.connection
        return connection is not None and not connection.is_stale

    def take_checked(self) -> LoopConnection:
        """Return the running loop's connection, which its tasks share; open it, and wait, if there is none.

        Raises `CacheUnavailableError`.
        """
        loop = running_loop()
        place = self._places.get(loop)
        if place is not None and (connection := place.connection) is not None and connection.alive:
            if not connection.is_stale:
                return connection
            connection.fail(self._gone())
        retry_at, down = self._retry_at, self._down  # another loop's thread may change them
        if retry_at is not None and down is not None and self._options.clock() < retry_at:
            raise down.with_traceback(None)
        found: LoopConnection | CacheUnavailableError = await_only(self._connected(loop))
        if isinstance(found, CacheUnavailableError):
            raise found.with_traceback(None)
        return found

    def give(self, connection: LoopConnection) -> None:
        """Do nothing: a connection is shared."""

    def drain(self) -> None:
        """Wait until nothing is owed on the running loop's connection."""
        connection = self.connection
        if connection is not None:
            connection.drain()

    def close(self) -> None:
        """Close every loop's connection. Those of other loops are closed by their own threads."""
        for loop, place in list(self._places.items()):
            connection, place.connection = place.connection, None
            if connection is None:
                continue
            if connection.is_usable:
                connection.fail(self._gone())
            else:
                with contextlib.suppress(RuntimeError):  # its thread closes it just now
                    loop.call_soon_threadsafe(connection.fail, self._gone())

    # --- runs --------------------------------------------------------------------------------------------------------

    def start(self, plans: Sequence[Callable[[LoopConnection], Plan[T]]]) -> list[Run[T]]:
        """Send *plans* over the running loop's connection. What goes wrong is told by the runs."""
        try:
            connection = self.take_checked()
        except CacheUnavailableError as error:
            return [Run.failed(error) for _ in plans]
        return self.start_on(connection, plans)

    def start_on(
        self, connection: LoopConnection, plans: Sequence[Callable[[LoopConnection], Plan[T]]]
    ) -> list[Run[T]]:
        """Send *plans* over *connection* and no other, or fail."""
        if not connection.is_usable:
            return [Run.failed(self._gone()) for _ in plans]
        runs = [Run(plan(connection), connection) for plan in plans]
        for run in runs:
            connection.enqueue(run)
        connection.flush()
        return runs

    # --- connecting --------------------------------------------------------------------------------------------------

    async def _connected(self, loop: asyncio.AbstractEventLoop) -> LoopConnection | CacheUnavailableError:
        """Return the loop's connection. The tasks that find none wait for one attempt; none of them can cancel it."""
        for closed in [known for known in list(self._places) if known.is_closed()]:
            self._places.pop(closed, None)
        place = self._places.setdefault(loop, _Place())
        if place.connecting is None or place.connecting.done():
            place.connecting = loop.create_task(self._connect(loop, place))
        return await asyncio.shield(place.connecting)

    async def _connect(self, loop: asyncio.AbstractEventLoop, place: _Place) -> LoopConnection | CacheUnavailableError:
        """Connect; do not raise, for there may be nobody left to hear it."""
        connection = LoopConnection(loop, self._options.connecting.timeout, self._fault, self._give_back)
        try:
            await self._open(loop, connection)
        except (asyncio.TimeoutError, TimeoutError):
            connection.fail(self._gone())
            return self._mark_down(TimeoutError())
        except OSError as error:
            connection.fail(self._gone())
            return self._mark_down(error)
        except CacheUnavailableError as error:  # it hung up
            return self._mark_down(ConnectionResetError(str(error)))
        except BaseException:
            connection.fail(self._gone())
            raise
        if place.closer is None:
            place.closer = _closer(place, self._gone)
            await place.closer.__anext__()
        self._retry_at = None
        place.connection = connection
        return connection

    async def _open(self, loop: asyncio.AbstractEventLoop, connection: LoopConnection) -> None:
        options, address = self._options.connecting, self._address
        made: Any
        if address.port is None:
            made = loop.create_unix_connection(lambda: connection, address.host)
        else:
            made = loop.create_connection(lambda: connection, address.host, address.port, ssl=options.tls)
        transport, _ = await asyncio.wait_for(made, options.connect_timeout)
        if address.port is not None:
            for option in _KEEP_ALIVE:
                transport.get_extra_info("socket").setsockopt(*option)
        if (credentials := options.credentials) is not None:
            login = f"{credentials.username} {credentials.password}".encode()
            command = b"set auth 0 0 %d\r\n%b\r\n" % (len(login), login)
            if not (await asyncio.wait_for(connection.ask(command), options.timeout)).startswith(b"STORED"):
                # Not the server's words: they might repeat ours.
                raise PermissionError(f"user {credentials.username!r} was refused: check the URL's user and password")
        answer = await asyncio.wait_for(connection.ask(b"version\r\n"), options.timeout)
        version = _version_in(answer)
        if version is None:
            raise ConnectionError(f"not memcached's answer to `version`: {answer[:80]!r}")
        if has_explicit_cas(version[1]):
            connection.number_with(self._options.new_cas)

    # --- what can go wrong -------------------------------------------------------------------------------------------

    def _fault(self, _connection: LoopConnection, error: Exception) -> CacheUnavailableError:
        """Tell what a connection died of. A node that is slow is down; one that hung up may have come back already."""
        return (
            self._mark_down(error) if isinstance(error, TimeoutError) else CacheUnavailableError(self._describe(error))
        )

    @staticmethod
    def _give_back(connection: LoopConnection, run: Run[Any]) -> None:
        """Give back what a run took whose task was cancelled: nobody will fill, and nobody will commit.

        A writer that was cancelled while it waited for this rolls back; whether it has done so yet makes no difference.
        """
        taken = [(key, token) for key, token in run.taken() if isinstance(token, ItemToken)]
        if not taken or not connection.alive:
            return
        own = [plans.settle(Retract(key, token), token, connection.fresh, 0) for key, token in taken]
        connection.enqueue(Run(plans.abreast(own), connection))
        connection.flush()


async def _closer(place: _Place, gone: Callable[[], CacheUnavailableError]) -> AsyncGenerator[None, None]:
    """Close the place's connection when the loop shuts down its asynchronous generators."""
    try:
        yield
    finally:
        connection, place.connection = place.connection, None
        if connection is not None and connection.alive:
            connection.fail(gone())
            await asyncio.sleep(0)  # the transport closes its socket in the loop's next turn
