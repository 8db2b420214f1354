"""Ends of transactions that no driver at hand can be brought to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.engine.default import DefaultDialect

from sa_writethrough.cache import EntryCache
from sa_writethrough.coherence import Announce
from sa_writethrough.core import Core
from sa_writethrough.ending import Ending
from sa_writethrough.entities import Entities
from sa_writethrough.policy import CachePolicy
from sa_writethrough.stores.memory import MemoryStore
from sa_writethrough.unit import Phase, Touch, Unit


@pytest.mark.parametrize(("phase", "expected"), [(Phase.ANNOUNCED, (1, 0)), (Phase.PREPARED, (0, 1))])
def test_a_rollback_of_the_connection_takes_back_what_is_not_prepared(phase: Phase, expected: Any) -> None:
    """A prepared transaction outlives its connection, and with it the tombstone."""
    store = MemoryStore()
    core = Core(Entities(None, CachePolicy()), EntryCache(store))
    unit = Unit()
    family: Any = SimpleNamespace(policy=CachePolicy())
    unit.touch("k", Touch(family, "e", (1,), held=True))
    (token,) = store.submit([Announce("k", "e", None)]).wait()
    unit.tokens, unit.phase = {"k": token}, phase
    done: list[Any] = []
    connection: Any = SimpleNamespace(info={core: unit})
    Ending(core, DefaultDialect()).do_rollback(done.append, connection)
    assert done == [connection]
    assert (core.cache.stats.retracted, core.cache.stats.unresolved) == expected
    assert unit.is_fresh
