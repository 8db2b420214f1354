"""One connection: what was sent over it, which replies it still owes, and who waits for them. Knows no keys, no nodes.

A `Plan` says what to send and what the replies mean; a `Run` is a plan under way. Runs share a connection: nobody holds
it between sending and reading, and whoever reads next reads the earlier runs' replies first and hands them over. So a
thread that waits for a reply can never wait for a thread that waits for the same connection.

The lock guards the socket and the two queues. The outbox needs none: whoever finds the connection in use leaves a run
there, and the user sends it on release.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

from sa_writethrough.exceptions import CacheUnavailableError, ConfigurationError
from sa_writethrough.stores._meta import MalformedReplyError, Reply, ReplyReader

__all__ = ["RECEIVE_BYTES", "Connection", "Plan", "Run"]

T = TypeVar("T")

Plan: TypeAlias = Generator[Sequence[bytes], Sequence[Reply], Sequence[T]]
"""Yields commands, at least one, is sent one reply for each, and returns its results."""

WINDOW_PARTS = 128
WINDOW_BYTES = 32 * 1024
"""How much may be unanswered at once. Both ends' socket buffers hold that much, in that many pieces, so a server that
waits for us to read can never make us wait for it to read: no batch can deadlock."""
PART_BYTES = WINDOW_BYTES // 2
"""Of a larger run the second part is sent before the first one's replies are read: the server need not wait for us."""
RECEIVE_BYTES = 8 * 1024
"""For the few replies of a hot path; a buffer that need not grow."""
_RECEIVE_MANY_BYTES = 64 * 1024
# As a plain number: to combine an enumeration's flags takes longer than to peek. Windows has no such flag, nor need of
# it: there the socket has a time limit of its own.
_PEEK = int(socket.MSG_PEEK) | int(getattr(socket, "MSG_DONTWAIT", 0))


class Run(Generic[T]):
    """A plan under way. `done` once it has *results* or an *error*; the lock of its connection guards the rest."""

    __slots__ = ("_plan", "_replies", "commands", "connection", "error", "results")

    def __init__(self, plan: Plan[T], connection: Connection) -> None:
        self.connection: Connection | None = connection
        self.results: Sequence[T] | None = None
        self.error: Exception | None = None
        self.commands: Sequence[bytes] = next(plan)
        self._plan = plan
        self._replies: list[Reply] = []

    @classmethod
    def failed(cls, error: Exception) -> Run[T]:
        """Return a run that has already failed."""
        run = cls.__new__(cls)
        run.connection, run.results, run.error = None, None, error
        return run

    @property
    def done(self) -> bool:
        """Whether nothing more will be sent or read for it."""
        return self.results is not None or self.error is not None

    def take(self, some: Sequence[Reply]) -> bool:
        """Take the next replies. Return whether the plan has `commands` to be sent now."""
        self._replies += some
        if len(self._replies) < len(self.commands):
            return False
        replies, self._replies = self._replies, []
        try:
            self.commands = self._plan.send(replies)
        except StopIteration as stop:
            self.results = stop.value
            return False
        except ConfigurationError as error:
            self.error = error
            return False
        return True

    def fail(self, error: Exception) -> None:
        """Give up: *error* is what the waiting thread gets."""
        self._plan.close()
        self.error = error


