"""One-to-many collections that are cached by reference: an entry holds the primary keys of the members, in order.

Which relationships they are, which columns make a row a member, and how an entry looks. Knows mappers and metadata;
knows nothing of sessions, stores or transactions.

An entry says who has *joined*. Who has left since, its own row tells: the reader looks whether each member still refers
to the owner. So a writer needs to know only whom a row joins, which its statement says, and never whom it leaves, which
no statement says.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from sqlalchemy import Column, ForeignKeyConstraint, Table
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import Mapper, RelationshipDirection, RelationshipProperty
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.elements import BinaryExpression, BooleanClauseList

from sa_writethrough.codec import Field, RowCodec, fingerprint_of
from sa_writethrough.entities import Entities, Family, Scope, TableName, table_name
from sa_writethrough.exceptions import ConfigurationError
from sa_writethrough.policy import CachePolicy
from sa_writethrough.sqltypes import column_of

__all__ = ["FENCED", "Collection", "Collections", "MembersCodec"]

Identity: TypeAlias = tuple[Any, ...]
FENCED = frozenset({"postgresql", "sqlite"})
"""The databases in which it can be told that no row is about to join."""


class Collection:
    """A one-to-many relationship whose collections are cached. Raises `ConfigurationError` for one that cannot be."""

    def __init__(self, owner: Family, relationship: RelationshipProperty[Any], members: Family) -> None:
        self.owner = owner
        self.members = members
        self.relationship = relationship
        self.mapper: Mapper[Any] = relationship.mapper
        self.name = relationship.key
        self._scopes: dict[str, Scope] = {}
        _require_plain(relationship)
        pairs = _pairs(relationship)
        self.owner_columns = tuple(local for local, _ in pairs)
        """The owner's primary key, as columns of the table that the foreign key refers to."""
        self.columns = tuple(remote for _, remote in pairs)
        """The foreign key, in the same order."""
        self.order = frozenset(_order_columns(relationship))
        """What the members are sorted by."""
        _require_foreign_key(relationship, pairs)
        self.attributes = tuple(self.mapper.get_property_by_column(column).key for column in self.columns)
        left_out = [name for name in self.attributes if name in members.policy.exclude]
        if left_out:
            raise _refusal(relationship, f"{', '.join(left_out)} of {self.mapper.class_.__name__} is not cached")

    @property
    def policy(self) -> CachePolicy:
        """The owner's, in which the collection is named."""
        return self.owner.policy

    @property
    def source(self) -> Any:
        """What members are selected from."""
        return self.mapper.persist_selectable

    @cached_property
    def statement_order(self) -> Any:
        """What a SELECT of the members is ordered by."""
        return self.relationship.order_by or ()

    def scope(self, members: Scope) -> Scope:
        """Return where the entries are, beside the entries of the members."""
        scope = self._scopes.get(members.prefix)
        if scope is None:
            table = table_name(self.owner_columns[0].table)[1]
            prefix = f"{members.prefix}@{table}.{self.name}"
            scope = self._scopes[members.prefix] = Scope(prefix, f"{prefix}@epoch")
        return scope

    def key(self, scope: Scope, owner: Identity) -> str | None:
        """Return the key of one owner's collection, or None where the owner's primary key has no one text."""
        return self.owner.key(scope, owner)

    def codec(self, dialect: Dialect) -> MembersCodec:
        """Return how entries are written."""
        return MembersCodec(self, dialect)


