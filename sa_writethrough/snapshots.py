"""What is known of a row without asking the database, after a flush: the instance is not the row.

An INSERT wrote every column, so the row is known where the database stores each value as it was given. An UPDATE wrote
some columns, and the instance may have old values in the others: not even a `version_id_col` that matched proves that
it has not, since bulk statements and other programs need not raise the version. Its row comes from the database.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.orm import InstanceState, Mapper, Session

from sa_writethrough import _sqla
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
        changing: _Changing | None = None
        for state, (is_delete, list_only) in context.states.items():
            if list_only or is_delete or state.key is not None:
                continue
            family = self._core.entities.family_of(state.mapper)
            if family is not None:
                changing = changing or _Changing(context)
                self._after_flush(session, work, family, state, changing)

    def _after_flush(
        self,
        session: Session,
        work: SessionWork,
        family: Family,
        state: InstanceState[Any],
        changing: _Changing,
    ) -> None:
        if changing.replaced and state.mapper.identity_key_from_instance(state.obj()) in changing.replaced:
            return  # it took the place of a deleted one: what was written, if anything, was an UPDATE
        connection, unit = self._unit(session, work, state)
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
            return  # it was updated in the same flush, by post_update
        # What else touched it, a listener's SQL in the middle of the flush, may have come after the INSERT.
        known = earlier is None and _trusts(family) and changing.leaves(state.mapper)
        values = _inserted(layout, state) if known else None
        payload = None if values is None else self._encoded(layout, values)
        unit.wrote = True
        unit.touch(key, Touch(family, scope.epoch, identity, held=True, payload=payload))

    def _encoded(self, layout: Layout, values: tuple[Any, ...]) -> bytes | None:
        try:
            return layout.codec.encode(values)
        except CodecError:  # the reading back says what is wrong, if it is not the instance alone
            return None

    def _unit(self, session: Session, work: SessionWork, state: InstanceState[Any]) -> tuple[Connection, Unit]:
        if len(work.units) == 1:
            return work.units[0]
        if session.connection_callable is not None:  # horizontal shards
            connection = session.connection_callable(state.mapper, state.obj())
        else:
            connection = session.connection(bind_arguments={"mapper": state.mapper})
        return connection, self._core.join(session, connection)


class _Changing:
    """What may have changed the instances of one flush after their SQL, which changes no row."""

    def __init__(self, context: Any) -> None:
        self.replaced = {
            state.key for state, (is_delete, list_only) in context.states.items() if is_delete and list_only
        }
        """The identities of deleted instances whose rows new instances took."""
        mappers = {state.mapper for state in context.states}
        self._after = any(_listens(mapper, _AFTER_SQL) for mapper in mappers)
        self._before = {mapper.base_mapper for mapper in mappers if _listens(mapper, _BEFORE_SQL)}
        self._in_turns = _sqla.has_cycles(context)

    def leaves(self, mapper: Mapper[Any]) -> bool:
        """Tell whether the instances of *mapper* are surely as they were when their rows were inserted.

        A listener of any mapper may change any instance. What comes before the SQL of one mapper comes after that of
        another; and of the same one, where its instances are written in turns.
        """
        if self._after or _changes_in_flush(mapper):
            return False
        if not self._before:
            return True
        return self._before == {mapper.base_mapper} and mapper.batch and not self._in_turns


_BEFORE_SQL = ("before_insert", "before_update")
_AFTER_SQL = ("after_insert", "after_update", "before_delete", "after_delete")


def _listens(mapper: Mapper[Any], names: Sequence[str]) -> bool:
    return any(getattr(mapper.dispatch, name) for name in names)


def _changes_in_flush(mapper: Mapper[Any]) -> bool:
    """Tell whether somebody is called with an instance whose defaults were just learnt; `Mutable` changes nothing."""
    listeners = mapper.class_manager.dispatch.refresh_flush
    return any(getattr(listener, "__module__", None) != _MUTABLE for listener in listeners)


_MUTABLE = "sqlalchemy.ext.mutable"


def _trusts(family: Family) -> bool:
    """Tell whether values may be taken from instances at all."""
    policy = family.policy
    return policy.on_write is OnWrite.PUBLISH and policy.read_back is ReadBack.WHEN_NEEDED


def _inserted(layout: Layout, state: InstanceState[Any]) -> tuple[Any, ...] | None:
    """Return the row that an INSERT wrote, if the database stores every value as it was given."""
    if layout.shares_columns:
        return None
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
