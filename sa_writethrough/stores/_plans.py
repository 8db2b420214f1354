"""The transitions of `coherence` as conversations in the meta protocol: what to send, and what each reply means.

No socket and no time: a plan yields commands and is sent their replies (`_pipeline.Plan`). Compare-and-set on an
item's id does what the table's "own" says: any transition by anyone gives the item another id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from sa_writethrough.coherence import (
    BUSY,
    MISSING,
    Announce,
    AnnounceEpoch,
    Failed,
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
    Token,
)
from sa_writethrough.exceptions import CacheUnavailableError, ConfigurationError
from sa_writethrough.stores import _meta as meta
from sa_writethrough.stores._meta import STAMP_BYTES, Kind, Reply

if TYPE_CHECKING:
    from sa_writethrough.stores._node import NodeBase
    from sa_writethrough.stores._pipeline import Pipeline, Plan

__all__ = [
    "NO_STAMP",
    "Fresh",
    "ItemToken",
    "MakeToken",
    "abreast",
    "announce",
    "announce_commands",
    "announce_epoch",
    "evict",
    "open_stamp",
    "put",
    "read",
    "read_commands",
    "settle",
    "settling",
]

NO_STAMP = b""
"""Of entries without an epoch."""
_HITS = frozenset({Hit})
_MOST_RACES = 32
"""How often someone else may be quicker before we give up. Each time someone else got something done."""


class ItemToken(Token):
    """Proves ownership of the item with the id *cas* on *node*.

    *stamp* is the epoch's; None where that was announced, so that nothing readable can be published. *connection* is
    the one to use, where ids restart with the server: what survives a restart there is no connection. *bond* keeps it.
    """

    __slots__ = ("bond", "cas", "connection", "node", "stamp")

    def __init__(self, node: NodeBase[Any], connection: Pipeline | None, cas: int, stamp: bytes | None) -> None:
        self.node = node
        self.connection = connection
        self.bond = None if connection is None else connection.bond()
        self.cas = cas
        self.stamp = stamp


Fresh: TypeAlias = Callable[[], "int | None"]
"""Makes the id of a new item; None leaves it to the server."""
MakeToken: TypeAlias = Callable[[int, "bytes | None"], ItemToken]
"""From an item's id and its epoch's stamp."""


# --- reading --------------------------------------------------------------------------------------------------------


def read_commands(keys: Sequence[str], epoch: str | None, intent: Intent, lease_ttl: int, fresh: Fresh) -> bytes:
    """Return the epoch's command, if there is one, and one for each of *keys*."""
    # One id does for all: ids are compared per key.
    cas = fresh()
    asking = meta.gets(keys, lease_ttl, cas) if intent is Intent.FILL else meta.looks(keys)
    return asking if epoch is None else meta.touch_epoch(epoch, cas) + asking


def read(
    keys: Sequence[str],
    epoch: str | None,
    intent: Intent,
    *,
    lease_ttl: int,
    fresh: Fresh,
    token: MakeToken,
    remember: Callable[[str, int], object],
) -> Plan[Reading]:
    """Read *keys*. The epoch is looked at first: a row that carries its stamp was readable at that moment or later.

    A row of an epoch that is over is absent. Of those who see it one takes the lease, by replacing it; else as many
    would fill as come after an eviction of everything.

    Its first commands are `read_commands`, which the caller sends. Of the replies to the keys some may be hits already.
    """
    replies = yield ()
    if epoch is None:
        return _readings(replies, NO_STAMP, Kind.BYTES, intent, token)
    head, rest = replies[0], replies[1:]
    if head.error:
        return [_failed(head, f"epoch {epoch!r}")] * len(rest)
    stamp = open_stamp(head)
    if stamp is None:
        # The leases that came with the looking would keep the others from filling long after the epoch is open again.
        needless = [meta.delete(key, reply.cas) for key, reply in zip(keys, rest, strict=True) if reply.won]
        if needless:
            yield needless
        return [BUSY] * len(rest)
    remember(epoch, head.cas)
    readings = _readings(rest, stamp, Kind.ROW, intent, token)
    over = [i for i, reading in enumerate(readings) if type(reading) is Leased and not rest[i].won]
    if over:
        replies = yield [meta.lease(keys[i], lease_ttl, rest[i].cas, fresh()) for i in over]
        for i, reply in zip(over, replies, strict=True):
            readings[i] = _lease(reply, token, stamp)
    return readings


