"""Conversations that are nearly always the same, without the layers of `_batches`: whole commands, whole answers.

A run of this room sends bytes that are made at once, and understands the one usual answer to them. Any other answer
goes to the plan (`_plans`) that means the same, which is made only then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from sa_writethrough.coherence import (
    Announce,
    Fill,
    Hit,
    Intent,
    Leased,
    Outcome,
    Publish,
    Reading,
    Retract,
    Settled,
    Token,
)
from sa_writethrough.stores import _meta as meta
from sa_writethrough.stores import _plans as plans
from sa_writethrough.stores._batches import results, token_maker
from sa_writethrough.stores._meta import Reply, ReplyReader
from sa_writethrough.stores._node import NodeBase
from sa_writethrough.stores._pipeline import PART_BYTES, Pipeline, Plan, Run
from sa_writethrough.stores._plans import ItemToken

__all__ = ["Announcing", "ReadingMany", "ReadingOne", "Settling", "Settlement"]

Settlement: TypeAlias = Publish | Fill | Retract
"""What is done to one's own tombstone or lease."""


class Announcing(Run[Outcome]):
    """Announcements of one epoch on one node. It is its own `Reply`."""

    __slots__ = ("_changes", "_node")

    def __init__(self, node: NodeBase[Any], connection: Pipeline, changes: Sequence[Announce], commands: bytes) -> None:
        self.connection = connection
        self.results = self.error = self._plan = None
        self.commands = (commands,)
        self.count = len(changes) + 1
        self._replies = []
        self._node = node
        self._changes = changes

    def wait(self) -> Sequence[Outcome]:
        """Return the tokens. Raises `ConfigurationError` alone."""
        return results(self._node, self, len(self._changes))

    def skim(self, answer: bytes) -> bool:
        """Whether *answer* is the epoch's line as it was before, and then an id for each key."""
        epoch, connection = self._node.epochs.get(self._changes[0].epoch), self.connection
        if epoch is None or connection is None or not answer.startswith(epoch.line):
            return False
        lines = answer[len(epoch.line) :].split(b"\r\n")
        if len(lines) != self.count or lines.pop():
            return False
        bound = connection if connection.binds_tokens else None
        tokens: list[Outcome] = []
        for told in lines:
            if not told.startswith(b"HD c") or not told[4:].isdigit() or not (cas := int(told[4:])):
                return False
            tokens.append(ItemToken(self._node, bound, cas, epoch.stamp))
        self.results = tokens
        return True

    def taken(self) -> list[tuple[str, Token]]:
        """Return the tombstones."""
        outcomes = zip(self._changes, self.results or (), strict=False)
        return [(change.key, outcome) for change, outcome in outcomes if isinstance(outcome, Token)]

    def _begun(self) -> Plan[Outcome]:
        node, connection = self._node, self.connection
        assert connection is not None  # noqa: S101 - only a run that has failed has none
        plan = plans.announce(self._changes, connection.fresh, token_maker(node, connection), node.remember)
        next(plan)
        return plan


class Settling(Run[Outcome]):
    """Publications, fills and retractions, of different keys, over one connection."""

    __slots__ = ("_changes", "_max_bytes")

    def __init__(
        self, connection: Pipeline, changes: Sequence[tuple[Settlement, ItemToken]], commands: bytes, max_bytes: int
    ) -> None:
        self.connection = connection
        self.results = self.error = self._plan = None
        self.commands = (commands,)
        self.count = len(changes)
        self._replies = []
        self._changes = changes
        self._max_bytes = max_bytes

    def skim(self, answer: bytes) -> bool:
        """Whether *answer* says that all is done."""
        if answer != b"HD\r\n" * self.count:
            return False
        self.results = [Settled.APPLIED] * self.count
        return True

    def _begun(self) -> Plan[Outcome]:
        # The ids that these commands would have are not sent; nor does a plan ask which id a stored row got.
        settle = [plans.settle(change, own, _no_id, self._max_bytes) for change, own in self._changes]
        plan = plans.abreast(settle)
        next(plan)
        return plan


