"""The error hierarchy. Owns the classes and nothing else; every room may import it."""

from __future__ import annotations

from sqlalchemy.exc import SQLAlchemyError

__all__ = [
    "CacheUnavailableError",
    "CodecError",
    "ConcurrentWriteError",
    "ConfigurationError",
    "WriteThroughError",
]


class WriteThroughError(SQLAlchemyError):
    """Base of everything this library raises on purpose."""


class ConfigurationError(WriteThroughError):
    """A model, an engine, a URL or a policy cannot keep the promise as it is configured."""


class CacheUnavailableError(WriteThroughError):
    """A cache node did not acknowledge an announcement, so the transaction was rolled back.

    Nothing was committed. Retry when the node is back, or choose another `OnOutage` for the model.
    """


class ConcurrentWriteError(WriteThroughError):
    """Another writer changed the row in a way that this transaction cannot be reconciled with."""


class CodecError(WriteThroughError):
    """A value cannot be encoded, or bytes from the cache cannot be decoded."""
