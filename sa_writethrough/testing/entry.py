"""One entry of a store with the protocol's verbs as methods, for tests that tell a story about one key."""

# ruff: noqa: S101 - for tests, which assert

from __future__ import annotations

from sa_writethrough.coherence import (
    Announce,
    AnnounceEpoch,
    Change,
    Evict,
    Fill,
    Intent,
    Leased,
    Outcome,
    Publish,
    Reading,
    Retract,
    Token,
)
from sa_writethrough.stores.base import Store

__all__ = ["TOMBSTONE_TTL", "Entry"]

TOMBSTONE_TTL = 60.0
"""Seconds."""


class Entry:
    """One key of one epoch of *store*, with the protocol's verbs as methods."""

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.key = f"{name}:key"
        self.epoch = f"{name}:epoch"

    def read(self, intent: Intent = Intent.FILL) -> Reading:
        """Read the entry."""
        (reading,) = self.store.read([self.key], self.epoch, intent)
        return reading

    def lease(self) -> Token:
        """Read the entry, which must be absent, and return the lease."""
        reading = self.read()
        assert isinstance(reading, Leased), f"{self.key}: {reading!r}, not a lease"
        return reading.token

    def does(self, change: Change) -> Outcome:
        """Submit one change."""
        (outcome,) = self.store.submit([change]).wait()
        return outcome

    def token(self, change: Announce | AnnounceEpoch) -> Token:
        """Submit an announcement, which must be acknowledged."""
        outcome = self.does(change)
        assert isinstance(outcome, Token), f"{change}: {outcome}, not a token"
        return outcome

    def announce(self) -> Token:
        """Announce the entry."""
        return self.token(Announce(self.key, self.epoch, TOMBSTONE_TTL))

    def announce_epoch(self) -> Token:
        """Announce the epoch."""
        return self.token(AnnounceEpoch(self.epoch, TOMBSTONE_TTL))

    def publish(self, token: Token, payload: bytes | None = b"row", ttl: float | None = None) -> Outcome:
        """Publish over *token*."""
        return self.does(Publish(self.key, token, payload, ttl))

    def fill(self, token: Token, payload: bytes = b"row", ttl: float | None = None) -> Outcome:
        """Fill over *token*."""
        return self.does(Fill(self.key, token, payload, ttl))

    def retract(self, token: Token) -> Outcome:
        """Retract *token*."""
        return self.does(Retract(self.key, token))

    def evict(self) -> Outcome:
        """Evict the entry."""
        return self.does(Evict(self.key))
