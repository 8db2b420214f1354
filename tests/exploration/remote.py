"""The store that explored code uses: every call is messages, which the explorer delivers, late, or never.

Also what the far end makes of a message, by the library's own table (`coherence.on_read`, `coherence.after`): entries that may be lost, epochs as
memcached has them. An entry's *generation* is its epoch's, and only a row of the present one is readable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple, TypeAlias

from sa_writethrough import coherence
from sa_writethrough.coherence import (
    ABSENT,
    BUSY,
    Absent,
    Announce,
    AnnounceEpoch,
    Change,
    EvictEpoch,
    Failed,
    Hit,
    Intent,
    Lease,
    Leased,
    Outcome,
    Reading,
    Retract,
    State,
    Token,
    Tombstone,
    Value,
)
from sa_writethrough.exceptions import CacheUnavailableError
from tests.exploration.runs import Await, ExploredToken, Read, Sent, ask, current, number, tell

FAILED = "failed"
"""The answer to a message that nobody answered."""
NOBODY = -1
"""The owner of a message whose sender does not matter any more."""


# --- the near end -----------------------------------------------------------------------------------------------------


class _Reply:
    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = tuple(numbers)

    def wait(self) -> Sequence[Outcome]:
        """Return the outcomes."""
        if not self._numbers:
            return []
        if current().over:
            return [_failed()] * len(self._numbers)
        return [_failed() if answer == FAILED else answer for answer in ask(Await(self._numbers))]


class RemoteStore:
    """A `Store` of the run that uses it."""

    def __init__(self, *, keeps_tombstones: bool = False) -> None:
        self.keeps_tombstones = keeps_tombstones

    def read(self, keys: Sequence[str], epoch: str | None, intent: Intent) -> Sequence[Reading]:
        """See `Store.read`."""
        if current().over:
            return [_failed()] * len(keys)
        assert epoch is not None
        answers = ask(Read(tuple(number() for _ in keys), tuple(keys), epoch, intent))
        current().hits.update(
            row_of(key) for key, answer in zip(keys, answers, strict=True) if isinstance(answer, bytes)
        )
        return [_reading(answer) for answer in answers]

    def submit(self, changes: Sequence[Change]) -> _Reply:
        """See `Store.submit`."""
        return _Reply([self._send(change, awaited=True) for change in changes])

    def post(self, changes: Sequence[Change]) -> None:
        """See `Store.post`."""
        for change in changes:
            self._send(change, awaited=False)

    def close(self) -> None:
        """See `Store.close`."""

    @staticmethod
    def _send(change: Change, *, awaited: bool) -> int:
        sent = Sent(number(), change, awaited)
        if not current().over:
            tell(sent)
        return sent.number


def _reading(answer: Any) -> Reading:
    if isinstance(answer, bytes):
        return Hit(answer)
    return _failed() if answer == FAILED else answer


def row_of(key: str) -> int:
    """Return the number of the row that a key is of."""
    return int(key.rpartition(":")[2]) - 1


def _failed() -> Failed:
    return Failed(CacheUnavailableError("nobody answered in time"))


# --- the far end ------------------------------------------------------------------------------------------------------


class Look(NamedTuple):
    """A key that is to be read."""

    key: str
    epoch: str
    intent: Intent


class Message(NamedTuple):
    """What is under way: of whom, which of its messages, what it asks for, and whether the sender waits.

    seen: the generation of the epoch (None in it: closed) where that was looked at before the entry itself.
    """

    owner: int
    number: int
    what: Change | Look
    awaited: bool
    seen: tuple[int | None] | None = None


class Entry(NamedTuple):
    """One key."""

    key: str
    state: State
    generation: int | None


class Epoch(NamedTuple):
    """One epoch: its generation so far, and whose tombstone closes it."""

    key: str
    generation: int
    closed: Token | None


class Contents(NamedTuple):
    """All that a store holds; what is not there is absent, and an epoch's first generation is 0."""

    entries: tuple[Entry, ...] = ()
    epochs: tuple[Epoch, ...] = ()

    def entry(self, key: str) -> Entry:
        """Return an entry."""
        return next((entry for entry in self.entries if entry.key == key), Entry(key, ABSENT, None))

    def epoch(self, key: str) -> Epoch:
        """Return an epoch."""
        return next((epoch for epoch in self.epochs if epoch.key == key), Epoch(key, 0, None))

    def with_entry(self, entry: Entry) -> Contents:
        """Return the contents with this entry."""
        others = [other for other in self.entries if other.key != entry.key]
        kept = others if isinstance(entry.state, Absent) else [*others, entry]
        return self._replace(entries=tuple(sorted(kept, key=_key)))

    def with_epoch(self, epoch: Epoch) -> Contents:
        """Return the contents with this epoch."""
        others = [other for other in self.epochs if other.key != epoch.key]
        return self._replace(epochs=tuple(sorted([*others, epoch], key=_key)))


Delivered: TypeAlias = "tuple[Contents, Any]"


