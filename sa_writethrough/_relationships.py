"""SQLAlchemy's internals that cached collections need: how a relationship is loaded, and what an INSERT or UPDATE sets.

A room as `_sqla` is: whatever is not public API of SQLAlchemy stands in one of them, and is tested there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy.orm import InstanceState, ORMExecuteState
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.mapper import _all_registries
from sqlalchemy.sql.elements import BindParameter

from sa_writethrough._sqla import has_ordered, is_plain_select

__all__ = [
    "carries",
    "carry",
    "is_at",
    "is_load_of",
    "is_lazy_load",
    "key_as_loaded",
    "leaves_null",
    "loaded_relationship",
    "mappers_to_come",
    "steps_of",
    "tables_set",
    "value_parameters",
]


def mappers_to_come() -> bool:
    """Tell whether there are mappers that are not configured yet: their relationships are not known."""
    return any(registry._new_mappers for registry in _all_registries())


def loaded_relationship(state: ORMExecuteState) -> Any:
    """Return the relationship that the statement loads for `lazy_loaded_from`."""
    path = state.loader_strategy_path
    return None if path is None else path.path[-1]


def is_load_of(state: ORMExecuteState, path: Sequence[Any]) -> bool:
    """Tell whether the statement lazily loads the last relationship on *path*, which leads from what was selected."""
    return state.lazy_loaded_from is not None and is_at(state, path)


def steps_of(state: ORMExecuteState) -> Sequence[Any]:
    """Return the relationships that lead from what was selected to what the statement loads."""
    loaded = state.loader_strategy_path
    steps: Sequence[Any] = () if loaded is None else loaded.path[1::2]
    return steps


def is_at(state: ORMExecuteState, path: Sequence[Any]) -> bool:
    """Tell whether the statement loads the last relationship on *path*, which leads from what was selected."""
    steps = steps_of(state)
    return len(steps) == len(path) and all(one is other for one, other in zip(steps, path, strict=True))


def carry(state: ORMExecuteState, options: Sequence[Any], instances: Iterable[Any], held: Collection[Any]) -> None:
    """Have loaders of the instances' relationships see *options*, as `sqlalchemy.orm.loading._instance` does.

    held: the states that the session had before; they keep what they were loaded with.
    """
    current = state.loader_strategy_path
    for instance in instances:
        if instance is None:
            continue
        loaded = instance_state(instance)
        if loaded in held:
            continue
        path = loaded.mapper._path_registry
        loaded.load_options = tuple(options)
        loaded.load_path = current + path if current is not None and current.path else path


def carries(instance: Any, options: Sequence[Any]) -> bool:
    """Tell whether loaders of the instance's relationships see *options*."""
    return set(options) <= set(instance_state(instance).load_options)


def is_lazy_load(state: ORMExecuteState, order_by: Any) -> bool:
    """Tell whether the statement is as a relationship with this *order_by* loads its rows, with nothing added to it."""
    statement: Any = state.statement
    orders = statement._order_by_clauses
    return (
        len(statement._where_criteria) == 1
        and len(orders) == len(order_by or ())
        and all(one.compare(other) for one, other in zip(orders, order_by or (), strict=True))
        and is_plain_select(statement if not orders else statement.order_by(None))
    )


def key_as_loaded(owner: InstanceState[Any], names: Iterable[str]) -> tuple[Any, ...] | None:
    """Return the primary key, of attributes *names*, of a persistent instance; None where it is another one by now."""
    if owner.key is None or owner.key[2] is not None or owner.committed_state.keys() & set(names):
        return None
    identity: tuple[Any, ...] = owner.key[1]
    return identity


def value_parameters(compiled: Any, statement: Any, columns: Sequence[Any]) -> tuple[str, ...] | None:
    """Return the parameters that an INSERT or UPDATE sets *columns* to; None where one is no parameter, or not set."""
    if _sets_elsewhere(statement):
        return None
    values = {getattr(column, "key", column): value for column, value in (statement._values or {}).items()}
    names = []
    for column in columns:
        value = values.get(column.key)
        name = None
        if isinstance(value, BindParameter):
            name = column.key if value.unique else value.key  # a literal value has its column's name
        elif value is None and column.key in (compiled.column_keys or ()):
            name = column.key  # given when the statement is executed
        if name not in compiled.binds:
            return None
        names.append(str(name))
    return tuple(names)


def leaves_null(compiled: Any, statement: Any, columns: Sequence[Any]) -> bool:
    """Tell whether an INSERT leaves one of *columns* out, which then is NULL, as it has no default."""
    given = {getattr(column, "key", column) for column in statement._values or ()} | set(compiled.column_keys or ())
    if _sets_elsewhere(statement) or not given:
        return False
    return any(
        not given & {column.key, column.name}
        and column.default is None
        and column.server_default is None
        and column.computed is None
        for column in columns
    )


def tables_set(statement: Any) -> list[Any]:
    """Return the tables whose columns an UPDATE names by themselves: several, in MySQL's UPDATE of several tables."""
    ordered = dict(statement._ordered_values) if has_ordered(statement) else {}
    tables = [getattr(column, "table", None) for column in (*(statement._values or ()), *ordered)]
    return list(dict.fromkeys(table for table in tables if table is not None))


def _sets_elsewhere(statement: Any) -> bool:
    """Tell whether values are several rows', a SELECT's, in an order of their own, or of a second clause as well."""
    return bool(getattr(statement, "_multi_values", ())) or (
        getattr(statement, "select", None) is not None
        or getattr(statement, "_post_values_clause", None) is not None
        or has_ordered(statement)
    )
