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

__all__ = ["KeyedOption", "eager_names", "is_plain_selectin", "selected_targets", "targets_result"]

_SELECTIN = (("lazy", "selectin"),)
_EAGER: frozenset[Any] = frozenset({(("lazy", lazy),) for lazy in ("selectin", "joined", "subquery", "immediate")})
_LAZY: frozenset[Any] = frozenset({None, (("lazy", "select"),)})
_ON_ACCESS = frozenset({"select", True})
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


def eager_names(option: Any, path: Sequence[Any], mapper: Mapper[Any]) -> dict[str, bool] | None:
    """Return the relationships that an option wants loaded at once with instances of *mapper*, where *path* leads.

    With each, whether something is asked of what it leads to, which is left to the statement that loads it. None where
    anything else may be asked of the instances.
    """
    if type(option) is not Load:
        return None
    names: dict[str, bool] = {}
    further = set()
    for element in option.context:
        below = _below(element, path)
        if below is None:
            return None
        if not below:
            continue
        step = below[0]
        if element.path.path[2 * len(path)] is not mapper or getattr(step, "lazy", None) not in _ON_ACCESS:
            return None
        if len(below) > 1:
            further.add(step.key)
        elif not _is_plain(element) or element.strategy not in _EAGER | _LAZY:
            return None
        elif element.strategy in _EAGER:
            names[step.key] = False
    return {name: name in further for name in names}


def _below(element: Any, path: Sequence[Any]) -> Sequence[Any] | None:
    """Return the steps of an option's part that go on from *path*; None where it may be of anything there.

    There are none where it is of another attribute, or of the last one on *path* itself.
    """
    steps: Sequence[Any] = element.path.path[1::2]
    apart = next((step for step, other in zip(steps, path, strict=False) if step is not other), None)
    nearest = steps[: len(path) + 1][-1:] if apart is None else (apart,)
    if not nearest or not isinstance(nearest[0], MapperProperty):
        return None  # a wildcard, or a class
    if apart is not None:
        return ()
    return None if len(steps) == len(path) and not _is_plain(element) else steps[len(path) :]


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
        and _is_plain(element)
        and element.path.path[-1] is relationship.mapper
    )


def _is_plain(element: Any) -> bool:
    """Tell whether an option's part says how a relationship is loaded, and nothing of which rows or how deep."""
    return (
        not element._extra_criteria
        and getattr(element, "_of_type", None) is None
        and all(value is None for value in element.local_opts.values())
    )


def targets_result(mapper: Mapper[Any], found: Sequence[tuple[tuple[Any, ...], Any]]) -> Result[Any]:
    """Return what `selectinload` expects of its statement: primary keys with their instances."""
    names = ["key"] if _IN_BUNDLES else [f"key_{index}" for index in range(len(mapper.primary_key))]
    rows = [(key, instance) if _IN_BUNDLES else (*key, instance) for key, instance in found]
    return IteratorResult(SimpleResultMetaData([*names, mapper.class_.__name__]), iter(rows))
