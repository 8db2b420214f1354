"""What sessions of the machine do to rows without loading them, and the ways in which they read by identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import Session

import sa_writethrough as wt
from tests.properties.models import KINDS, Kind

COLUMNS = tuple(f"{name}.{text}" for name, kind in KINDS.items() for text in kind.texts)
REKEYED = ("Team", "Contract", "Product", "Price", "Seat", "Country", "City")
TO_ONE = {"User.team": "Team", "Item.user": "User", "Badge.user": "User", "City.country": "Country"}
TO_MANY = {"Team.users": "User", "User.items": "Item", "User.badges": "Badge", "Country.cities": "City"}
VIA = ("orm", "core", "connection", "text", "mappings")
INSERTS = ("orm", "core", "text", "mappings", "objects", "select", "upsert", "ignore")
WHERE = ("key", "name", "all")
WAYS = ("session.get", "select", "cache.get")
MANY_WAYS = ("select", "cache.get_many")


def column_of(path: str) -> tuple[Kind, str]:
    """Return what 'User.note' names."""
    name, _, column = path.partition(".")
    return KINDS[name], column


def foreign_key_of(instance: Any, name: str) -> Any:
    """Return the value of the one column by which a many-to-one relationship is loaded."""
    mapper = sa.inspect(instance).mapper
    (column,) = mapper.relationships[name].local_columns
    return getattr(instance, mapper.get_property_by_column(column).key)


def _table_of(kind: Kind, column: str) -> sa.Table:
    table: sa.Table = kind.mapper.get_property(column).columns[0].table
    return table


def _execute(session: Session, via: str, statement: Any) -> None:
    if via == "connection":
        session.connection().execute(statement)
    else:
        session.execute(statement)


def _criteria(target: Any, kind: Kind, where: str, number: int, value: str) -> list[Any]:
    columns = target.c if isinstance(target, sa.Table) else target
    if where == "key":
        return [getattr(columns, name) == part for name, part in kind.key(number).items()]
    if where == "name":
        table = target if isinstance(target, sa.Table) else kind.mapper.local_table
        return [getattr(columns, "name" if "name" in table.c else kind.texts[-1]) != value]
    return []


def update(session: Session, via: str, path: str, where: str, number: int, value: str) -> None:
    """UPDATE one column of the rows of a criterion."""
    kind, column = column_of(path)
    table = _table_of(kind, column)
    if via == "mappings":
        version = {} if kind.mapper.version_id_col is None else {"version": 1}
        session.bulk_update_mappings(kind.mapper, [{**kind.key(number), **version, column: value}])
    elif via == "orm":
        criteria = _criteria(kind.cls, kind, where, number, value)
        session.execute(sa.update(kind.cls).where(*criteria).values({column: value}))
    elif via == "text":
        criterion = " AND ".join(f"{name} = :{name}_" for name in kind.key(number)) if where == "key" else "1 = 1"
        keys = {f"{name}_": part for name, part in kind.key(number).items()} if where == "key" else {}
        session.execute(
            sa.text(f"UPDATE {table.name} SET {column} = :value WHERE {criterion}"), {"value": value, **keys}
        )
    else:
        criteria = _criteria(table, kind, where, number, value)
        _execute(session, via, sa.update(table).where(*criteria).values({column: value}))


def delete(session: Session, via: str, model: str, where: str, number: int, value: str) -> None:
    """DELETE the rows of a criterion."""
    kind = KINDS[model]
    table = kind.mapper.local_table
    if via in {"orm", "mappings"}:
        session.execute(sa.delete(kind.cls).where(*_criteria(kind.cls, kind, where, number, value)))
    elif via == "text":
        criterion = " AND ".join(f"{name} = :{name}" for name in kind.key(number)) if where == "key" else "1 = 1"
        session.execute(
            sa.text(f"DELETE FROM {table.name} WHERE {criterion}"), kind.key(number) if where == "key" else {}
        )
    else:
        _execute(session, via, sa.delete(table).where(*_criteria(table, kind, where, number, value)))


def insert(session: Session, via: str, model: str, number: int, name: str) -> None:
    """INSERT one row, or the copies of others, into a root class's table."""
    kind = KINDS[model]
    table = kind.mapper.local_table
    values = {**kind.key(number), "name": name, **kind.required}
    if kind.mapper.version_id_col is not None:
        values["version"] = 1
    if kind.mapper.polymorphic_on is not None:
        values["kind"] = kind.mapper.polymorphic_identity
    if via == "orm":
        session.execute(sa.insert(kind.cls), [values])
    elif via == "mappings":
        session.bulk_insert_mappings(kind.mapper, [values])
    elif via == "objects":
        session.bulk_save_objects([kind.make(number, name)])
    elif via == "text":
        values = {**_defaults(table), **values}
        names = ", ".join(values)
        session.execute(sa.text(f"INSERT INTO {table.name} ({names}) VALUES (:{', :'.join(values)})"), values)
    elif via == "select":
        literals = [sa.literal(value, table.c[column].type).label(column) for column, value in values.items()]
        session.execute(sa.insert(table).from_select(list(values), sa.select(*literals)))
    elif via in {"upsert", "ignore"}:
        session.execute(_upsert(session.get_bind().dialect.name, table, values, nothing=via == "ignore"))
    else:
        session.execute(sa.insert(table).values(values))


