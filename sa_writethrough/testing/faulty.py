"""A store that fails, delays and forgets on purpose, by a script. Deterministic, without a clock; wraps any store.

    store = FaultyStore(MemoryStore(), [LoseReply(Announce), Call(Fill, before_the_fill)])

Each step of the script is used once, by the first operation that it matches. `forget`, `outage` and `deliver` act at
once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from sa_writethrough.coherence import (
    Announce,
    AnnounceEpoch,
    Change,
    Failed,
    Intent,
    Outcome,
    Publish,
    Reading,
    Retract,
    Settled,
    Token,
)
from sa_writethrough.exceptions import CacheUnavailableError
from sa_writethrough.stores.base import Reply, Store

__all__ = ["Call", "FaultyStore", "Hold", "LoseReply", "LoseRequest", "Moment", "Read"]


@dataclass(frozen=True, slots=True)
class Read:
    """Stands in a script for the reading of one key, as the classes of changes stand for changes."""

    key: str


_Kind: TypeAlias = type[Change] | type[Read]


@dataclass(frozen=True, slots=True)
class LoseRequest:
    """The next operation of the kind *of*, on *key* if it is set, never arrives; whoever waits for it gets `Failed`."""

    of: _Kind
    key: str | None = None


@dataclass(frozen=True, slots=True)
class LoseReply:
    """The next operation of the kind *of* takes effect; whoever waits for it gets `Failed`."""

    of: _Kind
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """The next change of the kind *of* takes effect when `deliver` is called; whoever waits for it gets `Failed`."""

    of: type[Change]
    key: str | None = None


class Moment(Enum):
    """When a script calls."""

    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True, slots=True)
class Call:
    """Call *hook* just before or after the next operation of the kind *of*; it may use the store."""

    of: _Kind
    hook: Callable[[], object]
    moment: Moment = Moment.BEFORE
    key: str | None = None


Step: TypeAlias = LoseRequest | LoseReply | Hold | Call


@dataclass(slots=True)
class _Sent:
    """The reply to a batch of which some was lost; *places* are those of the changes that *reply* answers."""

    outcomes: list[Outcome]
    places: Sequence[int]
    reply: Reply
    then: Callable[[Sequence[Outcome]], None]
    waited: bool = field(default=False)

    def wait(self) -> Sequence[Outcome]:
        if not self.waited:
            self.waited = True
            for place, outcome in zip(self.places, self.reply.wait(), strict=True):
                self.outcomes[place] = outcome
            self.then(self.outcomes)
        return self.outcomes


class FaultyStore:
    """Pass everything on to *inner* but for what *script* says. `keeps_tombstones` is the inner store's, or set it."""

    def __init__(self, inner: Store, script: Iterable[Step] = ()) -> None:
        self.inner = inner
        self.keeps_tombstones = inner.keeps_tombstones
        self.script: list[Step] = list(script)
        """What is still to happen. A test may add to it, and check that nothing is left."""
        self._lock = threading.Lock()
        self._down = False
        self._held: list[Change] = []
        self._tombstones: dict[str, Announce | AnnounceEpoch] = {}

    # --- Store -------------------------------------------------------------------------------------------------------

    def read(self, keys: Sequence[str], epoch: str | None, intent: Intent) -> Sequence[Reading]:
        """Read what the script lets through."""
        if self._down:
            return [_failed("an outage") for _ in keys]
        steps = [self._steps(Read(key)) for key in keys]
        _call(steps, Moment.BEFORE)
        places = [place for place, mine in enumerate(steps) if not _has(mine, LoseRequest)]
        readings: list[Reading] = [_failed("a lost request") for _ in keys]
        if places:
            found = self.inner.read([keys[place] for place in places], epoch, intent)
            for place, reading in zip(places, found, strict=True):
                readings[place] = _failed("a lost reply") if _has(steps[place], LoseReply) else reading
        _call(steps, Moment.AFTER)
        return readings

    def submit(self, changes: Sequence[Change]) -> Reply:
        """Send what the script lets through."""
        steps, places = self._admit(changes)
        outcomes: list[Outcome] = [_failed("a lost request") for _ in changes]
        # An empty submit is a barrier, and stays one.
        reply = self.inner.submit([changes[place] for place in places])

        def then(answered: Sequence[Outcome]) -> None:
            for place in places:
                self._note(changes[place], answered[place])
                if _has(steps[place], LoseReply):
                    outcomes[place] = _failed("a lost reply")
            _call(steps, Moment.AFTER)

        return _Sent(outcomes, places, reply, then)

    def post(self, changes: Sequence[Change]) -> None:
        """Post what the script lets through."""
        steps, places = self._admit(changes)
        if places:
            self.inner.post([changes[place] for place in places])
            for place in places:
                self._note(changes[place], Settled.APPLIED)
        _call(steps, Moment.AFTER)

    def close(self) -> None:
        """Close the inner store."""
        self.inner.close()

    # --- mischief ----------------------------------------------------------------------------------------------------

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Let nothing through: readings and outcomes are `Failed`, what is posted is lost."""
        self._down = True
        try:
            yield
        finally:
            self._down = False

    def deliver(self) -> Sequence[Outcome]:
        """Let what `Hold` kept back take effect, in order; return what became of it."""
        with self._lock:
            held, self._held = self._held, []
        return self.inner.submit(held).wait()

    def forget(self, *keys: str) -> None:
        """Lose the entries of *keys*, whatever they are: an eviction, a restart."""
        self._lose([self._tombstones.get(key, Announce(key, _NO_EPOCH, None)) for key in keys])

    def forget_tombstones(self) -> None:
        """Lose every tombstone that was announced through this store, of entries and epochs."""
        self._lose(list(self._tombstones.values()))

    def _lose(self, announcements: Sequence[Announce | AnnounceEpoch]) -> None:
        # By the front door, so that it works with any store: an announcement replaces everything, then is taken back.
        tokens = self.inner.submit(announcements).wait()
        lost = [
            Retract(announcement.key, token)
            for announcement, token in zip(announcements, tokens, strict=True)
            if isinstance(token, Token)
        ]
        self.inner.submit(lost).wait()
        for announcement in announcements:
            self._tombstones.pop(announcement.key, None)

    # --- the script --------------------------------------------------------------------------------------------------

    def _admit(self, changes: Sequence[Change]) -> tuple[list[list[Step]], list[int]]:
        """Return the steps for each change, and the places of those that go through now."""
        if self._down:
            return [[] for _ in changes], []
        steps = [self._steps(change) for change in changes]
        _call(steps, Moment.BEFORE)
        with self._lock:
            self._held += [change for change, mine in zip(changes, steps, strict=True) if _has(mine, Hold)]
        return steps, [place for place, mine in enumerate(steps) if not (_has(mine, LoseRequest) or _has(mine, Hold))]

    def _steps(self, operation: Change | Read) -> list[Step]:
        """Take the steps for *operation* out of the script: at most one of each kind."""
        mine: list[Step] = []
        with self._lock:
            for step in tuple(self.script):
                fits = isinstance(operation, step.of) and step.key in {None, operation.key}
                if fits and not _has(mine, type(step)):
                    mine.append(step)
                    self.script.remove(step)
        return mine

    def _note(self, change: Change, outcome: Outcome) -> None:
        if isinstance(change, Announce | AnnounceEpoch) and isinstance(outcome, Token):
            self._tombstones[change.key] = change
        elif isinstance(change, Publish | Retract) and outcome is Settled.APPLIED:
            self._tombstones.pop(change.key, None)


_NO_EPOCH = "sa_writethrough.testing"
"""Of the announcements by which entries are lost. Nothing is ever published under them."""


def _has(steps: Sequence[Step], kind: type[Step]) -> bool:
    return any(isinstance(step, kind) for step in steps)


def _call(steps: Sequence[Sequence[Step]], moment: Moment) -> None:
    for step in (step for mine in steps for step in mine):
        if isinstance(step, Call) and step.moment is moment:
            step.hook()


def _failed(what: str) -> Failed:
    return Failed(CacheUnavailableError(f"FaultyStore: {what}, as the script has it"))