def _lease(reply: Reply, token: MakeToken, stamp: bytes) -> Reading:
    if reply.error:
        return _failed(reply, "a lease")
    return Leased(token(_checked(reply), stamp)) if reply.code == b"HD" else BUSY


def _readings(
    replies: Sequence[Reply | Hit], stamp: bytes, kind: Kind, intent: Intent, token: MakeToken
) -> list[Reading]:
    if _HITS.issuperset(map(type, replies)):
        return [*replies]  # type: ignore[list-item]  # as was just seen
    # The usual case is decided here, without a call; and an enumeration is slower to compare than a number.
    usual, size = int(kind), len(stamp)
    return [
        reply
        if isinstance(reply, Hit)
        else reply.value[size:]
        if reply.kind == usual and reply.value.startswith(stamp)
        else _reading(reply, intent, token, stamp)
        for reply in replies
    ]


def _reading(reply: Reply, intent: Intent, token: MakeToken, stamp: bytes) -> Reading:
    if reply.error:
        return _failed(reply, "a read")
    if reply.code == b"EN":
        return MISSING
    if reply.kind == Kind.TOMBSTONE or (reply.kind == Kind.LEASE and not reply.won):
        return BUSY
    # A lease of our own; or a row of an epoch that is over, or bytes: absent, and its id will do for a lease.
    return Leased(token(_checked(reply), stamp)) if intent is Intent.FILL else MISSING


def open_stamp(epoch: Reply) -> bytes | None:
    """Return the stamp in the epoch's reply; None if the epoch is announced."""
    return None if epoch.kind == Kind.TOMBSTONE else meta.stamp_of(_checked(epoch))


def _checked(reply: Reply) -> int:
    if not reply.cas:
        raise ConfigurationError(
            "this memcached numbers no items, so nobody can tell whose a lease is: start it without -C (--disable-cas)"
        )
    return reply.cas


# --- writing --------------------------------------------------------------------------------------------------------


def announce_commands(changes: Sequence[Announce], fresh: Fresh) -> list[bytes]:
    """Return the epoch's command and one for each of *changes*, all of that epoch."""
    cas = fresh()
    return [
        meta.touch_epoch(changes[0].epoch, cas),
        *[meta.tombstone(change.key, change.ttl, cas) for change in changes],
    ]


def announce(
    changes: Sequence[Announce], fresh: Fresh, token: MakeToken, remember: Callable[[str, int], object]
) -> Plan[Outcome]:
    """Make the keys of *changes*, all of one epoch, unreadable."""
    replies = yield announce_commands(changes, fresh)
    epoch, head, rest = changes[0].epoch, replies[0], replies[1:]
    if head.error:
        return [_failed(head, f"epoch {epoch!r}")] * len(rest)
    stamp = open_stamp(head)
    if stamp is not None:
        remember(epoch, head.cas)
    return [
        token(_checked(reply), stamp) if reply.code == b"HD" else _failed(reply, f"announcement of {change.key!r}")
        for change, reply in zip(changes, rest, strict=True)
    ]


def announce_epoch(change: AnnounceEpoch, fresh: Fresh, token: MakeToken) -> Plan[Outcome]:
    """Make every entry of an epoch on this node unreadable."""
    (reply,) = yield [meta.tombstone(change.key, change.ttl, fresh())]
    if reply.code != b"HD":
        return [_failed(reply, f"announcement of epoch {change.key!r}")]
    return [token(_checked(reply), None)]


def settling(change: Publish | Fill | Retract, own: ItemToken, fresh: Fresh, max_bytes: int) -> bytes:
    """Return the first command of what replaces or drops one's own tombstone or lease. The usual answer is `HD`."""
    if isinstance(change, Publish):
        row = None if own.stamp is None else _row(own.stamp, change.payload, max_bytes)
        kind = Kind.ROW
    elif isinstance(change, Fill):
        row = _row(own.stamp or NO_STAMP, change.payload, max_bytes)
        kind = Kind.ROW if own.stamp else Kind.BYTES
    else:
        return meta.delete(change.key, own.cas)
    if row is None:
        # Not known, not readable, or too large: at least it need not stay a tombstone or a lease.
        return meta.delete(change.key, own.cas)
    return meta.store(change.key, row, kind, change.ttl, own=own.cas, fresh=fresh())


