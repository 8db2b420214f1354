"""The protocol: what an entry can be, what may be done to it, and what becomes of it.

Pure: no I/O, no clock, no SQLAlchemy. Every store implements this table; the in-process store by calling `after`
itself, memcached by compare-and-set commands that have the same effect. The conformance suite compares the two.

The rules, and why they hold together:

1.  A writer *announces* while it holds the row's lock in the database and before its COMMIT. Of two writers of one row
    the later announcement is therefore the later commit's, and whatever was cached before is unreadable from then on.
2.  A writer *publishes* after its COMMIT, and only over its own tombstone. A foreign one belongs to a later writer.
3.  A reader *fills* only over its own lease, which it took before it read the row.
4.  A tombstone can be lost. A fill therefore also needs the database's word that no writer holds the row
    (`fences`), except where the store cannot lose one.
5.  Every entry belongs to an *epoch*, itself an entry of the same protocol. A value is readable only in the epoch in
    which it was announced or leased. Announcing the epoch closes all of its entries at once; whoever changes rows that
    cannot be named announces the epoch instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

__all__ = [
    "ABSENT",
    "BUSY",
    "MISSING",
    "Absent",
    "Announce",
    "AnnounceEpoch",
    "Busy",
    "Change",
    "Evict",
    "EvictEpoch",
    "Failed",
    "Fill",
    "Hit",
    "Intent",
    "Lease",
    "Leased",
    "Missing",
    "Outcome",
    "Publish",
    "Put",
    "Reading",
    "Retract",
    "Settled",
    "State",
    "Token",
    "Tombstone",
    "Value",
    "after",
    "on_read",
]


class Token:
    """Proves that a lease or a tombstone is one's own. Opaque to everyone but the store that made it.

    Compared by identity unless a store's subclass knows better; a store may keep in it whatever it needs to act on the
    entry later (compare-and-set id, connection, epoch).
    """

    __slots__ = ()


# --- the states of an entry -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Absent:
    """Nothing is known. The next reader may take a lease."""


@dataclass(frozen=True, slots=True)
class Lease:
    """One reader was told to fill; until it does, or the lease expires, the others read the database."""

    token: Token


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A writer is between its last SQL and the end of its transaction: read the database, do not fill."""

    token: Token


@dataclass(frozen=True, slots=True)
class Value:
    """The row as the database has it."""

    payload: bytes


State: TypeAlias = Absent | Lease | Tombstone | Value
ABSENT = Absent()


# --- what a reader gets ---------------------------------------------------------------------------------------------


class Intent(Enum):
    """What a reader is prepared to do on a miss."""

    FILL = "fill"
    """Take the lease: the caller will read the row and fill."""
    LOOK = "look"
    """Take nothing: the caller will not fill."""


Hit: TypeAlias = bytes
"""The entry's payload, and no object around it: there may be thousands in one answer."""


@dataclass(frozen=True, slots=True)
class Leased:
    """A miss; this reader, and no other, may fill with *token*."""

    token: Token


@dataclass(frozen=True, slots=True)
class Busy:
    """A writer or another reader is at it: read the database, do not fill."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A miss of a reader that wanted no lease."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The node that owns the key did not answer. As a reading: read the database. As an outcome: effect unknown."""

    error: Exception


Reading: TypeAlias = Hit | Leased | Busy | Missing | Failed
BUSY = Busy()
MISSING = Missing()


# --- what may be done to an entry -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Announce:
    """Make *key* unreadable until published; any state becomes a tombstone. The caller holds the row's lock.

    *epoch* is the key of the epoch that the entry belongs to. *ttl* bounds how long the tombstone of a writer that
    died keeps the key uncached, in seconds; None asks for no bound, and is for stores that cannot lose a tombstone.
    """

    key: str
    epoch: str
    ttl: float | None


@dataclass(frozen=True, slots=True)
class AnnounceEpoch:
    """Make every entry of the epoch *key*, on every node, unreadable; `Retract` opens a new epoch, without them.

    For a writer whose rows cannot be named. The caller holds their locks.
    """

    key: str
    ttl: float | None


@dataclass(frozen=True, slots=True)
class Publish:
    """Replace the own tombstone with the committed row, or with nothing where the row is not known (None)."""

    key: str
    token: Token
    payload: bytes | None
    ttl: float | None


@dataclass(frozen=True, slots=True)
class Fill:
    """Replace the own lease with the row that was read after the lease was taken."""

    key: str
    token: Token
    payload: bytes
    ttl: float | None


@dataclass(frozen=True, slots=True)
class Retract:
    """Take the own tombstone back, once the database acknowledged that it is over; or give a lease back."""

    key: str
    token: Token


@dataclass(frozen=True, slots=True)
class Evict:
    """Drop a value, and a lease with it: what its holder read may be older than this. A tombstone stays."""

    key: str


@dataclass(frozen=True, slots=True)
class EvictEpoch:
    """Drop every value and lease of the epoch *key*, on every node. An announced epoch stays announced."""

    key: str


@dataclass(frozen=True, slots=True)
class Put:
    """Store bytes that have nothing to do with the protocol (a dogpile region's own), whatever was there."""

    key: str
    payload: bytes
    ttl: float | None


Change: TypeAlias = Announce | AnnounceEpoch | Publish | Fill | Retract | Evict | EvictEpoch | Put


class Settled(Enum):
    """What became of a change that was acknowledged."""

    APPLIED = "applied"
    REFUSED = "refused"
    """Left as it was: the entry was no longer the caller's."""
    HEALED = "healed"
    """The caller's tombstone was lost and something else had taken its place; that was dropped."""


Outcome: TypeAlias = Token | Settled | Failed
"""Of an `Announce` or `AnnounceEpoch` the token (or `Failed`), of every other change `Settled` or `Failed`."""


# --- the table ------------------------------------------------------------------------------------------------------


def on_read(state: State, intent: Intent, token: Token) -> tuple[State, Reading]:
    """Return what *state* becomes, and what the reader gets, when it is read; *token* is fresh."""
    match state:
        case Value(payload):
            return state, payload
        case Absent() if intent is Intent.FILL:
            return Lease(token), Leased(token)
        case Absent():
            return state, MISSING
        case _:
            return state, BUSY


def after(state: State, change: Change, token: Token) -> tuple[State, Outcome]:  # noqa: PLR0911 - one return per rule
    """Return what *state* becomes under *change*, and what the caller is told; *token* is fresh."""
    match change, state:
        case ((Announce() | AnnounceEpoch()), _):
            return Tombstone(token), token
        case Publish(), Tombstone(own) if own == change.token:
            return _value_or_absent(change.payload), Settled.APPLIED
        case Publish(), (Lease() | Value()):
            return ABSENT, Settled.HEALED
        case Fill(), Lease(own) if own == change.token:
            return Value(change.payload), Settled.APPLIED
        case Retract(), (Tombstone(own) | Lease(own)) if own == change.token:
            return ABSENT, Settled.APPLIED
        case ((Evict() | EvictEpoch()), (Lease() | Value())):
            return ABSENT, Settled.APPLIED
        case Put(), _:
            return Value(change.payload), Settled.APPLIED
        case _:
            return state, Settled.REFUSED


def _value_or_absent(payload: bytes | None) -> State:
    return ABSENT if payload is None else Value(payload)
