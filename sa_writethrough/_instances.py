"""How SQLAlchemy makes an instance, written out for one mapper; with `_sqla` the room that names its internals.

A hit is mostly this. `tests/unit/test_sqla.py` checks that an instance and its state are still made as is assumed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from textwrap import indent
from typing import Any, NamedTuple
from weakref import ref

from sqlalchemy.orm import ColumnProperty, InstanceState, Mapper, Session
from sqlalchemy.orm.attributes import instance_dict, instance_state
from sqlalchemy.orm.base import DEFAULT_STATE_ATTR
from sqlalchemy.orm.instrumentation import ClassManager
from sqlalchemy.sql.elements import Null

__all__ = ["Materializer", "has_default", "is_loaded_at_once", "is_query_expression", "materializer"]


class Materializer(NamedTuple):
    """Two functions that make persistent instances of rows, given with identity keys that the session does not hold.

    They raise where a row is not the key's, or whatever an expression or the iterable of the rows raises; what was made
    until then is in the session for as long as somebody holds it, which nobody does. They call no listeners.
    """

    one: Callable[[Any, Sequence[Any], Session], Any]
    many: Callable[[Sequence[Any], Iterable[Any], Session], list[Any]]


def materializer(
    mapper: Mapper[Any],
    values: Mapping[str, str],
    key: Sequence[str],
    *,
    missing: Sequence[str],
    names: Mapping[str, Any],
) -> Materializer | None:
    """Write the functions that make persistent instances of rows; None for a class that is not made the usual way.

    values: for each attribute, in the rows' order, an expression of c0, c1, ..., the row's values. key: the attributes
    of the primary key. missing: those that are loaded when asked for. names: what the expressions use.

    What is written is `ClassManager.new_instance` and `InstanceState.__init__` with `attach`, unrolled.
    """
    if not _is_made_as_usual(mapper):
        return None
    identity = ", ".join(f"d[{name!r}]" for name in key)
    make = _MAKE.format(
        values="\n".join(f"d[{name!r}] = {value}" for name, value in values.items()),
        unlike=f"key[1][0] != d[{key[0]!r}]" if len(key) == 1 else f"key[1] != ({identity})",
        expired="{" + ", ".join(map(repr, missing)) + "}" if missing else "new_set()",
        state=DEFAULT_STATE_ATTR,
    )
    columns = "".join(f"c{index}, " for index in range(len(values)))
    source = _ONE_AND_MANY.format(columns=columns, make_one=indent(make, " " * 4), make=indent(make, " " * 8))
    namespace = {
        **names,
        "cls": mapper.class_,
        "manager": mapper.class_manager,
        "new": object.__new__,
        "new_set": set,
        "ref": ref,
        "State": InstanceState,
    }
    exec(source, namespace)  # noqa: S102 - written here, of attribute names as literals and the caller's expressions
    return Materializer(namespace["one"], namespace["many"])


_MAKE = """\
instance = new(cls)
state = new(State)
state.class_ = cls
state.manager = manager
state.obj = ref(instance, state._cleanup)
state.committed_state = {{}}
state.expired_attributes = {expired}
d = instance.__dict__
d[{state!r}] = state
{values}
if {unlike}:
    raise LookupError
state.key = key
state.identity_token = key[2]
state.session_id = session_id
states[key] = state
state._instance_dict = reference
"""
_ONE_AND_MANY = """
def one(key, row, session):
    identity_map, session_id = session.identity_map, session.hash_key
    states, reference = identity_map._dict, identity_map._wr
    {columns} = row
{make_one}
    return instance


def many(keys, rows, session):
    identity_map, session_id = session.identity_map, session.hash_key
    states, reference = identity_map._dict, identity_map._wr
    instances = []
    append = instances.append
    for key, ({columns}) in zip(keys, rows):
{make}
        append(instance)
    return instances
"""


def is_loaded_at_once(attribute: ColumnProperty[Any]) -> bool:
    """Tell whether an ordinary load has the attribute: it is not deferred, and no mere `query_expression()`."""
    return not attribute.deferred and not (is_query_expression(attribute) and not has_default(attribute))


def is_query_expression(attribute: ColumnProperty[Any]) -> bool:
    """Tell whether an attribute is a `query_expression()`: what it is loaded with comes with the statement alone."""
    return attribute.strategy_key == _QUERY_EXPRESSION


def has_default(attribute: ColumnProperty[Any]) -> bool:
    """Tell whether a `query_expression()` has an expression of its own, which each ordinary load evaluates."""
    column: Any = attribute.columns[0]
    return not isinstance(getattr(column, "element", column), Null)


_QUERY_EXPRESSION = (("query_expression", True),)


def _is_made_as_usual(mapper: Mapper[Any]) -> bool:
    """Tell whether an instance is a bare object with a bare state in its `__dict__`, and nothing watches it made."""
    cls, manager = mapper.class_, mapper.class_manager
    if type(manager) is not ClassManager or any(getattr(cls, name) is not getattr(object, name) for name in _MAKERS):
        return False
    if not cls.__dictoffset__ or hasattr(cls, DEFAULT_STATE_ATTR):
        return False
    instance = manager.new_instance()
    state = instance_state(instance)
    slots = {name for name in InstanceState.__slots__ if not name.startswith("__")}
    return (
        type(state) is InstanceState
        and slots == _STATE
        and not vars(state)
        and instance_dict(instance) is instance.__dict__
        and vars(instance) == {DEFAULT_STATE_ATTR: state}
    )


_MAKERS = ("__new__", "__setattr__", "__getattribute__")
_STATE = frozenset({"class_", "manager", "obj", "committed_state", "expired_attributes"})
