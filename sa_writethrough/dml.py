"""What a statement writes: which families, and which of their rows where they can be named.

Sees every statement just before the driver does, so nothing that goes through SQLAlchemy is missed: bulk methods, Core
DML, DML in a CTE of a SELECT, `text()`. Decides nothing about sessions or entries.

SQLAlchemy keeps what it compiled and executes it again with other parameters. So the statement itself is analysed once,
and an execution costs no more than its primary keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import types
from sqlalchemy.dialects.sqlite import DATETIME as SQLITE_DATETIME
from sqlalchemy.orm import FromStatement
from sqlalchemy.sql import operators
from sqlalchemy.sql.ddl import DDLElement
from sqlalchemy.sql.elements import (
    BinaryExpression,
    BindParameter,
    BooleanClauseList,
    ReleaseSavepointClause,
    RollbackToSavepointClause,
    SavepointClause,
    TextClause,
)
from sqlalchemy.sql.selectable import TextualSelect

from sa_writethrough import _sqla
from sa_writethrough._relationships import tables_set
from sa_writethrough.effects import NAMED_OPTION, TABLES_OPTION, Effect, Released, RolledBack, Saved, Written, named
from sa_writethrough.entities import Entities, Family, mapper_of, table_name
from sa_writethrough.exceptions import ConfigurationError
from sa_writethrough.sqltext import commits_by_itself, text_writes

__all__ = ["ends_transaction", "have_one_form", "writes_of"]

Effects: TypeAlias = Sequence[Effect]


@dataclass(frozen=True, slots=True)
class _Target:
    """One family that a compiled INSERT, UPDATE or DELETE writes to."""

    family: Family
    unit_of_work: object
    """What the execution option `compiled_cache` is when SQLAlchemy's own persistence executes."""
    keys: tuple[str, ...] | None
    """The parameters that hold the primary key, where the WHERE clause names it by equality."""
    gone: bool
    inserts: bool
    replaces: bool


@dataclass(frozen=True, slots=True)
class _Analysis:
    """A compiled statement, as far as its parameters do not matter."""

    always: tuple[Effect, ...]
    targets: tuple[_Target, ...]


_TEXTS = (TextClause, TextualSelect, DDLElement)
_NOTHING = _Analysis((), ())
_SAVEPOINTS: tuple[tuple[type[Any], Callable[[str], Effect]], ...] = (
    (SavepointClause, Saved),
    (RollbackToSavepointClause, RolledBack),
    (ReleaseSavepointClause, Released),
)


def writes_of(entities: Entities, context: Any, sql: str) -> Effects:
    """Return what the statement that *context* is about to execute writes to cached families.

    Raises `ConfigurationError`, before anything is executed, for a statement whose effect cannot be known.
    """
    options = context.execution_options
    if TABLES_OPTION in options:
        return list(_declared(entities, options[TABLES_OPTION]))
    compiled = context.compiled
    if compiled is None:
        return list(text_writes(entities, sql, context.dialect.name))
    analysis = entities.analyses.get(compiled)
    if analysis is None:
        analysis = entities.analyses[compiled] = _analyse(entities, context, compiled, sql)
    if not analysis.targets:
        return analysis.always
    return [*analysis.always, *(_written(target, context, options) for target in analysis.targets)]


def ends_transaction(context: Any, sql: str) -> bool:
    """Tell whether the database commits the transaction, before and after, because of this statement."""
    if context.dialect.name != "mariadb":
        return False
    compiled = context.compiled
    return (compiled is None or isinstance(_statement(compiled), _TEXTS)) and commits_by_itself(sql)


def _written(target: _Target, context: Any, options: Any) -> Written:
    family = target.family
    if options.get(NAMED_OPTION) is family:
        return Written(family, ())
    by_unit_of_work = options.get("compiled_cache") is target.unit_of_work
    if target.inserts:
        # New rows have no entries: a plain INSERT writes nothing that is cached. One into a table that holds a part of
        # rows that exist does.
        part = not target.replaces and table_name(family.base.local_table) != table_name(_table(context))
        if target.replaces or (part and not by_unit_of_work):
            return Written(family, None)
        return Written(family, (), by_unit_of_work=by_unit_of_work, unseen=True)
    if family.policy.negative and target.gone and not context.isdelete:
        return Written(family, None)  # it may be cached that there is no row with the new key
    identities = None
    if target.keys is not None and (by_unit_of_work or family.exact):
        identities = _identities(context, target.keys)
        if identities is not None and not all(
            have_one_form(family, identity, context.dialect) for identity in identities
        ):
            identities = None
    return Written(family, identities, target.gone, by_unit_of_work)


