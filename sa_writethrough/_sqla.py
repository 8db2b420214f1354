"""SQLAlchemy's internals: this room and `_instances` alone name a private attribute of SQLAlchemy.

Each function is one internal; `tests/unit/test_sqla.py` checks that every one still exists and does what is said here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from traceback import clear_frames
from typing import Any

from sqlalchemy.engine import Connection, Dialect, Engine, IteratorResult, Result, ScalarResult
from sqlalchemy.engine.cursor import _NO_CURSOR_DML
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.orm import InstanceState, Mapper, ORMExecuteState, Session
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.context import QueryContext
from sqlalchemy.orm.mapper import _all_registries
from sqlalchemy.sql import ColumnElement, FromClause, Select
from sqlalchemy.util import immutabledict

__all__ = [
    "all_mappers",
    "attach",
    "autobegin",
    "autoflush",
    "changes_to_come",
    "clauses_of",
    "commit_all",
    "commits_on_return",
    "connect_isolation_level",
    "discard_rows",
    "dml_values",
    "ends_transaction",
    "empty_result",
    "entity_metadata",
    "entity_result",
    "executes_alone",
    "flushes_first",
    "has_cycles",
    "has_ordered",
    "has_prefixes",
    "has_returning",
    "identity_class",
    "identity_of_get",
    "is_autocommit",
    "is_expired",
    "is_joined",
    "is_plain_load",
    "info_of",
    "is_plain_select",
    "let_go_of_cursors",
    "options_of",
    "pooled",
    "persistence_cache",
    "plain_bind",
    "root_engine",
    "returns_rows",
    "savepoint_joined_by",
    "selected_mapper",
    "states_of",
    "without_rows",
]

# --- sessions -------------------------------------------------------------------------------------------------------


def is_joined(session: Session, connection: Connection) -> bool:
    """Tell whether the session was bound to this very connection, which may have begun before it."""
    transaction = session._transaction
    entry = None if transaction is None else transaction._connections.get(connection)
    return entry is not None and not entry[3]


def savepoint_joined_by(session: Session, connection: Connection) -> str | None:
    """Return the savepoint that the session set on this connection when it joined its transaction, or None."""
    nested = connection.get_nested_transaction()
    # Of the other modes, which set none, it would be somebody else's.
    sets_one = session.join_transaction_mode in {"create_savepoint", "conditional_savepoint"}
    return nested._savepoint if nested is not None and sets_one and is_joined(session, connection) else None


def autobegin(session: Session) -> None:
    """Begin as SQLAlchemy would before a read, or raise as it would where autobegin is off."""
    session._autobegin_t()


def autoflush(session: Session) -> bool:
    """Flush as SQLAlchemy would before a query; tell whether there may have been something to flush."""
    if session._is_clean():
        return False
    session._autoflush()
    return True


def ends_transaction(session: Session, connection: Connection) -> bool:
    """Tell whether the session's commit is a COMMIT on this connection: not where it joined an outer transaction."""
    begun = {} if session._transaction is None else session._transaction._connections
    entry = begun.get(connection)
    return entry is not None and entry[2] and entry[1] is connection.get_transaction()


def has_cycles(flush_context: Any) -> bool:
    """Tell whether a flush wrote instances in turns, those of one mapper too: some of them depend on each other."""
    return bool(flush_context.cycles)


def attach(state: InstanceState[Any], key: Any, session_id: int, identity_map: Any) -> None:
    """Make a new clean instance persistent in the session with this id and identity map, which must not hold *key*."""
    state.key = key
    state.identity_token = key[2]
    state.session_id = session_id
    identity_map._add_unpresent(state, key)


def states_of(session: Session) -> Mapping[Any, InstanceState[Any]]:
    """Return the states of the session's persistent instances by identity key; some may be of collected ones."""
    return session.identity_map._dict


def plain_bind(session: Session) -> Any:
    """Return what the session is bound to if that is all there is to it: no `binds`, no `get_bind` of its own."""
    own = getattr(session.get_bind, "__func__", None) is not _GET_BIND
    return None if own or _binds_of(session) else session.bind


def info_of(session: Session) -> dict[Any, Any]:
    """Return `Session.info`, or an empty dict of nobody's where nobody asked for it yet: then it is not made."""
    return session.__dict__.get("info") or {}


def pooled(connection: Connection) -> Any:
    """Return the pool's hold of a connection, which has `info`; None where it was closed or invalidated."""
    return connection._dbapi_connection


def commit_all(state: InstanceState[Any], dict_: dict[str, Any], identity_map: Any) -> None:
    """Take the instance's values for its row's."""
    state._commit_all(dict_, identity_map)


