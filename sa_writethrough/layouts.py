"""A cached row's layout: what it holds of one mapper, and how an instance is made of it (hydrate).

A row is a tuple of column values as Core's SELECT returns them, in the order of the mapper's attributes. Knows mappers,
types and identity maps; knows nothing of SQL, stores, keys or transactions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from sqlalchemy.engine import Dialect
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.orm.attributes import instance_dict, instance_state

from sa_writethrough import _sqla
from sa_writethrough._instances import Materializer, has_default, is_loaded_at_once, is_query_expression, materializer
from sa_writethrough.codec import RowCodec, fingerprint_of
from sa_writethrough.entities import column_attributes
from sa_writethrough.exceptions import ConfigurationError
from sa_writethrough.policy import CachePolicy
from sa_writethrough.sqltypes import CachedColumn, column_of

__all__ = ["Layout", "LoadContext", "Row"]

Row: TypeAlias = tuple[Any, ...]
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
        _refuse_query_expressions(mapper)
        keys = {mapper.get_property_by_column(c).key for c in mapper.primary_key}
        cached = [p for p in properties if p.key in keys or p.key not in policy.exclude]
        self.columns: tuple[CachedColumn, ...] = tuple(column_of(p.columns[0], dialect) for p in cached)
        self.sources = tuple(p.columns[0] for p in cached)
        self.names: tuple[str, ...] = tuple(p.key for p in cached)
        self.shares_columns = any(mapper.get_property_by_column(p.columns[0]) is not p for p in cached)
        """Whether two attributes are of one column: then only one of them is written."""
        indexes = [self.names.index(mapper.get_property_by_column(c).key) for c in mapper.primary_key]
        self.identity = _identity_reader(self.columns, indexes)
        self.codec = RowCodec([c.field for c in self.columns], self._fingerprint(), policy.secret)
        self.eager = tuple(relationship.key for relationship in mapper.relationships if relationship.lazy in _EAGER)
        self.hydrate = _materializer(self, self._missing())
        self._events = mapper.class_manager.dispatch

    def serve(self, session: Session, keys: Sequence[Any], payloads: Sequence[bytes]) -> list[Any] | None:
        """Make persistent instances of payloads, given with their identity keys, which are distinct: the usual case.

        None, and nothing is done, where anything is not as usual: a payload that is not of this class or not the row
        of its key, an instance that the session has, listeners, a class that is not made as others are.
        """
        materialize = self._materialize
        if materialize is None or self._events.load or session.dispatch.loaded_as_persistent:
            return None
        held = _sqla.states_of(session)
        if held and not held.keys().isdisjoint(keys):
            return None
        rows = self.codec.open(payloads)
        if rows is None:
            return None
        try:
            instances = materialize.many(keys, rows, session)
        except Exception:  # noqa: BLE001 - whatever it is, the one who looks at the rows one by one will find it
            return None
        self._load_eagerly(session, instances)
        return instances

    def serve_one(self, session: Session, key: Any, payload: bytes) -> Any:
        """Do for one payload what `serve` does for several: the hot path of a hit."""
        materialize = self._materialize
        if materialize is None or self._events.load or session.dispatch.loaded_as_persistent:
            return None
        if key in _sqla.states_of(session):
            return None
        try:
            row = self.codec.open_one(payload)
            if row is None:
                return None
            instance = materialize.one(key, row, session)
        except Exception:  # noqa: BLE001 - as in `serve`
            return None
        self._load_eagerly(session, [instance])
        return instance

    @cached_property
    def _materialize(self) -> Materializer | None:
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

    def _load_eagerly(self, session: Session, instances: Sequence[Any]) -> None:
        if not self.eager:
            return
        with session.no_autoflush:
            for name in self.eager:
                for instance in instances:
                    getattr(instance, name)

    def _fingerprint(self) -> bytes:
        parts = [str(self.mapper.local_table), self.cls.__name__]
        columns = zip(self.names, self.columns, strict=True)
        return fingerprint_of([*parts, *(f"{name}={column.fingerprint}" for name, column in columns)])

    def _missing(self) -> frozenset[str]:
        """Return what an ordinary load has and a row has not; it is loaded when it is asked for."""
        loaded = {p.key for p in self.mapper.column_attrs if is_loaded_at_once(p)}
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


def _refuse_query_expressions(mapper: Mapper[Any]) -> None:
    for attribute in mapper.column_attrs:
        if is_query_expression(attribute) and has_default(attribute):
            raise ConfigurationError(
                f"{mapper.class_.__name__}.{attribute.key} is a query_expression() with a default, which comes with "
                "the row or never: no entry has it. Make it a column_property(), or leave the default out."
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
        layout._load_eagerly(session, instances)  # noqa: SLF001 - the layout's own
        return instances

    return hydrate
