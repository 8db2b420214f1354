"""memcached as a store of event loops: the same conversations as `memcached`, over asyncio's transports.

Whoever calls runs in SQLAlchemy's greenlet beside a task, and a wait switches to that task (`_loops`): no socket blocks
the loop, and no thread is needed. What is posted waits for nothing: where a connection has first to be opened, a task
of the store's own does that.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from sa_writethrough.coherence import Change, Failed, Intent, Outcome, Reading
from sa_writethrough.exceptions import CacheUnavailableError, WriteThroughError
from sa_writethrough.stores import _plans as plans
from sa_writethrough.stores._batches import results
from sa_writethrough.stores._connecting import Address
from sa_writethrough.stores._conversing import LOOKING, MAX_ITEM_BYTES, Nodes, settled_together
from sa_writethrough.stores._direct import ReadingOne
from sa_writethrough.stores._loop_connection import LoopConnection
from sa_writethrough.stores._loop_node import LoopNode
from sa_writethrough.stores._loops import await_only, in_greenlet, running_loop
from sa_writethrough.stores._node import NodeOptions
from sa_writethrough.stores._pipeline import Run
from sa_writethrough.stores.base import Reply

__all__ = ["AsyncMemcachedStore"]


class AsyncMemcachedStore(Nodes[LoopNode]):
    """Keep entries in one memcached or several, for asynchronous sessions. `open_async_store` makes one from a URL.

    *lease_ttl* and *max_item_bytes* are those of `MemcachedStore`. Of `options` the size of a pool means nothing: all
    tasks of a loop share one connection to each node.
    """

    blocks = False

    def __init__(
        self,
        addresses: Sequence[Address],
        options: NodeOptions | None = None,
        *,
        lease_ttl: float = 10.0,
        max_item_bytes: int = MAX_ITEM_BYTES,
    ) -> None:
        nodes = [LoopNode(address, options or NodeOptions()) for address in addresses]
        super().__init__(nodes, lease_ttl, max_item_bytes)
        self._posting: set[asyncio.Task[None]] = set()

    # --- reading -----------------------------------------------------------------------------------------------------

    def _read_one(self, key: str, epoch: str, intent: Intent) -> Reading:
        """The hot path: one run, of which the usual answer is understood as a whole."""
        node = self._owner(key)
        try:
            connection = node.take_checked()
        except CacheUnavailableError as error:
            return Failed(error)
        known = node.epochs.get(epoch)
        if known is not None and connection.binds_tokens:
            commands = known.asking + key.encode() + (self._leasing if intent is Intent.FILL else LOOKING)
        else:
            commands = plans.read_commands((key,), epoch, intent, self._lease_ttl, connection.fresh)
        run = ReadingOne(node, connection, key, epoch, intent, commands)
        connection.begin(run, commands)
        return results(node, run, 1)[0]

    def _abandon(self, runs: Sequence[Run[Reading]]) -> None:
        """See to it that the leases of *runs* are given back: the task was cancelled."""
        for run in runs:
            if isinstance(run.connection, LoopConnection):
                run.connection.orphan(run)

    # --- writing -----------------------------------------------------------------------------------------------------

    def submit(self, changes: Sequence[Change]) -> Reply:
        """Send *changes* now. See `Store.submit`."""
        return super().submit(changes) if changes else _Posted(self)

    def post(self, changes: Sequence[Change]) -> None:
        """Send *changes* and return. See `Store.post`. Outside of an event loop they are dropped.

        Of several changes of one key the last alone is not waited for: nobody in the library posts such.
        """
        settled = settled_together(changes)
        if not changes or (settled is not None and self._settle(settled)):
            return
        try:
            loop = running_loop()
        except CacheUnavailableError:
            return
        if all(node.is_ready for node in self._nodes):
            self._batch(changes).push()
            return
        task = loop.create_task(self._post_later(changes))
        self._posting.add(task)
        task.add_done_callback(self._posting.discard)

    async def _post_later(self, changes: Sequence[Change]) -> None:
        with contextlib.suppress(WriteThroughError):
            await in_greenlet(self._post_waiting, changes)

    def _post_waiting(self, changes: Sequence[Change]) -> None:
        self._batch(changes).wait()

    def wait_for_posted(self) -> None:
        """Wait until all that the running loop's tasks have posted is done or has failed."""
        loop = running_loop()
        if own := [task for task in list(self._posting) if task.get_loop() is loop]:
            await_only(asyncio.wait(own))
        for node in self._nodes:
            node.drain()


class _Posted:
    """The reply to an empty batch: everything that was posted before is done."""

    def __init__(self, store: AsyncMemcachedStore) -> None:
        self._store = store

    def wait(self) -> Sequence[Outcome]:
        """Wait until no connection of the running loop owes anything."""
        self._store.wait_for_posted()
        return []
