"""Lazy loads of one-to-many collections, from the cache: the entry, the members' own entries, and the entry once more.

    do_orm_execute > is it a cached collection's lazy load? > the entry, a hit > every member a hit, and the owner's >
    the entry still the same > hydrate · the entry leased: fill under the fence · otherwise: SQLAlchemy goes on

The entry holds everybody who joined. Between its two reads nobody joined, or it was filled anew with the same members;
each member was seen to belong. So the set is the one that a SELECT at the first read, or at the new filling, returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy.engine import Dialect, Result
from sqlalchemy.orm import Mapper, ORMExecuteState
from sqlalchemy.sql import Select

from sa_writethrough import _loader_options, _relationships, _sqla
from sa_writethrough.cache import Filling
from sa_writethrough.coherence import Hit, Intent, Leased, Reading, Token
from sa_writethrough.core import Core
from sa_writethrough.exceptions import CodecError
from sa_writethrough.layouts import Layout, Row
from sa_writethrough.loading import Loading, Question
from sa_writethrough.memberships import Memberships
from sa_writethrough.options import from_cache
from sa_writethrough.policy import CacheMode
from sa_writethrough.references import Collection
from sa_writethrough.routing import Route

__all__ = ["Collecting"]

Identity: TypeAlias = tuple[Any, ...]
_Rows: TypeAlias = dict[Identity, "tuple[Layout, Row]"]


@dataclass(frozen=True, slots=True)
class _Asked:
    """One lazy load: whose collection, and where its entry is."""

    state: ORMExecuteState
    collection: Collection
    owner: Identity
    route: Route
    key: str
    epoch: str
    memberships: Memberships


class Collecting:
    """Answers lazy loads of one registration's collections."""

    def __init__(self, core: Core, loading: Loading) -> None:
        self._core = core
        self._cache = core.cache
        self._loading = loading
        self._memberships: dict[tuple[Collection, str, str], Memberships] = {}
        self._readers: dict[tuple[Collection, Layout], Callable[[Row], Identity]] = {}

    def on_execute(self, state: ORMExecuteState) -> Result[Any] | None:
        """Return the members of a collection, or None to let SQLAlchemy go on."""
        collection = self._collection_of(state)
        owner = None if collection is None else _owner_of(state, collection)
        if collection is None or owner is None:
            return None
        session = state.session
        _sqla.autobegin(session)
        if _sqla.flushes_first(state):
            _sqla.autoflush(session)
        asked = self._asked(state, collection, owner)
        if asked is None or self._loading.routing.wrote(session, (asked.key,), asked.epoch):
            return None
        carried = [option for option in _sqla.options_of(state.statement) if option.propagate_to_loaders]
        held = set(_sqla.states_of(session).values()) if carried else ()
        instances = self._found(asked)
        if instances is None:
            return None
        if carried:
            _relationships.carry(state, carried, instances, held)
        return _sqla.entity_result(_sqla.entity_metadata(collection.mapper), instances)

    # --- what is asked for ---

    def _collection_of(self, state: ORMExecuteState) -> Collection | None:
        statement = state.statement
        if not isinstance(statement, Select) or _sqla.changes_to_come(state):
            return None
        collection = self._core.collections.of(_relationships.loaded_relationship(state))
        if collection is None or _sqla.selected_mapper(statement) is not collection.mapper:
            return None
        steps = _relationships.steps_of(state)
        if not all(_leaves_alone(option, steps, collection.mapper) for option in _sqla.options_of(statement)):
            return None
        plain = _sqla.is_plain_load(state) and _relationships.is_lazy_load(state, collection.statement_order)
        return collection if plain else None

    def _asked(self, state: ORMExecuteState, collection: Collection, owner: Identity) -> _Asked | None:
        arguments = {name: value for name, value in state.bind_arguments.items() if name != "clause"}
        arguments = arguments or {"mapper": collection.members.base}
        route = self._loading.routing.route(state.session, collection.members, arguments, state.execution_options)
        if route is None:
            return None
        scope = collection.scope(route.scope)
        key = collection.key(scope, owner)
        if key is None:
            return None
        memberships = self._memberships_of(collection, state.session.get_bind(**arguments).dialect)
        return _Asked(state, collection, owner, route, key, scope.epoch, memberships)

    def _memberships_of(self, collection: Collection, dialect: Dialect) -> Memberships:
        kind = collection, dialect.name, getattr(dialect, "driver", "")
        found = self._memberships.get(kind)
        if found is None:
            found = self._memberships[kind] = Memberships(collection, dialect)
        return found

    # --- the cache ---

    def _found(self, asked: _Asked) -> list[Any] | None:
        reading = self._read(asked, asked.route.intent)
        if type(reading) is Leased:
            self._fill(asked, reading.token)
            return None
        members = None if type(reading) is not Hit else self._members(asked, reading)
        rows = None if members is None else self._rows(asked, members)
        if members is None or rows is None:
            return None
        if len(rows) < len(members):
            # The warmed instances are held until the rows are read: the session's map is weak.
            warmed = self._warmed(asked, [member for member in members if member not in rows])
            rows = None if warmed is None else self._rows(asked, members)
        if rows is None or len(rows) < len(members) or self._read(asked, Intent.LOOK) != reading:
            return None
        return self._instances(asked, members, rows)

    def _read(self, asked: _Asked, intent: Intent) -> Reading:
        return self._cache.read((asked.key,), asked.epoch, intent)[0]

    def _members(self, asked: _Asked, payload: bytes) -> Sequence[Identity] | None:
        """Return the members that an entry names; drop one of another version of the models, or damaged."""
        members = asked.memberships.codec.decode(payload, asked.owner)
        if members is None:
            self._cache.drop([asked.key])
        return members

    def _rows(self, asked: _Asked, members: Sequence[Identity]) -> _Rows | None:
        """Return the rows of the members that are cached; None, and no entry any more, where one belongs elsewhere."""
        route = asked.route
        keys = asked.collection.members.keys(route.scope, members)
        if keys is None or self._loading.routing.wrote(asked.state.session, keys, route.scope.epoch):
            return None
        rows: _Rows = {}
        readings = self._cache.read(keys, route.scope.epoch, Intent.LOOK) if keys else ()
        for member, reading in zip(members, readings, strict=True):
            decoded = route.shapes.decode(reading) if type(reading) is Hit else None
            if decoded is not None and decoded[0].identity(decoded[1]) == member:
                if not self._belongs(asked, *decoded):
                    self._cache.drop([asked.key])
                    return None
                rows[member] = decoded
        return rows

    def _belongs(self, asked: _Asked, layout: Layout, row: Row) -> bool:
        if not layout.mapper.isa(asked.collection.mapper):
            return False
        kind = asked.collection, layout
        reader = self._readers.get(kind)
        if reader is None:
            reader = self._readers[kind] = _reader(*kind)
        return reader(row) == asked.owner

    def _warmed(self, asked: _Asked, missing: Sequence[Identity]) -> Sequence[Any] | None:
        """Have the cache filled with members that it lacks; None where one does not exist or may not be served."""
        if asked.route.intent is Intent.LOOK:
            return None
        family, state = asked.collection.members, asked.state
        bind_arguments = {"mapper": family.base}
        question = Question(
            state.session, family, family.base, CacheMode.NORMAL, bind_arguments, state.execution_options
        )
        found = self._loading.lookup(question, missing)
        if found is not None and None in found:
            self._cache.drop([asked.key])
            return None
        return found

    @staticmethod
    def _instances(asked: _Asked, members: Sequence[Identity], rows: _Rows) -> list[Any] | None:
        session, identity_class = asked.state.session, asked.collection.members.identity_class
        keys = {member: (identity_class, member, None) for member in members}
        if any(_sqla.is_expired(session, key) for key in keys.values()):
            return None  # the SELECT refreshes them
        found: dict[Identity, Any] = {}
        for layout in {layout: None for layout, _ in rows.values()}:
            some = [member for member in members if rows[member][0] is layout]
            instances = layout.hydrate(session, [(keys[member], rows[member][1]) for member in some])
            found.update(zip(some, instances, strict=True))
        return [found[member] for member in members]

    # --- the database ---

    def _fill(self, asked: _Asked, token: Token) -> None:
        """Fill the entry with what the database says under the fence. The collection itself SQLAlchemy loads."""
        payload = None
        try:
            connection = asked.state.session.connection(bind_arguments={"mapper": asked.collection.members.base})
            unit = self._core.unit_of(connection)
            if unit is None or not unit.wrote:  # the fence does not see what its own transaction wrote
                members = asked.memberships.fenced(
                    connection,
                    asked.route.facts,
                    asked.owner,
                    asked.state.execution_options,
                    lossless=self._cache.store.keeps_tombstones,
                )
                payload = None if members is None else asked.memberships.codec.encode(asked.owner, members)
        except CodecError as error:  # this key cannot be cached: it is read from the database every time
            self._cache.report(error)
        finally:
            if payload is None:
                self._cache.fill([], [(asked.key, token)])
            else:
                self._cache.fill([Filling(asked.key, token, payload, asked.collection.policy.lifetime())])


def _leaves_alone(option: Any, steps: Sequence[Any], members: Mapper[Any]) -> bool:
    """Tell whether an option leaves the load of the collection where *steps* lead, and its members, as they are."""
    if isinstance(option, from_cache):
        return bool(option.path) or option.mode is CacheMode.NORMAL
    return _loader_options.eager_names(option, steps, members) == {}


def _owner_of(state: ORMExecuteState, collection: Collection) -> Identity | None:
    """Return the primary key of the instance whose collection is loaded, as the database has it."""
    owner = state.lazy_loaded_from
    if owner is None or not owner.mapper.isa(collection.relationship.parent):
        return None
    names = [owner.mapper.get_property_by_column(column).key for column in owner.mapper.primary_key]
    return _relationships.key_as_loaded(owner, names)


def _reader(collection: Collection, layout: Layout) -> Callable[[Row], Identity]:
    """Return a function that reads which owner a member's row names."""
    places = [layout.names.index(name) for name in collection.attributes]
    parts = [(place, layout.columns[place].attribute) for place in places]
    return lambda row: tuple([row[place] if convert is None else convert(row[place]) for place, convert in parts])
