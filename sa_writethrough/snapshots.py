"""What is known of a row without asking the database, after a flush: the instance is not the row.

An INSERT wrote every column, so the row is known where the database stores each value as it was given. An UPDATE wrote
some columns; the others are known only where the mapper's `version_id_col` matched, since then nobody else has written
the row since it was loaded, and where the instance still has what was loaded. Everything else is read back.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.orm import InstanceState, Mapper, Session

from sa_writethrough.core import Core, SessionWork
from sa_writethrough.entities import Family
from sa_writethrough.exceptions import CodecError
from sa_writethrough.policy import OnWrite, ReadBack
from sa_writethrough.rows import Layout
from sa_writethrough.unit import Touch, Unit

__all__ = ["Snapshots"]

_SEEN = "_sa_writethrough_seen"
"""On an instance's state: the mutable values as they were when all of its columns were last known at one version."""


class Snapshots:
    """Takes rows from instances that were just flushed."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def after_flush(self, session: Session, work: SessionWork, context: Any) -> None:
        """Touch what was inserted, and note the rows that are known."""
        for state, (is_delete, list_only) in context.states.items():
            if list_only or is_delete:
                continue
            family = self._core.entities.family_of(state.mapper)
            if family is not None:
                self._after_flush(session, work, family, state)

    def _after_flush(self, session: Session, work: SessionWork, family: Family, state: InstanceState[Any]) -> None:
        connection, unit = self._unit(session, work, state.mapper)
        facts = self._core.engines.learn(connection)
        scope = self._core.scope(family, facts, connection.get_execution_options())
        layout = self._core.shapes(family, connection.dialect).layouts.get(state.mapper)
        if layout is None:
            return
        inserted = state.key is None
        identity = tuple(state.mapper.primary_key_from_instance(state.obj())) if state.key is None else state.key[1]
        key = family.key(scope, identity)
        if key is None:
            unit.touch_epoch(scope.epoch, family)
            return
        earlier = unit.rows().get(key)
        written = earlier is not None and earlier.held and not earlier.gone
        # A pending instance whose row was updated took the place of a deleted one: SQLAlchemy wrote an UPDATE.
        values = None
        if _trusts(family, state.mapper):
            if inserted and not written:
                values = _inserted(layout, state)
            elif written and not inserted:
                values = _updated(layout, state)
        payload = None if values is None else self._encoded(layout, values)
        if payload is not None:
            remember(layout, state)
        if inserted and not written:
            unit.wrote = True
            unit.touch(key, Touch(family, scope.epoch, identity, held=True, payload=payload))
        elif written and payload is not None and earlier is not None:
            unit.learn(key, earlier, payload)

    def _encoded(self, layout: Layout, values: tuple[Any, ...]) -> bytes | None:
        try:
            return layout.codec.encode(values)
        except CodecError:  # the reading back says what is wrong, if it is not the instance alone
            return None

    def _unit(self, session: Session, work: SessionWork, mapper: Mapper[Any]) -> tuple[Connection, Unit]:
        if len(work.units) == 1:
            return work.units[0]
        connection = session.connection(bind_arguments={"mapper": mapper})
        return connection, self._core.join(session, connection)


def _trusts(family: Family, mapper: Mapper[Any]) -> bool:
    """Tell whether values may be taken from instances of *mapper* at all."""
    policy = family.policy
    return (
        policy.on_write is OnWrite.PUBLISH
        and policy.read_back is ReadBack.WHEN_NEEDED
        # Such a listener may change an instance after its SQL, which changes no row.
        and not mapper.dispatch.after_insert
        and not mapper.dispatch.after_update
    )


def _inserted(layout: Layout, state: InstanceState[Any]) -> tuple[Any, ...] | None:
    """Return the row that an INSERT wrote, if the database stores every value as it was given."""
    values = []
    for name, source, column in zip(layout.names, layout.sources, layout.columns, strict=True):
        value = state.dict.get(name, _ABSENT)
        if value is _ABSENT and _defaults_to_null(source):
            value = None
        elif value is _ABSENT or column.exact is None or not column.exact(value):
            return None
        values.append(value)
    return tuple(values)


def _updated(layout: Layout, state: InstanceState[Any]) -> tuple[Any, ...] | None:
    """Return the row that an UPDATE left, if its version matched and the other columns are as they were loaded."""
    seen = state.__dict__.get(_SEEN)
    if seen is None or state.mapper.version_id_col is None:
        return None
    version = state.mapper.get_property_by_column(state.mapper.version_id_col).key
    changed = {*state.committed_state, version}
    values = []
    for name, source, column in zip(layout.names, layout.sources, layout.columns, strict=True):
        value = state.dict.get(name, _ABSENT)
        if value is _ABSENT or column.attribute is not None:
            return None
        if name in changed or source.onupdate is not None:
            if column.exact is None or not column.exact(value):
                return None
        elif any(key.ondelete or key.onupdate for key in source.foreign_keys):
            return None  # the database itself may have changed it, and that bumps no version
        elif name in layout.mutable and seen.get(name) != _frozen(layout, name, value):
            return None
        values.append(value)
    return tuple(values)


def remember(layout: Layout, state: InstanceState[Any]) -> None:
    """Note that all of the instance's columns are known at one version, and what its mutable values are now."""
    values = state.dict
    state.__dict__[_SEEN] = {name: _frozen(layout, name, values.get(name)) for name in layout.mutable}


def forget(state: InstanceState[Any]) -> None:
    """Note that the instance's columns may be of different versions."""
    state.__dict__.pop(_SEEN, None)


def _frozen(layout: Layout, name: str, value: Any) -> object:
    """Return something that compares equal only while a mutable value stays as it is."""
    try:
        return layout.mutable[name].encode((value,))
    except CodecError:
        return _ABSENT


def _defaults_to_null(source: Any) -> bool:
    return source.default is None and source.server_default is None and source.computed is None


class _Absent:
    """What an instance has not; equal to nothing, itself included."""

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = object.__hash__


_ABSENT = _Absent()
