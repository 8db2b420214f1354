"""What a statement writes: which families, and which of their rows where they can be named.

Sees every statement just before the driver does, so nothing that goes through SQLAlchemy is missed: bulk methods, Core
DML, DML in a CTE of a SELECT, `text()`. Decides nothing about sessions or entries.

SQLAlchemy keeps what it compiled and executes it again with other parameters. So the statement itself is analysed once,
and an execution costs no more than its primary keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import types
from sqlalchemy.sql import operators
from sqlalchemy.sql.ddl import DDLElement
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, BooleanClauseList, SavepointClause, TextClause
from sqlalchemy.sql.selectable import TextualSelect

from sa_writethrough import _sqla
from sa_writethrough.effects import NAMED_OPTION, TABLES_OPTION, Effect, Saved, Written, named
from sa_writethrough.entities import Entities, Family, mapper_of, table_name
from sa_writethrough.exceptions import ConfigurationError
from sa_writethrough.sqltext import text_writes

__all__ = ["writes_of"]

Effects: TypeAlias = Sequence[Effect]


@dataclass(frozen=True, slots=True)
class _Target:
    """One family that a compiled INSERT, UPDATE or DELETE writes to."""

    family: Family
    unit_of_work: object
    """What the execution option `compiled_cache` is when SQLAlchemy's own persistence executes."""
    keys: tuple[str, ...] | None
    """The parameters that hold the primary key, where the WHERE clause names it by equality."""
    gone: bool
    inserts: bool
    replaces: bool


@dataclass(frozen=True, slots=True)
class _Analysis:
    """A compiled statement, as far as its parameters do not matter."""

    always: tuple[Effect, ...]
    targets: tuple[_Target, ...]


_NOTHING = _Analysis((), ())


def writes_of(entities: Entities, context: Any, sql: str) -> Effects:
    """Return what the statement that *context* is about to execute writes to cached families.

    Raises `ConfigurationError`, before anything is executed, for a statement whose effect cannot be known.
    """
    options = context.execution_options
    if TABLES_OPTION in options:
        return list(_declared(entities, options[TABLES_OPTION]))
    compiled = context.compiled
    if compiled is None:
        return list(text_writes(entities, sql))
    analysis = entities.analyses.get(compiled)
    if analysis is None:
        analysis = entities.analyses[compiled] = _analyse(entities, context, compiled, sql)
    if not analysis.targets:
        return analysis.always
    return [*analysis.always, *(_written(target, context, options) for target in analysis.targets)]


def _written(target: _Target, context: Any, options: Any) -> Written:
    family = target.family
    if options.get(NAMED_OPTION) is family.base:
        return Written(family, ())
    by_unit_of_work = options.get("compiled_cache") is target.unit_of_work
    if target.inserts:
        # New rows have no entries: a plain INSERT writes nothing that is cached. One into a table that holds a part of
        # rows that exist does.
        part = not target.replaces and table_name(family.base.local_table) != table_name(_table(context))
        if target.replaces or (part and not by_unit_of_work):
            return Written(family, None)
        return Written(family, (), by_unit_of_work=by_unit_of_work, unseen=True)
    identities = None
    if target.keys is not None and (by_unit_of_work or family.exact):
        identities = _identities(context, target.keys)
        if identities is not None and not all(_has_one_form(family, identity) for identity in identities):
            identities = None
    return Written(family, identities, target.gone, by_unit_of_work)


def _declared(entities: Entities, declared: Any) -> Iterator[Written]:
    if isinstance(declared, str) or not isinstance(declared, Iterable):
        raise ConfigurationError(
            f"execution_options({TABLES_OPTION}={declared!r}): give a list of table names, tables or mapped classes."
        )
    for item in declared:
        if isinstance(item, str):
            schema, _, name = item.rpartition(".")
            yield from named(entities, [(schema or None, name)])
        elif hasattr(item, "foreign_key_constraints"):
            yield from named(entities, [table_name(item)])
        else:
            yield from named(entities, [table_name(table) for table in mapper_of(item).tables])


# --- the analysis -----------------------------------------------------------------------------------------------------


