"""What a statement writes: which families, and which of their rows where they can be named.

Sees every statement just before the driver does, so nothing that goes through SQLAlchemy is missed: bulk methods, Core
DML, DML in a CTE of a SELECT, `text()`. Decides nothing about sessions or entries.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import types
from sqlalchemy.sql import operators
from sqlalchemy.sql.ddl import DDLElement
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, BooleanClauseList, TextClause
from sqlalchemy.sql.selectable import TextualSelect

from sa_writethrough import _sqla
from sa_writethrough.entities import Entities, Family, TableName, mapper_of, table_name
from sa_writethrough.exceptions import ConfigurationError

__all__ = ["NAMED_OPTION", "TABLES_OPTION", "Undone", "Written", "writes_of"]

TABLES_OPTION = "writethrough_tables"
"""Execution option: the tables (names, Table objects or mapped classes) that a statement changes."""

NAMED_OPTION = "_sa_writethrough_named"
"""Execution option: the base mapper whose rows the caller learns by RETURNING."""


@dataclass(frozen=True, slots=True)
class Written:
    """Rows of one family that a statement is about to write.

    identities: their primary keys, or None where they cannot be named. gone: whether they will not be there afterwards.
    by_unit_of_work: whether SQLAlchemy's own persistence wrote the statement for instances of a session.
    unseen: whether it inserts rows whose keys are not known here.
    """

    family: Family
    identities: Sequence[tuple[Any, ...]] | None
    gone: bool = False
    by_unit_of_work: bool = False
    unseen: bool = False


@dataclass(frozen=True, slots=True)
class Undone:
    """The statement moved savepoints, or the isolation level, behind SQLAlchemy's back."""

    isolation: bool


def writes_of(entities: Entities, context: Any, sql: str) -> Iterator[Written | Undone]:
    """Yield what the statement that *context* is about to execute writes to cached families.

    Raises `ConfigurationError`, before anything is executed, for a statement whose effect cannot be known.
    """
    declared = context.execution_options.get(TABLES_OPTION)
    if declared is not None:
        yield from _declared(entities, declared)
        return
    compiled: Any = context.compiled
    statement = getattr(compiled, "statement", None)
    if context.isinsert or context.isupdate or context.isdelete:
        yield from _dml(entities, context, compiled, statement)
    elif compiled is None or isinstance(statement, TextClause | TextualSelect | DDLElement):
        yield from _text(entities, sql)
        return
    for cte in getattr(compiled, "ctes", None) or ():
        if getattr(cte.element, "is_dml", False):
            yield from _whole_table(entities, cte.element.table)


def _declared(entities: Entities, declared: Any) -> Iterator[Written]:
    if isinstance(declared, str) or not isinstance(declared, Iterable):
        raise ConfigurationError(
            f"execution_options({TABLES_OPTION}={declared!r}): give a list of table names, tables or mapped classes."
        )
    for item in declared:
        if isinstance(item, str):
            schema, _, name = item.rpartition(".")
            yield from _named(entities, [(schema or None, name)])
        elif hasattr(item, "foreign_key_constraints"):
            yield from _named(entities, [table_name(item)])
        else:
            yield from _named(entities, [table_name(table) for table in mapper_of(item).tables])


# --- statements that SQLAlchemy compiled ------------------------------------------------------------------------------


def _dml(entities: Entities, context: Any, compiled: Any, statement: Any) -> Iterator[Written]:
    name = table_name(statement.table)
    families = entities.families_of_table(name)
    if context.isinsert:
        yield from _insert(families, name, context, statement)
        return
    changed = set() if context.isdelete else _changed_columns(compiled, statement)
    reached = entities.reached_by_delete(name) if context.isdelete else entities.reached_by_update(name)
    if reached and (context.isdelete or _changes_key(statement.table, changed)):
        for family in reached:
            yield Written(family, None)
    for family in families:
        if context.execution_options.get(NAMED_OPTION) is family.base:
            yield Written(family, ())
            continue
        by_unit_of_work = context.execution_options.get("compiled_cache") is _sqla.persistence_cache(family.base)
        identities = None
        names = family.key_columns(name)
        if names is not None and (by_unit_of_work or family.exact):
            identities = _identities(context, compiled, statement, names)
            if identities is not None and not all(_has_one_form(family, identity) for identity in identities):
                identities = None
        gone = context.isdelete or bool(names and changed.intersection(names))
        yield Written(family, identities, gone, by_unit_of_work)


