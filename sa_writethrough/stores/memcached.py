"""memcached as a store: shares keys out among the nodes, and puts their answers together again.

The conversations are in `_plans`, the connections in `_nodes`; here is who takes part. Tombstones can be lost (by
eviction or restart), so `keeps_tombstones` is false: a fill needs the database's word.

Before 1.6.27 the ids of items restart with the server, and a lease from before may match an item from after. A restart
closes every connection, so what a token allows is done over the connection that took it, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from sa_writethrough.coherence import Change, Failed, Hit, Intent, Reading
from sa_writethrough.exceptions import CacheUnavailableError, ConfigurationError
from sa_writethrough.stores import _meta as meta
from sa_writethrough.stores import _plans as plans
from sa_writethrough.stores._batches import Barrier, Batch, parts_of, results, start, token_maker, waves_of
from sa_writethrough.stores._connecting import Address
from sa_writethrough.stores._connection import Connection, Plan, Run
from sa_writethrough.stores._nodes import Node, NodeOptions, Ring
from sa_writethrough.stores.base import Reply

__all__ = ["MAX_ITEM_BYTES", "MemcachedStore"]

MAX_ITEM_BYTES = 1024 * 1024 - 1024
"""What fits under memcached's default limit (`-I 1m`) with the item's header and key."""
_EPOCH_UNKNOWN = (b"\r\n", b"")
"""No answer begins like this."""


class MemcachedStore:
    """Keep entries in one memcached or several. `open_store` makes one from a URL.

    *lease_ttl* is how long, in seconds, a reader that never fills keeps the others from filling. A row or bytes of more
    than *max_item_bytes* are not stored; the server's own limit (`-I`) must not be lower.
    """

    keeps_tombstones = False

    def __init__(
        self,
        addresses: Sequence[Address],
        options: NodeOptions | None = None,
        *,
        lease_ttl: float = 10.0,
        max_item_bytes: int = MAX_ITEM_BYTES,
    ) -> None:
        if not addresses or len(set(addresses)) < len(addresses):
            raise ConfigurationError("MemcachedStore: name every node once, and at least one")
        self._nodes = tuple(Node(address, options or NodeOptions()) for address in addresses)
        self._ring = Ring(self._nodes)
        self._lease_ttl = meta.expiry(lease_ttl)
        self._max_bytes = max_item_bytes
        self._owner: Callable[[str], Node] = self._ring.owner
        if len(self._nodes) == 1:
            self._owner = partial(_always, self._nodes[0])

    def __repr__(self) -> str:
        return f"MemcachedStore({', '.join(node.name for node in self._nodes)})"

    # --- reading -----------------------------------------------------------------------------------------------------

    def read(self, keys: Sequence[str], epoch: str | None, intent: Intent) -> Sequence[Reading]:
        """Read *keys* of *epoch*, in one round trip per node. See `Store.read`."""
        if len(keys) == 1 and epoch is not None:
            return [self._read_one(keys[0], epoch, intent)]
        if keys and len(self._nodes) == 1:
            (node,) = self._nodes
            return results(node, self._start_read(node, keys, epoch, intent), len(keys))
        places: dict[Node, list[int]] = {}
        for place, key in enumerate(keys):
            places.setdefault(self._owner(key), []).append(place)
        runs: list[tuple[Node, list[int], Run[Reading]]] = []
        for node, wanted in places.items():
            run = self._start_read(node, [keys[place] for place in wanted], epoch, intent)
            runs.append((node, wanted, run))
        readings: dict[int, Reading] = {}
        for node, wanted, run in runs:
            readings.update(zip(wanted, results(node, run, len(wanted)), strict=True))
        return [readings[place] for place in range(len(keys))]

    def _start_read(self, node: Node, keys: Sequence[str], epoch: str | None, intent: Intent) -> Run[Reading]:
        (run,) = node.start([partial(self._read_plan, node, keys, epoch, intent)])
        return run

    def _read_one(self, key: str, epoch: str, intent: Intent) -> Reading:
        """The hot path: no run and no plan, unless the answer is anything but the usual one."""
        node = self._owner(key)
        try:
            connection = node.take()
        except CacheUnavailableError as error:
            return Failed(error)
        try:
            commands = self._commands((key,), epoch, intent, connection)
            answer = b""
            if not (owes := connection.owes):
                answer = connection.exchange(b"".join(commands))
                line, stamp = node.epochs.get(epoch, _EPOCH_UNKNOWN)
                row = meta.hit(answer, line, stamp)
                if row is not None:
                    return Hit(row)
            run = Run(self._read_plan(node, (key,), epoch, intent, connection, commands), connection)
            if owes:
                connection.enqueue(run)
            else:
                connection.adopt(run, answer)
            connection.finish(run)
        finally:
            node.give(connection)
        return results(node, run, 1)[0]

    def _commands(self, keys: Sequence[str], epoch: str | None, intent: Intent, connection: Connection) -> list[bytes]:
        return plans.read_commands(keys, epoch, intent, self._lease_ttl, connection.fresh)

    def _read_plan(  # noqa: PLR0917 - bound by `partial` to all but the last
        self,
        node: Node,
        keys: Sequence[str],
        epoch: str | None,
        intent: Intent,
        connection: Connection,
        commands: Sequence[bytes] | None = None,
    ) -> Plan[Reading]:
        if commands is None:
            commands = self._commands(keys, epoch, intent, connection)
        token = token_maker(node, connection)
        return plans.read(keys, epoch, intent, commands=commands, token=token, remember=node.remember)

    # --- writing -----------------------------------------------------------------------------------------------------

    def submit(self, changes: Sequence[Change]) -> Reply:
        """Send *changes* now. See `Store.submit`."""
        if not changes:
            return Barrier(self._nodes)
        *earlier, last = waves_of(changes)
        batch = Batch(changes)
        for wave in earlier:
            batch.add(start(parts_of(changes, wave, self._owner, self._nodes, self._max_bytes)))
            batch.wait()
        batch.add(start(parts_of(changes, last, self._owner, self._nodes, self._max_bytes)))
        return batch

    def post(self, changes: Sequence[Change]) -> None:
        """Send *changes* and return. See `Store.post`. To evict, an answer must be waited for all the same."""
        *earlier, last = waves_of(changes)
        batch = Batch(changes)
        for wave in earlier:
            batch.add(start(parts_of(changes, wave, self._owner, self._nodes, self._max_bytes)))
            batch.wait()
        batch.add(start(parts_of(changes, last, self._owner, self._nodes, self._max_bytes)))
        batch.push()

    def close(self) -> None:
        """Close every connection, after what it owes."""
        for node in self._nodes:
            node.close()


def _always(node: Node, _key: str) -> Node:
    return node
