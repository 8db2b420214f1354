"""Rows in SQL: how the rows of a family are selected, locked and told apart.

Knows mappers and their tables; knows nothing of stores, keys or transactions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import Column, ColumnElement, Table, and_, bindparam, column, literal_column, select, true, tuple_
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import Mapper
from sqlalchemy.sql import Select

from sa_writethrough.codec import fingerprint_in
from sa_writethrough.entities import Family
from sa_writethrough.layouts import Layout, Row
from sa_writethrough.sqltypes import column_of

__all__ = ["Query", "Selection", "Shapes", "among", "chunks", "unlocked"]

Query: TypeAlias = "tuple[Select[Any], dict[str, Any]]"
_KEYS = "writethrough_keys"


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
        self.whole = len(self._tables()) == 1
        """Whether one lock holds a row: it has no parts in other tables."""
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
            expressions.append(unlocked(self._tables()))
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
        if not self.whole or not all(isinstance(column, Column) for column in columns):
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
        if self.whole:
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


def unlocked(tables: Sequence[Any]) -> Any:
    """Return an expression that is true where nobody ever locked the version of the row that the statement sees.

    That is PostgreSQL's `xmax`, of each table; one that an outer join did not meet gives NULL, and counts as free.
    """
    return and_(true(), *((_xmax(table) == literal_column("0")).is_not(literal_column("false")) for table in tables))


def _xmax(table: Any) -> Any:
    xmax: Any = column("xmax")
    xmax.table = table
    return xmax


def chunks(identities: Sequence[tuple[Any, ...]], size: int = 1000) -> Iterator[Sequence[tuple[Any, ...]]]:
    """Cut *identities* so that a statement stays below the databases' limits on parameters."""
    return (identities[start : start + size] for start in range(0, len(identities), size))
