"""Which statements are lookups by identity: `do_orm_execute`'s one guard, and the results it answers with.

What is not surely `select(Entity).where(whole primary key)` is none: extra criteria, joins, limits, locks, loader
options, refreshes, `populate_existing` all go to the database as if the library were absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Table
from sqlalchemy.engine import Result
from sqlalchemy.orm import Mapper, ORMExecuteState
from sqlalchemy.sql import Select, operators
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, BooleanClauseList, Tuple

from sa_writethrough import _sqla
from sa_writethrough.core import Core
from sa_writethrough.entities import Family, table_name
from sa_writethrough.loading import Loading, Question
from sa_writethrough.options import from_cache
from sa_writethrough.pointing import Pointing
from sa_writethrough.policy import CacheMode, Reads
from sa_writethrough.unique import UniqueKey

__all__ = ["Lookup", "Lookups"]


@dataclass(slots=True)
class Lookup:
    """A statement that asks for rows by their whole primary keys. Not frozen: one is made for every hit."""

    family: Family
    mapper: Mapper[Any]
    identities: list[tuple[Any, ...]]
    mode: CacheMode
    unique: UniqueKey | None = None
    """By which it asks instead; the identities are its values then."""


class Lookups:
    """Answers `do_orm_execute` for one registration."""

    def __init__(self, core: Core, loading: Loading, pointing: Pointing) -> None:
        self._entities = core.entities
        self._unique_keys = core.unique_keys
        self._pointing = pointing
        self._loading = loading
        self._metadata: WeakKeyDictionary[Mapper[Any], Any] = WeakKeyDictionary()
        self._served: dict[Family, bool] = {}

    def forget(self) -> None:
        """Find out anew which families are served: there is another mapper."""
        self._served.clear()

    def on_execute(self, state: ORMExecuteState) -> Result[Any] | None:
        """Return the rows of a lookup, or None to let SQLAlchemy go on."""
        if not self._entities.serves_always and not _sqla.options_of(state.statement):
            return None
        lookup = self._lookup_of(state)
        if lookup is None:
            return None
        session = state.session
        _sqla.autobegin(session)
        if _sqla.flushes_first(state):
            _sqla.autoflush(session)
        if lookup.unique is None and _sqla.states_of(session):
            keys = [(lookup.family.identity_class, identity, None) for identity in lookup.identities]
            if any(_sqla.is_expired(session, key) for key in keys):
                return None  # the SELECT refreshes them
        arguments = {k: v for k, v in state.bind_arguments.items() if k != "clause"}
        asked = session, lookup.family, lookup.mapper
        options = state.execution_options
        found: Sequence[Any] | None
        if lookup.unique is not None:
            question = Question(*asked, lookup.mode, arguments or None, options)
            found = self._pointing.find(question, lookup.unique, lookup.identities[0])
        elif len(lookup.identities) == 1:
            found = self._loading.lookup_one(
                *asked,
                lookup.identities[0],
                mode=lookup.mode,
                bind_arguments=arguments or None,
                execution_options=options,
            )
        else:
            question = Question(*asked, lookup.mode, arguments or None, options)
            found = self._loading.lookup(question, lookup.identities)
        if found is None:
            return None
        metadata = self._metadata.get(lookup.mapper)
        if metadata is None:
            metadata = self._metadata[lookup.mapper] = _sqla.entity_metadata(lookup.mapper)
        return _sqla.entity_result(metadata, [instance for instance in found if instance is not None])

    def _lookup_of(self, state: ORMExecuteState) -> Lookup | None:
        statement = state.statement
        if not isinstance(statement, Select) or _sqla.changes_to_come(state):
            return None
        options = _sqla.options_of(statement)
        mapper = _sqla.selected_mapper(statement)
        family = None if mapper is None else self._entities.family_of(mapper)
        if family is None or mapper is None:
            return None
        served = self._served.get(family)
        if served is None:
            served = self._served[family] = family.served
        if not served:
            return None
        mode = _mode(options, family)
        if mode is CacheMode.IGNORE or not _sqla.is_plain_load(state) or not _sqla.is_plain_select(statement):
            return None
        asked = _sqla.identity_of_get(mapper, statement, state.parameters)
        if asked is not None:
            identities = None if None in asked else [asked]
        else:
            identities = _identities(statement, family, mapper, state.parameters)
            if not identities and family.policy.unique_keys and mode is CacheMode.NORMAL:
                return self._lookup_by_unique_key(family, mapper, statement, state.parameters)
        return None if not identities else Lookup(family, mapper, identities, mode)

    def _lookup_by_unique_key(
        self, family: Family, mapper: Mapper[Any], statement: Select[Any], parameters: Any
    ) -> Lookup | None:
        columns = _equalities(_conjuncts(_sqla.clauses_of(statement)), parameters)
        for unique in self._unique_keys.of(family).values() if columns else ():
            values = [columns[column] for column in unique.columns if column in columns]
            if len(values) == len(columns) == len(unique.columns) and mapper.isa(unique.mapper):
                return Lookup(family, mapper, [tuple(values)], CacheMode.NORMAL, unique)
        return None


def _mode(options: Sequence[Any], family: Family) -> CacheMode:
    """Return what the options say; any other option than ours is for SQLAlchemy's own loader."""
    mode = CacheMode.NORMAL if family.policy.reads is Reads.ALWAYS else CacheMode.IGNORE
    for option in options:
        if not isinstance(option, from_cache):
            return CacheMode.IGNORE
        mode = option.mode
    return mode


