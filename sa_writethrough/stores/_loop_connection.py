"""One connection of an event loop, shared by its tasks: a protocol of asyncio's that feeds the runs of a `Pipeline`.

No task holds it and none reads from it: the loop does, and wakes whoever waits for a run that is done. A task that is
cancelled in the middle of an exchange so leaves the stream in step: the replies that it waited for are read all the
same, and what they brought (a lease, a tombstone) is given back, for nobody will use it.

While nothing is unanswered, commands are sent at once; else with those of the other tasks that this turn of the loop
wakes: many exchanges, one system call. Knows no keys, no nodes. Only its own loop's thread may touch it.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable
from typing import Any, TypeAlias

from sa_writethrough.exceptions import CacheUnavailableError
from sa_writethrough.stores._direct import ReadingOne
from sa_writethrough.stores._loops import await_only
from sa_writethrough.stores._meta import MalformedReplyError
from sa_writethrough.stores._pipeline import Pipeline, Run

__all__ = ["LoopConnection"]

_RECEIVE_BYTES = 64 * 1024
_HUNG_UP = int(getattr(select, "POLLRDHUP", 0))

Fault: TypeAlias = "Callable[[LoopConnection, Exception], CacheUnavailableError]"


class LoopConnection(Pipeline, asyncio.BufferedProtocol):
    """A connected transport and the runs on it.

    *timeout* is how long, in seconds, the server may be silent while it owes an answer. *fault* turns what went wrong
    into the error that the runs get, and tells the node. *unwanted* gets a run that is done and that nobody waits for.
    """

    __slots__ = (
        "_drains",
        "_fault",
        "_flushing",
        "_greeting",
        "_heard",
        "_line",
        "_orphans",
        "_poll",
        "_received",
        "_ticking",
        "_timeout",
        "_transport",
        "_unwanted",
        "_waiters",
        "loop",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeout: float,
        fault: Fault,
        unwanted: Callable[[LoopConnection, Run[Any]], None],
    ) -> None:
        super().__init__(os.getpid(), None)
        self.loop = loop
        self._timeout = timeout
        self._fault = fault
        self._unwanted = unwanted
        self._transport: Any = None
        self._received = memoryview(bytearray(_RECEIVE_BYTES))
        self._waiters: dict[Run[Any], asyncio.Future[None]] = {}
        self._orphans: list[Run[Any]] = []
        self._drains: list[tuple[set[Run[Any]], asyncio.Future[None]]] = []
        self._line: asyncio.Future[bytes] | None = None
        self._greeting = b""
        self._flushing = self._ticking = False
        self._heard = 0.0
        self._poll: Callable[[int], object] | None = None

    # --- before the first run ----------------------------------------------------------------------------------------

    async def ask(self, command: bytes) -> bytes:
        """Send *command* and return the line that answers it."""
        self._line = self.loop.create_future()
        self._transport.write(command)
        return await self._line

    def number_with(self, new_cas: Callable[[], int]) -> None:
        """Make the ids of new items from now on: the server takes them."""
        self._new_cas = new_cas

    # --- what the loop calls -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take charge of *transport*."""
        self._transport = transport
        sock = transport.get_extra_info("socket")
        if _HUNG_UP and sock is not None:
            poll = select.poll()
            poll.register(sock.fileno(), _HUNG_UP)
            self._poll = poll.poll

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to put what is received."""
        del sizehint
        return self._received

    def buffer_updated(self, nbytes: int) -> None:
        """Hand what was received to the runs, and wake those who waited for it."""
        received = bytes(self._received[:nbytes])
        if self._line is not None:
            self._greeted(received)
            return
        if not self.alive:
            return
        self._heard = self.loop.time()
        try:
            self._accept(received)
        except MalformedReplyError as error:
            self.fail(self._fault(self, error))
            return
        if self._queue:
            self._flush()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is owed."""
        if self.alive:
            self.fail(self._fault(self, exc or ConnectionResetError("the server closed the connection")))

    def _accept(self, received: bytes) -> None:
        """Understand the usual answers of many tasks that read one key each, then whatever else there is."""
        sent = self._sent
        if len(sent) > 1 and not self._taken:
            self._reader.feed(received)
            while sent and isinstance(run := sent[0][0], ReadingOne) and run.skim_first(self._reader):
                self._bytes -= sent.popleft()[2]
            if self._reader.is_empty:
                return
            received = b""
        super()._accept(received)

    def _greeted(self, received: bytes) -> None:
        self._greeting += received
        if not self._greeting.endswith(b"\r\n"):
            return
        line, self._line = self._line, None
        if line is not None and not line.done():
            line.set_result(self._greeting)
        self._greeting = b""

    # --- sending -----------------------------------------------------------------------------------------------------

    @property
    def is_usable(self) -> bool:
        """Whether it is open, and of the loop that runs here."""
        try:
            return self.alive and asyncio.get_running_loop() is self.loop
        except RuntimeError:
            return False

    @property
    def is_stale(self) -> bool:
        """Whether the server has hung up and the loop has not come to see it yet, as far as the system tells."""
        return self._poll is not None and not self._sent and bool(self._poll(0))

    def begin(self, run: Run[Any], commands: bytes) -> None:
        """Send *run*: at once while nothing is unanswered, else in this turn of the loop."""
        self._queue.append((run, commands, run.count))
        self.flush()

    def flush(self) -> None:
        """Send what fits into the window: at once while nothing is unanswered, else in this turn of the loop."""
        if self._error is not None:
            self.fail(self._error)
        elif not self._sent:
            self._flush()
        elif not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush_soon)

    def send_apart(self, run: Run[Any], commands: bytes) -> None:
        """Send *run*."""
        self.begin(run, commands)

    def push_out(self) -> None:
        """Do nothing: the loop sends what is lined up as soon as the window lets it."""

    def see_through(self, run: Run[Any]) -> None:
        """Do nothing: the loop reads the replies, and what they decide is sent then."""

    def _flush_soon(self) -> None:
        self._flushing = False
        if self.alive:
            self._flush()

    def _flush(self) -> None:
        if not self._sent:
            self._heard = self.loop.time()
        commands = self._next()
        if not commands:
            return
        self._transport.write(commands)
        if not self._ticking:
            self._ticking = True
            self.loop.call_later(self._timeout, self._tick)

    def _tick(self) -> None:
        """Fail if the server is silent. One timer for all, and not one for each exchange."""
        self._ticking = False
        if not self.alive or not self._sent:
            return
        left = self._heard + self._timeout - self.loop.time()
        if left <= 0:
            self.fail(self._fault(self, TimeoutError()))
            return
        self._ticking = True
        self.loop.call_later(left, self._tick)

    # --- waiting -----------------------------------------------------------------------------------------------------

    def wait_for(self, run: Run[Any]) -> None:
        """Wait until *run* is done; where the task is cancelled meanwhile, what the run takes is given back."""
        waiter = self._waiters[run] = self.loop.create_future()
        try:
            await_only(waiter)
        except BaseException:
            self._waiters.pop(run, None)
            self.orphan(run)
            raise

    def drain(self) -> None:
        """Wait until all that is owed now is done, and what comes of it, but not for what tasks go on sending."""
        for _ in range(2):  # the answers to the first may bring what is given back, which is the second
            owed = {run for run, *_ in (*self._sent, *self._queue)}
            if not owed:
                return
            waiter = self.loop.create_future()
            self._drains.append((owed, waiter))
            await_only(waiter)

    def orphan(self, run: Run[Any]) -> None:
        """Note that nobody waits for *run*."""
        if run.done:
            self._unwanted(self, run)
        elif run not in self._orphans:
            self._orphans.append(run)

    def _wake(self) -> None:
        for run in [run for run in self._waiters if run.done]:
            waiter = self._waiters.pop(run)
            if not waiter.done():
                waiter.set_result(None)
        if self._orphans:
            done = [run for run in self._orphans if run.done]
            self._orphans = [run for run in self._orphans if not run.done]
            for run in done:
                self._unwanted(self, run)
        if self._drains:
            over = [waiter for owed, waiter in self._drains if all(run.done for run in owed)]
            self._drains = [drain for drain in self._drains if drain[1] not in over]
            for waiter in over:
                if not waiter.done():
                    waiter.set_result(None)

    # --- the end -----------------------------------------------------------------------------------------------------

    def fail(self, error: Exception) -> None:
        """Close the transport; every run on this connection gets *error*."""
        self._give_up(error)
        line, self._line = self._line, None
        if line is not None and not line.done():
            line.set_exception(error)
        self._wake()
        if self._transport is not None:
            self._transport.abort()
