"""CacheMode: what each member does on a hit and on a miss."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

import sa_writethrough as wt
from sa_writethrough import CacheMode
from sa_writethrough.coherence import Evict
from sa_writethrough.stores.memory import MemoryStore
from sa_writethrough.testing import FaultyStore, LoseRequest
from tests.reading.conftest import World

WAYS = {
    "get": lambda session, user, mode: session.get(user, 1, options=[wt.from_cache(mode)]),
    "select": lambda session, user, mode: session.scalars(
        sa.select(user).where(user.id == 1).options(wt.from_cache(mode))
    ).one(),
}


@pytest.fixture(params=WAYS)
def lookup(request: pytest.FixtureRequest) -> Any:
    return WAYS[request.param]


# What the lookup returns when the entry says "ann" and the database "eve", and what the entry says afterwards.
@pytest.mark.parametrize(
    ("mode", "served", "kept"),
    [
        (CacheMode.NORMAL, "ann", "ann"),
        (CacheMode.GET, "ann", "ann"),
        (CacheMode.PUT, "eve", "ann"),
        (CacheMode.REFRESH, "eve", "eve"),
        (CacheMode.IGNORE, "eve", "ann"),
    ],
)
def test_a_mode_with_an_entry(user: Any, world: World, lookup: Any, mode: CacheMode, served: str, kept: str) -> None:
    """NORMAL and GET serve the entry, PUT and IGNORE leave it, REFRESH replaces it."""
    world.outside_sql("UPDATE users SET name = 'eve' WHERE id = 1")
    with world.session() as session, world.counting() as seen:
        assert lookup(session, user, mode).name == served
    assert len(seen) == (served == "eve")
    assert world.is_cached(user, 1)
    assert world.read(user, 1, CacheMode.GET).name == kept


@pytest.mark.parametrize(
    ("mode", "fills"),
    [
        (CacheMode.NORMAL, True),
        (CacheMode.GET, False),
        (CacheMode.PUT, True),
        (CacheMode.REFRESH, True),
        (CacheMode.IGNORE, False),
    ],
)
def test_a_mode_without_an_entry(user: Any, world: World, lookup: Any, mode: CacheMode, fills: bool) -> None:
    """NORMAL, PUT and REFRESH fill on a miss, GET and IGNORE do not."""
    world.cache.evict_all()
    with world.session() as session, world.counting() as seen:
        assert lookup(session, user, mode).name == "ann"
    assert len(seen) == 1
    assert world.is_cached(user, 1) is fills


def test_get_takes_no_lease(user: Any, world: World) -> None:
    """After a miss with GET another reader may fill at once, while the first one's session is still open."""
    world.cache.evict_all()
    with world.session() as first:
        first.get(user, 1, options=[wt.from_cache(CacheMode.GET)])
        world.read(user, 1)
        assert world.is_cached(user, 1)


def test_the_last_option_wins(user: Any, world: World) -> None:
    """Of two options the later one holds."""
    world.outside_sql("UPDATE users SET name = 'eve' WHERE id = 1")
    statement = sa.select(user).where(user.id == 1).options(wt.from_cache(CacheMode.REFRESH), wt.from_cache())
    with world.session() as session, world.no_sql():
        assert session.scalars(statement).one().name == "ann"


def test_refresh_of_many_replaces_each(user: Any, world: World) -> None:
    """REFRESH of several rows replaces all of their entries."""
    world.outside_sql("UPDATE users SET name = 'eve'")
    statement = sa.select(user).where(user.id.in_([1, 2, 3])).options(wt.from_cache(CacheMode.REFRESH))
    with world.session() as session:
        assert {u.name for u in session.scalars(statement)} == {"eve"}
    assert {world.read(user, i, CacheMode.GET).name for i in (1, 2, 3)} == {"eve"}


def test_refresh_drops_the_entry_of_a_row_that_is_gone(user: Any, world: World) -> None:
    """REFRESH of a row that was deleted past the library leaves no entry."""
    world.outside_sql("DELETE FROM users WHERE id = 1")
    with world.session() as session:
        assert session.get(user, 1, options=[wt.from_cache(CacheMode.REFRESH)]) is None
    assert not world.cache.contains(user, 1)


def test_refresh_reads_the_database_when_the_entry_cannot_be_evicted(
    base: Any, user: Any, sqlite_world_of: Any
) -> None:
    """Where the store does not answer REFRESH returns the row and counts the failure."""
    store = FaultyStore(MemoryStore())
    world = sqlite_world_of(base, store=store)
    world.add(user(id=1, name="ann"))
    world.outside_sql("UPDATE users SET name = 'eve' WHERE id = 1")
    store.script.append(LoseRequest(Evict))
    with world.session() as session:
        assert session.get(user, 1, options=[wt.from_cache(CacheMode.REFRESH)]).name == "eve"
    assert world.cache.stats().failures == 1
    assert store.script == []


def test_a_mode_under_reads_always(base: Any, user: Any, sqlite_world_of: Any) -> None:
    """An option's mode holds under `Reads.ALWAYS` as well."""
    world = sqlite_world_of(base, policy=wt.CachePolicy(reads=wt.Reads.ALWAYS))
    world.add(user(id=1, name="ann"))
    world.outside_sql("UPDATE users SET name = 'eve' WHERE id = 1")
    with world.session() as session:
        assert session.get(user, 1, options=[wt.from_cache(CacheMode.PUT)]).name == "eve"
    with world.session() as session:
        assert session.get(user, 1).name == "ann"


@pytest.mark.parametrize("wrong", ["normal", None, 1, CacheMode])
def test_what_is_no_mode_is_refused(wrong: Any) -> None:
    """`from_cache` takes a CacheMode and says so."""
    with pytest.raises(wt.ConfigurationError, match=r"CacheMode\.NORMAL, CacheMode\.GET"):
        wt.from_cache(wrong)


def test_bypass_is_ignore() -> None:
    """`bypass_cache()` is `from_cache(CacheMode.IGNORE)` by another name."""
    assert wt.bypass_cache().mode is CacheMode.IGNORE
    assert wt.from_cache().mode is CacheMode.NORMAL
