"""The registry of cached mappers: which classes, under which policy, with which keys and tables.

A *family* is a base mapper with its subclasses: rows of one table hierarchy share identities, and so keys and an epoch.
Knows mappers and metadata; knows nothing of sessions, stores or rows (`rows` has those).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from sqlalchemy import MetaData, Table, inspect
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import ColumnProperty, Mapper
from sqlalchemy.sql import sqltypes

from sa_writethrough import _sqla, keys
from sa_writethrough.exceptions import ConfigurationError
from sa_writethrough.policy import CachePolicy, Reads

__all__ = ["MARKER", "Entities", "Family", "Models", "Scope", "TableName", "table_name"]

MARKER = "__writethrough__"
_ONLY_INT = frozenset({int})

TableName: TypeAlias = tuple[str | None, str]
Models: TypeAlias = Iterable[Any] | Callable[[Mapper[Any]], bool]


def table_name(table: Any) -> TableName:
    """Return schema and name of what a DML statement writes to."""
    while (element := getattr(table, "element", None)) is not None:
        table = element
    return getattr(table, "schema", None), getattr(table, "name", "")


@dataclass(frozen=True, slots=True)
class Scope:
    """Where a family's keys are in one database and schema."""

    prefix: str
    epoch: str
    folds: bool = False
    """Whether the database may hold strings equal that differ, whatever their type says."""


class Family:
    """A base mapper and those of its subclasses that are cached."""

    def __init__(self, base: Mapper[Any], policy: CachePolicy) -> None:
        self.base = base
        self.policy = policy
        self.mappers: set[Mapper[Any]] = set()
        self.identity_class = _sqla.identity_class(base)
        self.single = len(base.primary_key) == 1
        self.loose = any(_is_loose(column.type) for column in base.primary_key)
        self.exact = all(_compares_exactly(column.type) for column in base.primary_key)
        self._scopes: dict[tuple[str, str | None], Scope] = {}

    @property
    def served(self) -> bool:
        """Tell whether an entry says all there is to an identity: not where concrete subclasses have tables."""
        return not any(mapper.concrete for mapper in self.base.self_and_descendants if mapper is not self.base)

    def scope(
        self,
        database: str,
        schema_map: Mapping[str | None, str | None] | None,
        *,
        default_schema: str | None = None,
        folds: bool = False,
    ) -> Scope:
        """Return the keys' prefix and the epoch; *schema_map* is a `schema_translate_map`."""
        table = self.base.local_table
        schema = getattr(table, "schema", None)
        if schema_map:
            schema = schema_map.get(schema, schema)
        schema = schema or default_schema
        scope = self._scopes.get((database, schema))
        if scope is None:
            prefix = keys.family_prefix(f"{self.policy.namespace}:{database}", schema, table_name(table)[1])
            scope = Scope(prefix, keys.epoch_key(prefix), folds)
            self._scopes[database, schema] = scope
        return scope

    def scopes(self) -> list[Scope]:
        """Return every scope that was asked for so far."""
        return list(self._scopes.values())

    def key(self, scope: Scope, identity: Sequence[Any]) -> str | None:
        """Return the key of the row with this primary key, or None where its values have no one text."""
        if len(identity) == 1 and type(identity[0]) is int:
            return f"{scope.prefix}:{identity[0]}"
        parts = [self._part(value, folds=scope.folds) for value in identity]
        if None in parts:
            return None
        return keys.entry_key(scope.prefix, None, parts)  # type: ignore[arg-type]  # None was excluded above

    def keys(self, scope: Scope, identities: Sequence[tuple[Any, ...]]) -> list[str] | None:
        """Return the keys of these rows, which are distinct; None where one has none, or where two have the same.

        1 and '1': which of them the row of a key is for, only the database knows.
        """
        if self.single:
            values = [identity[0] for identity in identities]
            if _ONLY_INT.issuperset(map(type, values)):
                prefix = f"{scope.prefix}:"
                return [f"{prefix}{value}" for value in values]
        keys = [self.key(scope, identity) for identity in identities]
        if None in keys or len(set(keys)) < len(keys):
            return None
        return keys  # type: ignore[return-value]  # None was excluded

    def _part(self, value: Any, *, folds: bool) -> str | None:
        if folds and type(value) is str:
            return keys.folded_part(value)
        if self.loose and type(value) is str:
            return keys.loose_part(value)
        return keys.canonical_part(value)

    def tables(self) -> Iterable[Table]:
        """Return every table that a row of this family has a part in."""
        return {table for mapper in {self.base, *self.mappers} for table in mapper.tables if isinstance(table, Table)}

    def key_columns(self, table: TableName) -> list[str] | None:
        """Return the names of the columns of *table* that hold the base's primary key, in order, if all are there."""
        for mapper in (self.base, *self.mappers):
            names = [self._column_in(mapper, column, table) for column in self.base.primary_key]
            if None not in names:
                return names  # type: ignore[return-value]  # None was excluded
        return None

    @staticmethod
    def _column_in(mapper: Mapper[Any], column: Any, table: TableName) -> str | None:
        if not mapper.has_property(mapper.get_property_by_column(column).key):
            return None
        for candidate in mapper.get_property_by_column(column).columns:
            if table_name(getattr(candidate, "table", None)) == table:
                return str(candidate.name)
        return None


