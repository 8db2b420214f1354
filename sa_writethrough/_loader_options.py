"""SQLAlchemy's internals that concern loader options: what `selectinload` executes, and what else an option asks of it.

A room as `_sqla` is: whatever is not public API of SQLAlchemy stands in one of them, and is tested there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import __version__
from sqlalchemy.engine import Result
from sqlalchemy.engine.result import IteratorResult, SimpleResultMetaData
from sqlalchemy.orm import Load, Mapper, MapperProperty, ORMExecuteState
from sqlalchemy.orm.interfaces import UserDefinedOption
from sqlalchemy.sql.cache_key import HasCacheKey
from sqlalchemy.sql.visitors import InternalTraversal

__all__ = ["KeyedOption", "is_elsewhere", "is_plain_selectin", "selected_targets", "targets_result"]

_SELECTIN = (("lazy", "selectin"),)
_KEYS = "primary_keys"
_IN_BUNDLES = __version__.startswith("2.0.")
"""SQLAlchemy 2.0 selects the key as one column, a tuple; 2.1 as many."""


class KeyedOption(HasCacheKey, UserDefinedOption):
    """An option by whose payload SQLAlchemy tells compiled statements apart.

    `selectinload` takes the options of the statement that was compiled, which may have been another one with the same
    SQL: without a part in its key that one's options would be obeyed.
    """

    inherit_cache = True  # a subclass adds nothing but what is in the payload; it must say so as well
    _traverse_internals = _cache_key_traversal = [  # noqa: RUF012 - HasCacheKey's, which wants a list
        ("payload", InternalTraversal.dp_plain_obj)
    ]

    def _adapt_cached_option_to_uncached_option(self, _context: Any, _option: Any) -> KeyedOption:
        return self  # the other one is equal, if it is at the same place


def selected_targets(state: ORMExecuteState, relationship: Any) -> list[tuple[Any, ...]] | None:
    """Return the primary keys for which a many-to-one `selectinload` executes the statement; None if it is no such.

    Only where it stands for an attribute of what was selected itself, not further down.
    """
    parameters, path = state.parameters, state.loader_strategy_path
    statement: Any = state.statement
    if not isinstance(parameters, Mapping) or parameters.keys() != {_KEYS}:
        return None
    if path is None or path.path[1:] != (relationship,) or len(statement._where_criteria) != 1:
        return None
    if statement._raw_columns[-1]._annotations.get("parententity") is not relationship.mapper:
        return None
    if not relationship._get_strategy((("lazy", "select"),)).use_get:
        return None
    single = len(relationship.mapper.primary_key) == 1
    return [(key,) if single else tuple(key) for key in parameters[_KEYS]]


def is_elsewhere(option: Any, path: Sequence[Any]) -> bool:
    """Tell whether a loader option surely says nothing of the last relationship on *path*, nor of what is below it."""
    if type(option) is not Load or not path:
        return False
    for element in option.context:
        steps = element.path.path[1::2]
        if not steps or not all(isinstance(step, MapperProperty) for step in steps):
            return False  # a wildcard, or a class
        if len(steps) >= len(path) and all(one is other for one, other in zip(steps, path, strict=False)):
            return False
    return True


def is_plain_selectin(option: Any, relationship: Any) -> bool:
    """Tell whether of *relationship*, of what was selected, a loader option asks for no more than a `selectinload`."""
    return type(option) is Load and all(_is_plain_or_elsewhere(element, relationship) for element in option.context)


def _is_plain_or_elsewhere(element: Any, relationship: Any) -> bool:
    steps = element.path.path[1::2]
    if not steps or not all(isinstance(step, MapperProperty) for step in steps):
        return False
    return steps[0] is not relationship or (
        len(steps) == 1
        and element.strategy == _SELECTIN
        and not element._extra_criteria
        and element._of_type is None
        and element.path.path[-1] is relationship.mapper
    )


def targets_result(mapper: Mapper[Any], found: Sequence[tuple[tuple[Any, ...], Any]]) -> Result[Any]:
    """Return what `selectinload` expects of its statement: primary keys with their instances."""
    names = ["key"] if _IN_BUNDLES else [f"key_{index}" for index in range(len(mapper.primary_key))]
    rows = [(key, instance) if _IN_BUNDLES else (*key, instance) for key, instance in found]
    return IteratorResult(SimpleResultMetaData([*names, mapper.class_.__name__]), iter(rows))
