"""`register`: ties the read side and the write side to a Session factory."""

from __future__ import annotations

from typing import Any, TypeVar, overload

from dogpile.cache import CacheRegion

from sa_writethrough.dogpile import store_of
from sa_writethrough.entities import Entities, Models
from sa_writethrough.exceptions import ConfigurationError
from sa_writethrough.factories import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    is_async,
    session_class_of,
    sync_class_of,
    with_class_of_its_own,
)
from sa_writethrough.policy import CachePolicy
from sa_writethrough.registered import REGISTRATION, WriteThroughCache
from sa_writethrough.registered_async import AsyncWriteThroughCache
from sa_writethrough.stores.base import Store
from sa_writethrough.stores.memcached_async import AsyncMemcachedStore
from sa_writethrough.stores.urls import open_async_store, open_store

__all__ = ["AsyncWriteThroughCache", "WriteThroughCache", "register"]

S = TypeVar("S", bound=AsyncSession)


@overload
def register(
    factory: async_sessionmaker[S] | async_scoped_session[S] | type[AsyncSession],
    store: Any = ...,
    *,
    models: Models | None = ...,
    policy: CachePolicy | None = ...,
) -> AsyncWriteThroughCache: ...
@overload
def register(
    factory: Any,
    store: Any = ...,
    *,
    models: Models | None = ...,
    policy: CachePolicy | None = ...,
) -> WriteThroughCache: ...
def register(
    factory: Any,
    store: Any = "memory://",
    *,
    models: Models | None = None,
    policy: CachePolicy | None = None,
) -> WriteThroughCache | AsyncWriteThroughCache:
    """Keep a cache equal to the database for every session that *factory* makes, from now on.

    factory:
        A `sessionmaker`, a `scoped_session`, or a Session class (`sqlalchemy.orm.Session` itself for all sessions); or
        an `async_sessionmaker`, an `async_scoped_session`, or a class of asynchronous sessions: for these an
        `AsyncWriteThroughCache` is returned. Register before it is used, and register every factory that writes the
        cached models.
    store:
        A URL (`memory://`, `memcached://host:port,host:port`, `memcached+unix:///path`), a dogpile.cache region that is
        configured with one of our backends, or a `Store`.
    models:
        Classes, or a predicate of mappers, that are cached without carrying the `__writethrough__` marker.
    policy:
        What holds for models whose marker is True, and for *models*.

    Raises `ConfigurationError` for anything that cannot work: a factory that is registered already, a class that is not
    mapped, a column whose type has no codec, an unknown URL, a store that would block an event loop.
    """
    if policy is not None and not isinstance(policy, CachePolicy):
        raise ConfigurationError(f"policy={policy!r}: give a CachePolicy.")
    entities = Entities(models, policy or CachePolicy())
    return _register_async(factory, store, entities) if is_async(factory) else _register(factory, store, entities)


def _register(factory: Any, store: Any, entities: Entities) -> WriteThroughCache:
    target = session_class_of(factory)
    _require_unregistered(factory, target)
    opened = _open(store)
    if isinstance(opened, AsyncMemcachedStore):
        raise ConfigurationError(
            f"{factory!r} makes synchronous sessions, and an AsyncMemcachedStore serves asynchronous ones: "
            "give its URL."
        )
    try:
        cache = WriteThroughCache(target, factory, opened, entities)
    except BaseException:
        opened.close()
        raise
    setattr(target, REGISTRATION, cache)
    return cache


def _register_async(factory: Any, store: Any, entities: Entities) -> AsyncWriteThroughCache:
    _require_unregistered(factory, sync_class_of(factory))
    opened = _open_for_loops(store)
    target, undo = with_class_of_its_own(factory)
    try:
        cache = WriteThroughCache(target, factory, opened, entities)
    except BaseException:
        undo()
        opened.close()
        raise
    setattr(target, REGISTRATION, cache)
    return AsyncWriteThroughCache(cache, undo)


def _require_unregistered(factory: Any, target: type) -> None:
    if REGISTRATION in vars(target):
        raise ConfigurationError(
            f"{factory!r} is registered already. Call unregister() on what the first register() returned, or use that."
        )


def _open(store: Any) -> Store:
    if isinstance(store, str):
        return open_store(store)
    if isinstance(store, CacheRegion):
        return store_of(store)
    if isinstance(store, Store):
        return store
    raise ConfigurationError(f"{store!r} is no store: give a URL, a configured dogpile.cache region, or a Store.")


def _open_for_loops(store: Any) -> Store:
    if isinstance(store, str):
        return open_async_store(store)
    opened = _open(store)
    if getattr(opened, "blocks", True):
        raise ConfigurationError(
            f"{store!r} would block the event loop of asynchronous sessions: give a memcached:// or memory:// URL. A "
            "store of your own that never blocks says so with `blocks = False`."
        )
    return opened
