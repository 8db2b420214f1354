"""Targets of many-to-one relationships that `selectinload` loads: all of them in one read of the cache.

    select(Order).options(selectinload(Order.customer), from_cache(Order.customer))

The orders come from the database; the SELECT of their customers, which SQLAlchemy's loader executes next, is a lookup
by primary keys in all but its form, and is answered as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.engine import Result
from sqlalchemy.orm import ORMExecuteState, RelationshipDirection, RelationshipProperty

from sa_writethrough import _loader_options, _relationships, _sqla
from sa_writethrough.core import Core
from sa_writethrough.entities import Family
from sa_writethrough.loading import Loading, Question
from sa_writethrough.options import from_cache
from sa_writethrough.policy import CacheMode, Reads

__all__ = ["Targets"]


class Targets:
    """Answers `selectinload`s of many-to-one relationships, for one registration."""

    def __init__(self, core: Core, loading: Loading) -> None:
        self._entities = core.entities
        self._loading = loading

    def on_execute(self, state: ORMExecuteState) -> Result[Any] | None:
        """Return the targets of a relationship, or None to let SQLAlchemy go on."""
        relationship = _relationships.loaded_relationship(state)
        if not isinstance(relationship, RelationshipProperty) or _sqla.changes_to_come(state):
            return None
        family = self._entities.family_of(relationship.mapper)
        if family is None or not family.served or relationship.direction is not RelationshipDirection.MANYTOONE:
            return None
        mode = _mode(state, _sqla.options_of(state.statement), relationship, family)
        identities = _loader_options.selected_targets(state, relationship)
        if mode is CacheMode.IGNORE or identities is None or not _sqla.is_plain_load(state):
            return None
        return self._found(state, family, relationship, mode, identities)

    def _found(
        self,
        state: ORMExecuteState,
        family: Family,
        relationship: RelationshipProperty[Any],
        mode: CacheMode,
        identities: list[tuple[Any, ...]],
    ) -> Result[Any] | None:
        session = state.session
        if any(_sqla.is_expired(session, (family.identity_class, identity, None)) for identity in identities):
            return None  # the SELECT refreshes them
        held = set(_sqla.states_of(session).values())
        arguments = {name: value for name, value in state.bind_arguments.items() if name != "clause"}
        question = Question(session, family, relationship.mapper, mode, arguments or None, state.execution_options)
        found = self._loading.lookup(question, identities)
        if found is None:
            return None
        carried = [option for option in _sqla.options_of(state.statement) if option.propagate_to_loaders]
        _relationships.carry(state, carried, found, held)
        pairs = [(i, instance) for i, instance in zip(identities, found, strict=True) if instance is not None]
        return _loader_options.targets_result(relationship.mapper, pairs)


def _mode(
    state: ORMExecuteState, options: Sequence[Any], relationship: RelationshipProperty[Any], family: Family
) -> CacheMode:
    """Return what the options say of the relationship; any that changes how it is loaded is for SQLAlchemy's loader."""
    mode = CacheMode.NORMAL if family.policy.reads is Reads.ALWAYS else CacheMode.IGNORE
    for option in options:
        if isinstance(option, from_cache):
            if option.path and _relationships.is_at(state, option.path):
                mode = option.mode
        elif not _loader_options.is_plain_selectin(option, relationship):
            return CacheMode.IGNORE
    return mode
