"""What `register` returns for asynchronous sessions: the same names, coroutines where they do I/O.

Nothing of the library is written twice. SQLAlchemy runs an asynchronous session's work in a greenlet beside the task,
hooks included, and so is every call here; what waits there lets the task await. A task is cancelled
where its code waits, as SQLAlchemy's own calls are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias, TypeVar, overload

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.util import greenlet_spawn

from sa_writethrough.cache import Stats
from sa_writethrough.events import Event
from sa_writethrough.explaining import Explanation
from sa_writethrough.factories import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session, sync_bind
from sa_writethrough.registered import WriteThroughCache

__all__ = ["AsyncWriteThroughCache"]

T = TypeVar("T")
AnyAsyncSession: TypeAlias = "AsyncSession | async_scoped_session[Any]"
AnyBind: TypeAlias = AsyncEngine | AsyncConnection | Engine | Connection


class AsyncWriteThroughCache:
    """One registration of asynchronous sessions, for any number of event loops. Made by `register`.

    `sync_cache` is the same registration for what runs inside `AsyncSession.run_sync`.
    """

    def __init__(self, sync_cache: WriteThroughCache, undo: Callable[[], None]) -> None:
        self.sync_cache = sync_cache
        self._undo: Callable[[], None] | None = undo

    # --- reading ---

    @overload
    async def get(self, session: AnyAsyncSession, entity: type[T], ident: Any) -> T | None: ...
    @overload
    async def get(self, session: AnyAsyncSession, entity: Mapper[T], ident: Any) -> T | None: ...
    async def get(self, session: AnyAsyncSession, entity: Any, ident: Any) -> Any:
        """Return the instance with primary key *ident*, or None; the shortest path. See `WriteThroughCache.get`."""
        return await greenlet_spawn(self.sync_cache.get, _own(session), entity, ident)

    async def get_many(self, session: AnyAsyncSession, entity: type[T], idents: Iterable[Any]) -> list[T | None]:
        """Return the instances with these primary keys, in their order. See `WriteThroughCache.get_many`."""
        return await greenlet_spawn(self.sync_cache.get_many, _own(session), entity, idents)

    async def get_by(self, session: AnyAsyncSession, entity: type[T], **values: Any) -> T | None:
        """Return the instance with this unique key, or None. See `WriteThroughCache.get_by`."""
        return await greenlet_spawn(partial(self.sync_cache.get_by, _own(session), entity, **values))

    async def explain(
        self, session: AnyAsyncSession, statement: Any, *, execution_options: Mapping[str, Any] | None = None
    ) -> Explanation:
        """Tell whether the cache would serve *statement* now, and why or why not. See `WriteThroughCache.explain`."""
        explain = partial(self.sync_cache.explain, execution_options=execution_options)
        return await greenlet_spawn(explain, _own(session), statement)

    async def contains(self, entity: Any, ident: Any, bind: AnyBind | None = None) -> bool:
        """Tell whether an entry for this row can be read now. See `WriteThroughCache.contains`."""
        return await greenlet_spawn(self.sync_cache.contains, entity, ident, sync_bind(bind))

    # --- evicting ---

    async def evict(self, entity: Any, ident: Any, bind: AnyBind | None = None) -> None:
        """Drop one row's entry now, acknowledged. See `WriteThroughCache.evict`."""
        await greenlet_spawn(self.sync_cache.evict, entity, ident, sync_bind(bind))

    async def evict_all(self, *entities: Any, bind: AnyBind | None = None) -> None:
        """Drop every entry of these models, or of all. See `WriteThroughCache.evict_all`."""
        await greenlet_spawn(partial(self.sync_cache.evict_all, *entities, bind=sync_bind(bind)))

    # --- operating ---

    def stats(self) -> Stats:
        """Return the counters since registration, as they are now."""
        return self.sync_cache.stats()

    def subscribe(self, subscriber: Callable[[Event], None]) -> Callable[[], None]:
        """Call *subscriber* with every event from now on, in the loop's thread; return a function that ends it."""
        return self.sync_cache.subscribe(subscriber)

    async def drain(self) -> None:
        """Wait until everything that this loop's tasks sent without waiting has been done or has failed."""
        await greenlet_spawn(self.sync_cache.drain)

    async def unregister(self) -> None:
        """Stop listening and close the store. See `WriteThroughCache.unregister`. A second call does nothing."""
        undo, self._undo = self._undo, None
        if undo is None:
            return
        undo()
        await greenlet_spawn(self.sync_cache.unregister)
        await asyncio.sleep(0)  # the transports close their sockets in the loop's next turn


def _own(session: AnyAsyncSession) -> Session:
    """Return the session that an asynchronous one stands for; of a scoped one that of this scope."""
    own = session() if isinstance(session, async_scoped_session) else session
    return own.sync_session
