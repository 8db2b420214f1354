"""What the hooks share: one registration's models, engines, shapes and cache, and the unit of each connection."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.engine import Connection, Dialect, Engine
from sqlalchemy.orm import Session

from sa_writethrough import _sqla
from sa_writethrough.cache import EntryCache
from sa_writethrough.engines import EngineFacts, Engines
from sa_writethrough.entities import Entities, Family, Scope
from sa_writethrough.exceptions import ConfigurationError
from sa_writethrough.references import Collections
from sa_writethrough.rows import Shapes
from sa_writethrough.unique import UniqueKeys
from sa_writethrough.unit import Unit

__all__ = ["Core", "SessionWork"]


@dataclass(slots=True)
class SessionWork:
    """What a session's current transaction has begun on, and whether it is flushing."""

    units: list[tuple[Connection, Unit]] = field(default_factory=list)
    flushing: bool = False

    def unit_of(self, connection: Connection) -> Unit | None:
        """Return the unit of one of the session's connections."""
        return next((unit for known, unit in self.units if known is connection), None)


_NO_BIND = "default"
"""The name of the dialect that stands for one while a factory has no bind; sessions have one."""


class Core:
    """One registration. Hashed by identity: it is the key of what it leaves on connections and sessions."""

    def __init__(self, entities: Entities, cache: EntryCache) -> None:
        self.entities = entities
        self.cache = cache
        self.collections = Collections(entities)
        self.unique_keys = UniqueKeys(entities)
        self.engines = Engines()
        self._shapes: dict[tuple[Family, str, str], Shapes] = {}

    def shapes(self, family: Family, dialect: Dialect) -> Shapes:
        """Return how the family's rows look in this dialect; raise `ConfigurationError` for a type without a codec."""
        # Of one database, drivers return some values in ways of their own. No engine is known yet: no driver either.
        kind = family, dialect.name, getattr(dialect, "driver", "")
        shapes = self._shapes.get(kind)
        if shapes is None or len(shapes.layouts) != len(family.mappers):
            shapes = Shapes(family, dialect)
            self._shapes[kind] = shapes
        return shapes

    def require_fences(self, family: Family, dialect_name: str) -> None:
        """Raise `ConfigurationError` if absence is to be cached where a row may be inserted unseen."""
        fenced = dialect_name == _NO_BIND or (dialect_name == "sqlite" and self.cache.store.keeps_tombstones)
        if family.policy.negative and not fenced:
            raise ConfigurationError(
                f"CachePolicy(negative=True) of {family.base.class_.__name__}: on {dialect_name} with a "
                f"{type(self.cache.store).__name__} nothing tells a reader that a row is about to be inserted. "
                "Absence is cached on SQLite with the embedded store (memory://) alone; leave it out here."
            )

    def scope(self, family: Family, facts: EngineFacts, options: Mapping[str, Any]) -> Scope:
        """Return where the family's keys are, under the execution options of a connection or a statement."""
        translated = options.get("schema_translate_map")
        return family.scope(facts.database, translated, default_schema=facts.schema, folds=facts.folds)

    def scope_in(self, family: Family, bind: Engine | Connection) -> Scope:
        """Return where the family's keys are in the database of *bind*; connects if that was never used."""
        facts = self.engines.known(bind.engine)
        if facts is None:
            with bind.engine.connect() as connection:
                facts = self.engines.learn(connection)
        return self.scope(family, facts, bind.get_execution_options())

    def scopes(self, family: Family, bind: Engine | Connection | None) -> list[Scope]:
        """Return every scope of the family that was seen, and that of *bind*."""
        if bind is not None:
            self.scope_in(family, bind)
        scopes = family.scopes()
        if not scopes:
            raise ConfigurationError(
                f"Which database holds {family.base.class_.__name__} is not known yet: no session has begun. "
                "Give bind=engine, or bind the Session factory."
            )
        return scopes

    # --- units ---

    def unit_of(self, connection: Connection) -> Unit | None:
        """Return what the connection's transaction touched, if a registered session ever began on it."""
        pooled = _sqla.pooled(connection)  # `connection.info` is the same, three calls further away
        unit: Unit | None = None if pooled is None else pooled.info.get(self)
        return unit

    def join(self, session: Session, connection: Connection) -> Unit:
        """Return the connection's unit, made now if there is none, and note that *session* works on it."""
        unit = self.unit_of(connection)
        if unit is None:
            unit = connection.info[self] = Unit()
        unit.session = weakref.ref(session)
        unit.connection = weakref.ref(connection)
        work = self.work_of(session)
        if work is None:
            session.info[self] = SessionWork([(connection, unit)])
        elif work.unit_of(connection) is None:
            work.units.append((connection, unit))
        return unit

    def work_of(self, session: Session) -> SessionWork | None:
        """Return what the session's current transaction has begun on."""
        work: SessionWork | None = _sqla.info_of(session).get(self)
        return work

    def part(self, session: Session) -> None:
        """Forget what the session's transaction had begun on: it is over."""
        _sqla.info_of(session).pop(self, None)
