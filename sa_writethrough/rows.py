"""Rows and instances: what a cached row holds, how it is selected, and how an instance is made of it (hydrate).

A row is a tuple of column values as Core's SELECT returns them, in the order of the mapper's attributes. Knows mappers,
types and identity maps; knows nothing of stores, keys or transactions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from sqlalchemy import Column, ColumnElement, Table, and_, bindparam, column, literal_column, select, true, tuple_
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.orm.attributes import instance_dict, instance_state
from sqlalchemy.sql import Select

from sa_writethrough import _sqla
from sa_writethrough._instances import materializer
from sa_writethrough.codec import RowCodec, fingerprint_in, fingerprint_of
from sa_writethrough.entities import Family, column_attributes
from sa_writethrough.exceptions import ConfigurationError
from sa_writethrough.policy import CachePolicy
from sa_writethrough.sqltypes import CachedColumn, column_of

__all__ = ["Layout", "LoadContext", "Selection", "Shapes"]

Row: TypeAlias = tuple[Any, ...]
Query: TypeAlias = "tuple[Select[Any], dict[str, Any]]"
_KEYS = "writethrough_keys"
_EAGER = frozenset({"joined", "selectin", "subquery", "immediate"})


@dataclass(frozen=True, slots=True)
class LoadContext:
    """What `load` listeners get for an instance that came from the cache, in place of SQLAlchemy's QueryContext."""

    session: Session
    populate_existing: bool = False


class Layout:
    """The cached columns of one mapper in one dialect."""

    def __init__(self, mapper: Mapper[Any], dialect: Dialect, policy: CachePolicy) -> None:
        self.mapper = mapper
        self.cls = mapper.class_
        self.identity_class = _sqla.identity_class(mapper)
        properties = column_attributes(mapper)
        _require_known_names(mapper, policy.exclude)
        keys = {mapper.get_property_by_column(c).key for c in mapper.primary_key}
        cached = [p for p in properties if p.key in keys or p.key not in policy.exclude]
        self.columns: tuple[CachedColumn, ...] = tuple(column_of(p.columns[0], dialect) for p in cached)
        self.sources = tuple(p.columns[0] for p in cached)
        self.names: tuple[str, ...] = tuple(p.key for p in cached)
        indexes = [self.names.index(mapper.get_property_by_column(c).key) for c in mapper.primary_key]
        self.identity = _identity_reader(self.columns, indexes)
        self.codec = RowCodec([c.field for c in self.columns], self._fingerprint(), policy.secret)
        self.eager = tuple(relationship.key for relationship in mapper.relationships if relationship.lazy in _EAGER)
        self.hydrate = _materializer(self, self._missing())

    def serve(self, session: Session, keys: Sequence[Any], payloads: Sequence[bytes]) -> list[Any] | None:
        """Make persistent instances of payloads, given with their identity keys, which are distinct: the usual case.

        None, and nothing is done, where anything is not as usual: a payload that is not of this class or not the row
        of its key, an instance that the session has, listeners, a class that is not made as others are.
        """
        rows = self.codec.open(payloads)
        materialize = self._materialize
        if rows is None or materialize is None:
            return None
        if self.mapper.class_manager.dispatch.load or session.dispatch.loaded_as_persistent:
            return None
        held = _sqla.states_of(session)
        if held and not held.keys().isdisjoint(keys):
            return None
        try:
            instances = materialize(keys, rows, session)
        except Exception:  # noqa: BLE001 - whatever it is, the one who looks at the rows one by one will find it
            return None
        self._load_eagerly(instances)
        return instances

    @cached_property
    def _materialize(self) -> Callable[[Sequence[Any], Iterator[Row], Session], list[Any]] | None:
        # Written when it is first needed: at registration the class may not be configured yet.
        values: dict[str, str] = {}
        used: dict[str, Any] = {}
        for index, (name, cached) in enumerate(zip(self.names, self.columns, strict=True)):
            values[name] = _value(index, cached)
            used[f"from_wire_{index}"] = cached.field.from_wire
            used[f"unchanged_{index}"] = cached.field.unchanged
            used[f"to_attribute_{index}"] = cached.attribute
        key = [self.mapper.get_property_by_column(part).key for part in self.mapper.primary_key]
        return materializer(self.mapper, values, key, missing=sorted(self._missing()), names=used)

    def _load_eagerly(self, instances: Sequence[Any]) -> None:
        for name in self.eager:
            for instance in instances:
                getattr(instance, name)

    def _fingerprint(self) -> bytes:
        parts = [str(self.mapper.local_table), self.cls.__name__]
        columns = zip(self.names, self.columns, strict=True)
        return fingerprint_of([*parts, *(f"{name}={column.fingerprint}" for name, column in columns)])

    def _missing(self) -> frozenset[str]:
        """Return what an ordinary load has and a row has not; it is loaded when it is asked for."""
        loaded = {p.key for p in self.mapper.column_attrs if not p.deferred}
        return frozenset(loaded - set(self.names))