def _declared(entities: Entities, declared: Any) -> Iterator[Written]:
    if isinstance(declared, str) or not isinstance(declared, Iterable):
        raise ConfigurationError(
            f"execution_options({TABLES_OPTION}={declared!r}): give a list of table names, tables or mapped classes."
        )
    for item in declared:
        if isinstance(item, str):
            schema, _, name = item.rpartition(".")
            yield from named(entities, [(schema or None, name)])
        elif hasattr(item, "foreign_key_constraints"):
            yield from named(entities, [table_name(item)])
        else:
            yield from named(entities, [table_name(table) for table in mapper_of(item).tables])


# --- the analysis -----------------------------------------------------------------------------------------------------


def _analyse(entities: Entities, context: Any, compiled: Any, sql: str) -> _Analysis:
    statement = _statement(compiled)
    for clause, effect in _SAVEPOINTS:
        if isinstance(statement, clause):
            return _Analysis((effect(statement.ident),), ())
    if isinstance(statement, _TEXTS):
        return _Analysis(tuple(text_writes(entities, sql, context.dialect.name)), ())
    always = list(_in_ctes(entities, compiled))
    if not (context.isinsert or context.isupdate or context.isdelete):
        return _Analysis(tuple(always), ()) if always else _NOTHING
    changed: set[str] = set()
    if context.isupdate:
        changed = _sqla.dml_values(statement) | set(compiled.column_keys or ())
    always += _elsewhere(entities, context, statement, changed)
    families = entities.families_of_table(table_name(statement.table))
    return _Analysis(
        tuple(always), tuple(_target(family, context, compiled, statement, changed) for family in families)
    )


def _in_ctes(entities: Entities, compiled: Any) -> Iterator[Effect]:
    for cte in getattr(compiled, "ctes", None) or ():
        if isinstance(cte.element, TextualSelect):
            yield from text_writes(entities, str(cte.element.element), compiled.dialect.name)
        elif getattr(cte.element, "is_dml", False):
            yield from named(entities, [table_name(cte.element.table)])


def _elsewhere(entities: Entities, context: Any, statement: Any, changed: set[str]) -> Iterator[Effect]:
    """Yield what the database changes beside the statement's own rows: by foreign keys, and by REPLACE."""
    name = table_name(statement.table)
    if context.isdelete:
        reached = entities.reached_by_delete(name)
    elif _upserts(statement) if context.isinsert else _cascades(entities, statement.table, changed):
        reached = entities.reached_by_update(name)
    else:
        reached = ()
    for family in reached:
        yield Written(family, None)
    if not context.isdelete and _replaces(entities, context, statement):
        yield from named(entities, [name])
    if context.isupdate:
        yield from named(entities, {table_name(table) for table in tables_set(statement)} - {name})


def _target(family: Family, context: Any, compiled: Any, statement: Any, changed: set[str]) -> _Target:
    names = family.key_columns(table_name(statement.table))
    columns = [column for column in getattr(statement.table, "columns", ()) if column.name in (names or ())]
    return _Target(
        family=family,
        unit_of_work=_sqla.persistence_cache(family.base),
        keys=None if names is None or context.isinsert else _key_parameters(compiled, statement, names),
        gone=context.isdelete or bool(names and changed.intersection([*names, *(column.key for column in columns)])),
        inserts=context.isinsert,
        replaces=context.isinsert and (_upserts(statement) or _sqla.has_prefixes(statement)),
    )


def _statement(compiled: Any) -> Any:
    """Return what was compiled: of `select(X).from_statement(y)`, y."""
    statement = getattr(compiled, "statement", None)
    while isinstance(statement, FromStatement):
        statement = statement.element
    return statement


def _table(context: Any) -> Any:
    return _statement(context.compiled).table


def _upserts(statement: Any) -> bool:
    clause = getattr(statement, "_post_values_clause", None)
    return clause is not None and "nothing" not in type(clause).__name__.lower()


def _replaces(entities: Entities, context: Any, statement: Any) -> bool:
    """Tell whether an INSERT or UPDATE may delete rows that are in its way: OR REPLACE, in it or in its table."""
    if context.dialect.name == "sqlite" and entities.replaces(table_name(statement.table)):
        return True
    return _sqla.has_prefixes(statement)


def _cascades(entities: Entities, table: Any, changed: set[str]) -> bool:
    """Tell whether an UPDATE may change a column that foreign keys with ON UPDATE refer to."""
    referred = entities.cascading_columns(table_name(table))
    if not referred:
        return False
    columns = list(getattr(table, "columns", ()))
    known = {name for column in columns for name in (column.name, column.key)}
    # A name that no column has is an attribute's, and may be any column's.
    unasked = any(c.onupdate is not None or c.server_onupdate is not None for c in columns if c.name in referred)
    return unasked or bool(changed & referred or changed - known)


