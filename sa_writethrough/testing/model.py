"""What a store may answer: `coherence` applied to one key after another, with epochs. Pure; for the conformance suite.

Where a value or a lease is of an epoch that is over, stores may differ: it counts as absent, but one store drops it and
another, whose compare-and-set id is the lease, keeps it and may hand out the same lease twice. The model takes either
and follows what the store did.
"""

# ruff: noqa: S101 - for tests, which assert

from __future__ import annotations

from dataclasses import dataclass, field

from sa_writethrough.coherence import (
    ABSENT,
    Announce,
    AnnounceEpoch,
    Busy,
    Change,
    EvictEpoch,
    Fill,
    Hit,
    Intent,
    Lease,
    Leased,
    Missing,
    Outcome,
    Publish,
    Reading,
    Retract,
    Settled,
    State,
    Token,
    Tombstone,
    Value,
    after,
    on_read,
)

__all__ = ["Model"]

_NEVER = -1
"""The stamp of what was announced while its epoch was: no epoch will have it."""


@dataclass(slots=True)
class _Entry:
    state: State
    stamp: int
    tokens: list[Token] = field(default_factory=list)
    """Leases of one stale value that were handed out after the first; any of them may fill, once."""
    was_stale: bool = False


class Model:
    """Follows one store: tell it what was done and what was answered; it raises AssertionError if that may not be."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._epochs: dict[str, State] = {}
        self._stamps: dict[str, int] = {}
        self._stamp_of: dict[Token, int] = {}
        self._last_stamp = 0

    def saw_reading(self, key: str, epoch: str, intent: Intent, reading: Reading) -> None:
        """Check what a read gave."""
        if isinstance(self._epoch(epoch), Tombstone):
            assert isinstance(reading, Busy), f"{key}: {reading!r} while its epoch is announced"
            return
        stamp = self._stamps[epoch]
        entry = self._entries.get(key) or _Entry(ABSENT, stamp)
        stale = entry.stamp != stamp and not isinstance(entry.state, Tombstone)
        _, expected = on_read(ABSENT if stale else entry.state, intent, Token())
        loose = entry.was_stale or stale
        allowed = isinstance(reading, Busy | Missing | Leased) if loose and isinstance(entry.state, Lease) else False
        same = isinstance(reading, type(expected)) and (not isinstance(expected, Hit) or reading == expected)
        assert same or allowed, f"{key}: {reading!r} where {expected!r} was due, of {entry}"
        if isinstance(reading, Leased):
            assert intent is Intent.FILL, f"{key}: a lease for a reader that wanted none"
            self._stamp_of[reading.token] = stamp
            others = [*entry.tokens, entry.state.token] if loose and isinstance(entry.state, Lease) else []
            lease = Lease(reading.token)
            self._entries[key] = _Entry(lease, stamp, others, was_stale=loose and entry.state != ABSENT)

    def saw_outcome(self, change: Change, outcome: Outcome) -> None:
        """Check what a change gave."""
        match change:
            case Announce(key, epoch):
                assert isinstance(outcome, Token), f"{change}: {outcome}"
                announced = isinstance(self._epoch(epoch), Tombstone)
                self._stamp_of[outcome] = _NEVER if announced else self._stamps[epoch]
                self._entries[key] = _Entry(Tombstone(outcome), self._stamp_of[outcome])
            case AnnounceEpoch() | EvictEpoch():
                self._saw_epoch(change, outcome)
            case Retract() if change.key in self._epochs:
                self._saw_epoch(change, outcome)
            case _:
                self._saw_entry(change, outcome)

    def _saw_entry(self, change: Change, outcome: Outcome) -> None:
        entry = self._entries.get(change.key) or _Entry(ABSENT, 0)
        state = entry.state
        if isinstance(change, Fill) and isinstance(state, Lease) and any(change.token is own for own in entry.tokens):
            # Which of the leases of one stale value is good only the store knows.
            if outcome is Settled.REFUSED:
                return
            state = Lease(change.token)
        new, expected = after(state, change, Token())
        assert outcome == expected, f"{change}: {outcome} where {expected} was due, of {entry}"
        if outcome is Settled.REFUSED:
            return
        stamp = self._stamp_of[change.token] if isinstance(change, Fill | Publish) else 0
        if isinstance(new, Value) and stamp == _NEVER:
            new = ABSENT
        self._entries[change.key] = _Entry(new, stamp)

    def _saw_epoch(self, change: AnnounceEpoch | EvictEpoch | Retract, outcome: Outcome) -> None:
        state = self._epoch(change.key)
        if isinstance(change, AnnounceEpoch):
            assert isinstance(outcome, Token), f"{change}: {outcome}"
            self._epochs[change.key] = Tombstone(outcome)
            return
        new, expected = after(state, change, Token())
        # An epoch that nobody has looked at may be there or not.
        indifferent = isinstance(change, EvictEpoch) and isinstance(state, Value)
        assert outcome == expected or (indifferent and outcome is Settled.REFUSED), f"{change}: {outcome}"
        if expected is Settled.APPLIED:
            self._epochs[change.key] = new

    def _epoch(self, epoch: str) -> State:
        state = self._epochs.get(epoch, ABSENT)
        if state == ABSENT:
            self._last_stamp += 1
            self._stamps[epoch] = self._last_stamp
            state = self._epochs[epoch] = Value(b"")
        return state