def _is_loose(type_: Any) -> bool:
    """Tell whether the database may hold two different strings of this type equal."""
    return isinstance(type_, sqltypes.String) and (
        type_.collation is not None or isinstance(type_, sqltypes.CHAR) or type(type_).__name__ == "CITEXT"
    )


def _compares_exactly(type_: Any) -> bool:
    """Tell whether a value that a statement compares with is the value that the row holds, for certain."""
    return isinstance(type_, sqltypes.Integer | sqltypes.Uuid)


class Entities:
    """The cached families of one registration. Mappers that are configured later are taken up when they are."""

    def __init__(self, models: Models | None, policy: CachePolicy) -> None:
        self._policy = policy
        self._wanted = _predicate(models)
        self.serves_always = False
        """Whether a family is served without `from_cache()`."""
        self.analyses: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        """What `dml` found out about compiled statements; void when another mapper is taken up."""
        self._families: dict[Mapper[Any], Family] = {}
        self._by_mapper: dict[Mapper[Any], Family] = {}
        self._by_table: dict[TableName, list[Family]] = {}
        self._cascades: dict[TableName, list[Family]] | None = None
        self._cascading: dict[TableName, set[str]] = {}
        self._replacing: set[TableName] | None = None
        self._tables_by_name: dict[str, set[TableName]] | None = None

    @property
    def families(self) -> Sequence[Family]:
        """Every cached family."""
        return list(self._families.values())

    def family_of(self, mapper: Mapper[Any]) -> Family | None:
        """Return the family of a cached mapper."""
        return self._by_mapper.get(mapper)

    def families_of_table(self, table: TableName) -> Sequence[Family]:
        """Return the families that have rows in *table*."""
        return self._by_table.get(table, ())

    def require(self, entity: Any) -> Family:
        """Return the family of *entity*, a class or a mapper; raise `ConfigurationError` if it is not cached."""
        mapper = mapper_of(entity)
        family = self._by_mapper.get(mapper)
        if family is None:
            raise ConfigurationError(
                f"{mapper.class_.__name__} is not cached by this registration. Mark the class with "
                f"`{MARKER} = CachePolicy()` or name it in register(..., models=[{mapper.class_.__name__}])."
            )
        return family

    def add(self, mapper: Mapper[Any]) -> Family | None:
        """Take up *mapper* if it is marked or named, and return its family.

        Raises `ConfigurationError` for a mapping whose identities do not tell its rows apart.
        """
        if mapper in self._by_mapper:
            return self._by_mapper[mapper]
        policy = self._policy_of(mapper)
        if policy is None:
            return None
        _require_identifiable(mapper)
        base = _family_base(mapper)
        family = self._families.get(base)
        if family is None:
            family = Family(base, policy)
        elif family.policy != policy:
            raise ConfigurationError(
                f"{mapper.class_.__name__} has another CachePolicy than the rest of its table hierarchy: rows of one "
                f"hierarchy share their entries. Put one policy on {base.class_.__name__}."
            )
        self._families[base] = family
        self.serves_always = self.serves_always or policy.reads is Reads.ALWAYS
        family.mappers.add(mapper)
        self._by_mapper[mapper] = family
        for table in family.tables():
            listed = self._by_table.setdefault(table_name(table), [])
            if family not in listed:
                listed.append(family)
        self._cascades = self._tables_by_name = self._replacing = None
        self.analyses.clear()
        return family

    def _policy_of(self, mapper: Mapper[Any]) -> CachePolicy | None:
        marker = getattr(mapper.class_, MARKER, None)
        if isinstance(marker, CachePolicy):
            return marker
        if marker is True or (marker is None and self._wanted(mapper)):
            return self._policy
        if marker is None or marker is False:
            return None
        raise ConfigurationError(
            f"{mapper.class_.__name__}.{MARKER} is {marker!r}: give a CachePolicy, True, or False to opt out."
        )

    # --- what a statement on a table reaches ---

    def reached_by_delete(self, table: TableName) -> Sequence[Family]:
        """Return the families whose rows the database itself changes when rows of *table* are deleted."""
        return self._reached("delete", table)

    def reached_by_update(self, table: TableName) -> Sequence[Family]:
        """Return the families whose rows the database itself changes when keys of *table* are updated."""
        return self._reached("update", table)

    def cascading_columns(self, table: TableName) -> set[str]:
        """Return the names and keys of the columns of *table* whose new values the database writes elsewhere too."""
        self.reached_by_update(table)  # finds them
        return self._cascading.get(table, set())

    def replaces(self, table: TableName) -> bool:
        """Tell whether SQLite deletes the rows of *table* that are in a new row's way (ON CONFLICT REPLACE)."""
        if self._replacing is None:
            self._replacing = {
                table_name(found)
                for metadata in self._metadatas()
                for found in metadata.tables.values()
                if _yields(found)
            }
        return table in self._replacing

    def _metadatas(self) -> set[MetaData]:
        return {table.metadata for family in self.families for table in family.tables()}

    def _reached(self, verb: str, table: TableName) -> Sequence[Family]:
        if self._cascades is None:
            self._cascades = self._find_cascades()
        return self._cascades.get((verb + ":" + (table[0] or ""), table[1]), ())

    def _find_cascades(self) -> dict[TableName, list[Family]]:
        """Follow ON DELETE and ON UPDATE actions through every table of the families' metadata, to any depth."""
        children: dict[tuple[str, TableName], set[tuple[str, TableName]]] = {}
        self._cascading = {}
        for metadata in self._metadatas():
            for table in metadata.tables.values():
                for constraint in table.foreign_key_constraints:
                    parent = table_name(constraint.referred_table)
                    for verb, action in (("delete", constraint.ondelete), ("update", constraint.onupdate)):
                        how = (action or "").upper()
                        if how in {"CASCADE", "SET NULL", "SET DEFAULT"}:
                            # A child whose reference is emptied is updated, whatever happened to its parent.
                            done = verb if how == "CASCADE" else "update"
                            children.setdefault((verb, parent), set()).add((done, table_name(table)))
                            if verb == "update":
                                referred = self._cascading.setdefault(parent, set())
                                referred.update(
                                    n for fk in constraint.elements for n in (fk.column.name, fk.column.key)
                                )
        reached: dict[TableName, list[Family]] = {}
        for verb, parent in children:
            found: set[tuple[str, TableName]] = set()
            waiting = [(verb, parent)]
            while waiting:
                for child in children.get(waiting.pop(), set()) - found:
                    found.add(child)
                    waiting.append(child)
            families = [family for _, child in found for family in self.families_of_table(child)]
            reached[verb + ":" + (parent[0] or ""), parent[1]] = list(dict.fromkeys(families))
        return reached

    def tables_named_in(self, words: Iterable[str]) -> set[TableName]:
        """Return the tables that may matter and are named among *words*, without regard to case."""
        if self._tables_by_name is None:
            names: dict[str, set[TableName]] = {}
            for name in {table_name(t) for metadata in self._metadatas() for t in metadata.tables.values()} | set(
                self._by_table
            ):
                names.setdefault(name[1].casefold(), set()).add(name)
            self._tables_by_name = names
        return {name for word in words for name in self._tables_by_name.get(word.casefold(), ())}