def _identities(
    statement: Select[Any], family: Family, mapper: Mapper[Any], parameters: Any
) -> list[tuple[Any, ...]] | None:
    """Return the distinct primary keys that the WHERE clauses ask for, or None if they ask for anything else."""
    names = {table: family.key_columns(table) for table in (table_name(t) for t in mapper.tables)}
    given = parameters if isinstance(parameters, Mapping) else {}
    values: dict[str, Any] = {}
    clauses = _conjuncts(_sqla.clauses_of(statement))
    if len(clauses) == 1 and _is_in(clauses[0]):
        return _from_in(clauses[0], names, given)
    for clause in clauses:
        if not isinstance(clause, BinaryExpression) or clause.operator is not operators.eq:
            return None
        position = _position(clause.left, names)
        if position is None or position in values or not isinstance(clause.right, BindParameter):
            return None
        values[position] = given.get(clause.right.key, clause.right.effective_value)
    if len(values) != len(family.base.primary_key) or None in values.values():
        return None
    return [tuple(values[str(i)] for i in range(len(values)))]


def _equalities(clauses: Sequence[Any], parameters: Any) -> dict[Any, Any]:
    """Return what each column is compared with; nothing if anything else is asked for."""
    given = parameters if isinstance(parameters, Mapping) else {}
    found: dict[Any, Any] = {}
    for clause in clauses:
        if not isinstance(clause, BinaryExpression) or clause.operator is not operators.eq:
            return {}
        table = getattr(clause.left, "table", None)
        column = table.c.get(clause.left.key) if isinstance(table, Table) else None
        if column is None or column in found or not isinstance(clause.right, BindParameter):
            return {}
        found[column] = given.get(clause.right.key, clause.right.effective_value)
    return found


def _from_in(clause: Any, names: Mapping[Any, list[str] | None], given: Mapping[str, Any]) -> list[Any] | None:
    if not isinstance(clause.right, BindParameter):
        return None
    values = given.get(clause.right.key, clause.right.effective_value)
    if not isinstance(values, list | tuple | set | frozenset):
        return None
    width = len(next(filter(None, names.values()), ()))
    columns = list(clause.left.clauses) if isinstance(clause.left, Tuple) else [clause.left]
    order = [_position(column, names) for column in columns]
    if sorted(p or "" for p in order) != sorted(str(i) for i in range(width)):
        return None
    rows = [tuple(value) for value in values] if isinstance(clause.left, Tuple) else [(value,) for value in values]
    placed = [tuple(row[order.index(str(i))] for i in range(width)) for row in rows]
    return list(dict.fromkeys(row for row in placed if None not in row))


def _is_in(clause: Any) -> bool:
    return isinstance(clause, BinaryExpression) and clause.operator is operators.in_op


def _conjuncts(criteria: Sequence[Any]) -> list[Any]:
    clauses: list[Any] = []
    for clause in criteria:
        if isinstance(clause, BooleanClauseList) and clause.operator is operators.and_:
            clauses += _conjuncts(list(clause.clauses))
        else:
            clauses.append(getattr(clause, "element", clause) if type(clause).__name__ == "Grouping" else clause)
    return clauses


def _position(column: Any, names: Mapping[Any, list[str] | None]) -> str | None:
    """Return which part of the primary key *column* is, as text, or None if it is none."""
    table = getattr(column, "table", None)
    if not isinstance(table, Table):
        return None
    columns = names.get(table_name(table))
    name = getattr(column, "name", None)
    return str(columns.index(name)) if columns and name in columns else None