def settle(change: Publish | Fill | Retract, own: ItemToken, fresh: Fresh, max_bytes: int) -> Plan[Outcome]:
    """Publish, fill or retract."""
    command = settling(change, own, fresh, max_bytes)
    (reply,) = yield [command]
    if isinstance(change, Publish):
        return (yield from _published(change, own, reply))
    if isinstance(change, Fill):
        return [_settled(reply, f"fill of {change.key!r}") if command.startswith(b"ms") else Settled.REFUSED]
    return [_settled(reply, f"retraction of {change.key!r}")]


def _published(change: Publish, own: ItemToken, reply: Reply) -> Plan[Outcome]:
    """Where something else was than the own tombstone, that is a later writer's tombstone or must go."""
    if reply.error:
        # No memory left for it, or too large for the server: drop the tombstone instead.
        (reply,) = yield [meta.delete(change.key, own.cas)]
    if reply.code != b"EX":
        return [_settled(reply, f"publication of {change.key!r}")]
    (outcome,) = yield from evict(change.key)
    return [Settled.HEALED if outcome is Settled.APPLIED else outcome]


def abreast(plans: Sequence[Plan[Outcome]]) -> Plan[Outcome]:
    """Hold the conversations of *plans*, each of which has one result, side by side."""
    results: dict[Plan[Outcome], Outcome] = {}
    under_way = [(plan, next(plan)) for plan in plans]
    while under_way:
        replies = iter((yield [command for _, commands in under_way for command in commands]))
        further = []
        for plan, commands in under_way:
            try:
                further.append((plan, plan.send([next(replies) for _ in commands])))
            except StopIteration as stop:  # noqa: PERF203 - that is how a plan ends
                (results[plan],) = stop.value
        under_way = further
    return [results[plan] for plan in plans]


def evict(key: str) -> Plan[Outcome]:
    """Drop what is there unless it is a tombstone. memcached has no such command: look, then drop what was seen."""
    for _ in range(_MOST_RACES):
        (seen,) = yield [meta.looks([key])]
        if seen.error:
            return [_failed(seen, f"eviction of {key!r}")]
        if seen.code == b"EN" or seen.kind == Kind.TOMBSTONE:
            return [Settled.REFUSED]
        (reply,) = yield [meta.delete(key, _checked(seen))]
        if reply.code != b"EX":
            return [_settled(reply, f"eviction of {key!r}")]
    return [Failed(CacheUnavailableError(f"memcached: {key!r} changed {_MOST_RACES} times while it was to be evicted"))]


def put(change: Put, fresh: Fresh, max_bytes: int) -> Plan[Outcome]:
    """Store bytes, whatever was there; of bytes that are too large at least drop what they were to replace."""
    payload = _row(NO_STAMP, change.payload, max_bytes)
    if payload is None:
        yield from evict(change.key)
        return [Settled.REFUSED]
    (reply,) = yield [meta.store(change.key, payload, Kind.BYTES, change.ttl, fresh=fresh())]
    return [_settled(reply, f"put of {change.key!r}")]


def _row(stamp: bytes, payload: bytes | None, max_bytes: int) -> bytes | None:
    return None if payload is None or STAMP_BYTES + len(payload) > max_bytes else stamp + payload


def _settled(reply: Reply, what: str) -> Outcome:
    if reply.error:
        return _failed(reply, what)
    return Settled.APPLIED if reply.code == b"HD" else Settled.REFUSED


def _failed(reply: Reply, what: str) -> Failed:
    answer = reply.error or reply.code.decode("ascii")
    remedy = (
        "it needs memcached 1.6.10 or newer" if answer == "ERROR" else "look at its log and its memory limits (-m, -I)"
    )
    return Failed(CacheUnavailableError(f"memcached refused the {what} with {answer!r}: {remedy}"))