def _yields(table: Table) -> bool:
    """Tell whether a constraint or a column of *table* is declared with an `sqlite_on_conflict` of REPLACE."""
    return any(
        name.startswith("sqlite_on_conflict") and str(action).upper() == "REPLACE"
        for item in (*table.constraints, *table.columns)
        for name, action in item.dialect_kwargs.items()
    )


def mapper_of(entity: Any) -> Mapper[Any]:
    """Return the mapper of a class or mapper; raise `ConfigurationError` for anything else."""
    try:
        mapper = inspect(entity)
    except NoInspectionAvailable:
        mapper = None
    if mapper is None or not getattr(mapper, "is_mapper", False):
        raise ConfigurationError(f"{entity!r} is not a mapped class. Give a class that SQLAlchemy maps.")
    return mapper  # type: ignore[no-any-return]  # inspect() of an unknown type is Any


def _predicate(models: Models | None) -> Callable[[Mapper[Any]], bool]:
    if models is None:
        return lambda _mapper: False
    if callable(models):
        return models
    if isinstance(models, str) or not isinstance(models, Iterable):
        raise ConfigurationError(f"models={models!r}: give a list of mapped classes, or a function of a mapper.")
    named = frozenset(mapper_of(model) for model in models)
    return named.__contains__


def _family_base(mapper: Mapper[Any]) -> Mapper[Any]:
    while mapper.inherits is not None and not mapper.concrete:
        mapper = mapper.inherits
    return mapper


def _require_identifiable(mapper: Mapper[Any]) -> None:
    name = mapper.class_.__name__
    base = _family_base(mapper)
    if not isinstance(base.local_table, Table):
        raise ConfigurationError(
            f"{name} is mapped to {type(base.local_table).__name__}, not to a table: which rows change it cannot be "
            "known. Leave it uncached."
        )
    if mapper is not base and base.polymorphic_on is None:
        raise ConfigurationError(
            f"{name} inherits from {base.class_.__name__} without a polymorphic_on column: an entry could not tell "
            f"which class its row is. Set polymorphic_on, or {MARKER} = False on {name}."
        )
    for column in base.primary_key:
        if isinstance(column.type, sqltypes.Float | sqltypes.JSON | sqltypes.ARRAY | sqltypes.PickleType):
            raise ConfigurationError(
                f"{base.local_table.fullname}.{column.name}: a primary key of type {column.type!r} has no stable key. "
                f"Leave {name} uncached."
            )


def column_attributes(mapper: Mapper[Any]) -> list[ColumnProperty[Any]]:
    """Return the attributes that an ordinary SELECT of the mapper loads from its tables' columns."""
    tables = set(mapper.tables)
    return [
        prop for prop in mapper.column_attrs if not prop.deferred and getattr(prop.columns[0], "table", None) in tables
    ]