def _insert(families: Sequence[Family], name: TableName, context: Any, statement: Any) -> Iterator[Written]:
    """Yield what an INSERT replaces. New rows have no entries: a plain INSERT writes nothing that is cached."""
    clause = getattr(statement, "_post_values_clause", None)
    replaces = clause is not None and "nothing" not in type(clause).__name__.lower()
    for family in families:
        by_unit_of_work = context.execution_options.get("compiled_cache") is _sqla.persistence_cache(family.base)
        if (
            replaces
            or _sqla.has_prefixes(statement)
            or (table_name(family.base.local_table) != name and not by_unit_of_work)
        ):
            yield Written(family, None)
        else:
            yield Written(family, (), by_unit_of_work=by_unit_of_work, unseen=True)


def _changed_columns(compiled: Any, statement: Any) -> set[str]:
    return _sqla.dml_values(statement) | set(compiled.column_keys or ())


def _changes_key(table: Any, changed: set[str]) -> bool:
    """Tell whether a column that other tables may refer to is changed: any unique one, to be on the safe side."""
    columns = getattr(table, "c", None)
    if columns is None:
        return True
    referable = {c.key for c in columns if c.primary_key or c.unique} | {
        c.key
        for constraint in getattr(table, "constraints", ())
        if type(constraint).__name__ == "UniqueConstraint"
        for c in constraint.columns
    }
    return bool(referable & changed)


def _identities(context: Any, compiled: Any, statement: Any, names: list[str]) -> list[tuple[Any, ...]] | None:
    """Return the primary keys that the WHERE clause names by equality, one per set of parameters."""
    binds: dict[str, BindParameter[Any]] = {}
    for clause in _conjuncts(getattr(statement, "_where_criteria", ())):
        if not isinstance(clause, BinaryExpression) or clause.operator is not operators.eq:
            continue
        column, value = clause.left, clause.right
        own = table_name(getattr(column, "table", None)) == table_name(statement.table)
        if own and isinstance(value, BindParameter) and getattr(column, "name", None) in names:
            binds[column.name] = value
    if len(binds) != len(names):
        return None
    keys = [compiled.bind_names.get(binds[name]) for name in names]
    try:
        return [tuple(parameters[key] for key in keys) for parameters in context.compiled_parameters]
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
        return str(UUID(value)) == value
    except (TypeError, ValueError, AttributeError):
        return False


def _conjuncts(criteria: Iterable[Any]) -> Iterator[Any]:
    for clause in criteria:
        if isinstance(clause, BooleanClauseList) and clause.operator is operators.and_:
            yield from _conjuncts(clause.clauses)
        else:
            yield clause


def _whole_table(entities: Entities, table: Any) -> Iterator[Written]:
    yield from _named(entities, [table_name(table)])


def _named(entities: Entities, names: Iterable[TableName]) -> Iterator[Written]:
    for name in names:
        for family in (
            *entities.families_of_table(name),
            *entities.reached_by_delete(name),
            *entities.reached_by_update(name),
        ):
            yield Written(family, None)


# --- text -----------------------------------------------------------------------------------------------------------

