"""What `register` returns: one registration, its readings and evictions, and its listeners on the Session class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar, overload

from sqlalchemy import event
from sqlalchemy.engine import Connection, Dialect, Engine, Result
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.orm import Mapper, ORMExecuteState, Query, Session, scoped_session
from sqlalchemy.schema import Table
from sqlalchemy.sql import Select

from sa_writethrough import _relationships, _sqla
from sa_writethrough.bulk import Bulk
from sa_writethrough.cache import EntryCache, Stats
from sa_writethrough.codec import NO_ROW
from sa_writethrough.coherence import Hit, Intent
from sa_writethrough.collecting import Collecting
from sa_writethrough.core import Core
from sa_writethrough.effects import named
from sa_writethrough.entities import Entities, Family, mapper_of
from sa_writethrough.events import Event
from sa_writethrough.exceptions import ConfigurationError
from sa_writethrough.explaining import EXPLAIN_OPTION, Explaining, Explanation
from sa_writethrough.factories import bind_of
from sa_writethrough.guard import NO_SELECT, Guard
from sa_writethrough.loading import Loading, Question
from sa_writethrough.lookups import Lookups
from sa_writethrough.pointing import Pointing
from sa_writethrough.references import FENCED
from sa_writethrough.stores.base import Store
from sa_writethrough.targets import Targets
from sa_writethrough.writing import Writing

__all__ = ["REGISTRATION", "WriteThroughCache"]

T = TypeVar("T")
AnySession: TypeAlias = Session | scoped_session[Any]
REGISTRATION = "_sa_writethrough_registration"
"""On the Session class that carries the listeners: its registration."""


class WriteThroughCache:
    """One registration. Thread-safe. Made by `register`."""

    def __init__(self, target: Any, factory: Any, store: Store, entities: Entities) -> None:
        self._target = target
        self._factory = factory
        bind = bind_of(factory)
        self._dialect: Dialect = DefaultDialect() if bind is None else bind.dialect
        self._core = Core(entities, EntryCache(store))
        self._loading = Loading(self._core)
        self._pointing = Pointing(self._core, self._loading)
        self._guard = Guard(self._core)
        self._lookups = Lookups(self._guard, self._loading, self._pointing)
        self._explaining = Explaining(self._core, self._guard, self._loading.routing)
        self._collecting = Collecting(self._core, self._loading)
        self._targets = Targets(self._core, self._loading)
        self._bulk = Bulk(self._core)
        self._writing = Writing(self._core)
        self._families: dict[Any, tuple[Family, Mapper[Any]]] = {}
        for mapper in list(_sqla.all_mappers()):
            self._take_up(mapper)
        self._listening = [
            (target, "do_orm_execute", self._on_execute, {}),
            *((target, *listener) for listener in self._writing.session_listeners()),
            (Mapper, "mapper_configured", self._mapper_configured, {}),
            (Mapper, "after_configured", self._after_configured, {}),
        ]
        if not _relationships.mappers_to_come():
            self._after_configured()
        for owner, name, listener, arguments in self._listening:
            event.listen(owner, name, listener, **arguments)

    def _on_execute(self, state: ORMExecuteState) -> Result[Any] | None:
        # One listener and not two: SQLAlchemy takes stock of the statement again after each.
        if EXPLAIN_OPTION in state.execution_options:
            state.execution_options[EXPLAIN_OPTION].append(self._explaining.explain(state))
            return _sqla.empty_result()
        if state.statement.is_dml:
            return self._bulk.on_execute(state)
        if state.is_select and state.is_relationship_load:
            found = self._load_of_relationship(state)
            if found is not None:
                return found
        return self._lookups.on_execute(state)

    def _load_of_relationship(self, state: ORMExecuteState) -> Result[Any] | None:
        if state.lazy_loaded_from is None:
            return self._targets.on_execute(state)
        return self._collecting.on_execute(state) if self._core.collections.declared else None

    # --- reading ---

    @overload
    def get(self, session: AnySession, entity: type[T], ident: Any) -> T | None: ...
    @overload
    def get(self, session: AnySession, entity: Mapper[T], ident: Any) -> T | None: ...
    def get(self, session: AnySession, entity: Any, ident: Any) -> Any:
        """Return the instance with primary key *ident*, or None; the shortest path.

        As `session.get`: an instance that the session holds is returned as it is; what the cache may not serve comes
        from the database. *ident* is a scalar, a tuple, or a dict of attribute names.
        Raises `ConfigurationError` if *entity* is not cached by this registration.
        """
        family, mapper = self._families.get(entity) or self._require(entity)
        return self._loading.get(_own(session), family, mapper, ident)

    def get_many(self, session: AnySession, entity: type[T], idents: Iterable[Any]) -> list[T | None]:
        """Return the instances with these primary keys, in their order; None for each that does not exist.

        One round trip per cache node, and one SELECT for all that the cache has not. Raises as `get`.
        """
        family, mapper = self._families.get(entity) or self._require(entity)
        return self._loading.get_many(_own(session), family, mapper, idents)

    def get_by(self, session: AnySession, entity: type[T], **values: Any) -> T | None:
        """Return the instance with this unique key, given by the names of its attributes, or None.

        The policy's `unique_keys` must name the key. Two round trips; what the cache may not serve comes from the
        database. Raises `ConfigurationError` for another key, and as `get`.
        """
        family, mapper = self._families.get(entity) or self._require(entity)
        unique = self._core.unique_keys.require(family, mapper, frozenset(values))
        question = Question(_own(session), family, mapper)
        found: T | None = self._pointing.get(question, unique, [values[name] for name in unique.names])
        return found

    def explain(
        self, session: AnySession, statement: Any, *, execution_options: Mapping[str, Any] | None = None
    ) -> Explanation:
        """Tell whether the cache would serve *statement* in this session now, and why or why not. Executes nothing.

        *statement* is a `select()`, or a Query. Listeners of `do_orm_execute` that come before ours are called, as they
        may change the statement. Nothing is flushed and nothing filled.
        """
        answers: list[Explanation] = []
        if isinstance(statement, Query):
            statement = statement.statement
        if not isinstance(statement, Select):
            return Explanation(served=False, reason=NO_SELECT)
        _own(session).execute(statement, execution_options={**(execution_options or {}), EXPLAIN_OPTION: answers})
        return answers[0] if answers else Explanation(served=False, reason="another do_orm_execute listener answers it")

    def contains(self, entity: Any, ident: Any, bind: Engine | Connection | None = None) -> bool:
        """Tell whether an entry for this row can be read now. For tests and operators: it may be gone at once.

        *bind* says which database is meant, where the registration has seen more than one.
        """
        family, mapper = self._families.get(entity) or self._require(entity)
        for scope in self._scopes(family, bind):
            key = family.key(scope, self._loading.identity(mapper, ident))
            found = None if key is None else self._core.cache.store.read([key], scope.epoch, Intent.LOOK)[0]
            if isinstance(found, Hit) and found != NO_ROW:
                return True
        return False

    # --- evicting ---

    def evict(self, entity: Any, ident: Any, bind: Engine | Connection | None = None) -> None:
        """Drop one row's entry now, acknowledged. Raises `CacheUnavailableError` if its node does not answer."""
        family, mapper = self._families.get(entity) or self._require(entity)
        identity = self._loading.identity(mapper, ident)
        keys = [family.key(scope, identity) for scope in self._scopes(family, bind)]
        # Whom the row joined, and whether it is an owner whose key was taken by another, nobody knows here.
        self._core.cache.evict([key for key in keys if key is not None], self._collection_epochs(family, bind))

    def evict_all(self, *entities: Any, bind: Engine | Connection | None = None) -> None:
        """Drop every entry of these models with their table hierarchies, or of all, at the same cost for any number.

        Call it after a COMMIT that this registration did not see (a migration, another program, a restored backup).
        A `Table`, or a table's name, stands for the models that have rows in it, and for those whose rows foreign keys
        with ON DELETE or ON UPDATE change with it. *bind* says which database and `schema_translate_map` is meant;
        without it every one is that this registration has seen.
        Raises `CacheUnavailableError` if a node does not answer, `ConfigurationError` for a table that is not known.
        """
        found = self._core.entities.families if not entities else [f for e in entities for f in self._stored_in(e)]
        families = list(dict.fromkeys(found))
        epochs = [scope.epoch for family in families for scope in self._scopes(family, bind)]
        epochs += [epoch for family in families for epoch in self._collection_epochs(family, bind)]
        self._core.cache.evict([], list(dict.fromkeys(epochs)))

    def _stored_in(self, entity: Any) -> list[Family]:
        """Return the family of a model, or every family that a table has to do with."""
        if not isinstance(entity, str | Table):
            return [self._require(entity)[0]]
        name = entity if isinstance(entity, str) else entity.name
        tables = self._core.entities.tables_named_in([name, name.rpartition(".")[2]])  # in whatever schema
        if not tables:
            raise ConfigurationError(
                f"evict_all({name!r}): that is not a mapped class, and no table that the cached models' metadata has. "
                "See that the models are imported; a table that no model has needs no eviction."
            )
        return [written.family for written in named(self._core.entities, tables)]

    def _collection_epochs(self, family: Family, bind: Engine | Connection | None) -> list[str]:
        collections = self._core.collections
        if not collections.declared:
            return []
        return [
            collection.scope(scope).epoch
            for collection in collections.of_members(family)
            for scope in self._scopes(family, bind)
        ]

    def _scopes(self, family: Family, bind: Engine | Connection | None) -> list[Any]:
        if bind is not None:
            return [self._core.scope_in(family, bind)]
        return self._core.scopes(family, bind_of(self._factory))

    # --- operating ---

    def stats(self) -> Stats:
        """Return the counters since registration, as they are now."""
        return replace(self._core.cache.stats)

    def subscribe(self, subscriber: Callable[[Event], None]) -> Callable[[], None]:
        """Call *subscriber* with every event from now on; return a function that ends it."""
        self._core.cache.subscribers.append(subscriber)
        return lambda: self._core.cache.subscribers.remove(subscriber)

    def drain(self) -> None:
        """Wait until everything that was sent to the store without waiting has been done or has failed."""
        self._core.cache.drain()

    def unregister(self) -> None:
        """Stop listening and close the store. Sessions made by the factory no longer keep the cache: evict it first.

        The factory can be registered again. A second call does nothing.
        """
        if vars(self._target).get(REGISTRATION) is not self:
            return
        delattr(self._target, REGISTRATION)
        for owner, name, listener, _ in self._listening:
            event.remove(owner, name, listener)
        self._writing.close()
        try:
            self._core.cache.drain()
        finally:  # a task may be cancelled meanwhile
            self._core.cache.store.close()

    # --- models ---

    def _require(self, entity: Any) -> tuple[Family, Mapper[Any]]:
        mapper = mapper_of(entity)
        found = self._core.entities.require(mapper), mapper
        self._families[entity] = found
        return found

    def _mapper_configured(self, mapper: Mapper[Any], _class: type) -> None:
        self._take_up(mapper)

    def _after_configured(self) -> None:
        """Refuse what cannot be cached by reference or by unique key, now that every mapper is known."""
        self._core.unique_keys.check()
        found = self._core.collections.all() if self._core.collections.declared else ()
        if found and self._dialect.name not in {*FENCED, "default"}:
            raise ConfigurationError(
                f"CachePolicy(collections=[{found[0].name!r}]): no fence tells on {self._dialect.name!r} whether a "
                f"row is about to join {found[0].relationship}. Collections are cached on {', '.join(sorted(FENCED))}."
            )

    def _take_up(self, mapper: Mapper[Any]) -> None:
        if self._core.entities.family_of(mapper) is not None:
            return
        family = self._core.entities.add(mapper)
        self._loading.routing.forget()
        self._guard.forget()
        self._core.collections.forget()
        self._core.unique_keys.forget()
        if family is not None:
            self._core.require_fences(family, self._dialect.name)
            self._core.shapes(family, self._dialect)  # a type without a codec is an error now, not in production


def _own(session: AnySession) -> Session:
    """Return the session itself, of a scoped session the one of this scope."""
    return session() if isinstance(session, scoped_session) else session
