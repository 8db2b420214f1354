"""May this session be served from the cache now, and from where: the guard of every lookup.

Knows what the session's transaction allows (isolation, what it wrote itself, which database and schema it is in). No
I/O, but for the very first use of an engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session
from sqlalchemy.util import immutabledict

from sa_writethrough import _sqla
from sa_writethrough.coherence import Intent
from sa_writethrough.core import Core, SessionWork
from sa_writethrough.engines import REPLICA_OPTION, EngineFacts, is_snapshot
from sa_writethrough.entities import Family, Scope
from sa_writethrough.policy import SnapshotReads
from sa_writethrough.rows import Shapes

__all__ = ["NO_OPTIONS", "Route", "Routing"]

NO_OPTIONS: Mapping[str, Any] = immutabledict()


@dataclass(slots=True)
class Route:
    """Where a family's entries are for one session, how they look, and what its reads may do to them."""

    family: Family
    shapes: Shapes
    facts: EngineFacts
    scope: Scope
    intent: Intent
    """Whether its reads may fill them."""
    begun: bool
    """Whether the session has begun on a connection, and may have written."""


class Routing:
    """Finds the route of every lookup of one registration."""

    def __init__(self, core: Core) -> None:
        self._core = core
        # Of sessions that have begun on no connection yet: nothing but the engine matters. None: not served.
        self._idle: WeakKeyDictionary[Engine, dict[Family, Route | None]] = WeakKeyDictionary()

    def route(
        self,
        session: Session,
        family: Family,
        bind_arguments: dict[str, Any] | None = None,
        execution_options: Mapping[str, Any] | None = None,
    ) -> Route | None:
        """Return how *session* may read this family's entries now, or None where it must read the database."""
        bind = _sqla.plain_bind(session)
        if not bind:
            if session.connection_callable is not None:
                return None  # horizontal shards: which of them is the instance's, only its session knows
            bind = session.get_bind(**(bind_arguments or {"mapper": family.base}))
        work = self._core.work_of(session)
        if work is None and (not execution_options or "schema_translate_map" not in execution_options):
            try:
                return self._idle[bind][family]
            except KeyError:  # the first time, or a Connection
                pass
        return self._found(session, family, bind, bind_arguments, execution_options or NO_OPTIONS)

    def _found(
        self,
        session: Session,
        family: Family,
        bind: Engine | Connection,
        bind_arguments: dict[str, Any] | None,
        execution_options: Mapping[str, Any],
    ) -> Route | None:
        core = self._core
        engine = bind.engine
        facts = core.engines.known(engine)
        if facts is None or isinstance(bind, Connection):
            # The first time, and inside somebody else's transaction, begin now: that is where the facts are learnt.
            facts = core.engines.learn(session.connection(bind_arguments=bind_arguments or {"mapper": family.base}))
        core.require_fences(family, facts.dialect_name)
        work = core.work_of(session)
        connection, unit = _begun_on(work, bind)
        snapshot = is_snapshot(facts, engine, connection, wrote=unit is not None and unit.wrote)
        if unit is not None and unit.snapshot:
            snapshot = True
        options: Mapping[str, Any] = (engine if connection is None else connection).get_execution_options()
        fills = not snapshot and not facts.replica and not options.get(REPLICA_OPTION)
        if "schema_translate_map" in execution_options:
            options = execution_options
        route = None
        if not snapshot or family.policy.snapshot_reads is SnapshotReads.SERVE:
            scope = core.scope(family, facts, options)
            intent = Intent.FILL if fills else Intent.LOOK
            route = Route(family, core.shapes(family, engine.dialect), facts, scope, intent, work is not None)
        if work is None and options is not execution_options and isinstance(bind, Engine):
            self._idle.setdefault(bind, {})[family] = route
        return route

    def forget(self) -> None:
        """Find every route anew: a family has got another class."""
        self._idle.clear()

    def wrote(self, session: Session, keys: Iterable[str | None], epoch: str) -> bool:
        """Tell whether the session's own transaction touched one of these rows: it must see what it wrote."""
        work = self._core.work_of(session)
        units = () if work is None else [unit for _, unit in work.units if unit.wrote]
        return any(unit.touches(key, epoch) for unit in units for key in keys)


def _begun_on(work: SessionWork | None, bind: Engine | Connection) -> tuple[Connection | None, Any]:
    for connection, unit in () if work is None else work.units:
        if connection is bind or connection.engine is bind:
            return connection, unit
    return None, None
