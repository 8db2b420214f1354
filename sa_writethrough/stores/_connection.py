"""One connection of threads: how its runs' bytes are moved, and who waits for them. Knows no keys, no nodes.

Nobody holds it between sending and reading, and whoever reads next reads the earlier runs' replies first and hands them
over. So a thread that waits for a reply can never wait for a thread that waits for the same connection.

The lock guards the socket and the two queues. The outbox needs none: whoever finds the connection in use leaves a run
there, and the user sends it on release.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from sa_writethrough.exceptions import CacheUnavailableError
from sa_writethrough.stores._meta import MalformedReplyError
from sa_writethrough.stores._pipeline import Pipeline, Run

__all__ = ["RECEIVE_BYTES", "Connection"]

RECEIVE_BYTES = 8 * 1024
"""For the few replies of a hot path; a buffer that need not grow."""
_RECEIVE_MANY_BYTES = 64 * 1024
_FEW_REPLIES = 16
# What a socket tells whose peer has closed it or may have something to say. A plain number; Windows has no `poll`, nor
# need of it: there the socket has a time limit of its own, as with TLS.
_READABLE = int(getattr(select, "POLLIN", 0))
_WATCHED = _READABLE | int(getattr(select, "POLLRDHUP", 0))


class Connection(Pipeline):
    """A connected socket and the runs on it. But for `hand` and `settle`, the caller holds `lock`.

    *fault* turns what went wrong into the error that the runs get, and tells the node.
    """

    __slots__ = ("_fault", "_poll", "lock", "outbox", "sock")

    def __init__(
        self,
        sock: socket.socket,
        pid: int,
        new_cas: Callable[[], int] | None,
        fault: Callable[[Connection, Exception], CacheUnavailableError],
    ) -> None:
        super().__init__(pid, new_cas)
        self.sock = sock
        self.lock = threading.Lock()
        self.outbox: deque[Run[Any]] = deque()
        self._fault = fault
        self._poll: Callable[[int], Sequence[tuple[int, int]]] | None = None
        if sock.gettimeout() is None:
            poll = select.poll()
            poll.register(sock, _WATCHED)
            self._poll = poll.poll

    @property
    def is_usable(self) -> bool:
        """Whether it is open, and not one that a forked child inherited."""
        return self.alive and self.pid == os.getpid()

    @property
    def owes(self) -> bool:
        """Whether something is still to be sent or read."""
        return bool(self._sent or self._queue or self.outbox)

    @property
    def holds_back(self) -> bool:
        """Whether something is still to be sent. Good without the lock: whoever has it sends what we cannot see."""
        return bool(self._queue or self.outbox)

    @property
    def is_stale(self) -> bool:
        """Whether the server has closed it, as far as can be told without waiting. Takes the replies that are there.

        A poll: in the usual case, where there is nothing, it costs half of what it costs to be refused a byte.
        """
        if self._poll is None:
            return False
        while events := self._poll(0):
            if events[0][1] != _READABLE or not self._sent:
                # Closed; what was said before is still for those who wait for it. Or a server that speaks out of turn.
                self.drain()
                return True
            self._guarded(self._receive)
            if not self.alive:
                return True
        return False

    def exchange(self, commands: bytes) -> bytes:
        """Send *commands* and return what is there first: usually, and where nothing was owed, the whole answer.

        The hot path. Hand the answer to `adopt` if there may be more of it.
        """
        try:
            self.sock.sendall(commands)
            return self.sock.recv(RECEIVE_BYTES)
        except OSError as error:
            self.fail(self._fault(self, error))
            return b""
        except BaseException:
            self.fail(self._fault(self, ConnectionAbortedError("interrupted")))
            raise

    def begin(self, run: Run[Any], commands: bytes) -> None:
        """Send *run*, whose first *commands* are not more than one part: at once, if there is room in the window."""
        sent = self._sent
        if self._queue or self.outbox or (sent and not self._has_room(len(commands))):
            self.enqueue(run)
            self.flush()
            return
        sent.append((run, run.count, len(commands)))
        self._bytes += len(commands)
        self._guarded(self.sock.sendall, commands)

    def adopt(self, run: Run[Any], answer: bytes) -> None:
        """Go on with *run*, whose commands the caller sent itself and of whose replies it received *answer*."""
        self._sent.append((run, run.count, 0))
        self._guarded(self._accept, answer)

    def flush(self) -> None:
        """Send what fits into the window, without waiting."""
        self._guarded(self._flush)

    def push(self) -> None:
        """Send everything; read only as far as the window makes it necessary."""
        self._guarded(self._push)

    def finish(self, run: Run[Any]) -> None:
        """Send and read until *run* is done."""
        self._guarded(self._finish, run)

    def drain(self) -> None:
        """Send and read until nothing is owed."""
        self._guarded(self._drain)

    def fail(self, error: Exception) -> None:
        """Close the socket; every run on this connection gets *error*."""
        # Closing may report what went wrong before: we know.
        with contextlib.suppress(OSError):
            self.sock.close()
        while self.outbox:
            self.enqueue(self.outbox.popleft())
        self._give_up(error)

    # --- without the lock --------------------------------------------------------------------------------------------

    def hand(self, runs: Sequence[Run[Any]]) -> None:
        """Have *runs* sent now, or by the thread that is using the connection as soon as it lets go of it."""
        self.outbox.extend(runs)
        self.settle()

    def settle(self) -> None:
        """Send what was handed over, unless someone holds the lock, who will. To be called after every release.

        Both sides look again after they have shown their hand, the one a run in the outbox, the other a free lock: so
        one of them sees the other's.
        """
        while self.outbox and self.lock.acquire(blocking=False):
            try:
                self.push()
            finally:
                self.lock.release()

    def send_apart(self, run: Run[Any], commands: bytes) -> None:
        """Send *run* now, or have it sent by the thread that is using the connection."""
        if self.lock.acquire(blocking=False):
            try:
                self.begin(run, commands)
                self.push()
            finally:
                self.lock.release()
            self.settle()
        else:
            self.hand([run])

    def push_out(self) -> None:
        """Send everything, without waiting for who uses the connection: that thread sends it."""
        if self.holds_back and self.lock.acquire(blocking=False):
            try:
                self.push()
            finally:
                self.lock.release()
            self.settle()

    def see_through(self, run: Run[Any]) -> None:
        """Wait until *run* is done: its thread alone reads what decides how it goes on."""
        if not run.done:
            self.wait_for(run)

    def wait_for(self, run: Run[Any]) -> None:
        """Send and read until *run* is done."""
        with self.lock:
            self.finish(run)
        self.settle()

    # --- with it -----------------------------------------------------------------------------------------------------

    def _guarded(self, action: Callable[..., None], *arguments: Any) -> None:
        """Do *action*; a connection on which it fails is closed, for what it would say next belongs to nobody."""
        if self._error is not None:
            self.fail(self._error)
            return
        try:
            action(*arguments)
        except (OSError, MalformedReplyError) as error:
            self.fail(self._fault(self, error))
        except BaseException as error:
            self.fail(self._fault(self, ConnectionAbortedError(f"interrupted by {type(error).__name__}")))
            raise

    def _flush(self) -> None:
        while self.outbox:
            self.enqueue(self.outbox.popleft())
        if self._queue:
            commands = self._next()
            if commands:
                self.sock.sendall(commands)

    def _push(self) -> None:
        self._flush()
        while self._queue:
            self._receive()
            self._flush()

    def _finish(self, run: Run[Any]) -> None:
        if self._queue or self.outbox:
            self._flush()
        while not run.done and self._sent:
            self._receive()
            self._flush()

    def _drain(self) -> None:
        self._flush()
        while self._sent:
            self._receive()
            self._flush()

    def _receive(self) -> None:
        few = not self._sent or self._sent[0][1] <= _FEW_REPLIES
        usual = RECEIVE_BYTES if few else _RECEIVE_MANY_BYTES
        received = self.sock.recv(max(usual, self._reader.wanted_bytes))
        if not received:
            raise ConnectionResetError("the server closed the connection")
        self._accept(received)
