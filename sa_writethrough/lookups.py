"""Answers `do_orm_execute` for lookups by identity: the session's part, and the results."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy.engine import Result
from sqlalchemy.orm import Mapper, ORMExecuteState, Session
from sqlalchemy.orm.attributes import instance_state

from sa_writethrough import _relationships, _sqla
from sa_writethrough.guard import Guard, Lookup
from sa_writethrough.loading import Loading, Question
from sa_writethrough.pointing import Pointing

__all__ = ["Lookups"]


class Lookups:
    """Answers `do_orm_execute` for one registration."""

    def __init__(self, guard: Guard, loading: Loading, pointing: Pointing) -> None:
        self._guard = guard
        self._loading = loading
        self._pointing = pointing
        self._metadata: WeakKeyDictionary[Mapper[Any], Any] = WeakKeyDictionary()

    def on_execute(self, state: ORMExecuteState) -> Result[Any] | None:
        """Return the rows of a lookup, or None to let SQLAlchemy go on."""
        if not self._guard.may_be_lookup(state):
            return None
        lookup = self._guard.lookup_of(state)
        if type(lookup) is not Lookup:
            return None
        session = state.session
        _sqla.autobegin(session)
        if _sqla.flushes_first(state):
            _sqla.autoflush(session)
        if lookup.unique is None and _sqla.states_of(session):
            keys = [(lookup.family.identity_class, identity, None) for identity in lookup.identities]
            if any(_sqla.is_expired(session, key) for key in keys):
                return None  # the SELECT refreshes them
        held = set(_sqla.states_of(session).values()) if lookup.carried else ()
        found = self._found(state, lookup)
        if found is None:
            return None
        if lookup.carried:
            _relationships.carry(state, lookup.carried, found, held)
        if lookup.eager and found[0] is not None and not _load_eagerly(lookup, session, found[0], held):
            return None
        metadata = self._metadata.get(lookup.mapper)
        if metadata is None:
            metadata = self._metadata[lookup.mapper] = _sqla.entity_metadata(lookup.mapper)
        return _sqla.entity_result(metadata, [instance for instance in found if instance is not None])

    def _found(self, state: ORMExecuteState, lookup: Lookup) -> Sequence[Any] | None:
        arguments = {k: v for k, v in state.bind_arguments.items() if k != "clause"}
        asked = state.session, lookup.family, lookup.mapper
        options = state.execution_options
        if lookup.unique is not None:
            question = Question(*asked, lookup.mode, arguments or None, options)
            return self._pointing.find(question, lookup.unique, lookup.identities[0])
        if len(lookup.identities) == 1:
            return self._loading.lookup_one(
                *asked,
                lookup.identities[0],
                mode=lookup.mode,
                bind_arguments=arguments or None,
                execution_options=options,
            )
        return self._loading.lookup(Question(*asked, lookup.mode, arguments or None, options), lookup.identities)


def _load_eagerly(lookup: Lookup, session: Session, instance: Any, held: Collection[Any]) -> bool:
    """Load the relationships that are wanted at once; False where an instance was there that keeps its own options.

    Then the SELECT loads what it lacks by those of the statement.
    """
    if instance_state(instance) in held:
        return False
    with session.no_autoflush:
        for name, further in lookup.eager.items():
            value = getattr(instance, name)
            one = further and value is not None and not lookup.mapper.relationships[name].uselist
            if one and not _relationships.carries(value, lookup.carried):
                return False
    return True
