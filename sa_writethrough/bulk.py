"""ORM-enabled `update()` and `delete()`: the exact rows, by RETURNING.

RETURNING and not a SELECT before: between the two another transaction may commit a row that the criterion matches, and
that row would be changed unannounced. What cannot return its rows (several sets of parameters, a database or a
statement without RETURNING, a primary key that changes) is left to `dml`, which names the rows or closes the epoch.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Result
from sqlalchemy.orm import Mapper, ORMExecuteState

from sa_writethrough import _sqla
from sa_writethrough.core import Core
from sa_writethrough.effects import NAMED_OPTION
from sa_writethrough.entities import Family, table_name
from sa_writethrough.unit import Touch

__all__ = ["Bulk"]


class Bulk:
    """Answers `do_orm_execute` for bulk statements of one registration."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def on_execute(self, state: ORMExecuteState) -> Result[Any] | None:
        """Execute a bulk statement so that its rows are known, or return None to let SQLAlchemy go on."""
        if not (state.is_update or state.is_delete) or state.is_executemany:
            return None
        if state.session.connection_callable is not None:
            return None  # horizontal shards: it may be executed in several
        mapper = state.bind_mapper
        family = None if mapper is None else self._core.entities.family_of(mapper)
        if family is None or mapper is None:
            return None
        columns = self._key_columns(state, family, mapper)
        if columns is None:
            return None
        return self._execute(state, family, columns)

    def _key_columns(self, state: ORMExecuteState, family: Family, mapper: Mapper[Any]) -> list[Any] | None:
        """Return the columns to return, or None where this statement cannot return its rows' keys."""
        statement: Any = state.statement
        dialect = state.session.get_bind(**state.bind_arguments).dialect
        returns = dialect.update_returning if state.is_update else dialect.delete_returning
        table = mapper.local_table
        names = family.key_columns(table_name(table))
        if not returns or names is None or _sqla.has_returning(statement) or "shard_id" in state.bind_arguments:
            return None
        if state.is_update and not _sqla.dml_values(statement) <= self._other_names(mapper):
            return None
        return [next(column for column in table.c if column.name == name) for name in names]

    @staticmethod
    def _other_names(mapper: Mapper[Any]) -> set[str]:
        """Return what surely means a column outside the primary key: not a synonym or a hybrid, which may mean any."""
        keys: set[str] = set()
        others: set[str] = set()
        for prop in mapper.column_attrs:
            names = {str(prop.key)}
            for column in prop.columns:
                names |= {str(name) for name in (getattr(column, "name", None), column.key) if name}
            (keys if any(column in mapper.primary_key for column in prop.columns) else others).update(names)
        for base in mapper.base_mapper.primary_key:
            keys |= {str(base.name), str(base.key)}
        return others - keys

    def _execute(self, state: ORMExecuteState, family: Family, columns: list[Any]) -> Result[Any]:
        statement: Any = state.statement
        result = state.invoke_statement(
            statement=statement.returning(*columns), execution_options={NAMED_OPTION: family}
        )
        identities = [tuple(row) for row in result.all()]
        connection = state.session.connection(bind_arguments=dict(state.bind_arguments))
        unit = self._core.join(state.session, connection)
        facts = self._core.engines.learn(connection)
        options = {**connection.get_execution_options(), **state.execution_options}
        scope = self._core.scope(family, facts, options)
        # Rows of another schema than the connection's cannot be read back by an ordinary SELECT: they are only dropped.
        held = "schema_translate_map" not in state.execution_options
        for identity in identities:
            key = family.key(scope, identity)
            if key is None:
                unit.touch_epoch(scope.epoch, family)
            else:
                unit.touch(key, Touch(family, scope.epoch, identity, held, gone=state.is_delete))
        counted: Result[Any] = _sqla.without_rows(result, len(identities))
        return counted
