"""The in-process store: a dict under one lock that applies `coherence` itself. Knows nothing of sockets or of rows.

Its bound evicts values alone. Tombstones and leases live in a dict of their own that has no bound but the number of
transactions under way, so this store cannot lose a tombstone (`keeps_tombstones`).

One store serves one process: a forked child has a copy, which no other process writes through.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from sa_writethrough.coherence import (
    ABSENT,
    BUSY,
    Absent,
    Announce,
    AnnounceEpoch,
    Change,
    EvictEpoch,
    Fill,
    Hit,
    Intent,
    Leased,
    Outcome,
    Publish,
    Put,
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
from sa_writethrough.exceptions import ConfigurationError

__all__ = ["MemoryStore"]

_SWEEP_AT_LEAST = 1024
"""How many tombstones and leases may lie about before the expired ones are looked for."""


class _Stamp:
    """One epoch's identity. Compared by identity: a stamp that was replaced never comes back."""

    __slots__ = ()


class _Token(Token):
    """Of a lease or a tombstone; *stamp* is None where the epoch was announced: nothing readable can be published."""

    __slots__ = ("stamp",)

    def __init__(self, stamp: _Stamp | None) -> None:
        self.stamp = stamp


class _EpochToken(Token):
    """Of an announced epoch."""

    __slots__ = ()


@dataclass(slots=True)
class _Stored:
    """A value, as the bound sees it."""

    payload: bytes
    stamp: _Stamp
    expires: float


@dataclass(slots=True)
class _Held:
    """A tombstone or a lease, which the bound does not see."""

    state: State
    stamp: _Stamp | None
    expires: float


@dataclass(frozen=True, slots=True)
class _Done:
    """The reply of a store that has already answered."""

    outcomes: Sequence[Outcome]

    def wait(self) -> Sequence[Outcome]:
        return self.outcomes