def seen(contents: Contents, message: Message) -> Message | None:
    """Return a message that has looked at its epoch; None where it has done so, or need not.

    A pipeline's commands are not one moment: memcached answers the epoch first, and then the entry.
    """
    if message.seen is not None or not isinstance(message.what, Look | Announce):
        return None
    return message._replace(seen=(_generation(contents, message),))


def _generation(contents: Contents, message: Message) -> int | None:
    """Return the epoch's generation, or None where it is closed, as the message sees it."""
    if message.seen is not None:
        return message.seen[0]
    epoch = contents.epoch(message.what.epoch)  # type: ignore[union-attr]  # only asked of those that have one
    return epoch.generation if epoch.closed is None else None


def deliver(contents: Contents, message: Message) -> Delivered:
    """Return what a message makes of the contents, and the answer, whose tokens are the sender's own."""
    what = message.what
    match what:
        case Look():
            return _read(contents, what, message)
        case AnnounceEpoch() | EvictEpoch():
            return _change_epoch(contents, what, message)
        case Retract(key=key) if key.endswith("@epoch"):
            return _change_epoch(contents, what, message)
    entry = contents.entry(what.key)
    token = ExploredToken(message.owner, message.number, None)
    if isinstance(what, Announce):
        token = replace(token, generation=_generation(contents, message))
    state, outcome = coherence.after(entry.state, what, token)
    if state is entry.state:
        return contents, outcome
    if isinstance(state, Value) and isinstance(what.token, ExploredToken):  # type: ignore[union-attr]  # only such changes make one
        generation = what.token.generation  # type: ignore[union-attr]  # the same
        state = ABSENT if generation is None else state
        return contents.with_entry(Entry(what.key, state, generation)), outcome
    return contents.with_entry(Entry(what.key, state, None)), _own(outcome)


def _read(contents: Contents, look: Look, message: Message) -> Delivered:
    generation = _generation(contents, message)
    if generation is None:
        return contents, BUSY
    entry = contents.entry(look.key)
    state = entry.state
    if isinstance(state, Value) and entry.generation != generation:
        state = ABSENT
    state, reading = coherence.on_read(state, look.intent, ExploredToken(message.owner, message.number, generation))
    if isinstance(reading, Leased):
        return contents.with_entry(Entry(look.key, state, None)), Leased(_own(reading.token))
    return contents, reading


def _change_epoch(contents: Contents, change: Change, message: Message) -> Delivered:
    epoch = contents.epoch(change.key)
    state: State = Value(b"") if epoch.closed is None else Tombstone(epoch.closed)
    state, outcome = coherence.after(state, change, ExploredToken(message.owner, message.number, None))
    if isinstance(state, Tombstone):
        if epoch.closed == state.token:
            return contents, outcome
        return contents.with_epoch(epoch._replace(closed=state.token)), _own(outcome)
    if isinstance(state, Absent):
        return contents.with_epoch(Epoch(epoch.key, epoch.generation + 1, None)), outcome
    return contents, outcome


def lose(contents: Contents, key: str) -> Contents:
    """Return the contents without one entry."""
    return contents.with_entry(Entry(key, ABSENT, None))


def lose_epoch(contents: Contents, key: str) -> Contents:
    """Return the contents without an epoch: whoever looks at it next makes another one, which is open."""
    return contents.with_epoch(Epoch(key, contents.epoch(key).generation + 1, None))


def restart(contents: Contents) -> Contents:
    """Return what a restarted server holds: nothing, and every epoch is another one."""
    return Contents((), tuple(Epoch(epoch.key, epoch.generation + 1, None) for epoch in contents.epochs))


def empty(epochs: Sequence[str]) -> Contents:
    """Return what a new server holds."""
    return Contents((), tuple(Epoch(key, 0, None) for key in sorted(set(epochs))))


def _own(outcome: Any) -> Any:
    return replace(outcome, owner=None) if isinstance(outcome, ExploredToken) else outcome


def _key(item: Any) -> str:
    return item.key


# --- owners -----------------------------------------------------------------------------------------------------------


@cache
def owned(change: Change, owner: int) -> Change:
    """Return a run's change as the far end sees it: with whose token."""
    token = getattr(change, "token", None)
    return replace(change, token=replace(token, owner=owner)) if token is not None else change  # type: ignore[call-arg]


def renamed(value: Any, names: tuple[int, ...]) -> Any:  # noqa: PLR0911 - one return per kind
    """Return a value with every owner's number replaced: what the world is when identical actors change places."""
    match value:
        case ExploredToken(owner=int(owner)):
            return replace(value, owner=names[owner])
        case Message(owner=owner, what=what):
            return value._replace(owner=owner if owner == NOBODY else names[owner], what=renamed(what, names))
        case Entry(_, state, _):
            return value._replace(state=renamed(state, names))
        case Epoch(_, _, closed):
            return value._replace(closed=renamed(closed, names))
        case Contents(entries, epochs):
            return Contents(tuple(renamed(e, names) for e in entries), tuple(renamed(e, names) for e in epochs))
        case Lease() | Tombstone():
            return replace(value, token=renamed(value.token, names))
    token = getattr(value, "token", None)
    return replace(value, token=renamed(token, names)) if token is not None else value