class MembersCodec:
    """Encode and decode one collection's entries: the owner's primary key and its members', as rows have them."""

    def __init__(self, collection: Collection, dialect: Dialect) -> None:
        self._owner = [column_of(column, dialect) for column in collection.owner.base.primary_key]
        self._member = [column_of(column, dialect) for column in collection.members.base.primary_key]
        self.expressions = [cached.expression for cached in self._member]
        """What to select of a member."""
        parts = [cached.fingerprint for cached in (*self._owner, *self._member)]
        fingerprint = fingerprint_of(
            ["members", *map(str, collection.columns), *map(str, collection.statement_order), *parts]
        )
        member = RowCodec([cached.field for cached in self._member], fingerprint)
        owner = RowCodec([cached.field for cached in self._owner], fingerprint)
        self._owner_row = owner
        members = Field(
            "members",
            list[bytes],
            to_wire=lambda rows: [member.encode(row) for row in rows],
            from_wire=lambda rows: [member.decode(row) for row in rows],
        )
        self._codec = RowCodec([Field("owner", bytes), members], fingerprint, collection.policy.secret)

    def encode(self, owner: Identity, members: Sequence[Sequence[Any]]) -> bytes:
        """Return an entry. Raises `CodecError` where a primary key cannot be written."""
        return self._codec.encode((self._owner_row.encode(owner), [tuple(row) for row in members]))

    def decode(self, payload: bytes, owner: Identity) -> list[Identity] | None:
        """Return the members' primary keys, as attributes have them; None where it is not this owner's entry."""
        row = self._codec.decode(payload)
        if row is None or row[0] != self._owner_row.encode(owner) or row[1] is None or None in row[1]:
            return None
        return [
            tuple(
                value if cached.attribute is None else cached.attribute(value)
                for value, cached in zip(member, self._member, strict=True)
            )
            for member in row[1]
        ]


class Collections:
    """The cached collections of one registration; found when first needed, as the mappers are complete then."""

    def __init__(self, entities: Entities) -> None:
        self._entities = entities
        self.declared = False
        """Whether a policy names any."""
        self._found: tuple[Collection, ...] | None = None
        self._by_relationship: dict[Any, Collection] = {}
        self._of_members: dict[Family, list[Collection]] = {}
        self._joined: dict[TableName, list[Collection]] = {}
        self.analyses: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        """What `joining` found out about compiled statements."""

    def forget(self) -> None:
        """Find them anew: there is another mapper."""
        self._found = None
        self.analyses.clear()
        self.declared = any(family.policy.collections for family in self._entities.families)

    def all(self) -> Sequence[Collection]:
        """Return every collection. Raises `ConfigurationError` for one that cannot be cached."""
        if self._found is None:
            self._find()
        return self._found or ()

    def of(self, relationship: Any) -> Collection | None:
        """Return the collection of a relationship, or None where it is not cached."""
        self.all()
        return self._by_relationship.get(relationship)

    def of_members(self, family: Family) -> Sequence[Collection]:
        """Return the collections whose members are rows of *family*."""
        self.all()
        return self._of_members.get(family, ())

    def joined_through(self, table: TableName) -> Sequence[Collection]:
        """Return the collections that rows of *table* join by their foreign keys, or that lie in that table's order."""
        self.all()
        return self._joined.get(table, ())

    def of_family(self, family: Family) -> Sequence[Collection]:
        """Return the collections of which rows of *family* are owners or members."""
        return [each for each in self.all() if family in {each.owner, each.members}]

    def _find(self) -> None:
        found = [
            self._collection(family, name)
            for family in self._entities.families
            for name in sorted(family.policy.collections)
        ]
        self._by_relationship = {each.relationship: each for each in found}
        self._of_members, self._joined = {}, {}
        for each in found:
            self._of_members.setdefault(each.members, []).append(each)
            tables = {*each.mapper.tables, *each.members.base.tables}
            for table in tables:
                self._joined.setdefault(table_name(table), []).append(each)
        self._found = tuple(found)

    def _collection(self, family: Family, name: str) -> Collection:
        for mapper in (family.base, *family.mappers):
            relationship = mapper.relationships.get(name)
            if relationship is not None and relationship.parent is mapper:
                members = self._entities.family_of(relationship.mapper)
                if members is None:
                    raise _refusal(relationship, f"{relationship.mapper.class_.__name__} is not cached itself")
                return Collection(family, relationship, members)
        raise ConfigurationError(
            f"CachePolicy(collections=[{name!r}]): {family.base.class_.__name__} has no relationship of this name. "
            f"It has {', '.join(sorted(family.base.relationships.keys())) or 'none'}."
        )


# --- what can be cached -----------------------------------------------------------------------------------------------


