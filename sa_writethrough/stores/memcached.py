"""memcached as a store: shares keys out among the nodes, and puts their answers together again.

The conversations are in `_plans`, the connections in `_nodes`; here is who takes part. Tombstones can be lost (by
eviction or restart), so `keeps_tombstones` is false: a fill needs the database's word.

Before 1.6.27 the ids of items restart with the server, and a lease from before may match an item from after. A restart
closes every connection, so what a token allows is done over the connection that took it, or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence

from sa_writethrough.coherence import Failed, Intent, Reading
from sa_writethrough.exceptions import CacheUnavailableError
from sa_writethrough.stores import _meta as meta
from sa_writethrough.stores import _plans as plans
from sa_writethrough.stores._batches import results
from sa_writethrough.stores._connecting import Address
from sa_writethrough.stores._conversing import LOOKING, MAX_ITEM_BYTES, Nodes
from sa_writethrough.stores._direct import ReadingMany
from sa_writethrough.stores._nodes import Node, NodeOptions

__all__ = ["MAX_ITEM_BYTES", "MemcachedStore"]


class MemcachedStore(Nodes[Node]):
    """Keep entries in one memcached or several. `open_store` makes one from a URL.

    *lease_ttl* is how long, in seconds, a reader that never fills keeps the others from filling. A row or bytes of more
    than *max_item_bytes* are not stored; the server's own limit (`-I`) must not be lower.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        options: NodeOptions | None = None,
        *,
        lease_ttl: float = 10.0,
        max_item_bytes: int = MAX_ITEM_BYTES,
    ) -> None:
        super().__init__([Node(address, options or NodeOptions()) for address in addresses], lease_ttl, max_item_bytes)

    def _read_one(self, key: str, epoch: str, intent: Intent) -> Reading:
        """The hot path: no run and no plan, unless the answer is anything but the usual one."""
        node = self._owner(key)
        try:
            connection = node.take()
        except CacheUnavailableError as error:
            return Failed(error)
        try:
            known = node.epochs.get(epoch)
            if known is not None and connection.binds_tokens:
                commands = known.asking + key.encode() + (self._leasing if intent is Intent.FILL else LOOKING)
            else:
                commands = plans.read_commands((key,), epoch, intent, self._lease_ttl, connection.fresh)
            answer = b""
            # Whoever committed before has left an answer, as a rule, which is there.
            if not (owes := connection.owes and (connection.is_stale or connection.owes)):
                answer = connection.exchange(commands)
                row = None if known is None else meta.hit(answer, known)
                if row is not None:
                    return row
            run = ReadingMany(node, connection, (key,), epoch, intent, commands)
            if owes:
                connection.enqueue(run)
            else:
                connection.adopt(run, answer)
            connection.finish(run)
        finally:
            node.give(connection)
        return results(node, run, 1)[0]
