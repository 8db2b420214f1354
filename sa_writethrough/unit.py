"""What one database transaction touched. Pure: savepoints are names, rows are keys, payloads are bytes.

A unit belongs to a connection's transaction and not to a session: the database commits connections. A session that
joined somebody else's transaction therefore publishes nothing until that one commits, and a session that is closed
after a flush leaves nothing behind for its next commit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

__all__ = ["Phase", "Touch", "Unit"]


class Phase(Enum):
    """Where the transaction is."""

    OPEN = "open"
    ANNOUNCED = "announced"
    """Its tombstones are set; COMMIT may be under way."""
    PREPARED = "prepared"
    """Announced, and in the database's hands until COMMIT PREPARED or ROLLBACK PREPARED."""
    ENDING = "ending"
    """A two-phase transaction is being ended; the dialect may use COMMIT, ROLLBACK and SQL for it."""


@dataclass(frozen=True, slots=True)
class Touch:
    """One row that SQL of this transaction named.

    model: what the row belongs to, for whoever reads it back; opaque here.
    epoch: the key of its epoch.
    identity: the primary key.
    held: whether SQL of this transaction surely wrote the row, so that its lock is held; else it may only be dropped.
    gone: whether it was deleted.
    payload: the row as the database has it now, where that is known exactly.
    """

    model: Any
    epoch: str
    identity: tuple[Any, ...]
    held: bool
    gone: bool = False
    payload: bytes | None = None


@dataclass(slots=True)
class _Frame:
    """What was touched since one savepoint."""

    name: str | None
    rows: dict[str, Touch] = field(default_factory=dict)
    epochs: dict[str, Any] = field(default_factory=dict)


class Unit:
    """The rows and epochs that one transaction touched, by savepoint. Not thread-safe, as its connection is not."""

    __slots__ = (
        "_frames",
        "_unseen",
        "connection",
        "doubted",
        "level_set",
        "phase",
        "session",
        "snapshot",
        "tokens",
        "wrote",
    )

    def __init__(self) -> None:
        self.session: Callable[[], Any] | None = None
        """A weak reference to the session that works on it."""
        self.connection: Callable[[], Any] | None = None
        """The same to the connection."""
        self.level_set = False
        """The connection's isolation level was set by text, for good: nobody knows what its transactions see."""
        self.clear()

    @property
    def is_fresh(self) -> bool:
        """Tell whether nothing happened that `clear` would forget."""
        return (
            not self.wrote and self.phase is Phase.OPEN and len(self._frames) == 1 and self.snapshot is self.level_set
        )

    def clear(self) -> None:
        """Forget everything: the transaction is over."""
        self._frames = [_Frame(None)]
        self._unseen: set[str] = set()
        self.phase = Phase.OPEN
        self.tokens: dict[str, Any] = {}
        self.wrote = False
        self.snapshot = self.level_set
        """What is read may be of anything but what is committed now."""
        self.doubted = False
        """A statement failed, and the driver does not tell whether the transaction has."""

    def connection_alive(self) -> Any:
        """Return the connection, or None where there is none any more that could execute a statement."""
        connection = None if self.connection is None else self.connection()
        return None if connection is None or connection.closed or connection.invalidated else connection

    @property
    def is_empty(self) -> bool:
        """Tell whether no cached row was touched."""
        return not any(frame.rows or frame.epochs for frame in self._frames)

    # --- what happens in the transaction ---

    def touch(self, key: str, touch: Touch) -> None:
        """Note a row; what was known of it before is superseded."""
        self.wrote = True
        self._frames[-1].rows[key] = touch

    def touch_epoch(self, key: str, model: Any) -> None:
        """Note that rows which cannot be named were written."""
        self.wrote = True
        self._frames[-1].epochs[key] = model

    def insert_unseen(self, epoch: str) -> None:
        """Note that rows of *epoch* were inserted whose keys are not known.

        They have no entries, so there is nothing to announce; but the transaction must not fill what only it can see.
        """
        self._unseen.add(epoch)

    def learn(self, key: str, touch: Touch, payload: bytes) -> None:
        """Note the stored value of a row, as of now, whose last touch was *touch*."""
        # By hand: `replace` takes ten times as long, and every commit comes by here.
        self._frames[-1].rows[key] = Touch(touch.model, touch.epoch, touch.identity, touch.held, touch.gone, payload)

    def forget_values(self) -> None:
        """Trust no value and no lock any more: savepoints were changed behind our back."""
        for frame in self._frames:
            frame.rows = {key: replace(touch, held=False, payload=None) for key, touch in frame.rows.items()}

    # --- savepoints ---

    def savepoint(self, name: str) -> None:
        """Open a frame."""
        self._frames.append(_Frame(name))

    def release(self, name: str) -> None:
        """Merge the frame *name*, and those opened after it, into the one before."""
        index = self._index(name)
        if index is None:
            return
        for frame in self._frames[index:]:
            self._frames[index - 1].rows.update(frame.rows)
            self._frames[index - 1].epochs.update(frame.epochs)
        del self._frames[index:]

    def rollback_to(self, name: str) -> None:
        """Drop the frame *name* and those opened after it: their rows' locks are free, their values undone.

        The savepoint itself stays, as it does in the database.
        """
        index = self._index(name)
        if index is None:
            self.forget_values()
            return
        del self._frames[index:]
        self._frames.append(_Frame(name))

    def _index(self, name: str) -> int | None:
        for index in range(len(self._frames) - 1, 0, -1):
            if self._frames[index].name == name:
                return index
        return None

    # --- what came of it ---

    def rows(self) -> dict[str, Touch]:
        """Return every touched row by key; later touches win."""
        if len(self._frames) == 1:
            return self._frames[0].rows
        return {key: touch for frame in self._frames for key, touch in frame.rows.items()}

    def epochs(self) -> dict[str, Any]:
        """Return every touched epoch with its model."""
        return {key: model for frame in self._frames for key, model in frame.epochs.items()}

    def touches(self, key: str | None, epoch: str) -> bool:
        """Tell whether the transaction touched this row, or rows of its model that cannot be named."""
        return epoch in self._unseen or any(key in frame.rows or epoch in frame.epochs for frame in self._frames)

    def __iter__(self) -> Iterator[str]:
        yield from self.rows()
        yield from self.epochs()