def _refusal(relationship: RelationshipProperty[Any], why: str) -> ConfigurationError:
    return ConfigurationError(
        f"CachePolicy(collections=[{relationship.key!r}]): {relationship} cannot be cached by reference: {why}. "
        "Take it out of `collections`; it is loaded from the database then."
    )


def _require_plain(relationship: RelationshipProperty[Any]) -> None:
    """Refuse what is no plain collection of rows that refer to their owner."""
    if relationship.secondary is not None or relationship.direction is not RelationshipDirection.ONETOMANY:
        raise _refusal(relationship, "only one-to-many relationships are")
    if not relationship.uselist:
        raise _refusal(relationship, "it is no collection (uselist=False)")
    if relationship.lazy not in {"select", True, "selectin", "raise", "raise_on_sql"}:
        raise _refusal(relationship, f"lazy={relationship.lazy!r} does not load it on access")
    if relationship.mapper.single and relationship.mapper.inherits is not None:
        raise _refusal(relationship, f"{relationship.mapper.class_.__name__} is told by its discriminator alone")


def _pairs(relationship: RelationshipProperty[Any]) -> list[tuple[Column[Any], Column[Any]]]:
    """Return the owner's key with the foreign key, in the order of the owner's primary key."""
    clauses = list(_conjuncts(relationship.primaryjoin))
    known = {frozenset(pair) for pair in relationship.local_remote_pairs or ()}
    for clause in clauses:
        plain = isinstance(clause, BinaryExpression) and clause.operator is operators.eq
        if not plain or frozenset({_bare(clause.left), _bare(clause.right)}) not in known:
            raise _refusal(relationship, f"its join condition is more than a foreign key: {clause}")
    by_attribute: dict[str, tuple[Any, Any]] = {
        relationship.parent.get_property_by_column(local).key: (local, remote)
        for local, remote in relationship.local_remote_pairs or ()
    }
    keys = [relationship.parent.get_property_by_column(column).key for column in relationship.parent.primary_key]
    if sorted(by_attribute) != sorted(keys) or len(clauses) != len(keys):
        raise _refusal(relationship, "its foreign key does not refer to the whole primary key and nothing else")
    return [by_attribute[key] for key in keys]


def _conjuncts(clause: Any) -> Sequence[Any]:
    if isinstance(clause, BooleanClauseList) and clause.operator is operators.and_:
        return [part for each in clause.clauses for part in _conjuncts(each)]
    return [clause]


def _bare(column: Any) -> Any:
    """Return a column without the annotations that a relationship puts on it."""
    table = getattr(column, "table", None)
    return table.c.get(column.key, column) if isinstance(table, Table) else column


def _order_columns(relationship: RelationshipProperty[Any]) -> list[Column[Any]]:
    tables = set(relationship.mapper.tables)
    found = []
    for expression in relationship.order_by or ():
        for element in visitors.iterate(expression):
            if getattr(element, "__visit_name__", "") != "column":
                continue
            column = _bare(element)
            if getattr(column, "table", None) not in tables:
                raise _refusal(relationship, f"it is ordered by {element}, which is not a column of its members")
            found.append(column)
    return found


def _require_foreign_key(
    relationship: RelationshipProperty[Any], pairs: Sequence[tuple[Column[Any], Column[Any]]]
) -> None:
    """Refuse what no foreign key guards: it is what holds the owner's row while a new member is not yet committed."""
    table = pairs[0][1].table
    if table is not relationship.mapper.local_table:
        raise _refusal(relationship, f"{table} is not the table of {relationship.mapper.class_.__name__} itself")
    wanted = {(remote, local) for local, remote in pairs}
    for constraint in getattr(table, "foreign_key_constraints", ()):
        if _references(constraint) == wanted:
            if constraint.deferrable or (constraint.initially or "").upper() == "DEFERRED":
                raise _refusal(relationship, "its foreign key is deferrable, and checked when it may be too late")
            return
    raise _refusal(relationship, f"{table} has no foreign key on exactly these columns")


def _references(constraint: ForeignKeyConstraint) -> set[tuple[Column[Any], Column[Any]]]:
    return {(element.parent, element.column) for element in constraint.elements}