class Connection:
    """A connected socket and the runs on it. But for `hand` and `settle`, the caller holds `lock`.

    *new_cas* makes the ids of new items; None where the server takes only its own, which it counts from one again after
    a restart: there a token is good on its connection alone. *fault* turns what went wrong into the error that the runs
    get, and tells the node.
    """

    __slots__ = (
        "_bytes",
        "_error",
        "_fault",
        "_new_cas",
        "_queue",
        "_reader",
        "_sent",
        "_taken",
        "alive",
        "lock",
        "outbox",
        "pid",
        "sock",
    )

    def __init__(
        self,
        sock: socket.socket,
        pid: int,
        new_cas: Callable[[], int] | None,
        fault: Callable[[Connection, Exception], CacheUnavailableError],
    ) -> None:
        self.sock = sock
        self.pid = pid
        self._new_cas = new_cas
        self.alive = True
        self.lock = threading.Lock()
        self.outbox: deque[Run[Any]] = deque()
        # Parts of runs: the commands and how many they are; and once they are sent, how many they are and their bytes.
        self._queue: deque[tuple[Run[Any], bytes, int]] = deque()
        self._sent: deque[tuple[Run[Any], int, int]] = deque()
        # Bytes that are unanswered, and replies that have come to the part that is being answered.
        self._bytes = 0
        self._taken = 0
        self._error: Exception | None = None
        self._reader = ReplyReader()
        self._fault = fault

    @property
    def binds_tokens(self) -> bool:
        """Whether what is taken over this connection may be used over no other."""
        return self._new_cas is None

    def fresh(self) -> int | None:
        """Return the id for a new item; None leaves it to the server."""
        return None if self._new_cas is None else self._new_cas()

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
        """Whether the server has closed it, as far as can be told without waiting."""
        if self.owes or self.sock.gettimeout() is not None:
            return False
        try:
            # Nothing is owed: whatever can be read is the end of the stream, or a server that speaks out of turn.
            self.sock.recv(1, _PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

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

    def enqueue(self, run: Run[Any]) -> None:
        """Line up the commands of *run*; `flush` sends them."""
        whole = b"".join(run.commands)
        if len(whole) <= PART_BYTES:
            self._queue.append((run, whole, len(run.commands)))
            return
        part: list[bytes] = []
        size = 0
        for command in run.commands:
            if part and size + len(command) > PART_BYTES:
                self._queue.append((run, b"".join(part), len(part)))
                part, size = [], 0
            part.append(command)
            size += len(command)
        self._queue.append((run, b"".join(part), len(part)))

    def adopt(self, run: Run[Any], answer: bytes) -> None:
        """Go on with *run*, whose commands the caller sent itself and of whose replies it received *answer*."""
        self._sent.append((run, len(run.commands), 0))
        self._guarded(lambda: self._accept(answer))

    def flush(self) -> None:
        """Send what fits into the window, without waiting."""
        self._guarded(self._flush)

    def push(self) -> None:
        """Send everything; read only as far as the window makes it necessary."""
        self._guarded(lambda: self._pump(lambda: not self._queue))

    def finish(self, run: Run[Any]) -> None:
        """Send and read until *run* is done."""
        self._guarded(lambda: self._pump(lambda: run.done))

    def drain(self) -> None:
        """Send and read until nothing is owed."""
        self._guarded(lambda: self._pump(lambda: False))

    def fail(self, error: Exception) -> None:
        """Close the socket; every run on this connection gets *error*."""
        self.alive = False
        self._error = error
        # Closing may report what went wrong before: we know.
        with contextlib.suppress(OSError):
            self.sock.close()
        waiting = [run for run, *_ in self._sent] + [run for run, *_ in self._queue]
        while self.outbox:
            waiting.append(self.outbox.popleft())
        self._sent.clear()
        self._queue.clear()
        for run in waiting:
            if not run.done:
                run.fail(error)

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

    # --- with it -----------------------------------------------------------------------------------------------------

    def _guarded(self, action: Callable[[], None]) -> None:
        """Do *action*; a connection on which it fails is closed, for what it would say next belongs to nobody."""
        if self._error is not None:
            self.fail(self._error)
            return
        try:
            action()
        except (OSError, MalformedReplyError) as error:
            self.fail(self._fault(self, error))
        except BaseException as error:
            self.fail(self._fault(self, ConnectionAbortedError(f"interrupted by {type(error).__name__}")))
            raise

    def _flush(self) -> None:
        while self.outbox:
            self.enqueue(self.outbox.popleft())
        batch: list[bytes] = []
        while self._queue and len(self._sent) < WINDOW_PARTS:
            run, part, count = self._queue[0]
            if self._sent and self._bytes + len(part) > WINDOW_BYTES:
                break
            self._queue.popleft()
            self._sent.append((run, count, len(part)))
            self._bytes += len(part)
            batch.append(part)
        if batch:
            self.sock.sendall(b"".join(batch))

    def _pump(self, enough: Callable[[], bool]) -> None:
        while True:
            if self._queue or self.outbox:
                self._flush()
            if enough() or not self._sent:
                return
            received = self.sock.recv(max(_RECEIVE_MANY_BYTES, self._reader.wanted_bytes))
            if not received:
                raise ConnectionResetError("the server closed the connection")
            self._accept(received)

    def _accept(self, received: bytes) -> None:
        self._reader.feed(received)
        while self._sent:
            run, count, size = self._sent[0]
            replies = self._reader.replies(count - self._taken)
            self._taken += len(replies)
            more = run.take(replies)
            if self._taken < count:
                return
            self._sent.popleft()
            self._taken = 0
            self._bytes -= size
            if more:
                self.enqueue(run)
        if not self._reader.is_empty:
            raise MalformedReplyError("a reply that nobody asked for")
