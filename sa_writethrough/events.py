"""Frozen records of what happened, for metrics and tests. A subscriber is called with each; it must be quick.

Hits and misses are counted always; records are made only while somebody subscribes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

__all__ = [
    "Announced",
    "Event",
    "Evicted",
    "FillRefused",
    "Filled",
    "Hit",
    "Miss",
    "Published",
    "Retracted",
    "StoreFailed",
    "Unresolved",
]


@dataclass(frozen=True, slots=True)
class Hit:
    """Entries were served from the cache."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Miss:
    """Rows had to be read from the database."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Filled:
    """Rows that a reader read were sent to the cache."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FillRefused:
    """A reader that held leases did not fill: a writer holds the rows, or they do not exist."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Announced:
    """A writer's keys are unreadable, and its COMMIT may follow."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Published:
    """A writer's rows were sent to the cache after its COMMIT."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Retracted:
    """A writer's tombstones were taken back after its ROLLBACK."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unresolved:
    """The outcome of a COMMIT is unknown: the tombstones stay until they expire."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Evicted:
    """Keys, or the epochs of whole models, were evicted."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StoreFailed:
    """A store, or our own code where nothing may raise, failed; *keys* were affected."""

    keys: tuple[str, ...]
    error: Exception


Event: TypeAlias = (
    Hit | Miss | Filled | FillRefused | Announced | Published | Retracted | Unresolved | Evicted | StoreFailed
)
