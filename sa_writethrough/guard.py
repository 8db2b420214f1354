"""The guard: which statements are lookups by identity, and of the others, why they are none.

What is not surely `select(Entity).where(whole primary key)`, or a whole unique key, is none: extra criteria, joins,
limits, locks, loader options, refreshes, `populate_existing` all go to the database as if the library were absent. The
reasons are constants: a statement that is none costs no more for having one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sqlalchemy.orm import Mapper, ORMExecuteState
from sqlalchemy.sql import Select

from sa_writethrough import _loader_options, _relationships, _sqla
from sa_writethrough.core import Core
from sa_writethrough.criteria import equalities_of, identities_of
from sa_writethrough.entities import Family
from sa_writethrough.options import from_cache
from sa_writethrough.policy import CacheMode, Reads
from sa_writethrough.unique import UniqueKey

__all__ = ["NO_SELECT", "Guard", "Lookup"]

NO_SELECT = "it is no select()"
_OTHERS = "another do_orm_execute listener comes after this one, and may change the statement"
_NO_ENTITY = "it selects something else than one mapped class"
_NOT_CACHED = "the class is not cached by this registration"
_CONCRETE = "concrete subclasses have tables of their own: an entry does not say all there is to an identity"
_NOT_ASKED = "neither does it have the option from_cache() nor the class the policy Reads.ALWAYS"
_BYPASSED = "bypass_cache() or CacheMode.IGNORE was asked for"
_FOREIGN = "it has an option that only SQLAlchemy's own loader honours"
_EAGER_MANY = (
    "it wants relationships of several rows loaded at once, for which SQLAlchemy's own loader has better means"
)
_NOT_PLAIN_LOAD = (
    "more than loading whole rows is asked for: populate_existing, a refresh, yield_per, stream_results, a shard, an "
    "identity token, or a bind of the statement's own"
)
_NOT_PLAIN_SELECT = "it has more than WHERE: ORDER BY, LIMIT, joins, DISTINCT, FOR UPDATE, prefixes or the like"
_NO_KEY = "its WHERE asks for something else than a whole primary key, or a whole unique key that the policy names"

_Identities: TypeAlias = list[tuple[Any, ...]]


@dataclass(slots=True)
class Lookup:
    """A statement that asks for rows by their whole primary keys. Not frozen: one is made for every hit."""

    family: Family
    mapper: Mapper[Any]
    identities: _Identities
    mode: CacheMode
    unique: UniqueKey | None = None
    """By which it asks instead; the identities are its values then."""
    carried: Sequence[Any] = ()
    """Options that go on to the loaders of the instances' relationships."""
    eager: Mapping[str, bool] = field(default_factory=dict)
    """Relationships that are loaded at once, and whether with them anything further is; for one instance alone."""


class Guard:
    """Tells lookups from other statements, for one registration."""

    def __init__(self, core: Core) -> None:
        self._entities = core.entities
        self._unique_keys = core.unique_keys
        self._served: dict[Family, bool] = {}

    def forget(self) -> None:
        """Find out anew which families are served: there is another mapper."""
        self._served.clear()

    def may_be_lookup(self, state: ORMExecuteState) -> bool:
        """Tell, at a glance, whether it is worth asking further."""
        return bool(self._entities.serves_always or _sqla.options_of(state.statement))

    def lookup_of(self, state: ORMExecuteState) -> Lookup | str:
        """Return the lookup that a statement is, or why it is none."""
        found = self._entity_of(state)
        if isinstance(found, str):
            return found
        family, mapper = found
        options = _sqla.options_of(state.statement)
        wanted = _wanted(state, options, family, mapper)
        if isinstance(wanted, str):
            return wanted
        mode, eager = wanted
        unique, identities = self._key_of(state, family, mapper, mode)
        if not identities:
            return _NO_KEY
        if eager and len(identities) > 1:
            return _EAGER_MANY
        carried = [option for option in options if option.propagate_to_loaders] if options else ()
        return Lookup(family, mapper, identities, mode, unique, carried, eager)

    def _entity_of(self, state: ORMExecuteState) -> tuple[Family, Mapper[Any]] | str:
        statement = state.statement
        if not isinstance(statement, Select):
            return NO_SELECT
        if _sqla.changes_to_come(state):
            return _OTHERS
        mapper = _sqla.selected_mapper(statement)
        if mapper is None:
            return _NO_ENTITY
        family = self._entities.family_of(mapper)
        if family is None:
            return _NOT_CACHED
        served = self._served.get(family)
        if served is None:
            served = self._served[family] = family.served
        return (family, mapper) if served else _CONCRETE

    def _key_of(
        self, state: ORMExecuteState, family: Family, mapper: Mapper[Any], mode: CacheMode
    ) -> tuple[UniqueKey | None, _Identities | None]:
        """Return the primary keys that are asked for, or a unique key and its values."""
        statement: Any = state.statement
        asked = _sqla.identity_of_get(mapper, statement, state.parameters)
        if asked is not None:
            return None, None if None in asked else [asked]
        identities = identities_of(statement, family, mapper, state.parameters)
        if not identities and family.policy.unique_keys and mode is CacheMode.NORMAL:
            columns = equalities_of(statement, state.parameters)
            for unique in self._unique_keys.of(family).values() if columns else ():
                values = [columns[column] for column in unique.columns if column in columns]
                if len(values) == len(columns) == len(unique.columns) and mapper.isa(unique.mapper):
                    return unique, [tuple(values)]
        return None, identities


def _wanted(
    state: ORMExecuteState, options: Sequence[Any], family: Family, mapper: Mapper[Any]
) -> tuple[CacheMode, Mapping[str, bool]] | str:
    """Return what our options say, and the relationships that others want loaded at once; or why it is no lookup."""
    mode = CacheMode.NORMAL if family.policy.reads is Reads.ALWAYS else None
    statement: Any = state.statement
    eager: dict[str, bool] = {}
    why = None
    for option in options:
        if isinstance(option, from_cache):
            if not option.path or _relationships.is_load_of(state, option.path):
                mode = option.mode
            continue
        names = _loader_options.eager_names(option, _relationships.steps_of(state), mapper)
        if names is None:
            why = _FOREIGN
        for name, further in (names or {}).items():
            eager[name] = further or eager.get(name, False)
    if mode is None:
        return _NOT_ASKED
    if mode is CacheMode.IGNORE:
        return _BYPASSED
    if why is None and not _sqla.is_plain_load(state):
        why = _NOT_PLAIN_LOAD
    if why is None and not _sqla.is_plain_select(statement):
        why = _NOT_PLAIN_SELECT
    return why or (mode, eager)