_WORDS = re.compile(r"\w+")
_ROW_LOCKS = re.compile(r"\bfor\s+(?:no\s+key\s+)?update\b", re.IGNORECASE)
_COMMENTS = re.compile(r"/\*.*?\*/|--[^\n]*", re.DOTALL)
_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|(\$\w*\$).*?\1|/\*.*?\*/|--[^\n]*""", re.DOTALL)
_TARGETS = re.compile(
    r"""(?<!on\s)(?<!do\s)\b(?:update|delete\s+from|into|truncate)\s+(?:(?:or\s+\w+|only|table)\s+)*"""
    r"""(?:["`\[]?\w+["`\]]?\s*\.\s*)*["`\[]?(\w+)""",
    re.IGNORECASE,
)
"""The table that follows a verb."""
_QUERIES = frozenset({"select", "with", "values", "table", "explain", "declare"})
_CTE_VERBS = frozenset({"insert", "update", "delete", "merge"})
_WRITES = frozenset({"insert", "update", "delete", "merge", "replace", "truncate", "copy"})
_REPLACES = (_WRITES - {"insert", "copy"}) | {"conflict", "duplicate"}
_STRUCTURE = frozenset({"alter", "drop", "create", "refresh", "rename", "import"})
_SAVEPOINTS = frozenset({"savepoint", "release", "rollback", "abort"})
_ENDS = frozenset({"commit", "end", "prepare"})
_OPAQUE = frozenset({"call", "do", "execute"})
_HARMLESS = _QUERIES | {"show", "set", "reset", "pragma", "analyze", "vacuum", "listen", "unlisten", "notify", "lock"}
_HARMLESS |= {"begin", "start", "fetch", "move", "close", "deallocate", "discard", "checkpoint", "grant", "revoke"}
_HARMLESS |= {"comment", "reindex", "cluster", "security", "attach", "detach", "load"}


def _text(entities: Entities, sql: str) -> Iterator[Written | Undone]:
    # The first word decides what kind of statement it is; every word may name a table. String literals and comments
    # are searched too: to find a table too many costs misses, to find one too few would cost the promise.
    words = [word.lower() for word in _WORDS.findall(_ROW_LOCKS.sub(" ", sql))]
    firsts = _first_words(sql)
    for first in firsts:
        yield from _one_of_text(entities, sql, first, words, alone=len(firsts) == 1)


def _first_words(sql: str) -> list[str]:
    """Return the first word of each statement in *sql*; a driver may send several at once."""
    # A backslash may escape a quote: then a semicolon inside a literal counts as well.
    bare = (_COMMENTS if "\\" in sql else _QUOTED).sub(" ", sql)
    found = [_WORDS.search(part) for part in bare.split(";")]
    return [word.group().lower() for word in found if word]


def _one_of_text(
    entities: Entities, sql: str, first: str, words: Sequence[str], *, alone: bool
) -> Iterator[Written | Undone]:
    found = set(words)
    verbs = found & (_CTE_VERBS if alone and first in _QUERIES else _WRITES | _STRUCTURE)
    if first in _SAVEPOINTS:
        yield Undone(isolation=False)
    elif first in _ENDS:
        raise ConfigurationError(
            f"{sql.strip()[:60]!r}: a transaction that is ended by text cannot be announced. Use session.commit() or "
            "session.prepare()."
        )
    elif first == "set" and "isolation" in found:
        yield Undone(isolation=True)
    elif first in _HARMLESS and not verbs:
        return
    elif first == "insert" and not found & _REPLACES:
        yield from _inserted(entities, words)
    elif verbs and first not in _OPAQUE:
        yield from _named_or_all(entities, sql, words, found)
    else:
        raise ConfigurationError(
            f"What {sql.strip()[:60]!r} changes cannot be known. Say which tables: "
            f".execution_options({TABLES_OPTION}=['user', ...]), or an empty list if none."
        )


def _inserted(entities: Entities, words: Sequence[str]) -> Iterator[Written]:
    names = entities.tables_named_in(words)
    found = [family for name in names for family in entities.families_of_table(name)] if names else entities.families
    for family in found:
        yield Written(family, (), unseen=True)


def _named_or_all(entities: Entities, sql: str, words: Sequence[str], found: set[str]) -> Iterator[Written]:
    names = entities.tables_named_in(words)
    targets = {target for target in _TARGETS.findall(_ROW_LOCKS.sub(" ", sql)) if target.lower() != "set"}
    known = bool(names) and all(entities.tables_named_in([target]) for target in targets)
    if known and not {"truncate", "cascade"} <= found:
        yield from _named(entities, names)
    elif found & _REPLACES:
        # A view, a partition, a table that no metadata knows: it may be behind any entry.
        for family in entities.families:
            yield Written(family, None)
