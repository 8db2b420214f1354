"""Our stores as dogpile.cache backends, so that one region serves `register` and the application's own caching.

    region = make_region().configure("sa_writethrough.memcached", arguments={"url": "memcached://127.0.0.1:11211"})
    register(Session, region)

    @region.cache_on_arguments()
    def report(year): ...

Arguments: *url*, a store URL; *ttl*, how long in seconds a region's value is kept (None: as long as there is room). The
region's own keys get a prefix that no entity's key has. They are ordinary cached values, without the write-through
promise: while a node is out of reach its values are missing, what is set is not kept, and to delete is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, ClassVar

from dogpile.cache.api import NO_VALUE, BytesBackend
from dogpile.cache.proxy import ProxyBackend

from sa_writethrough.coherence import Evict, Failed, Hit, Intent, Put
from sa_writethrough.exceptions import CacheUnavailableError, ConfigurationError
from sa_writethrough.stores.base import Store
from sa_writethrough.stores.urls import open_store

if TYPE_CHECKING:
    from dogpile.cache.api import SerializedReturnType
    from dogpile.cache.region import CacheRegion

__all__ = ["MemcachedBackend", "MemoryBackend", "store_of"]

_PREFIX = "wt1-region:"
_MAX_KEY_BYTES = 250


def store_of(region: CacheRegion) -> Store:
    """Return the store behind *region*, through whatever proxies wrap it.

    Raises `ConfigurationError` if the region is not configured, or with a backend that is not ours.
    """
    if not region.is_configured:
        raise ConfigurationError(
            "the dogpile.cache region is not configured yet: call "
            'region.configure("sa_writethrough.memcached", arguments={"url": ...}) before register()'
        )
    backend = region.backend
    while isinstance(backend, ProxyBackend):
        backend = backend.proxied
    if isinstance(backend, _StoreBackend):
        return backend.store
    raise ConfigurationError(
        f"the dogpile.cache region's backend is {type(backend).__name__}, which has no leases: configure it with "
        '"sa_writethrough.memcached" or "sa_writethrough.memory", or give register() a store URL'
    )


class _StoreBackend(BytesBackend):
    """A region's values, kept in `store`."""

    schemes: ClassVar[tuple[str, ...]] = ()
    default_url: ClassVar[str | None] = None

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        known = {"url", "ttl"}
        if unknown := set(arguments) - known:
            raise ConfigurationError(
                f"dogpile.cache arguments: {', '.join(sorted(unknown))} unknown; valid are {', '.join(sorted(known))}"
            )
        url = arguments.get("url", self.default_url)
        if not isinstance(url, str) or url.partition("://")[0] not in self.schemes:
            raise ConfigurationError(
                f"dogpile.cache arguments: 'url' must begin with {' or '.join(f'{name}://' for name in self.schemes)}"
            )
        self.store = open_store(url)
        self.ttl: float | None = arguments.get("ttl")

    def get_serialized(self, key: str) -> SerializedReturnType:
        """Return the value of *key*, or NO_VALUE."""
        return self.get_serialized_multi([key])[0]

    def get_serialized_multi(self, keys: Iterable[str]) -> Sequence[SerializedReturnType]:
        """Return the values of *keys*; NO_VALUE for those that are not there or out of reach."""
        readings = self.store.read([_store_key(key) for key in keys], None, Intent.LOOK)
        return [reading if isinstance(reading, Hit) else NO_VALUE for reading in readings]

    def set_serialized(self, key: str, value: bytes) -> None:
        """Keep *value*. What cannot be kept is dropped."""
        self.set_serialized_multi({key: value})

    def set_serialized_multi(self, mapping: Mapping[str, bytes]) -> None:
        """Keep several values. What cannot be kept is dropped."""
        self.store.submit([Put(_store_key(key), value, self.ttl) for key, value in mapping.items()]).wait()

    def delete(self, key: str) -> None:
        """Drop *key*. Raises `CacheUnavailableError` if that cannot be confirmed."""
        self.delete_multi([key])

    def delete_multi(self, keys: Iterable[str]) -> None:
        """Drop *keys*. Raises `CacheUnavailableError` if that cannot be confirmed."""
        named = list(keys)
        for key, outcome in zip(
            named, self.store.submit([Evict(_store_key(key)) for key in named]).wait(), strict=True
        ):
            if isinstance(outcome, Failed):
                raise CacheUnavailableError(f"{key!r} may not have been deleted: {outcome.error}") from outcome.error


class MemcachedBackend(_StoreBackend):
    """`sa_writethrough.memcached`: a region in memcached."""

    schemes = ("memcached", "memcached+unix")


class MemoryBackend(_StoreBackend):
    """`sa_writethrough.memory`: a region in this process."""

    schemes = ("memory",)
    default_url = "memory://"


def _store_key(key: str) -> str:
    named = _PREFIX + key
    if len(named) <= _MAX_KEY_BYTES and key.isascii() and key.isprintable() and " " not in key:
        return named
    # A '#' of the application's own cannot collide: it would have to find a digest's preimage.
    return f"{_PREFIX}#{blake2b(key.encode('utf-8', 'surrogatepass'), digest_size=32).hexdigest()}"
