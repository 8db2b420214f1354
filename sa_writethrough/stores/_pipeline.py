"""What was sent to a server, which replies it still owes, and whom they are for. No socket, no time, no keys, no nodes.

A `Plan` says what to send and what the replies mean; a `Run` is a plan under way; a `Pipeline` holds the runs that
share a connection, in the order of their replies. Who moves the bytes, and how one waits for them, its subclasses know:
threads (`_connection`) or an event loop (`_loop_connection`).
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

from sa_writethrough.coherence import Hit, Token
from sa_writethrough.exceptions import ConfigurationError
from sa_writethrough.stores._meta import MalformedReplyError, Reply, ReplyReader

__all__ = ["PART_BYTES", "WINDOW_BYTES", "WINDOW_PARTS", "Pipeline", "Plan", "Run"]

T = TypeVar("T")

Plan: TypeAlias = Generator[Sequence[bytes], Sequence[Any], Sequence[T]]
"""Yields commands, at least one, is sent one reply for each, and returns its results."""

WINDOW_PARTS = 128
WINDOW_BYTES = 32 * 1024
"""How much may be unanswered at once. Both ends' socket buffers hold that much, in that many pieces, so a server that
waits for us to read can never make us wait for it to read: no batch can deadlock."""
PART_BYTES = WINDOW_BYTES // 2
"""Of a larger run the second part is sent before the first one's replies are read: the server need not wait for us."""


class Run(Generic[T]):
    """A plan under way. `done` once it has *results* or an *error*; the lock of its connection guards the rest.

    *commands* are what to send, and *count* how many replies they get. A subclass may understand the usual replies by
    itself (`skim`, `read`), faster than a plan would.
    """

    __slots__ = ("_plan", "_replies", "commands", "connection", "count", "error", "results")

    def __init__(self, plan: Plan[T], connection: Pipeline) -> None:
        self.connection: Pipeline | None = connection
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

    def taken(self) -> list[tuple[str, Token]]:
        """Return the leases and tombstones that it took, once it is done: what nobody wants must be given back."""
        return []

    def fail(self, error: Exception) -> None:
        """Give up: *error* is what the waiting thread gets."""
        if self._plan is not None:
            self._plan.close()
        self.error = error

    def _begun(self) -> Plan[T]:
        """Return the plan of a run that was begun without one, its first commands taken."""
        raise NotImplementedError


class Bond:
    """What all tokens that are good on one connection alone hold: while there is one, the connection is needed."""

    __slots__ = ("__weakref__",)


class Pipeline(ABC):
    """The runs on one connection.

    *new_cas* makes the ids of new items; None where the server takes only its own, which it counts from one again after
    a restart: there a token is good on its connection alone.
    """

    __slots__ = ("_bond", "_bytes", "_error", "_new_cas", "_queue", "_reader", "_sent", "_taken", "alive", "pid")

    def __init__(self, pid: int, new_cas: Callable[[], int] | None) -> None:
        self.pid = pid
        self.alive = True
        self._new_cas = new_cas
        self._bond: Callable[[], Bond | None] = _no_bond
        # Parts of runs: the commands and how many they are; and once they are sent, how many they are and their bytes.
        self._queue: deque[tuple[Run[Any], bytes, int]] = deque()
        self._sent: deque[tuple[Run[Any], int, int]] = deque()
        # Bytes that are unanswered, and replies that have come to the part that is being answered.
        self._bytes = 0
        self._taken = 0
        self._error: Exception | None = None
        self._reader = ReplyReader()

    @property
    def binds_tokens(self) -> bool:
        """Whether what is taken over this connection may be used over no other."""
        return self._new_cas is None

    def bond(self) -> Bond:
        """Return what a token is to hold that is made now. Not thread-safe, as reading replies is not."""
        bond = self._bond()
        if bond is None:
            bond = Bond()
            self._bond = weakref.ref(bond)
        return bond

    @property
    def is_bound(self) -> bool:
        """Whether somebody has a token that is good here alone."""
        return self._bond() is not None

    def fresh(self) -> int | None:
        """Return the id for a new item; None leaves it to the server."""
        return None if self._new_cas is None else self._new_cas()

    @property
    @abstractmethod
    def is_usable(self) -> bool:
        """Whether something can be sent over it from here: it is open, and of this process or of this loop."""

    def enqueue(self, run: Run[Any]) -> None:
        """Line up the commands of *run*; `flush` sends them."""
        for part, count in run.parts():
            self._queue.append((run, part, count))

    @abstractmethod
    def begin(self, run: Run[Any], commands: bytes) -> None:
        """Send *run*, whose first *commands* are not more than one part."""

    @abstractmethod
    def flush(self) -> None:
        """Send what fits into the window, without waiting."""

    @abstractmethod
    def send_apart(self, run: Run[Any], commands: bytes) -> None:
        """Send *run*, whose *commands* are not more than one part, whoever is using the connection. Nobody waits."""

    @abstractmethod
    def push_out(self) -> None:
        """See to it that all that was lined up is sent; do not wait for replies."""

    @abstractmethod
    def see_through(self, run: Run[Any]) -> None:
        """See to it that all of *run* is sent, also what its first replies decide."""

    @abstractmethod
    def wait_for(self, run: Run[Any]) -> None:
        """Wait until *run* is done."""

    def _has_room(self, size: int) -> bool:
        return len(self._sent) < WINDOW_PARTS and self._bytes + size <= WINDOW_BYTES

    def _next(self) -> bytes:
        """Return what is to be sent now: as much as fits into the window."""
        batch: list[bytes] = []
        while self._queue:
            run, part, count = self._queue[0]
            if self._sent and not self._has_room(len(part)):
                break
            self._queue.popleft()
            self._sent.append((run, count, len(part)))
            self._bytes += len(part)
            batch.append(part)
        return b"".join(batch)

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

    def _give_up(self, error: Exception) -> None:
        """Fail every run."""
        self.alive = False
        self._error = error
        waiting = [run for run, *_ in self._sent] + [run for run, *_ in self._queue]
        self._sent.clear()
        self._queue.clear()
        for run in waiting:
            if not run.done:
                run.fail(error)


def _no_bond() -> None:
    return None
