"""One read by a unique key: a pointer to the primary key, and the row itself, which must have the key.

    get_by or a lookup > the pointer, a hit > the row, from the cache or under the fence > it has the key: hydrate ·
    the pointer leased: SELECT by the key, fill it · otherwise: the database

A pointer is a hint. Nobody announces it, and however old it is, it does no harm: the row is strictly what the database
has, and no other row can have the same unique key while this one has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import inspect, select
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import MultipleResultsFound

from sa_writethrough import _sqla
from sa_writethrough.cache import Filling
from sa_writethrough.coherence import Hit, Leased, Token
from sa_writethrough.core import Core
from sa_writethrough.exceptions import CodecError
from sa_writethrough.loading import Loading, Question
from sa_writethrough.options import bypass_cache
from sa_writethrough.routing import NO_OPTIONS, Route
from sa_writethrough.unique import UniqueKey

__all__ = ["Pointing"]

_BYPASS = (bypass_cache(),)


class Pointing:
    """Reads by unique keys, for one registration."""

    def __init__(self, core: Core, loading: Loading) -> None:
        self._cache = core.cache
        self._loading = loading

    def get(self, question: Question, unique: UniqueKey, values: Sequence[Any]) -> Any:
        """Return the instance that has the unique key, or None. Begins and flushes, as any read does."""
        _sqla.autobegin(question.session)
        _sqla.autoflush(question.session)
        found = self.find(question, unique, values)
        if found is None:
            found = self._selected(question, unique, values)
        if len(found) > 1:
            name = question.mapper.class_.__name__
            raise MultipleResultsFound(f"More than one {name} has {unique.names} = {tuple(values)!r}: NULL is no key.")
        return found[0] if found else None

    def find(self, question: Question, unique: UniqueKey, values: Sequence[Any]) -> Sequence[Any] | None:
        """Return the instances, one at most, that have the unique key; None where the cache may not serve.

        The session has begun and flushed.
        """
        arguments = question.bind_arguments or {"mapper": unique.family.base}
        route = self._loading.routing.route(question.session, unique.family, arguments, question.execution_options)
        pointer = None if route is None else unique.key(route.scope, values)
        if route is None or pointer is None:
            return None
        dialect = question.session.get_bind(**arguments).dialect
        reading = self._cache.read((pointer,), route.scope.epoch, route.intent)[0]
        if type(reading) is Leased:
            return self._filled(question, unique, values, (pointer, reading.token), dialect)
        identity = unique.decode(reading, dialect) if type(reading) is Hit else None
        if identity is not None:
            found = self._pointed_at(question, route, unique, values, identity)
            if found is not None:
                return found
        if type(reading) is Hit:  # the row has another key by now, or there is no such row: the next reader may fill
            self._cache.drop([pointer])
        return None

    def _pointed_at(
        self, question: Question, route: Route, unique: UniqueKey, values: Sequence[Any], identity: tuple[Any, ...]
    ) -> Sequence[Any] | None:
        """Return the instance of the row that is pointed at, if it has the key."""
        session = question.session
        key = unique.family.key(route.scope, identity)
        if key is None or self._loading.routing.wrote(session, (key,), route.scope.epoch):
            return None
        if _sqla.is_expired(session, (unique.family.identity_class, identity, None)):
            return None  # the SELECT refreshes it
        found = self._loading.current_row(question, route, identity, key)
        if found is None or not unique.holds(*found, values):
            return None
        instance = self._loading.instance(question, identity, *found)
        return () if instance is None else (instance,)

    def _filled(
        self,
        question: Question,
        unique: UniqueKey,
        values: Sequence[Any],
        lease: tuple[str, Token],
        dialect: Dialect,
    ) -> Sequence[Any]:
        """Return the instances from the database, and point at the one that was found."""
        payload = None
        try:
            found = self._selected(question, unique, values)
            if len(found) == 1:
                payload = unique.encode(inspect(found[0]).identity, dialect)
        except CodecError as error:  # such a key is read from the database every time
            self._cache.report(error)
        finally:
            if payload is None:
                self._cache.fill([], [lease])
            else:
                self._cache.fill([Filling(*lease, payload, unique.family.policy.lifetime())])
        return found

    @staticmethod
    def _selected(question: Question, unique: UniqueKey, values: Sequence[Any]) -> Sequence[Any]:
        return question.session.scalars(
            _statement(question, unique, values),
            execution_options=question.execution_options or NO_OPTIONS,
            bind_arguments=dict(question.bind_arguments or {}),
        ).all()


def _statement(question: Question, unique: UniqueKey, values: Sequence[Any]) -> Any:
    criteria = [getattr(question.mapper.class_, name) == v for name, v in zip(unique.names, values, strict=True)]
    return select(question.mapper).where(*criteria).options(*_BYPASS)
