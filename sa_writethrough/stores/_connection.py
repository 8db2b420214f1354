"""One connection: what was sent over it, which replies it still owes, and who waits for them. Knows no keys, no nodes.

A `Plan` says what to send and what the replies mean; a `Run` is a plan under way. Runs share a connection: nobody holds
it between sending and reading, and whoever reads next reads the earlier runs' replies first and hands them over. So a
thread that waits for a reply can never wait for a thread that waits for the same connection.

The lock guards the socket and the two queues. The outbox needs none: whoever finds the connection in use leaves a run
there, and the user sends it on release.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

from sa_writethrough.coherence import Hit
from sa_writethrough.exceptions import CacheUnavailableError, ConfigurationError
from sa_writethrough.stores._meta import MalformedReplyError, Reply, ReplyReader

__all__ = ["RECEIVE_BYTES", "Connection", "Plan", "Run"]

T = TypeVar("T")

Plan: TypeAlias = Generator[Sequence[bytes], Sequence[Any], Sequence[T]]
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
# What a socket tells whose peer has closed it or may have something to say. A plain number; Windows has no `poll`, nor
# need of it: there the socket has a time limit of its own, as with TLS.
_READABLE = int(getattr(select, "POLLIN", 0))
_WATCHED = _READABLE | int(getattr(select, "POLLRDHUP", 0))


class Run(Generic[T]):
    """A plan under way. `done` once it has *results* or an *error*; the lock of its connection guards the rest.

    *commands* are what to send, and *count* how many replies they get. A subclass may understand the usual replies by
    itself (`skim`, `read`), faster than a plan would.
    """

    __slots__ = ("_plan", "_replies", "commands", "connection", "count", "error", "results")

    def __init__(self, plan: Plan[T], connection: Connection) -> None:
        self.connection: Connection | None = connection
        self.results: Sequence[T] | None = None
        self.error: Exception | None = None
        self.commands: Sequence[bytes] = next(plan)
        self.count = len(self.commands)
        self._plan: Plan[T] | None = plan
        self._replies: list[Reply | Hit] = []

    @classmethod
    def failed(cls, error: Exception) -> Run[T]:
        """Return a run that has already failed."""
        run = cls.__new__(cls)
        run.connection, run.results, run.error = None, None, error
        return run

    def parts(self) -> list[tuple[bytes, int]]:
        """Return the commands in parts that fit into the window, each with the number of its replies."""
        whole = b"".join(self.commands)
        if len(whole) <= PART_BYTES:
            return [(whole, self.count)]
        parts: list[tuple[bytes, int]] = []
        part: list[bytes] = []
        size = 0
        for command in self.commands:
            if part and size + len(command) > PART_BYTES:
                parts.append((b"".join(part), len(part)))
                part, size = [], 0
            part.append(command)
            size += len(command)
        return [*parts, (b"".join(part), len(part))]

    def skim(self, answer: bytes) -> bool:
        """Whether *answer* is all that the run was waiting for. Then it is done."""
        del answer
        return False

    def read(self, reader: ReplyReader, most: int) -> Sequence[Reply | Hit]:
        """Return the replies that are there, but not more than *most*."""
        return reader.replies(most)

    @property
    def done(self) -> bool:
        """Whether nothing more will be sent or read for it."""
        return self.results is not None or self.error is not None

    def take(self, some: Sequence[Reply | Hit]) -> bool:
        """Take the next replies. Return whether the plan has `commands` to be sent now."""
        self._replies += some
        if len(self._replies) < self.count:
            return False
        replies, self._replies = self._replies, []
        if self._plan is None:
            self._plan = self._begun()
        try:
            self.commands = self._plan.send(replies)
            self.count = len(self.commands)
        except StopIteration as stop:
            self.results = stop.value
            return False
        except ConfigurationError as error:
            self.error = error
            return False
        return True

    def fail(self, error: Exception) -> None:
        """Give up: *error* is what the waiting thread gets."""
        if self._plan is not None:
            self._plan.close()
        self.error = error

    def _begun(self) -> Plan[T]:
        """Return the plan of a run that was begun without one, its first commands taken."""
        raise NotImplementedError


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
        "_poll",
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
        self._poll: Callable[[int], Sequence[tuple[int, int]]] | None = None
        if sock.gettimeout() is None:
            poll = select.poll()
            poll.register(sock, _WATCHED)
            self._poll = poll.poll

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

    def enqueue(self, run: Run[Any]) -> None:
        """Line up the commands of *run*; `flush` sends them."""
        for part, count in run.parts():
            self._queue.append((run, part, count))

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

    def _has_room(self, size: int) -> bool:
        return len(self._sent) < WINDOW_PARTS and self._bytes + size <= WINDOW_BYTES

    def _flush(self) -> None:
        while self.outbox:
            self.enqueue(self.outbox.popleft())
        batch: list[bytes] = []
        while self._queue:
            run, part, count = self._queue[0]
            if self._sent and not self._has_room(len(part)):
                break
            self._queue.popleft()
            self._sent.append((run, count, len(part)))
            self._bytes += len(part)
            batch.append(part)
        if batch:
            self.sock.sendall(b"".join(batch))

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
        usual = RECEIVE_BYTES if self._bytes < RECEIVE_BYTES else _RECEIVE_MANY_BYTES
        received = self.sock.recv(max(usual, self._reader.wanted_bytes))
        if not received:
            raise ConnectionResetError("the server closed the connection")
        self._accept(received)

    def _accept(self, received: bytes) -> None:
        sent = self._sent
        if len(sent) == 1 and not self._taken and self._reader.is_empty and sent[0][0].skim(received):
            sent.clear()
            self._bytes = 0
            return
        self._reader.feed(received)
        while sent:
            run, count, size = sent[0]
            replies = run.read(self._reader, count - self._taken)
            self._taken += len(replies)
            more = run.take(replies)
            if self._taken < count:
                return
            sent.popleft()
            self._taken = 0
            self._bytes -= size
            if more:
                self.enqueue(run)
        if not self._reader.is_empty:
            raise MalformedReplyError("a reply that nobody asked for")
