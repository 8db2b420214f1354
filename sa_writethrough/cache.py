"""Drives the protocol over one store: counts, tells subscribers, and decides what a failure means.

Knows keys, payloads and tokens; knows nothing of SQLAlchemy's sessions or of rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import random
from time import monotonic
from typing import Any, TypeAlias

from sa_writethrough import events
from sa_writethrough.coherence import (
    Announce,
    AnnounceEpoch,
    Busy,
    Change,
    Evict,
    EvictEpoch,
    Failed,
    Fill,
    Hit,
    Intent,
    Leased,
    Outcome,
    Publish,
    Reading,
    Retract,
    Token,
)
from sa_writethrough.exceptions import CacheUnavailableError
from sa_writethrough.policy import OnOutage
from sa_writethrough.stores._loops import pause
from sa_writethrough.stores.base import Reply, Store

__all__ = ["Announcement", "Claim", "EntryCache", "Filling", "Publication", "Stats"]


_FIRST_PAUSE = 0.0005
"""Seconds: about a SELECT by primary key with its fill."""
_log = logging.getLogger("sa_writethrough")


@dataclass(slots=True)
class Stats:
    """Counters since registration. Exact in one thread; under free threading an increment may be lost.

    reads: keys asked for; of these hits, misses, and `busy`, where a writer or another reader was at it.
    fills, fills_refused: rows sent to the cache by readers, or kept back because a writer may hold them.
    announced, published, retracted: keys, by writers. unresolved: COMMITs whose outcome is unknown.
    failures: operations that a store did not acknowledge.
    """

    hits: int = 0
    misses: int = 0
    busy: int = 0
    fills: int = 0
    fills_refused: int = 0
    announced: int = 0
    published: int = 0
    retracted: int = 0
    unresolved: int = 0
    evicted: int = 0
    failures: int = 0

    @property
    def reads(self) -> int:
        """Keys asked for."""
        return self.hits + self.misses + self.busy


@dataclass(slots=True)
class Claim:
    """What a writer is about to announce: a row's key with its epoch, or with None an epoch.

    Not frozen: every commit makes some, and frozen costs as much again.
    """

    key: str
    epoch: str | None
    tombstone_ttl: float
    on_outage: OnOutage


Publication: TypeAlias = Publish
"""A committed row for one's own tombstone; payload None where it is not known. It goes to the store as it is."""
Filling: TypeAlias = Fill
"""A row that was read under one's own lease."""


@dataclass(slots=True)
class Announcement:
    """An announcement on its way. `wait` must be called."""

    _cache: EntryCache
    _claims: Sequence[Claim]
    _reply: Reply

    def wait(self) -> dict[str, Token]:
        """Return the token of every acknowledged key.

        Raises `CacheUnavailableError`, after taking back what was acknowledged, if a key was not and its claim says
        ABORT. The caller has not committed and must roll back.
        """
        return self._cache.acknowledged(self._claims, self._reply.wait())


