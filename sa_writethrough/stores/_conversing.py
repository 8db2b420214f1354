"""What the stores on memcached have in common, whoever waits for the answers: thread or event loop.

The conversations are in `_plans`, the connections behind the nodes; here is who takes part, and how the nodes' answers
are put together again.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from sa_writethrough.coherence import Announce, Change, Failed, Fill, Intent, Publish, Reading, Retract
from sa_writethrough.exceptions import CacheUnavailableError, ConfigurationError
from sa_writethrough.stores import _meta as meta
from sa_writethrough.stores import _plans as plans
from sa_writethrough.stores._batches import Barrier, Batch, Refused, parts_of, results, start, waves_of
from sa_writethrough.stores._direct import Announcing, ReadingMany, Settlement, Settling
from sa_writethrough.stores._node import NodeBase
from sa_writethrough.stores._nodes import Ring
from sa_writethrough.stores._pipeline import PART_BYTES, Pipeline, Run
from sa_writethrough.stores._plans import ItemToken
from sa_writethrough.stores.base import Reply as StoreReply

__all__ = ["MAX_ITEM_BYTES", "Nodes", "settled_together"]

N = TypeVar("N", bound=NodeBase[Any])

MAX_ITEM_BYTES = 1024 * 1024 - 1024
"""What fits under memcached's default limit (`-I 1m`) with the item's header and key."""
LOOKING = meta.LOOKING.encode()
_FEW = 64
"""As many changes as are sent and understood as a whole."""


class Nodes(Generic[N]):
    """Entries in one memcached or several."""

    keeps_tombstones = False

    def __init__(self, nodes: Sequence[N], lease_ttl: float, max_item_bytes: int) -> None:
        names = {node.name for node in nodes}
        if not nodes or len(names) < len(nodes):
            raise ConfigurationError(f"{type(self).__name__}: name every node once, and at least one")
        self._nodes = tuple(nodes)
        self._ring = Ring(self._nodes)
        self._lease_ttl = meta.expiry(lease_ttl)
        for node in nodes:
            node.lease_ttl = self._lease_ttl
        self._leasing = meta.leasing(self._lease_ttl).encode()
        self._max_bytes = max_item_bytes
        self._owner: Callable[[str], N] = self._ring.owner
        if len(self._nodes) == 1:
            self._owner = partial(_always, self._nodes[0])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(node.name for node in self._nodes)})"

    # --- reading -----------------------------------------------------------------------------------------------------

    def read(self, keys: Sequence[str], epoch: str | None, intent: Intent) -> Sequence[Reading]:
        """Read *keys* of *epoch*, in one round trip per node. See `Store.read`."""
        if len(keys) == 1 and epoch is not None:
            return [self._read_one(keys[0], epoch, intent)]
        if keys and len(self._nodes) == 1:
            (node,) = self._nodes
            return results(node, self._start_read(node, keys, epoch, intent), len(keys))
        places: dict[N, list[int]] = {}
        for place, key in enumerate(keys):
            places.setdefault(self._owner(key), []).append(place)
        runs: list[tuple[N, list[int], Run[Reading]]] = []
        readings: dict[int, Reading] = {}
        try:
            for node, wanted in places.items():
                run = self._start_read(node, [keys[place] for place in wanted], epoch, intent)
                runs.append((node, wanted, run))
            for node, wanted, run in runs:
                readings.update(zip(wanted, results(node, run, len(wanted)), strict=True))
        except BaseException:
            self._abandon([run for _, _, run in runs])
            raise
        return [readings[place] for place in range(len(keys))]

    def _abandon(self, runs: Sequence[Run[Reading]]) -> None:
        """Take note that nobody waits for *runs* any more."""

    @abstractmethod
    def _read_one(self, key: str, epoch: str, intent: Intent) -> Reading:
        """Read one key: the hot path."""

    def _start_read(self, node: N, keys: Sequence[str], epoch: str | None, intent: Intent) -> Run[Reading]:
        try:
            connection = node.take_checked()
        except CacheUnavailableError as error:
            return Run.failed(error)
        try:
            run = self._reading(node, connection, keys, epoch, intent)
            connection.enqueue(run)
            connection.flush()
            return run
        finally:
            node.give(connection)

    def _reading(
        self, node: N, connection: Pipeline, keys: Sequence[str], epoch: str | None, intent: Intent
    ) -> Run[Reading]:
        commands = plans.read_commands(keys, epoch, intent, self._lease_ttl, connection.fresh)
        return ReadingMany(node, connection, keys, epoch, intent, commands)

    # --- writing -----------------------------------------------------------------------------------------------------

    def submit(self, changes: Sequence[Change]) -> StoreReply:
        """Send *changes* now. See `Store.submit`."""
        if not changes:
            return Barrier(self._nodes)
        announced = self._announced_together(changes)
        if announced is not None:
            return self._announce(*announced)
        return self._batch(changes)

    def post(self, changes: Sequence[Change]) -> None:
        """Send *changes* and return. See `Store.post`. To evict, an answer must be waited for all the same."""
        settled = settled_together(changes)
        if settled is None or not self._settle(settled):
            self._batch(changes).push()

    def _batch(self, changes: Sequence[Change]) -> Batch:
        *earlier, last = waves_of(changes)
        batch = Batch(changes)
        for wave in earlier:
            batch.add(start(parts_of(changes, wave, self._owner, self._nodes, self._max_bytes)))
            batch.wait()
        batch.add(start(parts_of(changes, last, self._owner, self._nodes, self._max_bytes)))
        return batch

    def _announced_together(self, changes: Sequence[Change]) -> tuple[N, list[Announce]] | None:
        """Return *changes* with their node, if they are few announcements of one epoch, of different keys, on one."""
        first = changes[0]
        if not isinstance(first, Announce) or len(changes) > _FEW:
            return None
        node, epoch = self._owner(first.key), first.epoch
        if len(changes) == 1:
            return node, [first]
        announced = [
            change
            for change in changes
            if isinstance(change, Announce) and change.epoch == epoch and self._owner(change.key) is node
        ]
        # A key that comes twice has two tombstones, one after the other; the epoch's own would be another epoch's.
        return (node, announced) if len({change.key for change in announced}) == len(changes) else None

    def _announce(self, node: N, changes: list[Announce]) -> StoreReply:
        try:
            connection = node.take_checked()
        except CacheUnavailableError as error:
            return Refused([Failed(error)] * len(changes))
        try:
            commands = b"".join(plans.announce_commands(changes, connection.fresh))
            run = Announcing(node, connection, changes, commands)
            connection.begin(run, commands)
        finally:
            node.give(connection)
        return run

    def _settle(self, changes: Sequence[tuple[Settlement, ItemToken]]) -> bool:
        """Send *changes*, all over one connection, now or by the thread that is using it. Whether it could be done."""
        own = changes[0][1]
        connection = own.connection
        if connection is None or not connection.is_usable:
            return False
        commands = b"".join([plans.settling(change, own, connection.fresh, self._max_bytes) for change, own in changes])
        if len(commands) > PART_BYTES:
            return False
        run = Settling(connection, changes, commands, self._max_bytes)
        connection.send_apart(run, commands)
        return True

    def close(self) -> None:
        """Close every connection, after what it owes."""
        for node in self._nodes:
            node.close()


def settled_together(changes: Sequence[Change]) -> list[tuple[Settlement, ItemToken]] | None:
    """Return *changes* with their tokens, if they are few, settle different keys, and go over one connection."""
    if not changes or len(changes) > _FEW:
        return None
    connection: Pipeline | None = None
    settled: list[tuple[Settlement, ItemToken]] = []
    for change in changes:
        if not isinstance(change, Publish | Fill | Retract) or not isinstance(own := change.token, ItemToken):
            return None
        if settled and own.connection is not connection:
            return None
        connection = own.connection
        settled.append((change, own))
    return settled if len({change.key for change in changes}) == len(changes) else None


def _always(node: N, _key: str) -> N:
    return node