def _upsert(dialect: str, table: sa.Table, values: dict[str, Any], *, nothing: bool) -> Any:
    """Return an INSERT that changes the name of the row that is there, or does nothing."""
    if dialect == "mariadb":
        statement = mysql.insert(table).values(values)
        return statement.prefix_with("IGNORE") if nothing else statement.on_duplicate_key_update(name=values["name"])
    insert = (postgresql if dialect == "postgresql" else sqlite).insert(table).values(values)
    keys = list(table.primary_key)
    if nothing:
        return insert.on_conflict_do_nothing(index_elements=keys)
    return insert.on_conflict_do_update(index_elements=keys, set_={"name": values["name"]})


def _defaults(table: sa.Table) -> dict[str, Any]:
    """Return what Python would give the columns: SQL that comes as text gets no defaults."""
    if table.name == "price":
        return {"code": "t", "amount": "2.345"}
    if table.name == "product":
        return {"code": "t", "price": "2.345", "labels": "{}", "edits": 0, "changed": "text"}
    return {}


def rekey(session: Session, via: str, model: str, number: int, to: int) -> None:
    """UPDATE one row's primary key."""
    kind = KINDS[model]
    table = kind.mapper.local_table
    if via == "orm":
        criteria = _criteria(kind.cls, kind, "key", number, "")
        session.execute(sa.update(kind.cls).where(*criteria).values(kind.key(to)))
    elif via == "text":
        sets = ", ".join(f"{name} = :{name}_to" for name in kind.key(to))
        criterion = " AND ".join(f"{name} = :{name}" for name in kind.key(number))
        values = {**kind.key(number), **{f"{name}_to": part for name, part in kind.key(to).items()}}
        session.execute(sa.text(f"UPDATE {table.name} SET {sets} WHERE {criterion}"), values)
    else:
        _execute(session, via, sa.update(table).where(*_criteria(table, kind, "key", number, "")).values(kind.key(to)))


def read(cache: wt.WriteThroughCache, session: Session, way: str, mode: str, kind: Kind, number: int) -> Any:
    """Read one row by its primary key, through the cache."""
    option = wt.from_cache(wt.CacheMode[mode])
    if way == "session.get":
        return session.get(kind.cls, kind.identity(number), options=[option])
    if way == "select":
        criteria = [getattr(kind.cls, name) == part for name, part in kind.key(number).items()]
        return session.scalars(sa.select(kind.cls).where(*criteria).options(option)).one_or_none()
    return cache.get(session, kind.cls, kind.identity(number))


def read_many(
    cache: wt.WriteThroughCache, session: Session, way: str, mode: str, kind: Kind, numbers: Sequence[int]
) -> list[Any]:
    """Read rows by their primary keys, through the cache; what does not exist is None."""
    identities = [kind.identity(number) for number in numbers]
    if way == "cache.get_many":
        return list(cache.get_many(session, kind.cls, identities))
    columns = [getattr(kind.cls, name) for name in kind.key(1)]
    criterion = (
        columns[0].in_([identity[0] for identity in identities])
        if len(columns) == 1
        else sa.tuple_(*columns).in_(identities)
    )
    option = wt.from_cache(wt.CacheMode[mode])
    instances = session.scalars(sa.select(kind.cls).where(criterion).options(option)).all()
    by_identity = {sa.inspect(instance).identity: instance for instance in instances}
    return [by_identity.get(identity) for identity in identities]