_GET_BIND = Session.get_bind
_binds_of = attrgetter("binds" if "binds" in Session.__annotations__ else "_Session__binds")  # SQLAlchemy 2.1, or 2.0


# --- engines and connections ----------------------------------------------------------------------------------------


def root_engine(engine: Engine) -> Engine:
    """Return the engine that an engine with options of its own was derived from."""
    while (proxied := getattr(engine, "_proxied", None)) is not None:
        engine = proxied
    return engine


def is_autocommit(connection: Connection) -> bool:
    """Tell whether SQLAlchemy put this connection into driver-level autocommit."""
    return connection._is_autocommit_isolation()


def connect_isolation_level(dialect: Dialect) -> str | None:
    """Return `create_engine(isolation_level=...)`."""
    return dialect._on_connect_isolation_level


def executes_alone(dialect: Dialect) -> bool:
    """Tell whether no more than one listens for the statements of the dialect: each may execute them in its own way."""
    events = dialect.dispatch
    return len(events.do_execute) == len(events.do_executemany) == len(events.do_execute_no_params) == 1


def commits_on_return(engine: Engine) -> bool:
    """Tell whether the pool commits what a connection left behind (`pool_reset_on_return="commit"`)."""
    return getattr(engine.pool._reset_on_return, "name", "") == "reset_commit"


def let_go_of_cursors(error: BaseException) -> None:
    """Drop what the frames that *error* left hold, for a statement that a cancellation interrupted.

    SQLAlchemy's own frame refers to the traceback that it is in, and so to the cursor, until the garbage collector
    comes by; and SQLite keeps the locks of a connection that was closed while it has a statement.
    """
    clear_frames(error.__traceback__)


# --- mappers --------------------------------------------------------------------------------------------------------


def all_mappers() -> Iterator[Mapper[Any]]:
    """Return every mapper that exists, configured or not."""
    for registry in list(_all_registries()):
        yield from list(registry.mappers)


def identity_class(mapper: Mapper[Any]) -> type[Any]:
    """Return the class that stands in the identity keys of the mapper's instances."""
    return mapper._identity_class


def persistence_cache(mapper: Mapper[Any]) -> object:
    """Return the statement cache that marks a statement as written by the unit of work for this mapper."""
    return mapper.base_mapper._compiled_cache


# --- statements -----------------------------------------------------------------------------------------------------


def is_plain_select(statement: Select[Any]) -> bool:
    """Tell whether *statement* is `select(X).where(...)` and nothing else: no join, limit, order, lock or criteria."""
    return not (
        statement._limit_clause is not None
        or statement._offset_clause is not None
        or statement._fetch_clause is not None
        or statement._distinct
        or statement._distinct_on
        or statement._group_by_clauses
        or statement._having_criteria
        or statement._order_by_clauses
        or statement._for_update_arg is not None
        or statement._from_obj
        or statement._setup_joins
        or statement._prefixes
        or statement._suffixes
        or statement._hints
        or statement._statement_hints
        or statement._correlate
        or statement._independent_ctes
        or statement._memoized_select_entities
        or len(statement._raw_columns) != 1
    )


def clauses_of(statement: Select[Any]) -> Sequence[ColumnElement[Any]]:
    """Return the statement's WHERE clauses; they are joined by AND."""
    return statement._where_criteria


def options_of(statement: Any) -> Sequence[Any]:
    """Return the statement's options."""
    return getattr(statement, "_with_options", ())


def identity_of_get(mapper: Mapper[Any], statement: Select[Any], parameters: Any) -> tuple[Any, ...] | None:
    """Return what `session.get` asks for; None if it did not make *statement* (or not as SQLAlchemy 2.1 makes it)."""
    clause, binds = mapper._get_clause
    criteria = statement._where_criteria
    if len(criteria) != 1 or criteria[0] is not clause or not parameters:
        return None
    return tuple([parameters.get(binds[column].key) for column in mapper.primary_key])


def selected_mapper(statement: Select[Any]) -> Mapper[Any] | None:
    """Return the mapper of `select(Class)`, or None where anything else is selected: columns, aliases, bundles."""
    selected = statement._raw_columns[0] if len(statement._raw_columns) == 1 else None
    if not isinstance(selected, FromClause):
        return None
    entity = selected._annotations.get("parententity")
    return entity if getattr(entity, "is_mapper", False) else None


