"""What an application decides about its cached models. Pure values; the names are public."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from random import random

from sa_writethrough.exceptions import ConfigurationError

__all__ = ["CacheMode", "CachePolicy", "OnMiss", "OnOutage", "OnWrite", "ReadBack", "Reads", "SnapshotReads"]


class OnWrite(Enum):
    """What a commit leaves in the cache."""

    PUBLISH = "publish"
    """The committed row."""
    INVALIDATE = "invalidate"
    """Nothing: the next reader fills. Cheaper to write, one miss more to read."""


class Reads(Enum):
    """Which lookups by identity are served from the cache."""

    OPTION = "option"
    """Those with `from_cache()`, and `cache.get` and `cache.get_many`."""
    ALWAYS = "always"
    """All of them, also lazy many-to-one loads, except with `bypass_cache()`."""


class SnapshotReads(Enum):
    """What a session in REPEATABLE READ or SERIALIZABLE gets."""

    BYPASS = "bypass"
    """The database: a hit is newer than the session's snapshot and would break it."""
    SERVE = "serve"
    """Hits all the same; the application accepts that they do not belong to the snapshot."""


class ReadBack(Enum):
    """When a written row is read back inside the transaction, before COMMIT."""

    WHEN_NEEDED = "when needed"
    """Unless every column's stored value is known exactly."""
    ALWAYS = "always"
    """For tables whose triggers change what was written."""


class OnOutage(Enum):
    """What a commit does when a node that must hear of it does not acknowledge."""

    ABORT = "abort"
    """Roll back and raise `CacheUnavailableError`: nothing was written anywhere."""
    COMMIT = "commit"
    """Commit. Gives up the promise for these rows: if the node comes back with its memory intact, or other processes
    still reach it, they may serve the old row until its `ttl` ends, the row is written again, or it is evicted."""


class OnMiss(Enum):
    """What a lookup by primary key does where another reader has the lease, or a writer is about to commit."""

    READ = "read"
    """Read the database at once, and fill nothing."""
    WAIT = "wait"
    """Look again for a while (`wait`): of many that miss the same row one reads the database. Then as READ."""


class OnUnknownSQL(Enum):
    """What becomes of SQL text of which nobody can tell what it changes (`CALL`, `DO`, `EXECUTE`)."""

    REFUSE = "refuse"
    """It is not executed: `ConfigurationError` says how to declare its tables. One cached model suffices for that."""
    EVICT = "evict"
    """It is taken to change every cached table. It must not end the transaction."""


