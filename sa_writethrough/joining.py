"""Whom a statement's rows join: the collections that are touched because a row may come to refer to their owner.

A statement that is not surely understood closes the epoch of the collection: all of its entries are unreadable then,
at the same cost for any number. What leaves a collection is nobody's business here; `references` says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sa_writethrough import _relationships, _sqla
from sa_writethrough.core import Core
from sa_writethrough.dml import have_one_form
from sa_writethrough.effects import Effect, Written
from sa_writethrough.entities import Scope, table_name
from sa_writethrough.references import Collection
from sa_writethrough.unit import Touch, Unit

__all__ = ["Joining"]

Owners: TypeAlias = list[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class _Join:
    """What a compiled INSERT or UPDATE does to a collection: the parameters of the foreign key, or None: unknown."""

    collection: Collection
    parameters: tuple[str, ...] | None


class Joining:
    """Touches the collections of one registration."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def note(self, unit: Unit, effects: Sequence[Effect], facts: Any, context: Any) -> None:
        """Touch the collections that the statement with these *effects*, which is about to be executed, adds to."""
        options = context.execution_options
        for effect in effects:
            if isinstance(effect, Written) and effect.identities is None:
                scope = self._core.scope(effect.family, facts, options)
                self.close(unit, effect.family, scope)
        if context.isinsert or context.isupdate:
            for join in self._joins(context):
                scope = self._core.scope(join.collection.members, facts, options)
                self._touch(unit, join, scope, context)

    def close(self, unit: Unit, family: Any, scope: Scope) -> None:
        """Close every collection of rows of *family*, which has *scope*."""
        for collection in self._core.collections.of_members(family):
            unit.touch_epoch(collection.scope(scope).epoch, collection)

    def _touch(self, unit: Unit, join: _Join, members: Scope, context: Any) -> None:
        collection = join.collection
        scope = collection.scope(members)
        owners = None if join.parameters is None else _owners(collection, join.parameters, context)
        for owner in owners or ():
            key = collection.key(scope, owner)
            if key is None:
                unit.touch_epoch(scope.epoch, collection)
            else:
                unit.touch(key, Touch(collection, scope.epoch, owner, held=False))
        if owners is None:
            unit.touch_epoch(scope.epoch, collection)

    def _joins(self, context: Any) -> Sequence[_Join]:
        compiled = context.compiled
        if compiled is None:
            return ()  # as text it has named no rows
        analyses = self._core.collections.analyses
        joins: Sequence[_Join] | None = analyses.get(compiled)
        if joins is None:
            joins = analyses[compiled] = tuple(self._analyse(context, compiled))
        return joins

    def _analyse(self, context: Any, compiled: Any) -> Iterator[_Join]:
        statement = compiled.statement
        table = getattr(statement, "table", None)
        if table is None or getattr(table, "columns", None) is None:
            return
        for collection in self._core.collections.joined_through(table_name(table)):
            columns = [column for column in collection.columns if table_name(column.table) == table_name(table)]
            if context.isinsert:
                if columns:
                    yield from self._inserted(collection, statement, compiled)
            else:
                yield from self._updated(collection, columns, statement, compiled)

    @staticmethod
    def _inserted(collection: Collection, statement: Any, compiled: Any) -> Iterator[_Join]:
        parameters = _relationships.value_parameters(compiled, statement, collection.columns)
        if parameters is None and _relationships.leaves_null(compiled, statement, collection.columns):
            return
        yield _Join(collection, parameters)

    @staticmethod
    def _updated(collection: Collection, columns: Sequence[Any], statement: Any, compiled: Any) -> Iterator[_Join]:
        table = statement.table
        known = {name for column in table.columns for name in (column.name, column.key)}
        # Of the parameters, those named as a column set it, and any other is one of a criterion.
        changed = _sqla.dml_values(statement) | (set(compiled.column_keys or ()) & known)
        keys = collection.members.key_columns(table_name(table)) or []
        order = [column for column in collection.order if table_name(column.table) == table_name(table)]
        # A new key of a member, or another place in the order: whose members these are, no statement says. And a name
        # that no column has is an attribute's, and may be any column's; what is set unasked may be, too.
        elsewhere = {name for column in order for name in (column.name, column.key)} | set(keys)
        unasked = any(c.onupdate is not None or c.server_onupdate is not None for c in (*columns, *order))
        if unasked or changed & elsewhere or changed - known:
            yield _Join(collection, None)
        elif changed & {name for column in columns for name in (column.name, column.key)}:
            yield _Join(collection, _relationships.value_parameters(compiled, statement, collection.columns))


def _owners(collection: Collection, parameters: Sequence[str], context: Any) -> Owners | None:
    """Return whom the rows join; None where that is not certain. NULL in a key refers to nobody."""
    owners = []
    for values in context.compiled_parameters:
        try:
            owner = tuple([values[name] for name in parameters])
        except KeyError:
            return None
        if None in owner:
            continue
        if not have_one_form(collection.owner, owner, context.dialect):
            return None
        owners.append(owner)
    return owners