class ReadingMany(Run[Reading]):
    """Reads of keys of one epoch (or of none) on one node: rows become hits straight from the buffer."""

    __slots__ = ("_epoch", "_intent", "_keys", "_node", "_open")

    def __init__(  # noqa: PLR0917 - one call, on the hot path
        self,
        node: NodeBase[Any],
        connection: Pipeline,
        keys: Sequence[str],
        epoch: str | None,
        intent: Intent,
        commands: bytes,
    ) -> None:
        self.connection = connection
        self.results = self.error = self._plan = None
        self.commands = (commands,)
        self.count = len(keys) + (epoch is not None)
        self._replies = []
        self._node, self._keys, self._epoch, self._intent = node, keys, epoch, intent
        # Of rows without an epoch nothing is known beforehand; else the first reply tells.
        self._open: meta.OpenEpoch | None = None

    def parts(self) -> list[tuple[bytes, int]]:
        """Return the commands, each of which is one line, in parts."""
        if self._plan is not None:
            return super().parts()
        (whole,) = self.commands
        parts, at, left = [], 0, self.count
        while len(whole) - at > PART_BYTES:
            end = whole.rindex(b"\r\n", at, at + PART_BYTES) + 2
            lines = whole.count(b"\r\n", at, end)
            parts.append((whole[at:end], lines))
            at, left = end, left - lines
        return [*parts, (whole[at:], left)]

    def read(self, reader: ReplyReader, most: int) -> Sequence[Reply | Hit]:
        """Return the replies that are there; rows of the epoch's stamp as hits."""
        if self._plan is not None:
            return reader.replies(most)
        if self._replies:
            return reader.replies(most) if self._open is None else reader.rows(most, self._open)
        first: list[Reply | Hit] = [*reader.replies(1)]
        if not first or most == 1:
            return first
        head = first[0]
        if isinstance(head, Reply) and head.code == b"HD" and head.kind != meta.Kind.TOMBSTONE and head.cas:
            self._open = self._node.remember(self._epoch or "", head.cas)
            return first + reader.rows(most - 1, self._open)
        return first + reader.replies(most - 1)

    def taken(self) -> list[tuple[str, Token]]:
        """Return the leases."""
        readings = zip(self._keys, self.results or (), strict=False)
        return [(key, reading.token) for key, reading in readings if isinstance(reading, Leased)]

    def _begun(self) -> Plan[Reading]:
        node, connection = self._node, self.connection
        assert connection is not None  # noqa: S101 - only a run that has failed has none
        token, remember = token_maker(node, connection), node.remember
        plan = plans.read(
            self._keys,
            self._epoch,
            self._intent,
            lease_ttl=node.lease_ttl,
            fresh=connection.fresh,
            token=token,
            remember=remember,
        )
        next(plan)
        return plan


class ReadingOne(ReadingMany):
    """The read of one key whose epoch was open when it was last looked at."""

    __slots__ = ("_known",)

    def __init__(  # noqa: PLR0917 - one call, on the hot path
        self, node: NodeBase[Any], connection: Pipeline, key: str, epoch: str, intent: Intent, commands: bytes
    ) -> None:
        super().__init__(node, connection, (key,), epoch, intent, commands)
        self._known = node.epochs.get(epoch)

    def skim(self, answer: bytes) -> bool:
        """Whether *answer* is the epoch's line as it was before, and then its row."""
        row = None if self._known is None else meta.hit(answer, self._known)
        if row is None:
            return False
        self.results = (row,)
        return True

    def skim_first(self, reader: ReplyReader) -> bool:
        """Whether what *reader* has begins with that, and take it: other runs' answers follow."""
        row = None if self._known is None else reader.hit(self._known)
        if row is None:
            return False
        self.results = (row,)
        return True


def _no_id() -> None:
    return None
