"""One read: guard, cache, and on a miss the row from the database under the fence.

    cache.get or do_orm_execute > route: may this session be served here? > cache.read >
    hit: decode, hydrate · lease: SELECT with the fence, hydrate, fill ·
    otherwise: SQLAlchemy goes on as if we were absent

A hit behaves as the database read would have: the session begins, flushes, and gets a persistent instance; only no
connection is checked out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import select
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Mapper, Session

from sa_writethrough import _sqla
from sa_writethrough.cache import Filling
from sa_writethrough.codec import NO_ROW
from sa_writethrough.coherence import Hit, Intent, Leased, Reading, Token
from sa_writethrough.core import Core
from sa_writethrough.dml import have_one_form
from sa_writethrough.entities import Family
from sa_writethrough.exceptions import CacheUnavailableError, CodecError
from sa_writethrough.fences import Fence, FencedRow
from sa_writethrough.layouts import Layout, Row
from sa_writethrough.options import bypass_cache
from sa_writethrough.policy import CacheMode, OnMiss
from sa_writethrough.routing import NO_OPTIONS, Route, Routing
from sa_writethrough.rows import among, chunks

__all__ = ["Loading", "Question"]

_BYPASS = (bypass_cache(),)
_HITS = frozenset({Hit})
_ONLY_INT = frozenset({int})
_SERVING = frozenset({CacheMode.NORMAL, CacheMode.GET})
_FILLING = frozenset({CacheMode.NORMAL, CacheMode.PUT, CacheMode.REFRESH})


@dataclass(slots=True)
class Question:
    """Who asks for rows of one family, and how."""

    session: Session
    family: Family
    mapper: Mapper[Any]
    mode: CacheMode = CacheMode.NORMAL
    bind_arguments: dict[str, Any] | None = None
    execution_options: Mapping[str, Any] | None = None


class Loading:
    """The read side of one registration."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._cache = core.cache
        self.routing = Routing(core)

    # --- by primary key ---

    def get(self, session: Session, family: Family, mapper: Mapper[Any], ident: Any) -> Any:
        """Return the instance with this primary key, from the session, the cache or the database, or None."""
        identity = (ident,) if type(ident) is int and family.single else self.identity(mapper, ident)
        instance = self._present(session, family, identity)
        if instance is None:
            _sqla.autobegin(session)
            if _sqla.autoflush(session):
                instance = self._present(session, family, identity)
        if instance is None:
            found = self.lookup_one(session, family, mapper, identity)
            if found is not None:
                return found[0]
        # It is here, perhaps expired or of another class, or it must come from the database: SQLAlchemy knows how.
        return session.get(mapper, identity, options=_BYPASS)

    def get_many(self, session: Session, family: Family, mapper: Mapper[Any], idents: Iterable[Any]) -> list[Any]:
        """Return the instances with these primary keys, in their order, None for what does not exist."""
        idents = list(idents)
        plain = family.single and _ONLY_INT.issuperset(map(type, idents))
        if plain:
            identities: list[tuple[Any, ...]] = [(ident,) for ident in idents]
        else:
            identities = [self.identity(mapper, ident) for ident in idents]
        _sqla.autobegin(session)
        _sqla.autoflush(session)
        if plain and not _sqla.states_of(session) and len(set(idents)) == len(idents):
            wanted: Sequence[tuple[Any, ...]] = identities
        else:
            wanted = self._absent(session, family, identities)
        found = self.lookup(Question(session, family, mapper), wanted) if wanted else []
        if found is not None and len(wanted) == len(identities):
            return found
        kept = self._selected(session, mapper, wanted) if found is None else found
        answers = {} if found is None else dict(zip(wanted, found, strict=True))
        many = [answers[i] if i in answers else session.get(mapper, i, options=_BYPASS) for i in identities]
        del kept
        return many

    def _absent(
        self, session: Session, family: Family, identities: Sequence[tuple[Any, ...]]
    ) -> Sequence[tuple[Any, ...]]:
        """Return, once each, the identities that the session has no instance of."""
        try:
            distinct = dict.fromkeys(identities)
        except TypeError:
            raise InvalidRequestError("A primary key's values must be hashable.") from None
        if not _sqla.states_of(session):
            return identities if len(distinct) == len(identities) else list(distinct)
        return [i for i in distinct if self._present(session, family, i) is None]

    @staticmethod
    def _selected(session: Session, mapper: Mapper[Any], wanted: Sequence[Any]) -> list[Any]:
        """Load rows into the session with one SELECT, past the cache; the caller keeps them alive."""
        criteria = among(mapper.primary_key, wanted)
        return list(session.scalars(select(mapper).where(*criteria).options(*_BYPASS)))

    @staticmethod
    def identity(mapper: Mapper[Any], ident: Any) -> tuple[Any, ...]:
        """Return a primary key as a tuple; takes a scalar, a tuple or a dict, as `session.get` does."""
        columns = mapper.primary_key
        if isinstance(ident, dict):
            names = [mapper.get_property_by_column(column).key for column in columns]
            if set(names) == set(ident):
                return tuple(ident[name] for name in names)
        elif isinstance(ident, tuple | list):
            if len(ident) == len(columns):
                return tuple(ident)
        elif len(columns) == 1:
            return (ident,)
        raise InvalidRequestError(
            f"{ident!r} is no primary key of {mapper.class_.__name__}: give a value for each of "
            f"{', '.join(mapper.get_property_by_column(column).key for column in columns)}."
        )

    @staticmethod
    def _present(session: Session, family: Family, identity: tuple[Any, ...]) -> Any:
        if not _sqla.states_of(session):
            return None
        try:
            return session.identity_map.get((family.identity_class, identity, None))
        except TypeError:
            raise InvalidRequestError(f"{identity!r} is no primary key: its values must be hashable.") from None

    # --- the lookup ---

    def lookup_one(
        self,
        session: Session,
        family: Family,
        mapper: Mapper[Any],
        identity: tuple[Any, ...],
        *,
        mode: CacheMode = CacheMode.NORMAL,
        bind_arguments: dict[str, Any] | None = None,
        execution_options: Mapping[str, Any] | None = None,
    ) -> Sequence[Any] | None:
        """Do what `lookup` does, for one identity; a hit of the usual kind without a question's collections."""
        route = self.routing.route(session, family, bind_arguments, execution_options)
        if route is None:
            return None
        scope = route.scope
        key = family.key(scope, identity)
        if key is None or (route.begun and self.routing.wrote(session, (key,), scope.epoch)):
            return None
        keys = (key,)
        readings = self._read(route, keys, mode)
        reading = readings[0]
        if type(reading) is Hit and (mode is CacheMode.NORMAL or mode is CacheMode.GET):
            layout = route.shapes.layout_of(reading)
            if layout is not None and layout.mapper is mapper:
                instance = layout.serve_one(session, (family.identity_class, identity, None), reading)
                if instance is not None:
                    return (instance,)
        question = Question(session, family, mapper, mode, bind_arguments, execution_options)
        return self._answered(question, route, (identity,), keys, readings)

    def lookup(self, question: Question, identities: Sequence[tuple[Any, ...]]) -> list[Any] | None:
        """Return the instances of *identities*, which are distinct, in their order; None for what does not exist.

        None altogether where the cache may not serve. The session has begun and flushed.
        """
        session, family = question.session, question.family
        route = self.routing.route(session, family, question.bind_arguments, question.execution_options)
        if route is None:
            return None
        keys = family.keys(route.scope, identities)
        if keys is None or (route.begun and self.routing.wrote(session, keys, route.scope.epoch)):
            return None
        readings = self._read(route, keys, question.mode)
        served = self._served_at_once(question, route, identities, readings)
        return self._answered(question, route, identities, keys, readings) if served is None else served

    @staticmethod
    def _served_at_once(
        question: Question, route: Route, identities: Sequence[tuple[Any, ...]], readings: Sequence[Reading]
    ) -> list[Any] | None:
        """Return the instances where all were hits, of the one class that was asked for, and new to the session."""
        if question.mode not in _SERVING or not _HITS.issuperset(map(type, readings)):
            return None
        payloads = cast("Sequence[Hit]", readings)
        layout = route.shapes.layout_of(payloads[0])
        if layout is None or layout.mapper is not question.mapper:
            return None
        identity_class = question.family.identity_class
        return layout.serve(question.session, [(identity_class, i, None) for i in identities], payloads)

    def _answered(
        self,
        question: Question,
        route: Route,
        identities: Sequence[tuple[Any, ...]],
        keys: Sequence[str],
        readings: Sequence[Reading],
    ) -> list[Any] | None:
        """Return the instances of what was read from the cache, and of the rest from the database."""
        policy = question.family.policy
        if policy.on_miss is OnMiss.WAIT and question.mode in _SERVING:
            readings = self._cache.read_later(keys, route.scope.epoch, route.intent, readings, policy.wait)
        hits: list[tuple[tuple[Any, ...], str, bytes]] = []
        leases: dict[tuple[Any, ...], tuple[str, Token]] = {}
        for identity, key, reading in zip(identities, keys, readings, strict=True):
            if type(reading) is Hit:
                hits.append((identity, key, reading))
            elif type(reading) is Leased:
                leases[identity] = key, reading.token
        found = self._served(question, route, hits) if question.mode in _SERVING else {}
        if len(found) < len(identities):
            missing = [identity for identity in identities if identity not in found]
            rows = self._select(question, route, missing, leases)
            if not rows.keys() <= set(missing):
                return None  # found by a value that the database holds equal to the key: '1' for 1
            for identity, fenced in rows.items():
                found[identity] = self._loaded(question, identity, fenced)
        return [found.get(identity) for identity in identities]

    def current_row(
        self, question: Question, route: Route, identity: tuple[Any, ...], key: str
    ) -> tuple[Layout, Row] | None:
        """Return a row as it is committed now: from the cache, or else, filling it, from the database.

        None where neither has it for certain.
        """
        reading = self._cache.read((key,), route.scope.epoch, route.intent)[0]
        if type(reading) is Hit:
            decoded = route.shapes.decode(reading)
            if decoded is None:
                self._cache.drop([key])
            elif decoded[0].identity(decoded[1]) == identity:
                return decoded
        elif type(reading) is Leased:
            fenced = self._select(question, route, [identity], {identity: (key, reading.token)}).get(identity)
            if fenced is not None and fenced.selection.layout is not None:
                return fenced.selection.layout, fenced.selection.row
        return None

    def instance(self, question: Question, identity: tuple[Any, ...], layout: Layout, row: Row) -> Any:
        """Return the session's instance for a row; None where it is of another class than was asked for."""
        key = (question.family.identity_class, identity, None)
        ((_, instance),) = self._instances(question, layout, [(key, row)])
        return instance

    def _read(self, route: Route, keys: Sequence[str], mode: CacheMode) -> Sequence[Reading]:
        if mode is CacheMode.NORMAL:
            return self._cache.read(keys, route.scope.epoch, route.intent)
        intent = route.intent if mode in _FILLING else Intent.LOOK
        if mode is CacheMode.REFRESH:
            try:
                self._cache.evict(keys)
            except CacheUnavailableError:  # counted and told of; the read itself comes from the database
                intent = Intent.LOOK
        return self._cache.read(keys, route.scope.epoch, intent)

    def _served(
        self, question: Question, route: Route, hits: Sequence[tuple[tuple[Any, ...], str, bytes]]
    ) -> dict[tuple[Any, ...], Any]:
        """Return the instances of cached rows; leave out what cannot be read, or is not the row that was asked for."""
        decode, identity_class = route.shapes.decode, question.family.identity_class
        rows: dict[Layout, list[tuple[Any, Row]]] = {}
        unreadable: list[str] = []
        found: dict[tuple[Any, ...], Any] = {}
        for identity, key, payload in hits:
            if payload == NO_ROW and question.family.policy.negative:
                found[identity] = None
                continue
            decoded = decode(payload)
            if decoded is None:
                unreadable.append(key)
                continue
            layout, row = decoded
            if layout.identity(row) == identity:
                rows.setdefault(layout, []).append(((identity_class, identity, None), row))
        if unreadable:
            # Of another version of the model, or damaged: the next reader may fill. Not this one, it has no lease.
            self._cache.drop(unreadable)
        for layout, pairs in rows.items():
            found.update(self._instances(question, layout, pairs))
        return found

    @staticmethod
    def _instances(
        question: Question, layout: Layout, pairs: Sequence[tuple[Any, Row]]
    ) -> Iterable[tuple[tuple[Any, ...], Any]]:
        """Return the session's instances for rows of one class, with their identities; None where it is another one."""
        if layout.mapper is not question.mapper and not layout.mapper.isa(question.mapper):
            return [(key[1], None) for key, _ in pairs]
        instances = layout.hydrate(question.session, pairs)
        return [(key[1], instance) for (key, _), instance in zip(pairs, instances, strict=True)]

    # --- the database ---

    def _select(
        self,
        question: Question,
        route: Route,
        missing: Sequence[tuple[Any, ...]],
        leases: dict[tuple[Any, ...], tuple[str, Token]],
    ) -> dict[tuple[Any, ...], FencedRow]:
        """Read rows from the database, and fill those that were leased and are not being written."""
        refused = dict(leases)
        fillings: list[Filling] = []
        rows: dict[tuple[Any, ...], FencedRow] = {}
        try:
            arguments = question.bind_arguments or {"mapper": route.family.base}
            connection = question.session.connection(bind_arguments=arguments)
            lossless = self._cache.store.keeps_tombstones
            # The fence does not see what its own transaction wrote.
            unit = self._core.unit_of(connection)
            wrote = unit is not None and unit.wrote
            fence = Fence(connection, route.shapes, route.facts, lossless, question.execution_options or NO_OPTIONS)
            for some in chunks(missing):
                rows.update(fence.read(some, _never if wrote else leases.__contains__))
            for identity, fenced in rows.items():
                filling = self._filling(route, leases.get(identity), fenced)
                if filling is not None:
                    fillings.append(filling)
                    del refused[identity]
            if route.family.policy.negative and not wrote:
                fillings += self._absences(route, connection.dialect, missing, rows, refused)
        finally:
            self._cache.fill(fillings, list(refused.values()))
        return rows

    @staticmethod
    def _absences(
        route: Route,
        dialect: Dialect,
        missing: Sequence[tuple[Any, ...]],
        rows: Mapping[tuple[Any, ...], FencedRow],
        refused: dict[tuple[Any, ...], tuple[str, Token]],
    ) -> Iterator[Filling]:
        """Take the leases of rows that do not exist, to fill that they do not. `routing` says where that is right."""
        family = route.family
        if family.loose or not rows.keys() <= set(missing):
            return  # there may be a row whose key the database holds equal
        for identity in missing:
            if identity in refused and identity not in rows and have_one_form(family, identity, dialect):
                yield Filling(*refused.pop(identity), NO_ROW, family.policy.lifetime())

    def _filling(self, route: Route, lease: tuple[str, Token] | None, fenced: FencedRow) -> Filling | None:
        selection = fenced.fillable
        if lease is None or selection is None or selection.layout is None:
            return None
        try:
            payload = selection.layout.codec.encode(selection.row)
        except CodecError as error:  # this value cannot be cached: it is read from the database every time
            self._cache.report(error)
            return None
        return Filling(lease[0], lease[1], payload, route.family.policy.lifetime())

    def _loaded(self, question: Question, identity: tuple[Any, ...], fenced: FencedRow) -> Any:
        selection = fenced.selection
        if selection.layout is None:  # a subclass that is not cached
            return question.session.get(question.mapper, identity, options=_BYPASS)
        key = (selection.layout.identity_class, identity, None)
        ((_, instance),) = self._instances(question, selection.layout, [(key, selection.row)])
        return instance


def _never(_identity: tuple[Any, ...]) -> bool:
    return False