def _value(index: int, column: CachedColumn) -> str:
    """Return the expression of an attribute's value, given `c<index>` as it travelled."""
    value = f"c{index}"
    if column.field.from_wire is not None:
        unchanged = "" if column.field.unchanged is None else f" or {value}.__class__ is unchanged_{index}"
        value = f"({value} if {value} is None{unchanged} else from_wire_{index}({value}))"
    return value if column.attribute is None else f"to_attribute_{index}({value})"


def _identity_reader(columns: Sequence[CachedColumn], indexes: Sequence[int]) -> Callable[[Row], tuple[Any, ...]]:
    """Return a function that reads the primary key of a row, as the attributes have it."""
    if len(indexes) == 1 and columns[indexes[0]].attribute is None:
        only = indexes[0]
        return lambda row: (row[only],)
    parts = [(index, columns[index].attribute or _unchanged) for index in indexes]
    return lambda row: tuple([to_attribute(row[index]) for index, to_attribute in parts])


def _unchanged(value: Any) -> Any:
    return value


def _require_known_names(mapper: Mapper[Any], exclude: frozenset[str]) -> None:
    for base in mapper.iterate_to_root():
        exclude = exclude - set(base.attrs.keys())
        for sub in base.self_and_descendants:
            exclude = exclude - set(sub.attrs.keys())
    if exclude:
        raise ConfigurationError(
            f"CachePolicy(exclude={sorted(exclude)}): {mapper.class_.__name__} has no such attribute. "
            f"It has {', '.join(sorted(mapper.column_attrs.keys()))}."
        )


def _materializer(layout: Layout, missing: frozenset[str]) -> Callable[[Session, Sequence[tuple[Any, Row]]], list[Any]]:
    """Return a function that makes persistent instances of rows, given with their identity keys, which are distinct.

    An instance that the session has already is left as it is. The others are what SQLAlchemy's own loader would have
    made; the reference is `sqlalchemy.orm.loading._instance`, and a test compares what both leave behind.
    """
    manager = layout.mapper.class_manager
    names = layout.names
    conversions = [(name, c.attribute) for name, c in zip(names, layout.columns, strict=True) if c.attribute]
    new_instance, attach = manager.new_instance, _sqla.attach

    def hydrate(session: Session, pairs: Sequence[tuple[Any, Row]]) -> list[Any]:
        # What is the same for every row is looked up once: this loop is most of what a hit costs.
        identity_map, session_id = session.identity_map, session.hash_key
        load = manager.dispatch.load or None
        persistent = session.dispatch.loaded_as_persistent or None
        # A listener may load instances of its own, which later rows are of.
        held = len(identity_map) > 0 or load is not None or persistent is not None
        plain = not (conversions or missing or load or persistent)
        instances = []
        for key, row in pairs:
            present = identity_map.get(key) if held else None
            if present is not None:
                instances.append(present)
                continue
            instance = new_instance()
            state = instance_state(instance)
            dict_ = instance_dict(instance)
            attach(state, key, session_id, identity_map)
            dict_.update(zip(names, row))  # noqa: B905 - the codec has checked the length, and this is the hot path
            instances.append(instance)
            if not plain:
                for name, convert in conversions:
                    dict_[name] = convert(dict_[name])
                if missing:
                    state.expired_attributes.update(missing)
                if load is not None:
                    load(state, LoadContext(session))
                if persistent is not None:
                    persistent(session, state)
                if state.modified:
                    _sqla.commit_all(state, dict_, identity_map)
        layout._load_eagerly(instances)  # noqa: SLF001 - the layout's own
        return instances

    return hydrate


