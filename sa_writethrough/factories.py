"""What an application registers on: the kinds of Session factories, which class carries their listeners, their binds.

The listeners hang on a Session class. A `sessionmaker` has one of its own. An `async_sessionmaker` has none: its
sessions are made around `sqlalchemy.orm.Session`, which is everybody's, so it is given one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from sa_writethrough.exceptions import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import (
        AsyncConnection,
        AsyncEngine,
        AsyncSession,
        async_scoped_session,
        async_sessionmaker,
    )
else:
    try:
        from sqlalchemy.ext.asyncio import (
            AsyncConnection,
            AsyncEngine,
            AsyncSession,
            async_scoped_session,
            async_sessionmaker,
        )
    except ImportError:  # SQLAlchemy 2.1 without greenlet, which it no longer brings: nobody has any of these there

        class _Absent:
            """What nothing is an instance of."""

        AsyncConnection = AsyncEngine = AsyncSession = async_scoped_session = async_sessionmaker = _Absent

__all__ = [
    "AsyncConnection",
    "AsyncEngine",
    "AsyncSession",
    "async_scoped_session",
    "async_sessionmaker",
    "bind_of",
    "is_async",
    "session_class_of",
    "sync_bind",
    "sync_class_of",
    "with_class_of_its_own",
]

_NAME = "sync_session_class"


def is_async(factory: Any) -> bool:
    """Tell whether *factory* makes asynchronous sessions."""
    made = isinstance(factory, async_sessionmaker | async_scoped_session)
    return made or (isinstance(factory, type) and issubclass(factory, AsyncSession))


def session_class_of(factory: Any) -> Any:
    """Return what carries the listeners of a factory of synchronous sessions: its own Session class."""
    if isinstance(factory, scoped_session):
        factory = factory.session_factory
    if isinstance(factory, sessionmaker):
        return factory.class_
    if isinstance(factory, type) and issubclass(factory, Session):
        return factory
    raise ConfigurationError(
        f"{factory!r} is no Session factory: give a sessionmaker, a scoped_session, a Session class, or an "
        "async_sessionmaker."
    )


def sync_class_of(factory: Any) -> type[Session]:
    """Return the Session class that the sessions of an asynchronous *factory* are made around."""
    if isinstance(factory, async_scoped_session):
        factory = factory.session_factory
    found: type[Session] | None = factory.kw.get(_NAME) if isinstance(factory, async_sessionmaker) else None
    if found is None:
        found = (factory.class_ if isinstance(factory, async_sessionmaker) else factory).sync_session_class
    return found


def with_class_of_its_own(factory: Any) -> tuple[type[Session], Callable[[], None]]:
    """Have an asynchronous *factory* make sessions around a Session class of its own; return it, and the undoing."""
    base = sync_class_of(factory)
    own = type(base.__name__, (base,), {"__module__": base.__module__, "__doc__": base.__doc__})
    if isinstance(factory, async_scoped_session):
        factory = factory.session_factory
    if isinstance(factory, async_sessionmaker):
        given = factory.kw
        undo = partial(given.__setitem__, _NAME, given[_NAME]) if _NAME in given else partial(given.pop, _NAME)
        given[_NAME] = own
    else:
        undo = partial(setattr, factory, _NAME, base) if _NAME in vars(factory) else partial(delattr, factory, _NAME)
        setattr(factory, _NAME, own)
    return own, undo


def bind_of(factory: Any) -> Engine | Connection | None:
    """Return what the factory's sessions are bound to, if that is one thing and known already."""
    if isinstance(factory, scoped_session | async_scoped_session):
        factory = factory.session_factory
    if not isinstance(factory, sessionmaker | async_sessionmaker) or factory.kw.get("binds"):
        return None
    bind = sync_bind(factory.kw.get("bind"))
    return bind if isinstance(bind, Engine | Connection) else None


def sync_bind(bind: Any) -> Any:
    """Return the engine or connection that an asynchronous one stands for; anything else as it is."""
    if isinstance(bind, AsyncEngine):
        return bind.sync_engine
    return bind.sync_connection if isinstance(bind, AsyncConnection) else bind