@dataclass(slots=True)
class EntryCache:
    """One store, its counters, and whoever wants to know what happens."""

    store: Store
    stats: Stats = field(default_factory=Stats)
    subscribers: list[Callable[[events.Event], None]] = field(default_factory=list)

    # --- readers ---

    def read(self, keys: Sequence[str], epoch: str, intent: Intent) -> Sequence[Reading]:
        """Read *keys*, all of one epoch. Never raises for a store's fault."""
        readings = self.store.read(keys, epoch, intent)
        if len(readings) == 1 and type(readings[0]) is Hit and not self.subscribers:  # the hot path
            self.stats.hits += 1
            return readings
        stats, kinds = self.stats, [*map(type, readings)]
        hits = kinds.count(Hit)
        stats.hits += hits
        if hits < len(kinds):
            leased = kinds.count(Leased)
            stats.misses += leased
            stats.busy += len(kinds) - hits - leased
            stats.failures += kinds.count(Failed)
        if self.subscribers:
            self._tell_of_reads(keys, readings)
        return readings

    def read_later(
        self, keys: Sequence[str], epoch: str, intent: Intent, readings: Sequence[Reading], wait: float
    ) -> Sequence[Reading]:
        """Return what was read, with what was busy read again until nothing is, or for *wait* seconds.

        Nor longer than until something is leased to the caller, who must read the database then anyway. So nobody
        waits who holds a lease that others wait for.
        """
        latest = dict(zip(keys, readings, strict=True))
        end, step = monotonic() + wait, _FIRST_PAUSE
        while True:
            busy = [key for key in keys if type(latest[key]) is Busy]
            left = end - monotonic()
            if not busy or left <= 0 or any(type(latest[key]) is Leased for key in keys):
                return [latest[key] for key in keys]
            step *= 1 + random()  # noqa: S311 - no secret: it grows, and has not all who wait come at once
            pause(min(step, left))
            for key, reading in zip(busy, self.store.read(busy, epoch, intent), strict=True):
                latest[key] = reading
                self.stats.busy -= type(reading) is not Busy
                self.stats.hits += type(reading) is Hit
                self.stats.misses += type(reading) is Leased

    def fill(self, fillings: Sequence[Filling], refused: Sequence[tuple[str, Token]] = ()) -> None:
        """Send rows that were read under leases, and give back the leases that cannot be used. Never raises."""
        self.stats.fills += len(fillings)
        self.stats.fills_refused += len(refused)
        changes: list[Change] = [*fillings, *[Retract(key, token) for key, token in refused]]
        if changes:
            self._post(changes)
            self._tell(events.Filled, [f.key for f in fillings])
            self._tell(events.FillRefused, [key for key, _ in refused])

    def drop(self, keys: Sequence[str], epochs: Sequence[str] = ()) -> None:
        """Evict entries that turned out unreadable, and whole epochs, without waiting. Never raises."""
        self._post(_evictions(keys, epochs))

    # --- writers ---

    def announce(self, claims: Sequence[Claim]) -> Announcement:
        """Send tombstones for *claims*, whose rows' locks the caller holds; wait for the answer before COMMIT."""
        keeps = self.store.keeps_tombstones
        return Announcement(self, claims, self.store.submit([_announce(claim, keeps) for claim in claims]))

    def acknowledged(self, claims: Sequence[Claim], outcomes: Sequence[Outcome]) -> dict[str, Token]:
        """Return the tokens of what was announced; see `Announcement.wait`."""
        tokens: dict[str, Token] = {}
        failures: list[tuple[Claim, Exception]] = []
        for claim, outcome in zip(claims, outcomes, strict=True):
            if isinstance(outcome, Token):
                tokens[claim.key] = outcome
            elif isinstance(outcome, Failed):
                failures.append((claim, outcome.error))
        for claim, error in failures:
            self._failed([claim.key], error)
        fatal = [(claim, error) for claim, error in failures if claim.on_outage is OnOutage.ABORT]
        if fatal:
            self.retract(tokens)
            claim, error = fatal[0]
            more = f" (and {len(fatal) - 1} more)" if len(fatal) > 1 else ""
            raise CacheUnavailableError(
                f"The cache did not acknowledge that {claim.key!r}{more} is about to change: {error}. The transaction "
                "was rolled back and nothing was committed. Retry when the node is back, or set "
                "CachePolicy(on_outage=OnOutage.COMMIT) if a stale read is the lesser evil."
            ) from error
        self.stats.announced += len(tokens)
        self._tell(events.Announced, list(tokens))
        return tokens

    def publish(self, publications: Sequence[Publication], epochs: Mapping[str, Token]) -> None:
        """Replace own tombstones after COMMIT, and open new epochs, without waiting. Never raises."""
        self.stats.published += len(publications) + len(epochs)
        self._post([*publications, *[Retract(key, token) for key, token in epochs.items()]])
        if self.subscribers:
            self._tell(events.Published, [*(p.key for p in publications), *epochs])

    def retract(self, tokens: dict[str, Token]) -> None:
        """Take own tombstones back, without waiting. The database acknowledged the ROLLBACK. Never raises."""
        if tokens:
            self.stats.retracted += len(tokens)
            self._post([Retract(key, token) for key, token in tokens.items()])
            self._tell(events.Retracted, list(tokens))

    def abandon(self, claims: Sequence[Claim]) -> None:
        """Leave own tombstones to expire: the outcome of the COMMIT is unknown. Never raises.

        A store that keeps tombstones was given them without a time limit; there they are set again with one.
        """
        self.stats.unresolved += 1
        if self.store.keeps_tombstones:
            self._post([_announce(claim, keeps_tombstones=False) for claim in claims])
        self._tell(events.Unresolved, [claim.key for claim in claims])

    # --- the application ---

    def evict(self, keys: Sequence[str], epochs: Sequence[str] = ()) -> None:
        """Drop entries and whole epochs, acknowledged.

        Raises `CacheUnavailableError` if a node did not acknowledge: it may still serve them.
        """
        changes = _evictions(keys, epochs)
        names = [*keys, *epochs]
        for name, outcome in zip(names, self.store.submit(changes).wait(), strict=True):
            if isinstance(outcome, Failed):
                self._failed([name], outcome.error)
                raise CacheUnavailableError(
                    f"The cache did not acknowledge the eviction of {name!r}: {outcome.error}. It may still serve the "
                    "entry; evict again when the node is back."
                ) from outcome.error
        self.stats.evicted += len(names)
        self._tell(events.Evicted, names)

    def drain(self) -> None:
        """Wait until everything that was sent without waiting has been done or has failed."""
        self.store.submit(()).wait()

    # --- telling ---

    def _post(self, changes: Sequence[Change]) -> None:
        try:
            self.store.post(changes)
        except Exception as error:  # noqa: BLE001 - nothing may raise here: the row may be committed
            self._failed([change.key for change in changes], error)

    def report(self, error: Exception) -> None:
        """Count and tell of an error where none may be raised."""
        self._failed([], error)

    def _failed(self, keys: Sequence[str], error: Exception) -> None:
        self.stats.failures += 1
        self._tell_of_failure(keys, error)

    def _tell_of_failure(self, keys: Sequence[str], error: Exception) -> None:
        for subscriber in self.subscribers:
            _call(subscriber, events.StoreFailed(tuple(keys), error))

    def _tell(self, kind: Callable[[tuple[str, ...]], Any], keys: Sequence[str]) -> None:
        if self.subscribers and keys:
            event = kind(tuple(keys))
            for subscriber in self.subscribers:
                _call(subscriber, event)

    def _tell_of_reads(self, keys: Sequence[str], readings: Sequence[Reading]) -> None:
        self._tell(events.Hit, [k for k, r in zip(keys, readings, strict=True) if isinstance(r, Hit)])
        self._tell(events.Miss, [k for k, r in zip(keys, readings, strict=True) if not isinstance(r, Hit)])
        for key, reading in zip(keys, readings, strict=True):
            if isinstance(reading, Failed):
                self._tell_of_failure([key], reading.error)


def _evictions(keys: Sequence[str], epochs: Sequence[str]) -> list[Change]:
    return [*(Evict(key) for key in keys), *(EvictEpoch(key) for key in epochs)]


def _announce(claim: Claim, keeps_tombstones: bool) -> Change:  # noqa: FBT001 - a fact about the store, not a switch
    ttl = None if keeps_tombstones else claim.tombstone_ttl
    if claim.epoch is None:
        return AnnounceEpoch(claim.key, ttl)
    return Announce(claim.key, claim.epoch, ttl)


def _call(subscriber: Callable[[events.Event], None], event: events.Event) -> None:
    try:
        subscriber(event)
    except Exception:  # noqa: BLE001 - a subscriber's fault must reach neither a reader nor a committed writer
        _log.exception("A subscriber failed on %r", event)
