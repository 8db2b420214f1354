"""What a store is: the Protocol that users implement, and the errors of one. Knows nothing of SQLAlchemy or of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from sa_writethrough.coherence import Change, Intent, Outcome, Reading

__all__ = ["Reply", "Store"]


class Reply(Protocol):
    """What a store will answer to a `submit`."""

    def wait(self) -> Sequence[Outcome]:
        """Return one outcome per change, in order. Never raises for a node's fault: that is a `Failed` outcome."""


@runtime_checkable
class Store(Protocol):
    """A shared map of entries that obeys `coherence`. Thread-safe; every method takes many keys at once.

    `keeps_tombstones` is true where a tombstone can never be lost (the in-process store): there a fill needs no word
    from the database on SQLite, and an announcement without a time limit is allowed.

    For asynchronous sessions a store says `blocks = False`: no method keeps the event loop waiting, be it that it never
    waits or that it waits as SQLAlchemy's `await_only` does. One that does not say so is refused there.

    No method raises because a node is unreachable: readings and outcomes are `Failed` then.
    """

    keeps_tombstones: bool

    def read(self, keys: Sequence[str], epoch: str | None, intent: Intent) -> Sequence[Reading]:
        """Read *keys*, all of one *epoch*, in one round trip per node; with `Intent.FILL` absent ones become leased.

        A value stamped with an older epoch counts as absent. While the epoch itself is announced, all are `Busy`.
        With epoch None (for bytes that were `Put`) no epoch is looked at.
        """

    def submit(self, changes: Sequence[Change]) -> Reply:
        """Send *changes* now, in order per key; the reply waits for the acknowledgement.

        A reply must be waited for: it holds its connections until then. An empty submit is a barrier: its `wait`
        returns when everything posted before it has been done or has failed.
        """

    def post(self, changes: Sequence[Change]) -> None:
        """Send *changes* and return: fire and forget. What cannot be sent is dropped, which costs freshness alone."""

    def close(self) -> None:
        """Let go of every connection. The store opens them again when it is used again."""
