"""What a SELECT's WHERE asks for: whole primary keys, or what each column is to be equal to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Table
from sqlalchemy.orm import Mapper
from sqlalchemy.sql import Select, operators
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, BooleanClauseList, Tuple

from sa_writethrough import _sqla
from sa_writethrough.entities import Family, table_name

__all__ = ["equalities_of", "identities_of"]


def identities_of(
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


def equalities_of(statement: Select[Any], parameters: Any) -> dict[Any, Any]:
    """Return what each column is to be equal to; nothing if anything else is asked for."""
    clauses = _conjuncts(_sqla.clauses_of(statement))
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