class CacheMode(Enum):
    """How one query uses the cache; the members are Hibernate's."""

    NORMAL = "normal"
    """Serve hits, fill on a miss."""
    GET = "get"
    """Serve hits, never fill."""
    PUT = "put"
    """Read the database, fill what is absent."""
    REFRESH = "refresh"
    """Read the database, replace what is cached."""
    IGNORE = "ignore"
    """Read the database, leave the cache alone."""


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """How the entries of one model are kept. Immutable; `replace` with `dataclasses.replace`.

    ttl:
        Seconds until an entry expires; None keeps it until it is written or evicted. No promise depends on it.
    ttl_jitter:
        From 0 to 1: by up to this share of `ttl` an entry expires sooner, at random, so that entries of one moment do
        not expire in one moment.
    on_write, reads, snapshot_reads, read_back, on_outage, on_miss, on_unknown_sql:
        See the enumerations of these names.
    wait:
        Seconds, at most, that `OnMiss.WAIT` waits; the session may hold a connection meanwhile.
    negative:
        Whether it is cached, too, that a row does not exist. Only on SQLite with the embedded store, `memory://`:
        elsewhere no fence tells that a row is about to be inserted, and `ConfigurationError` is raised.
    namespace:
        Part of every key. Applications that share a store but not a database need different ones.
    exclude:
        Attribute names that are never cached; a hit loads them from the database when they are asked for.
    collections:
        Names of one-to-many relationships whose collections are cached by reference: an entry holds the primary keys of
        the members, and loading the attribute takes them, and the members, from the cache. The members' class must be
        cached, too, and an immediate foreign key must lead from them to the owner's primary key.
    unique_keys:
        Unique keys, each as the names of its attributes, by which rows are looked up: `cache.get_by`, and SELECTs that
        ask for nothing else. Each needs a unique constraint, or a unique index without conditions, that is not
        deferrable. An entry of its own points to the primary key, so such a lookup costs two round trips.
    tombstone_ttl:
        Seconds that the rows of a writer that died between its announcement and the end of its transaction stay
        uncached. A matter of efficiency alone.
    secret:
        At least 16 random bytes, the same in every process: entries are signed with it (HMAC-SHA256), and what is not
        is not read. For caches that others can write to.
    """

    ttl: float | None = None
    ttl_jitter: float = 0.0
    on_write: OnWrite = OnWrite.PUBLISH
    reads: Reads = Reads.OPTION
    snapshot_reads: SnapshotReads = SnapshotReads.BYPASS
    read_back: ReadBack = ReadBack.WHEN_NEEDED
    on_outage: OnOutage = OnOutage.ABORT
    on_miss: OnMiss = OnMiss.READ
    on_unknown_sql: OnUnknownSQL = OnUnknownSQL.REFUSE
    wait: float = 0.05
    negative: bool = False
    namespace: str = ""
    exclude: frozenset[str] = frozenset()
    collections: frozenset[str] = frozenset()
    unique_keys: tuple[tuple[str, ...], ...] = ()
    tombstone_ttl: float = 5.0
    secret: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, kind in _ENUMERATIONS.items():
            _to_member(self, name, kind)
        _require_seconds("ttl", self.ttl)
        _require_seconds("tombstone_ttl", self.tombstone_ttl)
        _require_seconds("wait", self.wait)
        if not isinstance(self.ttl_jitter, int | float) or not 0 <= self.ttl_jitter <= 1:
            raise ConfigurationError(f"CachePolicy(ttl_jitter={self.ttl_jitter!r}): give a share of ttl, from 0 to 1.")
        _to_names(self, "exclude", "photo")
        _to_names(self, "collections", "addresses")
        _to_unique_keys(self)
        if self.secret is not None and (not isinstance(self.secret, bytes) or len(self.secret) < _SECRET_BYTES):
            raise ConfigurationError(
                f"CachePolicy(secret=...): give at least {_SECRET_BYTES} random bytes, for example of "
                f"secrets.token_bytes({_SECRET_BYTES * 2}), and keep them where the database's password is."
            )
        if not isinstance(self.namespace, str) or not _NAMESPACE.fullmatch(self.namespace):
            raise ConfigurationError(
                f"CachePolicy(namespace={self.namespace!r}): use at most 64 ASCII letters, digits, '-', '_' and '.'."
            )

    def lifetime(self) -> float | None:
        """Return the seconds until an entry that is made now is to expire."""
        if self.ttl is None or not self.ttl_jitter:
            return self.ttl
        return self.ttl * (1 - self.ttl_jitter * random())  # noqa: S311 - no secret


_SECRET_BYTES = 16
_NAMESPACE = re.compile(r"[A-Za-z0-9_.-]{0,64}")
_ENUMERATIONS: dict[str, type[Enum]] = {
    "on_write": OnWrite,
    "reads": Reads,
    "snapshot_reads": SnapshotReads,
    "read_back": ReadBack,
    "on_outage": OnOutage,
    "on_miss": OnMiss,
    "on_unknown_sql": OnUnknownSQL,
}


def _to_member(policy: CachePolicy, name: str, kind: type[Enum]) -> None:
    """Accept the member or its value (`read_back="always"`)."""
    try:
        object.__setattr__(policy, name, kind(getattr(policy, name)))
    except ValueError:
        choices = ", ".join(f"{kind.__name__}.{member.name}" for member in kind)
        raise ConfigurationError(f"CachePolicy({name}={getattr(policy, name)!r}): choose one of {choices}.") from None


def _to_names(policy: CachePolicy, name: str, example: str) -> None:
    """Accept any number of attribute names, but no single string, which is as many letters."""
    names = getattr(policy, name)
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ConfigurationError(
            f"CachePolicy({name}={names!r}): give a list of attribute names, for example {name}=[{example!r}]."
        )
    object.__setattr__(policy, name, frozenset(names))


def _to_unique_keys(policy: CachePolicy) -> None:
    """Accept any number of keys, each of any number of names; no names alone, which may be meant as one key or many."""
    keys = policy.unique_keys
    if isinstance(keys, str) or not isinstance(keys, Iterable):
        keys = (keys,)
    keys = tuple(keys)
    if not all(isinstance(key, list | tuple) and key and all(isinstance(name, str) for name in key) for key in keys):
        raise ConfigurationError(
            f"CachePolicy(unique_keys={policy.unique_keys!r}): give a list of tuples of attribute names, for example "
            'unique_keys=[("email",), ("tenant_id", "slug")].'
        )
    object.__setattr__(policy, "unique_keys", tuple(tuple(key) for key in keys))


def _require_seconds(name: str, value: float | None) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None and name == "ttl":
        return
    if not is_number or not value > 0 or value == float("inf"):  # type: ignore[operator]  # is_number excludes None
        raise ConfigurationError(f"CachePolicy({name}={value!r}): give a positive number of seconds.")