@dataclass(frozen=True, slots=True)
class Selection:
    """A row that was selected, with the layout of its own class, or None where that class is not cached."""

    layout: Layout | None
    row: Row
    unlocked: bool
    """The statement itself showed that no writer holds the row."""


class Shapes:
    """How the rows of one family are selected and told apart, in one dialect."""

    def __init__(self, family: Family, dialect: Dialect) -> None:
        self.family = family
        self._dialect = dialect
        self.layouts = {mapper: Layout(mapper, dialect, family.policy) for mapper in family.mappers}
        self._by_fingerprint = {layout.codec.fingerprint: layout for layout in self.layouts.values()}
        self.only = next(iter(self.layouts.values())) if len(self.layouts) == 1 else None
        if self.only is not None and family.base.polymorphic_on is not None:
            self.only = None
        self._fenced = dialect.name == "postgresql"
        self._build_select()

    def layout_of(self, payload: bytes) -> Layout | None:
        """Return the layout that *payload* seems to be written in."""
        return self.only or self._by_fingerprint.get(fingerprint_in(payload))

    def decode(self, payload: bytes) -> tuple[Layout, Row] | None:
        """Return a cached row with its class's layout, or None where it is not of this version of the models."""
        layout = self.layout_of(payload)
        if layout is None:
            return None
        row = layout.codec.decode(payload)
        return None if row is None else (layout, row)

    # --- selecting ---

    def _build_select(self) -> None:
        base = self.family.base
        selected: dict[Any, int] = {}
        expressions: list[Any] = []

        def position(source: Any, expression: Any) -> int:
            if source not in selected:
                selected[source] = len(expressions)
                expressions.append(expression)
            return selected[source]

        self._identity = []
        for source in base.primary_key:
            cached = column_of(source, self._dialect)
            self._identity.append((position(source, cached.expression), cached.attribute))
        self._positions = {
            layout: [position(s, c.expression) for s, c in zip(layout.sources, layout.columns, strict=True)]
            for layout in self.layouts.values()
        }
        self._discriminator: int | None = None
        if base.polymorphic_on is not None:
            self._discriminator = len(expressions)
            expressions.append(base.polymorphic_on)
        self._types = [expression.type for expression in expressions]
        self._processors: list[tuple[int, Callable[[Any], Any]]] | None = None
        self.returning = self._returnable([*selected, base.polymorphic_on])
        """What to put behind an UPDATE's RETURNING for `read_returned`; None where it cannot return a whole row."""
        if self._fenced:
            expressions.append(_unlocked(self._tables()))
        self._select = select(*expressions).select_from(self._from())
        # Built once, for SQLAlchemy to find what it compiled of them at a glance.
        self._criteria = [
            column == bindparam(name, type_=column.type)
            for name, column in zip(_key_names(len(base.primary_key)), base.primary_key, strict=True)
        ]
        self._one = self._select.where(*self._criteria)
        if self.family.single:
            key = base.primary_key[0]
            self._many = self._select.where(key.in_(bindparam(_KEYS, type_=key.type, expanding=True)))

    def _returnable(self, sources: Sequence[Any]) -> str | None:
        columns = [source for source in sources if source is not None]
        if len(self._tables()) != 1 or not all(isinstance(column, Column) for column in columns):
            return None
        format_column = self._dialect.identifier_preparer.format_column
        return ", ".join(format_column(column) for column in columns)

    def _tables(self) -> list[Table]:
        return sorted(self.family.tables(), key=lambda table: table is not self.family.base.local_table)

    def _from(self) -> Any:
        """Join the hierarchy's tables; those of subclasses by outer joins, as `with_polymorphic` does."""
        joined: Any = self.family.base.local_table
        seen = {joined}
        for mapper in sorted(self.family.mappers, key=lambda m: len(list(m.iterate_to_root()))):
            for step in reversed(list(mapper.iterate_to_root())):
                if step.local_table not in seen and step.inherit_condition is not None:
                    joined = joined.outerjoin(step.local_table, step.inherit_condition)
                    seen.add(step.local_table)
        return joined

    def by_identities(self, identities: Sequence[tuple[Any, ...]]) -> Query:
        """Return a SELECT of these rows, and its parameters."""
        if len(identities) == 1:
            return self._one, _parameters(identities[0])
        if self.family.single:
            return self._many, {_KEYS: [identity[0] for identity in identities]}
        return self._select.where(*among(self.family.base.primary_key, identities)), {}

    def read_returned(self, context: Any, cursor: Any, row: Sequence[Any]) -> Selection:
        """Tell the class of a row that a statement with `RETURNING <returning>` gave, as the driver gave it."""
        if self._processors is None:
            # The cursor's description is made anew each time it is asked for; the columns' types do not change.
            self._processors = [
                (place, process)
                for place, (type_, described) in enumerate(zip(self._types, cursor.description, strict=True))
                if (process := context.get_result_processor(type_, described[0], described[1])) is not None
            ]
        raw = [*row, False]
        for place, process in self._processors:
            raw[place] = process(raw[place])
        return self.read(raw)

    def read(self, raw: Sequence[Any]) -> Selection:
        """Tell a selected row's class and cut out its columns."""
        layout = self._layout_of(raw)
        row = () if layout is None else tuple([raw[i] for i in self._positions[layout]])
        return Selection(layout, row, bool(raw[-1]) if self._fenced else False)

    def _layout_of(self, raw: Sequence[Any]) -> Layout | None:
        if self._discriminator is None:
            return self.only
        mapper = self.family.base.polymorphic_map.get(raw[self._discriminator])
        return None if mapper is None else self.layouts.get(mapper)

    def identity_of(self, raw: Sequence[Any]) -> tuple[Any, ...]:
        """Return the primary key of a selected row, as the attributes have it."""
        return tuple(
            raw[position] if attribute is None else attribute(raw[position]) for position, attribute in self._identity
        )

    def locking(self, identity: tuple[Any, ...], layout: Layout) -> list[Query]:
        """Return statements that take a share lock on each part of the row, or return nothing where one is held.

        SKIP LOCKED and not NOWAIT: PostgreSQL then returns no row where NOWAIT would fail, log, and call the
        application's error listeners. The last statement returns the row as `by_identities` does.
        """
        parameters = _parameters(identity)
        if len(self._tables()) == 1:
            return [(self._one.with_for_update(read=True, skip_locked=True), parameters)]
        source = self._inner_from(layout.mapper)
        locked: Select[Any] = select(literal_column("1")).select_from(source).where(*self._criteria)
        return [(locked.with_for_update(read=True, skip_locked=True), parameters), (self._one, parameters)]

    def _inner_from(self, mapper: Mapper[Any]) -> Any:
        """Join the tables of one class: a lock can be taken on the rows of an inner join alone."""
        joined: Any = self.family.base.local_table
        for step in reversed(list(mapper.iterate_to_root())):
            if step.local_table is not self.family.base.local_table and step.inherit_condition is not None:
                joined = joined.join(step.local_table, step.inherit_condition)
        return joined