def is_plain_load(state: ORMExecuteState) -> bool:
    """Tell whether a SELECT loads new instances whole, with no refresh, no `populate_existing`, no criteria added."""
    options = state.load_options
    return not (
        (options is not _DEFAULT_LOAD and (_is_special(options) or state.is_column_load))
        or state.execution_options.get("identity_token") is not None
        or state.execution_options.get("stream_results")
        or "bind" in state.bind_arguments
        or "shard_id" in state.bind_arguments
    )


def _is_special(options: Any) -> bool:
    return bool(
        options._populate_existing
        or options._refresh_state is not None
        or options._yield_per is not None
        or options._only_return_tuples
        or options._identity_token is not None
    )


_DEFAULT_LOAD = QueryContext.default_load_options


def changes_to_come(state: ORMExecuteState) -> bool:
    """Tell whether further `do_orm_execute` listeners will see the statement, and may add criteria to it."""
    return state._starting_event_idx + 1 < len(state._events_todo)


def flushes_first(state: ORMExecuteState) -> bool:
    """Tell whether this execution flushes before it reads."""
    return bool(state.load_options._autoflush)


def is_expired(session: Session, key: Any) -> bool:
    """Tell whether the session has this identity and would refresh it in passing."""
    instance = session.identity_map.get(key)
    return instance is not None and bool(instance_state(instance).expired)


def has_prefixes(statement: Any) -> bool:
    """Tell whether a statement has words after its verb, such as OR REPLACE."""
    return bool(statement._prefixes)


def dml_values(statement: Any) -> set[str]:
    """Return the names of the columns that an UPDATE statement itself sets; parameters may set others."""
    names: set[str] = set()
    for values in (statement._values, dict(statement._ordered_values or ()) if has_ordered(statement) else None):
        names.update(getattr(column, "key", column) for column in values or ())
    return names


def has_ordered(statement: Any) -> bool:
    """Tell whether an UPDATE sets its values in an order of its own."""
    return bool(getattr(statement, "_ordered_values", None))


def entity_metadata(mapper: Mapper[Any]) -> Any:
    """Return what describes the rows of `select(Class)`."""
    keys, extra = [mapper.class_.__name__], [(mapper.class_, mapper)]
    try:  # SQLAlchemy 2.1
        return SimpleResultMetaData(keys, extra, _create_unique_filters=lambda _: [id])
    except TypeError:  # SQLAlchemy 2.0
        return SimpleResultMetaData(keys, extra, _unique_filters=[id])  # type: ignore[call-arg]  # 2.1 is checked


def entity_result(metadata: Any, instances: Sequence[Any]) -> Result[Any]:
    """Return a result of rows of one entity."""
    kind = _FoundResult if len(instances) <= 1 else IteratorResult
    # Instances and not rows, as SQLAlchemy's own loader gives them: it makes rows of them where rows are asked for.
    result: Result[Any] = kind(metadata, iter(instances), _source_supports_scalars=True)
    result._attributes = _SINGLE_ENTITY
    return result


def empty_result() -> Result[Any]:
    """Return a result without rows and columns."""
    return IteratorResult(SimpleResultMetaData(()), iter(()))


class _FoundResult(IteratorResult[Any]):
    """At most one instance; `session.get` asks for `.unique().scalars().one()`, and this is the short way to it."""

    def unique(self, strategy: Any = None) -> Any:  # noqa: ARG002 - one instance is unique in any way
        return self

    def scalars(self, index: Any = 0) -> Any:
        return _FoundScalars(self, index)


class _FoundScalars(ScalarResult[Any]):
    def one(self) -> Any:
        found: Any = self._real_result
        for instance in found.iterator:
            found._soft_close(hard=True)
            return instance
        return super().one()  # raises what it raises for none


# What makes the legacy Query give instances and not rows.
_SINGLE_ENTITY = immutabledict({"filtered": True, "is_single_entity": True})


def returns_rows(context: Any) -> bool:
    """Tell whether a compiled DML statement has RETURNING already, SQLAlchemy's own for defaults included."""
    return bool(context.compiled.effective_returning)


def discard_rows(context: Any) -> None:
    """Have the statement's result made as one of a DML statement without RETURNING: its rows have been fetched."""
    context.cursor_fetch_strategy = _NO_CURSOR_DML


def has_returning(statement: Any) -> bool:
    """Tell whether a DML statement has RETURNING of its own."""
    return bool(statement._returning)


def without_rows(result: Any, count: int) -> Any:
    """Return the cursor's result of a DML statement whose *count* RETURNING rows were read, as one without rows."""
    cursor_result = getattr(result, "raw", result)
    cursor_result.context._rowcount = count
    return cursor_result
