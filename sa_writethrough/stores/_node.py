"""What a memcached node is to those who talk to it, whoever waits: its name, its epochs, its errors.

Knows no sockets.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from sa_writethrough.exceptions import CacheUnavailableError
from sa_writethrough.stores._connecting import Address, ConnectOptions
from sa_writethrough.stores._meta import OpenEpoch, stamp_of
from sa_writethrough.stores._pipeline import Pipeline, Plan, Run

__all__ = ["NodeBase", "NodeOptions", "random_cas"]

C = TypeVar("C", bound=Pipeline)
T = TypeVar("T")

_EPOCHS_REMEMBERED = 1024


def random_cas() -> int:
    """Return an id that no item has had: 64 random bits, not zero. A forked child draws others than its parent."""
    return int.from_bytes(os.urandom(8), "big") or 1


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What every node of a store shares. *retry_after* is in seconds.

    *pool_size* bounds the idle connections, but for those that somebody's token is good on alone.
    """

    connecting: ConnectOptions = field(default_factory=ConnectOptions)
    pool_size: int = 64
    retry_after: float = 1.0
    clock: Callable[[], float] = time.monotonic
    new_cas: Callable[[], int] = random_cas


class NodeBase(ABC, Generic[C]):
    """One server, and the interface to the connections to it."""

    def __init__(self, address: Address, options: NodeOptions) -> None:
        self.name = str(address)
        self._address = address
        self._options = options
        # Under which ids epochs were open when they were last looked at: a guess, which every answer confirms.
        self.epochs: dict[str, OpenEpoch] = {}
        self.lease_ttl = 10
        """Seconds that a lease lives; its store says how many."""
        self._retry_at: float | None = None
        self._down: CacheUnavailableError | None = None

    # --- connections and runs ----------------------------------------------------------------------------------------

    @abstractmethod
    def take_checked(self) -> C:
        """Return a connection that the server has not closed; `give` it back. Raises `CacheUnavailableError`."""

    @abstractmethod
    def give(self, connection: C) -> None:
        """Let go of a connection that was taken."""

    @abstractmethod
    def start(self, plans: Sequence[Callable[[C], Plan[T]]]) -> list[Run[T]]:
        """Send *plans* over one connection. What goes wrong is told by the runs."""

    @abstractmethod
    def start_on(self, connection: C, plans: Sequence[Callable[[C], Plan[T]]]) -> list[Run[T]]:
        """Send *plans* over *connection* and no other, or fail."""

    @staticmethod
    def push(run: Run[T]) -> None:
        """Send all of *run*, without waiting for its replies."""
        if run.connection is not None:
            run.connection.push_out()

    @staticmethod
    def see_through(run: Run[T]) -> None:
        """See to it that all of *run* is sent, also what its first replies decide."""
        if run.connection is not None:
            run.connection.see_through(run)

    @staticmethod
    def finish(run: Run[T]) -> None:
        """Wait until *run* is done."""
        if run.connection is not None and not run.done:
            run.connection.wait_for(run)

    @abstractmethod
    def drain(self) -> None:
        """Wait until nothing is owed on any connection."""

    @abstractmethod
    def close(self) -> None:
        """Close every connection."""

    # --- epochs ------------------------------------------------------------------------------------------------------

    def remember(self, epoch: str, cas: int) -> OpenEpoch:
        """Expect that *epoch* will still be open under this id at the next read."""
        known = self.epochs.get(epoch)
        if known is not None and known.stamp == stamp_of(cas):
            return known
        if len(self.epochs) >= _EPOCHS_REMEMBERED:
            self.epochs.clear()
        self.epochs[epoch] = known = OpenEpoch(epoch, cas)
        return known

    # --- what can go wrong -------------------------------------------------------------------------------------------

    def _mark_down(self, error: Exception) -> CacheUnavailableError:
        down = CacheUnavailableError(self._describe(error))
        self._down = down
        self._retry_at = self._options.clock() + self._options.retry_after
        return down

    def _gone(self) -> CacheUnavailableError:
        return CacheUnavailableError(f"memcached {self.name}: the connection is gone; nothing need be done about it")

    def _describe(self, error: Exception) -> str:
        connecting = self._options.connecting
        if isinstance(error, BlockingIOError | TimeoutError):
            return (
                f"memcached {self.name} did not answer in time (timeout={connecting.timeout}, "
                f"connect_timeout={connecting.connect_timeout} seconds): is it overloaded, or are the limits too tight?"
            )
        reason = f"{type(error).__name__}: {error}"
        return f"memcached {self.name} cannot be used ({reason}): is it running, and is the URL right?"
