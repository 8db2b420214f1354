"""What is known of a row without asking the database, after a flush: the instance is not the row.

An INSERT wrote every column, so the row is known where the database stores each value as it was given. An UPDATE wrote
some columns, and the instance may have old values in the others: not even a `version_id_col` that matched proves that
it has not, since bulk statements and other programs need not raise the version. Its row comes from the database.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.orm import InstanceState, Mapper, Session

from sa_writethrough.core import Core, SessionWork
from sa_writethrough.entities import Family
from sa_writethrough.exceptions import CodecError
from sa_writethrough.layouts import Layout
from sa_writethrough.policy import OnWrite, ReadBack
from sa_writethrough.unit import Touch, Unit

__all__ = ["Snapshots"]


class Snapshots:
    """Takes rows from instances that were just inserted."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def after_flush(self, session: Session, work: SessionWork, context: Any) -> None:
        """Touch what was inserted, and note the rows that are known."""
        for state, (is_delete, list_only) in context.states.items():
            if list_only or is_delete or state.key is not None:
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
        identity = tuple(state.mapper.primary_key_from_instance(state.obj()))
        key = family.key(scope, identity)
        if key is None:
            unit.touch_epoch(scope.epoch, family)
            return
        earlier = unit.rows().get(key)
        if earlier is not None and earlier.held and not earlier.gone:
            return  # SQLAlchemy wrote an UPDATE: the instance took the place of a deleted one
        values = _inserted(layout, state) if _trusts(family, state.mapper) else None
        payload = None if values is None else self._encoded(layout, values)
        unit.wrote = True
        unit.touch(key, Touch(family, scope.epoch, identity, held=True, payload=payload))

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
        # What SQLAlchemy has expired was an SQL expression, or came back from the database: it is no NULL.
        if value is _ABSENT and name not in state.expired_attributes and _defaults_to_null(source):
            value = None
        elif value is _ABSENT or column.exact is None or not column.exact(value):
            return None
        values.append(value)
    return tuple(values)


def _defaults_to_null(source: Any) -> bool:
    return source.default is None and source.server_default is None and source.computed is None


_ABSENT = object()
