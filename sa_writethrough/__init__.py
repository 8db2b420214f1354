"""Write-through caching for SQLAlchemy: a shared cache that always agrees with the database."""

from __future__ import annotations

from sa_writethrough.entities import MARKER
from sa_writethrough.exceptions import (
    CacheUnavailableError,
    CodecError,
    ConcurrentWriteError,
    ConfigurationError,
    WriteThroughError,
)
from sa_writethrough.explaining import Explanation
from sa_writethrough.options import bypass_cache, from_cache
from sa_writethrough.policy import (
    CacheMode,
    CachePolicy,
    OnMiss,
    OnOutage,
    OnUnknownSQL,
    OnWrite,
    ReadBack,
    Reads,
    SnapshotReads,
)
from sa_writethrough.registration import AsyncWriteThroughCache, WriteThroughCache, register
from sa_writethrough.stores.base import Store
from sa_writethrough.stores.urls import open_async_store, open_store

__all__ = [
    "MARKER",
    "AsyncWriteThroughCache",
    "CacheMode",
    "CachePolicy",
    "CacheUnavailableError",
    "CodecError",
    "ConcurrentWriteError",
    "ConfigurationError",
    "Explanation",
    "OnMiss",
    "OnOutage",
    "OnUnknownSQL",
    "OnWrite",
    "ReadBack",
    "Reads",
    "SnapshotReads",
    "Store",
    "WriteThroughCache",
    "WriteThroughError",
    "bypass_cache",
    "from_cache",
    "open_async_store",
    "open_store",
    "register",
]