def _key_parameters(compiled: Any, statement: Any, names: Sequence[str]) -> tuple[str, ...] | None:
    """Return the parameters that the WHERE clause compares the primary key's columns *names* with."""
    binds: dict[str, BindParameter[Any]] = {}
    for clause in _conjuncts(getattr(statement, "_where_criteria", ())):
        if not isinstance(clause, BinaryExpression) or clause.operator is not operators.eq:
            continue
        column, value = clause.left, clause.right
        own = table_name(getattr(column, "table", None)) == table_name(statement.table)
        if own and isinstance(value, BindParameter) and getattr(column, "name", None) in names:
            binds[column.name] = value
    if len(binds) < len(names):
        return None
    if any(bind not in compiled.bind_names for bind in binds.values()):
        return None
    return tuple([str(compiled.bind_names[binds[name]]) for name in names])


def _conjuncts(criteria: Iterable[Any]) -> Iterator[Any]:
    for clause in criteria:
        if isinstance(clause, BooleanClauseList) and clause.operator is operators.and_:
            yield from _conjuncts(clause.clauses)
        else:
            yield clause


# --- one execution ----------------------------------------------------------------------------------------------------


def _identities(context: Any, keys: Sequence[str]) -> list[tuple[Any, ...]] | None:
    """Return the primary keys, one per set of parameters."""
    try:
        return [tuple([parameters[key] for key in keys]) for parameters in context.compiled_parameters]
    except KeyError:
        return None


def have_one_form(family: Family, identity: Sequence[Any], dialect: Any) -> bool:
    """Tell whether a row with this primary key is read under the same key, and under no other."""
    for column, value in zip(family.base.primary_key, identity, strict=True):
        if not _has_one_form(column.type, value, dialect):
            return False
    return True


def _has_one_form(type_: Any, value: Any, dialect: Any) -> bool:
    """Tell whether the database gives *value* back as it is: 1 and not True or '1', a UUID's text as it writes it.

    A value of a session's instance need not be: a date stands for a datetime, 1.005 is rounded, a time zone is dropped.
    """
    if isinstance(type_, types.Integer):
        return type(value) is int
    if isinstance(type_, types.Uuid):
        return isinstance(value, UUID) or _is_canonical_uuid(value)
    if isinstance(type_, types.TypeDecorator):
        return _comes_back(type_, value, dialect)
    for kind, check in _FORMS:
        if isinstance(type_, kind):
            return check(type_, value, dialect)
    return False


def _comes_back(type_: Any, value: Any, dialect: Any) -> bool:
    """Tell whether a type of the application's returns the value that it is given."""
    own = type(type_)
    bound = value
    try:
        if own.process_bind_param is not types.TypeDecorator.process_bind_param:
            bound = type_.process_bind_param(value, dialect)
        back = bound
        if own.process_result_value is not types.TypeDecorator.process_result_value:
            back = type_.process_result_value(bound, dialect)
        same = type(back) is type(value) and bool(back == value)
    except Exception:  # noqa: BLE001 - the application's code, with a value that it does not expect
        return False
    return same and (bound is not value or _has_one_form(type_.impl_instance, value, dialect))


def _enum(type_: Any, value: Any, _dialect: Any) -> bool:
    return type(value) is str if type_.enum_class is None else isinstance(value, type_.enum_class)


def _string(type_: Any, value: Any, _dialect: Any) -> bool:
    return type(value) is str and (type_.length is None or len(value) <= type_.length)


def _moment(type_: Any, value: Any, dialect: Any) -> bool:
    if (
        type(value) is not datetime
        or isinstance(type_, SQLITE_DATETIME)
        or getattr(type_, "precision", None) is not None
    ):
        return False  # SQLite's own type may store less of it, and so may a precision
    if dialect.name == "postgresql":
        return (value.tzinfo is not None) is bool(type_.timezone)
    # MariaDB drops the fraction of a second, unless the column has digits for it.
    return value.tzinfo is None and not (dialect.name == "mariadb" and value.microsecond)


def _numeric(type_: Any, value: Any, dialect: Any) -> bool:
    if type(value) is not Decimal or not value.is_finite():
        return False
    _, digits, exponent = value.as_tuple()
    scale = type_.scale if type_.scale is not None else 0 if type_.precision is not None else _DEFAULT_SCALE
    if dialect.name == "mariadb" and type_.scale is None:
        scale = 0
    fits = dialect.name == "postgresql" or len(digits) <= _FLOAT_DIGITS
    return fits and isinstance(exponent, int) and -exponent <= scale


_DEFAULT_SCALE = 10
"""To how many places SQLAlchemy rounds a number that it gets as a float."""
_FLOAT_DIGITS = 15
_FORMS: tuple[tuple[type, Callable[[Any, Any, Any], bool]], ...] = (
    (types.Enum, _enum),
    (types.String, _string),
    (types.DateTime, _moment),
    (types.Date, lambda _type, value, _dialect: type(value) is date),
    (types.Numeric, _numeric),
    (types.LargeBinary, lambda _type, value, _dialect: type(value) is bytes),
)
"""By type: is this value the one that is read back? Of all other types no value surely is."""


def _is_canonical_uuid(value: Any) -> bool:
    try:
        return bool(str(UUID(value)) == value)
    except (TypeError, ValueError, AttributeError):
        return False