class MemoryStore:
    """Keep entries in this process.

    *max_bytes* (keys and payloads) and *max_entries* bound the values; the least recently read goes first. *lease_ttl*
    is how long, in seconds, a reader that never fills keeps the others from filling. *clock* counts seconds.
    """

    keeps_tombstones = True
    blocks = False

    def __init__(
        self,
        *,
        max_bytes: int = 64 * 1024 * 1024,
        max_entries: int = 100_000,
        lease_ttl: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_bytes < 1 or max_entries < 1 or lease_ttl <= 0:
            raise ConfigurationError("MemoryStore: max_bytes, max_entries and lease_ttl must be greater than zero")
        self.max_bytes = max_bytes
        self.max_entries = max_entries
        self.lease_ttl = lease_ttl
        self._clock = clock
        self._lock = threading.Lock()
        self._forget_everything()

    def __repr__(self) -> str:
        return f"MemoryStore(max_bytes={self.max_bytes}, max_entries={self.max_entries})"

    def read(self, keys: Sequence[str], epoch: str | None, intent: Intent) -> Sequence[Reading]:
        """Read *keys* of *epoch*. See `Store.read`."""
        if len(keys) != 1:
            with self._lock:
                now = self._clock()
                stamp = self._stamp_of(epoch, now)
                return [self._read(key, stamp, intent, now) for key in keys]
        # The hot path, in as few steps as there can be: one key, its value there, its epoch open.
        key = keys[0]
        with self._lock:
            stored = self._values.get(key)
            if stored is not None and stored.stamp is self._stamps.get(epoch) and stored.expires > self._clock():
                self._values.move_to_end(key)
                return [stored.payload]
            now = self._clock()
            return [self._read(key, self._stamp_of(epoch, now), intent, now)]

    def submit(self, changes: Sequence[Change]) -> _Done:
        """Apply *changes* in order; the reply is already there."""
        with self._lock:
            now = self._clock()
            return _Done([self._apply(change, now) for change in changes])

    def post(self, changes: Sequence[Change]) -> None:
        """Apply *changes* in order."""
        self.submit(changes)

    def close(self) -> None:
        """Do nothing: there is no connection, and the entries outlive it."""

    # --- entries, under the lock -------------------------------------------------------------------------------------

    def _forget_everything(self) -> None:
        self._values: OrderedDict[str, _Stored] = OrderedDict()
        self._held: dict[str, _Held] = {}
        self._stamps: dict[str | None, _Stamp] = {None: _Stamp()}
        self._announced: dict[str, _Held] = {}
        self._bytes = 0
        self._sweep_at = _SWEEP_AT_LEAST

    def _read(self, key: str, stamp: _Stamp | None, intent: Intent, now: float) -> Reading:
        if stamp is None:
            return BUSY
        state = self._state(key, stamp, now)
        new, reading = on_read(state, intent, _Token(stamp))
        if isinstance(reading, Hit):
            self._values.move_to_end(key)
        elif isinstance(reading, Leased):
            self._become(key, _Held(new, stamp, now + self.lease_ttl))
            self._sweep(now)
        return reading

    def _apply(self, change: Change, now: float) -> Outcome:
        match change:
            case AnnounceEpoch() | EvictEpoch():
                return self._apply_to_epoch(change, now)
            case Retract(token=_EpochToken()):
                return self._apply_to_epoch(change, now)
            case Announce(key, epoch, ttl):
                own = _Token(self._stamp_of(epoch, now))
                state, outcome = after(ABSENT, change, own)
                self._become(key, _Held(state, own.stamp, _expiry(now, ttl)))
                self._sweep(now)
                return outcome
            case Put(ttl=ttl):
                return self._settle(change, self._stamps[None], _expiry(now, ttl), now)
            case Publish(token=token, ttl=ttl) | Fill(token=token, ttl=ttl):
                stamp = token.stamp if isinstance(token, _Token) else None
                return self._settle(change, stamp, _expiry(now, ttl), now)
            case _:
                return self._settle(change, None, now, now)

    def _settle(self, change: Change, stamp: _Stamp | None, expires: float, now: float) -> Outcome:
        key = change.key
        state, outcome = after(self._state(key, None, now), change, Token())
        if outcome is Settled.REFUSED:
            return outcome
        # No stamp: announced while its epoch was announced, so that no epoch to come may show this row.
        if isinstance(state, Value) and stamp is not None and len(key) + len(state.payload) <= self.max_bytes:
            self._become(key, _Stored(state.payload, stamp, expires))
        else:
            self._become(key, None)
        return outcome

    def _state(self, key: str, stamp: _Stamp | None, now: float) -> State:
        """Return what is there; with a *stamp*, what is there in that epoch."""
        held = self._held.get(key)
        if held is not None:
            if held.expires <= now:
                del self._held[key]
                return ABSENT
            foreign = stamp is not None and held.stamp is not stamp
            return ABSENT if foreign and not isinstance(held.state, Tombstone) else held.state
        stored = self._values.get(key)
        if stored is None or stored.expires <= now or (stamp is not None and stored.stamp is not stamp):
            return ABSENT
        return Value(stored.payload)

    def _become(self, key: str, entry: _Stored | _Held | None) -> None:
        self._held.pop(key, None)
        old = self._values.pop(key, None)
        if old is not None:
            self._bytes -= len(key) + len(old.payload)
        if isinstance(entry, _Held):
            self._held[key] = entry
        elif entry is not None:
            self._values[key] = entry
            self._bytes += len(key) + len(entry.payload)
            self._shrink()

    def _shrink(self) -> None:
        while self._bytes > self.max_bytes or len(self._values) > self.max_entries:
            key, stored = self._values.popitem(last=False)
            self._bytes -= len(key) + len(stored.payload)

    def _sweep(self, now: float) -> None:
        """Let go of expired tombstones and leases that nobody asked for again; amortised, one step per entry."""
        if len(self._held) < self._sweep_at:
            return
        self._held = {key: held for key, held in self._held.items() if held.expires > now}
        self._sweep_at = max(_SWEEP_AT_LEAST, 2 * len(self._held))

    # --- epochs, under the lock --------------------------------------------------------------------------------------

    def _stamp_of(self, epoch: str | None, now: float) -> _Stamp | None:
        """Return the stamp of *epoch*, made now if it has none; None while it is announced."""
        stamp = self._stamps.get(epoch)
        if stamp is None and epoch is not None and isinstance(self._epoch_state(epoch, now), Absent):
            stamp = self._stamps[epoch] = _Stamp()
        return stamp

    def _epoch_state(self, epoch: str, now: float) -> State:
        if epoch in self._stamps:
            return Value(b"")
        held = self._announced.get(epoch)
        if held is None:
            return ABSENT
        if held.expires > now:
            return held.state
        del self._announced[epoch]
        return ABSENT

    def _apply_to_epoch(self, change: AnnounceEpoch | EvictEpoch | Retract, now: float) -> Outcome:
        state = self._epoch_state(change.key, now)
        new, outcome = after(state, change, _EpochToken())
        if outcome is Settled.REFUSED:
            return outcome
        self._stamps.pop(change.key, None)
        self._announced.pop(change.key, None)
        if isinstance(change, AnnounceEpoch):
            self._announced[change.key] = _Held(new, None, _expiry(now, change.ttl))
        return outcome


def _expiry(now: float, ttl: float | None) -> float:
    return inf if ttl is None else now + ttl
