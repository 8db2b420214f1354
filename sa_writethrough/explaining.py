"""What would become of a statement, in words. The guard is the one that serves; only nothing is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import ORMExecuteState

from sa_writethrough import _sqla
from sa_writethrough.coherence import Hit, Intent
from sa_writethrough.core import Core
from sa_writethrough.guard import Guard, Lookup
from sa_writethrough.routing import Routing

__all__ = ["EXPLAIN_OPTION", "Explaining", "Explanation"]

EXPLAIN_OPTION = "_sa_writethrough_explain"
"""Execution option: a list for the explanation of the statement, which is not executed."""

_EXPIRED = "the session holds an expired instance, which the SELECT refreshes"
_UNSERVED = "the session reads from a snapshot, or from a shard that only it knows"
_NO_TEXT = "the key that is asked for has no one text: NULL, a float, or two values that look alike"
_WROTE = "the session's own transaction has written such a row, or may have"
_CACHED = "it is a lookup by identity, and every row is cached"
_POINTED = "it is a lookup by unique key, which is known to point to a row"
_ABSENT = "it is a lookup, and not all of it is cached now; what the database says is filled where it may be"


@dataclass(frozen=True, slots=True)
class Explanation:
    """What would become of a statement now.

    served: the cache would answer. reason: why, or why not. keys: of the entries that it asks for.
    """

    served: bool
    reason: str
    keys: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{'served from the cache' if self.served else 'read from the database'}: {self.reason}"


class Explaining:
    """Explains statements, for one registration."""

    def __init__(self, core: Core, guard: Guard, routing: Routing) -> None:
        self._cache = core.cache
        self._guard = guard
        self._routing = routing

    def explain(self, state: ORMExecuteState) -> Explanation:
        """Return what would become of the statement that is about to be executed."""
        lookup = self._guard.lookup_of(state)
        if isinstance(lookup, str):
            return Explanation(served=False, reason=lookup)
        if any(_sqla.is_expired(state.session, (lookup.family.identity_class, i, None)) for i in lookup.identities):
            return Explanation(served=False, reason=_EXPIRED)
        return self._looked_up(state, lookup)

    def _looked_up(self, state: ORMExecuteState, lookup: Lookup) -> Explanation:
        arguments = {name: value for name, value in state.bind_arguments.items() if name != "clause"}
        route = self._routing.route(state.session, lookup.family, arguments or None, state.execution_options)
        if route is None:
            return Explanation(served=False, reason=_UNSERVED)
        keys: Sequence[str] | None
        if lookup.unique is None:
            keys = lookup.family.keys(route.scope, lookup.identities)
        else:
            pointer = lookup.unique.key(route.scope, lookup.identities[0])
            keys = None if pointer is None else [pointer]
        if keys is None:
            return Explanation(served=False, reason=_NO_TEXT)
        if self._routing.wrote(state.session, keys, route.scope.epoch):
            return Explanation(served=False, reason=_WROTE, keys=tuple(keys))
        readings = self._cache.store.read(keys, route.scope.epoch, Intent.LOOK)
        if not all(type(reading) is Hit for reading in readings):
            return Explanation(served=False, reason=_ABSENT, keys=tuple(keys))
        return Explanation(served=True, reason=_CACHED if lookup.unique is None else _POINTED, keys=tuple(keys))