def among(columns: Sequence[Any], identities: Sequence[tuple[Any, ...]]) -> list[ColumnElement[bool]]:
    """Return the criteria for rows with these primary keys.

    The parameters have the columns' types, as those of `session.get` have, whatever the values are.
    """
    if len(identities) == 1:
        return [c == bindparam(None, v, c.type) for c, v in zip(columns, identities[0], strict=True)]
    if len(columns) == 1:
        values = [identity[0] for identity in identities]
        return [columns[0].in_(bindparam(None, values, columns[0].type, expanding=True))]
    return [tuple_(*columns).in_(identities)]


def _key_names(count: int) -> list[str]:
    return [f"writethrough_key_{index}" for index in range(count)]


def _parameters(identity: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(_key_names(len(identity)), identity, strict=True))


def _unlocked(tables: Sequence[Table]) -> Any:
    """Return an expression that is true where nobody ever locked the version of the row that the statement sees.

    That is PostgreSQL's `xmax`, of each table; one that an outer join did not meet gives NULL, and counts as free.
    """
    return and_(true(), *((_xmax(table) == literal_column("0")).is_not(literal_column("false")) for table in tables))


def _xmax(table: Table) -> Any:
    xmax: Any = column("xmax")
    xmax.table = table
    return xmax


def chunks(identities: Sequence[tuple[Any, ...]], size: int = 1000) -> Iterator[Sequence[tuple[Any, ...]]]:
    """Cut *identities* so that a statement stays below the databases' limits on parameters."""
    return (identities[start : start + size] for start in range(0, len(identities), size))