def _analyse(entities: Entities, context: Any, compiled: Any, sql: str) -> _Analysis:
    statement: Any = getattr(compiled, "statement", None)
    if isinstance(statement, SavepointClause):
        return _Analysis((Saved(statement.ident),), ())
    if isinstance(statement, TextClause | TextualSelect | DDLElement):
        return _Analysis(tuple(text_writes(entities, sql)), ())
    always: list[Effect] = [
        effect
        for cte in getattr(compiled, "ctes", None) or ()
        if getattr(cte.element, "is_dml", False)
        for effect in named(entities, [table_name(cte.element.table)])
    ]
    if not (context.isinsert or context.isupdate or context.isdelete):
        return _Analysis(tuple(always), ()) if always else _NOTHING
    name = table_name(statement.table)
    changed: set[str] = set()
    if context.isupdate:
        changed = _sqla.dml_values(statement) | set(compiled.column_keys or ())
        if _changes_key(statement.table, changed):
            always += [Written(family, None) for family in entities.reached_by_update(name)]
    elif context.isdelete:
        always += [Written(family, None) for family in entities.reached_by_delete(name)]
    families = entities.families_of_table(name)
    return _Analysis(
        tuple(always), tuple(_target(family, context, compiled, statement, changed) for family in families)
    )


def _target(family: Family, context: Any, compiled: Any, statement: Any, changed: set[str]) -> _Target:
    names = family.key_columns(table_name(statement.table))
    clause = getattr(statement, "_post_values_clause", None)
    upserts = clause is not None and "nothing" not in type(clause).__name__.lower()
    return _Target(
        family=family,
        unit_of_work=_sqla.persistence_cache(family.base),
        keys=None if names is None or context.isinsert else _key_parameters(compiled, statement, names),
        gone=context.isdelete or bool(names and changed.intersection(names)),
        inserts=context.isinsert,
        replaces=context.isinsert and (upserts or _sqla.has_prefixes(statement)),
    )


def _table(context: Any) -> Any:
    return context.compiled.statement.table


def _changes_key(table: Any, changed: set[str]) -> bool:
    """Tell whether a column that other tables may refer to is changed: any unique one, to be on the safe side."""
    columns = getattr(table, "c", None)
    if columns is None:
        return True
    referable: set[str] = {c.key for c in columns if c.primary_key or c.unique} | {
        c.key
        for constraint in getattr(table, "constraints", ())
        if type(constraint).__name__ == "UniqueConstraint"
        for c in constraint.columns
    }
    return bool(referable & changed)


def _key_parameters(compiled: Any, statement: Any, names: Sequence[str]) -> tuple[str, ...] | None:
    """Return the parameters that the WHERE clause compares the primary key's columns *names* with."""
    binds: dict[str, BindParameter[Any]] = {}
    for clause in _conjuncts(getattr(statement, "_where_criteria", ())):
        if not isinstance(clause, BinaryExpression) or clause.operator is not operators.eq:
            continue
        column, value = clause.left, clause.right
        own = table_name(getattr(column, "table", None)) == table_name(statement.table)
        if own and isinstance(value, BindParameter) and getattr(column, "name", None) in names:
            binds[column.name] = value
    if len(binds) < len(names):
        return None
    return tuple([str(compiled.bind_names[binds[name]]) for name in names])


def _conjuncts(criteria: Iterable[Any]) -> Iterator[Any]:
    for clause in criteria:
        if isinstance(clause, BooleanClauseList) and clause.operator is operators.and_:
            yield from _conjuncts(clause.clauses)
        else:
            yield clause


# --- one execution ----------------------------------------------------------------------------------------------------


def _identities(context: Any, keys: Sequence[str]) -> list[tuple[Any, ...]] | None:
    """Return the primary keys, one per set of parameters."""
    try:
        return [tuple([parameters[key] for key in keys]) for parameters in context.compiled_parameters]
    except KeyError:
        return None


def _has_one_form(family: Family, identity: Sequence[Any]) -> bool:
    """Tell whether no other value names the same row: 1 and not True or '1', a UUID's text as databases write it."""
    for column, value in zip(family.base.primary_key, identity, strict=True):
        if isinstance(column.type, types.Integer) and type(value) is not int:
            return False
        if isinstance(column.type, types.Uuid) and not isinstance(value, UUID) and not _is_canonical_uuid(value):
            return False
    return True


def _is_canonical_uuid(value: Any) -> bool:
    try:
        return bool(str(UUID(value)) == value)
    except (TypeError, ValueError, AttributeError):
        return False
