"""Taps on a dialect: told just before and just after the driver begins, commits, rolls back.

SQLAlchemy's ConnectionEvents come before the driver's COMMIT alone, so what became of it must be learnt elsewhere; and
one listener of theirs on an engine makes every statement of every connection dispatch all of them. Every COMMIT,
whoever ends the transaction, goes through `Dialect.do_commit`: a public method, replaced here on the one dialect object
of an engine by one that calls it between our steps. Knows nothing of what is done with it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeAlias

from sqlalchemy.engine import Dialect

__all__ = ["Tap", "tap", "untap"]

Do: TypeAlias = Callable[..., None]
"""What the dialect does itself."""


class Tap(Protocol):
    """Whoever wants to know. Each method must call *do* with the arguments it got, once."""

    def do_begin(self, do: Do, dbapi_connection: Any) -> None:
        """Begin."""

    def do_commit(self, do: Do, dbapi_connection: Any) -> None:
        """Commit; what it raises before *do* aborts the transaction."""

    def do_rollback(self, do: Do, dbapi_connection: Any) -> None:
        """Roll back: a session's, a connection's, the pool's when a connection is returned."""

    def do_prepare_twophase(self, do: Do, connection: Any, xid: Any) -> None:
        """Prepare."""

    def do_commit_twophase(self, do: Do, connection: Any, xid: Any, *rest: Any, **recover: Any) -> None:
        """Commit what was prepared, or was not."""

    def do_rollback_twophase(self, do: Do, connection: Any, xid: Any, *rest: Any, **recover: Any) -> None:
        """Roll back what was prepared, or was not."""


_METHODS = ("do_begin", "do_commit", "do_rollback", "do_prepare_twophase", "do_commit_twophase", "do_rollback_twophase")
_TAPS = "_sa_writethrough_taps"


class _Taps:
    """The taps of one dialect. What it put in place of a method stays valid when all of them are gone."""

    def __init__(self, dialect: Dialect) -> None:
        self._originals = {name: getattr(dialect, name) for name in _METHODS}
        self.calls = dict(self._originals)
        self.placed = {name: partial(self._call, name) for name in _METHODS}
        self.taps: list[Tap] = []

    def _call(self, name: str, *arguments: Any, **keywords: Any) -> None:
        self.calls[name](*arguments, **keywords)

    def rebuild(self) -> None:
        """Put the first tap outermost."""
        self.calls = dict(self._originals)
        for one in reversed(self.taps):
            for name, call in self.calls.items():
                self.calls[name] = partial(getattr(one, name), call)


def tap(dialect: Dialect, one: Tap) -> None:
    """Have *one* told of every transaction of *dialect*."""
    taps: _Taps | None = vars(dialect).get(_TAPS)
    if taps is None:
        taps = _Taps(dialect)
        vars(dialect)[_TAPS] = taps
        vars(dialect).update(taps.placed)
    taps.taps.append(one)
    taps.rebuild()


def untap(dialect: Dialect, one: Tap) -> None:
    """Leave *one* alone from now on; with the last one the dialect is as it was."""
    taps: _Taps = vars(dialect)[_TAPS]
    taps.taps.remove(one)
    taps.rebuild()
    if taps.taps:
        return
    del vars(dialect)[_TAPS]
    for name, placed in taps.placed.items():
        if vars(dialect).get(name) is placed:  # else somebody has put something around it
            del vars(dialect)[name]
